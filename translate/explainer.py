"""Explanations of a translation from Python: a checkpoint and maps in, SHAP values per pixel and channel out.

    explainer = Explainer.from_pretrained("runs/gas_to_hi")
    store = MapStore("data/synthetic/maps.zarr")
    background = explainer.background(store, [0, 4, 8, 12])
    true = explainer.inputs(store_maps(store, explainer.domains, [16, 17]))
    attribution = explainer.explain(true, background.inputs)            # values (2, 1, channels, height, width), logits
    attribution.require_complete(0.05)

Inputs are what the network sees: maps scaled as in training, source channels before target channels.
"""

import contextlib
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skyshift.attribution import Attribution, AttributionConfig, AttributionError, explain
from skyshift.datasets.joined import JoinedStores, open_stores
from skyshift.datasets.maps import MapError, Maps
from skyshift.datasets.store import MapStore
from skyshift.errors import SkyshiftError
from skyshift.naming import unknown
from skyshift.translate.explain_models import (
    Aperture,
    Explained,
    Logits,
    ReceptiveField,
    TargetPixel,
    aperture_unit,
    find_discriminator,
)
from skyshift.translate.translation import Channel
from skyshift.translate.translator import Translator, store_maps

Of = Literal["discriminator", "generator"]


@dataclass
class WhatConfig:
    """Which output is explained.

    Attributes:
        of: The discriminator (in logits) or the generator (in physical units).
        discriminator: Its name, where the method has several.
        explained: ``mean`` of the logits, one ``patch``, or the whole ``grid`` of patches.
        patch: Row (from the bottom) and column of the one patch.
        domain: Target domain of the generator; by default the first.
        pixel: Row (from the bottom) and column of the generator's pixel; empty for the aperture.
        aperture: Radius about the centre, kpc.
    """

    of: Of = "discriminator"
    discriminator: str = ""
    explained: Explained = "mean"
    patch: list[int] = field(default_factory=lambda: [0, 0])
    domain: str = ""
    pixel: list[int] = field(default_factory=list)
    aperture: float = 10.0

    def __post_init__(self) -> None:
        if len(self.patch) != 2 or len(self.pixel) not in (0, 2):
            raise SkyshiftError("a patch and a pixel are a row and a column")
        if not self.aperture > 0:
            raise SkyshiftError(f"an aperture has a radius above 0 kpc, not {self.aperture}")


@dataclass(frozen=True)
class Background:
    """What explanations are a difference from.

    Attributes:
        inputs: (m, channels, height, width), scaled.
        text: What it is, in words.
        views: (m,) of the store it was taken from; empty for maps of a file.
    """

    inputs: Tensor
    text: str
    views: tuple[int, ...] = ()

    @property
    def sha256(self) -> str:
        """Of the float32 values."""
        return hashlib.sha256(np.ascontiguousarray(self.inputs.numpy(), np.float32).tobytes()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """To be stored beside every result."""
        return {"background": self.text, "views": list(self.views), "maps": len(self.inputs), "sha256": self.sha256}


class Explainer:
    """Explains one output of a translation.

    Args:
        translator: The checkpoint.
        what: Which output.
        pixels: Side of the maps that the network was trained on; larger ones are refused. ``None`` where unknown.
    """

    def __init__(self, translator: Translator, what: WhatConfig | None = None, pixels: int | None = None) -> None:
        self.translator, self.what, self.pixels = translator, what or WhatConfig(), pixels
        self.method = translator.method
        translation = translator.translation
        self.network: nn.Module | None = None
        self.field: ReceptiveField | None = None
        self.paired = False
        if self.what.of == "discriminator":
            _, self.network, self.paired = find_discriminator(self.method, self.what.discriminator)
            with contextlib.suppress(SkyshiftError):  # it is drawn where there is one
                self.field = ReceptiveField.of(self.network)
            self.channels: tuple[Channel, ...] = (*(translation.source if self.paired else ()), *translation.target)
            self.unit = ""
        else:
            self.channels = translation.source
            names = translator.target
            domain = self.what.domain or names[0]
            if domain not in names:
                raise SkyshiftError(unknown("target domain", domain, names))
            self._number = names.index(domain)
            self._channel = translation.target[self._number]
            self.unit = self._channel.unit if self.what.pixel else aperture_unit(self._channel.unit)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        what: WhatConfig | None = None,
        *,
        device: str | torch.device | None = None,
        trust_remote_code: bool = False,
    ) -> "Explainer":
        """Load a checkpoint.

        Args:
            folder: A checkpoint, or a run (its last checkpoint is taken).
            what: Which output; by default the mean logit of the discriminator.
            device: Where to run; by default the GPU where there is one.
            trust_remote_code: Allow the checkpoint to name classes from outside this package.

        Raises:
            CheckpointError: There is none, or it has no discriminator to explain.
        """
        translator = Translator.from_pretrained(folder, device=device, trust_remote_code=trust_remote_code)
        return cls(translator, what, training_pixels(translator))

    @property
    def domains(self) -> tuple[str, ...]:
        """Of the channels that are explained."""
        return tuple(channel.domain for channel in self.channels)

    @property
    def sources(self) -> int:
        """How many of the channels are source channels."""
        return len(self.translator.source) if self.what.of == "generator" or self.paired else 0

    @property
    def title(self) -> str:
        """What is explained, in words."""
        if self.what.of == "discriminator":
            row, column = self.what.patch
            return {
                "mean": "mean logit",
                "patch": f"logit of patch ({row}, {column})",
                "grid": "every logit of the patch grid",
            }[self.what.explained]
        if self.what.pixel:
            return f"{self._channel.domain} of pixel ({self.what.pixel[0]}, {self.what.pixel[1]})"
        return f"{self._channel.domain} within {self.what.aperture:g} kpc"

    def inputs(self, maps: Mapping[str, Maps]) -> Tensor:
        """What the network sees of physical maps.

        Args:
            maps: Domain to maps, all of :attr:`domains`.

        Returns:
            (n, channels, height, width) float32, scaled.

        Raises:
            MapError: A domain is missing, a unit cannot be converted, sizes differ, or a value is not finite.
            AttributionError: The maps are larger than those of the training.
        """
        for domain in self.domains:
            if domain not in maps:
                raise MapError(
                    f"explained are maps of {', '.join(self.domains)}; given are maps of {', '.join(maps) or 'none'}: "
                    f"'{domain}' is not among them"
                )
        scaled: list[NDArray[np.float32]] = []
        for channel in self.channels:
            stack = maps[channel.domain].to(channel.unit)
            stack.require_finite()
            if scaled and stack.values.shape != scaled[0].shape:
                raise MapError(f"maps of {channel.domain} have shape {stack.values.shape}, others {scaled[0].shape}")
            scaled.append(np.asarray(channel.scaling.forward(stack.values), np.float32))
        found = torch.from_numpy(np.stack(scaled, axis=1))
        self.require_size(found)
        return found

    def require_size(self, inputs: Tensor) -> None:
        """Check that maps are no larger than those of the training.

        Raises:
            AttributionError: They are.
        """
        height, width = inputs.shape[-2:]
        if self.pixels is not None and max(height, width) > self.pixels:
            raise AttributionError(
                f"maps of {height} x {width} pixels are larger than the {self.pixels} x {self.pixels} that the network "
                "was trained on: it would be explained where it was never tested, and there is no background of that "
                "size. Explain the middle of each map (--crop true), or build a store with as many pixels"
            )

    def physical(self, inputs: Tensor) -> dict[str, NDArray[np.float32]]:
        """Domain to physical maps (n, height, width) of scaled inputs, in the checkpoint's units."""
        return {
            channel.domain: np.maximum(channel.scaling.inverse(inputs[:, i].numpy()), channel.minimum).astype(
                np.float32
            )
            for i, channel in enumerate(self.channels)
        }

    def background(self, store: MapStore, views: Sequence[int] | NDArray[np.integer], text: str = "") -> Background:
        """A background of true maps of a store.

        Raises:
            AttributionError: No views.
            StoreError: The store lacks a domain.
        """
        if not len(views):
            raise AttributionError(
                "the background is empty: an explanation is a difference from something; name some views"
            )
        store.require_domains(self.domains)
        inputs = self.inputs(store_maps(store, self.domains, views))
        text = text or f"{len(views)} true views of {store_name(store)}"
        return Background(inputs, text, tuple(int(view) for view in views))

    def explain(
        self,
        inputs: Tensor,
        background: Tensor,
        config: AttributionConfig | None = None,
        *,
        sides: Sequence[float] | NDArray[np.floating] | None = None,
        keys: Sequence[int] | None = None,
        spectrum: bool = False,
    ) -> Attribution:
        """SHAP values.

        Args:
            inputs: (n, channels, height, width), scaled.
            background: (m, channels, height, width), scaled.
            config: How.
            sides: (n,) kpc; needed for an aperture.
            keys: (n,) numbers that fix the draws of each map, e.g. its view.
            spectrum: Also split by spatial frequency (gradient explainer).

        Raises:
            AttributionError: They cannot be made.
        """
        self.require_size(inputs)
        keys = list(range(len(inputs))) if keys is None else list(keys)
        if self.what.of == "discriminator" and self.network is not None:
            model: nn.Module = Logits(self.network, self.what.explained, self.what.patch)
            return explain(model, inputs, background, config, keys=keys, spectrum=spectrum)
        if self.what.pixel:
            model = TargetPixel(self.method, self._number, self._channel, self.what.pixel)
            return explain(model, inputs, background, config, keys=keys, spectrum=spectrum)
        if sides is None:
            raise AttributionError("an aperture is in kpc: give the sides of the maps")
        found = []
        for i, side in enumerate(sides):  # the aperture is another set of pixels on each
            model = Aperture(self.method, self._number, self._channel, self.what.aperture, float(side))
            found.append(explain(model, inputs[i : i + 1], background, config, keys=keys[i : i + 1], spectrum=spectrum))
        return joined(found)

    @torch.no_grad()
    def translate(self, source: Tensor, batch_size: int = 64) -> Tensor:
        """Scaled source channels to scaled target channels, as the discriminator sees them in training."""
        device = self.translator.device
        return torch.cat([self.method.translate(s.to(device)).float().cpu() for s in source.split(batch_size)])


def joined(parts: Sequence[Attribution]) -> Attribution:
    """Explanations of the same kind, one after the other."""
    first = parts[0]
    spectra = [part.spectrum for part in parts if part.spectrum is not None]
    return replace(
        first,
        values=np.concatenate([part.values for part in parts]),
        output=np.concatenate([part.output for part in parts]),
        base=np.concatenate([part.base for part in parts]),
        spread=np.concatenate([part.spread for part in parts]),
        draws=np.concatenate([part.draws for part in parts]),
        spectrum=np.concatenate(spectra) if spectra else None,
    )


def training_pixels(translator: Translator) -> int | None:
    """Side of the training maps, pixels, as the checkpoint says; an old one does not, and its store is asked.

    Returns:
        ``None``, with a warning, where that store is gone.
    """
    provenance = translator.translation.provenance
    if "pixels" in provenance:
        return int(provenance["pixels"])
    try:
        return open_stores(provenance["store"]).pixels
    except (SkyshiftError, KeyError):
        warnings.warn(
            "neither the checkpoint nor a store of its training says how large the training maps were: larger maps "
            "than those are not refused",
            stacklevel=3,
        )
        return None


def store_name(store: MapStore) -> str:
    """What a store is called, without the folders it lies in."""
    return ", ".join(one.path.name for one in (store.stores if isinstance(store, JoinedStores) else (store,)))


def centre_crop(maps: Mapping[str, Maps], pixels: int) -> dict[str, Maps]:
    """The middle ``pixels`` x ``pixels`` of maps that are larger, with their sides."""
    cropped = {}
    for domain, stack in maps.items():
        height, width = stack.values.shape[-2:]
        top, left = max(0, (height - pixels) // 2), max(0, (width - pixels) // 2)
        values = np.ascontiguousarray(stack.values[:, top : top + pixels, left : left + pixels])
        side = None if stack.side is None else stack.side * (values.shape[-1] / width)
        # A WCS in the header would point to the wrong pixels.
        cropped[domain] = replace(stack, values=values, side=side, header={})
    return cropped
