"""Every experiment composes; the seeds' have the seeds' values."""

from __future__ import annotations

import pytest

from launcher.plan import read_sections
from tests.conftest import PHOTOS, REPOSITORY, compose_values

EXPERIMENTS = sorted(p.stem for p in (REPOSITORY / "conf" / "experiment").glob("*.yaml"))
ARCHITECTURE = {
    "n_embd": 128, "image_embed_dim": 512, "n_layer": 8, "n_blocks": 3, "n_head": 8, "img_size": 96, "patch_size": 16,
    "dropout": 0.1,
}  # fmt: skip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_fits_its_schema_and_opens_with_its_command(name):
    read_sections(compose_values(f"experiment={name}", *(["data.path=x.csv"] if name.startswith("seemore") else [])))
    head = (REPOSITORY / "conf" / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert f"python -m launcher.run experiment={name}" in head[1] and "Expect" in "".join(head[:5])


@pytest.mark.parametrize("name", ["seemore_rutledge", "seemore_enigma"])
def test_both_seeds_train_the_same_architecture(name):
    model = compose_values(f"experiment={name}")["model"]
    assert {key: model[key] for key in ARCHITECTURE} == ARCHITECTURE


def test_the_first_seeds_values():
    values = compose_values("experiment=seemore_rutledge")
    assert (values["optim"]["kind"], values["optim"]["lr"], values["optim"]["weight_decay"]) == ("adamw", 1e-4, 0.01)
    trainer = values["trainer"]
    assert (trainer["batch_size"], trainer["epochs"], trainer["max_steps"], trainer["log_every"]) == (5, 10, None, 10)
    assert (values["data"]["val_fraction"], values["data"]["normalize"]) == (0.2, "half")


def test_the_second_seeds_values():
    values = compose_values("experiment=seemore_enigma")
    assert (values["optim"]["kind"], values["optim"]["lr"], values["optim"]["weight_decay"]) == ("adam", 1e-3, 0.01)
    trainer = values["trainer"]
    assert (trainer["batch_size"], trainer["max_steps"], trainer["val_every"]) == (16, 100, 10)
    assert (trainer["val_batch_size"], trainer["val_batches"]) == (8, 40)
    assert (values["data"]["val_fraction"], values["data"]["normalize"]) == (0.1, "imagenet")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seemore_rutledge", "seemore_enigma"])
def test_the_seeds_experiments_run_on_real_pictures(command, tmp_path, name):
    length = ["trainer.epochs=1"] if name.endswith("rutledge") else ["trainer.max_steps=8"]
    done = command("-m", "launcher.run", f"experiment={name}", f"data.path={PHOTOS}", *length, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "runs" / f"{name}-csv").glob("*/summary.json"))
