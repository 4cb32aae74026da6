"""p(x|z) of every kind against torch.distributions, and the two architectures that give it."""
import math

import pytest
import torch
from conftest import TINY
from test_models import args, random_data
from torch.distributions import Normal

import cvae
import vae
from common import gaussian_nll


@pytest.mark.parametrize("log_sigma", [torch.tensor(-1.5), torch.randn(5, 3, 4, 4)])
def test_gaussian_nll_is_that_of_torch_distributions(log_sigma):
    torch.manual_seed(0)
    mean, x = torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4)
    expected = -Normal(mean, log_sigma.exp()).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(gaussian_nll(mean, log_sigma, x), expected)


def test_sigma_of_03536_makes_the_squared_error_of_pixels_from_minus_1_to_1():
    mean, x = torch.rand(5, 3, 4, 4), torch.rand(5, 3, 4, 4)
    constant = 48 * (math.log(0.125**0.5) + 0.5 * math.log(2 * math.pi))
    squares = ((2 * mean - 1) - (2 * x - 1)).square().flatten(1).sum(1)
    nll = gaussian_nll(mean, torch.tensor(0.125**0.5).log(), x)
    torch.testing.assert_close(nll, squares + constant)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1), (4, 1, 4, 4), (3, 4, 4)])
def test_no_other_shape_of_sigma_broadcasts(shape):
    """With four images of 4 x 4 pixels, a sigma for each image would broadcast over columns."""
    mean = torch.rand(4, 3, 4, 4)
    with pytest.raises(ValueError, match="must agree"):
        gaussian_nll(mean, torch.zeros(shape), mean)
    with pytest.raises(ValueError, match="must agree"):
        gaussian_nll(mean[:1], torch.tensor(0.0), mean)


@pytest.mark.parametrize("sigma", ["learned", "pixel", "0.25"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8)])
@pytest.mark.parametrize("arch", ["mlp", "conv"])
def test_each_kind_of_sigma(sigma, shape, arch):
    torch.manual_seed(0)
    flags = args(f"--arch={arch}", "--likelihood=gaussian", f"--sigma={sigma}", shape=shape)
    model = vae.VAE(shape, flags).eval()
    x, z = torch.rand(5, *shape), torch.randn(5, 3)
    logits, log_sigma = model.decode(z)
    assert log_sigma.shape == (x.shape if sigma == "pixel" else ())
    if sigma == "0.25":
        assert log_sigma.item() == pytest.approx(math.log(0.25))
    with torch.no_grad():   # however small the parameter, sigma stays above its bound
        for parameter in model.parameters():
            parameter.fill_(-100)
    assert model.decode(z)[1].min() >= math.log(vae.SIGMA_MIN) - 1e-6
    assert vae.loss_terms(model, x, torch.randn(5, 3))[0].shape == (5,)


@pytest.mark.parametrize("shape, expected", [((1, 6, 6), "bernoulli"), ((3, 6, 6), "gaussian")])
def test_default_likelihood(shape, expected):
    assert args(shape=shape).likelihood == expected
    assert args("--likelihood=bernoulli", shape=shape).likelihood == "bernoulli"


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side, halves", [(28, 2), (32, 3), (64, 4), (8, 1), (20, 2)])
def test_conv_halves_down_to_4_to_7_and_its_mirror_doubles(channels, side, halves):
    flags = args("--arch=conv", "--hidden=4", shape=(channels, side, side))
    model = vae.VAE((channels, side, side), flags).eval()
    sides = {"encoder": [], "decoder": []}

    def note(name):
        return lambda module, inputs, output: sides[name].append(output.shape[1:])

    for name in sides:
        for layer in getattr(model, name):
            if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d | torch.nn.Unflatten):
                layer.register_forward_hook(note(name))
    model.decode(model.encode(torch.rand(2, channels, side, side))[0])
    assert len(sides["encoder"]) == halves and 4 <= sides["encoder"][-1][1] <= 7
    assert sides["decoder"] == [*reversed(sides["encoder"]), (channels, side, side)]


@pytest.mark.parametrize("arch", ["mlp", "conv"])
@pytest.mark.parametrize("batch", [1, 5])
def test_conditional_networks(arch, batch):
    torch.manual_seed(0)
    flags = args(f"--arch={arch}", "--hidden=4", shape=(3, 8, 8))
    model, twin = (cvae.CVAE((3, 8, 8), flags, n).eval() for n in (4, 0))
    x, z = torch.rand(batch, 3, 8, 8), torch.randn(batch, 3)
    zero, one = torch.zeros(batch), torch.ones(batch)
    assert model.picture(z, zero).shape == x.shape
    assert not torch.equal(model.picture(z, zero), model.picture(z, one))
    assert not torch.equal(model.encode(x, zero)[0], model.encode(x, one)[0])
    assert torch.equal(twin.picture(z, zero), twin.picture(z, one))
    assert torch.equal(twin.encode(x, zero)[0], twin.encode(x, one)[0])


def test_label_enters_as_constant_planes():
    model = cvae.CVAE((1, 8, 8), args("--arch=conv", shape=(1, 8, 8)), 3)
    planes = model.with_label(torch.rand(2, 1, 8, 8), torch.tensor([0, 2]))[:, 1:]
    assert torch.equal(planes, torch.eye(3)[[0, 2]][:, :, None, None].expand(2, 3, 8, 8))


def test_dropout_is_at_work_in_training_only():
    x = torch.rand(4, 1, 8, 8)
    for arch in ("mlp", "conv"):
        model = vae.VAE((1, 8, 8), args(f"--arch={arch}", "--dropout=0.5", shape=(1, 8, 8)))
        assert not torch.equal(model.encode(x)[0], model.encode(x)[0])
        model.eval()
        assert torch.equal(model.encode(x)[0], model.encode(x)[0])


def test_log_variance_is_bounded():
    model = vae.VAE((1, 6, 6), args())
    torch.nn.init.constant_(model.encoder[-1].bias, 1e6)
    recon, kl, _ = vae.loss_terms(model, torch.rand(4, 1, 6, 6), torch.randn(4, 3))
    assert model.encode(torch.rand(4, 1, 6, 6))[1].max() == 15 and kl.isfinite().all()


def test_binarize_threshold():
    data = random_data()
    black_white = vae.binarize(data, args("--binarize=threshold"))
    assert torch.equal(black_white.x_train, (data.x_train >= 128).byte() * 255)
    assert torch.equal(black_white.x_test, (data.x_test >= 128).byte() * 255)


def test_binarize_dynamic_draws_the_test_set_once_and_has_the_pixel_as_its_mean():
    data = random_data(n_test=4000)
    data.x_test[:] = data.x_test[0]   # one picture, 4,000 draws
    drawn = vae.binarize(data, args("--binarize=dynamic"))
    assert torch.equal(drawn.x_test, vae.binarize(data, args("--binarize=dynamic")).x_test)
    assert {*drawn.x_test.unique().tolist()} == {0, 255}
    pixel = data.x_test[0] / 255
    error = (pixel * (1 - pixel) / 4000).sqrt()
    assert ((drawn.x_test / 255).mean(0) - pixel).abs().le(5 * error + 1e-6).all()
    assert torch.equal(drawn.x_train, data.x_train)   # drawn in the step


def test_binarize_dynamic_draws_the_training_set_anew_in_every_epoch():
    class Spy(vae.VAE):
        def encode(self, x):
            self.seen = [*getattr(self, "seen", []), x]
            return super().encode(x)

    data, flags = random_data(), args("--binarize=dynamic", "--batch-size=20")
    learner = vae.make_learner(Spy((1, 6, 6), flags), data, flags)
    for epoch in (1, 2):
        vae.train_epoch(learner, vae.loss_terms, data, epoch, flags)
    first, second = learner.model.seen
    assert {*first.unique().tolist()} == {0, 1} and not torch.equal(first, second)


def test_show_sample_draws_from_the_likelihood():
    torch.manual_seed(0)
    z = torch.randn(2, 3)
    for likelihood in ("bernoulli", "gaussian"):
        model = vae.VAE((1, 6, 6), args(f"--likelihood={likelihood}", "--show=sample"))
        drawn = model.picture(z)
        assert torch.equal(drawn, model.picture(z))   # the same draw in every epoch
        assert (len(drawn.unique()) == 2) == (likelihood == "bernoulli")
        assert not torch.equal(drawn, torch.sigmoid(model.decode(z)[0]))
        assert drawn.min() >= 0 and drawn.max() <= 1


def test_collapse_is_told_once_in_words(tmp_path, capsys):
    flags = TINY | {"quiet": False, "epochs": 3}
    vae.main(out=tmp_path / "collapsed", beta=1000, **flags)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warnings) == 1 and "--beta" in warnings[0] and "collapsed" in warnings[0]
    vae.main(out=tmp_path / "autoencoder", beta=0, **flags)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("script", [vae, cvae])
def test_a_run_with_everything(script, tmp_path):
    """Convolutions, dropout, a sigma for every pixel, a plateau, a warm-up: they go together."""
    flags = TINY | {"hidden": 4, "train_size": 200, "test_size": 50}
    _, log = script.main(out=tmp_path / "run", arch="conv", sigma="pixel", dropout=0.1,
                         lr_schedule="plateau", beta_schedule="linear", show="sample", **flags)
    assert log[-1]["beta"] == 1 and log[0]["beta"] == 0
