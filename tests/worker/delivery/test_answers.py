import json
import logging
import math
import time
import uuid
from types import SimpleNamespace

import numpy as np
import pytest
import redis
from celery.canvas import Signature
from celery.contrib.testing.worker import start_worker
from celery.exceptions import SoftTimeLimitExceeded

from api_client.wire import codec, correlation, names
from api_client.wire.broker import celery_app, redis_client
from api_client.wire.envelope import Envelopes
from api_client.wire.errors import BadRequest, Cancelled, DeviceLost, LoadFailed, ModelBusy
from api_client.wire.messages import EmbedBatch, Embedded, Load, Managed, Refused
from api_client.wire.quarantine import Crash, Evidence
from api_client.wire.signing import signed
from worker import runtime
from worker.delivery import answers
from worker.delivery.answers import BUSY_TRIES, Call, answering, busy_pause_s, checked
from worker.delivery.pool import Reason, cancelled, stop_if_cancelled
from worker.delivery.suspects import Start, Suspects
from worker.metrics import Meter
from worker.settings import WorkerSettings

GOOD = Managed(worker="gpu0@here", model="m", changed=True, message="loaded m")


class Desk:
    """What the two tasks below do in a test, and how often they were asked."""

    def __init__(self):
        self.outcomes = []
        self.ends = []
        self.asked = 0

    def __call__(self, call):
        self.asked += 1
        self.call, self.correlation = call, correlation.current()
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        if callable(outcome):
            return outcome()
        return outcome


desk = Desk()


@answering("test.load", Load)
def load(call):
    return desk(call)


@answering("test.embed", EmbedBatch)
def embed(call):
    return desk(call)


@pytest.fixture(scope="module")
def app(valkey_url):
    settings = WorkerSettings.read(redis_url=valkey_url, key_prefix="answers", answer_ttl_s=60)
    here = SimpleNamespace(
        settings=settings,
        redis=redis_client(settings),
        keys=names.Keys("answers"),
        node="gpu0@here",
        meter=Meter(),
    )

    def start_again(reason):
        desk.ends.append(reason)
        at = 1.5 + len(desk.ends)
        here.suspects = Suspects(here.redis, here.keys, node=here.node, started_at=at)

    start_again("before the tests")
    here.watchdog = SimpleNamespace(end=start_again)
    app = celery_app(settings)
    app.set_default()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "here", lambda: here)
        with start_worker(
            app, pool="worker.delivery.pool:TaskPool", concurrency=1, perform_ping_check=False
        ) as worker:
            app.direct_queue = names.direct_queue(worker.hostname)
            yield app
    here.redis.close()


@pytest.fixture
def ask(app, monkeypatch):
    """Sends a request and waits for its answer: (answer, vectors)."""
    here = runtime.here()
    monkeypatch.setattr(answers, "BUSY_PAUSE_S", 0.01)
    desk.outcomes, desk.asked = [], 0

    def ask(name, *outcomes, request_id=None, args=(), queue=names.EMBED, headers=None, **payload):
        desk.outcomes += outcomes
        request_id = request_id or str(uuid.uuid4())
        app.send_task(
            name, args=args, kwargs=payload, task_id=request_id, queue=queue, headers=headers
        )
        answer = here.keys.answer(request_id)
        frame = here.redis.blmove(answer, answer, 20)
        assert frame, "no answer"
        return codec.unpack_answer(frame)

    return ask


def test_what_the_body_returns_is_the_answer(ask):
    assert ask("test.load", GOOD, model="m") == (GOOD, None)


def test_vectors_travel_beside_their_description(ask):
    rows = np.eye(2, 4, dtype=np.float32)
    told = Embedded(model="m", dimension=4, fingerprint="f", items=2)
    answer, vectors = ask("test.embed", (told, rows), request_id="r1", texts=["a", "b"])
    assert answer == told
    np.testing.assert_array_equal(vectors, rows)


def test_the_body_is_told_the_callers_id_and_the_time_in_the_queue(ask):
    headers = {names.CORRELATION: "order-7", names.SENT_AT: time.time() - 5}
    ask("test.load", GOOD, headers=headers, model="m")
    assert desk.correlation == "order-7"
    assert desk.call.waited_s >= 5
    ask("test.load", GOOD, request_id="r2", model="m")
    assert desk.correlation == "r2"
    assert desk.call.waited_s == 0.0


@pytest.mark.parametrize(
    "sent_at",
    ["noon", [1], {}, float("nan"), float("-inf"), 10**400],
    ids=["word", "list", "object", "nan", "infinite", "huge"],
)
def test_a_time_of_sending_that_is_none_costs_the_caller_nothing(ask, sent_at):
    ask("test.load", GOOD, headers={names.SENT_AT: sent_at}, model="m")
    assert desk.call.waited_s == 0.0


@pytest.fixture
def times_begun(ask):
    """How often a request is begun that has its answer already, as a function."""
    here = runtime.here()
    end = {"deadline": time.time() + 60}

    def sent(name, request_id, headers=None, **payload):
        sealed = signed(payload | end, task=name, request=request_id, settings=here.settings)
        ask(name, GOOD, request_id=request_id, headers=headers, **sealed)

    def times_begun(name, **payload):
        here.redis.rpush(here.keys.answer("r3"), codec.pack_answer(GOOD))
        sent(name, "r3", **payload)
        sent("test.load", "r4", model="m")  # after it: there is one thread
        return desk.asked - 1

    yield times_begun
    here.redis.delete(here.keys.answer("r3"), here.keys.answer("r4"))


@pytest.mark.parametrize("first", [True, False])
def test_an_embedding_sent_for_the_first_time_is_begun_without_asking(times_begun, first):
    assert times_begun("test.embed", headers={names.FIRST: first}, texts=["a"]) == int(first)


def test_what_moves_models_is_asked_about_though_it_says_it_is_sent_once(times_begun):
    """Its client's connection may have been lost in the push, and it was pushed again."""
    assert times_begun("test.load", headers={names.FIRST: True}, model="m") == 0


def test_who_hears_a_signed_request_cannot_have_it_done_again(times_begun, monkeypatch):
    here = runtime.here()
    monkeypatch.setattr(
        here, "settings", WorkerSettings.read(redis_url=here.settings.url(), signing_key="k" * 32)
    )
    assert times_begun("test.embed", headers={names.FIRST: True}, texts=["a"]) == 0


def test_an_id_that_would_forge_a_line_of_the_log_is_not_taken_over(ask):
    ask("test.load", GOOD, request_id="r3", headers={names.CORRELATION: "a\nb"}, model="m")
    assert desk.correlation == "r3"


def test_an_answer_expires(ask, app):
    here = runtime.here()
    app.send_task("test.load", kwargs={}, task_id="nobody waits", queue=names.EMBED)
    ask("test.load", request_id="after it")
    assert 0 < here.redis.ttl(here.keys.answer("nobody waits")) <= 60


def test_every_mistake_in_a_request_gets_a_sentence_and_no_work_is_done(ask):
    answer, _ = ask("test.embed", texts=["a"], dtype="float8", wurst=1)
    assert answer.failure.code == "bad_request"
    assert "dtype: Input should be 'float32' or 'float16'" in answer.failure.message
    assert "wurst: Extra inputs are not permitted" in answer.failure.message
    assert desk.asked == 0


def test_fields_given_by_position_are_refused_and_not_lost(ask):
    answer, _ = ask("test.load", args=["m"])
    assert "by name" in answer.failure.message


def test_a_newer_wire_version_is_refused_with_what_to_do(ask):
    answer, _ = ask("test.load", model="m", wire=2, colour="red")
    assert answer.failure.code == "bad_request"
    assert "update the workers" in answer.failure.message


def test_nobody_works_for_a_caller_who_has_gone(ask):
    answer, _ = ask("test.load", model="m", deadline=time.time() - 1)
    assert (answer.failure.code, answer.failure.retryable) == ("expired", True)
    assert desk.asked == 0


def test_an_error_made_on_purpose_reaches_the_caller_without_a_traceback_in_the_log(ask, caplog):
    with caplog.at_level(logging.INFO):
        answer, _ = ask("test.load", LoadFailed("no such file"), model="m")
    assert answer.failure.error().args == ("no such file",)
    assert isinstance(answer.failure.error(), LoadFailed)
    assert "Traceback" not in caplog.text


def test_an_unexpected_error_is_logged_once_and_its_inside_is_not_told(ask, caplog):
    with caplog.at_level(logging.INFO):
        answer, _ = ask("test.load", ZeroDivisionError("secret"), model="m", request_id="abc")
    assert answer.failure.code == "backend_failed"
    assert "secret" not in answer.failure.message
    assert "abc" in answer.failure.message
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert len(tracebacks) == 1
    assert "secret" in str(tracebacks[0].exc_info[1])


@pytest.mark.parametrize("direct", [False, True])
def test_a_busy_model_is_tried_again_before_the_caller_hears_of_it(ask, app, direct):
    queue = app.direct_queue if direct else names.EMBED
    busy = ModelBusy("all leased")
    answer, _ = ask("test.load", busy, busy, GOOD, model="m", queue=queue)
    assert answer == GOOD
    assert desk.asked == 3


def test_a_model_that_stays_busy_is_refused_after_the_last_try(ask):
    answer, _ = ask("test.load", *[ModelBusy("all leased")] * BUSY_TRIES, model="m")
    assert isinstance(answer, Refused)
    assert (answer.failure.code, answer.failure.retryable) == ("model_busy", True)
    assert desk.asked == BUSY_TRIES


def test_a_try_that_cannot_be_sent_sends_the_request_back_to_its_queue(ask, monkeypatch):
    def away(*_, **__):
        raise redis.ConnectionError("away")

    monkeypatch.setattr(Signature, "apply_async", away)
    answer, _ = ask("test.load", ModelBusy("all leased"), GOOD, model="m")
    assert answer == GOOD
    assert desk.asked == 2


def test_a_request_over_its_time_limit_is_answered_as_cancelled(ask):
    answer, _ = ask("test.load", SoftTimeLimitExceeded("over 9 s"), model="m")
    assert answer.failure.code == "cancelled"
    assert "over 9 s" in answer.failure.message


@pytest.mark.parametrize("retries", ["many", None, [1], {"a": 1}])
def test_who_sent_an_odd_number_of_tries_hears_that_the_model_is_busy(ask, retries):
    answer, _ = ask("test.load", ModelBusy("leased"), model="m", headers={"retries": retries})
    assert answer.failure.code == "model_busy"


def test_a_busy_model_is_not_tried_beyond_the_deadline(ask, monkeypatch):
    monkeypatch.setattr(answers, "BUSY_PAUSE_S", 100.0)
    monkeypatch.setattr(answers, "BUSY_PAUSE_MAX_S", 100.0)
    answer, _ = ask("test.load", ModelBusy("leased"), model="m", deadline=time.time() + 40)
    assert answer.failure.code == "model_busy"
    assert desk.asked == 1


def test_a_request_that_was_delivered_twice_is_worked_on_once(ask, app):
    ask("test.load", GOOD, model="m", request_id="twice")
    app.send_task("test.load", kwargs={"model": "m"}, task_id="twice", queue=names.EMBED)
    ask("test.load", GOOD, model="m")  # the queue is in order: this one comes after it
    assert desk.asked == 2


def test_a_request_is_worked_on_once_though_its_answer_goes_before_its_deadline(ask, app):
    here = runtime.here()
    late = {"model": "m", "deadline": time.time() + 3600}
    ask("test.load", GOOD, request_id="late", **late)
    here.redis.delete(here.keys.answer("late"))  # as if its time were over
    app.send_task("test.load", kwargs=late, task_id="late", queue=names.EMBED)
    ask("test.load", GOOD, model="m")
    assert desk.asked == 2


def test_a_request_revoked_while_it_runs_is_answered_as_cancelled(ask, app):
    def until_revoked():
        app.control.revoke("revoked", terminate=True)
        give_up_at = time.monotonic() + 20
        while cancelled() is None and time.monotonic() < give_up_at:
            time.sleep(0.01)
        stop_if_cancelled()

    answer, _ = ask("test.load", until_revoked, model="m", request_id="revoked")
    assert (answer.failure.code, answer.failure.message) == (
        "cancelled",
        "the request was stopped: revoked",
    )


def test_a_request_that_a_shutdown_interrupts_goes_back_to_its_queue(ask, monkeypatch):
    reasons = iter([Reason.SHUTDOWN])
    # Not for the task before, which may be on its last lines still.
    monkeypatch.setattr(answers, "cancelled", lambda: next(reasons, None) if desk.asked else None)
    answer, _ = ask("test.load", Cancelled("shutdown"), GOOD, model="m")
    assert answer == GOOD
    assert desk.asked == 2


def test_an_answer_that_finds_redis_away_sends_the_request_back_to_its_queue(ask, monkeypatch):
    written = []
    write = Start.answer

    def first_away(start, frame, **options):
        written.append(frame)
        if len(written) == 1:
            raise redis.ConnectionError("away")
        write(start, frame, **options)

    monkeypatch.setattr(Start, "answer", first_away)
    answer, _ = ask("test.load", GOOD, GOOD, model="m")
    assert answer == GOOD
    assert len(written) == 2


@pytest.mark.parametrize(
    "error",
    [
        DeviceLost("unspecified launch failure"),
        RuntimeError("CUDA error: unspecified launch failure\nCompile with..."),
    ],
)
def test_a_request_whose_device_is_lost_goes_back_to_its_queue_and_the_watchdog_hears(ask, error):
    desk.ends = []
    answer, _ = ask("test.load", error, GOOD, model="m")
    assert answer == GOOD
    assert [end.endswith("unspecified launch failure") for end in desk.ends] == [True]


def test_what_was_delivered_before_is_asked_about_though_it_was_sent_once(app):
    here, crash = runtime.here(), Crash(worker="gpu9@gone", at=5.0)
    for at in ("1.0", "2.0"):
        here.redis.hset(here.keys.started("again"), f"gpu9@gone {at}", crash.model_dump_json())
    text = Envelopes(app).write(
        "test.embed",
        {"texts": ["a"]},
        id="again",
        tag="t",
        queue=names.EMBED,
        step=names.INTERACTIVE,
        expires_at=time.time() + 20,
        shown="",
        headers={names.FIRST: True},
    )
    message = json.loads(text)
    message["properties"]["delivery_info"]["redelivered"] = True  # as kombu says it
    here.redis.lpush(here.keys.queue(names.EMBED, names.INTERACTIVE), json.dumps(message))
    answer = here.keys.answer("again")
    refused, _ = codec.unpack_answer(here.redis.blmove(answer, answer, 20))
    assert refused.failure.code == "quarantined"


def test_a_request_that_took_two_workers_down_is_set_aside_with_its_evidence(ask):
    here, crash = runtime.here(), Crash(worker="gpu9@gone", at=5.0)
    for at in ("1.0", "2.0"):
        here.redis.hset(here.keys.started("poison"), f"gpu9@gone {at}", crash.model_dump_json())
    told = {"texts": ["top secret"], "asked_by": "me", "signature": "as it came"}
    answer, _ = ask("test.embed", request_id="poison", **told)
    assert (answer.failure.code, answer.failure.retryable) == ("quarantined", False)
    assert desk.asked == 0
    assert not here.redis.exists(here.keys.started("poison"))
    kept = Evidence.model_validate_json(here.redis.hget(here.keys.quarantine, "poison"))
    assert (kept.crashes, kept.asked_by) == ((crash, crash), "me")
    assert kept.payload | {"signature": kept.signature} == told
    assert kept.items == ("a text of 10 characters",)
    assert kept.queue == names.EMBED


def test_pauses_double_up_to_a_bound_and_end(monkeypatch):
    monkeypatch.setattr(answers, "BUSY_PAUSE_MAX_S", 3.0)
    pauses = [busy_pause_s(retries, 1.0) for retries in range(BUSY_TRIES)]
    assert pauses == [0.5, 1.0, 2.0, 3.0, 3.0, None]
    assert busy_pause_s(0, 0.5) == 0.25


@pytest.mark.parametrize(("until_s", "left_s"), [(30.0, 29.0), (1.0, 0.5), (-9.0, 0.0)])
def test_a_caller_can_be_kept_waiting_for_as_long_as_it_is_there(monkeypatch, until_s, left_s):
    monkeypatch.setattr(time, "time", lambda: 1e9)
    request = EmbedBatch(texts=("a",), deadline=1e9 + until_s)
    assert Call("id", request, 0.0).left_s == pytest.approx(left_s)


def test_a_caller_without_a_deadline_waits_as_long_as_it_takes():
    assert Call("id", EmbedBatch(texts=("a",)), 0.0).left_s == math.inf


def test_at_most_five_mistakes_are_told():
    with pytest.raises(BadRequest, match=r"and 2 more$"):
        checked(Load, {"model": "m", **{f"field{n}": n for n in range(7)}})


def test_a_request_that_is_right_comes_back_frozen():
    assert checked(Load, {"model": "m"}) == Load(model="m")
