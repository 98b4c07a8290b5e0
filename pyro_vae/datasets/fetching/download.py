"""One file from the first of its addresses that gives it, whole or not at all.

Bytes go to `<file>.part` beside the final name, and are renamed once size, digest and content
are right; so a file under its final name is always complete. What a cut connection or Ctrl-C
leaves is resumed by a Range request:

====================  ==========================================================================
the server answers    we
====================  ==========================================================================
206, from our byte    append
200                   start over: it sends the whole file
416, or 206 from      start over: what we have is not the beginning of its file
another byte
more bytes than the   refuse it, before writing where it announces them
file has
anything else         leave the part as it is and try the next address
====================  ==========================================================================
"""

import contextlib
import http.client
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from pyro_vae.datasets.fetching.files import Published
from pyro_vae.datasets.fetching.locking import writing

TIMEOUT = 30.0  # seconds without a byte
# A server that sends a byte now and then would hold us for ever: within so many seconds come so
# many bytes, or it is left.  One silence is none of this.
PATIENCE, LEAST = 3.0, 1 << 13
CHUNK = 1 << 16  # bytes


@dataclass(frozen=True)
class Transfer:
    """How far a download is.

    Attributes:
        file: its name, such as "mnist/train-images-idx3-ubyte.gz".
        done: bytes on disk, with those of an earlier attempt.
        total: bytes of the file; None as long as nobody said.
    """

    file: str
    done: int
    total: int | None


class _Failed(Exception):
    """The address did not give the file; the part is still a beginning of it."""


class _Spoilt(Exception):
    """The part is not a beginning of the file."""


def fetch(
    file: Published,
    path: Path,
    *,
    opener: urllib.request.OpenerDirector,
    report: Callable[[Transfer], object],
) -> str:
    """Download `file` to `path`, whose folder exists; the address that gave it.

    The caller sees to it that no other process downloads to the same place.

    Raises:
        ValueError: no address gave the file, or it cannot be written. One line, with what each
            address answered and what to do by hand.
    """
    if not file.urls:
        raise ValueError(f"{path}: cannot be downloaded: {file.by_hand(path)}")
    part = path.with_name(path.name + ".part")
    failures: list[str] = []
    for url in file.urls:
        reason = _attempt(file, url, part, opener, report)
        if reason is None:
            with writing(path):
                os.replace(part, path)
                _sync_folder(path.parent)
            return url
        failures.append(f"{urlsplit(url).hostname}: {_one_line(reason)}")
    raise ValueError(
        f"{path}: could not be downloaded ({'; '.join(failures)}); check the network and run the "
        f"same again, which goes on where this stopped, or by hand: {file.by_hand(path)}"
    )


def _attempt(
    file: Published,
    url: str,
    part: Path,
    opener: urllib.request.OpenerDirector,
    report: Callable[[Transfer], object],
) -> str | None:
    """Why `part` is not the whole file now; None if it is."""
    while True:
        resumed = part.exists() and part.stat().st_size > 0
        try:
            _transfer(file, url, part, opener, report)
            _checked(file, part)
            return None
        except _Failed as failure:
            return str(failure)
        except _Spoilt as spoilt:
            with writing(part):
                part.unlink(missing_ok=True)
            if not resumed:  # else the fault may be that of an earlier attempt
                return str(spoilt)


def _checked(file: Published, part: Path) -> None:
    try:
        file.check(part)
    except ValueError as error:
        raise _Spoilt(str(error).removeprefix(f"{part}: ")) from error


def _transfer(
    file: Published,
    url: str,
    part: Path,
    opener: urllib.request.OpenerDirector,
    report: Callable[[Transfer], object],
) -> None:
    """Bring `part` to its full length, on disk."""
    done = part.stat().st_size if part.exists() else 0
    exact = file.sha256 is not None
    if exact and done == file.size:  # stopped between the last byte and the new name
        return
    if done >= file.size:
        raise _Spoilt(f"got {done:,} bytes, expected at most {file.size:,}")
    with _opened(url, done, opener) as response:
        done, total = _position(response, done)
        if total is not None and (total > file.size or (exact and total != file.size)):
            expected = f"{file.size:,}" if exact else f"at most {file.size:,}"
            raise _Failed(f"offers {total:,} bytes, expected {expected}")
        total = file.size if exact else total
        with writing(part):
            output = part.open("ab" if done else "wb")
        with output:
            report(Transfer(file.name, done, total))
            for chunk in _chunks(response):
                done += len(chunk)
                if done > file.size:
                    raise _Spoilt(f"sends more than {file.size:,} bytes")
                with writing(part):
                    output.write(chunk)
                report(Transfer(file.name, done, total))
            with writing(part):
                output.flush()
                os.fsync(output.fileno())
    if total is not None and done < total:
        raise _Failed(f"the connection was cut after {done:,} of {total:,} bytes")


@contextlib.contextmanager
def _opened(
    url: str, offset: int, opener: urllib.request.OpenerDirector
) -> Iterator[http.client.HTTPResponse]:
    # "identity": the digest is that of the file, not of what a server makes of it on the way.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            raise _Spoilt(f"has no byte {offset:,}") from error
        raise _Failed(f"HTTP {error.code} {error.reason}") from error
    except URLError as error:
        raise _Failed(str(error.reason)) from error
    # A proxy variable that is no address is a ValueError.
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Failed(str(error) or type(error).__name__) from error
    with response:
        yield response


def _position(response: http.client.HTTPResponse, offset: int) -> tuple[int, int | None]:
    """The byte that the answer begins with, and the bytes of the whole file if it says so."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        given = response.headers.get("Content-Range", "")
        matched = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18}|\*)", given.strip())
        if matched is None or int(matched[1]) != offset:
            raise _Spoilt(f"got the range {given!r}, expected it from byte {offset:,}")
        return offset, None if matched[2] == "*" else int(matched[2])
    if response.status != http.HTTPStatus.OK:
        raise _Failed(f"HTTP {response.status} {response.reason}")
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    start, sizes = time.monotonic(), list[int]()
    while True:
        try:
            chunk = response.read1(CHUNK)  # what is there, where read() waits for all of it
        except (OSError, http.client.HTTPException) as error:
            raise _Failed(f"the connection was cut: {error or type(error).__name__}") from error
        if not chunk:
            return
        yield chunk
        sizes.append(len(chunk))
        if (seconds := time.monotonic() - start) > PATIENCE:
            if sum(sizes) < LEAST and len(sizes) > 2:
                raise _Failed(f"sends {sum(sizes):,} bytes in {seconds:.0f} s, too few to wait for")
            start, sizes = time.monotonic(), []


def _one_line(text: str) -> str:
    """Without line breaks and control characters, which a server may put into its answers."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
