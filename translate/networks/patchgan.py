"""The PatchGAN discriminator: one judgement for every patch of a map.

4x4 convolutions, ``layers`` of them with stride 2 and two with stride 1. Each output is a logit for the patch
that it sees, its receptive field R, found from the last layer to the first with kernel k and stride s of
each:

    R ← (R − 1)·s + k,    from R = 1,

which is 16, 34, 70 and 142 pixels for 1, 2, 3 and 4 layers.

No activation works in place: explanations by gradients and by DeepLIFT read activations after the fact.

References:
    Isola, Zhu, Zhou & Efros 2017, Image-to-Image Translation with Conditional Adversarial Networks,
    arXiv:1611.07004.
"""

from torch import Tensor, nn

from skyshift.errors import SkyshiftError
from skyshift.translate.networks.blocks import (
    Normalisation,
    PaddingMode,
    initialise,
    normalisation,
    require_at_least,
    require_name,
)

KERNEL = 4
MAX_WIDENING = 8


class PatchGAN(nn.Module):
    """A convolutional discriminator of patches.

    Args:
        in_channels: Channels of what it judges. A conditional discriminator judges source and target
            together, so this is the sum of their channels.
        width: Channels of the first convolution; they double with every further one, up to eight times.
        layers: Number of convolutions with stride 2; sets the receptive field.
        norm: Normalisation of all convolutions but the first and the last.
        padding: How maps and features continue beyond their border.

    Raises:
        SkyshiftError: A name is unknown or a number is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        width: int = 64,
        layers: int = 3,
        norm: Normalisation = "instance",
        padding: PaddingMode = "zeros",
    ) -> None:
        super().__init__()
        require_name("padding", padding, PaddingMode)
        require_at_least("width", width, 1)
        require_at_least("layers", layers, 1)
        modules: list[nn.Module] = []
        before = in_channels
        for index in range(layers + 1):
            after = width * min(2**index, MAX_WIDENING)
            here: Normalisation = norm if index else "none"
            modules += [
                nn.Conv2d(
                    before,
                    after,
                    KERNEL,
                    stride=2 if index < layers else 1,
                    padding=1,
                    padding_mode=padding,
                    bias=here == "none",
                ),
                normalisation(here, after),
                nn.LeakyReLU(0.2),
            ]
            before = after
        modules.append(nn.Conv2d(before, 1, KERNEL, padding=1, padding_mode=padding))
        self.layers = nn.Sequential(*modules)
        initialise(self)

    @property
    def _convolutions(self) -> list[nn.Conv2d]:
        return [module for module in self.layers if isinstance(module, nn.Conv2d)]

    @property
    def receptive_field(self) -> int:
        """Side of the patch that one logit sees, pixels."""
        field = 1
        for convolution in reversed(self._convolutions):
            field = (field - 1) * convolution.stride[0] + convolution.kernel_size[0]
        return field

    @property
    def stride(self) -> int:
        """Distance between the patches of neighbouring logits, pixels."""
        return 2 ** sum(convolution.stride[0] == 2 for convolution in self._convolutions)

    @property
    def minimum_size(self) -> int:
        """Shortest side of a map that gives one logit, pixels."""
        size = 1
        for convolution in reversed(self._convolutions):
            size = (size - 1) * convolution.stride[0] + convolution.kernel_size[0] - 2
        return size

    def forward(self, x: Tensor) -> Tensor:
        """Judge maps.

        Args:
            x: (batch, in_channels, height, width).

        Returns:
            (batch, 1, height', width'), logits: positive where the patch looks real. Of n pixels on a side,
            floor(n / 2^layers) − 2 logits remain.

        Raises:
            SkyshiftError: The map is smaller than ``minimum_size``.
        """
        height, width = x.shape[-2:]
        if min(height, width) < self.minimum_size:
            raise SkyshiftError(
                f"the discriminator got maps of {height} x {width} pixels; with this many layers it needs at "
                f"least {self.minimum_size} x {self.minimum_size}. Use larger maps or fewer layers."
            )
        return self.layers(x)
