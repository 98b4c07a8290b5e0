"""The recipes of CONTRIBUTING.md: each block, put where it says, is one file more and no other."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
RECIPES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", TEXT, re.S))
PARTS = {"pyro_vae/priors/laplace.py": "Laplace", "pyro_vae/likelihoods/poisson.py": "Poisson"}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """A copy of the repository in which all recipes have been followed."""
    folder = tmp_path_factory.mktemp("scratch")
    unwanted = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "comparison", "build")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=unwanted, dirs_exist_ok=True)
    for name, code in RECIPES.items():
        assert not (folder / name).exists(), f"{name} is there already: take another example"
        (folder / name).write_text(code)
    return folder


def run(scratch, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(scratch), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)


def passes(scratch, *arguments):
    """How many tests of the folder passed; the others are told."""
    done = run(scratch, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(re.search(r"(\d+) passed", done.stdout)[1])


def test_there_is_a_recipe_for_each():
    folders = [name.split("/")[1] for name in RECIPES]
    assert folders == ["priors", "likelihoods", "objectives", "datasets"]


def test_recipes_are_written_in_the_house_style(scratch):
    for tool in (["check"], ["format", "--check"]):
        done = run(scratch, "-m", "ruff", *tool, *RECIPES)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", PARTS)
def test_a_part_is_in_the_folder_tests(scratch, file):
    assert passes(scratch, "tests/test_parts.py", "-k", PARTS[file]) >= 5


def test_an_objective_is_in_the_folder_tests(scratch):
    assert passes(scratch, "tests/test_engine.py", "-k", "Renyi and linear_gaussian") >= 4


def test_parts_have_flags_and_are_loaded_by_name(scratch):
    out = scratch / "run"
    done = run(
        scratch, "-m", "pyro_vae.cli", "fit", "bernoulli_vae", "--steps", "2",
        "--model.prior", "Laplace", "--model.prior.scale", "2", "--objective", "Renyi",
        "--objective.alpha", "0.3", "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code = f"import pyro_vae as pv; run = pv.load({str(out)!r}); print(run.program.prior)"
    assert run(scratch, "-c", code).stdout.strip() == "Laplace(latent_dim=20, scale=2.0)"


def test_a_data_set_is_found_and_trains(scratch):
    assert passes(scratch, "tests/test_datasets.py", "-k", "wine") == 1
    code = (
        "import pyro_vae as pv; from pyro_vae.models import gaussian_vae; "
        "wine = pv.datasets.load('wine'); print(wine); "
        "vae = gaussian_vae.build(wine.dim, latent_dim=2, hidden_dim=8, sigmoid_mean=False); "
        "print(pv.fit(vae, wine.train, steps=3).manifest['num_data'])"
    )
    done = run(scratch, "-W", "error", "-c", code)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "DataSet(wine: train 124, validation 18, test 36; dim 13; binarize='none')", "124"
    ]  # fmt: skip
    assert "wine" in run(scratch, "-m", "pyro_vae.cli", "data", "list").stdout
