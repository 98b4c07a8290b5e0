"""Laws and numbers that Python reads off tensors, in captured graphs: equal to the handlers."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.engine.capture import Graph, capture
from pyro_vae.engine.functions import gradient_function
from pyro_vae.graphs import Lifted, Refusal, lift
from pyro_vae.noise import NoiseMode, keyed, seeded
from pyro_vae.objectives import AEVB, ReweightedWakeSleep, ScoreFunction

from .quickly import some_quickly

KEY = (7, 1)
HALF = torch.tensor(0.5)


def one_hot(z: Tensor) -> Tensor:
    return nn.functional.one_hot(z, 3).to(torch.get_default_dtype())


LAWS = {  # of three numbers an event, and what a decoder of three inputs makes of a draw
    "OneHotCategorical": (lambda p: dist.OneHotCategorical(logits=p), lambda z: z),
    "OneHotCategorical of probabilities": (
        lambda p: dist.OneHotCategorical(p.softmax(-1)),
        lambda z: z,
    ),
    "Categorical": (lambda p: dist.Categorical(logits=p), one_hot),
    "Categorical in columns": (
        lambda p: dist.Categorical(logits=torch.stack([p, -p], -2)).to_event(1),
        lambda z: one_hot(z).sum(-2),
    ),
    "Multinomial": (lambda p: dist.Multinomial(4, logits=p), lambda z: z / 4),
    "Binomial": (lambda p: dist.Binomial(4, logits=p).to_event(1), lambda z: z / 4),
    "Geometric": (lambda p: dist.Geometric(logits=p).to_event(1), lambda z: z / 4),
    "Poisson": (lambda p: dist.Poisson(p.exp()).to_event(1), lambda z: z / 4),
    "NegativeBinomial": (
        lambda p: dist.NegativeBinomial(3.0, logits=p).to_event(1),
        lambda z: z / 4,
    ),
    "OrderedLogistic": (
        lambda p: dist.OrderedLogistic(p, torch.tensor([-1.0, 1.0]).to(p)).to_event(1),
        lambda z: z.to(torch.get_default_dtype()),
    ),
}
REPARAMETERIZED = {
    "OneHotCategoricalStraightThrough": (
        lambda p: dist.OneHotCategoricalStraightThrough(logits=p),
        lambda z: z,
    ),
    "RelaxedOneHotCategorical": (
        lambda p: dist.RelaxedOneHotCategorical(HALF.to(p), logits=p),
        lambda z: z,
    ),
    "RelaxedOneHotCategoricalStraightThrough": (
        lambda p: dist.RelaxedOneHotCategoricalStraightThrough(HALF.to(p), logits=p),
        lambda z: z,
    ),
    "RelaxedBernoulliStraightThrough": (
        lambda p: dist.RelaxedBernoulliStraightThrough(HALF.to(p), logits=p).to_event(1),
        lambda z: z,
    ),
}


class Latent(nn.Module):
    def __init__(self, law, code):
        super().__init__()
        self.law, self.code = law, code
        self.encoder, self.decoder = nn.Linear(6, 3), nn.Linear(3, 6)
        self.prior = nn.Parameter(torch.zeros(3))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.law(self.prior.expand(len(x), 3)))
            pyro.sample("x", dist.Normal(self.decoder(self.code(z)), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.law(self.encoder(x)))


pytestmark = pytest.mark.usefixtures("double")


def captured(law, code, objective) -> Graph | Refusal:
    return capture(pv.Program(Latent(law, code)), objective, torch.randn(8, 6))


def require_equal(law, code, objective) -> None:
    x, program = torch.randn(8, 6), pv.Program(Latent(law, code))
    graph = capture(program, objective, x)
    assert isinstance(graph, Graph), graph
    params = {name: p.detach() for name, p in program.named_parameters()}
    args = (params, x, torch.ones(8), *objective.init(program, x))
    with NoiseMode(keyed(*KEY)), seeded(*KEY):
        grads, sums = gradient_function(program, objective)(*args)
    with seeded(*KEY):
        got, got_sums = graph.grads(*args, noise=graph.grads.draw(KEY))
    torch.testing.assert_close(got, grads, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got_sums["loss"], sums["loss"], rtol=1e-12, atol=0)
    assert any(g.abs().max() > 1e-3 for n, g in grads.items() if n.startswith("wrapped.encoder"))


@pytest.mark.parametrize("law", some_quickly(LAWS, "OneHotCategorical", "Poisson"))
def test_a_graph_of_discrete_latents_equals_the_handlers(law):
    require_equal(*LAWS[law], ReweightedWakeSleep(3))


@pytest.mark.parametrize(
    "law",
    some_quickly(
        ["OneHotCategorical", "Binomial", "Geometric", "Poisson"], "Binomial", "Geometric"
    ),
)
def test_so_does_one_under_the_score_function(law):
    require_equal(*LAWS[law], ScoreFunction())


@pytest.mark.parametrize("law", REPARAMETERIZED)
def test_a_graph_of_relaxed_latents_equals_the_handlers(law):
    require_equal(*REPARAMETERIZED[law], AEVB("A", 3))


CONSTANTS = {
    "item": lambda p: torch.tensor(4.0).sqrt().item(),
    "float": lambda p: float(torch.ones(2).sum()),
    "int": lambda p: int(torch.arange(3).max()),
    "bool": lambda p: 2.0 if torch.ones(3).all() else 1.0,
    "of the form of what varies": lambda p: p.new_ones(2).sum().item(),
    "like what varies": lambda p: 2 * torch.ones_like(p).max().item(),
}


@pytest.mark.parametrize("read", CONSTANTS)
def test_a_number_read_off_a_constant_stays_in_the_graph(read):
    def law(p):
        return dist.Normal(p, CONSTANTS[read](p)).to_event(1)

    require_equal(law, lambda z: z, AEVB("A"))


def test_so_does_one_under_several_particles():
    def law(p):
        return dist.Normal(p, p.new_ones(2).sum().item()).to_event(1)

    require_equal(law, lambda z: z, AEVB("A", 3))


def through_a_view(p: Tensor) -> float:
    fresh = torch.zeros(4)
    fresh[1] = p.detach().mean().abs()
    return 1 + fresh.max().item()


VARYING = {
    "item": lambda p: 1 + abs(p.detach().mean().item()),
    "float": lambda p: 1 + abs(float(p.detach()[0, 0])),
    "int": lambda p: 1 + int(p.detach().abs().max()),
    "bool": lambda p: 1.0 if (p > -1e9).all() else 2.0,  # the same at every probe
    "written into a constant": through_a_view,
    "noise": lambda p: 1 + torch.rand(()).item(),
    "as if by a constant": lambda p: 1 + 1e-30 * p.detach().abs().max().item(),
}


@pytest.mark.parametrize("read", VARYING)
def test_a_number_read_off_what_varies_is_refused(read):
    def law(p):
        return dist.Normal(p, VARYING[read](p)).to_event(1)

    for objective in (AEVB("A"), AEVB("A", 3)):
        refusal = captured(law, lambda z: z, objective)
        assert isinstance(refusal, Refusal)
        assert "depends on the rows, the parameters or noise" in str(refusal)


def test_such_a_program_is_trained_by_handlers_and_says_why():
    program = pv.Program(
        Latent(lambda p: dist.Normal(p, VARYING["item"](p)).to_event(1), lambda z: z)
    )
    run = pv.fit(program, torch.randn(20, 6), AEVB("A"), steps=2, progress=False)
    assert "depends on the rows" in run.manifest["engine_reason"]


def test_a_constant_mask_picks_places_and_a_mask_of_data_is_refused():
    mask = torch.tensor([True, False, True])
    x = torch.randn(4, 3)
    lifted = lift(lambda x: x[:, mask] ** 2, x)
    assert isinstance(lifted, Lifted)
    torch.testing.assert_close(lifted(2 * x, noise=[]), 4 * x[:, [0, 2]] ** 2)
    assert isinstance(lift(lambda x: x[x > 0] ** 2, x), Refusal)
    assert isinstance(lift(lambda x: x[:, (x > 0).any(0)] ** 2, x), Refusal)


def test_one_hot_in_a_graph_still_refuses_a_class_that_is_not_there():
    labels = torch.tensor([0, 2, 1])
    lifted = lift(lambda y: nn.functional.one_hot(y, num_classes=3), labels)
    assert isinstance(lifted, Lifted)
    torch.testing.assert_close(lifted(labels.flip(0), noise=[]), torch.eye(3).long()[[1, 2, 0]])
    with pytest.raises(RuntimeError, match="out of bounds"):
        lifted(torch.tensor([0, 3, 1]), noise=[])
    assert isinstance(lift(nn.functional.one_hot, labels), Refusal)  # as many as the largest says
