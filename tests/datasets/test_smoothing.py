"""Kernel supports that are searched for once, and kept for every later build of the same galaxies."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from skyshift.datasets import smoothing
from skyshift.datasets.build import build_store
from skyshift.datasets.galaxy import Galaxy, Particles
from skyshift.datasets.shards import BuildConfig, FieldOfView
from skyshift.datasets.smoothing import SupportCache, keeping, neighbour_distance, with_support
from skyshift.datasets.sources import GalaxySource, Item
from skyshift.files import location


class Bare(GalaxySource):
    """Three galaxies of dark matter and stars without supports, whole or in chunks."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def items(self) -> list[Item]:
        return [Item(number, number) for number in range(3)]

    def read(self, number, need) -> Galaxy:
        particles = {}
        for kind, count in (("dm", 300), ("stars", 200)):
            rng = np.random.default_rng([self.seed, number, count])
            if kind in need:
                particles[kind] = Particles(rng.normal(0, 5, (count, 3)), rng.uniform(1e5, 2e5, count))
        return Galaxy(f"galaxy {number}", number, 99, 0.0, 0.7, 0.3, np.zeros(3), particles)

    def stream(self, number, need, particles) -> Iterator[Galaxy]:
        whole = self.read(number, need)
        for kind in whole.particles:
            whole = with_support(whole, kind)
        for kind, held in whole.particles.items():
            for first in range(0, len(held), particles):
                part = held.select(np.arange(first, min(first + particles, len(held))))
                yield replace(whole, particles={kind: part})


@pytest.fixture
def searches(monkeypatch) -> list[int]:
    """Numbers of particles of the searches that are made."""
    made: list[int] = []
    tree = smoothing.cKDTree

    def counted(position):
        made.append(len(position))
        return tree(position)

    monkeypatch.setattr(smoothing, "cKDTree", counted)
    return made


def config(store: Path, **changes) -> BuildConfig:
    values = {
        "domains": ["dm", "stars"],
        "pixels": 16,
        "rotations": 2,
        "field_of_view": FieldOfView(kpc=30.0),
    } | changes
    source = values.pop("source", Bare())
    return BuildConfig(source, str(store), **values)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_neighbours_are_counted_as_brute_force_counts_them(threads):
    """The distance of the 32nd neighbour, the particle itself not counted, to the rounding of float32."""
    position = np.random.default_rng(0).normal(0, 10, (400, 3))
    wanted = np.sort(cdist(position, position), axis=1)[:, 32]
    with keeping(SupportCache(threads=threads)):
        np.testing.assert_allclose(neighbour_distance(position, 32), wanted, rtol=6e-8)
    assert neighbour_distance(position[:5], 32).tolist() == pytest.approx(cdist(position[:5], position[:5]).max(axis=1))
    assert neighbour_distance(position[:1], 32).tolist() == [0.0]


def test_another_build_of_the_same_galaxies_does_not_search_again(tmp_path, searches):
    """One search for each galaxy and kind, whatever the rotations; another store finds them all, and its maps are,
    bit by bit, those of a build that keeps nothing."""
    first = build_store(config(tmp_path / "first.zarr"), progress=False)
    assert sorted(searches) == [200] * 3 + [300] * 3
    assert {p.name for p in tmp_path.iterdir()} == {"first.zarr", "smoothing"}
    assert len(list((tmp_path / "smoothing").rglob("*.npz"))) == 6
    searches.clear()
    other = build_store(config(tmp_path / "other.zarr", domains=["stars"], pixels=8, rotations=5), progress=False)
    again = build_store(config(tmp_path / "again.zarr"), progress=False)
    assert searches == []
    assert again.fingerprint == first.fingerprint
    none = config(tmp_path / "none/other.zarr", domains=["stars"], pixels=8, rotations=5, smoothing="none")
    assert build_store(none, progress=False).fingerprint == other.fingerprint
    assert len(searches) == 3
    assert [p.name for p in (tmp_path / "none").iterdir()] == ["other.zarr"]


def test_other_positions_find_nothing_that_is_kept(tmp_path, searches):
    """Galaxies of the same numbers with other particles, in the same folder: the key is what was searched."""
    build_store(config(tmp_path / "a.zarr"), progress=False)
    searches.clear()
    kept = build_store(config(tmp_path / "b.zarr", source=Bare(seed=1)), progress=False)
    assert len(searches) == 6
    fresh = build_store(config(tmp_path / "c.zarr", source=Bare(seed=1), smoothing="none"), progress=False)
    assert kept.fingerprint == fresh.fingerprint


@pytest.mark.parametrize("spoil", ["cut", "flip", "other", "empty"])
def test_a_damaged_file_is_searched_anew(tmp_path, searches, spoil):
    position = np.random.default_rng(0).normal(0, 10, (100, 3))
    cache = SupportCache(tmp_path)
    wanted = cache(position, 32)
    (path,) = tmp_path.rglob("*.npz")
    content = path.read_bytes()
    if spoil == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif spoil == "flip":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif spoil == "other":
        np.savez(path, support=np.ones(99, np.float32))
    else:
        path.write_bytes(b"")
    np.testing.assert_array_equal(cache(position, 32), wanted)
    assert len(searches) == 2
    assert path.read_bytes() == content, "and kept whole again"
    np.testing.assert_array_equal(cache(position, 32), wanted)
    assert len(searches) == 2


def test_a_folder_that_cannot_be_written_costs_the_keeping_alone(tmp_path):
    (tmp_path / "file").write_text("x")
    position = np.random.default_rng(0).normal(0, 10, (100, 3))
    support = SupportCache(tmp_path / "file" / "smoothing")(position, 32)
    np.testing.assert_array_equal(support, neighbour_distance(position, 32))


def test_maps_in_chunks_are_those_of_the_whole(tmp_path, searches):
    """70 particles at a time, all rotations in one pass: the same sums to the rounding of float32."""
    whole = build_store(config(tmp_path / "whole/maps.zarr"), progress=False)
    searches.clear()
    chunks = build_store(config(tmp_path / "chunks/maps.zarr", chunk_particles=70), progress=False)
    assert sorted(searches) == [200] * 3 + [300] * 3
    for name in whole.domains:
        np.testing.assert_allclose(chunks.maps(name), whole.maps(name), rtol=1e-6)


def test_a_kind_that_no_chunk_holds_is_an_error(tmp_path):
    lacking = config(tmp_path / "m.zarr", domains=["dm", "gas"], chunk_particles=70, skip_failed=False)
    with pytest.raises(ValueError, match="no gas particles were given"):
        build_store(lacking, progress=False)


def test_supports_are_kept_on_object_storage_too(searches):
    position = np.random.default_rng(0).normal(0, 10, (100, 3))
    supports = [SupportCache(location("memory://kept/smoothing"))(position, 32) for _ in range(2)]
    assert len(searches) == 1
    np.testing.assert_array_equal(*supports)
