"""What a gradient report measures bias against, never by name, and what it moves."""

import contextlib
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.util import is_validation_enabled
from torch import nn

import pyro_vae as pv
from pyro_vae.models import linear_gaussian
from pyro_vae.objectives import AEVB, IWAE, StickingTheLanding
from pyro_vae.objectives.base import names_of, same_objective

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def tripled(printed):
    """AEVB with three times the loss, which prints as it is told."""

    class Mine(AEVB):
        def __repr__(self):
            return printed

        def terms(self, program, x, state):
            loss, stats = super().terms(program, x, state)
            return 3 * loss, stats

    return Mine()


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    return linear_gaussian.build(3, latent_dim=2)


def lab(program, objectives, x=X, **options):
    return pv.gradient_report(program, x, objectives, num_draws=50, progress=False, **options)


def column(report, name, group="model"):
    return report.table().loc[group, name]


def test_a_reference_that_prints_as_an_objective_is_still_itself(program):
    """Three times the loss is three times the gradient, so the bias is twice the reference's norm.

    By name the reference was the objective itself: bias 0, of no probability.
    """
    mine = tripled("AEVB()")
    report = lab(program, [mine], reference=AEVB())
    norm = column(lab(program, [AEVB()]), "norm").iloc[0]
    assert column(report, "bias").iloc[0] == pytest.approx(2 * norm, rel=0.01)
    assert column(report, "norm").iloc[0] == pytest.approx(3 * norm, rel=0.01)
    assert column(report, "bias p").iloc[0] < 1e-6
    assert report.dataset.attrs["reference"] == "AEVB()"
    assert list(report.dataset.objective.values) == ["Mine()"]


def test_pyros_objectives_are_told_apart_by_their_arguments(program):
    loose, tight = (RenyiELBO(alpha=a, num_particles=5) for a in (0.9, 0.0))
    report = lab(program, [loose], reference=tight)
    assert column(report, "bias").iloc[0] > 0.1
    assert report.dataset.attrs["reference"] == "RenyiELBO(alpha=0.0, num_particles=5)"


@pytest.mark.parametrize(
    ("reference", "place"), [(AEVB("A"), 1), (Trace_ELBO(), 1), (AEVB(), 0), (None, 0)]
)
def test_a_reference_made_from_the_same_is_the_objective(program, reference, place):
    """Another object of the same class and arguments, or Pyro's name for it: drawn once."""
    report = lab(program, [AEVB(), AEVB("A")], reference=reference)
    nan = column(report, "bias p").isna().to_numpy()
    assert nan[place] and not nan[1 - place]
    assert report.dataset.attrs["reference"] == str(report.dataset.objective.values[place])


def test_names_tell_apart_what_prints_alike(program):
    report = lab(program, [AEVB(), tripled("AEVB()")])
    assert list(report.dataset.objective.values) == ["AEVB()", "Mine()"]
    norms = column(report, "norm")
    assert norms["Mine()"] == pytest.approx(3 * norms["AEVB()"], rel=0.01)
    labels = [text.get_text() for text in report.plot().axes[0].get_yticklabels()]
    assert labels == ["AEVB", "Mine"]


def test_two_classes_of_one_name_are_numbered():
    """A class that a notebook's cell defined twice differs by nothing that can be read."""
    one, other = tripled("Mine()"), tripled("Mine()")
    assert type(one) is not type(other) and not same_objective(one, other)
    names = names_of([one, other, IWAE(2)])
    assert [name.split()[-1] for name in names] == ["#1", "#2", "IWAE(num_particles=2)"]


def test_what_is_the_same_twice_is_refused(program):
    one = tripled("x")
    for twice in ([one, one], [AEVB(), AEVB("B")], [one, type(one)()]):
        with pytest.raises(ValueError, match=r"expected different ones: .* is there twice"):
            lab(program, twice)


# --- nothing is trained ---------------------------------------------------------------------------


class Normalized(pv.Program):
    """Batch normalization in the encoder, dropout in the decoder, a frozen weight."""

    def __init__(self):
        super().__init__()
        self.normalize, self.encode = nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.decode = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5))
        self.decode[0].bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encode(self.normalize(x)), 1.0).to_event(1))


class Failing(AEVB):
    def terms(self, program, x, state):
        loss, stats = super().terms(program, x, state)
        return loss * math.inf, stats


def everything(program):
    """All that a call might move, as plain values."""
    return {
        "tensors": {name: t.clone() for name, t in program.state_dict().items()},
        "identity": {name: id(p) for name, p in program.named_parameters()},
        "buffers": {name: id(b) for name, b in program.named_buffers()},
        "needed": {name: p.requires_grad for name, p in program.named_parameters()},
        "grads": {name: p.grad for name, p in program.named_parameters()},
        "kept": {n: p.grad.clone() for n, p in program.named_parameters() if p.grad is not None},
        "modes": {name: module.training for name, module in program.named_modules()},
        "generators": [torch.get_rng_state(), np.random.get_state()[1]],
        "store": sorted(pyro.get_param_store().keys()),
        "flags": [torch.distributions.Distribution._validate_args, is_validation_enabled()],
    }


def assert_alike(before, after):
    if isinstance(before, dict):
        assert before.keys() == after.keys()
        for name in before:
            assert_alike(before[name], after[name])
    elif isinstance(before, list):
        for one, other in zip(before, after, strict=True):
            assert_alike(one, other)
    elif isinstance(before, torch.Tensor):
        assert torch.equal(before, after)
    else:
        assert np.all(before == after)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "objectives",
    [
        [AEVB(), StickingTheLanding()],
        [TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)],
        [Failing()],
    ],
    ids=["captured", "Pyro's", "one that fails"],
)
def test_a_report_moves_nothing(objectives, training):
    torch.manual_seed(0)
    program = Normalized().train(training)
    program.normalize.train()  # one module's mode may differ from the program's
    program.encode.weight.grad = torch.full((2, 3), 7.0)
    x = X + 5
    before = everything(program)
    elbo = pv.elbo(program, x, num_particles=20)
    fails = isinstance(objectives[0], Failing)
    with pytest.raises(ValueError, match="not finite") if fails else contextlib.nullcontext():
        lab(program, objectives, x)
    assert_alike(before, everything(program))
    assert torch.equal(elbo, pv.elbo(program, x, num_particles=20))
