"""The projection head of contrastive learning: features of several layers to unit vectors of one size.

    z = h / ‖h‖,    h = W₂ max(0, W₁ f + b₁) + b₂

with weights of their own for each layer.

References:
    Chen, Kornblith, Norouzi & Hinton 2020, A Simple Framework for Contrastive Learning, arXiv:2002.05709.
    Park, Efros, Zhang & Zhu 2020, arXiv:2007.15651 (two layers of 256).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from skyshift.translate.networks.blocks import require_at_least


class Projection(nn.Module):
    """Two linear layers a feature layer.

    Args:
        channels: Of the features of each layer.
        dimensions: Of the unit vectors.

    Raises:
        SkyshiftError: The number of dimensions is below 1.
    """

    def __init__(self, channels: Sequence[int], dimensions: int = 256) -> None:
        super().__init__()
        require_at_least("dimensions", dimensions, 1)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(before, dimensions), nn.ReLU(), nn.Linear(dimensions, dimensions))
            for before in channels
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """For each layer (…, channels) to (…, dimensions), float32 of unit length."""
        return [F.normalize(head(f).float(), dim=-1) for head, f in zip(self.heads, features, strict=True)]
