"""Images from a trained model: a run folder or a checkpoint of vae.py, cvae.py, gan.py or a copy.

    python generate.py results/vae-MNIST                         # 64 samples from the prior
    python generate.py results/cvae-MNIST --digit 9              # samples of one class
    python generate.py results/vae-MNIST --interpolate 0 7       # between two test images
    python generate.py results/models/cvae-mnist.pt --classes    # a model that needs no data
    python generate.py results/cvae-MNIST --explore              # a page to move around in

Sample i has a seed of its own: it is the same in a grid of 8 and of 800.
"""
import ctrl_c  # without a traceback, even during these imports
import contextlib
import functools
import importlib
import io
import math
import re
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.distributions import Bernoulli, Normal

from common import (
    batches,
    binarize,
    fail,
    gaussian_kl,
    has_package,
    load_data,
    plain_text,
    printable,
    save_grid,
    save_latent,
    shortened,
    tell,
    write_whole,
)
from run import (
    Parser,
    check_split,
    data_card,
    data_options,
    guarded,
    load_models,
    number,
    own_loss_terms,
    parse,
    path_text,
    pick_device,
    run_folder,
)
from tools.explorer import save_explorer

SEED_STEP = 1_000_003   # from the seeds of one --seed to those of the next


# --------------------------------------------------------------------------------------- source

class Source:
    """A trained model and what its images need; the data are read only if an image asks for them.

    models: {prefix: run.Trained}, of which `model` is the one that is not the twin; label: the
    index of --class, or None.
    """

    def __init__(self, args):
        self.device = pick_device(args.device)
        self.checkpoint, self.module, self.models = load_models(args.run, self.device)
        self.script = f"{self.checkpoint['script']}.py"
        self.card = self.checkpoint["data"]          # name, shape and classes of the data
        self.names = self.card["classes"]            # of the classes
        self.model = self.models[""]
        self.latent = self.model.args.latent
        self.folder = run_folder(args.run)
        self.dataset = args.dataset or self.model.args.dataset
        self.data_folder = args.data or self.model.args.data
        self.label = None
        if args.label is not None:
            self.label = self.index_of("--class", args.label)

    def index_of(self, flag, name):
        """The label of a class that a flag names; ends the program if there is none."""
        if name not in self.names:
            known = [on_page(other) for other in self.names[:20]]
            if len(self.names) > 20:
                known.append("...")
            fail(f"{flag} {on_page(name)}: the classes are {', '.join(known) or 'none'}")
        return self.names.index(name)

    @functools.cached_property
    def data(self):
        """The data of the run, as the model saw them."""
        args = self.model.args
        check_split(self.checkpoint, self.dataset)
        data = load_data(self.dataset, self.data_folder, self.device, **data_options(args))
        shape = list(data.x_test.shape[1:])
        if shape != self.card["shape"] or data.classes != self.card["classes"]:
            fail(f"--dataset {self.dataset} no longer matches the checkpoint's shape and classes; "
                 "restore the data, or name their new place with --dataset")
        if hasattr(args, "binarize"):
            data = binarize(data, args)
        if self.card.get("content", "") not in ("", data_card(data)["content"]):
            tell(f"note: --dataset {self.dataset} has changed since this run was trained")
        return data

    @functools.cached_property
    def posteriors(self):
        """mu and logvar of all test images, (N, latent) each."""
        return codes(self.model, self.data)

    @functools.cached_property
    def prior(self):
        """p(z) of a model that has its own, as a distribution; None: N(0, I). If the model was
        trained with another KL than that to N(0, I), a line says so."""
        prior = self.model.prior()
        if prior is None and not has_standard_kl(self):
            tell(f"note: the KL of {self.script} is not that to N(0, I); samples are drawn from "
                  "N(0, I) - give the model a method prior() if it has another")
        return prior


def has_standard_kl(source):
    """Whether the KL in the script's own loss is that to N(0, I), tried on a few random images;
    also where there is no KL: in an autoencoder, and in a script without loss_terms."""
    model = source.model
    if model.is_autoencoder or not model.has_encoder or not hasattr(source.module, "loss_terms"):
        return True
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, *source.card["shape"], generator=generator).to(source.device)
    y = torch.zeros(4, dtype=torch.long, device=source.device)
    eps = torch.randn(4, source.latent, generator=generator).to(source.device)
    try:
        mu, logvar = model.encode(x, y)
        terms = own_loss_terms(source.module, model.model, x, y, eps)
        return torch.allclose(terms[1], gaussian_kl(mu, logvar), rtol=1e-4, atol=1e-4)
    except Exception:   # a copy's loss may take or return anything, and then it is not this one
        return False


# ------------------------------------------------------------------------------ codes and images

def noise(indices, latent, seed):
    """z ~ N(0, I) of the samples `indices`, (B, latent), each from a seed of its own."""
    z = []
    for i in indices:
        generator = torch.Generator().manual_seed(seed * SEED_STEP + i)
        z.append(torch.randn(latent, generator=generator))
    return torch.stack(z)


def seeded_sample(distribution, seed):
    """One draw with a seed of its own, on the CPU."""
    devices = range(torch.cuda.device_count())   # manual_seed seeds them all
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        return distribution.sample().cpu()


def draw_codes(source, indices, label, seed):
    """z (B, latent) and y (B,) of the samples `indices`: of class `label`, or, if that is None, of
    every class in turn; y is 0 where the model takes no labels.

    z comes from the prior. An autoencoder has none, and the prior of a model without labels does
    not know of classes: there a Gaussian fitted to codes takes its place.
    """
    classes = source.model.classes
    if classes > 0 and label is None:
        labels = [i % classes for i in indices]
    elif classes > 0:
        labels = [label for _ in indices]
    else:
        labels = [0 for _ in indices]

    fitted = source.model.is_autoencoder or (label is not None and classes == 0)
    if not fitted and source.prior is not None:
        z = [seeded_sample(source.prior, seed * SEED_STEP + i) for i in indices]
        return torch.stack(z), torch.tensor(labels)

    z = noise(indices, source.latent, seed)
    if fitted:
        for row in range(len(z)):
            own = labels[row] if classes > 0 else label
            mean, deviation = class_gaussian(source, own)
            z[row] = mean + deviation * z[row]
    return z, torch.tensor(labels)


def class_gaussian(source, label):
    """Mean and standard deviation, (latent,) each, of the Gaussian fitted to the codes of a class,
    or, if `label` is None, to those of all test images."""
    mu, logvar = source.posteriors
    if label is not None:
        keep = source.data.y_test.cpu() == label
        if not keep.any():
            fail(f"no test image is of class {on_page(source.names[label])}, to whose codes a "
                 "Gaussian is fitted; use another --class")
        mu, logvar = mu[keep], logvar[keep]
    return fitted_gaussian(mu, logvar, source.model.is_autoencoder)


def fitted_gaussian(mu, logvar, is_autoencoder):
    """Mean and standard deviation, (latent,) each, of a mixture of posteriors (N, latent).

    By the law of total variance its variance is that of the means plus the mean of the variances.
    """
    variance = mu.var(0, unbiased=False)
    if not is_autoencoder:   # whose codes are points
        variance = variance + logvar.exp().mean(0)
    return mu.mean(0), variance.sqrt()


def spread(source):
    """Mean and standard deviation of z, (latent,) each: of the prior, or of an autoencoder's
    codes."""
    if source.model.is_autoencoder:
        return class_gaussian(source, None)
    if source.prior is None:
        return torch.zeros(source.latent), torch.ones(source.latent)
    try:
        return source.prior.mean.cpu(), source.prior.stddev.cpu()
    except NotImplementedError:   # not every distribution knows them
        fail(f"the prior of {source.script} does not tell its mean and stddev; try --samples 64")


def codes(model, data):
    """mu and logvar of all test images, (N, latent) each, on the CPU."""
    mus, logvars = [], []
    for x, y in batches(data.x_test, data.y_test, 1000, shuffle=False):
        mu, logvar = model.encode(x, y)
        mus.append(mu.cpu())
        logvars.append(logvar.cpu())
    return torch.cat(mus), torch.cat(logvars)


def draw(model, z, y, args):
    """Codes z (B, latent), labels y (B,) -> images (B, C, H, W) on the CPU: the mean of p(x|z,y)
    or, with --show sample, a draw from it."""
    device = next(model.model.parameters()).device
    z, y = z.to(device), y.to(device)
    images = []
    if args.show == "sample":
        for i in range(len(z)):
            p = model.decode(z[i:i + 1], y[i:i + 1])
            images.append(draw_pixels(p, args.seed * SEED_STEP - 1 - i))   # not the seed of its z
    else:
        for part in torch.arange(len(z), device=device).split(500):
            images.append(model.images(z[part], y[part]).cpu())
    return torch.cat(images)


def draw_pixels(p, seed):
    """One image, (1, C, H, W) in [0, 1], from a p(x|z) of batch shape (1,)."""
    base = getattr(p, "base_dist", p)
    generator = torch.Generator().manual_seed(seed)
    if isinstance(base, Bernoulli):
        return torch.bernoulli(base.probs.cpu(), generator=generator)
    if isinstance(base, Normal):
        mean, deviation = base.mean.cpu(), base.stddev.cpu()
        return (mean + deviation * torch.randn(mean.shape, generator=generator)).clamp(0, 1)
    return seeded_sample(p, seed).clamp(0, 1)


def most_active(model, deviation):
    """All latent units, the most active ones first, given the standard deviation of each.

    No data are needed: the decoder learns small weights for units that carry nothing. Where its
    first layer does not take z, the units stay in their order.
    """
    decoder = getattr(model.model, "decoder", None)
    first = decoder[0] if isinstance(decoder, nn.Sequential) else None
    latent = len(deviation)
    if not isinstance(first, nn.Linear) or first.in_features != latent + model.classes:
        return torch.arange(latent)
    weight = first.weight[:, :latent].cpu()   # those of z; those of the label follow
    return (weight.norm(dim=0) * deviation).argsort(descending=True)


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
    if not angle.sin() >= 1e-4:   # one direction, opposite ones or, of 0, none (nan): no circle
        return straight(a, b, steps)
    direction = torch.sin((1 - t) * angle) * a / a.norm() + torch.sin(t * angle) * b / b.norm()
    length = torch.lerp(a.norm(), b.norm(), t)
    return direction / angle.sin() * length


def places_on_axis(steps, span=None):
    """Places along an axis of the latent plane, (steps,): the quantiles of N(0, 1) in the middle
    of equal shares, or even steps over `span`."""
    if span is not None:
        return torch.linspace(span[0], span[1], steps)
    return torch.special.ndtri((torch.arange(steps) + 0.5) / steps)


# ----------------------------------------------------------------------------------------- files

def file_name(source, label):
    """A class as a part of a file name: short, of harmless characters, and like no other's.

    A class may be called T-shirt/top, which is no file name, or a million characters.
    """
    names = [re.sub(r"[^\w.-]+", "-", name)[:40] for name in source.names]
    own = names[label]
    if names.count(own) > 1:
        own = f"{own}-{label}"
    return own


def on_page(name):
    """A class as it is printed and drawn: short, and without control characters."""
    return printable(shortened(name))


def enlarge(images, scale):
    """(N, C, H, W) -> (N, C, n * H, n * W): as far as save_grid would do, and `scale` times."""
    n = scale * max(1, 64 // images.shape[3])
    return images.repeat_interleave(n, 2).repeat_interleave(n, 3)


def save_images(args, name, images, columns, names=()):
    """Write images (N, C, H, W) as NAME.png, the names of the rows at the left."""
    path = args.out / f"{name}.png"
    save_grid(path, enlarge(images, args.scale), columns, [on_page(name) for name in names])
    tell(f"{path}")


def save_map(args, name, points, data, index, title):
    """Write points (n, 2) as NAME.png, coloured by the labels of the test images `index`."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    y = data.y_test[index].cpu()
    colors = "tab10" if len(data.classes) <= 10 else "tab20"
    dots = axes.scatter(points[:, 0], points[:, 1], s=8, c=y, cmap=colors)
    if 1 < len(data.classes) <= 20:   # with more classes than colours no key would help
        names = [plain_text(printable(data.classes[label])) for label in y.unique()]
        axes.legend(dots.legend_elements(num=None)[0], names, loc="center left",
                    bbox_to_anchor=(1, 0.5))
    axes.set(title=title, xticks=[], yticks=[])
    path = args.out / f"{name}.png"
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_whole(path, content.getbuffer())
    tell(f"{path}")


def save_gif(args, name, pages):
    """Write a film of the PNG files `pages`."""
    frames = []
    for page in pages:
        with Image.open(page) as image:
            frames.append(image.quantize())   # 256 colours of its own, no dithering
    path = args.out / name
    content = io.BytesIO()
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:], duration=200, loop=0)
    write_whole(path, content.getbuffer())
    tell(f"{path}")


# ---------------------------------------------------------------------------------------- images

def samples(source, args):
    """--samples N: from the prior."""
    n = args.samples or 64
    z, y = draw_codes(source, range(n), source.label, args.seed)
    name = f"samples_{n}"
    if source.label is not None:
        name = f"samples_{file_name(source, source.label)}_{n}"
    save_images(args, name, draw(source.model, z, y, args), args.columns)


def classes(source, args):
    """--classes: samples, one class per row, with the same noise in every row."""
    if len(source.names) < 2:
        fail("--classes needs a model of labelled data; try --samples 64")
    zs, ys = [], []
    for label in range(len(source.names)):
        z, y = draw_codes(source, range(args.columns), label, args.seed)
        zs.append(z)
        ys.append(y)
    images = draw(source.model, torch.cat(zs), torch.cat(ys), args)
    save_images(args, "classes", images, args.columns, source.names)


def interpolate(source, args):
    """--interpolate A B, --digits A B: from one test image to another, with the images at both
    ends; of a model without an encoder between the codes of samples A and B."""
    model = source.model
    if model.has_encoder:
        a, b = end_images(source, args)
        x, y = source.data.x_test[[a, b]] / 255, source.data.y_test[[a, b]]
        ends, _ = model.encode(x, y)
        ends, x = ends.cpu(), x.cpu()
        labels = y.unique().tolist()   # a CVAE goes the way with both labels
    else:
        a, b = args.interpolate
        ends, _ = draw_codes(source, [a, b], None, args.seed)
        x = torch.empty(0, *source.card["shape"])
        labels = [0]
    labels = chosen_labels(source, labels)

    if args.gif:
        z = spherical(ends[0], ends[1], args.steps)
        images = draw(model, z, torch.full((args.steps,), labels[0]), args)
        save_walk(args, f"interpolation_{a}_{b}.gif", images)
        return

    rows, names = [], []
    for label in labels:
        for way in (straight, spherical):
            z = way(ends[0], ends[1], args.steps)
            images = draw(model, z, torch.full((args.steps,), label), args)
            rows.append(torch.cat([x[:1], images, x[1:]]))
            name = way.__name__
            if model.classes > 0:
                name = f"{name}, {source.names[label]}"
            names.append(name)
    save_images(args, f"interpolation_{a}_{b}", torch.cat(rows), len(rows[0]), names)


def chosen_labels(source, labels):
    """The label of --class, or else `labels`; 0 for a model that takes none."""
    if source.label is not None:
        return [source.label]
    if source.model.classes == 0:
        return [0]
    return labels


def end_images(source, args):
    """The indices of the two test images of --interpolate or --digits."""
    if args.digits is not None:
        return [nearest_to_mean(source, name) for name in args.digits]
    n = len(source.data.x_test)
    if max(args.interpolate) >= n:
        a, b = args.interpolate
        fail(f"--interpolate {a} {b}: the test images are 0 to {n - 1}")
    return args.interpolate


def nearest_to_mean(source, name):
    """The index of the test image whose code is nearest to the mean code of its class."""
    label = source.index_of("--digits", name)
    index = (source.data.y_test.cpu() == label).nonzero()[:, 0]
    if len(index) == 0:
        fail(f"--digits {on_page(name)}: no test image is of that class; use another")
    mu = source.posteriors[0][index]
    distance = (mu - mu.mean(0)).square().sum(1)
    return index[distance.argmin()].item()


def save_walk(args, name, images):
    """A film through images (N, C, H, W), there and back."""
    with tempfile.TemporaryDirectory() as scratch:
        pages = []
        for i in range(len(images)):
            page = Path(scratch, f"{i}.png")
            save_grid(page, enlarge(images[i:i + 1], args.scale), 1)
            pages.append(page)
        save_gif(args, name, pages + pages[::-1])


def manifold(source, args):
    """--manifold, --uniform LO HI: the plane of the two most active latent units, the others at
    their mean; an image for each class where the model takes labels."""
    if source.latent < 2:
        fail("--manifold needs a z of at least two dimensions; try --traverse")
    mean, deviation = spread(source)
    units = most_active(source.model, deviation)[:2].sort().values
    side = 2 * args.steps
    places = places_on_axis(side, args.uniform)
    grid = torch.cartesian_prod(places.flip(0), places).flip(1)   # z_1 to the right, z_2 upwards
    if args.uniform is None:
        grid = mean[units] + deviation[units] * grid
    z = mean.repeat(len(grid), 1)
    z[:, units] = grid

    for label in chosen_labels(source, range(len(source.names))):
        name = "manifold" if args.uniform is None else "uniform"
        if source.model.classes > 0:
            name = f"{name}_{file_name(source, label)}"
        images = draw(source.model, z, torch.full((len(z),), label), args)
        save_images(args, name, images, side)


def traverse(source, args):
    """--traverse: one row per most active latent unit, from -3 to 3 standard deviations."""
    mean, deviation = spread(source)
    units = most_active(source.model, deviation)[:10].tolist()
    z = mean.repeat(len(units), args.steps, 1)   # (units, steps, latent)
    for row, unit in enumerate(units):
        z[row, :, unit] += deviation[unit] * torch.linspace(-3, 3, args.steps)
    z = z.flatten(0, 1)
    images = draw(source.model, z, torch.full((len(z),), source.label or 0), args)
    name = "traverse"
    if source.label is not None:
        name = f"traverse_{file_name(source, source.label)}"
    save_images(args, name, images, args.steps, [f"z {unit + 1}" for unit in units])


def evenly(n, data, flag):
    """Indices of n test images from the first to the last: they may be stored class by class."""
    if n > len(data.x_test):
        fail(f"{flag} {n}: there are {len(data.x_test)} test images")
    return torch.linspace(0, len(data.x_test) - 1, n).long()


def reconstruct(source, args):
    """--reconstruct N: test images, what each model makes of them, and the absolute difference."""
    n, data = args.reconstruct, source.data
    index = evenly(n, data, "--reconstruct")
    x, y = data.x_test[index] / 255, data.y_test[index]
    rows = {"original": x.cpu()}
    differences = {}
    for model in source.models.values():
        mu, _ = model.encode(x, y)
        rows[model.name] = draw(model, mu, y, args)
        differences[model.name] = (rows[model.name] - x.cpu()).abs()

    columns = min(n, args.columns)
    parts, names = [], []
    for start in range(0, n, columns):   # as many images as fit side by side, then the next ones
        for name, images in rows.items():
            parts.append(filled_row(images, start, columns))
            names.append(name)
            if name in differences:
                parts.append(filled_row(differences[name], start, columns))
                names.append("difference")
    save_images(args, f"reconstruction_of_{n}", torch.cat(parts), columns, names)


def filled_row(images, start, columns):
    """`columns` images from `start` on, white where none is left."""
    part = images[start:start + columns]
    white = torch.ones(columns - len(part), *images.shape[1:])
    return torch.cat([part, white])


def tsne(source, args):
    """--tsne N: a map of the codes of N test images that keeps neighbours together."""
    need_package("sklearn", "scikit-learn", "--tsne")
    need_package("matplotlib", "matplotlib", "--tsne")
    from sklearn.manifold import TSNE
    n, total = args.tsne, len(source.data.x_test)
    if not 5 <= n <= total:
        fail(f"--tsne {n}: use 5 to {total}, the number of test images")
    if source.latent < 2:
        fail("--tsne needs a z of at least two dimensions; try --samples 64")
    index = evenly(n, source.data, "--tsne")
    mu = source.posteriors[0][index]
    check_codes(mu, 5, "--tsne")
    method = TSNE(perplexity=min(30, (n - 1) / 3), init="pca", random_state=args.seed)
    points = method.fit_transform(mu.numpy())
    save_map(args, f"tsne_{n}", points, source.data, index, "t-SNE of mu")


def check_codes(mu, least, flag):
    """End the program unless codes (N, latent) are finite, and `least` of them differ: of equal
    ones there is no map, and scikit-learn's t-SNE crashes."""
    if not mu.isfinite().all():
        fail(f"{flag} needs finite codes, but the model's are not; the training has failed")
    spread = (mu - mu.mean(0)).abs().max()
    different = 1 if spread < 1e-15 else len(mu.unique(dim=0))   # its square would be 0
    if different < least:
        fail(f"{flag} needs at least {least} different codes, and {len(mu)} images have only "
             f"{different}; the model has collapsed, or the images are all alike")


def pca(source, args):
    """--pca: a map of the codes of all test images along their two main components."""
    need_package("sklearn", "scikit-learn", "--pca")
    need_package("matplotlib", "matplotlib", "--pca")
    from sklearn.decomposition import PCA
    total = len(source.data.x_test)
    if source.latent < 2 or total < 2:
        fail("--pca needs a z of at least two dimensions and two test images; try --samples 64")
    mu = source.posteriors[0]
    check_codes(mu, 2, "--pca")
    method = PCA(2).fit(mu.numpy())
    share = method.explained_variance_ratio_.sum()
    title = f"two main components of mu, {share:.0%} of its variance"
    save_map(args, "pca", method.transform(mu.numpy()), source.data, torch.arange(total), title)


def scatter(source, args):
    """--scatter: the codes of all test images, of a z with two dimensions."""
    need_package("matplotlib", "matplotlib", "--scatter")
    if source.latent != 2:
        other = "--pca" if source.latent > 2 else "--samples 64"
        fail(f"--scatter needs a z of two dimensions, not {source.latent}; try {other}")
    means = {}
    for model in source.models.values():
        means[model.name], _ = codes(model, source.data)
    path = args.out / "scatter.png"
    save_latent(path, means, source.data, source.model.args)
    tell(f"{path}")


def need_package(module, package, flag):
    """End the program if an optional package, imported as `module`, is not installed."""
    try:
        importlib.import_module(module)
    except ImportError:
        fail(f"{flag} needs {package}, which is not installed; pip install {package}")


def gif(source, args):
    """--gif: samples.gif over all epochs, or over the checkpoints that a GAN kept; latent.gif, too,
    if z has two dimensions."""
    files = kept_checkpoints(source)
    with_map = source.latent == 2 and source.model.has_encoder
    if with_map:
        with_map = has_package("matplotlib", "latent.gif")
    z, y = draw_codes(source, range(64), source.label, args.seed)
    sample_pages, map_pages = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for epoch, file in enumerate(files, 1):
            with contextlib.redirect_stdout(io.StringIO()):   # what it warns of was said before
                _, _, models = load_models(file, source.device)
            model = models[""]
            page = Path(scratch, f"samples_{epoch}.png")
            save_grid(page, enlarge(draw(model, z, y, args), args.scale), args.columns)
            sample_pages.append(page)
            if with_map:
                mu, _ = codes(model, source.data)
                page = Path(scratch, f"latent_{epoch}.png")
                save_latent(page, {f"epoch {epoch}": mu}, source.data, model.args)
                map_pages.append(page)
        save_gif(args, "samples.gif", sample_pages)
        if with_map:
            save_gif(args, "latent.gif", map_pages)


def kept_checkpoints(source):
    """The checkpoints of all epochs in their order, or those that a run by iterations kept."""
    files = {}
    for file in source.folder.glob("checkpoint_*.pt"):
        step = file.stem.removeprefix("checkpoint_")
        if re.fullmatch("[0-9]{1,18}", step):   # not checkpoint_old.pt, say
            files[int(step)] = file
    steps = sorted(files)
    by_epoch = hasattr(source.model.args, "epochs")
    if len(steps) < 2 or (by_epoch and steps != list(range(1, len(steps) + 1))):
        fail(f"--gif needs a checkpoint of every epoch, and {source.folder} has {len(steps)}; "
             "train with --save-every 1")
    return [files[step] for step in steps]


def explore(source, args):
    """--explore: a page for the browser in which the decoder runs."""
    if source.latent < 2:
        fail("--explore needs a z of at least two dimensions; try --samples 64")
    units = most_active(source.model, torch.ones(source.latent)).tolist()
    path = args.out / "explorer.html"
    save_explorer(path, source.models, source.card, units, source.script)
    tell(f"{path}")


# --------------------------------------------------------------------------------- flags and main

DRAW = {
    "samples": samples,
    "classes": classes,
    "interpolate": interpolate,
    "digits": interpolate,
    "manifold": manifold,
    "traverse": traverse,
    "reconstruct": reconstruct,
    "tsne": tsne,
    "pca": pca,
    "scatter": scatter,
    "explore": explore,
    "gif": gif,
}
NEED_ENCODER = ("digits", "reconstruct", "tsne", "pca", "scatter")
NEED_DECODER = ("manifold", "traverse", "explore")


def flags():
    parser = Parser(__file__, __doc__, usage="RUN [flags]")
    count = number(int, 1)
    parser.add_argument("run", type=path_text, metavar="RUN", help="run folder or checkpoint")
    group = parser.add_argument_group("what to draw")
    only = group.add_mutually_exclusive_group()
    only.add_argument("--samples", type=count, metavar="N",
                      help="from the prior (default: 64); an autoencoder has none: from a Gaussian "
                      "fitted to its codes")
    only.add_argument("--classes", action="store_true", help="samples, one class per row")
    only.add_argument("--interpolate", type=number(int, 0), nargs=2, metavar=("A", "B"),
                      help="from test image A to B, straight and on a sphere; GAN: seeds")
    only.add_argument("--digits", nargs=2, metavar=("A", "B"),
                      help="the same between the images nearest to two class means")
    only.add_argument("--manifold", action="store_true",
                      help="the latent plane by the quantiles of the prior, for each class")
    only.add_argument("--traverse", action="store_true",
                      help="one row per most active latent unit, from -3 to 3 deviations")
    only.add_argument("--reconstruct", type=count, metavar="N",
                      help="test images, their reconstructions, the difference")
    only.add_argument("--tsne", type=count, metavar="N",
                      help="t-SNE map of the codes of N test images")
    only.add_argument("--pca", action="store_true",
                      help="map of the codes, two main components")
    only.add_argument("--scatter", action="store_true", help="the codes of a two-dimensional z")
    only.add_argument("--explore", action="store_true",
                      help="a page for the browser to move through latent space")
    group.add_argument("--gif", action="store_true",
                       help="samples over the epochs of a run with --save-every 1; or the way of "
                       "--interpolate")
    group = parser.add_argument_group("how")
    group.add_argument("--digit", "--class", dest="label", metavar="NAME",
                       help="samples, plane or rows of this class")
    group.add_argument("--uniform", type=number(float, -math.inf, above=True), nargs=2,
                       metavar=("LO", "HI"), help="the plane of --manifold in even steps")
    group.add_argument("--steps", type=number(int, 2), default=10, metavar="N",
                       help="images of an interpolation or a row")
    group.add_argument("--show", choices=("mean", "sample"), default="mean", help="of p(x|z)")
    group.add_argument("--seed", type=number(int, 0), default=1, metavar="N",
                       help="of the samples")
    group.add_argument("--columns", type=count, default=8, metavar="N",
                       help="images in a row of samples")
    group.add_argument("--scale", type=count, default=1, metavar="N",
                       help="enlarge images by this factor")
    group = parser.add_argument_group("where")
    group.add_argument("--out", type=path_text, metavar="DIR",
                       help="folder (default: the run's own; pictures for a file in no run)")
    group.add_argument("--dataset", type=path_text, metavar="NAME|PATH",
                       help="the run's data set, where it was moved or renamed since")
    group.add_argument("--data", type=path_text, metavar="DIR",
                       help="folder of the named data sets (default: the run's)")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto")
    return parser


def requested(args):
    """The key of DRAW that the flags ask for."""
    kind = None
    for name in DRAW:
        if name != "gif" and getattr(args, name):
            kind = name
    if args.uniform is not None:
        if kind not in (None, "manifold"):
            fail(f"--uniform goes with --manifold, not with --{kind}; remove it")
        kind = "manifold"
    if args.gif and kind != "interpolate":
        if kind is not None:
            fail(f"--gif goes alone or with --interpolate, not with --{kind}; remove it")
        kind = "gif"
    return kind or "samples"


def check_model(source, args, kind):
    """End the program if this model cannot draw what the flags ask for."""
    model = source.model
    if not model.has_encoder and (kind in NEED_ENCODER or model.is_autoencoder):
        fail(f"--{kind} needs codes of images, but the model of {source.script} has no encode(); "
             "try --samples 64")
    if kind in NEED_DECODER and not model.has_likelihood:
        fail(f"--{kind} needs p(x|z), but the model of {source.script} has no decode(); "
             "try --samples 64")
    if args.show == "sample" and not model.has_likelihood:
        fail(f"--show sample needs p(x|z), but the model of {source.script} has no decode(); "
             "remove it")

    by_class = kind == "classes" or source.label is not None
    if by_class and model.classes == 0 and not model.has_encoder:
        remedy = "try --samples 64"
        if hasattr(model.args, "conditional"):
            remedy = "train with --conditional"
        fail(f"the model of {source.script} takes no labels, so that no class can be asked for; "
             f"{remedy}")

    takes_label = ["samples", "gif"]
    if model.classes > 0:
        takes_label += ["interpolate", "digits", "manifold", "traverse"]
    if source.label is not None and kind not in takes_label:
        fail(f"--class cannot be combined with --{kind} of this {model.name}; remove it")


def make_folder(folder):
    """End the program before all the work if the folder cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        fail(f"--out {folder}: {error.strerror}; use a folder that can be written")


@guarded
def main(argv=(), **overrides):
    """Draw what the flags ask for: main([RUN, "--samples=8"]) or main([RUN], samples=8)."""
    args = parse(flags(), argv, overrides)
    try:
        draw_requested(args)
    except KeyboardInterrupt:
        tell("stopped", sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:   # a full disk, say
        fail(f"{error.filename or args.out}: {error.strerror or error}", status=1)


def draw_requested(args):
    """Check what the flags ask for, then do it."""
    kind = requested(args)
    source = Source(args)
    check_model(source, args, kind)

    if args.out is None:
        in_run = (source.folder / "args.txt").exists()
        args.out = source.folder if in_run else "pictures"
    args.out = Path(args.out)
    make_folder(args.out)
    DRAW[kind](source, args)


if __name__ == "__main__":
    main(sys.argv[1:])
