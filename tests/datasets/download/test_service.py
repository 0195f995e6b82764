"""Simulations, lists and catalogue entries as the service gives them, and their physical units."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from astropy import units
from astropy.cosmology import units as cu

from skyshift.datasets.cutout_facts import FactsError, cutout_facts, facts_path, read_facts, sha256_of, write_facts
from skyshift.datasets.tng import read_cutout
from skyshift.datasets.tng_api import Selection, TngService, check_cutout
from skyshift.datasets.tng_connections import ServiceError
from skyshift.datasets.tng_partial import DamagedError
from skyshift.errors import SkyshiftError

H = 0.6774


@pytest.fixture
def tng(web):
    return TngService(web)


@pytest.fixture
def snapshot(tng):
    return tng.snapshot("TNG100-1", 50)


# lists


def test_a_simulation_that_does_not_exist_names_the_nearest(tng, service):
    with pytest.raises(ServiceError, match=r"unknown simulation 'TNG10-1'\. Did you mean 'TNG100-1'"):
        tng.snapshot("TNG10-1", 50)
    with pytest.raises(ServiceError, match="TNG100-1 has no snapshot 100"):
        tng.snapshot("TNG100-1", 100)


def test_the_list_is_whole_over_its_pages_and_heaviest_first(tng, service, snapshot):
    """Six subhaloes at three a page. ``next`` names another host, which is not asked."""
    assert tng.subhalos(snapshot, Selection()) == [0, 1, 2, 3, 4, 5]
    pages = service.requests("/subhalos/")
    assert [seen.query.get("offset", "0") for seen in pages] == ["0", "3"]
    assert pages[0].query["order_by"] == "-mass_stars"
    assert pages[0].query["subhaloflag"] == "1"


def test_no_more_is_listed_than_asked_for(tng, service, snapshot):
    assert tng.subhalos(snapshot, Selection(limit=2)) == [0, 1]
    assert tng.subhalos(snapshot, Selection(limit=4)) == [0, 1, 2, 3]
    assert [seen.query["limit"] for seen in service.requests("/subhalos/")] == ["2", "4", "4"]


def test_masses_are_solar_and_converted_with_the_services_own_h(tng, service, snapshot):
    """The bounds in Msun, by astropy's littleh: 4.9e10 and 5.1e10 Msun/h about the 5e10 Msun/h of subhalo 1."""
    solar = (np.array([4.9e10, 5.1e10]) * units.Msun / cu.littleh).to(
        units.Msun, cu.with_H0(100 * H * units.km / units.s / units.Mpc)
    )
    low, high = solar.value
    assert tng.subhalos(snapshot, Selection({"stars": low}, {"stars": high})) == [1]
    query = service.requests("/subhalos/")[-1].query
    assert float(query["mass_stars__gt"]) == pytest.approx(4.9, rel=1e-12)
    assert float(query["mass_stars__lt"]) == pytest.approx(5.1, rel=1e-12)
    service.simulations["TNG100-1"]["hubble"] = 0.5
    assert tng.subhalos(tng.snapshot("TNG100-1", 50), Selection({"stars": low}, {"stars": high})) != [1]


def test_each_kind_and_the_star_formation_and_who_is_central(tng, service, snapshot):
    service.entries[2] |= {"mass_gas": 50.0, "subhaloflag": 0}
    service.entries[4] |= {"mass_gas": 60.0}
    assert tng.subhalos(snapshot, Selection({"gas": 40e10 / H})) == [4]
    assert tng.subhalos(snapshot, Selection({"gas": 40e10 / H}, flagged=True, heaviest="gas")) == [4, 2]
    assert tng.subhalos(snapshot, Selection(minimum_sfr=2.5)) == [3, 4, 5]
    assert tng.subhalos(snapshot, Selection(which="centrals")) == [0, 4]
    assert tng.subhalos(snapshot, Selection(which="satellites")) == [1, 3, 5]
    query = Selection({"dm": 1e12, "black_holes": 1e6, "total": 1e13}).query(H)
    assert {"mass_dm__gt", "mass_bhs__gt", "mass__gt"} < set(query)


def test_a_list_that_goes_in_circles_is_left(tng, service, snapshot, faults):
    def same_again(handler):
        handler.send_json({"results": [{"id": 1}], "next": "http://x/?offset=0"})
        return True

    service.misbehave("/subhalos/", [same_again])
    with pytest.raises(ServiceError, match="goes in circles at offset 0"):
        tng.subhalos(snapshot, Selection())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"minimum_mass": {"star": 1e10}}, "minimum_mass: unknown kind of mass 'star'. Did you mean 'stars'"),
        ({"maximum_mass": {"gas": 0.0}}, "maximum_mass of gas must be positive"),
        ({"minimum_mass": {"gas": float("nan")}}, "minimum_mass of gas must be positive"),
        ({"heaviest": "sfr"}, "heaviest: unknown kind"),
        ({"limit": -1}, "cannot be negative"),
    ],
)
def test_selections_that_make_no_sense(settings, words):
    with pytest.raises(SkyshiftError, match=words):
        Selection(**settings)


def test_answers_that_are_not_the_services(tng, service, snapshot, faults):
    def other(handler):
        handler.send_json(["something"])
        return True

    service.misbehave("/subhalos/", [other])
    with pytest.raises(ServiceError, match="has no 'results'; is base_url right"):
        tng.subhalos(snapshot, Selection())
    del service.entries[3]["pos_y"]
    with pytest.raises(ServiceError, match="about subhalo 3 has no number 'pos_y'"):
        tng.facts(snapshot, 3)
    service.misbehave("TNG100-1/", [other])
    with pytest.raises(ServiceError, match="about the simulation has no number 'hubble'"):
        tng.snapshot("TNG100-1", 50)


# facts


def test_facts_in_physical_units(tng, service, snapshot):
    """Independently, with astropy: comoving to physical at z = 1, h by littleh. Velocities are km/s already."""
    facts = tng.facts(snapshot, 3)
    hubble = cu.with_H0(100 * H * units.km / units.s / units.Mpc)

    def length(value):
        return (value * units.kpc / cu.littleh).to_value(units.kpc, hubble) / (1 + 1.0)

    assert facts.centre == pytest.approx([length(100), length(200), length(300)], rel=1e-12)
    assert facts.half_mass_radius["stars"] == pytest.approx(length(3.0), rel=1e-12)
    assert facts.half_mass_radius["total"] == pytest.approx(length(12.0), rel=1e-12)
    mass = (2.5e10 * units.Msun / cu.littleh).to_value(units.Msun, hubble)
    assert facts.mass["stars"] == pytest.approx(mass, rel=1e-12)
    assert facts.velocity == (10.0, -20.0, 30.0)
    assert facts.count == {"gas": 40, "dm": 30, "stars": 20, "black_holes": 0, "total": 90}
    assert (facts.sfr, facts.group, facts.central, facts.flag) == (3.0, 1, False, 1)
    for name in ("subhaloflag", "sfr", "len_gas", "mass_gas", "halfmassrad_gas"):  # a dark-matter run
        del service.entries[3][name]
    dark = tng.facts(snapshot, 3)
    assert (dark.flag, dark.sfr) == (None, None)
    assert set(dark.count) == set(dark.mass) == set(dark.half_mass_radius) == {"dm", "stars", "black_holes", "total"}


def test_a_redshift_of_rounding_is_none(tng, service):
    service.redshifts[99] = 2.220446049250313e-16
    assert tng.snapshot("TNG100-1", 99).redshift == 0.0


def test_the_centre_serves_the_reader(tng, service, snapshot, tmp_path):
    """About the catalogue's centre, the particles of the ball lie within its 20 ckpc/h (10 kpc/h physical)."""
    path = tmp_path / "c.hdf5"
    path.write_bytes(service.cutout(3, {"gas": "Coordinates,Masses,Density"}))
    facts = tng.facts(snapshot, 3)
    galaxy = read_cutout(path, centre=facts.centre)
    assert np.abs(galaxy.particles["gas"].position).max() <= 10 / H * (1 + 1e-12)
    assert galaxy.centre == pytest.approx(facts.centre)


def test_facts_are_written_and_read_again(tng, service, snapshot, tmp_path):
    path = tmp_path / "c.hdf5"
    assert cutout_facts(path) is None
    path.write_bytes(b"12345")
    assert cutout_facts(path) is None
    facts = replace(tng.facts(snapshot, 3), size=5, sha256=sha256_of(path), fields={"gas": ["Coordinates"]})
    write_facts(path, facts)
    assert cutout_facts(path) == read_facts(path) == facts
    assert facts.sha256 == "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"  # sha256sum's
    assert facts.holds({"gas": ["Coordinates"]})
    assert not facts.holds({"gas": ["Coordinates", "Masses"]})
    assert not facts.holds({"stars": ["Coordinates"]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], "is not what the downloader writes.*download the cutout again"),
        (lambda text: "[1, 2]", "is not what the downloader writes"),
        (lambda text: text.replace('"centre"', '"center"'), "is not what the downloader writes"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "later version; update skyshift"),
        (lambda text: text.replace('"size": 5', '"size": 6'), "holds 5 bytes, c.json says 6: the file was changed"),
    ],
)
def test_facts_that_are_damaged(tng, service, snapshot, tmp_path, change, words):
    path = tmp_path / "c.hdf5"
    path.write_bytes(b"12345")
    write_facts(path, replace(tng.facts(snapshot, 3), size=5))
    facts_path(path).write_text(change(facts_path(path).read_text()))
    with pytest.raises(FactsError, match=words):
        cutout_facts(path)


# cutouts

FIELDS = {"gas": ("Coordinates", "Masses", "Density"), "stars": ("Coordinates", "Masses")}
QUERY = {kind: ",".join(names) for kind, names in FIELDS.items()}


@pytest.fixture
def cutout(tng, service, snapshot, tmp_path):
    path = tmp_path / "c.hdf5"
    path.write_bytes(service.cutout(3, QUERY))
    return path, tng.facts(snapshot, 3)


def test_a_sound_cutout_passes_whatever_its_header_looks_like(cutout, tmp_path, write_cutout, arrays_of_a_cutout):
    check_cutout(*cutout, FIELDS)
    for layout in ({"length_one": True}, {"as_bytes": True}, {"totals": False}):
        path = write_cutout(tmp_path / "d.hdf5", header={"CutoutID": 3}, **layout)
        check_cutout(path, cutout[1], FIELDS)
    arrays = arrays_of_a_cutout()
    del arrays["PartType4"]  # a type without particles has no group
    check_cutout(write_cutout(tmp_path / "d.hdf5", arrays, header={"CutoutID": 3}), cutout[1], FIELDS)


def test_damage_is_found(cutout, tmp_path):
    path, facts = cutout
    body = path.read_bytes()
    for damaged in (body[: len(body) // 2], body[:-1], b"<html>Log in</html>", b"", b"\0" * len(body)):
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match="no sound HDF5 snapshot"):
            check_cutout(path, facts, FIELDS)
    path.write_bytes(body)
    with pytest.raises(DamagedError, match=r"of snapshot and subhalo \(50, 3\), not \(50, 4\)"):
        check_cutout(path, replace(facts, subhalo=4), FIELDS)
    with pytest.raises(DamagedError, match="counts 40 of PartType0/MagneticField, the file does not hold them"):
        check_cutout(path, facts, {"gas": ("MagneticField",)})
    with h5py.File(path, "r+") as file:
        del file["PartType0/Masses"]
        file["PartType0/Masses"] = np.ones(39)
    with pytest.raises(DamagedError, match="counts 40 of PartType0/Masses, the file holds 39"):
        check_cutout(path, facts, FIELDS)


def test_real_cutouts_pass_or_are_found_thinned(shared, cutout):
    """A raw one of TNG50-1-Dark passes; of the thinned one, the header counts 13,587 cells and the arrays hold 100."""
    folder, facts = shared / "tng/cutouts", cutout[1]
    dark = replace(facts, snapshot=0, subhalo=0)
    check_cutout(folder / "TNG50-1-Dark_snap0_halo0_coordinates.hdf5", dark, {"dm": ("Coordinates",)})
    empty = replace(facts, snapshot=0, subhalo=67)
    check_cutout(folder / "TNG50-1_snap0_halo67_empty.hdf5", empty, {"bhs": ("Coordinates", "Masses")})
    thinned = replace(facts, snapshot=78, subhalo=9)
    with pytest.raises(DamagedError, match="counts 13587 of PartType0/Coordinates, the file holds 100"):
        check_cutout(folder / "TNG100-1_snap78_subhalo9_sample.hdf5", thinned, FIELDS)


def test_missing_fields_are_found_one_by_one(tng, service, snapshot):
    service.lacking = {"StellarHsml", "MagneticField"}
    fields = {"gas": ("Coordinates", "MagneticField"), "stars": ("Coordinates", "StellarHsml")}
    assert tng.missing_fields(snapshot, 3, fields) == ["MagneticField", "StellarHsml"]
    assert [json.dumps(seen.query) for seen in service.requests("cutout.hdf5")] == [
        '{"gas": "Coordinates"}', '{"gas": "MagneticField"}', '{"stars": "Coordinates"}', '{"stars": "StellarHsml"}'
    ]  # fmt: skip
