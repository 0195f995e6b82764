"""Draws of translations: a function of seed, draw and map alone, whose moments are those of the distribution."""

import numpy as np
import pytest
import torch
from torch import nn

from skyshift.datasets.maps import Maps
from skyshift.datasets.scaling import Linear
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError
from skyshift.translate.draws import Moments, draw_seeds, forgetting
from skyshift.translate.ensemble import Ensemble
from skyshift.translate.generate import main as generate
from skyshift.translate.methods.base import Noise, TranslationMethod
from skyshift.translate.tiling import Tiling
from skyshift.translate.translation import Channel, Translation
from skyshift.translate.translator import Translator

UNIT = "Msun / kpc2"


class Scatter(TranslationMethod):
    """y = 2 x + σ noise: the mean and the spread of its draws are known."""

    players = ("network",)
    stochastic = True

    def __init__(self, sigma=0.5, gain=2.0):
        super().__init__(1, 1)
        self.network, self.sigma = nn.Conv2d(1, 1, 1, bias=False), sigma
        nn.init.constant_(self.network.weight, gain)

    def loss(self, *arguments):
        raise NotImplementedError

    def translate(self, source, *, noise=None, calls=None):
        self._calls(calls)
        return self.finish(
            source, self.network(source) + self.sigma * self._noise(noise, source).normal(*source.shape[1:])
        )


class Forgetful(TranslationMethod):
    """Keeps each pixel with a probability of 3/4, while it may forget."""

    players = ("network",)

    def __init__(self, layer=None):
        super().__init__(1, 1)
        self.network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Dropout(0.25) if layer is None else layer)
        nn.init.ones_(self.network[0].weight)

    loss = Scatter.loss

    def translate(self, source, *, noise=None, calls=None):
        return self.finish(source, self.network(source))


def translator_of(method, domain="hi", span=1.0, **options):
    channels = [Channel(name, UNIT, Linear(0.0, span), -np.inf) for name in ("gas", domain)]
    facts = {"store": "none", "fingerprint": "none"}
    return Translator(method, Translation((channels[0],), (channels[1],), (1.0, 1.0), facts), **options)


@pytest.fixture
def gas():
    return np.random.default_rng(0).uniform(1, 2, (5, 16, 16)).astype(np.float32)


def test_draws_have_the_moments_of_the_distribution(gas):
    """With 64 draws the mean errs by σ/8, the standard deviation by σ/√126, over 1,280 pixels of unit weight."""
    found = translator_of(Scatter()).uncertainty(gas, draws=64)["hi"]
    assert (found.draws, found.mean.unit, found.sigma.unit) == (64, UNIT, UNIT)
    assert float((found.mean.values - 2 * gas).std()) == pytest.approx(0.5 / 8, rel=0.1)
    assert float(found.sigma.values.mean()) == pytest.approx(0.5, rel=0.02)
    drawn = translator_of(Scatter()).draws(gas, 64)["hi"]
    assert (drawn.shape, drawn.dtype) == ((64, 5, 16, 16), np.float32)
    np.testing.assert_allclose(found.mean.values, drawn.astype(float).mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.sigma.values, drawn.astype(float).std(0, ddof=1), rtol=1e-5)


def test_a_draw_does_not_depend_on_batch_or_order(tiny_store):
    store, span = MapStore(tiny_store), 1e9  # as bright as the brightest gas, else rounding would hide the noise
    whole = translator_of(Scatter(), span=span)
    views = store.catalogue()["view"][:6].tolist()
    wanted = whole.draws(store, 2, views)["hi"]
    np.testing.assert_array_equal(wanted[0], whole(store, views)["hi"].values)
    np.testing.assert_array_equal(
        translator_of(Scatter(), span=span, batch_size=2).draws(store, 2, views)["hi"], wanted
    )
    np.testing.assert_array_equal(whole.draws(store, 2, views[::-1])["hi"], wanted[:, ::-1])
    assert not np.array_equal(wanted[0], wanted[1])
    other = translator_of(Scatter(), span=span, seed=1)(store, views)["hi"].values
    # Independent numbers: the difference of two draws has twice the variance.
    assert float((other / span - wanted[0] / span).std()) == pytest.approx(0.5 * 2**0.5, rel=0.03)


def test_seeds_do_not_collide():
    seeds = {seed for s in range(3) for d in range(20) for seed in draw_seeds(s, d, range(100))}
    assert len(seeds) == 6000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_running_moments_are_those_of_numpy():
    values = 1e6 + np.random.default_rng(1).normal(size=(50, 7))
    moments = Moments()
    for row in values:
        moments.add(row)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.sigma, values.std(0, ddof=1), rtol=1e-8)


@pytest.mark.parametrize(("layer", "whole"), [(nn.Dropout(0.25), False), (nn.Dropout2d(0.25), True)])
def test_dropout_forgets_by_the_seed_of_the_map(layer, whole):
    network = nn.Sequential(layer).eval()
    x = torch.ones(4, 400, 10, 10)
    with forgetting(network, Noise([5, 6, 7, 8])):
        made = network(x)
    with forgetting(network, Noise([7, 5])):
        again = network(x[:2])
    torch.testing.assert_close(again, made[[2, 0]], rtol=0, atol=0)
    assert made.unique().tolist() == pytest.approx([0.0, 4 / 3])
    # 1,600 channels or 160,000 values: the share kept is 3/4 to three standard errors.
    kept = made[:, :, 0, 0] if whole else made
    assert float((kept > 0).float().mean()) == pytest.approx(0.75, abs=3 * (0.1875 / kept.numel()) ** 0.5)
    if whole:
        assert torch.equal(made.amax((2, 3)), made.amin((2, 3)))
    torch.testing.assert_close(network(x), x)  # and remembers afterwards


def test_dropout_makes_draws_of_a_deterministic_method(gas):
    translator = translator_of(Forgetful())
    np.testing.assert_allclose(translator(gas)["hi"].values, gas, rtol=1e-6)  # a single translation forgets nothing
    found = translator.uncertainty(gas, draws=200)["hi"]
    # Of x kept with p = 3/4 and divided by it: mean x, variance x² (1 - p)/p.
    assert float((found.mean.values / gas).mean()) == pytest.approx(1.0, abs=0.01)
    assert float((found.sigma.values / gas).mean()) == pytest.approx(3**-0.5, rel=0.01)


def test_an_ensemble_draws_from_its_members_in_turn(gas):
    members = [translator_of(Forgetful(nn.Identity())), translator_of(Scatter(0.0, 3.0))]
    ensemble = Ensemble(members)
    np.testing.assert_allclose(ensemble(gas)["hi"].values, 2 * gas, rtol=1e-6)
    found = ensemble.uncertainty(gas)["hi"]
    np.testing.assert_allclose(found.sigma.values, 2**0.5 * gas, rtol=1e-5)
    drawn = ensemble.draws(gas, 2)["hi"]
    np.testing.assert_allclose(drawn, np.stack([gas, 3 * gas]), rtol=1e-6)
    with pytest.raises(SkyshiftError, match="3 draws of an ensemble of 2 members"):
        ensemble.draws(gas, 3)
    twice = Ensemble([translator_of(Scatter()), translator_of(Scatter())]).draws(gas, 2)["hi"]
    assert (twice[0] != twice[1]).all(), "members of one seed do not share their random numbers"
    stochastic = Ensemble([translator_of(Scatter()), translator_of(Scatter())])
    assert len({float(one[0, 0, 0]) for one in stochastic.draws(gas, 4)["hi"][::2]}) == 2


def test_an_ensemble_of_networks_with_dropout_translates_without_it(gas):
    both = Ensemble([translator_of(Forgetful()), translator_of(Forgetful())])
    np.testing.assert_allclose(both(gas)["hi"].values, gas, rtol=1e-6)  # as each member does
    assert (both.draws(gas, 2)["hi"] == 0).any()  # draws forget


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda gas: translator_of(Scatter()).draws(gas, 0), "at least one draw"),
        (lambda gas: translator_of(Scatter()).uncertainty(gas, 1), "at least two draws"),
        (lambda gas: translator_of(Forgetful(nn.Identity())).draws(gas, 2), "gives one translation of a map"),
        (
            lambda gas: translator_of(Forgetful(), tiling=Tiling(8, 2)).draws(gas, 2),
            "forgets other values in each tile",
        ),
        (lambda gas: translator_of(Scatter(), calls=0), r"at least 1 network call\(s\), not 0"),
        (lambda gas: translator_of(Scatter(), calls=-3), r"at least 1 network call\(s\), not -3"),
        (lambda gas: translator_of(Scatter(), batch_size=0), "batch_size is 0"),
        (lambda gas: translator_of(Scatter(), reverse=True)(Maps(gas, "hi", UNIT)), "translates one way only"),
        (
            lambda gas: Ensemble([translator_of(Scatter()), translator_of(Scatter())]).uncertainty(gas, 1),
            "at least two draws, not 1",
        ),
        (lambda gas: Ensemble([translator_of(Scatter())]), "at least two members, not 1"),
        (lambda gas: Ensemble([translator_of(Scatter()), translator_of(Scatter(), "h2")]), "member 1 .* same domains"),
    ],
)
def test_what_cannot_be_is_said(gas, act, message):
    with pytest.raises(SkyshiftError, match=message):
        act(gas)


def test_a_store_of_means_and_deviations(tiny_store, tmp_path, monkeypatch, capsys):
    """The command, with a translator that is known instead of a checkpoint."""
    monkeypatch.setattr(
        Translator, "from_pretrained", lambda folder, **options: translator_of(Scatter(), **kept(options))
    )
    monkeypatch.setattr("skyshift.translate.generate.find_checkpoint", lambda folder: tmp_path)

    def kept(options):
        return {name: options[name] for name in ("calls", "seed", "tiling", "reverse", "batch_size")}

    options = ["--input", str(tiny_store), "--output", str(tmp_path / "hi.zarr"), "--draws", "8"]
    generate(options)
    made, store = MapStore(tmp_path / "hi.zarr"), MapStore(tiny_store)
    assert made.units == {"hi": UNIT, "hi_sigma": UNIT}
    found = translator_of(Scatter()).uncertainty(store, 8)["hi"]
    np.testing.assert_allclose(made.maps("hi"), found.mean.values, rtol=1e-6)
    np.testing.assert_allclose(made.maps("hi_sigma"), found.sigma.values, rtol=1e-5)
    assert made.plan["drawn"]["draws"] == 8
    for changed in (["--seed", "1"], ["--calls", "2"], ["--tile", "16"]):
        with pytest.raises(SystemExit):
            generate([*options, *changed])
        assert "another store or checkpoint" in capsys.readouterr().err
    for name in ("draws", "batch_size"):
        with pytest.raises(SystemExit):
            generate([*options[:4], f"--{name}", "0"])
        assert "must be at least 1, not 0" in capsys.readouterr().err
