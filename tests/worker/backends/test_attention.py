"""torch's own attention is the yardstick."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from worker.backends.attention import MaskedAttention, without_detour

CAUSAL = torch.full((5, 5), -torch.inf).triu(1)


@pytest.fixture
def stock() -> nn.MultiheadAttention:
    torch.manual_seed(0)
    return nn.MultiheadAttention(8, 2, batch_first=True).eval()


@torch.inference_mode()
@pytest.mark.parametrize("mask", [None, CAUSAL, CAUSAL == 0, CAUSAL.repeat(6, 1, 1)])
def test_answers_are_those_of_torch_under_any_mask(
    stock: nn.MultiheadAttention, mask: Tensor | None
) -> None:
    short = deepcopy(stock)
    without_detour(short)
    assert type(short) is MaskedAttention
    rows = torch.randn(3, 5, 8)
    if mask is not None and mask.dtype is torch.bool:
        mask = ~mask
    want, _ = stock(rows, rows, rows, need_weights=False, attn_mask=mask)
    got, _ = short(rows, rows, rows, need_weights=False, attn_mask=mask)
    torch.testing.assert_close(got, want)


@torch.inference_mode()
def test_other_uses_are_left_to_torch(stock: nn.MultiheadAttention) -> None:
    short = deepcopy(stock)
    without_detour(short)
    queries, keys = torch.randn(3, 2, 8), torch.randn(3, 5, 8)
    for want, got in zip(stock(queries, keys, keys), short(queries, keys, keys), strict=True):
        torch.testing.assert_close(got, want)


def test_an_attention_with_extras_is_left_as_it_is() -> None:
    model = nn.ModuleList(
        [
            nn.MultiheadAttention(8, 2),
            nn.MultiheadAttention(8, 2, batch_first=True, kdim=4),
            nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True),
            nn.MultiheadAttention(8, 2, batch_first=True, add_zero_attn=True),
        ]
    )
    without_detour(model)
    assert all(type(module) is nn.MultiheadAttention for module in model)
