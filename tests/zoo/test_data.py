import gzip
import math
import struct
import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from zoo.data import SETS, DataSet, binarize, load
from zoo.report import Subject
from zoo.report.numbers import metrics
from zoo.toys import TOYS


def sizes(data):
    return [len(x) for x in (data.train, data.valid, data.test)]


def test_digits_are_every_embedded_digit_once():
    from sklearn.datasets import load_digits

    data = load()
    assert sizes(data) == [1439, 179, 179]
    assert data.data_dim == 64 and data.image_shape == (1, 8, 8) and data.pixels == "none"
    assert data.train.dtype == torch.float32 and data.train_labels.dtype == torch.int64
    assert data.train.min() == 0 and data.train.max() == 1
    published = load_digits()
    labels = torch.cat([data.train_labels, data.valid_labels, data.test_labels])
    ours = {(*x, y) for x, y in zip((16 * data.all).tolist(), labels.tolist(), strict=True)}
    assert ours == {(*x, y) for x, y in zip(published.data.tolist(), published.target.tolist())}


def test_splits_do_not_depend_on_the_seed():
    torch.testing.assert_close(load(seed=1).train, load(seed=2).train, rtol=0, atol=0)


@pytest.mark.parametrize("name", TOYS)
def test_toys(name):
    data, again = load(name), load(name)
    assert sizes(data) == [10_000, 1_000, 1_000] and data.data_dim == 2
    assert data.image_shape is None and data.all.abs().max() < 7
    assert torch.equal(data.train, again.train)
    assert not torch.equal(data.train, load(name, seed=1).train)


@pytest.mark.parametrize("name", [n for n in TOYS if n != "checkerboard"])  # it has no labels
def test_the_parts_of_a_toy_are_equally_likely(name):
    counts = load(name).train_labels.bincount()
    n, c = counts.sum(), len(counts)
    assert c > 1 and (counts - n / c).abs().max() < 5 * math.sqrt(n / c)  # 5 sd of a multinomial


def test_toys_are_what_their_docstrings_say():
    gaussians, rings = load("eight-gaussians"), load("rings")
    n = 1250
    for k in range(8):
        x = gaussians.train[gaussians.train_labels == k]
        centre = 4 * torch.tensor([math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)])
        assert (x.mean(0) - centre).abs().max() < 5 * 0.5 / math.sqrt(n * 0.9)
        assert (x.std(0) - 0.5).abs().max() < 5 * 0.5 / math.sqrt(2 * n * 0.9)
    radius = rings.train.norm(dim=-1) - 0.75 * (rings.train_labels + 1)
    assert radius.abs().max() < 0.6  # 6 standard deviations
    squares = ((load("checkerboard").train + 4) / 2).floor().long()
    assert (squares.sum(-1) % 2 == 0).all() and squares.min() == 0 and squares.max() == 3


def write_idx(path, array, pack=True):
    array = np.asarray(array, dtype=np.uint8)
    raw = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw += array.tobytes()
    if pack:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(raw))
    else:
        path.write_bytes(raw)


def write_mnist(root, folder="MNIST", pack=True, n=12):
    rng = np.random.default_rng(0)
    for part, m in (("train", n), ("t10k", 4)):
        raw = root / folder / "raw"
        write_idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (m, 5, 7)), pack)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(m), pack)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files_are_read_packed_or_not_and_nothing_is_written(tmp_path, name, folder, pack):
    write_mnist(tmp_path, folder, pack)
    before = sorted(tmp_path.rglob("*"))
    data = load(name, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    assert sizes(data) == [10, 2, 4] and data.image_shape == (1, 5, 7)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 5, 7))  # as write_mnist drew them
    torch.testing.assert_close(
        torch.cat([data.train, data.valid]),
        torch.from_numpy(pixels.reshape(12, 35) / 255).float(),
        rtol=2**-23,
        atol=0,
    )
    assert torch.cat([data.train_labels, data.valid_labels]).tolist() == list(range(12))


def test_missing_images_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"MNIST/raw/train-images-idx3-ubyte.*download"):
        load("mnist", tmp_path)
    write_mnist(tmp_path)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        load("mnist", tmp_path)


def test_download_goes_through_torchvision_only_when_asked(tmp_path, monkeypatch):
    module = types.ModuleType("torchvision.datasets")
    module.MNIST = lambda root, download: write_mnist(root)
    parent = types.ModuleType("torchvision")
    parent.datasets = module
    monkeypatch.setitem(sys.modules, "torchvision", parent)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    assert sizes(load("mnist", tmp_path, download=True)) == [10, 2, 4]

    def refuse(root, download):
        raise RuntimeError("no network")

    module.MNIST = refuse
    assert sizes(load("mnist", tmp_path, download=True)) == [10, 2, 4]  # there already
    with pytest.raises(FileNotFoundError, match="no network"):
        load("mnist", tmp_path / "empty", download=True)


def damage(what, path):
    raw = path.read_bytes()
    if what == "truncated":
        path.write_bytes(raw[: len(raw) // 2])
    elif what == "truncated inside":
        path.write_bytes(gzip.compress(gzip.decompress(raw)[:-3]))
    elif what == "not an IDX file":
        path.write_bytes(gzip.compress(b"<html>not found</html>"))
    elif what == "not a gz file":
        path.write_bytes(b"<html>not found</html>")
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize(
    "what", ["truncated", "truncated inside", "not an IDX file", "not a gz file", "empty"]
)
def test_damaged_images(tmp_path, what):
    write_mnist(tmp_path)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz"
    damage(what, path)
    with pytest.raises(ValueError, match=rf"{path} is truncated or damaged") as error:
        load("mnist", tmp_path)
    assert "\n" not in str(error.value)


def test_images_and_labels_of_different_length(tmp_path):
    write_mnist(tmp_path)
    write_idx(tmp_path / "MNIST/raw/train-labels-idx1-ubyte", np.arange(11))
    with pytest.raises(ValueError, match=r"\(12, 5, 7\) and \(11,\)"):
        load("mnist", tmp_path)


def test_published_images(zoo_data):
    data = load("mnist", zoo_data)
    assert sizes(data) == [50_000, 10_000, 10_000] and data.image_shape == (1, 28, 28)
    # The means of the published files: 33.3184 and 33.7912 of 255, given to four decimals.
    train = (50 * data.train.double().mean() + 10 * data.valid.double().mean()) / 60
    assert abs(255 * train - 33.3184) < 1e-4
    assert abs(255 * data.test.double().mean() - 33.7912) < 1e-4
    assert data.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert not list(zoo_data.rglob("*-ubyte"))


def test_old_faithful(zoo_data):
    x = load("old-faithful", zoo_data).all.double()
    assert x.shape == (272, 2)
    # Published values to six decimals; float32 holds them to 4e-6.
    mean, sd = torch.tensor([3.487783, 70.897059]), torch.tensor([1.141371, 13.594974])
    torch.testing.assert_close(x.mean(0), mean.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x.std(0), sd.double(), rtol=1e-6, atol=1e-6)


def test_root_is_taken_from_the_environment(tmp_path, monkeypatch):
    (tmp_path / "old_faithful").mkdir()
    (tmp_path / "old_faithful/faithful.csv").write_text("eruptions,waiting\n1,2\n3,4\n5,6\n")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    assert load("old-faithful").all.shape == (3, 2)
    monkeypatch.delenv("ZOO_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = r"home/\.cache/pyro-zoo/old_faithful/faithful\.csv.*ZOO_DATA"
    with pytest.raises(FileNotFoundError, match=expected):
        load("old-faithful")


@pytest.mark.parametrize("header", ["", '"",a,b\n', "\ufeffx1,x2,x3\r\n"])
def test_csv_with_and_without_a_header(tmp_path, header):
    path = tmp_path / "mine.csv"
    path.write_text(header + "1,2,3.5\n4,5,-6\n7,8,1e2\n\n", encoding="utf-8")
    rows = load(path).all.tolist()
    assert sorted(rows) == [[1, 2, 3.5], [4, 5, -6], [7, 8, 100]]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a,b\n1,2\n3,x\n5,6\n", r"line 3, column 2 \(b\) is 'x', not a number"),
        ("1,2\n3,\n5,6\n", r"column '2' misses 1 of 3 values, the first in row 1"),
        ("1,2\n3\n5,6\n", r"line 2 has 1 cells, the first line of data 2"),
        ("a,b\n1,2\nnan,4\n5,inf\n", r"column 'a' misses 1 of 3 values, the first in row 1"),
        ("a,b\n1,2\n3,4\n5,inf\n", r"1 values are NaN or infinite, the first in row 2, column 1"),
        ("a,b\n1,2020-01-01\n2,2020-01-02\n3,2020-01-03\n", r"'b' holds dates.*--drop b\.$"),
        ("a,b\n1,3 Jan 2020\n2,May 4\n3,5 June\n", r"'b' holds dates.*--drop b\.$"),
        ("a,b\n1,10:20\n2,11:02:30\n3,9:00 am\n", r"'b' holds dates.*--drop b\.$"),
        ("a,b\n1,red\n2,red\n3,blue\n", r"'b' is no number but one of blue, red.*--label b"),
        ("b\nred\nred\nblue\n", r"'b' is no number"),
        ("a,a\n1,2\n3,4\n5,6\n", r"two columns are called 'a'"),
        ("a,b\n", "at least 3 rows"),
        ("", "at least 3 rows"),
    ],
)
def test_csv_mistakes(tmp_path, text, message):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value) and "mine.csv" in str(error.value)


def test_npy(tmp_path):
    path = tmp_path / "mine.npy"
    np.save(path, np.arange(60, dtype=np.float64).reshape(20, 3))
    data = load(str(path))
    assert sizes(data) == [16, 2, 2] and data.data_dim == 3 and data.image_shape is None
    assert torch.equal(data.all.sort(0).values, torch.arange(60.0).reshape(20, 3))
    np.save(path, np.full((10, 3, 4, 5), 255, dtype=np.uint8))
    data = load(path)
    assert data.image_shape == (3, 4, 5) and data.data_dim == 60 and (data.all == 1).all()
    np.save(path, np.ones((10, 4, 5)))
    assert load(path).image_shape == (1, 4, 5)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.array([[1.0, np.nan]] * 4), "'2' misses 4 of 4 values, the first in row 0"),
        (np.array([[1.0, 1e300]] * 4), "4 values are NaN or infinite"),  # too large for float32
        (np.zeros((0, 3)), r"at least 3 rows.*\(0, 3\)"),
        (np.zeros((5, 0)), r"at least 3 rows.*\(5, 0\)"),
        (np.array(["a", "b", "c"]), "expected real numbers"),
        (np.zeros((4, 2), dtype=complex), "expected real numbers"),
        (np.float64(3), r"of shape \(\)"),
        (np.array([{}, {}]), "not a readable .npy"),
    ],
)
def test_npy_mistakes(tmp_path, array, message):
    path = tmp_path / "mine.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        load(path)


def test_damaged_npy(tmp_path):
    path = tmp_path / "mine.npy"
    np.save(path, np.ones((100, 3)))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"mine\.npy is not a readable"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"mine\.npy is not a readable"):
        load(path)
    with pytest.raises(FileNotFoundError, match=r"yours\.npy"):
        load(tmp_path / "yours.npy")


@pytest.mark.parametrize(
    "name, near", [("mnits", "'mnist'"), ("spirals", "'two-spirals'"), ("zzz", "known: ")]
)
def test_unknown_names_are_met_with_suggestions(name, near):
    with pytest.raises(ValueError, match=near):
        load(name)


def test_every_set_is_listed():
    assert set(TOYS) < set(SETS)
    assert load("Two_Spirals").name == "two-spirals"


def test_threshold():
    plain, data = load(), load(pixels="threshold")
    assert torch.equal(data.train, (plain.train > 0.5).float())
    assert torch.equal(data.test, (plain.test > 0.5).float())


def test_static_pixels_are_drawn_once_with_the_seed():
    plain, data = load(), load(pixels="static")
    assert set(data.all.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(data.train, load(pixels="static").train)
    assert not torch.equal(data.train, load(pixels="static", seed=1).train)
    p = plain.train.double()
    sd = (p * (1 - p)).sum(0).sqrt()  # of a pixel's count over the rows, exactly
    assert ((data.train.double().sum(0) - p.sum(0)).abs() <= 5 * sd).all()


def test_dynamic_pixels_are_drawn_at_each_step_and_fixed_for_judging():
    plain, data, static = load(), load(pixels="dynamic"), load(pixels="static")
    assert torch.equal(data.train, plain.train)
    assert torch.equal(data.test, static.test) and torch.equal(data.valid, static.valid)
    first, second = data.transform(data.train), data.transform(data.train)
    assert not torch.equal(first, second) and set(first.unique().tolist()) == {0.0, 1.0}
    assert plain.transform(plain.train) is plain.train


def test_binarize_is_traced_and_draws_anew():
    x = torch.full((50, 40), 0.3)
    graph = make_fx(lambda x: binarize(x), tracing_mode="fake", _allow_non_fake_inputs=True)(x)
    a, b = graph(x), graph(x)
    assert not torch.equal(a, b)
    assert abs(a.mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / x.numel())
    assert binarize(torch.zeros(100)).sum() == 0 and binarize(torch.ones(100)).sum() == 100


def test_pixels_mistakes(tmp_path):
    with pytest.raises(ValueError, match=r"needs values in \[0, 1\], but moons"):
        load("moons", pixels="static")
    with pytest.raises(ValueError, match="'dynamic'"):
        load(pixels="dynamical")


def test_to_moves_every_tensor():
    data = load().to("meta")
    assert isinstance(data, DataSet) and data.image_shape == (1, 8, 8)
    for x in (data.train, data.valid, data.test, data.test_labels):
        assert x.device.type == "meta"
    assert load("checkerboard").to("meta").train_labels is None
    assert repr(load()) == "DataSet(name='digits', image_shape=(1, 8, 8), pixels='none')"


PEOPLE = pd.DataFrame({
    "age": [20, 30, 40, 50, 60, 70], "weight": [50.5, 60, 70, 80, 90, 99],
    "smokes": [True, False, True, False, True, False], "town": list("abcabc"),
})  # fmt: skip


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "feather", "arrow", ""])
def test_a_table_is_the_same_from_everywhere(tmp_path, ending):
    """Truth values are 0 and 1, words that are labels 0, 1, ..., and names are kept."""
    given = tmp_path / f"people.{ending}"
    if ending in ("csv", "tsv"):
        PEOPLE.to_csv(given, index=False, sep="," if ending == "csv" else "\t")
    elif ending:
        (PEOPLE.to_parquet if ending == "parquet" else PEOPLE.to_feather)(given)
    else:
        given = PEOPLE
    data = load(given, label="town")
    assert data.columns == ("age", "weight", "smokes") and data.classes == ("a", "b", "c")
    labels = torch.cat([data.train_labels, data.valid_labels, data.test_labels])
    rows = dict(zip(data.all[:, 0].int().tolist(), labels.tolist()))
    assert rows == {20: 0, 30: 1, 40: 2, 50: 0, 60: 1, 70: 2}
    smokes = dict(zip(data.all[:, 0].int().tolist(), data.all[:, 2].tolist()))
    assert smokes == {20: 1, 30: 0, 40: 1, 50: 0, 60: 1, 70: 0}
    coded = load(given, categorical="one-hot", drop=["age"])
    assert coded.columns == ("weight", "smokes", "town=a", "town=b", "town=c")
    assert (coded.all[:, 2:].sum(1) == 1).all()


def test_missing_values_are_dropped_or_filled_when_asked():
    holes = PEOPLE.drop(columns="town").astype({"age": float})
    holes.loc[1, "age"] = None
    with pytest.raises(ValueError, match=r"'age' misses 1 of 6 values, the first in row 1"):
        load(holes)
    assert load(holes, missing="drop-rows").all.shape == (5, 3)
    assert sorted(load(holes, missing="mean").all[:, 0].tolist())[2] == 48  # mean of the others


def test_standardising_is_undone_and_its_determinant_is_counted():
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 7 + 100
    data = load(pd.DataFrame(x.numpy(), columns=list("abc")))
    std = data.standardised()
    torch.testing.assert_close(std.train.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(std.train.std(0), torch.ones(3))
    torch.testing.assert_close(std.in_own_units().test, data.test)
    mean, sd = data.train.mean(0), data.train.std(0)
    own = torch.distributions.Normal(mean, sd).log_prob(data.test).sum(1)
    unit = torch.distributions.Normal(0, 1).log_prob(std.test).sum(1) + std.log_det
    torch.testing.assert_close(unit, own, atol=1e-4, rtol=0)  # change of variables


def published(**changes):
    rng = np.random.default_rng(0)
    splits = {s: pd.DataFrame(rng.normal(size=(n, 2)), columns=["a", "b"])
              for s, n in (("train", 30), ("valid", 8), ("test", 9))}  # fmt: skip
    for frame in splits.values():
        frame["k"] = ["red", "blue"] * (len(frame) // 2) + ["red"] * (len(frame) % 2)
    return splits | changes


def test_published_splits_are_taken_as_they_are():
    splits = published()
    data = load(**splits, label="k")
    for s, frame in splits.items():
        np.testing.assert_array_equal(
            getattr(data, s).numpy(), frame[["a", "b"]].to_numpy(np.float32)
        )
        named = [data.classes[c] for c in getattr(data, f"{s}_labels")]
        assert named == frame["k"].tolist()
    assert sizes(load(train=splits["train"], test=splits["test"], drop=["k"])) == [27, 3, 9]


@pytest.mark.parametrize("split, change, message", [
    ("test", lambda s: s["train"].head(9), r"--test: 9 of its rows .* are rows of --train"),
    ("valid", lambda s: s["valid"].assign(k="green"), r"'k' of .* has green, which no training"),
    ("test", lambda s: s["test"].drop(columns="a"), r"differ in their columns \(a\)"),
    ("test", lambda s: s["test"].assign(a="x"), r"'a' of .* holds categories, in training"),
])  # fmt: skip
def test_mistakes_of_splits(split, change, message):
    splits = published()
    splits[split] = change(splits)
    with pytest.raises(ValueError, match=message) as error:
        load(**splits, label="k")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options, message", [
    ({"label": "colour"}, r"--label: DataFrame has no column 'colour'; it has age"),
    ({"drop": ["age", "weight", "smokes"], "label": "town"}, r"no numeric column is left"),
    ({"missing": "guess"}, r"--missing: expected refuse"),
])  # fmt: skip
def test_mistakes_of_columns(options, message):
    with pytest.raises(ValueError, match=message):
        load(PEOPLE, **options)


def test_whole_numbers_may_repeat_as_often_as_they_do_in_training():
    generator = np.random.default_rng(0)
    few = pd.DataFrame(generator.integers(0, 2, (60, 3)), columns=list("abc"))
    assert sizes(load(train=few[:40], test=few[40:])) == [36, 4, 20]
    many = pd.DataFrame(generator.integers(0, 9_000, (60, 3)), columns=list("abc"))
    for test in (many[30:], many[:40]):  # some rows, and all
        with pytest.raises(ValueError, match=r"--test: \d+ of its rows .* are rows of --train"):
            load(train=many[:40], test=test)
    with pytest.raises(ValueError, match="40 of its rows"):
        load(train=few[:40], test=few[:40])


def test_bits_of_dequantised_pixels_are_those_of_papers():
    """A uniform density of pixels in [0, 1] gives each of L levels log2 L bits, as it should."""
    data = load("digits", pixels="dequantised")
    assert data.levels == 17
    assert data.log_det / (-64 * math.log(2)) == pytest.approx(math.log2(17))
    plain = load("digits")
    back = (data.test * 17).floor() / 16  # the level, whatever its noise
    torch.testing.assert_close(back, plain.test)
    drawn = data.transform(data.train)
    assert not torch.equal(drawn, data.transform(data.train))
    torch.testing.assert_close((drawn * 17).floor() / 16, plain.train)
    subject = Subject(torch.distributions.Independent(
        torch.distributions.Uniform(torch.zeros(64), torch.ones(64)), 1), data)  # fmt: skip
    found = {m.key: m.value for m in metrics(subject)}
    assert found["log_px"] == pytest.approx(-64 * math.log(17), rel=1e-6)
    assert found["bits_per_dim"] == pytest.approx(math.log2(17), rel=1e-6)


def test_a_column_constant_in_training_alone_has_no_density():
    splits = published()
    splits["train"] = splits["train"].assign(b=3.0)
    with pytest.raises(ValueError, match=r"'b' is 3 in every training row and not in validation"):
        load(**splits, drop=["k"]).standardised()


def test_images_of_255_and_channels_last_and_folders(tmp_path):
    from PIL import Image

    path = tmp_path / "mine.npy"
    np.save(path, np.full((10, 5, 4, 3), 255.0))
    data = load(path)
    assert data.image_shape == (3, 5, 4) and (data.all == 1).all()
    for kind, grey in (("cat", 0), ("dog", 255)):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (4, 6), grey).save(tmp_path / "pets" / kind / f"{i}.png")
    data = load(tmp_path / "pets")
    assert data.image_shape == (1, 6, 4) and data.classes == ("cat", "dog")
    labels = torch.cat([data.train_labels, data.valid_labels, data.test_labels])
    assert torch.equal(data.all.mean(1), labels.float())
    Image.new("L", (3, 6)).save(tmp_path / "pets" / "cat" / "9.png")
    with pytest.raises(ValueError, match="Make all images of one size"):
        load(tmp_path / "pets")
