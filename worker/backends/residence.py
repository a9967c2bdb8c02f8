"""Where a torch model's weights are, and how they move between host memory and a device."""

import ctypes
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .base import Footprint
from .packing import Stored, packed, plain

ALIGN = 512  # bytes; where a GPU likes its tensors to start

# What else than torch says when there is no room: its allocator for the CPU, the driver, and the
# libraries that ask the driver by themselves (pytorch/pytorch#128601).
_NO_ROOM = (
    "can't allocate memory",
    "cuda error: out of memory",
    "hip error: out of memory",
    "blas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)

log = logging.getLogger(__name__)


class Residence:
    """The tensors of one model where device and host are one memory: moves cost nothing."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model = model
        self._device = device

    def footprint(self) -> Footprint:
        return Footprint(host_bytes=bytes_of(self._model))

    def lift(self) -> None:
        """
        Raises:
            MemoryError: the device has no room; nothing has moved.
        """

    def lower(self) -> None:
        """Nothing to do."""

    def pack(self) -> None:
        """On the device: the weights become what packing leaves, now and after every lift.

        Raises:
            MemoryError: `lower` brings them back as they were.
        """
        data = [_packed(tensor).restored() for tensor in _tensors(self._model)]
        self._place(data)

    def unload(self) -> None:
        """Lets go of every copy. A mapped file is closed with its last tensor."""
        self._model._apply(_emptied)  # type: ignore[no-untyped-call]
        return_freed(self._device)

    def _place(self, data: Sequence[Tensor]) -> None:
        for tensor, where in zip(_tensors(self._model), data, strict=True):
            tensor.data = where


class Tiers(Residence):
    """The same with a device that has memory of its own.

    The host copy stays while the weights are on the device: the mapped file at first, page-locked
    memory from the first `lower` on, packed where that was asked for. So the first lift does not
    wait for a copy, later ones run at the speed of the bus, and `lower` merely drops what the
    device holds.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__(model, device)
        self._host = [plain(tensor.data) for tensor in _tensors(model)]
        self._is_mapped = True
        self._is_lifted = False
        self._unpin: Callable[[], None] | None = None

    def footprint(self) -> Footprint:
        """A mapped file that has a copy on the device holds no memory of its own."""
        kept = sum(stored.nbytes for stored in self._host)
        if self._is_lifted:
            device_bytes = bytes_of(self._model)
            return Footprint(device_bytes, host_bytes=0 if self._is_mapped else kept)
        return Footprint(host_bytes=kept)

    def lift(self) -> None:
        if not self._is_lifted:
            with memory_errors(self._device):
                self._place([self._on_device(stored).restored() for stored in self._host])
            self._is_lifted = True

    def lower(self) -> None:
        if self._is_lifted:
            if self._device.type == "cuda" and self._unpin is None:
                self._unpin, self._host = _page_locked(self._host, self._device)
                self._is_mapped = False
            self._place([stored.parts[0] for stored in self._host])
            self._is_lifted = False
            return_freed(self._device)

    def pack(self) -> None:
        host = []
        with memory_errors(self._device):
            for tensor in _tensors(self._model):
                stored = _packed(tensor)
                tensor.data = stored.restored()
                parts = tuple(part.to("cpu", copy=True) for part in stored.parts)
                host.append(replace(stored, parts=parts))
        self._host, self._is_mapped = host, False
        self._unlock()  # a first try that found no room may have left the weights as they came

    def unload(self) -> None:
        self._host = []
        self._unlock()
        super().unload()

    def _unlock(self) -> None:
        if self._unpin is not None:
            self._unpin()
            self._unpin = None

    def _on_device(self, stored: Stored) -> Stored:
        parts = tuple(part.to(self._device, non_blocking=True) for part in stored.parts)
        return replace(stored, parts=parts)


def residence(model: nn.Module, device: torch.device) -> Residence:
    """For a model whose weights are in host memory."""
    return (Residence if device.type == "cpu" else Tiers)(model, device)


def return_freed(device: torch.device) -> None:
    """Allocators keep freed blocks for later; the memory probe should see them free."""
    with current(device):
        torch.cuda.empty_cache()  # does nothing where there is no GPU
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # musl has none


def bytes_of(model: nn.Module) -> int:
    """Of all parameters and buffers, wherever they are."""
    return sum(tensor.nbytes for tensor in _tensors(model))


def current(device: torch.device) -> AbstractContextManager[object]:
    """CUDA's current device, in this thread and while the block lasts.

    It is `cuda:0` for a thread that says nothing, and then what names no device, as giving freed
    memory back, opens that one as well: 0.5 GB of it for nothing (pytorch/pytorch#144025).
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """On this device: torch's ways to run out of memory, as the one that callers expect."""
    try:
        with current(device):
            yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from None
    except RuntimeError as error:
        said = str(error).lower()
        if not any(sentence in said for sentence in _NO_ROOM):
            raise
        with current(device):
            torch.cuda.empty_cache()  # what torch kept is room for the others
        raise MemoryError(str(error)) from None


def _emptied(tensor: Tensor) -> Tensor:
    """As `nn.Module.to_empty`, which refuses weights that are laid out for oneDNN."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def _packed(tensor: Tensor) -> Stored:
    """Masks and tables among the buffers stay as they are."""
    return packed(tensor.data) if isinstance(tensor, nn.Parameter) else plain(tensor.data)


def _page_locked(
    host: Sequence[Stored], device: torch.device
) -> tuple[Callable[[], None], list[Stored]]:
    """Copies in one page-locked block: what unlocks it, and the copies as views of it.

    Registered by hand, because torch's own allocator rounds pinned memory up to a power of two.
    """
    sizes = [-(-part.nbytes // ALIGN) * ALIGN for stored in host for part in stored.parts]
    starts = np.cumsum([0, *sizes])
    block = torch.empty(int(starts[-1]), dtype=torch.uint8)
    places = iter(starts)

    def copied(part: Tensor) -> Tensor:
        start = next(places)
        room = block[start : start + part.nbytes]
        return room.view(part.dtype).view(part.shape).copy_(part)

    copies = [replace(stored, parts=tuple(map(copied, stored.parts))) for stored in host]
    return _pinned(block, device), copies


def _pinned(block: Tensor, device: torch.device) -> Callable[[], None]:
    """Page-locks it, and gives what undoes that. Where the driver refuses, lifts are slower."""
    cuda = _cuda()
    with current(device):
        code = int(cuda.cudaHostRegister(block.data_ptr(), block.nbytes, 0))
    if code:
        log.warning(
            "%.1f GB of host memory cannot be page-locked (CUDA error %d): lifts will be slower",
            block.nbytes / 1e9,
            code,
        )
        # CUDA keeps its error for whoever launches the next kernel, which should be no pass.
        with suppress(RuntimeError):
            torch.zeros(1, device=device)
        return lambda: None

    def unpin() -> None:
        with current(device):
            cuda.cudaHostUnregister(block.data_ptr())

    return unpin


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
