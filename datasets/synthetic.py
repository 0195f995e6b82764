"""A toy simulation in the format of IllustrisTNG: snapshot, group catalogue and offsets.

Every galaxy is one group with one subhalo. Groups are ordered by mass, particles by group, and the
snapshot's files break in the middle of a galaxy, as they do in IllustrisTNG. The most massive galaxy
straddles a corner of the periodic box. What a galaxy looks like is the matter of
:mod:`skyshift.datasets.toy_recipes`, :mod:`skyshift.datasets.toy_galaxies` and
:mod:`skyshift.datasets.toy_gas`; units are in :mod:`skyshift.datasets.toy_units`.

What differs from IllustrisTNG: no particles outside groups, no satellites in the catalogue, recipes of the
nearby universe whatever the redshift, and ``SubhaloMorphology`` holds the class of each galaxy.

References:
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (arXiv:1812.05609), and the TNG data specification.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from skyshift.datasets.toy_galaxies import ToyGalaxy, build_galaxy
from skyshift.datasets.toy_recipes import (
    BARYON_FRACTION,
    HUBBLE,
    LABELS,
    MEDIAN_HALO_MASS,
    OMEGA_BARYON,
    OMEGA_MATTER,
    Recipe,
    draw_recipe,
)
from skyshift.datasets.toy_units import (
    BOX_SIZE,
    FIELDS,
    LENGTH,
    MASS,
    UNITS,
    VELOCITY,
    group_row,
    particle_arrays,
    subhalo_row,
)
from skyshift.errors import SkyshiftError
from skyshift.files import write_folder_whole

Array = NDArray[Any]
Row = Mapping[str, Any]

PARAMETERS = "simulation.json"
"""File beside ``output`` that holds the parameters of the simulation."""

MOST_GALAXIES = 10000  # beyond which haloes would overlap in the box
FEWEST_PARTICLES = 64
FLAGGED_EVERY = 50  # one galaxy in so many has SubhaloFlag 0, an object of non-cosmological origin


@dataclass(frozen=True)
class SyntheticSimulation:
    """What to simulate.

    Attributes:
        galaxies: Number of galaxies, at most 10,000.
        seed: Of all random numbers. A galaxy's particles depend on it and on the galaxy's own number alone.
        gas_cells: Gas cells of a galaxy of median halo mass, 6e11 Msun; others (M/median)^⅓ times as many.
        dm_particles: Dark-matter particles of a galaxy of median mass; others in proportion, all of one mass.
        star_particles: Star particles of a galaxy of median mass; others as gas.
        snapshot: Number of the snapshot, 0 to 999.
        fractions: Shares of discs, spheroids and mergers, in the order of ``LABELS``; they add up to 1.
        chunks: Files of the snapshot and of the catalogue. ``illustris_python`` reads a catalogue of one file
            only when it is told which fields.
        redshift: Of the snapshot, 0 to 5. It sets the scale factor and the ultraviolet background.
    """

    galaxies: int = 200
    seed: int = 0
    gas_cells: int = 8000
    dm_particles: int = 6000
    star_particles: int = 5000
    snapshot: int = 99
    fractions: tuple[float, float, float] = (0.5, 0.25, 0.25)
    chunks: int = 2
    redshift: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.galaxies <= MOST_GALAXIES:
            raise SkyshiftError(f"galaxies = {self.galaxies}: the box holds 1 to {MOST_GALAXIES} without overlap")
        for name in ("gas_cells", "dm_particles", "star_particles"):
            if getattr(self, name) < FEWEST_PARTICLES:
                raise SkyshiftError(
                    f"{name} = {getattr(self, name)}: a galaxy needs at least {FEWEST_PARTICLES} of each "
                    "kind for its densities and kernels; raise it"
                )
        if len(self.fractions) != len(LABELS) or min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise SkyshiftError(
                f"fractions = {self.fractions}: give the shares of {', '.join(LABELS)}, none negative, "
                f"adding up to 1 (these add up to {sum(self.fractions):g})"
            )
        if self.seed < 0:
            raise SkyshiftError(f"seed = {self.seed}: give a number from 0 on")
        if not 0 <= self.snapshot <= 999:
            raise SkyshiftError(f"snapshot = {self.snapshot}: file names hold numbers from 0 to 999")
        if self.chunks < 1:
            raise SkyshiftError(f"chunks = {self.chunks}: a snapshot has at least one file")
        if not 0 <= self.redshift <= 5:
            raise SkyshiftError(f"redshift = {self.redshift}: the ultraviolet background is known from 0 to 5")

    @property
    def scale_factor(self) -> float:
        """Scale factor, a = 1 / (1 + z)."""
        return 1.0 / (1.0 + self.redshift)

    @property
    def dark_particle_mass(self) -> float:
        """Msun of a dark-matter particle."""
        return (1.0 - BARYON_FRACTION) * MEDIAN_HALO_MASS / self.dm_particles

    def label(self, number: int) -> int:
        """Class of galaxy ``number``: a golden-ratio sequence keeps the shares even in any run of numbers."""
        place = number * 0.6180339887498949 % 1.0
        return int(np.searchsorted(np.cumsum(self.fractions)[:-1], place, side="right"))


def write_simulation(
    path: str | Path, simulation: SyntheticSimulation | None = None, workers: int = 1, progress: bool = True
) -> Path:
    """Write a toy simulation: ``output/snapdir_NNN``, ``output/groups_NNN`` and ``postprocessing/offsets``.

    The same simulation gives the same arrays whatever ``workers``. Nothing is left behind by an interrupt.

    Args:
        path: Folder of the simulation; it must be absent or empty.
        simulation: What to simulate; the defaults take 300 MB.
        workers: Processes that sample galaxies.
        progress: Show a progress bar.

    Returns:
        ``path/output``, the base path that ``illustris_python`` asks for.

    Raises:
        SkyshiftError: There is something at ``path`` already.
        SkyshiftError: ``workers`` is below one.
    """
    path, simulation = Path(path), simulation or SyntheticSimulation()
    if workers < 1:
        raise SkyshiftError(f"workers = {workers}: at least one process has to do the work")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SkyshiftError(f"{path} exists and is not empty; give another folder or remove it first")
    drawn = [draw_recipe(i, simulation.label(i), simulation.seed) for i in range(simulation.galaxies)]
    recipes = sorted(drawn, key=lambda recipe: -_total_mass(recipe, simulation))
    centres, drifts = _places(simulation)
    with write_folder_whole(path) as folder:
        galaxies = tqdm(
            _galaxies(recipes, simulation, workers),
            "galaxies",
            len(recipes),
            disable=not progress,
            leave=False,
        )
        subhalos, groups, offsets = _write_snapshot(folder, simulation, galaxies, centres, drifts)
        _write_catalogue(folder, simulation, subhalos, groups)
        _write_offsets(folder, simulation, subhalos, offsets)
        (folder / PARAMETERS).write_text(json.dumps(asdict(simulation), indent=2), encoding="utf-8")
    return path / "output"


def _particle_counts(recipe: Recipe, simulation: SyntheticSimulation) -> tuple[int, int]:
    scale = np.cbrt(recipe.halo_mass / MEDIAN_HALO_MASS)
    return round(simulation.gas_cells * scale), round(simulation.star_particles * scale)


def _total_mass(recipe: Recipe, simulation: SyntheticSimulation) -> float:
    """Msun of the galaxy's particles, known before they are placed."""
    dark = max(1, round(recipe.dark_matter / simulation.dark_particle_mass)) * simulation.dark_particle_mass
    return recipe.cold_gas + recipe.hot_gas + recipe.stars + recipe.black_hole + dark


def _build(recipe: Recipe, simulation: SyntheticSimulation) -> ToyGalaxy:
    gas, stars = _particle_counts(recipe, simulation)
    return build_galaxy(recipe, simulation.seed, gas, stars, simulation.dark_particle_mass, simulation.redshift)


def _galaxies(recipes: list[Recipe], simulation: SyntheticSimulation, workers: int) -> Iterator[ToyGalaxy]:
    """The galaxies in the order of ``recipes``. Processes are spawned: a fork would copy held locks."""
    build = partial(_build, simulation=simulation)
    if workers == 1:
        yield from map(build, recipes)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(build, recipes, chunksize=4)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _places(simulation: SyntheticSimulation) -> tuple[Array, Array]:
    """Centres in kpc, one to a cell of a grid and the first at a corner, and peculiar velocities in km/s."""
    rng = np.random.default_rng(np.random.SeedSequence(simulation.seed, spawn_key=(MOST_GALAXIES,)))
    n = simulation.galaxies
    side = int(np.ceil(np.cbrt(n) - 1e-9))
    cells = np.concatenate([[0], 1 + rng.permutation(side**3 - 1)])[:n]
    corner = np.stack(np.unravel_index(cells, (side, side, side)), axis=1)
    centres = (corner + rng.uniform(0.2, 0.8, (n, 3))) * BOX_SIZE / side
    centres[0] = rng.uniform(0.2, 1.0, 3)  # ckpc/h from the corner
    return centres * simulation.scale_factor / HUBBLE, rng.normal(0.0, 150.0, (n, 3))


def _cuts(galaxies: int, chunks: int) -> list[tuple[int, float]]:
    """Where a file ends and the next begins: a galaxy's place, and the share of it in the earlier file."""
    places = [k * galaxies / chunks for k in range(1, chunks)]
    return [(int(p), 0.5 if chunks <= galaxies else p % 1.0) for p in places]


def _write_snapshot(
    folder: Path,
    simulation: SyntheticSimulation,
    galaxies: Iterable[ToyGalaxy],
    centres: Array,
    drifts: Array,
) -> tuple[list[Row], list[Row], Array]:
    """Write the files of the snapshot one after the other, holding one of them in memory.

    Returns:
        Rows of the subhalo and of the group catalogue, and (chunks, 6) numbers of particles in earlier files.
    """
    cuts = _cuts(simulation.galaxies, simulation.chunks)
    held: dict[int, dict[str, list[Array]]] = {kind: defaultdict(list) for kind in FIELDS}
    subhalos: list[Row] = []
    groups: list[Row] = []
    counts: list[Array] = []
    for place, galaxy in enumerate(galaxies):
        where = centres[place], drifts[place], simulation.redshift
        flagged = galaxy.recipe.number % FLAGGED_EVERY == FLAGGED_EVERY - 1
        subhalos.append({**subhalo_row(galaxy, *where), "SubhaloFlag": np.uint32(not flagged)})
        groups.append(group_row(galaxy, subhalos[-1], simulation.redshift))
        arrays = particle_arrays(galaxy, *where)
        start = 0.0
        for end in [*(share for cut, share in cuts if cut == place), 1.0]:
            for kind, fields in arrays.items():
                for name, value in fields.items():
                    held[kind][name].append(value[int(start * len(value)) : int(end * len(value))])
            start = end
            if end < 1.0 or place == simulation.galaxies - 1:
                counts.append(_write_chunk(folder, simulation, len(counts), held))
                held = {kind: defaultdict(list) for kind in FIELDS}
    totals = np.sum(counts, axis=0)
    for number in range(len(counts)):
        with h5py.File(_snapshot_file(folder, simulation, number), "r+") as file:
            file["Header"].attrs["NumPart_Total"] = totals.astype(np.uint32)
            file["Header"].attrs["NumPart_Total_HighWord"] = (totals >> 32).astype(np.uint32)
    return subhalos, groups, np.cumsum(counts, axis=0) - counts


def _snapshot_file(folder: Path, simulation: SyntheticSimulation, number: int) -> Path:
    snapshot = f"{simulation.snapshot:03d}"
    return folder / "output" / f"snapdir_{snapshot}" / f"snap_{snapshot}.{number}.hdf5"


def _write_chunk(
    folder: Path, simulation: SyntheticSimulation, number: int, held: Mapping[int, Mapping[str, list[Array]]]
) -> Array:
    """Write one file of the snapshot. Returns (6,) the number of its particles of each type."""
    path = _snapshot_file(folder, simulation, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = np.zeros(6, np.int64)
    with h5py.File(path, "w") as file:
        for kind, fields in held.items():
            count[kind] = sum(len(value) for value in fields["ParticleIDs"])
            if count[kind] == 0:  # a file without particles of a type has no group for it
                continue
            for name, parts in fields.items():
                data = file.create_dataset(f"PartType{kind}/{name}", data=np.concatenate(parts))
                data.attrs.update(UNITS[name].attributes())
        mass_table = np.zeros(6)
        mass_table[1] = UNITS["Masses"].store(np.asarray(simulation.dark_particle_mass), simulation.scale_factor)
        file.create_group("Header").attrs.update(
            _cosmology(simulation)
            | {
                "Composition_vector_length": np.int32(0),
                "Flag_Cooling": np.int32(1),
                "Flag_DoublePrecision": np.int32(0),
                "Flag_Feedback": np.int32(1),
                "Flag_Metals": np.int32(0),
                "Flag_Sfr": np.int32(1),
                "Flag_StellarAge": np.int32(0),
                "MassTable": mass_table,
                "NumFilesPerSnapshot": np.int32(simulation.chunks),
                "NumPart_ThisFile": count.astype(np.int32),
                "SnapshotNumber": np.int32(simulation.snapshot),
                "UnitLength_in_cm": LENGTH,
                "UnitMass_in_g": MASS,
                "UnitVelocity_in_cm_per_s": VELOCITY,
            }
        )
    return count


def _cosmology(simulation: SyntheticSimulation) -> dict[str, Any]:
    return {
        "BoxSize": BOX_SIZE,
        "HubbleParam": HUBBLE,
        "Omega0": OMEGA_MATTER,
        "OmegaBaryon": OMEGA_BARYON,
        "OmegaLambda": 1.0 - OMEGA_MATTER,
        "Redshift": simulation.redshift,
        "SimulationName": "skyshift synthetic",
        "Time": simulation.scale_factor,
    }


def _catalogue_starts(simulation: SyntheticSimulation) -> list[int]:
    """First galaxy of every file of the catalogue: as many files as of the snapshot, none empty."""
    files = min(simulation.chunks, simulation.galaxies)
    return [k * simulation.galaxies // files for k in range(files)]


def _write_catalogue(
    folder: Path, simulation: SyntheticSimulation, subhalos: Sequence[Row], groups: Sequence[Row]
) -> None:
    """Write the files of the group catalogue."""
    snapshot, n = f"{simulation.snapshot:03d}", simulation.galaxies
    starts = _catalogue_starts(simulation)
    total = sum(int(row["GroupLen"]) for row in groups)
    for number, (start, end) in enumerate(pairwise([*starts, n])):
        path = folder / "output" / f"groups_{snapshot}" / f"fof_subhalo_tab_{snapshot}.{number}.hdf5"
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            for group, rows in (("Subhalo", subhalos), ("Group", groups)):
                for name in rows[0]:
                    file[f"{group}/{name}"] = np.stack([row[name] for row in rows[start:end]])
            file["Subhalo/SubhaloGrNr"] = np.arange(start, end, dtype=np.int32)
            file["Subhalo/SubhaloParent"] = np.zeros(end - start, np.int32)  # place in the group
            file["Subhalo/SubhaloMorphology"].attrs["names"] = json.dumps(LABELS)
            file["Group/GroupFirstSub"] = np.arange(start, end, dtype=np.int32)
            file["Group/GroupNsubs"] = np.ones(end - start, np.int32)
            file.create_group("Header").attrs.update(
                _cosmology(simulation)
                | {
                    "FlagDoubleprecision": np.int32(0),
                    "Ngroups_ThisFile": np.int32(end - start),
                    "Ngroups_Total": np.int32(n),
                    "Nids_ThisFile": np.int32(sum(int(row["GroupLen"]) for row in groups[start:end])),
                    "Nids_Total": np.int64(total),
                    "Nsubgroups_ThisFile": np.int32(end - start),
                    "Nsubgroups_Total": np.int32(n),
                    "NumFiles": np.int32(len(starts)),
                }
            )


def _write_offsets(
    folder: Path, simulation: SyntheticSimulation, subhalos: Sequence[Row], chunk_offsets: Array
) -> None:
    """Write where the particles of every group, subhalo and file begin."""
    lengths = np.stack([row["SubhaloLenType"] for row in subhalos]).astype(np.int64)
    first = np.cumsum(lengths, axis=0) - lengths
    path = folder / "postprocessing" / "offsets" / f"offsets_{simulation.snapshot:03d}.hdf5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file["FileOffsets/SnapByType"] = chunk_offsets.astype(np.int64)  # (chunks, 6)
        file["FileOffsets/Group"] = np.array(_catalogue_starts(simulation), np.int64)
        file["FileOffsets/Subhalo"] = np.array(_catalogue_starts(simulation), np.int64)
        file["Group/SnapByType"] = first  # (galaxies, 6)
        file["Subhalo/SnapByType"] = first
