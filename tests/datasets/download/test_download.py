"""The command as a person runs it: real processes, what they leave behind, and what the next one does with it."""

import hashlib
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from skyshift.datasets.cutout_facts import cutout_facts, facts_path
from skyshift.datasets.cutout_fields import plan_fields
from skyshift.datasets.cutouts import CutoutFetcher, fetch_all, sole_use
from skyshift.datasets.download import DownloadConfig, download, main
from skyshift.datasets.sources import CutoutSource
from skyshift.datasets.store import MapStore
from skyshift.datasets.tng_api import TngService
from skyshift.datasets.tng_connections import Politeness
from skyshift.datasets.tng_key import Key
from skyshift.datasets.tng_web import Web

GAS = {"gas": "Coordinates,Masses,Density"}
WAITS = {"requests_per_second": 200.0, "attempts": 3, "backoff": 0.01, "longest_wait": 2.0, "read_timeout": 5.0}


@pytest.fixture(autouse=True)
def environment(service, tmp_path, monkeypatch):
    """The key in the variable, an empty home, and the folder that the command runs in."""
    monkeypatch.setenv("TNG_API_KEY", service.key)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TNG_API_URL", raising=False)
    monkeypatch.chdir(tmp_path)


def arguments(service, *more: str) -> list[str]:
    """A command line for the test's server: all galaxies' gas, and short waits."""
    polite = [f"--politeness.{name}={value}" for name, value in WAITS.items()]
    where = ["--base_url", service.url, "--snapshot", "50", "--output", "cutouts"]
    return [*where, "--domains", "[gas]", "--minimum_mass", "{}", "--limit", "0", *polite, *more]


def start(repository: Path, *command: str) -> "subprocess.Popen[str]":
    line = [sys.executable, str(repository / "datasets/download.py"), *command]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(repository: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    with start(repository, *command) as process:
        out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def name_of(number: int) -> str:
    return f"TNG100-1_050_{number:08d}.hdf5"


def cutouts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.hdf5"))}


def everything(folder: Path) -> bytes:
    """The names and bytes of all files, hidden ones too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return b"".join(str(path).encode() + path.read_bytes() for path in files)


def failure(capsys, command: list[str]) -> str:
    """Run the command in this process; the message with which it fails."""
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 1
    return capsys.readouterr().err


# a whole run


def test_from_the_service_to_a_store_of_maps(repository, service, tmp_path):
    """Two real commands; the gas in the maps is the gas of the cutouts, to what lies outside the field of view."""
    for number in range(3):
        service.add(number, gas=300)
    done = run(repository, *arguments(service, "--domains", "[gas, hi]", "--limit", "3"))
    assert done.returncode == 0, done.stderr
    assert "cutouts: 3 cutouts fetched" in done.stdout
    assert "0 failed; 0 requests were repeated" in done.stdout
    settings = ["--config", str(repository / "configs/datasets/tng_cutouts.yaml"), "--store", "maps.zarr"]
    view = ["--field_of_view.kpc", "30", "--field_of_view.radii", "0.5", "--pixels", "16", "--rotations", "2"]
    source = ["--source.init_args.files", "['cutouts/*.hdf5']"]
    build = [sys.executable, str(repository / "datasets/build.py"), *settings, *source, *view]
    built = subprocess.run(build, capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stderr
    store = MapStore("maps.zarr")
    assert (store.views, store.domains) == (6, ("gas", "hi")) or (store.views, list(store.domains)) == (
        6,
        ["gas", "hi"],
    )
    gas = store.maps("gas").sum(axis=(1, 2), dtype=np.float64) * (30 / 16) ** 2
    for number in range(3):
        galaxy = CutoutSource(["cutouts/*.hdf5"]).read(number, {"gas": set()})
        assert 0.5 < gas[2 * number] / galaxy.particles["gas"].mass.sum() <= 1 + 1e-5


def test_what_a_run_leaves(service, tmp_path):
    """The bytes that were served, their checksums in two places, and the catalogue's entry beside each."""
    outcomes = download_here(service)
    assert [outcome.state for outcome in outcomes] == ["fetched"] * 6
    files = cutouts(tmp_path / "cutouts")
    assert files == {name_of(number): service.cutout(number, GAS) for number in range(6)}
    manifest = json.loads((tmp_path / "cutouts/manifest.json").read_text())
    for number, (name, body) in enumerate(files.items()):
        digest = hashlib.sha256(body).hexdigest()
        listed = {"simulation": "TNG100-1", "snapshot": 50, "subhalo": number, "size": len(body), "sha256": digest}
        assert manifest["files"][name] == listed
        facts = cutout_facts(tmp_path / "cutouts" / name)
        assert (facts.subhalo, facts.sha256, facts.sfr) == (number, digest, float(number))
        assert facts.fields == {"gas": ["Coordinates", "Masses", "Density"]}
        assert facts.url.endswith(
            f"/TNG100-1/snapshots/50/subhalos/{number}/cutout.hdf5?gas=Coordinates,Masses,Density"
        )
    assert manifest["last_run"]["states"] == {"fetched": 6}
    names = {path.name for path in (tmp_path / "cutouts").iterdir()}
    assert names == {*files, *(facts_path(name).name for name in files), "manifest.json", ".lock"}


def download_here(service, **settings):
    given = {"snapshot": 50, "domains": ["gas"], "output": "cutouts", "base_url": service.url}
    return download(DownloadConfig(**given | {"politeness": Politeness(**WAITS)} | settings), progress=False)


def test_named_subhaloes_and_a_list_alone(service, capsys):
    assert sorted(outcome.subhalo for outcome in download_here(service, subhalos=[4, 2, 4])) == [2, 4]
    main(arguments(service, "--minimum_mass", "{stars: 3e10}", "--list_only", "true"))
    # 10 / (n + 1) in 1e10 Msun/h is above 3e10 Msun, 2.03 in that unit, for n up to 3
    assert capsys.readouterr().out.split() == ["0", "1", "2", "3"]
    assert len(service.requests("cutout.hdf5")) == 2


# going on


def test_a_second_run_asks_for_nothing_that_is_there(service, tmp_path):
    download_here(service)
    asked = len(service.seen)
    outcomes = download_here(service)
    assert {outcome.state for outcome in outcomes} == {"present"}
    assert [seen.path.removeprefix("/api/TNG100-1/") for seen in service.seen[asked:]] == [
        "", "snapshots/50/", "snapshots/50/subhalos/", "snapshots/50/subhalos/"
    ]  # fmt: skip
    assert cutouts(tmp_path / "cutouts") == {name_of(number): service.cutout(number, GAS) for number in range(6)}


@pytest.mark.parametrize("what", ["bytes", "size", "facts", "no facts", "gone"])
def test_what_is_not_whole_is_fetched_again_and_nothing_else(service, tmp_path, what):
    download_here(service)
    path = tmp_path / "cutouts" / name_of(2)
    if what == "bytes":
        body = bytearray(path.read_bytes())
        body[len(body) // 2] ^= 1
        path.write_bytes(body)
    elif what == "size":
        path.write_bytes(path.read_bytes()[:-10])
    elif what == "facts":
        facts_path(path).write_text("{")
    else:
        (facts_path(path) if what == "no facts" else path).unlink()
    asked = len(service.requests("cutout.hdf5"))
    states = {outcome.subhalo: outcome.state for outcome in download_here(service)}
    assert states == {number: "fetched" if number == 2 else "present" for number in range(6)}
    assert [seen.path.split("/")[-2] for seen in service.requests("cutout.hdf5")[asked:]] == ["2"]
    assert path.read_bytes() == service.cutout(2, GAS)


def test_a_run_for_fewer_fields_is_content_and_one_for_more_is_not(service, tmp_path):
    download_here(service, domains=["gas", "stars"], limit=2)
    assert {outcome.state for outcome in download_here(service, limit=2)} == {"present"}
    assert {outcome.state for outcome in download_here(service, domains=["gas", "hi"], limit=2)} == {"fetched"}


def test_killed_between_the_facts_and_the_name(service, tmp_path):
    """The only moment at which a whole file has no name: it gets it, without a request."""
    download_here(service)
    path = tmp_path / "cutouts" / name_of(2)
    path.rename(path.with_name(f".{path.name}.part"))
    asked = len(service.requests("cutout.hdf5"))
    assert {outcome.state for outcome in download_here(service)} == {"present"}
    assert len(service.requests("cutout.hdf5")) == asked
    assert path.read_bytes() == service.cutout(2, GAS)


def test_killed_half_way_nothing_is_fetched_twice_and_nothing_is_lost(repository, service, tmp_path):
    """SIGKILL while some files are whole and others half here: the next run fetches the rest, byte for byte."""
    for number in range(6):
        service.add(number, gas=9000)
    service.pause = 0.02
    process = start(repository, *arguments(service, "--politeness.connections", "2"))
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "cutouts").glob("*.hdf5"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    while not any(part.stat().st_size > 70000 for part in (tmp_path / "cutouts").glob(".*.part")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    parts = {part.name[1:-5]: part.stat().st_size for part in (tmp_path / "cutouts").glob(".*.part")}
    whole = cutouts(tmp_path / "cutouts")
    assert 2 <= len(whole) < 6
    assert not set(whole) & set(parts)
    service.pause = 0.0
    first = len(service.seen)
    done = run(repository, *arguments(service))
    assert done.returncode == 0, done.stderr
    assert f"{6 - len(whole)} cutouts fetched" in done.stdout
    assert f"{len(whole)} were there" in done.stdout
    assert cutouts(tmp_path / "cutouts") == {name_of(number): service.cutout(number, GAS) for number in range(6)}
    for seen in service.seen[first:]:
        if seen.path.endswith("cutout.hdf5"):
            name = name_of(int(seen.path.split("/")[-2]))
            assert name not in whole
            start_byte = int(seen.headers.get("range", "bytes=0-")[6:-1])
            assert start_byte == parts.get(name, 0)
    assert any("range" in seen.headers for seen in service.seen[first:])
    assert not list((tmp_path / "cutouts").glob(".*.part*"))
    assert len(json.loads((tmp_path / "cutouts/manifest.json").read_text())["files"]) == 6


def test_an_interrupt_ends_at_once_and_keeps_what_is_there(repository, service, faults, tmp_path):
    """Two galaxies come, the others hang: Ctrl-C is not kept waiting by them, and the manifest is written."""
    for number in range(2, 6):
        service.misbehave(f"{number}/cutout.hdf5", [faults.slow(100.0)])
    process = start(repository, *arguments(service, "--politeness.connections", "6", "--politeness.read_timeout", "90"))
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "cutouts").glob("*.hdf5"))) < 2 or len(service.requests("cutout.hdf5")) < 6:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    start_of_end = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - start_of_end < 5.0
    assert process.returncode == 130
    assert "interrupted; what is done is kept" in err
    assert "Traceback" not in err
    assert set(cutouts(tmp_path / "cutouts")) == {name_of(0), name_of(1)}
    assert set(json.loads((tmp_path / "cutouts/manifest.json").read_text())["files"]) == {name_of(0), name_of(1)}


def test_no_thread_is_left_behind(service, quick, faults, tmp_path):
    """An error in the caller's own loop ends the threads that wait for the server as well."""
    service.misbehave("cutout.hdf5", itertools.chain([faults.status(404)], itertools.repeat(faults.slow(60.0))))

    def interrupt(outcome):
        raise KeyboardInterrupt

    with Web(service.url, Key(service.key), quick) as web:
        tng = TngService(web)
        fetcher = CutoutFetcher(tng, tng.snapshot("TNG100-1", 50), plan_fields(["gas"], "TNG100-1", 50), tmp_path)
        start_of_end = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            fetch_all(fetcher, range(6), interrupt, progress=False)
    deadline = time.monotonic() + 2.0
    while any(thread.name.startswith("cutout") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert time.monotonic() - start_of_end < 3.0


def test_two_downloads_keep_out_of_each_others_way(service, capsys):
    with sole_use(Path("cutouts")):
        assert "another download is at work in cutouts; wait for its end" in failure(capsys, arguments(service))
    main(arguments(service))


# failures


def test_what_fails_for_one_is_recorded_and_the_rest_goes_on(service, faults, capsys, tmp_path):
    """HTTP 404, a file that stays damaged, one of another subhalo, 5xx: four reasons; two come, after a retry."""
    service.misbehave("0/cutout.hdf5", [faults.status(404)])
    service.misbehave("1/cutout.hdf5", itertools.repeat(faults.replace(lambda body: body[: len(body) // 2])))
    service.misbehave("2/cutout.hdf5", itertools.repeat(faults.replace(lambda body: service.cutout(3, GAS))))
    service.misbehave("3/cutout.hdf5", itertools.repeat(faults.status(502)))
    service.misbehave("4/cutout.hdf5", [faults.status(500), faults.drop])
    said = failure(capsys, arguments(service))
    assert "error: 4 of 6 cutouts could not be had (" in said
    assert "the same command tries these again" in said
    assert set(cutouts(tmp_path / "cutouts")) == {name_of(4), name_of(5)}
    failed = json.loads((tmp_path / "cutouts/manifest.json").read_text())["last_run"]["failed"]
    assert set(failed) == {"0", "1", "2", "3"}
    assert "HTTP 404 (Not Found)" in failed["0"]
    assert "no sound HDF5 snapshot" in failed["1"]
    assert "tried 3 times" in failed["1"]
    assert "of snapshot and subhalo (50, 3), not (50, 2)" in failed["2"]
    assert "HTTP 502 (Bad Gateway); tried 3 times" in failed["3"]
    service.faults.clear()
    main(arguments(service))
    assert "4 cutouts fetched" in (said := capsys.readouterr().out)
    assert "2 were there" in said


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_key_stops_all_and_keeps_the_rest(service, faults, capsys, tmp_path, code):
    """The key is withdrawn after two cutouts: at most one further request a connection, and no retries."""
    refuse = itertools.chain([faults.slow(0.0)] * 2, itertools.repeat(faults.status(code)))
    service.misbehave("cutout.hdf5", refuse)
    said = failure(capsys, arguments(service, "--politeness.connections", "2"))
    assert f"refuses the key (HTTP {code}); compare it with the one shown at" in said
    assert len(cutouts(tmp_path / "cutouts")) == 2
    assert len(service.requests("cutout.hdf5")) <= 2 + 2
    assert set(json.loads((tmp_path / "cutouts/manifest.json").read_text())["files"]) == {name_of(0), name_of(1)}


def test_a_service_that_is_down_is_left_alone(service, faults, capsys, tmp_path):
    """A hundred galaxies: after so many failures in a row the rest is not asked for."""
    for number in range(100):
        service.add(number)
    service.misbehave("cutout.hdf5", itertools.repeat(faults.status(503)))
    said = failure(capsys, arguments(service))
    assert "8 requests in a row failed, the last one with:" in said
    assert "what has come is kept, try again later" in said
    assert len(service.requests("cutout.hdf5")) <= 3 * (8 + 4)


def test_a_galaxy_without_such_particles_is_left_out_without_complaint(service, capsys, tmp_path):
    service.add(2, gas=0)
    main(arguments(service))
    assert "5 cutouts fetched" in (said := capsys.readouterr().out)
    assert "1 subhaloes have no such particles, 0 failed" in said
    assert json.loads((tmp_path / "cutouts/manifest.json").read_text())["last_run"]["empty"] == [2]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--domains", "[gas, temprature]"], "unknown domain 'temprature'. Did you mean 'temperature'?"),
        (["--simulation", "TNG10-1"], "unknown simulation 'TNG10-1'. Did you mean 'TNG100-1'?"),
        (["--simulation", "../TNG"], "simulation must be a name such as TNG100-1, not '../TNG'"),
        (["--snapshot", "100"], "TNG100-1 has no snapshot 100"),
        (["--snapshot", "-1"], "numbers from 0 on"),
        (["--subhalos", "[3, -1]"], "numbers from 0 on"),
        (["--minimum_mass", "{stars: 1e20}"], "no subhalo of TNG100-1, snapshot 50, passes the selection"),
        (["--base_url", "http://tng.example/api"], "use https://"),
        (["--key_file", "nowhere"], "the key file nowhere does not exist"),
        (["--politeness.connections", "0"], "politeness.connections must be at least 1"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_fetched(service, capsys, tmp_path, more, words):
    assert words in failure(capsys, arguments(service, *more))
    assert not service.requests("cutout.hdf5")
    assert not (tmp_path / "cutouts").exists()


def test_a_full_disk_stops_with_its_cause_and_the_next_run_goes_on(repository, service, tmp_path):
    """A limit of 100 kB a file stands for the disk; two of the cutouts are larger."""
    for number in (2, 4):
        service.add(number, gas=9000)
    script = f'ulimit -f 100; exec {sys.executable} {repository / "datasets/download.py"} "$@"'
    line = ["bash", "-c", script, "-", *arguments(service, "--politeness.connections", "1")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "error: no space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert set(cutouts(tmp_path / "cutouts")) == {name_of(0), name_of(1)}
    done = run(repository, *arguments(service))
    assert done.returncode == 0, done.stderr
    assert cutouts(tmp_path / "cutouts") == {name_of(number): service.cutout(number, GAS) for number in range(6)}


# mini snapshots


def test_a_mini_snapshot_is_asked_for_what_it_has(service, capsys, tmp_path):
    """The server, like the real one, has no NeutralHydrogenAbundance at snapshot 51; it is never asked for it."""
    service.lacking = {"NeutralHydrogenAbundance"}
    main(arguments(service, "--snapshot", "51", "--domains", "[gas, hi]", "--limit", "2"))
    said = capsys.readouterr().out
    assert "2 cutouts fetched" in said
    assert "without NeutralHydrogenAbundance: snapshot 51 of TNG100-1 is a mini snapshot; instead: neutral" in said
    assert not [seen for seen in service.seen if seen.status == 400]
    facts = cutout_facts(tmp_path / "cutouts/TNG100-1_051_00000000.hdf5")
    assert "instead: neutral fractions" in facts.dropped["NeutralHydrogenAbundance"]


def test_an_optional_field_that_is_refused_is_dropped_once_for_all(service, capsys, tmp_path):
    """Whether mini snapshots have StellarHsml is not known beforehand: HTTP 400, one look for the culprit, and on."""
    service.lacking = {"StellarHsml"}
    main(arguments(service, "--domains", "[stars]", "--politeness.connections", "1"))
    said = capsys.readouterr().out
    assert "6 cutouts fetched" in said
    assert "without StellarHsml: the service refuses it (HTTP 400) for snapshot 50 of TNG100-1; instead:" in said
    refused = [seen for seen in service.requests("cutout.hdf5") if seen.status == 400]
    assert len(refused) == 2  # the first cutout, and the field by itself
    assert len(service.requests("cutout.hdf5")) == 1 + 4 + 6
    assert cutout_facts(tmp_path / "cutouts" / name_of(5)).fields == {
        "stars": ["Coordinates", "Masses", "GFM_StellarFormationTime"]
    }
    main(arguments(service, "--domains", "[stars]"))
    assert "0 cutouts fetched" in (said := capsys.readouterr().out)
    assert "6 were there" in said


def test_a_field_that_is_needed_and_refused_stops_with_its_domain(service, capsys):
    service.lacking = {"MagneticField"}
    said = failure(capsys, arguments(service, "--domains", "[gas, bfield]"))
    assert "(HTTP 400) for snapshot 50 of TNG100-1: it has no MagneticField, which is needed for bfield, and" in said
    assert "choose a full snapshot or other domains" in said


def test_http_400_that_no_field_is_to_blame_for(service, faults, capsys, tmp_path):
    """Refused for one subhalo: looked into once, recorded, and the others come."""
    service.misbehave("2/cutout.hdf5", [faults.status(400, "no such object")])
    failure(capsys, arguments(service))
    failed = json.loads((tmp_path / "cutouts/manifest.json").read_text())["last_run"]["failed"]
    assert "HTTP 400 (Bad Request): no such object" in failed["2"]
    assert len(cutouts(tmp_path / "cutouts")) == 5
    service.misbehave("2/cutout.hdf5", itertools.repeat(faults.status(400)))  # each field by itself, too
    assert "1 of 6 cutouts could not be had (2: HTTP 400" in failure(capsys, arguments(service))
    assert len(cutouts(tmp_path / "cutouts")) == 5


# the key


def test_the_key_is_nowhere(repository, service, new_service, faults, tmp_path):
    """In no output and no file of a run that meets every misfortune, though the server repeats it in its answers."""
    data = new_service()
    data.guarded = False
    for number in range(6):
        data.add(number)
    service.misbehave("0/cutout.hdf5", [faults.status(404, f"not for {service.key}")])
    service.misbehave("1/cutout.hdf5", itertools.repeat(faults.status(500, service.key)))
    service.misbehave("2/cutout.hdf5", [faults.redirect(data.url)])
    service.misbehave("3/cutout.hdf5", [faults.truncate(100), faults.drop])
    done = run(repository, *arguments(service))
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "2 of 6 cutouts could not be had" in said
    service.misbehave("TNG100-1/", [faults.status(403, service.key)])
    refused = run(repository, *arguments(service))
    assert refused.returncode == 1
    dump = run(repository, *arguments(service), "--print_config")
    assert "base_url" in dump.stdout
    for text in (said, refused.stdout + refused.stderr, dump.stdout + dump.stderr):
        assert service.key not in text
        assert "secret-of-the-data-server" not in text
        assert "Traceback" not in text
    left = everything(tmp_path)
    assert name_of(2).encode() in left
    assert service.key.encode() not in left
    assert b"secret-of-the-data-server" not in left
    assert [seen.path for seen in data.seen] == ["/api/TNG100-1/snapshots/50/subhalos/2/cutout.hdf5"]
    assert service.key not in str(data.seen)


def test_the_key_comes_from_a_private_file(service, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("TNG_API_KEY")
    path = tmp_path / "key"
    path.write_text(service.key + "\n")
    path.chmod(0o644)
    said = failure(capsys, arguments(service, "--key_file", str(path)))
    assert f"run: chmod 600 {path}" in said
    assert not service.seen
    path.chmod(0o600)
    main(arguments(service, "--key_file", str(path), "--limit", "1"))
    monkeypatch.setenv("TNG_API_URL", service.url)
    assert "there is no TNG API key: set TNG_API_KEY" in failure(capsys, arguments(service))
