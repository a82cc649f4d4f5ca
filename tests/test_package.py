import ast
import importlib
import importlib.metadata
import importlib.resources
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ssnn_plugin

ROOT = Path(ssnn_plugin.__file__).parents[1]
MODULES = ["ssnn_plugin", "ssnn_plugin.functional", "ssnn_plugin.nn"]
HEAVY = {"snntorch", "norse", "pandas", "matplotlib", "torchvision", "numba"}


def test_import_is_light():
    code = "import sys, ssnn_plugin; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "torch" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_exists(name):
    module = importlib.import_module(name)
    assert module.__all__
    assert len(set(module.__all__)) == len(module.__all__)
    assert [missing for missing in module.__all__ if not hasattr(module, missing)] == []


@pytest.fixture(scope="module")
def project():
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_types_are_shipped(project):
    assert importlib.resources.files("ssnn_plugin").joinpath("py.typed").is_file()
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["ssnn_plugin"]


@pytest.fixture(scope="module")
def floors(project):
    """The lowest release of every distribution that the project depends on, by its name."""
    declared = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    bounds = [
        re.fullmatch(r"([\w-]+)>=([\d.]+),<[\d.]+(;.*)?", entry)
        for entries in declared
        for entry in entries
        if not entry.startswith("ssnn-plugin[")
    ]
    assert None not in bounds, "a dependency has no lower or no upper bound"
    return {bound[1]: bound[2] for bound in bounds}


def test_the_floors_that_are_tested_are_those_declared(floors):
    lines = (ROOT / ".ci" / "floor.txt").read_text().splitlines()
    assert dict(line.split("==") for line in lines if not line.startswith("#")) == floors


def test_every_import_is_a_declared_dependency(floors):
    folders = ["ssnn_plugin", "reproductions", "benchmarks", "examples", "tests"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    own = {*folders, *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    packages = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names) - own
    distributions = {"PIL": "pillow", "sklearn": "scikit-learn", "vl_convert": "vl-convert-python"}
    assert {distributions.get(name, name) for name in packages} <= floors.keys()


def test_version_is_that_of_the_installed_package():
    try:
        installed = importlib.metadata.version("ssnn-plugin")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("ssnn-plugin is not installed")
    assert installed == ssnn_plugin.__version__
