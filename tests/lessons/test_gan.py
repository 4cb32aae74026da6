"""Claim: gan.py has the three losses of the papers, each network learns in its own step only, and
the log says what happened in the terms of the loss.

    gan      D: -log D(x) - log(1 - D(G(z)))                  G: -log D(G(z)),  D = sigmoid(logit)
    lsgan    D: 1/2 (D(x) - 1)^2 + 1/2 D(G(z))^2              G: 1/2 (D(G(z)) - 1)^2
    wgan-gp  D: D(G(z)) - D(x) + 10 (|grad D| - 1)^2          G: -D(G(z))

Losses are held against numbers found by hand, the penalty against a critic whose gradient is known,
steps against gradient descent by hand, what a run does against calls that are counted.
"""
import json
import math
from types import SimpleNamespace

import pytest
import torch
from small import random_data
from torch import nn

import gan
import metrics
from common import Data, load_data

LOSSES = ("gan", "lsgan", "wgan-gp")
QUICK = {"dataset": "digits", "width": 4, "latent": 8, "batch_size": 8, "iterations": 12,
         "eval_every": 6, "quiet": True, "device": "cpu"}


def gan_args(*argv):
    """The flags of gan.py as main would have them, for small networks."""
    args = gan.flags().parse_args(["--width=4", "--latent=8", "--batch-size=6", *argv])
    gan.check_flags(args)
    gan.set_defaults(args)
    return args


def small_networks(classes=0):
    torch.manual_seed(0)
    generator = gan.Generator((1, 28, 28), classes, gan_args())
    discriminator = gan.Discriminator((1, 28, 28), classes, gan_args())
    return generator, discriminator


def small_batch():
    """Six real images and their labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 1, 32, 32, generator=generator), torch.arange(6)


def copies(network):
    return [p.detach().clone() for p in network.parameters()]


# -------------------------------------------------------------------------------------- the losses

def test_gan_by_hand():
    """D = 3/4 for the real image and 1/2 for the fake one: -log 3/4 - log(1 - 1/2)."""
    real, fake = torch.tensor([math.log(3.0)]), torch.tensor([0.0])      # logits: log(D / (1 - D))
    d_loss = gan.DISCRIMINATOR_LOSS["gan"](real, fake)
    assert d_loss.item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 2))
    assert gan.GENERATOR_LOSS["gan"](real).item() == pytest.approx(-math.log(3 / 4))


def test_lsgan_by_hand():
    real, fake = torch.tensor([2.0]), torch.tensor([-1.0])
    d_loss = gan.DISCRIMINATOR_LOSS["lsgan"](real, fake)
    assert d_loss.item() == 0.5 * (2 - 1) ** 2 + 0.5 * (-1) ** 2
    assert gan.GENERATOR_LOSS["lsgan"](fake).item() == 0.5 * (-1 - 1) ** 2


def test_wgan_by_hand():
    real, fake = torch.tensor([2.0]), torch.tensor([-1.0])
    assert gan.DISCRIMINATOR_LOSS["wgan-gp"](real, fake).item() == -1 - 2
    assert gan.GENERATOR_LOSS["wgan-gp"](fake).item() == 1


@pytest.mark.parametrize("loss", LOSSES)
def test_the_networks_want_opposite_things(loss):
    """The discriminator wants a lower logit for a fake image, and the generator a higher one."""
    fake = torch.tensor([0.2], requires_grad=True)
    d_loss = gan.DISCRIMINATOR_LOSS[loss](torch.tensor([0.3]), fake)
    g_loss = gan.GENERATOR_LOSS[loss](fake)
    assert torch.autograd.grad(d_loss, fake)[0] > 0
    assert torch.autograd.grad(g_loss, fake)[0] < 0


def test_the_generator_loss_does_not_saturate():
    """Sure of a fake, D = e^-20: log(1 - D) has hardly any gradient left, and -log D has -1."""
    logit = torch.tensor([-20.0], requires_grad=True)
    gan.GENERATOR_LOSS["gan"](logit).backward()
    assert logit.grad.item() == pytest.approx(-1)


def test_an_unknown_loss_is_an_error():
    """And not the loss that happens to stand last."""
    generator, discriminator = small_networks()
    optimizer = torch.optim.SGD(discriminator.parameters(), 0.0)
    x, y = small_batch()
    args = gan_args()
    args.loss = "ganz"
    with pytest.raises(KeyError):
        gan.discriminator_step(generator, discriminator, optimizer, x, y, args)
    with pytest.raises(KeyError):
        gan.generator_step(generator, discriminator, optimizer, y, args)


# ------------------------------------------------------------------------------------- the penalty

@pytest.mark.parametrize("amp, rtol", [(False, 1e-4), (True, 0.02)])
def test_penalty_of_a_linear_critic(amp, rtol):
    """D(x) = <w, x> has the gradient w everywhere: the penalty is (|w| - 1)^2 for every image, and
    its derivative, a second derivative of the critic, 2 (|w| - 1) w / |w|."""
    torch.manual_seed(0)
    critic = nn.Linear(3 * 32 * 32, 1)
    nn.init.normal_(critic.weight)
    w = critic.weight.detach().clone()
    real, fake = torch.randn(2, 5, 3, 32, 32)

    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        penalty = gan.gradient_penalty(lambda x, y: critic(x.flatten(1))[:, 0], real, fake, None)
    assert penalty.shape == (5,)
    assert penalty.dtype == torch.float32
    torch.testing.assert_close(penalty, ((w.norm() - 1) ** 2).expand(5), rtol=rtol, atol=0)

    penalty.mean().backward()
    expected = 2 * (w.norm() - 1) * w / w.norm()
    torch.testing.assert_close(critic.weight.grad, expected, rtol=rtol, atol=0.01)


def test_penalty_is_of_each_image_by_itself():
    """D(x) = |x|^2 / 2 has the gradient x, which for an image of ones has the norm 32."""
    ones = torch.ones(3, 1, 32, 32)
    images = ones * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    penalty = gan.gradient_penalty(lambda x, y: x.square().sum((1, 2, 3)) / 2, images, images, None)
    assert penalty.tolist() == pytest.approx([31**2, 63**2, 95**2])


def test_penalty_looks_between_the_images_with_one_alpha_each():
    """Between a black image and a white one lie even greys: uniform, and another for every pair."""
    torch.manual_seed(0)
    shown = []

    def critic(x, y):
        shown.append(x.detach())
        return x.sum((1, 2, 3))

    gan.gradient_penalty(critic, torch.zeros(200, 1, 32, 32), torch.ones(200, 1, 32, 32), None)
    low, high = shown[0].flatten(1).aminmax(dim=1)
    assert torch.equal(low, high)
    assert low.min() >= 0 and high.max() <= 1
    assert len(low.unique()) == 200
    assert low.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.03)


# ---------------------------------------------------------------------------- who learns, and what

@pytest.mark.parametrize("loss", LOSSES)
def test_only_the_discriminator_learns_in_its_step(loss):
    """It leaves no gradient in the generator: the detach that is so easily forgotten."""
    generator, discriminator = small_networks()
    weight = discriminator.body[0].body[1].weight
    g_before, d_before = copies(generator), weight.detach().clone()
    x, y = small_batch()
    optimizer = torch.optim.SGD(discriminator.parameters(), 0.1)
    gan.discriminator_step(generator, discriminator, optimizer, x, y, gan_args(f"--loss={loss}"))
    assert all(p.grad is None for p in generator.parameters())
    assert all(map(torch.equal, generator.parameters(), g_before))
    assert not torch.equal(weight, d_before)


@pytest.mark.parametrize("loss", LOSSES)
def test_only_the_generator_learns_in_its_step(loss):
    generator, discriminator = small_networks()
    weight = generator.first.weight
    d_before, g_before = copies(discriminator), weight.detach().clone()
    _, y = small_batch()
    optimizer = torch.optim.SGD(generator.parameters(), 0.1)
    gan.generator_step(generator, discriminator, optimizer, y, gan_args(f"--loss={loss}"))
    assert all(p.grad is None for p in discriminator.parameters())
    assert all(map(torch.equal, discriminator.parameters(), d_before))
    assert all(p.requires_grad for p in discriminator.parameters())   # for its next step
    assert not torch.equal(weight, g_before)


def step_by_hand(before, objective, network):
    """The weights after a step of gradient descent with rate 1: p - d objective / d p."""
    gradients = torch.autograd.grad(objective, list(network.parameters()), allow_unused=True)
    after = []
    for p, gradient in zip(before, gradients, strict=True):
        after.append(p if gradient is None else p - gradient)   # a bias has no penalty
    return after


@pytest.mark.parametrize("loss", LOSSES)
def test_the_discriminator_follows_its_loss(loss):
    """And the critic of WGAN-GP its loss and ten times the penalty; the log has the loss alone."""
    x, y = small_batch()
    generator, discriminator = small_networks()
    torch.manual_seed(1)
    with torch.no_grad():
        fake = generator(torch.randn(6, 8), y)
    d_loss = gan.DISCRIMINATOR_LOSS[loss](discriminator(x, y), discriminator(fake, y)).mean()
    objective = d_loss
    if loss == "wgan-gp":
        objective = d_loss + 10 * gan.gradient_penalty(discriminator, x, fake, y).mean()
    expected = step_by_hand(copies(discriminator), objective, discriminator)

    generator, discriminator = small_networks()
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(discriminator.parameters(), 1.0)
    terms = gan.discriminator_step(generator, discriminator, optimizer, x, y,
                                   gan_args(f"--loss={loss}"))
    for p, by_hand in zip(discriminator.parameters(), expected, strict=True):
        torch.testing.assert_close(p, by_hand, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(terms["d_loss"].mean(), d_loss, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_generator_follows_its_loss(loss):
    _, y = small_batch()
    generator, discriminator = small_networks()
    torch.manual_seed(1)
    g_loss = gan.GENERATOR_LOSS[loss](discriminator(generator(torch.randn(6, 8), y), y)).mean()
    expected = step_by_hand(copies(generator), g_loss, generator)

    generator, discriminator = small_networks()
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(generator.parameters(), 1.0)
    terms = gan.generator_step(generator, discriminator, optimizer, y, gan_args(f"--loss={loss}"))
    for p, by_hand in zip(generator.parameters(), expected, strict=True):
        torch.testing.assert_close(p, by_hand, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(terms["g_loss"].mean(), g_loss)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_do_not_add_up_over_the_steps(loss):
    """Two steps with the rate 0 leave the gradient of the second alone."""
    args, found = gan_args(f"--loss={loss}"), []
    for steps in (1, 2):
        generator, discriminator = small_networks()
        d_optimizer = torch.optim.SGD(discriminator.parameters(), 0.0)
        g_optimizer = torch.optim.SGD(generator.parameters(), 0.0)
        x, y = small_batch()
        for _ in range(steps):
            torch.manual_seed(1)   # the same z and alpha
            gan.discriminator_step(generator, discriminator, d_optimizer, x, y, args)
            gan.generator_step(generator, discriminator, g_optimizer, y, args)
        found.append((discriminator.body[0].body[1].weight.grad, generator.first.weight.grad))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("loss", LOSSES)
def test_amp_takes_about_the_same_step(loss):
    found = []
    for flags in ((), ("--amp",)):
        args = gan_args(f"--loss={loss}", *flags)
        generator, discriminator = small_networks()
        d_optimizer = torch.optim.SGD(discriminator.parameters(), 0.0)
        g_optimizer = torch.optim.SGD(generator.parameters(), 0.0)
        x, y = small_batch()
        terms = gan.discriminator_step(generator, discriminator, d_optimizer, x, y, args)
        terms |= gan.generator_step(generator, discriminator, g_optimizer, y, args)
        found.append(terms)
    for name in ("d_loss", "g_loss", "d_real", "d_fake"):
        torch.testing.assert_close(found[1][name], found[0][name], rtol=0.05, atol=0.02)


# -------------------------------------------------------------------------- what the log says of it

class Fixed(nn.Module):
    """A discriminator of given logits, for real images, then for fake ones, then for a penalty."""

    def __init__(self, real, fake):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))   # an optimiser needs one
        self.logits = [torch.tensor(real), torch.tensor(fake), torch.zeros(len(real))]
        self.labels = []

    def forward(self, x, y):
        self.labels.append(y)
        return self.logits[len(self.labels) - 1] + self.weight + 0 * x.sum()


def terms_of(loss, real, fake):
    """The means of the terms of a step with these logits."""
    critic = Fixed(real, fake)
    generator, _ = small_networks()
    optimizer = torch.optim.SGD(critic.parameters(), 0.0)
    x, y = torch.zeros(len(real), 1, 32, 32), torch.arange(len(real))
    terms = gan.discriminator_step(generator, critic, optimizer, x, y, gan_args(f"--loss={loss}"))
    assert all(values.shape == (len(real),) for values in terms.values())
    assert all(torch.equal(labels, y) for labels in critic.labels)   # of real and fake images
    return {name: values.mean().item() for name, values in terms.items()}


def test_gan_is_logged_in_probabilities():
    """A logit above 0 is a probability above 1/2."""
    terms = terms_of("gan", real=[0.1, 2.0, -0.1, 3.0], fake=[-1.0, 0.2, -0.3, 0.4])
    assert terms["d_accuracy"] == (3 + 2) / 8
    expected = sum(1 / (1 + math.exp(-logit)) for logit in (0.1, 2.0, -0.1, 3.0)) / 4
    assert terms["d_real"] == pytest.approx(expected)
    expected = sum(1 / (1 + math.exp(-logit)) for logit in (-1.0, 0.2, -0.3, 0.4)) / 4
    assert terms["d_fake"] == pytest.approx(expected)


def test_lsgan_is_logged_in_outputs_and_its_threshold_lies_between_its_targets():
    """Nearer to 1 than to 0 is real."""
    terms = terms_of("lsgan", real=[0.6, 2.0, 0.4, 3.0], fake=[-1.0, 0.2, 0.6, 0.4])
    assert terms["d_accuracy"] == (3 + 3) / 8
    assert terms["d_real"] == pytest.approx((0.6 + 2.0 + 0.4 + 3.0) / 4)
    assert terms["d_fake"] == pytest.approx((-1.0 + 0.2 + 0.6 + 0.4) / 4)


def test_a_critic_is_logged_in_outputs_and_has_no_accuracy():
    terms = terms_of("wgan-gp", real=[0.5, 2.0], fake=[-1.0, 0.5])
    assert "d_accuracy" not in terms
    assert terms["d_real"] == 1.25
    assert terms["d_fake"] == -0.25
    assert terms["d_loss"] == -0.25 - 1.25


@pytest.mark.parametrize("loss, threshold", [("gan", 0.0), ("lsgan", 0.5)])
def test_a_discriminator_that_cannot_tell_is_right_half_of_the_time(loss, threshold):
    assert terms_of(loss, [threshold] * 4, [threshold] * 4)["d_accuracy"] == 0.5


# ------------------------------------------------------------------------------ the running average

def test_the_average_follows_the_weights():
    """mean <- decay * mean + (1 - decay) * weight, the statistics of the normalisation as well."""
    generator, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.constant_(generator.weight, 1.0)
    nn.init.constant_(average.weight, 0.0)
    generator.running_mean.fill_(4.0)
    generator.num_batches_tracked.fill_(7)
    gan.update_average(average, generator, 0.75)
    assert average.weight.tolist() == [0.25, 0.25]
    assert average.running_mean.tolist() == [1.0, 1.0]
    assert average.num_batches_tracked == 7
    assert generator.weight.tolist() == [1.0, 1.0]


# ------------------------------------------------------------------------------------- the images

def test_real_images_are_padded_with_black_to_32_pixels():
    x = torch.arange(28 * 28).remainder(256).byte().view(1, 1, 28, 28)
    data = Data("one", x, torch.tensor([3]), x, torch.tensor([3]), [])
    images, y = gan.real_batch(data, gan_args("--batch-size=64"))
    assert images.shape == (64, 1, 32, 32)
    assert y.tolist() == [3] * 64
    torch.testing.assert_close(images[0, 0, 2:-2, 2:-2], x[0, 0] / 127.5 - 1)
    images[:, :, 2:-2, 2:-2] = -1
    assert (images == -1).all()                              # the border, and nothing was moved


def test_half_of_the_colour_images_are_mirrored():
    torch.manual_seed(0)
    x = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    data = Data("one", x, torch.tensor([0]), x, torch.tensor([0]), [])
    original = (x / 127.5 - 1)[0]
    images, _ = gan.real_batch(data, gan_args("--batch-size=200"))
    mirrored = 0
    for image in images:
        if torch.equal(image, original.flip(2)):             # left and right
            mirrored += 1
        else:
            assert torch.equal(image, original)
    assert 70 < mirrored < 130


@pytest.mark.parametrize("channels, flags", [(1, []), (3, ["--no-flip"])])
def test_grey_images_are_never_mirrored_nor_colour_with_no_flip(channels, flags):
    """A mirrored digit is none."""
    x = torch.randint(0, 256, (1, channels, 32, 32), dtype=torch.uint8)
    data = Data("one", x, torch.tensor([0]), x, torch.tensor([0]), [])
    images, _ = gan.real_batch(data, gan_args("--batch-size=64", *flags))
    assert torch.equal(images, (x / 127.5 - 1).expand(64, -1, -1, -1))


def test_real_images_keep_their_labels():
    x = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 32, 32)
    data = Data("ten", x, torch.arange(10), x, torch.arange(10), [])
    images, y = gan.real_batch(data, gan_args("--batch-size=200"))
    torch.testing.assert_close(images[:, 0, 0, 0], y / 127.5 - 1)
    assert len(y.unique()) == 10


def test_drawing_is_from_the_same_z_with_the_labels_of_the_test_set():
    data = random_data(n_test=100, shape=(1, 28, 28), classes=4)
    data.y_test[:] = torch.tensor([0] * 75 + [3] * 25)
    generator, args, labels = small_networks(classes=4)[0], gan_args(), []
    picture = generator.picture

    def picture_and_note(z, y):
        labels.append(y)
        return picture(z, y)

    generator.picture = picture_and_note
    first = torch.cat(list(gan.draw(generator, data, args, 700)))
    torch.manual_seed(1)
    second = torch.cat(list(gan.draw(generator, data, args, 700)))
    assert first.shape == (700, 1, 28, 28)
    assert torch.equal(first, second)
    assert not torch.equal(first[:200], first[500:])         # of another batch: another z
    assert not generator.training
    counts = torch.cat(labels[:2]).bincount() / 700
    assert counts.tolist() == pytest.approx([0.75, 0, 0, 0.25], abs=0.05)


# -------------------------------------------------------------------------------------- the label

@pytest.mark.parametrize("classes", [0, 10])
def test_the_label_counts_if_there_are_classes(classes):
    generator, discriminator = small_networks(classes)
    for layer in generator.modules():
        if isinstance(layer, gan.ConditionalNorm) and classes > 0:
            nn.init.normal_(layer.label.weight)              # all classes are alike at first
    z, zeros, ones = torch.randn(4, 8), torch.zeros(4).long(), torch.ones(4).long()
    generator.eval()
    images = generator(z, zeros)
    told = classes > 0
    assert torch.equal(images, generator(z, ones)) != told
    assert torch.equal(discriminator(images, zeros), discriminator(images, ones)) != told


def test_the_discriminator_takes_the_label_as_an_inner_product():
    """logit = <w, h> + b + <embedding of y, h> (Miyato & Koyama 2018, equation 3)."""
    _, discriminator = small_networks(classes=10)
    x, y = small_batch()
    h = discriminator.body(x).mean((2, 3))
    w, b, embedding = discriminator.last.weight[0], discriminator.last.bias, discriminator.label
    torch.testing.assert_close(discriminator(x, y), ((w + embedding.weight[y]) * h).sum(1) + b)


def test_conditional_normalisation_has_a_gain_and_a_bias_for_each_class():
    """(1 + gain) * (x - mean) / deviation + bias, with gain = bias = 0 at first."""
    norm, x, y = gan.ConditionalNorm(2, 3), 5 + 3 * torch.randn(3, 2, 4, 4), torch.arange(3)
    mean, deviation = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), correction=0, keepdim=True)
    normal = (x - mean) / deviation
    torch.testing.assert_close(norm(x, y), normal, rtol=1e-4, atol=1e-5)

    norm.label.weight.data = torch.arange(12.0).view(3, 4)   # of class 1: gains 4, 5, biases 6, 7
    h = norm(x, y)
    torch.testing.assert_close(h[1, 0], (1 + 4) * normal[1, 0] + 6, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(h[1, 1], (1 + 5) * normal[1, 1] + 7, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------- whole runs

@pytest.fixture
def unmeasured(monkeypatch):
    """Runs without a Frechet distance and without figures."""
    monkeypatch.setattr(gan, "make_meters", lambda args, data: (None, None))
    monkeypatch.setattr(gan, "save_figures", lambda generator, data, run: None)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("conditional", [False, True])
def test_the_log_of_each_loss(loss, conditional, unmeasured, tmp_path):
    _, rows = gan.main(loss=loss, conditional=conditional, out=tmp_path / "run", **QUICK)
    assert list(rows[0]) == ["iteration", "seconds", "lr", "d_loss", "g_loss", "d_real", "d_fake",
                             "d_accuracy", "fid"]
    assert [row["iteration"] for row in rows] == [6, 12]
    assert [row["lr"] for row in rows] == pytest.approx([1e-3, 5e-4])    # down in a straight line
    for row in rows:
        assert row["fid"] is None
        assert (row["d_accuracy"] is None) == (loss == "wgan-gp")
        assert all(math.isfinite(row[name]) for name in ("d_loss", "g_loss", "d_real", "d_fake"))


@pytest.mark.parametrize("flags, g_steps", [
    ({"loss": "gan"}, range(1, 13)),
    ({"loss": "wgan-gp"}, [5, 10]),                          # five of the critic for one
    ({"loss": "lsgan", "critic_steps": 3}, [3, 6, 9, 12]),
])
def test_the_generator_learns_once_in_critic_steps(flags, g_steps, unmeasured, monkeypatch,
                                                   tmp_path):
    calls = []
    d_step, g_step = gan.discriminator_step, gan.generator_step

    def note_d_step(*arguments):
        calls.append("d")
        return d_step(*arguments)

    def note_g_step(*arguments):
        calls.append("g")
        return g_step(*arguments)

    monkeypatch.setattr(gan, "discriminator_step", note_d_step)
    monkeypatch.setattr(gan, "generator_step", note_g_step)
    gan.main(out=tmp_path / "run", **QUICK, **flags)
    expected = []
    for iteration in range(1, 13):
        expected.append("d")
        if iteration in g_steps:
            expected.append("g")
    assert calls == expected

    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    for name, steps in (("d_scheduler", 12), ("g_scheduler", len(g_steps))):
        assert checkpoint[name]["last_epoch"] == steps
        assert checkpoint[name]["_last_lr"] == [pytest.approx(0, abs=1e-9)]   # both end at 0


@pytest.mark.parametrize("ema, expected", [
    (0.999, [1 / 11, 2 / 12, 3 / 13, 4 / 14]), (0.2, [1 / 11, 2 / 12, 0.2, 0.2]), (0, [0] * 4)])
def test_the_average_soon_forgets_the_first_weights(ema, expected, unmeasured, monkeypatch,
                                                    tmp_path):
    """Its decay grows from turn to turn of the generator, up to --ema."""
    decays, update = [], gan.update_average

    def note_decay(average, generator, decay):
        decays.append(decay)
        update(average, generator, decay)

    monkeypatch.setattr(gan, "update_average", note_decay)
    average, _ = gan.main(out=tmp_path / "run", ema=ema, critic_steps=3, **QUICK)
    assert decays == pytest.approx(expected)

    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    for name, weight in average.state_dict().items():        # what main returns
        assert torch.equal(weight, checkpoint["ema"][name])
    first = checkpoint["generator"]["first.weight"]
    assert torch.equal(average.first.weight, first) == (ema == 0)


def test_the_average_is_what_is_drawn_and_measured_and_the_best_is_kept(monkeypatch, tmp_path):
    """With distances that are made up."""
    distances, seen = [5.0, 1.0, 3.0, 4.0], []
    meter = SimpleNamespace(name="fid_classifier_10", n=10, floor=0.5)

    def measure(generator, *rest):
        seen.append(generator)
        return {"fid_classifier_10": distances[len(seen) - 1]}

    drawn = []
    monkeypatch.setattr(gan, "make_meters", lambda args, data: (meter, None))
    monkeypatch.setattr(gan, "measure", measure)
    monkeypatch.setattr(gan, "save_figures", lambda generator, data, run: drawn.append(generator))
    monkeypatch.setattr(gan, "save_fid_curve", lambda run, meter: None)
    average, rows = gan.main(out=tmp_path / "run", **QUICK | {"eval_every": 3})
    assert [row["fid"] for row in rows] == distances
    assert len(seen) == len(drawn) == 4
    assert all(generator is average for generator in seen + drawn)
    assert torch.load(tmp_path / "run" / "best.pt", weights_only=True)["epoch"] == 6


def test_a_real_run_is_measured_and_drawn(monkeypatch, tmp_path):
    """With features of a classifier that had one epoch instead of twelve."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metrics, "EPOCHS", 1)
    _, rows = gan.main(out=tmp_path / "run", **QUICK)
    lines = (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()
    assert len(lines) == len(rows) == 2
    for line, row in zip(lines, rows, strict=True):
        found = json.loads(line)
        assert found["iteration"] == row["iteration"]
        assert found["fid_classifier_297"] == pytest.approx(row["fid"], rel=1e-4)
        assert 0 < found["fid_classifier_297_floor"] < found["fid_classifier_297"]
        assert len(found["class_counts_1000"]) == 10
        assert sum(found["class_counts_1000"]) == 1000
    names = {file.name for file in (tmp_path / "run").glob("*.png")}
    assert names == {"sample_006.png", "sample_012.png", "interpolation_006.png",
                     "interpolation_012.png", "curves.png", "fid.png"}


def test_figures_have_a_class_a_row_a_style_a_column_and_a_plane(monkeypatch, tmp_path):
    generator, _ = small_networks(classes=10)
    asked, picture = [], generator.picture

    def picture_and_note(z, y):
        asked.append((z, y))
        return picture(z, y)

    generator.picture = picture_and_note
    monkeypatch.setattr(gan, "save_curves", lambda *arguments: None)
    run = SimpleNamespace(args=gan_args("--conditional"), rows=[], folder=tmp_path,
                          figure=lambda name: tmp_path / f"{name}.png")
    gan.save_figures(generator, load_data("digits"), run)
    (z, y), (plane, _) = asked
    z, y = z.view(10, 8, 8), y.view(10, 8)
    assert y.tolist() == [[digit] * 8 for digit in range(10)]
    assert torch.equal(z, z[:1].expand(10, 8, 8)) and not torch.equal(z[0, 0], z[0, 1])
    plane = plane.view(10, 10, 8)
    steps = torch.linspace(-1, 1, 10)
    assert torch.equal(plane[:, :, 0], steps[:, None].expand(10, 10))    # z_1 by row
    assert torch.equal(plane[:, :, 1], steps.expand(10, 10))             # z_2 along a row
    assert torch.equal(plane[:, :, 2:], plane[:1, :1, 2:].expand(10, 10, 6))


def test_a_narrow_gan_learns_where_the_ink_is(unmeasured, tmp_path):
    """Digits are bright in the middle and dark at the border. So are samples after 120 steps: their
    mean correlates with that of the test set by about 0.9, without training by 0.2."""
    average, _ = gan.main(out=tmp_path / "run", dataset="digits", width=8, iterations=120,
                          batch_size=16, lr=4e-3, eval_every=0, loss="lsgan", quiet=True,
                          device="cpu", seed=2)
    data = load_data("digits")
    samples = torch.cat(list(gan.draw(average, data, gan_args("--latent=128"), 100))).mean((0, 1))
    real = (data.x_test / 255).mean((0, 1))
    correlation = torch.corrcoef(torch.stack([samples.flatten(), real.flatten()]))[0, 1]
    assert 0.5 < correlation < 0.999
