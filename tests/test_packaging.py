"""What is installed: pyro_vae and pyro_vae.models, once each, from pinned versions."""

import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import pyro_vae as pv

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = f"pyro_vae-{pv.__version__}"
MODELS = {f"pyro_vae/models/{path.name}" for path in (ROOT / "models").glob("*.py")}
OTHERS = {str(path.relative_to(ROOT)) for path in (ROOT / "pyro_vae").rglob("*.py")}


def python(*args, cwd):
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONPATH"}  # nobody's checkout
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A wheel and a source archive, built from a copy so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("source")
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, source)
    for name in ("models", "pyro_vae", "tests", "docs", "notebooks", "benchmarks"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    hooks = "import setuptools.build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
    built = python("-c", hooks, cwd=source)
    assert built.returncode == 0, built.stderr
    return source / "dist"


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_the_models_as_real_files_of_pyro_vae(wheel):
    files = {info.filename: info for info in wheel.infolist()}

    assert files.keys() >= MODELS | OTHERS | {"pyro_vae/py.typed"}
    assert {name.split("/")[0] for name in files} == {"pyro_vae", f"{NAME}.dist-info"}
    for name in MODELS:
        assert stat.S_ISREG(files[name].external_attr >> 16)


def test_source_archive_holds_the_models_as_real_files(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        for name in MODELS:
            assert archive.getmember(f"{NAME}/{name}").isreg()


def test_source_archive_holds_what_the_tests_need(dist):
    """setuptools by itself takes files named test_*.py, and those do not run alone."""
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = set(archive.getnames())
    tests = {str(each.relative_to(ROOT)) for each in (ROOT / "tests").rglob("*.py")}
    assert {"tests/conftest.py", "tests/oracles.py"} <= tests
    needed = {*tests, "constraints.txt", "Makefile", "pyproject.toml", "README.md", "LICENSE",
              "notebooks/mini_vae.py", "docs/engine.md", "benchmarks/step_speed.py"}  # fmt: skip
    assert {f"{NAME}/{name}" for name in needed} <= held
    assert not any("__pycache__" in name for name in held)


def test_wheel_names_the_command_and_the_license(wheel):
    metadata = wheel.read(f"{NAME}.dist-info/METADATA").decode()

    entry_points = wheel.read(f"{NAME}.dist-info/entry_points.txt").decode()
    assert "pyro-vae = pyro_vae.cli:main" in entry_points
    assert "License-Expression: Apache-2.0" in metadata


def test_installed_wheel_imports_the_models_and_nothing_named_models(wheel, tmp_path):
    site = tmp_path / "site"
    wheel.extractall(site)
    where = "import sys; sys.path.insert(0, 'site'); import pyro_vae.models as m; print(m.__file__)"

    assert python("-c", where, cwd=tmp_path).stdout.strip() == str(
        site / "pyro_vae" / "models" / "__init__.py"
    )
    assert "No module named 'models'" in python("-c", "import models", cwd=tmp_path).stderr


def test_models_cannot_be_imported_under_a_second_name():
    done = python("-c", "import models", cwd=ROOT)

    assert done.returncode == 1
    assert "from pyro_vae.models import" in done.stderr


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-3.12.txt"])
def test_every_dependency_is_pinned_within_its_bounds(file):
    requirements = pytest.importorskip("packaging.requirements")
    lines = (ROOT / file).read_text().splitlines()
    pins = [requirements.Requirement(line) for line in lines if not line.startswith("#")]

    def normal(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    versions = {}
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert "+" not in specifier.version, f"{pin}: a local tag excludes the other builds"
        versions[normal(pin.name)] = specifier.version
    for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]:
        wanted = requirements.Requirement(text)
        assert normal(wanted.name) in versions, "run `make lock`"
        assert wanted.specifier.contains(versions[normal(wanted.name)])
