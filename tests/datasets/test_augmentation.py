"""Shifts conserve mass and move what they should; symmetries are those of the square; nothing else changes a value."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from skyshift.datasets.augmentation import Augmentation, Change, shifted, turned
from skyshift.datasets.loading import Draw, MapDataset, fit_scalings
from skyshift.datasets.scaling import Asinh, Power
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError

RNG = np.random.default_rng(0)
MAPS = RNG.lognormal(3, 2, (2, 16, 12)).astype(np.float32)
SHIFTS = [(0.0, 0.0), (0.5, -0.25), (3.0, -2.0), (-7.3, 11.9), (0.999, 1e-3)]


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_periodic_shift_conserves_the_mass_of_every_map(shift):
    """To rounding in float32: 2^-24 a pixel, and less in the sum."""
    moved = shifted(MAPS, shift, "periodic")
    np.testing.assert_allclose(moved.sum((1, 2), dtype=float), MAPS.sum((1, 2), dtype=float), rtol=3e-7)
    assert moved.dtype == np.float32
    assert (moved >= 0).all(), "nothing turns negative"


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("edges", "mode"), [("zero", "constant"), ("periodic", "grid-wrap")])
def test_a_shift_is_bilinear_interpolation(shift, edges, mode):
    """As scipy does it, order 1."""
    expected = np.stack([ndimage.shift(m.astype(float), shift, order=1, mode=mode, prefilter=False) for m in MAPS])
    if edges == "zero":  # scipy puts zero beyond the last pixel's centre; here a pixel leaves by its share
        padded = np.pad(MAPS.astype(float), ((0, 0), (20, 20), (20, 20)))
        expected = np.stack([ndimage.shift(m, shift, order=1, prefilter=False) for m in padded])[:, 20:-20, 20:-20]
    np.testing.assert_allclose(shifted(MAPS, shift, edges), expected, rtol=2e-6, atol=1e-6 * MAPS.max())


def test_mass_that_stays_inside_is_conserved_with_zero_edges_and_its_centre_moves_by_the_shift():
    galaxy = np.zeros((1, 20, 20), np.float32)
    galaxy[0, 8:12, 7:11] = RNG.random((4, 4))
    rows, columns = np.mgrid[:20, :20]

    def centre(m):
        return np.array([(m * rows).sum(), (m * columns).sum()]) / m.sum()

    for shift in ((1.3, -0.6), (-4.75, 3.5)):
        moved = shifted(galaxy, shift)
        assert moved.sum(dtype=float) == pytest.approx(galaxy.sum(dtype=float), rel=3e-7)
        np.testing.assert_allclose(centre(moved[0]) - centre(galaxy[0]), shift, atol=1e-5)
    assert not shifted(galaxy, (25.0, 0.0)).any(), "what leaves is gone"
    assert shifted(galaxy, (25.0, 0.0), "periodic").sum() == pytest.approx(galaxy.sum(), rel=1e-6)


def test_the_smoothing_is_what_it_is_said_to_be():
    """A wave at the Nyquist frequency is multiplied by |1 - 2 f|."""
    wave = np.tile(np.float32([1, -1]), (1, 8, 4))
    for fraction in (0.1, 0.5, 0.8):
        assert np.abs(shifted(wave, (0, fraction), "periodic")).max() == pytest.approx(abs(1 - 2 * fraction), abs=1e-6)


def test_a_mean_is_interpolated_and_not_reweighted():
    """Half a pixel between 10 K (mass 1) and 1000 K (mass 9): 505 K, where the mass-weighted mean is 901 K."""
    temperature, mass = np.float32([[[10, 1000]]]), np.float32([[[1, 9]]])
    moved = shifted(temperature, (0, 0.5), "periodic")[0, 0, 1]
    weighted = shifted(temperature * mass, (0, 0.5), "periodic") / shifted(mass, (0, 0.5), "periodic")
    assert moved == pytest.approx(505)
    assert weighted[0, 0, 1] == pytest.approx(901)


def test_eight_symmetries_and_the_line_of_sight_velocity():
    """All differ, all keep every value: a velocity along the line of sight keeps its sign."""
    velocity = RNG.normal(0, 100, (1, 5, 5)).astype(np.float32)
    seen = {turned(velocity, k).tobytes() for k in range(8)}
    assert len(seen) == 8
    for k in range(8):
        np.testing.assert_array_equal(np.sort(turned(velocity, k).ravel()), np.sort(velocity.ravel()))
    np.testing.assert_array_equal(turned(velocity, 0), velocity)


def test_draws_are_functions_of_the_seed_and_switches_do_not_disturb_each_other():
    plain = Augmentation()
    all_on = Augmentation(shift=2.0, intensity_jitter=0.1)
    for seed in range(50):
        first, again = (all_on.draw(np.random.default_rng(seed), 2) for _ in range(2))
        assert first == again
        assert first[0] != first[1], "unpaired: each its own"
        assert [c.symmetry for c in first] == [c.symmetry for c in plain.draw(np.random.default_rng(seed), 2)]
        assert all(max(map(abs, c.shift)) <= 2 and abs(np.log10(c.factor)) <= 0.1 for c in first)
    assert Augmentation(symmetries=False).draw(np.random.default_rng(0), 1) == [Change()]


def test_a_pair_is_shifted_alike_before_it_is_scaled(tiny_store):
    """Undo the scalings: source and target are the physical maps moved by one and the same shift."""
    store = MapStore(tiny_store)
    views = np.arange(24)
    scalings = fit_scalings(store, ["gas", "hi"], views, {"gas": "asinh", "hi": "power"})
    assert isinstance(scalings["gas"], Asinh)
    assert isinstance(scalings["hi"], Power)
    augmentation = Augmentation(shift=3.0)
    data = MapDataset(store, ["gas"], ["hi"], views, scalings, augment=augmentation)
    for seed in range(5):
        draw = Draw(7, (seed,))
        (change,) = augmentation.draw(np.random.default_rng(draw.seed), 1)
        sample = data[draw]
        for key, name in (("source", "gas"), ("target", "hi")):
            physical = scalings[name].inverse(sample[key][0].numpy())
            expected = turned(shifted(store.maps(name, [7]), change.shift), change.symmetry)[0]
            # scaled values are float32: a part in a million of x, of the largest where the scaling is a square root
            np.testing.assert_allclose(physical, expected, rtol=3e-6, atol=1e-6 * expected.max())


def test_intensity_is_left_alone_unless_asked_for(tiny_store):
    store = MapStore(tiny_store)
    views = np.arange(24)
    scalings = fit_scalings(store, ["gas", "hi"], views, {})
    plain = MapDataset(store, ["gas"], ["hi"], views, scalings, augment=True)
    total = scalings["gas"].inverse(plain[Draw(3, (1,))]["source"].numpy()).sum()
    assert total == pytest.approx(store.maps("gas", [3]).sum(dtype=float), rel=1e-5)
    jittered = MapDataset(
        store, ["gas"], ["hi"], views, scalings, augment=Augmentation(symmetries=False, intensity_jitter=0.3)
    )
    factors = []
    for seed in range(20):
        sample = jittered[Draw(3, (seed,))]
        pair = [
            scalings[n].inverse(sample[k].numpy()).sum() / store.maps(n, [3]).sum(dtype=float)
            for k, n in (("source", "gas"), ("target", "hi"))
        ]
        assert pair[0] == pytest.approx(pair[1], rel=1e-4), "one factor a pair"
        factors.append(pair[0])
    assert 0.5 <= min(factors) < 0.8 < 1.25 < max(factors) <= 2.0
    assert torch.equal(jittered[Draw(3, (1,))]["source"], jittered[Draw(3, (1,))]["source"])


def test_augmentations_that_cannot_be():
    with pytest.raises(SkyshiftError, match=r"unknown kind of edges 'zeros'\. Did you mean 'zero'"):
        Augmentation(edges="zeros")  # type: ignore[arg-type]
    with pytest.raises(SkyshiftError, match="the augmentation shift is 0 or more, not -1"):
        Augmentation(shift=-1)
    with pytest.raises(SkyshiftError, match="intensity_jitter is 0 or more, not nan"):
        Augmentation(intensity_jitter=float("nan"))
