"""What all tests share: quiet threads, one tiny simulation and its store, and the real data where it is there."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many slow tests first, so that no process is left alone with one at the end."""
    slow: dict[Path, int] = {}
    for item in items:
        slow[item.path] = slow.get(item.path, 0) + (item.get_closest_marker("slow") is not None)
    items.sort(key=lambda item: -slow[item.path])  # stable: files stay whole, tests in order


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the real data: ``$SKYSHIFT_SHARED`` or ``../shared/data`` beside the checkout."""
    folder = Path(os.environ.get("SKYSHIFT_SHARED", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real data is not there ({folder}); set SKYSHIFT_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def tiny_simulation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy simulation of 12 galaxies in the real format; its ``output`` folder stands inside."""
    from skyshift.datasets.synthetic import SyntheticSimulation, write_simulation

    path = tmp_path_factory.mktemp("simulation") / "toy"
    small = SyntheticSimulation(galaxies=12, gas_cells=400, dm_particles=200, star_particles=200)
    write_simulation(path, small, progress=False)
    return path


@pytest.fixture(scope="session")
def tiny_store(tiny_simulation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its maps: all galaxies but the flagged ones, 2 rotations, 32 pixels, six domains. Not to be changed."""
    from skyshift.datasets.build import build_store
    from skyshift.datasets.shards import BuildConfig, FieldOfView
    from skyshift.datasets.sources import SnapshotSource

    path = tmp_path_factory.mktemp("store") / "maps.zarr"
    source = SnapshotSource(str(tiny_simulation / "output"), 99, minimum_particles={"gas": 10, "dm": 10, "stars": 10})
    build_store(
        BuildConfig(source, str(path), pixels=32, rotations=2, field_of_view=FieldOfView(4.0, "stars")),
        progress=False,
    )
    return path
