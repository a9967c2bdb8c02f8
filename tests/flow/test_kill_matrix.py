"""What must not happen to a message, whatever dies: real workers, a real Valkey, real signals.

Each cell fails with Celery's own consumer or pool in place of ours, except where it says so.
The figures behind it: docs/why.md, "Why Celery 5.7 with a Consumer of our own".
"""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError
from celery.result import AsyncResult

from api_client.wire.broker import celery_app
from api_client.wire.settings import Settings
from tests.flow.processes import Valkey, Worker, until


class Matrix:
    """The processes of one cell, and what can be seen of them from outside."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.valkey = Valkey(folder)
        self._workers: list[Worker] = []
        self._app = celery_app(Settings.read(redis_url=self.valkey.url))

    def worker(
        self, name: str, *, visibility_timeout_s: float = 60, options: str = "-c 2"
    ) -> Worker:
        worker = Worker(
            self._folder,
            name=name,
            url=self.valkey.url,
            visibility_timeout_s=visibility_timeout_s,
            options=options,
        )
        self._workers.append(worker)
        return worker

    def send(self, *names: str) -> None:
        for name in names:
            self._app.send_task("hold", (name,))

    def call(self, name: str, **options: Any) -> AsyncResult:
        """Send one whose outcome is kept."""
        return self._app.send_task("hold", (name,), ignore_result=False, **options)

    def send_cramped(self) -> None:
        """One that fails with a MemoryError."""
        self._app.send_task("cramped")

    def is_seen(self) -> bool:
        """Whether the worker `a` answers who looks for it."""
        return bool(self._app.control.ping(["a@matrix"], timeout=10))

    def ask_and_leave(self) -> None:
        """What the worker answers late."""
        self._app.control.broadcast("dawdle", reply=True, timeout=0.01)

    def open(self) -> None:
        """Let every task that holds, and all that follow, end."""
        (self._folder / "open").touch()

    def journal(self) -> list[str]:
        journal = self._folder / "journal"
        return sorted(journal.read_text().splitlines()) if journal.exists() else []

    def until_started(self, *names: str) -> None:
        until(lambda: {f"start {name}" for name in names} <= set(self.journal()))

    def until_waiting_for_messages(self) -> None:
        """A BRPOP is out: the worker has a free thread and asks for more."""
        with self.valkey.client() as client:
            until(lambda: any(peer["cmd"] == "brpop" for peer in client.client_list()))

    def until_nothing_is_left(self) -> None:
        until(lambda: not self.waiting() and not self.unacked())

    def waiting(self) -> int:
        with self.valkey.client() as client:
            return int(client.llen("clipyard:embed"))

    def unacked(self) -> int:
        with self.valkey.client() as client:
            return int(client.hlen("clipyard:unacked"))

    def lease(self) -> float:
        """Unix time of the last renewal of the one message that is held."""
        with self.valkey.client() as client:
            ((_, score),) = client.zrange("clipyard:unacked_index", 0, 0, withscores=True)
        return float(score)

    def end(self) -> None:
        self._app.close()
        for worker in self._workers:
            worker.kill()
        self.valkey.kill()


@pytest.fixture
def matrix(tmp_path: Path) -> Iterator[Matrix]:
    matrix = Matrix(tmp_path)
    try:
        yield matrix
    finally:
        matrix.end()


def test_a_worker_goes_on_when_redis_was_killed_under_it(matrix: Matrix) -> None:
    worker = matrix.worker("a")
    matrix.send("held")
    matrix.until_started("held")
    matrix.until_waiting_for_messages()

    matrix.valkey.kill()
    worker.until_logged("Connection to broker lost")
    matrix.valkey.start()
    matrix.until_waiting_for_messages()
    matrix.open()
    matrix.send("later")
    matrix.until_started("later")
    matrix.until_nothing_is_left()

    assert worker.alive()
    assert matrix.journal() == ["end held", "end later", "start held", "start later"]


def test_a_worker_with_an_answer_to_an_inspection_goes_on_while_redis_is_away(
    matrix: Matrix,
) -> None:
    worker = matrix.worker("a")
    assert matrix.is_seen()
    matrix.ask_and_leave()
    matrix.until_started("dawdle")

    matrix.valkey.kill()
    matrix.open()
    worker.until_logged("Connection to broker lost")
    matrix.valkey.start()
    matrix.send("later")
    matrix.until_started("later")


def test_a_worker_goes_on_when_redis_takes_no_writes_for_a_while(matrix: Matrix) -> None:
    matrix.open()
    matrix.send("swallowed")
    with matrix.valkey.client() as client:
        client.rename("clipyard:embed", "aside")
        worker = matrix.worker("a")
        matrix.until_waiting_for_messages()

        with client.pipeline(transaction=True) as pipe:  # taken, and then not to be noted as taken
            pipe.rename("aside", "clipyard:embed")
            pipe.config_set("maxmemory", 1)
            pipe.execute()
        worker.until_logged("Connection to broker lost")
        client.config_set("maxmemory", 0)

        matrix.until_waiting_for_messages()
        client.replicaof("127.0.0.1", 1)  # a failover, as who waits for messages meets it
        worker.until_logged("Connection to broker lost", times=2)
        client.replicaof("NO", "ONE")
    matrix.send("later")
    matrix.until_started("later")
    matrix.until_nothing_is_left()

    assert worker.alive()


def test_nothing_runs_twice_over_a_short_break_of_the_connection(matrix: Matrix) -> None:
    worker = matrix.worker("a", options="-c 3")
    matrix.send("one", "two")
    matrix.until_started("one", "two")
    matrix.until_waiting_for_messages()

    with matrix.valkey.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    worker.until_logged("Connected to", times=2)
    matrix.until_waiting_for_messages()
    matrix.open()
    matrix.until_nothing_is_left()

    assert matrix.journal() == ["end one", "end two", "start one", "start two"]


def test_a_message_comes_back_once_its_worker_was_killed(matrix: Matrix) -> None:
    """Celery's own consumer passes this one: the lease must not spoil it."""
    worker = matrix.worker("a", visibility_timeout_s=2)
    matrix.send("held")
    matrix.until_started("held")

    worker.kill()
    matrix.worker("b", visibility_timeout_s=2)
    until(lambda: matrix.journal().count("start held") == 2)
    matrix.open()
    matrix.until_nothing_is_left()

    assert matrix.journal() == ["end held", "start held", "start held"]


@pytest.mark.parametrize("draining", [False, True], ids=["working", "draining"])
def test_a_task_longer_than_the_visibility_timeout_runs_once(
    matrix: Matrix, draining: bool
) -> None:
    worker = matrix.worker("a", visibility_timeout_s=4)
    matrix.send("held")
    matrix.until_started("held")
    matrix.worker("b", visibility_timeout_s=4)
    if draining:
        worker.signal(signal.SIGTERM)
        worker.until_logged("no more tasks are started")

    leased_at = matrix.lease()
    until(lambda: matrix.lease() > leased_at + 5)
    matrix.open()
    matrix.until_nothing_is_left()

    assert matrix.journal() == ["end held", "start held"]


def test_a_worker_that_is_asked_to_end_gives_back_what_it_has_not_started(matrix: Matrix) -> None:
    """Celery's own parts pass this one: ours must not spoil it."""
    worker = matrix.worker("a", options="-c 1 --prefetch-multiplier 4")
    matrix.send("held", "two", "three", "four")
    matrix.until_started("held")
    until(lambda: matrix.unacked() == 4)

    worker.signal(signal.SIGTERM)
    worker.until_logged("no more tasks are started")
    matrix.open()

    assert worker.until_ended() == 0
    assert matrix.journal() == ["end held", "start held"]
    assert (matrix.waiting(), matrix.unacked()) == (3, 0)


def test_a_soft_shutdown_gives_back_what_runs_even_over_a_lost_connection(matrix: Matrix) -> None:
    worker = matrix.worker("a")
    matrix.send("held")
    matrix.until_started("held")
    with matrix.valkey.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    worker.until_logged("Connected to", times=2)
    matrix.until_waiting_for_messages()

    worker.signal(signal.SIGQUIT)
    worker.until_ended()

    assert matrix.journal() == ["start held"]
    assert (matrix.waiting(), matrix.unacked()) == (1, 0)


def test_a_revoked_task_stops_between_two_steps(matrix: Matrix) -> None:
    matrix.worker("a", options="-c 1")
    result = matrix.call("held")
    matrix.until_started("held")

    result.revoke(terminate=True)
    matrix.send("next")
    matrix.until_started("next")

    with pytest.raises(TaskRevokedError):
        result.get(timeout=10)
    assert matrix.journal() == ["start held", "start next"]


def test_a_task_that_found_no_memory_is_not_held_for_ever(matrix: Matrix) -> None:
    worker = matrix.worker("a")
    matrix.send("held")
    matrix.until_started("held")
    matrix.send_cramped()
    worker.until_logged("MemoryError")
    until(lambda: matrix.unacked() == 1)


def test_a_task_past_its_time_limit_stops_between_two_steps(matrix: Matrix) -> None:
    matrix.worker("a")
    result = matrix.call("held", soft_time_limit=0.1)

    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=10)
    matrix.until_nothing_is_left()
    assert matrix.journal() == ["start held"]
