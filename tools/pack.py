"""Make a small model of a run: python -m tools.pack RUN results/models/NAME.pt

The weights of the script's own model in half precision, without its twin, optimisers, log or random
states: to be drawn and measured, not to be continued.
"""
import ctrl_c  # without a traceback, even during these imports
import io
import sys

import torch

from common import fail, write_whole
from run import load_checkpoint

PARTS = ("model", "cvae", "ema")   # what vae.py, cvae.py and gan.py, or copies of them, call it


def half(weights):
    """A state_dict with floats of half precision; counters stay as they are."""
    small = {}
    for name, value in weights.items():
        small[name] = value.half() if value.is_floating_point() else value
    return small


def main(run, target):
    checkpoint = load_checkpoint(run)
    packed = {"rng": {}}
    for name in ("script", "source", "args", "epoch", "data"):
        if name in checkpoint:   # a run of the first edition has no source
            packed[name] = checkpoint[name]
    for name in PARTS:
        if name in checkpoint:
            packed[name] = half(checkpoint[name])
    content = io.BytesIO()
    torch.save(packed, content)
    write_whole(target, content.getbuffer())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        fail("a run and a file are needed: python -m tools.pack RUN results/models/NAME.pt")
    main(*sys.argv[1:])
