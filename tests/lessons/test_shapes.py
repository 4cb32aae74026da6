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

CASES = [("mlp", (1, 28, 28)), ("mlp", (3, 32, 32)), ("mlp", (1, 6, 9)),
         ("conv", (1, 28, 28)), ("conv", (3, 32, 32))]


# ---------------------------------------------------------------------------------- vae and cvae

@pytest.mark.parametrize("arch, shape", CASES)
@pytest.mark.parametrize("batch", [1, 5])
def test_vae(arch, shape, batch):
    args = vae_args(f"--arch={arch}", shape=shape)
    model = vae.VAE(shape, args)
    x, eps = torch.rand(batch, *shape), torch.randn(batch, 3)

    mu, logvar = model.encode(x)
    assert mu.shape == logvar.shape == (batch, 3)
    p = model.decode(mu)
    assert p.batch_shape == (batch,)
    assert p.event_shape == shape
    assert p.mean.shape == x.shape

    recon, kl, mu = vae.loss_terms(model, x, eps)
    assert recon.shape == kl.shape == (batch,)
    assert mu.shape == (batch, 3)
    for values in vae.backward(model, x, eps, 1.0, args).values():
        assert values.shape == (batch,)


@pytest.mark.parametrize("arch, shape", CASES)
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("classes", [0, 10])
def test_cvae(arch, shape, batch, classes):
    args = vae_args(f"--arch={arch}", shape=shape)
    model = cvae.CVAE(shape, classes, args)
    x, eps = torch.rand(batch, *shape), torch.randn(batch, 3)
    y = torch.zeros(batch, dtype=torch.long)

    mu, logvar = model.encode(x, y)
    assert mu.shape == logvar.shape == (batch, 3)
    p = model.decode(mu, y)
    assert p.batch_shape == (batch,)
    assert p.event_shape == shape
    assert p.mean.shape == x.shape

    recon, kl, mu = cvae.loss_terms(model, x, y, eps)
    assert recon.shape == kl.shape == (batch,)
    assert mu.shape == (batch, 3)
    for values in cvae.backward(model, x, y, eps, 1.0, args).values():
        assert values.shape == (batch,)


# ------------------------------------------------------------------------------------------- gan

@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 32, 32), (3, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("classes", [0, 10])
def test_generator_and_discriminator(shape, batch, classes):
    args = gan.flags().parse_args(["--width=4", "--latent=8"])
    generator = gan.Generator(shape, classes, args).eval()
    discriminator = gan.Discriminator(shape, classes, args)
    z, y = torch.randn(batch, 8), torch.arange(batch)

    images = generator(z, y)
    assert images.shape == (batch, shape[0], 32, 32)
    assert images.abs().max() <= 1
    assert discriminator(images, y).shape == (batch,)


@pytest.mark.parametrize("side, inner", [(28, slice(2, 30)), (32, slice(0, 32))])
def test_images_of_the_generator_have_the_size_of_the_data_and_lie_in_0_to_1(side, inner):
    args = gan.flags().parse_args(["--width=4", "--latent=8"])
    generator = gan.Generator((3, side, side), 0, args).eval()
    z, y = torch.randn(5, 8), torch.zeros(5)
    images = generator.picture(z, y)
    assert images.shape == (5, 3, side, side)
    assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(images, (generator(z, y)[:, :, inner, inner] + 1) / 2)


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
    model = vae.VAE(image, vae_args("--arch=conv", "--hidden=4", "--likelihood=bernoulli",
                                    shape=image))
    down = image_shapes(model.encoder, torch.rand(2, *image))
    up = image_shapes(model.decoder, torch.randn(2, 3))
    assert [shape[1] for shape in down] == [shape[2] for shape in down] == halves
    assert [shape[0] for shape in down] == [4, 8, 16, 32][:len(halves)]
    assert up == [*reversed(down), image]


@pytest.mark.parametrize("arch, width, activation",
                         [("mlp", 16, nn.ReLU), ("conv", 16 * 16, nn.LeakyReLU)])
@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_as_many_hidden_layers_as_asked_for(arch, width, activation, layers):
    """The last layer is one more, and nothing comes between its numbers and what is made of them:
    a ReLU there would forbid a negative mu."""
    model = vae.VAE((1, 8, 8), vae_args(f"--arch={arch}", f"--layers={layers}", shape=(1, 8, 8)))
    for network in (model.encoder, model.decoder):
        linear = [i for i, layer in enumerate(network) if isinstance(layer, nn.Linear)]
        hidden, last = linear[:-1], linear[-1]
        assert [network[i].out_features for i in hidden] == [width] * layers
        for i in hidden:
            assert isinstance(network[i + 1], activation)
        assert last == len(network) - 1 or isinstance(network[last + 1], nn.Unflatten)


def test_hidden_layers_share_no_weights():
    """Four layers in each network, with a weight and a bias."""
    model = vae.VAE((1, 6, 6), vae_args("--layers=3"))
    assert len(list(model.parameters())) == 2 * 4 * 2   # a shared one would count once


def test_without_a_hidden_layer_an_mlp_is_linear():
    """f(a + b - c) = f(a) + f(b) - f(c): with --beta 0 this is a linear autoencoder."""
    a, b, c = torch.rand(3, 5, 36)

    def deviation(f):
        return (f(a + b - c) - f(a) - f(b) + f(c)).abs().max()

    assert deviation(vae.VAE((1, 6, 6), vae_args("--layers=0")).encoder) < 1e-5
    assert deviation(vae.VAE((1, 6, 6), vae_args("--layers=1")).encoder) > 1e-2


def test_convolutions_of_colour_images_have_no_hidden_layer_by_default():
    assert vae_args("--arch=mlp", shape=(3, 8, 8)).layers == 1
    assert vae_args("--arch=conv", shape=(1, 8, 8)).layers == 1
    assert vae_args("--arch=conv", shape=(3, 8, 8)).layers == 0
    assert vae_args("--arch=conv", "--layers=2", shape=(3, 8, 8)).layers == 2


@pytest.mark.parametrize("norm, count", [("none", 0), ("batch", 3)])
def test_norm_batch_normalises_in_every_block_of_the_discriminator(norm, count):
    args = gan.flags().parse_args([f"--norm={norm}", "--width=4"])
    layers = gan.Discriminator((1, 28, 28), 0, args).modules()
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in layers) == count


# -------------------------------------------------------------------- no broadcasting in silence

X = torch.rand(4, 3, 4, 4)   # as many images as rows and columns: much would broadcast


def test_a_distribution_over_the_images_passes():
    check_images(Independent(Normal(X, 1.0), 3), X)


@pytest.mark.parametrize("p", [
    Normal(X, 1.0),                                      # one of every pixel
    Independent(Normal(X, 1.0), 2),                      # one of every channel
    Independent(Normal(X, 1.0), 4),                      # one of the whole batch
    Independent(Normal(X[:1], 1.0), 3),                  # one image for all
    Independent(Normal(X[0], 1.0), 3),                   # the same, without a batch
    Independent(Normal(X[:, :1], 1.0), 3),               # grey for colour
    Independent(Normal(X[:, :, :, :1], 1.0), 3),         # one column for all
    Independent(Normal(X, torch.ones(4, 1, 1, 1, 1)), 3),   # a sigma with a dimension too many
], ids=["pixels", "channels", "batch", "one image", "no batch", "grey", "column", "sigma"])
def test_another_shape_is_refused(p):
    with pytest.raises(ValueError, match="but the images are"):
        check_images(p, X)


def test_the_loss_checks_its_likelihood():
    """Models that forget the dimension of the channels, or decode one code for the whole batch."""
    class OneDimensionShort(vae.VAE):
        def decode(self, z):
            return Independent(super().decode(z).base_dist, 2)

    class OneImageForAll(vae.VAE):
        def decode(self, z):
            return super().decode(z[:1])

    x, eps = torch.rand(5, 1, 6, 6), torch.randn(5, 3)
    for kind in (OneDimensionShort, OneImageForAll):
        with pytest.raises(ValueError, match="but the images are"):
            vae.loss_terms(kind((1, 6, 6), vae_args()), x, eps)


def test_the_conditional_loss_checks_its_likelihood():
    class OneImageForAll(cvae.CVAE):
        def decode(self, z, y):
            return super().decode(z[:1], y[:1])

    x, y, eps = torch.rand(5, 1, 6, 6), torch.zeros(5), torch.randn(5, 3)
    with pytest.raises(ValueError, match="but the images are"):
        cvae.loss_terms(OneImageForAll((1, 6, 6), 4, vae_args()), x, y, eps)
