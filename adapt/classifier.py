"""A classifier: an encoder of maps, and a linear head on its features."""

import abc

from torch import Tensor, nn

from skyshift.errors import SkyshiftError

SOURCE, TARGET = 0, 1
"""Domains, by the number that encoders with batch normalisation of each domain's own are told."""


class Encoder(nn.Module, abc.ABC):
    """What every encoder is: maps in, one vector of features a map out.

    Attributes:
        width: Number of features.
        domains: Whether :meth:`forward` treats the domains differently (batch normalisation of their own).
    """

    width: int
    domains: bool = False

    @abc.abstractmethod
    def forward(self, maps: Tensor, domain: int = SOURCE) -> Tensor:
        """Features of maps.

        Args:
            maps: (n, channels, h, w), scaled.
            domain: :data:`SOURCE` or :data:`TARGET`, all of one domain.

        Returns:
            (n, width).
        """

    def blocks(self) -> list[nn.Module]:
        """Parts from input to output, which fine-tuning frees from the end."""
        return list(self.children())


class Classifier(nn.Module):
    """Encoder, then dropout and a linear head.

    Args:
        encoder: Of the maps.
        outputs: Of the head.
        dropout: Share of features that is forgotten in training.
    """

    def __init__(self, encoder: Encoder, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        if not isinstance(encoder, Encoder):
            raise SkyshiftError(
                f"{type(encoder).__name__} is no encoder: give a subclass of skyshift.adapt.classifier.Encoder"
            )
        self.encoder, self.dropout = encoder, nn.Dropout(dropout)
        self.head = nn.Linear(encoder.width, outputs)

    def forward(self, maps: Tensor, domain: int = SOURCE) -> tuple[Tensor, Tensor]:
        """Features and outputs of maps of one domain.

        Args:
            maps: (n, channels, h, w), scaled.
            domain: :data:`SOURCE` or :data:`TARGET`.

        Returns:
            Features (n, width) and outputs (n, outputs): logits, or a mean and a logarithm of the variance.
        """
        features = self.encoder(maps, domain)
        return features, self.head(self.dropout(features))
