"""Optimizer updates as pure functions, and inside the graph of a step, against torch's own."""

import copy
import functools

import pytest
import torch
from torch import nn, optim

import pyro_vae as pv
from pyro_vae import engine
from pyro_vae.engine.fusing import fuse
from pyro_vae.engine.sources import GraphSource
from pyro_vae.engine.steps import OneByOne
from pyro_vae.engine.updates import bind, numbers_of, rebind, rules_of
from pyro_vae.objectives import AEVB, MonteCarloEM, WakeSleep
from pyro_vae.training import fitting

from .programs import FOLDER, program_and_rows
from .test_compiled import F64, assert_alike, train

ALL = [AEVB("A"), AEVB("B"), WakeSleep(), MonteCarloEM(2)]
PAIRS = [(n, o) for n in FOLDER for o in (ALL[:2] if n == "bayesian_vae" else ALL)]


def is_quick(name, objective):
    """Every objective on one program, and every program under one: an update sees gradients."""
    return name == "linear_gaussian" or objective is ALL[1]


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        pytest.param(n, o, id=f"{n}-{o!r}", marks=() if is_quick(n, o) else pytest.mark.slow)
        for n, o in PAIRS
    ],
)
def test_the_update_inside_the_graph_is_that_of_torchs_optimizer(name, objective, monkeypatch):
    """Without a compiler: three steps, the second of a padded batch."""
    program, x = program_and_rows(name)
    if name == "bayesian_vae":
        program.num_data = len(x)
    graphs = []

    def make(learner, engine_name, ask, *, prior, **_):
        if not graphs:
            example = (learner.program, learner.objective, ask.x, ask.state)
            graphs.append(engine.capture(*example, prior))
            return OneByOne(GraphSource(graphs[0]))
        rules = rules_of(learner.optimizer, list(learner.parameters.values()))
        return fuse(graphs[0], learner, rules, ask, machine=False)

    monkeypatch.setattr(fitting, "make_step", make)
    options = {"steps": 3, "batch_size": 4, "clip": 3.0, "weight_prior": 1.0}
    expected, got = (train(copy.deepcopy(program), x, objective, **options) for _ in range(2))
    assert_alike(got, expected)


def by_groups(kind, first, **options):
    """Every second parameter in a group with options of its own."""

    def make(parameters, lr):
        parts = parameters[::2], parameters[1::2]
        groups = [{"params": parts[0]}, {"params": parts[1], **first}]
        return kind(groups, lr=lr, **options)

    return make


P = functools.partial
RULES = {
    "Adagrad": optim.Adagrad,
    "Adagrad from 0.3": P(optim.Adagrad, initial_accumulator_value=0.3),
    "Adagrad, decay": P(optim.Adagrad, lr_decay=0.1, weight_decay=0.2),
    "paper's Adagrad": P(pv.optimizers.Adagrad, accumulate_steps=2),
    "Adam": P(optim.Adam, betas=(0.8, 0.95)),
    "Adam, decay": P(optim.Adam, weight_decay=0.3),
    "Adam, decoupled": P(optim.Adam, weight_decay=0.3, decoupled_weight_decay=True),
    "AMSGrad": P(optim.Adam, betas=(0.8, 0.5), amsgrad=True),
    "AdamW": P(optim.AdamW, weight_decay=0.3),
    "AdamW, AMSGrad": P(optim.AdamW, betas=(0.8, 0.5), amsgrad=True),
    "SGD": optim.SGD,
    "SGD, momentum": P(optim.SGD, momentum=0.9, weight_decay=0.1),
    "SGD, Nesterov": P(optim.SGD, momentum=0.8, nesterov=True),
    "RMSprop": P(optim.RMSprop, alpha=0.9),
    "RMSprop, all": P(optim.RMSprop, momentum=0.7, centered=True, weight_decay=0.1),
    "RMSprop, momentum": P(optim.RMSprop, momentum=0.7),
    "Adam, groups": by_groups(optim.Adam, {"lr": 0.02, "betas": (0.7, 0.9), "eps": 1e-3}),
    "AdamW, groups": by_groups(optim.AdamW, {"weight_decay": 0.0}, weight_decay=0.3),
    "Adam, decay of one group": by_groups(optim.Adam, {"weight_decay": 0.4}),
    "paper's Adagrad, groups": by_groups(
        pv.optimizers.Adagrad, {"accumulate_steps": 3}, accumulate_steps=1
    ),
    "SGD, groups": by_groups(optim.SGD, {"momentum": 0.5}, momentum=0.9),
    "RMSprop, groups": by_groups(optim.RMSprop, {"alpha": 0.5, "eps": 0.1}),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_are_torchs_own_updates(name):
    """Scalars, vectors and matrices; a step size that moves; a state that was loaded halfway."""
    make, generator = RULES[name], torch.Generator().manual_seed(0)
    shapes = [(), (3,), (2, 3)]
    mine, theirs = ([nn.Parameter(torch.ones(s, dtype=F64)) for s in shapes] for _ in range(2))
    own, reference = make(mine, lr=0.1), make(theirs, lr=0.1)
    for number in range(1, 6):
        if number == 3:
            own = make(mine, lr=0.1)
            own.load_state_dict(copy.deepcopy(reference.state_dict()))
        rules = rules_of(own, mine)
        for group, other in zip(own.param_groups, reference.param_groups, strict=True):
            group["lr"] = other["lr"] = other["lr"] * 0.8
        count, *memory = bind(own, rules, mine)
        numbers = torch.tensor(numbers_of(own, rules, number), dtype=F64).unbind()
        assert len(numbers) == rules.num_numbers
        width, after = len(rules.names), []
        for i, (p, q) in enumerate(zip(mine, theirs, strict=True)):
            q.grad = torch.randn(p.shape, dtype=F64, generator=generator)
            state = tuple(memory[i * width : (i + 1) * width])
            p.data, new = rules.moved(i, p.detach(), q.grad, state, numbers)
            after += new
        rebind(own, rules, mine, [count + 1, *after])
        reference.step()
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
        expected = reference.state_dict()
        assert own.state_dict()["param_groups"] == expected["param_groups"]
        kept = {n: {k: v for k, v in state.items() if v is not None}
                for n, state in expected["state"].items()}  # fmt: skip
        found = {n: s for n, s in own.state_dict()["state"].items() if s}
        torch.testing.assert_close(
            found, {n: s for n, s in kept.items() if s}, rtol=1e-12, atol=1e-15
        )


class Mine(optim.Adam):
    """A user's subclass, which may do anything in its step."""


def test_what_is_no_rule_stays_torchs():
    p, q = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    others = [
        *(kind([p], lr=0.1) for kind in (optim.NAdam, optim.RAdam, Mine)),
        *(kind([p], maximize=True) for kind in (optim.Adam, optim.Adagrad, optim.SGD)),
        optim.SGD([p], lr=0.1, momentum=0.9, dampening=0.1),
        optim.Adam([{"params": [p]}, {"params": [q], "amsgrad": True}]),
    ]
    for each in others:
        assert rules_of(each, [v for group in each.param_groups for v in group["params"]]) is None
    assert rules_of(optim.Adam([p, q]), [q, p]).groups == (0, 0)
    assert rules_of(optim.Adam([{"params": [p]}, {"params": [q]}]), [q, p]).groups == (1, 0)
    assert rules_of(optim.Adam([p]), [p, q]) is None and rules_of(optim.Adam([p, q]), [p]) is None


def of_layers(kind, **options):
    """Weights and biases in groups of their own, as people write it."""

    def make(parameters):
        weights = [p for p in parameters if p.dim() > 1]
        biases = [p for p in parameters if p.dim() < 2]
        groups = [{"params": biases, "weight_decay": 0.0}, {"params": weights}]
        return kind(groups, lr=0.01, **options)

    return make


@pytest.mark.parametrize(
    "optimizer, schedule",
    [
        (of_layers(optim.AdamW, weight_decay=0.1), P(optim.lr_scheduler.ExponentialLR, gamma=0.9)),
        (P(optim.SGD, lr=0.01, momentum=0.9),
         P(optim.lr_scheduler.OneCycleLR, max_lr=0.02, total_steps=6)),
        (of_layers(optim.RMSprop, momentum=0.5), None),
    ],
    ids=["AdamW, groups", "SGD, one cycle", "RMSprop, groups"],
)  # fmt: skip
@pytest.mark.parametrize("machine", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_common_choices_are_inside_the_step(optimizer, schedule, machine, monkeypatch):
    """Groups, schedules and clipping: six steps are those of torch's own optimizer."""
    program, x = program_and_rows("linear_gaussian")

    def make(learner, engine_name, ask, *, prior, **_):
        graph = engine.capture(learner.program, learner.objective, ask.x, ask.state, prior)
        rules = rules_of(learner.optimizer, list(learner.parameters.values()))
        return fuse(graph, learner, rules, ask, machine=machine)

    options = {"steps": 6, "batch_size": 4, "clip": 3.0, "lr": None, "optimizer": optimizer}
    options |= {"schedule": schedule}
    expected = train(copy.deepcopy(program), x, AEVB(), **options)
    monkeypatch.setattr(fitting, "make_step", make)
    assert_alike(train(copy.deepcopy(program), x, AEVB(), **options), expected)
