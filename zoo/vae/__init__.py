"""Variational autoencoders with one layer of Gaussian latents, without and with a label."""

from .conditional import ConditionalVAE
from .plain import VAE

__all__ = ["VAE", "ConditionalVAE"]
