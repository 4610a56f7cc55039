"""Results as JSON: plain numbers in SI units, with their intervals and flags."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdbench.report.flat import best_of, flags_of, values_of
from kdbench.report.rows import COLUMNS, Row
from kdbench.report.scenarios import COLUMNS as SCENARIO_COLUMNS
from kdbench.report.scenarios import ScenarioRow
from kdbench.report.table import Ladder
from kdbench.report.text import TextTable


def ladders_to_json(ladders: Sequence[Ladder], columns: Sequence[str] = ()) -> str:
    """Every row of each result file, with all fields, or with those of `columns` and its flags and error."""
    return _written(
        {
            "view": "ladder",
            "results": [
                {
                    "machine": one.result.machine.name,
                    "result": one.result.name,
                    "date": one.result.date,
                    "complete": one.result.complete,
                    "inputs": one.result.inputs,
                    "baseline": one.result.baseline,
                    "metric": one.metric,
                    "rows": [_fields(row, columns or COLUMNS) for row in one.rows],
                    **(
                        {"scenarios": [_fields(row, columns or SCENARIO_COLUMNS) for row in one.scenarios]}
                        if one.scenarios
                        else {}
                    ),
                }
                for one in ladders
            ],
        }
    )


def tables_to_json(tables: Sequence[TextTable], view: str) -> str:
    """Each table with its columns' headings, and its rows by their keys."""
    return _written({"view": view, "tables": [_table(table) for table in tables]})


def _fields(row: Row | ScenarioRow, columns: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in dict.fromkeys((*columns, "flags", "error")) if hasattr(row, name)}


def _table(table: TextTable) -> Mapping[str, Any]:
    rows = [
        {**values, "best": best, "flags": flags}
        for values, best, flags in zip(values_of(table), best_of(table), flags_of(table), strict=True)
    ]
    headings = {column.key: column.name for column in table.columns if column.name}
    return {"title": table.title, "legend": table.legend, "headings": headings, "rows": rows}


def _written(data: Mapping[str, Any]) -> str:
    return json.dumps(_finite(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(data: Any) -> Any:
    """With null in the place of what JSON has no number for."""
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
