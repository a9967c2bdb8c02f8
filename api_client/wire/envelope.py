"""A request as Celery and kombu write it, without what both go through for each message, and the
command that withdraws one, without a connection of theirs.

For requests they are asked once for each kind of message (task, queue, priority step) what they
would hand to Redis; what differs between two messages of a kind is filled in here. Whoever sends it
pushes it with a connection of its own, together with what else it has to say: docs/why.md, "Where
the milliseconds of a single text go".

Checked with celery 5.7.0 and kombu 5.7.0 by tests/wire/test_envelope.py, which holds a message of
Celery's own beside one of these.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

from celery import Celery, signals
from kombu import Connection, Producer
from kombu.transport import virtual

__all__ = ["Envelopes"]

_Form = dict[str, Any]


class _Paper(virtual.Channel):  # type: ignore[misc]  # kombu has no types
    """Keeps what is published through it."""

    supports_fanout = True
    written: _Form

    def _put(self, queue: str, message: _Form, *_: Any, **__: Any) -> None:
        self.written = message

    _put_fanout = _put


class _Nowhere(virtual.Transport):  # type: ignore[misc]  # kombu has no types
    """Leads to paper only."""

    Channel = _Paper


class Envelopes:
    """Writes the messages of one Celery app."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._form = cache(self._asked)

    def write(
        self,
        task: str,
        fields: Mapping[str, Any],
        *,
        id: str,
        tag: str,
        queue: str,
        step: int,
        expires_at: float,
        shown: str,
        headers: Mapping[str, Any],
    ) -> str:
        """The element of the queue's list.

        Celery's signals around publishing are sent, both before it is on its way, so that whoever
        instruments Celery (traces do) sees it and may add headers.

        Args:
            tag: no other message has it; under it Redis keeps what a worker holds.
            step: the priority step of the queue.
            expires_at: in unix seconds; from then on Celery drops it.
            shown: what Flower and Celery's events show of the fields.
            headers: beside Celery's own.
        """
        form, embed = self._form(task, queue, step)
        body: tuple[list[Any], dict[str, Any], Any] = ([], dict(fields), embed)
        about = {
            **form["headers"],
            "id": id,
            "root_id": id,
            "kwargsrepr": shown,
            "expires": datetime.fromtimestamp(expires_at, UTC).isoformat(),
            **headers,
        }
        properties = {**form["properties"], "correlation_id": id, "delivery_tag": tag}
        told = {"body": body, "headers": about, "exchange": "", "routing_key": queue}
        signals.before_task_publish.send(
            sender=task, **told, properties=properties, declare=[], retry_policy=None
        )
        signals.after_task_publish.send(sender=task, **told)
        encoded = b64encode(json.dumps(body).encode()).decode()
        return json.dumps({**form, "body": encoded, "headers": about, "properties": properties})

    @staticmethod
    def again(message: bytes, *, tag: str) -> str:
        """One that was written before: of two that bear the same tag, whoever acknowledges one
        gives up the other, which he may be at work on."""
        told = json.loads(message)
        told["properties"]["delivery_tag"] = tag
        return json.dumps(told)

    def withdrawal(self, ids: Sequence[str]) -> str:
        """What `Keys.control` is told to have every worker drop these, and stop those begun."""
        control = self._app.control
        control.mailbox.producer_pool = None  # it would lead to Redis
        with Connection(transport=_Nowhere) as nowhere:
            control.revoke(list(ids), terminate=True, connection=nowhere)
            return json.dumps(nowhere.default_channel.written)

    def _asked(self, task: str, queue: str, step: int) -> tuple[_Form, Any]:
        """Of Celery and kombu, what is the same in every message of a kind: all of it, and the last
        part of the body."""
        message = self._app.amqp.create_task_message(
            "", task, argsrepr="()", kwargsrepr="", ignore_result=True
        )
        with Connection(transport=_Nowhere) as nowhere:
            paper = nowhere.channel()
            Producer(paper, serializer="json", auto_declare=False).publish(
                message.body,
                routing_key=queue,
                priority=step,
                headers=message.headers,
                **message.properties,
            )
            form: _Form = paper.written
        _, _, embed = json.loads(b64decode(form["body"]))
        return form, embed
