"""What a checkpoint says of itself: the domains it translates, their units and scalings, and what it was trained on.

``translation.json`` in a checkpoint's folder, beside ``config.yaml`` (the whole configuration of the run) and the
weights. Reading it makes no object but those here.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyshift.checkpoint import CheckpointError, best, latest, make, read_description
from skyshift.datasets.domains import DOMAINS
from skyshift.datasets.scaling import Scaling, scaling_from_dict
from skyshift.errors import SkyshiftError
from skyshift.translate.any_to_any import PLANES, chosen
from skyshift.translate.hub import download, is_hub_name
from skyshift.translate.methods.base import TranslationMethod

FORMAT = 2
"""Version of ``translation.json``; a later one is refused. 1 is without ``domains``, and is what is written there."""

HEADROOM = 10.0
"""Translated values above this many times the brightest of the training maps are clipped."""


@dataclass(frozen=True)
class Channel:
    """One domain as a checkpoint knows it.

    Attributes:
        domain: Its name.
        unit: Unit of the physical maps.
        scaling: Between these and the network.
        minimum: Lowest physical value; translated maps are clipped there.
        maximum: Highest physical value, :data:`HEADROOM` times that of the training maps; clipped there as well, since
            the inverse of a scaling turns a small error of a network far outside what it has seen into a huge one.
    """

    domain: str
    unit: str
    scaling: Scaling
    minimum: float = 0.0
    maximum: float = np.inf

    @classmethod
    def of(cls, domain: str, unit: str, scaling: Scaling, highest: float = np.inf) -> "Channel":
        """With the minimum of the domain, where it is a known one, and the headroom above the ``highest`` value."""
        minimum = DOMAINS[domain].minimum if domain in DOMAINS else -np.inf
        return cls(domain, unit, scaling, minimum, HEADROOM * highest if highest > 0 else np.inf)

    def physical(self, scaled: NDArray[np.floating]) -> NDArray[np.float32]:
        """Scaled values, of any shape, in the unit of the channel; warns where they had to be limited at the top."""
        values = self.scaling.inverse(scaled)
        beyond = int((values > self.maximum).sum())
        if beyond:
            warnings.warn(
                f"{beyond} of {values.size} pixels of {self.domain} came out above {self.maximum:.4g} {self.unit}, "
                f"{HEADROOM:g} times the brightest pixel of training, and were limited to that: do not believe these "
                "maps; train longer, or with a lower learning rate",
                stacklevel=2,
            )
        return np.clip(values, self.minimum, self.maximum).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """For ``translation.json``."""
        bounds = {name: value if np.isfinite(value := getattr(self, name)) else None for name in ("minimum", "maximum")}
        return {**asdict(self), "scaling": self.scaling.to_dict(), **bounds}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Channel":
        """Undo :meth:`to_dict`."""
        minimum = -np.inf if saved["minimum"] is None else float(saved["minimum"])
        maximum = np.inf if saved.get("maximum") is None else float(saved["maximum"])
        return cls(saved["domain"], saved["unit"], scaling_from_dict(saved["scaling"]), minimum, maximum)


@dataclass(frozen=True)
class Translation:
    """What a checkpoint translates, and what it was trained on.

    Attributes:
        source: Channels in.
        target: Channels out.
        pixel_scale: Smallest and largest kpc per pixel of the training maps.
        provenance: Package version, store, fingerprint of the data, pixels on a side of its maps, split, seed.
        domains: Of a network between any of them, all its domains, in their order; else none. Source and target are
            then a direction that was chosen.
    """

    source: tuple[Channel, ...]
    target: tuple[Channel, ...]
    pixel_scale: tuple[float, float]
    provenance: dict[str, Any]
    domains: tuple[Channel, ...] = ()

    def write(self, folder: Path) -> None:
        """Write ``translation.json``."""
        facts = {
            "format": FORMAT if self.domains else 1,
            "source": [channel.to_dict() for channel in self.source],
            "target": [channel.to_dict() for channel in self.target],
            "pixel_scale_kpc": list(self.pixel_scale),
            "provenance": self.provenance,
            **({"domains": [channel.to_dict() for channel in self.domains]} if self.domains else {}),
        }
        (folder / "translation.json").write_text(json.dumps(facts, indent=2, allow_nan=False), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Translation":
        """Read ``translation.json``.

        Raises:
            CheckpointError: It is absent, damaged or of a later version.
        """
        facts = read_description(folder, "translation.json", "translation", FORMAT)
        try:
            low, high = facts["pixel_scale_kpc"]
            return cls(
                tuple(Channel.from_dict(entry) for entry in facts["source"]),
                tuple(Channel.from_dict(entry) for entry in facts["target"]),
                (float(low), float(high)),
                facts["provenance"],
                tuple(Channel.from_dict(entry) for entry in facts.get("domains", ())),
            )
        except SkyshiftError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / 'translation.json'} is damaged ({error!r})") from None

    @property
    def channels(self) -> tuple[int, int]:
        """Numbers of source and target channels of the method."""
        return (PLANES * len(self.domains), 1) if self.domains else (len(self.source), len(self.target))

    def choose(self, source: Sequence[str] = (), target: Sequence[str] = ()) -> "Translation":
        """The direction that is wanted of a network between any domains.

        Args:
            source: Domains to translate from, any of the checkpoint's.
            target: Domains to translate to, any others.

        Returns:
            With these as source and target. Of an ordinary checkpoint, itself.

        Raises:
            CheckpointError: The choice is none, names unknown domains, or is not what an ordinary checkpoint does.
        """
        if self.domains:
            every = {channel.domain: channel for channel in self.domains}
            try:
                chosen(list(every), source, target)
            except SkyshiftError as error:
                raise CheckpointError(str(error)) from None
            return replace(self, source=tuple(every[n] for n in source), target=tuple(every[n] for n in target))
        for what, names, channels in (("source", source, self.source), ("target", target, self.target)):
            mine = [channel.domain for channel in channels]
            if names and list(names) != mine:
                raise CheckpointError(
                    f"{what}: this checkpoint was trained with {what} {', '.join(mine)}, not {', '.join(names)}; a "
                    "direction is chosen of one trained with data.domains"
                )
        return self


def find_checkpoint(folder: str | Path) -> Path:
    """A checkpoint folder, a run's best checkpoint (its last where it did not validate), or the hub's ``owner/name``.

    Raises:
        CheckpointError: There is none.
    """
    name, folder = str(folder), Path(folder)
    if (folder / "translation.json").is_file():
        return folder
    found = best(folder) or latest(folder)
    if found is None and not folder.exists() and is_hub_name(name):
        return download(name)
    if found is None:
        raise CheckpointError(f"{folder} holds no checkpoint; train one with translate/train.py")
    return found


def make_method(config: Mapping[str, Any], sources: int, targets: int, trust_remote_code: bool) -> TranslationMethod:
    """The method that a configuration names, with fresh weights.

    Raises:
        CheckpointError: It is not of this package and not trusted, or is no translation method.
    """
    made = make(config, trust_remote_code=trust_remote_code)
    try:
        method = made(sources, targets)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{config['class_path']} cannot be made as the checkpoint says: {error}") from error
    if not isinstance(method, TranslationMethod):
        raise CheckpointError(f"{config.get('class_path')} is no translation method")
    return method
