"""pix2pix: a generator trained by a conditional PatchGAN and the distance to the true target.

    min_G max_D  L_adv(D(x, G(x)), D(x, y)) + λ E|y - G(x)|

x is the source, y the target of the same view; D sees both and judges overlapping patches. λ = 100 as published.

References:
    Isola, Zhu, Zhou & Efros 2017, Image-to-Image Translation with Conditional Adversarial Networks, CVPR,
    arXiv:1611.07004.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from skyshift.engine import Batch, frozen
from skyshift.translate.losses.adversarial import (
    Adversarial,
    discriminator_loss,
    require_adversarial,
    translator_loss,
)
from skyshift.translate.methods.base import Noise, TranslationMethod
from skyshift.translate.networks.patchgan import PatchGAN
from skyshift.translate.networks.unet import UNet


class Pix2Pix(TranslationMethod):
    """Paired translation.

    Args:
        source_channels: Channels of the source.
        target_channels: Channels of the target.
        generator: Network from source to target channels.
        discriminator: Network from source + target channels to patch logits.
        adversarial: lsgan, vanilla or hinge.
        l1_weight: λ, weight of the distance to the target.
    """

    players = ("discriminator", "generator")
    averaged = ("generator",)
    needs_pairs = True

    def __init__(
        self,
        source_channels: int,
        target_channels: int,
        *,
        generator: Callable[[int, int], nn.Module] = lambda source, target: UNet(source, target),
        discriminator: Callable[[int], nn.Module] = lambda channels: PatchGAN(channels),
        adversarial: Adversarial = "lsgan",
        l1_weight: float = 100.0,
    ) -> None:
        super().__init__(source_channels, target_channels)
        require_adversarial(adversarial)
        self.generator = generator(source_channels, target_channels)
        self.discriminator = discriminator(source_channels + target_channels)
        self.adversarial: Adversarial = adversarial
        self.l1_weight = l1_weight

    def share(self, networks: Mapping[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """Translate once; both players judge the same map."""
        return {"fake": self.finish(batch["source"], networks["generator"](batch["source"]))}

    def loss(
        self, player: str, networks: Mapping[str, nn.Module], batch: Batch, shared: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the discriminator, or of the generator with its ``l1`` and ``adversarial`` parts."""
        source, target, fake = batch["source"], batch["target"], shared["fake"]
        if player == "discriminator":
            pairs = torch.cat([torch.cat([source, target], 1), torch.cat([source, fake.detach()], 1)])
            real_logits, fake_logits = networks["discriminator"](pairs).chunk(2)
            return discriminator_loss(self.adversarial, real_logits, fake_logits), {}
        with frozen(self.discriminator):
            logits = self.discriminator(torch.cat([source, fake], 1))
        adversarial = translator_loss(self.adversarial, logits)
        distance = (fake - target).abs().mean()
        physics, parts = self.physics_loss(fake, batch)
        loss = adversarial + self.l1_weight * distance + physics
        return loss, {"l1": distance, "adversarial": adversarial, **parts}

    def translate(self, source: Tensor, *, noise: Noise | None = None, calls: int | None = None) -> Tensor:
        """One pass of the generator."""
        return self.finish(source, self.generator(source))
