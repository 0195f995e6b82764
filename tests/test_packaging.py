"""The wheel holds every module and configuration, takes no name of another distribution, and data flows one way."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

STAGES = ("datasets", "translate", "adapt")

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
from pathlib import Path
import skyshift
assert Path(skyshift.__file__).is_relative_to(sys.argv[1]), skyshift.__file__

def modules(paths, prefix):  # pkgutil.walk_packages does not enter folders without __init__.py
    for path in paths:
        for folder in Path(path).iterdir():
            if folder.is_dir() and folder.name.isidentifier() and folder.name != "__pycache__":
                yield from modules([folder], f"{prefix}{folder.name}.")
    yield from (module.name for module in pkgutil.iter_modules(map(str, paths), prefix))

for name in modules(skyshift.__path__, "skyshift."):
    module = importlib.import_module(name)
    assert Path(module.__file__).is_relative_to(sys.argv[1]), (name, module.__file__)
    print(name)
from skyshift.command import shipped_config
assert shipped_config("translate/gas_to_hi.yaml").is_file()
"""


def python_files(folder):
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def modules_of(repository):
    """Import names of all files of the checkout."""
    names = {f"skyshift.{path.stem}" for path in (repository / "src" / "skyshift").glob("*.py")}
    for stage in STAGES:
        for path in python_files(repository / stage):
            names.add("skyshift." + ".".join(path.relative_to(repository).with_suffix("").parts))
    return names - {"skyshift.__init__"}


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory):
    """Built with the installed setuptools, so that no network is needed."""
    folder = tmp_path_factory.mktemp("wheel")
    # A copy without what a checkout gathers: an old build/ would be packed again.
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "src", *STAGES, "configs"):
        if (repository / name).exists():
            command = ["cp", "-a", "--", str(repository / name), str(source)]
            subprocess.run(command, check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_takes_no_name_but_its_own(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"skyshift", next(entry for entry in top if entry.endswith(".dist-info"))}
    assert "skyshift/py.typed" in names
    assert not [name for name in names if name.startswith("skyshift/tests")]


def test_the_wheel_holds_every_configuration(wheel, repository):
    with zipfile.ZipFile(wheel) as archive:
        packed = {n.removeprefix("skyshift/"): archive.read(n) for n in archive.namelist() if n.endswith(".yaml")}
    here = {str(path.relative_to(repository)): path.read_bytes() for path in (repository / "configs").rglob("*.yaml")}
    assert here
    assert packed == here


@pytest.mark.slow
def test_every_module_of_the_wheel_can_be_imported_elsewhere(wheel, repository, tmp_path):
    target = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    result = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT_EVERYTHING, str(target)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert modules_of(repository) <= set(result.stdout.split())


def test_every_command_is_there(repository):
    scripts = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts
    for name, place in scripts.items():
        module, _, function = place.partition(":")
        path = repository.joinpath(*module.split(".")[1:]).with_suffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


# --- names and directions


def imported(path):
    """Names of the modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield str(node.module)
            if node.module == "skyshift":
                yield from (f"skyshift.{alias.name}" for alias in node.names)


FORBIDDEN = {
    "src/skyshift": ("skyshift.datasets", "skyshift.translate", "skyshift.adapt"),
    "datasets": ("skyshift.translate", "skyshift.adapt"),
    "translate": ("skyshift.adapt",),
}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_data_flows_one_way(repository, folder):
    files = python_files(repository / folder) if folder != "src/skyshift" else (repository / folder).glob("*.py")
    seen = 0
    for path in files:
        for name in imported(path):
            seen += 1
            assert not name.startswith(FORBIDDEN[folder]), f"{path} imports {name}"
            # Bare stage names would be other distributions, or this one twice.
            assert name.split(".")[0] not in STAGES, f"{path} imports {name}"
    assert seen


def needed(distribution, found):
    """Names of the distributions that one needs at run time, and those need in turn."""
    for line in metadata.requires(distribution) or ():
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        needed(name, found)
    return found


def dependencies():
    """Import names of the standard library and of everything that is needed at run time."""
    names = needed("skyshift", set())
    provided = metadata.packages_distributions()
    found = {name for name, by in provided.items() if names & {canonicalize_name(entry) for entry in by}}
    return found | set(sys.stdlib_module_names)


def test_no_file_hides_another_module(repository):
    """A script's folder stands first on the path: a file ``select.py`` there would be everybody's ``select``."""
    known = dependencies()
    assert {"torch", "shap", "json", "select"} <= known
    for stage in STAGES:
        for entry in (repository / stage).iterdir():
            # Folders are namespace packages, which come after every module and package of the same name on the path.
            if entry.suffix == ".py":
                assert entry.stem not in known, entry


def test_the_stages_are_namespace_packages(repository):
    for stage in STAGES:
        assert not list((repository / stage).rglob("__init__.py"))
        link = repository / "src" / "skyshift" / stage
        assert link.is_symlink()
        assert not Path(os.readlink(link)).is_absolute()
        assert link.resolve() == (repository / stage).resolve()
