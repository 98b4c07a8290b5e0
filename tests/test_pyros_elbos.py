"""Pyro's own ELBOs under fit: run with the right numbers, or refused in words before a step."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.contrib.gp.kernels import RBF
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import pyro_vae as pv
from pyro_vae.objectives import IWAE, DReG, MonteCarloEM, ReweightedWakeSleep

from .quickly import some_quickly


class Tutorial(nn.Module):
    """With ``pyro.module`` inside, as Pyro's tutorial writes it."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            mean, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


class Classes(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 3), nn.Linear(3, 6)

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(self.decoder(y), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.OneHotCategorical(logits=self.encoder(x)))


def fitted(program, objective, x=None, **options):
    torch.manual_seed(0)
    x = torch.randn(20, 6) if x is None else x
    return pv.fit(pv.Program(program()), x, objective, steps=2, progress=False, **options)


RUN = {
    "Trace_ELBO": ("AEVB(estimator='A')", "MixedELBO()"),
    "JitTrace_ELBO": ("AEVB(estimator='A')", "MixedELBO()"),
    "TraceMeanField_ELBO": ("AEVB()", None),
    "JitTraceMeanField_ELBO": ("AEVB()", None),
    "TraceEnum_ELBO": ("EnumeratedELBO()", "EnumeratedELBO()"),
    "JitTraceEnum_ELBO": ("EnumeratedELBO()", "EnumeratedELBO()"),
    "TraceGraph_ELBO": ("TraceGraph_ELBO()", "TraceGraph_ELBO()"),
    "RenyiELBO": ("RenyiELBO(num_particles=2)", None),
}


@pytest.mark.parametrize("name", some_quickly(RUN, *(n for n in RUN if not n.startswith("Jit"))))
def test_these_run_and_report_nats_per_datum(name):
    for program, expected in zip((Tutorial, Classes), RUN[name], strict=True):
        if expected is None:
            with pytest.raises(ValueError, match=r'"y".*not reparameterized'):
                fitted(program, getattr(pyro.infer, name)())
            continue
        run = fitted(program, getattr(pyro.infer, name)())
        assert run.manifest["objective"] == expected
        reference = fitted(program, pyro.infer.Trace_ELBO(), engine="pyro")
        first = [float(r.history["loss"].iloc[0]) for r in (run, reference)]
        assert abs(first[0] - first[1]) < 3.0 and 6.0 < first[0] < 30.0  # a batch's is 20 times it
        if name == "TraceGraph_ELBO":
            assert run.manifest["engine"] == "pyro"
            assert first[0] == pytest.approx(first[1], rel=1e-5)


REFUSED = {
    "ReweightedWakeSleep": "weights over the whole batch",
    "JitTraceGraph_ELBO": r"pass TraceGraph_ELBO\(\)",
    "TraceTailAdaptive_ELBO": "reports no loss",
    "Trace_MMD": "no sum over data",
}


@pytest.mark.parametrize("name", REFUSED)
def test_these_are_refused_in_words(name):
    options = {"kernel": RBF(2)} if name == "Trace_MMD" else {}
    with pytest.raises(ValueError, match=REFUSED[name]):
        fitted(Tutorial, getattr(pyro.infer, name)(**options))


def test_nothing_warns_of_parameters_that_nobody_froze():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=pv.errors.PyroVaeWarning)
        for objective in (IWAE(3), DReG(3), ReweightedWakeSleep(3), MonteCarloEM()):
            fitted(Tutorial, objective)


def test_a_parameter_that_is_frozen_is_still_told_of():
    class Frozen(Tutorial):
        def __init__(self):
            super().__init__()
            self.decoder.bias.requires_grad_(False)

    with pytest.warns(UserWarning, match="bias was not registered"):
        fitted(Frozen, IWAE(3))


class Sequences(nn.Module):
    def __init__(self, kind="LSTM"):
        super().__init__()
        self.rnn = getattr(nn, kind)(2, 5, batch_first=True)
        self.head, self.decoder = nn.Linear(5, 4), nn.Linear(2, 12)

    def model(self, x):
        x = x["x"] if isinstance(x, dict) else x
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = self.decoder(z).unflatten(-1, (6, 2))
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(2), obs=x)

    def guide(self, x):
        inputs = rows = x["x"] if isinstance(x, dict) else x
        if isinstance(x, dict):
            lengths = x["lengths"].cpu()
            inputs = pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
        hidden = self.rnn(inputs)[1]
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        with pyro.plate("data", len(rows)):
            mean, scale = self.head(hidden[-1]).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


@pytest.mark.parametrize("kind", some_quickly(["RNN", "GRU", "LSTM"], "LSTM"))
def test_recurrent_nets_are_captured_and_packed_ones_fall_back_with_the_reason(kind):
    x = torch.randn(20, 6, 2)

    def make():
        return Sequences(kind)

    run = fitted(make, IWAE(2), x)
    assert not run.manifest["engine_reason"]
    losses = list(fitted(make, None, x).history["loss"])
    assert losses == pytest.approx(
        list(fitted(make, None, x, engine="pyro").history["loss"]), rel=1e-4
    )
    packed = fitted(make, None, {"x": x, "lengths": torch.randint(1, 7, (20,))})
    assert "depends on the rows" in packed.manifest["engine_reason"]


class Counts(nn.Module):
    """As Pyro's ProdLDA tutorial has it: the largest count of the batch."""

    def __init__(self, most=None, **options):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)
        self.most, self.options = most, options

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            most = self.most or int(x.sum(-1).max().item())
            law = dist.Multinomial(total_count=most, logits=self.decoder(z), **self.options)
            pyro.sample("x", law, obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            mean, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("options", [{}, {"validate_args": True}, {"validate_args": False}])
def test_word_counts_whose_total_differs_by_row_train_and_are_scored(validate, options):
    torch.manual_seed(0)
    x = torch.poisson(torch.full((40, 6), 2.0))
    x[30] *= 5  # a long document, in another batch than the first
    program = pv.Program(Counts(**options))
    with pyro.validation_enabled(validate), warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.errors.PyroVaeWarning)
        run = pv.fit(program, x, steps=4, batch_size=10, progress=False)
        assert "depends on the rows" in run.manifest["engine_reason"]
        evidence = pv.log_evidence(program, x, num_particles=20).value
        whole = pv.Program(Counts(most=int(x.sum(-1).max()), **options))
        whole.load_state_dict(program.state_dict())
        expected = pv.log_evidence(whole, x, num_particles=20).value
        torch.testing.assert_close(evidence, expected)
        pv.to_inference_data(program, x, num_draws=3)


def test_counts_above_a_total_that_is_no_function_of_the_rows_are_refused():
    with pytest.raises(ValueError, match=r"values from 0 to .*Multinomial"):
        fitted(lambda: Counts(most=1), None, torch.poisson(torch.full((40, 6), 2.0)))
