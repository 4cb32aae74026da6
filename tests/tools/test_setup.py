"""tools/setup.sh makes the environment once, and prefers the small CPU wheels where they fit."""
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

# Notes in the file `calls` what is installed; torch and torchvision fit from the n-th .venv on.
FAKE_PYTHON = """#!/bin/bash
case "$*" in
  "-c import sys"*) exit 0 ;;
  "-m venv"*) echo venv >> calls; mkdir -p .venv/bin; cp "$FAKE" .venv/bin/python ;;
  *"--index-url"*) echo cpu >> calls ;;
  *"-r requirements.txt"*) echo default >> calls ;;
  "-c import torch, torchvision") [ $(grep -c venv calls) -ge "$FITS_AFTER" ] ;;
esac
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or bool(shutil.which("nvidia-smi")),
                    reason="CPU wheels are for Linux without an NVIDIA driver")
@pytest.mark.parametrize(("fits_after", "expected"), [
    (1, ["venv", "cpu", "default"]),                  # CPU wheels fit: only the rest is added
    (2, ["venv", "cpu", "venv", "default"]),          # they do not: start over, clean
])
def test_cpu_wheels_that_fit_are_preferred_and_all_is_done_once(tmp_path, fits_after, expected):
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "setup.sh", tmp_path / "tools")
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    fake = tmp_path / "python"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    environment = {"PYTHON": str(fake), "FAKE": str(fake), "FITS_AFTER": str(fits_after)}

    def set_up():
        """As demo.sh does, from wherever it is called; it leaves the shell in the project."""
        return subprocess.run(["bash", "-c", f". {tmp_path}/tools/setup.sh && pwd"], cwd="/",
                              capture_output=True, text=True, env=os.environ | environment)

    first, second = set_up(), set_up()
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1] == str(tmp_path)
    assert second.returncode == 0 and second.stdout.splitlines() == [str(tmp_path)]
    assert (tmp_path / "calls").read_text().split() == expected
