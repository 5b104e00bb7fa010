"""Fits the forecast's constants to the published runs and writes targets/constants.yaml; prints how far off it is.

    python tools/fit_targets.py           # write the file
    python tools/fit_targets.py --check   # fit on one half, print the errors of both

Run it after changing targets/measurements.yaml or a profile that has rows there.
"""

from __future__ import annotations

import argparse

from edgevlm.atomic import write_text
from edgevlm.tables import print_table
from edgevlm.targets.constants import PATH, Entry
from edgevlm.targets.fitting import Error, errors, fit, fit_all
from edgevlm.targets.measurements import read_measurements

_HEAD = "# Written by tools/fit_targets.py from measurements.yaml; docs/targets.md says what each constant means.\n"


def written(entries: list[Entry]) -> str:
    """The file: one line for each device or family with each runtime."""
    lines = []
    for entry in entries:
        numbers = ", ".join(
            f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}"
            for name, value in entry.model_dump().items()
            if name != "basis"
        )
        lines.append(f'- {{{numbers}, basis: "{entry.basis}"}}\n')
    return _HEAD + "".join(lines)


def show(found: list[Error], title: str) -> None:
    """A table of errors."""
    rows = [
        [
            error.row.target,
            error.row.runtime,
            error.row.model,
            error.stage,
            f"{error.measured:g}",
            f"{error.predicted:.1f}",
            f"{100 * error.relative:+.1f}%",
        ]
        for error in found
    ]
    headers = ["target", "runtime", "model", "stage", "measured", "forecast", "error"]
    print_table(headers, rows, title=title, numeric=headers[4:])


def main() -> None:
    """Write the constants, or check them."""
    parser = argparse.ArgumentParser(description="Fit the forecast's constants to published runs.")
    parser.add_argument("--check", action="store_true", help="Fit on one half of the rows, print the errors of both.")
    data = read_measurements()
    if parser.parse_args().check:
        halves = ([row for row in data.rows if not row.held_back], [row for row in data.rows if row.held_back])
        entries = fit(data, halves[0])
        for rows, title in zip(halves, ("fitted", "held back (decode in tokens/s, else ms)"), strict=True):
            show(errors(data, rows, entries), title)
        return
    write_text(PATH, written(fit_all(data)))


if __name__ == "__main__":
    main()
