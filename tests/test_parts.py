"""Every class of priors/, likelihoods/ and posteriors/ against its contract; found by listing.

A class in a new file is tested here before its author writes a test: see ``program/parts.py``.
"""

import inspect
import itertools
import math
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import biject_to, constraints

import pyro_vae as pv
from pyro_vae import engine
from pyro_vae.densities.dreams import dream
from pyro_vae.densities.particles import densities
from pyro_vae.engine.functions import gradient_function
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.models import bernoulli_vae
from pyro_vae.noise import NoiseMode, keyed, seeded
from pyro_vae.objectives import AEVB, ScoreFunction
from pyro_vae.posteriors.suiting import kind_of
from pyro_vae.program.parts import Posterior, Prior, mean_range_of
from pyro_vae.program.rows import map_rows
from pyro_vae.recording import form_of, record_of
from pyro_vae.recording.listing import classes_in, find_class, rebuilt
from pyro_vae.runs import storage

from .oracles import assert_equal

J, D, H, B = 2, 2, 5, 4
KEY = (5, 3, 1)


def is_in_no_row(folder, cls):
    """A prior of covariates is in no row of the matrix of test_combinations.py."""
    return folder == "priors" and bool(list(inspect.signature(cls.forward).parameters)[1:])


FOLDERS = {"priors": "prior", "likelihoods": "likelihood", "posteriors": "posterior"}
SLOW = pytest.mark.slow
PARTS = [
    pytest.param(folder, cls, id=f"{folder}.{name}")
    for folder in FOLDERS
    for name, cls in classes_in(folder).items()
    if name == cls.__name__  # and no alias
]
every_part = pytest.mark.parametrize(("folder", "cls"), PARTS)
# test_combinations.py compares the graph of every other part with its program, quickly too.
every_part_in_graphs = pytest.mark.parametrize(
    ("folder", "cls"),
    [
        each if is_in_no_row(*each.values) else pytest.param(*each.values, id=each.id, marks=SLOW)
        for each in PARTS
    ],
)


def example(folder, cls):
    torch.manual_seed(0)
    sizes = {"latent_dim": J} | ({} if folder == "priors" else {"data_dim": D, "hidden_dim": H})
    if "posterior" in inspect.signature(cls).parameters:
        sizes |= {"data_dim": D, "posterior": pv.posteriors.Gaussian(D, J, H)}
    part = cls.example(**sizes)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(0.0, 0.4)
    return part


class Joined(dist.TorchDistribution):
    """The laws of several sites as that of the row that they are taken from."""

    arg_constraints: ClassVar[dict] = {}
    support = constraints.real_vector

    def __init__(self, part, laws):
        self.part, self.laws = part, laws
        super().__init__(next(iter(laws.values())).batch_shape, torch.Size([D]))

    def sample(self, shape=()):
        return self.part.joined({name: law.sample(shape) for name, law in self.laws.items()})

    def log_prob(self, x):
        return sum(self.laws[name].log_prob(v) for name, v in self.part.parts_of(x).items())


def takes_covariates(part):
    return isinstance(part, Prior) and bool(inspect.signature(part.forward).parameters)


def covariates(dtype=torch.float32):
    return {"c": torch.randn(B, 3, dtype=dtype)}


def law_of(folder, part, *batch):
    """The distribution that it returns, at random inputs."""
    dtype = next((p.dtype for p in part.parameters()), torch.float32)
    if folder == "priors":
        return part(covariates(dtype)) if takes_covariates(part) else part()
    law = part(torch.randn(*batch, J if folder == "likelihoods" else D, dtype=dtype))
    return Joined(part, law) if isinstance(law, dict) else law


def program_of(folder, part):
    """The part among others of ours, and rows that the program dreamt."""
    torch.manual_seed(1)
    parts = {
        "prior": pv.priors.StandardNormal(J),
        "likelihood": pv.likelihoods.Bernoulli(J, D, H),
        "posterior": getattr(part, "posterior", None),
        FOLDERS[folder]: part,
    }
    if folder == "posteriors":  # a prior where its draws are
        kinds = {(0.0, 1.0): "Uniform", (0.0, math.inf): "Exponential", "simplex": "Dirichlet"}
        name = kinds.get(kind_of(part.support), "StandardNormal")
        parts["prior"] = getattr(pv.priors, name)(J)
    elif takes_covariates(part):
        parts["likelihood"] = pv.likelihoods.Bernoulli(J, D, H, given_dim=3)
        parts["posterior"] = pv.posteriors.Gaussian(D, J, H, given_dim=3)
    elif parts["posterior"] is None:
        support = getattr(parts["prior"], "support", constraints.real_vector)
        parts["posterior"] = pv.posteriors.suited(support)(D, J, H)
    program = bernoulli_vae.build(D, latent_dim=J, hidden_dim=H, **parts)
    if isinstance(part, pv.likelihoods.Columns):
        return program, torch.cat([program.made_up_row() for _ in range(B)])
    rows = torch.zeros(B, D)
    if takes_covariates(part):
        rows = {"x": rows, **covariates()}
    return program, dream(program, rows)[0]


@every_part
def test_shapes_are_those_of_the_contract(folder, cls):
    part = example(folder, cls)
    batches = {"priors": [()], "likelihoods": [(B,), (3, B)], "posteriors": [(B,)]}[folder]
    if takes_covariates(part):
        batches = [(B,)]
    for batch in batches:
        law = law_of(folder, part, *batch)
        assert law.batch_shape == batch
        assert law.event_shape == (D if folder == "likelihoods" else J,)
        assert law.sample().shape == law.batch_shape + law.event_shape
        assert law.log_prob(law.sample()).shape == batch


@every_part
def test_every_parameter_has_a_gradient(folder, cls):
    part = example(folder, cls)
    law = law_of(folder, part, B)
    if any(p.requires_grad for p in part.parameters()):
        law.log_prob(law.sample()).sum().backward()
    for name, parameter in part.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def total(law, larger, nodes=401):
    """The integral, or sum, of a density over its support, and its error.

    ``larger`` is added to log p: the mutant that must be found.
    """
    base = law
    while hasattr(base, "base_dist"):
        base = base.base_dist
    if base.has_enumerate_support:
        values = base.enumerate_support(expand=False).reshape(-1)
        grid = torch.tensor(list(itertools.product(values.tolist(), repeat=law.event_shape[-1])))
        grid = grid[law.support.check(grid)]
        return (law.log_prob(grid) + larger).logsumexp(0).exp().item(), 1e-5
    if getattr(law.support, "is_discrete", False):  # counts: all that are not too large to come
        most = 2 * int(law.sample((1000,)).max()) + 40
        grid = torch.cartesian_prod(*[torch.arange(most).to(torch.float32)] * law.event_shape[-1])
        grid = grid[law.support.check(grid)]
        return (law.log_prob(grid) + larger).logsumexp(0).exp().item(), 1e-5
    # The trapezoidal rule in v, where u = median + spread * sinh(v) is x on the whole line.
    onto = biject_to(law.support)
    u = onto.inv(law.sample((2000,)))
    low, median, high = u.quantile(torch.tensor([0.25, 0.5, 0.75]).to(u), dim=0).unsqueeze(-1)
    v = torch.linspace(-8.0, 8.0, nodes).to(u)
    lengths = (high - low) * v.cosh() * (v[1] - v[0])  # (J, nodes)
    grid = torch.cartesian_prod(*(median + (high - low) * v.sinh())).reshape(-1, len(median))
    volume = torch.cartesian_prod(*lengths).reshape(-1, len(median)).prod(-1)
    x = onto(grid)
    log_p = law.log_prob(x) + larger + onto.log_abs_det_jacobian(grid, x)
    mass = (log_p.exp() * volume).nan_to_num(0.0, 0.0, 0.0)  # (x = inf has none)
    mass = mass.reshape([nodes] * len(median))
    coarse = mass[(slice(None, None, 2),) * len(median)].sum() * 2 ** len(median)
    return mass.sum().item(), abs(mass.sum() - coarse).item() + 1e-3


def is_one(law, larger=0.0):
    value, error = total(law, larger)
    return abs(value - 1) < 4.5 * error


@every_part
def test_the_density_integrates_to_one_or_the_part_says_that_it_does_not(folder, cls):
    part = example(folder, cls).double()
    if hasattr(part, "posterior"):  # which belongs to the program
        part.posterior.double()
    with torch.no_grad(), pyro.validation_enabled(False):
        law = law_of(folder, part)
        if takes_covariates(part):  # of one row
            law = dist.Normal(law.base_dist.loc[0], law.base_dist.scale[0]).to_event(1)
        assert is_one(law) == part.normalized
        assert not is_one(law, larger=0.05)


def test_the_soft_bernoulli_says_that_it_is_no_density():
    part = Bernoulli(J, D, H, soft_targets=True)
    assert not part.normalized and Bernoulli(J, D, H).normalized
    law = part(torch.randn(J))
    x = torch.rand(40_000, D)
    assert abs(law.log_prob(x).exp().mean() - 1) > 0.1  # over the unit square


@every_part_in_graphs
def test_the_graph_is_the_program_at_k_particles(folder, cls):
    program, x = program_of(folder, example(folder, cls))
    program, x = program.double(), map_rows(torch.Tensor.double, x)
    drawn = densities(program, x, 3, reparameterize=False)
    assert drawn.log_p.shape == drawn.log_q.shape == (3, B) and drawn.log_w.isfinite().all()
    law = program.posterior(x)
    objective = AEVB("A", 3) if law.has_rsample else ScoreFunction(3)
    graph = engine.capture(program, objective, x)
    assert isinstance(graph, engine.Graph), str(graph)
    params = {name: p.detach() for name, p in program.named_parameters()}
    args = params, x, torch.ones(B, dtype=torch.float64), {}, {}

    with seeded(*KEY):  # for draws that stay in the graph, as a Gamma's do
        got, sums = graph.grads(*args, noise=graph.grads.draw(KEY))

    with NoiseMode(keyed(*KEY)), seeded(*KEY):
        expected, expected_sums = gradient_function(program, objective)(*args)
    assert_equal(got, expected)
    assert_equal(sums, expected_sums)


@every_part
def test_a_saved_part_is_loaded_by_its_name(folder, cls, tmp_path):
    program, x = program_of(folder, example(folder, cls))
    x = (
        map_rows(torch.sigmoid, x) if mean_range_of(program) else x
    )  # else it warns of data out of reach
    objective = AEVB("A") if program.posterior(x).has_rsample else ScoreFunction(2)
    pv.fit(program, x, objective, steps=1, engine="pyro", progress=False, out=tmp_path)

    loaded = pv.load(tmp_path).program

    mine, theirs = (getattr(p, FOLDERS[folder]) for p in (program, loaded))
    assert type(theirs) is cls and record_of(theirs) == record_of(mine)
    assert_equal(dict(loaded.named_parameters()), dict(program.named_parameters()))


@every_part
def test_a_part_is_found_and_shown_by_its_name(folder, cls):
    part = example(folder, cls)
    assert find_class(folder, cls.__name__) is getattr(getattr(pv, folder), cls.__name__) is cls
    assert cls.__name__ in dir(getattr(pv, folder)) and cls.__name__ in getattr(pv, folder).__all__
    assert repr(part).startswith(f"{cls.__name__}(") and f"latent_dim={J}" in repr(part)


# --- loading ----------------------------------------------------------------------------------


class Own(Prior):
    def __init__(self, latent_dim):
        super().__init__()
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def forward(self):
        return dist.Normal(self.zero, 1.0).to_event(1)


@pytest.mark.parametrize("prior", [Own(J), "plain"])
def test_a_part_of_the_users_own_asks_for_the_program(tmp_path, prior):
    class Plain(nn.Module):
        def forward(self):
            return dist.Normal(torch.zeros(J), 1.0).to_event(1)

    prior = Plain() if prior == "plain" else prior
    program, x = program_of("priors", prior)
    pv.fit(program, x, steps=1, engine="pyro", progress=False, out=tmp_path)
    said = r"prior is .*(Own|Plain).*, which cannot be made from its name: build it .*program=mine"
    with pytest.raises(ValueError, match=said):
        pv.load(tmp_path)
    assert pv.load(tmp_path, program).program is program


def test_options_of_a_part_come_back(tmp_path):
    prior = pv.priors.StandardNormal(J, precision=0.5)
    program, x = program_of("priors", prior)
    pv.fit(program, x, steps=1, engine="pyro", progress=False, out=tmp_path)
    assert pv.load(tmp_path).program.prior.precision == 0.5


def test_a_part_that_was_changed_after_it_was_built_asks_for_the_program(tmp_path):
    program, x = program_of("priors", pv.priors.StandardNormal(J))
    program.prior.precision = 3.0
    pv.fit(program, x, steps=1, engine="pyro", progress=False, out=tmp_path)
    with pytest.raises(ValueError, match=r"changed after it was built \(prior.precision"):
        pv.load(tmp_path)
    replaced, x = program_of("priors", pv.priors.StandardNormal(J))
    replaced.prior = pv.priors.StandardNormal(J, 2.0)
    pv.fit(replaced, x, steps=1, engine="pyro", progress=False, out=tmp_path / "b")
    with pytest.raises(ValueError, match=r"changed after it was built \(prior.precision"):
        pv.load(tmp_path / "b")


def test_a_part_in_a_part_is_made_again(monkeypatch):
    class Outer(Posterior):
        def __init__(self, network: nn.Module, *, floors: tuple = (1.0,)):
            super().__init__()
            self.network, self.floors = network, floors

    Outer.__module__, Outer.__qualname__ = "pyro_vae.posteriors.outer", "Outer"
    monkeypatch.setattr(pv.posteriors, "Outer", Outer, raising=False)
    known = classes_in
    with_outer = lambda f: known(f) | ({"Outer": Outer} if f == "posteriors" else {})  # noqa: E731
    monkeypatch.setattr("pyro_vae.recording.listing.classes_in", with_outer)
    made = Outer(pv.networks.MLP(2, 3, 4, init_std=None), floors=(1.0, 2.0))
    again = rebuilt(form_of(made), "posterior")
    assert type(again) is Outer and again.floors == (1.0, 2.0)
    assert record_of(again.network) == record_of(made.network)


def form(**changes):
    record = {**form_of(pv.priors.StandardNormal(J)), **changes}
    return {name: value for name, value in record.items() if value != "nothing"}


TAMPERED = {
    "unknown class": (form(**{"class": "pyro_vae.priors.normal.Normall"}), 'unknown "Normall"'),
    "another package": (form(**{"class": "os.system"}), r"prior is os\.system\(.*cannot be made"),
    "another folder": (form(**{"class": "pyro_vae.runs.run.Run"}), "cannot be made from its name"),
    "no class": (form(**{"class": 3}), "cannot be made"),
    "no arguments": (form(arguments="nothing"), "prior has no arguments"),
    "extra argument": (form(arguments={"latent_dim": 2, "evil": 1}), "no argument 'evil'"),
    "wrong type": (form(arguments={"latent_dim": "2"}), r"prior\.latent_dim is '2', expected int"),
    "true for a number": (form(arguments={"latent_dim": True}), "latent_dim is True, expected int"),
    "impossible value": (form(arguments={"latent_dim": -2}), "Normal: latent_dim is -2"),
    "far too large": (form(arguments={"latent_dim": 2**60}), "prior: Normal: "),
    "a list": ([form(**{"class": "x.Y"})], r"prior\[0\] is Y?"),
    "an object": ({"!": "object", "class": "x.Y", "sha256": "0"}, "cannot be made"),
    "half an object": ({"!": "made"}, "cannot be made"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_record_is_refused_in_one_line(tmp_path, name):
    changed, said = TAMPERED[name]
    with pytest.raises(ValueError, match=said) as refused:
        rebuilt(changed, "prior")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prior": TAMPERED["unknown class"][0]}, 'by name: priors: unknown "Normall"'),
        ({"hidden_dims": 3}, "no argument 'hidden_dims'"),
        ({"soft_targets": "false"}, "soft_targets is 'false', expected bool"),
        ({"prior": "StandardNormal"}, "prior is 'StandardNormal', expected"),
        (None, "the record has no arguments"),
    ],
)
def test_a_tampered_checkpoint_is_refused_by_name(tmp_path, options, said):
    program, x = program_of("priors", pv.priors.StandardNormal(J))
    pv.fit(program, x, steps=1, engine="pyro", progress=False, out=tmp_path)
    saved = storage.read(tmp_path)
    build = saved["build"]
    build["options"] = None if options is None else {**build["options"], **options}
    storage.write(tmp_path, saved)
    with pytest.raises(ValueError, match=said) as refused:
        pv.load(tmp_path)
    assert "pv.load(path, program=mine)" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(("name", "listed"), [("_Private", True), ("Gaussian", False)])
def test_two_classes_of_one_name_in_a_folder_are_refused(monkeypatch, name, listed):
    from pyro_vae.likelihoods import bernoulli

    again = type(name, (Prior,), {"__module__": bernoulli.__name__})
    monkeypatch.setattr(bernoulli, name, again, raising=False)
    if listed:
        assert name not in classes_in("likelihoods")
    else:
        with pytest.raises(ValueError, match=r"likelihoods has two classes Gaussian, .*: rename"):
            classes_in("likelihoods")
