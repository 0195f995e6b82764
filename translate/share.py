"""Command: make a checkpoint into a folder to give away, with a model card, and put it on a hub if asked.

    python translate/share.py --checkpoint runs/gas_to_hi --output gas_to_hi
    python translate/share.py --checkpoint runs/gas_to_hi --output gas_to_hi --push owner/gas-to-hi

The folder holds what translating needs and no more: the averaged weights (without discriminators, unless asked for),
the configuration, domains, units and scalings, and the card. Paths of this machine are cut to their last name.
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from skyshift.checkpoint import save_tensors
from skyshift.command import command, parse
from skyshift.errors import SkyshiftError
from skyshift.files import write_folder_whole
from skyshift.translate.hub import upload
from skyshift.translate.model_card import model_card
from skyshift.translate.translation import Translation, find_checkpoint
from skyshift.translate.translator import Translator


@dataclass
class ShareConfig:
    """What to give away.

    Attributes:
        checkpoint: A checkpoint, or a run (its best checkpoint is taken, or its last).
        output: The new folder.
        evaluation: Folder of the evaluation whose table the card shows, which must be of this checkpoint; by default
            ``evaluation`` beside the run's checkpoints, if it is.
        discriminators: Keep them: explanations need them, translating does not.
        name: Title of the card; by default made from the domains.
        licence: Of the weights, as the hub calls it.
        push: ``owner/name`` on the hub to put it at; empty for nowhere.
        public: Whether everyone may see it there.
        trust_remote_code: Allow the checkpoint to name classes from outside this package.
    """

    checkpoint: str = "runs/gas_to_hi"
    output: str = ""
    evaluation: str = ""
    discriminators: bool = False
    name: str = ""
    licence: str = "mit"
    push: str = ""
    public: bool = False
    trust_remote_code: bool = False


def _last_name(value: Any) -> Any:
    return [_last_name(one) for one in value] if isinstance(value, list) else Path(str(value)).name


def _judges(evaluation: Path, checkpoint: Path) -> bool:
    """Whether an evaluation is of this checkpoint: a run that went on may hold that of an earlier one."""
    table = evaluation / "table.md"
    title = table.read_text(encoding="utf-8").partition("\n")[0] if table.is_file() else ""
    return f", {checkpoint.name} of " in title


def export(config: ShareConfig) -> Path:
    """Write the folder.

    Args:
        config: What to give away.

    Returns:
        The folder, whole.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged.
        SkyshiftError: The output exists, or the evaluation that was named is of another checkpoint.
    """
    checkpoint = find_checkpoint(config.checkpoint)
    output = Path(config.output)
    if output.exists():
        raise SkyshiftError(f"{output} exists already; choose another --output or delete it")
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint
    evaluation = Path(config.evaluation) if config.evaluation else run / "evaluation"
    if config.evaluation and not (evaluation / "table.md").is_file():
        raise SkyshiftError(f"--evaluation {evaluation} holds no table.md; make it with translate/evaluate.py")
    judged = _judges(evaluation, checkpoint)
    if config.evaluation and not judged:
        raise SkyshiftError(
            f"--evaluation {evaluation} is not of {checkpoint.name}, which is given away; evaluate that with "
            f"translate/evaluate.py --checkpoint {checkpoint}"
        )
    translation = Translation.read(checkpoint)
    sides = ([channel.domain for channel in side] for side in (translation.source, translation.target))
    source, target = sides  # of a checkpoint between any domains, those it was evaluated in
    translator = Translator.from_pretrained(
        checkpoint, device="cpu", trust_remote_code=config.trust_remote_code, source=source, target=target
    )
    method = translator.method
    weights = method.state_dict()  # averaged, where there is an average
    idle = (*method.training_only, *(() if config.discriminators else method.discriminators))
    dropped = tuple(f"{name}." for name in idle)
    weights = {key: value for key, value in weights.items() if not key.startswith(dropped)}
    plain = yaml.safe_load((checkpoint / "config.yaml").read_text(encoding="utf-8"))
    plain["output"] = _last_name(plain.get("output", ""))
    for facts in (plain.get("data", {}), translation.provenance):
        facts.update({key: _last_name(facts[key]) for key in ("store", "target_store") if facts.get(key)})
    parameters = sum(value.numel() for name, value in method.named_parameters() if name in weights)
    card = model_card(
        checkpoint, evaluation if judged else None, parameters=parameters, licence=config.licence, name=config.name
    )
    with write_folder_whole(output, replace=False) as folder:
        save_tensors(folder / "model.safetensors", weights)
        translation.write(folder)
        (folder / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
        (folder / "README.md").write_text(card, encoding="utf-8")
    return output


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    config, _ = parse(ShareConfig, arguments, None, "Make a checkpoint into a folder to give away.")
    if not config.output:
        raise SkyshiftError("name the folder to write (--output)")
    folder = export(config)
    print(f"{folder}: weights, units and scalings, and a model card (README.md)")
    if config.push:
        print(f"on the hub: {upload(folder, config.push, private=not config.public)}")


if __name__ == "__main__":
    sys.exit(main())
