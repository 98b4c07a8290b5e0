"""Likelihoods from data to reconstructions: what is inferred, what is refused, what is learnt."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae import likelihoods
from pyro_vae.distributions.gaps import with_gaps
from pyro_vae.recording.listing import classes_in

from .quickly import some_quickly

N, D = 60, 4


def codes(*numbers):
    return torch.stack([torch.arange(N) * 7 % 11 % k for k in numbers], 1).float()


def one_hot(*numbers):
    columns = codes(*numbers).long().unbind(1)
    return torch.cat([torch.eye(k)[c] for k, c in zip(numbers, columns, strict=True)], 1)


def counts():
    return torch.poisson(torch.full((N, D), 3.0))


# Data that suit each likelihood, some without a number of columns in common.
DATA = {
    "Bernoulli": lambda: (torch.rand(N, D) < 0.4).float(),
    "Gaussian": lambda: torch.rand(N, D),
    "Laplace": lambda: torch.randn(N, D),
    "StudentT": lambda: torch.randn(N, D),
    "ContinuousBernoulli": lambda: torch.rand(N, D),
    "Beta": lambda: 0.05 + 0.9 * torch.rand(N, D),
    "DiscretizedLogistic": lambda: torch.randint(256, (N, D)) / 255,
    "Categorical": lambda: codes(2, 3, 5, 4),
    "OneHotCategorical": lambda: one_hot(2, 3),
    "Ordinal": lambda: codes(4, 3, 5, 4),
    "Poisson": counts,
    "NegativeBinomial": counts,
    "ZeroInflatedNegativeBinomial": counts,
    "Multinomial": counts,
    "ProdLDA": counts,
}
VECTORS_ALONE = ("OneHotCategorical", "Multinomial", "ProdLDA")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def built(x, likelihood, **options):
    return pv.VAE.build(x, latent_dim=2, hidden_dim=8, likelihood=likelihood, **options)


def data_for(name):
    """Data that suit it; of a class that has none above, its own draws."""
    if name in DATA:
        return DATA[name]()
    part = classes_in("likelihoods")[name].example(latent_dim=2, data_dim=D, hidden_dim=8)
    return part(torch.zeros(N, 2)).sample()


@pytest.mark.parametrize("name", [n for n in classes_in("likelihoods") if n != "Columns"])
def test_a_program_is_built_from_data_checked_trained_and_used(name):
    x = data_for(name)
    vae = built(x, getattr(likelihoods, name)())
    assert pv.check(vae, x)
    run = pv.fit(vae, x, steps=3, progress=False, engine="eager")
    assert run.manifest["engine"] == "eager"
    again = pv.reconstruct(vae, x)
    assert again.shape[: x.dim()] == x.shape and again.isfinite().all()
    drawn = vae.likelihood(torch.randn(5, 2)).sample()
    assert drawn.shape == (5, *x.shape[1:])
    assert vae.likelihood(torch.randn(5, 2)).support.check(drawn).all()


@pytest.mark.parametrize("name", [name for name in DATA if name not in VECTORS_ALONE])
def test_images_stay_images(name):
    x = DATA[name]()[:, :1].expand(N, 6).reshape(N, 2, 3).contiguous()
    vae = built(x, getattr(likelihoods, name)())
    law = vae.likelihood(torch.randn(5, 2))
    assert law.batch_shape == (5,) and law.event_shape == (2, 3)
    flat = getattr(likelihoods, name)(**vae_options(vae)).sized(
        latent_dim=2, data_dim=6, hidden_dim=8
    )
    flat.load_state_dict(
        {k: v.reshape(flat.state_dict()[k].shape) for k, v in vae.likelihood.state_dict().items()}
    )
    if name != "Categorical":  # whose network returns the categories first, as channels
        z = torch.randn(5, 2)
        torch.testing.assert_close(
            flat(z).log_prob(x[:5].reshape(5, 6)), vae.likelihood(z).log_prob(x[:5])
        )


def vae_options(vae):
    inferred = ("num_categories", "levels", "step")
    record = pv.recording.record_of(vae.likelihood)["arguments"]
    return {k: v for k, v in record.items() if k in inferred}


@pytest.mark.parametrize("name", [name for name in DATA if name not in VECTORS_ALONE])
def test_missing_numbers_are_left_out(name):
    """The density of the others is what it is without them."""
    x = data_for(name)
    vae = built(x, getattr(likelihoods, name)(), missing=True)
    gaps = x.clone()
    gaps[::3, 1] = math.nan
    z = torch.randn(N, 2)
    law = vae.likelihood(z).base_dist
    whole = law.log_prob(x)
    expected = whole.sum(-1) - torch.where(gaps[:, 1].isnan(), whole[:, 1], 0.0)
    torch.testing.assert_close(with_gaps(law.to_event(1)).log_prob(gaps), expected)
    assert pv.elbo(vae, gaps).isfinite().all()


@pytest.mark.parametrize("name", VECTORS_ALONE)
def test_missing_numbers_of_a_whole_row_are_refused(name):
    x = data_for(name)
    vae = built(x, getattr(likelihoods, name)(), missing=True)
    with pytest.raises(
        ValueError, match=r"missing=True beside a .*expected a likelihood that is a pro"
    ):
        pv.fit(vae, x, steps=1, progress=False)


# --- bad data: by value and row, in one line ------------------------------------------------------

BAD = {
    "Bernoulli": (0.5, r"values .*, such as 0.5 in row 41, expected 0 or 1"),
    "ContinuousBernoulli": (1.5, "such as 1.5 in row 41"),
    "Beta": (1.0, "such as 1 in row 41, expected a number between 0 and 1, neither of them"),
    "DiscretizedLogistic": (0.5, "such as 0.5 in row 41, expected one of 256 levels"),
    "Categorical": (7.0, "such as 7 in row 41, expected codes from 0 on, below the 2, 3, 5, 4 cat"),
    "OneHotCategorical": (
        2.0,
        "such as row 41|in row 41, expected a single 1 in each group of 2, 3",
    ),
    "Ordinal": (-1.0, "such as -1 in row 41, expected codes from 0 on, below the 4, 3, 5, 4 cat"),
    "Poisson": (2.5, r"such as 2.5 in row 41, expected whole numbers from 0 on: round them, or"),
    "NegativeBinomial": (-2.0, "such as -2 in row 41, expected whole numbers from 0 on: shift"),
    "ZeroInflatedNegativeBinomial": (2.5, "such as 2.5 in row 41, expected whole numbers"),
    "Multinomial": (2.5, "such as 2.5 in row 41, expected whole numbers"),
    "ProdLDA": (-1.0, "such as -1 in row 41, expected whole numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_impossible_value_is_refused_by_value_and_row(name):
    x = DATA[name]()
    vae = built(x, getattr(likelihoods, name)())
    value, said = BAD[name]
    x[41, 1] = value
    with pytest.raises(ValueError, match=said) as refused:
        pv.fit(vae, x, steps=1, progress=False)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("Categorical", 1.5, r"Categorical: x has the value 1.5 in row 41, expected codes 0, 1"),
        ("Ordinal", -1.0, r"Ordinal: x has the value -1 in row 41, expected codes 0, 1"),
        ("DiscretizedLogistic", 0.123, r"x has values such as 0.123 \(row 41\), expected 0, 1"),
        ("OneHotCategorical", 0.5, "the groups of one-hot columns do not show in x"),
    ],
)
def test_nothing_is_inferred_from_impossible_data(name, value, said):
    x = DATA[name]()
    x[41, 1] = value
    with pytest.raises(ValueError, match=said):
        built(x, getattr(likelihoods, name)())


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: likelihoods.Categorical(2, 3), "num_categories is None, expected the number of"),
        (
            lambda: likelihoods.Ordinal(2, 3),
            "num_categories is None, expected the number of grades",
        ),
        (
            lambda: likelihoods.Categorical(2, 3, num_categories=[2, 3]),
            "has 2 numbers, expected one",
        ),
        (lambda: likelihoods.Categorical(2, 3, num_categories=1), "num_categories is 1"),
        (lambda: likelihoods.Ordinal(2, 2, num_categories=[2, 1]), r"num_categories\[1\] is 1"),
        (lambda: likelihoods.OneHotCategorical(2, 5, num_categories=[2, 2]), "they sum to 4"),
        (lambda: likelihoods.OneHotCategorical(2, 5, num_categories=2), "they sum to 4"),
        (lambda: likelihoods.Gaussian(2, 3, sigma="pixels"), 'sigma is .*expected "network"'),
        (lambda: likelihoods.Gaussian(2, 3, sigma=0.0), "sigma is 0.0, expected a positive"),
        (lambda: likelihoods.StudentT(2, 3, df=-1), "df is -1"),
        (lambda: likelihoods.DiscretizedLogistic(2, 3, levels=1), "levels is 1"),
        (lambda: likelihoods.NegativeBinomial(2, 3, dispersion="z"), 'expected "column" or "net'),
        (lambda: likelihoods.Poisson(2, 3, share=True), "share=True without a library"),
        (lambda: likelihoods.Multinomial(2, 3, length=0), "length is 0"),
        (lambda: likelihoods.Multinomial(2, (2, 3)), "expected one number of words"),
        (
            lambda: pv.VAE.build(3, likelihood=likelihoods.ProdLDA(), prior=pv.priors.Dirichlet()),
            r"takes latents on the line, and those .* on the simplex: pass ProdLDA\(simplex=True\)",
        ),
        (
            lambda: pv.VAE.build(3, likelihood=likelihoods.ProdLDA(simplex=True)),
            "takes latents on the simplex, and those of the prior Normal are on the line",
        ),
        (lambda: likelihoods.ProdLDA(2, 3).top_words(["a"]), "vocabulary has 1 words, expected 3"),
    ],
)
def test_impossible_options_are_refused(made, said):
    with pytest.raises((ValueError, TypeError), match=said):
        made()


# --- inferred from data ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "levels", "step"),
    [
        (torch.arange(256.0).reshape(-1, 2), 256, 1.0),
        (torch.arange(17.0).reshape(-1, 1), 17, 1.0),
        (torch.arange(256.0).reshape(-1, 2) / 255, 256, 1 / 255),
        (torch.arange(256.0).reshape(-1, 2) / 256, 256, 1 / 256),
        (torch.arange(17.0).reshape(-1, 1) / 16, 17, 1 / 16),
    ],
)
def test_the_grid_of_pixels_is_inferred(x, levels, step):
    part = built(x, likelihoods.DiscretizedLogistic()).likelihood
    assert (part.levels, part.step) == (levels, step)
    bits = part.bits_per_dimension(part(torch.zeros(len(x), 2)).log_prob(x))
    assert bits.shape == (len(x),) and (bits.mean() - math.log2(levels)).abs() < 4


def test_bits_do_not_depend_on_the_scale_of_pixels():
    k, bits = torch.randint(256, (30, 3)).float(), []
    for x in (k, k / 255, k / 256):
        torch.manual_seed(1)
        part = built(x, likelihoods.DiscretizedLogistic()).likelihood
        bits.append(part.bits_per_dimension(part(torch.ones(30, 2)).log_prob(x)))
    torch.testing.assert_close(bits[0], bits[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bits[0], bits[2], rtol=1e-4, atol=1e-4)


def test_the_numbers_of_categories_are_inferred():
    assert built(codes(2, 3, 5, 4), likelihoods.Categorical()).likelihood.numbers == [2, 3, 5, 4]
    assert built(codes(3, 3), likelihoods.Ordinal()).likelihood.numbers == [3, 3]
    assert built(codes(3, 3), likelihoods.Categorical(num_categories=7)).likelihood.numbers == [
        7,
        7,
    ]
    pixels = torch.randint(17, (N, 2, 3)).float()
    pixels[0] = 16.0
    assert built(pixels, likelihoods.Categorical()).likelihood.numbers == [17] * 6
    x = one_hot(2, 5, 3)
    assert built(x, likelihoods.OneHotCategorical()).likelihood.numbers == [2, 5, 3]
    unseen = torch.cat([x, torch.zeros(N, 1)], 1)
    with pytest.raises(ValueError, match="groups of one-hot columns do not show"):
        built(unseen, likelihoods.OneHotCategorical())
    given = likelihoods.OneHotCategorical(num_categories=[2, 5, 4])
    assert given.sized(latent_dim=2, data_dim=11).numbers == [2, 5, 4]


def test_codes_and_their_one_hot_columns_have_one_density():
    x = codes(2, 3)
    torch.manual_seed(1)
    by_code = built(x, likelihoods.Categorical()).likelihood
    by_column = likelihoods.OneHotCategorical(num_categories=[2, 3]).sized(
        latent_dim=2, data_dim=5, hidden_dim=8
    )
    by_column.network.load_state_dict(by_code.network.state_dict())
    z = torch.randn(N, 2)
    torch.testing.assert_close(by_code(z).log_prob(x), by_column(z).log_prob(one_hot(2, 3)))


# --- options --------------------------------------------------------------------------------------


def test_the_deviation_of_a_gaussian_is_fixed_shared_or_by_pixel():
    z, x = torch.randn(7, 2), torch.rand(7, 3)
    for sigma, shape in ((0.5, None), ("shared", ()), ("pixel", (3,)), ("network", None)):
        part = likelihoods.Gaussian(2, 3, sigma=sigma, sigmoid_mean=False)
        law = part(z)
        out = part.network(z)
        assert out.shape == (7, 6 if sigma == "network" else 3)
        names = [name for name, _ in part.named_parameters() if "network" not in name]
        assert names == ([] if shape is None else ["log_variance"])
        if shape is not None:
            assert part.log_variance.shape == shape
        scale = 0.5 if sigma == 0.5 else law.base_dist.scale
        expected = dist.Normal(out[:, :3], scale).log_prob(x).sum(-1)
        torch.testing.assert_close(law.log_prob(x), expected)
    plain, said = (likelihoods.Gaussian(2, 3, **o) for o in ({}, {"sigma": "network"}))
    said.load_state_dict(plain.state_dict())
    assert torch.equal(plain(z).log_prob(x), said(z).log_prob(x))


class Constant(nn.Module):
    """A network that returns what it is told, whatever z."""

    def __init__(self, values):
        super().__init__()
        self.values = nn.Parameter(torch.as_tensor(values))

    def forward(self, z):
        return self.values.expand(*z.shape[:-1], -1)


@pytest.mark.parametrize("name", ["Poisson", "NegativeBinomial", "ZeroInflatedNegativeBinomial"])
def test_counts_are_proportional_to_the_library(name):
    x, size = counts(), torch.linspace(1, 9, N)
    for total in (size, size.unsqueeze(1)):
        rows = {"x": x, "size": total}
        vae = built(rows, getattr(likelihoods, name)(library="size"))
        z = torch.randn(3, N, 2)
        mean = vae.likelihood(z, {"size": total}).mean
        one = vae.likelihood(z, {"size": torch.ones_like(total)}).mean
        torch.testing.assert_close(mean, one * size.unsqueeze(-1))
        assert pv.check(vae, rows)
        assert pv.reconstruct(vae, rows).shape == (N, D)
        assert pv.sample(vae, N, like={"size": total}).shape == (N, D)


def test_shares_of_the_library_sum_to_it():
    rows = {"x": counts(), "size": torch.linspace(1, 9, N)}
    vae = built(rows, likelihoods.Poisson(library="size", share=True))
    mean = vae.likelihood(torch.randn(N, 2), {"size": rows["size"]}).mean
    torch.testing.assert_close(mean.sum(-1), rows["size"])


def test_covariates_beside_the_library_go_into_the_network():
    rows = {"x": counts(), "size": torch.linspace(1, 9, N), "batch": torch.randn(N, 2)}
    vae = built(rows, likelihoods.NegativeBinomial(library="size"))
    assert vae.likelihood.network[0].in_features == 2 + 2
    assert pv.check(vae, rows)


def test_a_library_that_is_missing_or_negative_is_refused():
    rows = {"x": counts(), "size": torch.linspace(1, 9, N)}
    vae = built(rows, likelihoods.Poisson(library="size"))
    with pytest.raises(ValueError, match=r'library="size", and x has no such entry: pass {"x": co'):
        vae.likelihood(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"size.* has shape \(60, 4\), expected one number a row"):
        vae.likelihood(torch.zeros(N, 2), {"size": rows["x"]})
    for wrong in (-1.0, 0.0):
        size = rows["size"].clone()
        size[41] = wrong
        with pytest.raises(ValueError, match=f'"size" has the value {wrong:g}, ') as refused:
            pv.fit(vae, {**rows, "size": size}, steps=1, progress=False)
        assert len(str(refused.value).splitlines()) == 1


def test_counts_and_words_start_at_the_means_of_the_data():
    x = torch.poisson(torch.tensor([0.5, 3.0, 40.0, 900.0]).expand(N, D))
    for name in ("Poisson", "NegativeBinomial", "ZeroInflatedNegativeBinomial", "Multinomial"):
        part = built(x, getattr(likelihoods, name)()).likelihood
        law = part(torch.zeros(1, 2))
        counts_law = law if name == "Multinomial" else law.base_dist
        mean = getattr(counts_law, "base_dist", counts_law).mean[0]
        torch.testing.assert_close(mean, x.mean(0), rtol=0.1, atol=0.05)


def test_topics_are_products_or_mixtures_of_experts():
    z, x = torch.randn(7, 3), torch.poisson(torch.ones(7, 5))
    part = likelihoods.ProdLDA(3, 5)
    theta = z.softmax(-1)
    expected = (x * (theta @ part.topics).log_softmax(-1)).sum(-1)
    torch.testing.assert_close(part(z).log_prob(x), expected)
    simplex = likelihoods.ProdLDA(3, 5, simplex=True, mixture=True)
    mixed = (x * (theta @ simplex.topics.softmax(-1)).log()).sum(-1)
    torch.testing.assert_close(simplex(theta).log_prob(x), mixed)
    normed = likelihoods.ProdLDA(3, 5, batch_norm=True)
    assert normed(torch.randn(2, 7, 3)).batch_shape == (2, 7)
    scores = normed.eval()(z).logits
    torch.testing.assert_close(scores, normed.norm(theta @ normed.topics).log_softmax(-1))
    vocabulary = ["sea", "ship", "law", "court", "sun"]
    words = part.top_words(vocabulary, 2)
    best = part.topics.argmax(-1).tolist()
    assert [row[0] for row in words] == [vocabulary[w] for w in best] and len(words[0]) == 2


def test_batch_norm_of_topics_trains_and_is_fixed_afterwards():
    x = counts()
    vae = built(x, likelihoods.ProdLDA(batch_norm=True))
    pv.fit(vae, x, steps=3, progress=False)
    vae.eval()
    z = torch.randn(N, 2)
    whole = vae.likelihood(z).log_prob(x)
    torch.testing.assert_close(vae.likelihood(z[:5]).log_prob(x[:5]), whole[:5])
    assert pv.elbo(vae, x).isfinite().all()


# --- known parameters -----------------------------------------------------------------------------

RATES = torch.tensor([0.4, 3.0, 25.0])
CONCENTRATIONS, GATES = torch.tensor([0.8, 2.0, 6.0]), torch.tensor([0.2, 0.3, 0.5])


def simulated(name, size):
    mean = RATES * size.unsqueeze(1)
    if name == "Poisson":
        return torch.poisson(mean)
    x = torch.poisson(mean * dist.Gamma(CONCENTRATIONS, CONCENTRATIONS).sample((len(size),)))
    return x if name == "NegativeBinomial" else x * (torch.rand(x.shape) > GATES)


@pytest.mark.parametrize(
    "name",
    some_quickly(
        ["Poisson", "NegativeBinomial", "ZeroInflatedNegativeBinomial"],
        "ZeroInflatedNegativeBinomial",
    ),
)
def test_parameters_of_simulated_counts_are_recovered(name, n=2000):
    """Within three standard errors, which are those of the observed information."""
    torch.manual_seed(3)
    rows = {"size": torch.rand(n) * 2 + 0.5}
    rows["x"] = simulated(name, rows["size"])
    heads = 2 if name.startswith("Zero") else 1
    begin = torch.cat([rows["x"].mean(0).log(), torch.zeros(3)])[: 3 * heads]
    vae = pv.VAE.build(
        rows,
        latent_dim=1,
        hidden_dim=2,
        likelihood=getattr(likelihoods, name)(library="size"),
        decoder=Constant(begin),
    )
    pv.fit(
        vae,
        rows,
        steps=200,
        batch_size=n,
        optimizer=torch.optim.Adam,
        lr=0.1,
        weight_prior=0,
        progress=False,
        engine="eager",
    )
    part = vae.likelihood.double()
    given = {"size": rows["size"].double()}
    names, found = zip(*part.named_parameters(), strict=True)
    sizes = [p.numel() for p in found]

    def loss(flat):
        named = dict(zip(names, flat.split(sizes), strict=True))
        law = torch.func.functional_call(part, named, (torch.zeros(n, 1).double(), given))
        return -law.log_prob(rows["x"].double()).sum()

    flat = torch.cat([p.detach() for p in found])
    error = torch.autograd.functional.hessian(loss, flat).inverse().diagonal().sqrt()
    known = {"network.values": torch.cat([RATES.log(), GATES.logit()])[: 3 * heads]}
    known["log_concentration"] = CONCENTRATIONS.log()
    truth = torch.cat([known[name] for name in names])
    assert ((flat - truth).abs() < 3 * error).all(), (flat - truth) / error
    assert (error < 1).all()


def test_groups_of_columns_infer_from_their_own():
    x = torch.cat([torch.randn(N, 2), codes(2, 5), counts()], 1)
    table = likelihoods.Columns(
        {
            "reals": (likelihoods.Gaussian(sigmoid_mean=False), [0, 1]),
            "codes": (likelihoods.Categorical(), [2, 3]),
            "counts": (likelihoods.NegativeBinomial(), range(4, 8)),
        }
    )
    vae = built(x, table)
    assert vae.likelihood.parts["codes"].numbers == [2, 5]
    pv.fit(vae, x, steps=1, progress=False, engine="eager")
    x[41, 5] = 2.5
    with pytest.raises(
        ValueError, match=r'"counts".*such as 2.5 in row 41, expected whole numbers'
    ):
        pv.fit(vae, x, steps=1, progress=False)
