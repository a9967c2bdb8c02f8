"""open_clip's own block is the yardstick."""

import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from open_clip.transformer import LayerNorm, LayerNormFp32, QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from worker.backends import blocks
from worker.backends.blocks import Block, lay_out_blocks, without_detours
from worker.backends.placement import best_precision

WIDTH, HEADS, LENGTH = 8, 2, 5
CAUSAL = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)


def pair(**options: Any) -> tuple[nn.Module, nn.Module]:
    """A block as open_clip has it, and the same one on the short way."""
    torch.manual_seed(0)
    stock = ResidualAttentionBlock(WIDTH, HEADS, **options).eval()
    for parameter in stock.parameters():
        nn.init.normal_(parameter, std=0.3)
    short = deepcopy(stock)
    without_detours(short)
    assert type(short) is Block
    return stock, short


@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, {"ls_init_value": 0.1}, {"act_layer": QuickGELU}])
@pytest.mark.parametrize("mask", [None, CAUSAL, CAUSAL == 0, CAUSAL.repeat(3 * HEADS, 1, 1)])
def test_rows_are_those_of_open_clip_under_any_mask(
    options: dict[str, Any], mask: Tensor | None
) -> None:
    stock, short = pair(**options)
    rows = torch.randn(3, LENGTH, WIDTH)
    torch.testing.assert_close(short(rows, attn_mask=mask), stock(rows, attn_mask=mask))


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="torch scripts nothing there")
@torch.inference_mode()
def test_in_one_go_it_is_the_same_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    _, short = pair(ls_init_value=0.1)
    rows = torch.randn(3, LENGTH, WIDTH)
    in_one_go = short(rows, attn_mask=CAUSAL)
    assert isinstance(blocks._block_in_one_go, torch.jit.ScriptFunction)
    monkeypatch.setattr(blocks, "_block_in_one_go", blocks._block)
    assert torch.equal(short(rows, attn_mask=CAUSAL), in_one_go)


def test_what_torch_cannot_script_runs_as_it_is() -> None:
    def odd(*rows: Tensor) -> Tensor:
        return next(iter(rows))

    assert blocks._in_one_go(odd) is odd


@torch.inference_mode()
def test_a_mask_of_wider_numbers_is_cast() -> None:
    stock, short = pair()
    rows = torch.randn(3, LENGTH, WIDTH)
    want = stock(rows, attn_mask=CAUSAL)
    torch.testing.assert_close(short(rows, attn_mask=CAUSAL.double()), want)


@torch.inference_mode()
def test_other_uses_are_left_to_open_clip() -> None:
    stock, short = pair()
    queries, others = torch.randn(3, LENGTH, WIDTH), torch.randn(3, LENGTH, WIDTH)
    want = stock(queries, others, others, attn_mask=CAUSAL)
    torch.testing.assert_close(short(queries, others, others, attn_mask=CAUSAL), want)


@torch.inference_mode()
def test_weights_that_moved_or_were_replaced_are_found() -> None:
    _, short = pair()
    assert isinstance(short, Block)
    rows = torch.randn(3, LENGTH, WIDTH)
    before = short(rows, attn_mask=CAUSAL)
    weights = deepcopy(short.state_dict())
    short.to_empty(device="meta")
    assert short(rows.to("meta"), attn_mask=CAUSAL.to("meta")).is_meta
    short.to_empty(device="cpu")
    short.load_state_dict(weights)
    torch.testing.assert_close(short(rows, attn_mask=CAUSAL), before)


def attention(**options: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **options})


@pytest.mark.parametrize(
    "part",
    [
        ("attn", partial(attention, batch_first=False)),
        ("attn", partial(attention, kdim=4)),
        ("attn", partial(attention, add_bias_kv=True)),
        ("attn", partial(attention, add_zero_attn=True)),
        ("attn", nn.Identity),
        ("attn", partial(attention, bias=False)),
        ("ln_1", partial(LayerNormFp32, WIDTH)),
        ("ln_2", partial(LayerNormFp32, WIDTH)),
        ("ln_1", partial(LayerNorm, WIDTH, elementwise_affine=False)),
        ("ln_2", partial(LayerNorm, WIDTH, bias=False)),
    ],
)
def test_a_block_with_extras_is_left_as_it_is(part: tuple[str, Callable[[], nn.Module]]) -> None:
    name, made = part
    block = ResidualAttentionBlock(WIDTH, HEADS)
    setattr(block, name, made())
    without_detours(block)
    assert type(block) is ResidualAttentionBlock


bfloat16_kernels = pytest.mark.skipif(
    best_precision("cpu") != "bfloat16", reason="no kernels for bfloat16 on this processor"
)


@bfloat16_kernels
@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, {"ls_init_value": 0.1}, {"act_layer": QuickGELU}])
@pytest.mark.parametrize("mask", [None, CAUSAL, CAUSAL == 0, CAUSAL.repeat(3 * HEADS, 1, 1)])
def test_weights_that_are_laid_out_give_the_same_rows(
    options: dict[str, Any], mask: Tensor | None
) -> None:
    stock, short = pair(**options)
    rows = torch.randn(3, LENGTH, WIDTH)
    want = stock(rows, attn_mask=mask)
    short = short.bfloat16()
    lay_out_blocks(short)
    lay_out_blocks(short)
    got = short(rows.bfloat16(), attn_mask=mask).float()
    assert torch.cosine_similarity(got, want, dim=-1).min() >= 0.999


@bfloat16_kernels
def test_a_block_that_attends_to_others_keeps_its_weights() -> None:
    _, short = pair(is_cross_attention=True)
    lay_out_blocks(short.bfloat16())
    assert not any(parameter.is_mkldnn for parameter in short.parameters())
