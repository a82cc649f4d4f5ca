"""The notebooks run from top to bottom."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "notebook", sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_notebook_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    content = nbformat.read(notebook, as_version=4)
    kept = [output for cell in content.cells if cell.cell_type == "code" for output in cell.outputs]
    assert kept, "the site shows what a notebook printed: run it and save it"
    NotebookClient(content, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
