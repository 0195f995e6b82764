"""Command: turn the images of one survey in a file into those of another (:mod:`skyshift.datasets.degrade`).

    python datasets/degrade_maps.py --input first.fits --output as_nvss --from_survey first --to_survey nvss

Each image becomes a FITS file with clean, noisy and σ images. Where the file says so, its pixels, beam and orientation
must be those of the survey that it is said to be of, and its place on the sky is kept.
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.wcs import WCS, FITSFixedWarning

from skyshift.command import command, parse
from skyshift.datasets.degrade import degrade
from skyshift.datasets.formats import read_maps_leniently
from skyshift.datasets.maps import Maps
from skyshift.datasets.observation import ObservationError
from skyshift.datasets.optical import UNIT
from skyshift.datasets.surveys import RadioSurvey, Survey, open_survey
from skyshift.errors import SkyshiftError


@dataclass
class DegradeConfig:
    """Images of one survey as another would have taken them.

    Attributes:
        input: FITS, HDF5 or NPY file with images of ``from_survey``, on its pixels.
        output: Folder for FITS files, which is new or empty.
        from_survey: Survey of the images: a name, or a YAML file of your own.
        to_survey: Survey to imitate, likewise.
        band: Optical: of the images.
        to_band: Optical: of the survey to imitate, where it calls it differently.
        hdu: Only this image of the file.
        unit: Of images that do not say: Jy/beam, or nmgy a pixel.
        noise: σ of the images in their unit; by default that of their survey, 0 for images without noise.
        seed: Of the added noise of the first image, one more for each that follows.
    """

    input: str = ""
    output: str = ""
    from_survey: str = ""
    to_survey: str = ""
    band: str = "r"
    to_band: str = ""
    hdu: str = ""
    unit: str = ""
    noise: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("input", "output", "from_survey", "to_survey"):
            if not getattr(self, name):
                raise SkyshiftError(f"name the images (--input), a folder (--output) and both surveys: --{name} lacks")


def degrade_file(config: DegradeConfig) -> list[Path]:
    """Degrade all images of a file; nothing is written where one of them cannot be.

    Args:
        config: What to degrade, and to what.

    Returns:
        The FITS files, one an image.

    Raises:
        SkyshiftError: No image, several kinds of them, no unit, pixels, beam or orientation other than the survey's,
            a folder that is not empty, or what :func:`skyshift.datasets.degrade.degrade` refuses.
    """
    first, second = open_survey(config.from_survey), open_survey(config.to_survey)
    stacks, silent = read_maps_leniently(config.input, unit=config.unit or None, hdu=config.hdu or None)
    if len(stacks) > 1:
        raise SkyshiftError(f"{config.input} holds images of {', '.join(stacks)}; choose one with --hdu")
    ((name, stack),) = stacks.items()
    if name in silent:
        raise SkyshiftError(f"{config.input} does not say the unit of its images; name it with --unit")
    stack = stack.to("Jy / beam" if isinstance(first, RadioSurvey) else UNIT)
    direction = _direction(config.input, stack, first)
    folder = Path(config.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SkyshiftError(f"{folder} is there already; choose another output or delete it")
    made = [
        degrade(
            values,
            first,
            second,
            seed=config.seed + i,
            noise_in=config.noise,
            band=(config.band, config.to_band or config.band),
            direction=direction,
        )
        for i, values in enumerate(stack.values)
    ]
    return [image.write(folder / f"map{i:06d}_{image.domain}_{second.name}.fits") for i, image in enumerate(made)]


def _direction(path: str, stack: Maps, survey: Survey) -> tuple[float, float]:
    """Where the centre of the images lies; their pixels and beam must be the survey's, with north up."""
    cards = {key: value for key, value in stack.header.items() if not isinstance(value, bool)}
    if isinstance(survey, RadioSurvey) and "BMAJ" in cards and "BMIN" in cards:
        beam, own = (3600.0 * float(cards[key]) for key in ("BMAJ", "BMIN")), survey
        if not np.allclose(list(beam), [own.beam_major_arcsec, own.beam_minor_arcsec], rtol=0.02):
            raise ObservationError(
                f"{path} has a beam of {3600 * cards['BMAJ']:.4g} × {3600 * cards['BMIN']:.4g} arcsec, '{survey.name}' "
                f"of {own.beam_major_arcsec:g} × {own.beam_minor_arcsec:g}; name the survey that it is of (a YAML file "
                "of your own, it may be) with --from_survey"
            )
    if "CTYPE1" not in cards:
        return 0.0, 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        wcs = WCS(cards).celestial
    if wcs.naxis != 2 or not wcs.has_celestial:
        return 0.0, 0.0
    pixel = survey.pixel_arcsec
    found = 3600.0 * wcs.pixel_scale_matrix
    if np.abs(found - np.diag([-pixel, pixel])).max() > 0.01 * pixel:
        raise ObservationError(
            f"{path} has pixels of {np.hypot(*found[:, 0]):.4g} × {np.hypot(*found[:, 1]):.4g} arcsec, or is turned; "
            f"'{survey.name}' has {pixel:g}, north up and east to the left: bring the image to these first"
        )
    height, width = stack.values.shape[1:]
    ra, dec = wcs.wcs_pix2world([[0.5 * (width - 1), 0.5 * (height - 1)]], 0)[0]
    return float(ra), float(dec)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    config, _ = parse(DegradeConfig, arguments, None, "Images of one survey as another would have taken them.")
    print(f"{config.output}: {len(degrade_file(config))} FITS files")


if __name__ == "__main__":
    sys.exit(main())
