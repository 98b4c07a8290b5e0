"""Threads that call at the same time get what each would have got alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pyro
import pytest
import torch

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae, gaussian_vae, linear_gaussian
from pyro_vae.turns import in_turn, out_of_turn
from pyro_vae.turns.state import ProcessState

X = (torch.rand(40, 6, generator=torch.Generator().manual_seed(0)) < 0.4).float()
WAIT = 60  # seconds after which a thread is held to be stuck


def small(seed, build=bernoulli_vae.build, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build(6, latent_dim=2, **options)


def net(seed):
    return small(seed, hidden_dim=5)


def train(vae, engine="eager", steps=12, **options):
    return pv.fit(vae, X, steps=steps, batch_size=20, engine=engine, progress=False, **options)


def learnt(vae, *options):
    return torch.cat([p.detach().flatten() for p in train(vae, *options).program.parameters()])


def compared(build):
    """Two objectives, each trained and scored; of every kind of run a number."""
    data = pv.datasets.split(pv.datasets.from_array(X))
    found = pv.compare(
        data, builds={"small": build}, objectives=[pv.objectives.AEVB(), pv.objectives.IWAE(3)],
        seeds=1, samples=80, batch_size=20, engine="pyro", proposal="guide", num_particles=10,
        progress=False,
    )  # fmt: skip
    return torch.from_numpy(found.dataset["log_evidence"].values)


# A program, which is made beforehand, and what is done with it.
CALLS = {
    "elbo": (net, lambda vae: pv.elbo(vae, X, batch_size=8)),
    "elbo of normals": (
        lambda seed: small(seed, gaussian_vae.build, hidden_dim=4),
        lambda vae: pv.elbo(vae, X),
    ),
    "sample": (net, lambda vae: pv.sample(vae, 30)),
    "fit": (net, learnt),
    "fit by Pyro": (net, lambda vae: learnt(vae, "pyro", 4)),
    "log_evidence": (
        lambda seed: small(seed, linear_gaussian.build),
        lambda vae: pv.log_evidence(vae, X, num_particles=20, batch_size=10).value,
    ),
    "compare": (
        lambda seed: lambda: net(seed),
        lambda build: compared(build),
    ),
    "encode": (net, lambda vae: pv.encode(vae, X, num_draws=3)),
    "reconstruct": (net, lambda vae: pv.reconstruct(vae, X, num_draws=2)),
}
pytestmark = pytest.mark.filterwarnings("ignore")


def at_once(work, threads):
    """All answers of functions of no arguments, several at a time."""
    gate = threading.Barrier(threads)

    def begin(function):
        gate.wait(WAIT)
        return function()

    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(begin, function) for function in work]
        return [future.result(WAIT) for future in waiting]


def checked(calls, threads):
    def work():
        made = [(CALLS[name][0](seed), CALLS[name][1]) for name, seed in calls]
        return [lambda p=program, c=call: c(p) for program, call in made]

    expected = [call() for call in work()]
    calls_at_once = work()
    before = ProcessState.now()
    got = at_once(calls_at_once, threads)
    assert unchanged(before)
    return sum(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def unchanged(before):
    after = ProcessState.now()
    generators = zip(before.generators, after.generators, strict=True)
    return (
        (before.stack, before.dims, before.validation, before.onednn, before.dtype, before.modes)
        == (after.stack, after.dims, after.validation, after.onednn, after.dtype, after.modes)
        and all(a is b for a, b in zip(before.store, after.store, strict=True))
        and all(torch.equal(a, b) for a, b in generators)
        and before.patched == after.patched
    )


def test_two_threads_get_what_each_gets_alone():
    calls = [(name, 1) for name in CALLS] + [("sample", 2), ("elbo", 3), ("compare", 4)]
    assert checked(calls, 2) == len(calls)


@pytest.mark.slow
def test_ninety_calls_from_two_threads_and_from_nine_are_right():
    calls = [(name, seed) for seed in range(10) for name in CALLS]
    assert checked(calls, 2) == checked(calls, 9) == 90


def test_a_long_training_is_no_obstacle_to_other_threads():
    """Between two steps the other has its turn; parameters are those of one step, whole."""
    vae = net(0)
    seen, enough = [], threading.Event()

    def look(record):
        seen.append(record.step)
        return enough.is_set()

    thread = threading.Thread(target=lambda: train(vae, steps=10**4, callbacks=[look]))
    thread.start()
    try:
        answers = [pv.elbo(vae, X) for _ in range(5)]
        pv.sample(net(1), 5)
    finally:
        enough.set()
        thread.join(WAIT)
    assert not thread.is_alive()
    assert all(bound.isfinite().all() for bound in answers)
    assert all(p.requires_grad and isinstance(p, torch.nn.Parameter) for p in vae.parameters())
    assert vae.training


@pytest.mark.parametrize("how", ["fit", "log_evidence"])
def test_a_callback_may_wait_for_another_thread(how):
    alone, other, got = pv.elbo(net(1), X), net(1), []

    def wait(record):
        with ThreadPoolExecutor(1) as pool:
            got.append(pool.submit(pv.elbo, other, X).result(WAIT))

    def run(callback):
        program = small(2, linear_gaussian.build)
        if how == "fit":
            return pv.fit(program, X, steps=3, engine="eager", callbacks=[callback],
                          progress=False).history["loss"].to_numpy()  # fmt: skip
        return pv.log_evidence(
            program, X, num_particles=20, batch_size=20, progress=callback
        ).value.numpy()

    assert (run(wait) == run(lambda record: None)).all()
    assert got
    assert all(torch.equal(bound, alone) for bound in got)


def test_a_turn_is_handed_on_in_the_order_of_asking():
    """Who has just had the turn, and wants it at once again, does not overtake who waits."""
    order, stop = [], threading.Event()

    def often():
        while not stop.is_set():
            in_turn(order.append, "often")

    thread = threading.Thread(target=often)
    thread.start()
    for _ in range(20):
        in_turn(order.append, "mine")
        turns = len(order)
        while len(order) == turns and not stop.is_set():
            pass
    stop.set()
    thread.join(WAIT)
    assert order.count("mine") == 20


def test_a_users_own_pyro_code_can_take_a_turn():
    expected = pv.elbo(net(1), X)

    def model():
        with pyro.plate("a", 3):
            return pyro.sample("z", pyro.distributions.Normal(0.0, 1.0))

    def traced():
        trace = pyro.poutine.trace(model).get_trace()
        return set(trace.nodes) - {"_INPUT", "_RETURN"}

    vae = net(1)
    work = [lambda: in_turn(traced), lambda: pv.elbo(vae, X)] * 6
    for number, found in enumerate(at_once(work, 2)):
        assert found == {"a", "z"} if number % 2 == 0 else torch.equal(found, expected)


def test_a_turn_within_a_turn_is_the_same_and_is_laid_down_whole():
    def inner():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(in_turn, lambda: 5).result(WAIT)

    assert in_turn(in_turn, out_of_turn, inner) == 5
    assert in_turn(in_turn, lambda: 4) == 4
