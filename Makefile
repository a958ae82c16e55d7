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

.PHONY: demo test lint unit integration install clean

demo: install
	$(PY) -m launcher.run experiment=demo
	$(PY) -m vlm evaluate runs/demo-shapes
	$(PY) -m vlm generate runs/demo-shapes --val 5

test: lint unit

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# One thread a process: the tests run side by side on all cores.
unit: install
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile

# On a real Slurm, which this starts and stops (Debian: apt-get install slurm-wlm slurmdbd munge mariadb-server).
integration: install
	$(PY) -m pytest -m slurm tests/integration

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
