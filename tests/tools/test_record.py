"""The pages of results are what the logs say, and so is the README's table of speeds."""
import shutil
import subprocess
import sys

from conftest import ROOT

PAGES = ("results/README.md", "results/models/README.md")


def test_the_committed_pages_are_reproduced(tmp_path):
    """From the logs alone: the pages themselves are removed first."""
    unneeded = shutil.ignore_patterns("*.png", "*.pt", "cache", "*.npz", "README.md")
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=unneeded)
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "record.py", tmp_path / "tools")
    subprocess.run([sys.executable, "-m", "tools.record"], cwd=tmp_path, check=True)
    for page in PAGES:
        text = (tmp_path / page).read_text()
        assert text == (ROOT / page).read_text(), page
        assert "nan" not in text.split(), page   # what a missing number would become


def test_the_readme_shows_the_recorded_speed():
    readme = (ROOT / "README.md").read_text()
    for file in (ROOT / "results" / "runs" / "benchmark-cpu").glob("*.txt"):
        _, _, table = file.read_text().strip().partition("\n")   # below the title
        assert table in readme, file
