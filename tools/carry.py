"""Carry a change of vae.py, cvae.py or gan.py into the recipes that were made from it.

    python -m tools.carry                    # what has changed since the last commit
    python -m tools.carry --since HEAD~3     # or since an earlier one

Each recipe is merged line by line, by git. Where a recipe has changed the very lines that the
script has changed, both versions stay in it between <<<<<<< and >>>>>>>, and a line says so.
"""
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from common import fail, tell
from recipes import ORIGINALS

ROOT = Path(__file__).resolve().parent.parent


def source_at(commit, script):
    """The source of a script in a commit, bytes."""
    done = subprocess.run(["git", "show", f"{commit}:./{script}"], cwd=ROOT, capture_output=True)
    if done.returncode != 0:
        error = done.stderr.decode(errors="replace")
        fail(f"--since {commit}: {script} cannot be read ({error}); name another commit")
    return done.stdout


def carry(recipe, before, after):
    """Merge into the file `recipe` what differs between the files `before` and `after`. Returns the
    number of conflicts."""
    names = []
    for name in (recipe.name, "before", "after"):
        names += ["-L", name]
    command = ["git", "merge-file", *names, str(recipe), str(before), str(after)]
    done = subprocess.run(command, capture_output=True)
    if done.returncode > 127:   # git could not merge; below that it counts conflicts
        fail(f"{recipe} cannot be merged: {done.stderr.decode(errors='replace')}", status=1)
    return done.returncode


def main(argv=()):
    """Carry the changes into every recipe; exit status 1 if one has conflicts."""
    parser = argparse.ArgumentParser(prog="-m tools.carry", description=__doc__.splitlines()[0])
    parser.add_argument("--since", default="HEAD", metavar="COMMIT",
                        help="the commit that the recipes follow (default: HEAD)")
    args = parser.parse_args(argv)
    conflicts = 0
    for name, original in ORIGINALS.items():
        recipe = ROOT / "recipes" / f"{name}.py"
        after = ROOT / f"{original}.py"
        with tempfile.TemporaryDirectory() as scratch:
            before = Path(scratch, after.name)
            before.write_bytes(source_at(args.since, after.name))
            if before.read_bytes() == after.read_bytes():
                continue
            n = carry(recipe, before, after)
        tell(f"recipes/{name}.py: " + (f"conflicts: {n}" if n else "carried"))
        conflicts += n
    if conflicts:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
