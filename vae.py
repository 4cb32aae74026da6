"""Autoencoder, variational autoencoder (VAE) and beta-VAE.

Kingma & Welling 2014, Auto-Encoding Variational Bayes (arXiv 1312.6114); beta: Higgins et al. 2017.

    python vae.py                                   # MNIST: 101.0 nats in a minute on two CPU cores
    python vae.py --arch conv --amp                 # 94.6 nats in seven minutes
    python vae.py --latent 2                        # with a map of the latent plane
    python vae.py --beta 0                          # a plain autoencoder
    python vae.py --dataset digits --epochs 100     # no download
"""
import math
import sys
import time
from collections import namedtuple

import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

from common import add_plumbing_flags, check, make_parser, number, start_run
from common import active_units, batches, bernoulli_nll, gaussian_kl, gaussian_nll
from common import progress, read_log, restore, save_epoch, write_tensorboard
from common import save_curves, save_grid, save_latent

SIGMA_MIN = 1 / 256   # a grey level; without it, a black border is infinitely likely
Learner = namedtuple("Learner", "model optimizer scheduler")   # what a checkpoint has to hold


def flags():
    """The flags that belong to the lesson; the plumbing is in common.py."""
    parser = make_parser("vae", "Train an autoencoder, a VAE or a beta-VAE.")
    add = parser.add_argument
    add("--arch", choices=("mlp", "conv"), default="mlp", help="fully connected or convolutional")
    add("--hidden", type=number(int, 1),
        help="hidden units (default: 500), or channels of the first convolution (default: 32)")
    add("--layers", type=number(int, 0),
        help="fully connected hidden layers, either way (default: 1; 0 for --arch conv in colour)")
    add("--latent", type=number(int, 1), default=20, help="size of z")
    add("--dropout", type=number(float, 0), default=0.0, help="share of activations set to zero")
    add("--likelihood", choices=("bernoulli", "gaussian"),
        help="p(x|z) (default: bernoulli for grey pictures, gaussian for colour)")
    add("--sigma", type=sigma, default="learned",
        help="of the gaussian: learned (one number), pixel (of the decoder) or a number, on [0, 1]")
    add("--binarize", choices=("none", "threshold", "dynamic"), default="none",
        help="black or white pixels: above 1/2, or drawn anew in every epoch")
    add("--show", choices=("mean", "sample"), default="mean", help="in figures: of p(x|z)")
    add("--beta", type=number(float, 0), default=1.0,
        help="weight of the KL: 1 is the ELBO, 0 a plain autoencoder")
    add("--beta-schedule", choices=("constant", "linear", "cyclical"), default="constant",
        help="beta by epoch")
    add("--beta-warmup", type=number(int, 1),
        help="epochs to reach beta (default: all for linear, a quarter for cyclical)")
    add("--epochs", type=number(int, 1), default=20, help="passes over the training images")
    add("--batch-size", type=number(int, 1), default=128, help="images a step")
    add("--lr", type=number(float, 0, above=True), default=5e-3,
        help="learning rate; its peak, where the schedule has one")
    add("--lr-schedule", choices=("constant", "onecycle", "cosine", "plateau"), default="onecycle",
        help="learning rate by step (plateau: by epoch)")
    add_plumbing_flags(parser)
    return parser


def sigma(text):
    """The argparse type of --sigma."""
    return text if text in ("learned", "pixel") else str(number(float, SIGMA_MIN)(text))


def check_flags(args, data=None):
    """What no single flag can know, and then what the data add to it."""
    args.hidden = args.hidden or {"mlp": 500, "conv": 32}[args.arch]
    check(args.dropout < 1, f"--dropout must be below 1, not {args.dropout}")
    if args.binarize != "none":
        args.likelihood = args.likelihood or "bernoulli"
        check(args.likelihood == "bernoulli", "--binarize needs --likelihood bernoulli")
    if args.sigma != "learned":
        args.likelihood = args.likelihood or "gaussian"
        check(args.likelihood == "gaussian", "--sigma needs --likelihood gaussian")
    if args.beta_schedule == "constant":
        check(not args.beta_warmup, "--beta-warmup needs --beta-schedule linear or cyclical")
    else:
        cycle = args.epochs // (4 if args.beta_schedule == "cyclical" else 1)
        check(2 <= (args.beta_warmup or cycle) <= cycle, f"--beta-warmup must be 2 to {cycle} with "
              f"--beta-schedule {args.beta_schedule} and --epochs {args.epochs}: raise --epochs")
    if data is not None:
        channels, *size = data.x_train.shape[1:]
        args.likelihood = args.likelihood or ("bernoulli" if channels == 1 else "gaussian")
        if args.layers is None:
            args.layers = 0 if args.arch == "conv" and channels == 3 else 1
        side = max(size)
        while side > 7 and side % 2 == 0:
            side //= 2
        fits = min(size) == max(size) > 7 and 4 <= side <= 7
        check(fits or args.arch == "mlp", "--arch conv needs a square that halves down to 4..7, "
              f"not {size}: give --image-size 28, 32 or 64")


def dense(sizes, *between):
    """Fully connected layers from size to size, and what comes between two of them."""
    layers = [[nn.Linear(n, width), *between] for n, width in zip(sizes, sizes[1:], strict=False)]
    return sum(layers, [])[:-len(between)]


def mlp(shape, inputs, codes, args):
    """Encoder from `inputs` numbers to 2 * latent, decoder from `codes` numbers to `shape`."""
    between = [nn.ReLU(), *([nn.Dropout(args.dropout)] if args.dropout else [])]
    hidden = [args.hidden] * args.layers
    encoder = nn.Sequential(
        *dense([inputs, *hidden, 2 * args.latent], *between),   # (B, 2 * latent): mu and logvar
    )
    decoder = nn.Sequential(
        *dense([codes, *hidden, math.prod(shape)], *between),   # (B, C * H * W)
        nn.Unflatten(1, shape),                                 # (B, C, H, W)
    )
    return encoder, decoder


def conv(shape, inputs, codes, args):
    """The same with convolutions that halve a picture of `inputs` channels down to 4..7 pixels and
    double its width each time, fully connected layers, and the mirror image of them all."""
    widths, side = [], shape[1]
    while side > 7:
        widths, side = [*widths, args.hidden * 2 ** len(widths)], side // 2
    flat, steps = widths[-1] * side * side, list(zip([inputs, *widths], widths, strict=False))
    hidden = [16 * args.hidden] * args.layers

    def finish(width):
        drop = [nn.Dropout2d(args.dropout)] if args.dropout else []
        return [nn.BatchNorm2d(width), nn.LeakyReLU(0.2), *drop]

    down = [[nn.Conv2d(n, width, 4, stride=2, padding=1), *finish(width)] for n, width in steps]
    encoder = nn.Sequential(
        *sum(down, []), nn.Flatten(),                       # (B, hidden, H / 2, W / 2) ... flat
        *dense([flat, *hidden, 2 * args.latent], nn.LeakyReLU(0.2)),   # (B, 2 * latent)
    )
    up = [[*finish(width), nn.ConvTranspose2d(width, n, 4, stride=2, padding=1)] for n, width in
          [(shape[0], widths[0]), *steps[1:]]]
    decoder = nn.Sequential(
        *dense([codes, *hidden, flat], nn.LeakyReLU(0.2)),  # (B, flat)
        nn.Unflatten(1, (widths[-1], side, side)),          # (B, hidden * 2 ** ..., 4..7, 4..7)
        *sum(reversed(up), []),                             # ... (B, C, H, W)
    )
    return encoder, decoder


class VAE(nn.Module):
    """q(z|x) = N(mu, diag(exp(logvar))), and p(x|z) of Bernoulli or of Normal pixels."""

    def __init__(self, shape, args):
        super().__init__()
        self.args = args
        inputs = shape[0] if args.arch == "conv" else math.prod(shape)
        outputs = (2 * shape[0] if args.sigma == "pixel" else shape[0], *shape[1:])
        networks = conv if args.arch == "conv" else mlp
        sizes = (inputs, args.latent)
        self.encoder, self.decoder = networks(outputs, *sizes, args)
        if args.likelihood == "gaussian" and args.sigma == "learned":
            self.log_sigma = nn.Parameter(torch.tensor(-1.0))
        self.to(memory_format=torch.channels_last)   # the fast layout of convolutions

    def encode(self, x):
        """x (B, C, H, W) in [0, 1] -> mu, logvar of q(z|x), each (B, latent)."""
        h = x.flatten(1) if self.args.arch == "mlp" else x
        mu, logvar = self.encoder(h).float().chunk(2, dim=1)
        return mu, logvar.clamp(-15, 15)   # far from the overflow of exp

    def decode(self, z):
        """z (B, latent) -> logits (B, C, H, W), whose sigmoid is the mean of p(x|z);
        log sigma: None if Bernoulli, one number, or (B, C, H, W)."""
        logits = self.decoder(z).float()
        if self.args.likelihood == "bernoulli":
            return logits, None
        if self.args.sigma == "pixel":
            logits, log_sigma = logits.chunk(2, dim=1)
        elif self.args.sigma == "learned":
            log_sigma = self.log_sigma
        else:
            return logits, torch.tensor(math.log(float(self.args.sigma)))
        low = math.log(SIGMA_MIN)   # a soft bound from below (Rybkin et al. 2021, arXiv 2006.13202)
        return logits, low + nn.functional.softplus(log_sigma - low)

    def picture(self, z):
        """z (B, latent) -> pictures (B, C, H, W): the mean of p(x|z), or a sample."""
        logits, log_sigma = self.decode(z)
        mean, noise = torch.sigmoid(logits), torch.Generator(z.device).manual_seed(0)
        if self.args.show == "mean":
            return mean
        if log_sigma is None:
            return torch.bernoulli(mean, generator=noise)
        eps = torch.randn(mean.shape, generator=noise, device=z.device)
        return (mean + torch.exp(log_sigma) * eps).clamp(0, 1)


def loss_terms(model, x, eps):
    """Reconstruction and KL in nats per image, (B,) each: their sum is the negative ELBO; and mu.

    eps (B, latent) is the noise of the reparameterisation (section 2.4); None: autoencoder, z = mu.
    """
    mu, logvar = model.encode(x)
    z = mu if eps is None else mu + torch.exp(0.5 * logvar) * eps   # z ~ q(z|x)
    logits, log_sigma = model.decode(z)
    if log_sigma is None:
        recon = bernoulli_nll(logits, x)                            # -log p(x|z)
    else:
        recon = gaussian_nll(torch.sigmoid(logits), log_sigma, x)
    kl = torch.zeros_like(recon) if eps is None else gaussian_kl(mu, logvar)
    return recon, kl, mu


def make_learner(model, data, args):
    """Adam, with its fused kernel, and the learning rate over all the steps to come."""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    steps = args.epochs * math.ceil(len(data.x_train) / args.batch_size)
    scheduler = {
        "constant": lambda: ConstantLR(optimizer, factor=1),
        "onecycle": lambda: OneCycleLR(optimizer, args.lr, total_steps=steps),
        "cosine": lambda: CosineAnnealingLR(optimizer, steps),
        "plateau": lambda: ReduceLROnPlateau(optimizer, patience=3),
    }[args.lr_schedule]()
    return Learner(model, optimizer, scheduler)


def beta_at(epoch, args):
    """The weight of the KL in epoch 1, 2 ... args.epochs.

    linear: from 0 in the first epoch to beta in epoch --beta-warmup and after (Bowman et al. 2016,
    arXiv 1511.06349). cyclical: that four times over (Fu et al. 2019, arXiv 1903.10145).
    """
    if args.beta_schedule == "constant":
        return args.beta
    cycles = 4 if args.beta_schedule == "cyclical" else 1
    starts = [round(args.epochs * i / cycles) for i in range(cycles + 1)]   # epochs before each
    cycle = max(i for i in range(cycles) if starts[i] < epoch)
    warmup = args.beta_warmup or starts[cycle + 1] - starts[cycle]
    return args.beta * min(1, (epoch - starts[cycle] - 1) / (warmup - 1))


def epoch_means(sums, count, epoch):
    """Means per image of [{column: sum over a batch}]; a sum that is not finite ends the run."""
    # The one synchronisation of an epoch, and double: sums of many batches outgrow 24 bits.
    table = torch.stack([torch.stack([*batch.values()]) for batch in sums]).cpu().double()
    bad = (~table.isfinite()).nonzero().tolist()
    if bad:   # of the bad columns of a step the last is a term, not a total
        step, last = max(place for place in bad if place[0] == bad[0][0])
        check(False, f"{list(sums[0])[last]} is not finite in step {step + 1} of epoch {epoch}; "
              "the last checkpoint is kept; try a smaller --lr", status=1)
    return dict(zip(sums[0], (table.sum(0) / count).tolist(), strict=True))


def train_step(learner, terms, x, eps, beta, args):
    """One step on one batch. Returns the batch's sums, which stay on the device."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp):
        recon, kl, _ = terms(learner.model, x, eps)
    objective = recon + beta * kl
    learner.optimizer.zero_grad()
    objective.mean().backward()
    nn.utils.clip_grad_norm_(learner.model.parameters(), x[0].numel())   # rarely at work
    learner.optimizer.step()
    if args.lr_schedule != "plateau":
        learner.scheduler.step()
    sums = {"objective": objective, "loss": recon + kl, "recon": recon, "kl": kl}
    return {f"train_{name}": value.detach().sum() for name, value in sums.items()}


def train_epoch(learner, terms, data, epoch, args):
    """Every training image once, in random order. Returns the train_ columns of the log."""
    learner.model.train()
    beta, sums = beta_at(epoch, args), []
    for x, _ in batches(data.x_train, data.y_train, args.batch_size, shuffle=True):
        x = torch.bernoulli(x) if args.binarize == "dynamic" else x
        eps = torch.randn(len(x), args.latent, device=x.device) if args.beta > 0 else None
        sums.append(train_step(learner, terms, x, eps, beta, args))
    row = epoch_means(sums, len(data.x_train), epoch)
    if args.lr_schedule == "plateau":
        learner.scheduler.step(row["train_objective"])
    return row


def binarize(data, args):
    """The data with black or white pixels. Drawn ones: of the test set once and for all, of the
    training set in every epoch anew."""
    if args.binarize == "none":
        return data
    x_train, x_test = (((x >= 128) * 255).byte() for x in (data.x_train, data.x_test))
    if args.binarize == "dynamic":
        x_train, noise = data.x_train, torch.Generator(x_test.device).manual_seed(0)
        x_test = torch.bernoulli(data.x_test / 255, generator=noise).mul(255).byte()
    return data._replace(x_train=x_train, x_test=x_test)


@torch.no_grad()
def evaluate(model, data, epoch, args):
    """Every test image once, z sampled, beta = 1. Returns test_ columns of the log and active."""
    model.eval()
    device, sums, means = data.x_test.device, [], []
    noise = torch.Generator(device).manual_seed(0)   # its own: testing leaves training alone
    for x, _ in batches(data.x_test, data.y_test, 1000, shuffle=False):
        shape = (len(x), args.latent)
        eps = torch.randn(shape, device=device, generator=noise) if args.beta > 0 else None
        recon, kl, mu = loss_terms(model, x, eps)
        row = {"loss": recon + kl, "recon": recon, "kl": kl}
        sums.append({f"test_{name}": value.sum() for name, value in row.items()})
        means.append(mu)
    active = active_units(torch.cat(means))
    return epoch_means(sums, len(data.x_test), epoch) | {"active": active}


def warn_of_collapse(active, kl, args):
    """Say so if q(z|x) has become the prior, so that z tells the decoder nothing."""
    if args.beta > 0 and (active < min(2, args.latent) or kl < 0.5) and not args.quiet:
        print(f"warning: the posterior has collapsed ({active:.0f} active units, KL {kl:.2f} nats)"
              "; try --beta-schedule linear or a smaller --beta")


@torch.no_grad()
def save_figures(model, data, folder, epoch, args):
    """Reconstructions below their originals, samples, curves and, for a 2-D z, the latent plane."""
    name = "VAE" if args.beta > 0 else "AE"
    model.eval()
    index = torch.linspace(0, len(data.x_test) - 1, 8).long()   # the same images in every epoch
    x = data.x_test[index] / 255
    z = torch.randn(64, args.latent, generator=torch.Generator().manual_seed(0))   # the same z
    z = z.to(x.device)
    rows = [x, model.picture(model.encode(x)[0])]
    names = ["original", name]
    save_grid(folder / f"reconstruction_{epoch:03d}.png", torch.cat(rows), len(x), names)
    save_grid(folder / f"sample_{epoch:03d}.png", model.picture(z), 8)
    panels = {term: {f"{name} {part}": f"{part}_{term}" for part in ("train", "test")}
              for term in ("loss", "recon", "kl")}
    save_curves(folder / "curves.png", read_log(folder), panels, "nats per image")
    if args.latent == 2:
        test = list(batches(data.x_test, data.y_test, 1000, shuffle=False))
        means = {name: torch.cat([model.encode(x)[0] for x, _ in test])}
        save_latent(folder / f"latent_{epoch:03d}.png", means, data, fixed=args.beta > 0)


def main(argv=(), **overrides):
    """Train by flags: main(["--latent=2"]) or main(latent=2). Returns the model and the log."""
    args, data, folder, checkpoint = start_run(flags(), argv, overrides, check_flags)
    data, shape, device = binarize(data, args), data.x_train.shape[1:], data.x_train.device
    model = VAE(shape, args).to(device)
    learner = make_learner(model, data, args)
    state = learner._asdict()
    first = restore(checkpoint, state)
    terms = torch.compile(loss_terms, dynamic=False) if args.compile else loss_terms
    with progress(args, "vae", folder, first) as bar:
        for epoch in range(first, args.epochs + 1):
            start = time.perf_counter()
            row = {"epoch": epoch, "seconds": 0, "lr": learner.optimizer.param_groups[0]["lr"]}
            row["beta"] = beta_at(epoch, args)
            row |= train_epoch(learner, terms, data, epoch, args)
            row |= evaluate(model, data, epoch, args)
            if args.beta == 0:   # an autoencoder has no KL
                row |= dict.fromkeys(column for column in row if column.endswith("_kl"))
            row["seconds"] = time.perf_counter() - start
            note = f"test loss {row['test_loss']:.2f}, "
            note += f"{len(data.x_train) / row['seconds']:,.0f} images/s"
            if save_epoch(row, note, args, "vae", data, folder, state, bar):
                save_figures(model, data, folder, epoch, args)
            if args.tensorboard:
                write_tensorboard(row, args, folder)
    warn_of_collapse(row["active"], row["test_kl"], args)
    return model, read_log(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
