"""Regression, CycleGAN, CUT and FastCUT: their objectives and gradients, written out, and that they learn."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skyshift.errors import SkyshiftError
from skyshift.translate.methods.cut import CUT
from skyshift.translate.methods.cyclegan import CycleGAN
from skyshift.translate.methods.fastcut import FastCUT
from skyshift.translate.methods.regression import Regression
from skyshift.translate.networks.patchgan import PatchGAN
from skyshift.translate.networks.resnet import ResNet
from skyshift.translate.networks.unet import UNet

KINDS = ("lsgan", "vanilla", "hinge")
LAYERS = [0, 1, 2, 3]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def resnet(source, target):
    return ResNet(source, target, width=4, blocks=1, norm="none")


def unet(source, target):
    return UNet(source, target, width=4, depth=2, norm="none", residual=source == target)


def judge(channels):
    return PatchGAN(channels, width=4, layers=2, norm="none")


def cyclegan(sources=1, targets=1, generator=resnet, **options):
    return CycleGAN(sources, targets, generator=generator, discriminator=judge, **options)


def cut(kind=CUT, sources=1, targets=1, generator=resnet, **options):
    options = {"nce_layers": LAYERS, "dimensions": 8, "patches": 20, **options}
    return kind(sources, targets, generator=generator, discriminator=judge, **options)


UNPAIRED = {
    "cyclegan": cyclegan,
    "cut": lambda *channels, **options: cut(CUT, *channels, **options),
    "fastcut": lambda *channels, **options: cut(FastCUT, *channels, **options),
}


def networks_of(method):
    return {player: getattr(method, player) for player in method.players}


def batch_of(maps=3, sources=1, targets=1, size=16):
    return {"source": torch.rand(maps, sources, size, size), "target": torch.rand(maps, targets, size, size)}


def gradients(method, batch, low_precision=False):
    """What the loop gathers: one backward pass for each player, from the same weights. Also the logs."""
    networks, logs = networks_of(method), {}
    autocast = lambda: torch.autocast("cpu", torch.bfloat16, enabled=low_precision)  # noqa: E731
    with autocast():
        shared = method.share(networks, batch)
    for player in method.players:
        with autocast():
            loss, parts = method.loss(player, networks, batch, shared)
        loss.backward()
        logs.update({name: float(value.detach()) for name, value in {player: loss, **parts}.items()})
    found = {name: p.grad.clone() for name, p in method.named_parameters()}
    method.zero_grad()
    return found, logs


def assert_gradient(found, network, prefix, objective):
    """Those of an objective with respect to a network's parameters, to 1e-5 of the largest: float32 sums."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    wanted = torch.autograd.grad(objective, parameters, retain_graph=True)
    scale = max(float(g.abs().max()) for g in wanted)
    assert scale > 0
    for name, gradient in zip(names, wanted, strict=True):
        torch.testing.assert_close(found[f"{prefix}.{name}"], gradient, rtol=1e-4, atol=1e-5 * scale)


def adversarial_losses(kind, real, fake):
    """Discriminator's and translator's, from torch's own losses."""
    ones, zeros = torch.ones_like(fake), torch.zeros_like(fake)
    if kind == "lsgan":
        return 0.5 * (F.mse_loss(real, ones) + F.mse_loss(fake, zeros)), F.mse_loss(fake, ones)
    if kind == "vanilla":
        entropy = F.binary_cross_entropy_with_logits
        return 0.5 * (entropy(real, ones) + entropy(fake, zeros)), entropy(fake, ones)
    hinge = F.hinge_embedding_loss  # max(0, 1 - x) for the label -1
    return 0.5 * (hinge(real, -ones) + hinge(-fake, -ones)), -fake.mean()


# --- regression


def test_regression_is_its_distance():
    batch = batch_of(2)
    for distance, written in (
        ("l1", lambda d: d.abs()),
        ("l2", lambda d: d * d),
        ("huber", lambda d: torch.where(d.abs() < 1, d * d / 2, d.abs() - 0.5)),
    ):
        method = Regression(1, 1, generator=resnet, distance=distance)
        wanted = written(method.translate(batch["source"]) - batch["target"]).mean()
        found, logs = gradients(method, batch)
        assert logs["generator"] == logs[distance] == pytest.approx(float(wanted.detach()), rel=1e-5)
        assert_gradient(found, method.generator, "generator", wanted)


def test_regression_learns_the_median_or_the_mean_of_what_a_source_allows():
    """One source, targets 0, 0 and 3: the median is 0, the mean is 1."""

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.value.expand_as(x)

    batch = {"source": torch.zeros(3, 1, 2, 2), "target": torch.tensor([0.0, 0.0, 3.0])[:, None, None, None]}
    batch["target"] = batch["target"].expand(3, 1, 2, 2)
    for distance, wanted in (("l1", 0.0), ("l2", 1.0)):
        method = Regression(1, 1, generator=lambda source, target: Constant(), distance=distance)
        optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
        for _ in range(200):
            method.loss("generator", networks_of(method), batch, {})[0].backward()
            optimizer.step()
            optimizer.zero_grad()
        # The gradient of l1 jumps between -1/3 and 1/3 at its minimum: steps of 0.05/3.
        assert float(method.generator.value.detach()) == pytest.approx(wanted, abs=0.02)


# --- CycleGAN


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("generator", [resnet, unet])
def test_cyclegan_follows_the_gradient_of_the_whole_objective(kind, generator):
    method = cyclegan(generator=generator, adversarial=kind, cycle_weight=7.0, identity_weight=0.3)
    batch = batch_of()
    found, logs = gradients(method, batch)
    x, y = batch["source"], batch["target"]
    g, f, d, d_back = method.generators.there, method.generators.back, method.discriminator, method.discriminator_back
    fake, fake_back = g(x), f(y)
    judged, fooled = adversarial_losses(kind, d(y), d(fake))
    judged_back, fooled_back = adversarial_losses(kind, d_back(x), d_back(fake_back))
    cycle = F.l1_loss(f(fake), x) + F.l1_loss(g(fake_back), y)
    identity = F.l1_loss(g(y), y) + F.l1_loss(f(x), x)
    objective = fooled + fooled_back + 7.0 * cycle + 7.0 * 0.3 * identity
    assert_gradient(found, method.generators, "generators", objective)
    assert_gradient(found, d, "discriminator", judged)
    assert_gradient(found, d_back, "discriminator_back", judged_back)
    values = {"generators": objective, "discriminator": judged, "discriminator_back": judged_back, "cycle": cycle}
    for name, value in {**values, "identity": identity, "adversarial": fooled + fooled_back}.items():
        assert logs[name] == pytest.approx(float(value.detach()), rel=1e-5), name


def test_the_discriminators_learn_from_the_buffers():
    method = cyclegan(buffer_size=4)
    for _ in range(5):
        shared = method.share(networks_of(method), batch_of())
    assert int(method.buffer.seen) == int(method.buffer_back.seen) == 15
    batch = batch_of()
    shared = method.share(networks_of(method), batch)
    assert not torch.equal(shared["judged"], shared["fake"])  # some were exchanged
    loss, _ = method.loss("discriminator", networks_of(method), batch, shared)
    judged, _ = adversarial_losses(
        "lsgan", method.discriminator(batch["target"]), method.discriminator(shared["judged"])
    )
    assert float(loss.detach()) == pytest.approx(float(judged.detach()), rel=1e-6)


def test_cyclegan_goes_both_ways_between_any_channels():
    method, batch = cyclegan(2, 3, identity_weight=0.0), batch_of(1, 2, 3)
    _, logs = gradients(method, batch)
    assert "identity" not in logs
    assert method.translate(batch["source"]).shape == (1, 3, 16, 16)
    assert method.translate_back(batch["target"]).shape == (1, 2, 16, 16)


def discs(maps, size=16, generator=None):
    """Gaussian discs of any place and width."""
    draw = lambda low, high: low + (high - low) * torch.rand(maps, 1, 1, 1, generator=generator)  # noqa: E731
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.exp(-((x - draw(4, 12)) ** 2 + (y - draw(4, 12)) ** 2) / (2 * draw(1.5, 3) ** 2))


class Affine(nn.Module):
    """The smallest generator: gain · x + offset. Its one feature layer is the map itself."""

    feature_channels = (1,)

    def __init__(self, source, target):
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def forward(self, x, layers=None):
        return self.gain * x + self.offset if layers is None else [x]


def train(method, batches):
    """The loop in small: all players step from the same weights. Yields after every step."""
    networks = networks_of(method)
    optimizers = [
        torch.optim.Adam(net.parameters(), lr=2e-2 if "generator" in player else 5e-3, betas=(0.5, 0.999))
        for player, net in networks.items()
    ]
    for batch in batches:
        shared = method.share(networks, batch)
        for player in method.players:
            method.loss(player, networks, batch, shared)[0].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        yield


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cyclegan", {"cycle_weight": 2.0, "identity_weight": 0.0}),
        ("cut", {"nce_layers": [0], "patches": 32}),
        ("fastcut", {"nce_layers": [0], "patches": 32}),
    ],
)
def test_it_learns_how_much_brighter_targets_are_without_pairs(name, options):
    """Targets are three times as bright as sources, and no two discs are the same: the gain goes from 1 to 3.

    Players of a game circle about its solution (here with an amplitude of some 15 %): the mean of the last steps is
    judged.
    """
    method = UNPAIRED[name](generator=Affine, **options)
    method.discriminator = PatchGAN(1, width=8, layers=1, norm="none")
    held = discs(32, generator=torch.Generator().manual_seed(1))
    seen = []
    with torch.no_grad():
        assert float((method.translate(held) - held).abs().max()) == 0.0
    for _ in train(method, ({"source": discs(8), "target": 3 * discs(8)} for _ in range(200))):
        with torch.no_grad():
            there = method.translate(held)
            back = method.translate_back(3 * held) if name == "cyclegan" else held
            seen.append([float((there - 3 * held).abs().mean()), float((back - held).abs().mean())])
    error, error_back = torch.tensor(seen[-50:]).mean(0) / held.mean()
    assert error < 0.35 * 2  # it was 2
    assert error_back < 0.35 * 2


# --- CUT


def nce_written_out(method, before, after, mirror, places):
    """Mean over layers of the cross-entropy of cosines, in which the keys are constants."""
    losses = []
    queries, keys = method.generator(mirror(after), LAYERS), method.generator(before, LAYERS)
    for head, query, key, at in zip(method.projection.heads, queries, keys, places, strict=True):
        q, k = head(mirror(query).flatten(2)[..., at].mT), head(key.flatten(2)[..., at].mT).detach()
        logits = F.cosine_similarity(q[:, :, None], k[:, None, :], dim=-1) / method.temperature
        losses.append(-(logits.diagonal(dim1=1, dim2=2) - logits.logsumexp(2)).mean())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["cut", "fastcut"])
def test_cut_follows_the_gradients_of_its_objective(name, seed):
    method, batch = UNPAIRED[name](generator=unet), batch_of()
    torch.manual_seed(seed)
    found, logs = gradients(method, batch)
    torch.manual_seed(seed)  # FastCUT's flip and the places, drawn again in the same order
    x, y = batch["source"], batch["target"]
    flipped = name == "fastcut" and float(torch.rand(())) < 0.5
    mirror = (lambda m: torch.flip(m, [3])) if flipped else lambda m: m
    places = [torch.randperm(side * side)[:20] for side in (16, 16, 8, 4)]
    g, d = method.generator, method.discriminator
    fake = mirror(g(mirror(x)))
    judged, fooled = adversarial_losses("lsgan", d(y), d(fake))
    nce = nce_written_out(method, x, fake, mirror, places)
    if name == "cut":
        nce = 0.5 * (nce + nce_written_out(method, y, g(y), mirror, places))
    weight = {"cut": 1.0, "fastcut": 10.0}[name]
    assert_gradient(found, g, "generator", fooled + weight * nce)
    assert_gradient(found, method.projection, "projection", weight * nce)
    assert_gradient(found, d, "discriminator", judged)
    for key, value in {"generator": fooled + weight * nce, "nce": nce, "adversarial": fooled}.items():
        assert logs[key] == pytest.approx(float(value.detach()), rel=1e-5), key


def test_fastcut_mirrors_half_of_the_batches():
    method, batch, seen = UNPAIRED["fastcut"](), batch_of(2, size=8), []
    method.generator.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    for _ in range(200):
        with torch.no_grad():
            method.share(networks_of(method), batch)
    flips = sum(torch.equal(maps, batch["source"].flip(-1)) for maps in seen[::3])  # the first of three passes each
    assert abs(flips - 100) < 4 * 50**0.5
    assert not method.identity


# --- what all of them share


@pytest.mark.parametrize("name", [*UNPAIRED, "regression"])
def test_physics_and_conservation_reach_the_generator(name):
    """A physics loss adds its gradient; what is conserved is so in translations and in what is learnt from."""
    method = Regression(1, 1, generator=unet) if name == "regression" else UNPAIRED[name](generator=unet)
    batch, player = batch_of(), method.players[-1]
    torch.manual_seed(5)
    plain, _ = gradients(method, batch)
    method.physics = lambda estimate, batch: (
        2.0 * (estimate.mean() - batch["source"].mean()) ** 2,
        {"total": estimate.mean().detach()},
    )
    torch.manual_seed(5)
    found, logs = gradients(method, batch)
    estimate = method.translate(batch["source"])
    assert logs["total"] == pytest.approx(float(estimate.detach().mean()), rel=1e-5)
    # Of a pair of generators, the one that makes the estimate.
    part, prefix = (method.generators.there, "generators.there") if name == "cyclegan" else (method.generator, player)
    wanted = torch.autograd.grad(2.0 * (estimate.mean() - batch["source"].mean()) ** 2, list(part.parameters()))
    for (key, _), gradient in zip(part.named_parameters(), wanted, strict=True):
        extra = found[f"{prefix}.{key}"] - plain[f"{prefix}.{key}"]
        # A difference of float32 gradients, which the cycle makes some ten times larger.
        torch.testing.assert_close(extra, gradient, rtol=1e-3, atol=1e-5 * float(plain[f"{prefix}.{key}"].abs().max()))

    def keep_total(source, estimate):
        return estimate + (source.mean((1, 2, 3)) - estimate.mean((1, 2, 3)))[:, None, None, None]

    method.conservation = keep_total
    translated = method.translate(batch["source"])
    torch.testing.assert_close(translated.mean((1, 2, 3)), batch["source"].mean((1, 2, 3)))
    _, logs = gradients(method, batch)
    assert logs["total"] == pytest.approx(float(batch["source"].mean()), rel=1e-5)


@pytest.mark.parametrize("name", UNPAIRED)
def test_no_player_learns_from_anothers_loss(name):
    method, batch = UNPAIRED[name](), batch_of()
    networks = networks_of(method)
    for player in method.players:
        method.zero_grad()
        loss, _ = method.loss(player, networks, batch, method.share(networks, batch))
        loss.backward()
        moved = {key.split(".")[0] for key, p in method.named_parameters() if p.grad is not None and p.grad.any()}
        assert moved == {player}
    assert all(p.requires_grad for p in method.parameters())


@pytest.mark.parametrize("name", UNPAIRED)
def test_a_batch_of_one_map_of_any_size_is_enough(name):
    method, batch = UNPAIRED[name](2, 2), {"source": torch.rand(1, 2, 19, 23), "target": torch.rand(1, 2, 19, 23)}
    found, _ = gradients(method, batch)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    assert method.translate(batch["source"]).shape == (1, 2, 19, 23)


@pytest.mark.parametrize("name", UNPAIRED)
def test_low_precision_gives_the_same_gradients(name):
    """bfloat16 has 8 bits: a gradient turns by some per cent, and none is lost."""
    method, batch = UNPAIRED[name](), batch_of()
    torch.manual_seed(5)
    wanted, _ = gradients(method, batch)
    torch.manual_seed(5)
    found, _ = gradients(method, batch, low_precision=True)
    for player in method.players:
        ours, theirs = (
            torch.cat([g.ravel() for key, g in every.items() if key.startswith(f"{player}.")])
            for every in (found, wanted)
        )
        assert float(F.cosine_similarity(ours, theirs, dim=0)) > 0.98, player
        assert float(ours.norm() / theirs.norm()) == pytest.approx(1.0, abs=0.1), player


class Featureless(nn.Conv2d):
    def __init__(self, source, target):
        super().__init__(source, target, 3, padding=1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cyclegan(2, 3), r"2 source channels with 3 target channels; .* set identity_weight to 0"),
        (lambda: cyclegan(buffer_size=-1), r"buffer_size is -1"),
        (lambda: cyclegan(cycle_weight=-1.0), r"cycle_weight is -1 and identity_weight 0.5; neither may be negative"),
        (lambda: cyclegan(adversarial="lsgam"), r"unknown adversarial loss 'lsgam'. Did you mean 'lsgan'"),
        (lambda: cut(CUT, 2, 3), r"CUT reads .* takes 2 channels, not 3; make them equal or take cyclegan"),
        (lambda: cut(FastCUT, 2, 3), r"FastCUT reads translated maps"),
        (lambda: cut(nce_layers=[0, 9]), r"no feature layer 9: this ResNet \(nce_layers\) has the layers 0 to 4"),
        (lambda: cut(nce_layers=[]), r"no feature layer is named: this ResNet"),
        (lambda: cut(generator=Featureless), r"Featureless gives no features of its layers; take ResNet or UNet"),
        (lambda: cut(patches=1), r"patches is 1; it must be at least 2"),
        (lambda: cut(temperature=0.0), r"temperature 0; .* the second is positive"),
        (lambda: cut(adversarial="hinges"), r"unknown adversarial loss 'hinges'. Did you mean 'hinge'"),
        (lambda: Regression(1, 1, distance="L1"), r"unknown distance 'L1'. Did you mean 'l1'"),
        (lambda: cut().translate_back(torch.zeros(1, 1, 8, 8)), r"CUT translates one way only"),
    ],
)
def test_what_cannot_be_is_refused(build, message):
    with pytest.raises(SkyshiftError, match=message):
        build()
