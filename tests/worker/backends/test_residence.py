"""Where weights are: what a device refuses, told with CUDA's runtime as torch brings it."""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn

from worker.backends import residence
from worker.backends.residence import Tiers, memory_errors, return_freed

CPU = torch.device("cpu")


@pytest.mark.skipif(
    not torch.backends.cuda.is_built() or torch.cuda.is_available(),
    reason="wants CUDA's runtime without a driver, which refuses to page-lock",
)
def test_host_memory_that_cannot_be_page_locked_costs_speed_only(monkeypatch, caplog):
    monkeypatch.setattr(residence, "_cuda", lambda: torch._C._cudart)
    monkeypatch.setattr("torch.cuda.device", nullcontext)
    module = nn.Linear(64, 64).requires_grad_(False)
    first = [tensor.clone() for tensor in module.parameters()]
    tiers = Tiers(module, torch.device("cuda:1"))
    tiers._is_lifted = True  # where it would be with a driver
    tiers.lower()
    assert "cannot be page-locked" in caplog.text
    assert all(map(torch.equal, module.parameters(), first))
    assert tiers.footprint().host_bytes == sum(tensor.nbytes for tensor in first)
    tiers.unload()


class Driver:
    """Page-locks whatever it is asked to. Address -> bytes."""

    def __init__(self):
        self.locked = {}

    def cudaHostRegister(self, address, size, flags):
        self.locked[address] = size
        return 0

    def cudaHostUnregister(self, address):
        del self.locked[address]


def test_what_is_packed_late_keeps_no_page_locked_copy_of_what_it_was(monkeypatch):
    driver = Driver()
    monkeypatch.setattr(residence, "_cuda", lambda: driver)
    monkeypatch.setattr("torch.cuda.device", nullcontext)
    module = nn.Linear(64, 64).requires_grad_(False)
    tiers = Tiers(module, torch.device("cuda:1"))
    size = tiers.footprint().host_bytes
    tiers._is_lifted = True  # where it would be with a device that had no room to pack it
    tiers.lower()
    assert sum(driver.locked.values()) >= size
    tiers._is_lifted = True
    tiers.pack()
    assert driver.locked == {}
    tiers.lower()
    assert tiers.footprint().host_bytes <= sum(driver.locked.values()) < 0.5 * size
    tiers.unload()
    assert driver.locked == {}


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
    with pytest.raises(MemoryError), memory_errors(CPU):
        raise RuntimeError(said)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="misaligned"), memory_errors(CPU):
        raise RuntimeError("CUDA error: misaligned address")


def test_what_names_no_device_happens_on_the_models_own(monkeypatch):
    here, emptied = [], []

    @contextmanager
    def device(wanted):
        here.append(str(wanted))
        try:
            yield
        finally:
            here.pop()

    monkeypatch.setattr("torch.cuda.device", device)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: emptied.append(*here))
    second = torch.device("cuda:1")
    return_freed(second)
    with pytest.raises(MemoryError), memory_errors(second):
        raise RuntimeError(f"CUDA error: out of memory on {here}")
    assert emptied == ["cuda:1", "cuda:1"]
