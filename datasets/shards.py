"""What a store is built from, and the building of one of its shards.

A shard is built from whole galaxies. Each is read in chunks, and each chunk is added to the maps of all rotations, so a
galaxy is read once and need not fit into memory. A galaxy that cannot be read or is not physical is written down with
its reason and left out, and the rest of the shard is built as if it had never been there.
"""

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyshift.datasets.claims import Claims
from skyshift.datasets.domains import MapMaker, Recipes, View, load_domains, needed_fields
from skyshift.datasets.galaxy import Galaxy, GalaxyError
from skyshift.datasets.projection import random_rotations
from skyshift.datasets.quantities import Quantity
from skyshift.datasets.smoothing import SupportCache, keeping
from skyshift.datasets.sources import GalaxySource, Item, RegionSource
from skyshift.datasets.store import Failure, MapStore, ViewRecord
from skyshift.errors import SkyshiftError
from skyshift.files import location, patiently


@dataclass
class FieldOfView:
    """How much of a galaxy a map shows.

    Attributes:
        radii: The map reaches so many half-mass radii from the centre on each side.
        of: Kind of particle whose half-mass radius is meant: gas, dm or stars.
        kpc: Full side of the map in kpc, instead of half-mass radii; 0 to use these.
        depth: Full thickness along the line of sight in kpc; 0 keeps all of the galaxy's particles.
    """

    radii: float = 2.0
    of: str = "stars"
    kpc: float = 0.0
    depth: float = 0.0

    def __post_init__(self) -> None:
        for name, fine in (("radii", self.radii > 0), ("kpc", self.kpc >= 0), ("depth", self.depth >= 0)):
            if not fine:
                raise SkyshiftError(f"field_of_view.{name} cannot be {getattr(self, name)}")

    def side(self, galaxy: Galaxy) -> float:
        """Full side of the map of ``galaxy``, kpc.

        Raises:
            GalaxyError: Its half-mass radius is not known or zero.
        """
        if self.kpc:
            return self.kpc
        radius = galaxy.half_mass_radius.get(self.of, 0.0)
        if not radius > 0:
            held = {kind: round(value, 2) for kind, value in galaxy.half_mass_radius.items()}
            raise GalaxyError(
                f"{galaxy.name} has no half-mass radius of '{self.of}' (kpc: {held}); set field_of_view.of to another "
                "kind or field_of_view.kpc to a length"
            )
        return 2.0 * self.radii * radius


@dataclass
class BuildConfig:
    """A store and what it is built from.

    Attributes:
        source: The galaxies.
        store: Folder of the store.
        domains: Maps to make.
        pixels: Per side of a map.
        rotations: Views of each galaxy, turned at random, uniform on SO(3), the same for all domains.
        field_of_view: How much of a galaxy a map shows.
        seed: Of the rotations.
        recipes: Choices of physics.
        domain_files: Python files with domains of your own (:func:`skyshift.datasets.domains.load_domains`).
        workers: Processes that build on this machine.
        scheduler: Address of a Dask scheduler (tcp://host:8786) whose workers build instead; empty for this machine.
        threads: Threads of one worker's projection and neighbour search.
        device: None to project on the processor, cuda to project on a GPU.
        chunk_particles: Particles of a galaxy that are in memory at once; larger galaxies are read piece by piece.
        smoothing: Folder that keeps kernel supports which had to be searched for, for later builds of the same
            galaxies. ``beside`` is a folder ``smoothing`` beside the store, ``none`` keeps nothing.
        retries: How often a shard is built again after its worker died, and something that the file system refused
            is tried again.
        skip_failed: Leave out galaxies that cannot be built and write down why; false stops at the first.
        max_failed_share: The build is refused when more than this share of the galaxies fails.
        retry_failed: Build the shards again from which galaxies were left out.
        verify: Compare the shards that are done with their hashes first, and build damaged ones again.
    """

    source: GalaxySource  # no default: jsonargparse would carry its settings over to a source of another class
    store: str = "data/synthetic/maps.zarr"
    domains: list[str] = field(default_factory=lambda: ["dm", "gas", "stars", "hi", "temperature", "bfield"])
    pixels: int = 64
    rotations: int = 4
    field_of_view: FieldOfView = field(default_factory=FieldOfView)
    seed: int = 0
    recipes: Recipes = field(default_factory=Recipes)
    domain_files: list[str] = field(default_factory=list)
    workers: int = 1
    scheduler: str = ""
    threads: int = 1
    device: str | None = None
    chunk_particles: int = 5_000_000
    smoothing: str = "beside"
    retries: int = 3
    skip_failed: bool = True
    max_failed_share: float = 0.1
    retry_failed: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        least = {"pixels": 1, "rotations": 1, "workers": 1, "seed": 0, "threads": 1, "chunk_particles": 1, "retries": 0}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise SkyshiftError(f"{name} must be at least {minimum}, not {getattr(self, name)}")
        if not 0 <= self.max_failed_share <= 1:
            raise SkyshiftError(f"max_failed_share is a share of the galaxies, 0 to 1, not {self.max_failed_share}")
        if not self.domains:
            raise SkyshiftError("domains is empty; name at least one")
        self.load_domains()
        needed_fields(self.domains, self.recipes)
        if isinstance(self.source, RegionSource) and not self.field_of_view.kpc:
            # A region has no size of its own: the map shows the cube for which its sphere was cut out.
            self.field_of_view = FieldOfView(kpc=self.source.side, depth=self.source.side)

    def load_domains(self) -> None:
        """Make the domains of ``domain_files`` known in this process."""
        if self.domain_files:
            load_domains(self.domain_files)

    def supports(self) -> SupportCache:
        """What keeps kernel supports that the files do not give."""
        if self.smoothing == "none":
            return SupportCache(None, self.threads)
        beside = location(self.store).parent / "smoothing"
        return SupportCache(beside if self.smoothing == "beside" else location(self.smoothing), self.threads)

    def plan(self, galaxies: int) -> dict[str, Any]:
        """All that decides what the maps of a store are; where it stands and who builds it does not.

        Args:
            galaxies: How many the source has.
        """
        plan = {
            name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
            for name, value in ((name, getattr(self, name)) for name in _DECIDE_THE_MAPS)
        }
        if self.domain_files:
            plan["domain_files"] = _hashes_of_code(self.domain_files)
        return {
            "source": f"{type(self.source).__name__}",
            "settings": {
                # A mapping is the same in any order.
                k: str(dict(sorted(v.items())) if isinstance(v, dict) else v)
                for k, v in vars(self.source).items()
                if not k.startswith("_")
            },
            **({"files": listed} if (listed := self.source.listed()) else {}),
            "galaxies": galaxies,
            **plan,
        }


def _hashes_of_code(names: Sequence[str]) -> dict[str, str]:
    """Basename to hash; further files of a basename are numbered, in the order in which they are named."""
    hashes: dict[str, str] = {}
    for name in names:
        short, number = Path(name).name, 2
        key = short
        while key in hashes:
            key, number = f"{short} ({number})", number + 1
        hashes[key] = _hash_of_code(name)
    return hashes


def _absolute(path: str) -> str:
    return str(Path(path).absolute()) if path and isinstance(location(path), Path) else path


def _absolute_code(name: str) -> str:
    """A file of domains by its absolute path; a module is found by its name."""
    file = Path(name if Path(name).is_file() else name.rpartition(":")[0])
    return _absolute(name) if file.is_file() else name


_PATHS = ("base_path", "path", "folder", "files")
"""Attributes of sources that name files."""


def for_other_machines(config: BuildConfig) -> BuildConfig:
    """The same build, with absolute paths: workers may stand in another folder."""
    source = copy.copy(config.source)
    for name in _PATHS:
        held = getattr(source, name, None)
        if isinstance(held, str):
            setattr(source, name, _absolute(held))
        elif isinstance(held, list):
            setattr(source, name, [_absolute(path) for path in held])
    return replace(
        config,
        source=source,
        store=_absolute(config.store),
        smoothing=config.smoothing if config.smoothing in ("beside", "none") else _absolute(config.smoothing),
        domain_files=[_absolute_code(name) for name in config.domain_files],
    )


def _hash_of_code(name: str) -> str:
    """SHA-256 of a user's file of domains (``file.py`` or ``file.py:NAME``); of a module only its name is recorded."""
    path = Path(name if Path(name).is_file() else name.rpartition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else name


_DECIDE_THE_MAPS = ("domains", "pixels", "rotations", "field_of_view", "seed", "recipes")


def views_of(
    chunks: Iterable[Galaxy], item: Item, config: BuildConfig, first_view: int
) -> tuple[list[Mapping[str, NDArray[np.float32]]], list[ViewRecord]]:
    """Project one galaxy in all its rotations, in one pass over its particles.

    Args:
        chunks: The galaxy with the fields that the domains need and kernel supports, whole or in chunks.
        item: Its entry in the source.
        config: What to build.
        first_view: Row of its first view in the store.

    Returns:
        For each view the maps by domain, and the catalogue rows.
    """
    chunks = iter(chunks)
    galaxy = next(chunks)
    side = config.field_of_view.side(galaxy)
    depth = config.field_of_view.depth or None
    rotations = random_rotations(config.rotations, [config.seed, galaxy.number])
    makers = [
        MapMaker(
            config.domains,
            View(rotation, side, config.pixels, depth),
            config.recipes,
            threads=config.threads,
            device=config.device,
        )
        for rotation in rotations
    ]
    for chunk in chain([galaxy], chunks):
        values: dict[Quantity, NDArray[np.float64]] = {}  # what no rotation changes is computed once
        for maker in makers:
            maker.add(chunk, values)
    views: list[Mapping[str, NDArray[np.float32]]] = [maker.maps() for maker in makers]
    records = [
        ViewRecord(
            view=first_view + index,
            galaxy=galaxy.number,
            name=galaxy.name,
            split_group=item.split_group,
            snapshot=galaxy.snapshot,
            redshift=galaxy.redshift,
            rotation=tuple(rotation.ravel().tolist()),
            side=side,
            depth=depth or 0.0,
            label=galaxy.label,
            flags=sum(1 << i for i, name in enumerate(config.domains) if not maps[name].any()),
            notes=galaxy.replaced,
        )
        for index, (rotation, maps) in enumerate(zip(rotations, views, strict=True))
    ]
    for maps in views:
        for name in config.domains:
            if not np.isfinite(maps[name]).all():
                raise GalaxyError(f"{galaxy.name}: its map of {name} holds values that are not finite")
    return views, records


@dataclass(frozen=True)
class Outcome:
    """What became of a shard.

    Attributes:
        shard: Its number.
        views: Its rows, those of failed galaxies among them; 0 where another builder is at it.
        failures: Galaxies that could not be built.
    """

    shard: int
    views: int
    failures: tuple[Failure, ...] = ()


def _build_galaxy(
    config: BuildConfig, item: Item, first_view: int
) -> tuple[list[Mapping[str, NDArray[np.float32]]], list[ViewRecord]] | Failure:
    """The views of one galaxy, or why there are none."""
    need = needed_fields(config.domains, config.recipes)

    def build() -> tuple[list[Mapping[str, NDArray[np.float32]]], list[ViewRecord]]:
        with keeping(config.supports()):
            chunks = config.source.stream(item.number, need, config.chunk_particles)
            return views_of(chunks, item, config, first_view)

    try:
        return patiently(build, config.retries + 1)
    except Exception as error:
        if config.skip_failed:
            views = range(first_view, first_view + config.rotations)
            return Failure(item.number, tuple(views), type(error).__name__, str(error))
        if isinstance(error, SkyshiftError):
            raise
        raise SkyshiftError(
            f"galaxy {item.number} of the source cannot be built ({type(error).__name__}: {error}); mend it, leave it "
            "out, or build with --skip_failed true"
        ) from error


def build_shard(config: BuildConfig, items: Sequence[Item], shard: int, builder: str = "") -> Outcome:
    """Build one shard of a store, from its galaxies to its catalogue part. Doing it twice gives the same bytes.

    A shard from which galaxies are missing is left pending: the build accepts it once all is known.

    Args:
        config: What to build.
        items: The galaxies of this shard.
        shard: Which shard.
        builder: Name of the build, where others may be building the same store.

    Returns:
        What became of it.

    Raises:
        SkyshiftError: A galaxy cannot be built, and ``skip_failed`` is false.
        StoreError: The shard cannot be written.
    """
    config.load_domains()
    store = MapStore(config.store)
    rows = store.shard_rows(shard)
    claims = Claims(store.path, builder) if builder else None
    if claims and not claims.take(shard):
        return Outcome(shard, 0)
    try:
        if builder and (store.is_done(shard) or store.is_pending(shard)):
            return Outcome(shard, len(rows), store.part(shard).failures)  # another builder was faster
        shape = (len(rows), store.pixels, store.pixels)
        stacks = {name: np.empty(shape, np.float32) for name in config.domains}  # the one copy of a shard in memory
        records: list[ViewRecord] = []
        failures: list[Failure] = []
        for index, item in enumerate(items):
            made = _build_galaxy(config, item, rows.start + index * config.rotations)
            if isinstance(made, Failure):
                failures.append(made)
                continue
            for row, maps in enumerate(made[0], start=len(records)):
                for name in config.domains:
                    stacks[name][row] = maps[name]
            records.extend(made[1])
        there = {name: stack[: len(records)] for name, stack in stacks.items()}
        store.write_shard(shard, there, records, failures, pending=bool(failures))
        return Outcome(shard, len(rows), tuple(failures))
    finally:
        if claims:
            claims.release(shard)
