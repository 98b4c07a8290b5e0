"""Programs without a mistake pass `check`, and its report says what they consist of."""

import importlib
import pkgutil

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import pyro_vae.models
from pyro_vae import datasets, likelihoods
from pyro_vae.checking.report import check
from pyro_vae.models import bernoulli_vae
from pyro_vae.program.base import Program

from .checks import Linear, mistake, mistakes

MODELS = [module.name for module in pkgutil.iter_modules(pyro_vae.models.__path__)]
NEEDED = {
    "bayesian_vae": {"num_data": 20},
    "vae": {"likelihood": likelihoods.Bernoulli()},
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_library_passes(name):
    """The folder is listed, so a new model is checked before anyone writes a test for it."""
    build = importlib.import_module(f"pyro_vae.models.{name}").build
    program = build(6, **NEEDED.get(name, {}))

    report = check(program, torch.randint(2, (20, 6)).float())

    assert [site.kind for site in report.sites if site.name == "x"] == ["observed"]
    assert report.reparameterized


def test_the_report_says_what_the_program_consists_of(real):
    """It is read by people: sites, families, KL terms, sizes, in one table."""
    report = check(Linear(), real)

    assert [(s.name, s.kind, s.event_shape, s.model, s.guide) for s in report.sites] == [
        ("z", "latent", (2,), "Normal", "Normal"),
        ("x", "observed", (3,), "Normal", None),
    ]
    assert (report.closed_kl, report.sampled_kl) == (("z",), ())
    assert (report.num_rows, report.num_parameters, report.scale) == (8, 17, 1.0)
    assert str(report) == repr(report)
    for part in ("Linear: no mistake found on 8 rows", "17 parameters", "N / B = 1", "closed"):
        assert part in str(report)


def test_the_report_names_kl_terms_that_are_sampled(real):
    """Nothing says so later (T4): a Student-t prior has no closed KL with a Gaussian."""

    class StudentPrior(Linear):
        def prior(self):
            return dist.StudentT(torch.full((2,), 5.0)).to_event(1)

    assert check(StudentPrior(), real).sampled_kl == ("z",)


def test_global_latents_auxiliary_sites_factors_and_subsampling_pass(real):
    """All of Pyro that the contract allows, in one program; N is less than twice the rows."""

    class Everything(Linear):
        def model(self, x):
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            with pyro.plate("parts", 3):
                pyro.sample("part", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 10, subsample_size=len(x)):
                z = pyro.sample("z", self.prior())
                pyro.factor("penalty", -z.square().sum(-1))
                mean = pyro.deterministic("mean", self.decoder(z), event_dim=1)
                pyro.sample("x", dist.Normal(mean + shift, 1.0).to_event(1), obs=x)

        def guide(self, x):
            pyro.sample("shift", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
            with pyro.plate("parts", 3):
                pyro.sample("part", dist.Normal(pyro.param("part_loc", torch.zeros(3)), 1.0))
            with pyro.plate("data", 10, subsample_size=len(x)):
                aux = {"is_auxiliary": True}
                u = pyro.sample("u", dist.Normal(self.encoder(x), 1.0).to_event(1), infer=aux)
                pyro.sample("z", dist.Delta(u, event_dim=1))

    report = check(Everything(), real)

    assert {site.name: site.kind for site in report.sites} == {
        "shift": "global",
        "part": "global",
        "z": "latent",
        "penalty": "factor",
        "mean": "deterministic",
        "x": "observed",
        "u": "auxiliary",
    }
    assert report.scale == 10 / 8
    assert (report.closed_kl, report.sampled_kl) == (("shift", "part"), ("z", "u"))


class Masked(Linear):
    """Bernoulli pixels; 7 stands for a missing one, or, with ``rows``, for a missing row."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def model(self, x):
        known = x != 7
        with pyro.plate("data", len(x)):
            pixels = dist.Bernoulli(logits=self.decoder(pyro.sample("z", self.prior())))
            if self.rows:
                with poutine.mask(mask=known.all(-1)):
                    pyro.sample("x", pixels.to_event(1), obs=x)
            else:
                pyro.sample("x", pixels.mask(known).to_event(1), obs=x)


def test_a_latent_is_masked_in_both_alike_or_in_neither(real):
    class MaskedLatent(Linear):
        def __init__(self, in_model, in_guide):
            super().__init__()
            self.in_model, self.in_guide = in_model, in_guide

        def model(self, x):
            with poutine.mask(mask=self.in_model(x)):
                super().model(x)

        def guide(self, x):
            with poutine.mask(mask=self.in_guide(x)):
                super().guide(x)

    def some(x):
        return x[:, 0] > 0

    def others(x):
        return x[:, 1] > 0

    def everything(x):
        return torch.ones(len(x), dtype=torch.bool)

    check(MaskedLatent(some, lambda x: some(x).clone()), real)
    check(MaskedLatent(lambda x: True, everything), real)
    for pair in ((some, everything), (everything, some), (some, others)):
        (line,) = mistakes(MaskedLatent(*pair), real)
        assert 'site "z" of the guide: masked otherwise than in the model' in line


@pytest.mark.parametrize("rows", [True, False])
def test_values_under_a_mask_may_be_missing_and_no_others(real, rows):
    """A mask takes them out of the density, so they need not be in the support."""
    x = (real > 0).float()
    x[3, 1] = 7.0

    assert check(Masked(rows), x).num_rows == 8
    x[5, 1] = 8.0
    assert "values from 0 to 8, such as 8 in row 5, expected 0 or 1" in mistake(Masked(rows), x)


def test_latents_without_rsample_pass_and_the_report_says_so():
    """Wake-sleep learns them; AEVB cannot."""

    class Discrete(Linear):
        def prior(self):
            return dist.Bernoulli(torch.full((2,), 0.5)).to_event(1)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))

    report = check(Discrete(), torch.randn(8, 3))

    assert not report.reparameterized
    assert "no AEVB" in str(report)


def test_a_delta_guide_passes_and_is_still_compared_row_by_row(real):
    """Its log density is 0 or -inf, by the last bit; so its location is what is compared."""

    class Point(Linear):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Delta(self.encoder(x), event_dim=1))

    # With dropout no second run meets the first one's location again.
    free = nn.Sequential(nn.Dropout(), nn.Linear(3, 2))
    tied = nn.Sequential(nn.Dropout(), FromTheMean())

    assert check(Point(free), real).reparameterized
    assert mistake(Point(tied), real).startswith('site "z" of the guide: location changes')


class PlanarGuide(Linear):
    def guide(self, x):
        base = dist.Normal(self.encoder(x), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))


class FromTheMean(nn.Module):
    """An encoder whose rows see one another."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x - x.mean(0))


@pytest.mark.parametrize("encoder", [None, FromTheMean()], ids=["by row", "by batch"])
def test_rows_of_a_flow_without_an_inverse_are_compared_where_it_draws(real, encoder):
    """It can be scored at no given latents, so it draws its own, at the same noise in each row."""
    program = PlanarGuide(encoder=encoder)
    program.flow = dist.transforms.planar(2)
    if encoder is not None:
        found = mistakes(program, real)
        assert found and all("independent of each other" in line for line in found)
        return
    report = check(program, real)
    assert report.notes == (
        'Planar of site "z" of the guide has no inverse: AEVB can train it, WakeSleep cannot',
    )
    assert report.sampled_kl == ("z",)


def test_dropout_passes(real):
    """It is noise, and noise that differs from row to row ties no rows together."""
    encoder = nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5), nn.Linear(50, 2))

    assert check(Linear(encoder), real).closed_kl == ("z",)


def test_noise_that_no_constant_can_stand_for_is_noted_and_not_blamed(real):
    """A gamma draw outside of any site differs between batches without tying rows."""

    class Jitter(nn.Module):
        def forward(self, x):
            return torch._standard_gamma(torch.ones_like(x)) * x

    program = Linear(nn.Sequential(Jitter(), nn.Linear(3, 2)))
    generator = torch.get_rng_state()

    report = check(program, real)

    assert torch.equal(torch.get_rng_state(), generator)
    assert "rows were not compared: aten._standard_gamma" in report.notes[0]
    assert "note:" in str(report)


class Tutorial(nn.Module):
    """A stranger's module in the style of Pyro's tutorial: 2 x 3 images, site "obs"."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            image = self.decoder(z).sigmoid()
            pyro.sample("obs", dist.Bernoulli(image).to_event(1), obs=x.reshape(-1, 6))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x.reshape(-1, 6)).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


def test_a_strangers_module_passes_as_it_is():
    """Its observed site may have any name; one that is not there is refused."""
    images = torch.randint(2, (8, 1, 2, 3)).float()

    report = check(Program(Tutorial()), images)
    line = mistake(Program(Tutorial(), observed="image"), images)

    assert [site.name for site in report.sites] == ["latent", "obs"]
    assert 'site "image" of the model: missing (observed: obs)' in line
    assert 'pv.Program(..., observed="obs")' in line


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3 + 1, 2), nn.Linear(2 + 1, 3)

    def model(self, x):
        with pyro.plate("data", len(x["x"])):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = self.decoder(torch.cat([z, x["dose"]], -1))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x["x"])

    def guide(self, x):
        with pyro.plate("data", len(x["x"])):
            loc = self.encoder(torch.cat([x["x"], x["dose"]], -1))
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def test_a_dict_with_covariates_passes(real):
    """Covariates are permuted together with the rows they belong to."""
    x = {"x": real, "dose": torch.rand(8, 1)}

    assert check(Program(Conditional()), x).num_rows == 8


def test_data_of_any_kind_that_fit_takes_is_taken_here():
    """At most 64 rows of a Data, an array, or bytes, on the terms of the program."""
    digits = datasets.load("digits").train
    vae = bernoulli_vae.build(64, latent_dim=2, hidden_dim=8)
    grey = digits.x.numpy().astype(np.float64)

    for x in (digits, grey, digits.x[:64].to(torch.uint8), datasets.from_array(digits.x * 1.0)):
        assert check(vae, x).num_rows == 64


def test_dynamic_binarization_is_seen_as_the_likelihood_sees_it():
    """Grey values lie in `Data.x`; what a program is given is binary."""
    grey = datasets.from_array(torch.rand(9, 6), binarize="dynamic")

    assert check(bernoulli_vae.build(6, hidden_dim=4), grey).num_rows == 9
