"""The notebooks run from top to bottom, on a smaller budget, and are kept without outputs."""

import ast
import functools
from pathlib import Path

import pytest

import pyro_vae as pv

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_notebooks():
    """The tests below say nothing about an empty folder."""
    assert {"first_posterior", "three_algorithms", "topics", "which_objective"} <= {
        path.stem for path in NOTEBOOKS
    }


def names_of(source):
    """Every ``pv.a.b`` in the Python of a notebook, the longest of each, as a list of names."""
    for node in ast.walk(ast.parse(source)):
        names = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id == "pv" and names:
            yield names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_it_takes_of_the_package_is_there(path):
    """A name that has gone is found without a run."""
    cells = nbformat.read(path, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    source = "\n".join(code).replace("%matplotlib inline", "")
    found = list(names_of(source))
    assert len(found) > 5
    for names in found:
        assert functools.reduce(getattr, names, pv) is not None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_draws_its_pictures(path, monkeypatch, tmp_path):
    monkeypatch.setenv("PYRO_VAE_QUICK", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3")
    client.execute(cwd=str(tmp_path))

    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) >= 3
    assert not list(tmp_path.iterdir()), "a notebook leaves no files behind"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path):
    """Outputs go stale, and hide a change of code in megabytes of pictures."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


def test_the_first_posterior_takes_ten_statements():
    """What the notebook promises above the cell."""
    notebook = nbformat.read(FOLDER / "first_posterior.ipynb", as_version=4)
    above = [i for i, cell in enumerate(notebook.cells) if "in ten lines" in cell.source]
    assert len(above) == 1
    assert len(ast.parse(notebook.cells[above[0] + 1].source).body) <= 10
