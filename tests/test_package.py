import importlib
import importlib.metadata
import importlib.resources
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


def test_types_are_shipped():
    assert importlib.resources.files("ssnn_plugin").joinpath("py.typed").is_file()
    tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["ssnn_plugin"]


def test_version_is_that_of_the_installed_package():
    try:
        installed = importlib.metadata.version("ssnn-plugin")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("ssnn-plugin is not installed")
    assert installed == ssnn_plugin.__version__
