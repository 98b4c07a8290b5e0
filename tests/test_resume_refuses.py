"""A run does not go on with what was not made as the saved one was; with what was, it does."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.objectives import AEVB

from .saved_runs import HELD_OUT, Counting, fit, optim, small_vae

S = optim.lr_scheduler


def scheduled(kind, **options):
    return {"schedule": lambda o: kind(o, **options)}


class OwnSchedule(S.LRScheduler):
    """Its state_dict leaves out what it was made with."""

    def __init__(self, optimizer, factor):
        self.factor = factor
        super().__init__(optimizer)

    def get_lr(self):
        return [lr * self.factor**self.last_epoch for lr in self.base_lrs]

    def state_dict(self):
        return {"last_epoch": self.last_epoch}


def in_sequence(optimizer, factor):
    parts = [S.LambdaLR(optimizer, lambda step: 1), OwnSchedule(optimizer, factor)]
    return S.SequentialLR(optimizer, parts, [2])


class OwnOptimizer(optim.SGD):
    def __init__(self, params, lr=0.01, rho=0.0):
        super().__init__(params, lr=lr)
        self.rho = rho


def helped(scale):
    """A factor by way of a function that the schedule's function calls."""

    def helper(step):
        return scale

    return {"schedule": lambda o: S.LambdaLR(o, [lambda step: helper(step)])}


def in_groups(swapped):
    def make(parameters):
        first, second = parameters[::2], parameters[1::2]
        if swapped:
            first, second = second, first
        return optim.SGD([{"params": first, "lr": 0.01}, {"params": second, "lr": 0.02}])

    return {"optimizer": make}


def frozen(name):
    program = small_vae()
    for n, p in program.named_parameters():
        p.requires_grad_(not n.startswith(name))
    return {"program": program}


class Config:
    def __init__(self, scale):
        self.inner = {"scale": [scale]}


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale


def library_law(scale):
    return dist.MultivariateNormal(torch.zeros(2), scale_tril=scale * torch.eye(2))


class Held(torch.nn.Module):
    """A prior that holds an object that no record tells of."""

    def __init__(self, held):
        super().__init__()
        self.zero, self._held = torch.nn.Parameter(torch.zeros(2)), held

    def forward(self):
        return pyro.distributions.Normal(self.zero, 1.0).to_event(1)


class Method:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self):
        return self.scale

    def scaled(self):
        return self.scale


def holds(held):
    return {"program": small_vae(prior=Held(held))}


class Weighed(Counting):
    def __init__(self, by):
        super().__init__()
        self.by = Config(by)


PAIRS = {
    "gamma": (scheduled(S.ExponentialLR, gamma=0.9), scheduled(S.ExponentialLR, gamma=0.8)),
    "total steps": (
        scheduled(S.OneCycleLR, max_lr=0.1, total_steps=40, cycle_momentum=False),
        scheduled(S.OneCycleLR, max_lr=0.1, total_steps=50, cycle_momentum=False),
    ),
    "max_lr, which is in the optimizer": (
        scheduled(S.OneCycleLR, max_lr=0.1, total_steps=40, cycle_momentum=False),
        scheduled(S.OneCycleLR, max_lr=0.2, total_steps=40, cycle_momentum=False),
    ),
    "a lambda": (
        scheduled(S.LambdaLR, lr_lambda=lambda step: 0.5),
        scheduled(S.LambdaLR, lr_lambda=lambda step: 0.5 + 0 * step),
    ),
    "a lambda's helper": (helped(0.5), helped(0.25)),
    "a schedule of one's own": (
        scheduled(OwnSchedule, factor=0.9),
        scheduled(OwnSchedule, factor=0.8),
    ),
    "within a sequence": (scheduled(in_sequence, factor=0.9), scheduled(in_sequence, factor=0.8)),
    "an optimizer's groups": (in_groups(False), in_groups(True)),
    "an optimizer of one's own": (
        {"optimizer": functools.partial(OwnOptimizer, lr=0.01, rho=0.1)},
        {"optimizer": functools.partial(OwnOptimizer, lr=0.01, rho=0.2)},
    ),
    "frozen parameters": (frozen("likelihood"), frozen("posterior")),
    "an objective's argument": (
        {"objective": AEVB("A")},
        {"objective": AEVB("A", num_particles=2)},
    ),
    "an objective of one's own": ({"objective": Weighed(1.0)}, {"objective": Weighed(2.0)}),
    "an object": (holds(Config(1.0)), holds(Config(2.0))),
    "slots": (holds(Slotted(1.0)), holds(Slotted(2.0))),
    "objects in a list": (holds([Config(1.0)]), holds([Config(2.0)])),
    "a law of torch": (holds(library_law(1.0)), holds(library_law(2.0))),
    "a callable object": (holds(Method(1.0)), holds(Method(2.0))),
    "a bound method": (holds(Method(1.0).scaled), holds(Method(2.0).scaled)),
    "a partial": (
        holds(functools.partial(torch.add, 1.0)),
        holds(functools.partial(torch.add, 2.0)),
    ),
    "a module in a list": (holds([torch.nn.ELU(1.0)]), holds([torch.nn.ELU(2.0)])),
    "soft targets": ({"program": small_vae()}, {"program": small_vae(soft_targets=True)}),
    "prior precision": ({"program": small_vae()}, {"program": small_vae(prior_precision=2.0)}),
    "evaluations that a schedule is told of": (
        {"schedule": S.ReduceLROnPlateau, "validation": HELD_OUT, "evaluate_every": 2},
        {"schedule": S.ReduceLROnPlateau, "validation": HELD_OUT, "evaluate_every": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_another_run_is_refused_and_the_same_goes_on(tmp_path, name):
    made, other = ({**options} for options in PAIRS[name])
    lr = {} if "optimizer" in made or name == "a law of torch" else {"lr": 0.02}
    fit(out=tmp_path, steps=2, **made, **lr)
    with pytest.raises(ValueError, match="holds another run: ") as refused:
        fit(out=tmp_path, steps=4, resume=True, **other, **lr)
    assert "\n" not in str(refused.value)
    again = fit(out=tmp_path, steps=4, resume=True, **made, **lr)
    assert again.manifest["steps"] == 4


def test_a_held_object_that_nothing_can_compare_is_no_reason_to_refuse(tmp_path):
    """A lock, a generator of numbers, an open file: told by their class alone."""
    import threading

    with open(tmp_path / "log", "w") as file:
        for steps, held in ((2, [threading.Lock(), file]), (4, [threading.Lock(), file])):
            run = fit(out=tmp_path / "run", steps=steps, resume=steps > 2, **holds(held))
    assert run.manifest["steps"] == 4
    with pytest.raises(ValueError, match="holds another run"):
        fit(out=tmp_path / "run", steps=6, resume=True, **holds([Config(1.0)]))


def test_a_law_that_was_looked_at_is_the_same_law(tmp_path):
    """What it computed and remembers is no other law."""
    fit(out=tmp_path, steps=2, **holds(library_law(1.0)))
    looked = library_law(1.0)
    assert looked.covariance_matrix.shape == looked.precision_matrix.shape
    assert fit(out=tmp_path, steps=4, resume=True, **holds(looked)).manifest["steps"] == 4
