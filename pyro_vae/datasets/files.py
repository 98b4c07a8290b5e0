"""Where a data set's files are, and whether they are the published ones.

A log-likelihood can only be compared with a published one if the pixels are the same, so files
with a known digest are refused when theirs differs. Every error names the file and says where
to put it.
"""

import hashlib
import os
from pathlib import Path

VARIABLE = "PYRO_VAE_DATA"


def locate(relative: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """The path of `<data_dir>/<relative>`, a file that exists.

    Args:
        relative: such as "mnist/train-images-idx3-ubyte.gz".
        data_dir: folder of all data sets; where None, the environment variable PYRO_VAE_DATA.

    Raises:
        ValueError: there is no folder to look in, or no such file in it.
    """
    given = data_dir or os.environ.get(VARIABLE)
    if not given:
        raise ValueError(
            f"{relative}: got no data directory, expected the file in <data directory>/{relative}; "
            f"put it there and set --data-dir (data_dir=) or {VARIABLE} to the directory"
        )
    path = Path(given).expanduser() / relative
    if not path.is_file():
        raise ValueError(
            f"{path}: got no such file; put {path.name} there, or set --data-dir (data_dir=) or "
            f"{VARIABLE} to the directory that holds {relative}"
        )
    return path


def read(path: Path, sha256: str | None = None) -> bytes:
    """The bytes of a file, compared with the digest that it should have.

    Raises:
        ValueError: the file cannot be read, or is not the one with digest `sha256` (hex).
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError(
            f"{path}: got sha256 {found} ({len(content):,} bytes), expected {sha256}; it is "
            "damaged, incomplete or not the published file: fetch it again"
        )
    return content
