"""Whether the gateway can be asked costs its workers' status no more than once a second."""

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
