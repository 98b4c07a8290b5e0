"""Data files that are hostile: each is refused in a line, soon, in little memory, with no trace."""

import os

import numpy as np
import pytest

from tests.hostile import ROWS, archive_of, bomb, npy, place, refusal, saved, zipped

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes")

FIT = ["fit", "gaussian_vae", "--model.hidden_dim", "4", "--steps", "1", "--data"]
TABLE = "1,2\n" * 50
ONES = (b"1," * 1_000_000)[:-1] + b"\n"
X = saved(ROWS)
OBJECTS = saved(np.array([[1, "a"]], dtype=object), allow_pickle=True)
ZEROS = npy("(131072000,)", body=b"")  # a gigabyte, of which nothing is there
FLIPPED = bytearray(zipped([("x.npy", X)], 0))
FLIPPED[300] ^= 1

STORED = {
    # name: (what it holds, what is said)
    "tera.npy": (npy("(1000000000000,)"), "8,000,000,000,000 bytes, and 64 follow"),
    "tera2.npy": (npy("(1000000, 1000000)"), "(1000000, 1000000) of float64"),
    "fortran.npy": (npy("(4, 1000000000)", order="True"), "32,000,000,000 bytes"),
    "overflow.npy": (npy("(9223372036854775808, 4)"), "and 64 follow"),
    "product.npy": (npy("(4294967296, 4294967296)"), "and 64 follow"),
    "negative.npy": (npy("(-1, 4)"), "shape (-1, 4)"),
    "negatives.npy": (npy("(-2, -4)"), "shape (-2, -4)"),
    "fraction.npy": (npy("(2.0, 4)"), "damaged"),
    "truth.npy": (npy("(True, 4)"), "shape (True, 4)"),
    "letters.npy": (npy("(100000, 4)", "<U2000000"), "3,200,000,000,000 bytes"),
    "dimensions.npy": (npy(f"({'1,' * 70})"), "damaged"),
    "subarray.npy": (npy("(2, 4)", "(1000000,1000000)f8"), "damaged"),
    "dtype.npy": (npy("(2, 4)", "<f9999"), "damaged"),
    "order.npy": (npy("(2, 4)", order="9"), "damaged"),
    "code.npy": (npy("", header="__import__('os').system('touch owned')"), "damaged"),
    "brackets.npy": (npy("", header="(" * 9000), "damaged"),
    "power.npy": (npy("", header="9**9**9**9"), "damaged"),
    "list.npy": (npy("", header="[1, 2]"), "damaged"),
    "keys.npy": (npy("", header="{'descr': '<f8'}"), "damaged"),
    "header.npy": (b"\x93NUMPY\2\0\xff\xff\xff\xff{'descr'", "damaged"),
    "version.npy": (npy("(2, 4)", version=b"\x09\x09"), "format 9.9"),
    "cut.npy": (X[:-5], "480 bytes, and 475 follow"),
    "half.npy": (X[:40], "damaged"),
    "magic.npy": (b"\x93NUMPY", "damaged"),
    "more.npy": (X + X, "and 1,088 follow"),
    "empty.npy": (b"", "other bytes than a .npy begins with"),
    "pickle.npy": (b"\x80\x04\x95", "other bytes"),
    "archive.npy": (zipped([("x.npy", X)]), "other bytes"),
    "objects.npy": (OBJECTS, "array of objects"),
    "object.npy": (npy("(2, 4)", "|O"), "array of objects"),
    "fields.npy": (saved(np.zeros(8, dtype=[("a", "f4"), ("b", "i4")])), "expected real numbers"),
    "complex.npy": (saved(np.zeros((8, 2), complex)), "expected real numbers"),
    "dates.npy": (saved(np.zeros((8, 2), "M8[s]")), "expected real numbers"),
    "text.npy": (saved(np.array([["a", "b"]] * 8)), "expected real numbers"),
    "none.npy": (saved(np.array(1.0)), "expected"),
    "line.npy": (saved(np.zeros(10)), "x.reshape(-1, 1)"),
    "norows.npy": (saved(np.zeros((0, 3))), "which is empty"),
    "nocolumns.npy": (saved(np.zeros((3, 0))), "which is empty"),
    "five.npy": (saved(ROWS[:5]), "5 rows, expected 6 or more"),
    "nan.npy": (saved(ROWS * np.nan), "nan at row 0"),
    "large.npy": (saved(ROWS + 1e300), "inf at row 0"),
    "bomb.npz": (lambda: bomb(ZEROS, 1000 << 20), "more than 200 times as many"),
    "declares.npz": (archive_of(b"\3\0", 4_294_967_294), "more than 200 times"),
    "tells.npz": (zipped([("x.npy", npy("(1000000, 1000000)"))]), "and 64 follow"),
    "fewer.npz": (lambda: bomb(ZEROS, 64 << 20, declared=1000), "damaged"),
    "many.npz": (lambda: zipped([(f"{i:04000}.npy", b"") for i in range(1200)], 0), "directory"),
    "keyless.npz": (zipped([(f"{i}.npy", X) for i in range(99)]), "'0', '1', '2'"),
    "signs.npz": (zipped([("a\n\x1b[2J.npy", X), ("b.npy", X)]), "one of 'a\\n\\x1b[2J', 'b'"),
    "nested.npz": (zipped([("x.npz", zipped([("x.npy", X)]))]), "which is no array"),
    "words.npz": (zipped([("x.npy", b"hello")]), "which is no array"),
    "folder.npz": (zipped([("x.npy/", b"")]), "which is no array"),
    "nothing.npz": (zipped([]), "without arrays"),
    "objects.npz": (zipped([("x.npy", OBJECTS)]), "array of objects"),
    "locked.npz": (archive_of(X, len(X), method=0, flags=1), "encrypted"),
    "method.npz": (archive_of(X, len(X), method=99), "packed by method 99"),
    "lzma.npz": (zipped([("x.npy", X)], 14), "packed by method 14"),
    "end.npz": (zipped([("x.npy", X)])[:-30], "not a zip file"),
    "head.npz": (b"PK\3\4" + b"\0" * 100, "not a zip file"),
    "flipped.npz": (FLIPPED, "CRC"),
}  # fmt: skip

TABLES = {
    "columns.csv": (ONES * 2, "1,000,000 columns in line 1"),
    "names.csv": (",".join(f"c{i}" for i in range(200_000)) + "\n" + TABLE, "columns in line 1"),
    "semicolons.csv": (ONES.replace(b",", b";") + b"1;2\n" * 9, "1,000,000 columns"),
    "blanks.csv": (ONES.replace(b",", b" ") + b"1 2\n" * 9, "1,000,000 columns"),
    "later.csv": (b"1,2\n" * 500 + ONES, "Expected 2 fields in line 501, saw 1000000"),
    "endless.csv": (lambda: b"1" * (30 << 20), "a line without end"),
    "spaces.csv": (lambda: b" " * (30 << 20), "a line without end"),
    "field.csv": ("1" * 200_000 + ",2\n" + TABLE, "a field of 200,000 characters"),
    "quoted.csv": ('"' + "a" * 300_000 + '"\n' + TABLE, "a field of"),
    "digits.csv": ("9" * 400 + ",1\n" + TABLE, "may name the columns"),
    "quote.csv": ('"' + TABLE * 9, "longer than the header"),
    "unclosed.csv": (TABLE * 20 + '"1,2\n' * 3, "a quote that is never closed?"),
    "null.csv": (b"1,2\n\0\n", "bytes that are no text"),
    "late_null.csv": (TABLE.encode() * 400 + b"1\x002,3\n", "expected numbers"),
    "utf32.csv": ("1,2\n3,4\n".encode("utf-32"), "bytes that are no text"),
    "utf16.csv": ("1,2\n3,4\n".encode("utf-16")[:-1], "text that breaks off"),
    "mark.csv": (b"\xff\xfe", "got no line"),
    "latin.csv": (b"\xe9\xff\xfe,\x80\n1,x\n" * 2, "expected numbers"),
    "picture.csv": (b"\x89PNG\r\n\x1a\n\0\0", "bytes that are no text"),
    "page.csv": ("<!DOCTYPE html>\n<html>\n<body>x</body>\n", "expected numbers"),
    "signs.csv": ("\x1b[2Ja,b\x07\n1,x\n", "expected numbers"),
    "break.csv": ('"a\nb",c\n' + "1,x\n" * 10, "header"),
    "nothing.csv": (b"", "got no line"),
    "header.csv": ("a,b\n", "a header alone"),
    "one.csv": ("1,2\n", "1 rows, expected 6"),
    "ragged.csv": (TABLE + "1,2,3\n", "line 51, saw 3"),
    "short.csv": (TABLE + "1\n", "nan at row 50"),
    "words.csv": ("a,b\n1,x\n2,y\n", "'x' in row 0"),
    "infinite.csv": ("1,1e400\n" * 20, "inf at row 0"),
    "hexadecimal.csv": ("0x10,2\n" * 20, "'0x10'"),
    "underscores.csv": ("1_000,2\n" * 20, "'1_000'"),
    "dates.csv": ("2020-01-01,2\n" * 20, "'2020-01-01'"),
    "formula.csv": ("=cmd|' /C calc'!A0,2\n" * 9, "=cmd"),
    "decimals.csv": ("1;2,5\n1;2.5\n" * 9, "'2,5'"),
}

NO_FILES = {
    "pipe.csv": ("FIFO", "is a pipe"),
    "pipe.npy": ("FIFO", "is a pipe"),
    "pipe.npz": ("FIFO", "is a pipe"),
    "loop.npy": ("LOOP", "symbolic links"),
    "socket.npy": ("SOCKET", "is a socket"),
    "folder.csv": ("FOLDER", "is a directory"),
    "zero.npy": ("-> /dev/zero", "is a device"),
    "zero.csv": ("-> /dev/zero", "is a device"),
    "random.npz": ("-> /dev/urandom", "is a device"),
    "gone.csv": ("-> nowhere", "no such file"),
    "memory.npy": ("-> /proc/self/mem", "memory.npy"),
}


@pytest.mark.parametrize("name", [*STORED, *TABLES, *NO_FILES])
def test_a_hostile_file_is_refused(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, said = (STORED | TABLES | NO_FILES)[name]
    place(tmp_path, name, content)
    line = refusal([*FIT, name], tmp_path, capsys)
    assert name in line and said in line


PATHS = {
    "": "expected one of", ".": "expected one of", "/": "is a directory", "-": "expected one of",
    "~nobody_at_all/x.npy": "home directory", "x" * 300 + ".npy": "File name too long",
    "x\0.npy": "x\\x00.npy", "\x1b[2J.csv": "\\x1b[2J.csv: no such file", "x\n.npy": "no such file",
    "a.csv/b.csv": "Not a directory", "http://x.org/x.csv": "no such file",
    "/etc/passwd": "got suffix ''", "/dev/zero": "got suffix ''", "Digits": "did you mean 'digits'",
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=[f"path{i}" for i in range(len(PATHS))])
def test_a_path_of_no_data_is_refused(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place(tmp_path, "a.csv", TABLE)
    line = refusal([*FIT, path], tmp_path, capsys)
    assert PATHS[path] in line


def test_a_file_in_place_of_a_published_one_is_not_read_whole(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with place(tmp_path, "mnist/train-images-idx3-ubyte.gz", b"").open("wb") as file:
        file.truncate(1 << 33)
    for name in ("train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        place(tmp_path, f"mnist/{name}-ubyte.gz", b"")
    line = refusal([*FIT, "mnist", "--data_dir", "."], tmp_path, capsys)
    assert "got 8,589,934,592 bytes" in line
