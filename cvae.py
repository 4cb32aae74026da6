"""Conditional variational autoencoder (CVAE), trained beside its unconditional twin, a VAE.

Kingma et al. 2014 (arXiv 1406.5298), model M2; Sohn, Lee & Yan 2015.

    python cvae.py                                        # MNIST
    python cvae.py --dataset FashionMNIST --latent 10     # the usual second one
    python cvae.py --no-baseline                          # without the twin
    python cvae.py --dataset digits --epochs 100          # no download
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
    parser = make_parser("cvae", "Train a conditional VAE and, beside it, an unconditional twin.")
    add = parser.add_argument
    add("--no-baseline", action="store_true", help="train the CVAE alone, without its twin")
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


class CVAE(nn.Module):
    """q(z|x,y) = N(mu, diag(exp(logvar))) and p(x|z,y), MLPs; no label enters if classes = 0."""

    def __init__(self, shape, hidden, latent, classes):
        super().__init__()
        self.shape, pixels, self.classes = tuple(shape), math.prod(shape), classes
        self.encoder = nn.Sequential(
            nn.Linear(pixels + classes, hidden), nn.ReLU(),   # (B, hidden)
            nn.Linear(hidden, 2 * latent),                    # (B, 2 * latent): mu and logvar
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent + classes, hidden), nn.ReLU(),   # (B, hidden)
            nn.Linear(hidden, pixels),                        # (B, C * H * W)
        )

    def with_label(self, h, y):
        """h (B, n), y (B,) -> (B, n + classes): the label one-hot beside h."""
        return torch.cat([h, y[:, None] == torch.arange(self.classes, device=y.device)], dim=1)

    def encode(self, x, y):
        """x (B, C, H, W) in [0, 1], y (B,) -> mu, logvar of q(z|x,y), each (B, latent)."""
        mu, logvar = self.encoder(self.with_label(x.flatten(1), y)).float().chunk(2, dim=1)
        return mu, logvar.clamp(-15, 15)   # far from the overflow of exp

    def decode(self, z, y):
        """z (B, latent), y (B,) -> logits of p(x|z,y) (B, C, H, W); sigmoid makes a picture."""
        return self.decoder(self.with_label(z, y)).float().view(-1, *self.shape)


def loss_terms(model, x, y, eps):
    """Reconstruction and KL in nats per image, (B,) each: their sum is the negative ELBO; and mu.

    eps (B, latent) is the noise of the reparameterisation (section 2.4); None: autoencoder, z = mu.
    """
    mu, logvar = model.encode(x, y)
    z = mu if eps is None else mu + torch.exp(0.5 * logvar) * eps   # z ~ q(z|x,y)
    recon = bernoulli_nll(model.decode(z, y), x)                    # -log p(x|z,y), pixels only
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


def train_step(prefix, learner, terms, x, y, eps, beta, args):
    """One step on one batch. Returns the batch's sums, which stay on the device."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp):
        recon, kl, _ = terms(learner.model, x, y, eps)
    objective = recon + beta * kl
    learner.optimizer.zero_grad()
    objective.mean().backward()
    nn.utils.clip_grad_norm_(learner.model.parameters(), x[0].numel())   # tames rare spikes only
    learner.optimizer.step()
    if args.lr_schedule != "plateau":
        learner.scheduler.step()
    sums = {"objective": objective, "loss": recon + kl, "recon": recon, "kl": kl}
    return {f"{prefix}train_{name}": value.detach().sum() for name, value in sums.items()}


def train_epoch(learners, terms, data, epoch, args):
    """Every training image once, in random order. Returns the train_ columns of the log.

    Both models see the same batches and the same noise: they differ in nothing but the label.
    """
    for learner in learners.values():
        learner.model.train()
    beta, sums = beta_at(epoch, args), []
    for x, y in batches(data.x_train, data.y_train, args.batch_size, shuffle=True):
        eps = torch.randn(len(x), args.latent, device=x.device) if args.beta > 0 else None
        sums.append({})
        for prefix, learner in learners.items():
            sums[-1] |= train_step(prefix, learner, terms, x, y, eps, beta, args)
    row = epoch_means(sums, len(data.x_train), epoch)
    if args.lr_schedule == "plateau":
        for prefix, learner in learners.items():
            learner.scheduler.step(row[f"{prefix}train_objective"])
    return row


@torch.no_grad()
def evaluate(prefix, model, data, epoch, args):
    """Every test image once, z sampled, beta = 1. Returns test_ columns of the log and active."""
    model.eval()
    device, sums, means = data.x_test.device, [], []
    noise = torch.Generator(device).manual_seed(0)   # its own: testing leaves training alone
    for x, y in batches(data.x_test, data.y_test, 1000, shuffle=False):
        shape = (len(x), args.latent)
        eps = torch.randn(shape, device=device, generator=noise) if args.beta > 0 else None
        recon, kl, mu = loss_terms(model, x, y, eps)
        row = {"loss": recon + kl, "recon": recon, "kl": kl}
        sums.append({f"{prefix}test_{name}": value.sum() for name, value in row.items()})
        means.append(mu)
    active = active_units(torch.cat(means))
    return epoch_means(sums, len(data.x_test), epoch) | {f"{prefix}active": active}


@torch.no_grad()
def save_figures(models, data, folder, epoch, args):
    """Reconstructions below their originals, samples, curves and, for a 2-D z, the latent plane."""
    names = {"": "CVAE", "vae_": "VAE"} if args.beta > 0 else {"": "CAE", "vae_": "AE"}
    models = {names[prefix]: model.eval() for prefix, model in models.items()}
    index = torch.linspace(0, len(data.x_test) - 1, 8).long()   # the same images in every epoch
    x, y = data.x_test[index] / 255, data.y_test[index]
    z = torch.randn(64, args.latent, generator=torch.Generator().manual_seed(0))   # the same z
    z = z.to(x.device)
    rows = [x] + [torch.sigmoid(m.decode(m.encode(x, y)[0], y)) for m in models.values()]
    names = ["original", *models]
    save_grid(folder / f"reconstruction_{epoch:03d}.png", torch.cat(rows), len(x), names)
    cvae, *twin = models.values()
    classes = torch.arange(min(len(data.classes), 20), device=x.device)   # what fits on a page
    x = cvae.decode(z[:8].repeat(len(classes), 1), classes.repeat_interleave(8))
    save_grid(folder / f"sample_{epoch:03d}.png", torch.sigmoid(x), 8, data.classes[:len(classes)])
    for model in twin:   # at any label: it does not look at it
        x = torch.sigmoid(model.decode(z, torch.zeros(64, device=x.device)))
        save_grid(folder / f"sample_vae_{epoch:03d}.png", x, 8)
    prefixes = dict(zip(models, ("", "vae_"), strict=False))
    save_curves(folder / "curves.png", read_log(folder), prefixes)
    if args.latent == 2:
        x, y = data.x_test / 255, data.y_test
        means = {name: model.encode(x, y)[0] for name, model in models.items()}
        save_latent(folder / f"latent_{epoch:03d}.png", means, data, fixed=args.beta > 0)


def main(argv=(), **overrides):
    """Train by flags: main(["--latent=2"]) or main(latent=2). Returns the CVAE and the log."""
    args, data, folder, checkpoint = start_run(flags(), argv, overrides, check_flags, labels=True)
    shape, device = data.x_train.shape[1:], data.x_train.device
    models = {"": CVAE(shape, args.hidden, args.latent, len(data.classes)).to(device)}
    torch.manual_seed(args.seed)   # the twin, the same class with no classes, is vae.py's own run
    models["vae_"] = CVAE(shape, args.hidden, args.latent, 0).to(device)
    if args.no_baseline:
        del models["vae_"]
    learners = {prefix: make_learner(model, data, args) for prefix, model in models.items()}
    state = {prefix + name: part for prefix, learner in learners.items()
             for name, part in learner._asdict().items()}
    first = restore(checkpoint, state)
    terms = torch.compile(loss_terms, dynamic=False) if args.compile else loss_terms
    with progress(args, "cvae", folder, first) as bar:
        for epoch in range(first, args.epochs + 1):
            start = time.perf_counter()
            row = {"epoch": epoch, "seconds": 0, "lr": learners[""].optimizer.param_groups[0]["lr"]}
            row["beta"] = beta_at(epoch, args)
            row |= train_epoch(learners, terms, data, epoch, args)
            for prefix, model in models.items():
                row |= evaluate(prefix, model, data, epoch, args)
            row = dict(sorted(row.items(), key=lambda column: column[0].startswith("vae_")))
            if args.beta == 0:   # an autoencoder has no KL
                row |= dict.fromkeys(column for column in row if column.endswith("_kl"))
            row["seconds"] = time.perf_counter() - start
            if save_epoch(row, args, "cvae", data, folder, state, bar):
                save_figures(models, data, folder, epoch, args)
    return models[""], read_log(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
