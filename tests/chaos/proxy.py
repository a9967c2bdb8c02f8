"""The network between Redis and everybody else, which can fail as networks do."""

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

CHUNK = 1 << 16


class Proxy:
    """Passes bytes on to one port of this machine, from a thread of its own.

    Attributes:
        port: where to connect to.
    """

    port: int

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._lines: set[_Line] = set()
        self._flows: asyncio.Event
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self, share: float, dice: random.Random) -> None:
        """Both ends of some connections learn that they are closed."""
        self._do(self._each(share, dice, _Line.close))

    def drop(self, share: float, dice: random.Random) -> None:
        """Of some connections Redis learns that they are closed, and the other end nothing."""
        self._do(self._each(share, dice, _Line.drop))

    def stall(self) -> None:
        """Nothing passes until `flow`; nothing is lost."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def flow(self) -> None:
        self._loop.call_soon_threadsafe(self._flows.set)

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(30)

    async def _listen(self) -> None:
        self._flows = asyncio.Event()
        self._flows.set()
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        self._flows.set()
        while self._lines:
            for line in self._lines:
                line.close()
            await asyncio.sleep(0.01)

    async def _each(self, share: float, dice: random.Random, do: Callable[["_Line"], None]) -> None:
        for line in tuple(self._lines):
            if dice.random() < share:
                do(line)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.close()
            return
        line = _Line(writer, up_writer)
        self._lines.add(line)
        try:
            await asyncio.gather(
                self._pump(line, reader, up_writer), self._pump(line, up_reader, writer)
            )
        finally:
            self._lines.discard(line)
            line.close()

    async def _pump(
        self, line: "_Line", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._flows.wait()
                if not line.dropped:
                    writer.write(data)
                    await writer.drain()
        if not line.dropped:
            line.close()


class _Line:
    """One connection: both of its ends."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._client, self._server = client, server
        self.dropped = False

    def close(self) -> None:
        self._client.close()
        self._server.close()

    def drop(self) -> None:
        self.dropped = True
        self._server.close()
