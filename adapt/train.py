"""Command: train a classifier on labelled maps that works on unlabelled ones, then report on held-out objects.

    accelerate launch adapt/train.py
    accelerate launch adapt/train.py --config configs/adapt/dann.yaml --training.steps 5000 --output runs/mine
    accelerate launch adapt/train.py --config my.yaml --source.translated_by runs/gas_to_hi

Without ``--config`` it runs the embedded default: the toy simulation, with and without a mock survey, and MMD.
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.utils import set_seed

from skyshift import __version__
from skyshift.adapt.adapter import Adaptation
from skyshift.adapt.classifier import Encoder
from skyshift.adapt.data import AdaptData, AugmentConfig, warn_of_ranges
from skyshift.adapt.methods.base import AdaptationMethod
from skyshift.adapt.methods.source_only import SourceOnly
from skyshift.adapt.sides import SourceConfig, TargetConfig
from skyshift.adapt.splits import SplitConfig
from skyshift.adapt.task import Task, TaskConfig
from skyshift.adapt.validation import Validator, directions
from skyshift.adapt.validators import require_label_free
from skyshift.checkpoint import CheckpointError, best, see_own_code
from skyshift.command import command, parse
from skyshift.engine import Hooks, Trainer, TrainingConfig, launch_state, require_free
from skyshift.files import write_text
from skyshift.same_run import require_same_settings
from skyshift.translate.data import store_paths

DEFAULT_CONFIG = "adapt/mmd.yaml"


def _training() -> TrainingConfig:
    """Early stopping as is usual for adaptations."""
    return TrainingConfig(
        betas=(0.9, 0.999), validate_every=50, patience=12, monitor="source_accuracy", checkpoint_every=50, keep=1000
    )


@dataclass
class TrainConfig:
    """An adaptation.

    Attributes:
        source: The labelled side.
        target: The unlabelled side.
        task: What is learned, and which classes each side holds.
        split: Shares of the objects.
        augment: How training maps are changed.
        method: How to adapt; called with the number of channels and the task.
        training: How long, how fast, how exactly. ``monitor`` is a label-free validator.
        output: Folder of the run.
        resume: Continue from the last checkpoint in ``output``, if there is one.
        evaluation: Report on the held-out objects at the end.
    """

    source: SourceConfig = field(default_factory=SourceConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    method: Callable[[int, Task], AdaptationMethod] = SourceOnly  # by its class, which can be written to a file
    training: TrainingConfig = field(default_factory=_training)
    output: str = "runs/adapt"
    resume: bool = False
    evaluation: bool = True


SECTIONS = {
    "source": SourceConfig,
    "target": TargetConfig,
    "task": TaskConfig,
    "split": SplitConfig,
    "augment": AugmentConfig,
}
PLACES = tuple(f"{side}.{key}" for side in ("source", "target") for key in ("store", "build", "collect", "labels"))


def open_data(config: TrainConfig) -> AdaptData:
    """Both sides of a run."""
    return AdaptData.open(config.source, config.target, config.task, config.split, config.augment, config.training.seed)


def _adaptation(data: AdaptData, config: TrainConfig) -> Adaptation:
    provenance = {
        "skyshift": __version__,
        "split": asdict(config.split),
        "seed": config.training.seed,
        **{
            side.name: {
                "store": store_paths(side.store),
                "fingerprint": side.store.fingerprint,
                "plan": side.store.plan,
            }
            for side in (data.source, data.target)
        },
    }
    return Adaptation(data.task, data.source.channels, data.target.channels, provenance)


def _require_same_data(checkpoint: Path, now: Adaptation) -> None:
    before = Adaptation.read(checkpoint)
    for side in ("source", "target"):
        if before.provenance[side]["fingerprint"] != now.provenance[side]["fingerprint"]:
            raise CheckpointError(
                f"{checkpoint} was trained with other maps of the {side}; a run continues exactly or not at all. "
                "Start a new one with another --output"
            )


def train(config: TrainConfig, plain: dict[str, Any]) -> Path:
    """Train, and report.

    Args:
        config: The run.
        plain: The same as plain values, stored in every checkpoint.

    Returns:
        The checkpoint that the validator chose, or the last where the run does not validate.
    """
    launch_state()
    training, output = config.training, Path(config.output)
    found = require_free(output, config.resume)
    if found:
        require_same_settings(found, plain, SECTIONS, PLACES)
    if training.validate_every:
        require_label_free(training.monitor, config.task.kind)
    data = open_data(config)
    adaptation = _adaptation(data, config)
    if found:
        _require_same_data(found, adaptation)
    set_seed(training.seed)  # the same weights on every process
    method = config.method(len(data.source.domains), data.task)
    data.task.require_regime(method.regimes, type(method).__name__)
    method.steps = training.steps
    method.prepare(torch.from_numpy(data.target.parts["train"]))
    if launch_state().is_main_process:
        warn_of_ranges(data)
    text = yaml.safe_dump(plain, sort_keys=False)

    def describe(folder: Path) -> None:
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        adaptation.write(folder)

    hooks = Hooks(describe, identify=data.identify, directions=directions(config.task.kind))
    if training.validate_every:
        hooks.validate = Validator(data)
    trainer = Trainer(
        method, lambda plan: data.loader(training, plan, method.needs), training, output, hooks, resume=config.resume
    )
    if trainer.accelerator.is_main_process:
        write_text(output / "config.yaml", text)
    last = trainer.run()
    checkpoint = best(output) or last
    if config.evaluation and trainer.accelerator.is_main_process:
        from skyshift.adapt.evaluate import evaluate_run

        report = evaluate_run(output, data=data, trust_remote_code=True)  # what this configuration named is trusted
        print(report.table())
        print(f"checkpoint: {checkpoint}\nreport: {output / 'evaluation'}")
    trainer.accelerator.wait_for_everyone()
    return checkpoint


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    see_own_code()
    offered = (AdaptationMethod, Encoder)
    config, plain = parse(TrainConfig, arguments, DEFAULT_CONFIG, "Adapt a classifier to unlabelled maps.", offered)
    try:
        train(config, plain)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
