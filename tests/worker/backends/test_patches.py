"""torch's own convolution is the yardstick."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from worker.backends.patches import Patches, as_products


@torch.inference_mode()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("window", "height", "width"), [((16, 16), 48, 32), ((8, 10), 8, 10), ((14, 14), 45, 29)]
)
def test_patches_are_those_of_torch(
    window: tuple[int, int], height: int, width: int, bias: bool, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    stock = nn.Conv2d(3, 5, window, stride=window, bias=bias)
    short = deepcopy(stock)
    as_products(short)
    assert type(short) is Patches
    images = torch.randn(2, 3, height, width).to(memory_format=layout)
    torch.testing.assert_close(short(images), stock(images))


def test_other_convolutions_are_left_as_they_are() -> None:
    model = nn.ModuleList(
        [
            nn.Conv2d(3, 4, 16, stride=8),
            nn.Conv2d(3, 4, 16, stride=16, padding=1),
            nn.Conv2d(3, 4, 16, stride=16, dilation=2),
            nn.Conv2d(4, 4, 16, stride=16, groups=2),
            nn.Conv2d(3, 4, 4, stride=4),
        ]
    )
    as_products(model)
    assert all(type(module) is nn.Conv2d for module in model)
