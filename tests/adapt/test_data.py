"""Splits by object over both sides, labels that stay where they belong, and inputs that cannot be."""

import numpy as np
import pytest
import torch

from skyshift.adapt.data import AdaptData, AugmentConfig
from skyshift.adapt.sides import SourceConfig, TargetConfig
from skyshift.adapt.splits import SplitConfig, split_source, split_target
from skyshift.adapt.task import TaskConfig, TaskError
from skyshift.datasets.store import MapStore
from skyshift.engine import LoaderPlan, TrainingConfig
from skyshift.errors import SkyshiftError


def opened(pair, *, source=None, target=None, task=None, split=None, augment=None):
    return AdaptData.open(
        SourceConfig(**{"store": str(pair[0]), "domains": ["clean"], **(source or {})}),
        TargetConfig(**{"store": str(pair[1]), "domains": ["sky"], **(target or {})}),
        task or TaskConfig(),
        split or SplitConfig(0.6, 0.2, 0.2),
        augment or AugmentConfig(),
        0,
    )


def names(side, part):
    listed = np.asarray(side.store.catalogue()["name"])
    return set(side.of_views(listed, side.parts[part]).tolist())


def test_every_class_has_its_share_of_every_part(pair):
    data = opened(pair)
    for part, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        labels = data.source.of_views(data.source_labels, data.source.parts[part])
        np.testing.assert_array_equal(np.bincount(labels), [50 * share] * 3)


def test_an_object_of_both_surveys_is_on_one_side_of_the_split(tmp_path, shapes, write_store):
    """The target holds half of the source's objects in another order, and others."""
    labels = np.arange(60) % 3
    maps = shapes(labels, 0)
    ours = [f"object {i}" for i in range(60)]
    theirs = [f"object {i}" for i in range(59, 29, -1)] + [f"other {i}" for i in range(30)]
    source = MapStore(write_store(tmp_path / "a.zarr", "clean", labels, maps, names=ours))
    target = MapStore(write_store(tmp_path / "b.zarr", "sky", labels, maps, names=theirs))
    split = SplitConfig(0.5, 0.2, 0.3, seed=3)
    parts, known = split_source(source.catalogue(), labels, split)
    others = split_target(target.catalogue(), known, split)
    for part, views in parts.items():
        mine = set(source.catalogue()["name"][views].tolist())
        there = set(target.catalogue()["name"][others[part]].tolist())
        assert {name for name in there if name in known} == mine & set(theirs)
    assert sum(map(len, others.values())) == 60


def test_the_order_of_a_store_does_not_matter(tmp_path, shapes, write_store):
    labels = np.arange(30) % 3
    maps, ours = shapes(labels, 0), [f"object {i}" for i in range(30)]
    order = np.random.default_rng(0).permutation(30)
    one = MapStore(write_store(tmp_path / "a.zarr", "clean", labels, maps, names=ours))
    other = MapStore(
        write_store(tmp_path / "b.zarr", "clean", labels[order], maps[order], names=[ours[i] for i in order])
    )
    sides = [split_source(s.catalogue(), np.asarray(s.catalogue()["label"]), SplitConfig())[1] for s in (one, other)]
    assert sides[0] == sides[1]


def test_target_labels_do_not_move_the_split(tmp_path, pair, write_store):
    labels = np.asarray(MapStore(pair[1]).catalogue()["label"])
    shuffled = np.random.default_rng(0).permutation(labels)
    again = write_store(tmp_path / "sky.zarr", "sky", shuffled, MapStore(pair[1]).maps("sky"))
    assert names(opened(pair).target, "test") == names(opened((pair[0], again)).target, "test")


def test_batches_hold_no_label_of_the_target_unless_a_method_says_so(pair):
    data = opened(pair)
    training = TrainingConfig(batch_size=8)
    batch = next(iter(data.loader(training, LoaderPlan(0, 1, 0, 1), ("target", "target_strong", "source_strong"))))
    assert set(batch) == {
        *("source", "source_view", "source_label", "source_strong", "target", "target_view", "target_strong")
    }
    assert batch["source"].shape == batch["target_strong"].shape == (8, 1, 24, 24)
    labelled = next(iter(data.loader(training, LoaderPlan(0, 1, 0, 1), ("labelled_target",))))
    truth = dict(zip(data.target.views.tolist(), MapStore(pair[1]).catalogue()["label"].tolist(), strict=True))
    assert labelled["target_label"].tolist() == [truth[view] for view in labelled["target_view"].tolist()]


def test_the_two_sides_are_drawn_without_regard_to_each_other(tmp_path, pair):
    """Of one store on both sides, a sample shows the same object twice no more often than by chance: one in 90."""
    data = opened((pair[0], pair[0]), target={"domains": ["clean"]})
    loader = data.loader(TrainingConfig(batch_size=30), LoaderPlan(0, 60, 0, 1), ("target",))
    same = sum(int((batch["source_view"] == batch["target_view"]).sum()) for batch in loader)
    assert same < 45  # 20 ± 4.5 are expected of 1,800


def test_two_processes_see_the_batches_of_one(pair):
    data = opened(pair)
    whole = next(iter(data.loader(TrainingConfig(batch_size=8), LoaderPlan(0, 1, 0, 1), ("target",))))
    parts = [
        next(iter(data.loader(TrainingConfig(batch_size=4), LoaderPlan(0, 1, rank, 2), ("target",)))) for rank in (0, 1)
    ]
    for key in ("source", "target", "source_label"):
        assert (whole[key] == torch.cat([part[key] for part in parts])).all()


def test_balanced_classes_are_drawn_equally_often(tmp_path, pair, shapes, write_store):
    labels = np.array([0] * 60 + [1] * 20 + [2] * 10)
    source = write_store(tmp_path / "a.zarr", "clean", labels, shapes(labels, 0))
    data = opened((source, pair[1]), source={"balanced": True})
    loader = data.loader(TrainingConfig(batch_size=36), LoaderPlan(0, 3, 0, 1), ("target",))  # one epoch of 3 × 36
    drawn = np.concatenate([batch["source_label"].numpy() for batch in loader])
    np.testing.assert_array_equal(np.bincount(drawn), [36, 36, 36])


def test_sides_with_other_ranges_raise_the_alarm(tmp_path, pair, shapes, write_store):
    labels = np.arange(60) % 3
    bright = write_store(tmp_path / "b.zarr", "sky", labels, shapes(labels, 0) + 1.0)
    alarm = opened((pair[0], bright), target={"scaling": {"sky": "asinh"}}).range_alarm()
    assert len(alarm) == 1
    assert "channel 0 (clean and sky)" in alarm[0]
    same = opened((pair[0], pair[0]), target={"domains": ["clean"]})
    assert same.range_alarm() == []


def test_a_regression_sees_scaled_numbers(tmp_path, pair):
    listed = tmp_path / "numbers.csv"
    rows = [f"clean-{i},{10 + 2 * (i % 7)}" for i in range(150)]
    listed.write_text("name,label\n" + "\n".join(rows))
    data = opened(pair, source={"labels": str(listed)}, task=TaskConfig("regression"))
    train = data.source.of_views(data.source_labels, data.source.parts["train"])
    assert abs(train.mean()) < 1e-12
    assert abs(train.std() - 1) < 1e-12
    assert data.task.outputs == 2


# -- what cannot be ---------------------------------------------------------------------------------------------------


def test_sides_of_other_numbers_of_channels_are_refused(tmp_path, pair, shapes, write_store):
    labels = np.arange(60) % 3
    two = write_store(tmp_path / "two.zarr", ("g", "r"), labels, shapes(labels, 0))
    with pytest.raises(SkyshiftError, match=r"the source has 1 channels \(clean\), the target 2 \(g, r\)"):
        opened((pair[0], two), target={"domains": ["g", "r"]})


def test_a_target_smaller_than_a_batch_is_refused(pair):
    with pytest.raises(SkyshiftError, match="the target has 72 training maps, fewer than a batch of 80"):
        opened(pair).loader(TrainingConfig(batch_size=80), LoaderPlan(0, 1, 0, 1), ("target",))


def test_a_label_outside_the_declared_classes_is_refused(pair):
    data = opened(pair, task=TaskConfig(source=["blob", "bar"], target=["blob", "bar"]))
    with pytest.raises(TaskError, match="the label ring is outside the declared classes of the target"):
        data.target_labels(data.target.parts["test"])


def test_a_number_without_a_class_is_refused(tmp_path, pair, shapes, write_store):
    labels = np.array([0, 1, 2, 5] * 15)
    wrong = write_store(tmp_path / "a.zarr", "clean", labels, shapes(labels % 3, 0))
    with pytest.raises(TaskError, match=r"the label 5 is outside the 3 classes \(blob, bar, ring\)"):
        opened((wrong, pair[1]))


def test_an_unknown_class_names_the_nearest(pair):
    with pytest.raises(TaskError, match=r"task\.source.*'rign'.*Did you mean 'ring'"):
        opened(pair, task=TaskConfig(source=["blob", "rign"]))


def test_one_class_alone_is_refused(tmp_path, pair, shapes, write_store):
    labels = np.zeros(60, int)
    one = write_store(tmp_path / "a.zarr", "clean", labels, shapes(labels, 0))
    with pytest.raises(TaskError, match="there is no training map of class bar, ring"):
        opened((one, pair[1]))


def test_a_regime_that_was_not_meant_is_refused(pair):
    with pytest.raises(TaskError, match="regime is closed, but the declared classes are partial: absent from the tar"):
        opened(pair, task=TaskConfig(target=["blob", "bar"], regime="closed"))


def test_the_four_regimes_follow_from_the_declaration(pair):
    def regime(source, target):
        return opened(pair, task=TaskConfig(source=source, target=target)).task.regime

    every = ["blob", "bar", "ring"]
    assert regime(every, every) == "closed"
    assert regime(every, every[:2]) == "partial"
    assert regime(every[:2], every) == "open"
    assert regime(every[:2], every[1:]) == "open-partial"
