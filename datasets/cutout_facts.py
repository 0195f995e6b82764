"""What a cutout file leaves out of its subhalo, in a small JSON file beside it.

A cutout of the TNG web service holds particles and a header, but not where the subhalo's centre is. The downloader
writes ``name.json`` beside ``name.hdf5``: the subhalo's entry of the group catalogue in physical units, what was asked
for, and the checksum of the file. Catalogue values of length are ckpc/h and of mass 1e10 Msun/h:

    r [kpc] = a r [ckpc/h] / h,    M [Msun] = 1e10 M [1e10 Msun/h] / h,    a = 1 / (1 + z);

``SubhaloVel`` is already a peculiar velocity in km/s, ``SubhaloSFR`` already Msun/yr.

References:
    Nelson et al. 2019, Comput. Astrophys. Cosmol. 6, 2 (arXiv:1812.05609), and the TNG data specification.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from skyshift.errors import SkyshiftError
from skyshift.files import write_json

FORMAT = 1
"""Version of the JSON file; one of a later version is refused."""


class FactsError(SkyshiftError):
    """The JSON file beside a cutout is damaged, or belongs to another file."""


@dataclass(frozen=True)
class Facts:
    """The catalogue's entry of one subhalo, and how its cutout came here.

    Attributes:
        simulation: As the web service calls it, ``TNG100-1``.
        snapshot: Its number.
        subhalo: Its number in the snapshot.
        redshift: Of the snapshot.
        hubble: h.
        centre: (3,) physical kpc in the box: the minimum of the potential, ``SubhaloPos``.
        velocity: (3,) km/s, peculiar.
        half_mass_radius: Kind to physical kpc; ``total`` for all kinds together. Here and in the next two, a kind of
            which the service says nothing does not stand.
        mass: Kind to Msun, bound to the subhalo; wind counts as gas, as in the catalogue.
        count: Kind to number of particles; wind counts as stars, as in the catalogue.
        sfr: Msun/yr, where the service gives it.
        group: Number of the host group.
        central: Whether it is the group's first subhalo.
        flag: ``SubhaloFlag``; 0 for an object that is no galaxy. ``None`` where the service gives none.
        sha256: Of the cutout file.
        size: Of the cutout file, bytes.
        url: What was asked for; there is no key in it.
        fields: Kind to the TNG fields asked for.
        dropped: Field that was wanted and is not there, to the reason and what takes its place.
    """

    simulation: str
    snapshot: int
    subhalo: int
    redshift: float
    hubble: float
    centre: tuple[float, float, float]
    velocity: tuple[float, float, float]
    half_mass_radius: Mapping[str, float]
    mass: Mapping[str, float]
    count: Mapping[str, int]
    sfr: float | None
    group: int
    central: bool
    flag: int | None
    sha256: str = ""
    size: int = 0
    url: str = ""
    fields: Mapping[str, list[str]] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)

    def holds(self, fields: Mapping[str, Sequence[str]]) -> bool:
        """Whether the cutout was asked for all of these fields, but for those that the snapshot lacks."""
        return all(
            kind in self.fields and set(names) <= {*self.fields[kind], *self.dropped} for kind, names in fields.items()
        )


def facts_path(cutout: str | Path) -> Path:
    """Where the facts of a cutout file stand: beside it, with the suffix ``.json``."""
    return Path(cutout).with_suffix(".json")


def write_facts(cutout: str | Path, facts: Facts) -> None:
    """Write the facts of a cutout file beside it, whole or not at all."""
    write_json(facts_path(cutout), {"format": FORMAT, **asdict(facts)})


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_plain(values: dict[str, Any]) -> Facts:
    if values.pop("format") > FORMAT:
        raise FactsError("it is of a later version; update skyshift (pip install --upgrade skyshift)")
    for name in ("centre", "velocity"):
        x, y, z = (float(value) for value in values[name])
        values[name] = (x, y, z)
    return Facts(**values)


def read_facts(cutout: str | Path) -> Facts | None:
    """The facts beside ``cutout``, whether that file is there or not; ``None`` where there are none.

    Raises:
        FactsError: The JSON file cannot be understood.
    """
    path = facts_path(cutout)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    cure = "delete both and download the cutout again"
    try:
        return _from_plain(json.loads(text))
    except FactsError as error:
        raise FactsError(f"{path} cannot be read: {error}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FactsError(f"{path} is not what the downloader writes ({error}); {cure}") from None


def cutout_facts(cutout: str | Path) -> Facts | None:
    """The facts of a cutout file, where the downloader left them; ``None`` for a file that came another way.

    Raises:
        FactsError: The JSON file cannot be understood, or the cutout's size is not the one written there.
    """
    facts = read_facts(cutout)
    if facts is not None and (size := Path(cutout).stat().st_size) != facts.size:
        raise FactsError(
            f"{cutout} holds {size} bytes, {facts_path(cutout).name} says {facts.size}: the file was changed since it "
            "was downloaded; delete both and download it again"
        )
    return facts
