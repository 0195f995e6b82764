"""The discriminator of domains: two hidden layers on features, one logit, larger for the source.

References:
    Ganin et al. 2016, Domain-Adversarial Training of Neural Networks, JMLR 17, arXiv:1505.07818.
"""

from torch import Tensor, nn


class DomainDiscriminator(nn.Module):
    """Three linear layers.

    Args:
        width: Number of features.
        hidden: Of each hidden layer.
    """

    def __init__(self, width: int, hidden: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits (n, 1) of features (n, width)."""
        return self.layers(features)
