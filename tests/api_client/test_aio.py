import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import numpy as np
import pytest

from api_client.aio import AsyncClient
from api_client.client import Client
from api_client.wire import names
from api_client.wire.codec import unpack_answer
from api_client.wire.errors import BadRequest, Cancelled
from api_client.wire.names import Keys
from api_client.wire.settings import Settings


def test_a_hundred_calls_wait_without_a_thread_each(stage):
    stage.show_worker()

    async def story():
        async with AsyncClient(stage.settings) as client:
            calls = [asyncio.create_task(client.embed_texts([f"text {i}"])) for i in range(100)]
            queue = stage.keys.queue(names.EMBED, names.INTERACTIVE)
            while stage.store.llen(queue) < len(calls):
                await asyncio.sleep(0.01)
            threads = threading.active_count()
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            return threads

    before = threading.active_count()
    # Publishing takes turns in the loop's own few threads.
    assert asyncio.run(story()) < before + 40


def test_a_hundred_jobs_are_waited_for_without_a_thread_each(stage, monkeypatch):
    monkeypatch.setattr("api_client.reembed.job.LOOK_S", 60.0)

    async def story():
        async with AsyncClient(stage.settings) as client:
            job = await client.reembed("/photos", sink="/vectors", model="a/b")
            waits = [asyncio.create_task(job.wait()) for _ in range(100)]
            await asyncio.wait(waits, timeout=0.2)  # or until all have looked
            submitted = asyncio.create_task(client.submit_texts(["a"], model="a/b"))
            done, _ = await asyncio.wait([submitted], timeout=20)
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
            return done

    assert asyncio.run(story())


@pytest.mark.parametrize("again", [False, True], ids=["once", "until it has gone"])
def test_a_call_that_is_cancelled_withdraws_what_it_sent(stage, again):
    stage.show_worker()
    queue = stage.keys.queue(names.EMBED, names.INTERACTIVE)

    async def story():
        async with AsyncClient(stage.settings) as client:
            call = asyncio.create_task(client.embed_images([b"picture"]))
            while not stage.store.llen(queue):
                await asyncio.sleep(0.01)
            call.cancel()
            while again and not call.done():  # as a scope of anyio does
                await asyncio.sleep(0)
                call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    asyncio.run(story())
    prefix = stage.settings.key_prefix
    assert not list(stage.store.scan_iter(f"{prefix}:blobs:*"))
    assert len(list(stage.store.scan_iter(f"{prefix}:answer:*"))) == 1  # says Cancelled
    with stage.worker():
        pass


def test_of_several_streams_that_are_cancelled_at_once_each_withdraws_what_it_sent(stage):
    stage.show_worker()
    queue = stage.keys.queue(names.EMBED, names.BULK)

    async def read(client):
        async for _ in client.stream_images([b"picture"], priority="bulk"):
            pass

    async def story():
        async with AsyncClient(stage.settings) as client:
            streams = [asyncio.create_task(read(client)) for _ in range(3)]
            while stage.store.llen(queue) < len(streams):
                await asyncio.sleep(0.01)
            while not all(stream.done() for stream in streams):  # as a scope of anyio does
                for stream in streams:
                    stream.cancel()
                await asyncio.sleep(0)
            assert all(stream.cancelled() for stream in streams)

    asyncio.run(story())
    prefix = stage.settings.key_prefix
    assert not list(stage.store.scan_iter(f"{prefix}:blobs:*"))
    assert len(list(stage.store.scan_iter(f"{prefix}:answer:*"))) == 3  # say Cancelled


def test_who_is_cancelled_while_a_stream_is_closed_ends_as_cancelled(stage):
    async def story():
        async with AsyncClient(stage.settings) as client:
            stream = client.stream_images([b"picture"] * 99, batch_size=1)
            await anext(stream)
            closing = asyncio.create_task(stream.aclose())
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
            return closing.cancelled()

    with stage.worker():
        assert asyncio.run(story())
    assert not list(stage.store.scan_iter(f"{stage.settings.key_prefix}:blobs:*"))


@contextmanager
def slow_network(url):
    """A way to Redis, for one connection; it lets eight megabytes through bit by bit, at first."""
    at = urlsplit(url)

    def copy(source, target, slow_bytes):
        while data := source.recv(2**15):
            target.sendall(data)
            slow_bytes -= len(data)
            if slow_bytes > 0:
                time.sleep(0.001)

    def carry():
        near, _ = door.accept()
        with near, socket.create_connection((at.hostname, at.port)) as far:
            back = threads.submit(copy, far, near, 0)
            with suppress(ConnectionError):  # given up on
                copy(near, far, 2**23)
            far.shutdown(socket.SHUT_WR)
            back.result()

    with socket.create_server(("127.0.0.1", 0)) as door, ThreadPoolExecutor() as threads:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**15)
        carrying = threads.submit(carry)
        yield url.replace(f":{at.port}/", f":{door.getsockname()[1]}/")
        carrying.result()


def test_a_network_that_is_slow_and_not_silent_is_not_given_up_on(store, valkey_url, prefix):
    pictures, queue = [bytes(2**18)] * 48, Keys(prefix).queue(names.EMBED, names.INTERACTIVE)

    async def story(url):
        settings = Settings.read(redis_url=f"{url}?socket_timeout=0.3", key_prefix=prefix)
        async with AsyncClient(settings) as client:
            await client.submit_images(pictures, model="fake/vision")

    with slow_network(valkey_url) as url:
        asyncio.run(story(url))
    assert store.llen(queue) == 1


def test_a_switch_that_is_cancelled_is_withdrawn_from_every_worker(stage):
    stage.show_worker()
    stage.store.sadd(stage.keys.workers, "a", "b")
    queues = [stage.keys.queue(names.direct_queue(node), names.INTERACTIVE) for node in ("a", "b")]

    async def story():
        async with AsyncClient(stage.settings) as client:
            call = asyncio.create_task(client.switch("fake/large", workers=["a", "b"]))
            while not all(map(stage.store.llen, queues)):
                await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    asyncio.run(story())
    for queue in queues:
        answer = stage.keys.answer(json.loads(stage.store.lindex(queue, 0))["headers"]["id"])
        refused, _ = unpack_answer(stage.store.lindex(answer, 0))
        assert refused.failure.code == "cancelled"


def test_calls_beyond_the_connections_wait_their_turn(stage):
    """In threads and in an event loop."""
    few = Settings.read(
        redis_url=f"{stage.settings.url()}?max_connections=2", key_prefix=stage.settings.key_prefix
    )
    calls = [[f"text {i}"] for i in range(9)]

    async def story():
        async with AsyncClient(few) as client:
            return await asyncio.gather(*map(client.embed_texts, calls))

    with stage.worker():
        awaited = asyncio.run(story())
        with Client(few) as client, ThreadPoolExecutor(len(calls)) as pool:
            waited = list(pool.map(client.embed_texts, calls))
    assert np.array_equal(awaited, waited)


def test_streams_that_are_read_on_while_their_client_is_closed_end_with_it(stage):
    async def read_on(stream):
        async for _ in stream:
            pass

    async def story():
        client = AsyncClient(stage.settings)
        streams = [client.stream_images(f"{i}.jpg" for i in range(999)) for _ in range(4)]
        for stream in streams:
            for _ in range(stage.settings.chunk_size):
                await anext(stream)
        closing = asyncio.create_task(client.close())
        said = await asyncio.gather(*map(read_on, streams), return_exceptions=True)
        await closing
        return [type(one) for one in said]

    with stage.worker():
        assert asyncio.run(story()) == [Cancelled] * 4


def test_streams_that_wait_leave_a_connection_for_their_withdrawal(stage):
    few = Settings.read(
        redis_url=f"{stage.settings.url()}?max_connections=2", key_prefix=stage.settings.key_prefix
    )
    stage.show_worker()
    queue = stage.keys.queue(names.EMBED, names.INTERACTIVE)

    async def story():
        client = AsyncClient(few)
        streams = [client.stream_images(["a.jpg"]) for _ in range(2)]
        reading = [asyncio.create_task(anext(stream)) for stream in streams]
        while not stage.store.llen(queue):
            await asyncio.sleep(0.01)
        await client.close()
        return await asyncio.gather(*reading, return_exceptions=True)

    assert [type(one) for one in asyncio.run(story())] == [Cancelled] * 2
    withdrawn = [*stage.store.scan_iter(stage.keys.answer("*"))]
    assert len(withdrawn) == stage.store.llen(queue)


def test_a_stream_that_waits_while_its_client_is_closed_ends_with_it(stage):
    """In a thread and in an event loop."""
    stage.show_worker()
    paths, queue = [f"{i}.jpg" for i in range(20)], stage.keys.queue(names.EMBED, names.BULK)

    async def story():
        client = AsyncClient(stage.settings)
        reading = asyncio.create_task(anext(client.stream_images(paths)))
        while not stage.store.llen(queue):
            await asyncio.sleep(0.01)
        await client.close()
        with pytest.raises(Cancelled, match="closed"):
            await asyncio.wait_for(reading, 20)
        assert not client._streams

    asyncio.run(story())
    with Client(stage.settings) as client, ThreadPoolExecutor() as threads:
        reading = threads.submit(next, client.stream_images(paths))
        while not stage.store.llen(queue):
            time.sleep(0.01)
        client.close()
        with pytest.raises(Cancelled, match="closed"):
            reading.result(20)
    assert not client._streams
    answers = [*stage.store.scan_iter(stage.keys.answer("*"))]
    assert {stage.store.llen(key) for key in answers} == {1}  # each says Cancelled, once


def test_a_client_that_another_event_loop_has_used_says_what_would_work(stage):
    async def story():
        async with AsyncClient(stage.settings) as client:
            await client.models()
            for call in (client.models, client.close):
                with pytest.raises(BadRequest, match="make one in each loop"):
                    await asyncio.to_thread(asyncio.run, call())

    asyncio.run(story())
