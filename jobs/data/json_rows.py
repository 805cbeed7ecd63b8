"""Rows of JSON: one object on each line, or one array of objects. Reads one row at a time."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from jobs.data.problems import RowError
from jobs.data.values import Row

#: Longest row that is read, so that a file without line breaks cannot fill the memory.
MAX_LINE_BYTES = 64 * 2**20
CHUNK_BYTES = 1 << 20
BOM = b"\xef\xbb\xbf"
NOT_ROWS = "not a JSON object but {}; every row is an object with fields"
CSV_HINT = "; a CSV file begins with a line of known column names, such as prompt,completion"
#: What the parser says, at the end of what it was given, of text that goes on; a string's error stands at its beginning.
UNFINISHED = ("Unterminated string", "Invalid \\")
SLACK = 16
SPACE = " \t\r\n"

Found = Iterator[tuple[int, "Row | RowError"]]


def lines(file: BinaryIO) -> Found:
    """Each line's object, or what is wrong with that line. Blank lines are skipped."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            message = f"is longer than {MAX_LINE_BYTES // 2**20} MiB; one row is one line"
            yield number, RowError(number, message)
            return
        if number == 1:
            line = line.removeprefix(BOM)  # some editors put a byte-order mark first
        if line.strip():
            yield number, _row(number, line)


def array(file: BinaryIO) -> Found:
    """Each object of a JSON array with the line where it begins. What is wrong with the JSON itself ends it."""
    yield from _Array(file).rows()


def _row(number: int, line: bytes) -> Row | RowError:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return RowError(number, f"not UTF-8 text (byte {error.start + 1} of the line)")
    except RecursionError:
        return RowError(number, "nested too deeply")
    except ValueError as error:
        hint = CSV_HINT if number == 1 and b"," in line and line.lstrip()[:1] not in (b"{", b"[") else ""
        return RowError(number, f"not valid JSON: {_reason(error)}{hint}")
    return _object(number, value)


def _object(number: int, value: Any) -> Row | RowError:
    return value if isinstance(value, dict) else RowError(number, NOT_ROWS.format(type(value).__name__))


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} (column {error.colno})"
    return str(error).split(";")[0]


class _Array:
    """A window over the text of an array."""

    def __init__(self, file: BinaryIO):
        self.file, self.decoder = file, codecs.getincrementaldecoder("utf-8-sig")()
        self.text, self.at, self.line, self.ended = "", 0, 1, False

    def rows(self) -> Found:
        """Until its end, or its first error."""
        self._skip(SPACE)
        self.at += 1  # the bracket, by which it was told
        first = True
        try:
            while True:
                self._skip(SPACE)
                mark = self._peek()
                if mark == "]":
                    self.at += 1
                    self._skip(SPACE)
                    if self._peek():
                        yield self.line, RowError(self.line, "there is text behind the end of the array")
                    return
                if not first:
                    if mark != ",":
                        raise _Broken("expecting ',' or ']' between two rows" if mark else "the array does not end")
                    self.at += 1
                    self._skip(SPACE)
                if not self._peek():
                    raise _Broken("the array does not end")
                first = False
                number = self.line
                yield number, _object(number, self._value())
        except _Broken as error:
            yield self.line, RowError(self.line, f"not valid JSON: {error}")
        except UnicodeDecodeError:
            yield self.line, RowError(self.line, "not UTF-8 text (in or soon after this row)")
        except RecursionError:
            yield self.line, RowError(self.line, "nested too deeply")

    def _value(self) -> Any:
        wanted = CHUNK_BYTES
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                goes_on = error.msg.startswith(UNFINISHED) or error.pos >= len(self.text) - SLACK
                if not goes_on or self.ended:
                    self.line += self.text.count("\n", self.at, error.pos)
                    raise _Broken(f"{error.msg} (column {error.colno})") from None
            else:
                if end < len(self.text) or self.ended:
                    self.line += self.text.count("\n", self.at, end)
                    self.at = end
                    return value
            if len(self.text) - self.at > MAX_LINE_BYTES:
                raise _Broken(f"a row is longer than {MAX_LINE_BYTES // 2**20} MiB, or a text in it does not end")
            self._more(wanted)
            wanted *= 2

    def _skip(self, marks: str) -> None:
        while True:
            rest = len(self.text)
            while self.at < rest and self.text[self.at] in marks:
                self.line += self.text[self.at] == "\n"
                self.at += 1
            if self.at < rest or self.ended:
                return
            self._more(CHUNK_BYTES)

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _more(self, count: int) -> None:
        chunk = self.file.read(count)
        self.ended = not chunk
        self.text = self.text[self.at :] + self.decoder.decode(chunk, final=self.ended)
        self.at = 0


class _Broken(ValueError):
    """The JSON cannot be read on."""
