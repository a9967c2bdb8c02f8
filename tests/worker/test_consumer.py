from dataclasses import dataclass
from types import SimpleNamespace

from worker.consumer import renewable


@dataclass(frozen=True)
class Request:
    tag: str
    acknowledged: bool = False
    time_start: float | None = None

    @property
    def message(self) -> SimpleNamespace:
        return SimpleNamespace(delivery_tag=self.tag)


def tags(*requests: Request) -> list[str]:
    return renewable(requests, now=100.0, longest_run_s=60.0)


def test_a_running_task_keeps_its_lease() -> None:
    assert tags(Request("young", time_start=99.0)) == ["young"]


def test_a_task_that_waits_for_a_thread_keeps_its_lease_however_long() -> None:
    assert tags(Request("waiting", time_start=None)) == ["waiting"]


def test_a_task_older_than_the_longest_run_loses_its_lease() -> None:
    assert tags(Request("old", time_start=40.0), Request("young", time_start=41.0)) == ["young"]


def test_an_acknowledged_message_is_not_renewed() -> None:
    assert tags(Request("done", acknowledged=True, time_start=99.0)) == []
