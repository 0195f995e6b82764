"""Artefacts of place: seams of tiles by overlap and statistics, errors at the border by padding, memory of large maps.

    python benchmarks/edges.py [--quick] [--json FILE]

Gaussian random fields with a spectrum P ∝ k⁻³ do not fade to their border, which is where padding matters. Borders:
small U-Nets with each padding learn to sharpen fields that were smoothed (a local task) and are judged on new ones.
Seams: a U-Net of the default's size with weights as drawn translates a field whole and in tiles.

Writes ``benchmarks/results/edges.md`` and ``edges.png`` (not with ``--quick``).
"""

import os
import subprocess
import sys

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from report import RESULTS, Claim, machine, parser, report
from torch.nn import functional as F

from skyshift.files import write_text, write_whole
from skyshift.translate.metrics.seams import border_error, seam_excess
from skyshift.translate.networks.unet import UNet
from skyshift.translate.tiling import TiledNetwork, Tiling, starts

PADDINGS = ("zeros", "reflect", "replicate")
OVERLAPS = (0, 16, 32, 64)
TILE = 128
LARGE = 2048


def fields(n: int, size: int, seed: int) -> torch.Tensor:
    """(n, 1, size, size) crops of random fields twice as large, unit variance: nothing is periodic."""
    generator = np.random.default_rng(seed)
    k = np.hypot(np.fft.fftfreq(2 * size)[:, None], np.fft.rfftfreq(2 * size)[None])
    k[0, 0] = np.inf
    waves = np.fft.rfft2(generator.normal(size=(n, 2 * size, 2 * size))) * k**-1.5
    made = np.fft.irfft2(waves)[:, :size, :size]
    return torch.from_numpy((made / made.std((1, 2), keepdims=True)).astype(np.float32))[:, None]


def smoothed(x: torch.Tensor, sigma: float = 1.5) -> torch.Tensor:
    """Through a Gaussian beam; as far as the field is known: six pixels of border are lost."""
    place = torch.arange(-6, 7, dtype=torch.float32)
    one = torch.exp(-0.5 * (place / sigma) ** 2)
    one = one / one.sum()
    return F.conv2d(F.conv2d(x, one.view(1, 1, 1, -1)), one.view(1, 1, -1, 1))


def taught(padding: str, steps: int, seed: int) -> UNet:
    """A small U-Net that has learnt to undo the beam."""
    torch.manual_seed(seed)
    network = UNet(1, 1, width=8, depth=2, norm="none", padding=padding, residual=True)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    sky = fields(64, 76, seed)
    for step in range(steps):
        x = sky[torch.randint(64, (8,))]
        loss = (network(smoothed(x)) - x[..., 6:-6, 6:-6]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        optimizer.step()
    return network.eval()


@torch.no_grad()
def border(network: UNet) -> tuple[NDArray[np.float64], float]:
    """Error against distance, and its excess at the border, on new fields."""
    sky = fields(64, 76, 999)
    _, error, excess = border_error(sky[:, 0, 6:-6, 6:-6].numpy(), network(smoothed(sky))[:, 0].numpy())
    return error, excess


@torch.no_grad()
def seams(norm: str, statistics: str, overlap: int) -> tuple[float, float]:
    """Error of tiles against the whole map, in its standard deviation, and the seam excess of that error."""
    torch.manual_seed(0)
    network = UNet(1, 1, width=24, depth=3, norm=norm).eval()  # type: ignore[arg-type]
    x = fields(1, 384, 5) * torch.linspace(0.3, 2.0, 384)
    whole = network(x)[0, 0].numpy()
    tiling = Tiling(TILE, overlap, statistics=statistics)  # type: ignore[arg-type]
    wrong = TiledNetwork(network, tiling)(x)[0, 0].numpy() - whole
    return float(np.abs(wrong).mean() / whole.std()), seam_excess(wrong, starts(384, TILE, overlap, 8)[1:])


CHILD = """
import resource, sys, time, torch
from skyshift.translate.networks.unet import UNet
from skyshift.translate.tiling import TiledNetwork, Tiling
torch.set_num_threads(1)
tile, size = int(sys.argv[1]), int(sys.argv[2])
network = UNet(1, 1, width=24, depth=3, norm="none").eval()
with torch.no_grad():
    network(torch.zeros(1, 1, 64, 64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    act = TiledNetwork(network, Tiling(tile, tile // 4, batch=1)) if tile else network
    act(torch.rand(1, 1, size, size))
print(time.perf_counter() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024**2)
"""


def cost(tile: int, size: int) -> tuple[float, float]:
    """Seconds and GiB beyond what the process held, of a map whole (0) or in tiles, in a process of its own."""
    command = [sys.executable, "-c", CHILD, str(tile), str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()
    return float(found[0]), float(found[1])


def main() -> None:
    """Measure, report."""
    asked = parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    seeds, steps = ((0,), 40) if asked.quick else ((0, 1, 2), 400)
    judged = {padding: [border(taught(padding, steps, seed)) for seed in seeds] for padding in PADDINGS}
    excess = {padding: float(np.mean([e for _, e in found])) for padding, found in judged.items()}
    cut = {
        (norm, statistics, overlap): seams(norm, statistics, overlap)
        for norm, statistics in (("none", "local"), ("group", "local"), ("group", "shared"))
        for overlap in ((0, 64) if asked.quick else OVERLAPS)
    }
    size = 1024 if asked.quick else LARGE
    costs = {tile: cost(tile, size) for tile in (0, 256)}
    best = min(excess, key=lambda padding: excess[padding])
    shared, own = cut["group", "shared", 64][0], cut["group", "local", 64][0]
    memory = costs[256][1] / max(costs[0][1], 1e-3)
    blended = cut["none", "local", 64][0] / cut["none", "local", 0][0]
    overlaps = sorted({overlap for *_, overlap in cut})
    claims = [
        Claim(
            f"border excess of {best} padding over that of zeros",
            excess[best] / excess["zeros"],
            "< 1",
            best != "zeros",
        ),
        Claim(
            "tiles with shared statistics, error over that of a tile's own", shared / own, "≤ 0.1", shared <= 0.1 * own
        ),
        Claim(
            "tiles that overlap by 64, error over that of none (no norm)",
            blended,
            "≤ 0.05",
            blended <= 0.05,
        ),
        Claim(
            f"memory of {size}² pixels in tiles over the whole",
            memory,
            "≤ 0.2",
            memory <= 0.2,
        ),
    ]
    report(claims, asked.json)
    lines = [
        "# Borders and seams",
        "",
        f"`python benchmarks/edges.py` made this page ({machine()}; one thread). "
        "Random fields with P ∝ k⁻³ that do not fade to their border.",
        "",
        "| padding | error at the border over that of the interior, less 1 (each seed) |",
        "|---|---|",
        *(f"| {p} | {excess[p]:.3f} ({', '.join(f'{e:.3f}' for _, e in judged[p])}) |" for p in PADDINGS),
        "",
        "The border's own information is one-sided, so no padding reaches the interior's error. Small U-Nets "
        f"({steps} steps) that undo a beam of σ = 1.5 pixels.",
        "",
        f"| 384² pixels in tiles of {TILE}: overlap | " + " | ".join(f"{o}" for o in overlaps) + " |",
        "|---" * (1 + len(overlaps)) + "|",
    ]
    for norm, statistics in (("none", "local"), ("group", "local"), ("group", "shared")):
        cells = [f"{cut[norm, statistics, o][0]:.2e} ({cut[norm, statistics, o][1]:+.1f})" for o in overlaps]
        lines.append(
            f"| {'no norm' if norm == 'none' else f'group norm, {statistics} statistics'} | {' | '.join(cells)} |"
        )
    lines += [
        "",
        "Mean error against the whole map in its standard deviation; in brackets the seam excess of that error.",
        "",
        f"| {size}² pixels, width 24, depth 3 | seconds | GiB |",
        "|---|---|---|",
        *(
            f"| {f'tiles of {t}, overlap {t // 4}' if t else 'whole'} | {s:.1f} | {g:.2f} |"
            for t, (s, g) in costs.items()
        ),
        "",
        "GiB beyond the largest memory that the process held before (its imports); 0 is no more than that.",
        "",
        "| claim | value | bar | holds |",
        "|---|---|---|---|",
        *(f"| {c.name} | {c.value:.3g} | {c.bar} | {'yes' if c.holds else '**no**'} |" for c in claims),
        "",
        "![borders](edges.png)",
    ]
    print("\n".join(lines))
    if asked.quick:
        return
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axis = figure.subplots()
    for padding, style in zip(PADDINGS, ("o-", "s--", "^:"), strict=True):
        axis.plot(np.mean([error for error, _ in judged[padding]], axis=0), style, ms=4, label=padding)
    axis.set(xlabel="distance from the border [pixel]", ylabel="r.m.s. error / σ of the field", ylim=(0, None))
    axis.legend(title="padding", fontsize=8)
    with write_whole(RESULTS / "edges.png") as side:
        figure.savefig(side, dpi=130)
    write_text(RESULTS / "edges.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
