"""The formulas against an independent source: torch.distributions, Monte Carlo, known values."""
import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

import vae
from common import active_units, bernoulli_nll, gaussian_kl


@pytest.fixture
def posterior():
    torch.manual_seed(0)
    return torch.randn(5, 3), torch.randn(5, 3)   # mu, logvar


def test_kl_is_that_of_torch_distributions(posterior):
    mu, logvar = posterior
    expected = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(gaussian_kl(mu, logvar), expected)


def test_kl_is_the_mean_of_log_q_minus_log_p(posterior):
    mu, logvar = posterior
    q = Normal(mu, torch.exp(0.5 * logvar))
    z = q.sample((100_000,))
    sampled = (q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(2)
    error = sampled.std(0) / math.sqrt(len(z))
    assert ((gaussian_kl(mu, logvar) - sampled.mean(0)).abs() < 5 * error).all()


def test_kl_is_zero_at_the_prior_and_positive_elsewhere(posterior):
    zero = torch.zeros(4, 3)
    assert gaussian_kl(zero, zero).tolist() == [0, 0, 0, 0]
    assert (gaussian_kl(*posterior) > 0).all()


def test_gradient_of_kl(posterior):
    mu, logvar = (value.double().requires_grad_() for value in posterior)
    gaussian_kl(mu, logvar).sum().backward()
    torch.testing.assert_close(mu.grad, mu.detach())
    torch.testing.assert_close(logvar.grad, 0.5 * (logvar.detach().exp() - 1))
    assert torch.autograd.gradcheck(gaussian_kl, (mu, logvar))   # finite differences


def test_bernoulli_nll_is_that_of_torch_distributions():
    torch.manual_seed(0)
    logits, x = torch.randn(5, 1, 4, 4), torch.rand(5, 1, 4, 4).round()
    expected = -Bernoulli(logits=logits).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(bernoulli_nll(logits, x), expected)


def test_bernoulli_nll_stays_finite_where_the_sigmoid_is_0_or_1():
    wrong = bernoulli_nll(torch.tensor([[200.0, -200.0]]), torch.tensor([[0.0, 1.0]]))
    assert wrong.tolist() == [400]


def test_a_unit_is_active_when_its_mean_varies():
    torch.manual_seed(0)
    mu = 3 + torch.randn(10_000, 4) * torch.tensor([1, 0.04, 0.0025, 0]).sqrt()   # variances
    assert active_units(mu) == 2


def schedule(**flags):
    args = SimpleNamespace(beta=2.0, beta_warmup=None, epochs=8, **flags)
    return [vae.beta_at(epoch, args) for epoch in range(1, 9)]


def test_beta_schedules_at_known_epochs():
    assert schedule(beta_schedule="constant") == [2] * 8
    assert schedule(beta_schedule="linear") == pytest.approx([2 * i / 7 for i in range(8)])
    assert schedule(beta_schedule="cyclical") == [0, 2] * 4


def test_beta_warmup_is_the_epoch_that_reaches_beta():
    args = SimpleNamespace(beta=2.0, beta_schedule="linear", beta_warmup=3, epochs=8)
    assert [vae.beta_at(epoch, args) for epoch in range(1, 9)] == [0, 1, 2, 2, 2, 2, 2, 2]
