"""Observed images become a store: the same object on one grid, values with units, nothing lost or guessed."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from skyshift.datasets.collect import CollectConfig, Images, collect, interpolated, numbered
from skyshift.datasets.sky import Placement
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError


def blob(pixels, pixel, fwhm, x=0.0, y=0.0):
    """A round Gaussian of peak 1; lengths in arcsec from the centre."""
    place = (np.arange(pixels) - (pixels - 1) / 2) * pixel
    r2 = (place[None] - x) ** 2 + (place[:, None] - y) ** 2
    return np.exp(-4 * np.log(2) * r2 / fwhm**2)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Five objects on a fine grid, the same but one and another on a coarse one, in another order."""
    centre = [(2.0 * i, -1.0 * i) for i in range(5)]
    fine = np.stack([blob(40, 1.0, 8.0, x, y) for x, y in centre])
    coarse = np.stack([blob(20, 4.0, 16.0, x, y) for x, y in centre])
    order = [3, 1, 0, 4]
    path = tmp_path / "images.npz"
    np.savez(
        path,
        fine=fine.astype(np.float32),
        fine_names=np.array([f"J{i}" for i in range(5)]),
        fine_labels=np.array([0, 1, 0, 1, 1]),
        coarse=np.concatenate([coarse[order], coarse[:1]]).astype(np.float32),
        coarse_names=np.array([*(f"J{i}" for i in order), "J9"]),
        empty=np.zeros((5, 40, 40), np.float32),
    )
    return path


def config_of(packed: Path, **changes) -> CollectConfig:
    inputs = {
        "sharp": Images(str(packed), "Jy / beam", 1.0, "fine", "fine_names", "fine_labels"),
        "blurred": Images(str(packed), "Jy / beam", 4.0, "coarse", "coarse_names"),
    }
    config = CollectConfig(inputs, str(packed.parent / "maps.zarr"), 20, 2.0, label_names=["I", "II"])
    return replace(config, **changes)


def test_the_same_object_is_one_view_on_one_grid(packed):
    store = collect(config_of(packed), progress=False)
    catalogue = store.catalogue()
    assert list(catalogue["name"]) == ["J0", "J1", "J3", "J4"]
    assert list(catalogue["label"]) == [0, 1, 1, 1]
    assert tuple(store.labels) == ("I", "II")
    assert len(set(catalogue["split_group"])) == 4
    assert store.units == {"sharp": "Jy / beam", "blurred": "Jy / beam"}
    # 40 arcsec at the stated redshift
    assert catalogue["side"][0] == pytest.approx(Placement(0.1).kpc(40.0))
    assert "redshift 0.1" in catalogue["notes"][0]
    sharp, blurred = store.maps("sharp"), store.maps("blurred")
    for i, number in enumerate((0, 1, 3, 4)):
        want = blob(20, 2.0, 16.0, 2.0 * number, -1.0 * number)
        # The coarse pixels sample this Gaussian four times per FWHM: a cubic spline misses it by less than 1 %.
        np.testing.assert_allclose(blurred[i], want, atol=0.01)
        fine = blob(40, 1.0, 8.0, 2.0 * number, -1.0 * number)
        np.testing.assert_allclose(sharp[i], fine.reshape(20, 2, 20, 2).mean((1, 3)), atol=1e-6)


def test_flux_per_pixel_is_kept_and_brightness_is_not_multiplied(packed):
    inputs = {"sharp": replace(config_of(packed).inputs["sharp"], conserve="flux", unit="Jy")}
    store = collect(config_of(packed, inputs=inputs), progress=False)
    with np.load(packed) as file:
        np.testing.assert_allclose(store.maps("sharp").sum((1, 2)), file["fine"].sum((1, 2)), rtol=1e-6)
    finer = {"blurred": replace(config_of(packed).inputs["blurred"], conserve="flux", unit="Jy")}
    store = collect(
        config_of(packed, inputs=finer, output=str(packed.parent / "finer.zarr"), pixels=40), progress=False
    )
    with np.load(packed) as file:
        # Splines through the centres keep the sum of a source that fades to its border to a percent.
        np.testing.assert_allclose(store.maps("blurred").sum((1, 2)), file["coarse"].sum((1, 2)), rtol=0.01)


def test_interpolation_goes_through_the_old_centres_and_is_exact_for_planes():
    generator = np.random.default_rng(0)
    image = generator.normal(size=(9, 9))
    # Three new pixels an old one: every third new centre is an old one.
    np.testing.assert_allclose(interpolated(image, 3.0, 1.0, 27)[1::3, 1::3], image, atol=1e-10)
    y, x = np.mgrid[:9, :9] - 4.0
    yy, xx = (np.mgrid[:12, :12] - 5.5) / 3.0
    np.testing.assert_allclose(interpolated(2 * x - y + 1, 3.0, 1.0, 12, degree=1), 2 * xx - yy + 1, atol=1e-12)


def test_peaks_are_one_where_asked_for(packed):
    inputs = {"sharp": replace(config_of(packed).inputs["sharp"], normalise="peak")}
    store = collect(config_of(packed, inputs=inputs), progress=False)
    np.testing.assert_allclose(store.maps("sharp").max((1, 2)), 1.0)
    assert store.units["sharp"] == "1"


def test_files_of_one_image_each_with_a_wcs_and_a_table_of_labels(tmp_path):
    for name, x in (("a", 0.0), ("b", 3.0)):
        hdu = fits.PrimaryHDU(blob(32, 0.5, 4.0, x).astype(np.float32))
        hdu.header["BUNIT"] = "Jy / beam"
        for axis, kind, step in ((1, "RA---TAN", -0.5), (2, "DEC--TAN", 0.5)):
            hdu.header[f"CTYPE{axis}"], hdu.header[f"CUNIT{axis}"] = kind, "deg"
            hdu.header[f"CDELT{axis}"], hdu.header[f"CRPIX{axis}"] = step / 3600, 16.5
            hdu.header[f"CRVAL{axis}"] = 10.0
        hdu.writeto(tmp_path / f"{name}.fits")
    (tmp_path / "classes.csv").write_text("name,label\na,spiral\nb,1\n")
    config = CollectConfig(
        {"radio": Images(str(tmp_path / "*.fits"))},
        str(tmp_path / "maps.zarr"),
        16,
        1.0,
        label_names=["elliptical", "spiral"],
        label_file=str(tmp_path / "classes.csv"),
    )
    store = collect(config, progress=False)
    assert list(store.catalogue()["label"]) == [1, 1]
    assert store.units == {"radio": "Jy / beam"}
    want = blob(32, 0.5, 4.0, 3.0).reshape(16, 2, 16, 2).mean((1, 3))
    np.testing.assert_allclose(store.maps("radio", [1])[0], want, atol=1e-6)


def test_an_interrupted_run_goes_on_and_other_images_are_refused(packed):
    store = collect(config_of(packed), progress=False)
    before = store.fingerprint
    store.forget(1)
    assert not MapStore(store.path).complete
    assert collect(config_of(packed), progress=False).fingerprint == before
    with pytest.raises(SkyshiftError, match="other images, other labels or another grid"):
        collect(config_of(packed, redshift=0.2), progress=False)
    with np.load(packed) as file:
        arrays = dict(file)
    assert list(store.catalogue()["galaxy"]) == [numbered(name) for name in store.catalogue()["name"]]
    np.savez(packed, **{**arrays, "fine_labels": 1 - arrays["fine_labels"]})
    with pytest.raises(SkyshiftError, match="other labels"):
        collect(config_of(packed), progress=False)
    assert MapStore(store.path).fingerprint == before


def test_blank_images_are_left_out_or_refused(packed):
    with np.load(packed) as file:
        arrays = dict(file)
    arrays["fine"][1], arrays["fine"][3, 2, 2] = 0.0, np.nan
    np.savez(packed, **arrays)
    with pytest.raises(SkyshiftError, match="sharp image of J1 holds only zeros"):
        collect(config_of(packed, blank="refuse"), progress=False)
    assert not Path(config_of(packed).output).exists()
    assert list(collect(config_of(packed), progress=False).catalogue()["name"]) == ["J0", "J4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": "fin"}, "Did you mean 'fine'"),
        ({"images": "fine_labels"}, r"shape \(5,\), not \(n, height, width\)"),
        ({"path": "nowhere.npz"}, "nowhere.npz cannot be read"),
        ({"path": "nowhere/*.fits"}, "no file matches"),
        ({"unit": ""}, "unit of its values"),
        ({"pixel": 0.0}, "size of its pixels"),
        ({"pixel": 0.5}, "is 20 x 20 arcsec, the grid 20 x 2 = 40 arcsec"),
        ({"images": "empty"}, "no object has a usable image"),
    ],
)
def test_what_is_wrong_with_images_is_said_before_the_work(packed, change, message):
    inputs = {"sharp": replace(config_of(packed).inputs["sharp"], **change)}
    with pytest.raises(SkyshiftError, match=message):
        collect(config_of(packed, inputs=inputs), progress=False)
    assert not Path(config_of(packed).output).exists()


def test_labels_that_disagree_or_are_unknown_are_refused(packed, tmp_path):
    (tmp_path / "labels.csv").write_text("name,label\nJ1,I\n")
    with pytest.raises(SkyshiftError, match="J1 has class 0, elsewhere 1"):
        collect(config_of(packed, label_file=str(tmp_path / "labels.csv")), progress=False)
    (tmp_path / "labels.csv").write_text("name,label\nJ1,III\n")
    with pytest.raises(SkyshiftError, match="Did you mean 'II'"):
        collect(config_of(packed, label_file=str(tmp_path / "labels.csv")), progress=False)
    with pytest.raises(SkyshiftError, match="J1 has class 1, label_names has 1"):
        collect(config_of(packed, label_names=["I"]), progress=False)
    with pytest.raises(SkyshiftError, match="names no domain"):
        collect(CollectConfig(output=str(tmp_path / "none.zarr")), progress=False)


def test_the_real_radio_pairs_are_gathered_by_the_shipped_configuration(shared, tmp_path, repository):
    """413 objects are in both surveys; the FIRST image of one of them is empty."""
    path, output = shared / "radio_surveys" / "fr_deep.npz", tmp_path / "maps.zarr"
    arguments = ["--inputs.first.path", path, "--inputs.nvss.path", path, "--output", output]
    ran = subprocess.run(
        [sys.executable, repository / "datasets" / "collect.py", *map(str, arguments)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "413 of them in every domain, 1 blank" in ran.stdout
    store = MapStore(output)
    assert (store.views, store.pixels, set(store.units.values())) == (412, 72, {"1"})
    first, nvss = store.maps("first"), store.maps("nvss")

    def centroid(maps):
        grid = np.arange(72) - 35.5
        return np.stack([(maps * g).sum((1, 2)) / maps.sum((1, 2)) for g in (grid, grid[:, None])])

    # The same sources at the same place: their centroids agree to a fraction of the NVSS beam (45 arcsec, 12.5 pixels)
    # for most, and on average to a pixel.
    offset = centroid(first) - centroid(nvss)
    assert np.median(np.hypot(*offset)) < 4.0
    assert np.abs(np.median(offset, axis=1)).max() < 1.0
