"""Files that are not what they should be: damaged inside, in other units, or of a mini snapshot."""

import logging
import shutil
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from skyshift.datasets import hydrogen
from skyshift.datasets.build import build_store
from skyshift.datasets.domains import DOMAINS, Recipes, needed_fields
from skyshift.datasets.galaxy import GalaxyError
from skyshift.datasets.shards import BuildConfig, FieldOfView
from skyshift.datasets.sources import CutoutSource, SnapshotSource
from skyshift.datasets.store import MapStore
from skyshift.datasets.summarize import SummarizeConfig, summarize
from skyshift.datasets.tng import Box, Snapshot, read_cutout
from skyshift.datasets.tng_units import SnapshotError


@pytest.fixture
def copy(tmp_path, tiny_simulation) -> Path:
    """``output`` of a simulation to break."""
    shutil.copytree(tiny_simulation, tmp_path / "toy")
    return tmp_path / "toy/output"


def chunks(base: Path) -> list[Path]:
    return sorted((base / "snapdir_099").glob("*.hdf5"))


def read_all(base: Path, how: str) -> None:
    """Galaxy 11, the last, of which all lies in the last chunk; or the whole box."""
    need = {"gas": {"density", "sfr"}, "dm": set(), "stars": set()}
    if how == "box":
        Box(base / "snapdir_099", need=need)
    elif how == "stream":
        list(Snapshot(base, 99).stream(11, need, 50))
    else:
        Snapshot(base, 99).galaxy(11, need=need)


# damage

HOW = pytest.mark.parametrize("how", ["galaxy", "stream", "box"])


@HOW
def test_a_chunk_cut_off_half_way(copy, how):
    whole = chunks(copy)[1].read_bytes()
    chunks(copy)[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SnapshotError, match=r"snap_099\.1\.hdf5 is no HDF5 file, or is cut off .*fetch it again"):
        read_all(copy, how)
    assert len(chunks(copy)[1].read_bytes()) == len(whole) // 2, "nothing is mended behind one's back"


@HOW
@pytest.mark.parametrize("keep", [0.35, 0.6, 0.9])
def test_a_chunk_that_is_zeros_from_half_way_on(copy, how, keep):
    """As a download leaves that made room for the whole file and broke off: HDF5 opens it, data or tables are zeros."""
    whole = chunks(copy)[1].read_bytes()
    head = int(keep * len(whole))
    chunks(copy)[1].write_bytes(whole[:head] + bytes(len(whole) - head))
    with pytest.raises((SnapshotError, GalaxyError), match=r"fetch it again|file has holes|is damaged"):
        read_all(copy, how)


@HOW
def test_a_compressed_field_that_cannot_be_unpacked(copy, how):
    """HDF5's own checksum speaks; the message names file and field."""
    with h5py.File(chunks(copy)[1], "r+") as file:
        values = file["PartType0/Density"][()]
        attributes = dict(file["PartType0/Density"].attrs)
        del file["PartType0/Density"]
        data = file.create_dataset("PartType0/Density", data=values, chunks=(64,), compression="gzip", fletcher32=True)
        data.attrs.update(attributes)
        places = [data.id.get_chunk_info(i) for i in range(data.id.get_num_chunks())]
    content = bytearray(chunks(copy)[1].read_bytes())
    for place in places:
        content[place.byte_offset + 5 : place.byte_offset + 25] = bytes(20)
    chunks(copy)[1].write_bytes(content)
    with pytest.raises(SnapshotError, match=r"(PartType0/Density cannot be read|gas particles lie in a chunk).*fetch"):
        read_all(copy, how)


def test_a_damaged_cutout(tmp_path, write_cutout):
    whole = write_cutout(tmp_path / "whole.hdf5").read_bytes()
    named = 0
    for keep in (0.3, 0.5, 0.7, 0.9):
        head = int(keep * len(whole))
        (tmp_path / "half.hdf5").write_bytes(whole[:head] + bytes(len(whole) - head))
        with pytest.raises((SnapshotError, GalaxyError), match=r"half\.hdf5") as caught:
            read_cutout(tmp_path / "half.hdf5")
        named += "again" in str(caught.value)
    assert named == 4


def test_a_damaged_catalogue(copy):
    tab = sorted((copy / "groups_099").glob("*.hdf5"))[0]
    whole = tab.read_bytes()
    tab.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SnapshotError, match=r"fof_subhalo_tab_099\.0\.hdf5 is no HDF5 file, or is cut off"):
        Snapshot(copy, 99)


def test_masses_of_zero_are_holes(tmp_path, write_cutout, arrays_of_a_cutout):
    arrays = arrays_of_a_cutout()
    arrays["PartType0"]["Masses"][10:] = 0
    with pytest.raises(GalaxyError, match=r"zero 'mass' in 30 of 40 gas particles, first at index 10 .*c\.hdf5"):
        read_cutout(write_cutout(tmp_path / "c.hdf5", arrays))


# units and attributes


@pytest.mark.parametrize(
    ("field", "attribute", "value", "message"),
    [
        ("PartType0/Density", "a_scaling", 0.0, r"PartType0/Density says a_scaling = 0\.0, IllustrisTNG has -3"),
        ("PartType0/Masses", "h_scaling", 0.0, r"PartType0/Masses says h_scaling = 0\.0, IllustrisTNG has -1"),
        ("PartType0/Coordinates", "to_cgs", 3.085678e24, r"to_cgs = 3\.085678e\+24, IllustrisTNG has 3\.08568e\+21"),
        ("PartType4/Velocities", "to_cgs", 1.0, r"PartType4/Velocities says to_cgs = 1\.0, IllustrisTNG has 100000"),
        ("PartType0/StarFormationRate", "to_cgs", 1.0, r"to_cgs = 1\.0, IllustrisTNG has 6\.30276e\+25"),
    ],
)
def test_a_field_in_other_units(copy, tmp_path, write_cutout, field, attribute, value, message):
    for chunk in chunks(copy):
        with h5py.File(chunk, "r+") as file:
            file[field].attrs[attribute] = value
    with pytest.raises(SnapshotError, match=message + r"; the file is in other units"):
        Snapshot(copy, 99)
    with pytest.raises(SnapshotError, match=message):
        Box(copy / "snapdir_099")
    cutout = write_cutout(tmp_path / "c.hdf5")
    with h5py.File(cutout, "r+") as file:
        file[field].attrs[attribute] = value
    with pytest.raises(SnapshotError, match=message):
        read_cutout(cutout)


@pytest.mark.parametrize("name", ["UnitLength_in_cm", "UnitMass_in_g", "UnitVelocity_in_cm_per_s"])
def test_a_header_in_other_units(copy, name):
    for chunk in chunks(copy):
        with h5py.File(chunk, "r+") as file:
            file["Header"].attrs[name] *= 1e3
    with pytest.raises(SnapshotError, match=rf"snap_099\.0\.hdf5: /Header says {name} = .*Convert it first"):
        Snapshot(copy, 99)


def test_attributes_that_are_not_there_are_the_specifications(copy, tiny_simulation):
    """MagneticField carries none in any TNG file: without attributes a field is what the specification says."""
    for chunk in chunks(copy):
        with h5py.File(chunk, "r+") as file:
            for kind in (0, 1, 4):
                for data in file[f"PartType{kind}"].values():
                    for attribute in list(data.attrs):
                        del data.attrs[attribute]
    bare, described = Snapshot(copy, 99).galaxy(1), Snapshot(tiny_simulation / "output", 99).galaxy(1)
    for kind, particles in described.particles.items():
        np.testing.assert_array_equal(bare.particles[kind].mass, particles.mass)
        np.testing.assert_array_equal(bare.particles[kind].position, particles.position)


@pytest.mark.parametrize("name", ["Time", "HubbleParam", "BoxSize", "MassTable", "NumPart_ThisFile", "Omega0"])
def test_a_header_without_an_entry(copy, name):
    with h5py.File(chunks(copy)[0], "r+") as file:
        del file["Header"].attrs[name]
    with pytest.raises(SnapshotError, match=rf"snap_099\.0\.hdf5 is no TNG snapshot: its /Header has no .*{name}"):
        Snapshot(copy, 99)


# mini snapshots

MINI = (
    "PartType0/NeutralHydrogenAbundance", "PartType0/MagneticField", "PartType0/GFM_Metals", "PartType1/SubfindHsml",
    "PartType4/StellarHsml",
)  # fmt: skip


@pytest.fixture
def mini(copy) -> Path:
    for chunk in chunks(copy):
        with h5py.File(chunk, "r+") as file:
            for field in MINI:
                if field in file:
                    del file[field]
    return copy


def test_neutral_hydrogen_of_a_mini_snapshot(mini, caplog):
    """The equilibrium of every cell at its own temperature; the galaxy says so, and the log once more."""
    need = needed_fields(["hi", "temperature"])
    with caplog.at_level(logging.WARNING):
        galaxy = SnapshotSource(str(mini), 99).read(1, need)
    words = "NeutralHydrogenAbundance is missing: neutral fractions from ionisation equilibrium"
    assert words in galaxy.provenance
    assert words in caplog.text
    gas = galaxy.particles["gas"]
    expected = hydrogen.rahmati_neutral_fraction(
        hydrogen.hydrogen_density(gas["density"]), gas["temperature"], galaxy.redshift
    )
    np.testing.assert_allclose(gas["neutral_fraction"], expected, rtol=1e-12)
    np.testing.assert_allclose(
        hydrogen.atomic_hydrogen_mass(galaxy), hydrogen.atomic_hydrogen_mass(galaxy, neutral="equilibrium"), rtol=1e-12
    )
    pieces = list(SnapshotSource(str(mini), 99).stream(1, need, 60))
    assert all(words in piece.provenance for piece in pieces)
    streamed = np.concatenate([piece.particles["gas"]["neutral_fraction"] for piece in pieces])
    np.testing.assert_array_equal(streamed, gas["neutral_fraction"])


def test_a_full_snapshot_says_nothing_of_it(tiny_simulation, caplog):
    with caplog.at_level(logging.WARNING):
        galaxy = SnapshotSource(str(tiny_simulation / "output"), 99).read(1, needed_fields(DOMAINS))
    assert "missing" not in galaxy.provenance
    assert not caplog.records
    asked = SnapshotSource(str(tiny_simulation / "output"), 99).read(
        1, needed_fields(["hi"], Recipes(neutral="equilibrium"))
    )
    assert "neutral_fraction" not in asked.particles["gas"].fields, "asked for, the equilibrium reads nothing more"


def test_the_real_cutout_without_neutral_hydrogen(shared):
    """TNG100-1 at z = 0.3, 100 cells: from its own temperatures, all within [0, 1]."""
    path = shared / "tng/cutouts/TNG100-1_snap78_subhalo9_sample.hdf5"
    galaxy = read_cutout(path, partial=True, need={"gas": {"neutral_fraction", "temperature", "density", "sfr"}})
    fraction = galaxy.particles["gas"]["neutral_fraction"]
    assert ((fraction >= 0) & (fraction <= 1)).all()
    assert "NeutralHydrogenAbundance is missing" in galaxy.provenance


@pytest.mark.parametrize(
    ("domains", "recipes", "message"),
    [
        (["bfield"], {}, r"PartType0 has no MagneticField, needed for 'magnetic_field' of gas\."),
        (["hi"], {"hydrogen": "cell"}, r"no GFM_Metals, needed for 'hydrogen_fraction' of gas \(mini snapshots"),
    ],
)
def test_what_a_mini_snapshot_cannot_give_is_refused_before_reading(mini, domains, recipes, message):
    with pytest.raises(SnapshotError, match=message + ".*choose other domains"):
        Snapshot(mini, 99).galaxy(1, need=needed_fields(domains, Recipes(**recipes)))


@pytest.mark.parametrize(
    ("field", "domain", "message"),
    [
        ("PartType0/GFM_Metallicity", "metallicity", r"no GFM_Metallicity, needed for 'metallicity' of gas"),
        ("PartType0/InternalEnergy", "hi", r"no InternalEnergy, needed for 'temperature' of gas"),
        ("PartType0/StarFormationRate", "sfr", r"no StarFormationRate, needed for 'sfr' of gas"),
        ("PartType0/Velocities", "velocity", r"no Velocities, needed for 'velocity' of gas"),
        ("PartType4/GFM_StellarPhotometrics", "light_r", r"no GFM_StellarPhotometrics, needed for 'photometry' of st"),
    ],
)
def test_fields_that_nothing_replaces(copy, field, domain, message):
    for chunk in chunks(copy):
        with h5py.File(chunk, "r+") as file:
            del file[field]
    with pytest.raises(SnapshotError, match=message):
        Snapshot(copy, 99).galaxy(1, need=needed_fields([domain]))
    assert len(Snapshot(copy, 99).galaxy(1, need=needed_fields(["gas"])).particles["gas"]) > 0


def test_without_temperature_there_is_no_equilibrium_either(mini):
    for chunk in chunks(mini):
        with h5py.File(chunk, "r+") as file:
            del file["PartType0/ElectronAbundance"]
    with pytest.raises(
        SnapshotError, match=r"no NeutralHydrogenAbundance, needed for 'neutral_fraction' of gas \(mini"
    ):
        Snapshot(mini, 99).galaxy(1, need={"gas": {"neutral_fraction", "density"}})


def test_a_store_says_whose_neutral_hydrogen_was_replaced(tmp_path, write_cutout, arrays_of_a_cutout):
    """The plan says ``neutral: snapshot`` of both galaxies, and is right for one; the catalogue tells them apart."""
    arrays = arrays_of_a_cutout(1)
    write_cutout(tmp_path / "full.hdf5", arrays, header={"CutoutID": 1})
    del arrays["PartType0"]["NeutralHydrogenAbundance"]
    write_cutout(tmp_path / "mini.hdf5", arrays, header={"CutoutID": 2})
    source = CutoutSource([str(tmp_path / "*.hdf5")])
    config = BuildConfig(source, str(tmp_path / "m.zarr"), ["gas", "hi"], 8, 2, FieldOfView(kpc=20.0))
    store = build_store(config, progress=False)
    assert store.plan["recipes"]["neutral"] == "snapshot"
    ((words, views),) = store.notes().items()
    assert words.startswith("NeutralHydrogenAbundance is missing: neutral fractions from ionisation equilibrium")
    assert views == 2
    assert store.catalogue()["notes"].tolist() == ["", "", words, words]
    assert f"  2 views: {words}" in summarize(SummarizeConfig(config.store)).lines
    assert store.verify() == {}


def test_parts_without_notes_are_read(tmp_path, tiny_store):
    """Those of older versions: nothing is noted, and their hashes still hold."""
    shutil.copytree(tiny_store, tmp_path / "old.zarr")
    before = MapStore(tiny_store)
    for path in (tmp_path / "old.zarr/catalogue").glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.drop_columns(["notes"]), path)
    old = MapStore(tmp_path / "old.zarr")
    assert old.verify() == {}
    assert old.notes() == {}
    assert old.fingerprint == before.fingerprint
    assert old.catalogue()["notes"].tolist() == [""] * len(before.catalogue())


@pytest.mark.parametrize("damage", ["cut off", "a column is missing"])
def test_a_damaged_chunk_of_the_catalogue_is_named(copy, damage):
    chunk = copy / "groups_099/fof_subhalo_tab_099.1.hdf5"
    if damage == "cut off":
        with chunk.open("r+b") as file:
            file.truncate(chunk.stat().st_size // 2)
    else:
        with h5py.File(chunk, "r+") as file:
            del file["Subhalo/SubhaloVel"]
    before = chunk.read_bytes()
    with pytest.raises(SnapshotError, match=r"fof_subhalo_tab_099\.1\.hdf5 is .*; fetch it again"):
        Snapshot(copy, 99)
    assert chunk.read_bytes() == before
