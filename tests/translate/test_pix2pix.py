"""pix2pix: its losses against their formulas, who learns from which, and that it learns."""

import math

import pytest
import torch
import torch.nn.functional as F

from skyshift.errors import SkyshiftError
from skyshift.translate.losses.adversarial import discriminator_loss, translator_loss
from skyshift.translate.methods.pix2pix import Pix2Pix
from skyshift.translate.networks.patchgan import PatchGAN
from skyshift.translate.networks.unet import UNet

KINDS = ("lsgan", "vanilla", "hinge")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def method_of(sources=1, targets=1, **options):
    return Pix2Pix(
        sources,
        targets,
        generator=lambda s, t: UNet(s, t, width=8, depth=2, norm="none"),
        discriminator=lambda channels: PatchGAN(channels, width=8, layers=2),
        **options,
    )


def networks_of(method):
    return {"generator": method.generator, "discriminator": method.discriminator}


def batch_of(sources=1, targets=1, size=32):
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    radius = torch.hypot(x, y)
    discs = torch.stack([torch.exp(-radius / scale) for scale in (0.2, 0.5)])[:, None]
    return {"source": discs.expand(-1, sources, -1, -1), "target": (1 - discs).expand(-1, targets, -1, -1)}


def logits():
    return torch.randn(4, 1, 6, 6, dtype=torch.float64) * 3, torch.randn(4, 1, 6, 6, dtype=torch.float64) * 3


def independent(kind, real, fake):
    """Discriminator's and translator's losses, from torch's own or written out entry by entry."""
    if kind == "lsgan":
        ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
        return 0.5 * (F.mse_loss(real, ones) + F.mse_loss(fake, zeros)), F.mse_loss(fake, ones)
    if kind == "vanilla":
        entropy = F.binary_cross_entropy_with_logits
        real_loss, fake_loss = entropy(real, torch.ones_like(real)), entropy(fake, torch.zeros_like(fake))
        return 0.5 * (real_loss + fake_loss), entropy(fake, torch.ones_like(fake))
    real_values, fake_values = real.ravel().tolist(), fake.ravel().tolist()
    real_loss = sum(max(0.0, 1 - d) for d in real_values) / len(real_values)
    fake_loss = sum(max(0.0, 1 + d) for d in fake_values) / len(fake_values)
    return torch.tensor(0.5 * (real_loss + fake_loss)), torch.tensor(-sum(fake_values) / len(fake_values))


@pytest.mark.parametrize("kind", KINDS)
def test_adversarial_losses_are_their_formulas(kind):
    real, fake = logits()
    judge, translator = independent(kind, real, fake)
    # The losses are computed in float32, whatever the precision of the logits: bfloat16's would not do.
    assert float(discriminator_loss(kind, real, fake)) == pytest.approx(float(judge), rel=1e-6)
    assert float(translator_loss(kind, fake)) == pytest.approx(float(translator), rel=1e-6)
    assert discriminator_loss(kind, real.bfloat16(), fake.bfloat16()).dtype == torch.float32
    assert translator_loss(kind, fake.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "logit", "value"), [("lsgan", 0.5, 0.25), ("vanilla", 0.0, math.log(2)), ("hinge", 0.0, 1.0)]
)
def test_a_discriminator_that_cannot_tell_has_the_known_loss(kind, logit, value):
    """Where real and translated look alike one logit d minimises the loss: at 1/2, 0 and anywhere in [-1, 1]."""
    equal = torch.full((2, 1, 4, 4), logit, requires_grad=True)
    loss = discriminator_loss(kind, equal, equal)
    assert loss.item() == pytest.approx(value, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, equal)
    assert float(gradient.abs().max()) == pytest.approx(0.0, abs=1e-8)
    for other in (logit - 0.3, logit + 0.3):
        moved = torch.full((2, 1, 4, 4), other)
        assert float(discriminator_loss(kind, moved, moved)) >= value - 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_translator_gains_where_its_fakes_look_more_real(kind):
    """At logits below the target of each loss, larger is better for the translator and worse for the judge."""
    fake = torch.linspace(-3, 0.5, 20, requires_grad=True)
    (gain,) = torch.autograd.grad(translator_loss(kind, fake), fake)
    assert (gain < 0).all()
    positive = torch.linspace(0.1, 3, 20, requires_grad=True)
    (cost,) = torch.autograd.grad(discriminator_loss(kind, torch.ones(20), positive), positive)
    assert (cost > 0).all()


def test_vanilla_losses_stay_finite_at_extreme_logits():
    extreme = torch.tensor([-1e4, 1e4])
    assert torch.isfinite(discriminator_loss("vanilla", extreme, extreme))
    assert torch.isfinite(translator_loss("vanilla", extreme))


@pytest.mark.parametrize("kind", KINDS)
def test_neither_player_learns_from_the_others_loss(kind):
    method, batch = method_of(adversarial=kind), batch_of()
    networks = networks_of(method)
    shared = method.share(networks, batch)
    method.loss("discriminator", networks, batch, shared)[0].backward()
    assert all(p.grad is None for p in method.generator.parameters())
    assert any(p.grad.abs().max() > 0 for p in method.discriminator.parameters())
    method.zero_grad()
    method.loss("generator", networks, batch, method.share(networks, batch))[0].backward()
    assert all(p.grad is None for p in method.discriminator.parameters())
    assert all(p.grad is not None for p in method.generator.parameters())
    # Freezing lasts for the loss alone.
    assert all(p.requires_grad for p in method.discriminator.parameters())


def test_the_generator_learns_from_the_discriminator_too():
    """Without the distance, all of its gradient comes through the frozen discriminator."""
    method, batch = method_of(l1_weight=0.0), batch_of()
    networks = networks_of(method)
    loss, parts = method.loss("generator", networks, batch, method.share(networks, batch))
    loss.backward()
    assert loss.item() == pytest.approx(parts["adversarial"].item())
    assert sum(float(p.grad.abs().sum()) for p in method.generator.parameters()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_sum_of_its_parts(kind):
    method, batch = method_of(2, 3, adversarial=kind, l1_weight=7.0), batch_of(2, 3)
    networks = networks_of(method)
    shared = method.share(networks, batch)
    loss, parts = method.loss("generator", networks, batch, shared)
    distance = sum(
        abs(f - t) for f, t in zip(shared["fake"].ravel().tolist(), batch["target"].ravel().tolist(), strict=True)
    )
    assert float(parts["l1"]) == pytest.approx(distance / batch["target"].numel(), rel=1e-5)
    pairs = torch.cat([batch["source"], shared["fake"]], 1)
    judged = method.discriminator(pairs).detach()
    wanted = independent(kind, torch.zeros_like(judged), judged)[1]
    assert float(parts["adversarial"]) == pytest.approx(float(wanted), rel=1e-4, abs=1e-6)
    assert float(loss) == pytest.approx(float(parts["adversarial"]) + 7.0 * float(parts["l1"]), rel=1e-6)


def test_the_discriminator_judges_source_and_target_together():
    """The same target beside another source is another pair."""
    method, batch = method_of(), batch_of()
    networks = networks_of(method)
    shared = method.share(networks, batch)
    one, _ = method.loss("discriminator", networks, batch, shared)
    other, _ = method.loss("discriminator", networks, {**batch, "source": batch["source"].flip(0)}, shared)
    assert float(one) != pytest.approx(float(other), rel=1e-3)


def test_it_learns_two_maps_by_heart():
    method, batch = method_of(), batch_of()
    networks = networks_of(method)
    optimizers = {
        name: torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.5, 0.999)) for name, net in networks.items()
    }
    distances = []
    for _ in range(150):
        shared = method.share(networks, batch)
        for player in method.players:
            loss, parts = method.loss(player, networks, batch, shared)
            optimizers[player].zero_grad()
            loss.backward()
            optimizers[player].step()
        distances.append(float(parts["l1"]))
    assert distances[-1] < distances[0] / 5
    translated = method.translate(batch["source"])
    assert float((translated - batch["target"]).abs().mean()) < distances[0] / 5


def test_an_unknown_loss_names_the_nearest():
    with pytest.raises(SkyshiftError, match=r"unknown adversarial loss 'lsgam'\. Did you mean 'lsgan'\?"):
        method_of(adversarial="lsgam")
