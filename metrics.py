"""What can be measured of images and models: distances between sets of images in the features of a
network, class accuracy, and the importance-sampled likelihood.

Throughout: images are floats in [0, 1], (B, C, H, W); features are (N, d), double, on the CPU.
"""
import contextlib
import copy
import hashlib
import io
import math
import os
import pickle
import socket
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn
from torch.distributions import Bernoulli, Independent
from torch.nn import functional as F

from common import batches, fail, hash_rows, safe_name, tell, watched
from readers import load_data

MODELS = Path(__file__).with_name("results") / "models" / "classifiers"   # trained ones

# Of the networks that are trained here.
SEED = 0
EPOCHS = 12        # passes over the training images, at most
IMAGES = 240_000   # images seen in all, about: a large data set gets fewer passes
LR = 4e-3          # peak of the one-cycle schedule
BLUR = 0.25        # share of the images blurred, three times over, for a robust classifier
PIXELS_PER_SECOND = 1.9e6   # of training, on two cores; only to say how long it takes


@contextlib.contextmanager
def seeded(seed):
    """Random numbers of a seed of their own; those outside go on as if nothing had been drawn."""
    devices = range(torch.cuda.device_count())   # manual_seed seeds them all
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


class Classifier(nn.Module):
    """A small convolutional network, images (B, C, H, W) -> logits (B, classes).

    The numbers before its last layer are the features in which distances are measured.
    """
    num_features = 64

    def __init__(self, channels, classes):
        super().__init__()
        layers = []
        for width in (16, 32, 64):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                       nn.MaxPool2d(2, ceil_mode=True)]   # (B, width, H / 2, W / 2), / 4, / 8
            channels = width
        self.body = nn.Sequential(
            *layers,
            nn.AdaptiveAvgPool2d(3), nn.Flatten(),        # (B, 64 * 3 * 3), whatever H and W
            nn.Linear(576, 64), nn.LayerNorm(64), nn.ReLU(),
        )
        self.head = nn.Linear(self.num_features, classes)
        self.to(memory_format=torch.channels_last)

    def features(self, x):
        """(B, C, H, W) -> (B, num_features)."""
        return self.body(x.to(memory_format=torch.channels_last))

    def forward(self, x):
        return self.head(self.features(x))


def can_train_classifier(data):
    """Whether a data set has two classes or more, of 100 training images on average."""
    return len(data.classes) > 1 and len(data.x_train) >= 100 * len(data.classes)


def trained_classifier(data, cache="results/cache", quiet=False, robust=False):
    """The Classifier of a labelled data set; `accuracy` is that on its real test images.

    A robust one was also trained on blurred images; the plain one often mistakes a blurry 4 of a
    VAE for a 1. For distances the plain one is used, since they should notice blur.
    """
    kind = "robust-classifier" if robust else "classifier"
    network = trained_network(data, kind, cache, quiet)
    network.accuracy = accuracy(network, data)
    return network


def trained_network(data, kind, cache, quiet):
    """A network trained once and kept in `cache` under a key of data, architecture and recipe.
    Those of MNIST, FashionMNIST and digits lie in MODELS.

    kind: `classifier`, `robust-classifier` or, for images without labels, `autoencoder`: the same
    network, whose last layer is a linear decoder of the pixels; or `regressor`: of cos and sin of
    an angle, (N, 2) in the place of labels. Neither its weights nor its batches touch the random
    numbers of the run it is trained in.
    """
    device = data.x_train.device
    outputs = len(data.classes)
    if kind == "autoencoder":
        outputs = data.x_train[0].numel()
    elif kind == "regressor":
        outputs = data.y_train.shape[1]
    with seeded(SEED):
        network = Classifier(data.x_train.shape[1], outputs).to(device)
        name = f"{safe_name(data.name)}-{kind}-{cache_key(network, data)}.pt"
        kept = None
        for folder in (MODELS, cache):
            if kept is None:
                kept = read_weights(Path(folder, name), network, quiet)
        if kept is not None:
            network = kept
        else:
            train(network, data, kind, quiet)
            keep_weights(Path(cache, name), network, quiet)
    return network.requires_grad_(False).eval()


def read_weights(file, network, quiet):
    """The network with the weights in a file, or None if there are none. If the file is broken, or
    is not of this network, a line says so."""
    if not file.is_file():
        return None
    kept = copy.deepcopy(network)   # a fault leaves the network itself as it was
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()   # its checksums, at which torch does not look
        if broken is not None:
            raise ValueError(f"{broken} has changed")
        kept.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:   # a file that is something else can raise anything
        if not quiet:
            tell(f"{file} is broken ({type(error).__name__}) and is made again")
        return None
    return kept


def keep_weights(file, network, quiet):
    """Write the weights of a network; where that is impossible, go on after a line."""
    content = io.BytesIO()
    torch.save(network.state_dict(), content)
    partial = file.with_suffix(f".{os.getpid()}")   # two runs at a time must not share it
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.getvalue())
        os.replace(partial, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if not quiet:
            tell(f"{file} cannot be written ({error.strerror}): going on without keeping it")


def cache_key(network, data):
    """A hash of the training images, their labels, the architecture and the recipe."""
    key = hashlib.sha256(f"{network} {SEED} {IMAGES} {EPOCHS} {LR} {BLUR}".encode())
    for part in (data.x_train, data.y_train):
        key.update(str(part.shape).encode())
        hash_rows(key, part)
    return key.hexdigest()[:16]


@torch.enable_grad()   # wherever it is called from
def train(network, data, kind, quiet=True):
    """A few passes over the training images: a minute or two on two cores."""
    epochs = min(EPOCHS, math.ceil(IMAGES / len(data.x_train)))
    steps = epochs * math.ceil(len(data.x_train) / 128)
    pixels = len(data.x_train) * data.x_train.shape[2:].numel()
    seconds = epochs * pixels / PIXELS_PER_SECOND
    message = (f"training the {kind} of {data.name}, once, to measure samples with: about "
               f"{max(1, round(seconds))} s on two cores")
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    for x, y in watched(passes(data, epochs), steps, message, quiet):
        if kind in ("robust-classifier", "regressor"):
            x = blur_some(x)
        output = network(x)
        if kind == "autoencoder":
            loss = F.mse_loss(output, x.flatten(1))
        elif kind == "regressor":
            loss = F.mse_loss(output, y)
        else:
            loss = F.cross_entropy(output, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def passes(data, epochs):
    """The batches of several epochs."""
    for _ in range(epochs):
        yield from batches(data.x_train, data.y_train, 128, shuffle=True)


def blur_some(x):
    """Three times over, a share BLUR of the images becomes the mean of 3x3 pixels."""
    for _ in range(3):
        blurred = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        chosen = torch.rand(len(x), 1, 1, 1, device=x.device) < BLUR
        x = torch.where(chosen, blurred, x)
    return x


@torch.no_grad()
def accuracy(network, data):
    """Share of the test images whose class a Classifier recognises."""
    network.eval()
    right = 0
    for x, y in batches(data.x_test, data.y_test, 1000, shuffle=False):
        right += (network(x).argmax(1) == y).sum().item()
    return right / len(data.x_test)


# ------------------------------------------------------------------------------------ features

class Features(nn.Module):
    """A function of images as torchmetrics wants one: (B, C, H, W) -> (B, num_features).

    Images of another size than `size` (H, W) are resized; None takes any.
    """

    def __init__(self, function, num_features, size, device):
        super().__init__()
        self.function, self.num_features = function, num_features
        self.size, self.device = size, device

    @torch.no_grad()
    def forward(self, x):
        x = x.to(self.device)
        if self.size is not None and x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        return self.function(x).cpu().double()   # statistics of many images outgrow 24 bits


def extractor(data, kind="classifier", folder="data", cache="results/cache", quiet=False):
    """The features that serve a data set, and the name that tells which.

    kind: `inception`, or a file of its weights, or `classifier`: of the data set itself; where it
    has no labels or fewer than 100 images per class, of CIFAR-10 for colour or MNIST for grey, if
    `folder` holds it; else an autoencoder of the data set. Nothing is downloaded but Inception.
    """
    device = data.x_train.device
    if kind != "classifier":
        features = inception(kind, device)
        if features is not None:
            return "inception", features

    source, why = data, ""
    if not can_train_classifier(data):
        source = stand_in(data.x_train.shape[1], folder, device)
        why = f" ({data.name} has no labels, or fewer than 100 training images of a class)"
    if source is None:
        name = "autoencoder"
        network = trained_network(data, "autoencoder", cache, quiet)
        size = data.x_train.shape[2:]
        described = f"autoencoder of {data.name}"
    else:
        name = "classifier" if source is data else source.name.lower()
        network = trained_classifier(source, cache, quiet)
        size = source.x_train.shape[2:]
        described = (f"classifier of {source.name}, right on {network.accuracy:.2%} of its "
                     "test images")
    if not quiet:
        tell(f"features: {described}{why}")
    return name, Features(network.features, network.num_features, size, device)


ELSE = "use another file, or inception, or classifier"   # in place of --fid-features FILE


def inception(kind, device):
    """Inception v3's 2,048 features; None, and a line that says so, without its weights.

    kind: `inception`, or a file of its weights.
    """
    path = None
    if kind != "inception":
        path = kind
        check_inception_weights(path)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3
        network = NoTrainInceptionV3("inception-v3-compat", ["2048"], path).to(device)
    except (ImportError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if path is not None and isinstance(error, RuntimeError):   # shapes or parts do not match
            fail(f"--fid-features {path} does not hold Inception's weights; {ELSE}")
        reason = " ".join(str(error).split()) or type(error).__name__
        tell(f"Inception's weights are not available ({reason}); using a classifier instead")
        return None
    finally:
        socket.setdefaulttimeout(timeout)

    def features(x):
        return network(x.mul(255).round().byte().expand(-1, 3, -1, -1))

    return Features(features, 2048, None, device)


def check_inception_weights(path):
    """End the program unless the file holds Inception's weights and nothing that could run code,
    which torch-fidelity does not check."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        good = "Conv2d_1a_3x3.conv.weight" in weights
    except Exception as error:   # a file that is something else can raise anything
        fail(f"--fid-features {path} does not hold Inception's weights ({type(error).__name__}); "
             f"{ELSE}")
    if not good:
        fail(f"--fid-features {path} does not hold Inception's weights; {ELSE}")


def stand_in(channels, folder, device):
    """CIFAR-10 for colour, MNIST for grey, if it is complete on disk; else None."""
    from torchvision import datasets
    file = Path(folder, "cifar10.npz")
    if channels == 3 and file.is_file():
        return load_data(str(file), device=device)
    name = "CIFAR10" if channels == 3 else "MNIST"
    try:
        getattr(datasets, name)(folder)   # raises if it is not complete, and downloads nothing
    except (OSError, RuntimeError, ValueError, EOFError):   # absent, or damaged
        return None
    return load_data(name, folder, device)


# ----------------------------------------------------------------------------------- distances

def subset(x, n):
    """n rows of x, or all: always the same ones."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))
    return x[order[:n].to(x.device)]


def image_batches(x, n):
    """That subset of uint8 images, in batches in [0, 1]."""
    for part in subset(x, n).split(1000):
        yield part / 255


class FIDMeter:
    """Frechet distance of samples to the test set (Heusel et al. 2017, arXiv 1706.08500).

    name: fid_FEATURES_N; n: of 10,000 images, or of as many as there are both for training and for
    testing; as many samples are to be given; floor: the distance of n training images, all there is
    to reach.
    """

    def __init__(self, data, features="classifier", folder="data", cache="results/cache",
                 quiet=False):
        from torchmetrics.image.fid import FrechetInceptionDistance
        name, network = extractor(data, features, folder, cache, quiet)
        self.n = min(10_000, len(data.x_train), len(data.x_test))
        self.name = f"fid_{name}_{self.n}"
        self.metric = FrechetInceptionDistance(network, reset_real_features=False)
        steps = math.ceil(self.n / 1000)
        message = f"measuring the distance of {self.n:,} training images to as many of the test set"
        real = image_batches(data.x_test, self.n)
        for x in watched(real, steps, message, quiet):
            self.metric.update(x, real=True)
        self.floor = self.distance(image_batches(data.x_train, self.n))
        if not quiet:
            tell(f"{self.name} of training images, the floor: {self.floor:.2f}")

    def distance(self, images):
        """Of batches of images to the test set."""
        self.metric.reset()   # forgets the images before, not the test set
        for x in images:
            self.metric.update(x, real=False)
        distance = self.metric.compute().item()
        if not math.isfinite(distance):
            fail(f"{self.name} is not finite; try a smaller --lr", status=1)
        return never_negative(distance)


def never_negative(distance):
    """A Frechet distance of equal sets, which rounding can bring below 0; nan stays nan."""
    return 0.0 if distance < 0 else distance


def frechet_distance(real, fake):
    """Frechet distance of two sets of features."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    distance = between(FrechetInceptionDistance(feature_identity(real)), real, fake)
    return never_negative(distance.item())


def kernel_distance(real, fake):
    """Kernel distance, KID, of two sets of features: the mean over 20 subsets of up to 1,000.

    Unbiased, so that it can fall below 0, and is left there. Binkowski et al. 2018 (arXiv
    1801.01401).
    """
    from torchmetrics.image.kid import KernelInceptionDistance
    size = min(1000, len(real), len(fake))
    with seeded(SEED), warnings.catch_warnings():   # the subsets are drawn
        warnings.simplefilter("ignore", UserWarning)   # the features are in memory as it is
        metric = KernelInceptionDistance(feature_identity(real), subsets=20, subset_size=size)
        return between(metric, real, fake)[0].item()


def feature_identity(features):
    """Stands where torchmetrics wants a network: the features are there already."""
    return Features(nn.Identity(), features.shape[1], None, "cpu")


def between(metric, real, fake):
    """What a metric of torchmetrics says of two sets of features."""
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric.compute()


def precision_recall(real, fake, k=3):
    """Share of the fake features that lie among the real ones, and of the real among the fake:
    within the distance of one of them to its k-th neighbour.

    Kynkaanniemi et al. 2019 (arXiv 1904.06991), equation 1.
    """
    return share_within(fake, real, k), share_within(real, fake, k)


def share_within(points, others, k):
    """Share of the points that are within the k-th neighbour's distance of one of the others."""
    nearest = []
    for part in others.split(1000):
        nearest.append(torch.cdist(part, others).topk(k + 1, largest=False).values)
    radius = torch.cat(nearest)[:, k]   # the nearest of all is the point itself
    within = []
    for part in points.split(1000):
        within.append((torch.cdist(part, others) <= radius).any(1))
    return torch.cat(within).double().mean().item()


# ---------------------------------------------------------------------------------- likelihood

@torch.no_grad()
def nll_is(model, x, y, samples=500, noise=None, rows=1000):
    """-log p(x|y) in nats per image, (B,), by importance sampling with q(z|x,y); of a model without
    labels -log p(x). Burda et al. 2016 (arXiv 1509.00519), equation 8:

        log p(x|y) ~ log 1/K sum_k p(x|z_k,y) p(z_k) / q(z_k|x,y),  z_k ~ q(z|x,y),  K = samples,

    The estimate of log p is too low on average, so that of -log p is too high; both tighten as K
    grows.

    model: a run.Trained; noise: a torch.Generator on the CPU. Noise is drawn image by image, so it
    does not depend on the batch size. No more than `rows` images are decoded at a time.
    """
    mu, logvar = model.encode(x, y)
    prior = model.prior()
    nlls = []
    for i in torch.arange(len(x), device=x.device).split(max(1, rows // samples)):
        eps = torch.stack([torch.randn(samples, mu.shape[1], generator=noise) for _ in i])
        eps = eps.to(x.device)                                                  # (b, K, latent)
        logvar_i = logvar[i, None]                                              # (b, 1, latent)
        z = mu[i, None] + torch.exp(0.5 * logvar_i) * eps                       # (b, K, latent)
        if prior is None:                     # log p(z) / q(z|x,y), both normal
            log_ratio = 0.5 * (eps.square() + logvar_i - z.square()).sum(2)     # (b, K)
        else:
            log_q = -0.5 * (eps.square() + logvar_i + math.log(2 * math.pi)).sum(2)
            # A mixture compares every code with every component: those of 10 codes fit the cache.
            log_prior = [prior.log_prob(part) for part in z.split(10, 1)]
            log_ratio = torch.cat(log_prior, 1) - log_q
        log_p = [log_p_x_given_z(model, x[i], y[i], part) for part in z.split(rows, 1)]
        log_w = log_ratio + torch.cat(log_p, 1)                                 # (b, K)
        nlls.append(math.log(samples) - log_w.logsumexp(1))
    return torch.cat(nlls)


def log_p_x_given_z(model, x, y, z):
    """log p(x|z,y), (b, K), of K codes per image: x (b, C, H, W), z (b, K, latent); y (b,) are
    labels, or vectors (b, n_c)."""
    b, k = z.shape[:2]
    p = model.decode(z.flatten(0, 1), y.repeat_interleave(k, 0))
    if not is_bernoulli(p):
        return p.log_prob(x.repeat_interleave(k, 0)).view(b, k)
    # log p = sum(x l - softplus(l)), l being the logits. Here sum(x l) is a matrix product, and
    # softplus is made of exp and log: log1p alone would take a CPU longer than an MLP's decoder.
    logits = p.base_dist.logits.reshape(b, k, -1)
    softplus = logits.abs().neg_().exp_()               # exp(-|l|), which cannot overflow
    softplus = softplus.add_(1).log_().add_(logits.relu())
    return (logits @ x.reshape(b, -1, 1)).squeeze(2) - softplus.sum(2)


def is_bernoulli(p):
    """Whether p(x|z) is of pixels that are black or white, each by itself."""
    return isinstance(p, Independent) and isinstance(p.base_dist, Bernoulli)


def class_log_likelihoods(model, x, samples=500, noise=None):
    """log p(x|y) of every class y, (B, classes), with nll_is.

    With log p(y) added the logsumexp over classes is log p(x), and the argmax the class that a
    CVAE, never trained to tell classes apart, takes x for.
    """
    columns = []
    message = f"log p(x|y) of {len(x):,} images for every class y"
    for label in watched(range(model.classes), model.classes, message):
        y = torch.full((len(x),), label, device=x.device)
        columns.append(-nll_is(model, x, y, samples, noise))
    return torch.stack(columns, 1)


@torch.no_grad()
def exact_class_log_likelihoods(model, x, u):
    """log p(x|y) of every class y, (B, classes), with the same noise for each."""
    columns = []
    for label in range(model.classes):
        y = torch.full((len(x),), label, device=x.device)
        columns.append(-model.nll_exact(x, y, u))
    return torch.stack(columns, 1)
