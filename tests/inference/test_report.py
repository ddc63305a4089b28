"""Reports from arrays: what is shown for what a model offers, exact numbers, a whole page."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from inference import fit
from inference.estimate import Estimate
from inference.judging.evaluation import Evaluation, evaluate
from inference.training.state import History
from zoo.report import (
    Metric,
    Report,
    Subject,
    as_json,
    draw,
    images,
    metrics,
    pictures,
    theme,
    write,
)
from zoo.report.families import _ellipses


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(theme, "DPI", 20)


def table(width=3, rows=40, labels=None, shape=None):
    """A data set of `rows` data in every split, as far as a report looks."""
    x = torch.rand(3, rows, width)
    y = None if labels is None else torch.arange(rows) % labels
    splits = dict(zip(("train", "valid", "test"), x))
    return SimpleNamespace(**splits, **{f"{s}_labels": y for s in splits}, image_shape=shape)


def evaluation(**changed):
    estimates = {
        "elbo": Estimate(-10.0, 0.5), "reconstruction": Estimate(-8.0, 0.4),
        "log_px": Estimate(-9.0, 0.25), "gap": Estimate(1.0, 0.3),
        "bits_per_dim": Estimate(0.5, 0.25 / 18),
    }  # fmt: skip
    values = dict(
        estimates=estimates, kl_estimates={"z": Estimate(2.0, 0.1)},
        kl_per_dim={"z": torch.tensor([1.5, 0.5])}, log_px_mc_se=0.01,
        particles=64, active_units={"z": 1},
        khat=torch.tensor([0.1, 0.6, 0.8, 0.2]), log_px_per_datum=torch.zeros(4), n=4,
    )  # fmt: skip
    return Evaluation(**{**values, **changed})


class Autoencoder:
    """Everything an encoder and a decoder offer."""

    latent_dim = 2

    def encode(self, x):
        return x[..., :2]

    def decode(self, z):
        return z.repeat_interleave(8, -1).sigmoid()

    def reconstruct(self, x):
        return self.decode(self.encode(x))


def names(subject):
    return [p.name for p in pictures(subject)]


# ---------------------------------------------------------------- what is shown


def test_nothing_is_shown_of_a_model_that_offers_nothing():
    assert names(Subject(object(), table())) == []
    assert metrics(Subject(object(), table())) == []


def test_draws_alone_make_a_report():
    model = SimpleNamespace(sample=lambda n: torch.rand(n, 3))
    assert names(Subject(model, table())) == ["samples"]
    assert names(Subject(SimpleNamespace(sample=lambda n: torch.rand(n, 2)), table(2))) == [
        "samples"
    ]


def test_an_autoencoder_of_images_shows_codes_and_reconstructions():
    found = names(Subject(Autoencoder(), table(16, labels=3, shape=(1, 4, 4))))
    assert found == ["reconstructions", "latent_space", "latent_grid", "walks"]


def test_a_density_on_the_plane_is_drawn_with_the_components_of_a_mixture():
    class Mixture:
        def distribution(self):
            d = torch.distributions
            parts = d.MultivariateNormal(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.eye(2))
            return d.MixtureSameFamily(d.Categorical(torch.tensor([0.9, 0.1])), parts)

        def responsibilities(self, x):
            return torch.full((len(x), 2), 0.5)

    subject = Subject(Mixture(), table(2))
    assert names(subject) == ["density", "responsibilities"]
    weights = [e[0] for e in _ellipses(subject)]
    assert weights == pytest.approx([0.9, 0.1])
    drawing = pictures(subject)[0].drawing
    assert theme.png(drawing)[:4] == b"\x89PNG"


def test_a_reverse_process_a_codebook_and_a_critic_are_shown():
    model = SimpleNamespace(
        reverse=lambda n: torch.randn(8, n, 2), usage=lambda x: torch.tensor([0.5, 0.5, 0.0])
    )
    ratio = SimpleNamespace(plot=lambda: None, js_divergence=SimpleNamespace(value=0.1, se=0.02))
    subject = Subject(model, table(2), ratio=ratio)
    assert names(subject) == ["reverse", "usage", "critic"]
    told = {m.key: m for m in metrics(subject)}
    assert told["perplexity"].value == pytest.approx(2.0)
    assert (told["js"].value, told["js"].se) == (0.1, 0.02)


def test_every_layer_of_a_hierarchy_is_shown():
    one = Subject(object(), table(), evaluation=evaluation())
    layers = {"z_1": Estimate(2.0, 0.1), "z_2": Estimate(1.0, 0.1)}
    two = Subject(object(), table(), evaluation=evaluation(kl_estimates=layers))
    assert names(one) == ["kl_per_dimension", "khat"]
    assert names(two) == ["kl_per_layer", "kl_per_dimension", "khat"]


def test_labels_go_to_the_methods_that_take_them():
    seen = {}

    class Conditional:
        classes = 3

        def sample(self, n, y=None):
            seen["sample"] = y
            return torch.rand(n, 16)

        def encode(self, x, y):
            seen["encode"] = y
            return x[:, :2]

    pictures(Subject(Conditional(), table(16, labels=3, shape=(1, 4, 4))))
    assert seen["sample"].tolist() == torch.arange(3).repeat_interleave(8).tolist()
    assert len(seen["encode"]) == 120


def test_pictures_leave_the_random_state_alone():
    model = SimpleNamespace(sample=lambda n: torch.rand(n, 3))
    before = torch.random.get_rng_state()
    first, second = (Subject(model, table()).call("sample", 4) for _ in range(2))
    torch.random.set_rng_state(before)
    torch.rand(3, 40, 3), torch.rand(3, 40, 3)
    expected = torch.random.get_rng_state()
    torch.random.set_rng_state(before)
    Subject(model, table()).call("sample", 4), table()
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert torch.equal(first, second)


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "value, se, shows",
    [
        (-22.4057, 0.2675, "−22.41 ± 0.27"), (-22.4057, 2.675, "−22.4 ± 2.7"),
        (-22405.7, 26.75, "−22,406 ± 27"), (0.07673, 0.00166, "0.0767 ± 0.0017"),
        (4.67575, None, "4.676"), (563, None, "563"), (-35433.2, None, "−35,433"),
        (0.0, None, "0.000"), (math.inf, None, "inf"), (8, None, "8"),
    ],
)  # fmt: skip
def test_a_number_is_shown_to_two_digits_of_its_standard_error(value, se, shows):
    assert Metric("k", "label", value, "nats", se).number == shows


def test_bounds_are_told_with_units_and_standard_errors():
    subject = Subject(object(), table(16, shape=(1, 4, 4)), evaluation=evaluation())
    told = {m.key: m for m in metrics(subject)}
    assert (told["log_px"].value, told["log_px"].se) == (-9.0, 0.25)
    assert told["elbo"].unit == "nats per datum" and told["kl_z"].value == 2.0
    assert told["active_units_z"].unit == "of 2"
    assert told["khat_above_0.7"].value == 25.0
    assert told["khat_above_0.7"].se == pytest.approx(100 * math.sqrt(0.25 * 0.75 / 4))
    assert told["bits_per_dim"].se == pytest.approx(0.25 / 9 * 0.5)


def test_without_latents_the_likelihood_is_exact():
    exact = evaluation(kl_estimates={}, kl_per_dim={}, active_units={}, khat=None)
    (only,) = metrics(Subject(object(), table(), evaluation=exact))
    assert only.label == "log p(x)" and only.note == "exact, 4 test data"


def test_what_is_no_bound_is_told_by_its_errors_alone():
    data = table(16, shape=(1, 4, 4))
    told = {m.key: m for m in metrics(Subject(Autoencoder(), data), bound=False)}
    again = Autoencoder().reconstruct(data.test)
    square = ((data.test - again) ** 2).mean(-1)
    assert told.keys() == {"squared_error", "variance_explained"}
    assert told["squared_error"].value == pytest.approx(float(square.mean()), rel=1e-6)
    assert told["squared_error"].se == pytest.approx(float(square.std()) / math.sqrt(40), rel=1e-6)


def test_a_density_without_a_run_is_told_by_its_held_out_mean():
    normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), 1.0), 1)
    data = table()
    (only,) = metrics(Subject(normal, data))
    log_p = normal.log_prob(data.test)
    assert only.value == pytest.approx(float(log_p.mean()), rel=1e-6)
    assert only.se == pytest.approx(float(log_p.std()) / math.sqrt(40), rel=1e-6)


def test_json_holds_value_error_and_unit():
    told = as_json([Metric("a", "A", 1.5, "nats", 0.5), Metric("b", "B", 2)])
    assert told == {"a": 1.5, "a_se": 0.5, "a_unit": "nats", "b": 2}


# ---------------------------------------------------------------- the page


def page(**changed):
    picture = pictures(Subject(SimpleNamespace(sample=lambda n: torch.rand(n, 2)), table(2)))
    values = dict(
        title="vae on digits", subtitle="what it is", command="zoo fit vae --out 'a <b>'",
        metrics=[Metric("elbo", "ELBO", -1.0, "nats", 0.1, "a bound")], pictures=picture,
        facts={"Data": {"set": "digits"}}, notes=["Stopped early."],
    )  # fmt: skip
    return Report(**{**values, **changed})


def test_the_page_is_one_file_with_everything_inside(tmp_path):
    written = write(page(), tmp_path)
    text = written.read_text()
    for words in ("vae on digits", "what it is", "−1.00 ± 0.10", "a bound", "Stopped early.",
                  "digits", "zoo fit vae --out &#39;a &lt;b&gt;&#39;"):  # fmt: skip
        assert words in text, words
    assert text.count("data:image/png;base64,") == 2  # light and dark
    assert not re.search(r'(src|href|srcset)="(?!data:)', text)
    assert 'name="viewport"' in text and "prefers-color-scheme" in text
    assert (tmp_path / "figures" / "samples.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "metrics.json").read_text())["elbo"] == -1.0


def test_every_image_says_what_it_is(tmp_path):
    for alt in re.findall(r'alt="([^"]*)"', write(page(), tmp_path).read_text()):
        assert len(alt) > 20


def test_an_empty_report_is_still_a_page(tmp_path):
    text = write(Report("nothing"), tmp_path).read_text()
    assert "<h1>nothing</h1>" in text and "<table" not in text and "None" not in text


# ---------------------------------------------------------------- drawings


@pytest.mark.parametrize(
    "drawing",
    [
        draw.curves(np.arange(3.0), {"loss": np.array([3.0, np.nan, 1.0])}, "nats", mark=2),
        draw.curves(np.arange(99.0), {"loss": np.full(99, 2.0)}, "nats"),
        images.image_grid(np.random.rand(5, 3, 4, 4), columns=2, labels=["0", "1", "2"]),
        images.image_pairs(np.random.rand(3, 1, 4, 4), np.random.rand(3, 1, 4, 4)),
        draw.scatter({"a": (np.random.rand(9, 2), np.arange(9)), "b": (np.zeros((1, 2)), None)}),
        draw.histograms({"c": {"data": np.zeros(5), "draws": np.ones(5)}}),
        draw.bars({"z": np.arange(40.0)}, "nats"),
        draw.amounts({"z_1": 1.0, "z_2": 0.0}, "nats"),
        draw.khat_plot(np.array([0.1, np.inf, np.nan, 1.4])),
        draw.khat_plot(np.array([np.nan])),
        images.stages({"t = 1": np.random.rand(4, 1, 3, 3)}, images=True),
    ],
)  # fmt: skip
def test_drawings_cope_with_what_comes(drawing):
    for colours in (theme.LIGHT, theme.DARK):
        assert theme.png(drawing, colours)[:4] == b"\x89PNG"


def test_one_component_is_outlined_at_two_standard_deviations():
    figure = draw.responsibilities(
        np.zeros((1, 2)), np.ones((1, 1)), [(1.0, np.array([1.0, 2.0]), np.diag([4.0, 1.0]))]
    )(theme.LIGHT)
    (ellipse,) = [c for c in figure.axes[0].collections if hasattr(c, "get_widths")]
    assert ellipse.get_widths().tolist() == [8.0]  # the diameter: four standard deviations
    assert ellipse.get_heights().tolist() == [4.0]
    assert abs(math.sin(math.radians(float(ellipse.get_angles()[0])))) < 1e-12


# ---------------------------------------------------------------- a real fit


def test_a_fit_of_somebody_elses_pair_has_a_report(tmp_path):
    """Two Pyro functions and no method at all: the loss and the bounds are still told."""
    import pyro
    import pyro.distributions as dist

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc * x, 0.5**0.5))

    x = torch.randn(50)
    run = fit(model, guide, (x,), steps=20, compile=False, progress=False)
    data = table(1)
    subject = Subject(
        run, data, run.history, run.unit, evaluation=evaluate(run, x, particles=30)
    )  # fmt: skip
    assert names(subject) == ["loss", "khat"]
    report = Report("mine", metrics=metrics(subject), pictures=pictures(subject))
    assert "log p(x)" in write(report, tmp_path).read_text()


def test_history_columns_become_lines_without_a_bound_that_repeats_the_elbo():
    rows = [
        {"step": s, "loss": 2.0 / s, "seconds": s, "valid_elbo": -1.0, "valid_bound": -1.0}
        for s in range(1, 5)
    ]
    (picture,) = pictures(Subject(object(), table(), History(rows)))
    figure = picture.drawing(theme.LIGHT)
    labels = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert labels == ["loss", "held-out −ELBO"]
    del rows[0]["valid_bound"]  # told only where rounding made it differ
    (picture,) = pictures(Subject(object(), table(), History(rows)))
    figure = picture.drawing(theme.LIGHT)
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == labels
    rows[-1]["valid_bound"] = -3.0
    (picture,) = pictures(Subject(object(), table(), History(rows)))
    labels = [t.get_text() for t in picture.drawing(theme.LIGHT).axes[0].get_legend().get_texts()]
    assert labels == ["loss", "held-out −ELBO", "held-out −bound"]
