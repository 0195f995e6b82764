"""A run goes on with the settings it began with, or not at all."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from skyshift.checkpoint import CheckpointError

FREE = frozenset({"output", "resume", "evaluation", "find_batch_size"})
"""Keys at the top of a configuration that may change."""

FREE_TRAINING = frozenset(
    {"workers", "log_every", "sample_every", "checkpoint_every", "keep"}
    | {"batch_size", "accumulate"}  # of which the loop itself sees to what may change
)
"""Keys of ``training`` that may change."""


def _fixed(plain: Mapping[str, Any], places: Collection[str]) -> dict[str, Any]:
    """The part of a configuration that decides the weights, flat: key to value."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, entry in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), entry)
        else:
            flat[prefix] = value

    walk("", {key: value for key, value in plain.items() if key not in FREE})
    skipped = {f"training.{name}" for name in FREE_TRAINING} | set(places)
    return {key: value for key, value in flat.items() if key not in skipped}


def require_same_settings(
    checkpoint: Path, plain: Mapping[str, Any], sections: Mapping[str, type], places: Collection[str]
) -> None:
    """Compare a run with what its checkpoint was trained with: method, networks, learning rates, augmentation.

    Args:
        checkpoint: Of the run that is to go on.
        plain: Configuration of this run, as plain values.
        sections: Key to dataclass of its sections, whose defaults stand for keys that were not there yet.
        places: Keys that name places, which may be moved.

    Raises:
        CheckpointError: A setting is another; the message names it.
    """
    try:
        before = _fixed(yaml.safe_load((checkpoint / "config.yaml").read_text(encoding="utf-8")), places)
    except (OSError, AttributeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{checkpoint / 'config.yaml'} cannot be read ({error})") from None
    now = _fixed(plain, places)
    default = _fixed({name: asdict(section()) for name, section in sections.items()}, places)
    before = {key: value for key, value in default.items() if key in now} | before  # begun before there was such a key
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise CheckpointError(
                f"{checkpoint} was trained with {name} = {before.get(name)}, this run has {now.get(name)}; a run "
                "continues exactly or not at all. Start a new one with another --output"
            )
