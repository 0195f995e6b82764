"""Files that are written whole or not at all, on a local disk or on object storage.

On a disk a result is written beside its final name and renamed once it is complete and on the disk, so an interrupt, a
crash or a full disk leaves the old file or none, never half of one. On object storage (``s3://bucket/name`` and
whatever else fsspec reaches) it is written to a local file and sent when it is complete: an object appears at once.

Addresses and keys of object storage come from the environment, as its client reads them (``AWS_ENDPOINT_URL``,
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_PROFILE`` …); nothing here stores or prints them.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from upath import UPath

from skyshift.errors import SkyshiftError

Result = TypeVar("Result")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk says that has no room; trying again at once does not help."""

Location = Path | UPath
"""A place for files: a path on a disk, or one on object storage, which has the same methods."""


def location(path: str | Location) -> Location:
    """The place that a path or address names.

    Args:
        path: On a disk, or an address such as ``s3://bucket/maps.zarr`` or ``memory://maps.zarr``.

    Raises:
        SkyshiftError: No file system answers to the address's scheme.
    """
    if not isinstance(path, str):
        return path
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", path)
    if not scheme:
        return Path(path)
    if scheme.group(1) in ("file", "local"):
        return Path(path[scheme.end() :])
    try:
        # What another process has written since is seen at once.
        place = UPath(path.rstrip("/"), use_listings_cache=False)
        place.fs  # noqa: B018 - imports the client
    except (ImportError, ValueError) as error:
        raise SkyshiftError(
            f"{path}: {scheme.group(1)}:// cannot be reached ({error}); give a path on a disk, or install the package "
            "that serves it (s3fs for s3://)"
        ) from error
    return place


def reopened(path: Location) -> Location:
    """The same place with a client of this process: one that was opened before a fork belongs to the parent."""
    return path if isinstance(path, Path) else UPath(str(path), **path.storage_options)


_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@contextlib.contextmanager
def reaching(path: Location) -> Iterator[None]:
    """Say in words what object storage refuses; for a path on a disk this does nothing.

    Raises:
        SkyshiftError: The storage refuses or does not answer. The message names the place and holds no key.
    """
    try:
        yield
    except SkyshiftError:
        raise
    except Exception as error:
        if isinstance(path, Path):
            raise
        reason = f"{type(error).__name__}: {error}"
        for name in _SECRETS:
            if os.environ.get(name):
                reason = reason.replace(os.environ[name], f"${name}")
        raise SkyshiftError(
            f"{path} cannot be reached ({reason}); check that the bucket exists, and the address and the keys in the "
            "environment (for s3://: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        ) from None


def patiently(act: Callable[[], Result], attempts: int = 3, wait: float = 0.2) -> Result:
    """Do something that a file system may refuse for a moment.

    Args:
        act: What to do; doing it twice must do no harm.
        attempts: How often it is tried.
        wait: Seconds before the second attempt, doubled before each one after it.

    Returns:
        What ``act`` returns.
    """
    for attempt in range(1, attempts + 1):
        try:
            return act()
        except Exception as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError) or cause.errno in FULL or attempt == attempts:
                raise
            time.sleep(wait * 2 ** (attempt - 1))
    raise AssertionError("at least one attempt is made")


def has_file(path: Location) -> bool:
    """Whether there is such a file. Unlike ``is_file``, object storage that does not answer is an error, not a no."""
    if isinstance(path, Path):
        return path.is_file()
    try:
        return bool(path.fs.info(path.path)["type"] == "file")
    except FileNotFoundError:
        return False


def remove_tree(path: Location) -> None:
    """Remove a folder and all that is in it; one that is not there is none the less removed."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.fs.rm(path.path, recursive=True)


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
def write_whole(path: str | Location) -> Iterator[Path]:
    """Give a side file to write to and rename it to ``path`` when the block ends without an error.

    Args:
        path: The file's final name. Its folder is created.

    Yields:
        The name to write to, with the same suffix; in the same folder, or in a temporary one for object storage. On
        an error it is removed, and whatever ``path`` held before is untouched.
    """
    path = location(path)
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            remote_side = Path(folder) / path.name
            yield remote_side
            path.fs.pipe_file(path.path, remote_side.read_bytes())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    side = _side_name(path)
    try:
        yield side
        flush(side)
        os.replace(side, path)
    except BaseException:
        side.unlink(missing_ok=True)
        raise


def _rename_new(side: Path, path: Path) -> None:
    """Rename a folder that is not empty to a name that is not taken: the system refuses any other."""
    try:
        os.rename(side, path)
    except OSError as error:
        if path.exists():
            raise FileExistsError(error.errno, "there is one already", str(path)) from error
        raise


@contextlib.contextmanager
def write_folder_whole(path: str | Location, *, replace: bool = True) -> Iterator[Path]:
    """The same for a folder: its files appear together under ``path``, or not at all.

    Object storage knows no folders. There the files are sent one after the other, those at the top of the folder last:
    a folder whose mark is a file at its top is there once the mark is.

    Args:
        path: The folder's final name.
        replace: Replace an older folder of that name. If not, one that has appeared meanwhile is kept.

    Yields:
        The folder to fill.

    Raises:
        FileExistsError: There is one, and it is not to be replaced.
    """
    path = location(path)
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            files = [file.relative_to(folder) for file in Path(folder).rglob("*") if file.is_file()]
            for file in sorted(files, key=lambda name: -len(name.parts)):
                place = path / file.as_posix()
                place.fs.pipe_file(place.path, (Path(folder) / file).read_bytes())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    side = _side_name(path)
    side.mkdir()
    try:
        yield side
        for file in side.rglob("*"):
            if file.is_file():
                flush(file)
        if not replace:
            _rename_new(side, path)
        elif path.exists():
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


def write_json(path: str | Location, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all. NaN and infinity are refused."""
    text = json.dumps(value, indent=2, allow_nan=False, sort_keys=False)
    with write_whole(path) as side:
        side.write_text(text + "\n", encoding="utf-8")


def write_text(path: str | Location, text: str) -> None:
    """Write ``text`` in UTF-8, whole or not at all."""
    with write_whole(path) as side:
        side.write_text(text, encoding="utf-8")
