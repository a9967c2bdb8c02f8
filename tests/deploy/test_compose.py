"""What a machine without containers can try of the deployment: its rules, and every command."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from api_client.acl import acl_file, passwords_in, write_urls
from api_client.gateway.connection import DRAIN_S
from api_client.stack.valkey import server_binary
from tests.flow.processes import free_port, until

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "worker" / "Dockerfile").read_text()
PORTS = {"gateway": "7000", "flower": "5555"}
START_WITHIN_S = 90.0
CLI = shutil.which("valkey-cli") or shutil.which("redis-cli")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["mem_limit"]
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert service["restart"] == "unless-stopped"
    assert not service.get("privileged")
    # Ours are the image's user, see the test of it.
    assert service.get("user", "0") != "0" if "build" not in service else "user" not in service


def test_what_the_image_has_is_pinned_and_opens_the_stores_of_the_docs() -> None:
    [given] = re.findall(r"'\.\[(.+)\]'", DOCKERFILE)
    extras = given.split(",")
    assert {"s3", "gs"} < set(extras)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    parts = [project["dependencies"], *(project["optional-dependencies"][one] for one in extras)]
    asked = {re.split(r"\W*[\[<>=]", one)[0].replace("_", "-") for part in parts for one in part}
    pinned = {one.partition("==")[0] for one in (ROOT / "constraints.txt").read_text().split()}
    assert asked - pinned == set()


def test_only_what_asks_for_a_password_is_published_and_only_on_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {name: [f"127.0.0.1:{port}:{port}"] for name, port in PORTS.items()}
    assert SERVICES["redis"]["networks"] == ["inside"]
    assert COMPOSE["networks"]["inside"]["internal"] is True


def test_secrets_come_as_files_and_each_service_has_its_own() -> None:
    for service in SERVICES.values():
        for value in service.get("environment", {}).values():
            assert "://" not in value or "@" not in value
        for variable, value in service.get("environment", {}).items():
            if variable.endswith("_FILE"):
                assert value.removeprefix("/run/secrets/") in service["secrets"]
    of_workers = ["signing.key", "worker.url"]
    assert {name: sorted(service["secrets"]) for name, service in SERVICES.items()} == {
        "redis": ["users.acl"],
        "worker-gpu0": of_workers,
        "worker-cpu": of_workers,
        "beat": ["beat.url"],
        "flower": ["dashboard.url", "flower.password"],
        "gateway": ["client.url", "gateway.tokens", "signing.key"],
    }


def test_a_dashboard_ships_so_that_it_may_only_look_and_redis_so_that_it_loses_nothing() -> None:
    assert SERVICES["flower"]["environment"]["CLIPYARD_DASHBOARD_READ_ONLY"] == "true"
    words = SERVICES["redis"]["command"]
    said = dict(zip(words[1::2], words[2::2], strict=True))
    assert (said["--maxmemory-policy"], said["--appendonly"]) == ("noeviction", "yes")
    assert said["--rdbcompression"] == "no"  # pictures are that already


def test_what_is_to_stay_is_written_where_a_volume_is() -> None:
    places = {
        name: [re.split(r":(?=/)", volume)[-1].removesuffix(":ro") for volume in service["volumes"]]
        for name, service in SERVICES.items()
        if "volumes" in service
    }
    [cache] = re.findall(r"CLIPYARD_CACHE_DIR=(\S+)", DOCKERFILE)
    told = COMPOSE["x-worker-environment"]
    roots = [json.loads(told[f"CLIPYARD_{name}_ROOTS"]) for name in ("IMAGE", "SINK")]
    of_workers = [cache, *roots[0], *roots[1]]
    words = SERVICES["redis"]["command"]
    data = words[words.index("--dir") + 1]
    assert places == {"redis": [data], "worker-gpu0": of_workers, "worker-cpu": of_workers}
    assert all("/tmp:" in SERVICES[name]["tmpfs"][0] for name in SERVICES.keys() - {"redis"})
    given = COMPOSE["secrets"].items()
    assert [name for name, secret in given if secret != {"file": f"./secrets/{name}"}] == []


def test_everybody_reaches_redis_and_a_profile_starts_one_worker() -> None:
    assert [name for name, service in SERVICES.items() if "inside" not in service["networks"]] == []
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "worker" in name}
    assert profiles == {"worker-gpu0": ["gpu"], "worker-cpu": ["cpu"]}


def test_a_worker_may_finish_its_longest_batch() -> None:
    for name in ("worker-gpu0", "worker-cpu"):
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > 120
        assert SERVICES[name]["volumes"][1].endswith(":ro")
    [device] = SERVICES["worker-gpu0"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["0"]


def test_a_gateway_may_finish_what_it_has_begun() -> None:
    assert int(SERVICES["gateway"]["stop_grace_period"].removesuffix("s")) > DRAIN_S


@pytest.mark.parametrize(
    "image", [*re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE), SERVICES["redis"]["image"]]
)
def test_a_base_is_pinned_to_a_patch_release(image: str) -> None:
    assert re.search(r":\d+\.\d+\.\d+(-\w+)+(@sha256:[0-9a-f]{64})?$", image)


def test_the_image_is_built_as_linters_want_it() -> None:
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    last_stage = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM")) :]
    assert sum(line.startswith("FROM") for line in lines) == 2
    assert any(line.startswith("USER 10001") for line in last_stage)
    assert not re.search(r"\b(sudo|curl|wget|ADD |apt-get upgrade|:latest)\b", DOCKERFILE)
    assert "--no-cache-dir" in DOCKERFILE
    assert "pip install" not in "\n".join(last_stage)
    assert all(line.startswith("CMD [") for line in last_stage if line.startswith("CMD"))
    copied = re.findall(r"^COPY (\S+) /srv", DOCKERFILE, re.MULTILINE)
    assert copied == ["worker", "tasks", "beat_schedule"]
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert {f"!{folder}" for folder in [*copied, "api_client"]} <= set(ignored)


def test_a_build_does_not_choose_torch_by_the_machine_it_runs_on() -> None:
    [install] = re.findall(r"^RUN (uv pip .+?[^\\])$", DOCKERFILE, re.MULTILINE | re.DOTALL)

    def said(**given: str) -> str:
        argv = ("sh", "-c", f"echo {install}")
        return subprocess.run(argv, env=given, capture_output=True, text=True, check=True).stdout

    assert "\nARG TORCH_BACKEND\n" in DOCKERFILE
    assert "torch-backend" not in said()
    assert " --torch-backend=cpu " in said(**SERVICES["worker-cpu"]["build"]["args"])


@pytest.mark.skipif(
    subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    != 0
    if shutil.which("docker")
    else True,
    reason="no docker compose here",
)
def test_compose_takes_the_file() -> None:
    subprocess.run(
        ["docker", "compose", "-f", ROOT / "docker-compose.yml", "config", "-q"], check=True
    )


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="no hadolint here")
def test_hadolint_finds_nothing() -> None:
    subprocess.run(["hadolint", ROOT / "worker" / "Dockerfile"], check=True)


class Outside:
    """Services as written, but outside containers: paths, host and ports are this machine's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._ports = {name: free_port() for name in PORTS}
        secrets = folder / "secrets"
        passwords = passwords_in(secrets)
        write_urls(secrets, passwords, url=f"redis://127.0.0.1:{self._port}/0", prefix="clipyard")
        (secrets / "users.acl").write_text(acl_file(passwords, prefix="clipyard"))
        for name in ("signing.key", "gateway.tokens", "flower.password"):
            (secrets / name).write_text(f"{name:x<32}\n")
        for name in ("data", "pictures", "vectors", "cache", "tmp", "bin"):
            (folder / name).mkdir()
        (folder / "bin" / "valkey-server").symlink_to(server_binary())
        (folder / "bin" / "valkey-cli").write_text(f'#!/bin/sh\nexec {CLI} -p {self._port} "$@"\n')
        (folder / "bin" / "valkey-cli").chmod(0o755)

    def words(self, name: str, words: list[str]) -> list[str]:
        place = r"(?<![\w/.])/(?:run/)?(secrets|data|pictures|vectors|tmp)\b"
        text = re.sub(place, self._here, "\0".join(words))
        if name in PORTS:
            text = text.replace(f":{PORTS[name]}", f":{self._ports[name]}")
            text = text.replace("0.0.0.0", "127.0.0.1")
        return text.split("\0")

    def _here(self, there: re.Match[str]) -> str:
        return str(self._folder / there[1])

    def environment(self, name: str) -> dict[str, str]:
        given = SERVICES[name].get("environment", {})
        values = self.words(name, [*given.values()]) if given and name != "redis" else []
        return {
            "PATH": f"{self._folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self._folder),
            "OMP_NUM_THREADS": "1",
            "CLIPYARD_CACHE_DIR": str(self._folder / "cache"),
            "CLIPYARD_GATEWAY_PORT": str(self._ports["gateway"]),
            "CLIPYARD_DASHBOARD_PORT": str(self._ports["flower"]),
            **dict(zip(given, values, strict=True)),
        }

    def start(self, name: str) -> subprocess.Popen[bytes]:
        here = ["--port", str(self._port), "--bind", "127.0.0.1"] if name == "redis" else []
        with (self._folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [*self.words(name, SERVICES[name]["command"]), *here],
                cwd=ROOT,
                env=self.environment(name),
                stdout=log,
                stderr=log,
            )

    def healthy(self, name: str) -> bool:
        kind, *test = SERVICES[name]["healthcheck"]["test"]
        shell = ["sh", "-c"] if kind == "CMD-SHELL" else []
        done = subprocess.run(
            [*shell, *self.words(name, test)],
            cwd=ROOT,
            env=self.environment(name),
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    def has_begun(self, name: str) -> bool:
        """What is worth its health check: each is a process, and takes the cores of those that
        start; only a worker takes long."""
        return name != "worker-cpu" or " ready." in self.log(name)

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()[-1500:]


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    outside = Outside(tmp_path_factory.mktemp("compose"))
    server = outside.start("redis")
    yield outside
    server.terminate()
    server.wait(10)


@pytest.mark.skipif(CLI is None, reason="no valkey-cli here")
def test_redis_is_healthy_though_it_refuses_who_has_no_name(outside: Outside) -> None:
    until(lambda: outside.healthy("redis"))


def test_every_service_starts_as_written_and_becomes_healthy(outside: Outside) -> None:
    names = [name for name in SERVICES if name not in ("redis", "worker-gpu0")]
    with ExitStack() as ends:
        for name in names:
            process = outside.start(name)
            ends.callback(process.wait, 60)
            ends.callback(process.send_signal, signal.SIGTERM)
        assert not outside.healthy("worker-cpu")
        for name in names:
            try:
                until(
                    lambda name=name: outside.has_begun(name) and outside.healthy(name),
                    within_s=START_WITHIN_S,
                )
            except TimeoutError:
                pytest.fail(f"{name} does not become healthy:\n{outside.log(name)}")
    assert not outside.healthy("worker-cpu")
