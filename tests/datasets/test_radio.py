"""Radio observations: units from first principles, conserved flux, noise as a real cube has it, the primary beam."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
from astropy import constants, units
from astropy.convolution import convolve_fft
from astropy.io import fits

from skyshift.datasets.beams import beam_area
from skyshift.datasets.observation import ObservationError
from skyshift.datasets.radio import (
    HI_FREQUENCY,
    hi_flux,
    in_kelvin,
    kelvin_per_jansky,
    observe_radio,
    surface_density_of_brightness,
    velocity_width,
)
from skyshift.datasets.radio_beams import beam_response, correlated_noise, primary_beam
from skyshift.datasets.resampling import ResamplingError
from skyshift.datasets.sky import Placement, SkyError
from skyshift.datasets.surveys import RadioSurvey, SurveyError, get_survey, radio_survey
from skyshift.datasets.visibilities import antenna_layout, uv_coverage, uv_tracks

CUBE = "hi/ngc6946_wsrt.fits"


def meerkat(**changes: object) -> RadioSurvey:
    return dataclasses.replace(radio_survey("meerkat"), **changes)


def disc(pixels: int = 64, peak: float = 2e7) -> np.ndarray:
    """An inclined exponential disc that ends well inside of the map, Msun/kpc²."""
    y, x = np.mgrid[:pixels, :pixels] - 0.5 * (pixels - 1)
    radius = np.hypot(x, y / 0.6) / pixels
    return np.where(radius < 0.3, peak * np.exp(-radius / 0.1), 0.0)


def half_width(noise: np.ndarray) -> float:
    """FWHM in pixels of the autocorrelation of maps (n, h, w): where it crosses ½, linearly between lags, both axes."""
    noise = noise - noise.mean(axis=(1, 2), keepdims=True)
    variance = (noise**2).mean()
    widths = []
    for axis in (1, 2):
        maps = np.moveaxis(noise, axis, 1)
        lags = [1.0] + [(maps[:, :-k] * maps[:, k:]).mean() / variance for k in range(1, 12)]
        k = next(k for k in range(12) if lags[k] < 0.5)
        widths.append(2.0 * (k - 1 + (lags[k - 1] - 0.5) / (lags[k - 1] - lags[k])))
    return float(np.mean(widths))


# Units.


def test_kelvin_agree_with_astropy_and_with_the_number_that_is_quoted():
    beam, frequency = 2.0 * np.pi * (10 * units.arcsec) * (7 * units.arcsec) / (8 * np.log(2)), 1.3 * units.GHz
    expected = (1 * units.Jy / beam).to(units.K, units.brightness_temperature(frequency))
    assert kelvin_per_jansky(1.3e9, 10, 7) == pytest.approx(expected.value, rel=1e-12)
    # T = 1.222e3 S [mJy] / (ν² θ θ): four digits
    assert kelvin_per_jansky(1e9, 1, 1) / 1e3 == pytest.approx(1.222e3, rel=2e-4)


def test_line_flux_from_the_einstein_coefficient():
    """¾ A10 h ν N_H photons' energy at D_L, ∫S dν = F, dv = c dν / ν_obs: 2.343e5, of which 2.356e5 is 0.55 % away."""
    place = Placement(0.05)
    atoms = 1e9 * units.Msun / (constants.m_p + constants.m_e)
    power = 0.75 * 2.8843e-15 / units.s * constants.h * HI_FREQUENCY * units.Hz * atoms
    received = power / (4 * np.pi * (place.luminosity_distance_mpc * units.Mpc) ** 2)
    expected = (received * constants.c * 1.05 / (HI_FREQUENCY * units.Hz)).to_value("Jy km/s")
    assert hi_flux(1e9, place) == pytest.approx(expected, rel=6e-3)


@pytest.mark.parametrize("redshift", [0.003, 0.05, 0.4])
def test_brightness_and_mass_give_the_same_flux_as_rayleigh_jeans(redshift):
    """∫S dv = 2 k ν_obs² Ω / c² ∫T_b dv / (1 + z): needs no HI mass. 1.823e18 and 2.356e5 agree to 1 %."""
    place = Placement(redshift)
    frequency = HI_FREQUENCY / (1 + redshift) * units.Hz
    solid_angle = ((1 * units.arcsec) ** 2).to(units.sr)
    jansky = 2 * constants.k_B * 100 * units.K * frequency**2 / constants.c**2 * solid_angle / units.sr / (1 + redshift)
    mass = surface_density_of_brightness(100.0) * place.kpc_per_arcsec**2
    assert hi_flux(mass, place) == pytest.approx(jansky.to_value("Jy"), rel=0.01)


def test_column_density():
    """1 Msun/pc² is 1.248e20 cm⁻²: 1.823e18 cm⁻² are 0.01461 Msun/pc² (hydrogen atoms, no helium)."""
    assert surface_density_of_brightness(1.0) / 1e6 == pytest.approx(1.823e18 / 1.248e20, rel=1e-3)


def test_both_kinds_of_maps_of_one_galaxy_look_alike():
    hydrogen = disc()
    brightness = hydrogen / surface_density_of_brightness(1.0)
    first = observe_radio(hydrogen, "Msun / kpc2", 60, "meerkat", 0.02, seed=3)
    second = observe_radio(brightness, "K km / s", 60, "meerkat", 0.02, seed=3)
    scaled = observe_radio(hydrogen * 1e-6, "Msun / pc2", 60, "meerkat", 0.02, seed=3)
    np.testing.assert_allclose(second.noisy, first.noisy, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(scaled.noisy, first.noisy, rtol=1e-5, atol=1e-9)


# The map.


@pytest.mark.parametrize("redshift", [0.01, 0.03, 0.1])
def test_the_flux_arrives(redshift):
    """Σ map / beam area = ∫S dv, through rebinning and beam; float32 and the cut beam leave 1e-5."""
    values, place = disc(), Placement(redshift)
    wide = observe_radio(values, "Msun / kpc2", 60, "meerkat", redshift, seed=0, shape=(160, 160), primary="none")
    mass = values.sum() * (60 / 64) ** 2
    total = wide.clean.sum(dtype=np.float64) * wide.pixel_arcsec**2 / beam_area(15)
    assert total == pytest.approx(hi_flux(mass, place), rel=1e-5)


def test_the_beam_agrees_with_astropy():
    """The same kernel by convolve_fft: rounding of float32."""
    survey = meerkat(beam_major_arcsec=20.0, beam_minor_arcsec=12.0, beam_angle_deg=30.0)
    rng = np.random.default_rng(0)
    sky = np.zeros((81, 81))
    sky[20:60, 20:60] = rng.exponential(1e-3, (40, 40))
    side = Placement(0.05).kpc(81 * 3.0)
    seen = observe_radio(sky, "Jy", side, survey, 0.05, seed=0, primary="none", shape=(81, 81))
    kernel = beam_response(20.0, 12.0, 30.0, 3.0)
    expected = convolve_fft(sky, kernel, boundary="fill", fill_value=0.0, normalize_kernel=False, allow_huge=True)
    np.testing.assert_allclose(seen.clean, expected, atol=2e-6 * expected.max())


def test_a_point_source_shows_its_flux_and_the_beam_its_angle():
    survey = meerkat(beam_major_arcsec=24.0, beam_minor_arcsec=12.0, beam_angle_deg=30.0)
    sky = np.zeros((81, 81))
    sky[40, 40] = 0.02
    side = Placement(0.05).kpc(81 * 3.0)
    seen = observe_radio(sky, "Jy", side, survey, 0.05, seed=0, primary="none", shape=(81, 81))
    assert seen.clean[40, 40] == pytest.approx(0.02, rel=1e-6)
    y, x = (np.mgrid[:81, :81] - 40) * 3.0
    weight = seen.clean / seen.clean.sum()
    moments = np.array([[(weight * x * x).sum(), (weight * x * y).sum()], [0, (weight * y * y).sum()]])
    moments[1, 0] = moments[0, 1]
    least, most = np.sqrt(np.linalg.eigvalsh(moments) * 8 * np.log(2))
    assert (least, most) == pytest.approx((12.0, 24.0), rel=1e-3)
    # East of north: up and to the left, so x and y go against each other
    along = np.linalg.eigh(moments)[1][:, 1]
    assert np.rad2deg(np.arctan2(-along[0], along[1])) % 180 == pytest.approx(30.0, abs=0.1)
    assert seen.unit == "Jy / beam"
    assert seen.beam_arcsec == pytest.approx((24.0, 12.0, 30.0))


def test_farther_galaxies_are_smaller_and_fainter():
    near = observe_radio(disc(), "Msun / kpc2", 60, "meerkat", 0.02, seed=0)
    far = observe_radio(disc(), "Msun / kpc2", 60, "meerkat", 0.04, seed=0)
    ratio = Placement(0.02).kpc_per_arcsec / Placement(0.04).kpc_per_arcsec
    assert far.clean.shape[0] == pytest.approx(near.clean.shape[0] * ratio, abs=1.0)
    assert far.clean.max() < near.clean.max()


# Noise.


def test_noise_has_the_rms_that_was_asked_for_and_the_beam_as_its_autocorrelation():
    """4 Mpix of beams of 5 pixels: 1e5 independent ones, so the variance is known to 0.5 %, the width to 1 %."""
    noise = correlated_noise((2000, 2000), 15.0, 15.0, 0.0, 3.0, 5)
    assert noise.std() == pytest.approx(1.0, rel=0.01)
    assert abs(noise.mean()) < 0.02
    beam = beam_response(15.0, 15.0, 0.0, 3.0)
    centre = beam.shape[0] // 2
    for lag in (1, 2, 3, 5, 8):
        found = (noise[:, :-lag] * noise[:, lag:]).mean() / noise.var()
        assert found == pytest.approx(beam[centre, centre + lag], abs=0.015)
    turned = correlated_noise((1000, 1000), 30.0, 12.0, 30.0, 3.0, 5)
    beam = beam_response(30.0, 12.0, 30.0, 3.0)
    centre = beam.shape[0] // 2
    found = (turned[:-3, 2:] * turned[3:, :-2]).mean() / turned.var()  # 3 up and 2 left
    assert found == pytest.approx(beam[centre + 3, centre - 2], abs=0.02)


def test_noise_is_as_strong_at_the_edge_as_in_the_middle():
    """A convolution of a map of its own size would lose half of the variance at the edge."""
    many = np.stack([correlated_noise((24, 24), 15.0, 15.0, 0.0, 3.0, seed) for seed in range(2000)])
    spread = many.std(axis=0)
    assert np.abs(spread - 1).max() < 0.08  # 2000 draws: 1.6 % each, the largest of 576 under 5 σ


def test_the_seed_decides():
    one, again, other = (observe_radio(disc(), "Msun / kpc2", 60, "meerkat", 0.02, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.noisy, again.noisy)
    np.testing.assert_array_equal(one.clean, other.clean)
    assert np.abs(one.noisy - other.noisy).max() > one.sigma.min()


def test_sigma_is_the_noise_of_a_sum_of_channels():
    """√n channels of σ each, times the width of one: the radiometer equation over the whole width."""
    survey, z = radio_survey("meerkat"), 0.02
    frequency = HI_FREQUENCY / (1 + z)
    channel = velocity_width(survey.bandwidth_hz, frequency)
    assert channel == pytest.approx(5.6, abs=0.05)
    for width in (100.0, 300.0):
        seen = observe_radio(disc(), "Msun / kpc2", 60, survey, z, seed=0, width_kms=width, primary="none")
        whole = survey.noise(width / channel * survey.bandwidth_hz) * width
        assert seen.sigma[0, 0] == pytest.approx(whole, rel=1e-6)
        added = seen.noisy - seen.clean
        assert added.std() == pytest.approx(whole, rel=0.25)  # some 50 beams


def test_ska_is_deeper_than_meerkat():
    seen = {name: observe_radio(disc(), "Msun / kpc2", 60, name, 0.03, seed=0) for name in ("meerkat", "ska_mid_aa4")}
    np.testing.assert_allclose(seen["meerkat"].clean, seen["ska_mid_aa4"].clean, rtol=2e-3, atol=1e-7)
    assert seen["meerkat"].sigma.min() / seen["ska_mid_aa4"].sigma.min() == pytest.approx(173.4 / 44.97, rel=1e-3)


# The primary beam.


def test_half_power_at_six_tenths_of_a_wavelength_over_the_dish():
    survey = meerkat(pixel_arcsec=7.0)
    fwhm = np.rad2deg(1.2 * constants.c.value / survey.frequency_hz / 13.5) * 3600
    assert fwhm / 3600 == pytest.approx(1.075, abs=0.001)  # degrees
    half = round(0.5 * fwhm / 7.0)
    response = primary_beam(survey, (3, 2 * half + 1))
    assert response[1, half] == 1.0
    assert response[1, 0] == pytest.approx(0.5, abs=0.002)
    offset = primary_beam(survey, (3, 2 * half + 1), pointing=(half * 7.0, 0.0))
    assert offset[1, -1] == 1.0
    assert offset[1, half] == pytest.approx(0.5, abs=0.002)
    # SKA dishes see less of the sky than those of MeerKAT, the mixed array something between
    away = {}
    for name in ("meerkat", "ska_mid_aa4"):
        array = dataclasses.replace(radio_survey(name), pixel_arcsec=7.0)
        away[name] = primary_beam(array, (3, 2 * half + 1))[1, 0]
    alone = dataclasses.replace(survey, dishes=radio_survey("ska_mid_aa4").dishes[1:])
    assert primary_beam(alone, (3, 2 * half + 1))[1, 0] < away["ska_mid_aa4"] < away["meerkat"]


def test_correction_restores_the_flux_and_raises_the_noise():
    sky = np.zeros((121, 121))
    sky[60, 60] = sky[60, 110] = 0.02
    survey = meerkat(pixel_arcsec=20.0, beam_major_arcsec=60.0, beam_minor_arcsec=60.0)
    side = Placement(0.05).kpc(121 * 20.0)
    seen = {
        how: observe_radio(sky, "Jy", side, survey, 0.05, seed=4, primary=how, shape=(121, 121))
        for how in ("none", "attenuated", "corrected")
    }
    response = primary_beam(survey, (121, 121))
    assert 0.7 < response[60, 110] < 0.9
    assert seen["attenuated"].clean[60, 110] == pytest.approx(0.02 * response[60, 110], rel=1e-5)
    assert seen["corrected"].clean[60, 110] == pytest.approx(0.02, rel=1e-5)
    flat = seen["attenuated"].sigma
    assert flat.min() == flat.max()
    np.testing.assert_allclose(seen["corrected"].sigma * response, flat, rtol=1e-6)
    np.testing.assert_allclose(seen["corrected"].noisy * response, seen["attenuated"].noisy, rtol=1e-4, atol=1e-8)
    # A mosaic has uniform noise, a single pointing is corrected
    mosaic = observe_radio(sky[:61, :61], "Jy", side / 2, "nvss", 0.05, seed=0).sigma
    assert mosaic.min() == mosaic.max() == pytest.approx(0.45e-3)
    assert seen["corrected"].header["PRIMBEAM"] == "corrected"


# The real WSRT cube of NGC 6946.


@pytest.fixture(scope="module")
def cube(shared: Path) -> tuple[np.ndarray, fits.Header]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(shared / CUBE) as hdus:
            return hdus[0].data.astype(np.float64), hdus[0].header


def test_the_preset_is_that_of_the_real_cube(cube):
    """Beam from BMAJ and BMIN (degrees) and from the RESTOR line of its history; 0.68 mJy/beam is 0.10 K."""
    _, cards = cube
    survey = radio_survey("wsrt")
    assert survey.beam_major_arcsec == pytest.approx(3600 * cards["BMAJ"], abs=0.05)
    assert survey.beam_minor_arcsec == pytest.approx(3600 * cards["BMIN"], abs=0.05)
    assert survey.beam_angle_deg == pytest.approx(cards["BPA"], abs=0.05)
    assert any("6.560E+01 x  6.359E+01 arcsec" in line for line in cards["HISTORY"])
    assert survey.pixel_arcsec == pytest.approx(3600 * cards["CDELT2"], rel=1e-4)
    assert velocity_width(survey.bandwidth_hz, cards["FREQ0"]) == pytest.approx(cards["CDELT3"], rel=2e-3)
    kelvin = kelvin_per_jansky(cards["FREQ0"], 3600 * cards["BMAJ"], 3600 * cards["BMIN"])
    assert 0.68e-3 * kelvin == pytest.approx(0.10, abs=0.005)


def test_noise_of_the_real_cube_from_its_system(cube):
    """The cube's history: six tracks of 12 h, baselines below 2 kλ, uniform weights, then Hanning smoothing, whose
    (¼, ½, ¼) leaves √(3/8) of the noise and correlates neighbours by 2/3.

    Predicted for one standard configuration 0.47 mJy/beam, found 0.51 at velocities without line. The system
    temperature is known to 10 %, and the other tracks had other spacings: 25 %. Natural weights of all baselines would
    give 0.14.
    """
    data, _ = cube
    quiet = data[86:101]
    found = np.median(np.abs(quiet - np.median(quiet))) * 1.4826
    assert found == pytest.approx(0.51e-3, abs=0.02e-3)
    # the preset is that of its cube: beam, pixels and noise
    assert radio_survey("wsrt").noise() == pytest.approx(found, abs=0.005e-3)
    neighbours = np.mean(quiet[1:] * quiet[:-1]) / np.mean(quiet**2)
    assert neighbours == pytest.approx(2 / 3, abs=0.1)

    survey = radio_survey("wsrt")
    layout = antenna_layout("wsrt")
    uv = uv_tracks(layout, survey.latitude_deg, 60.15, survey.frequency_hz, 12.0)
    short = uv[np.hypot(*uv.T) < 2000.0]
    array = dataclasses.replace(survey, rms_jy=None).noise()  # natural weights of all baselines
    assert array == pytest.approx(0.23e-3, abs=0.005e-3)
    used = array * np.sqrt(len(uv) / len(short))
    predicted = used * uv_coverage(short, (200, 200), 25.8, "uniform").noise_factor() * np.sqrt(3 / 8)
    assert predicted == pytest.approx(found, rel=0.25)


def test_noise_is_correlated_as_in_the_real_cube(cube):
    """FWHM of the autocorrelation: 68 arcsec in the cube, as in the mock, for a beam of 65; tolerance 10 %.

    The cube's weights are uniform, so its noise follows a dirty beam with negative sidelobes, which the mock lacks; the
    core is the beam. White noise convolved with the beam would be √2 wider, 92 arcsec.
    """
    data, _ = cube
    survey = radio_survey("wsrt")
    real = half_width(data[86:101]) * survey.pixel_arcsec
    beam = (survey.beam_major_arcsec, survey.beam_minor_arcsec, survey.beam_angle_deg)
    mock = half_width(np.stack([correlated_noise((100, 100), *beam, survey.pixel_arcsec, s) for s in range(15)]))
    assert mock * survey.pixel_arcsec == pytest.approx(real, rel=0.10)
    assert real == pytest.approx(65.0, rel=0.10)
    assert real < 0.8 * 65.0 * np.sqrt(2)


def test_the_real_cube_in_kelvin(cube):
    data, cards = cube
    survey = radio_survey("wsrt")
    values = np.full((50, 50), 1e-3)
    seen = observe_radio(values, "Jy", 100.0, survey, 0.05, seed=0, primary="none", shape=(60, 60))
    beam = np.deg2rad(np.array([cards["BMAJ"], cards["BMIN"]])).prod() * np.pi / (4 * np.log(2)) * units.sr
    factor = (1 * units.Jy / beam).to_value("K", units.brightness_temperature(cards["FREQ0"] * units.Hz))
    kelvin = in_kelvin(seen)
    assert kelvin.unit == "K"
    np.testing.assert_allclose(
        kelvin.clean, seen.clean * factor, rtol=2e-3
    )  # the preset's beam is rounded to 0.1 arcsec
    assert np.nanmax(data) * factor == pytest.approx(22.0, rel=0.1)


# What cannot be.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beam_major_arcsec": -15.0, "beam_minor_arcsec": -15.0}, "all three must be positive"),
        ({"beam_major_arcsec": 0.0, "beam_minor_arcsec": 0.0}, "all three must be positive"),
        ({"pixel_arcsec": 0.0}, "all three must be positive"),
        ({"beam_minor_arcsec": 20.0}, "minor axis, 20 arcsec, is larger than its major, 15"),
        ({"pixel_arcsec": 8.0}, r"the beam spans 1\.9 pixels; .* needs 2 or more \(pixels of at most 7\.5 arcsec\)"),
        ({"pixel_arcsec": 30.0}, r"the beam spans 0\.5 pixels"),
    ],
)
def test_beams_that_are_none(changes, message):
    with pytest.raises(ObservationError, match=message):
        observe_radio(disc(), "Msun / kpc2", 60, meerkat(**changes), 0.02, seed=0)


def test_a_beam_that_does_not_fit_the_field():
    with pytest.raises(ResamplingError, match="does not fit a map of"):
        observe_radio(disc(), "Jy", 60, "nvss", 0.1, seed=0)
    assert observe_radio(disc(), "Jy", 60, "nvss", 0.1, seed=0, shape=(40, 40)).clean.shape == (40, 40)


def test_redshift_zero_and_an_unknown_survey():
    with pytest.raises(SkyError, match="redshift 0: its distance would be zero"):
        observe_radio(disc(), "Msun / kpc2", 60, "meerkat", 0.0, seed=0)
    with pytest.raises(SurveyError, match="Did you mean 'meerkat'"):
        observe_radio(disc(), "Msun / kpc2", 60, "MeerCat", 0.02, seed=0)
    with pytest.raises(SurveyError, match="bandwidth of 0"):
        observe_radio(disc(), "Jy", 60, meerkat(bandwidth_hz=0.0), 0.02, seed=0)
    with pytest.raises(SurveyError, match="time on source of 0"):
        observe_radio(disc(), "Jy", 60, meerkat(time_s=0.0), 0.02, seed=0)


def test_maps_that_are_none():
    holed = disc()
    holed[3, 4:6] = np.nan
    before = holed.copy()
    with pytest.raises(ObservationError, match="2 of 4096 pixels are not finite, which a beam would smear"):
        observe_radio(holed, "Msun / kpc2", 60, "meerkat", 0.02, seed=0)
    np.testing.assert_array_equal(holed, before)
    with pytest.raises(ObservationError, match=r"two axes, not shape \(2, 3, 4\)"):
        observe_radio(np.ones((2, 3, 4)), "Msun / kpc2", 60, "meerkat", 0.02, seed=0)
    with pytest.raises(ObservationError, match="not 'Msun'"):
        observe_radio(disc(), "Msun", 60, "meerkat", 0.02, seed=0)
    with pytest.raises(ObservationError, match="'cakes' is no unit"):
        observe_radio(disc(), "cakes", 60, "meerkat", 0.02, seed=0)
    with pytest.raises(ObservationError, match="a map of 0 kpc has no size"):
        observe_radio(disc(), "Msun / kpc2", 0, "meerkat", 0.02, seed=0)


def test_gas_is_not_negative_and_seeds_neither():
    for unit in ("Msun / kpc2", "K km / s"):
        with pytest.raises(ObservationError, match="1 of 4096 pixels of the map are negative; gas"):
            observe_radio(np.where(np.arange(4096) == 7, -1.0, 1.0).reshape(64, 64), unit, 60, "meerkat", 0.02, seed=0)
    for seed in (-1, 1.5):
        with pytest.raises(ObservationError, match=rf"the seed {seed}; give a whole number, 0 or more"):
            observe_radio(disc(), "Msun / kpc2", 60, "meerkat", 0.02, seed=seed)


def test_a_field_that_fits_no_memory_is_refused_first():
    """60 kpc at redshift 1e-5 span 75 degrees: 1e5² pixels of 3 arcsec."""
    with pytest.raises(ObservationError, match=r"too large to be made .* redshift 1e-05.* smaller shape \(--pixels\)"):
        observe_radio(disc(), "Msun / kpc2", 60, "meerkat", 1e-5, seed=0)
    with pytest.raises(ObservationError, match="a field of 20000 × 20000 pixels"):
        observe_radio(disc(), "Msun / kpc2", 60, "meerkat", 0.02, seed=0, shape=(20000, 20000))
    with pytest.raises(ObservationError, match="a field of 0 × 64 pixels is none"):
        observe_radio(disc(), "Msun / kpc2", 60, "meerkat", 0.02, seed=0, shape=(0, 64))


def test_lines_out_of_the_band_or_narrower_than_a_channel():
    with pytest.raises(
        ObservationError, match=r"at redshift 0\.8 .* 789\.1 MHz, outside of the band of 'meerkat', 900"
    ):
        observe_radio(disc(), "Msun / kpc2", 60, "meerkat", 0.8, seed=0, shape=(60, 60))
    with pytest.raises(ObservationError, match=r"at least one channel of 'meerkat', 5\.6 km/s"):
        observe_radio(disc(), "Msun / kpc2", 60, "meerkat", 0.02, seed=0, width_kms=2.0)
    with pytest.raises(ObservationError, match="primary beam of 'meerkat' has fallen to"):
        observe_radio(disc(), "Msun / kpc2", 60, "meerkat", 0.02, seed=0, pointing=(7000.0, 0.0))
    with pytest.raises(ObservationError, match="'none', 'attenuated' or 'corrected', not 'fixed'"):
        observe_radio(disc(), "Msun / kpc2", 60, "meerkat", 0.02, seed=0, primary="fixed")  # type: ignore[arg-type]


def test_kelvin_need_a_beam_and_a_flux_in_it():
    seen = observe_radio(disc(), "Msun / kpc2", 60, "meerkat", 0.02, seed=0)
    with pytest.raises(ObservationError, match="header lacks BMAJ"):
        in_kelvin(dataclasses.replace(seen, header={}))
    with pytest.raises(ObservationError, match="not 'Jy'"):
        in_kelvin(dataclasses.replace(seen, unit="Jy"))
    assert isinstance(get_survey("meerkat"), RadioSurvey)
