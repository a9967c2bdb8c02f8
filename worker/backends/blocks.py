"""The blocks of an open_clip tower, each as one function.

As they come, `nn.MultiheadAttention` makes a detour for rows under a float mask: it turns them
around first, so that its first product becomes one per position, each with a copy of the weights.
On a CPU in bfloat16 two texts through ViT-B-32 took 270 ms that way and take 25 ms this way, with
the same vectors. And what `nn.Module` does around each of a block's eight modules was a tenth of a
short query's pass (docs/why.md).
"""

from typing import Any

from open_clip.transformer import LayerNorm, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from .layout import NOTHING, Then, is_laid_out, lay_out, product

__all__ = ["Block", "lay_out_blocks", "without_detours"]


class Block(ResidualAttentionBlock):  # type: ignore[misc]  # open_clip has no types
    """Batch-first rows that attend to themselves; anything else as open_clip does it.

    Rows without a mask are left to torch, too, unless the weights are laid out.

    Attributes:
        steps: its modules in their order. As attributes they would be looked up in Python; their
            parameters are not kept here, as an unloaded model gets others.
    """

    steps: tuple[nn.Module, ...]

    def forward(
        self,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """(rows, length, width) to the same."""
        first_norm, attention, out, first_scale, norm, widen, gelu, narrow, scale = self.steps
        has_one_mask = attn_mask is not None and attn_mask.dim() == 2
        is_ours = has_one_mask or is_laid_out(out)
        if k_x is not None or v_x is not None or not is_ours:
            rows: Tensor = super().forward(q_x, k_x, v_x, attn_mask)
            return rows
        attended = _attended(attention, _normed(first_norm, q_x), attn_mask)
        x = q_x + first_scale.forward(_linear(out, attended))
        hidden = _activated(gelu, widen, _normed(norm, x))
        answer: Tensor = x + scale.forward(_linear(narrow, hidden))
        return answer


def without_detours(model: nn.Module) -> None:
    """Give every block of the model that can use it the short way."""
    block: Any
    for block in model.modules():
        if type(block) is ResidualAttentionBlock and _is_plain(block):
            attention, mlp = block.attn, block.mlp
            first = block.ln_1, attention, attention.out_proj, block.ls_1
            block.steps = *first, block.ln_2, mlp.c_fc, mlp.gelu, mlp.c_proj, block.ls_2
            block.__class__ = Block


def lay_out_blocks(model: nn.Module) -> None:
    """The weights of every block that runs as one function."""
    for block in model.modules():
        # One that attends to others is not ours to run.
        if isinstance(block, Block) and not hasattr(block, "ln_1_kv"):
            _, attention, out, _, _, widen, _, narrow, _ = block.steps
            lay_out(attention, "in_proj_weight")
            for linear in (out, widen, narrow):
                lay_out(linear)


def _is_plain(block: Any) -> bool:
    attention = block.attn
    if type(attention) is not nn.MultiheadAttention or not attention.batch_first:
        return False
    extras = attention.bias_k is not None or attention.add_zero_attn
    norms_are_plain = type(block.ln_1) is type(block.ln_2) is LayerNorm
    return norms_are_plain and attention.in_proj_weight is not None and not extras


def _attended(attention: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    weights = attention._parameters
    projected = product(x, weights["in_proj_weight"], weights["in_proj_bias"])
    rows, length, width = x.shape
    heads = projected.view(rows, length, 3, attention.num_heads, attention.head_dim)
    q, k, v = heads.permute(2, 0, 3, 1, 4)
    if mask is not None:
        mask = mask.to(x.dtype)
        if mask.dim() == 3:  # one of each row's heads
            mask = mask.view(rows, attention.num_heads, length, length)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attended.transpose(1, 2).reshape(rows, length, width)


def _normed(norm: Any, x: Tensor) -> Tensor:
    weights = norm._parameters
    return F.layer_norm(x, norm.normalized_shape, weights["weight"], weights["bias"], norm.eps)


def _activated(gelu: Any, linear: Any, x: Tensor) -> Tensor:
    if type(gelu) is nn.GELU and is_laid_out(linear):
        return _linear(linear, x, ("gelu", [], gelu.approximate))
    activated: Tensor = gelu.forward(_linear(linear, x))
    return activated


def _linear(linear: Any, x: Tensor, then: Then = NOTHING) -> Tensor:
    weights = linear._parameters
    return product(x, weights["weight"], weights["bias"], then)
