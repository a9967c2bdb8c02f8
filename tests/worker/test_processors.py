import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worker.processors import ASIDE, available, decode_threads, step_aside


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/other/cpu.cfs_quota_us": "1\n", "cpu/other/cpu.cfs_period_us": "100000\n"}, 8),
        ({"a.slice/b.service/cpu.max": "200000 100000\n"}, 2),
        ({"a.slice/cpu.max": "100000 100000\n", "a.slice/b.service/cpu.max": "max 100000\n"}, 1),
    ],
    ids=[
        "no container",
        "v2 unlimited",
        "v2",
        "v2 half a core",
        "v2 more",
        "v1 unlimited",
        "v1",
        "v1 of another controller",
        "a service of systemd",
        "its slice",
    ],
)
def test_a_container_gets_no_more_cores_than_its_share(
    tmp_path: Path, files: dict[str, str], cores: int
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(
        "2:memory:/other\n1:cpu,cpuacct:/box\n0::/a.slice/b.service\n"
    )
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert available(root=tmp_path) == cores


def test_each_core_has_one_thread_that_decodes() -> None:
    assert decode_threads() == available()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
def test_only_the_thread_that_asks_steps_aside() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = priority()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(step_aside).result()
        assert pool.submit(priority).result() == min(19, before + ASIDE)
    assert priority() == before
