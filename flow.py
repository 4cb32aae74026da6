"""RealNVP: a normalizing flow, with and without labels. It knows the exact density of an image.

Dinh, Sohl-Dickstein & Bengio 2017, Density estimation using Real NVP (arXiv 1605.08803):

    z = f(x, y),   log p(x|y) = log N(z; 0, I) + log |det dz/dx|

f is a chain of invertible layers, whose log-determinants add up. The determinant says by how much f
stretches the space around x. Training raises log p(x|y); to sample, draw z and run f backwards.

    python flow.py                                 # MNIST: 1.296 bits per dimension in five epochs
    python flow.py --epochs 22                     # 1.215 bits per dimension
    python flow.py --conditional                   # one class per row
    python flow.py --dataset digits --epochs 60    # no download

An epoch takes 11 to 19 minutes of a core, or with --amp 3 minutes of one with AMX.
"""
import ctrl_c  # without a traceback, even during these imports
import math
import sys

import torch
from torch import nn
from torch.nn import functional as F

from common import Means, batches, fail, fixed_images, fixed_z, save_curves, save_grid
from common import spherical
from processes import average_gradients, own_rows
from run import Parser, Run, add_data_flags, add_optimizer_flags, add_run_flags, check_size
from run import compiled, guarded, load_run_data, make_scheduler, number, parse, progress

ALPHA = 0.05       # keeps logit(x) finite at black and white (section 4.1)
MAX_LOG_SCALE = 2  # a coupling scales by exp(-2) to exp(2): larger steps could blow up in training
MAX_GRADIENT = 50  # norm of the gradient: one very unlikely image must not undo the others' work


# --------------------------------------------------------------------------------------- model
# Every layer is invertible, with an input x and an output z of its own: forward(x, y) -> z,
# log |det dz/dx| (B,); inverse(z, y) -> x. Labels y (B,) matter in a conditional flow only.

class Logit(nn.Module):
    """Pixels in (0, 1) -> logit(alpha + (1 - 2 alpha) x), from -2.94 to 2.94 (section 4.1; with the
    1 - alpha that the paper has, white would be at infinity)."""

    def forward(self, x, y):
        p = ALPHA + (1 - 2 * ALPHA) * x
        log_p, log_not_p = torch.log(p), torch.log1p(-p)
        log_slope = math.log(1 - 2 * ALPHA) - log_p - log_not_p       # dz/dx, pixel by pixel
        return log_p - log_not_p, log_slope.flatten(1).sum(1)

    def inverse(self, z, y):
        return (torch.sigmoid(z) - ALPHA) / (1 - 2 * ALPHA)


class Standardize(nn.Module):
    """(x - mean) / deviation, with two numbers of the training set, which fit() finds. Couplings
    that begin as the identity learn far faster when what they see is about N(0, 1)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def fit(self, x):
        self.mean.copy_(x.mean())
        self.deviation.copy_(x.std())

    def forward(self, x, y):
        log_det = -x[0].numel() * torch.log(self.deviation)
        return (x - self.mean) / self.deviation, log_det.expand(len(x))

    def inverse(self, z, y):
        return self.mean + self.deviation * z


class Squeeze(nn.Module):
    """Each square of four pixels becomes four channels, (B, C, 2H, 2W) -> (B, 4C, H, W) (section
    3.6). Numbers only change places, so the determinant is 1."""

    def forward(self, x, y):
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, z, y):
        return F.pixel_shuffle(z, 2)


class Coupling(nn.Module):
    """Affine coupling (sections 3.2 to 3.4): where the mask is 1 numbers stay, and a network that
    sees only those says how the others are scaled and shifted:

        z = b x + (1 - b) (x exp(s(b x)) + t(b x)),   log |det dz/dx| = sum of (1 - b) s(b x)

    The Jacobian is triangular, so its determinant is the product of its diagonal, exp(s) or 1.
    mask: b, ones and zeros by channel, (C,). The network is never inverted, so it can be anything.
    """

    def __init__(self, mask, classes, args):
        super().__init__()
        self.register_buffer("mask", mask[:, None, None].clone())      # (C, 1, 1)
        self.network = Network(len(mask), classes, args)

    def scale_and_shift(self, x, y):
        """log-scale s and shift t of every number, (B, C, H, W) each: 0 where the mask is 1."""
        s, t = self.network(self.mask * x, y).chunk(2, dim=1)
        s = MAX_LOG_SCALE * torch.tanh(s / MAX_LOG_SCALE)
        return (1 - self.mask) * s, (1 - self.mask) * t

    def forward(self, x, y):
        s, t = self.scale_and_shift(x, y)
        return x * torch.exp(s) + t, s.flatten(1).sum(1)

    def inverse(self, z, y):
        s, t = self.scale_and_shift(z, y)       # the same: what the network sees has not changed
        return (z - t) * torch.exp(-s)


class Network(nn.Module):
    """A small residual network, (B, C, H, W) -> (B, 2C, H, W). Its last layer starts at zero, so
    the coupling starts as the identity. Batch normalisation, as in the paper, lets it learn faster.
    (In training its statistics are those of the batch: only in evaluation is the density that of
    one image.)"""

    def __init__(self, channels, classes, args):
        super().__init__()
        self.first = nn.Conv2d(channels, args.hidden, 3, padding=1)
        self.blocks = nn.ModuleList([Block(args.hidden, classes) for _ in range(args.blocks)])
        self.norm = ConditionalNorm(args.hidden, classes)
        self.last = nn.Conv2d(args.hidden, 2 * channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x, y):
        h = self.first(x)                                               # (B, hidden, H, W)
        for block in self.blocks:
            h = block(h, y)
        return self.last(F.relu(self.norm(h, y))).float()               # float32 under --amp


class Block(nn.Module):
    """Residual block, (B, width, H, W) -> the same (He et al. 2016, arXiv 1603.05027)."""

    def __init__(self, width, classes):
        super().__init__()
        self.norm1 = ConditionalNorm(width, classes)
        self.norm2 = ConditionalNorm(width, classes)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, y):
        h = self.conv1(F.relu(self.norm1(x, y)))
        return x + self.conv2(F.relu(self.norm2(h, y)))


class ConditionalNorm(nn.BatchNorm2d):
    """Batch normalisation, followed by a gain and a bias for each class (Dumoulin et al. 2017,
    arXiv 1610.07629, for instance normalisation); with no classes it does not look at y."""

    def __init__(self, width, classes):
        super().__init__(width)
        self.label = None
        if classes > 0:
            self.label = nn.Embedding(classes, 2 * width)
            nn.init.zeros_(self.label.weight)                           # a gain of 1, a bias of 0

    def forward(self, x, y):
        h = super().forward(x)
        if self.label is None:
            return h
        gain, bias = self.label(y).to(h.dtype).chunk(2, dim=1)          # (B, width) each
        return (1 + gain[:, :, None, None]) * h + bias[:, :, None, None]


def make_couplings(channels, classes, args):
    """Couplings in pairs with opposite masks, so that each pair changes every number. Pairs take
    turns: a checkerboard of the pixels before the squeeze, or half of the channels. (The paper has
    its checkerboards before the squeeze, where a convolution costs four times as much.)"""
    # The four channels of a square: upper left, upper right, lower left, lower right.
    checkerboard = torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(channels // 4)
    half = torch.cat([torch.ones(channels // 2), torch.zeros(channels // 2)])
    couplings = nn.ModuleList()
    for i in range(args.couplings):
        mask = checkerboard if i % 4 < 2 else half
        if i % 2 == 1:
            mask = 1 - mask
        couplings.append(Coupling(mask, classes, args))
    return couplings


class Flow(nn.Module):
    """x (B, C, H, W) in (0, 1) <-> z (B, latent), which is about N(0, I) after training.

    shape: (C, H, W) of the images. Half of the numbers are factored out after the couplings at
    H/2 x W/2; the others go on to those at H/4 x W/4 (section 3.6).
    """

    def __init__(self, shape, classes, args):
        super().__init__()
        self.classes = classes
        self.latent = math.prod(shape)
        channels, height, width = shape
        self.half_shape = (2 * channels, height // 2, width // 2)
        self.fine = nn.ModuleList([Logit(), Standardize(), Squeeze()])  # (B, 4C, H/2, W/2)
        self.fine += make_couplings(4 * channels, classes, args)
        self.coarse = nn.ModuleList([Squeeze()])                        # (B, 8C, H/4, W/4)
        self.coarse += make_couplings(8 * channels, classes, args)
        self.to(memory_format=torch.channels_last)                      # fast for convolutions

    @torch.no_grad()
    def fit(self, x, y):
        """Set the numbers of Standardize, given training images, before the first step."""
        logit, standardize = self.fine[:2]
        h, _ = logit(x, y)
        standardize.fit(h)

    def forward(self, x, y):
        """x (B, C, H, W), y (B,) -> z (B, latent), log |det dz/dx| (B,)."""
        log_det = 0
        for layer in self.fine:
            x, layer_log_det = layer(x, y)
            log_det = log_det + layer_log_det
        done, x = x.chunk(2, dim=1)                                     # (B, 2C, H/2, W/2) each
        for layer in self.coarse:
            x, layer_log_det = layer(x, y)
            log_det = log_det + layer_log_det
        return torch.cat([done.flatten(1), x.flatten(1)], dim=1), log_det

    def inverse(self, z, y):
        """z (B, latent), y (B,) -> the x (B, C, H, W) that forward maps to z."""
        done, x = z.chunk(2, dim=1)
        done = done.unflatten(1, self.half_shape)
        channels, height, width = self.half_shape
        x = x.unflatten(1, (4 * channels, height // 2, width // 2))
        for layer in reversed(self.coarse):
            x = layer.inverse(x, y)
        x = torch.cat([done, x], dim=1)
        for layer in reversed(self.fine):
            x = layer.inverse(x, y)
        return x

    def log_prob(self, x, y):
        """log p(x|y) of continuous images, in nats, (B,): arXiv 1605.08803, equation 3."""
        z, log_det = self(x, y)
        log_p_z = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)    # of N(0, I)
        return log_p_z + log_det

    def picture(self, z, y):
        """z (B, latent), y (B,) -> images (B, C, H, W) in [0, 1]."""
        return self.inverse(z, y).clamp(0, 1)       # the inverse of Logit may end just outside


def build(shape, classes, args):
    """A model as main trains it, and as generate.py and evaluate.py rebuild it."""
    return Flow(shape, classes if args.conditional else 0, args)


# ---------------------------------------------------------------------------------------- loss

def dequantize(x, u):
    """Images with 256 levels in [0, 1] and noise u in [0, 1) -> continuous images in (0, 1).

    A density on the levels themselves could be infinite (Uria et al. 2013, arXiv 1306.0186).
    """
    return (255 * x + u) / 256


def loss_terms(model, x, y, u):
    """An upper bound, on average over u, of -log P(x) of images with 256 levels, in nats per image,
    (B,).

    u (B, C, H, W): noise in [0, 1). A level is an interval of 1/256, so P(x|y) is the mean over u
    of p(dequantize(x, u) | y) / 256^D, with D numbers in an image. The logarithm of a mean is at
    least the mean of the logarithms, log p(dequantize(x, u) | y) - D log 256 (Theis et al. 2016,
    arXiv 1511.01844, section 3.1).
    """
    log_p = model.log_prob(dequantize(x, u), y)
    return x[0].numel() * math.log(256) - log_p


def bits_per_dimension(loss, shape):
    """A loss in nats per image -> bits per pixel and channel, as papers have it."""
    return loss / (math.prod(shape) * math.log(2))


# --------------------------------------------------------------------------------------- train

def train_epoch(model, optimizer, scheduler, data, epoch, args):
    """Every training image once, in random order. Returns columns of the log."""
    loss_fn = compiled(loss_terms) if args.compile else loss_terms
    means = Means()
    model.train()
    for x, y in progress(batches(data.x_train, data.y_train, args.batch_size, shuffle=True)):
        u = torch.rand_like(x)
        mine = own_rows()   # all of them, unless torchrun has started several processes
        with torch.autocast(x.device.type, torch.bfloat16, enabled=args.amp):
            loss = loss_fn(model, x[mine], y[mine], u[mine])
        optimizer.zero_grad()
        loss.mean().backward()
        average_gradients(model, len(loss))
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT)
        optimizer.step()
        if args.lr_schedule != "plateau":
            scheduler.step()
        means.add({"train_loss": loss})
    return means.compute(f"epoch {epoch}")


@torch.no_grad()
def refresh_norms(model, data):
    """Bring the running means of batch normalisation up to date with the weights: while the
    learning rate is high they lag behind, which can cost a hundred nats in evaluation. The images
    and the noise are always the same, and the random numbers of the training stay as they are."""
    noise = torch.Generator().manual_seed(0)
    index = torch.randperm(len(data.x_train), generator=noise)[:2000].to(data.x_train.device)
    model.train()
    for part in index.chunk(40):            # of 50; a running mean remembers about ten of these
        x, y = data.x_train[part] / 255, data.y_train[part]
        u = torch.rand(x.shape, generator=noise).to(x.device)
        model(dequantize(x, u), y)          # in training mode it updates the running means


# ------------------------------------------------------------------------------------ evaluate

@torch.no_grad()
def evaluate(model, data, epoch, args):
    """Every test image once. Returns columns of the log."""
    noise = torch.Generator(data.x_test.device).manual_seed(0)   # training has its own
    means = Means()
    model.eval()
    for x, y in batches(data.x_test, data.y_test, 500, shuffle=False):
        u = torch.rand(x.shape, device=x.device, generator=noise)
        means.add({"test_loss": loss_terms(model, x, y, u)})
    row = means.compute(f"epoch {epoch}")
    row["test_bpd"] = bits_per_dimension(row["test_loss"], data.x_test.shape[1:])
    return row


# ------------------------------------------------------------------------------------- figures

@torch.no_grad()
def save_figures(model, data, run):
    """Samples at two temperatures (a class per row, if conditional), interpolations between test
    images, curves."""
    model.eval()
    z = fixed_z(64, model.latent, data.x_test.device)            # the same in every epoch
    y = torch.zeros(64, dtype=torch.long, device=z.device)
    names = ()
    if run.args.conditional:
        names = data.classes[:20]                                # what fits on a page: a row each
        z = z[:8].repeat(len(names), 1)
        y = torch.arange(len(names), device=z.device).repeat_interleave(8)
    # With a smaller standard deviation z is nearer to its mode: cleaner samples, less varied ones
    # (Kingma & Dhariwal 2018, arXiv 1807.03039, section 6).
    save_grid(run.figure("sample"), model.picture(z, y), 8, names, title="temperature 1")
    save_grid(run.figure("sample_t0.7"), model.picture(0.7 * z, y), 8, names,
              title="temperature 0.7")
    save_interpolation(model, data, run)
    panels = {
        "loss, nats per image": [("train", "train_loss", "C0--"), ("test", "test_loss", "C0-")],
        "bits per dimension": [("test", "test_bpd", "C0-")],
    }
    save_curves(run.folder / "curves.png", run.rows, "epoch", panels, "")


def save_interpolation(model, data, run):
    """From one test image to another, four times; both ends are the images themselves."""
    x, y = fixed_images(data, 8)
    rows = []
    for i in range(0, 8, 2):
        label = y[i:i + 1]                                       # the same along the whole way
        ends, _ = model(dequantize(x[i:i + 2], 0.5), label.expand(2))
        z = spherical(ends[0].cpu(), ends[1].cpu(), 10).to(x.device)
        rows.append(model.picture(z, label.expand(10)))
    save_grid(run.figure("interpolation"), torch.cat(rows), 10,
              title="on a sphere from the code of a test image, left, to that of another")


# ------------------------------------------------------------------------------- flags and main

def flags():
    parser = Parser(__file__, __doc__)
    group = parser.add_argument_group("model")
    group.add_argument("--conditional", action="store_true", help="tell every network the label")
    group.add_argument("--couplings", type=number(int, 1, below=1001), default=8, metavar="N",
                       help="affine couplings at each of two scales, an even number")
    group.add_argument("--hidden", type=number(int, 1), default=32, metavar="N",
                       help="channels of the convolutions")
    group.add_argument("--blocks", type=number(int, 0, below=1001), default=1, metavar="N",
                       help="residual blocks of a network")
    add_optimizer_flags(parser)
    add_data_flags(parser)
    add_run_flags(parser)
    parser.set_defaults(epochs=5, batch_size=32)
    return parser


def check_flags(args):
    """End the program unless every coupling has its partner."""
    if args.couplings % 2 == 1:
        fail(f"--couplings {args.couplings}: couplings come in pairs, so that every number is "
             f"changed; use {args.couplings + 1}")


def check_data(args, data):
    """End the program unless the couplings can work on these images, with the labels they need."""
    height, width = data.x_train.shape[2:]
    if (height, width) not in ((28, 28), (32, 32)):
        fail(f"flow.py takes images of 28x28 or 32x32, not {height}x{width}; use --image-size 32")
    if args.conditional and len(data.classes) < 2:
        fail(f"--conditional needs labels of two classes; --dataset {args.dataset} has "
             f"{len(data.classes)}; remove it")


@guarded
def main(argv=(), **overrides):
    """Train: main(["--couplings=4"]) or main(couplings=4). Returns the model and the log."""
    args = parse(flags(), argv, overrides)
    check_flags(args)
    data = load_run_data(args)
    check_data(args, data)
    check_size(build, data, args)

    torch.manual_seed(args.seed)
    model = build(data.x_train.shape[1:], len(data.classes), args).to(data.x_train.device)
    x, y = next(batches(data.x_train, data.y_train, 1000, shuffle=True))
    model.fit(dequantize(x, 0.5), y)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=True)
    scheduler = make_scheduler(optimizer, len(data.x_train), args)
    run = Run(args, data, model=model, optimizer=optimizer, scheduler=scheduler)
    if run.resumed and run.figures_due():    # a kill may have cost those of the last epoch
        save_figures(model, data, run)
    for epoch in run.epochs():
        row = {"lr": optimizer.param_groups[0]["lr"]}
        row |= train_epoch(model, optimizer, scheduler, data, epoch, args)
        refresh_norms(model, data)
        row |= evaluate(model, data, epoch, args)
        if args.lr_schedule == "plateau":
            scheduler.step(row["train_loss"])
        run.save(row, f"test bpd {row['test_bpd']:.3f}")
        if run.figures_due():
            save_figures(model, data, run)
    run.finish(f"test loss {run.rows[-1]['test_loss']:.1f} nats per image, "
               f"{run.rows[-1]['test_bpd']:.3f} bits per dimension")
    return model, run.rows


if __name__ == "__main__":
    main(sys.argv[1:])
