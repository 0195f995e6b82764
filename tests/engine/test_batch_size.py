"""The batch-size finder on steps of known speed and known memory."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from skyshift.batch_size import chosen, find_batch_size
from skyshift.training import TrainingError


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the steps move, so that what else the machine does is no part of the test."""
    now = [0.0]
    monkeypatch.setattr("skyshift.batch_size.time.perf_counter", lambda: now[0])
    return now


def steps_of(clock, limit, overhead=0.01, each=0.0):
    """A step of b samples takes ``overhead + each·b`` seconds; above ``limit`` samples memory is out."""

    def steps(size):
        while True:
            if size > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            clock[0] += overhead + each * size
            yield

    return steps


def test_it_ends_where_memory_does(clock):
    trials = find_batch_size(steps_of(clock, limit=10))
    assert [trial.batch_size for trial in trials] == [1, 2, 4, 8, 16]
    assert trials[-1].samples_per_second is None
    assert chosen(trials) == 8  # a step takes as long whatever its size: the largest is the fastest


def test_it_ends_where_more_samples_are_no_faster(clock):
    """20 ms a sample and 1 ms a step: 2 samples are 2.4 % faster than 1."""
    trials = find_batch_size(steps_of(clock, limit=99, overhead=0.001, each=0.02))
    assert [trial.batch_size for trial in trials] == [1, 2]
    assert chosen(trials) == 1


def test_nothing_fits(clock):
    with pytest.raises(TrainingError, match="not even a batch of one sample fits"):
        find_batch_size(steps_of(clock, limit=0))


def test_other_errors_are_not_taken_for_memory():
    def steps(size):
        raise RuntimeError("the networks do not fit together")
        yield

    with pytest.raises(RuntimeError, match="do not fit together"):
        find_batch_size(steps)


def test_without_the_resource_module_it_measures_what_there_is():
    """As on Windows, where the module is not."""
    script = """
import sys
import psutil, torch
sys.modules["resource"] = None  # as Python itself marks what cannot be imported
from skyshift import batch_size
before = batch_size._memory()
held = torch.ones(2**24)  # 64 MiB
assert batch_size.resource is None
assert batch_size._memory() - before > 0.9 * held.nbytes
"""
    subprocess.run([sys.executable, "-c", script], check=True)


WORLD = """
    import json, sys
    from pathlib import Path
    import torch
    from accelerate import PartialState
    from torch import nn
    from skyshift import batch_size
    from skyshift.engine import Method, Trainer, TrainingConfig

    out, state = Path(sys.argv[1]), PartialState(cpu=True)
    steps = []

    class Small(Method):
        players = ("net",)

        def __init__(self):
            super().__init__()
            self.net = nn.Linear(1, 1)

        def loss(self, player, networks, batch, shared):
            size = len(batch["x"])
            if size > (4 if state.process_index == 1 else 64):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            steps.append(size)
            return networks["net"](batch["x"]).square().mean(), {}

    batch_size.time.perf_counter = iter(range(10**6)).__next__  # a step takes as long whatever its size

    def steps_of(size):
        training = TrainingConfig(batch_size=size, precision="no", average=0.0)
        method = Small()
        first = method.net.weight.item()
        trainer = Trainer(method, lambda plan: [], training, out / f"run_{size}")
        weight = trainer.method.net.weight.item()
        for number, _ in enumerate(trainer.trial_steps(iter([{"x": torch.ones(size, 1)}] * 9))):
            assert (trainer.method.net.weight.item() == weight) == (number == 0)
            yield

    trials = batch_size.find_batch_size(steps_of)
    found = {"trials": [[t.batch_size, t.samples_per_second] for t in trials], "steps": steps}
    (out / f"{state.process_index}.json").write_text(json.dumps(found))
    state.destroy_process_group()
"""


def test_processes_end_together_where_the_memory_of_one_does(tmp_path):
    """One has memory for 4 samples, the other for 64: neither waits for the other, and both have found the same."""
    (tmp_path / "world.py").write_text(textwrap.dedent(WORLD))
    quiet = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(tmp_path / "world.py"), str(tmp_path)],
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        timeout=200,  # a process that waits for the other would end here
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0]["trials"] == found[1]["trials"]
    assert [size for size, _ in found[0]["trials"]] == [1, 2, 4, 8]
    assert [speed is None for _, speed in found[0]["trials"]] == [False, False, False, True]
    # One step alone and four that are timed; of the last size the one alone, on the process that had memory for it.
    assert found[1]["steps"] == [1] * 5 + [2] * 5 + [4] * 5
    assert found[0]["steps"] == [*found[1]["steps"], 8]
