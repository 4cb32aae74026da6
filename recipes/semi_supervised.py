"""Semi-supervised learning with a CVAE: a few images with labels, and many without.

Kingma et al. 2014 (arXiv 1406.5298), model M2.

    python -m recipes.semi_supervised --dataset digits --labels 100     # no download
    python -m recipes.semi_supervised --labels 1000 --epochs 10    # MNIST, 20 minutes of a core

The latter errs on 6.2% of the test images; the same classifier, trained on these 1,000 alone, on
11.5%. With 100 labels: 17.8% and 30.8%.
"""
import ctrl_c  # without a traceback, even during these imports
import math
import sys

import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal
from torch.nn import functional as F

from common import SIGMA_MIN, Means, active_units, batches, beta_at, binarize, check_images
from common import as_in_training, draw_eps, fail, fixed_z, gaussian_kl, is_autoencoder, save_grid
from networks import conv_decoder, conv_encoder
from processes import average_gradients, own_rows
from run import Parser, Run, add_model_flags, add_training_flags, check_flags, check_size
from run import compiled, guarded, load_run_data, make_scheduler, parse, progress
from run import number, save_latent_map, save_loss_curves, save_reconstructions, set_defaults
from run import sample_grid
from run import warn_of_collapse


# --------------------------------------------------------------------------------------- model

class CVAE(nn.Module):
    """The encoder q(z|x,c) = N(mu, diag(exp(logvar))) and the decoder p(x|z,c).

    c: labels (B,), or vectors (B, n_c).
    shape: (C, H, W) of the images. For a prior other than N(0, I) add a method prior() that
    returns a distribution over z (latent,), and use it in loss_terms and save_figures.
    """

    def __init__(self, shape, n_c, args):
        super().__init__()
        self.n_c = n_c                              # read by generate.py and evaluate.py
        self.args = args
        channels, height, width = shape
        outputs = channels
        if args.likelihood != "bernoulli" and args.sigma == "pixel":
            outputs = 2 * channels                  # a mean and a sigma for every pixel
        n_x = math.prod(shape) + n_c                # numbers that the encoder sees
        n_z = args.latent + n_c                     # numbers that the decoder sees

        if args.arch == "mlp":
            self.encoder = mlp(n_x, 2 * args.latent, args)
            self.decoder = mlp(n_z, outputs * height * width, args)
            self.decoder.append(nn.Unflatten(1, (outputs, height, width)))
        else:
            self.encoder = conv_encoder(channels + n_c, height, width, args)
            self.decoder = conv_decoder(n_z, outputs, height, args)
        if args.likelihood != "bernoulli" and args.sigma == "learned":
            self.log_sigma = nn.Parameter(torch.tensor(-1.0))    # sigma = 0.37 at the start
        self.classifier = mlp(math.prod(shape), n_c, args)      # q(y|x)
        self.baseline = mlp(math.prod(shape), n_c, args)        # the same, trained on labels alone
        self.to(memory_format=torch.channels_last)  # the fast layout of convolutions

    def with_condition(self, h, c):
        """h (B, n, ...), c -> (B, n + n_c, ...): labels one-hot; in constant planes of an image."""
        if c.ndim == 1:                                                        # labels
            c = c[:, None] == torch.arange(self.n_c, device=c.device)          # (B, n_c)
        if h.ndim == 4:                                                        # a plane each
            c = c[:, :, None, None].expand(-1, -1, h.shape[2], h.shape[3])
        return torch.cat([h, c[:, :self.n_c]], dim=1)

    def encode(self, x, c):
        """Images (B, C, H, W) in [0, 1] -> mu, logvar of the posterior q, (B, latent) each.

        logvar is the log of the variance: the standard deviation is exp(0.5 * logvar).
        """
        if self.args.arch == "mlp":
            x = x.flatten(1)                                # (B, C * H * W)
        h = self.encoder(self.with_condition(x, c)).float()  # (B, 2 * latent), float32 under --amp
        mu, logvar = h.chunk(2, dim=1)                      # (B, latent) each
        return mu, logvar.clamp(-15, 15)                    # far from the overflow of exp

    def decode(self, z, c):
        """Codes (B, latent) -> a distribution over images (C, H, W), of batch shape (B,)."""
        h = self.decoder(self.with_condition(z, c)).float()  # (B, C or 2C, H, W)
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
    return CVAE(shape, n_c, args)


# ---------------------------------------------------------------------------------------- loss

def loss_terms(model, x, c, eps):
    """Reconstruction and KL, in nats per image (B,), whose sum is the negative ELBO; and mu.

    eps (B, latent): noise of the reparameterisation (arXiv 1312.6114, section 2.4); zeros in an
    autoencoder.
    """
    mu, logvar = model.encode(x, c)
    z = mu + torch.exp(0.5 * logvar) * eps          # a draw from the posterior q
    p = model.decode(z, c)
    check_images(p, x)
    recon = -p.log_prob(x)                          # minus the log-likelihood
    kl = gaussian_kl(mu, logvar)                    # KL(q || p(z)), with p(z) = N(0, I)
    if is_autoencoder(model.args):
        kl = torch.zeros_like(kl)                   # it has no prior: the loss is recon
    return recon, kl, mu


def bound_terms(model, x, y, eps):
    """Reconstruction and KL, in nats per image (B,), whose sum is minus the bound on log p(x, y)
    (equation 6) or, where y (B,) is -1, on log p(x) (equation 7). beta weighs the KL of y, too."""
    n = model.n_c
    log_q = model.classifier(x.flatten(1)).log_softmax(1)       # log q(y|x), (B, n_c)
    known = (y >= 0)[:, None]                                   # (B, 1)
    q = torch.where(known, F.one_hot(y.clamp(min=0), n), log_q.exp())
    every_y = torch.arange(n, device=y.device).repeat(len(x))   # (B * n_c,)
    recon, kl, _ = loss_terms(model, x.repeat_interleave(n, 0), every_y,
                              eps.repeat_interleave(n, 0))
    log_ratio = torch.where(known, 0, log_q) + math.log(n)      # of q(y|x) to p(y), (B, n_c)
    recon = (q * recon.view(-1, n)).sum(1)
    kl = (q * (kl.view(-1, n) + log_ratio)).sum(1)
    if is_autoencoder(model.args):
        kl = torch.zeros_like(kl)                               # of y, as well as of z
    return recon, kl


# --------------------------------------------------------------------------------------- train

def backward(model, x, c, eps, beta, args):
    """The gradient of one batch; train_epoch takes the step. Returns terms of the log, (B,)."""
    loss_fn = compiled(bound_terms) if args.compile else bound_terms
    with torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp):
        recon, kl = loss_fn(model, x, c, eps)
    objective = recon + beta * kl                                   # with beta = 1, the loss
    objective.mean().backward()
    average_gradients(model, len(x))
    nn.utils.clip_grad_norm_(model.parameters(), x[0].numel())      # a guard, rarely at work
    return {"train_objective": objective, "train_loss": recon + kl,
            "train_recon": recon, "train_kl": kl}


def backward_of_labels(model, data, args):
    """The gradient of both cross-entropies, on a batch of labelled images."""
    known = (data.y_train >= 0).nonzero()[:, 0]
    index = known[torch.randint(len(known), (args.batch_size,), device=known.device)]
    x = as_in_training(data.x_train[index] / 255, args).flatten(1)
    loss = args.alpha * F.cross_entropy(model.classifier(x), data.y_train[index])   # equation 9
    loss = loss + F.cross_entropy(model.baseline(x), data.y_train[index])
    loss.backward()


def train_epoch(models, optimizer, scheduler, data, epoch, args):
    """Every training image once, in random order. Returns columns of the log."""
    beta = beta_at(epoch, args)
    means = Means()
    models.train()
    for x, c in progress(batches(data.x_train, data.c_train, args.batch_size, shuffle=True)):
        if args.binarize == "dynamic":
            x = torch.bernoulli(x)                                  # black or white, drawn anew
        eps = draw_eps(x, args)
        mine = own_rows()       # all of them, unless torchrun has started several processes
        optimizer.zero_grad()
        means.add(backward(models["cvae"], x[mine], c[mine], eps[mine], beta, args))
        backward_of_labels(models["cvae"], data, args)
        optimizer.step()
        if args.lr_schedule != "plateau":
            scheduler.step()
    return means.compute(f"epoch {epoch}")


# ------------------------------------------------------------------------------------ evaluate

def errors(classifier, x, y):
    """1 for every image that a classifier takes for another class, else 0, (B,)."""
    return (classifier(x.flatten(1)).argmax(1) != y).float()


@torch.no_grad()
def evaluate(model, data, epoch, args):
    """Every test image once, with z sampled and beta = 1. Returns columns of the log."""
    noise = torch.Generator(data.x_test.device).manual_seed(0)   # training has its own
    means = Means()
    mus = []
    model.eval()
    for x, c in batches(data.x_test, data.c_test, 1000, shuffle=False):
        recon, kl, mu = loss_terms(model, x, c, draw_eps(x, args, noise))
        means.add({"test_loss": recon + kl, "test_recon": recon, "test_kl": kl,
                   "test_error": errors(model.classifier, x, c),
                   "baseline_error": errors(model.baseline, x, c)})
        mus.append(mu)
    return means.compute(f"epoch {epoch}") | {"active": active_units(torch.cat(mus))}


# ------------------------------------------------------------------------------------- figures

@torch.no_grad()
def save_figures(models, data, run):
    """Reconstructions below their originals, samples, curves and, for a 2-D z, the latent plane."""
    models.eval()
    save_reconstructions(run, data, models.values())
    z = fixed_z(64, run.args.latent, data.x_test.device)         # the same in every epoch
    cvae_z, c, texts = sample_grid(z, data)                      # a class per row
    save_grid(run.figure("sample"), models["cvae"].decode(cvae_z, c).mean, **texts)
    save_loss_curves(run, models.values())
    if run.args.latent == 2:
        save_latent_map(run, data, models.values())


# ------------------------------------------------------------------------------- flags and main

def flags():
    parser = Parser(__file__, __doc__)
    group = add_model_flags(parser)
    group.add_argument("--labels", type=number(int, 1), default=100, metavar="N",
                       help="labelled training images, equally many of each class")
    group.add_argument("--alpha", type=number(float, 0), default=30.0, metavar="A",
                       help="weight of their cross-entropy; the paper's is 0.1")
    add_training_flags(parser)      # loss, optimiser, data, run
    return parser


def hide_labels(data, args):
    """The data with --labels labels, of the first images of each class; -1 for the others."""
    n = len(data.classes)
    fewest = data.y_train.bincount(minlength=n).min().item()
    if n < 2 or args.labels % n > 0 or args.labels > n * fewest:
        fail(f"--labels {args.labels} must be a multiple of the classes of --dataset "
             f"{args.dataset}, of which there are {n}, and at most {n * fewest}")
    y = torch.full_like(data.y_train, -1)
    for label in range(n):
        own = (data.y_train == label).nonzero()[:, 0]
        y[own[:args.labels // n]] = label
    return data._replace(y_train=y)


@guarded
def main(argv=(), **overrides):
    """Train: main(["--latent=2"]) or main(latent=2). Returns the model and the log."""
    args = parse(flags(), argv, overrides)
    check_flags(args)
    data = load_run_data(args)
    set_defaults(args, data)
    data = binarize(data, args)
    partly_labelled = hide_labels(data, args)
    check_size(build, data, args)

    models = nn.ModuleDict()
    torch.manual_seed(args.seed)
    models["cvae"] = build(data.x_train.shape[1:], data.n_c, args).to(data.x_train.device)
    optimizer = torch.optim.AdamW(models.parameters(), lr=args.lr,
                                  weight_decay=args.weight_decay, fused=True)
    scheduler = make_scheduler(optimizer, len(data.x_train), args)
    run = Run(args, data, **models, optimizer=optimizer, scheduler=scheduler)
    if run.resumed and run.figures_due():    # a kill may have cost those of the last epoch
        save_figures(models, data, run)
    for epoch in run.epochs():
        row = {"lr": optimizer.param_groups[0]["lr"], "beta": beta_at(epoch, args)}
        row |= train_epoch(models, optimizer, scheduler, partly_labelled, epoch, args)
        row |= evaluate(models["cvae"], data, epoch, args)
        if args.lr_schedule == "plateau":
            scheduler.step(row["train_objective"])
        run.save(row, f"test loss {row['test_loss']:.2f}")
        if run.figures_due():
            save_figures(models, data, run)
    warn_of_collapse(run)
    run.finish(f"test loss {run.rows[-1]['test_loss']:.2f} nats per image")
    return models["cvae"], run.rows


if __name__ == "__main__":
    main(sys.argv[1:])
