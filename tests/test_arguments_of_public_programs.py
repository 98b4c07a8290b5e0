"""Programs in the idiom of Pyro's public examples, with all their arguments: CVAE, SS-VAE, DMM."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyro_vae as pv

GENERATOR = torch.Generator().manual_seed(0)


def bits(*shape):
    return (torch.rand(*shape, generator=GENERATOR) < 0.5).float()


class CVAE(nn.Module):
    """A prior given the input, and a guide that is the prior where there is no output."""

    def __init__(self):
        super().__init__()
        self.prior, self.generation = nn.Linear(8, 4), nn.Linear(2, 8)
        self.recognition = nn.Linear(16, 4)

    def law(self, out):
        loc, scale = out.chunk(2, -1)
        return dist.Normal(loc, scale.exp()).to_event(1)

    def model(self, xs, ys=None):
        pyro.module("generation_net", self)
        with pyro.plate("data"):
            zs = pyro.sample("z", self.law(self.prior(xs)))
            loc = self.generation(zs).sigmoid()
            pyro.sample("y", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=ys)
            return loc

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            out = self.prior(xs) if ys is None else self.recognition(torch.cat([xs, ys], -1))
            pyro.sample("z", self.law(out))


class SSVAE(nn.Module):
    """A label that is observed or not, and a style."""

    def __init__(self):
        super().__init__()
        self.encoder_y, self.encoder_z = nn.Linear(8, 3), nn.Linear(11, 4)
        self.decoder = nn.Linear(5, 8)

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        batch_size = xs.size(0)
        with pyro.plate("data"):
            prior = xs.new_zeros([batch_size, 2]), xs.new_ones([batch_size, 2])
            zs = pyro.sample("z", dist.Normal(*prior).to_event(1))
            alpha = xs.new_ones([batch_size, 3]) / 3.0
            ys = pyro.sample("y", dist.OneHotCategorical(alpha), obs=ys)
            loc = self.decoder(torch.cat([zs, ys], -1)).sigmoid()
            pyro.sample("x", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=xs)

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(logits=self.encoder_y(xs)))
            loc, scale = self.encoder_z(torch.cat([xs, ys], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class DMM(nn.Module):
    """A chain of latents, one observation a step, masks for sequences of different lengths."""

    def __init__(self):
        super().__init__()
        self.trans, self.emitter = nn.Linear(2, 4), nn.Linear(2, 5)
        self.rnn, self.combiner = nn.RNN(5, 6, batch_first=True), nn.Linear(8, 4)
        self.z_0, self.z_q_0 = (nn.Parameter(torch.zeros(2)) for _ in range(2))

    def law(self, out, mask):
        loc, scale = out.chunk(2, -1)
        return dist.Normal(loc.tanh(), nn.functional.softplus(scale)).mask(mask).to_event(1)

    def model(
        self,
        mini_batch,
        mini_batch_reversed,
        mini_batch_mask,
        mini_batch_seq_lengths,
        annealing_factor=1.0,
    ):
        pyro.module("dmm", self)
        z_prev = self.z_0.expand(mini_batch.size(0), 2)
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in range(1, mini_batch.size(1) + 1):
                mask = mini_batch_mask[:, t - 1 : t]
                with poutine.scale(scale=annealing_factor):
                    z_t = pyro.sample(f"z_{t}", self.law(self.trans(z_prev), mask))
                probs = self.emitter(z_t).sigmoid()
                law = dist.Bernoulli(probs).mask(mask).to_event(1)
                pyro.sample(f"obs_x_{t}", law, obs=mini_batch[:, t - 1, :])
                z_prev = z_t

    def guide(
        self,
        mini_batch,
        mini_batch_reversed,
        mini_batch_mask,
        mini_batch_seq_lengths,
        annealing_factor=1.0,
    ):
        hidden, _ = self.rnn(mini_batch_reversed)
        z_prev = self.z_q_0.expand(mini_batch.size(0), 2)
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in range(1, mini_batch.size(1) + 1):
                mask = mini_batch_mask[:, t - 1 : t]
                out = self.combiner(torch.cat([z_prev, hidden[:, -t]], -1))
                with poutine.scale(scale=annealing_factor):
                    z_prev = pyro.sample(f"z_{t}", self.law(out, mask))


X, OUTPUT = bits(20, 8), bits(20, 8)
LABEL = nn.functional.one_hot(torch.arange(20) % 3, 3).float()
LENGTHS = torch.arange(20) % 3 + 2
SEQUENCES = bits(20, 4, 5)
BATCH = {
    "mini_batch": SEQUENCES,
    "mini_batch_reversed": SEQUENCES.flip(1),
    "mini_batch_mask": torch.arange(4) < LENGTHS[:, None],
    "mini_batch_seq_lengths": LENGTHS,
}
PROGRAMS = {
    "CVAE": (CVAE, {"xs": X, "ys": OUTPUT}),
    "SS-VAE with labels": (SSVAE, {"xs": X, "ys": LABEL}),
    "DMM": (DMM, BATCH),
}


def built(make):
    torch.manual_seed(0)
    return pv.Program(make())


def losses(program, objective, *args):
    pyro.set_rng_seed(2)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), objective)
    return [svi.step(*args) for _ in range(4)]


@pytest.mark.parametrize(("make", "data"), PROGRAMS.values(), ids=PROGRAMS)
def test_our_objective_inside_svi_has_the_losses_of_pyro_s(make, data):
    """Whatever the arguments are, at the same noise."""
    ours = losses(built(make), pv.objectives.AEVB("A"), *data.values())
    theirs = losses(built(make), Trace_ELBO(), *data.values())
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("factor", [0.3, torch.tensor(0.3)], ids=["number", "tensor"])
def test_an_annealing_factor_is_passed_on(factor):
    """Which weighs the latents' terms alone."""
    args = (*BATCH.values(), factor)
    ours = losses(built(DMM), pv.objectives.AEVB("A"), *args)
    assert ours == pytest.approx(losses(built(DMM), Trace_ELBO(), *args), rel=1e-4)
    assert ours != losses(built(DMM), pv.objectives.AEVB("A"), *BATCH.values())


@pytest.mark.parametrize(("make", "data"), PROGRAMS.values(), ids=PROGRAMS)
@pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")  # so few updates and draws
def test_a_program_goes_all_the_way(make, data):
    """A dict and a tuple of it are fitted alike, scored, sampled and converted."""
    ends = []
    for given in (data, tuple(data.values())):
        program = built(make)
        objective = pv.objectives.AEVB("A")
        pv.fit(program, given, objective, steps=3, batch_size=10, engine="pyro", progress=False)
        ends.append(pv.elbo(program, given))
        assert ends[-1].shape == (20,)
    assert torch.equal(*ends)
    drawn = pv.sample(program, 3, like=data)
    assert all(len(t) == 3 for t in (drawn.values() if isinstance(drawn, dict) else [drawn]))
    assert pv.to_inference_data(program, data, num_draws=10)["posterior"].sizes["data"] == 20


def test_semi_supervision_trains_by_both_kinds_of_step():
    """svi.step(xs, ys) for labelled rows and svi.step(xs) for the others."""
    program = built(SSVAE)
    for objective in (pv.objectives.AEVB("A"), Trace_ELBO()):
        assert losses(program, objective, X, LABEL)[0] > 0
    assert losses(program, pv.objectives.ScoreFunction(), X)[0] > 0
    pv.fit(program, X, pv.objectives.ScoreFunction(), steps=2, progress=False)


def test_a_conditional_program_completes_its_inputs():
    """p(y | x), for which the guide needs no y and the site has another name than its entry."""
    program = built(CVAE)
    drawn = pv.sample(program, 20, like={"xs": X})
    assert drawn.shape == (20, 8) and set(drawn.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(drawn, pv.sample(program, 20, like=(X, OUTPUT)))
    mean = pv.sample(program, 20, like=X, mean=True)
    assert mean.min() > 0 and mean.max() < 1
