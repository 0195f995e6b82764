"""What a toy galaxy is made of: masses, sizes and components, drawn from relations of the nearby universe.

Halo masses are uniform in log M_200. A disc galaxy is one disc with a small bulge; a spheroid has no
stellar disc, in half of the cases no cold gas, else a thin disc or ring of it; a merger is two discs of
mass ratio 1:1 to 1:4, one to three scale lengths (of both together) apart, with tidal tails. All have a hot
halo and up to four satellites.

A galaxy depends on the seed and on its own number alone, not on how many others there are.

References:
    Dutton & Macciò 2014, MNRAS 441, 3359 (arXiv:1402.7073): concentration, 0.11 dex scatter.
    Moster, Naab & White 2013, MNRAS 428, 3121 (arXiv:1205.5807): stellar mass in a halo, 0.15 dex scatter.
    Shen et al. 2003, MNRAS 343, 978 (astro-ph/0301527): sizes of discs and of spheroids.
    Peeples et al. 2014, ApJ 786, 54 (arXiv:1310.2253): cold gas per stellar mass, log f = 4.39 - 0.48 log M⋆.
    Young et al. 2011, MNRAS 414, 940; Serra et al. 2012, MNRAS 422, 1835: cold gas of early-type galaxies.
    Broeils & Rhee 1997, A&A 324, 877 (gas discs reach further than the light).
    Kregel, van der Kruit & de Grijs 2002, MNRAS 334, 646 (thickness of stellar discs).
    Kalberla & Kerp 2009, ARA&A 47, 27 (flaring and warp of the gas).
    Savchenko & Reshetnikov 2013, MNRAS 436, 1074 (pitch angles of spiral arms).
    Reines & Volonteri 2015, ApJ 813, 82 (black holes).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]

LABELS = ("disc", "spheroid", "merger")
"""Names of the morphological classes; a class's number is its place."""

HUBBLE, OMEGA_MATTER, OMEGA_BARYON = 0.6774, 0.3089, 0.0486
BARYON_FRACTION = OMEGA_BARYON / OMEGA_MATTER
GRAVITY = 4.30092e-6  # kpc (km/s)² / Msun
CRITICAL_DENSITY = 277.5 * HUBBLE**2  # Msun / kpc³, today
HALO_MASS_RANGE = (11.0, 12.6)  # log10 M_200 / Msun, uniform between
MEDIAN_HALO_MASS = 10.0 ** (0.5 * sum(HALO_MASS_RANGE))  # Msun
HOT_HALO_EXTENT = 0.35  # of R_200, as far as the hot halo is sampled
ISOTROPIC = float(np.sqrt(0.5))  # dispersion over circular speed of a component that does not rotate


@dataclass(frozen=True)
class Frame:
    """Centre (kpc), velocity (km/s) and axes of a component; its spin is the third column of ``axes``."""

    centre: Array
    velocity: Array
    axes: Array
    length: float  # kpc, scale length, the unit of metallicity gradients


@dataclass(frozen=True)
class Disc:
    """A disc of stars and gas. Masses in Msun, lengths in kpc, angles in radians."""

    frame: Frame
    stars: float
    bulge: float
    gas: float
    gas_length: float
    height: float  # z_0 of the stars
    gas_height: float  # z_0 of the gas at the centre; it flares outward
    hole: float  # depth of the central depression of the gas, 0 to 1
    arms: int
    pitch: float
    contrast: float  # concentration κ of the von Mises distribution of the gas about the arms
    bar: float  # half length, 0 for none
    warp: float  # height over radius of the outer gas
    cloudiness: float  # share of the gas that sits in clouds
    young: float  # share of the stars born in the arms in the last 0.3 Gyr
    tail: float = 0.0  # share of the gas drawn out by tides; of the stars, half as much


@dataclass(frozen=True)
class Satellite:
    """A Plummer sphere of stars, gas and dark matter (Msun), of radius ``frame.length``."""

    frame: Frame
    stars: float
    gas: float
    dark: float


@dataclass(frozen=True)
class Recipe:
    """Everything about a galaxy that is decided before its particles. Msun, kpc, K."""

    number: int
    label: int
    halo_mass: float  # M_200, critical
    virial_radius: float  # R_200, critical
    concentration: float
    virial_temperature: float
    spheroid: float  # stars outside discs
    shape: Array  # axis ratios of the spheroid
    frame: Frame  # of the spheroid and the halo
    hot_gas: float  # inside HOT_HALO_EXTENT
    black_hole: float
    discs: tuple[Disc, ...]
    satellites: tuple[Satellite, ...]

    @property
    def stars(self) -> float:
        """All stars in Msun."""
        discs = sum(disc.stars + disc.bulge for disc in self.discs)
        return self.spheroid + discs + sum(satellite.stars for satellite in self.satellites)

    @property
    def cold_gas(self) -> float:
        """Gas of discs and satellites in Msun."""
        return sum(disc.gas for disc in self.discs) + sum(satellite.gas for satellite in self.satellites)

    @property
    def dark_matter(self) -> float:
        """Dark matter inside R_200 in Msun."""
        return (1.0 - BARYON_FRACTION) * self.halo_mass


def stellar_mass(halo_mass: float) -> float:
    """Stellar mass in a halo, M⋆ = 2 N M / ((M/M₁)^-β + (M/M₁)^γ), in Msun (Moster et al. 2013)."""
    ratio = halo_mass / 10.0**11.590
    return float(halo_mass * 2 * 0.0351 / (ratio**-1.376 + ratio**0.608))


def effective_radius(stars: float, early: bool) -> float:
    """Half-light radius in kpc of early or late types of ``stars`` Msun (Shen et al. 2003, eq. 17 and 18)."""
    return float(2.88e-6 * stars**0.56 if early else 0.1 * stars**0.14 * (1 + stars / 3.98e10) ** 0.25)


def draw_recipe(number: int, label: int, seed: int) -> Recipe:
    """Draw the galaxy ``number`` of class ``label`` (place in :data:`LABELS`)."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, 0)))
    M = 10.0 ** rng.uniform(*HALO_MASS_RANGE)
    R200 = np.cbrt(M / (4.0 / 3.0 * np.pi * 200.0 * CRITICAL_DENSITY))
    stars = stellar_mass(M) * 10.0 ** rng.normal(0.0, 0.15)
    cold = stars * 10.0 ** (4.39 - 0.48 * np.log10(stars) + rng.normal(0.0, 0.2))
    hot = rng.uniform(0.25, 0.5) * BARYON_FRACTION * M * HOT_HALO_EXTENT**1.5  # M(<r) ∝ r^1.5 outside the core
    frame = Frame(np.zeros(3), np.zeros(3), _random_axes(rng), effective_radius(stars, early=True) / 1.8153)
    spheroid, shape = 0.0, np.ones(3)
    if LABELS[label] == "disc":
        discs: tuple[Disc, ...] = (_draw_disc(rng, stars, cold),)
    elif LABELS[label] == "merger":
        discs = _draw_pair(rng, stars, 1.2 * cold)
    else:
        spheroid, shape = stars, np.array([1.0, rng.uniform(0.75, 1.0), rng.uniform(0.55, 0.8)])
        hot *= 1.5
        gas = stars * 10.0 ** rng.uniform(-2.5, -1.0) if rng.uniform() < 0.5 else 0.0
        discs = (_draw_disc(rng, 0.0, gas, length=frame.length),) if gas else ()
        cold = gas
    satellites = tuple(_draw_satellite(rng, M, R200, stars, cold) for _ in range(rng.integers(0, 5)))
    log_c = 0.905 - 0.101 * np.log10(M * HUBBLE / 1e12) + rng.normal(0.0, 0.11)
    return Recipe(
        number=number,
        label=label,
        halo_mass=M,
        virial_radius=R200,
        concentration=10.0**log_c,
        virial_temperature=35.7 * GRAVITY * M / R200,  # μ m_p V² / 2k with μ = 0.59
        spheroid=spheroid,
        shape=shape,
        frame=frame,
        hot_gas=hot,
        black_hole=10.0 ** (7.45 + 1.05 * np.log10(stars / 1e11) + rng.normal(0.0, 0.3)),
        discs=discs,
        satellites=satellites,
    )


def _random_axes(rng: np.random.Generator) -> Array:
    """A rotation matrix, uniform on SO(3): a normal quaternion has no preferred direction."""
    return Rotation.from_quat(rng.normal(size=4)).as_matrix()


def _draw_disc(rng: np.random.Generator, stars: float, gas: float, length: float | None = None) -> Disc:
    """A disc of ``stars`` and ``gas`` Msun at the origin; one without stars is given its ``length``, kpc."""
    if length is None:
        length = effective_radius(stars, early=False) * 10.0 ** rng.normal(0.0, 0.12) / 1.678
    bulge = rng.uniform(0.03, 0.25) * stars
    gas_length = rng.uniform(1.7, 2.8) * length
    return Disc(
        frame=Frame(np.zeros(3), np.zeros(3), _random_axes(rng), length),
        stars=stars - bulge,
        bulge=bulge,
        gas=gas,
        gas_length=gas_length,
        height=rng.uniform(0.12, 0.25) * length,
        gas_height=gas_length * 10.0 ** rng.uniform(-1.5, -0.7),
        hole=rng.uniform(0.0, 0.9),
        arms=int(rng.choice([2, 3, 4], p=[0.6, 0.2, 0.2])),
        pitch=np.radians(rng.uniform(10.0, 30.0)),
        contrast=rng.uniform(1.2, 2.5),
        bar=rng.uniform(0.8, 1.5) * length if rng.uniform() < 0.4 else 0.0,
        warp=rng.uniform(-0.3, 0.3),
        cloudiness=rng.uniform(0.1, 0.6),
        young=rng.uniform(0.03, 0.1),
    )


def _draw_pair(rng: np.random.Generator, stars: float, gas: float) -> tuple[Disc, Disc]:
    """Two discs of mass ratio 1:1 to 1:4, the first at the origin, on a bound orbit with tails."""
    q = rng.uniform(0.25, 1.0)
    first = _draw_disc(rng, stars / (1.0 + q), gas / (1.0 + q))
    second = _draw_disc(rng, stars * q / (1.0 + q), gas * q / (1.0 + q))
    apart = rng.uniform(1.4, 3.0) * (first.frame.length + second.frame.length)
    centre = apart * (first.frame.axes @ _low_latitude(rng))  # tails show best near the plane of the orbit
    speed = rng.uniform(0.5, 1.2) * np.sqrt(GRAVITY * 10.0 * stars / apart)
    velocity = speed * np.cross(first.frame.axes[:, 2], centre / apart)
    frame = Frame(centre, velocity, second.frame.axes, second.frame.length)
    tail = rng.uniform(0.2, 0.4, 2)
    return replace(first, tail=tail[0]), replace(second, frame=frame, tail=tail[1])


def _low_latitude(rng: np.random.Generator) -> Array:
    """A unit vector within 30° of the xy plane."""
    phi, sine = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(-0.5, 0.5)
    cosine = np.sqrt(1.0 - sine**2)
    return np.array([cosine * np.cos(phi), cosine * np.sin(phi), sine])


def _draw_satellite(rng: np.random.Generator, M: float, R200: float, stars: float, cold: float) -> Satellite:
    share = 10.0 ** rng.uniform(-2.5, -1.5)
    direction = rng.normal(size=3)
    distance = rng.uniform(0.08, 0.3) * R200
    velocity = rng.normal(0.0, ISOTROPIC * np.sqrt(GRAVITY * M / R200), 3)
    centre = direction / np.linalg.norm(direction) * distance
    frame = Frame(centre, velocity, _random_axes(rng), rng.uniform(0.3, 1.2))
    return Satellite(frame, share * stars, 0.5 * share * cold, rng.uniform(0.005, 0.015) * M)
