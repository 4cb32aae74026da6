"""What the lessons share: the flags of a small model, and a small data set."""
import torch

import vae
from common import Data
from run import check_flags, set_defaults


def vae_args(*argv, shape=(1, 6, 6)):
    """The flags of vae.py as main would have them, for a small model of images of `shape`.

    They serve the models of cvae.py, too.
    """
    small = ["--latent=3", "--hidden=16", "--batch-size=8", "--lr=1e-3", "--lr-schedule=constant"]
    args = vae.flags().parse_args([*small, *argv])
    check_flags(args)
    set_defaults(args, random_data(shape=shape))
    return args


def random_data(n_train=20, n_test=11, shape=(1, 6, 6), classes=4):
    """Images of random grey values, the same in every call; labels 0, 1, 2, 3, 0, 1 ..."""
    n = n_train + n_test
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)
    y = torch.arange(n) % classes
    names = [str(label) for label in range(classes)]
    return Data("random", x[:n_train], y[:n_train], x[n_train:], y[n_train:], names)
