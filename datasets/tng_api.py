"""The nouns of the TNG web service: simulation, snapshot, subhalo, cutout.

    GET {base}/                                                  all simulations
    GET {base}/{simulation}/                                     h, box size, …
    GET {base}/{simulation}/snapshots/{number}/                  redshift
    GET {base}/{simulation}/snapshots/{number}/subhalos/?…       numbers, page by page (count, next, results)
    GET {base}/{simulation}/snapshots/{number}/subhalos/{id}/    one entry of the group catalogue
    GET …/subhalos/{id}/cutout.hdf5?gas=Coordinates,Masses&…     its particles

A list is narrowed by ``field__gt`` and ``field__lt``, or ``field`` for equality, and ordered by ``order_by`` (a minus
turns the order round). The service counts mass in 1e10 Msun/h and length in ckpc/h; here it is Msun and physical kpc,
converted with the h of the simulation and the redshift of the snapshot that the service itself gives.

The service's own addresses (``next``, ``url``, ``cutouts``) are never followed: some are plain http, and the key must
go nowhere else. Of ``next`` the offset alone is taken.

References:
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (arXiv:1812.05609), section 5.4; https://www.tng-project.org/data/docs/api/
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import h5py

from skyshift.datasets.cutout_facts import Facts
from skyshift.datasets.tng_connections import ServiceError
from skyshift.datasets.tng_partial import DamagedError
from skyshift.datasets.tng_units import SnapshotError, read_header
from skyshift.datasets.tng_web import Web
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown

MASS_UNIT = 1e10
"""Msun/h in the service's unit of mass."""

SUFFIXES: dict[str, str] = {"gas": "_gas", "dm": "_dm", "stars": "_stars", "black_holes": "_bhs", "total": ""}
"""Kind to what the service appends to ``mass``, ``len`` and ``halfmassrad``."""

PART_TYPES: dict[str, int] = {"gas": 0, "dm": 1, "stars": 4, "bhs": 5}
"""The service's name of a type to its number in a file."""

PAGE = 1000
"""Subhaloes asked for at once when listing."""

Which = Literal["all", "centrals", "satellites"]


@dataclass(frozen=True)
class Snapshot:
    """One snapshot of one simulation.

    Attributes:
        simulation: As the service calls it.
        number: Of the snapshot.
        redshift: Its own; rounding below zero is taken off.
        hubble: h of the simulation.
    """

    simulation: str
    number: int
    redshift: float
    hubble: float

    @property
    def path(self) -> str:
        """Below the base address."""
        return f"{self.simulation}/snapshots/{self.number}"

    @property
    def scale_factor(self) -> float:
        """A = 1 / (1 + z)."""
        return 1.0 / (1.0 + self.redshift)


@dataclass(frozen=True)
class Selection:
    """Which subhaloes.

    Attributes:
        minimum_mass: Kind (gas, dm, stars, black_holes, total) to the least mass, Msun.
        maximum_mass: Kind to the greatest mass, Msun.
        minimum_sfr: Least star-formation rate, Msun/yr; 0 for any.
        which: all, the centrals of their groups, or satellites.
        flagged: Also those whose ``SubhaloFlag`` says that they are no galaxies (and those of dark-matter runs, which
            have no flag).
        heaviest: The kind by whose mass the list is ordered, heaviest first.
        limit: At most so many; 0 for no limit.
    """

    minimum_mass: dict[str, float] = field(default_factory=dict)
    maximum_mass: dict[str, float] = field(default_factory=dict)
    minimum_sfr: float = 0.0
    which: Which = "all"
    flagged: bool = False
    heaviest: str = "stars"
    limit: int = 0

    def __post_init__(self) -> None:
        for name in ("minimum_mass", "maximum_mass"):
            for kind, mass in getattr(self, name).items():
                if kind not in SUFFIXES:
                    raise SkyshiftError(f"{name}: {unknown('kind of mass', kind, SUFFIXES)}")
                if not mass > 0:
                    raise SkyshiftError(f"{name} of {kind} must be positive (in Msun), not {mass}")
        if self.heaviest not in SUFFIXES:
            raise SkyshiftError(f"heaviest: {unknown('kind of mass', self.heaviest, SUFFIXES)}")
        if self.limit < 0 or self.minimum_sfr < 0:
            raise SkyshiftError("limit and minimum_sfr cannot be negative")

    def query(self, hubble: float) -> dict[str, Any]:
        """As the service understands it, masses in 1e10 Msun/h."""
        query: dict[str, Any] = {"order_by": f"-mass{SUFFIXES[self.heaviest]}"}
        for bounds, comparison in ((self.minimum_mass, "gt"), (self.maximum_mass, "lt")):
            for kind, mass in bounds.items():
                query[f"mass{SUFFIXES[kind]}__{comparison}"] = float(mass * hubble / MASS_UNIT)
        if self.minimum_sfr:
            query["sfr__gt"] = float(self.minimum_sfr)
        if self.which != "all":
            query["primary_flag"] = int(self.which == "centrals")
        if not self.flagged:
            query["subhaloflag"] = 1
        return query


class TngService:
    """The web service.

    Args:
        web: A client of it.
    """

    def __init__(self, web: Web) -> None:
        self.web = web

    def snapshot(self, simulation: str, number: int) -> Snapshot:
        """A snapshot with what the conversion of units needs.

        Raises:
            ServiceError: There is no such simulation or snapshot, or the service does not answer.
        """
        try:
            run = self.web.json(f"{simulation}/")
        except ServiceError as error:
            if error.status != 404:
                raise
            raise ServiceError(unknown("simulation", simulation, self.simulations()), 404) from None
        try:
            snapshot = self.web.json(f"{simulation}/snapshots/{number}/")
        except ServiceError as error:
            if error.status != 404:
                raise
            raise ServiceError(f"{simulation} has no snapshot {number}", 404) from None
        z = _number(snapshot, "redshift", "the snapshot")
        return Snapshot(simulation, number, 0.0 if abs(z) < 1e-10 else z, _number(run, "hubble", "the simulation"))

    def simulations(self) -> list[str]:
        """Names of all simulations that the service has."""
        answer = self.web.json("")
        return [str(entry["name"]) for entry in answer["simulations"]] if "simulations" in answer else []

    def subhalos(self, snapshot: Snapshot, selection: Selection) -> list[int]:
        """Numbers of the subhaloes that ``selection`` asks for, heaviest first, each once.

        Raises:
            ServiceError: The service does not answer, or not as it should.
        """
        numbers: dict[int, None] = {}
        for number in self._listed(snapshot, selection):
            numbers[number] = None
            if selection.limit and len(numbers) == selection.limit:
                break
        return list(numbers)

    def _listed(self, snapshot: Snapshot, selection: Selection) -> Iterator[int]:
        page = min(PAGE, selection.limit) if selection.limit else PAGE
        query = {**selection.query(snapshot.hubble), "limit": page}
        offset = 0
        while True:
            answer = self.web.json(f"{snapshot.path}/subhalos/", {**query, "offset": offset} if offset else query)
            if not isinstance(answer, dict) or "results" not in answer:
                raise ServiceError(f"the list of subhaloes of {snapshot.path} has no 'results'; is base_url right?")
            yield from (int(entry["id"]) for entry in answer["results"])
            if not (following := answer.get("next")):
                return
            found = parse_qs(urlsplit(str(following)).query).get("offset", ["0"])[0]
            if not found.isdecimal() or int(found) <= offset:
                raise ServiceError(f"the list of subhaloes of {snapshot.path} goes in circles at offset {found}")
            offset = int(found)

    def facts(self, snapshot: Snapshot, number: int) -> Facts:
        """The entry of one subhalo in the group catalogue, in physical units.

        Raises:
            ServiceError: There is none, or it lacks something.
        """
        entry = self.web.json(f"{snapshot.path}/subhalos/{number}/")
        what = f"subhalo {number}"
        length = snapshot.scale_factor / snapshot.hubble
        mass = MASS_UNIT / snapshot.hubble

        def vector(name: str, unit: float) -> tuple[float, float, float]:
            x, y, z = (unit * _number(entry, f"{name}_{axis}", what) for axis in "xyz")
            return x, y, z

        def by_kind(name: str) -> dict[str, float]:  # dark-matter runs say nothing about gas
            held = {kind: name + suffix for kind, suffix in SUFFIXES.items() if entry.get(name + suffix) is not None}
            return {kind: _number(entry, column, what) for kind, column in held.items()}

        return Facts(
            simulation=snapshot.simulation,
            snapshot=snapshot.number,
            subhalo=number,
            redshift=snapshot.redshift,
            hubble=snapshot.hubble,
            centre=vector("pos", length),
            velocity=vector("vel", 1.0),
            half_mass_radius={kind: length * value for kind, value in by_kind("halfmassrad").items()},
            mass={kind: mass * value for kind, value in by_kind("mass").items()},
            count={kind: int(value) for kind, value in by_kind("len").items()},
            sfr=float(entry["sfr"]) if entry.get("sfr") is not None else None,
            group=int(_number(entry, "grnr", what)),
            central=bool(_number(entry, "primary_flag", what)),
            flag=int(entry["subhaloflag"]) if entry.get("subhaloflag") is not None else None,
        )

    def cutout_path(self, snapshot: Snapshot, number: int) -> str:
        """Where the particles of a subhalo are, below the base address."""
        return f"{snapshot.path}/subhalos/{number}/cutout.hdf5"

    def missing_fields(self, snapshot: Snapshot, number: int, fields: Mapping[str, tuple[str, ...]]) -> list[str]:
        """Which of the fields the snapshot lacks: each is asked for by itself, and none of the bodies is fetched.

        Raises:
            ServiceError: The service does not answer.
        """
        path = self.cutout_path(snapshot, number)
        pairs = [(kind, name) for kind, names in fields.items() for name in names]
        return sorted({name for kind, name in pairs if self.web.status(path, {kind: name}) == 400})


def cutout_query(fields: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The query of a cutout: type to fields."""
    return {kind: ",".join(names) for kind, names in fields.items()}


def _number(entry: Any, name: str, what: str) -> float:
    value = entry.get(name) if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ServiceError(f"the service's answer about {what} has no number '{name}'; is base_url right?")
    return float(value)


def check_cutout(path: Path, facts: Facts, fields: Mapping[str, tuple[str, ...]]) -> None:
    """Hold a downloaded file against what was asked for and against its own header.

    Args:
        path: The file.
        facts: Of the subhalo that was asked for.
        fields: Asked for.

    Raises:
        DamagedError: It is no HDF5 file, is cut off, is of another subhalo, lacks a field, or its arrays are not as
            long as the header says.
    """
    try:
        with h5py.File(path, "r") as file:
            header = read_header(file)
            asked, found = (facts.snapshot, facts.subhalo), (header.number, header.cutout)
            if found != asked:
                raise DamagedError(f"the file is of snapshot and subhalo {found}, not {asked}")
            for kind, names in fields.items():
                group, claimed = f"PartType{PART_TYPES[kind]}", int(header.counts[PART_TYPES[kind]])
                for name in names if claimed else ():
                    length = len(file[group][name]) if group in file and name in file[group] else None
                    if length != claimed:
                        held = "does not hold them" if length is None else f"holds {length}"
                        raise DamagedError(f"the header counts {claimed} of {group}/{name}, the file {held}")
    except (OSError, SnapshotError, KeyError, RuntimeError) as error:
        raise DamagedError(f"the file is no sound HDF5 snapshot ({type(error).__name__}: {error})") from None
