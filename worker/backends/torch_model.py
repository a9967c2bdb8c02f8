"""A simple model made of one torch module, whose weights move between host memory and a device."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from api_client.wire.errors import LoadFailed
from api_client.wire.messages import Kind

from . import weights
from .base import Collated, Footprint
from .cores import CORES
from .patches import as_products
from .placement import best_precision
from .residence import Residence, memory_errors, residence
from .samples import lowest_cosine, prepared, samples
from .simple import SimpleModel

__all__ = ["Normalised", "TorchModel"]

FAITHFUL = 0.999  # cosine to the weights as they came, for every sample


class TorchModel(SimpleModel):
    """Write `build` in the place of `load`; what it returned is `module` from then on."""

    _residence: Residence
    _unpacked: tuple[tuple[Kind, NDArray[np.float32]], ...] = ()  # what samples gave at first
    _is_faithful = False

    def build(self) -> nn.Module:
        """The module with its weights, on the CPU."""
        raise NotImplementedError

    def rounded(self, module: nn.Module) -> nn.Module:
        """What `build` made, in the precision of the placement."""
        return module.to(self.dtype)

    def load(self) -> None:
        module = self.rounded(self.build().requires_grad_(False)).eval()
        self._identity = weights.identity(module.state_dict())
        self.settle(module)

    def settle(self, module: nn.Module) -> None:
        """From here on its weights move."""
        as_products(module)
        self.module: Any = module
        self._residence = residence(module, self.device)

    @property
    def device(self) -> torch.device:
        return torch.device(self.placement.device)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.placement.precision)
        return dtype

    def space(self) -> str:
        """The class, its version, the content of the weights in whatever file, and the options."""
        entry = self.entry
        own = f"{type(self).__qualname__} {self.about.version}".rstrip()
        options = (f"{name}={value!r}" for name, value in sorted(entry.options.items()))
        return "\n".join((own, entry.architecture, self._identity, *options))

    def stacked(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """For a GPU in page-locked memory, which it reads by itself."""
        if self.device.type == "cuda":
            shape = (len(pictures), *pictures[0].shape)
            with suppress(RuntimeError):  # a driver that locks no more of it costs speed only
                block = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
                return np.stack(pictures, out=block.numpy())
        return super().stacked(pictures)

    @torch.inference_mode()
    def run(self, kind: Kind, batch: Collated) -> NDArray[np.float32]:
        share = CORES.share() if self.device.type == "cpu" else nullcontext()
        with memory_errors(self.device), share:
            return super().run(kind, batch)

    def footprint(self) -> Footprint:
        return self._residence.footprint()

    def lift(self) -> None:
        """
        Raises:
            LoadFailed: the entry wants its weights in fewer bytes than they can do with.
        """
        self._residence.lift()
        if self.entry.at_rest is not None and not self._is_faithful:
            try:
                self._pack()
            except MemoryError:
                self._residence.lower()
                raise
        in_bfloat16 = self.device.type == "cpu" and self.dtype is torch.bfloat16
        if in_bfloat16 and best_precision("cpu") == "bfloat16":
            with memory_errors(self.device):
                self.lay_out()

    def lay_out(self) -> None:
        """Put weights into the order of a CPU's kernels for bfloat16, where somebody knows how to
        run the module with them then. With every lift."""

    def lower(self) -> None:
        self._residence.lower()

    def unload(self) -> None:
        self._residence.unload()
        super().unload()

    def _pack(self) -> None:
        """With the first lift, so that no vector is ever made of weights that come back others."""
        if not self._unpacked:
            rows_before = tuple(self._sampled())
            self._residence.pack()
            self._unpacked = rows_before
        for (kind, before), (_, after) in zip(self._unpacked, self._sampled(), strict=True):
            lowest = lowest_cosine(before, after)
            if not lowest >= FAITHFUL:
                raise LoadFailed(
                    f"{self.entry.id} cannot rest as {self.entry.at_rest}: some {kind}s come out "
                    f"with a cosine of {lowest:.5f} to what they were, and {FAITHFUL} is the "
                    "least; leave at_rest out of its entry"
                )
        self._is_faithful = True

    def _sampled(self) -> Iterator[tuple[Kind, NDArray[np.float32]]]:
        for kind in self.traits.kinds:
            rows = [self.run(kind, [prepared(self, kind, item)]) for item in samples(kind)]
            yield kind, np.concatenate(rows)


class Normalised:
    """Turns the pixels of pictures into what a network takes.

    Args:
        mean, std: of each channel, for values from 0 to 1.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._mean, self._std = (
            torch.as_tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std)
        )
        self._device, self._dtype = device, dtype

    def __call__(self, pixels: NDArray[np.uint8]) -> Tensor:
        """(rows, height, width, 3) to (rows, 3, height, width).

        The same float32 steps as torchvision's, then cast. Bytes cross the bus, a quarter of what
        floats would be.
        """
        rows = torch.from_numpy(pixels).to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        return rows.float().div_(255).sub_(self._mean).div_(self._std).to(self._dtype)
