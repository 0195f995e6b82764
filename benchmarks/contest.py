"""Several methods trained on the same store with the same budget: what the benchmarks of translations share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray
from report import ROOT

from skyshift.checkpoint import latest
from skyshift.files import write_json

Result = TypeVar("Result")
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Trained:
    """A run: its folder, the processor seconds of the whole command, and its peak resident memory in GiB.

    Processor seconds, of one thread: what else the machine does hardly counts.
    """

    folder: str
    seconds: float
    memory: float


def shipped(name: str) -> dict[str, Any]:
    """``configs/translate/{name}.yaml`` as plain values."""
    return dict(yaml.safe_load((ROOT / "configs" / "translate" / f"{name}.yaml").read_text(encoding="utf-8")))


def train(config: Mapping[str, Any], folder: Path) -> Trained:
    """Run ``translate/train.py`` with one thread in a process of its own.

    A run that was finished before is not done again: its record is read.

    Args:
        config: As ``--config`` takes it; ``output`` and ``evaluation`` are set here.
        folder: Of the run.

    Raises:
        RuntimeError: The command failed.
    """
    record = folder / "trained.json"
    if record.is_file() and latest(folder):
        return Trained(**json.loads(record.read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "asked.yaml"
    path.write_text(yaml.safe_dump({**config, "output": str(folder), "evaluation": False, "resume": True}), "utf-8")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with (folder / "output.txt").open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, ROOT / "translate" / "train.py", "--config", path],
            env={**os.environ, **threads, "OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{folder}: {(folder / 'output.txt').read_text(encoding='utf-8')[-2000:]}")
    made = Trained(str(folder), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024**2)
    write_json(record, asdict(made))
    return made


def two_at_a_time(act: Callable[[Entry], Result], entries: Iterable[Entry]) -> list[Result]:
    """Results in order, with two processes running side by side, as many as there are cores on the smallest machine."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(act, entries))


def over_seeds(values: Iterable[float]) -> str:
    """Mean and standard deviation over the seeds, with three significant digits of the mean."""
    found = np.array([value for value in values if np.isfinite(value)], np.float64)
    if not found.size:
        return "–"
    digits = max(0, 2 - int(np.floor(np.log10(max(abs(found.mean()), 1e-9)))))
    spread = f" ± {found.std(ddof=1):.{digits}f}" if found.size > 1 else ""
    return f"{found.mean():.{digits}f}{spread}"


def bootstrap(
    values: NDArray[np.float64], statistic: Callable[..., Any] = np.median, seed: int = 0
) -> tuple[float, float, float]:
    """A statistic and its 95 % interval over 2,000 resamplings of the objects."""
    draws = np.random.default_rng(seed).choice(values, (2000, len(values)))
    low, high = np.quantile(statistic(draws, axis=1), [0.025, 0.975])
    return float(statistic(values)), float(low), float(high)
