# Two commands for a newcomer: `make demo` and `make test`. Each does all the set-up itself.

PYTHON ?= python3
VENV ?= .venv
# Which torch, and from where. For the CPU build on a machine without a GPU, name the index of PyTorch's CPU wheels:
#   make demo TORCH_INDEX=<its address>
TORCH ?= torch==2.13.0
TORCH_INDEX ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed

BROWSER_PACKAGES := chromium chromium-driver
SLURM_PACKAGES := slurm-wlm slurmdbd munge mariadb-server

.PHONY: demo test lint unit slow integration storm browser slurm install clean

demo: install
	$(PY) -m launcher.run experiment=demo
	$(PY) -m vlm evaluate runs/demo-shapes
	$(PY) -m vlm generate runs/demo-shapes --val 5

test: lint unit slow integration

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# One thread a process: the tests run side by side on all cores. First those that take seconds, then the others.
# REQUIRE_SLURM=1 asks for a browser too.
unit: install browser
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile -m "not slow and not slurm and not storm" $(if $(REQUIRE_SLURM),--require-browser)

slow: install
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile -m "slow and not slurm and not storm"

# On a real Slurm, which this starts and stops. REQUIRE_SLURM=1: a machine without Slurm fails instead of skipping.
integration: install slurm
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m "slurm and not storm" tests/integration $(if $(REQUIRE_SLURM),--require-slurm)

# No part of `make test`: the same faults from many seeds, here and, where there is one, on a real Slurm.
SEEDS ?= 30
storm: install
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 3 -m "storm and not slurm" --seeds $(SEEDS)
	OMP_NUM_THREADS=1 $(PY) -m pytest -m "storm and slurm" --seeds $(SEEDS) tests/integration || [ $$? = 5 ]  # 5: none

# Root on Debian or Ubuntu installs Slurm, with what is recommended: the plug-in for MariaDB is among it.
slurm:
	@if [ -x /usr/sbin/slurmctld ] && [ -x /usr/sbin/slurmdbd ] && [ -x /usr/sbin/mariadbd ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $(SLURM_PACKAGES); \
	else echo "NO SLURM HERE, and this user cannot install it: apt-get install $(SLURM_PACKAGES)" >&2; fi

# Root on Debian installs Chromium, in which the pages of `sweeps compare` are tried.
browser:
	@if command -v chromium > /dev/null && command -v chromedriver > /dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(BROWSER_PACKAGES); then :; \
	else echo "NO BROWSER HERE, and this user cannot install it: apt-get install $(BROWSER_PACKAGES)" >&2; fi

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
