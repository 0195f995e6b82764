"""Read cutout files of the TNG web service: one subhalo a file, without its catalogue entry.

References:
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (arXiv:1812.05609), and the TNG data specification.
    Power et al. 2003, MNRAS 338, 14 (shrinking spheres).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from skyshift.datasets.galaxy import PARTICLE_TYPES, Galaxy
from skyshift.datasets.tng_files import (
    KINDS,
    Need,
    check_need,
    half_mass_radius,
    names_of,
    open_file,
    read_group,
    split_wind,
    systemic_velocity,
    unwrap,
)
from skyshift.datasets.tng_units import (
    FIELDS,
    Header,
    SnapshotError,
    no_particles,
    read_header,
    to_particles,
    wanted_fields,
)


def _shrinking_centre(position: NDArray[np.floating], mass: NDArray[np.floating]) -> NDArray[np.float64]:
    """Centre of mass in spheres that shrink by a tenth (Power et al. 2003, MNRAS 338, 14)."""
    centre = np.average(position, axis=0, weights=mass)
    radius = float(np.linalg.norm(position - centre, axis=1).max())
    while True:
        inside = np.linalg.norm(position - centre, axis=1) <= radius
        if inside.sum() < min(100, len(mass) // 2 + 1):
            return np.asarray(centre, np.float64)
        centre = np.average(position[inside], axis=0, weights=mass[inside])
        radius *= 0.9


def read_cutout_header(path: str | Path) -> Header:
    """The header of an API cutout file.

    Raises:
        SnapshotError: It is no such file.
    """
    with open_file(Path(path)) as file:
        return read_header(file)


def read_cutout(
    path: str | Path,
    *,
    need: Need | None = None,
    centre: Sequence[float] | None = None,
    partial: bool = False,
    empty: Iterable[str] = (),
) -> Galaxy:
    """Read an API cutout file.

    Args:
        path: The HDF5 file.
        need: Kind to the fields that must be there, checked before anything is read, and read; the other kinds give
            their positions and masses alone. By default everything.
        centre: (3,) kpc in the box, physical; by default the centre of shrinking spheres around all particles
            (a cutout does not carry ``SubhaloPos``).
        partial: Take a thinned file, whose header counts more particles than the arrays hold.
        empty: Kinds of which the subhalo is known to have no particles. Of a kind that the cutout was not asked for the
            header counts 0 as well, so that the file alone does not tell.

    Returns:
        The galaxy, with half-mass radii computed from the particles; its velocity is the mean of its gas.

    Raises:
        SnapshotError: No snapshot, no particles, a needed kind or field missing, counts that disagree.
        GalaxyError: Values that are not finite, or negative masses.
    """
    path = Path(path)
    with open_file(path) as file:
        header = read_header(file)
        groups = {kind: f"PartType{PARTICLE_TYPES[kind]}" for kind in KINDS}
        have = {kind: set(file[group]) for kind, group in groups.items() if group in file}
        # A type without particles has no group: asked for and absent means that the galaxy has none.
        known = set(empty)
        none = [k for k, g in groups.items() if k not in have and (g in header.request or k in known)]
        replaced = check_need({**have, **{kind: FIELDS[kind] for kind in none}}, need or {}, str(path))
        stored = {
            kind: read_group(file, kind, header, wanted_fields(kind, names_of(need, kind)), partial) for kind in KINDS
        }
    kinds = {k: to_particles(k, v, header, names_of(need, k)) for k, v in stored.items() if v}
    if not any(len(particles) for particles in kinds.values()):
        raise SnapshotError(f"{path} holds no particles at all; the subhalo has none of the types asked for")
    kinds.update({kind: no_particles(kind, header) for kind in none})
    kinds = split_wind(kinds, str(path), need is None or not {"stars", "wind"}.isdisjoint(need))
    if centre is None:
        position, mass = (np.concatenate([p[name] for p in kinds.values()]) for name in ("position", "mass"))
        sound = np.isfinite(position).all(axis=1) & np.isfinite(mass) & (mass > 0)  # Galaxy refuses the rest by name
        middle = np.zeros(3)
        if sound.any():
            origin = position[sound][0]
            offset = _shrinking_centre(unwrap(position[sound], origin, header.box_size), mass[sound])
            middle = (origin + offset) % header.box_size
    else:
        middle = np.asarray(centre, np.float64)
    kinds = {k: replace(p, position=unwrap(p.position, middle, header.box_size)) for k, p in kinds.items()}
    simulation = header.simulation or "an unnamed simulation"
    return Galaxy(
        name=f"subhalo {header.cutout}",
        number=header.cutout,
        snapshot=header.number,
        redshift=header.redshift,
        hubble=header.hubble,
        omega_matter=header.omega_matter,
        centre=middle,
        particles=kinds,
        velocity=systemic_velocity(kinds),
        half_mass_radius={kind: half_mass_radius(p) for kind, p in kinds.items()},
        provenance=f"cutout {path.name} of {simulation}" + (f"; {replaced}" if replaced else ""),
        replaced=replaced,
    )
