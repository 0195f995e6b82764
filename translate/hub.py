"""Checkpoints on the Hugging Face hub: found by ``owner/name``, or ``owner/name@revision``.

Only what a checkpoint consists of is fetched: JSON, YAML, Markdown and safetensors. No pickle, no code. Who may read a
private one is known to ``huggingface_hub`` (``hf auth login``, or ``HF_TOKEN``); nothing of it is stored or shown here.

References:
    https://huggingface.co/docs/huggingface_hub/guides/download
"""

import re
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the library beneath, which a hub that does not answer raises
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from skyshift.checkpoint import CheckpointError

PARTS = ["*.safetensors", "*.json", "*.yaml", "*.md", "*.png"]
"""Files of a checkpoint; ``state/``, for resuming, is not among them."""

_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_hub_name(name: str) -> bool:
    """Whether this can only be ``owner/name`` on a hub: no path below a folder that is here, nor one of ``runs``."""
    owner = name.partition("/")[0]
    return bool(_NAME.fullmatch(name)) and owner not in (".", "..", "runs") and not Path(owner).exists()


def download(name: str) -> Path:
    """The folder of a checkpoint from the hub, in the hub's cache on this machine.

    Args:
        name: ``owner/name``, or ``owner/name@revision`` for a branch, tag or commit other than the main one.

    Returns:
        The folder, which may be there from an earlier time: without a network it is found if it has been fetched.

    Raises:
        CheckpointError: There is none such, it may not be read, or no hub is reachable and it was never fetched.
    """
    repository, _, revision = name.partition("@")
    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=PARTS,
                ignore_patterns=["state/*"],
                library_name="skyshift",
            )
        )
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"there is no checkpoint '{name}', neither a folder here nor on {constants.ENDPOINT} (or it is private: "
            "log in with `hf auth login`)"
        ) from None
    except LocalEntryNotFoundError:
        how = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
        raise CheckpointError(
            f"'{name}' is no folder here, and {how}, so it cannot be fetched from the hub either; fetch it where there "
            f"is a network (`hf download {repository}`) and give the path of its folder"
        ) from None
    except (HfHubHTTPError, HTTPError, HFValidationError, OSError, ValueError) as error:
        raise CheckpointError(f"'{name}' cannot be fetched from {constants.ENDPOINT}: {error}") from None
    if not (folder / "translation.json").is_file():
        raise CheckpointError(
            f"{name} on {constants.ENDPOINT} is no checkpoint of skyshift: it has no translation.json"
        )
    return folder


def upload(folder: Path, name: str, *, private: bool = True) -> str:
    """Put an exported checkpoint on the hub.

    Args:
        folder: As :func:`skyshift.translate.share.export` makes it.
        name: ``owner/name``; made where it is not there.
        private: Whether others may not see it, where it is made.

    Returns:
        Its address.

    Raises:
        CheckpointError: The hub refuses or does not answer.
    """
    api = HfApi(library_name="skyshift")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=PARTS, commit_message="skyshift checkpoint")
    except (HfHubHTTPError, HTTPError, HFValidationError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} cannot be put on {constants.ENDPOINT} as {name}: {error}. It is whole where it is; log in with "
            "`hf auth login` (a token that may write) and try again"
        ) from None
    return f"{constants.ENDPOINT}/{name}"
