"""Bulk jobs, one after the other, and whether each left one row for every item."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import dataset

from api_client import Client
from api_client.reembed.job import Job
from api_client.wire.errors import BadRequest, ClipyardError, ImageUnreachable, Quarantined
from api_client.wire.jobs import JobState, JobStatus

from . import plan
from .truth import Truth
from .world import World

LOOK_S = 1.0


@dataclass
class Coverage:
    """What the jobs left, in items."""

    items: int = 0
    lost: int = 0
    doubled: int = 0
    failed: int = 0  # recorded with a code, where a code is in order
    jobs: int = 0
    stuck: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)


def coverage(wanted: Iterable[str], rows: Sequence[str]) -> tuple[list[str], list[str]]:
    """Ids without a row, and ids with more than one, or that nobody asked for."""
    found, known = Counter(rows), set(wanted)
    missing = sorted(known - found.keys())
    extra = [row for row, times in found.items() if times > 1 or row not in known]
    return missing, extra


class Jobs:
    """Submits jobs when they are due, resumes what has paused, and reads what they wrote.

    Args:
        items: of all jobs together; every other job is of texts, the rest of pictures.
    """

    def __init__(
        self, world: World, truth: Truth, *, items: int, each: int, over_s: float, model: str
    ) -> None:
        self._world, self._truth, self._model = world, truth, model
        self._sizes = [min(each, items - first) for first in range(0, items, each)]
        self._over_s = over_s
        self._pictures = sorted(world.pictures.iterdir())
        self.coverage = Coverage()
        self.give_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Whether all are over."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self.give_up.set()
            self._thread.join(30)
            return False
        return True

    def _run(self) -> None:
        begun = time.monotonic()
        with self._world.client() as client:
            for number, size in enumerate(self._sizes):
                due = begun + self._over_s * number / len(self._sizes)
                self.give_up.wait(max(0.0, due - time.monotonic()))
                try:
                    self._do(client, f"job-{number}", size, of_texts=number % 2 == 0)
                except Exception as error:  # else it ended this thread, and nobody heard of it
                    self.coverage.lost += size
                    self.coverage.told.append(f"lost: job-{number}: {error!r}")

    def _do(self, client: Client, name: str, size: int, *, of_texts: bool) -> None:
        found = self.coverage
        found.jobs, found.items = found.jobs + 1, found.items + size
        rows = self._rows(name, size, of_texts=of_texts)
        source = self._world.models / f"{name}.jsonl"
        source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        sink = self._world.disks[plan.SINKS].folder / name
        kind = f"texts:{source}" if of_texts else f"list:{source}"
        job = self._persist(lambda: self._submitted(client, name, kind, sink))
        status = self._awaited(job) if job else None
        if status is None or not status.state.is_final:
            found.stuck += size
            found.told.append(f"stuck: {name} is {status.state if status else 'not submitted'}")
            return
        if status.state is not JobState.COMPLETE:
            found.told.append(f"{name} is {status.state}: {status.reason}")
        self._read(sink, {row["id"]: row.get("text") or row["path"] for row in rows})

    def _rows(self, name: str, size: int, *, of_texts: bool) -> list[dict[str, str]]:
        if of_texts:
            return [{"id": f"{name}/{i}", "text": f"item {i} of {name}"} for i in range(size)]
        files = [str(self._pictures[i % len(self._pictures)]) for i in range(size)]
        at = f"http://127.0.0.1:{self._world.host.port}"
        return [
            {"id": f"{name}/{i}", "path": f"{at}/{Path(file).name}" if i % 4 == 0 else file}
            for i, file in enumerate(files)
        ]

    def _submitted(self, client: Client, name: str, source: str, sink: Path) -> Job:
        try:
            options = {"id": name, "chunk_size": 64, "window": 8, "source_options": {"id": "id"}}
            return client.reembed(source, sink=sink, model=self._model, **options)
        except BadRequest as error:
            if "there is a job" not in str(error):  # the answer to an earlier try was lost
                raise
            return client.job(name)

    def _awaited(self, job: Job) -> JobStatus | None:
        """Its status once it is over; failures that may pass are tried again, once."""
        retried, status = False, None
        while not self.give_up.wait(LOOK_S):
            try:
                status = job.status()
                if status.state is JobState.PAUSED:
                    job.resume()
                elif status.state is JobState.COMPLETE and status.failed and not retried:
                    retried = True
                    job.retry_failed()
                elif status.state.is_final:
                    return status
            except ClipyardError as error:
                self.coverage.codes[error.code] += 1
        return status

    def _persist(self, do: Callable[[], Job]) -> Job | None:
        while not self.give_up.is_set():
            try:
                return do()
            except ClipyardError as error:
                self.coverage.codes[error.code] += 1
                if not error.retryable:
                    raise
            time.sleep(LOOK_S)
        return None

    def _read(self, sink: Path, wanted: dict[str, str]) -> None:
        found = self.coverage
        table = dataset.dataset(sink, format="parquet").to_table()
        rows = table.to_pylist()
        missing, extra = coverage(wanted, [row["id"] for row in rows])
        found.lost += len(missing)
        found.doubled += len(extra)
        found.told += [f"{sink.name} has no row for {one}" for one in missing[:3]]
        found.told += [f"{sink.name} has rows too many for {one}" for one in extra[:3]]
        for row in rows:
            ref = wanted.get(row["id"], "")
            if row["error"]:
                found.failed += 1
                found.codes[row["error"]] += 1
                of_hosts = ref.startswith("http") and row["error"] == ImageUnreachable.code
                if not (of_hosts or row["error"] == Quarantined.code):
                    found.lost += 1
                    found.told.append(f"{row['id']}: {row['error']}")
            elif not self._is_right(row, ref):
                found.lost += 1
                found.told.append(f"{row['id']} has another vector than {ref!r}")

    def _is_right(self, row: dict[str, Any], ref: str) -> bool:
        is_text = ref.startswith("item ")
        content = ref if is_text else self._world.pictures / Path(ref).name
        vector = np.asarray(row["vector"], np.float32)
        return self._truth.is_right(self._model, row["fingerprint"], content, vector)
