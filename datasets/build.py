"""Command: build a store of maps from a simulation.

    python datasets/build.py --config configs/datasets/synthetic.yaml
    python datasets/build.py --config my.yaml --pixels 128 --workers 8

A build may be interrupted at any moment: shards that are done are skipped the next time, and a shard is done or not
there.
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from skyshift.command import command, parse
from skyshift.datasets.domains import get_domain
from skyshift.datasets.shards import BuildConfig, build_shard
from skyshift.datasets.sources import GalaxySource, Item, SyntheticSource
from skyshift.datasets.store import MapStore, StoreError, shard_size

DEFAULT_CONFIG = "datasets/synthetic.yaml"


def plan_of(config: BuildConfig, items: Sequence[Item]) -> dict[str, Any]:
    """All that decides what the maps of a store are; where it stands and who builds it does not."""
    plan = {k: v for k, v in asdict(config).items() if k not in ("source", "store", "workers")}
    return {
        "source": f"{type(config.source).__name__}",
        "settings": {
            # A mapping is the same in any order.
            k: str(dict(sorted(v.items())) if isinstance(v, dict) else v)
            for k, v in vars(config.source).items()
            if not k.startswith("_")
        },
        "galaxies": len(items),
        **plan,
    }


def _open_or_create(config: BuildConfig, items: Sequence[Item]) -> MapStore:
    plan = plan_of(config, items)
    if not (Path(config.store) / "zarr.json").is_file():
        views = len(items) * config.rotations
        return MapStore.create(
            config.store,
            units={name: get_domain(name).unit for name in config.domains},
            views=views,
            pixels=config.pixels,
            shard_views=shard_size(views, config.rotations),
            labels=config.source.labels(),
            plan=plan,
        )
    store = MapStore(config.store)
    different = [key for key in plan if store.plan.get(key) != plan[key]]
    if different and not any(store.is_done(shard) for shard in range(store.shards)):
        shutil.rmtree(store.path)  # a plan of which nothing was built: its first galaxy could not be read
        return _open_or_create(config, items)
    if different:
        key = different[0]
        raise StoreError(
            f"{config.store} was built with {key} = {store.plan.get(key)}, this configuration says {plan[key]}; "
            "choose another store or delete this one"
        )
    return store


def build_store(config: BuildConfig, *, progress: bool = True) -> MapStore:
    """Build what is missing of a store.

    Args:
        config: What to build.
        progress: Show a progress bar.

    Returns:
        The store, whole.

    Raises:
        SnapshotError: A galaxy cannot be read.
        GalaxyError: Its particles are not physical, or too few.
        StoreError: The store at that path is another one.
    """
    if isinstance(config.source, SyntheticSource):
        config.source.prepare(config.workers)
    items = config.source.items()
    store = _open_or_create(config, items)
    todo = [shard for shard in range(store.shards) if not store.is_done(shard)]
    bar = tqdm(total=store.views, unit="map", desc=str(store.path), disable=not (progress and todo))
    bar.update(store.views - sum(len(store.shard_rows(shard)) for shard in todo))
    with bar:
        if config.workers == 1 or len(todo) < 2:
            for shard in todo:
                bar.update(build_shard(config, items, shard))
        else:
            _build_in_parallel(config, items, todo, bar)
    return store


def _build_in_parallel(config: BuildConfig, items: Sequence[Item], todo: Sequence[int], bar: Any) -> None:
    with ProcessPoolExecutor(min(config.workers, len(todo)), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(build_shard, config, items, shard) for shard in todo]
        for future in futures:
            future.add_done_callback(lambda f: None if f.cancelled() or f.exception() else bar.update(f.result()))
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BrokenProcessPool as error:
            raise StoreError(
                f"{config.store}: a worker was killed, most likely for want of memory; shards that are done are kept, "
                "run the build again with fewer workers"
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    config, _ = parse(
        BuildConfig, arguments, DEFAULT_CONFIG, "Build a store of maps from a simulation.", (GalaxySource,)
    )
    store = build_store(config)
    print(f"{store.path}: {store.views} views of {', '.join(store.domains)}, {store.pixels} pixels a side")


if __name__ == "__main__":
    sys.exit(main())
