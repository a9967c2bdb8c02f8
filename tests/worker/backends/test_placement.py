import os

import pytest

from api_client.wire.errors import BadSettings
from worker.backends.placement import mkl_branch, name_kernels, resolve
from worker.settings import WorkerSettings

ZEN_3 = {"cpu_name": "AMD EPYC", "avx2": True, "avx512_f": False}


@pytest.mark.parametrize(
    ("processor", "branch"),
    [
        (ZEN_3, "AVX2"),
        (ZEN_3 | {"avx512_f": True}, None),
        (ZEN_3 | {"avx2": False}, None),
        (ZEN_3 | {"cpu_name": "Intel(R) Xeon(R) Processor"}, None),
        ({"architecture": "arm64"}, None),
    ],
)
def test_only_where_onemkl_chooses_badly_its_kernels_are_named(processor, branch):
    assert mkl_branch(processor) == branch


def test_kernels_that_somebody_has_named_stay(monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: ZEN_3)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    name_kernels()
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"
    monkeypatch.delenv("MKL_CBWR")
    name_kernels()
    assert os.environ["MKL_CBWR"] == "AVX2"


@pytest.fixture
def cards(monkeypatch):
    """Free GB of each GPU; None cannot be used."""

    def put(*free_gb):
        def info(device):
            if (free := free_gb[int(device.partition(":")[2])]) is None:
                raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")
            return int(free * 1e9), int(80e9)

        monkeypatch.setattr("torch.cuda.device_count", lambda: len(free_gb))
        monkeypatch.setattr("torch.cuda.mem_get_info", info)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))

    return put


def test_auto_takes_the_first_gpu_with_room(cards, caplog):
    cards(None, 0.5, 70.0)
    assert resolve(WorkerSettings.read(device="auto", offline=True)).device == "cuda:2"
    assert "cuda:0 cannot be used: CUDA error: CUDA-capable device(s)" in caplog.text
    assert "cuda:1 has 0.5 GB free" in caplog.text


def test_cuda_is_the_first_gpu(cards):
    cards(70.0, 70.0)
    assert resolve(WorkerSettings.read(device="cuda", offline=True)).device == "cuda:0"


def test_a_gpu_that_is_not_here_is_told_or_the_cpu_taken(cards, caplog):
    cards(70.0)
    assert resolve(WorkerSettings.read(device="cuda:1", offline=True)).device == "cpu"
    assert "device cuda:1 is not here; using the CPU" in caplog.text
    with pytest.raises(BadSettings, match=r"cuda:1 is not here \(torch .* sees 1 CUDA devices\)"):
        resolve(WorkerSettings.read(device="cuda:1", offline=True, fallback_to_cpu=False))


def test_a_gpu_that_is_busy_now_makes_no_worker_on_the_cpu_that_would_stay_one(cards):
    cards(70.0, None)
    with pytest.raises(BadSettings, match=r"cuda:1 cannot be used: CUDA error.*; free it and sta"):
        resolve(WorkerSettings.read(device="cuda:1", offline=True))
