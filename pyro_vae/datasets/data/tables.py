"""Tables of text: what stands between the numbers, and whether a first line names the columns.

pandas reads the numbers.  What it would take for granted is settled here, by the first lines: the
encoding, the separator and the decimal sign, and the header.  A line of numbers may be one too:
`DataFrame(array).to_csv(index=False)` writes 0, 1, 2, ..., others write years or wavelengths.  Read
as a datum it would be wrong in silence, so a first line is read as what it surely is, or refused.
"""

import codecs
import csv
import itertools
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from pyro_vae.datasets.data.checks import first_names
from pyro_vae.errors import PyroVaeWarning, users_line

Header = bool | Literal["auto"]

# Separator and decimal sign; " " is any number of blanks.  The first of equals is taken.
FORMS = [(",", "."), (";", "."), (";", ","), ("\t", "."), ("\t", ","), (" ", "."), (" ", ",")]
WHOLE = re.compile(r"[+-]?\d+")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?|true|false", re.I)
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
EXCEL = re.compile(r'"?sep=."?\s*')  # a first line that tells Excel the separator
MISSING = {"", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "none"}
ENOUGH = 5  # rows, to say what is unlike them
# pandas takes minutes and gigabytes for a table of a million columns, which a .npy holds as well.
MOST_COLUMNS, MOST_CHARACTERS = 65_536, 1 << 21


@dataclass(frozen=True)
class Table:
    """The first lines of a file, looked at.

    Attributes:
        start: lines before the first that says something.
        first: its fields.
        body: the fields of those below it, a few hundred at most.
        separator, decimal: as in `FORMS`.
        quoted: whether the fields of the first line have quotes, and those below have none.
    """

    start: int
    first: list[str]
    body: list[list[str]]
    separator: str
    decimal: str
    quoted: bool

    @classmethod
    def of(cls, file: TextIO) -> "Table":
        """Look at a file, which must say something."""
        start, lines = _first_lines(file)
        below = [line.partition("#")[0] for line in lines[1:]]
        few = lines[:1], below[:20]
        separator, decimal = max(FORMS, key=lambda form: _sense(*few, *form))
        body = [_fields(line, separator) for line in below]
        if decimal == ",":
            _refuse_thousands(body or [_fields(lines[0], separator)])
        quoted = [all(map(_is_quoted, line.split(separator))) for line in [lines[0], *below[:1]]]
        first, marked = _fields(lines[0], separator), quoted[0] and not quoted[-1]
        return cls(start, first, body, separator, decimal, marked)

    def has_header(self) -> bool:
        """Whether the first line names the columns.

        Raises:
            ValueError: it may, or may not.
        """
        is_number = [_is_number(text, self.decimal) for text in self.first]
        numbers = [i for i, number in enumerate(is_number) if number]
        words = [
            text
            for text, number in zip(self.first, is_number, strict=True)
            if not (number or _is_missing(text))
        ]
        if self.quoted or (words and not numbers):
            return True
        names = self._are_names(numbers) if numbers else "no"
        if names == "yes" or (names == "maybe" and (words or not self.first[0])):
            return True
        if words:
            raise ValueError(
                f"got numbers beside text in the first line ({words[0]!r}), which may name the "
                "columns or be a datum with a mistake in it; pass header=True if it names them"
            )
        if names == "maybe":
            raise ValueError(
                f"got a first line of numbers ({first_names(self.first)}) that may name the "
                "columns or be a datum; pass header=True if it names them, header=False if it does "
                "not"
            )
        return False

    def _are_names(self, places: list[int]) -> Literal["yes", "maybe", "no"]:
        """Whether the numbers at these places are names: different ones, unlike those below."""
        texts = [self.first[i] for i in places]
        values = [_number(text, self.decimal) for text in texts]
        rows = [row for row in self.body if len(row) == len(self.first)]
        below = [[row[i] for row in rows if _is_number(row[i], self.decimal)] for i in places]
        whole = all(map(WHOLE.fullmatch, texts))
        counted = whole and values == list(range(len(values)))  # as pandas counts columns
        if len(set(values)) < len(values) or not all(below):
            return "maybe" if counted else "no"
        # A program writes a column in one form: 1.0 and 2.5, not 1 and 2.5.
        other_form = whole and not any(WHOLE.fullmatch(text) for column in below for text in column)
        columns = [[_number(text, self.decimal) for text in column] for column in below]
        gaps = [max(min(c) - v, v - max(c)) for v, c in zip(values, columns, strict=True)]
        outside = sum(gap > 0 for gap in gaps)
        far = sum(gap > max(c) - min(c) for gap, c in zip(gaps, columns, strict=True))
        enough, size = len(rows) >= ENOUGH, len(values)
        if counted:
            sure = size > 2 and (other_form or (enough and 2 * outside >= size))
            return "yes" if sure else "maybe"
        clear = 2 * far >= size if enough else len(rows) > 1 and far == size
        unlike = outside == size and clear
        like_names = whole or (size > 1 and all(a < b for a, b in itertools.pairwise(values)))
        if (other_form and size > 1) or (unlike and like_names):
            return "maybe"
        # In equal steps, as years and wavelengths are, and no row below is.
        in_steps = _in_steps(values) and not any(map(_in_steps, zip(*columns, strict=False)))
        return "maybe" if in_steps and (size > 4 or (len(rows) > 1 and far == size)) else "no"


def read_table(path: Path, header: Header) -> Any:
    """A file of comma-separated numbers, or of numbers between semicolons, tabs or blanks.

    Empty lines, and what follows a "#", are passed over; the text is UTF-8, UTF-16 with a mark, or
    Latin-1; numbers have a decimal point, or, where no comma separates them, a decimal comma.

    Args:
        path: the file.
        header: whether the first line names the columns; "auto" finds out.

    Returns:
        A pandas frame; names are text, and numbers from 0 where the file has none.

    Raises:
        ValueError: no text, no rows, lines of different lengths, an index, or a first line of
            which "auto" cannot say what it is.
    """
    with path.open("rb") as file:
        head = file.read(2**16)
    marked = head[:2] in (b"\xff\xfe", b"\xfe\xff")
    if head[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE) or (b"\0" in head and not marked):
        raise ValueError("got bytes that are no text, expected numbers in lines; save it as text")
    try:
        if marked:
            return _read(path, "utf-16", header)
    except UnicodeDecodeError as error:
        raise ValueError(f"got text that breaks off ({error}); save it as UTF-8") from error
    try:
        return _read(path, "utf-8-sig", header)
    except UnicodeDecodeError:  # numbers are the same in all of its kin, and names nearly so
        return _read(path, "latin-1", header)


def _read(path: Path, encoding: str, header: Header) -> Any:
    import pandas as pd  # slow to import, and only this function needs it

    with path.open(encoding=encoding) as file:
        try:
            table = Table.of(file)
        except csv.Error as error:  # such as a field of more than 131072 characters
            raise ValueError(f"got no comma-separated text ({error})") from error
    named = table.has_header() if header == "auto" else header
    names, skipped = table.first, table.start + named
    if named and not names[0]:
        # What DataFrame.to_csv writes: row numbers would be taken for a feature.
        raise ValueError("got a first column without a name, an index?; write it with index=False")
    if named and not table.body:
        raise ValueError("got a header alone, expected rows of numbers below it; it is empty")
    with path.open(encoding=encoding) as file:
        for _ in range(skipped):
            next(file)
        try:
            frame = pd.read_csv(
                file,
                header=None,
                sep=r"\s+" if table.separator == " " else table.separator,
                decimal=table.decimal,
                comment="#",
                skipinitialspace=True,
                low_memory=False,  # else a column has the types of its pieces
            )
        except pd.errors.ParserError as error:
            found = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
            if found is None:
                raise ValueError(
                    f"got no table of numbers ({error}), a quote that is never closed?; correct it"
                ) from error
            fields, line, saw = map(int, found.groups())
            raise ValueError(
                f"got lines of different lengths: Expected {fields} fields in line "
                f"{line + skipped}, saw {saw}; complete the others, or correct this one"
            ) from error
    if named and len(names) != frame.shape[1]:
        longer = "longer" if frame.shape[1] > len(names) else "shorter"
        raise ValueError(
            f"got rows {longer} than the header, {frame.shape[1]} values below {len(names)}; "
            "complete it, end no line with a separator, and write decimals with a point"
        )
    frame.columns = names if named else range(frame.shape[1])
    return frame


def warn_about_row_numbers(x: Any) -> None:
    """Warn where the first column of several counts the rows: an index, and no measurement."""
    column = x.iloc[:, 0]
    if x.shape[1] < 2 or len(x) < ENOUGH or column.iloc[0] not in (0, 1):
        return
    if column.dtype.kind in "iuf" and (column.diff().iloc[1:] == 1).all():
        warnings.warn(
            f"the first column, {column.name!r}, counts the rows from {column.iloc[0]:g} on: an "
            "index, which a model learns like any other number? Write the file without it, "
            "index=False",
            PyroVaeWarning,
            stacklevel=users_line(),
        )


# --- parts --------------------------------------------------------------------------------------


def _first_lines(file: TextIO) -> tuple[int, list[str]]:
    """How many lines say nothing, and the few hundred lines from there on that do."""
    lines: list[str] = []
    start = size = 0
    for number, line in enumerate(iter(lambda: file.readline(MOST_CHARACTERS), "")):
        if len(line) > MOST_COLUMNS:
            _refuse_width(line, number)
        if not line.strip() or line.startswith("#") or (not lines and EXCEL.fullmatch(line)):
            continue
        start = start if lines else number
        lines.append(line.rstrip("\r\n"))
        size += len(line)
        if len(lines) > 2 * ENOUGH and (len(lines) > 200 or size > 1e6):
            break
    if not lines:
        raise ValueError("No columns to parse: got no line, expected numbers")
    return start, lines


def _refuse_width(line: str, number: int) -> None:
    columns = max(len(line.split()), *(1 + line.count(separator) for separator in ",;\t"))
    if columns > MOST_COLUMNS or len(line) >= MOST_CHARACTERS:
        got = f"{columns:,} columns" if columns > MOST_COLUMNS else "a line without end"
        raise ValueError(
            f"got {got} in line {number + 1}, expected {MOST_COLUMNS:,} columns and "
            f"{MOST_CHARACTERS:,} characters at most; a wider table is saved by np.save"
        )
    longest = max(map(len, re.split(r"[,;\s]", line)))
    if longest > MOST_COLUMNS:
        raise ValueError(
            f"got no comma-separated text: a field of {longest:,} characters in line {number + 1}, "
            "expected numbers"
        )


def _fields(line: str, separator: str) -> list[str]:
    if separator == " ":
        return line.split()
    if '"' not in line:  # the fields of csv have a limit, also where it is not their separator
        return [field.strip() for field in line.split(separator)]
    return [field.strip() for field in next(csv.reader([line], delimiter=separator), [])]


def _sense(first: list[str], below: list[str], separator: str, decimal: str) -> tuple:
    """The share of numbers below, whether lines have equally many of several fields, how many."""
    rows = [_fields(line, separator) for line in [*first, *below]]
    fields = [field for row in rows[1:] or rows for field in row]
    known = sum(_is_missing(field) or _is_number(field, decimal) for field in fields)
    widths = {len(row) for row in rows}
    return known / max(len(fields), 1), len(widths) == 1 and widths != {1}, len(fields)


def _is_number(text: str, decimal: str) -> bool:
    return bool(NUMBER.fullmatch(_pointed(text, decimal)))


def _number(text: str, decimal: str) -> float:
    truth = {"true": 1.0, "false": 0.0}
    return truth[text.lower()] if text.lower() in truth else float(_pointed(text, decimal))


def _pointed(text: str, decimal: str) -> str:
    """With a decimal point; beside decimal commas what has a point is no number."""
    if decimal == ".":
        return text
    return "" if "." in text else text.replace(",", ".")


def _in_steps(values: Sequence[float]) -> bool:
    """Whether at least three numbers rise in equal steps, which may be rounded."""
    steps = [b - a for a, b in itertools.pairwise(values)]
    return len(steps) > 1 and min(steps) > 0 and max(steps) - min(steps) < 0.01 * max(steps)


def _is_missing(text: str) -> bool:
    return text.lower() in MISSING


def _is_quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _refuse_thousands(rows: list[list[str]]) -> None:
    """Refuse 1,234 where no other number says what its comma is."""
    commas = [field for row in rows for field in row if "," in field]
    if commas and all(map(THOUSANDS.fullmatch, commas)):
        raise ValueError(
            f"got numbers such as {commas[0]}, whose comma may stand for thousands or for "
            "decimals, expected a decimal point; write the file with one"
        )
