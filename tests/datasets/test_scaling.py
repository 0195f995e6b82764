"""Value scalings: exact inverses, the bound on what float32 loses, NumPy against torch, fits, and refusals."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from skyshift.datasets.scaling import (
    FIT_QUANTILE,
    SCALINGS,
    SOFTENING_SHARE,
    Asinh,
    Linear,
    Log,
    Power,
    Scaling,
    ScalingError,
    fit_scaling,
    scaling_from_dict,
)

EPS = 2.0**-24  # largest relative error of one rounding to float32

FITTED: dict[str, Scaling] = {
    "linear": Linear(0.0, 3e7),
    "asinh": Asinh(2e4, 3e7),
    "log": Log(2e4, 3e7),
    "power": Power(3e7),
}
KINDS = sorted(FITTED)


def decades(signed: bool, count: int = 20000) -> np.ndarray:
    """float32 from 1e-10 to 1e12, evenly in the logarithm, with zero and, where they are allowed, negatives."""
    rng = np.random.default_rng(0)
    x = np.concatenate([[0.0], 10 ** rng.uniform(-10, 12, count), [1e-10, 1e12]]).astype(np.float32)
    return np.concatenate([-x, x]) if signed else x


def condition(scaling: Scaling, x: np.ndarray) -> np.ndarray:
    """|y x'(y) / x|: by how much a relative error of y grows in x. For x > 0."""
    y = np.asarray(scaling.forward(x), np.float64)
    match scaling:
        case Linear():
            return np.ones_like(y)
        case Asinh():
            argument = y * math.asinh(scaling.span / scaling.softening)
            return argument / np.tanh(argument)
        case Log():
            argument = y * math.log1p(scaling.span / scaling.softening)
            return argument / -np.expm1(-argument)
        case Power():
            return np.full_like(y, 1 / scaling.exponent)
    raise AssertionError(scaling)


@pytest.mark.parametrize("kind", KINDS)
def test_float64_gives_every_float32_back_bit_by_bit(kind):
    """The error of two float64 functions, some 50 × 1e-16, is far below half a float32 spacing, 6e-8."""
    x = decades(signed=kind != "log")
    y = FITTED[kind].forward(x)
    assert y.dtype == np.float64
    back = FITTED[kind].inverse(y).astype(np.float32)
    np.testing.assert_array_equal(back, x)
    assert (y[x == 0] == 0).all()


def test_a_fitted_linear_scaling_gives_back_what_it_was_fitted_to():
    """With an offset o, x - o holds x to 2^-53 |o|: exact for every float32 that the values' range spans."""
    x = np.random.default_rng(1).uniform(-50, 80, 5000).astype(np.float32)
    scaling = Linear.fit(x)
    np.testing.assert_array_equal(scaling.inverse(scaling.forward(x)).astype(np.float32), x)
    y = scaling.forward(x)
    assert y.min() == 0
    assert np.quantile(y, FIT_QUANTILE) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_lost_when_y_is_kept_as_float32(kind):
    """y is rounded once, ε = 2^-24, and x once more: |Δx/x| ≤ ε (κ + 1), κ = |y x'/x|. A thousandth for second order.

    κ is 1 (linear), 1/exponent (power), and asinh or log of x/softening, 18 at 1e12/2e4: 1.2e-6 at the very worst.
    """
    x = decades(signed=False)
    x = x[x > 0]
    scaling = FITTED[kind]
    y = scaling.forward(x).astype(np.float32)
    back = scaling.inverse(y).astype(np.float32)
    error = np.abs(back.astype(np.float64) / x - 1)
    bound = EPS * (condition(scaling, x) + 1) * 1.001
    assert (error <= bound).all()
    assert bound.max() < 1.3e-6


@pytest.mark.parametrize("kind", KINDS)
def test_condition_is_the_derivative(kind):
    """The bound above rests on κ: against a central difference, whose own error is about 1e-9 at a step of 1e-5."""
    x = np.logspace(-3, 11, 50)
    scaling = FITTED[kind]
    y, step = scaling.forward(x), 1e-5
    numeric = (np.log(scaling.inverse(y * (1 + step))) - np.log(scaling.inverse(y * (1 - step)))) / (2 * step)
    np.testing.assert_allclose(numeric, condition(scaling, x), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_and_numpy_agree(kind):
    """In float64 to 1e-13 relative: the same functions of other libraries. In float32 to some ε × κ."""
    x = decades(signed=kind != "log", count=2000)
    scaling = FITTED[kind]
    y = scaling.forward(x)
    wide = torch.from_numpy(x.astype(np.float64))
    np.testing.assert_allclose(scaling.forward(wide).numpy(), y, rtol=1e-13, atol=0)
    np.testing.assert_allclose(scaling.inverse(torch.from_numpy(y)).numpy(), scaling.inverse(y), rtol=1e-13)
    narrow = torch.from_numpy(x)
    assert scaling.forward(narrow).dtype == torch.float32
    # three float32 operations; asinh of a subnormal-free ratio is good to 4 ε
    np.testing.assert_allclose(scaling.forward(narrow).numpy(), y, rtol=8 * EPS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error")
def test_gradients_are_finite_and_right(kind):
    """Of both directions, against float64 differences of NumPy; the inverse also at zero, where networks pass."""
    scaling = FITTED[kind]
    x = torch.logspace(-3, 9, 30, dtype=torch.float64, requires_grad=True)
    scaling.forward(x).sum().backward()
    assert x.grad is not None
    points, step = x.detach().numpy(), 1e-6
    numeric = (scaling.forward(points * (1 + step)) - scaling.forward(points * (1 - step))) / (2 * step * points)
    np.testing.assert_allclose(x.grad.numpy(), numeric, rtol=1e-6)
    y = torch.linspace(-0.5 if kind != "log" else 0, 1.2, 35, dtype=torch.float64)
    y = torch.cat([y, torch.zeros(1, dtype=torch.float64)]).requires_grad_()
    scaling.inverse(y).sum().backward()
    assert y.grad is not None
    assert torch.isfinite(y.grad).all()
    points = y.detach().numpy()
    numeric = (scaling.inverse(points + step) - scaling.inverse(points - step)) / (2 * step)
    # where the curvature of ``power`` turns its sign, at zero, a difference over 1e-6 is wrong by 1e-6 of the largest
    np.testing.assert_allclose(y.grad.numpy(), numeric, rtol=1e-5, atol=1e-6 * np.abs(numeric).max())


@pytest.mark.parametrize("kind", ["linear", "asinh", "log"])
def test_the_gradient_of_forward_at_zero(kind):
    """Empty pixels are most of a map. (``power`` has no finite slope there.)"""
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    FITTED[kind].forward(x).sum().backward()
    assert x.grad is not None
    assert (torch.isfinite(x.grad) & (x.grad > 0)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_order_is_kept(kind):
    """Strictly in float64; a float32 step, 6e-8, is far above the rounding of y."""
    x = np.unique(decades(signed=kind != "log"))
    y = FITTED[kind].forward(x)
    assert (np.diff(y) > 0).all()
    assert (np.diff(FITTED[kind].inverse(np.linspace(0, 1.5, 1000))) > 0).all()


def maps(seed: int = 0) -> np.ndarray:
    """Log-normal surface densities over five decades with empty pixels, (8, 16, 16)."""
    rng = np.random.default_rng(seed)
    values = 10 ** rng.normal(5, 1, (8, 16, 16))
    return np.where(rng.random(values.shape) < 0.3, 0, values).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_puts_the_bulk_between_zero_and_one(kind):
    """The 0.999 quantile of the lit pixels (of all, for linear) is one; nothing is below zero."""
    x = maps()
    scaling = fit_scaling(kind, x)
    y = scaling.forward(x)
    assert y.min() == 0
    lit = x if kind == "linear" else x[x > 0]
    assert np.quantile(scaling.forward(lit), FIT_QUANTILE) == pytest.approx(1, rel=1e-2)  # between two neighbours
    assert (y <= 1).mean() > 0.998
    np.testing.assert_array_equal(scaling.inverse(y).astype(np.float32), x)


def test_the_softening_of_asinh_leaves_a_fiftieth_of_the_mass_in_the_linear_part():
    x = maps()
    scaling = Asinh.fit(x)
    share = x[x < scaling.softening].sum(dtype=np.float64) / x.sum(dtype=np.float64)
    assert share == pytest.approx(SOFTENING_SHARE, abs=float(scaling.softening / x.sum()))  # one pixel


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_does_not_depend_on_order_or_shape(kind):
    x = maps()
    shuffled = np.random.default_rng(9).permutation(x.ravel())
    assert fit_scaling(kind, shuffled) == fit_scaling(kind, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [np.zeros((2, 4, 4), np.float32), np.full((2, 4, 4), 7.0, np.float32), np.zeros(0)])
def test_a_fit_to_empty_or_constant_maps_still_inverts(kind, values):
    scaling = fit_scaling(kind, values)
    assert all(math.isfinite(value) for value in asdict(scaling).values())
    y = scaling.forward(values)
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(scaling.inverse(y).astype(np.float32), values)
    other = np.array([0.0, 0.5, 3.0], np.float32)
    np.testing.assert_array_equal(scaling.inverse(scaling.forward(other)).astype(np.float32), other)


@pytest.mark.parametrize("kind", KINDS)
def test_to_dict_and_back(kind):
    """Through JSON, as a checkpoint keeps it: bit by bit."""
    scaling = fit_scaling(kind, maps())
    saved = json.loads(json.dumps(scaling.to_dict()))
    assert saved["kind"] == kind
    assert scaling_from_dict(saved) == scaling


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(kind, bad):
    x = maps()
    x[3, 2, 1] = bad
    with pytest.raises(ScalingError, match=r"1 of 2048 values to fit are not finite"):
        fit_scaling(kind, x)


def test_log_refuses_what_it_cannot_hold():
    with pytest.raises(ScalingError, match=r"log scaling needs values ≥ 0, the lowest is -3; use asinh"):
        Log.fit(np.array([1.0, -3.0]))
    scaling = Log(2.0, 10.0)
    for x in (np.array([1.0, -2.5]), torch.tensor([1.0, -2.5])):
        with pytest.raises(ScalingError, match=r"log scaling cannot take -2\.5; use asinh"):
            scaling.forward(x)
    assert np.isfinite(scaling.forward(np.array([-1.9]))).all()  # small negatives, as interpolation leaves them, pass


def test_an_unknown_kind_names_the_nearest():
    message = r"unknown scaling 'asinhh'\. Did you mean 'asinh'\? Known: linear, asinh, log, power\."
    with pytest.raises(ScalingError, match=message):
        fit_scaling("asinhh", maps())
    with pytest.raises(ScalingError, match=message):
        scaling_from_dict({"kind": "asinhh"})
    assert set(SCALINGS) == set(KINDS)
