"""JSON files, plain or gzip-compressed, whose errors say which file and which line."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from fullfed.errors import UserError


def read_text(path: Path) -> str:
    """The whole file as text.

    Raises:
        UserError: the file cannot be read, is a damaged gzip file or is not UTF-8.
    """
    try:
        data = path.read_bytes()
        # A byte order mark, as some editors write it, is no part of the text.
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; convert it first ({error}).") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file; fetch it again ({error}).") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def parse_json(text: str, path: Path) -> object:
    """The one JSON value in `text`, the content of `path`.

    Raises:
        UserError: malformed JSON; names the line.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: malformed JSON ({error.msg}); mend that line."
        ) from error
    except (ValueError, RecursionError) as error:  # numbers too long, brackets too deep
        raise UserError(f"{path}: JSON that cannot be read ({error}); mend it.") from error


def parse_json_lines(text: str, path: Path) -> Iterator[tuple[str, object]]:
    """(place, value) of every line of `text` that is not blank; `place` names file and line.

    Raises:
        UserError: malformed JSON; names the line.
    """
    # Not str.splitlines: JSON may hold U+2028 and its like unescaped.
    for number, match in enumerate(re.finditer(r"[^\n]*\n?", text), start=1):
        line = match[0]
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{place}: malformed JSON ({error.msg}); mend or remove that line."
            ) from error
        except (ValueError, RecursionError) as error:  # numbers too long, brackets too deep
            raise UserError(
                f"{place}: JSON that cannot be read ({error}); mend or remove that line."
            ) from error
        yield place, value
