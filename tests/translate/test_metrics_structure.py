"""Morphology against statmorph, MS-SSIM against pytorch-msssim, one-point distances against scipy, peaks, photutils."""

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from skyshift.errors import SkyshiftError
from skyshift.translate.metrics import image, morphology, pixels


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def disc(size=101, scale=8.0, at=(0.0, 0.0), n=1):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius = np.hypot(y - at[0], x - at[1])
    return np.exp(-radius / scale)[None].repeat(n, 0)


def test_radii_of_an_exponential_disc():
    """1 - (1 + r/h) exp(-r/h) = s: r_20 = 0.824 h, r_50 = 1.678 h, r_80 = 2.994 h."""
    found = morphology.radii(disc(201), (0.2, 0.5, 0.8))[0] / 8.0
    # The cusp is sampled at pixel centres: its mean over a pixel differs by some per mille.
    np.testing.assert_allclose(found, [0.8244, 1.6783, 2.9943], rtol=5e-3)
    assert morphology.structure(disc(201))["concentration"][0] == pytest.approx(5 * np.log10(2.9943 / 0.8244), abs=0.02)


def test_structure_agrees_with_statmorph(rng):
    statmorph = pytest.importorskip("statmorph")
    y, x = np.mgrid[:121, :121] - 60.0
    galaxy = disc(121, 7.0)[0]
    galaxy += 0.3 * np.exp(-((x - 12) ** 2 + (y + 8) ** 2) / 18) + 0.05 * np.exp(-((x + 18) ** 2 + (y - 15) ** 2) / 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = statmorph.SourceMorphology(galaxy, np.ones((121, 121), int), 1, gain=1e9, skybox_size=4)
        segmap, stamp = peer._segmap_gini, peer._slice_stamp
        cut = np.zeros((121, 121), bool)
        cut[stamp] = segmap
        # The same pixels: the same numbers, but for its centroid, which it takes over the whole segment.
        assert morphology.gini(galaxy[None], cut)[0] == pytest.approx(peer.gini, rel=1e-10)
        assert morphology.m20(galaxy[None], cut)[0] == pytest.approx(peer.m20, abs=0.02)
        peer.__dict__["_sky_asymmetry"] = 0.0
        radius = 1.5 * peer._rpetro_circ_centroid
        inside = morphology.distances((121, 121)) <= radius
        theirs = peer._asymmetry_function((60.0, 60.0), galaxy, "cas")
    # Its aperture cuts pixels at the rim, and its half turn interpolates.
    assert morphology.asymmetry(galaxy[None], inside)[0] == pytest.approx(theirs, rel=0.01)


def test_structure_of_maps_that_are_known_exactly(rng):
    symmetric = disc(64)
    assert morphology.asymmetry(symmetric)[0] == pytest.approx(0, abs=1e-12)
    lopsided = symmetric * (np.arange(64) < 32)
    assert morphology.asymmetry(lopsided)[0] == pytest.approx(2)
    np.testing.assert_allclose(morphology.centroid(disc(101, 3.0, (5.0, -2.0)))[0], [5, -2], atol=0.01)
    flat = np.ones((1, 40, 40))
    assert morphology.gini(flat)[0] == pytest.approx(0, abs=1e-12)
    assert morphology.clumpiness(flat)[0] == pytest.approx(0, abs=1e-6)
    one = np.zeros((1, 40, 40))
    one[0, 20, 20] = 3
    assert morphology.gini(one)[0] == pytest.approx(1)
    # Uniform numbers on [0, 1] have Gini 1/3; 1,257 of them are uncertain by less than 0.02.
    assert morphology.gini(rng.uniform(size=(1, 40, 40)))[0] == pytest.approx(1 / 3, abs=0.02)


def test_maps_without_anything_have_no_structure():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = morphology.structure(np.zeros((2, 32, 32)))
        constant = morphology.structure(np.ones((1, 32, 32)))
    assert all(np.isnan(values).all() for values in found.values())
    assert constant["half_mass_radius"][0] == pytest.approx(16 / np.sqrt(2), rel=0.02)


@pytest.mark.parametrize(
    ("size", "scales"), [(11, 1), (20, 1), (21, 2), (64, 3), (81, 4), (160, 4), (161, 5), (176, 5)]
)
def test_ms_ssim_has_as_many_scales_as_fit(size, scales):
    assert image.scales(size, size + 3) == scales


@pytest.mark.parametrize("size", [48, 96, 176])
def test_ms_ssim_is_that_of_pytorch_msssim(rng, size):
    peer = pytest.importorskip("pytorch_msssim")
    y, x = np.mgrid[:size, :size] / size
    truth = np.sin(9 * y + 4 * x)[None] ** 2 + 0.1 * rng.normal(size=(3, size, size))
    estimate = truth + rng.normal(size=truth.shape) * np.array([0.01, 0.1, 0.4])[:, None, None]
    count = image.scales(size, size)
    weights = np.array(image.BETAS[:count]) / sum(image.BETAS[:count])
    if count == 5:
        t, e = (torch.from_numpy(m)[:, None] for m in (truth, estimate))
        wanted = peer.ms_ssim(t, e, data_range=2.0, size_average=False, weights=weights.tolist()).numpy()
        # Its window is in float32.
        np.testing.assert_allclose(image.ms_ssim(truth, estimate, 2.0), wanted, rtol=1e-5)
    else:
        # It refuses maps of fewer than 161 pixels, so scale by scale from its own moments.
        from pytorch_msssim.ssim import _fspecial_gauss_1d, _ssim

        window = _fspecial_gauss_1d(11, 1.5).repeat([1, 1, 1, 1]).double()
        t, e = (torch.from_numpy(m)[:, None] for m in (truth, estimate))
        wanted = torch.ones(3, dtype=torch.float64)
        for scale, beta in enumerate(weights):
            if scale:
                t, e = (torch.nn.functional.avg_pool2d(m, 2) for m in (t, e))
            similarity, contrast = _ssim(t, e, data_range=2.0, win=window)
            wanted *= torch.relu(contrast if scale < count - 1 else similarity)[:, 0] ** beta
        np.testing.assert_allclose(image.ms_ssim(truth, estimate, 2.0), wanted.numpy(), rtol=1e-5)
    np.testing.assert_allclose(image.ms_ssim(truth, truth, 2.0), 1, rtol=1e-12)
    with pytest.raises(SkyshiftError, match="at least 11 x 11"):
        image.ms_ssim(truth[:, :10], truth[:, :10], 2.0)


def test_one_point_distance_is_scipys(rng):
    truth, estimate = rng.lognormal(size=(2, 3, 20, 20))
    found = pixels.one_point_distance(truth, estimate, 1e-3)
    for t, e, one in zip(truth, estimate, found, strict=True):
        wanted = wasserstein_distance(pixels.decades(t, 1e-3).ravel(), pixels.decades(e, 1e-3).ravel())
        assert one == pytest.approx(wanted, rel=1e-9)
    # Ten times as bright is one dex away; the softening is 1e-6 of the values, so second order in it is nothing.
    np.testing.assert_allclose(pixels.one_point_distance(truth + 1, 10 * (truth + 1), 1e-6), 1, rtol=1e-9)
    moved = rng.permuted(truth.reshape(3, -1), axis=1).reshape(truth.shape)
    np.testing.assert_allclose(pixels.one_point_distance(truth, moved, 1e-3), 0, atol=1e-15)
    edges = np.geomspace(1e-9, 10, 20)
    assert pixels.one_point_counts(truth * 1e3, edges).sum() == truth.size  # what lies above is in the last bin


def test_peaks_are_those_of_photutils(rng):
    photutils = pytest.importorskip("photutils.detection")
    maps = rng.normal(size=(3, 40, 50)).cumsum(1)
    for threshold in (0.5, 3.0):
        wanted = [len(photutils.find_peaks(m, threshold, box_size=3) or ()) for m in maps]
        np.testing.assert_array_equal(pixels.peak_counts(maps, threshold), wanted)
