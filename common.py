"""Data, losses and images: what the scripts share about the subject itself.

Throughout: an image is a float in [0, 1], (B, C, H, W); a loss is in nats per image, (B,).
"""
import contextlib
import functools
import importlib
import math
import os
import socket
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F


def fail(message, status=2):
    """End the program with one line that names the flag or file and the remedy."""
    print("error:", " ".join(message.split()), file=sys.stderr)
    raise SystemExit(status)


@functools.cache   # the line is printed once, however often a figure is due
def has_package(name, purpose):
    """Whether an optional package can be imported; if not, one line says what goes without it."""
    try:
        importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed: going on without {purpose} (pip install {name})")
        return False
    return True


# ---------------------------------------------------------------------------------------- data

class Data(NamedTuple):
    """A data set, all of it on one device."""
    name: str
    x_train: torch.Tensor   # uint8 (N, C, H, W)
    y_train: torch.Tensor   # int64 (N,); zeros where there are no labels
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: list           # the names of the labels; empty where there are none


def load_data(name, folder="data", device="cpu", image_size=None, train_size=None, test_size=None):
    """Read a data set by name or path, resize it and take subsets.

    name: a key of READERS, an image folder or an .npz file; folder: where the named ones lie.
    Ends the program with one line if the data cannot be used.
    """
    path = Path(name)
    if name in READERS:
        x_train, y_train, x_test, y_test, classes = READERS[name](name, folder)
    elif path.is_dir():
        x_train, y_train, x_test, y_test, classes = read_folder(path, image_size)
    elif path.is_file() and path.suffix == ".npz":
        x_train, y_train, x_test, y_test, classes = read_npz(path)
    else:
        fail(f"--dataset {name} was not found; use {', '.join(READERS)}, the path of an image "
             "folder or of an .npz file")
    x_train, y_train = random_subset(x_train, y_train, train_size, "--train-size")
    x_test, y_test = random_subset(x_test, y_test, test_size, "--test-size")
    x_train, x_test = resize(x_train, image_size), resize(x_test, image_size)
    name = path.name if path.is_dir() else path.stem
    return Data(name, x_train.to(device), y_train.to(device),
                x_test.to(device), y_test.to(device), classes)


def random_subset(x, y, size, flag):
    """`size` images with their labels, in their order; all of them if size is None."""
    if size is None:
        return x, y
    if size > len(x):
        fail(f"{flag} {size}: there are only {len(x)} images")
    generator = torch.Generator().manual_seed(0)   # every --seed trains on the same images
    keep = torch.randperm(len(x), generator=generator)[:size].sort().values
    return x[keep], y[keep]


def read_digits(name, folder):
    """scikit-learn's 1,797 handwritten digits, 8x8 in 17 greys, enlarged and framed like MNIST's.

    Nothing is downloaded. The first 1,500 are for training, 297 for testing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        fail("--dataset digits needs scikit-learn; pip install scikit-learn, or use another")
    x, y = load_digits(return_X_y=True)
    x = torch.from_numpy(x).float().view(-1, 1, 8, 8) / 16
    x = F.interpolate(x, size=20, mode="bicubic").clamp(0, 1)     # (1797, 1, 20, 20)
    x = F.pad(x, (4, 4, 4, 4)).mul(255).round().byte()            # (1797, 1, 28, 28)
    y = torch.from_numpy(y).long()
    classes = [str(digit) for digit in range(10)]
    return x[:1500], y[:1500], x[1500:], y[1500:], classes


def read_torchvision(name, folder):
    """A torchvision data set, downloaded if `folder` lacks it; gives up after 10 s of silence."""
    from torchvision import datasets
    dataset = getattr(datasets, name)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            train = dataset(folder, train=True, download=True)
            test = dataset(folder, train=False, download=True)
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError) as error:
        if hasattr(dataset, "filename"):   # CIFAR10 is one file
            place = Path(folder)
            files = [dataset.filename]
        else:
            place = Path(folder, name, "raw")
            files = [file for file, _ in dataset.resources]
        fail(f"--dataset {name} is not complete in {place} and could not be downloaded ({error}); "
             f"put {', '.join(files)} there, or use --dataset digits")
    finally:
        socket.setdefaulttimeout(timeout)
    x_train, y_train = channels_first(train.data), torch.as_tensor(train.targets)
    x_test, y_test = channels_first(test.data), torch.as_tensor(test.targets)
    classes = [label.split(" - ")[0] for label in train.classes]   # MNIST has "0 - zero"
    return x_train, y_train, x_test, y_test, classes


# A new data set is one function (name, folder) -> x_train, y_train, x_test, y_test, classes, with
# images uint8 (N, C, H, W) and labels int64 (N,), and one line here.
READERS = {
    "digits": read_digits,
    "MNIST": read_torchvision,
    "FashionMNIST": read_torchvision,
    "KMNIST": read_torchvision,
    "CIFAR10": read_torchvision,
}


def read_npz(path):
    """The Keras keys: x_train, x_test uint8 (N, H, W) or (N, H, W, C); y_train, y_test (N,) or
    (N, 1), or no labels; `classes`, the names of the labels, optional."""
    try:
        with np.load(path, allow_pickle=False) as file:   # a pickle could run any code
            arrays = dict(file)
    except Exception as error:   # a file that is something else can raise anything
        fail(f"--dataset {path}: {error}; store plain arrays with numpy.savez")
    listing = ", ".join(f"{key} {array.dtype} {array.shape}" for key, array in arrays.items())
    found = f"--dataset {path} holds {listing}"

    x_train, x_test = arrays.get("x_train"), arrays.get("x_test")
    if not is_image_array(x_train) or not is_image_array(x_test):
        fail(f"{found}; x_train and x_test must be uint8 (N, H, W) or (N, H, W, 1 or 3)")
    if x_train.shape[1:] != x_test.shape[1:]:
        fail(f"{found}; x_train and x_test must agree in all but N")
    if "y_train" not in arrays and "y_test" not in arrays:
        y_train = torch.zeros(len(x_train), dtype=torch.long)
        y_test = torch.zeros(len(x_test), dtype=torch.long)
        return channels_first(x_train), y_train, channels_first(x_test), y_test, []

    y_train = label_tensor(arrays.get("y_train"), len(x_train), found)
    y_test = label_tensor(arrays.get("y_test"), len(x_test), found)
    if "classes" in arrays:
        classes = [str(name) for name in arrays["classes"].flat]
    else:
        n_classes = min(int(y_train.max()) + 1, len(y_train))   # one stray 10^9 is not 10^9 classes
        classes = [str(label) for label in range(n_classes)]
    low, high = torch.cat([y_train, y_test]).aminmax()
    if low < 0 or high >= len(classes):
        fail(f"--dataset {path}: labels from {low} to {high} are out of range for {len(classes)} "
             "classes; number them from 0, each with at least one training image")
    return channels_first(x_train), y_train, channels_first(x_test), y_test, classes


def is_image_array(x):
    """Whether x is a uint8 array (N, H, W), (N, H, W, 1) or (N, H, W, 3) that is not empty."""
    if x is None or x.dtype != np.uint8 or x.size == 0:
        return False
    return x.ndim == 3 or (x.ndim == 4 and x.shape[3] in (1, 3))


def label_tensor(y, n, found):
    """Labels (n,) or (n, 1) of any integer type -> int64 (n,)."""
    if y is None or y.dtype.kind not in "iu" or y.shape not in ((n,), (n, 1)):
        fail(f"{found}; y_train and y_test must be whole numbers (N,)")
    return torch.from_numpy(y.astype(np.int64)).view(-1)


def read_folder(root, size=None):
    """Images in `root` itself or in one sub-folder per class; or the same in train/ and test/.

    Without train/ and test/ every tenth of the sorted files is test. Grey if all images are grey,
    else RGB.
    """
    if (root / "train").is_dir() and (root / "test").is_dir():
        train, test = list_images(root / "train"), list_images(root / "test")
    else:
        files = list_images(root)
        if len(files) < 10:
            fail(f"--dataset {root}: {len(files)} images are too few; a test set needs 10")
        train = [file for i, file in enumerate(files) if i % 10 != 9]
        test = files[9::10]

    images = []
    for file, _ in train + test:
        image = resize(read_image(file), size)
        if images and image.shape[2:] != images[0].shape[2:]:
            fail(f"{file} differs in size from {train[0][0]}; use --image-size to make all alike")
        images.append(image)
    channels = max(image.shape[1] for image in images)
    x = torch.cat([image.expand(-1, channels, -1, -1) for image in images])   # grey becomes RGB

    names = sorted({name for _, name in train + test})
    if len(names) > 1 and "" in names:
        fail(f"--dataset {root}: sort both train/ and test/ into class folders, or neither")
    y = torch.tensor([names.index(name) for _, name in train + test])
    classes = [] if names == [""] else names
    n = len(train)
    return x[:n], y[:n], x[n:], y[n:], classes


def list_images(root):
    """Sorted (file, class) pairs; the class is "" where images lie in `root` itself."""
    from torchvision.datasets.folder import IMG_EXTENSIONS
    pairs = []
    for file in [*sorted(root.glob("*")), *sorted(root.glob("*/*"))]:
        hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
        if file.suffix.lower() in IMG_EXTENSIONS and not hidden:
            pairs.append((file, "" if file.parent == root else file.parent.name))
    if not pairs:
        fail(f"--dataset {root} holds no images ({' '.join(IMG_EXTENSIONS)})")
    names = {name for _, name in pairs}
    if len(names) > 1 and "" in names:
        fail(f"--dataset {root} mixes images and class folders; use one or the other")
    return pairs


def read_image(file):
    """An image file -> uint8 (1, C, H, W), one channel if it is grey and three if not."""
    from PIL import Image, ImageOps
    try:
        with Image.open(file) as image:
            if image.mode[0] in "IF":
                fail(f"{file} has more than 8 bits per channel; save it with 8")
            mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
            pixels = np.array(ImageOps.exif_transpose(image).convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        fail(f"{file} is not a complete image ({error}); repair or remove it")
    return channels_first(pixels[None])


def channels_first(x):
    """(N, H, W) or (N, H, W, C), array or tensor -> tensor (N, C, H, W)."""
    x = torch.as_tensor(x)
    if x.ndim == 3:
        x = x[..., None]
    return x.permute(0, 3, 1, 2).contiguous()


def resize(x, size):
    """Crop the centre square and resize it to size x size, antialiased: uint8 (N, C, H, W) in and
    out. Without a size nothing changes."""
    if size is None:
        return x
    from torchvision.transforms.v2 import functional as transforms
    side = min(x.shape[2:])
    square = transforms.center_crop(x, [side, side])
    return transforms.resize(square, [size, size], antialias=True)


def batches(x, y, batch_size, shuffle):
    """Yield (x in [0, 1], y) until every image was seen once; the last batch may be short."""
    n = len(x)
    order = torch.randperm(n, device=x.device) if shuffle else torch.arange(n, device=x.device)
    for index in order.split(batch_size):
        yield x[index] / 255, y[index]


def binarize(data, args):
    """The data with black or white pixels, as --binarize says.

    threshold: above 1/2. dynamic: drawn with the grey value as probability, for the test set here,
    once; the training set stays grey and is drawn anew in every step.
    """
    if args.binarize == "none":
        return data
    if args.binarize == "threshold":
        return data._replace(x_train=(data.x_train >= 128).byte() * 255,
                             x_test=(data.x_test >= 128).byte() * 255)
    noise = torch.Generator(data.x_test.device).manual_seed(0)
    x_test = torch.bernoulli(data.x_test / 255, generator=noise)
    return data._replace(x_test=x_test.mul(255).byte())


# -------------------------------------------------------------------------------------- losses

SIGMA_MIN = 1 / 256   # a grey level; without a bound a black border would be infinitely likely


def gaussian_kl(mu, logvar):
    """KL(N(mu, diag(exp(logvar))) || N(0, I)) in nats per image: (B, d), (B, d) -> (B,).

    Never negative; zero at mu = logvar = 0. Kingma & Welling 2014 (arXiv 1312.6114), appendix B.
    """
    return 0.5 * (mu.square() + logvar.exp() - logvar - 1).sum(1)


def bounded_sigma(log_sigma):
    """exp(log_sigma), softly bounded from below by SIGMA_MIN, for learning it safely.

    Rybkin et al. 2021 (arXiv 2006.13202), section 3.
    """
    low = math.log(SIGMA_MIN)
    return torch.exp(low + F.softplus(log_sigma - low))


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


class Means:
    """Means per image of named terms, over the batches of an epoch.

    The sums stay on the device until the end: reading one would wait for it, in every step.
    """

    def __init__(self):
        self.sums = {}      # {name: [sum over a batch, ...]}
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
            self.sums.setdefault(name, []).append(values.detach().sum())
            self.counts[name] = self.counts.get(name, 0) + len(values)

    def compute(self, when):
        """{name: mean}. Ends the program if one is not finite, and says which broke first; `when`
        is "epoch 3", say."""
        means = {}
        culprit = None
        first_step = math.inf
        for name, sums in self.sums.items():
            sums = torch.stack(sums).cpu().double()   # many sums outgrow the 24 bits of a float
            means[name] = (sums.sum() / self.counts[name]).item()
            if math.isfinite(means[name]):
                continue
            broken = (~sums.isfinite()).nonzero()[0].item()
            step = self.steps[name][broken]
            if step <= first_step:   # of one step the last: terms are added after their total
                culprit = name
                first_step = step
        if culprit is not None:
            fail(f"{culprit} is not finite in step {first_step} of {when}; try a smaller --lr",
                 status=1)
        return means


# -------------------------------------------------------------------------------------- images
def fixed_images(data, n):
    """n test images in [0, 1] from the first to the last, and their labels: always the same."""
    index = torch.linspace(0, len(data.x_test) - 1, n).long()
    return data.x_test[index] / 255, data.y_test[index]


def fixed_z(n, latent, device):
    """n draws from the prior, (n, latent): always the same."""
    return torch.randn(n, latent, generator=torch.Generator().manual_seed(0)).to(device)


def save_grid(path, images, columns, names=()):
    """Write images (N, C, H, W) row by row, `columns` to a row, the names of the rows at the left.

    Images smaller than 64 pixels are enlarged by a whole factor, pixel by pixel.
    """
    from PIL import Image, ImageDraw, ImageFont, ImageOps
    from torchvision.utils import make_grid
    scale = max(1, 64 // images.shape[-1])
    images = images.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    grid = make_grid(images, nrow=columns, padding=2, pad_value=1).clamp(0, 1)
    page = Image.fromarray(grid.mul(255).round().byte().permute(1, 2, 0).numpy())
    if names:
        font = ImageFont.load_default(size=14)
        margin = max(int(font.getlength(name)) for name in names) + 8
        page = ImageOps.expand(page, (margin, 0, 0, 0), "white")
        draw = ImageDraw.Draw(page)
        for row, name in enumerate(names):
            middle = 2 + (row + 0.5) * (images.shape[2] + 2)
            draw.text((margin - 4, middle), name, "black", font, anchor="rm")
    page.save(path)


def save_rows(path, rows):
    """A grid with a named row of images each: {name: (N, C, H, W)}."""
    images = list(rows.values())
    save_grid(path, torch.cat(images), len(images[0]), list(rows))


def save_curves(path, rows, step, panels, unit):
    """Columns of the log against `step`, the column "epoch" or "iteration".

    panels: {title: [(label, column, format), ...]}, the format being matplotlib's: "C0--".
    """
    if not has_package("matplotlib", "curves and maps"):
        return
    from matplotlib.figure import Figure
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    subplots = figure.subplots(1, len(panels), squeeze=False)[0]
    steps = [row[step] for row in rows]
    for axes, (title, lines) in zip(subplots, panels.items(), strict=True):
        for label, column, style in lines:
            values = [row[column] for row in rows]
            axes.plot(steps, values, style, marker="." if len(rows) < 30 else "", label=label)
        axes.set(title=title, xlabel=step, ylabel=unit)
        axes.legend()
    figure.savefig(path)


def save_latent(path, means, data, args):
    """A map of the test set's posterior means by class, {model's name: (N, 2)}, a panel each.

    The axes reach to five standard deviations of the prior; an autoencoder's codes have no scale.
    """
    if not has_package("matplotlib", "curves and maps"):
        return
    from matplotlib.figure import Figure
    figure = Figure(figsize=(5 * len(means) + 1.5, 5), layout="constrained")
    subplots = figure.subplots(1, len(means), squeeze=False)[0]
    for axes, (name, mu) in zip(subplots, means.items(), strict=True):
        mu = mu.cpu()
        dots = axes.scatter(mu[:, 0], mu[:, 1], s=3, c=data.y_test.cpu(), cmap="tab10")
        axes.set(title=f"{name}, test set", xlabel="$z_1$", ylabel="$z_2$")
        if not is_autoencoder(args):
            axes.set(xlim=(-5, 5), ylim=(-5, 5))
    if 0 < len(data.classes) <= 10:   # more classes than colours: no key would help
        names = [data.classes[label] for label in data.y_test.unique()]
        axes.legend(dots.legend_elements(num=None)[0], names, loc="center left",
                    bbox_to_anchor=(1, 0.5))
    figure.savefig(path)
