"""Explanations of translations: what is shown, what it is parted into, the command, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from accelerate.state import AcceleratorState
from astropy.io import fits
from safetensors.torch import load_file, save_file
from torch import nn

from skyshift.attribution import AttributionConfig, AttributionError, explain
from skyshift.checkpoint import CheckpointError
from skyshift.datasets.catalogue import Failure
from skyshift.datasets.formats import read_maps, write_maps
from skyshift.datasets.joined import open_stores
from skyshift.datasets.loading import Split, split_views
from skyshift.datasets.maps import MapError, Maps
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError
from skyshift.translate.data import fingerprint
from skyshift.translate.explain import main as explain_command
from skyshift.translate.explain_analysis import (
    bootstrap_mean,
    by_frequency,
    by_quantile,
    by_radius,
    channel_shares,
    octaves,
    outside_boxes,
    power_shares,
)
from skyshift.translate.explain_figures import Row, page
from skyshift.translate.explain_models import Logits, ReceptiveField, aperture_unit
from skyshift.translate.explain_probes import make_probe, partners, require_probes, spread_views
from skyshift.translate.explain_removal import SHARES, area, removal_curves
from skyshift.translate.explain_work import ExplainConfig, Work
from skyshift.translate.explainer import Explainer, WhatConfig, centre_crop
from skyshift.translate.networks.patchgan import PatchGAN
from skyshift.translate.train import main as train_command
from skyshift.translate.translator import Translator, store_maps


@pytest.fixture(scope="module")
def run(tiny_store, tmp_path_factory):
    """A few steps of pix2pix from gas to HI, its discriminator with batch normalisation."""
    AcceleratorState._reset_state(reset_partial_state=True)
    folder = tmp_path_factory.mktemp("explain") / "run"
    networks = "skyshift.translate.networks"
    config = {
        "data": {"store": str(tiny_store), "source": ["gas"], "target": ["hi"]},
        "method": {
            "class_path": "skyshift.translate.methods.pix2pix.Pix2Pix",
            "init_args": {
                "generator": {"class_path": f"{networks}.unet.UNet", "init_args": {"width": 4, "depth": 2}},
                "discriminator": {
                    "class_path": f"{networks}.patchgan.PatchGAN",
                    "init_args": {"width": 4, "layers": 2, "norm": "batch"},
                },
            },
        },
        "training": {"steps": 60, "batch_size": 4, "precision": "no", "learning_rate": 0.003, "average": 0.9},
        "evaluation": False,
        "output": str(folder),
    }
    path = folder.with_suffix(".yaml")
    path.write_text(json.dumps(config))  # JSON is YAML
    train_command(["--config", str(path)])
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


QUICK = [
    "--part=train",
    "--views=6",
    "--chunk=2",
    "--background.maps=4",
    "--attribution.samples=16",
    "--attribution.tolerance=0.2",
    "--removal=2",
    "--pages=1",
    "--per_page=1",
    '--quantiles=["temperature"]',
]


PLAIN = ["--figures=false", '--probes=["true"]', "--removal=0", "--allow_incomplete=true"]
"""What most tests need: figures take nearly all of the time of so small an explanation."""


def go(run: Path, output: Path, *options: str) -> None:
    explain_command(["--checkpoint", str(run), "--output", str(output), *QUICK, *options])


def refused(capsys, run, output, *options):
    with pytest.raises(SystemExit) as error:
        go(run, output, *options)
    assert error.value.code in (1, 2)
    return capsys.readouterr().err


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


# --- what is explained


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_receptive_field_is_where_the_gradient_is(layers):
    """Of every patch, clipped to the map: no gradient outside, some on each edge inside."""
    torch.manual_seed(0)
    network = PatchGAN(1, width=4, layers=layers, norm="none")
    seen = ReceptiveField.of(network)
    assert (seen.size, seen.stride) == (network.receptive_field, network.stride)
    x = torch.rand(1, 1, 80, 80, requires_grad=True)
    logits = network(x)
    for row, column in ((0, 0), (1, 2), (logits.shape[2] - 1, logits.shape[3] - 1)):
        (slope,) = torch.autograd.grad(logits[0, 0, row, column], x, retain_graph=True)
        rows, columns = (torch.nonzero(slope[0, 0].abs().sum(axis)).flatten() for axis in (1, 0))
        bottom, top, left, right = (min(max(edge, 0), 80) for edge in seen.box(row, column))
        assert (rows.min(), rows.max() + 1) == (bottom, top)
        assert (columns.min(), columns.max() + 1) == (left, right)


def test_a_network_without_a_receptive_field_is_refused():
    with pytest.raises(SkyshiftError, match="square kernels"):
        ReceptiveField.of(nn.Conv2d(1, 1, (3, 5)))
    with pytest.raises(SkyshiftError, match="Upsample has no receptive field"):
        ReceptiveField.of(nn.Sequential(nn.Conv2d(1, 1, 3), nn.Upsample(scale_factor=2)))


def test_the_mean_of_the_patches_is_the_mean_and_a_patch_is_one_of_them(run, tiny_store):
    store = MapStore(tiny_store)
    config = AttributionConfig(samples=16, refine=0)
    found = {}
    for name, patch in (("mean", [0, 0]), ("grid", [0, 0]), ("patch", [2, 3])):
        explainer = Explainer.from_pretrained(run, WhatConfig(explained=name, patch=patch))
        x = explainer.inputs(store_maps(store, explainer.domains, [0, 1]))
        background = explainer.background(store, [4, 6, 8, 10])
        found[name] = explainer.explain(x, background.inputs, config).values
    assert found["grid"].shape == (2, 36, 2, 32, 32)
    np.testing.assert_allclose(found["grid"].mean(1, keepdims=True), found["mean"], rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(found["grid"][:, 2 * 6 + 3], found["patch"][:, 0], rtol=1e-3, atol=1e-7)


def test_a_patch_that_is_not_there_is_refused():
    with pytest.raises(SkyshiftError, match=r"there is no patch \(9, 0\): the discriminator gives 6 x 6"):
        Logits(PatchGAN(1, width=4, layers=2), "patch", [9, 0])(torch.rand(1, 1, 32, 32))


def test_an_aperture_holds_the_mass_that_the_translation_puts_there(run, tiny_store):
    """And the values add up to that mass less the background's, in solar masses."""
    store = MapStore(tiny_store)
    what = WhatConfig(of="generator", aperture=6.0)
    explainer = Explainer.from_pretrained(run, what)
    assert (explainer.domains, explainer.unit) == (("gas",), "Msun")
    assert aperture_unit("K") == "K"
    maps = store_maps(store, ["gas"], [0, 5])
    found = explainer.explain(
        explainer.inputs(maps),
        explainer.background(store, [2, 8]).inputs,
        AttributionConfig(samples=64),
        sides=maps["gas"].side,
    )
    translated = explainer.translator(store, [0, 5])["hi"]
    for i, side in enumerate(maps["gas"].side):
        centres = (np.arange(32) + 0.5) * side / 32 - side / 2
        inside = np.hypot(centres[:, None], centres) < 6.0
        wanted = translated.values[i][inside].sum(dtype=np.float64) * (side / 32) ** 2
        assert wanted > 1e6
        assert found.output[i, 0] == pytest.approx(wanted, rel=1e-3)  # float32, in batches of another size
    assert found.completeness_error.max() < 0.05


def test_the_value_of_one_pixel(run, tiny_store):
    store = MapStore(tiny_store)
    explainer = Explainer.from_pretrained(run, WhatConfig(of="generator", pixel=[10, 20]))
    x = explainer.inputs(store_maps(store, ["gas"], [0]))
    found = explainer.explain(x, explainer.background(store, [2, 8]).inputs, AttributionConfig(samples=16))
    channel = explainer.translator.translation.target[0]
    wanted = channel.scaling.inverse(explainer.translate(x)[0, 0, 10, 20].numpy())
    assert found.output[0, 0] == pytest.approx(float(wanted), rel=1e-4)
    assert explainer.unit == "Msun / kpc2"


@pytest.mark.parametrize("norm", ["none", "batch", "instance"])
def test_a_patch_sees_nothing_beyond_its_field_but_through_a_normalisation_of_the_map(norm):
    """Exactly nothing: the gradient there is zero. With instance normalisation every pixel moves mean and spread."""
    torch.manual_seed(0)
    network = PatchGAN(2, width=4, layers=2, norm=norm).eval()
    field, x, b = ReceptiveField.of(network), torch.rand(3, 2, 64, 64), torch.rand(4, 2, 64, 64)
    rows = network(x).shape[-1]
    boxes = [field.box(*divmod(k, rows)) for k in range(rows**2)]
    config = AttributionConfig(samples=8, refine=0)
    patch = outside_boxes(explain(Logits(network, "patch", [3, 5]), x, b, config).values, [field.box(3, 5)])
    grid = outside_boxes(explain(Logits(network, "grid"), x[:1], b, config).values, boxes)
    if norm == "instance":
        assert (patch > 0.01).all()
        assert 0.01 < grid[0] < 0.9
    else:
        assert patch.tolist() == [0.0] * 3
        assert grid.tolist() == [0.0]


def test_the_share_outside_a_field_is_a_share():
    """Values of one everywhere, patches of 4 x 4 on 8 x 8 pixels, the second half beyond the map."""
    boxes = [(2, 6, 2, 6), (-2, 2, 6, 10)]
    found = outside_boxes(-np.ones((1, 2, 3, 8, 8), np.float32), boxes)
    assert found[0] == pytest.approx(1 - (16 + 4) / 128)
    assert np.isnan(outside_boxes(np.zeros((1, 2, 3, 8, 8), np.float32), boxes)).all()


def test_a_discriminator_without_a_receptive_field_is_explained_all_the_same(run, tiny_store):
    translator = Translator.from_pretrained(run)
    translator.method.discriminator = nn.Sequential(nn.Conv2d(2, 2, (3, 5)), nn.Flatten(), nn.Linear(2 * 30 * 28, 1))
    explainer = Explainer(translator)
    assert explainer.field is None
    x = explainer.inputs(store_maps(MapStore(tiny_store), explainer.domains, [0, 1]))
    found = explainer.explain(x, explainer.background(MapStore(tiny_store), [4, 6]).inputs)
    assert found.completeness_error.max() < 1e-3, "it is linear"


# --- probes


def test_probes_change_what_they_say_and_nothing_else():
    source, target = torch.rand(3, 1, 8, 8), torch.rand(3, 2, 8, 8)
    other, views = torch.rand(3, 2, 8, 8), [4, 5, 6]

    def show(name):
        return make_probe(name, source, target, views, 0, lambda x: x.expand(-1, 2, -1, -1) + 1, other)

    assert torch.equal(show("true"), torch.cat([source, target], 1))
    assert torch.equal(show("translated")[:, 1:], source.expand(-1, 2, -1, -1) + 1)
    assert torch.equal(show("other_galaxy"), torch.cat([source, other], 1))
    turned = show("rotated_source")
    assert torch.equal(torch.rot90(turned[:, :1], -1, (2, 3)), source)
    assert torch.equal(turned[:, 1:], target)
    shuffled = show("shuffled_domain")
    assert torch.equal(shuffled[:, :1], source)
    assert torch.equal(shuffled[:, 1:].flatten(2).sort(2).values, target.flatten(2).sort(2).values)
    assert not torch.equal(shuffled[:, 1:], target)
    pixels = target[0].flatten(1).T.tolist()
    assert all(pixel in pixels for pixel in shuffled[0, 1:].flatten(1).T.tolist()), "channels were torn apart"
    assert torch.equal(shuffled[1:], make_probe("shuffled_domain", source[1:], target[1:], views[1:], 0, None))
    assert torch.equal(show("swapped_domains"), torch.cat([target[:, 1:], source, target[:, :1]], 1))


def test_another_galaxy_is_another_galaxy():
    views, groups = np.arange(10, 22), np.repeat([3, 3, 5, 8], 3)
    found = partners(views, groups, 0)
    assert (groups[found] != groups).all()
    np.testing.assert_array_equal(found, partners(views, groups, 0))
    with pytest.raises(SkyshiftError, match="at least two galaxies"):
        partners(views, np.ones(12, int), 0)


def test_views_are_spread_over_galaxies():
    views, groups = np.arange(40), np.repeat(np.arange(10), 4)
    found = spread_views(views, groups, 10, 0)
    assert len(set(groups[found])) == 10
    assert (np.diff(found) > 0).all()
    np.testing.assert_array_equal(spread_views(views, groups, 0, 0), views)


def test_an_unknown_probe_is_refused():
    with pytest.raises(SkyshiftError, match=r"unknown probe 'shuffled_domian'. Did you mean 'shuffled_domain'?"):
        require_probes(["shuffled_domian"], paired=True)
    with pytest.raises(SkyshiftError, match="asks about pairs; this discriminator judges the target alone"):
        require_probes(["rotated_source"], paired=False)


# --- what explanations are parted into


def test_every_curve_adds_up_to_the_sum_of_the_values():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(3, 2, 16, 16)).astype(np.float32)
    maps = np.maximum(generator.normal(size=(3, 16, 16)), 0)
    total = values.sum((2, 3), dtype=np.float64)
    for curve in (by_radius(values), by_quantile(values, maps, "gas")):
        np.testing.assert_allclose(curve.sums.sum(2), total, atol=1e-9)
        np.testing.assert_allclose(curve.sizes.sum(2), np.abs(values).sum((2, 3), dtype=np.float64))
        np.testing.assert_allclose(curve.pixels.sum(1), 1.0)
    spectrum = generator.normal(size=(3, 2, 12))
    np.testing.assert_allclose(by_frequency(spectrum, 16).sums.sum(2), spectrum.sum(2))
    assert channel_shares(values).sum(1) == pytest.approx(1.0)


def test_a_ring_lies_in_its_bin():
    values = np.zeros((1, 1, 64, 64), np.float32)
    y, x = np.indices((64, 64)) + 0.5 - 32
    values[0, 0][(np.hypot(y, x) > 17) & (np.hypot(y, x) < 19)] = 1.0  # 0.53 to 0.59 of half the side
    curve = by_radius(values)
    assert curve.labels[int(curve.sums[0, 0].argmax())] == "0.5–0.625"
    assert curve.sums[0, 0].max() == values.sum()


def test_quantiles_hold_as_many_lit_pixels_each():
    maps = np.random.default_rng(1).lognormal(size=(4, 20, 20))
    maps[:, :10] = 0.0
    curve = by_quantile(np.ones((4, 1, 20, 20), np.float32), maps, "hi")
    counts = curve.sums.sum((0, 1))
    assert counts[0] == 800
    np.testing.assert_allclose(counts[1:], 80, atol=1)


def test_octaves_of_wavelength():
    octave, labels = octaves(46, 64)
    assert labels == ("total", "64 px", "21.3–32 px", "9.14–16 px", "4.27–8 px", "2–4 px", "< 2 px")
    assert octave.tolist() == [0, 1, 2, 2, *[3] * 4, *[4] * 8, *[5] * 17, *[6] * 13]


def test_the_power_of_a_wave_is_at_its_frequency():
    wave = np.cos(2 * np.pi * 4 * np.arange(32) / 32) * np.ones((1, 2, 32, 1))
    k, shares = power_shares(wave)
    assert k[int(shares[0, 0].argmax())] == pytest.approx(0.25, abs=0.03)
    assert shares[0, 0].max() > 0.99


def test_the_interval_is_the_bootstrap_of_scipy():
    """Percentile intervals of 2,000 samples each: their ends scatter by a twentieth of the width."""
    values = np.random.default_rng(2).gamma(2.0, size=(60, 2))
    mean = bootstrap_mean(values, np.arange(60))
    for c in range(2):
        wanted = scipy.stats.bootstrap(
            (values[:, c],), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(3)
        ).confidence_interval
        width = wanted.high - wanted.low
        assert mean.low[c] == pytest.approx(wanted.low, abs=0.15 * width)
        assert mean.high[c] == pytest.approx(wanted.high, abs=0.15 * width)
    np.testing.assert_allclose(mean.value, values.mean(0))


def test_views_of_one_galaxy_do_not_count_as_independent():
    """Ten galaxies seen nine times each: the interval is that of ten values, three times that of ninety."""
    truth = np.random.default_rng(4).normal(size=10)
    values, groups = np.repeat(truth, 9), np.repeat(np.arange(10), 9)
    wide, narrow = bootstrap_mean(values, groups), bootstrap_mean(values, np.arange(90))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(3.0, rel=0.2)


# --- deletion and insertion


def test_removal_of_a_linear_model_is_known():
    """f = Σ w x against zero: after the k largest φ are gone, f is the sum of the others, and no order falls faster."""
    generator = torch.Generator().manual_seed(0)
    w, x = torch.randn(2, 10, 10, generator=generator), torch.rand(2, 2, 10, 10, generator=generator)
    phi = (w * x).numpy()
    random = np.random.default_rng(0).random(phi.shape)
    found = removal_curves(
        lambda p: (p * w).flatten(1).sum(1), x, torch.zeros(1, 2, 10, 10), {"SHAP": phi, "random": random}
    )
    total = phi.sum((1, 2, 3))
    ordered = -np.sort(-phi.reshape(2, -1), axis=1)
    counts = np.round(SHARES * 200).astype(int)
    kept = np.stack([total - ordered[:, :k].sum(1) for k in counts], 1)
    np.testing.assert_allclose(found["SHAP"]["deletion"], kept, atol=1e-4)
    np.testing.assert_allclose(found["SHAP"]["insertion"], total[:, None] - kept, atol=1e-4)
    assert (area(found["SHAP"]["deletion"]) < area(found["random"]["deletion"])).all()
    assert (area(found["SHAP"]["insertion"]) > area(found["random"]["insertion"])).all()


def test_removal_is_of_as_many_galaxies_as_there_are(run, tmp_path):
    """Not of the first views, which are of the first galaxies. Gradient times difference is SHAP of a linear output."""
    config = ExplainConfig(checkpoint=str(run), part="train", views=0, removal=5)
    config.background.maps = 4
    work = Work(config, torch.device("cpu"))
    rows = work.removed()
    assert len(rows) == 5
    assert len(set(work.groups[rows])) == 5
    assert len(set(work.groups[:5])) < 5
    work.explainer.network = nn.Conv2d(2, 1, 32)  # one weight a pixel
    shown = work.inputs(work.views)
    found = work.removal(shown, explain(Logits(work.explainer.network), shown, work.background.inputs).values[:, 0])
    for mode in ("deletion", "insertion"):
        np.testing.assert_allclose(found["SHAP"][mode], found["gradient x difference"][mode], atol=1e-3)
    assert (area(found["SHAP"]["deletion"]) < area(found["gradient"]["deletion"])).all()


def test_compared_maps_have_the_same_stretch():
    """The translated map of a page, and both of the page of differences, are drawn with the colours of the true one."""
    true, mine = np.full((1, 8, 8), 10.0), np.full((1, 8, 8), 1000.0)
    rows = [Row(n, m, np.ones((1, 8, 8)), 4.0, None, stretch=true) for n, m in (("true", true), ("mine", mine))]
    figure = page(rows, ["hi"], ["Msun / kpc2"], "logit", "both")
    images = [axis.images[0] for axis in figure.axes if axis.images and axis.images[0].get_cmap().name != "PuOr_r"]
    maps = [image for image in images if image.get_array().shape == (8, 8)]
    assert len(maps) >= 4, "the map and the map below the values, of both rows"
    assert {image.norm.vmax for image in maps} == {10.0}


# --- the command


@pytest.fixture(scope="module")
def explained(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("explained") / "explanation"
    go(run, output, "--raw=[fits,npy]")
    return output


def test_the_command_leaves_everything_behind(explained, run):
    names = set(contents(explained))
    probes = ["true", "translated", "other_galaxy", "shuffled_domain", "rotated_source"]
    wanted = {"plan.json", "table.md", "summary.json", "views.csv", "background.fits", "curves.png", "removal.png"}
    wanted |= {"curves_minus_true.png", "difference.png", *(f"maps_{probe}_01.png" for probe in probes)}
    wanted |= {f"values/{probe}.fits" for probe in probes} | {f"values/{p}_shap_hi.npy" for p in probes}
    assert wanted <= names
    summary = json.loads((explained / "summary.json").read_text())
    assert summary["background"]["maps"] == 4
    assert len(summary["background"]["views"]) == 4
    assert len(summary["background"]["sha256"]) == 64
    for probe in probes:
        entry = summary["probes"][probe]
        # What the channels hold adds up to output less base, to the completeness error.
        change = entry["output"]["value"] - entry["base"]
        missing = abs(sum(entry["channel_sums"]["value"]) - change)
        assert missing < 0.2
        assert entry["completeness_error"]["largest"] <= 0.2
        assert sum(entry["curves"]["frequency"]["value"][1]) == pytest.approx(
            entry["channel_sums"]["value"][1], abs=1e-4
        )


def test_raw_values_carry_their_units_and_add_up(explained):
    maps = read_maps(explained / "values" / "true.fits")
    assert set(maps) == {"shap_gas", "shap_hi"}
    assert maps["shap_hi"].values.shape == (6, 32, 32)
    assert "mean logit [logit], true, gradient" in maps["shap_hi"].provenance
    with fits.open(explained / "values" / "true.fits") as hdus:
        assert hdus[0].header["SHAPUNIT"] == "logit"
    npy = np.load(explained / "values" / "true_shap_hi.npy", allow_pickle=False)
    np.testing.assert_array_equal(npy, maps["shap_hi"].values)
    first = (explained / "views.csv").read_text().splitlines()[1].split(",")
    total = maps["shap_gas"].values[0].sum() + maps["shap_hi"].values[0].sum()
    assert float(first[3]) - float(first[4]) + float(first[7]) == pytest.approx(total, abs=1e-5)


def test_the_saved_background_is_the_one_of_the_hash(explained, run):
    explainer = Explainer.from_pretrained(run)
    summary = json.loads((explained / "summary.json").read_text())
    store = MapStore(explainer.translator.translation.provenance["store"])
    views = summary["background"]["views"]
    assert explainer.background(store, views).sha256 == summary["background"]["sha256"]
    saved = read_maps(explained / "background.fits")
    np.testing.assert_allclose(saved["hi"].values, store.maps("hi", views), rtol=1e-4, atol=1e-2)


def test_what_is_done_is_not_done_again(explained, run, tmp_path):
    output = shutil.copytree(explained, tmp_path / "again")
    parts = sorted((output / "parts").iterdir())
    assert len(parts) == 3
    before, times = contents(output), [part.stat().st_mtime_ns for part in parts]
    parts[1].unlink()
    shutil.rmtree(output / "values")
    go(run, output, "--raw=[fits,npy]", "--figures=false")
    after = contents(output)
    assert after.keys() == before.keys()
    for name in before:
        if name.endswith((".safetensors", ".json", ".csv", ".npy", ".md")):
            assert after[name] == before[name], name
    assert [parts[i].stat().st_mtime_ns for i in (0, 2)] == [times[0], times[2]]


@pytest.mark.parametrize(
    ("option", "name"),
    [("--attribution.seed=1", "attribution"), ("--views=4", "views"), ("--background.maps=3", "background")],
)
def test_another_plan_is_refused(capsys, explained, run, option, name):
    before = contents(explained)
    message = refused(capsys, run, explained, option)
    assert "holds explanations with another" in message
    assert name in message
    assert contents(explained) == before


def test_other_things_are_not_written_over(capsys, run, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    assert "holds other things than explanations" in refused(capsys, run, tmp_path)
    assert contents(tmp_path) == {"thesis.txt": b"mine"}


def test_what_does_not_add_up_is_refused_and_then_marked(capsys, run, tmp_path):
    output = tmp_path / "out"
    strict = ["--attribution.tolerance=1e-6", "--attribution.refine=0", *PLAIN[:-1]]
    message = refused(capsys, run, output, *strict)
    assert "do not add up to the change in output within 1e-06" in message
    assert "--allow_incomplete true keeps them and marks them" in message
    assert sorted(contents(output)) == ["plan.json"]
    go(run, output, *strict, "--allow_incomplete=true")
    assert "**6 above the tolerance**" in (output / "table.md").read_text()
    assert (
        json.loads((output / "summary.json").read_text())["probes"]["true"]["completeness_error"]["above_tolerance"]
        == 6
    )
    before = contents(output)
    assert "do not add up" in refused(capsys, run, output, *strict), "what was allowed once is not allowed for good"
    assert contents(output) == before


def test_a_generator_is_explained_by_the_command(run, tmp_path):
    go(run, tmp_path / "out", "--what.of=generator", "--what.aperture=5", "--attribution.refine=7")
    table = (tmp_path / "out" / "table.md").read_text()
    assert "SHAP of the hi within 5 kpc [Msun]: 6 views" in table
    assert set(read_maps(tmp_path / "out" / "values" / "true.fits")) == {"shap_gas"}


def test_the_patch_grid_is_explained_by_the_command(run, tmp_path):
    go(
        run,
        tmp_path / "out",
        "--what.explained=grid",
        *PLAIN[1:],
        "--views=2",
        "--raw=[npy]",
        "--attribution.refine=0",
    )
    names = contents(tmp_path / "out")
    assert "patch_grid.png" in names
    table = (tmp_path / "out" / "table.md").read_text()
    assert "outside the receptive field of a patch: true 0.000 [0.000, 0.000]" in table, "batch normalisation is local"
    values = np.load(tmp_path / "out" / "values" / "true_outputs.npy", allow_pickle=False)
    assert values.shape == (2, 36, 2, 32, 32)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(run, tmp_path, repository):
    output = tmp_path / "two"
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "TQDM_DISABLE": "1",
    }
    options = ['--probes=["true", "translated"]', "--raw=[npy]", "--figures=false"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(repository / "translate" / "explain.py"), "--checkpoint", str(run), "--output", str(output)]
    subprocess.run([*torchrun, *script, *QUICK, *options], env=environment, check=True, capture_output=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as each of the two has: sums in another order differ in the last digit
    try:
        go(run, tmp_path / "one", *options)
    finally:
        torch.set_num_threads(threads)
    facts = [json.loads((folder / "summary.json").read_text()) for folder in (output, tmp_path / "one")]
    assert [fact.pop("processes") for fact in facts] == [2, 1]
    assert facts[0] == facts[1]
    two, one = contents(output), contents(tmp_path / "one")
    assert two.keys() == one.keys()
    for name in two:
        if name.endswith((".safetensors", ".csv", ".npy", ".md")):
            assert two[name] == one[name], name


# --- bad input


def test_a_generator_only_export_says_how_to_get_a_discriminator(capsys, run, tiny_store, tmp_path):
    folder = shutil.copytree(run / "checkpoints" / "step_0000060", tmp_path / "export")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if name.startswith("generator.")}
    save_file(kept, folder / "model.safetensors")
    message = refused(capsys, folder, tmp_path / "out")
    assert "holds no weights of the discriminator: it was exported for inference, with the generator alone" in message
    assert "RUN/checkpoints/step_…" in message
    assert not (tmp_path / "out").exists()
    # Both ways that the message names work, and the generator is the one of the whole checkpoint.
    assert "explain the generator of this one (--what.of generator)" in message
    found = []
    for checkpoint in (folder, run):
        explainer = Explainer.from_pretrained(checkpoint, WhatConfig(of="generator", pixel=[10, 20]))
        x = explainer.inputs(store_maps(MapStore(tiny_store), ["gas"], [0]))
        background = explainer.background(MapStore(tiny_store), [2, 8]).inputs
        found.append(explainer.explain(x, background, AttributionConfig(samples=16)).values)
    np.testing.assert_array_equal(*found)
    go(folder, tmp_path / "out", "--what.of=generator", "--what.pixel=[16,16]", "--views=1", *PLAIN)
    assert set(read_maps(tmp_path / "out" / "values" / "true.fits")) == {"shap_gas"}


def test_an_export_that_lost_half_of_its_discriminator_is_damaged(run, tmp_path):
    folder = shutil.copytree(run / "checkpoints" / "step_0000060", tmp_path / "export")
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if name.startswith("discriminator.") and name.endswith(".weight"))
    save_file({name: value for name, value in weights.items() if name != lost}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="the weights do not fit the networks"):
        Explainer.from_pretrained(folder, WhatConfig(of="generator"))


def test_an_empty_background_is_refused(capsys, run, tiny_store, tmp_path):
    message = refused(capsys, run, tmp_path / "out", "--background.maps=0")
    assert "the background is empty: background.maps is 0" in message
    explainer = Explainer.from_pretrained(run)
    with pytest.raises(AttributionError, match="the background is empty"):
        explainer.background(MapStore(tiny_store), [])
    assert not (tmp_path / "out").exists()


def test_a_background_from_another_domain_is_refused(capsys, run, tiny_store, tmp_path):
    path = tmp_path / "stars.fits"
    write_maps(path, store_maps(MapStore(tiny_store), ["stars", "gas"], [0, 1]))
    message = refused(capsys, run, tmp_path / "out", f"--background.file={path}")
    assert "explained are maps of gas, hi; given are maps of stars, gas: 'hi' is not among them" in message
    kelvin = tmp_path / "kelvin.fits"
    stack = store_maps(MapStore(tiny_store), ["gas", "temperature"], [0, 1])
    disguised = Maps(stack["temperature"].values, "hi", "K", stack["temperature"].side)
    write_maps(kelvin, {"gas": stack["gas"], "hi": disguised})
    message = refused(capsys, run, tmp_path / "out", f"--background.file={kelvin}")
    assert "maps of 'hi' are in K, which is not convertible to Msun / kpc2" in message
    assert not (tmp_path / "out").exists()


def test_a_background_from_a_file_is_taken(run, tiny_store, tmp_path):
    path = tmp_path / "pairs.fits"
    write_maps(path, store_maps(MapStore(tiny_store), ["gas", "hi"], [0, 1, 2]))
    go(run, tmp_path / "out", f"--background.file={path}", *PLAIN)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["background"]["background"] == "3 maps of pairs.fits"


@pytest.fixture(scope="module")
def large_store(tiny_simulation, tmp_path_factory):
    from skyshift.datasets.build import build_store
    from skyshift.datasets.shards import BuildConfig, FieldOfView
    from skyshift.datasets.sources import SnapshotSource

    path = tmp_path_factory.mktemp("large") / "maps.zarr"
    source = SnapshotSource(str(tiny_simulation / "output"), 99, minimum_particles={"gas": 10, "dm": 10, "stars": 10})
    build_store(
        BuildConfig(
            source, str(path), domains=["gas", "hi"], pixels=48, rotations=1, field_of_view=FieldOfView(4.0, "stars")
        ),
        progress=False,
    )
    return path


def test_maps_larger_than_the_training_are_refused_or_cropped(capsys, run, large_store, tmp_path):
    message = refused(capsys, run, tmp_path / "out", f"--store={large_store}", "--quantiles=[hi]")
    assert "maps of 48 x 48 pixels are larger than the 32 x 32 that the network was trained on" in message
    assert "--crop true" in message
    assert not (tmp_path / "out").exists()
    go(run, tmp_path / "out", f"--store={large_store}", "--crop=true", "--quantiles=[hi]", *PLAIN)
    found = read_maps(tmp_path / "out" / "values" / "true.fits")["shap_hi"]
    assert found.values.shape[1:] == (32, 32)
    go(run, tmp_path / "both", f"--background.file={large_store}", "--crop=true", *PLAIN)
    plan = json.loads((tmp_path / "both" / "plan.json").read_text())
    assert plan["background"]["maps"] == len(MapStore(large_store).catalogue())


def test_a_crop_keeps_the_middle_and_the_scale():
    values = np.arange(2 * 6 * 6, dtype=np.float32).reshape(2, 6, 6)
    cropped = centre_crop({"gas": Maps(values, "gas", "K", np.array([6.0, 12.0]))}, 4)["gas"]
    np.testing.assert_array_equal(cropped.values, values[:, 1:5, 1:5])
    assert cropped.side.tolist() == [4.0, 8.0]


def test_samples_of_zero_are_refused(capsys, run, tmp_path):
    for samples in (0, -1):
        message = refused(capsys, run, tmp_path / "out", f"--attribution.samples={samples}")
        assert f"samples must be at least 1, not {samples}" in message
    assert not (tmp_path / "out").exists()


def test_maps_of_other_domains_or_blank_ones_are_refused(run, tiny_store):
    explainer = Explainer.from_pretrained(run)
    maps = store_maps(MapStore(tiny_store), ["gas", "hi"], [0, 1])
    with pytest.raises(MapError, match="'hi' is not among them"):
        explainer.inputs({"gas": maps["gas"]})
    blank = maps["hi"].values.copy()
    blank[1, 3, 3] = np.nan
    with pytest.raises(MapError, match="1 of 2 maps of 'hi' hold values that are not finite"):
        explainer.inputs({"gas": maps["gas"], "hi": Maps(blank, "hi", "Msun / kpc2")})


# --- which stores


@pytest.fixture(scope="module")
def with_holes(tiny_store, tmp_path_factory):
    """The tiny store without its second galaxy, which could not be read."""
    whole = MapStore(tiny_store)
    records = list(whole.records())
    lost = sorted({record.galaxy for record in records})[1]
    path = tmp_path_factory.mktemp("holes") / "maps.zarr"
    store = MapStore.create(path, units=whole.units, views=whole.views, pixels=32, shard_views=whole.shard_views)
    for shard in range(store.shards):
        rows = set(store.shard_rows(shard))
        kept = [record for record in records if record.view in rows and record.galaxy != lost]
        gone = [record for record in records if record.view in rows and record.galaxy == lost]
        failures = (
            [Failure(lost, tuple(record.view for record in gone), "OSError", "the file is cut short")] if gone else []
        )
        maps = {domain: whole.maps(domain, [record.view for record in kept]) for domain in whole.units}
        store.write_shard(shard, maps, kept, failures)
    return path, lost


def trained_on(run, folder, store):
    """A copy of the run which says that it was trained on another store."""
    folder = shutil.copytree(run / "checkpoints" / "step_0000060", folder)
    facts = json.loads((folder / "translation.json").read_text())
    facts["provenance"] |= {"store": store, "fingerprint": fingerprint(open_stores(store))}
    (folder / "translation.json").write_text(json.dumps(facts))
    return folder


def test_a_store_with_galaxies_missing_is_explained(run, tiny_store, with_holes, tmp_path):
    """The first view after the gap has the maps and the values that it has in the whole store."""
    path, lost = with_holes
    checkpoint = trained_on(run, tmp_path / "run", str(path))
    go(checkpoint, tmp_path / "out", "--views=0", "--raw=[npy]", *PLAIN)
    catalogue = MapStore(path).catalogue()
    assert lost not in set(catalogue["galaxy"])
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    train = split_views(catalogue, Split())["train"]
    assert plan["views"] == train.tolist()
    assert set(plan["background"]["views"]) <= set(train)
    after = int(train[train > train[np.argmax(np.diff(train) > 1)]][0])
    explainer = Explainer.from_pretrained(checkpoint)
    maps = store_maps(MapStore(tiny_store), ["gas", "hi"], [after])
    background = store_maps(MapStore(tiny_store), ["gas", "hi"], plan["background"]["views"])
    wanted = explainer.explain(
        explainer.inputs(maps), explainer.inputs(background), AttributionConfig(samples=16, tolerance=0.2), keys=[after]
    )
    found = np.load(tmp_path / "out" / "values" / "true_shap_hi.npy")[train.tolist().index(after)]
    np.testing.assert_allclose(found, wanted.values[0, 0, 1], rtol=1e-3, atol=1e-7)


def test_several_stores_are_explained_as_one(run, tiny_store, with_holes, tmp_path):
    """As the training data: views are numbered through, and a galaxy in both stores counts once."""
    stores = [str(tiny_store), str(with_holes[0])]
    checkpoint = trained_on(run, tmp_path / "run", stores)
    go(checkpoint, tmp_path / "out", "--views=0", *PLAIN)
    both = open_stores(stores)
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["views"] == split_views(both.catalogue(), Split())["train"].tolist()
    assert max(plan["views"]) >= MapStore(tiny_store).views, "views of the second store"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["store"] == stores
    assert (
        summary["background"]["background"]
        == "4 true training views with signal in every domain of maps.zarr, maps.zarr"
    )
    go(run, tmp_path / "given", f"--store={json.dumps(stores)}", *PLAIN)
    assert json.loads((tmp_path / "given" / "summary.json").read_text())["store"] == stores


def test_a_store_that_was_built_anew_since_the_training_is_said_to_be(run, tiny_store, tmp_path):
    folder = trained_on(run, tmp_path / "run", str(tiny_store))
    facts = json.loads((folder / "translation.json").read_text())
    facts["provenance"]["fingerprint"] = "0" * 64
    (folder / "translation.json").write_text(json.dumps(facts))
    with pytest.warns(UserWarning, match="is not as it was at the training"):
        Work(ExplainConfig(checkpoint=str(folder), part="train"), torch.device("cpu"))


def test_quantiles_of_what_the_store_lacks_are_refused_before_the_work(capsys, run, tmp_path):
    message = refused(capsys, run, tmp_path / "out", "--quantiles=[entropy]")
    assert "unknown domain 'entropy'" in message
    assert not (tmp_path / "out").exists()


def test_a_store_that_is_not_whole_is_refused(capsys, run, tiny_store, tmp_path):
    whole = MapStore(tiny_store)
    MapStore.create(tmp_path / "part.zarr", units=whole.units, views=whole.views, pixels=32, shard_views=8)
    message = refused(capsys, run, tmp_path / "out", f"--store={tmp_path / 'part.zarr'}")
    assert "is not finished" in message
    assert not (tmp_path / "out").exists()


def test_the_size_of_the_training_maps_is_in_the_checkpoint(run, tiny_store, large_store, tmp_path):
    """And where an old checkpoint lacks it and its store is gone, that is said."""
    assert Explainer.from_pretrained(run).pixels == 32
    folder = trained_on(run, tmp_path / "run", str(tiny_store))
    facts = json.loads((folder / "translation.json").read_text())
    assert facts["provenance"]["pixels"] == 32
    facts["provenance"]["store"] = str(tmp_path / "gone.zarr")
    (folder / "translation.json").write_text(json.dumps(facts))
    explainer = Explainer.from_pretrained(folder)
    with pytest.raises(AttributionError, match="larger than the 32 x 32"):
        explainer.inputs(store_maps(MapStore(large_store), ["gas", "hi"], [0]))
    del facts["provenance"]["pixels"]
    (folder / "translation.json").write_text(json.dumps(facts))
    with pytest.warns(UserWarning, match="neither the checkpoint nor a store of its training says how large"):
        assert Explainer.from_pretrained(folder).pixels is None
