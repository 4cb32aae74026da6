"""Numbers from finished runs: of one, what its log does not hold; of several, how they compare.

    python evaluate.py results/vae-MNIST                        # all but nll, in a minute or two
    python evaluate.py results/vae-MNIST --metrics nll          # an MLP: two minutes, two cores
    python evaluate.py results/vae-MNIST results/vae-MNIST-2    # a table and compare.png

The numbers by group; those of the twin in a run of cvae.py follow after `vae_`:

    elbo     test_loss = test_recon + test_kl, the negative ELBO, and active latent units: what the
             script's own evaluate() says. Where its loss is not the ELBO, a line says so. Of a
             flow test_loss and test_bpd
    mse      mean squared error of reconstructions, PSNR, and sigma where it is one number
    class    class_accuracy_1000: the share of 1,000 samples that a classifier, trained on blurred
             images, too, takes for the class asked for; of a model without labels the counts of
             each class and their entropy. class_accuracy_fitted_1000: the same with z from a
             Gaussian fitted to the codes of the class, here of training images (of test images by
             generate.py --fitted, or --digit of a VAE);
             class_kl: the KL of that Gaussian to N(0, I). reconstruction_accuracy_N: the share of N
             test images that keep their class. _each: the same by class
    fid kid  distance of N samples to N test images in the features named; _floor: of N training
             images, all there is to reach
    pr       precision and recall of N samples; _ceiling: of N training images (samples that are
             all blurred can be more precise, and scattered ones have more recall)
    nll      nll_is500: -log p(x) with 500 importance samples; nll_given_c_is500 of a model that is
             told an angle or other conditions. Of a CVAE told the label nll_given_y_is500 and, on
             1,000 images, that again, the marginal, which is at most -log p(y) higher, and how
             often argmax p(y|x), its classifier for free, is right. With Bernoulli pixels that are
             grey the name is grey_pixel_..., since that is the likelihood of nothing. Of a flow
             nll_exact, without samples (exact for the continuous image; for the image of 256
             levels a bound), the same as bpd_exact in bits per dimension and, of a conditional
             one, label_worth: the mean of log p(x|y) - log p(x), in nats

Distances and classes are those of the images as stored, even if the model saw them binarised.
"""
import ctrl_c  # without a traceback, even during these imports
import argparse
import csv
import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.distributions import Categorical, MultivariateNormal, kl_divergence

import metrics
from common import (
    as_in_training,
    batches,
    binarize,
    draw_eps,
    fail,
    fitted_gaussian,
    fixed_images,
    gaussian_kl,
    has_package,
    printable,
    shortened,
    show_second_half,
    tell,
    watched,
    write_figure,
    write_whole,
)
from readers import load_data
from run import (
    RETIRED,
    Parser,
    check_kind_of_data,
    check_split,
    data_options,
    decode,
    encode,
    guarded,
    is_other_data,
    likelihood_fault,
    load_models,
    make_folder,
    number,
    own_loss_terms,
    parse,
    path_text,
    pick_device,
    posterior_fault,
    read_log,
)

GROUPS = ("elbo", "mse", "class", "fid", "kid", "pr", "nll")
DISTANCES = ("fid", "kid", "pr")
FITTED = 1000   # training images of a class, at most, to whose codes a Gaussian is fitted


def flags():
    parser = Parser(__file__, __doc__, usage="RUN [RUN ...] [flags]")
    add = parser.add_argument
    add("runs", nargs="+", type=path_text, metavar="RUN",
        help="run folders; a single one may be a checkpoint")
    add("--metrics", type=groups, default=",".join(GROUPS[:-1]), metavar="GROUPS",
        help=f"all, or some of {','.join(GROUPS)}; nll takes minutes, or hours of a conv on a CPU")
    add("--nll-samples", type=number(int, 1), default=500, metavar="K",
        help="importance samples per image")
    add("--fid-features", type=path_text, default="classifier", metavar="NAME|FILE",
        help="classifier (of the data set), inception (one download), or a file of its weights")
    add("--temperature", type=number(float, 0), default=1.0, metavar="T",
        help="of the samples of a flow: the standard deviation of z; their numbers end in _tT")
    add("--dataset", type=path_text, metavar="NAME|PATH",
        help="the run's data set, where it was moved or renamed since")
    add("--data", type=path_text, metavar="DIR",
        help="folder of the named data sets (default: the run's)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto")
    add("--seed", type=number(int, 0), default=1, metavar="N", help="of samples and noise")
    add("--out", type=path_text, default="results", metavar="DIR",
        help="folder for compare.png and, in cache/, for classifiers")
    return parser


def groups(text):
    """The argparse type of --metrics: a list of GROUPS, in their order."""
    names = list(GROUPS) if text == "all" else text.split(",")
    for name in names:
        if name not in GROUPS:
            raise argparse.ArgumentTypeError(f"must be all, or some of {','.join(GROUPS)}")
    return [group for group in GROUPS if group in names]


# --------------------------------------------------------------------------------- of one run

@torch.no_grad()
def measure(checkpoint, module, models, args):
    """{name: number} of what load_models returned.

    The test images are those of the run. For the classifier and the floors all training images
    count, even if the run saw a subset.
    """
    first = models[""]     # its twin is of the same kind
    if args.temperature != 1 and not first.is_flow:
        fail(f"--temperature is for flows, and {checkpoint['script']}.py trains none; remove it")
    data = load_data_of_run(checkpoint, args)
    seen = binarize(data, first.args)   # as the models saw it
    note_changed_data(checkpoint, seen)
    reasons = impossible_groups(module, first, data)
    wanted = possible_groups(args.metrics, reasons)
    wanted_distances = [group for group in DISTANCES if group in wanted]
    can_reconstruct = "mse" not in reasons
    if can_reconstruct:
        note_other_loss(module, first, seen)

    measured = {}
    if "class" in wanted:
        classifier = metrics.trained_classifier(data, Path(args.out, "cache"), robust=True)
        measured[f"classifier_accuracy_{len(data.x_test)}"] = classifier.accuracy
    if wanted_distances:
        meter = DistanceMeter(wanted_distances, data, args)
        measured |= meter.bounds()

    for prefix, trained in models.items():
        row = {}
        quick = [group for group in wanted if group != "nll"]
        if quick:
            tell(f"measuring {', '.join(quick)} of the {trained.name}")
        if "elbo" in wanted:
            row |= elbo(module, trained, seen, checkpoint["epoch"])
        if "mse" in wanted:
            row |= errors(trained, seen)
        if "class" in wanted and can_reconstruct:
            row |= classes_of_reconstructions(classifier, trained, seen)
        if "class" in wanted and not trained.is_autoencoder:
            in_samples = classes_of_samples(classifier, trained, data, args)
            row |= with_temperature(in_samples, args)
        if "class" in wanted and can_reconstruct and not trained.conditions:
            row |= classes_of_fitted_samples(classifier, trained, seen, args.seed)
        if wanted_distances:
            distances = meter.distances(draw(trained, meter.labels, args.seed, args.temperature))
            row |= with_temperature(distances, args)
        if "nll" in wanted:
            row |= likelihoods(trained, seen, args)
        for name, value in row.items():
            measured[prefix + name] = value
    return measured


def load_data_of_run(checkpoint, args):
    """The data set of a run; ends the program unless it is still one for its model."""
    run_args = checkpoint["args"]
    if args.data is None:
        args.data = run_args["data"]
    dataset = args.dataset or run_args["dataset"]
    check_split(checkpoint, dataset)
    options = data_options(SimpleNamespace(**run_args)) | {"train_size": None}
    data = load_data(dataset, args.data, pick_device(args.device), **options)
    check_kind_of_data(checkpoint["data"], data, dataset)
    return data


def note_changed_data(checkpoint, data):
    """Print a line if these data, as the model sees them, are not those of the run. Where it saw a
    subset of the training images, the test images tell."""
    is_subset = checkpoint["args"]["train_size"] is not None
    if is_other_data(checkpoint["data"], data, test_only=is_subset):
        tell("note: the data have changed since this run was trained; the numbers are those of the "
             "data as they are now")


def impossible_groups(module, trained, data):
    """{group of numbers: why this model or its data do not have it}."""
    reasons = {}
    if not hasattr(module, "evaluate"):
        reasons["elbo"] = f"{script_file(module)} has no function evaluate"
    if trained.is_autoencoder:
        reasons |= dict.fromkeys(
            (*DISTANCES, "nll"), "an autoencoder has no prior to sample from and no likelihood")
    no_code = encoder_fault(trained, data)
    if trained.is_flow:
        reasons["mse"] = "a flow gives back every image as it was"
    elif no_code is not None:
        reasons |= dict.fromkeys(("mse", "nll"), no_code)
    no_image = decoder_fault(trained, data, no_code)
    if no_image is not None:
        reasons |= dict.fromkeys(("mse", "class", *DISTANCES, "nll"), no_image)
    if min(len(data.x_train), len(data.x_test)) < 4:
        reasons |= dict.fromkeys(DISTANCES, "it takes four images to train and to test")
    if not metrics.can_train_classifier(data):
        reasons["class"] = "it takes labels, and 100 training images per class"
    return reasons


def script_file(module):
    """my_vae.py, say."""
    return Path(module.__file__).name


def encoder_fault(trained, data):
    """Why images cannot be encoded; None if they can."""
    if not trained.has_encoder:
        return f"{trained.name} has no method encode"
    x, y = fixed_images(data, 1)
    return posterior_fault(trained.name, encode(trained.model, x, trained.as_condition(y)))


def decoder_fault(trained, data, no_code):
    """Why there are no images of the model; None if there are."""
    if not trained.has_likelihood:
        is_generator = hasattr(trained.model, "picture")
        return None if is_generator else f"{trained.name} has no method decode"
    if no_code is None:
        x, y = fixed_images(data, 1)
        mu, _ = trained.encode(x, y)
        return likelihood_fault(trained.name, decode(trained.model, mu, trained.as_condition(y)))
    return None


def possible_groups(wanted, reasons):
    """The wanted groups that can be had; a line for each of the others."""
    purposes = {"fid": "the Frechet distance", "kid": "the kernel distance"}   # of torchmetrics
    possible = []
    for group in wanted:
        if group in reasons:
            tell(f"{group} left out: {reasons[group]}")
        elif group not in purposes or has_package("torchmetrics", purposes[group]):
            possible.append(group)
    return possible


# ---------------------------------------------------------------------------------------- ELBO

def elbo(module, trained, data, epoch):
    """The test columns of the log, by the script's own evaluate(): a copy with another loss is
    measured as what it is."""
    row = module.evaluate(trained.model, data, epoch, trained.args)
    if trained.is_autoencoder:   # it has no KL
        row.pop("test_kl", None)
    return row


def note_other_loss(module, trained, data):
    """Print a line if the loss of the script is not the ELBO: recon + KL(q || N(0, I))."""
    x, y = fixed_images(data, 8)
    eps = draw_eps(x, trained.args, torch.Generator(x.device).manual_seed(0))
    mu, logvar = trained.encode(x, y)
    p = trained.decode(mu + torch.exp(0.5 * logvar) * eps, y)
    recon = -p.log_prob(x)
    kl = gaussian_kl(mu, logvar)
    if trained.is_autoencoder:
        kl = torch.zeros_like(kl)

    script = script_file(module)
    try:
        own_recon, own_kl, _ = own_loss_terms(module, trained.model, x, y, eps)
        same_recon, same_kl = is_close(own_recon, recon), is_close(own_kl, kl)
    except (AttributeError, TypeError, ValueError):   # a script may do without that function
        tell(f"note: {script} has no loss_terms as vae.py has; whether test_loss is the negative "
              "ELBO was not checked")
        return
    if same_recon and same_kl:
        return
    note = f"note: the loss of {script} is not recon + KL to N(0, I); test_loss is its own"
    if not same_kl and trained.prior() is None:
        note += "; samples and nll assume z ~ N(0, I), since the model has no method prior()"
    tell(note)


def is_close(a, b):
    """Whether two losses agree but for rounding."""
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------- reconstructions

def errors(trained, data):
    """Errors of the mean of p(x|z) at z = mu.

    mse: per pixel on [0, 1]; psnr = -10 log10 mse; sse_pm1: the squared error summed over an image
    with pixels in [-1, 1]; sigma: the standard deviation of p(x|z), where one number is learned.
    """
    squares = torch.zeros((), dtype=torch.float64)
    for x, c in batches(data.x_test, data.c_test, 1000, shuffle=False):
        mu, _ = trained.encode(x, c)
        squares += (trained.images(mu, c) - x).square().sum().cpu()
    mse = squares.item() / data.x_test.numel()
    psnr = math.inf if mse == 0 else -10 * math.log10(mse)
    row = {"mse": mse, "psnr": psnr, "sse_pm1": 4 * mse * x[0].numel()}
    log_sigma = getattr(trained.model, "log_sigma", None)
    if log_sigma is not None and log_sigma.numel() == 1:
        row["sigma"] = trained.decode(mu, c).stddev.flatten()[0].item()   # one for all pixels
    return row


def classes_of_reconstructions(classifier, trained, data):
    """The share of test images that keep their class, in all and by class.

    Their class is that of their label, not the one that the classifier takes the original for.
    """
    guesses = []
    for x, c in batches(data.x_test, data.c_test, 1000, shuffle=False):
        mu, _ = trained.encode(x, c)
        guesses.append(classifier(trained.images(mu, c)).argmax(1))
    name = f"reconstruction_accuracy_{len(data.x_test)}"
    return accuracies(name, torch.cat(guesses), data.y_test, len(data.classes))


def accuracies(name, guesses, labels, classes):
    """The share of right guesses, in all and by class (None for a class that does not occur)."""
    right = (guesses == labels).float()
    each = []
    for label in range(classes):
        of_label = right[labels == label]
        each.append(of_label.mean().item() if len(of_label) > 0 else None)
    return {name: right.mean().item(), f"{name}_each": each}


# ------------------------------------------------------------------------------------- samples

def with_temperature(row, args):
    """Numbers of samples by names that end in their temperature, if it is not 1."""
    if args.temperature == 1:
        return row
    named = {}
    for name, value in row.items():
        each = "_each" if name.endswith("_each") else ""
        named[f"{name.removesuffix('_each')}_t{args.temperature:g}{each}"] = value
    return named


def draw(trained, c, seed, temperature=1.0):
    """Batches of images of z ~ p(z), or at the temperature of a flow; c: labels (N,), or vectors
    (N, n_c), for a model that is told any."""
    parts = c.split(1000)
    prior = trained.prior()
    codes = []
    with metrics.seeded(seed):
        for y in parts:
            # On the CPU: the same everywhere.
            z = torch.randn(len(y), trained.latent) if prior is None else prior.sample((len(y),))
            codes.append(temperature * z.to(y.device))
    for z, y in zip(codes, parts, strict=True):
        yield trained.images(z, y)


def classes_of_samples(classifier, trained, data, args):
    """Of 1,000 samples: the share that is of the class asked for, in all and by class; of a model
    without labels the count of each class, and the entropy in nats, at most ln(classes)."""
    classes = len(data.classes)
    labels = torch.arange(1000, device=data.x_test.device) % classes
    c = labels
    if trained.conditions:   # as they are in the test set
        labels = metrics.subset(data.y_test, 1000)
        c = metrics.subset(data.c_test, 1000)
    guesses = [classifier(x).argmax(1) for x in draw(trained, c, args.seed, args.temperature)]
    guesses = torch.cat(guesses)
    if trained.classes > 0:
        return accuracies(f"class_accuracy_{len(labels)}", guesses, labels, classes)
    counts = guesses.bincount(minlength=classes)
    entropy = Categorical(counts.float()).entropy().item()
    n = len(labels)
    return {f"class_counts_{n}": counts.tolist(), f"class_entropy_{n}": entropy}


def classes_of_fitted_samples(classifier, trained, data, seed):
    """Of 1,000 samples whose z is not from the prior but from the Gaussian fitted to the codes of a
    class: the share that is of that class, in all and by class; and the KL of that Gaussian to
    N(0, I), in nats: how far the codes of a class are from the prior."""
    classes = len(data.classes)
    labels = torch.arange(1000) % classes
    z = torch.empty(1000, trained.latent)
    gaussians = []
    with metrics.seeded(seed):
        for label in range(classes):
            own = (data.y_train == label).nonzero()[:FITTED, 0]
            x = as_in_training(data.x_train[own] / 255, trained.args)
            mu, logvar = trained.encode(x, data.y_train[own])
            if trained.is_autoencoder:   # whose codes are points
                logvar = None
            gaussian = fitted_gaussian(mu, logvar)
            z[labels == label] = gaussian.sample(((labels == label).sum(),))
            gaussians.append(gaussian)
    device = data.x_test.device
    guesses = classifier(trained.images(z.to(device), labels.to(device))).argmax(1)
    row = accuracies("class_accuracy_fitted_1000", guesses.cpu(), labels, classes)
    if trained.is_autoencoder or trained.prior() is not None:   # N(0, I) is not its prior
        return row
    prior = MultivariateNormal(torch.zeros(trained.latent), torch.eye(trained.latent))
    kl = [kl_divergence(gaussian, prior).item() for gaussian in gaussians]
    return row | {"class_kl": sum(kl) / len(kl), "class_kl_each": kl}


class DistanceMeter:
    """Distances of images to N test images, in the features of one network: of N = 10,000 images,
    or as many as there are both for training and for testing.

    labels: what a conditional model is told of those test images; samples are drawn with it.
    """

    def __init__(self, wanted, data, args):
        self.wanted, self.data = wanted, data
        self.n = min(10_000, len(data.x_train), len(data.x_test))
        self.labels = metrics.subset(data.c_test, self.n)
        self.network_name, self.network = metrics.extractor(
            data, args.fid_features, args.data, Path(args.out, "cache"))
        self.real = self.features(metrics.image_batches(data.x_test, self.n))

    def features(self, images):
        """Batches of images -> their features (N, d)."""
        return torch.cat([self.network(x) for x in images])

    def distances(self, images):
        """{name: number} of the wanted groups, for batches of images."""
        protocol = f"{self.network_name}_{self.n}"
        fake = self.features(images)
        row = {}
        if "fid" in self.wanted:
            row[f"fid_{protocol}"] = metrics.frechet_distance(self.real, fake)
        if "kid" in self.wanted:
            row[f"kid_{protocol}"] = metrics.kernel_distance(self.real, fake)
        if "pr" in self.wanted:
            precision, recall = metrics.precision_recall(self.real, fake)
            row |= {f"precision_{protocol}": precision, f"recall_{protocol}": recall}
        return row

    def bounds(self):
        """The same of training images. Samples cannot be expected to be more like test images; but
        precision is higher where all are of the common kind, and recall where they are scattered,
        since the distance to the k-th neighbour is then large."""
        row = {}
        for name, value in self.distances(metrics.image_batches(self.data.x_train, self.n)).items():
            is_distance = name.startswith(("fid", "kid"))
            row[name + ("_floor" if is_distance else "_ceiling")] = value
        return row


# ---------------------------------------------------------------------------------- likelihood

def likelihoods(trained, data, args):
    """-log p(x|y) or, of a model without labels, -log p(x), in nats, the mean of all test images;
    of a CVAE further numbers on 1,000 of them."""
    if trained.is_flow:
        return exact_likelihoods(trained, data, args)
    noise = torch.Generator().manual_seed(args.seed)
    samples = args.nll_samples
    kind = likelihood_name(trained, data)
    nll = []
    steps = math.ceil(len(data.x_test) / 100)
    parts = batches(data.x_test, data.c_test, 100, shuffle=False)
    message = f"{trained.name}: nll, {samples} importance samples for each test image"
    for x, c in watched(parts, steps, message):
        nll.append(metrics.nll_is(trained, x, c, samples, noise))
    nll = torch.cat(nll).mean().item()
    if trained.conditions:
        return {f"{kind}_given_c_is{samples}": nll}
    if trained.classes == 0:
        return {f"{kind}_is{samples}": nll}

    x, y = metrics.subset(data.x_test, 1000) / 255, metrics.subset(data.y_test, 1000)
    log_given_y = metrics.class_log_likelihoods(trained, x, samples, noise)   # (N, classes)
    row = {f"{kind}_given_y_is{samples}": nll}
    return row | without_label(kind, f"is{samples}_{len(x)}", log_given_y, y, data)


def without_label(kind, protocol, log_given_y, y, data):
    """log p(x|y) of N images and every class, (N, classes), and their labels y -> {name: number}:
    the mean of -log p(x|y) and of -log p(x), and how often argmax p(y|x) is right."""
    shares = data.y_train.bincount(minlength=log_given_y.shape[1]) / len(data.y_train)
    log_joint = log_given_y + shares.log()                             # log p(x, y)
    log_given_own_y = log_given_y.gather(1, y[:, None])
    right = (log_joint.argmax(1) == y).float()
    return {f"{kind}_given_y_{protocol}": -log_given_own_y.mean().item(),
            f"{kind}_marginal_{protocol}": -log_joint.logsumexp(1).mean().item(),
            f"free_classifier_{protocol}": right.mean().item()}


def exact_likelihoods(trained, data, args):
    """The same of a flow, which needs no samples, and in bits per dimension."""
    noise = torch.Generator().manual_seed(args.seed)
    nll = []
    steps = math.ceil(len(data.x_test) / 100)
    parts = batches(data.x_test, data.y_test, 100, shuffle=False)
    for x, y in watched(parts, steps, f"{trained.name}: nll of each test image"):
        u = torch.rand(x.shape, generator=noise).to(x.device)
        nll.append(trained.nll_exact(x, y, u))
    nll = torch.cat(nll).mean().item()
    bpd = nll / (data.x_test[0].numel() * math.log(2))
    if trained.classes == 0:
        return {"nll_exact": nll, "bpd_exact": bpd}

    x, y = metrics.subset(data.x_test, 1000) / 255, metrics.subset(data.y_test, 1000)
    u = torch.rand(x.shape, generator=noise).to(x.device)              # the same for every class
    log_given_y = metrics.exact_class_log_likelihoods(trained, x, u)   # (N, classes)
    row = {"nll_given_y_exact": nll, "bpd_given_y_exact": bpd}
    protocol = f"exact_{len(x)}"
    row |= without_label("nll", protocol, log_given_y, y, data)
    gain = row[f"nll_marginal_{protocol}"] - row[f"nll_given_y_{protocol}"]
    return row | {f"label_worth_{protocol}": gain}


def likelihood_name(trained, data):
    """grey_pixel where pixels are Bernoulli in the model and grey in the data; else nll."""
    x, y = fixed_images(data, 1)
    mu, _ = trained.encode(x, y)
    if metrics.is_bernoulli(trained.decode(mu, y)) and any_grey(data):
        return "grey_pixel"   # a cross-entropy, which is the likelihood of nothing
    return "nll"


def any_grey(data):
    """Whether any pixel of the test images is neither black nor white."""
    for x, _ in batches(data.x_test, data.y_test, 1000, shuffle=False):
        if ((x > 0) & (x < 1)).any():
            return True
    return False


# ------------------------------------------------------------------------------ of several runs

def compare(runs, out):
    """Print the flags in which runs differ beside their last numbers; draw compare.png in `out`."""
    all_flags = [read_flags(run) for run in runs]
    logs = [read_whole_log(run) for run in runs]
    are_flows = all("test_bpd" in log[-1] for log in logs)
    columns = ("test_loss", "test_bpd")
    if not are_flows:
        columns = ("test_loss", "test_recon", "test_kl", "active")
    for run, log in zip(runs, logs, strict=True):
        if any(name not in log[-1] for name in columns):
            fail(f"{run} has no {', '.join(columns)} in its log; compare runs of vae.py and "
                 "cvae.py with each other, or runs of flow.py")

    differ = flags_that_differ(all_flags)
    lines = [["run", *differ, "epochs done", *columns, "seconds"]]
    for run, run_flags, log in zip(runs, all_flags, logs, strict=True):
        last = log[-1]
        values = [run_flags.get(flag, "-") for flag in differ]
        digits = 3 if are_flows else 2   # for bits per dimension
        numbers = ["" if last[name] is None else f"{last[name]:.{digits}f}" for name in columns]
        seconds = sum(row["seconds"] for row in log)
        lines.append([Path(run).name, *values, f"{last['epoch']:.0f}", *numbers, f"{seconds:.0f}"])
    print_aligned(lines, 1 + len(differ))
    if has_package("matplotlib", "compare.png"):
        usual = usual_values(all_flags, differ)
        names = names_in_figure(runs, all_flags, differ, usual)
        draw_panels = draw_flow_panels if are_flows else draw_vae_panels
        save_comparison(Path(out, "compare.png"), draw_panels, names, usual, logs)


def print_aligned(lines, n_texts):
    """Print lines of as many cells each in columns: the first n_texts to the left, and numbers."""
    widths = []
    for column in zip(*lines, strict=True):
        widths.append(max(len(cell) for cell in column))
    for line in lines:
        cells = []
        for i, cell in enumerate(line):
            cells.append(cell.ljust(widths[i]) if i < n_texts else cell.rjust(widths[i]))
        tell(" | ".join(cells))


def read_flags(run):
    """The flags of a run, {name: text}, from its args.txt."""
    file = Path(run, "args.txt")
    if not file.is_file():
        fail(f"{run} is not a run folder: it has no args.txt")
    if not Path(run, "log.csv").is_file():
        fail(f"{run} ended before its first epoch did; leave it out")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    command = re.match(r"# python (?:-m )?(\S+)", lines[0] if lines else "")
    settings = {"script": command[1]} if command else {}
    for line in lines:
        if line.startswith("--") and not RETIRED.match(line):
            name, equals, value = line.removeprefix("--").partition("=")
            settings[name] = value if equals else "on"
    # What the first edition did when there was no such flag.
    settings.setdefault("background", "white")
    if settings.get("arch", "mlp") == "mlp":
        settings.setdefault("layers", "1")
    return settings


def read_whole_log(run):
    """The rows of a run's log; ends the program with one line if it has none, or is broken."""
    file = Path(run, "log.csv")
    try:
        rows = read_log(run)
        whole = all(is_whole(row) for row in rows)
    except (OSError, ValueError, TypeError, csv.Error):
        whole = False
    if not whole:
        fail(f"{file} is damaged: it needs commas between columns, points in numbers, whole rows "
             "and no byte order mark, which a spreadsheet may have changed; restore it")
    if not rows:
        fail(f"{file} has no rows; leave {run} out")
    return rows


def is_whole(row):
    """Whether a row of a log has its step, its seconds, its losses and no cell without a column."""
    step = row.get("epoch", row.get("iteration"))
    if step is None or None in row:
        return False
    for name in ("seconds", "test_loss", "test_recon"):   # a KL may be missing: an autoencoder's
        if name in row and row[name] is None:
            return False
    return True


def flags_that_differ(all_flags):
    """Sorted names of the flags that are not the same in all runs and may change a number."""
    names = set()
    for run_flags in all_flags:
        names.update(run_flags)
    differ = []
    for name in sorted(names):
        values = {run_flags.get(name) for run_flags in all_flags}
        if len(values) > 1 and name not in ("data", "save-every", "tensorboard"):
            differ.append(name)
    return differ


def usual_values(all_flags, differ):
    """{flag: value} of the flags that have one value in more than half of the runs."""
    usual = {}
    for flag in differ:
        values = [run_flags.get(flag, "-") for run_flags in all_flags]
        for value in values:
            if values.count(value) > len(values) / 2:
                usual[flag] = value
    return usual


def names_in_figure(runs, all_flags, differ, usual):
    """For each run the flags in which it is not as most runs; its folder, where it is."""
    names = []
    for run, run_flags in zip(runs, all_flags, strict=True):
        parts = []
        for flag in differ:
            value = run_flags.get(flag, "-")
            if value != usual.get(flag):
                parts.append(flag_in_words(flag, value))
        names.append(", ".join(parts) or Path(run).name)
    return names


def flag_in_words(flag, value):
    """beta 2.0; amp, or no amp."""
    if value == "on":
        return flag
    return f"no {flag}" if value == "-" else f"{flag} {value}"


def save_comparison(path, draw_panels, names, usual, logs):
    """Test losses by epoch, a colour for each run.

    draw_panels(figure, names, logs, colors) returns the panel whose dots or lines are named.
    usual: the flags that most runs have, for the title of the key.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    figure = Figure(figsize=(16, 5), layout="constrained")
    colors = colormaps["tab10" if len(logs) <= 10 else "tab20"].colors
    axes = draw_panels(figure, names, logs, colors)
    title = None
    if usual:
        most = [flag_in_words(flag, value) for flag, value in usual.items()]
        title = in_figure(f"{', '.join(most)}, but for:")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  title=title)
    write_figure(path, figure)
    tell(f"{path}")


def draw_vae_panels(figure, names, logs, colors):
    """Loss, reconstruction, KL; and rate against distortion after the last epoch."""
    panels = figure.subplots(1, 4)
    titles = {"test_loss": "test loss = reconstruction + KL", "test_recon": "reconstruction, test",
              "test_kl": "KL divergence, test"}
    for panel, (column, title) in zip(panels[:3], titles.items(), strict=True):
        draw_by_epoch(panel, column, names, logs, colors)
        panel.set_ylabel("nats per image")
        panel.set_title(title, fontsize="medium")
    axes = panels[3]
    axes.set_prop_cycle(color=colors)
    for name, log in zip(names, logs, strict=True):
        rate = log[-1]["test_kl"] or 0   # an autoencoder has none
        axes.plot([rate], [log[-1]["test_recon"]], "o", label=in_figure(name))
    axes.set(xlabel="KL divergence, nats per image", ylabel="reconstruction, nats per image")
    axes.set_title("rate and distortion, last epoch", fontsize="medium")
    return axes


def draw_flow_panels(figure, names, logs, colors):
    """The loss of flows in both units."""
    titles = {"test_loss": "nats per image", "test_bpd": "bits per dimension"}
    for panel, (column, unit) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        draw_by_epoch(panel, column, names, logs, colors)
        panel.set_ylabel(unit)
        panel.set_title("test loss", fontsize="medium")
    return panel


def draw_by_epoch(axes, column, names, logs, colors):
    """A line for each run."""
    axes.set_prop_cycle(color=colors)
    axes.set_xlabel("epoch")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    lines = []
    for name, log in zip(names, logs, strict=True):
        values = [row[column] for row in log]
        axes.plot([row["epoch"] for row in log], values, label=in_figure(name))
        lines.append(values)
    show_second_half(axes, lines)


def in_figure(text):
    """A text for matplotlib, to which a dollar would begin a formula."""
    return printable(text).replace("$", r"\$")


# ---------------------------------------------------------------------------------------- main

def check_comparison(args):
    """Several runs are compared with no flag but --out."""
    for name, default in vars(flags().parse_args(args.runs)).items():
        if name != "out" and getattr(args, name) != default:
            flag = "--" + name.replace("_", "-")
            fail(f"{flag} goes with one run; remove it to compare several")


# What the names of numbers begin with. Those that a script's own evaluate() adds are of the first.
HEADINGS = {
    "loss on the test set": ("test_", "active"),
    "reconstructions": ("mse", "psnr", "sse_pm1", "sigma"),
    "classes": ("classifier_", "class_", "reconstruction_"),
    "distances to the test set": ("fid_", "kid_", "precision_", "recall_"),
    "likelihood": ("nll_", "bpd_", "label_worth_", "grey_pixel_", "free_classifier_"),
}


def heading_of(name):
    """The heading that a number stands under."""
    name = name.removeprefix("vae_")
    for heading, beginnings in HEADINGS.items():
        if name.startswith(beginnings):
            return heading
    return "loss on the test set"


def print_table(row, classes):
    """The numbers by heading, a line each; lists with the names of the classes."""
    width = max((len(name) for name in row), default=0)
    for heading in HEADINGS:
        names = [name for name in row if heading_of(name) == heading]
        if names:
            tell("")
            tell(heading)
        for name in names:
            value = row[name]
            if isinstance(value, list):
                tell(f"  {name}")
                print_by_class(value, classes)
            else:
                tell(f"  {name:{width}} {value:.6g}")


def print_by_class(values, classes):
    """A number for each class (None: it has none), as many beside one another as fit."""
    cells = []
    for name, value in zip(classes, values, strict=True):
        text = "-" if value is None else f"{value:.6g}"
        cells.append(f"{printable(shortened(name))}: {text}")
    width = max(len(cell) for cell in cells) + 3
    n = max(1, 96 // width)
    for start in range(0, len(cells), n):
        line = "".join(cell.ljust(width) for cell in cells[start:start + n])
        tell(f"    {line.rstrip()}")


def append_line(file, row):
    """Add a row to a .jsonl file, which a kill leaves as it was, or whole. Lines that are not whole
    are left out, with a word."""
    lines = whole_lines(file) if file.exists() else []
    lines.append(json.dumps(row))
    write_whole(file, "\n".join([*lines, ""]).encode())


def whole_lines(file):
    """The lines of a .jsonl file that are objects; a word of the others."""
    lines = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            whole = isinstance(json.loads(line), dict)
        except ValueError:
            whole = False
        if whole:
            lines.append(line)
        else:
            tell(f"{file}: left out a line that is not whole: {line[:40]}")
    return lines


@guarded
def main(argv=(), **overrides):
    """One run: print its numbers and append them to its evaluation.jsonl. Several: compare them.

    main([RUN, "--metrics=elbo,mse"]), or in a notebook main(runs=[RUN], metrics=["elbo", "mse"]).
    """
    runs = overrides.pop("runs", [])
    if isinstance(runs, str | Path):
        runs = [runs]
    if isinstance(overrides.get("metrics"), list | tuple):
        overrides["metrics"] = ",".join(overrides["metrics"])
    args = parse(flags(), [*argv, *runs], overrides)
    try:
        return measure_or_compare(args)
    except KeyboardInterrupt:
        tell("stopped", sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:   # a full disk, say
        fail(f"{error.filename or args.out}: {error.strerror or error}", status=1)


def measure_or_compare(args):
    """One run or several."""
    make_folder(args.out)
    if len(args.runs) > 1:
        check_comparison(args)
        return compare(args.runs, args.out)

    if args.fid_features not in ("classifier", "inception"):
        metrics.check_inception_weights(args.fid_features)
    run = args.runs[0]
    checkpoint, module, models = load_models(run, pick_device(args.device))
    measured = measure(checkpoint, module, models, args)
    print_table(measured, checkpoint["data"]["classes"])
    if Path(run).is_dir():
        unit = "epoch" if "epochs" in checkpoint["args"] else "iteration"
        row = {unit: checkpoint["epoch"], "seed": args.seed}
        if args.dataset is not None:   # of which it cannot be known that they are the run's
            row["dataset"] = str(args.dataset)
        row |= measured
        append_line(Path(run, "evaluation.jsonl"), row)
    return measured


if __name__ == "__main__":
    main(sys.argv[1:])
