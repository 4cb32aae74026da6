"""Principal components of half of CIFAR-10, to compare autoencoders with: writes the run
results/runs/pca-cifar10.

    python -m tools.pca data/cifar10.npz
"""
import ctrl_c  # without a traceback, even during these imports
import sys
import time
from pathlib import Path

import torch

from common import fail
from readers import load_data
from run import write_log

FOLDER = Path(__file__).resolve().parent.parent / "results" / "runs" / "pca-cifar10"
SIZES = (16, 50, 128, 1024)   # numbers of components


def principal_components(x):
    """The eigenvectors of the covariance of x (N, d) in columns (d, d), the most telling first."""
    centred = x - x.mean(0)
    eigenvectors = torch.linalg.eigh(centred.T @ centred).eigenvectors   # the least telling first
    return eigenvectors.flip(1)


def main(path):
    start = time.perf_counter()
    data = load_data(path)
    train = data.x_train.flatten(1).double() / 255   # (N, 3072)
    test = data.x_test.flatten(1).double() / 255
    centred = test - train.mean(0)
    components = principal_components(train)

    row = {"epoch": 1, "seconds": 0}
    for n in SIZES:   # what the test images lose, with the names and units of evaluate.py
        kept = components[:, :n]
        copies = centred @ kept @ kept.T
        mse = (centred - copies).square().mean()
        row[f"sse_pm1_{n}"] = 4 * test.shape[1] * mse.item()   # of pixels in [-1, 1]
        row[f"psnr_{n}"] = -10 * mse.log10().item()
    row["seconds"] = time.perf_counter() - start

    FOLDER.mkdir(exist_ok=True)
    header = ("# python -m tools.pca data/cifar10.npz\n"
              f"# torch {torch.__version__}, numbers of 64 bits, CPU\n")
    (FOLDER / "args.txt").write_text(header, encoding="utf-8")
    write_log(FOLDER / "log.csv", [row])
    print(row)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        fail("one file is needed: python -m tools.pca data/cifar10.npz")
    main(sys.argv[1])
