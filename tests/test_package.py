import ast
import importlib
import importlib.metadata
import importlib.resources
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ssnn_plugin

ROOT = Path(ssnn_plugin.__file__).parents[1]
MODULES = [
    "ssnn_plugin",
    *(f"ssnn_plugin.{name}" for name in ("convert", "functional", "neurons", "nir", "nn", "norse")),
    *(f"ssnn_plugin.{name}" for name in ("relu", "rules", "snntorch", "testing")),
]
HEAVY = {"snntorch", "norse", "pandas", "matplotlib", "torchvision", "numba"}


IMPORT = """
import sys, torch, ssnn_plugin
print(*{name.split(".")[0] for name in sys.modules})
from ssnn_plugin.kernels.backends import select
print(select(None, torch.device("cpu"), torch.float32, ssnn_plugin.IF()), "triton" in sys.modules)
import ssnn_plugin.suite, reproductions
print(reproductions.__file__)
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What a process in another folder says after each import."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_import_is_light(imported):
    modules = set(imported[0].split())
    assert "torch" in modules
    assert not modules & HEAVY


def test_choosing_a_backend_for_the_cpu_imports_no_other(imported):
    assert imported[1] == "cpu False"


SAVE = """
import torch
from ssnn_plugin import IF, ExpPSP
from ssnn_plugin.nn import SpikeLinear, SpikeSequential

layers = SpikeLinear(3, 4, neuron=ExpPSP(1.0), t_max=8), SpikeLinear(4, 2, neuron=IF(1.0), t_max=8)
torch.export.save(torch.export.export(SpikeSequential(*layers), (torch.rand(5, 3),)), {path!r})
"""
LOAD = "import torch, ssnn_plugin; torch.export.load({path!r}).module()(torch.rand(5, 3))"


@pytest.mark.slow
def test_a_saved_program_runs_after_the_import_alone(tmp_path):
    for code in (SAVE, LOAD):
        code = code.format(path=str(tmp_path / "network.pt2"))
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


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
    assert importlib.resources.files("ssnn_plugin").joinpath("__init__.pyi").is_file()
    assert project["tool"]["setuptools"]["package-data"]["ssnn_plugin"] == ["py.typed", "*.pyi"]


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


@pytest.mark.slow
def test_every_import_is_a_declared_dependency(floors):
    folders = ["ssnn_plugin", "reproductions", "benchmarks", "docs", "examples", "tests"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    own = {*folders, *(path.stem for folder in ("docs", "tests") for path in (ROOT / folder).glob("*.py"))}
    packages = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names) - own
    distributions = {"PIL": "pillow", "sklearn": "scikit-learn", "vl_convert": "vl-convert-python"}
    distributions |= {"griffe": "mkdocstrings-python", "markdown": "mkdocs"}
    # Triton comes with torch; benchmarks run the other libraries that they find.
    found = {"triton", "spikingjelly", "sinabs", "exact_snn", "exact_event_adjoint"}
    assert {distributions.get(name, name) for name in packages - found} <= floors.keys()


def test_version_is_that_of_the_installed_package():
    try:
        installed = importlib.metadata.version("ssnn-plugin")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("ssnn-plugin is not installed")
    assert installed == ssnn_plugin.__version__


def test_the_citation_is_of_this_version():
    (version,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version == ssnn_plugin.__version__
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_suite_is_importable_from_any_folder(imported):
    assert imported[2] == str(ROOT / "reproductions" / "__init__.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of what git knows of the clone, unpacked."""
    pytest.importorskip("build")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no clone")
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check"]
    subprocess.run([*build, "--outdir", target, source], check=True, capture_output=True)
    (built,) = target.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(target / "unpacked")
    return target / "unpacked", set(listed.stdout.splitlines())


@pytest.mark.slow
def test_a_wheel_has_one_top_level_package_with_all_of_the_suite(wheel):
    unpacked, tracked = wheel
    assert sorted(path.name for path in unpacked.iterdir()) == [
        "ssnn_plugin", f"ssnn_plugin-{ssnn_plugin.__version__}.dist-info",
    ]  # fmt: skip
    suite = unpacked / "ssnn_plugin" / "_suite"
    assert [path.name for path in suite.iterdir()] == ["reproductions"]
    shipped = {str(path.relative_to(suite)) for path in suite.rglob("*") if path.is_file()}
    wanted = {name for name in tracked if name.startswith("reproductions/") and (ROOT / name).is_file()}
    left_out = {name for name in wanted if name.endswith(".md") or "/discarded/" in name}
    assert shipped == wanted - left_out


@pytest.mark.slow
def test_the_command_of_a_wheel_works_from_any_folder(wheel, tmp_path):
    unpacked, _ = wheel

    def call(*arguments):
        environment = {
            **os.environ,
            "PYTHONPATH": str(unpacked),
            "SSNN_RESULTS": str(tmp_path / "results"),
            "COLUMNS": "200",
        }
        return subprocess.run(
            [sys.executable, "-m", "ssnn_plugin", *arguments], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    before = {path: path.stat().st_mtime_ns for path in unpacked.rglob("*.json")}
    assert "s4nn-tuned" in call("list")
    call("run", "s4nn", "--dataset", "digits", "--epochs", "2")
    assert [path.name for path in (tmp_path / "results").glob("*.json")] == ["s4nn-digits-epochs2-seed0.json"]
    table = call("table", "--format", "csv")
    assert "64-" in table
    assert "digits" in table
    assert "fashion-mnist" in table
    call("report", "--output", "report.html")
    assert "s4nn-digits-epochs2" in (tmp_path / "report.html").read_text()
    assert {path: path.stat().st_mtime_ns for path in unpacked.rglob("*.json")} == before
