"""Runs on a hub, and encoders and decoders as files: what arrives is what was sent."""

import importlib.util
import json
import shlex
from pathlib import Path

import hub
import pytest
import torch

import zoo.report.page as page
from inference.training.saved import read_run
from zoo.autoencoder import LinearAutoencoder
from zoo.cli import run as command
from zoo.gan import GAN
from zoo.implicit import ImplicitVAE
from zoo.sharing.card import model_card
from zoo.sharing.exported import export
from zoo.sharing.hub import pull, push
from zoo.vae import VAE, ConditionalVAE

TINY = shlex.split("--steps 6 --batch-size 16 --compile no --particles 30 --test-rows 12")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The folder of a small run of a table."""
    folder = tmp_path_factory.mktemp("run")
    x = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
    lines = ["a,b,c", *(",".join(f"{v:.4f}" for v in row) for row in (x * 5 + 100).tolist())]
    (folder / "my.csv").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "png", lambda drawing, theme: b"\x89PNG")
        told = ["fit", "vae", "--data", str(folder / "my.csv"), *TINY, "--hidden", "8"]
        told += ["--latent-dim", "2", "--out", str(folder / "mine")]
        assert command(told) == 0
    return folder / "mine"


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "none")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with hub.running() as found:
        yield found


def test_a_run_comes_back_as_it_was_pushed(fitted, server, tmp_path):
    address, repos, private = server
    (fitted / "secret.txt").write_text("not to be shared")
    push(fitted, "me/first", endpoint=address)
    assert private == {"me/first": True}
    there = repos["me/first"]
    assert "secret.txt" not in there and "report.html" not in there
    config = json.loads(there["config.json"])
    assert config["data"]["name"] == "my.csv" and str(fitted.parent) not in str(config["data"])
    here = pull("me/first", tmp_path / "pulled", endpoint=address)
    assert (here / "state.safetensors").read_bytes() == (fitted / "state.safetensors").read_bytes()
    for name, tensor in read_run(fitted).variables.params.items():
        assert torch.equal(read_run(here).variables.params[name], tensor)
    assert "vae on my" in (here / "report.html").read_text()  # made anew from its data


def test_the_card_says_what_it_is(fitted):
    text = model_card(fitted, "me/first")
    number = json.loads((fitted / "page/report.json").read_text())["metrics"][0]
    for part in ("library_name: pyro-zoo", "zoo pull me/first", number["label"], number["number"],
                 "Not diagnosed", "load_run", "my"):  # fmt: skip
        assert part in text, part


def test_a_damaged_or_strange_repository_is_refused(fitted, server, tmp_path):
    address, repos, _ = server
    push(fitted, "me/first", endpoint=address)
    state = bytearray(repos["me/first"]["state.safetensors"])
    state[-1] ^= 1
    repos["me/first"]["state.safetensors"] = bytes(state)
    with pytest.raises(ValueError, match="damaged"):
        pull("me/first", tmp_path / "a", endpoint=address)
    repos["me/other"] = {"README.md": b"# another", "page/run.py": b"print(1)"}
    with pytest.raises(ValueError, match="expected a run of pyro-zoo"):
        pull("me/other", tmp_path / "b", endpoint=address)
    with pytest.raises(ConnectionError, match="me/none"):
        pull("me/none", tmp_path / "c", endpoint=address)
    with pytest.raises(ValueError, match="OWNER/NAME"):
        pull("../etc", tmp_path / "d", endpoint=address)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "home") == []


def test_without_the_client_the_mend_is_said(fitted, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-zoo\[hub\]'"):
        push(fitted, "me/first")


def rows(n, d=6):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(0)).round()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_an_exported_part_gives_the_models_numbers_for_any_rows(part, tmp_path):
    torch.manual_seed(0)
    pair = VAE(6, latent_dim=2, hidden=(8,))
    path = export(pair, part, tmp_path / "a.pt2", rows(9))
    again = torch.export.load(path).module()
    for n in (1, 5, 40):
        given = rows(n) if part == "encoder" else torch.randn(n, 2)
        expected = pair.encode(given) if part == "encoder" else pair.decode(given)
        torch.testing.assert_close(again(given), expected)


def test_units_and_labels_are_those_of_the_data(tmp_path):
    torch.manual_seed(0)
    linear, shift, scale = LinearAutoencoder(3, 2), torch.tensor([100.0]), torch.tensor([5.0])
    x = torch.randn(9, 3) * 5 + 100
    path = export(linear, "encoder", tmp_path / "a.pt2", x, shift=shift, scale=scale)
    found = torch.export.load(path).module()(x)
    torch.testing.assert_close(found, linear.encode((x - shift) / scale))
    path = export(linear, "decoder", tmp_path / "b.pt2", x, shift=shift, scale=scale)
    z = torch.randn(4, 2)
    found = torch.export.load(path).module()(z)
    torch.testing.assert_close(found, linear.decode(z) * scale + shift)
    told, y = ConditionalVAE(6, classes=3, latent_dim=2, hidden=(8,)), torch.arange(9) % 3
    path = export(told, "decoder", tmp_path / "c.pt2", rows(9), y)
    found = torch.export.load(path).module()(z, y[:4])
    torch.testing.assert_close(found, told.decode(z, y[:4]))


def test_what_cannot_be_exported_is_said(tmp_path):
    with pytest.raises(ValueError, match="there is no encoder"):
        export(GAN(6, latent_dim=2, hidden=(4,)), "encoder", tmp_path / "a.pt2", rows(9))
    with pytest.raises(ValueError, match="draws at random"):
        export(ImplicitVAE(6, latent_dim=2), "encoder", tmp_path / "a.pt2", rows(9))
    with pytest.raises(ValueError, match=r"\.pt2 or \.onnx"):
        export(VAE(6, latent_dim=2), "encoder", tmp_path / "a.bin", rows(9))
    (tmp_path / "a.pt2").write_text("")
    with pytest.raises(FileExistsError, match="exists already"):
        export(VAE(6, latent_dim=2), "encoder", tmp_path / "a.pt2", rows(9))


def test_the_command_exports(fitted, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(["export", str(fitted), "decoder"]) == 0
    path = Path(capsys.readouterr().out.split()[-1])
    assert path.name == "mine-decoder.pt2" and torch.export.load(path).module()(
        torch.randn(5, 2)
    ).mean() == pytest.approx(100, abs=25)  # in the units of the data
    assert command(["export", str(fitted), "decoder", "--format", "pdf"]) == 2
    assert "pt2 or onnx" in capsys.readouterr().err


@pytest.mark.slow
def test_onnx_gives_the_models_numbers(tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            pytest.skip("pip install 'pyro-zoo[onnx]'")
    import onnxruntime

    pair = VAE(6, latent_dim=2, hidden=(8,))
    path = export(pair, "encoder", tmp_path / "a.onnx", rows(9))
    session = onnxruntime.InferenceSession(str(path))
    for n in (1, 5, 40):
        (found,) = session.run(None, {session.get_inputs()[0].name: rows(n).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), pair.encode(rows(n)))
