"""The work of an evaluation: maps translated and measured, shared over processes.

Views are cut into chunks of a fixed size. A chunk is translated as one batch and measured whole by one process, and the
main process puts the chunks together in their order. So which process did what leaves no trace: the numbers of many
processes are those of one, bit for bit, as long as each computes with the same number of threads on the same kind of
device (both decide the last digits of a convolution).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn

from skyshift.datasets.loading import FIT_VIEWS
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError
from skyshift.translate.baselines import Relation, simple_relations
from skyshift.translate.evaluation_scores import AXES, Yardstick, curves, measure, physical_features, totals
from skyshift.translate.metric_rows import PRETRAINED
from skyshift.translate.metrics.calibration import calibrate
from skyshift.translate.metrics.pretrained import (
    NETWORKS,
    Features,
    WeightsError,
    perceptual_distance,
    perceptual_network,
    stretched,
)
from skyshift.translate.translation import Channel, find_checkpoint
from skyshift.translate.translator import Translator, store_maps

Values = NDArray[np.float64]
Views = NDArray[np.int64]


def method_name(checkpoint: Path) -> str:
    """Of a checkpoint's method, in small letters."""
    config = yaml.safe_load((checkpoint / "config.yaml").read_text(encoding="utf-8"))
    return str(config["method"]["class_path"]).rpartition(".")[2].lower()


def run_name(checkpoint: Path) -> str:
    """Of the folder of a checkpoint's run."""
    return (checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint).name


@dataclass(frozen=True)
class Networks:
    """The pretrained networks of an evaluation, those that it needs.

    Attributes:
        perceptual: Of LPIPS.
        features: Of Fréchet and kernel distances.
        labels: Row to a title that names its network.
        missing: What is left out, and why.
    """

    perceptual: nn.Module | None = None
    features: Features | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @classmethod
    def load(
        cls, metrics: Sequence[str], insisted: frozenset[str], weights: str, perceptual: str, features: str
    ) -> "Networks":
        """Load what the rows need.

        Args:
            metrics: Rows that are wanted.
            insisted: Those of them that are not to be left out.
            weights: Folder to look in first.
            perceptual: Network of LPIPS.
            features: Network of Fréchet and kernel distances.

        Raises:
            WeightsError: Weights of a row in ``insisted`` are not there.
        """
        found: dict[str, Any] = {}
        labels = {}
        missing = []
        title = NETWORKS[features].title
        inception = features == "inception"
        names = {
            "lpips": f"LPIPS ({NETWORKS[perceptual].title})",
            "frechet": f"FID ({title})" if inception else f"Fréchet distance ({title})",
            "kernel": f"KID ({title})" if inception else f"kernel distance ({title})",
        }
        for part, rows in (("perceptual", PRETRAINED[:1]), ("features", PRETRAINED[1:])):
            asked = [row for row in rows if row in metrics]
            if not asked:
                continue
            try:
                made: nn.Module = (
                    perceptual_network(perceptual, weights) if part == "perceptual" else Features(features, weights)
                )
            except WeightsError as error:
                if insisted.intersection(asked):
                    raise
                missing.append(f"Left out: {', '.join(names[row] for row in asked)}: {error}.")
                continue
            found[part] = made
            labels.update({row: names[row] for row in asked})
        return cls(**found, labels=labels, missing=tuple(missing))


def competitors(checkpoint: Path, translator: Translator, others: Mapping[Path, Translator]) -> dict[str, Translator]:
    """Name in the table to translator, the judged one first; runs of one method are told apart by their folder.

    Raises:
        SkyshiftError: Another checkpoint translates other domains.
    """
    for folder, other in others.items():
        if set(other.source) != set(translator.source) or not set(translator.target) <= set(other.target):
            raise SkyshiftError(
                f"{folder} translates {', '.join(other.source)} to {', '.join(other.target)}, {checkpoint} "
                f"{', '.join(translator.source)} to {', '.join(translator.target)}; they cannot be compared"
            )
    every = {checkpoint: translator, **others}
    methods = [method_name(folder) for folder in every]
    named: dict[str, Translator] = {}
    for (folder, one), method in zip(every.items(), methods, strict=True):
        name = method if methods.count(method) == 1 else f"{method} ({run_name(folder)})"
        while name in named:
            name += "'"
        named[name] = one
    return named


@dataclass
class Judge:
    """Measures chunks of views.

    Attributes:
        store: Of the true maps.
        translators: Name to translator, the judged one first.
        train: Views that yardsticks and trivial relations are fitted on, sorted, some of them where there are many.
        metrics: Rows that are wanted.
        networks: Pretrained.
        draws: Of stochastic translators; below 2 for none.
    """

    store: MapStore
    translators: Mapping[str, Translator]
    train: Views
    metrics: Sequence[str]
    networks: Networks
    draws: Mapping[str, int]

    def __post_init__(self) -> None:
        self.train = np.sort(np.random.default_rng(0).permutation(self.train)[:FIT_VIEWS])

    @property
    def main(self) -> Translator:
        """The judged translator."""
        return next(iter(self.translators.values()))

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Target channels."""
        return self.main.translation.target

    @cached_property
    def side(self) -> Values:
        """Of every view in the catalogue, in kpc."""
        return np.asarray(self.store.catalogue()["side"], np.float64)

    def rows(self, views: Views) -> Views:
        """Places of views in the catalogue."""
        return np.asarray(np.searchsorted(self.store.catalogue()["view"], views), np.int64)

    def truth(self, channel: Channel, views: Views) -> NDArray[np.float32]:
        """True maps in the checkpoint's unit: a store may hold them in another."""
        return store_maps(self.store, [channel.domain], views)[channel.domain].to(channel.unit).values

    @cached_property
    def _fitted(self) -> dict[str, tuple[Yardstick, dict[tuple[str, str], Relation]]]:
        """Target domain to its yardstick and (source domain, name) to relation, from the training maps."""
        found = {}
        sources = {name: self.store.maps(name, self.train) for name in self.main.source}
        for channel in self.channels:
            target = self.truth(channel, self.train)
            relations = {
                (domain, name): relation
                for domain, maps in sources.items()
                for name, relation in simple_relations(maps, target, self.store.units[domain], channel.unit).items()
            }
            found[channel.domain] = (Yardstick.fit(target, self.side[self.rows(self.train)]), relations)
        return found

    def yardstick(self, domain: str) -> Yardstick:
        """Of a target domain."""
        return self._fitted[domain][0]

    def _estimates(self, channel: Channel, views: Views, translated: Mapping[str, Any]) -> dict[str, Any]:
        """Name to maps, the judged translator's first."""
        found = {name: maps[channel.domain].to(channel.unit).values for name, maps in translated.items()}
        several = len(self.main.source) > 1
        for (domain, name), relation in self._fitted[channel.domain][1].items():
            found[f"{name} of {domain}" if several else name] = relation(self.store.maps(domain, views))
        return found

    def chunk(self, views: Views) -> dict[str, Any]:
        """Everything that is measured on some views: per map, so that chunks can be joined (:func:`joined`).

        Raises:
            SkyshiftError: A translation is not finite: left out, it would flatter the mean over the others.
        """
        translated = {name: one(self.store, views) for name, one in self.translators.items()}
        drawn = {
            name: one.draws(self.store, self.draws[name], views)
            for name, one in self.translators.items()
            if self.draws.get(name, 0) > 1
        }
        for name, maps in translated.items():
            for domain in self.main.target:
                for found in (maps[domain].values[None], drawn.get(name, {}).get(domain)):
                    _require_finite(name, domain, found, maps[domain].names)
        side = self.side[self.rows(views)]
        return {channel.domain: self._domain(channel, views, side, translated, drawn) for channel in self.channels}

    def _domain(
        self, channel: Channel, views: Views, side: Values, translated: Mapping[str, Any], drawn: Mapping[str, Any]
    ) -> dict[str, Any]:
        truth, yardstick = self.truth(channel, views), self.yardstick(channel.domain)
        estimates = self._estimates(channel, views, translated)
        scores = {name: measure(truth, maps, side, yardstick) for name, maps in estimates.items()}
        lit = ~yardstick.faint(totals(np.abs(truth), side))
        found: dict[str, Any] = {
            "scores": scores,
            "lit": lit,
            "curves": {name: curves(truth[lit], maps[lit], yardstick) for name, maps in estimates.items()},
            "features": self._features(channel, truth, estimates, yardstick),
            "calibration": {},
        }
        images = self._perceptual(channel, truth, estimates, lit)
        for name, values in images.items():
            scores[name]["lpips"] = values
        for name, maps in drawn.items():
            rows, curve = calibrate(truth, maps[channel.domain], lit, views, yardstick.data_range)
            scores[name].update(rows)
            found["calibration"][name] = curve
        return found

    def _images(self, channel: Channel, maps: NDArray[np.float32]) -> Tensor:
        return stretched(maps, channel.scaling, channel.minimum < 0).to(self.main.device)

    def _perceptual(
        self, channel: Channel, truth: NDArray[np.float32], estimates: Mapping[str, Any], lit: NDArray[np.bool_]
    ) -> dict[str, Values]:
        model = self.networks.perceptual
        if model is None:
            return {}
        model = model.to(self.main.device)
        images = self._images(channel, truth)
        values = {n: perceptual_distance(model, images, self._images(channel, m)) for n, m in estimates.items()}
        return {name: np.where(lit, found, np.nan) for name, found in values.items()}

    def _features(
        self, channel: Channel, truth: NDArray[np.float32], estimates: Mapping[str, Any], yardstick: Yardstick
    ) -> dict[str, dict[str, Values]]:
        found: dict[str, dict[str, Values]] = {}
        every = {"truth": truth, **estimates}
        if (network := self.networks.features) is not None:
            network = network.to(self.main.device)
            found["network"] = {
                name: network(self._images(channel, maps)).double().cpu().numpy() for name, maps in every.items()
            }
        if {"c2st", "c2st_p"}.intersection(self.metrics):
            found["physical"] = {name: physical_features(maps, yardstick) for name, maps in every.items()}
        return found


def _require_finite(
    translator: str, domain: str, draws: NDArray[np.floating] | None, names: Sequence[str] | None
) -> None:
    """Refuse draws (draws, n, height, width) that hold NaN or infinity."""
    if draws is None:
        return
    wrong = np.flatnonzero(~np.isfinite(draws).all(axis=(0, 2, 3)))
    if len(wrong):
        some = ", ".join(names[i] if names else f"map {i}" for i in wrong[:3])
        raise SkyshiftError(
            f"{translator} makes maps of {domain} with NaN or infinity: {len(wrong)} of a chunk, {some}. They cannot "
            "be judged; take --precision no, another checkpoint of the run, or fewer --calls"
        )


def joined(parts: Sequence[Any], name: str = "") -> Any:
    """Chunks put together: arrays joined along their first axis, but for axes, which all of them share."""
    first = parts[0]
    if isinstance(first, Mapping):
        return {key: joined([part[key] for part in parts], key) for key in first}
    return first if name in AXES else np.concatenate(parts)


def shared_work(judge: Judge, views: Views, size: int, state: PartialState | None) -> dict[str, Any]:
    """Measure all views, by the processes of a launch together where there is one.

    Args:
        judge: Measures.
        views: All of them.
        size: Of a chunk.
        state: The launch, or ``None`` to work alone whatever the launch.

    Returns:
        The same on every process.

    Raises:
        SkyshiftError: A map of any process cannot be judged; every process raises it, so that none waits.
    """
    chunks = [views[start : start + size] for start in range(0, len(views), size)]
    process, processes = (state.process_index, state.num_processes) if state else (0, 1)
    done: list[tuple[int, dict[str, Any]]] = []
    failed: list[str] = []
    try:
        done = [(number, judge.chunk(chunks[number])) for number in range(process, len(chunks), processes)]
    except SkyshiftError as error:
        if processes == 1:
            raise
        failed = [str(error)]
    if processes > 1:
        failed = gather_object(failed)
        if failed:
            raise SkyshiftError(failed[0])
        done = gather_object(done)
    return dict(joined([part for _, part in sorted(done, key=lambda entry: entry[0])]))


def load_translators(
    checkpoint: Path, baselines: Sequence[str | Path], state: PartialState | None, **options: Any
) -> dict[str, Translator]:
    """The judged checkpoint and the others by their names in the table.

    Args:
        checkpoint: The judged one.
        baselines: Other checkpoints or runs.
        state: The launch, which says what device is this process's.
        **options: Of :meth:`Translator.from_pretrained`.

    Raises:
        CheckpointError: There is no checkpoint.
        SkyshiftError: They translate other domains.
    """
    device: torch.device | None = state.device if state else None

    def load(folder: Path) -> Translator:
        return Translator.from_pretrained(folder, device=device, **options)

    others = {folder: load(folder) for folder in (find_checkpoint(name) for name in baselines) if folder != checkpoint}
    return competitors(checkpoint, load(checkpoint), others)
