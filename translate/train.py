"""Command: train a translation, then evaluate it on held-out galaxies.

    accelerate launch translate/train.py
    accelerate launch translate/train.py --config my.yaml --training.steps 5000 --output runs/mine --resume true

Without ``--config`` it runs the embedded default: a toy simulation in the real snapshot format, gas to HI, pix2pix.
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate.utils import set_seed
from matplotlib.figure import Figure
from torch import nn

from skyshift.batch_size import chosen, facts, find_batch_size, table
from skyshift.checkpoint import CheckpointError, best, see_own_code
from skyshift.command import command, parse
from skyshift.engine import Hooks, LoaderPlan, Trainer, TrainingConfig, launch_state, require_free
from skyshift.errors import SkyshiftError
from skyshift.files import write_json, write_text
from skyshift.same_run import require_same_settings
from skyshift.translate.conservation import ConserveConfig, conservation
from skyshift.translate.data import DataConfig, TranslationData
from skyshift.translate.evaluate import evaluate
from skyshift.translate.figures import comparison_figure, unpaired_figure
from skyshift.translate.losses.physics_terms import PhysicsConfig, PhysicsTerms
from skyshift.translate.methods.base import TranslationMethod
from skyshift.translate.methods.pix2pix import Pix2Pix
from skyshift.translate.networks.domain_unet import DomainUNet
from skyshift.translate.networks.patchgan import PatchGAN
from skyshift.translate.networks.resnet import ResNet
from skyshift.translate.networks.unet import UNet
from skyshift.translate.translation import Translation
from skyshift.translate.translator import Translator
from skyshift.translate.validation import DIRECTIONS, Validator

DEFAULT_CONFIG = "translate/gas_to_hi.yaml"
NETWORKS = (UNet, DomainUNet, ResNet, PatchGAN)


@dataclass
class TrainConfig:
    """A training run.

    Attributes:
        data: What to train on.
        method: How to translate; called with the numbers of source and target channels.
        training: How long, how fast, how exactly.
        physics: Weights of losses on physical maps, beside the method's own; all off by default.
        conserve: What the output is made to keep, in training and in inference; nothing by default.
        output: Folder of the run.
        resume: Continue from the last checkpoint in ``output``, if there is one.
        evaluation: Evaluate on the held-out galaxies at the end.
        find_batch_size: Do not train: try batch sizes, print their speeds and write them to ``batch_size.json``.
    """

    data: DataConfig = field(default_factory=DataConfig)
    method: Callable[[int, int], TranslationMethod] = Pix2Pix  # by its class, which can be written to a file
    training: TrainingConfig = field(default_factory=TrainingConfig)
    physics: PhysicsConfig = field(default_factory=PhysicsConfig)
    conserve: ConserveConfig = field(default_factory=ConserveConfig)
    output: str = "runs/gas_to_hi"
    resume: bool = False
    evaluation: bool = True
    find_batch_size: bool = False


def _sampler(data: TranslationData) -> Callable[[nn.Module], Figure]:
    """Draws four validation maps (of the training part where there is no validation part)."""
    part = "validation" if len(data.views["validation"]) else "train"
    views = data.views[part][:: max(1, len(data.views[part]) // 4)][:4]

    def draw(averaged: nn.Module) -> Figure:
        assert isinstance(averaged, TranslationMethod)
        estimate = Translator(averaged, data.translation)(data.store, views)
        if data.target_store is not None:
            others = np.resize(data.target_views["train"], len(views))
            return unpaired_figure(data.store, views, data.config.source, estimate, data.target_store, others)
        return comparison_figure(data.store, views, data.config.source, estimate)

    return draw


SECTIONS = {"data": DataConfig, "training": TrainingConfig, "physics": PhysicsConfig, "conserve": ConserveConfig}
PLACES = ("data.store", "data.target_store", "data.build")


def _require_same_data(checkpoint: Path, translation: Translation) -> None:
    """A run goes on with the maps, the split and the scalings it began with.

    Else galaxies that it was trained on would count as held out.

    Raises:
        CheckpointError: They are others.
    """
    begun = Translation.read(checkpoint)
    before = {**begun.provenance, "source": begun.source, "target": begun.target}
    now = {**translation.provenance, "source": translation.source, "target": translation.target}
    before["domains"], now["domains"] = begun.domains, translation.domains
    for name in ("fingerprint", "split", "source", "target", "domains"):
        if before[name] != now[name]:
            raise CheckpointError(
                f"{checkpoint} was trained with {name} = {before[name]}, this run has {now[name]}; a run continues "
                "exactly or not at all. Start a new one with another --output"
            )


def make_method(config: TrainConfig, data: TranslationData) -> TranslationMethod:
    """The method with its first weights, its losses on physical maps and what its output keeps.

    Raises:
        SkyshiftError: They do not go together with the data.
    """
    set_seed(config.training.seed)  # the same weights on every process
    method = config.method(*config.data.channels)
    if method.needs_pairs and not config.data.paired:
        raise SkyshiftError(f"{type(method).__name__} learns from pairs; set data.paired true or choose another method")
    translation = data.translation
    if config.data.domains and (config.physics.active or config.conserve.total):
        raise SkyshiftError("physics and conserve are of one target domain; with data.domains leave them out")
    if config.physics.active:
        if not config.data.paired:
            raise SkyshiftError("physics compares with the target of the same view; set data.paired true")
        if not method.takes_physics:
            raise SkyshiftError(
                f"{type(method).__name__} makes no estimate in training that physics could judge: set the weights of "
                "physics to 0, or take vae"
            )
        method.physics = PhysicsTerms(config.physics, [channel.scaling for channel in translation.target])
    method.conservation = conservation(config.conserve, translation.source, translation.target)
    return method


def train(config: TrainConfig, plain: dict[str, Any]) -> Path:
    """Train, and evaluate.

    Args:
        config: The run.
        plain: The same as plain values, stored in every checkpoint.

    Returns:
        The best checkpoint where the run validates, else the last; or the file of batch sizes.
    """
    launch_state()
    if config.find_batch_size:
        return batch_sizes(config)
    found = require_free(Path(config.output), config.resume)
    if found:
        require_same_settings(found, plain, SECTIONS, PLACES)
    store = config.data.open()
    data = TranslationData(config.data, store, config.training.seed)
    if config.evaluation and not len(data.views["test"]):
        raise SkyshiftError("there are no test galaxies to evaluate on: set data.split.test, or --evaluation false")
    if config.evaluation and not data.has_pairs:
        raise SkyshiftError(
            f"{config.data.store} and {config.data.target_store} are not paired: no source has a true target to "
            "evaluate on. Set --evaluation false"
        )
    if found:
        _require_same_data(found, data.translation)
    method = make_method(config, data)
    text = yaml.safe_dump(plain, sort_keys=False)

    def describe(folder: Path) -> None:
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        data.translation.write(folder)

    hooks = Hooks(describe, _sampler(data), data.identify, directions=DIRECTIONS)
    if config.training.validate_every and len(data.views["validation"]) and data.has_pairs:
        hooks.validate = Validator(data)
    trainer = Trainer(
        method,
        lambda plan: data.loader(config.training, plan),
        config.training,
        Path(config.output),
        hooks,
        resume=config.resume,
    )
    if trainer.accelerator.is_main_process:
        write_text(Path(config.output) / "config.yaml", text)
    checkpoint = trainer.run()
    checkpoint = best(Path(config.output)) or checkpoint
    if config.evaluation:
        # All processes share the work: alone, the main one could keep them waiting until their patience ends.
        # Maps are evaluated in float32, whatever precision they were trained in.
        # What this very configuration named is trusted.
        output = Path(config.output) / "evaluation"
        judged = evaluate(
            checkpoint,
            store=store,
            output=output,
            trust_remote_code=True,
            distributed=True,
            source=config.data.source,
            target=config.data.target,
        )
        if trainer.accelerator.is_main_process:
            print(judged.table())
            print(f"checkpoint: {checkpoint}\nfigures and table: {output}")
    trainer.accelerator.wait_for_everyone()
    return checkpoint


def batch_sizes(config: TrainConfig) -> Path:
    """Try batch sizes with steps of this very run, losses and all, without training it; see :mod:`skyshift.batch_size`.

    Returns:
        ``batch_size.json`` in the output folder, with the chosen size and all trials.
    """
    data = TranslationData(config.data, config.data.open(), config.training.seed)
    output = Path(config.output)

    def steps_of(size: int) -> Iterator[None]:
        training = replace(config.training, batch_size=size, validate_every=0, patience=0)
        method = make_method(config, data)
        with tempfile.TemporaryDirectory() as work:
            trainer = Trainer(method, lambda plan: data.loader(training, plan), training, Path(work))
            accelerator = trainer.accelerator
            first = data.loader(training, LoaderPlan(0, 1, accelerator.process_index, accelerator.num_processes))
        return trainer.trial_steps(repeat(next(iter(first))))

    trials = find_batch_size(steps_of, largest=len(data.views["train"]))
    if launch_state().is_main_process:
        print(table(trials))
        print(f"choose --training.batch_size {chosen(trials)}: less than 5 % slower than the fastest")
        write_json(output / "batch_size.json", facts(trials))
    return output / "batch_size.json"


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    see_own_code()
    offered = (TranslationMethod, *NETWORKS)
    config, plain = parse(TrainConfig, arguments, DEFAULT_CONFIG, "Train a translation between map domains.", offered)
    try:
        train(config, plain)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
