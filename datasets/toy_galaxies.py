"""Toy galaxies as particles: where their gas, stars and dark matter lie and how they move.

    dark matter   ρ ∝ 1 / (r/r_s) / (1 + r/r_s)²            r < R_200
    spheroid      M(<r) ∝ r² / (r + a)²                     a = R_e / 1.8153, triaxial
    disc          ρ ∝ exp(-R/R_d) sech²(z/z_0)              with spiral arms φ = φ_0 - ln(R/R_d) / tan p
    hot halo      ρ ∝ (1 + (r/r_c)²)^(-3β/2), β = 1/2       shown inside 0.35 R_200
    satellites    M(<r) ∝ (1 + (r_P/r)²)^(-3/2)

Components are placed, not evolved: there is no dynamics behind a tail or an arm. Circular speeds take the
mass as spherical, v_c² = G M(<r) / r; a component with velocity dispersion s v_c turns with v_c √(1 - 2s²).

References:
    Navarro, Frenk & White 1997, ApJ 490, 493 (dark-matter profile).
    Hernquist 1990, ApJ 356, 359 (spheroid); Plummer 1911, MNRAS 71, 460 (satellites).
    Miller & Bregman 2015, ApJ 800, 14 (hot halo, β ≈ 1/2).
    Toomre & Toomre 1972, ApJ 178, 623 (bridges and tails).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from skyshift.datasets.smoothing import NEIGHBOURS, neighbour_distance
from skyshift.datasets.toy_gas import gas_state, gradient, oxygen_metallicity
from skyshift.datasets.toy_light import magnitudes
from skyshift.datasets.toy_recipes import (
    GRAVITY,
    HOT_HALO_EXTENT,
    ISOTROPIC,
    LABELS,
    Disc,
    Frame,
    Recipe,
)

Array = NDArray[np.float64]


class Points(NamedTuple):
    """Particles of one component. Positions are relative to the galaxy's centre."""

    position: Array  # (n, 3) kpc
    frame: Frame
    dispersion: float  # over circular speed
    hot: bool = False
    ages: tuple[float, float] = (0.0, 0.0)  # Gyr, range of the stars' ages


def circular_speed(distance: Array, positions: Array, masses: Array) -> Array:
    """v_c = √(G M(<r) / r) in km/s at ``distance`` kpc from the origin of ``positions`` (n, 3) kpc."""
    edges = np.geomspace(0.05, 2000.0, 160)
    radius = np.sqrt(np.einsum("ij,ij->i", positions, positions))
    inside = np.cumsum(np.bincount(np.searchsorted(edges, radius), weights=masses, minlength=161))[:160]
    r = np.maximum(distance, 0.3)  # softened: particles inside 0.3 kpc would be thrown out
    return np.sqrt(GRAVITY * np.interp(r, edges, inside) / r)


def radii(rng: np.random.Generator, count: int, grid: Array, density: Array) -> Array:
    """Draw ``count`` values whose probability density is ``density`` on ``grid``, by inversion."""
    steps = 0.5 * (density[1:] + density[:-1]) * np.diff(grid)
    cumulative = np.concatenate([[0.0], np.cumsum(steps)])
    return np.interp(rng.uniform(0.0, cumulative[-1], count), cumulative, grid)


def directions(rng: np.random.Generator, count: int) -> Array:
    """(count, 3) unit vectors, uniform on the sphere."""
    vector = rng.normal(size=(count, 3))
    return vector / np.maximum(np.linalg.norm(vector, axis=1, keepdims=True), 1e-12)


def nfw_points(rng: np.random.Generator, count: int, virial_radius: float, concentration: float) -> Array:
    """(count, 3) kpc of a Navarro-Frenk-White halo that ends at ``virial_radius`` kpc."""
    x = np.concatenate([[0.0], np.geomspace(1e-3, concentration, 400)])
    r = radii(rng, count, x, x / (1 + x) ** 2) * virial_radius / concentration
    return directions(rng, count) * r[:, None]


def hernquist_points(rng: np.random.Generator, count: int, length: float) -> Array:
    """(count, 3) kpc of a Hernquist sphere of scale ``length`` kpc, its outer tenth cut."""
    root = np.sqrt(rng.uniform(0.0, 0.9, count))
    return directions(rng, count) * (length * root / (1.0 - root))[:, None]


def plummer_points(rng: np.random.Generator, count: int, length: float) -> Array:
    """(count, 3) kpc of a Plummer sphere of radius ``length`` kpc, its outer twentieth cut."""
    r = length / np.sqrt(rng.uniform(1e-6, 0.95, count) ** (-2.0 / 3.0) - 1.0)
    return directions(rng, count) * r[:, None]


def hot_halo_points(rng: np.random.Generator, count: int, virial_radius: float) -> Array:
    """(count, 3) kpc of a β-model with β = 1/2 and a core of 0.05 R_200."""
    r = np.linspace(0.0, HOT_HALO_EXTENT * virial_radius, 500)
    density = (1.0 + (r / (0.05 * virial_radius)) ** 2) ** -0.75
    return directions(rng, count) * radii(rng, count, r, r * r * density)[:, None]


def clouds(rng: np.random.Generator, points: Array, share: float, size: float) -> Array:
    """Gather a ``share`` of the points into clouds of about 15 points and a radius of ``size`` kpc."""
    members = np.flatnonzero(rng.uniform(size=len(points)) < share)
    if len(members) < 15:
        return points
    centres = points[rng.choice(members, len(members) // 15)]
    gathered = points.copy()
    host = rng.integers(0, len(centres), len(members))
    gathered[members] = centres[host] + rng.normal(0.0, size, (len(members), 3)) * [1.0, 1.0, 0.5]
    return gathered


def disc_points(rng: np.random.Generator, count: int, disc: Disc, kind: str) -> Array:
    """(count, 3) kpc of the ``stars``, the ``gas`` or the ``young`` stars of a disc, in its own axes."""
    gaseous = kind != "stars"
    length = disc.gas_length if gaseous else disc.frame.length
    grid = np.linspace(0.0, (3.0 if kind == "young" else 5.0) * length, 500)
    depression = disc.hole * np.exp(-((grid / (0.5 * length)) ** 2)) if gaseous else 0.0
    R = radii(rng, count, grid, grid * np.exp(-grid / length) * (1.0 - depression))
    x = R / disc.frame.length
    kappa = (disc.contrast if gaseous else 0.25 * disc.contrast) * (1.0 - np.exp(-(x**2)))
    phase = rng.vonmises(0.0, kappa) / disc.arms + rng.integers(0, disc.arms, count) * 2 * np.pi / disc.arms
    phi = phase - np.log(np.maximum(x, 0.05)) / np.tan(disc.pitch)
    height: Array | float = disc.height
    if gaseous:
        height = disc.gas_height * np.exp(R / (3.0 * disc.gas_length))
    z = height * np.arctanh(np.clip(rng.uniform(-1.0, 1.0, count), -0.998, 0.998))
    points = np.stack([R * np.cos(phi), R * np.sin(phi), z], axis=1)
    if gaseous:
        points[:, 2] += disc.warp * np.maximum(R - 2.0 * disc.gas_length, 0.0) * np.sin(phi + 1.0)
        return clouds(rng, points, disc.cloudiness, 0.1 * disc.gas_length)
    if disc.bar > 0:
        points[:, 1] *= 1.0 - 0.6 * np.exp(-((R / disc.bar) ** 4))
    return points


def tidal_points(rng: np.random.Generator, count: int, disc: Disc, companion: Array) -> Array:
    """(count, 3) kpc of tidal debris, in the disc's own axes: two thirds in a tail, one third in a bridge.

    The tail leaves the disc on the side away from ``companion`` (3,) kpc and trails; the bridge bows across
    to it.
    """
    away = float(np.arctan2(-companion[1], -companion[0]))
    reach = np.clip(np.linalg.norm(companion) / disc.frame.length, 3.0, 5.0)
    t = rng.beta(1.0, 1.6, count)
    R = disc.frame.length * (1.8 + (1.8 * reach + 3.0) * t)
    phi = away + 0.6 - 2.3 * t**0.8
    tail = np.stack([R * np.cos(phi), R * np.sin(phi), 0.35 * R * t**2], axis=1)
    tail += rng.normal(0.0, 1.0, (count, 3)) * (disc.frame.length * (0.15 + 0.3 * t))[:, None]
    s = rng.uniform(0.0, 1.0, count)
    bow = np.cross(companion, [0.0, 0.0, 1.0]) * 0.25
    bridge = s[:, None] * companion + np.sin(np.pi * s)[:, None] * bow
    bridge += rng.normal(0.0, 0.3 * disc.frame.length, (count, 3))
    return np.where(rng.uniform(size=(count, 1)) < 2.0 / 3.0, tail, bridge)


def shares(count: int, masses: Sequence[float]) -> list[int]:
    """Split ``count`` particles in proportion to ``masses``: whole numbers that add up to it."""
    total = sum(masses)
    if total <= 0:
        return [0] * len(masses)
    edges = np.round(count * np.cumsum(masses) / total).astype(int)
    return [int(n) for n in np.diff(edges, prepend=0)]


def place_particles(
    rng: np.random.Generator, recipe: Recipe, gas: int, stars: int, dark: int
) -> dict[str, list[Points]]:
    """Sample ``gas``, ``stars`` and ``dark`` particles of equal mass each over the components of a galaxy.

    Returns:
        The components of each kind.
    """
    return {
        "gas": _place_gas(rng, recipe, gas),
        "stars": _place_stars(rng, recipe, stars),
        "dm": _place_dark_matter(rng, recipe, dark),
    }


def _companion(recipe: Recipe, index: int) -> Array:
    """Offset of the other disc of a merger in the axes of disc ``index``."""
    disc, other = recipe.discs[index], recipe.discs[1 - index]
    return (other.frame.centre - disc.frame.centre) @ disc.frame.axes


def _placed(points: Array, frame: Frame) -> Array:
    return points @ frame.axes.T + frame.centre


def _place_gas(rng: np.random.Generator, recipe: Recipe, count: int) -> list[Points]:
    masses = [recipe.hot_gas, *(disc.gas for disc in recipe.discs), *(s.gas for s in recipe.satellites)]
    hot, *counts = shares(count, masses)
    blocks = [Points(hot_halo_points(rng, hot, recipe.virial_radius), recipe.frame, ISOTROPIC, hot=True)]
    for i, (n, disc) in enumerate(zip(counts, recipe.discs, strict=False)):
        drawn = round(disc.tail * n)
        blocks.append(Points(_placed(disc_points(rng, n - drawn, disc, "gas"), disc.frame), disc.frame, 0.08))
        if drawn:
            debris = clouds(rng, tidal_points(rng, drawn, disc, _companion(recipe, i)), 0.3, 0.5)
            blocks.append(Points(_placed(debris, disc.frame), disc.frame, 0.15))
    for n, satellite in zip(counts[len(recipe.discs) :], recipe.satellites, strict=True):
        points = plummer_points(rng, n, 1.3 * satellite.frame.length)
        blocks.append(Points(_placed(points, satellite.frame), satellite.frame, ISOTROPIC))
    return blocks


def _place_stars(rng: np.random.Generator, recipe: Recipe, count: int) -> list[Points]:
    masses = [recipe.spheroid]
    for disc in recipe.discs:
        masses += [disc.bulge, disc.stars * (1.0 - disc.young), disc.stars * disc.young]
    masses += [satellite.stars for satellite in recipe.satellites]
    n, *counts = shares(count, masses)
    points = hernquist_points(rng, n, recipe.frame.length) * recipe.shape
    blocks = [Points(_placed(points, recipe.frame), recipe.frame, ISOTROPIC, ages=(7.0, 12.0))]
    for i, disc in enumerate(recipe.discs):
        bulge, old, young = counts[3 * i : 3 * i + 3]
        points = hernquist_points(rng, bulge, 0.12 * disc.frame.length)
        blocks.append(Points(_placed(points, disc.frame), disc.frame, 0.6, ages=(6.0, 12.0)))
        drawn = round(0.5 * disc.tail * old)
        points = disc_points(rng, old - drawn, disc, "stars")
        if drawn:
            points = np.concatenate([points, tidal_points(rng, drawn, disc, _companion(recipe, i))])
        blocks.append(Points(_placed(points, disc.frame), disc.frame, 0.2, ages=(0.3, 10.0)))
        points = disc_points(rng, young, disc, "young")
        blocks.append(Points(_placed(points, disc.frame), disc.frame, 0.08, ages=(0.0, 0.3)))
    for n, satellite in zip(counts[3 * len(recipe.discs) :], recipe.satellites, strict=True):
        points = plummer_points(rng, n, satellite.frame.length)
        blocks.append(Points(_placed(points, satellite.frame), satellite.frame, ISOTROPIC, ages=(2.0, 11.0)))
    return blocks


def _place_dark_matter(rng: np.random.Generator, recipe: Recipe, count: int) -> list[Points]:
    clumps = [satellite.dark for satellite in recipe.satellites]
    discs = recipe.discs if recipe.label == LABELS.index("merger") else ()
    frames = [disc.frame for disc in discs] or [recipe.frame]
    weights = np.array([disc.stars + disc.bulge for disc in discs] or [1.0])
    weights /= weights.sum()
    counts = shares(count, [*((recipe.dark_matter - sum(clumps)) * weights), *clumps])
    blocks = []
    for n, frame, weight in zip(counts, frames, weights, strict=False):
        points = nfw_points(rng, n, recipe.virial_radius * np.cbrt(weight), recipe.concentration)
        blocks.append(Points(points + frame.centre, frame, ISOTROPIC))
    for n, satellite in zip(counts[len(frames) :], recipe.satellites, strict=True):
        points = plummer_points(rng, n, 3.0 * satellite.frame.length)
        blocks.append(Points(_placed(points, satellite.frame), satellite.frame, ISOTROPIC))
    return blocks


def velocities(
    rng: np.random.Generator, blocks: Sequence[Points], positions: Array, masses: Array
) -> tuple[Array, Array]:
    """Rotation, dispersion and drift of every block's particles.

    Args:
        rng: Random numbers.
        blocks: Components of one kind.
        positions: (m, 3) kpc of all particles of the galaxy.
        masses: (m,) Msun, their masses.

    Returns:
        (n, 3) km/s relative to the galaxy, and (n, 3) unit vectors along the rotation.
    """
    speeds, azimuths = [], []
    for block in blocks:
        offset = block.position - block.frame.centre
        azimuth = np.cross(block.frame.axes[:, 2], offset)
        azimuth /= np.maximum(np.linalg.norm(azimuth, axis=1, keepdims=True), 1e-9)
        v_c = circular_speed(np.linalg.norm(offset, axis=1), positions - block.frame.centre, masses)[:, None]
        turning = np.sqrt(max(0.0, 1.0 - 2.0 * block.dispersion**2)) * v_c * azimuth
        speeds.append(block.frame.velocity + turning + block.dispersion * v_c * rng.normal(size=offset.shape))
        azimuths.append(azimuth)
    return np.concatenate(speeds), np.concatenate(azimuths)


@dataclass(frozen=True)
class ToyGalaxy:
    """The particles of a galaxy as arrays, in physical units, ordered by distance from the centre.

    Every kind has ``position`` (n, 3) kpc and ``velocity`` (n, 3) km/s relative to the galaxy, and ``mass``
    (n,) Msun; gas further has the fields of :func:`~skyshift.datasets.toy_gas.gas_state`; stars
    ``initial_mass`` Msun, ``age`` in Gyr (negative for wind particles), ``metallicity``, ``photometry`` (n, 8)
    magnitudes, ``support`` kpc; dark matter ``support`` kpc.
    """

    recipe: Recipe
    gas: dict[str, Array]
    dm: dict[str, Array]
    stars: dict[str, Array]
    black_holes: dict[str, Array]


def build_galaxy(
    recipe: Recipe, seed: int, gas: int, stars: int, dark_particle_mass: float, redshift: float = 0.0
) -> ToyGalaxy:
    """Sample the particles of a galaxy.

    Args:
        recipe: Of :func:`~skyshift.datasets.toy_recipes.draw_recipe`.
        seed: Of the simulation.
        gas: Number of gas cells; a few of the star-forming ones become wind particles.
        stars: Number of star particles.
        dark_particle_mass: Msun, the same in all galaxies.
        redshift: Of the ultraviolet background.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(recipe.number, 1)))
    dark = max(1, round(recipe.dark_matter / dark_particle_mass))
    blocks = place_particles(rng, recipe, gas, stars, dark)
    position = {kind: np.concatenate([block.position for block in blocks[kind]]) for kind in blocks}
    age = np.concatenate([rng.uniform(*block.ages, len(block.position)) for block in blocks["stars"]])
    # Stellar evolution returns two fifths of a population's mass to the gas, most of it within a Gyr.
    kept = 1.0 - 0.4 * (1.0 - np.exp(-age))
    mass = {
        "gas": _masses(rng, recipe.cold_gas + recipe.hot_gas, np.ones(gas)),
        "stars": _masses(rng, recipe.stars, kept),
        "dm": np.full(dark, dark_particle_mass),
    }
    everywhere = np.concatenate(list(position.values())), np.concatenate([mass[kind] for kind in position])
    moving = {kind: velocities(rng, blocks[kind], *everywhere) for kind in blocks}
    parts = {kind: {"position": position[kind], "velocity": moving[kind][0], "mass": mass[kind]} for kind in blocks}
    state = gas_state(
        rng,
        position["gas"],
        mass["gas"],
        np.repeat([block.hot for block in blocks["gas"]], [len(block.position) for block in blocks["gas"]]),
        _effective_radii(blocks["gas"]),
        moving["gas"][1],
        recipe.stars,
        recipe.virial_temperature,
        recipe.virial_radius,
        redshift,
    )
    cells, wind = _launch_wind(rng, parts["gas"] | state, moving["gas"][1])
    metals = np.log10(oxygen_metallicity(recipe.stars)) + gradient(_effective_radii(blocks["stars"])) - 0.04 * age
    born = {
        **parts["stars"],
        "initial_mass": mass["stars"] / kept,
        "age": age,
        "metallicity": np.clip(10.0 ** (metals + rng.normal(0.0, 0.1, stars)), 1e-5, 0.06),
    }
    type4 = {name: np.concatenate([value, wind[name]]) for name, value in born.items()}
    type4["photometry"] = magnitudes(type4["age"], type4["metallicity"], type4["initial_mass"])
    for kind, held in (("stars", type4), ("dm", parts["dm"])):
        held["support"] = neighbour_distance(held["position"], NEIGHBOURS[kind])
    hole = {"position": np.zeros((1, 3)), "velocity": np.zeros((1, 3)), "mass": np.array([recipe.black_hole])}
    return ToyGalaxy(recipe, _by_radius(cells), _by_radius(parts["dm"]), _by_radius(type4), hole)


def _masses(rng: np.random.Generator, total: float, weights: Array) -> Array:
    """Masses as ``weights`` but for a factor of up to √2, as in IllustrisTNG; they add up to ``total``."""
    drawn = weights * 2.0 ** rng.uniform(-0.5, 0.5, len(weights))
    return drawn * (total / drawn.sum())


def _effective_radii(blocks: Sequence[Points]) -> Array:
    """Distance of every particle from its component's centre in effective radii of a disc, 1.678 R_d."""
    return np.concatenate(
        [np.linalg.norm(b.position - b.frame.centre, axis=1) / (1.678 * b.frame.length) for b in blocks]
    )


def _launch_wind(
    rng: np.random.Generator, cells: dict[str, Array], azimuth: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Turn one in fifty star-forming cells into wind particles, which leave at 100 to 300 km/s."""
    forming = np.flatnonzero(cells["sfr"] > 0)
    chosen = rng.choice(forming, -(-len(forming) // 50), replace=False)
    kick = directions(rng, len(chosen))
    kick -= azimuth[chosen] * np.einsum("ij,ij->i", azimuth[chosen], kick)[:, None]  # across the rotation
    wind = {name: cells[name][chosen] for name in ("position", "velocity", "mass", "metallicity")}
    wind["position"] = wind["position"] + kick * rng.uniform(0.2, 2.0, (len(chosen), 1))
    wind["velocity"] = wind["velocity"] + kick * rng.uniform(100.0, 300.0, (len(chosen), 1))
    wind["initial_mass"] = wind["mass"]
    wind["age"] = -rng.uniform(1e-4, 0.02, len(chosen))
    staying = np.ones(len(cells["mass"]), bool)
    staying[chosen] = False
    return {name: value[staying] for name, value in cells.items()}, wind


def _by_radius(particles: dict[str, Array]) -> dict[str, Array]:
    order = np.argsort(np.linalg.norm(particles["position"], axis=1), kind="stable")
    return {name: value[order] for name, value in particles.items()}
