"""Files of others: skais-mapper's HDF5 layout both ways, mock observations, cubes, and files cut off anywhere."""

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from skyshift.datasets.formats import read_maps, write_maps
from skyshift.datasets.maps import MapError, Maps


def stack(count: int = 3, domain: str = "gas", unit: str = "Msun / kpc2") -> Maps:
    rng = np.random.default_rng(count)
    values = rng.lognormal(10, 3, (count, 8, 8)).astype(np.float32)
    names = tuple(f"subhalo {i} view {i}" for i in range(count))
    return Maps(values, domain, unit, rng.uniform(10, 100, count), names, provenance="TNG50-1 snapshot 99")


# skais-mapper


def write_skais_file(path: Path, group: str = "gas", unit: str = "solMass / kpc2", count: int = 3) -> np.ndarray:
    """A file in skais-mapper's layout, entry by entry as its ``map_TNG_sample`` does it (float64, extents in Mpc)."""
    maps = np.random.default_rng(1).lognormal(10, 3, (count, 8, 8))
    with h5py.File(path, "a", libver="latest") as file:
        data = file.create_dataset(
            f"{group}/images", (count, 8, 8), "f8", maxshape=(None, 8, 8), chunks=(1, 8, 8), compression="gzip"
        )
        for i in range(count):
            data[i] = maps[i]
            attributes = file.create_group(f"{group}/metadata/{i:04d}").attrs
            half = 0.01 * (i + 1)
            attributes["class"] = group
            attributes["gid"] = 100 + i
            attributes["snapshot"] = 99
            attributes["units"] = unit
            attributes["extent"] = np.array([-half, half, -half, half])
            attributes["units_extent"] = "Mpc"
            attributes["name"] = f"{group}_tng50-1.99.gid.{100 + i:07d}"
            attributes["rotxy"] = (0, 0)
    return maps


def test_a_file_in_the_layout_of_skais_mapper_is_read(tmp_path):
    gas = write_skais_file(tmp_path / "m.hdf5")
    temperature = write_skais_file(tmp_path / "m.hdf5", "temp", "K")
    write_skais_file(tmp_path / "m.hdf5", "hi/21cm", "mK")
    read = read_maps(tmp_path / "m.hdf5")
    assert sorted(read) == ["gas", "hi_21cm", "temperature"]
    np.testing.assert_array_equal(read["gas"].values, gas.astype(np.float32))
    np.testing.assert_array_equal(read["temperature"].values, temperature.astype(np.float32))
    np.testing.assert_allclose(read["gas"].side, [20, 40, 60], rtol=1e-12)  # ±0.01 Mpc are 20 kpc
    assert read["gas"].names[1] == "gas_tng50-1.99.gid.0000101"
    assert read["gas"].to("Msun / kpc2").unit == "Msun / kpc2"
    assert list(read_maps(tmp_path / "m.hdf5", hdu="hi/21cm")) == ["hi_21cm"]
    with pytest.raises(MapError, match=r"unknown data set of maps 'tmp'\. Did you mean 'temp'"):
        read_maps(tmp_path / "m.hdf5", hdu="tmp")


@pytest.mark.filterwarnings("ignore")
def test_skais_mapper_and_this_package_read_each_other(tmp_path):
    """The real writer and the reader that its authors use (``chuchichaestli``), not a copy of either."""
    buffer = pytest.importorskip("skais_mapper.data", reason="skais-mapper is not installed").Img2H5Buffer
    reader = pytest.importorskip("chuchichaestli.data.hdf5").HDF5Dataset
    maps = np.random.default_rng(0).lognormal(5, 2, (12, 8, 8))
    theirs = tmp_path / "theirs.hdf5"
    for image in maps:
        writer = buffer(target=theirs, size="1M")
        writer.inc_write(str(theirs), data=image, group="star/images")
        entry = {"units": "solMass / kpc2", "extent": [-7.0, 7.0, -7.0, 7.0], "units_extent": "kpc", "name": "x"}
        writer.inc_write(str(theirs), data=entry, group=f"star/metadata/{writer.index:04d}")
    read = read_maps(theirs)["stars"]
    np.testing.assert_array_equal(read.values, maps.astype(np.float32))
    np.testing.assert_array_equal(read.side, 14.0)

    ours = write_maps(tmp_path / "ours.hdf5", {"stars": stack(12, "stars"), "gas": stack(12)}, layout="skais")
    opened = reader(str(ours), groups="star/images", attrs_groups="star/metadata/*", return_as="dict")
    assert len(opened) == 12
    for i in (0, 7, 11):
        item = opened[i]
        np.testing.assert_array_equal(np.squeeze(np.asarray(item["data"])), stack(12, "stars").values[i])
        assert item["attrs"]["name"] == f"subhalo {i} view {i}"
    opened.close()
    # their writer appends to our file
    writer = buffer(target=ours, size="1M")
    writer.inc_write(str(ours), data=maps[0].astype(np.float32), group="gas/images")
    assert writer.index == 12


def test_the_layout_comes_back_bit_by_bit(tmp_path):
    written = {"gas": stack(), "temperature": stack(2, "temperature", "K"), "hi_meerkat": stack(1, "hi_meerkat", "Jy")}
    path = write_maps(tmp_path / "m.h5", written, layout="skais")
    read = read_maps(path)
    assert set(read) == set(written)
    for name, maps in written.items():
        np.testing.assert_array_equal(read[name].values, maps.values)
        np.testing.assert_array_equal(read[name].side, maps.side)
        assert (read[name].unit, read[name].names, read[name].provenance) == (maps.unit, maps.names, maps.provenance)


def test_more_than_ten_thousand_entries_stay_in_the_order_of_their_names(tmp_path):
    """Readers sort the groups by name: four digits would put map 10,000 after map 1,000."""
    many = Maps(np.arange(10_001, dtype=np.float32).reshape(-1, 1, 1), "gas", "K")
    with h5py.File(write_maps(tmp_path / "m.hdf5", {"gas": many}, layout="skais")) as file:
        names = list(file["gas/metadata"])
        assert len(names) == 10_001
        assert [int(name) for name in sorted(names)] == list(range(10_001))


def test_damaged_skais_files(tmp_path):
    """Missing entries, units and extents: each is named."""
    for name, change, message in (
        (
            "entry",
            lambda g: g["metadata"].pop("0001"),
            r"gas holds 3 images and 2 entries of metadata, none for image 1",
        ),
        ("units", lambda g: g["metadata/0001"].attrs.update(units="K"), r"images of gas are in several units \(K, sol"),
        (
            "word",
            lambda g: [g[f"metadata/000{i}"].attrs.update(units="furlong") for i in range(3)],
            "furlong' is no unit",
        ),
        (
            "extent",
            lambda g: g["metadata/0002"].attrs.pop("units_extent"),
            "image 2 of gas has an extent without units",
        ),
        ("angle", lambda g: g["metadata/0002"].attrs.update(units_extent="deg"), "'deg' is no unit of length"),
        ("long", lambda g: g["metadata/0000"].attrs.update(extent=[-1, 1, -2, 2]), "maps are square"),
    ):
        path = tmp_path / f"{name}.hdf5"
        write_skais_file(path)
        with h5py.File(path, "a") as file:
            change(file["gas"])
        before = path.read_bytes()
        with pytest.raises(MapError, match=message):
            read_maps(path)
        assert path.read_bytes() == before
    with h5py.File(tmp_path / "bare.hdf5", "w") as file:
        file["gas/images"] = np.ones((2, 4, 4))
    with pytest.raises(MapError, match="does not say the unit of its maps; name it with --unit"):
        read_maps(tmp_path / "bare.hdf5")
    assert len(read_maps(tmp_path / "bare.hdf5", unit="K")["gas"]) == 2


def test_layouts_that_there_are_not(tmp_path):
    with pytest.raises(MapError, match=r"unknown layout 'skai'\. Did you mean 'skais'"):
        write_maps(tmp_path / "m.hdf5", {"gas": stack()}, layout="skai")  # type: ignore[arg-type]
    with pytest.raises(MapError, match=r"the layout 'skais' is one of HDF5 files"):
        write_maps(tmp_path / "m.fits", {"gas": stack()}, layout="skais")
    assert not list(tmp_path.iterdir())


def test_a_snapshot_is_no_file_of_maps(write_cutout, tmp_path):
    with pytest.raises(MapError, match=r"holds particles, not maps; make maps of it with datasets/build\.py"):
        read_maps(write_cutout(tmp_path / "cutout.hdf5"))


# mock observations and cubes


def observation(path: Path, domains: tuple[str | None, ...]) -> dict[str, np.ndarray]:
    """CLEAN, NOISY and SIGMA images in the layout of a mock observation."""
    rng = np.random.default_rng(0)
    images = {name: rng.normal(size=(9, 9)).astype(np.float32) for name in ("CLEAN", "NOISY", "SIGMA")}
    hdus: list[fits.PrimaryHDU | fits.ImageHDU] = [fits.PrimaryHDU()]
    for (name, image), domain in zip(images.items(), domains, strict=True):
        header = fits.Header({"BUNIT": "Jy / beam", "BMAJ": 15 / 3600, "CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN"})
        if domain:
            header["DOMAIN"] = domain
        hdus.append(fits.ImageHDU(image, header, name=name))
    fits.HDUList(hdus).writeto(path)
    return images


def test_a_mock_observation_opens_without_further_arguments(tmp_path):
    images = observation(tmp_path / "o.fits", ("hi_meerkat_clean", "hi_meerkat", "hi_meerkat_sigma"))
    read = read_maps(tmp_path / "o.fits")
    assert list(read) == ["hi_meerkat_clean", "hi_meerkat", "hi_meerkat_sigma"]
    for maps, image in zip(read.values(), images.values(), strict=True):
        np.testing.assert_array_equal(maps.values[0], image)
        assert maps.unit == "Jy / beam"
        assert maps.header["BMAJ"] == 15 / 3600


@pytest.mark.parametrize("said", ["hi_meerkat", None])
def test_images_of_an_observation_are_told_apart_by_their_names(tmp_path, said):
    """One DOMAIN for all three, or the caller's: EXTNAME says which is which."""
    images = observation(tmp_path / "o.fits", (said,) * 3)
    read = read_maps(tmp_path / "o.fits", domain="hi_meerkat")
    np.testing.assert_array_equal(read["hi_meerkat"].values[0], images["NOISY"])
    np.testing.assert_array_equal(read["hi_meerkat_sigma"].values[0], images["SIGMA"])
    assert list(read_maps(tmp_path / "o.fits", domain="hi_meerkat", hdu="sigma")) == ["hi_meerkat_sigma"]
    for hdu in ("3", "3:SIGMA"):
        only = read_maps(tmp_path / "o.fits", domain="hi_meerkat", hdu=hdu)
        np.testing.assert_array_equal(only["hi_meerkat_sigma"].values[0], images["SIGMA"])
    with pytest.raises(MapError, match=r"unknown HDU with an image 'SIGNA'\. Did you mean '3:SIGMA'"):
        read_maps(tmp_path / "o.fits", domain="hi_meerkat", hdu="SIGNA")


def test_several_domains_are_named_in_the_file(tmp_path):
    path = write_maps(tmp_path / "m.fits", {"gas": stack(), "temperature": stack(2, "temperature", "K")})
    assert [hdu.name for hdu in fits.open(path)][:2] == ["GAS", "TEMPERATURE"]
    assert list(read_maps(path, hdu="temperature")) == ["temperature"]


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
def test_the_spectral_axis_of_a_real_cube_survives(shared: Path, tmp_path):
    """Names and coordinates of the channels, against astropy's spectral WCS, before and after a round trip."""
    path = shared / "hi/ngc6946_wsrt.fits"
    cube = read_maps(path, domain="cube")["cube"]
    again = read_maps(write_maps(tmp_path / "c.fits", {"cube": cube}))["cube"]
    assert again.names == cube.names
    for source in (path, tmp_path / "c.fits"):
        header = fits.getheader(source)
        velocity = WCS(header).sub([3]).all_pix2world(np.arange(101), 0)[0] / 1e3  # m/s
        named = [float(name.split()[1]) for name in cube.names]
        np.testing.assert_allclose(named, velocity, atol=0.042)  # names tell a hundredth of a channel
        assert len(set(named)) == 101


# cut off


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("name", ["m.fits", "m.fits.gz", "m.hdf5", "s.hdf5", "m.npy"])
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, name, share):
    layout = "skais" if name == "s.hdf5" else "plain"
    written = {"gas": stack(40)} if name == "m.npy" else {"gas": stack(40), "hi": stack(40, "hi")}
    whole = write_maps(tmp_path / name, written, layout=layout).read_bytes()  # type: ignore[arg-type]
    cut = tmp_path / f"cut_{name}"
    cut.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(MapError, match=rf"cut_{name} (cannot be read|is no plain NPY array)"):
        read_maps(cut, domain="gas" if name == "m.npy" else None, unit="Msun / kpc2")


def test_a_fits_file_that_lost_whole_extensions_is_refused(tmp_path):
    """Cut between two HDUs it is a valid file: NEXTEND tells."""
    path = write_maps(tmp_path / "m.fits", {"gas": stack(), "hi": stack(3, "hi")})
    with fits.open(path) as hdus:
        end = hdus[1].fileinfo()["hdrLoc"]
    (tmp_path / "cut.fits").write_bytes(path.read_bytes()[:end])
    assert len(fits.open(tmp_path / "cut.fits")) == 1
    with pytest.raises(MapError, match=r"cut\.fits cannot be read: it is cut off, 0 of 3 extensions are there"):
        read_maps(tmp_path / "cut.fits")


def test_corrupt_compressed_bytes(tmp_path):
    """Bytes overwritten in the middle: gzip's and HDF5's checksums see them."""
    for name in ("m.fits.gz", "m.hdf5"):
        path = write_maps(tmp_path / name, {"gas": stack(40)})
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 200] = bytes(200)
        path.write_bytes(bytes(content))
        with pytest.raises(MapError, match=f"{name} cannot be read"):
            read_maps(path)
    plain = gzip.compress(b"SIMPLE")
    (tmp_path / "p.fits.gz").write_bytes(plain)
    with pytest.raises(MapError, match="cannot be read"):
        read_maps(tmp_path / "p.fits.gz", domain="a", unit="K")


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "maps.fits").mkdir()
    with pytest.raises(MapError, match=r"maps\.fits is a folder, not a file of maps"):
        read_maps(tmp_path / "maps.fits")


def test_npy_has_no_hdus(tmp_path):
    write_maps(tmp_path / "m.npy", {"gas": stack()})
    with pytest.raises(MapError, match="an NPY file holds one array; leave out --hdu"):
        read_maps(tmp_path / "m.npy", hdu=0)
