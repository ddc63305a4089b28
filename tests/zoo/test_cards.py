"""The catalogue: every card's class is built from its default data, with options that are told."""

import dataclasses
import inspect

import pytest
import torch

from zoo.cards import CARDS, TRAINERS, card
from zoo.cli.build import build, validate
from zoo.cli.fit import fit_command, how, resolved, trainer_arguments, what
from zoo.cli.options import arguments
from zoo.cli.train import TRAINERS as FUNCTIONS
from zoo.data import SETS, load

EACH = pytest.mark.parametrize("entry", CARDS.values(), ids=list(CARDS))


def prepared(entry):
    """The set that a card is tried on, small, with its pixels as a step sees them."""
    data = load(entry.data)
    if data.image_shape and entry.pixels != "none":
        data = load(entry.data, pixels=entry.pixels)
    labels = None if data.train_labels is None else data.train_labels[:500]
    return dataclasses.replace(data, train=data.train[:500], train_labels=labels)


@EACH
def test_a_card_builds_its_model_from_its_data_and_options(entry):
    data = prepared(entry)
    model = build(entry, resolved(entry, {}, data), data, seed=0)
    assert isinstance(model, entry.load())
    validate(model, data)


@EACH
def test_a_card_says_what_there_is_to_say(entry):
    assert entry.name == entry.name.lower().replace("_", "-")
    assert entry.data in SETS
    assert set(entry.trainers) <= set(TRAINERS) and set(entry.trainers) <= set(FUNCTIONS)
    for text in (entry.summary, entry.paper, entry.exact):
        assert text and "\n" not in text and not text.endswith(".")
    assert inspect.getdoc(entry.load())


@EACH
def test_no_two_options_of_a_model_have_one_name(entry):
    names = [p.name for p in fit_command(entry).params]
    assert len(names) == len(set(names))
    own = {a.name for a in arguments(entry.load(), skip=("data_dim", "data", "seed"))}
    others = {a.name for a in (*arguments(what), *arguments(how), *trainer_arguments(entry))}
    assert not own & others


@EACH
def test_every_option_of_a_model_is_explained(entry):
    told = {p.name: p.help for p in fit_command(entry).params}
    silent = [name for name, help in told.items() if name != "help" and not (help or "").strip()]
    assert not silent, f"{entry.name}: {silent} have no help"


@EACH
def test_the_same_seed_builds_the_same_weights(entry):
    data = prepared(entry)
    options = resolved(entry, {}, data)
    states = []
    for drawn in (1, 2):  # whatever has been drawn before
        torch.manual_seed(drawn)
        model = build(entry, options, data, seed=0)
        # a distribution made from its data has no weights, but it is what it gives to them
        states.append(model.state_dict() if isinstance(model, torch.nn.Module)
                      else {"log_prob": model.log_prob(data.test[:8])})  # fmt: skip
    a, b = states
    assert a and a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_defaults_follow_the_kind_of_data():
    moons, digits = load("moons"), load("digits")
    assert resolved(card("vae"), {}, moons) | {"likelihood": "gaussian", "latent_dim": 2} == (
        resolved(card("vae"), {}, moons)
    )
    assert resolved(card("vae"), {}, digits)["likelihood"] == "bernoulli"
    assert resolved(card("vae"), {"likelihood": "laplace"}, moons)["likelihood"] == "laplace"
    assert resolved(card("gan"), {}, digits)["output"] == "sigmoid"
    assert resolved(card("gan"), {}, moons)["output"] == "linear"


def test_a_table_of_labels_tells_a_conditional_model_how_many_classes():
    data = dataclasses.replace(load("digits"), train_labels=torch.tensor([0, 1, 2]))
    assert resolved(card("conditional-vae"), {}, data)["classes"] == 3


def test_an_unknown_model_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean vae"):
        card("vea")
    with pytest.raises(ValueError, match="known: vae, "):
        card("xyzzyx")
    assert card("Real_NVP").name == "real-nvp"
