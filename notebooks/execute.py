"""Run notebooks and keep their outputs: ``python notebooks/execute.py [NAME ...]``.

A NAME is the beginning of a file's name, ``03`` or ``03_your_own_likelihood``; without one all are
run.  Each runs in a fresh kernel, one thread, in an empty folder, with its full budget.  What would
differ at every run for no reason (times, versions, cell names) is not kept.  The digest of the code
that made the outputs is, so that a test finds a cell that was edited afterwards.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent


def digest(notebook: nbformat.NotebookNode) -> str:
    """Of the sources of the code cells, in their order."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()[:16]


def execute(notebook: nbformat.NotebookNode, folder: str, timeout: int = 900) -> None:
    """Run it in a kernel that starts in ``folder``; its outputs are put into it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the kernel's: one sum has one order
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False).execute(
        cwd=folder
    )


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Keep what a reader needs, and nothing that another machine or day would write otherwise."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": kernel,
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
            "pyro_vae": {"digest": digest(notebook)},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", {}
        for output in cell.get("outputs", []):
            output.pop("transient", None)
            if "metadata" in output:
                output["metadata"] = {}


def main(names: list[str]) -> None:
    """Execute the notebooks whose file names begin with ``names``."""
    os.environ.pop("PYRO_VAE_QUICK", None)
    for name in names or [""]:
        paths = sorted(FOLDER.glob(f"{name}*.ipynb"))
        if not paths:
            raise SystemExit(
                f"no notebook begins with {name!r}: there are {sorted(FOLDER.glob('*.ipynb'))}"
            )
        for path in paths:
            started = time.perf_counter()
            notebook = nbformat.read(path, as_version=4)
            with tempfile.TemporaryDirectory() as folder:
                execute(notebook, folder)
            tidy(notebook)
            nbformat.validate(notebook)
            nbformat.write(notebook, path)
            seconds = time.perf_counter() - started
            print(f"{path.name}: {seconds:.0f} s, {path.stat().st_size / 1e3:.0f} KB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
