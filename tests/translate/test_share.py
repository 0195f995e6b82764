"""A checkpoint that is given away translates as it did, says what it is, and carries nothing of this machine."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from skyshift.checkpoint import CheckpointError
from skyshift.datasets.store import MapStore
from skyshift.translate.evaluate import main as evaluate
from skyshift.translate.share import main as share
from skyshift.translate.train import main as train
from skyshift.translate.translation import Translation, find_checkpoint
from skyshift.translate.translator import Translator


@pytest.fixture(scope="module")
def run(tiny_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("share") / "run"
    AcceleratorState._reset_state(reset_partial_state=True)
    networks = "skyshift.translate.networks"
    config = {
        "data": {"store": str(tiny_store), "source": ["gas"], "target": ["hi"]},
        "method": {
            "class_path": "skyshift.translate.methods.pix2pix.Pix2Pix",
            "init_args": {
                "generator": {"class_path": f"{networks}.unet.UNet", "init_args": {"width": 4, "depth": 1}},
                "discriminator": {
                    "class_path": f"{networks}.patchgan.PatchGAN",
                    "init_args": {"width": 4, "layers": 1},
                },
            },
        },
        "training": {"steps": 4, "batch_size": 4, "precision": "no", "average": 0.9},
        "evaluation": False,
        "output": str(folder),
    }
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    train(["--config", str(path)])
    evaluate(["--checkpoint", str(folder)])
    return folder


@pytest.fixture(scope="module")
def shared_folder(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("given") / "gas_to_hi"
    share(["--checkpoint", str(run), "--output", str(folder)])
    return folder


def test_the_folder_translates_as_the_run_does(run, shared_folder, tiny_store):
    store = MapStore(tiny_store)
    wanted, found = (Translator.from_pretrained(folder)(store)["hi"] for folder in (run, shared_folder))
    np.testing.assert_array_equal(found.values, wanted.values)
    assert found.unit == wanted.unit


def test_it_holds_the_averaged_generator_and_no_judge(run, shared_folder):
    weights = load_file(shared_folder / "model.safetensors")
    average = load_file(find_checkpoint(run) / "average.safetensors")
    assert weights.keys() == {key.removeprefix("module.") for key in average if key.startswith("module.")}
    for name, value in weights.items():
        np.testing.assert_array_equal(value, average[f"module.{name}"])
    assert {path.name for path in shared_folder.iterdir()} == {
        *("README.md", "config.yaml", "model.safetensors", "translation.json")
    }


def test_judges_are_kept_where_asked_for(run, tmp_path):
    share(["--checkpoint", str(run), "--output", str(tmp_path / "all"), "--discriminators", "true"])
    assert Translator.from_pretrained(tmp_path / "all").method.discriminator is not None


def test_no_path_of_this_machine_is_given_away(run, shared_folder, tiny_store):
    for path in shared_folder.iterdir():
        content = path.read_bytes().decode("utf-8", "replace")
        assert str(run) not in content
        assert str(tiny_store.parent) not in content
    assert Translation.read(shared_folder).provenance["store"] == tiny_store.name


def test_the_card_says_units_data_and_quality(run, shared_folder):
    card = ModelCard.load(shared_folder / "README.md")  # the hub's own reader
    assert card.data.library_name == "skyshift"
    assert card.data.license == "mit"
    assert {"gas", "hi", "pix2pix"} <= set(card.data.tags)
    translation = Translation.read(shared_folder)
    for wanted in (
        *("Msun / kpc2", "asinh", translation.provenance["fingerprint"], "32 x 32 pixels", "step 4 of 4", "Pix2Pix"),
        f"{sum(value.numel() for value in load_file(shared_folder / 'model.safetensors').values()):,} parameters",
        'translator({"gas": maps_of_gas})["hi"]',
        (run / "evaluation" / "table.md").read_text().strip(),
    ):
        assert wanted in card.text, wanted


def test_a_run_that_was_not_judged_says_so(run, tmp_path, capsys):
    checkpoint = find_checkpoint(run)
    share(["--checkpoint", str(checkpoint), "--output", str(tmp_path / "given")])
    with pytest.raises(SystemExit):
        share(["--checkpoint", str(run), "--output", str(tmp_path / "other"), "--evaluation", str(tmp_path)])
    assert "holds no table.md" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        share(["--checkpoint", str(run), "--output", str(tmp_path / "given")])
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        share(["--checkpoint", str(tmp_path / "nothing"), "--output", str(tmp_path / "other")])
    assert "holds no checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_table_of_an_earlier_checkpoint_is_not_that_of_this_one(run, tmp_path, capsys):
    """A run that went on without an evaluation still holds that of where it was."""
    later = tmp_path / "run" / "checkpoints" / "step_0000009"
    shutil.copytree(find_checkpoint(run), later)
    shutil.copytree(run / "evaluation", tmp_path / "run" / "evaluation")
    share(["--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "given")])
    assert "It has not been evaluated." in (tmp_path / "given" / "README.md").read_text()
    named = ["--evaluation", str(run / "evaluation")]
    with pytest.raises(SystemExit):
        share(["--checkpoint", str(later), "--output", str(tmp_path / "other"), *named])
    assert "is not of step_0000009" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


# --- the hub


def test_without_a_network_a_hub_name_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"no folder here, and HF_HUB_OFFLINE is set.*hf download astro/gas-to-hi"
    ):
        Translator.from_pretrained("astro/gas-to-hi")


def test_a_hub_that_does_not_answer_takes_nothing_and_says_so(run, tmp_path):
    """In another process: the library reads the address of the hub once."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "skyshift.translate.share", "--checkpoint", str(run)),
            *("--output", str(tmp_path / "given"), "--push", "astro/gas-to-hi"),
        ],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "cannot be put on http://127.0.0.1:9 as astro/gas-to-hi" in result.stderr
    assert (tmp_path / "given" / "model.safetensors").is_file()


def test_a_path_below_a_folder_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("mine/run", "runs/gas_to_hi"):
        with pytest.raises(CheckpointError, match="holds no checkpoint; train one"):
            Translator.from_pretrained(name)


class Hub(http.server.BaseHTTPRequestHandler):
    """So much of the hub's interface as a download needs."""

    folder: Path
    commit = "0123456789abcdef0123456789abcdef01234567"
    asked: list[str]

    def _answer(self, body: bytes, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        files = {p.name: p.read_bytes() for p in self.folder.iterdir()} | {"weights.pkl": b"evil", "code.py": b"evil"}
        if not path.removeprefix("/api/models").startswith("/astro/gas-to-hi"):
            return self._answer(b"{}", 404, X_Error_Code="RepoNotFound")
        if "/tree/" in path:
            listed = [
                {"type": "file", "path": name, "size": len(body), "oid": f"{len(body):040x}"}
                for name, body in files.items()
            ]
            return self._answer(json.dumps(listed).encode())
        if path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in files]
            return self._answer(
                json.dumps({"id": "astro/gas-to-hi", "sha": self.commit, "siblings": siblings}).encode()
            )
        body = files[path.rpartition("/")[2]]
        return self._answer(
            body, kind="application/octet-stream", ETag=f'"{len(body):040x}"', X_Repo_Commit=self.commit
        )

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(shared_folder):
    Hub.folder, Hub.asked = shared_folder, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


LOAD = """
import sys
from skyshift.translate.translation import find_checkpoint
from skyshift.translate.translator import Translator
folder = find_checkpoint(sys.argv[1])
print(sorted(path.name for path in folder.iterdir()), Translator.from_pretrained(sys.argv[1]).target)
"""


def test_a_hub_name_fetches_weights_and_no_code(hub, tmp_path):
    """In another process: the library reads the address of the hub once."""

    def load(name, **environment):
        return subprocess.run(
            [sys.executable, "-c", LOAD, name],
            env={**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    result = load("astro/gas-to-hi")
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "['README.md', 'config.yaml', 'model.safetensors', 'translation.json'] ('hi',)"
    assert not any("weights.pkl" in path or "code.py" in path for path in Hub.asked)
    again = load("astro/gas-to-hi", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert again.returncode == 0, "what has been fetched is there without a network"
    unknown = load("astro/nothing")
    assert unknown.returncode != 0
    assert "there is no checkpoint 'astro/nothing', neither a folder here nor on" in unknown.stderr
