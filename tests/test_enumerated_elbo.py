"""Sums over the guide's latents, and scores beside paths: against Pyro's own and against sums."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.densities import expectations
from pyro_vae.densities.traces import RowsAreTheBatch
from pyro_vae.engine.capture import Graph, capture
from pyro_vae.noise import Noise, NoiseMode, keyed, seeded
from pyro_vae.objectives import AEVB, EnumeratedELBO, MixedELBO

from .mixtures import PARALLEL

KEY = (3,)


pytestmark = pytest.mark.usefixtures("double")


def cat(*tensors: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(*(t.shape[:-1] for t in tensors))
    return torch.cat([t.expand(*shape, t.shape[-1]) for t in tensors], -1)


class Labels(nn.Module):
    """The M2 model: a label y and a code z; what of it is marked is an option.

    Args:
        how: ``infer["enumerate"]`` of y in the guide.
        dependent: whether the guide's z depends on y.
        hidden: whether the model has a third latent that it alone has.
        total: N of the plate, if it is subsampled.
    """

    def __init__(self, how=None, dependent=True, hidden=False, total=None):
        super().__init__()
        self.how, self.dependent, self.hidden, self.total = how, dependent, hidden, total
        self.classify, self.encode = nn.Linear(6, 3), nn.Linear(9, 4)
        self.decode, self.prior = nn.Linear(5, 6), nn.Parameter(torch.randn(3))
        self.levels = nn.Parameter(torch.randn(2))

    def plate(self, x):
        if self.total is None:
            return pyro.plate("data", len(x))
        return pyro.plate("data", self.total, subsample_size=len(x))

    def model(self, x):
        with self.plate(x):
            y = pyro.sample("y", dist.OneHotCategorical(logits=self.prior))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = self.decode(cat(z, y))
            if self.hidden:
                law = dist.Bernoulli(0.2 + 0.5 * y[..., 0])
                c = pyro.sample("c", law, infer=PARALLEL)
                mean = mean + self.levels[c.long()].unsqueeze(-1)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        infer = {} if self.how is None else {"enumerate": self.how}
        with self.plate(x):
            y = pyro.sample("y", dist.OneHotCategorical(logits=self.classify(x)), infer=infer)
            y = y if self.dependent else y.new_zeros(len(x), 3)
            mean, scale = self.encode(cat(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


class Words(nn.Module):
    """A topic for each word, summed in the guide, in a plate inside documents."""

    def __init__(self, how="parallel"):
        super().__init__()
        self.words, self.encoder = nn.Parameter(torch.randn(2, 5)), nn.Embedding(5, 2)
        self.how = how

    def model(self, x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Dirichlet(torch.ones(len(x), 1, 2)))
            with pyro.plate("words", 4, dim=-1):
                t = pyro.sample("t", dist.Categorical(z))
                pyro.sample("x", dist.Categorical(logits=self.words[t]), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Dirichlet(self.encoder(x).exp().sum(-2, keepdim=True)))
            with pyro.plate("words", 4, dim=-1):
                law = dist.Categorical(logits=self.encoder(x))
                pyro.sample("t", law, infer={"enumerate": self.how} if self.how else {})


CASES = {
    "dependent": (lambda: Labels("parallel"), EnumeratedELBO()),
    "three particles": (lambda: Labels("parallel"), EnumeratedELBO(3)),
    "independent": (lambda: Labels("parallel", dependent=False), EnumeratedELBO()),
    "subsampled": (lambda: Labels("parallel", total=50), EnumeratedELBO()),
    "summed in the model too": (lambda: Labels("parallel", hidden=True), EnumeratedELBO()),
    "by its score": (Labels, EnumeratedELBO()),
    "by its score beside a sum": (lambda: Labels(hidden=True), EnumeratedELBO()),
    "words": (Words, EnumeratedELBO()),
    "mixed": (Labels, MixedELBO()),
    "mixed, two particles": (lambda: Labels(total=50), MixedELBO(2)),
    "mixed, marks ignored": (lambda: Labels("parallel"), MixedELBO()),
}


def as_pyro(objective):
    if isinstance(objective, EnumeratedELBO):
        return TraceEnum_ELBO(
            num_particles=objective.num_particles,
            max_plate_nesting=2,
            strict_enumeration_warning=False,
        )
    return Trace_ELBO(num_particles=objective.num_particles)


def rows_of(module) -> Tensor:
    return torch.randint(5, (7, 4)) if isinstance(module, Words) else torch.randn(7, 6)


def by(objective, program, x) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients inside Pyro's SVI, at fixed noise."""
    program.zero_grad()

    def under(function):
        def run(x):
            with RowsAreTheBatch():
                return function(x)

        return run if not isinstance(objective, pv.objectives.Objective) else function

    with NoiseMode(keyed(*KEY)), seeded(*KEY), pyro.validation_enabled(False):
        loss = objective.loss_and_grads(under(program.model), under(program.guide), x)
    grads = {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for n, p in program.named_parameters()
    }
    return loss, grads


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_pyros_at_the_same_noise(case):
    make, objective = CASES[case]
    module = make()
    program, x = pv.Program(module), rows_of(module)
    loss, grads = by(objective, program, x)
    expected, expected_grads = by(as_pyro(objective), program, x)
    assert loss == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    "case", ["dependent", "summed in the model too", "words", "mixed, two particles"]
)
def test_the_graph_equals_the_handlers(case):
    make, objective = CASES[case]
    module = make()
    program, x = pv.Program(module), rows_of(module)
    graph = capture(program, objective, x)
    assert isinstance(graph, Graph), graph
    params = {name: p.detach() for name, p in program.named_parameters()}
    args = (params, x, torch.ones(len(x)), {}, {})
    with seeded(*KEY):
        got, sums = graph.grads(*args, noise=graph.grads.draw(KEY))
    loss, grads = by(objective, program, x)
    scale = 50 / 7 if module.__dict__.get("total") else 1.0
    torch.testing.assert_close(got, grads, rtol=1e-9, atol=1e-10)
    assert float(sums["loss"]) * scale == pytest.approx(loss, rel=1e-11)


def test_sequential_sums_to_the_same():
    one, other = Labels("parallel", dependent=False), Labels("sequential", dependent=False)
    other.load_state_dict(one.state_dict())
    x = rows_of(one)
    loss, grads = by(EnumeratedELBO(), pv.Program(one), x)
    again, grads_again = by(EnumeratedELBO(), pv.Program(other), x)
    assert loss == again
    torch.testing.assert_close(grads, grads_again)


class Told(dist.OneHotCategorical):
    """A law whose draws are told."""

    label = 0

    def sample(self, sample_shape=torch.Size()):
        return torch.eye(3)[self.label].expand((*self.batch_shape, 3))


class ToldLabels(Labels):
    def guide(self, x):
        with self.plate(x):
            pyro.sample("y", Told(logits=self.classify(x)))
            mean, scale = self.encode(cat(x, x.new_zeros(len(x), 3))).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


def test_mixed_gradients_are_on_average_those_of_the_sum(monkeypatch):
    """The mean over y's draws, each taken with its probability, at one draw of z: exactly."""
    module, x = ToldLabels(), torch.randn(1, 6)
    summed = Labels("parallel", dependent=False)
    summed.load_state_dict(module.state_dict())
    normal = torch.randn(2)

    def told(self, *lead, generator=None):
        fits = self.kind == "normal" and self.shape[-1] == 2
        return normal.expand(self.shape) if fits else torch.ones(self.shape)

    monkeypatch.setattr(Noise, "draw", told)
    _, exact = by(EnumeratedELBO(), pv.Program(summed), x)

    def mean_of_draws() -> dict[str, Tensor]:
        total = {name: torch.zeros_like(g) for name, g in exact.items()}
        for label, share in enumerate(module.classify(x).softmax(-1)[0].tolist()):
            monkeypatch.setattr(Told, "label", label)
            for name, grad in by(MixedELBO(), pv.Program(module), x)[1].items():
                total[name] += share * grad
        return total

    torch.testing.assert_close(mean_of_draws(), exact, rtol=1e-10, atol=1e-10)
    monkeypatch.setattr(expectations, "_score", lambda log: expectations._with_dims(0 * log, ""))
    off = mean_of_draws()["wrapped.classify.bias"]  # the mutant: no score
    assert not torch.allclose(off, exact["wrapped.classify.bias"], rtol=0.1)


def test_pyros_names_for_them_are_taken_by_fit():
    x = torch.randn(20, 6)
    for given, expected in (
        (TraceEnum_ELBO(max_plate_nesting=1), "EnumeratedELBO()"),
        (Trace_ELBO(num_particles=2), "MixedELBO(num_particles=2)"),
    ):
        run = pv.fit(pv.Program(Labels("parallel")), x, given, steps=3, progress=False)
        assert run.manifest["objective"] == expected and not run.manifest["engine_reason"]

    class Codes(Labels):
        def guide(self, x):
            with self.plate(x):
                mean, scale = self.encode(cat(x, x.new_zeros(len(x), 3))).chunk(2, -1)
                pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))

        def model(self, x):
            with self.plate(x):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                mean = self.decode(cat(z, z.new_zeros(len(x), 3)))
                pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    run = pv.fit(pv.Program(Codes()), x, Trace_ELBO(), steps=2, progress=False)
    assert run.manifest["objective"] == repr(AEVB("A"))


def test_columns_are_parts_of_the_bound():
    module = Labels("parallel", hidden=True)
    program, x = pv.Program(module), torch.randn(7, 6)
    loss, stats = EnumeratedELBO().terms(program, x, pv.objectives.State({}, {}))
    torch.testing.assert_close(
        stats["bound"], stats["reconstruction"] - stats["kl.y"] - stats["kl.z"]
    )
    kl = module.classify(x).log_softmax(-1).exp() * (
        module.classify(x).log_softmax(-1) - module.prior.log_softmax(-1)
    )
    torch.testing.assert_close(stats["kl.y"], kl.sum(-1).detach())
    torch.testing.assert_close(-loss.detach(), stats["bound"])


def test_marks_that_cannot_be_summed_are_refused():
    class Wide(Labels):
        def guide(self, x):
            with self.plate(x):
                pyro.sample("y", dist.OneHotCategorical(logits=self.classify(x)), infer=PARALLEL)
                pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1), infer=PARALLEL)

    with pytest.raises(ValueError, match=r'"z" of the guide is marked.*finitely many'):
        pv.fit(pv.Program(Wide()), torch.randn(8, 6), EnumeratedELBO(), steps=1, progress=False)
