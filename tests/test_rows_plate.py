"""The rows' plate has any name or none of its own size, and numbers are those of plate "data"."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.chains.latents import Latents
from pyro_vae.densities import densities

from .quickly import some_quickly

N = 40


class Rows(pv.Program):
    """A Gaussian program whose plates are made by the functions that it is given."""

    def __init__(self, model_rows, guide_rows=None, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(2, 3)
        self.model_rows, self.guide_rows = model_rows, guide_rows or model_rows

    def model(self, x):
        with self.model_rows(x) as ix:
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            seen = x if ix is None else x[ix]
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=seen)

    def guide(self, x):
        with self.guide_rows(x):
            mean, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


def plate(name, *args, **options):
    return lambda x: pyro.plate(name, *[len(x) if a == "rows" else a for a in args], **options)


def subsampled(name):
    return lambda x: pyro.plate(name, N, subsample_size=len(x))


IDIOMS = {
    "batch": (plate("batch", "rows"),),
    "no size": (plate("data"),),
    "no size, documents": (plate("documents"),),
    "obs=x[ix]": (plate("data", "rows"),),
    "other names in model and guide": (plate("rows", "rows"), plate("minibatch", "rows")),
    "dim said": (plate("z_minibatch", "rows", dim=-1),),
    "model sized, guide not": (plate("batch", "rows"), plate("batch")),
}


@pytest.fixture
def usual():
    return Rows(plate("data", "rows"))


@pytest.fixture
def x():
    return torch.randn(N, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore:khat", "ignore:log p.x. still rises")  # of no trained guide
@pytest.mark.parametrize("idiom", some_quickly(IDIOMS, "batch"))
def test_every_verb_has_the_numbers_of_plate_data(idiom, usual, x):
    program = Rows(*IDIOMS[idiom])

    assert [site.kind for site in pv.check(program, x).sites] == ["latent", "observed"]
    assert torch.equal(pv.elbo(program, x), pv.elbo(usual, x))
    values = [pv.log_evidence(p, x, num_particles=100, seed=1).value for p in (program, usual)]
    assert torch.equal(*values)
    u = [Latents.of(p, x).log_joint(p, x, torch.ones(N, 2)) for p in (program, usual)]
    assert torch.equal(*u)
    draws = [pv.sample(p, 4, like=x, seed=3) for p in (program, usual)]
    assert torch.equal(*draws)
    several = [pv.objectives.WakeSleep()] if idiom == "batch" else []
    for objective in (pv.objectives.AEVB(), *several):
        for p in (program, usual):
            run = pv.fit(p, x, objective, steps=2, batch_size=16, engine="eager", progress=False)
            assert run.manifest["engine_reason"] == ""
    for (name, mine), theirs in zip(program.named_parameters(), usual.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("name", ["data", "batch"])
def test_a_subsampled_plate_scales_by_all_data(name, x):
    """Pyro's loss at the same noise: N / B times the sum over the batch."""
    program, few = Rows(subsampled(name)), x[:10]

    d = densities(program, few)
    ours = pv.objectives.AEVB("A").loss(program.model, program.guide, few)

    assert d.scale == 4.0
    torch.manual_seed(5)
    ours = pv.objectives.AEVB("A").loss(program.model, program.guide, few)
    assert ours == pytest.approx(-4.0 * float(_bound(program, few, 5).sum()), rel=1e-5)


def _bound(program, x, seed):
    torch.manual_seed(seed)
    return densities(program, x).log_w[0].detach()


class Words(pv.Program):
    """Documents of as many words as there are documents, and as many topics: three equal sizes."""

    def __init__(self, outer="documents", inner="words", **options):
        super().__init__(**options)
        self.outer, self.inner = outer, inner
        self.encoder, self.scale = nn.Linear(6, 1), nn.Parameter(torch.tensor(0.3))
        self.weights = nn.Parameter(torch.randn(6))

    def model(self, x):
        with pyro.plate("topics", 6):
            pyro.sample("weight", dist.Normal(0.0, 1.0))
        with pyro.plate(self.outer, len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate(self.inner, 6, dim=-2):
                pyro.sample("x", dist.Normal(z * self.scale, 1.0), obs=x.T)

    def guide(self, x):
        with pyro.plate("topics", 6):
            pyro.sample("weight", dist.Normal(self.weights, 1.0))
        with pyro.plate(self.outer, len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x)[:, 0], 1.0))


@pytest.mark.parametrize("rows", [6, 5])
def test_of_plates_of_one_size_the_one_that_follows_the_rows_is_theirs(rows):
    """With six rows, six words and six topics no size tells which plate counts the rows."""
    program, x = Words(), torch.randn(rows, 6)

    d = densities(program, x)

    assert d.log_likelihood.shape == (1, rows) and set(d.log_ratio) == {"z"}
    expected = dist.Normal(d.latents["z"][0].unsqueeze(-1) * program.scale, 1.0).log_prob(x)
    torch.testing.assert_close(d.log_likelihood[0], expected.sum(-1))


def test_the_plate_may_be_named():
    """Where the program says which, no run asks."""
    program, x = Words("a", "b", plate="a"), torch.randn(6, 6)
    assert densities(program, x).log_likelihood.shape == (1, 6)
    with pytest.raises(ValueError, match=r'says plate="c", .* documents, topics, words'):
        pv.check(Words(plate="c"), x)
    with pytest.raises(TypeError, match="expected the name of a plate"):
        Words(plate=nn.Linear(1, 1))


@pytest.mark.parametrize("verb", [pv.check, pv.elbo, lambda p, x: pv.fit(p, x, steps=1)])
def test_a_plate_that_subsamples_what_is_a_minibatch_already_is_refused(verb, x):
    program = Rows(lambda x: pyro.plate("data", len(x), subsample_size=8))
    with pytest.raises(ValueError, match=r'pyro\.plate\("data".*8 (rows|members).*the 40'):
        verb(program, x)


class Unsized(Rows):
    def model(self, x):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    guide = Rows.guide


@pytest.mark.parametrize("verb", [pv.check, pv.elbo, lambda p, x: pv.fit(p, x, steps=1)])
def test_a_prior_that_a_plate_without_size_does_not_repeat_is_refused(verb, x):
    """Pyro would draw one z for all rows, or score one prior against forty."""
    with pytest.raises(ValueError, match=r"batch shape \(\).*expected one draw for each of 40"):
        verb(Unsized(plate("data")), x)


def test_a_copy_finds_its_plate_by_itself(x):
    import copy

    program = Rows(plate("batch", "rows"))
    value = pv.elbo(program, x)
    assert torch.equal(pv.elbo(copy.deepcopy(program), x), value)
