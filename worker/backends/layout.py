"""Weights in the order in which oneDNN's kernels for bfloat16 read them.

Given them as they come, these kernels put a copy into that order in every pass: a product of ten
rows takes half as long again, one of 400 a fifth longer (docs/why.md).
"""

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["lay_out", "lay_out_trunk", "product"]


class LaidOut(nn.Linear):
    """A linear layer whose weights are laid out."""

    def forward(self, input: Tensor) -> Tensor:  # the name is torch's
        return product(input, self.weight, self.bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: str = "") -> Tensor:
    """`F.linear`, and what becomes of it at once.

    Args:
        gelu: how torch approximates it, "none" or "tanh"; "" leaves the product as it is.
    """
    if weight.is_mkldnn:
        then = "gelu" if gelu else "none"
        rows: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], gelu)
        return rows
    rows = F.linear(x, weight, bias)
    return F.gelu(rows, approximate=gelu) if gelu else rows


def lay_out(module: nn.Module, name: str = "weight") -> None:
    """One weight of two dimensions in bfloat16, unless it is laid out already."""
    weight: Tensor = getattr(module, name)
    if not weight.is_mkldnn:
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
        setattr(module, name, nn.Parameter(laid_out, requires_grad=False))


def lay_out_trunk(model: nn.Module) -> None:
    """The weights of every block that timm's plain vision transformers are made of."""
    for block in model.modules():
        if type(block) in (Attention, Mlp):
            for linear in block.children():
                if type(linear) is nn.Linear:
                    lay_out(linear)
                    linear.__class__ = LaidOut
