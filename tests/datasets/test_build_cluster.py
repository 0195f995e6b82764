"""Builds on several processes: workers and builders that die, two builds at once, schedulers, and the same bytes."""

import hashlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from distributed import LocalCluster

from skyshift.datasets import cluster as cluster_module
from skyshift.datasets.build import build_store, main
from skyshift.datasets.claims import SILENCE, Claims, new_builder
from skyshift.datasets.cluster import connect
from skyshift.datasets.shards import BuildConfig, FieldOfView
from skyshift.datasets.sources import CutoutSource, SnapshotSource
from skyshift.datasets.store import MapStore
from skyshift.files import write_json

FEW = {"gas": 10, "dm": 10, "stars": 10}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def settings(simulation: Path, store: Path, **changes: object) -> dict[str, object]:
    """Twelve galaxies in 12 shards; at 256 pixels and 16 rotations a build takes seconds."""
    source = {"base_path": str(simulation / "output"), "snapshot": 99, "minimum_particles": FEW}
    return {
        "source": {"class_path": "SnapshotSource", "init_args": source},
        "pixels": 256,
        "rotations": 16,
        "domains": ["gas", "temperature"],
        "field_of_view": {"radii": 4.0, "of": "stars"},
        "store": str(store),
    } | changes


@pytest.fixture(scope="module")
def slow_store(tiny_simulation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the builds below must come to, built by one process."""
    path = tmp_path_factory.mktemp("slow") / "maps.zarr"
    source = SnapshotSource(str(tiny_simulation / "output"), 99, minimum_particles=FEW)
    build_store(
        BuildConfig(source, str(path), ["gas", "temperature"], 256, 16, FieldOfView(4.0, "stars")), progress=False
    )
    return path


def start(repository: Path, folder: Path, **values: object) -> subprocess.Popen[str]:
    config = folder / "my.yaml"
    config.write_text(yaml.safe_dump(values))
    command = [sys.executable, str(repository / "datasets/build.py"), "--config", str(config)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.01)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def parts(store: Path) -> int:
    return len(list(store.glob("catalogue/part-*.parquet")))


def test_a_killed_worker_loses_nothing(repository, tmp_path, tiny_simulation, slow_store):
    """SIGKILL to one of two workers while it builds: its shard is built again, the bytes are those of one process."""
    store = tmp_path / "maps.zarr"
    build = start(repository, tmp_path, **settings(tiny_simulation, store, workers=2))
    wait_for(lambda: parts(store) >= 1)
    victim = workers_of(build)[0]
    victim.send_signal(signal.SIGKILL)
    assert parts(store) < 12, "the kill came in time"
    output, errors = build.communicate(timeout=120)
    assert build.returncode == 0, errors
    assert "maps.zarr: 192 views of gas, temperature" in output
    assert "Traceback" not in errors
    assert "1 of 2 workers died; their shards were built again by others" in errors
    assert not victim.is_running()
    assert files_of(store) == files_of(slow_store)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_builder_takes_its_workers_along_and_the_next_goes_on(
    repository, tmp_path, tiny_simulation, slow_store, how
):
    store = tmp_path / "maps.zarr"
    build = start(repository, tmp_path, **settings(tiny_simulation, store, workers=2))
    wait_for(lambda: parts(store) >= 1)
    workers = workers_of(build)
    assert len(workers) == 2
    build.send_signal(how)
    build.communicate(timeout=60)
    psutil.wait_procs(workers, timeout=20)
    assert not any(worker.is_running() for worker in workers), "no orphans"
    kept = {p: p.stat().st_mtime_ns for p in store.glob("catalogue/part-*")}
    assert 1 <= len(kept) < 12
    main(["--config", str(tmp_path / "my.yaml"), "--workers", "1"])
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "what was done is not done again"
    rebuilt = files_of(store)
    assert {name: data for name, data in rebuilt.items() if ".partial" not in name} == files_of(slow_store)


TWO = """
import sys, time
from pathlib import Path
from skyshift.datasets import shards
from skyshift.datasets.build import build_store
from skyshift.datasets.shards import BuildConfig, FieldOfView
from skyshift.datasets.sources import SnapshotSource
simulation, path, log, go = sys.argv[1:]
views_of = shards.views_of
def logged(chunks, item, config, first):
    with open(log, "a") as file:
        file.write(f"{item.number}\\n")
    return views_of(chunks, item, config, first)
shards.views_of = logged
source = SnapshotSource(simulation + "/output", 99, minimum_particles={"gas": 10, "dm": 10, "stars": 10})
config = BuildConfig(source, path, ["gas", "temperature"], 256, 16, FieldOfView(4.0, "stars"))
Path(log).touch()
while not Path(go).exists():
    time.sleep(0.001)
build_store(config, progress=False)
"""


def test_two_builds_at_once_share_the_work(tmp_path, tiny_simulation, slow_store):
    """Two processes that start at the same moment, also with making the store: whole, the same bytes, work done once.

    A claim guards nothing, so two shards may be built by both where both reach for one at the same instant.
    """
    store, logs, go = tmp_path / "maps.zarr", [tmp_path / "a.log", tmp_path / "b.log"], tmp_path / "go"
    builds = [
        subprocess.Popen([sys.executable, "-c", TWO, str(tiny_simulation), str(store), str(log), str(go)])
        for log in logs
    ]
    wait_for(lambda: all(log.exists() for log in logs))
    go.touch()
    assert [build.wait(timeout=120) for build in builds] == [0, 0]
    built = [[int(line) for line in log.read_text().split()] for log in logs]
    assert min(len(numbers) for numbers in built) >= 2, "both had a part in it"
    assert sorted({*built[0], *built[1]}) == list(range(12))
    assert len(built[0]) + len(built[1]) <= 14
    assert files_of(store) == files_of(slow_store)


def test_a_claim_lasts_as_long_as_its_builder(tmp_path):
    mine, other = (Claims(tmp_path, new_builder()) for _ in range(2))
    with mine.alive(), other.alive():
        assert other.take(3)
        assert mine.held_by_another(3)
        assert not mine.take(3)
        assert mine.take(4)
        other.release(3)
        assert mine.take(3)
        assert not other.take(3)
        assert other.take(5)
    assert not (tmp_path / "claims").exists(), "the last one tidies up"
    # What binds nobody: claims of a builder that is long silent, or of one that lost its process
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    host = socket.gethostname()
    for name, age in ((f"{host}.{dead.stdout.strip()}.x", 0.0), ("elsewhere.1.x", SILENCE + 1)):
        write_json(tmp_path / f"claims/builder-{name}.json", {"time": time.time() - age})
        write_json(tmp_path / "claims/shard-00007.json", {"builder": name})
        assert not mine.held_by_another(7)
    write_json(tmp_path / "claims/builder-elsewhere.1.x.json", {"time": time.time()})
    assert mine.held_by_another(7), "alive on another machine"
    (tmp_path / "claims/shard-00007.json").write_text("{half a cl")
    assert mine.take(7), "a claim that cannot be read is none"


DEADLY = """
import os, signal
from skyshift.datasets.domains import Domain

def quantity(galaxy, recipes, view):
    if galaxy.number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return galaxy.particles["gas"].mass

DOMAINS = [Domain("deadly", "Deadly", "Msun / kpc2", "gas", quantity)]
"""


def test_a_shard_that_kills_its_workers_stops_no_other(repository, tmp_path, tiny_simulation):
    """A domain of the user's own file ends the process at galaxy 3, as a lack of memory would: tried twice, named, and
    the eleven other shards are there."""
    (tmp_path / "my_domains.py").write_text(DEADLY)
    values = {"domains": ["gas", "deadly"], "domain_files": [str(tmp_path / "my_domains.py")], "pixels": 8}
    store = tmp_path / "maps.zarr"
    changes = {**values, "rotations": 1, "workers": 2, "retries": 1}
    build = start(repository, tmp_path, **settings(tiny_simulation, store, **changes))
    _, errors = build.communicate(timeout=120)
    assert build.returncode == 1
    assert "shard 3 (galaxies [3]) killed its worker each time it was tried" in errors
    assert "all other shards are kept" in errors
    assert "Traceback" not in errors
    assert MapStore(store).done_shards() == [shard for shard in range(12) if shard != 3]


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """A scheduler with two workers that was there before."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1") as cluster:
        yield cluster.scheduler_address


def test_workers_of_a_scheduler_build_the_same_bytes(tmp_path, tiny_simulation, slow_store, monkeypatch, scheduler):
    """The store is named by a path relative to where the command runs, which is not where the workers do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings(tiny_simulation, Path("maps.zarr"))))
    main(["--config", "my.yaml", "--scheduler", scheduler])
    assert files_of(tmp_path / "maps.zarr") == files_of(slow_store)


MINE = """
from skyshift.datasets.domains import Domain

def twice(galaxy, recipes, view):
    return {factor} * galaxy.particles["gas"].mass

DOMAINS = [Domain("twice{factor}", "Gas mass, enlarged", "Msun / kpc2", "gas", twice)]
"""


def test_relative_paths_are_those_of_the_command(tmp_path, write_cutout, arrays_of_a_cutout, monkeypatch, scheduler):
    """Cutouts, domains and kernel supports too: the workers stand elsewhere, and build the same bytes."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        write_cutout(tmp_path / f"c{number}.hdf5", arrays_of_a_cutout(number), header={"CutoutID": number})
    (tmp_path / "mine.py").write_text(MINE.format(factor=2))
    config = BuildConfig(
        CutoutSource(["c*.hdf5"]), "one.zarr", ["gas", "dm", "twice2"], 8, 2, FieldOfView(2.0, "gas"),
        domain_files=["mine.py"], smoothing="one",
    )  # fmt: skip
    one = build_store(config, progress=False)
    np.testing.assert_allclose(one.maps("twice2"), 2 * one.maps("gas"), rtol=1e-6)  # a rounding
    two = build_store(replace(config, store="two.zarr", smoothing="two", scheduler=scheduler), progress=False)
    assert not two.failures()
    assert files_of(tmp_path / "two.zarr") == files_of(tmp_path / "one.zarr")
    assert list(files_of(tmp_path / "two")) == list(files_of(tmp_path / "one")) != []


def test_domain_files_of_one_name_are_both_in_the_plan(tmp_path):
    for folder, factor in (("a", 3), ("b", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(MINE.format(factor=factor))
    files = [str(tmp_path / folder / "mine.py") for folder in "ab"]
    config = BuildConfig(CutoutSource(["c.hdf5"]), domains=["twice3", "twice5"], domain_files=files)
    held = config.plan(1)["domain_files"]
    assert held == {
        name: hashlib.sha256(Path(file).read_bytes()).hexdigest()
        for name, file in zip(("mine.py", "mine.py (2)"), files, strict=True)
    }


def test_a_stranger_cannot_reach_the_workers_of_a_local_build():
    """They run whatever they are sent: without the keys of the run nobody is let in."""
    with connect("", 1, 0) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert client.submit(sum, [1, 2]).result(timeout=30) == 3
        for stranger in (address, address.replace("tls://", "tcp://")):  # of another process, without the keys
            knock = f"from distributed import Client; Client({stranger!r}, timeout=3); print('let in')"
            answer = subprocess.run([sys.executable, "-c", knock], capture_output=True, text=True, check=False)
            assert answer.returncode != 0
            assert "let in" not in answer.stdout


def test_workers_skip_what_one_process_skips(tmp_path, write_cutout, arrays_of_a_cutout, scheduler, capsys):
    """The same galaxies for the same reasons, and the same bytes; the rest goes on."""
    for number in range(6):
        arrays = arrays_of_a_cutout(number)
        if number == 3:
            arrays["PartType0"]["Masses"][5] = np.nan
        write_cutout(tmp_path / f"c{number}.hdf5", arrays, header={"CutoutID": number})
    source, view = CutoutSource([str(tmp_path / "c*.hdf5")]), FieldOfView(2.0, "gas")
    config = BuildConfig(source, str(tmp_path / "one.zarr"), ["gas"], 8, 2, view, max_failed_share=0.2)
    one = build_store(config, progress=False)
    other = build_store(replace(config, store=str(tmp_path / "two.zarr"), scheduler=scheduler), progress=False)
    assert [failure.galaxy for failure in one.failures()] == [3]
    assert other.failures() == one.failures()
    assert other.fingerprint == one.fingerprint
    assert capsys.readouterr().err.count("WARNING: 1 of 6 galaxies could not be built") == 2


def test_a_scheduler_that_does_not_answer_is_named(capsys, tmp_path, tiny_simulation, monkeypatch):
    monkeypatch.setattr(cluster_module, "ANSWER_WITHIN", 1.0)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(settings(tiny_simulation, tmp_path / "maps.zarr")))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        for scheduler in (address, "slurm-login"):
            begun = time.monotonic()
            with pytest.raises(SystemExit):
                main(["--config", str(tmp_path / "my.yaml"), "--scheduler", scheduler])
            assert time.monotonic() - begun < 20
            assert f"error: the scheduler {scheduler} does not answer within 1 s" in capsys.readouterr().err
    assert not MapStore(tmp_path / "maps.zarr").done_shards()


def test_a_scheduler_that_wants_keys_is_said_to():
    """A TLS address without keys in Dask's configuration: a message, not distributed's TypeError."""
    knock = "from skyshift.datasets.cluster import connect; connect('tls://127.0.0.1:9', 1, 0).__enter__()"
    answer = subprocess.run([sys.executable, "-c", knock], capture_output=True, text=True, check=False)
    assert "SkyshiftError: the scheduler tls://127.0.0.1:9 cannot be reached" in answer.stderr
    assert "needs the keys of Dask's configuration" in answer.stderr
