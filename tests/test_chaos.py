"""The chaos harness: what it plans, what it would notice, and a short run of it."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from api_client.client import Handle
from api_client.status import Fleet, Worker
from api_client.testing import FakeClient
from api_client.wire import names
from api_client.wire.messages import ModelStatus
from tests.chaos import elsewhere, invariants, plan, run
from tests.chaos.callers import Account, Call, Callers, Way, calls
from tests.chaos.faults import Chaos
from tests.chaos.jobs import Coverage, Jobs, coverage
from tests.chaos.plan import Kind
from tests.chaos.proxy import Proxy
from tests.flow.processes import Valkey, until

WORKERS = ("cpu0", "cpu1", "cpu2")


def fleet(*states: str, held: int = 1) -> Fleet:
    models = tuple(ModelStatus(id=f"m/{n}", state="device") for n in range(held))
    return Fleet(
        workers=tuple(
            Worker(
                name=f"w{n}", device="cpu", pid=n, started_at=0, beat_at=0, state=state, slots=2,
                held=models,
            )
            for n, state in enumerate(states)
        )
    )  # fmt: skip


def test_a_seed_plans_the_same_faults_again_and_another_one_others() -> None:
    drawn = plan.draw(1, 200, workers=WORKERS)
    assert drawn == plan.draw(1, 200, workers=WORKERS)
    assert drawn != plan.draw(2, 200, workers=WORKERS)
    assert {fault.kind for fault in drawn} == set(Kind)
    assert list(calls(1, 500, over_s=9, models=["a"])) == list(
        calls(1, 500, over_s=9, models=["a"])
    )


def test_what_is_broken_is_not_broken_again_before_it_is_mended() -> None:
    free_at: dict[str, float] = {}
    for fault in plan.draw(3, 500, workers=WORKERS, gap_s=0.5):
        assert free_at.get(fault.resource, 0.0) <= fault.at_s
        free_at[fault.resource] = fault.over_s


def test_every_process_is_killed_terminated_and_paused() -> None:
    drawn = plan.draw(1, 500, workers=WORKERS)
    for kind in (Kind.KILLED, Kind.TERMINATED, Kind.PAUSED):
        hit = {fault.target for fault in drawn if fault.kind is kind}
        assert hit == {*WORKERS, plan.BEAT, plan.CLIENT}


def test_what_a_killed_client_has_not_told_of_is_submitted_by_the_next(tmp_path: Path) -> None:
    class Killed(FakeClient):
        def submit_texts(self, *given: Any, **options: Any) -> Handle:
            super().submit_texts(*given, **options)
            raise SystemExit

    ordered = partial(
        elsewhere.submitted, tmp_path, "texts", ["a cat", "a dog"], within_s=30, timeout=30
    )
    with ThreadPoolExecutor() as caller, Killed() as killed, FakeClient() as client:
        id = caller.submit(ordered)
        until(lambda: list(tmp_path.glob("*.order")))
        with pytest.raises(SystemExit):
            elsewhere.fill(tmp_path, killed)
        assert not id.done()
        elsewhere.fill(tmp_path, client)
        elsewhere.fill(tmp_path, killed)  # which finds nothing more to do
        assert len(elsewhere.fetched(client, id.result(30), within_s=30)) == 2


def test_calls_ask_for_exactly_so_many_items() -> None:
    assert sum(call.items for call in calls(1, 1001, over_s=9, models=["a"])) == 1001


def test_a_model_too_many_on_the_device_is_noticed() -> None:
    assert invariants.over_the_limit(fleet("ready", held=2)) == []
    assert invariants.over_the_limit(fleet("ready", held=3)) == ["w0 has 3 models on 2 slots"]


def test_a_lease_that_nobody_gave_back_is_noticed() -> None:
    seen = fleet("ready", "ready")
    assert invariants.leased(seen) == []
    held = ModelStatus(id="m/0", state="device", leases=2)
    kept = seen.workers[1].model_copy(update={"held": (held,)})
    seen = seen.model_copy(update={"workers": (seen.workers[0], kept)})
    assert invariants.leased(seen) == ["w1 has 2 on m/0"]


def test_a_worker_that_is_not_back_is_noticed_though_its_old_status_is_there() -> None:
    seen = fleet("ready", "starting", "ready")
    assert invariants.not_ready(seen, {"w0": 0, "w1": 1, "w2": 77, "w3": None}) == [
        "w1",
        "w2",
        "w3",
    ]


def test_a_key_that_stays_for_ever_is_noticed() -> None:
    keys = {
        "clipyard:events": (-1, 10_000),
        "clipyard:_kombu.binding.embed": (-1, 1),
        "clipyard:answer:1": (600, 1),
        "clipyard:answer:2": (-1, 1),
        "clipyard:_kombu.binding.reply.celery.pidbox": (-1, 5000),
    }
    assert invariants.unbounded(keys, names.Keys("clipyard")) == [
        "clipyard:_kombu.binding.reply.celery.pidbox (5000 members)",
        "clipyard:answer:2 (1 members)",
    ]


def test_an_error_that_is_not_ours_ends_no_caller_and_its_items_are_lost(tmp_path: Path) -> None:
    class Broken(FakeClient):
        def embed_texts_detailed(self, *_: Any, **__: Any) -> Any:
            raise TypeError("not ours")

    world: Any = SimpleNamespace(client=Broken, pictures=tmp_path)
    twice = iter([Call(number, 0.0, "fake/small", Way.TEXTS, items=3) for number in range(2)])
    callers = Callers(world, None, twice, threads=1)  # type: ignore[arg-type]  # nothing is right
    callers.start()
    assert callers.join(30) == 0
    assert (callers.account.asked, callers.account.lost) == (6, 6)
    assert "TypeError" in callers.account.told[1]
    assert run.unaccounted(callers.account, Coverage(), of=6) == []


def test_a_job_that_cannot_even_be_written_down_is_lost(tmp_path: Path) -> None:
    world: Any = SimpleNamespace(client=FakeClient, pictures=tmp_path, models=tmp_path / "none")
    jobs = Jobs(world, None, items=5, each=5, over_s=0.0, model="fake/small")  # type: ignore[arg-type]
    jobs.start()
    assert jobs.join(30)
    assert (jobs.coverage.items, jobs.coverage.lost) == (5, 5)


def test_items_that_nobody_asked_for_or_that_have_no_end_are_noticed() -> None:
    account, covered = Account(asked=9, answered=5, refused=1, lost=1, stuck=1), Coverage(items=3)
    assert run.unaccounted(account, covered, of=13) == [
        "calls asked for 9 items, of which 8 ended",
        "12 items were asked for, of 13",
    ]


def test_a_fault_that_met_nobody_is_not_counted() -> None:
    world: Any = SimpleNamespace(pid=lambda _: None)
    kinds = (Kind.KILLED, Kind.PAUSED)
    planned = [plan.Fault(n, 0.0, kind, "cpu0", 0.0, 0.0) for n, kind in enumerate(kinds)]
    chaos = Chaos(world, planned, clock=lambda: 0.0)
    chaos.run(threading.Event())
    assert (len(chaos.over), chaos.done, chaos.failed) == (2, [], [])


def test_items_without_a_row_and_rows_too_many_are_noticed() -> None:
    assert coverage(["a", "b", "c"], ["a", "c", "c", "d"]) == (["b"], ["c", "d"])


def test_a_file_of_somebody_who_was_killed_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "chunks").mkdir()
    (tmp_path / "chunks" / ".tmp-1.json.abc").touch()
    (tmp_path / "part-1.parquet").touch()
    assert [Path(file).name for file in invariants.left_behind([tmp_path])] == [".tmp-1.json.abc"]


def test_a_message_that_nobody_answers_is_told_from_the_ticks_of_the_clock() -> None:
    assert invariants.lasting([names.SWEEP, names.EMBED_BATCH]) == [names.EMBED_BATCH]


def test_a_recovery_lasts_until_somebody_who_asked_afterwards_was_answered() -> None:
    probes = [(0.0, 5.0), (2.0, 2.5), (6.0, 7.0)]
    assert invariants.recoveries_s([1.0, 3.0, 9.0], probes, end=20.0) == [1.5, 4.0, 11.0]


@pytest.mark.timeout(60)
def test_a_network_can_stall_and_cut(valkey_of_my_own: Valkey) -> None:
    server = valkey_of_my_own
    with Proxy(server.port) as proxy:
        url = server.url.replace(f":{server.port}/", f":{proxy.port}/")
        with redis.Redis.from_url(url, retry=None, socket_timeout=20) as client:

            def is_silent() -> None:
                """The next ping has no answer. Only these are waited for in vain."""
                connection = client.connection_pool.get_connection()
                try:
                    connection.send_command("PING")
                    assert not connection.can_read(timeout=0.3)
                finally:
                    connection.disconnect()
                    client.connection_pool.release(connection)

            client.ping()
            proxy.stall()
            is_silent()
            proxy.flow()
            client.ping()
            proxy.drop(1.0, random.Random(1))
            is_silent()
            client.ping()
            proxy.cut(1.0, random.Random(1))
            with server.client() as direct:
                until(lambda: len(direct.client_list()) == 1)
            client.ping()


@pytest.mark.timeout(180)
def test_nothing_is_lost_doubled_or_stuck_in_a_short_run() -> None:
    report = run.run(
        run.Options(
            faults=8,
            items=300,
            seed=3544,
            workers=2,
            gap_s=0.4,
            longest_s=1.0,
            visibility_s=4.0,
            job_items=75,
        )
    )
    assert report.ok, report.line()
    assert report.items == 300
