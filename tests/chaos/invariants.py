"""What must hold, whatever happens: pure checks of what was seen."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from api_client.status import Fleet
from api_client.wire import names
from api_client.wire.names import Keys

TICKS = (names.SWEEP, names.SWEEP_FLEET, names.JOBS_TEND)  # they come and go all the time
TEMPORARY = (".tmp-*", "*.tmp")
NO_EXPIRY = -1
BINDING = ":_kombu.binding"  # of an exchange: a member for every queue
MOST_BINDINGS = 1000


def over_the_limit(fleet: Fleet) -> list[str]:
    """Workers with more models on the device than they have slots."""
    seated = {
        worker.name: sum(model.state == "device" for model in worker.held)
        for worker in fleet.workers
    }
    return [
        f"{worker.name} has {seated[worker.name]} models on {worker.slots} slots"
        for worker in fleet.workers
        if seated[worker.name] > worker.slots
    ]


def leased(fleet: Fleet) -> list[str]:
    """Workers with models that are in use."""
    return [
        f"{worker.name} has {model.leases} on {model.id}"
        for worker in fleet.workers
        for model in worker.held
        if model.leases
    ]


def not_ready(fleet: Fleet, pids: Mapping[str, int | None]) -> list[str]:
    """Workers that are not ready; the status of a killed one outlives it by half a minute.

    Args:
        pids: node name -> process, of all who should be there.
    """
    ready = {worker.name: worker.pid for worker in fleet.workers if worker.state == "ready"}
    return [node for node, pid in pids.items() if pid is None or ready.get(node) != pid]


def unbounded(keys: Mapping[str, tuple[int, int]], known: Keys) -> list[str]:
    """Keys that would stay for ever, beside the few that are bounded by what they hold.

    Args:
        keys: name -> (time to live, members).
    """
    bounded = {known.workers, known.jobs, known.events}
    return sorted(
        f"{key} ({members} members)"
        for key, (ttl, members) in keys.items()
        if ttl == NO_EXPIRY and not (key in bounded or (BINDING in key and members < MOST_BINDINGS))
    )


def left_behind(folders: Iterable[Path]) -> list[str]:
    """Temporary files of somebody who did not come to the end of it."""
    return sorted(
        str(file) for folder in folders for name in TEMPORARY for file in folder.rglob(name)
    )


def recoveries_s(
    over: Iterable[float], probes: Sequence[tuple[float, float]], *, end: float
) -> list[float]:
    """For each fault, how long after it was mended somebody who asked from then on had an answer.

    Args:
        over: when faults were mended.
        probes: (begun, answered) of the requests that were answered.
        end: when the last probe was given up.
    """
    return [
        min((answered for begun, answered in probes if begun >= at), default=end) - at
        for at in over
    ]


def lasting(messages: Iterable[str]) -> list[str]:
    """Of the names of tasks, those that are more than a tick of the clock."""
    return sorted(name for name in messages if name not in TICKS)
