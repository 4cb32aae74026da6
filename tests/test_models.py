"""What the models, losses and evaluation promise, beginning with the units."""
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import cvae
import vae
from common import Data, bernoulli_nll, gaussian_kl, load_data


def args(*argv, shape=(1, 6, 6)):
    """Flags as on a command line, for images of `shape`, small by default."""
    small = ("--latent=3", "--hidden=16", "--batch-size=8", "--lr=1e-3", "--lr-schedule=constant")
    parsed = vae.flags().parse_args([*small, *argv])
    images = torch.zeros(1, *shape, dtype=torch.uint8)
    vae.check_flags(parsed, Data("random", images, None, None, None, []))
    return parsed


def random_data(n=20, n_test=11, shape=(1, 6, 6), classes=4):
    torch.manual_seed(0)
    x = torch.randint(0, 256, (n + n_test, *shape), dtype=torch.uint8)
    y = torch.arange(n + n_test) % classes
    return Data("random", x[:n], y[:n], x[n:], y[n:], [str(c) for c in range(classes)])


both = pytest.mark.parametrize("script", [vae, cvae])


def make_model(script, flags, shape=(1, 6, 6)):
    return vae.VAE(shape, flags) if script is vae else cvae.CVAE(shape, flags, 4)


def train(script, learner, data, flags, terms=None):
    """One epoch of either script: cvae.py takes its learners by their columns' prefix."""
    learners = learner if script is vae else {"": learner}
    return script.train_epoch(learners, terms or script.loss_terms, data, 1, flags)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 6, 9)])
@pytest.mark.parametrize("batch", [1, 5])
def test_shapes(shape, batch):
    x, y, eps = torch.rand(batch, *shape), torch.zeros(batch).long(), torch.randn(batch, 3)
    model = vae.VAE(shape, args(shape=shape))
    mu, logvar = model.encode(x)
    assert mu.shape == logvar.shape == (batch, 3) and model.decode(mu)[0].shape == x.shape
    terms = vae.loss_terms(model, x, eps)
    assert [term.shape for term in terms] == [(batch,), (batch,), (batch, 3)]
    model = cvae.CVAE(shape, args(shape=shape), 10)
    mu, logvar = model.encode(x, y)
    assert mu.shape == logvar.shape == (batch, 3) and model.decode(mu, y)[0].shape == x.shape
    terms = cvae.loss_terms(model, x, y, eps)
    assert [term.shape for term in terms] == [(batch,), (batch,), (batch, 3)]


@pytest.mark.parametrize("arch, width, activation",
                         [("mlp", 16, nn.ReLU), ("conv", 256, nn.LeakyReLU)])
def test_as_many_hidden_layers_as_asked_for(arch, width, activation):
    for layers in (0, 1, 2, 3):
        flags = args(f"--arch={arch}", f"--layers={layers}", shape=(1, 8, 8))
        for network in vae.VAE((1, 8, 8), flags).children():
            found = [layer for layer in network if not isinstance(layer, nn.Unflatten)]
            *hidden, last = [layer for layer in found if isinstance(layer, nn.Linear)]
            assert [layer.out_features for layer in hidden] == [width] * layers
            for layer in hidden:
                assert isinstance(found[found.index(layer) + 1], activation)


def test_hidden_layers_share_no_weights():
    assert len({id(weight) for weight in vae.VAE((1, 6, 6), args("--layers=3")).parameters()}) == 16


def test_convolutions_of_colour_come_without_a_hidden_layer():
    assert [args("--arch=conv", shape=(channels, 8, 8)).layers for channels in (1, 3)] == [1, 0]
    assert args("--arch=mlp", shape=(3, 8, 8)).layers == 1
    assert args("--arch=conv", "--layers=2", shape=(3, 8, 8)).layers == 2


def test_label_is_concatenated_one_hot():
    model = cvae.CVAE((1, 28, 28), args("--latent=10"), 10)
    assert model.encoder[0].in_features == 784 + 10 and model.decoder[0].in_features == 10 + 10
    assert model.with_label(torch.zeros(2, 3), torch.tensor([0, 9])).tolist() == \
        [[0, 0, 0] + [1] + [0] * 9, [0, 0, 0] + [0] * 9 + [1]]


def test_cvae_depends_on_the_label_and_its_twin_does_not():
    torch.manual_seed(0)
    x, z, zero, one = torch.rand(5, 1, 6, 6), torch.randn(5, 3), torch.zeros(5), torch.ones(5)
    model, twin = (cvae.CVAE((1, 6, 6), args(), n) for n in (4, 0))
    assert not torch.equal(model.decode(z, zero)[0], model.decode(z, one)[0])
    assert not torch.equal(model.encode(x, zero)[0], model.encode(x, one)[0])
    assert torch.equal(twin.decode(z, zero)[0], twin.decode(z, one)[0])
    assert torch.equal(twin.encode(x, zero)[0], twin.encode(x, one)[0])


def test_twin_is_the_model_of_vae_py():
    torch.manual_seed(0)
    plain = vae.VAE((1, 6, 6), args())
    torch.manual_seed(0)
    twin = cvae.CVAE((1, 6, 6), args(), 0)
    x, eps = torch.rand(5, 1, 6, 6), torch.randn(5, 3)
    for ours, theirs in zip(vae.loss_terms(plain, x, eps),
                            cvae.loss_terms(twin, x, torch.zeros(5).long(), eps), strict=True):
        assert torch.equal(ours, theirs)


def test_terms_are_nats_summed_over_pixels_and_latents():
    """An all-zero decoder says sigmoid(0) = 1/2 for each of 36 pixels: 36 ln 2 nats."""
    model = vae.VAE((1, 6, 6), args())
    nn.init.zeros_(model.decoder[2].weight), nn.init.zeros_(model.decoder[2].bias)
    x = torch.rand(5, 1, 6, 6)
    recon, kl, mu = vae.loss_terms(model, x, torch.randn(5, 3))
    torch.testing.assert_close(recon, torch.full((5,), 36 * math.log(2)))
    torch.testing.assert_close(kl, gaussian_kl(*model.encode(x)))
    assert torch.equal(mu, model.encode(x)[0])


def test_doubling_the_batch_leaves_every_image_its_loss():
    torch.manual_seed(0)
    model, x, eps = vae.VAE((1, 6, 6), args()), torch.rand(5, 1, 6, 6), torch.randn(5, 3)
    once = vae.loss_terms(model, x, eps)
    twice = vae.loss_terms(model, torch.cat([x, x]), torch.cat([eps, eps]))
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(torch.cat([a, a]), b)


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_objective_is_recon_plus_beta_kl(beta):
    data, flags = random_data(), args(f"--beta={beta}")
    learner = vae.make_learner(vae.VAE((1, 6, 6), args()), data, flags)
    row = vae.train_epoch(learner, vae.loss_terms, data, 1, flags)
    kl = beta * row["train_kl"] if beta else 0
    assert row["train_objective"] == pytest.approx(row["train_recon"] + kl, rel=1e-6)
    assert row["train_loss"] == pytest.approx(row["train_recon"] + row["train_kl"], rel=1e-6)
    assert (row["train_kl"] > 0) == (beta > 0)


def test_a_step_follows_the_gradient_of_the_mean_over_the_batch():
    """SGD with rate 1 moves each weight by minus the gradient, computed here by hand."""
    torch.manual_seed(0)
    model, x, eps = vae.VAE((1, 6, 6), args()), torch.rand(4, 1, 6, 6), torch.randn(4, 3)
    before = [p.detach().clone() for p in model.parameters()]
    mu, logvar = model.encode(x)
    recon = bernoulli_nll(model.decode(mu + eps * (logvar / 2).exp())[0], x)
    loss = (recon + 2 * gaussian_kl(mu, logvar)).sum() / 4
    expected = torch.autograd.grad(loss, model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    learner = vae.Learner(model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1))
    sums = vae.train_step(learner, vae.loss_terms, x, eps, 2.0, args())
    for p, old, gradient in zip(model.parameters(), before, expected, strict=True):
        torch.testing.assert_close(old - p, gradient, rtol=1e-4, atol=1e-5)
    assert not any(value.requires_grad for value in sums.values())   # or every graph would live on


@both
@pytest.mark.parametrize("arch", ["mlp", "conv"])
def test_dropout_and_normalisation_know_training_from_testing(script, arch):
    flags = args(f"--arch={arch}", "--dropout=0.5", shape=(1, 8, 8))
    data, model = random_data(shape=(1, 8, 8)), make_model(script, flags, (1, 8, 8)).eval()
    train(script, script.make_learner(model, data, flags), data, flags)
    assert all(part.training for part in model.modules())
    script.evaluate(*([] if script is vae else [""]), model, data, 1, flags)
    assert not any(part.training for part in model.modules())


@both
def test_rates_by_epoch(script):
    """Constant; or half a cosine (Loshchilov & Hutter 2017, arXiv 1608.03983, equation 5)."""
    cosine = [5e-4 * (1 + math.cos(math.pi * i / 4)) for i in (1, 2, 3, 4)]
    for schedule, expected in (("constant", [1e-3] * 4), ("cosine", cosine)):
        data, flags = random_data(), args("--epochs=4", f"--lr-schedule={schedule}")
        learner, found = script.make_learner(make_model(script, flags), data, flags), []
        for _ in range(4):   # of three steps each
            train(script, learner, data, flags)
            found.append(learner.optimizer.param_groups[0]["lr"])
        assert found == pytest.approx(expected, abs=1e-12)


@both
def test_plateau_follows_the_objective_of_each_model(script):
    data, flags, heard = random_data(), args("--lr-schedule=plateau"), []
    models = {"": make_model(script, flags)}
    models |= {"vae_": cvae.CVAE((1, 6, 6), flags, 0)} if script is cvae else {}
    learners = {prefix: script.make_learner(model, data, flags)._replace(
        scheduler=SimpleNamespace(step=heard.append)) for prefix, model in models.items()}
    learners = learners[""] if script is vae else learners
    row = script.train_epoch(learners, script.loss_terms, data, 1, flags)
    assert heard == [row[f"{prefix}train_objective"] for prefix in models]


@both
def test_dynamic_pixels_are_drawn_anew_in_every_epoch(script):
    data, flags, seen = random_data(), args("--binarize=dynamic", "--batch-size=20"), []

    def terms(model, x, *rest):
        seen.append(x)
        return script.loss_terms(model, x, *rest)
    for _ in range(2):
        learner = script.make_learner(make_model(script, flags), data, flags)
        torch.manual_seed(len(seen))
        train(script, learner, data, flags, terms)
    first, second = (x.sum((1, 2, 3)).sort().values for x in seen)   # in any order
    assert seen[0].unique().tolist() == [0, 1] and not torch.equal(first, second)


@both
def test_a_drawn_picture_has_the_deviation_of_its_pixels(script):
    flags = args("--likelihood=gaussian", "--sigma=0.1", "--show=sample")
    model, z = make_model(script, flags).requires_grad_(False), torch.randn(50, 3)
    for weight in model.parameters():
        weight.zero_()   # a mean of 1/2 everywhere
    y = [] if script is vae else [torch.zeros(50)]
    assert (model.picture(z, *y) - 0.5).std().item() == pytest.approx(0.1, rel=0.05)
    flags.show = "mean"
    assert (model.picture(z, *y) == 0.5).all()


@pytest.mark.parametrize("active, kl, beta, told", [
    (1, 9, 1, True), (3, 0.4, 1, True), (3, 9, 1, False), (0, 0, 0, False)])
def test_a_collapse_is_few_active_units_or_no_kl(active, kl, beta, told, capsys):
    vae.warn_of_collapse(active, kl, args(f"--beta={beta}"))
    assert ("collapsed" in capsys.readouterr().out) == told


class Spy(vae.VAE):
    """Remembers what it was shown and which z it was asked to decode."""

    def encode(self, x):
        self.seen = [*getattr(self, "seen", []), x]
        self.posterior = [*getattr(self, "posterior", []), super().encode(x)]
        return self.posterior[-1]

    def decode(self, z):
        self.z = [*getattr(self, "z", []), z]
        return super().decode(z)


def spy(beta):
    torch.manual_seed(0)
    data, model = random_data(n_test=2501), Spy((1, 6, 6), args())
    nn.init.constant_(model.encoder[-1].bias[3:], -2)   # deviation exp(-1), variance exp(-2)
    row = vae.evaluate(model, data, 1, args(f"--beta={beta}"))
    mu, logvar = (torch.cat(parts) for parts in zip(*model.posterior, strict=True))
    return data, model, row, (torch.cat(model.z) - mu) / torch.exp(0.5 * logvar)


def test_evaluation_uses_every_test_image_once_and_samples_z():
    data, model, row, eps = spy(beta=4.0)
    assert torch.equal(torch.cat(model.seen), data.x_test / 255)
    assert abs(eps.mean()) < 0.05 and abs(eps.std() - 1) < 0.05   # 7,503 standard normal numbers
    x = data.x_test / 255
    recon = bernoulli_nll(vae.VAE.decode(model, torch.cat(model.z))[0], x).double().mean()
    kl = gaussian_kl(*vae.VAE.encode(model, x)).double().mean()
    assert row["test_recon"] == pytest.approx(recon.item(), rel=1e-6)
    assert row["test_kl"] == pytest.approx(kl.item(), rel=1e-5)
    assert row["test_loss"] == pytest.approx((recon + kl).item(), rel=1e-6)   # beta = 1, not 4


def test_an_autoencoder_never_samples():
    _, _, row, eps = spy(beta=0.0)
    assert eps.abs().max() == 0 and row["test_loss"] == row["test_recon"]


def test_evaluation_leaves_the_noise_of_training_alone():
    data, model, state = random_data(), vae.VAE((1, 6, 6), args()), torch.get_rng_state()
    vae.evaluate(model, data, 1, args())
    assert torch.equal(state, torch.get_rng_state())


def test_schedule_that_passes_through_0_still_samples():
    """Only --beta 0 is an autoencoder: a warm-up's first epoch has noise in z, and a KL."""
    data, flags = random_data(), args("--beta-schedule=linear", "--epochs=4")
    learner = vae.make_learner(Spy((1, 6, 6), args()), data, flags)
    row = vae.train_epoch(learner, vae.loss_terms, data, 1, flags)
    assert row["train_objective"] == row["train_recon"] and row["train_kl"] > 0
    assert not torch.equal(learner.model.z[0], learner.model.posterior[0][0])


def test_overfits_32_images(tmp_path):
    """An autoencoder learns 32 images by heart, but no grey pixel costs less than its entropy."""
    _, log = vae.main(dataset="digits", train_size=32, test_size=8, batch_size=32, epochs=300,
                      beta=0, latent=20, hidden=200, save_every=300, out=tmp_path / "run",
                      quiet=True)
    x = load_data("digits", train_size=32).x_train / 255
    floor = bernoulli_nll(torch.logit(x, eps=1e-7), x).mean().item()
    assert floor < log[-1]["train_recon"] < floor + 5
    assert log[-1]["train_kl"] is None and log[-1]["test_kl"] is None
