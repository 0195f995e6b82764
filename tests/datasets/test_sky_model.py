"""Sky models: flux, positions and layout as OSKAR and Karabo read them."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from skyshift.datasets.formats import write_maps
from skyshift.datasets.maps import Maps
from skyshift.datasets.observation import ObservationError
from skyshift.datasets.radio import HI_FREQUENCY, hi_flux
from skyshift.datasets.sky import Placement
from skyshift.datasets.sky_model import (
    COLUMNS,
    SkyModelConfig,
    point_components,
    sky_of_map,
    write_components,
    write_sky_image,
    write_sky_models,
)
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError

CENTRE = (201.4, -43.0)


@pytest.fixture
def sky() -> np.ndarray:
    flux = np.random.default_rng(0).exponential(1e-4, (40, 48)) ** 2
    flux[flux < np.quantile(flux, 0.3)] = 0.0
    return flux


def test_flux_of_image_and_table_is_that_of_the_sky(sky, tmp_path):
    """To 1e-6: float32 leaves 1e-8 in a sum, ten digits less."""
    write_sky_image(tmp_path / "sky.fits", sky, 2.0, [1.4e9], CENTRE)
    image = fits.getdata(tmp_path / "sky.fits").astype(np.float64)
    assert image.shape == (1, 40, 48)
    assert image.sum() == pytest.approx(sky.sum(), rel=1e-6)
    table = point_components(sky, 2.0, 1.4e9, CENTRE)
    for name in ("sky.osm", "sky.csv"):
        write_components(tmp_path / name, table)
    oskar = np.loadtxt(tmp_path / "sky.osm")
    karabo = np.loadtxt(tmp_path / "sky.csv", delimiter=",", skiprows=1)
    assert oskar.shape == (np.count_nonzero(sky), 12)
    assert oskar[:, 2].sum() == pytest.approx(sky.sum(), rel=1e-6)
    np.testing.assert_array_equal(oskar, karabo)
    assert list(Table.read(tmp_path / "sky.csv", format="ascii.csv").colnames) == list(COLUMNS)
    assert not oskar[:, [3, 4, 5, 7, 8, 9, 10, 11]].any()
    assert (oskar[:, 6] == 1.4e9).all()


def test_components_lie_where_the_image_has_them(sky, tmp_path):
    """Orthographic, by hand: l = -cos δ sin(α - α0) east to the left, of a pixel 2 arcsec wide."""
    write_sky_image(tmp_path / "sky.fits", sky, 2.0, [1.4e9], CENTRE)
    table = point_components(sky, 2.0, 1.4e9, CENTRE)
    wcs = WCS(fits.getheader(tmp_path / "sky.fits")).celestial
    columns, rows = wcs.wcs_world2pix(table[:, 0], table[:, 1], 0)
    np.testing.assert_allclose(sky[np.rint(rows).astype(int), np.rint(columns).astype(int)], table[:, 2])
    assert list(wcs.wcs.ctype) == ["RA---SIN", "DEC--SIN"]
    alpha, delta = np.deg2rad(table[:, 0] - CENTRE[0]), np.deg2rad(table[:, 1])
    l = np.cos(delta) * np.sin(alpha)  # noqa: E741
    m = np.sin(delta) * np.cos(np.deg2rad(CENTRE[1])) - np.cos(delta) * np.sin(np.deg2rad(CENTRE[1])) * np.cos(alpha)
    pixel = np.deg2rad(2.0 / 3600)
    at_rows, at_columns = np.nonzero(sky)
    np.testing.assert_allclose(l / pixel, -(at_columns - 23.5), atol=1e-6)
    np.testing.assert_allclose(m / pixel, at_rows - 19.5, atol=1e-6)


def test_a_cube_counts_its_channels_from_the_first(sky, tmp_path):
    """OSKAR takes the frequency of channel i as CRVAL + i CDELT: CRPIX must be 1."""
    frequencies = 1.4e9 + 26e3 * np.arange(3)
    write_sky_image(tmp_path / "cube.fits", np.stack([sky, 2 * sky, sky]), 2.0, frequencies, CENTRE)
    with fits.open(tmp_path / "cube.fits") as hdus:
        cards, data = hdus[0].header, hdus[0].data
    assert data.shape == (3, 40, 48)
    assert [cards[f"CTYPE{i}"] for i in (1, 2, 3)] == ["RA---SIN", "DEC--SIN", "FREQ"]
    assert (cards["CRPIX3"], cards["CRVAL3"], cards["CDELT3"]) == (1.0, 1.4e9, 26e3)
    assert cards["BUNIT"] == "Jy/pixel"
    assert cards["BITPIX"] == -32
    np.testing.assert_allclose(WCS(cards).spectral.pixel_to_world_values(np.arange(3)), frequencies, rtol=1e-12)
    assert units.Unit(cards["BUNIT"]) == units.Unit("Jy / pix")


def test_a_line_is_spread_over_its_width():
    hydrogen = np.zeros((32, 32))
    hydrogen[10:20, 12:18] = 1e7
    place = Placement(0.02)
    flux, frequency, pixel = sky_of_map(hydrogen, "Msun / kpc2", 40.0, place, 250.0)
    assert flux.sum() * 250.0 == pytest.approx(hi_flux(hydrogen.sum() * (40 / 32) ** 2, place), rel=1e-12)
    assert frequency == pytest.approx(HI_FREQUENCY / 1.02)
    assert pixel == pytest.approx(place.arcsec(40 / 32))
    continuum, none, _ = sky_of_map(hydrogen, "mJy", 40.0, place)
    assert none is None
    assert continuum.sum() == pytest.approx(hydrogen.sum() * 1e-3)


def test_gaussian_components_and_spectra(sky):
    table = point_components(sky, 2.0, 1.4e9, CENTRE, spectral_index=-0.7, size_arcsec=2.0)
    assert (table[:, 7] == -0.7).all()
    assert (table[:, 9:11] == 2.0).all()


def test_files_are_written_whole(sky, tmp_path, monkeypatch):
    path = write_sky_image(tmp_path / "sky.fits", sky, 2.0, [1.4e9], CENTRE)
    before = path.read_bytes()

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fits.PrimaryHDU, "writeto", full)
    with pytest.raises(OSError, match="No space left"):
        write_sky_image(path, sky, 2.0, [1.4e9], CENTRE)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["sky.fits"]


def test_skies_that_are_none(sky, tmp_path):
    dark = -sky
    with pytest.raises(ObservationError, match="pixels of the sky are negative; a sky shines"):
        write_sky_image(tmp_path / "a.fits", dark, 2.0, [1.4e9])
    holed = sky.copy()
    holed[0, 0] = np.nan
    with pytest.raises(ObservationError, match="1 of 1920 pixels are not finite"):
        point_components(holed, 2.0, 1.4e9)
    with pytest.raises(ObservationError, match="2 frequencies for 1 channels"):
        write_sky_image(tmp_path / "a.fits", sky, 2.0, [1.4e9, 1.5e9])
    with pytest.raises(ObservationError, match="evenly spaced"):
        write_sky_image(tmp_path / "a.fits", np.stack([sky] * 3), 2.0, [1.4e9, 1.5e9, 1.7e9])
    with pytest.raises(ObservationError, match="the sky is empty"):
        point_components(np.zeros((4, 4)), 2.0, 1.4e9)
    with pytest.raises(ObservationError, match=r"at 0\.0 Hz are none"):
        point_components(sky, 2.0, 0.0)
    with pytest.raises(ObservationError, match=r"\.osm or \.txt \(OSKAR\) or \.csv \(Karabo\)"):
        write_components(tmp_path / "a.dat", point_components(sky, 2.0, 1.4e9))
    with pytest.raises(ObservationError, match=r"in 12 columns, not of shape \(2, 3\)"):
        write_components(tmp_path / "a.csv", np.ones((2, 3)))
    with pytest.raises(ObservationError, match="a line cannot be 0 km/s wide"):
        sky_of_map(sky, "Msun / kpc2", 40.0, Placement(0.02), 0)
    assert not list(tmp_path.iterdir())


# The command.


def run(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "datasets/sky_model.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, env=environment, check=False)


def test_the_command_writes_the_sky_of_each_view(repository, tiny_store, tmp_path):
    """∫S dv / W of the gas in each map, by its mass, in image and table alike."""
    out = tmp_path / "skies"
    given = ("--input", str(tiny_store), "--redshift", "0.01", "--width_kms", "200", "--ra", "201.4", "--dec", "-43")
    done = run(repository, *given, "--output", str(out), "--table", "csv")
    assert done.returncode == 0, done.stderr
    store, place = MapStore(tiny_store), Placement(0.01)
    shining = [record for record in store.records() if store.maps("hi", [record.view]).any()]
    assert f"{store.views} FITS images, {len(shining)} tables" in done.stdout
    for record in shining[:3]:
        pixel_kpc = record.side / store.pixels
        mass = store.maps("hi", [record.view])[0].astype(np.float64).sum() * pixel_kpc**2
        flux = hi_flux(mass, place) / 200.0
        image, cards = fits.getdata(out / f"view{record.view:06d}_hi_sky.fits", header=True)
        table = np.loadtxt(out / f"view{record.view:06d}_hi_sky.csv", delimiter=",", skiprows=1)
        assert image.astype(np.float64).sum() == pytest.approx(flux, rel=1e-5)
        assert table[:, 2].sum() == pytest.approx(flux, rel=1e-5)
        assert cards["CRVAL3"] == pytest.approx(HI_FREQUENCY / 1.01, rel=1e-12)
        assert (cards["CRVAL1"], cards["CRVAL2"]) == (201.4, -43.0)
        assert 3600 * cards["CDELT2"] == pytest.approx(place.arcsec(pixel_kpc), rel=1e-9)
    again = run(repository, *given, "--output", str(out))
    assert again.returncode == 1
    assert "is there already; choose another output" in again.stderr


def test_a_file_an_empty_map_and_what_is_refused(tmp_path):
    values = np.zeros((2, 16, 16), np.float32)
    values[0, 3, 4] = 0.5
    jansky = Maps(values, "continuum", "Jy", np.array([20.0, 30.0]))
    write_maps(tmp_path / "c.fits", {"continuum": jansky})
    config = SkyModelConfig(str(tmp_path / "c.fits"), str(tmp_path / "out"), "continuum", frequency_mhz=950.0)
    names = [path.name for path in write_sky_models(config)]
    assert names == ["map000000_continuum_sky.fits", "map000000_continuum_sky.osm", "map000001_continuum_sky.fits"]
    row = np.loadtxt(tmp_path / "out" / names[1])
    assert (row[2], row[6]) == (0.5, 950e6)
    with pytest.raises(SkyshiftError, match=r"unknown domain 'continum'\. Did you mean 'continuum'"):
        write_sky_models(replace(config, domain="continum", output=str(tmp_path / "no")))
    write_maps(tmp_path / "c.fits", {"continuum": replace(jansky, side=None)})
    with pytest.raises(SkyshiftError, match="do not say how large they are in kpc"):
        write_sky_models(replace(config, output=str(tmp_path / "no")))
    with pytest.raises(SkyshiftError, match="name the maps"):
        SkyModelConfig()
    assert not (tmp_path / "no").exists()
