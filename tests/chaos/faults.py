"""How each kind of fault is done to a world, and undone."""

import os
import random
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from . import family, plan
from .plan import Fault, Kind
from .world import World, replace

Mend = Callable[[], object]


class Chaos:
    """Does what a plan says, in threads of its own.

    Attributes:
        over: when each fault was mended, on the clock that was given; in the order of time.
        done: those that met somebody: who is dead just then cannot be killed.
    """

    def __init__(
        self, world: World, faults: Sequence[Fault], *, clock: Callable[[], float]
    ) -> None:
        self._world = world
        self._faults = faults
        self._clock = clock
        self._alone: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self.over: list[tuple[float, Fault]] = []
        self.done: list[Fault] = []
        self.failed: list[str] = []

    def run(self, stop: threading.Event) -> None:
        """Blocks until the last fault is mended."""
        begun, threads = self._clock(), []
        for fault in self._faults:
            if stop.wait(max(0.0, begun + fault.at_s - self._clock())):
                break
            thread = threading.Thread(target=self._happen, args=(fault, stop), name=fault.kind)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()

    def _happen(self, fault: Fault, stop: threading.Event) -> None:
        try:
            with self._alone[fault.resource]:
                mend = _WAYS[fault.kind](self._world, fault)
                try:
                    stop.wait(fault.lasts_s)
                finally:
                    mend()
            self.done.append(fault)
        except _Nobody:
            pass
        except Exception as error:
            self.failed.append(f"{fault}: {error!r}")
        self.over.append((self._clock(), fault))


class _Nobody(Exception):
    """The process that a fault is meant for is dead at the moment."""


def _nothing() -> None:
    """What is to be done where somebody else mends it."""


def _signalled(world: World, fault: Fault, *, number: signal.Signals) -> Mend:
    _send(_pid(world, fault.target), number)
    return _nothing


def _paused(world: World, fault: Fault) -> Mend:
    pid = _pid(world, fault.target or plan.REDIS)
    _send(pid, signal.SIGSTOP)
    return partial(_send, pid, signal.SIGCONT)


def _pid(world: World, target: str) -> int:
    pid = world.pid(target)
    if pid is None:
        raise _Nobody
    return pid


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _redis_down(world: World, fault: Fault, *, number: signal.Signals) -> Mend:
    world.valkey.end(number)
    return world.valkey.start


def _cut(world: World, fault: Fault) -> Mend:
    world.proxy.cut(fault.amount, random.Random(fault.number))
    return _nothing


def _dropped(world: World, fault: Fault) -> Mend:
    world.proxy.drop(fault.amount, random.Random(fault.number))
    return _nothing


def _stalled(world: World, fault: Fault) -> Mend:
    world.proxy.stall()
    return world.proxy.flow


def _clock_jumped(world: World, fault: Fault) -> Mend:
    world.clocks.move(fault.target, by_s=fault.amount)
    return partial(world.clocks.move, fault.target, by_s=0)


def _disk_full(world: World, fault: Fault) -> Mend:
    """Redis's is mended as operations.md has it: make room, then have its file written anew."""
    disk = world.disks[fault.target]
    disk.fill()

    def mend() -> None:
        disk.free()
        if fault.target == plan.REDIS:
            world.valkey.write_anew()

    return mend


def _out_of_memory(world: World, fault: Fault, *, step: str) -> Mend:
    order = family.order(world.orders, fault.target, step)
    order.write_text(f"{fault.amount:g}")
    return order.unlink


def _replaced(world: World, fault: Fault) -> Mend:
    replace(world.checkpoint, world.versions[fault.number % len(world.versions)])
    return _nothing


def _truncated(world: World, fault: Fault) -> Mend:
    """In its place, under whoever has it mapped."""
    size = world.checkpoint.stat().st_size
    os.truncate(world.checkpoint, int(size * fault.amount))
    return partial(replace, world.checkpoint, world.versions[0])


def _host_slow(world: World, fault: Fault) -> Mend:
    world.host.delay_s = fault.amount
    return partial(setattr, world.host, "delay_s", 0.0)


def _host_dead(world: World, fault: Fault) -> Mend:
    world.host.dead = True
    return partial(setattr, world.host, "dead", False)


_WAYS = {
    Kind.KILLED: partial(_signalled, number=signal.SIGKILL),
    Kind.TERMINATED: partial(_signalled, number=signal.SIGTERM),
    Kind.PAUSED: _paused,
    Kind.REDIS_KILLED: partial(_redis_down, number=signal.SIGKILL),
    Kind.REDIS_TERMINATED: partial(_redis_down, number=signal.SIGTERM),
    Kind.REDIS_PAUSED: _paused,
    Kind.CUT: _cut,
    Kind.STALLED: _stalled,
    Kind.DROPPED: _dropped,
    Kind.CLOCK: _clock_jumped,
    Kind.DISK_FULL: _disk_full,
    Kind.LOAD_OOM: partial(_out_of_memory, step=family.LOAD),
    Kind.FORWARD_OOM: partial(_out_of_memory, step=family.RUN),
    Kind.REPLACED: _replaced,
    Kind.TRUNCATED: _truncated,
    Kind.HOST_SLOW: _host_slow,
    Kind.HOST_DEAD: _host_dead,
}
