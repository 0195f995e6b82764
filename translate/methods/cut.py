"""CUT: unpaired translation in one direction, whose patches stay recognisable.

    min_{G,H} max_D  L_adv(D(G(x)), D(y)) + λ_NCE ½ [L_NCE(x, G(x)) + L_NCE(y, G(y))]

L_NCE asks, at several layers of G's encoder, that the features of a patch of the translated map be nearer to those of
the source at the same place than to those of 255 other places (:mod:`skyshift.translate.losses.contrastive`). A head H
of two linear layers projects the features; y to G(y) is the identity term. λ_NCE = 1, layers from the input to the
residual blocks, 256 places, τ = 0.07 as published. Without the identity term only the first L_NCE remains, not halved.

The contrast of features hardly sees how bright a map is: amplitudes, and totals with them, are learnt from D alone.
Where they come out wrong, lower λ_NCE.

The encoder reads translated maps as it reads sources: both need the same number of channels. G and H minimise the same
L_NCE, each with the other's weights held; the keys carry no gradient to either. All players step together, from the
same weights, where the original lets D move first. Places and flips are drawn by each process for itself.

References:
    Park, Efros, Zhang & Zhu 2020, Contrastive Learning for Unpaired Image-to-Image Translation, ECCV, arXiv:2007.15651.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from skyshift.engine import Batch, frozen
from skyshift.errors import SkyshiftError
from skyshift.translate.losses.adversarial import (
    Adversarial,
    discriminator_loss,
    require_adversarial,
    translator_loss,
)
from skyshift.translate.losses.contrastive import patch_nce, sample_patches
from skyshift.translate.methods.base import Noise, TranslationMethod
from skyshift.translate.networks.blocks import require_at_least, require_layers
from skyshift.translate.networks.patchgan import PatchGAN
from skyshift.translate.networks.projection import Projection
from skyshift.translate.networks.resnet import ResNet


class CUT(TranslationMethod):
    """Unpaired translation in one direction.

    Args:
        source_channels: Channels of the source.
        target_channels: Channels of the target; as many.
        generator: Network from source to target channels that also gives the features of its layers: a ResNet or UNet,
            or any with ``feature_channels`` and ``forward(maps, layers)`` like theirs.
        discriminator: Network from target channels to patch logits.
        adversarial: lsgan, vanilla or hinge.
        nce_weight: λ_NCE.
        nce_layers: Layers of the generator whose features are compared.
        patches: Places compared in a map; all of a layer that has fewer.
        dimensions: Of the projected features.
        temperature: τ.
        identity: Whether targets are translated as well, and compared with themselves.
        flip_equivariance: Whether the generator is shown every other batch mirrored, and its answer mirrored back.

    Raises:
        SkyshiftError: Source and target have different channels, the generator gives no features or not of these
            layers, a number is out of range or a name unknown.
    """

    training_only = ("projection",)
    players = ("discriminator", "projection", "generator")
    averaged = ("generator",)

    def __init__(
        self,
        source_channels: int,
        target_channels: int,
        *,
        generator: Callable[[int, int], nn.Module] = lambda source, target: ResNet(source, target, norm="none"),
        discriminator: Callable[[int], nn.Module] = lambda channels: PatchGAN(channels),
        adversarial: Adversarial = "lsgan",
        nce_weight: float = 1.0,
        nce_layers: Sequence[int] = (0, 2, 3, 4, 8),
        patches: int = 256,
        dimensions: int = 256,
        temperature: float = 0.07,
        identity: bool = True,
        flip_equivariance: bool = False,
    ) -> None:
        super().__init__(source_channels, target_channels)
        require_adversarial(adversarial)
        require_at_least("patches", patches, 2)
        if nce_weight < 0 or not temperature > 0:
            raise SkyshiftError(
                f"nce_weight is {nce_weight:g} and temperature {temperature:g}; the first may not be negative, the "
                "second is positive"
            )
        if source_channels != target_channels:
            raise SkyshiftError(
                f"{type(self).__name__} reads translated maps with the encoder of the sources, which takes "
                f"{source_channels} channels, not {target_channels}; make them equal or take cyclegan"
            )
        self.generator = generator(source_channels, target_channels)
        channels = _feature_channels(self.generator, nce_layers)
        self.projection = Projection(channels, dimensions)
        self.discriminator = discriminator(target_channels)
        self.adversarial: Adversarial = adversarial
        self.nce_weight, self.nce_layers, self.temperature = nce_weight, tuple(nce_layers), temperature
        self.patches, self.identity, self.flip_equivariance = patches, identity, flip_equivariance

    def share(self, networks: Mapping[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """Translate, and take the features of sources (keys) and translations (queries) at the same places."""
        source, generator = batch["source"], networks["generator"]
        mirror = _mirrored if self.flip_equivariance and bool(torch.rand(()) < 0.5) else _as_it_is
        before = torch.cat([source, batch["target"]]) if self.identity else source
        after = mirror(generator(mirror(before)))
        fake = self.finish(source, after[: len(source)])
        after = torch.cat([fake, after[len(source) :].float()])
        queries = [mirror(f) for f in generator(mirror(after), self.nce_layers)]
        with torch.no_grad():
            keys = self.generator(before, self.nce_layers)
        shared = {"fake": fake}
        for i, (query, key) in enumerate(zip(queries, keys, strict=True)):
            places = torch.randperm(query[0, 0].numel())[: self.patches].to(query.device)
            shared[f"query_{i}"], shared[f"key_{i}"] = sample_patches(query, places), sample_patches(key, places)
        return shared

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the discriminator, of the projection, or of the generator with its parts."""
        fake = shared["fake"]
        if player == "discriminator":
            real_logits, fake_logits = networks["discriminator"](torch.cat([batch["target"], fake.detach()])).chunk(2)
            return discriminator_loss(self.adversarial, real_logits, fake_logits), {}
        queries = [shared[f"query_{i}"] for i in range(len(self.nce_layers))]
        if player == "projection":
            return self.nce_weight * self._nce(networks["projection"], [q.detach() for q in queries], shared), {}
        with frozen(self.discriminator), frozen(self.projection):
            adversarial = translator_loss(self.adversarial, self.discriminator(fake))
            nce = self._nce(self.projection, queries, shared)
        physics, parts = self.physics_loss(fake, batch)
        loss = adversarial + self.nce_weight * nce + physics
        return loss, {"adversarial": adversarial, "nce": nce, **parts}

    def _nce(self, projection: nn.Module, queries: list[Tensor], shared: Mapping[str, Tensor]) -> Tensor:
        """Mean over layers; over the maps too, so that sources and targets count one half each."""
        queries = projection(queries)  # first, so that no cast of the weights made without gradients is reused
        with torch.no_grad():
            keys = self.projection([shared[f"key_{i}"] for i in range(len(queries))])
        pairs = zip(queries, keys, strict=True)
        return torch.stack([patch_nce(query, key, self.temperature) for query, key in pairs]).mean()

    def translate(self, source: Tensor, *, noise: Noise | None = None, calls: int | None = None) -> Tensor:
        """One pass of the generator."""
        return self.finish(source, self.generator(source))


def _feature_channels(generator: nn.Module, layers: Sequence[int]) -> list[int]:
    """Channels of the features of some layers.

    Raises:
        SkyshiftError: The generator gives none, or not of these layers.
    """
    name = type(generator).__name__
    channels = getattr(generator, "feature_channels", None)
    if channels is None:
        raise SkyshiftError(
            f"{name} gives no features of its layers; take ResNet or UNet as the generator, or give it "
            "feature_channels and forward(maps, layers) like theirs"
        )
    require_layers(layers, len(channels), f"{name} (nce_layers)")
    return [channels[layer] for layer in layers]


def _mirrored(x: Tensor) -> Tensor:
    return x.flip(-1)


def _as_it_is(x: Tensor) -> Tensor:
    return x
