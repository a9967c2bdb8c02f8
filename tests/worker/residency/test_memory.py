from types import SimpleNamespace

import pytest
import torch

from worker.residency.memory import Bytes, Memory, Pressure, PressureGauge, next_level

MIB = 2**20


def tree(root, cgroup, **files):
    """A fake /proc and /sys: `files` by path below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for path, content in files.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return Memory("cpu", root=root)


def v2(group="", *, limit, used, cache=0):
    folder = f"{group}/" if group else ""
    return {
        f"{folder}memory.max": limit,
        f"{folder}memory.current": used,
        f"{folder}memory.stat": f"anon {used}\ninactive_file {cache}",
    }


def v1(group="", *, limit, used, cache=0):
    folder = f"memory/{group}/" if group else "memory/"
    return {
        f"{folder}memory.limit_in_bytes": limit,
        f"{folder}memory.usage_in_bytes": used,
        f"{folder}memory.stat": f"inactive_file 0\ntotal_inactive_file {cache}",
    }


def test_a_gpu_is_known_by_its_own_id_and_not_by_its_place_in_a_container(monkeypatch):
    gpus = {"cuda:0": SimpleNamespace(uuid="1b77-f0"), "cuda:1": SimpleNamespace(uuid="9c02-a4")}
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)
    assert [Memory(name).uuid() for name in gpus] == ["1b77-f0", "9c02-a4"]
    assert Memory("cpu").uuid() is None


def test_the_limit_of_a_container_counts(tmp_path):
    memory = tree(tmp_path, "0::/\n", **v2(limit=10 * MIB, used=4 * MIB))
    assert memory.host() == Bytes(10 * MIB, 6 * MIB)


def test_page_cache_that_can_go_is_free(tmp_path):
    memory = tree(tmp_path, "0::/\n", **v2(limit=10 * MIB, used=9 * MIB, cache=7 * MIB))
    assert memory.host() == Bytes(10 * MIB, 8 * MIB)


def test_of_nested_groups_the_one_with_the_least_room_counts(tmp_path):
    memory = tree(
        tmp_path,
        "0::/outer/inner\n",
        **v2("outer/inner", limit=9 * MIB, used=1 * MIB),
        **v2("outer", limit=10 * MIB, used=7 * MIB),
    )
    assert memory.host() == Bytes(10 * MIB, 3 * MIB)


def test_the_first_version_of_cgroups_is_read_too(tmp_path):
    lines = "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n"
    memory = tree(tmp_path, lines, **v1(limit=10 * MIB, used=9 * MIB, cache=1 * MIB))
    assert memory.host() == Bytes(10 * MIB, 2 * MIB)


@pytest.mark.parametrize(
    "files", [v2(limit="max", used=4), v1(limit=2**63 - 4096, used=4), v2(limit="?", used=4), {}]
)
def test_without_a_limit_the_machine_counts(tmp_path, files):
    host = tree(tmp_path, "0::/\n4:memory:/\n", **files).host()
    assert host.total > 64 * MIB
    assert 0 < host.free <= host.total


def test_without_cgroups_the_machine_counts(tmp_path):
    assert Memory("cpu", root=tmp_path).host().total > 64 * MIB


def test_more_used_than_allowed_is_nothing_free(tmp_path):
    memory = tree(tmp_path, "0::/\n", **v2(limit=10 * MIB, used=11 * MIB))
    assert memory.host() == Bytes(10 * MIB, 0)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_unified_memory_has_no_device_memory_of_its_own(device):
    assert Memory(device).device() is None


def test_the_used_fraction_of_no_memory_at_all_is_one():
    assert Bytes(0, 0).used_fraction == 1.0


@pytest.mark.parametrize(
    ("level", "used", "after"),
    [
        (Pressure.NORMAL, 0.69, Pressure.NORMAL),
        (Pressure.NORMAL, 0.70, Pressure.ELEVATED),
        (Pressure.NORMAL, 0.99, Pressure.CRITICAL),
        (Pressure.ELEVATED, 0.68, Pressure.ELEVATED),
        (Pressure.ELEVATED, 0.66, Pressure.NORMAL),
        (Pressure.ELEVATED, 0.79, Pressure.ELEVATED),
        (Pressure.HIGH, 0.78, Pressure.HIGH),
        (Pressure.CRITICAL, 0.93, Pressure.CRITICAL),
        (Pressure.CRITICAL, 0.91, Pressure.HIGH),
        (Pressure.CRITICAL, 0.10, Pressure.NORMAL),
    ],
)
def test_a_level_ends_a_little_below_where_it_began(level, used, after):
    assert next_level(level, used) is after


def test_the_gauge_follows_the_fullest_memory_and_does_not_flicker():
    gauge = PressureGauge()
    assert gauge.read(Bytes(100, 50), None) is Pressure.NORMAL
    assert gauge.read(Bytes(100, 50), Bytes(100, 18)) is Pressure.HIGH
    assert gauge.read(Bytes(100, 22), Bytes(100, 50)) is Pressure.HIGH
    assert gauge.read(Bytes(100, 24), Bytes(100, 50)) is Pressure.ELEVATED
    assert gauge.read(None) is Pressure.NORMAL


@pytest.mark.parametrize(
    ("before", "worst", "after", "peak"),
    [(100, 130, 100, 30), (100, 190, 160, 30), (100, 130, 40, 30)],
    ids=["alone", "while another is lifted", "while another leaves"],
)
def test_the_peak_of_a_pass_is_what_it_took_beside_all_weights(
    monkeypatch, before, worst, after, peak
):
    held, began = iter([before, after]), []
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: next(held))
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", began.append)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: worst)
    with Memory("cuda:1").peak() as took:
        assert began == ["cuda:1"]
    assert took() == peak


def test_what_torch_keeps_for_passes_to_come_is_told(monkeypatch):
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 100)
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda device: 170)
    assert (Memory("cuda:1").kept(), Memory("cpu").kept()) == (70, 0)


def test_without_a_gpu_no_pass_has_a_peak():
    with Memory("cpu").peak() as took:
        pass
    assert took() == 0


def test_a_gpu_is_named_by_what_it_is(monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"a card at {device}")
    assert (Memory("cuda:0").name(), Memory("cpu").name()) == ("a card at cuda:0", "cpu")
