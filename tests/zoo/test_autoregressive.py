"""MADE and PixelCNN: exact Jacobian masks, and probabilities that sum to one."""

import itertools
import math
import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
from pair_contract import check_pair
from torch.distributions import Bernoulli
from torch.func import jacrev, vmap

from inference import fit, log_weights
from zoo.autoregressive import MADE, BinaryAutoregressive, PixelCNN, PixelRNN

MODELS = {
    "one hidden layer": lambda: MADE(9, hidden=(40,)),
    "two hidden layers": lambda: MADE(9, hidden=(40, 30), act="tanh"),
    "no direct weights": lambda: MADE(9, hidden=(40,), direct=False),
    "logistic": lambda: MADE(9, hidden=(), direct=False),
    "reversed": lambda: MADE(9, hidden=(40,), order="reversed"),
    "random": lambda: MADE(9, hidden=(40,), order="random", seed=5),
    "permutation": lambda: MADE(9, hidden=(40,), order=[3, 1, 4, 0, 5, 8, 2, 6, 7]),
    "sixteen orders": lambda: MADE(9, hidden=(40, 30), orders=16),
    "pixels": lambda: PixelCNN(9, channels=8, layers=3),
    "rows": lambda: PixelRNN(9, channels=6, layers=2),
    "wide pixels": lambda: PixelCNN(10, image_shape=(1, 2, 5), channels=8, layers=4),
}


@pytest.fixture(params=MODELS)
def model(request):
    model = MODELS[request.param]().double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
    return model


def outcomes(n):
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)), dtype=torch.float64)


def binary(*shape):
    return torch.randint(0, 2, shape).double()


def test_a_logit_depends_on_the_variables_before_and_on_all_of_them(model):
    d = model.data_dim
    points = 10 * torch.randn(30, d, dtype=torch.float64)  # a ReLU is flat at some
    jacobian = vmap(jacrev(model.logits))(points).abs().sum(0)
    before = model.rank[None, :] < model.rank[:, None]
    assert (jacobian[~before] == 0).all()
    assert (jacobian[before] != 0).all()


@pytest.mark.parametrize("shape", [(4, 5), (5, 4)])
def test_pixels_see_no_further_than_their_kernels_and_have_no_blind_spot(shape):
    h, w = shape
    model = PixelCNN(h * w, image_shape=(1, h, w), channels=4, layers=2).double()
    jacobian = jacrev(model.logits)(torch.rand(h * w, dtype=torch.float64))
    row, column = torch.arange(h * w) // w, torch.arange(h * w) % w
    up, left = row[:, None] - row, column[:, None] - column
    reach = 3  # 2 of the first kernel, 5 wide, and 1 of the second, 3 wide
    seen = (up > 0) & (up <= reach) & (left.abs() <= reach)
    seen |= (up == 0) & (left > 0) & (left <= reach)
    assert (jacobian[~seen] == 0).all()
    assert (jacobian[seen] != 0).all()


def test_the_probabilities_of_all_outcomes_sum_to_one(model):
    total = model.log_prob(outcomes(model.data_dim)).logsumexp(0)
    assert abs(total.item()) < 1e-12


def test_ten_variables_have_1024_outcomes():
    model = MADE(10, hidden=(60,), order="random").double()
    assert abs(model.log_prob(outcomes(10)).exp().sum().item() - 1) < 1e-10


def test_a_row_s_memory_reaches_every_row_above_a_column_wider_each():
    h, w = 6, 7
    model = shaken_rows(h, w)
    jacobian = vmap(jacrev(model.logits))(torch.randn(8, h * w).double()).abs().sum(0)
    row, column = torch.arange(h * w) // w, torch.arange(h * w) % w
    up, across = row[:, None] - row, (column[:, None] - column).abs()
    # one layer: a column more for each row that the state walked, and 1 of the first convolution
    # of the rows above; to the left in the row itself, that and 1 of the masked one
    seen = (up > 0) & (across <= up + 2)
    assert (jacobian[(up < 0) | ((up == 0) & (column[:, None] <= column))] == 0).all()
    assert (jacobian[(up > 0) & (across <= up)] != 0).all()
    assert (jacobian[(up > 0) & ~seen] == 0).all()


def shaken_rows(h, w):
    model = PixelRNN(h * w, (1, h, w), channels=4, layers=1, kernel=3).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.5 * torch.randn_like(p)
    return model


@pytest.mark.parametrize("kernel", [3, 5])
def test_draws_pixel_by_pixel_are_those_of_whole_passes(kernel):
    model = PixelCNN(24, (1, 4, 6), channels=8, layers=3, kernel=kernel).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
    torch.manual_seed(1)
    draws = model.sample(40)
    torch.manual_seed(1)
    assert torch.equal(draws, BinaryAutoregressive.sample(model, 40))


def test_draws_have_the_probabilities_of_the_model():
    one, three = MADE(3, hidden=(12,), order=[2, 0, 1]), MADE(3, hidden=(12,), orders=3)
    for model in (one, three, PixelCNN(3, (1, 1, 3), layers=2)):
        model = model.double()
        with torch.no_grad():
            for p in model.parameters():
                p += 0.4 * torch.randn_like(p)
        n = 5_000
        draws = model.sample(n)
        assert draws.dtype == torch.float64
        code = (draws @ torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)).long()
        count = torch.bincount(code, minlength=8).double()
        expected = n * model.log_prob(outcomes(3)).exp().detach()
        chi_squared = ((count - expected) ** 2 / expected).sum().item()
        assert chi_squared < 24.3  # the 99.9 % point of 7 degrees of freedom


def test_a_pair(model):
    if getattr(model, "orders", 1) > 1:  # one order for all rows: its weights are joint
        model.orders = 1
    check_pair(model, binary(6, model.data_dim), latents=[])


def test_another_order_has_its_own_mask_and_the_first_is_the_network_itself():
    for hidden in ((40,), (40, 30), ()):
        model = MADE(9, hidden=hidden, orders=3).double()
        x = torch.rand(2, 5, 9, dtype=torch.float64)
        torch.testing.assert_close(model.net.in_order(x, model.ranks[0]), model.net(x))
        together = model.net.in_order(x[:, None], model.ranks)  # (2, 3, 5, 1, 9)
        for k, rank in enumerate(model.ranks):
            h = model.net.in_order(x, rank)
            torch.testing.assert_close(together[:, k], h)
            one = partial(model.net.in_order, rank=rank)
            jacobian = vmap(jacrev(lambda v, f=one: f(v[None])[0, 0]))(x[0])
            assert (jacobian.abs().sum(0)[rank[None, :] >= rank[:, None]] == 0).all()


def test_orders_are_averaged_and_trained_one_at_a_time():
    """log_prob is the log of the mean of 16 exact densities; the ELBO the mean of their logs."""
    model, x = MADE(4, hidden=(20,), orders=16).double(), outcomes(4)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    each = torch.stack([
        Bernoulli(logits=model.net.in_order(x, r).squeeze(-2)).log_prob(x).sum(-1)
        for r in model.ranks
    ])  # fmt: skip
    assert torch.allclose(each.exp().sum(-1), torch.ones(16, dtype=torch.float64), atol=1e-12)
    torch.testing.assert_close(model.log_prob(x), each.exp().mean(0).log())
    drawn = log_weights(model.model, model.guide, x, particles=200).log_weight().squeeze()
    assert drawn.shape == (200,)  # one order for all rows
    known = each.sum(-1)
    assert torch.isclose(drawn[:, None], known, atol=1e-9).any(-1).all()
    assert len(drawn.unique()) > 10


def test_an_order_lists_the_first_variable_first():
    order = [3, 1, 4, 0, 2]
    assert MADE(5, order=order).rank.argsort().tolist() == order
    twins = [MADE(50, order="random", seed=seed).rank for seed in (1, 1, 2)]
    assert torch.equal(twins[0], twins[1]) and not torch.equal(twins[0], twins[2])


def test_batches_of_any_rank(model):
    x = binary(2, 3, model.data_dim)
    rows = model.log_prob(x.reshape(6, -1)).reshape(2, 3)
    assert torch.allclose(model.log_prob(x), rows, rtol=0, atol=1e-12)


def test_a_fit_reaches_the_entropy_of_a_chain():
    """x_1 is a fair coin, and each next one repeats the last with probability 0.9."""
    n, d = 2_000, 6
    flips = (torch.rand(2, 20 * n, d) < 0.1).double()  # enough that nothing is learned by heart
    flips[..., 0] = torch.randint(0, 2, flips.shape[:2])
    train, test = (flips.cumsum(-1) % 2).float()
    entropy = math.log(2) - (d - 1) * (0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    for model in (MADE(d, hidden=(32,)), PixelCNN(d, (1, 2, 3), channels=8, layers=2)):
        run = fit(
            model, train, steps=250, lr=2e-2, batch_size=500, schedule="cosine",
            compile=False, progress=False,
        )  # fmt: skip
        with torch.no_grad():
            nats = run.pair.log_prob(test[:n])
        assert abs(nats.mean() + entropy) < 3 * nats.std() / math.sqrt(n)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MADE(4, order=[0, 1, 2]), "order: expected each of 0 .. 3 once"),
        (lambda: MADE(4, order=[1, 2, 3, 4]), "order: expected each of 0 .. 3 once"),
        (lambda: MADE(4, order="raster"), "order: expected natural, reversed, random"),
        (lambda: MADE(4, hidden=(0,)), "hidden: expected"),
        (lambda: MADE(4, orders=0), "orders: expected sizes of at least 1"),
        (lambda: MADE(4).log_prob(torch.rand(3, 4)), "pixels='static'"),
        (lambda: MADE(4).validate(torch.full((3, 4), math.nan)), "binary"),
        (lambda: MADE(4).model(torch.zeros(3, 5)), "data_dim = 4"),
        (lambda: PixelCNN(9).validate(2 * torch.ones(3, 9)), r"values in \[2, 2\]"),
        (lambda: PixelCNN(10), "only a square image"),
        (lambda: PixelCNN(12, image_shape=(3, 2, 2)), r"expected \(1, height, width\)"),
        (lambda: PixelCNN(9, kernel=4), "kernel: expected an odd number"),
        (lambda: PixelCNN(9, layers=0), "layers: expected"),
        (lambda: PixelRNN(9, kernel=4), "kernel: expected an odd number"),
        (lambda: PixelRNN(10), "only a square image"),
    ],
)
def test_bad_input_is_refused_with_the_fix(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_example_runs(tmp_path):
    main = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "made_mnist.py"))["main"]
    nats, error = main(data="digits", steps=20, out=str(tmp_path / "picture.png"))
    assert -64 * math.log(2) - 5 < nats < 0 and error > 0  # no worse than coins by much
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_one_hidden_layer_of_500_reaches_94_5_nats_on_mnist(zoo_data, tmp_path):
    main = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "made_mnist.py"))["main"]
    nats, error = main(data="mnist", steps=10_000, out=str(tmp_path / "picture.png"))
    assert nats - 3 * error > -94.5
