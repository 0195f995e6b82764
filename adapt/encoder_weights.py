"""Weights for networks of timm: from a file, or from the hub that timm knows.

A file is safetensors or a torch file of tensors alone, with the names of timm's network; its classifier is left out,
and the first convolution is summed or repeated to the number of channels as timm does it: one channel gets the sum over
the three colours, n channels get the three in turn, scaled by 3/n.

Files of other implementations name the same tensors differently. They are taken in their order where every shape agrees
with timm's network, and it is said that this was done.

References:
    Wightman 2019, PyTorch Image Models, doi:10.5281/zenodo.4414861.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skyshift.errors import SkyshiftError

SUFFIXES = (".safetensors", ".pth", ".pt")
HUB_FILE = "model.safetensors"
ANSWER_WITHIN = 5.0
"""Seconds within which a hub has to answer."""


class EncoderWeightsError(SkyshiftError):
    """Weights are not there, cannot be read, or are another network's."""


def find_file(weights: str) -> Path:
    """The file of weights that a configuration names.

    Raises:
        EncoderWeightsError: There is none, or it is of a kind that is not read.
    """
    path = Path(weights).expanduser()
    if not path.exists():
        raise EncoderWeightsError(
            f"weights: there is no file {path}; give '', 'imagenet', or the path of a file ({', '.join(SUFFIXES)})"
        )
    if path.is_dir() or path.suffix not in SUFFIXES:
        kind = "a folder" if path.is_dir() else f"a '{path.suffix}' file"
        raise EncoderWeightsError(
            f"weights: {path} is {kind}; what is read are {', '.join(SUFFIXES)} files. Hubs have a {HUB_FILE} beside a "
            "pytorch_model.bin: take that. A torch file of tensors alone is read under the name .pth"
        )
    return path


def from_hub(name: str) -> Path:
    """The file of the weights that timm prefers for a network, from the hub or its cache on this machine.

    Args:
        name: Of the network, as timm knows it.

    Raises:
        EncoderWeightsError: timm knows none, they are not in the cache and no hub answers, or it refuses.
    """
    import timm
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import get_session

    known = timm.get_pretrained_cfg(name)
    where = known.hf_hub_id if known else None
    if not where:
        raise EncoderWeightsError(f"weights: timm knows no weights of {name}; give '' or the path of a file")
    found = try_to_load_from_cache(where, HUB_FILE)
    if isinstance(found, str):
        return Path(found)
    cure = (
        f"fetch them where there is a network (`hf download {where} {HUB_FILE}`), and give the path of the file as "
        "encoder.init_args.weights, or '' for none"
    )
    missing = f"weights: the ImageNet weights of {name} are not on this machine"
    if constants.HF_HUB_OFFLINE:
        raise EncoderWeightsError(f"{missing}, and HF_HUB_OFFLINE is set; {cure}")
    try:  # the library itself tries again and again, for most of a minute a file
        get_session().head(constants.ENDPOINT, timeout=ANSWER_WITHIN)
    except Exception as error:  # whichever HTTP library it is made with
        raise EncoderWeightsError(f"{missing}, and {constants.ENDPOINT} does not answer ({error}); {cure}") from None
    try:
        return Path(hf_hub_download(where, HUB_FILE, library_name="skyshift"))
    except (OSError, ValueError) as error:  # all errors of the hub's client are one or the other
        raise EncoderWeightsError(f"{missing}, and cannot be fetched: {error}; {cure}") from None


def fill(network: nn.Module, name: str, path: Path, channels: int) -> None:
    """Give a network of timm the weights of a file; in place.

    Args:
        network: Made by timm with ``num_classes=0`` and ``in_chans=channels``.
        name: Its name in timm.
        path: The file.
        channels: Of the maps.

    Raises:
        EncoderWeightsError: The file does not fit the network, or leaves some of it without weights.
    """
    from timm.models import clean_state_dict, load_pretrained

    from skyshift.translate.metrics.pretrained import WeightsError, read_tensors

    try:
        tensors = clean_state_dict(read_tensors(path))
    except WeightsError as error:
        raise EncoderWeightsError(f"weights: {error}") from error
    tensors = _named_by_timm(tensors, name, path)
    missing: list[str] = []
    hook = network.register_load_state_dict_post_hook(lambda _, keys: missing.extend(keys.missing_keys))
    settings: dict[str, Any] = {**network.pretrained_cfg, "state_dict": tensors, "custom_load": False}  # type: ignore[dict-item]
    try:
        load_pretrained(network, settings, num_classes=0, in_chans=channels)
    except RuntimeError as error:
        raise EncoderWeightsError(f"weights: {path} does not fit {name}: {error}") from None
    finally:
        hook.remove()
    if missing:
        raise EncoderWeightsError(
            f"weights: {path} lacks {len(missing)} tensors of {name}, the first of them {missing[0]}; it is of another "
            "network: give the file of this one, or the network's name in timm"
        )


def _named_by_timm(tensors: Mapping[str, Tensor], name: str, path: Path) -> dict[str, Tensor]:
    """The same under timm's names: as they are where one name is timm's, else in their order if all shapes agree."""
    import timm

    with torch.device("meta"):
        reference = timm.create_model(name).state_dict()
    if any(key in reference for key in tensors):
        return dict(tensors)
    if [value.shape for value in tensors.values()] != [value.shape for value in reference.values()]:
        first = next(iter(tensors), "nothing at all")
        raise EncoderWeightsError(
            f"weights: {path} does not fit {name}: it has {len(tensors)} tensors, the first of them {first}, none with "
            f"a name of timm's {name}, and their shapes are others"
        )
    warnings.warn(
        f"{path} names its tensors as another implementation of {name} does; all {len(tensors)} shapes agree with "
        "timm's, so they are taken in their order",
        UserWarning,
        stacklevel=2,
    )
    return dict(zip(reference, tensors.values(), strict=True))


def without_weights(configuration: Any) -> Any:
    """A configuration whose encoders begin without pretrained weights, for filling from a checkpoint.

    Args:
        configuration: Plain values, nested; classes as ``{class_path, init_args}``.

    Returns:
        The same, with ``weights`` of every :class:`skyshift.adapt.encoders.TimmEncoder` empty. So a checkpoint needs
        neither the file nor the hub that its training began with.
    """
    if isinstance(configuration, Mapping):
        new = {key: without_weights(value) for key, value in configuration.items()}
        if new.get("class_path") == "skyshift.adapt.encoders.TimmEncoder":
            new["init_args"] = {**(new.get("init_args") or {}), "weights": ""}
        return new
    return [without_weights(value) for value in configuration] if isinstance(configuration, list) else configuration
