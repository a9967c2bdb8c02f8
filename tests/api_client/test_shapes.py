"""The drawn pictures show what their captions say, and the same thing every time."""

import random
from collections import Counter

import numpy as np
import pytest

from api_client.quickstart import shapes


def test_equal_seeds_give_equal_pictures_and_other_seeds_do_not() -> None:
    first, again, other = (
        [(caption, picture.tobytes()) for caption, picture in shapes.collection(5, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_collection_shows_every_caption_before_it_shows_one_twice() -> None:
    captions = [c for c, _ in shapes.collection(len(shapes.CAPTIONS) + 9, seed=3, size_px=32)]
    seen = Counter(captions)
    assert set(seen) == set(shapes.CAPTIONS)
    assert sorted(seen.values())[-10:] == [1] + [2] * 9


def test_one_caption_is_drawn_differently_each_time() -> None:
    dice = random.Random(4)
    pictures = {shapes.draw("a small red circle", dice, size_px=32).tobytes() for _ in range(8)}
    assert len(pictures) == 8


@pytest.mark.parametrize("size_px", [32, 255])
def test_pictures_are_rgb_and_as_large_as_asked(size_px: int) -> None:
    picture = shapes.draw("three yellow rings", random.Random(5), size_px=size_px)
    assert (picture.mode, picture.size) == ("RGB", (size_px, size_px))


@pytest.mark.parametrize("colour", shapes.COLOURS)
def test_every_caption_can_be_drawn_and_shows_its_colour_and_no_other(colour: str) -> None:
    palette = np.array(list(shapes.COLOURS.values()))
    for caption, scene in shapes.SCENES.items():
        if scene.colour == colour:
            pixels = np.asarray(shapes.draw(caption, random.Random(6), size_px=64), dtype=float)
            far = np.abs(pixels[..., None, :] - palette).max(axis=-1)
            shown = dict(zip(shapes.COLOURS, (far < 30).mean(axis=(0, 1)), strict=True))
            assert shown[colour] > 0.015, caption
            assert max(shown, key=shown.__getitem__) == colour, caption


@pytest.mark.parametrize(
    ("caption", "count"), [("a big blue star", 1), ("two blue stars", 2), ("three blue stars", 3)]
)
def test_the_shapes_can_be_counted(caption: str, count: int) -> None:
    for seed in range(20):
        picture = shapes.draw(caption, random.Random(seed), size_px=96)
        is_blue = np.abs(np.asarray(picture, dtype=float) - shapes.COLOURS["blue"]).max(-1) < 60
        assert _islands(is_blue) == count


def _islands(mask: np.ndarray) -> int:
    unseen = set(zip(*np.nonzero(mask), strict=True))
    islands = 0
    while unseen:
        edge = {unseen.pop()}
        area = 0
        while edge:
            area += len(edge)
            near = {(y + dy, x + dx) for y, x in edge for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
            edge = near & unseen
            unseen -= edge
        islands += area > 20  # what noise makes blue by chance is no shape
    return islands


def test_a_big_shape_covers_more_than_a_small_one() -> None:
    def covered(caption: str) -> float:
        pixels = np.asarray(shapes.draw(caption, random.Random(7), size_px=96), dtype=float)
        return float((np.abs(pixels - shapes.COLOURS["black"]).max(axis=-1) < 60).mean())

    assert covered("a big black heart") > 2 * covered("a small black heart")


def test_an_unknown_caption_is_refused_with_an_example() -> None:
    with pytest.raises(ValueError, match=r"'a large dog'.*'a small red circle'"):
        shapes.draw("a large dog", random.Random(8))


def test_plurals_and_articles_are_those_of_english() -> None:
    assert [shapes.plural(word) for word in ("circle", "cross")] == ["circles", "crosses"]
    assert [shapes.article(word) for word in ("red", "orange")] == ["a", "an"]
