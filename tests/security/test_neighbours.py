"""Two installations at one Redis, alike but for their key prefix."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image

from api_client import requests
from api_client.acl import Role
from api_client.wire.broker import celery_app
from api_client.wire.errors import NoBroker
from tests.flow.processes import until
from tests.security.installation import Installation
from tests.security.test_installation import PROCESSES, _refused, denials, listening

# Of every kind of key, and of channels; what is refused is refused before the kind is looked at.
TOUCHES = (
    "EXISTS {k}", "DEL {k}", "GET {k}", "SET {k} x", "HGETALL {k}", "HSET {k} a 1", "RPOP {k}",
    "LPUSH {k} x", "SMEMBERS {k}", "SADD {k} x", "ZRANGE {k} 0 -1", "ZADD {k} 1 x",
    "XRANGE {k} - +", "XADD {k} * a 1", "EXPIRE {k} 1", "EVAL return{{}} 1 {k}", "PUBLISH {k} x",
    "SUBSCRIBE {k}",
)  # fmt: skip
CHANNELS = ("/0.celery.pidbox", "/0.celeryev/worker.heartbeat", "celery-task-meta-x")


def work(one: Installation, *, model: str) -> None:
    """Something of everything: a batch, bytes, moves of models, a bulk job, sweeps."""
    picture = one.folder / "pictures" / "a.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    with one.client() as client, one.connect(Role.ADMIN) as admin:
        assert client.embed_texts(["a", "b"]).shape == (2, 8)
        assert np.isfinite(client.embed_images([picture, picture.read_bytes()])).all()
        client.switch(model)
        job = client.reembed(
            one.folder / "pictures", sink=one.folder / "vectors" / "shared", model="fake/vision"
        )
        assert job.wait(timeout=60).done >= 1
        gate = f"{one.prefix}:gate:sweep"
        admin.delete(gate)
        until(lambda: admin.exists(gate))


def replies(one: Installation) -> list[int]:
    """Whose workers remote control reaches: their process ids."""
    app = celery_app(one.settings(Role.DASHBOARD))
    answers = app.control.broadcast("stats", reply=True, timeout=1)
    app.close()
    return [stats["pid"] for answer in answers for stats in answer.values()]


def test_each_does_its_work_and_knows_nothing_of_the_other(
    installation: Installation, neighbour: Installation
) -> None:
    both = {"fake/other": installation, "fake/vision": neighbour}
    app = celery_app(installation.settings(Role.DASHBOARD))
    with listening(app) as told:
        for model, one in both.items():
            work(one, model=model)
    pids = []
    for model, one in both.items():
        with one.client() as client:
            [worker] = client.status().workers
            assert worker.current == model
            [job] = [job for job in client.jobs() if job.spec.sink.where.endswith("shared")]
            assert job.spec.sink.where.startswith(str(one.folder))
            client.switch("fake/vision")
        assert replies(one) == [worker.pid]
        pids.append(worker.pid)
    heard = "\n".join(told)
    assert f"'pid': {pids[0]}" in heard
    assert f"'pid': {pids[1]}" not in heard
    with installation.connect(Role.ADMIN) as admin:
        keys = [key.decode() for key in admin.scan_iter(count=1000)]
    assert {key.partition(":")[0] for key in keys} == {installation.prefix, neighbour.prefix}
    assert not denials(installation)  # whoever had reached for the other's keys would stand here


@pytest.mark.parametrize("role", PROCESSES)
def test_no_role_can_touch_what_is_the_neighbours(
    installation: Installation, neighbour: Installation, role: Role
) -> None:
    with installation.connect(Role.ADMIN) as admin:
        kinds = {admin.type(key): key.decode() for key in admin.scan_iter(f"{neighbour.prefix}:*")}
        assert {b"hash", b"set"} <= kinds.keys()
        places = [*kinds.values(), *(f"{neighbour.prefix}:{channel}" for channel in CHANNELS)]
        with installation.connect(role) as connection, connection.client() as mine:
            for touch, place in product(TOUCHES, places):
                words = [word.format(k=place) for word in touch.split()]
                assert _refused(mine, words), (touch, place)
        admin.acl_log_reset()


def test_a_password_opens_its_own_installation_only(
    installation: Installation, neighbour: Installation
) -> None:
    mixed = replace(installation, passwords=neighbour.passwords)
    with pytest.raises(NoBroker, match="username-password"), mixed.client() as client:
        client.models()
    with installation.connect(Role.ADMIN) as admin:
        admin.acl_log_reset()


def test_bytes_that_were_swapped_on_the_way_are_not_embedded(installation: Installation) -> None:
    """Who may write to Redis, but has no key."""
    settings = installation.settings()
    [make] = requests.image_calls([b"what was signed"], {}, settings, "test")
    swapped = replace(make.do(), blobs={0: b"something else"})
    with installation.client() as client:
        client._hold(client._desk.line.send(swapped))
        message = client._hold(client._desk.line.wait(swapped)).message
    assert message.failures[0].code == "image_forbidden"
