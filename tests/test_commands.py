"""The commands a reader types, as the README, the docstrings and the design give them."""
import argparse
import inspect
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import benchmark
import pytest

import cvae
import demo
import evaluate
import gan
import generate
import vae
from common import add_plumbing_flags

ROOT = Path(__file__).parent.parent
SCRIPTS = {"vae.py": vae, "cvae.py": cvae, "gan.py": gan, "generate.py": generate,
           "evaluate.py": evaluate, "benchmark.py": benchmark}
TRAINING = ("vae.py", "cvae.py")


def run(*command, cwd, **environment):
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True,
                          env=os.environ | environment, timeout=120)


def test_a_run_from_another_folder_shows_a_bar_on_a_terminal(tmp_path):
    """A pseudo-terminal of 100 columns stands for the user's."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    command = [sys.executable, ROOT / "cvae.py", "--dataset", "digits", "--latent=2", "--epochs=2"]
    done = subprocess.run(command, cwd=tmp_path, stderr=theirs, stdout=subprocess.PIPE, text=True)
    bar = os.read(ours, 100_000).decode()
    assert "epoch 1/2" not in done.stdout   # no plain lines beside the bar
    assert "2/2" in bar and "test loss" in bar and "images/s" in bar
    assert (tmp_path / "results" / "cvae-digits" / "sample_vae_002.png").exists()


@pytest.mark.parametrize("script", TRAINING)
def test_one_file_of_two_in_an_empty_folder(script, tmp_path):
    """cat common.py and the script, less its imports from it: a single file to hand round."""
    command = f"(cat common.py; grep -v '^from common import' {script}) > {tmp_path}/my_vae.py"
    subprocess.run(command, shell=True, check=True, cwd=ROOT)
    flags = ("--dataset=digits", "--epochs=1", "--out=run")
    done = run(sys.executable, "my_vae.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_siblings_differ_in_little():
    lines = run("diff", "vae.py", "cvae.py", cwd=ROOT).stdout.splitlines()
    assert 20 < sum(line[0] in "<>" for line in lines) <= 160


def test_siblings_share_what_no_label_touches():
    """What is tested of one is then tested of both."""
    for name in ("sigma", "dense", "mlp", "conv", "make_learner", "beta_at", "epoch_means",
                 "binarize", "warn_of_collapse"):
        ours, theirs = (inspect.getsource(getattr(script, name)) for script in (vae, cvae))
        assert ours == theirs, name


def test_help_imports_nothing_heavy():
    code = ("import sys, vae\n"
            "try: vae.main(['--help'])\n"
            "except SystemExit: pass\n"
            "heavy = {'matplotlib', 'sklearn', 'torchvision', 'PIL'} & {*sys.modules}\n"
            "assert not heavy, heavy")
    done = run(sys.executable, "-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--latent" in done.stdout and "default: 20" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_is_read(script):
    source, plumbing = (ROOT / script).read_text(), argparse.ArgumentParser()
    add_plumbing_flags(plumbing)
    shared = vars(plumbing.parse_args([])) if "add_plumbing_flags" in source else {}
    for action in SCRIPTS[script].flags()._actions:
        text = source + ((ROOT / "common.py").read_text() if action.dest in shared else "")
        if action.dest != "help":
            assert re.search(rf'(args|wish)\.{action.dest}\b|"{action.dest}"', text), action.dest


def commands(text):
    return re.findall(r"^(?:    )?(?:\$ )?python (\w+\.py)([^#\n|;&]*)", text, re.M)


def test_every_command_of_readme_and_docstrings_parses():
    names = ("README.md", "results/README.md", *SCRIPTS, "demo.py")
    texts = [(ROOT / name).read_text() for name in names]
    found = [command for text in texts for command in commands(text)]
    assert len(found) > 10
    for script, flags in found:
        assert (ROOT / script).exists(), script
        if script in SCRIPTS:
            SCRIPTS[script].flags().parse_args([f for f in shlex.split(flags) if f[0] != "@"])


def test_readme_points_at_files_that_exist():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", text)
    names = [name for pair in links for name in pair if name and not name.startswith("http")]
    assert names and all((ROOT / name).exists() for name in names), names


def test_demo_goes_on_with_digits_where_there_is_no_mnist(tmp_path, capsys, monkeypatch):
    import torchvision
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    demo.main(data=tmp_path, out=tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert "taking the built-in digits" in lines[0]
    assert "--dataset=digits" in (tmp_path / "run" / "args.txt").read_text()
    table = [line.split() for line in lines if line.startswith(("CVAE", "VAE"))]
    table = {name: float(loss) for name, loss, *_ in table}
    assert 100 < table["CVAE"] < table["VAE"] < 300   # a label helps when z has two dimensions
    paths = [Path(line.strip()) for line in lines if line.endswith(".png")]
    assert len(paths) == 5 and all(path.exists() for path in paths)


def test_demo_hands_its_flags_on(tmp_path, monkeypatch):
    class Enough(Exception):
        """What follows is tested above."""

    def train(**flags):
        seen.update(flags)
        raise Enough
    seen = {}
    monkeypatch.setattr(demo.cvae, "main", train)
    monkeypatch.setattr(demo, "load_data", lambda *_: None)   # MNIST is there
    with pytest.raises(Enough):
        demo.main(seed=5, device="cpu", data="mine", out=tmp_path)
    assert seen == {"dataset": "MNIST", "data": "mine", "epochs": 10, "latent": 2, "hidden": 500,
                    "seed": 5, "device": "cpu", "out": str(tmp_path), "train_size": 6000,
                    "test_size": 1000}


def test_first_epoch_on_real_mnist(real, tmp_path):
    _, log = vae.main(data=real("MNIST"), epochs=1, out=tmp_path / "run", quiet=True)
    assert 110 < log[-1]["test_loss"] < 130


def fake_python(tmp_path, fits_after):
    """A python that notes how it was called; torch and torchvision fit from the n-th .venv on."""
    fake = tmp_path / "python"
    fake.write_text(f"""#!/bin/bash
case "$*" in
  "-c import sys"*) exit 0 ;;
  "-m venv"*) echo venv >> calls; mkdir -p .venv/bin; cp {fake} .venv/bin/python ;;
  *"--index-url"*) echo cpu >> calls ;;
  *"-r requirements.txt"*) echo default >> calls ;;
  "-c import torch, torchvision") [ $(grep -c venv calls) -ge {fits_after} ] ;;
esac
""")
    fake.chmod(0o755)
    shutil.copy(ROOT / "setup.sh", tmp_path)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    return fake


@pytest.mark.skipif(not sys.platform.startswith("linux") or bool(shutil.which("nvidia-smi")),
                    reason="CPU wheels are for Linux without an NVIDIA driver")
@pytest.mark.parametrize("fits_after, expected", [
    (1, ["venv", "cpu", "default"]),                     # CPU wheels fit: only the rest is added
    (2, ["venv", "cpu", "venv", "default"])])            # they do not: start over, clean
def test_setup_prefers_cpu_wheels_that_fit_and_is_done_once(tmp_path, fits_after, expected):
    fake = fake_python(tmp_path, fits_after)
    done = run("bash", "-c", f". {tmp_path}/setup.sh", cwd="/", PYTHON=str(fake))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().split() == expected
    assert "CPU wheels installed" in done.stdout or "default index" in done.stdout
    again = run("bash", "-c", f". {tmp_path}/setup.sh", cwd="/", PYTHON=str(fake))
    assert (again.returncode, again.stdout) == (0, "")
    assert (tmp_path / "calls").read_text().split() == expected
