from dataclasses import replace
from pathlib import Path

from api_client.gateway import child
from api_client.gateway.connection import DRAIN_S
from api_client.stack.child import Running
from tests.flow.processes import until


def test_the_gateway_of_a_stack_is_shown_where_the_settings_let_it_listen(monkeypatch):
    assert child.extra().address == "http://127.0.0.1:7000"
    monkeypatch.setenv("CLIPYARD_GATEWAY_PORT", "7001")
    assert child.extra().address == "http://127.0.0.1:7001"
    monkeypatch.setenv("CLIPYARD_GATEWAY_HOST", "::1")
    assert child.extra().address == "http://[::1]:7001"


def test_its_logs_are_where_up_was_called(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert child.extra().env == {}
    monkeypatch.setenv("CLIPYARD_LOG_DIR", "logs")
    assert child.extra().env == {"CLIPYARD_LOG_DIR": str(tmp_path / "logs")}


def test_who_cannot_be_waited_for_is_told_so_before_it_is_killed():
    assert child.extra().grace_s > DRAIN_S


def test_a_stack_hears_that_it_is_ready_whatever_is_logged(monkeypatch, tmp_path):
    for name, value in {
        "LOG_LEVEL": "ERROR",
        "GATEWAY_PORT": "0",
        "REDIS_URL": "redis://h",
    }.items():
        monkeypatch.setenv(f"CLIPYARD_{name}", value)
    gateway = replace(child.extra(), cwd=Path(child.__file__).parents[2])
    running = Running(gateway, log=tmp_path / "gateway.log")
    try:
        until(lambda: gateway.ready(running.said()))
    finally:
        running.end()
