"""VQ-VAE: codes are made of entries of a learned codebook, so that an image is a few whole numbers.

van den Oord et al. 2017, Neural Discrete Representation Learning (arXiv 1711.00937). Samples need a
prior over the entries, which the paper learns afterwards and this script does not. The paper
quantises the pixels of a small feature map; here these are the parts, of D numbers each, of z.

    python -m recipes.vq_vae --dataset digits --epochs 50     # no download
    python -m recipes.vq_vae        # MNIST, ten minutes of a core: 60.0 nats, perplexity 120 of 128
"""
import ctrl_c  # without a traceback, even during these imports
import math
import sys

import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal

from common import SIGMA_MIN, Means, active_units, batches, beta_at, binarize, check_images
from common import draw_eps, fail, gaussian_kl, is_autoencoder
from networks import conv_decoder, conv_encoder
from processes import average_gradients, own_rows
from run import Parser, Run, add_model_flags, add_training_flags, check_flags, check_size
from run import compiled, guarded, load_run_data, make_scheduler, parse, progress
from run import number, save_latent_map, save_loss_curves, save_reconstructions, set_defaults
from run import warn_of_collapse

COMMITMENT = 0.25   # weight of the commitment loss, as in the paper


# --------------------------------------------------------------------------------------- model

class VAE(nn.Module):
    """The encoder, the codebook that quantises its mu, and the decoder p(x|z).

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
        self.codebook = nn.Parameter(torch.randn(args.codes, args.code_size))       # (K, D)
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

    def nearest(self, z):
        """Codes (B, latent), in parts of D -> the nearest entry of the codebook for each part,
        (B, latent), and its number, (B, latent / D)."""
        parts = z.unflatten(1, (-1, self.codebook.shape[1]))        # (B, latent / D, D)
        index = torch.cdist(parts, self.codebook).argmin(2)         # (B, latent / D)
        return self.codebook[index].flatten(1), index

    def quantise(self, z):
        """The nearest entries, (B, latent); the gradient goes straight through to z."""
        entries, _ = self.nearest(z)
        return z + (entries - z).detach()

    def decode(self, z):
        """Codes (B, latent) -> a distribution over images (C, H, W), of batch shape (B,)."""
        h = self.decoder(self.quantise(z)).float()          # (B, C or 2C, H, W)
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

def loss_terms(model, x, eps):
    """Reconstruction in nats per image (B,); zeros (B,), there being no KL; and mu.

    eps (B, latent): noise of the reparameterisation (arXiv 1312.6114, section 2.4); zeros in an
    autoencoder.
    """
    mu, logvar = model.encode(x)
    z = mu + torch.exp(0.5 * logvar) * eps          # a draw from the posterior q
    p = model.decode(z)
    check_images(p, x)
    recon = -p.log_prob(x)                          # minus the log-likelihood
    kl = gaussian_kl(mu, logvar)                    # KL(q || p(z)), with p(z) = N(0, I)
    if is_autoencoder(model.args):
        kl = torch.zeros_like(kl)                   # it has no prior: the loss is recon
    return recon, kl, mu


def codebook_loss(model, mu):
    """The other terms of equation 3, (B,): entries move to codes, and codes to entries."""
    entries, _ = model.nearest(mu)
    codebook = (entries - mu.detach()).square()
    commitment = (mu - entries.detach()).square()
    return (codebook + COMMITMENT * commitment).sum(1)


# --------------------------------------------------------------------------------------- train

def backward(model, x, eps, beta, args):
    """The gradient of one batch; train_epoch takes the step. Returns terms of the log, (B,)."""
    loss_fn = compiled(loss_terms) if args.compile else loss_terms
    with torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp):
        recon, kl, mu = loss_fn(model, x, eps)
    objective = recon + beta * kl + codebook_loss(model, mu)        # kl is 0
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
        eps = draw_eps(x, args)
        mine = own_rows()       # all of them, unless torchrun has started several processes
        optimizer.zero_grad()
        means.add(backward(model, x[mine], eps[mine], beta, args))
        optimizer.step()
        if args.lr_schedule != "plateau":
            scheduler.step()
    return means.compute(f"epoch {epoch}")


# ------------------------------------------------------------------------------------ evaluate

@torch.no_grad()
def evaluate(model, data, epoch, args):
    """Every test image once. Returns columns of the log."""
    noise = torch.Generator(data.x_test.device).manual_seed(0)   # training has its own
    means = Means()
    mus = []
    model.eval()
    for x, _ in batches(data.x_test, data.y_test, 1000, shuffle=False):
        recon, kl, mu = loss_terms(model, x, draw_eps(x, args, noise))
        means.add({"test_loss": recon + kl, "test_recon": recon, "test_kl": kl})
        mus.append(mu)
    mu = torch.cat(mus)
    _, index = model.nearest(mu)
    use = Categorical(index.flatten().bincount(minlength=len(model.codebook)).float())
    columns = {"active": active_units(mu), "perplexity": use.perplexity().item()}
    return means.compute(f"epoch {epoch}") | columns


# ------------------------------------------------------------------------------------- figures

@torch.no_grad()
def save_figures(model, data, run):
    """Reconstructions below their originals, curves and, for a 2-D z, the latent plane."""
    model.eval()
    save_reconstructions(run, data, [model])
    save_loss_curves(run, [model])
    if run.args.latent == 2:
        save_latent_map(run, data, [model])


# ------------------------------------------------------------------------------- flags and main

def flags():
    parser = Parser(__file__, __doc__)
    group = add_model_flags(parser)
    group.add_argument("--codes", type=number(int, 2), default=128, metavar="K",
                       help="entries of the codebook")
    group.add_argument("--code-size", type=number(int, 1), default=4, metavar="D",
                       help="numbers in an entry; z has --latent / D entries")
    add_training_flags(parser)      # loss, optimiser, data, run
    parser.set_defaults(beta=0.0, latent=64)     # with beta 0 eps is 0: z is mu, and no draw
    return parser


@guarded
def main(argv=(), **overrides):
    """Train: main(["--latent=2"]) or main(latent=2). Returns the model and the log."""
    args = parse(flags(), argv, overrides)
    check_flags(args)
    if not is_autoencoder(args):
        fail("--beta weighs a KL, and a VQ-VAE has none; remove it")
    if args.latent % args.code_size != 0:
        fail(f"--latent must be a multiple of --code-size {args.code_size}, not {args.latent}")
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
    warn_of_collapse(run)
    run.say("note: samples need a prior over the entries, which is not learned here")
    run.finish(f"test loss {run.rows[-1]['test_loss']:.2f} nats per image")
    return model, run.rows


if __name__ == "__main__":
    main(sys.argv[1:])
