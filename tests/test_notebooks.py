"""The notebooks: their form, their committed outputs, and that each runs on a small budget."""

import ast
import dataclasses
import functools
import importlib.util
import re
import warnings
from pathlib import Path

import pytest

import pyro_vae as pv

from .calls import bind
from .quickly import some_quickly

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
NOT_FOR_READERS = {  # in what a cell printed or drew
    "a path of a machine": re.compile(r"/(home|root|tmp|work|usr|Users)/|[A-Z]:\\\\"),
    "an address in memory": re.compile(r"0x[0-9a-f]{6,}"),
    "a warning": re.compile(r"Warning\b"),
    "progress": re.compile(r"\d+ s left|it/s"),
}


@functools.cache
def execute_module():
    """``notebooks/execute.py``, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def read(path):
    return nbformat.read(path, as_version=4)


def code_of(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def python_of(cell):
    """Its source, without the lines that only IPython reads."""
    return "\n".join("" if line.startswith("%") else line for line in cell.source.split("\n"))


def texts_of(output):
    """All that a reader reads of an output; of a picture nothing."""
    yield output.get("text", "")
    for kind, value in output.get("data", {}).items():
        if not kind.startswith("image/"):
            yield str(value)


# --- form ---------------------------------------------------------------------------------------


def test_there_are_twelve_numbered_in_the_order_of_reading():
    """The tests below say nothing about an empty folder."""
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{number:02d}" for number in range(1, 13)]


@EACH
def test_it_asks_one_question_in_fewer_than_fifteen_cells(path):
    notebook = read(path)
    nbformat.validate(notebook)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert "?" in first.source.split("\n")[0]
    assert "you should see" in first.source.replace("\n", " ").lower()
    assert len(notebook.cells) < 15
    titles = [c for c in notebook.cells if c.cell_type == "markdown" and c.source.startswith("# ")]
    assert len(titles) == 1


@EACH
def test_its_links_lead_somewhere(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for target in LINK.findall(cell.source):
                assert (FOLDER / target).exists(), target


def names_of(source):
    """Every ``pv.a.b`` in the Python of a notebook, the longest of each, as a list of names."""
    for node in ast.walk(ast.parse(source)):
        names = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id == "pv" and names:
            yield names


@EACH
def test_what_it_takes_of_the_package_is_there(path):
    """A name that has gone is found without a run."""
    found = [names for cell in code_of(path) for names in names_of(python_of(cell))]
    assert len(found) > 3
    for names in found:
        assert functools.reduce(getattr, names, pv) is not None


@EACH
def test_its_calls_fit_their_signatures(path):
    assert sum(bind(python_of(cell)) for cell in code_of(path)) > 1


def test_the_first_posterior_takes_ten_statements():
    """What the notebook promises above the cell."""
    cells = read(NOTEBOOKS[0]).cells
    above = [i for i, cell in enumerate(cells) if "## The ten lines" in cell.source]
    assert len(above) == 1
    assert len(ast.parse(cells[above[0] + 1].source).body) <= 10


# --- committed outputs --------------------------------------------------------------------------


@EACH
def test_its_outputs_are_those_of_the_code_that_stands_there(path):
    """An edited cell keeps its old outputs: ``python notebooks/execute.py NAME`` makes new ones."""
    notebook = read(path)
    assert notebook.metadata["pyro_vae"]["digest"] == execute_module().digest(notebook)
    code = code_of(path)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in out.get("data", {}) for cell in code for out in cell.outputs)


@EACH
def test_its_outputs_are_for_readers(path):
    for cell in code_of(path):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text
            for text in texts_of(output):
                for what, pattern in NOT_FOR_READERS.items():
                    assert not pattern.search(text), f"{what}: {pattern.search(text)}"
    assert path.stat().st_size < 400_000


@EACH
def test_nothing_is_kept_that_differs_at_every_run(path):
    notebook = read(path)
    assert set(notebook.metadata) == {"kernelspec", "language_info", "pyro_vae"}
    assert "version" not in notebook.metadata.language_info
    assert [c.id for c in notebook.cells] == [f"cell-{i:02d}" for i in range(len(notebook.cells))]
    assert not any(cell.metadata for cell in notebook.cells)


def test_a_changed_cell_changes_the_digest_and_prose_does_not():
    digest, notebook = execute_module().digest, nbformat.read(NOTEBOOKS[0], as_version=4)
    before = digest(notebook)
    notebook.cells[0].source += " More prose."
    assert digest(notebook) == before
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[-1].source += "  # edited"
    assert digest(notebook) != before


# --- runs ---------------------------------------------------------------------------------------


def shown(value):
    """What a notebook makes of the value of a cell's last line."""
    for name in ("_repr_html_", "__repr__"):
        if hasattr(value, name):
            getattr(value, name)()


def smaller(code):
    """The budgets of a quick run once more, from thousands to hundreds."""
    return re.sub(r"\b\d[\d_]{3,} if QUICK", "300 if QUICK", code)


def few_digits():
    digits = pv.datasets.load("digits")
    train, validation, test = digits.train[:200], digits.validation[:30], digits.test[:40]
    return dataclasses.replace(digits, train=train, validation=validation, test=test)


def run_here(path):
    """The code cells one after the other in one namespace, as a kernel would; the figures drawn."""
    import matplotlib.pyplot as plt

    space, figures = {"__name__": path.stem, "display": shown}, 0
    for number, cell in enumerate(code_of(path)):
        body = ast.parse(smaller(python_of(cell)), f"{path.name}, cell {number}").body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        file = f"{path.name}, code cell {number + 1}"
        exec(compile(ast.Module(body, []), file, "exec"), space)
        if last is not None:
            shown(eval(compile(ast.Expression(last.value), file, "eval"), space))
        for figure in map(plt.figure, plt.get_fignums()):
            figure.canvas.draw()
            figures += 1
        plt.close("all")
    return figures


# The longest run by `make slow` alone: what they call has tests of its own, is bound to its
# signatures above, and runs on a small budget elsewhere.
QUICKLY = [path for path in NOTEBOOKS if path.stem[:2] not in ("03", "04", "09")]


@pytest.mark.parametrize(
    "path", some_quickly(NOTEBOOKS, *QUICKLY), ids=[path.stem for path in NOTEBOOKS]
)
def test_it_runs_on_a_small_budget(path, monkeypatch, tmp_path):
    """In this process, which spares each of them a kernel, torch and a first trace.

    On fewer digits than ``test_it_runs_in_a_kernel``.
    """
    import matplotlib

    few, load = few_digits(), pv.datasets.load

    matplotlib.use("Agg")
    monkeypatch.setenv("PYRO_VAE_QUICK", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        pv.datasets, "load", lambda name, **more: few if name == "digits" else load(name, **more)
    )
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("ignore", category=pv.PyroVaeWarning)  # budgets too short to learn
        run_here(path)
    assert not list(tmp_path.iterdir()), "a notebook leaves no files behind"


@pytest.mark.slow
@EACH
def test_it_runs_in_a_kernel(path, monkeypatch, tmp_path):
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYRO_VAE_QUICK", "1")
    notebook = nbformat.read(path, as_version=4)
    execute_module().execute(notebook, str(tmp_path), timeout=180)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert any("image/png" in out.get("data", {}) for out in outputs)
    assert not any(out.get("name") == "stderr" for out in outputs)
