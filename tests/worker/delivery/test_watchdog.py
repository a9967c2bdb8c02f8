import threading
from types import SimpleNamespace

import pytest

from worker.delivery import transport, watchdog
from worker.delivery.watchdog import EXIT_CODE, LOOK_S, Watch, Watchdog


def test_a_pass_is_watched_as_long_as_it_grows_older():
    watch = Watch()
    assert [watch.look(age) for age in (0, 1, 2, 3)] == [0, 1, 2, 3]


def test_another_pass_begins_anew():
    watch = Watch()
    watch.look(1.5)
    assert watch.look(0.5) == 0
    assert watch.look(0.0) == 0


def test_a_process_that_was_stopped_for_an_hour_does_not_take_its_pass_for_wedged():
    watch = Watch()
    watch.look(0.5)
    assert watch.look(3600) <= 2.5 * LOOK_S


class Process:
    """What a watchdog sees of its process, and does to it."""

    def __init__(self, *, say=lambda reason: None):
        self.active_s, self.told = 0.0, []
        self.ended = threading.Event()
        self.dog = Watchdog(pulse=self.pulse, wedged_after_s=30, say=self.say(say), exit=self.exit)

    def pulse(self):
        self.active_s += 20
        return SimpleNamespace(active_s=self.active_s)

    def say(self, then):
        def say(reason):
            self.told.append(reason)
            then(reason)

        return say

    def give_back(self):
        self.told.append("given back")
        return 3

    def exit(self, code):
        self.told.append(code)
        self.ended.set()


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(watchdog, "LAST_MESSAGE_S", 0)
    monkeypatch.setattr(watchdog, "LOOK_S", 0.01)
    monkeypatch.setattr(transport.Channel, "listens", True)


@pytest.mark.usefixtures("hurried")
def test_a_wedged_worker_says_so_gives_its_messages_back_and_ends_with_its_own_code(monkeypatch):
    monkeypatch.setattr(Watch, "look", lambda self, active_s: active_s)
    process = Process()
    process.dog.start(process.give_back)
    assert process.ended.wait(10)
    assert "forward pass" in process.told[0]
    assert process.told[1:] == ["given back", EXIT_CODE]
    assert not transport.Channel.listens


@pytest.mark.usefixtures("hurried")
def test_a_lost_device_ends_it_at_once_and_the_first_reason_counts():
    process = Process()
    process.dog.end("the device is lost")
    process.dog.end("something else")
    process.dog.start(process.give_back)
    assert process.ended.wait(10)
    assert process.told[0].startswith("the device is lost")


@pytest.mark.usefixtures("hurried")
def test_it_ends_all_the_same_when_redis_does_not_answer(monkeypatch):
    monkeypatch.setattr(watchdog, "LAST_WORDS_S", 0.05)
    away = threading.Event()
    process = Process(say=lambda reason: away.wait(30))
    process.dog.end("the device is lost")
    process.dog.start(process.give_back)
    assert process.ended.wait(10)
    assert process.told[-1] == EXIT_CODE
    away.set()


@pytest.mark.usefixtures("hurried")
def test_a_worker_that_closes_is_not_watched_any_more(monkeypatch):
    monkeypatch.setattr(Watch, "look", lambda self, active_s: active_s)
    process = Process()
    process.dog.close()
    process.dog.start(process.give_back)
    assert not process.ended.wait(0.05)
