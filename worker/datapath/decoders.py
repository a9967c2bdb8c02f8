"""Processes that decode pictures for us: one that a hostile picture breaks takes nobody with it.

A decoder is a fresh interpreter with nothing to steal: no environment, no sockets but the one to
us, no torch, and limits on memory. What it answers is read as numbers and bytes, never unpickled.
Over a socket pair, both ways:

    to it       4 bytes near (0: in full), 8 bytes length, the file's bytes
    from it     4 bytes length, header as JSON: mode, size, palette, bytes; or code, message
                the pixels
"""

import json
import os
import queue
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from api_client.wire.errors import ImageTooLarge, ImageUnreadable, ItemError, NoAnswer, from_wire

from ..extent import extent_of, set_extent
from . import decoding
from .decoding import Limits

_ASKED = struct.Struct("<IQ")
_HEADER = struct.Struct("<I")
_LONGEST_HEADER = 2**20
_START_WITHIN_S = 60.0
_PROGRAM_BYTES = 2**29  # the interpreter with numpy, Pillow and its arenas
_BYTES_PER_PIXEL = 16  # the decoded picture, the decoder's own copy, and the answer
_ROOT = Path(__file__).parents[2]


class Decoders:
    """A pool of decoding processes. Safe to call from many threads; they share the processes.

    Args:
        count: how many pictures are decoded at once.
        timeout_s: for one picture; a decoder that takes longer is killed.
    """

    def __init__(self, count: int, *, limits: Limits, timeout_s: float) -> None:
        self._limits = limits
        self._timeout_s = timeout_s
        self._is_closed = False
        self._free: queue.LifoQueue[_Decoder | None] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(None)  # started when it is first needed

    def decode(self, data: bytes, *, name: str, near: int | None) -> Image.Image:
        """As `decoding.decode`; ImageUnreadable also if the decoder died of the picture.

        Raises:
            NoAnswer: no decoder can be started now; the picture may be a good one.
        """
        decoder = self._take()
        unharmed = None
        try:
            image = decoder.decode(data, name=name, near=near, timeout_s=self._timeout_s)
            unharmed = decoder
            return image
        except ItemError:
            unharmed = decoder
            raise
        except TimeoutError:
            raise ImageTooLarge(f"{name} takes more than {self._timeout_s:g} s to decode") from None
        except (OSError, ValueError, KeyError, TypeError):
            raise ImageUnreadable(f"{name} broke its decoder") from None
        finally:  # an answer that nobody read would be taken for the next one's
            if unharmed is None:
                decoder.dismiss()
            self._free.put(unharmed)
            if self._is_closed:
                self.close()

    def _take(self) -> "_Decoder":
        """One that is alive: of what ended one that was idle, no picture is to blame."""
        decoder = self._free.get()
        if decoder is not None and not decoder.has_ended:
            return decoder
        try:
            if decoder is not None:
                decoder.dismiss()
            return _Decoder(self._limits)
        except BaseException:
            self._free.put(None)
            raise

    def close(self) -> None:
        """End the decoders that are free; the others end with their answer."""
        self._is_closed = True
        free = []
        with suppress(queue.Empty):
            while True:
                free.append(self._free.get_nowait())
        for decoder in free:
            if decoder is not None:
                decoder.dismiss()
            self._free.put(None)  # whoever comes late would wait for ever


class _Decoder:
    """Our end of one process."""

    def __init__(self, limits: Limits) -> None:
        """
        Raises:
            NoAnswer: it cannot be started, or not in time.
        """
        self._limit_pixels = limits.pixels
        self._limit_bytes = limits.pixels * _BYTES_PER_PIXEL
        try:
            self._line, self._process = _started(limits)
        except OSError as error:
            raise NoAnswer(f"no decoding process can be started: {error.strerror}") from error
        if not self._is_ready():
            self.dismiss()
            raise NoAnswer("no decoding process can be started; see the worker's log")

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def decode(self, data: bytes, *, name: str, near: int | None, timeout_s: float) -> Image.Image:
        ends_at = time.monotonic() + timeout_s
        self._line.settimeout(timeout_s)
        self._line.sendall(_ASKED.pack(near or 0, len(data)))
        self._line.sendall(data)
        (length,) = _HEADER.unpack(self._read(_HEADER.size, _HEADER.size, ends_at))
        header = json.loads(self._read(length, _LONGEST_HEADER, ends_at))
        if "code" in header:
            told = f"{name} {header['message']}"
            error = from_wire(header["code"], told, retryable=False)
            raise error if isinstance(error, ItemError) else ImageUnreadable(str(error))
        width, height = map(int, header["size"])
        if width * height > self._limit_pixels:  # Pillow makes room by it
            raise ValueError(width, height)
        pixels = self._read(header["bytes"], self._limit_bytes, ends_at)
        return _image(header, pixels)

    def dismiss(self) -> None:
        self._process.kill()
        self._process.wait()
        self._line.close()

    def _is_ready(self) -> bool:
        self._line.settimeout(_START_WITHIN_S)
        try:
            return self._line.recv(1) != b""
        except OSError:
            return False

    def _read(self, length: int, limit: int, ends_at: float) -> bytearray:
        if not 0 <= length <= limit:
            raise ValueError(length)
        buffer = bytearray(length)
        view, got = memoryview(buffer), 0
        while got < length:
            self._line.settimeout(max(0.001, ends_at - time.monotonic()))
            received = self._line.recv_into(view[got:])
            if not received:
                raise ConnectionResetError
            got += received
        return buffer


def _started(limits: Limits) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """A process, and our end of the line to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "worker.datapath.decoders",
                    str(limits.pixels),
                    str(limits.scales),
                ],
                stdin=theirs.fileno(),
                cwd=_ROOT,
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                process_group=0,  # Ctrl-C is ours to handle
            )
        except OSError:
            ours.close()
            raise
    return ours, process


def _image(header: Mapping[str, Any], pixels: bytearray) -> Image.Image:
    image = Image.frombytes(str(header["mode"]), tuple(header["size"]), pixels)
    if header["palette"]:
        kind, colours = header["palette"]
        image.putpalette(bytes(colours), kind)
    set_extent(image, tuple(header["extent"]))
    return image


def _serve(line: socket.socket, limits: Limits) -> None:
    decoding.set_up()
    line.sendall(b"!")
    with line.makefile("rb") as asked:
        while question := asked.read(_ASKED.size):
            near, length = _ASKED.unpack(question)
            _meet(line, asked.read(length), near=near or None, limits=limits)


def _meet(line: socket.socket, data: bytes, *, near: int | None, limits: Limits) -> None:
    """Decode one picture and answer; nothing of it is left in the next one's memory."""
    try:
        image = decoding.decode(data, name="", near=near, limits=limits)
        pixels = image.tobytes()
    except ItemError as error:
        _answer(line, {"code": error.code, "message": str(error).strip()})
    except MemoryError:
        _answer(line, {"code": ImageTooLarge.code, "message": "does not fit into memory"})
    else:
        palette = image.palette and [image.palette.mode, image.getpalette(None)]
        header = {"mode": image.mode, "size": image.size, "extent": extent_of(image)}
        _answer(line, header | {"palette": palette, "bytes": len(pixels)}, pixels)


def _answer(line: socket.socket, header: Mapping[str, Any], pixels: bytes = b"") -> None:
    text = json.dumps(header).encode()
    line.sendall(_HEADER.pack(len(text)) + text)
    line.sendall(pixels)


def main() -> None:
    """One decoder, on the socket that is its standard input, until that is closed."""
    for stop in (signal.SIGINT, signal.SIGTERM):  # they may go to all processes of a service
        signal.signal(stop, signal.SIG_IGN)
    limits = Limits(pixels=int(sys.argv[1]), scales=sys.argv[2] == "True")
    memory = _PROGRAM_BYTES + _BYTES_PER_PIXEL * limits.pixels
    for what, most in {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
    }.items():
        resource.setrlimit(what, (most, most))
    with socket.socket(fileno=0) as line:
        _serve(line, limits)


if __name__ == "__main__":
    main()
