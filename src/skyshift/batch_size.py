"""Which batch size to train with: the throughput of real steps at 1, 2, 4, … samples a batch, until it stops rising.

A batch size b is tried with a few optimizer steps of the run itself: its networks, losses, precision and launch. The
search ends where memory does, or where twice the batch gives less than 5 % more samples a second; chosen is the
smallest batch within 5 % of the fastest. On a CPU, where too large a batch would not fail but drive the machine into
swapping, a size is not tried when twice the growth of the last one exceeds the memory that is free.

Several processes decide together: a size fails where it does for one of them, and is as fast as for the slowest. The
first step of a size asks for no other process, so that one whose memory is out leaves none waiting for it; but for
divided weights (FSDP), which no process can compute with alone.

The trial steps change the weights: start the training anew afterwards.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import should_reduce_batch_size

from skyshift.training import TrainingError

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

GAIN = 1.05
"""Rise of the throughput from one size to twice that, below which larger batches are not worth their memory."""


@dataclass(frozen=True)
class Trial:
    """One batch size.

    Attributes:
        batch_size: Samples of one process in one micro-batch.
        samples_per_second: Of one process, the slowest, in optimizer steps without loading; ``None`` where memory was
            too small.
        memory: Peak of one process, bytes: of the GPU, or by which it has grown.
    """

    batch_size: int
    samples_per_second: float | None
    memory: int


def find_batch_size(steps_of: Callable[[int], Iterator[None]], *, largest: int = 4096, steps: int = 4) -> list[Trial]:
    """Try batch sizes. All processes of a launch call it.

    Args:
        steps_of: Batch size to an iterator whose every item is an optimizer step done; the first, without other
            processes.
        largest: Where to end at the latest; the number of training samples, say.
        steps: Timed steps of each size, after one that warms up.

    Returns:
        The trials, from 1 on, the same on every process.

    Raises:
        TrainingError: Not even one sample fits.
    """
    trials: list[Trial] = []
    size = 1
    while size <= largest and not _too_large(trials):
        trial = _slowest(_try(steps_of, size, steps))
        trials.append(trial)
        if trial.samples_per_second is None:
            break
        before = trials[-2].samples_per_second if len(trials) > 1 else None
        if before and trial.samples_per_second < GAIN * before:
            break
        size *= 2
    if trials[0].samples_per_second is None:
        raise TrainingError("not even a batch of one sample fits into memory: take smaller networks or maps")
    return trials


def chosen(trials: list[Trial]) -> int:
    """The smallest batch size whose throughput is within 5 % of the largest."""
    speeds = {trial.batch_size: trial.samples_per_second for trial in trials if trial.samples_per_second is not None}
    return min(size for size, speed in speeds.items() if speed * GAIN >= max(speeds.values()))


def table(trials: list[Trial]) -> str:
    """As text."""
    lines = ["batch size   samples/s   memory [MiB]"]
    for trial in trials:
        speed = "no memory" if trial.samples_per_second is None else f"{trial.samples_per_second:.1f}"
        lines.append(f"{trial.batch_size:10d}   {speed:>9s}   {trial.memory / 2**20:12.0f}")
    return "\n".join(lines)


def facts(trials: list[Trial]) -> dict[str, Any]:
    """As plain values."""
    return {"batch_size": chosen(trials), "trials": [asdict(trial) for trial in trials]}


def _together(value: Any) -> list[Any]:
    """A value of each process."""
    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    return list(gather_object([value])) if several else [value]


def _slowest(trial: Trial) -> Trial:
    """What all processes take a trial to have been."""
    trials = _together(trial)
    speeds = [one.samples_per_second for one in trials]
    return Trial(trial.batch_size, None if None in speeds else min(speeds), max(one.memory for one in trials))


def _try(steps_of: Callable[[int], Iterator[None]], size: int, steps: int) -> Trial:
    before, fits = _memory(), False
    try:
        iterator = steps_of(size)
        next(iterator)
        _wait()
        fits = True
        if not all(_together(fits)):
            return Trial(size, None, _memory() - before)
        started = time.perf_counter()
        for _ in itertools.islice(iterator, steps):
            pass
        _wait()
        speed = size * steps / (time.perf_counter() - started)
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
        if not fits:
            _together(fits)  # the others ask
        return Trial(size, None, _memory() - before)
    return Trial(size, speed, _memory() - before)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _memory() -> int:
    """Peak so far, bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        seen = psutil.Process().memory_info()
        return int(getattr(seen, "peak_wset", seen.rss))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _too_large(trials: list[Trial]) -> bool:
    """Whether twice the last size would not fit into the free memory of a machine; a GPU says so itself."""
    if torch.cuda.is_available() or not trials:
        return False
    return any(_together(2 * max(trial.memory for trial in trials) > psutil.virtual_memory().available))
