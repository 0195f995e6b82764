"""Files and folders are whole, or as they were."""

import json
import math
import os
import threading

import pytest

from skyshift import files
from skyshift.files import write_folder_whole, write_json, write_text, write_whole

INTERRUPTIONS = (RuntimeError, KeyboardInterrupt, SystemExit)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("error", INTERRUPTIONS)
@pytest.mark.parametrize("old", [None, "old"])
def test_an_interrupted_file_leaves_what_was_there(tmp_path, error, old):
    path = tmp_path / "result.txt"
    if old:
        path.write_text(old)
    before = tree(tmp_path)

    def write():
        with write_whole(path) as side:
            side.write_text("half of the n")
            assert tree(tmp_path).keys() > before.keys()
            raise error

    with pytest.raises(error):
        write()
    assert tree(tmp_path) == before


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    (tmp_path / "result.txt").write_text("old")
    before = tree(tmp_path)
    with pytest.raises(FileNotFoundError), write_whole(tmp_path / "result.txt"):
        pass
    assert tree(tmp_path) == before


def test_a_file_appears_at_once_beside_its_old_self(tmp_path):
    path = tmp_path / "deep" / "result.fits.gz"
    write_text(path, "old")
    with write_whole(path) as side:
        assert side.parent == path.parent  # the same file system, where a rename is atomic
        assert side.suffix == path.suffix  # libraries choose a format by it
        side.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "result.txt"
    texts = {"a" * 100_000, "b" * 100_000}
    write_text(path, "a" * 100_000)
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for text in sorted(texts):
            write_text(path, text)
    done.set()
    reader.join()
    assert seen <= texts


@pytest.mark.parametrize("error", INTERRUPTIONS)
@pytest.mark.parametrize("old", [None, "old"])
def test_an_interrupted_folder_leaves_what_was_there(tmp_path, error, old):
    path = tmp_path / "step_0000001"
    if old:
        write_text(path / "state" / "file.txt", old)
    before = tree(tmp_path)

    def write():
        with write_folder_whole(path) as side:
            write_text(side / "state" / "file.txt", "new")
            raise error

    with pytest.raises(error):
        write()
    assert tree(tmp_path) == before


def test_a_folder_replaces_the_old_one_wholly(tmp_path):
    path = tmp_path / "step_0000001"
    write_text(path / "gone.txt", "old")
    write_text(path / "kept.txt", "old")
    with write_folder_whole(path) as side:
        write_text(side / "kept.txt", "new")
        assert (path / "kept.txt").read_text() == "old"
    assert tree(path) == {"kept.txt": b"new"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_old_folder_comes_back_where_the_new_one_cannot_be_renamed(tmp_path, monkeypatch, error):
    path = tmp_path / "step_0000001"
    write_text(path / "file.txt", "old")
    before, rename, calls = tree(tmp_path), os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == 2:  # the old one has been moved aside, the new one is to take its place
            raise error
        rename(source, target)

    def write():
        with write_folder_whole(path) as side:
            (side / "file.txt").write_text("new")
            monkeypatch.setattr(files.os, "replace", failing)

    with pytest.raises(type(error)):
        write()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("value", [{"a": math.nan}, {"a": [1.0, math.inf]}, {"a": object()}])
def test_json_that_is_none_changes_nothing(tmp_path, value):
    path = tmp_path / "facts.json"
    write_json(path, {"b": [1, 2.5, "HI"]})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, value)
    assert json.loads(path.read_text()) == {"b": [1, 2.5, "HI"]}
    assert list(tmp_path.iterdir()) == [path]
