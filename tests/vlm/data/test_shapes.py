"""Rendered scenes: the same on every machine, and captions that say what the pixels show."""

import base64
import csv
import dataclasses
import io
import math
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from vlm.data.shapes import scene_files, unseen_pairs

BACKGROUND = (24, 24, 28)
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (50, 90, 230),
    "yellow": (240, 210, 40),
    "purple": (150, 60, 190),
    "orange": (245, 140, 30),
    "cyan": (40, 200, 210),
    "white": (240, 240, 240),
}
SHAPES = ["circle", "square", "triangle", "cross", "diamond", "ring"]
PLACES = {
    2: ["top left", "top right", "bottom left", "bottom right"],
    3: ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"],
}
THING = re.compile(rf"a (?:(small|large) )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)}) ([a-z ]+)")


@pytest.fixture
def data(config, tmp_path):
    """``data(count=…)``: the default scenes, a few of them, with changes."""
    base = dataclasses.replace(config().data, count=60, px=48)
    return lambda **changes: dataclasses.replace(base, **changes)


def scenes(path):
    """(picture, caption) of each scene of a file."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pictures = [Image.open(io.BytesIO(base64.b64decode(row["b64string_images"]))) for row in rows]
    return [(np.asarray(image), row["caption"]) for image, row in zip(pictures, rows, strict=True)]


def things(caption):
    """(size, colour, shape, place) of each thing that a caption names."""
    return [THING.fullmatch(part).groups() for part in re.split(r", | and ", caption)]


def pairs(caption):
    return {(shape, color) for _, color, shape, _ in things(caption)}


def cells(picture, grid):
    """Place to its part of the picture, without the pixels on the border to the next place."""
    side = len(picture) // grid
    for number, place in enumerate(PLACES[grid]):
        row, column = divmod(number, grid)
        yield place, picture[row * side + 1 : (row + 1) * side - 1, column * side + 1 : (column + 1) * side - 1]


def main_color(cell):
    """The most frequent colour that is not the background, and how many pixels have it."""
    counts = Counter(map(tuple, cell.reshape(-1, 3).tolist()))
    del counts[BACKGROUND]
    return counts.most_common(1)[0]


def ink(cell):
    """Which pixels of the bounding box of what is drawn are drawn."""
    contrast = np.abs(cell.astype(int) - BACKGROUND).sum(axis=2)
    drawn = contrast > contrast.max() / 2
    rows, cols = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    return drawn[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


def looks_like(cell):
    """The shape that covers the same part of its bounding box best."""
    box = ink(cell)
    y, x = (np.indices(box.shape) + 0.5) / np.array(box.shape)[:, None, None] - 0.5
    radius = np.hypot(x, y)
    ideal = {
        "circle": radius <= 0.5,
        "square": radius <= 1,
        "triangle": 2 * abs(x) <= y + 0.5,
        "cross": np.minimum(abs(x), abs(y)) <= 1 / 6,
        "diamond": abs(x) + abs(y) <= 0.5,
        "ring": (radius <= 0.5) & (radius >= 0.3),
    }
    return max(ideal, key=lambda shape: (ideal[shape] == box).mean())


def assert_captions_tell_the_pixels(path, grid):
    found = scenes(path)
    assert found
    for picture, caption in found:
        named = {place: (size, color, shape) for size, color, shape, place in things(caption)}
        for place, cell in cells(picture, grid):
            if place not in named:
                assert (cell == BACKGROUND).all(), f"{caption}: something stands {place}"
                continue
            size, color, shape = named[place]
            drawn, count = main_color(cell)
            assert drawn == COLORS[color] and count > 10, f"{caption}: {place} is {drawn}"
            assert looks_like(cell) == shape, caption
            if size:
                extent = max(ink(cell).shape) / (len(picture) / grid) / (0.88 if shape == "square" else 1)
                assert (extent < 0.58) == (size == "small"), f"{caption}: {extent}"


def test_captions_say_what_the_pixels_show(data):
    for path in scene_files(data(count=150, px=96)):
        assert_captions_tell_the_pixels(path, 2)


def test_captions_say_what_the_pixels_show_with_every_option(data):
    chosen = data(
        count=250, px=180, grid=3, objects=3, sizes=["small", "large"], shapes=SHAPES, colors=list(COLORS), seed=5
    )
    scenes_csv, unseen_csv = scene_files(chosen)
    assert_captions_tell_the_pixels(scenes_csv, 3)
    assert_captions_tell_the_pixels(unseen_csv, 3)
    named = [thing for _, caption in scenes(scenes_csv) for thing in things(caption)]
    assert {size for size, *_ in named} == {"small", "large"}
    assert {color for _, color, *_ in named} == set(COLORS)
    assert {shape for *_, shape, _ in named} == set(SHAPES)
    assert {place for *_, place in named} == set(PLACES[3])
    assert Counter(len(things(caption)) for _, caption in scenes(scenes_csv)).keys() == {1, 2, 3}


def test_things_are_named_in_the_order_of_their_places_each_place_once(data):
    for grid, objects in ((2, 3), (3, 3)):
        for _, caption in scenes(scene_files(data(grid=grid, objects=objects))[0]):
            places = [PLACES[grid].index(place) for *_, place in things(caption)]
            assert places == sorted(set(places)), caption


def test_captions_read_as_sentences_do(data):
    captions = [caption for _, caption in scenes(scene_files(data(objects=3, sizes=["large"], count=100))[0])]
    thing = r"a \w+ \w+ (top|bottom) (left|right)"
    assert all(re.fullmatch(rf"{thing}|{thing} and {thing}|{thing}, {thing} and {thing}", c) for c in captions)


def test_two_builds_give_the_same_bytes(data, tmp_path):
    builds = [scene_files(data(cache_dir=str(tmp_path / name))) for name in ("one", "two")]
    assert builds[0] != builds[1]
    for first, second in zip(*builds, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_scenes_are_rendered_once(data):
    paths = scene_files(data())
    times = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths]
    assert scene_files(data()) == paths
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths] == times


def test_what_does_not_change_the_look_shares_the_files(data):
    paths = scene_files(data())
    assert scene_files(data(val_fraction=0.5, augment_flip=True, workers=3, on_error="skip")) == paths


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"px": 32}, {"count": 61}, {"objects": 1}, {"grid": 3}, {"unseen_pairs": 1}]
)
def test_what_changes_the_look_makes_other_files(data, change):
    first, second = scene_files(data())[0], scene_files(data(**change))[0]
    assert first != second
    assert first.read_bytes() != second.read_bytes()


def test_nothing_but_the_finished_files_is_left(data, tmp_path):
    scenes_csv, unseen_csv = scene_files(data())
    folders = [entry for entry in scenes_csv.parent.parent.iterdir() if entry.is_dir()]
    assert folders == [scenes_csv.parent]
    assert set(scenes_csv.parent.iterdir()) == {scenes_csv, unseen_csv}


@pytest.mark.parametrize(("count", "unseen"), [(1, 1), (7, 1), (60, 3), (100, 5)])
def test_the_files_have_the_rows_asked_for(data, count, unseen):
    scenes_csv, unseen_csv = scene_files(data(count=count))
    assert (len(scenes(scenes_csv)), len(scenes(unseen_csv))) == (count, unseen)
    assert all(picture.shape == (48, 48, 3) for picture, _ in scenes(scenes_csv))


def test_more_scenes_begin_with_the_fewer(data):
    few, many = (scene_files(data(count=count))[0].read_bytes() for count in (20, 50))
    assert many.startswith(few) and len(many) > len(few)


@pytest.mark.parametrize("held_out", [1, 2, 8])
def test_unseen_pairs_are_in_no_scene_and_in_each_of_their_own_file(data, held_out):
    chosen = data(count=200, unseen_pairs=held_out)
    scenes_csv, unseen_csv = scene_files(chosen)
    hidden = unseen_pairs(chosen)
    assert len(hidden) == held_out
    seen = set().union(*(pairs(caption) for _, caption in scenes(scenes_csv)))
    assert not seen & hidden
    assert all(pairs(caption) & hidden for _, caption in scenes(unseen_csv))
    assert len(seen) == len(chosen.shapes) * len(chosen.colors) - held_out


def test_without_unseen_pairs_there_is_no_file_of_them(data):
    scenes_csv, unseen_csv = scene_files(data(unseen_pairs=0))
    assert unseen_csv is None
    assert {path.name for path in scenes_csv.parent.iterdir()} == {"scenes.csv"}


def test_another_seed_holds_out_other_pairs_and_the_order_of_the_options_does_not_matter(data):
    assert len({frozenset(unseen_pairs(data(seed=seed))) for seed in range(6)}) > 1
    assert unseen_pairs(data()) == unseen_pairs(data(shapes=data().shapes[::-1], colors=data().colors[::-1]))


def test_holding_out_more_pairs_keeps_those_held_out_before(data):
    held = [unseen_pairs(data(unseen_pairs=n)) for n in range(6)]
    assert all(fewer < more for fewer, more in pairwise(held))


def test_scenes_are_spread_over_all_that_can_be_shown(data):
    captions = [caption for _, caption in scenes(scene_files(data(count=600, px=16, unseen_pairs=0))[0])]
    counts = Counter(len(things(caption)) for caption in captions)
    assert math.isclose(counts[1], 300, rel_tol=0.2) and math.isclose(counts[2], 300, rel_tol=0.2)
    places = Counter(place for caption in captions for *_, place in things(caption))
    assert all(math.isclose(places[place], 225, rel_tol=0.25) for place in PLACES[2])
    colors = Counter(color for caption in captions for _, color, *_ in things(caption))
    assert all(math.isclose(colors[color], 150, rel_tol=0.35) for color in data().colors)
