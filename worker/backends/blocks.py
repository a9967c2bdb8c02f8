"""The blocks of an open_clip tower, each as one function.

As they come, `nn.MultiheadAttention` makes a detour for rows under a float mask: it turns them
around first, so that its first product becomes one per position, each with a copy of the weights.
On a CPU in bfloat16 two texts through ViT-B-32 took 270 ms that way and take 25 ms this way, with
the same vectors. And what `nn.Module` does around each of a block's eight modules was a tenth of a
short query's pass; to win the interpreter's lock back after each operation, 3 % of passes beside
others (docs/why.md).
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from open_clip.transformer import LayerNorm, LayerScale, QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from .layout import lay_out, product

__all__ = ["Block", "lay_out_blocks", "without_detours"]


def _block(
    x: Tensor,
    weights: list[Tensor],
    scales: list[Tensor],
    heads: int,
    epsilons: tuple[float, float],
    gelu: str,
    mask: Tensor | None,
) -> Tensor:
    """(rows, length, width) to the same.

    Args:
        weights: weight and bias of the first norm, the three projections in one, the one after
            them, the second norm, and the two layers of the perceptron.
        scales: of what attention and perceptron add, (width,) each; or none.
        epsilons: of the two norms.
        gelu: "none", "tanh", or "quick".
        mask: added to the scores; of all rows, or of each head of each row.
    """
    rows, length, width = x.shape
    normed = torch.layer_norm(x, [width], weights[0], weights[1], epsilons[0])
    projected = product(normed, weights[2], weights[3])
    q, k, v = projected.view(rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind()
    if mask is not None:
        mask = mask.to(x.dtype)
        if mask.dim() == 3:
            mask = mask.view(rows, heads, length, length)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    added = product(attended.transpose(1, 2).reshape(x.shape), weights[4], weights[5])
    x = x + (added * scales[0] if len(scales) > 0 else added)
    normed = torch.layer_norm(x, [width], weights[6], weights[7], epsilons[1])
    hidden = product(normed, weights[8], weights[9], "" if gelu == "quick" else gelu)
    if gelu == "quick":
        hidden = hidden * torch.sigmoid(1.702 * hidden)
    added = product(hidden, weights[10], weights[11])
    return x + (added * scales[1] if len(scales) > 0 else added)


def _in_one_go(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, which gives the interpreter's lock away once where torch can still script it.

    torch has deprecated that, and has nothing in its place that needs no compiler.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scripted: Callable[..., Tensor] = torch.jit.script(function)
            return scripted
    except Exception:  # a newer torch, or a newer Python
        return function


_block_in_one_go = _in_one_go(_block)


class Block(ResidualAttentionBlock):  # type: ignore[misc]  # open_clip has no types
    """Batch-first rows that attend to themselves; anything else as open_clip does it.

    Rows without a mask are left to torch, too, unless the weights are laid out.

    Attributes:
        sources, scaled_by: where weights and scales are. They are not kept here themselves, as an
            unloaded model gets others.
        form: heads, epsilons and gelu.
    """

    sources: tuple[tuple[dict[str, Tensor], str], ...]
    scaled_by: tuple[dict[str, Tensor], ...]
    form: tuple[int, tuple[float, float], str]

    def forward(
        self,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """(rows, length, width) to the same."""
        weights = [parameters[name] for parameters, name in self.sources]
        *_, narrow, _ = weights
        has_one_mask = attn_mask is not None and attn_mask.dim() == 2
        is_ours = has_one_mask or narrow.is_mkldnn
        if k_x is not None or v_x is not None or not is_ours:
            rows: Tensor = super().forward(q_x, k_x, v_x, attn_mask)
            return rows
        scales = [parameters["gamma"] for parameters in self.scaled_by]
        run = _block_in_one_go if q_x.device.type == "cpu" else _block
        return run(q_x, weights, scales, *self.form, attn_mask)


def without_detours(model: nn.Module) -> None:
    """Give every block of the model that can use it the short way."""
    for block in model.modules():
        if type(block) is ResidualAttentionBlock and _is_plain(block):
            _shorten(block)


def lay_out_blocks(model: nn.Module) -> None:
    """The weights of every block that runs as one function."""
    for block in model.modules():
        # One that attends to others is not ours to run.
        if isinstance(block, Block) and not hasattr(block, "ln_1_kv"):
            lay_out(block.attn, "in_proj_weight")
            for linear in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
                lay_out(linear)


def _is_plain(block: Any) -> bool:
    attention = block.attn
    if type(attention) is not nn.MultiheadAttention or not attention.batch_first:
        return False
    if attention.in_proj_weight is None or attention.in_proj_bias is None:
        return False
    extras = attention.bias_k is not None or attention.add_zero_attn
    norms = block.ln_1, block.ln_2
    norms_are_plain = all(type(norm) is LayerNorm and norm.bias is not None for norm in norms)
    return norms_are_plain and type(block.mlp.gelu) in (nn.GELU, QuickGELU) and not extras


def _shorten(block: Any) -> None:
    attention, mlp = block.attn, block.mlp
    first = (block.ln_1, ""), (attention, "in_proj_"), (attention.out_proj, "")
    parts = *first, (block.ln_2, ""), (mlp.c_fc, ""), (mlp.c_proj, "")
    block.sources = tuple(
        (part._parameters, prefix + name) for part, prefix in parts for name in ("weight", "bias")
    )
    scales = block.ls_1, block.ls_2
    block.scaled_by = tuple(one._parameters for one in scales if isinstance(one, LayerScale))
    gelu = mlp.gelu.approximate if type(mlp.gelu) is nn.GELU else "quick"
    block.form = attention.num_heads, (block.ln_1.eps, block.ln_2.eps), gelu
    block.__class__ = Block
