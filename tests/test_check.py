"""Each mistake that `check` knows, in the smallest program that makes it, and programs without."""

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
from pyro_vae import datasets, likelihoods, posteriors, priors
from pyro_vae.checking.report import check
from pyro_vae.models import bernoulli_vae, gaussian_vae
from pyro_vae.objectives import AEVB, WakeSleep
from pyro_vae.program.base import Program
from pyro_vae.program.vae import VAE

MODELS = [module.name for module in pkgutil.iter_modules(pyro_vae.models.__path__)]


class Linear(Program):
    """Three numbers from two latents: correct, and each test below spoils one thing in it."""

    def __init__(self, encoder=None, decoder=None):
        super().__init__()
        self.encoder = encoder or nn.Linear(3, 2)
        self.decoder = decoder or nn.Linear(2, 3)

    def prior(self):
        return dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)
            self.more_in_model(x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))
            self.more_in_guide(x)

    def more_in_model(self, x):
        """Further sites of a datum."""

    def more_in_guide(self, x):
        """Further sites of a datum."""


@pytest.fixture
def real():
    return torch.randn(8, 3)


def mistakes(program, x):
    """The lines of what `check` raises, without the heading."""
    with pytest.raises(ValueError) as caught:
        check(program, x)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def mistake(program, x):
    """The one mistake that `check` finds."""
    lines = mistakes(program, x)
    assert len(lines) == 1, "\n".join(lines)
    return lines[0]


# --- programs without a mistake -----------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_library_passes(name):
    """The folder is listed, so a new model is checked before anyone writes a test for it."""
    build = importlib.import_module(f"pyro_vae.models.{name}").build
    program = build(6, **({"num_data": 20} if name == "bayesian_vae" else {}))

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
    assert "values from 0 to 8, expected 0 or 1" in mistake(Masked(rows), x)


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
    tied = nn.Sequential(nn.Dropout(), nn.Linear(3, 2), nn.BatchNorm1d(2))

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


def test_a_strangers_module_passes_once_its_observed_site_is_named():
    """The only thing that we ask of it is one keyword."""
    images = torch.randint(2, (8, 1, 2, 3)).float()

    report = check(Program(Tutorial(), observed="obs"), images)
    line = mistake(Program(Tutorial()), images)

    assert [site.name for site in report.sites] == ["latent", "obs"]
    assert 'site "x" of the model: missing (observed: obs)' in line
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


# --- mistakes of structure ----------------------------------------------------------------------


def test_a_site_of_a_datum_outside_the_plate_is_named(real):
    """Without the plate the rows are one datum, and every per-datum number is wrong."""

    class NoPlate(Linear):
        def model(self, x):
            z = pyro.sample("z", self.prior().expand([len(x)]))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))

    lines = mistakes(NoPlate(), real)

    assert [line.split(":")[0] for line in lines] == [
        'site "z" of the guide',
        'site "z" of the model',
        'site "x" of the model',
    ]
    for line in lines:
        assert 'batch shape (8,) outside pyro.plate("data", ...)' in line
        assert 'indent the statement under `with pyro.plate("data", len(x)):`' in line


def test_a_plate_of_another_name_is_not_the_data_plate(real):
    """Rows are found by the plate's name."""

    class Misnamed(Linear):
        def model(self, x):
            with pyro.plate("batch", len(x)):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("batch", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))

    lines = mistakes(Misnamed(), real)

    assert len(lines) == 3
    assert all('lives in pyro.plate("batch", ...)' in line for line in lines)


def test_a_loop_over_the_plate_is_refused(real):
    """Pyro allows it; a batch is one call here."""

    class Loop(Linear):
        def model(self, x):
            for i in pyro.plate("data", len(x)):
                z = pyro.sample(f"z{i}", self.prior())
                pyro.sample(f"x{i}", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x[i])

        def guide(self, x):
            for i in pyro.plate("data", len(x)):
                pyro.sample(f"z{i}", dist.Normal(self.encoder(x[i]), 1.0).to_event(1))

    lines = mistakes(Loop(), real[:2])

    assert 'site "z0" of the guide: pyro.plate("data", ...) is a for loop' in lines[0]


def test_a_latent_on_one_side_of_the_plate_only_is_named(real):
    """A latent belongs to a datum or to all of them."""

    class OneSided(Linear):
        def model(self, x):
            pyro.sample("w", dist.Normal(0.0, 1.0))
            super().model(x)

        def more_in_guide(self, x):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    line = mistake(OneSided(), real)

    assert line.startswith('site "w": inside pyro.plate("data", ...) in the guide and outside in')


@pytest.mark.parametrize("rows", [8, 2])
def test_a_forgotten_to_event_is_found_at_any_number_of_rows(rows):
    """Where B equals J, Pyro's own plate takes the latents for rows."""

    class NoEvent(Linear):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x), 1.0))

    line = mistakes(NoEvent(), torch.randn(rows, 3))[0]

    assert "z" in line
    assert ".to_event(n)" in line


def test_a_latent_missing_in_the_guide_is_named(real):
    """Pyro warns and draws it from the prior (T16)."""

    class Forgetful(Linear):
        def more_in_model(self, x):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    line = mistake(Forgetful(), real)

    assert line.startswith('site "w" of the model: missing in the guide')
    assert 'add pyro.sample("w", ...) to the guide' in line


@pytest.mark.parametrize("infer", [{}, {"is_auxiliary": True}])
def test_a_latent_missing_in_the_model_is_named(real, infer):
    """It would add its entropy to the bound, whatever it is called, beside latents with a law."""

    class Inventive(Linear):
        def more_in_guide(self, x):
            pyro.sample("w", dist.Normal(0.0, 1.0), infer=infer)

    line = mistake(Inventive(), real)

    assert line.startswith('site "w" of the guide: missing in the model')
    assert 'infer={"is_auxiliary": True}' in line


def test_an_observation_that_would_broadcast_is_refused():
    """(B, 1) is scored against D = 3 pixels, validation on (T14)."""
    program = Linear(encoder=nn.Linear(1, 2))

    line = mistake(program, torch.randn(8, 1))

    assert line.startswith('site "x" of the model: observed shape (8, 1), expected (8, 3)')
    assert "batch (8,) + event (3,)" in line


def test_a_guide_of_another_event_shape_is_found_before_the_decoder_fails(real):
    """The decoder's complaint about matrices is a consequence."""

    class Wider(Linear):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))

    lines = mistakes(Wider(), real)

    assert lines[0].startswith(
        'site "z" of the model: the guide draws shape (8, 5), expected (8, 2)'
    )
    assert lines[1].startswith("model(x) fails on a batch of shape (8, 3): RuntimeError")


def test_an_observed_value_that_is_not_x_is_refused(real):
    """A dream of it is no dream of x, so a sleep phase is silently wrong (T34)."""

    class Transformed(Linear):
        def model(self, x):
            super().model(x.exp())

    line = mistake(Transformed(), real)

    assert line.startswith('site "x" of the model: observes something computed from x')
    assert "transform the data before they enter" in line


def test_a_model_without_observation_is_refused(real):
    """With obs=None the site is a latent, and nothing is learnt from the data."""

    class Blind(Linear):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1))

    line = mistake(Blind(), real)

    assert line.startswith('site "x" of the model: a latent, expected an observed site')
    assert 'pass obs=x to pyro.sample("x", ...)' in line


def test_a_second_observed_site_is_refused(real):
    """Likelihoods, dreams and reconstructions are of one x."""

    class Two(Linear):
        def more_in_model(self, x):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=x[:, 0])

    assert mistake(Two(), real).startswith('site "y" of the model: observed as well as "x"')


def test_an_observation_in_the_guide_is_refused(real):
    """It would count as a part of log q."""

    class Watching(Linear):
        def more_in_guide(self, x):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=x[:, 0])

    assert mistake(Watching(), real).startswith('site "y" of the guide: observed in the guide')


class Plated(Linear):
    """Plates of any size in model and guide, and a scale on the latent."""

    def __init__(self, model_size=None, guide_size=None, scale=1.0):
        super().__init__()
        self.model_size, self.guide_size, self.scale = model_size, guide_size, scale

    def model(self, x):
        with pyro.plate("data", self.model_size or len(x), subsample_size=len(x)):
            with poutine.scale(scale=self.scale):
                z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", self.guide_size or len(x), subsample_size=len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


def test_plates_of_unequal_size_in_model_and_guide_are_refused(real):
    """Pyro scales the one by N / B and the other not, and says nothing (T16)."""
    line = mistake(Plated(model_size=100), real)

    assert line.startswith('site "z" of the guide: pyro.plate("data", ...) has size 8')
    assert "expected 100" in line
    assert check(Plated(100, 100), real).scale == 12.5


def test_a_plate_smaller_than_the_batch_is_refused(real):
    """N is the number of all data."""
    lines = mistakes(Plated(5, 5), real)

    assert "has size 5, expected at least the 8 rows of x" in lines[0]


def test_a_scaled_site_is_refused(real):
    """Objectives weigh log densities themselves, so poutine.scale would be lost (T16)."""
    line = mistake(Plated(scale=0.1), real)

    assert line.startswith('site "z" of the model: log density scaled by 0.1, expected 1')
    assert "poutine.scale" in line


# --- mistakes of value --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "found", "advice"),
    [
        (torch.rand(8, 6), "values from 0", "soft_targets=True"),
        (torch.randint(2, (8, 6)) * 255.0, "values from 0 to 255", 'scale=255, binarize="thresh'),
        (torch.randn(8, 6) - 9, "values from -", "choose a likelihood for such values"),
    ],
)
def test_values_outside_the_support_are_refused_with_the_way_in(x, found, advice):
    """With validation off 255 "improves" a Bernoulli's loss (T15)."""
    line = mistake(bernoulli_vae.build(6, latent_dim=2, hidden_dim=4), x)

    assert line.startswith('site "x" of the model: ' + found)
    assert "expected 0 or 1" in line
    assert advice in line


def test_grey_values_pass_where_the_likelihood_takes_them_and_255_does_not():
    """The paper's soft targets live in [0, 1]."""
    vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=4, soft_targets=True)

    assert check(vae, torch.rand(8, 6)).num_rows == 8
    assert "from_array(x, scale=255)" in mistake(vae, torch.rand(8, 6).round() * 255)


def test_a_guide_that_leaves_the_support_of_the_prior_is_named(real):
    """A Gaussian guide for a positive latent draws what the prior calls impossible."""

    class Negative(Linear):
        def prior(self):
            return dist.Exponential(torch.ones(2)).to_event(1)

    line = mistake(Negative(), real)

    assert line.startswith('site "z" of the model: values from -')
    assert "choose a guide with the support of the prior" in line


def test_impossible_parameters_of_a_distribution_are_named(real):
    """A probability of 1.5 is clamped in silence where validation is off."""

    class Improbable(Linear):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", dist.Bernoulli(self.decoder(z).exp() + 1).to_event(1), obs=x)

    line = mistake(Improbable(), (real > 0).float())

    assert line.startswith('site "x" of the model: probs of Bernoulli from')
    assert "sigmoid" in line


@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_a_density_that_is_not_finite_is_named_with_its_first_row(real, value):
    """Row 3 alone has a scale at which the float overflows."""

    class Broken(Linear):
        def guide(self, x):
            bad = torch.arange(len(x)).eq(3).unsqueeze(-1) * (x[:, :1] != 0)
            scale = torch.where(bad, float("nan"), 1.0) if value == "nan" else 1.0
            loc = torch.where(bad & (value != "nan"), 1e30, self.encoder(x))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    lines = mistakes(Broken(), real)

    role = "guide" if value == "nan" else "model"
    assert any(
        line.startswith(f'site "z" of the {role}: log density {value} at row 3') for line in lines
    )


def test_missing_values_in_x_are_named_with_their_row(real):
    """The cure is another than for a scale that underflows."""
    real[2, 1] = torch.nan

    lines = mistakes(Linear(), real)

    assert any("at row 2" in line and "drop or impute such rows" in line for line in lines)
    assert not any("gradient" in line for line in lines)  # those are consequences


# --- rows that are not independent --------------------------------------------------------------


def test_batch_normalization_shows_in_the_subset_and_nowhere_else(real):
    """It passes permutation and duplication (T32), so those two alone would let it through."""
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    line = mistake(Linear(encoder), real)

    assert line.startswith('site "z" of the guide: log density changes by')
    assert "in a subset of the rows" in line
    assert "permuted" not in line
    assert "duplicated" not in line
    assert "replace encoder.1 (BatchNorm1d) by nn.LayerNorm" in line
    assert check(Linear(encoder).eval(), real).num_rows == 8


def test_the_subset_finds_batch_normalization_in_a_decoder_at_its_first_weights():
    """With weights of 0.01 the effect is a 1e-4 of log p(x | z), far above rounding."""
    vae = bernoulli_vae.build(784, latent_dim=2, hidden_dim=20)
    vae.likelihood.network.insert(1, nn.BatchNorm1d(20))

    line = mistake(vae, torch.randint(2, (64, 784)).float())

    assert line.startswith('site "x" of the model')
    assert "permuted" not in line


class RollsRows(nn.Module):
    def forward(self, x):
        return x + x.roll(1, 0)


class SoftmaxOverRows(nn.Module):
    def forward(self, x):
        return x.softmax(0)


class CentresOnGlobalMean(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("layer", "shows"),
    [
        (RollsRows, ["permuted", "subset"]),
        (SoftmaxOverRows, ["duplicated", "subset"]),
        (CentresOnGlobalMean, ["subset"]),
    ],
)
def test_each_way_to_tie_rows_shows_in_its_own_selections(real, layer, shows):
    """The three selections are not copies of one another."""
    line = mistake(Linear(nn.Sequential(layer(), nn.Linear(3, 2))), real)

    assert [word for word in ("permuted", "duplicated", "subset") if word in line] == shows
    assert "dimension 0" in line


def test_a_global_guide_that_reads_the_batch_is_named(real):
    """q(w) must be one distribution, whatever rows are in the batch."""

    class Amortized(Linear):
        def model(self, x):
            pyro.sample("w", dist.Normal(0.0, 1.0))
            super().model(x)

        def guide(self, x):
            pyro.sample("w", dist.Normal(x.mean(), 1.0))
            super().guide(x)

    assert mistake(Amortized(), real).startswith('site "w" of the guide: log density changes')


def test_rounding_in_a_large_network_is_no_dependence():
    """Batches of another size are multiplied in another order, even where a density is steep."""
    vae = gaussian_vae.build(560, latent_dim=10, hidden_dim=200, init_std=None)

    assert check(vae, torch.rand(64, 560)).num_rows == 64
    with torch.no_grad():  # every standard deviation at its floor of 1e-3
        vae.likelihood.network[2].bias[560:] = -40.0
    assert check(vae, torch.rand(64, 560)).num_rows == 64


def test_a_program_for_one_batch_size_alone_is_refused(real):
    """The last batch of an epoch is smaller, and evaluation uses chunks."""

    class Rigid(Linear):
        def model(self, x):
            with pyro.plate("data", 8):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    lines = mistakes(Rigid(), real)

    assert "fails on a batch of shape (4, 3)" in lines[-1] + lines[-2]
    assert "it runs on 8 rows" in lines[-1]


# --- mistakes of learning -----------------------------------------------------------------------


def test_a_parameter_that_nothing_uses_is_named(real):
    """It would sit in every checkpoint and never move (T10)."""
    program = Linear()
    program.spare = nn.Linear(1, 1, bias=False)

    line = mistake(program, real)

    assert line.startswith('parameter "spare.weight": no gradient from AEVB("A")')
    assert "freeze it with requires_grad_(False) or use it" in line
    program.spare.requires_grad_(False)
    assert check(program, real).num_parameters == 17


def test_a_cut_in_the_graph_is_found_at_the_parameters_behind_it(real):
    """A forgotten detach leaves the encoder as it was, without a word."""

    class Cut(Linear):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x).detach(), 1.0).to_event(1))

    lines = mistakes(Cut(), real)

    assert [line.split(":")[0] for line in lines] == [
        'parameter "encoder.weight"',
        'parameter "encoder.bias"',
    ]


def test_of_many_unused_parameters_ten_are_named():
    """An unused network is one mistake, not a screen of them."""
    program = Linear()
    program.spare = nn.ModuleList(nn.Linear(1, 1) for _ in range(8))

    lines = mistakes(program, torch.randn(8, 3))

    assert len(lines) == 11
    assert lines[-1].startswith("6 parameters more: no gradient")


def test_discrete_latents_count_on_wake_sleep_for_their_gradients():
    """The guide's parameters are reached by log q alone."""

    class Discrete(Linear):
        def prior(self):
            return dist.Bernoulli(torch.full((2,), 0.5)).to_event(1)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))

    program = Discrete()
    program.spare = nn.Parameter(torch.zeros(()))

    line = mistake(program, torch.randn(8, 3))

    assert line.startswith('parameter "spare": no gradient from WakeSleep()')


def test_a_gradient_that_is_not_finite_is_named(real):
    """The value of a norm at zero is fine, its gradient is 0 / 0."""

    class Kink(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return x[:, :2] + self.weight.square().sum().sqrt()

    line = mistake(Linear(Kink()), real)

    assert line.startswith('parameter "encoder.weight": gradient from AEVB("A") is not finite')


def test_a_program_without_parameters_is_refused(real):
    """There is nothing to fit."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.ones(3)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert "no parameter that requires a gradient" in mistake(Program(model, guide), real)


def test_a_network_that_the_program_does_not_own_is_found(real):
    """Its parameters would be in no optimizer (T28): 50 steps, moved 0.0."""
    decoder = nn.Linear(2, 3)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1))

    lines = mistakes(Program(model, guide), real)

    assert len(lines) == 2  # weight and bias
    assert lines[0].startswith('site "x" of the model: depends on a tensor (3, 2)')
    assert "pv.Program(model, guide, net=net)" in lines[0]
    assert check(Program(model, guide, decoder=decoder), real).num_parameters == 11


def test_a_module_that_keeps_parameters_in_pyros_store_must_be_wrapped(real):
    """The store mixes models up (T10); a Program answers from its own."""

    class Stored(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Linear(2, 3)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1))

    line = mistake(Stored(), real)

    assert line.startswith('site "z" of the guide: depends on pyro.param("loc")')
    assert "pv.Program(module)" in line
    assert check(Program(Stored()), real).num_parameters == 11


# --- errors and side effects --------------------------------------------------------------------


def test_an_exception_of_the_program_is_chained_to_one_line(real):
    """The line says which function on which shape, and the traceback stays."""
    with pytest.raises(
        ValueError, match=r"guide\(x\) fails on a batch of shape \(8, 3\)"
    ) as caught:
        check(Linear(encoder=nn.Linear(4, 2)), real)

    assert isinstance(caught.value.__cause__, RuntimeError)
    assert len(str(caught.value).splitlines()) == 2


def test_two_sites_or_plates_of_one_name_are_refused(real):
    """Pyro notices; the message says what to do."""

    class TwoSites(Linear):
        def more_in_model(self, x):
            pyro.sample("z", self.prior())

    class TwoPlates(Linear):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior())
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    assert "Multiple sample sites named 'z'" in mistake(TwoSites(), real)
    assert 'rows = pyro.plate("data", len(x))' in mistake(TwoPlates(), real)


def test_a_likelihood_that_validates_itself_gives_no_second_line(real):
    """Its log_prob raises for a value that was already named, and its decoder is not unused."""

    class Strict(Linear):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior())
                pixels = dist.Bernoulli(logits=self.decoder(z), validate_args=True)
                pyro.sample("x", pixels.to_event(1), obs=x)

    assert "expected 0 or 1" in mistake(Strict(), real)


def test_all_mistakes_are_listed_at_once(real):
    """One run, one list, one line each."""
    program = Plated(model_size=100, scale=0.5)
    program.spare = nn.Parameter(torch.zeros(()))
    real[1, 1] = torch.inf

    lines = mistakes(program, real)

    for part in ("has size 8", "scaled by", "at row 1", 'parameter "spare"'):
        assert any(part in line for line in lines), part


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[0.0]], TypeError, "expected a Data, a tensor"),
        ({"y": torch.zeros(3, 3)}, TypeError, 'entry "x"'),
        ({"x": torch.zeros(3, 3), "c": torch.zeros(2)}, ValueError, "common first dimension"),
        (torch.zeros(1, 3), ValueError, "x has 1 row, expected at least 2"),
        (torch.zeros(0, 3), ValueError, "no rows"),
        (torch.zeros(()), ValueError, "single number"),
    ],
)
def test_what_is_no_data_is_refused(x, error, message):
    """Before the program is run at all."""
    with pytest.raises(error, match=message):
        check(Linear(), x)


def test_what_is_no_program_is_refused(real):
    """A function, or a network alone."""
    for program in (lambda x: x, nn.Linear(3, 3)):
        with pytest.raises(TypeError, match="expected a module with model"):
            check(program, real)


@pytest.mark.parametrize("broken", [False, True])
def test_the_program_and_the_world_are_left_as_they_were(real, broken):
    """Gradients, parameters, buffers, modes, the generator and the store: all of them."""
    norm = nn.BatchNorm1d(2).train(broken)
    program = Linear(nn.Sequential(nn.Linear(3, 2), norm))
    program.decoder.eval()
    pyro.get_param_store()["mine"] = torch.ones(2)
    state = {name: value.clone() for name, value in program.state_dict().items()}
    generator, kept = torch.get_rng_state(), real.clone()

    try:
        check(program, real)
    except ValueError:
        assert broken

    for name, value in program.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(p.grad is None and p.requires_grad for p in program.parameters())
    assert (program.training, norm.training, program.decoder.training) == (True, broken, False)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(real, kept)
    assert list(pyro.get_param_store()) == ["mine"]
    pyro.clear_param_store()


def test_parameters_that_pyro_param_makes_are_dropped_again(real):
    """They start where the first real run starts them, not where a check did."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            weight = pyro.param("weight", lambda: torch.randn(2, 3))
            pyro.sample("x", dist.Normal(z @ weight, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(2)), 1.0).to_event(1))

    program = Program(model, guide)

    assert check(program, real).num_parameters == 8
    assert not list(program.parameters())


def test_a_checked_program_trains_as_an_unchecked_one(real):
    """The check leaves no mark on the numbers that follow."""
    losses = []
    for checked in (False, True):
        pyro.set_rng_seed(1)
        vae = VAE(
            prior=priors.StandardNormal(2),
            likelihood=likelihoods.Gaussian(2, 3, 4),
            posterior=posteriors.Gaussian(3, 2, 4),
        )
        if checked:
            check(vae, real)
        losses += [
            objective.differentiable_loss(vae.model, vae.guide, real)
            for objective in (AEVB("A"), WakeSleep())
        ]

    assert losses[:2] == losses[2:]
