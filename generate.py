"""Images from a trained model: a run or a checkpoint of vae.py, cvae.py, gan.py, flow.py or a copy.

    python generate.py results/vae-MNIST                         # 64 samples from the prior
    python generate.py results/cvae-MNIST --digit 9              # samples of one class
    python generate.py results/cvae-MNIST --sweep angle          # of a run with --rotate
    python generate.py results/vae-MNIST --interpolate 0 7       # between two test images
    python generate.py results/models/cvae-mnist.pt --classes    # a model that needs no data
    python generate.py results/flow-MNIST --temperature 0.7      # cleaner samples, less varied
    python generate.py results/cvae-MNIST --explore              # a page to move around in

Sample i has a seed of its own: it is the same in a grid of 8 and of 800.
"""
import ctrl_c  # without a traceback, even during these imports
import argparse
import contextlib
import functools
import importlib
import io
import math
import os
import re
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.distributions import Bernoulli, Normal

from common import (
    add_key,
    batches,
    binarize,
    decode_numbers,
    fail,
    fitted_gaussian,
    gaussian_kl,
    has_package,
    in_words,
    printable,
    save_grid,
    save_latent,
    scatter_by_class,
    shortened,
    spherical,
    straight,
    tell,
    write_figure,
    write_whole,
)
from readers import is_at_hand, load_data
from run import (
    Parser,
    check_kind_of_data,
    check_split,
    data_options,
    guarded,
    is_other_data,
    load_models,
    make_folder,
    number,
    own_loss_terms,
    parse,
    path_text,
    pick_device,
    run_folder,
)
from tools.explorer import Dots, save_explorer

SEED_STEP = 1_000_003   # from the seeds of one --seed to those of the next


# --------------------------------------------------------------------------------------- source

class Source:
    """A trained model and what its images need; the data are read only if an image asks for them.

    models: {prefix: run.Trained}, of which `model` is the one that is not the twin; label: the
    index of --class, or None; settings: the values of --angle and --set, {name: value}.
    """

    def __init__(self, args):
        self.device = pick_device(args.device)
        self.checkpoint, self.module, self.models = load_models(args.run, self.device)
        self.script = f"{self.checkpoint['script']}.py"
        self.card = self.checkpoint["data"]          # name, shape and classes of the data
        self.names = self.card["classes"]            # of the classes
        self.model = self.models[""]
        self.latent = self.model.latent
        self.folder = run_folder(args.run)
        self.dataset = args.dataset or self.model.args.dataset
        self.data_folder = args.data or self.model.args.data
        self.fitted = args.fitted
        self.label = None
        if args.label is not None:
            self.label = self.index_of("--class", args.label)
        self.settings = dict(args.set or [])
        if args.angle is not None:
            self.settings["angle"] = args.angle
        for name, value in self.settings.items():
            index = self.index_of_condition("--angle" if name == "angle" else "--set", name)
            self.model.values[index] = value

    def index_of(self, flag, name):
        """The label of a class that a flag names; ends the program if there is none."""
        if name not in self.names:
            known = [on_page(other) for other in self.names[:20]]
            if len(self.names) > 20:
                known.append("...")
            fail(f"{flag} {on_page(name)}: the classes are {', '.join(known) or 'none'}")
        return self.names.index(name)

    def index_of_condition(self, flag, name):
        """Which of the model's conditions a flag names; ends the program if it has none."""
        known = [condition.name for condition in self.model.conditions]
        if name not in known:
            has = f"is told {', '.join(known)}" if known else "is told no condition"
            fail(f"{flag}: the {self.model.name} of {self.script} {has}, and not "
                 f"{on_page(name)}; train one with cvae.py --rotate 90, or on an .npz with c_train")
        return known.index(name)

    def settings_in_words(self):
        """"angle 30°", or "" where no condition is set."""
        words = []
        for condition, value in zip(self.model.conditions, self.model.values, strict=True):
            if condition.name in self.settings:
                words.append(f"{condition.name} {in_words(condition, value.item())}")
        return ", ".join(words)

    def label_in_name(self):
        """"_3" for a file name; "" without --class."""
        return "" if self.label is None else f"_{file_name(self, self.label)}"

    def settings_in_name(self):
        """"_angle30" for a file name; "" where no condition is set."""
        parts = []
        for name, value in self.settings.items():
            parts.append(f"_{harmless(name)}{value:g}")
        return "".join(parts)

    @functools.cached_property
    def data(self):
        """The data of the run, as the model saw them."""
        args = self.model.args
        check_split(self.checkpoint, self.dataset)
        data = load_data(self.dataset, self.data_folder, self.device, **data_options(args))
        check_kind_of_data(self.card, data, self.dataset)
        data = binarize(data, args)
        if is_other_data(self.card, data):
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
            tell(f"note: the KL of {self.script} is not the closed form of that to N(0, I), from "
                 "which samples are drawn; if it has another prior, give it a method prior()")
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
        terms = own_loss_terms(source.module, model.model, x, model.as_condition(y), eps)
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

    z comes from the prior or, with --fitted, from a Gaussian fitted to codes. An autoencoder has no
    prior, and that of a model without labels does not know of classes: they need the latter.
    """
    classes = source.model.classes
    if classes > 0 and label is None:
        labels = [i % classes for i in indices]
    elif classes > 0:
        labels = [label for _ in indices]
    else:
        labels = [0 for _ in indices]

    fitted = source.fitted or source.model.is_autoencoder
    if label is not None and classes == 0:
        fitted = True
    if not fitted and source.prior is not None:
        z = [seeded_sample(source.prior, seed * SEED_STEP + i) for i in indices]
        return torch.stack(z), torch.tensor(labels)

    z = noise(indices, source.latent, seed)
    if fitted:
        gaussians = {}
        for row in range(len(z)):
            own = labels[row] if classes > 0 else label
            if own not in gaussians:
                gaussians[own] = class_gaussian(source, own)
            z[row] = gaussians[own].mean + gaussians[own].scale_tril @ z[row]
    return z, torch.tensor(labels)


def class_gaussian(source, label):
    """The Gaussian fitted to the codes of the test images of a class, or of all of them if `label`
    is None: a distribution over z (latent,)."""
    mu, logvar = source.posteriors
    if label is not None:
        keep = source.data.y_test.cpu() == label
        if not keep.any():
            fail(f"no test image is of class {on_page(source.names[label])}, to whose codes a "
                 "Gaussian is fitted; use another --class")
        mu, logvar = mu[keep], logvar[keep]
    if source.model.is_autoencoder:   # whose codes are points
        logvar = None
    return fitted_gaussian(mu, logvar)


def spread(source):
    """Mean and standard deviation of z, (latent,) each: of the prior, or of an autoencoder's
    codes."""
    if source.model.is_autoencoder:
        gaussian = class_gaussian(source, None)
        return gaussian.mean, gaussian.stddev
    if source.prior is None:
        return torch.zeros(source.latent), torch.ones(source.latent)
    try:
        return source.prior.mean.cpu(), source.prior.stddev.cpu()
    except NotImplementedError:   # not every distribution knows them
        fail(f"the prior of {source.script} does not tell its mean and stddev; try --samples 64")


def codes(model, data):
    """mu and logvar of all test images, (N, latent) each, on the CPU."""
    mus, logvars = [], []
    for x, c in batches(data.x_test, data.c_test, 1000, shuffle=False):
        mu, logvar = model.encode(x, c)
        mus.append(mu.cpu())
        logvars.append(logvar.cpu())
    return torch.cat(mus), torch.cat(logvars)


def draw(model, z, y, args):
    """Codes z (B, latent), labels (B,) or vectors (B, n_c) y -> images (B, C, H, W) on the CPU: the
    mean of p(x|z,y) or, with --show sample, a draw from it."""
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
    if not isinstance(first, nn.Linear) or first.in_features != latent + model.n_c:
        return torch.arange(latent)
    weight = first.weight[:, :latent].cpu()   # those of z; those of the condition follow
    return (weight.norm(dim=0) * deviation).argsort(descending=True)


def places_on_axis(steps, span=None):
    """Places along an axis of the latent plane, (steps,): the quantiles of N(0, 1) in the middle
    of equal shares, or even steps over `span`."""
    if span is not None:
        return torch.linspace(span[0], span[1], steps)
    return torch.special.ndtri((torch.arange(steps) + 0.5) / steps)


# ----------------------------------------------------------------------------------------- files

def harmless(name):
    """A name as a part of a file name: short, of harmless characters."""
    return re.sub(r"[^\w.-]+", "-", name)[:40]


def file_name(source, label):
    """A class as a part of a file name: short, of harmless characters, and like no other's.

    A class may be called T-shirt/top, which is no file name, or a million characters.
    """
    names = [harmless(name) for name in source.names]
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


def save_images(args, name, images, columns, **texts):
    """Write images (N, C, H, W) as NAME.png; texts: names of rows, heads of columns, title."""
    path = args.out / f"{name}.png"
    save_grid(path, enlarge(images, args.scale), columns, **texts)
    tell(f"{path}")


def save_map(args, name, points, data, index, title):
    """Write points (n, 2) as NAME.png, coloured by the labels of the test images `index`."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    y = data.y_test[index].cpu()
    dots = scatter_by_class(axes, torch.as_tensor(points), y, data.classes)
    add_key(axes, dots, y, data.classes)
    axes.set(title=title, xticks=[], yticks=[])
    path = args.out / f"{name}.png"
    write_figure(path, figure)
    tell(f"{path}")


def save_frame(path, args, images, columns, title):
    """Write images (N, C, H, W) as a page of a film, at least 256 pixels wide."""
    images = enlarge(images, args.scale)
    n = math.ceil(256 / (columns * images.shape[3]))
    images = images.repeat_interleave(n, 2).repeat_interleave(n, 3)
    save_grid(path, images, columns, title=title)


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
    """--samples N: from the prior, or as draw_codes says."""
    n = args.samples or 64
    z, y = draw_codes(source, range(n), source.label, args.seed)
    name = f"samples{source.label_in_name()}_{n}"
    name += fitted_in_name(source) + source.settings_in_name() + temperature_in_name(args)
    save_images(args, name, draw(source.model, args.temperature * z, y, args), args.columns,
                title=source.settings_in_words())


def fitted_in_name(source):
    """"_fitted" for a file name with --fitted; nothing without."""
    return "_fitted" if source.fitted else ""


def temperature_in_name(args):
    """"_t0.7" for a file name; nothing at temperature 1."""
    return "" if args.temperature == 1 else f"_t{args.temperature:g}"


def classes(source, args):
    """--classes: samples, one class per row, with the same noise in every row."""
    if len(source.names) < 2:
        fail("--classes needs a model of labelled data; try --samples 64")
    zs, ys = [], []
    for label in range(len(source.names)):
        z, y = draw_codes(source, range(args.columns), label, args.seed)
        zs.append(z)
        ys.append(y)
    images = draw(source.model, args.temperature * torch.cat(zs), torch.cat(ys), args)
    name = f"classes{fitted_in_name(source)}{source.settings_in_name()}{temperature_in_name(args)}"
    save_images(args, name, images, args.columns, names=source.names,
                title=source.settings_in_words())


def sweep(source, args):
    """--sweep NAME: a condition from its least to its greatest value, one class per row, all at one
    z: as a strip, and as a film."""
    index = source.index_of_condition("--sweep", args.sweep)
    condition = source.model.conditions[index]
    labels = chosen_labels(source, range(len(source.names)))
    z, names = [], []
    for label in labels:
        has_label = source.model.classes > 0
        own_z, _ = draw_codes(source, [0], label if has_label else source.label, args.seed)
        z.append(own_z)
        if has_label:
            names.append(source.names[label])
    z, y = torch.cat(z), torch.tensor(labels)

    name = f"sweep_{harmless(condition.name)}{source.label_in_name()}"

    places = torch.linspace(condition.low, condition.high, args.steps).tolist()
    columns = images_at(source, index, places, z, y, args)
    rows = torch.stack(columns, dim=1).flatten(0, 1)   # class by class
    heads = [in_words(condition, place) for place in places]
    save_images(args, name, rows, args.steps, names=names, heads=heads, title=condition.name)

    places = torch.linspace(condition.low, condition.high, 3 * args.steps).tolist()
    titles = [f"{condition.name} {in_words(condition, place)}" for place in places]
    save_walk(args, f"{name}.gif", images_at(source, index, places, z, y, args), titles)


def images_at(source, index, places, z, y, args):
    """[images (B, C, H, W), ...] of codes z and labels y, for each place of condition `index`."""
    images = []
    for place in places:
        source.model.values[index] = place
        images.append(draw(source.model, z, y, args))
    return images


def interpolate(source, args):
    """--interpolate A B, --digits A B: from one test image to another, with the images at both
    ends; of a GAN, which has no codes of images, between the codes of samples A and B."""
    model = source.model
    if model.has_encoder or model.is_flow:
        a, b = end_images(source, args)
        x, y = source.data.x_test[[a, b]] / 255, source.data.y_test[[a, b]]
        told = source.data.c_test[[a, b]]
        ends = end_codes(source, x, told)
        x = x.cpu()
        labels = list(dict.fromkeys(y.tolist()))   # a CVAE goes the way with both; a film, with A's
        taken = f"{image_in_words(source.data, a)}, to {image_in_words(source.data, b)}"
    else:
        a, b = args.interpolate
        ends, _ = draw_codes(source, [a, b], None, args.seed)
        x = torch.empty(0, *source.card["shape"])
        labels, told = [0], None
        taken = f"sample {a} to sample {b} of --seed {args.seed}"
    told = told_on_way(source, labels, told)
    name = f"interpolation_{a}_{b}"
    if args.digits is not None:
        first = source.index_of("--digits", args.digits[0])
        last = source.index_of("--digits", args.digits[1])
        name = f"interpolation_of_{file_name(source, first)}_{file_name(source, last)}"
    name += source.label_in_name() + source.settings_in_name()

    if args.gif:
        if model.is_flow:
            ends = end_codes(source, x, told[0].repeat_interleave(2, 0))
        z = spherical(ends[0], ends[1], args.steps)
        images = draw(model, z, told[0].repeat_interleave(args.steps, 0), args)
        words = told_in_words(source, told[0])
        titles = [", ".join([f"step {i + 1} of {args.steps}", *words]) for i in range(args.steps)]
        save_walk(args, f"{name}.gif", images.split(1), titles)
        tell(f"from {taken}")
        return

    rows, names = [], []
    for c in told:
        if model.is_flow:   # with the label of the whole row it gives both ends back
            ends = end_codes(source, x, c.repeat_interleave(2, 0))
        for way in (straight, spherical):
            z = way(ends[0], ends[1], args.steps)
            images = draw(model, z, c.repeat_interleave(args.steps, 0), args)
            rows.append(torch.cat([x[:1], images, x[1:]]))
            names.append(", ".join([way.__name__, *told_in_words(source, c)]))
    save_images(args, name, torch.cat(rows), len(rows[0]), names=names, title=f"from {taken}")
    tell(f"from {taken}")


def told_on_way(source, labels, c):
    """What a model is told along the ways of an interpolation, (1,) or (1, n_c) each: what --class,
    --angle and --set say, or else all that it is told of one end, and of the other.

    labels: of both ends; c: vectors (2, n_c) of them where it is told more than the label.
    """
    if not source.model.conditions or source.settings or source.label is not None:
        return [torch.tensor([label]) for label in chosen_labels(source, labels)]
    return list(c.cpu().split(1))


def told_in_words(source, c):
    """What a model is told, (1,) or (1, n_c), in a list of words: the class, "30°"."""
    model = source.model
    c = model.as_condition(c)
    if c.ndim == 1:
        return [source.names[c.item()]] if model.classes > 0 else []
    words = []
    if model.classes > 0:
        words.append(source.names[c[0, :model.classes].argmax().item()])
    values = decode_numbers(c[:, model.classes:], model.conditions)[0].tolist()
    for condition, value in zip(model.conditions, values, strict=True):
        words.append(in_words(condition, value))
    return words


def end_codes(source, x, y):
    """The codes of two images, (2, latent), on the CPU: the means of their posteriors, or exact."""
    x, y = x.to(source.device), y.to(source.device)
    if source.model.is_flow:
        return source.model.exact_codes(x, y).cpu()
    mu, _ = source.model.encode(x, y)
    return mu.cpu()


def image_in_words(data, index):
    """A test image and its class: "test image 7, a 9"."""
    words = f"test image {index}"
    if data.classes:
        name = on_page(data.classes[data.y_test[index]])
        article = "an" if name.lower().startswith(("a", "e", "i", "o", "u", "8")) else "a"
        words = f"{words}, {article} {name}"
    return words


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


def save_walk(args, name, frames, titles):
    """A film through frames, each of images (B, C, H, W), with a title each, there and back."""
    with tempfile.TemporaryDirectory() as scratch:
        pages = []
        for i, images in enumerate(frames):
            page = Path(scratch, f"{i}.png")
            save_frame(page, args, images, min(len(images), 5), titles[i])
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
    across = places
    upwards = places
    if args.uniform is None:
        across = mean[units[0]] + deviation[units[0]] * places
        upwards = mean[units[1]] + deviation[units[1]] * places
    z = mean.repeat(side * side, 1)
    z[:, units] = torch.cartesian_prod(upwards.flip(0), across).flip(1)

    title = plane_in_words(source, args, (units + 1).tolist(), (across, upwards))
    for label in chosen_labels(source, range(len(source.names))):
        name = "manifold" if args.uniform is None else "uniform"
        own_title = title
        if source.model.classes > 0:
            name = f"{name}_{file_name(source, label)}"
            own_title = f"class {on_page(source.names[label])}: {title}"
        if source.settings:
            own_title = f"{source.settings_in_words()}, {own_title}"
        images = draw(source.model, z, torch.full((len(z),), label), args)
        save_images(args, name + source.settings_in_name(), images, side,
                    names=values(upwards.flip(0)), heads=values(across), title=own_title)


def plane_in_words(source, args, numbers, axes):
    """What the two axes of a plane are: the numbers of their units of z, and the places on them."""
    across, upwards = axes
    title = (f"z {numbers[0]} from {across[0]:.2f} to {across[-1]:.2f} (to the right), "
             f"z {numbers[1]} from {upwards[0]:.2f} to {upwards[-1]:.2f} (upwards)")
    if args.uniform is not None:
        title += " in even steps"
    elif source.model.is_autoencoder:
        title += " by the quantiles of a Gaussian fitted to the codes"
    else:
        title += " by the quantiles of the prior"
    if source.latent > 2:
        title += f"; the other {source.latent - 2} units at their mean"
    return title


def values(places):
    """Numbers (n,) as the texts beside an axis."""
    return [f"{place:.2f}" for place in places.tolist()]


def traverse(source, args):
    """--traverse: one row per most active latent unit, from -3 to 3 standard deviations; the others
    stay as they are in a test image."""
    mean, deviation = spread(source)
    units = most_active(source.model, deviation)[:10].tolist()
    start, c, taken = start_of_traverse(source, args)
    places = torch.linspace(-3, 3, args.steps)
    z = start.repeat(len(units), args.steps, 1)   # (units, steps, latent)
    for row, unit in enumerate(units):
        z[row, :, unit] = mean[unit] + deviation[unit] * places
    z = z.flatten(0, 1)
    images = draw(source.model, z, c.repeat_interleave(len(z), 0), args)
    name = "traverse" + source.label_in_name() + source.settings_in_name()
    of_what = "codes" if source.model.is_autoencoder else "prior"
    title = (f"each row moves one unit of z from -3 to 3 standard deviations of the {of_what}; the "
             f"others stay as in {taken}")
    save_images(args, name, images, args.steps, names=[f"z {unit + 1}" for unit in units],
                heads=values(places), title=title)
    tell(f"from {taken}")


def start_of_traverse(source, args):
    """A code (latent,), what the model is told with it, (1,) or (1, n_c), and both in words: of the
    first test image, or the first of --class; drawn from the prior where the data are not here or
    the model has no encoder."""
    at_hand = is_at_hand(source.dataset, source.data_folder)
    if source.model.has_encoder and not at_hand:
        tell(f"note: {source.dataset} was not found in {source.data_folder}, so that no test image "
             "can be encoded; name the folder with --data")
    if not source.model.has_encoder or not at_hand:
        z, y = draw_codes(source, [0], source.label, args.seed)
        return z[0], y[:1], f"sample 0 of --seed {args.seed}"
    data = source.data
    index = 0
    if source.label is not None:
        own = (data.y_test == source.label).nonzero()[:, 0].tolist()
        if not own:
            fail(f"no test image is of class {on_page(source.names[source.label])}, to start from; "
                 "use another --class")
        index = own[0]
    x, c = data.x_test[[index]] / 255, data.c_test[[index]]
    mu, _ = source.model.encode(x, c)
    if source.settings:
        c = data.y_test[[index]]   # and the conditions that are set
    return mu[0].cpu(), c.cpu(), image_in_words(data, index)


def span(source, args):
    """--span S: the plane of the first two units of z in even steps, the others as in sample 0."""
    if source.latent < 2:
        fail("--span needs a z of at least two dimensions; try --samples 64")
    z, y = draw_codes(source, [0], source.label, args.seed)
    side = args.steps
    places = torch.linspace(-args.span, args.span, side)
    z = z.repeat(side * side, 1)
    z[:, :2] = torch.cartesian_prod(places, places)   # z 1 by row, z 2 along a row
    images = draw(source.model, z, y.repeat(len(z)), args)
    name = "span" + source.label_in_name()
    title = f"z 1 (downwards) and z 2 (to the right) from {-args.span:g} to {args.span:g}"
    if source.model.classes > 0:
        title = f"class {on_page(source.names[y.item()])}: {title}"
    if source.settings:
        title = f"{source.settings_in_words()}, {title}"
        name += source.settings_in_name()
    if source.latent > 2:
        title += f"; the other {source.latent - 2} units as in sample 0 of --seed {args.seed}"
    save_images(args, name, images, side, names=values(places), heads=values(places), title=title)


def evenly(n, data, flag):
    """Indices of n test images from the first to the last: they may be stored class by class."""
    if n > len(data.x_test):
        fail(f"{flag} {n}: there are {len(data.x_test)} test images")
    return torch.linspace(0, len(data.x_test) - 1, n).long()


def reconstruct(source, args):
    """--reconstruct N: test images, what each model makes of them, and the absolute difference."""
    n, data = args.reconstruct, source.data
    index = evenly(n, data, "--reconstruct")
    x, c = data.x_test[index] / 255, data.c_test[index]
    rows = {"original": x.cpu()}
    differences = {}
    for model in source.models.values():
        mu, _ = model.encode(x, c)
        rows[model.name] = draw(model, mu, c, args)
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
    save_images(args, f"reconstruction_of_{n}", torch.cat(parts), columns, names=names)


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
    if n > 500:   # fewer take seconds
        tell(f"placing {n} codes by t-SNE, some {n // 120} s on two cores")
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
    unit = "epoch" if hasattr(source.model.args, "epochs") else "iteration"
    files = kept_checkpoints(source)
    with_map = source.latent == 2 and source.model.has_encoder
    if with_map:
        with_map = has_package("matplotlib", "latent.gif")
    z, y = draw_codes(source, range(64), source.label, args.seed)
    z = args.temperature * z
    sample_pages, map_pages = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for step, file in files.items():
            with contextlib.redirect_stdout(io.StringIO()):   # what it warns of was said before
                _, _, models = load_models(file, source.device)
            model = models[""]
            model.values = source.model.values   # those of --angle and --set
            page = Path(scratch, f"samples_{step}.png")
            save_frame(page, args, draw(model, z, y, args), args.columns, f"{unit} {step}")
            sample_pages.append(page)
            if with_map:
                mu, _ = codes(model, source.data)
                page = Path(scratch, f"latent_{step}.png")
                save_latent(page, {f"{unit} {step}": mu}, source.data, model.args)
                map_pages.append(page)
        name = "samples" + source.label_in_name() + source.settings_in_name()
        save_gif(args, f"{name}{temperature_in_name(args)}.gif", sample_pages)
        if with_map:
            save_gif(args, "latent.gif", map_pages)


def kept_checkpoints(source):
    """{epoch: checkpoint} of all epochs in their order, or {iteration: ...} of those kept."""
    files = {}
    for file in source.folder.glob("checkpoint_*.pt"):
        step = file.stem.removeprefix("checkpoint_")
        if re.fullmatch("[0-9]{1,18}", step):   # not checkpoint_old.pt, say
            files[int(step)] = file
    steps = sorted(files)
    by_epoch = hasattr(source.model.args, "epochs")
    if len(steps) < 2 or (by_epoch and steps != list(range(1, len(steps) + 1))):
        every = "every epoch" if by_epoch else "two rows of the log or more"
        fail(f"--gif needs a checkpoint of {every}, and {source.folder} has {len(steps)}; train "
             "with --save-every 1")
    return {step: files[step] for step in steps}


def explore(source, args):
    """--explore: a page for the browser in which the decoder runs."""
    if source.latent < 2:
        fail("--explore needs a z of at least two dimensions; try --samples 64")
    units = most_active(source.model, torch.ones(source.latent)).tolist()
    in_run = (source.folder / "args.txt").exists()
    name = "explorer" if in_run else Path(args.run).stem   # a packed model may lie beside others
    path = args.out / f"{name}.html"
    save_explorer(path, source.models, source.card, units, source.script, explorer_dots(source))
    tell(f"{path}")


def explorer_dots(source):
    """Dots of up to 500 test images for --explore; None, and a line says why, where the data set
    is not at hand: the page can do without."""
    if not source.model.has_encoder:
        tell(f"note: the page shows no codes of test images: the model of {source.script} has no "
             "encode()")
        return None
    if not is_at_hand(source.dataset, source.data_folder):
        tell(f"note: the page shows no codes of test images: {source.dataset} was not found "
             f"(--data {source.data_folder}); name its place with --data or --dataset")
        return None
    data = source.data
    index = evenly(min(500, len(data.x_test)), data, "--explore")
    x, c = data.x_test[index] / 255, data.c_test[index]
    means = {}
    for prefix, model in source.models.items():
        means[prefix], _ = model.encode(x, c)
    return Dots(data.y_test[index], means)


# --------------------------------------------------------------------------------- flags and main

DRAW = {
    "samples": samples,
    "classes": classes,
    "sweep": sweep,
    "interpolate": interpolate,
    "digits": interpolate,
    "manifold": manifold,
    "traverse": traverse,
    "span": span,
    "reconstruct": reconstruct,
    "tsne": tsne,
    "pca": pca,
    "scatter": scatter,
    "explore": explore,
    "gif": gif,
}
NEED_ENCODER = ("digits", "reconstruct", "tsne", "pca", "scatter")
NEED_DECODER = ("manifold", "traverse", "explore", "sweep")
OWN_CONDITIONS = ("sweep", "reconstruct", "tsne", "pca", "scatter", "explore")   # of what they show
OF_A_FLOW = ("samples", "classes", "interpolate", "gif")


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
    only.add_argument("--sweep", metavar="NAME",
                      help="a condition, as angle, from end to end; and a GIF")
    only.add_argument("--interpolate", type=number(int, 0), nargs=2, metavar=("A", "B"),
                      help="from test image A to B, straight and on a sphere; GAN: seeds")
    only.add_argument("--digits", nargs=2, metavar=("A", "B"),
                      help="the same between the most typical of two classes")
    only.add_argument("--manifold", action="store_true",
                      help="the latent plane by the quantiles of the prior, for each class")
    only.add_argument("--traverse", action="store_true",
                      help="one row per most active latent unit, from -3 to 3 sigma")
    only.add_argument("--span", type=number(float, 0, above=True), metavar="S",
                      help="the plane of z 1 and z 2 from -S to S; of a GAN, too")
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
    group.add_argument("--fitted", action="store_true",
                       help="samples from a Gaussian fitted to the codes of each class")
    group.add_argument("--angle", type=number(float, -360), metavar="DEGREES",
                       help="of a run with --rotate")
    group.add_argument("--set", type=setting, action="append", metavar="NAME=VALUE",
                       help="another condition that it is told")
    group.add_argument("--uniform", type=number(float, -math.inf, above=True), nargs=2,
                       metavar=("LO", "HI"), help="the plane of --manifold in even steps")
    group.add_argument("--steps", type=number(int, 2), default=10, metavar="N",
                       help="images of an interpolation or a row")
    group.add_argument("--show", choices=("mean", "sample"), default="mean", help="of p(x|z)")
    group.add_argument("--temperature", type=number(float, 0), default=1.0, metavar="T",
                       help="of a flow: the standard deviation of z")
    group.add_argument("--seed", type=number(int, 0), default=1, metavar="N",
                       help="of the samples")
    group.add_argument("--columns", type=count, default=8, metavar="N",
                       help="images in a row of samples")
    group.add_argument("--scale", type=count, default=1, metavar="N",
                       help="enlarge images by this factor")
    group = parser.add_argument_group("where")
    group.add_argument("--out", type=path_text, metavar="DIR",
                       help="folder (default: the run's own; pictures/MODEL for a file in no run)")
    group.add_argument("--dataset", type=path_text, metavar="NAME|PATH",
                       help="the run's data set, where it was moved since")
    group.add_argument("--data", type=path_text, metavar="DIR",
                       help="folder of the named data sets (default: the run's)")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto")
    return parser


def setting(text):
    """The argparse type of --set: "slant=0.5" -> ("slant", 0.5)."""
    name, _, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name or not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, as in slant=0.5, not {text}")
    return name, number


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
    if model.is_flow and kind == "digits":
        fail("--digits looks for typical codes, which a flow does not have; name two test images "
             "instead, as in --interpolate 0 7")
    if model.is_flow and kind not in OF_A_FLOW:
        fail(f"--{kind} needs a code of a few numbers, and that of {source.script} has "
             f"{source.latent}, as many as an image; try --interpolate 0 7")
    if args.temperature != 1 and not model.is_flow:
        fail(f"--temperature is for flows, and the model of {source.script} is none; remove it")
    if args.temperature != 1 and kind == "interpolate":
        fail("--temperature is for samples, and --interpolate goes from image to image; remove it")
    if not model.has_encoder and (kind in NEED_ENCODER or model.is_autoencoder):
        fail(f"--{kind} needs codes of images, but the model of {source.script} has no encode(); "
             "try --samples 64")
    if kind in NEED_DECODER and not model.has_likelihood:
        fail(f"--{kind} needs p(x|z), but the model of {source.script} has no decode(); "
             "try --samples 64")
    if args.show == "sample" and not model.has_likelihood:
        fail(f"--show sample needs p(x|z), but the model of {source.script} has no decode(); "
             "remove it")

    if args.fitted and kind not in ("samples", "classes"):
        fail(f"--fitted is for --samples and --classes, not for --{kind}; remove it")
    if args.fitted and not model.has_encoder:
        fail(f"--fitted needs codes of images, but the model of {source.script} has no encode(); "
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
        takes_label += ["interpolate", "digits", "manifold", "traverse", "span", "sweep"]
    if source.settings and kind in OWN_CONDITIONS:
        flag = "--set" if args.angle is None else "--angle"
        fail(f"{flag} cannot be combined with --{kind}; remove it")
    if source.label is not None and kind not in takes_label:
        fail(f"--class cannot be combined with --{kind} of this {model.name}; remove it")


def own_folder(source, path):
    """Where the pictures of a model go: no two models share a folder."""
    name = Path(path).stem
    if os.path.isdir(path) or name == "checkpoint":   # which is of the run as it is now
        name = source.folder.resolve().name
        if (source.folder / "args.txt").exists():
            return source.folder
    elif (source.folder / "args.txt").exists():
        return source.folder / name                   # an earlier state of the run
    return Path("pictures", name)


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

    args.out = Path(args.out or own_folder(source, args.run))
    make_folder(args.out)
    DRAW[kind](source, args)


if __name__ == "__main__":
    main(sys.argv[1:])
