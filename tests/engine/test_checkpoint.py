"""State in files: exact round trips, and no class but this package's unless it is trusted."""

import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from skyshift.checkpoint import (
    CheckpointError,
    load_tensors,
    make,
    pack_optimizer,
    random_state,
    save_tensors,
    set_random_state,
    unpack_optimizer,
)
from skyshift.translate.networks.unet import UNet

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.5, 0.999), weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    "plain": lambda p: torch.optim.SGD(p, lr=1e-2),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def train(net, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.arange(8.0).reshape(2, 4)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_exactly_after_a_file(tmp_path, name):
    straight = network()
    optimizer = OPTIMIZERS[name](straight.parameters())
    train(straight, optimizer, 3)
    save_tensors(tmp_path / "state.safetensors", *pack_optimizer(optimizer))
    save_tensors(tmp_path / "weights.safetensors", straight.state_dict())
    train(straight, optimizer, 3)

    again = network()
    again.load_state_dict(load_tensors(tmp_path / "weights.safetensors")[0])
    other = OPTIMIZERS[name](again.parameters())
    unpack_optimizer(other, *load_tensors(tmp_path / "state.safetensors"))
    train(again, other, 3)
    for key, value in straight.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    one, two = optimizer.state_dict(), other.state_dict()
    assert one["param_groups"] == two["param_groups"]
    assert one["state"].keys() == two["state"].keys()
    for index, entries in one["state"].items():
        assert entries.keys() == two["state"][index].keys()
        for key, value in entries.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(two["state"][index][key])) or value is None


def test_another_networks_optimizer_is_refused(tmp_path):
    net = network()
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    train(net, optimizer, 1)
    with pytest.raises(ValueError, match="parameter group"):
        unpack_optimizer(OPTIMIZERS["adamw"](nn.Linear(2, 2).parameters()), *pack_optimizer(optimizer))


def draws():
    # The global generators are what a user's own method may draw from.
    return (torch.rand(5).tolist(), torch.randn(3).tolist(), np.random.normal(size=3).tolist(), random.random())  # noqa: NPY002


def test_random_generators_go_on_exactly_after_a_file(tmp_path):
    torch.manual_seed(1)
    np.random.seed(2)  # noqa: NPY002
    random.seed(3)
    np.random.normal()  # noqa: NPY002 leaves the second of a pair of normal numbers behind
    save_tensors(tmp_path / "random.safetensors", *random_state())
    wanted = draws()
    draws()
    set_random_state(*load_tensors(tmp_path / "random.safetensors"))
    assert draws() == wanted


def test_tensors_and_facts_come_back_exactly(tmp_path):
    # One tensor in two places, a transposed one, and every kind of number that a state holds.
    shared = torch.randn(3, 4)
    tensors = {
        "a": shared,
        "b": shared,
        "turned": torch.randn(4, 3).T,
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 2),
        "half": torch.randn(2).bfloat16(),
    }
    facts = {"lr": 0.1, "betas": [0.5, 0.999], "foreach": None, "text": "HI → ü"}
    save_tensors(tmp_path / "x.safetensors", tensors, facts)
    found, said = load_tensors(tmp_path / "x.safetensors")
    assert said == facts
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("content", [b"", b"\x80\x04not safetensors", b"PK\x03\x04" + b"\0" * 100])
def test_what_is_no_safetensors_file_is_named(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path} is damaged"):
        load_tensors(path)


# --- classes by name


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("os.system", "trust_remote_code=True"),
        ("subprocess.Popen", "trust_remote_code=True"),
        ("torch.nn.Linear", "trust_remote_code=True"),
        ("builtins.eval", "trust_remote_code=True"),
        ("eval", "trust_remote_code=True"),
        ("skyshiftevil.Class", "trust_remote_code=True"),
        ("skyshift.engine.os.system", "cannot be imported"),
        ("skyshift.nothing.Class", "cannot be imported"),
        ("skyshift.engine.Nothing", "cannot be imported"),
        ("skyshift.checkpoint.Path", "no class defined there"),
        ("skyshift.engine.Accelerator", "no class defined there"),
        ("skyshift.checkpoint.load_tensors", "no class defined there"),
        ("skyshift.engine.os", "no class defined there"),
    ],
)
def test_foreign_code_is_refused(path, says):
    node = {"class_path": path, "init_args": {"args": ["true"]}}
    with pytest.raises(CheckpointError) as error:
        make(node)
    assert f"the checkpoint names {path}" in str(error.value)
    assert says in str(error.value)
    with pytest.raises(CheckpointError, match="the checkpoint names"):  # however deep
        make({"class_path": "skyshift.translate.networks.unet.UNet", "init_args": {"norm": [{"x": node}]}})


@pytest.mark.parametrize("path", [3, None, ["os.system"]])
def test_a_class_path_that_is_no_text_is_refused(path):
    with pytest.raises(CheckpointError, match="the checkpoint names"):
        make({"class_path": path})


def test_nothing_is_imported_of_what_is_not_trusted(tmp_path, monkeypatch):
    (tmp_path / "untrusted_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match=r"untrusted_module\.Thing, which is not part of skyshift"):
        make({"class_path": "untrusted_module.Thing"})
    assert "untrusted_module" not in sys.modules


def test_a_trusted_class_of_the_user_is_made(tmp_path, monkeypatch):
    (tmp_path / "trusted_module.py").write_text(
        "class Thing:\n    def __init__(self, first, *, size, parts):\n"
        "        self.first, self.size, self.parts = first, size, parts\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    node = {"class_path": "trusted_module.Thing", "init_args": {"size": 3, "parts": [1, {"deep": "x"}]}}
    thing = make(node, trust_remote_code=True)("given")
    assert (thing.first, thing.size, thing.parts) == ("given", 3, [1, {"deep": "x"}])
    assert type(thing).__module__ == "trusted_module"


def test_this_packages_classes_are_made_with_their_arguments():
    node = {"class_path": "skyshift.translate.networks.unet.UNet", "init_args": {"width": 4, "depth": 2}}
    net = make({"nested": [node]})["nested"][0](1, 2)
    assert isinstance(net, UNet)
    assert net(torch.zeros(1, 1, 8, 8)).shape == (1, 2, 8, 8)
    assert make({"class_path": "skyshift.translate.networks.unet.UNet"}).keywords == {}
