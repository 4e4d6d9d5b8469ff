"""A CSV file of samples, as spreadsheets and programs write them: UTF-8, a header, a row each."""

import csv
import difflib
import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cvtrain.data.images import shown
from cvtrain.data.scan import LISTED, alike
from cvtrain.errors import DataError

DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class Table:
    file: Path
    columns: dict[str, list[str]]  # the cells of each, without the space around them
    rows: list[int]  # where each sample stands: the number of its row, the header being row 1

    def wrong(self, what: str, number: int, column: str, fix: str = "") -> DataError:
        """Of the sample `number`."""
        where = f"{shown(self.file)}, row {self.rows[number]}, column {shown(column)}"
        return DataError(what, where, fix or "mend the row", name="TABLE")

    def column(self, name: str, key: str) -> list[str]:
        """The cells of a column, which `key` names. Raises DataError (TABLE)."""
        if name not in self.columns:
            raise _no_column(self.file, name, list(self.columns), key)
        return self.columns[name]


def read_table(file: Path, *, path: str) -> Table:
    """The table whose column `path` tells what separates its cells. Raises DataError (TABLE).

    Of comma, semicolon, tab and bar it is the first that finds this column in the header. Columns
    without a name (the numbers of a data frame's rows) and blank rows are passed over.
    """
    text = _text(file)
    header, separator = _header(file, text, path)
    rows, samples = [], []
    try:
        for row, cells in enumerate(_reader(text, separator), 1):
            if row == 1 or not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise _wrong(file, f"row {row} has {len(cells)} cells, the header {len(header)}")
            rows.append(row)
            samples.append(cells)
    except csv.Error as error:
        raise _wrong(file, f"the row after row {(rows or [1])[-1]} is no CSV: {error}") from error
    if not rows:
        raise _wrong(file, "has no row below its header", "list an image in each row")
    columns = {
        name: [cells[place].strip() for cells in samples]
        for place, name in enumerate(header)
        if name
    }
    return Table(file, columns, rows)


def classes_of(table: Table, name: str, key: str) -> tuple[str, ...]:
    """The values of a column, numbers by their size: of 0 and 1, no and yes, the second is yes.

    Raises DataError (CLASSES) for fewer than two, and for one that is spelt in two ways.
    """
    values = sorted(set(table.column(name, key)) - {""})
    try:
        values.sort(key=float)
        same = [f"{a} and {b}" for a, b in pairwise(values) if float(a) == float(b)]
    except ValueError:
        values.sort(key=str.casefold)
        same = [names] if (names := alike(values)) else []
    if len(values) > 1 and not same:
        return tuple(values)
    what = f"the same value is written in two ways: {same[0]}" if same else "every cell is empty"
    if len(values) == 1:
        what = f"there is one class only, {shown(values[0])}: any network is right at once"
    raise DataError(
        f"column {shown(name)}: {what}",
        shown(table.file),
        f"mend the column, or name others by data.{key}",
        name="CLASSES",
    )


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        why = error.strerror or str(error)
        raise _wrong(file, f"cannot be read: {why}", "look at the file") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"0x{data[error.start]:02x}"
        fix = "save it as CSV UTF-8"
        raise _wrong(file, f"is not UTF-8: byte {byte} in line {line}", fix) from error
    if not text.strip():
        raise _wrong(file, "is empty", "write a header and a row for each image")
    return text


def _reader(text: str, delimiter: str) -> Iterator[list[str]]:
    lines = io.StringIO(text, newline="")
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)


def _header(file: Path, text: str, path: str) -> tuple[list[str], str]:
    """The names of the columns, and the delimiter between them."""
    headers: dict[str, list[str]] = {delimiter: [] for delimiter in DELIMITERS}
    for delimiter in DELIMITERS:
        with suppress(csv.Error):  # as of a line that is too long where nothing separates it
            headers[delimiter] = [cell.strip() for cell in next(_reader(text, delimiter))]
    fitting = [delimiter for delimiter, header in headers.items() if path in header]
    delimiter = (fitting or sorted(headers, key=lambda d: -len(headers[d])))[0]
    header = headers[delimiter]
    if not fitting:
        raise _no_column(file, path, header, "path")
    if twice := sorted({shown(name) for name in header if name and header.count(name) > 1}):
        raise _wrong(file, f"has two columns called {twice[0]}", "rename or remove one")
    return header, delimiter


def _no_column(file: Path, name: str, names: list[str], key: str) -> DataError:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    listed = ", ".join(map(shown, names[:LISTED])) + (", ..." if len(names) > LISTED else "")
    listed = listed or "none in its first row"
    near = f", nearest {', '.join(map(shown, close))}" if close else ""
    fix = f"type data.{key}=... with one of them"
    return _wrong(file, f"has no column {shown(name)}{near}; it has {listed}", fix)


def _wrong(file: Path, what: str, fix: str = "mend the file") -> DataError:
    return DataError(f"the table {what}", shown(file), fix, name="TABLE")
