"""A collector of OpenTelemetry on loopback: what a process sends by OTLP over HTTP, in memory."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

BOUND_S = 30.0


class Collector:
    """Attributes:
    url: for OTEL_EXPORTER_OTLP_ENDPOINT.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._spans: list[tuple[dict[str, str], Any]] = []
        self._more = threading.Condition()

    def take(self, body: bytes) -> None:
        found = ExportTraceServiceRequest.FromString(body)
        with self._more:
            for part in found.resource_spans:
                who = {pair.key: pair.value.string_value for pair in part.resource.attributes}
                self._spans += [(who, span) for scope in part.scope_spans for span in scope.spans]
            self._more.notify_all()

    def until(self, wanted: Callable[[Any], bool]) -> tuple[dict[str, str], Any]:
        """The first span like that, and who sent it; waits for it."""
        with self._more:
            found = self._more.wait_for(
                lambda: [pair for pair in self._spans if wanted(pair[1])], BOUND_S
            )
            assert found, [span.name for _, span in self._spans]
            return found[0]

    def all(self) -> list[Any]:
        with self._more:
            return [span for _, span in self._spans]


@contextmanager
def collector() -> Iterator[Collector]:
    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collected.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """The test's output is for the test."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
    collected = Collector(server.server_port)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collected
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
