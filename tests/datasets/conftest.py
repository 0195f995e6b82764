"""Tiny API cutouts, in the layout of the files that the TNG web service sends."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from skyshift.datasets import domains

SCALE_FACTOR, HUBBLE, BOX = 0.5, 0.6774, 75000.0
DARK_MASS = 5.05574296e-04  # 1e10 Msun/h, TNG100-1

SCALINGS = {
    "Coordinates": (1.0, -1.0, 3.085678e21),
    "Density": (-3.0, 2.0, 6.769911178294544e-22),
    "Masses": (0.0, -1.0, 1.989e43),
    "Velocities": (0.5, 0.0, 1e5),
    "InternalEnergy": (0.0, 0.0, 1e10),
    "StellarHsml": (1.0, -1.0, 3.085678e21),
    "SubfindHsml": (1.0, -1.0, 3.085678e21),
}
"""a_scaling, h_scaling and to_cgs, as the real cutouts carry them; MagneticField carries none."""

Arrays = dict[str, dict[str, np.ndarray]]


def cutout_arrays(seed: int = 0, gas: int = 40, dark: int = 30, stars: int = 20) -> Arrays:
    """Stored arrays, code units, of a ball of 20 ckpc/h about (100, 200, 300) ckpc/h. The last star is wind."""
    rng = np.random.default_rng(seed)

    def common(count: int) -> dict[str, np.ndarray]:
        return {
            "Coordinates": np.array([100.0, 200.0, 300.0]) + 10 * rng.standard_normal((count, 3)).clip(-2, 2),
            "Masses": rng.uniform(5e-5, 2e-4, count).astype(np.float32),
            "Velocities": (100 * rng.standard_normal((count, 3))).astype(np.float32),
        }

    forming = np.arange(gas) % 5 == 0
    gas_arrays = common(gas) | {
        "Density": rng.uniform(1e-7, 1e-4, gas).astype(np.float32),
        "InternalEnergy": rng.uniform(100, 1e4, gas).astype(np.float32),
        "ElectronAbundance": rng.uniform(0, 1.2, gas).astype(np.float32),
        "NeutralHydrogenAbundance": rng.uniform(0, 1, gas).astype(np.float32),
        "StarFormationRate": np.where(forming, rng.uniform(0.01, 1, gas), 0.0).astype(np.float32),
        "MagneticField": rng.standard_normal((gas, 3)).astype(np.float32),
        "GFM_Metallicity": rng.uniform(0, 0.02, gas).astype(np.float32),
    }
    born = rng.uniform(0.1, 0.5, stars).astype(np.float32)
    born[-1:] = -0.01
    star_arrays = common(stars) | {
        "GFM_StellarFormationTime": born,
        "StellarHsml": rng.uniform(0.5, 2, stars).astype(np.float32),
    }
    dark_arrays = common(dark)
    del dark_arrays["Masses"]  # as in every TNG file: the mass is in the header
    return {"PartType0": gas_arrays, "PartType1": dark_arrays, "PartType4": star_arrays}


def write_cutout_file(
    path: Path,
    arrays: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    *,
    length_one: bool = False,
    as_bytes: bool = False,
    totals: bool = True,
    request: str = "PartType0=all+PartType1=all+PartType4=all",
    header: Mapping[str, Any] | None = None,
    without: tuple[str, ...] = (),
) -> Path:
    """Write a cutout; both layouts of the header that the service has sent.

    Args:
        path: The new file.
        arrays: Group to field to values; by default those of :func:`cutout_arrays`.
        length_one: Attributes are arrays of length one instead of scalars.
        as_bytes: Strings are bytes instead of str.
        totals: Write ``NumPart_Total``.
        request: ``CutoutRequest``.
        header: Further or other entries of the header.
        without: Entries of the header to leave out.
    """
    arrays = cutout_arrays() if arrays is None else arrays
    counts = np.zeros(6, np.int32)
    for group, fields in arrays.items():
        counts[int(group[-1])] = max((len(value) for value in fields.values()), default=0)
    entries: dict[str, Any] = {
        "BoxSize": BOX,
        "CutoutID": 17,
        "CutoutRequest": request,
        "CutoutType": "subhalo",
        "HubbleParam": HUBBLE,
        "MassTable": np.array([0.0, DARK_MASS, 0, 0, 0, 0]),
        "NumFilesPerSnapshot": 1,
        "NumPart_ThisFile": counts,
        "Omega0": 0.3089,
        "Redshift": 1.0 / SCALE_FACTOR - 1.0,
        "SimulationName": "L75n1820TNG",
        "SnapshotNumber": 50,
        "Time": SCALE_FACTOR,
    }
    if totals:
        entries["NumPart_Total"] = counts
    entries |= header or {}
    with h5py.File(path, "w") as file:
        attributes = file.create_group("Header").attrs
        for name, entry in entries.items():
            if name in without:
                continue
            value = entry.encode() if as_bytes and isinstance(entry, str) else entry
            scalar = np.ndim(value) == 0
            if length_one and scalar:
                dtype = h5py.string_dtype() if isinstance(value, str) else None
                attributes.create(name, [value], dtype=dtype)
            else:
                attributes[name] = np.bytes_(value) if isinstance(value, bytes) else value
        for group, fields in arrays.items():
            for name, value in fields.items():
                data = file.create_dataset(f"{group}/{name}", data=value)
                if name != "MagneticField":
                    scalings = SCALINGS.get(name, (0.0, 0.0, 0.0))
                    for key, number in zip(("a_scaling", "h_scaling", "to_cgs"), scalings, strict=True):
                        data.attrs[key] = np.array([number]) if length_one else number
    return path


@pytest.fixture(scope="session")
def arrays_of_a_cutout() -> Callable[..., Arrays]:
    """See :func:`cutout_arrays`."""
    return cutout_arrays


@pytest.fixture(scope="session")
def write_cutout() -> Callable[..., Path]:
    """See :func:`write_cutout_file`."""
    return write_cutout_file


@pytest.fixture(autouse=True)
def own_domains() -> Iterator[None]:
    """The table of domains as it was, after each test: a test that loads its own leaves none behind."""
    before = dict(domains.DOMAINS)
    yield
    domains.DOMAINS.clear()
    domains.DOMAINS.update(before)
    domains._ORIGINS.clear()
    domains._LOADED.clear()
