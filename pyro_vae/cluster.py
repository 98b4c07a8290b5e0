"""Work in many pieces on a Dask cluster: none is lost with a worker, none is done twice.

A *cell* is one piece, and its result some arrays.  A cell that is done writes them to its folder,
under a name that appears when they are whole; whoever is given the cell again, because a worker
died or a sweep was stopped, finds them there and does nothing.  Workers on machines that do not
see the folder work in one of their own and send its files back, which the caller writes: there a
cell whose worker dies between its end and the arrival of its files is done again.

Dask (``pip install 'pyro-vae[cluster]'``) decides who does what, and notices who has died.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from pyro_vae import errors
from pyro_vae.turns import in_turn, out_of_turn

Arrays = dict[str, np.ndarray]
RESULT = "result.npz"
MADE = "made of"  # beside the arrays: what they follow from
WARNED = "warned of"  # and what was warned of on the way, told where all come together
MOST_DEATHS = 10  # workers that may die with a cell before it is taken to have killed them


def sweep(
    function: Callable[..., Mapping[str, np.ndarray]],
    cells: Mapping[str, Any],
    *,
    out: str | Path,
    cluster: Any = "local",
    shared: Sequence[Any] = (),
    made_of: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, Arrays]]:
    """Do each cell on a cluster, and yield names and results as they come.

    Args:
        function: ``function(cell, folder, *shared)`` returns arrays by name.  What it writes to
            ``folder`` is kept, and is there again where the cell's worker was killed.
        cells: what to pass, by a name that stands for the same thing whenever this is called.
        out: the folder of results; a sweep that was stopped goes on in it.
        cluster: "local", for one process a core; a whole number of processes; the address of a
            Dask scheduler; or a ``distributed.Client``, or a cluster object of Dask's.
        shared: further arguments, the same for all cells, sent once.
        made_of: by cell, a digest of all that its result follows from.

    Raises:
        ValueError: the cluster is not there; or ``out`` holds results that were made of something
            else.
        RuntimeError: with a cell so many workers died that it is taken to be the reason.
        ConnectionError: the scheduler is gone.  What is done stays done.

    What a cell raises is raised here, with the cell's folder as a note.
    """
    folder = Path(out)
    made_of, warned = made_of or {}, dict[str, None]()

    def result(name: str) -> Arrays:
        arrays = _read(folder / folder_of(name) / RESULT, made_of.get(name, ""))
        warned.update(dict.fromkeys(map(str, arrays.pop(WARNED))))
        return arrays

    waiting = {}
    for name, cell in cells.items():
        if (folder / folder_of(name) / RESULT).exists():
            yield name, result(name)
        else:
            waiting[name] = cell
    if waiting:
        blob = _packed((function, tuple(shared)))
        with connected(cluster) as client, _known(folder) as token:
            for name, sent in _arriving(client, blob, waiting, folder, token, made_of):
                for file, content in (sent or {}).items():  # the result comes last
                    _write(folder / folder_of(name) / file, content)
                yield name, result(name)
    for message in warned:
        warnings.warn(message, errors.PyroVaeWarning, stacklevel=errors.users_line())


def _arriving(
    client: Any, blob: bytes, cells: Any, folder: Path, token: str, made_of: Any
) -> Iterator[tuple[str, dict[str, bytes] | None]]:
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    # A task of its own, and no data that were scattered: those are lost with their last holder.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        work = client.submit(_Work, blob, key=f"pyro-vae-work-{token}", pure=False)

    def submitted(name: str, deaths: int = 0) -> Any:
        key = f"pyro-vae-{folder_of(name)}-{token}-{deaths}"
        return client.submit(
            _do, work, cells[name], folder_of(name), str(folder.resolve()), token,
            made_of.get(name, ""), key=key, pure=False,
        )  # fmt: skip

    names = {submitted(name): (name, 0) for name in cells}
    arriving = as_completed(list(names))
    try:
        # Meanwhile others may have their turn, as workers within this process must.
        while (future := out_of_turn(next, arriving, None)) is not None:
            name, deaths = names.pop(future)
            error = future.exception() if future.status == "error" else None
            if future.status in ("cancelled", "lost") or isinstance(error, KilledWorker):
                if client.status != "running":
                    names[future] = (name, deaths)
                    break
                if deaths == MOST_DEATHS:
                    raise RuntimeError(
                        f"{name}: its worker died again and again, the last of them under Dask's "
                        f"own count of {error}: give workers more memory, or fewer threads; what "
                        f"is done lies in {folder}"
                    )
                try:
                    again = submitted(name, deaths + 1)
                except Exception:  # Dask has many kinds
                    if client.status == "running":
                        raise
                    names[future] = (name, deaths)
                    break
                names[again] = (name, deaths + 1)
                arriving.add(again)
                continue
            if error is not None:
                raise error
            found = future.result()
            if isinstance(found, _Failed):
                raise found.error
            yield name, found
            future.release()
        if names:
            raise ConnectionError(
                f"the scheduler is gone with {len(names)} cells undone; what is done lies in "
                f"{folder}: the same call goes on"
            )
    finally:
        if names and client.status == "running":
            with contextlib.suppress(Exception):  # of a cluster that is just being closed
                client.cancel(list(names), force=True)


def _packed(work: tuple[Any, ...]) -> bytes:
    import cloudpickle

    try:
        return cloudpickle.dumps(work)
    except Exception as error:  # whatever an object of the user's raises
        raise ValueError(
            f"a cluster is sent the program, and it cannot be packed ({error}): let its functions "
            "and attributes hold no locks, open files, generators or modules of code; or do "
            "without cluster"
        ) from error


# --- what workers do ------------------------------------------------------------------------------


class _Failed:
    """What a cell raised: told where it is asked for, and not in the log of a worker."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Work:
    """What all cells share: each process makes it from the bytes that were sent.

    A worker hands it on to another while it computes, and then a program may hold parameters with
    which it is being probed: so what is handed on are those bytes, and never the program.
    """

    def __init__(self, blob: bytes) -> None:
        self._blob = blob
        self._opened: Any = None

    def __reduce__(self) -> Any:
        return _Work, (self._blob,)

    def opened(self) -> tuple[Callable[..., Mapping[str, np.ndarray]], tuple[Any, ...]]:
        import cloudpickle

        if self._opened is None:
            self._opened = cloudpickle.loads(self._blob)
        return self._opened


def _do(
    work: _Work, cell: Any, place: str, root: str, token: str, made: str
) -> dict[str, bytes] | _Failed | None:
    """Do a cell unless it is done; its files where the caller cannot see them."""
    try:
        return in_turn(_done, work, cell, place, root, token, made)
    except Exception as error:
        error.add_note(f"in cell {place}")
        return _Failed(
            error if _can_be_sent(error) else RuntimeError(f"{type(error).__name__}: {error}")
        )


def _can_be_sent(error: Exception) -> bool:
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), Exception)
    except Exception:
        return False


def _done(
    work: _Work, cell: Any, place: str, root: str, token: str, made: str
) -> dict[str, bytes] | None:
    with contextlib.ExitStack() as stack:
        function, shared = work.opened()
        seen = Path(root, f".{token}").exists()
        base = Path(root if seen else stack.enter_context(tempfile.TemporaryDirectory()))
        folder = base / place
        folder.mkdir(exist_ok=True)
        # A worker may be taken for dead that is not, and another be given its cell.
        stack.enter_context(FileLock(folder / ".lock"))
        if not (folder / RESULT).exists():
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", errors.PyroVaeWarning)
                arrays = dict(function(cell, folder, *shared))
            own = (w for w in told if issubclass(w.category, errors.PyroVaeWarning))
            arrays[WARNED] = np.array([*dict.fromkeys(str(w.message) for w in own)], dtype=str)
            _save(folder / RESULT, arrays, made)
        if seen:
            return None
        files = [p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", RESULT)]
        return {str(p.relative_to(folder)): p.read_bytes() for p in [*files, folder / RESULT]}


def _save(path: Path, arrays: Arrays, made: str) -> None:
    content: dict[str, Any] = {MADE: np.array(made), **arrays}
    part = path.with_name(f".{path.name}")
    with open(part, "wb") as file:
        np.savez(file, **content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}")
    part.write_bytes(content)
    os.replace(part, path)


def _read(path: Path, made: str) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays = dict(saved)
        found = str(arrays.pop(MADE))
    except (OSError, ValueError, LookupError, EOFError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove its folder, and its cell is done again"
        ) from error
    if found != made:
        raise ValueError(
            f"{path} was made of other data, models or settings than are given: give those, or "
            "name another folder as out"
        )
    return arrays


def folder_of(name: str) -> str:
    """A cell's folder: its name as far as a file system takes it, and a digest of all of it."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9.=,-]+', '_', name)[:60].strip('._')}-{digest}"


@contextlib.contextmanager
def _known(folder: Path) -> Iterator[str]:
    """A file by which a worker knows that it sees this folder and not one of the same name."""
    token = uuid.uuid4().hex
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f".{token}").touch()
    try:
        yield token
    finally:
        (folder / f".{token}").unlink(missing_ok=True)


# --- clusters -------------------------------------------------------------------------------------


@contextlib.contextmanager
def connected(cluster: Any) -> Iterator[Any]:
    """A client of a cluster, as ``sweep`` takes one; what is made here is closed again.

    Raises:
        ValueError: there is no such cluster.
    """
    errors.require_libraries("distributed")
    from distributed import Client, LocalCluster

    if isinstance(cluster, Client):
        if cluster.status != "running":
            raise ValueError(
                f"cluster is a distributed.Client that is {cluster.status}, expected one that "
                "runs: make another"
            )
        yield cluster
        return
    if isinstance(cluster, str) and cluster != "local" and not cluster.isdecimal():
        try:
            client = Client(cluster, timeout=4)
        except (OSError, ValueError, ImportError) as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"cluster is {cluster!r}, where no scheduler answers ({why}): start one by `dask "
                'scheduler` and workers by `dask worker ADDRESS`, or take "local"'
            ) from error
        with client:
            yield client
        return
    if hasattr(cluster, "scheduler_address"):
        try:
            client = Client(cluster)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"cluster is a {type(cluster).__name__} that takes no client "
                f"({' '.join(str(error).split())}): make another"
            ) from error
        with client:
            yield client
        return
    given = int(cluster) if str(cluster).isdecimal() else cluster
    why = 'a number of processes; else "local", an address or a Client'
    number = os.cpu_count() if given == "local" else errors.whole("cluster", given, why=why)
    with (
        LocalCluster(
            n_workers=number, threads_per_worker=1, memory_limit=0, dashboard_address=":0"
        ) as local,
        Client(local) as client,
    ):
        yield client
