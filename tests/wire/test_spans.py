"""Spans: none unless asked for; one tree per caller when they are."""

import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api_client.wire import correlation, spans
from api_client.wire.errors import BadSettings
from api_client.wire.logs import LogSettings
from api_client.wire.otel import Recording
from api_client.wire.spans import Name

PAGE = Path(spans.__file__).parents[2] / "docs" / "traces.md"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def made():
    """What has been recorded so far, as a function: {name: spans}."""
    exporter = InMemorySpanExporter()
    recording = Recording("tests", instance="here", processor=SimpleSpanProcessor(exporter))

    def made():
        found = {}
        for span in exporter.get_finished_spans():
            found.setdefault(span.name, []).append(span)
        return found

    yield made
    recording.end()


def test_without_the_setting_nothing_is_recorded_and_nothing_is_made():
    spans.set_up(LogSettings.read(), service="tests", instance="here")
    assert spans.span(Name.LOAD, model="m") is spans.span(Name.LIFT)
    with spans.serving(GIVEN), spans.span(Name.LOAD):
        assert spans.caller() is None
        spans.past(Name.FORWARD, 0.0, 1.0)
        spans.served(method="GET", route="/", status=200)


def test_a_span_that_cannot_be_made_stops_nobody(made, caplog):
    spans.past(Name.FORWARD, 0.0, float("nan"))
    assert made() == {}
    assert "no span clipyard.forward" in caplog.text


def test_without_the_extra_the_setting_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "api_client.wire.otel")
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.celery", None)
    with pytest.raises(BadSettings, match=r"pip install -e '\.\[otel\]'"):
        spans.set_up(LogSettings.read(traces=True), service="tests", instance="here")


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"OTEL_TRACES_EXPORTER": "smoke"}, "smoke"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp_proto_grpc"),
    ],
)
def test_an_exporter_that_is_not_installed_stops_the_start(env, told, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings, match=rf"no exporter '{told}' here, only .*otlp_proto_http"):
        spans.set_up(LogSettings.read(traces=True), service="tests", instance="here")
    assert spans.caller() is None


def test_what_the_environment_calls_the_service_wins(monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=pictures,deployment=north")
    recording = Recording("clipyard-worker", instance="gpu0@a")
    try:
        told = recording.resource.attributes
    finally:
        recording.end()
    assert told["service.name"] == "pictures"
    assert (told["service.instance.id"], told["deployment"]) == ("gpu0@a", "north")


def test_an_http_request_continues_its_callers_trace_and_is_named_by_its_route(made):
    with correlation.about("order-7"), spans.serving(GIVEN):
        with spans.span(Name.LOAD, model="clip/a", bytes=7):
            pass
        spans.served(method="POST", route="/v1/embeddings", status=503)
    [request], [load] = made()["POST /v1/embeddings"], made()[Name.LOAD]
    assert f"{request.context.trace_id:x}" == TRACE
    assert f"{request.parent.span_id:016x}" == PARENT
    assert not request.status.is_ok
    assert load.parent.span_id == request.context.span_id
    assert dict(load.attributes) == {
        "clipyard.model": "clip/a",
        "clipyard.bytes": 7,
        "clipyard.correlation": "order-7",
    }


def test_what_nobody_asked_for_is_nobodys_trace(made):
    with spans.span(Name.LOAD, model="clip/a"):
        spans.past(Name.DECODE, 0.0, 1.0)
    spans.past(Name.FORWARD, 0.0, 1.0, callers=[None])
    assert made() == {}


def test_a_block_that_raises_shows_the_error(made):
    with pytest.raises(KeyError), spans.serving(GIVEN), spans.span(Name.LOAD):
        raise KeyError("half of the file is missing")
    [load] = made()[Name.LOAD]
    assert not load.status.is_ok
    assert "half of the file is missing" in load.events[0].attributes["exception.message"]


def test_what_is_told_afterwards_costs_nobody_a_thread(made, monkeypatch, caplog):
    monkeypatch.setattr(Recording, "caller", lambda self: 1 / 0)
    spans.past(Name.FORWARD, 0.0, 1.0)
    assert "no span clipyard.forward" in caplog.text


def test_a_shared_pass_is_in_every_callers_trace_and_links_to_each_of_the_others(made):
    callers = []
    for _ in range(3):
        with spans.serving({}):
            callers.append(spans.caller())
    spans.past(Name.FORWARD, 10.0, 12.5, callers=[callers[0], *callers, None], rows=4)
    stands_for_all, *others = made()[Name.FORWARD]
    assert [link.context for link in stands_for_all.links] == callers[1:]
    for span, caller in zip((stands_for_all, *others), callers, strict=True):
        assert (span.context.trace_id, span.parent.span_id) == (caller.trace_id, caller.span_id)
        assert span.end_time - span.start_time == pytest.approx(2.5e9, abs=1e7)
    for span in others:
        assert [link.context for link in span.links] == [stands_for_all.context]


def test_every_span_is_documented():
    page = PAGE.read_text()
    assert [name for name in Name if f"| `{name}` |" not in page] == []
