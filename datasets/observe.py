"""Command: observe the maps of a store or a file with a survey.

    python datasets/observe.py --config configs/datasets/observe_meerkat.yaml
    python datasets/observe.py --input galaxy.fits --output mock --survey lsst_y10 --bands '[r]' --redshift 0.05
    python datasets/observe.py --input galaxy.fits --output dirty --survey wsrt --dirty true --hours 12 --declination 60

A store becomes a store, view by view: the noisy images of the survey under ``{domain}_{survey}``, and beside them,
where asked for, the same without noise (``_clean``), its σ (``_sigma``) and the simulated maps themselves
(``--include``), brought to the same pixels about the same centre. So a translation from simulation to telescope trains
on one store.
The catalogue is that of the source, but ``side`` and ``redshift`` are those of the observation; all views of a galaxy
are placed at one redshift. Shards are written whole, and a run goes on where an earlier one stopped.

With ``--dirty`` a radio survey sees what its baselines sample and no more (:mod:`skyshift.datasets.visibilities`).

Any other output is a folder of FITS files, one a view and band, with clean, noisy and σ images and a WCS.

Included maps are averaged over the new pixels by area: exact for columns (amounts per kpc²), an approximation for
mass-weighted means. What lies outside of the simulated map is empty.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from skyshift.command import command, parse
from skyshift.datasets.formats import read_maps, read_maps_leniently
from skyshift.datasets.maps import Maps
from skyshift.datasets.observation import Observation
from skyshift.datasets.observe_config import ObserveConfig
from skyshift.datasets.optical import observe_optical
from skyshift.datasets.radio import in_kelvin, observe_radio
from skyshift.datasets.resampling import rebin
from skyshift.datasets.sky import Placement
from skyshift.datasets.store import MapStore, StoreError, ViewRecord, is_store
from skyshift.datasets.surveys import OpticalSurvey, SurveyError
from skyshift.datasets.visibilities import observe_dirty
from skyshift.errors import SkyshiftError
from skyshift.files import location, write_json
from skyshift.naming import unknown


class Observer:
    """Observes one view after another as a configuration says.

    Args:
        config: What to observe with.
        units: Domain to unit of the simulated maps.

    Raises:
        SurveyError: An unknown survey or band, or no band whose light is there.
        SkyshiftError: A domain is missing.
    """

    def __init__(self, config: ObserveConfig, units: Mapping[str, str]) -> None:
        self.config, self.units = config, dict(units)
        self.survey = config.open_survey()
        self.star = _star(config) if config.psf else None
        if isinstance(self.survey, OpticalSurvey):
            if config.dirty:
                raise SurveyError(
                    f"survey '{self.survey.name}' is an optical one, without baselines; leave out --dirty"
                )
            light = {name: f"light_{band.light or name}" for name, band in self.survey.bands.items()}
            bands = config.bands or [name for name in light if light[name] in units]
            if not bands:
                raise SurveyError(
                    f"survey '{self.survey.name}' needs maps of {' or '.join(light.values())}, of which the input has "
                    f"none; it has {', '.join(units)}"
                )
            # A band that does not exist is refused here, before any work.
            self.targets = {name: light[name] for name in bands if self.survey.band(name)}
        else:
            if config.bands:
                raise SurveyError(f"survey '{self.survey.name}' is a radio one, without bands; leave out --bands")
            if config.psf:
                raise SurveyError(f"survey '{self.survey.name}' is a radio one, with a beam; leave out --psf")
            self.targets = {"": config.domain}
        self.domains = list(dict.fromkeys([*self.targets.values(), *config.include]))
        for name in self.domains:
            if name not in units:
                raise SkyshiftError(f"{config.input}: {unknown('domain', name, units)}")

    def observe(self, maps: Mapping[str, NDArray[Any]], side: float, place: Placement, view: int) -> list[Observation]:
        """One view in each band.

        Args:
            maps: Domain to (height, width), in the units of the input.
            side: Of the maps, kpc.
            place: Where the galaxy is put.
            view: Its number, which the noise depends on.

        Returns:
            An observation a band; one for a radio survey.
        """
        config, shape = self.config, (self.config.pixels, self.config.pixels)
        found = []
        for number, (band, domain) in enumerate(self.targets.items()):
            seed = int(np.random.SeedSequence([config.seed, view, number]).generate_state(1)[0])
            if isinstance(self.survey, OpticalSurvey):
                light = Maps(np.asarray(maps[domain], np.float32)[None], domain, self.units[domain]).to("Lsun / kpc2")
                image = observe_optical(
                    light.values[0],
                    side,
                    self.survey,
                    band,
                    place,
                    seed=seed,
                    shape=shape,
                    psf=self.star,
                    psf_pixel_arcsec=config.psf_pixel,
                )
            elif config.dirty:
                overhead = self.survey.latitude_deg if config.declination is None else config.declination
                image = observe_dirty(
                    maps[domain],
                    self.units[domain],
                    side,
                    self.survey,
                    place.redshift,
                    seed=seed,
                    hours=config.hours,
                    direction=(0.0, overhead),
                    weighting=config.weighting,
                    width_kms=config.width_kms,
                    shape=shape,
                    domain=domain,
                    placement=place,
                )
            else:
                image = observe_radio(
                    maps[domain],
                    self.units[domain],
                    side,
                    self.survey,
                    place.redshift,
                    seed=seed,
                    width_kms=config.width_kms,
                    shape=shape,
                    primary=config.primary,
                    domain=domain,
                    placement=place,
                )
                image = in_kelvin(image) if config.kelvin else image
            found.append(image)
        return found

    def layers(self, maps: Mapping[str, NDArray[Any]], side: float, place: Placement, view: int) -> dict[str, Maps]:
        """One view as a store keeps it: included maps, then the layers of each observation; one map each."""
        pixel = place.kpc(self.survey.pixel_arcsec)
        kept = {}
        for name in self.config.include:
            values = np.asarray(maps[name], np.float32)
            shape = (self.config.pixels, self.config.pixels)
            area_mean = rebin(values, side / values.shape[1], pixel, shape, conserve="surface_brightness")
            kept[name] = Maps(np.asarray(area_mean, np.float32)[None], name, self.units[name])
        for image in self.observe(maps, side, place, view):
            for layer in self.config.layers:
                name = f"{image.domain}_{self.survey.name}" + ("" if layer == "noisy" else f"_{layer}")
                kept[name] = Maps(getattr(image, layer)[None], name, image.unit)
        return kept

    def settings(self) -> dict[str, Any]:
        """The configuration and the survey's numbers, without paths."""
        own = {key: value for key, value in asdict(self.config).items() if key not in ("input", "output", "psf")}
        own["psf"] = "" if self.star is None else hashlib.sha256(np.ascontiguousarray(self.star).tobytes()).hexdigest()
        # As it will be read back: lists where there are tuples.
        return dict(json.loads(json.dumps({"observation": own, "survey": asdict(self.survey)})))

    def plan(self, store: MapStore) -> dict[str, Any]:
        """All that decides what the observations of a store are."""
        source = {"observed_from": str(store.path), "fingerprint": store.fingerprint}
        return {**source, **self.settings(), "plan": store.plan}


def _star(config: ObserveConfig) -> NDArray[np.float32]:
    """The image of a star that stands for the point spread function."""
    stacks, _ = read_maps_leniently(config.psf)
    images = [stack.values for stack in stacks.values()]
    if len(images) != 1 or len(images[0]) != 1:
        raise SkyshiftError(f"{config.psf} holds {sum(map(len, images))} images; a point spread function is one")
    return images[0][0]


def observe_store(config: ObserveConfig, *, progress: bool = True) -> MapStore:
    """Observe a store into a store, going on where an earlier run stopped.

    Args:
        config: What to observe, with what, and where to write it.
        progress: Show a progress bar.

    Raises:
        StoreError: The input is not whole, or the output holds something else.
        SkyshiftError: What the survey refuses: see :mod:`skyshift.datasets.radio` and :mod:`skyshift.datasets.optical`.
    """
    store, output = MapStore(config.input), location(config.output)
    store.require_complete()
    observer = Observer(config, store.units)
    records = store.records()
    if not records:
        raise StoreError(f"{store.path} has no maps to observe")

    def view_layers(record: ViewRecord) -> dict[str, Maps]:
        maps = _read_view(store, observer.domains, record.view)
        place = config.placement(record.galaxy, record.snapshot)
        return observer.layers(maps, record.side, place, record.view)

    plan = observer.plan(store)
    first = view_layers(records[0])  # what cannot be observed at all is refused before anything is written
    if output.exists():
        made = MapStore(output)
        if any(made.plan.get(key) != plan[key] for key in plan if key != "observed_from"):
            raise StoreError(
                f"{output} holds other observations, or some of another store; choose another output or delete this one"
            )
    else:
        made = MapStore.create(
            output,
            units={name: layer.unit for name, layer in first.items()},
            views=store.views,
            pixels=config.pixels,
            shard_views=store.shard_views,
            labels=store.labels,
            plan=plan,
        )
    field_arcsec = config.pixels * observer.survey.pixel_arcsec
    todo = [shard for shard in range(made.shards) if not made.is_done(shard)]
    for shard in tqdm(todo, unit="shard", desc=str(output), disable=not (progress and todo)):
        rows = made.shard_rows(shard)
        own = [record for record in records if record.view in rows]
        views = [view_layers(record) for record in own]
        none = np.zeros((0, config.pixels, config.pixels), np.float32)
        maps = {name: np.concatenate([none, *(view[name].values for view in views)]) for name in made.domains}
        kept = [_observed(config, record, field_arcsec, view) for record, view in zip(own, views, strict=True)]
        made.write_shard(shard, maps, kept, store.failures(shard))
    return made


def _observed(config: ObserveConfig, record: ViewRecord, field_arcsec: float, maps: Mapping[str, Maps]) -> ViewRecord:
    """The catalogue row with the side and redshift of the observation, and the flags of its own domains."""
    place = config.placement(record.galaxy, record.snapshot)
    flags = sum(1 << i for i, stack in enumerate(maps.values()) if not stack.values.any())
    return replace(record, side=place.kpc(field_arcsec), redshift=place.redshift, flags=flags)


@dataclass(frozen=True)
class _View:
    """One view to observe, whatever it comes from."""

    name: str
    number: int
    side: float
    place: Placement
    read: Callable[[], dict[str, NDArray[np.float32]]]


def _store_views(config: ObserveConfig) -> tuple[Observer, dict[str, Any], list[_View]]:
    store = MapStore(config.input)
    store.require_complete()
    observer = Observer(config, store.units)

    def view(record: ViewRecord) -> _View:
        place = config.placement(record.galaxy, record.snapshot)
        read = partial(_read_view, store, observer.domains, record.view)
        return _View(f"view{record.view:06d}", record.view, record.side, place, read)

    plan = {key: value for key, value in observer.plan(store).items() if key != "observed_from"}
    return observer, plan, [view(record) for record in store.records()]


def _read_view(store: MapStore, domains: Sequence[str], view: int) -> dict[str, NDArray[np.float32]]:
    return {domain: store.maps(domain, [view])[0] for domain in domains}


def _file_views(config: ObserveConfig) -> tuple[Observer, dict[str, Any], list[_View]]:
    stacks = read_maps(config.input)
    observer = Observer(config, {name: stack.unit for name, stack in stacks.items()})
    side = stacks[observer.domains[0]].side
    if side is None:
        raise SkyshiftError(f"{config.input}: the maps do not say how large they are in kpc (SIDEKPC, side_kpc)")

    def view(row: int) -> _View:
        read = partial(_read_rows, stacks, observer.domains, row)
        return _View(f"map{row:06d}", row, float(side[row]), config.placement(row, 0), read)

    digest = hashlib.sha256(Path(config.input).read_bytes()).hexdigest()
    return observer, {"fingerprint": digest, **observer.settings()}, [view(row) for row in range(len(side))]


def _read_rows(stacks: Mapping[str, Maps], domains: Sequence[str], row: int) -> dict[str, NDArray[np.float32]]:
    return {domain: stacks[domain].values[row] for domain in domains}


def observe_to_files(config: ObserveConfig) -> list[Path]:
    """Observe a store or a file into FITS files; those that are there already, of the same settings, are kept.

    Args:
        config: What to observe, with what, and where to write it.

    Returns:
        All the files, a view and band each.

    Raises:
        SkyshiftError: The folder holds something else, or a map has no size in kpc.
    """
    folder = Path(config.output)
    observer, plan, views = (_store_views if is_store(config.input) else _file_views)(config)
    mark = folder / "observe.json"
    if folder.exists() and (not mark.is_file() or json.loads(mark.read_text()) != plan):
        raise SkyshiftError(f"{folder} holds other files; choose another output or delete it")
    named = [f"light_{band}" if band else domain for band, domain in observer.targets.items()]
    written = []
    for view in tqdm(views, unit="view", desc=str(folder)):
        paths = [folder / f"{view.name}_{name}_{observer.survey.name}.fits" for name in named]
        written += paths
        if all(path.is_file() for path in paths):
            continue
        images = observer.observe(view.read(), view.side, view.place, view.number)
        if not mark.is_file():
            write_json(mark, plan)  # once it is known that these views can be observed
        for path, image in zip(paths, images, strict=True):
            image.write(path)
    return written


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    config, _ = parse(ObserveConfig, arguments, None, "Observe the maps of a store or a file with a survey.")
    source = config.input
    from_store = is_store(source)
    if not from_store and not Path(source).is_file():
        raise SkyshiftError(f"there is no {source} to observe (--input)")
    if not config.output.endswith(".zarr"):
        if config.include:
            raise SkyshiftError("only a store keeps simulated maps beside the observation; leave out --include")
        print(f"{config.output}: {len(observe_to_files(config))} FITS files")
        return
    if not from_store:
        raise SkyshiftError(
            f"{source} is a file: it has no catalogue for a store; name a folder for FITS files instead"
        )
    made = observe_store(config)
    named = ", ".join(f"{name} [{unit}]" for name, unit in made.units.items())
    print(f"{made.path}: {made.views} views of {named}, {made.pixels} pixels a side")
    simulated = np.asarray(MapStore(source).catalogue()["side"])
    wider = int((np.asarray(made.catalogue()["side"]) > 1.01 * simulated).sum())
    if wider:
        print(f"note: in {wider} views the field is wider than the simulated map, and empty beyond it")


if __name__ == "__main__":
    sys.exit(main())
