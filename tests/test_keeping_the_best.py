"""Which weights a run ends with: the best ones by the held-out bound, or the last ones."""

import functools
import math
import signal

import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.models import bernoulli_vae
from pyro_vae.objectives import MonteCarloEM
from pyro_vae.runs import storage
from pyro_vae.training.loop import _risen

from .quickly import some_quickly
from .saved_runs import assert_same


def bits(n, seed):
    return (torch.rand(n, 6, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


X, HELD_OUT = bits(30, 0), bits(100, 5)


def program(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return bernoulli_vae.build(6, latent_dim=2, hidden_dim=64, init_std=None)


def overfit(vae=None, **options):
    """Thirty rows and no prior of weights: the held-out bound falls soon."""
    return pv.fit(vae or program(), X, **{
        "steps": 60, "optimizer": torch.optim.Adam, "lr": 0.02, "validation": HELD_OUT,
        "evaluate_every": 5, "engine": "pyro", "progress": False, **options,
    })  # fmt: skip


@functools.cache
def usual(**options):
    """A run that several tests look at and none changes."""
    return overfit(**options)


def held_out(run):
    records = run.history.dropna(subset=["validation_bound"]).set_index("step").validation_bound
    return float(records.max()), int(records.idxmax())


def test_early_stopping_ends_with_the_best_program_and_says_which():
    run = overfit(steps=400, early_stopping=10)
    best, step = held_out(run)
    assert run.manifest["keep"] == "best" and run.manifest["stopped"].startswith("early stopping")
    assert run.manifest["kept_step"] == run.manifest["best_step"] == step < run.manifest["steps"]
    assert run.manifest["best_validation_bound"] == best
    assert float(pv.elbo(run.program, HELD_OUT).mean()) == best
    assert f"best weights, of step {step} of {run.manifest['steps']}" in repr(run)
    assert f"validation_bound {best:.2f}" in repr(run)


def test_what_is_kept_are_the_weights_of_that_step_and_no_rise_is_too_small():
    """The evaluation that early stopping waits to see surpassed is another: it asks for an SE."""
    run = usual(keep="best")
    step = held_out(run)[1]
    there = overfit(steps=step, evaluate_every=5)
    assert_same(dict(run.program.named_parameters()), dict(there.program.named_parameters()))


@pytest.mark.parametrize("options", [{}, {"early_stopping": 100, "keep": "last"}])
def test_the_last_weights_are_kept_without_early_stopping_or_where_asked_for(options):
    run = usual(**options)
    plain = usual(validation=None, evaluate_every=None)
    assert (run.manifest["keep"], run.manifest["kept_step"]) == ("last", 60)
    assert run.manifest["best_step"] == held_out(run)[1] < 60
    assert "best weights" not in repr(run)
    assert_same(dict(run.program.named_parameters()), dict(plain.program.named_parameters()))


@pytest.mark.parametrize("engine", some_quickly(["pyro", "eager"], "pyro"))
def test_a_run_that_goes_on_does_so_from_its_last_weights(tmp_path, stop, engine):
    options = {"keep": "best", "engine": engine}
    whole = overfit(out=tmp_path / "whole", **options)
    for step in (33, 43):  # after the best evaluation, both of them
        stop[step] = signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            overfit(program(step - 33), out=tmp_path / "parts", resume=True, **options)
        halfway = pv.load(tmp_path / "parts")
        assert halfway.manifest["kept_step"] == whole.manifest["kept_step"] < step
        assert_same(
            dict(halfway.program.named_parameters()), dict(whole.program.named_parameters())
        )
    parts = overfit(program(8), out=tmp_path / "parts", resume=True, **options)
    for run in (parts, pv.load(tmp_path / "whole"), pv.load(tmp_path / "parts")):
        assert_same(dict(run.program.named_parameters()), dict(whole.program.named_parameters()))
        assert run.manifest["kept_step"] == whole.manifest["kept_step"] < 60
    assert_same(storage.read(tmp_path / "whole"), storage.read(tmp_path / "parts"))


def test_a_finished_run_goes_on_from_its_last_weights_too(tmp_path):
    overfit(out=tmp_path / "a", keep="best", steps=40)
    longer = overfit(program(5), out=tmp_path / "a", keep="best", resume=True)
    last = overfit(out=tmp_path / "b", keep="last")
    assert_same(storage.read(tmp_path / "a")["parameters"], dict(last.program.named_parameters()))
    assert longer.manifest["kept_step"] == last.manifest["best_step"]


def test_the_best_weights_cannot_be_had_of_a_run_that_kept_none(tmp_path):
    overfit(out=tmp_path, steps=20)
    with pytest.raises(ValueError, match='keep is "best", the checkpoint kept the last weights'):
        overfit(out=tmp_path, resume=True, keep="best")
    assert overfit(out=tmp_path, resume=True, keep="last").manifest["keep"] == "last"


def test_a_run_saved_by_itself_has_the_weights_that_it_shows(tmp_path):
    run = usual(keep="best")
    run.save(tmp_path)
    loaded = pv.load(tmp_path)
    assert_same(dict(loaded.program.named_parameters()), dict(run.program.named_parameters()))
    assert repr(loaded) == repr(run)


@pytest.mark.parametrize("engine", some_quickly(["pyro", "eager"], "eager"))
def test_replicas_keep_their_own_best(engine):
    runs = overfit([program(), program(1)], seed=[0, 1], lr=[0.02, 0.05], keep="best",
                   engine=engine)  # fmt: skip
    steps = []
    for run in runs:
        best, step = held_out(run)
        assert float(pv.elbo(run.program, HELD_OUT, seed=run.manifest["seed"]).mean()) == (
            pytest.approx(best, abs=1e-6)
        )
        steps.append(run.manifest["kept_step"])
        assert steps[-1] == step
    assert len(set(steps)) == 2


def test_running_statistics_are_kept_with_the_weights():
    counted = []
    vae = program()
    vae.register_buffer("updates", torch.zeros(()))
    run = overfit(vae, keep="best", callbacks=[
        lambda record: counted.append((record.step, vae.updates.fill_(record.step))) and None
    ])  # fmt: skip
    # Callbacks come after the record of their step, so the buffer is that of the record before.
    before = [step for step, _ in counted if step < run.manifest["kept_step"]]
    assert float(vae.updates) == max(before, default=0) < 60


def test_without_an_evaluation_the_last_weights_are_all_there_is():
    run = overfit(keep="best", evaluate_every=50, callbacks=[lambda record: record.step >= 10])
    assert run.manifest["stopped"] == "callback" and run.manifest["keep"] == "last"
    assert run.manifest["kept_step"] == run.manifest["steps"]
    assert run.manifest["best_step"] is None


def test_listeners_hear_which_step_is_the_best():
    heard = []
    run = overfit(progress=lambda record: heard.append(record.best_step))
    assert heard[-1] == run.manifest["best_step"] and None in heard[:1]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"keep": "worst"}, 'keep is \'worst\', expected "best" or "last"'),
        ({"keep": "best", "validation": None}, 'keep="best" needs held-out data'),
        ({"keep": "best", "objective": MonteCarloEM(2)}, 'keep="best" watches the held-out bound'),
    ],
)
def test_what_cannot_be_kept_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        overfit(**options)


def test_a_bound_of_minus_infinity_is_surpassed_by_any_number():
    """There is no standard error of the difference to it."""
    nothing = torch.tensor([-math.inf, -3.0])
    assert _risen(torch.tensor([-900.0, -900.0]), nothing)
    assert not _risen(nothing, nothing) and not _risen(nothing, torch.zeros(2))


def test_the_command_line_says_which_weights_it_kept(tmp_path, capsys):
    command = ["fit", "bernoulli_vae", "--model.latent_dim", "2", "--model.hidden_dim", "8"]
    command += ["--steps", "20", "--evaluate_every", "4", "--keep", "best", "--engine", "pyro"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    run = pv.load(tmp_path / "run")
    assert run.manifest["keep"] == "best"
    step = run.manifest["kept_step"]
    assert f"weights of step {step}, the best of 20" in capsys.readouterr().out
    assert main([*command, "--keep", "worst"]) == 2
    assert "best or last" in capsys.readouterr().err


# --- schedules that watch the held-out loss -------------------------------------------------------

Plateau = torch.optim.lr_scheduler.ReduceLROnPlateau


class Told(Plateau):
    """Remembers what it was told."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.heard = []

    def step(self, metrics, epoch=None):
        self.heard = [*self.heard, float(metrics)]
        super().step(metrics)


@pytest.mark.parametrize("mode, sign", [("min", -1.0), ("max", 1.0)])
def test_a_plateau_is_found_in_the_held_out_loss(mode, sign):
    made = []

    def schedule(optimizer):
        made.append(Told(optimizer, mode=mode, patience=0, factor=0.5, threshold_mode="abs"))
        return made[0]

    run = overfit(schedule=schedule)
    bounds = run.history.validation_bound.dropna().tolist()
    assert made[0].heard == [sign * bound for bound in bounds] and len(bounds) == 12
    # By hand: half the rate at each evaluation that is no better than the best by 1e-4.
    rate, best = 0.02, -math.inf
    for bound in bounds:
        if bound > best + 1e-4:
            best = bound
        else:
            rate /= 2
    assert made[0].optimizer.param_groups[0]["lr"] == pytest.approx(rate) and rate < 0.02


def test_the_rate_of_a_plateau_moves_the_compiled_step_as_it_moves_pyros():
    schedule = functools.partial(Plateau, patience=0, factor=0.1)
    runs = [overfit(schedule=schedule, engine=engine) for engine in ("pyro", "eager")]
    for a, b in zip(*(run.program.parameters() for run in runs), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    still = usual().program.parameters()
    assert not torch.allclose(next(still), next(runs[0].program.parameters()), atol=1e-3)


def test_a_plateau_goes_on_after_an_interruption(tmp_path, stop):
    options = {"schedule": functools.partial(Plateau, patience=1, factor=0.3)}
    whole = overfit(out=tmp_path / "whole", **options)
    for step in (20, 33):
        stop[step] = signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            overfit(program(step - 20), out=tmp_path / "parts", resume=True, **options)
    parts = overfit(program(4), out=tmp_path / "parts", resume=True, **options)
    assert_same(storage.read(tmp_path / "whole"), storage.read(tmp_path / "parts"))
    assert_same(dict(whole.program.named_parameters()), dict(parts.program.named_parameters()))
    with pytest.raises(ValueError, match=r"schedule\.patience is 2, the checkpoint has 1"):
        overfit(out=tmp_path / "parts", resume=True, schedule=functools.partial(
            Plateau, patience=2, factor=0.3))  # fmt: skip


class Epochs(torch.optim.lr_scheduler.StepLR):
    def step(self, epoch):
        super().step()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"schedule": Plateau, "validation": None}, "told the held-out loss.*pass validation="),
        ({"schedule": Plateau, "objective": MonteCarloEM(2)}, "under an objective with a bound"),
        ({"schedule": lambda o: Epochs.__new__(Epochs)}, r"has step\(epoch\), expected one with"),
    ],
)
def test_a_schedule_that_cannot_be_told_is_refused_before_the_first_step(options, words):
    vae = program()
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    with pytest.raises(ValueError, match=words):
        overfit(vae, **options)
    assert_same(before, dict(vae.named_parameters()))


def test_the_run_is_not_told_at_the_end_of_a_budget_in_between():
    """Else a larger budget would go on from another rate than one that was given at once."""
    made = []
    overfit(steps=18, schedule=lambda o: made.append(Told(o)) or made[0])
    assert len(made[0].heard) == 3  # at 5, 10 and 15
