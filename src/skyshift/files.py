"""Files that are written whole or not at all.

A result is written beside its final name and renamed once it is complete and on the disk, so an interrupt, a
crash or a full disk leaves the old file or none, never half of one.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _side_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial{path.suffix}")


def flush(path: Path) -> None:
    """Have the system put a file on the disk before anything else says that it is there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Give a side file to write to and rename it to ``path`` when the block ends without an error.

    Args:
        path: The file's final name. Its folder is created.

    Yields:
        The name to write to, in the same folder and with the same suffix. On an error it is removed, and
        whatever ``path`` held before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    side = _side_name(path)
    try:
        yield side
        flush(side)
        os.replace(side, path)
    except BaseException:
        side.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def write_folder_whole(path: str | Path) -> Iterator[Path]:
    """The same for a folder: its files appear together under ``path``, or not at all.

    Args:
        path: The folder's final name. An older folder of that name is replaced.

    Yields:
        The folder to fill.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    side = _side_name(path)
    side.mkdir()
    try:
        yield side
        for file in side.rglob("*"):
            if file.is_file():
                flush(file)
        if path.exists():
            old = _side_name(path)
            os.replace(path, old)
            try:
                os.replace(side, path)
            except BaseException:
                os.replace(old, path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(side, path)
    except BaseException:
        shutil.rmtree(side, ignore_errors=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all. NaN and infinity are refused."""
    text = json.dumps(value, indent=2, allow_nan=False, sort_keys=False)
    with write_whole(path) as side:
        side.write_text(text + "\n", encoding="utf-8")


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` in UTF-8, whole or not at all."""
    with write_whole(path) as side:
        side.write_text(text, encoding="utf-8")
