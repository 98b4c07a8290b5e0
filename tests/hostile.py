"""What hostile input must meet: exit code 2, one line on stderr, nothing changed, soon, in little.

And makers of files that are hostile, small ones all: they stand for more than they hold.
"""

import io
import os
import socket
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np

from pyro_vae.cli import main

MOST_SECONDS, MOST_BYTES = 5.0, 200 << 20
ROWS = (np.arange(60).reshape(20, 3) % 2).astype(float)


def snapshot(folder):
    """Names, kinds, sizes and times of all below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        found[str(path.relative_to(folder))] = (state.st_mode, state.st_size, state.st_mtime_ns)
    return {name: v[:1] if (v[0] & 0o170000) == 0o040000 else v for name, v in found.items()}


def peak(reset=False):
    """The most memory so far, or since it was reset; 0 where the system does not say."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    name = "VmRSS:" if reset else "VmHWM:"
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name))


def refusal(arguments, folder, capsys):
    """Run a command in a folder; what it says, after it was found to be refused as is due."""
    before, held, start = snapshot(folder), peak(reset=True), time.process_time()
    code = main(list(map(str, arguments)))
    seconds, more = time.process_time() - start, peak() - held
    out, said = capsys.readouterr()
    assert code == 2, (code, out[-300:], said[-300:])
    assert said.count("\n") == 1 and said.endswith("\n") and len(said) < 2000, said
    assert "Traceback" not in said and all(c.isprintable() for c in said[:-1]), said
    assert not out, out
    assert snapshot(folder) == before
    assert seconds < MOST_SECONDS and more < MOST_BYTES, (seconds, more >> 20)
    return said


# --- files --------------------------------------------------------------------------------------


def npy(shape, dtype="<f8", order="False", body=b"\0" * 64, version=b"\x01\x00", header=None):
    """The bytes of an array that says so of itself."""
    header = header or f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}"
    text = header.encode("latin-1").ljust(118) + b"\n"
    size = struct.pack("<H" if version[0] == 1 else "<I", len(text))
    return b"\x93NUMPY" + version + size + text + body


def saved(array, **options):
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def zipped(members, method=zipfile.ZIP_DEFLATED):
    """An archive of (name, bytes)."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def bomb(head, size, name="x.npy", declared=None):
    """An archive whose one member begins with ``head`` and goes on with so many zeros."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = squeeze.compress(head) + squeeze.flush(zlib.Z_FULL_FLUSH)
    block = squeeze.compress(b"\0" * (1 << 20)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    packed += block * (size >> 20) + squeeze.flush(zlib.Z_FINISH)
    size = min(len(head) + size, 2**32 - 2) if declared is None else declared
    return archive_of(packed, size, name)


def archive_of(packed, declared, name="x.npy", method=8, flags=0):
    """An archive of one member as it is packed."""
    sizes = len(packed), declared, len(name)
    said = struct.pack("<HHHHHIIIHH", 20, flags, method, 0, 33, 0, *sizes, 0)
    local = b"PK\3\4" + said + name.encode() + packed
    central = b"PK\1\2" + b"\x14\0" + said + b"\0" * 14 + name.encode()
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + end


def place(folder, name, content):
    """Put a file there: bytes, text, or a kind of thing that is no file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    match content:
        case "FIFO":
            os.mkfifo(path)
        case "FOLDER":
            path.mkdir()
        case "LOOP":
            path.symlink_to(path.name)
        case "SOCKET":
            here = os.getcwd()
            os.chdir(folder)  # its name is short
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(name)
            os.chdir(here)
        case str() if content.startswith("-> "):
            path.symlink_to(content[3:])
        case str():
            path.write_text(content)
        case _:
            path.write_bytes(content() if callable(content) else content)
    return path
