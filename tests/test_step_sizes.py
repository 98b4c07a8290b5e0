"""Step sizes that nobody names; a line a minute where there is no terminal; the array of a file."""

import functools
import io
import sys

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae import progress
from pyro_vae.cli import main
from pyro_vae.optimizers import Adagrad, step_size
from pyro_vae.progress import Record, line_a_minute

from .saved_runs import HELD_OUT, fit

optim = torch.optim


class Mine(optim.Adam):
    """A user's, whose author chose another default."""

    def __init__(self, params, lr=0.3, **options):
        super().__init__(params, lr=lr, **options)


class Silent(optim.Adam):
    def __init__(self, params, **options):
        super().__init__(params, **options)


@pytest.mark.parametrize(
    "optimizer, expected",
    [
        (optim.Adagrad, 0.02),
        (Adagrad, 0.02),
        (functools.partial(Adagrad, accumulate_steps=5), 0.02),
        (optim.Adam, 1e-3),
        (functools.partial(optim.Adam, betas=(0.5, 0.9)), 1e-3),
        (optim.AdamW, 1e-3),
        (optim.RAdam, 1e-3),
        (optim.NAdam, 2e-3),
        (optim.Adamax, 2e-3),
        (optim.SGD, 1e-3),
        (optim.RMSprop, 1e-2),
        (optim.Adadelta, 1.0),
        (Mine, 0.3),
    ],
)
@pytest.mark.filterwarnings("ignore:.*accumulat.*")  # by Adagrad, in so few steps alone
def test_each_optimizer_has_the_step_size_of_its_field(optimizer, expected):
    run = fit(optimizer=optimizer, steps=2, engine="pyro")
    assert run.manifest["lr"] == run.manifest["optimizer_options"]["lr"] == expected
    assert fit(optimizer=optimizer, steps=2, engine="pyro", lr=0.007).manifest["lr"] == 0.007


def test_one_that_nobody_knows_is_asked_for():
    with pytest.raises(ValueError, match=r"Silent has no default, expected .*: pass lr=1e-3"):
        fit(optimizer=Silent)
    assert fit(optimizer=Silent, lr=0.01, steps=1).manifest["lr"] == 0.01


@pytest.mark.parametrize(
    "optimizer",
    [lambda parameters: optim.SGD(parameters, lr=0.25), functools.partial(optim.SGD, lr=0.25)],
)
def test_one_that_is_said_twice_is_refused_and_not_dropped(optimizer):
    assert fit(optimizer=optimizer, steps=1).manifest["lr"] == 0.25
    with pytest.raises(ValueError, match=r"lr is 0\.1, and the optimizer .* brings its own"):
        fit(optimizer=optimizer, lr=0.1)
    assert step_size(optimizer, None) is None


def test_replicas_have_it_too():
    runs = pv.fit([fit(steps=1).program, fit(steps=1).program], HELD_OUT, steps=2,
                  optimizer=optim.Adam, engine="pyro", progress=False)  # fmt: skip
    assert [run.manifest["lr"] for run in runs] == [1e-3, 1e-3]


# --- the line -------------------------------------------------------------------------------------


def records(monkeypatch, seconds):
    clock = iter(seconds)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_log_gets_a_line_a_minute(monkeypatch):
    # At the start; then once a record, and once more where a line is printed.
    stream = records(monkeypatch, [0, 30, 61, 61, 100, 119, 122, 122])
    tell = line_a_minute("AEVB", 5000)
    for step, seconds in ((1, 30), (2, 61), (3, 100), (4, 119), (5, 122)):
        columns = {"bound": -1.5 * step, "validation_bound": -7.0, "grad_norm": 1.0}
        tell(Record(step, 1000 * step, seconds, columns, None, 2 if step > 2 else None))
    assert stream.getvalue().splitlines() == [
        "AEVB: 2,000 of 5,000 samples in 61 s, bound -3.00, held out -7.00",
        "AEVB: 5,000 of 5,000 samples in 122 s, bound -7.50, held out -7.00, best at step 2",
    ]


def test_a_fit_of_seconds_says_nothing_there_and_a_longer_one_does(monkeypatch, capsys):
    fit(steps=3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "line_a_minute", functools.partial(line_a_minute, every=0.0))
    fit(steps=3)
    assert capsys.readouterr().err.count("AEVB: ") == 3
    fit(steps=3, progress=False)
    assert capsys.readouterr().err == ""


# --- which array ----------------------------------------------------------------------------------


def test_a_file_of_several_arrays_is_read_by_the_key(tmp_path, capsys):
    path = tmp_path / "two.npz"
    bits = np.random.default_rng(0).random((40, 5)) < 0.5
    np.savez(path, first=bits.astype(float), second=np.zeros((40, 7)))
    command = ["fit", "bernoulli_vae", "--model.latent_dim", "2", "--model.hidden_dim", "4"]
    command += ["--steps", "2", "--engine", "pyro", "--data", str(path)]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "first" in told and "second" in told and "--key" in told
    assert main([*command, "--key", "first"]) == 0
    assert "40 rows of 5 columns" in capsys.readouterr().err
    assert main([*command, "--key", "third"]) == 2
    assert "third" in capsys.readouterr().err
    assert main([*command[:-1], "digits", "--key", "first"]) == 2
    assert "--key is for files of your own" in capsys.readouterr().err
