"""Random access to a store of maps against the speed of training, the memory that it takes, and the order of batches.

    python benchmarks/loading.py [--quick] [--json FILE]

One run, on one machine: maps/s of random batches out of a store that is not held in memory (source and target of each
view, scaled and turned, through the DataLoader), and maps/s of steps of the default pix2pix at the same batch size; in
turns, three times, and the fastest of each, so that what else the machine does weighs little.
Writes ``benchmarks/results/loading.md`` (not with ``--quick``, whose store and runs are smaller).
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from report import RESULTS, Claim, machine, parser, report
from torch.utils.data import DataLoader

from skyshift.datasets import loading
from skyshift.datasets.augmentation import Augmentation
from skyshift.datasets.loading import Draw, MapDataset, Split, StepSampler, fit_scalings, split_views
from skyshift.datasets.store import MapStore, ViewRecord
from skyshift.files import write_text
from skyshift.translate.data import one_thread
from skyshift.translate.methods.pix2pix import Pix2Pix
from skyshift.translate.networks.patchgan import PatchGAN
from skyshift.translate.networks.unet import UNet

BATCH, PIXELS = 16, 64
FASTER = 5.0  # times the speed of training
SMALL = 3072  # views of the store that memory is compared with: enough to fill the sample that scalings are fitted on
GROWTH = 0.25  # of the maps by which one store is larger, at the most: held, they would be 0.7 (the training part)


def make_store(path: Path, views: int) -> MapStore:
    """Maps of smooth log-normal fields, which compress as maps of galaxies do; four views a galaxy."""
    store = MapStore.create(
        path, units={"gas": "Msun / kpc2", "hi": "Msun / kpc2"}, views=views, pixels=PIXELS, shard_views=1024
    )
    rng = np.random.default_rng(0)
    k = np.hypot(np.fft.fftfreq(PIXELS)[:, None], np.fft.rfftfreq(PIXELS)[None]) + 1 / PIXELS
    eye = tuple(np.eye(3).ravel())
    for shard in range(store.shards):
        rows = store.shard_rows(shard)
        noise = np.fft.rfft2(rng.normal(size=(len(rows), PIXELS, PIXELS)))
        field = np.fft.irfft2(noise * k**-1.5, s=(PIXELS, PIXELS))
        field /= field.std()
        gas = (1e7 * np.exp(field)).astype(np.float32)
        maps = {"gas": gas, "hi": np.where(gas > 5e6, 0.3 * gas, 0).astype(np.float32)}
        records = [ViewRecord(v, v // 4, f"{v // 4}", v // 4, 99, 0.0, eye, 40.0, 0.0, -1, 0) for v in rows]
        store.write_shard(shard, maps, records)
    return store


def dataset(store: MapStore, augment: Augmentation | bool = True) -> MapDataset:
    """The training part of a store."""
    views = split_views(store.catalogue(), Split())["train"]
    return MapDataset(store, ["gas"], ["hi"], views, fit_scalings(store, ["gas", "hi"], views, {}), augment=augment)


def batches(data: MapDataset, steps: int, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    """As a training run asks for them."""
    sampler = StepSampler(data.views, BATCH, steps, seed=1)
    initial = one_thread if workers else None
    return iter(DataLoader(data, batch_sampler=sampler, num_workers=workers, worker_init_fn=initial))


def loading_speed(data: MapDataset, steps: int, workers: int) -> float:
    """Views (source and target) a second, the first batches left out."""
    stream = batches(data, steps + 4, workers)
    for _ in range(4):
        next(stream)
    started = time.perf_counter()
    count = sum(len(batch["view"]) for batch in stream)
    return count / (time.perf_counter() - started)


def one_by_one_speed(data: MapDataset, steps: int) -> float:
    """The same without reading a batch at once."""
    draws = [draw for batch in StepSampler(data.views, BATCH, steps, seed=2) for draw in batch]
    started = time.perf_counter()
    for draw in draws:
        data[Draw(draw.view, draw.seed)]
    return len(draws) / (time.perf_counter() - started)


def training_speed(data: MapDataset, steps: int) -> float:
    """Views a second of the default pix2pix, on batches that are there already."""
    torch.manual_seed(0)
    method = Pix2Pix(
        1,
        1,
        generator=partial(UNet, width=24, depth=3, norm="group", padding="zeros", residual=True),
        discriminator=partial(PatchGAN, width=24, layers=2, norm="instance"),
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    method.to(device)
    networks = {"generator": method.generator, "discriminator": method.discriminator}
    optimizers = {name: torch.optim.Adam(networks[name].parameters(), 7e-4, fused=True) for name in method.players}
    ready = [{k: v.to(device) for k, v in batch.items()} for batch in batches(data, 4, 0)]

    def step(batch: dict[str, torch.Tensor]) -> None:
        shared = method.share(networks, batch)
        losses = {player: method.loss(player, networks, batch, shared)[0] for player in method.players}
        for player, loss in losses.items():
            optimizers[player].zero_grad()
            loss.backward(retain_graph=player != method.players[-1])
        for optimizer in optimizers.values():
            optimizer.step()

    for batch in ready[:2]:
        step(batch)
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for i in range(steps):
        step(ready[i % len(ready)])
    if device == "cuda":
        torch.cuda.synchronize()
    return steps * BATCH / (time.perf_counter() - started)


def peak_memory(path: Path) -> float:
    """MiB that a process has used at the most after fitting scalings and reading 30 batches, nothing held.

    From the kernel's record of that process; ``ru_maxrss`` would carry over what its parent used.
    """
    script = "import sys; sys.path.insert(0, sys.argv[1]); import loading; loading.measure_memory(sys.argv[2])"
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(path: str) -> None:
    """What :func:`peak_memory` runs in a process of its own."""
    loading.MEMORY_LIMIT = 0
    for _ in batches(dataset(MapStore(path)), 30, 0):
        pass
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def order_of(data: MapDataset, steps: int, workers: int) -> str:
    """Hash of all batches."""
    digest = hashlib.sha256()
    for batch in batches(data, steps, workers):
        for key in ("view", "source", "target"):
            digest.update(batch[key].numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    """Build two stores, measure, judge."""
    asked = parser(__doc__ or "").parse_args()
    views, steps = (9216, 4) if asked.quick else (24576, 10)
    loading.MEMORY_LIMIT = 0  # nothing is held: every batch is read from the store
    with tempfile.TemporaryDirectory() as work:
        small, store = (make_store(Path(work) / f"{n}.zarr", n) for n in (SMALL, views))
        size = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file()) / 2**20
        data = dataset(store)
        shifting = dataset(store, Augmentation(shift=2.0))
        turns = [(training_speed(data, steps), loading_speed(data, 10 * steps, 0)) for _ in range(3)]
        trained, read = map(max, zip(*turns, strict=True))
        speeds = {0: read, **{workers: loading_speed(data, 10 * steps, workers) for workers in (1, 2)}}
        shifted = loading_speed(shifting, 10 * steps, 0)
        single = one_by_one_speed(data, 2 * steps)
        orders = {order_of(shifting, 20, workers) for workers in (0, 1, 2)}
        memory = [peak_memory(one.path) for one in (small, store)]
    ratio = speeds[0] / trained
    growth = (memory[1] - memory[0]) / ((views - SMALL) * 2 * 4 * PIXELS**2 / 2**20)
    claims = [
        Claim("random reads over training speed, no workers", ratio, f"≥ {FASTER:.0f}", ratio >= FASTER),
        Claim(
            "peak memory that a MiB of further maps takes, MiB",
            growth,
            f"≤ {GROWTH}",
            growth <= GROWTH,
        ),
        Claim("different orders of batches with 0, 1 and 2 workers", len(orders), "1, bit for bit", len(orders) == 1),
    ]
    rows = [
        ("training, pix2pix of the embedded default", trained),
        ("random reads, a batch at once, no workers", speeds[0]),
        ("the same, 1 worker", speeds[1]),
        ("the same, 2 workers", speeds[2]),
        ("the same with sub-pixel shifts, no workers", shifted),
        ("one view at a time, no workers", single),
    ]
    report(claims, asked.json)
    for name, speed in rows:
        print(f"{name}: {speed:.0f} views/s")
    print(f"peak memory: {memory[0]:.0f} MiB of {SMALL} views, {memory[1]:.0f} MiB of {views}")
    if not asked.quick:
        write_text(RESULTS / "loading.md", page(rows, claims, memory, views, size))


def page(rows: list[tuple[str, float]], claims: list[Claim], memory: list[float], views: int, size: float) -> str:
    """The page of results."""
    lines = [
        "# Loading: random access to a store, against the speed of training",
        "",
        f"`python benchmarks/loading.py` made this page ({machine()}). {views:,} views of two domains, {PIXELS}² "
        f"pixels, in shards of 1,024 ({size:.0f} MiB on a local disk, read warm), none held in memory; batches of "
        f"{BATCH} drawn at random, scaled, turned. A view is one source and one target map. Training and reading "
        "without workers took turns, three times; the fastest of each counts.",
        "",
        "| | views/s | over training |",
        "|---|---|---|",
        *(f"| {name} | {speed:.0f} | {speed / rows[0][1]:.1f} |" for name, speed in rows),
        "",
        f"Peak memory of a process that fits the scalings and reads 30 batches: {memory[0]:.0f} MiB of {SMALL:,} "
        f"views, {memory[1]:.0f} MiB of {views:,}.",
        "",
        "| claim | value | bar | holds |",
        "|---|---|---|---|",
        *(f"| {c.name} | {c.value:.4g} | {c.bar} | {'yes' if c.holds else '**no**'} |" for c in claims),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
