"""The catalogue: what can be modelled, after which paper, how it is trained, what is known exactly.

One card for each model. Classes are imported when asked for, so that listing them is quick.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRAINERS = {
    "elbo": "stochastic gradients of a bound on log p(x)",
    "likelihood": "stochastic gradients of log p(x) itself, which is the ELBO without latents",
    "closed-form": "the optimum, directly",
    "em": "expectation maximisation",
    "variational-bayes": "coordinate ascent of the ELBO",
    "adversarial": "against a critic",
    "implicit": "stochastic gradients of an ELBO in which a critic stands for log q(z | x)",
}


@dataclass(frozen=True)
class Card:
    """A model's entry in the catalogue.

    Attributes:
        name: what the command calls it.
        path: `module:Class`.
        summary: what it is, in one line.
        paper: authors, year and number.
        exact: what is known in closed form, or counted exactly.
        family: the heading it is listed under.
        trainers: keys of `TRAINERS`; the first is the default.
        data: the set it is tried on when none is named.
        elbo: the estimator it is fitted by when none is named.
        steps: updates when none are named, on that set.
        images, tables: options that replace the class's own defaults where the data are images, or
            are not.
        pixels: how pixels are treated by default where the data are images.
        settings: defaults of the trainer's options other than its own.
        bound: whether minus the loss is a bound on log p(x), so that nats can be compared.
        standardise: whether the columns of a table are standardised by default.
    """

    name: str
    path: str
    summary: str
    paper: str
    exact: str
    family: str
    trainers: tuple[str, ...] = ("elbo",)
    data: str = "digits"
    elbo: str = "trace"
    steps: int = 10_000
    images: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)
    pixels: str = "dynamic"
    settings: Mapping[str, Any] = field(default_factory=dict)
    bound: bool = True
    standardise: bool = True

    @property
    def trained(self) -> str:
        """The ways to train the model, in a few words."""
        words = {
            "elbo": f"ELBO: {self.elbo}" if self.bound else "reconstruction",
            "likelihood": "maximum likelihood",
            "closed-form": "closed form",
            "em": "EM",
            "variational-bayes": "variational Bayes",
            "adversarial": "a critic",
            "implicit": "ELBO by a critic",
        }
        return ", or ".join(words.get(t, t) for t in self.trainers)

    def load(self) -> type:
        """Return the class."""
        module, _, name = self.path.partition(":")
        return getattr(importlib.import_module(module), name)


LATENT, HIERARCHY, QUANTISED = "One layer of latents", "Many layers of latents", "Codes"
DENSITY, FLOW, ORDER = "Classical densities", "Flows", "Autoregressive"
IMPLICIT, AUTO = "Without a density", "Autoencoders"

GAUSSIAN = {"likelihood": "gaussian", "latent_dim": 2}

_ALL = (
    Card(
        "vae",
        "zoo.vae:VAE",
        "variational autoencoder with one Gaussian latent; its prior and guide may be flows",
        "Kingma & Welling 2014, arXiv:1312.6114",
        "linear networks: probabilistic PCA; unit guide: KL = |mean|²/2",
        LATENT,
        tables=GAUSSIAN,
    ),
    Card(
        "conditional-vae",
        "zoo.vae:ConditionalVAE",
        "VAE whose decoder and encoder are told the label",
        "Kingma et al. 2014, arXiv:1406.5298",
        "a decoder that ignores the label is the VAE",
        LATENT,
        tables=GAUSSIAN,
    ),
    Card(
        "semi-supervised-vae",
        "zoo.semisupervised:SemiSupervisedVAE",
        "VAE whose label is a latent, averaged exactly, where it is missing",
        "Kingma et al. 2014, arXiv:1406.5298",
        "a decoder that ignores the latent is a finite mixture; its log p(x) is a sum",
        LATENT,
        elbo="enum",
        steps=3_000,
        settings={"labels": 100},
        tables=GAUSSIAN,
    ),
    Card(
        "hierarchical-vae",
        "zoo.hierarchical:HierarchicalVAE",
        "stacked latents, inferred upwards",
        "Burda et al. 2016, arXiv:1509.00519",
        "one layer: the VAE's loss, to rounding",
        HIERARCHY,
        images={"latent_dims": (16, 8)},
        tables={"likelihood": "gaussian", "latent_dims": (4, 2)},
    ),
    Card(
        "ladder-vae",
        "zoo.hierarchical:LadderVAE",
        "stacked latents, inferred downwards with the model's own networks",
        "Sønderby et al. 2016, arXiv:1602.02282",
        "a layer without evidence follows its prior at no cost",
        HIERARCHY,
        images={"latent_dims": (16, 8)},
        tables={"likelihood": "gaussian", "latent_dims": (4, 2)},
    ),
    Card(
        "diffusion",
        "zoo.diffusion:Diffusion",
        "hierarchy whose encoder only adds noise; terms of the bound drawn at random",
        "Ho et al. 2020, arXiv:2006.11239; Kingma et al. 2021, arXiv:2107.00630",
        "Gaussian data: the bound rises to log p(x) with the number of steps",
        HIERARCHY,
        data="two-spirals",
        pixels="none",
        tables={
            "timesteps": 256,
            "log_snr_max": 8.0,
            "log_snr_min": -8.0,
            "data_scale": 2.0,
            "fourier": 4,
        },
    ),
    Card(
        "conditional-diffusion",
        "zoo.diffusion:ConditionalDiffusion",
        "diffusion that is told the label or attributes; its draws can be guided",
        "Ho & Salimans 2022, arXiv:2207.12598",
        "Gaussian data given a label: the best denoiser; without guidance, the diffusion",
        HIERARCHY,
        pixels="none",
        tables={"data_scale": 2.0, "fourier": 4},
    ),
    Card(
        "linear-autoencoder",
        "zoo.autoencoder:LinearAutoencoder",
        "affine encoder and decoder",
        "Baldi & Hornik 1989, Neural Networks 2:53",
        "its projector is that of principal component analysis",
        AUTO,
        pixels="none",
        tables={"latent_dim": 1},
        bound=False,
    ),
    Card(
        "autoencoder",
        "zoo.autoencoder:Autoencoder",
        "deep autoencoder with a deterministic code",
        "Hinton & Salakhutdinov 2006, Science 313:504",
        "the VAE's reconstruction term as its noise goes to zero",
        AUTO,
        pixels="none",
        tables={"latent_dim": 1},
        bound=False,
    ),
    Card(
        "sparse-autoencoder",
        "zoo.autoencoder:SparseAutoencoder",
        "autoencoder with a Laplace prior on its code",
        "Olshausen & Field 1996, Nature 381:607",
        "orthonormal decoder: the best code is a soft threshold",
        AUTO,
        pixels="none",
        tables={"latent_dim": 8},
        bound=False,
    ),
    Card(
        "denoising-autoencoder",
        "zoo.autoencoder:DenoisingAutoencoder",
        "autoencoder that is shown damaged data",
        "Vincent et al. 2010, JMLR 11:3371",
        "linear: shrinks each principal direction by s²/(s² + level²)",
        AUTO,
        pixels="none",
        tables={"latent_dim": 1},
        bound=False,
    ),
    Card(
        "vqvae",
        "zoo.vqvae:VQVAE",
        "autoencoder whose code is a few entries of a learned codebook",
        "van den Oord et al. 2017, arXiv:1711.00937",
        "identity networks: k-means; KL = slots · log(codes)",
        QUANTISED,
        pixels="none",
        tables={"slots": 1, "codes": 32, "code_dim": 2},
    ),
    Card(
        "mixture",
        "zoo.mixture:GaussianMixture",
        "Bayesian mixture of Gaussians, assignments summed out",
        "Bishop 2006, ch. 10.2",
        "one component: the evidence",
        DENSITY,
        trainers=("variational-bayes", "elbo"),
        data="eight-gaussians",
        steps=3_000,
        pixels="none",
        tables={"components": 12},
    ),
    Card(
        "ml-mixture",
        "zoo.mixture:MaximumLikelihoodMixture",
        "mixture of Gaussians with parameters for weights, means and covariances",
        "Dempster, Laird & Rubin 1977; Bishop 2006, ch. 9.2",
        "the ELBO is the log-likelihood, the objective of EM",
        DENSITY,
        trainers=("em", "likelihood"),
        data="eight-gaussians",
        steps=3_000,
        pixels="none",
        tables={"components": 8},
    ),
    Card(
        "gaussian",
        "zoo.density:Gaussian",
        "one multivariate normal distribution",
        "Bishop 2006, eq. 2.118-2.122",
        "sample mean and covariance; log-likelihood -N/2 (D log 2π + log|S| + D)",
        DENSITY,
        trainers=("closed-form", "likelihood"),
        data="moons",
        pixels="none",
    ),
    Card(
        "kernel-density",
        "zoo.density:KernelDensity",
        "a Gaussian on each datum",
        "Scott 1992; leave-one-out: Duin 1976",
        "equal to scipy's gaussian_kde",
        DENSITY,
        trainers=("closed-form",),
        data="two-spirals",
        pixels="none",
        tables={"bandwidth": "leave-one-out"},  # Scott's is for one hump
    ),
    Card(
        "marginals",
        "zoo.pushforward:Marginals",
        "independent columns by their inverse CDFs, one of the derived distributions",
        "Devroye 1986, ch. II.2",
        "bins of equal mass; densities of derived distributions to 1e-10",
        DENSITY,
        trainers=("closed-form",),
        data="pinwheel",
        pixels="none",
    ),
    Card(
        "real-nvp",
        "zoo.flows:RealNVP",
        "affine coupling layers: density and draw in one pass each",
        "Dinh et al. 2017, arXiv:1605.08803",
        "log-determinant equals autodiff's; integrates to 1",
        FLOW,
        trainers=("likelihood",),
        data="moons",
        pixels="dequantised",
    ),
    Card(
        "maf",
        "zoo.flows:MAF",
        "masked autoregressive flow with affine layers",
        "Papamakarios et al. 2017, arXiv:1705.07057",
        "log-determinant equals autodiff's; integrates to 1",
        FLOW,
        trainers=("likelihood",),
        data="pinwheel",
        pixels="dequantised",
    ),
    Card(
        "spline-flow",
        "zoo.flows:NeuralSplineFlow",
        "rational-quadratic splines, autoregressive or coupling",
        "Durkan et al. 2019, arXiv:1906.04032",
        "log-determinant equals autodiff's; integrates to 1",
        FLOW,
        trainers=("likelihood",),
        data="checkerboard",
        steps=5_000,
        pixels="dequantised",
    ),
    Card(
        "conditional-flow",
        "zoo.flows:ConditionalFlow",
        "masked autoregressive flow that is told the label or attributes",
        "Papamakarios et al. 2017, arXiv:1705.07057",
        "Gaussian data given a label: one affine layer is exact",
        FLOW,
        trainers=("likelihood",),
        data="moons",
        pixels="none",
    ),
    Card(
        "made",
        "zoo.autoregressive:MADE",
        "masked network over binary variables, in one order or the average of several",
        "Germain et al. 2015, arXiv:1502.03509",
        "Jacobian mask; the probabilities of 2^D outcomes sum to 1",
        ORDER,
        trainers=("likelihood",),
    ),
    Card(
        "pixel-cnn",
        "zoo.autoregressive:PixelCNN",
        "gated masked convolutions, pixel after pixel",
        "van den Oord et al. 2016, arXiv:1606.05328",
        "Jacobian mask; the probabilities of 2^D outcomes sum to 1",
        ORDER,
        trainers=("likelihood",),
        steps=2_000,
    ),
    Card(
        "pixel-rnn",
        "zoo.autoregressive:PixelRNN",
        "long short-term memory from row to row, all columns at once",
        "van den Oord et al. 2016, arXiv:1601.06759",
        "Jacobian mask; the probabilities of 2^D outcomes sum to 1",
        ORDER,
        trainers=("likelihood",),
        steps=2_000,
    ),
    Card(
        "gan",
        "zoo.gan:GAN",
        "a generator fitted against a critic",
        "Goodfellow et al. 2014, arXiv:1406.2661",
        "the game's value at the optimum is -log 4",
        IMPLICIT,
        trainers=("adversarial",),
        data="eight-gaussians",
        pixels="none",
        images={"output": "sigmoid", "latent_dim": 16},
        bound=False,
    ),
    Card(
        "conditional-gan",
        "zoo.gan:ConditionalGAN",
        "GAN that is told the label, or attributes",
        "Mirza & Osindero 2014, arXiv:1411.1784",
        "a generator that ignores the label is the GAN",
        IMPLICIT,
        trainers=("adversarial",),
        pixels="none",
        images={"output": "sigmoid", "latent_dim": 16},
        bound=False,
    ),
    Card(
        "bigan",
        "zoo.gan:BiGAN",
        "GAN with an encoder: the critic judges data and latents together",
        "Dumoulin et al. 2017, arXiv:1606.00704; Donahue et al. 2017, arXiv:1605.09782",
        "linear, as many latents as columns: the encoder is the generator's inverse",
        IMPLICIT,
        trainers=("adversarial",),
        pixels="none",
        images={"output": "sigmoid", "latent_dim": 16},
        tables={"latent_dim": 2},
        bound=False,
    ),
    Card(
        "implicit-vae",
        "zoo.implicit:ImplicitVAE",
        "VAE whose guide computes the latent from the datum and noise, without a density",
        "Mescheder et al. 2017, arXiv:1701.04722",
        "linear-Gaussian model: KL(q || p) at the optimum",
        IMPLICIT,
        trainers=("implicit",),
        images={"latent_dim": 4, "noise_dim": 16},
        tables={"likelihood": "gaussian"},
        bound=False,
    ),
)

CARDS: dict[str, Card] = {card.name: card for card in _ALL}


def card(name: str) -> Card:
    """Return the card called `name`.

    Raises:
        ValueError: there is no such model; the nearest names are given.
    """
    key = name.lower().replace("_", "-")
    if key not in CARDS:
        near = difflib.get_close_matches(key, CARDS, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(CARDS)}."
        raise ValueError(f"model: there is no {name!r}; {hint}")
    return CARDS[key]
