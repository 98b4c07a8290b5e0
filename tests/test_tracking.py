"""Experiment trackers: sbi's adapters as they are, under every engine, and never in the way."""

import json
import signal
import sys
import types

import pandas as pd
import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.models import bernoulli_vae, gaussian_vae
from pyro_vae.training import CSVTracker

X = (torch.rand(60, 6, generator=torch.Generator().manual_seed(0)) < 0.5).float()
OPTIONS = {"steps": 8, "batch_size": 20, "progress": False}


# --- adapters, as they stand in sbi's sbi/utils/tracking.py and its how-to guide 22 ---------------


class TensorBoardTracker:
    """Adapter for TensorBoard SummaryWriter."""

    def __init__(self, summary_writer):
        self._writer = summary_writer

    @property
    def log_dir(self):
        return self._writer.log_dir

    def log_metric(self, name, value, step=None):
        self._writer.add_scalar(tag=name, scalar_value=value, global_step=step)

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.log_metric(name=name, value=value, step=step)

    def log_params(self, params):
        for name, value in params.items():
            self._writer.add_text(tag=f"params/{name}", text_string=str(value))

    def add_figure(self, name, figure, step=None):
        self._writer.add_figure(tag=name, figure=figure, global_step=step)

    def flush(self):
        self._writer.flush()


class WandBAdapter:
    log_dir = None

    def __init__(self, run):
        self._run = run

    def log_metric(self, name, value, step=None):
        self._run.log({name: value}, step=step)

    def log_metrics(self, metrics, step=None):
        self._run.log(metrics, step=step)

    def log_params(self, params):
        self._run.config.update(params)

    def add_figure(self, name, figure, step=None):
        import wandb

        self._run.log({name: wandb.Image(figure)}, step=step)

    def flush(self):
        pass


class MLflowAdapter:
    log_dir = None

    def __init__(self, mlflow):
        self._mlflow = mlflow

    def log_metric(self, name, value, step=None):
        self._mlflow.log_metric(name, value, step=step)

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.log_metric(name, value, step=step)

    def log_params(self, params):
        self._mlflow.log_params(params)

    def add_figure(self, name, figure, step=None):
        self._mlflow.log_figure(figure, f"{name}.png")

    def flush(self):
        pass


# --- their backends: what they were told ----------------------------------------------------------


class Backend:
    """Writer of TensorBoard, run of W&B and module of MLflow; refuses what the real ones do."""

    log_dir = "logs"

    def __init__(self):
        self.metrics, self.params, self.figures, self.flushed, self.config = {}, {}, [], 0, self

    def add_scalar(self, tag, scalar_value, global_step):
        assert isinstance(scalar_value, float) and isinstance(global_step, int)
        self.metrics.setdefault(global_step, {})[tag] = scalar_value

    def add_text(self, tag, text_string):
        self.params[tag.removeprefix("params/")] = text_string

    def add_figure(self, tag, figure, global_step):
        assert figure.axes
        self.figures.append((tag, global_step))

    def flush(self):
        self.flushed += 1

    def log(self, values, step):
        assert not self.metrics or step >= max(self.metrics), "W&B's steps only rise"
        images = {n for n, v in values.items() if not isinstance(v, float)}
        self.figures += [(name, step) for name in images]
        for name in values.keys() - images:
            self.add_scalar(name, values[name], step)

    def update(self, params):
        json.dumps(params)
        self.params |= params

    def log_metric(self, name, value, step):
        self.add_scalar(name, value, step)

    def log_params(self, params):
        assert len(params) <= 100, "MLflow takes a hundred at once"
        assert all(len(str(value)) <= 250 for value in params.values())
        self.params |= params

    def log_figure(self, figure, name):
        assert figure.axes
        self.figures.append((name.removesuffix(".png"), max(self.metrics)))


ADAPTERS = [TensorBoardTracker, WandBAdapter, MLflowAdapter]


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(Image=lambda figure: figure))


@pytest.fixture
def backend():
    return Backend()


def program(seed=0):
    torch.manual_seed(seed)
    return bernoulli_vae.build(6, latent_dim=2, hidden_dim=4)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_written_for_sbi_are_told_everything(adapter, backend, wandb):
    run = pv.fit(
        program(), X, engine="pyro", validation=X[:9], evaluate_every=4, seed=3,
        tracker=adapter(backend), **OPTIONS,
    )  # fmt: skip

    expected = run.history.set_index("samples")
    assert list(backend.metrics) == expected.index.tolist() == [20 * i for i in range(1, 9)]
    for samples, told in backend.metrics.items():
        row = expected.loc[samples].dropna()
        assert told == pytest.approx(row.to_dict())
    assert [n for n, told in backend.metrics.items() if "validation_bound" in told] == [80, 160]
    assert str(backend.params["seed"]) == "3" and backend.params["objective"] == "AEVB()"
    assert str(backend.params["optimizer_options.lr"]) == "0.02"
    assert backend.params["parts.prior"] == type(run.program.prior).__name__
    assert backend.figures == [("training_curve", 160)]


COMPILED = pytest.param("compiled", 450, marks=[pytest.mark.slow, pytest.mark.compiled])


@pytest.mark.parametrize(("engine", "steps"), [("pyro", 10), ("eager", 450), COMPILED])
def test_a_tracker_moves_nothing_and_hears_of_records_alone(engine, steps, backend):
    programs = [program(), program()]
    options = {**OPTIONS, "steps": steps, "engine": engine}
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    runs = [
        pv.fit(each, X, tracker=tracker, **options)
        for each, tracker in zip(programs, [None, TensorBoardTracker(backend)], strict=True)
    ]

    for a, b in zip(programs[0].parameters(), programs[1].parameters(), strict=True):
        assert torch.equal(a, b)
    pd.testing.assert_series_equal(runs[0].history["bound"], runs[1].history["bound"])
    assert len(backend.metrics) == len(runs[1].history) == min(steps, 225)
    assert backend.flushed == 1
    assert torch.equal(torch.random.get_rng_state(), before)


def test_replicas_have_numbers_or_trackers_of_their_own(backend):
    options = {**OPTIONS, "engine": "eager", "replicas": 2, "seed": 5}
    runs = pv.fit(program(), X, tracker=MLflowAdapter(backend), **options)
    last = backend.metrics[160]
    for number, run in enumerate(runs):
        assert last[f"bound/{number}"] == pytest.approx(run.history["bound"].iloc[-1])
    assert (backend.params["seed/0"], backend.params["seed/1"]) == (5, 6)
    assert backend.params["lr"] == 0.02 and "bound" not in last
    assert [name for name, _ in backend.figures] == ["training_curve/0", "training_curve/1"]

    each = [Backend(), Backend()]
    again = pv.fit(program(), X, tracker=[MLflowAdapter(b) for b in each], **options)
    for number, run in enumerate(again):
        assert each[number].metrics[160]["bound"] == run.history["bound"].iloc[-1]
        assert each[number].params["seed"] == 5 + number
    with pytest.raises(ValueError, match="tracker has 1 for 2 runs"):
        pv.fit(program(), X, tracker=[MLflowAdapter(backend)], **options)


class Failing(MLflowAdapter):
    calls = 0

    def log_metrics(self, metrics, step=None):
        Failing.calls += 1
        raise ConnectionError("no route to host")

    add_figure = log_metrics


def test_a_tracker_that_raises_is_said_once_and_left_alone(backend, caplog):
    Failing.calls = 0
    with pytest.warns(
        pv.PyroVaeWarning, match="Failing.log_metrics raised ConnectionError"
    ) as told:
        run = pv.fit(program(), X, engine="pyro", tracker=Failing(backend), **OPTIONS)
    assert len(told) == 1 and run.manifest["steps"] == 8
    assert Failing.calls == 3, "three failures in a row are enough"
    assert "no more is sent" in caplog.text


def test_one_failure_loses_one_record(backend):
    class Once(MLflowAdapter):
        def log_metrics(self, metrics, step=None):
            if step == 40:
                raise TimeoutError("slow")
            super().log_metrics(metrics, step)

    with pytest.warns(pv.PyroVaeWarning, match=r"TimeoutError \(slow\): training goes on"):
        pv.fit(program(), X, engine="pyro", tracker=Once(backend), **OPTIONS)
    assert list(backend.metrics) == [20, 60, 80, 100, 120, 140, 160]


@pytest.mark.parametrize("with_folder", [True, False])
def test_ctrl_c_draws_the_curve_and_flushes(backend, stop, tmp_path, with_folder):
    stop[6] = signal.SIGINT
    options = {**OPTIONS, "out": tmp_path / "run" if with_folder else None}
    with pytest.raises(KeyboardInterrupt):
        pv.fit(program(), X, engine="pyro", tracker=TensorBoardTracker(backend), **options)
    assert backend.flushed == 1
    assert backend.figures == [("training_curve", 80)]


def test_a_loss_that_is_not_finite_is_no_reason_to_lose_the_curve(backend):
    torch.manual_seed(0)
    vae = gaussian_vae.build(6, latent_dim=2, hidden_dim=4, sigmoid_mean=False)
    with pytest.raises(ValueError, match="the loss is"):
        pv.fit(
            vae, X, engine="eager", optimizer=torch.optim.SGD, lr=1e6,
            tracker=TensorBoardTracker(backend), **OPTIONS,
        )  # fmt: skip
    assert backend.flushed == 1


def test_a_table_has_a_row_for_each_record_and_goes_on_with_its_run(tmp_path):
    path, folder = tmp_path / "curve.csv", tmp_path / "run"
    options = {**OPTIONS, "engine": "pyro", "out": folder, "resume": True, "tracker": path}
    pv.fit(program(), X, **options)
    run = pv.fit(program(), X, **{**options, "steps": 12})

    table = pd.read_csv(path)
    columns = ["samples", "step", "seconds", "bound"]
    pd.testing.assert_frame_equal(table[columns], run.history[columns], check_dtype=False)
    assert json.loads((tmp_path / "curve.params.json").read_text())["batch_size"] == 20
    assert (tmp_path / "curve.training_curve.png").stat().st_size > 5000
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "curve.csv", "curve.params.json", "curve.training_curve.png", "run",
    ]  # fmt: skip
    with pytest.raises(FileExistsError, match="expected a new file"):
        pv.fit(program(), X, tracker=str(path), engine="pyro", **OPTIONS)
    with pytest.raises(NotADirectoryError, match="make it"):
        CSVTracker(tmp_path / "none" / "curve.csv")


def test_a_table_takes_numbers_of_your_own(tmp_path):
    tracker = CSVTracker(tmp_path / "curve.csv")
    pv.fit(program(), X, engine="pyro", tracker=tracker, **OPTIONS)
    tracker.log_metric("test_bound", -4.0, step=160)
    tracker.log_metric("note", 1.0)
    table = pd.read_csv(tmp_path / "curve.csv")
    assert table["test_bound"].iloc[7] == -4.0 and table["bound"].notna().sum() == 8
    assert CSVTracker(tmp_path / "curve.csv", append=True)._rows[160]["test_bound"] == -4.0


@pytest.mark.parametrize("tracker", [object(), CSVTracker, 3, {"log_metric": print}])
def test_what_is_no_tracker_is_refused_before_anything_runs(tracker):
    with pytest.raises(TypeError, match=r"tracker is .*, expected a path, or an object with"):
        pv.fit(program(), X, tracker=tracker, **OPTIONS)


def test_the_command_line_writes_the_table(tmp_path, capsys):
    args = ["fit", "--model", "bernoulli_vae", "--model.latent_dim", "2", "--model.hidden_dim", "8"]
    args += ["--samples", "2000", "--engine", "pyro", "--track", str(tmp_path / "c.csv")]
    assert main(args) == 0
    table = pd.read_csv(tmp_path / "c.csv")
    assert table["samples"].iloc[-1] >= 2000 and table["validation_bound"].notna().any()
    assert main(args) == 2
    assert "expected a new file" in capsys.readouterr().err
