"""Claim: the numbers of metrics.py are those of the papers.

    Frechet distance    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2)   of means m, covariances C
    kernel distance     mean k(a, a') + mean k(b, b') - 2 mean k(a, b),  k(x, y) = (x.y / d + 1)^3
    precision, recall   the share of fakes that lie near a real point, and the other way round
    likelihood          log p(x) = log of the integral of p(x|z) p(z) over z

Each is held against a closed form or against the formula written anew; the likelihood against a
model whose p(x) is known, and against an integral over a grid.
"""
import math
import sys
import urllib.error

import numpy as np
import pytest
import torch
from small import random_data
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal
from torch.nn import functional as F

import metrics
from readers import load_data
from run import load_models


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture
def cache(out):
    return out / "cache"


@pytest.fixture
def small(digits, monkeypatch):
    """300 digits, even or odd, and one pass over them: training in an instant."""
    monkeypatch.setattr(metrics, "EPOCHS", 1)
    return digits._replace(x_train=digits.x_train[:300], y_train=digits.y_train[:300] % 2,
                           y_test=digits.y_test % 2, classes=["even", "odd"])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def points(n, d):
    """n normal points in d dimensions, always the same."""
    return torch.randn(n, d, dtype=torch.double, generator=seeded())


# --------------------------------------------------------------------------------- the classifier

def test_a_classifier_knows_digits_and_a_robust_one_blurred_digits(digits, tmp_path, monkeypatch):
    """The first is the one in the box; the other is trained here."""
    x = digits.x_test / 255
    for _ in range(3):
        x = F.avg_pool2d(x, 3, stride=1, padding=1)
    right_on_blurred = {}
    for robust in (False, True):
        if robust:
            monkeypatch.setattr(metrics, "MODELS", tmp_path)
        network = metrics.trained_classifier(digits, tmp_path, quiet=True, robust=robust)
        assert 0.94 < network.accuracy < 1   # exactly 1 would be too good
        guesses = network(x).argmax(1)
        right_on_blurred[robust] = (guesses == digits.y_test).double().mean()
    assert right_on_blurred[False] < 0.8
    assert right_on_blurred[True] > 0.9


def test_a_classifier_is_trained_once_for_each_data_set(small, tmp_path, monkeypatch):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = metrics.trained_classifier(small, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)   # a run goes on as if nothing had been
    again = metrics.trained_classifier(small, tmp_path / "elsewhere", quiet=True)
    assert all(map(torch.equal, first.parameters(), again.parameters()))

    trained = []
    monkeypatch.setattr(metrics, "train", lambda network, data, *_: trained.append(data))
    cached = metrics.trained_classifier(small, tmp_path)
    assert torch.equal(cached.head.weight, first.head.weight)
    assert trained == []
    others = [small._replace(name="other"), small._replace(x_train=small.x_train ^ 1),
              small._replace(y_train=1 - small.y_train)]
    for other in others:
        metrics.trained_classifier(other, tmp_path)
    metrics.trained_classifier(small, tmp_path, robust=True)
    assert len(trained) == 4


def test_a_classifier_needs_two_classes_of_a_hundred_images():
    assert metrics.can_train_classifier(random_data(n_train=400))        # of 4 classes
    assert not metrics.can_train_classifier(random_data(n_train=399))
    assert not metrics.can_train_classifier(random_data(n_train=400, classes=1))


# ---------------------------------------------------------------------------- the Frechet distance

def numpy_frechet(a, b):
    """The formula above, with the trace of (C1^1/2 C2 C1^1/2)^1/2, by symmetric eigenvalues."""
    def root(matrix):
        values, vectors = np.linalg.eigh(matrix)
        return vectors * np.sqrt(values.clip(0)) @ vectors.T

    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    middle = root(root(c1) @ c2 @ root(c1))
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * middle)


def test_frechet_distance_of_stretched_and_shifted_points():
    """Of diagonal covariances it is |shift|^2 + |difference of standard deviations|^2."""
    x = points(500, 3)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T   # mean 0, covariance I, exactly
    scale, shift = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([0.0, 1.0, 3.0])
    expected = shift.square().sum() + (scale - 1).square().sum()
    distance = metrics.frechet_distance(x, x * scale + shift)
    assert distance == pytest.approx(expected.item(), rel=1e-6)
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_fid_of_noise_and_of_training_images(digits, cache):
    meter = metrics.FIDMeter(digits, cache=cache, quiet=True)
    assert (meter.name, meter.n) == ("fid_classifier_297", 297)
    network = metrics.trained_classifier(digits, cache)
    noise = torch.rand(297, 1, 28, 28, generator=seeded())
    training = torch.cat(list(metrics.image_batches(digits.x_train, 297)))
    real = network.features(digits.x_test / 255).double().numpy()
    of_noise = numpy_frechet(real, network.features(noise).double().numpy())
    of_training = numpy_frechet(real, network.features(training).double().numpy())

    assert meter.floor == pytest.approx(of_training, rel=1e-3)
    assert meter.distance([noise]) == pytest.approx(of_noise, rel=1e-3)
    assert meter.distance(noise.split(7)) == pytest.approx(of_noise, rel=1e-3)
    assert meter.distance([digits.x_test / 255]) == pytest.approx(0, abs=1e-3)
    assert 0 < meter.floor < 0.2 * of_noise
    assert math.isfinite(meter.distance([noise[:5]]))   # far fewer images than features


def test_a_distance_that_is_not_finite_ends_the_run(digits, cache, capsys):
    meter = metrics.FIDMeter(digits, cache=cache, quiet=True)
    with pytest.raises(SystemExit) as stop:
        meter.distance([torch.full((9, 1, 28, 28), math.nan)])
    assert stop.value.code == 1
    assert "fid_classifier_297 is not finite" in capsys.readouterr().err


# ----------------------------------------------------------------------------- the kernel distance

def test_kernel_distance_is_the_unbiased_mmd():
    """Unbiased: no point is compared with itself."""
    a, b = points(60, 5), points(120, 5)[60:] + 0.5

    def k(x, y):
        return (x @ y.T / 5 + 1) ** 3

    others = ~torch.eye(60, dtype=torch.bool)
    expected = k(a, a)[others].mean() + k(b, b)[others].mean() - 2 * k(a, b).mean()
    assert metrics.kernel_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)


def test_kernel_distance_of_many_points_draws_the_same_subsets_each_time():
    x = points(1200, 5)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(metrics.kernel_distance(x, x + 1))
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1] > 0


# ---------------------------------------------------------------------------- precision and recall

def test_precision_and_recall_point_by_point():
    """Near: not farther from a point than its third neighbour is."""
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(40, 2)), rng.normal(1.5, 0.7, (30, 2))

    def share_near(points, others):
        near = 0
        radii = [np.sort(np.linalg.norm(others - other, axis=1))[3] for other in others]
        for point in points:
            near += np.any(np.linalg.norm(others - point, axis=1) <= radii)
        return near / len(points)

    precision, recall = share_near(fake, real), share_near(real, fake)
    real, fake = torch.from_numpy(real), torch.from_numpy(fake)
    assert metrics.precision_recall(real, fake) == pytest.approx((precision, recall))
    assert 0 < recall < precision < 1   # a narrow set: precise, not diverse
    assert metrics.precision_recall(real, real) == (1, 1)
    assert metrics.precision_recall(real, real + 100) == (0, 0)


def test_precision_and_recall_of_more_points_than_are_compared_at_a_time():
    real = points(1500, 2)
    assert metrics.precision_recall(real, real[:1200]) == pytest.approx((1, 0.99), abs=0.01)


# -------------------------------------------------------------------------------- which features

def test_features_without_labels_are_of_an_autoencoder(small, tmp_path, capsys):
    unlabelled = small._replace(classes=[])
    name, features = metrics.extractor(unlabelled, folder=tmp_path, cache=tmp_path)
    assert name == "autoencoder"
    assert "autoencoder of digits" in capsys.readouterr().out
    found = features(torch.rand(2, 1, 28, 28))
    assert found.shape == (2, features.num_features)
    assert found.dtype == torch.double


def test_features_of_colour_without_labels_are_those_of_cifar10_if_it_is_there(small, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (250, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "cifar10.npz", x_train=x[:200], y_train=np.arange(200) % 2,
             x_test=x[200:], y_test=np.arange(50) % 2)
    colour = small._replace(x_train=small.x_train.expand(-1, 3, -1, -1), classes=[])
    name, features = metrics.extractor(colour, folder=tmp_path, cache=tmp_path)
    assert name == "cifar10"
    assert features.size == (32, 32)
    x = torch.rand(2, 3, 28, 28, generator=seeded())
    resized = F.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(features(x), features(resized))


@pytest.mark.parametrize("missing", ["network", "package"])
def test_without_inception_a_run_goes_on_and_says_so(missing, digits, cache, monkeypatch, capsys):
    import torchmetrics.image.fid

    def offline(*_):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchmetrics.image.fid, "NoTrainInceptionV3", offline)
    if missing == "package":
        monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    name, _ = metrics.extractor(digits, "inception", cache=cache)
    assert name == "classifier"
    assert "Inception's weights are not available" in capsys.readouterr().out


def test_a_file_that_does_not_hold_inception_is_refused(tmp_path, capsys):
    (tmp_path / "no_weights.pt").write_bytes(b"no weights")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    for name in ("no_weights.pt", "other.pt", "not_there.pt"):
        with pytest.raises(SystemExit) as stop:
            metrics.inception(str(tmp_path / name), "cpu")
        assert stop.value.code == 2
        assert f"--fid-features {tmp_path / name}" in capsys.readouterr().err


def test_inception_is_shown_three_channels_of_bytes(monkeypatch):
    import torchmetrics.image.fid
    shown = []

    class Network(torch.nn.Module):
        def __init__(self, *_):
            super().__init__()

        def forward(self, x):
            shown.append(x)
            return torch.zeros(len(x), 2048)

    monkeypatch.setattr(torchmetrics.image.fid, "NoTrainInceptionV3", Network)
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    metrics.inception("inception", "cpu")(x / 255)
    assert torch.equal(shown[0], x.expand(-1, 3, -1, -1))


# ---------------------------------------------------------------------------------- the likelihood

class LinearGaussian:
    """z ~ N(0, I), x|z ~ N(W z + 1/2, s^2 I), so that x ~ N(1/2, W W' + s^2 I).

    The columns of W are orthogonal, and so the posterior is a diagonal Gaussian, too. q is that
    or, to give the weights something to do, one that is `wider`.
    """
    classes, s = 0, 0.1

    def __init__(self, wider):
        u, lengths, _ = torch.linalg.svd(0.05 * points(16, 2).float(), full_matrices=False)
        self.w = u * lengths                                                    # (16, 2)
        self.variance = 1 / (1 + lengths.square() / self.s ** 2)                # of p(z|x), (2,)
        self.wider = wider

    def encode(self, x, y):
        mu = (x.flatten(1) - 0.5) @ self.w * self.variance / self.s ** 2
        return mu, (self.wider * self.variance).log().expand(len(x), -1)

    def decode(self, z, y):
        return Independent(Normal((z @ self.w.T + 0.5).view(-1, 1, 4, 4), self.s), 3)

    def prior(self):
        return None


@pytest.mark.parametrize("wider, samples, tolerance", [(1, 1, 1e-3), (1.5, 500, 0.02)])
def test_likelihood_of_a_linear_gaussian_model(wider, samples, tolerance):
    """With the exact posterior one sample is enough: every weight is p(x)."""
    model = LinearGaussian(wider)
    covariance = model.w @ model.w.T + model.s ** 2 * torch.eye(16)
    p = MultivariateNormal(torch.full((16,), 0.5), covariance)
    torch.manual_seed(0)
    x = p.sample((50,))
    y = torch.zeros(50, dtype=torch.long)
    nll = metrics.nll_is(model, x.view(-1, 1, 4, 4), y, samples, seeded(1))
    torch.testing.assert_close(nll.mean(), -p.log_prob(x).mean(), rtol=0, atol=tolerance)


class Coins:
    """Eight Bernoulli pixels, whose logits are a z and, of class 1, one more; q is a guess.

    z is one number, so that p(x) is an integral over a line.
    """
    classes = 2

    def __init__(self, prior=None):
        self.own_prior = prior

    def encode(self, x, y):
        return x.flatten(1).mean(1, keepdim=True) - 0.5, torch.full((len(x), 1), 0.2)

    def decode(self, z, y):
        logits = (z * torch.linspace(-1, 2, 8) + y[:, None]).view(-1, 1, 2, 4)
        return Independent(Bernoulli(logits=logits), 3)

    def prior(self):
        return self.own_prior


@pytest.mark.parametrize("prior", [None, Independent(Normal(torch.tensor([-1.0]), 0.5), 1)])
def test_likelihood_of_a_bernoulli_model_is_a_sum_over_a_grid(prior):
    """Which knows nothing of q; with N(0, 1) as the prior, and with another."""
    x = (torch.rand(6, 1, 2, 4, generator=seeded()) > 0.4).float()
    y = torch.arange(6) % 2
    model = Coins(prior)
    z, step = torch.linspace(-8, 8, 1601)[:, None], 0.01
    log_prior = Normal(0, 1).log_prob(z[:, 0]) if prior is None else prior.log_prob(z)
    expected = []
    for i in range(6):
        log_p = model.decode(z, y[i].expand(1601)).log_prob(x[i])
        expected.append(-(log_p + log_prior + math.log(step)).logsumexp(0))
    nll = metrics.nll_is(model, x, y, 30_000, seeded())
    torch.testing.assert_close(nll, torch.stack(expected), rtol=0, atol=0.02)


def test_likelihood_of_every_class_is_a_sum_over_a_grid():
    """log p(x|y) of either class, whatever the image's own."""
    x = (torch.rand(10, 1, 2, 4, generator=seeded()) > 0.4).float()
    model = Coins()
    z, step = torch.linspace(-8, 8, 1601)[:, None], 0.01
    expected = torch.empty(10, 2)
    for label in range(2):
        p = model.decode(z, torch.full((1601,), label))
        for i in range(10):
            log_joint = p.log_prob(x[i]) + Normal(0, 1).log_prob(z[:, 0])
            expected[i, label] = (log_joint + math.log(step)).logsumexp(0)
    found = metrics.class_log_likelihoods(model, x, 20_000, seeded())
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)


def test_a_fast_bernoulli_is_the_librarys_even_where_a_logit_is_huge():
    logits = torch.tensor([-200.0, -30, -1, 0, 1e-3, 2, 50, 200]).repeat(6, 1).view(6, 2, 2, 2)
    logits = logits * torch.linspace(0.1, 1, 6).view(6, 1, 1, 1)   # of 2 images, 3 codes each
    x, y, z = torch.rand(2, 2, 2, 2, generator=seeded()), torch.zeros(2), torch.zeros(2, 3, 1)
    p = Independent(Bernoulli(logits=logits, validate_args=False), 3)

    class Model:
        def decode(self, z, y):
            return p

    expected = p.log_prob(x.repeat_interleave(3, 0)).view(2, 3)
    torch.testing.assert_close(metrics.log_p_x_given_z(Model(), x, y, z), expected)


def test_noise_is_each_images_own(cvae_run, digits):
    """Whatever its batch, and however many images are decoded at a time."""
    model = load_models(cvae_run[0])[2][""]
    x, y = digits.x_test[:9] / 255, digits.y_test[:9]
    whole = metrics.nll_is(model, x, y, 50, seeded(3))
    torch.testing.assert_close(metrics.nll_is(model, x[:4], y[:4], 50, seeded(3)), whole[:4])
    torch.testing.assert_close(metrics.nll_is(model, x, y, 50, seeded(3), rows=17), whole)


def test_a_label_tells_at_most_minus_log_p_of_it(cvae_run, digits):
    """log p(x|y) - log p(x) <= -log p(y), for every image, and for the estimates exactly."""
    model = load_models(cvae_run[0])[2][""]
    x, y = digits.x_test[:50] / 255, digits.y_test[:50]
    log_prior = torch.linspace(1, 2, 10).log_softmax(0)
    given = metrics.class_log_likelihoods(model, x, 20, seeded())              # (50, 10)
    marginal = (given + log_prior).logsumexp(1, keepdim=True)
    assert (given - marginal <= -log_prior + 1e-4).all()
    torch.testing.assert_close(given[:, 0], -metrics.nll_is(model, x, 0 * y, 20, seeded()))
