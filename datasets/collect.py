"""Command: gather observed images into a store, one domain a survey, so that translations can learn from them.

    python datasets/collect.py --config configs/datasets/collect_radio.yaml
    python datasets/collect.py --config my.yaml --output data/mysurvey/maps.zarr

Each domain's images stand in one NPZ file (arrays of images, names and, it may be, labels) or in files of one image
each (FITS, HDF5, NPY), whose names without suffix are the objects'. Images of the same name in several domains show
the same object: they become one view, on one grid about their common centre. Objects that a domain lacks are left out,
and counted.

Onto coarser pixels images are averaged (or summed) by area; onto finer ones they are interpolated by splines through
the pixels' centres. Values are float32 with a unit from then on. Every image is read twice: once to see whether it
holds anything, once to be written.

The images of a survey say nothing about distance. Views are placed at ``redshift``, which sets ``side``; the
catalogue's notes say so. A split by object needs no more than the names.
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import csv
import glob
import hashlib
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from astropy.io.fits import Header
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import proj_plane_pixel_scales
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from tqdm.auto import tqdm

from skyshift.command import command, parse
from skyshift.datasets.formats import read_maps
from skyshift.datasets.maps import MapError
from skyshift.datasets.resampling import rebin
from skyshift.datasets.sky import Placement
from skyshift.datasets.store import MapStore, StoreError, ViewRecord, shard_size
from skyshift.errors import SkyshiftError
from skyshift.files import location
from skyshift.naming import unknown

DEFAULT_CONFIG = "datasets/collect_radio.yaml"
_FACE_ON = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass
class Images:
    """The images of one domain.

    Attributes:
        path: An NPZ file, or a pattern of files of one image each (``cutouts/*.fits``).
        unit: Of the values; where the files do not say.
        pixel: Side of a pixel, arcsec; 0 to take it from the WCS of FITS files.
        images: Key of an NPZ file: (n, height, width).
        names: Key of an NPZ file: (n,) names of the objects.
        labels: Key of an NPZ file: (n,) class numbers; empty for none.
        hdu: Which image of files that hold several.
        conserve: ``surface_brightness`` where a value is an amount per area or per beam, ``flux`` where it is one per
            pixel.
        spline: Degree of the interpolation onto finer pixels: 3 (bicubic), or 1, which makes no negative ringing.
        normalise: ``peak`` divides each image by its brightest pixel on the new grid, and its unit becomes 1.
    """

    path: str = ""
    unit: str = ""
    pixel: float = 0.0
    images: str = "images"
    names: str = "names"
    labels: str = ""
    hdu: str = ""
    conserve: Literal["surface_brightness", "flux"] = "surface_brightness"
    spline: Literal[1, 3] = 3
    normalise: Literal["none", "peak"] = "none"


@dataclass
class CollectConfig:
    """What to gather, and onto which grid.

    Attributes:
        inputs: Domain to its images.
        output: Folder of the store.
        pixels: Per side of a map.
        pixel: Side of a pixel of the new maps, arcsec.
        redshift: At which all objects are placed.
        label_names: Names of the classes 0, 1, …
        label_file: CSV file with columns ``name`` and ``label`` (number or name of the class), for images without.
        blank: ``drop`` leaves out objects with an image of zeros alone, or of values that are not finite; ``refuse``
            stops at the first.
    """

    inputs: dict[str, Images] = field(default_factory=dict)
    output: str = "data/collected/maps.zarr"
    pixels: int = 64
    pixel: float = 1.0
    redshift: float = 0.1
    label_names: list[str] = field(default_factory=list)
    label_file: str = ""
    blank: Literal["drop", "refuse"] = "drop"

    def __post_init__(self) -> None:
        if self.pixels < 1 or not self.pixel > 0 or not self.redshift > 0:
            raise SkyshiftError(
                f"pixels ({self.pixels}), pixel ({self.pixel:g} arcsec), redshift ({self.redshift:g}) must be above 0"
            )


class ImageSet:
    """Named images of one domain, opened as a configuration says.

    Args:
        domain: Its name.
        config: Where they are.

    Raises:
        MapError: They are not there, or not named one by one.
    """

    def __init__(self, domain: str, config: Images) -> None:
        self.domain, self.config = domain, config
        self.packed = config.path.lower().endswith(".npz")
        names = self._packed(config.names).tolist() if self.packed else list(self._files)
        if not names:
            raise MapError(f"inputs.{domain}: no file matches '{config.path}'")
        if self.packed and not config.unit:
            raise MapError(f"inputs.{domain}.unit: {config.path} does not say the unit of its values; name it")
        if self.packed and not config.pixel > 0:
            raise MapError(f"inputs.{domain}.pixel: {config.path} does not say the size of its pixels; give arcsec")
        self.numbers = {str(name): i for i, name in enumerate(names)}
        if len(self.numbers) < len(names):
            twice = next(str(name) for name in names if names.count(name) > 1)
            raise MapError(f"inputs.{domain}: {config.path} holds {names.count(twice)} images called {twice}")

    @cached_property
    def _files(self) -> dict[str, Path]:
        return {Path(path).name.split(".")[0]: Path(path) for path in sorted(glob.glob(self.config.path))}

    def _packed(self, key: str) -> NDArray[Any]:
        try:
            with np.load(self.config.path, allow_pickle=False) as file:
                if key not in file:
                    raise MapError(f"{self.config.path}: {unknown('array', key, list(file))}")
                return np.asarray(file[key])
        except MapError:
            raise
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise MapError(f"inputs.{self.domain}: {self.config.path} cannot be read ({error})") from None

    @cached_property
    def _images(self) -> NDArray[Any]:
        images = self._packed(self.config.images)
        if images.ndim != 3 or len(images) != len(self.numbers):
            raise MapError(f"{self.config.path}: {self.config.images} has shape {images.shape}, not (n, height, width)")
        return images

    @cached_property
    def labels(self) -> dict[str, int]:
        """Name to class number, for those that have one."""
        if not (self.packed and self.config.labels):
            return {}
        values = self._packed(self.config.labels)
        return {name: int(values[i]) for name, i in self.numbers.items()}

    def digest(self, names: Sequence[str]) -> str:
        """SHA-256 of an NPZ file, or of the names, sizes and times of files: the same images, or others."""
        if self.packed:
            with Path(self.config.path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        facts = [(name, (stat := self._files[name].stat()).st_size, stat.st_mtime_ns) for name in names]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def read(self, name: str) -> tuple[NDArray[np.float64], float, str]:
        """One image (height, width), the side of its pixels in arcsec, and its unit.

        Raises:
            MapError: A file holds several images, or does not say its unit or the size of its pixels.
        """
        if self.packed:
            return self._images[self.numbers[name]].astype(np.float64), self.config.pixel, self.config.unit
        path = self._files[name]
        maps = next(
            iter(
                read_maps(path, domain=self.domain, unit=self.config.unit or None, hdu=self.config.hdu or None).values()
            )
        )
        if len(maps) != 1:
            raise MapError(f"{path} holds {len(maps)} images; files of one image each are gathered")
        unit = self.config.unit or maps.unit
        return maps.to(unit).values[0].astype(np.float64), self.config.pixel or _wcs_pixel(path, maps.header), unit

    def on_grid(self, name: str, pixels: int, pixel: float) -> tuple[NDArray[np.float32], str]:
        """One image on the grid of the store, (pixels, pixels), and its unit; NaN where it is not finite everywhere.

        Raises:
            MapError: The image is smaller than the grid.
        """
        image, own, unit = self.read(name)
        height, width = image.shape
        if min(height, width) * own < pixels * pixel * (1 - 1e-6):
            raise MapError(
                f"{self.domain} image of {name} is {width * own:g} x {height * own:g} arcsec, the grid {pixels} x "
                f"{pixel:g} = {pixels * pixel:g} arcsec; take fewer or smaller pixels"
            )
        if not np.isfinite(image).all():
            return np.full((pixels, pixels), np.nan, np.float32), unit
        if pixel >= own:
            made = rebin(image, own, pixel, (pixels, pixels), self.config.conserve)
        else:
            made = interpolated(image, own, pixel, pixels, self.config.spline)
            made *= (pixel / own) ** 2 if self.config.conserve == "flux" else 1.0
        if self.config.normalise == "peak":
            return (made / made.max()).astype(np.float32) if made.max() > 0 else made.astype(np.float32), "1"
        return made.astype(np.float32), unit


def interpolated(
    image: NDArray[np.float64], from_pixel: float, to_pixel: float, pixels: int, degree: int = 3
) -> NDArray[np.float64]:
    """A map's values at the centres of finer pixels about the same centre, by splines through its own centres.

    Args:
        image: (height, width).
        from_pixel: Side of its pixels.
        to_pixel: Side of the new pixels, same unit.
        pixels: New pixels on a side.
        degree: Of the spline.

    Returns:
        (pixels, pixels).
    """
    offset = (np.arange(pixels) - (pixels - 1) / 2) * to_pixel / from_pixel
    rows, columns = (offset + (size - 1) / 2 for size in image.shape)
    return np.asarray(map_coordinates(image, np.meshgrid(rows, columns, indexing="ij"), order=degree, mode="nearest"))


def numbered(name: str) -> int:
    """A number that an object's name alone decides: the same object has the same in every store."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


def _wcs_pixel(path: Path, header: Mapping[str, Any]) -> float:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FITSFixedWarning)
            wcs = WCS(Header(dict(header))).celestial
        scales = proj_plane_pixel_scales(wcs) * 3600.0 if wcs.naxis == 2 else np.zeros(0)
    except (ValueError, TypeError) as error:
        raise MapError(f"{path}: its WCS cannot be read ({error}); set pixel (arcsec)") from None
    if not scales.size or not np.allclose(scales, scales[0], rtol=1e-3):
        raise MapError(f"{path} does not say the size of square pixels (no celestial WCS); set pixel (arcsec)")
    return float(scales[0])


def _labels(config: CollectConfig, sets: Mapping[str, ImageSet]) -> dict[str, int]:
    """Name to class number, of which all domains and the file agree.

    Raises:
        SkyshiftError: They do not, or a class is not among ``label_names``.
    """
    found: dict[str, int] = {}

    def take(name: str, label: int, where: str) -> None:
        if config.label_names and not -1 <= label < len(config.label_names):
            raise SkyshiftError(f"{where}: {name} has class {label}, label_names has {len(config.label_names)}")
        if found.setdefault(name, label) != label:
            raise SkyshiftError(f"{where}: {name} has class {label}, elsewhere {found[name]}")

    for domain, images in sets.items():
        for name, label in images.labels.items():
            take(name, label, f"inputs.{domain}")
    if config.label_file:
        try:
            with Path(config.label_file).open(encoding="utf-8", newline="") as file:
                rows = [(row["name"], row["label"]) for row in csv.DictReader(file)]
        except (OSError, KeyError) as error:
            raise SkyshiftError(
                f"label_file {config.label_file} cannot be read, or lacks the columns name and label ({error!r})"
            ) from None
        for name, text in rows:
            is_number = text.lstrip("-").isdecimal()
            if not is_number and text not in config.label_names:
                raise SkyshiftError(f"{config.label_file}: {unknown('class', text, config.label_names)}")
            take(name, int(text) if is_number else config.label_names.index(text), config.label_file)
    return found


def collect(config: CollectConfig, *, progress: bool = True) -> MapStore:
    """Gather the images.

    Args:
        config: Which, and onto which grid.
        progress: Show a bar.

    Returns:
        The store, whole. An interrupted run goes on where it stopped.

    Raises:
        SkyshiftError: There is nothing to gather, or something is wrong with an image; the message names it.
    """
    if not config.inputs:
        raise SkyshiftError("inputs names no domain: give each its images, e.g. inputs: {first: {path: first.npz, …}}")
    sets = {domain: ImageSet(domain, images) for domain, images in config.inputs.items()}
    first, *others = sets.values()
    shared = [name for name in first.numbers if all(name in other.numbers for other in others)]
    labels = _labels(config, sets)
    names, units = _usable(config, sets, shared)
    if not names:
        raise SkyshiftError(f"no object has a usable image in each of {', '.join(sets)}")
    if progress:
        total = len(set().union(*(images.numbers for images in sets.values())))
        print(
            f"{total} objects, {len(shared)} of them in every domain, {len(shared) - len(names)} blank or damaged: "
            f"{len(names)} are gathered",
            flush=True,
        )
    store = _open(config, sets, names, units, [labels.get(name, -1) for name in names])
    place = Placement(config.redshift)
    side = place.kpc(config.pixels * config.pixel)
    todo = [shard for shard in range(store.shards) if not store.is_done(shard)]
    for shard in tqdm(todo, unit="shard", desc=config.output, disable=not progress):
        rows = store.shard_rows(shard)
        maps = {
            domain: np.stack([images.on_grid(names[row], config.pixels, config.pixel)[0] for row in rows])
            for domain, images in sets.items()
        }
        records = [
            ViewRecord(
                view=row,
                galaxy=numbered(names[row]),
                name=names[row],
                split_group=row,
                snapshot=0,
                redshift=config.redshift,
                rotation=_FACE_ON,
                side=side,
                depth=0.0,
                label=labels.get(names[row], -1),
                flags=0,
                notes=f"an observed image; placed at redshift {config.redshift:g} for want of a distance",
            )
            for row in rows
        ]
        store.write_shard(shard, maps, records)
    return store


def _usable(
    config: CollectConfig, sets: Mapping[str, ImageSet], shared: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Names of objects whose images hold something in every domain, and the unit of each domain."""
    names, units = [], dict.fromkeys(sets, "")
    for name in shared:
        good = True
        for domain, images in sets.items():
            image, unit = images.on_grid(name, config.pixels, config.pixel)
            if not np.isfinite(image).all() or not image.any():
                if config.blank == "refuse":
                    what = "only zeros" if np.isfinite(image).all() else "values that are not finite"
                    raise SkyshiftError(f"the {domain} image of {name} holds {what}; leave it out with --blank drop")
                good = False
                break
            if (units[domain] or unit) != unit:
                raise SkyshiftError(f"the {domain} image of {name} is in {unit}, those before it in {units[domain]}")
            units[domain] = unit
        if good:
            names.append(name)
    return names, units


def _open(
    config: CollectConfig,
    sets: Mapping[str, ImageSet],
    names: Sequence[str],
    units: Mapping[str, str],
    labels: Sequence[int],
) -> MapStore:
    """The store to fill: new, or one that an earlier run of the same images began."""
    plan = {
        "collected": {domain: vars(images.config) for domain, images in sets.items()},
        "images": {domain: images.digest(names) for domain, images in sets.items()},
        "labels": hashlib.sha256(repr(list(zip(names, labels, strict=True))).encode()).hexdigest(),
        "pixel": config.pixel,
        "redshift": config.redshift,
    }
    output = location(config.output)
    if not output.exists():
        return MapStore.create(
            output,
            units=units,
            views=len(names),
            pixels=config.pixels,
            shard_views=shard_size(len(names), 1, config.pixels, len(sets)),
            labels=config.label_names,
            plan=plan,
        )
    store = MapStore(output)
    if store.plan != plan or store.pixels != config.pixels or list(store.labels) != list(config.label_names):
        raise StoreError(
            f"{output} holds other images, other labels or another grid; choose another --output or delete it"
        )
    return store


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    config, _ = parse(CollectConfig, arguments, DEFAULT_CONFIG, "Gather observed images into a map store.")
    store = collect(config)
    print(f"{store.path}: {store.views} views of {', '.join(f'{name} [{unit}]' for name, unit in store.units.items())}")


if __name__ == "__main__":
    sys.exit(main())
