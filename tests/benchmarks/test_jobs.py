from pathlib import Path

from benchmarks import jobs
from worker import runtime


def test_a_job_of_many_items_is_planned_done_and_checked(tmp_path: Path) -> None:
    try:
        figures = jobs.measure(3000, tmp_path)
    finally:
        runtime.use(None)
    assert figures["items_per_s"] > 0
    assert figures["redis_growth_bytes"] < 64e6
