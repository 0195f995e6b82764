"""What every benchmark shares: its command line, its claims in JSON, and the machine it ran on."""

import argparse
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from skyshift.files import write_json

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


def machine() -> str:
    """Processor or accelerator, cores and library versions, for the record."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return f"{device}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"
