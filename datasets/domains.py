"""Maps of domains: what they need of a galaxy, how they are made, and how a user adds more.

The domains themselves stand in :mod:`skyshift.datasets.domain_table`, the physics of what they sum in
:mod:`skyshift.datasets.quantities`.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from skyshift.datasets.domain_table import DOMAINS, Domain, DomainError
from skyshift.datasets.galaxy import Galaxy
from skyshift.datasets.projection import Canvas, rotate, weighted_mean
from skyshift.datasets.quantities import SAME_IN_EVERY_VIEW, Quantity, Recipes, View, mass
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

__all__ = [
    "DOMAINS",
    "Domain",
    "DomainError",
    "MapMaker",
    "Recipes",
    "View",
    "get_domain",
    "load_domains",
    "make_maps",
    "needed_fields",
]

Array = NDArray[np.floating]


def get_domain(name: str) -> Domain:
    """The domain called ``name``.

    Raises:
        DomainError: There is none; the message names the nearest.
    """
    if name not in DOMAINS:
        raise DomainError(unknown("domain", name, DOMAINS))
    return DOMAINS[name]


def needed_fields(names: Iterable[str], recipes: Recipes | None = None) -> dict[str, set[str]]:
    """Particle kinds, and fields of each, from which the maps of these domains are made.

    Args:
        names: Domains.
        recipes: Choices of physics, which decide what HI needs.

    Raises:
        DomainError: A domain is unknown.
    """
    recipes = recipes or Recipes()
    need: dict[str, set[str]] = {}
    for domain in map(get_domain, names):
        need.setdefault(domain.kind, set()).update(domain.needs(recipes))
    if "gas" in need:
        need["gas"].add("density")
    return need


def load_domains(paths: Iterable[str]) -> tuple[str, ...]:
    """Add domains from a user's own Python, which runs because its path was named.

    A file ``my_domains.py`` that offers them under the name ``DOMAINS``::

        import numpy as np
        from skyshift.datasets.domains import Domain

        def speed(galaxy, recipes, view):  # one number per particle, km/s
            return np.linalg.norm(galaxy.particles["gas"]["velocity"] - galaxy.velocity, axis=1)

        DOMAINS = [
            Domain("speed", "Gas speed", "km / s", "gas", speed, fields=("velocity",), moment=1, scaling="linear"),
        ]

    Fields are those of :data:`skyshift.datasets.galaxy.FIELD_UNITS`, quantities to build upon stand in
    :mod:`skyshift.datasets.quantities`. A process that is started anew has to call this again.

    Args:
        paths: ``my_domains.py``, ``folder/my_domains.py:NAME`` or ``module:NAME`` (``package.module`` alone offers
            ``DOMAINS``); the name stands for a :class:`Domain` or for several. What is loaded already is left alone.

    Returns:
        Names of the domains that these paths offer.

    Raises:
        DomainError: No such file or module, it cannot be run, the name is not there or is no domain, or a domain is
            called as another one. Nothing has been added then.
    """
    offered: dict[str, tuple[str, Domain]] = {}
    for path in paths:
        source, name = _parts(path)
        origin = f"{source}:{name}"
        for domain in _LOADED[origin] if origin in _LOADED else _domains_of(source, name):
            other = offered[domain.name][0] if domain.name in offered else _ORIGINS.get(domain.name)
            if other is None and domain.name in DOMAINS:
                other = "skyshift itself"
            if other not in (None, origin):
                raise DomainError(f"{path}: there is a domain '{domain.name}' already, of {other}; rename one of them")
            offered[domain.name] = (origin, domain)
    for name, (origin, domain) in offered.items():
        DOMAINS[name], _ORIGINS[name] = domain, origin
        _LOADED[origin] = [d for o, d in offered.values() if o == origin]
    return tuple(offered)


_ORIGINS: dict[str, str] = {}  # of the domains that users added
_LOADED: dict[str, list[Domain]] = {}


def _parts(path: str) -> tuple[str, str]:
    """File (absolute) or module, and the name in it."""
    source, colon, name = path.rpartition(":")
    if not colon or not name.isidentifier():
        source, name = path, "DOMAINS"
    return (str(Path(source).resolve()) if source.endswith(".py") else source), name


def _domains_of(source: str, name: str) -> list[Domain]:
    """What a file or module offers under ``name``, checked."""
    held = getattr(_run(source), name, None)
    if held is None:
        raise DomainError(f"{source} has no '{name}'; give it a list DOMAINS, or name another object as {source}:NAME")
    domains = [held] if isinstance(held, Domain) else held.values() if isinstance(held, Mapping) else held
    if not isinstance(domains, Iterable) or not (domains := list(domains)):
        raise DomainError(f"{source}: {name} is {held!r}, not a Domain or a list of them")
    for domain in domains:
        if not isinstance(domain, Domain):
            raise DomainError(f"{source}: {name} holds {domain!r}, which is no skyshift.datasets.domains.Domain")
        _check_looks(source, domain)
    return domains


def _check_looks(source: str, domain: Domain) -> None:
    """Scaling and colour map exist. Imported here: neither is needed to make maps."""
    from matplotlib import colormaps

    from skyshift.datasets.scaling import SCALINGS

    if domain.scaling not in SCALINGS:
        raise DomainError(f"{source}: domain '{domain.name}': " + unknown("scaling", domain.scaling, SCALINGS))
    if domain.colour_map not in colormaps:
        raise DomainError(f"{source}: domain '{domain.name}': " + unknown("colour map", domain.colour_map, colormaps))
    if domain.signed and domain.scaling == "log":
        raise DomainError(f"{source}: domain '{domain.name}' has values below 0, which log cannot scale; use asinh")


def _run(source: str) -> ModuleType:
    """Import a module or run a file."""
    try:
        if not source.endswith(".py"):
            return importlib.import_module(source)
        if not Path(source).is_file():
            raise DomainError(f"{source} does not exist; domain_files names Python files, or modules as module:NAME")
        # A name of its own, so that it neither hides nor is hidden by a module called the same
        name = "skyshift_domains_" + hashlib.sha256(source.encode()).hexdigest()[:12]
        spec = importlib.util.spec_from_file_location(name, source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    except SkyshiftError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file raises
        raise DomainError(f"{source} cannot be run: {type(error).__name__}: {error}") from error
    return module


Term = tuple[Quantity, Quantity | None, int]
"""weight × quantity^power, what one row of a canvas sums."""


def _terms(domain: Domain) -> list[Term]:
    if domain.moment == 0:
        return [(domain.quantity, None, 0)]
    weight = domain.weight or mass(domain.kind)
    return [(weight, domain.quantity if power else None, power) for power in range(domain.moment + 1)]


class _KindMaker:
    """The maps of one kind of particle. Terms that several domains share are summed once."""

    def __init__(
        self, kind: str, domains: Sequence[Domain], view: View, recipes: Recipes, threads: int, device: str | None
    ) -> None:
        self.kind, self.domains, self.view, self.recipes = kind, domains, view, recipes
        self.fields = {name for domain in domains for name in domain.needs(recipes)}
        self.terms = list(dict.fromkeys(term for domain in domains for term in _terms(domain)))
        self.canvas = Canvas(view.side, view.pixels, len(self.terms), depth=view.depth, threads=threads, device=device)
        self.factors: dict[str, float] | None = None

    def add(self, galaxy: Galaxy, known: dict[Quantity, NDArray[np.float64]]) -> None:
        particles = galaxy.require(self.kind, self.fields)
        values = {}
        for quantity in dict.fromkeys(quantity for term in self.terms for quantity in term[:2] if quantity is not None):
            if quantity not in known:
                values[quantity] = np.asarray(quantity(galaxy, self.recipes, self.view), np.float64)
                self._check(galaxy, quantity, values[quantity])
                if quantity in SAME_IN_EVERY_VIEW:
                    known[quantity] = values[quantity]
            else:
                values[quantity] = known[quantity]
        weights = np.stack([values[w] * values[q] ** power if q else values[w] for w, q, power in self.terms])
        self.canvas.add(rotate(particles.position, self.view.rotation), particles["support"], weights)
        self.factors = {d.name: d.factor(galaxy, self.recipes) if d.factor else 1.0 for d in self.domains}

    def _check(self, galaxy: Galaxy, quantity: Quantity, values: NDArray[np.float64]) -> None:
        """Weights of a mean are not negative: it could lie outside of what it averages, or divide by nothing."""
        for domain in self.domains:
            if domain.moment and quantity is domain.weight and (values < 0).any():
                raise DomainError(
                    f"domain '{domain.name}': its weight is negative in {int((values < 0).sum())} of {len(values)} "
                    f"{self.kind} particles of {galaxy.name}, lowest {values.min():.4g}; weights are 0 or more"
                )

    def maps(self) -> dict[str, NDArray[np.float32]]:
        if self.factors is None:
            raise DomainError(f"no {self.kind} particles were given: " + ", ".join(d.name for d in self.domains))
        sums = dict(zip(self.terms, self.canvas.maps(), strict=True))
        maps = {}
        for domain in self.domains:
            moments = [sums[term] for term in _terms(domain)]
            value = moments[0] if domain.moment == 0 else _moment(moments)
            maps[domain.name] = (value * self.factors[domain.name]).astype(np.float32)
        return maps


VARIANCE_FLOOR = 1e-12
"""Share of the mean square below which a variance is rounding (of float64 sums of 1e4 terms) and counts as none."""


def _moment(sums: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean from (Σ w, Σ w q), dispersion from these and Σ w q²."""
    mean = weighted_mean(sums[1], sums[0])
    if len(sums) == 2:
        return mean
    square = weighted_mean(sums[2], sums[0])
    variance = square - mean**2
    return np.sqrt(np.where(variance > VARIANCE_FLOOR * square, variance, 0.0))


class MapMaker:
    """Maps of several domains in one view of one galaxy, fed whole or in chunks, one pass over each kind of particle.

    Args:
        names: Domains.
        view: Rotation, side, pixels, depth.
        recipes: Choices of physics.
        threads: Of the projection.
        device: Of the projection, such as ``cuda``; by default the CPU.

    Raises:
        DomainError: A domain is unknown.
    """

    def __init__(
        self,
        names: Iterable[str],
        view: View,
        recipes: Recipes | None = None,
        *,
        threads: int = 1,
        device: str | None = None,
    ) -> None:
        self.names = list(dict.fromkeys(names))
        asked = [get_domain(name) for name in self.names]
        kinds = dict.fromkeys(domain.kind for domain in asked)
        self._kinds = {
            kind: _KindMaker(kind, [d for d in asked if d.kind == kind], view, recipes or Recipes(), threads, device)
            for kind in kinds
        }

    def add(self, galaxy: Galaxy, known: dict[Quantity, NDArray[np.float64]] | None = None) -> None:
        """Add a galaxy, or a chunk of one; kinds that it does not hold are left as they are.

        Args:
            galaxy: With kernel supports filled in for every kind that is used
                (:func:`skyshift.datasets.smoothing.with_support`).
            known: Quantities of this galaxy or chunk that are the same in every view. What is missing is put in, so
                that makers of other views of it, with the same recipes, need not compute it again.

        Raises:
            GalaxyError: A field or the kernel support is missing.
            DomainError: The weight of a domain is negative.
        """
        known = {} if known is None else known
        for kind, maker in self._kinds.items():
            if kind in galaxy.particles:
                maker.add(galaxy, known)

    def maps(self) -> dict[str, NDArray[np.float32]]:
        """Domain to (pixels, pixels) float32 in the domain's unit; rows run along y upwards, columns along x.

        Raises:
            DomainError: A kind of particle that a domain is made from was in no chunk.
        """
        maps: dict[str, NDArray[np.float32]] = {}
        for maker in self._kinds.values():
            maps |= maker.maps()
        return {name: maps[name] for name in self.names}


def make_maps(
    galaxy: Galaxy,
    names: Iterable[str],
    view: View,
    recipes: Recipes | None = None,
    *,
    threads: int = 1,
    device: str | None = None,
) -> Mapping[str, NDArray[np.float32]]:
    """Project a whole galaxy into maps of several domains; arguments and result as of :class:`MapMaker`.

    Raises:
        DomainError: A domain is unknown.
        GalaxyError: A kind of particle, a field or the kernel support is missing.
    """
    names = list(names)
    maker = MapMaker(names, view, recipes, threads=threads, device=device)
    for name in names:
        galaxy.require(get_domain(name).kind)
    maker.add(galaxy)
    return maker.maps()
