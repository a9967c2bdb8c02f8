"""Our decoder to an eighth, beside libjpeg-turbo's."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from api_client.wire.errors import ImageUnreadable
from tests import fuzz_eighth
from worker.datapath import decoding, jpeg, native
from worker.datapath.decoding import Limits

pytestmark = pytest.mark.skipif(not shutil.which(native.compiler()[0]), reason="no C compiler")

PHOTO = Image.fromarray(data.astronaut())  # 512x512


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    native.main()
    native.library.cache_clear()
    assert native.library() is not None


def written(photo: Image.Image = PHOTO, **how: Any) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", **{"quality": 90} | how)
    return buffer.getvalue()


def eighth(content: bytes) -> Image.Image | None:
    return jpeg.eighth(Image.open(io.BytesIO(content)), content)


def libjpeg(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.draft(None, (image.width // 8, image.height // 8))
    image.load()
    return image


def levels(image: Image.Image | None) -> NDArray[np.int16]:
    assert image is not None
    return np.asarray(image, np.int16)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"quality": 1},
        {"quality": 100},
        {"optimize": True},  # codes of its own
        {"restart_marker_blocks": 3},
        {"restart_marker_rows": 1},
        {"quality": 100, "restart_marker_blocks": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(512, 512), (501, 387), (17, 9), (8, 8)], ids=str)
def test_greys_are_libjpegs(how: dict[str, Any], size: tuple[int, int]) -> None:
    content = written(PHOTO.convert("L").resize(size), **how)
    ours, theirs = eighth(content), libjpeg(content)
    assert ours is not None
    assert (ours.mode, ours.size) == (theirs.mode, theirs.size)
    assert np.array_equal(levels(ours), levels(theirs))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [(512, 512), (501, 387)], ids=str)
@pytest.mark.parametrize("restarts", [0, 5])
def test_colours_are_nearly_libjpegs(
    subsampling: str, size: tuple[int, int], restarts: int
) -> None:
    content = written(PHOTO.resize(size), subsampling=subsampling, restart_marker_blocks=restarts)
    ours, theirs = eighth(content), libjpeg(content)
    assert ours is not None
    assert (ours.mode, ours.size) == ("RGB", theirs.size)
    brightness = [np.asarray(image.convert("L"), np.int16) for image in (ours, theirs)]
    assert np.abs(brightness[0] - brightness[1]).max() <= 8  # colours beyond 0 to 255 are cut off
    assert np.abs(levels(ours) - levels(theirs)).mean() < (0.6 if subsampling == "4:4:4" else 4)


@pytest.mark.parametrize(
    "content",
    [written(progressive=True), written(PHOTO.convert("CMYK")), written(keep_rgb=True)],
    ids=["in passes", "CMYK", "RGB"],
)
def test_what_is_not_plain_is_left_to_pillow(content: bytes) -> None:
    assert eighth(content) is None
    decoded = decoding.decode(content, name="", near=32, limits=Limits(pixels=10**6, scales=True))
    assert np.array_equal(levels(decoded), levels(libjpeg(content)))


def test_a_large_picture_for_a_small_input_goes_through_it_and_says_its_extent() -> None:
    content = written(PHOTO.resize((1001, 770)))
    limits = Limits(pixels=10**6, scales=True)
    small = decoding.decode(content, name="", near=64, limits=limits)
    assert np.array_equal(levels(small), levels(eighth(content)))
    assert small.info["clipyard_extent"] == (1001 / 8, 770 / 8)
    larger = decoding.decode(content, name="", near=65, limits=limits)
    assert larger.size == (251, 193)


def test_without_a_compiler_pillow_decodes_everything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    assert (
        native.compile_to(tmp_path / "eighth.so") == f"{tmp_path}/none: No such file or directory"
    )
    monkeypatch.setattr(native, "library", lambda: None)
    content = written()
    assert eighth(content) is None
    decoded = decoding.decode(content, name="", near=32, limits=Limits(pixels=10**6, scales=True))
    assert np.array_equal(levels(decoded), levels(libjpeg(content)))


def test_it_is_compiled_once_and_what_came_of_another_source_goes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, other = tmp_path / "eighth.c", tmp_path / "eighth-other.so"
    source.write_bytes(native._SOURCE.read_bytes())
    other.touch()
    monkeypatch.setattr(native, "_SOURCE", source)
    native.main()
    [made] = tmp_path.glob("*.so")
    assert made != other
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    native.main()
    made.unlink()
    with pytest.raises(SystemExit, match="large JPEGs will take twice as long"):
        native.main()


def test_a_strict_compiler_has_nothing_to_say(tmp_path: Path) -> None:
    strict = ("-Wall", "-Wextra", "-Wconversion", "-Werror")
    assert native.compile_to(tmp_path / "eighth.so", *strict) is None


def test_what_the_compiler_says_is_told(tmp_path: Path) -> None:
    trouble = native.compile_to(tmp_path / "eighth.so", "-no-such-option")
    assert trouble is not None
    assert "no-such-option" in trouble
    assert not list(tmp_path.iterdir())


def test_a_file_that_ends_early_is_broken_as_ever() -> None:
    content = written()
    for end in range(700, len(content), 997):
        cut = content[:end]
        assert eighth(cut) is None
        with pytest.raises(ImageUnreadable):
            decoding.decode(cut, name="it", near=32, limits=Limits(pixels=10**6, scales=True))


@given(st.data())
def test_no_change_of_bytes_does_harm(dice: st.DataObject) -> None:
    content = bytearray(written(restart_marker_blocks=dice.draw(st.sampled_from([0, 7]))))
    for _ in range(dice.draw(st.integers(1, 4))):
        content[dice.draw(st.integers(2, len(content) - 1))] = dice.draw(st.integers(0, 255))
    fuzz_eighth.is_decoded(bytes(content))


def test_no_change_of_bytes_reaches_memory_that_is_not_its_own() -> None:
    try:
        done = fuzz_eighth.run(files=500, timeout_s=100)
    except fuzz_eighth.NoSanitizers as trouble:
        pytest.skip(str(trouble))
    assert done.returncode == 0, done.stderr[-2000:]
    assert " 0 decoded" not in done.stdout
