"""Surveys: what a telescope's maps look like, read from files in which every number has a unit and a citation.

A survey is a YAML file of ``configs/surveys/`` (or a file of your own): ``kind: radio`` or ``optical``, a ``title`` and
the fields of :class:`RadioSurvey` or :class:`OpticalSurvey` without their unit suffix, each number written as

    pixel: {value: 1.8, unit: arcsec, source: "Becker, White & Helfand 1995, ApJ 450, 559"}

Units are converted; a number without a unit or a citation is refused. The thermal noise of an array of dishes follows
from the radiometer equation with natural weighting, summed over baselines i < j,

    σ = SEFD_array / √(2 Δν t),   SEFD_array = [Σ_{i≠j} 1 / (SEFD_i SEFD_j)]^(-1/2)   (= SEFD / √(N (N - 1))),

for two polarisations, unless the file gives an ``rms`` that was measured in the survey's maps (with the weights that
they were made with), which is then scaled with bandwidth and time.

References:
    Taylor, Carilli & Perley (eds.) 1999, Synthesis Imaging in Radio Astronomy II, ASP 180, ch. 9 (sensitivity).
    SKAO sensitivity calculator, theoretical background of SKA-Mid (arrays of two kinds of dishes).
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from astropy import units

from skyshift.command import shipped_config
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

LAYOUTS = ("vla_b", "vla_d", "wsrt", "meerkat", "ska_mid_aa_star", "ska_mid_aa4")
"""Antenna layouts that :mod:`skyshift.datasets.visibilities` makes."""


class SurveyError(SkyshiftError):
    """A survey is unknown, or its file does not say what it must."""


def number(unit: str, suffix: str = "", *, optional: bool = False, signed: bool = False) -> Any:
    """A field that a survey's file gives as ``{value, unit, source}``.

    Args:
        unit: That of the attribute; the file may use any that converts to it.
        suffix: Of the attribute's name, left out in the file.
        optional: ``None`` where the file says nothing.
        signed: May be zero or negative; other numbers are positive.
    """
    facts = {"unit": unit, "suffix": suffix, "signed": signed}
    return field(default=None, metadata=facts) if optional else field(metadata=facts)


@dataclass(frozen=True, kw_only=True)
class Dishes:
    """Dishes of one kind in an array.

    Attributes:
        count: How many.
        diameter_m: m.
        sefd_jy: System equivalent flux density of one dish, Jy.
    """

    count: float = number("")
    diameter_m: float = number("m", "_m")
    sefd_jy: float = number("Jy", "_jy")


@dataclass(frozen=True, kw_only=True)
class RadioSurvey:
    """An interferometric survey or observation.

    Attributes:
        name: Name of the file.
        title: For figures and headers.
        frequency_hz: Where the SEFD, the beam and the rms hold, Hz.
        band_low_hz: Lower edge of the receiver's band, Hz.
        band_high_hz: Upper edge, Hz.
        bandwidth_hz: Of a channel (line) or of the whole continuum map, Hz.
        time_s: On source, s.
        pixel_arcsec: arcsec.
        beam_major_arcsec: FWHM, arcsec.
        beam_minor_arcsec: FWHM, arcsec.
        beam_angle_deg: Position angle of the major axis, degrees east of north.
        latitude_deg: Of the array, degrees.
        dishes: The array.
        rms_jy: Measured in the survey's maps, Jy/beam; replaces the radiometer equation.
        mosaic: Maps are mosaics, corrected for the primary beam, with uniform noise.
        layout: One of ``LAYOUTS``, or a table of antenna positions; empty where none is known.
        sources: Citation of each number, by its key in the file.
    """

    name: str
    title: str
    frequency_hz: float = number("Hz", "_hz")
    band_low_hz: float = number("Hz", "_hz")
    band_high_hz: float = number("Hz", "_hz")
    bandwidth_hz: float = number("Hz", "_hz")
    time_s: float = number("s", "_s")
    pixel_arcsec: float = number("arcsec", "_arcsec")
    beam_major_arcsec: float = number("arcsec", "_arcsec")
    beam_minor_arcsec: float = number("arcsec", "_arcsec")
    beam_angle_deg: float = number("deg", "_deg", signed=True)
    latitude_deg: float = number("deg", "_deg", signed=True)
    dishes: tuple[Dishes, ...] = field(metadata={"list": Dishes})
    rms_jy: float | None = number("Jy", "_jy", optional=True)
    mosaic: bool = False
    layout: str = ""
    sources: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.band_low_hz > self.band_high_hz:
            raise SurveyError(
                f"survey '{self.name}': the band ends ('band_high', {self.band_high_hz:g} Hz) before it begins "
                f"('band_low', {self.band_low_hz:g} Hz); exchange them"
            )
        if self.layout and self.layout not in LAYOUTS and not Path(self.layout).is_file():
            raise SurveyError(
                f"survey '{self.name}': {unknown('layout', self.layout, LAYOUTS)} It may also be a text file: east "
                "north [up], m."
            )

    def array_sefd(self) -> float:
        """SEFD of the naturally weighted array in Jy: [Σ_{i≠j} 1 / (SEFD_i SEFD_j)]^(-1/2)."""
        inverse = np.concatenate([np.full(int(kind.count), 1.0 / kind.sefd_jy) for kind in self.dishes])
        pairs = inverse.sum() ** 2 - (inverse**2).sum()
        if pairs <= 0:
            raise SurveyError(f"survey '{self.name}' has a single dish; an interferometer has two or more")
        return float(pairs**-0.5)

    def noise(self, bandwidth_hz: float | None = None, time_s: float | None = None) -> float:
        """Noise of a map, Jy/beam: the measured rms where there is one, else that of the radiometer equation.

        Args:
            bandwidth_hz: Hz; by default the survey's.
            time_s: On source, s; by default the survey's.

        Raises:
            SurveyError: A bandwidth or a time that is not positive and finite.
        """
        bandwidth = self.bandwidth_hz if bandwidth_hz is None else bandwidth_hz
        time = self.time_s if time_s is None else time_s
        for what, value, unit in (("bandwidth", bandwidth, "Hz"), ("time on source", time, "s")):
            if not (np.isfinite(value) and value > 0):
                raise SurveyError(
                    f"survey '{self.name}': a {what} of {value} {unit} has no finite noise; it must be positive"
                )
        if self.rms_jy is not None:
            return float(self.rms_jy * np.sqrt(self.bandwidth_hz * self.time_s / (bandwidth * time)))
        return float(self.array_sefd() / np.sqrt(2.0 * bandwidth * time))


@dataclass(frozen=True, kw_only=True)
class Band:
    """One band of an optical survey.

    Attributes:
        fwhm_arcsec: Of the point-spread function, arcsec.
        zero_point_mag: AB magnitude of one electron per second.
        exposure_s: Total, s.
        exposures: How many readouts share it.
        sky_mag: Sky brightness, AB mag / arcsec².
        read_noise_e: Of one readout of one of the survey's pixels, electrons.
        depth_mag: Published limiting AB magnitude at five sigma, of a point source unless the next three say
            otherwise. Not an input: what the numbers above should give.
        beta: Slope of a Moffat profile; ``None`` for a Gaussian.
        depth_fwhm_arcsec: Seeing for which the depth is quoted, where it is not ``fwhm_arcsec``; arcsec.
        depth_aperture_arcsec: Diameter of the aperture for which it is quoted, arcsec.
        depth_half_light_arcsec: Half-light radius of the exponential galaxy for which it is quoted, arcsec.
        light: Rest-frame band of the stellar light (g, r, i) that is seen through this one; by default its name.
    """

    fwhm_arcsec: float = number("arcsec", "_arcsec")
    zero_point_mag: float = number("mag", "_mag")
    exposure_s: float = number("s", "_s")
    exposures: float = number("")
    sky_mag: float = number("mag / arcsec2", "_mag")
    read_noise_e: float = number("electron", "_e")
    depth_mag: float = number("mag", "_mag")
    beta: float | None = number("", optional=True)
    depth_fwhm_arcsec: float | None = number("arcsec", "_arcsec", optional=True)
    depth_aperture_arcsec: float | None = number("arcsec", "_arcsec", optional=True)
    depth_half_light_arcsec: float | None = number("arcsec", "_arcsec", optional=True)
    light: str = ""


@dataclass(frozen=True, kw_only=True)
class OpticalSurvey:
    """An optical imaging survey.

    Attributes:
        name: Name of the file.
        title: For figures and headers.
        pixel_arcsec: arcsec.
        bands: Name to its numbers.
        sources: Citation of each number, by its key in the file.
    """

    name: str
    title: str
    pixel_arcsec: float = number("arcsec", "_arcsec")
    bands: dict[str, Band] = field(metadata={"table": Band})
    sources: dict[str, str] = field(default_factory=dict)

    def band(self, name: str) -> Band:
        """One band.

        Raises:
            SurveyError: The survey has no such band; the message names those it has.
        """
        if name not in self.bands:
            raise SurveyError(f"survey '{self.name}': {unknown('band', name, self.bands)}")
        return self.bands[name]


Survey = RadioSurvey | OpticalSurvey

_KINDS: dict[str, type] = {"radio": RadioSurvey, "optical": OpticalSurvey}


def survey_names() -> list[str]:
    """Names of the surveys that ship with the package."""
    return sorted(path.stem for path in shipped_config("surveys").glob("*.yaml"))


def get_survey(name: str) -> Survey:
    """A survey that ships with the package.

    Raises:
        SurveyError: An unknown name; the message has the nearest known one.
    """
    names = survey_names()
    if name not in names:
        raise SurveyError(unknown("survey", name, names) + " load_survey reads a file of your own.")
    return load_survey(shipped_config("surveys") / f"{name}.yaml")


def open_survey(name: str) -> Survey:
    """A survey by its name, or from a YAML file.

    Raises:
        SurveyError: There is none; the message names the nearest.
    """
    return load_survey(name) if name.endswith((".yaml", ".yml")) else get_survey(name)


def radio_survey(survey: "str | Survey") -> RadioSurvey:
    """A radio survey, by name or as it is.

    Raises:
        SurveyError: It is an optical one, or unknown.
    """
    found = get_survey(survey) if isinstance(survey, str) else survey
    if not isinstance(found, RadioSurvey):
        raise SurveyError(f"survey '{found.name}' is an optical one; a radio observation needs a radio survey")
    return found


def optical_survey(survey: "str | Survey") -> OpticalSurvey:
    """An optical survey, by name or as it is.

    Raises:
        SurveyError: It is a radio one, or unknown.
    """
    found = get_survey(survey) if isinstance(survey, str) else survey
    if not isinstance(found, OpticalSurvey):
        raise SurveyError(f"survey '{found.name}' is a radio one; an optical observation needs an optical survey")
    return found


def load_survey(path: str | Path) -> Survey:
    """A survey's file, checked.

    Raises:
        SurveyError: No such file, or a key is missing, unknown, not positive, or without unit or citation.
    """
    path = Path(path)
    if not path.is_file():
        raise SurveyError(f"{path} does not exist; a survey is a YAML file, or one of {', '.join(survey_names())}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SurveyError(f"{path} is no YAML: {error}") from None
    if not isinstance(data, dict) or data.get("kind") not in list(_KINDS):
        raise SurveyError(f"{path}: 'kind' must be one of {', '.join(_KINDS)}")
    kind = _KINDS[data.pop("kind")]
    sources: dict[str, str] = {}
    survey: Survey = _fill(kind, {"name": path.stem, **data}, str(path), "", sources)
    return dataclasses.replace(survey, sources=sources)


def _key(entry: dataclasses.Field[Any]) -> str:
    return entry.name.removesuffix(entry.metadata.get("suffix", ""))


def _fill(cls: type, data: Any, path: str, prefix: str, sources: dict[str, str]) -> Any:
    """Make a dataclass of a file's mapping."""
    if not isinstance(data, dict):
        raise SurveyError(f"{path}: '{prefix.rstrip('.')}' must be a mapping of keys, not {data!r}")
    entries = {_key(entry): entry for entry in dataclasses.fields(cls) if entry.name != "sources"}
    for key in data:
        if key not in entries:
            raise SurveyError(f"{path}: {unknown('key', f'{prefix}{key}', [f'{prefix}{k}' for k in entries])}")
    values: dict[str, Any] = {}
    for key, entry in entries.items():
        where = f"{prefix}{key}"
        if key not in data:
            if entry.default is dataclasses.MISSING:
                raise SurveyError(f"{path} lacks '{where}'")
            continue
        found, facts = data[key], entry.metadata
        if "unit" in facts:
            values[entry.name] = _number(found, facts, path, where)
            sources[where] = str(found["source"])
        elif "list" in facts:
            values[entry.name] = tuple(
                _fill(facts["list"], item, path, f"{where}.{i}.", sources)
                for i, item in enumerate(_many(found, list, path, where))
            )
        elif "table" in facts:
            values[entry.name] = {
                str(name): _fill(facts["table"], item, path, f"{where}.{name}.", sources)
                for name, item in _many(found, dict, path, where).items()
            }
        else:
            if type(found) is not entry.type:
                wanted = "a text" if entry.type is str else "true or false, without quotes"
                raise SurveyError(f"{path}: '{where}' must be {wanted}, not {found!r}")
            values[entry.name] = found
    return cls(**values)


def _many(found: Any, kind: type, path: str, where: str) -> Any:
    if not isinstance(found, kind) or not found:
        raise SurveyError(f"{path}: '{where}' must be a {'list' if kind is list else 'mapping'} with entries")
    return found


def _number(found: Any, facts: Any, path: str, where: str) -> float:
    """A number in the unit of its attribute."""
    if not isinstance(found, dict):
        raise SurveyError(f"{path}: '{where}' must be {{value, unit, source}}, not {found!r}")
    for part in ("value", "unit", "source"):
        if found.get(part) is None or (part == "source" and not str(found[part]).strip()):
            hint = "; every number is cited" if part == "source" else ""
            raise SurveyError(f"{path}: '{where}' lacks its {part}{hint}")
    if extra := set(found) - {"value", "unit", "source"}:
        raise SurveyError(f"{path}: '{where}' has unknown parts {', '.join(sorted(map(str, extra)))}")
    if isinstance(found["value"], bool):
        raise SurveyError(f"{path}: '{where}' is no number but {found['value']}")
    try:
        value = float((float(found["value"]) * units.Unit(str(found["unit"]))).to_value(units.Unit(facts["unit"])))
    except (ValueError, TypeError, units.UnitsError) as error:
        raise SurveyError(f"{path}: '{where}' is no number in units of {facts['unit'] or 'one'}: {error}") from None
    if not np.isfinite(value) or (value <= 0 and not facts["signed"]):
        raise SurveyError(f"{path}: '{where}' is {value}; it must be {'finite' if facts['signed'] else 'positive'}")
    return value
