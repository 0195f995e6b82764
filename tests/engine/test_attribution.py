"""SHAP values against networks whose values are known, against shap itself, and what is refused."""

import numpy as np
import pytest
import shap
import torch
import torch.nn.functional as F
from torch import nn

from skyshift.attribution import (
    Attribution,
    AttributionConfig,
    AttributionError,
    explain,
    input_gradient,
    out_of_place,
)
from skyshift.attribution_draws import draw
from skyshift.attribution_shap import blurred, channel_tree, inexact_layers
from skyshift.translate.networks.patchgan import PatchGAN


class Linear(nn.Module):
    """f(x) = Σ w x + 1."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return (x * self.weight).flatten(1).sum(1, keepdim=True) + 1.0


class Cubes(nn.Module):
    """Additive, not linear: f(x) = Σ w x³."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, x):
        return (x**3 * self.weight).flatten(1).sum(1, keepdim=True)


class Corner(nn.Module):
    """A discriminator of its own corner of 8 x 8 pixels."""

    def __init__(self):
        super().__init__()
        self.network = PatchGAN(2, width=4, layers=1, norm="none")

    def forward(self, x):
        return self.network(x[:, :, :8, :8]).flatten(1).mean(1, keepdim=True)


class Mean(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).flatten(1).mean(1, keepdim=True)


class Cliff(nn.Module):
    """Blind to the amplitude, as a normalised network is: all of the change from an empty map is at its edge."""

    def forward(self, x):
        size = (x.flatten(1) ** 2).mean(1, keepdim=True)
        return (x.flatten(1)[:, :1] ** 2) / (size + 1e-4)


@pytest.fixture
def images():
    """Five samples and eight backgrounds of 2 channels and 16 x 16 pixels."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(5, 2, 16, 16, generator=generator), torch.rand(8, 2, 16, 16, generator=generator)


def weights(shape=(2, 16, 16), seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- values that are known


@pytest.mark.parametrize("samples", [8, 16, 64, 100])
def test_a_linear_model_is_explained_exactly(images, samples):
    """φ = w (x - mean b): from one draw a background on, whatever α. float32 sums of 512 terms hold 1e-5."""
    x, b = images
    found = explain(Linear(weights()), x, b, AttributionConfig(samples=samples, refine=0))
    wanted = weights() * (x - b.mean(0))
    np.testing.assert_allclose(found.values[:, 0], wanted.numpy(), atol=2e-6)
    assert found.completeness_error.max() < 1e-5
    assert found.draws.tolist() == [-(-samples // 8) * 8] * 5


def test_an_additive_model_is_explained_by_its_terms(images):
    """φ_i = w (x³ - mean b³). 64 strata on each path leave about 1e-3 of the largest value."""
    x, b = images
    found = explain(Cubes(weights()), x, b, AttributionConfig(samples=512, refine=0))
    wanted = (weights() * (x**3 - (b**3).mean(0))).numpy()
    np.testing.assert_allclose(found.values[:, 0], wanted, atol=5e-3 * np.abs(wanted).max())


def test_a_discriminator_of_one_corner_is_seen_to_be_one(images):
    x, b = images
    for name in ("gradient", "shap_gradient", "deep"):
        found = explain(Corner(), x, b, AttributionConfig(explainer=name, samples=64, refine=0))
        size = np.abs(found.values)
        assert size.sum() > 0
        assert size[..., :8, :8].sum() >= 0.95 * size.sum(), name


def test_partition_finds_the_corner_as_well(images):
    """All 2 x 256 pixels: the regions are parted down to the pixel where the output changes."""
    x, b = images
    found = explain(Corner(), x[:1], b, AttributionConfig(explainer="partition", evaluations=800))
    size = np.abs(found.values)
    assert size[..., :8, :8].sum() >= 0.95 * size.sum()
    assert found.completeness_error.max() < 1e-5  # Owen values add up by construction; float32 outputs


def test_inputs_that_play_the_same_part_get_the_same_value():
    """f of the sum of two equal pixels, against backgrounds in which both are equal: an exact symmetry."""

    class Pair(nn.Module):
        def forward(self, x):
            return torch.tanh(3 * x.sum(1, keepdim=True)) + x.prod(1, keepdim=True)

    x = torch.tensor([[0.7, 0.7], [-0.2, -0.2]])
    b = torch.tensor([[0.1, 0.1], [0.9, 0.9], [-0.4, -0.4]])
    for name in ("gradient", "shap_gradient"):
        values = explain(Pair(), x, b, AttributionConfig(explainer=name, samples=99, refine=0)).values[:, 0]
        np.testing.assert_allclose(values[:, 0], values[:, 1], atol=1e-7)
        assert np.abs(values).min() > 0.01


def test_the_error_falls_with_the_root_of_the_draws_and_faster_where_they_are_stratified(images):
    """Root mean square over 30 samples: a slope of -1/2 in log-log for independent draws, here to 0.15 (the root mean
    square of 30 numbers is known to 13 %, over a factor of 16 in draws that is a slope to 0.07)."""
    torch.manual_seed(3)
    model = Mean(PatchGAN(2, width=4, layers=1))
    b = images[1] * torch.linspace(0.2, 2, 8)[:, None, None, None]
    x = images[0].repeat(6, 1, 1, 1)
    draws = np.array([32, 128, 512])
    errors = {}
    for sampling in ("random", "stratified"):
        errors[sampling] = np.array(
            [
                np.sqrt(
                    (
                        explain(model, x, b, AttributionConfig(samples=int(n), sampling=sampling, refine=0)).missing
                        ** 2
                    ).mean()
                )
                for n in draws
            ]
        )
    slopes = {name: np.polyfit(np.log(draws), np.log(error), 1)[0] for name, error in errors.items()}
    assert slopes["random"] == pytest.approx(-0.5, abs=0.15)
    assert slopes["stratified"] < -0.8
    assert (errors["stratified"] < errors["random"]).all()


# --- shap itself


def test_it_agrees_with_shap_within_the_sampling_error(images):
    """Twelve independent estimates by each: the squared difference of their means, in units of its variance, is 1 on
    average over pixels (Student's t with 22 degrees: 1.1). Gradients of neighbouring pixels are correlated, so the
    average over 1,024 pixels scatters by some 0.1."""
    torch.manual_seed(0)
    model = Mean(PatchGAN(2, width=8, layers=2))
    x, b = images[0][:2], images[1]
    ours = np.stack(
        [explain(model, x, b, AttributionConfig(samples=64, seed=s, refine=0)).values[:, 0] for s in range(12)]
    )
    explainer = shap.GradientExplainer(out_of_place(model), b)
    theirs = np.stack([explainer.shap_values(x, nsamples=64, rseed=s)[..., 0] for s in range(12)])
    variance = ours.var(0, ddof=1) / 12 + theirs.var(0, ddof=1) / 12
    score = ((ours.mean(0) - theirs.mean(0)) ** 2 / variance).mean()
    assert 0.6 < score < 1.6
    assert ours.var(0).mean() < theirs.var(0).mean()


def test_the_adapter_is_shap(images):
    x, b = images
    model = Mean(PatchGAN(2, width=4, layers=1))
    found = explain(model, x[:1], b, AttributionConfig(explainer="shap_gradient", samples=20, seed=4), keys=[7])
    seed = int(np.random.SeedSequence([4, 7]).generate_state(1)[0])
    wanted = shap.GradientExplainer(out_of_place(model), b).shap_values(x[:1], nsamples=20, rseed=seed)[..., 0]
    np.testing.assert_allclose(found.values[:, 0], wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["shap_gradient", "partition"])
def test_the_global_generator_is_left_as_it_was(images, name):
    np.random.seed(5)  # noqa: NPY002
    wanted = np.random.random(3)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    explain(Linear(weights()), images[0][:1], images[1], AttributionConfig(explainer=name, samples=4, evaluations=10))
    np.testing.assert_array_equal(np.random.random(3), wanted)  # noqa: NPY002


@pytest.mark.parametrize("mask", ["mean", "blur"])
def test_partition_is_exact_on_a_linear_model(mask):
    """Once every pixel has been parted, φ = w (x - hidden x)."""
    x, b = torch.rand(2, 2, 4, 4), torch.rand(6, 2, 4, 4)
    config = AttributionConfig(explainer="partition", evaluations=2000, mask=mask, blur=3)
    found = explain(Linear(weights((2, 4, 4))), x, b, config)
    hidden = b.mean(0).expand(2, -1, -1, -1).numpy() if mask == "mean" else np.stack([blurred(i, 3) for i in x.numpy()])
    np.testing.assert_allclose(found.values[:, 0], weights((2, 4, 4)).numpy() * (x.numpy() - hidden), atol=1e-5)


def test_the_tree_parts_channels_first_and_holds_every_pixel_once():
    tree = channel_tree(3, 4, 6)
    leaves: list[set[int]] = [{i} for i in range(72)]
    for left, right, _, size in tree:
        a, b = leaves[int(left)], leaves[int(right)]
        assert not a & b
        leaves.append(a | b)
        assert len(leaves[-1]) == size
    assert leaves[-1] == set(range(72))
    channels = [set(range(24 * c, 24 * c + 24)) for c in range(3)]
    assert all(channel in leaves for channel in channels)


# --- deep, where it is exact


def test_deep_is_exact_with_batch_normalisation(images):
    torch.manual_seed(0)
    network = PatchGAN(2, width=8, layers=1, norm="batch")
    network(torch.rand(32, 2, 16, 16))  # moves the running statistics off their defaults
    found = explain(Mean(network.eval()), *images, AttributionConfig(explainer="deep"))
    assert found.completeness_error.max() < 1e-4


def test_deep_refuses_instance_normalisation_and_says_why(images):
    model = Mean(PatchGAN(2, width=4, layers=2, norm="instance"))
    with pytest.raises(AttributionError, match=r"not exact here: .*InstanceNorm2d\) divides by a spread") as error:
        explain(model, *images, AttributionConfig(explainer="deep"))
    assert "Use explainer gradient" in str(error.value)
    assert len(inexact_layers(model)) == 2


class InPlace(nn.Module):
    """A user's network whose modules work in place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(4, 1, 3))

    def forward(self, x):
        return self.layers(x).flatten(1).mean(1, keepdim=True)


class HiddenInPlace(InPlace):
    """The same outside its modules, on its very input."""

    def forward(self, x):
        x.sub_(0.5)
        h = self.layers[0](x)
        return self.layers[2](F.leaky_relu(h, 0.2, inplace=True)).flatten(1).mean(1, keepdim=True)


@pytest.mark.parametrize("name", ["gradient", "shap_gradient", "deep", "partition"])
def test_modules_that_work_in_place_are_copied_out_of_place(images, name):
    model, plain = InPlace(), out_of_place(InPlace())
    config = AttributionConfig(explainer=name, samples=64, evaluations=50)
    found, wanted = explain(model, *images, config), explain(plain, *images, config)
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-5, atol=1e-8)
    assert model.layers[1].inplace, "the user's network was changed"
    assert model.training
    assert next(model.parameters()).requires_grad


def test_what_works_in_place_outside_its_modules_is_explained_by_gradients_and_refused_by_deep(images):
    x, b = (tensor.clone() for tensor in images)
    found = explain(HiddenInPlace(), x, b, AttributionConfig(samples=512))
    assert found.completeness_error.max() < 0.05
    with pytest.raises(AttributionError, match=r"in place|not exact here"):
        explain(HiddenInPlace(), x, b, AttributionConfig(explainer="deep"))
    torch.testing.assert_close(x, images[0], rtol=0, atol=0)
    torch.testing.assert_close(b, images[1], rtol=0, atol=0)


# --- cliffs, and the completeness that sees them


def test_a_cliff_beside_an_empty_background_is_found(images):
    """All of the change is within α < 0.02 of the empty map: 64 uniform draws miss it, stratified ones do not."""
    x, empty = images[0], torch.zeros(1, 2, 16, 16)
    kinds = {
        s: explain(Cliff(), x, empty, AttributionConfig(samples=64, sampling=s, refine=0)).completeness_error
        for s in ("random", "stratified")
    }
    assert np.median(kinds["random"]) > 0.3
    assert kinds["stratified"].max() < 0.1


def test_what_does_not_add_up_is_given_more_draws(images):
    config = AttributionConfig(samples=8, refine=6, tolerance=0.02)
    x, empty = images[0], torch.zeros(1, 2, 16, 16)
    found = explain(Cliff(), x, empty, config)
    found.require_complete(0.02)
    assert found.draws.max() > 8
    coarse = explain(Cliff(), x, empty, AttributionConfig(samples=8, refine=0, tolerance=0.02))
    with pytest.raises(AttributionError, match=r"do not add up to the change in output within 0.02 of it; the worst, "):
        coarse.require_complete(0.02)


def test_the_worst_is_named_and_nothing_passes_for_want_of_a_number():
    values = np.zeros((2, 1, 3), np.float32)
    made = Attribution(values, np.array([[0.0], [2.0]]), np.zeros((2, 1)), np.ones((2, 1)), np.array([4, 4]), "deep")
    assert made.completeness_error.tolist() == [[0.0], [1.0]]
    with pytest.raises(AttributionError, match=r"1 of 2 explanations \(deep\) .* the worst, beta, misses 1 after 4"):
        made.require_complete(0.5, ["alpha", "beta"])
    lost = Attribution(values, np.array([[0.0], [np.nan]]), *[np.zeros((2, 1))] * 2, np.array([4, 4]), "deep")
    with pytest.raises(AttributionError, match="1 of 2"):
        lost.require_complete(0.5)


# --- spatial frequency


def test_a_wave_is_found_at_its_frequency(images):
    """f = Σ cos(2π 3 x / 16) x is a projection on |k| = 3 alone."""
    wave = torch.cos(2 * np.pi * 3 * torch.arange(16) / 16).expand(2, 16, 16).clone()
    found = explain(Linear(wave), *images, AttributionConfig(samples=8), spectrum=True)
    wanted = found.values.sum((3, 4))
    np.testing.assert_allclose(found.spectrum[..., 3], wanted, atol=1e-4)
    np.testing.assert_allclose(np.delete(found.spectrum, 3, axis=3), 0.0, atol=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (15, 15), (12, 16), (9, 14)])
def test_the_rings_add_up_to_the_values(size):
    x, b = torch.rand(2, 2, *size), torch.rand(4, 2, *size)
    torch.manual_seed(0)
    found = explain(Mean(PatchGAN(2, width=4, layers=1)), x, b, AttributionConfig(samples=16), spectrum=True)
    np.testing.assert_allclose(found.spectrum.sum(3), found.values.sum((3, 4)), atol=1e-6)


# --- classifiers, and what the result may depend on


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(2, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(294, 3)
        )

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("name", ["gradient", "shap_gradient", "deep", "partition"])
def test_one_class_of_a_classifier_is_one_of_all(images, name):
    config = AttributionConfig(explainer=name, samples=48, refine=0, evaluations=60)
    x, b = images[0][:2], images[1]
    everything = explain(Classifier(), x, b, config)
    assert everything.values.shape == (2, 3, 2, 16, 16)
    one = explain(Classifier(), x, b, config, outputs=[2])
    assert one.output == pytest.approx(everything.output[:, 2:])
    if name != "partition":  # which parts its tree by the largest change of any output
        np.testing.assert_allclose(one.values, everything.values[:, 2:], rtol=1e-4, atol=1e-7)
    assert one.completeness_error.max() < (0.3 if "gradient" in name else 1e-4)


def test_values_depend_on_the_key_alone(images):
    """Not on the batch, nor on which samples are explained together (to the rounding of another order of sums)."""
    model = Mean(PatchGAN(2, width=4, layers=1))
    x, b = images
    together = explain(model, x, b, AttributionConfig(samples=32, refine=0), keys=[9, 8, 7, 6, 5])
    for config in (AttributionConfig(samples=32, refine=0, batch_size=5), AttributionConfig(samples=32, refine=0)):
        alone = explain(model, x[3:4], b, config, keys=[6])
        np.testing.assert_allclose(alone.values[0], together.values[3], rtol=1e-3, atol=1e-7)
    other = explain(model, x[3:4], b, AttributionConfig(samples=32, refine=0, seed=1), keys=[6])
    assert np.abs(other.values - alone.values).max() > 1e-6


@pytest.mark.parametrize("samples", [3, 8, 20, 256])
def test_every_background_is_drawn_equally_often(samples):
    made = draw("stratified", (0, 5), samples, 8)
    counts = np.bincount(made.background, minlength=8)
    assert set(counts) <= ({0, 1} if samples < 8 else {-(-samples // 8)})
    assert made.weight.mean() == pytest.approx(1.0)
    assert ((made.alpha >= 0) & (made.alpha < 1)).all()


def test_weighted_draws_integrate_what_is_known():
    """∫ α² dα = 1/3 and ∫ dα / (α + 0.001) = ln(1001), whose peak 16 uniform strata would miss by a third."""
    made = [draw("stratified", (0, key), 16 * 8, 8) for key in range(20)]
    for f, wanted in ((lambda a: a**2, 1 / 3), (lambda a: 1 / (a + 1e-3), np.log(1001))):
        found = np.mean([(m.weight * f(m.alpha)).mean() for m in made])
        assert found == pytest.approx(wanted, rel=0.03)


def test_plain_gradients(images):
    found = input_gradient(Linear(weights()), images[0])
    np.testing.assert_allclose(found[:, 0], weights().expand(5, -1, -1, -1).numpy())


# --- what is refused


def test_an_empty_background_is_refused(images):
    with pytest.raises(
        AttributionError, match="the background is empty: an explanation is a difference from something"
    ):
        explain(Linear(weights()), images[0], images[1][:0])


def test_a_background_of_another_shape_is_refused(images):
    with pytest.raises(AttributionError, match=r"samples have shape \(2, 16, 16\), the background \(1, 16, 16\)"):
        explain(Linear(weights()), images[0], images[1][:, :1])


def test_values_that_are_not_finite_are_refused(images):
    x = images[0].clone()
    x[1, 0, 3, 3] = torch.nan
    with pytest.raises(AttributionError, match="the samples hold values that are not finite"):
        explain(Linear(weights()), x, images[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, not 0"),
        ({"samples": -3}, "samples must be at least 1, not -3"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"evaluations": 1}, "evaluations must be at least 4, not 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(AttributionError, match=message):
        AttributionConfig(**options)


def test_other_refusals(images):
    x, b = images
    with pytest.raises(AttributionError, match=r"a model to explain gives \(batch, outputs\), not \(8, 1, 2, 2\)"):
        explain(PatchGAN(2, width=4, layers=2), x, b)
    with pytest.raises(AttributionError, match="there is no output 3: the model has 3, counted from 0"):
        explain(Classifier(), x, b, outputs=[3])
    with pytest.raises(AttributionError, match="fp16 needs a GPU"):
        explain(Classifier(), x, b, AttributionConfig(precision="fp16"))
    with pytest.raises(AttributionError, match="needs the gradient explainer"):
        explain(Classifier(), x, b, AttributionConfig(explainer="deep"), spectrum=True)
    with pytest.raises(AttributionError, match="parts images"):
        explain(nn.Linear(3, 1), torch.rand(2, 3), torch.rand(4, 3), AttributionConfig(explainer="partition"))
