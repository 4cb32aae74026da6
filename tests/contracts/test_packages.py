"""With torch, torchvision, numpy and pillow alone the scripts train, save, resume, are drawn and
measured; what needs another package says which in one line."""
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

BLOCK = """
import importlib.machinery

MISSING = ("matplotlib", "tqdm", "sklearn", "torchmetrics", "tensorboard", "torch_fidelity")
find_spec = importlib.machinery.PathFinder.find_spec

def find_what_is_installed(name, path=None, target=None):
    return None if name.split(".")[0] in MISSING else find_spec(name, path, target)

importlib.machinery.PathFinder.find_spec = find_what_is_installed
"""


@pytest.fixture
def python(tmp_path):
    """Runs code where the other packages cannot be imported; returns the finished process."""
    x = np.random.default_rng(0).integers(0, 256, (60, 28, 28), np.uint8)
    y = np.arange(60) % 3
    np.savez(tmp_path / "own.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])

    def run(code):
        return subprocess.run([sys.executable, "-c", BLOCK + code], cwd=tmp_path, text=True,
                              capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return run


def test_everything_a_student_needs(python, tmp_path):
    done = python("""
import vae, cvae, gan, generate, evaluate
tiny = {"dataset": "own.npz", "device": "cpu"}
small = tiny | {"latent": 2, "hidden": 8, "epochs": 1, "lr_schedule": "constant", "lr": 1e-3}
vae.main(out="v", tensorboard=True, **small)
vae.main(resume="v", epochs=2)
cvae.main(out="c", **small)
gan.main(out="g", width=4, batch_size=8, iterations=4, eval_every=2, **tiny)
for run in ("v", "c", "g"):
    generate.main([run])
    evaluate.main([run], metrics="elbo,fid")
""")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for name in ("v/checkpoint_002.pt", "v/sample_002.png", "c/sample_vae_001.png",
                 "c/reconstruction_001.png", "g/sample_004.png", "v/samples_64.png",
                 "c/evaluation.jsonl"):
        assert (tmp_path / name).stat().st_size > 0, name
    assert not list(tmp_path.glob("*/curves.png"))
    for package in ("matplotlib", "torchmetrics", "tensorboard"):
        lines = [line for line in done.stdout.splitlines()
                 if line.startswith(f"{package} is not installed")]
        assert len(lines) == 1, package


@pytest.mark.parametrize("code, package", [
    ("import vae; vae.main(dataset='digits')", "scikit-learn"),
    ("import vae, generate; vae.main(dataset='own.npz', hidden=8, epochs=1, out='v', quiet=True)\n"
     "generate.main(['v'], pca=True)", "scikit-learn"),
])
def test_what_cannot_go_on_names_the_package(code, package, python):
    done = python(code)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1 and package in done.stderr
