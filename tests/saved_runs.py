"""A small run that the tests save, interrupt, go on with and load."""

import torch

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae
from pyro_vae.objectives import AEVB, Objective
from pyro_vae.objectives.base import State

optim = torch.optim


def small_vae(seed=0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    defaults = {"latent_dim": 2, "hidden_dim": 8, "init_std": None}
    return bernoulli_vae.build(6, **{**defaults, **options}).to(dtype)


def rows_of_pixels(n=50, seed=1):
    return torch.rand(n, 6, generator=torch.Generator().manual_seed(seed))


X = (rows_of_pixels() < 0.4).float()
HELD_OUT = (rows_of_pixels(30, 2) < 0.4).float()


class Counting(Objective):
    """Rows and shared state that every later number depends on."""

    refresh_every = 3

    def init(self, program, x):
        return State({"seen": torch.zeros(len(x))}, {"total": torch.zeros(())})

    def refresh(self, program, x, state):
        return {"seen": state.rows["seen"] + 1}, {"refreshed": torch.ones(len(x))}

    def terms(self, program, x, state):
        loss, stats = AEVB("A").terms(program, x, state)
        loss = loss * (1 + state.rows["seen"]) * (1 + 0.01 * state.shared["total"])
        return loss, {**stats, "seen": state.rows["seen"]}

    def advance(self, shared, means):
        return {"total": shared["total"] + means.get("refreshed", 0.25)}


def one_cycle(optimizer):
    return optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=40)


def two_schedules(optimizer):
    s = optim.lr_scheduler
    return s.SequentialLR(
        optimizer, [s.ConstantLR(optimizer), s.MultiStepLR(optimizer, [2, 3])], [4]
    )


def fit(program=None, x=X, **options):
    options = {"steps": 19, "batch_size": 16, "seed": 3, "engine": "pyro", **options}
    return pv.fit(small_vae() if program is None else program, x, **options)


def assert_same(a, b, path=""):
    """Equal to the last bit, wall time aside."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for name in a.keys() - {"seconds"}:
            assert_same(a[name], b[name], f"{path}/{name}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for number, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{path}/{number}")
    else:
        assert a == b or (a != a and b != b), path
