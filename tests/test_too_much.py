"""What cannot end is refused before it begins; and what is no tensor is told as a mistake."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.models import linear_gaussian

X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))


def test_a_number_of_runs_or_draws_that_cannot_end_is_refused():
    with pytest.raises(ValueError, match=r"num_simulations is 1000000000000000.*to 10000000"):
        pv.diagnose(linear_gaussian.build(3, latent_dim=1), X, num_simulations=10**15)
    data = pv.datasets.split(pv.datasets.from_array(X))
    with pytest.raises(ValueError, match=r"seeds is 1000000000000000.*to 10000"):
        pv.compare(data, builds={"a": lambda: None}, objectives={"b": None}, seeds=1e15)


@pytest.mark.parametrize("value", [3, "x", [1.0], X.numpy()], ids=["int", "str", "list", "array"])
def test_an_observation_that_is_no_tensor_is_a_mistake(value):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            law = dist.Normal(z[:, None].expand(-1, 3), 1.0).to_event(1)
            pyro.sample("x", law, obs=value)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    with pytest.raises((ValueError, TypeError), match=r"x|obs") as refused:
        pv.fit(pv.Program(model, guide), X, steps=1, engine="eager")
    assert type(value).__name__ in str(refused.value) and "obs=x" in str(refused.value)
    with pytest.raises((ValueError, TypeError)) as refused:
        pv.check(pv.Program(model, guide), X)
    assert "cannot be looked at" not in str(refused.value)
