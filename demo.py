"""The short run: a conditional VAE beside a VAE, in less than a minute on two CPU cores.

    python demo.py
    bash demo.sh     # the same, with all the set-up it needs
"""
import contextlib
import io
import sys
from pathlib import Path

import cvae
from common import load_data
from run import Parser, free_folder, number, parse


def flags():
    parser = Parser(__file__, __doc__)
    parser.add_argument("--data", default="data", metavar="DIR",
                        help="folder of MNIST, downloaded on first use")
    parser.add_argument("--seed", type=number(int, 0), default=1, metavar="N",
                        help="of weights and noise")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto")
    parser.add_argument("--out", metavar="DIR", help="run folder (default: results/demo-DATASET)")
    return parser


def has_mnist(folder):
    """Whether MNIST is in the folder, or can be downloaded to it."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):   # no error here: there are the digits
            load_data("MNIST", folder)
    except SystemExit:
        return False
    return True


def show_table(dataset, log):
    """The test losses of both models after the last epoch."""
    row = log[-1]
    seconds = sum(epoch["seconds"] for epoch in log)
    print(f"\n{dataset:8}  test loss    recon     KL   seconds (both together)")
    for name, prefix in (("CVAE", ""), ("VAE", "vae_")):
        loss = row[f"{prefix}test_loss"]
        recon = row[f"{prefix}test_recon"]
        kl = row[f"{prefix}test_kl"]
        print(f"{name:8}  {loss:9.2f} {recon:8.2f} {kl:6.2f} {seconds:9.1f}")


def show_images(folder):
    """The files to look at."""
    files = sorted(Path(folder).glob("*_010.png"))
    curves = Path(folder, "curves.png")
    if curves.exists():
        files.append(curves)
    print("\nimages:")
    for file in files:
        print(f"  {file}")


def main(argv=(), **overrides):
    """6,000 images of MNIST, or the built-in digits where there is none. Returns the CVAE and the
    log."""
    args = parse(flags(), argv, overrides)
    dataset, train_size, test_size = "MNIST", 6000, 1000
    if not has_mnist(args.data):
        print(f"MNIST is not in {args.data} and could not be downloaded; "
              "taking the built-in digits")
        dataset, train_size, test_size = "digits", None, None

    folder = args.out or free_folder(f"results/demo-{dataset}")
    model, log = cvae.main(dataset=dataset, data=args.data, train_size=train_size,
                           test_size=test_size, epochs=10, latent=2, hidden=500,
                           seed=args.seed, device=args.device, out=folder)
    show_table(dataset, log)
    show_images(folder)
    return model, log


if __name__ == "__main__":
    main(sys.argv[1:])
