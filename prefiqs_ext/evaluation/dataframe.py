"""Tables of an evaluation as pandas DataFrames. Needs pandas.

For example, the pAUC of each method at each FMR::

    make_dataframe(evaluation).pivot(index="method", columns="fmr", values="pauc")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefiqs_ext.evaluation.results import make_tables
from prefiqs_ext.evaluation.runner import Evaluation
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.utils.optional_packages import require_packages

if TYPE_CHECKING:
    import pandas as pd

_TEXTS = ("data", "verifier", "method", "other", "mode", "group")


def make_dataframe(evaluation: Evaluation, table: str = "edc") -> pd.DataFrame:
    """Make a DataFrame of a table that an evaluation writes as CSV.

    Args:
        evaluation: What `run_evaluation` gave.
        table: "edc", "differences" or, if the evaluation has groups, "groups".

    Returns:
        The rows and columns of that file. Columns of names are texts and all others numbers. NaN stands for an empty
        cell, and for a text that says why there is no number.

    Raises:
        InputError: There is no such table.
        MissingPackageError: pandas is not installed.
    """
    require_packages("pandas", "pandas")
    import pandas as pd

    tables = make_tables(evaluation.results, evaluation.options.protocol)
    if table not in tables:
        raise InputError(f"expected a table of {', '.join(tables)}, got {table!r}")
    columns, rows = tables[table]
    frame = pd.DataFrame(rows, columns=list(columns))
    numbers = [column for column in columns if column not in _TEXTS]
    return frame.assign(**{column: pd.to_numeric(frame[column], errors="coerce") for column in numbers})
