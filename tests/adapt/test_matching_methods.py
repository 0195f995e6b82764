"""DANN, ADDA, self-ensembling and AdaMatch: who learns what from what, by hand on a few points."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skyshift.adapt.classifier import SOURCE, TARGET, Encoder
from skyshift.adapt.losses.conditioning import entropy_weights
from skyshift.adapt.losses.reversal import reversal_strength, reverse
from skyshift.adapt.methods.adamatch import AdaMatch
from skyshift.adapt.methods.adda import ADDA
from skyshift.adapt.methods.dann import DANN
from skyshift.adapt.methods.self_ensembling import SelfEnsembling
from skyshift.adapt.task import Task
from skyshift.errors import SkyshiftError

TASK = Task("classification", ("a", "b", "c"), ("a", "b", "c"))


class Points(Encoder):
    """Two numbers a map to a few features."""

    def __init__(self, channels, norm=False):
        super().__init__()
        self.width = 8
        self.layers = nn.Sequential(nn.Linear(channels, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.Tanh())

    def forward(self, maps, domain=SOURCE):
        return self.layers(maps.flatten(1))


class Normalised(Points):
    def __init__(self, channels):
        super().__init__(channels, norm=True)


class OfDomains(Points):
    domains = True


def make(kind, **options):
    torch.manual_seed(0)
    method = kind(2, TASK, **{"encoder": Points, **options})
    method.steps = 10
    return method


def batch(seed=0, n=6):
    g = torch.Generator().manual_seed(seed)
    names = ("source", "target", "source_strong", "target_strong")
    return {
        **{name: torch.randn(n, 2, 1, 1, generator=g) for name in names},
        "source_label": torch.randint(0, 3, (n,), generator=g),
    }


def networks(method):
    return {player: getattr(method, player) for player in method.players}


def step(method, number, *batches, rate=0.1):
    """One step of every player with plain descent; the losses and parts of the last micro-batch."""
    method.step = number
    logs = {}
    for one in batches or (batch(number),):
        shared = method.share(networks(method), one)
        for player in method.players:
            loss, parts = method.loss(player, networks(method), one, shared)
            loss.backward()
            logs |= {player: loss.item(), **{name: value.item() for name, value in parts.items()}}
    for player in method.players:
        for p in getattr(method, player).parameters():
            if p.grad is not None:
                p.data -= rate * p.grad
                p.grad = None
    return logs


def gradients(*modules):
    return [p.grad.clone() for module in modules for p in module.parameters()]


@pytest.mark.parametrize("options", [{}, {"conditional": True}, {"conditional": True, "entropy": True}])
def test_dann_s_two_players_do_what_one_descent_through_the_reversal_does(options):
    method = make(DANN, hidden=5, **options)
    method.step = 3
    one = batch()
    shared = method.share(networks(method), one)
    for player in method.players:
        method.loss(player, networks(method), one, shared)[0].backward()
    found = gradients(method.classifier, method.discriminator)
    method.zero_grad()
    (f_s, z_s), (f_t, z_t) = method.classifier(one["source"]), method.classifier(one["target"], TARGET)
    losses, strength = [], reversal_strength(0.3)
    for f, z, label in ((f_s, z_s, 1.0), (f_t, z_t, 0.0)):
        h = reverse(f, strength)
        if options:
            h = torch.einsum("nk,nf->nkf", z.detach().softmax(1), h).flatten(1)
        weight = entropy_weights(z)[:, None] if "entropy" in options else None
        d = method.discriminator(h)
        losses.append(F.binary_cross_entropy_with_logits(d, torch.full_like(d, label), weight))
    (F.cross_entropy(z_s, one["source_label"]) + sum(losses) / 2).backward()
    wanted = gradients(method.classifier, method.discriminator)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)  # sums in another order, float32
    assert all(gradient.abs().sum() > 0 for gradient in wanted)


def test_dann_starts_as_source_only_and_refuses_what_does_not_go_together():
    method = make(DANN, hidden=5)
    one = batch()
    method.loss("classifier", networks(method), one, method.share(networks(method), one))[0].backward()
    found = gradients(method.classifier)
    method.zero_grad()
    F.cross_entropy(method.classifier(one["source"])[1], one["source_label"]).backward()
    torch.testing.assert_close(found, gradients(method.classifier), rtol=1e-5, atol=1e-8)
    with pytest.raises(SkyshiftError, match="set conditional to true"):
        make(DANN, entropy=True)
    with pytest.raises(SkyshiftError, match="may not be negative"):
        make(DANN, weight=-1.0)
    with pytest.raises(SkyshiftError, match="the task is a regression"):
        DANN(2, Task("regression"), encoder=Points, conditional=True)
    assert DANN(2, Task("regression"), encoder=Points).classification_only is False


def test_adda_trains_on_the_source_then_only_the_target_encoder():
    method = make(ADDA, hidden=5, pretrain=0.3)
    first = copy.deepcopy(method.discriminator.state_dict())
    logs = [step(method, number) for number in range(3)]
    assert [log["discriminator"] for log in logs] == [0.0] * 3
    assert all(log["supervised"] > 0 and log["confusion"] == 0 for log in logs)
    assert all(torch.equal(first[key], value) for key, value in method.discriminator.state_dict().items())
    trained = copy.deepcopy(method.classifier.state_dict())
    maps = batch(99)["target"]
    before = method.predict(maps, SOURCE).outputs
    log = step(method, 3)
    assert bool(method.turned)
    assert log["supervised"] == 0
    assert log["confusion"] > 0
    for number in range(4, 8):
        assert step(method, number)["discriminator"] > 0
    for key, value in method.source.state_dict().items():
        assert torch.equal(value, trained[key])  # the source is frozen, bit for bit
    assert torch.equal(method.predict(maps, SOURCE).outputs, before)
    moved = method.classifier.encoder.state_dict()
    assert all(not torch.equal(value, trained[f"encoder.{key}"]) for key, value in moved.items())
    with torch.no_grad():
        features = method.classifier.encoder(maps)
        torch.testing.assert_close(method.predict(maps).outputs, method.source.head(features), rtol=0, atol=0)


def test_adda_s_two_losses_are_those_of_the_definition():
    method = make(ADDA, hidden=5, pretrain=0.3)
    method.step = 3
    one = batch()
    shared = method.share(networks(method), one)
    losses = {player: method.loss(player, networks(method), one, shared)[0] for player in method.players}
    d_s = method.discriminator(method.source.encoder(one["source"])).sigmoid()
    d_t = method.discriminator(method.classifier.encoder(one["target"])).sigmoid()
    wanted = {
        "classifier": -d_t.log().mean(),
        "discriminator": -(d_s.log().mean() + (1 - d_t).log().mean()) / 2,
    }
    torch.testing.assert_close(losses, wanted, rtol=1e-6, atol=1e-7)
    losses["discriminator"].backward(retain_graph=True)
    assert all(p.grad is None for p in method.classifier.parameters())
    method.zero_grad()
    losses["classifier"].backward()
    assert all(p.grad is None for p in method.discriminator.parameters())
    assert all(p.grad.abs().sum() > 0 for p in method.classifier.encoder.parameters())
    assert all(p.grad.abs().sum() == 0 for p in method.classifier.head.parameters())


def test_adda_s_frozen_source_keeps_its_batch_normalisation():
    method = make(ADDA, encoder=Normalised, pretrain=0.1).train()
    for number in range(4):
        step(method, number)
    kept = copy.deepcopy(method.source.state_dict())
    step(method, 4)
    assert all(torch.equal(kept[key], value) for key, value in method.source.state_dict().items())
    assert not torch.equal(
        method.classifier.encoder.layers[1].running_mean, method.source.encoder.layers[1].running_mean
    )


def test_adda_refuses_what_it_cannot_do():
    with pytest.raises(SkyshiftError, match="0 < share < 1"):
        make(ADDA, pretrain=1.0)
    with pytest.raises(SkyshiftError, match="an encoder for each domain"):
        make(ADDA, encoder=OfDomains)


def test_the_teacher_moves_once_a_step_by_the_average_s_rule():
    method = make(SelfEnsembling, decay=0.3)
    teacher = method.classifier.head.weight.detach().clone()
    for number in range(4):
        student = method.classifier.head.weight.detach().clone()
        step(method, number, batch(2 * number), batch(2 * number + 1))
        if number:  # what the last step has left, once for both micro-batches
            decay = min(0.3, (1 + number) / (10 + number))
            teacher = decay * teacher + (1 - decay) * student
        torch.testing.assert_close(method.teacher.head.weight.detach(), teacher, rtol=1e-5, atol=1e-7)
    assert int(method.seen) == 3
    assert not any(p.requires_grad for p in method.teacher.parameters())
    maps = batch(9)["target"]
    torch.testing.assert_close(method.predict(maps).outputs, method.teacher(maps)[1].detach(), rtol=0, atol=0)


def test_self_ensembling_adds_up_and_its_teacher_sees_the_weak_view():
    method = make(SelfEnsembling, confidence=0.3, balance=0.2, weight=2.0)
    one = batch()
    loss, parts = method.loss("classifier", networks(method), one, {})
    wanted = parts["supervised"] + 2.0 * (parts["consistency"] + 0.2 * parts["balance"])
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    p = method.classifier(one["target_strong"])[1].softmax(1)
    q = method.teacher(one["target"])[1].softmax(1)
    sure = (q.amax(1) > 0.3).float()
    assert float(parts["consistency"]) == pytest.approx(float(((p - q) ** 2).mean(1) @ sure / 6), rel=1e-5)
    assert float(parts["confident"]) == pytest.approx(float(sure.mean()))
    with pytest.raises(SkyshiftError, match="from 0 to below 1"):
        make(SelfEnsembling, decay=1.0)
    with pytest.raises(SkyshiftError, match="neither may be negative"):
        make(SelfEnsembling, weight=-1.0)


def test_adamatch_adds_up():
    method = make(AdaMatch, threshold=0.9, weight=2.0)
    method.step = 2
    one = batch()
    loss, parts = method.loss("classifier", networks(method), one, {})
    z = {name: method.classifier(one[name])[1] for name in ("source", "source_strong", "target", "target_strong")}
    supervised = sum(F.cross_entropy(z[name], one["source_label"]) for name in ("source", "source_strong")) / 2
    p_s, p_t = z["source"].softmax(1).detach(), z["target"].softmax(1).detach()
    labels = p_t * p_s.mean(0) / p_t.mean(0)
    labels = labels / labels.sum(1, keepdim=True)
    threshold = 0.9 * p_s.amax(1).mean()
    pseudo = -(labels * z["target_strong"].log_softmax(1)).sum(1) @ (labels.amax(1) >= threshold).float() / 6
    mu = 0.5 - 0.5 * torch.cos(torch.tensor(0.4 * torch.pi))
    # 1e-6 in the alignment
    assert float(loss.detach()) == pytest.approx(float(supervised + 2.0 * mu * pseudo), rel=1e-5)
    assert float(parts["threshold"]) == pytest.approx(float(threshold), rel=1e-6)
    method.step = 0
    loss, parts = method.loss("classifier", networks(method), one, {})
    assert float(loss.detach()) == float(parts["supervised"].detach())
    with pytest.raises(SkyshiftError, match="the threshold at most 1"):
        make(AdaMatch, threshold=1.5)


def test_adamatch_ties_the_batch_normalisation_of_both_passes():
    """Only with batch normalisation, between the joint batch's logits and the source's own; statistics move once."""
    assert not make(AdaMatch).interpolates
    assert not make(AdaMatch, encoder=OfDomains).interpolates
    method, one = make(AdaMatch, encoder=Normalised).train(), batch()
    assert method.interpolates
    norm = method.classifier.encoder.layers[1]
    source, target = method.outputs(method.classifier, one)
    maps = {name: torch.cat([one[name], one[f"{name}_strong"]]) for name in ("source", "target")}
    linear = method.classifier.encoder.layers[0](torch.cat([maps["source"], maps["target"]]).flatten(1))
    torch.testing.assert_close(norm.running_mean, 0.1 * linear.mean(0).detach(), rtol=1e-5, atol=1e-7)
    assert norm.momentum == 0.1
    joint = method.classifier(torch.cat([maps["source"], maps["target"]]))[1]
    alone = method.classifier(maps["source"])[1]
    torch.testing.assert_close(target, joint[12:], rtol=1e-5, atol=1e-6)
    lower, upper = torch.minimum(joint[:12], alone), torch.maximum(joint[:12], alone)
    assert ((source >= lower - 1e-6) & (source <= upper + 1e-6)).all()
    assert not torch.allclose(source, alone)
    assert not torch.allclose(source, joint[:12])
