"""Distance matching, adaptive batch normalisation and fine-tuning: terms by hand, toy shifts, two processes."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from skyshift.adapt.adapter import Adaptation
from skyshift.adapt.classifier import SOURCE, TARGET, Encoder
from skyshift.adapt.encoders import SmallCNN
from skyshift.adapt.losses.entropy import entropy
from skyshift.adapt.losses.fisher import fisher
from skyshift.adapt.methods.bn_adapt import BNAdapt
from skyshift.adapt.methods.fine_tune import FineTune
from skyshift.adapt.methods.mmd import DISTANCES, MMD
from skyshift.adapt.methods.source_only import SourceOnly
from skyshift.adapt.task import Task
from skyshift.checkpoint import CheckpointError, save_tensors
from skyshift.errors import SkyshiftError

TASK = Task("classification", ("a", "b"), ("a", "b"))
REGRESSION = Task("regression")


class Pixels(Encoder):
    """Two layers on the pixels."""

    def __init__(self, channels, width=16):
        super().__init__()
        self.width = width
        self.net = nn.Sequential(nn.Linear(channels, width), nn.Tanh(), nn.Linear(width, width))

    def forward(self, maps, domain=SOURCE):
        return self.net(maps.mean((2, 3)))


def batch_of(seed=0, n=8, channels=2, pixels=1):
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(n, channels, pixels, pixels, generator=g)  # noqa: E731
    labels = torch.arange(n) % 2
    return {"source": draw(), "source_label": labels, "target": 1 + 2 * draw(), "target_label": 1 - labels}


def one_loss(method, batch, step=0):
    method.step = step
    return method.loss("classifier", {"classifier": method.classifier}, batch, {})


def fitted(make, domains, steps=150):
    """Accuracy on the target after a short training."""
    torch.manual_seed(0)
    method = make()
    method.steps = steps
    (xs, ys), (xt, yt) = domains
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    for step in range(steps):
        a, b = torch.randint(len(xs), (2, 48))
        batch = {"source": xs[a], "source_label": ys[a], "target": xt[b], "target_label": yt[b]}
        loss, _ = one_loss(method, batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float((method.eval().predict(xt).outputs.argmax(1) == yt).float().mean())


def shifted_gaussians():
    """Classes at ±(0.7, 1.5). The target lacks nothing of them, but its second number is raised by 4."""
    g = torch.Generator().manual_seed(1)

    def draw(offset):
        labels = torch.arange(256) % 2
        points = 0.25 * torch.randn(256, 2, generator=g) + torch.tensor([0.0, offset])
        points += torch.outer(2.0 * labels - 1, torch.tensor([0.7, 1.5]))
        return points[:, :, None, None], labels

    return draw(0.0), draw(4.0)


# -- distance matching ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", list(DISTANCES))
def test_the_loss_is_the_sum_of_its_terms(distance):
    torch.manual_seed(0)
    method = MMD(2, TASK, encoder=Pixels, distance=distance, weight=0.7, fisher=0.3, entropy=0.2)
    batch = batch_of()
    loss, parts = one_loss(method, batch)
    (zs, outputs), (zt, guesses) = (method.classifier(batch[side], d) for d, side in enumerate(("source", "target")))
    terms = {
        "supervised": nn.functional.cross_entropy(outputs, batch["source_label"]),
        "distance": DISTANCES[distance](zs, zt),
        "fisher": fisher(zs, batch["source_label"], 2),
        "entropy": entropy(guesses).mean(),
    }
    assert parts.keys() == terms.keys()
    for name, term in terms.items():
        torch.testing.assert_close(parts[name], term)
    weights = {"supervised": 1.0, "distance": 0.7, "fisher": 0.3, "entropy": 0.2}
    torch.testing.assert_close(loss, sum(weights[name] * term for name, term in terms.items()))


def test_terms_without_weight_are_not_computed():
    _, parts = one_loss(MMD(2, REGRESSION, encoder=Pixels), batch_of() | {"source_label": torch.randn(8)})
    assert set(parts) == {"supervised", "distance"}


@pytest.mark.parametrize(
    "options", [{"distance": "unbiased"}, {"distance": "biased"}, {"distance": "merger"}, {"distance": "sinkhorn"}]
)
def test_a_shift_is_found(options):
    """Source only takes one class for the other; with the domains matched what has moved is read no longer."""
    domains = shifted_gaussians()
    lower = fitted(lambda: SourceOnly(2, TASK, encoder=Pixels), domains)
    assert lower < 0.8
    assert fitted(lambda: MMD(2, TASK, encoder=Pixels, **options), domains) > lower + 0.15


def test_what_distance_matching_refuses():
    with pytest.raises(SkyshiftError, match="Did you mean 'sinkhorn'"):
        MMD(2, TASK, encoder=Pixels, distance="sinkhron")
    with pytest.raises(SkyshiftError, match="0 or more"):
        MMD(2, TASK, encoder=Pixels, weight=-1)
    with pytest.raises(SkyshiftError, match="need classes"):
        MMD(2, REGRESSION, encoder=Pixels, fisher=0.1)
    with pytest.raises(SkyshiftError, match="open"):
        Task("classification", ("a", "b"), ("a", "b", "c")).require_regime(MMD.regimes, "MMD")


# -- adaptive batch normalisation -------------------------------------------------------------------------------------


def normalised(channels):
    return SmallCNN(channels, width=4, depth=2, domain_norm=True)


def test_the_target_moves_its_statistics_alone():
    torch.manual_seed(0)
    method, other = (BNAdapt(1, TASK, encoder=normalised) for _ in range(2))
    other.load_state_dict(method.state_dict())
    batch = batch_of(channels=1, pixels=8)
    changed = batch | {"target": 50 - 3 * batch["target"]}
    for one, given in ((method, batch), (other, changed)):
        one_loss(one, given)[0].backward()
    for (name, mine), (_, its) in zip(method.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(mine.grad, its.grad), name  # no gradient comes from the target
        assert mine.shape[0] == 1 or "levels.0.1" not in name  # γ and β are shared
    means = [one.state_dict()["classifier.encoder.levels.0.1.running_mean"] for one in (method, other)]
    assert torch.equal(means[0][SOURCE], means[1][SOURCE])
    assert not torch.equal(means[0][TARGET], means[1][TARGET])


def test_a_stretched_and_raised_target_is_read_like_the_source():
    """Adaptive statistics undo what is linear in the maps; source only does not."""
    g = torch.Generator().manual_seed(2)

    def draw(scale, offset):
        labels = torch.arange(128) % 2
        maps = torch.randn(128, 1, 8, 8, generator=g)
        maps[:, :, 2:6, 2:6] += 1.5 * labels[:, None, None, None]
        return scale * maps + offset, labels

    domains = draw(1.0, 0.0), draw(0.3, 2.0)
    lower = fitted(lambda: SourceOnly(1, TASK, encoder=lambda c: SmallCNN(c, 4, 2)), domains, 100)
    assert fitted(lambda: BNAdapt(1, TASK, encoder=normalised), domains, 100) > max(0.9, lower + 0.15)


@pytest.mark.parametrize("encoder", [SmallCNN, Pixels])
def test_an_encoder_without_batch_normalisation_is_refused(encoder):
    with pytest.raises(SkyshiftError, match="set domain_norm: true"):
        BNAdapt(2, TASK, encoder=encoder)


# -- fine-tuning ------------------------------------------------------------------------------------------------------


def test_source_first_then_labelled_target():
    torch.manual_seed(0)
    method = FineTune(2, TASK, encoder=Pixels, pretrain=0.3)
    method.steps = 10
    batch = batch_of()
    for step in range(10):
        side, domain = ("source", SOURCE) if step < 3 else ("target", TARGET)
        wanted = nn.functional.cross_entropy(method.classifier(batch[side], domain)[1], batch[f"{side}_label"])
        torch.testing.assert_close(one_loss(method, batch, step)[0], wanted)


def test_rates_fall_from_the_head():
    encoder = lambda channels: SmallCNN(channels, width=4, depth=3)  # noqa: E731
    method = FineTune(1, TASK, encoder=encoder, pretrain=0.0, blocks=2, rate_decay=0.5)
    rates = {name: method.rate_scale("classifier", name) for name, _ in method.classifier.named_parameters()}
    assert {rates[name] for name in rates if name.startswith("head")} == {1.0}
    assert [rates[f"encoder.levels.{level}.0.weight"] for level in range(3)] == [0.0, 0.25, 0.5]


def write_run(folder, method, averaged=None):
    folder.mkdir()
    Adaptation(method.task, (), (), {}).write(folder)
    save_tensors(folder / "model.safetensors", method.state_dict())
    if averaged is not None:
        save_tensors(folder / "average.safetensors", {f"module.{k}": v for k, v in averaged.state_dict().items()})
    return str(folder)


def test_it_begins_with_the_averaged_classifier_of_an_earlier_run(tmp_path):
    earlier, averaged = (SourceOnly(2, TASK, encoder=Pixels) for _ in range(2))
    for name, wanted, more in (("plain", earlier, None), ("averaged", averaged, averaged)):
        method = FineTune(2, TASK, encoder=Pixels, pretrained=write_run(tmp_path / name, earlier, more))
        method.prepare(torch.arange(3).numpy())
        assert method.pretrain == 0
        for key, value in wanted.classifier.state_dict().items():
            assert torch.equal(method.classifier.state_dict()[key], value)


def test_earlier_runs_that_do_not_fit_are_refused(tmp_path):
    swapped = SourceOnly(2, Task("classification", ("b", "a"), ("b", "a")), encoder=Pixels)
    wider = SourceOnly(2, TASK, encoder=lambda c: Pixels(c, 5))
    cases = {
        write_run(tmp_path / "swapped", swapped): "same classes in the same order",
        write_run(tmp_path / "wider", wider): "take the same encoder",
        str(tmp_path / "nowhere"): "holds no checkpoint",
    }
    for folder, message in cases.items():
        with pytest.raises(CheckpointError, match=message):
            FineTune(2, TASK, encoder=Pixels, pretrained=folder).prepare(torch.arange(3).numpy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrain": 1.5}, "share from 0 to 1"),
        ({"rate_decay": 0.0}, "at most 1"),
        ({"blocks": 2, "pretrain": 0.0}, "this encoder has 1"),
        ({"blocks": 0}, "give its folder as pretrained"),
        ({"rate_decay": 0.5}, "give its folder as pretrained"),
    ],
)
def test_what_fine_tuning_refuses(options, message):
    with pytest.raises(SkyshiftError, match=message):
        FineTune(2, TASK, encoder=Pixels, **options)


# -- two processes ----------------------------------------------------------------------------------------------------

TWO = """
    import sys, torch
    from torch import distributed as dist, nn
    from torch.nn.parallel import DistributedDataParallel as DDP
    from skyshift.adapt.encoders import SmallCNN
    from skyshift.adapt.gathering import processes
    from skyshift.adapt.methods.bn_adapt import BNAdapt
    from skyshift.adapt.methods.mmd import DISTANCES, MMD
    from skyshift.adapt.task import Task

    TASK = Task("classification", ("a", "b"), ("a", "b"))
    g = torch.Generator().manual_seed(0)
    whole = {"source": torch.randn(8, 1, 8, 8, generator=g), "target": 1 + torch.randn(8, 1, 8, 8, generator=g),
             "source_label": torch.tensor([0, 1, 1, 0, 1, 1, 0, 1])}

    def gradients(make, batch, parallel):
        torch.manual_seed(0)
        method = make().double()
        method.class_weights = method.class_weights.float()  # the supervised loss is always float32
        network = DDP(method.classifier) if parallel else method.classifier
        batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        method.loss("classifier", {"classifier": network}, batch, {})[0].backward()
        return [*(p.grad for p in method.classifier.parameters()), *method.classifier.buffers()]

    small = lambda c: SmallCNN(c, 4, 2)
    normed = lambda c: SmallCNN(c, 4, 2, domain_norm=True)
    makers = {d: (lambda d=d: MMD(1, TASK, encoder=small, distance=d, fisher=0.1, entropy=0.1)) for d in DISTANCES}
    makers["bn_adapt"] = lambda: BNAdapt(1, TASK, encoder=normed)
    alone = {name: gradients(make, whole, False) for name, make in makers.items()}
    dist.init_process_group("gloo")
    assert processes() == 2
    rank = dist.get_rank()
    half = {k: v[4 * rank : 4 * rank + 4] for k, v in whole.items()}
    for name, make in makers.items():
        for mine, wanted in zip(gradients(make, half, True), alone[name], strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-6, msg=lambda m: f"{name}: {m}")
    dist.destroy_process_group()
    print("the same")
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Gradients of every distance, with both terms, and statistics of the target, to the rounding of float32."""
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO))
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("the same") == 2
