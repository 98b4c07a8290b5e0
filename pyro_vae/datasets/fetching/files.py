"""Where a data set's files are, and whether they are the published ones.

A log-likelihood can only be compared with a published one if the pixels are the same, so a file
whose digest is known is refused when its own differs. Every error names the file and says where
to put it.

The data directory is the argument `data_dir`, else the environment variable PYRO_VAE_DATA, else
`$XDG_CACHE_HOME/pyro_vae`, by default `~/.cache/pyro_vae`. It holds one folder per data set.
"""

import hashlib
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "PYRO_VAE_DATA"
MOST = 1 << 26  # bytes, of a file that is read whole; the largest published one has 26 million


@dataclass(frozen=True)
class Published:
    """A file as it was published, and how to tell it from others.

    Attributes:
        name: its place below the data directory, such as "mnist/train-images-idx3-ubyte.gz".
        size: bytes; where `sha256` is None, the most that it may have.
        sha256: hex; None where it is not known, and `content` judges the file.
        urls: https addresses of the same bytes, tried in order; none where none is public.
        content: reads a file and raises ValueError where it is not this one.
    """

    name: str
    size: int
    sha256: str | None
    urls: tuple[str, ...]
    content: Callable[[Path], object] | None = None

    def check(self, path: Path) -> None:
        """Compare size, digest and content of the file at `path`.

        Raises:
            ValueError: it cannot be read, or is not this file.
        """
        try:
            size = path.stat().st_size
            # A file of another size is another file, and may be too large to be read at all.
            if size > self.size or (self.sha256 is not None and size != self.size):
                expected = f"{self.size:,}" if self.sha256 else f"at most {self.size:,}"
                raise ValueError(f"{path}: got {size:,} bytes, expected {expected}")
            if self.sha256 is not None:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != self.sha256:
                    raise ValueError(f"{path}: got sha256 {found}, expected {self.sha256}")
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
        if self.content is not None:
            self.content(path)

    def by_hand(self, path: Path) -> str:
        """What to do where there is no network, as half a sentence."""
        digest = f"sha256 {self.sha256}" if self.sha256 else "judged by its pixels, not a digest"
        if not self.urls:
            return f"put the file ({digest}), of which no address is public, at {path}"
        return f"fetch {self.urls[0]} ({digest}) and put it at {path}"


def folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The data directory, which need not exist.

    Raises:
        ValueError: it lies in a home directory that is not known.
    """
    given = data_dir or os.environ.get(VARIABLE)
    if not given:
        cache = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG specification has relative paths ignored.
        given = Path(cache if os.path.isabs(cache) else "~/.cache") / "pyro_vae"
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{given}: got no home directory, expected one; set data_dir= or {VARIABLE}"
        ) from error


def command(verb: str, name: str, data_dir: str | os.PathLike[str] | None) -> str:
    """The command that gets or verifies the data set `name` in the same data directory."""
    where = f" --data_dir {shlex.quote(os.fspath(data_dir))}" if data_dir else ""
    return f"pyro-vae data {verb} {name}{where}"


def locate(file: Published, data_dir: str | os.PathLike[str] | None) -> Path:
    """The path of a file that exists; nothing is downloaded here.

    Args:
        file: what to look for.
        data_dir: folder of all data sets; where None, see above.

    Raises:
        ValueError: there is no such file; the message has the command that downloads it, and
            what to put where without one.
    """
    path = folder(data_dir) / file.name
    if not os.path.isfile(path):  # false, too, where the folder may not be read
        get = command("get", file.name.split("/")[0], data_dir)
        run = f"run `{get}`, or " if file.urls else ""
        raise ValueError(
            f"{path}: got no such file; {run}{file.by_hand(path)}; if you have "
            f"{file.name} elsewhere, set data_dir= (--data_dir) or {VARIABLE} to the folder above"
        )
    return path


def read(path: Path, sha256: str | None = None) -> bytes:
    """The bytes of a file, compared with the digest that it should have.

    Raises:
        ValueError: the file cannot be read, is larger than any that was published, or is not the
            one with digest `sha256` (hex).
    """
    try:
        if (size := path.stat().st_size) > MOST:
            raise ValueError(
                f"{path}: got {size:,} bytes, expected {MOST:,} at most, as all published files "
                "have: fetch it again"
            )
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
