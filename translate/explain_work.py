"""What one run of the explain command has to do: its views, background and probes, part by part.

The background leaves out faint views unless told otherwise: to a normalised network the way from an empty map to any
other is a cliff, which takes many more draws to add up.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skyshift import __version__
from skyshift.attribution import Attribution, AttributionConfig, AttributionError, Runner, input_gradient, out_of_place
from skyshift.datasets.formats import read_maps
from skyshift.datasets.joined import open_stores
from skyshift.datasets.loading import FIT_VIEWS, Split, split_views
from skyshift.datasets.maps import Maps
from skyshift.datasets.store import MapStore
from skyshift.engine import computes_bfloat16
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown
from skyshift.translate.data import fingerprint, open_training
from skyshift.translate.explain_models import Logits
from skyshift.translate.explain_parts import Probed
from skyshift.translate.explain_probes import make_probe, partners, require_probes, spread_views
from skyshift.translate.explain_removal import removal_curves
from skyshift.translate.explainer import Background, Explainer, WhatConfig, centre_crop, store_name
from skyshift.translate.translation import find_checkpoint
from skyshift.translate.translator import store_maps

FAINT = 1e-3
"""Share of the mean total of the candidates below which a map counts as faint."""


@dataclass
class BackgroundConfig:
    """What explanations are a difference from.

    Attributes:
        maps: Training views, of as many galaxies as there are.
        faint: Also take views of which a map holds next to nothing (below a thousandth of the mean total).
        file: Maps to take instead: a store, or a FITS or HDF5 file with all the domains.
    """

    maps: int = 32
    faint: bool = False
    file: str = ""


@dataclass
class ExplainConfig:
    """Explanations of many views.

    Attributes:
        checkpoint: A checkpoint, or a run (its last checkpoint is taken).
        store: Of the true maps, or a list of stores read as one; by default what the training read.
        part: Galaxies to explain: test, validation or train.
        views: How many, of as many galaxies as there are; 0 for all.
        what: Which output.
        probes: What to show the discriminator: true, translated, other_galaxy, shuffled_domain, swapped_domains,
            rotated_source. A generator is shown true sources.
        background: What explanations are a difference from.
        attribution: How to explain.
        as_trained: Explain in the precision of the training, where this machine computes it; else in that of
            ``attribution``.
        quantiles: Domains of the store by whose values the attributions are parted; by default source, target and,
            where the store has it, temperature.
        removal: Views for deletion and insertion curves; 0 for none.
        figures: Draw them; else table and numbers alone.
        pages: Pages of maps a probe.
        per_page: Views on a page.
        raw: Formats of the raw values: fits, npy.
        chunk: Views in a part that is written whole.
        crop: Explain the middle of maps that are larger than those of the training.
        allow_incomplete: Keep explanations that do not add up, marked as such.
        output: Folder; by default ``explanation`` beside the checkpoint's run.
        trust_remote_code: Allow the checkpoint to name classes from outside this package.
    """

    checkpoint: str = "runs/gas_to_hi"
    store: list[str] | str = ""
    part: Literal["test", "validation", "train"] = "test"
    views: int = 40
    what: WhatConfig = field(default_factory=WhatConfig)
    probes: list[str] = field(
        default_factory=lambda: ["true", "translated", "other_galaxy", "shuffled_domain", "rotated_source"]
    )
    background: BackgroundConfig = field(default_factory=BackgroundConfig)
    attribution: AttributionConfig = field(default_factory=lambda: AttributionConfig(samples=128))
    as_trained: bool = True
    quantiles: list[str] = field(default_factory=list)
    removal: int = 16
    figures: bool = True
    pages: int = 2
    per_page: int = 4
    raw: list[str] = field(default_factory=lambda: ["fits"])
    chunk: int = 8
    crop: bool = False
    allow_incomplete: bool = False
    output: str = ""
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for kind in self.raw:
            if kind not in ("fits", "npy"):
                raise SkyshiftError(unknown("format", kind, ("fits", "npy")))
        for name, least in (("chunk", 1), ("pages", 0), ("per_page", 1), ("removal", 0), ("views", 0)):
            if getattr(self, name) < least:
                raise SkyshiftError(f"{name} must be at least {least}, not {getattr(self, name)}")


def training_precision(checkpoint: Path) -> Literal["no", "bf16", "fp16"]:
    """What the run was trained in, where this machine computes it in hardware; else float32 (``no``)."""
    try:
        saved = json.loads((checkpoint / "state" / "progress.json").read_text(encoding="utf-8"))["precision"]
    except (OSError, ValueError, KeyError):
        return "no"
    if saved == "bf16" and computes_bfloat16():
        return "bf16"
    return "fp16" if saved == "fp16" and torch.cuda.is_available() else "no"


class Work:
    """One run of the command: what is to be explained, and how.

    Args:
        config: The command's.
        device: Of this process.
    """

    def __init__(self, config: ExplainConfig, device: torch.device) -> None:
        self.config = config
        self.checkpoint = find_checkpoint(config.checkpoint)
        self.explainer = Explainer.from_pretrained(
            self.checkpoint, config.what, device=device, trust_remote_code=config.trust_remote_code
        )
        explainer = self.explainer
        self.generator = config.what.of == "generator"
        self.probes = ["true"] if self.generator else list(config.probes)
        require_probes(self.probes, paired=explainer.paired or self.generator)
        provenance = explainer.translator.translation.provenance
        self.store = open_stores(config.store) if config.store else open_training(explainer.translator.translation)
        self.store.require_complete()
        self.store.require_domains([*self.domains, *self.quantiles])
        self.split = Split(**provenance["split"])
        self.catalogue = self.store.catalogue()
        views = split_views(self.catalogue, self.split)[config.part]
        if not len(views):
            raise SkyshiftError(f"{self.store.path} has no views in its {config.part} part")
        self.views = spread_views(views, self._groups(views), config.views, config.attribution.seed)
        self.groups = self._groups(self.views)
        self.background = self._background()
        attribution = config.attribution
        if config.as_trained:
            attribution = replace(attribution, precision=training_precision(self.checkpoint))
        self.attribution = attribution
        explainer.require_size(self.inputs(self.views[:1]))
        if fingerprint(self.store) != provenance.get("fingerprint") and not config.store:
            warnings.warn(
                f"{self.store.path} is not as it was at the training (its fingerprint differs): views of its "
                f"{config.part} part may have been trained on",
                stacklevel=2,
            )
        if "other_galaxy" in self.probes:
            self.partners = self.views[partners(self.views, self.groups, attribution.seed)]

    @property
    def domains(self) -> tuple[str, ...]:
        """All of source and target: translated pairs need the source even where only the target is judged."""
        translator = self.explainer.translator
        return tuple(dict.fromkeys([*translator.source, *translator.target, *self.explainer.domains]))

    @property
    def quantiles(self) -> tuple[str, ...]:
        """Domains by whose values the attributions are parted."""
        usual = [*self.domains, *(["temperature"] if "temperature" in self.store.domains else [])]
        return tuple(dict.fromkeys(self.config.quantiles or usual))

    def _rows(self, views: NDArray[np.integer]) -> NDArray[np.int64]:
        return np.searchsorted(np.asarray(self.catalogue["view"]), views)

    def _groups(self, views: NDArray[np.integer]) -> NDArray[np.int64]:
        return np.asarray(self.catalogue["split_group"], np.int64)[self._rows(views)]

    def maps(self, views: NDArray[np.integer], domains: Sequence[str]) -> Mapping[str, Maps]:
        """Physical maps of the store, cropped where that was asked for."""
        return self._cropped(store_maps(self.store, domains, views))

    def _cropped(self, maps: Mapping[str, Maps]) -> Mapping[str, Maps]:
        pixels = self.explainer.pixels
        return centre_crop(maps, pixels) if self.config.crop and pixels else maps

    def inputs(self, views: NDArray[np.integer]) -> Tensor:
        """What the explained network sees of true maps."""
        return self.explainer.inputs(self.maps(views, self.explainer.domains))

    # -- the background -------------------------------------------------------------------------------------------

    def _background(self) -> Background:
        """As configured.

        Raises:
            AttributionError: It is empty.
            MapError: It is of other domains.
        """
        config, explainer = self.config.background, self.explainer
        if config.file:
            path = Path(config.file)
            found = store_maps(MapStore(path), explainer.domains) if path.is_dir() else read_maps(path)
            inputs = explainer.inputs(self._cropped(found))
            if not len(inputs):
                raise AttributionError(f"the background is empty: {path} holds no maps")
            return Background(inputs, f"{len(inputs)} maps of {path.name}")
        if config.maps < 1:
            raise AttributionError(
                f"the background is empty: background.maps is {config.maps}; an explanation is a difference from "
                "something, name at least one map"
            )
        try:
            store = open_training(explainer.translator.translation)
        except SkyshiftError:
            store = self.store
        catalogue = store.catalogue()
        views = split_views(catalogue, self.split)["train"]
        known = len(views)
        if known > FIT_VIEWS:  # enough to choose from, without reading a million maps
            views = np.sort(np.random.default_rng(self.config.attribution.seed).choice(views, FIT_VIEWS, replace=False))
        if not config.faint:
            views = views[self._lit(store, views)]
        if not len(views):
            raise AttributionError(
                f"the background is empty: none of {known} training views has signal in every domain; take faint ones "
                "as well (--background.faint true)"
            )
        groups = np.asarray(catalogue["split_group"], np.int64)[np.searchsorted(np.asarray(catalogue["view"]), views)]
        chosen = spread_views(views, groups, config.maps, self.config.attribution.seed)
        faint = "" if config.faint else " with signal in every domain"
        text = f"{len(chosen)} true training views{faint} of {store_name(store)}"
        inputs = explainer.inputs(self._cropped(store_maps(store, explainer.domains, chosen)))
        return Background(inputs, text, tuple(chosen.tolist()))

    def _lit(self, store: MapStore, views: NDArray[np.int64]) -> NDArray[np.bool_]:
        lit = np.ones(len(views), bool)
        for domain in self.explainer.domains:
            total = np.concatenate(
                [store.maps(domain, some).sum((1, 2), dtype=np.float64) for some in np.array_split(views, 16)]
            )
            lit &= total > FAINT * total.mean()
        return lit

    # -- the work -------------------------------------------------------------------------------------------------

    def plan(self) -> dict[str, Any]:
        """All that decides the values."""
        weights = hashlib.sha256()
        for path in sorted(self.checkpoint.glob("*.safetensors")):
            weights.update(path.read_bytes())
        config = asdict(self.config)
        return {
            "paths": {"checkpoint": str(self.checkpoint), "store": str(self.store.path)},
            "skyshift": __version__,
            "weights": weights.hexdigest(),
            "store": fingerprint(self.store),
            "views": self.views.tolist(),
            "probes": self.probes,
            **{name: config[name] for name in ("what", "part", "chunk", "crop")},
            "attribution": asdict(self.attribution),
            "background": self.background.facts(),
        }

    @property
    def parts(self) -> int:
        """How many there are."""
        return -(-len(self.views) // self.config.chunk)

    def part(self, number: int) -> dict[str, Probed]:
        """Explain the views of one part.

        Raises:
            AttributionError: An explanation does not add up, and that is not allowed.
        """
        rows = slice(number * self.config.chunk, (number + 1) * self.config.chunk)
        views, explainer = self.views[rows], self.explainer
        maps = self.maps(views, explainer.domains)
        true = explainer.inputs(maps)
        sides = next(iter(maps.values())).side
        spectrum = self.attribution.explainer == "gradient"
        found = {}
        for probe in self.probes:
            shown = true if probe == "true" else self._shown(probe, rows, true)
            attribution = explainer.explain(
                shown, self.background.inputs, self.attribution, sides=sides, keys=views.tolist(), spectrum=spectrum
            )
            self.require_complete(probe, attribution, next(iter(maps.values())).names)
            found[probe] = Probed(shown, attribution)
        return found

    def require_complete(self, probe: str, attribution: Attribution, names: Sequence[str]) -> None:
        """Refuse explanations that do not add up, unless they are allowed.

        Raises:
            AttributionError: They do not, and are not.
        """
        if self.config.allow_incomplete:
            return
        try:
            attribution.require_complete(self.attribution.tolerance, [f"{name} ({probe})" for name in names])
        except AttributionError as error:
            raise AttributionError(
                f"{error}; --allow_incomplete true keeps them and marks them. What was explained before is kept"
            ) from None

    def _shown(self, probe: str, rows: slice, true: Tensor) -> Tensor:
        explainer, views = self.explainer, self.views[rows]
        if explainer.paired:
            source, target = true[:, : explainer.sources], true[:, explainer.sources :]
        else:  # the discriminator sees the target alone, a translation still needs its source
            channels = explainer.translator.translation.source
            stacks = self.maps(views, [channel.domain for channel in channels])
            scaled = [c.scaling.forward(stacks[c.domain].to(c.unit).values) for c in channels]
            source, target = torch.from_numpy(np.stack(scaled, 1).astype(np.float32)), true
        other = None
        if probe == "other_galaxy":
            other = self.inputs(self.partners[rows])[:, explainer.sources :]
        pair = make_probe(probe, source, target, views, self.attribution.seed, explainer.translate, other)
        return pair if explainer.paired else pair[:, source.shape[1] :]

    def removed(self) -> NDArray[np.int64]:
        """Which of the views are deleted and inserted: as many as asked for, of as many galaxies as there are."""
        if not self.config.removal:
            return np.zeros(0, np.int64)
        chosen = spread_views(self.views, self.groups, self.config.removal, self.attribution.seed)
        return np.searchsorted(self.views, chosen)

    def removal(self, shown: Tensor, values: NDArray[np.float32]) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Deletion and insertion curves of :meth:`removed` under the first probe.

        Args:
            shown: (views, channels, height, width), scaled; of all views.
            values: Same shape, SHAP.
        """
        network = self.explainer.network
        if not self.config.removal or network is None:
            return {}
        model = Logits(network, "mean" if self.config.what.explained == "grid" else self.config.what.explained)
        model.patch = tuple(self.config.what.patch)
        rows = self.removed()
        shown, values = shown[rows], values[rows]
        run = Runner(out_of_place(model), self.attribution, None)
        seed = self.attribution.seed
        random = np.stack([np.random.default_rng([seed, int(v)]).random(values[0].shape) for v in self.views[rows]])
        gradient = input_gradient(model, shown, self.attribution)[:, 0]
        difference = (shown - self.background.inputs.mean(0)).numpy()
        orders = {
            "SHAP": values,
            "gradient x difference": gradient * difference,
            "gradient": gradient,
            "random": random,
        }
        return removal_curves(lambda x: run.evaluate(x)[:, 0], shown, self.background.inputs, orders)
