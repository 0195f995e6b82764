"""The model card of a checkpoint: what it translates, in which units, from which data, how well, and what it is for.

It is made from the checkpoint's own files and from its evaluation, where there is one; nothing in it is typed by hand.

References:
    Mitchell et al. 2019, Model Cards for Model Reporting, arXiv:1810.03993.
"""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from skyshift import __version__
from skyshift.translate.translation import Channel, Translation


def _channels(channels: tuple[Channel, ...]) -> str:
    lines = ["| domain | unit | scaling | lowest value |", "|---|---|---|---|"]
    for channel in channels:
        facts = ", ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in channel.scaling.to_dict().items()
        )
        lines.append(f"| {channel.domain} | {channel.unit} | {facts.replace('kind ', '')} | {channel.minimum:g} |")
    return "\n".join(lines)


def _example(translation: Translation) -> str:
    """How to call it, with its own domains."""
    chosen = ""
    if translation.domains:
        sides = ([channel.domain for channel in side] for side in (translation.source, translation.target))
        chosen = ", source={!r}, target={!r}".format(*sides)
    maps = ", ".join(f'"{channel.domain}": maps_of_{channel.domain}' for channel in translation.source)
    return (
        "from skyshift.translate.translator import Translator\n\n"
        f'translator = Translator.from_pretrained("path/to/this/folder"{chosen})\n'
        f'maps = translator({{{maps}}})["{translation.target[0].domain}"]  # skyshift.datasets.maps.Maps, in and out'
    )


def model_card(
    checkpoint: Path, evaluation: Path | None = None, *, parameters: int, licence: str = "mit", name: str = ""
) -> str:
    """The card as Markdown with the metadata block that hubs read.

    Args:
        checkpoint: Its folder.
        evaluation: Folder of its evaluation (``table.md``), if there is one.
        parameters: Of what is given away.
        licence: Identifier of the licence of the weights.
        name: What the model is called; by default made from its domains.

    Raises:
        CheckpointError: The checkpoint is damaged.
    """
    translation = Translation.read(checkpoint)
    config: dict[str, Any] = yaml.safe_load((checkpoint / "config.yaml").read_text(encoding="utf-8"))
    method = str(config["method"]["class_path"]).rpartition(".")[2]
    sources = ", ".join(channel.domain for channel in translation.source)
    targets = ", ".join(channel.domain for channel in translation.target)
    facts, training = translation.provenance, config.get("training", {})
    low, high = translation.pixel_scale
    table = evaluation / "table.md" if evaluation else None
    judged = table.read_text(encoding="utf-8").strip() if table and table.is_file() else "It has not been evaluated."
    data = ModelCardData(
        license=licence,
        library_name="skyshift",
        pipeline_tag="image-to-image",
        tags=["astronomy", "simulation", method.lower(), *dict.fromkeys([*sources.split(", "), *targets.split(", ")])],
    )
    stores = facts["store"] if isinstance(facts["store"], list) else [facts["store"]]
    split = facts["split"]
    step = checkpoint.name.removeprefix("step_").lstrip("0") or "unknown"
    return f"""---
{data.to_yaml()}
---

# {name or f"{sources} → {targets} ({method})"}

Translates maps of {sources} into maps of {targets}. Physical maps in, physical maps out, float32:

```python
{_example(translation)}
```

## Domains and units

In:

{_channels(translation.source)}

Out:

{_channels(translation.target)}

Pixels of {low:.4g}{f" to {high:.4g}" if high > low else ""} kpc; maps of {facts["pixels"]} x {facts["pixels"]} pixels.

## Method and training

{method}, {parameters:,} parameters, step {step} of {training.get("steps", "unknown")}; batch \
{training.get("batch_size", "unknown")}, learning rate {training.get("learning_rate", "unknown")}, seed \
{facts["seed"]}, skyshift {facts["skyshift"]}. The whole configuration is in `config.yaml`.

## Data

Store {", ".join(Path(str(store)).name for store in stores)}, fingerprint `{facts["fingerprint"]}`. Split by galaxy: \
{split["train"]:.0%} to train, {split["validation"]:.0%} to choose, {split["test"]:.0%} to judge (by {split["by"]}, \
seed {split["seed"]}).

## How well

{judged}

## What it is for

To make {targets} maps that look and measure like those of its training data, for galaxies and pixel scales like \
these. It has learnt relations of one simulation (or survey), with its physics and resolution; of others it says what \
this one would. Single maps may be wrong by as much as the table says: use totals, profiles and spectra within the \
errors given, and do not take structure below the resolution for a measurement. A map that it makes is no evidence \
of what a telescope would find in one particular galaxy.

Written by skyshift {__version__}.
"""
