"""Compare the logs of two runs, or of two folders of runs, to the last digit.

    python -m tools.compare_logs results/vae-digits results/vae-digits-2   # one run each
    python -m tools.compare_logs results/old results/new                   # runs of the same names

Every column of log.csv but `seconds` counts. One line per run says whether the logs are equal, or
where they first differ; the exit status is 1 if any differ.
"""
import ctrl_c  # without a traceback, even during these imports
import csv
import sys
from pathlib import Path

from common import fail

NOT_COMPARED = "seconds"   # a time is never the same


def read_rows(folder):
    """The rows of a log as text, {column: cell}, or None where there is no log."""
    file = Path(folder, "log.csv")
    if not file.is_file():
        return None
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines))
    except (OSError, ValueError, csv.Error) as error:   # no text, say
        fail(f"{file} cannot be read as a log ({error}); restore it")


def first_difference(old, new):
    """Where two logs first differ, in words; None if they are equal."""
    if old is None or new is None:
        return "has a log in one folder only"
    for number, (old_row, new_row) in enumerate(zip(old, new, strict=False), 1):
        if old_row.keys() != new_row.keys():
            return f"columns {', '.join(old_row)} and {', '.join(new_row)}"
        for column, cell in old_row.items():
            if column != NOT_COMPARED and new_row[column] != cell:
                return f"{column} in row {number}: {cell} and {new_row[column]}"
    if len(old) != len(new):
        return f"{len(old)} and {len(new)} rows"
    return None


def list_runs(old, new):
    """The names of the runs in two folders; [""] where the folders are themselves runs."""
    if Path(old, "log.csv").is_file() and Path(new, "log.csv").is_file():
        return [""]
    names = set()
    for folder in (old, new):
        for file in Path(folder).glob("*/log.csv"):
            names.add(file.parent.name)
    if not names:
        fail(f"{old} and {new} are neither two runs nor two folders of runs")
    return sorted(names)


def main(old, new):
    """Print a line per run. Returns the exit status."""
    status = 0
    for name in list_runs(old, new):
        rows = read_rows(Path(old, name))
        difference = first_difference(rows, read_rows(Path(new, name)))
        if difference is None:
            print(f"{name or new}: equal, {len(rows)} rows")
        else:
            print(f"{name or new}: {difference}")
            status = 1
    return status


if __name__ == "__main__":
    if len(sys.argv) != 3:
        fail("two folders are compared: python -m tools.compare_logs OLD NEW")
    sys.exit(main(*sys.argv[1:]))
