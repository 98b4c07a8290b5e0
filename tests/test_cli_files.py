"""Files that are none, have no end, or stand for more than they hold; and what runs out."""

import itertools
import os
import subprocess
import sys

import pytest

import pyro_vae as pv
from pyro_vae.cli import main

FIT = ["fit", "bernoulli_vae", "--model.hidden_dim", "4", "--steps", "2"]


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        assert main(list(map(str, arguments))) == 2
        said = capsys.readouterr().err
        assert len(said.splitlines()) == 1 and "Traceback" not in said, said
        return said

    return call


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pyro-vae {pv.__version__}\n"


NAMES = "abcdefghi"
LAUGHS = "a: &a [x, x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}]\n" for before, name in itertools.pairwise(NAMES)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "c.yaml:2: *a repeats a value"),
        ("model: &a\n  x: *a\n", "c.yaml:2: *a repeats"),
        ("lr: " + "[" * 5000 + "]" * 5000, "nested more than 8 deep"),
        ("{a: " * 5000 + "}" * 5000, "nested more than 8 deep"),
        ("x: " + "y" * 70_000, "more than 65,536 bytes"),
        ("config: other.yaml", "one file holds all"),
    ],
    ids=["laughs", "itself", "lists", "dicts", "long", "config"],
)
def test_a_config_file_that_is_more_than_options_is_refused(text, said, refused, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    assert said in refused(*FIT, "--config", "c.yaml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_devices_and_folders_are_refused_by_name(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder").mkdir()
    for name, said in {"pipe.py": "is a pipe", "folder": "is a directory",
                       "/dev/zero": "is a device"}.items():  # fmt: skip
        assert said in refused(*FIT, "--config", name)
    assert "is a pipe" in refused("check", "pipe.py")
    assert "is a pipe" in refused(*FIT, "--model.prior", "pipe.py:Mine")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("verb", ["evidence", "resume"])
def test_a_run_that_is_no_regular_file_is_refused(verb, refused, tmp_path):
    for name in ("pipe", "zero", "deep"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "checkpoint.json")
    (tmp_path / "zero" / "checkpoint.json").symlink_to("/dev/zero")
    (tmp_path / "deep" / "checkpoint.json").write_text("[" * 200_000)
    for name, said in {"pipe": "no regular file", "zero": "no regular file",
                       "deep": "no whole JSON object"}.items():  # fmt: skip
        resume = [*FIT, "--resume", "--out", name]
        assert said in refused(*(["evidence", name] if verb == "evidence" else resume))


def test_a_folder_that_is_not_there_is_spoken_of_as_a_run(refused):
    assert "no folder of a run" in refused("evidence", "nosuchdir")
    assert "no such file" in refused("evidence", "no/such/folder")


def test_a_device_that_holds_no_numbers_is_refused(refused, tmp_path):
    assert "--device meta" in refused(*FIT, "--device", "meta")
    (tmp_path / "meta.py").write_text("import torch\ntorch.set_default_device('meta')\n")
    assert "default device to meta" in refused("fit", "meta.py", "--steps", "1")


def test_a_field_without_end_is_refused(refused, tmp_path):
    (tmp_path / "x.csv").write_text("1" * 200_000 + ",2\n" + "1,2\n" * 50)
    assert "x.csv: got no comma-separated text" in refused(*FIT, "--data", "x.csv")


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by the shell")
def test_too_little_memory_is_told_in_a_line(tmp_path):
    command = f"ulimit -v 12000000; exec {sys.executable} -m pyro_vae.cli {' '.join(FIT)}"
    done = subprocess.run(
        ["sh", "-c", f"{command} --model.hidden_dim 1e9"],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "out of memory for" in done.stderr


def test_a_message_of_the_package_names_flags(refused):
    """One table of names, the verb's own arguments: the package's checks are not written twice."""
    assert "such as --samples 150_000" in refused(*FIT[:4])
    assert "--early_stopping is 0" in refused(*FIT, "--early_stopping", "0")
    assert '--proposal "guide" needs a trained guide' in refused("compare", "--proposal", "guide")
