"""Splits by galaxy, pairs that are pairs, batches that depend on seed and step alone, and scalings of training maps."""

import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from astropy.table import Table

from skyshift.datasets import loading
from skyshift.datasets.loading import PARTS, Draw, MapDataset, Split, StepSampler, fit_scalings, split_views
from skyshift.datasets.scaling import Linear
from skyshift.datasets.store import MapStore, StoreError, ViewRecord
from skyshift.errors import SkyshiftError

UNITY = {"gas": Linear(), "hi": Linear(), "stars": Linear()}


def catalogue(sizes: list[int]) -> Table:
    """Views of groups of the given sizes, in mixed order; group numbers have gaps, as catalogues have."""
    group = np.repeat(7 * np.arange(len(sizes)) + 3, sizes)
    return Table({"view": np.arange(len(group)), "split_group": np.random.default_rng(0).permutation(group)})


def write_store(path: Path, galaxies: int = 10, rotations: int = 4, pixels: int = 6) -> MapStore:
    """Every pixel of a map of view v in domain d starts with 100 v + d, so that a map says what it is."""
    views = galaxies * rotations
    units = {"gas": "Msun / kpc2", "hi": "Msun / kpc2", "stars": "Msun / kpc2"}
    store = MapStore.create(path, units=units, views=views, pixels=pixels, shard_views=rotations * 2)
    pattern = np.arange(pixels**2).reshape(pixels, pixels) / pixels**2  # without any symmetry
    for shard in range(store.shards):
        rows = store.shard_rows(shard)
        maps = {
            name: np.stack([100 * v + d + pattern for v in rows]).astype(np.float32) for d, name in enumerate(units)
        }
        eye = tuple(np.eye(3).ravel())
        records = [ViewRecord(v, v // rotations, str(v), v // rotations, 99, 0.0, eye, 1.0, 0.0, -1, 0) for v in rows]
        store.write_shard(shard, maps, records)
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> MapStore:
    return write_store(tmp_path_factory.mktemp("loading") / "maps.zarr")


# splits


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [[4] * 30, [1] * 500, [40, 30, 20, 10, 5, 5, 5, 5, 3, 2, 1, 1], [60, *[1] * 40]])
def test_no_galaxy_is_on_two_sides(sizes, seed):
    table = catalogue(sizes)
    parts = split_views(table, Split(seed=seed))
    groups = {part: set(np.asarray(table["split_group"])[views]) for part, views in parts.items()}
    assert not any(groups[a] & groups[b] for a in PARTS for b in PARTS if a != b)
    everything = np.concatenate([parts[part] for part in PARTS])
    np.testing.assert_array_equal(np.sort(everything), np.arange(len(table)))
    assert all((np.diff(views) > 0).all() for views in parts.values())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("sizes", "off"), [([4] * 30, 4), ([1] * 500, 1), ([40, 30, 20, 10, 5, 5, 5, 5, 3, 2, 1, 1], 5)]
)
def test_shares_are_close_to_what_was_asked_for(sizes, off, seed):
    """Within a group of the size with which the gaps are filled at the end (``off`` views)."""
    table = catalogue(sizes)
    parts = split_views(table, Split(seed=seed))
    for part, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert abs(len(parts[part]) - share * len(table)) <= off, part


def test_a_group_too_large_for_its_share_goes_where_it_fits_best():
    """One region of overlapping spheres holds 60 % of the views: it trains, and the two others stay filled."""
    parts = split_views(catalogue([60, *[1] * 40]), Split())
    assert len(parts["train"]) == pytest.approx(70, abs=1)
    assert len(parts["validation"]) == pytest.approx(10, abs=1)


def test_the_same_seed_gives_the_same_split_and_another_one_another():
    table = catalogue([4] * 30)
    first, again, other = (split_views(table, Split(seed=seed)) for seed in (1, 1, 2))
    for part in PARTS:
        np.testing.assert_array_equal(first[part], again[part])
    assert not np.array_equal(first["test"], other["test"])
    shuffled = table[np.random.default_rng(3).permutation(len(table))]
    moved = split_views(shuffled, Split(seed=1))
    for part in PARTS:
        np.testing.assert_array_equal(first[part], moved[part])


def test_parts_that_are_not_asked_for_are_empty():
    parts = split_views(catalogue([4] * 10), Split(train=0.5, validation=0.5, test=0.0))
    assert len(parts["test"]) == 0
    assert len(parts["train"]) == len(parts["validation"]) == 20


def test_too_few_galaxies_for_a_split():
    with pytest.raises(SkyshiftError, match=r"2 galaxies are too few for a (validation|test) part of 0\.[12]"):
        split_views(catalogue([4, 4]), Split())
    for shares in ((0.5, 0.1, 0.1), (1.2, -0.1, -0.1)):
        with pytest.raises(SkyshiftError, match=r"the shares of a split are positive and sum to 1, not \["):
            Split(*shares)


# pairs


def test_a_pair_is_one_view_in_two_domains(tiny_store):
    store = MapStore(tiny_store)
    scalings = fit_scalings(store, ["gas", "hi", "stars"], np.arange(24), {})
    data = MapDataset(store, ["gas", "stars"], ["hi"], np.arange(24), scalings)
    for view in (0, 7, 23):
        sample = data[view]
        assert sample["view"] == view
        assert "target_view" not in sample
        for key, domains in (("source", ["gas", "stars"]), ("target", ["hi"])):
            assert sample[key].dtype == torch.float32
            expected = [scalings[name].forward(store.maps(name, [view])[0]).astype(np.float32) for name in domains]
            np.testing.assert_array_equal(sample[key].numpy(), np.stack(expected))


def test_an_unpaired_target_is_another_galaxy(store):
    views = np.arange(store.views)
    data = MapDataset(store, ["gas"], ["hi"], views, UNITY, paired=False)
    seen = Counter()
    for seed in range(40):
        for view in (0, 5, 39):
            sample = data[Draw(view, (0, 1, seed))]
            assert int(sample["source"][0, 0, 0]) == 100 * view
            assert int(sample["target"][0, 0, 0]) == 100 * sample["target_view"] + 1, "the map is the view it names"
            assert sample["target_view"] // 4 != view // 4
            seen[sample["target_view"]] += 1
    assert len(seen) > 30, "partners are drawn from all other galaxies"
    again = data[Draw(5, (0, 1, 7))]
    assert again["target_view"] == data[Draw(5, (0, 1, 7))]["target_view"]


def test_unpaired_partners_stay_in_their_part(store):
    views = np.arange(8, 24)
    data = MapDataset(store, ["gas"], ["hi"], views, UNITY, paired=False)
    assert {data[Draw(9, (i,))]["target_view"] for i in range(60)} <= set(views)
    with pytest.raises(SkyshiftError, match="unpaired samples need at least two galaxies"):
        MapDataset(store, ["gas"], ["hi"], np.arange(4), UNITY, paired=False)
    with pytest.raises(SkyshiftError, match="there are no views to take"):
        MapDataset(store, ["gas"], ["hi"], np.arange(0), UNITY)
    with pytest.raises(StoreError, match=r"unknown domain 'HI'\. Did you mean 'hi'"):
        MapDataset(store, ["gas"], ["HI"], views, UNITY)


def test_augmentation_turns_source_and_target_alike(store):
    """Target less source is one number per pair, whatever the symmetry; all eight occur, each as often (3σ)."""
    data = MapDataset(store, ["gas", "stars"], ["hi"], np.arange(store.views), UNITY, augment=True)
    plain = MapDataset(store, ["gas", "stars"], ["hi"], np.arange(store.views), UNITY)[3]["source"][0].numpy()
    symmetries = [np.rot90(m, k) for m in (plain, plain[:, ::-1]) for k in range(4)]
    found = Counter()
    for seed in range(800):
        sample = data[Draw(3, (seed,))]
        source, target = sample["source"].numpy(), sample["target"].numpy()
        # 301 - 300, in float32 near 300: 3e-5
        np.testing.assert_allclose(target[0] - source[0], 1.0, atol=1e-4)
        np.testing.assert_allclose(source[1] - source[0], 2.0, atol=1e-4)
        found[next(i for i, m in enumerate(symmetries) if np.array_equal(source[0], m))] += 1
    assert sorted(found) == list(range(8))
    assert max(abs(count - 100) for count in found.values()) < 3 * np.sqrt(800 * (1 / 8) * (7 / 8)) + 5


# steps


def sampler(views: np.ndarray, batch: int, **changes: int) -> list[list[Draw]]:
    return list(StepSampler(views, batch, **({"steps": 23, "seed": 4} | changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_batches_of_one(processes):
    """Together, in the order of their ranks, they draw what one process does with a batch as many times as large."""
    views = np.arange(100, 137)
    one = sampler(views, 2 * processes)
    parts = [sampler(views, 2, process=p, processes=processes) for p in range(processes)]
    for step, batch in enumerate(one):
        assert [draw for part in parts for draw in part[step]] == batch


def test_going_on_is_as_if_never_stopped():
    views = np.arange(37)
    whole = sampler(views, 5)
    assert len(whole) == 23
    for first in (0, 1, 9, 22, 23):
        assert sampler(views, 5, first=first) == whole[first:]
        assert len(StepSampler(views, 5, 23, first=first)) == 23 - first
    assert len(StepSampler(views, 5, 23, first=30)) == 0


def test_every_view_is_seen_once_an_epoch_in_ever_new_order():
    views = np.arange(50, 87)
    draws = [draw for batch in sampler(views, 5, steps=37 * 3 // 5 * 5) for draw in batch]
    epochs = [[d.view for d in draws[i : i + 37]] for i in range(0, 37 * 5, 37)]
    assert all(sorted(epoch) == list(views) for epoch in epochs)
    assert all(a != b for a, b in pairwise(epochs))
    assert len({draw.seed for draw in draws}) == len(draws), "no augmentation is repeated"
    assert all(len(batch) == 5 for batch in sampler(views, 5))
    assert sampler(views, 5, seed=5) != sampler(views, 5)
    larger = sampler(np.arange(3), 8, steps=2)  # a batch larger than the data runs through several epochs
    assert Counter(d.view for d in larger[0] + larger[1][:1]) == Counter({0: 3, 1: 3, 2: 3})


def test_a_loader_gives_the_same_batches_with_workers(store):
    """Worker processes change nothing: every sample depends on its draw alone."""
    data = MapDataset(store, ["gas"], ["hi"], np.arange(store.views), UNITY, paired=False, augment=True)
    steps = StepSampler(data.views, 4, 3, seed=1)
    batches = [
        list(torch.utils.data.DataLoader(data, batch_sampler=steps, num_workers=n, multiprocessing_context=c))
        for n, c in ((0, None), (1, "fork"))
    ]
    for left, right in zip(*batches, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


# memory and scalings


def test_memory_and_store_give_the_same_samples(tiny_store, monkeypatch):
    store = MapStore(tiny_store)
    views = np.array([1, 2, 5, 9, 20])
    scalings = fit_scalings(store, ["gas", "hi"], views, {})
    held = MapDataset(store, ["gas"], ["hi"], views, scalings, augment=True)
    assert held._source._held is not None
    monkeypatch.setattr(loading, "MEMORY_LIMIT", 0)
    read = MapDataset(store, ["gas"], ["hi"], views, scalings, augment=True)
    assert read._source._held is None
    for view in views:
        left, right = held[Draw(int(view), (3, int(view)))], read[Draw(int(view), (3, int(view)))]
        assert torch.equal(left["source"], right["source"])
        assert torch.equal(left["target"], right["target"])


def test_scalings_know_training_maps_alone(tmp_path):
    """A test map multiplied by a million changes nothing; a training map does."""
    scalings = []
    parts = None
    for changed in (None, "test", "validation", "train"):
        store = write_store(tmp_path / f"{changed}.zarr")
        parts = split_views(store.catalogue(), Split())
        if changed:
            view = int(parts[changed][0])
            array = store._array("gas")
            array[view] = np.asarray(array[view]) * 1e6 + 1
        scalings.append(fit_scalings(store, ["gas", "hi"], parts["train"], {"hi": "log"}))
    plain, test, validation, train = scalings
    assert plain == test == validation
    assert plain["gas"] != train["gas"]
    assert plain["hi"] == train["hi"]
    assert plain["hi"].kind == "log"


def test_fitting_a_large_store_reads_a_sample(store, monkeypatch):
    monkeypatch.setattr(loading, "FIT_VIEWS", 6)
    taken = []
    read = MapStore.maps

    def maps(self, domain, views=None):
        taken.append(list(views))
        return read(self, domain, views)

    monkeypatch.setattr(MapStore, "maps", maps)
    views = np.arange(4, 40)
    first, again = (fit_scalings(store, ["gas"], views, {}) for _ in range(2))
    assert first == again
    assert taken[0] == taken[1] == sorted(set(taken[0]))
    assert len(taken[0]) == 6
    assert set(taken[0]) <= set(views)


def test_four_equal_groups_are_enough_for_three_parts():
    """Shares of 70, 10 and 20 % of four galaxies: no part that is wanted stays empty."""
    table = Table({"view": np.arange(8), "split_group": np.repeat(np.arange(4), 2)})
    parts = split_views(table, Split(0.7, 0.1, 0.2))
    assert {part: len(views) for part, views in parts.items()} == {"train": 4, "validation": 2, "test": 2}


# splits by hash


def table_of(galaxies: list[int], rotations: int = 2) -> Table:
    """A catalogue of these galaxies, each a split group numbered by its place (as cutout files are)."""
    place = np.repeat(np.arange(len(galaxies)), rotations)
    return Table({"view": np.arange(len(place)), "split_group": place, "galaxy": np.array(galaxies)[place]})


def sides(table: Table, split: Split) -> dict[int, str]:
    parts = split_views(table, split)
    galaxy = np.asarray(table["galaxy"])
    return {int(galaxy[view]): part for part, views in parts.items() for view in views}


def test_a_split_by_hash_is_stable_when_galaxies_are_added():
    """By order, other galaxies move other ones across; by hash, none moves, whatever the rows and rotations."""
    few, many = list(range(0, 400, 2)), [5, *range(400)]
    split = Split(by="hash", seed=3)
    before, after = sides(table_of(few), split), sides(table_of(many, 3), split)
    assert all(after[galaxy] == part for galaxy, part in before.items())
    ordered = [sides(table_of(numbers), Split(seed=3)) for numbers in (few, many)]
    moved = np.mean([ordered[1][galaxy] != part for galaxy, part in ordered[0].items()])
    assert moved > 0.2, "this is what the hash is for"


def test_shares_by_hash_are_binomial():
    """2000 galaxies in 0.7, 0.1, 0.2: within 4 σ of a binomial; another seed gives another split."""
    table = table_of(list(range(2000)), 1)
    parts = split_views(table, Split(by="hash"))
    for part, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert abs(len(parts[part]) - 2000 * share) < 4 * np.sqrt(2000 * share * (1 - share))
    assert not np.array_equal(parts["test"], split_views(table, Split(by="hash", seed=1))["test"])
    only = split_views(table, Split(train=0.9, validation=0.1, test=0.0, by="hash"))
    assert (len(only["test"]), len(only["train"]) + len(only["validation"])) == (0, 2000)


def test_a_hash_that_leaves_a_part_empty_says_what_to_do():
    with pytest.raises(SkyshiftError, match=r"2 galaxies are too few for a .* part of .*: take more galaxies, another"):
        split_views(table_of([1, 2]), Split(by="hash"))
    with pytest.raises(SkyshiftError, match=r"unknown kind of split 'hush'\. Did you mean 'hash'"):
        Split(by="hush")  # type: ignore[arg-type]


def test_a_million_views_are_split_in_seconds():
    """250,000 galaxies of four rotations: nothing in a split grows faster than the catalogue."""
    group = np.repeat(np.arange(250_000), 4)
    table = Table({"view": np.arange(len(group)), "split_group": group, "galaxy": group})
    for by in ("order", "hash"):
        started = time.perf_counter()
        parts = split_views(table, Split(by=by))  # type: ignore[arg-type]
        assert time.perf_counter() - started < 20, by
        assert len(parts["train"]) == pytest.approx(700_000, rel=0.01)


# batches


def test_a_batch_read_at_once_holds_what_single_reads_hold(store, monkeypatch):
    """Also with a view twice, in any order, from shards in any order, from memory and from the store."""
    monkeypatch.setattr(loading, "MEMORY_LIMIT", 0)
    draws = [Draw(view, (5, i)) for i, view in enumerate([39, 0, 17, 0, 16, 38, 8])]
    for paired in (True, False):
        data = MapDataset(store, ["gas", "stars"], ["hi"], np.arange(store.views), UNITY, paired, augment=True)
        for single, batched in zip([data[draw] for draw in draws], data.__getitems__(draws), strict=True):
            assert single.keys() == batched.keys()
            assert all(torch.equal(torch.as_tensor(single[k]), torch.as_tensor(batched[k])) for k in single)


def test_a_batch_is_one_read_a_domain(store, monkeypatch):
    monkeypatch.setattr(loading, "MEMORY_LIMIT", 0)
    data = MapDataset(store, ["gas", "stars"], ["hi"], np.arange(store.views), UNITY)
    asked = []
    read = MapStore.maps

    def maps(self, domain, views=None):
        asked.append((domain, list(views)))
        return read(self, domain, views)

    monkeypatch.setattr(MapStore, "maps", maps)
    data.__getitems__([Draw(3), Draw(30), Draw(9)])
    assert asked == [(name, [3, 30, 9]) for name in ("gas", "stars", "hi")]


def test_views_that_are_not_of_the_part(store, monkeypatch):
    data = MapDataset(store, ["gas"], ["hi"], np.array([4, 9, 2]), UNITY)
    assert int(data[9]["source"][0, 0, 0]) == 900, "views need not be sorted"
    for limit in (loading.MEMORY_LIMIT, 0):
        monkeypatch.setattr(loading, "MEMORY_LIMIT", limit)
        with pytest.raises(SkyshiftError, match="view 5 is not among those of this data set"):
            MapDataset(store, ["gas"], ["hi"], np.array([4, 9, 2]), UNITY)[5]


def test_a_catalogue_with_gaps(tmp_path):
    """Galaxies that could not be read leave their rows: a view is a row of the arrays, not of the catalogue."""
    whole = write_store(tmp_path / "maps.zarr")
    gone = set(range(8, 12))
    full = whole.catalogue()
    whole._catalogue = full[[view not in gone for view in full["view"]]]
    parts = split_views(whole.catalogue(), Split())
    views = np.sort(np.concatenate([parts[part] for part in PARTS]))
    assert set(views) == set(range(40)) - gone
    data = MapDataset(whole, ["gas"], ["hi"], views, UNITY, paired=False)
    for view in (7, 12, 39):
        sample = data[view]
        assert int(sample["source"][0, 0, 0]) == 100 * view
        assert sample["target_view"] not in gone
        assert sample["target_view"] // 4 != view // 4


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory is read from /proc")
def test_maps_that_do_not_fit_into_memory_are_read_as_they_are_wanted(tmp_path):
    """A store of 96 MiB under a limit of 16 MiB, and under none: the second process grows by what it holds."""
    store = MapStore.create(
        tmp_path / "maps.zarr", units={"gas": "K", "hi": "K"}, views=768, pixels=128, shard_views=256
    )
    eye = tuple(np.eye(3).ravel())
    for shard in range(store.shards):
        rows = store.shard_rows(shard)
        maps = np.ones((len(rows), 128, 128), np.float32)
        records = [ViewRecord(v, v, str(v), v, 99, 0.0, eye, 1.0, 0.0, -1, 0) for v in rows]
        store.write_shard(shard, {"gas": maps, "hi": maps}, records)
    script = """
import sys
from pathlib import Path
import numpy as np
from torch.utils.data import DataLoader
from skyshift.datasets import loading
from skyshift.datasets.scaling import Linear
from skyshift.datasets.store import MapStore
loading.MEMORY_LIMIT, loading.FIT_PIXELS = int(sys.argv[2]), 2**20
store = MapStore(sys.argv[1])
views = loading.split_views(store.catalogue(), loading.Split())["train"]
warm = store.maps("gas", views[:16]).sum()
def peak():  # ru_maxrss would carry over what the parent used
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
scalings = loading.fit_scalings(store, ["gas", "hi"], views, {})
data = loading.MapDataset(store, ["gas"], ["hi"], views, scalings, augment=True)
loader = DataLoader(data, batch_sampler=loading.StepSampler(views, 16, 30))
assert sum(float(batch["source"].mean()) for batch in loader) > 0
print((peak() - before) / 1024)
"""
    grown = {}
    for limit in (16 * 2**20, 2 * 2**30):
        command = [sys.executable, "-c", script, str(store.path), str(limit)]
        grown[limit] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    held = 0.7 * 96
    # Both fit on 64 views and load batches of 2 MiB, and both grow by what libraries allocate, which differs between
    # machines (40 to 90 MiB were seen); the difference is what is held, but for chunks and their scaled copies.
    assert grown[2 * 2**30] > 0.9 * held, "the measure sees what is held"
    assert grown[2 * 2**30] - grown[16 * 2**20] > 0.6 * held
