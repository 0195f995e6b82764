"""Inference: an adaptation's checkpoint takes physical maps and says what they show, with nothing else to know.

``adaptation.json`` in a checkpoint's folder, beside ``config.yaml`` and the weights, names the task, and the domains,
units and scalings of both sides.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from skyshift.adapt.classifier import SOURCE, TARGET
from skyshift.adapt.encoder_weights import without_weights
from skyshift.adapt.methods.base import AdaptationMethod
from skyshift.adapt.task import Task, task_from_dict, task_to_dict
from skyshift.checkpoint import CheckpointError, best, latest, load_average, load_tensors, make, read_description
from skyshift.datasets.maps import MapError
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError
from skyshift.translate.translation import Channel

FORMAT = 1
"""Version of ``adaptation.json``; a later one is refused."""


@dataclass(frozen=True)
class Adaptation:
    """What a checkpoint says of itself.

    Attributes:
        task: What was learned.
        source: Channels of the labelled side, in order.
        target: Channels of the unlabelled side.
        provenance: Package version, stores, fingerprints, split, seed.
    """

    task: Task
    source: tuple[Channel, ...]
    target: tuple[Channel, ...]
    provenance: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write ``adaptation.json``."""
        facts = {
            "format": FORMAT,
            "task": task_to_dict(self.task),
            "source": [channel.to_dict() for channel in self.source],
            "target": [channel.to_dict() for channel in self.target],
            "provenance": self.provenance,
        }
        (folder / "adaptation.json").write_text(json.dumps(facts, indent=2, allow_nan=False), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Adaptation":
        """Read ``adaptation.json``.

        Raises:
            CheckpointError: It is absent, damaged or of a later version.
        """
        facts = read_description(folder, "adaptation.json", "adaptation", FORMAT)
        try:
            source, target = (tuple(Channel.from_dict(e) for e in facts[side]) for side in ("source", "target"))
            return cls(task_from_dict(facts["task"]), source, target, facts["provenance"])
        except SkyshiftError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / 'adaptation.json'} is damaged ({error!r})") from None


@dataclass(frozen=True)
class Predicted:
    """What a classifier says of maps.

    Attributes:
        features: (n, width) float32.
        outputs: (n, outputs) float32: logits; or mean and logarithm of the variance, in units of the task's scale.
        unknown: (n,) float32, score of being of no class of the source; larger is more so.
    """

    features: NDArray[np.float32]
    outputs: NDArray[np.float32]
    unknown: NDArray[np.float32]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """(n, classes)."""
        shifted = np.asarray(self.outputs, np.float64) - self.outputs.max(1, keepdims=True)
        exponentials = np.exp(shifted)
        return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


def find_adaptation(folder: str | Path) -> Path:
    """A checkpoint folder, or a run's best checkpoint (its last where it did not validate).

    Raises:
        CheckpointError: There is none.
    """
    folder = Path(folder)
    if (folder / "adaptation.json").is_file():
        return folder
    found = best(folder) or latest(folder)
    if found is None:
        raise CheckpointError(f"{folder} holds no checkpoint; train one with adapt/train.py")
    return found


class Adapter:
    """A trained classifier with its task, units and scalings.

    Args:
        method: Trained.
        adaptation: What it says of itself.
        batch_size: Maps at once.
    """

    def __init__(self, method: AdaptationMethod, adaptation: Adaptation, *, batch_size: int = 64) -> None:
        if batch_size < 1:
            raise SkyshiftError(f"batch_size is {batch_size}; at least one map is classified at once")
        self.method, self.adaptation, self.batch_size = method.eval(), adaptation, batch_size
        self.device = next(method.parameters()).device

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device | None = None,
        batch_size: int = 64,
        averaged: bool = True,
        trust_remote_code: bool = False,
    ) -> "Adapter":
        """Load a checkpoint.

        Args:
            folder: A checkpoint, or a run (its best checkpoint is taken, or its last).
            device: Where to run; by default the GPU where there is one.
            batch_size: Maps at once.
            averaged: Take the averaged weights, where there are some.
            trust_remote_code: Allow the checkpoint to name classes from outside this package.

        Raises:
            CheckpointError: There is none, or it is damaged, of a later version, or names foreign classes.
        """
        folder = find_adaptation(folder)
        adaptation = Adaptation.read(folder)
        try:
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["method"]
            made = make(without_weights(config), trust_remote_code=trust_remote_code)
            method = made(len(adaptation.source), adaptation.task)
        except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise CheckpointError(f"{folder / 'config.yaml'} names no method that can be made ({error!r})") from None
        if not isinstance(method, AdaptationMethod):
            raise CheckpointError(f"{folder}: {config['class_path']} is no adaptation method")
        try:
            method.load_state_dict(load_tensors(folder / "model.safetensors")[0])
            if averaged:
                method.load_state_dict(load_average(folder), strict=False)  # of the averaged players alone
        except RuntimeError as error:
            raise CheckpointError(f"{folder}: the weights do not fit the networks of config.yaml: {error}") from None
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(method.to(device), adaptation, batch_size=batch_size)

    def __call__(
        self,
        maps: MapStore | Mapping[str, NDArray[np.floating]],
        views: Sequence[int] | NDArray[np.integer] | None = None,
        *,
        side: Literal["source", "target"] = "target",
    ) -> Predicted:
        """Classify.

        Args:
            maps: A store, or domain to (n, height, width) in the checkpoint's unit.
            views: Of a store, which; by default all.
            side: Whose domains and scalings the maps have.

        Raises:
            MapError: A domain is missing, sizes differ, or a value is not finite.
        """
        channels = self.adaptation.target if side == "target" else self.adaptation.source
        if isinstance(maps, MapStore):
            maps.require_domains([channel.domain for channel in channels])
            wanted = np.asarray(maps.catalogue()["view"] if views is None else views, np.int64)
            found = []
            for start in range(0, len(wanted), self.batch_size):
                of = wanted[start : start + self.batch_size]
                batch = {channel.domain: maps.maps(channel.domain, of) for channel in channels}
                found.append(self._batch(batch, channels, side, f"view {of[0]} and following"))
        else:
            sizes = {name: np.shape(values) for name, values in maps.items()}
            if len(set(sizes.values())) != 1 or any(len(size) != 3 for size in sizes.values()):
                raise MapError(f"maps have one shape (n, height, width), not {sizes}")
            (count, _, _), *_ = sizes.values()
            found = [
                self._batch(
                    {name: np.asarray(v[start : start + self.batch_size]) for name, v in maps.items()},
                    channels,
                    side,
                    f"map {start} and following",
                )
                for start in range(0, count, self.batch_size)
            ]
        width, outputs = self.method.classifier.encoder.width, self.adaptation.task.outputs
        if not found:
            empty = np.zeros((0, width), np.float32), np.zeros((0, outputs), np.float32), np.zeros(0, np.float32)
            return Predicted(*empty)
        return Predicted(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _batch(
        self, maps: Mapping[str, NDArray[np.floating]], channels: tuple[Channel, ...], side: str, where: str
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        scaled = []
        for channel in channels:
            if channel.domain not in maps:
                raise MapError(f"the map of {channel.domain} is missing; there are {', '.join(maps)}")
            values = np.asarray(maps[channel.domain], np.float32)
            wrong = ~np.isfinite(values).all(axis=(1, 2))
            if wrong.any():
                raise MapError(
                    f"{where}: map {int(np.argmax(wrong))} of {channel.domain} has values that are not finite"
                )
            scaled.append(np.asarray(channel.scaling.forward(values), np.float32))
        given = torch.from_numpy(np.stack(scaled, 1)).to(self.device)
        with torch.no_grad():
            said = self.method.predict(given, TARGET if side == "target" else SOURCE)
        features, outputs, unknown = (part.cpu().numpy() for part in (said.features, said.outputs, said.unknown))
        return features, outputs, unknown
