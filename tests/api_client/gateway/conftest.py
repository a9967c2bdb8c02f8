import threading

import pytest
import uvicorn
from fastapi.testclient import TestClient

from api_client.gateway import connection
from api_client.gateway.app import build
from api_client.gateway.settings import GatewaySettings
from api_client.testing import MODELS, FakeAsyncClient
from api_client.wire.messages import CatalogueEntry, Kind

TEXT_MODEL = CatalogueEntry(
    id="fake/words",
    name="Fake, texts",
    family="fake",
    dimension=8,
    kinds=(Kind.TEXT,),
    aliases=("words",),
)
HERE = "http://127.0.0.1"


@pytest.fixture
def settings():
    return GatewaySettings.read(redis_url="redis://127.0.0.1:1/0")


@pytest.fixture
def fake():
    return FakeAsyncClient(models=(*MODELS, TEXT_MODEL))


@pytest.fixture
def http(fake, settings):
    with TestClient(build(fake, settings), base_url=HERE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def listening():
    """Serves an application on a port of its own, as a function; answers with its address."""
    started = []

    def listen(app):
        config = uvicorn.Config(app, port=0, log_level="warning", http=connection.Connection)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        started.append((server, thread))
        thread.start()
        while not server.started:
            assert thread.is_alive()
        return f"{HERE}:{server.servers[0].sockets[0].getsockname()[1]}"

    yield listen
    for server, thread in started:
        server.should_exit = True
        thread.join(20)
