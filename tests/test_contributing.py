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
PARTS = {
    "pyro_vae/priors/soft_laplace.py": "SoftLaplace",
    "pyro_vae/likelihoods/geometric.py": "Geometric",
}

HERE = "--- the tests ---"
USE = """
import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.models import gaussian_vae
flags = "--steps 2 --model.prior SoftLaplace --model.prior.scale 2 --objective Renyi"
flags += " --objective.alpha 0.3 --out run"
assert main(["fit", "bernoulli_vae", *flags.split()]) == 0
run = pv.load("run")
print(run.program.prior, run.manifest['objective'], sep="\\n")
wine = pv.datasets.load("wine")
print(wine)
vae = gaussian_vae.build(wine.dim, latent_dim=2, hidden_dim=8, sigmoid_mean=False)
print(pv.fit(vae, wine.train, steps=3).manifest["num_data"])
assert main(["data", "list"]) == 0
"""


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


@pytest.fixture(scope="module")
def said(scratch):
    """By one process, for imports take seconds: what the recipes' uses print, and their tests."""
    files = ["tests/test_parts.py", "tests/test_engine.py", "tests/test_datasets.py"]
    which = "SoftLaplace or Geometric or (Renyi and linear_gaussian) or wine"
    flags = ["-q", "-rp", "-p", "no:cacheprovider", *files, "-k", which]
    code = f"{USE}\nprint({HERE!r})\nimport pytest\nraise SystemExit(pytest.main({flags}))"
    done = run(scratch, "-W", "error", "-c", code)
    assert done.returncode == 0 and "rror" not in done.stderr, done.stdout + done.stderr
    return done.stdout.split(f"{HERE}\n")


@pytest.fixture(scope="module")
def told(said):
    return said[0].splitlines()


@pytest.fixture(scope="module")
def passed(said):
    """The folder's tests that passed, by name."""
    return re.findall(r"^PASSED (\S+::.*)$", said[1], re.M)


def test_there_is_a_recipe_for_each():
    folders = [name.split("/")[1] for name in RECIPES]
    assert folders == ["priors", "likelihoods", "objectives", "datasets"]


def test_recipes_are_written_in_the_house_style(scratch):
    for tool in (["check"], ["format", "--check"]):
        done = run(scratch, "-m", "ruff", *tool, *RECIPES)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", PARTS)
def test_a_part_is_in_the_folder_tests(passed, file):
    assert sum("test_parts" in name and PARTS[file] in name for name in passed) >= 5


def test_an_objective_is_in_the_folder_tests(passed):
    assert sum("test_engine" in name and "Renyi" in name for name in passed) >= 4


def test_parts_have_flags_and_are_loaded_by_name(told):
    assert "SoftLaplace(latent_dim=20, scale=2.0)" in told
    assert "Renyi(alpha=0.3, num_particles=5)" in told


def test_a_data_set_is_found_and_trains(passed, told):
    assert sum("test_datasets" in name and "wine" in name for name in passed) == 1
    wine = "DataSet(wine: train 124, validation 18, test 36; dim 13; binarize='none')"
    at = told.index(wine)
    assert told[at + 1] == "124"
    assert any(line.startswith("wine ") for line in told[at + 2 :])
