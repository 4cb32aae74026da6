"""Make a small model of a run: python -m results.pack RUN results/models/NAME.pt

Half precision weights of the script's own model (without a twin, optimisers or random states).
"""
import sys

import torch

from common import load_checkpoint


def main(run, target):
    checkpoint = load_checkpoint(run)
    name = "ema" if checkpoint["script"] == "gan" else "model"
    weights = {key: value.half() if value.is_floating_point() else value
               for key, value in checkpoint[name].items()}
    kept = {key: checkpoint[key] for key in ("script", "args", "epoch", "data")}
    torch.save(kept | {"rng": {}, name: weights}, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
