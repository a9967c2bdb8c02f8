"""What needs a real process. The limits themselves are tested where they stand, in test_images."""

import io
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from weakref import ref

import numpy as np
import pytest
from PIL import Image
from skimage import data

from api_client.wire.errors import ImageTooLarge, ImageUnreadable, NoAnswer
from worker.datapath import decoding
from worker.datapath.decoders import _ASKED, _HEADER, Decoders, _serve
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


def resident_mib(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20


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


class Deadly(bytes):
    """A picture that its decoder dies of, as soon as it is sent."""

    decoder = 0

    def __len__(self) -> int:
        os.kill(self.decoder, signal.SIGSEGV)
        return super().__len__()


def test_a_decoder_that_dies_of_a_picture_fails_it_and_is_replaced(decoders: Decoders) -> None:
    small = encoded(PHOTO, "PNG")
    decoders.decode(small, name="a", near=None)
    deadly = Deadly(small)
    deadly.decoder = pid(decoders)
    with pytest.raises(ImageUnreadable, match="a broke its decoder"):
        decoders.decode(deadly, name="a", near=None)
    assert decoders.decode(small, name="a", near=None).size == PHOTO.size
    assert pid(decoders) != deadly.decoder


def test_a_decoder_that_died_while_idle_is_replaced_before_it_costs_a_picture(
    decoders: Decoders,
) -> None:
    small = encoded(PHOTO, "PNG")
    decoders.decode(small, name="a", near=None)
    first = decoders._free.queue[0]
    assert first is not None
    os.kill(first._process.pid, signal.SIGKILL)
    first._process.wait()
    assert decoders.decode(small, name="a", near=None).size == PHOTO.size


def test_a_decoder_ends_with_its_worker_not_before_it(decoders: Decoders) -> None:
    small = encoded(PHOTO, "PNG")
    decoders.decode(small, name="a", near=None)
    first = pid(decoders)
    for stop in (signal.SIGINT, signal.SIGTERM):
        os.kill(first, stop)
    decoders.decode(small, name="a", near=None)
    assert pid(decoders) == first


def test_while_no_decoder_can_be_started_no_picture_is_to_blame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoders, small = Decoders(1, limits=LIMITS, timeout_s=20), encoded(PHOTO, "PNG")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(NoAnswer, match="can be started: Too many open files"):
            decoders.decode(small, name="a", near=None)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with monkeypatch.context() as hurried:
        hurried.setattr("worker.datapath.decoders._START_WITHIN_S", 0.001)
        with pytest.raises(NoAnswer, match="can be started; see"):
            decoders.decode(small, name="a", near=None)
    assert decoders.decode(small, name="a", near=None).size == PHOTO.size
    decoders.close()


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


def test_a_decoder_that_is_at_work_when_all_are_closed_ends_with_its_answer() -> None:
    decoders, small = Decoders(1, limits=LIMITS, timeout_s=20), encoded(PHOTO, "PNG")
    decoders.decode(small, name="a", near=None)
    decoder = decoders._free.queue[0]
    assert decoder is not None
    os.kill(decoder._process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor() as threads:
        decoding = threads.submit(decoders.decode, small, name="a", near=None)
        while not decoders._free.empty():
            time.sleep(0.001)
        decoders.close()
        os.kill(decoder._process.pid, signal.SIGCONT)
        assert decoding.result(20).size == PHOTO.size
    assert decoder.has_ended


def test_a_picture_that_comes_when_all_are_closed_waits_for_nobody() -> None:
    decoders, small = Decoders(1, limits=LIMITS, timeout_s=20), encoded(PHOTO, "PNG")
    decoders.decode(small, name="a", near=None)
    decoders.close()
    assert decoders.decode(small, name="a", near=None).size == PHOTO.size
    assert list(decoders._free.queue) == [None]


def test_a_decoder_lets_go_of_a_picture_before_the_next_one_comes(decoders: Decoders) -> None:
    decoders.decode(encoded(PHOTO, "PNG"), name="a", near=None)
    before = resident_mib(pid(decoders))
    decoders.decode(encoded(Image.new("RGB", (2200, 2200)), "PNG"), name="a", near=None)
    ends_at = time.monotonic() + 20
    while resident_mib(pid(decoders)) > before + 10:
        assert time.monotonic() < ends_at
        time.sleep(0.01)


def test_an_answer_without_room_costs_its_picture_and_not_the_decoder(decoders: Decoders) -> None:
    decoders.decode(encoded(PHOTO, "PNG"), name="a", near=224)
    alive, size = pid(decoders), (2000, 2000)
    held = int(Path(f"/proc/{alive}/statm").read_text().split()[0]) * resource.getpagesize()
    room = 6 * size[0] * size[1]  # for the four bytes a pixel of the picture, not three more
    soft, hard = resource.prlimit(alive, resource.RLIMIT_AS)
    resource.prlimit(alive, resource.RLIMIT_AS, (held + room, hard))
    try:
        with pytest.raises(ImageTooLarge, match="b does not fit into memory"):
            decoders.decode(encoded(Image.new("RGB", size), "PNG"), name="b", near=224)
    finally:
        resource.prlimit(alive, resource.RLIMIT_AS, (soft, hard))
    assert pid(decoders) == alive


def test_a_picture_whose_answer_found_no_room_is_let_go_of_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Large:
        def tobytes(self) -> bytes:
            raise MemoryError

    made: list[ref[Large]] = []

    def decode(data: bytes, **_: object) -> Large:
        assert not any(earlier() for earlier in made)
        image = Large()
        made.append(ref(image))
        return image

    monkeypatch.setattr(decoding, "decode", decode)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(2 * (_ASKED.pack(0, 1) + b"a"))
        ours.shutdown(socket.SHUT_WR)
        _serve(theirs, LIMITS)
    assert len(made) == 2


@pytest.mark.parametrize(
    "announced", [{"size": (1, 1), "bytes": 2**50}, {"size": (7000, 7000), "bytes": 0}]
)
def test_no_room_is_made_for_more_than_a_picture_can_be_whatever_a_decoder_announces(
    monkeypatch: pytest.MonkeyPatch, announced: dict[str, object]
) -> None:
    ours, theirs = socket.socketpair()
    process = SimpleNamespace(poll=lambda: None, kill=lambda: None, wait=lambda: None)
    monkeypatch.setattr("worker.datapath.decoders._started", lambda limits: (ours, process))
    monkeypatch.delattr(Image, "frombytes")
    told = {"mode": "RGB", "palette": None, "extent": (1, 1), **announced}
    header = json.dumps(told).encode()
    with theirs:
        theirs.sendall(b"!" + _HEADER.pack(len(header)) + header)
        with pytest.raises(ImageUnreadable, match="a broke its decoder"):
            Decoders(1, limits=LIMITS, timeout_s=20).decode(b"a picture", name="a", near=None)


def test_a_decoder_may_hold_little_memory_write_nothing_start_nobody_and_knows_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLIPYARD_REDIS_URL", "redis://:canary@localhost")
    decoders = Decoders(1, limits=LIMITS, timeout_s=20)
    decoders.decode(encoded(PHOTO, "PNG"), name="a", near=None)
    process = Path(f"/proc/{pid(decoders)}")
    assert b"canary" not in (process / "environ").read_bytes()
    soft, hard = resource.prlimit(pid(decoders), resource.RLIMIT_AS)
    assert 0 < soft == hard < 2**30
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        assert resource.prlimit(pid(decoders), limit) == (0, 0)
    links = [os.readlink(link) for link in (process / "fd").iterdir()]
    assert sum(link.startswith("socket:") for link in links) == 1
    decoders.close()
