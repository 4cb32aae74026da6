"""mnist_vae.py stands alone, and its losses are those of vae.py to the last printed digit."""
import ast
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from torchvision import datasets

import mnist_vae
import vae

SCRIPT = ROOT / "mnist_vae.py"


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """A folder with 300 training and 70 test images in MNIST's own layout, for want of MNIST."""
    folder = tmp_path_factory.mktemp("data")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, n in (("train", 300), ("t10k", 70)):
        images = rng.integers(0, 256, (n, 28, 28), np.uint8)
        header = np.array([0x803, n, 28, 28], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.arange(n, dtype=np.uint8) % 10
        header = np.array([0x801, n], ">i4").tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return folder


def test_its_losses_are_those_of_vae_py(mnist, tmp_path):
    """A short last batch, three epochs, another rate and seed than the defaults."""
    flags = ["--hidden=30", "--latent=5", "--epochs=3", "--batch-size=64", "--lr=2e-3", "--seed=7",
             f"--data={mnist}"]
    done = subprocess.run([sys.executable, SCRIPT, *flags], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"train loss ([\d.]+), test loss ([\d.]+) = recon ([\d.]+) \+ kl ([\d.]+)",
                         done.stdout)
    _, log = vae.main(flags, out=tmp_path / "run", device="cpu", quiet=True)
    columns = ("train_loss", "test_loss", "test_recon", "test_kl")
    expected = [tuple(f"{row[column]:.6g}" for column in columns) for row in log]
    assert printed == expected
    assert (tmp_path / "mnist_vae.png").stat().st_size > 1000


def test_it_imports_nothing_of_ours_and_says_what_it_needs():
    source = SCRIPT.read_text(encoding="utf-8")
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
    assert modules - set(sys.stdlib_module_names) == {"torch", "torchvision"}
    header = re.search(r"# /// script\n(# .*\n)+# ///\n", source)   # PEP 723, read by uv run
    assert header and "torch>=" in header[0] and "torchvision>=" in header[0]
    n = len(source.splitlines())
    assert n <= 140   # about 120
    assert f"is {n} lines long" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_without_mnist_it_names_the_files_and_the_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setattr(sys, "argv", ["mnist_vae.py", "--data", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        mnist_vae.main()
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error:")
    assert "train-images-idx3-ubyte.gz" in line and f"{tmp_path}/MNIST/raw" in line


@pytest.mark.parametrize("flag, value", [("--epochs", "0"), ("--batch-size", "-1"),
                                         ("--lr", "nan")])
def test_what_cannot_be_trained_is_refused_by_its_flag(flag, value, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mnist_vae.py", flag, value])
    with pytest.raises(SystemExit) as stop:
        mnist_vae.main()
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == f"mnist_vae.py: error: {flag} must be greater than 0"


def test_a_server_that_does_not_answer_is_given_up(tmp_path, monkeypatch, capsys):
    """It takes the connection and says nothing, here for a tenth of a second instead of ten."""
    seconds = []
    wait = socket.setdefaulttimeout

    def set_timeout(value):
        seconds.append(value)
        wait(value and value / 100)

    monkeypatch.setattr(mnist_vae.socket, "setdefaulttimeout", set_timeout)
    before = socket.getdefaulttimeout()
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
            with pytest.raises(SystemExit) as stop:
                mnist_vae.load_mnist(tmp_path, "cpu")
    finally:
        wait(before)
    assert stop.value.code == 2 and seconds == [10]
    assert "train-images-idx3-ubyte.gz" in capsys.readouterr().err
