import dataclasses

import numpy as np
import pytest
import yaml
from astropy.io import fits
from astropy.wcs import WCS

from skyshift.command import shipped_config
from skyshift.datasets.beams import gaussian_kernel, image_kernel, kernel_fwhm, matching_kernel
from skyshift.datasets.observation import ObservationError, read_observation
from skyshift.datasets.optical import (
    add_noise,
    apparent_flux,
    electrons_per_nanomaggy,
    limiting_magnitude,
    noise_sigma,
    observe_optical,
    psf_kernel,
    see,
    sky_electrons,
)
from skyshift.datasets.resampling import ResamplingError, convolve, rebin
from skyshift.datasets.sky import Placement, SkyError
from skyshift.datasets.surveys import OpticalSurvey, SurveyError, get_survey, load_survey

OPTICAL = ("sdss", "decals", "hsc_wide", "lsst_y1", "lsst_y10", "hst_cosmos")


def disc(pixels=80, scale=6.0, total=1e10, side=40.0):
    """Exponential disc of ``total`` Lsun, in Lsun/kpc²."""
    x = np.arange(pixels) - 0.5 * (pixels - 1)
    profile = np.exp(-np.hypot(x[:, None], x[None, :]) / scale)
    return profile / profile.sum() * total / (side / pixels) ** 2


def scatter(values):
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


# Light to flux.


def test_a_galaxy_has_the_magnitude_that_it_must():
    """m = M_sun - 2.5 log10 L + DM + K, worked out apart from the maps."""
    place = Placement(0.05)
    flux = apparent_flux(disc(total=3e10), 0.5, place, "r")
    magnitude = 22.5 - 2.5 * np.log10(flux.sum())
    expected = 4.65 - 2.5 * np.log10(3e10) + place.distance_modulus - 2.5 * np.log10(1.05)
    assert magnitude == pytest.approx(expected, abs=1e-12)
    assert magnitude == pytest.approx(15.22, abs=0.02)  # M = -21.54, DM = 36.81


def test_the_sun_at_ten_parsec():
    """One Lsun at D_L = 10 pc has the Sun's absolute magnitude, were there no redshift: the distance carries it."""
    place = Placement(1e-6)
    flux = apparent_flux(np.ones((1, 1)), 1.0, place, "g", k_correction=0.0)[0, 0]
    ten_parsec = flux * (place.luminosity_distance_mpc * 1e5) ** 2
    assert 22.5 - 2.5 * np.log10(ten_parsec) == pytest.approx(5.11, abs=1e-9)


def test_surface_brightness_dims_as_ab_light_does():
    """Per arcsec², the same light loses (1 + z)³ in f_ν, and (1 + z)⁴ with a bolometric K of zero."""
    light = np.ones((4, 4))
    bright = {}
    for z in (0.1, 0.8):
        place = Placement(z)
        for k in (None, 0.0):
            bright[z, k] = apparent_flux(light, 2.0, place, "i", k)[0, 0] / place.arcsec(2.0) ** 2
    assert bright[0.8, None] / bright[0.1, None] == pytest.approx((1.8 / 1.1) ** -3, rel=1e-12)
    assert bright[0.8, 0.0] / bright[0.1, 0.0] == pytest.approx((1.8 / 1.1) ** -4, rel=1e-12)


def test_a_batch_is_its_maps_and_flux_reaches_the_survey():
    flux = np.stack([disc(total=total) for total in (1e9, 5e9)]) * 1e-6
    out = see(flux, 0.3, "sdss", "r", shape=(101, 101))
    np.testing.assert_array_equal(out[1], see(flux[1], 0.3, "sdss", "r", shape=(101, 101)))
    np.testing.assert_allclose(out.sum((-2, -1)), flux.sum((-2, -1)), rtol=1e-3)


# Against GalSim.


@pytest.mark.parametrize(
    ("name", "band", "pixel"),
    [
        ("lsst_y10", "r", 0.2),
        ("sdss", "g", 0.396),
        ("hsc_wide", "i", 0.168),
        ("decals", "z", 0.262),
        ("lsst_y10", "r", 0.8),
    ],
)
def test_chain_against_galsim(name, band, pixel):
    """Exponential disc, tilted, through a Moffat, integrated over the survey's pixels; the last as wide as the PSF."""
    galsim = pytest.importorskip("galsim", reason="GalSim is not installed")
    survey = dataclasses.replace(get_survey(name), pixel_arcsec=pixel)
    found = survey.band(band)
    params = galsim.GSParams(folding_threshold=1e-4, maxk_threshold=1e-4, kvalue_accuracy=1e-6, maximum_fft_size=16384)
    galaxy = galsim.Exponential(half_light_radius=1.2 * found.fwhm_arcsec, flux=100.0, gsparams=params)
    galaxy = galaxy.shear(q=0.5, beta=0.6 * galsim.radians)
    moffat = galsim.Moffat(beta=found.beta, fwhm=found.fwhm_arcsec, gsparams=params)
    size = 81
    theirs = galsim.Convolve(galaxy, moffat).drawImage(nx=size, ny=size, scale=pixel, dtype=float).array
    fine = galaxy.drawImage(nx=8 * size, ny=8 * size, scale=pixel / 8, dtype=float).array
    ours = see(fine, pixel / 8, survey, band)
    # Our Moffat is cut where 0.999 of it is inside and holds all the light there; and what is aliased at three pixels
    # a FWHM.
    np.testing.assert_allclose(ours, theirs, atol=2e-3 * theirs.max())
    if pixel > 0.5 * found.fwhm_arcsec:
        return  # an image of a star on such pixels does not say how it looks between them
    # The same from an image of the star; the finer pixel on which it is used widens it by a² / 12.
    star = moffat.drawImage(nx=61, ny=61, scale=pixel, dtype=float).array
    ours = see(fine, pixel / 8, survey, band, psf=star)
    np.testing.assert_allclose(ours, theirs, atol=3e-3 * theirs.max())


def test_noise_has_the_variance_of_galsims_ccd():
    galsim = pytest.importorskip("galsim", reason="GalSim is not installed")
    survey = get_survey("decals")
    band = survey.band("r")
    c, sky = electrons_per_nanomaggy(band), sky_electrons(band, survey.pixel_arcsec)
    noise = galsim.CCDNoise(sky_level=sky, gain=1.0, read_noise=np.sqrt(band.exposures) * band.read_noise_e)
    assert float(noise_sigma(np.zeros(1), survey, "r")[0] * c) == pytest.approx(np.sqrt(noise.getVariance()), rel=1e-12)
    image = galsim.Image(np.full((400, 400), 3.0 * c))
    image.addNoise(galsim.CCDNoise(galsim.BaseDeviate(5), sky, 1.0, np.sqrt(band.exposures) * band.read_noise_e))
    ours, sigma = add_noise(np.full((1, 400, 400), 3.0), survey, "r", [5])
    # 160,000 pixels know a standard deviation to 1 / √(2n) = 0.18 %; five of these.
    assert ours.std() == pytest.approx(image.array.std() / c, rel=0.013)
    assert ours.std() == pytest.approx(sigma[0, 0, 0], rel=0.009)


# Noise.


@pytest.mark.parametrize("name", OPTICAL)
def test_sigma_is_the_scatter_of_many_draws(name):
    """Faint, sky and bright pixels of each survey: 4,000 draws know σ to 1.1 %, the mean to σ / 63."""
    survey = get_survey(name)
    band = next(iter(survey.bands))
    faint = float(noise_sigma(np.zeros(1), survey, band)[0])
    clean = np.tile(np.array([[0.0, 0.1, 10.0, 3000.0]]) * faint, (4000, 1, 1))
    noisy, sigma = add_noise(clean, survey, band, [[3, i] for i in range(4000)])
    np.testing.assert_allclose(noisy.std(0), sigma[0], rtol=0.05)
    np.testing.assert_allclose(noisy.mean(0), clean[0], atol=4.5 * sigma[0].max() / np.sqrt(4000))
    np.testing.assert_allclose((noisy.mean(0) - clean[0]) / sigma[0], 0, atol=4.5 / np.sqrt(4000))
    np.testing.assert_allclose(sigma[0], noise_sigma(clean[0], survey, band), rtol=1e-12)


def test_noise_of_a_map_depends_on_its_seed_alone():
    clean = np.ones((3, 8, 8))
    noisy, _ = add_noise(clean, "sdss", "r", [7, 8, 7])
    np.testing.assert_array_equal(noisy[0], noisy[2])
    assert np.abs(noisy[0] - noisy[1]).max() > 0
    np.testing.assert_array_equal(add_noise(clean[1:2], "sdss", "r", [8])[0][0], noisy[1])


@pytest.mark.parametrize("name", OPTICAL)
def test_depth_follows_from_the_numbers(name):
    """Published depths and those of PSF, sky, readouts and exposure agree to 0.25 mag (airmass, seeing, losses)."""
    survey = get_survey(name)
    assert isinstance(survey, OpticalSurvey)
    for band, facts in survey.bands.items():
        assert limiting_magnitude(survey, band) == pytest.approx(facts.depth_mag, abs=0.25), band
        assert all(
            f"bands.{band}.{key}" in survey.sources for key in ("fwhm", "zero_point", "exposure", "sky", "depth")
        )


def test_depth_is_five_sigma_of_a_fitted_star():
    """Stars of that magnitude, fitted with the PSF in 2,000 noisy images, scatter by a fifth of their flux."""
    survey, band = get_survey("lsst_y1"), "i"
    kernel = psf_kernel(survey, band)
    flux = 10 ** (-0.4 * (limiting_magnitude(survey, band) - 22.5))
    noisy, _ = add_noise(np.tile(kernel * flux, (2000, 1, 1)), survey, band, list(range(2000)))
    fitted = (noisy * kernel).sum((1, 2)) / (kernel**2).sum()
    assert fitted.mean() == pytest.approx(flux, rel=0.02)  # 4.5 × 0.2 / √2000
    assert flux / fitted.std() == pytest.approx(5.0, rel=0.08)  # 1 / √(2 · 2000) = 1.6 %; five of these


def test_first_year_is_a_tenth_of_ten():
    """Ten times the exposure: √10 less noise, 1.25 mag."""
    for band in "gri":
        ratio = noise_sigma(np.zeros(1), "lsst_y1", band) / noise_sigma(np.zeros(1), "lsst_y10", band)
        assert float(ratio[0]) == pytest.approx(np.sqrt(10), rel=1e-9)


# Real skies.


def test_a_real_sky_lies_under_the_galaxy():
    rng = np.random.default_rng(4)
    sky = rng.normal(0.0, 0.03, (64, 64))
    clean = np.zeros((500, 64, 64))
    clean[:, 32, 32] = 40.0
    noisy, sigma = add_noise(clean, "sdss", "r", list(range(500)), sky_image=sky)
    np.testing.assert_allclose(noisy[3, :30], sky[:30], atol=1e-12)
    assert noisy[:, 32, 32].mean() == pytest.approx(40.0 + sky[32, 32], abs=0.05)
    source = 40.0 / electrons_per_nanomaggy(get_survey("sdss").band("r"))
    assert noisy[:, 32, 32].std() == pytest.approx(np.sqrt(source), rel=0.15)
    assert sigma[0, 0, 0] == pytest.approx(0.03, rel=0.05)
    assert sigma[0, 32, 32] == pytest.approx(np.sqrt(source + sigma[0, 0, 0] ** 2), rel=1e-9)
    with pytest.raises(ObservationError, match=r"shape \(64, 64\) cannot lie under maps of \(32, 32\)"):
        add_noise(np.zeros((1, 32, 32)), "sdss", "r", [0], sky_image=sky)


# The whole observation.


def test_observation_has_units_wcs_and_survives_a_file(tmp_path):
    observed = observe_optical(disc(), 40.0, "lsst_y10", "r", 0.1, seed=3, ra=40.0, dec=-5.0)
    assert observed.unit == "nmgy"
    assert observed.header["SIDEKPC"] == pytest.approx(Placement(0.1).kpc(0.2 * observed.clean.shape[1]))
    assert observed.clean.dtype == observed.noisy.dtype == observed.sigma.dtype == np.float32
    side = Placement(0.1).arcsec(40.0)
    assert observed.clean.shape == (int(np.ceil(side / 0.2)),) * 2
    # Light thrown out of the field by the PSF and cut wings is all that is lost.
    flux = apparent_flux(disc(), 0.5, Placement(0.1), "r").sum()
    assert observed.clean.sum() == pytest.approx(flux, rel=5e-3)
    assert scatter((observed.noisy - observed.clean) / observed.sigma) == pytest.approx(1.0, abs=0.03)
    path = observed.write(tmp_path / "galaxy.fits")
    again = read_observation(path)
    np.testing.assert_array_equal(again.noisy, observed.noisy)
    assert again.unit == "nmgy"
    with fits.open(path) as hdus:
        header = hdus["NOISY"].header
        assert header["BUNIT"] == "nmgy"
        assert header["MAGZERO"] == 22.5
        assert header["REDSHIFT"] == 0.1
        centre = WCS(header).pixel_to_world(*((n - 1) / 2 for n in observed.clean.shape[::-1]))
    assert centre.ra.deg == pytest.approx(40.0, abs=1e-9)


def test_a_farther_galaxy_is_smaller_fainter_and_has_the_same_seed():
    near, far = (observe_optical(disc(), 40.0, "hsc_wide", "i", z, seed=1) for z in (0.1, 0.4))
    assert far.clean.shape[0] < near.clean.shape[0]
    assert far.clean.sum() < near.clean.sum()
    assert far.seed == 1


def test_hubble_sees_light_i_with_a_real_star(shared):
    with fits.open(shared / "optical/hst/btk_real_galaxy_PSF_images_extension.fits") as hdus:
        star = np.asarray(hdus[0].data, np.float64)
    observed = observe_optical(disc(), 40.0, "hst_cosmos", "f814w", 0.5, psf=star)
    assert observed.header["PSFFWHM"] == pytest.approx(0.105, abs=0.01)
    flux = apparent_flux(disc(), 0.5, Placement(0.5), "i").sum()
    assert observed.clean.sum() == pytest.approx(flux, rel=0.01)


def test_hubble_preset_has_the_wings_of_real_stars(shared):
    """Light within 0.12 arcsec and effective pixels of the mean of 100 real PSFs."""
    with fits.open(shared / "optical/hst/btk_real_galaxy_PSF_images_extension.fits") as hdus:
        star = np.mean([hdu.data / hdu.data.sum() for hdu in hdus], axis=0)
    ours = psf_kernel("hst_cosmos", "f814w")

    def inside(kernel):
        y, x = np.indices(kernel.shape)
        peak = np.unravel_index(kernel.argmax(), kernel.shape)
        return float(kernel[np.hypot(y - peak[0], x - peak[1]) * 0.03 <= 0.12].sum())

    assert inside(ours) == pytest.approx(inside(star), abs=0.03)
    assert (ours**2).sum() == pytest.approx((star**2).sum(), rel=0.15)


# Real images of SDSS and KiDS (maggies; 0.339 and 0.2 arcsec a pixel).

GALAXIES = ("G265911", "G265940", "G266033", "G266035", "G266662", "G267199")


def real(shared, galaxy, survey):
    folder = shared / "optical/sdss_kids"
    parts = ("fitim", "sigma", "segim", "psfim")
    image, sigma, segments, psf = (
        np.asarray(fits.getdata(folder / f"{galaxy}_{survey}_{part}.fits"), np.float64) for part in parts
    )
    return image * 1e9, sigma * 1e9, segments, psf


@pytest.mark.parametrize("galaxy", GALAXIES)
def test_sdss_noise_against_real_images(shared, galaxy):
    """σ of the real maps is √(constant + F / 1,000); ours says 958 electrons a nanomaggy and a sky within 25 %."""
    image, sigma, segments, psf = real(shared, galaxy, "SDSS")
    sky = segments == 0
    assert scatter(image[sky]) == pytest.approx(np.median(sigma[sky]), rel=0.05)
    survey = dataclasses.replace(get_survey("sdss"), pixel_arcsec=0.339)
    ours = noise_sigma(image, survey, "r")
    slope, constant = np.polyfit(image.ravel(), sigma.ravel() ** 2, 1)
    assert 1.0 / slope == pytest.approx(electrons_per_nanomaggy(survey.band("r")), rel=0.06)
    # Those images were resampled, which takes noise from single pixels to larger scales: the real scatter is below
    # ours pixel by pixel and above it over 8 × 8 pixels.
    ratio = float(np.median(ours[sky]) / np.sqrt(constant))
    assert 1.1 < ratio < 1.3
    height, width = (n // 8 for n in image.shape)
    blocks = image[: 8 * height, : 8 * width].reshape(height, 8, width, 8).sum((1, 3)) / 8
    empty = sky[: 8 * height, : 8 * width].reshape(height, 8, width, 8).all((1, 3))
    assert scatter(blocks[empty]) == pytest.approx(float(np.median(ours[sky])), rel=0.3)
    # Effective width (of the Gaussian with as many effective pixels), the survey's median being 1.43 arcsec.
    kernel = image_kernel(psf, 0.339, 0.339)
    assert np.sqrt(1 / (kernel**2).sum() / 2.266) * 0.339 == pytest.approx(1.43, rel=0.06)


@pytest.mark.parametrize("galaxy", GALAXIES)
def test_kids_degraded_is_sdss(shared, galaxy):
    """A sharper image of the same galaxy, through the matching kernel and rebinned, is the coarser one.

    Positions differ by up to a pixel (each was cut out apart) and are fitted; flux agrees to the colour terms and
    skies of the two surveys.
    """
    from scipy.ndimage import gaussian_filter, shift
    from scipy.optimize import minimize

    image, sigma, _, star = real(shared, galaxy, "SDSS")
    sharp, _, _, sharp_star = real(shared, galaxy, "KiDS")
    # The KiDS stars have a ring below zero that cannot be light.
    kernel = matching_kernel(image_kernel(np.maximum(sharp_star, 0), 0.2, 0.2), image_kernel(star, 0.339, 0.2), 0.03)
    degraded = rebin(convolve(sharp, kernel, "nearest"), 0.2, 0.339, image.shape)
    smooth = gaussian_filter(image, 2)
    core = smooth > 3 * scatter(smooth)

    def cost(offset):
        return float((((shift(degraded, offset, order=3) - image) / sigma)[core] ** 2).mean())

    best = minimize(cost, [0, 0], method="Nelder-Mead", options={"initial_simplex": [[0, 0], [1, 0.3], [0.3, 1]]})
    fitted = shift(degraded, best.x, order=3)
    assert np.abs(best.x).max() < 1.5
    assert fitted[core].sum() == pytest.approx(image[core].sum(), rel=0.08)
    assert np.corrcoef(fitted[core], image[core])[0, 1] > 0.94
    assert np.sqrt(best.fun) < 2.5


def test_decals_depth_against_a_real_cutout(shared):
    """Inverse variance gives the scatter of the sky, and a depth within a magnitude of the preset's (more passes)."""
    path = next((shared / "optical").glob("decals_cutout*.fits"))
    with fits.open(path) as hdus:
        images = {(h.header["BAND"].strip(), h.header["IMAGETYP"].strip()): h.data.astype(float) for h in hdus[1:]}
    survey = get_survey("decals")
    for band in "grz":
        sigma = 1 / np.sqrt(images[band, "invvar"])
        assert scatter(images[band, "image"]) == pytest.approx(np.median(sigma), rel=0.12)
        deeper = 2.5 * np.log10(float(noise_sigma(np.zeros(1), survey, band)[0]) / np.median(sigma))
        assert 0.0 < deeper < 1.5, band


# What is refused.


def test_an_empty_map_a_negative_seed_and_a_field_without_end():
    with pytest.raises(ObservationError, match=r"with pixels, not of shape \(0, 0\)"):
        observe_optical(np.zeros((0, 0)), 40.0, "sdss", "r", 0.1)
    with pytest.raises(ObservationError, match="the seed -1; give a whole number, 0 or more"):
        observe_optical(disc(), 40.0, "sdss", "r", 0.1, seed=-1)
    with pytest.raises(ObservationError, match=r"too large to be made .* at redshift 1e-05.* or a larger redshift"):
        observe_optical(disc(), 40.0, "lsst_y10", "r", 1e-5)


def test_light_that_is_none():
    bad = disc()
    bad[3, 4], bad[5, 6] = np.nan, -1.0
    with pytest.raises(
        ObservationError, match=r"1 values that are not finite and 1 negative ones.*mask what is missing"
    ):
        observe_optical(bad, 40.0, "sdss", "r", 0.1)
    with pytest.raises(ObservationError, match="not of shape"):
        observe_optical(np.ones((2, 8, 8)), 40.0, "sdss", "r", 0.1)
    with pytest.raises(ObservationError, match=r"pixel of -0\.5 kpc"):
        observe_optical(disc(), -40.0, "sdss", "r", 0.1)
    with pytest.raises(ObservationError, match=r"unknown band of light 'R'.*Did you mean 'r'"):
        apparent_flux(disc(), 1.0, Placement(0.1), "R")
    with pytest.raises(ObservationError, match="too bright to count; is the light in Lsun/kpc²"):
        observe_optical(disc(total=1e30), 40.0, "sdss", "r", 0.1)


def test_names_that_do_not_exist():
    with pytest.raises(SurveyError, match=r"unknown survey 'sdsss'.*Did you mean 'sdss'"):
        observe_optical(disc(), 40.0, "sdsss", "r", 0.1)
    with pytest.raises(SurveyError, match=r"unknown band 'F814'.*Did you mean 'f814w'"):
        observe_optical(disc(), 40.0, "hst_cosmos", "F814", 0.1)
    with pytest.raises(SurveyError, match="'nvss' is a radio one"):
        observe_optical(disc(), 40.0, "nvss", "r", 0.1)


def test_redshift_zero_and_a_psf_that_does_not_fit():
    with pytest.raises(SkyError, match="redshift 0"):
        observe_optical(disc(), 40.0, "sdss", "r", 0.0)
    with pytest.raises(
        ResamplingError, match=r"kernel of \d+ × \d+ pixels does not fit a map of \d+ × \d+.*larger field"
    ):
        observe_optical(disc(), 40.0, "sdss", "r", 2.0)
    with pytest.raises(ResamplingError, match="does not fit"):
        observe_optical(disc(), 40.0, "sdss", "r", 0.3, psf=gaussian_kernel(20.0))


def test_presets_without_a_zero_point_or_with_a_negative_psf(tmp_path):
    text = (shipped_config("surveys") / "sdss.yaml").read_text()
    data = yaml.safe_load(text)
    del data["bands"]["r"]["zero_point"]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(SurveyError, match=r"mine\.yaml lacks 'bands\.r\.zero_point'"):
        load_survey(path)
    for value in (0, -1.2):
        data = yaml.safe_load(text)
        data["bands"]["r"]["fwhm"]["value"] = value
        path.write_text(yaml.safe_dump(data))
        with pytest.raises(SurveyError, match=r"'bands\.r\.fwhm' is .*must be positive"):
            load_survey(path)


def test_star_widths_are_measured():
    assert kernel_fwhm(gaussian_kernel(5.0, sampled=True), 0.2) == pytest.approx(1.0, rel=0.02)
