"""One process at a time in a folder, by a lock that the system takes back from a dead process."""

import contextlib
import errno
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

BUSY = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
WAIT = 0.2  # seconds between two attempts


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make `folder` where it is missing, and wait until no other process is in this block for it.

    The file `.lock` stays: were it removed, two processes could hold locks on two files of that
    name. Waiting is said once on stderr.

    Raises:
        ValueError: the folder cannot be made or written, or its file system has no locks.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("ab")
    with file:
        if not _locked(file, folder):
            print(f"{folder}: waiting for another process that downloads there", file=sys.stderr)
            while not _locked(file, folder):
                time.sleep(WAIT)
        yield


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the file system into a ValueError that names `path`."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be written: {error.strerror}; make room, or choose another folder by "
            "data_dir= (--data_dir) or PYRO_VAE_DATA"
        ) from error


def _locked(file: BinaryIO, folder: Path) -> bool:
    with writing(folder):
        try:
            _lock(file)
        except OSError as error:
            if error.errno in BUSY:
                return False
            raise
    return True


if sys.platform == "win32":
    import msvcrt

    def _lock(file: BinaryIO) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
