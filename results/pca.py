"""Principal components of half of CIFAR-10, to compare autoencoders with: writes runs/pca-cifar10.

    python -m results.pca data/cifar10.npz
"""
import sys
import time
from pathlib import Path

import torch

from common import load_data


def main(path, sizes=(16, 50, 128, 1024)):
    start, data = time.perf_counter(), load_data(path)
    train, test = (x.flatten(1).double() / 255 for x in (data.x_train, data.x_test))
    mean = train.mean(0)
    components = torch.linalg.eigh((train - mean).T @ (train - mean)).eigenvectors.flip(1)
    row = {"epoch": 1, "seconds": 0}
    for n in sizes:   # what the test images lose, all numbers as in evaluate.py
        codes = (test - mean) @ components[:, :n]
        mse = (test - mean - codes @ components[:, :n].T).square().mean()
        row |= {f"sse_pm1_{n}": 4 * 3072 * mse.item(), f"psnr_{n}": -10 * mse.log10().item()}
    row["seconds"] = time.perf_counter() - start
    folder = Path(__file__).parent / "runs" / "pca-cifar10"
    folder.mkdir(exist_ok=True)
    (folder / "args.txt").write_text(f"# python -m results.pca data/cifar10.npz\n# torch "
                                     f"{torch.__version__}, numbers of 64 bits, CPU\n")
    (folder / "log.csv").write_text(",".join(row) + "\n"
                                    + ",".join(f"{value:.6g}" for value in row.values()) + "\n")
    print(row)


if __name__ == "__main__":
    main(sys.argv[1])
