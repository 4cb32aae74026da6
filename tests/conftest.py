"""What several tests share: tiny real runs on the built-in digits."""
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")   # before torch reads it: two tests run at a time

import numpy as np
import pytest

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
