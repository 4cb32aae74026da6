"""What can be measured of pictures and models: distances between sets of pictures in the features
of a network, class accuracy, and the importance-sampled likelihood.

Everywhere: pictures are floats in [0, 1], (B, C, H, W); features are (N, d), double, on the CPU.
"""
import hashlib
import math
import os
import socket
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from common import batches, check, gaussian_nll, load_data

SEED, IMAGES, EPOCHS, LR, BLUR = 0, 240_000, 12, 4e-3, 0.25   # of the networks trained here


class Classifier(nn.Module):
    """A small convolutional network, pictures (B, C, H, W) -> logits (B, classes). The numbers
    before its last layer are the features in which distances are measured."""
    num_features = 64

    def __init__(self, channels, classes):
        super().__init__()
        blocks = [[nn.Conv2d(n, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                   nn.MaxPool2d(2, ceil_mode=True)] for n, width in
                  ((channels, 16), (16, 32), (32, 64))]
        self.body = nn.Sequential(
            *sum(blocks, []),                             # (B, 64, H / 8, W / 8)
            nn.AdaptiveAvgPool2d(3), nn.Flatten(),        # (B, 576), whatever H and W
            nn.Linear(576, 64), nn.LayerNorm(64), nn.ReLU(),
        )
        self.head = nn.Linear(self.num_features, classes)
        self.to(memory_format=torch.channels_last)

    def features(self, x):
        """(B, C, H, W) -> (B, num_features)."""
        return self.body(x.to(memory_format=torch.channels_last))

    def forward(self, x):
        return self.head(self.features(x))


def classifies(data):
    """Whether a data set can train a Classifier: two classes or more, of 100 images on average."""
    return len(data.classes) > 1 and len(data.x_train) >= 100 * len(data.classes)


def classifier(data, cache="results/cache", quiet=False, robust=False):
    """The Classifier of a labelled data set; `accuracy` is that on its real test images. A robust
    one saw blurred images, too: the other takes many a soft 4 of a VAE for a 1. As features for
    distances it will not do, since it does not mind what a distance should."""
    return trained(data, "robust-classifier" if robust else "classifier", cache, quiet)


def trained(data, kind, cache, quiet):
    """A network trained once: kept in `cache` under a key of data, architecture and recipe. Neither
    its weights nor its batches touch the random numbers of the run it is trained in. An autoencoder
    is, for pictures without labels, the same network, its last layer a linear decoder of pixels."""
    labelled, device = kind != "autoencoder", data.x_train.device
    outputs = len(data.classes) if labelled else data.x_train[0].numel()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(SEED)
        network = Classifier(data.x_train.shape[1], outputs).to(device)
        recipe = f"{network} {SEED} {IMAGES} {EPOCHS} {LR} {BLUR}"
        key = hashlib.sha256(recipe.encode())
        for part in (data.x_train, data.y_train):
            key.update(str(part.shape).encode())
            key.update(part.cpu().contiguous().numpy())
        file = Path(cache, f"{data.name}-{kind}-{key.hexdigest()[:16]}.pt")
        if not file.is_file():
            if not quiet:
                print(f"training the {kind} of {data.name}, once; it is kept in {cache}")
            train(network, data, kind)
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}")   # two runs at a time must not share it
            torch.save(network.state_dict(), part)
            os.replace(part, file)
    network.load_state_dict(torch.load(file, map_location=device, weights_only=True))
    network.accuracy = share_right(network, data) if labelled else None
    return network.requires_grad_(False).eval()


@torch.enable_grad()   # wherever it is called from
def train(network, data, kind):
    """A few passes over the training images: a minute or two on two cores."""
    epochs = min(EPOCHS, math.ceil(IMAGES / len(data.x_train)))
    steps = epochs * math.ceil(len(data.x_train) / 128)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for _ in range(epochs):
        for x, y in batches(data.x_train, data.y_train, 128, shuffle=True):
            for _ in range(3 if kind == "robust-classifier" else 0):   # the mean of 3x3, or not
                blurred = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
                x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < BLUR, blurred, x)
            output = network(x)
            loss = F.mse_loss(output, x.flatten(1)) if kind == "autoencoder" else \
                F.cross_entropy(output, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()


@torch.no_grad()
def share_right(network, data):
    """Share of the test images whose class a Classifier recognises."""
    network.eval()
    right = sum((network(x).argmax(1) == y).sum().item() for x, y in
                batches(data.x_test, data.y_test, 1000, shuffle=False))
    return right / len(data.x_test)


class Features(nn.Module):
    """A function of pictures as torchmetrics wants one: pictures (B, C, H, W), resized to `size`
    if they have another, -> features (B, num_features)."""

    def __init__(self, function, num_features, size, device):
        super().__init__()
        self.function, self.num_features, self.size = function, num_features, size
        self.device = device

    @torch.no_grad()
    def forward(self, x):
        x = x.to(self.device)
        if self.size not in (None, x.shape[2:]):
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        return self.function(x).cpu().double()   # statistics of many pictures outgrow 24 bits


def extractor(data, kind="classifier", folder="data", cache="results/cache", quiet=False):
    """The features that serve a data set, and the name that tells which.

    kind: `inception`, or a file of its weights, or `classifier`: of the data set itself; where it
    has no labels or fewer than 100 images a class, of CIFAR-10 for colour or MNIST for grey, if
    `folder` holds it; else an autoencoder of the data set. Nothing is downloaded but Inception.
    """
    device = data.x_train.device
    if kind != "classifier":
        found = inception(kind, device)
        if found:
            return "inception", found
    name, model = "classifier", None
    if classifies(data):
        model = classifier(data, cache, quiet)
    elif other := at_hand(data.x_train.shape[1], folder, device):
        name, model, data = other.name.lower(), classifier(other, cache, quiet), other
    else:
        name, model = "autoencoder", trained(data, "autoencoder", cache, quiet)
    if not quiet:
        print(f"features: autoencoder of {data.name}" if name == "autoencoder" else f"features: "
              f"classifier of {data.name}, right on {model.accuracy:.2%} of its test images")
    return name, Features(model.features, model.num_features, data.x_train.shape[2:], device)


def inception(kind, device):
    """Inception v3's 2,048 features; None, and a line that says so, if its weights are not had."""
    from torchmetrics.image.fid import NoTrainInceptionV3
    path = None if kind == "inception" else kind
    try:   # with weights_only, which torch-fidelity leaves out: a pickle could run any code
        weights = path and torch.load(path, map_location="cpu", weights_only=True)
        assert path is None or "Conv2d_1a_3x3.conv.weight" in weights
    except Exception as error:   # a file that is something else can raise anything
        check(False, f"--fid-features {path} is no file of Inception's weights "
              f"({type(error).__name__}); give another, or inception, or classifier")
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], path).to(device)
    except (ImportError, OSError, RuntimeError) as error:
        print(f"Inception's weights are not to be had ({error}); a classifier takes its place")
        return None
    finally:
        socket.setdefaulttimeout(patience)
    return Features(lambda x: network(x.mul(255).round().byte().expand(-1, 3, -1, -1)), 2048, None,
                    device)


def at_hand(channels, folder, device):
    """CIFAR-10 for colour, MNIST for grey, if it is whole on disk; else None."""
    from torchvision import datasets
    file, name = Path(folder, "cifar10.npz"), "CIFAR10" if channels == 3 else "MNIST"
    if channels == 3 and file.is_file():
        return load_data(str(file), device=device)
    try:
        getattr(datasets, name)(folder)   # raises if it is not whole, and downloads nothing
    except RuntimeError:
        return None
    return load_data(name, folder, device)


def subset(x, n):
    """n rows of x, or all: always the same ones."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))
    return x[order[:n].to(x.device)]


def pick(x, n):
    """That subset of pictures, uint8, in batches in [0, 1]."""
    return (part / 255 for part in subset(x, n).split(1000))


def fid_meter(data, kind="classifier", folder="data", cache="results/cache", quiet=False):
    """Name, FrechetInceptionDistance to n = min(10,000, all) test pictures, and its floor: the
    distance of n training pictures, all there is to reach. Heusel et al. 2017 (1706.08500)."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    name, features = extractor(data, kind, folder, cache, quiet)
    n = min(10_000, len(data.x_test))
    meter = FrechetInceptionDistance(features, reset_real_features=False)
    for x in pick(data.x_test, n):
        meter.update(x, real=True)
    return f"fid_{name}_{n}", meter, fid(meter, pick(data.x_train, n))


def fid(meter, pictures):
    """Frechet distance of batches of pictures to the meter's reference."""
    meter.reset()   # of the pictures before, not of the reference
    for x in pictures:
        meter.update(x, real=False)
    return meter.compute().item()


def frechet(real, fake):
    """Frechet distance of two sets of features."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    return between(FrechetInceptionDistance, real, fake).item()


def kernel(real, fake):
    """Kernel distance, KID, of two sets of features: the mean over 20 subsets of up to 1,000.
    Unbiased, so that it can fall below 0. Binkowski et al. 2018 (1801.01401)."""
    from torchmetrics.image.kid import KernelInceptionDistance
    size = min(1000, len(real), len(fake))
    with torch.random.fork_rng([]), warnings.catch_warnings():
        torch.manual_seed(SEED)   # of the subsets
        warnings.simplefilter("ignore", UserWarning)   # the features are in memory as it is
        return between(KernelInceptionDistance, real, fake, subsets=20, subset_size=size)[0].item()


def between(metric, real, fake, **flags):
    """A distance of torchmetrics between features instead of pictures."""
    meter = metric(Features(lambda features: features, real.shape[1], None, "cpu"), **flags)
    meter.update(real, real=True)
    meter.update(fake, real=False)
    return meter.compute()


def precision_recall(real, fake, k=3):
    """Share of the fake features that lie among the real ones, and of the real among the fake:
    within the distance of one of them to its k-th neighbour. Kynkaanniemi et al. 2019
    (1904.06991), equation 1."""
    def share_within(points, others):
        nearest = [torch.cdist(part, others).topk(k + 1, largest=False).values
                   for part in others.split(1000)]
        radius = torch.cat(nearest)[:, k]   # from the second on: the nearest is the point itself
        within = [(torch.cdist(part, others) <= radius).any(1) for part in points.split(1000)]
        return torch.cat(within).double().mean().item()
    return share_within(fake, real), share_within(real, fake)


@torch.no_grad()
def nll_is(model, x, y, samples=500, noise=None, rows=1000):
    """-log p(x|y) in nats per image, (B,), by importance sampling with q(z|x,y); of a model of no
    classes -log p(x). Burda et al. 2016 (1509.00519), equation 8:

    log p(x|y) ~ log 1/K sum_k p(x|z_k,y) p(z_k) / q(z_k|x,y), z_k ~ q(z|x,y), K = samples,

    from below, closer with every sample. Every image draws in its turn, so that its noise does not
    hang on its batch; no more than `rows` pictures are in memory at a time."""
    mu, logvar = model.encode(x, y)
    found = []
    for i in torch.arange(len(x), device=x.device).split(max(1, rows // samples)):
        eps = torch.stack([torch.randn(samples, mu.shape[1], generator=noise) for _ in i])
        eps, logvar_i = eps.to(x.device), logvar[i, None]
        z = mu[i, None] + torch.exp(0.5 * logvar_i) * eps                      # (b, K, latent)
        log_ratio = 0.5 * (eps.square() + logvar_i - z.square()).sum(2)        # log p(z) / q(z|x,y)
        recon = [pixel_nll(model, x[i], y[i], part) for part in z.split(rows, 1)]
        log_w = log_ratio - torch.cat(recon, 1)                                # (b, K)
        found.append(math.log(samples) - log_w.logsumexp(1))
    return torch.cat(found)


def pixel_nll(model, x, y, z):
    """-log p(x|z,y), (b, K), of K codes an image: x (b, C, H, W), y (b,), z (b, K, latent)."""
    b, k = z.shape[:2]
    logits, log_sigma = model.decode(z.flatten(0, 1), y.repeat_interleave(k))
    if log_sigma is not None:
        return gaussian_nll(torch.sigmoid(logits), log_sigma, x.repeat_interleave(k, 0)).view(b, k)
    # bernoulli_nll is sum(softplus(l) - x l): here x l is a matrix product, and softplus is made of
    # exp and log, since log1p alone would take a CPU longer than the decoder of an MLP
    logits = logits.reshape(b, k, -1)
    softplus = logits.abs().neg_().exp_().add_(1).log_().add_(logits.relu())
    return softplus.sum(2) - (logits @ x.reshape(b, -1, 1)).squeeze(2)


def log_likelihoods(model, x, samples=500, noise=None):
    """log p(x|y) of every class y, (B, classes), with nll_is. With log p(y) added the logsumexp
    over classes is log p(x), and the argmax the class that a CVAE, never trained to tell classes
    apart, takes x for."""
    columns = [-nll_is(model, x, torch.full((len(x),), y, device=x.device), samples, noise)
               for y in range(model.classes)]
    return torch.stack(columns, 1)
