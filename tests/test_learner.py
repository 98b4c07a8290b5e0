"""A learner's update by itself; and how often a step waits for a device."""

import math

import pytest
import torch
from torch.overrides import TorchFunctionMode

import pyro_vae as pv
from pyro_vae.engine import fused
from pyro_vae.engine.choosing import gradient_source
from pyro_vae.engine.learner import Ask, Learner
from pyro_vae.models import bernoulli_vae
from pyro_vae.noise import Stream
from pyro_vae.objectives import AEVB, MonteCarloEM, ScoreFunction
from pyro_vae.objectives.base import EMPTY
from pyro_vae.training import fitting
from pyro_vae.training.lockstep import lockstep

X = (torch.rand(40, 6, generator=torch.Generator().manual_seed(3)) < 0.4).float()


def build():
    torch.manual_seed(0)
    return bernoulli_vae.build(6, latent_dim=2, hidden_dim=4, init_std=None)


# --- an update ------------------------------------------------------------------------------------


@pytest.fixture
def learner():
    program = build()
    parameters = dict(program.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=0.5)
    return Learner(program, parameters, AEVB(), optimizer, clip=2.0, name="replica 1, ")


def ask_for(x, step=4):
    return Ask(False, x, torch.ones(len(x)), EMPTY, Stream.TRAIN.key(0, step))


def gradients_of_norm(learner, norm):
    count = sum(p.numel() for p in learner.parameters.values())
    grads = {n: torch.full_like(p, norm / count**0.5) for n, p in learner.parameters.items()}
    sums = {"loss": torch.tensor(30.0), "weight": torch.tensor(10.0)}
    return grads, sums | {"grad_norm": torch.tensor(norm) * sums["weight"]}


@pytest.mark.parametrize(("norm", "share"), [(1.0, 1.0), (8.0, 0.25)])
def test_an_update_is_clipped_and_answers_with_means(learner, norm, share):
    before = {name: p.detach().clone() for name, p in learner.parameters.items()}
    grads, sums = gradients_of_norm(learner, norm)

    answer = learner.update(grads, sums, ask_for(X[:10]))

    assert answer.rows is None
    assert answer.means == pytest.approx({"loss": 3.0, "grad_norm": norm})
    for name, p in learner.parameters.items():
        torch.testing.assert_close(p.detach(), before[name] - 0.5 * share * grads[name])


@pytest.mark.parametrize("bad", ["loss", "grad_norm"])
def test_an_update_that_is_not_finite_is_refused_before_it(learner, bad):
    before = {name: p.detach().clone() for name, p in learner.parameters.items()}
    grads, sums = gradients_of_norm(learner, 1.0)
    grads["posterior.network.0.bias"] = grads["posterior.network.0.bias"] * math.nan
    sums[bad] = torch.tensor(math.nan)

    message = r"^replica 1, step 5: .*the gradient of posterior.network.0.bias is not finite"
    with pytest.raises(ValueError, match=message):
        learner.update(grads, sums, ask_for(X[:10]))
    for name, p in learner.parameters.items():
        assert torch.equal(p.detach(), before[name])


def test_a_source_of_gradients_moves_nothing(learner):
    """The laboratory has one without an optimizer."""
    ask = ask_for(X[:10])
    before = {name: p.detach().clone() for name, p in learner.parameters.items()}
    for objective in (AEVB(), ScoreFunction()):
        state = objective.init(learner.program, ask.x)
        source = gradient_source(learner.program, objective, ask.x, state)
        source.grads(learner.parameters, ask.x, ask.weight, state, ask.key)
    for name, p in learner.parameters.items():
        assert torch.equal(p.detach(), before[name]) and p.grad is None


# --- waiting for a device -------------------------------------------------------------------------

READS = {
    torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.numpy,
    torch.Tensor.__float__, torch.Tensor.__int__, torch.Tensor.__bool__, torch.Tensor.__index__,
}  # fmt: skip


class Reads(TorchFunctionMode):
    """Counts what would wait for a device if there were one."""

    count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in READS
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads(monkeypatch):
    """(updates, reads) of each turn: a step answers, and the loops book it and ask again."""
    found = []

    def counted(loops, step, num_steps, renewed):
        run = lockstep(loops, step, num_steps, renewed)
        while True:
            with Reads() as mode:
                try:
                    updates = next(run)
                except StopIteration as end:
                    return end.value
            found.append((updates, mode.count))

    monkeypatch.setattr(fitting, "in_lockstep", counted)
    return found


@pytest.mark.parametrize(
    "objective", [AEVB(), ScoreFunction(), MonteCarloEM(2)], ids=lambda o: type(o).__name__
)
def test_a_step_reads_its_numbers_once(reads, objective):
    """Loss, norm and statistics of an update, or those of a refresh, in one go."""
    pv.fit(
        build(), X, objective, steps=5, batch_size=10, engine="eager", clip=0.1,
        optimizer=torch.optim.SGD, lr=0.01,
    )  # fmt: skip
    assert sum(updates for updates, _ in reads) == 5
    assert {count for _, count in reads} == {1}


def test_updates_that_are_taken_together_are_read_together(reads, monkeypatch):
    """By replicas, too: without a compiler, but with the update inside the graph."""
    monkeypatch.setattr(fused, "SECONDS_AT_ONCE", 60.0)
    pv.fit(build(), X, AEVB(), steps=400, batch_size=10, engine="eager", replicas=2)
    assert sum(updates for updates, _ in reads) == 400
    assert {count for _, count in reads[1:]} == {1}  # the first binds optimizers, once
    assert max(updates for updates, _ in reads) > 1


def test_replicas_read_a_refresh_together(reads):
    pv.fit(build(), X, MonteCarloEM(2), steps=2, batch_size=10, engine="eager", replicas=2)
    assert {count for _, count in reads[1:]} == {1} and len(reads) == 3


def test_a_row_that_gives_no_gradient_is_named_by_what_is_wrong_with_it():
    """Its density is finite, 0 log 0, and validation is off while training."""
    torch.manual_seed(0)
    counts = torch.poisson(torch.full((300, 4), 3.0))
    counts[200] = 0
    x = {"x": counts, "size": counts.sum(1)}
    likelihood = pv.likelihoods.NegativeBinomial(library="size", share=True)
    vae = pv.VAE.build(x, latent_dim=2, hidden_dim=8, likelihood=likelihood)
    with pytest.raises(ValueError, match=r'gradient.*the library "size" has the value 0'):
        pv.fit(vae, x, samples=1_000, progress=False)
