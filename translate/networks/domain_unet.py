"""The U-Net that is told which domains it is given and which it is to make.

Its input are the planes of :mod:`skyshift.translate.any_to_any`: D maps, D planes of which are present, D planes of
which is wanted. The planes are read as vectors p, t ∈ {0, 1}^D, and with learned embeddings E_p, E_t of each domain

    e = W SiLU(E_p p + E_t t),    h_l ← h_l (1 + γ_l(e)) + β_l(e)

scales and shifts the features of every level l of encoder and decoder (Perez et al. 2018). The last layers of γ and β
are zero at the start, so that it begins as a plain U-Net of the D maps.

References:
    Perez, Strub, de Vries, Dumoulin & Courville 2018, FiLM: Visual Reasoning with a General Conditioning Layer,
    arXiv:1709.07871.
    Ronneberger, Fischer & Brox 2015, U-Net, arXiv:1505.04597.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skyshift.errors import SkyshiftError
from skyshift.translate.any_to_any import PLANES
from skyshift.translate.networks.blocks import (
    Normalisation,
    PaddingMode,
    Upsampling,
    pad_to_multiple,
    require_at_least,
    require_layers,
)
from skyshift.translate.networks.unet import UNet


class Film(nn.Module):
    """Scales and shifts features by what an embedding says.

    Args:
        embedding: Length of the embedding.
        channels: Of the features.
    """

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        """(batch, channels, h, w) and (batch, embedding) to features of the same shape."""
        scale, shift = self.linear(embedding)[:, :, None, None].chunk(2, dim=1)
        return features * (1 + scale) + shift


class DomainUNet(UNet):
    """A U-Net for any of D domains, with linear output, for maps of any size.

    Args:
        in_channels: 3·D planes; see the module.
        out_channels: Channels of the target maps.
        width: Channels of level 0.
        depth: Number of halvings.
        norm: Normalisation of all levels but level 0.
        padding: How maps and features continue beyond their border.
        upsampling: How the decoder doubles its resolution.
        dropout: Probability that the decoder's deepest three levels forget a value, while training.
        embedding: Length of the embeddings.

    Raises:
        SkyshiftError: The planes are not three a domain, a name is unknown, or a number is out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 32,
        depth: int = 4,
        norm: Normalisation = "group",
        padding: PaddingMode = "reflect",
        upsampling: Upsampling = "bilinear",
        dropout: float = 0.0,
        embedding: int = 32,
    ) -> None:
        if in_channels % PLANES:
            raise SkyshiftError(
                f"DomainUNet takes {PLANES} planes a domain, not {in_channels} channels; set data.domains, or take UNet"
            )
        require_at_least("embedding", embedding, 1)
        domains = in_channels // PLANES
        super().__init__(
            domains,
            out_channels,
            width=width,
            depth=depth,
            norm=norm,
            padding=padding,
            upsampling=upsampling,
            dropout=dropout,
        )
        self.domains = domains
        channels = self.feature_channels[1:]
        self.present = nn.Linear(self.domains, embedding)  # of a vector of zeros and ones: the sum of embeddings
        self.wanted = nn.Linear(self.domains, embedding, bias=False)
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.encoder_films = nn.ModuleList(Film(embedding, n) for n in channels)
        self.decoder_films = nn.ModuleList(Film(embedding, n) for n in reversed(channels[:-1]))

    def _embedding(self, x: Tensor) -> Tensor:
        # The largest value of a plane, not its mean: tiles at a border are padded with zeros.
        present, wanted = x[:, self.domains :].amax(dim=(2, 3)).split(self.domains, dim=1)
        mixed: Tensor = self.mix(self.present(present) + self.wanted(wanted))
        return mixed

    def forward(self, x: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Translate maps, or go only as far as the features of some layers.

        Args:
            x: (batch, 3·D, height, width), any size from 1 pixel.
            layers: Numbers of the layers whose features are wanted instead of the translation.

        Returns:
            As :meth:`UNet.forward`; layer 0 are the D maps.

        Raises:
            SkyshiftError: There is no such layer.
        """
        e = self._embedding(x)
        h, crop = pad_to_multiple(x[:, : self.domains], self.stride, self.padding, minimum=2 * self.stride)
        features = [h.to(memory_format=torch.channels_last)]
        if layers is not None:
            require_layers(layers, len(self.feature_channels), "U-Net")
        blocks = list(zip(self.encoder, self.encoder_films, strict=True))
        for level, (block, film) in enumerate(blocks[: None if layers is None else max(layers)]):
            features.append(film(block(F.avg_pool2d(features[-1], 2) if level else features[-1]), e))
        if layers is not None:
            return [features[layer] for layer in layers]
        h = features.pop()
        for up, block, film in zip(self.upsamplers, self.decoder, self.decoder_films, strict=True):
            h = film(block(torch.cat([up(h), features.pop()], dim=1)), e)
        return crop(self.head(h))
