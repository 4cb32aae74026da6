"""The short run: a conditional VAE beside a VAE, in less than a minute on two CPU cores.

    python demo.py
    bash demo.sh     # the same, with all the set-up it needs
"""
import ctrl_c  # without a traceback, even during these imports
import contextlib
import io
import sys
from pathlib import Path

import cvae
from common import fail, load_data
from run import Parser, guarded, new_folder, number, parse, path_text


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


def why_no_mnist(folder):
    """Why MNIST is not in the folder and cannot be downloaded to it; "" if all is well."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):   # no error here: there are the digits
            load_data("MNIST", folder)
    except SystemExit:
        return said.getvalue().strip().removeprefix("error: ")
    return ""


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
    dataset, train_size, test_size = "MNIST", 6000, 1000
    fault = why_no_mnist(args.data)
    if fault:
        print(f"going on with the built-in digits: {fault}")
        dataset, train_size, test_size = "digits", None, None

    folder = args.out or own_folder(f"results/demo-{dataset}")
    model, log = cvae.main(dataset=dataset, data=args.data, train_size=train_size,
                           test_size=test_size, epochs=10, latent=2, hidden=500,
                           seed=args.seed, device=args.device, out=folder)
    show_table(dataset, log)
    show_images(folder)
    return model, log


if __name__ == "__main__":
    main(sys.argv[1:])
