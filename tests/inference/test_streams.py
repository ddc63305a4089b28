"""Data that are read by and by: the same numbers as in memory, in bounded memory."""

import logging

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from inference import fit, fit_many
from inference.training import batches
from inference.training.sources import source_of

X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(50.0)
OPTIONS = {"batch_size": 8, "lr": 0.05, "steps": 20, "compile": False, "progress": False}


def model(x, y=None, size=None):
    with pyro.plate("data", size or len(x), subsample=x):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        mean = z if y is None else z + 0.01 * y[:, None]
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


def guide(x, y=None, size=None):
    slope = pyro.param("slope", torch.zeros(3))
    with pyro.plate("data", size or len(x), subsample=x):
        pyro.sample("z", dist.Normal(slope * x, 0.7).to_event(1))


def same(a, b):
    assert a.losses == b.losses and torch.equal(a.params["slope"], b.params["slope"])


class Pairs(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return X[i], Y[i]


class Rows(IterableDataset):
    def __init__(self, rows=50):
        self.rows = rows

    def __len__(self):
        return self.rows

    def __iter__(self):
        return iter(X[: self.rows])


@pytest.fixture
def saved(tmp_path):
    np.save(tmp_path / "x.npy", X.numpy())
    return tmp_path / "x.npy"


def test_what_can_be_read_in_any_order_gives_the_numbers_of_memory(saved, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = __import__("pyarrow").table({f"x{i}": X[:, i].numpy() for i in range(3)})
    (tmp_path / "parts").mkdir()
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=7)
    parquet.write_table(table.slice(0, 20), tmp_path / "parts" / "0.parquet")
    parquet.write_table(table.slice(20), tmp_path / "parts" / "1.parquet")
    whole = fit(model, guide, X, **OPTIONS)
    mapped = np.load(saved, mmap_mode="r")
    for data in (saved, str(saved), mapped, tmp_path / "x.parquet", tmp_path / "parts"):
        same(fit(model, guide, data, **OPTIONS), whole)
    both = fit(model, guide, (X, Y), **OPTIONS)
    for data in ((mapped, Y), Pairs(), TensorDataset(X, Y)):
        same(fit(model, guide, data, **OPTIONS), both)


def test_several_updates_a_call_and_a_resumed_run_read_the_same_rows(saved, tmp_path):
    more = {**OPTIONS, "valid": X[:6], "valid_every": 5, "seed": 2}
    whole = fit(model, guide, X, **more)
    part = fit(model, guide, saved, **{**more, "steps": 13}, folder=tmp_path / "run")
    assert part.steps == 13
    again = {"resume": tmp_path / "run", "steps": 20, "valid": X[:6]}
    same(fit(model, guide, saved, **again), whole)
    np.save(saved, X.numpy() + 1)
    with pytest.raises(ValueError, match="expected the values that the run was fitted with"):
        fit(model, guide, saved, **again)
    order = batches.Batches(source_of(np.asarray(X), 8) or (X,), 8, 0)
    mapped = batches.Batches(source_of(saved.with_name("x.npy"), 8), 8, 0)
    for repeats in (1, 3, 3, 2, 1):
        (a,), (b,) = order.next(repeats)[0], mapped.next(repeats)[0]
        assert torch.equal(a + 1, b)


@pytest.mark.slow
def test_the_step_is_compiled_all_the_same(saved):
    options = {**OPTIONS, "compile": True, "repeats": 4}
    run = fit(model, guide, saved, **options)
    assert run.compiled and run.not_replayed is None
    same(run, fit(model, guide, X, **options))


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(TensorDataset(X), batch_size=7), DataLoader(X, batch_size=20, shuffle=True),
        Rows(), DataLoader(Rows(), batch_size=11),
    ],
)  # fmt: skip
def test_a_stream_is_cut_into_batches_of_one_size(data):
    sizes, rows = set(), []

    def seen(x, size=None):
        sizes.add((len(x), size))
        rows.append(x)
        model(x, None, size)

    options = {**OPTIONS, "steps": 12, "check": False}
    run = fit(seen, guide, data, **options)
    assert sizes == {(8, 50)} and run.unit == "nats per datum"
    epoch = torch.cat(rows[-12:])[:44]  # the first batch was taken to try the pair
    assert len({tuple(r) for r in epoch.tolist()}) >= 38
    assert fit(model, guide, data, **options).losses == run.losses


def test_a_stream_that_is_resumed_begins_anew_and_says_so(tmp_path, caplog):
    loader = DataLoader(TensorDataset(X), batch_size=7)
    fit(model, guide, loader, folder=tmp_path / "run", **OPTIONS)
    with caplog.at_level(logging.WARNING):
        run = fit(model, guide, loader, resume=tmp_path / "run", steps=25)
    assert run.steps == 25 and "a stream cannot go back to where the run was at step 20" in (
        caplog.text
    )


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield X[0]


@pytest.mark.parametrize(
    "data, error, words",
    [
        ("nowhere.npy", FileNotFoundError, "nowhere.npy: expected a file, found none"),
        (__file__, ValueError, r"expected a .npy or .parquet file"),
        (Endless(), ValueError, "Endless does not say how many rows there are in all"),
        (["a", "b"], TypeError, "expected a tensor"),
        (DataLoader(["a", "b"]), ValueError, "expected items that are tensors"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(data, error, words):
    with pytest.raises(error, match=words):
        fit(model, guide, data, **OPTIONS)


def test_values_are_checked_as_they_come(tmp_path):
    bad = X.numpy().copy()
    bad[40, 1] = np.nan
    np.save(tmp_path / "x.npy", bad)
    with pytest.raises(ValueError, match="values that are NaN or infinite"):
        fit(model, guide, tmp_path / "x.npy", **OPTIONS)
    np.save(tmp_path / "x.npy", X.numpy())
    with pytest.raises(TypeError, match="the model takes"):
        fit(guide, guide, (np.load(tmp_path / "x.npy", mmap_mode="r"), Y, 50, 50), **OPTIONS)
    with pytest.raises(ValueError, match=r"batch_size: expected 1 \.\. 50"):
        fit(model, guide, tmp_path / "x.npy", **{**OPTIONS, "batch_size": 51})
    with pytest.raises(ValueError, match="data: expected values in memory"):
        fit_many(model, guide, tmp_path / "x.npy", fits=2, steps=2, compile=False)
    table = pytest.importorskip("pyarrow").table({"a": ["x", "y"]})
    __import__("pyarrow.parquet").parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="column 'a': expected numbers"):
        fit(model, guide, tmp_path / "t.parquet", **OPTIONS)
