"""Generative adversarial networks on 32x32 pictures: the original loss, least squares, WGAN-GP.

Goodfellow et al. 2014 (arXiv 1406.2661); Mao et al. 2017 (arXiv 1611.04076); Gulrajani et al. 2017
(arXiv 1704.00028).

    python gan.py                                 # MNIST
    python gan.py --conditional                   # and one class per row
    python gan.py --dataset PATH --loss wgan-gp   # your own pictures
    python gan.py --dataset digits --iterations 500 --eval-every 250   # no download
"""
import copy
import json
import math
import os
import shutil
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LinearLR

from common import add_plumbing_flags, check, make_parser, number, start_run
from common import load_data, progress, read_log, restore, save_curves, save_epoch, save_grid
from common import write_tensorboard
from metrics import classifier, classifies, fid, fid_meter

LAMBDA = 10   # weight of the gradient penalty, as in the paper


def flags():
    """The flags that belong to the lesson; the plumbing is in common.py."""
    parser = make_parser("gan", "Train a generative adversarial network.")
    add = parser.add_argument
    add("--loss", choices=("gan", "lsgan", "wgan-gp"), default="gan",
        help="original (non-saturating), least squares, Wasserstein with gradient penalty")
    add("--critic-steps", type=number(int, 1),
        help="steps of the discriminator to one of the generator (default: 5 for wgan-gp, else 1)")
    add("--conditional", action="store_true", help="tell both networks the label")
    add("--width", type=number(int, 1), default=32, help="channels of every convolution")
    add("--latent", type=number(int, 2), default=128, help="size of z")
    add("--norm", choices=("none", "batch"), default="none", help="in the discriminator")
    add("--no-flip", action="store_true",
        help="do not mirror half of the colour pictures (grey ones never are)")
    add("--iterations", type=number(int, 1), default=10_000, help="steps of the discriminator")
    add("--batch-size", type=number(int, 1), default=64, help="real images a step")
    add("--lr", type=number(float, 0, above=True), default=1e-3,
        help="learning rate at the start; it falls to 0 in a straight line")
    add("--ema", type=number(float, 0), default=0.999,
        help="decay of the generator's running average, which draws every picture; 0: no average")
    add("--eval-every", type=number(int, 0), default=1000,
        help="iterations between rows of the log with pictures and FID; 0: once, without FID")
    add("--span", type=number(float, 0, above=True), default=1.0,
        help="the interpolation grid reaches from minus this to this")
    add("--fid-features", default="classifier",
        help="classifier (of the data set), inception (one download), or a file of its weights")
    add_plumbing_flags(parser)
    return parser


def check_flags(args, data=None):
    """What no single flag can know, and then what the data add to it."""
    args.critic_steps = args.critic_steps or (5 if args.loss == "wgan-gp" else 1)
    check(args.ema < 1, f"--ema must be below 1, not {args.ema}")
    check(args.critic_steps <= args.iterations, f"--critic-steps {args.critic_steps} leaves the "
          f"generator no step in --iterations {args.iterations}: raise that")
    if args.loss == "wgan-gp":
        check(args.norm != "batch", "--norm batch mixes the images of a batch, but the penalty of "
              "--loss wgan-gp is of each image's own gradient: take --norm none")
        check(not args.compile, "--compile cannot differentiate twice, as --loss wgan-gp must: "
              "take --amp")
    if data is not None:
        size = list(data.x_train.shape[2:])
        check(size in ([28, 28], [32, 32]), f"gan.py makes 28x28 or 32x32 pictures, not {size}: "
              "give --image-size 32")
        check(not args.eval_every or min(len(data.x_train), len(data.x_test)) > 1, "a distance "
              "needs two images to train and two to test; add some, or set --eval-every 0")
        check(not args.conditional or len(data.classes) > 1,
              f"--conditional needs labels, and --dataset {args.dataset} has none: leave it away")


def upsample(x):
    """Repeat each channel four times, shuffle the four to a square of pixels: (B, C, H, W) ->
    (B, C, 2H, 2W). That is nearest-neighbour interpolation, which has the faster kernel."""
    return F.interpolate(x, scale_factor=2)   # F.pixel_shuffle(x.repeat_interleave(4, 1), 2)


def downsample(x):
    """Unshuffle each square of four pixels to channels, take their mean: (B, C, 2H, 2W) ->
    (B, C, H, W). Undoes `upsample` exactly. ValueError where a side is odd."""
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise ValueError(f"downsample halves even sides, not {list(x.shape[2:])}")
    return F.avg_pool2d(x, 2)   # F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).mean(2)


class UpSampleConv2D(nn.Conv2d):
    """Upsample, then convolve: (B, n, H, W) -> (B, m, 2H, 2W)."""

    def forward(self, x):
        return super().forward(upsample(x))


class DownSampleConv2D(nn.Conv2d):
    """Downsample, then convolve: (B, n, 2H, 2W) -> (B, m, H, W)."""

    def forward(self, x):
        return super().forward(downsample(x))


class ConditionalNorm(nn.Module):
    """Batch normalisation with a gain and a bias for each class, or one for all (Dumoulin et al.
    2017, arXiv 1610.07629)."""

    def __init__(self, width, classes):
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=not classes)
        self.label = nn.Embedding(classes, 2 * width) if classes else None   # 0: gain 1, bias 0
        if classes:
            nn.init.zeros_(self.label.weight)

    def forward(self, x, y):
        h = self.norm(x)                                       # (B, width, H, W)
        if self.label is None:
            return h
        gain, bias = self.label(y)[:, :, None, None].to(h.dtype).chunk(2, dim=1)
        return torch.addcmul(h + bias, h, gain)                # (1 + gain) * h + bias


class UpBlock(nn.Module):
    """Residual block of the generator: (B, width, H, W), (B,) -> (B, width, 2H, 2W)."""

    def __init__(self, width, classes):
        super().__init__()
        self.norm1, self.norm2 = ConditionalNorm(width, classes), ConditionalNorm(width, classes)
        self.conv1 = UpSampleConv2D(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = UpSampleConv2D(width, width, 1)

    def forward(self, x, y):
        h = self.conv1(F.relu(self.norm1(x, y)))
        return self.skip(x) + self.conv2(F.relu(self.norm2(h, y)))


class DownBlock(nn.Module):
    """Residual block of the discriminator: (B, n, 2H, 2W) -> (B, width, H, W)."""

    def __init__(self, n, width, norm, pixels=False):
        super().__init__()
        finish = [nn.BatchNorm2d(width)] if norm == "batch" else []
        self.body = nn.Sequential(
            nn.Identity() if pixels else nn.ReLU(),   # half of the pixels are below 0, too
            nn.Conv2d(n, width, 3, padding=1), *finish, nn.ReLU(),   # (B, width, 2H, 2W)
            DownSampleConv2D(width, width, 3, padding=1),            # (B, width, H, W)
        )
        self.skip = DownSampleConv2D(n, width, 1)

    def forward(self, x):
        return self.skip(x) + self.body(x)


class Generator(nn.Module):
    """z (B, latent), y (B,) -> pictures (B, C, 32, 32) in [-1, 1]; y counts if classes > 0."""

    def __init__(self, shape, args, classes):
        super().__init__()
        self.shape, self.classes, width = shape, classes, args.width
        self.first = nn.Linear(args.latent, width * 4 * 4)
        self.blocks = nn.ModuleList(UpBlock(width, classes) for _ in range(3))
        self.norm = ConditionalNorm(width, classes)
        self.last = nn.Conv2d(width, shape[0], 3, padding=1)
        self.to(memory_format=torch.channels_last)   # the fast layout of convolutions

    def forward(self, z, y):
        y = y if self.classes else torch.zeros_like(y)
        h = self.first(z).unflatten(1, (-1, 4, 4))             # (B, width, 4, 4)
        for block in self.blocks:
            h = block(h, y)                                    # ... 8, 16, 32
        return torch.tanh(self.last(F.relu(self.norm(h, y))))  # (B, C, 32, 32)

    def picture(self, z, y):
        """Pictures (B, C, H, W) in [0, 1] of the data's own size, without the padding."""
        margin = (32 - self.shape[1]) // 2
        return (F.pad(self(z, y), [-margin] * 4).float() + 1) / 2


class Discriminator(nn.Module):
    """x (B, C, 32, 32) in [-1, 1], y (B,) -> one logit an image, (B,). The label, if any, enters as
    an inner product with the features (Miyato & Koyama 2018, arXiv 1802.05637)."""

    def __init__(self, shape, args, classes):
        super().__init__()
        width, norm = args.width, args.norm
        self.body = nn.Sequential(
            DownBlock(shape[0], width, norm, pixels=True),      # (B, width, 16, 16)
            DownBlock(width, width, norm),                      # (B, width, 8, 8)
            DownBlock(width, width, norm), nn.ReLU(),           # (B, width, 4, 4)
        )
        self.last = nn.Linear(width, 1)
        self.label = nn.Embedding(classes, width) if classes else None
        self.to(memory_format=torch.channels_last)

    def forward(self, x, y):
        h = self.body(x).mean((2, 3)).float()                   # (B, width)
        logit = self.last(h)[:, 0].float()
        return logit if self.label is None else logit + (self.label(y) * h).sum(1)


def discriminator_loss(kind, real, fake):
    """Logits of real and of fake images, (B,) each -> loss per pair, (B,)."""
    if kind == "gan":
        return F.softplus(-real) + F.softplus(fake)             # -log D(x) - log(1 - D(G(z)))
    if kind == "lsgan":
        return 0.5 * (real - 1).square() + 0.5 * fake.square()  # targets 1 and 0
    return fake - real                                          # minus the Wasserstein estimate


def generator_loss(kind, fake):
    """Logits of fake images (B,) -> loss per image, (B,)."""
    if kind == "gan":
        return F.softplus(-fake)                                # -log D(G(z)): non-saturating
    return 0.5 * (fake - 1).square() if kind == "lsgan" else -fake   # target c = 1; or the critic's


def gradient_penalty(discriminator, real, fake, y):
    """(|grad D| - 1)^2 at a point between each real image and a fake one, (B,): one alpha and one
    norm per image. Its own gradient is a second derivative of the critic."""
    alpha = torch.rand(len(real), 1, 1, 1, device=real.device)
    x = torch.lerp(fake, real, alpha).requires_grad_()
    gradient, = torch.autograd.grad(discriminator(x, y).sum(), x, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square()


def real_batch(data, args):
    """Random training images (B, C, 32, 32) in [-1, 1], some of them mirrored, and their labels."""
    device = data.x_train.device
    index = torch.randint(len(data.x_train), (args.batch_size,), device=device)
    x = data.x_train[index] / 127.5 - 1
    x = F.pad(x, [(32 - x.shape[2]) // 2] * 4, value=-1)        # black, as the border of digits is
    if x.shape[1] == 3 and not args.no_flip:
        x = torch.where(torch.rand(len(x), 1, 1, 1, device=device) < 0.5, x.flip(3), x)
    return x.to(memory_format=torch.channels_last), data.y_train[index]


def discriminator_step(generator, discriminator, optimizer, x, y, args):
    """1. The discriminator wants high logits for real images and low ones for fake images.
    Returns means over the batch, which stay on the device; d_loss is without the penalty."""
    z = torch.randn(len(x), args.latent, device=x.device)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp):
        with torch.no_grad():   # the generator is not to learn from this
            fake = generator(z, y).float()
        logits = discriminator(x, y), discriminator(fake, y)
        loss = discriminator_loss(args.loss, *logits)
        objective = loss
        if args.loss == "wgan-gp":
            objective = loss + LAMBDA * gradient_penalty(discriminator, x, fake, y)
    optimizer.zero_grad()
    objective.mean().backward()
    optimizer.step()
    real, fake = (torch.sigmoid(logit) if args.loss == "gan" else logit for logit in logits)
    right = ((real > 0.5).float() + (fake <= 0.5)) / 2   # of a sigmoid: at a logit of 0
    terms = {"d_loss": loss, "d_real": real, "d_fake": fake, "d_accuracy": right}
    return {name: value.detach().mean() for name, value in terms.items()}


def generator_step(generator, discriminator, optimizer, y, args):
    """2. The generator wants high logits for its images. Returns the mean of its loss."""
    z = torch.randn(len(y), args.latent, device=y.device)
    discriminator.requires_grad_(False)   # spare the gradients that nobody asks for
    with torch.autocast(y.device.type, torch.bfloat16, enabled=args.amp):
        loss = generator_loss(args.loss, discriminator(generator(z, y), y))
    optimizer.zero_grad()
    loss.mean().backward()
    optimizer.step()
    discriminator.requires_grad_(True)
    return {"g_loss": loss.detach().mean()}


@torch.no_grad()
def update_average(average, generator, decay):
    """3. The running average of the generator's weights follows them, slowly."""
    for old, new in zip(average.state_dict().values(), generator.state_dict().values(),
                        strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)


@torch.no_grad()
def draw(generator, data, args, n):
    """Batches of n pictures in [0, 1] from the same z in every call; labels, where they count, as
    often as in the test set."""
    generator.eval()
    noise = torch.Generator().manual_seed(0)
    y = data.y_test[torch.randint(len(data.y_test), (n,), generator=noise).to(data.y_test.device)]
    for labels in y.split(500):
        z = torch.randn(len(labels), args.latent, generator=noise).to(y.device)
        yield generator.picture(z, labels)


@torch.no_grad()
def save_figures(generator, data, folder, iteration, args):
    """Samples of the same z every time (a class per row, if conditional), a plane through the
    latent space, curves."""
    generator.eval()
    noise, device = torch.Generator().manual_seed(0), data.x_train.device
    z = torch.randn(64, args.latent, generator=noise).to(device)
    y, names = torch.zeros(64, dtype=torch.long, device=device), ()
    if args.conditional:
        names = data.classes[:20]   # what fits on a page
        z, y = z[:8].repeat(len(names), 1), torch.arange(len(names), device=device)
        y = y.repeat_interleave(8)
    save_grid(folder / f"sample_{iteration:03d}.png", generator.picture(z, y), 8, names)
    steps = torch.linspace(-args.span, args.span, 10, device=device)
    z = torch.randn(1, args.latent, generator=noise).to(device).repeat(100, 1)   # of any span
    z[:, :2] = torch.cartesian_prod(steps, steps)   # z_1 from row to row, z_2 along a row
    grid = generator.picture(z, torch.zeros(100, dtype=torch.long, device=device))
    save_grid(folder / f"interpolation_{iteration:03d}.png", grid, 10)
    rows = read_log(folder)
    panels = {"loss": {"discriminator": "d_loss", "generator": "g_loss"},
              "output of the discriminator": {"fake images": "d_fake", "real images": "d_real"}}
    if args.loss == "wgan-gp":
        rows = [row | {"distance": -row["d_loss"]} for row in rows]
        panels["Wasserstein estimate"] = {"minus critic loss": "distance"}
    else:
        panels["accuracy of the discriminator"] = {"real and fake": "d_accuracy"}
    save_curves(folder / "curves.png", rows, panels, "mean of the interval")


def interval_means(steps, iteration):
    """{column: mean over the steps that have it}; one that is not finite ends the run."""
    means = {}
    for name in ("d_loss", "g_loss", "d_real", "d_fake", "d_accuracy"):
        values = [step[name] for step in steps if name in step]   # the one synchronisation
        means[name] = torch.stack(values).cpu().double().mean().item() if values else None
        check(not values or math.isfinite(means[name]), f"{name} is not finite before iteration "
              f"{iteration}; the last checkpoint is kept; try a smaller --lr", status=1)
    return means


def measure(generator, data, folder, iteration, meter, recogniser, args):
    """The distance of samples; it, its floor and, if there is a classifier, the count of 1,000
    samples by class go to evaluation.jsonl, too."""
    name, distance, floor = meter
    n = int(name.rpartition("_")[2])
    found = {name: fid(distance, draw(generator, data, args, n)), f"{name}_floor": floor}
    check(math.isfinite(found[name]), f"{name} is not finite in iteration {iteration}; the last "
          "checkpoint is kept; try a smaller --lr", status=1)
    if recogniser:
        seen = torch.cat([recogniser(x).argmax(1) for x in draw(generator, data, args, 1000)])
        counts = seen.bincount(minlength=len(data.classes)).tolist()
        found["class_counts_1000"] = counts
        lost = [name for name, count in zip(data.classes, counts, strict=True) if count == 0]
        warn(lost, f"no sample of 1,000 is of class {', '.join(lost)}; try another --loss", args)
    file = folder / "evaluation.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []   # less, after a resume, newer
    lines = [line for line in lines if json.loads(line)["iteration"] < iteration]
    file.write_text("\n".join([*lines, json.dumps({"iteration": iteration, **found}), ""]))
    return found[name]


def warn(wrong, message, args):
    if wrong and not args.quiet:
        print("warning:", message)


def main(argv=(), **overrides):
    """Train by flags: main(["--loss=lsgan"]) or main(loss="lsgan"). Returns the running average of
    the generator and the log."""
    args, data, folder, checkpoint = start_run(flags(), argv, overrides, check_flags)
    shape, device = data.x_train.shape[1:], data.x_train.device
    classes = len(data.classes) if args.conditional else 0
    generator = Generator(shape, args, classes).to(device)
    discriminator = Discriminator(shape, args, classes).to(device)
    average = copy.deepcopy(generator).requires_grad_(False)
    g_optimizer, d_optimizer = (
        torch.optim.Adam(network.parameters(), args.lr, betas=(0.0, 0.9), fused=True)
        for network in (generator, discriminator))
    g_scheduler = LinearLR(g_optimizer, 1, 0, args.iterations // args.critic_steps)
    d_scheduler = LinearLR(d_optimizer, 1, 0, args.iterations)
    state = {"generator": generator, "discriminator": discriminator, "ema": average,
             "g_optimizer": g_optimizer, "d_optimizer": d_optimizer,
             "g_scheduler": g_scheduler, "d_scheduler": d_scheduler}
    first = restore(checkpoint, state)
    if args.compile:
        generator.compile()
        discriminator.compile()
    every, steps = args.eval_every or args.iterations, []
    lr, meter, recogniser = d_scheduler.get_last_lr()[0], None, None
    with progress(args, "gan", folder, first) as bar:
        if args.eval_every:   # features and floor are of all training images, as in evaluate.py
            whole = data if not args.train_size else load_data(
                args.dataset, args.data, device, args.image_size, test_size=args.test_size)
            meter = fid_meter(whole, args.fid_features, args.data, quiet=args.quiet)
            if classifies(whole):
                recogniser = classifier(whole, quiet=args.quiet)
        start = time.perf_counter()
        for iteration in range(first, args.iterations + 1):
            generator.train()
            x, y = real_batch(data, args)
            steps.append(discriminator_step(generator, discriminator, d_optimizer, x, y, args))
            d_scheduler.step()
            if iteration % args.critic_steps == 0:
                steps[-1] |= generator_step(generator, discriminator, g_optimizer, y, args)
                g_scheduler.step()
                turn = iteration // args.critic_steps   # the first weights are soon forgotten
                update_average(average, generator, min(args.ema, turn / (turn + 10)))
            if iteration % every and iteration < args.iterations:
                continue
            row = {"iteration": iteration, "seconds": 0, "lr": lr}
            row |= interval_means(steps, iteration)
            note = f"{len(steps) / (time.perf_counter() - start):.1f} iterations/s"
            if args.loss == "wgan-gp":   # a critic has no threshold to be right at
                row["d_accuracy"] = None
            warn((row["d_accuracy"] or 0) > 0.99, "the discriminator is always right and teaches "
                 "nothing; try --loss wgan-gp or more training images", args)
            row["fid"] = None
            if meter:
                row["fid"] = measure(average, data, folder, iteration, meter, recogniser, args)
                note = f"{meter[0]} {row['fid']:.2f} (floor {meter[2]:.2f}), {note}"
            row["seconds"] = time.perf_counter() - start
            save_epoch(row, note, args, "gan", data, folder, state, bar)
            rows = read_log(folder)
            if meter and min(rows, key=lambda row: row["fid"]) is rows[-1]:
                shutil.copyfile(folder / "checkpoint.pt", folder / "best.part")
                os.replace(folder / "best.part", folder / "best.pt")   # a kill leaves a whole file
            if meter:
                rows = [row | {"floor": meter[2]} for row in rows]
                save_curves(folder / "fid.png", rows, {meter[0]: {"floor": "floor",
                            "samples": "fid"}}, "distance to the test set")
            save_figures(average, data, folder, iteration, args)
            if args.tensorboard:
                write_tensorboard(row, args, folder)
            steps, start, lr = [], time.perf_counter(), d_scheduler.get_last_lr()[0]
    return average, read_log(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
