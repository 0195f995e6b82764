"""A download that may be cut off and go on: the bytes so far, and how to know that the rest belongs to them.

A file is continued only if the service offered that (``Accept-Ranges: bytes``) and gave a mark of the version (a strong
``ETag``, or ``Last-Modified``), which the request for the rest repeats in ``If-Range``: bytes of two versions are never
joined. Otherwise the download begins anew.

References:
    RFC 9110, sections 13.1.5 (If-Range) and 14 (range requests).
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from skyshift.errors import SkyshiftError
from skyshift.files import flush, write_json


class DamagedError(SkyshiftError):
    """A downloaded file is not what it should be; the download is tried again."""


class Partial:
    """A download that is not whole yet: ``path``, and beside it where it comes from and how to know it again."""

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url = path, url
        self._note = path.with_name(path.name + ".json")
        self.offset, self.validator, self.length = 0, "", -1
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            note = json.loads(self._note.read_text(encoding="utf-8"))
            size = path.stat().st_size
            if note["url"] == url and note["validator"] and 0 < size < int(note["length"]):
                self.offset, self.validator, self.length = size, str(note["validator"]), int(note["length"])

    def headers(self) -> dict[str, str]:
        """Of the request for the rest."""
        if not self.offset:
            return {}
        return {"Range": f"bytes={self.offset}-", "If-Range": self.validator}

    def begin(self, headers: Mapping[str, str]) -> None:
        """A body from its first byte on; note whether the rest of it can be asked for should it be cut off."""
        self.forget()  # the bytes before the note: those of another version must not be found beside the new note
        self.path.parent.mkdir(parents=True, exist_ok=True)
        length = headers.get("Content-Length", "")
        self.offset, self.length = 0, int(length) if length.isdecimal() else -1
        tag = headers.get("ETag", "")
        self.validator = tag if tag.startswith('"') else headers.get("Last-Modified", "")  # a weak tag is no proof
        if headers.get("Accept-Ranges", "").lower() == "bytes" and self.validator and self.length > 0:
            write_json(self._note, {"url": self.url, "validator": self.validator, "length": self.length})

    def forget(self) -> None:
        """Begin anew the next time."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def finish(self) -> None:
        """The file is whole."""
        flush(self.path)
        self._note.unlink(missing_ok=True)
