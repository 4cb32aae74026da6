"""Claim: vae.py minimises recon + beta * kl and reports recon + kl, minus the ELBO, in nats per
image: sums over pixels and latents, and means over images.

    z = mu + sigma * eps,  eps ~ N(0, I), one number for every image and latent unit
    recon = -log p(x|z),   kl = KL(q(z|x) || N(0, I)),   objective = mean of (recon + beta * kl)

The losses are held against torch.nn.functional and torch.distributions, training steps against
gradient descent by hand, schedules against their papers' formulas.
"""
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY
from small import random_data, vae_args
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

import cvae
import vae
from common import Means, active_units, batches, beta_at
from readers import load_data
from run import make_scheduler, warn_of_collapse

pytestmark = pytest.mark.usefixtures("no_plots")

SHAPE = (1, 6, 6)


def small_vae(*flags):
    torch.manual_seed(0)
    return vae.VAE(SHAPE, vae_args(*flags))


def train(model, data, args, epoch=1):
    """One epoch, as in main. Returns columns of the log."""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    scheduler = make_scheduler(optimizer, len(data.x_train), args)
    return vae.train_epoch(model, optimizer, scheduler, data, epoch, args)


def cross_entropy(logits, x):
    """-log p(x|z) of a Bernoulli likelihood, summed over the pixels: (B, C, H, W) -> (B,)."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))


def divergence(mu, logvar):
    """KL(q || p), summed over the latents: (B, latent) -> (B,)."""
    return kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).sum(1)


class Spy(vae.VAE):
    """A VAE that remembers the images it was shown, their posteriors, and the codes it decoded."""

    def __init__(self, args):
        torch.manual_seed(0)
        super().__init__(SHAPE, args)
        self.images, self.mus, self.logvars, self.codes = [], [], [], []

    def encode(self, x):
        mu, logvar = super().encode(x)
        self.images.append(x)
        self.mus.append(mu.detach())
        self.logvars.append(logvar.detach())
        return mu, logvar

    def decode(self, z):
        self.codes.append(z.detach())
        return super().decode(z)

    def noise(self):
        """The eps of every batch: z = mu + sigma * eps, solved for it."""
        found = []
        for mu, logvar, z in zip(self.mus, self.logvars, self.codes, strict=True):
            found.append((z - mu) / torch.exp(0.5 * logvar))
        return found


# -------------------------------------------------------------------------------------- the loss

def test_reconstruction_is_summed_over_pixels():
    """A network that says 0 gives every pixel the probability 1/2: 784 ln 2 nats an image."""
    model = vae.VAE((1, 28, 28), vae_args(shape=(1, 28, 28)))
    nn.init.zeros_(model.decoder[2].weight)
    nn.init.zeros_(model.decoder[2].bias)
    recon, _, _ = vae.loss_terms(model, torch.rand(5, 1, 28, 28), torch.randn(5, 3))
    torch.testing.assert_close(recon, torch.full((5,), 784 * math.log(2)))


def test_terms_by_hand():
    model, x, eps = small_vae(), torch.rand(5, *SHAPE), torch.randn(5, 3)
    recon, kl, mu = vae.loss_terms(model, x, eps)
    h = model.encoder(x.flatten(1))
    mean, logvar = h[:, :3], h[:, 3:]
    z = mean + torch.sqrt(torch.exp(logvar)) * eps
    torch.testing.assert_close(mu, mean)
    torch.testing.assert_close(kl, divergence(mean, logvar))
    torch.testing.assert_close(recon, cross_entropy(model.decoder(z), x))


def test_doubling_the_batch_leaves_every_image_its_loss():
    model, x, eps = small_vae(), torch.rand(5, *SHAPE), torch.randn(5, 3)
    once = vae.loss_terms(model, x, eps)
    twice = vae.loss_terms(model, torch.cat([x, x]), torch.cat([eps, eps]))
    for a, b in zip(once, twice, strict=True):
        torch.testing.assert_close(torch.cat([a, a]), b)


def test_log_variance_is_bounded():
    """A wild step must not overflow exp(logvar)."""
    model, x = small_vae(), torch.rand(4, *SHAPE)
    for extreme, bound in ((1e6, 15), (-1e6, -15)):
        nn.init.constant_(model.encoder[-1].bias[3:], extreme)
        assert (model.encode(x)[1] == bound).all()


# -------------------------------------------------------------------------------------- training

def test_objective_is_recon_plus_beta_kl_with_the_beta_of_the_epoch():
    """In epoch 2 of a warm-up in 5 epochs to 12, beta is 3. The loss of the log has beta = 1."""
    args = vae_args("--beta=12", "--beta-schedule=linear", "--epochs=5")
    row = train(small_vae(), random_data(), args, epoch=2)
    recon, kl = row["train_recon"], row["train_kl"]
    assert kl > 0
    assert row["train_objective"] == pytest.approx(recon + 3 * kl, rel=1e-6)
    assert row["train_loss"] == pytest.approx(recon + kl, rel=1e-6)


def test_a_step_follows_the_gradient_of_the_mean(monkeypatch):
    """Two steps of gradient descent with rate 0.01, by hand: p <- p - 0.01 * d mean / d p."""
    data, args = random_data(n_train=4), vae_args("--batch-size=4", "--beta=2")
    monkeypatch.setattr(vae, "draw_eps", lambda x, args: torch.ones(len(x), args.latent))
    model, other = small_vae(), small_vae()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scheduler = make_scheduler(optimizer, 4, args)

    x = data.x_train / 255
    for epoch in (1, 2):   # of one batch
        vae.train_epoch(model, optimizer, scheduler, data, epoch, args)
        mu, logvar = other.encode(x)
        recon = cross_entropy(other.decoder(mu + torch.exp(0.5 * logvar)), x)
        mean = (recon + 2 * divergence(mu, logvar)).sum() / 4
        gradients = torch.autograd.grad(mean, list(other.parameters()))
        with torch.no_grad():
            for p, gradient in zip(other.parameters(), gradients, strict=True):
                p -= 0.01 * gradient
    for p, by_hand in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, by_hand, rtol=1e-4, atol=1e-6)


def test_a_huge_gradient_is_clipped_to_a_norm_of_one_for_every_pixel():
    args = vae_args("--likelihood=gaussian", "--sigma=0.01")
    model = vae.VAE(SHAPE, args)
    vae.backward(model, torch.rand(5, *SHAPE), torch.randn(5, 3), 1.0, args)
    squares = [p.grad.square().sum() for p in model.parameters()]
    assert sum(squares).sqrt().item() == pytest.approx(36, rel=1e-4)


def test_amp_gives_about_the_same_terms():
    x, eps = torch.rand(5, *SHAPE), torch.randn(5, 3)
    exact = vae.backward(small_vae(), x, eps, 1.0, vae_args())
    rough = vae.backward(small_vae(), x, eps, 1.0, vae_args("--amp"))
    assert not torch.equal(rough["train_recon"], exact["train_recon"])
    for name, values in exact.items():   # summed in float32, which assert_close looks at, too
        torch.testing.assert_close(rough[name], values, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("arch", ["mlp", "conv"])
def test_dropout_and_normalisation_know_training_from_testing(arch):
    shape = (1, 8, 8)
    args, data = vae_args(f"--arch={arch}", "--dropout=0.5", shape=shape), random_data(shape=shape)
    model, x, z = vae.VAE(shape, args).eval(), torch.rand(9, *shape), torch.randn(9, 3)
    train(model, data, args)
    assert not torch.equal(model.encode(x)[0], model.encode(x)[0])
    assert not torch.equal(model.decode(z).mean, model.decode(z).mean)
    vae.evaluate(model, data, 1, args)
    assert torch.equal(model.encode(x)[0], model.encode(x)[0])
    assert not any(part.training for part in model.modules())


def test_batches_show_every_image_once_with_its_label_in_another_order_each_time():
    x, y = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1), torch.arange(10)
    torch.manual_seed(0)
    orders = []
    for shuffle in (True, True, False):
        parts = list(batches(x, y, 4, shuffle))
        assert [len(images) for images, _ in parts] == [4, 4, 2]     # the short one counts, too
        images = torch.cat([images for images, _ in parts])
        labels = torch.cat([labels for _, labels in parts])
        torch.testing.assert_close(images.flatten() * 255, labels.float())
        orders.append(labels.tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == orders[2] == list(range(10))
    assert orders[0] != orders[1] and orders[2] not in orders[:2]


def test_dynamic_binarisation_is_drawn_anew_in_every_epoch():
    args, data = vae_args("--binarize=dynamic", "--batch-size=2000"), random_data(n_train=2000)
    data.x_train[:] = data.x_train[0]                        # one image, drawn 2,000 times
    model = Spy(args)
    train(model, data, args)
    train(model, data, args)
    first, second = model.images
    assert first.unique().tolist() == [0, 1]
    assert not torch.equal(first, second)
    assert (first.mean(0) - data.x_train[0] / 255).abs().max() < 5 * math.sqrt(0.25 / 2000)


# -------------------------------------------------------------------------------------- the noise

@pytest.mark.parametrize("phase", ["train", "test"])
def test_every_image_and_latent_unit_has_noise_of_its_own(phase):
    """Standard normal; with one eps for a batch or for all units, columns or rows would be equal,
    with one generator for each batch, batches."""
    data, args = random_data(n_train=2000, n_test=2000), vae_args("--batch-size=1000")
    model = Spy(args)
    if phase == "train":
        train(model, data, args)
    else:
        vae.evaluate(model, data, 1, args)
    first, second = model.noise()
    for eps in (first, second, (first - second) / math.sqrt(2)):
        assert eps.shape == (1000, 3)
        assert eps.mean(0).abs().max() < 0.2
        assert (eps.std(0) - 1).abs().max() < 0.1
        assert torch.corrcoef(eps.T).fill_diagonal_(0).abs().max() < 0.2


def test_a_schedule_that_passes_through_0_still_samples():
    """Only --beta 0 is an autoencoder: in the first epoch of a warm-up z is noisy, and has a KL."""
    args = vae_args("--beta-schedule=linear", "--epochs=8")
    model = Spy(args)
    row = train(model, random_data(), args)
    assert row["train_objective"] == row["train_recon"]
    assert row["train_kl"] > 0
    assert (torch.cat(model.noise()).abs() > 1e-3).all()


def test_an_autoencoder_never_samples_and_its_loss_is_the_reconstruction():
    args = vae_args("--beta=0")
    model = Spy(args)
    trained = train(model, random_data(), args)
    tested = vae.evaluate(model, random_data(), 1, args)
    assert trained["train_objective"] == trained["train_loss"] == trained["train_recon"]
    assert tested["test_loss"] == tested["test_recon"]
    assert all(map(torch.equal, model.codes, model.mus))


# -------------------------------------------------------------------------------------- schedules

def betas(epochs, schedule, warmup=None):
    args = SimpleNamespace(beta=2.0, beta_schedule=schedule, beta_warmup=warmup, epochs=epochs)
    return [beta_at(epoch, args) for epoch in range(1, epochs + 1)]


def test_beta_by_epoch():
    """--beta-warmup is the epoch, of a cycle, that reaches beta; without it, it is the last one."""
    assert betas(4, "constant") == [2, 2, 2, 2]
    assert betas(5, "linear") == [0, 0.5, 1, 1.5, 2]
    assert betas(8, "linear", warmup=3) == [0, 1, 2, 2, 2, 2, 2, 2]
    assert betas(12, "cyclical") == [0, 1, 2] * 4
    assert betas(9, "cyclical") == [0, 2] + [0, 2] + [0, 1, 2] + [0, 2]   # they need not be even
    assert betas(16, "cyclical", warmup=3) == [0, 1, 2, 2] * 4


def learning_rates(schedule):
    """The rate in each of the 12 steps of four epochs."""
    data, args = random_data(), vae_args("--epochs=4", f"--lr-schedule={schedule}", "--lr=1e-3")
    model, rates = small_vae(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    optimizer.register_step_pre_hook(
        lambda optimizer, *rest: rates.append(optimizer.param_groups[0]["lr"]))
    scheduler = make_scheduler(optimizer, len(data.x_train), args)
    for epoch in range(1, 5):
        vae.train_epoch(model, optimizer, scheduler, data, epoch, args)
    return rates


def test_constant_and_cosine_learning_rate():
    """Loshchilov & Hutter 2017 (arXiv 1608.03983), equation 5."""
    cosine = [0.5e-3 * (1 + math.cos(math.pi * step / 12)) for step in range(12)]
    assert learning_rates("constant") == [1e-3] * 12
    assert learning_rates("cosine") == pytest.approx(cosine)


def test_onecycle_learning_rate():
    """From a 25th of the rate to all of it, and down to nearly nothing in the last of the steps."""
    rates = learning_rates("onecycle")
    assert rates[0] == pytest.approx(1e-3 / 25)
    assert 0.9e-3 < max(rates) <= 1e-3
    assert rates[-1] == pytest.approx(1e-3 / 25 / 1e4)


class ShrinkThenAdam(torch.optim.Adam):
    """Weight decay by hand: before a step of Adam, a share rate * W of every weight goes."""

    steps = 0   # of all instances

    def __init__(self, parameters, lr, weight_decay, fused):
        super().__init__(parameters, lr=lr, fused=fused)
        self.decay = weight_decay

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                weight *= 1 - group["lr"] * self.decay
        ShrinkThenAdam.steps += 1
        return super().step(closure)


@pytest.mark.parametrize("script", [vae, cvae])
def test_weight_decay_shrinks_every_weight_before_a_step(script, tmp_path, monkeypatch):
    """Loshchilov & Hutter 2019 (arXiv 1711.05101), algorithm 2, with W times the rate for its
    lambda, as PyTorch has it."""
    flags = {"dataset": "digits", "hidden": 16, "latent": 2, "epochs": 2, "quiet": True,
             "device": "cpu"}
    model, _ = script.main(out=tmp_path / "decay", weight_decay=2.0, **flags)
    plain, _ = script.main(out=tmp_path / "plain", **flags)
    monkeypatch.setattr(torch.optim, "AdamW", ShrinkThenAdam)
    monkeypatch.setattr(ShrinkThenAdam, "steps", 0)
    by_hand, _ = script.main(out=tmp_path / "hand", weight_decay=2.0, **flags)
    assert ShrinkThenAdam.steps == 2 * 12   # 1,500 images in batches of 128
    for own, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(own, other, rtol=1e-4, atol=1e-6)
    assert norm(model) < 0.9 * norm(plain)


def norm(model):
    """The length of all weights, as one vector."""
    return torch.cat([weight.flatten() for weight in model.parameters()]).norm()


def test_plateau_divides_the_rate_by_ten_after_four_epochs_without_progress():
    args = vae_args("--lr-schedule=plateau", "--lr=1e-3")
    optimizer = torch.optim.Adam(small_vae().parameters(), lr=args.lr)
    scheduler = make_scheduler(optimizer, 20, args)
    rates = []
    for objective in (5.0, 4.0, 4.0, 4.0, 4.0, 4.0):
        scheduler.step(objective)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-4])


def test_plateau_follows_the_training_objective(tmp_path):
    _, log = vae.main(out=tmp_path / "run", lr_schedule="plateau", beta=3, **TINY)
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    lowest = min(row["train_objective"] for row in log)
    assert checkpoint["scheduler"]["best"] == pytest.approx(lowest, rel=1e-5)
    assert checkpoint["scheduler"]["last_epoch"] == 2        # once an epoch


# ------------------------------------------------------------------------------------- evaluation

def test_evaluation_is_the_mean_over_every_test_image_with_z_sampled():
    data = random_data(n_test=2501)                          # in three batches
    model = Spy(vae_args("--beta=4"))
    nn.init.constant_(model.encoder[-1].bias[3:], -2)        # sigma is about exp(-1), not 1
    row = vae.evaluate(model, data, 1, vae_args("--beta=4"))

    x = data.x_test / 255
    assert torch.equal(torch.cat(model.images), x)
    assert torch.cat(model.noise()).std().item() == pytest.approx(1, abs=0.05)
    recon = cross_entropy(model.decoder(torch.cat(model.codes)), x).double().mean().item()
    kl = divergence(torch.cat(model.mus), torch.cat(model.logvars)).double().mean().item()
    assert row["test_recon"] == pytest.approx(recon, rel=1e-5)
    assert row["test_kl"] == pytest.approx(kl, rel=1e-5)
    assert row["test_loss"] == pytest.approx(recon + kl, rel=1e-5)      # beta is 1 here, not 4
    assert row["active"] == active_units(torch.cat(model.mus))


def test_evaluation_has_noise_of_its_own():
    """It leaves that of training alone, and is the same whenever it is done."""
    model, data, args = small_vae(), random_data(), vae_args()
    state = torch.get_rng_state()
    first = vae.evaluate(model, data, 1, args)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    assert vae.evaluate(model, data, 2, args) == first


def test_a_unit_is_active_when_its_mean_varies_by_more_than_001():
    torch.manual_seed(0)
    variances = torch.tensor([1, 0.04, 0.0025, 0])
    mu = 3 + torch.randn(10_000, 4) * variances.sqrt()
    assert active_units(mu) == 2


@pytest.mark.parametrize("active, kl, beta, collapsed", [
    (1, 9.0, 1, True), (3, 0.4, 1, True), (3, 9.0, 1, False), (0, 0.0, 0, False)])
def test_a_collapse_is_few_active_units_or_hardly_any_kl(active, kl, beta, collapsed, capsys):
    """An autoencoder has no prior to collapse to."""
    run = SimpleNamespace(args=vae_args(f"--beta={beta}"), data=random_data(), say=print,
                          rows=[{"active": active, "test_kl": kl}])
    warn_of_collapse(run)
    assert ("collapsed" in capsys.readouterr().out) == collapsed


def test_means_are_sums_over_a_count():
    """A short last batch does not weigh as much as a whole one; 2^24 + 1 needs more than the 24
    bits of a float; and no graph is kept to the end of the epoch."""
    means = Means()
    means.add({"a": torch.tensor([2.0**24, 0.0, 0.0], requires_grad=True)}, "vae_")
    means.add({"a": torch.tensor([1.0])}, "vae_")
    assert not means.sums["vae_a"][0].requires_grad
    assert means.compute("epoch 1") == {"vae_a": (2**24 + 1) / 4}


def test_a_term_that_is_not_finite_is_named_with_its_step(capsys):
    """The KL breaks in step 2, and the totals with it; in step 3 the reconstruction, too."""
    means = Means()
    for recon, kl in ((1.0, 1.0), (1.0, math.nan), (math.nan, math.nan)):
        recon, kl = torch.tensor([recon]), torch.tensor([kl])
        means.add({"objective": recon + kl, "recon": recon, "kl": kl, "other": torch.ones(1)})
    with pytest.raises(SystemExit) as stop:
        means.compute("epoch 7")
    assert stop.value.code == 1
    assert "kl is not finite in step 2 of epoch 7" in capsys.readouterr().err


def test_an_autoencoder_learns_32_images_down_to_their_entropy():
    """A grey pixel x costs at least its entropy, -x log x - (1 - x) log(1 - x): less would be a bug
    as well."""
    data = load_data("digits", train_size=32)
    x = data.x_train / 255
    entropy = -torch.xlogy(x, x) - torch.xlogy(1 - x, 1 - x)
    floor = entropy.sum((1, 2, 3)).mean().item()

    args = vae_args("--beta=0", "--latent=20", "--hidden=200", "--batch-size=32", "--epochs=300",
                    "--lr=5e-3", "--lr-schedule=onecycle", shape=(1, 28, 28))
    torch.manual_seed(0)
    model = vae.VAE((1, 28, 28), args)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    scheduler = make_scheduler(optimizer, 32, args)
    for epoch in range(1, 301):
        row = vae.train_epoch(model, optimizer, scheduler, data, epoch, args)
    assert floor < row["train_recon"] < floor + 5
