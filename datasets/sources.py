"""Where galaxies come from: a catalogued snapshot, API cutouts, density peaks of a box. One class each.

A source lists its items before anything is projected, so that a build knows its size and can refuse early, and reads
one item at a time. A new simulation is one subclass.
"""

import abc
import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from skyshift.datasets.cutout_facts import cutout_facts
from skyshift.datasets.galaxy import PARTICLE_TYPES, Galaxy
from skyshift.datasets.smoothing import cell_radius, with_support
from skyshift.datasets.synthetic import PARAMETERS, SyntheticSimulation, write_simulation
from skyshift.datasets.tng import Box, Snapshot, read_cutout, read_cutout_header
from skyshift.datasets.tng_files import Need
from skyshift.datasets.tng_units import SnapshotError
from skyshift.naming import unknown


@dataclass(frozen=True)
class Item:
    """One galaxy or region of a source.

    Attributes:
        number: Given to :meth:`GalaxySource.read`.
        split_group: Items with the same number share space or matter and never fall on different sides of a split.
    """

    number: int
    split_group: int


class GalaxySource(abc.ABC):
    """A list of galaxies and how to read each."""

    @abc.abstractmethod
    def items(self) -> list[Item]:
        """All galaxies, in a fixed order.

        Raises:
            SnapshotError: The data is not there, or nothing in it is asked for.
        """

    @abc.abstractmethod
    def read(self, number: int, need: Need) -> Galaxy:
        """One galaxy with the particle kinds and fields in ``need``.

        Raises:
            SnapshotError: It cannot be read.
            GalaxyError: Its particles are not physical.
        """

    def stream(self, number: int, need: Need, particles: int) -> Iterator[Galaxy]:
        """The same galaxy in pieces, each with some of its particles and kernel supports, for those too large to hold.

        Args:
            number: As for :meth:`read`.
            need: As for :meth:`read`.
            particles: A piece holds at most so many. A source that reads its galaxies whole yields one piece.

        Raises:
            SnapshotError: It cannot be read, or not in pieces.
            GalaxyError: Its particles are not physical.
        """
        galaxy = self.read(number, need)
        for kind in need:
            galaxy = with_support(galaxy, kind)
        yield galaxy

    def labels(self) -> tuple[str, ...]:
        """Names of the classes, empty where there are none."""
        return ()

    def listed(self) -> str:
        """What :meth:`items` found, where that depends on more than the settings; a store remembers it."""
        return ""


@functools.lru_cache(maxsize=2)
def _snapshot(base_path: str, number: int, partial: bool) -> Snapshot:
    return Snapshot(base_path, number, partial=partial)


@dataclass
class SnapshotSource(GalaxySource):
    """Galaxies of a full snapshot with its group catalogue. Objects with ``SubhaloFlag`` 0 are left out.

    Attributes:
        base_path: The simulation's ``output`` folder.
        snapshot: Its number.
        minimum_mass: Kind to the least mass (Msun) that a galaxy must have.
        minimum_particles: Kind to the least number of particles.
        galaxies: Subhalo numbers to take; by default all that pass the two minima.
        limit: At most so many, the most massive groups first; 0 for no limit.
        partial: Go on although chunks other than the first are missing; galaxies in these are left out.
    """

    base_path: str = ""
    snapshot: int = 99
    minimum_mass: dict[str, float] = field(default_factory=dict)
    minimum_particles: dict[str, int] = field(default_factory=lambda: {"gas": 100, "dm": 100, "stars": 100})
    galaxies: list[int] | None = None
    limit: int = 0
    partial: bool = False

    def _open(self) -> Snapshot:
        return _snapshot(self.base_path, self.snapshot, self.partial)

    def _column(self, kind: str) -> int:
        if kind not in PARTICLE_TYPES:
            raise SnapshotError(unknown("kind of particle", kind, PARTICLE_TYPES))
        return PARTICLE_TYPES[kind]

    def items(self) -> list[Item]:
        """The chosen subhaloes; each is a split group of its own."""
        table = self._open().subhalos
        good = table.good.copy()
        for kind, mass in self.minimum_mass.items():
            good &= table.mass[:, self._column(kind)] >= mass
        enough = np.ones(len(table), bool)
        for kind, count in self.minimum_particles.items():
            enough &= table.count[:, self._column(kind)] >= count
        if self.galaxies is not None:
            self._check_asked(self.galaxies, table.count, enough, table.good)
            chosen = list(self.galaxies)
        else:
            passing = np.flatnonzero(good & enough)
            if self.partial:
                kinds = [kind for kind in PARTICLE_TYPES if kind in self._open().fields]
                passing = passing[self._open().reachable(passing, kinds)]
            chosen = passing.tolist()
        if not chosen:
            raise SnapshotError(
                f"no galaxy of {self.base_path}, snapshot {self.snapshot}, passes minimum_mass {self.minimum_mass} "
                f"and minimum_particles {self.minimum_particles}"
            )
        return [Item(number, number) for number in (chosen[: self.limit] if self.limit else chosen)]

    def _check_asked(
        self,
        asked: list[int],
        count: NDArray[np.int64],
        enough: NDArray[np.bool_],
        good: NDArray[np.bool_],
    ) -> None:
        """A galaxy that was asked for by number is never dropped in silence."""
        for number in asked:
            if not 0 <= number < len(good):
                raise SnapshotError(f"there is no subhalo {number}; snapshot {self.snapshot} has {len(good)}")
            if not good[number]:
                raise SnapshotError(f"subhalo {number} has SubhaloFlag 0: it is not of cosmological origin")
            if not enough[number]:
                held = {kind: int(count[number, PARTICLE_TYPES[kind]]) for kind in self.minimum_particles}
                raise SnapshotError(
                    f"subhalo {number} has {held} particles, fewer than minimum_particles {self.minimum_particles}; "
                    "lower the minimum or leave it out"
                )

    def read(self, number: int, need: Need) -> Galaxy:
        """One subhalo."""
        return self._open().galaxy(number, need=need)

    def stream(self, number: int, need: Need, particles: int) -> Iterator[Galaxy]:
        """One subhalo piece by piece, through the offsets; memory grows with ``particles`` alone."""
        return self._open().stream(number, need, particles)

    def labels(self) -> tuple[str, ...]:
        """Classes of the catalogue."""
        return self._open().subhalos.label_names


@dataclass
class SyntheticSource(SnapshotSource):
    """The toy simulation, written where it is not there yet, then read as any snapshot.

    Attributes:
        path: Folder of the simulation.
        simulation: Its parameters.
    """

    path: str = "data/synthetic"
    simulation: SyntheticSimulation = field(default_factory=SyntheticSimulation)

    def __post_init__(self) -> None:
        self.base_path = str(Path(self.path) / "output")
        self.snapshot = self.simulation.snapshot

    def prepare(self, workers: int) -> None:
        """Write the simulation, unless it is there.

        Raises:
            SnapshotError: There is one with other parameters.
        """
        marker = Path(self.path) / PARAMETERS
        if not marker.is_file():
            write_simulation(self.path, self.simulation, workers=workers)
            return
        held = json.loads(marker.read_text(encoding="utf-8"))
        asked = json.loads(json.dumps(asdict(self.simulation)))
        different = [name for name, value in asked.items() if held.get(name) != value]
        if different:
            name = different[0]
            raise SnapshotError(
                f"{self.path} holds a simulation with {name} = {held.get(name)}, this one has {asked[name]}; "
                "choose another path or delete that one"
            )


@dataclass
class CutoutSource(GalaxySource):
    """Cutout files of the TNG web service.

    ``items`` looks for the files, and ``read`` takes these, also in another process: what comes into the folder later
    changes no number. A store remembers the list, and a build with another one is refused.

    The numbers of subhaloes mean something within one snapshot alone, so without a merger tree nobody knows which
    cutouts of two snapshots are one galaxy at two times. They must not fall on different sides of a split.

    Attributes:
        files: Paths or patterns (``cutouts/*.hdf5``).
        minimum_particles: Kind to the least number of particles.
        partial: Take thinned files, whose header counts more than they hold.
        several_snapshots: Of one simulation: refuse them; put all of that simulation ``together`` into one split group,
            which is safe; or take the same number for the same galaxy, ``by_number``, where you have arranged that.
    """

    files: list[str] = field(default_factory=list)
    minimum_particles: dict[str, int] = field(default_factory=dict)
    partial: bool = False
    several_snapshots: Literal["refuse", "together", "by_number"] = "refuse"

    def __post_init__(self) -> None:
        self._found: list[Path] = []  # by items()

    def _paths(self) -> list[Path]:
        """The files, absolute: a worker may stand elsewhere."""
        found: list[Path] = []
        for pattern in self.files:
            path = Path(pattern)
            matches = [path] if path.is_file() else sorted(path.parent.glob(path.name))
            if not matches:
                raise SnapshotError(f"no cutout file is called {pattern}")
            found.extend(matches)
        return list({path.resolve(): path.absolute() for path in found}.values())

    def items(self) -> list[Item]:
        """The files in the order given, each once; files of one subhalo form a split group.

        Raises:
            SnapshotError: There are none, one is no cutout, or they are of several snapshots of one simulation.
        """
        paths = self._paths()
        if not paths:
            raise SnapshotError("no cutout files were named (files: [...])")
        headers = [read_cutout_header(path) for path in paths]
        epochs: dict[str, dict[float, Path]] = {}
        for path, header in zip(paths, headers, strict=True):
            epochs.setdefault(header.simulation, {}).setdefault(round(header.scale_factor, 6), path)
        several = {simulation: list(times.values()) for simulation, times in epochs.items() if len(times) > 1}
        if several and self.several_snapshots == "refuse":
            simulation, (first, second, *_) = next(iter(several.items()))
            raise SnapshotError(
                f"{first} and {second} are of two snapshots of {simulation or 'an unnamed simulation'}: which cutouts "
                "are one galaxy at two times is not known, and a split could put it on both sides. Build one store a "
                "snapshot and train on one alone, or set source.several_snapshots to together (one split group a "
                "simulation) or, where one number is one galaxy, to by_number"
            )
        groups: dict[tuple[object, ...], int] = {}
        items = []
        for i, (path, header) in enumerate(zip(paths, headers, strict=True)):
            group: tuple[object, ...] = (header.simulation, header.cutout if header.cutout >= 0 else path)
            if header.simulation in several and self.several_snapshots == "together":
                group = (header.simulation,)
            elif header.simulation in several and header.cutout < 0:
                raise SnapshotError(f"{path} does not say which subhalo it is: several_snapshots cannot be by_number")
            items.append(Item(i, groups.setdefault(group, i)))
        self._found = paths
        return items

    def listed(self) -> str:
        """Number and hash of the names of the files that :meth:`items` found."""
        names = "\n".join(path.name for path in self._found)
        return f"{len(self._found)} files, SHA-256 of their names {hashlib.sha256(names.encode()).hexdigest()}"

    def read(self, number: int, need: Need) -> Galaxy:
        """One file."""
        self._found = self._found or self._paths()
        path = self._found[number]
        facts = cutout_facts(path)
        galaxy = read_cutout(
            path,
            need=need,
            partial=self.partial,
            centre=facts.centre if facts else None,
            empty=[kind for kind, count in facts.count.items() if not count] if facts else (),
        )
        if facts:
            radii = {kind: radius for kind, radius in facts.half_mass_radius.items() if kind in galaxy.half_mass_radius}
            galaxy = replace(
                galaxy,
                velocity=np.array(facts.velocity),
                half_mass_radius={**galaxy.half_mass_radius, **radii},
            )
        if galaxy.number < 0:  # the file does not say which subhalo it is
            galaxy = replace(galaxy, number=number, name=path.stem)
        galaxy.require_count(self.minimum_particles)
        return galaxy


@functools.lru_cache(maxsize=1)
def _box(folder: str, need: frozenset[tuple[str, frozenset[str]]], partial: bool) -> Box:
    return Box(folder, need=dict(need), partial=partial)


@dataclass
class RegionSource(GalaxySource):
    """Regions around the density peaks of a subbox, or of any snapshot without a catalogue.

    A peak is the densest gas cell within ``separation`` of itself. A region is the sphere around a map
    of ``side`` that any rotation keeps inside; regions that leave the box, or that touch space where cells are missing
    (a chunk that is not there), are left out. Regions whose spheres overlap, directly or through others, form one
    split group, so that no volume is on two sides of a split.

    Attributes:
        folder: Holds the chunks.
        side: Side of the maps, kpc.
        separation: A peak is the densest cell within this distance, kpc.
        minimum_density: Least gas density of a peak, Msun/kpc³.
        limit: At most so many, densest first; 0 for no limit.
        partial: Go on although chunks are missing.
    """

    folder: str = ""
    side: float = 200.0
    separation: float = 50.0
    minimum_density: float = 1000.0
    limit: int = 0
    partial: bool = False

    @property
    def radius(self) -> float:
        """Radius of the sphere that holds a cube of ``side`` however it is turned, kpc."""
        return self.side * np.sqrt(3.0) / 2.0

    def _open(self, need: Need) -> Box:
        return _box(self.folder, frozenset((k, frozenset(v)) for k, v in need.items()), self.partial)

    @functools.cached_property
    def _peaks(self) -> NDArray[np.float64]:
        """(n, 3) kpc in the box."""
        gas = self._open({"gas": ("density",)}).particles["gas"]
        position, density = gas.position, gas["density"]
        low, high = position.min(axis=0), position.max(axis=0)
        inside = ((position - self.radius > low) & (position + self.radius < high)).all(axis=1)
        candidate = inside & (density >= self.minimum_density)
        hole = _hole(position, cell_radius(gas.mass, density), low, high)
        if len(hole) and candidate.any():
            candidate[candidate] = cKDTree(hole).query(position[candidate])[0] > self.radius
        tree = cKDTree(position)
        order = np.flatnonzero(candidate)[np.argsort(-density[candidate], kind="stable")]
        chosen: list[int] = []
        for index in order:
            if self.limit and len(chosen) == self.limit:
                break
            around = tree.query_ball_point(position[index], self.separation)
            if density[index] >= density[around].max():
                chosen.append(int(index))
        if not chosen:
            raise SnapshotError(
                f"{self.folder} has no density peak above {self.minimum_density:g} Msun/kpc3 whose region of "
                f"{self.side:g} kpc lies within the box and away from missing cells"
            )
        return np.asarray(position[chosen], np.float64)

    def items(self) -> list[Item]:
        """The regions; those that share space share a split group."""
        peaks = self._peaks
        pairs = cKDTree(peaks).query_pairs(2.0 * self.radius, output_type="ndarray")
        graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(peaks), len(peaks)))
        _, group = connected_components(graph, directed=False)
        return [Item(number, int(group[number])) for number in range(len(peaks))]

    def read(self, number: int, need: Need) -> Galaxy:
        """One region."""
        return self._open(need).region(self._peaks[number], self.radius, number)


HOLE_CELL_RADII = 1.5
"""A point further from its nearest cell than so many radii of that cell lies in no cell (at this value the volume
found in a box with a known chunk missing equals, to 2 %, the box less the volumes of its cells)."""


def _hole(
    position: NDArray[np.floating],
    radius: NDArray[np.floating],
    low: NDArray[np.floating],
    high: NDArray[np.floating],
    points: int = 96,
) -> NDArray[np.float64]:
    """Points of a regular grid in space that no Voronoi cell covers, specks of stretched cells left out.

    Args:
        position: (n, 3) kpc, the cells' centres.
        radius: (n,) kpc, the cells' radii.
        low: (3,) kpc, lower corner of the box.
        high: (3,) kpc, upper corner.
        points: Grid points along each side.

    Returns:
        (m, 3) kpc.
    """
    step = (high - low) / points
    axes = [low[i] + step[i] * (np.arange(points) + 0.5) for i in range(3)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    distance, nearest = cKDTree(position).query(grid)
    parts, _ = label((distance > HOLE_CELL_RADII * radius[nearest]).reshape(points, points, points))
    parts = parts.ravel()
    size = np.bincount(parts)
    large = size > 1e-3 * points**3
    large[0] = False
    return np.asarray(grid[large[parts]], np.float64)
