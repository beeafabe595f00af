"""Tables of text: every column named and typed, none guessed."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hanax.devices.public._folder import PublicDataError, PublicFolder

if TYPE_CHECKING:
    import pandas as pd


def read_csv(folder: PublicFolder, name: str, kinds: Mapping[str, str]) -> pd.DataFrame:
    """The columns of the CSV file `name`, which must be those of `kinds`, in order and of these types.

    Raises:
        PublicDataError: The file is missing or no such table.
    """
    return parse_csv(folder.read(name), str(folder.path / name), kinds, has_names=True)


def parse_csv(content: bytes, where: str, kinds: Mapping[str, str], *, has_names: bool) -> pd.DataFrame:
    """As `read_csv`, of a file's content; without `has_names` it has no first line of column names.

    Raises:
        PublicDataError: It is no such table.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(
            io.BytesIO(content), header=0 if has_names else None, dtype=str, keep_default_na=False, index_col=False
        )
    except (ValueError, UnicodeDecodeError, pd.errors.EmptyDataError) as error:
        raise PublicDataError(f"{where} is not a table: {str(error).strip()}") from error
    if not has_names and frame.shape[1] == len(kinds):
        frame.columns = pd.Index(list(kinds))
    if list(frame.columns) != list(kinds):
        raise PublicDataError(
            f"{where} has the columns {', '.join(map(str, frame.columns))}; they should be {', '.join(kinds)}"
        )
    for column, kind in kinds.items():
        try:
            if kind == "int64":
                frame[column] = frame[column].astype("int64")
            elif kind == "float64":
                frame[column] = frame[column].astype("float64")
        except ValueError as error:
            raise PublicDataError(f"{where}: column {column}: {error}") from error
    return frame
