"""Weights in the order of a CPU's kernels, beside the same weights as they came."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import timm
import torch
from open_clip.transformer import ResidualAttentionBlock
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from worker.backends.blocks import lay_out_blocks, without_detours
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


def test_the_weights_of_every_block_are_laid_out_once() -> None:
    model = trunk()
    lay_out_trunk(model)
    laid_out = [parameter for parameter in model.parameters() if parameter.is_mkldnn]
    assert len(laid_out) == 2 * 4
    lay_out_trunk(model)
    again = [parameter for parameter in model.parameters() if parameter.is_mkldnn]
    assert [id(parameter) for parameter in again] == [id(parameter) for parameter in laid_out]


@torch.inference_mode()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_tiny", "mixer_s32_224"])
def test_a_trunk_of_timm_gives_the_same_rows(name: str) -> None:
    torch.manual_seed(0)
    stock = timm.create_model(name, num_classes=0).bfloat16().eval().requires_grad_(False)
    short = deepcopy(stock)
    lay_out_trunk(short)
    assert any(parameter.is_mkldnn for parameter in short.parameters())
    pictures = torch.randn(2, 3, 224, 224).bfloat16()
    want, got = stock(pictures).float(), short(pictures).float()
    assert torch.cosine_similarity(got, want, dim=-1).min() >= 0.999


def tower() -> nn.Module:
    made = nn.Sequential(ResidualAttentionBlock(64, 2)).bfloat16().requires_grad_(False)
    without_detours(made)
    return made


@pytest.mark.parametrize(
    ("made", "laid_out"), [(trunk, lay_out_trunk), (tower, lay_out_blocks)], ids=["timm", "clip"]
)
def test_they_take_as_many_bytes_and_can_be_let_go(
    made: Callable[[], nn.Module], laid_out: Callable[[nn.Module], None]
) -> None:
    model = made()
    before = bytes_of(model)
    laid_out(model)
    assert any(parameter.is_mkldnn for parameter in model.parameters())
    assert bytes_of(model) == before
    Residence(model, torch.device("cpu")).unload()
    assert all(parameter.is_meta for parameter in model.parameters())
