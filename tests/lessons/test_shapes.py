"""Claim: every function has the shapes that its docstring names, networks have the layers that were
asked for, and a likelihood of another shape is refused instead of being broadcast in silence.

    images (B, C, H, W)    labels (B,)    codes (B, latent)    losses (B,), one per image
"""
import pytest
import torch
from small import vae_args
from torch import nn
from torch.distributions import Independent, Normal

import cvae
import gan
import vae
from common import check_images


@pytest.mark.parametrize("script", [vae, cvae])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("arch, shape", [
    ("mlp", (1, 28, 28)), ("mlp", (3, 32, 32)), ("mlp", (1, 6, 9)),
    ("conv", (1, 28, 28)), ("conv", (3, 32, 32))])
def test_vae_and_cvae(script, batch, arch, shape):
    args = vae_args(f"--arch={arch}", shape=shape)
    model = script.build(shape, 10, args)
    x, eps = torch.rand(batch, *shape), torch.randn(batch, 3)
    y = [] if script is vae else [torch.zeros(batch)]

    mu, logvar = model.encode(x, *y)
    assert mu.shape == logvar.shape == (batch, 3)
    p = model.decode(mu, *y)
    assert p.batch_shape == (batch,)
    assert p.event_shape == shape
    assert p.mean.shape == x.shape

    recon, kl, mu = script.loss_terms(model, x, *y, eps)
    assert recon.shape == kl.shape == (batch,)
    assert mu.shape == (batch, 3)
    for values in script.backward(model, x, *y, eps, 1.0, args).values():
        assert values.shape == (batch,)


@pytest.mark.parametrize("batch, classes", [(1, 0), (5, 0), (5, 10)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side, inner", [(28, slice(2, 30)), (32, slice(0, 32))])
def test_generator_and_discriminator(batch, classes, channels, side, inner):
    """Between them images have 32 x 32 pixels in [-1, 1]; outside, those of the data in [0, 1]."""
    args = gan.flags().parse_args(["--width=4", "--latent=8"])
    generator = gan.Generator((channels, side, side), classes, args).eval()
    discriminator = gan.Discriminator((channels, side, side), classes, args)
    z, y = torch.randn(batch, 8), torch.arange(batch)

    x = generator(z, y)
    assert x.shape == (batch, channels, 32, 32)
    assert discriminator(x, y).shape == (batch,)
    images = generator.picture(z, y)
    assert images.shape == (batch, channels, side, side)
    assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(images, (x[:, :, inner, inner] + 1) / 2)


# ---------------------------------------------------------------------------------------- layers

def image_shapes(network, h):
    """The shapes (C, H, W) that h takes on its way through the layers, each once."""
    shapes = []
    for layer in network:
        h = layer(h)
        shape = tuple(h.shape[1:])
        if len(shape) == 3 and shape not in shapes:
            shapes.append(shape)
    return shapes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side, halves", [
    (28, [14, 7]), (32, [16, 8, 4]), (64, [32, 16, 8, 4]), (8, [4]), (20, [10, 5])])
def test_conv_decoder_is_the_mirror_of_the_encoder(side, halves, channels):
    """Down to 4 to 7 pixels a side, with twice the channels each time; and back."""
    image = (channels, side, side)
    args = vae_args("--arch=conv", "--hidden=4", "--likelihood=bernoulli", shape=image)
    model = vae.VAE(image, args)
    down = image_shapes(model.encoder, torch.rand(2, *image))
    up = image_shapes(model.decoder, torch.randn(2, 3))
    assert [shape[1] for shape in down] == [shape[2] for shape in down] == halves
    assert [shape[0] for shape in down] == [4, 8, 16, 32][:len(halves)]
    assert up == [*reversed(down), image]


@pytest.mark.parametrize("arch, width, activation",
                         [("mlp", 16, nn.ReLU), ("conv", 16 * 16, nn.LeakyReLU)])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_as_many_hidden_layers_as_asked_for(arch, width, activation, layers):
    """And one more, with nothing behind it: a ReLU there would forbid a negative mu."""
    model = vae.VAE((1, 8, 8), vae_args(f"--arch={arch}", f"--layers={layers}", shape=(1, 8, 8)))
    for network in (model.encoder, model.decoder):
        linear = [i for i, layer in enumerate(network) if isinstance(layer, nn.Linear)]
        hidden, last = linear[:-1], linear[-1]
        assert [network[i].out_features for i in hidden] == [width] * layers
        assert all(isinstance(network[i + 1], activation) for i in hidden)
        assert last == len(network) - 1 or isinstance(network[last + 1], nn.Unflatten)
        assert len({network[i].weight for i in linear}) == layers + 1    # none is shared


def test_without_a_hidden_layer_an_mlp_is_linear():
    """f(a + b - c) = f(a) + f(b) - f(c): with --beta 0 this is a linear autoencoder."""
    a, b, c = torch.rand(3, 5, 36)
    for layers, linear in ((0, True), (1, False)):
        f = vae.VAE((1, 6, 6), vae_args(f"--layers={layers}")).encoder
        assert torch.allclose(f(a + b - c), f(a) + f(b) - f(c), atol=1e-5) == linear


def test_convolutions_of_colour_images_have_no_hidden_layer_by_default():
    assert vae_args("--arch=mlp", shape=(3, 8, 8)).layers == 1
    assert vae_args("--arch=conv", shape=(1, 8, 8)).layers == 1
    assert vae_args("--arch=conv", shape=(3, 8, 8)).layers == 0
    assert vae_args("--arch=conv", "--layers=2", shape=(3, 8, 8)).layers == 2


@pytest.mark.parametrize("norm, count", [("none", 0), ("batch", 3)])
def test_norm_batch_is_in_every_block_of_the_discriminator(norm, count):
    args = gan.flags().parse_args([f"--norm={norm}", "--width=4"])
    layers = gan.Discriminator((1, 28, 28), 0, args).modules()
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in layers) == count


# -------------------------------------------------------------------- no broadcasting in silence

X = torch.rand(4, 3, 4, 4)   # as many images as rows and columns: much would broadcast


def test_a_distribution_over_the_images_passes():
    check_images(Independent(Normal(X, 1.0), 3), X)


@pytest.mark.parametrize("p", [
    Normal(X, 1.0),                                         # over pixels
    Independent(Normal(X, 1.0), 2),                         # over channels
    Independent(Normal(X, 1.0), 4),                         # over the whole batch
    Independent(Normal(X[:1], 1.0), 3),                     # one image for all
    Independent(Normal(X[0], 1.0), 3),                      # the same, without a batch
    Independent(Normal(X[:, :1], 1.0), 3),                  # grey for colour
    Independent(Normal(X, torch.ones(4, 1, 1, 1, 1)), 3),   # a sigma with a dimension too many
], ids=["pixels", "channels", "batch", "one image", "no batch", "grey", "sigma"])
def test_another_shape_is_refused(p):
    with pytest.raises(ValueError, match="but the images are"):
        check_images(p, X)


@pytest.mark.parametrize("script", [vae, cvae])
def test_the_loss_checks_its_likelihood(script):
    """A model that forgets the channels' dimension."""
    model = script.build((1, 6, 6), 4, vae_args())
    decode = model.decode
    model.decode = lambda *z_and_y: Independent(decode(*z_and_y).base_dist, 2)
    y = [] if script is vae else [torch.zeros(5)]
    with pytest.raises(ValueError, match="but the images are"):
        script.loss_terms(model, torch.rand(5, 1, 6, 6), *y, torch.randn(5, 3))
