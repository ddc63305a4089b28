import json

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import elbo, fit
from inference.training.checkpoint import config, load, save, whole_folder
from inference.training.run import new_run

X = torch.randn(30, generator=torch.Generator().manual_seed(0))


def model(x, size=None):
    with pyro.plate("data", size or len(x), subsample=x):
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)


def guide(x, size=None):
    pass


def unfitted(width=None):
    return new_run(model, guide, (X[:10],), 30, elbo.Trace(), torch.device("cpu"), 0)


def test_round_trip_and_resume(tmp_path):
    kwargs = dict(batch_size=10, lr=0.1, compile=False, progress=False)
    whole = fit(model, guide, X, steps=30, **kwargs)
    half = fit(model, guide, X, steps=12, **kwargs)
    save(half, tmp_path / "run", command="zoo fit")
    again = load(tmp_path / "run", unfitted)
    assert again.params.keys() == half.params.keys()
    assert float(again.params["loc"]) == float(half.params["loc"])
    assert len(again.history) == len(half.history)
    rest = fit(model, guide, X, steps=30, resume=again, **kwargs)
    assert rest.losses[12:] == whole.losses[12:]
    assert config(tmp_path / "run")["command"] == "zoo fit"


def test_nothing_is_overwritten_and_nothing_is_half_written(tmp_path):
    run = fit(model, guide, X, steps=3, compile=False, progress=False)
    save(run, tmp_path / "run")
    with pytest.raises(FileExistsError, match="run"):
        save(run, tmp_path / "run")
    with pytest.raises(RuntimeError, match="stop"), whole_folder(tmp_path / "other") as inside:
        (inside / "a").write_text("half")
        raise RuntimeError("stop")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(PermissionError, match="cannot be written"),
        whole_folder(tmp_path / "file/x"),
    ):
        pass


def test_damage_is_named(tmp_path):
    run = fit(model, guide, X, steps=3, compile=False, progress=False)
    folder = save(run, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="no run here"):
        config(tmp_path)
    state = (folder / "state.safetensors").read_bytes()
    (folder / "state.safetensors").write_bytes(state[:20])
    with pytest.raises(ValueError, match="damaged"):
        load(folder, unfitted)
    (folder / "state.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no parameters"):
        load(folder, unfitted)
    meta = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**meta, "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        config(folder)


def test_another_pair_is_refused(tmp_path):
    def other(x, size=None):
        with pyro.plate("data", size or len(x), subsample=x):
            pyro.sample("x", dist.Normal(pyro.param("mean", torch.zeros(2)).sum(), 1.0), obs=x)

    folder = save(fit(model, guide, X, steps=3, compile=False, progress=False), tmp_path / "run")
    with pytest.raises(ValueError, match="do not fit the pair"):
        load(folder, lambda: new_run(other, guide, (X,), 30, elbo.Trace(), torch.device("cpu"), 0))
