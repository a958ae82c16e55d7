"""``python -m vlm`` on a trained run: generate, evaluate, export, convert."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64decode

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import SMALL, picture
from tests.vlm import reference
from vlm.__main__ import main
from vlm.trained import load_trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run directory."""
    folder = tmp_path_factory.mktemp("door")
    words = [*SMALL, "data.unseen_pairs=3", f"data.cache_dir={folder}/cache", "trainer.max_steps=10"]
    subprocess.run([sys.executable, "-m", "launcher.run", *words], cwd=folder, check=True, capture_output=True)
    return next(folder.glob("runs/*/*"))


def printed(capsys, *words):
    assert main([str(w) for w in words]) == 0
    return capsys.readouterr().out


def test_generate_captions_files_and_validation_pictures(capsys, run, tmp_path):
    (tmp_path / "a.png").write_bytes(b64decode(picture(1)))
    rows = [
        json.loads(line)
        for line in printed(capsys, "generate", run, tmp_path / "a.png", "--val", 2, "--json").splitlines()
    ]
    assert [set(r) for r in rows] == [
        {"picture", "caption"},
        {"picture", "caption", "true"},
        {"picture", "caption", "true"},
    ]
    assert rows[0]["picture"].endswith("a.png") and rows[1]["true"].startswith("a ")


def test_generate_begins_with_the_prompt(capsys, run):
    assert "a red " in printed(capsys, "generate", run, "--val", 1, "--prompt", "a red ").partition("(true")[0]


def test_evaluate_scores_every_split(capsys, run):
    found = json.loads(printed(capsys, "evaluate", run, "--json"))
    assert set(found["splits"]) == {"train", "val", "unseen_pairs"}
    for score in found["splits"].values():
        assert score["rows"] > 0 and score["loss"] > 0 and 0 <= score["exact"] <= score["rows"]
    assert "/best-" in found["checkpoint"]
    table = printed(capsys, "evaluate", run.parent, "--checkpoint", "last", "--limit", 3)
    assert "/step-" in table and "unseen_pairs" in table and "3" in table


def test_the_validation_loss_of_evaluate_is_the_one_of_training(capsys, run):
    summary = json.loads((run / "summary.json").read_text())
    found = json.loads(printed(capsys, "evaluate", run, "--checkpoint", "last", "--json"))
    assert found["splits"]["val"]["loss"] == pytest.approx(summary["val_loss"], rel=2e-2)


def test_an_exported_model_writes_the_same_captions(capsys, run, tmp_path):
    folder = tmp_path / "exported"
    assert printed(capsys, "export", run, folder).strip() == str(folder)
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json", "tokenizer.json"}
    (tmp_path / "a.png").write_bytes(b64decode(picture(4)))
    captions = [printed(capsys, "generate", source, tmp_path / "a.png") for source in (run, folder)]
    assert captions[0] == captions[1]
    ours, theirs = load_trained(run).model.state_dict(), load_trained(folder).model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_converted_seed_keeps_its_numbers_and_captions_pictures(capsys, tmp_path):
    sizes = {"width": 16, "vision": 32, "layers": 2, "blocks": 1, "heads": 2, "img": 16, "patch": 8, "positions": 30}
    weights = reference.random_weights(vocab=6, **sizes)
    torch.save(weights, tmp_path / "seed.pth")
    (tmp_path / "alphabet.txt").write_text("abcde")
    words = ("convert", tmp_path / "seed.pth", tmp_path / "out", "--characters", tmp_path / "alphabet.txt")
    printed(capsys, *words)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(t.numel() for t in stored.values()) == sum(t.numel() for t in weights.values())
    (tmp_path / "a.png").write_bytes(b64decode(picture(4)))
    caption = printed(capsys, "generate", tmp_path / "out", tmp_path / "a.png", "--prompt", "ab")
    assert caption.partition(": ")[2].startswith("ab")


@pytest.mark.parametrize(
    ("alphabet", "prompt", "expected"),
    [
        (None, "a", "--characters"),
        ("abcd", "a", "5 tokens; the checkpoint has 6"),
        ("abcde", "", "--prompt"),
        ("abcde", "z", "'z'"),
    ],
)
def test_a_seed_without_what_it_needs_says_so(capsys, tmp_path, alphabet, prompt, expected):
    sizes = {"width": 16, "vision": 32, "layers": 1, "blocks": 1, "heads": 2, "img": 16, "patch": 8, "positions": 30}
    torch.save(reference.random_weights(vocab=6, **sizes), tmp_path / "seed.pth")
    (tmp_path / "a.png").write_bytes(b64decode(picture(4)))
    words = ["convert", str(tmp_path / "seed.pth"), str(tmp_path / "out")]
    if alphabet:
        (tmp_path / "alphabet.txt").write_text(alphabet)
        words += ["--characters", str(tmp_path / "alphabet.txt")]
    code = main(words) or main(["generate", str(tmp_path / "out"), str(tmp_path / "a.png"), "--prompt", prompt])
    assert code == 1 and expected in capsys.readouterr().err


@pytest.mark.parametrize("door", [[], ["generate"], ["evaluate"], ["export"], ["convert"]])
def test_every_door_explains_itself(door, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*door, "--help"])
    assert ended.value.code == 0 and "usage: python -m vlm" in capsys.readouterr().out
