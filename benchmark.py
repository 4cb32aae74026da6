"""Speed of vae.py's loop beside the usual one, and beside its bare matrix products.

The usual loop is the same network fed by a torchvision data set and a DataLoader, with Adam as it
comes and loss.item() in every step. Each loop runs in its own process, in turn, and the medians
of the rounds are printed: ratios hold on a busy machine, single times do not.

    python benchmark.py
"""
import json
import statistics
import subprocess
import sys
import time

import torch

import vae
from common import check, load_data, make_parser, number, parse_flags

LOOPS = ("usual", "ours", "ours --amp", "ours --compile", "ours --amp --compile",
         "matrix products")


def flags():
    parser = make_parser("benchmark", "Time an epoch of 784-400-20, batch 128.")
    add = parser.add_argument
    add("--data", default="data", help="folder of MNIST")
    add("--train-size", type=number(int, 128), help="use fewer training images")
    add("--rounds", type=number(int, 1), default=3, help="how often each loop is timed")
    add("--device", default="auto", help="as in vae.py")
    add("--loop", choices=LOOPS, help="time this loop once, in this process, and print JSON")
    return parser


def run_flags():
    run = vae.flags().parse_args(["--hidden=400", "--lr=1e-3", "--lr-schedule=constant",
                                  "--likelihood=bernoulli"])
    vae.check_flags(run)
    return run


def usual(args):
    """The loop of countless tutorials: one image at a time through Python, one wait a step."""
    from torch.utils.data import DataLoader, Subset
    from torchvision import datasets, transforms
    train, test = (datasets.MNIST(args.data, train=train, transform=transforms.ToTensor())
                   for train in (True, False))
    train = DataLoader(Subset(train, range(args.train_size or len(train))), 128, shuffle=True)
    test = DataLoader(test, batch_size=128)
    model = vae.VAE((1, 28, 28), run_flags()).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(x):
        x = x.to(args.device)
        recon, kl, _ = vae.loss_terms(model, x, torch.randn(len(x), 20, device=x.device))
        return (recon + kl).sum()

    def train_epoch():
        model.train()
        total = 0
        for x, _ in train:
            optimizer.zero_grad()
            loss = step(x)
            (loss / len(x)).backward()
            optimizer.step()
            total += loss.item()
        return total / len(train.dataset)

    def test_epoch():
        model.eval()
        with torch.no_grad():
            return sum(step(x).item() for x, _ in test) / len(test.dataset)

    return train_epoch, test_epoch


def ours(args):
    """vae.py itself."""
    run = run_flags()
    run.amp = "--amp" in args.loop
    data = load_data("MNIST", args.data, args.device, train_size=args.train_size)
    learner = vae.make_learner(vae.VAE((1, 28, 28), run).to(args.device), data, run)
    compiled = torch.compile(vae.loss_terms, dynamic=False)
    terms = compiled if "--compile" in args.loop else vae.loss_terms
    return (lambda: vae.train_epoch(learner, terms, data, 1, run)["train_loss"],
            lambda: vae.evaluate(learner.model, data, 1, run)["test_loss"])


def matrix_products(args):
    """The five large products of a step: two forward, three backward (x needs no gradient)."""
    images = args.train_size or 60_000
    x, h, g = (torch.randn(images, n, device=args.device) for n in (784, 400, 784))
    w_in, w_out = (torch.randn(n, 1184 - n, device=args.device) for n in (784, 400))

    def train_epoch():
        for x_, h_, g_ in zip(x.split(128), h.split(128), g.split(128), strict=True):
            for a, b in ((x_, w_in), (h_, w_out), (x_.T, h_), (h_.T, g_), (g_, w_out.T)):
                torch.mm(a, b)
        return 0.0

    return train_epoch, lambda: 0.0


def time_loop(args):
    """Seconds of a training epoch and of a test, after an epoch to warm up; and the losses."""
    kind = {"usual": usual, "matrix products": matrix_products}.get(args.loop, ours)
    torch.manual_seed(1)
    found = {}
    epochs = kind(args)
    for _ in range(2):
        for name, epoch in zip(("train", "test"), epochs, strict=True):
            start = time.perf_counter()
            found[f"{name}_loss"] = epoch()
            if args.device.startswith("cuda"):
                torch.cuda.synchronize()
            found[name] = time.perf_counter() - start
    return found


def main(argv=(), **overrides):
    """Print the table. Returns {loop: {"train": seconds, "test": seconds, ...}}, medians."""
    args, _ = parse_flags(flags(), argv, overrides)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.loop:
        found = time_loop(args)
        print(json.dumps(found))
        return found
    times = {loop: [] for loop in LOOPS}
    for _ in range(args.rounds):
        for loop in LOOPS:
            size = [f"--train-size={args.train_size}"] if args.train_size else []
            command = [sys.executable, __file__, f"--loop={loop}", f"--data={args.data}",
                       f"--device={args.device}", *size]
            done = subprocess.run(command, capture_output=True, text=True)
            check(done.returncode == 0, f"{loop}: {done.stderr}", status=1)
            times[loop].append(json.loads(done.stdout.splitlines()[-1]))
    table = {loop: {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}
             for loop, rounds in times.items()}
    images = args.train_size or 60_000
    print(f"python benchmark.py: torch {torch.__version__}, {args.device}, "
          f"{torch.get_num_threads()} threads, median of {args.rounds}")
    print("| loop | train s | test s | images/s | epoch / usual | train / products | test loss |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for loop, t in table.items():
        usual_epoch = table["usual"]["train"] + table["usual"]["test"]
        print(f"| {loop} | {t['train']:.2f} | {t['test']:.2f} | {images / t['train']:,.0f} | "
              f"{(t['train'] + t['test']) / usual_epoch:.2f} | "
              f"{t['train'] / table['matrix products']['train']:.2f} | {t['test_loss']:.1f} |")
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
