"""A real Valkey for the whole session, a key prefix for each test."""

import atexit
import gc
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import _state
from celery.signals import setup_logging
from kombu.transport.redis import Transport
from xdist.scheduler import LoadGroupScheduling

from api_client.stack.valkey import PrivateValkey
from api_client.wire.names import Keys
from tests.flow.processes import Valkey
from worker.backends.uncompiled import uncompiled

pytest_plugins = ["tests.stack", "tests.fleet"]

# What a developer has set is not what is tried.
SETTINGS = ("CLIPYARD_", "CLIP_", "RAG_CLIP_", "MODEL_USAGE_TRACKER_", "LAZY_LOADING_", "OTEL_")
for name in [name for name in os.environ if name.startswith(SETTINGS)]:
    if name not in ("CLIPYARD_EXAMPLES", "CLIPYARD_SCREENSHOTS"):
        del os.environ[name]
# For the processes that tests start: see there.
os.environ["PYTHONPATH"] = str(Path(__file__).with_name("light"))
# As worker/app.py has it. Tests run side by side, and cores that share an operation would wait for
# one that another test has: a sixth of the CPU time of those that run models.
os.environ.update(OMP_NUM_THREADS="1", GOMP_SPINCOUNT="8000")
# A worker in this process ends when its last wait for a message has: kombu's takes a second.
Transport.brpop_timeout = 0.05


STACKS = ("fleet", "running", "at_one_redis")  # fixtures that are expensive to start and to keep


def group_of(item: pytest.Item) -> str:
    used = getattr(item, "fixturenames", ())
    return next((stack for stack in STACKS if stack in used), item.location[0])


@pytest.hookimpl(tryfirst=True)  # before xdist deals them out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that share a stack follow one another in one process; others go by file."""
    groups = list(dict.fromkeys(map(group_of, items)))
    items.sort(key=lambda item: groups.index(group_of(item)))
    for item in items:
        if group_of(item) in STACKS:
            item.add_marker(pytest.mark.xdist_group(group_of(item)))


class Scheduling(LoadGroupScheduling):
    def _split_scope(self, nodeid: str) -> str:
        group = super()._split_scope(nodeid)
        return nodeid.partition("::")[0] if group == nodeid else str(group)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """A stack ends with the last test that uses it: two workers at rest take a tenth of a core."""
    group = group_of(item)
    if group in STACKS and nextitem is not None and group_of(nextitem) != group:
        assert isinstance(item, pytest.Function)
        item._fixtureinfo.name2fixturedefs[group][-1].finish(item._request)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Test modules import what workers do, and as they do."""
    with uncompiled():
        return (yield)


def pytest_collection_finish() -> None:
    """What was imported stays, and no collection needs to look at it: half a second each time."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # else triton takes it for a leak and says so, line by line


@pytest.fixture(scope="module", autouse=True)
def _little_to_look_at() -> Iterator[None]:
    """What a module has imported stays as well: back ends collect before each load, and a fifth of
    the CPU time of their tests went into what earlier modules had left."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _no_celery_of_others() -> Iterator[None]:
    """Celery's `start_worker` leaves its app behind as everybody's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_state, "default_app", None)
        patch.setattr(_state._tls, "current_app", None)
        yield


@setup_logging.connect
def _leave_logging_alone(**_: object) -> None:
    """A worker inside this process would otherwise take the log away from pytest."""


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with PrivateValkey(tmp_path_factory.mktemp("valkey") / "data") as server:
        yield server.url


@pytest.fixture
def valkey_of_my_own(tmp_path: Path) -> Iterator[Valkey]:
    """For tests that take the server away."""
    server = Valkey(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def prefix() -> str:
    """A key prefix of this test alone, on the server that all share."""
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def keys(prefix: str) -> Keys:
    return Keys(prefix)


@pytest.fixture
def store(valkey_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey_url) as client:
        yield client
