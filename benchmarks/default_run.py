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

from report import RESULTS, ROOT, Claim, machine, parser, report

from skyshift.files import write_text
from skyshift.translate.evaluate import HEADLINE, METRICS, evaluate

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
        summary, beats = result.summary["hi"], result.beats_baselines("hi")
        claims = [Claim("seconds from nothing to the table", seconds, f"< {LIMIT:.0f}", seconds < LIMIT)]
        for name in HEADLINE:
            metric = next(m for m in METRICS if m.name == name)
            rows = [row[name]["value"] for row in summary.values()]
            best = max(rows[1:]) if metric.best > 0 else min(rows[1:])
            claims.append(Claim(f"held-out {metric.title}", rows[0], f"better than {best:.4g}", beats[name]))
        report(claims, asked.json)
        print(result.table())
        if asked.quick:
            return
        for figure in ("maps", "spectra"):
            shutil.copy(output / "evaluation" / f"{figure}.png", RESULTS / f"default_run_{figure}.png")
    lines = [
        "# The embedded default: gas to HI on the toy simulation",
        "",
        f"`python benchmarks/default_run.py` made this page: {seconds:.0f} s in all, {built:.0f} s of them for the "
        f"simulation and its maps ({machine()}).",
        "",
        result.table(),
        "",
        "| claim | value | bar | holds |",
        "|---|---|---|---|",
        *(f"| {c.name} | {c.value:.4g} | {c.bar} | {'yes' if c.holds else '**no**'} |" for c in claims),
        "",
        "Five held-out views, from the lowest to the highest r(k):",
        "",
        "![maps](default_run_maps.png)",
        "",
        "![spectra](default_run_spectra.png)",
    ]
    write_text(RESULTS / "default_run.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
