"""Every number that a public callable takes: checked first, by name, whatever comes."""

import inspect
import math
import typing

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae import chains, errors, likelihoods, networks, plotting, posteriors, priors
from pyro_vae.datasets import Data
from pyro_vae.densities.particles import densities
from pyro_vae.models import bayesian_vae, bernoulli_vae, gaussian_vae, linear_gaussian, logistic_lvm
from pyro_vae.objectives import AEVB, MonteCarloEM, ReweightedWakeSleep
from pyro_vae.recording.listing import classes_in


class Untouched(pv.Program):
    """Whoever runs it has not looked at the numbers first."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def model(self, x):
        raise RuntimeError("the model ran before the numbers were checked")

    guide = model


X = torch.zeros(4, 2)
DATA = Data(X)
PARTS = dict(prior=priors.StandardNormal(2), likelihood=likelihoods.Bernoulli(2, 3, 4),
             posterior=posteriors.Gaussian(3, 2, 4))  # fmt: skip
ORACLE = linear_gaussian.build(2)
LOGISTIC = logistic_lvm.build(2)
SPLIT = pv.datasets.split(DATA, test=0.25)

# What is called, and with what besides the number that is wrong.
CALLS = {
    "fit": (pv.fit, dict(program=Untouched(), x=X, samples=8, out="nowhere", validation=X)),
    "fit by steps": (pv.fit, dict(program=Untouched(), x=X, steps=8)),
    "fit by epochs": (pv.fit, dict(program=Untouched(), x=X, epochs=1.0)),
    "compare": (pv.compare, dict(data=SPLIT, builds={"a": Untouched}, objectives=[AEVB()])),
    "elbo": (pv.elbo, dict(program=Untouched(), x=X)),
    "log_evidence": (pv.log_evidence, dict(program=Untouched(), x=X)),
    "gradient_report": (pv.gradient_report, dict(program=Untouched(), x=X, objectives=[AEVB()])),
    "to_inference_data": (pv.to_inference_data, dict(program=Untouched(), x=X)),
    "sample": (pv.sample, dict(program=Untouched(), num_samples=2, like=X)),
    "encode": (pv.encode, dict(program=Untouched(), x=X)),
    "reconstruct": (pv.reconstruct, dict(program=Untouched(), x=X)),
    "densities": (densities, dict(program=Untouched(), x=X)),
    "sample_posterior": (chains.sample_posterior, dict(program=Untouched(), x=X)),
    "move": (chains.move, dict(log_density=None, u=X, step_size=0.1, leapfrog_steps=2)),
    "Adagrad": (pv.optimizers.Adagrad, dict(params=[torch.zeros(1)])),
    "from_array": (pv.datasets.from_array, dict(x=X)),
    "from_pixels": (Data.from_pixels, dict(pixels=X)),
    "Data": (Data, dict(x=X)),
    "batch": (DATA.batch, dict(index=torch.arange(2), epoch=0)),
    "load": (pv.datasets.load, dict(name="digits")),
    "split": (pv.datasets.split, dict(data=DATA)),
    "synthetic": (pv.datasets.synthetic, dict(program=Untouched(), num_data=3, like=X)),
    "MLP": (networks.MLP, dict(inputs=2, hidden=3, outputs=1)),
    "StandardNormal": (priors.StandardNormal, dict(latent_dim=2)),
    "Bernoulli": (likelihoods.Bernoulli, dict(latent_dim=2, data_dim=3)),
    "Gaussian": (likelihoods.Gaussian, dict(latent_dim=2, data_dim=3)),
    "posterior": (posteriors.Gaussian, dict(latent_dim=2, data_dim=3)),
    "bernoulli_vae": (bernoulli_vae.build, dict(data_dim=3)),
    "gaussian_vae": (gaussian_vae.build, dict(data_dim=3)),
    "bayesian_vae": (bayesian_vae.build, dict(data_dim=3, num_data=5)),
    "BayesianVAE": (bayesian_vae.BayesianVAE, dict(num_data=5, **PARTS)),
    "linear_gaussian": (linear_gaussian.build, dict(data_dim=3)),
    "Spread": (linear_gaussian.Spread, dict(dim=2, form="full", scale=1.0)),
    "logistic_lvm": (logistic_lvm.build, dict(data_dim=3)),
    "quadrature": (LOGISTIC.log_evidence, dict(x=X)),
    "moments": (LOGISTIC.posterior_moments, dict(x=X)),
    "new_figure": (plotting.new_figure, {}),
    **{name: (getattr(pv.objectives, name), {}) for name in pv.objectives.__all__
       if name not in ("Objective", "State", "Autoencoder")},
}  # fmt: skip
SIZES = {"latent_dim": 2, "data_dim": 3, "inputs": 2, "outputs": 3, "num_categories": 4}
for folder in ("priors", "likelihoods", "posteriors", "networks"):
    for name, cls in classes_in(folder).items():
        takes = inspect.signature(cls).parameters
        if cls.__name__ == name and "groups" not in takes and name != "Convolutional":
            sizes = {n: v for n, v in SIZES.items() if n in takes}
            own = {"posterior": posteriors.Gaussian(3, 2, 4)} if "posterior" in takes else {}
            own |= {"given_dim": 1} if name == "Conditional" else {}
            own |= {"data_dim": 4} if name == "OneHotCategorical" else {}
            CALLS[f"{folder}.{name}"] = (cls, sizes | own)
WRONG = {"None": None, "inf": math.inf, "nan": math.nan, "-1": -1, "0": 0, "1.5": 1.5, "'3'": "3",
         "True": True, "1e300": 1e300, "1 + i": 1j}  # fmt: skip
# Where one of these is no mistake: a seed may be below 0 but for data, some counts may be 0.
ZERO = ("seed", "warmup", "whiten", "num_prior", "num_simulations",
        "kl_warmup", "free_bits", "kl_weight", "insomnia",
        "baseline_decay", "jitter", "accumulate_steps", "weight_prior", "validation",
        "epoch", "given_dim")  # fmt: skip


def numbers_of(function):
    """Name -> its types, of the parameters that take a number."""
    written = function.__init__ if inspect.isclass(function) else function
    scope = getattr(inspect.unwrap(written), "__globals__", {})
    for name, option in inspect.signature(function).parameters.items():
        kind = option.annotation
        if isinstance(kind, str):
            one = type("One", (), {"__annotations__": {"kind": kind}})
            try:
                kind = typing.get_type_hints(one, globalns={**vars(typing), **scope})["kind"]
            except NameError:
                continue
        kinds = typing.get_args(kind) or (kind,)
        if (int in kinds or float in kinds) and bool not in kinds:
            yield name, kinds, option.default


def is_right(call, name, kinds, value):
    if value is None:
        return type(None) in kinds
    if isinstance(value, (bool, str, complex)):
        return False
    if name == "seed":  # of data it is hashed as it is, so from 0 on
        data = call in ("from_array", "from_pixels", "Data", "load", "split")
        return value == 0 or (value == -1 and not data)
    if value == 0:
        return name in ZERO or (call, name) == ("Adagrad", "lr")
    if value == 1.5:
        return int not in kinds and name not in (
            "insomnia", "baseline_decay", "jitter", "target_accept", "test", "validation"
        )  # fmt: skip
    return value == 1e300 and name not in (
        "insomnia", "baseline_decay", "jitter", "target_accept"
    )  # fmt: skip


CASES = {
    (call, name): [
        value
        for wrong, value in WRONG.items()
        if not is_right(call, name, kinds, value)
        # A whole number without an upper end may be as large as it likes.
        and not (wrong == "1e300" and int in kinds)
    ]
    for call, (function, _) in CALLS.items()
    for name, kinds, _ in numbers_of(function)
    if name not in ("loc", "low")  # any place on the line
}


def test_the_table_has_numbers_of_every_kind():
    assert len(CASES) > 100 and all(len(values) >= 5 for values in CASES.values())
    assert CASES.keys() >= {
        ("elbo", "batch_size"), ("fit", "lr"), ("fit", "seed"), ("fit", "replicas"),
        ("log_evidence", "max_elements"), ("Adagrad", "accumulate_steps"),
        ("bayesian_vae", "num_data"), ("split", "test"), ("sample_posterior", "step_size"),
        ("to_inference_data", "max_bytes"), ("quadrature", "nodes"),
    }  # fmt: skip


@pytest.mark.parametrize(("call", "name"), CASES, ids=str)
def test_what_is_no_such_number_is_refused_by_name_before_any_work(call, name):
    function, given = CALLS[call]
    given = dict(given)
    if call.startswith("fit") and name in ("samples", "epochs", "steps"):
        for budget in ("samples", "epochs", "steps"):
            given.pop(budget, None)
    for value in CASES[call, name]:
        with pytest.raises((ValueError, TypeError)) as caught:
            function(**{**given, name: value})
        said = str(caught.value)
        assert said.startswith(f"{name} is ") or f"{name}=" in said, f"{value}: {said}"
        assert "expected" in said and "\n" not in said


SAME = (1000, 1e3, np.int32(1000), np.float32(1000), np.array(1000), torch.tensor(1000),
        torch.tensor(1e3))  # fmt: skip


@pytest.mark.parametrize("value", SAME, ids=lambda v: type(v).__name__)
def test_whole_numbers_count_for_what_they_are_worth(value):
    assert type(errors.whole("n", value)) is int and errors.whole("n", value) == 1000
    assert errors.seed_number(value) == 1000
    assert type(errors.positive("s", value)) is float and errors.positive("s", value) == 1000.0


def test_numbers_of_other_libraries_reach_the_results():
    x = torch.randn(5, 2)
    plain = pv.elbo(ORACLE, x, num_particles=3, batch_size=2, seed=4)
    other = pv.elbo(ORACLE, x, num_particles=np.int64(3), batch_size=torch.tensor(2), seed=4.0)
    assert plain.equal(other)
    assert type(AEVB(num_particles=np.float64(5)).num_particles) is int
    assert MonteCarloEM(4.0).leapfrog_steps == 4 and ReweightedWakeSleep(2, np.float32(0.5))
    assert bernoulli_vae.build(np.int64(3), latent_dim=2.0, hidden_dim=torch.tensor(4))
    assert Data(X, seed=np.int64(3), scale=255).digest == Data(X, seed=3, scale=255.0).digest


def test_messages_say_got_expected_and_why():
    with pytest.raises(ValueError, match=r"^n is 7, expected a whole number from 2 to 5: why$"):
        errors.whole("n", 7, 2, 5, "why")
    with pytest.raises(TypeError, match=r"^n is None \(NoneType\), expected a whole number from 1"):
        errors.whole("n", None)
    with pytest.raises(ValueError, match=r"^s is nan, expected a number in \[0, 1\)$"):
        errors.within("s", math.nan, "[0, 1)")
    with pytest.raises(TypeError, match=r"^s is tensor.*Tensor"):
        errors.positive("s", torch.ones(2))
    for inside, outside in ((0, 1), (0.5, -0.1)):
        assert errors.within("s", inside, "[0, 1)") == inside
        with pytest.raises(ValueError):
            errors.within("s", outside, "[0, 1)")
