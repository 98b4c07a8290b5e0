"""What a machine may lack: libraries, headers, folders, signs.  It is said in time, in one line."""

import contextlib
import inspect
import io
import logging
import os
import subprocess
import sys
from importlib.metadata import version

import h5netcdf  # noqa: F401  # for good, before h5py is hidden: it remembers what it finds
import pyro.distributions
import pytest
import torch

import pyro_vae as pv
from pyro_vae.chains.convergence import split_rhat
from pyro_vae.cli import main
from pyro_vae.cli.verbs.compare import run_compare
from pyro_vae.cli.verbs.evidence import run_evidence
from pyro_vae.cli.verbs.fit import run_fit
from pyro_vae.comparison.table import Comparison
from pyro_vae.evidence.students import DEGREES, student_log_density
from pyro_vae.gradients.report import GradientReport
from pyro_vae.graphs import compiling, libraries
from pyro_vae.models import linear_gaussian
from pyro_vae.training.settings import Settings

from .quickly import some_quickly

X = torch.zeros(6, 3)
FIT = ["fit", "bernoulli_vae", "--data", "digits", "--model.hidden_dim", "4", "--steps", "2"]
FIT_AND_SAY = """
import torch, pyro_vae as pv
from pyro_vae.models import linear_gaussian
run = pv.fit(linear_gaussian.build(3), torch.zeros(6, 3), steps=2, engine="eager", progress=False)
print(run.manifest["engine"], repr(run.manifest["engine_reason"]))
"""
TO_ARVIZ = """
from pyro_vae.inference_data.datasets import container
try:
    container()
except ValueError as error:
    print(error)
"""


def python(code, **environment):
    kept = {n: v for n, v in os.environ.items() if n not in ("XDG_CACHE_HOME", "CUDA_HOME")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True, text=True, check=False, env=kept | environment,
    )  # fmt: skip


# --- libraries ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["h5py", "h5netcdf", "matplotlib"])
def test_compare_says_what_it_cannot_write_with_before_it_trains(
    name, monkeypatch, tmp_path, capsys
):
    def train(*args, **options):
        raise AssertionError("it trained")

    monkeypatch.setitem(sys.modules, name, None)  # its import fails
    monkeypatch.setattr("pyro_vae.comparison.compare", train)
    assert main(["compare", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and f"pip install {name}" in said
    assert not (tmp_path / "out").exists()


def test_fit_says_what_it_cannot_draw_with_before_it_trains(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("pyro_vae.fit", None)
    assert main([*FIT, "--out", str(tmp_path / "out")]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_saving_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    for made in (Comparison({}, None), GradientReport(None)):
        with pytest.raises(ValueError, match=r"without h5py .*pip install h5py"):
            made.save(tmp_path / "file.nc")


# --- the compiler -------------------------------------------------------------------------------

OUTPUT = """In file included from /a/b.h:3,
                 from /tmp/x.cpp:1:
/a/torch/python_arg_parser.h:14:10: {error}
   14 | #include <Python.h>
compilation terminated."""


def failing(error, monkeypatch):
    from torch._inductor.exc import CppCompileError

    def compiler(*args, **options):
        raise CppCompileError(["g++", "x.cpp"], OUTPUT.format(error=error))

    monkeypatch.setattr(compiling, "machine_code_of", compiler)
    monkeypatch.setattr(libraries, "loaded", lambda key, graph: None)
    monkeypatch.setattr(compiling, "pays", lambda graphs: True)
    compiling.warn_not_compiled.cache_clear()


def test_missing_headers_are_quoted_with_the_package_once_a_process(monkeypatch, caplog):
    failing("fatal error: Python.h: No such file or directory", monkeypatch)
    said = (
        rf"fatal error: Python.h: No such file .*apt install "
        rf"python{sys.version_info.major}\.{sys.version_info.minor}-dev, or python3-dev"
    )
    options = {"steps": 2, "progress": False}
    with pytest.raises(ValueError, match=said):
        pv.fit(linear_gaussian.build(3), X, engine="compiled", **options)
    assert not caplog.records  # the error says it
    with caplog.at_level(logging.WARNING, "pyro_vae"):
        for _ in range(2):
            run = pv.fit(linear_gaussian.build(3), X, **options)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "python3-dev" in record.getMessage()
    assert run.manifest["engine"] == "eager" and "Python.h" in run.manifest["engine_reason"]


def test_another_error_of_the_compiler_is_its_first_line(monkeypatch):
    failing("error: expected ';'", monkeypatch)
    monkeypatch.setattr(sys, "prefix", "/home/my name/.venv")
    with pytest.raises(ValueError, match=r"expected ';'; .*path with a space, /home/my name") as e:
        pv.fit(linear_gaussian.build(3), X, engine="compiled", steps=2, progress=False)
    assert "python3-dev" not in str(e.value)


@pytest.mark.parametrize("engine", some_quickly(["eager", "compiled"], "eager"))
def test_a_cache_that_cannot_be_written_is_said_where_one_compiles_and_nothing_fails(engine):
    done = python(
        FIT_AND_SAY.replace('"eager"', repr(engine)),
        TORCHINDUCTOR_CACHE_DIR=os.path.join(os.devnull, "cache"),
    )
    assert done.stdout.strip() == f"{engine} ''", done.stderr
    lines = [each for each in done.stderr.splitlines() if "cache" in each]
    assert len(lines) == (engine == "compiled")
    for line in lines:
        assert "cannot be used" in line and "set TORCHINDUCTOR_CACHE_DIR" in line


@pytest.mark.skipif(int(version("arviz").split(".")[0]) >= 1, reason="ArviZ 1 writes nothing")
def test_without_a_home_arviz_is_told_where_to_write():
    done = python(TO_ARVIZ, HOME=os.path.join(os.devnull, "home"))
    assert "set XDG_CACHE_HOME" in done.stdout and len(done.stdout.splitlines()) == 1, done.stderr


# --- the console --------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", some_quickly(["ascii", "cp437", "utf-8"], "ascii"))
def test_results_are_written_and_printed_in_any_encoding(encoding, tmp_path, monkeypatch):
    raw = io.BytesIO()
    stdout = io.TextIOWrapper(raw, encoding=encoding)
    with contextlib.redirect_stdout(stdout):
        assert main([*FIT, "--out", str(tmp_path / "run")]) == 0
        assert main(["evidence", str(tmp_path / "run"), "--num_particles", "30", "--num_data", "3",
                     "--out", str(tmp_path / "evidence")]) == 0  # fmt: skip
    stdout.flush()
    said = raw.getvalue().decode(encoding)
    sign = "+/-" if encoding == "ascii" else "±"
    assert f" {sign} " in said and "nats" in said
    assert stdout.errors == "strict"  # as it was
    assert (tmp_path / "run" / "history.csv").exists()
    assert (tmp_path / "evidence" / "evidence.csv").exists()


# --- written once -------------------------------------------------------------------------------


def test_the_version_is_one(capsys, tmp_path):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pyro-vae {pv.__version__}\n"
    program = linear_gaussian.build(3)
    run = pv.fit(program, X, steps=1, progress=False)
    assert run.manifest["versions"]["pyro-vae"] == pv.__version__
    result = pv.to_inference_data(program, X, num_draws=50, chains=2)
    assert result["posterior"].attrs["inference_library_version"] == pv.__version__


def test_defaults_are_the_same_wherever_an_option_is_named():
    def of(function):
        options = inspect.signature(function).parameters.values()
        return {o.name: o.default for o in options if o.default is not o.empty}

    for verb, function, own in (
        (run_fit, pv.fit, {"optimizer", "objective"}),
        (run_compare, pv.compare, {"out"}),
        (run_evidence, pv.log_evidence, {"proposal"}),
    ):
        theirs = of(function)
        for name, default in of(verb).items():
            if name not in own:
                assert theirs.get(name, default) == default, (verb, name)
    assert not of(Settings)  # they stand in the signature of fit alone
    assert of(run_fit)["lr"] is of(pv.fit)["lr"] is None
    assert "batch_size: 'int' = 100" in str(inspect.signature(pv.fit))  # as help() shows it


# --- what Pyro has, too -------------------------------------------------------------------------


def test_the_students_density_is_pyros():
    """Ours takes the draws as they were made, so that no triangular system has to be solved."""
    torch.manual_seed(0)
    root = torch.randn(4, 3, 3, dtype=torch.float64)
    factor = torch.linalg.cholesky(root @ root.mT + torch.eye(3, dtype=torch.float64))
    mean, standard = torch.randn(4, 3).double(), torch.randn(7, 4, 3).double()
    u = mean + torch.einsum("bij,kbj->kbi", factor, standard)
    degrees = torch.tensor(DEGREES, dtype=torch.float64)
    law = pyro.distributions.MultivariateStudentT(degrees, mean, factor)
    torch.testing.assert_close(student_log_density(standard, factor), law.log_prob(u))


def test_split_rhat_is_its_equation_for_an_odd_number_of_draws():
    draws = torch.randn(11, 3, 4, 2, dtype=torch.float64)
    halves = torch.cat([draws[:5], draws[-5:]], dim=1)
    ratio = halves.mean(0).var(0) / halves.var(0).mean(0)
    torch.testing.assert_close(split_rhat(draws), (4 / 5 + ratio).sqrt().amax(-1))
    assert split_rhat(draws[:, :1, :1]).shape == (1,)
    assert split_rhat(draws[:3]).isnan().all()
