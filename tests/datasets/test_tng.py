"""Reading IllustrisTNG: a real subbox, real cutouts, a toy snapshot in the real format, and broken files."""

import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy import units

from skyshift.datasets import tng, tng_units
from skyshift.datasets.domains import View, make_maps
from skyshift.datasets.galaxy import Galaxy, GalaxyError, Particles
from skyshift.datasets.hydrogen import neutral_hydrogen_mass
from skyshift.datasets.smoothing import cell_radius
from skyshift.datasets.sources import CutoutSource, SnapshotSource
from skyshift.datasets.tng import Box, Snapshot, half_mass_radius, read_cutout, unwrap
from skyshift.datasets.tng_units import CONVERSIONS, SnapshotError

H = 0.6774
BOX = 75000.0 / H  # kpc, of the toy simulation at z = 0
SUBBOX = "tng/TNG50-4-Subbox0/output/snapdir_2332"
THINNED = "tng/cutouts/TNG100-1_snap78_subhalo9_sample.hdf5"
EMPTY = "tng/cutouts/TNG50-1_snap0_halo67_empty.hdf5"
DARK_ONLY = "tng/cutouts/TNG50-1-Dark_snap0_halo0_coordinates.hdf5"
ALL_GAS = {"density", "sfr", "neutral_fraction", "temperature", "electron_abundance", "magnetic_field"}


def near(value: float, quoted: str) -> bool:
    """Whether ``value`` is the number quoted, to 0.1 % or to half of its last digit, whichever is wider."""
    digits, _, power = quoted.partition("e")
    half = 0.5 * 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    return bool(abs(value - float(quoted)) <= max(1e-3 * abs(float(quoted)), half))


def copy_simulation(simulation: Path, folder: Path) -> Path:
    """A copy to break; returns its ``output`` folder."""
    shutil.copytree(simulation, folder)
    return folder / "output"


# the real subbox


@pytest.fixture(scope="module")
def subbox(shared: Path) -> Path:
    return shared / SUBBOX


@pytest.fixture(scope="module")
def box(subbox: Path) -> Box:
    return Box(subbox, partial=True)


@pytest.mark.parametrize(
    ("what", "quoted"),
    [
        ("cells", "24789"),
        ("gas mass, Msun", "1.1003e12"),
        ("star-forming cells", "34"),
        ("lightest cell, Msun", "1.1e7"),
        ("heaviest cell, Msun", "1.2e8"),
        ("median cell, Msun", "4.3e7"),
        ("smallest radius, kpc", "0.75"),
        ("largest radius, kpc", "357"),
        ("median radius, kpc", "56"),
        ("coldest, K", "3.5e2"),
        ("hottest, K", "1.69e6"),
        ("median temperature, K", "5.6e4"),
        ("1 % of |B|, uG", "1.8e-9"),
        ("99 % of |B|, uG", "3.0"),
        ("strongest field, uG", "20"),
        ("highest metallicity, solar", "0.97"),
        ("neutral hydrogen, Msun", "3.218e10"),
        ("neutral hydrogen without star formation, Msun", "3.166e10"),
    ],
)
def test_numbers_of_the_real_subbox(box, what, quoted):
    """Computed once from the formulae of the TNG specification. A wrong power of a, h or 1e10 is a factor ≥ 1.4."""
    gas = box.particles["gas"]
    radius = cell_radius(gas.mass, gas["density"])
    field = np.linalg.norm(gas["magnetic_field"], axis=1) * 1e6
    neutral = 0.76 * gas.mass * gas["neutral_fraction"]
    kelvin = gas["temperature"]
    found = {
        "cells": len(gas),
        "gas mass, Msun": gas.mass.sum(),
        "star-forming cells": (gas["sfr"] > 0).sum(),
        "lightest cell, Msun": gas.mass.min(),
        "heaviest cell, Msun": gas.mass.max(),
        "median cell, Msun": np.median(gas.mass),
        "smallest radius, kpc": radius.min(),
        "largest radius, kpc": radius.max(),
        "median radius, kpc": np.median(radius),
        "coldest, K": kelvin.min(),
        "hottest, K": kelvin.max(),
        "median temperature, K": np.median(kelvin),
        "1 % of |B|, uG": np.percentile(field, 1),
        "99 % of |B|, uG": np.percentile(field, 99),
        "strongest field, uG": field.max(),
        "highest metallicity, solar": gas["metallicity"].max() / 0.0127,
        "neutral hydrogen, Msun": neutral.sum(),
        "neutral hydrogen without star formation, Msun": neutral[gas["sfr"] == 0].sum(),
    }
    assert near(float(found[what]), quoted), f"{what}: {found[what]:.6g}, not {quoted}"


def test_real_neutral_hydrogen_is_the_snapshots_own_where_no_stars_form(box):
    """Star-forming cells alone are computed anew; the rest is X_H m x to the last bits (two products, 4e-16)."""
    gas = box.particles["gas"]
    galaxy = Galaxy("box", 0, 2332, 0.0, H, 0.3089, np.zeros(3), box.particles)
    mass = neutral_hydrogen_mass(galaxy)
    quiet = gas["sfr"] == 0
    np.testing.assert_allclose(mass[quiet], (0.76 * gas.mass * gas["neutral_fraction"])[quiet], rtol=1e-15)
    assert near(mass[quiet].sum(), "3.166e10")
    assert (mass[~quiet] != (0.76 * gas.mass * gas["neutral_fraction"])[~quiet]).all()
    assert (mass <= 0.76 * gas.mass * (1 + 1e-12)).all()


def test_real_counts_of_all_kinds(box, subbox):
    """Each chunk's header against what was read; type 4 divides into stars and wind."""
    counts = np.zeros(6, int)
    for path in subbox.glob("*.hdf5"):
        with h5py.File(path) as file:
            counts += file["Header"].attrs["NumPart_ThisFile"]
    held = {kind: len(particles) for kind, particles in box.particles.items()}
    assert (held["gas"], held["dm"], held["black_holes"]) == (counts[0], counts[1], counts[5]) == (24789, 26060, 9)
    assert held["stars"] + held["wind"] == counts[4] == 266
    assert box.number == 2332
    # 0.0157 code units of 1e10 Msun/h; TNG50-4 is 8³ times coarser than TNG50-1 (4.5e5 Msun, two digits)
    assert box.particles["dm"].mass.max() == pytest.approx(0.01573723e10 / H, rel=1e-6)
    assert box.particles["dm"].mass.max() == pytest.approx(8**3 * 4.5e5, rel=0.02)


def test_a_missing_chunk_is_named_unless_a_partial_read_is_asked_for(subbox, box):
    with pytest.raises(SnapshotError, match=r"1 of 11 chunks are missing, first .*snap_2332\.7\.hdf5; .*partial"):
        Box(subbox)
    assert [Path(path).name for path in box.missing] == ["snap_2332.7.hdf5"]


def test_unit_powers_agree_with_every_dataset_of_the_real_files(subbox):
    """The table is held against the attributes of all that it names; only MagneticField carries none."""
    seen, bare = set(), set()
    for path in subbox.glob("*.hdf5"):
        with h5py.File(path) as file:
            for kind, number in (("gas", 0), ("dm", 1), ("stars", 4), ("black_holes", 5)):
                group = file.get(f"PartType{number}", {})
                for name in set(group) & set(tng_units.FIELDS[kind]):
                    attributes = group[name].attrs
                    if "a_scaling" not in attributes:
                        bare.add(name)
                        continue
                    seen.add(name)
                    conversion = CONVERSIONS[name]
                    assert (conversion.a, conversion.h) == (attributes["a_scaling"], attributes["h_scaling"]), name
    assert bare == {"MagneticField"}
    assert seen == set(CONVERSIONS) - bare - {"SubfindHsml", "StellarHsml"}  # a subbox carries no kernels


@pytest.mark.parametrize("name", ["Coordinates", "Masses", "Density", "Velocities"])
def test_conversions_agree_with_to_cgs_of_the_real_files(subbox, name):
    """stored × a^p h^q × to_cgs is the CGS value, so physical / CGS is astropy's kpc, Msun or km/s.

    The code's units are 3.085678e21 cm and 1.989e43 g: six and four digits, and astropy's solar mass is 1.98841e33 g.
    """
    unit = {
        "Coordinates": units.kpc,
        "Masses": units.Msun,
        "Density": units.Msun / units.kpc**3,
        "Velocities": units.km / units.s,
    }[name]
    with h5py.File(subbox / "snap_2332.4.hdf5") as file:
        header = tng_units.read_header(file)
        data = file[f"PartType0/{name}"]
        attributes = data.attrs
        stored = data[()].astype(np.float64)
        cgs = stored * header.scale_factor ** attributes["a_scaling"] * header.hubble ** attributes["h_scaling"]
        cgs *= attributes["to_cgs"]
        physical = tng_units.to_physical(name, stored, header)
    np.testing.assert_allclose(physical, cgs / unit.cgs.scale, rtol=5e-4)


# real cutouts


def test_a_thinned_real_cutout_is_refused_unless_taken_as_it_is(shared):
    path = shared / THINNED
    with pytest.raises(SnapshotError, match=r"counts 13587 particles of type 0, the arrays hold 100.*partial"):
        read_cutout(path)
    galaxy = read_cutout(path, partial=True)
    assert len(galaxy.particles["gas"]) == 100
    assert len(galaxy.particles["stars"]) + len(galaxy.particles["wind"]) == 2000
    assert (galaxy.number, galaxy.snapshot) == (9, 78)
    with h5py.File(path) as file:  # header entries of length one
        assert file["Header"].attrs["Time"].shape == (1,)
        time, born = file["Header"].attrs["Time"][0], file["PartType4/GFM_StellarFormationTime"][()]
        stored = file["PartType0/Coordinates"][()]
    assert galaxy.redshift == pytest.approx(1 / time - 1, abs=1e-6)
    assert len(galaxy.particles["wind"]) == (born <= 0).sum()
    # Offsets and centre give the stored positions back: kpc of 1e5, float64
    absolute = (galaxy.particles["gas"].position + galaxy.centre) % (75000.0 * time / H)
    np.testing.assert_allclose(absolute, stored * time / H, rtol=0, atol=1e-8)
    # MagneticField was thinned away: its maps are refused before reading
    with pytest.raises(
        SnapshotError, match=r"PartType0 has no MagneticField, needed for 'magnetic_field' of gas\. Download"
    ):
        read_cutout(path, partial=True, need={"gas": {"magnetic_field"}})


def test_an_empty_real_cutout(shared):
    with pytest.raises(SnapshotError, match=r"halo67_empty\.hdf5 holds no particles at all"):
        read_cutout(shared / EMPTY)
    with pytest.raises(SnapshotError, match=r"has no PartType0 \(gas\).*Download it with gas"):
        read_cutout(shared / EMPTY, need={"gas": ("density",)})


def test_a_real_cutout_of_dark_matter_coordinates_alone(shared):
    """The mass comes from the header: 908 particles of 3.6475561e-5 × 1e10 / h Msun."""
    galaxy = read_cutout(shared / DARK_ONLY, need={"dm": ()})
    dark = galaxy.particles["dm"]
    assert list(galaxy.particles) == ["dm"]
    assert dark.mass.sum() == pytest.approx(908 * 3.6475561e-5 * 1e10 / H, rel=1e-9)
    assert galaxy.redshift == pytest.approx(20.05, abs=0.01)
    # 908 particles of 4.9e8 Msun in all at z = 20: the virial radius is some kpc, not some Mpc
    assert 0.1 < galaxy.half_mass_radius["dm"] < 10
    with pytest.raises(SnapshotError, match=r"has no PartType0 \(gas\); it holds PartType1\. Download it with gas"):
        read_cutout(shared / DARK_ONLY, need={"gas": ("density",)})


# a full snapshot


@pytest.fixture(scope="module")
def snapshot(tiny_simulation: Path) -> Snapshot:
    return Snapshot(tiny_simulation / "output", 99)


@pytest.fixture(scope="module")
def galaxies(snapshot: Snapshot) -> list[Galaxy]:
    return [snapshot.galaxy(number) for number in range(len(snapshot.subhalos))]


@pytest.mark.parametrize("number", [0, 6, 11])
def test_particles_are_those_of_the_files(tiny_simulation, galaxies, number):
    """Read with h5py through the offsets and converted by hand. Number 6 lies across two files, 0 across the box."""
    with h5py.File(tiny_simulation / "postprocessing/offsets/offsets_099.hdf5") as file:
        start = file["Subhalo/SnapByType"][number]
    files = [h5py.File(tiny_simulation / f"output/snapdir_099/snap_099.{i}.hdf5") for i in range(2)]
    tabs = [h5py.File(tiny_simulation / f"output/groups_099/fof_subhalo_tab_099.{i}.hdf5") for i in range(2)]
    length = np.concatenate([tab["Subhalo/SubhaloLenType"][()] for tab in tabs])[number]
    centre = np.concatenate([tab["Subhalo/SubhaloPos"][()] for tab in tabs])[number].astype(np.float64)

    def stored(kind: int, name: str) -> np.ndarray:
        whole = np.concatenate([file[f"PartType{kind}/{name}"][()] for file in files])
        return whole[start[kind] : start[kind] + length[kind]].astype(np.float64)

    galaxy = galaxies[number]
    gas = galaxy.particles["gas"]
    offset = stored(0, "Coordinates") - centre
    offset -= 75000.0 * np.round(offset / 75000.0)
    exact = {"rtol": 1e-12, "atol": 1e-9}  # the same float64 products in another order
    np.testing.assert_allclose(gas.position, offset / H, **exact)
    np.testing.assert_allclose(gas.mass, stored(0, "Masses") * 1e10 / H, **exact)
    np.testing.assert_allclose(gas["density"], stored(0, "Density") * 1e10 * H**2, **exact)
    np.testing.assert_allclose(gas["magnetic_field"], stored(0, "MagneticField") * H * 2.60e-6, **exact)
    np.testing.assert_allclose(gas["velocity"], stored(0, "Velocities"), **exact)
    np.testing.assert_allclose(gas["sfr"], stored(0, "StarFormationRate"), **exact)
    # T = (γ - 1) u μ m_p / k_B with CODATA's m_p/k_B = 1.21147e-8 K (cm/s)⁻² to six digits
    weight = 4 / (1 + 3 * 0.76 + 4 * 0.76 * stored(0, "ElectronAbundance"))
    kelvin = 2 / 3 * stored(0, "InternalEnergy") * 1e10 * weight * 1.211474e-8
    np.testing.assert_allclose(gas["temperature"], kelvin, rtol=1e-5)
    radius = (3 * stored(0, "Masses") / stored(0, "Density") / (4 * np.pi)) ** (1 / 3) / H
    np.testing.assert_allclose(gas.support, 2.5 * radius, **exact)
    is_star = stored(4, "GFM_StellarFormationTime") > 0
    stars, wind = galaxy.particles["stars"], galaxy.particles["wind"]
    np.testing.assert_allclose(stars.mass, stored(4, "Masses")[is_star] * 1e10 / H, **exact)
    np.testing.assert_allclose(wind.mass, stored(4, "Masses")[~is_star] * 1e10 / H, **exact)
    np.testing.assert_allclose(stars.support, stored(4, "StellarHsml")[is_star] / H, **exact)
    with h5py.File(tiny_simulation / "output/snapdir_099/snap_099.0.hdf5") as file:
        dark_mass = file["Header"].attrs["MassTable"][1] * 1e10 / H
    np.testing.assert_allclose(galaxy.particles["dm"].mass, np.full(length[1], dark_mass), **exact)
    np.testing.assert_allclose(galaxy.particles["dm"].support, stored(1, "SubfindHsml") / H, **exact)
    for file in files + tabs:
        file.close()


def test_masses_add_up_to_the_catalogue_with_wind_counted_as_gas(snapshot, galaxies):
    """The catalogue is float32 of a float64 sum, the particles are float32 each: 6e-8 each way, 1e-6 is ample."""
    some_wind = 0
    for number, galaxy in enumerate(galaxies):
        total = {kind: particles.mass.sum() for kind, particles in galaxy.particles.items()}
        catalogue = snapshot.subhalos.mass[number]
        assert total["gas"] + total["wind"] == pytest.approx(catalogue[0], rel=1e-6)
        assert total["dm"] == pytest.approx(catalogue[1], rel=1e-6)
        assert total["stars"] == pytest.approx(catalogue[4], rel=1e-6)
        assert total["black_holes"] == pytest.approx(catalogue[5], rel=1e-6)
        held = len(galaxy.particles["stars"]) + len(galaxy.particles["wind"])
        assert held == snapshot.subhalos.count[number, 4]
        some_wind += len(galaxy.particles["wind"])
    assert some_wind > 0
    assert all((g.particles["stars"]["formation_scale_factor"] > 0).all() for g in galaxies)
    assert all((g.particles["wind"]["formation_scale_factor"] <= 0).all() for g in galaxies)


def test_half_mass_radii_of_the_particles_agree_with_the_catalogue(galaxies):
    """Both are radii of particles; the float32 centre of the catalogue moves them by 0.004 ckpc/h, 0.01 kpc here."""
    for galaxy in galaxies:
        parts = galaxy.particles
        position = np.concatenate([parts["gas"].position, parts["wind"].position])
        gas = Particles(position, np.concatenate([parts["gas"].mass, parts["wind"].mass]))
        for kind, particles in (("gas", gas), ("dm", parts["dm"]), ("stars", parts["stars"])):
            assert half_mass_radius(particles) == pytest.approx(galaxy.half_mass_radius[kind], abs=0.01), kind


def test_a_galaxy_across_the_edge_of_the_box_is_whole(tiny_simulation, snapshot, galaxies):
    """Stored, it lies at both ends of the box; unwrapped, all of it lies near the catalogue's centre."""
    with h5py.File(tiny_simulation / "output/snapdir_099/snap_099.0.hdf5") as file:
        stored = file["PartType0/Coordinates"][: snapshot.subhalos.count[0, 0]]
    assert (np.ptp(stored, axis=0) > 0.9 * 75000).all()
    galaxy = galaxies[0]
    for kind in ("gas", "dm", "stars"):
        position = galaxy.particles[kind].position
        assert np.abs(position).max() < 0.02 * BOX / 2
        # Symmetric about the centre to Poisson noise: the mean lies within half of a half-mass radius
        assert np.linalg.norm(np.median(position, axis=0)) < 0.5 * galaxy.half_mass_radius[kind]
    # A neighbour's particles are never taken along: the nearest other centre is much further away
    others = unwrap(snapshot.subhalos.position[1:], galaxy.centre, BOX)
    reach = max(np.linalg.norm(p.position, axis=1).max() for p in galaxy.particles.values() if len(p))
    assert np.linalg.norm(others, axis=1).min() > reach


def test_unwrapping_takes_the_shortest_way():
    rng = np.random.default_rng(0)
    position, centre = rng.uniform(0, 10, (500, 3)), np.array([0.1, 9.9, 5.0])
    images = np.stack(np.meshgrid(*[[-10.0, 0.0, 10.0]] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    brute = np.linalg.norm(position + images - centre, axis=-1).min(axis=0)
    # 27 images against one rounding: the same differences to a few last bits of 10
    np.testing.assert_allclose(np.linalg.norm(unwrap(position, centre, 10.0), axis=1), brute, rtol=0, atol=1e-14)
    assert np.abs(unwrap(position, centre, 10.0)).max() <= 5.0


def test_only_what_is_needed_is_read(snapshot):
    galaxy = snapshot.galaxy(2, need={"dm": set()})
    assert set(galaxy.particles) == {"dm"}
    with pytest.raises(GalaxyError, match=r"subhalo 2 has no particles of kind 'gas' \(it has dm;.*PartType0"):
        galaxy.require("gas")


def test_an_unknown_subhalo(snapshot, tiny_simulation):
    for number in (-1, 12):
        with pytest.raises(SnapshotError, match=rf"no subhalo {number}; snapshot 99 has 12"):
            snapshot.galaxy(number)
    with pytest.raises(SnapshotError, match="no subhalo 12; snapshot 99 has 12"):
        SnapshotSource(str(tiny_simulation / "output"), 99, galaxies=[0, 12]).items()


def test_fewer_particles_than_asked_for(tiny_simulation, galaxies):
    least = len(galaxies[3].particles["stars"])
    galaxies[3].require_count({"stars": least})
    with pytest.raises(GalaxyError, match=rf"subhalo 3 has {least} stars particles, {least + 1} were asked for; lower"):
        galaxies[3].require_count({"stars": least + 1})
    source = SnapshotSource(str(tiny_simulation / "output"), 99, galaxies=[0, 11], minimum_particles={"gas": 10**6})
    with pytest.raises(SnapshotError, match=r"subhalo 0 has \{'gas': \d+\} particles, fewer than .*lower the minimum"):
        source.items()
    none = SnapshotSource(str(tiny_simulation / "output"), 99, minimum_particles={"gas": 10**6})
    with pytest.raises(SnapshotError, match=r"no galaxy of .*passes minimum_mass \{\} and .*'gas': 1000000"):
        none.items()
    typo = SnapshotSource(str(tiny_simulation / "output"), 99, minimum_particles={"star": 1})
    with pytest.raises(SnapshotError, match=r"unknown kind of particle 'star'\. Did you mean 'stars'"):
        typo.items()


def test_not_a_snapshot(tmp_path, tiny_simulation):
    with pytest.raises(SnapshotError, match=r"snapdir_099 does not exist; .* holds no snapdir_NNN folder"):
        Snapshot(tmp_path, 99)
    with pytest.raises(SnapshotError, match=r"snapdir_098 does not exist; .* holds snapdir_099"):
        Snapshot(tiny_simulation / "output", 98)
    (tmp_path / "snapdir_099").mkdir()
    with pytest.raises(SnapshotError, match=r"is no snapshot: it has no files named like snap_099\.0\.hdf5"):
        Snapshot(tmp_path, 99)
    with pytest.raises(SnapshotError, match=r"is no snapshot: it has no files"):
        Box(tmp_path)


def test_a_missing_chunk_of_a_snapshot(tmp_path, tiny_simulation):
    """Named at once; a partial read gives the galaxies of the other chunk and refuses the rest by name."""
    base = copy_simulation(tiny_simulation, tmp_path / "toy")
    (base / "snapdir_099/snap_099.1.hdf5").unlink()
    with pytest.raises(SnapshotError, match=r"1 of 2 chunks are missing, first .*snap_099\.1\.hdf5; fetch"):
        Snapshot(base, 99)
    partial = Snapshot(base, 99, partial=True)
    assert len(partial.galaxy(0).particles["gas"]) == partial.subhalos.count[0, 0]
    for number in (6, 11):  # half in the missing chunk, and wholly
        with pytest.raises(SnapshotError, match=rf"subhalo {number} of .*gas particles lie in chunk 1, which is"):
            partial.galaxy(number)
    there = partial.reachable(np.arange(12), ["gas", "dm", "stars"])
    assert there[0]
    assert not there[[6, 11]].any()
    few = {"gas": 10, "dm": 10, "stars": 10}
    source = SnapshotSource(str(base), 99, minimum_particles=few, partial=True)
    assert [item.number for item in source.items()] == np.flatnonzero(there).tolist()
    (base / "snapdir_099/snap_099.0.hdf5").unlink()
    shutil.copy(tiny_simulation / "output/snapdir_099/snap_099.1.hdf5", base / "snapdir_099")
    with pytest.raises(SnapshotError, match=r"chunk 0 of .* is missing: without it nothing"):
        Snapshot(base, 99, partial=True)


@pytest.mark.parametrize("change", [-50, 50])
def test_a_header_of_a_snapshot_that_disagrees_with_its_arrays_is_refused(tmp_path, tiny_simulation, change):
    """Else the cells of all galaxies behind it would be those of their neighbours."""
    base = copy_simulation(tiny_simulation, tmp_path / "toy")
    with h5py.File(base / "snapdir_099/snap_099.0.hdf5", "r+") as file:
        counts = file["Header"].attrs["NumPart_ThisFile"].copy()
        counts[0] += change
        file["Header"].attrs["NumPart_ThisFile"] = counts
    snapshot = Snapshot(base, 99)
    with pytest.raises(SnapshotError, match=rf"snap_099\.0\.hdf5: the header counts {counts[0]} particles of type 0"):
        snapshot.galaxy(0)


def test_offsets_of_another_snapshot_are_refused(tmp_path, tiny_simulation):
    base = copy_simulation(tiny_simulation, tmp_path / "toy")
    with h5py.File(tmp_path / "toy/postprocessing/offsets/offsets_099.hdf5", "r+") as file:
        file["FileOffsets/SnapByType"][1, 0] -= 7
    with pytest.raises(SnapshotError, match="offsets and snapshot do not belong together"):
        Snapshot(base, 99).galaxy(0)


def test_a_missing_chunk_of_the_catalogue_is_named(tmp_path, tiny_simulation):
    base = copy_simulation(tiny_simulation, tmp_path / "toy")
    (base / "groups_099/fof_subhalo_tab_099.1.hdf5").unlink()
    with pytest.raises(SnapshotError, match=r"1 of 2 chunks are missing, first .*fof_subhalo_tab_099\.1\.hdf5"):
        Snapshot(base, 99)


def test_gas_of_a_cutout_whose_stars_cannot_be_told_from_wind(tmp_path, write_cutout, arrays_of_a_cutout):
    arrays = arrays_of_a_cutout()
    del arrays["PartType4"]["GFM_StellarFormationTime"]
    galaxy = read_cutout(write_cutout(tmp_path / "c.hdf5", arrays), need={"gas": set()})
    assert len(galaxy.particles["gas"]) == 40
    assert "stars" not in galaxy.particles


def test_files_of_one_subhalo_are_one_split_group(tmp_path, write_cutout, arrays_of_a_cutout):
    """A file named twice is taken once; a copy of a galaxy never falls on the other side of a split."""
    first = write_cutout(tmp_path / "a.hdf5", arrays_of_a_cutout())
    shutil.copy(first, tmp_path / "b.hdf5")
    items = CutoutSource([str(first), str(tmp_path / "*.hdf5")]).items()
    assert len(items) == 2
    assert items[0].split_group == items[1].split_group


def test_without_offsets_or_catalogue_columns(tmp_path, tiny_simulation):
    base = copy_simulation(tiny_simulation, tmp_path / "toy")
    for tab in (base / "groups_099").glob("*.hdf5"):
        with h5py.File(tab, "r+") as file:
            del file["Subhalo/SubhaloFlag"]
    with pytest.raises(SnapshotError, match=r"fof_subhalo_tab_099\.0\.hdf5: the group catalogue has no SubhaloFlag"):
        Snapshot(base, 99)
    offsets = tmp_path / "toy/postprocessing/offsets/offsets_099.hdf5"
    offsets.unlink()
    with pytest.raises(SnapshotError, match=r"offsets_099\.hdf5 is missing: without the offsets"):
        Snapshot(base, 99)


def test_galaxies_without_a_kind_of_particle(tmp_path, tiny_simulation):
    """A subhalo whose catalogue counts no stars has an empty kind, and its map is zero."""
    base = copy_simulation(tiny_simulation, tmp_path / "toy")
    for tab in (base / "groups_099").glob("*.hdf5"):
        with h5py.File(tab, "r+") as file:
            counts = file["Subhalo/SubhaloLenType"][()]
            counts[:, 4] = 0
            file["Subhalo/SubhaloLenType"][...] = counts
    galaxy = Snapshot(base, 99).galaxy(1)
    assert len(galaxy.particles["stars"]) == len(galaxy.particles["wind"]) == 0
    assert not make_maps(galaxy, ["stars"], View(np.eye(3), 100.0, 16))["stars"].any()
    assert make_maps(galaxy, ["gas"], View(np.eye(3), 100.0, 16))["gas"].any()


# cutouts


def assert_same(left: Galaxy, right: Galaxy) -> None:
    assert left.particles.keys() == right.particles.keys()
    for kind, particles in left.particles.items():
        for name in ("position", "mass", *particles.fields):
            np.testing.assert_array_equal(particles[name], right.particles[kind][name])
    assert left.name == right.name
    assert (left.number, left.snapshot, left.redshift) == (right.number, right.snapshot, right.redshift)


@pytest.mark.parametrize("length_one", [False, True])
@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("totals", [False, True])
def test_every_layout_of_the_header_gives_the_same_galaxy(tmp_path, write_cutout, length_one, as_bytes, totals):
    plain = read_cutout(write_cutout(tmp_path / "plain.hdf5"))
    other = read_cutout(write_cutout(tmp_path / "other.hdf5", length_one=length_one, as_bytes=as_bytes, totals=totals))
    assert_same(plain, other)
    assert plain.name == "subhalo 17"
    assert plain.snapshot == 50
    assert plain.provenance == "cutout plain.hdf5 of L75n1820TNG"
    assert len(plain.particles["stars"]) == 19
    assert len(plain.particles["wind"]) == 1


def test_units_of_a_cutout_at_redshift_one(tmp_path, write_cutout, arrays_of_a_cutout):
    """By hand, with a = 1/2: the powers of a that a snapshot at z = 0 cannot show."""
    stored = arrays_of_a_cutout()
    galaxy = read_cutout(write_cutout(tmp_path / "c.hdf5"), centre=[50 / H, 100 / H, 150 / H])
    gas, raw = galaxy.particles["gas"], stored["PartType0"]
    close = {"rtol": 1e-12, "atol": 1e-10}
    np.testing.assert_allclose(gas.position, (raw["Coordinates"] - [100, 200, 300]) * 0.5 / H, **close)
    np.testing.assert_allclose(gas.mass, raw["Masses"].astype(float) * 1e10 / H, **close)
    np.testing.assert_allclose(gas["density"], raw["Density"].astype(float) * 1e10 * H**2 * 8, **close)
    np.testing.assert_allclose(gas["velocity"], raw["Velocities"].astype(float) * np.sqrt(0.5), **close)
    np.testing.assert_allclose(gas["magnetic_field"], raw["MagneticField"].astype(float) * H * 4 * 2.6e-6, **close)
    np.testing.assert_allclose(galaxy.particles["dm"].mass, 5.05574296e-04 * 1e10 / H, rtol=1e-12)


def test_a_cutout_moves_as_its_gas(tmp_path, write_cutout, arrays_of_a_cutout):
    """It carries no SubhaloVel: the mass-weighted mean of its gas stands in, whichever kinds are asked for."""
    path = write_cutout(tmp_path / "c.hdf5")
    gas = arrays_of_a_cutout()["PartType0"]
    expected = np.average(np.float64(gas["Velocities"]), axis=0, weights=np.float64(gas["Masses"])) * np.sqrt(0.5)
    for need in (None, {"stars": {"velocity"}}, {"gas": {"velocity"}, "dm": set()}):
        np.testing.assert_allclose(read_cutout(path, need=need).velocity, expected, rtol=1e-12)
    assert not read_cutout(path, need={"gas": {"density"}}).velocity.any(), "not read, not known"
    arrays = arrays_of_a_cutout()
    del arrays["PartType0"]
    stars = read_cutout(
        write_cutout(tmp_path / "d.hdf5", arrays, request="PartType4=all"), need={"stars": {"velocity"}}
    )
    moving = [p for p in stars.particles.values() if "velocity" in p.fields]
    mean = sum(p.mass @ p["velocity"] for p in moving) / sum(p.mass.sum() for p in moving)
    np.testing.assert_allclose(stars.velocity, mean, rtol=1e-12)


def test_the_centre_of_a_cutout_does_not_depend_on_the_box_edge(tmp_path, write_cutout, arrays_of_a_cutout):
    """Shifted by a vector through the edge of the box, the galaxy is the same and its centre moves along."""
    arrays = arrays_of_a_cutout()
    galaxy = read_cutout(write_cutout(tmp_path / "here.hdf5", arrays))
    shift = np.array([-100.0, 74795.0, 50000.0])
    for fields in arrays.values():
        fields["Coordinates"] = (fields["Coordinates"] + shift) % 75000.0
    assert np.ptp(arrays["PartType0"]["Coordinates"][:, 0]) > 70000
    moved = read_cutout(write_cutout(tmp_path / "there.hdf5", arrays))
    # 75000 ckpc/h in float64: rounding 1e-11
    for kind, particles in galaxy.particles.items():
        np.testing.assert_allclose(moved.particles[kind].position, particles.position, rtol=0, atol=1e-9)
    np.testing.assert_allclose(moved.centre, (galaxy.centre + shift * 0.5 / H) % (75000 * 0.5 / H), atol=1e-9)
    # The centre lies within the ball of particles: closer than the sampling noise, 10 ckpc/h / √90 × 3
    assert np.linalg.norm(galaxy.centre - np.array([100, 200, 300]) * 0.5 / H) < 3 * 5 / H * np.sqrt(3 / 90)


def test_a_type_that_was_asked_for_and_has_no_particles_gives_an_empty_map(tmp_path, write_cutout, arrays_of_a_cutout):
    arrays = arrays_of_a_cutout()
    del arrays["PartType4"]
    path = write_cutout(tmp_path / "c.hdf5", arrays)
    galaxy = read_cutout(path, need={"gas": ALL_GAS, "stars": set()})
    assert len(galaxy.particles["stars"]) == len(galaxy.particles["wind"]) == 0
    maps = make_maps(galaxy, ["stars", "gas", "hi", "temperature"], View(np.eye(3), 60.0, 16))
    assert not maps["stars"].any()
    assert all(maps[name].any() for name in ("gas", "hi", "temperature"))
    # The same without the request: the stars were never downloaded, which is another matter
    path = write_cutout(tmp_path / "d.hdf5", arrays, request="PartType0=all")
    with pytest.raises(SnapshotError, match=r"has no PartType4 \(stars\); it holds PartType0, PartType1\. Download"):
        read_cutout(path, need={"stars": set()})


@pytest.mark.parametrize(
    ("group", "field", "need", "message"),
    [
        ("PartType0", "MagneticField", {"gas": {"magnetic_field"}}, r"no MagneticField, needed for 'magnetic_field'"),
        (
            "PartType0",
            "InternalEnergy",
            {"gas": {"temperature"}},
            r"no InternalEnergy, needed for 'temperature' of gas",
        ),
        ("PartType0", "Masses", {}, r"PartType0 has no Masses; download it again with that field"),
        ("PartType1", "Coordinates", {}, r"PartType1 has no Coordinates; download it again"),
        (
            "PartType4",
            "GFM_StellarFormationTime",
            {"stars": set()},
            r"no GFM_StellarFormationTime, so stars cannot be told from wind",
        ),
    ],
)
def test_a_field_that_is_needed_and_absent_is_named(
    tmp_path, write_cutout, arrays_of_a_cutout, group, field, need, message
):
    arrays = arrays_of_a_cutout()
    del arrays[group][field]
    path = write_cutout(tmp_path / "c.hdf5", arrays)
    before = path.read_bytes()
    with pytest.raises(SnapshotError, match=message):
        read_cutout(path, need=need)
    assert path.read_bytes() == before


def test_a_cutout_without_density_has_a_support_from_its_neighbours(tmp_path, write_cutout, arrays_of_a_cutout):
    arrays = arrays_of_a_cutout()
    del arrays["PartType0"]["Density"]
    galaxy = read_cutout(write_cutout(tmp_path / "c.hdf5", arrays))
    assert galaxy.particles["gas"].support is None
    with pytest.raises(GalaxyError, match="no field 'support'"):
        make_maps(galaxy, ["gas"], View(np.eye(3), 60.0, 16))


@pytest.mark.parametrize(
    ("group", "field", "value", "message"),
    [
        (
            "PartType0",
            "Masses",
            -1e-5,
            r"negative 'mass' in 1 of 40 gas particles, lowest -1\.476e\+05 Msun at index 3",
        ),
        ("PartType0", "Density", -1e-5, r"negative 'density' in 1 of 40 gas particles.* at index 3"),
        (
            "PartType0",
            "InternalEnergy",
            np.nan,
            r"'temperature' of gas is not finite in 1 of 40.*index 3.*leave it out",
        ),
        ("PartType0", "Coordinates", np.inf, r"'position' of gas is not finite in 1 of 40 particles, first at index 3"),
        ("PartType4", "Masses", np.nan, r"'mass' of stars is not finite in 1 of 19 particles, first at index 3"),
        ("PartType4", "StellarHsml", -1.0, r"negative 'support' in 1 of 19 stars particles"),
    ],
)
def test_values_that_cannot_be(tmp_path, write_cutout, arrays_of_a_cutout, group, field, value, message):
    arrays = arrays_of_a_cutout()
    arrays[group][field][3] = value
    path = write_cutout(tmp_path / "bad.hdf5", arrays)
    for centre in (None, [0, 0, 0]):  # a centre that has to be found does not spread the fault
        with np.errstate(invalid="ignore"), pytest.raises(GalaxyError, match=message) as caught:
            read_cutout(path, centre=centre)
        assert "bad.hdf5" in str(caught.value), "the message says which file"


def test_masses_that_are_all_bad_are_named(tmp_path, write_cutout, arrays_of_a_cutout):
    """Neither the centre nor the half-mass radius, which are sought before, trips over them."""
    for bad in (-1.0, np.nan):
        arrays = arrays_of_a_cutout()
        arrays["PartType0"]["Masses"][:] = bad
        arrays["PartType4"]["Masses"][:] = bad
        del arrays["PartType1"]
        with pytest.raises(GalaxyError, match=r"'mass' (of gas is not finite )?in 40 of 40"):
            read_cutout(write_cutout(tmp_path / "c.hdf5", arrays))


def test_counts_and_lengths_that_disagree(tmp_path, write_cutout, arrays_of_a_cutout):
    counts = np.array([50, 30, 0, 0, 20, 0])
    path = write_cutout(tmp_path / "more.hdf5", header={"NumPart_ThisFile": counts})
    with pytest.raises(SnapshotError, match=r"counts 50 particles of type 0, the arrays hold 40.*thinned or damaged"):
        read_cutout(path)
    assert len(read_cutout(path, partial=True).particles["gas"]) == 40
    arrays = arrays_of_a_cutout()
    arrays["PartType0"]["Density"] = arrays["PartType0"]["Density"][:-1]
    with pytest.raises(SnapshotError, match=r"fields of PartType0 differ in length: .*'Density': 39"):
        read_cutout(write_cutout(tmp_path / "ragged.hdf5", arrays), partial=True)
    del arrays["PartType0"]
    path = write_cutout(tmp_path / "gone.hdf5", arrays, header={"NumPart_ThisFile": counts})
    with pytest.raises(SnapshotError, match=r"counts 50 particles of type 0 but the file has no PartType0"):
        read_cutout(path)


def test_files_that_are_no_cutouts(tmp_path, write_cutout):
    with pytest.raises(SnapshotError, match=r"absent\.hdf5 does not exist"):
        read_cutout(tmp_path / "absent.hdf5")
    text = tmp_path / "text.hdf5"
    text.write_text('{"detail": "Not found."}')
    with pytest.raises(SnapshotError, match=r"text\.hdf5 is no HDF5 file, or is cut off.*fetch it again"):
        read_cutout(text)
    whole = write_cutout(tmp_path / "whole.hdf5").read_bytes()
    (tmp_path / "half.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SnapshotError, match=r"half\.hdf5 is no HDF5 file, or is cut off"):
        read_cutout(tmp_path / "half.hdf5")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["image"] = np.zeros(3)
    with pytest.raises(SnapshotError, match=r"other\.hdf5 is no TNG snapshot: it has no /Header \(it holds image\)"):
        read_cutout(tmp_path / "other.hdf5")
    with pytest.raises(SnapshotError, match=r"its /Header has no .*HubbleParam"):
        read_cutout(write_cutout(tmp_path / "headless.hdf5", without=("HubbleParam",)))


def test_a_source_of_cutouts(tmp_path, write_cutout, arrays_of_a_cutout):
    """Each file is one galaxy, one split group; a pattern that matches nothing is an error, not an empty list."""
    for number in (3, 5):
        path = tmp_path / f"cutout_{number}.hdf5"
        write_cutout(path, arrays_of_a_cutout(number), header={"CutoutID": number})
    source = CutoutSource([str(tmp_path / "cutout_*.hdf5")], minimum_particles={"gas": 40})
    items = source.items()
    assert [(item.number, item.split_group) for item in items] == [(0, 0), (1, 1)]
    assert [source.read(item.number, {"gas": {"density"}}).number for item in items] == [3, 5]
    more = CutoutSource([str(tmp_path / "cutout_*.hdf5")], minimum_particles={"gas": 41})
    with pytest.raises(GalaxyError, match="subhalo 3 has 40 gas particles, 41 were asked for; lower minimum_particles"):
        more.read(0, {"gas": {"density"}})
    with pytest.raises(SnapshotError, match=r"no cutout file is called .*nothing_\*\.hdf5"):
        CutoutSource([str(tmp_path / "nothing_*.hdf5")]).items()
    with pytest.raises(SnapshotError, match="no cutout files were named"):
        CutoutSource().items()


def test_cutouts_without_their_number_are_told_apart(tmp_path, write_cutout, arrays_of_a_cutout):
    """Two files without ``CutoutID`` are two galaxies with two names."""
    for name in ("one", "two"):
        write_cutout(tmp_path / f"{name}.hdf5", arrays_of_a_cutout(), without=("CutoutID",))
    source = CutoutSource([str(tmp_path / "*.hdf5")])
    galaxies = [source.read(item.number, {"gas": {"density"}}) for item in source.items()]
    assert [(galaxy.number, galaxy.name) for galaxy in galaxies] == [(0, "one"), (1, "two")]


def test_messages_name_the_kinds_that_can_be_read():
    assert re.fullmatch(r"[a-z_, ]+", ", ".join(tng.KINDS))
    assert set(tng.KINDS) == set(tng_units.FIELDS)
