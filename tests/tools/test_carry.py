"""tools/carry.py: a change of a script reaches the recipes made from it."""
import shutil
import subprocess

import pytest

from tools import carry

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="it takes git")

BEFORE = "import math\n\n\ndef loss(x):\n    return x\n\n\ndef train(x):\n    return loss(x)\n"
RECIPE = BEFORE.replace("return x\n", "return abs(x)\n")      # another loss


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with vae.py and recipes/mine.py, made from it."""
    monkeypatch.setattr(carry, "ROOT", tmp_path)
    monkeypatch.setattr(carry, "ORIGINALS", {"mine": "vae"})
    (tmp_path / "recipes").mkdir()
    (tmp_path / "vae.py").write_text(BEFORE)
    (tmp_path / "recipes/mine.py").write_text(RECIPE)
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_a_change_elsewhere_is_carried(project, capsys):
    carry.main([])
    assert (project / "recipes/mine.py").read_text() == RECIPE      # nothing has changed
    (project / "vae.py").write_text(BEFORE.replace("return loss(x)", "return 2 * loss(x)"))
    carry.main([])
    merged = RECIPE.replace("return loss(x)", "return 2 * loss(x)")
    assert (project / "recipes/mine.py").read_text() == merged
    assert capsys.readouterr().out == "recipes/mine.py: carried\n"


def test_a_change_of_the_same_line_is_a_conflict(project, capsys):
    (project / "vae.py").write_text(BEFORE.replace("return x\n", "return x * x\n"))
    with pytest.raises(SystemExit) as stop:
        carry.main([])
    assert stop.value.code == 1 and capsys.readouterr().out == "recipes/mine.py: conflicts: 1\n"
    text = (project / "recipes/mine.py").read_text()
    assert "<<<<<<< mine.py" in text and "abs(x)" in text and "x * x" in text


def test_an_unknown_commit_is_refused(project, refused):
    assert "--since" in refused(carry, ["--since", "v9"])
