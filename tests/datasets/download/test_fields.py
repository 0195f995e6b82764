"""Which fields are asked for: those that the reader needs for the domains, and what a mini snapshot lacks."""

import numpy as np
import pytest

from skyshift.datasets.cutout_fields import FULL_SNAPSHOTS, SCARCE, FieldPlan, FieldsError, is_mini, plan_fields
from skyshift.datasets.domains import DOMAINS, DomainError, needed_fields
from skyshift.datasets.tng import read_cutout
from skyshift.datasets.tng_units import SnapshotError


def test_gas_alone_and_neutral_hydrogen():
    """By hand: gas needs a position, a mass and the cell's density; HI what physics.md's recipes name."""
    assert plan_fields(["gas"], "TNG100-1", 99).fields == {"gas": ("Coordinates", "Masses", "Density")}
    hi = plan_fields(["gas", "hi"], "TNG100-1", 99)
    assert set(hi.fields) == {"gas"}
    assert set(hi.fields["gas"]) >= {
        "Coordinates", "Masses", "Density", "InternalEnergy", "ElectronAbundance", "StarFormationRate",
        "NeutralHydrogenAbundance",
    }  # fmt: skip
    assert hi.needed_by["NeutralHydrogenAbundance"] == ("hi",)
    assert not hi.dropped


def test_dark_matter_and_stars():
    """Dark matter has no Masses (its mass is in the header); stars are told from wind by their formation time."""
    plan = plan_fields(["dm", "stars"], "TNG100-1", 99)
    assert plan.fields == {
        "dm": ("Coordinates", "SubfindHsml"),
        "stars": ("Coordinates", "Masses", "GFM_StellarFormationTime", "StellarHsml"),
    }
    every = {name for names in plan_fields(DOMAINS, "TNG100-1", 99).fields.values() for name in names}
    assert "ParticleIDs" not in every


@pytest.mark.parametrize("domain", list(DOMAINS))
def test_a_cutout_with_these_fields_and_no_others_is_read(domain, tmp_path, write_cutout, arrays_of_a_cutout):
    """The reader is content with what is asked for, and refuses once a field is taken away that a domain needs."""
    plan = plan_fields([domain], "TNG100-1", 99)
    (kind,) = plan.fields
    group = {"gas": "PartType0", "dm": "PartType1", "stars": "PartType4"}[kind]
    full = dict(arrays_of_a_cutout()[group])
    if "GFM_StellarPhotometrics" in plan.fields[kind]:
        full.setdefault("GFM_StellarPhotometrics", np.full((len(full["Coordinates"]), 8), -5.0, np.float32))
    chosen = {name: full[name] for name in plan.fields[kind] if name not in SCARCE or name in full}
    path = write_cutout(tmp_path / "c.hdf5", {group: chosen})
    need = needed_fields([domain])
    assert len(read_cutout(path, need=need).particles[kind]) > 0
    for name in plan.needed_by:
        if name in chosen and name not in SCARCE:
            lacking = {field: values for field, values in chosen.items() if field != name}
            with pytest.raises(SnapshotError, match=name):
                read_cutout(write_cutout(tmp_path / "c.hdf5", {group: lacking}), need=need)


def test_full_and_mini_snapshots():
    assert len(FULL_SNAPSHOTS) == 20
    assert not is_mini("TNG100-1", 99)
    assert is_mini("TNG50-1", 98)
    assert not is_mini("Illustris-1", 134)


def test_a_mini_snapshot_drops_what_has_a_recipe_and_says_so():
    plan = plan_fields(["gas", "hi"], "TNG100-1", 98)
    assert "NeutralHydrogenAbundance" not in plan.fields["gas"]
    assert plan.dropped == {
        "NeutralHydrogenAbundance": "snapshot 98 of TNG100-1 is a mini snapshot; instead: "
        "neutral fractions from ionisation equilibrium with self-shielding (Rahmati et al. 2013)"
    }
    assert set(plan_fields(["hi"], "TNG100-1", 99).fields["gas"]) - set(plan.fields["gas"]) == set(plan.dropped)
    assert set(plan.fields["gas"]) >= {"Density", "InternalEnergy", "ElectronAbundance"}, "what the recipe is made from"
    bare = FieldPlan({"gas": ("Coordinates", "NeutralHydrogenAbundance"), "dm": ("Coordinates",)}, {})
    assert bare.without(["NeutralHydrogenAbundance"], "so").fields == {
        "gas": ("Coordinates", "Density", "InternalEnergy", "ElectronAbundance"), "dm": ("Coordinates",)
    }  # fmt: skip


def test_what_nothing_can_replace_is_refused_with_its_domains():
    plan = plan_fields(["gas", "bfield"], "TNG100-1", 99)
    with pytest.raises(
        FieldsError, match=r"HTTP 400: it has no MagneticField, which is needed for bfield, .*full snap"
    ):
        plan.without(["MagneticField"], "HTTP 400")
    with pytest.raises(FieldsError, match=r"it has no Density, which is needed for (every map of its kind|gas)"):
        plan.without(["Density"], "HTTP 400")
    assert plan_fields(["dm"], "TNG100-1", 99).without(["SubfindHsml"], "so").fields == {"dm": ("Coordinates",)}


def test_names_that_are_no_domains():
    with pytest.raises(DomainError, match="Did you mean 'gas'"):
        plan_fields(["gaz"], "TNG100-1", 99)
    with pytest.raises(FieldsError, match="no domain is named"):
        plan_fields([], "TNG100-1", 99)
