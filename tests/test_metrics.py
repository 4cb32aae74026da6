"""metrics.py against closed forms, NumPy restatements and quadrature."""
import math
import urllib.error
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import generate
import metrics
from common import bernoulli_nll, gaussian_nll, load_checkpoint, load_data


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where evaluate.py's tests find the same classifier."""
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture
def small(digits, monkeypatch):
    """300 digits, even or odd, and one pass over them: training in an instant."""
    monkeypatch.setattr(metrics, "EPOCHS", 1)
    return digits._replace(x_train=digits.x_train[:300], y_train=digits.y_train[:300] % 2,
                           y_test=digits.y_test % 2, classes=["even", "odd"])


def test_classifier_knows_real_digits_and_a_robust_one_blurred_ones(digits, cache):
    sharp, robust = (metrics.classifier(digits, cache, robust=robust) for robust in (False, True))
    assert 0.94 < sharp.accuracy < 1 and 0.94 < robust.accuracy < 1   # just 1 would be too good
    assert sharp.features(torch.rand(3, 1, 28, 28)).shape == (3, sharp.num_features)
    x = digits.x_test / 255
    for _ in range(3):
        x = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    right = [(judge(x).argmax(1) == digits.y_test).double().mean() for judge in (sharp, robust)]
    assert right[0] < 0.8 < 0.9 < right[1]


def test_classifier_is_trained_once_for_each_data_set(small, tmp_path, monkeypatch):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = metrics.classifier(small, tmp_path)
    assert torch.equal(before, torch.get_rng_state())   # a run goes on as if nothing had been
    again = metrics.classifier(small, tmp_path / "elsewhere", quiet=True)   # the same from scratch
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(),
                                                 strict=True))
    monkeypatch.setattr(metrics, "train", lambda *_: pytest.fail("trained again"))
    cached = metrics.classifier(small, tmp_path)
    assert torch.equal(first.head.weight, cached.head.weight)
    for other in (small._replace(y_train=1 - small.y_train), small._replace(name="other"),
                  small._replace(x_train=small.x_train ^ 1)):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            metrics.classifier(other, tmp_path)


def numpy_frechet(a, b):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2), by symmetric eigenvalues."""
    def root(matrix):
        values, vectors = np.linalg.eigh(matrix)
        return vectors * np.sqrt(values.clip(0)) @ vectors.T
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    middle = root(root(c1) @ c2 @ root(c1))
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * middle)


def test_frechet_distance_of_gaussians_and_of_a_set_to_itself():
    x = torch.randn(500, 3, dtype=torch.double)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T   # mean 0, covariance I, exactly
    scale, shift = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([0.0, 1.0, 3.0])
    expected = shift.square().sum() + (scale - 1).square().sum()   # of diagonal covariances
    assert metrics.frechet(x, x * scale + shift) == pytest.approx(expected.item(), rel=1e-6)
    assert metrics.frechet(x, x) == pytest.approx(0, abs=1e-6)


def test_fid_agrees_with_numpy_and_does_not_hang_on_batches(digits, cache):
    name, meter, floor = metrics.fid_meter(digits, cache=cache, quiet=True)
    assert name == "fid_classifier_297"
    judge = metrics.classifier(digits, cache)
    with torch.no_grad():
        real, train, noise = (judge.features(x).double().numpy() for x in (
            digits.x_test / 255, torch.cat([*metrics.pick(digits.x_train, 297)]),
            torch.rand(297, 1, 28, 28, generator=torch.Generator().manual_seed(0))))
    assert floor == pytest.approx(numpy_frechet(real, train), rel=1e-3)
    x = torch.rand(297, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert metrics.fid(meter, [x]) == pytest.approx(numpy_frechet(real, noise), rel=1e-3)
    assert metrics.fid(meter, x.split(7)) == pytest.approx(metrics.fid(meter, [x]), rel=1e-4)
    assert metrics.fid(meter, [digits.x_test / 255]) == pytest.approx(0, abs=1e-3)
    assert 0 < floor < 0.2 * metrics.fid(meter, [x])
    assert math.isfinite(metrics.fid(meter, [x[:5]]))   # far fewer pictures than features


def test_kernel_distance_is_the_unbiased_mmd():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 5)), rng.normal(0.5, 1, (60, 5))
    def k(x, y):
        return (x @ y.T / 5 + 1) ** 3
    off = ~np.eye(60, dtype=bool)
    expected = k(a, a)[off].mean() + k(b, b)[off].mean() - 2 * k(a, b).mean()
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    assert metrics.kernel(a, b) == pytest.approx(expected, rel=1e-6)
    assert metrics.kernel(a, b) == metrics.kernel(a, b)
    more = torch.randn(1200, 5, dtype=torch.double)   # more than a subset: subsets are drawn
    torch.manual_seed(1)
    first = metrics.kernel(more, more + 1)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert metrics.kernel(more, more + 1) == first > 0
    assert torch.equal(before, torch.get_rng_state())


def test_precision_and_recall_point_by_point():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(40, 2)), rng.normal(1.5, 0.7, (30, 2))
    def share_within(points, others):
        radius = [np.sort(np.linalg.norm(others - other, axis=1))[3] for other in others]
        return np.mean([any(np.linalg.norm(point - other) <= r for other, r in
                            zip(others, radius, strict=True)) for point in points])
    expected = share_within(fake, real), share_within(real, fake)
    real, fake = torch.from_numpy(real), torch.from_numpy(fake)
    assert metrics.precision_recall(real, fake) == pytest.approx(expected)
    assert 0 < expected[1] < expected[0] < 1   # a narrow set: precise, not diverse
    assert metrics.precision_recall(real, real) == (1, 1)
    assert metrics.precision_recall(real, real + 100) == (0, 0)


def test_features_for_pictures_without_labels(small, tmp_path, capsys):
    unlabelled = small._replace(classes=[])
    name, features = metrics.extractor(unlabelled, folder=tmp_path, cache=tmp_path)
    assert name == "autoencoder" and "autoencoder of digits" in capsys.readouterr().out
    found = features(torch.rand(2, 1, 28, 28))
    assert found.shape == (2, features.num_features) and found.dtype == torch.double
    colour = small._replace(x_train=small.x_train.expand(-1, 3, -1, -1), classes=[])
    x = np.random.default_rng(0).integers(0, 256, (250, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "cifar10.npz", x_train=x[:200], y_train=np.arange(200) % 2,
             x_test=x[200:], y_test=np.arange(50) % 2)
    name, features = metrics.extractor(colour, folder=tmp_path, cache=tmp_path)
    assert name == "cifar10" and "classifier of cifar10" in capsys.readouterr().out
    assert features.size == (32, 32) and features(torch.rand(2, 3, 28, 28)).shape[0] == 2


def test_without_inception_a_run_goes_on_and_says_so(digits, cache, monkeypatch, tmp_path, capsys):
    import torchmetrics.image.fid

    def offline(*_):
        raise urllib.error.URLError("no network")
    monkeypatch.setattr(torchmetrics.image.fid, "NoTrainInceptionV3", offline)
    name, _, _ = metrics.fid_meter(digits, "inception", cache=cache)
    out = capsys.readouterr().out
    assert name == "fid_classifier_297" and "Inception" in out and "no network" in out
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    for path in (tmp_path / "weights.pt", tmp_path / "nothing.pt"):
        with pytest.raises(SystemExit) as stop:
            metrics.fid_meter(digits, str(path), cache=cache)
        assert stop.value.code == 2 and f"--fid-features {path}" in capsys.readouterr().err


def test_inception_is_shown_three_channels_of_bytes(monkeypatch):
    import torchmetrics.image.fid
    seen = []

    class Network(torch.nn.Module):
        def __init__(self, *_):
            super().__init__()

        def forward(self, x):
            seen.append(x)
            return torch.zeros(len(x), 2048)
    monkeypatch.setattr(torchmetrics.image.fid, "NoTrainInceptionV3", Network)
    x = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    metrics.inception("inception", "cpu")(x / 255)
    assert seen[0].dtype == torch.uint8 and torch.equal(seen[0], x.expand(-1, 3, -1, -1))


class LinearGaussian:
    """z ~ N(0, I), x|z ~ N(W z + 1/2, s^2 I), so that x ~ N(1/2, W W' + s^2 I), as is q, exact or,
    to give the weights something to do, too wide."""
    classes, s = 0, 0.1

    def __init__(self, wider):
        self.w = 0.05 * torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
        self.wider = wider

    def encode(self, x, y):
        variance = torch.linalg.inv(torch.eye(2) + self.w.T @ self.w / self.s ** 2)
        # the axes of z are turned to those of the posterior, so that it is diagonal
        mu = (x.flatten(1) - 0.5) @ self.w @ variance / self.s ** 2
        return mu, (variance.diagonal() * self.wider).log().expand(len(x), -1)

    def decode(self, z, y):
        mean = (z @ self.w.T + 0.5).view(-1, 1, 4, 4)
        return torch.logit(mean), torch.tensor(math.log(self.s))


@pytest.mark.parametrize("wider, samples, tolerance", [(1, 1, 1e-3), (1.5, 500, 0.02)])
def test_likelihood_of_a_linear_gaussian_model(wider, samples, tolerance):
    model, noise = LinearGaussian(wider), torch.Generator().manual_seed(1)
    u, s, _ = torch.linalg.svd(model.w, full_matrices=False)
    model.w = u * s   # orthogonal columns: the posterior is diagonal
    covariance = model.w @ model.w.T + model.s ** 2 * torch.eye(16)
    p = torch.distributions.MultivariateNormal(torch.full((16,), 0.5), covariance)
    x = p.sample((50,))
    nll = metrics.nll_is(model, x.view(-1, 1, 4, 4), torch.zeros(50).long(), samples, noise)
    assert nll.mean().item() == pytest.approx(-p.log_prob(x).mean().item(), abs=tolerance)


class Coins:
    """Eight Bernoulli pixels, whose logits are a z and, of class 1, one more; q is a guess."""
    classes = 2

    def encode(self, x, y):
        return x.flatten(1).mean(1, keepdim=True) - 0.5, torch.full((len(x), 1), 0.2)

    def decode(self, z, y):
        return (z * torch.linspace(-1, 2, 8) + y[:, None]).view(-1, 1, 2, 4), None


def test_likelihood_of_a_bernoulli_model_by_quadrature():
    """z is one number: the integral is a sum over a grid, which knows nothing of q."""
    x = (torch.rand(20, 1, 2, 4, generator=torch.Generator().manual_seed(0)) > 0.4).float()
    y = torch.arange(20) % 2
    z = torch.linspace(-8, 8, 1601)[:, None]
    log_prior = torch.distributions.Normal(0, 1).log_prob(z[:, 0]) + math.log(0.01)
    expected = []
    for i in range(20):
        logits, _ = Coins().decode(z, y[i].expand(len(z)))
        log_p = log_prior - bernoulli_nll(logits, x[i].expand_as(logits))
        expected.append(-log_p.logsumexp(0).item())
    nll = metrics.nll_is(Coins(), x, y, 50_000, torch.Generator().manual_seed(0))
    assert nll.tolist() == pytest.approx(expected, abs=0.02)


def test_pixel_likelihoods_are_those_of_common():
    logits = torch.tensor([-200.0, -30, -1, 0, 1e-3, 2, 50, 200]).repeat(6, 1).view(6, 2, 2, 2)
    logits = logits * torch.linspace(0.1, 1, 6).view(6, 1, 1, 1)
    x, y, z = torch.rand(2, 2, 2, 2), torch.zeros(2).long(), torch.zeros(2, 3, 1)
    for log_sigma in (None, torch.tensor(-1.0), torch.rand(6, 2, 2, 2)):
        model = SimpleNamespace(decode=lambda z, y, s=log_sigma: (logits, s))
        repeated = x.repeat_interleave(3, 0)
        expected = bernoulli_nll(logits, repeated) if log_sigma is None else \
            gaussian_nll(torch.sigmoid(logits), log_sigma, repeated)
        torch.testing.assert_close(metrics.pixel_nll(model, x, y, z), expected.view(2, 3))


@pytest.fixture(scope="module")
def model(cvae_run):
    return generate.rebuild(load_checkpoint(cvae_run[0]))[0][""]


def test_noise_is_each_images_own(model, digits):
    x, y = digits.x_test[:9] / 255, digits.y_test[:9]
    whole, part, chunked = (
        metrics.nll_is(model, x[:n], y[:n], 50, torch.Generator().manual_seed(3), rows)
        for n, rows in ((9, 1000), (4, 1000), (9, 17)))
    torch.testing.assert_close(whole[:4], part)
    torch.testing.assert_close(whole, chunked)


def test_a_label_tells_at_most_minus_log_p_of_it(model, digits):
    """log p(x|y) - log p(x) <= -log p(y), for every image, and for the estimates exactly."""
    x, y = digits.x_test[:50] / 255, digits.y_test[:50]
    log_prior = torch.linspace(1, 2, 10).log_softmax(0)
    noise = torch.Generator().manual_seed(0)
    given = metrics.log_likelihoods(model, x, 20, noise)
    marginal = (given + log_prior).logsumexp(1, keepdim=True)
    assert (given - marginal <= -log_prior + 1e-4).all()
    noise.manual_seed(0)
    torch.testing.assert_close(given[:, 0], -metrics.nll_is(model, x, 0 * y, 20, noise))
