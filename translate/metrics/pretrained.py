"""Networks trained on photographs, found on this machine: what LPIPS and Fréchet distances see with.

Their weights are looked for in a folder (``--weights``, else ``$SKYSHIFT_WEIGHTS``), then in torch's hub cache
(``$TORCH_HOME/hub/checkpoints``). Nothing is downloaded: nodes of a cluster have no network, and an evaluation must
not depend on one. Files are safetensors with torchvision's names (``features.0.weight``, …) or the official ``.pth``,
of which tensors alone are read (``weights_only``).

Maps have one channel and no natural white: they go in stretched (:func:`stretched`), as grey images, enlarged
bilinearly to 64 pixels where they are smaller, since the networks' strides need as many.

References:
    Zhang, Isola, Efros, Shechtman & Wang 2018, The Unreasonable Effectiveness of Deep Features as a Perceptual Metric,
    arXiv:1801.03924 (LPIPS).
    Szegedy et al. 2016, Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567.
"""

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from skyshift.datasets.scaling import Scaling
from skyshift.errors import SkyshiftError

Network = Literal["alexnet", "squeezenet", "vgg16", "inception"]
IMAGENET_MEAN, IMAGENET_DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LEAST = 64
"""Pixels on a side below which maps are enlarged."""


class WeightsError(SkyshiftError):
    """Weights of a pretrained network are not on this machine, or not what they should be."""


@dataclass(frozen=True)
class Pretrained:
    """A pretrained network.

    Attributes:
        title: As tables name it.
        files: Names under which its weights are known, the preferred one first.
        url: Where the official file is.
        lpips: Its name in the ``lpips`` package; empty where that has no heads for it.
    """

    title: str
    files: tuple[str, ...]
    url: str
    lpips: str = ""


_TORCHVISION = "https://download.pytorch.org/models"
NETWORKS: dict[str, Pretrained] = {
    "alexnet": Pretrained(
        "AlexNet",
        ("alexnet_features.safetensors", "alexnet-owt-7be5be79.pth"),
        f"{_TORCHVISION}/alexnet-owt-7be5be79.pth",
        "alex",
    ),
    "squeezenet": Pretrained(
        "SqueezeNet 1.1",
        ("squeezenet1_1_features.safetensors", "squeezenet1_1-b8a52dc0.pth"),
        f"{_TORCHVISION}/squeezenet1_1-b8a52dc0.pth",
        "squeeze",
    ),
    "vgg16": Pretrained(
        "VGG-16",
        ("vgg16_features.safetensors", "vgg16-397923af.pth"),
        f"{_TORCHVISION}/vgg16-397923af.pth",
        "vgg",
    ),
    "inception": Pretrained(
        "Inception-v3",
        ("weights-inception-2015-12-05-6726825d.safetensors", "weights-inception-2015-12-05-6726825d.pth"),
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    ),
}


def find_weights(network: str, folder: str | Path = "") -> Path:
    """The file with the weights of a network.

    Args:
        network: One of :data:`NETWORKS`.
        folder: Where to look first; by default ``$SKYSHIFT_WEIGHTS``.

    Raises:
        WeightsError: There is none; the message says which file, where it was looked for, and how to provide it.
    """
    known = NETWORKS[network]
    given = str(folder) or os.environ.get("SKYSHIFT_WEIGHTS", "")
    places = [*([Path(given).expanduser()] if given else []), Path(torch.hub.get_dir()) / "checkpoints"]
    for place in places:
        for name in known.files:
            if (place / name).is_file():
                return place / name
    raise WeightsError(
        f"no weights of {known.title}: there is no {' or '.join(known.files)} in {' or '.join(map(str, places))}. "
        f"Download {known.url} into one of these folders, or name the folder that has the file with --weights or "
        "$SKYSHIFT_WEIGHTS"
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file of weights, by name; nothing else in it is read, and no code of it is run.

    Args:
        path: A ``.safetensors`` file, else a torch file. Of one that holds more, the tensors under ``state_dict`` or
            ``model``.

    Raises:
        WeightsError: It is damaged, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        inner = [state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)]
        state = inner[0] if inner else state
    except Exception as error:
        raise WeightsError(
            f"{path} holds no weights that can be read without running code ({type(error).__name__}: {error})"
        ) from error
    other = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise WeightsError(f"{path} holds more than tensors: {', '.join(other[:3])}; save the tensors alone")
    return {str(name): value for name, value in state.items()}


def _load(network: str, path: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(path)
    except WeightsError as error:
        raise WeightsError(f"{error}; download {NETWORKS[network].url} again") from error


def _fill(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit its network: {error}") from None


def _convolutions(network: str, folder: str | Path) -> nn.Sequential:
    """The convolutional features of a network of torchvision, with its weights."""
    import torchvision  # takes a second, which commands that need no such network are spared

    path = find_weights(network, folder)
    maker = {"alexnet": "alexnet", "squeezenet": "squeezenet1_1", "vgg16": "vgg16"}[network]
    with torch.device("meta"):  # the classifier, by far the largest part, is never made
        features: nn.Sequential = getattr(torchvision.models, maker)(weights=None).features
    weights = _load(network, path)
    _fill(features, {k.removeprefix("features."): v for k, v in weights.items() if k.startswith("features.")}, path)
    return features.requires_grad_(False).eval()


def _inception(folder: str | Path) -> nn.Sequential:
    """The Inception-v3 of the Fréchet inception distance, up to its last pooling: 2048 features."""
    path = find_weights("inception", folder)
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise WeightsError(
            "the Inception network is torch-fidelity's; install it: pip install torch-fidelity"
        ) from None
    # torch-fidelity would unpickle the file whole; it is given a copy of the tensors that were read without that.
    copy = io.BytesIO()
    torch.save(_load("inception", path), copy)
    copy.seek(0)
    try:
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=copy)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit its network: {error}") from None
    # Its forward pass takes 8-bit images alone; its parts, one after the other, take any values.
    return nn.Sequential(*[part for name, part in network.named_children() if name != "fc"])


class Features(nn.Module):
    """Features of grey images: the last convolution's, averaged over the image.

    Args:
        network: One of :data:`NETWORKS`.
        weights: Folder to look in first (:func:`find_weights`).

    Raises:
        WeightsError: The weights are not there or do not fit.
    """

    def __init__(self, network: str, weights: str | Path = "") -> None:
        super().__init__()
        self.inception = network == "inception"
        self.layers = _inception(weights) if self.inception else _convolutions(network, weights)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(n, 1, h, w) images in [-1, 1] to (n, features)."""
        x = images.expand(-1, 3, -1, -1)
        if self.inception:
            from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

            # The network's own input is (v - 128) / 128 of 8-bit values v; here v = 127.5 (x + 1).
            v = interpolate_bilinear_2d_like_tensorflow1x(127.5 * (x + 1), size=(299, 299), align_corners=False)
            x = (v - 128) / 128
        else:
            import torchvision

            x = torchvision.transforms.functional.normalize((x + 1) / 2, IMAGENET_MEAN, IMAGENET_DEVIATION)
        features: Tensor = self.layers(x)
        return features.mean(dim=(2, 3))


def perceptual_network(network: str, weights: str | Path = "") -> nn.Module:
    """LPIPS 0.1 with the package's own heads and local weights; takes two batches (n, 3, h, w) in [-1, 1].

    Args:
        network: alexnet, squeezenet or vgg16.
        weights: Folder to look in first (:func:`find_weights`).

    Raises:
        WeightsError: The weights are not there or do not fit.
    """
    import lpips

    features = _convolutions(network, weights)
    name = NETWORKS[network].lpips
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips still says pretrained= to torchvision
        model = lpips.LPIPS(net=name, pretrained=False, pnet_rand=True, verbose=False)
    heads = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{name}.pth"
    model.load_state_dict(torch.load(heads, map_location="cpu", weights_only=True), strict=False)
    layers = dict(features.named_children())
    for part in model.net.children():  # slices, whose layers keep torchvision's numbers
        for number, layer in part.named_children():
            layer.load_state_dict(layers[number].state_dict())
    quiet: nn.Module = model.requires_grad_(False).eval()
    return quiet


def stretched(maps: NDArray[np.floating], scaling: Scaling, signed: bool = False) -> Tensor:
    """Physical maps as the images that the networks see.

    Args:
        maps: (n, height, width).
        scaling: The checkpoint's: 0 at zero, 1 at the 99.9 % quantile of the training maps.
        signed: Whether the maps have negative values, which then fill [-1, 0).

    Returns:
        (n, 1, h, w) float32; [0, 1] of the scaling, or [-1, 1] of a signed one, fill [-1, 1]. Nothing is clipped.
    """
    scaled = np.asarray(scaling.forward(np.asarray(maps, np.float64)), np.float64)
    images = torch.from_numpy((scaled if signed else 2.0 * scaled - 1.0).astype(np.float32))[:, None]
    height, width = images.shape[2:]
    if min(height, width) < LEAST:
        factor = LEAST / min(height, width)
        size = (max(LEAST, round(height * factor)), max(LEAST, round(width * factor)))
        images = nn.functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
    return images


@torch.no_grad()
def perceptual_distance(model: nn.Module, truth: Tensor, estimate: Tensor) -> NDArray[np.float64]:
    """LPIPS of every pair of images (n, 1, h, w), (n,)."""
    values: Any = model(truth.expand(-1, 3, -1, -1), estimate.expand(-1, 3, -1, -1))
    return np.asarray(values.flatten().double().cpu().numpy())
