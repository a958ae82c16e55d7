"""Anonymous memory of indexing and reading a large CSV: it should not grow with the file."""

from __future__ import annotations

import argparse
import base64
import csv
import io
import multiprocessing
import re
import tempfile
import threading
from pathlib import Path

from launcher.runtime.errors import ExitCode
from sweeps.bench.report import say

NAME = "memory"
_PICTURES = 2000
_EVERY_S = 0.005


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the file (200000)")
    parser.add_argument("--img-size", type=int, default=32, help="pixels after resizing (32)")


def run(args: argparse.Namespace) -> int:
    """Print the largest RssAnon above what importing alone takes (proc(5)), in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.csv"
        _write(path, args.rows)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            baseline, peak = pool.apply(_measure, (path, args.img_size))
        row = {
            "rows": args.rows,
            "file_mb": path.stat().st_size / 1e6,
            "imports_mb": baseline / 1e6,
            "peak_mb": peak / 1e6,
            "above_imports_mb": (peak - baseline) / 1e6,
        }
    say(f"{NAME}: RssAnon while indexing, decoding, splitting and reading one epoch", [row], args.json)
    return ExitCode.DONE


def _measure(path: Path, size: int) -> tuple[int, int]:
    import vlm.data.loader  # noqa: F401  (with torch: importing is no part of what is measured)
    from sweeps.bench.loader import Epochs, opened
    from vlm.data.split import split_rows

    baseline = peak = _rss_anon()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(_EVERY_S):
            peak = max(peak, _rss_anon())

    watcher = threading.Thread(target=watch)
    watcher.start()
    steps, rows = opened(path, size)
    split_rows(rows.decoded, 0.1, "image", 0)
    Epochs(steps)()
    done.set()
    watcher.join()
    return baseline, max(peak, _rss_anon())


def _rss_anon() -> int:
    """Bytes of anonymous memory of this process."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _write(path: Path, rows: int) -> None:
    import numpy as np
    from PIL import Image

    drawn = np.random.default_rng(0)
    texts = []
    for _ in range(_PICTURES):
        packed = io.BytesIO()
        Image.fromarray(drawn.integers(0, 256, (32, 32, 3), np.uint8)).save(packed, "JPEG", quality=50)
        texts.append(base64.b64encode(packed.getvalue()).decode())
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "b64string_images", "caption"])
        writer.writerows(
            [row, texts[row % _PICTURES], f"picture number {row}, one of very many"] for row in range(rows)
        )
