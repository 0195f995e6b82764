"""The batch-size finder on steps of known speed and known memory."""

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
