from pathlib import Path

import pytest

from benchmarks import jobs
from worker import runtime
from worker.reembed import job, sinks


def test_a_job_of_many_items_is_planned_done_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the benchmark, which has a process of its own, puts there goes afterwards.
    monkeypatch.setattr(job, "embed", job.embed)
    monkeypatch.setattr(sinks, "BUILT_IN", dict(sinks.BUILT_IN))
    try:
        figures = jobs.measure(3000, tmp_path)
    finally:
        runtime.use(None)
    assert figures["items_per_s"] > 0
    assert figures["redis_growth_bytes"] < 64e6
