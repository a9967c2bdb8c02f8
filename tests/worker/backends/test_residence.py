"""Where weights are: what a device refuses, told with CUDA's runtime as torch brings it."""

import pytest
import torch
from torch import nn

from worker.backends import residence
from worker.backends.residence import Tiers, memory_errors


@pytest.mark.skipif(
    not torch.backends.cuda.is_built() or torch.cuda.is_available(),
    reason="wants CUDA's runtime without a driver, which refuses to page-lock",
)
def test_host_memory_that_cannot_be_page_locked_costs_speed_only(monkeypatch, caplog):
    monkeypatch.setattr(residence, "_cuda", lambda: torch._C._cudart)
    module = nn.Linear(64, 64).requires_grad_(False)
    first = [tensor.clone() for tensor in module.parameters()]
    tiers = Tiers(module, torch.device("cuda"))
    tiers._is_lifted = True  # where it would be with a driver
    tiers.lower()
    assert "cannot be page-locked" in caplog.text
    assert all(map(torch.equal, module.parameters(), first))
    assert tiers.footprint().host_bytes == sum(tensor.nbytes for tensor in first)
    tiers.unload()


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tri",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_whoever_finds_no_room_it_is_out_of_memory(said):
    with pytest.raises(MemoryError), memory_errors():
        raise RuntimeError(said)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="misaligned"), memory_errors():
        raise RuntimeError("CUDA error: misaligned address")
