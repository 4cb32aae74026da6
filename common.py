"""Data, losses and images: what the scripts share about the subject itself.

Throughout: an image is a float in [0, 1], (B, C, H, W); a loss is in nats per image, (B,).
"""
import contextlib
import functools
import importlib
import io
import math
import os
import re
import sys
import textwrap
import time
import unicodedata
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributions import MultivariateNormal

import processes


def fail(message, status=2):
    """End the program with one line that names the flag or file and the remedy."""
    if not processes.is_first_here():
        time.sleep(20)   # the first most likely finds the same, and torchrun then ends this one
    if processes.has_last_word():
        tell(f"error: {' '.join(message.split())}", sys.stderr)
    raise SystemExit(status)


def tell(message, stream=None):
    """Print a line. A character that the terminal cannot show is escaped, and a terminal that is
    gone ends nothing: a training outlives its output. Of several processes the first one speaks."""
    if processes.rank() > 0 and stream is None:
        return
    stream = stream or sys.stdout
    try:
        encoding = getattr(stream, "encoding", None) or "utf-8"
        message = printable(message)
        message = message.encode(encoding, "backslashreplace").decode(encoding)
        if "tqdm" in sys.modules:   # a bar may be on the screen: above it
            sys.modules["tqdm"].tqdm.write(message, file=stream)
        else:
            print(message, file=stream)
        stream.flush()
    except (OSError, ValueError, AttributeError):   # closed, before Python started or since
        silence(stream)


# What a bar shows of its speed and the time left; the bar itself has what is left of the line.
BAR = "{desc} {remaining} {rate_fmt} |{bar}|"


def watched(steps, total, message, quiet=False):
    """Iterate over steps that take a while: a line says what is being done and, on a terminal, a
    bar how far it is. total: the number of steps."""
    if quiet:
        return steps
    tell(message)
    if not on_terminal() or not has_package("tqdm", "a progress bar"):
        return steps
    from tqdm import tqdm
    return tqdm(steps, "", total, leave=False, dynamic_ncols=True, bar_format=BAR)


def on_terminal():
    """Whether a bar can be shown."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):   # closed, before Python started or since
        return False


def silence(stream):
    """Let Python forget a stream that is gone, or it would fail at the end, in its last flush."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is stream:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))   # noqa: SIM115


def write_whole(path, content):
    """Write bytes under another name and rename, so that a kill leaves no half of a file. Where
    that cannot be, the program ends with one line, and the file is what it was. Of several
    processes the first one writes."""
    if processes.rank() > 0:
        return
    path = Path(path)
    partial = path.with_name(f"{path.name}.part")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}; make room, or use a folder that can be "
             "written; what was saved before is whole", status=1)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)   # where something came between


@functools.cache   # the line is printed once, however often a figure is due
def has_package(name, purpose):
    """Whether an optional package can be imported; if not, one line says what goes without it."""
    try:
        importlib.import_module(name)
    except ImportError:
        tell(f"{name} is not installed: going on without {purpose} (pip install {name})")
        return False
    return True


def printable(text):
    """Text without what could harm a terminal or a file: "\\x1b" for an escape character."""
    if text.isprintable():
        return text
    shown = [c if c.isprintable() else ascii(c)[1:-1] for c in text]
    return "".join(shown)


def safe_name(text):
    """A short name for a file: a data set's may hold anything that a file system allows."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII)[:80]


# ---------------------------------------------------------------------------------------- data

class Condition(NamedTuple):
    """What is known of an image beside its label: a number, or an angle in degrees.

    A model is told (value - mean) / deviation of a number, and cos and sin of an angle.
    """
    name: str
    kind: str                # "number" or "angle"
    low: float               # the least value that there is, and the greatest
    high: float
    mean: float = 0.0        # of a number, over the training set
    deviation: float = 1.0


class HostImages:
    """Images, uint8 (N, C, H, W), that are too many for `device`: they stay in the memory of the
    processor, or in a mapped file, and the rows that are asked for are moved to the device."""

    def __init__(self, images, device):
        self.images, self.device = images, torch.device(device)

    @property
    def shape(self):
        return self.images.shape

    def __len__(self):
        return len(self.images)

    def numel(self):
        return self.images.numel()

    def __getitem__(self, index):
        if isinstance(index, torch.Tensor):
            index = index.cpu()
        return self.moved(self.images[index])

    def index_select(self, dim, index):
        return self.moved(self.images.index_select(dim, index.cpu()))

    def moved(self, rows):
        """The rows on the device; the processor does not wait until a GPU has them."""
        if self.device.type == "cuda":
            return rows.pin_memory().to(self.device, non_blocking=True)
        return rows.to(self.device)


class Data(NamedTuple):
    """A data set. Of images that do not fit on the device x_train and x_test are HostImages."""
    name: str
    x_train: torch.Tensor   # uint8 (N, C, H, W)
    y_train: torch.Tensor   # int64 (N,); zeros where there are no labels
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: list           # the names of the labels; empty where there are none
    # Vectors that a conditional model is told, float (N, n_c): the label one-hot and, after it, the
    # conditions; of each of these there may be none. None where it is told the label only.
    v_train: torch.Tensor | None = None
    v_test: torch.Tensor | None = None
    conditions: tuple = ()

    @property
    def c_train(self):
        """What a conditional model is told: labels (N,), or vectors (N, n_c)."""
        return self.y_train if self.v_train is None else self.v_train

    @property
    def c_test(self):
        """The same of the test images."""
        return self.y_test if self.v_test is None else self.v_test

    @property
    def n_c(self):
        """How many numbers a conditional model is told of an image; a label counts one-hot."""
        return len(self.classes) if self.v_train is None else self.v_train.shape[1]


def batches(x, y, batch_size, shuffle):
    """Yield (x in [0, 1], y) until every image was seen once; the last batch may be short.

    y: labels or anything else of which there is a row for each image.
    """
    n = len(x)
    order = torch.randperm(n, device=x.device) if shuffle else torch.arange(n, device=x.device)
    rows = order
    if isinstance(x, HostImages):
        rows = order.cpu()   # one wait for the device, and not one in every step
    for row, index in zip(rows.split(batch_size), order.split(batch_size), strict=True):
        yield x.index_select(0, row) / 255, y[index]   # faster than x[index]


# Pixels that are worked on at a time where all images at once would not fit into memory.
PIXELS_AT_A_TIME = 2 ** 26


def by_parts(function, x):
    """What a function makes of images, uint8 (N, C, H, W) in and out; they stay where they were."""
    is_on_host = isinstance(x, HostImages)
    made = torch.empty_like(x.images if is_on_host else x)
    n = max(1, PIXELS_AT_A_TIME // x.shape[1:].numel())
    for start in range(0, len(x), n):
        made[start:start + n] = function(x[start:start + n])
    return HostImages(made, x.device) if is_on_host else made


def hash_rows(digest, x):
    """Feed the bytes of a tensor, or of HostImages, to a hash, part by part."""
    if isinstance(x, HostImages):
        x = x.images
    for part in x.split(1000):
        digest.update(part.cpu().contiguous().numpy())


def binarize(data, args):
    """The data with black or white pixels, as --binarize says.

    threshold: above 1/2. dynamic: drawn with the grey value as probability, for the test set here,
    once; the training set stays grey and is drawn anew in every step. Of a script without the flag,
    as gan.py, they stay as they are.
    """
    if getattr(args, "binarize", "none") == "none":
        return data
    if args.binarize == "threshold":
        return data._replace(x_train=by_parts(above_half, data.x_train),
                             x_test=by_parts(above_half, data.x_test))
    noise = torch.Generator().manual_seed(0)   # of the CPU: the same test set on every device

    def drawn(x):
        p = (x / 255).cpu().contiguous()   # so that each pixel gets its noise in any layout
        return torch.bernoulli(p, generator=noise).mul(255).byte()

    return data._replace(x_test=by_parts(drawn, data.x_test))


def as_in_training(x, args):
    """Images (B, C, H, W) in [0, 1] as a step of training sees them: drawn black or white with
    --binarize dynamic, else as they are."""
    if getattr(args, "binarize", "none") == "dynamic":   # a copy may have dropped that flag
        return torch.bernoulli(x)
    return x


def above_half(x):
    """uint8 images with 255 where they are above 1/2, and 0 elsewhere."""
    return (x >= 128).byte() * 255


# ---------------------------------------------------------------------------------- conditions
def describe(names, values):
    """The Conditions with these names and values, (N, n), of the training images.

    Where all values are 0 and 1, as of a label one-hot, they are told as they are.
    """
    conditions = []
    for name, column in zip(names, values.double().T, strict=True):
        low, high = column.min().item(), column.max().item()
        mean, deviation = column.mean().item(), column.std(unbiased=False).item()
        if ((column == 0) | (column == 1)).all():
            mean, deviation = 0.0, 1.0
        if deviation == 0:   # one value in all images tells nothing
            deviation = 1.0
        conditions.append(Condition(name, "number", low, high, mean, deviation))
    return conditions


def typical_values(conditions):
    """The values (n,) that conditions have where none are named: the mean of a number, and 0 of an
    angle or of a column of zeros and ones."""
    return torch.tensor([condition.mean for condition in conditions], dtype=torch.float64)


def count_numbers(conditions):
    """How many numbers a model is told of conditions: two of an angle."""
    count = 0
    for condition in conditions:
        count += 2 if condition.kind == "angle" else 1
    return count


def in_words(condition, value):
    """A value of a condition as it is printed: "30°"."""
    if condition.kind == "angle":
        return f"{round(value)}°"
    return f"{value:.3g}"


def encode_values(values, conditions):
    """Values of conditions, (N, n) -> the numbers that a model is told of them, float (N, k)."""
    columns = []
    for i, condition in enumerate(conditions):
        column = values[:, i].double()
        if condition.kind == "angle":
            angle = torch.deg2rad(column)
            columns += [torch.cos(angle), torch.sin(angle)]   # 359 degrees is near to 0
        else:
            columns.append((column - condition.mean) / condition.deviation)
    if not columns:
        return torch.empty(len(values), 0)
    return torch.stack(columns, dim=1).float()


def decode_numbers(numbers, conditions):
    """The way back: numbers (N, k) -> values of conditions, (N, n)."""
    columns, i = [], 0
    for condition in conditions:
        if condition.kind == "angle":
            columns.append(torch.rad2deg(torch.atan2(numbers[:, i + 1], numbers[:, i])))
            i += 2
        else:
            columns.append(condition.mean + condition.deviation * numbers[:, i])
            i += 1
    return torch.stack(columns, dim=1)


def vectors(y, n_labels, numbers):
    """Labels y (B,) and further numbers (B, k) -> (B, n_labels + k): the label one-hot, then they.

    n_labels: how many labels there are; 0 if the model is not told the label.
    """
    one_hot = y[:, None] == torch.arange(n_labels, device=y.device)   # (B, n_labels)
    return torch.cat([one_hot, numbers], dim=1)


# -------------------------------------------------------------------------------------- losses

# Added to a learned sigma: a grey level. Without it a black border would become infinitely likely.
# The same as exp(low + softplus(log_sigma - low)) of Rybkin et al. 2021 (arXiv 2006.13202).
SIGMA_MIN = 1 / 256


def gaussian_kl(mu, logvar):
    """KL(N(mu, diag(exp(logvar))) || N(0, I)) in nats per image: (B, d), (B, d) -> (B,).

    Never negative; zero at mu = logvar = 0. Kingma & Welling 2014 (arXiv 1312.6114), appendix B.
    """
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1).sum(1)


def fitted_gaussian(mu, logvar=None):
    """The normal distribution with the mean and the covariance of z ~ q(z|x), x being any of N
    images: mu and logvar, (N, latent) each; without logvar of the codes mu of an autoencoder. On
    the CPU, where samples are the same everywhere.

    By the law of total variance the covariance is that of the means plus the mean variance.
    """
    mu = mu.cpu().double()
    covariance = torch.atleast_2d(mu.T.cov(correction=0))          # (latent, latent)
    if logvar is not None:
        covariance = covariance + logvar.cpu().double().exp().mean(0).diag()
    # A little on the diagonal, or there is no Cholesky factor with fewer images than units.
    least = 1e-6 * covariance.diagonal().mean() + 1e-12
    factor = torch.linalg.cholesky(covariance + least * torch.eye(len(covariance)))
    return MultivariateNormal(mu.mean(0).float(), scale_tril=factor.float())


def check_images(p, x):
    """ValueError unless p(x|z) is a distribution over the images x (B, C, H, W), one per image.

    Without this a likelihood of another shape would broadcast and be summed wrongly in silence.
    """
    shape = p.batch_shape + p.event_shape
    if shape != x.shape or len(p.event_shape) != 3:
        raise ValueError(f"p(x|z) has batch {list(p.batch_shape)} and event {list(p.event_shape)}, "
                         f"but the images are {list(x.shape)}; see torch.distributions.Independent")


def is_autoencoder(args):
    """--beta 0 is a plain autoencoder: z = mu, the loss is the reconstruction, there is no prior.
    A schedule that passes through 0 is not one."""
    return args.beta == 0


def draw_eps(x, args, generator=None):
    """Noise of the reparameterisation for images x, (B, latent); zeros for an autoencoder."""
    shape = (len(x), args.latent)
    if is_autoencoder(args):
        return torch.zeros(shape, device=x.device)
    return torch.randn(shape, device=x.device, generator=generator)


def active_units(mu):
    """Number of units of mu (N, d) whose variance over the data is above 0.01 (arXiv 1509.00519,
    section 5.3)."""
    return int((mu.var(0, unbiased=False) > 0.01).sum())


def beta_at(epoch, args):
    """The weight of the KL in epoch 1, 2 ... args.epochs.

    constant: beta. linear: a ramp from 0 in the first epoch to beta in epoch --beta-warmup, by
    default the last (Bowman et al. 2016, arXiv 1511.06349). cyclical: the ramp four times over,
    each as long as its cycle by default (Fu et al. 2019, arXiv 1903.10145).
    """
    if args.beta_schedule == "constant":
        return args.beta
    start = 0                   # the last epoch before this cycle
    end = args.epochs           # the last epoch of this cycle
    if args.beta_schedule == "cyclical":
        for cycle in range(4):
            start = round(args.epochs * cycle / 4)
            end = round(args.epochs * (cycle + 1) / 4)
            if epoch <= end:
                break
    warmup = args.beta_warmup or end - start
    return args.beta * min(1, (epoch - start - 1) / (warmup - 1))


# Sums of an epoch that lie together. A small tensor of each step's own would stay between the large
# ones, and the memory in between could not be used again: in 2,000 steps a gigabyte or more.
BLOCK = 1024


class Means:
    """Means per image of named terms, over the batches of an epoch.

    The sums stay on the device until the end: reading one would wait for it, in every step.
    """

    def __init__(self):
        self.sums = {}      # {name: [BLOCK sums over batches each, ...]}
        self.steps = {}     # {name: [step of that batch, ...]}
        self.counts = {}    # {name: images}
        self.step = 1
        self.added = set()  # the names that this step has so far

    def add(self, terms, prefix=""):
        """Terms of a batch, {name: (B,)}; `prefix` is put in front of their names. A name that
        comes again begins the next step."""
        for name, values in terms.items():
            name = prefix + name
            if name in self.added:
                self.step += 1
                self.added = set()
            self.added.add(name)
            self.steps.setdefault(name, []).append(self.step)
            blocks = self.sums.setdefault(name, [])
            place = (len(self.steps[name]) - 1) % BLOCK
            if place == 0:
                blocks.append(values.new_empty(BLOCK))
            blocks[-1][place] = values.detach().sum()
            self.counts[name] = self.counts.get(name, 0) + len(values)

    def compute(self, when):
        """{name: mean}. Ends the program if one is not finite, and says which broke first; `when`
        is "epoch 3", say."""
        means = {}
        culprit = None
        first_step = math.inf
        for name, sums in self.sums.items():
            sums = torch.cat(sums)[:len(self.steps[name])]
            sums = sums.cpu().double()   # many sums outgrow the 24 bits of a float
            sums = processes.total(sums)
            count = processes.total(torch.tensor(self.counts[name]))
            means[name] = (sums.sum() / count).item()
            if math.isfinite(means[name]):
                continue
            broken = (~sums.isfinite()).nonzero()[0].item()
            step = self.steps[name][broken]
            if step <= first_step:   # of one step the last: terms are added after their total
                culprit = name
                first_step = step
        if culprit is not None:
            # Where a sum is too large and its terms are not, their weight is.
            remedy = "--beta" if culprit.endswith("objective") else "--lr"
            fail(f"{culprit} is not finite in step {first_step} of {when}; try a smaller {remedy}",
                 status=1)
        return means


# -------------------------------------------------------------------------------------- images
def fixed_images(data, n):
    """n test images in [0, 1] from the first to the last, and what a conditional model is told of
    them, their labels as a rule: always the same."""
    index = torch.linspace(0, len(data.x_test) - 1, n).long()
    return data.x_test[index] / 255, data.c_test[index]


def fixed_z(n, latent, device):
    """n draws from the prior, (n, latent): always the same."""
    return torch.randn(n, latent, generator=torch.Generator().manual_seed(0)).to(device)


def straight(a, b, steps):
    """(d,), (d,) -> (steps, d) on the line from a to b."""
    return torch.lerp(a, b, torch.linspace(0, 1, steps)[:, None])


def spherical(a, b, steps):
    """(d,), (d,) -> (steps, d) on the great circle from a to b, the length in proportion.

    Between two draws from N(0, I) it keeps a length that such draws have, which a straight line
    does not (White 2016, arXiv 1609.04468).
    """
    t = torch.linspace(0, 1, steps)[:, None]
    cosine = a @ b / (a.norm() * b.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if angle.isnan() or angle.sin() < 1e-4:   # 0, parallel or opposite: no one great circle
        return straight(a, b, steps)
    direction = torch.sin((1 - t) * angle) * a / a.norm() + torch.sin(t * angle) * b / b.norm()
    length = torch.lerp(a.norm(), b.norm(), t)
    return direction / angle.sin() * length


def shortened(name):
    """A name that fits beside images and into a line."""
    return name if len(name) <= 40 else name[:37] + "..."


def drawable(text):
    """A text in characters that the fonts have: Chinese, say, comes as "\\u732b"."""
    shown = ""
    for c in text:
        is_wide = unicodedata.east_asian_width(c) in ("W", "F")
        shown += ascii(c)[1:-1] if is_wide or not c.isprintable() else c
    return shown


def plain_text(name):
    """A short name for matplotlib, to which a dollar would begin a formula."""
    return drawable(shortened(name)).replace("$", r"\$")


def grid_font(texts):
    """Pillow's font, or matplotlib's where texts have letters that are not Latin."""
    from PIL import ImageFont
    font = ImageFont.load_default(size=14)
    if max("".join(texts), default="") < "\u0180":
        return font
    try:
        from matplotlib import get_data_path
        return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 14)
    except (ImportError, OSError):
        return font


def save_grid(path, images, columns, names=(), heads=(), title=""):
    """Write images (N, C, H, W) row by row, `columns` to a row.

    names: of the rows, at the left; heads: above the columns; the title above all. Images smaller
    than 64 pixels are enlarged by a whole factor, pixel by pixel.
    """
    from PIL import Image
    from torchvision.utils import make_grid
    scale = max(1, 64 // images.shape[-1])
    images = images.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(images, nrow=columns, padding=2, pad_value=1).clamp(0, 1)
    page = Image.fromarray(grid.mul(255).round().byte().permute(1, 2, 0).numpy())
    names = [drawable(shortened(name)) for name in names]
    heads = [drawable(shortened(head)) for head in heads]
    title = drawable(title)

    font = grid_font([*names, *heads, title])
    if names:
        page = add_names(page, names, images.shape[2] + 2, font)
    if heads:
        page = add_heads(page, heads, images.shape[3] + 2, font)
    if title:
        page = add_title(page, title, font)
    content = io.BytesIO()
    page.save(content, "PNG")
    write_whole(path, content.getbuffer())


LINE = 18   # pixels from a line of text in a grid to the next


def add_heads(page, heads, width, font):
    """A Pillow image with texts above its last columns, which are `width` pixels wide."""
    from PIL import ImageDraw, ImageOps
    page = ImageOps.expand(page, (0, LINE, 0, 0), "white")
    draw = ImageDraw.Draw(page)
    left = page.width - len(heads) * width
    for column, head in enumerate(heads):
        middle = left - 1 + (column + 0.5) * width
        draw.text((middle, LINE / 2 + 1), head, "black", font, anchor="mm")
    return page


def add_names(page, names, height, font):
    """A Pillow image with names at the left of its rows, which are `height` pixels high."""
    from PIL import ImageDraw, ImageOps
    margin = max(int(font.getlength(name)) for name in names) + 8
    page = ImageOps.expand(page, (margin, 0, 0, 0), "white")
    draw = ImageDraw.Draw(page)
    for row, name in enumerate(names):
        middle = 2 + (row + 0.5) * height
        draw.text((margin - 4, middle), name, "black", font, anchor="rm")
    return page


def add_title(page, title, font):
    """A Pillow image below a title, in as many lines as it takes."""
    from PIL import ImageDraw, ImageOps
    lines = textwrap.wrap(title, max(20, page.width // 7))   # most letters are narrower
    width = max(int(font.getlength(line)) for line in lines) + 8
    missing = max(0, width - page.width)                     # beside a few small images
    page = ImageOps.expand(page, (0, LINE * len(lines) + 4, missing, 0), "white")
    draw = ImageDraw.Draw(page)
    for row, line in enumerate(lines):
        draw.text((4, 2 + (row + 0.5) * LINE), line, "black", font, anchor="lm")
    return page


def save_rows(path, rows):
    """A grid with a named row of images each: {name: (N, C, H, W)}."""
    images = list(rows.values())
    save_grid(path, torch.cat(images), len(images[0]), list(rows))


def save_curves(path, rows, step, panels, unit, scale="linear"):
    """Columns of the log against `step`, the column "epoch" or "iteration".

    panels: {title: [(label, column, format), ...]}, the format being matplotlib's: "C0--" of what
    is measured in training, "C0-" of what is measured on the test set. scale: of the y axis,
    "linear", where the second half of training sets it, or "log". Where beta changes, it is shown.
    """
    if not has_package("matplotlib", "curves and maps"):
        return
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator
    figure = Figure(figsize=(1 + 4 * len(panels), 3.8), layout="constrained")
    subplots = figure.subplots(1, len(panels), squeeze=False)[0]
    steps = [row[step] for row in rows]
    for axes, (title, lines) in zip(subplots, panels.items(), strict=True):
        axes.set(xlabel=step, ylabel=unit, yscale=scale)
        axes.set_title(title, fontsize="medium")
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
        shade_beta(axes, rows, steps)
        shown = []
        for label, column, style in lines:
            values = [row[column] for row in rows]
            axes.plot(steps, values, style, marker="." if len(rows) < 30 else "", label=label)
            shown.append(values)
        if scale == "linear":
            show_second_half(axes, shown)
        else:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter("{x:g}")   # 20, not 2 times a power of ten
        axes.legend(fontsize="small")
    figure.supxlabel("dashed: training, solid: test", fontsize="small")
    write_figure(path, figure)


def write_figure(path, figure):
    """A matplotlib figure as a .png file, whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_whole(path, content.getbuffer())


def shade_beta(axes, rows, steps):
    """A grey area as high as beta, where the weight of the KL changes: its jumps explain others."""
    betas = [row.get("beta") for row in rows]
    if len(set(betas)) < 2:
        return
    top = max(betas)
    heights = [beta / top for beta in betas]   # as a share of the height of the panel
    axes.fill_between(steps, heights, transform=axes.get_xaxis_transform(), color="0.85",
                      label=f"beta, from 0 to {top:g}")


def show_second_half(axes, lines):
    """Let the second half of training set the y axis; the title says if there is more.

    lines: the values of each, None where one is missing. The first epoch, which may be hundreds of
    nats higher, would leave the last nats no room.
    """
    every, late = [], []
    for line in lines:
        every += [value for value in line if value is not None]
        late += [value for value in line[len(line) // 2:] if value is not None]
    if not late or min(late) == max(late):
        return
    room = max(late) - min(late)
    if max(every) - min(every) <= 4 * room:   # it has a quarter of the height as it is
        return
    low = max(min(every), min(late) - room)   # above and below as much as the second half takes
    high = min(max(every), max(late) + room)
    axes.set_ylim(low - 0.05 * room, high + 0.05 * room)
    note = f"(axis cut off: values run from {min(every):.4g} to {max(every):.4g})"
    axes.set_title(f"{axes.get_title()}\n{note}", fontsize="medium")


def save_latent(path, means, data, args):
    """A map of the test set's posterior means by class, {model's name: (N, 2)}, a panel each.

    The axes reach to five standard deviations of the prior; an autoencoder's codes have no scale.
    """
    if not has_package("matplotlib", "curves and maps"):
        return
    from matplotlib.figure import Figure
    figure = Figure(figsize=(5 * len(means) + 1.5, 5), layout="constrained")
    subplots = figure.subplots(1, len(means), squeeze=False)[0]
    y = data.y_test.cpu()
    for axes, (name, mu) in zip(subplots, means.items(), strict=True):
        mu = mu.cpu()
        dots = scatter_by_class(axes, mu, y, data.classes)
        axes.set(title=f"{name}, test set", xlabel="$z_1$", ylabel="$z_2$")
        if not is_autoencoder(args):
            axes.set(xlim=(-5, 5), ylim=(-5, 5))
    add_key(axes, dots, y, data.classes)
    write_figure(path, figure)


def scatter_by_class(axes, points, y, classes):
    """Points (N, 2) in the colours of their labels y (N,), the names of the classes in the middle
    of theirs. Returns the dots, for add_key."""
    from matplotlib.patheffects import withStroke
    colors = "tab10" if len(classes) <= 10 else "tab20"
    dots = axes.scatter(points[:, 0], points[:, 1], s=10, c=y, cmap=colors, alpha=0.5,
                        linewidths=0)
    if not has_key(classes):
        return dots
    labels = y.unique()
    centres = torch.stack([points[y == label].median(0).values for label in labels])
    if centres.var(0).sum() < 0.1 * points.var(0).sum():   # no clusters, as in a CVAE
        return dots
    for label, centre in zip(labels, centres.tolist(), strict=True):
        name = plain_text(classes[label])
        outline = withStroke(linewidth=3, foreground="white")
        axes.text(*centre, name, ha="center", va="center", fontsize="small", clip_on=True,
                  path_effects=[outline])
    return dots


def has_key(classes):
    """Whether names help: with more classes than colours they would not."""
    return 1 < len(classes) <= 20


def add_key(axes, dots, y, classes):
    """The names of the classes and their colours, at the right of the axes."""
    if has_key(classes):
        names = [plain_text(classes[label]) for label in y.unique()]
        axes.legend(dots.legend_elements(num=None, alpha=1)[0], names, loc="center left",
                    bbox_to_anchor=(1, 0.5))
