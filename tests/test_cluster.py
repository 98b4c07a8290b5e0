"""Sweeps on a Dask cluster: workers die, sweeps are stopped, and no cell is lost or done twice."""

import os
import pickle
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import pyro_vae as pv
from pyro_vae import cluster
from pyro_vae.inference_data import pieces
from pyro_vae.models import bayesian_vae, bernoulli_vae, linear_gaussian
from pyro_vae.predictive.simulating import simulate

from .quickly import slowly
from .test_inference_data_files import groups_of

distributed = pytest.importorskip("distributed", reason="needs pyro-vae[cluster]")
cloudpickle = pytest.importorskip("cloudpickle")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Dask's own clean-up


def squares(cell, folder, log):
    """Note that it runs, and whether it had a result already, by a line that appears at once."""
    with open(log, "a") as file:
        done = "again" if (folder / cluster.RESULT).exists() else "first"
        file.write(f"{done} {cell['number']}\n")
    time.sleep(cell["seconds"])
    return {"square": np.array(cell["number"] ** 2)}


def cells_of(number, seconds=0.0):
    return {f"cell {i}": {"number": i, "seconds": seconds} for i in range(number)}


@pytest.fixture(scope="module")
def workers():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


def pids(client):
    """Of the workers, as their nannies know them: a call to one that is dying waits for ever."""
    return [nanny.pid for nanny in client.cluster.workers.values() if nanny.pid]


def runs(log):
    return [line.split() for line in log.read_text().splitlines()]


def swept_under_fire(client, folder, number, every, seconds):
    """Results of a sweep of which every so many results a worker is killed."""
    log, results, killed = folder / "log", {}, 0
    log.touch()
    running = cluster.sweep(
        squares, cells_of(number, seconds), out=folder / "out", cluster=client, shared=(log,)
    )
    for name, arrays in running:
        if name in results:
            raise ValueError(f"{name} came twice")
        results[name] = int(arrays["square"])
        if len(results) % every == 0 and len(results) < number:
            client.wait_for_workers(1)
            os.kill(pids(client)[0], signal.SIGKILL)
            killed += 1
    return results, runs(log), killed


def waits(cell, folder, log, gate):
    while cell["number"] == 8 and not gate.exists():
        time.sleep(0.02)
    return squares(cell, folder, log)


def test_results_come_as_they_are_done_and_a_stopped_sweep_goes_on(workers, tmp_path):
    cells = dict(reversed(cells_of(9).items()))  # the one that waits is begun first
    log, gate = tmp_path / "log", tmp_path / "gate"
    options = {"out": tmp_path / "out", "cluster": workers, "shared": (log, gate)}
    workers.wait_for_workers(2)
    running = cluster.sweep(waits, cells, **options)
    first = [next(running)[0] for _ in range(4)]
    assert "cell 8" not in first
    running.close()
    gate.touch()
    names = [name for name, _ in cluster.sweep(waits, cells, **options)]
    assert sorted(names) == sorted(cells)
    assert {word for word, _ in runs(log)} == {"first"}


def test_what_is_done_needs_no_cluster(workers, tmp_path):
    options = {"out": tmp_path / "out", "shared": (tmp_path / "log",)}
    dict(cluster.sweep(squares, cells_of(2), cluster=workers, **options))
    again = dict(cluster.sweep(squares, cells_of(2), cluster="tcp://127.0.0.1:1", **options))
    assert int(again["cell 1"]["square"]) == 1


def test_workers_that_do_not_see_the_folder_send_their_files(workers, tmp_path, monkeypatch):
    def writes(cell, folder):
        (folder / "run").mkdir()
        (folder / "run" / "notes.txt").write_text(str(folder))
        return {"cell": np.array(cell)}

    monkeypatch.setattr(Path, "touch", lambda self, **_: None)  # so no worker knows the folder
    ((_, arrays),) = cluster.sweep(writes, {"a": 3}, out=tmp_path, cluster=workers)
    assert int(arrays["cell"]) == 3
    said = (tmp_path / cluster.folder_of("a") / "run" / "notes.txt").read_text()
    assert not said.startswith(str(tmp_path))


def test_an_error_is_the_cells_own_and_the_rest_stays_done(workers, tmp_path):
    def fails(cell, folder):
        if cell == 1:
            raise LookupError("nothing there")
        return {"cell": np.array(cell)}

    with pytest.raises(LookupError, match="nothing there") as caught:
        list(cluster.sweep(fails, {"a": 0, "b": 1}, out=tmp_path, cluster=workers))
    assert "in cell b" in caught.value.__notes__[0]


def test_other_settings_and_damage_are_refused(workers, tmp_path):
    def gives(cell, folder):
        return {"cell": np.array(cell)}

    options = {"out": tmp_path, "cluster": workers}
    list(cluster.sweep(gives, {"a": 0}, made_of={"a": "one"}, **options))
    with pytest.raises(ValueError, match="made of other data, models or settings"):
        list(cluster.sweep(gives, {"a": 0}, made_of={"a": "another"}, **options))
    (tmp_path / cluster.folder_of("a") / cluster.RESULT).write_bytes(b"PK")
    with pytest.raises(ValueError, match="is damaged"):
        list(cluster.sweep(gives, {"a": 0}, made_of={"a": "one"}, **options))


def test_no_cluster_is_said_in_a_line(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="where no scheduler answers"):
        list(cluster.sweep(squares, cells_of(1), out=tmp_path, cluster="nonsense"))
    with pytest.raises(ValueError, match="a number of processes"):
        list(cluster.sweep(squares, cells_of(1), out=tmp_path, cluster=0))


def test_a_worker_hands_on_what_was_sent_and_not_what_it_computes_with():
    """A program is probed with other parameters meanwhile, which another worker must not get."""
    program = nn.Linear(2, 1)
    work = cluster._Work(cloudpickle.dumps((squares, (program,))))
    with torch.no_grad():
        work.opened()[1][0].weight.fill_(9.0)
    other = pickle.loads(pickle.dumps(work))
    assert torch.equal(other.opened()[1][0].weight, program.weight)
    assert work.opened() is work.opened()


def closed_client():
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as local:
        client = distributed.Client(local)
        client.close()
        return client


def closed_cluster():
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as local:
        return local


@pytest.mark.parametrize("made", [closed_client, closed_cluster])
def test_a_cluster_that_is_closed_is_refused_in_a_line(made, tmp_path):
    with pytest.raises(ValueError, match="make another"):
        list(cluster.sweep(squares, cells_of(1), out=tmp_path / "out", cluster=made()))
    assert not (tmp_path / "out").exists()


def test_a_program_that_cannot_be_sent_is_refused_in_a_line(workers):
    program = linear_gaussian.build(4, latent_dim=1)
    program.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"cannot be packed \(.*lock.*or do without cluster"):
        pv.log_evidence(program, torch.zeros(3, 4), cluster=workers)


@pytest.fixture
def threads():
    """A cluster whose workers are threads of this process."""
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=3, processes=False, dashboard_address=":0"
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


def test_workers_that_are_threads_of_this_process_have_their_turn(threads, monkeypatch):
    """Before, a comparison trained from other parameters, and refining waited for ever."""
    result, alone = compare(cluster=threads), compare(progress=False)
    for name in ("bound", "log_evidence"):
        np.testing.assert_allclose(result.dataset[name], alone.dataset[name], rtol=1e-4)
    monkeypatch.setattr(pieces, "PIECE", 10)
    program, x, options = with_own_latents()
    options |= {"num_draws": 6, "batch_size": 5, "progress": False}
    assert_same_draws(program, x, options, threads)


def assert_all_once(results, ran, killed, number):
    assert results == {f"cell {i}": i * i for i in range(number)}
    assert {word for word, _ in ran} == {"first"}
    # Of those that were begun twice each was in hand when a worker was killed.
    assert number <= len(ran) <= number + 2 * killed


def test_a_killed_worker_loses_nothing_and_no_cell_is_done_twice(workers, tmp_path):
    results, ran, killed = swept_under_fire(workers, tmp_path, 40, every=25, seconds=0.01)
    assert killed == 1
    assert_all_once(results, ran, killed, 40)


@pytest.mark.slow
def test_a_thousand_cells_with_a_worker_killed_every_fifty(workers, tmp_path):
    results, ran, killed = swept_under_fire(workers, tmp_path, 1000, every=50, seconds=0.01)
    assert killed == 19
    assert_all_once(results, ran, killed, 1000)


# --- comparisons ----------------------------------------------------------------------------------


def build():
    return bernoulli_vae.build(12, latent_dim=2, hidden_dim=8)


def compare(**options):
    x = (torch.rand(60, 12, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    data = pv.datasets.split(pv.datasets.from_array(x))
    return pv.compare(
        data, builds={"small": build}, objectives=[pv.objectives.AEVB()], seeds=2,
        samples=100, batch_size=20, proposal="guide", num_particles=20, engine="pyro",
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def compared(workers, tmp_path_factory):
    out, came = tmp_path_factory.mktemp("compared"), []
    result = compare(cluster=workers, out=out, arrived=lambda key, score: came.append(key))
    return result, out, came


def test_a_comparison_on_a_cluster_is_that_of_one_process(compared):
    result, _, came = compared
    alone = compare(progress=False)
    assert sorted(came) == sorted(alone.runs) == sorted(result.runs)
    for name in ("bound", "log_evidence", "khat", "samples", "curve_bound"):
        np.testing.assert_allclose(result.dataset[name], alone.dataset[name], rtol=1e-4)


def test_a_stopped_comparison_goes_on_and_makes_no_run_twice(compared, workers):
    result, out, _ = compared
    lost = next(path for path in out.iterdir() if path.is_dir())
    (lost / cluster.RESULT).unlink()
    kept = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors") if lost not in p.parents}
    again = compare(cluster=workers, out=out)
    assert kept and all(p.stat().st_mtime_ns == time for p, time in kept.items())
    assert again.dataset.drop_vars(["seconds", "curve_seconds"]).identical(
        result.dataset.drop_vars(["seconds", "curve_seconds"])
    )


def test_another_comparison_is_refused(compared, workers):
    _, out, _ = compared
    with pytest.raises(ValueError, match="made of other data, models or settings"):
        compare(cluster=workers, out=out, lr=0.5)
    with pytest.raises(ValueError, match="belong to a cluster"):
        compare(out=out)


# --- evidence -------------------------------------------------------------------------------------


def test_evidence_by_rows_is_that_of_one_process_up_to_its_error(workers):
    program = linear_gaussian.build(4, latent_dim=1)
    x = torch.randn(1030, 4, generator=torch.Generator().manual_seed(2))
    options = {"num_particles": 200, "progress": False}
    alone = pv.log_evidence(program, x, **options)
    found = pv.log_evidence(program, x, cluster=workers, **options)
    assert len(found.value) == 1030 and found.measured == alone.measured
    exact = program.log_evidence(x).double()
    error = (found.value - exact) / found.standard_error.clamp_min(1e-3)
    assert float((error.abs() < 5).double().mean()) > 0.98
    pieces = found.value - exact
    assert not torch.allclose(pieces[:500], pieces[500:1000]), "pieces share their noise"


REFUSED = {
    "too few draws": ({"proposal": "hmc", "num_draws": 4}, "num_draws"),
    "short truths": (
        {"method": "sandwich", "true_latents": {"z": np.zeros((400, 1))}},
        r"shape \(400, 1\).*expected 501 rows",
    ),
    "a number": ({"method": "sandwich", "true_latents": {"z": 3}}, r"shape \(\).*501 rows"),
    "no dict": ({"method": "sandwich", "true_latents": torch.zeros(501, 1)}, "a dict by site"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_before_anything_is_sent(name):
    options, said = REFUSED[name]
    program = linear_gaussian.build(4, latent_dim=1)
    with pytest.raises((ValueError, TypeError), match=said):
        pv.log_evidence(program, torch.zeros(501, 4), cluster="tcp://127.0.0.1:1", **options)


def test_true_latents_that_are_arrays_go_to_a_cluster(workers):
    program = linear_gaussian.build(4, latent_dim=1).double()
    pairs = simulate(program, 20, like=rows(2), seed=3)
    truths = {name: value.numpy() for name, value in pairs.latents.items()}
    found = pv.log_evidence(
        program, pairs.x, method="sandwich", true_latents=truths, num_temperatures=8,
        progress=False, cluster=workers,
    )  # fmt: skip
    assert len(found.value) == 20


@pytest.mark.slow
def test_a_diagnosis_takes_its_log_p_of_all_data_from_a_cluster(workers):
    program = linear_gaussian.build(4, latent_dim=1)
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(2))
    options = {"num_particles": 20, "num_simulations": 20, "num_close": 1, "progress": False}
    found = pv.diagnose(program, x, cluster=workers, **options)
    weights = pv.log_evidence(program, x, num_particles=20, seed=0, progress=False, cluster=workers)
    assert torch.equal(found.parts["weights"].evidence.value, weights.value)
    alone = pv.log_evidence(program, x, num_particles=20, seed=0, progress=False)
    assert not torch.equal(alone.value, weights.value)
    assert found.parts["misspecification"] is not None


# --- draws ----------------------------------------------------------------------------------------


def rows(number):
    return torch.randn(number, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def with_own_latents():
    program = linear_gaussian.build(4, latent_dim=1).double()
    return program, rows(17), {"predictions": rows(11) + 1, "num_prior": 3, "refined": "psis"}


def with_shared_latents():
    program = bayesian_vae.build(4, latent_dim=2, hidden_dim=3, num_data=25).double()
    return program, (rows(25) > 0).double(), {"predictions": (rows(11) > 0).double()}


@pytest.mark.filterwarnings("ignore:khat exceeds:pyro_vae.PyroVaeWarning")
@pytest.mark.parametrize("build", [with_own_latents, slowly(with_shared_latents)])
def test_draws_are_those_of_one_process(workers, monkeypatch, build):
    """The noise of a batch goes by its number, wherever it is drawn; the last one is short.

    (Its third batch a process draws by a graph, so by other roundings.)
    """
    monkeypatch.setattr(pieces, "PIECE", 10)
    program, x, options = build()
    options |= {"num_draws": 6, "batch_size": 5, "progress": False}
    assert_same_draws(program, x, options, workers)


def assert_same_draws(program, x, options, client):
    alone = groups_of(pv.to_inference_data(program, x, **options))
    found = groups_of(pv.to_inference_data(program, x, cluster=client, **options))
    assert list(found) == list(alone)
    for name, group in alone.items():
        xr.testing.assert_allclose(found[name].drop_attrs(), group.drop_attrs(), rtol=1e-10)
