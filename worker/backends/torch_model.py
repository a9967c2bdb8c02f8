"""A simple model made of one torch module, whose weights move between host memory and a device."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from api_client.wire.messages import Kind

from . import weights
from .base import Footprint, Prepared
from .residence import Residence, memory_errors
from .simple import SimpleModel

__all__ = ["TorchModel"]


class TorchModel(SimpleModel):
    """Write `build` in the place of `load`."""

    def build(self) -> nn.Module:
        """The module with its weights, on the CPU."""
        raise NotImplementedError

    def load(self) -> None:
        module = self.build().requires_grad_(False).to(self.dtype).eval()
        self.module: Any = module
        self._identity = weights.identity(module.state_dict())
        self._residence = Residence(module, self.device)

    @property
    def device(self) -> torch.device:
        return torch.device(self.placement.device)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.placement.precision)
        return dtype

    def space(self) -> str:
        """The content of the weights, whatever file they came from."""
        entry = self.entry
        return "\n".join((type(self).__qualname__, entry.architecture, self._identity))

    @torch.inference_mode()
    def run(self, kind: Kind, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        with memory_errors():
            return super().run(kind, batch)

    def footprint(self) -> Footprint:
        return self._residence.footprint()

    def lift(self) -> None:
        self._residence.lift()

    def lower(self) -> None:
        self._residence.lower()

    def unload(self) -> None:
        self._residence.unload()
        super().unload()
