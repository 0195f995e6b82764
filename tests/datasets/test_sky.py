import numpy as np
import pytest
from astropy import units
from astropy.cosmology import FlatLambdaCDM, Planck15, z_at_value
from astropy.wcs import WCS

from skyshift.datasets.sky import Placement, SkyError, wcs_header


def test_distances_are_those_of_the_integral():
    """Against D_C = c/H0 ∫ dz/E(z) by Simpson's rule, and the textbook relation of the distances."""
    place = Placement(0.7)
    z = np.linspace(0.0, 0.7, 2001)
    inverse = 1.0 / np.sqrt(0.3089 * (1 + z) ** 3 + 0.6911)
    weights = np.ones(2001)
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    comoving = 299792.458 / 67.74 * (weights * inverse).sum() * (z[1] - z[0]) / 3.0
    assert place.luminosity_distance_mpc == pytest.approx(1.7 * comoving, rel=1e-9)
    assert place.angular_diameter_distance_mpc == pytest.approx(comoving / 1.7, rel=1e-9)
    assert place.distance_modulus == pytest.approx(5 * np.log10(1.7 * comoving * 1e5), abs=1e-9)


def test_scale_agrees_with_astropy_and_with_planck15():
    place = Placement(0.05)
    own = FlatLambdaCDM(67.74, 0.3089, Tcmb0=0).kpc_proper_per_arcmin(0.05).to_value(units.kpc / units.arcsec)
    assert place.kpc_per_arcsec == pytest.approx(own, rel=1e-12)
    # Planck15 has h = 0.6774, Ω_m = 0.3075, neutrinos and radiation: a thousandth at this redshift.
    assert place.kpc_per_arcsec == pytest.approx(
        Planck15.kpc_proper_per_arcmin(0.05).to_value(units.kpc / units.arcsec), rel=1e-3
    )
    assert place.kpc(place.arcsec(12.3)) == pytest.approx(12.3)


def test_small_redshift_is_hubbles_law():
    """D = cz/H0 and one arcsec is D / 206265, to order z."""
    place = Placement(1e-4)
    assert place.luminosity_distance_mpc == pytest.approx(299792.458e-4 / 67.74, rel=2e-4)
    assert place.kpc_per_arcsec == pytest.approx(place.luminosity_distance_mpc * 1e3 / 206264.8, rel=3e-4)


def test_galaxies_look_smallest_where_they_should():
    """The angular diameter distance of this universe turns over at z = 1.6."""
    scales = {z: Placement(z).kpc_per_arcsec for z in (1.0, 1.6, 3.0)}
    assert scales[1.6] > scales[1.0]
    assert scales[1.6] > scales[3.0]
    turn = z_at_value(Placement(1).cosmology.angular_diameter_distance, 1700 * units.Mpc, zmax=1.5)
    assert float(turn) < 1.6


def test_dimming_of_an_extended_source():
    """Flux falls as D_L⁻², solid angle as D_A⁻²: what is left is (1 + z)⁻⁴, and in f_ν one (1 + z) less."""
    place = Placement(0.9)
    ratio = (place.angular_diameter_distance_mpc / place.luminosity_distance_mpc) ** 2
    assert place.bolometric_dimming == pytest.approx(ratio, rel=1e-12)
    assert place.ab_dimming == pytest.approx(ratio * 1.9, rel=1e-12)
    assert place.band_shift == pytest.approx(-2.5 * np.log10(place.ab_dimming / place.bolometric_dimming), abs=1e-12)


@pytest.mark.parametrize("redshift", [0.0, -0.1, float("nan"), float("inf")])
def test_no_galaxy_at_redshift_zero(redshift):
    with pytest.raises(SkyError, match=r"cannot be observed at redshift .*choose the redshift"):
        Placement(redshift)


def test_a_universe_that_is_none_is_refused():
    with pytest.raises(SkyError, match=r"h = 0 and omega_matter = 0\.3089"):
        Placement(0.1, hubble=0.0)
    with pytest.raises(SkyError, match="no flat universe"):
        Placement(0.1, omega_matter=1.2)


@pytest.mark.parametrize("shape", [(64, 64), (33, 50)])
def test_wcs_is_centred_with_east_to_the_left(shape):
    header = wcs_header(shape, 0.5, ra=150.1, dec=2.2)
    wcs = WCS(header)
    centre = wcs.pixel_to_world((shape[1] - 1) / 2, (shape[0] - 1) / 2)
    assert centre.ra.deg == pytest.approx(150.1, abs=1e-10)
    assert centre.dec.deg == pytest.approx(2.2, abs=1e-10)
    left = wcs.pixel_to_world((shape[1] - 1) / 2 - 10, (shape[0] - 1) / 2)
    up = wcs.pixel_to_world((shape[1] - 1) / 2, (shape[0] - 1) / 2 + 10)
    assert left.separation(centre).arcsec == pytest.approx(5.0, rel=1e-6)
    assert left.ra > centre.ra
    assert up.dec > centre.dec
    assert wcs.proj_plane_pixel_scales()[0].to_value("arcsec") == pytest.approx(0.5)


def test_wcs_refuses_no_pixel_and_no_direction():
    with pytest.raises(SkyError, match="pixel of 0 arcsec"):
        wcs_header((8, 8), 0.0)
    with pytest.raises(SkyError, match="dec from -90 to 90"):
        wcs_header((8, 8), 1.0, dec=91.0)
