"""GAN with the hinge loss and a discriminator whose weight matrices have spectral norm 1.

Miyato et al. 2018, Spectral Normalization for Generative Adversarial Networks (arXiv 1802.05957).

    python -m recipes.hinge_sn --dataset digits --iterations 500   # no download
    python -m recipes.hinge_sn --iterations 3000    # MNIST, half an hour of a core: distance 6.0

gan.py --loss lsgan comes nearer to the data: to 0.5 in as many steps.
"""
import ctrl_c  # without a traceback, even during these imports
import copy
import json
import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.lr_scheduler import LinearLR

from common import (
    Means,
    fail,
    has_package,
    save_curves,
    save_grid,
    shortened,
    spherical,
    write_whole,
)
from metrics import FIDMeter, can_train_classifier, check_inception_weights, trained_classifier
from processes import average_gradients, own_rows
from readers import load_data
from run import (
    Parser,
    Run,
    add_data_flags,
    add_run_flags,
    check_size,
    data_options,
    guarded,
    load_run_data,
    number,
    parse,
    path_text,
    say_nothing,
)

LAMBDA = 10   # weight of the gradient penalty, as in the paper
COLUMNS = ("d_loss", "g_loss", "d_real", "d_fake", "d_accuracy", "fid")   # of the log


# --------------------------------------------------------------------------------------- model

def upsample(x):
    """Nearest neighbour, (B, C, H, W) -> (B, C, 2H, 2W): every pixel becomes a square of four.

    The same as repeating each channel four times and shuffling the four to a square of pixels
    (F.pixel_shuffle), with a faster kernel.
    """
    return F.interpolate(x, scale_factor=2)


def downsample(x):
    """The mean of each square of four pixels, (B, C, 2H, 2W) -> (B, C, H, W). Undoes `upsample`.

    The same as unshuffling each square to four channels (F.pixel_unshuffle) and taking their mean.
    ValueError where a side is odd.
    """
    if x.shape[2] % 2 == 1 or x.shape[3] % 2 == 1:
        raise ValueError(f"downsample halves even sides, not {list(x.shape[2:])}")
    return F.avg_pool2d(x, 2)


class UpSampleConv2D(nn.Conv2d):
    """Upsample, then convolve: (B, n, H, W) -> (B, m, 2H, 2W). The kernel is odd, its padding
    (kernel_size - 1) / 2.

    Both steps are one transposed convolution, in half the time. Of the nine pixels that a 3x3
    kernel sees after `upsample` only four differ, so the weights that fall on the same pixel are
    added first. That is, upsampling is itself a transposed convolution, with a 2x2 kernel of ones;
    with sums of 2x2 weights it does the convolution, too.
    """

    def forward(self, x):
        kernel = F.pad(self.weight, [1, 1, 1, 1])
        kernel = F.avg_pool2d(kernel, 2, stride=1, divisor_override=1)   # sums of 2x2 weights
        kernel = kernel.flip(2, 3).transpose(0, 1)       # the order of a transposed convolution
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=self.padding)


class DownSampleConv2D(nn.Conv2d):
    """Downsample, then convolve: (B, n, 2H, 2W) -> (B, m, H, W)."""

    def forward(self, x):
        return super().forward(downsample(x))


class ConditionalNorm(nn.Module):
    """Batch normalisation with a gain and a bias for each class (Dumoulin et al. 2017, arXiv
    1610.07629); with no classes, plain batch normalisation, which does not look at y."""

    def __init__(self, width, classes):
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=classes == 0)
        self.label = None
        if classes > 0:
            self.label = nn.Embedding(classes, 2 * width)
            nn.init.zeros_(self.label.weight)                  # at first a gain of 1, a bias of 0

    def forward(self, x, y):
        h = self.norm(x)                                       # (B, width, H, W)
        if self.label is None:
            return h
        gain_and_bias = self.label(y)[:, :, None, None].to(h.dtype)      # (B, 2 * width, 1, 1)
        gain, bias = gain_and_bias.chunk(2, dim=1)
        return torch.addcmul(h + bias, h, gain)        # (1 + gain) * h + bias, in fewer kernels


class UpBlock(nn.Module):
    """Residual block of the generator: (B, width, H, W), (B,) -> (B, width, 2H, 2W)."""

    def __init__(self, width, classes):
        super().__init__()
        self.norm1 = ConditionalNorm(width, classes)
        self.norm2 = ConditionalNorm(width, classes)
        self.conv1 = UpSampleConv2D(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(width, width, 1)

    def forward(self, x, y):
        h = self.conv1(F.relu_(self.norm1(x, y)))              # (B, width, 2H, 2W)
        h = self.conv2(F.relu_(self.norm2(h, y)))              # in place: one array less to write
        return upsample(self.skip(x)) + h                      # 1x1 commutes with upsampling


class DownBlock(nn.Module):
    """Residual block of the discriminator: (B, n, 2H, 2W) -> (B, width, H, W).

    pixels: its input is the image itself; a ReLU would cut off its dark half.
    """

    def __init__(self, n, width, norm, pixels=False):
        super().__init__()
        layers = [nn.Identity() if pixels else nn.ReLU(),
                  nn.Conv2d(n, width, 3, padding=1)]           # (B, width, 2H, 2W)
        if norm == "batch":
            layers.append(nn.BatchNorm2d(width))
        layers += [nn.ReLU(inplace=True),
                   DownSampleConv2D(width, width, 3, padding=1)]   # (B, width, H, W)
        self.body = nn.Sequential(*layers)
        self.skip = DownSampleConv2D(n, width, 1)

    def forward(self, x):
        return self.skip(x) + self.body(x)


class Generator(nn.Module):
    """z (B, latent), y (B,) -> images (B, C, 32, 32) in [-1, 1]; with no classes y is not used.

    shape: (C, H, W) of the images of the data set, 28x28 or 32x32.
    """

    def __init__(self, shape, classes, args):
        super().__init__()
        self.shape = shape
        self.classes = classes
        width = args.width
        self.first = nn.Linear(args.latent, width * 4 * 4)
        self.blocks = nn.ModuleList([UpBlock(width, classes) for _ in range(3)])
        self.norm = ConditionalNorm(width, classes)
        self.last = nn.Conv2d(width, shape[0], 3, padding=1)
        self.to(memory_format=torch.channels_last)             # the fast layout of convolutions

    def forward(self, z, y):
        h = self.first(z).unflatten(1, (-1, 4, 4))             # (B, width, 4, 4)
        for block in self.blocks:
            h = block(h, y)                                    # ... 8x8, 16x16, 32x32
        h = F.relu_(self.norm(h, y))
        return torch.tanh(self.last(h))                        # (B, C, 32, 32)

    def picture(self, z, y):
        """Images (B, C, H, W) in [0, 1], of the size of the data: the padding is cut off."""
        margin = (32 - self.shape[1]) // 2
        x = F.pad(self(z, y), [-margin] * 4)
        return (x.float() + 1) / 2


class Discriminator(nn.Module):
    """x (B, C, 32, 32) in [-1, 1], y (B,) -> one logit per image, (B,).

    A label enters as an inner product with the features (Miyato & Koyama 2018, arXiv 1802.05637).
    """

    def __init__(self, shape, classes, args):
        super().__init__()
        width = args.width
        self.body = nn.Sequential(
            DownBlock(shape[0], width, args.norm, pixels=True),     # (B, width, 16, 16)
            DownBlock(width, width, args.norm),                     # (B, width, 8, 8)
            DownBlock(width, width, args.norm),                     # (B, width, 4, 4)
            nn.ReLU(),
        )
        self.last = nn.Linear(width, 1)
        self.label = nn.Embedding(classes, width) if classes > 0 else None
        for layer in list(self.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
                spectral_norm(layer)        # weight / its largest singular value
        self.to(memory_format=torch.channels_last)

    def forward(self, x, y):
        h = self.body(x).mean((2, 3)).float()                       # (B, width)
        logit = self.last(h)[:, 0].float()                          # (B,)
        if self.label is not None:
            logit = logit + (self.label(y) * h).sum(1)
        return logit


def build(shape, classes, args):
    """The generator as main trains it, and as generate.py and evaluate.py rebuild it."""
    return Generator(shape, classes if args.conditional else 0, args)


# ---------------------------------------------------------------------------------------- loss
# Logits of real and of fake images, (B,) each -> loss per image, (B,).

def gan_discriminator(real, fake):
    return F.softplus(-real) + F.softplus(fake)                # -log D(x) - log(1 - D(G(z)))


def gan_generator(fake):
    return F.softplus(-fake)                                   # -log D(G(z)), non-saturating


def lsgan_discriminator(real, fake):
    return 0.5 * (real - 1).square() + 0.5 * fake.square()     # targets: real 1, fake 0


def lsgan_generator(fake):
    return 0.5 * (fake - 1).square()                           # target: 1


def hinge_discriminator(real, fake):
    return F.relu(1 - real) + F.relu(1 + fake)                 # 0 where real > 1, fake < -1


def wgan_critic(real, fake):
    return fake - real                                         # minus the Wasserstein estimate


def wgan_generator(fake):
    return -fake


DISCRIMINATOR_LOSS = {"gan": gan_discriminator, "lsgan": lsgan_discriminator,
                      "wgan-gp": wgan_critic, "hinge": hinge_discriminator}
GENERATOR_LOSS = {"gan": gan_generator, "lsgan": lsgan_generator, "wgan-gp": wgan_generator,
                  "hinge": wgan_generator}
# The logit above which an image passes for real. A critic has none. Add that of a new loss here.
THRESHOLD = {"gan": 0.0, "lsgan": 0.5, "hinge": 0.0}


def gradient_penalty(discriminator, real_images, fake_images, y, alpha):
    """(|grad D| - 1)^2 at a point between each real image and a fake one, (B,).

    alpha (B, 1, 1, 1), from 0 to 1: where between them, one number and one norm per image. The
    penalty's own gradient is a second derivative of the critic.
    """
    mixed = torch.lerp(fake_images, real_images, alpha).requires_grad_()
    gradient = torch.autograd.grad(discriminator(mixed, y).sum(), mixed, create_graph=True)[0]
    return (gradient.flatten(1).norm(dim=1) - 1).square()


# --------------------------------------------------------------------------------------- train

def for_discriminator(x):
    """Images of the data, (B, C, H, W) from 0 to 255, as (B, C, 32, 32) in [-1, 1]."""
    margin = (32 - x.shape[2]) // 2
    return F.pad(x / 127.5 - 1, [margin] * 4, value=-1)        # black, as the border of digits is


def real_batch(data, args):
    """Random training images (B, C, 32, 32) in [-1, 1] and their labels; half of the colour images
    are mirrored."""
    device = data.x_train.device
    index = torch.randint(len(data.x_train), (args.batch_size,), device=device)
    x = for_discriminator(data.x_train[index])
    if x.shape[1] == 3 and not args.no_flip:
        mirror = torch.rand(len(x), 1, 1, 1, device=device) < 0.5
        x = torch.where(mirror, x.flip(3), x)
    return x.to(memory_format=torch.channels_last), data.y_train[index]


def discriminator_step(generator, discriminator, optimizer, x, y, args):
    """1. The discriminator wants high logits for real images and low ones for fake images.

    Returns terms of the log, (B,) each; d_loss is without the penalty.
    """
    z = torch.randn(len(x), args.latent, device=x.device)
    alpha = torch.zeros(len(x), 1, 1, 1, device=x.device)
    if args.loss == "wgan-gp":
        alpha.uniform_()                                       # one for each image
    mine = own_rows()                                          # of several processes
    x, y, z, alpha = x[mine], y[mine], z[mine], alpha[mine]
    with torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp):
        with torch.no_grad():                                  # the generator does not learn here
            fake_images = generator(z, y).float()
        real = discriminator(x, y)
        fake = discriminator(fake_images, y)
        loss = DISCRIMINATOR_LOSS[args.loss](real, fake)
        objective = loss
        if args.loss == "wgan-gp":
            penalty = gradient_penalty(discriminator, x, fake_images, y, alpha)
            objective = loss + LAMBDA * penalty
    optimizer.zero_grad()
    objective.mean().backward()
    average_gradients(discriminator, len(x))
    optimizer.step()

    terms = {"d_loss": loss, "d_real": real, "d_fake": fake}
    if args.loss == "gan":                                     # the others are no probabilities
        terms |= {"d_real": torch.sigmoid(real), "d_fake": torch.sigmoid(fake)}
    if args.loss in THRESHOLD:
        right = (real > THRESHOLD[args.loss]).float() + (fake <= THRESHOLD[args.loss]).float()
        terms["d_accuracy"] = right / 2
    return terms


def generator_step(generator, discriminator, optimizer, y, args):
    """2. The generator wants high logits for its images. Returns terms of the log, (B,) each."""
    z = torch.randn(len(y), args.latent, device=y.device)
    mine = own_rows()
    y, z = y[mine], z[mine]
    discriminator.requires_grad_(False)                        # spare gradients that nobody needs
    with torch.autocast(y.device.type, torch.bfloat16, enabled=args.amp):
        loss = GENERATOR_LOSS[args.loss](discriminator(generator(z, y), y))
    optimizer.zero_grad()
    loss.mean().backward()
    average_gradients(generator, len(y))
    optimizer.step()
    discriminator.requires_grad_(True)
    return {"g_loss": loss}


@torch.no_grad()
def update_average(average, generator, decay):
    """3. The running average of the generator's weights follows them, slowly."""
    weights = generator.state_dict()
    for name, mean in average.state_dict().items():
        if mean.is_floating_point():
            mean.lerp_(weights[name], 1 - decay)
        else:                                                  # the counter of batch normalisation
            mean.copy_(weights[name])


# ------------------------------------------------------------------------------------ evaluate

@torch.no_grad()
def draw(generator, data, args, n):
    """Batches of n images in [0, 1], from the same z in every call, with labels as frequent as in
    the test set."""
    generator.eval()
    noise = torch.Generator().manual_seed(0)
    index = torch.randint(len(data.y_test), (n,), generator=noise)
    y = data.y_test[index.to(data.y_test.device)]
    for labels in y.split(500):
        z = torch.randn(len(labels), args.latent, generator=noise).to(y.device)
        yield generator.picture(z, labels)


def make_meters(args, data):
    """What measures the samples: a FIDMeter and a classifier; None for what is not available."""
    if not args.eval_every or not has_package("torchmetrics", "the Frechet distance"):
        return None, None
    if args.train_size is not None:   # floor and classifier: of all training images, as evaluate.py
        options = data_options(args) | {"train_size": None}
        data = load_data(args.dataset, args.data, data.x_train.device, **options,
                         say=say_nothing)   # said when it was read first
    meter = FIDMeter(data, args.fid_features, args.data, quiet=args.quiet)
    if not can_train_classifier(data):
        return meter, None
    return meter, trained_classifier(data, quiet=args.quiet)


def measure(generator, data, args, meter, classifier):
    """{name: number}: the Frechet distance of samples with its floor and, where there is a
    classifier, the counts of 1,000 samples by class."""
    if meter is None:
        return {}
    measured = {
        meter.name: meter.distance(draw(generator, data, args, meter.n)),
        f"{meter.name}_floor": meter.floor,
    }
    if classifier is not None:
        labels = [classifier(x).argmax(1) for x in draw(generator, data, args, 1000)]
        counts = torch.cat(labels).bincount(minlength=len(data.classes))
        measured["class_counts_1000"] = counts.tolist()
    return measured


def save_evaluation(run, iteration, measured):
    """Add a line to evaluation.jsonl; those that a resumed run will write again are dropped, and so
    is what is no line of it."""
    file = run.folder / "evaluation.jsonl"
    lines = []
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if is_earlier(line, iteration):
                lines.append(line)
    lines.append(json.dumps({"iteration": iteration, **measured}))
    write_whole(file, "\n".join([*lines, ""]).encode())


def is_earlier(line, iteration):
    """Whether a line of evaluation.jsonl is whole and of an earlier iteration."""
    try:
        return json.loads(line)["iteration"] < iteration
    except (ValueError, KeyError, TypeError):
        return False


def keep_best(run):
    """best.pt is the checkpoint of the lowest distance so far."""
    earlier = [row["fid"] for row in run.rows[:-1] if row["fid"] is not None]
    if not earlier or run.rows[-1]["fid"] < min(earlier):
        run.keep("best.pt")


def save_results(run, generator, data, meter):
    """All that follows from a row of the log and its checkpoint."""
    if meter is not None and run.rows[-1]["fid"] is not None:
        keep_best(run)
        save_fid_curve(run, meter)
    save_figures(generator, data, run)


def warn(run, iteration, row, measured, data):
    """Say so if the discriminator has won, or if a class is missing among the samples; not at the
    start, when the samples are noise."""
    if iteration < 1000:
        return
    if (row["d_accuracy"] or 0) > 0.99:
        run.say("warning: the discriminator is always right and teaches nothing; "
                "try --loss wgan-gp or more training images")
    counts = measured.get("class_counts_1000", [])
    lost = [name for name, count in zip(data.classes, counts, strict=False) if count == 0]
    if lost:
        run.say(f"warning: none of 1,000 samples is of class {', '.join(lost)}; "
                "try another --loss")


def note_of(row, meter):
    """A row of the log in two words, for the terminal."""
    if meter is None or row["fid"] is None:
        return f"d_loss {row['d_loss']:.3f}"
    return f"fid {row['fid']:.2f}"


def summary_of(row, meter):
    """The last row, with the protocol of its distance."""
    if meter is None or row["fid"] is None:
        return note_of(row, meter)
    return f"{meter.name} {row['fid']:.2f} (floor {meter.floor:.2f})"


# ------------------------------------------------------------------------------------- figures

@torch.no_grad()
def save_figures(generator, data, run):
    """Samples (a class per row, if conditional), a plane of the latent space, curves."""
    args = run.args
    device = data.x_train.device
    generator.eval()
    noise = torch.Generator().manual_seed(0)                   # the same z in every figure
    samples = torch.randn(64, args.latent, generator=noise).to(device)
    corners = torch.randn(4, args.latent, generator=noise)
    if args.conditional:
        names = data.classes[:20]                              # what fits on a page
        samples = samples[:8].repeat(len(names), 1)
        y = torch.arange(len(names), device=device).repeat_interleave(8)
    else:
        names = ()
        y = torch.zeros(64, dtype=torch.long, device=device)
    save_grid(run.figure("sample"), generator.picture(samples, y), 8, names)

    plane = plane_through(corners, 10).to(device)              # (100, latent)
    y = torch.zeros(100, dtype=torch.long, device=device)      # class 0, if conditional
    title = "the plane through four random z (its corners), interpolated on the sphere"
    if args.conditional:
        title = f"class {shortened(data.classes[0])}: {title}"
    shares = [f"{i / 9:.2f}" for i in range(10)]               # of the way
    save_grid(run.figure("interpolation"), generator.picture(plane, y), 10, shares, shares, title)
    save_loss_curves(run)


def plane_through(corners, side):
    """Four z (4, latent) at the corners of a square -> (side * side, latent), row by row.

    All ways are on the sphere: the length of z stays near that of the corners, which for draws
    from N(0, I) is about sqrt(latent), and the generator has seen no other.
    """
    left = spherical(corners[0], corners[2], side)             # (side, latent)
    right = spherical(corners[1], corners[3], side)
    rows = []
    for start, end in zip(left, right, strict=True):
        rows.append(spherical(start, end, side))
    return torch.cat(rows)


def save_loss_curves(run):
    """What the discriminator and the generator were told in training, by iteration."""
    rows = run.rows
    panels = {
        "loss": [("discriminator", "d_loss", "C0--"), ("generator", "g_loss", "C1--")],
        "output of the discriminator": [("real images", "d_real", "C0--"),
                                        ("fake images", "d_fake", "C1--")],
    }
    if run.args.loss == "wgan-gp":
        rows = [row | {"estimate": -row["d_loss"]} for row in rows]
        panels["Wasserstein estimate"] = [("minus critic loss", "estimate", "C0--")]
    elif run.args.loss in THRESHOLD:
        panels["accuracy of the discriminator"] = [("real and fake", "d_accuracy", "C0--")]
    save_curves(run.folder / "curves.png", rows, "iteration", panels, "mean of the interval")


def save_fid_curve(run, meter):
    """The distance by iteration, beside the floor."""
    rows = [row | {"floor": meter.floor} for row in run.rows]
    features = meter.name.removeprefix("fid_").removesuffix(f"_{meter.n}")
    title = f"Fréchet distance to {meter.n:,} test images (features: {features})"
    panels = {title: [("training images: the floor", "floor", "C0--"), ("samples", "fid", "C1-")]}
    save_curves(run.folder / "fid.png", rows, "iteration", panels, meter.name, "log")


# ------------------------------------------------------------------------------- flags and main

def flags():
    parser = Parser(__file__, __doc__)
    group = parser.add_argument_group("model")
    group.add_argument("--conditional", action="store_true", help="tell both networks the label")
    group.add_argument("--width", type=number(int, 1), default=32, metavar="N",
                       help="channels of every convolution")
    group.add_argument("--latent", type=number(int, 2), default=128, metavar="N", help="size of z")
    group.add_argument("--norm", choices=("none", "batch"), default="none",
                       help="normalisation in the discriminator")
    group.add_argument("--ema", type=number(float, 0, below=1), default=0.999, metavar="DECAY",
                       help="of the running average of the generator; 0: none")
    group = parser.add_argument_group("loss")
    group.add_argument("--loss", choices=tuple(DISCRIMINATOR_LOSS), default="hinge",
                       help="original, least squares, Wasserstein with penalty, hinge")
    group.add_argument("--critic-steps", type=number(int, 1), metavar="N",
                       help="of D per step of G (default: 1; wgan-gp: 5)")
    group = parser.add_argument_group("optimiser")
    group.add_argument("--iterations", type=number(int, 1), default=10_000, metavar="N",
                       help="steps of the discriminator")
    group.add_argument("--batch-size", type=number(int, 1), default=64, metavar="N",
                       help="real images per step")
    group.add_argument("--lr", type=number(float, 0, above=True), default=1e-3, metavar="RATE",
                       help="at the start; falls linearly to 0")
    group = add_data_flags(parser)
    group.add_argument("--no-flip", action="store_true",
                       help="do not mirror colour images (SVHN's never are)")
    group = parser.add_argument_group("evaluation")
    group.add_argument("--eval-every", type=number(int, 0), default=1000, metavar="N",
                       help="iterations between rows of the log; 0: once, without FID")
    group.add_argument("--fid-features", type=path_text, default="classifier", metavar="NAME",
                       help="classifier, inception, or its weights")
    add_run_flags(parser, saved="rows of the log between copies")
    return parser


def check_flags(args):
    """Flags that exclude one another, and the file of --fid-features."""
    if args.loss == "wgan-gp" and args.norm == "batch":
        fail("--norm batch mixes the images of a batch, but the penalty of --loss wgan-gp is of "
             "each image's own gradient; use --norm none")
    if args.loss == "wgan-gp" and args.compile:
        fail("--compile cannot differentiate twice, which --loss wgan-gp needs; remove it")
    if args.critic_steps is not None and args.critic_steps > args.iterations:
        fail(f"--critic-steps {args.critic_steps} leaves the generator no step in --iterations "
             f"{args.iterations}; raise that")
    if args.fid_features not in ("classifier", "inception"):
        check_inception_weights(args.fid_features)


def set_defaults(args):
    """Defaults that depend on other flags."""
    if args.critic_steps is None:
        args.critic_steps = 5 if args.loss == "wgan-gp" else 1


def check_data(args, data):
    """What the networks and the distance need of the data."""
    height, width = data.x_train.shape[2:]
    if (height, width) not in ((28, 28), (32, 32)):
        fail(f"gan.py makes images of 28x28 or 32x32, not {height}x{width}; use --image-size 32")
    if args.eval_every and min(len(data.x_train), len(data.x_test)) < 2:
        fail("a distance needs two training and two test images; add some, or use --eval-every 0")
    if args.conditional and len(data.classes) < 2:
        fail(f"--conditional needs labels of two classes; --dataset {args.dataset} has "
             f"{len(data.classes)}; remove it")


@guarded
def main(argv=(), **overrides):
    """Train: main(["--loss=lsgan"]) or main(loss="lsgan"). Returns the running average of the
    generator, and the log."""
    args = parse(flags(), argv, overrides)
    set_defaults(args)
    check_flags(args)
    data = load_run_data(args)
    check_data(args, data)
    if data.name == "SVHN":
        args.no_flip = True                                    # a mirrored digit is none
    check_size(build, data, args)

    torch.manual_seed(args.seed)
    shape = data.x_train.shape[1:]
    device = data.x_train.device
    generator = build(shape, len(data.classes), args).to(device)
    discriminator = Discriminator(shape, generator.classes, args).to(device)
    average = copy.deepcopy(generator).requires_grad_(False)
    betas = (0.0, 0.9)                                         # those of the WGAN-GP paper
    g_optimizer = torch.optim.Adam(generator.parameters(), args.lr, betas=betas, fused=True)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), args.lr, betas=betas, fused=True)
    g_steps = args.iterations // args.critic_steps
    g_scheduler = LinearLR(g_optimizer, start_factor=1, end_factor=0, total_iters=g_steps)
    d_scheduler = LinearLR(d_optimizer, start_factor=1, end_factor=0, total_iters=args.iterations)
    run = Run(args, data, generator=generator, discriminator=discriminator, ema=average,
              g_optimizer=g_optimizer, d_optimizer=d_optimizer,
              g_scheduler=g_scheduler, d_scheduler=d_scheduler)
    if args.compile:
        generator.compile()
        discriminator.compile()

    meter, classifier = make_meters(args, data)

    means = Means()
    lr = d_scheduler.get_last_lr()[0]                          # at the start of the interval
    if run.resumed:                                            # a kill may have cost the last ones
        save_results(run, average, data, meter)
    for iteration in run.iterations():
        generator.train()
        x, y = real_batch(data, args)
        means.add(discriminator_step(generator, discriminator, d_optimizer, x, y, args))
        d_scheduler.step()
        if iteration % args.critic_steps == 0:
            means.add(generator_step(generator, discriminator, g_optimizer, y, args))
            g_scheduler.step()
            g_step = iteration // args.critic_steps
            decay = min(args.ema, g_step / (g_step + 10))   # the first weights are soon forgotten
            update_average(average, generator, decay)

        if run.due(iteration):
            interval = f"iterations {run.done + 1} to {iteration}"
            row = {"lr": lr} | dict.fromkeys(COLUMNS) | means.compute(interval)
            run.show("measuring")
            measured = measure(average, data, args, meter, classifier)
            if meter is not None:
                row["fid"] = measured[meter.name]
                save_evaluation(run, iteration, measured)
            warn(run, iteration, row, measured, data)
            run.save(row, note_of(row, meter), iteration)
            save_results(run, average, data, meter)
            means = Means()
            lr = d_scheduler.get_last_lr()[0]
    run.finish(summary_of(run.rows[-1], meter))
    return average, run.rows


if __name__ == "__main__":
    main(sys.argv[1:])
