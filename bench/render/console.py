"""The end of a run on a terminal: the comparison as a table, then the findings."""

from __future__ import annotations

from typing import TextIO

from edgevlm.bench.render.findings import findings
from edgevlm.bench.render.table import comparison
from edgevlm.bench.report import Report
from edgevlm.tables import print_table, printable


def print_report(report: Report, stream: TextIO) -> None:
    """Print the summary of `report`."""
    table = comparison(report)
    rows = [[printable(str(cell)) for cell in row] for row in table.rows]
    print_table(table.headers, rows, numeric=table.numeric, stream=stream)
    for line in findings(report):
        stream.write(f"{printable(str(line))}\n")
