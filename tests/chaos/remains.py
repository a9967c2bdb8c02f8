"""What is left in a world once all is quiet, as sentences; nothing is as it should be."""

import json
import time

import redis

from api_client.status import read_fleet
from api_client.wire import names

from . import invariants, plan
from .world import World

ANSWER_S = 60.0  # a worker takes up to 40 s to see that all its connections were silently dropped
LOOK_S = 0.2  # until nobody holds a tick of the clock
# In no worker's log, whatever happens: what the strict fake family says to itself, a worker that
# ends without being told to, a task whose message nobody gives up.
NEVER_LOGGED = ("AssertionError", "Unrecoverable error", "could not be recorded")
NEVER_BY_CLIENT = ("Traceback",)


def violations(world: World) -> list[str]:
    """All of it, but for workers and messages, which one waits for."""
    folders = (world.disks[plan.SINKS].folder, world.folder / "cache")
    return [
        *(f"a lease is left: {one}" for one in leased(world)),
        *(f"stays for ever: {one}" for one in staying(world)),
        *(f"left behind: {one}" for one in invariants.left_behind(folders)),
        *logged(world),
    ]


def away(world: World) -> list[str]:
    """Workers that are not there, or not ready."""
    pids = dict(zip(world.nodes, map(world.pid, world.workers), strict=True))
    try:
        return invariants.not_ready(read_fleet(world.store, world.keys, events=1), pids)
    except redis.RedisError:
        return list(world.nodes)


def not_answering(world: World) -> list[str]:
    """Workers that do not answer on their own queues, and why."""
    told = []
    with world.client() as client:
        for node in world.nodes:
            try:
                client.load("fake/text", workers=[node], timeout=ANSWER_S)
            except Exception as error:
                told.append(f"{node} does not answer on its own queue: {error}")
    return told


def leased(world: World) -> list[str]:
    """Models in use, though nobody asks for anything: a worker that has answered has told of all
    its leases."""
    return not_answering(world) or invariants.leased(read_fleet(world.store, world.keys, events=1))


def held(world: World) -> list[str]:
    """Tasks whose messages are in a queue, or in a worker's hands."""
    store, waiting = world.store, []
    for queue in (names.EMBED, names.CONTROL, *map(names.direct_queue, world.nodes)):
        for step in (names.INTERACTIVE, names.BULK):
            waiting += store.lrange(world.keys.queue(queue, step), 0, -1)
    found = [json.loads(one) for one in waiting]
    found += [json.loads(one)[0] for one in store.hvals(world.keys.held)]
    return invariants.lasting(one["headers"]["task"] for one in found)


def staying(world: World) -> list[str]:
    """Keys in Redis that stay for ever. What holds a tick of the clock is gone at another look, or,
    where it was lost that the tick is done, when Redis has delivered it again."""
    until = time.monotonic() + world.visibility_s + ANSWER_S
    while (found := unbounded(world)) and time.monotonic() < until:
        time.sleep(LOOK_S)
    return found


def unbounded(world: World) -> list[str]:
    """Keys in Redis that would stay for ever, as far as one look tells."""
    store, sizes = world.store, {b"set": "scard", b"zset": "zcard", b"hash": "hlen"}
    found = {}
    for key in store.scan_iter(count=1000):
        count = sizes.get(store.type(key))
        found[key.decode()] = (store.ttl(key), getattr(store, count)(key) if count else 1)
    return invariants.unbounded(found, world.keys)


def logged(world: World) -> list[str]:
    """Lines of workers' logs, and of the client's, that should not be."""
    never = {**dict.fromkeys(world.workers, NEVER_LOGGED), plan.CLIENT: NEVER_BY_CLIENT}
    return [
        f"{name} says {line[:200]}"
        for name, words in never.items()
        for line in world.log(name).splitlines()
        if any(one in line for one in words)
    ]
