"""What a store is built from, and the building of one of its shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyshift.datasets.domains import Recipes, View, make_maps, needed_fields
from skyshift.datasets.galaxy import Galaxy, GalaxyError
from skyshift.datasets.projection import random_rotations
from skyshift.datasets.smoothing import with_support
from skyshift.datasets.sources import GalaxySource, Item, RegionSource
from skyshift.datasets.store import MapStore, ViewRecord
from skyshift.errors import SkyshiftError


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
        workers: Processes that build.
    """

    source: GalaxySource  # no default: jsonargparse would carry its settings over to a source of another class
    store: str = "data/synthetic/maps.zarr"
    domains: list[str] = field(default_factory=lambda: ["dm", "gas", "stars", "hi", "temperature", "bfield"])
    pixels: int = 64
    rotations: int = 4
    field_of_view: FieldOfView = field(default_factory=FieldOfView)
    seed: int = 0
    recipes: Recipes = field(default_factory=Recipes)
    workers: int = 1

    def __post_init__(self) -> None:
        for name, least in (("pixels", 1), ("rotations", 1), ("workers", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise SkyshiftError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not self.domains:
            raise SkyshiftError("domains is empty; name at least one")
        needed_fields(self.domains)
        if isinstance(self.source, RegionSource) and not self.field_of_view.kpc:
            # A region has no size of its own: the map shows the cube for which its sphere was cut out.
            self.field_of_view = FieldOfView(kpc=self.source.side, depth=self.source.side)


def views_of(
    galaxy: Galaxy, item: Item, config: BuildConfig, first_view: int
) -> tuple[list[Mapping[str, NDArray[np.float32]]], list[ViewRecord]]:
    """Project one galaxy in all its rotations.

    Args:
        galaxy: With the fields that the domains need.
        item: Its entry in the source.
        config: What to build.
        first_view: Row of its first view in the store.

    Returns:
        For each view the maps by domain, and the catalogue rows.
    """
    for kind in needed_fields(config.domains):
        galaxy = with_support(galaxy, kind)
    side = config.field_of_view.side(galaxy)
    depth = config.field_of_view.depth or None
    views, records = [], []
    for index, rotation in enumerate(random_rotations(config.rotations, [config.seed, galaxy.number])):
        maps = make_maps(galaxy, config.domains, View(rotation, side, config.pixels, depth), config.recipes)
        views.append(maps)
        records.append(
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
            )
        )
    return views, records


def build_shard(config: BuildConfig, items: Sequence[Item], shard: int) -> int:
    """Build one shard of a store, from its galaxies to its catalogue part.

    Args:
        config: What to build.
        items: All galaxies of the source.
        shard: Which shard.

    Returns:
        Number of views written.
    """
    store = MapStore(config.store)
    rows = store.shard_rows(shard)
    need = needed_fields(config.domains)
    stacks: dict[str, list[Any]] = {name: [] for name in config.domains}
    records: list[ViewRecord] = []
    for index in range(rows.start // config.rotations, rows.stop // config.rotations):
        galaxy = config.source.read(items[index].number, need)
        views, of_galaxy = views_of(galaxy, items[index], config, index * config.rotations)
        for maps in views:
            for name in config.domains:
                stacks[name].append(maps[name])
        records.extend(of_galaxy)
    store.write_shard(shard, {name: np.stack(stack) for name, stack in stacks.items()}, records)
    return len(records)
