"""The pictures of a model: each looks for what it needs, and is left out where that lacks."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from . import draw, families, images
from .draw import Picture
from .representation import map_of
from .subject import Subject


def pictures(subject: Subject) -> list[Picture]:
    """Return every picture that the subject allows, in the order in which a page shows them."""
    made = (make(subject) for make in PICTURES)
    return [picture for picture in made if picture is not None]


def loss(s: Subject) -> Picture | None:
    """Draw the loss, and the held-out bound with its sign turned."""
    if len(s.history) < 2:
        return None
    columns = [c for c in s.history.columns if c not in ("step", "seconds")]
    if "pair_loss" in columns:
        return _implicit_loss(s)
    lines = {
        c.replace("_", " "): s.history[c] for c in columns if not c.startswith(("valid_", "kl_"))
    }
    for c in columns:
        gap = s.history[c] - s.history["valid_elbo"] if c == "valid_bound" else np.ones(1)
        same = np.nanmax(np.abs(gap)) <= 1e-4 * np.nanmax(np.abs(s.history[c]))  # but for rounding
        if c.startswith("valid_") and not same:
            exact = s.offers("log_prob") and getattr(s.model, "orders", 1) == 1
            word = "log p(x)" if exact else "ELBO"
            name = c.removeprefix("valid_").replace("elbo", word)
            lines[f"held-out −{name}" if s.bound else "held-out loss"] = -s.history[c]
    text = "Mean over each interval of steps; lower is better."
    if s.kept is not None:
        text += " The parameters kept are those of the best held-out value."
    if any("divergence" in c for c in columns):
        text = "Both players and the divergence that the critic sees. No curve here is a bound."
    if s.data is not s.fitted:
        text += f" Of standardised columns: {-s.log_det:+.3f} nats against the numbers."
    return Picture("loss", "Loss", text, draw.curves(s.history["step"], lines, s.unit, s.kept))


def _implicit_loss(s: Subject) -> Picture:
    """Draw the ELBO that the players estimate, since their losses have nothing in common."""
    text = "The ELBO with its sign turned and its KL, as the critic estimates them: no bounds. The "
    text += "last part trains the critic alone."
    lines = {"−ELBO ≈": s.history["pair_loss"], "KL ≈": s.history["kl"]}
    return Picture("loss", "Loss", text, draw.curves(s.history["step"], lines, s.unit, s.kept))


def samples(s: Subject) -> Picture | None:
    """Draw samples: images, points beside data, or columns."""
    if not s.offers("sample"):
        return None
    if s.shape is not None:
        return _image_samples(s)
    if s.width == 2:
        x, _ = s.held_out()
        panels = {"data": (x.numpy(), None), "draws": (s.call("sample", len(x)).numpy(), None)}
        text = f"{len(x):,} held-out points and as many draws from the model."
        return Picture("samples", "Draws", text, draw.scatter(panels, s.axes), wide=True)
    x, _ = s.held_out()
    drawn = s.call("sample", len(x))
    columns = {
        s.names[d]: {"data": x[:, d].numpy(), "draws": drawn[:, d].numpy()}
        for d in range(min(s.width, 6))
    }
    text = f"Held-out data and draws from the model, the first {len(columns)} of {s.width} columns."
    return Picture("samples", "Draws", text, draw.histograms(columns), wide=True)


def _image_samples(s: Subject) -> Picture:
    columns, labels, names = 8, None, None
    if s.conditional:
        _, y = s.held_out()
        classes = int(getattr(s.model, "classes", 10 if y is None else int(y.max()) + 1))
        classes = min(classes, 10)
        labels = torch.arange(classes).repeat_interleave(columns)
        names = [str(c) for c in range(classes)]
    n = 64 if labels is None else len(labels)
    both = s.prior(n, labels)
    text = f"{n} draws of x" + (", one label in each row." if names else ".")
    if both is not None:
        text = f"Means E[x | z] for {n} draws of the latent from its prior" + (
            ", one label in each row." if names else "."
        )
        x = both[1]
    else:
        x = s.call("sample", n, labels=labels)
    return Picture(
        "samples",
        "Samples from the prior" if both is not None else "Draws",
        text,
        images.image_grid(s.images(x), columns, names),
    )


def prior_draws(s: Subject) -> Picture | None:
    """Draw x with the noise of its likelihood, beside the means."""
    if s.shape is None or s.conditional:
        return None
    both = s.prior(64)
    if both is None or torch.allclose(*both):
        return None
    text = "Draws of x for the same latents as in “Samples from the prior”: with the noise that "
    text += "the likelihood has."
    return Picture("draws", "Draws of x", text, images.image_grid(s.images(both[0])))


def reconstructions(s: Subject) -> Picture | None:
    """Draw held-out data beside their reconstructions."""
    if not s.offers("reconstruct"):
        return None
    x, y = s.held_out()
    if s.shape is not None:
        rows = 40 if s.conditional else 32  # as high as the samples beside them
        x, y = x[:rows], None if y is None else y[:rows]
        again = s.call("reconstruct", x, labels=y)
        text = "Held-out data x, and x̂ = E[x | z] at the mean of the guide."
        return Picture(
            "reconstructions",
            "Reconstructions",
            text,
            images.image_pairs(s.images(x), s.images(again)),
        )
    again = s.call("reconstruct", x, labels=y)
    if s.width == 2:
        panels = {"x": (x.numpy(), None), "x̂": (again.numpy(), None)}
        text = "Held-out data, and E[x | z] at the mean of the guide."
        return Picture(
            "reconstructions", "Reconstructions", text, draw.scatter(panels, s.axes), wide=True
        )
    left = ((x - again) ** 2).mean(0) / x.var(0).clamp_min(1e-12)
    text = "Mean squared error of each column over its variance; 1 is no better than the mean."
    return Picture(
        "reconstructions",
        "Reconstructions",
        text,
        draw.bars({"": left.numpy()}, "squared error / variance", "column, sorted"),
    )


def latent_space(s: Subject) -> Picture | None:
    """Draw the guide's means, in 2-D or along their first two principal directions."""
    if not s.offers("encode"):
        return None
    x, y = s.seen()
    z = s.call("encode", x, labels=y)
    labels = None if y is None else y.numpy()
    coloured = ", coloured by label" if labels is not None else ""
    if z.shape[-1] == 1:
        groups = {"all": z[:, 0].numpy()}
        if labels is not None:
            groups = {f"{c:g}": z[y == c, 0].numpy() for c in np.unique(labels)}
        return Picture(
            "latent_space",
            "Latent space",
            f"Means of the guide{coloured}.",
            draw.histograms({"z": groups}),
        )
    text = f"Means of the guide for {len(z):,} data{coloured}."
    axes = ("z₁", "z₂")
    if z.shape[-1] > 2:
        width = z.shape[-1]
        z, axes = map_of(z)
        text = (
            f"Means of the guide for {len(z):,} data{coloured}, along the first two of "
            f"{width} principal directions; in brackets, the share of their variance."
        )
    drawing = draw.scatter({"": (z.numpy(), labels)}, axes)
    return Picture("latent_space", "Latent space", text, drawing)


def walks(s: Subject) -> Picture | None:
    """Draw ways between held-out images through the latent space."""
    if not s.offers("encode", "decode") or s.shape is None or s.conditional:
        return None
    if "y" in inspect.signature(s.model.decode).parameters:
        return None
    x, _ = s.held_out(12)
    if len(x) < 12:
        return None
    z = s.call("encode", x)
    t = torch.linspace(0, 1, 8)[:, None, None]
    path = s.call("decode", ((1 - t) * z[:6] + t * z[6:]).flatten(0, 1)).unflatten(0, (8, 6))
    columns = {"x": x[:6], **{f"{v:.2f}": p for v, p in zip(t.flatten().tolist(), path)}}
    columns["x'"] = x[6:]
    text = "Held-out images x and x', and between them the decoded points of the straight line "
    text += "from one code to the other. More ways: zoo edit."
    shown = {k: s.images(v) for k, v in columns.items()}
    return Picture("walks", "Through the latent space", text, images.columns_of_images(shown, ""))


def latent_grid(s: Subject) -> Picture | None:
    """Draw the decoded grid of a two-dimensional latent, equal prior mass around each point."""
    if not s.offers("decode", "encode") or s.shape is None or s.conditional:
        return None
    if getattr(s.model, "latent_dim", 0) != 2:
        return None
    steps = 16
    p = (torch.arange(steps) + 0.5) / steps
    axis = torch.special.ndtri(p) if s.offers("sample") else _spread(s)
    second, first = torch.meshgrid(axis.flip(0), axis, indexing="ij")
    z = torch.stack([first, second], -1).reshape(-1, 2)
    text = "E[x | z] on a grid of the latent plane, at quantiles of the prior."
    return Picture(
        "latent_grid", "Latent grid", text, images.image_grid(s.images(s.call("decode", z)), steps)
    )


def _spread(s: Subject) -> Tensor:
    x, y = s.seen()
    z = s.call("encode", x, labels=y)
    return torch.linspace(float(z.quantile(0.02)), float(z.quantile(0.98)), 16)


def kl_per_layer(s: Subject) -> Picture | None:
    """Draw the divergence of each layer of a hierarchy from its prior."""
    if not 2 <= len(s.kl) <= 12:
        return None
    text = "KL(q || p) of each latent: what it tells about a datum. Zero is a layer not used."
    return Picture("kl_per_layer", "KL per layer", text, draw.amounts(s.kl, s.evaluation.unit))  # type: ignore[union-attr]


def kl_per_dimension(s: Subject) -> Picture | None:
    """Draw the divergence of each latent dimension from its prior."""
    groups = s.evaluation.kl_per_dim if s.evaluation is not None else {}
    if not groups or len(groups) > 4:
        return None
    text = (
        "KL of the guide from the prior, dimension by dimension. A dimension at zero is not used."
    )
    return Picture(
        "kl_per_dimension",
        "KL per latent dimension",
        text,
        draw.bars({k: v.cpu().numpy() for k, v in groups.items()}, "nats"),
        wide=len(groups) > 1,
    )


def khat(s: Subject) -> Picture | None:
    """Draw the Pareto k-hat of importance sampling from the guide, datum by datum."""
    if s.evaluation is None or s.evaluation.khat is None:
        return None
    values = s.evaluation.khat.detach().cpu().numpy()
    if len(values) < 2 or not np.isfinite(values).any():
        return None
    above = f"{s.evaluation.khat_above:.0%} of {len(values):,} data"
    text = (
        "Pareto k-hat of each datum's importance weights. Above 0.7 the guide's tails are too "
        f"light for the estimate of {s.evaluation.label}: {above}."
    )
    return Picture("khat", "Pareto k-hat", text, draw.khat_plot(values))


PICTURES: tuple[Callable[[Subject], Picture | None], ...] = (
    families.density, samples, families.reverse, reconstructions, latent_space, latent_grid, walks,
    families.components, prior_draws, loss, kl_per_layer, kl_per_dimension, families.usage, khat,
    families.critic, families.nearest,
)  # fmt: skip
