"""Weights in the order of a CPU's kernels, beside the same weights as they came."""

from copy import deepcopy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from worker.backends.layout import lay_out_trunk
from worker.backends.placement import best_precision
from worker.backends.residence import Residence, bytes_of

pytestmark = pytest.mark.skipif(
    best_precision("cpu") != "bfloat16", reason="no kernels for bfloat16 on this processor"
)


def trunk() -> nn.Module:
    torch.manual_seed(0)
    made = VisionTransformer(32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=0)
    return made.bfloat16().eval().requires_grad_(False)


@torch.inference_mode()
def test_a_trunk_of_timm_gives_the_same_rows() -> None:
    stock = trunk()
    short = deepcopy(stock)
    lay_out_trunk(short)
    lay_out_trunk(short)
    assert sum(parameter.is_mkldnn for parameter in short.parameters()) == 2 * 4
    pictures = torch.randn(3, 3, 32, 32).bfloat16()
    want, got = stock(pictures).float(), short(pictures).float()
    assert torch.cosine_similarity(got, want, dim=-1).min() >= 0.999


def test_it_takes_as_many_bytes_and_can_be_let_go() -> None:
    model = trunk()
    before = bytes_of(model)
    lay_out_trunk(model)
    assert bytes_of(model) == before
    Residence(model).unload()
    assert all(parameter.is_meta for parameter in model.parameters())
