"""What an earlier run of a benchmark left on disk, read strictly: each fault is one error that says what to do.

`advice` of every function is what to do where the file cannot be read, as the end of a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np

from edgevit.errors import ProgramError
from edgevit.program.program import Program, load_program
from edgevit.util import strict_json

T = TypeVar("T")
REMAKE = "delete it, and it is made again"


def read_table(path: Path, advice: str, kind: Any = dict[str, Any]) -> dict[str, Any]:
    """Return a JSON table of this `kind`; an empty one where there is no file.

    Raises:
        ClickException: the file is damaged, or holds something else.
    """
    return dict(_typed(path, _parsed(path, advice) if path.exists() else {}, kind, "table", advice))


def read_rows(path: Path, kind: type[T], advice: str) -> list[T]:
    """Return rows that are all that a JSON file holds, or lie in a table under `rows`; none where there is no file.

    Raises:
        ClickException: the file is damaged, or holds other rows.
    """
    data = _parsed(path, advice) if path.exists() else []
    found = data.get("rows") if isinstance(data, Mapping) else data
    return list(_typed(path, found, tuple[kind, ...], "rows", advice))  # type: ignore[valid-type]


def read_array(path: Path, shape: tuple[int, ...], advice: str = REMAKE) -> np.ndarray:
    """Return an array of this shape.

    Raises:
        ClickException: the file is missing or damaged, or holds another one.
    """
    try:
        with path.open("rb") as file:
            array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise click.ClickException(f"{path} is damaged: {error}; {advice}") from None
    if array.shape != shape:
        raise click.ClickException(f"{path} is of another run: got {array.shape}, expected {shape}; {advice}")
    return array


def read_program(folder: Path) -> Program:
    """Return a Program.

    Raises:
        ClickException: it is damaged.
    """
    try:
        return load_program(folder)
    except ProgramError as error:
        raise click.ClickException(f"{error}; delete {folder}, and it is made again") from None


def _parsed(path: Path, advice: str) -> Any:
    try:
        return strict_json.read_json(path)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{path} is damaged: {error}; {advice}") from None


def _typed(path: Path, data: Any, kind: Any, name: str, advice: str) -> Any:
    faults: list[str] = []
    value = strict_json.from_data(kind, data, faults, name)
    if faults:
        raise click.ClickException(f"{path} is of another version: {faults[0]}; {advice}")
    return value
