"""svi.step(x, y): arguments as Pyro's SVI passes them on, under our objectives and Pyro's."""

import copy

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

import pyro_vae as pv

from .conditional import DATA, ByHand, ByName, Laws, parameters


def stepped(loss, call, build=ByName, steps=4):
    program = build()
    pyro.set_rng_seed(3)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 0.01}), loss)
    args, kwargs = call
    losses = [svi.step(*args, **kwargs) for _ in range(steps)]
    losses.append(svi.evaluate_loss(*args, **kwargs))
    return losses, parameters(program)


CALLS = {
    "positions": ((DATA["x"], DATA["y"]), {}),
    "names": ((), DATA),
    "mixed": ((DATA["x"],), {"y": DATA["y"]}),
    "dict": ((DATA,), {}),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    "objective",
    [
        pv.objectives.AEVB("A"),
        pv.objectives.IWAE(3),
        pv.objectives.StickingTheLanding(),
        pv.objectives.WakeSleep(),
        pv.objectives.MonteCarloEM(),
    ],
    ids=repr,
)
def test_our_objectives_take_the_arguments_of_a_step_of_svi(objective, call):
    """As the dict, whole, gives them."""
    ends = [
        stepped(copy.deepcopy(objective), call),
        stepped(copy.deepcopy(objective), ((DATA,), {}), ByHand),
    ]
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-6)
    for mine, theirs in zip(ends[0][1], ends[1][1], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_pyro_s_own_objective_takes_them_too():
    ends = [stepped(Trace_ELBO(), call)[0] for call in CALLS.values()]
    assert all(end == ends[0] for end in ends)
    ours = stepped(pv.objectives.AEVB("A"), CALLS["positions"])[0]
    assert ours == pytest.approx(ends[0], rel=1e-5)


def test_what_is_no_row_is_the_same_for_every_particle():
    """Numbers, None and tensors of other lengths, as the annealing factor of a step."""
    met = []

    class Annealed(ByName):
        def model(self, x, y, factor, table, note=None):
            met.append((float(factor), len(table), note))
            with poutine.scale(scale=1.0):
                self.laws.observe(x, y)

        def guide(self, x, y, factor, table, note=None):
            self.laws.recognise(x, y)

    call = ((DATA["x"], DATA["y"], torch.tensor(0.5), torch.ones(3)), {"note": "a"})
    losses, _ = stepped(pv.objectives.IWAE(4), call, Annealed)
    reference, _ = stepped(pv.objectives.IWAE(4), ((DATA,), {}), ByHand)
    assert losses == pytest.approx(reference, rel=1e-6)
    assert set(met) == {(0.5, 3, "a")}


def test_a_step_without_labels_is_the_step_of_x_alone():
    """As semi-supervised programs are trained: svi.step(xs, ys), then svi.step(xs)."""

    class Halfway(ByHand):
        def model(self, xs, ys=None):
            self.laws.observe(xs, torch.zeros(len(xs), 3) if ys is None else ys)

        def guide(self, xs, ys=None):
            self.laws.recognise(xs, torch.zeros(len(xs), 3) if ys is None else ys)

    objective = pv.objectives.AEVB("A")
    ends = [
        stepped(objective, call, Halfway)[0]
        for call in (((DATA["x"], None), {}), ((DATA["x"],), {}), ((DATA["x"],), {"ys": None}))
    ]
    assert ends[0] == pytest.approx(ends[1]) and ends[0] == pytest.approx(ends[2])
    labelled = stepped(objective, CALLS["positions"], Halfway)[0]
    assert labelled == pytest.approx(stepped(objective, ((DATA,), {}), ByHand)[0], rel=1e-6)


def test_plain_functions_take_them_inside_svi():
    laws = Laws()

    def model(x, y):
        pyro.module("laws", laws)
        laws.observe(x, y)

    pyro.set_rng_seed(3)
    optimizer = pyro.optim.Adam({"lr": 0.01})
    svi = SVI(model, laws.recognise, optimizer, pv.objectives.AEVB("A"))
    losses = [svi.step(DATA["x"], y=DATA["y"]) for _ in range(4)]
    pyro.clear_param_store()
    reference, _ = stepped(pv.objectives.AEVB("A"), ((DATA,), {}), ByHand)
    assert losses == pytest.approx(reference[:4], rel=1e-6)


def test_what_svi_is_not_given_is_said():
    program = ByName()
    svi = SVI(program.model, program.guide, pyro.optim.Adam({}), pv.objectives.AEVB())
    with pytest.raises(TypeError, match="none is a tensor"):
        svi.step(None, 1.0)
    with pytest.raises(TypeError, match=r"data\.rows"):
        svi.step(pv.datasets.from_array(DATA["x"]), DATA["y"])
