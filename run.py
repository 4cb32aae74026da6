"""The plumbing, which a reader may skip: flags, the run folder, checkpoints and resuming, progress,
TensorBoard, loading a trained model. Nothing here touches a loss or takes an optimiser step.

One section is worth a look: "what vae.py and cvae.py have in common" holds the defaults that depend
on the data, the learning-rate schedules and the figures.
"""
import argparse
import csv
import difflib
import functools
import hashlib
import importlib
import math
import os
import platform
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

from common import (
    READERS,
    SIGMA_MIN,
    batches,
    fail,
    fixed_images,
    has_package,
    is_autoencoder,
    load_data,
    save_curves,
    save_latent,
    save_rows,
)

ROOT = Path(__file__).resolve().parent

# Names in `args` that are not stored: they belong to one call, not to the run.
NOT_STORED = ("out", "resume", "quiet", "file", "script", "command")
# What may differ when a run is resumed. (Another device draws other random numbers.)
FREE_ON_RESUME = ("data", "device", "save_every", "tensorboard")
# Lines of older args.txt files that are skipped: flags of figures, and silence.
RETIRED = re.compile(r"--(quiet|show=\w+|span=[\d.]+)$")


# --------------------------------------------------------------------------------------- flags

class Help(argparse.RawDescriptionHelpFormatter):
    """Defaults at the end of a line where there is one, and examples as they were typed."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=26)

    def _get_help_string(self, action):
        if action.default in (None, False, argparse.SUPPRESS):
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviations, and @files that may hold comments. --help
    opens with the first line of the script's docstring and ends with the commands in it."""

    def __init__(self, file, docstring, usage="[flags]"):
        name = script_name(file)
        examples = [line for line in docstring.splitlines() if line.startswith("    python ")]
        super().__init__(prog=f"{name}.py", usage=f"python {name}.py {usage}",
                         description=docstring.splitlines()[0],
                         epilog="\n".join(["examples:", *examples]),
                         formatter_class=Help, fromfile_prefix_chars="@", allow_abbrev=False)
        self.file, self.script = file, name

    def convert_arg_line_to_args(self, line):
        line = line.strip()
        if not line or line.startswith("#") or RETIRED.match(line):
            return []
        return [line]

    def error(self, message):
        """The message; for an unknown flag the one that was probably meant, too."""
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1)
            hint = f"did you mean {near[0]}?" if near else f"see python {self.prog} --help"
            message = f"unknown flag {unknown[1]}; {hint}"
        fail(message)


def script_name(file):
    """The name of a script below the project: "vae", "my_vae", "recipes/iwae"."""
    path = Path(file).resolve().with_suffix("")
    if path.is_relative_to(ROOT):
        return path.relative_to(ROOT).as_posix()
    return path.name


def number(kind, low, above=False, below=None):
    """An argparse type: an int or float that is at least `low`, or above it; and below `below`."""
    if below is None:
        below = 2**32 if kind is int else math.inf   # seeds end there

    def convert(text):
        value = kind(text)
        bound = "above" if above else "at least"
        too_low = value <= low if above else value < low
        if too_low or value != value:   # only nan is unlike itself
            raise argparse.ArgumentTypeError(f"must be {bound} {low}, not {text}")
        if value >= below:
            raise argparse.ArgumentTypeError(f"must be below {below}, not {text}")
        return value

    convert.__name__ = kind.__name__   # argparse names it where the text is no number at all
    return convert


def sigma(text):
    """The argparse type of --sigma."""
    if text in ("learned", "pixel"):
        return text
    return str(number(float, SIGMA_MIN)(text))


def add_model_flags(parser):
    """The network of vae.py and cvae.py."""
    group = parser.add_argument_group("model")
    group.add_argument("--arch", choices=("mlp", "conv"), default="mlp",
                       help="fully connected or convolutional")
    group.add_argument("--hidden", type=number(int, 1), metavar="N",
                       help="units, or first channels (default: 500; conv: 32)")
    group.add_argument("--layers", type=number(int, 0), metavar="N",
                       help="dense hidden layers (default: 1; conv in colour: 0)")
    group.add_argument("--latent", type=number(int, 1), default=20, metavar="N", help="size of z")
    group.add_argument("--dropout", type=number(float, 0, below=1), default=0.0, metavar="P",
                       help="share of activations set to zero")
    return group


def add_loss_flags(parser):
    """The likelihood and the weight of the KL in vae.py and cvae.py."""
    group = parser.add_argument_group("loss")
    group.add_argument("--likelihood", choices=("bernoulli", "gaussian"),
                       help="of a pixel (default: bernoulli; colour: gaussian)")
    group.add_argument("--sigma", type=sigma, default="learned", metavar="S",
                       help="deviation: learned, pixel or a number")
    group.add_argument("--binarize", choices=("none", "threshold", "dynamic"), default="none",
                       help="pixels to black and white")
    group.add_argument("--beta", type=number(float, 0), default=1.0, metavar="B",
                       help="weight of the KL; 0: an autoencoder")
    group.add_argument("--beta-schedule", choices=("constant", "linear", "cyclical"),
                       default="constant", help="beta by epoch")
    group.add_argument("--beta-warmup", type=number(int, 1), metavar="N",
                       help="epochs to reach beta (default: a whole cycle)")


def add_optimizer_flags(parser):
    """The optimiser of vae.py and cvae.py."""
    group = parser.add_argument_group("optimiser")
    group.add_argument("--epochs", type=number(int, 1), default=20, metavar="N",
                       help="passes over the training images")
    group.add_argument("--batch-size", type=number(int, 1), default=128, metavar="N",
                       help="images per step")
    group.add_argument("--lr", type=number(float, 0, above=True), default=5e-3, metavar="RATE",
                       help="learning rate, or its peak")
    group.add_argument("--lr-schedule", choices=("constant", "onecycle", "cosine", "plateau"),
                       default="onecycle", help="rate over the run")


def add_data_flags(parser):
    """What every training script can be trained on."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", default="MNIST", metavar="NAME|PATH",
                       help=f"{', '.join(READERS)}, an image folder or an .npz file")
    group.add_argument("--data", default="data", metavar="DIR",
                       help="folder of the named data sets, downloaded on first use")
    group.add_argument("--train-size", type=number(int, 1), metavar="N",
                       help="train on a fixed random subset")
    group.add_argument("--test-size", type=number(int, 1), metavar="N",
                       help="test on a fixed random subset")
    group.add_argument("--image-size", type=number(int, 1), metavar="N",
                       help="crop to a square and resize to NxN")
    return group


def add_run_flags(parser):
    """The plumbing of every training script."""
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=number(int, 0), default=1, metavar="N",
                       help="random seed of weights and noise")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto")
    group.add_argument("--out", metavar="DIR",
                       help="run folder (default: results/SCRIPT-DATASET, then -2, -3 ...)")
    group.add_argument("--resume", metavar="RUN",
                       help="continue a run (folder or checkpoint) with its flags")
    group.add_argument("--save-every", type=number(int, 1), default=10, metavar="N",
                       help="epochs between kept checkpoints and figures")
    group.add_argument("--compile", action="store_true", help="torch.compile: a slow start")
    group.add_argument("--amp", action="store_true", help="matrix products in bfloat16")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    group.add_argument("--tensorboard", action="store_true", help="log to TensorBoard, too")


def add_training_flags(parser):
    """What vae.py and cvae.py have besides their model."""
    add_loss_flags(parser)
    add_optimizer_flags(parser)
    add_data_flags(parser)
    add_run_flags(parser)


def as_flags(values):
    """{"latent": 2, "quiet": True} -> ["--latent=2", "--quiet"]; None and False are left out."""
    flags = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is not None and value is not False:
            flags.append(f"{flag}={value}")
    return flags


def parse(parser, argv, overrides):
    """The flags of a command line, and of keywords as in main(latent=2).

    With --resume the flags of that run are the defaults, and only some may differ from them.
    """
    argv = [*argv, *as_flags(overrides)]
    args = parser.parse_args(argv)
    if getattr(args, "resume", None):
        stored = resumed_flags(parser, args.resume)
        parser.set_defaults(**stored)
        args = parser.parse_args(argv)
        check_resumed_flags(args, stored)
    args.file, args.script = parser.file, parser.script
    args.command = shlex.join([f"{parser.script}.py", *argv])
    return args


def resumed_flags(parser, path):
    """The stored flags of a run that this script can continue."""
    checkpoint = load_checkpoint(path)
    if checkpoint["script"] != parser.script:
        fail(f"--resume {path} is a run of {checkpoint['script']}.py; use that script")
    if "log" not in checkpoint:
        fail(f"--resume {path} holds weights only, or comes from the first edition; it can be "
             "drawn and measured, but not continued")
    return checkpoint["args"]


def check_resumed_flags(args, stored):
    """A resumed run keeps its flags. --epochs may change where no schedule depends on it."""
    free = list(FREE_ON_RESUME)
    if stored.get("lr_schedule") in ("constant", "plateau") \
            and stored.get("beta_schedule") == "constant":
        free.append("epochs")
    if args.out is not None:
        fail("--out cannot be changed when resuming; remove it")
    for name, value in stored.items():
        if name not in free and getattr(args, name) != value:
            flag = "--" + name.replace("_", "-")
            fail(f"{flag} cannot be changed when resuming; remove it")


def pick_device(name):
    """The torch.device of --device; `auto` is the machine's accelerator, if it has one."""
    if name == "auto":
        name = "cpu"
        if torch.accelerator.is_available():
            name = torch.accelerator.current_accelerator()
    try:   # the only sure way to learn whether a device works
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):
        fail(f"--device {name} is not available; use --device cpu, or leave it at auto")


def load_run_data(args, needs_labels=False):
    """The data set that the flags name, on the device that they name."""
    data = load_data(args.dataset, args.data, pick_device(args.device), args.image_size,
                     args.train_size, args.test_size)
    if needs_labels and len(data.classes) < 2:
        fail(f"--dataset {args.dataset} has no labels; use vae.py, which needs none")
    return data


# ------------------------------------------------------- what vae.py and cvae.py have in common

def check_flags(args):
    """Flags of vae.py and cvae.py that exclude one another."""
    bernoulli = args.likelihood == "bernoulli" or args.binarize != "none"
    if args.binarize != "none" and args.likelihood not in (None, "bernoulli"):
        fail("--binarize needs --likelihood bernoulli")
    if args.sigma != "learned" and bernoulli:
        fail("--sigma needs --likelihood gaussian")
    if args.beta_schedule == "constant":
        if args.beta_warmup is not None:
            fail("--beta-warmup needs --beta-schedule linear or cyclical")
        return
    cycles = 4 if args.beta_schedule == "cyclical" else 1
    longest = args.epochs // cycles
    if longest < 2:
        fail(f"--beta-schedule {args.beta_schedule} needs at least {2 * cycles} epochs; "
             "raise --epochs")
    if args.beta_warmup is not None and not 2 <= args.beta_warmup <= longest:
        fail(f"--beta-warmup must be from 2 to {longest} with --beta-schedule {args.beta_schedule} "
             f"and --epochs {args.epochs}")


def set_defaults(args, data):
    """Defaults of vae.py and cvae.py that depend on other flags or on the data."""
    channels = data.x_train.shape[1]
    if args.hidden is None:
        args.hidden = 500 if args.arch == "mlp" else 32
    if args.layers is None:
        args.layers = 0 if args.arch == "conv" and channels == 3 else 1
    if args.likelihood is None:
        bernoulli = channels == 1 and args.sigma == "learned"   # another sigma asks for a gaussian
        args.likelihood = "bernoulli" if bernoulli or args.binarize != "none" else "gaussian"


def make_scheduler(optimizer, n_images, args):
    """The learning rate over all the steps to come."""
    steps = args.epochs * math.ceil(n_images / args.batch_size)
    if args.lr_schedule == "onecycle":
        return OneCycleLR(optimizer, args.lr, total_steps=steps)
    if args.lr_schedule == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    if args.lr_schedule == "plateau":   # stepped once an epoch, with the training objective
        return ReduceLROnPlateau(optimizer, patience=3)
    return ConstantLR(optimizer, factor=1)


@functools.cache
def compiled(function):
    """torch.compile, once for each function."""
    return torch.compile(function, dynamic=False)


def warn_of_collapse(row, args):
    """Say so if q(z|x) has become the prior, so that z tells the decoder nothing."""
    if is_autoencoder(args) or args.quiet:
        return
    for prefix in ("", "vae_"):
        if f"{prefix}active" not in row:
            continue
        active, kl = row[f"{prefix}active"], row[f"{prefix}test_kl"]
        if active < min(2, args.latent) or kl < 0.5:
            print(f"warning: the posterior has collapsed ({active:.0f} active units, KL {kl:.2f} "
                  "nats); try --beta-schedule linear or a smaller --beta")


def encode(model, x, y):
    """mu, logvar of a model that takes labels, or of one that does not."""
    return model.encode(x, y) if hasattr(model, "classes") else model.encode(x)


def decode(model, z, y):
    """p(x|z) of a model that takes labels, or of one that does not."""
    return model.decode(z, y) if hasattr(model, "classes") else model.decode(z)


def model_name(model):
    """CVAE, VAE, CAE or AE, or the name of the class of another model."""
    if not hasattr(model, "encode") or not hasattr(model.args, "beta"):
        return type(model).__name__
    conditional = "C" if getattr(model, "classes", 0) else ""
    return conditional + ("AE" if is_autoencoder(model.args) else "VAE")


def save_reconstructions(run, data, models):
    """Eight test images, the same in every epoch; below them what each model makes of them."""
    x, y = fixed_images(data, 8)
    rows = {"original": x}
    for model in models:
        mu, _ = encode(model, x, y)
        rows[model_name(model)] = decode(model, mu, y).mean
    save_rows(run.figure("reconstruction"), rows)


def save_latent_map(run, data, models):
    """The test set's posterior means in the plane of a two-dimensional z."""
    means = {model_name(model): posterior_means(model, data) for model in models}
    save_latent(run.figure("latent"), means, data, run.args)


def posterior_means(model, data):
    """mu of every test image, (N, latent)."""
    mus = []
    for x, y in batches(data.x_test, data.y_test, 1000, shuffle=False):
        mu, _ = encode(model, x, y)
        mus.append(mu)
    return torch.cat(mus)


def save_loss_curves(run, models):
    """Training (dashed) and test loss by epoch and their terms, a colour for each model."""
    panels = {}
    for term in ("loss", "recon", "kl"):
        panels[term] = []
        for model, prefix, color in zip(models, ("", "vae_"), ("C0", "C1"), strict=False):
            name = model_name(model)
            panels[term].append((f"{name} train", f"{prefix}train_{term}", f"{color}--"))
            panels[term].append((f"{name} test", f"{prefix}test_{term}", f"{color}-"))
    save_curves(run.folder / "curves.png", run.rows, "epoch", panels, "nats per image")


# ----------------------------------------------------------------------------------- run folder

class Run:
    """The folder of one training run: its log, its checkpoints, its progress on the terminal.

        run = Run(args, data, model=model, optimizer=optimizer, scheduler=scheduler)
        for epoch in run.epochs():          # 1, 2, ... or on from --resume
            row = train_epoch(...) | evaluate(...)
            run.save(row, "test loss ...")  # log.csv, checkpoint.pt, TensorBoard, the bar
            if run.figures_due():
                save_figures(...)
        run.finish("test loss ...")

    `parts` is all that a checkpoint must hold to go on: {name: object with a state_dict}.
    """

    def __init__(self, args, data, **parts):
        self.args, self.data, self.parts = args, data, parts
        self.rows = []      # of the log
        self.done = 0       # the epoch or iteration of the last row
        self.unit = "epoch" if hasattr(args, "epochs") else "iteration"
        self.last = args.epochs if self.unit == "epoch" else args.iterations
        self.board = None
        self.rng = None     # of a resumed run, until its first step
        if args.tensorboard and not has_package("tensorboard", "TensorBoard"):
            args.tensorboard = False
        if args.resume:
            self.folder = run_folder(args.resume)
            self.restore(load_checkpoint(args.resume))
        else:
            self.folder = Path(args.out or free_folder(f"results/{args.script}-{data.name}"))
            if (self.folder / "checkpoint.pt").exists() or (self.folder / "log.csv").exists():
                fail(f"--out {self.folder} already holds a run; use another folder, or continue it "
                     f"with --resume {self.folder}")
            self.write_args()
        self.say(f"{args.script}.py: {self.describe()}, into {self.folder}")

    def describe(self):
        """What is trained on what, and where."""
        n_parameters = 0
        for part in self.parts.values():
            if isinstance(part, torch.nn.Module):
                n_parameters += sum(p.numel() for p in part.parameters() if p.requires_grad)
        x_train, x_test = self.data.x_train, self.data.x_test
        size = "x".join(str(side) for side in x_train.shape[1:])
        return (f"{n_parameters:,} parameters on {self.data.name}, {len(x_train):,} training and "
                f"{len(x_test):,} test images of {size}, on {x_train.device}")

    def say(self, message):
        if not self.args.quiet:
            print(message, flush=True)

    def write_args(self):
        """args.txt: the flags, one a line, to be read with @; above them command and machine."""
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA"
        lines = [f"# python {self.args.command}",
                 f"# python {platform.python_version()}, torch {torch.__version__}, "
                 f"{torch.get_num_threads()} of {os.cpu_count()} {platform.machine()} cores, {gpu}",
                 *as_flags(stored_flags(self.args))]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / "args.txt", "\n".join([*lines, ""]).encode())
        except OSError as error:
            fail(f"--out {self.folder}: {error.strerror}; use a folder that can be written")

    def restore(self, checkpoint):
        """Take up the state of a checkpoint."""
        args = self.args
        if checkpoint["data"]["shape"] != list(self.data.x_train.shape[1:]) \
                or checkpoint["data"]["classes"] != self.data.classes:
            fail(f"--resume {args.resume}: {args.dataset} no longer matches the checkpoint's shape "
                 "and classes; restore the data, or start a new run")
        self.rows, self.done = checkpoint["log"], checkpoint["epoch"]
        if self.done >= self.last:
            fail(f"--resume {args.resume}: training is already complete ({self.done} "
                 f"{self.unit}s); start a new run, or raise --epochs if no schedule depends on it")
        if checkpoint["source"] != source_hash(args.file):
            self.say(f"warning: {args.script}.py has changed since this run was started")
        for name, part in self.parts.items():
            part.load_state_dict(checkpoint[name])
        self.rng = checkpoint["rng"]
        if stored_flags(args) != checkpoint["args"]:   # more epochs, say
            self.write_args()

    def epochs(self):
        """Yield the numbers of the epochs still to do."""
        return self.steps()

    def iterations(self):
        """The same for a script that counts iterations."""
        return self.steps()

    def steps(self):
        first = self.done + 1
        self.bar = progress_bar(self.last, first - 1, self.args.quiet)
        previous = signal_handler(signal.SIGINT, self.stop)
        if self.args.tensorboard:
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(self.folder / "tensorboard", purge_step=first)
        if self.rng is not None:   # only now: what prepares a run may draw random numbers, too
            torch.set_rng_state(self.rng["cpu"])
            if torch.cuda.is_available():
                torch.cuda.set_rng_state_all(self.rng["cuda"])
        self.start = time.perf_counter()
        try:
            for step in range(first, self.last + 1):
                yield step
                if self.done == step:   # a row was saved, and its figures are drawn
                    self.show_on_board(step)
                    self.start = time.perf_counter()
        finally:
            signal_handler(signal.SIGINT, previous)
            if self.bar is not None:
                self.bar.close()
            if self.board is not None:
                self.board.close()

    def stop(self, signum, frame):
        """Ctrl-C: the last checkpoint is whole; say how to go on."""
        if self.bar is not None:
            self.bar.close()
        if (self.folder / "checkpoint.pt").exists():
            folder = shlex.quote(str(self.folder))
            print(f"\nstopped; continue with: python {self.args.script}.py --resume {folder}")
        else:
            print("\nstopped before the first checkpoint")
        raise SystemExit(130)

    def due(self, iteration):
        """Whether a row of the log is due after this iteration."""
        return iteration % self.interval() == 0 or iteration == self.last

    def interval(self):
        """Epochs or iterations between rows of the log."""
        if self.unit == "epoch":
            return 1
        return self.args.eval_every or self.last

    def figures_due(self):
        """Whether the epoch just saved gets figures: 1, 2, 5, every --save-every-th, the last."""
        return self.done in (1, 2, 5, self.last) or self.done % self.args.save_every == 0

    def figure(self, name):
        """The file of a figure of the epoch just saved."""
        return self.folder / f"{name}_{self.done:03d}.png"

    def save(self, row, note, done=None):
        """Add a row to the log and save a checkpoint, after an epoch or at iteration `done`.

        row: {column: number or None}; epoch and seconds are put in front. note: for the terminal.
        """
        seconds = time.perf_counter() - self.start
        previous = self.done
        self.done = self.done + 1 if done is None else done
        row = {self.unit: self.done, "seconds": seconds} | without_kl(twin_last(row), self.args)
        self.rows.append({name: rounded(value) for name, value in row.items()})

        self.save_checkpoint()
        write_log(self.folder / "log.csv", self.rows)
        if self.done % (self.interval() * self.args.save_every) == 0 or self.done == self.last:
            self.keep(f"checkpoint_{self.done:03d}.pt")

        self.report(note, self.done - previous, seconds)

    def report(self, note, steps, seconds):
        """Move the bar, or print a line where there is no terminal."""
        if self.unit == "epoch":
            note = f"{note}, {len(self.data.x_train) / seconds:,.0f} images/s"
        else:
            note = f"{note}, {steps / seconds:.1f} iterations/s"
        if self.bar is not None:
            self.bar.set_postfix_str(note)
            self.bar.update(steps)
        else:
            self.say(f"{self.unit} {self.done}/{self.last}: {note}")

    def save_checkpoint(self):
        """checkpoint.pt: everything needed to go on bit for bit, and to rebuild the model."""
        checkpoint = {
            "script": self.args.script,
            "source": source_hash(self.args.file),
            "args": stored_flags(self.args),
            "epoch": self.done,
            "data": data_card(self.data),
            "log": self.rows,
            "rng": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
        }
        for name, part in self.parts.items():
            checkpoint[name] = part.state_dict()
        partial = self.folder / "checkpoint.part"
        with open(partial, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.folder / "checkpoint.pt")   # a kill leaves the old or the new one

    def keep(self, name):
        """Keep a copy of checkpoint.pt under another name."""
        partial = self.folder / f"{name}.part"
        shutil.copyfile(self.folder / "checkpoint.pt", partial)
        os.replace(partial, self.folder / name)

    def show_on_board(self, step):
        """The last row, the figures of its epoch and, at the end, the flags, for TensorBoard."""
        if self.board is None:
            return
        import numpy as np
        from PIL import Image
        numbers = {}
        for name, value in self.rows[-1].items():
            if name != self.unit and value is not None:
                numbers[name] = value
                self.board.add_scalar(name, value, step)
        for file in self.folder.glob(f"*_{step:03d}.png"):
            image = np.array(Image.open(file).convert("RGB"))
            tag = file.stem.removesuffix(f"_{step:03d}")
            self.board.add_image(tag, image, step, dataformats="HWC")
        if step == self.last:
            self.board.add_hparams(stored_flags(self.args), numbers, run_name=".", global_step=step)
        self.board.flush()

    def finish(self, summary):
        """The last line: the folder, the number that counts, the figures, what to try next."""
        figures = [file.name for file in sorted(self.folder.glob(f"*_{self.last:03d}.png"))]
        if (self.folder / "curves.png").exists():
            figures.append("curves.png")
        self.say(f"{self.folder}: {summary}; see {', '.join(figures)}; "
                 f"next: python generate.py {shlex.quote(str(self.folder))}")


def stored_flags(args):
    """The flags that belong to a run."""
    return {name: value for name, value in vars(args).items() if name not in NOT_STORED}


def data_card(data):
    """What a model must know of its data to be rebuilt."""
    return {"name": data.name, "shape": list(data.x_train.shape[1:]), "classes": data.classes}


def twin_last(row):
    """The columns of cvae.py's twin, a VAE, follow after those of the CVAE."""
    ours = {name: value for name, value in row.items() if not name.startswith("vae_")}
    twins = {name: value for name, value in row.items() if name.startswith("vae_")}
    return ours | twins


def without_kl(row, args):
    """An autoencoder has no KL: its columns stay empty."""
    if hasattr(args, "beta") and is_autoencoder(args):
        for name in row:
            if name.endswith("_kl"):
                row[name] = None
    return row


def rounded(value):
    """A number with the six digits of the log."""
    return None if value is None else float(f"{value:.6g}")


def write_whole(path, content):
    """Write bytes under another name and rename, so that a kill leaves no half of a file."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_bytes(content)
    os.replace(partial, path)


def write_log(path, rows):
    """Rows as a .csv file; None is an empty cell."""
    lines = [",".join(rows[0])]
    for row in rows:
        lines.append(",".join("" if value is None else f"{value:.6g}" for value in row.values()))
    write_whole(path, "\n".join([*lines, ""]).encode())


def read_log(folder):
    """The rows of a run's log as {column: float, or None where empty}."""
    rows = []
    with open(Path(folder, "log.csv"), newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rows.append({name: float(text) if text else None for name, text in row.items()})
    return rows


def run_folder(path):
    """The folder of a run that is named by its folder or by a checkpoint in it."""
    path = Path(path)
    return path if path.is_dir() else path.parent


def free_folder(base):
    """`base`, or the first of base-2, base-3 ... that does not exist."""
    folder, count = base, 1
    while Path(folder).exists():
        count += 1
        folder = f"{base}-{count}"
    return folder


def progress_bar(total, done, quiet):
    """A bar on a terminal; None elsewhere, where lines are printed instead."""
    if quiet or not sys.stderr.isatty() or not has_package("tqdm", "a progress bar"):
        return None
    from tqdm import tqdm
    return tqdm(total=total, initial=done)


def signal_handler(signum, handler):
    """Install a handler and return the one before; outside the main thread there are none."""
    try:
        return signal.signal(signum, handler)
    except ValueError:
        return None


# ------------------------------------------------------------------------------- trained models

def load_checkpoint(path):
    """The checkpoint in a run folder or file, loaded without running any code in it."""
    file = Path(path, "checkpoint.pt") if Path(path).is_dir() else Path(path)
    if not file.is_file():
        fail(f"{file} was not found; give a run folder or a checkpoint")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        complete = {"script", "args", "epoch", "data", "rng"} <= checkpoint.keys()
    except Exception as error:   # a file that is something else can raise anything
        fail(f"{file} is not a minigen checkpoint ({type(error).__name__})")
    if not complete:
        fail(f"{file} is not a minigen checkpoint (parts are missing)")
    return checkpoint


def source_hash(file):
    """A hash of a script's source."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def import_script(checkpoint):
    """The module of the script that wrote a checkpoint: a file of the project or of recipes/.

    Nothing else is ever imported because a checkpoint says so.
    """
    script = checkpoint["script"]
    file = ROOT / f"{script}.py"
    if not re.fullmatch(r"(recipes/)?[A-Za-z]\w*", script):
        fail(f"this is a run of {script}.py, which cannot be imported; a script lies in {ROOT} or "
             "in recipes/ and has letters, digits and _ in its name")
    if not file.is_file():
        fail(f"this is a run of {script}.py, which is not in {ROOT}; put that script back")
    if "source" in checkpoint and checkpoint["source"] != source_hash(file):
        print(f"warning: {script}.py has changed since this run was trained")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    module = importlib.import_module(script.replace("/", "."))
    if not hasattr(module, "build"):
        fail(f"{script}.py has no function build(shape, classes, args) to make its model with")
    return module


# The parts of a checkpoint that are models to draw with, and the prefix of their columns in the
# log. The first edition called a twin vae_model.
MODEL_PARTS = {"model": "", "cvae": "", "ema": "", "vae": "vae_", "vae_model": "vae_"}


class Trained:
    """A trained model as generate.py and evaluate.py see it, whether it takes labels or not.

    encode(x, y) -> mu, logvar; decode(z, y) -> p(x|z,y), where the model has them; images(z, y).
    """

    def __init__(self, model, name, args):
        self.model, self.name, self.args = model, name, args
        self.classes = getattr(model, "classes", 0)         # that it was told in training
        self.is_autoencoder = hasattr(args, "beta") and is_autoencoder(args)
        self.has_encoder = hasattr(model, "encode")
        self.has_likelihood = hasattr(model, "decode")

    def encode(self, x, y):
        """x (B, C, H, W), y (B,) -> mu, logvar of the posterior, (B, latent) each."""
        return encode(self.model, x, y)

    def decode(self, z, y):
        """z (B, latent), y (B,) -> p(x|z,y), a distribution over images."""
        return decode(self.model, z, y)

    def images(self, z, y):
        """z (B, latent), y (B,) -> images (B, C, H, W): the mean of p(x|z,y), or a GAN's."""
        if self.has_likelihood:
            return self.decode(z, y).mean
        return self.model.picture(z, y)

    def prior(self):
        """p(z) of a model that has its own, as a distribution; None: standard normal."""
        return self.model.prior() if hasattr(self.model, "prior") else None


def load_models(path, device="cpu"):
    """What a run folder or a checkpoint holds: the checkpoint, the module of its script, and the
    models, {prefix of their columns in the log: Trained}, which is "" and, for a twin, "vae_".
    """
    checkpoint = load_checkpoint(path)
    module = import_script(checkpoint)
    args, card = SimpleNamespace(**checkpoint["args"]), checkpoint["data"]
    classes = len(card["classes"])
    models = {}
    for part, prefix in MODEL_PARTS.items():
        if part not in checkpoint:
            continue
        model = module.build(card["shape"], 0 if prefix else classes, args)
        try:
            model.load_state_dict(checkpoint[part])
        except RuntimeError:
            fail(f"the weights in {path} do not fit the model of {checkpoint['script']}.py, which "
                 "has changed since; put the old script back")
        model.to(device).eval().requires_grad_(False)
        models[prefix] = Trained(model, model_name(model), args)
    if "" not in models:
        fail(f"{path} holds no model; a script passes it to Run as model=, cvae= or ema=")
    return checkpoint, module, models
