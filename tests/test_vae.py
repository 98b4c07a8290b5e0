"""Programs built from parts: sizes inferred, covariates, gaps, images, tables of mixed columns."""

import copy
import functools
import pickle

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae import likelihoods, networks, posteriors, priors
from pyro_vae.densities.particles import densities
from pyro_vae.program.parts import Likelihood, Prior

from .oracles import assert_equal as assert_all_equal
from .quickly import slowly

B, D, J = 6, 4, 2


@pytest.fixture
def bits():
    return torch.bernoulli(torch.full((B, D), 0.4), generator=torch.Generator().manual_seed(0))


def assert_equal(got, expected, tolerance=1e-6):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def gaussian(**options):
    return likelihoods.Gaussian(sigmoid_mean=False, **options)


# --- sizes ------------------------------------------------------------------------------------


class Wide(Prior):
    """As a stranger writes it."""

    def __init__(self, latent_dim, scale=3.0):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(latent_dim), requires_grad=False)
        self.scale = scale

    def forward(self):
        return dist.Laplace(self.zero, self.scale).to_event(1)


class Plain(nn.Module):
    """A module that knows nothing of us."""

    def __init__(self, latent_dim):
        super().__init__()
        self.register_buffer("zero", torch.zeros(latent_dim))

    def forward(self):
        return torch.distributions.Independent(torch.distributions.Normal(self.zero, 2.0), 1)


@pytest.mark.parametrize(
    "prior",
    [
        Wide(),
        slowly(Wide(scale=2.0)),
        slowly(Wide),
        Plain,
        slowly(functools.partial(Wide, scale=2.0)),
        Wide(J),
        slowly(Plain(J)),
    ],
    ids=["recipe", "with option", "class", "module class", "partial", "finished", "module"],
)
def test_a_prior_of_a_strangers_own_works_at_once(prior, bits):
    vae = pv.VAE.build(bits, latent_dim=J, hidden_dim=3, prior=prior)
    pv.check(vae, bits)
    pv.fit(vae, bits, steps=1, progress=False, engine="eager")
    assert vae.prior().event_shape == (J,) and pv.sample(vae, 3).shape == (3, D)


def test_an_unsized_part_says_what_it_lacks_wherever_it_is_used(bits):
    recipe = Wide(scale=2.0)
    assert recipe.unsized and repr(recipe) == "Wide(scale=2.0)" and isinstance(recipe, Wide)
    with pytest.raises(ValueError, match=r"Wide\(scale=2.0\) has no latent_dim yet: pass it to pv"):
        recipe()
    sized = pv.VAE.build(bits, latent_dim=J)
    with pytest.raises(ValueError, match=r"prior: .* has no latent_dim yet"):
        pv.VAE(prior=recipe, likelihood=sized.likelihood, posterior=sized.posterior)
    for again in (copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe))):
        assert again.sized(latent_dim=J).scale == 2.0
    made = recipe.sized(latent_dim=J, data_dim=D)
    assert not made.unsized and repr(made) == "Wide(latent_dim=2, scale=2.0)"
    assert made.sized(latent_dim=9) is made


def test_what_was_given_to_a_part_wins_over_what_build_is_given(bits):
    own = posteriors.Gaussian(hidden_dim=7)
    vae = pv.VAE.build(bits, latent_dim=J, hidden_dim=3, posterior=own)
    assert vae.posterior.network[0].out_features == 7
    assert vae.likelihood.network[0].out_features == 3


@pytest.mark.parametrize("size", [D, (D,), [D]])
def test_a_size_alone_is_enough(size):
    vae = pv.VAE.build(size, latent_dim=J, hidden_dim=3, likelihood=likelihoods.Bernoulli())
    assert vae.likelihood.event == (D,)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no likelihood is named: pass likelihood="),
        ({"likelihood": gaussian(), "prior": lambda: 3}, "prior is .* which returned a int"),
        ({"likelihood": gaussian(), "network": 3}, "network is 3, expected a module"),
        ({"likelihood": gaussian(), "latent_dim": 0}, "latent_dim is 0"),
    ],
)
def test_what_cannot_be_built_is_said(options, said):
    with pytest.raises((ValueError, TypeError), match=said):
        pv.VAE.build(torch.randn(B, D), **options)


@pytest.mark.parametrize("x", [torch.zeros(4), torch.zeros(0, 3), {"y": torch.zeros(4, 2)}])
def test_data_without_rows_of_x_are_refused(x):
    with pytest.raises(ValueError, match=r'expected \(N, D\)|one called "x"'):
        pv.VAE.build(x)


def test_two_builds_of_one_seed_are_alike_to_the_bit_and_the_old_ones_what_they_were(bits):
    from pyro_vae.models import bernoulli_vae

    torch.manual_seed(3)
    mine = pv.VAE.build(bits, latent_dim=J, hidden_dim=3)
    torch.manual_seed(3)
    theirs = bernoulli_vae.build(D, latent_dim=J, hidden_dim=3)
    assert_all_equal(dict(mine.named_parameters()), dict(theirs.named_parameters()))


# --- networks ---------------------------------------------------------------------------------

NETWORKS = {
    "deep": networks.MLP(hidden=(5, 4)),
    "gated": networks.MLP(hidden=(5, 5), gated=True),
    "normed": networks.MLP(hidden=(5, 4), norm=True, activation="silu"),
    "residual": networks.MLP(hidden=(5, 5), residual=True, activation="relu"),
    "linear": networks.MLP(hidden=()),
    "a function": lambda inputs, outputs: nn.Linear(inputs, outputs),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_serves_encoder_and_decoder(name, bits):
    vae = pv.VAE.build(bits, latent_dim=J, network=NETWORKS[name])
    pv.check(vae, bits)
    assert vae.posterior.network is not vae.likelihood.network
    before = copy.deepcopy(dict(vae.named_parameters()))
    pv.fit(vae, bits, steps=2, progress=False, engine="eager")
    unmoved = [n for n, p in vae.named_parameters() if torch.equal(p, before[n])]
    assert unmoved == []


def test_a_gated_layer_is_its_equation():
    from pyro_vae.networks.mlp import Gated

    layer, x = Gated(3, 2), torch.randn(5, 3)
    (v, w), (c, b) = layer.linear.weight.chunk(2), layer.linear.bias.chunk(2)
    assert_equal(layer(x), (x @ v.T + c) * torch.sigmoid(x @ w.T + b))


@pytest.mark.parametrize("event", [(9, 7), (3, 8, 8), (8, 8)])
def test_images_stay_images(event, tmp_path):
    torch.manual_seed(0)
    x = torch.rand(12, *event).round()
    network = networks.Convolutional(channels=(2, 3), hidden=5)
    vae = pv.VAE.build(x, latent_dim=J, network=network)
    pv.check(vae, x)
    run = pv.fit(vae, x, steps=2, progress=False, engine="eager", out=tmp_path)
    assert pv.reconstruct(vae, x).shape == x.shape and pv.sample(vae, 3).shape == (3, *event)
    loaded = pv.load(tmp_path).program
    assert_equal(pv.encode(loaded, x), pv.encode(run.program, x))
    drawn = densities(vae, x, 3)  # rows and particles in one batch
    assert drawn.log_p.shape == (3, 12)


def test_without_a_shape_the_events_of_an_image_are_flattened_and_given_back():
    x = torch.rand(12, 4, 3).round()
    vae = pv.VAE.build(x, latent_dim=J, hidden_dim=3)
    assert pv.reconstruct(vae, x).shape == x.shape
    flat = pv.VAE.build(x.flatten(1), latent_dim=J, hidden_dim=3)
    flat.load_state_dict(vae.state_dict())
    assert_equal(pv.reconstruct(vae, x).flatten(1), pv.reconstruct(flat, x.flatten(1)))


def test_vectors_have_no_convolutions_and_layers_must_fit(bits):
    with pytest.raises(ValueError, match=r"neither of which is the shape of an image: pass data"):
        pv.VAE.build(bits, network=networks.Convolutional())
    with pytest.raises(ValueError, match="pass fewer channels"):
        pv.VAE.build(torch.zeros(3, 4, 4), network=networks.Convolutional(channels=(2,) * 4))


def test_codes_are_looked_up_in_a_table_of_their_column():
    codes = torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    network = networks.Embedding(2, 3, num_categories=3, embedding_dim=4)
    got = network.network(torch.cat([network.table[0, [0, 1]], network.table[1, [2, 1]]], -1))
    assert_equal(network(codes), got)


# --- covariates -------------------------------------------------------------------------------


def conditional_data():
    torch.manual_seed(0)
    return {"x": torch.rand(B, D).round(), "y": torch.randn(B, 2), "c": torch.rand(B)}


def test_covariates_reach_encoder_and_decoder_in_the_order_of_their_names(tmp_path):
    x = conditional_data()
    vae = pv.VAE.build(x, latent_dim=J, hidden_dim=3)
    pv.check(vae, x)
    z = torch.randn(B, J)
    by_hand = vae.likelihood.network(torch.cat([z, x["c"].unsqueeze(1), x["y"]], 1))
    given = {name: value for name, value in reversed(x.items()) if name != "x"}
    assert_equal(vae.likelihood(z, given).base_dist.logits, by_hand)
    pv.fit(vae, x, steps=2, progress=False, engine="eager", out=tmp_path)
    assert pv.load(tmp_path).program.likelihood.given_dim == 3
    assert pv.sample(vae, B, like=given).shape == (B, D)
    with pytest.raises(ValueError, match="expected given_dim = 3"):
        vae.likelihood(z, {"c": x["c"]})
    with pytest.raises(ValueError, match=r"pass rows of data"):
        pv.sample(vae, 2)


# --- gaps -------------------------------------------------------------------------------------


def test_what_is_missing_is_left_out_exactly(double):
    torch.manual_seed(0)
    x = torch.randn(B, D)
    gaps = torch.rand(B, D) < 0.3
    x[gaps] = torch.nan
    vae = pv.VAE.build(x, latent_dim=J, hidden_dim=3, likelihood=gaussian(), missing=True)
    pv.check(vae, x)
    d = densities(vae, x, 4, reparameterize=False)
    z = torch.randn(4, B, J)
    law = vae.likelihood(z).base_dist
    by_hand = torch.where(gaps, 0.0, law.log_prob(x.nan_to_num())).sum(-1)
    from pyro_vae.distributions.gaps import with_gaps

    assert_equal(with_gaps(vae.likelihood(z)).log_prob(x), by_hand)
    assert d.log_likelihood.isfinite().all() and not gaps.all(1).any()
    pv.fit(vae, x, steps=3, progress=False, engine="eager")
    assert pv.reconstruct(vae, x).isfinite().all()
    empty = x.clone()
    empty[0] = torch.nan  # nothing is known: p of it is 1
    evidence = pv.log_evidence(vae, empty, num_particles=4000)
    assert abs(evidence.value[0]) < 5 * evidence.standard_error[0] + 1e-9


def test_gaps_are_refused_where_nobody_said_that_they_may_be(bits):
    x = bits.clone()
    x[2, 1] = torch.nan
    vae = pv.VAE.build(x, latent_dim=J, hidden_dim=3)
    with pytest.raises(ValueError, match="not finite in row 2"):
        pv.fit(vae, x, steps=1, progress=False)


def test_a_law_of_whole_rows_has_no_numbers_to_leave_out(bits):
    class Whole(Likelihood):
        def __init__(self, latent_dim, data_dim):
            super().__init__()
            self.linear = nn.Linear(latent_dim, data_dim)

        def forward(self, z):
            return dist.MultivariateNormal(self.linear(z), torch.eye(D))

    vae = pv.VAE.build(bits, latent_dim=J, likelihood=Whole(), missing=True)
    with pytest.raises(ValueError, match="expected a likelihood that is a product over the numb"):
        vae.model(bits)


# --- mixed columns ----------------------------------------------------------------------------


def table():
    torch.manual_seed(0)
    return torch.cat([torch.randn(B, 1), torch.rand(B, 1).round(), torch.randn(B, 1)], 1)


def columns():
    return likelihoods.Columns(
        {"sizes": (gaussian(), [2, 0]), "healthy": (likelihoods.Bernoulli(), 1)}
    )


def test_each_group_of_columns_is_a_site_and_their_densities_add(double, tmp_path):
    x = table()
    vae = pv.VAE.build(x, latent_dim=J, hidden_dim=3, likelihood=columns())
    report = pv.check(vae, x)
    assert [s.name for s in report.sites if s.kind == "observed"] == ["sizes", "healthy"]
    z = torch.randn(B, J)
    parts = vae.likelihood.parts
    expected = parts["sizes"](z).log_prob(x[:, [2, 0]]) + parts["healthy"](z).log_prob(x[:, [1]])
    got = sum(law.log_prob(v) for law, v in zip(
        vae.likelihood(z).values(), vae.likelihood.parts_of(x).values(), strict=True))  # fmt: skip
    assert_equal(got, expected)
    assert_equal(vae.likelihood.joined(vae.likelihood.parts_of(x)), x)
    pv.fit(vae, x, steps=2, progress=False, engine="eager", out=tmp_path)
    loaded = pv.load(tmp_path).program
    assert_equal(pv.reconstruct(loaded, x)["sizes"], pv.reconstruct(vae, x)["sizes"])
    assert pv.sample(vae, 5)["healthy"].shape == (5, 1)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"a": (gaussian(), [0, 1])}, "column 2 of 3 in no group"),
        ({"a": (gaussian(), [0, 1, 2]), "b": (gaussian(), 2)}, 'column 2 is in the groups "a" and'),
        ({"a": (gaussian(), [0, 1, 5])}, 'a column of "a" is 5'),
        ({"z": (gaussian(), [0, 1, 2])}, "the name 'z'"),
        ({"a": gaussian()}, r"expected \(likelihood, columns\)"),
        ({}, "expected a dict"),
    ],
)
def test_columns_in_no_group_or_in_two_are_refused(groups, said):
    with pytest.raises(ValueError, match=said):
        pv.VAE.build(table(), latent_dim=J, likelihood=likelihoods.Columns(groups))


def test_gaps_in_a_table_are_left_out_of_their_own_site():
    x = table()
    x[0, 1] = torch.nan
    vae = pv.VAE.build(x, latent_dim=J, hidden_dim=3, likelihood=columns(), missing=True)
    pv.check(vae, x)
    pv.fit(vae, x, steps=2, progress=False, engine="eager")


def test_parts_that_are_in_no_folder_are_seen_by_name():
    assert set(dir(priors)) >= {"StandardNormal"}
    for folder in ("priors", "likelihoods", "posteriors", "networks", "distributions"):
        assert getattr(pv, folder).__name__ == f"pyro_vae.{folder}"


@pytest.mark.parametrize("use", ["check", "fit", "evidence", "elbo"])
def test_a_value_that_is_not_possible_is_refused_beside_gaps_too(bits, use):
    x = bits.clone()
    x[0, 0], x[3, 1] = torch.nan, 8.0
    vae = pv.VAE.build(
        bits, latent_dim=J, hidden_dim=3, likelihood=likelihoods.Bernoulli(), missing=True
    )
    calls = {
        "check": lambda: pv.check(vae, x),
        "fit": lambda: pv.fit(vae, x, steps=1, engine="eager", progress=False),
        "evidence": lambda: pv.log_evidence(vae, x, num_particles=20),
        "elbo": lambda: pv.elbo(vae, x),
    }
    with pytest.raises(ValueError, match="8 in row 3, expected 0 or 1"):
        calls[use]()
