"""Autoencoder, variational autoencoder (VAE) and beta-VAE.

Kingma & Welling 2014, Auto-Encoding Variational Bayes (arXiv 1312.6114); beta: Higgins et al. 2017.

    python vae.py                                   # MNIST
    python vae.py --latent 2                        # with a map of the latent plane
    python vae.py --beta 0                          # a plain autoencoder
    python vae.py --dataset digits --epochs 100     # no download
"""
import math
import sys
import time
from typing import NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

from common import add_plumbing_flags, check, make_parser, number, start_run
from common import active_units, batches, bernoulli_nll, gaussian_kl
from common import progress, read_log, restore, save_epoch
from common import save_curves, save_grid, save_latent


def flags():
    """The flags that belong to the lesson; the plumbing is in common.py."""
    parser = make_parser("vae", "Train an autoencoder, a VAE or a beta-VAE.")
    add = parser.add_argument
    add("--hidden", type=number(int, 1), default=500, help="hidden units")
    add("--latent", type=number(int, 1), default=20, help="size of z")
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


def check_flags(args):
    """What no single flag can know: a warm-up needs an epoch at 0, one at beta, and its time."""
    if args.beta_schedule == "constant":
        check(not args.beta_warmup, "--beta-warmup needs --beta-schedule linear or cyclical")
    else:
        cycle = args.epochs // (4 if args.beta_schedule == "cyclical" else 1)
        check(2 <= (args.beta_warmup or cycle) <= cycle, f"--beta-warmup must be 2 to {cycle} with "
              f"--beta-schedule {args.beta_schedule} and --epochs {args.epochs}: raise --epochs")


class VAE(nn.Module):
    """q(z|x) = N(mu, diag(exp(logvar))) and p(x|z), MLPs with one hidden layer (appendix C)."""

    def __init__(self, shape, hidden, latent):
        super().__init__()
        self.shape, pixels = tuple(shape), math.prod(shape)
        self.encoder = nn.Sequential(
            nn.Linear(pixels, hidden), nn.ReLU(),   # (B, hidden)
            nn.Linear(hidden, 2 * latent),          # (B, 2 * latent): mu and logvar
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(),   # (B, hidden)
            nn.Linear(hidden, pixels),              # (B, C * H * W)
        )

    def encode(self, x):
        """x (B, C, H, W) in [0, 1] -> mu, logvar of q(z|x), each (B, latent)."""
        mu, logvar = self.encoder(x.flatten(1)).float().chunk(2, dim=1)
        return mu, logvar.clamp(-15, 15)   # far from the overflow of exp

    def decode(self, z):
        """z (B, latent) -> logits of p(x|z) (B, C, H, W); sigmoid makes a picture."""
        return self.decoder(z).float().view(-1, *self.shape)


def loss_terms(model, x, eps):
    """Reconstruction and KL in nats per image, (B,) each: their sum is the negative ELBO; and mu.

    eps (B, latent) is the noise of the reparameterisation (section 2.4); None: autoencoder, z = mu.
    """
    mu, logvar = model.encode(x)
    z = mu if eps is None else mu + torch.exp(0.5 * logvar) * eps   # z ~ q(z|x)
    recon = bernoulli_nll(model.decode(z), x)                       # -log p(x|z)
    kl = torch.zeros_like(recon) if eps is None else gaussian_kl(mu, logvar)
    return recon, kl, mu


class Learner(NamedTuple):
    """A model in training, and what its checkpoint has to hold."""
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler


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
    for step, values in enumerate(table, 1):
        bad = [column for column, fine in zip(sums[0], values.isfinite(), strict=True) if not fine]
        check(not bad, f"{bad and bad[-1]} is not finite in step {step} of epoch {epoch}; the last "
              "checkpoint is kept; try a smaller --lr", status=1)
    return dict(zip(sums[0], (table.sum(0) / count).tolist(), strict=True))


def train_step(learner, terms, x, eps, beta, args):
    """One step on one batch. Returns the batch's sums, which stay on the device."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp):
        recon, kl, _ = terms(learner.model, x, eps)
    objective = recon + beta * kl
    learner.optimizer.zero_grad()
    objective.mean().backward()
    nn.utils.clip_grad_norm_(learner.model.parameters(), x[0].numel())   # tames rare spikes only
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
        eps = torch.randn(len(x), args.latent, device=x.device) if args.beta > 0 else None
        sums.append(train_step(learner, terms, x, eps, beta, args))
    row = epoch_means(sums, len(data.x_train), epoch)
    if args.lr_schedule == "plateau":
        learner.scheduler.step(row["train_objective"])
    return row


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


@torch.no_grad()
def save_figures(model, data, folder, epoch, args):
    """Reconstructions below their originals, samples, curves and, for a 2-D z, the latent plane."""
    name = "VAE" if args.beta > 0 else "AE"
    model.eval()
    index = torch.linspace(0, len(data.x_test) - 1, 8).long()   # the same images in every epoch
    x = data.x_test[index] / 255
    z = torch.randn(64, args.latent, generator=torch.Generator().manual_seed(0))   # the same z
    z = z.to(x.device)
    rows = [x, torch.sigmoid(model.decode(model.encode(x)[0]))]
    names = ["original", name]
    save_grid(folder / f"reconstruction_{epoch:03d}.png", torch.cat(rows), len(x), names)
    save_grid(folder / f"sample_{epoch:03d}.png", torch.sigmoid(model.decode(z)), 8)
    save_curves(folder / "curves.png", read_log(folder), {name: ""})
    if args.latent == 2:
        means = {name: model.encode(data.x_test / 255)[0]}
        save_latent(folder / f"latent_{epoch:03d}.png", means, data, fixed=args.beta > 0)


def main(argv=(), **overrides):
    """Train by flags: main(["--latent=2"]) or main(latent=2). Returns the model and the log."""
    args, data, folder, checkpoint = start_run(flags(), argv, overrides, check_flags)
    shape, device = data.x_train.shape[1:], data.x_train.device
    model = VAE(shape, args.hidden, args.latent).to(device)
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
            if save_epoch(row, args, "vae", data, folder, state, bar):
                save_figures(model, data, folder, epoch, args)
    return model, read_log(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
