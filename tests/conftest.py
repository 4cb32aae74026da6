"""What several tests share: tiny real runs on the built-in digits."""
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")   # before torch reads it: two tests run at a time

import numpy as np
import pytest
import torch

import cvae
import vae

TINY = {"dataset": "digits", "hidden": 32, "latent": 2, "epochs": 2, "quiet": True, "device": "cpu"}


@pytest.fixture(scope="session")
def vae_run(tmp_path_factory):
    """(run folder, model, log) of a tiny vae.py run."""
    folder = tmp_path_factory.mktemp("vae") / "run"
    return folder, *vae.main(out=folder, **TINY)


@pytest.fixture(scope="session")
def cvae_run(tmp_path_factory):
    """(run folder, CVAE, log) of a tiny cvae.py run with its twin."""
    folder = tmp_path_factory.mktemp("cvae") / "run"
    return folder, *cvae.main(out=folder, **TINY)


@pytest.fixture
def real():
    """A function of a data set's name: the folder of real data that has it, or the test is skipped.
    A named data set needs its files, for a download that failed leaves an empty folder."""
    def folder_with(name):
        folder = Path(os.environ.get("MINIGEN_DATA", "data"))
        file = folder / name
        if not (file / "raw/train-images-idx3-ubyte" if name.endswith("MNIST") else file).exists():
            pytest.skip(f"no {name} in {folder}; MINIGEN_DATA names another folder")
        return folder
    return folder_with


@pytest.fixture
def scatters(monkeypatch):
    """What matplotlib is asked to scatter: (axes, points (N, 2), colours) each time."""
    from matplotlib.axes import Axes
    scatter, seen = Axes.scatter, []
    monkeypatch.setattr(Axes, "scatter", lambda axes, *points, **flags: seen.append(
        (axes, torch.stack([torch.as_tensor(part) for part in points], 1), flags["c"]))
        or scatter(axes, *points, **flags))
    return seen


@pytest.fixture
def npz(tmp_path):
    """Writes an .npz with the Keras keys; keywords replace arrays, or drop them if None."""
    def write(**replaced):
        rng = np.random.default_rng(0)
        x = rng.integers(0, 256, (27, 8, 8), np.uint8)
        arrays = {"x_train": x[:20], "y_train": np.arange(20) % 4,
                  "x_test": x[20:], "y_test": np.arange(7) % 4}
        arrays = {k: v for k, v in (arrays | replaced).items() if v is not None}
        np.savez(tmp_path / "own.npz", **arrays)
        return tmp_path / "own.npz"
    return write
