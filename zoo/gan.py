"""Generators without a density: a latent pushed through a network; and a critic for them."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from inference.networks import MLP
from zoo.networks import (
    Condition,
    ConvCritic,
    ConvGenerator,
    check_image_shape,
    check_rows,
    check_sizes,
    encoder_for,
    mean_and_scale,
)

OUTPUTS = {"linear": lambda h: h, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


class GAN(nn.Module):
    """Generative adversarial network (Goodfellow et al. 2014, arXiv:1406.2661).

        z_i ~ N(0, I)                     (n, L)
        x_i = generator(z_i)              (n, D)

    Sites: z, and x, which is deterministic and has no density. Plates: data. There is no guide:
    `inference.ratios.fit_adversarial` fits it against a critic. Truth: where the generator is
    right, the best critic is zero and the game's value E[log D] + E[log(1 − D)] is −log 4.

    Args:
        data_dim: D.
        latent_dim: L.
        hidden: widths of the generator's hidden layers.
        act: name of the activation (`inference.networks.ACTIVATIONS`).
        output: `"linear"`, `"sigmoid"` for data in [0, 1], or `"tanh"` for data in [-1, 1].
        networks: `"mlp"`, or `"conv"`, which needs `image_shape`: transposed convolutions, and
            a critic with spectral norm (`zoo.networks.ConvGenerator`, `ConvCritic`).
        image_shape: (channels, height, width) of a row.
        width: channels of the convolutions.

    Raises:
        ValueError: a size below 1, an unknown name, an `image_shape` that does not give D values.
    """

    extra = 0  # values beside x that the critic sees

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 8,
        hidden: Sequence[int] = (128, 128),
        act: str = "relu",
        output: str = "linear",
        networks: str = "mlp",
        image_shape: Sequence[int] | None = None,
        width: int = 32,
    ):
        super().__init__()
        check_sizes(data_dim=data_dim, latent_dim=latent_dim, hidden=hidden, width=width)
        if output not in OUTPUTS:
            raise ValueError(f"output: expected one of {list(OUTPUTS)}, got {output!r}.")
        if networks not in ("mlp", "conv"):
            raise ValueError(f"networks: expected mlp or conv, got {networks!r}.")
        self.data_dim, self.latent_dim, self.output = data_dim, latent_dim, output
        self.shape: tuple[int, int, int] | None = None
        self.width = width
        inputs = latent_dim + self.told
        if networks == "conv":
            self.shape = check_image_shape(networks, image_shape, data_dim)
            self.generator: nn.Module = ConvGenerator(inputs, self.shape, width)
        else:
            self.generator = MLP(inputs, hidden, data_dim, act)

    @property
    def told(self) -> int:
        """Numbers beside the latent that the generator sees."""
        return 0

    def critic(self) -> nn.Module | None:
        """Return the critic that suits convolutions, untrained; None leaves it to the trainer."""
        return None if self.shape is None else ConvCritic(self.shape, self.extra, self.width)

    def decode(self, z: Tensor) -> Tensor:
        """x = generator(z): (..., L) -> (..., D)."""
        return OUTPUTS[self.output](self.generator(z))

    def model(self, n: int) -> Tensor | tuple[Tensor, Tensor]:
        """Draw z and x for n data; returns x (n, D)."""
        return self._draw(n)[0]

    def _draw(self, n: int) -> tuple[Tensor, Tensor]:
        """x and z as sites: (n, D), (n, L)."""
        pyro.module("gan", self)
        zero = next(self.parameters()).new_zeros(self.latent_dim)
        with pyro.plate("data", n):
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))  # (K, n, L)
            return pyro.deterministic("x", self.decode(z), event_dim=1), z

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """`n` draws of x: (n, D)."""
        return self.decode(next(self.parameters()).new_empty(n, self.latent_dim).normal_())


class BiGAN(GAN):
    """GAN with an encoder (ALI: Dumoulin et al. 2017, arXiv:1606.00704; BiGAN: arXiv:1605.09782).

        q(x, z) = p_data(x) q(z | x),    z = encoder(x), or N(mean(x), diag sd(x)²)
        p(x, z) = N(z; 0, I) δ(x − generator(z))

    One critic tells (data, inferred latents) from (draws, their latents); generator and encoder
    make the two alike. Where they are, the encoder inverts the generator, and the codes of data
    follow N(0, I): a latent two-sample test shows how far they do.

    Sites: z, x, as in `GAN`. Truth: L = D and both linear, data N(0, Σ): the joints are equal if
    and only if generator A and encoder B have A Aᵀ = Σ and B = A⁻¹.

    Args:
        posterior: `"point"`, the encoder gives z (BiGAN); `"normal"`, it gives mean and standard
            deviation of z (ALI).

    All others as for `GAN`.

    Raises:
        ValueError: as for `GAN`; another posterior.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 8,
        hidden: Sequence[int] = (128, 128),
        act: str = "relu",
        output: str = "linear",
        networks: str = "mlp",
        image_shape: Sequence[int] | None = None,
        width: int = 32,
        posterior: str = "point",
    ):
        super().__init__(data_dim, latent_dim, hidden, act, output, networks, image_shape, width)
        if posterior not in ("point", "normal"):
            raise ValueError(f"posterior: expected point or normal, got {posterior!r}.")
        self.extra, self.posterior = latent_dim, posterior
        codes = latent_dim * (1 if posterior == "point" else 2)
        self.encoder = encoder_for(networks, data_dim, hidden[::-1], codes, self.shape, act)

    def model(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw z and x for n data; returns x (n, D) and z (n, L)."""
        return self._draw(n)

    def infer(self, x: Tensor) -> Tensor:
        """Draw z of q(z | x): (..., D) -> (..., L)."""
        h = self.encoder(x)
        if self.posterior == "point":
            return h
        mean, sd = mean_and_scale(h)
        return mean + sd * torch.randn_like(mean)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return the mean of q(z | x): (B, D) -> (B, L)."""
        check_rows(x, self.data_dim)
        return self.encoder(x)[..., : self.latent_dim]

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """generator(encoder(x)): (B, D) -> (B, D)."""
        return self.decode(self.encode(x))


class ConditionalGAN(GAN):
    """GAN that is told a label or attributes (Mirza & Osindero 2014, arXiv:1411.1784, eq. 2).

        y_i ~ the training data's conditions,   z_i ~ N(0, I),   x_i = generator(z_i, y_i)

    The critic judges x beside the condition's numbers (`zoo.networks.Condition`). It is fitted to
    `beside(x, y)`, whose rows are those that the model returns.

    Sites: z, x, as in `GAN`, and index, which says whose condition is taken. Truth: a condition
    that says nothing leaves the GAN.

    Args:
        classes: the number of labels, where there are no attributes.
        binary, real: how many attributes are 0 or 1, and how many are real numbers.

    All others as for `GAN`.
    """

    table: Tensor  # the conditions of the training data, as numbers, (N, width)

    def __init__(
        self,
        data_dim: int,
        classes: int = 10,
        latent_dim: int = 8,
        hidden: Sequence[int] = (128, 128),
        act: str = "relu",
        output: str = "linear",
        networks: str = "mlp",
        image_shape: Sequence[int] | None = None,
        width: int = 32,
        binary: int = 0,
        real: int = 0,
    ):
        self.condition_width = (condition := Condition(classes, binary, real)).width
        super().__init__(data_dim, latent_dim, hidden, act, output, networks, image_shape, width)
        self.condition, self.classes = condition, classes
        self.extra = condition.width
        self.register_buffer("table", torch.zeros(1, condition.width))

    @property
    def told(self) -> int:
        """Numbers beside the latent that the generator sees."""
        return self.condition_width

    def beside(self, x: Tensor, y: Tensor) -> Tensor:
        """Rows for the critic, and their conditions kept to draw from: (N, D) -> (N, D + width).

        Raises:
            ValueError: conditions of another shape or range.
        """
        self.condition.check(y, x.shape[:-1])
        self.condition.validate(y)
        self.table = self.condition.features(y, x)
        return torch.cat([x, self.table], -1)

    def model(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw conditions, z and x for n data; returns x (n, D) and the numbers of y (n, width)."""
        pyro.module("gan", self)
        zero = next(self.parameters()).new_zeros(self.latent_dim)
        with pyro.plate("data", n):
            last = len(self.table) - 1
            u = pyro.sample("index", dist.Uniform(zero.new_zeros(()), 1.0))
            told = self.table[(u * (last + 1)).long().clamp(max=last)]  # (K, n, width)
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))  # (K, n, L)
            x = pyro.deterministic("x", super().decode(torch.cat([z, told], -1)), event_dim=1)
        return x, told

    def decode(self, z: Tensor, y: Tensor | int) -> Tensor:  # type: ignore[override]
        """x = generator(z, y): (..., L) and conditions of as many rows, or one label for all."""
        y = torch.as_tensor(y, device=z.device)
        self.condition.validate(y)
        told = self.condition.features(y, z).expand(*z.shape[:-1], -1)
        return super().decode(torch.cat([z, told], -1))

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | int | None = None) -> Tensor:
        """`n` draws of x given y: (n, D); by default given conditions of the training data."""
        z = next(self.parameters()).new_empty(n, self.latent_dim).normal_()
        if y is not None:
            return self.decode(z, y)
        told = self.table[torch.randint(len(self.table), (n,), device=z.device)]
        return super().decode(torch.cat([z, told], -1))


class GANCritic(nn.Module):
    """A network v(x) that tells data from the generator's draws: (..., D) -> (...).

    Where it is trained on a divergence, v estimates log p_data(x) / p_generator(x) in nats.

    Args:
        data_dim: D.
        hidden: widths of the hidden layers.
        act: name of the activation.
    """

    def __init__(self, data_dim: int, hidden: Sequence[int] = (128, 128), act: str = "silu"):
        super().__init__()
        check_sizes(data_dim=data_dim, hidden=hidden)
        self.network = MLP(data_dim, hidden, 1, act)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (...)."""
        return self.network(x).squeeze(-1)
