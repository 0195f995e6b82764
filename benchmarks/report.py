"""What every benchmark shares: its command line, its claims in JSON, and the machine it ran on."""

import argparse
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from skyshift.files import write_json, write_text
from skyshift.translate.evaluate import HEADLINE, METRICS, Evaluation

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Claim:
    """One measured number against its bar; one that does not hold is reported as such."""

    name: str
    value: float
    bar: str
    holds: bool


def parser(description: str) -> argparse.ArgumentParser:
    """A command line with ``--quick`` and ``--json``."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="a short version, under three minutes; proves less")
    made.add_argument("--json", type=Path, help="write the claims to this file")
    return made


def report(claims: list[Claim], path: Path | None) -> None:
    """Print the claims, and write them where asked."""
    for claim in claims:
        print(f"{'holds' if claim.holds else 'DOES NOT HOLD'}: {claim.name} = {claim.value:.4g} (bar: {claim.bar})")
    if path:
        write_json(path, {"claims": [asdict(claim) for claim in claims]})


def headline_claims(result: Evaluation, domain: str) -> list[Claim]:
    """Each headline metric of an evaluation against the best of its baselines."""
    beats = result.beats_baselines(domain)
    claims = []
    for metric in METRICS:
        if metric.name in HEADLINE:
            mine, *others = (row[metric.name]["value"] for row in result.summary[domain].values())
            best = max(others) if metric.best > 0 else min(others)
            claims.append(Claim(f"held-out {metric.title}", mine, f"better than {best:.4g}", beats[metric.name]))
    return claims


def write_page(name: str, title: str, text: str, result: Evaluation, claims: list[Claim]) -> None:
    """Write ``benchmarks/results/{name}.md``: what was done, the table, the claims and the two figures."""
    lines = [
        f"# {title}",
        "",
        text,
        "",
        result.table(),
        "",
        "| claim | value | bar | holds |",
        "|---|---|---|---|",
        *(f"| {c.name} | {c.value:.4g} | {c.bar} | {'yes' if c.holds else '**no**'} |" for c in claims),
        "",
        "Five held-out views, from the lowest to the highest r(k):",
        "",
        f"![maps]({name}_maps.png)",
        "",
        f"![spectra]({name}_spectra.png)",
    ]
    write_text(RESULTS / f"{name}.md", "\n".join(lines) + "\n")


def machine() -> str:
    """Processor or accelerator, cores and library versions, for the record."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return f"{device}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
