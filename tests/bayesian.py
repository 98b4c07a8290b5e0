"""What the tests of full variational Bayes share: mutants, terms by hand, draws of a step."""

import math

import torch

from pyro_vae import engine
from pyro_vae.densities.particles import densities
from pyro_vae.objectives import AEVB

F64 = torch.float64


class ScaledTwice(AEVB):
    """A mutant: N / B in the loss of a datum, beside the one that the plate applies."""

    def terms(self, program, x, state):
        d = densities(program, x, self.num_particles)
        loss, stats = super().terms(program, x, state)
        share = d.global_share if self.estimator == "A" else -d.global_kl_share
        return d.scale * (loss + share) - share, stats


class SharedTermsPerDatum(AEVB):
    """A mutant: KL(q(theta) || p(theta)) is scaled by N / B, as if each datum had a theta."""

    def terms(self, program, x, state):
        d = densities(program, x, self.num_particles)
        loss, stats = super().terms(program, x, state)
        share = d.global_share if self.estimator == "A" else -d.global_kl_share
        return loss - (d.scale - 1) * share, stats


MUTANTS = (ScaledTwice, SharedTermsPerDatum)


def draws_of(program, objective, x, count, seed=0):
    """The loss and gradient of ``count`` steps of one datum, each with its own datum and theta.

    One ``vmap`` over the captured step: x (N, D); returns losses (count,) and name -> (count, ...).
    """
    graph = engine.capture(program, objective, x[:1])
    assert isinstance(graph, engine.Graph), str(graph)
    params = {name: p.detach() for name, p in program.named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(x), (count,), generator=generator)
    noise = [n.draw(count, generator=generator) for n in graph.grads.noise]

    def step(row, noise):
        return graph.grads(params, row, torch.ones(1, dtype=F64), {}, {}, noise=noise)

    grads, sums = torch.func.vmap(step)(x[index].unsqueeze(1), noise)
    return sums["loss"], grads


def log_normal(value, mean, std):
    return (-0.5 * ((value - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def kl_to_standard(mean, std):
    """Appendix B and F.1: -1/2 sum (1 + log s^2 - m^2 - s^2)."""
    return -0.5 * (1 + 2 * std.log() - mean**2 - std**2).sum(-1)
