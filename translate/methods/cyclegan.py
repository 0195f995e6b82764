"""CycleGAN: two generators that undo each other, learnt without pairs.

    min_{G,F} max_{D,D'}  L_adv(D(G(x)), D(y)) + L_adv(D'(F(y)), D'(x))
                          + λ (E|F(G(x)) - x| + E|G(F(y)) - y|) + λ λ_idt (E|G(y) - y| + E|F(x) - x|)

G translates sources x to targets, F targets y back. D and D' judge targets and sources alone, by least squares; they
learn from a buffer of 50 translated maps. λ = 10 and λ_idt = ½ as published. The identity losses need as many source
as target channels.

All players step together, from the same weights: the discriminators' gradients and the generators' are those of one
moment, where the original lets the discriminators judge after the generators have moved. Both generators are one
player, so that one backward pass of the whole objective serves both.

Whether totals are kept depends on the generator: a ResNet without normalisation and a U-Net know the amplitude of their
input. A cycle can hide what it should have translated in faint patterns (Chu et al. 2017): compare power spectra.

References:
    Zhu, Park, Isola & Efros 2017, Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks,
    ICCV, arXiv:1703.10593.
    Chu, Zhmoginov & Sandler 2017, CycleGAN, a Master of Steganography, arXiv:1712.02950.
"""

import math
from collections.abc import Callable, Mapping

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
from skyshift.translate.methods.base import Noise, TranslationMethod
from skyshift.translate.methods.image_buffer import ImageBuffer
from skyshift.translate.networks.patchgan import PatchGAN
from skyshift.translate.networks.resnet import ResNet


class GeneratorPair(nn.Module):
    """The generator from source to target and the one back.

    Args:
        there: Network from source to target channels.
        back: Network from target to source channels.
    """

    def __init__(self, there: nn.Module, back: nn.Module) -> None:
        super().__init__()
        self.there, self.back = there, back
        strides = [int(getattr(network, "stride", 1)) for network in (there, back)]
        self.stride = math.lcm(*strides)
        self.padding = getattr(there, "padding", "reflect")

    def forward(self, maps: Tensor, back: bool = False) -> Tensor:
        """Translate (batch, channels, h, w) one way or the other; h and w stay."""
        return self.back(maps) if back else self.there(maps)


class CycleGAN(TranslationMethod):
    """Unpaired translation in both directions.

    Args:
        source_channels: Channels of the source.
        target_channels: Channels of the target.
        generator: Network from one number of channels to another; made once for each direction.
        discriminator: Network from a number of channels to patch logits; made once for targets and once for sources.
        adversarial: lsgan, vanilla or hinge.
        cycle_weight: λ, weight of the distance of a map to itself after both translations.
        identity_weight: λ_idt, weight of the distance of a map to its translation into its own domain, relative to λ.
            0 where source and target have different channels.
        buffer_size: Translated maps of each direction that are kept for the discriminators; 0 for none.

    Raises:
        SkyshiftError: A weight or size is negative, a name unknown, or an identity is wanted between unequal channels.
    """

    training_only = ("buffer", "buffer_back")
    players = ("discriminator", "discriminator_back", "generators")
    averaged = ("generators",)

    def __init__(
        self,
        source_channels: int,
        target_channels: int,
        *,
        generator: Callable[[int, int], nn.Module] = lambda source, target: ResNet(source, target, norm="none"),
        discriminator: Callable[[int], nn.Module] = lambda channels: PatchGAN(channels),
        adversarial: Adversarial = "lsgan",
        cycle_weight: float = 10.0,
        identity_weight: float = 0.5,
        buffer_size: int = 50,
    ) -> None:
        super().__init__(source_channels, target_channels)
        require_adversarial(adversarial)
        if cycle_weight < 0 or identity_weight < 0:
            raise SkyshiftError(
                f"cycle_weight is {cycle_weight:g} and identity_weight {identity_weight:g}; neither may be negative"
            )
        if identity_weight and source_channels != target_channels:
            raise SkyshiftError(
                f"the identity loss compares maps with their translation, {source_channels} source channels with "
                f"{target_channels} target channels; make them equal or set identity_weight to 0"
            )
        self.generators = GeneratorPair(
            generator(source_channels, target_channels), generator(target_channels, source_channels)
        )
        self.discriminator = discriminator(target_channels)
        self.discriminator_back = discriminator(source_channels)
        self.buffer, self.buffer_back = ImageBuffer(buffer_size), ImageBuffer(buffer_size)
        self.adversarial: Adversarial = adversarial
        self.cycle_weight, self.identity_weight = cycle_weight, identity_weight

    def share(self, networks: Mapping[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """Translate once each way, and exchange the results for what the discriminators are to learn from."""
        source, target, generators = batch["source"], batch["target"], networks["generators"]
        fake, fake_back = self.finish(source, generators(source)), generators(target, True).float()
        return {
            "fake": fake,
            "fake_back": fake_back,
            "judged": self.buffer(fake),
            "judged_back": self.buffer_back(fake_back),
        }

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a discriminator, or of the generators with its parts, each summed over both directions."""
        if player == "generators":
            return self._generators_loss(networks["generators"], batch, shared)
        real, fake = (
            (batch["target"], shared["judged"])
            if player == "discriminator"
            else (batch["source"], shared["judged_back"])
        )
        real_logits, fake_logits = networks[player](torch.cat([real, fake])).chunk(2)
        return discriminator_loss(self.adversarial, real_logits, fake_logits), {}

    def _generators_loss(
        self, generators: nn.Module, batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        source, target, fake, fake_back = batch["source"], batch["target"], shared["fake"], shared["fake_back"]
        with frozen(self.discriminator), frozen(self.discriminator_back):
            logits, logits_back = self.discriminator(fake), self.discriminator_back(fake_back)
        adversarial = translator_loss(self.adversarial, logits) + translator_loss(self.adversarial, logits_back)
        cycle = _distance(generators(fake, True), source)
        cycle = cycle + _distance(self.finish(fake_back, generators(fake_back)), target)
        physics, parts = self.physics_loss(fake, batch)
        loss = adversarial + self.cycle_weight * cycle + physics
        parts = {"adversarial": adversarial, "cycle": cycle, **parts}
        if self.identity_weight:
            # Nothing is conserved here: what enters is no source.
            identity = _distance(generators(target), target) + _distance(generators(source, True), source)
            loss = loss + self.cycle_weight * self.identity_weight * identity
            parts["identity"] = identity
        return loss, parts

    def translate(self, source: Tensor, *, noise: Noise | None = None, calls: int | None = None) -> Tensor:
        """One pass of the generator from source to target."""
        return self.finish(source, self.generators(source))

    def translate_back(self, target: Tensor, *, noise: Noise | None = None, calls: int | None = None) -> Tensor:
        """One pass of the generator from target to source; what the run conserves speaks of the other way."""
        return self.generators(target, True).float()


def _distance(estimate: Tensor, true: Tensor) -> Tensor:
    return (estimate.float() - true).abs().mean()
