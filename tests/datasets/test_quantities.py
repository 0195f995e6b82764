"""What domains sum: 21 cm line, X-rays, starlight, velocities, against independent arithmetic and known cases."""

from dataclasses import replace

import numpy as np
import pytest
from astropy import constants, units
from scipy.integrate import quad

from skyshift.datasets import quantities
from skyshift.datasets.domains import DOMAINS, Domain, MapMaker, Recipes, View, make_maps, needed_fields
from skyshift.datasets.galaxy import Galaxy, Particles
from skyshift.datasets.projection import random_rotations
from skyshift.datasets.smoothing import with_support
from skyshift.datasets.surveys import get_survey
from skyshift.datasets.tng import Box, Snapshot
from skyshift.errors import SkyshiftError

SUBBOX = "tng/TNG50-4-Subbox0/output/snapdir_2332"
FACE_ON = np.eye(3)


def cloud(count: int = 3000, seed: int = 0, redshift: float = 0.0, **fields: np.ndarray) -> Galaxy:
    """Neutral gas that forms no stars within 10 kpc, every cell with a kernel of 1 kpc, and as many stars."""
    rng = np.random.default_rng(seed)
    held = {
        "density": np.full(count, 1e5),
        "temperature": np.full(count, 1e4),
        "electron_abundance": np.zeros(count),
        "neutral_fraction": rng.uniform(0.1, 1, count),
        "sfr": np.zeros(count),
        "velocity": rng.normal(0, 100, (count, 3)),
    } | fields
    position = rng.uniform(-5, 5, (count, 3))
    gas = Particles(position, rng.uniform(1e5, 1e6, count), np.ones(count), held)
    stars = Particles(position, gas.mass, gas.support, {"velocity": held["velocity"]})
    return Galaxy("cloud", 0, 99, redshift, 0.6774, 0.3089, np.zeros(3), {"gas": gas, "stars": stars})


# 21 cm


def column_per_brightness(A10: float) -> float:
    """cm⁻² of 1 K km/s, optically thin: 32 π k ν² / (3 h c³ A10), typed in from SI values."""
    k, h, c, nu = 1.380649e-23, 6.62607015e-34, 299792458.0, 1420.405751768e6
    return 32 * np.pi * k * nu**2 / (3 * h * c**3 * A10) * 1e3 * 1e-4


def test_the_customary_column_is_that_of_the_line_to_half_a_per_cent():
    """1.823e18 cm⁻² belongs to A10 = 2.868e-15 /s; today's 2.884e-15 gives 1.813e18."""
    assert column_per_brightness(2.868e-15) == pytest.approx(1.823e18, rel=2e-4)
    assert column_per_brightness(quantities.EINSTEIN_A10) == pytest.approx(1.823e18, rel=6e-3)


def test_a_known_column():
    """10 Msun/pc² of HI is 1.248e21 cm⁻² (Meyer et al. 2017 and all of radio astronomy), 684.6 K km/s."""
    per_kpc2 = quantities.column_brightness(cloud(1), Recipes())
    assert 1e7 * per_kpc2 == pytest.approx(1.248e21 / 1.823e18, rel=5e-4)
    assert 1e7 * per_kpc2 == pytest.approx(684.6, rel=5e-4)


def test_the_exact_coefficient_follows_from_the_line():
    """C = 3 h c³ A10 n_c / (32 π k ν² H0), n_c = 3 H0²/(8 π G m_H): 191.0 mK, and 1.1 % less is quoted."""
    H0, G, m_H = 100e3 / 3.0856775814913673e22, 6.6743e-11, 1.6735328e-27
    n_c = 3 * H0**2 / (8 * np.pi * G * m_H)
    expected = n_c / (column_per_brightness(2.884e-15) * 10.0) / H0 * 1e3  # m⁻² of 1 K m/s
    assert quantities.brightness_coefficient("exact") == pytest.approx(expected, rel=1e-4)
    assert quantities.brightness_coefficient("exact") == pytest.approx(191.0, abs=0.1)
    assert quantities.brightness_coefficient("quoted") == 189.0


@pytest.mark.parametrize("redshift", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("hubble", [0.6774, 0.7])
def test_a_channel_agrees_with_the_formula_of_the_field(redshift, hubble):
    """189 h (H0/H) (1+z)² Σ_com / (ρ_c Δχ) with Δχ = Δv (1+z)/H, in astropy, for a universe of any H(z)."""
    galaxy = replace(cloud(1, redshift=redshift), hubble=hubble)
    width, z = 5.5 * units.km / units.s, redshift
    H0 = 100 * hubble * units.km / units.s / units.Mpc
    H = H0 * np.sqrt(0.3089 * (1 + z) ** 3 + 0.6911)
    depth = width * (1 + z) / H  # comoving
    surface = 1e7 * units.Msun / units.kpc**2 / (1 + z) ** 2  # comoving
    critical = 3 * H0**2 / (8 * np.pi * constants.G)
    expected = 189 * hubble * (H0 / H) * (1 + z) ** 2 * surface / (critical * depth)
    found = 1e7 * quantities.channel_brightness(galaxy, Recipes())
    assert found == pytest.approx(expected.to_value(""), rel=1e-9)


def test_channels_add_up_to_the_line():
    """T_b Δv (1 + z) is ∫ T_b dv in the galaxy's frame, but for the two customary constants: 189 and 1.823e18."""
    galaxy = cloud(1, redshift=0.3)
    line = quantities.column_brightness(galaxy, Recipes())
    for width in (1.0, 5.5, 100.0):
        for recipe, ratio in (("exact", 1.823e18 / column_per_brightness(2.884e-15)), ("quoted", 0.9948)):
            recipes = Recipes(channel_width=width, brightness=recipe)
            channels = quantities.channel_brightness(galaxy, recipes) * 1e-3 * width * 1.3
            assert channels / line == pytest.approx(ratio, rel=1e-4)


def test_maps_of_the_line_are_maps_of_hi():
    galaxy = cloud()
    maps = make_maps(galaxy, ["hi", "hi21cm", "tb21cm"], View(FACE_ON, 14.0, 16))
    lit = maps["hi"] > 0
    assert lit.sum() > 100
    for name, factor in (("hi21cm", quantities.column_brightness), ("tb21cm", quantities.channel_brightness)):
        np.testing.assert_allclose(maps[name][lit], maps["hi"][lit] * factor(galaxy, Recipes()), rtol=1e-6)


# X-rays


def hot_cell(kelvin: float, **fields: float) -> Galaxy:
    one = np.ones(1)
    galaxy = cloud(
        1,
        temperature=kelvin * one,
        density=fields.get("density", 1e4) * one,
        electron_abundance=fields.get("electron_abundance", 1.16) * one,
        sfr=fields.get("sfr", 0.0) * one,
    )
    return galaxy.with_particles("gas", replace(galaxy.particles["gas"], mass=1e7 * one))


def shine(galaxy: Galaxy, **recipes: float) -> float:
    return float(quantities.xray_luminosity(galaxy, Recipes(**recipes), View(FACE_ON, 1.0, 1))[0])


@pytest.mark.parametrize("kelvin", [3e6, 1e7, 1e8])
def test_xrays_agree_with_the_spectrum_of_rybicki_and_lightman(kelvin):
    """Their 5.14b, 6.84e-38 Z² n_e n_i T^-½ exp(-hν/kT) ḡ, integrated over the band; three digits, 2e-3."""
    h, k, keV = 6.62607015e-27, 1.380649e-16, 1.602176634e-9
    rho = 1e4 * 1.98841e33 / 3.0856776e21**3
    n_H = 0.76 * rho / 1.67262e-24
    n_e, helium = 1.16 * n_H, 0.24 / (4 * 0.76) * n_H
    spectrum = lambda nu: 6.84e-38 * n_e * (n_H + 4 * helium) * kelvin**-0.5 * np.exp(-h * nu / (k * kelvin)) * 1.2  # noqa: E731
    per_volume, _ = quad(spectrum, 0.5 * keV / h, 2.0 * keV / h)
    volume = 1e7 / 1e4 * 3.0856776e21**3
    assert shine(hot_cell(kelvin)) == pytest.approx(per_volume * volume, rel=2e-3)


def test_xrays_of_all_energies_are_the_bolometric_formula():
    """5.15b: 1.4e-27 T^½ n_e Σ Z² n_i ḡ; and bands add up."""
    galaxy = hot_cell(2e7)
    everything = shine(galaxy, xray_low=0.0, xray_high=1e4)
    n_H = (0.76 * 1e4 * units.Msun / units.kpc**3 / constants.m_p).to_value("cm-3")
    nuclei = (1e7 * units.Msun / constants.m_p).to_value("")
    assert everything == pytest.approx(1.426e-27 * np.sqrt(2e7) * 1.16 * n_H * nuclei * 1.2, rel=1e-3)
    parts = shine(galaxy, xray_low=0.5, xray_high=2.0) + shine(galaxy, xray_low=2.0, xray_high=10.0)
    assert parts == pytest.approx(shine(galaxy, xray_low=0.5, xray_high=10.0), rel=1e-12)


def test_what_does_not_shine():
    assert shine(hot_cell(1e7, sfr=0.1)) == 0, "star-forming cells have no temperature of their own"
    assert shine(hot_cell(1e4)) < 1e-200, "cool gas is dark in X-rays"
    assert shine(hot_cell(0.0)) == 0, "and absolute zero is no division by zero"
    for low, high in ((2.0, 0.5), (-1.0, 2.0), (1.0, 1.0)):
        with pytest.raises(SkyshiftError, match=r"recipes\.xray_low = .* no band"):
            Recipes(xray_low=low, xray_high=high)
    with pytest.raises(SkyshiftError, match=r"recipes\.channel_width cannot be 0"):
        Recipes(channel_width=0)


def test_the_cores_of_clusters_fit_into_float32():
    """1e44 erg/s in one kpc² would be beyond float32 per kpc² (3e38); per pc² it is 1e38, and less in any real core."""
    galaxy = hot_cell(1e8, density=1e8)
    brighter = replace(galaxy.particles["gas"], mass=np.full(1, 2e10))
    image = make_maps(galaxy.with_particles("gas", brighter), ["xray"], View(FACE_ON, 14.0, 14))["xray"]
    assert image.sum(dtype=np.float64) * 1e6 > 1e44  # pc² of a pixel of 1 kpc²
    assert np.isfinite(image).all()


# starlight


def test_magnitudes_and_luminosities():
    """The Sun has 1 Lsun in every band, and 5 mag are a factor of 100."""
    photometry = np.zeros((3, 8))
    for band, sun in ((b, quantities.SOLAR_MAGNITUDE[b]) for b in quantities.LIGHT_BANDS):
        photometry[:, quantities.BANDS.index(band)] = sun - np.array([0.0, 5.0, -2.5])
    galaxy = cloud(3)
    stars = replace(galaxy.particles["stars"], fields={"photometry": photometry})
    galaxy = galaxy.with_particles("stars", stars)
    for band in "gri":
        lum = quantities.light(band)(galaxy, Recipes(), View(FACE_ON, 1.0, 1))
        np.testing.assert_allclose(lum, [1.0, 100.0, 0.1], rtol=1e-12)
    assert quantities.BANDS.index("g") == 4


# velocities


def test_rigid_rotation_seen_edge_on_is_a_ramp():
    """v = ω × r with ω along y: v_z = -ω x, so that what is right (x > 0) recedes with ω x. Kernels smooth a ramp into
    itself; 3000 random cells of 1 kpc leave the weights uneven within a kernel: a tenth of a kpc."""
    galaxy = cloud(20000)
    gas = galaxy.particles["gas"]
    omega = np.array([0.0, 10.0, 0.0])  # km/s per kpc
    drift = np.array([0.0, 0.0, 50.0])
    spinning = replace(gas, fields={**gas.fields, "velocity": np.cross(omega, gas.position) + drift})
    galaxy = replace(galaxy.with_particles("gas", spinning), velocity=drift)
    maps = make_maps(galaxy, ["velocity", "dispersion"], View(FACE_ON, 8.0, 16))
    x = (np.arange(16) + 0.5) / 2 - 4
    np.testing.assert_allclose(maps["velocity"], np.tile(10 * x, (16, 1)), atol=2.0)
    # within the kernel the ramp spreads: σ = ω times the kernel's own rms width, below its radius
    assert maps["dispersion"].max() < 10.0 * 1.0
    assert maps["dispersion"].min() > 1.0


def test_half_a_turn_about_x_flips_the_velocity_and_the_map():
    galaxy = cloud()
    flip = np.diag([1.0, -1.0, -1.0])
    view = View(random_rotations(1, 3)[0], 14.0, 16)
    names = ["hi", "velocity", "dispersion"]
    front = make_maps(galaxy, names, view)
    back = make_maps(galaxy, names, replace(view, rotation=flip @ view.rotation))
    np.testing.assert_allclose(back["velocity"], -front["velocity"][::-1], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(back["dispersion"], front["dispersion"][::-1], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(back["hi"], front["hi"][::-1], rtol=1e-5, atol=1e-3)
    assert front["velocity"].min() < -50 < 50 < front["velocity"].max()


def test_a_bulk_motion_moves_the_velocity_and_not_the_dispersion():
    """1000 km/s on top of 100: the variance of float64 sums keeps 1e-16 × 1e6 of 1e4, far below float32."""
    galaxy = cloud()
    view = View(FACE_ON, 14.0, 16)
    still = make_maps(galaxy, ["velocity", "dispersion"], view)
    moving = make_maps(replace(galaxy, velocity=np.array([0, 0, 1000.0])), ["velocity", "dispersion"], view)
    lit = still["dispersion"] > 0
    np.testing.assert_allclose(moving["velocity"][lit], still["velocity"][lit] + 1000, rtol=1e-6)
    np.testing.assert_allclose(moving["dispersion"], still["dispersion"], rtol=1e-6, atol=1e-4)


def test_the_dispersion_of_a_gaussian():
    """One pixel over 20,000 cells of N(30, 40) km/s, weighted with HI: to 4 standard errors of either."""
    rng = np.random.default_rng(5)
    n = 20000
    velocity = np.stack([rng.normal(0, 500, n), rng.normal(0, 500, n), -rng.normal(30, 40, n)], axis=1)
    galaxy = cloud(n, velocity=velocity)
    maps = make_maps(galaxy, ["velocity", "dispersion", "velocity_stars", "dispersion_stars"], View(FACE_ON, 14.0, 1))
    weight = quantities.hi_mass(galaxy, Recipes(), View(FACE_ON, 14.0, 1))
    effective = weight.sum() ** 2 / (weight**2).sum()
    for name in ("velocity", "velocity_stars"):
        assert maps[name][0, 0] == pytest.approx(30, abs=4 * 40 / np.sqrt(effective))
    for name in ("dispersion", "dispersion_stars"):
        assert maps[name][0, 0] == pytest.approx(40, abs=4 * 40 / np.sqrt(2 * effective))


def test_the_dispersion_is_that_of_the_weighted_velocities_to_rounding():
    galaxy = cloud()
    view = View(FACE_ON, 14.0, 1)
    weight = quantities.hi_mass(galaxy, Recipes(), view)
    v = -galaxy.particles["gas"]["velocity"][:, 2]
    mean = np.average(v, weights=weight)
    maps = make_maps(galaxy, ["velocity", "dispersion"], view)
    assert maps["velocity"][0, 0] == pytest.approx(mean, rel=1e-6)
    assert maps["dispersion"][0, 0] == pytest.approx(np.sqrt(np.average((v - mean) ** 2, weights=weight)), rel=1e-6)


def test_gas_that_moves_as_one_has_no_dispersion():
    """Exactly: rounding of (3000 km/s)², 1e-9, is no dispersion of 4e-5."""
    n = 3000
    galaxy = cloud(n, velocity=np.tile([0.0, 0.0, 3000.0 / 7], (n, 1)))
    maps = make_maps(galaxy, ["velocity", "dispersion"], View(FACE_ON, 14.0, 16))
    assert not maps["dispersion"].any()
    np.testing.assert_allclose(maps["velocity"][maps["velocity"] != 0], -3000.0 / 7, rtol=1e-6)


def test_gas_without_hydrogen_moves_nothing():
    """The velocity is HI's: ionised gas does not count, and where there is no HI there is no velocity."""
    galaxy = cloud()
    gas = galaxy.particles["gas"]
    right = gas.position[:, 0] > 0
    fraction = np.where(right, gas["neutral_fraction"], 0.0)
    galaxy = galaxy.with_particles("gas", replace(gas, fields={**gas.fields, "neutral_fraction": fraction}))
    maps = make_maps(galaxy, ["velocity", "dispersion", "gas"], View(FACE_ON, 14.0, 14))
    assert maps["gas"][2:-2, 2:5].all()
    assert not maps["velocity"][:, 2:5].any()
    assert not maps["dispersion"][:, 2:5].any()


# sums


@pytest.fixture(scope="module")
def toy(tiny_simulation) -> Galaxy:
    galaxy = Snapshot(tiny_simulation / "output", 99).galaxy(2, need=needed_fields(DOMAINS))
    for kind in ("gas", "dm", "stars"):
        galaxy = with_support(galaxy, kind)
    return galaxy


@pytest.mark.parametrize("domain", [name for name, d in DOMAINS.items() if d.moment == 0])
def test_every_column_conserves_its_amount(toy, domain):
    """Σ map Δ² = Σ amount: float32 pixels and the widest kernels, 1e-6."""
    kind = DOMAINS[domain].kind
    particles = toy.particles[kind]
    side = 2.02 * float((np.linalg.norm(particles.position, axis=1) + particles.support).max())
    view = View(random_rotations(1, 4)[0], side, 32)
    image = make_maps(toy, [domain], view)[domain]
    amount = DOMAINS[domain].quantity(toy, Recipes(), view).sum()
    factor = DOMAINS[domain].factor
    expected = amount * (factor(toy, Recipes()) if factor else 1.0)
    assert expected > 0
    assert image.sum(dtype=np.float64) * (side / 32) ** 2 == pytest.approx(expected, rel=1e-6)


def test_the_star_formation_of_the_map_is_that_of_the_catalogue(tiny_simulation, toy):
    """Msun/yr, by way of cells, kernels and pixels; the catalogue is float32."""
    snapshot = Snapshot(tiny_simulation / "output", 99)
    image = make_maps(toy, ["sfr"], View(FACE_ON, 4000.0, 8))["sfr"]
    assert image.sum(dtype=np.float64) * 500.0**2 == pytest.approx(snapshot.subhalos.sfr[2], rel=1e-5)


@pytest.mark.parametrize("recipe", ["none", "br06", "leroy08", "kmt"])
def test_molecules_and_atoms_are_the_neutral(toy, tiny_simulation, recipe):
    recipes = Recipes(molecular=recipe)
    galaxy = Snapshot(tiny_simulation / "output", 99).galaxy(2, need=needed_fields(["hi"], recipes))
    view = View(FACE_ON, 40.0, 16)
    maps = make_maps(galaxy, ["hi", "h2"], view, recipes)
    neutral = make_maps(galaxy, ["hi"], view, Recipes(molecular="none"))["hi"]
    np.testing.assert_allclose(maps["hi"] + maps["h2"], neutral, rtol=1e-6)
    assert maps["h2"].any() == (recipe != "none")


def test_chunks_give_the_map_of_the_whole(toy):
    """In any cut, with kinds in any order: the same float64 sums in another order, one float32 step."""
    view = View(random_rotations(1, 9)[0], 40.0, 24)
    whole = make_maps(toy, list(DOMAINS), view)
    maker = MapMaker(DOMAINS, view)
    for kind in ("stars", "gas", "dm"):
        particles = toy.particles[kind]
        for part in np.array_split(np.arange(len(particles)), 7):
            maker.add(replace(toy, particles={kind: particles.select(part)}))
    for name, image in maker.maps().items():
        atol = 1e-4 if DOMAINS[name].unit == "km / s" else 1e-10 * float(np.abs(whole[name]).max())
        np.testing.assert_allclose(image, whole[name], rtol=3e-7, atol=atol, err_msg=name)


def test_a_kind_that_never_came_is_named(toy):
    maker = MapMaker(["gas", "light_g"], View(FACE_ON, 40.0, 8))
    maker.add(replace(toy, particles={"gas": toy.particles["gas"]}))
    with pytest.raises(SkyshiftError, match="no stars particles were given: light_g"):
        maker.maps()


# real data


@pytest.fixture(scope="module")
def subbox(shared) -> Galaxy:
    box = Box(shared / SUBBOX, need=needed_fields(DOMAINS), partial=True)
    return Galaxy("box", 0, 2332, 0.0, 0.6774, 0.3089, np.zeros(3), box.particles)


def amount(galaxy: Galaxy, domain: str) -> np.ndarray:
    return np.asarray(DOMAINS[domain].quantity(galaxy, Recipes(), View(FACE_ON, 1.0, 1)), np.float64)


def test_real_starlight(subbox):
    """Mass-to-light ratios and colours of a normal mix of old and young stars (Chabrier, no dust): M/L_r of 1 to 2,
    g - r of 0.4 to 0.8 (Bell et al. 2003 and any galaxy survey), brighter bands to the red."""
    mass = subbox.particles["stars"].mass.sum()
    light = {band: amount(subbox, f"light_{band}").sum() for band in "gri"}
    assert 1.0 < mass / light["r"] < 2.0
    absolute = {b: quantities.SOLAR_MAGNITUDE[b] - 2.5 * np.log10(light[b]) for b in "gri"}
    assert 0.4 < absolute["g"] - absolute["r"] < 0.8
    assert 0.1 < absolute["r"] - absolute["i"] < 0.5
    # Summed magnitudes, as the group catalogue's SubhaloStellarPhotometrics are, without luminosities in between
    stored = subbox.particles["stars"]["photometry"]
    for band, column in (("g", 4), ("r", 5), ("i", 6)):
        assert absolute[band] == pytest.approx(-2.5 * np.log10((10 ** (-0.4 * stored[:, column])).sum()), abs=1e-9)


def test_real_star_formation_obeys_the_models_law(subbox):
    """SFR = m_cold / t⋆ with t⋆ ≤ 2.27 Gyr: the 34 cells form within a gas mass over that time, and three times it."""
    gas = subbox.particles["gas"]
    forming = gas["sfr"] > 0
    least = gas.mass[forming].sum() / 2.27e9
    assert 0.5 * least < amount(subbox, "sfr").sum() < 10 * least


def test_real_xrays_by_another_way(subbox):
    """Σ over cells with T, n_e and ε from astropy quantities, cell by cell; tolerance of the constants' digits."""
    gas = subbox.particles["gas"]
    quiet = (gas["sfr"] == 0) & (gas["temperature"] > 2e5)
    T = gas["temperature"][quiet] * units.K
    rho = gas["density"][quiet] * units.Msun / units.kpc**3
    n_H = 0.76 * rho / constants.m_p
    n_e = gas["electron_abundance"][quiet] * n_H
    rate = 1.426e-27 * units.erg * units.cm**3 / units.s / units.K**0.5 * 1.2
    E = [0.5 * units.keV, 2.0 * units.keV]
    band = np.exp(-(E[0] / (constants.k_B * T)).to_value("")) - np.exp(-(E[1] / (constants.k_B * T)).to_value(""))
    volume = gas.mass[quiet] * units.Msun / rho
    expected = (rate * np.sqrt(T) * n_e * (n_H * (1 + 0.24 / 0.76)) * band * volume).sum().to_value("erg/s")
    assert amount(subbox, "xray").sum() == pytest.approx(expected, rel=1e-3)


def test_real_molecules_and_line(subbox):
    """Few star-forming cells: H2 is a per cent of HI; the 21 cm line of 3.26e10 Msun is 2.2e6 K km/s kpc²."""
    hi, h2 = amount(subbox, "hi").sum(), amount(subbox, "h2").sum()
    assert 0.005 < h2 / hi < 0.1
    assert hi * quantities.column_brightness(subbox, Recipes()) == pytest.approx(hi / 1e7 * 684.6, rel=5e-4)
    kmt = quantities.h2_mass(subbox, Recipes(molecular="kmt"), View(FACE_ON, 1.0, 1)).sum()
    assert 0.1 < kmt / h2 < 10


def test_what_no_view_changes_is_computed_once_a_galaxy(monkeypatch):
    """HI once for four views, a user's quantity in each; and the maps are those of makers that share nothing."""
    calls = {"hi": 0, "own": 0}

    def hi(galaxy, recipes, view):
        calls["hi"] += 1
        return quantities.hi_mass(galaxy, recipes, view)

    def own(galaxy, recipes, view):
        calls["own"] += 1
        return np.abs(galaxy.particles["gas"].position @ view.rotation[2])

    quantities.same_in_every_view(hi)
    monkeypatch.setitem(DOMAINS, "hi_once", Domain("hi_once", "H", "Msun / kpc2", "gas", hi))
    monkeypatch.setitem(DOMAINS, "own", Domain("own", "O", "kpc", "gas", own, moment=1, weight=hi))
    names = ["gas", "velocity", "hi_once", "own"]
    galaxy = cloud(300)
    views = [View(rotation, 20.0, 8) for rotation in random_rotations(4, 0)]
    shared, known = [], {}
    for view in views:
        maker = MapMaker(names, view)
        maker.add(galaxy, known)
        shared.append(maker.maps())
    assert calls == {"hi": 1, "own": 4}
    for view, maps in zip(views, shared, strict=True):
        alone = make_maps(galaxy, names, view)
        for name in names:
            np.testing.assert_array_equal(maps[name], alone[name])
    assert not np.array_equal(shared[0]["velocity"], shared[1]["velocity"])


def test_the_line_has_one_frequency():
    """Hellwig et al. (1970); the surveys that name the line say the same."""
    assert quantities.LINE_FREQUENCY == 1420405751.768
    for name in ("meerkat", "wsrt", "ska_mid_aa4", "ska_mid_aa_star"):
        assert get_survey(name).frequency_hz == pytest.approx(quantities.LINE_FREQUENCY, rel=1e-15)
