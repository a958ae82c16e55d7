"""Rendered scenes: coloured shapes on a grid, captions that say what is where. Deterministic, made on first use.

Written as CSV in the form that users bring, and read by the same code.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.runtime.polling import Poll, keep_going
from vlm.config import DataConfig, ShapesData
from vlm.data.build_once import build_once, polled

if TYPE_CHECKING:  # imported where scenes are drawn: planning a run asks for their digest alone
    import numpy as np
    from PIL import Image, ImageDraw

log = logging.getLogger(__name__)

IMAGE_COLUMN, CAPTION_COLUMN = "b64string_images", "caption"
UNSEEN_SHARE = 0.05
"""Size of the file of unseen pairs, as a share of ``count``."""

_FORMAT = 1
_BACKGROUND = (24, 24, 28)
_COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (50, 90, 230),
    "yellow": (240, 210, 40),
    "purple": (150, 60, 190),
    "orange": (245, 140, 30),
    "cyan": (40, 200, 210),
    "white": (240, 240, 240),
}
_PLACES = {
    2: ["top left", "top right", "bottom left", "bottom right"],
    3: ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"],
}
_RADIUS = {"small": 0.22, "large": 0.38}
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    shape: str
    color: str
    size: str
    place: int
    """Index into the grid, row by row."""


def scene_digest(data: ShapesData) -> str:
    """SHA-256 of all that the rendered scenes depend on: their parameters and the version of this module's drawing."""
    looks = {f.name for f in dataclasses.fields(ShapesData)} - {f.name for f in dataclasses.fields(DataConfig)}
    params = {name: getattr(data, name) for name in sorted(looks)} | {"format": _FORMAT}
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()


def scene_files(data: ShapesData, poll: Poll = keep_going) -> tuple[Path, Path | None]:
    """The CSV of scenes and that of scenes with unseen shape-colour pairs (None where none is held out).

    ``poll`` is called while they are rendered, which happens once.
    """
    folder = Path(data.cache_dir) / "shapes" / scene_digest(data)[:24]
    build_once(folder, lambda aside: _build(data, aside, poll), poll)
    return folder / "scenes.csv", folder / "unseen_pairs.csv" if data.unseen_pairs else None


def unseen_pairs(data: ShapesData) -> set[tuple[str, str]]:
    """The shape-colour pairs held out, chosen by a hash of ``data.seed`` and the pair."""
    pairs = [(shape, color) for shape in data.shapes for color in data.colors]
    pairs.sort(key=lambda pair: hashlib.sha256(f"{data.seed}:{pair}".encode()).digest())
    return set(pairs[: data.unseen_pairs])


def caption_of(scene: list[Thing], data: ShapesData) -> str:
    """``a red circle top left and a blue square bottom right``: things in the order of their places."""
    names = _PLACES[data.grid]
    sized = len(data.sizes) > 1
    words = [f"a {t.size + ' ' if sized else ''}{t.color} {t.shape} {names[t.place]}" for t in scene]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def letters(data: ShapesData) -> set[str]:
    """All characters that captions may have."""
    one = Thing(shape="", color="", size="", place=0)
    sizes = data.sizes if len(data.sizes) > 1 else []
    several = [caption_of([one] * n, data) for n in range(1, data.objects + 1)]
    return set("".join([*several, *data.shapes, *data.colors, *sizes, *_PLACES[data.grid]]))


def render(scene: list[Thing], data: ShapesData, jitter: np.ndarray) -> Image.Image:
    """The picture of a scene.

    Args:
        jitter: ``(objects, 3)`` numbers in [0, 1): horizontal and vertical offset and size of each thing.
    """
    from PIL import Image, ImageDraw

    canvas = data.px * _SUPERSAMPLING
    image = Image.new("RGB", (canvas, canvas), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    cell = canvas / data.grid
    for thing, (dx, dy, scale) in zip(scene, jitter, strict=True):
        row, column = divmod(thing.place, data.grid)
        radius = cell * _RADIUS[thing.size] * (0.85 + 0.3 * scale)
        room = max(cell / 2 - radius, 0.0)
        x = (column + 0.5) * cell + (2 * dx - 1) * room
        y = (row + 0.5) * cell + (2 * dy - 1) * room
        _DRAW[thing.shape](draw, x, y, radius, _COLORS[thing.color])
    return image.resize((data.px, data.px), Image.Resampling.BOX)


def _build(data: ShapesData, folder: Path, poll: Poll) -> None:
    log.info("rendering %d scenes, once for all runs", data.count)
    held_out = unseen_pairs(data)
    seen = polled(_scenes(data, data.count, 0, lambda scene: not _pairs(scene) & held_out), poll, every=10)
    _write(folder / "scenes.csv", data, seen)
    if held_out:
        n_unseen = max(round(data.count * UNSEEN_SHARE), 1)
        unseen = polled(_scenes(data, n_unseen, 1, lambda scene: bool(_pairs(scene) & held_out)), poll, every=10)
        _write(folder / "unseen_pairs.csv", data, unseen)


def _write(path: Path, data: ShapesData, scenes: Iterable[tuple[list[Thing], np.ndarray]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", IMAGE_COLUMN, CAPTION_COLUMN])
        for number, (scene, jitter) in enumerate(scenes):
            packed = io.BytesIO()
            render(scene, data, jitter).save(packed, "PNG")
            writer.writerow([number, base64.b64encode(packed.getvalue()).decode(), caption_of(scene, data)])


def _scenes(
    data: ShapesData, count: int, part: int, wanted: Callable[[list[Thing]], bool]
) -> Iterator[tuple[list[Thing], np.ndarray]]:
    """``count`` scenes that are ``wanted``, each with its jitter, drawn from (seed, part, draw number) alone."""
    import numpy as np

    from vlm.data.order import uniform

    found = draw = 0
    while found < count:
        numbers = uniform(data.seed, part, np.arange(draw * 32, draw * 32 + 32), stream=7)
        draw += 1
        scene = _scene(data, numbers)
        if wanted(scene):
            found += 1
            yield scene, numbers[20 : 20 + 3 * len(scene)].reshape(-1, 3)


def _scene(data: ShapesData, numbers: np.ndarray) -> list[Thing]:
    """A scene from 20 numbers in [0, 1)."""
    import numpy as np

    n_things = 1 + int(numbers[0] * data.objects)
    places = np.sort(np.argsort(numbers[1:10][: data.grid**2])[:n_things])
    return [
        Thing(
            shape=_pick(data.shapes, numbers[10 + i]),
            color=_pick(data.colors, numbers[13 + i]),
            size=_pick(data.sizes, numbers[16 + i]),
            place=int(place),
        )
        for i, place in enumerate(places)
    ]


def _pick(options: Sequence[str], number: float) -> str:
    return options[int(number * len(options))]


def _pairs(scene: list[Thing]) -> set[tuple[str, str]]:
    return {(thing.shape, thing.color) for thing in scene}


Color = tuple[int, int, int]


def _circle(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: Color) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=color)


def _square(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: Color) -> None:
    side = r * 0.88
    draw.rectangle((x - side, y - side, x + side, y + side), fill=color)


def _triangle(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: Color) -> None:
    draw.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=color)


def _cross(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: Color) -> None:
    arm = r / 3
    draw.rectangle((x - r, y - arm, x + r, y + arm), fill=color)
    draw.rectangle((x - arm, y - r, x + arm, y + r), fill=color)


def _diamond(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: Color) -> None:
    draw.polygon([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], fill=color)


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, color: Color) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), outline=color, width=max(round(r * 0.4), 1))


_DRAW = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "diamond": _diamond,
    "ring": _ring,
}
