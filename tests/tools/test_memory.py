"""The peak of a process is that of the process itself, not of one that started it."""
import subprocess
import sys

import pytest
from conftest import ROOT


def run(code):
    """A new Python, which has not imported torch as this one has."""
    return subprocess.run([sys.executable, "-c", f"from tools.memory import peak; {code}"],
                          cwd=ROOT, capture_output=True, text=True)


def test_the_peak_is_what_a_process_takes():
    done = run("print(peak(['-c', 'x = bytes(2 ** 20) * 200']), peak(['-c', 'pass']))")
    large, small = map(float, done.stdout.split())
    assert small < 50 and large - small == pytest.approx(200, abs=20)


def test_a_script_that_fails_is_named():
    done = run("peak(['-c', 'raise SystemExit(3)'])")
    assert done.returncode == 1 and "SystemExit(3)" in done.stderr
