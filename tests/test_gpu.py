"""The same code on a GPU: skipped where there is none."""

from __future__ import annotations

import pytest
import torch

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def trained(engine: str, objective: pv.objectives.Objective, **options):
    torch.manual_seed(0)
    program = bernoulli_vae.build(24, latent_dim=3, hidden_dim=16, init_std=None)
    x = (torch.rand(70, 24, generator=torch.Generator().manual_seed(1)) < 0.4).double()
    return pv.fit(
        program, x, objective, steps=8, batch_size=16, engine=engine, device="cuda",
        dtype=torch.float64, progress=False, **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["AEVB", "WakeSleep", "MonteCarloEM"])
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_engines_agree_with_pyro_on_the_device(name, engine):
    """Noise is drawn on the device by key, so all three see the same draws."""
    objective = getattr(pv.objectives, name)
    expected = trained("pyro", objective())
    found = trained(engine, objective())
    assert found.manifest["device"].startswith("cuda") and found.manifest["engine"] == engine
    for a, b in zip(found.program.parameters(), expected.program.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_replicas_on_the_device_equal_their_single_runs():
    """One batched program, three learning rates."""
    together = trained("compiled", pv.objectives.AEVB(), lr=[0.01, 0.02, 0.05])
    for r, run in enumerate(together):
        alone = trained("eager", pv.objectives.AEVB(), lr=[0.01, 0.02, 0.05][r], seed=r)
        for a, b in zip(run.program.parameters(), alone.program.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_evidence_is_that_of_the_cpu():
    """Exact up to the noise of K = 5000 draws: another generator, the same expectation."""
    run = trained("compiled", pv.objectives.AEVB())
    x = (torch.rand(12, 24, generator=torch.Generator().manual_seed(2)) < 0.4).double()
    there = pv.log_evidence(run.program, x, num_particles=5000)
    here = pv.log_evidence(run.program.to("cpu"), x, num_particles=5000)
    error = (there.standard_error.cpu() ** 2 + here.standard_error**2).sqrt()
    assert ((there.value.cpu() - here.value).abs() < 4.5 * error).all()


def test_a_compiled_step_is_recorded_as_one_graph(caplog):
    caplog.set_level("INFO", "pyro_vae")
    trained("compiled", pv.objectives.AEVB())
    assert "not recorded as a CUDA graph" not in caplog.text
