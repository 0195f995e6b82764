"""Explanations of many views in parts: what is done is kept, and any number of processes share the rest.

A part holds a fixed run of views for all probes and is written whole. Which views it holds, and in which batches they
are computed, does not depend on how many processes there are, so the values do not either.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skyshift.attribution import Attribution
from skyshift.checkpoint import load_tensors, save_tensors
from skyshift.errors import SkyshiftError
from skyshift.files import write_json, write_whole

_FIELDS = ("values", "output", "base", "spread", "draws", "spectrum")


@dataclass(frozen=True)
class Probed:
    """One probe of some views: what was shown and how it is explained.

    Attributes:
        inputs: (n, channels, height, width), scaled.
        attribution: Of the same n.
    """

    inputs: Tensor
    attribution: Attribution


class Parts:
    """The parts of one run of the command, in a folder.

    Args:
        folder: Of the results.
        plan: All that decides the values. Paths may be in it under ``paths``, which do not.

    Raises:
        SkyshiftError: The folder holds parts of another plan, or other things.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], *, write: bool = True) -> None:
        self.folder, self.plan = folder, json.loads(json.dumps(plan))
        path = folder / "plan.json"
        if path.is_file():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise SkyshiftError(f"{path} is damaged ({error}); delete {folder} and explain again") from None
            for name in sorted((before.keys() | self.plan.keys()) - {"paths"}):
                if before.get(name) != self.plan.get(name):
                    raise SkyshiftError(
                        f"{folder} holds explanations with another {name}; choose another --output or delete this one"
                    )
        elif folder.exists() and any(folder.iterdir()):
            raise SkyshiftError(f"{folder} holds other things than explanations; choose another --output")
        elif write:
            write_json(path, self.plan)

    def path(self, number: int) -> Path:
        """File of a part."""
        return self.folder / "parts" / f"part-{number:05d}.safetensors"

    def is_done(self, number: int) -> bool:
        """Whether a part is there; it is then whole."""
        return self.path(number).is_file()

    def save(self, number: int, probes: Mapping[str, Probed]) -> None:
        """Write a part, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for name, probed in probes.items():
            tensors[f"{name}.inputs"] = probed.inputs
            for field in _FIELDS:
                value = getattr(probed.attribution, field)
                if value is not None:
                    tensors[f"{name}.{field}"] = torch.from_numpy(np.ascontiguousarray(value))
        explainer = next(iter(probes.values())).attribution.explainer
        with write_whole(self.path(number)) as side:
            save_tensors(side, tensors, {"explainer": explainer, "probes": list(probes)})

    def load(self, numbers: Sequence[int]) -> dict[str, Probed]:
        """All parts, joined."""
        found: dict[str, dict[str, list[Tensor]]] = {}
        explainer = ""
        for number in numbers:
            tensors, facts = load_tensors(self.path(number))
            explainer = facts["explainer"]
            for name in facts["probes"]:
                of_probe = found.setdefault(name, {})
                for field in ("inputs", *_FIELDS):
                    if f"{name}.{field}" in tensors:
                        of_probe.setdefault(field, []).append(tensors[f"{name}.{field}"])
        result = {}
        for name, fields in found.items():
            whole = {field: torch.cat(tensors) for field, tensors in fields.items()}
            arrays = {field: whole[field].numpy() if field in whole else None for field in _FIELDS}
            result[name] = Probed(whole["inputs"], Attribution(**arrays, explainer=explainer))  # type: ignore[arg-type]
        return result

    def drop_unfinished(self) -> None:
        """Remove what a killed run left half written."""
        for path in (self.folder / "parts").glob(".*.partial*"):
            path.unlink()
