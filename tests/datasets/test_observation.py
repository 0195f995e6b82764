"""The FITS file of a mock observation: three layers, WCS, beam, read back by astropy and by the project."""

import dataclasses

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.wcs import WCS

from skyshift.datasets.formats import read_maps
from skyshift.datasets.observation import Observation, ObservationError, read_observation
from skyshift.datasets.radio import in_kelvin, observe_radio
from skyshift.datasets.sky import Placement
from skyshift.plots import map_figure


@pytest.fixture(scope="module")
def observation() -> Observation:
    y, x = np.mgrid[:48, :48] - 23.5
    disc = 2e7 * np.exp(-np.hypot(x, y / 0.6) / 8)
    return observe_radio(disc, "Msun / kpc2", 60.0, "meerkat", 0.02, seed=7, direction=(83.6, 22.0), shape=(60, 64))


def test_astropy_reads_what_was_written(observation, tmp_path):
    path = observation.write(tmp_path / "mock.fits")
    with fits.open(path) as hdus:
        assert [hdu.name for hdu in hdus] == ["CLEAN", "NOISY", "SIGMA"]
        for hdu, layer in zip(hdus, (observation.clean, observation.noisy, observation.sigma), strict=True):
            assert hdu.data.dtype.newbyteorder("=") == np.float32
            np.testing.assert_array_equal(hdu.data, layer)
            cards = hdu.header
            assert units.Unit(cards["BUNIT"]) == units.Unit("Jy km / (beam s)")
            assert cards["BMAJ"] == cards["BMIN"] == pytest.approx(15 / 3600)
            assert (cards["BPA"], cards["SURVEY"], cards["SEED"], cards["REDSHIFT"]) == (0.0, "meerkat", 7, 0.02)
            wcs = WCS(cards)
            # The middle of 64 × 60 pixels, counted from 0; and a pixel of 3 arcsec
            centre = wcs.pixel_to_world(31.5, 29.5)
            assert centre.ra.deg == pytest.approx(83.6, abs=1e-9)
            assert centre.dec.deg == pytest.approx(22.0, abs=1e-9)
            east = wcs.pixel_to_world(30.5, 29.5)
            assert east.ra > centre.ra
            assert centre.separation(east).arcsec == pytest.approx(3.0, rel=1e-6)
            assert cards["RESTFRQ"] / cards["FREQ"] == pytest.approx(1.02, rel=1e-12)
    assert [p.name for p in tmp_path.iterdir()] == ["mock.fits"]


def test_the_projects_reader_opens_it(observation, tmp_path):
    found = read_maps(observation.write(tmp_path / "mock.fits"))
    assert list(found) == ["hi_clean", "hi_noisy", "hi_sigma"]
    np.testing.assert_array_equal(found["hi_noisy"].values[0], observation.noisy)
    assert units.Unit(found["hi_sigma"].unit) == units.Unit(observation.unit)
    assert found["hi_clean"].header["BMAJ"] == observation.header["BMAJ"]
    again = observation.maps()
    assert list(again) == list(found)
    assert "meerkat" in again["hi_noisy"].provenance
    assert "seed 7" in again["hi_noisy"].provenance
    # 64 pixels of 3 arcsec
    side = Placement(0.02).kpc(192.0)
    assert observation.side_kpc == pytest.approx(side)
    assert again["hi_noisy"].side[0] == found["hi_noisy"].side[0] == pytest.approx(side)


def test_panels_draw():
    """Clean and noisy on one stretch, σ on its own, axes in kpc."""
    y, x = np.mgrid[:48, :48] - 23.5
    disc = 2e7 * np.exp(-np.hypot(x, y / 0.6) / 8)
    seen = [observe_radio(disc, "Msun / kpc2", 60.0, s, 0.02, seed=1) for s in ("meerkat", "ska_mid_aa4")]
    rows = [image.panels() for image in seen]
    assert [panel.stretch for panel in rows[0]] == ["map", "map", "sigma"]
    figure = map_figure(rows, ["MeerKAT", "SKA-Mid"])
    assert figure.axes[0].get_images()[0].get_clim() == figure.axes[1].get_images()[0].get_clim()
    figure.canvas.draw()


def test_round_trip(observation, tmp_path):
    again = read_observation(observation.write(tmp_path / "mock.fits"))
    for layer in ("clean", "noisy", "sigma"):
        np.testing.assert_array_equal(getattr(again, layer), getattr(observation, layer))
    assert (again.survey, again.seed, again.redshift, again.domain) == ("meerkat", 7, 0.02, "hi")
    assert again.beam_arcsec == pytest.approx((15.0, 15.0, 0.0))
    assert again.pixel_arcsec == 3.0
    np.testing.assert_allclose(in_kelvin(again).sigma, in_kelvin(observation).sigma, rtol=1e-6)


def test_a_file_is_written_whole_or_not_at_all(observation, tmp_path, monkeypatch):
    path = observation.write(tmp_path / "mock.fits")
    before = path.read_bytes()

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fits.HDUList, "writeto", full)
    with pytest.raises(OSError, match="No space left"):
        observation.write(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mock.fits"]


def test_bad_observations(observation, tmp_path):
    with pytest.raises(ObservationError, match=r"end the name in \.fits"):
        observation.write(tmp_path / "mock.npy")
    with pytest.raises(ObservationError, match=r"sigma .* shape \(3, 3\); all three are float32"):
        dataclasses.replace(observation, sigma=np.ones((3, 3), np.float32))
    with pytest.raises(ObservationError, match=r"noisy .* is float64"):
        dataclasses.replace(observation, noisy=observation.noisy.astype(np.float64))
    with pytest.raises(ObservationError, match="'cakes' is no unit"):
        dataclasses.replace(observation, unit="cakes")
    fits.PrimaryHDU(np.ones((4, 4), np.float32)).writeto(tmp_path / "plain.fits")
    with pytest.raises(ObservationError, match=r"plain\.fits is no mock observation"):
        read_observation(tmp_path / "plain.fits")
    with pytest.raises(ObservationError, match=r"absent\.fits is no mock observation"):
        read_observation(tmp_path / "absent.fits")
