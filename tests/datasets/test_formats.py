"""Maps in FITS, HDF5 and NPY: nothing is lost on the way, real telescope files are read, a write is whole or not."""

import json
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.wcs import WCS

from skyshift.datasets import formats
from skyshift.datasets.formats import file_format, read_maps, write_maps
from skyshift.datasets.maps import MapError, Maps

SUFFIXES = [".fits", ".fit", ".fits.gz", ".hdf5", ".h5", ".npy"]


def maps(count: int = 3, domain: str = "gas", unit: str = "Msun / kpc2", seed: int = 0, **changes: Any) -> Maps:
    """float32 of every size, not square, with zeros and negatives."""
    rng = np.random.default_rng(seed)
    values = (rng.choice([-1, 1], (count, 6, 5)) * 10 ** rng.uniform(-30, 30, (count, 6, 5))).astype(np.float32)
    values[:, 0, 0] = 0
    settings = {
        "side": rng.uniform(10, 100, count),
        "names": tuple(f"subhalo {i}, turned {i % 2}" for i in range(count)),
        "provenance": f"snapshot 99 of TNG100-1, {domain}",
    } | changes
    return Maps(values, domain, unit, **settings)


def assert_same(read: Maps, written: Maps) -> None:
    np.testing.assert_array_equal(read.values, written.values)
    assert read.values.dtype == np.float32
    assert (read.domain, read.unit, read.provenance) == (written.domain, written.unit, written.provenance)
    assert read.names == written.names
    if written.side is None:
        assert read.side is None
    else:
        np.testing.assert_array_equal(read.side, written.side)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("count", [1, 3])
def test_round_trip(tmp_path, suffix, count):
    """Values, sides (float64) and names, bit by bit."""
    written = maps(count)
    path = write_maps(tmp_path / f"maps{suffix}", {"gas": written})
    read = read_maps(path)
    assert list(read) == ["gas"]
    assert_same(read["gas"], written)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("count", [1, 3])
def test_round_trip_without_names_and_sides(tmp_path, suffix, count):
    written = maps(count, side=None, names=())
    assert_same(read_maps(write_maps(tmp_path / f"maps{suffix}", {"gas": written}))["gas"], written)


@pytest.mark.parametrize("suffix", [".fits", ".hdf5"])
@pytest.mark.parametrize("counts", [(3, 3), (1, 3), (3, 1)])
def test_several_domains_in_one_file_keep_their_own_sides_and_names(tmp_path, suffix, counts):
    written = {
        "gas": maps(counts[0]),
        "temperature": maps(counts[1], "temperature", "K", seed=1, names=tuple("xyz"[: counts[1]])),
    }
    read = read_maps(write_maps(tmp_path / f"maps{suffix}", written))
    assert list(read) == list(written)
    for domain, stack in written.items():
        assert_same(read[domain], stack)


def test_several_domains_do_not_fit_into_an_npy(tmp_path):
    both = {"gas": maps(), "temperature": maps(3, "temperature", "K")}
    with pytest.raises(MapError, match="an NPY file holds one domain, not 2; write FITS or HDF5"):
        write_maps(tmp_path / "maps.npy", both)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".fits", ".hdf5", ".npy"])
def test_names_of_any_alphabet_and_length(tmp_path, suffix):
    """FITS holds ASCII alone: what it cannot hold is spelt with escapes there and comes back as it was."""
    names = ("NGC 6946", "Σ-map of a very long name" * 5, "é")
    written = maps(3, names=names, provenance="Bühler's cube, µJy")
    assert_same(read_maps(write_maps(tmp_path / f"m{suffix}", {"gas": written}))["gas"], written)


@pytest.mark.parametrize("suffix", [".fits", ".hdf5", ".npy"])
def test_two_axes_or_three(tmp_path, suffix):
    """A bare image becomes a stack of one; another number of axes is refused."""
    rng = np.random.default_rng(0)
    for shape in ((6, 5), (2, 6, 5), (5,), (1, 2, 2, 6, 5)):
        values = rng.random(shape).astype(np.float32)
        path = tmp_path / f"m{len(shape)}{suffix}"
        if suffix == ".fits":
            fits.PrimaryHDU(values).writeto(path)
        elif suffix == ".npy":
            np.save(path, values)
        else:
            with h5py.File(path, "w") as file:
                file["gas"] = values
        if len(shape) in (2, 3):
            read = read_maps(path, domain="gas", unit="K")["gas"]
            np.testing.assert_array_equal(read.values, values.reshape(-1, 6, 5))
            assert read.side is None
            assert read.names == ()
            assert read.provenance == path.name
        else:
            with pytest.raises(MapError, match=r"maps have two axes, stacks of maps three|holds no maps"):
                read_maps(path, domain="gas", unit="K")


def test_a_fits_file_says_what_it_shows(tmp_path):
    """For DS9 and the like: BUNIT, and a linear WCS in kpc whose origin is the map's centre."""
    stack = maps(1, side=np.array([60.0]), names=())
    header = fits.getheader(write_maps(tmp_path / "m.fits", {"gas": stack}))
    assert (header["BUNIT"], header["DOMAIN"], header["SIDEKPC"]) == ("Msun / kpc2", "gas", 60.0)
    wcs = WCS(header)
    # FITS counts pixels from 1: the centre of 5 × 6 pixels is (3, 3.5); half the side lies at the outer edge
    np.testing.assert_allclose(wcs.wcs_pix2world([[3, 3.5], [5.5, 3.5]], 1), [[0, 0], [30, 0]], atol=1e-12)
    assert [str(unit) for unit in wcs.wcs.cunit] == ["kpc", "kpc"]


# real telescope files


def close_to(written: fits.Header, original: fits.Header) -> None:
    """The same celestial coordinates of every corner, to a millionth of an arcsecond."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # obsolete cards of the originals, which astropy mends
        old, new = WCS(original).celestial, WCS(written).celestial
    corners = [[1, 1], [1, original["NAXIS2"]], [original["NAXIS1"], 1], [33.3, 7.1]]
    np.testing.assert_allclose(new.wcs_pix2world(corners, 1), old.wcs_pix2world(corners, 1), rtol=0, atol=1e-6 / 3600)
    assert old.has_celestial


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("hi/ngc6946_wsrt.fits", None),
        ("optical/decals_cutout_59.1067_-30.4848.fits", "mJy"),
    ],
)
def test_the_wcs_of_a_real_file_is_kept(shared: Path, tmp_path, name, unit):
    with fits.open(shared / name) as hdus:
        first = next(hdu for hdu in hdus if hdu.is_image and hdu.data is not None)
        original, data = first.header.copy(), np.squeeze(first.data).astype(np.float32)
        first.writeto(tmp_path / "first.fits")
    read = read_maps(tmp_path / "first.fits", domain="sky", unit=unit)["sky"]
    np.testing.assert_array_equal(read.values.reshape(data.shape), data)
    written = fits.getheader(write_maps(tmp_path / "again.fits", {"sky": read}))
    close_to(written, original)
    for card in ("OBJECT", "TELESCOP", "INSTRUME", "DATE-OBS", "BMAJ", "EQUINOX"):
        assert written.get(card) == original.get(card)
    assert written["BUNIT"] == read.unit
    assert_same(read_maps(tmp_path / "again.fits")["sky"], read)


def test_several_images_of_one_domain_are_refused(shared: Path):
    """Three bands and three inverse variances, or a hundred galaxies: none is taken in silence for all."""
    for name, count in (("decals_cutout_59.1067_-30.4848.fits", 6), ("hst/btk_real_galaxy_images_extension.fits", 100)):
        with pytest.raises(MapError, match=rf"holds {count} images of 'sky' \(0?.*choose one with --hdu"):
            read_maps(shared / "optical" / name, domain="sky", unit="mJy")
        chosen = read_maps(shared / "optical" / name, domain="sky", unit="mJy", hdu=3)["sky"]
        np.testing.assert_array_equal(chosen.values[0], fits.getdata(shared / "optical" / name, 3).astype(np.float32))


def test_real_images_without_a_unit(shared: Path):
    path = shared / "optical/sdss_kids/G265911_KiDS_fitim.fits"
    with pytest.raises(MapError, match="does not say the unit of its maps; name it with --unit"):
        read_maps(path, domain="sky")
    read = read_maps(path, domain="sky", unit="adu")["sky"]
    np.testing.assert_array_equal(read.values[0], fits.getdata(path).astype(np.float32))
    assert read.values.shape == (1, 187, 169)


def test_units_that_astropy_does_not_know(tmp_path):
    """Old spellings in capitals are known; others are an error unless the caller says what is meant."""
    for text, expected in (("JY/BEAM", "Jy / beam"), ("KELVIN", "K"), ("nanomaggie", None)):
        path = tmp_path / f"{text[:2]}.fits"
        fits.PrimaryHDU(np.ones((3, 3), np.float32), fits.Header({"BUNIT": text})).writeto(path)
        if expected:
            assert read_maps(path, domain="sky")["sky"].unit == expected
        else:
            with pytest.raises(MapError, match="'nanomaggie' is no unit that astropy knows; name it with --unit"):
                read_maps(path, domain="sky")
            assert read_maps(path, domain="sky", unit="mJy")["sky"].unit == "mJy"


def test_a_real_radio_cube(shared: Path):
    """WSRT HI of NGC 6946, Jy/beam: a stack of channels, and the unit is its own."""
    cube = read_maps(shared / "hi/ngc6946_wsrt.fits", domain="hi")["hi"]
    assert cube.values.ndim == 3
    assert len(cube) > 1
    assert units.Unit(cube.unit) == units.Unit("Jy / beam")
    # the header's CRVAL3 -243 km/s at CRPIX3 -20, CDELT3 4.2 km/s in single precision
    assert cube.names[0] == "VELO -154.8 km/s"
    assert len(cube.names) == len(cube) == 101
    assert cube.header["CTYPE3"].strip() == "VELO-HEL"
    # 0.68 mJy/beam of noise a channel. A corner without galaxy, robust against what is left of it: its 400 pixels are
    # some 20 beams a channel, 2000 in all, 2 % of noise in σ; the gain of the array and baselines may add 10 %.
    corner = cube.values[:, :20, :20]
    sigma = 1.4826 * np.median(np.abs(corner - np.median(corner)))
    assert sigma == pytest.approx(0.68e-3, rel=0.15)


# what is missing or wrong


def test_without_unit_or_domain_the_option_is_named(tmp_path):
    values = np.ones((4, 4), np.float32)
    fits.PrimaryHDU(values).writeto(tmp_path / "m.fits")
    np.save(tmp_path / "m.npy", values)
    for path in (tmp_path / "m.fits", tmp_path / "m.npy"):
        with pytest.raises(MapError, match=r"does not say the domain of its maps; name it with --domain"):
            read_maps(path, unit="K")
        with pytest.raises(MapError, match=r"does not say the unit of its maps; name it with --unit"):
            read_maps(path, domain="gas")
        assert read_maps(path, domain="gas", unit="K")["gas"].unit == "K"
    with h5py.File(tmp_path / "m.hdf5", "w") as file:
        file["gas"] = values
    with pytest.raises(MapError, match=r"does not say the unit of its maps; name it with --unit"):
        read_maps(tmp_path / "m.hdf5")


@pytest.mark.parametrize("suffix", [".fits", ".hdf5", ".npy"])
def test_a_file_that_says_otherwise_is_not_overruled(tmp_path, suffix):
    path = write_maps(tmp_path / f"m{suffix}", {"gas": maps()})
    with pytest.raises(MapError, match=r"holds maps of domain 'gas', not 'hi'"):
        read_maps(path, domain="hi")
    with pytest.raises(MapError, match=r"holds maps of unit 'Msun / kpc2', not 'K'"):
        read_maps(path, unit="K")
    assert_same(read_maps(path, domain="gas", unit="Msun / kpc2")["gas"], maps())
    assert_same(read_maps(path, unit="Msun kpc-2")["gas"], maps())  # the same unit in other words


def test_pickles_are_not_opened(tmp_path):
    """An object array carries a pickle, which could run anything."""
    path = tmp_path / "m.npy"
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(MapError, match=r"m\.npy is no plain NPY array: Object arrays cannot be loaded"):
        read_maps(path, domain="gas", unit="K")


def test_unknown_suffixes(tmp_path):
    for name in ("m.png", "m", "m.gz", "m.npz"):
        with pytest.raises(
            MapError, match=r"maps are read from and written to \.fits, \.fit, \.hdf5, \.h5, \.npy, not"
        ):
            write_maps(tmp_path / name, {"gas": maps()})
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(MapError, match="maps are read from and written to"):
            read_maps(tmp_path / name)
    assert file_format(Path("A.FITS")) == "fits"
    assert all((tmp_path / name).read_bytes() == b"x" for name in ("m.png", "m"))


@pytest.mark.parametrize("suffix", [".fits", ".hdf5", ".npy"])
def test_absent_damaged_and_foreign_files(tmp_path, suffix):
    with pytest.raises(MapError, match="does not exist"):
        read_maps(tmp_path / f"absent{suffix}")
    whole = write_maps(tmp_path / f"whole{suffix}", {"gas": maps(200)}).read_bytes()
    for name, content in (("half", whole[: len(whole) // 2]), ("text", b"<html>404</html>" * 300), ("void", b"")):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # astropy says that a file is shorter than its header claims
            with pytest.raises(MapError, match=rf"{name}\{suffix} (cannot be read|is no plain NPY array)"):
                read_maps(path, domain="gas", unit="K")


def test_files_without_maps(tmp_path):
    fits.HDUList([fits.PrimaryHDU()]).writeto(tmp_path / "m.fits")
    with h5py.File(tmp_path / "m.hdf5", "w") as file:
        file["list"] = np.arange(3)
    for path in (tmp_path / "m.fits", tmp_path / "m.hdf5"):
        with pytest.raises(MapError, match="holds no maps"):
            read_maps(path, domain="gas", unit="K")


# units


def test_conversion_agrees_with_astropy():
    stack = maps(2, unit="Msun / kpc2")
    moved = stack.to("g / cm2")
    factor = (1 * units.Msun / units.kpc**2).to_value("g / cm2")
    # one product in float64, one rounding to float32: 2^-24; values below 1e-38 / factor leave float32's normal range
    np.testing.assert_allclose(moved.values, stack.values * factor, rtol=6e-8, atol=1.5e-45)
    assert moved.unit == "g / cm2"
    large = maps(2, unit="Msun / kpc2", seed=3)
    np.testing.assert_array_equal(large.to("Msun kpc-2").values, large.values)
    assert stack.to("Msun / pc2").values.max() == pytest.approx(stack.values.max() * 1e-6, rel=1e-6)


def test_conversion_that_cannot_be():
    with pytest.raises(MapError, match=r"maps of 'gas' are in Msun / kpc2, which is not convertible to K"):
        maps().to("K")
    with pytest.raises(MapError, match=r"gas: 'Mson' is no unit"):
        maps().to("Mson")
    with pytest.raises(MapError, match=r"gas: 'furlongs' is no unit"):
        maps(unit="furlongs")


def test_maps_check_themselves():
    values = np.zeros((3, 4, 4), np.float32)
    with pytest.raises(MapError, match=r"gas: maps have shape \(n, height, width\), not \(4, 4\)"):
        Maps(values[0], "gas", "K")
    with pytest.raises(MapError, match="gas: maps are float32, not float64"):
        Maps(values.astype(np.float64), "gas", "K")  # type: ignore[arg-type]
    with pytest.raises(MapError, match="gas: 2 sides for 3 maps"):
        Maps(values, "gas", "K", np.ones(2))
    with pytest.raises(MapError, match="gas: 1 names for 3 maps"):
        Maps(values, "gas", "K", names=("a",))
    values[1, 2, 3] = np.nan
    with pytest.raises(MapError, match=r"1 of 3 maps of 'gas' hold values that are not finite, first map b; blank"):
        Maps(values, "gas", "K", names=("a", "b", "c")).require_finite()
    with pytest.raises(MapError, match="first map number 1"):
        Maps(values, "gas", "K").require_finite()


# whole or not


@pytest.mark.parametrize("suffix", [".fits", ".hdf5", ".npy"])
def test_a_write_that_fails_leaves_the_old_files(tmp_path, monkeypatch, suffix):
    """The disk fills up in the middle: the old maps, and the JSON that says what they are, stay as they were."""
    path = write_maps(tmp_path / f"m{suffix}", {"gas": maps()})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*arguments: Any, **_: Any) -> None:
        target = arguments[1] if suffix == ".fits" else arguments[0]
        if hasattr(target, "write"):
            target.write(b"half")
        elif isinstance(target, Path):
            target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    if suffix == ".fits":
        monkeypatch.setattr(fits.HDUList, "writeto", full)
    elif suffix == ".npy":
        monkeypatch.setattr(formats.np, "save", full)
    else:
        monkeypatch.setattr(h5py.Group, "create_dataset", full)
    with pytest.raises(OSError, match="No space left"):
        write_maps(path, {"temperature": maps(5, "temperature", "K", seed=7)})
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert_same(read_maps(path)["gas"], maps())


@pytest.mark.parametrize("suffix", [".fits", ".hdf5", ".npy"])
def test_writing_again_replaces(tmp_path, suffix):
    path = write_maps(tmp_path / f"m{suffix}", {"gas": maps()})
    later = maps(2, "hi", seed=5)
    assert_same(read_maps(write_maps(path, {"hi": later}))["hi"], later)
    assert list(read_maps(path)) == ["hi"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_complex_values_and_a_json_that_is_a_list(tmp_path):
    """The imaginary part is not thrown away, and a sidecar that is none is named."""
    np.save(tmp_path / "c.npy", np.ones((2, 4, 4), np.complex64))
    with pytest.raises(MapError, match=r"c\.npy: the values are complex; maps are real"):
        read_maps(tmp_path / "c.npy", domain="gas", unit="Msun / kpc2")
    np.save(tmp_path / "m.npy", np.ones((2, 4, 4), np.float32))
    for text in ('["gas", "Msun / kpc2"]', "3"):
        (tmp_path / "m.json").write_text(text)
        with pytest.raises(MapError, match=r"m\.json, which describes m\.npy, must be a JSON object with domain"):
            read_maps(tmp_path / "m.npy", domain="gas", unit="Msun / kpc2")


def test_the_json_beside_an_npy(tmp_path):
    stack = maps(1)
    write_maps(tmp_path / "m.npy", {"gas": stack})
    facts = json.loads((tmp_path / "m.json").read_text())
    assert facts["domain"] == "gas"
    assert facts["unit"] == "Msun / kpc2"
    assert stack.side is not None
    assert facts["side_kpc"] == stack.side.tolist()
    (tmp_path / "m.json").write_text("{half")
    with pytest.raises(MapError, match=r"m\.json"):
        read_maps(tmp_path / "m.npy")


def test_ten_thousand_named_maps_in_one_hdf5_file(tmp_path):
    """Names and sides of many maps are more than an ordinary HDF5 attribute may hold."""
    count = 10_000
    names = tuple(f"subhalo {i} view {i}" for i in range(count))
    maps = Maps(np.ones((count, 1, 1), np.float32), "hi", "K", np.arange(1.0, count + 1), names)
    read = read_maps(write_maps(tmp_path / "many.hdf5", {"hi": maps}))["hi"]
    assert read.names == names
    np.testing.assert_array_equal(read.side, maps.side)


def test_a_foreign_hdf5_data_set_is_given_its_domain_by_the_caller(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["data"] = np.ones((4, 4))
    assert list(read_maps(tmp_path / "a.hdf5", domain="gas", unit="K")) == ["gas"]
