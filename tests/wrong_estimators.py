"""Estimators that are wrong on purpose, each in its own way: what the checks must find."""

import math

import torch

from inference import elbo


class IWAEWithoutScore(elbo.IWAE):
    """Sticking the landing on IWAE, which is biased (Tucker et al. 2019, section 3)."""

    def surrogate(self, weights):
        w = torch.softmax(weights.log_weight(), 0).detach()
        return weights.total((w * (weights.log_weight() + weights.fixed().log_q())).sum(0))


class SumsRows(elbo.Estimator):
    """Wrong: the logarithm of a mean over particles of weights that are summed over rows."""

    def bound(self, weights):
        return torch.logsumexp(weights.elbo(), 0) - math.log(self.particles)


class ScaleInside(elbo.Estimator):
    """Wrong: N/B inside the logarithm."""

    def bound(self, weights):
        log_w = weights.scale * weights.log_weight()
        return (torch.logsumexp(log_w, 0) - math.log(self.particles)).sum()


class ForgetsTheGuide(elbo.Estimator):
    """Wrong: log p(x, z) alone."""

    def bound(self, weights):
        return weights.total(weights.log_p()).mean()


class Optimist(elbo.Estimator):
    """Wrong: the largest weight is no lower bound, and this one says that it is."""

    def bound(self, weights):
        return weights.total(weights.log_weight().amax(0) + 0.0)


class NoScore(elbo.Trace):
    """Wrong: discrete sites get no gradient."""

    def score(self, weights):
        return 0.0


class HostSync(elbo.Trace):
    """Right, but a Python number in the middle cannot be traced."""

    def bound(self, weights):
        value = super().bound(weights)
        return value if value.item() < 0 else value + 0.0


class Damped(elbo.Trace):
    """Wrong by two per cent in the guide."""

    def surrogate(self, weights):
        return self.bound(weights) + 0.02 * weights.elbo().mean() + self.score(weights)
