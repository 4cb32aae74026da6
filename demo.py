"""The short run: a conditional VAE beside a VAE, in less than half a minute on two CPU cores.

    python demo.py
    bash demo.sh     # the same, with all the set-up it needs
"""
import ctrl_c  # without a traceback, even during these imports
import sys
from pathlib import Path

import cvae
from common import fail, tell
from readers import READERS, NotAvailable
from run import Parser, guarded, new_folder, number, parse, path_text

DIGITS_EPOCHS = 80   # some 15 seconds: 1,500 images are few, and ten epochs of them show smudges


def flags():
    parser = Parser(__file__, __doc__)
    parser.add_argument("--data", type=path_text, default="data", metavar="DIR",
                        help="folder of MNIST, downloaded on first use")
    parser.add_argument("--seed", type=number(int, 0), default=1, metavar="N",
                        help="of weights and noise")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto")
    parser.add_argument("--out", type=path_text, metavar="DIR",
                        help="run folder (default: results/demo-DATASET)")
    return parser


def has_mnist(folder):
    """Whether MNIST is in the folder, downloaded if need be; if not, a line says why."""
    try:
        READERS["MNIST"]("MNIST", folder)
    except NotAvailable as error:
        reason = " ".join(str(error).split())
        tell(f"going on with the built-in digits: {reason}")
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


def show_images(folder, epochs):
    """The files to look at."""
    files = sorted(Path(folder).glob(f"*_{epochs:03d}.png"))
    curves = Path(folder, "curves.png")
    if curves.exists():
        files.append(curves)
    print("\nimages:")
    for file in files:
        print(f"  {file}")


def own_folder(base):
    """`base`, or base-2, base-3 ...: a new folder."""
    try:
        return new_folder(base)
    except OSError as error:
        fail(f"{base}: {error.strerror}; name a folder that can be written with --out")


@guarded
def main(argv=(), **overrides):
    """6,000 images of MNIST, or the built-in digits where there is none. Returns the CVAE and the
    log."""
    args = parse(flags(), argv, overrides)
    if has_mnist(args.data):
        dataset, train_size, test_size, epochs = "MNIST", 6000, 1000, 10
    else:
        dataset, train_size, test_size, epochs = "digits", None, None, DIGITS_EPOCHS

    folder = args.out or own_folder(f"results/demo-{dataset}")
    model, log = cvae.main(dataset=dataset, data=args.data, train_size=train_size,
                           test_size=test_size, epochs=epochs, latent=2, hidden=500,
                           save_every=epochs, seed=args.seed, device=args.device, out=folder)
    show_table(dataset, log)
    show_images(folder, epochs)
    return model, log


if __name__ == "__main__":
    main(sys.argv[1:])
