"""What a caller is told when there is nobody to ask: one sentence, soon."""

import socket
import subprocess
import sys

import pytest
import redis
from PIL import Image

from api_client import Client, Settings
from api_client.status import alarms
from api_client.wire.broker import redis_client
from api_client.wire.errors import NoBroker, NoWorker
from api_client.wire.names import Keys


def test_no_redis_is_one_sentence_with_no_password_in_it():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"redis://:s3cret@127.0.0.1:{free.getsockname()[1]}/0"
        client = Client(Settings.read(redis_url=url))
        with pytest.raises(NoBroker, match="CLIPYARD_REDIS_URL") as raised:
            client.embed_texts(["a"], model="fake/vision")
        assert "s3cret" not in str(raised.value)
        client.close()


def test_a_redis_that_takes_no_writes_is_one_sentence(valkey_of_my_own):
    with Client(Settings.read(redis_url=valkey_of_my_own.url)) as client:
        with redis.Redis.from_url(valkey_of_my_own.url) as store:
            store.config_set("maxmemory", 1)
        with pytest.raises(NoBroker, match="takes no writes"):
            client.embed_texts(["a"], model="fake/vision")
        with pytest.raises(NoBroker, match="takes no writes"):
            client.embed_images([Image.new("RGB", (1, 1))], model="fake/vision")


def test_that_no_worker_is_alive_leads_to_who_knows_whether_redis_is_full(valkey_of_my_own):
    with Client(Settings.read(redis_url=valkey_of_my_own.url)) as client:
        with redis.Redis.from_url(valkey_of_my_own.url) as store:
            store.config_set("maxmemory", 1)
        with pytest.raises(NoWorker, match="clipyard doctor"):
            client.load("fake/vision")
        (told,) = alarms(client.status(), now=0.0)
    assert "clipyard doctor" in told


def test_no_worker_is_one_sentence(valkey_url):
    with (
        Client(Settings.read(redis_url=valkey_url, key_prefix="nobody")) as client,
        pytest.raises(NoWorker, match="clipyard up"),
    ):
        client.embed_texts(["a"], model="fake/vision")


def test_a_job_says_that_there_is_no_worker_until_there_is_one(valkey_url, prefix, tmp_path):
    settings = Settings.read(redis_url=valkey_url, key_prefix=prefix)
    with Client(settings) as client, redis_client(settings) as store:
        job = client.reembed(tmp_path, sink=tmp_path / "out", model="fake/vision")
        assert "clipyard up" in job.status().trouble
        store.sadd(Keys(prefix).workers, "gpu0@here")
        store.hset(Keys(prefix).worker("gpu0@here"), "started_at", "1.0")
        assert not job.status().trouble
        store.delete(Keys(prefix).worker("gpu0@here"))
        assert not job.pause().trouble  # nobody has to do anything


@pytest.mark.parametrize("command", [["models"], ["text", "a"], ["load", "x/y"], ["unload"]])
def test_the_command_line_never_shows_a_traceback(tmp_path, monkeypatch, command):
    monkeypatch.setenv("CLIPYARD_HOME", str(tmp_path))
    monkeypatch.delenv("CLIPYARD_REDIS_URL", raising=False)
    argv = [sys.executable, "-m", "api_client", *command]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ran.returncode == 3
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert "clipyard up" in ran.stderr
