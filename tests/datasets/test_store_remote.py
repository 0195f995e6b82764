"""Stores on object storage: an S3 server on this machine, and fsspec's memory. What holds on a disk holds there."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer
from torch.utils.data import DataLoader

from skyshift.datasets import loading
from skyshift.datasets.build import build_store, main
from skyshift.datasets.loading import MapDataset, Split, split_views
from skyshift.datasets.scaling import fit_scaling
from skyshift.datasets.shards import BuildConfig, FieldOfView
from skyshift.datasets.sources import SnapshotSource
from skyshift.datasets.store import MapStore, StoreError
from skyshift.errors import SkyshiftError
from skyshift.files import location, write_folder_whole, write_json, write_whole
from skyshift.translate.data import one_thread

FEW = {"gas": 10, "dm": 10, "stars": 10}
KEY, SECRET = "AKIATESTTESTTESTTEST", "a-secret-that-must-be-nowhere"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of an S3 server on a free port."""
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(server, monkeypatch) -> str:
    """An empty bucket; keys and address are in the environment, where workers find them too."""
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    name = "maps"
    client.create_bucket(Bucket=name)
    for entry in client.list_objects_v2(Bucket=name).get("Contents", []):
        client.delete_object(Bucket=name, Key=entry["Key"])
    return f"s3://{name}"


def objects(bucket: str) -> dict[str, bytes]:
    """All that the server holds, asked with another client."""
    client, name = boto3.client("s3"), bucket.removeprefix("s3://")
    found = client.list_objects_v2(Bucket=name).get("Contents", [])
    return {e["Key"]: client.get_object(Bucket=name, Key=e["Key"])["Body"].read() for e in found}


def config(simulation: Path, path: str, **changes) -> BuildConfig:
    """Six galaxies in six shards of two domains."""
    source = SnapshotSource(str(simulation / "output"), 99, minimum_particles=FEW, limit=6)
    values = {"domains": ["gas", "hi"], "pixels": 16, "rotations": 2, "field_of_view": FieldOfView(4.0, "stars")}
    return BuildConfig(source, path, **(values | changes))


@pytest.fixture(scope="module")
def local_store(tiny_simulation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on a disk."""
    path = tmp_path_factory.mktemp("local") / "maps.zarr"
    build_store(config(tiny_simulation, str(path)), progress=False)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_store_on_s3_is_the_one_on_disk(bucket, tiny_simulation, local_store):
    """Two workers: object for object the files of a build on disk; no key in any; read and trained on as any store."""
    path = f"{bucket}/deep/maps.zarr"
    store = build_store(config(tiny_simulation, path, workers=2), progress=False)
    local = MapStore(local_store)
    held = {key.removeprefix("deep/maps.zarr/"): data for key, data in objects(bucket).items()}
    assert held == files_of(local_store)
    assert not [key for key, data in held.items() if SECRET.encode() in data or KEY.encode() in data]
    again = MapStore(path)
    assert again.complete
    assert again.fingerprint == local.fingerprint == store.fingerprint
    assert again.records() == local.records()
    assert again.verify() == {}
    for views in (None, [3], [11, 0, 7, 7]):
        np.testing.assert_array_equal(again.maps("hi", views), local.maps("hi", views))
    parts = split_views(again.catalogue(), Split(0.5, 0.25, 0.25))
    scalings = {name: fit_scaling("asinh", local.maps(name, parts["train"])) for name in ("gas", "hi")}
    there, here = (MapDataset(s, ["gas"], ["hi"], parts["train"], scalings) for s in (again, local))
    view = int(parts["train"][0])
    np.testing.assert_array_equal(there[view]["source"].numpy(), here[view]["source"].numpy())
    with pytest.raises(StoreError, match="was built with pixels = 16, this configuration says 8"):
        build_store(config(tiny_simulation, path, pixels=8), progress=False)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_loader_workers_read_from_s3_after_their_parent_did(bucket, tiny_simulation, local_store, start):
    """What the parent opened belongs to its event loop; each worker opens the store anew. Nothing is held in memory."""
    store = build_store(config(tiny_simulation, f"{bucket}/maps.zarr"), progress=False)
    local = MapStore(local_store)
    scalings = {name: fit_scaling("asinh", store.maps(name)) for name in ("gas", "hi")}  # a read in the parent
    views = np.arange(12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "MEMORY_LIMIT", 0)
        data = MapDataset(store, ["gas"], ["hi"], views, scalings)
    wanted = MapDataset(local, ["gas"], ["hi"], views, scalings)
    loader = DataLoader(
        data, batch_size=3, num_workers=2, multiprocessing_context=start, worker_init_fn=one_thread, timeout=60
    )
    batches = list(loader)
    assert [view for batch in batches for view in batch["view"].tolist()] == list(range(12))
    for batch in batches:
        for row, view in enumerate(batch["view"].tolist()):
            np.testing.assert_array_equal(batch["target"][row].numpy(), wanted[view]["target"].numpy())


KILLED = """
import os, signal, sys
import pyarrow.parquet as pq
from skyshift.datasets.build import build_store
from skyshift.datasets.shards import BuildConfig, FieldOfView
from skyshift.datasets.sources import SnapshotSource
simulation, path = sys.argv[1:]
write, calls = pq.write_table, []
def write_table(table, side):
    calls.append(side)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    write(table, side)
pq.write_table = write_table
source = SnapshotSource(simulation + "/output", 99, minimum_particles={"gas": 10, "dm": 10, "stars": 10}, limit=6)
build_store(BuildConfig(source, path, ["gas", "hi"], 16, 2, FieldOfView(4.0, "stars")), progress=False)
"""


def test_a_killed_build_on_s3_goes_on(bucket, tiny_simulation, local_store):
    """SIGKILL between the maps of the fourth shard and its part: three stay as they are, the rest is built."""
    path = f"{bucket}/maps.zarr"
    done = subprocess.run([sys.executable, "-c", KILLED, str(tiny_simulation), path], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    store = MapStore(path)
    assert store.done_shards() == [0, 1, 2]
    assert "maps.zarr/maps/gas/c/3/0/0" in objects(bucket), "the maps are there, the mark is not"
    with pytest.raises(StoreError, match="3 of 6 shards are missing"):
        store.require_complete()
    client = boto3.client("s3")
    before = client.head_object(Bucket="maps", Key="maps.zarr/catalogue/part-00002.parquet")["LastModified"]
    build_store(config(tiny_simulation, path), progress=False)
    assert client.head_object(Bucket="maps", Key="maps.zarr/catalogue/part-00002.parquet")["LastModified"] == before, (
        "what was done is not written again"
    )
    held = {key.removeprefix("maps.zarr/"): data for key, data in objects(bucket).items()}
    assert held == files_of(local_store)


def test_a_bucket_that_does_not_exist(bucket, tiny_simulation, capsys):
    with pytest.raises(SkyshiftError, match=r"s3://nobody/maps\.zarr cannot be reached .*check that the bucket exists"):
        build_store(config(tiny_simulation, "s3://nobody/maps.zarr"), progress=False)
    with pytest.raises(SkyshiftError, match=r"s3://nobody/maps\.zarr"):
        MapStore("s3://nobody/maps.zarr")
    with pytest.raises(StoreError, match=r"s3://maps/nothing\.zarr is no map store; build one"):
        MapStore(f"{bucket}/nothing.zarr")


def test_no_keys_and_no_server_are_said_without_a_key(bucket, tiny_simulation, monkeypatch, tmp_path):
    """No credentials at all; then a server that is not there. The message names the variables, never their values."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(SkyshiftError, match=r"cannot be reached .*AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY") as caught:
        build_store(config(tiny_simulation, f"{bucket}/maps.zarr"), progress=False)
    assert "redential" in str(caught.value)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(SkyshiftError, match=r"s3://maps/maps\.zarr cannot be reached") as caught:
            MapStore(f"{bucket}/maps.zarr")
    assert KEY not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_memory(tiny_simulation, local_store, capsys):
    """fsspec's memory, for notebooks; other processes do not see it, so there is no building in them."""
    path = "memory://here/maps.zarr"
    store = build_store(config(tiny_simulation, path), progress=False)
    local = MapStore(local_store)
    assert store.fingerprint == local.fingerprint
    np.testing.assert_array_equal(MapStore(path).maps("gas", [5, 2]), local.maps("gas", [5, 2]))
    assert store.catalogue()["name"].tolist() == local.catalogue()["name"].tolist()
    with pytest.raises(SkyshiftError, match="memory:// is seen by this process alone; build with --workers 1"):
        build_store(config(tiny_simulation, "memory://there/maps.zarr", workers=2), progress=False)


def test_files_and_folders_are_whole_there_too(bucket):
    """Nothing is sent before the block ends well; a folder's own mark is sent last."""
    place = location(f"{bucket}/a/result.json")
    write_json(place, {"a": 1})

    def interrupted(write):
        with write as side:
            (side / "mark" if side.is_dir() else side).write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(write_whole(place))
    assert place.read_text() == '{\n  "a": 1\n}\n'
    with pytest.raises(KeyboardInterrupt):
        interrupted(write_folder_whole(f"{bucket}/folder"))
    assert set(objects(bucket)) == {"a/result.json"}
    with write_folder_whole(f"{bucket}/folder") as folder:
        (folder / "mark").write_text("x")
        (folder / "deep/er").mkdir(parents=True)
        (folder / "deep/er/file").write_text("y")
    assert set(objects(bucket)) == {"a/result.json", "folder/mark", "folder/deep/er/file"}


def test_addresses(tmp_path):
    """What is no address is a path, whatever it looks like; file:// is one as well."""
    assert location(str(tmp_path)) == location(f"file://{tmp_path}") == location(tmp_path) == tmp_path
    assert isinstance(location("relative/maps.zarr"), Path)
    assert isinstance(location("C:/maps.zarr"), Path)
    assert str(location("s3://bucket/a/maps.zarr/")) == "s3://bucket/a/maps.zarr"
    with pytest.raises(SkyshiftError, match=r"foo://b/maps\.zarr: foo:// cannot be reached"):
        location("foo://b/maps.zarr")


def test_the_command_line_takes_an_address(bucket, tiny_simulation, tmp_path, capsys):
    source = ["--source", "SnapshotSource", "--source.base_path", str(tiny_simulation / "output")]
    source += ["--source.minimum_particles", '{"gas": 10, "dm": 10, "stars": 10}', "--source.limit", "2"]
    (tmp_path / "none.yaml").write_text("pixels: 8\n")
    where = ["--store", f"{bucket}/cli.zarr"]
    main(["--config", str(tmp_path / "none.yaml"), *source, *where, "--domains", "[gas]", "--rotations", "1"])
    output = capsys.readouterr()
    assert f"{bucket}/cli.zarr: 2 views of gas, 8 pixels a side" in output.out
    assert SECRET not in output.out + output.err
    part = location(f"{bucket}/cli.zarr/catalogue/part-00000.parquet")
    with part.open("rb") as file:
        assert pq.read_table(file).num_rows == 1
