"""A callback that puts another tensor where a parameter, or an optimizer's state, was."""

import copy

import pytest
import torch
from torch import optim

import pyro_vae as pv

from .test_training import binary_rows, small_vae, weights

X = binary_rows(40, dtype=torch.float64)


def clamped(program, optimizer):
    for p in program.parameters():
        p.data = p.data.clamp(-0.1, 0.1)


def turned(program, optimizer):
    for p in program.parameters():
        if p.dim() == 2:
            p.data = (1.01 * p.data).t().contiguous().t()


def forgotten(program, optimizer):
    kept = copy.deepcopy(optimizer.state_dict())
    for state in kept["state"].values():
        state["exp_avg"].zero_()
    optimizer.load_state_dict(kept)


CHANGES = {f.__name__: f for f in (clamped, turned, forgotten)}


def trained(change, engine, count=1, times=1):
    """Weights of so many runs after 48 steps, in the midst of which a callback meddles."""
    held, done = [], []

    def optimizer(parameters):
        held.append(optim.Adam(parameters, lr=0.01))
        return held[-1]

    def meddle(record):
        replica = programs.index(record.program)
        if record.step >= 20 and done.count(replica) < times:
            done.append(replica)
            change(record.program, held[replica])

    programs = [small_vae(seed, dtype=torch.float64) for seed in range(count)]
    options = {"replicas": count} if count > 1 else {}
    runs = pv.fit(
        programs if count > 1 else programs[0], X, steps=48, batch_size=20, optimizer=optimizer,
        engine=engine, callbacks=[meddle], progress=False, **options,
    )  # fmt: skip
    assert done
    assert all(run.manifest["engine"] == engine for run in (runs if count > 1 else [runs]))
    return [weights(program) for program in programs]


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CHANGES)
def test_replicas_go_on_from_what_is_there_now(name):
    expected = trained(CHANGES[name], "pyro", 2)
    untouched = trained(lambda program, optimizer: None, "eager", 2)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(expected, untouched, strict=True))
    same(trained(CHANGES[name], "eager", 2), expected)


def test_machine_code_does_so_too():
    for change in CHANGES.values():
        same(trained(change, "compiled"), trained(change, "pyro"))
    same(trained(clamped, "compiled", times=9), trained(clamped, "pyro", times=9))
