"""What several tests share: tiny real runs on the built-in digits, and how a refusal looks."""
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")   # before torch reads it: two tests run at a time

import numpy as np
import pytest

import cvae
import flow
import gan
import run
import vae

ROOT = Path(__file__).resolve().parent.parent
TINY = {"dataset": "digits", "hidden": 32, "latent": 2, "epochs": 2, "quiet": True, "device": "cpu"}


@pytest.fixture(scope="session")
def vae_run(tmp_path_factory):
    """(run folder, model, log) of a tiny vae.py run."""
    folder = tmp_path_factory.mktemp("vae") / "run"
    model, log = vae.main(out=folder, **TINY)
    return folder, model, log


@pytest.fixture(scope="session")
def cvae_run(tmp_path_factory):
    """(run folder, CVAE, log) of a tiny cvae.py run with its twin."""
    folder = tmp_path_factory.mktemp("cvae") / "run"
    model, log = cvae.main(out=folder, **TINY)
    return folder, model, log


@pytest.fixture(scope="session")
def out(tmp_path_factory):
    """A folder for evaluate.py --out: its cache/ keeps the classifiers of digits, for all tests."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        return folder.parent   # of all workers
    return folder


def drop_plots(monkeypatch):
    """Train without matplotlib, which takes most of the time of such short runs."""
    def nothing(*_):
        pass

    monkeypatch.setattr(run, "save_curves", nothing)
    monkeypatch.setattr(gan, "save_curves", nothing)
    monkeypatch.setattr(flow, "save_curves", nothing)
    monkeypatch.setattr(run, "save_latent", nothing)


@pytest.fixture
def no_plots(monkeypatch):
    drop_plots(monkeypatch)


@pytest.fixture
def refused(capsys):
    """A function that runs a script's main, expects it to be refused, and returns the one line:
    exit status 2, nothing on stdout, no traceback."""
    def refusal(script, argv=(), **flags):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            script.main(argv, **flags)
        printed = capsys.readouterr()
        assert stop.value.code == 2
        assert printed.out == "" and printed.err.count("\n") == 1
        return printed.err
    return refusal


@pytest.fixture
def real():
    """A function of a data set's name: the folder of real data that has it, or the test is skipped.
    MINIGEN_DATA names the folder."""
    def folder_with(name):
        folder = Path(os.environ.get("MINIGEN_DATA", "data"))
        file = folder / name
        if name.endswith("MNIST"):   # a download that failed leaves an empty folder
            file = file / "raw" / "train-images-idx3-ubyte"
        if not file.exists():
            pytest.skip(f"no {name} in {folder}; MINIGEN_DATA names another folder")
        return folder
    return folder_with


@pytest.fixture
def npz(tmp_path):
    """Writes an .npz with the Keras keys; keywords replace arrays, or drop them if None."""
    def write(**replaced):
        x = np.random.default_rng(0).integers(0, 256, (27, 8, 8), np.uint8)
        arrays = {"x_train": x[:20], "y_train": np.arange(20) % 4,
                  "x_test": x[20:], "y_test": np.arange(7) % 4}
        arrays |= replaced
        kept = {name: array for name, array in arrays.items() if array is not None}
        np.savez(tmp_path / "own.npz", **kept)
        return tmp_path / "own.npz"
    return write


def pytest_collection_modifyitems(items):
    """The longest test first: at the end one worker would wait for the other."""
    items.sort(key=lambda item: item.name != "test_tutorial")
