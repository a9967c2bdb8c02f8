import os

import pytest

from worker.backends.placement import mkl_branch, name_kernels

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
