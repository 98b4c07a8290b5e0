"""Terms that belong to no latent, and latents that guide and model mask apart."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_vae as pv
from pyro_vae.densities import densities
from pyro_vae.densities.look import Look
from pyro_vae.densities.sites import same_mask
from pyro_vae.densities.traces import _site

LOG_2PI = math.log(2 * math.pi)


class Masked(pv.Program):
    """z ~ N(0, I), x | z ~ N(z, I), q = N(m, I); z counts in rows whose first entry is positive."""

    def __init__(self, where, how):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.where, self.how = where, how

    def latent(self, x, mean, role):
        law = dist.Normal(mean.expand(len(x), 2), 1.0).to_event(1)
        mask = x[:, 0] > 0  # a new tensor each time
        if role not in self.where:
            return pyro.sample("z", law)
        if self.how == "law":
            return pyro.sample("z", law.mask(mask))
        if self.how == "event":
            law = dist.Normal(mean.expand(len(x), 2), 1.0).mask(mask[:, None]).to_event(1)
            return pyro.sample("z", law)
        with poutine.mask(mask=mask):
            return pyro.sample("z", law)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = self.latent(x, torch.zeros(2), "model")
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            self.latent(x, self.mean, "guide")


def exact(program, x):
    """The bound (N,): E log p(x | z) + m_p E log p(z) - m_q E log q(z), each under its mask."""
    m = program.mean.detach()
    here = (x[:, 0] > 0).to(x)
    of = {
        role: here if role in program.where else torch.ones(len(x)) for role in ("model", "guide")
    }
    likelihood = -0.5 * ((x - m).square().sum(-1) + 2 + 2 * LOG_2PI)
    prior = -0.5 * (m.square().sum() + 2 + 2 * LOG_2PI)
    entropy = 0.5 * (2 + 2 * LOG_2PI)
    return likelihood + of["model"] * prior + of["guide"] * entropy


@pytest.mark.parametrize("how", ["poutine", "law", "event"])
@pytest.mark.parametrize("where", [(), ("model",), ("guide",), ("model", "guide")], ids=str)
def test_both_estimators_count_each_density_under_its_own_mask(where, how):
    program, x = Masked(where, how), torch.randn(8, 2)
    with torch.no_grad():
        d = densities(program, x, 4000)
        closed = d.log_likelihood.mean(0) - sum(d.kl_terms.values())
        sampled = d.log_w.mean(0)
        error = d.log_w.std(0) / math.sqrt(4000)
    truth = exact(program, x)
    for bound in (closed, sampled):
        assert ((bound - truth).abs() / error).max() < 4
    # What the closed form of unequal masks would have said is told apart at this precision.
    if where == ("model",):
        mutant = truth - (1 - (x[:, 0] > 0).to(x)) * 0.5 * program.mean.detach().square().sum()
        mutant = mutant + (1 - (x[:, 0] > 0).to(x)) * (1 + LOG_2PI)  # the whole KL in its place
        hidden = x[:, 0] <= 0
        assert ((mutant - truth).abs() / error)[hidden].min() > 10


@pytest.mark.parametrize("how", ["poutine", "law", "event"])
@pytest.mark.parametrize("where", [("model",), ("guide",)], ids=str)
def test_unequal_masks_are_refused_by_every_verb_that_counts_them(where, how):
    program, x = Masked(where, how), torch.randn(40, 2)
    for verb in (
        pv.check,
        pv.elbo,
        pv.log_evidence,
        lambda p, x: pv.fit(p, x, steps=1, progress=False),
        lambda p, x: pv.to_inference_data(p, x, num_draws=2),
        lambda p, x: pv.gradient_report(p, x, [pv.objectives.AEVB()], progress=False),
    ):
        with pytest.raises(ValueError, match="masked otherwise than in the model"):
            verb(program, x)


@pytest.mark.parametrize("how", ["poutine", "law", "event"])
def test_equal_masks_of_two_makings_are_one(how):
    program, x = Masked(("model", "guide"), how), torch.randn(40, 2)
    look = Look.at(program, x)
    assert same_mask(look.guide["z"], look.model["z"])
    assert look.guide["z"].whole_mask().shape == (40, 1) or how == "event"
    pv.check(program, x)
    run = pv.fit(program, x, steps=3, progress=False)  # captured, where a mask is no constant
    assert run.history.loss.notna().all()


def test_masks_on_different_levels_of_a_law_are_compared_by_number():
    x = torch.randn(6, 2)
    by_law, by_event, outside = (Look.at(Masked(("model", "guide"), h), x).guide["z"]
                                 for h in ("law", "event", "poutine"))  # fmt: skip
    assert same_mask(by_law, by_event) and same_mask(by_event, outside)
    plain = Look.at(Masked((), "law"), x).guide["z"]
    assert not same_mask(plain, by_event)


LAWS = {
    "normal": lambda n: dist.Normal(torch.zeros(n, 3), 1.0).to_event(1),
    "expanded": lambda n: dist.Normal(torch.zeros(3), 1.0).to_event(1).expand([n]),
    "multivariate": lambda n: dist.MultivariateNormal(torch.zeros(n, 3), torch.eye(3)),
    "transformed": lambda n: dist.LogNormal(torch.zeros(n, 3), 1.0).to_event(1),
    "flow": lambda n: dist.TransformedDistribution(
        dist.Normal(torch.zeros(n, 3), 1.0).to_event(1), dist.transforms.Planar(3)
    ),
    "simplex": lambda n: dist.Dirichlet(torch.ones(n, 3)),
    "mixture": lambda n: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(n, 2)), dist.Normal(torch.zeros(n, 2, 3), 1.0).to_event(1)
    ),
    "scalar": lambda n: dist.Normal(torch.zeros(n), 1.0),
}


@pytest.mark.parametrize("law", LAWS)
def test_a_mask_of_rows_is_one_mask_wherever_it_stands(law):
    """Handler or law, for events of any kind; and it leaves out what the densities leave out."""
    mask = torch.tensor([True, False, True, True, False])

    def site(how):
        distribution = LAWS[law](5)
        with poutine.trace() as trace, pyro.plate("data", 5):
            if how == "handler":
                with poutine.mask(mask=mask):
                    pyro.sample("z", distribution)
            else:
                pyro.sample("z", distribution.mask(mask) if how == "law" else distribution)
        return _site(trace.trace.nodes["z"], "data", 5)

    by_handler, by_law, plain = site("handler"), site("law"), site("none")
    assert same_mask(by_handler, by_law) and not same_mask(by_law, plain)
    counted = by_law.whole_mask().expand(by_law.value.shape).reshape(5, -1)
    assert torch.equal(counted.any(1), mask) and torch.equal(counted.all(1), mask)
    assert torch.equal(by_law.per_datum() != 0, mask)
    assert plain.whole_mask().all()


# --- a guide with terms of its own ----------------------------------------------------------------


class Labelled(pv.Program):
    def __init__(self, extra):
        super().__init__()
        self.encoder, self.decoder, self.classes = nn.Linear(3, 4), nn.Linear(2, 3), nn.Linear(3, 1)
        self.extra = extra

    def model(self, x):
        with pyro.plate("data", len(x["x"])):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x["x"])

    def guide(self, x):
        logits = self.classes(x["x"])[:, 0]
        with pyro.plate("data", len(x["x"])):
            if self.extra == "observation":
                aside = {"is_auxiliary": True}
                pyro.sample("y", dist.Bernoulli(logits=logits), obs=x["y"], infer=aside)
            if self.extra == "factor":
                pyro.factor("y", logits, has_rsample=False)
            mean, scale = self.encoder(x["x"]).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))
            if self.extra == "deterministic":
                pyro.deterministic("twice", 2 * mean, event_dim=1)


def labelled():
    return {"x": torch.randn(20, 3), "y": (torch.rand(20) < 0.5).float()}


@pytest.mark.parametrize("extra", ["observation", "factor"])
@pytest.mark.parametrize(
    "verb",
    [
        pv.elbo,
        pv.log_evidence,
        lambda p, x: pv.fit(p, x, steps=1, progress=False),
        lambda p, x: pv.fit(p, x, steps=1, engine="pyro", progress=False),
        lambda p, x: pv.fit(p, x, pv.objectives.WakeSleep(), steps=1, progress=False),
        lambda p, x: pv.fit(p, x, pyro.infer.Trace_ELBO(), steps=1, progress=False),
        lambda p, x: pv.to_inference_data(p, x, num_draws=2),
        lambda p, x: pv.gradient_report(p, x, [pv.objectives.AEVB()], progress=False),
    ],
)
def test_what_the_guide_observes_is_refused(extra, verb):
    with pytest.raises(ValueError, match='site "y" of the guide is') as caught:
        verb(Labelled(extra), labelled())
    assert "expected latents alone" in str(caught.value)


@pytest.mark.parametrize("extra", ["observation", "factor"])
def test_check_names_it_too(extra):
    with pytest.raises(ValueError, match=r'site "y" of the guide: .*expected latents alone'):
        pv.check(Labelled(extra), labelled())


def test_a_named_number_in_the_guide_counts_nothing():
    torch.manual_seed(0)
    with_name, x = Labelled("deterministic"), labelled()
    torch.manual_seed(0)
    without = Labelled("")
    assert torch.equal(pv.elbo(with_name, x), pv.elbo(without, x))
