"""Domains from a user's own file: made, kept apart from the rest, seen by a new process, and refused with the cure."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from skyshift.datasets import domains
from skyshift.datasets.domains import DOMAINS, Domain, DomainError, View, get_domain, load_domains, make_maps
from skyshift.datasets.domains import needed_fields as need_of
from skyshift.datasets.tng import Snapshot

GOOD = """
import numpy as np
from skyshift.datasets.domains import Domain


def speed(galaxy, recipes, view):
    return np.linalg.norm(galaxy.particles["gas"]["velocity"] - galaxy.velocity, axis=1)


DOMAINS = [
    Domain("speed", "Gas speed", "km / s", "gas", speed, fields=("velocity",), moment=1, scaling="linear"),
    Domain("born", "Mass born", "Msun / kpc2", "stars", lambda g, r, v: 2 * g.particles["stars"].mass),
]
another = Domain("another", "Another", "Msun / kpc2", "gas", lambda g, r, v: g.particles["gas"].mass)
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def to_file(text: str, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return to_file


def test_a_users_domain_is_as_good_as_any(tiny_simulation, write):
    path = write(GOOD)
    assert load_domains([path]) == ("speed", "born")
    assert need_of(["speed"]) == {"gas": {"velocity", "density"}}
    galaxy = Snapshot(tiny_simulation / "output", 99).galaxy(1, need=need_of(["speed", "born", "stars"]))
    maps = make_maps(galaxy, ["speed", "born", "stars"], View(np.eye(3), 40.0, 8))
    np.testing.assert_allclose(maps["born"], 2 * maps["stars"], rtol=1e-6)
    speed = np.linalg.norm(galaxy.particles["gas"]["velocity"] - galaxy.velocity, axis=1)
    assert 0 < maps["speed"].max() <= speed.max() * (1 + 1e-6)
    assert load_domains([path, path]) == ("speed", "born"), "twice is no clash"
    assert load_domains([f"{path}:another"]) == ("another",)


def test_nothing_runs_that_was_not_named(tmp_path, write):
    """A file in the folder is left alone; one that was named ran once, whatever its own names are."""
    write("raise RuntimeError('not asked for')", "other.py")
    ran = tmp_path / "ran"
    path = write(f"open({str(ran)!r}, 'a').write('x')\n" + GOOD, "numpy.py")
    load_domains([path])
    load_domains([path])
    assert ran.read_text() == "x"
    assert sys.modules["numpy"] is np


def test_a_module_by_its_name(tmp_path, write, monkeypatch):
    write(GOOD, "skyshift_test_domains.py")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_domains(["skyshift_test_domains"]) == ("speed", "born")
    assert load_domains(["skyshift_test_domains:another"]) == ("another",)
    with pytest.raises(DomainError, match="no_such_module cannot be run: ModuleNotFoundError"):
        load_domains(["no_such_module:DOMAINS"])


def test_a_new_process_sees_them_once_it_is_told(write):
    """As a spawned worker of a build does."""
    code = (
        "from skyshift.datasets.domains import load_domains, get_domain; "
        f"load_domains([{write(GOOD)!r}]); print(get_domain('speed').title)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "Gas speed"


ENTRY = "from skyshift.datasets.domains import Domain\nDOMAINS = [Domain({})]\n"
WHOLE = '"{}", "T", "{}", "{}", lambda g, r, v: g.particles["gas"].mass'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", r"mine\.py has no 'DOMAINS'; give it a list DOMAINS, or name another object"),
        ("DOMAINS = 7\n", r"mine\.py: DOMAINS is 7, not a Domain or a list"),
        ("DOMAINS = []\n", r"mine\.py: DOMAINS is \[\], not a Domain or a list"),
        ("DOMAINS = ['gas']\n", r"mine\.py: DOMAINS holds 'gas', which is no skyshift\.datasets\.domains\.Domain"),
        ("def f(:\n", r"mine\.py cannot be run: SyntaxError: .*line 1"),
        ("import sys\nsys.exit()\n", r"mine\.py cannot be run: SystemExit"),
        ("1 / 0\n", r"mine\.py cannot be run: ZeroDivisionError: division by zero"),
        (ENTRY.format(WHOLE.format("hi", "K", "gas")), r"there is a domain 'hi' already, of skyshift itself; rename"),
        (ENTRY.format(WHOLE.format("a b", "K", "gas")), r"'a b' cannot name a domain"),
        (ENTRY.format(WHOLE.format("new", "parrots", "gas")), r"domain 'new': 'parrots' is no unit that astropy knows"),
        (ENTRY.format(WHOLE.format("new", "K", "gass")), r"domain 'new': unknown kind of particle 'gass'.*'gas'"),
        (ENTRY.format(WHOLE.format("new", "K", "gas") + ", moment=3"), r"domain 'new': moment is 0, 1 or 2, not 3"),
        (
            ENTRY.format(WHOLE.format("new", "K", "gas") + ", scaling='lgo'"),
            r"mine\.py: domain 'new': unknown scaling 'lgo'\. Did you mean 'log'",
        ),
        (
            ENTRY.format(WHOLE.format("new", "K", "gas") + ", colour_map='virids'"),
            r"domain 'new': unknown colour map 'virids'\. Did you mean 'viridis'",
        ),
        (
            ENTRY.format(WHOLE.format("new", "K", "gas") + ", scaling='log', minimum=-1.0"),
            r"domain 'new' has values below 0, which log cannot scale; use asinh",
        ),
    ],
)
def test_what_is_no_domain_is_refused_and_leaves_the_table_alone(write, text, message):
    before = dict(DOMAINS)
    with pytest.raises(DomainError, match=message):
        load_domains([write(text)])
    assert before == DOMAINS


def test_two_files_with_one_name(write):
    first, second = write(GOOD), write(GOOD, "second.py")
    with pytest.raises(DomainError, match=r"second\.py: there is a domain 'speed' already, of .*mine\.py:DOMAINS;"):
        load_domains([first, second])
    assert "speed" not in DOMAINS, "all or none"
    load_domains([first])
    with pytest.raises(DomainError, match=r"there is a domain 'speed' already, of .*mine\.py"):
        load_domains([second])
    assert get_domain("speed") is DOMAINS["speed"]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DomainError, match=r"nowhere\.py does not exist; domain_files names Python files"):
        load_domains([str(tmp_path / "nowhere.py")])


def test_domains_look_at_signs():
    signed = Domain("s", "S", "km / s", "gas", lambda g, r, v: g.particles["gas"].mass, minimum=-np.inf)
    assert signed.signed
    assert {name for name, domain in DOMAINS.items() if domain.signed} == {"velocity", "velocity_stars"}


def test_a_negative_weight_is_refused_by_name(tiny_simulation, write):
    """A mean over weights of two signs may lie outside of what it averages."""
    text = GOOD + "shifted = [Domain('mean', 'M', 'km / s', 'gas', speed, ('velocity',), 1, weight={})]\n"
    mass = "lambda g, r, v: g.particles['gas'].mass"
    galaxy = Snapshot(tiny_simulation / "output", 99).galaxy(1, need=need_of(["gas", "velocity"]))
    view = View(np.eye(3), 40.0, 8)
    load_domains([write(text.format(mass + " - g.particles['gas'].mass.mean()")) + ":shifted"])
    count = len(galaxy.particles["gas"])
    with pytest.raises(
        DomainError, match=rf"domain 'mean': its weight is negative in \d+ of {count} gas particles of s"
    ):
        make_maps(galaxy, ["gas", "mean"], view)
    DOMAINS.pop("mean")
    domains._ORIGINS.pop("mean")
    load_domains([write(text.format(mass), "second.py") + ":shifted"])
    assert make_maps(galaxy, ["mean"], view)["mean"].max() > 0
