"""The whole chain on real input: the public TNG50-4 subbox → regions → maps → pix2pix → held-out regions.

    python benchmarks/real_tng50.py [--quick] [--json FILE]

Writes ``benchmarks/results/real_tng50.md`` with its figures (not with ``--quick``). The data is looked for in
``$SKYSHIFT_SHARED`` or ``../shared/data``.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from report import RESULTS, ROOT, Claim, headline_claims, machine, parser, report, write_page

from skyshift.datasets import hydrogen
from skyshift.datasets.galaxy import Galaxy
from skyshift.datasets.loading import PARTS, Split, split_views
from skyshift.datasets.projection import project, random_rotations, rotate
from skyshift.datasets.smoothing import cell_radius
from skyshift.datasets.sources import RegionSource
from skyshift.datasets.store import MapStore
from skyshift.datasets.tng import Box
from skyshift.translate.evaluate import evaluate

SHARED = Path(os.environ.get("SKYSHIFT_SHARED", ROOT.parent / "shared" / "data"))
FOLDER = SHARED / "tng" / "TNG50-4-Subbox0" / "output" / "snapdir_2332"


def facts() -> list[tuple[str, float, float]]:
    """Known figures of the ten chunks: name, what the reader gives, what it must give."""
    box = Box(FOLDER, partial=True)
    gas = box.particles["gas"]
    header = box.header
    whole = Galaxy("box", 0, 0, header.redshift, header.hubble, header.omega_matter, np.zeros(3), box.particles)
    neutral = hydrogen.HYDROGEN_FRACTION * gas["neutral_fraction"] * gas.mass
    quiet = gas["sfr"] == 0
    radius = cell_radius(gas.mass, gas["density"])
    strength = np.linalg.norm(gas["magnetic_field"], axis=1) * 1e6
    return [
        ("gas cells", len(gas), 24789),
        ("gas mass [Msun]", gas.mass.sum(), 1.1003e12),
        ("star-forming cells", (~quiet).sum(), 34),
        ("lowest cell mass [Msun]", gas.mass.min(), 1.1143e7),
        ("median cell mass [Msun]", np.median(gas.mass), 4.281e7),
        ("highest cell mass [Msun]", gas.mass.max(), 1.1810e8),
        ("smallest cell radius [kpc]", radius.min(), 0.75294),
        ("median cell radius [kpc]", np.median(radius), 56.23),
        ("largest cell radius [kpc]", radius.max(), 357.28),
        ("lowest temperature [K]", gas["temperature"].min(), 352.99),
        ("median temperature [K]", np.median(gas["temperature"]), 5.5742e4),
        ("highest temperature [K]", gas["temperature"].max(), 1.689e6),
        ("|B|, 99 % [µG]", np.quantile(strength, 0.99), 3.002),
        ("|B|, highest [µG]", strength.max(), 20.26),
        ("neutral hydrogen as stored [Msun]", neutral.sum(), 3.218e10),
        ("neutral hydrogen where SFR = 0 [Msun]", hydrogen.neutral_hydrogen_mass(whole)[quiet].sum(), 3.166e10),
    ]


def mass_error() -> float:
    """Largest relative error of the gas mass on a map that holds all kernels of a region, over 8 rotations."""
    source = RegionSource(str(FOLDER), limit=1, partial=True)
    galaxy = source.read(0, {"gas": ("density",)})
    gas = galaxy.particles["gas"]
    reach = float((np.linalg.norm(gas.position, axis=1) + gas["support"]).max())
    errors = []
    for rotation in random_rotations(8, 0):
        turned = rotate(gas.position, rotation)
        column = project(turned, gas["support"], gas.mass, side=2 * reach, pixels=256)
        errors.append(abs(column.sum() * (2 * reach / 256) ** 2 / gas.mass.sum() - 1))
    return float(max(errors))


def run(*command: str) -> float:
    """Run a command of the package; the seconds it took."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Build, train, evaluate, report."""
    asked = parser(__doc__ or "").parse_args()
    if not FOLDER.is_dir():
        sys.exit(f"the TNG50-4 subbox is not there ({FOLDER}); set SKYSHIFT_SHARED to the folder of the real data")
    folder = f"--source.init_args.folder={FOLDER}"
    with tempfile.TemporaryDirectory() as work:
        store_path, output = f"{work}/maps.zarr", f"{work}/run"
        built = run(
            "datasets/build.py", "--config", "configs/datasets/tng50_regions.yaml", "--store", store_path, folder
        )
        steps = ["--training.steps", "150"] if asked.quick else []
        training = ["--config", "configs/translate/tng50_regions.yaml", "--data.store", store_path, "--data.build", ""]
        trained = run("translate/train.py", *training, "--output", output, "--evaluation", "false", *steps)
        store = MapStore(store_path)
        result = evaluate(output, store=store, output=f"{output}/evaluation")
        views = split_views(store.catalogue(), Split(0.6, 0.1, 0.3))
        groups = {part: len(set(store.catalogue()["split_group"][views[part]].tolist())) for part in PARTS}
        claims = [Claim("views of regions", store.views, "≥ 300", store.views >= 300)]
        for name, value, known in facts():
            error = abs(value / known - 1)
            claims.append(Claim(f"{name}, relative error", error, "≤ 1e-3", bool(error <= 1e-3)))
        error = mass_error()
        claims.append(Claim("mass conservation of the projection, relative error", error, "≤ 1e-6", error <= 1e-6))
        claims += headline_claims(result, "hi")
        report(claims, asked.json)
        print(result.table())
        if asked.quick:
            return
        for figure in ("maps", "spectra"):
            shutil.copy(f"{output}/evaluation/{figure}.png", RESULTS / f"real_tng50_{figure}.png")
    radius = RegionSource().radius
    text = (
        "`python benchmarks/real_tng50.py` made this page. Source: subbox 0 of TNG50-4 at z = 0, ten of its eleven "
        f"chunks (one is missing). {store.views} views (16 rotations) of {store.views // 16} regions of 200 kpc around "
        f"gas density peaks; regions whose sphere of {radius:.0f} kpc touches the hole of the missing chunk or leaves "
        "the box are left out. Split by region of space: regions that overlap, directly or through others, form one "
        "group; "
        + ", ".join(f"{part}: {len(views[part])} views of {groups[part]} groups" for part in PARTS)
        + f". Building took {built:.0f} s, training {trained:.0f} s ({machine()})."
    )
    write_page("real_tng50", "Real input: gas to HI around the density peaks of TNG50-4", text, result, claims)


if __name__ == "__main__":
    main()
