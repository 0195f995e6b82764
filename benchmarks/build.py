"""Benchmark: galaxies per second of a build, how it grows with workers, and what a killed worker costs.

    python benchmarks/build.py [--quick] [--json FILE]

Toy galaxies in the real snapshot format become maps of six domains. Builds by one and by two workers alternate, each on
a cluster that runs already and has compiled its projection; medians are compared. Then a build of the command line
loses one of its two workers to SIGKILL, and its store is compared with the others by fingerprint. The full run writes
``benchmarks/results/build.md``.
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import psutil
import yaml
from distributed import LocalCluster
from report import RESULTS, ROOT, Claim, machine, parser, report

from skyshift.datasets.build import build_store
from skyshift.datasets.shards import BuildConfig, FieldOfView
from skyshift.datasets.sources import SnapshotSource
from skyshift.datasets.store import MapStore
from skyshift.datasets.synthetic import SyntheticSimulation, write_simulation
from skyshift.files import write_text

DOMAINS = ["dm", "gas", "stars", "hi", "temperature", "bfield"]
BAR = 1.6
"""How many times faster two workers must be than one."""


@dataclass
class Timings:
    """Seconds of builds by number of workers, and a build where two unrelated ones run at once; all fingerprints."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    unrelated: list[float] = field(default_factory=list)
    fingerprints: set[str] = field(default_factory=set)

    def rate(self, workers: int, galaxies: int) -> float:
        """Galaxies per second, median."""
        return galaxies / statistics.median(self.seconds[workers])


def source(folder: Path, galaxies: int) -> SnapshotSource:
    """A toy simulation, written to ``folder``."""
    particles = {"gas_cells": 20_000, "dm_particles": 20_000, "star_particles": 10_000}
    write_simulation(folder, SyntheticSimulation(galaxies=galaxies, **particles), progress=False)
    return SnapshotSource(str(folder / "output"), 99)


def workers_of_this_machine(count: int) -> LocalCluster:
    """A cluster that several builds can use in turn; those that a build starts for itself let nobody else in."""
    return LocalCluster(
        n_workers=count,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
        silence_logs=logging.CRITICAL + 1,
    )


def alternate(config: BuildConfig, folder: Path, repeats: int) -> Timings:
    """Build with one worker and with two in turn, and once in this process.

    What the machine itself allows is measured beside: two unrelated builds at once, each by one worker of its own.
    """
    timings = Timings()
    with ExitStack() as stack:
        clusters = {n: stack.enter_context(workers_of_this_machine(n)).scheduler_address for n in (1, 2)}
        second = stack.enter_context(workers_of_this_machine(1)).scheduler_address
        warm = replace(config, rotations=1, source=replace(config.source, limit=4))
        for n, address in enumerate([*clusters.values(), second]):  # compile the projection in every worker
            build_store(replace(warm, store=str(folder / f"warm{n}.zarr"), scheduler=address), progress=False)
        for repeat in range(repeats):
            for n, address in clusters.items():
                path = folder / f"{repeat}-{n}.zarr"
                begun = time.perf_counter()
                store = build_store(replace(config, store=str(path), scheduler=address), progress=False)
                timings.seconds.setdefault(n, []).append(time.perf_counter() - begun)
                timings.fingerprints.add(store.fingerprint)
                shutil.rmtree(path)
            pair = [
                replace(config, store=str(folder / f"pair{i}.zarr"), scheduler=a)
                for i, a in ((0, clusters[1]), (1, second))
            ]
            begun = time.perf_counter()
            with ThreadPoolExecutor(2) as pool:
                stores = list(pool.map(partial(build_store, progress=False), pair))
            timings.unrelated.append((time.perf_counter() - begun) / 2)
            for store in stores:
                shutil.rmtree(store.path)
    path = folder / "here.zarr"
    build_store(replace(warm, store=str(folder / "warm.zarr")), progress=False)
    begun = time.perf_counter()
    timings.fingerprints.add(build_store(replace(config, store=str(path)), progress=False).fingerprint)
    timings.seconds[0] = [time.perf_counter() - begun]
    shutil.rmtree(path)
    return timings


def lose_a_worker(config: BuildConfig, folder: Path) -> tuple[str, int]:
    """A build of the command line with two workers, one of which is killed once a first shard is done.

    Returns:
        Fingerprint of the store, and how many shards were done at the kill.
    """
    path, settings = folder / "killed.zarr", folder / "killed.yaml"
    galaxies = {"class_path": "SnapshotSource", "init_args": vars(config.source)}
    plain = {"domains": config.domains, "pixels": config.pixels, "rotations": config.rotations, "workers": 2}
    settings.write_text(yaml.safe_dump({"source": galaxies, "store": str(path), **plain}))
    command = [sys.executable, str(ROOT / "datasets/build.py"), "--config", str(settings)]
    command += ["--field_of_view.radii", str(config.field_of_view.radii)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (done := len(list(path.glob("catalogue/part-*")))) and process.poll() is None:
        time.sleep(0.01)
    workers = [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    workers[0].kill()
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the build that lost a worker failed: {errors}")
    return MapStore(path).fingerprint, done


def page(timings: Timings, galaxies: int, config: BuildConfig, claims: list[Claim]) -> str:
    """The text of ``benchmarks/results/build.md``."""
    names = {0: "this process, no cluster", 1: "one worker", 2: "two workers"}
    rows = [
        f"| {names[n]} | {', '.join(f'{s:.1f}' for s in timings.seconds[n])} | {timings.rate(n, galaxies):.2f} "
        f"| {timings.rate(n, galaxies) * config.rotations * len(config.domains):.0f} |"
        for n in sorted(timings.seconds)
    ]
    return "\n".join(
        [
            "# Builds: galaxies per second, and workers that die",
            "",
            f"`python benchmarks/build.py` on {machine()}: {galaxies} toy galaxies of about 50,000 particles, "
            f"{config.rotations} rotations, {len(config.domains)} domains, {config.pixels} pixels a side. Builds by "
            "one and two workers alternated on clusters that were running; medians.",
            "",
            "| | seconds | galaxies/s | maps/s |",
            "|---|---|---|---|",
            *rows,
            "",
            "| claim | value | bar | holds |",
            "|---|---|---|---|",
            *(f"| {c.name} | {c.value:.4g} | {c.bar} | {'yes' if c.holds else '**no**'} |" for c in claims),
            "",
        ]
    )


def main() -> None:
    """Run the benchmark."""
    options = parser("Builds: galaxies per second, growth with workers, killed workers").parse_args()
    galaxies, repeats = (10, 2) if options.quick else (24, 3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        galaxies_of = source(folder / "toy", galaxies)
        galaxies = len(galaxies_of.items())
        view = FieldOfView(4.0, "stars")
        config = BuildConfig(galaxies_of, str(folder / "x.zarr"), DOMAINS, pixels=128, rotations=8, field_of_view=view)
        timings = alternate(config, folder, repeats)
        fingerprint, done = lose_a_worker(config, folder)
    growth = timings.rate(2, galaxies) / timings.rate(1, galaxies)
    ceiling = statistics.median(timings.seconds[1]) / statistics.median(timings.unrelated)
    same = len(timings.fingerprints | {fingerprint})
    claims = [
        Claim("galaxies per second, one worker", timings.rate(1, galaxies), "reported", True),
        Claim("galaxies per second, two workers", timings.rate(2, galaxies), "reported", True),
        Claim("growth from one to two workers", growth, f"≥ {BAR}", growth >= BAR),
        Claim("growth with two unrelated builds at once: what the machine allows", ceiling, "reported", True),
        Claim("shards done when a worker was killed", done, f"1 to {galaxies - 1}", 1 <= done < galaxies),
        Claim("different stores among all builds, the killed one too", same, "1", same == 1),
    ]
    report(claims, options.json)
    if not options.quick:
        write_text(RESULTS / "build.md", page(timings, galaxies, config, claims))


if __name__ == "__main__":
    main()
