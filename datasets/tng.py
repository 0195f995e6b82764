"""Read IllustrisTNG snapshots with their group catalogue, whole galaxies or piece by piece.

Cutouts of the web service are in :mod:`~skyshift.datasets.tng_cutout`, boxes without a catalogue in
:mod:`~skyshift.datasets.tng_box`; their names stand here as well. All three give
:class:`~skyshift.datasets.galaxy.Galaxy` objects in physical units (kpc, Msun, K, Gauss, km/s), unwrapped across the
periodic box about the galaxy's centre. Stars and wind particles, which share type 4, are told apart; the mass of a
dark-matter particle comes from the header.

References:
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (arXiv:1812.05609), and the TNG data specification.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import illustris_python
import numpy as np
from numpy.typing import NDArray

from skyshift.datasets.galaxy import PARTICLE_TYPES, Galaxy, Particles
from skyshift.datasets.smoothing import with_support
from skyshift.datasets.tng_box import Box
from skyshift.datasets.tng_catalogue import Subhalos, read_catalogue
from skyshift.datasets.tng_cutout import read_cutout, read_cutout_header
from skyshift.datasets.tng_files import (
    KINDS,
    Need,
    check_need,
    first_header,
    half_mass_radius,
    names_of,
    open_file,
    read_rows,
    refuse_holes,
    require_chunks,
    require_counts,
    split_wind,
    unwrap,
)
from skyshift.datasets.tng_units import (
    FIELDS,
    SnapshotError,
    check_scaling,
    no_particles,
    read_header,
    to_particles,
    wanted_fields,
)

__all__ = ["KINDS", "Box", "Snapshot", "Subhalos", "half_mass_radius", "read_cutout", "read_cutout_header", "unwrap"]


_SUPPORTS = {"gas": "Density", "dm": "SubfindHsml", "stars": "StellarHsml"}
"""The field that each kind's kernel supports come from."""


class Snapshot:
    """A full snapshot with its group catalogue, read through ``illustris_python``.

    Args:
        base_path: The simulation's ``output`` folder.
        number: Snapshot number.
        partial: Go on although chunks other than the first are missing; see :meth:`reachable`.

    Raises:
        SnapshotError: No snapshot or catalogue there, or a chunk is missing (the message names it).
    """

    def __init__(self, base_path: str | Path, number: int, *, partial: bool = False) -> None:
        self.base_path = Path(base_path)
        self.number = number
        folder = self.base_path / f"snapdir_{number:03d}"
        if not folder.is_dir():
            there = ", ".join(sorted(p.name for p in self.base_path.glob("snapdir_*"))) or "no snapdir_NNN folder"
            raise SnapshotError(f"{folder} does not exist; {self.base_path} holds {there}")
        self.header, self._chunks = first_header(folder)
        require_chunks(folder, self._chunks, self.header.files, partial)
        if 0 not in self._chunks:
            raise SnapshotError(f"chunk 0 of {folder} is missing: without it nothing of a catalogued snapshot is found")
        self._offsets = self.base_path.parent / "postprocessing" / "offsets" / f"offsets_{number:03d}.hdf5"
        if not self._offsets.is_file():
            raise SnapshotError(
                f"{self._offsets} is missing: without the offsets no subhalo can be found in the snapshot"
            )
        with open_file(self._offsets) as file:
            self._starts = file["FileOffsets/SnapByType"][()].astype(np.int64)
        self._sound: set[int] = set()
        self.fields = self._available(self._chunks)
        self.subhalos = read_catalogue(self.base_path, number, self.header)

    def _available(self, chunks: Mapping[int, Path]) -> dict[str, set[str]]:
        """The fields of each kind, from the first chunk that holds it, with their scalings checked."""
        have: dict[str, set[str]] = {}
        for path in chunks.values():
            with open_file(path) as file:
                for kind in KINDS:
                    name = f"PartType{PARTICLE_TYPES[kind]}"
                    if kind not in have and name in file:
                        have[kind] = set(file[name])
                        for field in set(FIELDS[kind]) & have[kind]:
                            check_scaling(file[name], field)
            if len(have) == len(KINDS):
                break
        return have

    def galaxy(self, number: int, *, need: Need | None = None) -> Galaxy:
        """Read one subhalo.

        Args:
            number: Row of the catalogue.
            need: Kind to the fields that must be there; only these kinds and fields are read. By default everything.

        Raises:
            SnapshotError: No such subhalo, a needed kind or field missing, a chunk missing or damaged.
            GalaxyError: Values that are not finite, or negative masses.
        """
        replaced = self._check(number, need)
        kinds = {kind: self._load(number, kind, names_of(need, kind)) for kind in self._asked(need)}
        return self._galaxy(number, split_wind(kinds, self._where, needed=True), replaced)

    def stream(self, number: int, need: Need, particles: int) -> Iterator[Galaxy]:
        """Read one subhalo piece by piece: its particles together are those of :meth:`galaxy`.

        Args:
            number: Row of the catalogue.
            need: As for :meth:`galaxy`.
            particles: A piece holds at most so many particles, all of one type; memory grows with this alone.

        Yields:
            The galaxy with some of its particles, kernel supports filled in.

        Raises:
            SnapshotError: As for :meth:`galaxy`, or kernel supports are not in the file and would have to be searched
                for among more than ``particles`` particles.
        """
        if particles < 1:
            raise SnapshotError(f"a piece of {particles} particles cannot be read; give at least 1")
        replaced = self._check(number, need)
        for kind in self._asked(need):
            self._check_piece(number, kind, particles)
        for kind in self._asked(need):
            for part in self._pieces(number, kind, names_of(need, kind), particles):
                galaxy = self._galaxy(number, split_wind({kind: part}, self._where, needed=True), replaced)
                for split in galaxy.particles:
                    galaxy = with_support(galaxy, split)
                yield galaxy

    def _check_piece(self, number: int, kind: str, particles: int) -> None:
        """Refuse pieces smaller than a galaxy among whose particles kernel supports have to be searched for."""
        count = int(self.subhalos.count[number, PARTICLE_TYPES[kind]])
        field = _SUPPORTS.get(kind, "field of supports")
        if count > particles and field not in self.fields[kind]:
            raise SnapshotError(
                f"subhalo {number} of {self._where}: PartType{PARTICLE_TYPES[kind]} has no {field}, and the kernel "
                f"supports of its {count} particles cannot be searched for in pieces of {particles}; raise the size "
                f"of a piece to {count}, or take a snapshot that carries the field"
            )

    @property
    def _where(self) -> str:
        return f"{self.base_path}, snapshot {self.number}"

    def _asked(self, need: Need | None) -> list[str]:
        asked = KINDS if need is None else dict.fromkeys("stars" if kind == "wind" else kind for kind in need)
        return [kind for kind in asked if kind in self.fields]

    def _check(self, number: int, need: Need | None) -> str:
        """Refuse a number or fields that are not there; what is replaced, in words."""
        if not 0 <= number < len(self.subhalos):
            raise SnapshotError(f"there is no subhalo {number}; snapshot {self.number} has {len(self.subhalos)}")
        return check_need(self.fields, need or {}, self._where)

    def _galaxy(self, number: int, kinds: Mapping[str, Particles], replaced: str) -> Galaxy:
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
            provenance=f"subhalo {number} of {self._where}" + (f"; {replaced}" if replaced else ""),
            replaced=replaced,
        )

    def _chunk_range(self, first: NDArray[np.int64], number: NDArray[np.int64], kind: str) -> NDArray[np.int64]:
        """(n, 2) first and last chunk that hold particles of ``kind`` of these subhaloes."""
        column = PARTICLE_TYPES[kind]
        last = first[:, column] + np.maximum(self.subhalos.count[number, column], 1) - 1
        ends = np.stack([first[:, column], last], axis=1)
        return np.searchsorted(self._starts[:, column], ends, side="right") - 1

    def reachable(self, numbers: NDArray[np.int64], kinds: Iterable[str]) -> NDArray[np.bool_]:
        """(n,) whether all particles of these kinds lie in chunks that are there."""
        with open_file(self._offsets) as file:
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
        with open_file(self._offsets) as file:
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
            with open_file(self._chunks[chunk]) as file:
                header = read_header(file)
                for name in KINDS:
                    require_counts(file, name, header)
            if chunk + 1 < len(self._starts):
                held = self._starts[chunk + 1] - self._starts[chunk]
                if (held != header.counts).any():
                    raise SnapshotError(
                        f"{self._chunks[chunk]}: the header counts {header.counts.tolist()} particles by type, the "
                        f"offsets {held.tolist()}; offsets and snapshot do not belong together"
                    )
            self._sound.add(chunk)

    def _load(self, number: int, kind: str, names: set[str] | None) -> Particles:
        if not self.subhalos.count[number, PARTICLE_TYPES[kind]]:
            return no_particles(kind, self.header)
        self._require_sound(number, kind)
        fields = [field for field in wanted_fields(kind, names) if field in self.fields[kind]]
        try:
            stored = illustris_python.snapshot.loadSubhalo(
                str(self.base_path), self.number, number, PARTICLE_TYPES[kind], fields=fields
            )
        except Exception as error:  # the library raises bare exceptions for what it cannot read
            raise SnapshotError(
                f"subhalo {number} of {self._where}: its {kind} particles lie in a chunk that is missing or damaged "
                f"({error}); fetch the chunks again"
            ) from error
        if not isinstance(stored, dict):  # a single field comes as a bare array
            stored = {fields[0]: stored}
        stored.pop("count", None)
        refuse_holes(stored["Coordinates"], f"subhalo {number} of {self._where}: PartType{PARTICLE_TYPES[kind]}")
        return to_particles(kind, stored, self.header, names)

    def _pieces(self, number: int, kind: str, names: set[str] | None, particles: int) -> Iterator[Particles]:
        """The particles of one kind, at most ``particles`` at once, read slice by slice from the chunks."""
        column = PARTICLE_TYPES[kind]
        count = int(self.subhalos.count[number, column])
        if not count:
            yield no_particles(kind, self.header)
            return
        self._require_sound(number, kind)
        with open_file(self._offsets) as file:
            first = int(file["Subhalo/SnapByType"][number, column])
        fields = [field for field in wanted_fields(kind, names) if field in self.fields[kind]]
        for start in range(first, first + count, particles):
            stored = self._rows(column, fields, start, min(start + particles, first + count))
            yield to_particles(kind, stored, self.header, names)

    def _rows(self, column: int, fields: Sequence[str], start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Rows ``start`` to ``stop`` of a type, counted over all chunks, in code units."""
        starts = self._starts[:, column]
        parts: dict[str, list[NDArray[Any]]] = {field: [] for field in fields}
        while start < stop:
            chunk = int(np.searchsorted(starts, start, side="right")) - 1
            end = min(stop, int(starts[chunk + 1])) if chunk + 1 < len(starts) else stop
            with open_file(self._chunks[chunk]) as file:
                group = file[f"PartType{column}"]
                for field in fields:
                    part = read_rows(group, field, slice(start - int(starts[chunk]), end - int(starts[chunk])))
                    if len(part) != end - start:
                        raise SnapshotError(
                            f"{file.filename}: PartType{column}/{field} ends {end - start - len(part)} rows before "
                            "the offsets say; offsets and snapshot do not belong together"
                        )
                    parts[field].append(part)
            start = end
        return {field: np.concatenate(rows) for field, rows in parts.items()}
