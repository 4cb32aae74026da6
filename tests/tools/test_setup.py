"""tools/setup.sh makes the environment once, by uv or by pip, prefers the small CPU wheels where
they fit, and starts again after an interruption."""
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

# Notes in the file `calls` what is installed with what; torch and torchvision fit from the n-th
# .venv on; the step INTERRUPTED ends as Ctrl-C ends it.
FAKE_PYTHON = """#!/bin/bash
note() { echo "$1" >> calls; [ "$1" != "$INTERRUPTED" ] || exit 130; }
case "$*" in
  "-c import sys"*) exit 0 ;;
  "-m venv"*) note venv; mkdir -p .venv/bin; cp "$FAKE" .venv/bin/python ;;
  "-m pip install"*" uv") exit 0 ;;
  "-m uv --version") [ "$WITH" = uv ] ;;
  *"--index-url"*) note "$2:cpu" ;;
  *"-r requirements.txt"*) note "$2:default" ;;
  "-c import torch, torchvision") [ $(grep -c venv calls) -ge "$FITS_AFTER" ] ;;
esac
"""

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or bool(shutil.which("nvidia-smi")),
    reason="CPU wheels are for Linux without an NVIDIA driver")


@pytest.fixture
def project(tmp_path):
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "setup.sh", tmp_path / "tools")
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    fake = tmp_path / "python"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    return tmp_path


def set_up(project, **flags):
    """As demo.sh does, from wherever it is called; it leaves the shell in the project. Returns the
    process and what was installed."""
    environment = {"PYTHON": f"{project}/python", "FAKE": f"{project}/python", "FITS_AFTER": "1",
                   "WITH": "uv", "INTERRUPTED": ""} | flags
    (project / "calls").write_text("")
    done = subprocess.run(["bash", "-c", f". {project}/tools/setup.sh && pwd"], cwd="/",
                          capture_output=True, text=True, env=os.environ | environment)
    return done, (project / "calls").read_text().split()


@pytest.mark.parametrize("tool", ["uv", "pip"])
@pytest.mark.parametrize("fits_after, expected", [
    (1, ["venv", "cpu", "default"]),                  # CPU wheels fit: only the rest is added
    (2, ["venv", "cpu", "venv", "default"]),          # they do not: start over, clean
])
def test_cpu_wheels_that_fit_are_preferred_and_all_is_done_once(project, tool, fits_after,
                                                                expected):
    first, installed = set_up(project, WITH=tool, FITS_AFTER=str(fits_after))
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == str(project)
    assert [step.removeprefix(f"{tool}:") for step in installed] == expected
    second, installed = set_up(project)
    assert second.returncode == 0 and second.stdout.splitlines() == [str(project)]
    assert installed == []


@pytest.mark.parametrize("step", ["venv", "uv:default"])
def test_what_an_interruption_left_is_made_anew(project, step):
    stopped, _ = set_up(project, INTERRUPTED=step)
    assert stopped.returncode != 0
    again, installed = set_up(project)
    assert again.returncode == 0 and installed == ["venv", "uv:cpu", "uv:default"]
