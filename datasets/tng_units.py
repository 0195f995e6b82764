"""IllustrisTNG code units to physical ones, and the header that the conversion needs.

A physical value is stored × a^p × h^q × unit, with the powers of the TNG data specification; the attributes
``a_scaling`` and ``h_scaling`` of a data set, where a file has them, must say the same. All conversion is done in
float64: densities in CGS overflow float32 on the way.

References:
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (arXiv:1812.05609), and the TNG data specification.
"""

from collections.abc import Mapping
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


class SnapshotError(SkyshiftError):
    """A file is no snapshot, lacks something, or contradicts itself; the message says where and the cure."""


@dataclass(frozen=True)
class Conversion:
    """stored × scale_factor^a × h^h × factor = physical."""

    name: str
    a: float = 0.0
    h: float = 0.0
    factor: float = 1.0


CONVERSIONS: dict[str, Conversion] = {
    "Coordinates": Conversion("position", a=1, h=-1),
    "Velocities": Conversion("velocity", a=0.5),
    "Masses": Conversion("mass", h=-1, factor=1e10),
    "Density": Conversion("density", a=-3, h=2, factor=1e10),
    "InternalEnergy": Conversion("internal_energy"),
    "ElectronAbundance": Conversion("electron_abundance"),
    "NeutralHydrogenAbundance": Conversion("neutral_fraction"),
    "StarFormationRate": Conversion("sfr"),
    "GFM_Metallicity": Conversion("metallicity"),
    "MagneticField": Conversion("magnetic_field", a=-2, h=1, factor=GAUSS_PER_CODE_UNIT),
    "GFM_StellarFormationTime": Conversion("formation_scale_factor"),
    "StellarHsml": Conversion("support", a=1, h=-1),
    "SubfindHsml": Conversion("support", a=1, h=-1),
}
"""TNG field to the name and conversion of the field of :class:`~skyshift.datasets.galaxy.Particles`."""

FIELDS: dict[str, tuple[str, ...]] = {
    "gas": (
        "Coordinates", "Masses", "Density", "Velocities", "InternalEnergy", "ElectronAbundance",
        "NeutralHydrogenAbundance", "StarFormationRate", "GFM_Metallicity", "MagneticField",
    ),
    "dm": ("Coordinates", "Velocities", "SubfindHsml"),
    "stars": (
        "Coordinates", "Masses", "Velocities", "GFM_Metallicity", "GFM_StellarFormationTime", "StellarHsml",
    ),
    "black_holes": ("Coordinates", "Masses", "Velocities"),
}  # fmt: skip
"""TNG fields read for each kind, where the file has them. Wind particles are read along with the stars."""

_VECTORS = ("Coordinates", "Velocities", "MagneticField")

_SOURCES: dict[str, tuple[str, ...]] = {"temperature": ("InternalEnergy", "ElectronAbundance")}


def tng_fields(name: str) -> tuple[str, ...]:
    """The TNG fields from which the physical field ``name`` comes, for messages and downloads."""
    if name in _SOURCES:
        return _SOURCES[name]
    return tuple(tng for tng, conversion in CONVERSIONS.items() if conversion.name == name)


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


def check_scaling(group: h5py.Group, name: str) -> None:
    """Hold the powers of a and h in :data:`CONVERSIONS` against the data set's own attributes.

    Raises:
        SnapshotError: They disagree: the file is in other units than IllustrisTNG's.
    """
    conversion = CONVERSIONS[name]
    attributes = group[name].attrs
    for power, attribute in ((conversion.a, "a_scaling"), (conversion.h, "h_scaling")):
        if attribute in attributes and float(_scalar(attributes[attribute])) != power:
            raise SnapshotError(
                f"{group.file.filename}: {group.name}/{name} says {attribute} = {_scalar(attributes[attribute])}, "
                f"IllustrisTNG has {power:g}; the file is in other units and cannot be read as TNG"
            )


def to_physical(name: str, values: NDArray[Any], header: Header) -> NDArray[np.float64]:
    """Convert the TNG field ``name`` to the units of :data:`~skyshift.datasets.galaxy.FIELD_UNITS`."""
    conversion = CONVERSIONS[name]
    unit = header.scale_factor**conversion.a * header.hubble**conversion.h * conversion.factor
    return np.asarray(values, np.float64) * unit


def to_particles(kind: str, stored: Mapping[str, NDArray[Any]], header: Header) -> Particles:
    """Physical particles of one kind from the stored TNG arrays; positions stay in the box.

    Args:
        kind: ``gas``, ``dm``, ``stars`` (with wind) or ``black_holes``.
        stored: TNG field to array, in code units.
        header: Of the file they come from.
    """
    physical = {CONVERSIONS[name].name: to_physical(name, value, header) for name, value in stored.items()}
    position = physical.pop("position")
    if kind == "dm":
        physical["mass"] = np.full(len(position), header.dark_matter_mass)
    mass = physical.pop("mass")
    support = physical.pop("support", None)
    if kind == "gas":
        if "density" in physical:
            support = GAS_SUPPORT_PER_RADIUS * cell_radius(mass, physical["density"])
        energy = physical.pop("internal_energy", None)
        if energy is not None and "electron_abundance" in physical:
            physical["temperature"] = hydrogen.temperature(energy, physical["electron_abundance"])
    return Particles(position, mass, support, physical)


def no_particles(kind: str, header: Header) -> Particles:
    """An empty set of particles with every field, for a galaxy that has none of this kind."""
    return to_particles(kind, {name: np.zeros((0, 3) if name in _VECTORS else 0) for name in FIELDS[kind]}, header)
