"""One galaxy as particles in physical units, whatever file it came from.

Positions are relative to the galaxy's centre and periodic-unwrapped, so nothing that follows needs to know
about boxes, scale factors or h.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from skyshift.errors import SkyshiftError

Array = NDArray[np.floating]

PARTICLE_TYPES: dict[str, int] = {"gas": 0, "dm": 1, "stars": 4, "wind": 4, "black_holes": 5}
"""Names of the particle kinds and the number of their type in a TNG file. Wind particles share type 4 with the
stars and are told apart by ``GFM_StellarFormationTime <= 0``."""

FIELD_UNITS: dict[str, str] = {
    "position": "kpc",
    "velocity": "km / s",
    "mass": "Msun",
    "support": "kpc",
    "density": "Msun / kpc3",
    "temperature": "K",
    "electron_abundance": "",
    "magnetic_field": "G",
    "metallicity": "",
    "neutral_fraction": "",
    "hydrogen_fraction": "",
    "sfr": "Msun / yr",
    "formation_scale_factor": "",
    "photometry": "mag",
}
"""Unit of every field, as astropy writes it. Metallicity and hydrogen fraction are mass fractions (not solar units);
photometry is (n, 8), the absolute magnitudes of a star particle in U, B, V, K (Vega) and g, r, i, z (AB)."""


class GalaxyError(SkyshiftError):
    """A galaxy's particles cannot be what they claim to be, or lack what is asked for."""


@dataclass(frozen=True)
class Particles:
    """Particles of one kind.

    Attributes:
        position: (n, 3) kpc relative to the galaxy's centre, float64.
        mass: (n,) Msun.
        support: (n,) kpc, radius at which the smoothing kernel of each particle ends; ``None`` where the file
            gives none (see :func:`skyshift.datasets.smoothing.with_support`).
        fields: Further arrays, named and in the units of :data:`FIELD_UNITS`.
    """

    position: Array
    mass: Array
    support: Array | None = None
    fields: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.mass)

    def __getitem__(self, name: str) -> Array:
        """The array called ``name`` (``position``, ``mass``, ``support`` or one of ``fields``).

        Raises:
            GalaxyError: There is none.
        """
        if name in ("position", "mass"):
            return self.position if name == "position" else self.mass
        value = self.support if name == "support" else self.fields.get(name)
        if value is None:
            held = ", ".join(["position", "mass", *self.fields])
            raise GalaxyError(f"these particles have no field '{name}'; they have {held}")
        return value

    def select(self, mask: NDArray[np.bool_] | NDArray[np.integer]) -> "Particles":
        """The particles that ``mask`` (boolean or indices) picks."""
        return Particles(
            self.position[mask],
            self.mass[mask],
            None if self.support is None else self.support[mask],
            {name: value[mask] for name, value in self.fields.items()},
        )


@dataclass(frozen=True)
class Galaxy:
    """The particles of one subhalo, or of one region of a box.

    Attributes:
        name: Unique within its simulation and snapshot, for instance ``subhalo 17``.
        number: Subhalo number in the catalogue, or the region's number.
        snapshot: Snapshot number.
        redshift: Redshift of the snapshot.
        hubble: h, the Hubble constant over 100 km/s/Mpc.
        omega_matter: Matter density over the critical one, today.
        centre: (3,) kpc, the centre in the simulation box (physical, not comoving).
        velocity: (3,) km/s, peculiar velocity of the galaxy.
        particles: Kind of particle to its particles; a kind without particles is absent.
        half_mass_radius: Kind to half-mass radius in kpc, where the catalogue gives it.
        label: Class number of the catalogue, or -1.
        provenance: Where it was read from, in words.
        replaced: Fields that the files lack, and from what they were computed instead, in words.
    """

    name: str
    number: int
    snapshot: int
    redshift: float
    hubble: float
    omega_matter: float
    centre: Array
    particles: Mapping[str, Particles]
    velocity: Array = field(default_factory=lambda: np.zeros(3))
    half_mass_radius: Mapping[str, float] = field(default_factory=dict)
    label: int = -1
    provenance: str = ""
    replaced: str = ""

    def __post_init__(self) -> None:
        for kind, particles in self.particles.items():
            self._check(kind, particles)

    def _check(self, kind: str, particles: Particles) -> None:
        n = len(particles)
        if particles.position.shape != (n, 3):
            raise GalaxyError(f"{self.name}: {kind} has {n} masses but positions of shape {particles.position.shape}")
        named = {"position": particles.position, "mass": particles.mass, **particles.fields}
        if particles.support is not None:
            named["support"] = particles.support
        for name, value in named.items():
            if len(value) != n:
                raise GalaxyError(f"{self.name}: {kind} has {n} masses but {len(value)} values of '{name}'")
            bad = ~np.isfinite(value).all(axis=tuple(range(1, value.ndim)))
            if bad.any():
                raise GalaxyError(
                    f"{self.name}: '{name}' of {kind} is not finite in {bad.sum()} of {n} particles, first at "
                    f"index {int(np.argmax(bad))} ({self.provenance}). The file is damaged or the field is not "
                    "what it is called; read the galaxy again or leave it out."
                )
        if (empty := int(np.count_nonzero(particles.mass == 0))) > 0:
            raise GalaxyError(
                f"{self.name}: zero 'mass' in {empty} of {n} {kind} particles, first at index "
                f"{int(np.argmax(particles.mass == 0))} ({self.provenance}). The file has holes, as a download leaves "
                "that broke off; read it again or leave it out."
            )
        for name in ("mass", "density", "support"):  # a support may follow from the density
            if name in named and (named[name] < 0).any():
                index = int(np.argmin(named[name]))
                raise GalaxyError(
                    f"{self.name}: negative '{name}' in {int((named[name] < 0).sum())} of {n} {kind} particles, "
                    f"lowest {named[name][index]:.4g} {FIELD_UNITS[name]} at index {index} ({self.provenance})."
                )

    def require(self, kind: str, names: Iterable[str] = ()) -> Particles:
        """The particles of ``kind``, once it is sure that they hold every field in ``names``.

        Raises:
            GalaxyError: The kind or a field is missing; the message says what is there.
        """
        if kind not in self.particles:
            held = ", ".join(self.particles) or "no particles at all"
            raise GalaxyError(
                f"{self.name} has no particles of kind '{kind}' (it has {held}; {self.provenance}). "
                f"Ask for PartType{PARTICLE_TYPES.get(kind, '?')} when downloading, or choose other domains."
            )
        particles = self.particles[kind]
        missing = [n for n in names if n not in ("position", "mass", "support") and n not in particles.fields]
        if missing:
            raise GalaxyError(
                f"{self.name}: {kind} lacks {', '.join(missing)} (it has {', '.join(particles.fields) or 'none'}; "
                f"{self.provenance}). Download the cutout again with these fields, or choose other domains."
            )
        return particles

    def require_count(self, minimum: Mapping[str, int]) -> None:
        """Check that every kind in ``minimum`` has at least so many particles.

        Raises:
            GalaxyError: One has fewer.
        """
        for kind, least in minimum.items():
            count = len(self.particles[kind]) if kind in self.particles else 0
            if count < least:
                raise GalaxyError(
                    f"{self.name} has {count} {kind} particles, {least} were asked for; "
                    f"lower minimum_particles.{kind} or choose a more massive galaxy."
                )

    def with_particles(self, kind: str, particles: Particles) -> "Galaxy":
        """The same galaxy with the particles of one kind replaced."""
        return replace(self, particles={**self.particles, kind: particles})
