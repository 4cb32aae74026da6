"""The plumbing, which a reader may skip: flags, the run folder, checkpoints and resuming, progress,
TensorBoard, loading a trained model. Nothing here touches a loss or takes an optimiser step.

One section is worth a look: "what vae.py and cvae.py have in common" holds the defaults that depend
on the data, the learning-rate schedules and the figures.
"""
import argparse
import contextlib
import csv
import difflib
import functools
import hashlib
import importlib
import inspect
import io
import math
import os
import platform
import re
import reprlib
import shlex
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.distributions import Distribution
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

import processes
from common import (
    BAR,
    SIGMA_MIN,
    Condition,
    HostImages,
    batches,
    count_numbers,
    encode_values,
    fail,
    fixed_images,
    has_package,
    hash_rows,
    in_words,
    is_autoencoder,
    on_terminal,
    save_curves,
    save_latent,
    save_rows,
    tell,
    typical_values,
    vectors,
    write_whole,
)
from readers import READERS, find_parts, load_data, lock

ROOT = Path(__file__).resolve().parent

# Ctrl-C, and what batch systems send before they kill.
STOPPING = (signal.SIGINT, signal.SIGTERM)
# Names in `args` that are not stored: they belong to one call, not to the run.
NOT_STORED = ("out", "resume", "quiet", "file", "script", "command")
# What may differ when a run is resumed. (Another device draws other random numbers.)
FREE_ON_RESUME = ("data", "data_on", "device", "save_every", "tensorboard")
# Lines of older args.txt files that are skipped: flags of figures, and silence.
RETIRED = re.compile(r"--(quiet|show=\w+|span=[\d.]+)$")


# --------------------------------------------------------------------------------------- flags

class Help(argparse.RawDescriptionHelpFormatter):
    """Defaults at the end of a line where there is one, and examples as they were typed."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=26)

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == argparse.SUPPRESS:
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviations, and @files that may hold comments. --help
    opens with the first line of the script's docstring and ends with the commands in it."""

    def __init__(self, file, docstring, usage="[flags]"):
        name = script_name(file)
        examples = [line for line in docstring.splitlines() if line.startswith("    python ")]
        super().__init__(prog=f"{name}.py", usage=f"python {python_name(name)} {usage}",
                         description=docstring.splitlines()[0],
                         epilog="\n".join(["examples:", *examples]),
                         formatter_class=Help, allow_abbrev=False)
        self.file, self.script = file, name

    def parse_known_args(self, args=None, namespace=None):
        """As in argparse, but an @file stands for the flags in it."""
        flags = []
        for flag in sys.argv[1:] if args is None else args:
            if flag.startswith("@"):
                flags += file_flags(flag[1:])
            else:
                flags.append(flag)
        return super().parse_known_args(flags, namespace)

    def error(self, message):
        """The message; for an unknown flag the one that was probably meant, too."""
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1)
            usage = f"python {python_name(self.script)} --help"
            hint = f"did you mean {near[0]}?" if near else f"see {usage}"
            message = f"unknown flag {unknown[1]}; {hint}"
        fail(message)


def file_flags(name, above=()):
    """The flags of an @file: one a line, between comments that start with #.

    above: the files that name this one, so that no file names itself.
    """
    file = Path(os.path.expanduser(name))
    if not os.path.isfile(file):   # a device has no end
        fail(f"@{name} is not a file; write @ and the path of a file with a flag on each line")
    if file.resolve() in above:
        fail(f"@{name} names itself; remove that line")
    if file.stat().st_size > 1_000_000:
        fail(f"@{name} is too large for a file of flags; it has one flag a line")
    try:   # an editor may put a mark in front; a name of a file may be in no encoding
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        fail(f"@{name} cannot be read ({reason(error)}); name another file")
    if "\0" in text:
        fail(f"@{name} is not a text file; it has one flag a line")
    flags = []
    for line in text.split("\n"):
        line = unquoted(line.strip())
        if line.startswith("@"):
            flags += file_flags(line[1:], (*above, file.resolve()))
        elif line and not line.startswith("#") and not RETIRED.match(line):
            flags.append(line)
    return flags


def unquoted(line):
    """--out="a b" -> --out=a b: in a file a shell takes no quotes away."""
    match = re.fullmatch(r"""(--[\w-]+=)?(["'])(.*)\2""", line)
    if match is None:
        return line
    return (match[1] or "") + match[3]


def script_name(file):
    """The name of a script below the project: "vae", "my_vae", "recipes/iwae"."""
    path = Path(file).resolve().with_suffix("")
    if path.is_relative_to(ROOT):
        return path.relative_to(ROOT).as_posix()
    return path.name


def python_name(script):
    """What python is told to run a script: vae.py; -m recipes.iwae, which imports from above."""
    if "/" in script:
        return f"-m {script.replace('/', '.')}"
    return f"{script}.py"


def number(kind, low, above=False, below=None):
    """An argparse type: an int or float that is at least `low`, or above it; and below `below`."""
    if below is None:
        below = 2**32 if kind is int else math.inf   # seeds end there

    def convert(text):
        value = kind(text)
        bound = "above" if above else "at least"
        too_low = value <= low if above else value < low
        if too_low or math.isnan(value):
            raise argparse.ArgumentTypeError(f"must be {bound} {low}, not {text}")
        if value >= below:
            raise argparse.ArgumentTypeError(f"must be below {below}, not {text}")
        return value

    convert.__name__ = kind.__name__   # argparse names it where the text is no number at all
    return convert


def path_text(text):
    """The argparse type of a path: ~ is the home folder. Empty is, most likely, a shell variable
    that was not set; a line break would be the end of the flag in args.txt."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a path, or remove the flag")
    if any(ord(character) < 32 for character in text):
        raise argparse.ArgumentTypeError("must not hold line breaks or control characters")
    try:
        return os.path.expanduser(text)
    except (RuntimeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


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
    group.add_argument("--layers", type=number(int, 0, below=1001), metavar="N",
                       help="dense hidden layers (default: 1; conv in colour: 0)")
    group.add_argument("--latent", type=number(int, 1), default=20, metavar="N", help="size of z")
    group.add_argument("--dropout", type=number(float, 0, below=1), default=0.0, metavar="P",
                       help="share of activations set to zero")
    return group


def add_condition_flags(group):
    """What cvae.py has besides."""
    group.add_argument("--condition", choices=("label", "angle", "both", "none"), metavar="WHAT",
                       help="label, angle, both or none (default: all there is)")
    group.add_argument("--no-baseline", action="store_true", help="no twin")


def add_loss_flags(parser):
    """The likelihood and the weight of the KL in vae.py and cvae.py."""
    group = parser.add_argument_group("loss")
    group.add_argument("--likelihood", choices=("bernoulli", "gaussian"),
                       help="of a pixel (default: bernoulli; colour: gaussian)")
    group.add_argument("--sigma", type=sigma, default="learned", metavar="S",
                       help="learned, pixel or a number")
    group.add_argument("--binarize", choices=("none", "threshold", "dynamic"), default="none",
                       metavar="HOW", help="pixels 0 or 1: threshold or dynamic")
    group.add_argument("--beta", type=number(float, 0), default=1.0, metavar="B",
                       help="weight of the KL; 0: an autoencoder")
    group.add_argument("--beta-schedule", choices=("constant", "linear", "cyclical"),
                       default="constant", help="beta by epoch")
    group.add_argument("--beta-warmup", type=number(int, 1), metavar="N",
                       help="epochs to reach beta (default: a whole cycle)")


def add_optimizer_flags(parser):
    """The optimiser of vae.py, cvae.py and flow.py."""
    group = parser.add_argument_group("optimiser")
    group.add_argument("--epochs", type=number(int, 1), default=20, metavar="N",
                       help="passes over the training images")
    group.add_argument("--batch-size", type=number(int, 1), default=128, metavar="N",
                       help="images per step")
    group.add_argument("--lr", type=number(float, 0, above=True), default=5e-3, metavar="RATE",
                       help="learning rate, or its peak")
    group.add_argument("--lr-schedule", choices=("constant", "onecycle", "cosine", "plateau"),
                       default="onecycle", help="rate over the run")
    return group


def add_data_flags(parser):
    """What every training script can be trained on."""
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", type=path_text, default="MNIST", metavar="NAME|PATH",
                       help=f"{', '.join(READERS)} or a path")
    group.add_argument("--data", type=path_text, default="data", metavar="DIR",
                       help="folder for downloads of named sets")
    group.add_argument("--train-size", type=number(int, 1), metavar="N",
                       help="train on a fixed random subset")
    group.add_argument("--test-size", type=number(int, 1), metavar="N",
                       help="test on a fixed random subset")
    group.add_argument("--image-size", type=number(int, 1), metavar="N",
                       help="crop to a square and resize to NxN")
    group.add_argument("--skip-broken", action="store_true", help="leave out damaged image files")
    group.add_argument("--background", choices=("white", "black"), default="white",
                       metavar="COLOUR", help="black or white, behind transparency")
    group.add_argument("--rotate", type=number(float, 0, below=181), metavar="DEGREES",
                       help="turn each image by up to DEGREES either way")
    group.add_argument("--data-on", choices=("cpu", "device"),
                       help="where images stay (default: as they fit)")
    return group


def add_run_flags(parser, saved="epochs between figures and copies"):
    """The plumbing of every training script. saved: the help of --save-every."""
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=number(int, 0), default=1, metavar="N",
                       help="random seed of weights and noise")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto")
    group.add_argument("--out", type=path_text, metavar="DIR",
                       help="run folder (default: results/SCRIPT-DATASET-N)")
    group.add_argument("--resume", type=path_text, metavar="RUN",
                       help="continue a run (folder or checkpoint) with its flags")
    group.add_argument("--save-every", type=number(int, 1), default=10, metavar="N",
                       help=saved)
    group.add_argument("--compile", action="store_true", help="torch.compile: a slow start")
    group.add_argument("--amp", action="store_true", help="matrix products in bfloat16")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    group.add_argument("--tensorboard", action="store_true", help="log to TensorBoard, too")


def add_training_flags(parser):
    """What vae.py and cvae.py have besides their model."""
    add_loss_flags(parser)
    group = add_optimizer_flags(parser)
    group.add_argument("--weight-decay", type=number(float, 0), default=0.0, metavar="W",
                       help="AdamW: weights lose rate * W a step")
    add_data_flags(parser)
    add_run_flags(parser)


def as_flags(values):
    """{"latent": 2, "quiet": True, "digits": (3, 5)} -> ["--latent=2", "--quiet", "--digits", "3",
    "5"]; None and False are left out."""
    flags = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif isinstance(value, list | tuple):
            flags.append(flag)
            flags += [str(item) for item in value]
        elif value is not None and value is not False:
            flags.append(f"{flag}={value}")
    return flags


def parse(parser, argv, overrides):
    """The flags of a command line, and of keywords as in main(latent=2).

    With --resume the flags of that run are the defaults, and only some may differ from them.
    """
    argv = [*map(str, argv), *as_flags(overrides)]
    args = parser.parse_args(argv)
    out, resume = getattr(args, "out", None), getattr(args, "resume", None)
    if may_be_restarted() and resume is None:
        if out is None:
            fail("torchrun --max-restarts needs --out, so that a restarted run finds its "
                 "checkpoint; add it")
        if may_mix_attempts():
            fail("torchrun --max-restarts on several machines needs "
                 "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment of each; set it")
        if holds_run_of(out, command_line(parser, argv)):
            argv = ["--resume", out, *as_flags({"quiet": args.quiet})]
            args = parser.parse_args(argv)
            resume = out
    if resume is not None:
        started = was_only_started(resume)
        stored = started_flags(parser, resume) if started else resumed_flags(parser, resume)
        parser.set_defaults(**stored)
        args = parser.parse_args(argv)
        check_resumed_flags(args, stored)
        if started:
            args.out, args.resume = resume, None
            if not args.quiet:
                tell(f"{resume} has no checkpoint yet: starting from the beginning")
    for name, value in overrides.items():
        if value is False and getattr(args, name):
            flag = as_flags({name: True})[0]
            fail(f"{name}=False does not undo {flag} of a file or a run; remove it there")
    args.file, args.script = parser.file, parser.script
    args.command = command_line(parser, argv)
    if resume is not None and started:
        args.command = command_of(resume)   # args.txt is written again
    if processes.rank() > 0:
        args.quiet = True
    return args


def may_mix_attempts():
    """Whether restarted processes would read what lost ones have written: torchrun keeps it, and
    counts restarts on each machine by itself (PyTorch's issue 135712)."""
    machines = int(os.environ.get("GROUP_WORLD_SIZE", 1))
    return machines > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def command_line(parser, argv):
    """A command as it stands in the first line of args.txt."""
    return f"{python_name(parser.script)} {shlex.join(argv)}".strip()


def may_be_restarted():
    """Whether torchrun has --max-restarts: it gives the same command again when a process is lost.
    (How often it has done so, it tells only those on the machine of the lost one.)"""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0


def holds_run_of(folder, command):
    """Whether a folder holds a checkpoint of the run that this very command has started."""
    if not Path(folder, "checkpoint.pt").exists() or not Path(folder, "args.txt").exists():
        return False
    return command_of(folder) == " ".join(command.splitlines())


def was_only_started(folder):
    """Whether a folder is a run's that was stopped before its first checkpoint."""
    folder = Path(folder)
    has_steps = (folder / "checkpoint.pt").exists() or (folder / "log.csv").exists()
    return (folder / "args.txt").exists() and not has_steps


def command_of(folder):
    """The command that started a run, from the first line of args.txt."""
    text = Path(folder, "args.txt").read_text("utf-8", errors="surrogateescape")
    return text.partition("\n")[0].removeprefix("# python ")


def started_flags(parser, folder):
    """The flags of a run that was stopped before its first checkpoint."""
    file = Path(folder, "args.txt")
    if f"# python {python_name(parser.script)}" not in file.read_text("utf-8", errors="replace"):
        fail(f"--resume {folder} is not a run of {parser.prog}; its args.txt names the script")
    args = parser.parse_args([f"@{file}"])
    return stored_flags(args)


def resumed_flags(parser, path):
    """The stored flags of a run that this script can continue."""
    checkpoint = load_checkpoint(path)
    if checkpoint["script"] != parser.script:
        fail(f"--resume {path} is a run of {checkpoint['script']}.py; use that script")
    if "log" not in checkpoint:
        fail(f"--resume {path} holds weights only, or comes from the first edition; it can be "
             "drawn and measured, but not continued")
    check_stored_flags(parser, path, checkpoint["args"])
    defaults = stored_flags(parser.parse_args([]))   # of flags that are newer than the run
    return defaults | checkpoint["args"]


def check_stored_flags(parser, path, stored):
    """The flags in a checkpoint must have values that its script would take. (One may be missing:
    the script may be newer.)"""
    def refuse(message):
        fail(f"the flags in {path} are not those of a run of {parser.prog}: {message}")

    known = vars(parser.parse_args([]))
    given = {name: value for name, value in stored.items()
             if name in known and name not in NOT_STORED}
    parser.error = refuse
    parsed = vars(parser.parse_args(as_flags(given)))
    del parser.error   # the parser's own again
    for name, value in given.items():
        if value is not None and (type(parsed[name]), parsed[name]) != (type(value), value):
            refuse(f"{name} cannot be {reprlib.repr(value)}")


def check_resumed_flags(args, stored):
    """A resumed run keeps its flags. --epochs may change where no schedule depends on it, and the
    path of the data if they were moved."""
    free = list(FREE_ON_RESUME)
    if stored.get("lr_schedule") in ("constant", "plateau") \
            and stored.get("beta_schedule", "constant") == "constant":
        free.append("epochs")
    if args.dataset not in READERS and stored.get("dataset") not in READERS:
        free.append("dataset")
    if args.out is not None:
        fail("--out cannot be changed when resuming; remove it")
    for name, value in stored.items():
        if name not in free and getattr(args, name) != value:
            flag = "--" + name.replace("_", "-")
            fail(f"{flag} cannot be changed when resuming; remove it")


def check_compiler():
    """torch.compile makes C++ of the model, for a processor."""
    compiler = os.environ.get("CXX")
    names = [compiler] if compiler else ["g++", "clang++", "cl"]
    if not any(shutil.which(name) for name in names):
        fail(f"--compile needs a C++ compiler ({' or '.join(names)}); install one, or remove it")


def start_processes(args, device):
    """Find the other processes that torchrun has started, if any."""
    if processes.count() > args.batch_size:
        fail(f"--batch-size {args.batch_size} leaves some of {processes.count()} processes without "
             "an image; raise it, or start fewer")
    if getattr(args, "dropout", 0) > 0 and processes.count() > 1:
        fail("--dropout draws other units in every process; remove it, or start one process")
    if args.script.startswith("recipes/") and processes.count() > 1:
        fail("torchrun: recipes may draw other noise in every process; start one process")
    try:
        processes.start(device)
    except ValueError as error:
        fail(f"torchrun: {reason(error)}; start one process, or install another PyTorch")
    except RuntimeError as error:
        fail(f"torchrun: the other processes cannot be reached ({reason(error)})", status=1)


def pick_device(name):
    """The torch.device of --device; `auto` is the machine's accelerator, if it has one; of several
    processes each has a GPU of its own."""
    if name == "auto":
        name = "cpu"
        if torch.accelerator.is_available():
            name = torch.accelerator.current_accelerator()
    if str(name) == "cuda" and processes.count() > 1:
        n_here = int(os.environ["LOCAL_WORLD_SIZE"])
        if n_here > torch.cuda.device_count():
            fail(f"torchrun has started {n_here} processes for {torch.cuda.device_count()} GPUs; "
                 f"use --nproc-per-node {torch.cuda.device_count()}, or --device cpu")
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:   # the only sure way to learn whether a device works
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):
        fail(f"--device {name} is not available; use --device cpu, or leave it at auto")


def say_nothing(message):
    """What --quiet makes of a line."""


def data_options(args):
    """The flags of a run that load_data takes by name. The first edition did not have them all."""
    return {
        "image_size": args.image_size,
        "train_size": args.train_size,
        "test_size": args.test_size,
        "skip_broken": getattr(args, "skip_broken", False),
        "background": getattr(args, "background", "white"),
        "rotate": getattr(args, "rotate", None),
        "condition": getattr(args, "condition", "label"),
    }


def check_split(checkpoint, dataset):
    """Refuse a folder that the first edition split in another way: some of what are test images
    now were trained on. (Its checkpoints have no hash of the script.)"""
    if "source" in checkpoint or not os.path.isdir(dataset):
        return
    _, test = find_parts(Path(dataset), {})
    if test is None:
        fail(f"this run is of the first edition, which split {dataset} into training and test "
             "images in another way; train it again, or sort the images into train/ and test/")


def slowdown_in_bfloat16(device):
    """How many times as long a matrix product takes in bfloat16 as in float32: 1/4, say, or, on
    processors without instructions for it, 40. It takes 50 to 150 ms to find out."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 256, dtype=dtype, device=device)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def load_run_data(args, conditional=False):
    """The data set that the flags name, on the device that they name; conditional: for a model that
    is told what --condition says."""
    device = pick_device(args.device)
    start_processes(args, device)
    if args.compile and device.type == "cpu":
        check_compiler()
    if args.amp and device.type == "cpu" and not args.quiet:
        slowdown = slowdown_in_bfloat16(device)
        if slowdown > 1:
            tell(f"note: on this processor products take {slowdown:.1f} times as long in bfloat16 "
                 "as in float32; remove --amp")
    if processes.rank() > 0:
        processes.collect("waiting")   # until the first has downloaded what is to be downloaded
    data = load_data(args.dataset, args.data, device, **data_options(args),
                     say=say_nothing if args.quiet else tell, data_on=args.data_on)
    if processes.rank() == 0:
        processes.collect("downloaded")
    if conditional:
        check_condition(args, data)
    return data


def check_condition(args, data):
    """The data must have what --condition asks for."""
    needs_label = args.condition in ("label", "both")
    if args.condition is None:
        needs_label = not data.conditions
    if needs_label and len(data.classes) < 2:
        n = "one class only" if data.classes else "no labels"
        fail(f"--dataset {args.dataset} has {n}; use vae.py, which needs none")
    if args.condition in ("angle", "both") and not data.conditions:
        fail(f"--condition {args.condition} needs --rotate, or an .npz file with c_train and "
             f"c_test, and --dataset {args.dataset} has none; add them, or use --condition label")


# ------------------------------------------------------------- what a machine and a notebook are

def guarded(main):
    """Decorator of a main: gradients are on and numbers are float32, whatever the notebook around
    it has set; Ctrl-C before the first step and the end of the memory are said in a line."""
    @functools.wraps(main)
    def wrapped(argv=(), **overrides):
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.enable_grad():
                return main(argv, **overrides)
        except KeyboardInterrupt:
            tell("")
            tell("stopped before the first step")
            raise SystemExit(130) from None
        except processes.Ended:
            if processes.has_last_word():
                tell("error: another process of this run has ended; continue with --resume",
                     sys.stderr)
            raise SystemExit(1) from None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            fail("out of memory; use a smaller model, --batch-size, --train-size or --samples",
                 status=1)
        finally:
            torch.set_default_dtype(dtype)

    return wrapped


def is_out_of_memory(error):
    """Whether an error says that there is no more memory, of the machine or of its accelerator."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error)


def check_size(build, data, args):
    """A model that cannot fit is refused before any memory is asked for."""
    shape, device = list(data.x_train.shape[1:]), data.x_train.device
    try:
        with torch.device("meta"):   # tensors of shapes and no numbers
            model = build(shape, data.n_c, args)
    except Exception as error:
        if "overflow" in str(error):
            fail(f"the model is too large to be counted; lower {size_flags(args)}")
        return   # a model that needs its numbers; if it is wrong, build will say so
    n = sum(parameter.numel() for parameter in model.parameters())
    needed = 4 * 4 * n   # float32: the weights, their gradient and the two means of Adam
    if needed > memory_of(device):
        fail(f"the model needs {needed / 2**30:,.0f} GiB for its {n:,} parameters, more than "
             f"{device} has ({memory_of(device) / 2**30:,.0f} GiB); lower {size_flags(args)}")


def size_flags(args):
    """The flags that make a script's model smaller: "--hidden, --layers or --latent"."""
    names = []
    for name in ("hidden", "layers", "width", "couplings", "blocks", "latent"):
        if hasattr(args, name):
            names.append(f"--{name}")
    return f"{', '.join(names[:-1])} or {names[-1]}"


def memory_of(device):
    """Bytes of memory, or infinity where they are not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return math.inf


# ------------------------------------------------------- what vae.py and cvae.py have in common

def check_flags(args):
    """Flags of vae.py and cvae.py that exclude one another."""
    bernoulli = args.likelihood == "bernoulli" or args.binarize != "none"
    if args.binarize != "none" and args.likelihood not in (None, "bernoulli"):
        fail("--binarize needs --likelihood bernoulli")
    if args.sigma != "learned" and bernoulli:
        fail("--sigma needs --likelihood gaussian")
    if args.lr_schedule == "plateau" and args.beta_schedule != "constant":
        fail("--lr-schedule plateau watches the objective, which rises with beta; use "
             "--beta-schedule constant, or another --lr-schedule")
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
    if args.lr_schedule == "onecycle" and steps > 1:   # its only step would have a rate near 0
        return OneCycleLR(optimizer, args.lr, total_steps=steps)
    if args.lr_schedule == "cosine":
        return CosineAnnealingLR(optimizer, steps)
    if args.lr_schedule == "plateau":   # stepped once an epoch, with the training objective
        return ReduceLROnPlateau(optimizer, patience=3, min_lr=1e-3 * args.lr)
    return ConstantLR(optimizer, factor=1)


@functools.cache
def compiled(function):
    """torch.compile, once for each function."""
    return torch.compile(function, dynamic=False)


def warn_of_collapse(run):
    """Say so if q(z|x) has become the prior, so that z tells the decoder nothing."""
    row, args = run.rows[-1], run.args
    if is_autoencoder(args) or len(run.data.x_test) < 2:   # one image has no variance
        return
    for prefix in ("", "vae_"):
        if f"{prefix}active" not in row:
            continue
        active, kl = row[f"{prefix}active"], row[f"{prefix}test_kl"]
        if active < min(2, args.latent) or kl < 0.5:
            twin = "twin's " if prefix else ""
            run.say(f"warning: the {twin}posterior has collapsed ({active:.0f} active units, KL "
                    f"{kl:.2f} nats); try --beta-schedule linear or a smaller --beta")


def takes_condition(model):
    """Whether encode and decode take c beside x or z, and loss_terms with them."""
    method = model.encode if hasattr(model, "encode") else model.decode
    return len(inspect.signature(method).parameters) == 2


def condition_size(model):
    """How many numbers a model is told of an image, a label counting one-hot; a twin none."""
    if hasattr(model, "encode"):
        return getattr(model, "n_c", 0)
    return getattr(model, "classes", 0)   # gan.py and flow.py know labels only


def encode(model, x, c):
    """mu, logvar of a model that takes a condition, or of one that does not."""
    return model.encode(x, c) if takes_condition(model) else model.encode(x)


def decode(model, z, c):
    """p(x|z) of a model that takes a condition, or of one that does not."""
    return model.decode(z, c) if takes_condition(model) else model.decode(z)


def posterior_fault(name, posterior):
    """Why what encode() of a model has returned is no posterior; None if it is one."""
    if isinstance(posterior, tuple) and len(posterior) == 2:
        return None
    return f"{name}.encode does not return mu and logvar"


def likelihood_fault(name, p):
    """Why what decode() of a model has returned is no p(x|z); None if it is one."""
    if isinstance(p, Distribution):
        return None
    return f"{name}.decode does not return a torch distribution"


def own_loss_terms(module, model, x, c, eps):
    """What the loss_terms of the model's own script returns, whether it takes a condition or
    not."""
    if takes_condition(model):
        return module.loss_terms(model, x, c, eps)
    return module.loss_terms(model, x, eps)


def model_name(model):
    """CVAE, VAE, CAE or AE, or the name of the class of another model."""
    if not hasattr(model, "encode") or not hasattr(getattr(model, "args", None), "beta"):
        return type(model).__name__
    conditional = "C" if condition_size(model) > 0 else ""
    return conditional + ("AE" if is_autoencoder(model.args) else "VAE")


def save_reconstructions(run, data, models):
    """Eight test images, the same in every epoch; below them what each model makes of them."""
    x, c = fixed_images(data, 8)
    rows = {"original": x}
    for model in models:
        mu, _ = encode(model, x, c)
        rows[model_name(model)] = decode(model, mu, c).mean
    save_rows(run.figure("reconstruction"), rows)


def sample_grid(z, data):
    """What to draw samples of a conditional model from: codes z (64, latent) -> codes (N, latent),
    conditions c of them, and a dictionary with the other arguments of save_grid.

    A class per row, a z per column. Of a model that is told conditions one z, and the last of them,
    the angle if there is one, from low to high along the columns.
    """
    has_labels = data.n_c > count_numbers(data.conditions)
    names = data.classes[:20] if has_labels else []     # what fits on a page
    if not data.conditions and not has_labels:          # --condition none
        return z, torch.empty(len(z), 0, device=z.device), {"columns": 8}
    if not data.conditions:
        y = torch.arange(len(names), device=z.device).repeat_interleave(8)
        return z[:8].repeat(len(names), 1), y, {"columns": 8, "names": names}

    columns, rows = 7, len(names) or 8
    last = data.conditions[-1]
    places = torch.linspace(last.low, last.high, columns)
    values = typical_values(data.conditions).repeat(columns, 1)
    values[:, -1] = places
    numbers = encode_values(values, data.conditions).repeat(rows, 1).to(z.device)
    y = torch.arange(rows, device=z.device).repeat_interleave(columns)
    c = vectors(y, len(data.classes) if has_labels else 0, numbers)
    own_z = z[:1].repeat(rows, 1)
    title = f"{last.name} from left to right, one z"
    if not has_labels:
        own_z = z[:rows]
        title += " per row"
    heads = [in_words(last, place) for place in places.tolist()]
    texts = {"columns": columns, "names": names, "heads": heads, "title": title}
    return own_z.repeat_interleave(columns, 0), c, texts


def save_latent_map(run, data, models):
    """The test set's posterior means in the plane of a two-dimensional z."""
    means = {model_name(model): posterior_means(model, data) for model in models}
    save_latent(run.figure("latent"), means, data, run.args)


def posterior_means(model, data):
    """mu of every test image, (N, latent)."""
    mus = []
    for x, c in batches(data.x_test, data.c_test, 1000, shuffle=False):
        mu, _ = encode(model, x, c)
        mus.append(mu)
    return torch.cat(mus)


def save_loss_curves(run, models):
    """Training (dashed) and test loss by epoch and their terms, a colour for each model; of an
    autoencoder the loss only, for it has one term."""
    titles = {"loss": "loss = reconstruction + KL", "recon": "reconstruction",
              "kl": "KL divergence"}
    if is_autoencoder(run.args):
        titles = {"loss": "loss = reconstruction"}
    panels = {}
    for term, title in titles.items():
        panels[title] = []
        for model, prefix, color in zip(models, ("", "vae_"), ("C0", "C1"), strict=False):
            name = model_name(model)
            panels[title].append((f"{name} train", f"{prefix}train_{term}", f"{color}--"))
            panels[title].append((f"{name} test", f"{prefix}test_{term}", f"{color}-"))
    save_curves(run.folder / "curves.png", run.rows, "epoch", panels, "nats per image")


# ----------------------------------------------------------------------------------- run folder

class Run:
    """The folder of one training run: its log, its checkpoints, its progress on the terminal.

        run = Run(args, data, model=model, optimizer=optimizer, scheduler=scheduler)
        if run.resumed and run.figures_due():
            save_figures(...)               # which a kill may have cost
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
        self.rows = []         # of the log
        self.done = 0          # the epoch or iteration of the last row
        self.resumed = False   # whether a kill may have cost what follows from checkpoint.pt
        self.unit = "epoch" if hasattr(args, "epochs") else "iteration"
        self.last = args.epochs if self.unit == "epoch" else args.iterations
        self.board = None
        self.rng = None        # of a resumed run, until its first step
        self.source = source_hash(args.file)
        self.card = data_card(data)
        for part in parts.values():
            if isinstance(part, torch.nn.Module) and processes.share_norms(part) and args.compile:
                fail("--compile does not know batch normalisation over several processes; remove "
                     "it, or start one process")
        if args.tensorboard and not has_package("tensorboard", "TensorBoard"):
            args.tensorboard = False

        flag = "--resume" if args.resume else "--out"
        try:
            folder = None
            if processes.rank() == 0:
                folder = self.own_folder()
                claim(folder, flag)
            self.folder = processes.collect(folder)[0]
        except (OSError, ValueError) as error:
            fail(f"{flag} {args.resume or args.out or 'results'}: {reason(error)}; "
                 "use a folder that can be written")
        try:
            self.begin()
        except BaseException:
            release(self.folder)
            raise

    def own_folder(self):
        """The run's folder; a new one is made."""
        args = self.args
        if args.resume:
            return run_folder(args.resume)
        if args.out is None:
            return new_folder(f"results/{args.script}-{self.data.name}")
        folder = Path(args.out)
        if (folder / "checkpoint.pt").exists() or (folder / "log.csv").exists():
            fail(f"--out {folder} already holds a run; use another folder, or continue it "
                 f"with --resume {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def begin(self):
        """Write args.txt, or take up the state of the run to be resumed; say what is trained."""
        args = self.args
        if args.resume:
            self.restore(load_checkpoint(args.resume))
        if processes.rank() == 0:
            for partial in self.folder.glob("*.part"):   # of a write that a kill has cut short
                partial.unlink()
        self.check_processes()
        if self.resumed:
            self.write_what_follows()
        elif not args.resume:
            self.write_args()
        self.say(f"{args.script}.py: {self.describe()}, into {self.folder}")
        if args.compile:
            self.say("compiling in the first step, which takes up to a minute")
        if self.done >= self.last:
            self.say(f"training is already complete ({self.done} {self.unit}s)")

    def check_processes(self):
        """All processes must have read the same data, and have a row of the last batch."""
        contents = processes.collect(self.card["content"] + self.card["test content"])
        for number, content in enumerate(contents):
            if content != contents[0]:
                fail(f"--dataset {self.args.dataset} of process {number} is not that of process 0; "
                     "bring the same files to every machine")
        n_last = len(self.data.x_train) % self.args.batch_size
        if self.unit == "epoch" and 0 < n_last < processes.count():
            fail(f"--batch-size {self.args.batch_size} leaves {n_last} images for the last batch, "
                 f"too few for {processes.count()} processes; use another")

    def describe(self):
        """What is trained on what, and where."""
        n_parameters = 0
        for part in self.parts.values():
            if isinstance(part, torch.nn.Module):
                n_parameters += sum(p.numel() for p in part.parameters() if p.requires_grad)
        x_train, x_test = self.data.x_train, self.data.x_test
        size = "x".join(str(side) for side in x_train.shape[1:])
        text = (f"{n_parameters:,} parameters on {self.data.name}, {len(x_train):,} training and "
                f"{len(x_test):,} test images of {size}, on {x_train.device}")
        if isinstance(x_train, HostImages):
            text += ", the images on cpu"
        if processes.count() > 1:
            text += f", {processes.count()} processes"
        return text

    def say(self, message):
        if not self.args.quiet:
            tell(message)

    def write_args(self, commands=()):
        """args.txt: the flags, one a line, to be read with @; above them the commands that have
        written them, the one that began the run first, and the machine."""
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA"
        lines = []
        for command in (*commands, self.args.command):
            lines.append(f"# python {' '.join(command.splitlines())}")
        lines = [*lines,
                 f"# python {platform.python_version()}, torch {torch.__version__}, "
                 f"{torch.get_num_threads()} of {os.cpu_count()} {platform.machine()} cores, {gpu}"]
        for flag in as_flags(stored_flags(self.args)):
            lines.append(flag if unquoted(flag) == flag else f'"{flag}"')
        text = "\n".join([*lines, ""])
        write_whole(self.folder / "args.txt", text.encode("utf-8", "surrogateescape"))

    def restore(self, checkpoint):
        """Take up the state of a checkpoint."""
        args = self.args
        self.check_data(checkpoint["data"])
        self.rows, self.done = checkpoint["log"], checkpoint["epoch"]
        if self.done > self.last:
            fail(f"--resume {args.resume}: {self.done} {self.unit}s are done already; use at least "
                 f"--epochs {self.done}")
        if checkpoint["source"] != self.source:
            self.say(f"warning: {args.script}.py has changed since this run was started")
        try:
            for name, part in self.parts.items():
                part.load_state_dict(checkpoint[name])
                if isinstance(part, torch.optim.Optimizer):
                    check_optimizer(part)
            torch.set_rng_state(checkpoint["rng"]["cpu"])   # is it one? steps() sets it for good
        except Exception as error:   # a file that is something else can raise anything
            fail(f"--resume {args.resume} does not fit {args.script}.py and its flags "
                 f"({reason(error)}); use the script that wrote it, or another checkpoint")
        self.rng = checkpoint["rng"]
        self.resumed = Path(args.resume).is_dir() or Path(args.resume).name == "checkpoint.pt"
        if stored_flags(args) != checkpoint["args"]:   # more epochs, say
            has_args = (self.folder / "args.txt").exists()
            self.write_args([command_of(self.folder)] if has_args else [])

    def check_data(self, card):
        """A run is continued on the data that it was started on."""
        older = {"test content": self.card["test content"]} | card   # runs that did not note it
        for name, value in self.card.items():
            if name != "name" and older.get(name) != value:
                fail(f"--resume {self.args.resume}: {self.args.dataset} no longer matches what the "
                     f"run was trained on (another {name}); restore the data, name their new "
                     "place with --dataset, or start a new run")

    def epochs(self):
        """Yield the numbers of the epochs still to do."""
        return self.steps()

    def iterations(self):
        """The same for a script that counts iterations."""
        return self.steps()

    def steps(self):
        first = self.done + 1
        previous = {signum: signal_handler(signum, self.stop) for signum in STOPPING}
        try:
            if first <= self.last:
                self.open_bar()
            self.open_board()
            if self.rng is not None:   # only now: what prepares a run may draw random numbers, too
                torch.set_rng_state(self.rng["cpu"])
                if torch.cuda.is_available():
                    self.restore_cuda_rng()
            self.start = time.perf_counter()
            for step in range(first, self.last + 1):
                yield step
                if self.unit == "iteration":
                    bar.move(1)
                if self.done == step:   # a row was saved, and its figures are drawn
                    self.show_on_board(step)
                    self.start = time.perf_counter()
        finally:
            for signum, handler in previous.items():
                signal_handler(signum, handler)
            self.close()

    def restore_cuda_rng(self):
        """Every process goes on with the noise of the first, which has the first GPU."""
        states = self.rng["cuda"][:torch.cuda.device_count()]
        if processes.count() > 1:
            states = states[:1] * torch.cuda.device_count()
        torch.cuda.set_rng_state_all(states)

    def open_bar(self):
        """The bar counts images, or iterations in a script that counts those."""
        if self.args.quiet or not on_terminal():
            return
        if self.unit == "epoch":
            n = len(self.data.x_train)
            bar.open(self.last * n, self.done * n, "img")
        else:
            bar.open(self.last, self.done, "it")
        self.show("")

    def show(self, note):
        """Put a few words beside the bar."""
        bar.say(f"{self.done}/{self.last} {note}")

    def close(self):
        """Let go of the terminal, of TensorBoard and of the folder."""
        bar.close()
        if self.board is not None:
            self.board.close()
        release(self.folder)

    def stop(self, signum, frame):
        """Ctrl-C, or the end of a batch job's time: the last checkpoint is whole; say how to go
        on."""
        bar.close()
        if processes.has_last_word():
            self.say_how_to_continue()
        raise SystemExit(128 + signum)

    def say_how_to_continue(self):
        """The last line of a run that was stopped."""
        python = "python" if processes.count() == 1 else "torchrun ..."
        folder = shlex.quote(str(self.folder))
        command = f"{python} {python_name(self.args.script)} --resume {folder}"
        message = f"stopped before the first checkpoint; begin again with: {command}"
        if (self.folder / "checkpoint.pt").exists():
            message = f"stopped; continue with: {command}"
        if processes.count() == 1:
            tell("")   # below the ^C of a terminal
        tell(message, sys.stdout)

    def due(self, iteration):
        """Whether a row of the log is due after this iteration."""
        return iteration % self.interval() == 0 or iteration == self.last

    def interval(self):
        """Epochs or iterations between rows of the log."""
        if self.unit == "epoch":
            return 1
        return self.args.eval_every or self.last

    def figures_due(self):
        """Whether the epoch just saved gets figures: 1, 2, 5, every --save-every-th, the last. Of
        several processes the first one draws."""
        if processes.rank() > 0:
            return False
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
        self.write_what_follows()
        self.report(note, self.done - previous, seconds)

    def write_what_follows(self):
        """What follows from checkpoint.pt: the log and, now and then, a copy to keep."""
        write_log(self.folder / "log.csv", self.rows)
        if self.done % (self.interval() * self.args.save_every) == 0 or self.done == self.last:
            self.keep(f"checkpoint_{self.done:03d}.pt")

    def report(self, note, steps, seconds):
        """Put the note beside the bar; where there is no terminal, print a line."""
        self.show(note)
        if self.unit == "epoch":
            speed = f"{len(self.data.x_train) / seconds:,.0f} images/s"
        else:
            speed = f"{steps / seconds:.1f} iterations/s"
        if not bar.is_open():
            self.say(f"{self.unit} {self.done}/{self.last}: {note}, {speed}")

    def save_checkpoint(self):
        """checkpoint.pt: everything needed to go on bit for bit, and to rebuild the model."""
        checkpoint = {
            "script": self.args.script,
            "source": self.source,
            "args": stored_flags(self.args),
            "epoch": self.done,
            "data": self.card,
            "log": self.rows,
            "rng": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
        }
        for name, part in self.parts.items():
            checkpoint[name] = part.state_dict()
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_whole(self.folder / "checkpoint.pt", content.getbuffer())

    def keep(self, name):
        """Keep a copy of checkpoint.pt under another name."""
        if processes.rank() > 0:
            return
        write_whole(self.folder / name, (self.folder / "checkpoint.pt").read_bytes())

    def open_board(self):
        """Open TensorBoard; what it knows of later epochs is dropped when an older one is
        resumed."""
        if not self.args.tensorboard or processes.rank() > 0:
            return
        from torch.utils.tensorboard import SummaryWriter
        first = self.done if self.resumed else self.done + 1
        self.board = SummaryWriter(self.folder / "tensorboard", purge_step=first)
        if self.resumed:   # a kill may have cost the last row
            self.show_on_board(self.done)

    def show_on_board(self, step):
        """The last row, the figures of its epoch and, at the end, the flags, for TensorBoard."""
        if self.board is None:
            return
        import numpy as np
        from PIL import Image
        numbers = {}
        for name, value in self.rows[-1].items():
            if name != self.unit and value is not None:
                numbers[board_tag(name)] = value
        for file in self.folder.glob(f"*_{step:03d}.png"):
            image = np.array(Image.open(file).convert("RGB"))
            tag = file.stem.removesuffix(f"_{step:03d}")
            self.board.add_image(tag, image, step, dataformats="HWC")
        if step < self.last:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)
        else:   # adds the numbers, too
            self.board.add_hparams(stored_flags(self.args), numbers, run_name=".", global_step=step)
        self.board.flush()

    def finish(self, summary):
        """The last line: the folder, the number that counts, the figures, what to try next."""
        figures = [file.name for file in sorted(self.folder.glob(f"*_{self.last:03d}.png"))]
        if (self.folder / "curves.png").exists():
            figures.append("curves.png")
        self.say(f"{self.folder}: {summary}; see {', '.join(figures)}; "
                 f"next: python generate.py {shlex.quote(str(self.folder))}")


# --------------------------------------------------------------------- what a run's files hold

def stored_flags(args):
    """The flags that belong to a run."""
    return {name: value for name, value in vars(args).items() if name not in NOT_STORED}


def data_card(data):
    """What a model must know of its data to be rebuilt, and what tells other data from these."""
    told_more = {}
    if data.v_train is not None:   # more than the label, or less
        conditions = [condition._asdict() for condition in data.conditions]
        told_more = {"conditions": conditions, "n_c": data.n_c}
    return {"name": data.name, "shape": list(data.x_train.shape[1:]), "classes": data.classes,
            "training images": len(data.x_train), "test images": len(data.x_test),
            "content": hash_of_content(data), "test content": hash_of(data.x_test), **told_more}


def hash_of_content(data):
    """A hash of all that belongs to the data but the test images, which have one of their own."""
    tensors = [data.x_train, data.y_train, data.y_test]
    if data.v_train is not None:
        tensors += [data.v_train, data.v_test]
    return hash_of(*tensors)


def hash_of(*tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        hash_rows(digest, tensor)
    return digest.hexdigest()


def check_kind_of_data(card, data, dataset):
    """End the program unless the data fit the model of a run with this data card."""
    kind = {"shape": list(data.x_test.shape[1:]), "classes": data.classes,
            "conditions": [condition._asdict() for condition in data.conditions]}
    for name, value in kind.items():
        if card.get(name, []) != value:
            fail(f"--dataset {dataset} no longer matches the checkpoint in its {name}; restore the "
                 "data, or name their new place with --dataset")


def is_other_data(card, data, test_only=False):
    """Whether data are not those of the data card of a run; test_only: whether the test images are
    not. Runs of the first edition do not say, and older ones do not of their test images."""
    if card.get("test content") and card["test content"] != hash_of(data.x_test):
        return True
    if test_only or not card.get("content"):
        return False
    return card["content"] != hash_of_content(data)


def check_optimizer(optimizer):
    """ValueError unless the means that Adam keeps have the shapes of its parameters. (Another
    optimiser, of a copy, may keep what it likes.)"""
    for parameter, memory in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if name in memory and memory[name].shape != parameter.shape:
                shapes = f"{list(memory[name].shape)} for {list(parameter.shape)}"
                raise ValueError(f"{name} has the shape {shapes}")


def board_tag(column):
    """train_loss -> loss/train, vae_test_kl -> kl/vae_test: TensorBoard puts side by side what has
    the same word before the slash."""
    match = re.fullmatch(r"(vae_)?(train|test)_(\w+)", column)
    if match is None:
        return column
    return f"{match[3]}/{match[1] or ''}{match[2]}"


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


# ------------------------------------------------------------------------- whose a folder is

def make_folder(folder):
    """Make the folder of --out; end the program before all the work if that cannot be."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        fail(f"--out {folder}: {error.strerror}; use a folder that can be written")


def run_folder(path):
    """The folder of a run that is named by its folder or by a checkpoint in it."""
    path = Path(path)
    return path if path.is_dir() else path.parent


def new_folder(base):
    """Make `base`, or the first of base-2, base-3 ... that does not exist: no other run has it."""
    folder, count = Path(base), 1
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            count += 1
            folder = Path(f"{base}-{count}")


def claim(folder, flag):
    """Write this process's number into the file `running`; refuse if that of another one that is
    alive is there. What a killed process leaves there is written over."""
    file = Path(folder, "running")
    with open(file, "a+", encoding="utf-8") as owner:
        lock(owner)   # until it is closed, so that of two at once one waits, and reads the other's
        owner.seek(0)
        if is_alive(owner.read()):
            fail(f"{flag} {folder} belongs to a run that is going on; wait for its end, or use "
                 f"another folder; if there is no such run, remove {file}")
        owner.truncate(0)
        owner.write(f"{os.getpid()} {platform.node()}")


def release(folder):
    """Remove what `claim` wrote."""
    if processes.rank() > 0:
        return
    with contextlib.suppress(OSError):   # a folder that cannot be written to has none
        Path(folder, "running").unlink(missing_ok=True)


def is_alive(owner):
    """Whether "PID MACHINE" is another process than this one, and alive as far as we can know."""
    match = re.fullmatch(r"(\d{1,9}) (.*)", owner)
    if match is None:
        return False
    pid, machine = int(match[1]), match[2]
    if machine != platform.node() or os.name == "nt":
        return True   # we cannot know
    if pid == os.getpid():
        return False   # an earlier run in this notebook
    try:
        os.kill(pid, 0)   # asks whether it exists
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# ------------------------------------------------------------------------ terminal and signals

class Bar:
    """The bar of the run that is going on. Where there is no terminal it does nothing."""

    def __init__(self):
        self.tqdm = None

    def is_open(self):
        return self.tqdm is not None

    def open(self, total, done, unit):
        if has_package("tqdm", "a progress bar"):
            from tqdm import tqdm
            self.tqdm = tqdm(total=total, initial=done, unit=unit, unit_scale=True,
                             dynamic_ncols=True, bar_format=BAR)

    def say(self, text):
        """What stands before the bar."""
        if self.tqdm is not None:
            with contextlib.suppress(OSError, ValueError):   # the terminal is gone
                self.tqdm.set_description_str(text)

    def move(self, steps):
        if self.tqdm is not None:
            with contextlib.suppress(OSError, ValueError):
                self.tqdm.update(steps)

    def close(self):
        if self.tqdm is not None:
            with contextlib.suppress(OSError, ValueError):
                self.tqdm.close()
        self.tqdm = None


bar = Bar()


def progress(batches):
    """Yield the batches of an epoch, and move the bar by the images in each."""
    for batch in batches:
        yield batch
        bar.move(len(batch[0]))


def signal_handler(signum, handler):
    """Install a handler and return the one before; outside the main thread there are none."""
    try:
        return signal.signal(signum, handler)
    except ValueError:
        return None


# ------------------------------------------------------------------------------- trained models

def load_checkpoint(path):
    """The checkpoint in a run folder or file, loaded without running any code in it."""
    file = Path(path, "checkpoint.pt") if os.path.isdir(path) else Path(path)
    if not os.path.isfile(file):
        hint = "give a run folder or a checkpoint"
        if os.path.isfile(Path(path, "args.txt")):
            hint = f"train it again with @{Path(path, 'args.txt')}"
        fail(f"{file} was not found; {hint}")
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()   # compares sums, which torch.load does not
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:   # a file that is something else can raise anything
        fail(f"{file} is not a minigen checkpoint ({type(error).__name__})")
    if broken is not None:
        fail(f"{file} is damaged; use another checkpoint, or train the run again")
    wrong = wrong_part(checkpoint)
    if wrong is not None:
        fail(f"{file} is not a minigen checkpoint ({wrong} is missing or is no {wrong})")
    return checkpoint


def wrong_part(checkpoint):
    """The name of a part that a checkpoint lacks, or that is not what it should be, or None."""
    if not isinstance(checkpoint, dict):
        return "dictionary"
    types = {"script": str, "args": dict, "epoch": int, "data": dict, "rng": dict}
    for name, kind in types.items():
        if not isinstance(checkpoint.get(name), kind):
            return name
    if not all(isinstance(name, str) for name in checkpoint["args"]):
        return "args"
    if not is_data_card(checkpoint["data"]):
        return "data"
    if "log" in checkpoint and not is_log(checkpoint):
        return "log"
    return None


def is_data_card(card):
    """Whether it has the name, the shape and the classes of a data set."""
    shape, classes = card.get("shape"), card.get("classes")
    if not isinstance(card.get("name"), str) or not isinstance(shape, list):
        return False
    if len(shape) != 3 or not all(type(side) is int and 0 < side < 2**16 for side in shape):
        return False
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return False
    if "conditions" not in card:
        return True
    return isinstance(card.get("n_c"), int) and are_conditions(card["conditions"])


def are_conditions(cards):
    """Whether these are Conditions as dictionaries."""
    if not isinstance(cards, list):
        return False
    for card in cards:
        if not isinstance(card, dict) or list(card) != list(Condition._fields):
            return False
        numbers = [card[name] for name in ("low", "high", "mean", "deviation")]
        if not isinstance(card["name"], str) or card["kind"] not in ("number", "angle"):
            return False
        if not all(isinstance(number, float) and math.isfinite(number) for number in numbers):
            return False
    return True


def is_log(checkpoint):
    """Whether the log has rows of numbers, with the same columns, and ends with its epoch."""
    rows = checkpoint["log"]
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        return False
    columns = list(rows[0])
    for row in rows:
        if not isinstance(row, dict) or list(row) != columns:
            return False
        if not all(isinstance(value, int | float | None) for value in row.values()):
            return False
    return columns[0] in ("epoch", "iteration") and rows[-1][columns[0]] == checkpoint["epoch"]


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
        tell(f"warning: {script}.py has changed since this run was trained")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    module = importlib.import_module(script.replace("/", "."))
    if Path(module.__file__).resolve() != file.resolve():
        fail(f"this is a run of {file}, but Python imports {module.__file__} by that name; rename "
             "one of the two")
    if not hasattr(module, "build"):
        fail(f"{script}.py has no function build(shape, classes, args) to make its model with")
    return module


# The parts of a checkpoint that are models to draw with, and the prefix of their columns in the
# log. The first edition called a twin vae_model.
MODEL_PARTS = {"model": "", "cvae": "", "ema": "", "vae": "vae_", "vae_model": "vae_"}


class Trained:
    """A trained model as generate.py and evaluate.py see it, whatever it is told.

    encode(x, c) -> mu, logvar; decode(z, c) -> p(x|z,c), where the model has them; images(z, c).
    A flow has log_prob(x, y) and exact codes instead. c: vectors (B, n_c), or labels (B,), and then
    the further conditions, if the model is told any, have the values in `values`.
    """

    def __init__(self, model, name, args, conditions=(), module=None):
        self.model, self.name, self.args = model, name, args
        self.module = module   # of its script
        self.conditions = conditions if condition_size(model) > 0 else ()
        self.values = typical_values(self.conditions)
        self.latent = getattr(model, "latent", getattr(args, "latent", None))   # numbers in a code
        self.is_flow = hasattr(model, "log_prob") and hasattr(model, "inverse")
        self.n_c = condition_size(model)
        self.classes = self.n_c - count_numbers(self.conditions)    # that it was told
        self.is_autoencoder = hasattr(args, "beta") and is_autoencoder(args)
        self.has_encoder = hasattr(model, "encode")
        self.has_likelihood = hasattr(model, "decode")

    def as_condition(self, c):
        """c as the model takes it: labels (B,) become vectors (B, n_c) if it is told more."""
        if not self.conditions or c.ndim == 2:
            return c
        numbers = encode_values(self.values[None], self.conditions)   # (1, k)
        return vectors(c, self.classes, numbers.to(c.device).expand(len(c), -1))

    def encode(self, x, c):
        """x (B, C, H, W) -> mu, logvar of the posterior, (B, latent) each."""
        posterior = encode(self.model, x, self.as_condition(c))
        fault = posterior_fault(self.name, posterior)
        if fault is not None:
            fail(f"{fault}; let it return both")
        return posterior

    def decode(self, z, c):
        """z (B, latent) -> p(x|z,c), a distribution over images."""
        p = decode(self.model, z, self.as_condition(c))
        fault = likelihood_fault(self.name, p)
        if fault is not None:
            fail(f"{fault}; make it one")
        return p

    def images(self, z, c):
        """z (B, latent) -> images (B, C, H, W): the mean of p(x|z,c), or what a GAN or a flow makes
        of z."""
        if not self.has_likelihood:
            if not hasattr(self.model, "picture"):
                fail(f"{self.name} has neither a method decode nor a method picture; add one")
            return self.model.picture(z, c)
        return self.decode(z, c).mean

    def exact_codes(self, x, y):
        """x (B, C, H, W), y (B,) -> z (B, latent), from which a flow restores x."""
        z, _ = self.model(self.of_script("dequantize")(x, 0.5), y)   # the middle of each level
        return z

    def nll_exact(self, x, y, u):
        """-log p(x|y) of a flow in nats per image, (B,), of images x (B, C, H, W): its loss.

        u (B, C, H, W): noise in [0, 1) that makes the 256 levels continuous. Exact for the
        continuous images; for those with levels an upper bound, on average over u (Theis et al.
        2016, arXiv 1511.01844, section 3.1).
        """
        return self.of_script("loss_terms")(self.model, x, y, u)

    def of_script(self, name):
        """A function of the script; ends the program if a copy has no longer got it."""
        function = getattr(self.module, name, None)
        if function is None:
            script = Path(self.module.__file__).name
            fail(f"{script} has no function {name}, as flow.py has; put it back")
        return function

    def prior(self):
        """p(z) of a model that has its own, as a distribution; None: standard normal."""
        return self.model.prior() if hasattr(self.model, "prior") else None


def load_models(path, device="cpu"):
    """What a run folder or a checkpoint holds: the checkpoint, the module of its script, and the
    models, {prefix of their columns in the log: Trained}, which is "" and, for a twin, "vae_".
    """
    checkpoint = load_checkpoint(path)
    module = import_script(checkpoint)
    if hasattr(module, "flags"):
        check_stored_flags(module.flags(), path, checkpoint["args"])
    args, card = SimpleNamespace(**checkpoint["args"]), checkpoint["data"]
    n_c = card.get("n_c", len(card["classes"]))
    conditions = tuple(Condition(**condition) for condition in card.get("conditions", []))
    models = {}
    for part, prefix in MODEL_PARTS.items():
        if part not in checkpoint:
            continue
        model = rebuilt(path, module, checkpoint, part, 0 if prefix else n_c)
        model.to(device).eval().requires_grad_(False)
        models[prefix] = Trained(model, model_name(model), args, conditions, module)
    if "" not in models:
        fail(f"{path} holds no model; a script passes it to Run as model=, cvae= or ema=")
    return checkpoint, module, models


def rebuilt(path, module, checkpoint, part, classes):
    """The model of a checkpoint's part. Shapes are compared before any memory is asked for."""
    script = f"{checkpoint['script']}.py"
    weights = checkpoint[part]
    shape = checkpoint["data"]["shape"]
    args = SimpleNamespace(**checkpoint["args"])
    shapes = {}
    # A model that cannot be built without its numbers is built for real at once.
    with contextlib.suppress(Exception), torch.device("meta"):
        shapes = shapes_of(module.build(shape, classes, args).state_dict())
    if not isinstance(weights, dict) or (shapes and shapes != shapes_of(weights)):
        fail(f"the weights in {path} do not fit the model of {script}; put the script back that "
             "wrote them, or use another checkpoint")
    try:
        model = module.build(shape, classes, args)
        model.load_state_dict(weights)
    except Exception as error:   # the script has changed, or the file is something else
        fail(f"the weights in {path} do not fit the model of {script} ({reason(error)}); put the "
             "script back that wrote them, or use another checkpoint")
    return model


def shapes_of(weights):
    """{name: shape} of a state_dict."""
    return {name: getattr(value, "shape", None) for name, value in weights.items()}


def reason(error):
    """The first line of an error, or its kind where it has none."""
    text = getattr(error, "strerror", None) or str(error)
    lines = text.strip().splitlines() or [type(error).__name__]
    return lines[0]
