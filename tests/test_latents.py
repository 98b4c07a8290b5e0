"""Latents without bounds: their density, the way there and back, and what has no such form."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

import pyro_vae as pv
from pyro_vae.chains.latents import Latents


class Counts(pv.Program):
    """rate ~ Gamma(a, b), share ~ Dirichlet(c), x_d ~ Poisson(rate share_d): two supports, exact.

    The likelihood is rate^n e^-rate prod share_d^x_d / x_d! with n = sum x, so rate | x is
    Gamma(a + n, b + 1) and share | x is Dirichlet(c + x), independent.
    """

    shape, rate = 2.0, 0.7

    def __init__(self, data_dim=3):
        super().__init__()
        self.weight = nn.Parameter(torch.full((data_dim,), 1.5, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            a, b = torch.tensor([self.shape, self.rate], dtype=torch.float64)
            rate = pyro.sample("rate", dist.Gamma(a, b))
            share = pyro.sample("share", dist.Dirichlet(self.weight))
            pyro.sample("x", dist.Poisson(rate.unsqueeze(-1) * share).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(x.sum(-1) + self.shape, self.rate + 1))
            pyro.sample("share", dist.Dirichlet(self.weight + x))

    def exact(self, x):
        """The laws of rate (scipy) and of each share (a Dirichlet's margins are Beta)."""
        x, c = x.numpy(), self.weight.detach().numpy() + x.numpy()
        total = c.sum(-1, keepdims=True)
        return (
            stats.gamma(x.sum(-1) + self.shape, scale=1 / (self.rate + 1)),
            stats.beta(c, total - c),
        )


COUNTS = torch.tensor([[0, 0, 1], [3, 1, 0], [12, 2, 30], [1, 1, 1]], dtype=torch.float64)


def latents_and_target(program, x):
    """The latents, and log p as a function of u alone."""
    latents = Latents.of(program, x)
    return latents, lambda u: latents.log_joint(program, x, u).double()


def test_log_joint_is_the_density_of_u():
    """Gamma, Dirichlet and Poisson by scipy, and |det dz/du| from the Jacobian of `constrain`."""
    program, x = Counts(), COUNTS
    latents = Latents.of(program, x)
    assert latents.names == ("rate", "share") and latents.dim == 3
    u = torch.randn(4, 3, dtype=torch.float64)
    values = latents.constrain(u)
    rate, share = values["rate"].numpy(), values["share"].numpy()
    log_p = stats.gamma.logpdf(rate, program.shape, scale=1 / program.rate)
    log_p += np.array([stats.dirichlet.logpdf(s, [1.5, 1.5, 1.5]) for s in share])
    log_p += stats.poisson.logpmf(x.numpy(), rate[:, None] * share).sum(-1)

    def free(row):  # u of one datum to (rate, the first two shares)
        z = latents.constrain(row[None])
        return torch.cat([z["rate"], z["share"][0, :2]])

    jacobian = torch.stack([torch.autograd.functional.jacobian(free, row) for row in u])
    expected = torch.tensor(log_p) + torch.linalg.slogdet(jacobian).logabsdet

    torch.testing.assert_close(
        latents.log_joint(program, x, u).detach(), expected, rtol=1e-10, atol=1e-10
    )


def test_constrain_and_unconstrain_undo_each_other_under_leading_dimensions():
    latents = Latents.of(Counts(), COUNTS)
    u = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    values = latents.constrain(u)
    assert values["rate"].shape == (2, 5, 4) and values["share"].shape == (2, 5, 4, 3)
    torch.testing.assert_close(latents.unconstrain(values), u)
    torch.testing.assert_close(latents.constrain(u[1, 2])["share"], values["share"][1, 2])


def program_of(model):
    return pv.Program(model, lambda x: None)


def in_plate(draw):
    """A program whose latents come from ``draw()`` inside the data plate."""

    def model(x):
        with pyro.plate("data", len(x)):
            mean = draw()
            pyro.sample("x", dist.Normal(mean.reshape(len(x), -1)[:, :1], 1.0).to_event(1), obs=x)

    return program_of(model)


def nested(x):
    """Rows along the second batch dimension in "a", along the first of two in "b"."""
    data = pyro.plate("data", len(x), dim=-2)
    with data, pyro.plate("inner", 3, dim=-1):
        b = pyro.sample("b", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    with data:
        a = pyro.sample("a", dist.Beta(2.0, 3.0))
        mean = b.sum((-1, -2)).unsqueeze(-1) + a
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def outer(x):
    """Another plate to the left of the data's."""
    with pyro.plate("data", len(x), dim=-1):
        with pyro.plate("factors", 4, dim=-2):
            a = pyro.sample("a", dist.Gamma(torch.tensor(2.0), 1.0))  # (4, B)
        pyro.sample("x", dist.Normal(a.sum(0), 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "x", "shapes"),
    [
        (nested, torch.zeros(5, 1), {"b": (5, 3, 2), "a": (5, 1)}),
        (outer, torch.zeros(5), {"a": (4, 5)}),
    ],
)
def test_rows_are_found_in_any_nest_of_plates(model, x, shapes):
    """Values have the site's own shape, and log p of a row depends on that row of u alone."""
    program = program_of(model)
    latents = Latents.of(program, x[:2])  # and holds for another number of rows
    u = latents.from_prior(program, x)
    assert u.shape == (5, latents.dim)
    values = latents.constrain(u)
    assert {name: tuple(v.shape) for name, v in values.items()} == shapes
    torch.testing.assert_close(latents.unconstrain(values), u)
    jacobian = torch.autograd.functional.jacobian(lambda u: latents.log_joint(program, x, u), u)
    assert jacobian.shape == (5, 5, latents.dim)
    seen = jacobian.abs().sum(-1) > 0
    assert torch.equal(seen, torch.eye(5).bool())
    batched = latents.log_joint(program, x, u)
    for row in range(5):
        alone = latents.log_joint(program, x[row : row + 1], u[row : row + 1])
        torch.testing.assert_close(alone, batched[row : row + 1])


def test_fixed_bounds_and_mixture_priors_have_a_transform():
    """Bounds are constants of the latents, so they serve any number of rows."""

    def bounded():
        low = torch.tensor([-1.0, 2.0])
        return pyro.sample("z", dist.Uniform(low, low + 1).to_event(1))

    program = in_plate(bounded)
    latents = Latents.of(program, torch.zeros(2, 1))
    values = latents.constrain(torch.linspace(-9, 9, 14).reshape(7, 2))["z"]
    assert (values[:, 0] > -1).all() and (values[:, 0] < 0).all()
    assert (values[:, 1] > 2).all() and (values[:, 1] < 3).all()
    assert latents.log_joint(program, torch.zeros(7, 1), torch.randn(7, 2)).isfinite().all()

    def mixture():
        parts = dist.Normal(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), 1.0).to_event(1)
        return pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))

    latents = Latents.of(in_plate(mixture), torch.zeros(2, 1))
    u = torch.randn(3, 2)
    assert torch.equal(latents.constrain(u)["z"], u)


def test_subsampled_plates_and_covariates_are_scored_unscaled():
    """log p of a row is the same inside pyro.plate("data", N, subsample_size=B)."""

    def model(size):
        def run(x):
            with pyro.plate("data", size or len(x["x"]), subsample_size=len(x["x"])):
                z = pyro.sample("z", dist.Normal(x["c"], 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x["x"])

        return program_of(run)

    x = {"x": torch.randn(3, 2), "c": torch.randn(3, 2)}
    u = torch.randn(3, 2)
    whole, sub = model(None), model(500)
    latents = Latents.of(sub, x)
    torch.testing.assert_close(latents.log_joint(sub, x, u), latents.log_joint(whole, x, u))
    drawn = latents.from_prior(sub, {k: v.repeat(100, 1) for k, v in x.items()})
    z = (drawn.reshape(100, 3, 2).mean(0) - x["c"]) * 10
    assert z.abs().max() < 4.5


def test_a_factor_outside_the_plate_counts_only_if_it_is_constant():
    """A weight prior belongs to no datum; a factor on latents would be missed, so it is refused."""

    def model(on_latents):
        def run(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
            pyro.factor("f", -z.sum() if on_latents else torch.tensor(-3.0))

        return program_of(run)

    x, u = torch.zeros(2, 1), torch.zeros(2, 1)
    program = model(on_latents=False)
    log_joint = Latents.of(program, x).log_joint(program, x, u)
    torch.testing.assert_close(log_joint, torch.full((2,), -math.log(2 * math.pi)))
    with pytest.raises(ValueError, match=r'"f" depends on the latents and is outside'):
        Latents.of(model(on_latents=True), x)


# --- what HMC cannot do is said -------------------------------------------------------------------


def global_latent(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0).expand([1]).to_event(1), obs=x)


def dependent():
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    return pyro.sample("b", dist.Uniform(torch.zeros_like(a), a))


def dropped():
    z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    return nn.functional.dropout(z, training=True)


def tied():
    z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    return z - z.mean(0)  # as batch normalization does


def angles():
    parts = dist.VonMises(torch.tensor([0.0, 2.0]), 3.0)
    return pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))


def learned(x):
    high = pyro.param("high", torch.tensor(2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(0.0, high))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)


def nothing(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (program_of(global_latent), r'"w" is not in a vectorized pyro.plate\("data"'),
        (
            in_plate(lambda: pyro.sample("k", dist.Bernoulli(0.5))),
            r'"k" is discrete \(Bernoulli\).*sum it out',
        ),
        (in_plate(dependent), r'"b" has a support with bounds.*on other latents.*scale it'),
        (program_of(learned), r'"z" has a support with bounds.*on parameters'),
        (in_plate(dropped), r"draws random numbers besides its latent sites.*program.eval\(\)"),
        (in_plate(tied), r'of row 0 depends on "z" of other rows.*\.eval\(\)'),
        (
            in_plate(lambda: pyro.sample("z", dist.VonMises(torch.zeros(2), 1.0).to_event(1))),
            r'"z" is an angle \(VonMises\).*proposal="guide"',
        ),
        (in_plate(angles), '"z" is an angle'),
        (
            in_plate(lambda: pyro.sample("d", dist.ProjectedNormal(torch.ones(3)))),
            r'"d" has the support .* another distribution',
        ),
        (program_of(nothing), "no latent site"),
    ],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_latents_that_hmc_cannot_move_are_refused(program, message, rows):
    with pytest.raises(ValueError, match=message):
        Latents.of(program, torch.zeros(rows, 1))


def test_wrong_shapes_and_names_are_refused():
    program, x = Counts(), COUNTS
    latents = Latents.of(program, x)
    with pytest.raises(ValueError, match=r"u has shape \(3, 3\), expected \(B, J\) = \(4, 3\)"):
        latents.log_joint(program, x, torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"u has shape \(4, 2\), expected \(..., B, 3\)"):
        latents.constrain(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"given for \['rate'\], expected \['rate', 'share'\]"):
        latents.unconstrain({"rate": torch.ones(4)})
