"""Sources and targets of two stores: matched view by view, or each split by itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState
from astropy.table import Table
from scipy.ndimage import gaussian_filter

from skyshift.datasets.loading import Draw, Split, split_views
from skyshift.datasets.matched import MatchedStores, _partners
from skyshift.datasets.scaling import fit_scaling
from skyshift.datasets.store import MapStore, StoreError
from skyshift.errors import SkyshiftError
from skyshift.translate.data import DataConfig, TranslationData, open_training
from skyshift.translate.evaluate import Options, evaluate
from skyshift.translate.train import main
from skyshift.translate.translation import Translation


@pytest.fixture(autouse=True, scope="module")
def launch():
    """Accelerate keeps the launch for the whole process; these runs have one of their own."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def observed(store: MapStore, path: Path, *, pixels: int = 32, shift: int = 0, widen: float = 1.0) -> MapStore:
    """HI as a beam and noise leave it, in other units, of the views in reverse order but for the first galaxy."""
    records = [record for record in store.records() if record.galaxy != store.records()[0].galaxy][::-1]
    made = MapStore.create(
        path, units={"hi_seen": "Jy / beam"}, views=len(records), pixels=pixels, shard_views=len(records)
    )
    maps = store.maps("hi", [record.view for record in records])
    seen = np.stack([gaussian_filter(m, 1.5) for m in maps]) + np.random.default_rng(0).normal(0, 1e5, maps.shape)
    rows = [
        replace(record, view=row, side=record.side * widen, galaxy=record.galaxy + shift, flags=0)
        for row, record in enumerate(records)
    ]
    made.write_shard(0, {"hi_seen": (1e-3 * seen[:, :pixels, :pixels]).astype(np.float32)}, rows)
    return made


@pytest.fixture(scope="module")
def store(tiny_store) -> MapStore:
    return MapStore(tiny_store)


@pytest.fixture(scope="module")
def seen(store, tmp_path_factory) -> MapStore:
    return observed(store, tmp_path_factory.mktemp("seen") / "seen.zarr")


def config(store: MapStore, seen: MapStore, **options) -> DataConfig:
    facts = {"source": ["gas"], "target": ["hi_seen"], "store": str(store.path), "target_store": str(seen.path)}
    return DataConfig(**{**facts, **options})


def test_pairs_are_of_the_same_galaxy_and_rotation(store, seen):
    matched = MatchedStores(store, seen, ["gas"], ["hi_seen"])
    catalogue, other = matched.catalogue(), seen.catalogue()
    assert len(catalogue) == len(seen.catalogue()) == len(store.catalogue()) - 2
    np.testing.assert_array_equal(matched.maps("gas"), store.maps("gas", catalogue["view"]))
    for row in (0, 7, -1):
        same = (other["galaxy"] == catalogue["galaxy"][row]) & np.isclose(
            other["rotation"], catalogue["rotation"][row]
        ).all(axis=(1, 2))
        assert same.sum() == 1
        partner = seen.maps("hi_seen", [int(other["view"][same][0])])
        np.testing.assert_array_equal(matched.maps("hi_seen", [int(catalogue["view"][row])]), partner)
    with pytest.raises(StoreError, match="view 0 is not in both stores"):
        matched.maps("gas", [0])


@pytest.mark.parametrize(("error", "pairs"), [(0.4e-6, 3), (3e-6, 0)])
def test_rotations_are_compared_with_a_tolerance(error, pairs):
    """Rounded to steps of the tolerance, two numbers on either side of a step's edge would differ."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3, 3)))[0]
    rotation[0, 0, 0] = 0.4999999e-6  # beside such an edge
    ours = Table({"galaxy": [4, 4, 5], "snapshot": [99, 99, 99], "rotation": rotation})
    theirs = ours[::-1].copy()
    theirs["rotation"] += error
    found = _partners(ours, theirs)
    assert found.tolist() == ([2, 1, 0] if pairs else [-1, -1, -1])
    # Each is taken once, however many look alike.
    twice = Table({"galaxy": [4, 4], "snapshot": [99, 99], "rotation": rotation[[0, 0]]})
    assert _partners(twice, twice).tolist() == [0, 1]
    assert _partners(twice, twice[:1]).tolist() == [0, -1]


def test_matched_data_is_fitted_and_split_as_one_store(store, seen):
    data = TranslationData(config(store, seen), config(store, seen).open())
    sides = split_views(data.store.catalogue(), Split())
    assert all((data.views[part] == sides[part]).all() for part in sides)
    said = data.translation
    assert [channel.unit for channel in (*said.source, *said.target)] == ["Msun / kpc2", "Jy / beam"]
    truth = data.store.maps("hi_seen", data.views["train"])
    assert said.target[0].scaling == fit_scaling("asinh", truth)
    assert said.provenance["fingerprints"] == {"source": store.fingerprint, "target": seen.fingerprint}
    assert said.provenance["matched"]
    assert open_training(said).fingerprint == said.provenance["fingerprint"] == data.store.fingerprint


def test_unpaired_targets_are_of_the_training_part_of_their_own_store(store, seen):
    data = TranslationData(config(store, seen, paired=False), config(store, seen, paired=False).open())
    own = split_views(seen.catalogue(), Split())
    dataset = data.dataset("train")
    drawn = {dataset[Draw(int(data.views["train"][0]), (0, 1, i))]["target_view"] for i in range(200)}
    assert drawn == set(own["train"].tolist())  # 14 views: one is missed by 200 draws once in 2 million times
    sample = dataset[Draw(int(data.views["train"][0]), (0, 1, 5))]
    scaling = fit_scaling("asinh", seen.maps("hi_seen", own["train"]))
    true = scaling.forward(seen.maps("hi_seen", [sample["target_view"]])).astype(np.float32)
    np.testing.assert_array_equal(sample["target"], true)
    assert data.translation.target[0].scaling == scaling
    assert data.translation.provenance["fingerprints"]["target"] == seen.fingerprint
    assert not data.translation.provenance["matched"]
    with pytest.raises(SkyshiftError, match="no source there has a true target to be judged by"):
        open_training(data.translation)


def test_stores_of_different_sizes_are_refused_by_name(store, tmp_path):
    small = observed(store, tmp_path / "small.zarr", pixels=16)
    for paired in (True, False):
        with pytest.raises(StoreError) as error:
            config(store, small, paired=paired).open()
        assert f"{store.path} has 32 × 32 pixels, {small.path} 16 × 16; build or observe" in str(error.value)


def test_other_galaxies_and_other_fields_are_no_pairs(store, tmp_path):
    others = observed(store, tmp_path / "others.zarr", shift=1000)
    with pytest.raises(StoreError, match=r"no view of .* is in .* too .*data\.paired: false"):
        config(store, others).open()
    wide = observed(store, tmp_path / "wide.zarr", widen=1.5)
    with pytest.raises(StoreError, match=r"fields of view differ: .*data\.paired: false"):
        config(store, wide).open()


def test_one_name_on_both_sides_cannot_be_matched(store):
    with pytest.raises(StoreError, match=r"hi is a source domain of .* and a target domain of"):
        DataConfig(str(store.path), target_store=str(store.path), source=["hi"], target=["hi"]).open()


TINY = [
    "--data.build=",
    "--data.source=[gas]",
    "--data.target=[hi_seen]",
    "--training.steps=2",
    "--training.batch_size=2",
    "--training.sample_every=2",
    "--method.init_args.generator.init_args.width=4",
    "--method.init_args.discriminator.init_args.width=4",
]


def command(store, seen, output, *options):
    return [f"--data.store={store.path}", f"--data.target_store={seen.path}", f"--output={output}", *TINY, *options]


def test_a_matched_run_is_evaluated_and_an_unpaired_one_says_why_not(store, seen, tmp_path, capsys, repository):
    main(command(store, seen, tmp_path / "run", "--evaluation=false"))
    found = evaluate(tmp_path / "run", options=Options(metrics=["psnr"], resamples=2))
    assert "gas → hi_seen" in found.title
    assert "another store" not in found.title

    cut = ["--config", str(repository / "configs" / "translate" / "mock_observation.yaml"), "--data.split.by=order"]
    cut += ["--data.split.seed=1", "--method.init_args.dimensions=8", "--method.init_args.patches=16"]
    with pytest.raises(SystemExit):
        main([*cut, *command(store, seen, tmp_path / "cut", "--evaluation=true")])
    assert "are not paired: no source has a true target to evaluate on" in capsys.readouterr().err
    main([*cut, *command(store, seen, tmp_path / "cut")])
    assert list((tmp_path / "cut" / "samples").iterdir())
    kept = Translation.read(tmp_path / "cut" / "checkpoints" / "step_0000002")
    assert kept.provenance["target_store"] == str(seen.path)
    with pytest.raises(SkyshiftError, match="learned without pairs"):
        evaluate(tmp_path / "cut")


def test_a_run_from_before_a_key_goes_on(store, seen, tmp_path):
    """A checkpoint whose configuration lacks the newer keys of the data has their defaults."""
    output = tmp_path / "run"
    options = ["--data.target=[hi]", "--evaluation=false"]
    main([f"--data.store={store.path}", f"--output={output}", *TINY, *options])
    path = output / "checkpoints" / "step_0000002" / "config.yaml"
    plain = yaml.safe_load(path.read_text())
    del plain["data"]["domains"], plain["data"]["target_store"], plain["data"]["shift"], plain["physics"]
    path.write_text(yaml.safe_dump(plain))
    main([f"--data.store={store.path}", f"--output={output}", *TINY, *options, "--resume=true"])
    with pytest.raises(SystemExit):
        main([f"--data.store={store.path}", f"--output={output}", *TINY, *options, "--resume=true", "--data.shift=1"])
