"""What ``make train`` does once installed: from nothing to a checkpoint, a figure and a table, against its bars.

    python benchmarks/default_run.py [--quick] [--json FILE]

Writes ``benchmarks/results/default_run.md`` with its figures (not with ``--quick``, which simulates fewer galaxies and
trains for fewer steps).
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import RESULTS, ROOT, Claim, headline_claims, machine, parser, report, write_page

from skyshift.translate.evaluate import evaluate

LIMIT = 360.0  # seconds on two cores


def main() -> None:
    """Run the two commands of ``make train`` in an empty folder and judge what they leave."""
    asked = parser(__doc__ or "").parse_args()
    small = ["--source.init_args.simulation.galaxies", "40"] if asked.quick else []
    short = ["--training.steps", "60"] if asked.quick else []
    with tempfile.TemporaryDirectory() as work:
        store, output = f"{work}/maps.zarr", Path(work) / "run"
        simulation = ["--source.init_args.path", f"{work}/simulation"]
        started = time.perf_counter()
        build = [sys.executable, "datasets/build.py", *simulation, *small, "--store", store]
        subprocess.run(build, cwd=ROOT, check=True)
        built = time.perf_counter() - started
        launch = [sys.executable, "-m", "accelerate.commands.launch", "translate/train.py"]
        options = ["--data.store", store, "--data.build", "", "--output", str(output), *short]
        subprocess.run([*launch, *options], cwd=ROOT, check=True)
        seconds = time.perf_counter() - started
        result = evaluate(output)
        claims = [Claim("seconds from nothing to the table", seconds, f"< {LIMIT:.0f}", seconds < LIMIT)]
        claims += headline_claims(result, "hi")
        report(claims, asked.json)
        print(result.table())
        if asked.quick:
            return
        for figure in ("maps", "spectra"):
            shutil.copy(output / "evaluation" / f"{figure}.png", RESULTS / f"default_run_{figure}.png")
    text = (
        f"`python benchmarks/default_run.py` made this page: {seconds:.0f} s in all, {built:.0f} s of them for the "
        f"simulation and its maps ({machine()})."
    )
    write_page("default_run", "The embedded default: gas to HI on the toy simulation", text, result, claims)


if __name__ == "__main__":
    main()
