"""Models that observe in several sites, a part of x, or with gaps; and terms that are weighed."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae.densities import densities
from pyro_vae.densities.dreams import draws_of
from pyro_vae.noise import NoiseMode, keyed, seeded
from pyro_vae.objectives import AEVB, IWAE, WakeSleep

QUIET = pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")  # of few draws


class ImageAndLabel(pv.Program):
    """One latent number; x | z ~ N(a z, 1/4) in two dimensions, y | z ~ Bernoulli(sigmoid(2 z))."""

    def __init__(self, form="entries"):
        super().__init__()
        self.form = form
        self.a, self.encoder = nn.Parameter(torch.tensor([1.0, -0.5])), nn.Linear(2, 1)

    def model(self, b):
        with pyro.plate("rows", len(b["x"])):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            seen = b["x"].exp().log() if self.form == "computed" else b["x"]
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * self.a, 0.5).to_event(1), obs=seen)
            pyro.sample("y", dist.Bernoulli(logits=2 * z), obs=b["y"])

    def guide(self, b):
        with pyro.plate("rows", len(b["x"])):
            pyro.sample("z", dist.Normal(self.encoder(b["x"])[:, 0], 0.7))


@pytest.fixture
def both():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 2, generator=generator)
    return {"x": x, "y": (x[:, 0] > 0).float()}


def log_evidence_by_quadrature(program, both):
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    z = torch.tensor(nodes, dtype=torch.float32)[:, None]
    log_w = torch.tensor(np.log(weights / math.sqrt(2 * math.pi)), dtype=torch.float32)[:, None]
    law_x = dist.Normal(z.unsqueeze(-1) * program.a.detach(), 0.5).to_event(1)
    law_y = dist.Bernoulli(logits=2 * z)
    joint = law_x.log_prob(both["x"]) + law_y.log_prob(both["y"])
    return torch.logsumexp(joint + log_w, 0)


@QUIET
@pytest.mark.parametrize("form", ["entries", "computed"])
@pytest.mark.parametrize("proposal", ["guide", "hmc"])
def test_log_evidence_is_that_of_both_observations(form, proposal, both):
    program = ImageAndLabel(form)
    result = pv.log_evidence(program, both, num_particles=4000, proposal=proposal)
    torch.testing.assert_close(
        result.value.float(),
        log_evidence_by_quadrature(program, both),
        atol=0.05 if proposal == "hmc" else 0.2,
        rtol=0.0,
    )


@QUIET
def test_every_verb_has_one_of_each(both):
    program = ImageAndLabel()
    assert [s.kind for s in pv.check(program, both).sites] == ["latent", "observed", "observed"]
    assert set(densities(program, both).observations) == {"x", "y"}
    run = pv.fit(program, both, steps=3, batch_size=6, engine="eager", progress=False)
    assert run.manifest["engine_reason"] == ""
    drawn, rebuilt = pv.sample(program, 5, like=both), pv.reconstruct(program, both)
    assert {name: tuple(v.shape) for name, v in drawn.items()} == {"x": (5, 2), "y": (5,)}
    assert {name: tuple(v.shape) for name, v in rebuilt.items()} == {"x": (12, 2), "y": (12,)}
    result = pv.to_inference_data(program, both, num_draws=30)
    for group in ("observed_data", "posterior_predictive", "log_likelihood"):
        assert set(result[group].data_vars) == {"x", "y"}, group
    parts = [result["log_likelihood"][name].values for name in ("x", "y")]
    joint = dist.Normal(0.0, 1.0).log_prob(torch.from_numpy(result["posterior"]["z"].values))
    np.testing.assert_allclose(
        sum(parts) + joint.numpy(), result["sample_stats"]["lp"].values, rtol=1e-4, atol=1e-4
    )


def test_sleep_dreams_all_entries_and_refuses_what_is_computed(both):
    """x' and y' come from one z: their correlation is that of the model."""
    program = ImageAndLabel()
    many = {name: value.repeat(2000, *[1] * (value.dim() - 1)) for name, value in both.items()}
    (observed, latents) = draws_of(program, many)
    above = observed["y"][latents["z"] > 0.5].mean()
    below = observed["y"][latents["z"] < -0.5].mean()
    assert above > 0.85 and below < 0.15
    assert WakeSleep().terms(program, both, pv.objectives.State({}, {}))[0].shape == (12,)
    with pytest.raises(ValueError, match="takes a function of x"):
        pv.fit(ImageAndLabel("computed"), both, WakeSleep(), steps=1, progress=False)


class Chained(pv.Program):
    """y depends on the *observed* x, read from the data: a draw of y needs the draw of x."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(()))

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(5.0 + z, 0.1), obs=x)
            pyro.sample("y", dist.Normal(x, 0.01), obs=y)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.mean, 1.0).expand([len(x)]))


def test_a_later_observation_is_drawn_given_the_draws_before_it():
    data = {"x": torch.zeros(50), "y": torch.zeros(50)}
    drawn = pv.sample(Chained(), 200, like=data)
    assert abs(drawn["x"].mean() - 5.0) < 0.3
    assert (drawn["y"] - drawn["x"]).abs().max() < 0.06


# --- gaps -----------------------------------------------------------------------------------------


class Gaps(pv.Program):
    def __init__(self, how):
        super().__init__()
        self.how, self.encoder, self.decoder = how, nn.Linear(3, 2), nn.Linear(1, 3)

    def model(self, x):
        seen = ~x["x"].isnan() if self.how == "nan" else x["seen"]
        with pyro.plate("data", len(x["x"])):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            law = dist.Normal(self.decoder(z), 0.5)
            if self.how == "nan":
                law = dist.NanMaskedNormal(self.decoder(z), torch.tensor(0.5))
            if self.how == "obs_mask":
                with pyro.plate("columns", 3, dim=-2):
                    law = dist.Normal(self.decoder(z).T, 0.5)
                    pyro.sample("x", law, obs=x["x"].T, obs_mask=seen.T)
                return
            law = law.mask(seen) if self.how == "mask" else law
            pyro.sample("x", law.to_event(1), obs=x["x"])

    def guide(self, x):
        mean, scale = self.encoder(x["x"].nan_to_num()).chunk(2, -1)
        with pyro.plate("data", len(x["x"])):
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


@QUIET
@pytest.mark.parametrize("how", ["mask", "nan", "obs_mask"])
def test_gaps_are_left_out_and_filled_by_draws(how):
    x = torch.randn(40, 3)
    seen = torch.rand(40, 3) < 0.7
    data = {"x": x.masked_fill(~seen, torch.nan if how == "nan" else 0.0), "seen": seen}
    program = Gaps(how)
    assert pv.check(program, data).num_rows == 40
    d = densities(program, data)
    mean = program.decoder(d.latents["z"][0])
    by_hand = (dist.Normal(mean, 0.5).log_prob(x) * seen).sum(-1)
    torch.testing.assert_close(d.log_likelihood[0], by_hand)
    pv.fit(program, data, steps=3, progress=False)
    assert pv.elbo(program, data).isfinite().all()
    drawn = pv.sample(program, 40, like=data)
    assert drawn.shape == (40, 3) and drawn.isfinite().all() and (drawn != 0).all()
    filled = pv.reconstruct(program, data)
    assert filled.shape == (40, 3) and filled.isfinite().all()


@pytest.mark.parametrize("verb", [pv.check, lambda p, x: pv.fit(p, x, steps=1, progress=False)])
def test_a_gap_that_no_mask_holds_back_is_refused_with_its_row(verb):
    data = {"x": torch.randn(40, 3), "seen": torch.rand(40, 3) < 0.7}
    data["x"][17, 1] = torch.nan
    data["seen"][17, 1] = False
    with pytest.raises(
        ValueError, match=r'"x" has a value that is not finite in row 17, .*gradient'
    ):
        verb(Gaps("mask"), data)
    data["seen"][17, 1] = True
    with pytest.raises(
        ValueError, match=r'"x" has a value that is not finite in row 17, .*"x" has'
    ):
        verb(Gaps("mask"), data)


# --- weights --------------------------------------------------------------------------------------


class Weighed(pv.Program):
    """Factors on the KL term and on the observation, and two latents of which one has none."""

    def __init__(self, kl=1.0, observation=1.0, in_guide=None):
        super().__init__()
        torch.manual_seed(0)
        self.factors = kl, observation, kl if in_guide is None else in_guide
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(2, 3)

    def model(self, x):
        with pyro.plate("data", 60, subsample=x):
            with poutine.scale(scale=self.factors[0]):
                z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            w = pyro.sample("w", dist.Laplace(x.new_zeros(1), 1.0).to_event(1))
            with poutine.scale(scale=self.factors[1]):
                mean = self.decoder(torch.cat([z, w], -1))
                pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", 60, subsample=x):
            mean, scale = self.encoder(x).chunk(2, -1)
            with poutine.scale(scale=self.factors[2]):
                pyro.sample("z", dist.Normal(mean[:, :1], scale[:, :1].exp()).to_event(1))
            pyro.sample("w", dist.Normal(mean[:, 1:], scale[:, 1:].exp()).to_event(1))


@pytest.mark.parametrize(("kl", "observation"), [(4.0, 1.0), (0.1, 2.0), (3.0, 3.0)])
def test_factors_count_as_in_pyro(kl, observation):
    """Loss and gradient of Trace_ELBO at the same noise, with the plate's N / B."""
    program, x = Weighed(kl, observation), torch.randn(20, 3)
    losses, grads = [], []
    for objective in (Trace_ELBO(), AEVB("A")):
        with NoiseMode(keyed(1, 2)), seeded(1, 2):
            loss = objective.differentiable_loss(program.model, program.guide, x)
        losses.append(loss.detach())
        grads.append(torch.autograd.grad(loss, list(program.parameters())))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-3)
    for mine, theirs in zip(*reversed(grads), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)


def test_kl_weight_is_the_factor_on_all_latents():
    x = torch.randn(20, 3)
    program, state = Weighed(), pv.objectives.State({}, {})
    with NoiseMode(keyed(1, 2)):
        loss, stats = AEVB("B", kl_weight=2.5).terms(program, x, state)
    with NoiseMode(keyed(1, 2)):
        d = densities(program, x)
    by_hand = -d.log_likelihood.mean(0) + 2.5 * sum(d.kl_terms.values())
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(stats["bound"], d.log_likelihood.mean(0) - sum(d.kl_terms.values()))
    assert (stats["kl_weight"] == 2.5).all()


def test_scores_are_those_of_the_program_without_factors():
    x = torch.randn(60, 3)
    plain, weighed = Weighed(), Weighed(4.0, 2.0)
    assert torch.equal(pv.elbo(plain, x), pv.elbo(weighed, x))
    (note,) = [note for note in pv.check(weighed, x).notes if "poutine.scale" in note]
    assert '"z" by 4, "x" by 2' in note and "not the ELBO" in note


@pytest.mark.parametrize("options", [{}, {"kl_weight": 2.0}])
def test_a_weight_on_what_all_data_share_is_refused(options):
    """It would be dropped from the loss without a word, beside weights that are taken."""

    class Penalized(Weighed):
        def model(self, x):
            with poutine.scale(scale=0.5):
                pyro.factor("penalty", -self.decoder.weight.square().sum())
            super().model(x)

    for program in (Penalized(), Penalized(4.0)):
        with pytest.raises(ValueError, match=r'"penalty" is shared by all data and weighed'):
            AEVB(**options).terms(program, torch.randn(60, 3), pv.objectives.State({}, {}))


@pytest.mark.parametrize("engine", ["eager", "pyro"])
def test_a_factor_is_refused_where_no_term_could_take_it(engine):
    x = torch.randn(60, 3)
    with pytest.raises(ValueError, match=r'"z" is weighed by poutine\.scale.*IWAE'):
        pv.fit(Weighed(4.0), x, IWAE(2), steps=1, engine=engine, progress=False)
    with pytest.raises(ValueError, match=r"scaled by 4 in the model, expected 1 like in the guide"):
        pv.fit(Weighed(4.0, in_guide=1.0), x, steps=1, engine=engine, progress=False)
