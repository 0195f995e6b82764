"""The map domains: which particles, which quantity, which unit. A new domain is one entry of :data:`DOMAINS`.

A *column* domain adds an amount of every particle along the line of sight (Msun/kpc²). A *mean* domain is the
mass-weighted mean of a quantity, Σ m q W / Σ m W, over all particles of its kind on the line of sight; where there is
no mass at all its map holds 0.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from skyshift.datasets import hydrogen
from skyshift.datasets.galaxy import Galaxy
from skyshift.datasets.projection import project, rotate, weighted_mean
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

Array = NDArray[np.floating]


class DomainError(SkyshiftError):
    """There is no such domain."""


@dataclass(frozen=True)
class Recipes:
    """Choices of physics that the domains share.

    Attributes:
        molecular: How molecular hydrogen is taken off the neutral: br06, leroy08 or none.
    """

    molecular: hydrogen.MolecularRecipe = "br06"


@dataclass(frozen=True)
class Domain:
    """One kind of map.

    Attributes:
        name: As in configurations and stores.
        title: For figures.
        unit: As astropy writes it.
        kind: The particles it is made from.
        quantity: Galaxy and recipes to one number per particle: the amount (Msun) of a column domain, the quantity
            to be averaged of a mean domain.
        fields: Fields of the particles that ``quantity`` reads.
        mean: Whether it is a mass-weighted mean.
        scaling: Default value scaling for networks.
        colour_map: Perceptually uniform matplotlib colour map.
        minimum: Lowest physical value; translated maps are clipped there.
    """

    name: str
    title: str
    unit: str
    kind: str
    quantity: Callable[[Galaxy, Recipes], Array]
    fields: tuple[str, ...] = ()
    mean: bool = False
    scaling: str = "asinh"
    colour_map: str = "inferno"
    minimum: float = 0.0


def _temperature(galaxy: Galaxy, recipes: Recipes) -> Array:
    """Star-forming cells carry the pressure of an effective equation of state: they count as 1e4 K."""
    gas = galaxy.particles["gas"]
    return np.where(gas["sfr"] > 0, hydrogen.STAR_FORMING_TEMPERATURE, gas["temperature"])


def _field_strength(galaxy: Galaxy, recipes: Recipes) -> Array:
    return np.linalg.norm(galaxy.particles["gas"]["magnetic_field"], axis=1) * 1e6


_HYDROGEN_FIELDS = ("density", "sfr", "neutral_fraction", "temperature", "electron_abundance")

DOMAINS: dict[str, Domain] = {
    domain.name: domain
    for domain in (
        Domain("dm", "Dark matter", "Msun / kpc2", "dm", lambda g, r: g.particles["dm"].mass, colour_map="magma"),
        Domain("gas", "Gas", "Msun / kpc2", "gas", lambda g, r: g.particles["gas"].mass, colour_map="viridis"),
        Domain("stars", "Stars", "Msun / kpc2", "stars", lambda g, r: g.particles["stars"].mass),
        Domain(
            "hi",
            "HI",
            "Msun / kpc2",
            "gas",
            lambda g, r: hydrogen.atomic_hydrogen_mass(g, r.molecular),
            fields=_HYDROGEN_FIELDS,
            # HI saturates near 10 Msun/pc² (above, it turns molecular): a square root spans what is there, and errors
            # count where the mass is.
            scaling="power",
            colour_map="cividis",
        ),
        Domain(
            "temperature",
            "Temperature",
            "K",
            "gas",
            _temperature,
            fields=("temperature", "sfr"),
            mean=True,
            scaling="log",
        ),
        Domain(
            "bfield",
            "Magnetic field",
            "uG",
            "gas",
            _field_strength,
            fields=("magnetic_field",),
            mean=True,
            colour_map="plasma",
        ),
    )
}
"""All domains by name."""


def get_domain(name: str) -> Domain:
    """The domain called ``name``.

    Raises:
        DomainError: There is none; the message names the nearest.
    """
    if name not in DOMAINS:
        raise DomainError(unknown("domain", name, DOMAINS))
    return DOMAINS[name]


def needed_fields(names: Iterable[str]) -> dict[str, set[str]]:
    """Particle kinds, and fields of each, from which the maps of these domains are made.

    Raises:
        DomainError: A domain is unknown.
    """
    need: dict[str, set[str]] = {}
    for domain in map(get_domain, names):
        need.setdefault(domain.kind, set()).update(domain.fields)
    for kind in need:
        if kind == "gas":
            need[kind].add("density")
    return need


@dataclass(frozen=True)
class View:
    """How a galaxy is looked at.

    Attributes:
        rotation: (3, 3) applied to positions; the line of sight is then z.
        side: Full side of the square map, kpc.
        pixels: Pixels per side.
        depth: Full thickness along the line of sight, kpc; ``None`` keeps all.
    """

    rotation: NDArray[np.float64]
    side: float
    pixels: int
    depth: float | None = None


@dataclass(frozen=True)
class _Rows:
    """Weights to project of one kind of particle, and which of them makes which domain."""

    weights: list[Array] = field(default_factory=list)
    columns: dict[str, int] = field(default_factory=dict)
    means: dict[str, int] = field(default_factory=dict)


def _rows(galaxy: Galaxy, domains: list[Domain], recipes: Recipes) -> _Rows:
    """The mass first, then the amount of every column domain and mass × quantity of every mean domain."""
    mass = galaxy.particles[domains[0].kind].mass
    rows = _Rows([mass])
    for domain in domains:
        quantity = domain.quantity(galaxy, recipes)
        (rows.means if domain.mean else rows.columns)[domain.name] = len(rows.weights)
        rows.weights.append(mass * quantity if domain.mean else quantity)
    return rows


def make_maps(
    galaxy: Galaxy, names: Iterable[str], view: View, recipes: Recipes | None = None
) -> Mapping[str, NDArray[np.float32]]:
    """Project a galaxy into maps of several domains, one pass over each kind of particle.

    Args:
        galaxy: With kernel supports filled in for every kind that is used
            (:func:`skyshift.datasets.smoothing.with_support`).
        names: Domains.
        view: Rotation, side, pixels, depth.
        recipes: Choices of physics.

    Returns:
        Domain to (pixels, pixels) float32 in the domain's unit; rows run along y upwards, columns along x.

    Raises:
        DomainError: A domain is unknown.
        GalaxyError: A kind of particle, a field or the kernel support is missing.
    """
    recipes = recipes or Recipes()
    asked = [get_domain(name) for name in names]
    maps: dict[str, NDArray[np.float32]] = {}
    for kind in dict.fromkeys(domain.kind for domain in asked):
        domains = [domain for domain in asked if domain.kind == kind]
        particles = galaxy.require(kind, {name for domain in domains for name in domain.fields})
        rows = _rows(galaxy, domains, recipes)
        projected = project(
            rotate(particles.position, view.rotation),
            particles["support"],
            np.stack(rows.weights),
            side=view.side,
            pixels=view.pixels,
            depth=view.depth,
        )
        for name, row in rows.columns.items():
            maps[name] = projected[row].astype(np.float32)
        for name, row in rows.means.items():
            maps[name] = weighted_mean(projected[row], projected[0]).astype(np.float32)
    return {domain.name: maps[domain.name] for domain in asked}
