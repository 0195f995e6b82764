"""Names that a person may mistype: say what is known and which is nearest."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name``, or ``None`` where none is."""
    known = list(known)
    folded = {entry.casefold(): entry for entry in known}
    matches = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.5)
    return folded[matches[0]] if matches else None


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """A message for an unknown name: the nearest known one, and all of them."""
    known = list(known)
    guess = nearest(name, known)
    hint = f" Did you mean '{guess}'?" if guess else ""
    return f"unknown {what} '{name}'.{hint} Known: {', '.join(known) or 'none'}."
