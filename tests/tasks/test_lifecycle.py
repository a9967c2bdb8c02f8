import os
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import pytest
from celery.contrib.testing.worker import start_worker

from api_client.status import read_fleet
from api_client.wire import codec, names
from api_client.wire.broker import celery_app
from api_client.wire.codec import unpack_record
from api_client.wire.messages import Event, Knobs
from tests.tasks import fleet
from worker import runtime
from worker.backends import content
from worker.backends.base import Placement
from worker.backends.registry import BUILT_IN, Families
from worker.catalogue import BUILT_IN as CATALOGUE
from worker.catalogue import Catalogue
from worker.delivery import answers
from worker.residency.ledger import Ledger
from worker.residency.slots import Slots
from worker.settings import WorkerSettings

NODE = "gpu0@here"


@pytest.fixture(scope="module")
def app(valkey_url):
    settings = WorkerSettings.read(redis_url=valkey_url, key_prefix="lifecycle", default_model="a")
    app = celery_app(settings, include=fleet.TASKS)
    app.set_default()
    with start_worker(app, pool="threads", concurrency=4, perform_ping_check=False) as worker:
        app.node = worker.hostname
        yield app


@pytest.fixture
def here(app, valkey_url, monkeypatch):
    settings = WorkerSettings.read(
        redis_url=valkey_url, key_prefix="lifecycle", default_model="clip/a"
    )
    here = fleet.parts(settings, app.node)
    monkeypatch.setattr(runtime, "here", lambda: here)
    monkeypatch.setattr(answers, "BUSY_TRIES", 1)
    yield here
    fleet.stop(here)


@pytest.fixture
def ask(app, here):
    """Sends a request to the worker's direct queue and waits for its answer."""

    def ask(task, **fields):
        request_id = str(uuid.uuid4())
        queue = names.direct_queue(app.node)
        app.send_task(task, kwargs=fields, task_id=request_id, queue=queue)
        answer = here.keys.answer(request_id)
        frame = here.redis.blmove(answer, answer, 20)
        assert frame, "no answer"
        return codec.unpack_answer(frame)[0]

    return ask


@pytest.fixture
def using(app, here):
    """Has a task use a model; gives what ends it."""
    bells = []

    def using(model):
        bell = str(uuid.uuid4())
        bells.append(bell)
        app.send_task("test.hold", kwargs={"model": model, "bell": bell}, queue=names.EMBED)
        assert here.redis.blpop([f"{bell}:held"], timeout=20)
        return lambda: here.redis.rpush(f"{bell}:let go", 1)

    yield using
    for bell in bells:
        here.redis.rpush(f"{bell}:let go", 1)


def held(here):
    return {slot.model_id: slot.tier for slot in here.slots.view()}


def test_load_brings_a_model_onto_the_device_by_id_or_alias(ask, here):
    answer = ask(names.LOAD, model="a")
    assert (answer.model, answer.changed, answer.worker) == ("clip/a", True, here.node)
    assert held(here) == {"clip/a": "device"}


def test_a_second_load_finds_nothing_to_do_and_says_so(ask):
    ask(names.LOAD, model="a")
    answer = ask(names.LOAD, model="a")
    assert not answer.changed
    assert "on the device already" in answer.message


def test_an_unknown_model_is_refused_with_the_nearest_names(ask, here):
    answer = ask(names.LOAD, model="clip/z")
    assert answer.failure.code == "unknown_model"
    assert "clip/a" in answer.failure.message
    assert held(here) == {}


def test_a_load_that_fails_evicts_nobody(ask, here):
    ask(names.LOAD, model="a")
    ask(names.LOAD, model="b")
    answer = ask(names.LOAD, model="clip/broken")
    assert answer.failure.code == "load_failed"
    assert "half of the file" in answer.failure.message
    assert held(here) == {"clip/a": "device", "clip/b": "device"}


def test_reload_reads_the_model_again(ask, here):
    ask(names.LOAD, model="a")
    loaded_at = here.slots.view()[0].loaded_at
    assert ask(names.RELOAD, model="a").changed
    assert here.slots.view()[0].loaded_at > loaded_at


@pytest.fixture
def checkpoint(here, tmp_path, monkeypatch):
    """The file of a model of open_clip, which the worker has then; its entry wants this content."""
    entry = Catalogue.read(CATALOGUE)["shapes/demo"]
    file = tmp_path / "weights.safetensors"
    shutil.copyfile(entry.checkpoint, file)
    entry = replace(entry, checkpoint=file, sha256=content.sha256(file))
    families = Families(Placement(cache_dir=tmp_path / "cache"))
    families.check(entry)  # the first one imports torch, for longer than an answer is waited for
    own = Slots(
        check=families.check,
        load=families.load,
        limits=here.slots.limits,
        ledger=Ledger(),
        unified=True,
    )
    parts = {"catalogue": Catalogue([entry]), "families": families, "slots": own}
    for name, part in parts.items():
        monkeypatch.setattr(here, name, part)
    return file


def cut_short(file):
    os.truncate(file, 1000)


def write_other_weights(file):
    file.write_bytes(file.read_bytes()[:-2] + b"\0\0")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [(cut_short, "truncated or corrupt"), (write_other_weights, "does not have the SHA-256")],
)
def test_a_model_whose_file_is_spoilt_stays_as_it_was_when_it_is_to_be_read_again(
    ask, here, checkpoint, spoil, told
):
    ask(names.LOAD, model="shapes/demo")
    before = here.slots.view()
    spoil(checkpoint)
    assert told in ask(names.RELOAD, model="shapes/demo").failure.message
    assert here.slots.view() == before


def test_a_model_that_is_to_stay_still_is_once_it_was_read_again(ask, here):
    ask(names.LOAD, model="a", keep_alive_s=-1)
    ask(names.RELOAD, model="a")
    assert here.slots.view()[0].keep_alive_s == -1


def test_switch_brings_the_new_model_and_the_one_before_it_goes(ask, here):
    ask(names.LOAD, model="a")
    answer = ask(names.SWITCH, model="b")
    assert answer.message == "switched from clip/a to clip/b"
    assert held(here) == {"clip/b": "device"}
    assert here.tracker.current() == "clip/b"


def test_a_switch_to_the_current_model_changes_nothing(ask, here):
    ask(names.LOAD, model="a")
    answer = ask(names.SWITCH, model="a")
    assert (answer.changed, answer.message) == (False, "clip/a was the current model already")
    assert held(here) == {"clip/a": "device"}


def test_a_switch_that_fails_leaves_the_model_before_it_current(ask, here):
    ask(names.LOAD, model="a")
    assert ask(names.SWITCH, model="clip/broken").failure.code == "load_failed"
    assert here.tracker.current() == "clip/a"
    assert held(here) == {"clip/a": "device"}


def test_a_switch_of_the_fleet_is_known_when_it_is_answered(ask, here):
    ask(names.SWITCH, model="b", reach="fleet")
    assert here.redis.get(here.keys.current) == b"clip/b"


def test_a_switch_away_from_a_model_in_use_lets_it_finish(ask, here, using):
    let_go = using("a")
    answer = ask(names.SWITCH, model="b", deadline=time.time() + 3)
    assert "clip/a is in use" in answer.message
    assert here.tracker.current() == "clip/b"
    assert held(here) == {"clip/a": "device", "clip/b": "device"}
    let_go()


def test_a_switch_helps_out_of_a_current_model_that_nobody_knows(ask, here):
    here.tracker.make_current("clip/gone", reach="worker")
    assert ask(names.SWITCH, model="a").message == "switched from clip/gone to clip/a"


def test_a_pinned_model_stays_when_another_becomes_current(ask, here):
    ask(names.SET, knobs={"pinned": ["a"]})
    ask(names.LOAD, model="a")
    ask(names.SWITCH, model="b")
    assert held(here) == {"clip/a": "device", "clip/b": "device"}


def test_unload_of_a_leased_model_waits_and_then_says_who_is_busy(ask, here, using):
    let_go = using("a")
    answer = ask(names.UNLOAD, model="a", deadline=time.time() + 1.5)
    assert (answer.failure.code, answer.failure.retryable) == ("model_busy", True)
    assert held(here) == {"clip/a": "device"}
    let_go()
    assert ask(names.UNLOAD, model="a", deadline=time.time() + 20).changed
    assert held(here) == {}


def test_unload_without_a_name_takes_the_current_model(ask, here):
    ask(names.LOAD, model="a")
    ask(names.LOAD, model="c")
    assert ask(names.UNLOAD).message == "unloaded clip/a"
    assert held(here) == {"text/c": "device"}


def test_unload_of_what_is_not_there_is_no_error(ask):
    answer = ask(names.UNLOAD, model="a")
    assert (answer.changed, answer.message) == (False, "clip/a was not in memory")


@pytest.mark.parametrize(
    ("scope", "left"), [("vision", {"text/c"}), ("text", {"clip/a"}), ("everything", set())]
)
def test_unload_by_kind(ask, here, scope, left):
    ask(names.LOAD, model="a")
    ask(names.LOAD, model="c")
    assert ask(names.UNLOAD, scope=scope).changed
    assert set(held(here)) == left


def test_unload_by_family(ask, here):
    here.slots.load(here.catalogue["clip/a"])
    nobody = ask(names.UNLOAD, scope="family", family="ollama")
    assert (nobody.changed, nobody.message) == (False, "unloaded nothing")
    assert ask(names.UNLOAD, scope="family", family="fake").message == "unloaded clip/a"


def test_a_family_that_nobody_knows_is_refused_with_those_there_are(ask):
    refused = ask(names.UNLOAD, scope="family", family="typo").failure
    assert refused.code == "bad_request"
    assert refused.message == f"no model family 'typo'; there are {', '.join(sorted(BUILT_IN))}"


@pytest.mark.parametrize("fields", [{"scope": "family"}, {"family": "fake"}])
def test_a_family_and_its_scope_go_together(ask, fields):
    assert "family" in ask(names.UNLOAD, **fields).failure.message


def test_unload_of_everything_leaves_what_is_in_use_and_names_it(ask, here, using):
    using("a")
    ask(names.LOAD, model="c")
    answer = ask(names.UNLOAD, scope="everything", deadline=time.time() + 1.5)
    assert answer.message == "unloaded text/c; still in use: clip/a"
    assert set(held(here)) == {"clip/a"}


def test_unload_of_what_is_due_leaves_what_is_under_pressure_alone_and_the_other_way_round(
    ask, here
):
    ask(names.LOAD, model="a")
    here.tracker.change(Knobs(vision_vram_timeout_s=0.0))
    assert ask(names.UNLOAD, scope="pressure").message == "nothing had to go"
    assert "clip/a: idle in VRAM" in ask(names.UNLOAD, scope="timeout").message
    ask(names.LOAD, model="a")
    here.tracker.change(Knobs(vision_vram_timeout_s=600.0, pressure_timeout_s=0.0))
    here.fake.device.take(850)
    assert ask(names.UNLOAD, scope="timeout").message == "nothing had to go"
    assert "pressure" in ask(names.UNLOAD, scope="pressure").message
    here.fake.device.give(850)


def test_with_each_move_it_is_told_who_asked_for_it(ask, here):
    here.redis.delete(here.keys.events)
    here.tracker.change(Knobs(text_vram_timeout_s=0.0))
    ask(names.LOAD, model="a", asked_by="one")
    ask(names.SWITCH, model="b", asked_by="two")
    ask(names.UNLOAD, scope="vision", asked_by="three")
    ask(names.LOAD, model="c", asked_by="four")
    ask(names.UNLOAD, scope="timeout", asked_by="five")
    ask(names.UNLOAD, model="c", asked_by="six")
    entries = here.redis.xrange(here.keys.events)
    events = [unpack_record(Event, fields) for _, fields in entries]
    assert [(event.asked_by, event.kind, event.model) for event in events] == [
        ("one", "loaded", "clip/a"),
        ("one", "lifted", "clip/a"),
        ("two", "loaded", "clip/b"),
        ("two", "lifted", "clip/b"),
        ("two", "unloaded", "clip/a"),
        ("three", "unloaded", "clip/b"),
        ("four", "loaded", "text/c"),
        ("four", "lifted", "text/c"),
        ("five", "lowered", "text/c"),
        ("six", "unloaded", "text/c"),
    ]


def test_a_scope_and_a_model_contradict_each_other(ask):
    answer = ask(names.UNLOAD, model="a", scope="vision")
    assert answer.failure.code == "bad_request"


def test_set_changes_limits_and_pins_at_once_and_tells_what_they_were(ask, here):
    ask(names.LOAD, model="a")
    ask(names.LOAD, model="b")
    answer = ask(names.SET, knobs={"slots": 1, "vision_vram_timeout_s": 5})
    assert answer.changed
    assert "slots 2 -> 1" in answer.message
    assert "vision_vram_timeout_s 600.0 -> 5.0" in answer.message
    assert held(here) == {"clip/a": "host", "clip/b": "device"}
    here.tracker.beat()
    [worker] = read_fleet(here.redis, here.keys).workers
    assert worker.settings["slots"] == "1"


def test_of_two_who_set_something_at_once_both_have_it(ask, here, monkeypatch):
    others, limits = [], runtime.limits

    def interrupted(settings):
        if not others:  # the other one comes now
            others.append(callers.submit(ask, names.SET, knobs={"pinned": ["a"]}))
            wait(others, timeout=0.2)
        return limits(settings)

    monkeypatch.setattr(runtime, "limits", interrupted)
    with ThreadPoolExecutor() as callers:
        ask(names.SET, knobs={"slots": 1})
    assert others[0].result().changed
    assert (here.slots.limits.slots, here.slots.limits.pinned) == (1, {"clip/a"})


def test_what_was_set_is_told_as_it_would_be_set_again(ask):
    answer = ask(names.SET, knobs={"pinned": ["a"], "adaptive_timeouts": True})
    assert answer.message == 'pinned [] -> ["clip/a"], adaptive_timeouts false -> true'


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"slots": 0}, "knobs.slots"),
        ({"pressure_threshold": 1.5}, "knobs.pressure_threshold"),
        ({"vision_ram_timeout_s": "NaN"}, "knobs.vision_ram_timeout_s"),
        ({"colour": "red"}, "knobs.colour"),
        ({"pinned": ["clip/z"]}, "no model 'clip/z'"),
    ],
)
def test_a_wrong_setting_is_refused_by_name_and_nothing_changes(ask, here, knobs, told):
    answer = ask(names.SET, knobs={"text_ram_timeout_s": 1, **knobs})
    assert told in answer.failure.message
    assert here.tracker.settings.text_ram_timeout_s == 1800


def test_commands_are_answered_while_the_worker_is_busy(ask, here, using):
    for _ in range(2):
        using("a")
    assert ask(names.LOAD, model="c").changed
    assert ask(names.UNLOAD, model="c").changed
