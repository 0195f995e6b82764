"""The key: read from where only its owner can read it, and shown nowhere."""

import pickle
import traceback

import pytest

from skyshift.datasets.tng_key import KEY_VARIABLE, Key, KeyMissingError, find_key

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home and no variable."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    return tmp_path / "home"


def key_file(path, mode=0o600, text=SECRET + "\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_named_file_goes_before_the_variable_and_that_before_the_file_at_home(home, tmp_path, monkeypatch):
    key_file(home / ".config/skyshift/tng_api_key", text="of-the-home")
    assert find_key().reveal() == "of-the-home"
    monkeypatch.setenv(KEY_VARIABLE, "of-the-variable")
    assert find_key().reveal() == "of-the-variable"
    assert find_key(str(key_file(tmp_path / "named"))).reveal() == SECRET


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666, 0o610])
def test_a_file_that_others_can_reach_is_refused_with_the_cure(home, tmp_path, mode):
    for path, named in ((tmp_path / "named", True), (home / ".config/skyshift/tng_api_key", False)):
        key_file(path, mode)
        with pytest.raises(KeyMissingError, match=rf"mode {mode:04o}\); run: chmod 600 {path}") as caught:
            find_key(str(path) if named else "")
        assert SECRET not in str(caught.value)
    (tmp_path / "named").chmod(0o600)
    assert find_key(str(tmp_path / "named")).reveal() == SECRET


def test_no_key_is_said_with_where_to_put_one(home, tmp_path):
    with pytest.raises(KeyMissingError, match=r"set TNG_API_KEY, or write the key into .*chmod 600.*users/profile"):
        find_key()
    with pytest.raises(KeyMissingError, match="nowhere does not exist"):
        find_key(str(tmp_path / "nowhere"))
    private = tmp_path / "folder"
    private.mkdir(mode=0o700)
    with pytest.raises(KeyMissingError, match="cannot be read"):
        find_key(str(private))


@pytest.mark.parametrize("value", ["", "two words", "line\r\nbreak", "tab\tbed", "schlüssel"])
def test_what_cannot_stand_in_a_header_is_refused_unseen(value):
    """An http library would show it in the message about a bad header."""
    with pytest.raises(KeyMissingError) as caught:
        Key(value)
    assert not value or value not in str(caught.value)


def test_the_key_is_in_no_text_and_no_pickle():
    key = Key(SECRET)
    try:
        raise RuntimeError(key)
    except RuntimeError as error:
        told = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "Key(hidden)" in told
    for text in (told, repr(key), str(key), f"{key}", f"{[key]!r}"):
        assert SECRET not in text
    assert not hasattr(key, "__dict__")
    with pytest.raises(TypeError, match="not written anywhere"):
        pickle.dumps(key)
    assert key.scrub(f"bad key {SECRET}!") == "bad key (key)!"
