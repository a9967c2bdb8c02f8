"""Passwords and URLs of the roles; that they give the least rights is tested in tests/security."""

import inspect
import re
from pathlib import Path

import pytest

from api_client import vigil
from api_client.acl import Role, acl_file, database_of, passwords_in, write_urls
from api_client.gateway import budgets
from api_client.wire import jobscripts
from api_client.wire.address import parsed
from api_client.wire.errors import BadRequest
from worker.datapath import content_cache
from worker.delivery import quarantine, suspects
from worker.reembed import ledgerscripts


def test_a_password_that_was_never_written_is_made(tmp_path: Path) -> None:
    (tmp_path / "worker.password").touch()
    (tmp_path / "beat.password").write_text("\n")
    (tmp_path / "client.password").write_text("my own\n")
    passwords = passwords_in(tmp_path)
    assert all(len(passwords[role]) > 20 for role in Role if role is not Role.CLIENT)
    assert passwords[Role.CLIENT] == "my own"
    assert passwords_in(tmp_path) == passwords
    assert {file.name for file in tmp_path.iterdir()} == {f"{role}.password" for role in Role}
    assert (tmp_path / "worker.password").stat().st_mode & 0o077 == 0
    assert (tmp_path / "worker.password").read_text() == passwords[Role.WORKER]  # as KEDA reads it


def test_a_password_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "worker.password").write_bytes(b"\xff" * 32)  # as of openssl rand without -hex
    with pytest.raises(BadRequest, match=r"worker\.password holds no text"):
        passwords_in(tmp_path)


def test_a_password_of_any_signs_stands_in_its_url(tmp_path: Path) -> None:
    write_urls(tmp_path, {Role.WORKER: "a/b?c#d@e+%"}, url="rediss://redis:6379/2", prefix="p")
    place = parsed((tmp_path / "worker.url").read_text().strip())
    assert (place["username"], place["password"], place["db"]) == ("p-worker", "a/b?c#d@e+%", 2)


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("redis://redis:6379", 0),
        ("redis://redis:6379/3", 3),
        ("rediss://redis:6379?ssl_ca_certs=/run/ca.pem", 0),
        ("rediss://redis:6379/1?ssl_ca_certs=/run/ca.pem", 1),
    ],
)
def test_the_database_is_the_one_that_clients_will_use(url: str, database: int) -> None:
    assert database_of(url) == database


@pytest.mark.parametrize(
    "url",
    ["redis:6379", "redis://:geheim@redis", "redis://geheim@redis", "redis://r?password=geheim"],
)
def test_a_url_with_a_login_or_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(BadRequest, match="without a login") as raised:
        database_of(url)
    assert "geheim" not in str(raised.value)


@pytest.mark.parametrize(
    ("role", "scripts", "key"),
    [
        (Role.CLIENT, jobscripts, "jobs"),
        (Role.CLIENT, vigil, "unacked"),
        (Role.CLIENT, budgets, "budget:*"),
        (Role.WORKER, ledgerscripts, "jobs"),
        (Role.WORKER, suspects, "started:*"),
        (Role.WORKER, quarantine, "quarantine"),
        (Role.WORKER, content_cache, "cached:*"),
    ],
)
def test_who_sends_a_script_may_do_what_it_does(role: Role, scripts: object, key: str) -> None:
    lines = acl_file(dict.fromkeys(Role, "x"), prefix="p").splitlines()
    (line,) = (one for one in lines if one.startswith(f"user p-{role} "))
    everywhere, *selectors = line.split("(")
    (there,) = (one for one in selectors if f"~p:{key}" in one and "+eval" in one)
    done = set(re.findall(r"redis\.call\('(\w+)'", inspect.getsource(scripts)))
    assert done
    assert {f"+{command.lower()}" for command in done} <= {*everywhere.split(), *there.split()}
