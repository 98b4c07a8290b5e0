"""Components of a mixture by matrix products, against their differences."""

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.distributions.mixtures import Mixture, normal_table


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_the_table_is_the_normals_densities_also_far_from_zero(scale):
    """At 3000 scales from zero the terms are 10^6 times their sum."""
    generator = torch.Generator().manual_seed(0)
    locs = 3 * torch.randn(7, 40, generator=generator)
    scales = scale * (0.5 + torch.rand(7, 40, generator=generator))
    z = locs[:5] + scales[:5] * torch.randn(5, 40, generator=generator)
    exact = dist.Normal(locs.double(), scales.double()).log_prob(z.double().unsqueeze(1)).sum(-1)
    table = normal_table(z, locs, scales)
    assert table.dtype == z.dtype
    torch.testing.assert_close(table, exact.float(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(normal_table(z[0], locs, scales), table[0])


def test_gradients_are_those_of_the_differences():
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (4, 6, 6)]
    values[2] = values[2].exp()
    z, locs, scales = (value.requires_grad_() for value in values)
    logits = torch.randn(6, generator=generator, dtype=torch.float64)

    def component(index):
        return dist.Normal(locs[index], scales[index]).to_event(1)

    log_p = Mixture(logits, component).log_prob(z)
    each = dist.Normal(locs, scales).to_event(1).log_prob(z.unsqueeze(1))
    expected = (each + logits.log_softmax(-1)).logsumexp(-1)
    torch.testing.assert_close(log_p, expected)
    inputs = [z, locs, scales]
    torch.testing.assert_close(
        torch.autograd.grad(log_p.sum(), inputs), torch.autograd.grad(expected.sum(), inputs)
    )
