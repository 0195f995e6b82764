"""Where on the sky a simulated galaxy is put: angular size, distance and dimming at a chosen redshift.

    θ = ℓ / D_A,   D_L = (1 + z)² D_A,   I_obs = I_em (1 + z)⁻⁴ (bolometric)

Lengths of a simulated galaxy are physical (not comoving) kpc. The cosmology is a flat ΛCDM without radiation, as that
of IllustrisTNG (h = 0.6774, Ω_m = 0.3089; Planck Collaboration XIII 2016). Moving a galaxy to another redshift than
that of its snapshot changes how large and how bright it looks, not what it is.

References:
    Hogg 1999, astro-ph/9905116 (distances).
    Tolman 1930, PNAS 16, 511 (dimming).
    Hogg, Baldry, Blanton & Eisenstein 2002, astro-ph/0210394, eq. 8 and 13 (AB magnitudes and K corrections).
    Planck Collaboration XIII 2016, A&A 594, A13 (arXiv:1502.01589).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from astropy import units
from astropy.cosmology import FlatLambdaCDM
from astropy.io.fits import Header

from skyshift.errors import SkyshiftError


class SkyError(SkyshiftError):
    """A galaxy cannot be put where it was asked to be, or a map has no sound place on the sky."""


@dataclass(frozen=True)
class Placement:
    """A galaxy put at a redshift.

    Attributes:
        redshift: Of the mock observation, positive.
        hubble: h, the Hubble constant in 100 km/s/Mpc.
        omega_matter: Ω_m of a flat ΛCDM universe.

    Raises:
        SkyError: The redshift is not positive, or the cosmology is none.
    """

    redshift: float
    hubble: float = 0.6774
    omega_matter: float = 0.3089

    def __post_init__(self) -> None:
        if not (np.isfinite(self.redshift) and self.redshift > 0.0):
            raise SkyError(
                f"a galaxy cannot be observed at redshift {self.redshift:g}: its distance would be zero or less, its "
                f"size and flux infinite; choose the redshift of the mock observation, for instance 0.01 (a snapshot "
                f"at z = 0 is placed at a small redshift)"
            )
        if not (self.hubble > 0.0 and 0.0 < self.omega_matter <= 1.0):
            raise SkyError(
                f"no flat universe has h = {self.hubble:g} and omega_matter = {self.omega_matter:g}; "
                f"IllustrisTNG has h = 0.6774 and omega_matter = 0.3089"
            )

    @cached_property
    def cosmology(self) -> FlatLambdaCDM:
        """The cosmology, from astropy, without radiation."""
        return FlatLambdaCDM(H0=100.0 * self.hubble, Om0=self.omega_matter, Tcmb0=0.0)

    @cached_property
    def luminosity_distance_mpc(self) -> float:
        """D_L in Mpc."""
        return float(self.cosmology.luminosity_distance(self.redshift).to_value(units.Mpc))

    @property
    def angular_diameter_distance_mpc(self) -> float:
        """D_A = D_L / (1 + z)² in Mpc."""
        return self.luminosity_distance_mpc / (1.0 + self.redshift) ** 2

    @property
    def distance_modulus(self) -> float:
        """5 log10(D_L / 10 pc), magnitudes."""
        return 5.0 * float(np.log10(self.luminosity_distance_mpc)) + 25.0

    @property
    def kpc_per_arcsec(self) -> float:
        """Physical kpc that one arcsec spans."""
        return self.angular_diameter_distance_mpc * 1e3 * float(np.pi) / 648000.0

    def arcsec(self, kpc: float) -> float:
        """Angle that a physical length in kpc spans, arcsec."""
        return kpc / self.kpc_per_arcsec

    def kpc(self, arcsec: float) -> float:
        """Physical length in kpc that an angle in arcsec spans."""
        return arcsec * self.kpc_per_arcsec

    @property
    def bolometric_dimming(self) -> float:
        """(1 + z)⁻⁴: observed over emitted surface brightness, energy over all wavelengths."""
        return (1.0 + self.redshift) ** -4

    @property
    def ab_dimming(self) -> float:
        """(1 + z)⁻³: the same per unit of frequency, at ν_obs = ν_em / (1 + z).

        What an AB magnitude measures is f_ν(ν_obs) = (1 + z) L_ν(ν_em) / (4π D_L²): the band is narrower by (1 + z)
        when it arrives, so the light in it is denser in frequency by as much.
        """
        return (1.0 + self.redshift) ** -3

    @property
    def band_shift(self) -> float:
        """K = -2.5 log10(1 + z), magnitudes, with m = M + DM + K.

        The correction of a band that is seen shifted: rest-frame light in a band, observed through that band
        stretched by (1 + z). It is also that of a spectrum flat in f_ν seen through the same band.
        """
        return -2.5 * float(np.log10(1.0 + self.redshift))


def wcs_header(shape: tuple[int, int], pixel_arcsec: float, ra: float = 0.0, dec: float = 0.0) -> Header:
    """World coordinates of a map that lies centred on a direction: gnomonic, north up, east to the left.

    Args:
        shape: (height, width) of the map, pixels.
        pixel_arcsec: Side of a pixel, arcsec.
        ra: Right ascension of the centre of the map, degrees (ICRS).
        dec: Declination of the same, degrees.

    Returns:
        FITS cards. ``CRPIX`` is the centre of the map, counted from 1 at the centre of the first pixel.

    Raises:
        SkyError: The pixel or the direction is none.
    """
    if not (np.isfinite(pixel_arcsec) and pixel_arcsec > 0.0):
        raise SkyError(f"a pixel of {pixel_arcsec:g} arcsec has no size on the sky; give its side in arcsec, above 0")
    if not (np.isfinite(ra) and np.isfinite(dec) and abs(dec) <= 90.0):
        raise SkyError(f"there is no direction ra = {ra:g}, dec = {dec:g}; give degrees, dec from -90 to 90")
    height, width = shape
    header = Header()
    header["WCSAXES"] = 2
    header["CTYPE1"] = ("RA---TAN", "gnomonic projection")
    header["CTYPE2"] = "DEC--TAN"
    header["CUNIT1"], header["CUNIT2"] = "deg", "deg"
    header["CRPIX1"] = (0.5 * (width + 1), "centre of the map")
    header["CRPIX2"] = 0.5 * (height + 1)
    header["CRVAL1"] = (ra % 360.0, "[deg]")
    header["CRVAL2"] = (dec, "[deg]")
    header["CDELT1"] = (-pixel_arcsec / 3600.0, "[deg] east is left")
    header["CDELT2"] = (pixel_arcsec / 3600.0, "[deg] north is up")
    header["RADESYS"] = "ICRS"
    return header
