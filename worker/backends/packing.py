"""Weights in a quarter to a half of their bytes: int8, and one scale per output channel."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Stored", "packed", "plain"]

LARGEST = 127  # what a channel's largest weight becomes
NOTHING = 1e-30  # the largest weight that a channel of zeros is said to have
SMALL = 4096  # numbers; biases, norms and the like are worth more than the bytes they take


@dataclass(frozen=True)
class Stored:
    """One tensor at rest.

    Attributes:
        parts: the tensor itself; or int8 values of the same shape, and their scales.
        dtype: of the tensor.
    """

    parts: tuple[Tensor, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def restored(self) -> Tensor:
        """The tensor, on the device of its parts; the same numbers every time."""
        values, *scales = self.parts
        return values.float().mul_(scales[0]).to(self.dtype) if scales else values


def plain(tensor: Tensor) -> Stored:
    return Stored((tensor,), tensor.dtype)


def packed(tensor: Tensor) -> Stored:
    """Plain if it is small or has no channels."""
    if tensor.dim() < 2 or tensor.numel() < SMALL or not tensor.is_floating_point():
        return plain(tensor)
    numbers = tensor.float()
    largest = numbers.abs().flatten(1).amax(1).clamp(min=NOTHING)
    scales = (largest / LARGEST).view(-1, *[1] * (tensor.dim() - 1))
    return Stored(((numbers / scales).round_().to(torch.int8), scales), tensor.dtype)
