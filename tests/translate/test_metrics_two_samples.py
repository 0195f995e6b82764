"""Distances between sets, the classifier test, and pretrained networks with their real weights."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from scipy.stats import norm

from skyshift.datasets.scaling import Asinh
from skyshift.errors import SkyshiftError
from skyshift.translate.metric_rows import choose
from skyshift.translate.metrics import pretrained, two_samples
from skyshift.translate.metrics.calibration import calibrate


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(("n", "m", "d"), [(50, 60, 5), (12, 9, 30)])
def test_frechet_distance_is_that_of_the_matrix_root(rng, n, m, d):
    x, y = rng.normal(size=(n, d)), 1.5 * rng.normal(size=(m, d)) + 0.3
    a, b = np.cov(x.T), np.cov(y.T)
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    # Root of a singular matrix: half of the digits.
    assert two_samples.frechet_distance(x, y) == pytest.approx(wanted, rel=1e-9 if n > d else 1e-5)
    assert two_samples.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert np.isnan(two_samples.frechet_distance(x[:1], y))
    with pytest.raises(SkyshiftError, match="shapes"):
        two_samples.frechet_distance(x, y[:, 1:])


def test_kernel_distance_is_torchmetrics_and_unbiased(rng):
    from torchmetrics.image.kid import poly_mmd

    x, y = rng.normal(size=(30, 8)), rng.normal(size=(30, 8)) + 0.5
    wanted = float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y)))
    assert two_samples.kernel_distance(x, y) == pytest.approx(wanted, rel=1e-9)
    drawn = [two_samples.kernel_distance(*rng.normal(size=(2, 20, 3))) for _ in range(200)]
    assert abs(np.mean(drawn)) < 4 * np.std(drawn) / np.sqrt(200)


def test_the_classifier_finds_a_known_shift(rng):
    """Two normal distributions a distance δ apart: the best AUC is Φ(δ / √2)."""
    x, y = rng.normal(size=(2, 1500, 3))
    y[:, 0] += 1.0
    auc = two_samples.area_under_curve(two_samples.classifier_scores(x, y, np.arange(1500)))
    assert auc == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.03)  # its standard error is 0.009, and it has to learn
    scores = two_samples.classifier_scores(x, 2 * rng.normal(size=x.shape), np.arange(1500))
    assert two_samples.area_under_curve(scores) > 0.75  # a spread, which no linear function of the features tells
    same = two_samples.classifier_scores(x, x.copy(), np.arange(1500))
    assert two_samples.area_under_curve(same) == pytest.approx(0.5, abs=1e-9)


def test_p_values_of_one_distribution_are_uniform(rng):
    p = np.array(
        [two_samples.classifier_p_value(*rng.normal(size=(2, 12, 2)), np.arange(12), 9, seed) for seed in range(15)]
    )
    # Ten equal steps from 0.1: mean 0.55, standard deviation 0.287; the mean of 15 is uncertain by 0.074.
    assert p.mean() == pytest.approx(0.55, abs=0.25)
    assert (p <= 0.1).mean() < 0.4
    x = rng.normal(size=(30, 2))
    assert two_samples.classifier_p_value(x, x + 3, np.arange(30), 9) == pytest.approx(0.1)
    assert np.isnan(two_samples.classifier_p_value(x, x + 3, np.zeros(30), 9))


def example(shared, name):
    values = np.asarray(Image.open(shared / "weights" / f"{name}.png").convert("RGB"), np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)[None]


@pytest.mark.parametrize(("network", "wanted"), [("alexnet", (0.7219, 0.1376)), ("squeezenet", (0.7110, 0.1479))])
def test_lpips_with_the_real_weights_gives_the_papers_numbers(shared, network, wanted):
    before = torch.random.get_rng_state()
    model = pretrained.perceptual_network(network, shared / "weights")
    assert torch.equal(before, torch.random.get_rng_state())
    found = [float(model(example(shared, "ex_ref"), example(shared, name))) for name in ("ex_p0", "ex_p1")]
    np.testing.assert_allclose(found, wanted, atol=5e-5)  # four digits are known


def test_features_are_torchvisions(shared):
    import torchvision
    from safetensors.torch import load_file

    features = pretrained.Features("squeezenet", shared / "weights")
    peer = torchvision.models.squeezenet1_1(weights=None)
    peer.load_state_dict(load_file(shared / "weights" / "squeezenet1_1_features.safetensors"), strict=False)
    grey = torch.rand(2, 1, 64, 64)
    normal = torchvision.transforms.functional.normalize(
        grey.expand(-1, 3, -1, -1), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    with torch.no_grad():
        wanted = peer.features(normal).mean((2, 3))
    torch.testing.assert_close(features(2 * grey - 1), wanted)


def test_absent_weights_are_named_with_place_and_cure(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("SKYSHIFT_WEIGHTS", raising=False)
    with pytest.raises(pretrained.WeightsError) as error:
        pretrained.find_weights("alexnet", tmp_path / "mine")
    for part in ("alexnet_features.safetensors", str(tmp_path / "mine"), "checkpoints", "--weights", "https://"):
        assert part in str(error.value)
    monkeypatch.setenv("SKYSHIFT_WEIGHTS", str(tmp_path))
    (tmp_path / "alexnet_features.safetensors").write_bytes(b"nothing")
    assert pretrained.find_weights("alexnet").parent == tmp_path
    with pytest.raises(pretrained.WeightsError, match="without running code"):
        pretrained.Features("alexnet")


def test_a_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"features.0.weight": Evil()}, tmp_path / "squeezenet1_1-b8a52dc0.pth")
    with pytest.raises(pretrained.WeightsError, match="without running code"):
        pretrained.Features("squeezenet", tmp_path)


def test_maps_are_stretched_to_grey_images():
    scaling = Asinh(1.0, 100.0)
    images = pretrained.stretched(np.array([[[0.0, 100.0]] * 2]).repeat(32, 1).repeat(32, 2), scaling)
    assert images.shape == (1, 1, 64, 64)
    assert (float(images.min()), float(images.max())) == (-1.0, pytest.approx(1.0))
    assert pretrained.stretched(np.zeros((1, 16, 16)), scaling).shape == (1, 1, 64, 64)
    signed = pretrained.stretched(np.array([[[-100.0, 0.0, 100.0]] * 3]).repeat(32, 1).repeat(32, 2), scaling, True)
    np.testing.assert_allclose(signed[0, 0, 0, ::32], [-1, 0, 1], atol=1e-6)  # rounding to float32


def test_calibration_of_known_posteriors(rng):
    """Truth and draws of one normal distribution in every pixel, and draws half and twice as wide."""
    shape, level = (2, 40, 40), 10.0
    views, lit = np.arange(2), np.ones(2, bool)
    truth = level + rng.normal(size=shape)
    right, curve = calibrate(truth, level + rng.normal(size=(16, *shape)), lit, views, 1.0)
    # 1,600 pixels a map: shares are uncertain by 0.012 and 0.006; five of these.
    np.testing.assert_allclose(right["coverage_68"], 0.68, atol=0.06)
    np.testing.assert_allclose(right["coverage_95"], 0.95, atol=0.03)
    np.testing.assert_allclose(right["spread_skill"], 1, atol=0.1)
    np.testing.assert_allclose(right["crps"], 1 / np.sqrt(np.pi), atol=0.05)  # of a normal forecast of a normal truth
    assert curve["ranks"].shape == (2, 17)
    assert curve["ranks"].sum() == curve["central"].sum() == truth.size
    narrow, _ = calibrate(truth, level + 0.5 * rng.normal(size=(16, *shape)), lit, views, 1.0)
    np.testing.assert_allclose(narrow["coverage_68"], 2 * norm.cdf(norm.ppf(0.84) / 2) - 1, atol=0.1)
    assert (narrow["spread_skill"] < 0.6).all()
    dark, _ = calibrate(truth, truth[None].repeat(2, 0), np.zeros(2, bool), views, 1.0)
    assert all(np.isnan(values).all() for values in dark.values())


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(SkyshiftError, match=re.escape("unknown metric 'lipps'. Did you mean 'lpips'?")):
        choose(["lipps"])
    assert choose(["c2st"])[1] == {"c2st"}
    assert {"psnr", "correlation"} <= set(choose(["c2st"])[0])
    assert "lpips" not in choose(["default"])[0]
    assert "lpips" in choose(["all"])[0]


def test_inception_features_are_torch_fidelitys(tmp_path):
    """The network of FID from a local file, against its own 8-bit forward pass; its weights here are random ones."""
    peers = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.save({}, tmp_path / "empty.pth")

    class Random(peers.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_, **__):
            return None

    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = Random("inception", ["2048"], feature_extractor_weights_path=tmp_path / "empty.pth")
    torch.save(peer.state_dict(), tmp_path / "weights-inception-2015-12-05-6726825d.pth")
    grey = torch.arange(0, 256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    wanted = peer(grey.expand(-1, 3, -1, -1))[0]
    found = pretrained.Features("inception", tmp_path)(grey.float() / 127.5 - 1)
    # Values are scaled to [-1, 1] and back in float32, then pass 94 convolutions.
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
