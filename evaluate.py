"""Numbers from finished runs: of one run, what its log does not hold; of several, how they compare.

    python evaluate.py results/vae-MNIST                        # all but nll, in a minute or two
    python evaluate.py results/vae-MNIST --metrics nll          # an MLP: two minutes, two cores
    python evaluate.py results/vae-MNIST results/vae-MNIST-2    # a table and compare.png

Groups of numbers, and what their names say; in a run of cvae.py the twin's follow after `vae_`:

    elbo     test_loss = test_recon + test_kl, the negative ELBO, and active latent units
    mse      mean squared error of reconstructions, PSNR, and sigma where it is one number
    class    class_accuracy_1000: the share of 1,000 samples that a classifier, trained on blurred
             images, too, takes for the class asked for; where none can be asked for, its counts and
             their entropy; reconstruction_accuracy_N: the share of N that keep their class; each:
             the same by class
    fid kid  distance of N samples to N test images in the features that stand in the name; _floor:
    pr       of N training images; precision and recall with their _ceiling likewise
    nll      nll_is500: -log p(x) with 500 importance samples. Of a CVAE nll_given_y_is500, and on
             the same 1,000 images that, the marginal, which is at most -log p(y) higher, and how
             often argmax p(y|x), its classifier for free, is right. On grey pixels grey_pixel_...,
             which is the likelihood of nothing

Distances and classes are those of the pictures as stored, even if the model saw them binarised.
"""
import argparse
import json
import math
import sys
from pathlib import Path

import torch

import cvae
from common import (
    batches,
    check,
    load_checkpoint,
    load_data,
    make_parser,
    number,
    parse_flags,
    pick_device,
    read_log,
)
from generate import check_data, rebuild
from metrics import (
    classifier,
    classifies,
    extractor,
    frechet,
    kernel,
    log_likelihoods,
    nll_is,
    pick,
    precision_recall,
    subset,
)

GROUPS = ("elbo", "mse", "class", "fid", "kid", "pr", "nll")


def flags():
    parser = make_parser("evaluate", "Measure one run, or compare several.")
    add = parser.add_argument
    add("runs", nargs="+", help="run folders; a single one may be a checkpoint")
    add("--metrics", type=groups, default=",".join(GROUPS[:-1]),
        help=f"all, or some of {','.join(GROUPS)}; nll takes minutes, and hours of a conv on a CPU")
    add("--nll-samples", type=number(int, 1), default=500, help="importance samples an image")
    add("--fid-features", default="classifier",
        help="classifier (of the data set), inception (one download), or a file of its weights")
    add("--data", help="folder of the named data sets (default: the run's)")
    add("--device", default="auto", help="as in vae.py")
    add("--seed", type=number(int, 0), default=1, help="seed of samples and noise")
    add("--out", default="results", help="folder for compare.png and, in cache/, for classifiers")
    return parser


def groups(text):
    """The argparse type of --metrics: a set of GROUPS."""
    names = set(GROUPS if text == "all" else text.split(","))
    if not names <= set(GROUPS):
        raise argparse.ArgumentTypeError(f"must be all, or some of {','.join(GROUPS)}")
    return names


@torch.no_grad()
def measure(checkpoint, args):
    """{name: number} of a checkpoint. The test images are the run's; of the training images, for
    which the classifier and the floors are, all there are."""
    models, run = rebuild(checkpoint)
    run.show = "mean"   # the flag is one of figures; the models look it up here
    data = load_data(run.dataset, args.data or run.data, pick_device(args.device), run.image_size,
                     test_size=run.test_size)
    check_data(data, checkpoint["data"])
    is_gan = checkpoint["script"] == "gan"
    seen, wanted, found = data if is_gan else cvae.binarize(data, run), set(args.metrics), {}
    for group, reason in impossible(is_gan, data, run).items():
        if group in wanted:
            print(f"{group} left out: {reason}")
            wanted.remove(group)
    if "class" in wanted:
        judge = classifier(data, Path(args.out, "cache"), robust=True)
        found[f"classifier_accuracy_{len(data.x_test)}"] = judge.accuracy
    if wanted & {"fid", "kid", "pr"}:
        name, features = extractor(data, args.fid_features, args.data or run.data,
                                   Path(args.out, "cache"))
        n = min(10_000, len(data.x_test))
        protocol, labels = f"{name}_{n}", subset(data.y_test, n)
        real, train = (embed(features, pick(x, n)) for x in (data.x_test, data.x_train))
        found |= distances(wanted, real, train, protocol, "_floor", "_ceiling")
    for prefix, model in models.items():
        model.to(data.x_test.device)
        row = {}
        if "elbo" in wanted:
            row |= cvae.evaluate("", model, seen, checkpoint["epoch"], run)
            if run.beta == 0:   # an autoencoder has no KL
                del row["test_kl"]
        if "mse" in wanted:
            row |= errors(model, seen, run)
        if "class" in wanted:
            row |= {} if is_gan else recognised_reconstructions(judge, model, seen)
            row |= recognised_samples(judge, model, data, run, args) if is_gan or run.beta else {}
        if wanted & {"fid", "kid", "pr"}:
            fake = embed(features, draw(model, labels, run, args))
            row |= distances(wanted, real, fake, protocol)
        if "nll" in wanted:
            row |= likelihoods(model, seen, run, args)
        found |= {prefix + name: value for name, value in row.items()}
    return found


def impossible(is_gan, data, run):
    """{group of numbers: why this model or its data do not have it}."""
    reasons = {}
    if min(len(data.x_train), len(data.x_test)) < 4:
        reasons |= dict.fromkeys(("fid", "kid", "pr"), "it takes four images to train and to test")
    if is_gan:
        reasons |= dict.fromkeys(("elbo", "mse", "nll"), "a GAN has no encoder and no likelihood")
    elif run.beta == 0:
        reasons |= dict.fromkeys(("fid", "kid", "pr", "nll"),
                                 "an autoencoder has no prior to sample from and no likelihood")
    if not classifies(data):
        reasons["class"] = "it takes labels, and 100 training images of each"
    return reasons


def draw(model, labels, run, args):
    """Batches of samples with labels y (N,), which count if the model is conditional."""
    noise = torch.Generator().manual_seed(args.seed)
    for y in labels.split(1000):
        z = torch.randn(len(y), run.latent, generator=noise)
        yield model.picture(z.to(y.device), y)


def embed(features, pictures):
    """Batches of pictures -> their features (N, d)."""
    return torch.cat([features(x) for x in pictures])


def distances(wanted, real, fake, protocol, floor="", ceiling=""):
    """Of FID, KID, precision and recall those that are wanted."""
    row = {f"{group}_{protocol}{floor}": distance(real, fake) for group, distance in
           (("fid", frechet), ("kid", kernel)) if group in wanted}
    if "pr" in wanted:
        names = (f"{name}_{protocol}{ceiling}" for name in ("precision", "recall"))
        row |= dict(zip(names, precision_recall(real, fake), strict=True))
    return row


def errors(model, data, run):
    """Errors of p(x|z)'s mean at z = mu. MSE is per pixel on [0, 1]; PSNR = -10 log10 MSE; sse_pm1
    is the squared error summed over an image with pixels in [-1, 1]."""
    squares = torch.zeros((), dtype=torch.float64)
    for x, y in batches(data.x_test, data.y_test, 1000, shuffle=False):
        logits, log_sigma = model.decode(model.encode(x, y)[0], y)
        squares += (torch.sigmoid(logits) - x).square().sum().cpu()
    mse = squares.item() / data.x_test.numel()
    psnr = -10 * math.log10(mse) if mse else math.inf
    row = {"mse": mse, "psnr": psnr, "sse_pm1": 4 * mse * x[0].numel()}
    return row | ({"sigma": math.exp(log_sigma)} if hasattr(model, "log_sigma") else {})


def recognised_reconstructions(judge, model, data):
    """The share of test images that keep their class, in all and by class: that of their labels,
    not of what x looks like."""
    taken = torch.cat([judge(model.picture(model.encode(x, y)[0], y)).argmax(1) for x, y in
                       batches(data.x_test, data.y_test, 1000, shuffle=False)])
    return shares(f"reconstruction_accuracy_{len(taken)}", taken, data.y_test, len(data.classes))


def shares(name, taken, labels, classes):
    """The share that was taken for its label, in all and by class (None: there is none of it)."""
    right = (taken == labels).float()
    by_class = [right[labels == label] for label in range(classes)]
    return {name: right.mean().item(),
            f"{name}_each": [part.mean().item() if len(part) else None for part in by_class]}


def recognised_samples(judge, model, data, run, args):
    """Of 1,000 samples: the share that is of the class asked for, in all and by class; of a model
    without classes the count of each, and the entropy in nats, at most ln(classes)."""
    labels = torch.arange(1000, device=data.x_test.device) % len(data.classes)
    taken = torch.cat([judge(x).argmax(1) for x in draw(model, labels, run, args)])
    if model.classes:
        return shares("class_accuracy_1000", taken, labels, len(data.classes))
    counts = taken.bincount(minlength=len(data.classes))
    entropy = torch.distributions.Categorical(counts.float()).entropy().item()
    return {"class_counts_1000": counts.tolist(), "class_entropy_1000": entropy}


def likelihoods(model, data, run, args):
    """-log p(x|y), or -log p(x) of a model without classes, on all test images; then, on 1,000, the
    marginal -log p(x) of a CVAE, p(y) being the shares of the classes in training."""
    black_or_white = ((data.x_test == 0) | (data.x_test == 255)).all()
    kind = "nll" if run.likelihood == "gaussian" or black_or_white else "grey_pixel"
    noise, k = torch.Generator().manual_seed(args.seed), args.nll_samples
    nll = torch.cat([nll_is(model, x, y, k, noise) for x, y in
                     batches(data.x_test, data.y_test, 1000, shuffle=False)])
    if not model.classes:
        return {f"{kind}_is{k}": nll.mean().item()}
    x, y = torch.cat([*pick(data.x_test, 1000)]), subset(data.y_test, 1000)
    log_prior = (data.y_train.bincount(minlength=model.classes) / len(data.y_train)).log()
    log_given_y = log_likelihoods(model, x, k, noise)
    joint = log_given_y + log_prior
    return {f"{kind}_given_y_is{k}": nll.mean().item(),
            f"{kind}_given_y_is{k}_{len(x)}": -log_given_y.gather(1, y[:, None]).mean().item(),
            f"{kind}_marginal_is{k}_{len(x)}": -joint.logsumexp(1).mean().item(),
            f"free_classifier_is{k}_{len(x)}": (joint.argmax(1) == y).float().mean().item()}


def read_flags(run):
    """A run's flags as {name: text}, from its args.txt."""
    file = Path(run, "args.txt")
    check(file.is_file(), f"{run} is no run folder: it has no args.txt")
    check(Path(run, "log.csv").is_file(), f"{run} ended before its first epoch did; leave it out")
    lines = [line for line in file.read_text().splitlines() if line.startswith("--")]
    parts = (line.lstrip("-").partition("=") for line in lines)
    return {name: value if equals else "on" for name, equals, value in parts}


def compare(runs, out):
    """Print the flags in which the runs differ beside their last numbers; draw compare.png."""
    flags_of, logs = {run: read_flags(run) for run in runs}, {run: read_log(run) for run in runs}
    for run, rows in logs.items():
        check("test_loss" in rows[-1], f"{run} is a run of gan.py; compare others")
    silent = {"quiet", "data", "save-every"}   # they change no number
    names = sorted({name for flags in flags_of.values() for name in flags} - silent)
    differ = [name for name in names if len({flags.get(name) for flags in flags_of.values()}) > 1]
    chosen = {run: {name: flags_of[run].get(name, "-") for name in differ} for run in runs}
    columns = ["test_loss", "test_recon", "test_kl", "active"]
    print(" | ".join(["run", *differ, "epochs done", *columns, "seconds"]))
    for run in runs:
        last, seconds = logs[run][-1], sum(row["seconds"] for row in logs[run])
        numbers = ["" if last[name] is None else f"{last[name]:.2f}" for name in columns]
        cells = [Path(run).name, *chosen[run].values(), f"{last['epoch']:.0f}", *numbers]
        print(" | ".join([*cells, f"{seconds:.0f}"]))

    from matplotlib import colormaps
    from matplotlib.figure import Figure
    figure = Figure(figsize=(16, 5), layout="constrained")
    panels = figure.subplots(1, 4)
    for axes in panels:
        axes.set_prop_cycle(color=colormaps["tab10" if len(runs) <= 10 else "tab20"].colors)
    for run, rows in logs.items():
        name = ", ".join(f"{flag} {value}" for flag, value in chosen[run].items())
        name = name or Path(run).name
        for axes, term in zip(panels, ("test_loss", "test_recon", "test_kl"), strict=False):
            axes.plot([row["epoch"] for row in rows], [row[term] for row in rows], label=name)
            axes.set(title=term, xlabel="epoch", ylabel="nats per image")
        rate = [rows[-1]["test_kl"] or 0]
        panels[3].plot(rate, [rows[-1]["test_recon"]], "o", label=name)
    panels[3].set(title="rate and distortion, last epoch", xlabel="test_kl", ylabel="test_recon")
    figure.legend(*panels[3].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(Path(out, "compare.png"))
    print(Path(out, "compare.png"))


def main(argv=(), **overrides):
    """One run: print its numbers and append them to its evaluation.jsonl. Several: compare them."""
    args, _ = parse_flags(flags(), argv, overrides)
    try:
        Path(args.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        check(False, f"--out {args.out}: {error.strerror}; take a folder that can be written")
    if len(args.runs) > 1:
        plain = flags().parse_args([*args.runs, f"--out={args.out}"])
        for name, value in vars(plain).items():
            check(getattr(args, name) == value, f"--{name.replace('_', '-')} goes with one run; "
                  "several are compared without it")
        return compare(args.runs, args.out)
    run = args.runs[0]
    checkpoint = load_checkpoint(run)
    found = measure(checkpoint, args)
    width = max(map(len, found), default=0)
    for name, value in found.items():
        values = value if isinstance(value, list) else [value]
        shown = ("-" if value is None else f"{value:.6g}" for value in values)
        print(f"{name:{width}} {' '.join(shown)}")
    if Path(run).is_dir():
        step = "iteration" if checkpoint["script"] == "gan" else "epoch"
        found_at = {step: checkpoint["epoch"], "seed": args.seed}
        with open(Path(run, "evaluation.jsonl"), "a") as file:
            file.write(json.dumps(found_at | found) + "\n")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
