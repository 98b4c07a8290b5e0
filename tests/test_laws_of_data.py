"""Discrete laws of data: pixels in levels, counts, documents, columns of categories."""

import itertools
import math

import pyro.distributions as dist
import pytest
import scipy.stats as ss
import torch

from pyro_vae.distributions import (
    CategoricalColumns,
    DiscretizedLogistic,
    NegativeBinomial2,
    OneHotColumns,
    WordCounts,
    ZeroInflated,
    bits_per_dimension,
    ordinal_logits,
    perplexity,
)
from pyro_vae.graphs.lifted import Lifted
from pyro_vae.graphs.lifting import lift

N = 40_000


@pytest.fixture(autouse=True)
def _in_double_precision(double):
    """For sums that are one."""


def t(*values):
    return torch.tensor(values if len(values) > 1 else values[0])


def grid(levels, step=1.0):
    return torch.arange(levels) * step


def one_hot_rows():
    return [[*a, *b] for a in torch.eye(2).tolist() for b in torch.eye(3).tolist()]


def documents(length=4):
    every = itertools.product(range(length + 1), repeat=3)
    return torch.tensor([x for x in every if sum(x) == length]).double()


def zero_inflated():
    return ZeroInflated(NegativeBinomial2(t(3.0), t(2.0)), t(-0.5))


def grades():
    return dist.Categorical(logits=ordinal_logits(t(0.3), t(-1.0, 0.2, 1.5)))


# A law, and all of its values that have any probability.
LAWS = {
    "8 bits": lambda: (DiscretizedLogistic(t(0.4), t(0.07)), grid(256, 1 / 255)),
    "17 levels": lambda: (DiscretizedLogistic(t(0.9), t(0.3), 17), grid(17, 1 / 16)),
    "by 256": lambda: (DiscretizedLogistic(t(0.1), t(0.02), step=1 / 256), grid(256, 1 / 256)),
    "not divided": lambda: (DiscretizedLogistic(t(40.0), t(30.0), step=1), grid(256)),
    "counts": lambda: (NegativeBinomial2(t(3.0), t(2.0)), grid(200)),
    "near Poisson": lambda: (NegativeBinomial2(t(3.0), t(1e7)), grid(200)),
    "zero-inflated": lambda: (zero_inflated(), grid(200)),
    "multinomial": lambda: (WordCounts(t(0.1, 1.0, -0.4), 4, ordered=False), documents()),
    "columns": lambda: (CategoricalColumns(torch.randn(3), torch.tensor(2)), grid(2)),
    "one-hot columns": lambda: (OneHotColumns(torch.randn(5), (2, 3)), t(*one_hot_rows())),
    "grades": lambda: (grades(), grid(4)),
}
every_law = pytest.mark.parametrize("name", LAWS)


def probabilities(name):
    torch.manual_seed(0)
    law, values = LAWS[name]()
    return law, values, law.log_prob(values).exp()


@every_law
def test_the_probabilities_sum_to_one(name):
    law, values, p = probabilities(name)
    assert p.sum().item() == pytest.approx(1.0, abs=1e-9)
    assert law.support.check(values).all()
    outside = values + 0.37
    assert not law.support.check(outside).any() and not law.support.check(-1 - values).any()


@every_law
def test_the_draws_have_these_probabilities(name):
    law, values, p = probabilities(name)
    torch.manual_seed(3)
    drawn = law.sample((N,)).double()
    distance = (drawn.unsqueeze(1) - values).abs()
    found = (distance if distance.dim() == 2 else distance.sum(-1)).argmin(1)
    counts = torch.bincount(found, minlength=len(p))
    likely = p * N > 5
    expected = torch.cat([p[likely], p[~likely].sum(0, keepdim=True)]) * N
    seen = torch.cat([counts[likely], counts[~likely].sum(0, keepdim=True)])
    kept = expected > 1
    chi2 = ((seen - expected)[kept].square() / expected[kept]).sum().item()
    assert ss.chi2(max(1, int(kept.sum()) - 1)).sf(chi2) > 1e-3
    assert law.support.check(drawn).all()


@every_law
def test_mean_and_variance_are_those_of_the_probabilities(name):
    law, values, p = probabilities(name)
    if isinstance(law, dist.Categorical):
        return  # codes have none
    p = p.reshape(-1, *(1,) * (values.dim() - 1))
    mean = (p * values).sum(0)
    torch.testing.assert_close(law.mean, mean, rtol=1e-8, atol=1e-10)
    variance = (p * (values - mean).square()).sum(0)
    torch.testing.assert_close(law.variance, variance, rtol=1e-6, atol=1e-9)


@every_law
def test_shapes_are_torchs(name):
    law, values, p = probabilities(name)
    wide = law.expand((2, 3))
    assert wide.batch_shape == (2, 3) and wide.event_shape == law.event_shape
    assert wide.sample((4,)).shape == (4, 2, 3, *law.event_shape)
    assert type(wide) is type(law) and repr(wide.support) == repr(law.support)
    torch.testing.assert_close(wide.log_prob(values[1]), p[1].log().expand(2, 3))
    assert wide.mask(False).log_prob(values[0]).abs().sum() == 0
    assert wide.to_event(1).log_prob(wide.sample()).shape == (2,)
    with pytest.raises(ValueError, match="support"):
        law.expand((2,)).log_prob(values[0] + 0.37)


def test_draws_are_captured():
    def draw(loc, logits):
        pixels = DiscretizedLogistic(loc, loc.exp()).sample((5,))
        return pixels, WordCounts(logits, 3).sample(), OneHotColumns(logits, (1, 2)).sample()

    lifted = lift(draw, torch.randn(3), torch.randn(3))
    assert isinstance(lifted, Lifted), str(lifted)
    assert not lifted.kept and len(lifted.noise) == 4


# --- pixels ---------------------------------------------------------------------------------------


def test_a_level_is_a_difference_of_logistic_cdfs_and_the_ends_take_the_tails():
    law, beside = DiscretizedLogistic(t(0.4), t(0.07)), ss.logistic(0.4, 0.07)
    half = 0.5 / 255
    for k in (1, 100, 254):
        expected = beside.cdf(k / 255 + half) - beside.cdf(k / 255 - half)
        assert law.log_prob(t(k / 255)).exp().item() == pytest.approx(expected, rel=1e-9)
    assert law.log_prob(t(0.0)).item() == pytest.approx(beside.logcdf(half))
    assert law.log_prob(t(1.0)).item() == pytest.approx(beside.logsf(1 - half))
    grid = torch.arange(256) / 255
    torch.testing.assert_close(law.cdf(grid), law.log_prob(grid).exp().cumsum(0))


def test_single_precision_is_enough_where_differences_cancel():
    """A naive difference of sigmoids is 0 from a distance of 17 scales on."""
    x = (torch.arange(256) / 255).float()
    for m, s in ((0.4, 1e-3), (5.0, 0.01), (0.5, 1e4), (-30.0, 0.5)):
        at = [t(m).float().requires_grad_(), t(s).float().requires_grad_()]
        single = DiscretizedLogistic(*at).log_prob(x)
        exact = DiscretizedLogistic(t(m), t(s)).log_prob(torch.arange(256) / 255)
        torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-3)
        assert all(g.isfinite() for g in torch.autograd.grad(single.sum(), at))


def test_bits_do_not_depend_on_how_pixels_are_scaled():
    k = torch.arange(256.0)
    steps = (1 / 255, 1 / 256, 1.0)
    laws = [(DiscretizedLogistic(t(90.0 * h), t(7.0 * h), step=h), k * h) for h in steps]
    bits = [bits_per_dimension(law.log_prob(x).sum(), 256) for law, x in laws]
    torch.testing.assert_close(bits[0], bits[1])
    torch.testing.assert_close(bits[0], bits[2])
    flat = DiscretizedLogistic(t(0.5), t(1e6)).log_prob(t(0.2))  # nearly all in the two ends
    assert bits_per_dimension(flat, 1) > 8
    with pytest.raises(ValueError, match="levels is 1"):
        DiscretizedLogistic(t(0.5), t(0.1), 1)


# --- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "c"), [(3.0, 2.0), (0.01, 0.3), (500.0, 99.0), (40.0, 1e3)])
def test_the_negative_binomial_is_scipys(m, c):
    x = torch.arange(60.0) * max(1, round(m / 20))
    expected = torch.tensor(ss.nbinom(c, c / (c + m)).logpmf(x.numpy()))
    found = NegativeBinomial2(t(m), t(c)).log_prob(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_large_concentration_is_a_poisson_in_single_precision_too():
    """Torch's, by differences of lgamma, is off by 0.5 nats here."""
    x = torch.arange(30).float()
    law = NegativeBinomial2(t(9.0).float(), t(1e7).float())
    poisson = dist.Poisson(t(9.0).float()).log_prob(x)
    torch.testing.assert_close(law.log_prob(x), poisson, rtol=1e-4, atol=1e-4)
    torchs = dist.NegativeBinomial(t(1e7).float(), logits=t(math.log(9e-7)).float()).log_prob(x)
    assert (torchs - law.log_prob(x)).abs().max() > 0.1
    c = t(30.0, 99.9, 100.1, 1e5).requires_grad_()
    for x in (0.0, 3.0, 1e4):
        slopes = torch.autograd.grad(NegativeBinomial2(t(9.0), c).log_prob(t(x)).sum(), c)[0]
        m = 9.0
        exact = torch.digamma(c + x) - torch.digamma(c) + (c / (c + m)).log() + (m - x) / (c + m)
        torch.testing.assert_close(slopes, exact.detach(), rtol=1e-6, atol=1e-10)


def test_no_events_at_a_rate_of_zero():
    law = NegativeBinomial2(t(0.0), t(2.0))
    assert law.log_prob(t(0.0)) == 0 and law.log_prob(t(1.0)) == -math.inf
    assert (law.sample((9,)) == 0).all()


# --- documents ------------------------------------------------------------------------------------


def test_a_document_counts_the_words_in_their_order():
    logits, x = t(0.1, 1.0, -0.4), torch.tensor([[2.0, 1, 0], [0, 0, 7]])
    words = (x * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(WordCounts(logits).log_prob(x), words)
    orders = torch.tensor([3.0, 1.0]).log()  # of a, a, b; of seven equal words
    torch.testing.assert_close(WordCounts(logits, ordered=False).log_prob(x), words + orders)


def test_a_document_without_a_length_has_no_draws():
    law = WordCounts(torch.zeros(3))
    for ask in (law.sample, lambda: law.mean, lambda: law.variance):
        with pytest.raises(
            ValueError, match=r"no length, expected .*: build the law with length=n"
        ):
            ask()
    assert WordCounts(torch.zeros(2, 3), 5).sample((4,)).sum(-1).eq(5).all()


def test_perplexity_is_that_of_a_word():
    lengths = torch.tensor([2, 30])
    uniform = -lengths * math.log(7)
    for by_document in (True, False):
        assert perplexity(uniform, lengths, by_document=by_document).item() == pytest.approx(7.0)
    log_p = torch.tensor([-2.0, -90.0])
    assert perplexity(log_p, lengths).item() == pytest.approx(math.exp(2.0))
    assert perplexity(log_p, lengths, by_document=False).item() == pytest.approx(math.exp(92 / 32))


# --- categories -----------------------------------------------------------------------------------


def test_columns_of_different_numbers_of_categories():
    logits, sizes = torch.randn(7, 2, 4), torch.tensor([2, 4])
    law = CategoricalColumns(logits, sizes)
    x = torch.tensor([1.0, 3.0])
    expected = logits[:, 0, :2].log_softmax(-1)[:, 1], logits[:, 1].log_softmax(-1)[:, 3]
    torch.testing.assert_close(law.log_prob(x), torch.stack(expected, -1))
    assert law.support.check(torch.tensor([2.0, 3.0])).tolist() == [False, True]
    assert "below the 2, 4 categories" in repr(law.support)
    assert law.sample((500,))[..., 0].max() == 1 and law.probs[..., 0, 2:].abs().max() == 0


def test_one_hot_columns_are_one_hot_one_by_one():
    law = OneHotColumns(torch.randn(7, 5), (2, 3))
    wrong = torch.tensor([[1, 1, 1, 0, 0.0], [1, 0, 0, 0, 0], [0.5, 0.5, 1, 0, 0], [1, 0, 0, 1, 0]])
    assert law.support.check(wrong).tolist() == [False, False, False, True]
    with pytest.raises(ValueError, match=r"there are 5 logits, expected 6 of \(3, 3\)"):
        OneHotColumns(torch.zeros(5), (3, 3))


def test_grades_are_pyros_and_keep_their_tails():
    f, c = torch.linspace(-2, 2, 7), t(-1.0, 0.2, 1.5)
    ours = ordinal_logits(f, c)
    torch.testing.assert_close(ours.exp(), dist.OrderedLogistic(f, c).probs)
    far = t(30.0).float()
    lost = dist.OrderedLogistic(far, c.float()).log_prob(t(0.0))
    assert lost > -17
    assert ordinal_logits(far, c.float())[0].item() == pytest.approx(-31.0, abs=1e-4)


def test_grades_of_columns_with_different_numbers_of_them():
    f, sizes = torch.randn(5, 3), torch.tensor([2, 4, 3])
    c = torch.tensor([-1.0, 0.2, 1.5]).expand(3, 3).clone().requires_grad_()
    logits = ordinal_logits(f, c, sizes)
    for column, size in enumerate(sizes.tolist()):
        own = ordinal_logits(f[:, column], c[column, : size - 1])
        torch.testing.assert_close(logits[:, column, :size], own)
        assert (logits[:, column, size:] == -math.inf).all()
    (grad,) = torch.autograd.grad(logits[logits.isfinite()].sum(), c)
    assert grad.isfinite().all() and grad[0, 1:].abs().sum() == 0
