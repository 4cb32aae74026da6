"""tools/compare_logs.py finds a difference in the last digit, and does not mind the seconds."""
import runpy
import sys

import pytest
from conftest import ROOT

from tools import compare_logs

LOG = "epoch,seconds,loss\n1,2.5,101.25\n2,2.5,99.5\n"


@pytest.fixture
def write(tmp_path):
    """Writes the log of a run; returns the folder of the runs."""
    def write(runs, name, log):
        folder = tmp_path / runs / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.csv").write_text(log)
        return tmp_path / runs
    return write


@pytest.mark.parametrize(("new_log", "status", "line"), [
    (LOG, 0, "equal, 2 rows"),
    (LOG.replace("2.5", "7"), 0, "equal, 2 rows"),
    (LOG.replace("99.5", "99.50001"), 1, "loss in row 2: 99.5 and 99.50001"),
    (LOG.replace("101.25", ""), 1, "loss in row 1: 101.25 and "),
    (LOG + "3,2.5,98\n", 1, "2 and 3 rows"),
    (LOG.replace("loss", "test_loss"), 1, "columns epoch, seconds, loss and epoch, seconds,"),
])
def test_two_runs(write, capsys, new_log, status, line):
    old, new = write("old", "a", LOG) / "a", write("new", "a", new_log) / "a"
    assert compare_logs.main(old, new) == status
    printed = capsys.readouterr().out
    assert f"{new}: {line}" in printed and printed.count("\n") == 1


def test_folders_of_runs_as_a_command(write, monkeypatch, capsys):
    """One run is equal, one differs, one is missing."""
    for name in ("a", "b", "c"):
        old = write("old", name, LOG)
    write("new", "a", LOG)
    new = write("new", "b", LOG.replace("99.5", "99.6"))
    monkeypatch.setattr(sys, "argv", ["compare_logs.py", str(old), str(new)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools" / "compare_logs.py"), run_name="__main__")
    assert stop.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        "a: equal, 2 rows", "b: loss in row 2: 99.5 and 99.6", "c: has a log in one folder only"]


def test_folders_without_runs(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        compare_logs.main(tmp_path, tmp_path)
    assert stop.value.code == 2 and "neither two runs nor" in capsys.readouterr().err
