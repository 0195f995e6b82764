"""Speed, mass and memory of the projection beside every public code that installs, on one galaxy, in one run.

    python benchmarks/projection.py [--quick] [--json FILE]

Every code gets the same particles and the same support (the radius at which its kernel ends), one thread, and runs in
turns with the others; times are medians. A peer that does not import is named. Writes
``benchmarks/results/projection.md`` and its figure (not with ``--quick``).
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", NUMBA_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import importlib
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from report import RESULTS, Claim, machine, parser, report
from scipy.spatial import cKDTree

from skyshift.datasets.projection import Canvas, project
from skyshift.files import write_text

Array = NDArray[np.float64]
Code = Callable[[Array, Array, float, int], Array]  # positions, supports, side, pixels → weight in every pixel
SUPPORTS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
SIDE = 60.0  # kpc


def disc_and_halo(count: int) -> tuple[Array, Array]:
    """An exponential disc (60 %, scale 4 kpc, tilted by 60°) in a Hernquist halo; the support is the 32nd neighbour."""
    rng = np.random.default_rng(0)
    disc = int(0.6 * count)
    radius, angle = rng.gamma(2, 4, disc), rng.uniform(0, 2 * np.pi, disc)
    flat = np.stack([radius * np.cos(angle), radius * np.sin(angle), rng.laplace(0, 0.3, disc)], axis=1)
    root = np.sqrt(rng.uniform(0, 0.8, count - disc))
    direction = rng.normal(size=(count - disc, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    position = np.concatenate([flat, (20 * root / (1 - root))[:, None] * direction])
    c, s = np.cos(np.pi / 3), np.sin(np.pi / 3)
    position = rng.permutation(position) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]).T
    support = cKDTree(position).query(position, k=[33])[0][:, 0]
    inside = (np.abs(position[:, :2]) < SIDE / 2).all(1)
    return np.ascontiguousarray(position[inside]), support[inside]


def skyshift(position: Array, support: Array, side: float, pixels: int, threads: int = 1) -> Array:
    """This package."""
    ones = np.ones(len(support))
    return project(position, support, ones, side=side, pixels=pixels, threads=threads) * (side / pixels) ** 2


def swiftsimio(backend: str) -> Code:
    """One of swiftsimio's backends; its smoothing length is the support over ``kernel_gamma``."""
    folder = "swiftsimio.visualisation.projection_backends"
    scatter = importlib.import_module(f"{folder}.{backend}").scatter
    gamma = float(importlib.import_module(f"{folder}.kernels").kernel_gamma)

    def run(position: Array, support: Array, side: float, pixels: int) -> Array:
        x, y = position[:, 0] / side + 0.5, position[:, 1] / side + 0.5
        h = (support / gamma / side).astype(np.float32)
        return np.asarray(scatter(x, y, np.ones(len(x), np.float32), h, pixels).T / pixels**2)

    return run


def meshoid(name: str) -> Code:
    """A deposition of meshoid; its h is the support."""
    deposit = getattr(importlib.import_module("meshoid.grid_deposition"), name)

    def run(position: Array, support: Array, side: float, pixels: int) -> Array:
        image = deposit(np.ones(len(support)), position, support, np.zeros(2), side, res=pixels, parallel=False)
        return np.asarray(image).T * (side / pixels) ** 2

    return run


def pynbody(approximate: bool) -> Code:
    """The renderer of pynbody, with its Wendland C2 kernel, which ends at two smoothing lengths."""
    module = importlib.import_module("pynbody")
    make = importlib.import_module("pynbody.sph.renderers").make_render_pipeline

    def run(position: Array, support: Array, side: float, pixels: int) -> Array:
        snap = module.new(dm=len(support))
        for name, value, unit in (
            ("pos", position, "kpc"),
            ("mass", np.ones(len(support)), "Msol"),
            ("smooth", support / 2, "kpc"),
            ("rho", np.ones(len(support)), "Msol kpc^-3"),
        ):
            snap[name] = value
            snap[name].units = unit
        options = {"width": f"{side} kpc", "resolution": pixels, "threaded": False, "denoise": False}
        units = {"out_units": "Msol kpc^-2", "approximate_fast": approximate, "kernel": "WendlandC2"}
        image = make(snap.dm, quantity="rho", **options, **units).render()
        return np.asarray(image, np.float64) * (side / pixels) ** 2

    return run


def skais_mapper() -> Code:
    """Uniform spheres at pixel centres, whose radius is the support."""
    trace = importlib.import_module("skais_mapper.raytrace").voronoi_RT_2D

    def run(position: Array, support: Array, side: float, pixels: int) -> Array:
        image, ones = np.zeros((pixels, pixels)), np.ones(len(support), np.float32)
        low = -side / 2
        arrays = position.astype(np.float32), ones, support.astype(np.float32)
        trace(image, *arrays, low, low, side, 0, 1, False, verbose=False)
        return image.T * (side / pixels) ** 2

    return run


def codes() -> tuple[dict[str, Code], list[str]]:
    """All that import, and why the others do not."""
    makers: dict[str, Callable[[], Code]] = {
        "skyshift": lambda: skyshift,
        "swiftsimio fast": lambda: swiftsimio("fast"),
        "swiftsimio subsampled": lambda: swiftsimio("subsampled"),
        "meshoid": lambda: meshoid("GridSurfaceDensity"),
        "meshoid multigrid": lambda: meshoid("GridSurfaceDensityMultigrid"),
        "pynbody": lambda: pynbody(False),
        "pynbody approximate": lambda: pynbody(True),
        "skais-mapper": skais_mapper,
    }
    found: dict[str, Code] = {}
    missing = []
    for name, make in makers.items():
        try:
            found[name] = make()
            found[name](np.zeros((2, 3)), np.array([5.0, 0.1]), SIDE, 64)  # compiles
        except Exception as error:  # whatever a stranger's package raises on import
            found.pop(name, None)
            missing.append(f"{name} ({type(error).__name__}: {error})")
    return found, missing


def seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median wall-clock time of each call, in alternating rounds."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - started)
    return {name: float(np.median(values)) for name, values in taken.items()}


def mass_errors(code: Code, offsets: int) -> list[float]:
    """Largest relative error of one particle's mass over random sub-pixel offsets, for each of SUPPORTS."""
    rng = np.random.default_rng(1)
    errors = []
    for support in SUPPORTS:
        pixels = 2 ** int(np.ceil(np.log2(2 * support + 5)))  # meshoid's multigrid asks for powers of two
        at = rng.uniform(-0.5, 0.5, (offsets, 3)) * [1, 1, 0]
        masses = [code(one[None], np.array([support]), float(pixels), pixels).sum() for one in at]
        errors.append(float(np.max(np.abs(np.array(masses) - 1))))
    return errors


def stream(count: int) -> None:
    """Feed a canvas ``count`` particles, a million at a time, and print the peak memory in GiB and the mass error."""
    import resource

    rng = np.random.default_rng(2)
    canvas = Canvas(400.0, 512, 2, threads=2)
    chunk = min(count, 1_000_000)
    for _ in range(count // chunk):
        position = rng.random((chunk, 3)) ** 3 * 100 * rng.choice((-1.0, 1.0), (chunk, 3))
        support = 0.05 + 0.1 * np.abs(position).max(1)
        canvas.add(position, support, np.ones((2, chunk)))
    error = abs(canvas.maps()[0].sum() * (400 / 512) ** 2 / (count // chunk * chunk) - 1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, error)


def main() -> None:
    """Measure, judge, and write the page."""
    asked = parser(__doc__ or "")
    asked.add_argument("--stream", type=int, help="only feed so many particles in chunks; for the memory measurement")
    options = asked.parse_args()
    if options.stream:
        stream(options.stream)
        return
    quick = options.quick
    found, missing = codes()
    counts = (100_000,) if quick else (100_000, 1_000_000)
    galaxies = {count: disc_and_halo(count) for count in counts}
    speed: dict[tuple[int, int], dict[str, float]] = {}
    agreement = (np.nan, np.nan)
    for count, (position, support) in galaxies.items():
        for pixels in (256, 512):
            slow = {"swiftsimio subsampled"} if count > 100_000 or pixels > 256 else set()
            calls = {
                name: lambda code=code, pixels=pixels, position=position, support=support: code(
                    position, support, SIDE, pixels
                )
                for name, code in found.items()
                if name not in slow
            }
            speed[count, pixels] = {k: len(support) / v / 1e6 for k, v in seconds(calls, 1 if quick else 3).items()}
            print(count, pixels, {k: round(v, 2) for k, v in speed[count, pixels].items()}, flush=True)
    position, support = galaxies[100_000]
    if "swiftsimio subsampled" in found:
        mine, peer = (found[name](position, support, SIDE, 256) for name in ("skyshift", "swiftsimio subsampled"))
        difference, filled = np.abs(mine - peer), peer > 0
        agreement = (difference.sum() / peer.sum(), np.percentile(difference[filled] / peer[filled], 95))
    position, support = galaxies[counts[-1]]
    few = slice(0, len(support) // 10)
    rounds = 3 if quick else 5
    calls = {f"{t} threads": lambda t=t: skyshift(position, support, SIDE, 512, t) for t in (1, 2)}
    calls["a tenth"] = lambda: skyshift(position[few], support[few], SIDE, 512)
    threads = seconds(calls, rounds)
    sizes = (128, 256, 512, 1024, 2048)
    growth = seconds({str(n): lambda n=n: skyshift(position, support, SIDE, n) for n in sizes}, rounds)
    errors = {name: mass_errors(code, 5 if quick else 30) for name, code in found.items()}
    particles = 2_000_000 if quick else 100_000_000
    done = subprocess.run(
        [sys.executable, __file__, "--stream", str(particles)], capture_output=True, text=True, check=True
    )
    gib, streamed = (float(value) for value in done.stdout.split()[-2:])
    claims = judge(speed, agreement, threads, growth, errors, (particles, gib, streamed))
    report(claims, options.json)
    for name in missing:
        print("not measured:", name)
    if not quick:
        write(speed, errors, threads, growth, claims, missing)


def judge(
    speed: dict[tuple[int, int], dict[str, float]],
    agreement: tuple[float, float],
    threads: dict[str, float],
    growth: dict[str, float],
    errors: dict[str, list[float]],
    streamed: tuple[int, float, float],
) -> list[Claim]:
    """The claims."""
    claims = []
    for (count, pixels), rates in speed.items():
        if pixels == 512 and "swiftsimio fast" in rates:
            ratio = rates["skyshift"] / rates["swiftsimio fast"]
            name = f"speed over swiftsimio fast, {count:.0e} particles on {pixels}²"
            claims.append(Claim(name, ratio, "≥ 2.5", ratio >= 2.5))
    lead = min(r["skyshift"] / max(v for k, v in r.items() if k != "skyshift") for r in speed.values() if len(r) > 1)
    claims.append(Claim("speed over the fastest peer, worst case of the table", lead, "> 1", lead > 1))
    worst = max(errors["skyshift"])
    claims.append(Claim("mass error, support/pixel 0.1 to 50", worst, "≤ 1e-6", worst <= 1e-6))
    claims.append(Claim("L1 difference from swiftsimio subsampled", agreement[0], "< 0.01", agreement[0] < 0.01))
    claims.append(Claim("the same, 95 % of pixels", agreement[1], "< 0.03", agreement[1] < 0.03))
    gain = threads["1 threads"] / threads["2 threads"]
    claims.append(Claim("speed with two threads over one", gain, "> 1.2", gain > 1.2))
    grows = threads["1 threads"] / threads["a tenth"]
    claims.append(Claim("time for ten times the particles", grows, "≤ 10.5", grows <= 10.5))
    times = list(growth.values())
    steepest = max(b / a for a, b in pairwise(times))
    claims.append(Claim("time for four times the pixels, steepest of 128² to 2048²", steepest, "≤ 4", steepest <= 4))
    particles, gib, error = streamed
    claims.append(Claim(f"peak memory of {particles:.0e} streamed particles, GiB", gib, "< 4", gib < 4))
    claims.append(Claim("mass error of the stream", error, "≤ 1e-6", error <= 1e-6))
    return [Claim(c.name, float(c.value), c.bar, bool(c.holds)) for c in claims]


def write(
    speed: dict[tuple[int, int], dict[str, float]],
    errors: dict[str, list[float]],
    threads: dict[str, float],
    growth: dict[str, float],
    claims: list[Claim],
    missing: list[str],
) -> None:
    """Write the page and its figure."""
    cases = list(speed)
    lines = [
        "# Projection: particles to maps",
        "",
        f"`python benchmarks/projection.py` made this page ({machine()}). A tilted exponential disc in a Hernquist "
        f"halo, {SIDE:.0f} kpc; the support of a particle is the distance to its 32nd neighbour, the same for every "
        "code. One thread each, in turns, medians of three. Million particles per second; in brackets how many times "
        "faster skyshift is.",
        "",
        "| code | " + " | ".join(f"{count:.0e} @ {pixels}²" for count, pixels in cases) + " |",
        "|---" * (len(cases) + 1) + "|",
    ]
    for name in errors:
        rates = [
            f"{speed[case][name]:.2f} ({speed[case]['skyshift'] / speed[case][name]:.1f})"
            if name in speed[case]
            else "—"
            for case in cases
        ]
        lines.append(f"| {name} | " + " | ".join(rates) + " |")
    lines += ["", *(f"Not measured: {name}.\n" for name in missing)]
    lines += [
        "Largest relative error of one particle's mass over 30 sub-pixel offsets, by support in pixels:",
        "",
        "| code | " + " | ".join(f"{support:g}" for support in SUPPORTS) + " |",
        "|---" * (len(SUPPORTS) + 1) + "|",
        *(f"| {name} | " + " | ".join(f"{e:.0e}" for e in row) + " |" for name, row in errors.items()),
        "",
        "| what (1e6 particles) | seconds |",
        "|---|---|",
        *(f"| 512², {name} | {value:.3f} |" for name, value in threads.items()),
        *(f"| {name}², one thread | {value:.3f} |" for name, value in growth.items()),
        "",
        "| claim | value | bar | holds |",
        "|---|---|---|---|",
        *(f"| {c.name} | {c.value:.4g} | {c.bar} | {'yes' if c.holds else '**no**'} |" for c in claims),
        "",
        "![speed and error](projection.png)",
    ]
    write_text(RESULTS / "projection.md", "\n".join(lines) + "\n")
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    for number, name in enumerate(errors):
        style = {"color": f"C{number}", "lw": 3 if name == "skyshift" else 1.3, "marker": "o", "ms": 4}
        shown = [(i, speed[case][name]) for i, case in enumerate(cases) if name in speed[case]]
        left.plot(*zip(*shown, strict=True), label=name, **style)
        right.plot(SUPPORTS, np.maximum(errors[name], 1e-16), **style)
    left.set(yscale="log", ylabel="million particles per second, one thread")
    left.set_xticks(range(len(cases)), [f"{count:.0e}\n{pixels}²" for count, pixels in cases])
    right.axhline(1e-6, color="0.5", ls=":")
    right.set(xscale="log", yscale="log", xlabel="support / pixel", ylabel="largest error of one particle's mass")
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(RESULTS / "projection.png", dpi=120)


if __name__ == "__main__":
    main()
