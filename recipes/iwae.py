"""Importance-weighted autoencoder (IWAE): a bound on log p(x) from k draws, tighter than the ELBO.

Burda, Grosse & Salakhutdinov 2016, Importance Weighted Autoencoders (arXiv 1509.00519).

    python -m recipes.iwae --dataset digits --epochs 20     # no download
    python -m recipes.iwae --binarize dynamic --latent 50 --hidden 200 --layers 2 --epochs 10

The latter, on MNIST, takes half an hour of a core. -log p(x) is then 93.6 nats (evaluate.py, nll);
of vae.py with the same flags it is 100.3.
"""
import ctrl_c  # without a traceback, even during these imports
import math
import sys

import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal

from common import SIGMA_MIN, Means, active_units, batches, beta_at, binarize, check_images
from common import draw_eps, fail, fixed_z, is_autoencoder, save_grid
from networks import conv_decoder, conv_encoder
from processes import average_gradients, own_rows
from run import Parser, Run, add_model_flags, add_training_flags, check_flags, check_size
from run import compiled, guarded, load_run_data, make_scheduler, parse, progress
from run import number, save_latent_map, save_loss_curves, save_reconstructions, set_defaults


# --------------------------------------------------------------------------------------- model

class VAE(nn.Module):
    """The encoder q(z|x) = N(mu, diag(exp(logvar))) and the decoder p(x|z).

    shape: (C, H, W) of the images. For a prior other than N(0, I) add a method prior() that
    returns a distribution over z (latent,), and use it in loss_terms and save_figures.
    """

    def __init__(self, shape, args):
        super().__init__()
        self.args = args
        channels, height, width = shape
        outputs = channels
        if args.likelihood != "bernoulli" and args.sigma == "pixel":
            outputs = 2 * channels                  # a mean and a sigma for every pixel
        n_x = math.prod(shape)                      # numbers that the encoder sees
        n_z = args.latent                           # numbers that the decoder sees

        if args.arch == "mlp":
            self.encoder = mlp(n_x, 2 * args.latent, args)
            self.decoder = mlp(n_z, outputs * height * width, args)
            self.decoder.append(nn.Unflatten(1, (outputs, height, width)))
        else:
            self.encoder = conv_encoder(channels, height, width, args)
            self.decoder = conv_decoder(n_z, outputs, height, args)
        if args.likelihood != "bernoulli" and args.sigma == "learned":
            self.log_sigma = nn.Parameter(torch.tensor(-1.0))    # sigma = 0.37 at the start
        self.to(memory_format=torch.channels_last)  # the fast layout of convolutions

    def encode(self, x):
        """Images (B, C, H, W) in [0, 1] -> mu, logvar of the posterior q, (B, latent) each.

        logvar is the log of the variance: the standard deviation is exp(0.5 * logvar).
        """
        if self.args.arch == "mlp":
            x = x.flatten(1)                                # (B, C * H * W)
        h = self.encoder(x).float()                         # (B, 2 * latent), float32 under --amp
        mu, logvar = h.chunk(2, dim=1)                      # (B, latent) each
        return mu, logvar.clamp(-15, 15)                    # far from the overflow of exp

    def decode(self, z):
        """Codes (B, latent) -> a distribution over images (C, H, W), of batch shape (B,)."""
        h = self.decoder(z).float()                         # (B, C or 2C, H, W)
        if self.args.likelihood == "bernoulli":
            # Not validated, so that pixels may be grey; log_prob is then minus a cross-entropy.
            return Independent(Bernoulli(logits=h, validate_args=False), 3)
        if self.args.sigma == "learned":
            sigma = SIGMA_MIN + torch.exp(self.log_sigma)
        elif self.args.sigma == "pixel":
            h, log_sigma = h.chunk(2, dim=1)                # (B, C, H, W) each
            sigma = SIGMA_MIN + torch.exp(log_sigma)
        else:
            sigma = float(self.args.sigma)
        return Independent(Normal(torch.sigmoid(h), sigma, validate_args=False), 3)


def mlp(n_in, n_out, args):
    """Fully connected layers, (B, n_in) -> (B, n_out), with args.layers hidden ones in between."""
    layers = []
    for _ in range(args.layers):
        layers += [nn.Linear(n_in, args.hidden), nn.ReLU()]
        if args.dropout > 0:
            layers.append(nn.Dropout(args.dropout))
        n_in = args.hidden
    layers.append(nn.Linear(n_in, n_out))
    return nn.Sequential(*layers)


def build(shape, n_c, args):
    """A model as main trains it, and as generate.py and evaluate.py rebuild it.

    n_c: how many numbers a CVAE is told of each image; a VAE is told none.
    """
    return VAE(shape, args)


# ---------------------------------------------------------------------------------------- loss

def draw_k_eps(x, args, generator=None):
    """k times the noise of the reparameterisation for images x, (k, B, latent)."""
    return torch.stack([draw_eps(x, args, generator) for _ in range(args.k)])


def loss_terms(model, x, eps):
    """Two terms in nats per image (B,), whose sum is minus the bound (equation 8, k draws); and mu.

    eps (k, B, latent) or, as the tools pass it, (B, latent): k = 1. recon is the mean of k
    reconstructions, kl the rest of the bound: only with k = 1 is it a KL, estimated by one draw.
    """
    mu, logvar = model.encode(x)
    eps = eps.view(-1, len(x), mu.shape[1])         # (k, B, latent)
    z = mu + torch.exp(0.5 * logvar) * eps          # k draws from the posterior q
    p = model.decode(z.flatten(0, 1))               # batch shape (k * B,)
    images = x.repeat(len(eps), 1, 1, 1)            # (k * B, C, H, W)
    check_images(p, images)
    log_p = p.log_prob(images).view(-1, len(x))     # log p(x|z), (k, B)
    log_ratio = 0.5 * (eps.square() + logvar - z.square()).sum(2)   # of p(z) to q(z|x), (k, B)
    bound = (log_p + log_ratio).logsumexp(0) - math.log(len(eps))   # log of the mean, (B,)
    recon = -log_p.mean(0)                          # minus the log-likelihood, on average
    kl = -bound - recon
    if is_autoencoder(model.args):
        kl = torch.zeros_like(kl)                   # it has no prior: the loss is recon
    return recon, kl, mu


# --------------------------------------------------------------------------------------- train

def backward(model, x, eps, beta, args):
    """The gradient of one batch; train_epoch takes the step. Returns terms of the log, (B,)."""
    loss_fn = compiled(loss_terms) if args.compile else loss_terms
    with torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp):
        recon, kl, _ = loss_fn(model, x, eps)
    objective = recon + beta * kl                                   # with beta = 1, the loss
    objective.mean().backward()
    average_gradients(model, len(x))
    nn.utils.clip_grad_norm_(model.parameters(), x[0].numel())      # a guard, rarely at work
    return {"train_objective": objective, "train_loss": recon + kl,
            "train_recon": recon, "train_kl": kl}


def train_epoch(model, optimizer, scheduler, data, epoch, args):
    """Every training image once, in random order. Returns columns of the log."""
    beta = beta_at(epoch, args)
    means = Means()
    model.train()
    for x, _ in progress(batches(data.x_train, data.y_train, args.batch_size, shuffle=True)):
        if args.binarize == "dynamic":
            x = torch.bernoulli(x)                                  # black or white, drawn anew
        eps = draw_k_eps(x, args)
        mine = own_rows()       # all of them, unless torchrun has started several processes
        optimizer.zero_grad()
        means.add(backward(model, x[mine], eps[:, mine], beta, args))
        optimizer.step()
        if args.lr_schedule != "plateau":
            scheduler.step()
    return means.compute(f"epoch {epoch}")


# ------------------------------------------------------------------------------------ evaluate

@torch.no_grad()
def evaluate(model, data, epoch, args):
    """Every test image once, with z sampled and beta = 1. Returns columns of the log."""
    noise = torch.Generator(data.x_test.device).manual_seed(0)   # training has its own
    means = Means()
    mus = []
    model.eval()
    for x, _ in batches(data.x_test, data.y_test, 100, shuffle=False):
        recon, kl, mu = loss_terms(model, x, draw_k_eps(x, args, noise))
        means.add({"test_loss": recon + kl, "test_recon": recon, "test_kl": kl})
        mus.append(mu)
    return means.compute(f"epoch {epoch}") | {"active": active_units(torch.cat(mus))}


# ------------------------------------------------------------------------------------- figures

@torch.no_grad()
def save_figures(model, data, run):
    """Reconstructions below their originals, samples, curves and, for a 2-D z, the latent plane."""
    model.eval()
    save_reconstructions(run, data, [model])
    z = fixed_z(64, run.args.latent, data.x_test.device)         # the same in every epoch
    save_grid(run.figure("sample"), model.decode(z).mean, 8)
    save_loss_curves(run, [model])
    if run.args.latent == 2:
        save_latent_map(run, data, [model])


# ------------------------------------------------------------------------------- flags and main

def flags():
    parser = Parser(__file__, __doc__)
    add_model_flags(parser).add_argument("--k", type=number(int, 1), default=50, metavar="K",
                                         help="draws from the posterior for each image")
    add_training_flags(parser)      # loss, optimiser, data, run
    return parser


@guarded
def main(argv=(), **overrides):
    """Train: main(["--latent=2"]) or main(latent=2). Returns the model and the log."""
    args = parse(flags(), argv, overrides)
    check_flags(args)
    if args.beta != 1 or args.beta_schedule != "constant":
        fail("--beta and --beta-schedule weigh a KL, and this bound has none; remove them")
    data = load_run_data(args)
    set_defaults(args, data)
    data = binarize(data, args)
    check_size(build, data, args)

    torch.manual_seed(args.seed)
    model = build(data.x_train.shape[1:], len(data.classes), args).to(data.x_train.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr,
                                  weight_decay=args.weight_decay, fused=True)
    scheduler = make_scheduler(optimizer, len(data.x_train), args)
    run = Run(args, data, model=model, optimizer=optimizer, scheduler=scheduler)
    if run.resumed and run.figures_due():    # a kill may have cost those of the last epoch
        save_figures(model, data, run)
    for epoch in run.epochs():
        row = {"lr": optimizer.param_groups[0]["lr"], "beta": beta_at(epoch, args)}
        row |= train_epoch(model, optimizer, scheduler, data, epoch, args)
        row |= evaluate(model, data, epoch, args)
        if args.lr_schedule == "plateau":
            scheduler.step(row["train_objective"])
        run.save(row, f"test loss {row['test_loss']:.2f}")
        if run.figures_due():
            save_figures(model, data, run)
    run.finish(f"test loss {run.rows[-1]['test_loss']:.2f} nats per image")
    return model, run.rows


if __name__ == "__main__":
    main(sys.argv[1:])
