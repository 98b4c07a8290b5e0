"""``fit``: the loop's arithmetic, its options, and what it refuses."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae, gaussian_vae
from pyro_vae.objectives import AEVB, Objective, WakeSleep
from pyro_vae.objectives.base import State
from pyro_vae.training.batches import Batches


def small_vae(seed=0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    defaults = {"latent_dim": 2, "hidden_dim": 8, "init_std": None}
    return bernoulli_vae.build(6, **{**defaults, **options}).to(dtype)


def binary_rows(n=50, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, 6, generator=generator) < 0.4).to(dtype)


def weights(program):
    return torch.cat([p.detach().flatten() for p in program.parameters()])


@pytest.mark.parametrize("objective", [AEVB("A"), AEVB("B"), AEVB("A", 3), WakeSleep()], ids=repr)
def test_engines_end_at_the_same_parameters(objective):
    """The noise of a step belongs to its key, so engines differ by rounding alone.

    48 rows make full batches; of a short one the engines see different noise, because torch's
    draws of another shape are other draws.
    """
    x = binary_rows(48, dtype=torch.float64)
    ends = []
    for engine in ("pyro", "eager"):
        program = small_vae(dtype=torch.float64)
        run = pv.fit(program, x, objective, steps=9, batch_size=16, engine=engine)
        assert run.manifest["engine"] == engine
        ends.append(weights(program))
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("pyro_elbo", "ours"),
    [
        (pyro.infer.Trace_ELBO(), AEVB("A")),
        (pyro.infer.TraceMeanField_ELBO(), AEVB("B")),
        (pyro.infer.Trace_ELBO(num_particles=2), AEVB("A", 2)),
    ],
    ids=["Trace_ELBO", "TraceMeanField_ELBO", "two particles"],
)
def test_pyros_elbos_are_translated(pyro_elbo, ours):
    x = binary_rows()
    first, second = small_vae(), small_vae()
    run = pv.fit(first, x, pyro_elbo, steps=4)
    pv.fit(second, x, ours, steps=4)
    assert torch.equal(weights(first), weights(second))
    assert run.manifest["objective"] == repr(ours)


def test_a_foreign_elbo_runs_under_pyro_and_says_so():
    """TraceGraph_ELBO is no type that we translate; its step is SVI's."""
    run = pv.fit(small_vae(), binary_rows(), pyro.infer.TraceGraph_ELBO(), steps=3)
    assert run.manifest["engine"] == "pyro"
    assert "TraceGraph_ELBO" in run.manifest["engine_reason"]
    assert np.isfinite(run.history.loss).all()


def test_one_sgd_step_is_the_gradient_of_the_batch_sum_and_the_weight_prior():
    """w - lr (grad of the sum over the batch + precision (rows / N) w), on matrices alone."""
    from pyro_vae.engine.functions import gradient_function
    from pyro_vae.noise import NoiseMode, Stream, keyed

    x = binary_rows(dtype=torch.float64)
    program, precision, lr = small_vae(dtype=torch.float64), 3.0, 0.01
    before = {name: p.detach().clone() for name, p in program.named_parameters()}
    batch = Batches(x, program, 20, seed=5)(0)
    with NoiseMode(keyed(*Stream.TRAIN.key(5, 0))):
        grads, _ = gradient_function(program, AEVB())(before, batch[1], batch[2], {}, {})
    pv.fit(
        program, x, AEVB(), steps=1, batch_size=20, seed=5, lr=lr, optimizer=torch.optim.SGD,
        weight_prior=precision,
    )  # fmt: skip
    for name, after in program.named_parameters():
        prior = precision * 20 / 50 * before[name] if before[name].dim() > 1 else 0.0
        torch.testing.assert_close(after.detach(), before[name] - lr * (grads[name] + prior))


def test_the_weight_prior_of_an_epoch_is_weight_decay_of_one_over_n():
    """Summed over an epoch, shares rows / N add up to one whole prior, short batch or not."""
    x, program = binary_rows(), small_vae()
    batches = Batches(x, program, 16, seed=0)
    assert sum(batches(i)[3] for i in range(batches.per_epoch)) == len(x)


def test_every_epoch_visits_each_row_once_in_an_order_of_its_own():
    x, program = binary_rows(), small_vae()
    batches = Batches(x, program, 16, seed=0)
    epochs = []
    for epoch in range(2):
        rows = [batches(epoch * batches.per_epoch + i) for i in range(batches.per_epoch)]
        epochs.append(torch.cat([index[:count] for index, _, _, count in rows]))
    for order in epochs:
        assert sorted(order.tolist()) == list(range(50))
    assert not torch.equal(*epochs)


def test_dynamic_binarization_changes_from_epoch_to_epoch_and_not_within():
    grey = torch.full((4, 6), 0.5)
    data = pv.datasets.Data.from_pixels(grey, binarize="dynamic")
    batches = Batches(data, small_vae(), 4, seed=0)
    (one, x1, _, _), (two, x2, _, _) = batches(0), batches(1)
    assert not torch.equal(x1[one.argsort()], x2[two.argsort()])
    assert torch.equal(batches(0)[1], x1)
    assert set(x1.unique().tolist()) <= {0.0, 1.0}


def test_the_global_generator_is_neither_read_nor_changed():
    torch.manual_seed(7)
    expected = torch.get_rng_state()
    first = small_vae()
    torch.set_rng_state(expected)
    pv.fit(first, binary_rows(), WakeSleep(), steps=3, seed=1)
    assert torch.equal(torch.get_rng_state(), expected)
    second = small_vae()
    torch.manual_seed(1234)
    pv.fit(second, binary_rows(), WakeSleep(), steps=3, seed=1)
    assert torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("bad", ["likelihood", "x"])
def test_a_value_that_is_not_finite_stops_before_the_update_and_names_site_and_step(bad):
    """T17: Pyro applies the step and raises later; here the parameters stay as they were."""
    program, x = small_vae(), binary_rows()
    if bad == "x":
        x[3, 2] = math.nan
        with pytest.raises(ValueError, match=r'data "x" has a value that is not finite'):
            pv.fit(program, x, steps=5)
        return
    with torch.no_grad():
        program.likelihood.network[2].bias[0] = math.inf
    before = weights(program)
    with pytest.raises(ValueError, match=r'step 1: .*model\'s site "x"'):
        pv.fit(program, x, steps=5)
    assert torch.equal(weights(program), before)


def test_a_gradient_that_is_not_finite_stops_too():
    """sqrt at zero has a finite value and an infinite slope."""

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, z):
            return dist.Bernoulli(logits=self.weight.sqrt() + z.mean(-1, keepdim=True).expand(-1, 6)
                                  ).to_event(1)  # fmt: skip

    program = small_vae(likelihood=Root())
    with pytest.raises(ValueError, match=r"gradient of likelihood.weight is not finite"):
        pv.fit(program, binary_rows(), steps=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of samples, epochs and steps"),
        ({"steps": 3, "epochs": 1}, "exactly one"),
        ({"samples": -5}, "samples is -5"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": 3, "lr": math.nan}, "lr is nan"),
        ({"steps": 3, "batch_size": 0}, "batch_size is 0"),
        ({"steps": 3, "engine": "warp"}, "engine is 'warp', expected one of"),
        ({"steps": 3, "early_stopping": 2}, "pass validation="),
        ({"steps": 3, "clip": -1.0}, "clip is -1.0"),
        ({"steps": 3, "weight_prior": -1.0}, "weight_prior is -1.0"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        pv.fit(small_vae(), binary_rows(), **options)


def test_wrong_objects_are_refused_with_the_next_step():
    with pytest.raises(TypeError, match=r"write AEVB\(\)"):
        pv.fit(small_vae(), binary_rows(), AEVB, steps=1)
    with pytest.raises(TypeError, match="objective is 'AEVB'"):
        pv.fit(small_vae(), binary_rows(), "AEVB", steps=1)
    with pytest.raises(TypeError, match="expected a Data, a tensor"):
        pv.fit(small_vae(), [[0.0, 1.0]], steps=1)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        pv.fit(small_vae().requires_grad_(False), binary_rows(), steps=1)


def test_the_history_reports_nats_per_datum():
    """bound = reconstruction - sum of KLs for estimator B, at every record."""
    run = pv.fit(small_vae(), binary_rows(), AEVB("B"), steps=20, validation=binary_rows(30, 2))
    h = run.history
    np.testing.assert_allclose(h.bound, h.reconstruction - h["kl.z"], rtol=1e-4)
    np.testing.assert_allclose(h.bound, -h.loss, rtol=1e-5)
    assert (h.grad_norm > 0).all()
    assert h.samples.iloc[-1] == run.manifest["samples"] == 20 * 50
    last = pv.elbo(run.program, binary_rows(30, 2)).mean()
    assert h.validation_bound.iloc[-1] == pytest.approx(float(last), rel=1e-5)


def test_budgets_agree():
    """Three epochs of 50 rows at 16 are 12 updates and 150 samples, however one says it."""
    for budget in ({"epochs": 3}, {"steps": 12}, {"samples": 150}):
        run = pv.fit(small_vae(), binary_rows(), batch_size=16, **budget)
        assert (run.manifest["steps"], run.manifest["samples"]) == (12, 150)


def test_early_stopping_waits_for_a_rise_beyond_noise():
    """A learning rate of 1e-12 never raises the bound: the run ends after n evaluations."""
    run = pv.fit(
        small_vae(), binary_rows(), steps=1000, lr=1e-12, optimizer=torch.optim.SGD,
        validation=binary_rows(30, 2), evaluate_every=2, early_stopping=3,
    )  # fmt: skip
    assert run.manifest["stopped"].startswith("early stopping")
    assert run.manifest["steps"] == 8  # the first evaluation is the best; three more wait


def test_clipping_bounds_the_whole_gradient():
    """One SGD step of rate 1 moves the parameters by exactly the clip."""
    program = small_vae(dtype=torch.float64)
    before = weights(program)
    x = binary_rows(dtype=torch.float64)
    pv.fit(program, x, steps=1, clip=0.25, lr=1.0, optimizer=torch.optim.SGD)
    assert float((weights(program) - before).norm()) == pytest.approx(0.25, rel=1e-9)


def test_a_partial_optimizer_is_given_the_step_size_unless_it_has_one():
    adam = functools.partial(torch.optim.Adam, betas=(0.5, 0.9))
    own = functools.partial(adam, lr=0.1)
    for optimizer, options, rate in ((adam, {"lr": 0.3}, 0.3), (own, {}, 0.1)):
        run = pv.fit(small_vae(), binary_rows(), optimizer=optimizer, steps=1, **options)
        assert run.manifest["optimizer_options"]["lr"] == rate
        assert run.manifest["optimizer_options"]["betas"] == (0.5, 0.9)


def test_a_run_that_ends_far_below_its_start_is_said_to_have_diverged():
    """A step so long that the guide's spread explodes, and every number stays finite."""
    options = {"steps": 60, "lr": 30.0, "optimizer": torch.optim.SGD}
    vae = gaussian_vae.build(6, latent_dim=2, hidden_dim=4)
    with pytest.warns(pv.PyroVaeWarning, match="nats per datum, where it began at .* diverged"):
        pv.fit(vae, binary_rows(), clip=1.0, **options)


def test_a_warm_up_that_outlasts_the_budget_is_said():
    with pytest.warns(pv.PyroVaeWarning, match=r"kl_warmup is 10, .* counts at most 20\.0%"):
        run = pv.fit(small_vae(), binary_rows(), AEVB(kl_warmup=10), steps=2)
    assert list(run.history["kl_weight"]) == pytest.approx([0.1, 0.2])
    run = pv.fit(small_vae(), binary_rows(), AEVB(kl_warmup=2), steps=3)
    assert list(run.history["kl_weight"]) == [0.5, 1.0, 1.0]


def test_a_schedule_is_stepped_at_every_update():
    seen = []

    def schedule(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: seen.append(n) or 1.0)

    pv.fit(small_vae(), binary_rows(), steps=5, schedule=schedule)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_callbacks_see_records_and_may_end_the_run():
    seen = []

    def callback(record):
        seen.append((record.step, record.columns["bound"]))
        return record.step >= 7

    run = pv.fit(small_vae(), binary_rows(), steps=100, callbacks=[callback])
    assert [step for step, _ in seen] == list(range(1, 8))
    assert run.manifest["stopped"] == "callback"


def test_progress_is_a_line_on_stderr_with_rate_and_time_left(capsys):
    pv.fit(small_vae(), binary_rows(), steps=4, progress=True)
    line = capsys.readouterr().err
    assert "AEVB" in line and "samples" in line and "bound=" in line and "/s" in line
    pv.fit(small_vae(), binary_rows(), steps=4)  # no terminal: silence
    assert capsys.readouterr().err == ""


def test_float64_and_dicts_of_covariates_train():
    class Regression(pv.Program):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 2))

        def model(self, x):
            with pyro.plate("data", len(x["x"])):
                z = pyro.sample("z", dist.Normal(x["x"].new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(x["u"] @ self.weight + z, 1.0).to_event(1), obs=x["x"])

        def guide(self, x):
            with pyro.plate("data", len(x["x"])):
                mean = 0.5 * (x["x"] - x["u"] @ self.weight)
                pyro.sample("z", dist.Normal(mean, 0.5**0.5).to_event(1))

    torch.manual_seed(0)
    u = torch.randn(200, 3)
    truth = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.5, 0.5]])
    x = {"x": u @ truth + 2**0.5 * torch.randn(200, 2), "u": u}
    program = Regression()
    run = pv.fit(program, x, epochs=60, batch_size=50, lr=0.3, dtype=torch.float64)
    assert program.weight.dtype == torch.float64 and run.manifest["num_data"] == 200
    least_squares = torch.linalg.lstsq(u, x["x"]).solution
    torch.testing.assert_close(program.weight.detach().float(), least_squares, atol=0.05, rtol=0)


def test_data_dependent_control_flow_stays_eager_and_says_why(caplog):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 6)

        def forward(self, z):
            logits = self.net(z)
            if logits.abs().max() > 1e3:
                logits = logits / 2
            return dist.Bernoulli(logits=logits).to_event(1)

    with caplog.at_level("INFO", logger="pyro_vae"):
        run = pv.fit(small_vae(likelihood=Branching()), binary_rows(), steps=3)
    assert "not captured" in run.manifest["engine_reason"]
    assert "depends on the values of tensors" in caplog.text


def test_an_objectives_rows_follow_the_data_and_its_shared_state_advances():
    """A counter per row: after two epochs each row was refreshed twice, and none twice as often."""

    class Counting(Objective):
        refresh_every = 2

        def init(self, program, x):
            return State({"seen": torch.zeros(len(x))}, {"total": torch.zeros(())})

        def refresh(self, program, x, state):
            return {"seen": state.rows["seen"] + 1}, {"refreshed": torch.ones(len(x))}

        def terms(self, program, x, state):
            loss, stats = AEVB("A").terms(program, x, state)
            return loss, {**stats, "seen": state.rows["seen"]}

        def advance(self, shared, means):
            return {"total": shared["total"] + means.get("refreshed", 0.0)}

    x = binary_rows()
    for engine in ("eager", "pyro"):
        run = pv.fit(small_vae(), x, Counting(), steps=16, batch_size=16, engine=engine)
        assert run.state.rows["seen"].tolist() == [2.0] * 50
        assert float(run.state.shared["total"]) == 8.0  # a refresh for every second step
        assert run.history.seen.iloc[-1] == 2.0


def test_adagrad_accumulates_before_it_moves():
    """After n accumulate-only steps the state is Adagrad's and the parameters are untouched."""
    w = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = pv.optimizers.Adagrad([w], lr=0.1, accumulate_steps=3)
    total = torch.zeros(2, dtype=torch.float64)
    for n in range(5):
        g = torch.tensor([0.3, -0.7 + n], dtype=torch.float64)
        total += g.square()
        expected = w.detach() - (0.1 * g / (total.sqrt() + 1e-10) if n >= 3 else 0.0)
        w.grad = g
        optimizer.step()
        torch.testing.assert_close(w.detach(), expected, rtol=1e-14, atol=0)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_training_raises_the_bound_of_frey_like_data():
    """A Gaussian decoder on smooth data gains nats, and its scale stays above the floor."""
    t = torch.linspace(0, 3.14, 200)
    x = 0.5 + 0.4 * torch.stack([(t + k).sin() for k in range(5)], 1)
    torch.manual_seed(0)
    program = gaussian_vae.build(5, latent_dim=1, hidden_dim=16, floor=0.05, init_std=None)
    optimizer = functools.partial(torch.optim.Adam, lr=0.01)
    before = float(pv.elbo(program, x).mean())
    pv.fit(program, x, epochs=60, optimizer=optimizer)
    assert float(pv.elbo(program, x).mean()) > before + 3
    with torch.no_grad():
        assert program.likelihood(torch.zeros(1, 1)).base_dist.scale.min() >= 0.05


def test_a_scale_at_its_floor_is_said():
    """T18: a pixel that never changes drives its sigma to the floor."""
    torch.manual_seed(0)
    x = torch.cat([torch.rand(100, 2), torch.full((100, 1), 0.5)], 1)
    program = gaussian_vae.build(3, latent_dim=1, hidden_dim=8, floor=0.02, init_std=None)
    with pytest.warns(pv.PyroVaeWarning, match="at its floor 0.02 in 1 of 3 dimensions"):
        pv.fit(program, x, epochs=300, optimizer=torch.optim.Adam, lr=0.03)
