"""Diffusion: the hierarchical VAE whose encoder only adds noise.

Two pairs share one set of networks and one bound. `DiffusionHierarchy` has all T latents as sites
and shows that it is a hierarchical VAE; `Diffusion` draws single terms of the bound and trains.

The encoder is fixed, with λ_t the log signal-to-noise ratio, falling from t = 1 to T, and
α_t² = sigmoid(λ_t), σ_t² = sigmoid(-λ_t):

    q(z_t | x)       = N(α_t x, σ_t² I)
    q(z_s | z_t, x)  = N(e^{λ_t - λ_s} (α_s / α_t) z_t + c α_s x, c σ_s² I),  c = 1 - e^{λ_t - λ_s}

for s = t - 1. The decoder puts a denoiser's guess x̂(z_t) where the last line has x, so that

    KL(q(z_s | z_t, x) || p(z_s | z_t)) = (e^{λ_s} - e^{λ_t}) |x - x̂(z_t)|² / 2.
"""

from .conditional import ConditionalDiffusion, GuidedDenoiser
from .pairs import Diffusion, DiffusionHierarchy
from .process import Denoiser, Terms, log_snr_schedule

__all__ = [
    "ConditionalDiffusion",
    "Denoiser",
    "Diffusion",
    "DiffusionHierarchy",
    "GuidedDenoiser",
    "Terms",
    "log_snr_schedule",
]
