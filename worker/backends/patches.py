"""The patches of a vision transformer through one matrix product in the place of a convolution.

`nn.Conv2d` is slow for windows that lie side by side, above all for pixels that lie as pictures do,
channels last: those of ViT-B-32 took 18 ms a picture, a tenth of the whole pass, and take 5 this
way (one core of an AMD EPYC without AVX-512, float32, batches of 32; docs/why.md).
"""

from torch import Tensor, nn
from torch.nn import functional as F

NARROW = 8  # pixels; narrower windows, as of ConvNeXt's stages, are faster as torch does them


class Patches(nn.Conv2d):
    """A convolution whose windows do not overlap."""

    def forward(self, images: Tensor) -> Tensor:
        """(rows, channels, height, width) to (rows, out_channels, down, across)."""
        rows, channels, height, width = images.shape
        tall, wide = self.kernel_size
        down, across = height // tall, width // wide
        whole = images[:, :, : down * tall, : across * wide]
        windows = whole.reshape(rows, channels, down, tall, across, wide).permute(0, 2, 4, 1, 3, 5)
        flat = windows.reshape(rows, down * across, channels * tall * wide)
        patches = F.linear(flat, self.weight.reshape(self.out_channels, -1), self.bias)
        return patches.transpose(1, 2).reshape(rows, self.out_channels, down, across)


def as_products(model: nn.Module) -> None:
    """Give every convolution of the model that cuts pictures into patches the short way."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _cuts_patches(module):
            module.__class__ = Patches


def _cuts_patches(convolution: nn.Conv2d) -> bool:
    side_by_side = convolution.stride == convolution.kernel_size and convolution.dilation == (1, 1)
    plain = convolution.padding in ((0, 0), "valid") and convolution.groups == 1
    return side_by_side and plain and min(convolution.kernel_size) >= NARROW
