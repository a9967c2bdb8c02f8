"""Where a torch model's weights are, and how they move between host memory and a device."""

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .base import Footprint

ALIGN = 512  # bytes; where a GPU likes its tensors to start


class Residence:
    """The tensors of one model. On a CPU, device and host are one memory and moves cost nothing.

    With a GPU the host copy stays while the weights are on the device: the mapped file at first,
    page-locked memory from the first `lower` on. So the first lift does not wait for a copy,
    later ones run at the speed of the bus, and `lower` merely drops what the device holds.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._host = [tensor.data for tensor in _tensors(model)]
        self._pinned: Tensor | None = None

    def footprint(self) -> Footprint:
        """A mapped file that has a copy on the device holds no memory of its own."""
        size = bytes_of(self._model)
        if self._is_lifted():
            return Footprint(device_bytes=size, host_bytes=0 if self._pinned is None else size)
        return Footprint(host_bytes=size)

    def lift(self) -> None:
        """
        Raises:
            MemoryError: the device has no room; nothing has moved.
        """
        if self._device.type != "cpu" and not self._is_lifted():
            with memory_errors():
                copies = [host.to(self._device, non_blocking=True) for host in self._host]
            self._place(copies)

    def lower(self) -> None:
        if self._is_lifted():
            if self._device.type == "cuda" and self._pinned is None:
                self._pinned, self._host = _page_locked(self._host)
            self._place(self._host)
            self._return_freed()

    def unload(self) -> None:
        """Lets go of every copy. A mapped file is closed with its last tensor."""
        self._model.to_empty(device=torch.device("meta"))
        self._host = []
        if self._pinned is not None:
            _cuda().cudaHostUnregister(self._pinned.data_ptr())
            self._pinned = None
        self._return_freed()

    def _is_lifted(self) -> bool:
        return next(_tensors(self._model)).device.type == self._device.type != "cpu"

    def _place(self, data: Sequence[Tensor]) -> None:
        for tensor, where in zip(_tensors(self._model), data, strict=True):
            tensor.data = where

    def _return_freed(self) -> None:
        """Allocators keep freed blocks for later; the memory probe should see them free."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if sys.platform == "linux":
            getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # musl has none


def bytes_of(model: nn.Module) -> int:
    """Of all parameters and buffers, wherever they are."""
    return sum(tensor.nbytes for tensor in _tensors(model))


@contextmanager
def memory_errors() -> Iterator[None]:
    """torch's two ways to run out of memory, as the one that callers expect."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        raise MemoryError(str(error)) from None


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def _page_locked(tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Copies in one page-locked block: the block, and the copies as views of it.

    Registered by hand, because torch's own allocator rounds pinned memory up to a power of two.
    """
    starts = np.cumsum([0, *(-(-tensor.nbytes // ALIGN) * ALIGN for tensor in tensors)])
    block = torch.empty(int(starts[-1]), dtype=torch.uint8)
    copies = [
        block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        for start, tensor in zip(starts, tensors, strict=False)
    ]
    _cuda().cudaHostRegister(block.data_ptr(), block.nbytes, 0)
    return block, copies


def _cuda() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
