# /// script
# dependencies = ["torch>=2.11", "torchvision>=0.26"]
# ///
"""A variational autoencoder on MNIST in one file that needs torch and torchvision only.

Kingma & Welling 2014, Auto-Encoding Variational Bayes (arXiv 1312.6114).

    python mnist_vae.py --epochs 10    # 102.9 nats in half a minute on two CPU cores
    uv run mnist_vae.py                # on a bare machine; 20 epochs

The losses are those of `python vae.py --hidden 400` with the same flags and seed.
"""
import argparse
import math
import socket
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torchvision import datasets
from torchvision.utils import save_image


class VAE(nn.Module):
    """q(z|x) = N(mu, diag(exp(logvar))), p(x|z): Bernoulli pixels with mean sigmoid(logits)."""

    def __init__(self, hidden, latent):
        super().__init__()
        self.encoder = nn.Sequential(                # (B, 784) -> (B, 2 * latent): mu and logvar
            nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(                # (B, latent) -> (B, 784): logits
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, 784))

    def encode(self, x):
        """x (B, 784) in [0, 1] -> mu, logvar, (B, latent) each: the log of the variance."""
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return mu, logvar.clamp(-15, 15)             # far from the overflow of exp


def loss_terms(model, x, eps):
    """-log p(x|z) and KL(q(z|x) || p(z)) in nats per image, (B,) each: their sum is -ELBO.

    eps (B, latent) is standard normal noise. On grey pixels recon is a cross-entropy.
    """
    mu, logvar = model.encode(x)
    z = mu + torch.exp(0.5 * logvar) * eps           # z ~ q(z|x), section 2.4
    logits = model.decoder(z)
    recon = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
    kl = 0.5 * (mu.square() + logvar.exp() - logvar - 1).sum(1)     # appendix B
    return recon, kl


def train_epoch(model, optimizer, scheduler, images, args):
    """Every training image once, in random order. Returns the mean loss in nats per image."""
    losses = []
    order = torch.randperm(len(images), device=images.device)
    for index in order.split(args.batch_size):
        x = images[index] / 255
        eps = torch.randn(len(x), args.latent, device=x.device)
        recon, kl = loss_terms(model, x, eps)
        loss = recon + kl

        optimizer.zero_grad()
        loss.mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 784)           # a guard, rarely at work
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach().sum())
    return (torch.stack(losses).double().sum() / len(images)).item()


@torch.no_grad()
def evaluate(model, images, args):
    """Every test image once, with z sampled. Returns loss, recon and KL in nats per image."""
    noise = torch.Generator(images.device).manual_seed(0)           # training has its own
    sums = []
    for x in (images / 255).split(1000):
        eps = torch.randn(len(x), args.latent, generator=noise, device=x.device)
        recon, kl = loss_terms(model, x, eps)
        sums.append(torch.stack([(recon + kl).sum(), recon.sum(), kl.sum()]))
    return (torch.stack(sums).double().sum(0) / len(images)).tolist()


def load_mnist(folder, device):
    """Training and test images, uint8 (N, 784), downloaded on first use."""
    socket.setdefaulttimeout(10)                     # seconds without an answer
    try:
        train = datasets.MNIST(folder, train=True, download=True)
        test = datasets.MNIST(folder, train=False, download=True)
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError) as error:
        reason = " ".join(str(error).split())        # in one line
        files = ", ".join(name for name, _ in datasets.MNIST.resources)
        place = Path(folder, "MNIST", "raw")
        print(f"error: no MNIST ({reason}); put {files} into {place}", file=sys.stderr)
        raise SystemExit(2) from None
    return train.data.flatten(1).to(device), test.data.flatten(1).to(device)


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--hidden", type=int, default=400, help="hidden units")
    parser.add_argument("--latent", type=int, default=20, help="size of z")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images")
    parser.add_argument("--batch-size", type=int, default=128, help="images per step")
    parser.add_argument("--lr", type=float, default=5e-3, help="peak of the learning rate")
    parser.add_argument("--seed", type=int, default=1, help="of weights and noise")
    parser.add_argument("--data", default="data", help="folder of MNIST")
    args = parser.parse_args()
    for name in ("hidden", "latent", "epochs", "batch_size", "lr"):
        if not getattr(args, name) > 0:              # nor is "nan"
            parser.error(f"--{name.replace('_', '-')} must be greater than 0")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    train_images, test_images = load_mnist(args.data, device)

    torch.manual_seed(args.seed)
    model = VAE(args.hidden, args.latent).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    steps = args.epochs * math.ceil(len(train_images) / args.batch_size)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps)
    for epoch in range(1, args.epochs + 1):
        train_loss = train_epoch(model, optimizer, scheduler, train_images, args)
        test_loss, recon, kl = evaluate(model, test_images, args)
        print(f"epoch {epoch}/{args.epochs}: train loss {train_loss:.6g}, test loss "
              f"{test_loss:.6g} = recon {recon:.6g} + kl {kl:.6g} nats per image", flush=True)

    z = torch.randn(64, args.latent, device=device)                 # new digits, from the prior
    with torch.no_grad():
        samples = torch.sigmoid(model.decoder(z)).view(64, 1, 28, 28)
    save_image(samples, "mnist_vae.png")
    print("64 samples: mnist_vae.png")


if __name__ == "__main__":
    main()
