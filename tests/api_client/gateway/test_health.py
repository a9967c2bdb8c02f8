"""Whether the gateway can be asked costs its workers' status no more than once a second."""

import asyncio

from fastapi import FastAPI
from fastapi.testclient import TestClient

from api_client.gateway import health
from api_client.testing import FakeAsyncClient


class Counted(FakeAsyncClient):
    looks = 0

    async def status(self):
        self.looks += 1
        return await super().status()


def test_however_many_ask_whether_it_is_ready_it_looks_once_a_second():
    now, client, app = [100.0], Counted(), FastAPI()
    app.include_router(health.router(client, clock=lambda: now[0]))
    with TestClient(app) as http:
        assert {http.get("/readyz").status_code for _ in range(9)} == {200}
        assert client.looks == 1
        now[0] += health.FRESH_S
        assert http.get("/readyz").json() == {"status": "ready", "workers": 1}
        assert client.looks == 2


async def test_a_look_that_takes_long_is_the_only_one():
    class Slow(Counted):
        async def status(self):
            found = await super().status()
            await mended.wait()
            return found

    now, client, mended = [100.0], Slow(), asyncio.Event()
    look = health._Look(client, lambda: now[0])
    asking = []
    for _ in range(3):
        asking.append(asyncio.create_task(look.ready()))
        await asyncio.sleep(0)
        now[0] += health.FRESH_S
    mended.set()
    assert await asyncio.gather(*asking) == [1, 1, 1]
    assert client.looks == 1
