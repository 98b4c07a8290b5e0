"""What a run works with beyond its arguments: globals, modules, bases of classes, containers."""

import collections
import functools
import types

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.optimizers import takes_a_step

from .saved_runs import HELD_OUT, Counting, fit, optim, small_vae
from .test_resume_refuses import Config, Method, holds

LambdaLR = optim.lr_scheduler.LambdaLR


SOURCE = """
def by_dict(step): return TABLE["factor"] ** step
def by_list(step): return ENTRIES[0] ** step
def by_tensor(step): return float(TENSOR) ** step
def by_array(step): return float(ARRAY[0]) ** step
def by_namespace(step): return SPACE.factor ** step
def by_class(step): return Own.factor ** step
def by_module(step): return mine.FACTOR ** step
def by_function_of_a_module(step): return mine.helper(step)
"""
MINE = "FACTOR = 0.9\ndef helper(step): return FACTOR ** step"


def scheduled(name, factor):
    """A schedule by a function that reads a global of its file."""
    mine = types.ModuleType("mine")
    exec(MINE.replace("0.9", str(factor)), vars(mine))
    seen = {
        "TABLE": {"factor": factor}, "ENTRIES": [factor], "TENSOR": torch.tensor(factor),
        "ARRAY": np.array([factor]), "SPACE": types.SimpleNamespace(factor=factor),
        "Own": type("Own", (), {"factor": factor, "__module__": "__main__"}), "mine": mine,
        "__name__": "__main__",
    }  # fmt: skip
    exec(SOURCE, seen)
    return {"schedule": lambda o: LambdaLR(o, seen[name])}


def based(factor):
    """An objective whose class does nothing that the class above does not."""
    source = (
        "class Above(Counting):\n"
        "    def terms(self, program, x, state):\n"
        "        loss, stats = super().terms(program, x, state)\n"
        f"        return {factor} * loss, stats\n"
        "class Below(Above):\n"
        "    def terms(self, program, x, state):\n"
        "        return super().terms(program, x, state)\n"
    )
    seen = {"Counting": Counting, "__name__": "__main__"}
    exec(source, seen)
    return {"objective": seen["Below"]()}


class Labelled(dict):
    label = "one's own"


Pair = collections.namedtuple("Pair", "first second")


def deep(value, levels=3):
    return functools.reduce(lambda inner, _: Config(inner), range(levels), value)


def carrying(value):
    program = small_vae()
    program.prior.table = value
    return {"program": program}


def evaluated(every, **options):
    return {"validation": HELD_OUT, "evaluate_every": every, **options}


PAIRS = {
    **{name: (scheduled(name, 0.9), scheduled(name, 0.8))
       for name in ("by_dict", "by_list", "by_tensor", "by_array", "by_namespace", "by_class",
                    "by_module", "by_function_of_a_module")},
    "a base class": (based(2), based(3)),
    "an array": (holds(np.ones(2)), holds(np.zeros(2))),
    "a named tuple": (holds(Pair(1, Config(1.0))), holds(Pair(1, Config(2.0)))),
    "a dict of one's own": (holds(Labelled(a=1)), holds(Labelled(a=2))),
    "deep down": (holds(deep(1.0)), holds(deep(2.0))),
    "a partial of a method": (
        holds(functools.partial(Method(1.0).scaled)), holds(functools.partial(Method(2.0).scaled))
    ),
    "a convolution": (
        holds([torch.nn.Conv2d(1, 1, 3, padding=1)]),
        holds([torch.nn.Conv2d(1, 1, 3, padding=2, dilation=2)]),
    ),
    "a list at a part of ours": (carrying([1.0]), carrying([2.0])),
    "a tensor at a part of ours": (carrying(torch.ones(2)), carrying(torch.zeros(2))),
    "evaluations that keep": (evaluated(1, keep="best"), evaluated(2, keep="best")),
    "evaluations that stop": (evaluated(1, early_stopping=3), evaluated(2, early_stopping=3)),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_another_run_is_refused_and_the_same_goes_on(tmp_path, name):
    made, other = ({**options} for options in PAIRS[name])
    fit(out=tmp_path, steps=2, **made)
    with pytest.raises(ValueError, match="holds another run: ") as refused:
        fit(out=tmp_path, steps=4, resume=True, **other)
    assert "\n" not in str(refused.value)
    assert fit(out=tmp_path, steps=4, resume=True, **made).manifest["steps"] == 4


class Scaled(torch.optim.SGD):
    """With an attribute that a copy of an optimizer has not, and noise of its own."""

    def __init__(self, parameters, lr=0.01):
        super().__init__(parameters, lr=lr)
        self.scale = 0.5

    def step(self, closure=None):
        self.param_groups[0]["lr"] = 0.01 * self.scale * float(torch.rand(()))
        return super().step(closure)


@pytest.mark.parametrize(
    "engine", ["pyro", "eager", pytest.param("compiled", marks=pytest.mark.slow)]
)
def test_an_optimizer_without_a_state_goes_on(tmp_path, engine):
    options = {"optimizer": torch.optim.SGD, "lr": 0.01, "engine": engine}
    fit(out=tmp_path, steps=2, **options)
    assert fit(out=tmp_path, steps=4, resume=True, **options).manifest["steps"] == 4


def test_an_optimizer_that_cannot_be_copied_goes_on_and_no_noise_is_used_up(tmp_path):
    options = {"optimizer": Scaled, "engine": "pyro"}
    fit(out=tmp_path, steps=2, **options)
    assert fit(out=tmp_path, steps=4, resume=True, **options).manifest["steps"] == 4
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer, before = Scaled([weight]), torch.get_rng_state()
    assert takes_a_step(optimizer, optimizer.state_dict())
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(weight, torch.ones(2))


def test_how_often_one_looks_may_change_where_it_decides_nothing(tmp_path):
    fit(out=tmp_path, steps=2, **evaluated(1, keep="last"))
    run = fit(out=tmp_path, steps=4, resume=True, **evaluated(2, keep="last"))
    assert run.manifest["steps"] == 4


def test_a_module_within_a_program_is_told_by_its_tuples(tmp_path):
    class Prior(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.zero = torch.nn.Parameter(torch.zeros(2))

        def forward(self):
            return dist.Normal(self.zero, 1.0).to_event(1)

    def made(**options):
        prior = Prior()
        prior.net = torch.nn.Conv2d(1, 1, 3, **options)
        return {"program": small_vae(prior=prior)}

    fit(out=tmp_path, steps=2, **made(padding=1))
    with pytest.raises(ValueError, match="dilation"):
        fit(out=tmp_path, steps=4, resume=True, **made(padding=2, dilation=2))
    fit(out=tmp_path, steps=4, resume=True, **made(padding=1))  # from another initialization


def test_the_line_on_which_a_lambda_stands_does_not_count(tmp_path):
    """It holds the budget, which may rise, and may be wrapped."""
    line = "run(steps={}, schedule=lambda o: LambdaLR(o, lambda step: 0.9 ** step))\n"
    for steps, text in ((2, line), (4, line), (5, line.replace(", schedule", ",\n  schedule"))):
        path = tmp_path / f"script_{steps}.py"
        path.write_text(text.format(steps))
        run = functools.partial(fit, out=tmp_path / "run", resume=steps > 2)
        code = compile(path.read_text(), str(path), "exec")
        exec(code, {"run": run, "LambdaLR": LambdaLR, "__name__": "__main__"})


def test_a_function_without_its_source_is_the_same_function(tmp_path):
    """A script that is given to the interpreter as text, and then written to a file."""
    source = "def factor(step):\n    return 0.9 ** step\n"
    path = tmp_path / "script.py"
    path.write_text(source)
    for steps, name in ((2, "<string>"), (4, str(path)), (5, "<string>")):
        seen = {"__name__": "__main__"}
        exec(compile(source, name, "exec"), seen)
        made = {"schedule": lambda o, f=seen["factor"]: LambdaLR(o, f)}
        fit(out=tmp_path / "run", steps=steps, resume=steps > 2, **made)
