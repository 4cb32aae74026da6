"""The peak of a process is that of the process itself, not of one before it."""
import pytest

from tools import memory


def test_the_peak_is_what_a_process_takes():
    large = memory.peak(["-c", "x = b'1' * (200 << 20)"])
    small = memory.peak(["-c", "pass"])
    assert large - small == pytest.approx(200, abs=20)


def test_a_script_that_fails_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        memory.peak(["-c", "raise SystemExit(3)"])
    assert stop.value.code == 1 and "SystemExit(3)" in capsys.readouterr().err
