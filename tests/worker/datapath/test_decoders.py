"""What needs a real process. The limits themselves are tested where they stand, in test_images."""

import io
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from api_client.wire.errors import ImageTooLarge, ImageUnreadable
from worker.datapath import decoding
from worker.datapath.decoders import Decoders
from worker.datapath.decoding import Limits

PHOTO = Image.fromarray(data.chelsea())
LIMITS = Limits(pixels=5_000_000, scales=True)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    decoders = Decoders(1, limits=LIMITS, timeout_s=20)
    yield decoders
    decoders.close()


def pid(decoders: Decoders) -> int:
    decoder = decoders._free.queue[0]
    assert decoder is not None
    return decoder._process.pid


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "large"])
def test_a_picture_comes_as_it_would_without_a_process(decoders: Decoders, mode: str) -> None:
    if mode == "large":
        content = encoded(PHOTO.resize((1200, 1000)), "JPEG")
    else:
        source = Image.fromarray(np.float32(data.coins())) if mode == "F" else PHOTO.convert(mode)
        content = encoded(source, "PNG" if mode in ("LA", "P", "RGBA", "I;16") else "TIFF")
    want = decoding.decode(content, name="", near=224, limits=LIMITS)
    got = decoders.decode(content, name="a", near=224)
    assert (got.mode, got.size) == (want.mode, want.size)
    assert np.array_equal(np.asarray(got), np.asarray(want))
    assert np.array_equal(np.asarray(got.convert("RGB")), np.asarray(want.convert("RGB")))


def test_a_refusal_keeps_its_class_and_names_the_picture(decoders: Decoders) -> None:
    with pytest.raises(ImageUnreadable, match=r"^it is none of JPEG"):
        decoders.decode(b"nonsense", name="it", near=None)
    with pytest.raises(ImageTooLarge, match=r"^it is 3000x3000"):
        decoders.decode(encoded(Image.new("1", (3000, 3000)), "PNG"), name="it", near=None)


def test_a_decoder_that_dies_fails_one_picture_and_is_replaced(decoders: Decoders) -> None:
    small = encoded(PHOTO, "PNG")
    decoders.decode(small, name="a", near=None)
    first = pid(decoders)
    os.kill(first, signal.SIGSEGV)
    with pytest.raises(ImageUnreadable, match="a broke its decoder"):
        decoders.decode(small, name="a", near=None)
    assert decoders.decode(small, name="a", near=None).size == PHOTO.size
    assert pid(decoders) != first


def test_a_picture_that_takes_too_long_is_given_up_and_its_decoder_killed() -> None:
    decoders = Decoders(1, limits=LIMITS, timeout_s=20)
    small = encoded(PHOTO, "PNG")
    decoders.decode(small, name="a", near=None)
    first = pid(decoders)
    os.kill(first, signal.SIGSTOP)
    decoders._timeout_s = 0.05
    with pytest.raises(ImageTooLarge, match=r"more than 0\.05 s"):
        decoders.decode(small, name="a", near=None)
    decoders._timeout_s = 20
    assert decoders.decode(small, name="a", near=None).size == PHOTO.size
    decoders.close()


def test_a_decoder_holds_no_secret_and_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLIPYARD_REDIS_URL", "redis://:canary@localhost")
    decoders = Decoders(1, limits=LIMITS, timeout_s=20)
    decoders.decode(encoded(PHOTO, "PNG"), name="a", near=None)
    process = Path(f"/proc/{pid(decoders)}")
    assert b"canary" not in (process / "environ").read_bytes()
    soft, hard = resource.prlimit(pid(decoders), resource.RLIMIT_AS)
    assert 0 < soft == hard < 2**30
    links = [os.readlink(link) for link in (process / "fd").iterdir()]
    assert sum(link.startswith("socket:") for link in links) == 1
    decoders.close()
