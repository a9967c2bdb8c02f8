"""The client a RAG pipeline holds."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, TypeVar, Unpack

import numpy as np
import redis
from kombu.exceptions import OperationalError

from .inputs import Picture
from .requests import EmbedOptions, checked, image_calls, text_calls
from .results import Item, items_of, matrix, same_space, similarity
from .talks import Answer, Call, Line, Talk
from .wire import names
from .wire.broker import celery_app, redis_client
from .wire.codec import Vectors
from .wire.errors import NoBroker, NoWorker
from .wire.messages import CatalogueEntry, Embedded, Load, Managed, Request, Switch, Unload
from .wire.settings import Settings, masked

# Publishing gives up after about two and a half seconds: a person is waiting.
PUBLISH_RETRY = {"max_retries": 3, "interval_start": 0.2, "interval_step": 0.5, "interval_max": 1.2}
PATIENCE_S = 2.0

_T = TypeVar("_T")


class Client:
    """Embeds through the workers. Cheap to make, safe to share between threads.

    Everything comes from CLIPYARD_* in the environment, or from the running `clipyard up`, unless
    given here. Options of the embedding calls: see `EmbedOptions`.

    Args:
        settings: where Redis is and how long to wait.
        asked_by: a name for the event stream.
    """

    def __init__(self, settings: Settings | None = None, *, asked_by: str = "client") -> None:
        self._settings = settings or Settings.read()
        self._asked_by = asked_by
        self._app = celery_app(self._settings, task_publish_retry_policy=PUBLISH_RETRY)
        self._redis = redis_client(self._settings, patience_s=PATIENCE_S)
        self._line = Line(self._settings, self._app)

    def embed_images(self, images: Iterable[Picture], **options: Unpack[EmbedOptions]) -> Vectors:
        """One row per picture, in the order given: float32 (n, dimension), L2-normalised.

        Args:
            images: paths, URLs, bytes of image files, Pillow images or uint8 arrays.

        Raises:
            ItemsFailed: at least one picture has no vector; `embed_images_detailed` answers item
                by item instead.
            ClipyardError: the call failed as a whole.
        """
        return self._rows(self.embed_images_detailed(images, **options), options.get("model"))

    def embed_images_detailed(
        self, images: Iterable[Picture], **options: Unpack[EmbedOptions]
    ) -> list[Item]:
        """As `embed_images`, but every picture gets an Item: a vector, or why there is none."""
        return list(self.stream_images(images, **options))

    def stream_images(
        self, images: Iterable[Picture], **options: Unpack[EmbedOptions]
    ) -> Iterator[Item]:
        """As `embed_images_detailed`, item by item; a long iterable is read a window ahead."""
        asked = self._asked(options)
        return self._embed(image_calls(images, asked, self._settings, self._asked_by), asked)

    def embed_texts(self, texts: str | Iterable[str], **options: Unpack[EmbedOptions]) -> Vectors:
        """One row per text, in the order given: float32 (n, dimension), L2-normalised.

        A text longer than the model's context is cut, as open_clip does; `embed_texts_detailed`
        tells which.
        """
        return self._rows(self.embed_texts_detailed(texts, **options), options.get("model"))

    def embed_texts_detailed(
        self, texts: str | Iterable[str], **options: Unpack[EmbedOptions]
    ) -> list[Item]:
        """As `embed_texts`, but every text gets an Item."""
        asked = self._asked(options)
        return list(self._embed(text_calls(texts, asked, self._settings, self._asked_by), asked))

    @staticmethod
    def similarity(a: Vectors, b: Vectors) -> Vectors:
        """Cosine of every row of `a` with every row of `b`, see `results.similarity`."""
        return similarity(a, b)

    def load(
        self, model: str, *, workers: Sequence[str] | None = None, timeout: float | None = None
    ) -> list[Managed]:
        """Bring a model onto the device of the given workers; of one of them if none is given."""
        chosen = self._workers(workers)
        if workers is None:
            chosen = chosen[:1]
        return self._manage(names.LOAD, Load(model=model, **self._fields(timeout)), chosen)

    def switch(
        self, model: str, *, workers: Sequence[str] | None = None, timeout: float | None = None
    ) -> list[Managed]:
        """Make a model the current one, on all workers unless some are given."""
        request = Switch(model=model, **self._fields(timeout))
        return self._manage(names.SWITCH, request, self._workers(workers))

    def unload(
        self,
        model: str | None = None,
        *,
        workers: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> list[Managed]:
        """Let a model go, or the current one; on all workers unless some are given."""
        request = Unload(model=model, **self._fields(timeout))
        return self._manage(names.UNLOAD, request, self._workers(workers))

    def models(self) -> list[CatalogueEntry]:
        """The catalogue, as the workers published it."""
        return self._talk(self._line.catalogue())

    def close(self) -> None:
        """Give the connections back."""
        self._app.close()
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _asked(self, options: EmbedOptions) -> EmbedOptions:
        """The options with the model named: all messages of one call ask for the same one."""
        asked = checked(options)
        if asked.get("model") is None:
            asked = {**asked, "model": self._talk(self._line.current_model())}
        return asked

    def _embed(self, calls: Iterator[Call], options: EmbedOptions) -> Iterator[Item]:
        progress = options.get("progress")
        space: str | None = None
        for answer in self._answers(calls):
            assert isinstance(answer.message, Embedded)
            assert answer.vectors is not None
            space = same_space(space, answer.message.fingerprint)
            yield from items_of(answer.message, answer.vectors)
            if progress:
                progress(answer.message.items)

    def _answers(self, calls: Iterator[Call]) -> Iterator[Answer]:
        """The calls' answers in order, with at most `in_flight` of them on the way."""
        pending: deque[Call] = deque()
        try:
            for call in calls:
                if len(pending) == self._settings.in_flight:
                    yield self._wait(pending)
                self._send(call)
                pending.append(call)
            while pending:
                yield self._wait(pending)
        finally:
            if pending:
                self._talk(self._line.withdraw(pending))

    def _send(self, call: Call) -> None:
        self._talk(self._line.put_blobs(call))
        with self._broker():
            self._line.publish(call)

    def _wait(self, pending: deque[Call]) -> Answer:
        answer = self._talk(self._line.wait(pending[0]))
        pending.popleft()
        return answer

    def _manage(self, task: str, request: Request, workers: Sequence[str]) -> list[Managed]:
        calls = [Call(task, request, queue=names.direct_queue(worker)) for worker in workers]
        for call in calls:
            self._send(call)
        answers = [self._talk(self._line.wait(call)).message for call in calls]
        return [answer for answer in answers if isinstance(answer, Managed)]

    def _workers(self, workers: Sequence[str] | None) -> list[str]:
        chosen = list(workers) if workers is not None else self._talk(self._line.live_workers())
        if not chosen:
            raise NoWorker("no worker is alive; start one with `clipyard up`")
        return chosen

    def _fields(self, timeout: float | None) -> dict[str, Any]:
        return self._line.deadline(timeout) | {"asked_by": self._asked_by}

    def _rows(self, items: list[Item], model: str | None) -> Vectors:
        if items:
            return matrix(items)
        return np.empty((0, self._talk(self._line.dimension(model))), np.float32)

    def _talk(self, talk: Talk[_T]) -> _T:
        with self._broker():
            step_result: Any = None
            while True:
                try:
                    step = talk.send(step_result)
                except StopIteration as end:
                    result: _T = end.value
                    return result
                step_result = step(self._redis)

    @contextmanager
    def _broker(self) -> Iterator[None]:
        try:
            yield
        except (redis.RedisError, OperationalError) as error:
            if isinstance(error, redis.ResponseError) and not isinstance(
                error, redis.AuthenticationError
            ):
                raise
            raise NoBroker(
                f"cannot reach Redis at {masked(self._settings.url())} ({error}); "
                "is it running, and is CLIPYARD_REDIS_URL right?"
            ) from None
