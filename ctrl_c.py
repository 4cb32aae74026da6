"""Import this first: Ctrl-C leaves no traceback, not even while torch is being imported, which
takes seconds. (Once main has begun, run.py says what was stopped and how to go on.) A program
elsewhere that imports these scripts keeps its tracebacks."""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def without_traceback(kind, error, traceback):
    """An excepthook of sys: Python's own, but an interruption is said in a line."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped before the first step", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


program = Path(sys.argv[0]).resolve()
if program.is_file() and ROOT in program.parents[:2]:   # of this folder, of recipes/ or of tools/
    sys.excepthook = without_traceback
