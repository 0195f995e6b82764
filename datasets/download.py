"""Command: download cutouts of subhaloes from the TNG web service.

    python datasets/download.py --simulation TNG100-1 --snapshot 99 --domains '[gas, hi]' --limit 50
    python datasets/download.py --config my.yaml --minimum_mass '{stars: 1e10}' --list_only true

The key is taken from ``$TNG_API_KEY`` or a file that only its owner can read. A download may be interrupted at any
moment: whole files whose checksum is right are not fetched again, and a file that was cut off goes on where the service
allows it. Beside each cutout stands a JSON file with what the cutout leaves out (the centre, the half-mass radii), and
``manifest.json`` lists all of them with their checksums.
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skyshift.command import command, parse
from skyshift.datasets.cutout_fields import FieldPlan, plan_fields
from skyshift.datasets.cutouts import CutoutFetcher, DownloadError, Outcome, fetch_all, sole_use, write_manifest
from skyshift.datasets.domains import Recipes, load_domains
from skyshift.datasets.tng_api import Selection, Snapshot, TngService
from skyshift.datasets.tng_connections import Politeness
from skyshift.datasets.tng_key import find_key
from skyshift.datasets.tng_web import Web, find_base_url

DEFAULT_CONFIG = "datasets/download.yaml"


@dataclass(frozen=True)
class DownloadConfig(Selection):
    """What to download, from where, to where.

    Attributes:
        minimum_mass: Kind (gas, dm, stars, black_holes, total) to the least mass, Msun.
        maximum_mass: Kind to the greatest mass, Msun.
        minimum_sfr: Least star-formation rate, Msun/yr; 0 for any.
        which: all, the centrals of their groups, or satellites.
        flagged: Also those whose SubhaloFlag says that they are no galaxies.
        heaviest: The kind by whose mass the list is ordered, heaviest first.
        limit: At most so many; 0 for no limit.
        simulation: As the service calls it.
        snapshot: Its number.
        domains: The maps to be made; only the fields that they need are downloaded.
        recipes: Choices of physics, which decide what HI needs.
        domain_files: Python files with domains of your own (:func:`skyshift.datasets.domains.load_domains`).
        output: Folder of the cutouts.
        subhalos: Numbers of subhaloes to take instead of a selection.
        base_url: Address of the service; by default $TNG_API_URL, else that of the TNG project.
        key_file: File with the key, of mode 0600; by default $TNG_API_KEY, else ~/.config/skyshift/tng_api_key.
        allow_http: Send the key to a plain http address.
        key_hosts: Further hosts that may see the key.
        politeness: How hard the service is used.
        list_only: Print the numbers of the subhaloes, and download nothing.
    """

    simulation: str = "TNG100-1"
    snapshot: int = 99
    domains: list[str] = field(default_factory=lambda: ["gas", "hi"])
    recipes: Recipes = field(default_factory=Recipes)
    domain_files: list[str] = field(default_factory=list)
    output: str = "data/cutouts"
    subhalos: list[int] | None = None
    base_url: str = ""
    key_file: str = ""
    allow_http: bool = False
    key_hosts: list[str] = field(default_factory=list)
    politeness: Politeness = field(default_factory=Politeness)
    list_only: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[\w-]+", self.simulation):
            raise DownloadError(f"simulation must be a name such as TNG100-1, not '{self.simulation}'")
        if self.snapshot < 0 or min(self.subhalos or [0]) < 0:
            raise DownloadError("snapshot and subhalos are numbers from 0 on")


def _numbers(config: DownloadConfig, service: TngService, snapshot: Snapshot) -> list[int]:
    """The subhaloes that were named, or those that the selection finds."""
    if config.subhalos is not None:
        return list(dict.fromkeys(config.subhalos))
    numbers = service.subhalos(snapshot, config)
    if not numbers:
        raise DownloadError(
            f"no subhalo of {snapshot.simulation}, snapshot {snapshot.number}, passes the selection; masses are in Msun"
        )
    return numbers


def _record(snapshot: Snapshot, plan: FieldPlan, outcomes: Sequence[Outcome], wanted: int) -> dict[str, Any]:
    """The last run, for the manifest."""
    return {
        "simulation": snapshot.simulation,
        "snapshot": snapshot.number,
        "fields": plan.fields,
        "dropped": plan.dropped,
        "wanted": wanted,
        "ended": len(outcomes),
        "states": dict(Counter(outcome.state for outcome in outcomes)),
        "empty": [outcome.subhalo for outcome in outcomes if outcome.state == "empty"],
        "failed": {str(outcome.subhalo): outcome.reason for outcome in outcomes if outcome.state == "failed"},
    }


def _print_summary(output: Path, fetcher: CutoutFetcher, outcomes: Sequence[Outcome]) -> None:
    states = Counter(outcome.state for outcome in outcomes)
    fetched = sum(outcome.size for outcome in outcomes if outcome.state == "fetched")
    print(
        f"{output}: {states['fetched']} cutouts fetched ({fetched / 1e6:.1f} MB), {states['present']} were there, "
        f"{states['empty']} subhaloes have no such particles, {states['failed']} failed; "
        f"{fetcher.service.web.retries} requests were repeated"
    )
    for name, reason in fetcher.plan.dropped.items():
        print(f"without {name}: {reason}")


def download(config: DownloadConfig, *, progress: bool = True) -> list[Outcome]:
    """Download what is missing.

    Args:
        config: What, from where, to where.
        progress: Show a progress bar, and a summary at the end.

    Returns:
        What became of each subhalo.

    Raises:
        DownloadError: Some failed (the message says why, the manifest lists all), or another download is at work there.
        ServiceError: The service refuses the key, or does not answer.
        FieldsError: The snapshot lacks a field that a domain cannot do without.
        KeyMissingError: There is no key.
    """
    load_domains(config.domain_files)
    plan = plan_fields(config.domains, config.simulation, config.snapshot, config.recipes)
    key = find_key(config.key_file)
    polite, base_url, output = config.politeness, find_base_url(config.base_url), Path(config.output)
    with Web(base_url, key, polite, allow_http=config.allow_http, key_hosts=config.key_hosts) as web:
        service = TngService(web)
        snapshot = service.snapshot(config.simulation, config.snapshot)
        numbers = _numbers(config, service, snapshot)
        if config.list_only:
            print("\n".join(map(str, numbers)))
            return []
        outcomes: list[Outcome] = []
        fetcher = CutoutFetcher(service, snapshot, plan, output)
        with sole_use(output):
            try:
                fetch_all(fetcher, numbers, outcomes.append, progress=progress)
            finally:
                write_manifest(output, _record(snapshot, fetcher.plan, outcomes, len(numbers)))
        if progress:
            _print_summary(output, fetcher, outcomes)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if failed:
        some = "; ".join(f"{outcome.subhalo}: {outcome.reason}" for outcome in failed[:3])
        raise DownloadError(
            f"{len(failed)} of {len(outcomes)} cutouts could not be had ({some}); {output}/manifest.json lists all, "
            "and the same command tries these again"
        )
    return outcomes


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    config, _ = parse(DownloadConfig, arguments, DEFAULT_CONFIG, "Download cutouts from the TNG web service.")
    download(config)


if __name__ == "__main__":
    sys.exit(main())
