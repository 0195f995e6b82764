"""From one survey to another: beams, flux, noise, and FIRST against the NVSS of the same sources."""

import dataclasses
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from skyshift.datasets.degrade import (
    NoisierWarning,
    beam_covariance,
    degrade,
    matching_beam,
    residual_noise,
)
from skyshift.datasets.degrade_maps import DegradeConfig, degrade_file
from skyshift.datasets.formats import write_maps
from skyshift.datasets.maps import MapError, Maps
from skyshift.datasets.observation import ObservationError, read_observation
from skyshift.datasets.optical import noise_sigma, psf_kernel
from skyshift.datasets.radio_beams import beam_response, correlated_noise
from skyshift.datasets.resampling import rebin
from skyshift.datasets.sky import wcs_header
from skyshift.datasets.surveys import OpticalSurvey, SurveyError, get_survey, radio_survey
from skyshift.errors import SkyshiftError


def first_like(major: float, minor: float, angle: float, pixel: float = 1.8):
    return dataclasses.replace(
        radio_survey("first"),
        beam_major_arcsec=major,
        beam_minor_arcsec=minor,
        beam_angle_deg=angle,
        pixel_arcsec=pixel,
    )


def source(size: int, beam: tuple[float, float, float], pixel: float, flux: float = 0.1) -> np.ndarray:
    """A point source in the middle of a map of ``size`` pixels, odd, in Jy/beam."""
    y, x = np.mgrid[:size, :size] - size // 2
    kernel = beam_response(*beam, pixel)
    half, image = kernel.shape[0] // 2, np.zeros((size, size))
    image[np.hypot(x, y) < 0.5] = flux
    image[size // 2 - half : size // 2 + half + 1, size // 2 - half : size // 2 + half + 1] = flux * kernel
    return image


# Radio.


def test_a_point_source_of_first_is_one_of_the_nvss():
    """Same flux at its peak, and the beam of the NVSS about it."""
    seen = degrade(source(501, (5.4, 5.4, 0.0), 1.8), "first", "nvss", seed=0, noise_in=0.0, shape=(59, 59))
    y, x = (np.mgrid[:59, :59] - 29) * 15.0
    expected = 0.1 * np.exp(-4 * np.log(2) * (x**2 + y**2) / 45.0**2)
    np.testing.assert_allclose(seen.clean, expected, atol=1e-6)
    assert (seen.unit, seen.pixel_arcsec, seen.beam_arcsec) == ("Jy / beam", 15.0, (45.0, 45.0, 0.0))
    np.testing.assert_allclose(seen.sigma, 0.45e-3, rtol=1e-6)
    assert seen.header["FROMSURV"] == "first"


def test_elliptical_beams():
    wide = first_like(30.0, 20.0, 60.0, 4.0)
    seen = degrade(
        source(301, (6.0, 4.0, 10.0), 1.8), first_like(6.0, 4.0, 10.0), wide, seed=0, noise_in=0, shape=(61, 61)
    )
    expected = np.zeros((61, 61))
    kernel = beam_response(30.0, 20.0, 60.0, 4.0)
    half = kernel.shape[0] // 2
    expected[30 - half : 31 + half, 30 - half : 31 + half] = 0.1 * kernel
    np.testing.assert_allclose(seen.clean, expected, atol=1e-5)


def test_the_flux_is_kept():
    rng = np.random.default_rng(1)
    image = sum(np.roll(source(401, (5.4, 5.4, 0), 1.8), rng.integers(-60, 60, 2), (0, 1)) for _ in range(20))
    seen = degrade(image, "first", "nvss", seed=0, noise_in=0.0)
    area = np.pi / (4 * np.log(2)) * 45.0**2 / 15.0**2
    assert seen.clean.sum() / area == pytest.approx(20 * 0.1, rel=1e-4)


def test_equal_beams_change_nothing_but_the_pixels():
    image = source(101, (5.4, 5.4, 0.0), 1.8)
    seen = degrade(image, "first", "first", seed=0, noise_in=0.0)
    np.testing.assert_allclose(seen.clean, image, atol=1e-7)
    assert not matching_beam(radio_survey("first"), radio_survey("first")).any()


def test_smoothing_twice_is_smoothing_once():
    a, b, c = first_like(6, 5, 20), first_like(12, 9, 50), first_like(30, 25, 80)
    image = source(301, (6.0, 5.0, 20.0), 1.8)
    twice = degrade(degrade(image, a, b, seed=0, noise_in=0).clean, b, c, seed=0, noise_in=0).clean
    once = degrade(image, a, c, seed=0, noise_in=0).clean
    np.testing.assert_allclose(twice, once, atol=1e-5)
    np.testing.assert_allclose(matching_beam(a, b) + matching_beam(b, c), matching_beam(a, c), atol=1e-12)


def test_what_is_left_of_the_noise():
    """By smoothing a noise map: 1e4 independent NVSS beams, 2 % with its own scatter."""
    first, nvss = radio_survey("first"), radio_survey("nvss")
    noise = 0.15e-3 * correlated_noise((1500, 1500), 5.4, 5.4, 0.0, 1.8, 3)
    with pytest.warns(
        NoisierWarning, match=r"what is left of the noise of 'first', 0\.000887 Jy/beam, is above .* 0\.00045"
    ):
        seen = degrade(noise, first, nvss, seed=0)
    inner = seen.clean[5:-5, 5:-5]
    assert inner.std() == pytest.approx(residual_noise(first, nvss, 0.15e-3), rel=0.05)
    np.testing.assert_allclose(seen.sigma, residual_noise(first, nvss, 0.15e-3), rtol=1e-6)
    np.testing.assert_array_equal(seen.noisy, seen.clean)
    assert seen.header["NOISEADD"] == 0.0


def test_noise_is_filled_up_to_the_second_survey():
    """A quieter image: what is left and what is added have together the rms of the NVSS, and no more."""
    first, nvss = radio_survey("first"), radio_survey("nvss")
    noise = 0.04e-3 * correlated_noise((1500, 1500), 5.4, 5.4, 0.0, 1.8, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = degrade(noise, first, nvss, seed=5, noise_in=0.04e-3)
    np.testing.assert_allclose(seen.sigma, 0.45e-3, rtol=1e-6)
    assert seen.noisy[5:-5, 5:-5].std() == pytest.approx(0.45e-3, rel=0.05)
    left = residual_noise(first, nvss, 0.04e-3)
    assert seen.header["NOISEADD"] == pytest.approx(np.sqrt(0.45e-3**2 - left**2), rel=1e-9)


def test_covariance_of_a_beam():
    """North-south, then turned to north-east: x and y (right and up) go against each other."""
    np.testing.assert_allclose(beam_covariance(20, 10, 0) * 8 * np.log(2), [[100, 0], [0, 400]], atol=1e-9)
    turned = beam_covariance(20, 10, 45) * 8 * np.log(2)
    np.testing.assert_allclose(turned, [[250, -150], [-150, 250]], atol=1e-9)


def test_first_degraded_looks_like_the_nvss_of_the_same_sources(shared: Path):
    """FR-DEEP, the first 120 of the sources in both: 8 bits, clipped at the noise, so only shapes are compared.

    Of all 411 with any signal the median correlation is 0.965 [0.962, 0.967]; without the beam, rebinned by area, 0.625
    [0.617, 0.635]; and it is the higher for each of them.
    """
    data = np.load(shared / "radio_surveys/fr_deep.npz")
    number = {str(name): i for i, name in enumerate(data["nvss_objects"])}
    found = []
    for image, name in list(zip(data["first_images"], data["first_objects"], strict=True)):
        if len(found) == 120 or str(name) not in number:
            continue
        nvss = data["nvss_images"][number[str(name)]][66:84, 66:84].astype(float)
        if not (image.any() and nvss.any()):
            continue
        with_beam = degrade(image, "first", "nvss", seed=0, noise_in=0.0).clean
        without = rebin(image.astype(float), 1.8, 15.0, (18, 18))
        assert with_beam.shape == nvss.shape
        found.append([np.corrcoef(seen.ravel(), nvss.ravel())[0, 1] for seen in (with_beam, without)])
    beam, pixels = np.array(found).T
    assert len(beam) == 120
    assert np.median(beam) > 0.95
    assert np.median(pixels) < 0.70
    assert (beam > pixels).mean() > 0.98


# Optical.


def test_ten_years_to_one_adds_noise_alone():
    """The same point spread function: the image is untouched, the noise that of one year."""
    ten, one = get_survey("lsst_y10"), get_survey("lsst_y1")
    rng = np.random.default_rng(0)
    truth = np.zeros((300, 300))
    truth[140:160, 140:160] = 0.05
    image = truth + noise_sigma(truth, ten, "r") * rng.standard_normal(truth.shape)
    seen = degrade(image, ten, one, seed=1, band="r")
    np.testing.assert_allclose(seen.clean, image.astype(np.float32))
    assert (seen.noisy - truth)[:130].std() == pytest.approx(noise_sigma(np.zeros(1), one, "r")[0], rel=0.02)
    assert seen.domain == "lsst_y1_r"


@pytest.mark.parametrize(
    ("a", "b", "bands"), [("hsc_wide", "sdss", ("r", "r")), ("hst_cosmos", "lsst_y10", ("f814w", "i"))]
)
def test_a_star_takes_the_second_point_spread_function(a, b, bands):
    """2 % of the peak is the accuracy of the kernel; the flux in the map stays, but for wings beyond it."""
    first, second = get_survey(a), get_survey(b)
    assert isinstance(first, OpticalSurvey)
    assert isinstance(second, OpticalSurvey)
    kernel = psf_kernel(first, bands[0])
    new = int(2 * (2.0 / second.pixel_arcsec) + 1) // 2 * 2 + 1
    size = int(np.ceil(2.0 * new * second.pixel_arcsec / first.pixel_arcsec)) // 2 * 2 + 1
    size = max(size, kernel.shape[0], psf_kernel(second, bands[1], first.pixel_arcsec).shape[0])
    star = np.zeros((size, size))
    half = kernel.shape[0] // 2
    star[size // 2 - half : size // 2 + half + 1, size // 2 - half : size // 2 + half + 1] = 100 * kernel
    seen = degrade(star, first, second, seed=0, noise_in=0.0, band=bands, shape=(new, new))
    target = psf_kernel(second, bands[1])
    middle, h = target.shape[0] // 2, new // 2
    expected = 100 * target[middle - h : middle + h + 1, middle - h : middle + h + 1]
    np.testing.assert_allclose(seen.clean, expected, atol=0.03 * expected.max())
    assert seen.clean.sum() == pytest.approx(expected.sum(), rel=0.03)


def test_noise_left_by_an_optical_kernel():
    """White noise of HSC through kernel and pixels, against what is predicted: 1e4 pixels of SDSS, 3 %."""
    first, second = get_survey("hsc_wide"), get_survey("sdss")
    noise = np.random.default_rng(0).standard_normal((400, 400))
    quiet = dataclasses.replace(second.bands["r"], exposure_s=1e9)
    silent = dataclasses.replace(second, bands={**second.bands, "r": quiet})
    with pytest.warns(NoisierWarning, match="cannot be taken away"):
        seen = degrade(noise, first, silent, seed=0, noise_in=1.0)
    assert seen.clean[15:-15, 15:-15].std() == pytest.approx(float(np.median(seen.sigma)), rel=0.06)


# What cannot be.


def test_an_image_cannot_be_sharpened():
    image = source(101, (45.0, 45.0, 0.0), 15.0)
    with pytest.raises(
        ObservationError, match=r"beam of 'first', 5\.4 × 5\.4 .* does not contain that of 'nvss'.*not sharpened"
    ):
        degrade(image, "nvss", "first", seed=0)
    with pytest.raises(ObservationError, match="not sharpened"):
        degrade(image, first_like(10, 4, 0), first_like(9, 8, 0), seed=0)
    with pytest.raises(ObservationError, match=r"no kernel turns .* not sharpened"):
        degrade(image, "sdss", "hsc_wide", seed=0)


def test_bad_surveys_and_images():
    image = source(101, (5.4, 5.4, 0.0), 1.8)
    with pytest.raises(ObservationError, match="'first' and 'sdss' are not both radio or both optical"):
        degrade(image, "first", "sdss", seed=0)
    with pytest.raises(SurveyError, match=r"unknown survey 'firts'\. Did you mean 'first'"):
        degrade(image, "firts", "nvss", seed=0)
    with pytest.raises(SurveyError, match="unknown band 'q'"):
        degrade(image, "lsst_y10", "lsst_y1", seed=0, band="q")
    with pytest.raises(
        ObservationError, match=r"an image of 4 × 4 pixels of 1\.8 arcsec is smaller than a pixel of 15"
    ):
        degrade(image[:4, :4], "first", "nvss", seed=0)
    with pytest.raises(ObservationError, match="the seed -3; give a whole number"):
        degrade(image, "first", "nvss", seed=-3)
    with pytest.raises(ObservationError, match="cannot have noise of -1"):
        degrade(image, "first", "nvss", seed=0, noise_in=-1.0)
    holed = image.copy()
    holed[5, 5] = np.nan
    with pytest.raises(ObservationError, match="image of first: 1 of 10201 pixels are not finite"):
        degrade(holed, "first", "nvss", seed=0)


# The command.


def run(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "datasets/degrade_maps.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, env=environment, check=False)


def first_image(path: Path, **cards: object) -> np.ndarray:
    """A point source at RA 10, Dec 20 in the middle of an image of FIRST, as its archive writes it."""
    image = source(201, (5.4, 5.4, 0.0), 1.8).astype(np.float32)
    header = wcs_header((201, 201), 1.8, 10.0, 20.0)
    header["BUNIT"], header["BMAJ"], header["BMIN"] = "JY/BEAM", 5.4 / 3600, 5.4 / 3600
    header.update(cards)
    fits.PrimaryHDU(image, header).writeto(path, overwrite=True)
    return image


def test_the_command_makes_what_the_function_makes_in_the_same_place(repository, tmp_path):
    image = first_image(tmp_path / "first.fits")
    given = ("--input", str(tmp_path / "first.fits"), "--from_survey", "first", "--to_survey", "nvss", "--noise", "0")
    done = run(repository, *given, "--output", str(tmp_path / "out"), "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert "1 FITS files" in done.stdout
    made = read_observation(tmp_path / "out" / "map000000_continuum_nvss.fits")
    direct = degrade(image, "first", "nvss", seed=3, noise_in=0.0)
    np.testing.assert_array_equal(made.clean, direct.clean)
    np.testing.assert_array_equal(made.noisy, direct.noisy)
    peak = np.unravel_index(made.clean.argmax(), made.clean.shape)
    at = WCS(fits.getheader(tmp_path / "out" / "map000000_continuum_nvss.fits")).pixel_to_world(peak[1], peak[0])
    assert at.separation(SkyCoord(10.0, 20.0, unit="deg")).arcsec < 11.0  # a pixel's half diagonal
    again = run(repository, *given, "--output", str(tmp_path / "out"))
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert "--to_survey lacks" in run(repository, *given[:4], "--output", str(tmp_path / "no")).stderr


def test_images_that_are_not_of_the_survey(tmp_path):
    path = tmp_path / "first.fits"
    config = DegradeConfig(str(path), str(tmp_path / "out"), "first", "nvss", noise=0.0)
    first_image(path, BMAJ=6.8 / 3600)
    with pytest.raises(ObservationError, match=r"a beam of 6\.8 × 5\.4 arcsec, 'first' of 5\.4 × 5\.4; name"):
        degrade_file(config)
    first_image(path, CDELT1=-2.0 / 3600)
    with pytest.raises(ObservationError, match=r"has pixels of 2 × 1\.8 arcsec, or is turned; 'first' has 1\.8"):
        degrade_file(config)
    first_image(path, CDELT1=1.8 / 3600)
    with pytest.raises(ObservationError, match=r"or is turned; .* east to the left"):
        degrade_file(config)
    first_image(path, BUNIT="K")
    with pytest.raises(MapError, match="not convertible to Jy / beam"):
        degrade_file(config)
    fits.PrimaryHDU(np.ones((99, 99), np.float32)).writeto(path, overwrite=True)
    with pytest.raises(SkyshiftError, match="does not say the unit of its images; name it with --unit"):
        degrade_file(config)
    write_maps(path, {name: Maps(np.ones((1, 9, 9), np.float32), name, "Jy / beam") for name in ("a", "b")})
    with pytest.raises(SkyshiftError, match="holds images of a, b; choose one with --hdu"):
        degrade_file(config)
    assert not (tmp_path / "out").exists()


def test_optical_images_in_a_stack(tmp_path):
    rng = np.random.default_rng(0)
    stack = rng.uniform(0.0, 5.0, (2, 64, 64)).astype(np.float32)
    write_maps(tmp_path / "m.fits", {"sky": Maps(stack, "sky", "nmgy")})
    config = DegradeConfig(str(tmp_path / "m.fits"), str(tmp_path / "out"), "lsst_y10", "lsst_y1", band="i")
    made = degrade_file(config)
    assert [path.name for path in made] == [f"map00000{i}_lsst_y1_i_lsst_y1.fits" for i in range(2)]
    noises = [seen.noisy - seen.clean for seen in map(read_observation, made)]
    assert abs(np.corrcoef(noises[0].ravel(), noises[1].ravel())[0, 1]) < 0.08  # 5 / √4096
