"""Galaxies piece by piece: the same particles and maps as at one reading, whatever the size of a piece."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from skyshift.datasets.domains import DOMAINS, MapMaker, View, make_maps, needed_fields
from skyshift.datasets.projection import random_rotations
from skyshift.datasets.smoothing import with_support
from skyshift.datasets.sources import CutoutSource, SnapshotSource
from skyshift.datasets.tng import Snapshot
from skyshift.datasets.tng_units import SnapshotError

NEED = needed_fields(DOMAINS)


@pytest.fixture(scope="module")
def source(tiny_simulation) -> SnapshotSource:
    return SnapshotSource(str(tiny_simulation / "output"), 99)


@pytest.mark.parametrize("particles", [7, 37, 150, 10**6])
@pytest.mark.parametrize("number", [0, 6])
def test_pieces_together_are_the_galaxy(source, number, particles):
    """Bit by bit, in order. Number 0 lies across the edge of the box, 6 across two files."""
    whole = source.read(number, NEED)
    pieces = list(source.stream(number, NEED, particles))
    for piece in pieces:
        assert sum(len(p) for p in piece.particles.values()) <= particles
        assert (piece.name, piece.redshift, piece.label) == (whole.name, whole.redshift, whole.label)
        np.testing.assert_array_equal(piece.velocity, whole.velocity)
    for kind, expected in whole.particles.items():
        parts = [piece.particles[kind] for piece in pieces if kind in piece.particles]
        for name in ("position", "mass", "support", *expected.fields):
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), expected[name])
        assert set(parts[0].fields) == set(expected.fields)
    assert number == 0 or len(whole.particles["wind"]) > 0, "wind is told apart in every piece"


@pytest.mark.parametrize("particles", [50, 333])
def test_maps_of_pieces_are_maps_of_the_galaxy(source, particles):
    """The same float64 sums in another order: 1e-10 relative, before both are rounded to float32 (1.2e-7)."""
    view = View(random_rotations(1, 2)[0], 60.0, 24)
    whole = make_maps(source.read(6, NEED), DOMAINS, view)
    maker = MapMaker(DOMAINS, view)
    for piece in source.stream(6, NEED, particles):
        maker.add(piece)
    for name, image in maker.maps().items():
        atol = 1e-4 if DOMAINS[name].unit == "km / s" else 1e-10 * float(np.abs(whole[name]).max())
        np.testing.assert_allclose(image, whole[name], rtol=3e-7, atol=atol, err_msg=name)


def test_sums_of_pieces_agree_to_ten_digits(source):
    """The float64 sums themselves, before the maps are float32."""
    view = View(np.eye(3), 60.0, 24)
    makers = [MapMaker(DOMAINS, view) for _ in range(2)]
    makers[0].add(source.read(6, NEED))
    for piece in source.stream(6, NEED, 77):
        makers[1].add(piece)
    for kind in makers[0]._kinds:
        one, other = (maker._kinds[kind].canvas.maps() for maker in makers)
        scale = np.abs(one).max(axis=(1, 2), keepdims=True)
        assert (np.abs(one - other) <= 1e-10 * scale).all()


def test_only_what_is_needed_is_read(source):
    galaxy = source.read(2, {"gas": {"sfr"}, "stars": set()})
    assert set(galaxy.particles) == {"gas", "stars", "wind"}
    assert set(galaxy.particles["gas"].fields) == {"density", "sfr"}, "density carries the kernel supports"
    assert set(galaxy.particles["stars"].fields) == {"formation_scale_factor"}


def test_memory_does_not_grow_with_the_galaxy(source, monkeypatch):
    """No slice is longer than a piece, and pieces are not kept: at most two are alive while the maps are summed."""
    import weakref

    alive: list[weakref.ref] = []
    most = 0
    maker = MapMaker(["gas", "velocity"], View(np.eye(3), 60.0, 8))
    for piece in source.stream(0, needed_fields(["gas", "velocity"]), 20):
        alive.append(weakref.ref(piece.particles["gas"]))
        maker.add(piece)
        del piece
        most = max(most, sum(ref() is not None for ref in alive))
    assert len(alive) > 20
    assert most <= 2


def without(simulation: Path, folder: Path, *fields: str) -> Path:
    """A copy of a simulation that lacks some fields; its ``output``."""
    shutil.copytree(simulation, folder)
    for chunk in (folder / "output/snapdir_099").glob("*.hdf5"):
        with h5py.File(chunk, "r+") as file:
            for field in fields:
                if field in file:
                    del file[field]
    return folder / "output"


def test_supports_that_have_to_be_searched_for(tmp_path, tiny_simulation):
    """Among all particles of the galaxy or not at all: refused before anything is read where they do not fit."""
    base = without(tiny_simulation, tmp_path / "toy", "PartType1/SubfindHsml", "PartType4/StellarHsml")
    snapshot = Snapshot(base, 99)
    count = snapshot.subhalos.count[0]
    need = {"gas": set(), "dm": set(), "stars": set()}
    with pytest.raises(
        SnapshotError,  # before the gas, which would fit, is read
        match=rf"PartType1 has no SubfindHsml, and the kernel supports of its {count[1]} particles "
        rf"cannot be searched for in pieces of {count[1] - 1}; raise the size of a piece to {count[1]}",
    ):
        next(snapshot.stream(0, need, int(count[1]) - 1))
    pieces = list(snapshot.stream(0, need, int(max(count[1], count[4]))))
    whole = snapshot.galaxy(0, need=need)
    for kind in ("dm", "stars"):
        (piece,) = (p.particles[kind] for p in pieces if kind in p.particles)
        np.testing.assert_array_equal(piece["support"], with_support(whole, kind).particles[kind]["support"])


def test_a_kind_without_particles_is_an_empty_piece(tmp_path, tiny_simulation):
    shutil.copytree(tiny_simulation, tmp_path / "toy")
    for tab in (tmp_path / "toy/output/groups_099").glob("*.hdf5"):
        with h5py.File(tab, "r+") as file:
            file["Subhalo/SubhaloLenType"][:, 4] = 0
    snapshot = Snapshot(tmp_path / "toy/output", 99)
    maker = MapMaker(["stars", "gas"], View(np.eye(3), 60.0, 8))
    for piece in snapshot.stream(0, {"stars": set(), "gas": set()}, 100):
        maker.add(piece)
    maps = maker.maps()
    assert not maps["stars"].any()
    assert maps["gas"].any()


def test_other_sources_give_one_piece_with_supports(tmp_path, write_cutout, arrays_of_a_cutout):
    arrays = arrays_of_a_cutout()
    del arrays["PartType4"]["StellarHsml"]
    write_cutout(tmp_path / "c.hdf5", arrays)
    need = {"gas": {"density"}, "stars": set(), "dm": set()}
    (piece,) = CutoutSource([str(tmp_path / "c.hdf5")]).stream(0, need, 5)
    assert all(piece.particles[kind].support is not None for kind in need)


def test_pieces_that_cannot_be(source):
    with pytest.raises(SnapshotError, match="a piece of 0 particles cannot be read; give at least 1"):
        list(source.stream(0, NEED, 0))
    with pytest.raises(SnapshotError, match="no subhalo 12; snapshot 99 has 12"):
        list(source.stream(12, NEED, 10))
