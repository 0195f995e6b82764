"""The log of a run: ``log.jsonl``, a line of JSON for every ``log_every`` steps and every validation."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skyshift.files import write_text


def open_log(folder: Path, step: int) -> None:
    """Drop what a killed run left unfinished, and the log's lines of steps that will be done again."""
    for unfinished in (folder / "checkpoints").glob(".step_*.partial"):
        shutil.rmtree(unfinished)
    path = folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    # A line that a crash cut short is of a step that will be done again.
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    write_text(path, "".join(line + "\n" for line in kept))


def append(folder: Path, line: Mapping[str, Any]) -> None:
    """Add a line."""
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
