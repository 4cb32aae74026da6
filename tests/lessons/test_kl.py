"""Claim: gaussian_kl is the Kullback-Leibler divergence of the posterior q from the prior p, in
nats per image.

    KL(N(mu, sigma^2) || N(0, 1)) = 1/2 (mu^2 + sigma^2 - log sigma^2 - 1),  summed over the latents

It is held against numbers found by hand, against torch.distributions, against its definition, the
mean of log q(z) - log p(z) over draws from q, and against finite differences.
"""
import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from common import gaussian_kl

PRIOR = Normal(0.0, 1.0)


@pytest.fixture
def posterior():
    """mu and logvar of five images, with three latents each."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)


def test_by_hand():
    """The prior is 0 nats from itself, N(1, 1) half a nat, and N(0, 4) 1/2 (4 - log 4 - 1)."""
    mu = torch.tensor([[0.0], [1.0], [0.0]])
    logvar = torch.tensor([[0.0], [0.0], [math.log(4)]])
    expected = torch.tensor([0.0, 0.5, 0.5 * (4 - math.log(4) - 1)])
    torch.testing.assert_close(gaussian_kl(mu, logvar), expected)
    assert gaussian_kl(mu, logvar)[0] == 0


def test_positive_everywhere_else(posterior):
    mu, logvar = posterior
    assert (gaussian_kl(mu, logvar) > 0).all()


def test_equals_torch_distributions(posterior):
    mu, logvar = posterior
    q = Normal(mu, torch.exp(0.5 * logvar))
    torch.testing.assert_close(gaussian_kl(mu, logvar), kl_divergence(q, PRIOR).sum(1))


def test_equals_the_mean_of_log_q_minus_log_p(posterior):
    """Monte Carlo: within five standard errors of the mean over 100,000 draws."""
    torch.manual_seed(0)
    mu, logvar = posterior
    q = Normal(mu, torch.exp(0.5 * logvar))
    z = q.sample((100_000,))                                        # (100000, 5, 3)
    log_ratio = (q.log_prob(z) - PRIOR.log_prob(z)).sum(2)          # (100000, 5)
    standard_error = log_ratio.std(0) / math.sqrt(len(z))
    error = gaussian_kl(mu, logvar) - log_ratio.mean(0)
    assert (error.abs() < 5 * standard_error).all()


def test_gradient(posterior):
    """d KL / d mu = mu, and d KL / d logvar = 1/2 (exp(logvar) - 1); gradcheck takes finite
    differences."""
    mu, logvar = posterior
    mu = mu.double().requires_grad_()
    logvar = logvar.double().requires_grad_()
    gaussian_kl(mu, logvar).sum().backward()
    torch.testing.assert_close(mu.grad, mu.detach())
    torch.testing.assert_close(logvar.grad, 0.5 * (logvar.detach().exp() - 1))
    assert torch.autograd.gradcheck(gaussian_kl, (mu, logvar))
