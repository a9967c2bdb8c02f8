"""What a bulk job costs beside its vectors: planning, tracking and proving, with a no-op back end.

A list of so many paths is planned into a manifest, every chunk is claimed, read, marked and
counted, and the whole is compared with a sink that has everything, in one process, on a private
Valkey. From 10^4 to 10^7 items: what grows with them?
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .report import Options, Report

SIZES, QUICK_SIZES = (10**4, 10**5, 10**6, 10**7), (10**4, 10**5)
CHUNK = 1024
NODE = "bench@here"
# More is better: items a second over 50,000, 200 MB over memory, 64 MB over Redis's growth.
GOALS = {"rate_to_50k": 1.0, "memory_200mb": 1.0, "redis_64mb": 1.0}


def run(options: Options) -> Report:
    started = time.monotonic()
    figures: dict[str, float] = {}
    for size in QUICK_SIZES if options.quick else SIZES:
        found = _in_child(size)
        figures |= {f"{name}_{size:.0e}": value for name, value in found.items()}
    return Report(
        name="jobs",
        seconds=time.monotonic() - started,
        ratios={
            "rate_to_50k": found["items_per_s"] / 50_000,
            "memory_200mb": 200e6 / found["peak_bytes"],
            "redis_64mb": 64 * 2**20 / max(1.0, found["redis_growth_bytes"]),
        },
        goals=GOALS,
        figures=figures,
        note=f"the ratios are those of {size} items",
    )


def _in_child(size: int) -> dict[str, float]:
    """A process of its own, so that its peak memory is this size's alone."""
    command = [sys.executable, "-m", "benchmarks.jobs", str(size)]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(said.stdout)
    return found


def measure(size: int, folder: Path) -> dict[str, float]:
    from api_client.stack.valkey import PrivateValkey
    from api_client.wire.settings import Settings

    paths = folder / "list.txt"
    with paths.open("w") as lines:
        lines.writelines(f"/photos/{n // 1000:05}/{n:08}.jpg\n" for n in range(size))
    with PrivateValkey(folder / "valkey") as server:
        return _job(paths, folder, Settings.read(redis_url=server.url))


def _job(paths: Path, folder: Path, settings: Any) -> dict[str, float]:
    from api_client.reembed.talks import submission
    from api_client.wire import names
    from api_client.wire.broker import redis_client
    from api_client.wire.jobs import JobSpec, Place
    from worker import runtime
    from worker.delivery.suspects import Suspects
    from worker.metrics import Meter
    from worker.reembed import duty, sinks
    from worker.reembed import job as jobs
    from worker.settings import WorkerSettings

    sinks.BUILT_IN["nothing"] = f"{Nothing.__module__}:{Nothing.__name__}"
    vars(jobs)["embed"] = _embedded
    store, keys = redis_client(settings), names.Keys(settings.key_prefix)
    runtime.use(
        SimpleNamespace(  # type: ignore[arg-type]
            node=NODE,
            settings=WorkerSettings.read(image_roots=[folder], sink_roots=[folder]),
            catalogue={"none": None},
            slots=SimpleNamespace(lease=_lease),
            meter=Meter(),
            suspects=Suspects(store, keys, node=NODE, started_at=0.0),
            redis=store,
            keys=keys,
        )
    )
    spec = JobSpec(
        id="bench",
        source=Place(kind="list", where=str(paths)),
        sink=Place(kind="nothing", where="/dev/null"),
        model="none",
        chunk_size=CHUNK,
        papers=str(folder / "papers"),
    )
    redis_before = store.info("memory")["used_memory"]
    redis_most = 0
    started, begun = time.monotonic(), time.process_time()
    submission(keys, spec, settings)(store)
    stages: defaultdict[str, float] = defaultdict(float)
    for delivered, (stage, seconds) in enumerate(Post().deliver_all()):
        stages[stage] += seconds
        if delivered % 64 == 0:
            redis_most = max(redis_most, store.info("memory")["used_memory"])
    seconds = time.monotonic() - started
    status = duty.ledger_of(runtime.here(), "bench").status()
    assert (status.state, status.done) == ("complete", status.items), status
    return {
        "items_per_s": status.items / seconds,
        "items_per_cpu_s": status.items / (time.process_time() - begun),
        **{f"{stage}_s": spent for stage, spent in stages.items()},
        "peak_bytes": _peak_bytes(),
        "redis_growth_bytes": float(redis_most - redis_before),
    }


def _peak_bytes() -> float:
    """Of this process; `ru_maxrss` would count what its parent held when it was started."""
    status = Path("/proc/self/status").read_text()
    return next(1024.0 * int(row.split()[1]) for row in status.splitlines() if "VmHWM" in row)


class Post:
    """In place of the broker: what is sent is done at once, in this thread."""

    def __init__(self) -> None:
        self._sent: deque[tuple[str, dict[str, Any]]] = deque()

    def send_task(self, name: str, *, kwargs: dict[str, Any], **_: Any) -> None:
        self._sent.append((name, kwargs))

    def deliver_all(self) -> Iterator[tuple[str, float]]:
        """The stage and the seconds of each message, until none is left."""
        from tasks.reembed import job_check, job_chunk, job_plan, jobs_tend

        stages = {"plan": job_plan, "chunk": job_chunk, "check": job_check}
        tasks = {task.name: (stage, task) for stage, task in stages.items()}
        this = SimpleNamespace(app=self)
        jobs_tend.run.__func__(this)
        while self._sent:
            name, fields = self._sent.popleft()
            begun, (stage, task) = time.monotonic(), tasks[name]
            task.run.__func__(this, **fields)
            yield stage, time.monotonic() - begun


class Nothing:
    """A sink that throws everything away and says that it has it."""

    def __init__(self, *_: Any) -> None:
        self._row = _row()

    def write(self, shard: Any) -> None:
        pass

    def read(self, ids: Sequence[str], *, chunk: int | None = None) -> Mapping[str, Any]:
        return dict.fromkeys(ids, self._row)


def _embedded(_: Any, __: Any, ___: Any, items: Sequence[Any], **____: Any) -> Any:
    from worker.reembed.embedding import Embedded

    return Embedded(rows=dict.fromkeys((item.id for item in items), _row()))


def _row() -> Any:
    import numpy as np

    return np.ones(1, np.float32)


@contextmanager
def _lease(*_: Any, **__: Any) -> Iterator[Any]:
    from api_client.wire.messages import Kind
    from worker.backends.base import Traits

    yield SimpleNamespace(traits=Traits(dimension=1, kinds=(Kind.IMAGE,), fingerprint="none"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="clipyard-jobs-") as name:
        print(json.dumps(measure(int(sys.argv[1]), Path(name))))
