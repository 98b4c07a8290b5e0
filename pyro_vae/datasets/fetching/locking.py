"""One process at a time in a folder, by a lock that the system takes back from a dead process."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make `folder` where it is missing, and wait until no other process is in this block for it.

    The file `.lock` stays. Waiting is said once on stderr.

    Raises:
        ValueError: the folder cannot be made or written, or its file system has no locks.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Where the system has no locks filelock would take the file's being there for one, which
        # a dead process never gives back.
        lock = FileLock(folder / ".lock", fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{folder}: waiting for another process that downloads there", file=sys.stderr)
            lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


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
