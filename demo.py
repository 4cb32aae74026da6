"""The short run: a conditional VAE beside a VAE, in less than a minute on two CPU cores.

    python demo.py
    bash demo.sh     # the same, with all the set-up it needs
"""
import contextlib
import io
import sys
from pathlib import Path

import cvae
from common import free_folder, load_data, make_parser, number, parse_flags


def main(argv=(), **overrides):
    """MNIST, or the built-in digits where there is none. Returns the CVAE and the log."""
    parser = make_parser("demo", "Train a CVAE and its twin on 6,000 images of MNIST.")
    parser.add_argument("--data", default="data", help="folder of MNIST, downloaded on first use")
    parser.add_argument("--seed", type=number(int, 0), default=1, help="seed of weights and noise")
    parser.add_argument("--device", default="auto", help="as in cvae.py")
    parser.add_argument("--out", help="run folder to make (default: results/demo-DATASET)")
    args, _ = parse_flags(parser, argv, overrides)

    dataset, sizes = "MNIST", {"train_size": 6000, "test_size": 1000}
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            load_data(dataset, args.data)
    except SystemExit:
        print(f"MNIST is neither in {args.data} nor to be downloaded; taking the built-in digits")
        dataset, sizes = "digits", {}

    folder = args.out or free_folder(f"results/demo-{dataset}")
    model, log = cvae.main(dataset=dataset, data=args.data, epochs=10, latent=2, hidden=500,
                           seed=args.seed, device=args.device, out=folder, **sizes)
    seconds = sum(row["seconds"] for row in log)
    print(f"\n{dataset:8}  test loss    recon     KL   seconds (both together)")
    for name, prefix in (("CVAE", ""), ("VAE", "vae_")):
        loss, recon, kl = (log[-1][f"{prefix}test_{term}"] for term in ("loss", "recon", "kl"))
        print(f"{name:8}  {loss:9.2f} {recon:8.2f} {kl:6.2f} {seconds:9.1f}")
    pictures = [*sorted(Path(folder).glob("*_010.png")), Path(folder, "curves.png")]
    print("\npictures:", *pictures, sep="\n  ")
    return model, log


if __name__ == "__main__":
    main(sys.argv[1:])
