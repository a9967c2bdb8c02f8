"""Pillow and torchvision are the yardsticks: the same picture, the same grey levels."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from torchvision.transforms import CenterCrop, InterpolationMode, Resize
from torchvision.transforms.v2 import functional

from worker.backends.resize import QuickResize, steps_for
from worker.extent import set_extent

PHOTO = Image.fromarray(data.astronaut())
BICUBIC, BILINEAR = InterpolationMode.BICUBIC, InterpolationMode.BILINEAR

# The last one has more pixels than Pillow keeps in one piece.
SIZES = [(512, 512), (301, 1200), (640, 480), (90, 70), (224, 224), (2300, 1850)]


def difference(a: Image.Image, b: Image.Image) -> NDArray[np.int_]:
    assert (a.size, a.mode) == (b.size, b.mode)
    return np.abs(np.asarray(a).astype(int) - np.asarray(b))


@pytest.mark.parametrize("filter", [BICUBIC, BILINEAR])
@pytest.mark.parametrize("to", [224, [224], [224, 200]])
@pytest.mark.parametrize("size", SIZES)
def test_as_torchvision_does_it_with_pictures_and_exactly_as_with_tensors(
    size: tuple[int, int], to: int | list[int], filter: InterpolationMode
) -> None:
    step, photo = Resize(to, filter), PHOTO.resize(size)
    ours = QuickResize(step)(photo)
    off = difference(ours, step(photo))
    assert (off > 1).mean() < 0.001
    assert off.max() <= 8
    edges = [to] if isinstance(to, int) else to
    tensor = functional.resize(functional.pil_to_tensor(photo), edges, filter)
    assert np.array_equal(np.asarray(ours), tensor.permute(1, 2, 0))


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1", "I;16"])
def test_other_modes_are_pillows(mode: str) -> None:
    step, photo = Resize(224, BICUBIC), PHOTO.convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        photo = Image.fromarray(np.asarray(photo).astype(np.uint16) * 200)
    assert difference(QuickResize(step)(photo), step(photo)).max() == 0


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_ends_where_its_extent_does(mode: str) -> None:
    step = QuickResize(Resize(64, BICUBIC))
    photo = PHOTO.resize((1501, 1001)).convert(mode)
    eighth = photo.reduce(8)
    assert eighth.size == (188, 126)
    naive = difference(step(eighth), step(photo)).mean()
    set_extent(eighth, (187.625, 125.125))
    assert difference(step(eighth), step(photo)).mean() < min(1, naive / 3)


def test_what_is_cut_off_by_the_extent_must_be_less_than_a_pixel() -> None:
    for extent in [(511.0, 512.0), (512.5, 512.0), (float("nan"), 512.0)]:
        with pytest.raises(ValueError, match="extent"):
            set_extent(PHOTO.copy(), extent)


def test_only_fast_decoding_is_resized_so_and_only_by_filters_that_both_have() -> None:
    steps = [Resize(64, BICUBIC), Resize(64, InterpolationMode.NEAREST), CenterCrop(64)]
    assert steps_for("exact", steps) == steps
    quick, *others = steps_for("fast", steps)
    assert isinstance(quick, QuickResize)
    assert others == steps[1:]
