"""What a day of use met: batch normalization in every engine, and what is said of mistakes."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from torch import nn

import pyro_vae as pv
from pyro_vae import objectives
from pyro_vae.models import bernoulli_vae

from .quickly import some_quickly

X = (torch.rand(130, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()
QUIET = {"progress": False}


class Normalized(pv.Program):
    def __init__(self, norm=None, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            norm = nn.BatchNorm1d(8) if norm is None else norm
            self.encoder = nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), nn.Linear(8, 4))
            self.decoder = nn.Linear(2, 6)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def gap(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((p - q).abs().max()) for p, q in pairs)


# --- batch normalization -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "tracked"),
    [
        (objectives.AEVB, True),
        (objectives.WakeSleep, False),
        pytest.param(objectives.AEVB, False, marks=pytest.mark.slow),
        pytest.param(objectives.WakeSleep, True, marks=pytest.mark.slow),
    ],
)
def test_rows_that_fill_up_a_batch_are_not_normalized_over(make, tracked):
    """130 rows in batches of 100: the second holds 30, whose mean the other 70 would move."""
    norms = [nn.BatchNorm1d(8, track_running_stats=tracked) for _ in range(2)]
    programs = [Normalized(norm) for norm in norms]
    for program, engine in zip(programs, ("pyro", "eager"), strict=True):
        pv.fit(program, X, make(), steps=7, engine=engine, **QUIET)
    assert gap(*programs) < 1e-6


def test_running_statistics_are_those_of_plain_torch():
    """At a step size of nothing they hang on the order of the batches alone: all rows, here."""
    for engine in ("pyro", "auto"):
        program = Normalized()
        pv.fit(program, X, steps=6, batch_size=130, lr=1e-30, engine=engine, **QUIET)
        plain = Normalized()
        for _ in range(6):
            plain.encoder(X)
        assert gap(program, plain) < 1e-6, engine


def test_compiled_code_would_move_statistics_of_its_own_so_it_is_not_taken():
    with pytest.raises(ValueError, match=r"encoder.1 \(BatchNorm1d\) ties the rows of a batch"):
        pv.fit(Normalized(), X, steps=2, engine="compiled", **QUIET)


@pytest.mark.slow
def test_compiled_code_is_taken_where_the_statistics_are_frozen():
    frozen = Normalized()
    frozen.encoder[1].eval()  # no statistics of a batch, none that move
    run = pv.fit(frozen, X, steps=2, engine="compiled", **QUIET)
    assert run.manifest["engine"] == "compiled" and not frozen.encoder[1].num_batches_tracked


class Counted(Normalized):
    """A buffer of one's own that each step moves."""

    def __init__(self, seed=0):
        super().__init__(nn.Identity(), seed)
        self.register_buffer("mean", torch.zeros(6))

    def guide(self, x):
        with torch.no_grad():
            self.mean.lerp_(x.mean(0), 0.1)
        super().guide(x)


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        (Normalized, "auto"),
        (Counted, "pyro"),
        pytest.param(Counted, "auto", marks=pytest.mark.slow),
        pytest.param(Normalized, "pyro", marks=pytest.mark.slow),
    ],
)
def test_replicas_have_running_statistics_of_their_own(kind, engine):
    runs = pv.fit([kind(seed=0), kind(seed=1)], X, steps=5, seed=[0, 1], engine=engine, **QUIET)
    for number, run in enumerate(runs):
        alone = kind(seed=number)
        pv.fit(alone, X, steps=5, seed=number, engine="pyro", **QUIET)
        assert gap(run.program, alone) < 1e-6


def test_a_buffer_of_ones_own_moves_in_every_engine():
    programs = [Counted() for _ in range(3)]
    for program, engine in zip(programs, ("pyro", "eager", "auto"), strict=True):
        pv.fit(program, X, steps=5, engine=engine, **QUIET)
    assert gap(*programs[:2]) < 1e-6 and gap(*programs[1:]) == 0.0
    with pytest.raises(ValueError, match="cannot run this: not captured"):
        pv.fit(Counted(), X, steps=2, engine="compiled", **QUIET)


# --- automatic guides ----------------------------------------------------------------------------


def regression(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 60, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(x @ w + b, 0.5), obs=y)


KINDS = ("AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal", "AutoDelta",
         "AutoLowRankMultivariateNormal", "AutoIAFNormal", "AutoStructured")  # fmt: skip
COVARIATES = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
Y = COVARIATES @ torch.tensor([1.0, -2.0, 0.5]) + 0.3
DATA = {"x": COVARIATES, "y": Y}


@pytest.mark.parametrize("kind", some_quickly(KINDS, "AutoNormal", "AutoIAFNormal"))
def test_a_check_leaves_an_automatic_guide_as_it_was(kind):
    programs = []
    for checked in (True, False):
        program = pv.Program(regression, getattr(autoguide, kind)(regression), observed="y")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if checked:
                pv.check(program, DATA)
                assert not list(program.parameters())
            options = {"batch_size": 20, "engine": "pyro", **QUIET}
            pv.fit(program, DATA, objectives.AEVB("A"), steps=3, **options)
        programs.append(program)
    assert gap(*programs) == 0.0
    pv.check(programs[0], DATA)
    assert gap(*programs) == 0.0


def test_latents_without_a_dimension_that_all_data_share_come_to_arviz():
    program = pv.Program(regression, autoguide.AutoNormal(regression), observed="y")
    options = {"optimizer": torch.optim.Adam, "lr": 0.04, "batch_size": 60, **QUIET}
    pv.fit(program, DATA, objectives.AEVB("A"), steps=300, engine="eager", **options)
    result = pv.to_inference_data(program, DATA, num_draws=200, num_prior=0, predictive=False)
    draws = result["posterior"]
    design = torch.cat([COVARIATES, torch.ones(60, 1)], 1)
    precision = design.T @ design / 0.25 + torch.eye(4)
    mean = torch.linalg.solve(precision, design.T @ Y / 0.25)
    assert draws["b"].dims == ("chain", "draw")
    assert float(draws["b"].mean()) == pytest.approx(float(mean[3]), abs=0.04)
    for k in range(3):
        assert float(draws["w"][..., k].mean()) == pytest.approx(float(mean[k]), abs=0.04)


# --- what is said of mistakes --------------------------------------------------------------------


def test_many_latents_that_the_guide_lacks_are_one_line():
    class Lacking(Normalized):
        def model(self, x):
            for i in range(30):
                pyro.sample(f"w{i}", dist.Normal(0.0, 1.0))
            super().model(x)

    with pytest.raises(ValueError, match="1 mistake:") as caught:
        pv.check(Lacking(nn.Identity()), X)
    assert 'add pyro.sample("w0", ...) to the guide' in str(caught.value)
    assert 'likewise site "w1" of the model, ' in str(caught.value)
    assert str(caught.value).endswith("and 20 more)")


@pytest.mark.parametrize("verb", ["check", "fit"])
def test_a_dict_that_a_network_was_given_is_told(verb):
    options = {} if verb == "check" else {"steps": 1, **QUIET}
    with pytest.raises((TypeError, ValueError), match=r'a dict is given whole .*pass x\["x"\]'):
        getattr(pv, verb)(Normalized(nn.Identity()), {"x": X}, **options)


@pytest.mark.parametrize("error", [KeyError("k"), IndexError("i"), AttributeError("a")])
def test_fit_says_which_half_of_a_program_fails_of_its_own_code(error):
    class Failing(Normalized):
        def model(self, x):
            raise error

    with pytest.raises(ValueError, match=r"model\(x\) fails on a batch of shape \(100, 6\)"):
        pv.fit(Failing(nn.Identity()), X, steps=1, **QUIET)


def test_covariates_alone_are_enough_before_anything_else_has_run():
    """The rows' plate is called otherwise, and no site observes where x is not given."""

    class Conditional(Normalized):
        def model(self, x=None, y=None):
            with pyro.plate("rows", len(y)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                law = dist.Bernoulli(logits=self.decoder(z) + y)
                pyro.sample("x", law.to_event(1), obs=x)

        def guide(self, x=None, y=None):
            with pyro.plate("rows", len(y)):
                loc = self.encoder(x)[:, :2]
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    like, rows = {"y": 3 * X[:50]}, {"x": X, "y": X}
    fresh, used = Conditional(nn.Identity()), Conditional(nn.Identity())
    pv.elbo(used, rows)
    draws = pv.sample(fresh, 50, like=like)
    assert draws.shape == (50, 6) and torch.equal(draws, pv.sample(used, 50, like=like))
    z = torch.randn(4, 50, 2)
    expected = torch.sigmoid(fresh.decoder(z) + like["y"])
    torch.testing.assert_close(pv.decode(Conditional(nn.Identity()), z, like=like), expected)


# --- check and fit agree --------------------------------------------------------------------------


class Broadcast(pv.Program):
    """Shapes that torch broadcasts: one logit for six pixels, or a law beside its plate."""

    def __init__(self, how):
        super().__init__()
        self.how, self.encoder, self.decoder = how, nn.Linear(6, 2), nn.Linear(2, 1)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-2 if self.how == "plate" else -1):
            zero = torch.zeros(len(x), 2) if self.how == "plate" else torch.zeros(2)
            law = dist.Normal(zero, 1.0).to_event(1)
            z = pyro.sample("z", law)
            logits = self.decoder(z) if self.how == "pixels" else self.decoder(z).expand(*x.shape)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


@pytest.mark.parametrize("verb", [pv.check, pv.elbo, lambda p, x: pv.fit(p, x, steps=1)])
def test_one_logit_for_six_pixels_is_refused(verb):
    with pytest.raises(ValueError, match=r"observed shape \(30, 6\), expected \(30, 1\)"):
        verb(Broadcast("pixels"), torch.ones(30, 6))


@pytest.mark.parametrize("verb", [pv.check, pv.elbo, lambda p, x: pv.fit(p, x, steps=1)])
def test_a_law_beside_its_plate_is_refused(verb):
    with pytest.raises(ValueError, match=r"that no plate declares|model\(x\) fails on a batch"):
        verb(Broadcast("plate"), torch.ones(30, 6))


@pytest.mark.parametrize("verb", [pv.check, lambda p, x: pv.fit(p, x, steps=1)])
def test_a_gap_beyond_the_first_rows_is_told_by_both(verb):
    x = torch.ones(200, 6)
    x[150, 2] = torch.nan
    vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=4)
    with pytest.raises(ValueError, match="not finite in row 150"):
        verb(vae, x)


def test_gaps_in_covariates_and_latents_are_refused():
    vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=4)
    with pytest.raises(ValueError, match="not finite"):
        pv.sample(vae, 3, like=torch.full((3, 6), torch.nan))
    with pytest.raises(ValueError, match='z of "z" has a value that is not finite'):
        pv.decode(vae, torch.full((3, 2), torch.nan))


@pytest.mark.parametrize("engine", ["eager", "pyro"])
@pytest.mark.parametrize("objective", ["AEVB", "IWAE", "ScoreFunction"])
def test_running_statistics_move_once_a_step(engine, objective):
    program, kind = Normalized(), getattr(objectives, objective)
    chosen = kind(num_particles=3)
    pv.fit(program, X[:100], chosen, steps=4, batch_size=50, engine=engine, **QUIET)
    assert int(program.encoder[1].num_batches_tracked) == 4
