"""Claim: decode returns the p(x|z) that --likelihood and --sigma name, with every constant, so that
minus its log_prob is a number of nats.

    bernoulli:  log p(x|z) = sum of x log p + (1 - x) log(1 - p),  p = sigmoid(h)
    gaussian:   log p(x|z) = sum of -1/2 ((x - m) / s)^2 - log s - 1/2 log 2 pi,  m = sigmoid(h)

h is what the decoder's network says, the sum goes over the pixels of an image, and s is one number
for all, one number that is learned, or a number for every pixel.
"""
import math

import pytest
import torch
from small import random_data, vae_args

import cvae
import run
import vae
from common import SIGMA_MIN, binarize

SHAPE = (3, 8, 8)
both = pytest.mark.parametrize("script", [vae, cvae])


def decoded(script, *flags, edit=None):
    """p(x|z) of five codes, and the numbers h that it is made of; edit(model) changes weights."""
    torch.manual_seed(0)
    model = script.build(SHAPE, 4, vae_args(*flags, shape=SHAPE)).eval()
    if edit is not None:
        edit(model)
    z, y = torch.randn(5, 3), torch.ones(5)
    inputs = z
    if script is cvae:
        inputs = model.with_condition(z, y)
    return run.decode(model, z, y), model.decoder(inputs), model


def gaussian_log_prob(x, m, s):
    """The formula above, (B, C, H, W) -> (B,)."""
    terms = -0.5 * ((x - m) / s) ** 2 - torch.log(s) - 0.5 * math.log(2 * math.pi)
    return terms.sum((1, 2, 3))


@both
def test_bernoulli(script):
    """On grey pixels the formula is a cross-entropy, and works as well."""
    p, h, _ = decoded(script, "--likelihood=bernoulli")
    mean = torch.sigmoid(h)
    torch.testing.assert_close(p.mean, mean)
    grey = torch.rand(5, *SHAPE)
    for x in (grey, grey.round()):
        expected = (x * torch.log(mean) + (1 - x) * torch.log(1 - mean)).sum((1, 2, 3))
        torch.testing.assert_close(p.log_prob(x), expected)
    assert p.sample().unique().tolist() == [0, 1]


def test_bernoulli_stays_finite_where_the_sigmoid_rounds_to_1():
    """A logit of 200 for a black pixel costs 200 nats, and not infinitely many."""
    def edit(model):
        torch.nn.init.zeros_(model.decoder[2].weight)
        torch.nn.init.constant_(model.decoder[2].bias, 200.0)

    p, _, _ = decoded(vae, "--likelihood=bernoulli", edit=edit)
    assert p.log_prob(torch.zeros(5, *SHAPE)).tolist() == [-200 * 3 * 8 * 8] * 5


@both
def test_gaussian_with_a_number(script):
    p, h, _ = decoded(script, "--likelihood=gaussian", "--sigma=0.25")
    x, m = torch.rand(5, *SHAPE), torch.sigmoid(h)
    torch.testing.assert_close(p.mean, m)
    torch.testing.assert_close(p.log_prob(x), gaussian_log_prob(x, m, torch.tensor(0.25)))


@both
def test_gaussian_with_one_learned_number(script):
    """s = s_min + exp(log_sigma), which is what the soft bound comes to; it starts at -1."""
    p, h, model = decoded(script, "--likelihood=gaussian", "--sigma=learned")
    x, m = torch.rand(5, *SHAPE), torch.sigmoid(h)
    assert model.log_sigma.item() == -1
    s = SIGMA_MIN + torch.exp(model.log_sigma)
    torch.testing.assert_close(p.log_prob(x), gaussian_log_prob(x, m, s))

    # d log p / d s = (((x - m) / s)^2 - 1) / s in every pixel, and ds / d log_sigma = s - s_min.
    gradient = torch.autograd.grad(p.log_prob(x).sum(), model.log_sigma)[0]
    by_hand = (((x - m) / s) ** 2 - 1).sum() / s * (s - SIGMA_MIN)
    torch.testing.assert_close(gradient, by_hand, rtol=1e-4, atol=1e-3)


@both
@pytest.mark.parametrize("arch", ["mlp", "conv"])
def test_gaussian_with_a_number_for_every_pixel(script, arch):
    """The decoder has twice the channels: the means come first, and then the sigmas."""
    p, h, _ = decoded(script, f"--arch={arch}", "--likelihood=gaussian", "--sigma=pixel")
    assert h.shape == (5, 6, 8, 8)
    x, m, s = torch.rand(5, *SHAPE), torch.sigmoid(h[:, :3]), SIGMA_MIN + torch.exp(h[:, 3:])
    assert p.stddev.shape == x.shape
    torch.testing.assert_close(p.log_prob(x), gaussian_log_prob(x, m, s))


@both
@pytest.mark.parametrize("sigma", ["learned", "pixel"])
def test_sigma_is_bounded_from_below(script, sigma):
    """By a grey level, however small the parameters: a black border is not infinitely likely."""
    def edit(model):
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, -100)

    p, _, _ = decoded(script, "--likelihood=gaussian", f"--sigma={sigma}", edit=edit)
    assert p.stddev.min().item() == pytest.approx(1 / 256)


def test_sigma_of_03536_makes_the_squared_error_of_pixels_from_minus_1_to_1():
    """1 / (2 s^2) = 4 at s = sqrt(1/8), and (2x - 1) - (2m - 1) = 2 (x - m). What is left over is a
    constant, the same for every model."""
    p, h, _ = decoded(vae, "--likelihood=gaussian", f"--sigma={math.sqrt(1 / 8)}")
    x = torch.rand(5, *SHAPE)
    error = (2 * x - 1) - (2 * torch.sigmoid(h) - 1)
    constant = 3 * 8 * 8 * (math.log(math.sqrt(1 / 8)) + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(-p.log_prob(x), error.square().sum((1, 2, 3)) + constant)


def test_grey_images_are_bernoulli_and_colour_images_gaussian_unless_a_flag_says_otherwise():
    assert vae_args(shape=(1, 6, 6)).likelihood == "bernoulli"
    assert vae_args(shape=(3, 6, 6)).likelihood == "gaussian"
    assert vae_args("--likelihood=bernoulli", shape=(3, 6, 6)).likelihood == "bernoulli"
    assert vae_args("--binarize=threshold", shape=(3, 6, 6)).likelihood == "bernoulli"
    assert vae_args("--sigma=pixel", shape=(1, 6, 6)).likelihood == "gaussian"


def test_binarize_threshold_is_white_above_one_half():
    data = random_data()
    black_white = binarize(data, vae_args("--binarize=threshold"))
    assert torch.equal(black_white.x_train / 255, (data.x_train / 255 > 0.5).float())
    assert torch.equal(black_white.x_test / 255, (data.x_test / 255 > 0.5).float())


def test_binarize_dynamic_has_the_grey_value_as_its_mean():
    """4,000 draws of one image; each pixel within five standard errors."""
    data = random_data(n_test=4000)
    image = data.x_test[0] / 255
    data.x_test[:] = data.x_test[0]
    drawn = binarize(data, vae_args("--binarize=dynamic")).x_test / 255
    assert drawn.unique().tolist() == [0, 1]
    standard_error = (image * (1 - image) / 4000).sqrt()
    error = (drawn.mean(0) - image).abs()
    assert (error <= 5 * standard_error + 1e-6).all()


def test_binarize_dynamic_draws_the_test_set_once_and_leaves_the_training_set_grey():
    data, args = random_data(), vae_args("--binarize=dynamic")
    torch.manual_seed(1)
    first = binarize(data, args)
    torch.manual_seed(2)
    second = binarize(data, args)
    assert torch.equal(first.x_test, second.x_test)      # whatever the --seed
    assert torch.equal(first.x_train, data.x_train)      # it is drawn anew in every step
