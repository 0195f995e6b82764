"""Evaluations of what is unusual: signed maps, many translators, translations that are not finite."""

import numpy as np
import pytest

from skyshift.translate.evaluation_scores import Yardstick, curves, score
from skyshift.translate.figures import STRUCTURE, spectra_figure, structure_figure
from skyshift.translate.metric_rows import METRICS
from skyshift.translate.metrics.calibration import calibrate


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_figures_hold_more_translators_than_there_are_looks(rng):
    """Nine: more than the styles and the colours. A checkpoint, three relations and one baseline are five already."""
    truth = rng.uniform(0.1, 1, (3, 32, 32)).astype(np.float32)
    yardstick = Yardstick.fit(truth, np.full(3, 10.0))
    lines = {f"model {i}": curves(truth, truth * np.float32(1 + i / 10), yardstick) for i in range(9)}
    figure = spectra_figure(next(iter(lines.values()))["k"], lines, "Msun / kpc2")
    labels = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert labels == list(lines)
    nothing = dict.fromkeys(STRUCTURE, np.zeros(3))
    drawn = structure_figure(lines, dict.fromkeys(lines, nothing), "Msun / kpc2")
    assert len(drawn.axes[0].get_legend().get_texts()) == 1 + len(lines)


def test_draws_that_are_the_truth_are_ties(rng):
    """Ranks of ties are drawn at random: 4,096 uniform ones in 5 bins, each 819 with a deviation of 26."""
    truth = rng.uniform(1, 2, (1, 64, 64)).astype(np.float32)
    rows, shown = calibrate(truth, truth[None].repeat(4, 0), np.ones(1, bool), np.arange(1), 3.0)
    np.testing.assert_allclose(shown["ranks"][0], 4096 / 5, atol=5 * 26)
    assert rows["coverage_68"][0] == pytest.approx(0.68, abs=5 * np.sqrt(0.68 * 0.32 / 4096))


def test_pixels_below_zero_are_calibrated_too(rng):
    """Velocities: the dark pixels are those near zero, not those below."""
    truth = -rng.uniform(1, 2, (1, 32, 32)).astype(np.float32)
    truth[0, :8] = 0
    draws = np.where(truth == 0, 0, truth + rng.normal(size=(8, 1, 32, 32))).astype(np.float32)
    _, shown = calibrate(truth, draws, np.ones(1, bool), np.arange(1), 4.0)
    assert shown["ranks"][0].sum() == 24 * 32


def test_receding_and_approaching_galaxies_have_signal(rng):
    """Velocities of either sign: no map is faint, and L spans both signs."""
    truth = rng.normal(0, 100, (6, 32, 32)).astype(np.float32)
    truth += np.where(np.arange(6) % 2, -50, 50)[:, None, None].astype(np.float32)
    side = np.full(6, 32.0)
    yardstick = Yardstick.fit(truth, side)
    low, high = np.quantile(truth, [0.001, 0.999])
    assert yardstick.data_range == pytest.approx(high - low, rel=1e-6)
    found = score(truth, truth + np.float32(10), side, yardstick)
    # A constant error of 10 has PSNR 20 log10(L / 10), in every map.
    np.testing.assert_allclose(found["psnr"], 20 * np.log10(yardstick.data_range / 10), rtol=1e-5)
    assert np.isnan(found["false_signal"]).all()
    truth[0] = 0
    assert (
        np.isfinite(score(truth, truth + np.float32(10), side, yardstick)["false_signal"]).tolist()
        == [True] + [False] * 5
    )


def test_what_is_best_in_the_middle_says_where():
    ideal = {metric.name: metric.ideal for metric in METRICS if metric.best == 0}
    assert (ideal["coverage_68"], ideal["coverage_95"]) == (68, 95)
    assert (ideal["spread_skill"], ideal["c2st"], ideal["total_bias"]) == (1, 0.5, 0)
