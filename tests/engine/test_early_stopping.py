"""Early stopping: which checkpoint is best, when a run ends, and that a resumed run decides as the straight one."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed
from torch import nn

from skyshift.checkpoint import CheckpointError, best, latest
from skyshift.engine import Hooks, Method, Trainer, TrainingConfig, TrainingError
from skyshift.translate.translation import find_checkpoint
from skyshift.validation import Watch


class Falling(Method):
    """The loss is w: AdamW takes a constant step of the learning rate down, so that w after n steps is 1 - n/10."""

    players = averaged = ("net",)

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.net.weight)

    def loss(self, player, networks, batch, shared):
        return networks["net"](batch["x"]).mean(), {}


def run_of(folder, *, resume=False, validate=None, fail_at=None, **training):
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    set_seed(0)

    def loader(plan):
        for number in range(plan.first, plan.last):
            if number == fail_at:
                raise InterruptedError
            yield {"x": torch.ones(1, 1)}

    options = {"steps": 12, "batch_size": 1, "precision": "no", "log_every": 1, "checkpoint_every": 4, "keep": 1}
    options |= {"learning_rate": 0.1, "schedule": "constant", "average": 0.0, "monitor": "distance"}
    validate = validate or (lambda method: {"distance": float((method.net.weight - 0.55).abs())})
    hooks = Hooks(validate=validate, directions={"distance": -1, "score": 1, "bias": 0})
    config = TrainingConfig(**{**options, "validate_every": 1, "patience": 3, **training})
    return Trainer(Falling(), loader, config, folder, hooks, resume=resume)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def validations(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["validation/distance"] for line in lines if "validation/distance" in line}


def test_a_run_stops_at_its_patience_and_keeps_the_best(tmp_path):
    """|w - 0.55| falls to step 4 (w = 0.6) or 5 (0.5), equal but for rounding, and rises from there."""
    run_of(tmp_path).run()
    values = validations(tmp_path)
    assert values == pytest.approx({n: abs(1 - n / 10 - 0.55) for n in values}, abs=1e-5)
    chosen = min(values, key=values.get)
    assert chosen in (4, 5)
    assert max(values) == chosen + 3
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "checkpoint": f"step_{chosen:07d}",
        "monitor": "distance",
        "best": values[chosen],
        "step": chosen,
    }
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == [f"step_{chosen:07d}", f"step_{chosen + 3:07d}"]  # keep = 1 has dropped the others
    assert best(tmp_path).name == kept[0]
    assert find_checkpoint(tmp_path) == best(tmp_path)
    before = contents(tmp_path)
    assert run_of(tmp_path, resume=True).run() == latest(tmp_path)  # it has ended
    assert contents(tmp_path) == before


@pytest.mark.parametrize("fail_at", [3, 6])
def test_a_resumed_run_stops_where_the_straight_one_does(tmp_path, fail_at):
    run_of(tmp_path / "straight").run()
    with pytest.raises(InterruptedError):
        run_of(tmp_path / "broken", fail_at=fail_at).run()
    (tmp_path / "broken" / "best.json").unlink()  # as after a crash between checkpoint and mark
    run_of(tmp_path / "broken", resume=True).run()
    for name in ("checkpoints", "best.json"):
        broken, straight = tmp_path / "broken" / name, tmp_path / "straight" / name
        if broken.is_dir():
            assert contents(broken) == contents(straight)
        else:
            assert broken.read_bytes() == straight.read_bytes()
    assert validations(tmp_path / "broken") == validations(tmp_path / "straight")


def test_validating_changes_nothing_but_the_best(tmp_path):
    """Random numbers that a validation draws are not missing in the training."""

    def draws(method):
        return {"distance": float(torch.rand(()))}

    run_of(tmp_path / "with", validate=draws, patience=0).run()
    run_of(tmp_path / "without", validate_every=0, patience=0).run()
    one, other = (latest(tmp_path / name) for name in ("with", "without"))
    assert one.name == other.name == "step_0000012"
    for name in ("model.safetensors", "state/net.safetensors", "state/random_0000.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_the_averaged_weights_are_judged(tmp_path):
    seen = []

    def validate(method):
        seen.append((method.training, float(method.net.weight)))
        return {"distance": 0.0}

    trainer = run_of(tmp_path, validate=validate, average=0.9, patience=0, steps=6)
    trainer.run()
    with trainer.averaged_method() as averaged:
        assert seen[-1] == (False, float(averaged.net.weight))
    assert float(trainer.method.net.weight) < seen[-1][1]  # the average lags behind
    assert trainer.method.training


def test_a_run_whose_value_is_never_finite_ends_with_an_error(tmp_path):
    """After three validations in a row, and again when it is told to go on; its weights are kept."""

    def nothing(method):
        return {"distance": float("nan")}

    says = r"stopped at step 3: training\.monitor: distance was not finite in any of 3 validations.*step_0000003"
    for resume in (False, True):
        with pytest.raises(TrainingError, match=says):
            run_of(tmp_path, validate=nothing, resume=resume).run()
    assert latest(tmp_path).name == "step_0000003"
    assert best(tmp_path) is None


def test_without_patience_it_says_so_at_the_end(tmp_path, capsys):
    values = iter([float("nan")] * 3 + [float("inf")] * 9)
    found = run_of(tmp_path / "none", validate=lambda method: {"distance": next(values)}, patience=0).run()
    assert found.name == "step_0000012"
    assert (
        "distance was not finite in any of 12 validations, so that no checkpoint is the best" in capsys.readouterr().out
    )
    run_of(tmp_path / "one", patience=0).run()
    assert "not finite" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("direction", "values", "chosen"),
    [(-1, [3.0, 1.0, 2.0], 2), (1, [3.0, 4.0, 2.0], 2), (0, [-3.0, 2.0, -1.0], 3), (-1, [2.0, float("nan"), 2.0], 1)],
)
def test_better_has_a_direction(direction, values, chosen):
    watch = Watch("value", direction, 0)
    for step, value in enumerate(values, start=1):
        watch.see(step, value)
    assert watch.step == chosen
    assert not watch.exhausted


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"monitor": "distanse"}, "training.monitor: unknown validation value 'distanse'.*distance"),
        ({"validate_every": -1}, "validate_every must be 0"),
        ({"validate_every": 0}, "patience counts validations: set training.validate_every"),
    ],
)
def test_a_watch_that_cannot_be_is_refused(tmp_path, training, says):
    with pytest.raises(TrainingError, match=says):
        run_of(tmp_path, **training)
    assert not contents(tmp_path)


def test_a_damaged_or_missing_best_is_named(tmp_path):
    run_of(tmp_path).run()
    (tmp_path / "best.json").write_text('{"checkpoint": "step_0000999"}')
    with pytest.raises(CheckpointError, match="names step_0000999, which is not there"):
        best(tmp_path)
    (tmp_path / "best.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
        best(tmp_path)
