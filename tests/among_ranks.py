"""Trainings for ``test_ranks.py``, in W processes of one: ``among_ranks.py W OUT [CASE ...]``.

The processes are forked once all is imported, which is where a start of Python spends its time.
Each writes what became of each case: parameters, history and state, or the error.
"""

import functools
import os
import signal
import sys
import types
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae import objectives
from pyro_vae.models import bayesian_vae, bernoulli_vae
from pyro_vae.noise import seeded

X = (torch.rand(41, 12, generator=torch.Generator().manual_seed(1)) > 0.5).double()


def small(build=bernoulli_vae.build, **options):
    with seeded(3):
        return build(12, latent_dim=2, hidden_dim=8, **options).double()


class Normed(pv.Program):
    """Batch statistics, which parts of a batch do not have."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.decoder = nn.Linear(2, 12)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


class Shifted(Normed):
    """Rows by themselves, and a number that the model adds."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(12, 2)
        self.held = types.SimpleNamespace(shift=0.0)  # which no list of plain values has

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x) + self.held.shift, 1.0).to_event(1))


def shifts(record):
    record.program.held.shift = 5.0


def fit(program=None, x=X, objective=None, **options):
    program = small() if program is None else program
    defaults = {"steps": 7, "batch_size": 12, "engine": "eager", "progress": False, "seed": 5}
    return pv.fit(program, x, objective, **(defaults | options))


def plain(*args, **options):
    """Without a capture, which takes a second."""
    return fit(*args, engine="pyro", **options)


def rank():
    return int(os.environ.get("RANK", "0"))


def raising(record):
    raise LookupError("the callback's own")


def interrupting(record):
    os.kill(os.getpid(), signal.SIGINT)


def nested(record):
    plain(steps=2)


# What one process does as well.
ALIKE = {
    "eager": fit,
    "pyro": lambda: plain(batch_size=13),
    "fewer rows than processes": lambda: plain(batch_size=1),
    "several draws": lambda: fit(objective=objectives.IWAE(3)),
    "Pyro's own": lambda: plain(objective=TraceMeanField_ELBO()),
    "state of each datum": lambda: fit(objective=objectives.MonteCarloEM()),
    "two losses": lambda: plain(objective=objectives.WakeSleep()),
    "shared latents": lambda: fit(small(bayesian_vae.build, num_data=41), lr=0.001),
    "validation, clip, weights": lambda: plain(
        validation=X[:9], evaluate_every=2, keep="best", clip=1.0, weight_prior=3.0,
        optimizer=torch.optim.Adam, lr=0.01,
    ),
    "a plateau": lambda: plain(
        validation=X[:9], evaluate_every=1, lr=0.5,
        schedule=functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0),
    ),
    "replicas": lambda: plain(replicas=2)[1],
    "a callback that trains": lambda: plain(callbacks=[nested]),
    "a callback that ends it": lambda: plain(callbacks=[lambda record: record.step >= 3]),
}  # fmt: skip
# What all of them refuse, in the same words.
REFUSED = {
    "batch norm": lambda: plain(Normed().double()),
    "other data": lambda: plain(x=X if rank() == 0 else 1 - X),
    "other seed": lambda: plain(seed=rank()),
    "a callback's error": lambda: plain(callbacks=[raising]),
    "one rank's error": lambda: plain(x=X if rank() == 0 else "nothing"),
    "not finite": lambda: fit(lr=1e300, optimizer=torch.optim.SGD),
    "a callback that changes it": lambda: fit(Shifted().double(), callbacks=[shifts]),
    "interrupted": lambda: plain(steps=400, callbacks=[interrupting]),
}
# What takes a compiler, and so is asked for by name.
COMPILED = {"compiled": lambda: fit(engine="compiled")}


def outcome(case):
    try:
        run = (ALIKE | REFUSED | COMPILED)[case]()
    except BaseException as error:
        kind = next(k for k in type(error).__mro__ if k.__module__ == "builtins")
        return {"error": f"{kind.__name__}: {str(error) or kind.__name__}"}
    return {
        "parameters": {n: p.detach().clone() for n, p in run.program.named_parameters()},
        "bounds": run.history.drop(columns="seconds").to_dict("list"),
        "state": run.state.rows,
        "manifest": {n: run.manifest[n] for n in ("stopped", "engine", "kept_step")},
    }


def main(size, out, *cases):
    children = []
    for number in range(size):
        if (child := os.fork()) == 0:
            try:
                os.environ["RANK"] = str(number)
                store = torch.distributed.FileStore(str(out / "store"), size)
                torch.distributed.init_process_group(
                    "gloo", store=store, rank=number, world_size=size
                )
                found = {case: outcome(case) for case in cases or ALIKE | REFUSED}
                torch.save(found, out / f"{number}.pt")
                torch.distributed.barrier()
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
