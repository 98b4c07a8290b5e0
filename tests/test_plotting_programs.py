"""Pictures of programs: what is drawn is what the program says; the rest is refused in words."""

import matplotlib.axes
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure

import pyro_vae as pv
from pyro_vae import plotting
from pyro_vae.models import bernoulli_vae
from pyro_vae.plotting.images import image_shape_of, images_of
from pyro_vae.plotting.latents import kl_terms
from pyro_vae.plotting.programs import latent_of
from pyro_vae.plotting.walks import manifold_points, ordered


@pytest.fixture(scope="module")
def digits():
    return pv.datasets.load("digits")


@pytest.fixture(scope="module")
def vae(digits):
    torch.manual_seed(0)
    vae = bernoulli_vae.build(64, latent_dim=2, hidden_dim=16, init_std=None)
    pv.fit(vae, digits.train, samples=4_000, progress=False)
    return vae


class TwoLatents(pv.Program):
    """A label and a style, called otherwise than ours; images under a name of their own."""

    observed = "pixels"

    def __init__(self):
        super().__init__()
        self.decoder = torch.nn.Linear(3 + 2, 36)
        self.encoder = torch.nn.Linear(36, 2)

    def model(self, x):
        with pyro.plate("images", len(x["pixels"])):
            kind = pyro.sample("kind", dist.OneHotCategorical(torch.ones(3) / 3))
            style = pyro.sample("style", dist.Laplace(torch.zeros(2), 1.0).to_event(1))
            logits = self.decoder(torch.cat([kind, style], -1))
            pyro.sample("pixels", dist.Bernoulli(logits=logits).to_event(1), obs=x["pixels"])

    def guide(self, x):
        with pyro.plate("images", len(x["pixels"])):
            mean = self.encoder(x["pixels"])
            pyro.sample("kind", dist.OneHotCategorical(torch.ones(3) / 3))
            pyro.sample("style", dist.Normal(mean, 0.5).to_event(1))


@pytest.fixture
def two():
    return TwoLatents(), {"pixels": (torch.rand(20, 36) < 0.5).float()}


@pytest.fixture
def table():
    """A VAE of a table of three columns, which are no image."""
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 3)), columns=["a", "b", "c"])
    return pv.VAE.build(3, likelihood=pv.likelihoods.Gaussian(), latent_dim=2), frame


def built(dim, **options):
    return pv.VAE.build(dim, likelihood=pv.likelihoods.Bernoulli(), **options)


def drawn(axis):
    """The wall of images that an axes shows."""
    (image,) = axis.images
    return np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)


# --- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "given", "shape"),
    [
        ((64,), None, (8, 8)),
        ((784,), None, (28, 28)),
        ((560,), None, (28, 20)),
        ((28, 28), None, (28, 28)),
        ((3, 32, 32), None, (3, 32, 32)),
        ((12,), (3, 4), (3, 4)),
        ((12,), None, None),
        ((9,), None, None),
        ((64,), False, None),
        ((5, 4, 4), None, None),
    ],
)
def test_the_shape_of_an_image_is_guessed_or_given(event, given, shape):
    assert image_shape_of(event, given) == shape


def test_a_shape_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"image_shape is \(3, 3\), expected .* of 12 numbers"):
        image_shape_of((12,), (3, 3))
    assert image_shape_of((64,), None, columns=tuple(map(str, range(64)))) is None


def test_colours_stand_last():
    values = np.random.default_rng(0).random((2, 3 * 4 * 5))
    images = images_of(values, (3, 4, 5))
    assert images.shape == (2, 4, 5, 3)
    assert images[1, 2, 3, 0] == values.reshape(2, 3, 4, 5)[1, 0, 2, 3]


# --- data and draws -----------------------------------------------------------------------------


def test_data_stand_above_their_reconstructions(vae, digits):
    axis = plotting.reconstructions(vae, digits.test, num=4)
    wall = drawn(axis)
    assert wall.shape == (2 * 9 - 1, 4 * 9 - 1)
    np.testing.assert_allclose(wall[:8, 9:17].ravel(), digits.test.x[1])
    made = pv.reconstruct(vae, digits.test[:2])[1]
    np.testing.assert_allclose(wall[9:, 9:17].ravel(), made, atol=1e-6)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["data", "reconstruction"]


def test_a_run_is_as_good_as_its_program_and_axes_may_be_given(vae, digits):
    run = pv.Run(vae, pd.DataFrame(), {})
    mine = Figure().subplots()
    assert plotting.reconstructions(run, digits.test, num=3, ax=mine) is mine
    new = plotting.samples(run, 9)
    assert isinstance(new, matplotlib.axes.Axes)
    assert new._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    with pytest.raises(TypeError, match="ax is ndarray, expected matplotlib Axes"):
        plotting.samples(run, 9, ax=np.array([mine]))
    with pytest.raises(TypeError, match="program is str, expected a program or a run"):
        plotting.samples("run", 9)


def test_samples_fill_a_wall_whose_last_row_may_end_early(vae):
    wall = drawn(plotting.samples(vae, 7))
    assert wall.shape == (3 * 9 - 1, 3 * 9 - 1)
    assert np.isnan(wall[-8:, 9:]).all() and not np.isnan(wall[-8:, :8]).any()


def test_tables_are_drawn_as_dots_and_intervals(table):
    program, frame = table
    axis = plotting.reconstructions(program, frame)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "b", "c"]
    assert len(axis.collections[0].get_offsets()) == 50
    axis = plotting.samples(program, like=frame)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "c"]
    wide = pv.VAE.build(200, likelihood=pv.likelihoods.Gaussian(), latent_dim=2)
    with pytest.raises(ValueError, match="200 numbers and no image shape, expected at most 40"):
        plotting.samples(wide)


# --- walks through latent space -----------------------------------------------------------------


def test_the_manifold_decodes_quantiles_of_the_prior(vae):
    axis = plotting.latent_manifold(vae, num=5)
    wall = drawn(axis)
    u = torch.tensor([0.9, 0.3])  # the last column, the second row from below
    made = pv.decode(vae, torch.special.ndtri(u)[None])[0]
    np.testing.assert_allclose(wall[3 * 9 : 4 * 9 - 1, 36:].ravel(), made, atol=1e-5)
    assert axis.get_xlabel() == "prior probability below z[0]"


@pytest.mark.parametrize(
    "prior",
    [pv.priors.Laplace(scale=2.0), pv.priors.StudentT(), pv.priors.Logistic(),
     pv.priors.Gamma(), pv.priors.Exponential(), pv.priors.Beta(), pv.priors.LogNormal()],
)  # fmt: skip
def test_quantiles_are_those_of_the_prior(prior):
    """By the law's own inverse or by bisection: the share of draws below them is u."""
    latent = latent_of(built(6, prior=prior, latent_dim=2))
    u = np.array([[0.05, 0.5], [0.6, 0.98]])
    draws = latent.site.law.sample((20_000,)).reshape(-1, 2).numpy()
    share = (draws < latent.quantiles(u)[:, None]).mean(1)
    np.testing.assert_allclose(share, u, atol=0.015)
    assert latent.decoded(manifold_points(latent, 3)).shape == (9, 6)


def test_what_has_no_quantiles_is_refused_with_what_to_do():
    mixture = built(64, prior=pv.priors.MixtureOfNormals(3), latent_dim=2)
    with pytest.raises(ValueError, match=r"is joint over its 2 numbers.*pass span"):
        plotting.latent_manifold(mixture)
    axis = plotting.latent_manifold(mixture, span=(-2, 2), num=3)
    made = pv.decode(mixture, torch.tensor([[4 / 3, 4 / 3]]))[0]
    np.testing.assert_allclose(drawn(axis)[:8, 18:].ravel(), made, atol=1e-5)
    plotting.traversals(mixture, num=3)  # of draws
    shares = built(64, prior=pv.priors.Dirichlet(), latent_dim=3)
    with pytest.raises(ValueError, match="hang together"):
        plotting.traversals(shares)


def test_a_plane_takes_two_numbers(vae, table):
    wide = bernoulli_vae.build(64, latent_dim=5)
    with pytest.raises(ValueError, match=r"5 numbers, expected 2 .*dims=\(0, 1\)"):
        plotting.latent_manifold(wide)
    latent = latent_of(wide)
    z = manifold_points(latent, 2, (3, 1))
    np.testing.assert_allclose(z[:, [0, 2, 4]], 0, atol=1e-6)
    np.testing.assert_allclose(z[0, 3], z[1, 1])
    with pytest.raises(ValueError, match="two different numbers"):
        plotting.latent_manifold(wide, dims=(1, 1))
    with pytest.raises(ValueError, match=r"is no image.*image_shape=.*pv.explore"):
        plotting.latent_manifold(table[0])


def test_traversals_move_one_latent_at_a_time(vae, digits):
    latent = latent_of(vae)
    order, start = ordered(latent, digits.test, 3)
    np.testing.assert_allclose(start, pv.encode(vae, digits.test[3:4])[0], atol=1e-6)
    wall = drawn(plotting.traversals(vae, digits.test, num=3, datum=3))
    z = torch.as_tensor(start).float()
    z[order[1]] = torch.special.ndtri(torch.tensor(0.98))
    made = pv.decode(vae, z[None])[0]
    np.testing.assert_allclose(wall[9:, 18:].ravel(), made, atol=1e-5)
    with pytest.raises(ValueError, match="datum is 0 and there are no data"):
        plotting.traversals(vae, datum=0)


def test_traversals_of_a_table_say_how_far_each_column_moves(table):
    program, frame = table
    axis = plotting.traversals(program, frame)
    latent = latent_of(program)
    order, start = ordered(latent, frame)
    ends = np.repeat(start[None], 2, 0)
    ends[:, order[0]] = latent.marginals(np.array([0.02, 0.98]))[:, order[0]]
    low, high = latent.decoded(ends)
    assert axis.texts[0].get_text() == f"{(high - low)[0]:.2g}".replace("-", "−")


def test_programs_of_any_form(two):
    """Two latents of other names, a dict, an observed site of another name."""
    program, x = two
    plotting.reconstructions(program, x, num=3)
    plotting.samples(program, 4, like=x)
    with pytest.raises(ValueError, match="latents kind, style, expected one: say which, site="):
        plotting.latent_manifold(program, like=x)
    with pytest.raises(ValueError, match='site="z", expected one of the latents: kind, style'):
        plotting.latent_manifold(program, like=x, site="z")
    axis = plotting.latent_manifold(program, like=x, site="style", num=3)
    latent = latent_of(program, x, "style")
    kind = latent.others["kind"]
    z = dist.Laplace(0.0, 1.0).icdf(torch.tensor([[5 / 6, 5 / 6]]))
    made = program.decoder(torch.cat([kind, z], -1)).sigmoid()[0].detach()
    np.testing.assert_allclose(drawn(axis)[:6, 14:].ravel(), made, atol=1e-5)
    with pytest.raises(ValueError, match=r'"kind" is discrete'):
        plotting.traversals(program, x, site="kind")
    names, terms = kl_terms(program, x)
    assert names == ["kind", "style[0]", "style[1]"] and terms[0] == pytest.approx(0, abs=1e-6)


# --- latents of data ----------------------------------------------------------------------------


def test_latents_are_told_apart_by_labels(vae, digits):
    axis = plotting.latent_scatter(vae, digits.test)
    assert [text.get_text() for text in axis.get_legend().get_texts()] == list("0123456789")
    z = pv.encode(vae, digits.test).numpy()
    mine = z[digits.test.labels.numpy() == 3]
    np.testing.assert_allclose(axis.collections[3].get_offsets(), mine, atol=1e-6)
    numbers = plotting.latent_scatter(z, None, np.linspace(0, 1, len(z)))
    assert numbers.get_legend() is None and len(numbers.figure.axes) == 2  # a colour bar
    assert plotting.latent_scatter(z, None).get_legend() is None
    with pytest.raises(ValueError, match="labels have shape"):
        plotting.latent_scatter(z, None, [1, 2])
    with pytest.raises(ValueError, match="different labels, expected at most 10 texts"):
        plotting.latent_scatter(z, None, [f"{i}" for i in range(len(z))])


def test_kl_terms_are_those_of_the_bound(vae, digits):
    """They add up to the rate, KL(q || p), which is known in closed form."""
    names, terms = kl_terms(vae, digits.test)
    q = vae.posterior(digits.test.x)
    p = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    whole = torch.distributions.kl_divergence(q, p).mean().item()
    assert names == ["z[0]", "z[1]"] and terms.sum() == pytest.approx(whole, rel=1e-5)


def test_active_latents_are_marked():
    axis = plotting.kl_per_latent(np.array([0.0, 3.0, 0.5, 0.002]))
    assert [label.get_text() for label in axis.get_xticklabels()] == ["z[1]", "z[2]", "z[3]",
                                                                      "z[0]"]  # fmt: skip
    assert [bar.get_hatch() for bar in axis.patches] == ["", "", "///", "///"]
    assert axis.get_title(loc="left").startswith("2 of 4 active")


@pytest.mark.parametrize("posterior", [pv.posteriors.FullNormal(), pv.posteriors.Laplace()])
def test_kl_of_joint_and_of_other_laws_is_sampled(posterior):
    vae = built(6, posterior=posterior, latent_dim=3)
    x = (torch.rand(40, 6) < 0.5).float()
    names, terms = kl_terms(vae, x)
    d = pv.elbo(vae, x)
    assert np.isfinite(terms).all() and (terms > -0.1).all() and len(d) == 40
    assert names == (["z"] if isinstance(posterior, pv.posteriors.FullNormal)
                     else ["z[0]", "z[1]", "z[2]"])  # fmt: skip


def test_a_guide_that_is_a_point_has_no_kl():
    class Point(pv.Posterior):
        def __init__(self):
            super().__init__()
            self.mean = torch.nn.Linear(6, 2)

        def forward(self, x):
            return dist.Delta(self.mean(x)).to_event(1)

    program = pv.VAE(prior=pv.priors.Normal(2), posterior=Point(),
                     likelihood=pv.likelihoods.Bernoulli(2, 6, 8))  # fmt: skip
    with pytest.raises(ValueError, match="is a point"):
        plotting.kl_per_latent(program, torch.zeros(4, 6))
