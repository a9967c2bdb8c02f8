"""The client a RAG pipeline holds."""

from _queue import SimpleQueue  # of `queue`, gevent puts another one in its place
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar, Unpack

import redis

from .desk import Desk
from .embedding import Embedding, Submitted
from .inputs import Picture
from .reembed.job import Job, JobOptions
from .requests import EmbedOptions
from .results import Item, Loaded, MemoryUse, similarity
from .status import Fleet
from .steps import Hold, Step, Talk, taken
from .talks import Line
from .wire.broker import redis_client
from .wire.codec import Vectors
from .wire.errors import BadRequest
from .wire.jobs import JobStatus, Migration, Place
from .wire.messages import CatalogueEntry, Managed, Pressure, Scope
from .wire.settings import Settings

PATIENCE_S = 2.0

_T = TypeVar("_T")


class Seats(SimpleQueue[Any]):
    """One for each call that is under way: `with seats:` waits for a free one.

    Nothing of it is Python, so Ctrl-C comes before it or after it. `threading.Semaphore` is, and
    one that is interrupted may keep its lock for good.
    """

    __enter__ = SimpleQueue.get
    __exit__ = SimpleQueue.put

    def __init__(self, number: int) -> None:
        for _ in range(number):
            self.put(None)


def usable(settings: Settings) -> Settings:
    """The settings that were given.

    Raises:
        BadRequest: something else was, such as an address.
    """
    if not isinstance(settings, Settings):
        raise BadRequest(
            f"settings is {type(settings).__name__}; pass Settings.read(redis_url=...), "
            "or nothing, and set CLIPYARD_REDIS_URL"
        )
    return settings


class Client:
    """Embeds through the workers. Cheap to make, safe to share between threads.

    Everything comes from CLIPYARD_* in the environment, or from the running `clipyard up`, unless
    given here. Options of the embedding calls: see `EmbedOptions`. A call fails with BadRequest
    before anything is sent, with NoBroker, NoWorker or NoAnswer if nobody answers, and with
    whatever the worker raised; it works again as soon as Redis and a worker are back. Pictures are
    looked at message by message: what was sent before one that cannot be a picture is withdrawn.
    Of more than 899 calls at once the rest wait their turn, unsent (with `?max_connections=N` in
    the URL of Redis, of more than N - 1). What the source of a stream asks of the same client is a
    call beside the stream's own: with room for one, both wait for ever.

    Args:
        settings: where Redis is and how long to wait, as `Settings.read(redis_url=...)`.
        asked_by: a name for the event stream.
    """

    _again: Callable[[], Any] | None = None  # makes another one in another process
    _is_closed = False

    def __init__(self, settings: Settings | None = None, *, asked_by: str = "client") -> None:
        if settings is None:
            settings, self._again = Settings.read(), partial(type(self), asked_by=asked_by)
        store = redis_client(usable(settings), patience_s=PATIENCE_S)
        connections = store.connection_pool.max_connections
        self._open(store, Line(settings), asked_by, connections=connections)

    def _open(self, store: Any, line: Line, asked_by: str, *, connections: int) -> None:
        """The rest of a client, whoever answers it."""
        # One is left for `close`.
        self._redis, self._seats = store, Seats(max(1, connections - 1))
        self._desk = Desk(line, asked_by=asked_by)
        self._streams: set[Embedding] = set()  # those that were begun

    def embed_images(self, images: Iterable[Picture], **options: Unpack[EmbedOptions]) -> Vectors:
        """One row per picture, in the order given: float32 (n, dimension), L2-normalised.

        Args:
            images: paths, URLs, data URIs, bytes of image files, Pillow images or uint8 arrays.

        Raises:
            ItemsFailed: at least one picture has no vector; `embed_images_detailed` answers item
                by item instead.
            ClipyardError: the call failed as a whole.
        """
        return self._hold(self._desk.image_rows(images, options))

    def embed_images_detailed(
        self, images: Iterable[Picture], **options: Unpack[EmbedOptions]
    ) -> list[Item]:
        """As `embed_images`, but every picture gets an Item: a vector, or why there is none."""
        return self._hold(self._desk.images(images, options).all())

    def stream_images(
        self, images: Iterable[Picture], **options: Unpack[EmbedOptions]
    ) -> Generator[Item, None, None]:
        """As `embed_images_detailed`, item by item.

        A long iterable is read a window ahead, a slow one no further than its patience allows.
        The items may be taken slowly: answers that have expired by then are asked for anew.
        """
        return self._stream(self._desk.images(images, options))

    def submit_images(self, images: Iterable[Picture], **options: Unpack[EmbedOptions]) -> "Handle":
        """Send pictures and wait for nothing.

        Each message has `timeout` seconds to begin, `answer_ttl_s` unless given, and its answer
        is kept for `answer_ttl_s`.
        """
        return self._submit(self._desk.submission(self._desk.images, images, options))

    def embed_texts(self, texts: str | Iterable[str], **options: Unpack[EmbedOptions]) -> Vectors:
        """One row per text, in the order given: float32 (n, dimension), L2-normalised.

        A text longer than the model's context is cut, as open_clip does; `embed_texts_detailed`
        tells which.
        """
        return self._hold(self._desk.text_rows(texts, options))

    def embed_texts_detailed(
        self, texts: str | Iterable[str], **options: Unpack[EmbedOptions]
    ) -> list[Item]:
        """As `embed_texts`, but every text gets an Item."""
        return self._hold(self._desk.each_text(texts, options))

    def submit_texts(self, texts: str | Iterable[str], **options: Unpack[EmbedOptions]) -> "Handle":
        """As `submit_images`, for texts."""
        return self._submit(self._desk.submission(self._desk.texts, texts, options))

    def handle(self, id: str) -> "Handle":
        """What was submitted under this id, by this process or another."""
        return Handle(self._desk, self._hold, self._desk.submitted(id))

    similarity = staticmethod(similarity)

    def load(
        self,
        model: str,
        *,
        workers: Sequence[str] | None = None,
        keep_alive_s: float | None = None,
        timeout: float | None = None,
    ) -> list[Managed]:
        """Bring a model onto the device of the given workers, with `["all"]` of each; of one of
        them if none is given.

        Args:
            keep_alive_s: how long it stays unused: negative for ever, None as the settings say.
        """
        return self._hold(self._desk.load(model, workers, timeout, keep_alive_s))

    def reload(
        self, model: str, *, workers: Sequence[str] | None = None, timeout: float | None = None
    ) -> list[Managed]:
        """Read a model's checkpoint again; where it is loaded unless workers are given."""
        return self._hold(self._desk.reload(model, workers, timeout))

    def switch(
        self, model: str, *, workers: Sequence[str] | None = None, timeout: float | None = None
    ) -> list[Managed]:
        """Make a model the current one, on all workers unless some are given."""
        return self._hold(self._desk.switch(model, workers, timeout))

    def unload(
        self,
        model: str | None = None,
        *,
        scope: Scope = "one",
        family: str | None = None,
        workers: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> list[Managed]:
        """Let models go, on all workers unless some are given.

        Args:
            model: for the scope `one`; the current one unless given.
            scope: `one`, all of a kind (`vision`, `text`) or of a `family`, those idle beyond
                their timeouts (`timeout`), as many as the memory pressure asks for (`pressure`),
                `everything`.
            family: with the scope `family`, which; e.g. `ollama`.
        """
        return self._hold(self._desk.unload(model, scope, family, workers, timeout))

    def set_knobs(
        self,
        knobs: Mapping[str, Any],
        *,
        workers: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> list[Managed]:
        """Change settings of running workers, of all unless some are given.

        Args:
            knobs: setting -> value, see `messages.Knobs`.
        """
        return self._hold(self._desk.set_knobs(knobs, workers, timeout))

    def status(self) -> Fleet:
        """Workers, their models and memory, queues and the latest events, in one picture."""
        return self._hold(self._desk.status())

    def current_model(self) -> str:
        """The model that answers when none is named."""
        return self._hold(self._desk.current_model())

    def is_loaded(self, model: str) -> bool:
        """Whether any worker has the model in device or host memory."""
        return self._hold(self._desk.is_loaded(model))

    def loaded_models(self) -> list[Loaded]:
        """Every model in memory with its worker, bytes, times and uses."""
        return self._hold(self._desk.loaded())

    def memory_use(self, model: str | None = None) -> MemoryUse:
        """Bytes that a model takes, or the current one."""
        return self._hold(self._desk.memory_use(model))

    def pressure(self) -> Pressure:
        """How short memory is on the worker where it is shortest."""
        return self._hold(self._desk.pressure())

    def models(self) -> list[CatalogueEntry]:
        """The catalogue, as the workers published it."""
        return self._hold(self._desk.models())

    def model_info(self, model: str | None = None) -> CatalogueEntry:
        """The catalogue's entry of a model, or of the current one."""
        return self._hold(self._desk.model_info(model))

    def dimension(self, model: str | None = None) -> int:
        """Length of a vector of a model, or of the current one; 0 until it is loaded where its
        entry does not say."""
        return self._hold(self._desk.dimension(model))

    def reembed(
        self,
        source: str | Path | Place,
        *,
        sink: str | Path | Place,
        model: str | None = None,
        migration: Migration | None = None,
        **options: Unpack[JobOptions],
    ) -> Job:
        """Submit a bulk job: everything in the source gets a vector in the sink. Waits for nothing.

        Args:
            source: a folder, glob, list, shards or collection as the workers see it, see
                `api_client.reembed.places`.
            sink: a folder, or e.g. `qdrant:http://host:6333#photos`.
            model: the current one unless given; its vector space is pinned when the job begins.
            migration: what the sink is to replace, see `reembed.job.shadow`.
        """
        return self.job(self._hold(self._desk.reembed(source, sink, model, migration, options)))

    def job(self, id: str) -> Job:
        """A job that was submitted, by this process or another."""
        return Job(self._desk.line, self._hold, id)

    def jobs(self) -> list[JobStatus]:
        """Every job of the last month, the newest first."""
        return self._hold(self._desk.jobs())

    def close(self) -> None:
        """Give the connections back. A stream that is read on, or waited for, ends in Cancelled."""
        # One that is broken off ends when it is collected, which may be after this.
        unwanted = [call for stream in tuple(self._streams) for call in stream.stop()]
        self._held(self._desk.line.let_go(unwanted))  # without a seat: waiting streams have them
        self._is_closed = True
        self._desk.line.close()
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        """Of a client goes nothing, no password either: one is made of the environment there."""
        if self._again is None:
            raise TypeError(
                "a client that was not made of the environment stays in its process; "
                "make one in each, of the same CLIPYARD_*"
            )
        return self._again, ()

    def _stream(self, embedding: Embedding) -> Generator[Item, None, None]:
        self._streams.add(embedding)
        try:
            while items := self._hold(embedding.more()):
                yield from items
        finally:
            try:
                self._hold(embedding.end())
            finally:
                self._streams.discard(embedding)

    def _submit(self, embedding: Embedding) -> "Handle":
        return Handle(self._desk, self._hold, self._hold(embedding.submit()))

    def _hold(self, talk: Talk[_T]) -> _T:
        with self._seats:
            return self._held(talk)

    def _held(self, talk: Talk[_T]) -> _T:
        try:
            return taken(talk, self._take)
        finally:
            if self._is_closed:  # meanwhile: what was under way has connected anew
                self._redis.connection_pool.disconnect(inuse_connections=False)

    def _take(self, step: Step) -> Any:
        try:
            return step(self._redis)
        except redis.RedisError as error:
            raise self._desk.line.unreached(error) from None


class Handle:
    """Something submitted. Any process may wait for it or cancel it, by `Client.handle(id)`.

    Attributes:
        id: keep this.
    """

    def __init__(self, desk: Desk, hold: Hold, submitted: Submitted) -> None:
        self.id = submitted.id
        self._desk, self._hold, self._submitted = desk, hold, submitted

    def __reduce__(self) -> NoReturn:
        raise TypeError("a handle stays in its process; give its id away, for `Client.handle`")

    def wait(self, timeout: float | None = None) -> list[Item]:
        """All items, in order; any number of times, until the answers expire.

        Raises:
            NoAnswer: not all of it is here within `timeout` seconds.
            Cancelled: it was cancelled before.
        """
        return self._hold(self._desk.wait(self._submitted, timeout))

    def cancel(self) -> None:
        """Stop what has not been answered."""
        self._hold(self._submitted.cancel())
