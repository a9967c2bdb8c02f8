import json
import math
import threading
import time
from queue import SimpleQueue

import pytest
import redis
from celery.exceptions import Reject

from api_client.wire.errors import DeviceLost
from worker.delivery import suspects
from worker.delivery.line import Line
from worker.delivery.pool import TaskPool
from worker.delivery.suspects import NOTE_KEPT_S, Suspects

WITHIN_S = 10


@pytest.fixture
def process(store, keys):
    """A process of this node name, shown to the fleet until it is told to vanish."""
    started = iter(range(1, 99))

    def process(node="gpu0@a"):
        at = next(started) + 0.5
        store.hset(keys.worker(node), mapping={"started_at": repr(at), "state": '"ready"'})
        return Suspects(store, keys, node=node, started_at=at)

    return process


def dies_over(process, id="r"):
    """Begins a message and never ends it, as a killed process does."""
    around = process.begin(id)
    start = around.__enter__()
    trial = start.on_trial()
    trial.__enter__()
    return around, trial


def test_a_start_is_noted_and_struck_out_at_its_end(store, keys, process):
    with process().begin("r") as start:
        assert not start.crashes
        assert 0 < store.ttl(keys.started("r")) <= NOTE_KEPT_S
    assert not store.exists(keys.started("r"))


def test_who_is_no_suspect_is_noted_until_its_answer(store, keys, process):
    with process().begin("r") as start:
        with start.on_trial():
            pass
        assert store.exists(keys.started("r"))


def test_a_note_goes_one_day_whenever_it_was_made(store, keys, process):
    with process().begin("r") as start:
        store.delete(keys.started("r"))
        start.note((0, 10))
        assert 0 < store.ttl(keys.started("r")) <= NOTE_KEPT_S


def test_what_ends_a_message_is_told_though_its_note_cannot_be_struck_out(process, monkeypatch):
    here = process()

    def away(*command):
        raise redis.ConnectionError("away")

    monkeypatch.setattr(here._lines, "ask", away)
    with pytest.raises(ValueError, match="no such model"), here.begin("r", is_first=True):
        raise ValueError("no such model")


def test_a_message_that_was_answered_is_not_begun(store, keys, process):
    store.rpush(keys.answer("r"), b"frame")
    with process().begin("r") as start:
        assert start.is_needless
        assert not store.exists(keys.started("r"))


@pytest.mark.parametrize("ttl_s", [60, 2000])  # who has an answer keeps it for less
def test_what_was_answered_is_not_begun_again_before_its_deadline(store, keys, process, ttl_s):
    with process().begin("r") as start:
        start.deadline = time.time() + 1000
        start.answer(b"frame", ttl_s=ttl_s)
    assert 900 < store.ttl(keys.started("r")) <= 1000
    store.delete(keys.answer("r"))  # as if its time were over
    with process("gpu1@a").begin("r") as again:
        assert again.is_needless


def test_a_mark_is_kept_for_a_week_at_most(store, keys, process):
    for deadline in (math.inf, math.nan, 1e300):
        with process().begin("r") as start:
            start.deadline = deadline
            start.answer(b"frame", ttl_s=60)
        assert store.exists(keys.answer("r"))
        assert 0 < store.ttl(keys.started("r")) <= 7 * 24 * 3600
        store.delete(keys.answer("r"), keys.started("r"))


def test_a_deadline_before_all_times_leaves_an_answer_and_no_mark(store, keys, process):
    with process().begin("r") as start:
        start.deadline = -math.inf
        start.answer(b"frame", ttl_s=60)
    assert store.exists(keys.answer("r"))
    assert not store.exists(keys.started("r"))


def test_who_is_the_first_to_begin_notes_it_without_asking(store, keys, process):
    with process().begin("r", is_first=True) as start:
        assert not start.is_needless
        start.answer(b"frame", ttl_s=60)
    assert store.lrange(keys.answer("r"), 0, -1) == [b"frame"]
    assert 0 < store.ttl(keys.answer("r")) <= 60
    assert not store.exists(keys.started("r"))


def test_a_crash_of_who_was_the_first_to_begin_is_known(process):
    around = process().begin("r", is_first=True)
    dead = around, around.__enter__()
    with process().begin("r") as start:
        assert len(start.crashes) == 1
    assert dead


def test_a_first_start_that_ends_without_an_answer_is_struck_out(store, keys, process):
    with pytest.raises(Reject), process().begin("r", is_first=True):
        raise Reject("stopping", requeue=True)
    assert not store.exists(keys.started("r"))


def test_a_twin_of_what_is_at_work_here_is_not_begun(process):
    here = process()
    with here.begin("r") as first, here.begin("r") as twin:
        assert (first.is_needless, twin.is_needless) == (False, True)
    with here.begin("r") as later:
        assert not later.is_needless


def test_what_has_failed_here_can_be_begun_here_again(process):
    here = process()
    with pytest.raises(ValueError, match="no"), here.begin("r"):
        raise ValueError("no")
    with here.begin("r") as again:
        assert not again.is_needless


def test_who_takes_its_process_down_twice_is_condemned(process):
    """The same node name comes back each time, as under a supervisor."""
    dead = [dies_over(process()), dies_over(process())]
    with process().begin("r") as start:
        assert [crash.worker for crash in start.crashes] == ["gpu0@a", "gpu0@a"]
        assert start.is_condemned
    assert dead


def test_a_crash_that_a_newer_worker_noted_is_known(store, keys, process):
    store.hset(keys.started("r"), "gpu9@b 1.5", '{"worker": "gpu9@b", "at": 1.5, "signal": 9}')
    with process().begin("r") as start:
        assert [crash.worker for crash in start.crashes] == ["gpu9@b"]


def test_who_was_at_one_crash_is_tried_again_and_forgiven_when_it_ends(process):
    dead = dies_over(process())
    with process().begin("r") as start:
        assert len(start.crashes) == 1
        assert not start.is_condemned
        start.end()
    with process().begin("r") as start:
        assert not start.crashes
    assert dead


def test_a_redelivery_while_the_first_worker_lives_is_no_crash(process):
    alive = dies_over(process("gpu1@a"))
    with process("gpu0@a").begin("r") as start:
        assert not start.crashes
    assert alive


def test_who_begins_a_message_beside_another_is_known_if_it_dies_over_it(process):
    alive = dies_over(process("gpu1@a"))
    dead = dies_over(process("gpu0@a"))
    with process("gpu0@a").begin("r") as start:
        assert [crash.worker for crash in start.crashes] == ["gpu0@a"]
    assert alive
    assert dead


@pytest.mark.parametrize(("trouble", "crashes"), [("its device was lost", 1), ("", 0)])
def test_who_stops_over_some_trouble_drops_what_it_began_and_who_is_asked_to_finishes_it(
    store, keys, process, trouble, crashes
):
    stopping = dies_over(process("gpu1@a"))
    said = {"state": '"stopping"', "trouble": json.dumps(trouble)}
    store.hset(keys.worker("gpu1@a"), mapping=said)
    with process("gpu0@a").begin("r") as start:
        assert len(start.crashes) == crashes
    assert stopping


@pytest.mark.parametrize("error", [Reject("shutdown", requeue=True), ValueError("no")])
def test_what_is_given_back_has_not_crashed(store, keys, process, error):
    with pytest.raises(type(error)), process().begin("r"):
        raise error
    assert not store.exists(keys.started("r"))


@pytest.mark.parametrize("error", [DeviceLost("gone"), redis.ConnectionError("away")])
def test_the_note_stays_when_the_process_will_end_or_nobody_can_be_told(
    store, keys, process, error
):
    with pytest.raises(type(error)), process().begin("r"):
        raise error
    assert store.exists(keys.started("r"))


def test_a_note_that_its_own_process_could_not_strike_out_is_no_crash_to_it(process):
    here = process()
    with pytest.raises(redis.ConnectionError), here.begin("r"):
        raise redis.ConnectionError("away")
    with here.begin("r") as again:
        assert not again.crashes


def test_the_evidence_tells_what_ran_beside_it(process):
    here = process()
    with here.begin("mate", "clipyard.load"):
        dead = dies_over(here)
    with process().begin("r") as start:
        assert start.crashes[0].beside == ("clipyard.load mate",)
    assert dead


def test_a_process_runs_one_suspect_at_a_time_and_others_beside_it(process):
    dead = [dies_over(process(), id) for id in ("a", "b")]
    here, order, b_has_begun = process(), [], threading.Event()

    def run_b():
        with here.begin("b") as start:
            b_has_begun.set()
            with start.on_trial():
                order.append("b")

    with here.begin("a") as first, first.on_trial():
        other = threading.Thread(target=run_b)
        other.start()
        with here.begin("c") as innocent, innocent.on_trial():
            order.append("c")
        assert b_has_begun.wait(WITHIN_S)
        other.join(0.05)
        order.append("a ends")
    other.join()
    assert order == ["c", "a ends", "b"]
    assert dead


def test_who_is_no_suspect_has_the_thread_of_one_that_waits(process):
    dead = [dies_over(process(), id) for id in ("a", "b")]
    here, ended, pool = process(), SimpleQueue(), TaskPool(1)

    def run(id):
        with here.begin(id) as start, start.on_trial():
            return id

    with here.begin("a") as first, first.on_trial():
        for id in ("b", "c"):
            pool.apply_async(run, (id,), callback=ended.put)
        assert ended.get(timeout=WITHIN_S) == "c"
    assert ended.get(timeout=WITHIN_S) == "b"
    pool.stop()
    assert dead


def test_a_suspect_that_only_waited_when_its_process_died_has_one_crash_still(process):
    dead = [dies_over(process(), id) for id in ("a", "b")]
    here = process()
    dead.append(dies_over(here, "a"))
    waits = here.begin("b")
    waits.__enter__()  # it never comes to its trial
    with process().begin("b") as start:
        assert len(start.crashes) == 1
    assert dead


def test_a_suspect_that_waits_can_be_stopped(process, monkeypatch):
    dead = [dies_over(process(), id) for id in ("a", "b")]
    here = process()
    monkeypatch.setattr(suspects, "LOOK_S", 0.001)
    monkeypatch.setattr(suspects, "stop_if_cancelled", stop)
    with (
        here.begin("a") as first,
        first.on_trial(),
        pytest.raises(Reject),
        here.begin("b") as second,
        second.on_trial(),
    ):
        raise AssertionError("two suspects at once")
    assert dead


def test_a_suspect_whose_note_redis_refuses_gives_up_its_turn(process, monkeypatch):
    dead = [dies_over(process(), id) for id in ("a", "b")]
    here = process()
    monkeypatch.setattr(suspects, "LOOK_S", 0.001)
    monkeypatch.setattr(suspects, "stop_if_cancelled", stop)

    def refuse(*command):
        raise redis.exceptions.NoPermissionError("no hdel for you")

    with here.begin("b") as later:
        with here.begin("a") as first, monkeypatch.context() as redis_says:
            redis_says.setattr(here._lines, "ask", refuse)
            with pytest.raises(redis.exceptions.NoPermissionError), first.on_trial():
                pass
        with later.on_trial():
            pass
    assert dead


def test_a_suspect_whose_turn_comes_after_the_device_was_lost_is_not_blamed(process):
    dead = [dies_over(process(), id) for id in ("a", "b")]
    here = process()
    with here.begin("b") as later:
        with pytest.raises(DeviceLost), here.begin("a") as first, first.on_trial():
            raise DeviceLost("gone")
        with pytest.raises(DeviceLost, match="gone"), later.on_trial():
            raise AssertionError("nothing can run here")
    with pytest.raises(DeviceLost), here.begin("c") as new, new.on_trial():
        raise AssertionError("nothing can run here")
    successor = process()
    with successor.begin("a") as a, successor.begin("b") as b, successor.begin("c") as c:
        assert [len(start.crashes) for start in (a, b, c)] == [2, 1, 0]
    assert dead


def test_who_took_the_device_along_and_comes_back_before_the_process_ends_stays_blamed(process):
    dead, here = dies_over(process()), process()
    for _ in range(2):
        with pytest.raises(DeviceLost), here.begin("r") as start, start.on_trial():
            raise DeviceLost("gone")
    with process().begin("r") as again:
        assert again.is_condemned
    assert dead


def test_nothing_runs_after_a_message_over_which_the_device_was_lost_untried(process):
    here = process()
    with pytest.raises(DeviceLost), here.begin("load"):
        raise DeviceLost("gone")
    with pytest.raises(DeviceLost, match="gone"), here.begin("r") as start, start.on_trial():
        raise AssertionError("nothing can run here")


def stop():
    raise Reject("shutdown", requeue=True)


def test_a_first_start_is_heard_of_with_its_answer(process, monkeypatch):
    here, heard, hear = process(), [], Line.hear
    monkeypatch.setattr(Line, "hear", lambda line: heard.append(hear(line)) or heard[-1])
    with here.begin("r", is_first=True) as start, start.on_trial():
        start.answer(b"frame", ttl_s=60)
    assert [len(replies) for replies in heard] == [2]


def test_a_node_that_has_come_back_knows_of_its_crash_before_its_status_says_so(
    store, keys, process
):
    dead = dies_over(process())  # its status hash is still there
    with Suspects(store, keys, node="gpu0@a", started_at=99.0).begin("r") as start:
        assert len(start.crashes) == 1
    assert dead


def test_a_suspect_whose_trial_is_over_has_no_part_in_the_next_ones_crash(process):
    dead = [dies_over(process(), id) for id in ("culprit", "mate")]
    here = process()
    mate = here.begin("mate")
    with mate.__enter__().on_trial():
        pass  # its answer is on the way
    dead.append(dies_over(here, "culprit"))
    after = process()
    with after.begin("culprit") as culprit, after.begin("mate") as innocent:
        assert culprit.is_condemned
        assert not innocent.is_condemned
    assert dead
