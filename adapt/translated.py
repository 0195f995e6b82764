"""A source translated by a checkpoint of the translate stage, kept beside the store that it was made of.

The store of the translated maps is named after the fingerprint of the source and the weights, so that another
checkpoint, or other maps, give another store. What made it is in its plan.
"""

import hashlib
from pathlib import Path

from skyshift.checkpoint import CheckpointError
from skyshift.datasets.store import MapStore, StoreError
from skyshift.engine import launch_state
from skyshift.errors import SkyshiftError
from skyshift.translate.generate import translate_store
from skyshift.translate.translation import find_checkpoint
from skyshift.translate.translator import Translator


def translated_store(path: str, checkpoint: str, *, trust_remote_code: bool = False) -> MapStore:
    """The maps of a store as a checkpoint translates them; made where they are not there yet, on all processes.

    Args:
        path: Of the source store, on a disk.
        checkpoint: A checkpoint, a run, or ``owner/name`` on a hub.
        trust_remote_code: Allow the checkpoint to name classes from outside this package.

    Returns:
        The store of the translated maps, whole; labels and catalogue are those of the source.

    Raises:
        CheckpointError: There is no such checkpoint; the message names what it had made before, if that is there.
        StoreError: The source is not there or lacks a domain that the checkpoint translates.
    """
    launch, source = launch_state(), MapStore(path)
    try:
        with launch.main_process_first():  # which fetches it, where it is on a hub
            folder = find_checkpoint(checkpoint)
    except CheckpointError as error:
        made = _made_by(Path(path), checkpoint)
        kept = (
            f". Maps that it had made are there: set source.store {made} and leave out source.translated_by"
            if made
            else ""
        )
        raise CheckpointError(f"source.translated_by: {error}{kept}") from error
    digest = hashlib.sha256(source.fingerprint.encode())
    for weights in sorted(folder.glob("*.safetensors")):
        digest.update(weights.read_bytes())
    output = Path(path).with_name(f"{Path(path).stem}_translated_{digest.hexdigest()[:12]}.zarr")
    if output.exists() and MapStore(output).complete:
        return MapStore(output)
    translator = Translator.from_pretrained(
        folder, device=launch.device if launch.num_processes > 1 else None, trust_remote_code=trust_remote_code
    )
    if launch.is_main_process:
        print(f"translating {path} by {folder} into {output}", flush=True)
    return translate_store(translator, source, output, folder)


def _made_by(path: Path, checkpoint: str) -> Path | None:
    for found in sorted(path.parent.glob(f"{path.stem}_translated_*.zarr")):
        try:
            plan = MapStore(found).plan
        except (StoreError, SkyshiftError):
            continue
        if str(plan.get("checkpoint", "")).startswith(checkpoint.rstrip("/")):
            return found
    return None
