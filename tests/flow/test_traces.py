"""One request's spans, from an HTTP header to the forward pass in another process."""

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api_client.aio import AsyncClient
from api_client.gateway.app import build
from api_client.gateway.settings import GatewaySettings
from api_client.wire import names
from api_client.wire.otel import Recording
from api_client.wire.spans import Name

TRACE, PARENT = bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736"), 0x00F067AA0BA902B7
RUN = f"run/{names.EMBED_BATCH}"


@pytest.fixture
def gateway(fleet):
    """A gateway in this process, and what it records."""
    exporter = InMemorySpanExporter()
    recording = Recording("gateway", instance="here", processor=SimpleSpanProcessor(exporter))
    settings = GatewaySettings.read(redis_url=fleet.url)
    app = build(AsyncClient(settings, asked_by="gateway"), settings)
    with TestClient(app, base_url="http://localhost") as http:
        yield http, exporter
    recording.end()


def test_a_request_is_one_trace_from_its_caller_to_the_batch(gateway, traces, caller):
    http, exporter = gateway
    caller.unload(scope="everything")
    header = {"traceparent": f"00-{TRACE.hex()}-{PARENT:016x}-01", "X-Request-ID": "order-7"}
    asked = http.post("/v1/embeddings", json={"input": ["a canary sings"]}, headers=header)
    assert asked.status_code == 200, asked.text

    here = {span.name: span for span in exporter.get_finished_spans()}
    served, sent = here["POST /v1/embeddings"], here[f"apply_async/{names.EMBED_BATCH}"]
    assert served.parent.span_id == PARENT
    assert sent.context.trace_id == int.from_bytes(TRACE)

    who, run = traces.until(lambda span: (span.name, span.trace_id) == (RUN, TRACE))
    assert who["service.name"] == "clipyard-worker"
    assert who["service.instance.id"].startswith("cpu")
    assert int.from_bytes(run.parent_span_id) == sent.context.span_id
    there = {span.name: span for span in traces.all() if span.trace_id == TRACE}
    for name in (Name.QUEUE, Name.LEASE, Name.DECODE, Name.FORWARD):
        assert there[name].parent_span_id == run.span_id
    for name in (Name.LOAD, Name.LIFT):
        assert there[name].parent_span_id == there[Name.LEASE].span_id
    about = {pair.key: pair.value.string_value for pair in there[Name.LOAD].attributes}
    assert about["clipyard.correlation"] == "order-7"
    assert not any(b"canary" in span.SerializeToString() for span in there.values())


def test_heart_beats_and_what_else_nobody_asked_for_begin_no_trace(traces, caller):
    caller.load("fake/vision")
    traces.until(lambda span: span.name == f"run/{names.LOAD}")
    began = {span.name for span in traces.all() if not span.parent_span_id}
    assert began
    assert {name.partition("/")[0] for name in began} <= {"run", "apply_async"}
