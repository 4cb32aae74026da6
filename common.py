"""What the scripts share and a reader may skip: flags, data, formulas, run folder, pictures.

Everywhere: a picture is a float in [0, 1], (B, C, H, W); a loss is in nats per image, (B,).
"""
import argparse
import contextlib
import csv
import math
import os
import platform
import shlex
import socket
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

NAMED = ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10")


def check(good, message, status=2):
    """Unless `good`, end the program with one line that names the flag or file and the remedy."""
    if not good:
        print("error:", " ".join(message.split()), file=sys.stderr)
        raise SystemExit(status)


def make_parser(script, description):
    """argparse with one-line errors, no abbreviations, and @files that may hold comments."""
    class Help(argparse.ArgumentDefaultsHelpFormatter):
        def _get_help_string(self, action):   # spare the reader "(default: None)"
            return action.help if action.default is None else super()._get_help_string(action)
    parser = argparse.ArgumentParser(f"{script}.py", None, description, fromfile_prefix_chars="@",
                                     allow_abbrev=False, formatter_class=Help)
    parser.error = lambda message: check(False, message)
    parser.convert_arg_line_to_args = lambda line: [line] if line.strip() and line[0] != "#" else []
    return parser


def number(kind, low, above=False):
    """An argparse type: a finite int or float, at least `low`, or above it."""
    def convert(text):
        value, top = kind(text), 2**32 if kind is int else math.inf   # seeds end there
        if not low <= value < top or above and value == low:
            bound = f"below {top}" if value >= top else f"{'above' if above else 'at least'} {low}"
            raise argparse.ArgumentTypeError(f"must be {bound}, not {text}")
        return value
    convert.__name__ = kind.__name__   # argparse names it when the text is no number at all
    return convert


def add_plumbing_flags(parser):
    """The flags every training script has: one place for their spelling, order and help."""
    add = parser.add_argument
    add("--dataset", default="MNIST",
        help=f"digits (needs no download), {', '.join(NAMED)}, an image folder or an .npz file")
    add("--data", default="data", help="folder of the named data sets, downloaded on first use")
    add("--train-size", type=number(int, 1), help="train on a fixed random subset of this size")
    add("--test-size", type=number(int, 1), help="test on a fixed random subset of this size")
    add("--image-size", type=number(int, 1), help="crop to square, resize to this side")
    add("--seed", type=number(int, 0), default=1, help="seed of weights and noise")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto takes a GPU if it can")
    add("--out", help="run folder to make (default: results/SCRIPT-DATASET, then -2, -3 ...)")
    add("--resume", help="go on with the run of this folder or checkpoint, with its own flags")
    add("--save-every", type=number(int, 1), default=10, help="epochs between kept checkpoints")
    add("--compile", action="store_true", help="torch.compile: a slow start, then faster steps")
    add("--amp", action="store_true", help="train with matrix products in bfloat16")
    add("--quiet", action="store_true", help="print nothing but errors")
    add("--tensorboard", action="store_true", help="write log and figures for TensorBoard, too")


def as_flags(values):
    """{"latent": 2, "quiet": True} -> ["--latent=2", "--quiet"]; None and False are left out."""
    return [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
            for name, value in values.items() if value is not None and value is not False]


def parse_flags(parser, argv, overrides):
    """Flags from a command line and from keywords, as in main(latent=2). With --resume the stored
    flags are the defaults. Returns the flags, and the checkpoint or None."""
    argv = [*argv, *as_flags(overrides)]
    args, checkpoint = parser.parse_args(argv), None
    if getattr(args, "resume", None):
        checkpoint = load_checkpoint(args.resume)
        script, stored, done = (checkpoint[key] for key in ("script", "args", "epoch"))
        check(parser.prog == f"{script}.py", f"--resume {args.resume}: go on with {script}.py")
        parser.set_defaults(**stored)
        args = parser.parse_args(argv)
        schedules = {value for name, value in vars(args).items() if name.endswith("_schedule")}
        free = {"data", "device", "save_every", "quiet", "tensorboard"}
        free |= {"epochs"} if schedules <= {"constant", "plateau"} else set()   # others have an end
        for name in {"out", *stored} - free:
            check(getattr(args, name) == stored.get(name), f"--{name.replace('_', '-')} cannot "
                  "change on --resume, which goes on in its folder with its flags; leave it away")
        check(done < (vars(args).get("epochs") or args.iterations), f"--resume {args.resume}: all "
              f"{done} are done; start a new run, or raise --epochs if no schedule depends on it")
    args.command = shlex.join([parser.prog, *argv])
    return args, checkpoint


def pick_device(name):
    """The torch.device of a flag; `auto` is the machine's accelerator, if it has one."""
    best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    try:   # the only sure way to learn whether a device works
        return torch.empty(0, device=best if name == "auto" else name).device
    except (RuntimeError, AssertionError, NotImplementedError):
        check(False, f"--device {name} is not to be had; take auto, which is {best}, or cpu")


# A data set on the device: x uint8 (N, C, H, W), y int64 (N,), the labels' names; or zeros, none.
Data = namedtuple("Data", "name x_train y_train x_test y_test classes")


def load_data(name, folder="data", device="cpu", image_size=None, train_size=None, test_size=None):
    """Read a data set by name or path (see --dataset), resize it and take subsets."""
    path = Path(name)
    if name == "digits":
        *split, classes = read_digits()
    elif name in NAMED:
        *split, classes = read_named(name, folder)
    elif path.is_dir():
        *split, classes = read_folder(path, image_size)
    else:
        check(path.suffix == ".npz" and path.is_file(), f"--dataset {name}: no such data set; "
              f"give one of digits, {', '.join(NAMED)}, an image folder or an .npz file")
        *split, classes = read_npz(path)
    for i, part, size in ((0, "train", train_size), (2, "test", test_size)):
        x, y = split[i:i + 2]
        check(not size or size <= len(x), f"--{part}-size {size}: there are only {len(x)} images")
        if size:   # drawn with a seed of its own, so that every --seed sees the same images
            keep = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:size]
            x, y = x[keep.sort().values], y[keep.sort().values]
        split[i:i + 2] = resize(x, image_size).to(device), y.to(device)
    return Data(path.stem, *split, classes)


def read_digits():
    """scikit-learn's 1,797 handwritten digits, 8x8 in 17 greys, brought to 28x28 as MNIST's are."""
    from sklearn.datasets import load_digits
    x, y = map(torch.from_numpy, load_digits(return_X_y=True))
    x = F.interpolate(x.float().view(-1, 1, 8, 8) / 16, size=20, mode="bicubic").clamp(0, 1)
    x, y = F.pad(x, (4, 4, 4, 4)).mul(255).round().byte(), y.long()
    return x[:1500], y[:1500], x[1500:], y[1500:], [str(digit) for digit in range(10)]


def read_named(name, folder):
    """A torchvision data set, downloaded if `folder` lacks it; gives up after 10 s of silence."""
    from torchvision import datasets
    kind, patience = getattr(datasets, name), socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
            train, test = (kind(folder, train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError) as error:
        place = Path(folder) if name == "CIFAR10" else Path(folder, name, "raw")
        files = [kind.filename] if name == "CIFAR10" else [file for file, _ in kind.resources]
        check(False, f"--dataset {name} is not whole in {place} nor to be downloaded ({error}); "
              f"put {', '.join(files)} there, or take --dataset digits")
    finally:
        socket.setdefaulttimeout(patience)
    classes = [label.split(" - ")[0] for label in train.classes]   # MNIST has "0 - zero"
    return (channels_first(train.data), torch.as_tensor(train.targets),
            channels_first(test.data), torch.as_tensor(test.targets), classes)


def read_npz(path):
    """The Keras keys: x_train, x_test uint8 (N, H, W) or (N, H, W, C); y_train, y_test (N,) or
    (N, 1), or no labels; `classes`, the labels' names, if at hand."""
    try:
        with np.load(path, allow_pickle=False) as file:   # a pickle could run any code
            part = dict(file)
    except Exception as error:   # a file that is something else can raise anything
        check(False, f"--dataset {path}: {error}; store plain arrays with numpy.savez")
    found = f"--dataset {path}: {', '.join(f'{k} {v.dtype} {v.shape}' for k, v in part.items())}"
    x = [part.get(key, np.empty(0)) for key in ("x_train", "x_test")]
    check(all(a.dtype == np.uint8 and a.size and a.ndim > 2 and a.shape[3:] in ((), (1,), (3,))
              and a.shape[1:] == x[0].shape[1:] for a in x), f"{found}; x_train and x_test must be "
          "uint8 (N, H, W) or (N, H, W, 1 or 3), alike in all but N")
    labelled = "y_train" in part or "y_test" in part
    y = [part.get(key, np.empty(0)) if labelled else np.zeros(len(a), np.int64)
         for key, a in zip(("y_train", "y_test"), x, strict=True)]
    check(all(b.dtype.kind in "iu" and b.shape in ((len(a),), (len(a), 1)) for a, b in
              zip(x, y, strict=True)), f"{found}; y_train and y_test must be whole numbers (N,)")
    y = [torch.from_numpy(b.astype(np.int64)).view(-1) for b in y]
    low, high = torch.cat(y).aminmax()
    classes = [*map(str, part.get("classes", np.arange(len(y[0]))[:y[0].max() + 1]).flat)]
    check(low >= 0 and high < len(classes), f"--dataset {path}: labels from {low} to {high} are "
          f"out of range of {len(classes)} classes; number them from 0 on, all in the training set")
    return channels_first(x[0]), y[0], channels_first(x[1]), y[1], classes if labelled else []


def read_folder(root, size=None):
    """Pictures in `root` or in one sub-folder per class; or the same below train/ and test/, else
    every tenth of the sorted files is test. Grey if all are grey, else RGB."""
    from PIL import Image, ImageOps
    if (root / "train").is_dir() and (root / "test").is_dir():
        train, test = list_pictures(root / "train"), list_pictures(root / "test")
    else:
        files = list_pictures(root)
        check(len(files) >= 10, f"--dataset {root}: {len(files)} pictures; a test set needs 10")
        train, test = [file for i, file in enumerate(files) if i % 10 != 9], files[9::10]
    pictures = []
    for file, _ in train + test:
        try:
            with Image.open(file) as image:
                check(image.mode[0] not in "IF", f"{file}: over 8 bits a channel; save it with 8")
                mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
                x = np.array(ImageOps.exif_transpose(image).convert(mode))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            check(False, f"{file} is not a whole picture ({error}); repair or remove it")
        pictures.append(resize(channels_first(x[None]), size))
        check(pictures[-1].shape[2:] == pictures[0].shape[2:], f"{file} differs in size from "
              f"{train[0][0]}; bring all to one with --image-size")
    channels = max(x.shape[1] for x in pictures)
    x = torch.cat([x.expand(-1, channels, -1, -1) for x in pictures])
    classes = sorted({label for _, label in train + test})
    check(all(classes) or len(classes) == 1, f"--dataset {root}: sort train/ and test/ by class")
    y = torch.tensor([classes.index(label) for _, label in train + test])
    return x[:len(train)], y[:len(train)], x[len(train):], y[len(train):], [*filter(None, classes)]


def list_pictures(root):
    """Sorted (file, class) pairs; the class is "" where pictures lie in `root` itself."""
    from torchvision.datasets.folder import IMG_EXTENSIONS
    pairs = [(file, "" if file.parent == root else file.parent.name)
             for pattern in ("*", "*/*") for file in sorted(root.glob(pattern))
             if file.suffix.lower() in IMG_EXTENSIONS and "/." not in f"/{file.relative_to(root)}"]
    check(pairs, f"--dataset {root}: no pictures ({' '.join(IMG_EXTENSIONS)}) in it")
    check(len({label == "" for _, label in pairs}) == 1,
          f"--dataset {root}: pictures beside folders of pictures; sort all into folders, or none")
    return pairs


def channels_first(x):
    """(N, H, W) or (N, H, W, C) -> (N, C, H, W)."""
    return torch.as_tensor(x).reshape(*x.shape[:3], -1).permute(0, 3, 1, 2).contiguous()


def resize(x, size):
    """Crop the centre square and resize it, antialiased; uint8 (N, C, H, W). No size, no change."""
    from torchvision.transforms.v2 import functional as transforms
    square = transforms.center_crop(x, [min(x.shape[2:])] * 2) if size else x
    return transforms.resize(square, [size, size], antialias=True) if size else x


def batches(x, y, batch_size, shuffle):
    """Yield (x in [0, 1], y) until every image was seen once; the last batch may be short."""
    order = torch.randperm if shuffle else torch.arange
    for index in order(len(x), device=x.device).split(batch_size):
        yield x[index] / 255, y[index]


def gaussian_kl(mu, logvar):
    """KL(N(mu, diag(exp(logvar))) || N(0, I)) in nats per image: (B, d), (B, d) -> (B,). Never
    below 0, which it is at mu = logvar = 0. Kingma & Welling 2014 (arXiv 1312.6114), appendix B."""
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1).sum(1)


def bernoulli_nll(logits, x):
    """-log p(x) of Bernoulli pixels in nats per image: (B, ...), x (B, ...) in [0, 1] -> (B,). On
    grey pixels, neither 0 nor 1, this is a cross-entropy and the likelihood of nothing."""
    # -x log s - (1 - x) log(1 - s), s = sigmoid(logits)
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def gaussian_nll(mean, log_sigma, x):
    """-log N(x; mean, sigma^2), constants and all, in nats per image: (B, ...) twice -> (B,).
    log_sigma is one number or of the images' own shape: nothing else may broadcast (ValueError)."""
    if mean.shape != x.shape or log_sigma.ndim and log_sigma.shape != x.shape:
        raise ValueError(f"x {x.shape}, mean {mean.shape}, log_sigma {log_sigma.shape} must agree")
    # (x - mean)^2 / (2 sigma^2) + log sigma + log(2 pi) / 2
    squares = ((x - mean) * torch.exp(-log_sigma)).square()
    return (0.5 * squares + log_sigma + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)


def active_units(mu):
    """Units whose mean varies by more than 0.01 over the data (arXiv 1509.00519): (N, d) -> int."""
    return int((mu.var(0, unbiased=False) > 0.01).sum())


def start_run(parser, argv, overrides, checks):
    """What every training script does first. Returns flags, data, folder, checkpoint to resume."""
    args, checkpoint = parse_flags(parser, argv, overrides)
    out, resume, command = (args.__dict__.pop(name) for name in ("out", "resume", "command"))
    checks(args)
    check(not out or not Path(out, "log.csv").exists(),
          f"--out {out} holds a run; take another folder, or go on with --resume {out}")
    data = load_data(args.dataset, args.data, pick_device(args.device), args.image_size,
                     args.train_size, args.test_size)
    checks(args, data)
    if checkpoint:
        folder = Path(resume) if Path(resume).is_dir() else Path(resume).parent
        check((folder / "log.csv").is_file(), f"--resume {resume}: {folder} is no run: no log.csv")
        now = {"shape": [*data.x_train.shape[1:]], "classes": data.classes}
        check(now.items() <= checkpoint["data"].items(), f"--resume {resume}: {args.dataset} has "
              "not the shape and the classes it had; bring it back, or start a new run")
    else:
        folder = Path(out or free_folder(f"results/{parser.prog[:-3]}-{data.name}"))
    if not checkpoint or vars(args) != checkpoint["args"]:   # more epochs, say
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA"
        lines = [f"# python {command}", f"# python {platform.python_version()}, torch "
                 f"{torch.__version__}, {torch.get_num_threads()} of {os.cpu_count()} cores, {gpu}"]
        try:   # all flags, one a line, to be read with @; above them command and machine
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "args.txt").write_text("\n".join(lines + as_flags(vars(args))) + "\n")
        except OSError as error:
            check(False, f"--out {folder}: {error.strerror}; take a folder that can be written")
    torch.manual_seed(args.seed)
    return args, data, folder, checkpoint


def free_folder(base):
    """`base`, or the first of base-2, base-3 ... that is not there."""
    names = [base, *(f"{base}-{i}" for i in range(2, 10_000))]
    return next(name for name in names if not Path(name).exists())


def read_log(folder):
    """The rows of a run's log as {column: float, or None where empty}."""
    with open(Path(folder, "log.csv"), newline="") as file:
        return [{k: float(v) if v else None for k, v in row.items()}
                for row in csv.DictReader(file)]


def save_epoch(row, note, args, script, data, folder, state, bar):
    """Append {epoch or iteration: number, column: number or None ...} to the log, report `note`,
    write a checkpoint with {name: thing with a state_dict}. Returns whether figures are due."""
    (unit, epoch), *_ = row.items()
    last, every = getattr(args, f"{unit}s"), vars(args).get("eval_every") or 1
    log, part = folder / "log.csv", folder / "next.part"   # a name for what is not whole yet
    rows = [old for old in (read_log(folder) if log.exists() else []) if old[unit] < epoch] + [row]
    lines = [",".join("" if x is None else f"{x:.6g}" for x in each.values()) for each in rows]
    part.write_text("\n".join([",".join(row), *lines, ""]))
    os.replace(part, log)
    kept = epoch % (every * args.save_every) == 0 or epoch == last
    for name in ["checkpoint.pt", f"checkpoint_{epoch:03d}.pt"][:1 + kept]:
        with open(part, "wb") as file:
            torch.save({"script": script, "args": vars(args), "epoch": epoch, "data": {
                "name": data.name, "shape": [*data.x_train.shape[1:]], "classes": data.classes},
                "rng": {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()},
                **{name: thing.state_dict() for name, thing in state.items()}}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / name)   # a kill leaves a whole file
    bar.set_postfix_str(note)
    bar.update(epoch - bar.n)
    if bar.disable and not args.quiet:
        print(f"{unit} {epoch}/{last}: {note}", flush=True)
    return epoch in (1, 2, 5, last) or epoch % args.save_every == 0


def write_tensorboard(row, args, folder):
    """The log's row, the figures of its epoch and, at the end, the flags, for TensorBoard."""
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter
    (unit, epoch), *columns = ((name, value) for name, value in row.items() if value is not None)
    with SummaryWriter(folder / "tensorboard", purge_step=epoch) as board:   # no epoch twice
        for name, value in columns:
            board.add_scalar(name, value, epoch)
        for file in folder.glob(f"*_{epoch:03d}.png"):
            board.add_image(file.stem[:-4], np.array(Image.open(file))[..., :3], epoch, None, "HWC")
        if epoch == getattr(args, f"{unit}s"):
            board.add_hparams(vars(args), dict(columns), run_name=".", global_step=epoch)


def load_checkpoint(path):
    """The checkpoint in a run folder or file."""
    file = Path(path, "checkpoint.pt") if Path(path).is_dir() else Path(path)
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        assert {"script", "args", "epoch", "data", "rng"} <= checkpoint.keys()
    except Exception as error:   # a file that is something else can raise anything
        check(False, f"{file} is no checkpoint of a run ({type(error).__name__}); give another")
    return checkpoint


def restore(checkpoint, state):
    """Load a checkpoint, if any, into {name: thing with a state_dict}. Returns the next epoch."""
    if checkpoint is None:
        return 1
    for name, thing in state.items():
        thing.load_state_dict(checkpoint[name])
    torch.set_rng_state(checkpoint["rng"]["cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(checkpoint["rng"]["cuda"])
    return checkpoint["epoch"] + 1


@contextlib.contextmanager
def progress(args, script, folder, first):
    """A bar over epochs or iterations, seen on a terminal only. Ctrl-C says how to go on."""
    from tqdm import tqdm
    total, hidden = vars(args).get("epochs"), args.quiet or not sys.stderr.isatty()
    try:
        with tqdm(total=total or args.iterations, initial=first - 1, disable=hidden) as bar:
            yield bar
    except KeyboardInterrupt:
        print(f"\nstopped; go on with: python {script}.py --resume {shlex.quote(str(folder))}"
              if (folder / "checkpoint.pt").exists() else "\nstopped before the first epoch's end")
        raise SystemExit(130) from None


def save_grid(path, images, columns, names=()):
    """Write pictures (N, C, H, W) row by row, `columns` to a row, the rows' names at the left."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps
    from torchvision.utils import make_grid
    scale = max(1, 64 // images.shape[-1])   # enlarge the small ones for the eye, pixel by pixel
    images = images.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(images, nrow=columns, padding=2, pad_value=1).clamp(0, 1)
    grid = Image.fromarray(grid.mul(255).round().byte().permute(1, 2, 0).numpy())
    font = ImageFont.load_default(size=14)
    margin = max((int(font.getlength(name)) + 8 for name in names), default=0)
    page = ImageOps.expand(grid, (margin, 0, 0, 0), "white")
    for row, name in enumerate(names):
        middle = 2 + (row + 0.5) * (images.shape[2] + 2)
        ImageDraw.Draw(page).text((margin - 4, middle), name, "black", font, anchor="rm")
    page.save(path)


def save_curves(path, rows, panels, unit):
    """Columns of the log, a panel per {title: {label: column}}; every first of two is dashed."""
    from matplotlib.figure import Figure
    figure, (x, *_) = Figure(figsize=(4 * len(panels), 3.6), layout="constrained"), rows[0]
    subplots = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, lines) in zip(subplots, panels.items(), strict=True):
        for i, (label, column) in enumerate(lines.items()):
            axes.plot([row[x] for row in rows], [row[column] for row in rows], ("--", "-")[i % 2],
                      color=f"C{i // 2}", marker="." if len(rows) < 30 else "", label=label)
        axes.set(title=title, xlabel=x, ylabel=unit)
        axes.legend()
    figure.savefig(path)


def save_latent(path, means, data, fixed):
    """The test set's posterior means, {model's name: (N, 2)}, by class, on axes `fixed` or free."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(5 * len(means) + 1.5, 5), layout="constrained")
    panels = figure.subplots(1, len(means), squeeze=False)[0]
    for axes, (name, mu) in zip(panels, means.items(), strict=True):
        dots = axes.scatter(*mu.cpu().T, s=3, c=data.y_test.cpu(), cmap="tab10")
        axes.set(title=f"{name}, test set", xlabel="$z_1$", ylabel="$z_2$")
        if fixed:   # five deviations of the prior; an autoencoder's codes have no such scale
            axes.set(xlim=(-5, 5), ylim=(-5, 5))
    if 0 < len(data.classes) <= 10:   # more classes than colours: no key would help
        names = [data.classes[label] for label in data.y_test.unique()]
        axes.legend(dots.legend_elements(num=None)[0], names, loc=6, bbox_to_anchor=(1, 0.5))
    figure.savefig(path)
