"""With torch, torchvision, numpy and pillow alone the scripts train, save, resume, are drawn and
measured; what needs another package says which in one line."""
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

WITHOUT_OTHERS = """
import contextlib, importlib.machinery, io, json

MISSING = ("matplotlib", "tqdm", "sklearn", "torchmetrics", "tensorboard", "torch_fidelity")
find_spec = importlib.machinery.PathFinder.find_spec

def find_what_is_installed(name, path=None, target=None):
    return None if name.split(".")[0] in MISSING else find_spec(name, path, target)

importlib.machinery.PathFinder.find_spec = find_what_is_installed

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

def refusal(command, *argv, **flags):
    errors, status = io.StringIO(), 0
    with contextlib.redirect_stderr(errors):
        try:
            command.main(*argv, **flags)
        except SystemExit as stop:
            status = stop.code
    return status, errors.getvalue()

print(json.dumps({"data": refusal(vae, dataset="digits"), "pca": refusal(generate, ["v"], pca=True),
                  "t-SNE": refusal(generate, ["v"], tsne=10)}))
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """What is left by a process in which the other packages cannot be imported: its folder, the
    lines it printed, and refusals, {what was asked for: (exit status, line)}."""
    folder = tmp_path_factory.mktemp("bare")
    x = np.random.default_rng(0).integers(0, 256, (60, 28, 28), np.uint8)
    y = np.arange(60) % 3
    np.savez(folder / "own.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    done = subprocess.run([sys.executable, "-c", WITHOUT_OTHERS], cwd=folder, text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    *lines, refusals = done.stdout.splitlines()
    return SimpleNamespace(folder=folder, lines=lines, refusals=json.loads(refusals))


def test_everything_a_student_needs(bare):
    for name in ("v/checkpoint_002.pt", "v/sample_002.png", "c/sample_vae_001.png",
                 "c/reconstruction_001.png", "g/sample_004.png", "v/samples_64.png",
                 "c/evaluation.jsonl"):
        assert (bare.folder / name).stat().st_size > 0, name
    assert not list(bare.folder.glob("*/curves.png"))
    for package in ("matplotlib", "torchmetrics", "tensorboard"):
        lines = [line for line in bare.lines if line.startswith(f"{package} is not installed")]
        assert len(lines) == 1, package


@pytest.mark.parametrize("asked", ["data", "pca", "t-SNE"])
def test_what_cannot_go_on_names_the_package(bare, asked):
    status, said = bare.refusals[asked]
    assert status == 2
    assert said.count("\n") == 1 and said.startswith("error:") and "scikit-learn" in said
