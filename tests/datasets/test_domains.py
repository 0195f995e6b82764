"""Maps of whole galaxies: mass conserved, means within bounds, one rotation for all domains, symmetry, empty kinds."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import colormaps

from skyshift.datasets.domains import DOMAINS, DomainError, Recipes, View, get_domain, make_maps, needed_fields
from skyshift.datasets.galaxy import Galaxy, GalaxyError
from skyshift.datasets.hydrogen import STAR_FORMING_TEMPERATURE, atomic_hydrogen_mass
from skyshift.datasets.projection import random_rotations
from skyshift.datasets.scaling import SCALINGS
from skyshift.datasets.smoothing import with_support
from skyshift.datasets.tng import Snapshot

EVERYTHING = list(DOMAINS)
PIXELS = 48
COLUMNS = ("dm", "gas", "stars", "hi")


@pytest.fixture(scope="module")
def galaxy(tiny_simulation) -> Galaxy:
    galaxy = Snapshot(tiny_simulation / "output", 99).galaxy(1, need=needed_fields(EVERYTHING))
    for kind in ("gas", "dm", "stars"):
        galaxy = with_support(galaxy, kind)
    return galaxy


@pytest.fixture(scope="module")
def rotation() -> np.ndarray:
    return random_rotations(1, 5)[0]


@pytest.fixture(scope="module")
def side(galaxy) -> float:
    """A field, in kpc, that holds every particle with its kernel whatever the rotation."""
    reach = [np.linalg.norm(p.position, axis=1) + p.support for k, p in galaxy.particles.items() if k != "wind"]
    return 2.02 * float(max(r.max() for r in reach))


@pytest.fixture(scope="module")
def maps(galaxy, rotation, side):
    return make_maps(galaxy, EVERYTHING, View(rotation, side, PIXELS))


def amounts(galaxy: Galaxy, domain: str) -> np.ndarray:
    return atomic_hydrogen_mass(galaxy) if domain == "hi" else galaxy.particles[DOMAINS[domain].kind].mass


@pytest.mark.parametrize("domain", COLUMNS)
def test_mass_is_conserved(maps, galaxy, side, domain):
    """To 1e-6, of which float32 pixels take 6e-8 each and the widest kernels, beyond 32 pixels, 3e-8."""
    total = maps[domain].sum(dtype=np.float64) * (side / PIXELS) ** 2
    assert total == pytest.approx(amounts(galaxy, domain).sum(), rel=1e-6)


@pytest.mark.parametrize("pixels", [7, 256])
@pytest.mark.parametrize("domain", COLUMNS)
def test_mass_is_conserved_at_any_resolution(galaxy, rotation, side, domain, pixels):
    image = make_maps(galaxy, [domain], View(rotation, side, pixels))[domain]
    total = image.sum(dtype=np.float64) * (side / pixels) ** 2
    assert total == pytest.approx(amounts(galaxy, domain).sum(), rel=1e-6)


def test_maps_are_float32_images_of_finite_values(maps):
    for name, image in maps.items():
        assert image.shape == (PIXELS, PIXELS)
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert image.min() >= DOMAINS[name].minimum
        assert DOMAINS[name].signed == (image.min() < 0) == name.startswith("velocity")
    assert list(maps) == EVERYTHING


@pytest.mark.parametrize("domain", ["temperature", "bfield"])
def test_a_mean_lies_within_what_it_averages(maps, galaxy, domain):
    """Weights are positive: min ≤ mean ≤ max, up to one rounding of sums and one to float32; 0 where no gas is."""
    gas = galaxy.particles["gas"]
    if domain == "temperature":
        values = np.where(gas["sfr"] > 0, STAR_FORMING_TEMPERATURE, gas["temperature"])
    else:
        values = np.linalg.norm(gas["magnetic_field"], axis=1) * 1e6
    lit = maps["gas"] > 0
    assert lit.sum() > 100
    assert maps[domain][lit].min() >= values.min() * (1 - 2e-7)
    assert maps[domain][lit].max() <= values.max() * (1 + 2e-7)
    assert np.ptp(maps[domain][lit]) > 0.1 * values.mean()
    # the field's corners lie outside the sphere that holds all particles: no gas, and no mean
    assert maps["gas"][0, 0] == maps[domain][0, 0] == 0


@pytest.mark.parametrize("domain", ["temperature", "bfield"])
def test_the_mean_of_the_mean_is_the_mass_weighted_mean(maps, galaxy, rotation, side, domain):
    """Σ map Σ_gas Δ² / M = Σ m q / M: two float32 maps multiplied, 1e-6."""
    gas = galaxy.particles["gas"]
    quantity = DOMAINS[domain].quantity(galaxy, Recipes(), View(rotation, side, PIXELS))
    total = (maps[domain].astype(np.float64) * maps["gas"]).sum() * (side / PIXELS) ** 2
    assert total == pytest.approx((gas.mass * quantity).sum(), rel=1e-6)


def test_a_uniform_quantity_has_that_mean_everywhere(galaxy, rotation, side):
    gas = galaxy.particles["gas"]
    field = np.tile([3e-6, 0.0, 4e-6], (len(gas), 1))  # G
    uniform = galaxy.with_particles("gas", replace(gas, fields={**gas.fields, "magnetic_field": field}))
    maps = make_maps(uniform, ["gas", "bfield"], View(rotation, side, PIXELS))
    np.testing.assert_allclose(maps["bfield"][maps["gas"] > 0], 5.0, rtol=2e-7)  # µG, |(3, 0, 4)|


def test_star_forming_cells_count_as_ten_thousand_kelvin(galaxy, rotation, side):
    """Whatever their effective temperature is: hundred times hotter, the map is the same bit by bit."""
    gas = galaxy.particles["gas"]
    forming = gas["sfr"] > 0
    assert 0 < forming.sum() < len(gas)
    hotter = np.where(forming, 100 * gas["temperature"], gas["temperature"])
    hot = galaxy.with_particles("gas", replace(gas, fields={**gas.fields, "temperature": hotter}))
    view = View(rotation, side, PIXELS)
    np.testing.assert_array_equal(
        make_maps(hot, ["temperature"], view)["temperature"], make_maps(galaxy, ["temperature"], view)["temperature"]
    )
    only = galaxy.with_particles("gas", gas.select(forming))
    maps = make_maps(only, ["gas", "temperature"], view)
    np.testing.assert_allclose(maps["temperature"][maps["gas"] > 0], 1e4, rtol=2e-7)


def test_all_domains_are_seen_from_the_same_side(maps, galaxy, rotation, side):
    """HI is at most 0.76 of the gas in every pixel, which no other rotation of one of the two would keep."""
    limit = 0.76 * maps["gas"] * (1 + 2e-7)
    assert (maps["hi"] <= limit).all()
    other = make_maps(galaxy, ["hi"], View(random_rotations(1, 6)[0], side, PIXELS))["hi"]
    assert (other > limit).any()
    # Asked for alone, each domain is what it is among the others
    for name in EVERYTHING:
        alone = make_maps(galaxy, [name], View(rotation, side, PIXELS))[name]
        np.testing.assert_array_equal(alone, maps[name])


QUARTER = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""x → y, y → -x: the sky turned by 90° counter-clockwise."""


@pytest.mark.parametrize("domain", EVERYTHING)
def test_a_quarter_turn_of_the_view_permutes_the_pixels(maps, galaxy, rotation, side, domain):
    """Sums in another order: the last bits of float64, one of float32; means of little gas a few more."""
    turned = make_maps(galaxy, [domain], View(QUARTER @ rotation, side, PIXELS))[domain]
    expected = np.rot90(maps[domain], 1)  # rows run upwards: an image of array rows turns the other way
    backward = np.rot90(maps[domain], -1)
    peak = maps[domain].max()
    np.testing.assert_allclose(turned, backward, rtol=1e-5, atol=1e-9 * peak)
    assert not np.allclose(turned, expected, rtol=1e-2)


@pytest.mark.parametrize("domain", EVERYTHING)
def test_turning_the_galaxy_is_turning_the_view(maps, galaxy, rotation, side, domain):
    """Positions and velocities turned by R and seen through V R⁻¹ are the same to 1e-13 kpc and km/s.

    A velocity carries absolute rounding: 1e-4 km/s is a part in 1e6 of the fastest; a dispersion that is small beside
    the velocity likewise.
    """
    turn = random_rotations(1, 11)[0]
    kinds = {
        k: replace(p, position=p.position @ turn.T, fields=dict(p.fields) | turned_velocity(p, turn))
        for k, p in galaxy.particles.items()
    }
    turned = replace(galaxy, particles=kinds, velocity=turn @ galaxy.velocity)
    image = make_maps(turned, [domain], View(rotation @ turn.T, side, PIXELS))[domain]
    atol = 1e-4 if DOMAINS[domain].unit == "km / s" else 1e-9 * maps[domain].max()
    np.testing.assert_allclose(image, maps[domain], rtol=1e-5, atol=atol)


def turned_velocity(particles, turn: np.ndarray) -> dict[str, np.ndarray]:
    return {"velocity": particles["velocity"] @ turn.T} if "velocity" in particles.fields else {}


def test_looking_from_behind_mirrors_the_map(maps, galaxy, rotation, side):
    """Optically thin: turned by 180° about y, columns are reversed and nothing else."""
    behind = np.diag([-1.0, 1.0, -1.0])
    image = make_maps(galaxy, ["gas"], View(behind @ rotation, side, PIXELS))["gas"]
    np.testing.assert_allclose(image, maps["gas"][:, ::-1], rtol=1e-5, atol=1e-9 * maps["gas"].max())


def test_slabs_of_a_galaxy_add_up(galaxy, rotation, side):
    """A slab and what is outside it are the whole; particles are kept by their centre."""
    whole = make_maps(galaxy, ["gas"], View(rotation, side, PIXELS))["gas"]
    slab = make_maps(galaxy, ["gas"], View(rotation, side, PIXELS, depth=20.0))["gas"]
    gas = galaxy.particles["gas"]
    z = (gas.position @ rotation.T)[:, 2]
    inside = (z >= -10) & (z < 10)
    outside = galaxy.with_particles("gas", gas.select(~inside))
    rest = make_maps(outside, ["gas"], View(rotation, side, PIXELS))["gas"]
    assert 0 < inside.sum() < len(gas)
    np.testing.assert_allclose(slab + rest, whole, rtol=1e-6, atol=1e-9 * whole.max())


def test_a_galaxy_without_stars_has_an_empty_map_of_stars(galaxy, rotation, side):
    none = np.zeros(len(galaxy.particles["stars"]), bool)
    bare = galaxy.with_particles("stars", galaxy.particles["stars"].select(none))
    maps = make_maps(bare, ["stars", "gas"], View(rotation, side, PIXELS))
    assert maps["stars"].shape == (PIXELS, PIXELS)
    assert not maps["stars"].any()
    assert maps["gas"].any()


def test_the_molecular_recipe_takes_hydrogen_away(galaxy, rotation, side):
    view = View(rotation, side, PIXELS)
    recipes = ("none", "br06", "leroy08", "kmt")
    metals = np.full(len(galaxy.particles["gas"]), 0.0127)
    gas = galaxy.particles["gas"]
    galaxy = galaxy.with_particles("gas", replace(gas, fields={**gas.fields, "metallicity": metals}))
    hi = {recipe: make_maps(galaxy, ["hi"], view, Recipes(recipe))["hi"] for recipe in recipes}
    assert (hi["br06"] <= hi["none"] * (1 + 1e-6)).all()
    assert hi["br06"].sum() < 0.999 * hi["none"].sum()
    np.testing.assert_array_equal(make_maps(galaxy, ["hi"], view)["hi"], hi["br06"])
    assert not np.array_equal(hi["br06"], hi["leroy08"])
    assert (hi["kmt"] <= hi["none"] * (1 + 1e-6)).all()
    assert hi["kmt"].sum() < 0.999 * hi["none"].sum()


def test_an_unknown_domain_names_the_nearest():
    message = r"unknown domain 'temprature'\. Did you mean 'temperature'\? Known: dm, gas, stars, hi"
    with pytest.raises(DomainError, match=message):
        get_domain("temprature")
    with pytest.raises(DomainError, match=message):
        needed_fields(["gas", "temprature"])
    with pytest.raises(DomainError, match=r"unknown domain 'HI'\. Did you mean 'hi'"):
        get_domain("HI")


def test_what_the_domains_need():
    need = needed_fields(["stars", "bfield"])
    assert need == {"stars": set(), "gas": {"magnetic_field", "density"}}
    assert needed_fields(["hi"])["gas"] == {"density", "sfr", "neutral_fraction", "temperature", "electron_abundance"}


def test_missing_kinds_and_supports_are_named(galaxy, rotation):
    view = View(rotation, 100.0, 8)
    stars = replace(galaxy, particles={"stars": galaxy.particles["stars"]})
    with pytest.raises(GalaxyError, match=r"subhalo 1 has no particles of kind 'gas' \(it has stars;.*PartType0"):
        make_maps(stars, ["gas"], view)
    bare = galaxy.with_particles("dm", replace(galaxy.particles["dm"], support=None))
    with pytest.raises(GalaxyError, match="these particles have no field 'support'"):
        make_maps(bare, ["dm"], view)
    assert make_maps(with_support(bare, "dm"), ["dm"], view)["dm"].any()


def test_units_are_astropys():
    from astropy import units

    for domain in DOMAINS.values():
        unit = units.Unit(domain.unit)
        assert unit.is_equivalent(PHYSICAL[domain.name]), domain.name
        assert unit.to_string("fits") or domain.name == "metallicity", "FITS can write it"
        assert domain.unit, "a file that names no unit is refused"
        assert get_domain(domain.name) is domain
        assert domain.scaling in SCALINGS
        assert domain.colour_map in colormaps
        assert domain.title


PHYSICAL = {
    **dict.fromkeys(("dm", "gas", "stars", "hi", "h2"), "g / cm2"),
    "hi21cm": "K m / s",
    "tb21cm": "K",
    "temperature": "K",
    "metallicity": "",
    "bfield": "G",
    "sfr": "g / (s cm2)",
    **dict.fromkeys(("velocity", "dispersion", "velocity_stars", "dispersion_stars"), "m / s"),
    "xray": "W / m2",
    **dict.fromkeys(("light_g", "light_r", "light_i"), "W / m2"),
}
