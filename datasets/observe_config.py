"""What a mock observation of many maps is made of: the configuration of ``observe.py``."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from skyshift.datasets.observation import check_seed
from skyshift.datasets.radio import PrimaryBeam
from skyshift.datasets.sky import Placement
from skyshift.datasets.surveys import Survey, open_survey
from skyshift.datasets.visibilities import Weighting
from skyshift.errors import SkyshiftError

Layer = Literal["noisy", "clean", "sigma"]


@dataclass
class ObserveConfig:
    """A mock observation of many maps.

    Attributes:
        input: A store, or a FITS, HDF5 or NPY file.
        output: A store (``.zarr``), or a folder for FITS files.
        survey: Name of a survey, or a YAML file of your own.
        domain: Radio: the map that is observed (``hi`` or ``hi21cm``).
        bands: Optical: which; by default all whose light is in the input.
        redshift: Of all galaxies, or ``[low, high]``: drawn for each galaxy, uniformly.
        pixels: Per side of the images, in the survey's pixels.
        layers: What a store keeps: noisy, clean, sigma.
        include: Simulated maps to bring along, on the same pixels.
        width_kms: Radio: velocities over which the line is summed, km/s.
        primary: Radio: corrected for the primary beam, attenuated by it, or none; by default as the survey is.
        kelvin: Radio: brightness temperature instead of flux per beam.
        dirty: Radio: the dirty map of the survey's antennas in a track, instead of its own beam and noise.
        hours: Length of the track of a dirty map about transit, h; 0 for a snapshot.
        declination: Of the galaxies of a dirty map, degrees; by default overhead at the array.
        weighting: Of a dirty map's visibilities, natural or uniform.
        psf: Optical: image of a star to use as the point spread function of all bands, instead of the survey's.
        psf_pixel: Side of its pixels, arcsec; by default the survey's.
        hubble: h of the cosmology that the galaxies are placed in.
        omega_matter: Ω_m of the same, flat.
        seed: Of noise and redshifts.
    """

    input: str = ""
    output: str = ""
    survey: str = "meerkat"
    domain: str = "hi"
    bands: list[str] = field(default_factory=list)
    redshift: float | list[float] = 0.02
    pixels: int = 64
    layers: list[Layer] = field(default_factory=lambda: ["noisy"])
    include: list[str] = field(default_factory=list)
    width_kms: float = 300.0
    primary: PrimaryBeam | None = None
    kelvin: bool = False
    dirty: bool = False
    hours: float = 8.0
    declination: float | None = None
    weighting: Weighting = "natural"
    psf: str = ""
    psf_pixel: float | None = None
    hubble: float = 0.6774
    omega_matter: float = 0.3089
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.input or not self.output:
            raise SkyshiftError("name what to observe (--input) and where to write it (--output)")
        if self.pixels < 1 or not self.layers:
            raise SkyshiftError("an image has at least one pixel a side (--pixels) and one layer (--layers)")
        check_seed(self.seed)
        if self.dirty and (self.primary is not None or self.kelvin):
            raise SkyshiftError(
                "a dirty map has no primary beam, and no kelvin: its beam, which sums to zero, has no solid angle; "
                "leave out --primary and --kelvin, or --dirty"
            )
        if isinstance(self.redshift, list) and (len(self.redshift) != 2 or not self.redshift[0] <= self.redshift[1]):
            raise SkyshiftError(f"redshift {self.redshift} is neither a number nor [low, high]")
        for redshift in self.redshift if isinstance(self.redshift, list) else [self.redshift]:
            Placement(redshift, self.hubble, self.omega_matter)

    def open_survey(self) -> Survey:
        """The survey, by name or from its file.

        Raises:
            SurveyError: There is none; the message names the nearest.
        """
        return open_survey(self.survey)

    def placement(self, galaxy: int, snapshot: int) -> Placement:
        """Where a galaxy is put: the same for all of its views, whatever else is observed."""
        redshift = self.redshift
        if isinstance(redshift, list):
            rng = np.random.default_rng([self.seed, galaxy % 2**32, snapshot % 2**32])
            redshift = float(rng.uniform(redshift[0], redshift[1]))
        return Placement(redshift, self.hubble, self.omega_matter)
