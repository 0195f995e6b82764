"""Losses on physical maps and hard conservation: exact values, gradients, agreement with the metrics."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from skyshift.datasets.scaling import Asinh, Linear, Power
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError
from skyshift.translate.conservation import ConserveConfig, TotalConservation, conservation
from skyshift.translate.losses.physics_terms import TERMS, PhysicsConfig, PhysicsTerms, observed, power, radial_sums
from skyshift.translate.metrics import physics
from skyshift.translate.train import main
from skyshift.translate.translation import Channel
from skyshift.translate.translator import Translator

SCALING = Asinh(softening=1e4, span=1e7)
ALL = PhysicsConfig(1.0, 1.0, 1.0, 1.0, beam=2.0)


def maps(n: int = 2, size: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_spectrum_and_profile_are_those_of_the_metrics():
    values = maps()[:, 0]
    _, spectrum = physics.power_spectrum(values.numpy(), side=12.0)
    np.testing.assert_allclose(power(values).numpy(), spectrum, rtol=1e-12)  # float64 transforms of 144 pixels
    _, profile = physics.radial_profile(values.numpy())
    rings = radial_sums(values) / radial_sums(torch.ones_like(values))
    np.testing.assert_allclose(rings.numpy(), profile, rtol=1e-12)


def test_a_brighter_map_is_wrong_by_its_factor():
    target = SCALING.inverse(0.3 + 0.5 * maps())
    estimate = 1.1 * target
    batch = {"target": SCALING.forward(target)}
    _, parts = PhysicsTerms(ALL, [SCALING])(SCALING.forward(estimate), batch)
    for name in ("total", "radial_profile", "observation"):
        assert float(parts[name]) == pytest.approx(0.1, rel=2e-2)  # less the floor of 1e-4 of the typical value
    assert float(parts["power_spectrum"]) == pytest.approx(2 * np.log(1.1), rel=2e-2)


def test_equal_maps_cost_nothing():
    target = maps()
    loss, parts = PhysicsTerms(ALL, [SCALING])(target.clone(), {"target": target})
    assert float(loss) == 0
    assert set(parts) == set(TERMS)


def test_the_gradients_are_the_derivatives():
    target = 0.5 * maps(1, 6)
    terms = PhysicsTerms(ALL, [SCALING])
    estimate = (0.5 * maps(1, 6, seed=1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda e: terms(e, {"target": target})[0], (estimate,), eps=1e-7)


def test_half_precision_and_wild_estimates_give_finite_float32():
    estimate = (100 * maps()).to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = PhysicsTerms(ALL, [SCALING])(estimate, {"target": maps().float()})
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert estimate.grad.isfinite().all()


def test_a_beam_keeps_the_flux_and_has_its_width():
    point = torch.zeros(1, 65, 65, dtype=torch.float64)
    point[0, 32, 32] = 1.0
    seen = observed(point, 6.0)[0]
    assert float(seen.sum()) == pytest.approx(1.0, rel=1e-12)
    assert float(seen[32, 35] / seen[32, 32]) == pytest.approx(0.5, rel=1e-12)  # half the maximum at half the width


@pytest.mark.parametrize("scaling", [SCALING, Power(1e7)])
def test_the_total_is_that_of_the_source(scaling):
    conserve = TotalConservation(0, 0, Asinh(1e3, 1e8), scaling)
    source = maps(3).float()
    estimate = torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(1), requires_grad=True)
    kept = conserve(source, estimate)
    before = Asinh(1e3, 1e8).inverse(source[:, 0].double()).sum((1, 2))
    after = scaling.inverse(kept[:, 0].double())
    assert (after >= 0).all()
    np.testing.assert_allclose(after.detach().sum((1, 2)), before, rtol=1e-6)  # float32 of the scaled values
    kept.square().sum().backward()
    assert estimate.grad.isfinite().all()
    assert (estimate.grad != 0).any()


def test_empty_maps_are_no_trouble():
    conserve = TotalConservation(0, 0, SCALING, SCALING)
    empty, full = torch.zeros(1, 1, 8, 8), torch.rand(1, 1, 8, 8)
    assert (conserve(empty, full) == 0).all()
    torch.testing.assert_close(conserve(full, empty), full)  # takes the form of the source


def test_what_makes_no_sense_is_refused():
    with pytest.raises(SkyshiftError, match=r"physics\.total is 0 or more, not -1"):
        PhysicsConfig(total=-1)
    with pytest.raises(SkyshiftError, match="with an offset cannot conserve a total; use asinh"):
        TotalConservation(0, 0, SCALING, Linear(offset=1.0))


def test_a_run_keeps_its_total_at_the_physical_output(tiny_store, tmp_path):
    options = ["--data.build=", "--data.source=[gas]", "--data.target=[hi]", "--conserve.total=gas"]
    options += ["--physics.power_spectrum=0.1", "--training.steps=2", "--training.batch_size=2", "--evaluation=false"]
    options += [f"--method.init_args.{player}.init_args.width=4" for player in ("generator", "discriminator")]
    AcceleratorState._reset_state(True)
    main(["--data.store", str(tiny_store), "--output", str(tmp_path / "run"), *options])
    AcceleratorState._reset_state(True)
    store = MapStore(tiny_store)
    views = np.asarray(store.catalogue()["view"])[:4]
    hi = Translator.from_pretrained(tmp_path / "run", device="cpu")(store, views)["hi"].values
    gas = store.maps("gas", views)
    # Scaled values are float32: a part in ten million of up to ten e-folds, less over all pixels.
    np.testing.assert_allclose(hi.sum((1, 2), dtype=float), gas.sum((1, 2), dtype=float), rtol=2e-6)
    assert "power_spectrum" in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")


def test_a_total_of_another_unit_or_of_no_source_is_refused():
    gas, hi = Channel.of("gas", "Msun/kpc2", SCALING), Channel.of("temperature", "K", SCALING)
    with pytest.raises(SkyshiftError, match="gas is in Msun/kpc2, temperature in K"):
        conservation(ConserveConfig("gas"), [gas], [hi])
    with pytest.raises(SkyshiftError, match="unknown source domain 'gass'"):
        conservation(ConserveConfig("gass"), [gas], [hi])
