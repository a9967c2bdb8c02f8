import json
import time
from base64 import b64decode

import pytest
import redis
from celery import signals

from api_client.wire import names
from api_client.wire.broker import celery_app
from api_client.wire.envelope import Envelopes
from api_client.wire.settings import Settings

# What may differ between two messages, and what Celery adds to a message's properties although
# nobody reads it there: its result's queue, what it shows, and when AMQP would drop it.
OWN = {"delivery_tag", "reply_to", "argsrepr", "kwargsrepr", "expiration"}
FIELDS = {"texts": ["a"], "model": "m"}


@pytest.fixture
def app(valkey_url, prefix):
    app = celery_app(Settings.read(redis_url=valkey_url, key_prefix=prefix))
    yield app
    app.close()


def written(app, queue=names.EMBED, step=names.INTERACTIVE, **headers):
    text = Envelopes(app).write(
        names.EMBED_BATCH,
        FIELDS,
        id="r1",
        tag="t1",
        queue=queue,
        step=step,
        expires_at=time.time() + 5,
        shown="{'texts': 1}",
        headers=headers,
    )
    return json.loads(text)


def opened(message):
    """Without what is each message's own; its body as what it says."""
    properties = {k: v for k, v in message["properties"].items() if k not in OWN}
    headers = message["headers"] | {"expires": message["headers"]["expires"][-6:]}
    body = json.loads(b64decode(message["body"]))
    return message | {"properties": properties, "headers": headers, "body": body}


@pytest.mark.parametrize(
    ("queue", "step"),
    [
        (names.EMBED, names.INTERACTIVE),
        (names.EMBED, names.BULK),
        (names.direct_queue("gpu0@a"), names.INTERACTIVE),
    ],
)
def test_it_is_what_celery_would_have_sent(app, valkey_url, keys, queue, step):
    app.send_task(
        names.EMBED_BATCH,
        kwargs=FIELDS,
        argsrepr="()",
        kwargsrepr="{'texts': 1}",
        headers={names.SENT_AT: 1.5},
        task_id="r1",
        queue=queue,
        priority=step,
        expires=5.0,
        ignore_result=True,
    )
    sent = redis.Redis.from_url(valkey_url).rpop(keys.queue(queue, step))
    ours = written(app, queue, step, **{names.SENT_AT: 1.5})
    assert opened(ours) == opened(json.loads(sent))


def test_a_withdrawal_is_what_celery_would_have_told_every_worker(app, valkey_url, keys):
    def opened(text):
        message = json.loads(text)
        headers, properties = message.pop("headers"), message.pop("properties")
        told = json.loads(b64decode(message.pop("body")))
        return message, told, headers.keys(), properties | {"delivery_tag": ""}

    with redis.Redis.from_url(valkey_url).pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe(keys.control(0))
        heard.get_message(timeout=5)  # that it has subscribed
        app.control.revoke(["a", "b"], terminate=True)
        message = heard.get_message(timeout=5)
    assert opened(Envelopes(app).withdrawal(["a", "b"])) == opened(message["data"])


def test_whoever_listens_to_celerys_signals_hears_of_it_and_may_add_headers(app):
    heard = []

    def before(sender, headers, body, **_):
        heard.append((sender, headers["id"], body[1]))
        headers["traceparent"] = "00-1-2-01"

    def after(sender, headers, **_):
        heard.append(headers["traceparent"])

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        message = written(app)
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)
    assert message["headers"]["traceparent"] == "00-1-2-01"
    assert heard == [(names.EMBED_BATCH, "r1", FIELDS), "00-1-2-01"]
