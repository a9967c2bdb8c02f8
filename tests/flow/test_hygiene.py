"""Nothing in Redis grows for ever: every key expires, or stands here with its bound."""

import re
from contextlib import suppress

import pytest
import redis
from PIL import Image

from api_client.wire.broker import celery_app
from api_client.wire.errors import ClipyardError
from api_client.wire.names import Keys
from tests.flow.processes import until
from worker import housekeeping
from worker.tracker import EVENTS_KEPT

WORKERS, EXCHANGES, JOBS = 1, 3, 99  # of the stack that tests share
GONE = "cpu9@gone"  # a worker that was here once

# What has no expiry, and how many members or entries it may have.
BOUNDS = {
    r"events": EVENTS_KEPT + 100,  # Redis cuts whole nodes of the stream
    r"workers": WORKERS,
    r"jobs": JOBS,  # of the last month
    r"job:(?!hygiene).*": 99,  # of other tests: a job that is not over keeps its books
    r"_kombu\.binding(_permanent)?\.(embed|control|C\.dq2|[^.]+\.dq2)": WORKERS,
    r"_kombu\.binding\.celery\.pidbox": WORKERS,
    r"_kombu\.binding\.reply\.celery\.pidbox": housekeeping.BINDINGS_KEPT,
    r"_kombu\.binding_deadlines": EXCHANGES,
    r"unacked(_index)?": 36,  # what the threads of a worker hold
}
SIZE = {
    "none": redis.Redis.exists,  # it has gone meanwhile
    "string": redis.Redis.strlen,
    "list": redis.Redis.llen,
    "set": redis.Redis.scard,
    "zset": redis.Redis.zcard,
    "hash": redis.Redis.hlen,
    "stream": redis.Redis.xlen,
}


def allowed(name):
    return next((most for shape, most in BOUNDS.items() if re.fullmatch(shape, name)), 0)


def test_every_key_expires_or_is_bounded(running, client, tmp_path):
    with redis.Redis.from_url(running.url) as store:
        keys = Keys(client._desk.line.settings.key_prefix)
        before = client.status().workers[0].settings["slots"]
        withdrawn = use_everything(client, tmp_path)
        leave_replies_and_a_worker_behind(client, store, keys)
        housekeeping.live_workers(store, keys)
        housekeeping.expire_replies(store, keys)
        client.set_knobs({"slots": int(before)})

        def unbounded():
            lasting = [key.decode() for key in store.scan_iter("*") if store.ttl(key) == -1]
            short = {name.partition(":")[2]: name for name in lasting}
            sizes = {n: SIZE[store.type(key).decode()](store, key) for n, key in short.items()}
            return {n: size for n, size in sizes.items() if size > allowed(n)}

        with suppress(TimeoutError):
            until(lambda: not unbounded())
        assert unbounded() == {}
        assert not [*store.scan_iter(f"*celery-task-meta-{withdrawn.id.partition('.')[0]}*")]


def use_everything(client, folder):
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    client.embed_texts(["a", "b"], model="fake/vision")
    client.embed_images([folder / "a.png"], model="fake/vision")
    client.embed_images([(folder / "a.png").read_bytes()], model="fake/vision")
    for request in ({"model": "fake/broken"}, {"model": "no/such"}):
        with pytest.raises(ClipyardError):
            client.embed_texts(["a"], **request)
    withdrawn = client.submit_texts(["x"] * 500, model="fake/vision")
    withdrawn.cancel()
    client.load("fake/text")
    client.unload("fake/text")
    client.set_knobs({"slots": 3})
    for n in range(2):
        sink = folder / f"sink{n}"
        client.reembed(folder, sink=sink, model="fake/vision", id=f"hygiene{n}").wait()
    given_up = client.reembed(folder, sink=folder / "sink2", model="fake/vision", id="hygiene2")
    given_up.pause()
    given_up.cancel()
    return withdrawn


def leave_replies_and_a_worker_behind(client, store, keys):
    """As a client that is killed while it asks, and a pod that never comes back."""
    with celery_app(client._desk.line.settings) as app:
        app.control.inspect(timeout=0.001).ping()
        app.send_task("clipyard.sweep", queue=f"{GONE}.dq2")
    reply = "0.reply.celery.pidbox"
    store.sadd(keys.reply_queues, f"0\x06\x16\x06\x16{reply}")
    store.lpush(keys.queue(reply, 0), "pong")
    store.sadd(keys.workers, GONE)
