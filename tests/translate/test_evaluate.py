"""The evaluation: on held-out galaxies, against the best per-pixel relation, with honest intervals."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from astropy import units
from safetensors.torch import load_file, save_file

from skyshift.checkpoint import CheckpointError
from skyshift.datasets.loading import Split, split_views
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError
from skyshift.translate import evaluation_output, evaluation_work, figures
from skyshift.translate.baselines import PixelRelation, simple_relations
from skyshift.translate.evaluate import HEADLINE, METRICS, Evaluation, Options, Yardstick, evaluate, interval, score
from skyshift.translate.evaluate import main as evaluate_command
from skyshift.translate.metrics.pretrained import WeightsError
from skyshift.translate.train import main as train_command
from skyshift.translate.translation import find_checkpoint
from skyshift.translate.translator import Translator

SPLIT = {"train": 0.5, "validation": 0.2, "test": 0.3, "seed": 0}
FILES = ["maps.csv", "maps.parquet", "maps.png", "spectra.png", "structure.png", "summary.json", "table.md"]

MAPWISE = [metric.name for metric in METRICS if metric.summary is not None]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# --- the per-pixel relation


def test_a_known_relation_is_recovered(rng):
    source = rng.uniform(0, 10, (20, 32, 32))
    for statistic in ("mean", "median"):
        relation = PixelRelation.fit(source, np.sqrt(source), statistic)
        seen = rng.uniform(0.5, 9.5, (4, 8, 8))
        estimate = relation(seen)
        assert estimate.dtype == np.float32
        assert estimate.shape == seen.shape
        # Straight lines over 256 bins of width 0.04: an error of width² f''/8 < 2e-4, and the noise of a bin's mean.
        np.testing.assert_allclose(estimate, np.sqrt(seen), atol=2e-3)


def test_mean_and_median_are_those_of_the_noise(rng):
    """Skewed noise of mean 1 and median log 2, whatever the source."""
    source = rng.uniform(0, 1, 200_000)
    target = source + rng.exponential(1.0, source.size)
    seen = np.linspace(0.1, 0.9, 50)
    # 780 pixels a bin: the standard error of its mean is 0.036; five of them.
    np.testing.assert_allclose(PixelRelation.fit(source, target, "mean")(seen), seen + 1, atol=0.18)
    np.testing.assert_allclose(PixelRelation.fit(source, target, "median")(seen), seen + np.log(2), atol=0.18)


def test_no_polynomial_beats_the_mean_relation(rng):
    """The conditional mean minimises the squared error among all functions of the pixel; the median the absolute."""
    source = rng.uniform(0, 5, 50_000)
    target = np.sin(3 * source) + source + rng.exponential(0.5, source.size) * (1 + source)
    mean, median = (PixelRelation.fit(source, target, s)(source) for s in ("mean", "median"))
    error = np.mean((mean - target) ** 2)
    for degree in range(6):
        fitted = np.polynomial.Polynomial.fit(source, target, degree)(source)
        assert error < np.mean((fitted - target) ** 2)
        assert np.abs(median - target).mean() < np.abs(fitted - target).mean()
    assert error < np.mean((median - target) ** 2)
    assert np.abs(median - target).mean() < np.abs(mean - target).mean()
    # It keeps the total of the maps that it is fitted on: the mean of the means is the mean, but for interpolation.
    assert mean.mean() == pytest.approx(target.mean(), rel=5e-3)


def test_empty_sky_is_one_bin(rng):
    """Half of the pixels are zero: their estimate is the mean target there, not an interpolation."""
    source = np.concatenate([np.zeros(5000), rng.uniform(1, 2, 5000)])
    target = np.concatenate([rng.uniform(0, 1, 5000), np.full(5000, 7.0)])
    relation = PixelRelation.fit(source, target)
    assert float(relation(np.zeros(1))[0]) == pytest.approx(target[:5000].mean(), rel=0.02)
    assert (np.diff(relation.source) > 0).all()
    np.testing.assert_array_equal(relation(np.array([-5.0, 0.0])), relation(np.array([0.0, 0.0])))
    np.testing.assert_array_equal(relation(np.array([1e9])), np.float32(7.0))


def test_a_relation_needs_pairs():
    with pytest.raises(SkyshiftError, match="equal numbers of pixels, not 4 and 5"):
        PixelRelation.fit(np.zeros(4), np.zeros(5))
    with pytest.raises(SkyshiftError, match="equal numbers of pixels, not 0 and 0"):
        PixelRelation.fit(np.zeros(0), np.zeros(0))


# --- scores


def blobs(rng, n=6, size=32):
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    width = rng.uniform(3, 6, (n, 1, 1))
    return (1e6 * np.exp(-(x**2 + y**2) / (2 * width**2)) * rng.uniform(0.9, 1.1, (n, size, size))).astype(np.float32)


def test_perfect_maps_score_perfectly(rng):
    truth, side = blobs(rng), np.full(6, 30.0)
    yardstick = Yardstick.fit(truth, side)
    found = score(truth, truth.copy(), side, yardstick)
    assert np.isposinf(found["psnr"]).all()
    assert np.isnan(found["false_signal"]).all()
    for name, value in {"ssim": 1, "total_error": 0, "total_bias": 0, "profile_error": 0, "power_error": 0}.items():
        np.testing.assert_allclose(found[name], value, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(found["correlation"], 1, atol=1e-12)


def test_a_map_twice_as_bright_has_twice_the_total(rng):
    truth, side = blobs(rng), rng.uniform(10, 40, 6)
    found = score(truth, 2 * truth, side, Yardstick.fit(truth, side))
    np.testing.assert_allclose(found["total_error"], 1, rtol=1e-6)
    np.testing.assert_allclose(found["power_error"], 3, rtol=1e-6)
    np.testing.assert_allclose(found["correlation"], 1, atol=1e-9)
    assert found["total_bias"].mean() == pytest.approx(1, rel=1e-6)


def test_the_yardstick_is_of_the_training_maps():
    maps = np.zeros((3, 10, 10), np.float32)
    maps[0, :, 0], maps[1, 0] = 1.0, np.arange(1, 11)
    yardstick = Yardstick.fit(maps, np.array([10.0, 20.0, 10.0]))
    assert yardstick.data_range == pytest.approx(np.quantile(maps[maps > 0], 0.999))
    totals = np.array([10 * 1.0, 55 * 4.0, 0.0])  # in unit × kpc², a pixel being 1, 4 and 1 kpc²
    assert yardstick.typical_total == pytest.approx(totals.mean())


def test_maps_without_signal_are_counted_apart(rng):
    truth, side = blobs(rng), np.full(6, 30.0)
    yardstick = Yardstick.fit(truth, side)
    truth[2] = 0
    estimate = truth + blobs(rng)
    brightness = estimate[2].sum(dtype=np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score(truth, estimate, side, yardstick)
    for name in ("total_error", "profile_error", "power_error", "correlation"):
        np.testing.assert_array_equal(np.isnan(found[name]), np.arange(6) == 2, err_msg=name)
    np.testing.assert_array_equal(np.isnan(found["false_signal"]), np.arange(6) != 2)
    assert found["false_signal"][2] == pytest.approx(brightness * (30 / 32) ** 2 / yardstick.typical_total, rel=1e-6)
    assert np.isnan(found["psnr"][2])
    assert np.isfinite(np.delete(found["psnr"], 2)).all()


def test_the_margin_over_a_baseline_is_taken_galaxy_by_galaxy():
    """A translator that is 1 dB better on each of 50 galaxies of very different difficulty: 1 dB, without a doubt."""
    hard = np.random.default_rng(0).normal(30, 10, 50)
    flat = dict.fromkeys(MAPWISE, np.ones(50))
    scores = {"mine": {**flat, "psnr": hard + 1}, "per-pixel mean": {**flat, "psnr": hard}}
    result = Evaluation("title", "notes", {"hi": scores}, np.arange(50))
    margin = result.margins("hi")["psnr"]
    assert (margin["value"], margin["over"]) == (pytest.approx(1, abs=1e-9), "per-pixel mean")
    np.testing.assert_allclose(margin["interval"], [1, 1], atol=1e-9)
    low, high = result.summary["hi"]["mine"]["psnr"]["interval"]
    assert high - low > 1  # the two columns by themselves would not tell


def test_an_empty_translation_of_a_map_with_structure_correlates_with_nothing_of_it(rng):
    """Were it left out, a translator that fails on three of four maps would seem as good as on the fourth."""
    truth, side = blobs(rng), np.full(6, 30.0)
    found = score(truth, np.where(np.arange(6)[:, None, None] < 4, 0, truth), side, Yardstick.fit(truth, side))
    np.testing.assert_allclose(found["correlation"], [0, 0, 0, 0, 1, 1], atol=1e-12)
    np.testing.assert_allclose(found["total_error"], [-1, -1, -1, -1, 0, 0], atol=1e-12)


def test_maps_all_without_signal_do_not_break_the_table():
    empty, side = np.zeros((4, 16, 16), np.float32), np.full(4, 30.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = score(empty, empty + 1, side, Yardstick.fit(empty, side))
        result = Evaluation("title", "notes", {"hi": {"mine": found, "per-pixel mean": found}}, np.arange(4))
        assert "nan" not in result.table()
        assert "| – | – |" in result.table()
        assert not any(result.beats_baselines("hi").values())
        assert len(list(csv.reader(result.rows().splitlines()))) == 9


# --- intervals and comparison


def test_the_interval_is_the_standard_error(rng):
    """68 % of samples of the mean of n normal numbers lie within σ/√n."""
    values = rng.normal(5, 2, 400)
    low, high = interval(values, np.arange(400), lambda v: float(v.mean()))
    # 400 bootstrap samples: a quantile is uncertain by 5 %, the sample's σ by 4 %.
    assert (high - low) / 2 == pytest.approx(2 / np.sqrt(400), rel=0.2)
    assert low < values.mean() < high


def test_views_of_one_galaxy_are_not_independent(rng):
    """Eight equal views of each of 100 galaxies say as much as one."""
    values, galaxies = np.repeat(rng.normal(0, 1, 100), 8), np.repeat(np.arange(100), 8)
    low, high = interval(values, galaxies, lambda v: float(v.mean()))
    assert (high - low) / 2 == pytest.approx(1 / np.sqrt(100), rel=0.2)
    low, high = interval(values, np.arange(800), lambda v: float(v.mean()))
    assert (high - low) / 2 == pytest.approx(1 / np.sqrt(800), rel=0.2)


def result_of(**rows):
    """An evaluation of three maps, with the values of PSNR, total error and r given a translator."""
    scores = {}
    for name, (psnr, total, correlation) in rows.items():
        r = {"correlation": correlation, "large_correlation": correlation}
        given = {"psnr": psnr, "total_error": total, **r}
        scores[name] = {row: np.full(3, given.get(row, 0.5)) for row in MAPWISE}
    return Evaluation("title", "notes", {"hi": scores}, np.arange(3))


@pytest.mark.parametrize(
    ("mine", "beats"),
    [
        ((30, 0.1, 0.9), (True, True, True)),
        ((24, 0.1, 0.9), (False, True, True)),  # better than one of two
        ((30, 0.3, 0.9), (True, False, True)),  # a smaller error is the better one
        ((30, 0.1, 0.8), (True, True, False)),  # equal is not better
        ((30, np.nan, 0.9), (True, False, True)),
    ],
)
def test_it_must_be_better_than_every_baseline(mine, beats):
    result = result_of(mine=mine, mean=(25, 0.2, 0.8), median=(20, 0.25, 0.7))
    assert result.beats_baselines("hi") == dict(zip(HEADLINE, (*beats, beats[-1]), strict=True))


def test_the_table_is_markdown():
    lines = result_of(mine=(30, 0.1, 0.9), mean=(25, 0.2, 0.8)).table().splitlines()
    assert lines[0] == "**title**"
    rows = [line for line in lines if line.startswith("|")]
    assert {row.count("|") for row in rows} == {4}
    assert len(rows) == 2 + len(MAPWISE) + len({metric.group for metric in METRICS if metric.name in MAPWISE})
    assert "| PSNR [dB] | 30.00 ± 0.00 | 25.00 ± 0.00 |" in rows
    assert "| total, median absolute error [%] | 10.00 ± 0.00 | 20.00 ± 0.00 |" in rows


# --- a checkpoint


def train(folder, store, *options):
    AcceleratorState._reset_state(reset_partial_state=True)
    networks = "skyshift.translate.networks"
    config = {
        "data": {"store": str(store), "source": ["gas"], "target": ["hi"], "split": SPLIT},
        "method": {
            "class_path": "skyshift.translate.methods.pix2pix.Pix2Pix",
            "init_args": {
                "generator": {"class_path": f"{networks}.unet.UNet", "init_args": {"width": 4, "depth": 2}},
                "discriminator": {
                    "class_path": f"{networks}.patchgan.PatchGAN",
                    "init_args": {"width": 4, "layers": 2, "norm": "none"},
                },
            },
        },
        "training": {"steps": 2, "batch_size": 2, "precision": "no", "sample_every": 1},
        "evaluation": False,
        "output": str(folder),
    }
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    train_command(["--config", str(path), *options])
    return folder


@pytest.fixture(scope="module")
def run(tiny_store, tmp_path_factory):
    """A run that evaluates at its end."""
    return train(tmp_path_factory.mktemp("evaluate") / "run", tiny_store, "--evaluation", "true")


def test_training_ends_with_an_evaluation_and_has_drawn_samples(run):
    assert sorted(path.name for path in (run / "evaluation").iterdir()) == FILES
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step_0000001.png", "step_0000002.png"]


def test_it_judges_held_out_galaxies_alone(run, tiny_store):
    catalogue = MapStore(tiny_store).catalogue()
    views = split_views(catalogue, Split(**SPLIT))
    result = evaluate(run)
    group = dict(zip(catalogue["view"].tolist(), catalogue["split_group"].tolist(), strict=True))
    judged = set(result.groups.tolist())
    assert judged == {group[view] for view in views["test"].tolist()}
    assert not judged & {group[view] for part in ("train", "validation") for view in views[part].tolist()}
    assert len(result.groups) == len(views["test"])
    assert f"{len(views['test'])} maps of {len(judged)} test galaxies" in result.title
    assert list(result.scores["hi"]) == ["pix2pix", "per-pixel mean", "per-pixel median", "identity"]
    assert {v.shape for row in result.scores["hi"].values() for v in row.values()} == {(len(views["test"]),)}


def test_baselines_are_fitted_on_training_maps_alone(run, tiny_store):
    store = MapStore(tiny_store)
    views = split_views(store.catalogue(), Split(**SPLIT))
    relation = PixelRelation.fit(store.maps("gas", views["train"]), store.maps("hi", views["train"]))
    truth, side = store.maps("hi", views["test"]), np.asarray(store.catalogue()["side"], np.float64)
    rows = {part: side[views[part]] for part in views}
    yardstick = Yardstick.fit(store.maps("hi", views["train"]), rows["train"])
    wanted = score(truth, relation(store.maps("gas", views["test"])), rows["test"], yardstick)
    for name, values in evaluate(run).scores["hi"]["per-pixel mean"].items():
        np.testing.assert_array_equal(values, wanted[name], err_msg=name)


def test_the_command_writes_its_files(run, tmp_path, capsys):
    output = tmp_path / "judged"
    evaluate_command(["--checkpoint", str(run), "--output", str(output), "--part", "validation"])
    assert sorted(path.name for path in output.iterdir()) == FILES
    table = (output / "table.md").read_text()
    assert capsys.readouterr().out == f"{table}figures and table: {output}\n"
    assert "validation galaxies" in table

    def no_constant(name):
        raise AssertionError(f"{name} is not JSON")

    summary = json.loads((output / "summary.json").read_text(), parse_constant=no_constant)
    assert set(summary["margins"]["hi"]) == set(HEADLINE)
    assert set(summary["scores"]["hi"]["pix2pix"]) == {
        metric.name for metric in METRICS if metric.default and metric.group != "calibration"
    }
    lines = list(csv.DictReader((output / "maps.csv").read_text().splitlines()))
    assert {line["translator"] for line in lines} == {"pix2pix", "per-pixel mean", "per-pixel median", "identity"}
    mine = [float(line["psnr"]) for line in lines if line["translator"] == "pix2pix"]
    assert np.mean(mine) == pytest.approx(summary["scores"]["hi"]["pix2pix"]["psnr"]["value"], rel=1e-5)
    for name in ("maps.png", "spectra.png", "structure.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")


def store_with(source, path, factors, unit=None):
    """A copy of a store with the maps of some domains multiplied, and in another unit."""
    shutil.copytree(source, path)
    if unit:
        meta = json.loads((path / "zarr.json").read_text())
        meta["attributes"]["skyshift"]["units"].update(dict.fromkeys(factors, unit))
        (path / "zarr.json").write_text(json.dumps(meta))
    store = MapStore(path)
    records = store.records()
    for shard in range(store.shards):
        rows = store.shard_rows(shard)
        maps = {name: store.maps(name, rows) * np.float32(factors.get(name, 1)) for name in store.domains}
        store.write_shard(shard, maps, records[rows.start : rows.stop])
    return path


@pytest.fixture
def dark(tiny_store, tmp_path):
    """The store with HI in none of its galaxies."""
    return store_with(tiny_store, tmp_path / "dark.zarr", {"hi": 0})


def test_a_sky_without_signal_is_judged(run, dark, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        result = evaluate(run, store=MapStore(dark), output=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["scores"]["hi"]["pix2pix"]["correlation"] == {
        "value": None,
        "interval": [None, None],
    }
    left_out = re.search(r"left out of all rows but that of what is seen where there is none: hi (\d+)", result.notes)
    assert left_out
    assert int(left_out.group(1)) == len(result.groups)


def test_translations_that_are_not_finite_are_refused(run, tmp_path):
    """Left out of the means, they would make a broken checkpoint as good as its best maps."""
    broken = tmp_path / "broken"
    shutil.copytree(find_checkpoint(run), broken)
    for path in broken.glob("*.safetensors"):
        weights = load_file(path)
        save_file(
            {name: value * float("nan") if value.is_floating_point() else value for name, value in weights.items()},
            path,
        )
    with pytest.raises(SkyshiftError, match="pix2pix makes maps of hi with NaN or infinity"):
        evaluate(broken, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_store_in_another_unit_is_judged_alike(run, tiny_store, tmp_path):
    """The same galaxies with their maps in g/cm²: 2.09e-10 of the numbers, and the same errors."""
    factor = units.Unit("Msun / kpc2").to("g / cm2")
    path = store_with(tiny_store, tmp_path / "cgs.zarr", {"gas": factor, "hi": factor}, "g / cm2")
    ours, wanted = (evaluate(run, store=MapStore(p)).scores["hi"]["pix2pix"] for p in (path, tiny_store))
    # Two roundings to float32 in every pixel, and networks and inverse scalings that enlarge them.
    np.testing.assert_allclose(ours["total_error"], wanted["total_error"], rtol=1e-3)
    np.testing.assert_allclose(ours["psnr"], wanted["psnr"], rtol=1e-4)


def test_figures_are_in_the_unit_that_they_name(run, tiny_store, tmp_path, monkeypatch):
    """Of a store in g/cm² as well: what is judged is in the checkpoint's unit, and so is its truth."""
    seen = {}

    def spy(module, name, see):
        drawn = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: see(given) or drawn(*given))

    spy(evaluation_output, "spectra_figure", lambda given: seen.update(spectra=given[-1]))
    spy(evaluation_output, "structure_figure", lambda given: seen.update(structure=given[-1]))
    spy(figures, "map_figure", lambda given: seen.update(maps=[panel for row in given[0] for panel in row]))
    factor = units.Unit("Msun / kpc2").to("g / cm2")
    path = store_with(tiny_store, tmp_path / "cgs.zarr", {"gas": factor, "hi": factor}, "g / cm2")
    evaluate(run, store=MapStore(path), output=tmp_path / "out")
    assert (seen["spectra"], seen["structure"]) == ("Msun / kpc2", "Msun / kpc2")
    store = MapStore(tiny_store)
    # Source in the store's own unit; truth, translation and difference in the checkpoint's.
    assert [panel.unit for panel in seen["maps"][:4]] == ["g / cm2", *["Msun / kpc2"] * 3]
    truths = store.maps("hi", split_views(store.catalogue(), Split(**SPLIT))["test"])
    for source, truth, estimate, difference in zip(*[iter(seen["maps"])] * 4, strict=True):
        # Two roundings to float32.
        nearest = min(truths, key=lambda one: float(np.abs(one - truth.values).max()))
        np.testing.assert_allclose(truth.values, nearest, rtol=1e-6)
        np.testing.assert_array_equal(difference.values, estimate.values - truth.values)
        assert float(source.values.max()) < 1  # of a gas map, 1e6 and more in Msun / kpc2


def test_a_store_without_training_galaxies_is_refused(run, tmp_path):
    """There is nothing to fit the trivial relations and the dynamic range on."""
    checkpoint = shutil.copytree(find_checkpoint(run), tmp_path / "checkpoint")
    facts = json.loads((checkpoint / "translation.json").read_text())
    facts["provenance"]["split"] |= {"train": 0.0, "validation": 0.5, "test": 0.5}
    (checkpoint / "translation.json").write_text(json.dumps(facts))
    with pytest.raises(
        SkyshiftError, match=r"no views in its train part to fit .* the dynamic range on; name a larger"
    ):
        evaluate(checkpoint, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_maps_below_zero_are_judged_as_their_mirror_images_are(run, tiny_store, tmp_path):
    """A map and its negative have the same signal, the same dynamic range and the same weight in every mean."""
    negative = MapStore(store_with(tiny_store, tmp_path / "negative.zarr", {"hi": -1}))
    views = split_views(negative.catalogue(), Split(**SPLIT))
    found = []
    for store, sign in ((MapStore(tiny_store), 1), (negative, -1)):
        translator = Translator.from_pretrained(run)
        judge = evaluation_work.Judge(
            store, {"mine": translator}, views["train"], ["psnr"], evaluation_work.Networks(), {}
        )
        assert np.sign(judge.truth(judge.channels[0], views["test"]).sum()) == sign
        found.append((judge.yardstick("hi"), judge.chunk(views["test"])["hi"]))
    (mirror, wanted), (yardstick, mine) = found
    assert wanted["lit"].any()
    np.testing.assert_array_equal(mine["lit"], wanted["lit"])
    assert yardstick.typical_total == pytest.approx(mirror.typical_total, rel=1e-12)
    # From the 0.1 % quantile to that of 99.9 %, instead of from zero: the faintest pixels are 1e-7 of the brightest.
    assert yardstick.data_range == pytest.approx(mirror.data_range, rel=1e-6)
    # The mean relation of a mirrored target is the mirrored relation.
    for name in ("total_error", "correlation"):
        ours, theirs = (part["scores"]["per-pixel mean"][name] for part in (mine, wanted))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(np.isfinite(ours), wanted["lit"])


def test_another_store_is_said_to_be_one(run, dark):
    meta = json.loads((dark / "zarr.json").read_text())
    meta["attributes"]["skyshift"]["plan"]["pixels"] = 31
    (dark / "zarr.json").write_text(json.dumps(meta))
    assert "galaxies of another store (test part)" in evaluate(run, store=MapStore(dark)).title


def test_several_stores_are_judged_as_one(run, tiny_store, tmp_path):
    """The command takes the list that training takes."""
    other = shutil.copytree(tiny_store, tmp_path / "other.zarr")
    evaluate_command(
        ["--checkpoint", str(run), "--store", f'["{tiny_store}", "{other}"]', "--output", str(tmp_path / "out")]
    )
    # Four of the twelve galaxies, two views of each in either store.
    assert "16 maps of 4 galaxies of another store" in (tmp_path / "out" / "table.md").read_text()


def test_what_cannot_be_judged_is_refused(run, tiny_store, tmp_path, capsys):
    with pytest.raises(SkyshiftError, match=r"unknown part 'tset'\. Did you mean 'test'\?"):
        evaluate(run, part="tset")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        evaluate(tmp_path)
    with pytest.raises(SystemExit) as error:
        evaluate_command(["--checkpoint", str(run), "--store", str(tmp_path / "nowhere.zarr")])
    assert error.value.code == 1
    assert "is no map store" in capsys.readouterr().err


def test_an_evaluation_without_galaxies_is_refused_before_the_training(tiny_store, tmp_path, capsys):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit):
        train(folder, tiny_store, "--evaluation", "true", "--data.split", "{train: 0.8, validation: 0.2, test: 0.0}")
    assert "there are no test galaxies to evaluate on" in capsys.readouterr().err
    assert not folder.exists()


# --- several processes, several checkpoints, pretrained networks


@pytest.mark.slow
def test_two_processes_give_the_files_of_one(run, tmp_path, shared, repository):
    """Bit for bit: chunks of views are whole on one process, and both sides compute on one thread."""
    arguments = ["--checkpoint", str(run), "--batch_size", "3", "--metrics", "[default,lpips,frechet,c2st]"]
    arguments += ["--weights", str(shared / "weights"), "--resamples", "50"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        evaluate_command([*arguments, "--output", str(tmp_path / "one")])
    finally:
        torch.set_num_threads(threads)
    script = (
        "import sys\nfrom skyshift.engine import launch_state\nfrom skyshift.translate import evaluate\n"
        "state = launch_state()\nopen(f'{sys.argv[1]}_{state.process_index}', 'w').write(str(state.num_processes))\n"
        "evaluate.main(sys.argv[2:])\n"
    )
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(repository / "src")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [
        *launch,
        str(tmp_path / "script.py"),
        str(tmp_path / "world"),
        *arguments,
        "--output",
        str(tmp_path / "two"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"world_{process}").read_text() for process in (0, 1)] == ["2", "2"]
    assert done.stdout.count("figures and table") == 1
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == FILES
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


WORLD = """
    import json, sys
    from pathlib import Path
    from skyshift.engine import launch_state
    from skyshift.errors import SkyshiftError
    from skyshift.translate import evaluate, evaluation_work
    from skyshift.translate.train import main

    out, run, rank = Path(sys.argv[1]), sys.argv[2], launch_state().process_index
    judged, chunk, shared_work = [], evaluation_work.Judge.chunk, evaluation_work.shared_work
    # Chunks of three views, that there be several of so few.
    evaluate.shared_work = lambda judge, views, size, state: shared_work(judge, views, 3, state)

    def broken(judge, views):
        if rank == 1:
            raise SkyshiftError("this map cannot be judged")
        return chunk(judge, views)

    def seen(judge, views):
        judged.extend(views.tolist())
        return chunk(judge, views)

    evaluation_work.Judge.chunk = broken
    try:
        evaluate.evaluate(run, distributed=True)
    except SkyshiftError as error:
        said = str(error)
    evaluation_work.Judge.chunk = seen
    main(sys.argv[3:])
    (out / f"world_{rank}.json").write_text(json.dumps({"judged": judged, "said": said}))
"""


@pytest.mark.slow
def test_training_on_two_processes_evaluates_on_both(run, tiny_store, tmp_path):
    """Each judges its chunks of the test views, and the files are those of one process, bit for bit."""
    folder = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(folder / "evaluation")
    (tmp_path / "world.py").write_text(textwrap.dedent(WORLD))
    quiet = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    again = ["--config", str(run.with_suffix(".yaml")), "--evaluation", "true", "--resume", "true"]
    again += ["--output", str(folder), "--training.batch_size", "1"]  # of two processes: what it began with
    done = subprocess.run(
        [*launch, str(tmp_path / "world.py"), str(tmp_path), str(folder), *again],
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        timeout=300,  # processes that wait for each other would end here
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    worlds = [json.loads((tmp_path / f"world_{rank}.json").read_text()) for rank in (0, 1)]
    # What one process cannot judge, all refuse.
    assert [world["said"] for world in worlds] == ["this map cannot be judged"] * 2
    judged = [world["judged"] for world in worlds]
    assert all(judged)
    test = split_views(MapStore(tiny_store).catalogue(), Split(**SPLIT))["test"].tolist()
    assert sorted(judged[0] + judged[1]) == test
    assert done.stdout.count("figures and table") == 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        evaluate(folder, output=tmp_path / "alone", batch_size=3)
    finally:
        torch.set_num_threads(threads)
    for name in FILES:
        assert (folder / "evaluation" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


def test_other_checkpoints_stand_in_the_same_table(run, tmp_path):
    twin = shutil.copytree(run, tmp_path / "twin")
    result = evaluate(run, options=Options(baselines=[str(twin)], level=0.95, resamples=60))
    names = list(result.scores["hi"])
    assert names[:2] == ["pix2pix (run)", "pix2pix (twin)"]
    np.testing.assert_array_equal(*(result.scores["hi"][name]["psnr"] for name in names[:2]))
    assert "95 % bootstrap" in result.notes
    facts = json.loads((find_checkpoint(twin) / "translation.json").read_text())
    facts["source"][0]["domain"] = "dm"
    (find_checkpoint(twin) / "translation.json").write_text(json.dumps(facts))
    with pytest.raises(SkyshiftError, match=r"translates dm to hi.*gas to hi; they cannot be compared"):
        evaluate(run, options=Options(baselines=[str(twin)]))


def test_absent_weights_cost_nothing_else(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("SKYSHIFT_WEIGHTS", raising=False)
    result = evaluate(run, options=Options(metrics=["all"], resamples=20), output=tmp_path / "out")
    assert "Left out: LPIPS (AlexNet): no weights of AlexNet: there is no alexnet_features.safetensors" in result.notes
    assert "c2st" in result.summary["hi"]["pix2pix"]
    assert "lpips" not in result.summary["hi"]["pix2pix"]
    with pytest.raises(WeightsError, match="--weights"):
        evaluate(run, options=Options(metrics=["default", "lpips"]), output=tmp_path / "none")
    with pytest.raises(SkyshiftError, match="several draws, pix2pix gives one"):
        evaluate(run, options=Options(metrics=["calibration"]), output=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_maps_of_every_kind_in_parquet(run, tmp_path):
    result = evaluate(run, output=tmp_path)
    table = pq.read_table(tmp_path / "maps.parquet").to_pydict()
    mine = [i for i, name in enumerate(table["translator"]) if name == "pix2pix"]
    wanted = result.scores["hi"]["pix2pix"]["gini"]
    np.testing.assert_array_equal(np.array(table["gini"], float)[mine], wanted)
    assert len(table["map"]) == 4 * len(result.groups)


def test_constant_maps_one_map_and_one_galaxy_are_judged():
    for truth in (np.ones((1, 16, 16), np.float32), np.zeros((1, 16, 16), np.float32), np.ones((1, 8, 8), np.float32)):
        side = np.full(1, 30.0)
        found = score(truth, 2 * truth, side, Yardstick.fit(truth, side))
        features = {"hi": {"network": {"truth": np.ones((1, 4)), "mine": np.ones((1, 4))}}}
        features["hi"]["physical"] = features["hi"]["network"]
        result = Evaluation("t", "n", {"hi": {"mine": found, "mean": found}}, np.zeros(1, int), features)
        table = result.table()
        assert "nan" not in table
        assert "| Fréchet distance | – | – |" in table


def test_level_and_resamples_are_checked():
    with pytest.raises(SkyshiftError, match=r"0\.68 for 68 %"):
        Options(level=68)
    with pytest.raises(SkyshiftError, match="resamples must be at least 1, not"):
        Options(resamples=0)


def test_the_scaled_source_is_the_best_multiple(rng):
    source, target = rng.uniform(size=(2, 4, 8, 8))
    found = simple_relations(source, target, "K", "Msun / kpc2")
    assert list(found) == ["per-pixel mean", "per-pixel median", "scaled source"]
    factor = found["scaled source"].factor
    assert factor == pytest.approx(np.linalg.lstsq(source.reshape(-1, 1), target.ravel())[0][0])
    same = simple_relations(source, target, "Msun / kpc2", "Msun / pc2")["identity"]
    np.testing.assert_allclose(same(source), source * 1e-6, rtol=1e-6)
