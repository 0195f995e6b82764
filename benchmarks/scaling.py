"""One process against two, and loader workers: speed, and whether the weights are the same.

    python benchmarks/scaling.py [--quick] [--json FILE]

The embedded default is trained for some steps by the real command: by one process with batches of 2b, by two with
batches of b, and by one that loads with a worker. Each process has one thread, so that two processes are two cores.
The samples of each step are the same. On a machine with several GPUs a process is a GPU. The store is built where it is
not there. Writes ``benchmarks/results/scaling.md`` (not with ``--quick``).
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from report import RESULTS, ROOT, Claim, machine, parser, report
from safetensors.torch import load_file

from skyshift.checkpoint import checkpoints
from skyshift.files import write_text

SAMPLES = 16  # a step
LOG_EVERY = 3
GPU = torch.cuda.device_count() > 1
SPEED_UP = 1.6  # of two processes
SAME = 1e-4  # of the largest gradient: sums of some 1e5 float32 terms in another order


@dataclass(frozen=True)
class Run:
    """One way to launch, and what came of it."""

    name: str
    processes: int
    workers: int
    speed: float
    folder: Path


def run(name: str, work: Path, steps: int, *, processes: int = 1, workers: int = 0, threads: int = 1) -> Run:
    """Train; the speed is the median of the log's, its first line left out."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    output = work / name.replace(" ", "_").replace(",", "")
    settings = {
        "steps": steps,
        "batch_size": SAMPLES // processes,
        "workers": workers,
        "log_every": LOG_EVERY,
        "checkpoint_every": 1,
        "keep": steps,
        "sample_every": 0,
        "precision": "no",
        "warm_up": 0,
    }
    command = [*launcher, str(ROOT / "translate" / "train.py"), "--evaluation", "false", "--output", str(output)]
    for key, value in settings.items():
        command += [f"--training.{key}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1"}
    if not GPU:
        environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stderr[-3000:])
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return Run(name, processes, workers, statistics.median(x["samples_per_second"] for x in lines[1:]), output)


def difference(one: Run, other: Run) -> tuple[float, float]:
    """Largest difference of the first step's gradients (of the largest), and median of the last weights' differences.

    Gradients are compared where both have the same weights; later, a gradient jumps where a weight that differs in its
    last bit puts an activation on the other side of a kink.
    """
    first, last = ([checkpoints(r.folder)[i] for r in (one, other)] for i in (0, -1))
    worst = largest = 0.0
    for player in ("generator", "discriminator"):
        mine, wanted = (load_file(folder / "state" / f"{player}.safetensors") for folder in first)
        for name, value in wanted.items():
            if name.endswith("exp_avg"):
                worst = max(worst, float((mine[name] - value).abs().max()))
                largest = max(largest, float(value.abs().max()))
    mine, wanted = (load_file(folder / "average.safetensors") for folder in last)
    distance = torch.cat([(mine[n].double() - wanted[n].double()).ravel() for n in wanted]).abs()
    return worst / largest, float(distance.median())


def main() -> None:
    """Run, compare, judge."""
    asked = parser(__doc__ or "").parse_args()
    steps = 9 if asked.quick else 18
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        runs = [
            run("one process", work, steps),
            run("two processes", work, steps, processes=2),
            run("one process, one worker", work, steps, workers=1),
            run("one process, two threads", work, steps, threads=2),
        ]
        gradient, weights = difference(runs[1], runs[0])
        with_worker = difference(runs[2], runs[0])
    ratio = runs[1].speed / runs[0].speed
    claims = [
        Claim("speed of two processes over one", ratio, f"≥ {SPEED_UP}", ratio >= SPEED_UP),
        Claim("gradients of two processes against one, of the largest", gradient, f"≤ {SAME}", gradient <= SAME),
        Claim(f"averaged weights after {steps} steps, median difference", weights, "≤ 1e-6", weights <= 1e-6),
        Claim("the same with a loader worker", max(with_worker), "0, bit for bit", max(with_worker) == 0),
    ]
    report(claims, asked.json)
    text = page(runs, claims, steps)
    print(text)
    if not asked.quick:
        write_text(RESULTS / "scaling.md", text)


def page(runs: list[Run], claims: list[Claim], steps: int) -> str:
    """The page of results."""
    lines = [
        "# Several processes",
        "",
        f"`python benchmarks/scaling.py` made this page ({machine()}). The embedded default (pix2pix, gas to HI, 64² "
        f"pixels), {steps} steps of {SAMPLES} samples in float32 by the real command, "
        f"{'a GPU' if GPU else 'one thread'} a process unless said otherwise; median of the log's samples a second.",
        "",
        "| | samples/s | over one process |",
        "|---|---|---|",
        *(f"| {r.name} | {r.speed:.1f} | {r.speed / runs[0].speed:.2f} |" for r in runs),
        "",
        "| claim | value | bar | holds |",
        "|---|---|---|---|",
        *(f"| {c.name} | {c.value:.3g} | {c.bar} | {'yes' if c.holds else '**no**'} |" for c in claims),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
