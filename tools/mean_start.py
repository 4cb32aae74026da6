"""vae.py with a decoder that begins at the mean training image: its last bias is the log-odds.

    python -m tools.mean_start --hidden 400 --epochs 4 --lr 8e-3

takes the flags of vae.py. It saves a short training an epoch, see results/choices.md, and
tools/benchmark.py uses it. The args.txt of such a run names vae.py: replayed, it begins as usual.
(In results/runs the first line was changed by hand to the command above.)
"""
import ctrl_c  # without a traceback, even during these imports
import sys
from unittest import mock

import torch

import vae
from common import fail
from run import guarded, load_run_data, parse

DARKEST = 0.01   # a pixel that is always black would have log-odds of minus infinity


@torch.no_grad()
def start_at_mean(model, x):
    """Let an MLP with one output for each pixel begin at the mean of uint8 images (N, C, H, W)."""
    mean = x.float().mean(0) / 255
    last_layer = model.decoder[-2]   # what follows gives the pixels their places
    last_layer.bias.copy_(torch.logit(mean.clamp(DARKEST, 1 - DARKEST)).flatten())


@guarded
def main(argv):
    """A run of vae.py with these flags."""
    args = parse(vae.flags(), argv, {})
    if args.arch != "mlp" or args.sigma == "pixel":
        fail("tools.mean_start sets the last bias of an MLP with one output for each pixel; use "
             "vae.py for --arch conv and --sigma pixel")
    data = load_run_data(args)
    build = vae.build

    def build_and_start(shape, n_c, args):
        model = build(shape, n_c, args)
        start_at_mean(model, data.x_train)
        return model

    with mock.patch.object(vae, "build", build_and_start):
        return vae.main(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
