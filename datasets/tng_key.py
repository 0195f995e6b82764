"""The key to the TNG web service: where it is read from, and what keeps it out of sight.

The key comes from a file that only its owner can read, or from the environment. It is not part of any configuration, so
it is in no file that a run leaves behind; an object of :class:`Key` prints without it.
"""

import os
import stat
from pathlib import Path

from skyshift.errors import SkyshiftError

KEY_VARIABLE = "TNG_API_KEY"
KEY_FILE = Path("~/.config/skyshift/tng_api_key")
KEY_PAGE = "https://www.tng-project.org/users/profile/"


class KeyMissingError(SkyshiftError):
    """There is no key, or it lies where others can read it."""


class Key:
    """A secret. It shows in no message, no traceback and no pickle; only :meth:`reveal` gives it away.

    Args:
        value: The key itself.

    Raises:
        KeyMissingError: It is empty, or holds what cannot stand in a header.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        if not value or not value.isascii() or not value.isprintable() or " " in value:
            raise KeyMissingError(
                f"the TNG API key is empty, or has spaces or letters that no key has; copy it from {KEY_PAGE}"
            )
        self._value = value

    def __repr__(self) -> str:
        return "Key(hidden)"

    def __reduce__(self) -> str:
        raise TypeError("a key is not written anywhere")

    def reveal(self) -> str:
        """The secret itself, for the header of a request."""
        return self._value

    def scrub(self, text: str) -> str:
        """``text`` without the secret, for words that came from elsewhere."""
        return text.replace(self._value, "(key)")


def _read_key_file(path: Path) -> Key:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise KeyMissingError(f"the key file {path} does not exist") from None
    if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise KeyMissingError(
            f"the key file {path} can be read or written by others (mode {stat.S_IMODE(mode):04o}); "
            f"run: chmod 600 {path}"
        )
    try:
        return Key(path.read_text(encoding="utf-8").strip())
    except (UnicodeDecodeError, OSError) as error:
        raise KeyMissingError(f"the key file {path} cannot be read ({type(error).__name__})") from None


def find_key(key_file: str = "") -> Key:
    """The key from ``key_file`` if one is named, else from ``$TNG_API_KEY``, else from :data:`KEY_FILE`.

    Raises:
        KeyMissingError: There is none, or the file may be read by others than its owner.
    """
    if key_file:
        return _read_key_file(Path(key_file).expanduser())
    if value := os.environ.get(KEY_VARIABLE, "").strip():
        return Key(value)
    path = KEY_FILE.expanduser()
    if path.exists():
        return _read_key_file(path)
    raise KeyMissingError(
        f"there is no TNG API key: set {KEY_VARIABLE}, or write the key into {path} and run chmod 600 on it; "
        f"yours is shown at {KEY_PAGE} once you are registered"
    )
