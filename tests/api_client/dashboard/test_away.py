"""Redis goes, and comes back, under a dashboard that runs."""

from types import SimpleNamespace

import httpx
import pytest
from kombu.exceptions import OperationalError

from api_client.dashboard import server
from api_client.wire.broker import celery_app
from api_client.wire.settings import Settings
from tests.fleet import PASSWORD
from tests.flow.processes import until

PATHS = ("/models/now", "/api/queues/length")
SOMEBODY = "somebody@here"


@pytest.fixture
def valkey_url(valkey_of_my_own):
    return valkey_of_my_own.url


def test_while_redis_is_away_it_says_so_and_when_it_is_back_it_goes_on(
    capfd, looking_on, valkey_of_my_own, prefix
):
    def ask(path):
        login = ("clipyard", PASSWORD)
        return httpx.get(f"http://{looking_on}{path}", auth=login, timeout=60)

    assert [ask(path).status_code for path in PATHS] == [200, 200]
    valkey_of_my_own.stop()
    for path in PATHS:
        answer = ask(path)
        assert answer.status_code == 503
        assert "cannot reach Redis" in answer.text
    assert [ask(path).status_code for path in ("/models", "/broker")] == [200, 200]
    valkey_of_my_own.start()
    assert [ask(path).status_code for path in PATHS] == [200, 200]
    settings = Settings.read(redis_url=valkey_of_my_own.url, key_prefix=prefix)
    with celery_app(settings) as app, app.connection() as connection:
        dispatcher = app.events.Dispatcher(connection, hostname=SOMEBODY)

        def is_heard():
            dispatcher.send("worker-heartbeat")
            return SOMEBODY in ask("/metrics").text

        until(is_heard, within_s=60)
    assert "Traceback" not in capfd.readouterr().err


def test_a_page_that_has_seen_nothing_yet_does_not_say_how_it_was(
    looking_on, chromium, valkey_of_my_own
):
    valkey_of_my_own.stop()
    chromium.open(f"http://clipyard:{PASSWORD}@{looking_on}/models")
    chromium.see("document.getElementById('live').textContent.includes('cannot reach Redis')")
    assert chromium.run("return document.getElementById('well').textContent") == "Looking…"


def test_a_command_to_workers_fails_while_redis_is_away(valkey_of_my_own, prefix):
    settings = Settings.read(redis_url=valkey_of_my_own.url, key_prefix=prefix)
    with celery_app(settings) as app:
        server.give_up_soon(app)
        app.control.revoke("a")
        valkey_of_my_own.stop()
        with pytest.raises(OperationalError):
            app.control.revoke("b")


class Enough(BaseException):
    pass


def test_tasks_are_looked_for_as_often_after_an_hour_without_redis_as_at_once(monkeypatch, caplog):
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 20:
            raise Enough

    def refused():
        raise ConnectionRefusedError("nobody listens")

    monkeypatch.setattr(server.time, "sleep", pause)
    events = server._Events(SimpleNamespace(connection=refused), None, max_tasks_in_memory=1)
    with pytest.raises(Enough):
        events.run()
    assert set(pauses) == {server.AGAIN_S}
    assert [one.levelname for one in caplog.records] == ["WARNING"]
