"""Read IllustrisTNG: full snapshots with their group catalogue, API cutouts, and boxes without a catalogue.

All three give :class:`~skyshift.datasets.galaxy.Galaxy` objects in physical units (kpc, Msun, K, Gauss, km/s),
unwrapped across the periodic box about the galaxy's centre. Stars and wind particles, which share type 4, are told
apart; the mass of a dark-matter particle comes from the header.

References:
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (arXiv:1812.05609), and the TNG data specification.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import illustris_python
import numpy as np
from numpy.typing import NDArray

from skyshift.datasets.galaxy import PARTICLE_TYPES, Galaxy, Particles
from skyshift.datasets.smoothing import NEIGHBOURS, neighbour_distance
from skyshift.datasets.tng_units import (
    FIELDS,
    Header,
    SnapshotError,
    check_scaling,
    no_particles,
    read_header,
    tng_fields,
    to_particles,
)

KINDS = ("gas", "dm", "stars", "black_holes")


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise SnapshotError(f"{path} does not exist") from None
    except OSError as error:
        raise SnapshotError(f"{path} is no HDF5 file, or is cut off ({error}); fetch it again") from None


def unwrap(position: NDArray[np.floating], centre: NDArray[np.floating], box_size: float) -> NDArray[np.float64]:
    """Offsets from ``centre`` by the shortest way through the periodic box, d - L round(d/L).

    Args:
        position: (n, 3) in the box.
        centre: (3,) in the box, same unit.
        box_size: L, same unit.

    Returns:
        (n, 3) float64, each component in [-L/2, L/2].
    """
    offset = np.asarray(position, np.float64) - np.asarray(centre, np.float64)
    return offset - box_size * np.round(offset / box_size)


def half_mass_radius(particles: Particles) -> float:
    """Radius in kpc that holds half of the particles' mass; positions relative to the centre. 0 without particles."""
    if not len(particles):
        return 0.0
    radius = np.linalg.norm(particles.position, axis=1)
    order = np.argsort(radius)
    enclosed = np.cumsum(particles.mass[order])
    half = min(int(np.searchsorted(enclosed, 0.5 * enclosed[-1])), len(order) - 1)  # beyond: masses that Galaxy refuses
    return float(radius[order][half])


def _split_wind(kinds: dict[str, Particles], where: str, needed: bool) -> dict[str, Particles]:
    """Part type 4 into stars (formation time > 0) and wind (≤ 0); where these cannot be told apart, neither."""
    type4 = kinds.pop("stars", None)
    if type4 is None:
        return kinds
    if "formation_scale_factor" not in type4.fields:
        if not needed:
            return kinds
        raise SnapshotError(
            f"{where}: PartType4 has no GFM_StellarFormationTime, so stars cannot be told from wind particles; "
            "ask for that field when downloading"
        )
    is_star = type4["formation_scale_factor"] > 0
    return {**kinds, "stars": type4.select(is_star), "wind": type4.select(~is_star)}


def _check_need(have: Mapping[str, Iterable[str]], need: Mapping[str, Iterable[str]], where: str) -> None:
    """Refuse, before anything is read, when a kind or a field that is needed is not in the file."""
    for kind, names in need.items():
        number = PARTICLE_TYPES[kind]
        file_kind = "stars" if kind == "wind" else kind
        if file_kind not in have:
            held = ", ".join(f"PartType{PARTICLE_TYPES[k]}" for k in have) or "no particles"
            raise SnapshotError(
                f"{where} has no PartType{number} ({kind}); it holds {held}. Download it with {kind} particles or "
                "choose domains that do not need them."
            )
        for name in names:
            sources = tng_fields(name)
            if name not in ("mass", "position", "support") and not set(sources) <= set(have[file_kind]):
                lacking = sorted(set(sources) - set(have[file_kind]))
                raise SnapshotError(
                    f"{where}: PartType{number} has no {', '.join(lacking)}, needed for '{name}' of {kind}. "
                    f"Download it again with {','.join(sources)} or choose other domains."
                )


def _require_counts(file: h5py.File, kind: str, header: Header, partial: bool = False) -> None:
    """Hold the lengths of the arrays of one kind against each other and against the header."""
    number = PARTICLE_TYPES[kind]
    name = f"PartType{number}"
    if name not in file:
        return
    lengths = {field: len(file[name][field]) for field in FIELDS[kind] if field in file[name]}
    if len(set(lengths.values())) > 1:
        raise SnapshotError(f"{file.filename}: the fields of {name} differ in length: {lengths}")
    count, claimed = next(iter(lengths.values()), 0), int(header.counts[number])
    if count != claimed and not partial:
        raise SnapshotError(
            f"{file.filename}: the header counts {claimed} particles of type {number}, the arrays hold {count}. "
            "The file is thinned or damaged; ask for a partial read to take it as it is (masses will not add up)."
        )


def _read_group(file: h5py.File, kind: str, header: Header, partial: bool) -> dict[str, NDArray[Any]]:
    """The stored arrays of one kind in one file, with its counts and scalings checked."""
    number = PARTICLE_TYPES[kind]
    name = f"PartType{number}"
    claimed = int(header.counts[number])
    if name not in file:
        if claimed and not partial:
            raise SnapshotError(
                f"{file.filename}: the header counts {claimed} particles of type {number} but the file has no {name}; "
                "ask for a partial read if it was thinned on purpose"
            )
        return {}
    group = file[name]
    fields = [field for field in FIELDS[kind] if field in group]
    for required in ("Coordinates", *(() if kind == "dm" else ("Masses",))):
        if required not in group:
            raise SnapshotError(f"{file.filename}: {name} has no {required}; download it again with that field")
    _require_counts(file, kind, header, partial)
    for field in fields:
        check_scaling(group, field)
    return {field: group[field][()] for field in fields}


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
    with _open(Path(path)) as file:
        return read_header(file)


def read_cutout(
    path: str | Path,
    *,
    need: Mapping[str, Iterable[str]] | None = None,
    centre: Sequence[float] | None = None,
    partial: bool = False,
) -> Galaxy:
    """Read an API cutout file.

    Args:
        path: The HDF5 file.
        need: Kind to the fields that must be there, checked before anything is read.
        centre: (3,) kpc in the box, physical; by default the centre of shrinking spheres around all particles
            (a cutout does not carry ``SubhaloPos``).
        partial: Take a thinned file, whose header counts more particles than the arrays hold.

    Returns:
        The galaxy, with half-mass radii computed from the particles.

    Raises:
        SnapshotError: No snapshot, no particles, a needed kind or field missing, counts that disagree.
        GalaxyError: Values that are not finite, or negative masses.
    """
    path = Path(path)
    with _open(path) as file:
        header = read_header(file)
        groups = {kind: f"PartType{PARTICLE_TYPES[kind]}" for kind in KINDS}
        have = {kind: set(file[group]) for kind, group in groups.items() if group in file}
        # A type without particles has no group: asked for and absent means that the galaxy has none.
        none = [k for k, g in groups.items() if k not in have and g in header.request]
        _check_need({**have, **{kind: FIELDS[kind] for kind in none}}, need or {}, str(path))
        stored = {kind: _read_group(file, kind, header, partial) for kind in KINDS}
    kinds = {k: to_particles(k, v, header) for k, v in stored.items() if v}
    if not any(len(particles) for particles in kinds.values()):
        raise SnapshotError(f"{path} holds no particles at all; the subhalo has none of the types asked for")
    kinds.update({kind: no_particles(kind, header) for kind in none})
    kinds = _split_wind(kinds, str(path), need is None or not {"stars", "wind"}.isdisjoint(need))
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
    return Galaxy(
        name=f"subhalo {header.cutout}",
        number=header.cutout,
        snapshot=header.number,
        redshift=header.redshift,
        hubble=header.hubble,
        omega_matter=header.omega_matter,
        centre=middle,
        particles=kinds,
        half_mass_radius={kind: half_mass_radius(p) for kind, p in kinds.items()},
        provenance=f"cutout {path.name} of {header.simulation or 'an unnamed simulation'}",
    )


def _chunk_paths(folder: Path) -> dict[int, Path]:
    matches = [(re.search(r"\.(\d+)\.hdf5$", p.name), p) for p in sorted(folder.glob("*.hdf5"))]
    return {int(match.group(1)): path for match, path in matches if match}


def _require_chunks(folder: Path, chunks: Mapping[int, Path], files: int, partial: bool) -> list[str]:
    """The chunks that are missing, refused unless a partial read is asked for."""
    stem = re.sub(r"\.\d+\.hdf5$", "", next(iter(chunks.values())).name)
    missing = [str(folder / f"{stem}.{i}.hdf5") for i in range(files) if i not in chunks]
    if missing and not partial:
        raise SnapshotError(
            f"{len(missing)} of {files} chunks are missing, first {missing[0]}; fetch them, or ask for a partial read"
        )
    return missing


def _first_header(folder: Path) -> tuple[Header, dict[int, Path]]:
    chunks = _chunk_paths(folder)
    if not chunks:
        raise SnapshotError(f"{folder} is no snapshot: it has no files named like snap_099.0.hdf5")
    with _open(next(iter(chunks.values()))) as file:
        return read_header(file), chunks


@dataclass(frozen=True)
class Subhalos:
    """The rows of a group catalogue that the maps need, in physical units.

    Attributes:
        position: (n, 3) kpc in the box, minimum of the potential.
        velocity: (n, 3) km/s, peculiar.
        mass: (n, 6) Msun by type; wind counts as gas.
        count: (n, 6) particles by type; wind counts as type 4.
        half_mass_radius: (n, 6) kpc by type.
        sfr: (n,) Msun/yr.
        group: (n,) number of the host group.
        good: (n,) False where ``SubhaloFlag`` says that the object is no galaxy.
        label: (n,) class number, -1 where there is none.
        label_names: Names of the classes.
    """

    position: NDArray[np.float64]
    velocity: NDArray[np.float64]
    mass: NDArray[np.float64]
    count: NDArray[np.int64]
    half_mass_radius: NDArray[np.float64]
    sfr: NDArray[np.float64]
    group: NDArray[np.int64]
    good: NDArray[np.bool_]
    label: NDArray[np.int64]
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sfr)


class Snapshot:
    """A full snapshot with its group catalogue, read through ``illustris_python``.

    Args:
        base_path: The simulation's ``output`` folder.
        number: Snapshot number.
        partial: Go on although chunks other than the first are missing; see :meth:`reachable`.

    Raises:
        SnapshotError: No snapshot or catalogue there, or a chunk is missing (the message names it).
    """

    _CATALOGUE = (
        "SubhaloPos", "SubhaloVel", "SubhaloMassType", "SubhaloLenType", "SubhaloHalfmassRadType", "SubhaloSFR",
        "SubhaloGrNr", "SubhaloFlag",
    )  # fmt: skip
    _LABEL = "SubhaloMorphology"

    def __init__(self, base_path: str | Path, number: int, *, partial: bool = False) -> None:
        self.base_path = Path(base_path)
        self.number = number
        folder = self.base_path / f"snapdir_{number:03d}"
        if not folder.is_dir():
            there = ", ".join(sorted(p.name for p in self.base_path.glob("snapdir_*"))) or "no snapdir_NNN folder"
            raise SnapshotError(f"{folder} does not exist; {self.base_path} holds {there}")
        self.header, self._chunks = _first_header(folder)
        _require_chunks(folder, self._chunks, self.header.files, partial)
        if 0 not in self._chunks:
            raise SnapshotError(f"chunk 0 of {folder} is missing: without it nothing of a catalogued snapshot is found")
        self._offsets = self.base_path.parent / "postprocessing" / "offsets" / f"offsets_{number:03d}.hdf5"
        if not self._offsets.is_file():
            raise SnapshotError(
                f"{self._offsets} is missing: without the offsets no subhalo can be found in the snapshot"
            )
        with _open(self._offsets) as file:
            self._starts = file["FileOffsets/SnapByType"][()].astype(np.int64)
        self._sound: set[int] = set()
        self.fields = self._available(self._chunks)
        self.subhalos = self._read_catalogue()

    def _available(self, chunks: Mapping[int, Path]) -> dict[str, set[str]]:
        """The fields of each kind, from the first chunk that holds it, with their scalings checked."""
        have: dict[str, set[str]] = {}
        for path in chunks.values():
            with _open(path) as file:
                for kind in KINDS:
                    name = f"PartType{PARTICLE_TYPES[kind]}"
                    if kind not in have and name in file:
                        have[kind] = set(file[name])
                        for field in set(FIELDS[kind]) & have[kind]:
                            check_scaling(file[name], field)
            if len(have) == len(KINDS):
                break
        return have

    def _read_catalogue(self) -> Subhalos:
        first = Path(illustris_python.groupcat.gcPath(str(self.base_path), self.number))
        with _open(first) as file:
            files = int(np.asarray(file["Header"].attrs["NumFiles"]).reshape(-1)[0]) if "Header" in file else 1
            _require_chunks(first.parent, _chunk_paths(first.parent), files, partial=False)
            columns = set(file["Subhalo"]) if "Subhalo" in file else set()
            lacking = [name for name in self._CATALOGUE if name not in columns]
            if lacking:
                raise SnapshotError(f"{first}: the group catalogue has no {', '.join(lacking)}")
            labelled = self._LABEL in columns
            names = json.loads(file["Subhalo"][self._LABEL].attrs["names"]) if labelled else []
        wanted = [*self._CATALOGUE, *([self._LABEL] if labelled else [])]
        raw = illustris_python.groupcat.loadSubhalos(str(self.base_path), self.number, fields=wanted)
        length = self.header.scale_factor / self.header.hubble
        return Subhalos(
            position=raw["SubhaloPos"].astype(np.float64) * length,
            velocity=raw["SubhaloVel"].astype(np.float64),
            mass=raw["SubhaloMassType"].astype(np.float64) * 1e10 / self.header.hubble,
            count=raw["SubhaloLenType"].astype(np.int64),
            half_mass_radius=raw["SubhaloHalfmassRadType"].astype(np.float64) * length,
            sfr=raw["SubhaloSFR"].astype(np.float64),
            group=raw["SubhaloGrNr"].astype(np.int64),
            good=raw["SubhaloFlag"].astype(bool),
            label=raw[self._LABEL].astype(np.int64) if labelled else np.full(len(raw["SubhaloSFR"]), -1),
            label_names=tuple(names),
        )

    def galaxy(self, number: int, *, need: Mapping[str, Iterable[str]] | None = None) -> Galaxy:
        """Read one subhalo.

        Args:
            number: Row of the catalogue.
            need: Kind to the fields that must be there; only these kinds are read. By default all kinds.

        Raises:
            SnapshotError: No such subhalo, a needed kind or field missing, a chunk missing or damaged.
            GalaxyError: Values that are not finite, or negative masses.
        """
        if not 0 <= number < len(self.subhalos):
            raise SnapshotError(f"there is no subhalo {number}; snapshot {self.number} has {len(self.subhalos)}")
        where = f"{self.base_path}, snapshot {self.number}"
        _check_need(self.fields, need or {}, where)
        asked = KINDS if need is None else {"stars" if kind == "wind" else kind for kind in need}
        kinds = {}
        for kind in asked:
            if kind in self.fields:
                kinds[kind] = self._load(number, kind)
        kinds = _split_wind(kinds, where, needed=True)
        centre = self.subhalos.position[number]
        radii = self.subhalos.half_mass_radius[number]
        return Galaxy(
            name=f"subhalo {number}",
            number=number,
            snapshot=self.number,
            redshift=self.header.redshift,
            hubble=self.header.hubble,
            omega_matter=self.header.omega_matter,
            centre=centre,
            velocity=self.subhalos.velocity[number],
            particles={
                k: replace(p, position=unwrap(p.position, centre, self.header.box_size)) for k, p in kinds.items()
            },
            half_mass_radius={kind: float(radii[PARTICLE_TYPES[kind]]) for kind in KINDS},
            label=int(self.subhalos.label[number]),
            provenance=f"subhalo {number} of {where}",
        )

    def _chunk_range(self, first: NDArray[np.int64], number: NDArray[np.int64], kind: str) -> NDArray[np.int64]:
        """(n, 2) first and last chunk that hold particles of ``kind`` of these subhaloes."""
        column = PARTICLE_TYPES[kind]
        last = first[:, column] + np.maximum(self.subhalos.count[number, column], 1) - 1
        ends = np.stack([first[:, column], last], axis=1)
        return np.searchsorted(self._starts[:, column], ends, side="right") - 1

    def reachable(self, numbers: NDArray[np.int64], kinds: Iterable[str]) -> NDArray[np.bool_]:
        """(n,) whether all particles of these kinds lie in chunks that are there."""
        with _open(self._offsets) as file:
            first = file["Subhalo/SnapByType"][()].astype(np.int64)[numbers]
        missing = np.array([chunk not in self._chunks for chunk in range(len(self._starts))]).cumsum()
        before = np.concatenate([[0], missing])
        good = np.ones(len(numbers), bool)
        for kind in kinds:
            low, high = self._chunk_range(first, numbers, kind).T
            empty = self.subhalos.count[numbers, PARTICLE_TYPES[kind]] == 0
            good &= empty | (before[high + 1] == before[low])
        return good

    def _require_sound(self, number: int, kind: str) -> None:
        """Check the chunks of one subhalo, each once: there, and as many particles as header and offsets say."""
        with _open(self._offsets) as file:
            first = file["Subhalo/SnapByType"][number : number + 1].astype(np.int64)
        low, high = self._chunk_range(first, np.array([number]), kind)[0]
        for chunk in range(low, high + 1):
            if chunk in self._sound:
                continue
            if chunk not in self._chunks:
                raise SnapshotError(
                    f"subhalo {number} of {self.base_path}, snapshot {self.number}: its {kind} particles lie in chunk "
                    f"{chunk}, which is missing"
                )
            with _open(self._chunks[chunk]) as file:
                header = read_header(file)
                for name in KINDS:
                    _require_counts(file, name, header)
            if chunk + 1 < len(self._starts):
                held = self._starts[chunk + 1] - self._starts[chunk]
                if (held != header.counts).any():
                    raise SnapshotError(
                        f"{self._chunks[chunk]}: the header counts {header.counts.tolist()} particles by type, the "
                        f"offsets {held.tolist()}; offsets and snapshot do not belong together"
                    )
            self._sound.add(chunk)

    def _load(self, number: int, kind: str) -> Particles:
        if not self.subhalos.count[number, PARTICLE_TYPES[kind]]:
            return no_particles(kind, self.header)
        self._require_sound(number, kind)
        fields = [field for field in FIELDS[kind] if field in self.fields[kind]]
        try:
            stored = illustris_python.snapshot.loadSubhalo(
                str(self.base_path), self.number, number, PARTICLE_TYPES[kind], fields=fields
            )
        except Exception as error:  # the library raises bare exceptions for what it cannot read
            raise SnapshotError(
                f"subhalo {number} of {self.base_path}, snapshot {self.number}: its {kind} particles lie in a chunk "
                f"that is missing or damaged ({error})"
            ) from error
        if not isinstance(stored, dict):  # a single field comes as a bare array
            stored = {fields[0]: stored}
        stored.pop("count", None)
        return to_particles(kind, stored, self.header)


class Box:
    """All particles of a subbox, or of a snapshot without a catalogue, from the folder of its chunks.

    Args:
        folder: Holds ``*.0.hdf5``, ``*.1.hdf5``, …
        need: Kind to the fields that must be there; only these kinds are read. By default all kinds.
        partial: Read what there is although chunks are missing; see :attr:`missing`.

    Attributes:
        header: Of the first chunk.
        missing: The chunks that are not there.
        particles: Kind to particles, positions in kpc in the box, with kernel supports that were searched for among
            all particles of the box where the files give none.

    Raises:
        SnapshotError: No snapshot there, a chunk is missing (the message names it) or contradicts its header.
    """

    def __init__(
        self, folder: str | Path, *, need: Mapping[str, Iterable[str]] | None = None, partial: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.header, chunks = _first_header(self.folder)
        self.missing = _require_chunks(self.folder, chunks, self.header.files, partial)
        asked = KINDS if need is None else tuple({"stars" if kind == "wind" else kind for kind in need})
        stored: dict[str, list[dict[str, NDArray[Any]]]] = {kind: [] for kind in asked}
        for path in chunks.values():
            with _open(path) as file:
                header = read_header(file)
                for kind in asked:
                    part = _read_group(file, kind, header, partial=False)
                    if part:
                        stored[kind].append(part)
        have = {kind: set.intersection(*(set(p) for p in parts)) for kind, parts in stored.items() if parts}
        _check_need(have, need or {}, str(self.folder))
        kinds = {}
        for kind, names in have.items():
            arrays = {name: np.concatenate([part[name] for part in stored[kind]]) for name in names}
            kinds[kind] = to_particles(kind, arrays, self.header)
        self.particles = {
            kind: p if p.support is not None else replace(p, support=neighbour_distance(p.position, NEIGHBOURS[kind]))
            for kind, p in _split_wind(kinds, str(self.folder), needed=True).items()
        }
        self.number = int(match.group(1)) if (match := re.search(r"_(\d+)\.", chunks[min(chunks)].name)) else -1

    def region(self, centre: NDArray[np.floating], radius: float, number: int) -> Galaxy:
        """The particles within ``radius`` of ``centre``, and those whose kernel reaches in, as a galaxy.

        Args:
            centre: (3,) kpc in the box.
            radius: kpc.
            number: Given to the region.
        """
        kinds = {}
        for kind, particles in self.particles.items():
            offset = unwrap(particles.position, centre, self.header.box_size)
            assert particles.support is not None
            reach = radius + particles.support
            inside = np.linalg.norm(offset, axis=1) <= reach
            kinds[kind] = replace(particles.select(inside), position=offset[inside])
        return Galaxy(
            name=f"region {number}",
            number=number,
            snapshot=self.number,
            redshift=self.header.redshift,
            hubble=self.header.hubble,
            omega_matter=self.header.omega_matter,
            centre=np.asarray(centre, np.float64),
            particles=kinds,
            half_mass_radius={kind: half_mass_radius(p) for kind, p in kinds.items()},
            provenance=f"sphere of {radius:.0f} kpc in {self.folder}",
        )
