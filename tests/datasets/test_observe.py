import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from skyshift.command import parse, shipped_config
from skyshift.datasets.formats import write_maps
from skyshift.datasets.loading import Split, fit_scalings, split_views
from skyshift.datasets.maps import Maps
from skyshift.datasets.observation import read_observation
from skyshift.datasets.observe import ObserveConfig, observe_store, observe_to_files
from skyshift.datasets.optical import observe_optical
from skyshift.datasets.radio import observe_radio
from skyshift.datasets.resampling import rebin
from skyshift.datasets.sky import Placement, SkyError
from skyshift.datasets.store import MapStore, StoreError, ViewRecord
from skyshift.datasets.surveys import SurveyError, get_survey
from skyshift.errors import SkyshiftError


@pytest.fixture(scope="module")
def radio_config(tiny_store, tmp_path_factory):
    return ObserveConfig(
        str(tiny_store),
        str(tmp_path_factory.mktemp("radio") / "meerkat.zarr"),
        "meerkat",
        redshift=[0.005, 0.02],
        pixels=40,
        layers=["noisy", "clean", "sigma"],
        include=["gas", "hi"],
        seed=5,
    )


@pytest.fixture(scope="module")
def radio_store(radio_config):
    return observe_store(radio_config, progress=False)


@pytest.fixture(scope="module")
def light_store(tmp_path_factory):
    """Three galaxies in two views with light in r and i, in solar luminosities per kpc²."""
    path = tmp_path_factory.mktemp("light") / "light.zarr"
    units = {"light_r": "Lsun / kpc2", "light_i": "Lsun / kpc2", "stars": "Msun / kpc2"}
    store = MapStore.create(path, units=units, views=6, pixels=48, shard_views=4)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-23.5:24, -23.5:24]
    for shard in range(store.shards):
        rows = store.shard_rows(shard)
        light = np.stack([1e8 * np.exp(-np.hypot(x, y * rng.uniform(1, 3)) / 5) for _ in rows]).astype(np.float32)
        records = [
            ViewRecord(v, v // 2, f"g{v // 2}", v // 2, 99, 0.0, tuple(np.eye(3).ravel()), 30.0, 0.0, -1, 0)
            for v in rows
        ]
        store.write_shard(shard, {"light_r": light, "light_i": 0.8 * light, "stars": 2 * light}, records)
    return path


def test_views_stay_aligned_with_the_simulation(tiny_store, radio_config, radio_store):
    """Row i is the same view of the same galaxy: what is included is the source's map on the new pixels."""
    source = MapStore(tiny_store)
    assert radio_store.complete
    assert radio_store.domains == ("gas", "hi", "hi_meerkat", "hi_meerkat_clean", "hi_meerkat_sigma")
    assert radio_store.units["hi_meerkat"] == "Jy km / (beam s)"
    survey = get_survey("meerkat")
    for old, new in zip(source.records(), radio_store.records(), strict=True):
        same = ("view", "galaxy", "name", "split_group", "snapshot", "rotation", "depth", "label")
        assert all(getattr(old, key) == getattr(new, key) for key in same)
        place = Placement(new.redshift)
        assert new.side == pytest.approx(place.kpc(40 * survey.pixel_arcsec), rel=1e-12)
        gas = rebin(source.maps("gas", [old.view])[0], old.side / 32, new.side / 40, (40, 40), "surface_brightness")
        np.testing.assert_allclose(radio_store.maps("gas", [new.view])[0], gas, rtol=1e-5)
        assert new.flags == sum(
            1 << i for i, d in enumerate(radio_store.domains) if not radio_store.maps(d, [new.view]).any()
        )


def test_observed_maps_are_those_of_the_survey(tiny_store, radio_store):
    source, view = MapStore(tiny_store), 7
    old, new = source.records()[view], radio_store.records()[view]
    seed = int(np.random.SeedSequence([5, view, 0]).generate_state(1)[0])
    values = source.maps("hi", [view])[0]
    direct = observe_radio(values, source.units["hi"], old.side, "meerkat", new.redshift, seed=seed, shape=(40, 40))
    np.testing.assert_array_equal(radio_store.maps("hi_meerkat", [view])[0], direct.noisy)
    np.testing.assert_array_equal(radio_store.maps("hi_meerkat_clean", [view])[0], direct.clean)
    np.testing.assert_array_equal(radio_store.maps("hi_meerkat_sigma", [view])[0], direct.sigma)


def test_one_redshift_a_galaxy(radio_store):
    catalogue = radio_store.catalogue()
    drawn = {}
    for row in catalogue:
        drawn.setdefault(row["galaxy"], set()).add(row["redshift"])
    assert all(len(redshifts) == 1 for redshifts in drawn.values())
    values = np.array([redshifts.pop() for redshifts in drawn.values()])
    assert len(set(values)) == len(values)
    assert (values >= 0.005).all()
    assert (values <= 0.02).all()


def test_noise_is_of_its_view_alone(radio_store):
    noise = radio_store.maps("hi_meerkat") - radio_store.maps("hi_meerkat_clean")
    normal = (noise / radio_store.maps("hi_meerkat_sigma")).reshape(len(noise), -1)
    correlation = np.corrcoef(normal)
    # 64 independent beams or so a map: correlations scatter by 1 / √64.
    assert np.abs(correlation - np.eye(len(noise))).max() < 0.6
    assert normal.std() == pytest.approx(1.0, abs=0.1)


def test_a_translation_can_train_on_it(radio_store):
    views = split_views(radio_store.catalogue(), Split(0.5, 0.25, 0.25))
    scalings = fit_scalings(radio_store, ["hi", "hi_meerkat"], views["train"], {})
    for name in ("hi", "hi_meerkat"):
        maps = radio_store.maps(name, views["train"])
        scaled = scalings[name].forward(maps)
        assert np.isfinite(scaled).all()
        np.testing.assert_allclose(scalings[name].inverse(scaled), maps, atol=2e-5 * np.abs(maps).max())


def test_an_interrupted_run_goes_on_and_ends_the_same(radio_config, radio_store, tmp_path):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(radio_store.path, copy)
    before = {p.relative_to(copy): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    for shard in (1, 3):
        part = next(copy.glob(f"catalogue/part-*{shard}.parquet"))
        part.unlink()
        for domain in radio_store.domains:
            shutil.rmtree(copy / "maps" / domain / "c" / str(shard))
    assert not MapStore(copy).complete
    made = observe_store(replace(radio_config, output=str(copy)), progress=False)
    assert made.complete
    for domain in made.domains:
        np.testing.assert_array_equal(made.maps(domain), radio_store.maps(domain))
    assert {p.relative_to(copy) for p in copy.rglob("*") if p.is_file()} >= set(before)


def test_other_settings_are_refused_and_nothing_is_lost(radio_config, radio_store):
    before = radio_store.maps("hi_meerkat")
    for other in ({"seed": 6}, {"redshift": 0.01}, {"survey": "ska_mid_aa4"}, {"width_kms": 200.0}):
        with pytest.raises(StoreError, match="holds other observations"):
            observe_store(replace(radio_config, **other), progress=False)
    np.testing.assert_array_equal(MapStore(radio_store.path).maps("hi_meerkat"), before)


def test_kelvin(radio_config, tmp_path):
    made = observe_store(replace(radio_config, output=str(tmp_path / "k.zarr"), kelvin=True), progress=False)
    assert made.units["hi_meerkat"] == "K km / s"
    ratio = made.maps("hi_meerkat_sigma", [0]) / MapStore(radio_config.output).maps("hi_meerkat_sigma", [0])
    redshift = made.records()[0].redshift
    survey = get_survey("meerkat")
    expected = 1.222e6 / ((1.420405751768 / (1 + redshift)) ** 2 * survey.beam_major_arcsec * survey.beam_minor_arcsec)
    np.testing.assert_allclose(ratio, expected, rtol=1e-3)  # 1.222e3 has four digits


def test_light_in_all_bands_that_are_there(light_store, tmp_path):
    config = ObserveConfig(
        str(light_store), str(tmp_path / "lsst.zarr"), "lsst_y10", redshift=0.08, pixels=64, layers=["noisy", "clean"]
    )
    made = observe_store(config, progress=False)
    assert made.domains == (
        "light_r_lsst_y10",
        "light_r_lsst_y10_clean",
        "light_i_lsst_y10",
        "light_i_lsst_y10_clean",
    )
    assert set(made.units.values()) == {"nmgy"}
    light = MapStore(light_store).maps("light_i", [3])[0]
    seed = int(np.random.SeedSequence([0, 3, 1]).generate_state(1)[0])
    direct = observe_optical(light, 30.0, "lsst_y10", "i", 0.08, seed=seed, shape=(64, 64))
    np.testing.assert_array_equal(made.maps("light_i_lsst_y10", [3])[0], direct.noisy)


def test_hubble_takes_the_light_that_its_band_stands_for(light_store, tmp_path):
    config = ObserveConfig(str(light_store), str(tmp_path / "h.zarr"), "hst_cosmos", redshift=0.5, pixels=96)
    assert observe_store(config, progress=False).domains == ("light_f814w_hst_cosmos",)


def test_files_of_a_store(light_store, tmp_path):
    config = ObserveConfig(str(light_store), str(tmp_path / "out"), "sdss", bands=["r"], redshift=0.02, pixels=48)
    paths = observe_to_files(config)
    assert [path.name for path in paths] == [f"view{i:06d}_light_r_sdss.fits" for i in range(6)]
    one = read_observation(paths[2])
    assert one.redshift == 0.02
    assert one.survey == "sdss"
    before = paths[1].read_bytes()
    paths[0].unlink()
    observe_to_files(config)
    assert paths[0].is_file()
    assert paths[1].read_bytes() == before
    with pytest.raises(SkyshiftError, match="holds other files"):
        observe_to_files(replace(config, seed=9))


def test_files_of_a_file(light_store, tmp_path):
    light = MapStore(light_store).maps("light_r", [0, 1])
    path = tmp_path / "light.fits"
    write_maps(path, {"light_r": Maps(light, "light_r", "Lsun / kpc2", side=np.array([30.0, 20.0]))})
    paths = observe_to_files(ObserveConfig(str(path), str(tmp_path / "out"), "sdss", redshift=0.05, pixels=120))
    assert [p.name for p in paths] == ["map000000_light_r_sdss.fits", "map000001_light_r_sdss.fits"]
    # The second map is two thirds as wide: 4/9 of the light.
    fluxes = [read_observation(p).clean.sum() for p in paths]
    expected = light[1].sum() / light[0].sum() * 4 / 9
    assert fluxes[1] / fluxes[0] == pytest.approx(expected, rel=1e-3)  # wings of the PSF beyond the field


def test_what_is_refused_before_anything_is_written(tiny_store, light_store, tmp_path):
    out = tmp_path / "no.zarr"

    def observe(**given):
        source = given.pop("input", tiny_store)
        observe_store(ObserveConfig(str(source), str(out), **given), progress=False)

    with pytest.raises(SurveyError, match=r"unknown survey 'meercat'\. Did you mean 'meerkat'"):
        observe(survey="meercat")
    with pytest.raises(SkyError, match="redshift 0"):
        observe(redshift=0.0)
    with pytest.raises(SkyshiftError, match=r"\[0\.2, 0\.1\] is neither"):
        observe(redshift=[0.2, 0.1])
    with pytest.raises(SkyshiftError, match=r"unknown domain 'hj'\. Did you mean 'hi'"):
        observe(domain="hj")
    with pytest.raises(SkyshiftError, match=r"unknown domain 'gass'\. Did you mean 'gas'"):
        observe(include=["gass"])
    with pytest.raises(SurveyError, match="needs maps of light_g or light_r or light_i, of which the input has none"):
        observe(survey="sdss")
    with pytest.raises(SurveyError, match="without bands"):
        observe(bands=["r"])
    with pytest.raises(SurveyError, match=r"unknown band 'R'\. Did you mean 'r'"):
        observe(input=light_store, survey="sdss", bands=["R"], redshift=0.02)
    with pytest.raises(SkyshiftError, match="unknown domain 'light_g'"):
        observe(input=light_store, survey="sdss", bands=["g"], redshift=0.02)
    with pytest.raises(SkyshiftError, match=r"kernel of .* does not fit a map of 8 × 8"):
        observe(input=light_store, survey="sdss", bands=["r"], redshift=0.02, pixels=8)
    with pytest.raises(SkyshiftError, match="outside of the band of 'meerkat'"):
        observe(redshift=1.0)
    with pytest.raises(SkyshiftError, match="at least one pixel"):
        observe(pixels=0)
    assert not out.exists()


def test_shipped_configurations_are_read():
    for name, survey in (("observe_meerkat", "meerkat"), ("observe_lsst", "lsst_y10")):
        config, _ = parse(ObserveConfig, ["--config", str(shipped_config(f"datasets/{name}.yaml"))], None, "")
        assert config.survey == survey


def run(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "datasets/observe.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, env=environment, check=False)


def test_command(repository, tiny_store, tmp_path):
    out = tmp_path / "meerkat.zarr"
    config = "configs/datasets/observe_meerkat.yaml"
    done = run(repository, "--config", config, "--input", str(tiny_store), "--output", str(out), "--pixels", "36")
    assert done.returncode == 0, done.stderr
    assert "hi_meerkat [Jy km / (beam s)], 36 pixels a side" in done.stdout
    assert MapStore(out).domains == ("gas", "hi", "hi_meerkat")
    wrong = run(repository, "--input", str(tiny_store), "--output", str(out), "--redshifts", "0.1")
    assert wrong.returncode == 2
    assert "redshift" in wrong.stderr
    assert run(repository).stderr.startswith("error: name what to observe (--input)")


def test_command_on_a_file(repository, tiny_store, tmp_path):
    store = MapStore(tiny_store)
    path = tmp_path / "hi.fits"
    record = store.records()[0]
    hi = Maps(store.maps("hi", [0]), "hi", store.units["hi"], side=np.array([record.side]))
    write_maps(path, {"hi": hi})
    done = run(repository, "--input", str(path), "--output", str(tmp_path / "out"), "--redshift", "0.008")
    assert done.returncode == 0, done.stderr
    assert "1 FITS files" in done.stdout
    file = next((tmp_path / "out").glob("*.fits"))
    with fits.open(file) as hdus:
        assert hdus["NOISY"].header["BUNIT"] == "Jy km beam-1 s-1"
        assert hdus["NOISY"].header["REDSHIFT"] == 0.008
        assert "BMAJ" in hdus["NOISY"].header
    assert json.loads((tmp_path / "out" / "observe.json").read_text())["survey"]["name"] == "meerkat"
    refused = run(repository, "--input", str(path), "--output", str(tmp_path / "x.zarr"))
    assert refused.returncode == 1
    assert "is a file: it has no catalogue for a store" in refused.stderr
    absent = run(repository, "--input", str(tmp_path / "none.zarr"), "--output", str(tmp_path / "x.zarr"))
    assert "there is no" in absent.stderr
