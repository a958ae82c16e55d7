"""A warm epoch of the loader against pandas + base64 + Pillow for each item, on 512x384 JPEG rows."""

from __future__ import annotations

import argparse
import base64
import csv
import io
import tempfile
from pathlib import Path
from typing import Any

from launcher.runtime.errors import ExitCode
from sweeps.bench.report import interleaved, ratio, say

NAME = "loader"
_BATCH = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--rows", type=int, default=480, help="rows of the file (480)")
    parser.add_argument("--img-size", type=int, default=96, help="pixels after resizing (96)")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each side (3)")


def run(args: argparse.Namespace) -> int:
    """Print images a second of both, their ratio, and whether every pixel is the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pictures.csv"
        _write(path, args.rows)
        steps, data = opened(path, args.img_size)
        naive = _Naive(path, args.img_size)
        same = all((data.decoded.images[row] == naive.item(row)).all() for row in range(args.rows))
        ours = Epochs(steps)
        ours()  # the page cache is warm for both
        slow, fast = interleaved(naive, ours, args.rounds)
        row = {
            "naive_images_per_s": args.rows / sorted(slow)[len(slow) // 2],
            "ours_images_per_s": args.rows / sorted(fast)[len(fast) // 2],
            "times_faster": ratio(slow, fast),
            "pixels_identical": same,
        }
    say(f"{NAME}: {args.rows} rows of 512x384 JPEG to {args.img_size} px, batch {_BATCH}", [row], args.json)
    return ExitCode.DONE


class _Naive:
    """Each item decoded when it is asked for."""

    def __init__(self, path: Path, size: int) -> None:
        import pandas as pd

        self._frame = pd.read_csv(path)
        self._size = size

    def item(self, row: int) -> Any:
        import numpy as np
        from PIL import Image

        record = self._frame.iloc[row]
        image = Image.open(io.BytesIO(base64.b64decode(record["b64string_images"]))).convert("RGB")
        image = image.resize((self._size, self._size), Image.Resampling.BILINEAR)
        return np.asarray(image).transpose(2, 0, 1)

    def __call__(self) -> None:
        import numpy as np
        import torch

        for start in range(0, len(self._frame), _BATCH):
            rows = range(start, min(start + _BATCH, len(self._frame)))
            torch.from_numpy(np.stack([self.item(row) for row in rows]))


class Epochs:
    """The trainer's own stream, one more epoch each time."""

    def __init__(self, steps: Any) -> None:
        self._steps = steps
        self._epoch = 0

    def __call__(self) -> None:
        from vlm.data.loader import steps_from

        per_epoch = self._steps.order.steps_per_epoch
        start = self._epoch * per_epoch
        for _ in steps_from(self._steps, start, start + per_epoch, workers=0, pin=False):
            pass
        self._epoch += 1


def opened(path: Path, size: int) -> tuple[Any, Any]:
    """(the training steps, the rows) of the file, its cache built."""
    from types import SimpleNamespace

    import numpy as np

    from launcher.runtime.world import World
    from vlm.data.cache import open_decoded
    from vlm.data.csv_index import open_index
    from vlm.data.dataset import CaptionData, CaptionRows
    from vlm.data.loader import StepDataset
    from vlm.data.tokenizer import CharTokenizer

    index = open_index(path, path.parent)
    decoded = open_decoded(index, "b64string_images", "caption", size, "raise", path.parent)
    tokenizer = CharTokenizer.of(decoded.caption(row) for row in range(len(decoded)))
    rows = CaptionRows(decoded, tokenizer)
    everything = np.arange(len(decoded))
    config: Any = SimpleNamespace(
        trainer=SimpleNamespace(batch_size=_BATCH, seed=0), data=SimpleNamespace(augment_shift=0, augment_flip=False)
    )
    data = CaptionData(rows, everything, everything[:0], tokenizer)
    return StepDataset(data, config, World()), rows


def _write(path: Path, rows: int) -> None:
    """Photograph-like pictures: smooth colour with some noise, about 26 KB each as JPEG."""
    import numpy as np
    from PIL import Image

    drawn = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "b64string_images", "caption"])
        for row in range(rows):
            coarse = Image.fromarray(drawn.integers(0, 256, (12, 16, 3), np.uint8)).resize((512, 384))
            noisy = np.asarray(coarse, np.int16) + drawn.integers(-9, 10, (384, 512, 1))
            packed = io.BytesIO()
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(packed, "JPEG", quality=80)
            text = base64.b64encode(packed.getvalue()).decode()
            writer.writerow([row, text, f"picture number {row} of a benchmark"])
