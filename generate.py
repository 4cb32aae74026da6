"""Pictures from a run folder or a checkpoint file: vae.py's, cvae.py's or gan.py's.

    python generate.py results/vae-MNIST                         # 64 samples from the prior
    python generate.py results/cvae-MNIST --digit 9              # of one class
    python generate.py results/vae-MNIST --interpolate 0 7       # between two test images
    python generate.py results/models/cvae-mnist.pt --classes    # a model from the box: no data
    python generate.py results/cvae-MNIST --explore              # a page to move around in

Sample i has a seed of its own: it is the same in a grid of 8 and of 800.
"""
import base64
import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

import cvae
import gan
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
    save_grid,
    save_latent,
)


def flags():
    parser = make_parser("generate", "Make pictures with a trained model.")
    add, count = parser.add_argument, number(int, 1)
    add("run", help="run folder or checkpoint")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--samples", type=count, metavar="N",
                      help="from the prior (the default: 64); of an autoencoder, which has none, "
                      "from a Gaussian fitted to its codes")
    only.add_argument("--classes", action="store_true", help="samples, one class per row")
    only.add_argument("--interpolate", type=number(int, 0), nargs=2, metavar=("A", "B"),
                      help="from test image A to B, straight and on a sphere; of a GAN: seeds")
    only.add_argument("--digits", nargs=2, metavar=("A", "B"),
                      help="the same between the images nearest to the means of two classes")
    only.add_argument("--manifold", action="store_true",
                      help="the latent plane by the quantiles of the prior; a picture per class")
    only.add_argument("--traverse", action="store_true",
                      help="one row per most active latent unit, from -3 to 3 deviations")
    only.add_argument("--reconstruct", type=count, metavar="N", help="test images, difference")
    only.add_argument("--tsne", type=count, metavar="N", help="t-SNE map of N test images' codes")
    only.add_argument("--pca", action="store_true", help="map of the codes, two main components")
    only.add_argument("--scatter", action="store_true", help="the codes of a two-dimensional z")
    only.add_argument("--explore", action="store_true",
                      help="a page for the browser in which to move through latent space")
    add("--uniform", type=number(float, -math.inf, above=True), nargs=2, metavar=("LO", "HI"),
        help="the plane of --manifold in even steps")
    add("--gif", action="store_true",
        help="samples over the epochs of a run with --save-every 1; or the walk of --interpolate")
    add("--digit", "--class", dest="label", help="make samples, plane or rows of this class")
    add("--steps", type=number(int, 2), default=10, help="pictures of an interpolation or a row")
    add("--columns", type=count, default=8, help="pictures in a row of samples")
    add("--scale", type=count, default=1, help="enlarge pictures by this factor")
    add("--show", choices=("mean", "sample"), default="mean", help="of p(x|z)")
    add("--out", help="folder (default: the run's own, or pictures for a file that is in no run)")
    add("--data", help="folder of the named data sets (default: the run's)")
    add("--device", default="auto", help="as in vae.py")
    add("--seed", type=number(int, 0), default=1, help="of the samples")
    return parser


def rebuild(checkpoint):
    """The models of a checkpoint, {prefix of their columns in the log: model}, and its flags. A VAE
    is a CVAE of no classes; of a GAN it is the generator's running average."""
    args, data = SimpleNamespace(**checkpoint["args"]), checkpoint["data"]
    shape, classes = data["shape"], len(data["classes"])
    if checkpoint["script"] == "gan":
        models = {"": gan.Generator(shape, args, classes if args.conditional else 0)}
        weights = {"": checkpoint["ema"]}
    else:
        weights = {prefix: checkpoint[f"{prefix}model"] for prefix in ("", "vae_")
                   if f"{prefix}model" in checkpoint}
        models = {prefix: cvae.CVAE(shape, args, 0 if prefix or checkpoint["script"] == "vae"
                                    else classes) for prefix in weights}
    for prefix, model in models.items():
        model.load_state_dict(weights[prefix])
        model.eval().requires_grad_(False)
    return models, args


def check_data(data, known):
    """A model can only be shown the shape and the classes that it was trained on."""
    now = {"shape": [*data.x_test.shape[1:]], "classes": data.classes}
    check(now.items() <= known.items(), f"--dataset {data.name} is now {now['shape']} and "
          f"{len(data.classes)} classes, and the model {known['shape']} and "
          f"{len(known['classes'])}; bring the data back")


def kinds(models, args):
    """What the models are called, in their order: CVAE, VAE, CAE or AE."""
    return [f"{'C' if model.classes else ''}{'VAE' if args.beta > 0 else 'AE'}"
            for model in models.values()]


def noise(indices, latent, seed):
    """z of the samples `indices`, each from a seed of its own: -> (B, latent)."""
    return torch.stack([torch.randn(latent, generator=torch.Generator().manual_seed(
        seed * 1_000_003 + i)) for i in indices])


def draw(model, z, y, show="mean", seed=0):
    """z (B, latent), y (B,) -> pictures (B, C, H, W): means of p(x|z), or a sample of each."""
    device = next(model.parameters()).device
    z, y = z.to(device), y.to(device)
    if isinstance(model, gan.Generator):
        return torch.cat([model.picture(*part) for part in zip(z.split(500), y.split(500),
                                                               strict=True)])
    logits, log_sigma = model.decode(z, y)
    x = torch.sigmoid(logits).cpu()
    for i in range(len(x) if show == "sample" else 0):
        own = torch.Generator().manual_seed(seed * 1_000_003 - 1 - i)   # not the seed of its z
        if log_sigma is None:
            x[i] = torch.bernoulli(x[i], generator=own)
        else:
            deviation = torch.exp(log_sigma if log_sigma.ndim == 0 else log_sigma[i]).cpu()
            x[i] = (x[i] + deviation * torch.randn(x[i].shape, generator=own)).clamp(0, 1)
    return x


def codes(model, data):
    """mu and logvar of the posterior of every test image, (N, latent) each."""
    parts = [model.encode(x, y) for x, y in batches(data.x_test, data.y_test, 1000, shuffle=False)]
    return [torch.cat(part).cpu() for part in zip(*parts, strict=True)]


def fitted_gaussian(mu, logvar, args):
    """Mean and deviation, (latent,) each, of a mixture of posteriors: the mean of the means; by the
    law of total variance the variance of the means and the mean of the variances."""
    inner = logvar.exp().mean(0) if args.beta > 0 else 0   # an autoencoder's codes are points
    return mu.mean(0), (mu.var(0, unbiased=False) + inner).sqrt()


def most_active(model, deviation):
    """All latent units, the most active ones first. No data are needed: the decoder learns small
    weights for units that carry nothing."""
    weight = model.decoder[0].weight[:, :len(deviation)].cpu()   # those of z, not of the label
    return (weight.norm(dim=0) * deviation).argsort(descending=True)


def straight(a, b, steps):
    """(d,), (d,) -> (steps, d) on the line from a to b."""
    return torch.lerp(a, b, torch.linspace(0, 1, steps)[:, None])


def spherical(a, b, steps):
    """(d,), (d,) -> (steps, d) on the great circle, the length in proportion: between two z of the
    prior it stays at a length the prior has, which a straight line does not (White 2016, arXiv
    1609.04468)."""
    t = torch.linspace(0, 1, steps)[:, None]
    angle = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    if angle.sin() < 1e-4:   # the same direction, or the opposite one: no circle is defined
        return straight(a, b, steps)
    way = (torch.sin((1 - t) * angle) * a / a.norm() + torch.sin(t * angle) * b / b.norm())
    return way / angle.sin() * torch.lerp(a.norm(), b.norm(), t)


def plane(steps, span=None):
    """Places along an axis of the latent plane, (steps,): the prior's quantiles, or even ones."""
    if span:
        return torch.linspace(*span, steps)
    return torch.special.ndtri((torch.arange(steps) + 0.5) / steps)


class Run:
    """A checkpoint with what its pictures need; the data are read only if one asks for them."""

    def __init__(self, args):
        checkpoint = load_checkpoint(args.run)
        self.wish, self.script, self.known = args, checkpoint["script"], checkpoint["data"]
        self.device = pick_device(args.device)
        self.models, self.args = rebuild(checkpoint)
        for model in self.models.values():
            model.to(self.device)
        self.model, self.latent = self.models[""], self.args.latent
        self.autoencoder = self.script != "gan" and self.args.beta == 0
        self.names = self.known["classes"]
        place = Path(args.run) if Path(args.run).is_dir() else Path(args.run).parent
        self.folder = place
        self.out = Path(args.out or (place if (place / "args.txt").exists() else "pictures"))
        check(args.label is None or args.label in self.names, f"--class {args.label}: the classes "
              f"are {', '.join(self.names) or 'none'}")
        self.label = None if args.label is None else self.names.index(args.label)

    def data(self):
        args = self.args
        data = load_data(args.dataset, self.wish.data or args.data, self.device, args.image_size,
                         args.train_size, args.test_size)
        check_data(data, self.known)
        return cvae.binarize(data, args)

    def prior(self, indices, label):
        """z (B, latent) and y (B,) of samples `indices`, of a class if `label` is not None."""
        z, told = noise(indices, self.latent, self.wish.seed), self.model.classes
        check(told or label is None or self.script != "gan", "this GAN was trained without "
              "--conditional: it makes --samples of no class that one could ask for")
        labels = [i % told if told and label is None else label for i in indices]
        if self.autoencoder or label is not None and not told:
            parts = zip(*map(self.gaussian, labels), strict=True)
            mean, deviation = (torch.stack(part) for part in parts)
            z = mean + deviation * z
        return z, torch.tensor(labels if told else [0] * len(z))

    def gaussian(self, label):
        """The Gaussian fitted to the posteriors of a class, or of all test images."""
        if not hasattr(self, "posteriors"):
            self.test = self.data()
            self.posteriors = codes(self.model, self.test)
        keep = (self.test.y_test == label).cpu() if label is not None else slice(None)
        check(label is None or keep.any(), f"no test image is of class {self.names[label or 0]}, "
              "whose Gaussian was to be fitted; take another")
        return fitted_gaussian(*(part[keep] for part in self.posteriors), self.args)

    def spread(self):
        """Mean and deviation of z, (latent,) each: of the prior, or of an autoencoder's codes."""
        return self.gaussian(None) if self.autoencoder else \
            (torch.zeros(self.latent), torch.ones(self.latent))

    def show(self, name, x, columns, names=()):
        """Write pictures (N, C, H, W) as name.png and say so."""
        save_grid(self.path(f"{name}.png"), self.enlarge(x), columns, names)

    def enlarge(self, x):
        scale = self.wish.scale * max(1, 64 // x.shape[3])   # on top of what save_grid would do
        return x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)

    def path(self, name):
        name = re.sub(r"[^\w.-]+", "-", name)   # a class may be called T-shirt/top
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / name).touch()   # or it would fall over after all the work
        except OSError as error:
            check(False, f"--out {self.out}: {error.strerror}; take a folder that can be written")
        print(self.out / name)
        return self.out / name

    def draw(self, z, y, model=None):
        return draw(model or self.model, z, y, self.wish.show, self.wish.seed).cpu()


def samples(run):
    n, label = run.wish.samples or 64, run.label
    z, y = run.prior(range(n), label)
    run.show(f"samples_{n}" if label is None else f"samples_{run.names[label]}_{n}",
             run.draw(z, y), run.wish.columns)


def classes(run):
    check(len(run.names) > 1, "--classes needs a model of labelled data; try --samples 64")
    rows = [run.prior(range(run.wish.columns), label) for label in range(len(run.names))]
    z, y = (torch.cat(part) for part in zip(*rows, strict=True))
    run.show("classes", run.draw(z, y), run.wish.columns, run.names)


def interpolate(run):
    a, b = run.wish.interpolate or (0, 0)
    if run.script == "gan":
        ends, labels = noise([a, b], run.latent, run.wish.seed), [run.label or 0]
        edges = [None, None]
    else:
        data = run.data()
        if run.wish.digits:
            a, b = nearest_to_means(run, data)
        check(max(a, b) < len(data.x_test), f"--interpolate {a} {b}: the test images are 0 to "
              f"{len(data.x_test) - 1}")
        x, y = data.x_test[[a, b]] / 255, data.y_test[[a, b]]
        ends, edges = run.model.encode(x, y)[0].cpu(), x.cpu().split(1)
        labels = y.unique().tolist() if run.label is None else [run.label]
        labels = labels if run.model.classes else [0]   # a CVAE goes the way with both labels
    rows, names = [], []
    for label in labels:
        for way in (straight, spherical):
            z = way(*ends, run.wish.steps)
            x = run.draw(z, torch.full((len(z),), label))
            rows.append(torch.cat([part for part in (edges[0], x, edges[1]) if part is not None]))
            names.append(way.__name__ + (f", {run.names[label]}" if run.model.classes else ""))
    if run.wish.gif:
        frames = rows[1] if edges[0] is None else rows[1][1:-1]
        frames = [run.enlarge(x[None]) for x in (*frames, *frames.flip(0))]   # there and back
        return save_gif(run.path(f"interpolation_{a}_{b}.gif"), frames,
                        lambda part, x: save_grid(part, x, 1))
    run.show(f"interpolation_{a}_{b}", torch.cat(rows), len(rows[0]), names)


def nearest_to_means(run, data):
    """Indices of the test images whose codes are nearest to the means of the two --digits."""
    wrong = [name for name in run.wish.digits if name not in run.names]
    check(not wrong, f"--digits {' '.join(wrong)}: the classes are "
          f"{', '.join(run.names) or 'none'}")
    mu, found = codes(run.model, data)[0], []
    for name in run.wish.digits:
        index = (data.y_test.cpu() == run.names.index(name)).nonzero()[:, 0]
        check(len(index), f"--digits {name}: no test image is of that class; take another")
        own = mu[index]
        found.append(index[(own - own.mean(0)).square().sum(1).argmin()].item())
    return found


def manifold(run):
    check(run.latent >= 2, "--manifold needs a z of two dimensions or more; try --traverse")
    side, span, (mean, deviation) = 2 * run.wish.steps, run.wish.uniform, run.spread()
    places = plane(side, span)
    grid = torch.cartesian_prod(places.flip(0), places).flip(1)   # z_1 rightwards, z_2 upwards
    units = most_active(run.model, deviation)[:2].sort().values
    z = mean.repeat(len(grid), 1)
    z[:, units] = grid if span else mean[units] + deviation[units] * grid
    labels = range(len(run.names)) if run.model.classes and run.label is None else [run.label or 0]
    for label in labels:
        name = "uniform" if span else "manifold"
        name += f"_{run.names[label]}" if run.model.classes else ""
        run.show(name, run.draw(z, torch.full((len(z),), label)), side)


def traverse(run):
    mean, deviation = run.spread()
    units, steps = most_active(run.model, deviation)[:10], run.wish.steps
    z = mean.repeat(len(units), steps, 1)
    for row, unit in enumerate(units):
        z[row, :, unit] += deviation[unit] * torch.linspace(-3, 3, steps)
    x = run.draw(z.flatten(0, 1), torch.full((len(units) * steps,), run.label or 0))
    name = "traverse" if run.label is None else f"traverse_{run.names[run.label]}"
    run.show(name, x, steps, [f"z {unit + 1}" for unit in units.tolist()])


def evenly(n, data, flag):
    """Indices of n test images, which may be stored in the order of their classes."""
    check(n <= len(data.x_test), f"{flag} {n}: there are {len(data.x_test)} test images")
    return torch.linspace(0, len(data.x_test) - 1, n).long()


def reconstruct(run):
    data, n = run.data(), run.wish.reconstruct
    index, columns = evenly(n, data, "--reconstruct"), min(n, run.wish.columns)
    x, y = data.x_test[index] / 255, data.y_test[index]
    rows, names = [x.cpu()], ["original"]
    for kind, model in zip(kinds(run.models, run.args), run.models.values(), strict=True):
        rows.append(run.draw(model.encode(x, y)[0], y, model))
        rows.append((rows[-1] - rows[0]).abs())
        names += [kind, "difference"]
    rows = F.pad(torch.stack(rows), [0] * 7 + [-n % columns], value=1)   # white where none is left
    rows = rows.unflatten(1, (-1, columns)).transpose(0, 1)   # (blocks, rows, columns, C, H, W)
    run.show(f"reconstruction_of_{n}", rows.flatten(0, 2), columns, names * len(rows))


def tsne(run):
    from sklearn.manifold import TSNE
    data, n = run.data(), run.wish.tsne
    check(5 <= n <= len(data.x_test), f"--tsne {n}: give 5 to {len(data.x_test)}, the test images")
    check(run.latent >= 2, "--tsne needs a z of two dimensions or more; try --samples 64")
    index = evenly(n, data, "--tsne")
    mu = codes(run.model, data)[0][index]
    points = TSNE(perplexity=min(30, (n - 1) / 3), init="pca", random_state=run.wish.seed)
    save_map(run.path(f"tsne_{n}.png"), points.fit_transform(mu.numpy()), data.y_test[index],
             data.classes, "t-SNE of mu")


def pca(run):
    from sklearn.decomposition import PCA
    data = run.data()
    check(run.latent >= 2 and len(data.x_test) >= 2,
          "--pca needs a z of two dimensions or more, and two test images; try --samples 64")
    model = PCA(2).fit(mu := codes(run.model, data)[0].numpy())
    share = model.explained_variance_ratio_.sum()
    title = f"two main components of mu, {share:.0%} of its variance"
    save_map(run.path("pca.png"), model.transform(mu), data.y_test, data.classes, title)


def save_map(path, points, y, classes, title):
    """Points (n, 2), coloured and named by their labels y (n,)."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes, y = figure.subplots(), y.cpu()
    dots = axes.scatter(*points.T, s=8, c=y, cmap="tab10" if len(classes) <= 10 else "tab20")
    if 1 < len(classes) <= 20:   # more classes than colours: no key would help
        names = [classes[label] for label in y.unique()]
        axes.legend(dots.legend_elements(num=None)[0], names, loc=6, bbox_to_anchor=(1, 0.5))
    axes.set(title=title, xticks=[], yticks=[])
    figure.savefig(path)


def scatter(run):
    check(run.latent == 2, f"--scatter needs a z of two dimensions, not {run.latent}; try "
          + ("--pca" if run.latent > 2 else "--samples 64"))
    data, models = run.data(), zip(kinds(run.models, run.args), run.models.values(), strict=True)
    means = {kind: codes(model, data)[0] for kind, model in models}
    save_latent(run.path("scatter.png"), means, data, fixed=not run.autoencoder)


def epochs_gif(run):
    """samples.gif over the checkpoints of all epochs, or of those that a GAN kept; and, of a 2-D z,
    latent.gif."""
    files = sorted(run.folder.glob("checkpoint_*.pt"), key=lambda file: int(file.stem[11:]))
    check(len(files) > 1 and (run.script == "gan" or len(files) == len(read_log(run.folder))),
          f"--gif needs a checkpoint of every epoch, and {run.folder} has {len(files)}; train with "
          "--save-every 1")
    data = run.data() if run.script != "gan" and run.latent == 2 else None
    z, y = run.prior(range(64), run.label)
    frames, clouds = [], []
    for file in files:
        model = rebuild(load_checkpoint(file))[0][""].to(run.device)
        frames.append(run.enlarge(run.draw(z, y, model)))
        clouds += [codes(model, data)[0]] if data else []
    save_gif(run.path("samples.gif"), frames,
             lambda part, x: save_grid(part, x, run.wish.columns))
    if data:
        clouds = [{f"epoch {epoch}": mu} for epoch, mu in enumerate(clouds, 1)]
        save_gif(run.path("latent.gif"), clouds,
                 lambda part, means: save_latent(part, means, data, fixed=not run.autoencoder))


def save_gif(path, frames, save):
    """A film of what `save` writes of each frame."""
    from PIL import Image
    pages, part = [], path.with_suffix(".part.png")
    for frame in frames:
        save(part, frame)
        pages.append(Image.open(part).quantize())   # its own 256 colours, and no dithering
    part.unlink()
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=200, loop=0)


def explore(run):
    check(run.latent >= 2, "--explore needs a z of two dimensions or more; try --samples 64")
    save_explorer(run.path("explorer.html"), run.models, run.args, run.known)


def save_explorer(path, models, args, data):
    """explorer.html with the decoders of {prefix: model} in it, `data` being as in a checkpoint."""
    names, (first, *_) = kinds(models, args), models.values()
    units = most_active(first, torch.ones(args.latent)).tolist()
    page = {"title": f"{' and '.join(names)} of {data['name']}", "latent": args.latent,
            "units": sorted(units[:2]) + units[2:], "prior": args.beta > 0,
            "shape": data["shape"], "classes": data["classes"] if first.classes else [],
            "models": [{"name": name, "classes": model.classes, "layers": pack(model.decoder)}
                       for name, model in zip(names, models.values(), strict=True)]}
    template = Path(__file__).with_name("explorer.html").read_text(encoding="utf-8")
    filled = json.dumps(page).replace("<", "\\u003c")   # a class may be called </script>
    Path(path).write_text(template.replace("MODEL</", filled + "</"), encoding="utf-8")


def pack(decoder):
    """The layers of a decoder as explorer.html knows them, numbers as base64 of float16."""
    def text(tensor):
        return base64.b64encode(tensor.detach().cpu().numpy().astype("<f2").tobytes()).decode()

    layers = []
    for layer in decoder:
        match layer:
            case nn.Linear() | nn.ConvTranspose2d():
                kind = "linear" if isinstance(layer, nn.Linear) else "up"
                layers.append({"kind": kind, "weight": text(layer.weight),
                               "bias": text(layer.bias)})
            case nn.BatchNorm2d():
                scale = layer.weight / (layer.running_var + layer.eps).sqrt()
                shift = layer.bias - layer.running_mean * scale
                layers.append({"kind": "norm", "scale": text(scale), "shift": text(shift)})
            case nn.ReLU() | nn.LeakyReLU():
                slope = getattr(layer, "negative_slope", 0)
                layers.append({"kind": "relu", "slope": slope})
            case _:   # what does nothing here; a layer that does something must not be lost
                assert isinstance(layer, nn.Dropout | nn.Dropout2d | nn.Unflatten), layer
    return layers


PICTURES = {"samples": samples, "classes": classes, "interpolate": interpolate,
            "digits": interpolate, "manifold": manifold, "traverse": traverse,
            "reconstruct": reconstruct, "tsne": tsne, "pca": pca, "scatter": scatter,
            "explore": explore, "uniform": manifold}   # last: it goes with --manifold, or alone


def main(argv=(), **overrides):
    """Make the picture that the flags ask for."""
    args, _ = parse_flags(flags(), argv, overrides)
    run = Run(args)
    wish = next((name for name in PICTURES if getattr(args, name) not in (None, False)), "samples")
    can = set(PICTURES)
    if run.script == "gan":   # it has no encoder, and a plane of 128 dimensions is none
        can = {"samples", "interpolate"} | ({"classes"} if run.model.classes else set())
    check(wish in can, f"--{wish} is no picture of this {run.script}, which can make --"
          + ", --".join(sorted(can)))
    takes = {"samples"} | ({"interpolate", "digits", "manifold", "uniform", "traverse"} & can
                           if run.model.classes else set())
    check(run.label is None or wish in takes,
          "--class of this model goes with --" + ", --".join(sorted(takes)))
    check(not args.uniform or wish in ("manifold", "uniform"), "--uniform goes with --manifold")
    check(args.show == "mean" or run.script != "gan", "--show sample needs a p(x|z), which a GAN "
          "does not have")
    walk = args.gif and wish == "interpolate"
    check(not args.gif or walk or not getattr(args, wish),
          "--gif goes alone, or with --interpolate")
    (epochs_gif if args.gif and not walk else PICTURES[wish])(run)


if __name__ == "__main__":
    main(sys.argv[1:])
