"""Command: search for the settings of a training run that do best on validation galaxies, with Optuna.

    python translate/sweep.py --config sweep.yaml

where ``sweep.yaml`` names a training configuration and what to vary in it:

    base: configs/translate/gas_to_hi.yaml
    space:
      training.learning_rate: {low: 1.0e-4, high: 2.0e-3, log: true}
      method.init_args.l1_weight: {choices: [10.0, 100.0]}
      method.init_args.generator.init_args.width: {low: 16, high: 48, step: 8}
    trials: 30
    output: runs/sweep

Every trial is a training run of its own process in ``output/trial_0000`` and so on, judged by the best value of
``training.monitor`` on the validation part (``training.validate_every`` must be set); the test part is not looked at. A
trial that at a validation is worse than the median of the others at that step is stopped. Trials are proposed by
Optuna's tree-structured Parzen estimator. The study is a journal in ``output/journal.log``: a sweep that is started
again goes on (if it compares the same runs: only ``trials``, ``prune`` and ``seed`` may change), and a trial that was
cut short is run again with the same settings. A trial that fails (a loss that is not finite, say, or a monitored value
that never is finite) counts, with its message, and the sweep goes on; only where all of them fail is that an error. The
best trial's whole configuration is ``output/best.yaml``, all trials are in ``output/trials.json``.

References:
    Akiba et al. 2019, Optuna: A Next-generation Hyperparameter Optimization Framework, arXiv:1907.10902.
    Bergstra, Bardenet, Bengio & Kégl 2011, Algorithms for Hyper-Parameter Optimization, NeurIPS.
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from skyshift.command import command, parse
from skyshift.errors import SkyshiftError
from skyshift.files import write_json, write_text
from skyshift.naming import unknown
from skyshift.translate.methods.base import TranslationMethod
from skyshift.translate.train import NETWORKS, TrainConfig
from skyshift.translate.validation import DIRECTIONS

if TYPE_CHECKING:
    import optuna

POLL = 0.2
"""Seconds between two looks at the log of a trial."""


class SweepError(SkyshiftError):
    """A sweep cannot be made."""


class TrialError(SweepError):
    """A trial failed."""


@dataclass
class SweepConfig:
    """A search.

    Attributes:
        base: Configuration file of the training runs.
        space: Key of that configuration to ``{low, high}``, with ``log: true`` or ``step`` where wanted (whole numbers
            where both bounds are), or to ``{choices: [...]}``.
        trials: Number of runs, those of earlier starts included.
        output: Folder of the sweep.
        prune: Stop a trial that is worse than the median of the others.
        seed: Of the proposals.
    """

    base: str = "configs/translate/gas_to_hi.yaml"
    space: dict[str, dict[str, Any]] = field(default_factory=dict)
    trials: int = 20
    output: str = "runs/sweep"
    prune: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.space:
            raise SweepError("space names nothing to vary; give it a key of the training configuration")
        if self.trials < 1:
            raise SweepError(f"trials must be at least 1, not {self.trials}")
        for key, entry in self.space.items():
            _require_entry(key, entry)


def _require_entry(key: str, entry: dict[str, Any]) -> None:
    if "choices" in entry:
        if set(entry) != {"choices"} or not entry["choices"]:
            raise SweepError(f"space.{key}: choices is a list of at least one value and stands alone")
        return
    for name in entry:
        if name not in ("low", "high", "log", "step"):
            raise SweepError(f"space.{key}: {unknown('entry', name, ['low', 'high', 'log', 'step', 'choices'])}")
    low, high = entry.get("low"), entry.get("high")
    if not isinstance(low, int | float) or not isinstance(high, int | float) or not low < high:
        raise SweepError(f"space.{key} needs numbers low < high, or choices")
    if "step" in entry and (not isinstance(entry["step"], int | float) or entry["step"] <= 0 or entry.get("log")):
        raise SweepError(f"space.{key}: step is a number above 0 and not of a logarithmic range")
    if entry.get("log") and not low > 0:
        raise SweepError(f"space.{key}: a logarithmic range begins above 0, not at {low}")


def import_optuna() -> Any:
    """The library of the search.

    Raises:
        SweepError: It is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise SweepError("a sweep needs Optuna, which is an extra: pip install skyshift[sweep]") from None
    return optuna


def propose(trial: "optuna.Trial", space: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Values of one trial, by key."""
    values: dict[str, Any] = {}
    for key, entry in space.items():
        if "choices" in entry:
            values[key] = trial.suggest_categorical(key, entry["choices"])
            continue
        whole = isinstance(entry["low"], int) and isinstance(entry["high"], int)
        suggest: Any = trial.suggest_int if whole else trial.suggest_float
        options = {name: entry[name] for name in ("log", "step") if name in entry}
        values[key] = suggest(key, entry["low"], entry["high"], **options)
    return values


def arguments_of(config: SweepConfig, values: dict[str, Any], output: Path) -> list[str]:
    """The training command's, for one trial."""
    arguments = ["--config", config.base, "--evaluation", "false", "--output", str(output)]
    for key, value in values.items():
        arguments += [f"--{key}", yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()]
    return arguments


def _checked(config: SweepConfig) -> TrainConfig:
    """The training configuration with the first value of every range, which must be one."""
    first = {key: entry["choices"][0] if "choices" in entry else entry["low"] for key, entry in config.space.items()}
    arguments = arguments_of(config, first, Path(config.output) / "trial")
    training, _ = parse(TrainConfig, arguments, None, "a trial", (TranslationMethod, *NETWORKS))
    if not training.training.validate_every:
        raise SweepError(f"{config.base}: set training.validate_every, by whose values the trials are compared")
    if training.training.monitor not in DIRECTIONS:
        raise SweepError(f"training.monitor: {unknown('validation value', training.training.monitor, DIRECTIONS)}")
    return training


def _validations(log: Path, monitor: str) -> Iterator[tuple[int, float]]:
    """Steps and values so far."""
    for text in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        if text.endswith("}") and f"validation/{monitor}" in (line := json.loads(text)):
            yield line["step"], line[f"validation/{monitor}"]


def _run(config: SweepConfig, trial: "optuna.Trial", folder: Path, monitor: str) -> bool:
    """Train one trial; whether it was stopped for being worse than the others.

    Raises:
        TrialError: The run failed; the message is its own.
    """
    shutil.rmtree(folder, ignore_errors=True)
    arguments = arguments_of(config, propose(trial, config.space), folder)
    module = [sys.executable, "-m", "skyshift.translate.train"]
    folder.mkdir(parents=True)
    reported, pruned = 0, False
    with (folder / "output.txt").open("w", encoding="utf-8") as output:
        process = subprocess.Popen([*module, *arguments], stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                time.sleep(POLL)
                for step, value in _validations(folder / "log.jsonl", monitor):
                    if step > reported:
                        reported = step
                        trial.report(_cost(value, monitor), step)
                        pruned = pruned or (config.prune and trial.should_prune())
                if pruned:
                    process.terminate()  # the run saves what it has and ends
                    process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode and not pruned:
        raise TrialError(_tail(folder / "output.txt"))
    return pruned


def _tail(path: Path) -> str:
    return " ".join(path.read_text(encoding="utf-8", errors="replace").split())[-500:]


def _best_cost(folder: Path, monitor: str) -> float:
    """Of the best validation of a trial that came to its end.

    Raises:
        TrialError: It has no finite value.
    """
    costs = [_cost(value, monitor) for _, value in _validations(folder / "log.jsonl", monitor)]
    if not any(map(math.isfinite, costs)):
        raise TrialError(f"{monitor} was not finite in any of {len(costs)} validations")
    return min(costs)


def _cost(value: float, monitor: str) -> float:
    """What is made small; a value that is not finite is the worst."""
    if not math.isfinite(value):
        return math.inf
    return -value * DIRECTIONS[monitor] if DIRECTIONS[monitor] else abs(value)


def _require_same_search(study: "optuna.Study", config: SweepConfig, output: Path) -> None:
    """Trials of another configuration, space or monitor cannot be compared with new ones.

    Raises:
        SweepError: The study was begun with another.
    """
    base = yaml.safe_load(Path(config.base).read_text(encoding="utf-8"))
    now = json.loads(json.dumps({"base": base, "space": config.space}, default=str))
    before = study.user_attrs.get("search")
    if before is None and not study.trials:
        study.set_user_attr("search", now)
    elif before != now:
        what = "space" if before and before["base"] == now["base"] else "base configuration"
        raise SweepError(f"{output} is a sweep with another {what}; choose another output, or delete that one")


def sweep(config: SweepConfig) -> Path:
    """Search.

    Returns:
        The whole configuration of the best trial.

    Raises:
        SweepError: Optuna is missing, the space is wrong, the output is of another sweep, or all trials failed.
    """
    library = import_optuna()
    monitor, output = _checked(config).training.monitor, Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    journal = library.storages.journal.JournalFileBackend(str(output / "journal.log"))
    study = library.create_study(
        storage=library.storages.JournalStorage(journal),
        study_name="sweep",
        pruner=library.pruners.MedianPruner(n_startup_trials=3),
        load_if_exists=True,
    )
    _require_same_search(study, config, output)
    # A sampler that began again with the same seed would propose the first trials once more.
    study.sampler = library.samplers.TPESampler(seed=config.seed + len(study.trials))
    states = library.trial.TrialState
    for trial in study.get_trials(states=(states.RUNNING,)):  # of a sweep that was cut short
        study.tell(trial.number, state=states.FAIL)
        study.enqueue_trial(trial.params)
    while sum(map(_counts, study.trials)) < config.trials:
        trial = study.ask()
        folder = output / f"trial_{trial.number:04d}"
        try:
            pruned = _run(config, trial, folder, monitor)
            cost = None if pruned else _best_cost(folder, monitor)
        except TrialError as error:
            trial.set_user_attr("error", str(error))
            study.tell(trial, state=states.FAIL)
            said = f"failed ({error})"
        else:
            study.tell(
                trial, state=states.PRUNED if pruned else states.COMPLETE, values=None if cost is None else [cost]
            )
            said = "stopped" if cost is None else f"{cost:.4g}"
        _write(study, output, monitor)
        print(f"trial {trial.number}: {monitor} {said}, {trial.params}", flush=True)
    ended = [trial.user_attrs.get("error") for trial in study.trials if _counts(trial)]
    if all(ended):
        raise SweepError(
            f"all {len(ended)} trials failed, the last with: {ended[-1]}. Mend {config.base} or the space and sweep "
            f"into another output; all messages are in {output / 'trials.json'}"
        )
    return _write(study, output, monitor)


def _counts(trial: "optuna.trial.FrozenTrial") -> bool:
    """Whether a trial came to an end of its own, good or bad; one that was cut short is run again."""
    return trial.state.name in ("COMPLETE", "PRUNED") or "error" in trial.user_attrs


def _write(study: "optuna.Study", output: Path, monitor: str) -> Path:
    """``trials.json``, and ``best.yaml`` once a trial came to its end."""
    rows = [
        {"trial": t.number, "state": t.state.name.lower(), "cost": t.value, "values": t.params, **t.user_attrs}
        for t in study.trials
    ]
    write_json(output / "trials.json", {"monitor": monitor, "trials": rows})
    best = output / "best.yaml"
    if any(row["state"] == "complete" for row in rows):
        chosen = output / f"trial_{study.best_trial.number:04d}" / "config.yaml"
        settings = yaml.safe_load(chosen.read_text(encoding="utf-8"))
        settings |= {"output": str(output / "best"), "evaluation": True}
        write_text(best, yaml.safe_dump(settings, sort_keys=False))
    return best


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    config, _ = parse(SweepConfig, arguments, None, "Search for the best settings of a training run.")
    print(f"best configuration: {sweep(config)}")


if __name__ == "__main__":
    sys.exit(main())
