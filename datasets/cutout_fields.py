"""Which TNG fields a cutout is asked for, so that it holds what the domains need and no more.

Whatever the domains, a kind brings its positions and masses (the mass of dark matter is in the header), gas its
density (the kernel's support is 2.5 cell radii), stars their formation time, by which they are told from wind.

Of the 100 snapshots of a TNG run 20 are full; the other 80 are "mini" and lack fields. The service answers HTTP 400 to
a request for a field that a snapshot lacks. All that is known of such fields stands in :data:`SCARCE`.

References:
    The TNG data specification, section 1 (full and mini snapshots).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from skyshift.datasets.domains import Recipes, needed_fields
from skyshift.datasets.tng_units import NOT_IN_MINI, tng_fields
from skyshift.errors import SkyshiftError

API_KINDS: dict[str, str] = {"gas": "gas", "dm": "dm", "stars": "stars", "wind": "stars", "black_holes": "bhs"}
"""Kind of particle to the name that the web service gives to its type."""

FULL_SNAPSHOTS = frozenset((2, 3, 4, 6, 8, 11, 13, 17, 21, 25, 33, 40, 50, 59, 67, 72, 78, 84, 91, 99))
"""Numbers of the full snapshots of every TNG run; those between are mini."""

ALWAYS: dict[str, tuple[str, ...]] = {
    "gas": ("Coordinates", "Masses", "Density"),
    "dm": ("Coordinates", "SubfindHsml"),
    "stars": ("Coordinates", "Masses", "GFM_StellarFormationTime", "StellarHsml"),
    "bhs": ("Coordinates", "Masses"),
}
"""What is asked for of each kind whatever the domains."""

_GIVEN = ("position", "mass", "support")
"""Physical fields that come from those of :data:`ALWAYS`."""


class FieldsError(SkyshiftError):
    """A snapshot lacks a field that a domain cannot do without."""


@dataclass(frozen=True)
class Scarce:
    """A field that not every snapshot has.

    Attributes:
        instead: What takes its place; "" where nothing can.
        sources: The fields of the same kind from which that is made.
    """

    instead: str = ""
    sources: tuple[str, ...] = ("Coordinates",)


SCARCE: dict[str, Scarce] = {
    "CenterOfMass": Scarce("Coordinates"),
    "GFM_Metals": Scarce(),
    "GFM_StellarPhotometrics": Scarce(),
    "NeutralHydrogenAbundance": Scarce(
        "neutral fractions from ionisation equilibrium with self-shielding (Rahmati et al. 2013)",
        ("Density", "InternalEnergy", "ElectronAbundance"),
    ),
    "StellarHsml": Scarce("the distance to the 32nd nearest star"),
    "SubfindHsml": Scarce("the distance to the 64th nearest dark-matter particle"),
}
"""All that is known of fields which a snapshot may lack. A field that does not stand here is in every snapshot, or has
nothing to take its place."""


def is_mini(simulation: str, snapshot: int) -> bool:
    """Whether a snapshot of a TNG run is a mini one; the original Illustris has none."""
    return simulation.startswith("TNG") and snapshot not in FULL_SNAPSHOTS


@dataclass(frozen=True)
class FieldPlan:
    """What one download asks for.

    Attributes:
        fields: Name of the type at the web service to TNG fields.
        needed_by: TNG field to the domains that read it; those of :data:`ALWAYS` have none.
        dropped: Field that is not asked for, to the reason and what takes its place.
    """

    fields: Mapping[str, tuple[str, ...]]
    needed_by: Mapping[str, tuple[str, ...]]
    dropped: Mapping[str, str] = field(default_factory=dict)

    def without(self, missing: Iterable[str], reason: str) -> "FieldPlan":
        """The same without fields that the snapshot lacks.

        Args:
            missing: TNG fields.
            reason: How that is known.

        Raises:
            FieldsError: Nothing can take a field's place; the message names the domains that need it.
        """
        missing = set(missing)
        dropped = dict(self.dropped)
        fields = {kind: [name for name in names if name not in missing] for kind, names in self.fields.items()}
        for name in sorted(missing):
            scarce = SCARCE.get(name, Scarce())
            if not scarce.instead:
                who = ", ".join(self.needed_by.get(name, ())) or "every map of its kind"
                raise FieldsError(
                    f"{reason}: it has no {name}, which is needed for {who}, and nothing can take its place; choose a "
                    "full snapshot or other domains"
                )
            dropped[name] = f"{reason}; instead: {scarce.instead}"
            for kind, names in self.fields.items():
                if name in names:
                    fields[kind].extend(source for source in scarce.sources if source not in fields[kind])
        return FieldPlan({kind: tuple(names) for kind, names in fields.items()}, self.needed_by, dropped)


def plan_fields(domains: Iterable[str], simulation: str, snapshot: int, recipes: Recipes | None = None) -> FieldPlan:
    """The fields to ask for so that the maps of ``domains`` can be made.

    Args:
        domains: Names of domains.
        simulation: As the web service calls it.
        snapshot: Its number; of a mini snapshot, fields that it is known to lack are dropped.
        recipes: Choices of physics, which decide what HI needs.

    Raises:
        DomainError: A domain is unknown.
        FieldsError: No domain is named, or the snapshot lacks a field that nothing can take the place of.
    """
    fields: dict[str, dict[str, None]] = {}
    needed_by: dict[str, list[str]] = {}
    for domain in dict.fromkeys(domains):
        for kind, names in needed_fields([domain], recipes).items():
            asked = fields.setdefault(API_KINDS[kind], dict.fromkeys(ALWAYS[API_KINDS[kind]]))
            for name in sorted(set(names) - set(_GIVEN)):
                sources = tng_fields(name)
                if not sources:
                    raise FieldsError(f"domain {domain} needs '{name}' of {kind}, which comes from no TNG field")
                asked.update(dict.fromkeys(sources))
                for source in sources:
                    needed_by.setdefault(source, []).append(domain)
    if not fields:
        raise FieldsError("no domain is named, so there is nothing to download; name at least one")
    plan = FieldPlan(
        {kind: tuple(names) for kind, names in fields.items()},
        {name: tuple(dict.fromkeys(users)) for name, users in needed_by.items()},
    )
    if is_mini(simulation, snapshot):
        asked_for = {name for names in plan.fields.values() for name in names}
        missing = {name for name in asked_for if name in NOT_IN_MINI}
        plan = plan.without(missing, f"snapshot {snapshot} of {simulation} is a mini snapshot")
    return plan
