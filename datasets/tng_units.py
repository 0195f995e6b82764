"""IllustrisTNG code units to physical ones, and the header that the conversion needs.

A physical value is stored × a^p × h^q × unit, with the powers of the TNG data specification; the attributes
``a_scaling``, ``h_scaling`` and ``to_cgs`` of a data set, and the units of the header, where a file has them, must say
the same. All conversion is done in float64: densities in CGS overflow float32 on the way.

Mini snapshots (80 of the 100) carry fewer fields. What becomes of a missing field:

=========================  ==================================================================================
missing                    what happens
=========================  ==================================================================================
NeutralHydrogenAbundance   ionisation equilibrium of every cell at its own temperature (Rahmati et al. 2013),
                           said in the galaxy's provenance and logged; refused beyond redshift 5
SubfindHsml, StellarHsml   the kernel supports are searched for among the galaxy's own particles
GFM_Metals                 refused when ``recipes.hydrogen: cell`` asks for it; ``primordial`` does not need it
MagneticField              refused (``bfield``)
GFM_Metallicity            refused (``metallicity``, and molecules by ``kmt``)
GFM_StellarPhotometrics    refused (``light_g``, ``light_r``, ``light_i``)
StarFormationRate, Density, InternalEnergy, ElectronAbundance, Velocities    refused for what needs them
=========================  ==================================================================================

References:
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (arXiv:1812.05609), and the TNG data specification.
    Rahmati, Pawlik, Raičević & Schaye 2013, MNRAS 430, 2427 (arXiv:1210.7808).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from skyshift.datasets import hydrogen
from skyshift.datasets.galaxy import Particles
from skyshift.datasets.smoothing import GAS_SUPPORT_PER_RADIUS, cell_radius
from skyshift.errors import SkyshiftError

GAUSS_PER_CODE_UNIT = 2.60e-6
"""Gauss per stored unit of ``MagneticField`` at a = h = 1. Already Gaussian: there is no further 4π."""

LENGTH, MASS, VELOCITY = 3.085678e21, 1.989e43, 1e5
"""Code units in cm (kpc), g (1e10 Msun) and cm/s, as every TNG header says."""


class SnapshotError(SkyshiftError):
    """A file is no snapshot, lacks something, or contradicts itself; the message says where and the cure."""


@dataclass(frozen=True)
class Conversion:
    """stored × scale_factor^a × h^h × factor = physical; ``cgs`` is what the attribute ``to_cgs`` says, 0 for none."""

    name: str
    a: float = 0.0
    h: float = 0.0
    factor: float = 1.0
    cgs: float = 0.0


CONVERSIONS: dict[str, Conversion] = {
    "Coordinates": Conversion("position", a=1, h=-1, cgs=LENGTH),
    "Velocities": Conversion("velocity", a=0.5, cgs=VELOCITY),
    "Masses": Conversion("mass", h=-1, factor=1e10, cgs=MASS),
    "Density": Conversion("density", a=-3, h=2, factor=1e10, cgs=MASS / LENGTH**3),
    "InternalEnergy": Conversion("internal_energy", cgs=VELOCITY**2),
    "ElectronAbundance": Conversion("electron_abundance"),
    "NeutralHydrogenAbundance": Conversion("neutral_fraction"),
    "StarFormationRate": Conversion("sfr", cgs=6.302760666210359e25),  # g/s in a Msun/yr
    "GFM_Metallicity": Conversion("metallicity"),
    "GFM_Metals": Conversion("hydrogen_fraction"),  # the first of its ten columns
    "MagneticField": Conversion("magnetic_field", a=-2, h=1, factor=GAUSS_PER_CODE_UNIT),
    "GFM_StellarFormationTime": Conversion("formation_scale_factor"),
    "GFM_StellarPhotometrics": Conversion("photometry"),
    "StellarHsml": Conversion("support", a=1, h=-1, cgs=LENGTH),
    "SubfindHsml": Conversion("support", a=1, h=-1, cgs=LENGTH),
}
"""TNG field to the name and conversion of the field of :class:`~skyshift.datasets.galaxy.Particles`."""

FIELDS: dict[str, tuple[str, ...]] = {
    "gas": (
        "Coordinates", "Masses", "Density", "Velocities", "InternalEnergy", "ElectronAbundance",
        "NeutralHydrogenAbundance", "StarFormationRate", "GFM_Metallicity", "MagneticField", "GFM_Metals",
    ),
    "dm": ("Coordinates", "Velocities", "SubfindHsml"),
    "stars": (
        "Coordinates", "Masses", "Velocities", "GFM_Metallicity", "GFM_StellarFormationTime", "StellarHsml",
        "GFM_StellarPhotometrics",
    ),
    "black_holes": ("Coordinates", "Masses", "Velocities"),
}  # fmt: skip
"""TNG fields known of each kind. Wind particles are read along with the stars."""

_ALWAYS: dict[str, tuple[str, ...]] = {
    "gas": ("Coordinates", "Masses", "Density"),
    "dm": ("Coordinates", "SubfindHsml"),
    "stars": ("Coordinates", "Masses", "GFM_StellarFormationTime", "StellarHsml"),
    "black_holes": ("Coordinates", "Masses"),
}
"""What place, mass and kernel support come from, and what tells stars from wind."""

_WIDTHS = {"Coordinates": 3, "Velocities": 3, "MagneticField": 3, "GFM_StellarPhotometrics": 8, "GFM_Metals": 10}

_THERMAL = ("InternalEnergy", "ElectronAbundance")
_SOURCES: dict[str, tuple[str, ...]] = {"temperature": _THERMAL}

REPLACED: dict[str, tuple[tuple[str, ...], str]] = {
    "neutral_fraction": (
        ("Density", *_THERMAL),
        "neutral fractions from ionisation equilibrium at each cell's own temperature (Rahmati et al. 2013)",
    ),
}
"""A field that a file may lack: the TNG fields from which it is computed instead, and the recipe in words."""

NOT_IN_MINI = ("CenterOfMass", "GFM_Metals", "GFM_StellarPhotometrics", "NeutralHydrogenAbundance")
"""Fields that the mini snapshots of IllustrisTNG are known to lack."""


def tng_fields(name: str) -> tuple[str, ...]:
    """The TNG fields from which the physical field ``name`` comes, for messages and downloads."""
    if name in _SOURCES:
        return _SOURCES[name]
    return tuple(tng for tng, conversion in CONVERSIONS.items() if conversion.name == name)


def wanted_fields(kind: str, names: Iterable[str] | None) -> tuple[str, ...]:
    """The TNG fields to read of ``kind`` for the physical fields ``names``, where the file has them.

    Args:
        kind: ``gas``, ``dm``, ``stars`` (with wind) or ``black_holes``.
        names: Physical fields; ``None`` for all but the ten element abundances.
    """
    if names is None:
        return tuple(field for field in FIELDS[kind] if field != "GFM_Metals")
    wanted = set(_ALWAYS[kind])
    for name in names:
        wanted.update(tng_fields(name), REPLACED.get(name, ((), ""))[0])
    return tuple(field for field in FIELDS[kind] if field in wanted)


@dataclass(frozen=True)
class Header:
    """What the conversion and the checks need of a file's ``/Header``.

    Attributes:
        scale_factor: a of the snapshot.
        redshift: 1/a - 1; rounding about zero is taken off.
        hubble: h.
        omega_matter: Matter density over the critical one, today.
        box_size: Side of the periodic box in physical kpc.
        dark_matter_mass: Msun of one dark-matter particle, which has no ``Masses``.
        counts: (6,) particles that this file claims to hold.
        totals: (6,) particles in all files of the snapshot.
        files: Number of files of the snapshot.
        number: Snapshot number, or -1 where the file does not say.
        cutout: Subhalo number of an API cutout, or -1.
        simulation: Name of the simulation, or "".
        request: What an API cutout was asked for, ``PartType0=…+PartType4=…``, or "".
    """

    scale_factor: float
    redshift: float
    hubble: float
    omega_matter: float
    box_size: float
    dark_matter_mass: float
    counts: NDArray[np.int64]
    totals: NDArray[np.int64]
    files: int
    number: int
    cutout: int
    simulation: str
    request: str


def _scalar(value: Any) -> Any:
    """Header entries come as scalars or arrays of length one, strings as bytes or str."""
    value = np.asarray(value).reshape(-1)[0]
    return value.decode() if isinstance(value, bytes) else value


def read_header(file: h5py.File) -> Header:
    """Read ``/Header`` of a snapshot chunk or an API cutout.

    Raises:
        SnapshotError: There is no ``/Header`` or it lacks an entry.
    """
    if "Header" not in file:
        held = ", ".join(list(file)[:6]) or "nothing"
        raise SnapshotError(f"{file.filename} is no TNG snapshot: it has no /Header (it holds {held})")
    attributes = file["Header"].attrs
    _check_units(file)
    try:
        a, h = float(_scalar(attributes["Time"])), float(_scalar(attributes["HubbleParam"]))
        counts = np.asarray(attributes["NumPart_ThisFile"], np.int64).reshape(-1)
        totals = np.asarray(attributes.get("NumPart_Total", counts), np.int64).reshape(-1)
        high = np.asarray(attributes.get("NumPart_Total_HighWord", np.zeros_like(totals)), np.int64).reshape(-1)
        return Header(
            scale_factor=a,
            redshift=0.0 if abs(z := float(_scalar(attributes["Redshift"]))) < 1e-10 else z,
            hubble=h,
            omega_matter=float(_scalar(attributes["Omega0"])),
            box_size=float(_scalar(attributes["BoxSize"])) * a / h,
            dark_matter_mass=float(np.asarray(attributes["MassTable"]).reshape(-1)[1]) * 1e10 / h,
            counts=counts,
            totals=totals + (high << 32),
            files=int(_scalar(attributes.get("NumFilesPerSnapshot", 1))),
            number=int(_scalar(attributes.get("SnapshotNumber", -1))),
            cutout=int(_scalar(attributes.get("CutoutID", -1))),
            simulation=str(_scalar(attributes.get("SimulationName", ""))),
            request=str(_scalar(attributes.get("CutoutRequest", ""))),
        )
    except KeyError as error:
        raise SnapshotError(f"{file.filename} is no TNG snapshot: its /Header has no {error}") from None


def _check_units(file: h5py.File) -> None:
    """Hold the code units of the header, where it names them, against IllustrisTNG's (to 0.1 %: digits of constants).

    Raises:
        SnapshotError: They differ.
    """
    attributes = file["Header"].attrs
    for name, unit in (
        ("UnitLength_in_cm", LENGTH),
        ("UnitMass_in_g", MASS),
        ("UnitVelocity_in_cm_per_s", VELOCITY),
    ):
        if name in attributes and abs(float(_scalar(attributes[name])) / unit - 1.0) > 1e-3:
            raise SnapshotError(
                f"{file.filename}: /Header says {name} = {float(_scalar(attributes[name])):g}, IllustrisTNG has "
                f"{unit:g}; the file is in other units and cannot be read as TNG. Convert it first."
            )


def check_scaling(group: h5py.Group, name: str) -> None:
    """Hold the powers of a and h and the unit in :data:`CONVERSIONS` against the data set's own attributes.

    Raises:
        SnapshotError: They disagree: the file is in other units than IllustrisTNG's.
    """
    conversion = CONVERSIONS[name]
    attributes = group[name].attrs
    for expected, attribute in (
        (conversion.a, "a_scaling"),
        (conversion.h, "h_scaling"),
        (conversion.cgs, "to_cgs"),
    ):
        if attribute not in attributes:
            continue
        found = float(_scalar(attributes[attribute]))
        if attribute == "to_cgs" and (not found or not expected):  # 0 stands for "not said"
            continue
        if abs(found - expected) > 1e-3 * abs(expected):
            raise SnapshotError(
                f"{group.file.filename}: {group.name}/{name} says {attribute} = {found}, IllustrisTNG has "
                f"{expected:g}; the file is in other units and cannot be read as TNG"
            )


def to_physical(name: str, values: NDArray[Any], header: Header) -> NDArray[np.float64]:
    """Convert the TNG field ``name`` to the units of :data:`~skyshift.datasets.galaxy.FIELD_UNITS`."""
    conversion = CONVERSIONS[name]
    unit = header.scale_factor**conversion.a * header.hubble**conversion.h * conversion.factor
    if name == "GFM_Metals":
        values = values[:, 0]
    return np.asarray(values, np.float64) * unit


def to_particles(
    kind: str, stored: Mapping[str, NDArray[Any]], header: Header, names: Iterable[str] | None = None
) -> Particles:
    """Physical particles of one kind from the stored TNG arrays; positions stay in the box.

    Args:
        kind: ``gas``, ``dm``, ``stars`` (with wind) or ``black_holes``.
        stored: TNG field to array, in code units.
        header: Of the file they come from.
        names: Physical fields that are needed; one that is absent is computed where :data:`REPLACED` says how.

    Raises:
        GalaxyError: A field is to be replaced at a redshift for which its recipe has no fit.
    """
    physical = {CONVERSIONS[name].name: to_physical(name, value, header) for name, value in stored.items()}
    position = physical.pop("position")
    if kind == "dm":
        physical["mass"] = np.full(len(position), header.dark_matter_mass)
    mass = physical.pop("mass")
    support = physical.pop("support", None)
    if kind == "gas":
        with np.errstate(divide="ignore", invalid="ignore"):  # zeros of a damaged file are named by the galaxy's check
            if "density" in physical:
                support = GAS_SUPPORT_PER_RADIUS * cell_radius(mass, physical["density"])
            _derive(physical, header, set(names or ()))
    return Particles(position, mass, support, physical)


def _derive(physical: dict[str, NDArray[np.float64]], header: Header, names: set[str]) -> None:
    """Temperature of gas from its energy, and what is needed, absent and to be replaced."""
    energy = physical.pop("internal_energy", None)
    if energy is not None and "electron_abundance" in physical:
        physical["temperature"] = hydrogen.temperature(energy, physical["electron_abundance"])
    if "neutral_fraction" in names - set(physical):
        n_H = hydrogen.hydrogen_density(physical["density"])
        physical["neutral_fraction"] = hydrogen.rahmati_neutral_fraction(n_H, physical["temperature"], header.redshift)


def no_particles(kind: str, header: Header) -> Particles:
    """An empty set of particles with every field, for a galaxy that has none of this kind."""
    shapes = {name: (0, _WIDTHS[name]) if name in _WIDTHS else (0,) for name in FIELDS[kind]}
    return to_particles(kind, {name: np.zeros(shape) for name, shape in shapes.items()}, header)
