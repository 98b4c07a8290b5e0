"""Optimizer updates as pure functions, and inside the graph of a step, against torch's own."""

import copy
import functools

import pytest
import torch
from torch import nn, optim

import pyro_vae as pv
from pyro_vae import engine
from pyro_vae.engine.fused import fuse
from pyro_vae.engine.sources import GraphSource
from pyro_vae.engine.steps import OneByOne
from pyro_vae.engine.updates import AdagradRule, AdamRule, bind, numbers_of, rebind, rule_of
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
        return fuse(graphs[0], learner, rule_of(learner.optimizer), ask, machine=False)

    monkeypatch.setattr(fitting, "make_step", make)
    options = {"steps": 3, "batch_size": 4, "clip": 3.0, "weight_prior": 1.0}
    expected, got = (train(copy.deepcopy(program), x, objective, **options) for _ in range(2))
    assert_alike(got, expected)


RULES = {
    "Adagrad": (optim.Adagrad, AdagradRule),
    "Adagrad from 0.3": (functools.partial(optim.Adagrad, initial_accumulator_value=0.3),) * 2,
    "paper's Adagrad": (functools.partial(pv.optimizers.Adagrad, accumulate_steps=2),) * 2,
    "Adam": (functools.partial(optim.Adam, betas=(0.8, 0.95)), AdamRule),
    "AdamW": (functools.partial(optim.AdamW, weight_decay=0.3), AdamRule),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_are_torchs_own_updates(name):
    """Scalars, vectors and matrices; a step size that moves; a state that was loaded halfway."""
    make, generator = RULES[name][0], torch.Generator().manual_seed(0)
    shapes = [(), (3,), (2, 3)]
    mine, theirs = ([nn.Parameter(torch.ones(s, dtype=F64)) for s in shapes] for _ in range(2))
    own, reference = make(mine, lr=0.1), make(theirs, lr=0.1)
    for number in range(1, 6):
        if number == 3:
            own = make(mine, lr=0.1)
            own.load_state_dict(copy.deepcopy(reference.state_dict()))
        rule = rule_of(own, mine)
        assert isinstance(rule, AdamRule if name.startswith("Adam") else AdagradRule)
        own.param_groups[0]["lr"] = reference.param_groups[0]["lr"] = 0.1 / number
        count, *memory = bind(own, rule)
        numbers = torch.tensor(numbers_of(own, rule, number), dtype=F64).unbind()
        width, after = len(rule.names), []
        for i, (p, q) in enumerate(zip(mine, theirs, strict=True)):
            q.grad = torch.randn(p.shape, dtype=F64, generator=generator)
            state = tuple(memory[i * width : (i + 1) * width])
            p.data, new = rule(p.detach(), q.grad, state, numbers)
            after += new
        rebind(own, rule, [count + 1, *after])
        reference.step()
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
        expected = reference.state_dict()
        assert own.state_dict()["param_groups"] == expected["param_groups"]
        torch.testing.assert_close(own.state_dict()["state"], expected["state"], rtol=1e-12, atol=0)


class Mine(optim.Adam):
    """A user's subclass, which may do anything in its step."""


def test_what_is_no_rule_stays_torchs():
    p, q = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    others = [
        *(kind([p], lr=0.1) for kind in (optim.SGD, optim.NAdam, Mine)),
        *(kind([p], weight_decay=0.1) for kind in (optim.Adam, optim.Adagrad)),
        *(kind([p], maximize=True) for kind in (optim.Adam, optim.Adagrad)),
        *(kind([p], amsgrad=True) for kind in (optim.Adam, optim.AdamW)),
        optim.Adam([p], weight_decay=0.1, decoupled_weight_decay=True),
        optim.Adagrad([p], lr_decay=0.1),
        optim.Adam([{"params": [p]}, {"params": [q], "lr": 0.1}]),
    ]
    assert [rule_of(each) for each in others] == [None] * len(others)
    adam = optim.Adam([p, q])
    assert rule_of(adam, [p, q]) == AdamRule(1e-8)
    assert rule_of(adam, [q, p]) is None and rule_of(optim.Adam([p]), [p, q]) is None
