"""The same client for asyncio: every call is awaited on Redis, none waits in a thread."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import redis

from .client import PATIENCE_S, Client, Handle, usable
from .desk import Desk
from .embedding import Embedding, Submitted
from .inputs import Picture
from .reembed.job import AsyncJob, Job, JobOptions
from .requests import EmbedOptions
from .results import Item, Loaded, MemoryUse, similarity
from .status import Fleet
from .steps import AsyncHold, Blocking, Parting, Pause, Step, Talk
from .talks import Line
from .wire.broker import async_redis_client
from .wire.codec import Vectors
from .wire.errors import BadRequest
from .wire.jobs import JobStatus, Migration, Place
from .wire.messages import CatalogueEntry, Managed, Pressure, Scope
from .wire.settings import Settings

_T = TypeVar("_T")


class AsyncClient:
    """`Client` with `await` before it: same calls, same arguments, same errors; see there.

    It belongs to the event loop that it is first used in, and raises BadRequest in another. A call
    that is cancelled withdraws what it has sent.
    """

    _again: Callable[[], Any] | None = None
    _is_closed = False

    def __init__(self, settings: Settings | None = None, *, asked_by: str = "client") -> None:
        if settings is None:
            settings, self._again = Settings.read(), partial(type(self), asked_by=asked_by)
        store = async_redis_client(usable(settings), patience_s=PATIENCE_S)
        connections = store.connection_pool.max_connections
        self._open(store, Line(settings), asked_by, connections=connections)

    def _open(self, store: Any, line: Line, asked_by: str, *, connections: int) -> None:
        """The rest of a client, whoever answers it."""
        # As in `Client`.
        self._redis, self._seats = store, asyncio.Semaphore(max(1, connections - 1))
        self._desk = Desk(line, asked_by=asked_by)
        self._streams: set[Embedding] = set()  # those that were begun
        self._ending = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None  # whose its connections are

    async def embed_images(
        self, images: Iterable[Picture], **options: Unpack[EmbedOptions]
    ) -> Vectors:
        return await self._hold(self._desk.image_rows(images, options))

    async def embed_images_detailed(
        self, images: Iterable[Picture], **options: Unpack[EmbedOptions]
    ) -> list[Item]:
        return await self._hold(self._desk.images(images, options).all())

    def stream_images(
        self, images: Iterable[Picture], **options: Unpack[EmbedOptions]
    ) -> AsyncGenerator[Item, None]:
        return self._stream(self._desk.images(images, options))

    async def submit_images(
        self, images: Iterable[Picture], **options: Unpack[EmbedOptions]
    ) -> "AsyncHandle":
        return await self._submit(self._desk.submission(self._desk.images, images, options))

    async def embed_texts(
        self, texts: str | Iterable[str], **options: Unpack[EmbedOptions]
    ) -> Vectors:
        return await self._hold(self._desk.text_rows(texts, options))

    async def embed_texts_detailed(
        self, texts: str | Iterable[str], **options: Unpack[EmbedOptions]
    ) -> list[Item]:
        return await self._hold(self._desk.each_text(texts, options))

    async def submit_texts(
        self, texts: str | Iterable[str], **options: Unpack[EmbedOptions]
    ) -> "AsyncHandle":
        return await self._submit(self._desk.submission(self._desk.texts, texts, options))

    def handle(self, id: str) -> "AsyncHandle":
        return AsyncHandle(self._desk, self._hold, self._desk.submitted(id))

    similarity = staticmethod(similarity)  # there is nothing to await

    async def load(
        self,
        model: str,
        *,
        workers: Sequence[str] | None = None,
        keep_alive_s: float | None = None,
        timeout: float | None = None,
    ) -> list[Managed]:
        return await self._hold(self._desk.load(model, workers, timeout, keep_alive_s))

    async def reload(
        self, model: str, *, workers: Sequence[str] | None = None, timeout: float | None = None
    ) -> list[Managed]:
        return await self._hold(self._desk.reload(model, workers, timeout))

    async def switch(
        self, model: str, *, workers: Sequence[str] | None = None, timeout: float | None = None
    ) -> list[Managed]:
        return await self._hold(self._desk.switch(model, workers, timeout))

    async def unload(
        self,
        model: str | None = None,
        *,
        scope: Scope = "one",
        family: str | None = None,
        workers: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> list[Managed]:
        return await self._hold(self._desk.unload(model, scope, family, workers, timeout))

    async def set_knobs(
        self,
        knobs: Mapping[str, Any],
        *,
        workers: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> list[Managed]:
        return await self._hold(self._desk.set_knobs(knobs, workers, timeout))

    async def status(self) -> Fleet:
        return await self._hold(self._desk.status())

    async def current_model(self) -> str:
        return await self._hold(self._desk.current_model())

    async def is_loaded(self, model: str) -> bool:
        return await self._hold(self._desk.is_loaded(model))

    async def loaded_models(self) -> list[Loaded]:
        return await self._hold(self._desk.loaded())

    async def memory_use(self, model: str | None = None) -> MemoryUse:
        return await self._hold(self._desk.memory_use(model))

    async def pressure(self) -> Pressure:
        return await self._hold(self._desk.pressure())

    async def models(self) -> list[CatalogueEntry]:
        return await self._hold(self._desk.models())

    async def model_info(self, model: str | None = None) -> CatalogueEntry:
        return await self._hold(self._desk.model_info(model))

    async def dimension(self, model: str | None = None) -> int:
        return await self._hold(self._desk.dimension(model))

    async def reembed(
        self,
        source: str | Path | Place,
        *,
        sink: str | Path | Place,
        model: str | None = None,
        migration: Migration | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncJob:
        wanted = self._desk.reembed(source, sink, model, migration, options)
        return self.job(await self._hold(wanted))

    def job(self, id: str) -> AsyncJob:
        return AsyncJob(self._desk.line, self._hold, id)

    async def jobs(self) -> list[JobStatus]:
        return await self._hold(self._desk.jobs())

    async def close(self) -> None:
        self._require_loop()
        # One that is broken off ends when it is collected, which may be after this.
        unwanted = [call for stream in tuple(self._streams) for call in stream.stop()]
        async with self._ending:  # a stream that ends meanwhile is not cut off as it withdraws
            await self._held(self._desk.line.let_go(unwanted))  # without a seat, as in `Client`
            self._is_closed = True
            await asyncio.to_thread(self._desk.line.close)
            await self._redis.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    __reduce__ = Client.__reduce__

    async def _stream(self, embedding: Embedding) -> AsyncGenerator[Item, None]:
        self._streams.add(embedding)
        try:
            while items := await self._hold(embedding.more()):
                for item in items:
                    yield item
        finally:
            try:
                await _whole(self._end(embedding))
            finally:
                self._streams.discard(embedding)

    async def _end(self, stream: Embedding) -> None:
        async with self._ending:  # `close` waits for one that ends meanwhile
            await self._held(stream.end())  # without a seat, as `close`

    async def _submit(self, embedding: Embedding) -> "AsyncHandle":
        return AsyncHandle(self._desk, self._hold, await self._hold(embedding.submit()))

    async def _hold(self, talk: Talk[_T]) -> _T:
        self._require_loop()
        async with self._seats:
            return await self._held(talk)

    async def _held(self, talk: Talk[_T]) -> _T:
        go: Callable[[Any], Step] = talk.send  # as in `steps.taken`
        said: Any = None
        try:
            while True:
                step = go(said)
                try:
                    go, said = talk.send, await self._take(step)
                except redis.RedisError as error:
                    go, said = talk.throw, self._desk.line.unreached(error)
                except BaseException as error:
                    go, said = talk.throw, error
        except StopIteration as end:
            result: _T = end.value
            return result
        finally:
            del go, said
            if self._is_closed:  # as in `Client`
                await self._redis.connection_pool.disconnect(inuse_connections=False)

    def _require_loop(self) -> None:
        here = asyncio.get_running_loop()
        self._loop = self._loop or here
        if self._loop is not here:
            raise BadRequest(
                "this AsyncClient belongs to the event loop that it was first used in; make one in "
                "each loop, as each asyncio.run is, or use a Client, which any of them may share"
            )

    async def _take(self, step: Step) -> Any:
        if isinstance(step, Blocking):
            return await asyncio.to_thread(step, None)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        me = asyncio.current_task()
        before = me.cancelling() if me else 0
        going = step(self._redis)
        said = await (_whole(going) if isinstance(step, Parting) else going)
        if me and me.cancelling() > before:  # redis.asyncio swallows it while it connects
            raise asyncio.CancelledError
        return said


async def _whole(going: Awaitable[Any]) -> Any:
    """What comes of it, at its end also for who is cancelled: a scope of anyio does that at each
    await until then."""
    task, is_cancelled = asyncio.ensure_future(going), False
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            is_cancelled = True
    result = task.result()
    if is_cancelled:
        raise asyncio.CancelledError
    return result


class AsyncHandle:
    """`Handle` with `await` before it."""

    def __init__(self, desk: Desk, hold: AsyncHold, submitted: Submitted) -> None:
        self.id = submitted.id
        self._desk, self._hold, self._submitted = desk, hold, submitted

    __reduce__ = Handle.__reduce__

    async def wait(self, timeout: float | None = None) -> list[Item]:
        return await self._hold(self._desk.wait(self._submitted, timeout))

    async def cancel(self) -> None:
        await self._hold(self._submitted.cancel())


# The documentation stands once, with the twin.
for _mine, _twin in ((AsyncClient, Client), (AsyncHandle, Handle), (AsyncJob, Job)):
    for _name, _call in vars(_mine).items():
        if not _name.startswith("_") and not _call.__doc__:
            _call.__doc__ = getattr(_twin, _name).__doc__
