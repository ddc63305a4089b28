"""Write docs/generated/: a page for each model, estimators, guides, the gallery and the API.

Everything comes from cards, docstrings, signatures and sources: nothing is written twice.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import shutil
from pathlib import Path

import inference
from inference.guides.make import KINDS
from zoo.cards import CARDS, TRAINERS, Card
from zoo.cli.options import FILLED, arguments, estimators, shown

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "generated"
FIGURES = ROOT / "docs" / "figures"
# modules whose public names are the API, beside `inference` itself
MODULES = (
    "inference.elbo", "inference.optim", "inference.networks", "inference.guides",
    "inference.ratios", "inference.training.callbacks", "inference.testing", "zoo.data",
    "zoo.tables", "zoo.em", "zoo.flows", "zoo.mixture",
)  # fmt: skip


def doc(thing: object) -> str:
    """A docstring as a preformatted block."""
    text = inspect.getdoc(thing) or ""
    return f"```text\n{text}\n```\n" if text else ""


def code(thing: object) -> str:
    """The source of a function, without the indentation of its class."""
    return f"```py\n{inspect.cleandoc(chr(10) + inspect.getsource(thing))}\n```\n"  # type: ignore[arg-type]


def options(function: object) -> str:
    """A table of the options of a class or function."""
    found = arguments(function, skip=FILLED)  # type: ignore[arg-type]
    if not found:
        return ""
    rows = "\n".join(f"| `{a.flag}` | {shown(a.default)} | {cell(a.help)} |" for a in found)
    return f"| option | default | what it is |\n|---|---|---|\n{rows}\n"


def cell(text: str) -> str:
    """A text that can stand in a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def linked(text: str) -> str:
    """A paper with a link where it has an arXiv number."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def model(card: Card) -> str:
    """The page of a model."""
    cls = card.load()
    parts = [
        f"# {card.name}\n", f"{card.summary[0].upper()}{card.summary[1:]}. {linked(card.paper)}.\n",
        f"```sh\nzoo fit {card.name} --data {card.data}\n```\n",
        f"- **Trained by** {'; or '.join(TRAINERS[t] for t in card.trainers)}.\n"
        f"- **Known exactly:** {card.exact}.\n",
        "## Story, sites, plates\n", doc(cls),
    ]  # fmt: skip
    if (figure := FIGURES / f"{card.name}.png").exists():
        words = f"What a fit of {card.name} to {card.data} shows"
        parts.append(f"![{words}](../../figures/{figure.name})\n")
    own = [getattr(cls, n, None) for n in ("model", "guide")]
    if all(map(inspect.isfunction, own)):
        parts += ["## The equations as code\n", "The generative story is `model`:\n", code(own[0]),
                  "and what is inferred from a datum is `guide`:\n", code(own[1])]  # fmt: skip
    parts += ["## Options\n", options(cls)]
    told = {
        a.removeprefix("--"): cell(str(b)) for a, b in {**card.images, **card.tables}.items()
    }  # fmt: skip
    if told:
        parts.append("Other defaults where the data call for them: " + ", ".join(
            f"`{k}` {v}" for k, v in told.items()) + ".\n")  # fmt: skip
    if methods := [n for n, f in vars(cls).items() if inspect.isfunction(f) and n[0] != "_"]:
        parts.append(f"Methods: {', '.join(f'`{m}`' for m in methods)}.\n")
    return "\n".join(parts)


def models() -> str:
    """The list of models, by family."""
    lines = ["# Models\n", "Each page has the story, the equations as code, options and a truth.\n"]
    for family, cards in itertools.groupby(CARDS.values(), key=lambda c: c.family):
        lines.append(f"\n## {family}\n")
        lines += [f"- [`{c.name}`](models/{c.name}.md): {c.summary}" for c in cards]
    return "\n".join(lines) + "\n"


def estimator_page() -> str:
    """Every estimator: formula, arguments, whether it is a bound, what it costs."""
    lines = [
        "# Estimators\n",
        "Each turns log weights log p(x, z) − log q(z | x) into a bound in nats and a gradient. "
        "Give one to `fit(..., elbo=...)`, to `--elbo`, or to `pyro.infer.SVI`. The cost of a "
        "step grows with the particles K. [Which one?](../guides/compare-estimators.md)\n",
    ]  # fmt: skip
    for name, cls in estimators().items():
        bound = getattr(cls, "is_bound", None)
        note = {True: "a lower bound on log p(x)", False: "no bound: not comparable in nats"}
        kind = note.get(bound if isinstance(bound, bool) else None, "a bound for some arguments")
        plain = ", ".join(
            str(p) for p in inspect.signature(cls).parameters.values() if p.name != "vectorized"
        )
        lines += [f"## {name}\n", f"`elbo.{cls.__name__}({plain})` — {kind}.\n",
                  doc(cls), f"```sh\nzoo fit vae --elbo {name}\n```\n"]  # fmt: skip
    return "\n".join(lines)


def guide_page() -> str:
    """Every kind of guide."""
    lines = [
        "# Guides for any model\n", doc(inference.make_guide),
        "```sh\nzoo fit my_model.py:model --data my.csv --guide low-rank\n```\n",
    ]  # fmt: skip
    for name, made in KINDS.items():
        cls = getattr(made, "func", made)
        lines += [f"## {name}\n", f"`make_guide(\"{name}\", model)`, a "
                  f"`{cls.__module__}.{cls.__name__}`.\n", doc(cls)]  # fmt: skip
    return "\n".join(lines)


def gallery() -> str:
    """Every example: what it shows, its figure where there is one, and its code."""
    lines = ["# Gallery\n", "Each is one short script: `python examples/NAME.py`.\n"]
    for path in sorted((ROOT / "examples").glob("*.py")):
        text = path.read_text()
        told = (ast.get_docstring(ast.parse(text)) or path.stem).strip()
        first, _, rest = told.partition("\n\n")
        lines += [f"## {path.stem.replace('_', ' ')}\n", first + "\n"]
        if rest:
            lines.append(f"```text\n{rest}\n```\n")
        if (figure := FIGURES / f"{path.stem}.png").exists():
            lines.append(f"![{cell(first)}](../figures/{figure.name})\n")
        body = text.split('"""', 2)[-1].strip()
        lines.append(f"??? note \"{path.name}\"\n\n" + "\n".join(
            f"    {line}" for line in ["```py", *body.splitlines(), "```"]) + "\n")  # fmt: skip
    return "\n".join(lines)


def api() -> str:
    """Signature and docstring of every public name."""
    lines = ["# API\n", "Every public name, with its signature and docstring.\n", "## inference\n"]
    for name in sorted(inference.__all__):
        thing = getattr(inference, name)
        if not inspect.ismodule(thing):
            lines += entry(name, thing)
    for module in MODULES:
        found = importlib.import_module(module)
        names = getattr(found, "__all__", None) or [
            n for n, v in vars(found).items()
            if n[0] != "_" and callable(v) and str(getattr(v, "__module__", "")).startswith(module)
        ]  # fmt: skip
        lines.append(f"## {module}\n")
        first = (found.__doc__ or "").strip().split("\n\n")[0]
        lines.append(f"{first}\n")
        for name in sorted(names):
            thing = getattr(found, name)
            if callable(thing):
                lines += entry(f"{module}.{name}", thing)
    return "\n".join(lines)


def entry(name: str, thing: object) -> list[str]:
    """One name of the API."""
    try:
        signature = str(inspect.signature(thing))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        signature = "(...)"
    signature = re.sub(r"<([\w. ]+?)(?: object)? at 0x[0-9a-f]+>", r"\1", signature)
    return [f"### {name}\n", f"```py\n{name.rpartition('.')[2]}{signature}\n```\n", doc(thing)]


def main() -> None:
    """Write all pages anew."""
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "models").mkdir(parents=True)
    pages = {
        "models": models(), "estimators": estimator_page(), "guides": guide_page(),
        "gallery": gallery(), "api": api(),
    }  # fmt: skip
    pages |= {f"models/{card.name}": model(card) for card in CARDS.values()}
    for name, text in pages.items():
        (OUT / f"{name}.md").write_text(text, encoding="utf-8")
    print(f"{len(pages)} pages in {OUT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
