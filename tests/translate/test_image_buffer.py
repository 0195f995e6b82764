"""The image buffer: what it gives back and keeps, whatever the batches, and that a checkpoint holds all of it."""

import math

import pytest
import torch

from skyshift.errors import SkyshiftError
from skyshift.translate.methods.image_buffer import ImageBuffer


def buffer_of(size=5, seed=0):
    torch.manual_seed(seed)
    return ImageBuffer(size)


def numbered(first, last):
    """Maps of one pixel that hold their number."""
    return torch.arange(first, last, dtype=torch.float32)[:, None, None, None]


def returned(buffer, count, batch=1):
    parts = [torch.empty(0, 1, 1, 1)]
    parts += [buffer(numbered(start, min(start + batch, count))) for start in range(0, count, batch)]
    return torch.cat(parts).ravel().tolist()


def test_the_first_maps_come_back_and_are_kept():
    buffer = buffer_of(5)
    assert returned(buffer, 5, 2) == [0, 1, 2, 3, 4]
    assert buffer.maps.ravel().tolist() == [0, 1, 2, 3, 4]


def test_no_map_is_lost_or_doubled():
    """Once the buffer is full every map either leaves it once or is still there."""
    buffer = buffer_of(5)
    back = returned(buffer, 300, 4)
    assert sorted([*back[5:], *buffer.maps.ravel().tolist()]) == list(range(300))


def test_half_of_the_maps_are_exchanged_and_the_kept_ones_drawn_evenly():
    count, size = 4000, 5
    back = returned(buffer_of(size), count)
    ages = [number - value for number, value in enumerate(back)][size:]
    old = [age for age in ages if age]
    # Binomial of n = 3995 and p = ½, within four standard deviations.
    assert abs(len(old) - 0.5 * len(ages)) < 4 * math.sqrt(0.25 * len(ages))
    # A kept map leaves with probability 1/(2·5) a step: its age is geometric with mean 10 and deviation √90.
    assert sum(old) / len(old) == pytest.approx(10.0, abs=4 * math.sqrt(90 / len(old)))


@pytest.mark.parametrize("batch", [2, 8, 60])
def test_what_happens_to_a_map_depends_on_its_number_alone(batch):
    """So micro-batches, and the shares of several processes, are one large batch."""
    assert returned(buffer_of(7), 60, batch) == returned(buffer_of(7), 60, 1)


def test_another_seed_is_another_history_and_nobody_elses_numbers_are_drawn():
    one, other = buffer_of(seed=0), buffer_of(seed=1)
    before = torch.get_rng_state()
    assert returned(one, 60) != returned(other, 60)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seen", [0, 3, 40])
def test_its_state_is_all_of_it(seen):
    buffer = buffer_of()
    returned(buffer, seen)
    fresh = buffer_of(seed=9)
    fresh.load_state_dict({name: value.clone() for name, value in buffer.state_dict().items()})
    new = numbered(100, 140)
    assert torch.equal(fresh(new), buffer(new))
    assert torch.equal(fresh.maps, buffer.maps)


def test_weights_without_a_buffer_leave_it_as_it_is():
    """A checkpoint for inference need not carry it."""
    buffer = buffer_of()
    returned(buffer, 8)
    before = {name: value.clone() for name, value in buffer.state_dict().items()}
    buffer.load_state_dict({})
    assert all(torch.equal(value, before[name]) for name, value in buffer.state_dict().items())


def test_what_comes_back_carries_no_gradient_and_is_float32():
    maps = torch.ones(2, 1, 4, 4, requires_grad=True)
    for size in (0, 5):
        back = buffer_of(size)((maps * 2).bfloat16())
        assert not back.requires_grad
        assert back.dtype == torch.float32
        assert torch.equal(back, maps.detach() * 2)


def test_no_size_is_no_buffer():
    assert returned(buffer_of(0), 30, 3) == list(range(30))


def test_wrong_sizes_are_refused_and_nothing_is_lost():
    with pytest.raises(SkyshiftError, match=r"buffer_size is -1; it is a number of maps, or 0 for no buffer"):
        ImageBuffer(-1)
    buffer = buffer_of()
    returned(buffer, 3)
    with pytest.raises(SkyshiftError, match=r"keeps maps of shape \(1, 1, 1\) and got \(1, 2, 2\); train on"):
        buffer(torch.zeros(1, 1, 2, 2))
    assert int(buffer.seen) == 3
    assert returned(buffer, 2) == [0, 1]
