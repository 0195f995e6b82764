"""Encoders of maps: a small convolutional network, and every network of timm.

References:
    He, Zhang, Ren & Sun 2016, Deep Residual Learning for Image Recognition, arXiv:1512.03385 (resnet18, 34, 50).
    Tan & Le 2019, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, arXiv:1905.11946.
    Huang, Liu, van der Maaten & Weinberger 2017, Densely Connected Convolutional Networks, arXiv:1608.06993.
    Wightman 2019, PyTorch Image Models, doi:10.5281/zenodo.4414861 (timm).
"""

from typing import Any

from torch import Tensor, nn

from skyshift.adapt.classifier import SOURCE, Encoder
from skyshift.adapt.domain_norm import DomainBatchNorm2d, in_domain, split_batch_norm
from skyshift.errors import SkyshiftError
from skyshift.naming import nearest


class SmallCNN(Encoder):
    """Convolutions with strides and group normalisation, then the mean over the map.

    No batch normalisation: what it says of a map depends on that map alone, so that processes and micro-batches add up.

    Args:
        channels: Of the maps.
        width: Channels after the first convolution; they double with each of the following.
        depth: Convolutions, each halving the map.
        domain_norm: Batch normalisation with statistics of each domain's own instead of group normalisation.
    """

    def __init__(self, channels: int, width: int = 16, depth: int = 4, domain_norm: bool = False) -> None:
        super().__init__()

        def norm(of: int) -> nn.Module:
            return DomainBatchNorm2d(of) if domain_norm else nn.GroupNorm(min(8, of), of)

        layers: list[nn.Module] = []
        for level in range(depth):
            out = width * 2**level
            layers.append(
                nn.Sequential(
                    nn.Conv2d(channels, out, 3, stride=2, padding=1), norm(out), nn.ReLU(),
                    nn.Conv2d(out, out, 3, padding=1), norm(out), nn.ReLU(),
                )
            )  # fmt: skip
            channels = out
        self.levels = nn.ModuleList(layers)
        self.width, self.domains = channels, domain_norm

    def forward(self, maps: Tensor, domain: int = SOURCE) -> Tensor:
        """Features (n, width) of maps (n, channels, h, w)."""
        with in_domain(domain):
            for level in self.levels:
                maps = level(maps)
        return maps.mean((2, 3))

    def blocks(self) -> list[nn.Module]:
        """The levels."""
        return list(self.levels)


class TimmEncoder(Encoder):
    """A network of timm without its classifier: what it says after its pooling.

    The first convolution is made for the number of channels; pretrained weights are summed or repeated to it
    (:mod:`skyshift.adapt.encoder_weights`). Batch normalisation goes over all processes, with statistics of each
    domain's own or shared (:mod:`skyshift.adapt.domain_norm`).

    Most of these networks make maps 32 times smaller: a map has at least 32 pixels on a side, better 64.

    Args:
        channels: Of the maps.
        name: Of the network in timm: ``resnet18``, ``resnet34``, ``resnet50``, ``efficientnet_b2``, ``densenet121``, …
        weights: Where training begins: empty for random weights, ``imagenet`` for timm's own from the hub, or the path
            of a ``.safetensors`` or ``.pth`` file.
        domain_norm: Batch normalisation with statistics of each domain's own. A method that never trains on the target
            leaves the target's as they began.

    Raises:
        SkyshiftError: timm knows no such network, the weights are not there or do not fit, or ``domain_norm`` with a
            network that has no batch normalisation.
    """

    def __init__(self, channels: int, name: str = "resnet18", weights: str = "", domain_norm: bool = False) -> None:
        super().__init__()
        import timm

        from skyshift.adapt.encoder_weights import fill, find_file, from_hub

        if not timm.is_model(name):
            raise SkyshiftError(_unknown_network(name))
        path = from_hub(name) if weights == "imagenet" else find_file(weights) if weights else None
        network: Any = timm.create_model(name, in_chans=channels, num_classes=0)
        if path is not None:
            fill(network, name, path, channels)
        changed = split_batch_norm(network, domains=2 if domain_norm else 1)
        if domain_norm and not changed:
            raise SkyshiftError(
                f"domain_norm: {name} has no batch normalisation whose statistics could be each domain's own; set it "
                "to false, or take a network that has (resnet, efficientnet, densenet)"
            )
        self.network: nn.Module = network
        self.name, self.domains = name, domain_norm
        self.width = int(getattr(network, "head_hidden_size", None) or network.num_features)

    def forward(self, maps: Tensor, domain: int = SOURCE) -> Tensor:
        """Features (n, width) of maps (n, channels, h, w)."""
        with in_domain(domain):
            features: Tensor = self.network(maps)
        return features

    def blocks(self) -> list[nn.Module]:
        """Coarse groups of layers as timm makes them: the stem, then the stages, then what follows."""
        from timm.models import group_parameters

        network: Any = self.network
        if not hasattr(network, "group_matcher"):
            return [part for part in network.children() if any(True for _ in part.parameters())]
        groups = group_parameters(network, network.group_matcher(coarse=True))
        number = {name: block for block, names in groups.items() for name in names}
        blocks: dict[int, list[nn.Module]] = {block: [] for block in sorted(groups)}
        for path, part in network.named_modules():
            own = [name for name, _ in part.named_parameters(path, recurse=False)]
            if own:
                blocks[number[own[0]]].append(part)
        return [nn.ModuleList(parts) for parts in blocks.values() if parts]


def _unknown_network(name: str) -> str:
    import timm

    known = timm.list_models()
    guess = nearest(name, known)
    hint = f" Did you mean '{guess}'?" if guess else ""
    return f"unknown network of timm '{name}'.{hint} It knows {len(known)}; timm.list_models() names them"
