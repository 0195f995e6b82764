"""The memory bank: indexed by view, constant during a step, exact after a checkpoint."""

import pytest
import torch

from skyshift.adapt.memory_bank import BankError, MemoryBank


def bank_of(views=(3, 5, 8, 100)):
    bank = MemoryBank(features=2)
    bank.prepare(torch.tensor(views))
    return bank


def rows(*numbers):
    return torch.tensor([[float(n), -float(n)] for n in numbers])


def test_it_is_indexed_by_the_number_of_the_view():
    bank = bank_of()
    assert bank.positions(torch.tensor([100, 3, 8])).tolist() == [3, 0, 2]
    bank.begin(0)
    bank.put(torch.tensor([100, 3]), features=rows(1, 2))
    bank.begin(1)
    views, values = bank.read()
    assert views.tolist() == [3, 100]
    torch.testing.assert_close(values["features"], rows(2, 1))


def test_it_stays_as_a_step_found_it_until_the_step_is_over():
    bank = bank_of()
    for _ in range(2):  # micro-batches of one step
        bank.begin(0)
        assert len(bank.read()[0]) == 0
        bank.put(torch.tensor([5]), features=rows(1))
    bank.begin(1)
    assert bank.read()[0].tolist() == [5]


def test_the_last_of_a_view_that_is_seen_twice_counts_however_the_step_is_divided():
    whole, parts = bank_of(), bank_of()
    views, values = torch.tensor([5, 3, 5, 8, 3]), rows(1, 2, 3, 4, 5)
    for bank in (whole, parts):
        bank.begin(0)
    whole.put(views, features=values)
    parts.put(views[:2], features=values[:2])
    parts.put(views[2:], features=values[2:])
    for bank in (whole, parts):
        bank.begin(1)
        torch.testing.assert_close(bank.read()[1]["features"], rows(5, 3, 4))


def test_it_carries_no_gradient():
    bank = bank_of()
    bank.put(torch.tensor([5]), features=rows(1).requires_grad_())
    bank.settle()
    assert not bank.read()[1]["features"].requires_grad


def test_a_checkpoint_holds_what_waits_and_makes_its_own_room():
    bank = bank_of()
    bank.begin(7)
    bank.put(torch.tensor([8, 3]), features=rows(1, 2))
    saved = {name: value.clone() for name, value in bank.state_dict().items()}
    for other in (bank_of(), MemoryBank(features=2)):  # to go on with a run; to look at it
        other.load_state_dict(saved)
        assert other.read()[0].tolist() == [3, 8]
        torch.testing.assert_close(other.read()[1]["features"], rows(2, 1))


def test_other_views_are_refused():
    saved = bank_of().state_dict()
    with pytest.raises(RuntimeError, match="4 training views of the target, this run has 3"):
        bank_of((1, 2, 3)).load_state_dict(saved)
    with pytest.raises(RuntimeError, match="or others"):
        bank_of((3, 5, 8, 101)).load_state_dict(saved)


def test_what_it_was_not_made_for_is_named():
    with pytest.raises(BankError, match=r"view 7 of the target is not among the 4 training views \(3 to 100\)"):
        bank_of().put(torch.tensor([3, 7]), features=rows(1, 2))
    with pytest.raises(BankError, match="view 200"):
        bank_of().positions(torch.tensor([200]))
    with pytest.raises(BankError, match="was not prepared"):
        MemoryBank(features=2).positions(torch.tensor([3]))
    for wrong in ([], [3, 3], [5, 3]):
        with pytest.raises(BankError, match="ascending"):
            MemoryBank(features=2).prepare(torch.tensor(wrong, dtype=torch.int64))
