"""Sky models for simulators of radio telescopes: images in Jy/pixel and tables of components for OSKAR and Karabo.

The image is a FITS cube (RA, Dec, frequency), float32, ``BUNIT`` Jy/pixel, orthographic (SIN) as OSKAR places the
pixels of an image; the frequency of channel i is ``CRVAL3 + i CDELT3``, with ``CRPIX3`` = 1. OSKAR drops negative
pixels, so there are none.

The table has one component a pixel that shines, twelve columns:

    RA [deg]  Dec [deg]  I Q U V [Jy]  reference frequency [Hz]  spectral index  rotation measure [rad/m²]
    major FWHM [arcsec]  minor FWHM [arcsec]  position angle [deg]

as text with ``#`` comments for OSKAR (``.osm``, ``.txt``), or as CSV with one line of names for
``karabo.simulation.sky_model.SkyModel.read_from_file`` (``.csv``); Karabo's further column of source names is optional
and left out. Positions are ICRS; OSKAR takes them as those of date.

Command, on a store or a file: an image and a table of each view, at a redshift.

    python datasets/sky_model.py --input data/synthetic/maps.zarr --output skies --redshift 0.01 --table csv

References:
    OSKAR documentation, Sky Model (ox.ac.uk, github.com/OxfordSKA/OSKAR), and its reader of FITS images.
    Karabo-Pipeline, karabo/simulation/sky_model.py (github.com/i4Ds/Karabo-Pipeline).
    Calabretta & Greisen 2002, A&A 395, 1077 (SIN projection); Greisen et al. 2006, A&A 446, 747 (spectral axes).
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from skyshift import __version__
from skyshift.command import command, parse
from skyshift.datasets.formats import read_maps
from skyshift.datasets.observation import ObservationError, check_map
from skyshift.datasets.radio import HI_FREQUENCY, pixel_flux
from skyshift.datasets.sky import Placement, wcs_header
from skyshift.datasets.store import MapStore, is_store
from skyshift.errors import SkyshiftError
from skyshift.files import write_text, write_whole
from skyshift.naming import unknown

Array = NDArray[np.float64]

COLUMNS = (
    "right ascension (deg)", "declination (deg)", "stokes I Flux (Jy)", "stokes Q Flux (Jy)", "stokes U Flux (Jy)",
    "stokes V Flux (Jy)", "reference_frequency (Hz)", "spectral index (N/A)", "rotation measure (rad / m^2)",
    "major axis FWHM (arcsec)", "minor axis FWHM (arcsec)", "position angle (deg)",
)  # fmt: skip


def sky_of_map(
    values: NDArray[Any], unit: str, side_kpc: float, placement: Placement, width_kms: float = 300.0
) -> tuple[Array, float | None, float]:
    """The sky in Jy/pixel that a simulated map makes.

    Args:
        values: (height, width) of one map, in a unit that :func:`skyshift.datasets.radio.observe_radio` takes.
        unit: Of the map.
        side_kpc: Width of the map, physical kpc.
        placement: Where the galaxy is.
        width_kms: A line is spread evenly over this width, km/s: its mean flux density is ∫S dv / W.

    Returns:
        (height, width) Jy/pixel; the line's observed frequency in Hz, ``None`` for the continuum; arcsec a pixel.

    Raises:
        ObservationError: A map that is not finite or negative, other units, a side or width that is not positive.
    """
    flux, line = pixel_flux(check_map(values, "map"), unit, side_kpc, placement)
    pixel = placement.arcsec(side_kpc) / flux.shape[1]
    if not line:
        return _sky(flux), None, pixel
    if not (np.isfinite(width_kms) and width_kms > 0):
        raise ObservationError(f"a line cannot be {width_kms} km/s wide; give a positive width")
    return _sky(flux / width_kms), HI_FREQUENCY / (1.0 + placement.redshift), pixel


def _sky(flux: NDArray[Any]) -> Array:
    """(channels, height, width) or (height, width), finite and not negative."""
    flux = np.asarray(flux, np.float64)
    for channel in flux if flux.ndim == 3 else (flux,):
        check_map(channel, "sky")
    if (flux < 0).any():
        raise ObservationError(
            f"{int((flux < 0).sum())} of {flux.size} pixels of the sky are negative; a sky shines: give the map "
            "without noise, or set them to 0"
        )
    return flux


def _cards(shape: tuple[int, int], pixel_arcsec: float, direction: tuple[float, float]) -> fits.Header:
    header = wcs_header(shape, pixel_arcsec, *direction)
    header["CTYPE1"], header["CTYPE2"] = ("RA---SIN", "orthographic projection"), "DEC--SIN"
    return header


def write_sky_image(
    path: str | Path,
    flux: NDArray[Any],
    pixel_arcsec: float,
    frequencies_hz: Sequence[float],
    direction: tuple[float, float] = (0.0, 0.0),
) -> Path:
    """Write a sky in Jy/pixel as a FITS cube, whole or not at all.

    Args:
        path: The new file.
        flux: (channels, height, width), or (height, width) for one channel; Jy/pixel.
        pixel_arcsec: arcsec.
        frequencies_hz: Of the channels, evenly spaced, Hz.
        direction: Right ascension and declination of the centre, degrees.

    Raises:
        ObservationError: Negative or non-finite pixels, as many frequencies as there are not channels, or frequencies
            that are not positive and evenly spaced.
    """
    cube = _sky(flux)
    cube = cube[None] if cube.ndim == 2 else cube
    frequencies = np.asarray(frequencies_hz, np.float64)
    steps = np.diff(frequencies)
    if len(frequencies) != len(cube) or not (np.isfinite(frequencies).all() and (frequencies > 0).all()):
        raise ObservationError(
            f"{len(frequencies)} frequencies for {len(cube)} channels; give one each, in Hz, positive"
        )
    if steps.size and (steps[0] == 0 or np.abs(steps / steps[0] - 1).max() > 1e-6):
        raise ObservationError(
            "the frequencies of a cube are evenly spaced; write other channels as files of their own"
        )
    header = _cards((cube.shape[1], cube.shape[2]), pixel_arcsec, direction)
    header["WCSAXES"] = 3
    header["CTYPE3"], header["CUNIT3"], header["CRPIX3"] = "FREQ", "Hz", 1.0
    header["CRVAL3"] = (float(frequencies[0]), "[Hz]")
    header["CDELT3"] = (float(steps[0]) if steps.size else 1.0, "[Hz]")
    header["SPECSYS"] = "BARYCENT"
    header["BUNIT"] = "Jy/pixel"
    header["CREATOR"] = f"skyshift {__version__}"
    with write_whole(path) as side:
        fits.PrimaryHDU(cube.astype(np.float32), header).writeto(side)
    return Path(path)


def point_components(
    flux: NDArray[Any],
    pixel_arcsec: float,
    frequency_hz: float,
    direction: tuple[float, float] = (0.0, 0.0),
    *,
    spectral_index: float = 0.0,
    size_arcsec: float = 0.0,
) -> Array:
    """A component for each pixel that shines.

    Args:
        flux: (height, width) Jy/pixel.
        pixel_arcsec: arcsec.
        frequency_hz: Where the flux is that of the map, Hz.
        direction: Right ascension and declination of the centre, degrees.
        spectral_index: α of S ∝ ν^α.
        size_arcsec: FWHM of round Gaussian components; 0 makes points.

    Returns:
        (components, 12), the columns of the module.

    Raises:
        ObservationError: Negative or non-finite pixels, an empty sky, or a frequency or size that is none.
    """
    sky = _sky(flux)
    if sky.ndim != 2:
        raise ObservationError(f"components are made of one map (height, width), not of shape {sky.shape}")
    if not (np.isfinite(frequency_hz) and frequency_hz > 0 and np.isfinite(size_arcsec) and size_arcsec >= 0):
        raise ObservationError(f"components of {size_arcsec} arcsec at {frequency_hz} Hz are none")
    rows, columns = np.nonzero(sky)
    if rows.size == 0:
        raise ObservationError("the sky is empty: no pixel shines, so there is no component to write")
    shape = (sky.shape[0], sky.shape[1])
    ra, dec = WCS(_cards(shape, pixel_arcsec, direction)).wcs_pix2world(columns, rows, 0)
    table = np.zeros((rows.size, len(COLUMNS)))
    table[:, 0], table[:, 1], table[:, 2] = ra % 360.0, dec, sky[rows, columns]
    table[:, 6], table[:, 7] = frequency_hz, spectral_index
    table[:, 9] = table[:, 10] = size_arcsec
    return table


def write_components(path: str | Path, table: NDArray[Any]) -> Path:
    """Write components for OSKAR (``.osm``, ``.txt``) or Karabo (``.csv``), whole or not at all.

    Args:
        path: The new file.
        table: (components, 12) as of :func:`point_components`.

    Raises:
        ObservationError: Another suffix or shape, or values that are not finite.
    """
    path, table = Path(path), np.asarray(table, np.float64)
    separators = {".osm": " ", ".txt": " ", ".csv": ","}
    if path.suffix not in separators:
        raise ObservationError(f"{path}: components are written to .osm or .txt (OSKAR) or .csv (Karabo)")
    if table.ndim != 2 or table.shape[1] != len(COLUMNS) or not len(table) or not np.isfinite(table).all():
        raise ObservationError(f"{path}: components are finite, in {len(COLUMNS)} columns, not of shape {table.shape}")
    between = separators[path.suffix]
    first = ",".join(COLUMNS) if between == "," else "# " + " | ".join(COLUMNS) + f"\n# skyshift {__version__}"
    # 1e-10 degrees are 0.4 µas; ten digits of a flux keep the sum to far better than 1e-6.
    digits = ["%.10f"] * 2 + ["%.10e"] * 4 + ["%.3f", "%.6g", "%.6g", "%.6f", "%.6f", "%.6f"]
    lines = [between.join(form % value for form, value in zip(digits, row, strict=True)) for row in table]
    write_text(path, "\n".join([first, *lines]) + "\n")
    return path


# The command.


@dataclass
class SkyModelConfig:
    """Sky models of maps.

    Attributes:
        input: A store, or a FITS, HDF5 or NPY file.
        output: Folder for the models, which is new or empty.
        domain: Which maps: atomic hydrogen in Msun/kpc2 or K km/s, or the continuum in Jy a pixel.
        redshift: Where the galaxies are placed.
        width_kms: A line is spread evenly over this width, km/s.
        frequency_mhz: Of the continuum; a line has its own.
        ra: Right ascension of the maps' centres, degrees.
        dec: Declination of the same, degrees.
        table: Components beside each image: for OSKAR (osm), for Karabo (csv), or none.
        hubble: h of the cosmology that the galaxies are placed in.
        omega_matter: Ω_m of the same, flat.
    """

    input: str = ""
    output: str = ""
    domain: str = "hi"
    redshift: float = 0.02
    width_kms: float = 300.0
    frequency_mhz: float = 1400.0
    ra: float = 0.0
    dec: float = 0.0
    table: Literal["osm", "csv", "none"] = "osm"
    hubble: float = 0.6774
    omega_matter: float = 0.3089

    def __post_init__(self) -> None:
        if not self.input or not self.output:
            raise SkyshiftError("name the maps (--input) and a folder for their sky models (--output)")


def _views(config: SkyModelConfig) -> Iterator[tuple[str, NDArray[np.float32], str, float]]:
    """Name, map, unit and side in kpc of each view."""
    if is_store(config.input):
        store = MapStore(config.input)
        store.require_complete()
        store.require_domains([config.domain])
        for record in store.records():
            maps = store.maps(config.domain, [record.view])
            yield f"view{record.view:06d}", maps[0], store.units[config.domain], record.side
        return
    stacks = read_maps(config.input)
    if config.domain not in stacks:
        raise SkyshiftError(f"{config.input}: {unknown('domain', config.domain, stacks)}")
    stack = stacks[config.domain]
    if stack.side is None:
        raise SkyshiftError(f"{config.input}: the maps do not say how large they are in kpc (SIDEKPC, side_kpc)")
    for row, values in enumerate(stack.values):
        yield f"map{row:06d}", values, stack.unit, float(stack.side[row])


def write_sky_models(config: SkyModelConfig) -> list[Path]:
    """Write the sky model of each view: ``NAME_DOMAIN_sky.fits``, and its table of components.

    Args:
        config: Which maps, and where they are placed.

    Returns:
        The files. A map that is empty has an image and no table.

    Raises:
        SkyshiftError: No such maps, a folder that is not empty, or what :func:`sky_of_map` refuses.
    """
    place = Placement(config.redshift, config.hubble, config.omega_matter)
    folder, direction = Path(config.output), (config.ra, config.dec)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SkyshiftError(f"{folder} is there already; choose another output or delete it")
    written = []
    for name, values, unit, side in _views(config):
        sky, line, pixel = sky_of_map(values, unit, side, place, config.width_kms)
        frequency = line or 1e6 * config.frequency_mhz
        path = folder / f"{name}_{config.domain}_sky.fits"
        written.append(write_sky_image(path, sky, pixel, [frequency], direction))
        if config.table != "none" and sky.any():
            table = point_components(sky, pixel, frequency, direction)
            written.append(write_components(path.with_suffix(f".{config.table}"), table))
    return written


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    config, _ = parse(SkyModelConfig, arguments, None, "Sky models of maps for OSKAR and Karabo.")
    written = write_sky_models(config)
    images = sum(path.suffix == ".fits" for path in written)
    print(f"{config.output}: {images} FITS images, {len(written) - images} tables of components")


if __name__ == "__main__":
    sys.exit(main())
