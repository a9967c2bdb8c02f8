"""OpenTelemetry behind `spans`: the extra `otel`. Nobody else imports it.

The standard OTEL_* variables say where spans go, which are kept and what the service is called; see
docs/traces.md.
"""

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import trace
from opentelemetry.environment_variables import OTEL_TRACES_EXPORTER
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.propagate import extract
from opentelemetry.sdk.environment_variables import (
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
)
from opentelemetry.sdk.resources import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode

from . import correlation, spans
from .errors import BadSettings
from .spans import Caller, Name, Value

__all__ = ["Recording"]

OURS = "clipyard"
EXPORTERS = "opentelemetry_traces_exporter"  # the entry points of the packages that have one
PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}
SERVER_ERROR = 500


_celery: Any = CeleryInstrumentor()  # type: ignore[no-untyped-call]
_redis: Any = RedisInstrumentor()


class Recording:
    """Spans of this process, until `end`.

    Args:
        service: what it is called, unless OTEL_SERVICE_NAME says otherwise.
        instance: which of them it is.
        processor: takes the spans; None sends them where the environment says.

    Attributes:
        resource: what the spans say of this process.

    Raises:
        BadSettings: there is no such exporter here.
    """

    def __init__(
        self, service: str, *, instance: str, processor: SpanProcessor | None = None
    ) -> None:
        ours = Resource.create({SERVICE_NAME: service, SERVICE_INSTANCE_ID: instance})
        self.resource = ours.merge(OTELResourceDetector().detect())  # the environment wins
        self._provider = TracerProvider(resource=self.resource)
        # What Redis is asked outside of any request, such as heart-beats, is nobody's trace.
        within = TracerProvider(
            resource=self.resource, sampler=ParentBased(ALWAYS_OFF), shutdown_on_exit=False
        )
        if processor := processor or _processor():
            self._provider.add_span_processor(processor)
            within.add_span_processor(processor)
        self._root, self._within = self._provider.get_tracer(OURS), within.get_tracer(OURS)
        _celery.instrument(tracer_provider=self._provider)
        _redis.instrument(tracer_provider=within)
        spans.record(self)

    def end(self) -> None:
        """Send what is left; from now on there are no spans."""
        spans.record(None)
        _celery.uninstrument()
        _redis.uninstrument()
        self._provider.shutdown()

    def span(self, name: Name, about: Mapping[str, Value]) -> AbstractContextManager[object]:
        return self._within.start_as_current_span(name, attributes=_attributes(about))

    def past(
        self,
        name: Name,
        start: float,
        end: float,
        callers: Iterable[Caller | None] | None,
        about: Mapping[str, Value],
    ) -> None:
        whose = callers if callers is not None else (self.caller(),)
        places = (one for one in whose if isinstance(one, SpanContext))
        distinct = list({(one.trace_id, one.span_id): one for one in places}.values())
        since, until, attributes = _unix_ns(start), _unix_ns(end), _attributes(about)
        # The first one's span stands for all: it links to each of the others, and theirs to it.
        links = [Link(other) for other in distinct[1:]]
        for place in distinct:
            made = self._within.start_span(
                name,
                context=trace.set_span_in_context(trace.NonRecordingSpan(place)),
                links=links,
                attributes=attributes,
                start_time=since,
            )
            made.end(until)
            if place is distinct[0]:
                links = [Link(made.get_span_context())]

    def caller(self) -> Caller | None:
        place = trace.get_current_span().get_span_context()
        return place if place.is_valid else None

    def serving(self, headers: Mapping[str, str]) -> AbstractContextManager[object]:
        return self._root.start_as_current_span(
            "HTTP", context=extract(headers), kind=SpanKind.SERVER, attributes=_attributes({})
        )

    def served(self, method: str, route: str, status: int) -> None:
        here = trace.get_current_span()
        here.update_name(f"{method} {route}")
        here.set_attribute("http.request.method", method)
        here.set_attribute("http.route", route)
        here.set_attribute("http.response.status_code", status)
        if status >= SERVER_ERROR:
            here.set_status(Status(StatusCode.ERROR))


def _attributes(about: Mapping[str, Value]) -> dict[str, Value]:
    """Under names of our own, and with the id under which the logs tell of the same."""
    given: dict[str, Value] = {f"{OURS}.{name}": value for name, value in about.items()}
    if known := correlation.current():
        given[f"{OURS}.correlation"] = known
    return given


def _unix_ns(ticks: float) -> int:
    return time.time_ns() - int((time.monotonic() - ticks) * 1e9)


def _processor() -> SpanProcessor | None:
    """By the standard variables; None where they say that nothing is to be sent."""
    name = os.environ.get(OTEL_TRACES_EXPORTER) or "otlp"
    if name == "none":
        return None
    if name == "otlp":
        protocol = (
            os.environ.get(OTEL_EXPORTER_OTLP_TRACES_PROTOCOL)
            or os.environ.get(OTEL_EXPORTER_OTLP_PROTOCOL)
            or "http/protobuf"
        )
        name = PROTOCOLS.get(protocol, protocol)
    found = entry_points(group=EXPORTERS)
    if name not in found.names:
        raise BadSettings(
            f"{OTEL_TRACES_EXPORTER}: there is no exporter {name!r} here, only "
            f"{', '.join(sorted(found.names))}; install its opentelemetry-exporter package"
        )
    exporter: SpanExporter = found[name].load()()
    return BatchSpanProcessor(exporter)
