"""State in and out of files without pickle: tensors as safetensors, everything else as JSON.

A checkpoint is data. Reading one imports no class but those of this package, unless the reader says that the code it
names is trusted.
"""

import importlib
import json
import os
import random
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from skyshift.errors import SkyshiftError


class CheckpointError(SkyshiftError):
    """A checkpoint is absent, damaged, or not for this."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None) -> None:
    """Write tensors, and JSON facts beside them in the file's metadata."""
    metadata = {"facts": json.dumps(facts or {})}
    save_file({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, path, metadata)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote.

    Raises:
        CheckpointError: The file is absent or damaged.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
        return load_file(path), facts
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: the checkpoint is not whole") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def load_average(folder: Path) -> dict[str, Tensor]:
    """The averaged weights of a checkpoint by their names in the method; none where no average was kept.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = folder / "average.safetensors"
    tensors = load_tensors(path)[0] if path.is_file() else {}
    return {name.removeprefix("module."): value for name, value in tensors.items() if name.startswith("module.")}


def read_description(folder: Path, name: str, kind: str, newest: int) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Args:
        folder: Of the checkpoint.
        name: Of the JSON file.
        kind: Of checkpoint, for messages.
        newest: Version up to which the file can be read.

    Raises:
        CheckpointError: It is absent, no JSON, or of a later version.
    """
    try:
        facts = json.loads((folder / name).read_text(encoding="utf-8"))
        version = facts["format"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no {kind} checkpoint: it has no {name}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / name} is damaged ({error!r})") from None
    if not isinstance(version, int) or version > newest:
        raise CheckpointError(
            f"{folder} has checkpoint format {version}, this skyshift reads up to {newest}; update it"
        )
    return dict(facts)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors and JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                numbers[f"{index}.{name}"] = value
    return tensors, {"numbers": numbers, "groups": state["param_groups"]}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Undo :func:`pack_optimizer`."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **facts["numbers"]}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = [{**group, "betas": tuple(group["betas"])} if "betas" in group else group for group in facts["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of this process's random number generators: torch (every device), NumPy and Python."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors.update({f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())})
    # NumPy's global generator is nobody's here, but a user's own method may draw from it.
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    tensors["numpy"] = torch.from_numpy(np.asarray(keys, np.int64))
    version, internal, following = random.getstate()
    facts = {
        "numpy": [int(position), int(has_gauss), float(gauss)],
        "python": [version, list(internal), following],
    }
    return tensors, facts


def set_random_state(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Undo :func:`random_state`."""
    torch.set_rng_state(tensors["torch"])
    for key, state in tensors.items():
        if key.startswith("cuda.") and int(key[5:]) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(key[5:]))
    position, has_gauss, gauss = facts["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, gauss))  # noqa: NPY002
    version, internal, following = facts["python"]
    random.setstate((version, tuple(internal), following))


def see_own_code() -> None:
    """Let modules of the folder that a command runs in be imported, after all others: a user's own methods."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def _resolve(path: Any, trusted: bool) -> type:
    """The class at an import path, which must be defined in this package unless the reader trusts it."""
    if not isinstance(path, str):
        raise CheckpointError(f"the checkpoint names {path!r} where the path of a class should stand")
    module_name, _, name = path.rpartition(".")
    if not trusted and not module_name.startswith("skyshift."):
        raise CheckpointError(
            f"the checkpoint names {path}, which is not part of skyshift; if you trust its code, pass "
            "trust_remote_code=True"
        )
    if trusted:
        see_own_code()
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"the checkpoint names {path}, which cannot be imported ({error})") from None
    if not isinstance(found, type) or (not trusted and found.__module__ != module_name):
        raise CheckpointError(f"the checkpoint names {path}, which is no class defined there")
    return found


def make(node: Any, *, trust_remote_code: bool = False) -> Any:
    """Objects from plain configuration: ``{class_path, init_args}`` becomes a callable that makes the object.

    Args:
        node: Plain values, nested.
        trust_remote_code: Allow classes from outside this package.

    Returns:
        The same with every class entry replaced by ``partial(cls, **init_args)``.

    Raises:
        CheckpointError: A class is not of this package and not trusted, or cannot be imported.
    """
    if isinstance(node, Mapping) and "class_path" in node:
        arguments = {
            key: make(value, trust_remote_code=trust_remote_code)
            for key, value in (node.get("init_args") or {}).items()
        }
        return partial(_resolve(node["class_path"], trust_remote_code), **arguments)
    if isinstance(node, Mapping):
        return {key: make(value, trust_remote_code=trust_remote_code) for key, value in node.items()}
    if isinstance(node, list):
        return [make(value, trust_remote_code=trust_remote_code) for value in node]
    return node


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints ``step_…`` in a run's ``checkpoints`` folder, the newest last."""
    found = [path for path in (folder / "checkpoints").glob("step_*") if path.is_dir()]
    return sorted((path for path in found if path.name[5:].isdecimal()), key=lambda path: int(path.name[5:]))


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a run, or ``None``."""
    found = checkpoints(folder)
    return found[-1] if found else None


def best(folder: Path) -> Path | None:
    """The checkpoint that validation chose (``best.json``), or ``None`` where a run has not validated.

    Raises:
        CheckpointError: ``best.json`` is damaged, or names a checkpoint that is not there.
    """
    path = folder / "best.json"
    if not path.is_file():
        return None
    try:
        found = folder / "checkpoints" / Path(json.loads(path.read_text(encoding="utf-8"))["checkpoint"]).name
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from None
    if not found.is_dir():
        raise CheckpointError(f"{path} names {found.name}, which is not there; remove the file to take the last one")
    return found
