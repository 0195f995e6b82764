"""Command: build a store of maps from a simulation.

    python datasets/build.py --config configs/datasets/synthetic.yaml
    python datasets/build.py --config my.yaml --pixels 128 --workers 8
    python datasets/build.py --config my.yaml --store s3://bucket/maps.zarr

A build may be interrupted at any moment, and any of its workers may die: shards that are done are kept and skipped the
next time, and a shard is done or not there. Several builds of one store at once share the work. A galaxy that cannot be
built is left out and written down in the store's ``failures.json`` with its reason; the command then says so and ends
with status 0, unless more than ``max_failed_share`` of the galaxies failed (status 1, and the next run tries them
again). ``--retry_failed true`` tries the left out ones again, ``--verify true`` compares all shards with their hashes
and builds damaged ones again.

On a cluster, start a Dask scheduler and workers that see the same files (absolute paths), and name the scheduler:

    dask scheduler --port 8786 &
    srun --ntasks 64 dask worker tcp://$(hostname):8786 --nthreads 1 &
    python datasets/build.py --config my.yaml --scheduler tcp://$(hostname):8786

or let dask-jobqueue (pip install dask-jobqueue) ask Slurm for the workers, from a script that stays on the login node:

    from dask_jobqueue import SLURMCluster
    from skyshift.datasets.build import main

    if __name__ == "__main__":
        cluster = SLURMCluster(queue="normal", cores=16, processes=16, memory="64GB", walltime="12:00:00")
        cluster.adapt(maximum_jobs=32)  # workers that Slurm stops are replaced, their shards built again
        main(["--config", "my.yaml", "--scheduler", cluster.scheduler_address])
"""

import skyshift  # isort: skip  # noqa: F401 - sets OpenMP's waiting before torch is imported

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from skyshift.command import command, parse, shipped_config
from skyshift.datasets.claims import Claims, new_builder
from skyshift.datasets.domains import get_domain
from skyshift.datasets.failures import Failures
from skyshift.datasets.shards import BuildConfig, Outcome, build_shard, for_other_machines
from skyshift.datasets.sources import GalaxySource, Item, SyntheticSource
from skyshift.datasets.store import MapStore, StoreError, is_store, shard_size
from skyshift.errors import SkyshiftError
from skyshift.files import has_file, remove_tree, write_json
from skyshift.naming import unknown

DEFAULT_CONFIG = "datasets/synthetic.yaml"

POLL = 1.0
"""Seconds between two looks at the shards that another build is at."""


def _open_or_create(config: BuildConfig, items: Sequence[Item]) -> MapStore:
    plan = config.plan(len(items))
    if not is_store(config.store):
        views = len(items) * config.rotations
        try:
            return MapStore.create(
                config.store,
                units={name: get_domain(name).unit for name in config.domains},
                views=views,
                pixels=config.pixels,
                shard_views=shard_size(views, config.rotations, config.pixels, len(config.domains)),
                labels=config.source.labels(),
                plan=plan,
            )
        except StoreError:
            if not is_store(config.store):  # else another build made it just now
                raise
    store = MapStore(config.store)
    different = [key for key in {**store.plan, **plan} if store.plan.get(key) != plan.get(key)]
    if different and not store.done_shards() and not store.pending_shards():
        remove_tree(store.path)  # a plan of which nothing was built: its first galaxy could not be read
        return _open_or_create(config, items)
    if different:
        key = different[0]
        raise StoreError(
            f"{config.store} was built with {key} = {store.plan.get(key)}, this configuration says {plan.get(key)}; "
            "choose another store or delete this one"
        )
    return store


def build_store(config: BuildConfig, *, progress: bool = True) -> MapStore:
    """Build what is missing of a store.

    Args:
        config: What to build.
        progress: Show a progress bar with an estimate of the end.

    Returns:
        The store, whole. Galaxies that could not be built are listed by its ``failures()``, and on standard error.

    Raises:
        SkyshiftError: A galaxy cannot be built and ``skip_failed`` is false, or the scheduler or the object storage
            does not answer.
        StoreError: The store at that path is another one, the disk is full, or too many galaxies failed.
    """
    if config.store.startswith("memory:") and (config.workers > 1 or config.scheduler):
        raise StoreError(f"{config.store}: memory:// is seen by this process alone; build with --workers 1")
    if isinstance(config.source, SyntheticSource):
        config.source.prepare(config.workers)
    items = config.source.items()
    store = _open_or_create(config, items)
    if config.verify:
        for shard in store.verify():
            store.forget(shard)
    failures = Failures(store, len(items), config.max_failed_share)
    if config.retry_failed or failures.too_many:  # a build that was refused is tried again
        for shard in failures.shards:
            store.forget(shard)
            failures.forget(shard)
    pending = store.pending_shards()
    todo = sorted(set(range(store.shards)) - set(store.done_shards()) - set(pending))
    done = store.views - sum(len(store.shard_rows(shard)) for shard in todo)
    bar = tqdm(
        total=store.views,
        initial=done,
        unit="map",
        desc=str(store.path),
        disable=not (progress and todo),
        smoothing=0.1,
    )

    def note(outcome: Outcome) -> None:
        bar.update(outcome.views)
        failures.add(outcome.shard, outcome.failures, outcome.views)

    with bar:
        if todo:
            _build(config, items, store, todo, note)
    if todo or pending or not has_file(store.path / "manifest.json"):
        for shard in store.pending_shards():
            store.accept(shard)
        failures.write()
        write_json(store.path / "manifest.json", store.manifest())
    failures.tell()
    return store


def _build(
    config: BuildConfig,
    items: Sequence[Item],
    store: MapStore,
    todo: Sequence[int],
    note: Callable[[Outcome], None],
) -> None:
    """Build shards, sharing the work with other builds of the same store, until none is missing."""
    claims = Claims(store.path, new_builder())

    def galaxies(shard: int) -> Sequence[Item]:
        rows = store.shard_rows(shard)
        return items[rows.start // config.rotations : rows.stop // config.rotations]

    cut_off = 0
    with claims.alive():
        while todo:
            if cut_off or config.scheduler or (config.workers > 1 and len(todo) > 1):
                elsewhere, lost = _on_workers(config, galaxies, todo, claims.builder, note)
                cut_off += bool(lost)
                if cut_off > config.retries:
                    raise StoreError(
                        f"{config.store}: the scheduler lost {len(lost)} shards, which are not built; those that are "
                        "done are kept, run the build again"
                    )
                elsewhere += lost
            else:
                elsewhere = []
                for shard in todo:
                    outcome = build_shard(config, galaxies(shard), shard, claims.builder)
                    note(outcome) if outcome.views else elsewhere.append(shard)
            while any(claims.held_by_another(shard) for shard in elsewhere):
                time.sleep(POLL)
            todo = [shard for shard in elsewhere if not (store.is_done(shard) or store.is_pending(shard))]
            for shard in set(elsewhere) - set(todo):
                note(Outcome(shard, len(store.shard_rows(shard)), store.part(shard).failures))


def _on_workers(
    config: BuildConfig,
    galaxies: Callable[[int], Sequence[Item]],
    todo: Sequence[int],
    builder: str,
    note: Callable[[Outcome], None],
) -> tuple[list[int], list[int]]:
    """Build shards on the workers of a cluster.

    Returns:
        Shards that another build is at, and those that the scheduler gave up without a result: to be tried again.
    """
    # Imported here: it takes half a second that a build in this process can do without.
    from distributed import KilledWorker, as_completed

    from skyshift.datasets.cluster import connect

    if config.scheduler:
        config = for_other_machines(config)
    elsewhere, killed, lost, dead = [], [], [], 0
    with connect(config.scheduler, min(config.workers, len(todo)), config.retries) as client:
        started = set(client.nthreads())
        futures = {
            client.submit(build_shard, config, galaxies(shard), shard, builder, key=f"{builder}-{shard}"): shard
            for shard in todo
        }
        for future in as_completed(list(futures), loop=client.loop):
            shard = futures[future]
            if future.status == "finished":
                outcome = future.result()
                note(outcome) if outcome.views else elsewhere.append(shard)
            elif future.status == "error" and isinstance(future.exception(), KilledWorker):
                killed.append(shard)
            elif future.status == "error":
                error = future.exception()
                client.cancel(list(futures))
                raise error
            else:
                lost.append(shard)
        dead = len(started - set(client.nthreads()))
    if dead and not config.scheduler:
        print(f"{dead} of {len(started)} workers died; their shards were built again by others", file=sys.stderr)
    if killed:
        raise StoreError(
            f"{config.store}: shard {killed[0]} (galaxies {[item.number for item in galaxies(killed[0])]}) killed its "
            "worker each time it was tried, most likely for want of memory; all other shards are kept. Build with "
            "fewer workers or smaller chunk_particles, or leave the galaxy out"
        )
    return elsewhere, lost


def ensure_store(store: str, build: str, domains: Sequence[str], key: str) -> None:
    """Build a store where it is not there or not whole; on several processes one builds and the others wait.

    Args:
        store: Folder.
        build: Configuration: a file, or the name of one that ships with the package (``datasets/synthetic.yaml``).
        domains: Those that it must make.
        key: Of the configuration that asks, for messages.

    Raises:
        SkyshiftError: There is no such configuration, or it makes no such maps.
    """
    from skyshift.launch import launch_state  # imports torch, which workers of a build do without

    launch = launch_state()
    with launch.main_process_first():
        try:
            if MapStore(store).complete:
                return
        except SkyshiftError:
            pass
        path = Path(build) if Path(build).is_file() else shipped_config(build)
        if not path.is_file():
            raise SkyshiftError(f"{key}: there is no file {build}, nor a shipped configuration of that name")
        config, _ = parse(BuildConfig, ["--config", str(path), "--store", store], None, key, (GalaxySource,))
        for name in domains:
            if name not in config.domains:
                raise SkyshiftError(f"{build} builds no such maps: {unknown('domain', name, config.domains)}")
        if launch.is_main_process:
            print(f"{store} is not there or not whole: building it from {path}", flush=True)
        build_store(config)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    config, _ = parse(
        BuildConfig, arguments, DEFAULT_CONFIG, "Build a store of maps from a simulation.", (GalaxySource,)
    )
    store = build_store(config)
    print(f"{store.path}: {len(store.catalogue())} views of {', '.join(store.domains)}, {store.pixels} pixels a side")


if __name__ == "__main__":
    sys.exit(main())
