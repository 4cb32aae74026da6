"""Import this first: Ctrl-C leaves no traceback, not even while torch is being imported, which
takes seconds. (Once main has begun, run.py says what was stopped and how to go on.)"""
import sys


def without_traceback(kind, error, traceback):
    """An excepthook of sys: Python's own, but an interruption is said in a line."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped before the first step", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = without_traceback
