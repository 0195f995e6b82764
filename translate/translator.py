"""Inference: a checkpoint, physical maps in, physical maps out, with nothing else to know.

    translator = Translator.from_pretrained("runs/gas_to_hi")
    hi = translator(MapStore("data/synthetic/maps.zarr"))["hi"]      # Maps in Msun/kpc², float32

A checkpoint folder holds ``translation.json`` (domains, units, scalings, pixel scales, provenance), ``config.yaml``
(the whole configuration of the run), ``model.safetensors`` and ``average.safetensors``. No pickle is read, and only
classes of this package are made unless the caller trusts others.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from skyshift.checkpoint import CheckpointError, load_average, load_tensors
from skyshift.datasets.maps import MapError, Maps
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError
from skyshift.translate.any_to_any import planes
from skyshift.translate.conservation import ConserveConfig, conservation
from skyshift.translate.draws import Moments, Uncertain, draw_seeds, forgets, forgetting
from skyshift.translate.methods.base import Noise, TranslationMethod
from skyshift.translate.tiling import Tiling, blended, tiled
from skyshift.translate.translation import Translation, find_checkpoint, make_method

Precision = Literal["no", "bf16"]


class Translator:
    """Translates physical maps.

    Args:
        method: With its weights.
        translation: Domains, units and scalings.
        batch_size: Maps translated at once.
        precision: ``no`` (float32) or ``bf16``.
        calls: Network evaluations a map; by default the method's own number.
        seed: Of the draws of a method that draws.
        tiling: How maps larger than a tile are cut; by default they are translated whole.
        reverse: From target to source, where the method learns both ways.

    Raises:
        SkyshiftError: ``calls`` or the batch size is not positive, or tiles do not fit the networks.
    """

    def __init__(
        self,
        method: TranslationMethod,
        translation: Translation,
        *,
        batch_size: int = 32,
        precision: Precision = "no",
        calls: int | None = None,
        seed: int = 0,
        tiling: Tiling | None = None,
        reverse: bool = False,
    ) -> None:
        if batch_size < 1:
            raise SkyshiftError(f"batch_size is {batch_size}; at least one map is translated at once")
        if calls is not None:
            method._calls(calls)
        if reverse:
            translation = replace(translation, source=translation.target, target=translation.source)
        self.method, self.translation = method.eval(), translation
        self.batch_size, self.precision = batch_size, precision
        self.calls, self.seed, self.tiling, self.reverse = calls, seed, tiling or Tiling(), reverse
        self._warned = False
        self.device = next(method.parameters()).device

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device | None = None,
        batch_size: int = 32,
        precision: Precision = "no",
        calls: int | None = None,
        seed: int = 0,
        tiling: Tiling | None = None,
        reverse: bool = False,
        averaged: bool = True,
        trust_remote_code: bool = False,
        source: Sequence[str] = (),
        target: Sequence[str] = (),
    ) -> "Translator":
        """Load a checkpoint.

        Args:
            folder: A checkpoint, or a run (its best checkpoint is taken, or its last). It may lack its discriminators,
                which the method then has not (``None``).
            device: Where to run; by default the GPU where there is one.
            batch_size: Maps translated at once.
            precision: ``no`` (float32) or ``bf16``.
            calls: Network evaluations a map; by default the method's own number.
            seed: Of the draws of a method that draws.
            tiling: How maps larger than a tile are cut; by default they are translated whole.
            reverse: From target to source, where the method learns both ways.
            averaged: Take the averaged weights, where there are some.
            trust_remote_code: Allow the checkpoint to name classes from outside this package.
            source: Of a network between any domains, those to translate from: one or several.
            target: Those to translate to: one or several of the others.

        Raises:
            CheckpointError: There is none, or it is damaged, of a later version, or names foreign classes; or source
                and target are not chosen, unknown, or not what it was trained for.
        """
        folder = find_checkpoint(folder)
        translation = Translation.read(folder).choose(source, target)
        if reverse and translation.domains:
            raise CheckpointError(f"{folder} translates between any domains: choose source and target, not reverse")
        try:
            run = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            config = run["method"]
            config["class_path"]
            conserve = ConserveConfig(**(run.get("conserve") or {}))
        except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
            raise CheckpointError(f"{folder / 'config.yaml'} names no method ({error!r})") from None
        method = make_method(config, *translation.channels, trust_remote_code)
        method.conservation = conservation(conserve, translation.source, translation.target)
        try:
            weights = load_tensors(folder / "model.safetensors")[0]
            # What an export for inference may leave out, each as a whole:
            for name in (*method.discriminators, *method.training_only):
                if not any(key.startswith(f"{name}.") for key in weights):
                    setattr(method, name, None)
            method.load_state_dict(weights)
            if averaged:
                method.load_state_dict(load_average(folder), strict=False)  # of the averaged players alone
        except RuntimeError as error:
            raise CheckpointError(f"{folder}: the weights do not fit the networks of config.yaml: {error}") from None
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(
            method.to(device),
            translation,
            batch_size=batch_size,
            precision=precision,
            calls=calls,
            seed=seed,
            tiling=tiling,
            reverse=reverse,
        )

    @property
    def source(self) -> tuple[str, ...]:
        """Domains in."""
        return tuple(channel.domain for channel in self.translation.source)

    @property
    def target(self) -> tuple[str, ...]:
        """Domains out."""
        return tuple(channel.domain for channel in self.translation.target)

    def __call__(
        self,
        maps: Maps | Mapping[str, Maps] | MapStore | NDArray[np.floating],
        views: Sequence[int] | NDArray[np.integer] | None = None,
    ) -> dict[str, Maps]:
        """Translate.

        Args:
            maps: Maps of the one source domain, domain to maps, a store, or a bare array (n, height, width) or
                (height, width) of the one source domain in the checkpoint's unit.
            views: Of a store, which; by default all.

        Returns:
            Target domain to its maps, float32, in the checkpoint's units, with extents, names and FITS cards of the
            source carried over.

        Raises:
            MapError: Other domains than the checkpoint's, units that cannot be converted, sizes that differ, or values
                that are not finite.
        """
        source = self._collect(maps, views)
        return self._maps(source, self._translate(_stacked(source), _keys(maps, views, len(source[0]))))

    @property
    def draws_differ(self) -> bool:
        """Whether several draws of one map differ: the method draws, or its networks hold dropout."""
        return self.method.stochastic or forgets(self.method)

    def draws(
        self,
        maps: Maps | Mapping[str, Maps] | MapStore | NDArray[np.floating],
        n: int,
        views: Sequence[int] | NDArray[np.integer] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Several translations of each map.

        Args:
            maps: As for one translation.
            n: How many.
            views: Of a store, which; by default all.

        Returns:
            Target domain to (n, maps, height, width) in the checkpoint's units. The first is what a call gives, but
            for dropout, which only draws have.

        Raises:
            SkyshiftError: ``n`` is not positive, or draws would all be the same.
            MapError: As for one translation.
        """
        drawn = [{domain: stack.values for domain, stack in one.items()} for one in self.each_draw(maps, n, views)]
        return {domain: np.stack([one[domain] for one in drawn]) for domain in self.target}

    def uncertainty(
        self,
        maps: Maps | Mapping[str, Maps] | MapStore | NDArray[np.floating],
        draws: int = 16,
        views: Sequence[int] | NDArray[np.integer] | None = None,
    ) -> dict[str, Uncertain]:
        """Mean and standard deviation of several translations of each map; memory does not grow with their number.

        Args:
            maps: As for one translation.
            draws: How many, at least two.
            views: Of a store, which; by default all.

        Raises:
            SkyshiftError: There are fewer than two, or draws would all be the same.
            MapError: As for one translation.
        """
        if draws < 2:
            raise SkyshiftError(f"a standard deviation needs at least two draws, not {draws}")
        return summed_up(self.each_draw(maps, draws, views))

    def each_draw(self, maps: Any, n: int, views: Any = None, first: int = 0) -> Iterator[dict[str, Maps]]:
        """The draws number ``first`` to ``first + n - 1``, one after another, as :meth:`draws` describes them."""
        if n < 1:
            raise SkyshiftError(f"at least one draw can be asked for, not {n}")
        if n > 1 and not self.draws_differ:
            raise SkyshiftError(
                f"{type(self.method).__name__} gives one translation of a map: {n} draws would be the same. Take a "
                "method that draws (diffusion, bridge, flow, vae), train its network with dropout, or several runs of "
                "other seeds as an ensemble (skyshift.translate.ensemble)"
            )
        if n > 1 and not self.method.stochastic and self.tiling.tile:
            raise SkyshiftError(
                "dropout forgets other values in each tile, which would make seams: draw whole maps (tile 0), or take "
                "a method that draws"
            )
        source = self._collect(maps, views)
        stack, keys = _stacked(source), _keys(maps, views, len(source[0]))
        for draw in range(first, first + n):
            yield self._maps(
                source, self._translate(stack, keys, draw, forget=not (self.method.stochastic or self.tiling.tile))
            )

    def _maps(self, source: list[Maps], estimates: NDArray[np.float64]) -> dict[str, Maps]:
        """Scaled targets as physical maps that carry over what the source says of itself."""
        first = source[0]
        return {
            channel.domain: replace(
                first,
                values=channel.physical(estimates[:, i]),
                domain=channel.domain,
                unit=channel.unit,
                provenance=f"translated from {', '.join(self.source)} ({first.provenance})",
            )
            for i, channel in enumerate(self.translation.target)
        }

    def _collect(self, maps: Any, views: Any) -> list[Maps]:
        """The source maps in the checkpoint's order and units, checked."""
        if isinstance(maps, MapStore):
            maps = store_maps(maps, self.source, views)
        elif isinstance(maps, Maps):
            maps = {maps.domain: maps}
        elif isinstance(maps, np.ndarray):
            if maps.ndim not in (2, 3):
                raise MapError(f"maps have shape (n, height, width) or (height, width), not {maps.shape}")
            values = np.asarray(maps, np.float32).reshape(-1, *maps.shape[-2:])
            if len(self.source) != 1:
                raise MapError(f"this checkpoint takes {len(self.source)} domains; give them by name")
            maps = {self.source[0]: Maps(values, self.source[0], self.translation.source[0].unit)}
        stacks: list[Maps] = []
        for channel in self.translation.source:
            if channel.domain not in maps:
                raise MapError(
                    f"the checkpoint translates {', '.join(self.source)} to {', '.join(self.target)}, the maps given "
                    f"are of {', '.join(maps)}; '{channel.domain}' is not among them"
                )
            stack = maps[channel.domain].to(channel.unit)
            stack.require_finite()
            if stacks and stack.values.shape != stacks[0].values.shape:
                raise MapError(
                    f"maps of {channel.domain} have shape {stack.values.shape}, of {stacks[0].domain} "
                    f"{stacks[0].values.shape}"
                )
            stacks.append(stack)
        self._compare_scale(stacks[0])
        return stacks

    def _compare_scale(self, maps: Maps) -> None:
        """Warn of pixels far larger or smaller than those the network has seen."""
        if maps.side is None or not len(maps):
            return
        scale = maps.side / maps.values.shape[-1]
        low, high = self.translation.pixel_scale
        outside = (scale < low / 2) | (scale > high * 2)
        if outside.any() and not self._warned:
            self._warned = True  # once, not for every shard of a store
            warnings.warn(
                f"{outside.sum()} of {len(maps)} maps have pixels of {scale.min():.3g} to {scale.max():.3g} kpc; the "
                f"checkpoint was trained on {low:.3g} to {high:.3g} kpc per pixel",
                stacklevel=4,
            )

    @torch.no_grad()
    def _translate(
        self, source: NDArray[np.float32], keys: Sequence[int], draw: int = 0, *, forget: bool = False
    ) -> NDArray[np.float64]:
        """Physical (n, channels, h, w) to scaled targets, one draw of each."""
        scaled = [c.scaling.forward(source[:, i]) for i, c in enumerate(self.translation.source)]
        tensor = torch.from_numpy(np.stack(scaled, axis=1).astype(np.float32))
        seeds = draw_seeds(self.seed, draw, keys)
        if not self.translation.domains:
            return self._batches(tensor, seeds, len(self.translation.target), forget=forget)
        every = [channel.domain for channel in self.translation.domains]
        given = [every.index(domain) for domain in self.source]
        parts = [  # each target with the random numbers that it has alone
            self._batches(tensor, seeds, 1, partial(planes, present=given, wanted=number, domains=len(every)), forget)
            for number in (every.index(domain) for domain in self.target)
        ]
        return np.concatenate(parts, axis=1)

    def _batches(
        self,
        tensor: torch.Tensor,
        seeds: Sequence[int],
        targets: int,
        encode: Callable[[torch.Tensor], torch.Tensor] = lambda batch: batch,
        forget: bool = False,
    ) -> NDArray[np.float64]:
        """Scaled maps, one batch after another."""
        parts = []
        for start in range(0, len(tensor), self.batch_size):
            batch = encode(tensor[start : start + self.batch_size].to(self.device))
            noise = Noise(seeds[start : start + self.batch_size], self.device)
            autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
            with autocast, forgetting(self.method, noise) if forget else nullcontext():
                parts.append(self._one(batch, noise, seeds[start : start + self.batch_size]).float().cpu())
        shape = (0, targets, *tensor.shape[-2:])
        return (torch.cat(parts) if parts else torch.zeros(shape)).numpy().astype(np.float64)

    def _one(self, batch: torch.Tensor, noise: Noise, seeds: Sequence[int]) -> torch.Tensor:
        """One batch, whole or in tiles."""
        act = self.method.translate_back if self.reverse else self.method.translate
        height, width = batch.shape[-2:]
        if not self.tiling.tile:
            return act(batch, noise=noise, calls=self.calls)
        self.tiling.require_fits(height, width)
        if self.method.local_networks:
            with tiled(self.method, self.tiling):
                return act(batch, noise=noise, calls=self.calls)

        def of_tile(x: torch.Tensor, number: int) -> torch.Tensor:
            return act(x, noise=Noise(draw_seeds(number, 0, seeds), self.device), calls=self.calls)

        kept, self.method.conservation = self.method.conservation, None  # of whole maps, not of each tile
        try:
            whole = blended(of_tile, batch, self.tiling)
        finally:
            self.method.conservation = kept
        return self.method.finish(batch, whole)


def _stacked(source: Sequence[Maps]) -> NDArray[np.float32]:
    """(n, channels, h, w)."""
    return np.stack([stack.values for stack in source], axis=1)


def _keys(maps: Any, views: Any, n: int) -> list[int]:
    """What tells maps apart for their random numbers: the views of a store, else their places."""
    if not isinstance(maps, MapStore):
        return list(range(n))
    return [int(view) for view in (maps.catalogue()["view"] if views is None else views)]


def summed_up(draws: Iterator[dict[str, Maps]]) -> dict[str, Uncertain]:
    """Mean and standard deviation of draws that come one after another."""
    moments: dict[str, Moments] = {}
    last: dict[str, Maps] = {}
    for last in draws:
        for domain, stack in last.items():
            moments.setdefault(domain, Moments()).add(stack.values)
    return {
        domain: Uncertain(
            replace(stack, values=moments[domain].mean.astype(np.float32)),
            replace(stack, values=moments[domain].sigma.astype(np.float32)),
            moments[domain].count,
        )
        for domain, stack in last.items()
    }


def store_maps(
    store: MapStore, domains: Sequence[str], views: Sequence[int] | NDArray[np.integer] | None = None
) -> dict[str, Maps]:
    """Maps of a store with their units, sides and names.

    Raises:
        StoreError: A domain is missing.
        MapError: A view is not in the catalogue yet.
    """
    store.require_domains(domains)
    catalogue = store.catalogue()
    wanted = np.asarray(catalogue["view"] if views is None else views, np.int64)
    rows = np.searchsorted(np.asarray(catalogue["view"]), wanted)
    if len(wanted) and (rows.max(initial=0) >= len(catalogue) or (catalogue["view"][rows] != wanted).any()):
        raise MapError(f"{store.path}: some of the views asked for are not built yet")
    side = np.asarray(catalogue["side"][rows], np.float64)
    names = tuple(f"{name} view {view}" for name, view in zip(catalogue["name"][rows], wanted, strict=True))
    return {
        domain: Maps(store.maps(domain, wanted), domain, store.units[domain], side, names, provenance=str(store.path))
        for domain in domains
    }
