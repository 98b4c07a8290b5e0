"""Draws from given noise have the laws of torch's own."""

import traceback

import pytest
import torch
from scipy import stats

from pyro_vae.noise import NoiseMode, keyed, seed_of, seeded

from .programs import KEY

DRAWS = 20_000
LAWS = {
    "normal_": (lambda t: t.normal_(1.0, 2.0), stats.norm(1.0, 2.0)),
    "normal": (lambda t: torch.normal(t + 1.0, t + 2.0), stats.norm(1.0, 2.0)),
    "normal of a number": (lambda t: torch.normal(1.0, t + 2.0), stats.norm(1.0, 2.0)),
    "randn": (lambda t: torch.randn(len(t)), stats.norm()),
    "randn_like": (torch.randn_like, stats.norm()),
    "rand": (lambda t: torch.rand(len(t)), stats.uniform()),
    "rand_like": (torch.rand_like, stats.uniform()),
    "uniform_": (lambda t: t.uniform_(-1.0, 3.0), stats.uniform(-1.0, 4.0)),
    "exponential_": (lambda t: t.exponential_(2.0), stats.expon(scale=0.5)),
    "cauchy_": (lambda t: t.cauchy_(1.0, 2.0), stats.cauchy(1.0, 2.0)),
}


@pytest.mark.parametrize("name", LAWS)
def test_draw_from_given_noise_has_the_law_of_torchs_own(name):
    """Kolmogorov-Smirnov against scipy; the same draw again from the same key."""
    draw, law = LAWS[name]
    found = []
    for _ in range(2):
        with NoiseMode(keyed(*KEY)) as mode:
            found.append(draw(torch.zeros(DRAWS, dtype=torch.float64)))
        assert len(mode.asked) == 1 and not mode.kept

    assert torch.equal(*found)
    assert stats.kstest(found[0].numpy(), law.cdf).pvalue > 1e-4


def test_counts_from_given_noise_have_the_frequencies_of_torchs_own():
    p = torch.tensor([0.1, 0.2, 0.7])
    row, rows = p.expand(DRAWS, 3), torch.arange(DRAWS)
    with NoiseMode(keyed(*KEY)) as mode:
        counts = {
            "bernoulli": torch.bernoulli(row).mean(0),
            "bernoulli_": torch.empty(DRAWS, 3).bernoulli_(row).mean(0),
            "bernoulli_ of a number": torch.empty(DRAWS).bernoulli_(0.7).mean().reshape(1),
            "multinomial": torch.multinomial(row, 1).flatten().bincount(minlength=3) / DRAWS,
            "with replacement": torch.multinomial(row, 2, True)[:, 1].bincount(minlength=3) / DRAWS,
        }
        pairs = torch.multinomial(row, 2)
    assert not mode.kept
    for name, got in counts.items():
        expected = p[-len(got) :]
        error = (expected * (1 - expected) / DRAWS).sqrt()
        assert ((got - expected).abs() < 4.5 * error).all(), name
    # Without replacement: the second is drawn from what the first has left.
    assert (pairs[rows, 0] != pairs[rows, 1]).all()
    both = ((pairs[:, 0] == 2) & (pairs[:, 1] == 1)).double().mean()
    expected = 0.7 * 0.2 / 0.3
    assert abs(both - expected) < 4.5 * (expected * (1 - expected) / DRAWS) ** 0.5


def test_seeding_is_torchs_own_and_keeps_no_call_stack(monkeypatch):
    """torch.manual_seed writes the stack down three times where a GPU might be used later."""
    before = torch.get_rng_state()
    torch.manual_seed(seed_of(1, 2))
    expected = torch.randn(3)
    torch.set_rng_state(before)
    if not torch.accelerator.is_available():
        monkeypatch.delattr(traceback, "format_stack")
    with seeded(1, 2):
        assert torch.equal(torch.randn(3), expected)
    assert torch.equal(torch.get_rng_state(), before)
