"""What the datasets stage makes of real data: a page of figures, and the numbers behind each.

    python benchmarks/real_maps.py [--quick] [--json FILE]

1. A region of the public TNG50-4 subbox in every domain that their particles allow.
2. The HI of such a region as the WSRT would see it, beside the real WSRT cube of NGC 6946.
3. FIRST images turned into mock NVSS ones, beside the real NVSS images of the same sources.
4. KiDS images turned into mock SDSS ones, beside the real SDSS images of the same galaxies.

Writes ``benchmarks/results/real_maps.md`` and its figures (not with ``--quick``). The data is looked for in
``$SKYSHIFT_SHARED`` or ``../shared/data``.
"""

import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from real_tng50 import FOLDER, SHARED
from report import RESULTS, Claim, machine, parser, report
from scipy.ndimage import gaussian_filter, shift
from scipy.optimize import minimize

from skyshift.datasets.beams import image_kernel, matching_kernel
from skyshift.datasets.degrade import degrade
from skyshift.datasets.domains import DOMAINS, View, make_maps, needed_fields
from skyshift.datasets.galaxy import Galaxy
from skyshift.datasets.quantities import Recipes
from skyshift.datasets.radio import correlated_noise, kelvin_per_jansky, observe_radio
from skyshift.datasets.resampling import convolve, rebin
from skyshift.datasets.sky import Placement
from skyshift.datasets.sources import RegionSource
from skyshift.datasets.surveys import radio_survey
from skyshift.files import write_text
from skyshift.plots import Panel, map_figure

Array = NDArray[np.float64]

SIDE = 200.0
"""kpc, width of the maps of a region."""

NGC_6946 = 7.7
"""Mpc, distance of NGC 6946 (Anand, Rizzi & Tully 2018, AJ 156, 105)."""


def richest_region() -> Galaxy:
    """The region with most stars in its middle, with every field."""
    source = RegionSource(str(FOLDER), side=SIDE, partial=True)
    found = [source.read(item.number, needed_fields(DOMAINS)) for item in source.items()]
    return max(found, key=lambda g: int((np.linalg.norm(g.particles["stars"].position, axis=1) < SIDE / 4).sum()))


# 1. Domains.


def domain_maps(galaxy: Galaxy, pixels: int = 128) -> dict[str, NDArray[np.float32]]:
    """Maps of a region along z, of the cube that its sphere holds; means without any weight are blank."""
    maps = dict(make_maps(galaxy, list(DOMAINS), View(np.eye(3), SIDE, pixels, SIDE)))
    for name in ("velocity_stars", "dispersion_stars"):
        maps[name] = np.where(maps["stars"] > 0, maps[name], np.float32(np.nan))
    return maps


def column_errors(galaxy: Galaxy) -> dict[str, float]:
    """Every column domain: relative difference between the sum over a map that holds all kernels and the particles."""
    errors = {}
    reach = max(
        float((np.linalg.norm(p.position, axis=1) + p["support"]).max()) for p in galaxy.particles.values() if len(p)
    )
    view = View(np.eye(3), 2.0 * reach, 256)
    names = [name for name, domain in DOMAINS.items() if domain.moment == 0]
    maps = make_maps(galaxy, names, view)
    for name in names:
        domain = DOMAINS[name]
        amount = float(np.sum(domain.quantity(galaxy, Recipes(), view)))
        amount *= domain.factor(galaxy, Recipes()) if domain.factor else 1.0
        total = float(maps[name].sum(dtype=np.float64)) * (view.side / view.pixels) ** 2
        errors[name] = abs(total / amount - 1.0) if amount else abs(total)
    return errors


def domain_panels(maps: dict[str, NDArray[np.float32]], names: list[str]) -> list[Panel]:
    """One panel a domain, each with its own stretch."""
    return [
        Panel(
            maps[name],
            domain.title,
            domain.unit,
            domain.colour_map,
            SIDE,
            signed=domain.signed,
            softening=0.5 if domain.scaling == "linear" else 0.01,
        )
        for name in names
        for domain in [DOMAINS[name]]
    ]


# 2. The WSRT cube of NGC 6946.


def wsrt_cube() -> Array:
    """(101, 100, 100) Jy/beam."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # units and axes as they were written in 2002
        with fits.open(SHARED / "hi" / "ngc6946_wsrt.fits") as hdus:
            return np.asarray(hdus[0].data, np.float64)


def correlation_width(maps: Array) -> float:
    """FWHM in pixels of the azimuthal mean of the autocorrelation of noise maps (n, height, width)."""
    power = np.zeros(tuple(2 * n for n in maps.shape[1:]))
    for image in maps:
        power += np.abs(np.fft.fft2(image - np.median(image), power.shape)) ** 2
    peak = np.fft.ifft2(power).real
    peak /= peak[0, 0]
    y, x = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in peak.shape), indexing="ij")
    radius = np.hypot(y, x)
    near = radius < 6
    order = np.argsort(radius[near], kind="stable")
    r, c = radius[near][order], peak[near][order]
    rings = np.unique(np.round(r, 6))
    mean = np.array([c[np.abs(r - ring) < 1e-5].mean() for ring in rings])
    below = int(np.argmax(mean < 0.5))
    return float(2 * np.interp(0.5, mean[[below, below - 1]], rings[[below, below - 1]]))


def wsrt(galaxy: Galaxy) -> tuple[list[list[Panel]], list[Claim]]:
    """Noise and moment 0, real and mock, on the same stretch."""
    cube, survey = wsrt_cube(), radio_survey("wsrt")
    beam = (survey.beam_major_arcsec, survey.beam_minor_arcsec, survey.beam_angle_deg)
    pixel, quiet = survey.pixel_arcsec, cube[86:101]
    rms = float(np.median(np.abs(quiet - np.median(quiet))) * 1.4826)
    mock = np.stack([rms * correlated_noise((100, 100), *beam, pixel, seed) for seed in range(15)])
    real_width, mock_width = (correlation_width(maps) * pixel for maps in (quiet, mock))
    hubble = 67.74
    place = Placement(NGC_6946 * hubble / 299792.458)
    # A sum of n channels of the real cube has √n of a channel's noise; so has the mock over the same width.
    kelvin = kelvin_per_jansky(survey.frequency_hz, beam[0], beam[1])
    line = cube[10:80].sum(axis=0) * 4.2 * kelvin
    simulated = domain_maps(galaxy, 256)["hi"]
    seen = observe_radio(
        simulated, "Msun / kpc2", SIDE, survey, place.redshift, seed=1, width_kms=70 * 4.2, shape=(100, 100)
    )
    side = 100 * pixel / 60.0
    panels = [
        [
            Panel(1e3 * noise, title, "mJy / beam", "RdBu_r", side, "n", True, "arcmin", 1.0)
            for title, noise in (("NGC 6946, a channel without line", quiet[7]), ("mock noise, same rms", mock[0]))
        ],
        [
            Panel(line, "NGC 6946, moment 0", "K km / s", "inferno", side, "m", False, "arcmin"),
            Panel(
                seen.noisy * kelvin,
                f"TNG50-4 region at {NGC_6946:g} Mpc, moment 0",
                "K km / s",
                "inferno",
                side,
                "m",
                False,
                "arcmin",
            ),
        ],
    ]
    ratio = mock_width / real_width
    bar = "0.9 to 1.1"
    claims = [
        Claim("width of the noise's correlation, mock over the real WSRT cube", ratio, bar, 0.9 <= ratio <= 1.1),
        Claim("the same, mock, over the beam", mock_width / beam[0], bar, 0.9 <= mock_width / beam[0] <= 1.1),
    ]
    return panels, claims


# 3. FIRST and NVSS.


def bootstrap(values: Array, seed: int = 0) -> tuple[float, float, float]:
    """Median and its 95 % interval over 2,000 resamplings of the objects."""
    draws = np.random.default_rng(seed).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def nvss(limit: int) -> tuple[list[list[Panel]], list[Claim]]:
    """Mock NVSS of FIRST, with and without the beam, against the real NVSS of the same sources."""
    data = np.load(SHARED / "radio_surveys" / "fr_deep.npz")
    number = {str(name): i for i, name in enumerate(data["nvss_objects"])}
    rows, beam, pixels = [], [], []
    for image, name in zip(data["first_images"], data["first_objects"], strict=True):
        if str(name) not in number or len(beam) == limit:
            continue
        real = data["nvss_images"][number[str(name)]][66:84, 66:84].astype(float)
        if not (image.any() and real.any()):
            continue
        first = image.astype(float)
        mock = degrade(first, "first", "nvss", seed=0, noise_in=0.0).clean
        coarse = rebin(first, 1.8, 15.0, (18, 18))
        beam.append(np.corrcoef(mock.ravel(), real.ravel())[0, 1])
        pixels.append(np.corrcoef(coarse.ravel(), real.ravel())[0, 1])
        if len(rows) < 4 and len(beam) % 7 == 0:
            shown = [("FIRST", first), ("FIRST, pixels alone", coarse), ("FIRST as NVSS", mock), ("NVSS", real)]
            rows.append(
                [
                    Panel(values / values.max(), title, "1", "inferno", 4.5, "peak = 1", False, "arcmin")
                    for title, values in shown
                ]
            )
    median, low, _ = bootstrap(np.array(beam))
    without, _, top = bootstrap(np.array(pixels))
    claims = [
        Claim(f"FIRST → NVSS, median correlation over {len(beam)} sources", median, "> pixels alone", low > top),
        Claim("the same, lower end of the 95 % interval", low, "≥ 0.95", low >= 0.95),
        Claim("FIRST rebinned without the beam, median correlation", without, "< with the beam", top < low),
    ]
    return rows, claims


# 4. KiDS and SDSS.


def kids_and_sdss(galaxy: str) -> tuple[Array, Array, Array, Array, Array]:
    """KiDS, KiDS as SDSS, SDSS, σ of SDSS (nanomaggies a pixel), and the mask of the galaxy's core."""

    def part(survey: str, name: str) -> Any:
        path = SHARED / "optical" / "sdss_kids" / f"{galaxy}_{survey}_{name}.fits"
        return np.asarray(fits.getdata(path), np.float64)

    sharp, image, sigma = 1e9 * part("KiDS", "fitim"), 1e9 * part("SDSS", "fitim"), 1e9 * part("SDSS", "sigma")
    # The KiDS stars have a ring below zero that cannot be light.
    star = image_kernel(np.maximum(part("KiDS", "psfim"), 0.0), 0.2, 0.2)
    kernel = matching_kernel(star, image_kernel(part("SDSS", "psfim"), 0.339, 0.2), 0.03)
    mock = rebin(convolve(sharp, kernel, "nearest"), 0.2, 0.339, (image.shape[0], image.shape[1]))
    smooth = gaussian_filter(image, 2)
    core = smooth > 3 * 1.4826 * np.median(np.abs(smooth - np.median(smooth)))

    def cost(offset: Array) -> float:
        return float((((shift(mock, offset, order=3) - image) / sigma)[core] ** 2).mean())

    # Each image was cut out apart: positions differ by up to a pixel.
    best = minimize(cost, [0, 0], method="Nelder-Mead", options={"initial_simplex": [[0, 0], [1, 0.3], [0.3, 1]]})
    return sharp, shift(mock, best.x, order=3), image, sigma, core


def sdss(names: list[str]) -> tuple[list[list[Panel]], list[Claim]]:
    """Mock SDSS of KiDS beside the real SDSS, and their difference in σ."""
    rows, flux, correlation = [], [], []
    for name in names:
        sharp, mock, image, sigma, core = kids_and_sdss(name)
        flux.append(mock[core].sum() / image[core].sum())
        correlation.append(np.corrcoef(mock[core], image[core])[0, 1])
        side = image.shape[1] * 0.339
        brightness = [("KiDS", sharp / 0.2**2), ("KiDS as SDSS", mock / 0.339**2), ("SDSS", image / 0.339**2)]
        rows.append(
            [
                *(Panel(v, title, "nmgy / arcsec2", "viridis", side, "b", False, "arcsec") for title, v in brightness),
                Panel((mock - image) / sigma, "difference / σ", "1", "RdBu_r", side, "d", True, "arcsec", 1.0),
            ]
        )
    worst = float(np.max(np.abs(np.array(flux) - 1.0)))
    lowest = float(np.min(correlation))
    claims = [
        Claim(f"KiDS → SDSS, largest difference of the flux, {len(names)} galaxies", worst, "≤ 0.08", worst <= 0.08),
        Claim("KiDS → SDSS, lowest correlation in a galaxy", lowest, "≥ 0.94", lowest >= 0.94),
    ]
    return rows, claims


def write_results(figures: dict[str, list[Any]], claims: list[Claim], folder: Path) -> None:
    """The page and its figures."""
    text = {
        "domains": "A region of 200 kpc around a density peak of TNG50-4 (z = 0), along one line of sight. The run is "
        "coarse: a cell has a median radius of 56 kpc in the box, of some kpc in the peaks, and a star particle weighs "
        "some 1e7 Msun, which is why few stars make the light. Every domain has its own stretch.",
        "wsrt": "The real WSRT cube of NGC 6946 and mock ones. Above, noise: a channel without line, and mock noise of "
        "the same rms. Below, 70 channels summed: the galaxy, and the HI of the TNG50-4 region at its distance with "
        "the noise of the `wsrt` preset, on the same stretch. Different galaxies: what is to be compared is "
        "resolution, noise and scale.",
        "nvss": "FIRST images (5.4 arcsec beam), rebinned without the beam, through `degrade`, and the real NVSS "
        "(45 arcsec) of the same sources, each over its peak: the public images have 8 bits and lost their flux "
        "scale, so shapes alone are compared.",
        "sdss": "KiDS images through the matching kernel onto the pixels of SDSS, beside the real SDSS r images. "
        "Positions were fitted (each image was cut out apart). The mock cores are too faint and their surroundings too "
        "bright by some σ: the images of stars that come with these galaxies are no perfect match of the two surveys.",
    }
    titles = {
        "domains": "Every domain of real particles",
        "wsrt": "21 cm: a real cube and a mock one",
        "nvss": "From FIRST to NVSS",
        "sdss": "From KiDS to SDSS",
    }
    made = f"`python benchmarks/real_maps.py` made this page ({machine()})."
    lines = ["# The datasets stage on real data", "", made, ""]
    for name, rows in figures.items():
        figure = map_figure(rows)
        figure.savefig(folder / f"real_maps_{name}.png", dpi=90)
        lines += [f"## {titles[name]}", "", text[name], "", f"![{titles[name]}](real_maps_{name}.png)", ""]
    lines += ["## Numbers", "", "| claim | value | bar | holds |", "|---|---|---|---|"]
    lines += [f"| {c.name} | {c.value:.4g} | {c.bar} | {'yes' if c.holds else '**no**'} |" for c in claims]
    write_text(folder / "real_maps.md", "\n".join(lines) + "\n")


def main() -> None:
    """Make the figures, measure, report."""
    asked = parser(__doc__ or "").parse_args()
    if not FOLDER.is_dir():
        sys.exit(f"the real data is not there ({FOLDER}); set SKYSHIFT_SHARED to its folder")
    galaxy = richest_region()
    shown: list[Panel | None] = list(domain_panels(domain_maps(galaxy), list(DOMAINS)))
    shown += [None] * (-len(shown) % 5)
    rows = [shown[start : start + 5] for start in range(0, len(shown), 5)]
    worst = max(column_errors(galaxy).values())
    claims = [Claim("column domains, largest error of their sum", worst, "≤ 1e-6", worst <= 1e-6)]
    figures: dict[str, list[Any]] = {"domains": rows}
    for name, (panels, more) in {
        "wsrt": wsrt(galaxy),
        "nvss": nvss(60 if asked.quick else 10**6),
        "sdss": sdss(["G265911", "G266033", "G266662"]),
    }.items():
        figures[name] = list(panels)
        claims += more
    report(claims, asked.json)
    if asked.quick:
        with tempfile.TemporaryDirectory() as folder:
            write_results(figures, claims, Path(folder))
    else:
        write_results(figures, claims, RESULTS)


if __name__ == "__main__":
    main()
