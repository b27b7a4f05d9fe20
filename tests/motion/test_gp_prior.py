"""Priors and posteriors over latent sequences against dense Gaussians: torch.distributions and Gaussian regression."""

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from dialogue_nerfstudio.motion.gp_prior import TemporalPrior, cauchy_covariance

FRAMES = 20
DIMENSIONS = 3


def _prior(kind: str) -> TemporalPrior:
    return TemporalPrior((3.0, 10.0) if kind == "gp" else None, DIMENSIONS)


def _posterior(prior: TemporalPrior, seed: int, batch: int = 2):
    draw = torch.Generator().manual_seed(seed)
    target = torch.randn(batch, DIMENSIONS, FRAMES, generator=draw, dtype=torch.float64)
    precision = torch.rand(batch, DIMENSIONS, FRAMES, generator=draw, dtype=torch.float64) * 4.0
    return prior.posterior(target, precision)


def _dense(gaussian) -> MultivariateNormal:
    return MultivariateNormal(gaussian.mean(), covariance_matrix=gaussian.covariance())


def _dense_prior(prior: TemporalPrior) -> MultivariateNormal:
    covariance = prior.covariance(FRAMES)
    return MultivariateNormal(torch.zeros(DIMENSIONS, FRAMES, dtype=torch.float64), covariance_matrix=covariance)


def test_cauchy_kernel_is_the_formula_and_positive_definite():
    covariance = cauchy_covariance(torch.arange(200.0, dtype=torch.float64), length_scale=40.0, sigma=2.0, jitter=0.01)
    assert covariance[3, 3].item() == pytest.approx(4.01)
    assert covariance[0, 40].item() == pytest.approx(2.0)
    assert covariance[0, 80].item() == pytest.approx(0.8)
    # The jitter bounds the eigenvalues of a covariance from below.
    assert torch.linalg.eigvalsh(covariance).min() >= 0.01 - 1e-9


@pytest.mark.parametrize("kind", ["gp", "normal"])
def test_single_precision_factor_is_the_covariance(kind):
    prior = TemporalPrior((4.0, 60.0) if kind == "gp" else None, 2)
    factor = prior.factor(100, torch.zeros(1))
    assert factor.dtype == torch.float32
    torch.testing.assert_close(factor @ factor.mT, prior.covariance(100).float(), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("kind", ["gp", "normal"])
def test_posterior_is_gaussian_regression(kind):
    prior = _prior(kind)
    draw = torch.Generator().manual_seed(0)
    target = torch.randn(1, DIMENSIONS, FRAMES, generator=draw, dtype=torch.float64)
    precision = torch.rand(1, DIMENSIONS, FRAMES, generator=draw, dtype=torch.float64) + 0.1
    posterior = prior.posterior(target, precision)
    for d, covariance in enumerate(prior.covariance(FRAMES)):
        gain = covariance @ torch.linalg.inv(covariance + torch.diag(1.0 / precision[0, d]))
        torch.testing.assert_close(posterior.mean()[0, d], gain @ target[0, d])
        torch.testing.assert_close(posterior.covariance()[0, d], covariance - gain @ covariance)


@pytest.mark.parametrize("kind", ["gp", "normal"])
def test_divergences_equal_torch_distributions(kind):
    prior = _prior(kind)
    one, other = _posterior(prior, 1), _posterior(prior, 2)
    expected = kl_divergence(_dense(one), _dense_prior(prior)).sum(-1)
    torch.testing.assert_close(one.kl_to_prior(), expected, rtol=1e-6, atol=1e-8)
    expected = kl_divergence(_dense(one), _dense(other)).sum(-1)
    torch.testing.assert_close(one.kl_to(other), expected, rtol=1e-6, atol=1e-8)


def test_divergence_in_single_precision_is_that_in_double():
    prior = TemporalPrior((4.0, 60.0), DIMENSIONS)
    draw = torch.Generator().manual_seed(3)
    target = torch.randn(2, DIMENSIONS, 100, generator=draw, dtype=torch.float64)
    precision = torch.rand(2, DIMENSIONS, 100, generator=draw, dtype=torch.float64) * 500.0
    double = prior.posterior(target, precision).kl_to_prior()
    single = prior.posterior(target.float(), precision.float()).kl_to_prior()
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=0.0)


def test_nothing_seen_is_the_prior():
    prior = _prior("gp")
    nothing = torch.zeros(1, DIMENSIONS, FRAMES, dtype=torch.float64)
    posterior = prior.posterior(nothing + 7.0, nothing)
    assert posterior.kl_to_prior().abs().max() < 1e-10
    torch.testing.assert_close(posterior.covariance()[0], prior.covariance(FRAMES))


def test_samples_have_the_kernels_covariance():
    prior = _prior("gp")
    samples = prior.sample(40_000, FRAMES, torch.Generator().manual_seed(0), torch.zeros(1, dtype=torch.float64))
    empirical = torch.einsum("bdt,bds->dts", samples, samples) / len(samples)
    # The deviation of an empirical covariance of unit variables is at most √(2 / 40,000) = 0.007.
    torch.testing.assert_close(empirical, prior.covariance(FRAMES), atol=0.035, rtol=0.0)


def test_samples_of_a_posterior_have_its_mean_and_covariance():
    posterior = _posterior(_prior("gp"), 4, batch=1)
    draw = torch.Generator().manual_seed(0)
    white = torch.randn(40_000, DIMENSIONS, FRAMES, generator=draw, dtype=torch.float64)
    samples = posterior.sample(white)
    centred = samples - posterior.mean()
    assert centred.mean(0).abs().max() < 0.03
    empirical = torch.einsum("bdt,bds->dts", centred, centred) / len(samples)
    torch.testing.assert_close(empirical, posterior.covariance()[0], atol=0.03, rtol=0.0)
    torch.testing.assert_close(posterior.sample(white[:1], scale=0.0), posterior.mean())


def test_continuation_is_conditioning_by_brute_force():
    posterior = _posterior(_prior("gp"), 5, batch=1)
    overlap = 6
    known = torch.randn(1, DIMENSIONS, overlap, dtype=torch.float64)
    target = torch.zeros(1, DIMENSIONS, FRAMES, dtype=torch.float64)
    precision = torch.zeros_like(target)
    target[..., :overlap], precision[..., :overlap] = known, 1e8
    continued = posterior.given(target, precision)
    mean, covariance = posterior.mean()[0], posterior.covariance()[0]
    for d in range(DIMENSIONS):
        cross, own = covariance[d, overlap:, :overlap], covariance[d, :overlap, :overlap]
        gain = cross @ torch.linalg.inv(own)
        expected_mean = mean[d, overlap:] + gain @ (known[0, d] - mean[d, :overlap])
        expected_covariance = covariance[d, overlap:, overlap:] - gain @ cross.T
        torch.testing.assert_close(continued.mean()[0, d, overlap:], expected_mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            continued.covariance()[0, d, overlap:, overlap:], expected_covariance, atol=1e-4, rtol=1e-4
        )
    white = torch.randn(1, DIMENSIONS, FRAMES, dtype=torch.float64)
    torch.testing.assert_close(continued.sample(white)[..., :overlap], known, atol=1e-3, rtol=0.0)


def test_factors_follow_length_scales_that_a_checkpoint_brings():
    prior, other = _prior("gp"), TemporalPrior((2.0, 5.0, 9.0), DIMENSIONS)
    like = torch.zeros(1, dtype=torch.float64)
    before = prior.factor(FRAMES, like)
    assert prior.factor(FRAMES, like) is before
    prior.load_state_dict(other.state_dict())
    torch.testing.assert_close(prior.factor(FRAMES, like), other.factor(FRAMES, like))
    assert not torch.allclose(prior.factor(FRAMES, like), before)
