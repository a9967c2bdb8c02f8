import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest
import redis
from celery.contrib.testing.worker import start_worker

from api_client.aio import AsyncClient, AsyncHandle
from api_client.client import Client
from api_client.reembed.job import AsyncJob
from api_client.testing import MODELS, NODE, FakeWorker
from api_client.wire import names
from api_client.wire.broker import celery_app
from api_client.wire.errors import ClipyardError
from api_client.wire.messages import EmbedBatch, Load, Reload, Request, Switch, Unload
from api_client.wire.names import Keys
from api_client.wire.settings import Settings

TASKS: dict[str, type[Request]] = {
    names.EMBED_BATCH: EmbedBatch,
    names.LOAD: Load,
    names.RELOAD: Reload,
    names.SWITCH: Switch,
    names.UNLOAD: Unload,
}

BOUND_S = 60.0  # a worker on a busy machine


class Told:
    """What a supervisor told, to be waited for in any order."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._more = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._more:
            self._lines.append(line)
            self._more.notify_all()

    def until(self, words: str) -> str:
        """Wait for the first line with these words; it is not found a second time."""
        with self._more:
            assert self._more.wait_for(lambda: any(words in one for one in self._lines), BOUND_S)
            found = next(one for one in self._lines if words in one)
            self._lines.remove(found)
            return found


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def nothing_is_left_behind():
    before = psutil.Process().children(recursive=True)
    yield
    after = psutil.Process().children(recursive=True)
    # What other tests' processes start meanwhile, such as a browser, is theirs.
    ours = [one for one in after if one not in before and not set(one.parents()) & set(before)]
    assert ours == []


@pytest.fixture
def gone():
    """Whether all of some processes end within a bound, as a function."""
    return _gone


def _gone(processes: list[psutil.Process]) -> bool:
    give_up_at = time.monotonic() + BOUND_S
    while any(map(_lives, processes)) and time.monotonic() < give_up_at:
        time.sleep(0.01)
    return not any(map(_lives, processes))


def _lives(process: psutil.Process) -> bool:
    try:  # a zombie has ended and waits for whoever adopted it
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Stage:
    """One installation on a real server, whose worker answers like the fake does.

    Attributes:
        published: what reached the worker, as (task, id).
        requests: what each of these asked for.
        failing: item -> the error it gets.
    """

    def __init__(self, url: str, prefix: str) -> None:
        self.settings = Settings.read(redis_url=url, key_prefix=prefix, chunk_size=2, in_flight=3)
        self.store = redis.Redis.from_url(url)
        self.keys = Keys(prefix)
        self.published: list[tuple[str, str]] = []
        self.requests: list[Request] = []
        self._starts = 0
        self.failing: dict[str, ClipyardError] = {}

    def show_worker(self) -> None:
        """A status hash, as of a worker that has just been started."""
        self._starts += 1
        fake = FakeWorker(MODELS, {})
        for key in (fake.keys.worker(NODE), fake.keys.catalogue):
            self.store.hset(
                key.replace("fake:", f"{self.settings.key_prefix}:", 1),
                mapping=fake.store.hgetall(key),
            )
        self.store.hset(self.keys.worker(NODE), "started_at", str(self._starts))
        self.store.sadd(self.keys.workers, NODE)

    @contextmanager
    def worker(self) -> Iterator[None]:
        app = celery_app(self.settings)
        answers = FakeWorker(MODELS, self.failing)

        def answer(kind: type[Request], task_name: str) -> None:
            app.tasks.pop(task_name, None)  # the real one, if another test has imported it

            @app.task(name=task_name, bind=True, typing=False, shared=False)
            def task(self, **fields):
                stage.published.append((task_name, self.request.id))
                request = kind.model_validate(fields)
                stage.requests.append(request)
                blobs = stage.store.hgetall(stage.keys.blobs(self.request.id))
                frame = answers.frame(request, {int(i): blob for i, blob in blobs.items()})
                with stage.store.pipeline() as pipe:
                    pipe.rpush(stage.keys.answer(self.request.id), frame)
                    pipe.expire(stage.keys.answer(self.request.id), 600)
                    pipe.execute()

        stage = self
        for task_name, kind in TASKS.items():
            answer(kind, task_name)
        if not self._starts:
            self.show_worker()
        with start_worker(
            app,
            pool="threads",
            concurrency=2,
            perform_ping_check=False,
            hostname=NODE,
            shutdown_timeout=20,
        ):
            yield
        app.close()


class Driven:
    """An AsyncClient that is waited for, so that one test serves both twins."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client, self._runner = client, runner

    def __getattr__(self, name):
        found = getattr(self._client, name)
        if name == "similarity":
            return found

        def call(*args, **kw):
            made = found(*args, **kw)
            if hasattr(made, "__aiter__"):
                return self._iterate(made)
            made = self._runner.run(made) if asyncio.iscoroutine(made) else made
            handles = AsyncHandle | AsyncJob
            return Driven(made, self._runner) if isinstance(made, handles) else made

        return call if callable(found) else found

    def _iterate(self, made):
        try:
            while True:
                yield self._runner.run(_next(made))
        except StopAsyncIteration:
            return
        finally:
            self._runner.run(made.aclose())


async def _next(made):
    return await anext(made)


@pytest.fixture
def stage(valkey_url, prefix):
    return Stage(valkey_url, prefix)


@pytest.fixture(params=["waiting", "awaiting"])
def connect(request):
    """Makes clients of either kind, and closes them."""
    with ExitStack() as open_clients:

        def make(settings, **options):
            if request.param == "waiting":
                return open_clients.enter_context(Client(settings, **options))
            runner = open_clients.enter_context(asyncio.Runner())
            driven = Driven(AsyncClient(settings, **options), runner)
            open_clients.callback(driven.close)
            return driven

        yield make


@pytest.fixture
def client(stage, connect):
    return connect(stage.settings)
