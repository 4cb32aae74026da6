"""Claim: gan.py has the three losses of the papers, each network learns in its own step only, and
the log says what happened in the terms of the loss.

    gan      D: -log D(x) - log(1 - D(G(z)))                  G: -log D(G(z)),  D = sigmoid(logit)
    lsgan    D: 1/2 (D(x) - 1)^2 + 1/2 D(G(z))^2              G: 1/2 (D(G(z)) - 1)^2
    wgan-gp  D: D(G(z)) - D(x) + 10 (|grad D| - 1)^2          G: -D(G(z))

Losses are held against numbers found by hand, the penalty against a critic whose gradient is known,
steps against gradient descent by hand, and what a run does is counted.
"""
import functools
import json
import math
from types import SimpleNamespace

import pytest
import torch
from small import random_data
from torch import nn

import gan
import metrics
from common import Data
from readers import load_data

LOSSES = ("gan", "lsgan", "wgan-gp")
QUICK = {"dataset": "digits", "width": 4, "latent": 8, "batch_size": 8, "iterations": 12,
         "eval_every": 6, "quiet": True, "device": "cpu"}


def gan_args(*argv):
    """The flags of gan.py as main would have them, for small networks."""
    args = gan.flags().parse_args(["--width=4", "--latent=8", *argv])
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
    return torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(6)


# ------------------------------------------------------------------------------------- the losses

def test_losses_by_hand():
    real, fake = torch.tensor([math.log(3)]), torch.tensor([math.log(4)])   # D is 3/4 and 4/5
    d_loss, g_loss = gan.DISCRIMINATOR_LOSS["gan"], gan.GENERATOR_LOSS["gan"]
    assert d_loss(real, fake).item() == pytest.approx(-math.log(3 / 4) - math.log(1 - 4 / 5))
    assert g_loss(fake).item() == pytest.approx(-math.log(4 / 5))

    real, fake = torch.tensor([2.0]), torch.tensor([-1.0])
    d_loss, g_loss = gan.DISCRIMINATOR_LOSS["lsgan"], gan.GENERATOR_LOSS["lsgan"]
    assert d_loss(real, fake).item() == 0.5 * (2 - 1) ** 2 + 0.5 * (-1) ** 2
    assert g_loss(fake).item() == 0.5 * (-1 - 1) ** 2

    d_loss, g_loss = gan.DISCRIMINATOR_LOSS["wgan-gp"], gan.GENERATOR_LOSS["wgan-gp"]
    assert d_loss(real, fake).item() == -1 - 2
    assert g_loss(fake).item() == 1


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


def test_penalty_of_a_linear_critic():
    """D(x) = <w, x> has the gradient w everywhere: the penalty is (|w| - 1)^2 for every image, and
    its derivative, a second derivative of the critic, 2 (|w| - 1) w / |w|."""
    torch.manual_seed(0)
    w = torch.randn(3 * 32 * 32, requires_grad=True)
    real, fake = torch.randn(2, 5, 3, 32, 32)
    alpha = torch.rand(5, 1, 1, 1)
    penalty = gan.gradient_penalty(lambda x, y: x.flatten(1) @ w, real, fake, None, alpha)
    torch.testing.assert_close(penalty, ((w.norm() - 1) ** 2).expand(5))
    gradient = torch.autograd.grad(penalty.mean(), w)[0]
    torch.testing.assert_close(gradient, 2 * (w.norm() - 1) * w / w.norm())


def test_penalty_looks_between_the_images_with_one_alpha_each(monkeypatch):
    """Between a black image and a white one lie even greys: uniform, and another for every pair."""
    shown = []

    def critic(x, y):
        shown.append(x.detach())
        return x.sum((1, 2, 3))

    def penalty(discriminator, real, fake, y, alpha):
        """The one of gan.py, between other images."""
        black, white = torch.zeros(len(real), 1, 32, 32), torch.ones(len(real), 1, 32, 32)
        return look_between(critic, black, white, y, alpha)

    look_between = gan.gradient_penalty
    monkeypatch.setattr(gan, "gradient_penalty", penalty)
    generator, discriminator = small_networks()
    x, y = torch.zeros(200, 1, 32, 32), torch.zeros(200, dtype=torch.long)
    torch.manual_seed(0)
    gan.discriminator_step(generator, discriminator, torch.optim.SGD(discriminator.parameters()),
                           x, y, gan_args("--loss=wgan-gp"))
    low, high = shown[0].flatten(1).aminmax(dim=1)
    assert torch.equal(low, high)
    assert low.min() >= 0 and high.max() <= 1
    assert len(low.unique()) == 200
    assert low.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.03)


# ----------------------------------------------------------------------------- who learns in a step

def step_by_hand(objective, network):
    """The weights after gradient descent with rate 1: p - d objective / d p."""
    weights = list(network.parameters())
    gradients = torch.autograd.grad(objective, weights, materialize_grads=True, allow_unused=True)
    return [p.detach() - gradient for p, gradient in zip(weights, gradients, strict=True)]


def stale_gradients(network):
    """What a step must not add to."""
    for p in network.parameters():
        p.grad = torch.ones_like(p)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_discriminator_follows_its_loss_and_the_generator_does_not_learn(loss):
    """The critic of WGAN-GP follows ten times the penalty, too, which is not in the log. No
    gradient comes to the generator: the detach that is so easily forgotten."""
    (x, y), args = small_batch(), gan_args(f"--loss={loss}")
    generator, discriminator = small_networks()
    torch.manual_seed(1)
    fake = generator(torch.randn(6, 8), y).detach()
    d_loss = gan.DISCRIMINATOR_LOSS[loss](discriminator(x, y), discriminator(fake, y))
    objective = d_loss.mean()
    if loss == "wgan-gp":
        alpha = torch.rand(6, 1, 1, 1)
        objective = objective + 10 * gan.gradient_penalty(discriminator, x, fake, y, alpha).mean()
    expected = step_by_hand(objective, discriminator)

    generator, discriminator = small_networks()
    stale_gradients(discriminator)
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(discriminator.parameters(), 1.0)
    terms = gan.discriminator_step(generator, discriminator, optimizer, x, y, args)
    for p, by_hand in zip(discriminator.parameters(), expected, strict=True):
        torch.testing.assert_close(p, by_hand, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(terms["d_loss"], d_loss)
    assert all(p.grad is None for p in generator.parameters())


@pytest.mark.parametrize("loss", LOSSES)
def test_the_generator_follows_its_loss_and_the_discriminator_does_not_learn(loss):
    _, y = small_batch()
    generator, discriminator = small_networks()
    torch.manual_seed(1)
    g_loss = gan.GENERATOR_LOSS[loss](discriminator(generator(torch.randn(6, 8), y), y))
    expected = step_by_hand(g_loss.mean(), generator)

    generator, discriminator = small_networks()
    stale_gradients(generator)
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(generator.parameters(), 1.0)
    terms = gan.generator_step(generator, discriminator, optimizer, y, gan_args(f"--loss={loss}"))
    for p, by_hand in zip(generator.parameters(), expected, strict=True):
        torch.testing.assert_close(p, by_hand, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(terms["g_loss"], g_loss)
    assert all(p.grad is None for p in discriminator.parameters())
    assert all(p.requires_grad for p in discriminator.parameters())      # for its next step


@pytest.mark.parametrize("loss", LOSSES)
def test_amp_takes_about_the_same_step(loss):
    """The gradients of both networks, too: that of a critic is of its penalty as well."""
    found, gradients = [], []
    for flags in ([], ["--amp"]):
        args, (x, y) = gan_args(f"--loss={loss}", *flags), small_batch()
        generator, discriminator = small_networks()
        d_optimizer = torch.optim.SGD(discriminator.parameters(), 0.0)
        g_optimizer = torch.optim.SGD(generator.parameters(), 0.0)
        terms = gan.discriminator_step(generator, discriminator, d_optimizer, x, y, args)
        terms |= gan.generator_step(generator, discriminator, g_optimizer, y, args)
        found.append(torch.stack([terms[name] for name in ("d_loss", "g_loss", "d_real")]))
        of_all = [p.grad.flatten() for network in (generator, discriminator)
                  for p in network.parameters() if p.grad is not None]
        gradients.append(torch.cat(of_all))
    torch.testing.assert_close(found[0], found[1], rtol=0.05, atol=0.02)
    assert not torch.equal(found[0], found[1])
    assert (gradients[0] - gradients[1]).norm() < 0.1 * gradients[0].norm()


def test_the_average_follows_the_weights():
    """mean <- decay * mean + (1 - decay) * weight, the statistics of the normalisation as well."""
    generator, average = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    nn.init.zeros_(average.weight)
    generator.running_mean.fill_(4.0)
    generator.num_batches_tracked.fill_(7)
    gan.update_average(average, generator, 0.75)
    assert average.weight.tolist() == [0.25, 0.25]
    assert average.running_mean.tolist() == [1.0, 1.0]
    assert average.num_batches_tracked == 7


# ------------------------------------------------------------------------- what the log says of it

def terms_of(loss, real, fake):
    """The means of the terms of a step in which the discriminator gives these logits."""
    logits, labels = [real, fake, [0.0] * len(real)], []   # the last is for a penalty
    weight = torch.zeros((), requires_grad=True)

    def discriminator(x, y):
        labels.append(y)
        return torch.tensor(logits[len(labels) - 1]) + weight + 0 * x.sum()

    optimizer, generator = torch.optim.SGD([weight], 0.0), small_networks()[0]
    x, y = torch.zeros(len(real), 1, 32, 32), torch.arange(len(real))
    args = gan_args(f"--loss={loss}")
    terms = gan.discriminator_step(generator, discriminator, optimizer, x, y, args)
    assert all(torch.equal(given, y) for given in labels)   # of real images and of fake ones
    return {name: values.mean().item() for name, values in terms.items()}


def test_gan_is_logged_in_probabilities():
    """A logit above 0 is a probability above 1/2, and passes for real."""
    terms = terms_of("gan", real=[0.1, 2.0, -0.1, 3.0], fake=[-1.0, 0.2, -0.3, 0.4])
    real, fake = torch.tensor([0.1, 2.0, -0.1, 3.0]), torch.tensor([-1.0, 0.2, -0.3, 0.4])
    assert terms["d_accuracy"] == (3 + 2) / 8
    assert terms["d_real"] == pytest.approx((1 / (1 + torch.exp(-real))).mean().item())
    assert terms["d_fake"] == pytest.approx((1 / (1 + torch.exp(-fake))).mean().item())


def test_lsgan_is_logged_in_outputs_and_its_threshold_lies_between_its_targets():
    """Nearer to 1 than to 0 is real."""
    terms = terms_of("lsgan", real=[0.6, 2.0, 0.4, 3.0], fake=[-1.0, 0.2, 0.6, 0.4])
    assert terms["d_accuracy"] == (3 + 3) / 8
    assert terms["d_real"] == pytest.approx((0.6 + 2.0 + 0.4 + 3.0) / 4)
    assert terms["d_fake"] == pytest.approx((-1.0 + 0.2 + 0.6 + 0.4) / 4)


def test_a_critic_is_logged_in_outputs_and_has_no_accuracy():
    terms = terms_of("wgan-gp", real=[0.5, 2.0], fake=[-1.0, 0.5])
    assert terms == {"d_loss": -0.25 - 1.25, "d_real": 1.25, "d_fake": -0.25}


@pytest.mark.parametrize("loss, threshold", [("gan", 0.0), ("lsgan", 0.5)])
def test_a_discriminator_that_cannot_tell_is_right_half_of_the_time(loss, threshold):
    assert terms_of(loss, [threshold] * 4, [threshold] * 4)["d_accuracy"] == 0.5


# ------------------------------------------------------------------------------------- the images

def one_image(channels, side):
    """A data set of one image, of label 3."""
    x = torch.arange(channels * side * side).remainder(251).byte().view(1, channels, side, side)
    return Data("one", x, torch.tensor([3]), x, torch.tensor([3]), [])


def test_real_images_are_padded_with_black_to_32_pixels():
    data = one_image(1, 28)
    images, y = gan.real_batch(data, gan_args("--batch-size=64"))
    assert images.shape == (64, 1, 32, 32)
    assert y.tolist() == [3] * 64
    expected = data.x_train.expand(64, -1, -1, -1) / 127.5 - 1           # a mirrored digit is none
    torch.testing.assert_close(images[:, :, 2:30, 2:30], expected)
    images[:, :, 2:30, 2:30] = -1
    assert (images == -1).all()


@pytest.mark.parametrize("flags, low, high", [([], 70, 130), (["--no-flip"], 0, 0)])
def test_half_of_the_colour_images_are_mirrored(flags, low, high):
    torch.manual_seed(0)
    data = one_image(3, 32)
    original = (data.x_train / 127.5 - 1)[0]
    images, _ = gan.real_batch(data, gan_args("--batch-size=200", *flags))
    mirrored = [torch.equal(image, original.flip(2)) for image in images]   # left and right
    as_it_was = [torch.equal(image, original) for image in images]
    assert low <= sum(mirrored) <= high
    assert sum(mirrored) + sum(as_it_was) == 200


def test_drawing_is_from_the_same_z_with_labels_as_frequent_as_in_the_test_set():
    data = random_data(n_test=100, shape=(1, 28, 28), classes=4)
    data.y_test[:] = torch.tensor([0] * 75 + [3] * 25)
    generator, args, labels = small_networks(classes=4)[0], gan_args(), []
    generator.register_forward_pre_hook(lambda module, z_and_y: labels.append(z_and_y[1]))
    first = torch.cat(list(gan.draw(generator, data, args, 700)))
    torch.manual_seed(1)
    second = torch.cat(list(gan.draw(generator, data, args, 700)))
    assert first.shape == (700, 1, 28, 28)
    assert torch.equal(first, second)
    assert not torch.equal(first[:200], first[500:])         # of another batch: another z
    assert not generator.training
    shares = torch.cat(labels).bincount() / 1400
    assert shares.tolist() == pytest.approx([0.75, 0, 0, 0.25], abs=0.05)


# -------------------------------------------------------------------------------------- the label

@pytest.mark.parametrize("classes", [0, 10])
def test_the_label_counts_if_there_are_classes(classes):
    generator, discriminator = small_networks(classes)
    for layer in generator.modules():
        if isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight)                    # all classes are alike at first
    z, zeros, ones = torch.randn(4, 8), torch.zeros(4).long(), torch.ones(4).long()
    generator.eval()
    x = generator(z, zeros)
    assert torch.equal(x, generator(z, ones)) == (classes == 0)
    assert torch.equal(discriminator(x, zeros), discriminator(x, ones)) == (classes == 0)


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


# ------------------------------------------------------------------------------------- whole runs

@pytest.fixture
def calls(monkeypatch):
    """Runs without a distance and figures; the (name, arguments) of the calls that were made."""
    found = []

    def call(name, function, *arguments):
        found.append((name, arguments))
        return function(*arguments)

    for name in ("discriminator_step", "generator_step", "update_average"):
        monkeypatch.setattr(gan, name, functools.partial(call, name, getattr(gan, name)))
    monkeypatch.setattr(gan, "save_figures",
                        functools.partial(call, "save_figures", lambda *arguments: None))
    monkeypatch.setattr(gan, "make_meters", lambda args, data: (None, None))
    return found


@pytest.mark.parametrize("loss, flags, g_steps", [
    ("gan", {"conditional": True}, range(1, 13)),
    ("lsgan", {"critic_steps": 3}, [3, 6, 9, 12]),
    ("wgan-gp", {}, [5, 10]),                                # by default five of the critic for one
])
def test_a_run_of_each_loss(loss, flags, g_steps, calls, tmp_path):
    """Columns of the log, a step of the generator every --critic-steps, rates that fall to 0."""
    _, log = gan.main(loss=loss, out=tmp_path / "run", **QUICK, **flags)
    assert list(log[0]) == ["iteration", "seconds", "lr", "d_loss", "g_loss", "d_real", "d_fake",
                            "d_accuracy", "fid"]
    assert [row["iteration"] for row in log] == [6, 12]
    assert [row["lr"] for row in log] == pytest.approx([1e-3, 5e-4])     # down in a straight line
    for row in log:
        empty = {name for name, value in row.items() if value is None}
        assert empty == ({"fid", "d_accuracy"} if loss == "wgan-gp" else {"fid"})

    steps = [name for name, _ in calls if name.endswith("_step")]
    expected = []
    for iteration in range(1, 13):
        expected.append("discriminator_step")
        if iteration in g_steps:
            expected.append("generator_step")
    assert steps == expected
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    for name in ("d_optimizer", "g_optimizer"):                # those of the WGAN-GP paper
        assert checkpoint[name]["param_groups"][0]["betas"] == (0.0, 0.9)
    for name, count in (("d_scheduler", 12), ("g_scheduler", len(g_steps))):
        assert checkpoint[name]["last_epoch"] == count
        assert checkpoint[name]["_last_lr"] == [pytest.approx(0, abs=1e-9)]


@pytest.mark.parametrize("ema, expected", [
    (0.999, [1 / 11, 2 / 12, 3 / 13, 4 / 14]), (0.2, [1 / 11, 2 / 12, 0.2, 0.2]), (0, [0] * 4)])
def test_the_average_soon_forgets_the_first_weights(ema, expected, calls, tmp_path):
    """Its decay grows from step to step of the generator, up to --ema. It is what main returns."""
    average, _ = gan.main(out=tmp_path / "run", ema=ema, critic_steps=3, **QUICK)
    decays = [arguments[2] for name, arguments in calls if name == "update_average"]
    assert decays == pytest.approx(expected)
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert torch.equal(average.first.weight, checkpoint["ema"]["first.weight"])
    is_generator = torch.equal(average.first.weight, checkpoint["generator"]["first.weight"])
    assert is_generator == (ema == 0)


def test_the_average_is_drawn_and_measured_and_the_best_is_kept(calls, monkeypatch, tmp_path):
    """With distances that are made up."""
    distances, measured = [5.0, 1.0, 3.0, 4.0], []
    meter = SimpleNamespace(name="fid_classifier_10", n=10, floor=0.5)

    def measure(generator, *rest):
        measured.append(generator)
        return {"fid_classifier_10": distances[len(measured) - 1]}

    monkeypatch.setattr(gan, "make_meters", lambda args, data: (meter, None))
    monkeypatch.setattr(gan, "measure", measure)
    average, log = gan.main(out=tmp_path / "run", **QUICK | {"eval_every": 3})
    drawn = [arguments[0] for name, arguments in calls if name == "save_figures"]
    assert [row["fid"] for row in log] == distances
    assert len(drawn) == 4
    assert all(generator is average for generator in drawn + measured)
    assert torch.load(tmp_path / "run" / "best.pt", weights_only=True)["epoch"] == 6


def test_a_run_is_measured_and_drawn(monkeypatch, tmp_path):
    """With the features of a classifier that had one epoch instead of twelve."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metrics, "EPOCHS", 1)
    _, log = gan.main(out="run", **QUICK)
    lines = (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()
    for line, row in zip(lines, log, strict=True):
        found = json.loads(line)
        assert found["iteration"] == row["iteration"]
        assert found["fid_classifier_297"] == pytest.approx(row["fid"], rel=1e-4)
        assert 0 < found["fid_classifier_297_floor"] < found["fid_classifier_297"]
        assert len(found["class_counts_1000"]) == 10
        assert sum(found["class_counts_1000"]) == 1000
    names = {file.name for file in (tmp_path / "run").glob("*.png")}
    assert names == {"sample_006.png", "sample_012.png", "interpolation_006.png",
                     "interpolation_012.png", "curves.png", "fid.png"}


def test_figures_have_a_class_a_row_a_z_a_column_and_a_plane(monkeypatch, tmp_path):
    generator, asked = small_networks(classes=10)[0], []
    generator.register_forward_pre_hook(lambda module, z_and_y: asked.append(z_and_y))
    monkeypatch.setattr(gan, "save_curves", lambda *arguments: None)
    run = SimpleNamespace(args=gan_args("--conditional"), rows=[], folder=tmp_path,
                          figure=lambda name: tmp_path / f"{name}.png")
    gan.save_figures(generator, load_data("digits"), run)
    (z, y), (plane, _) = asked
    assert y.view(10, 8).tolist() == [[digit] * 8 for digit in range(10)]
    assert torch.equal(z, z[:8].repeat(10, 1)) and len(z.unique(dim=0)) == 8
    noise = torch.Generator().manual_seed(0)
    assert torch.equal(z[:8], torch.randn(64, 8, generator=noise)[:8])
    corners = torch.randn(4, 8, generator=noise)
    torch.testing.assert_close(plane[[0, 9, 90, 99]], corners)


def test_the_plane_between_four_z_stays_on_the_sphere():
    """Its corners are the four, its rows great circles, and all of it as long as draws are: about
    sqrt(128). The middle of four draws on straight lines would have half that length."""
    corners = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    plane = gan.plane_through(corners, 5)
    torch.testing.assert_close(plane[[0, 4, 20, 24]], corners)
    lengths = corners.norm(dim=1)
    assert lengths.min() - 1e-4 <= plane.norm(dim=1).min()
    assert plane.norm(dim=1).max() <= lengths.max() + 1e-4
    assert corners.mean(0).norm() < 0.6 * lengths.mean()
    for row in plane.view(5, 5, 128):   # equal angles along a row
        directions = row / row.norm(dim=1, keepdim=True)
        cosines = (directions[1:] * directions[:-1]).sum(1)
        torch.testing.assert_close(cosines, cosines[:1].expand(4), rtol=0, atol=1e-4)


def test_digits_in_colour_are_not_mirrored(tmp_path, monkeypatch):
    """Others are; args.txt says which."""
    for name in ("SVHN", "own"):
        data = random_data(n_train=20, shape=(3, 32, 32), classes=1)._replace(name=name)
        monkeypatch.setattr(gan, "load_run_data", lambda args, data=data: data)
        gan.main(out=tmp_path / name, width=4, batch_size=4, iterations=1, eval_every=0,
                 loss="gan", quiet=True, device="cpu")
        text = (tmp_path / name / "args.txt").read_text()
        assert ("--no-flip\n" in text) == (name == "SVHN")


def test_a_narrow_gan_learns_where_the_ink_is(calls, tmp_path):
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


def test_the_floor_and_the_classifier_are_of_all_training_images(monkeypatch):
    """Also where the run sees a part of them: the distances are then those of evaluate.py."""
    seen = []
    for name in ("FIDMeter", "trained_classifier"):
        monkeypatch.setattr(gan, name, lambda data, *_, **__: seen.append(len(data.x_train)))
    args = gan_args("--dataset=digits", "--train-size=50")
    gan.make_meters(args, load_data("digits", train_size=50))
    assert seen == [1500, 1500]


def test_a_discriminator_that_has_won_and_a_class_that_is_lost_are_said():
    said = []
    run = SimpleNamespace(say=said.append)
    data = SimpleNamespace(classes=["cat", "dog", "owl"])
    counts = {"class_counts_1000": [500, 0, 500]}
    gan.warn(run, 999, {"d_accuracy": 1.0}, counts, data)      # the samples are still noise
    gan.warn(run, 1000, {"d_accuracy": 0.9}, {"class_counts_1000": [1, 1, 998]}, data)
    gan.warn(run, 1000, {"d_accuracy": None}, {}, data)        # a critic, and no classifier
    assert said == []
    gan.warn(run, 1000, {"d_accuracy": 1.0}, counts, data)
    assert "always right" in said[0] and "of class dog;" in said[1]
