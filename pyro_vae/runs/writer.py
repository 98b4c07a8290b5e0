"""One folder, one writer: a lock that the system takes back from a dead process.

The lock is ``flock`` on ``.lock``, which stays; who holds it is written beside it, in
``.writer.json``, while it is held.  Readers need no lock: a save replaces the manifest at once, and
what the one before named stays for a while.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pyro_vae.runs.storage import MANIFEST, read_regular, tidy, write

LOCK, HOLDER = ".lock", ".writer.json"
MOST_BYTES = 4096  # of what is said about a holder


class Writer:
    """The one that may write into a folder, and finds another place where that folder fails.

    Attributes:
        folder: as the user named it.
        saved_at: where the state lies that was written last; None before the first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved_at: Path | None = None
        self._made = _missing(folder)
        self._lock: FileLock | None = None
        self._place: tuple[int, ...] | None = None  # of the lock's file
        self._manifest: tuple[int, ...] | None = None

    def acquire(self) -> None:
        """Make the folder, and lock it.

        Raises:
            ValueError: another process writes there, which is named; or the folder cannot be used.
        """
        out = str(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"out={out!r}: {error.strerror}, name another folder") from None
        if not os.access(self.folder, os.W_OK):
            raise ValueError(f"out={out!r} cannot be written, name another folder")
        # Where the system has no locks filelock would take the file's being there for one, which
        # a dead process never gives back.
        lock = FileLock(self.folder / LOCK, fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except (Timeout, RuntimeError):  # or, in this very thread, a deadlock
            raise ValueError(
                f"out={out!r} is being written by {_holder(self.folder)}: wait for its end, or "
                "name another folder"
            ) from None
        except OSError as error:
            self._unmake()
            none = error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
            advice = "name a folder of another disk, which has locks"
            if not none:
                advice = f"remove {self.folder / LOCK}, or name another folder"
            raise ValueError(f"out={out!r} cannot be locked ({error.strerror}): {advice}") from None
        self._lock, self._place = lock, _identity(self.folder / LOCK, whole=False)
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
        with contextlib.suppress(OSError):  # it only says who it is
            (self.folder / HOLDER).unlink(missing_ok=True)  # a dead one's, or a link
            with open(self.folder / HOLDER, "x") as file:
                json.dump(me, file)

    def release(self) -> None:
        """Give the folder free; one that was made here, and holds nothing, is taken away."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError):
            if self._is_ours():
                (self.folder / HOLDER).unlink(missing_ok=True)
                self._unmake()
        self._lock.release()
        self._lock = None

    def _unmake(self) -> None:
        """Take the lock's file away where no run came, and the folder if it was made here."""
        with contextlib.suppress(OSError):
            names = {p.name for p in self.folder.iterdir()}
            if MANIFEST not in names:
                (self.folder / LOCK).unlink(missing_ok=True)
            if names <= {LOCK}:
                for made in self._made:
                    made.rmdir()

    def seen(self) -> None:
        """Take the manifest that is there for the one that may be replaced."""
        self._manifest = _identity(self.folder / MANIFEST)

    def save(self, content: dict[str, Any]) -> None:
        """Write a state into the folder.

        Raises:
            OSError: the disk, or what became of the folder, does not allow it; it says where the
                state was written instead.
        """
        try:
            self._write(content)
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not isinstance(error, Taken):
                raise
            place, why = beside(self.folder, content), getattr(error, "strerror", None) or error
            self.saved_at = place or self.saved_at
            said = (
                f"the state lies in {place}: go on with out={str(place)!r}, resume=True"
                if place
                else "nor could any other folder, so that this state is lost"
            )
            failed = OSError(f"{self.folder} could not be written ({why}); {said}")
            vars(failed).update(path=place)
            raise failed from error

    def _write(self, content: dict[str, Any]) -> None:
        if not self._is_ours():  # removed or renamed: made anew, unless somebody else is there
            if self._lock is not None:
                self._lock.release()
                self._lock = None
            if _identity(self.folder / MANIFEST) is not None:
                raise Taken("another run lies there now")
            try:
                self.acquire()
            except ValueError as error:
                raise Taken(str(error)) from None
            self._manifest = None
        if _identity(self.folder / MANIFEST) not in (None, self._manifest):
            raise Taken("another run lies there now")
        write(self.folder, content)
        self.seen()
        self.saved_at = self.folder

    def _is_ours(self) -> bool:
        """Whether the lock's file is still the one that is locked."""
        there = _identity(self.folder / LOCK, whole=False)
        return self._lock is not None and there is not None and there == self._place


class Taken(ValueError):
    """Somebody else's run lies where this one's was."""


def folder_for(out: str | Path, *, resume: bool) -> Path:
    """The folder of a run, made before any work is done.

    Raises:
        ValueError: it cannot be made or written; or it holds a run that would be lost.
    """
    with sole_writer(out, resume=resume) as writer:
        writer._made = []
    return writer.folder


@contextlib.contextmanager
def sole_writer(out: str | Path, *, resume: bool) -> Iterator[Writer]:
    """The folder of a run for this process alone, made before any work is done.

    Raises:
        ValueError: it cannot be made, written or locked; another process writes there; or it holds
            a run that would be lost.
    """
    writer = Writer(Path(out))
    if not resume and os.path.lexists(writer.folder / MANIFEST):
        if (writer.folder / LOCK).exists():  # where it is being written, that is said
            writer.acquire()
            writer.release()
        _require_no_run(writer.folder)
    writer.acquire()
    try:
        if not resume:
            _require_no_run(writer.folder)  # which may have ended since
        tidy(writer.folder)
        writer.seen()
        yield writer
    finally:
        writer.release()


def _require_no_run(folder: Path) -> None:
    if os.path.lexists(folder / MANIFEST):
        raise ValueError(
            f"out={str(folder)!r} holds a saved run, which would be lost: pass resume=True to "
            "pv.fit to go on from it, or name another folder"
        )


def beside(folder: Path, content: dict[str, Any]) -> Path | None:
    """Where a state lies that could not be written into its folder; None where nowhere."""
    name = f"{folder.name or 'run'}-rescued-{os.getpid()}"
    for parent in dict.fromkeys([folder.absolute().parent, Path(tempfile.gettempdir()), Path.cwd(),
                                 Path.home()]):  # fmt: skip
        made: Path | None = None
        try:
            made = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
            write(made, content)
        except OSError:
            if made is not None:
                shutil.rmtree(made, ignore_errors=True)
        else:
            return made
    return None


def _missing(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, from below."""
    found = []
    for each in (folder, *folder.parents):
        if os.path.lexists(each):
            break
        found.append(each)
    return found


def _identity(path: Path, *, whole: bool = True) -> tuple[int, ...] | None:
    """Which file it is, and ``whole`` which content, so that another one is told from it."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    file = found.st_dev, found.st_ino
    return (*file, found.st_mtime_ns, found.st_size) if whole else file


def _holder(folder: Path) -> str:
    """Which process holds a folder, as far as it says."""
    try:
        said = json.loads(read_regular(folder / HOLDER, MOST_BYTES))
        pid, host, since = said["pid"], said["host"], said["since"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "another process"
    if (pid, host) == (os.getpid(), socket.gethostname()):
        return f"this very process ({pid}), since {since}"
    return f"process {pid} on {host}, since {since}"
