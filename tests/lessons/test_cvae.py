"""Claim: a CVAE is the VAE of vae.py told the label in both networks, and its twin, told nothing,
is exactly the VAE of vae.py, so that the two differ by what the label does and by nothing else.

    encoder: q(z|x,y) from [x, one-hot y]        decoder: p(x|z,y) from [z, one-hot y]

The twin is held against vae.py bit by bit, run by run; with that, what the other lessons show of
vae.py is shown of cvae.py, too.
"""
import pytest
import torch
from conftest import TINY
from small import random_data, vae_args
from torch import nn

import cvae
import vae
from common import load_data
from run import make_scheduler

SHAPE = (1, 8, 8)
SHORT = {"dataset": "digits", "hidden": 8, "latent": 3, "epochs": 2, "train_size": 100,
         "test_size": 30, "batch_size": 32, "quiet": True, "device": "cpu"}


def small_model(classes, *flags, seed=0):
    torch.manual_seed(seed)
    return cvae.CVAE(SHAPE, classes, vae_args(*flags, shape=SHAPE))


# -------------------------------------------------------------------------------------- the label

def test_the_label_enters_one_hot():
    model = small_model(4)
    z, y = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]), torch.tensor([0, 3])
    expected = torch.tensor([[0.1, 0.2, 0.3, 1, 0, 0, 0],
                             [0.4, 0.5, 0.6, 0, 0, 0, 1]])
    assert torch.equal(model.with_label(z, y), expected)


def test_the_label_enters_a_convolution_as_constant_planes():
    """One channel for each class: all ones for that of the image, zeros for the others."""
    model = small_model(3, "--arch=conv")
    x, y = torch.rand(2, *SHAPE), torch.tensor([0, 2])
    h = model.with_label(x, y)
    ones, zeros = torch.ones(8, 8), torch.zeros(8, 8)
    assert torch.equal(h[:, :1], x)
    assert torch.equal(h[0, 1:], torch.stack([ones, zeros, zeros]))
    assert torch.equal(h[1, 1:], torch.stack([zeros, zeros, ones]))


@pytest.mark.parametrize("arch", ["mlp", "conv"])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_cvae_depends_on_the_label_and_its_twin_does_not(arch, batch):
    model = small_model(4, f"--arch={arch}").eval()
    twin = small_model(0, f"--arch={arch}").eval()
    x, z = torch.rand(batch, *SHAPE), torch.randn(batch, 3)
    zeros, ones = torch.zeros(batch), torch.ones(batch)
    assert not torch.equal(model.encode(x, zeros)[0], model.encode(x, ones)[0])
    assert not torch.equal(model.decode(z, zeros).mean, model.decode(z, ones).mean)
    assert torch.equal(twin.encode(x, zeros)[0], twin.encode(x, ones)[0])
    assert torch.equal(twin.decode(z, zeros).mean, twin.decode(z, ones).mean)


def test_each_image_is_told_its_own_label():
    """The loss of a batch is that of its images one by one."""
    model = small_model(4)
    x, y, eps = torch.rand(4, *SHAPE), torch.tensor([3, 1, 0, 2]), torch.randn(4, 3)
    recon, kl, _ = cvae.loss_terms(model, x, y, eps)
    for i in range(4):
        one = slice(i, i + 1)
        recon_i, kl_i, _ = cvae.loss_terms(model, x[one], y[one], eps[one])
        torch.testing.assert_close(recon[one], recon_i)
        torch.testing.assert_close(kl[one], kl_i)


# --------------------------------------------------------------------------------------- the twin

@pytest.mark.parametrize("arch", ["mlp", "conv"])
def test_the_twin_is_the_model_of_vae_py(arch):
    twin = small_model(0, f"--arch={arch}")
    torch.manual_seed(0)
    plain = vae.VAE(SHAPE, vae_args(f"--arch={arch}", shape=SHAPE))
    x, y, eps = torch.rand(5, *SHAPE), torch.arange(5), torch.randn(5, 3)
    ours = cvae.loss_terms(twin, x, y, eps)
    theirs = vae.loss_terms(plain, x, eps)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def twin_columns(log):
    """What the log says of the twin, under the names of vae.py."""
    return [{name[4:]: value for name, value in row.items() if name.startswith("vae_")}
            for row in log]


def same_columns(log, twin_log):
    """The columns of vae.py's log that cvae.py has of the twin, too."""
    return [{name: row[name] for name in twin_log[0]} for row in log]


def test_the_run_of_the_twin_is_the_run_of_vae_py(cvae_run, vae_run):
    _, _, cvae_log = cvae_run
    _, _, vae_log = vae_run
    twin_log = twin_columns(cvae_log)
    assert list(twin_log[0]) == ["train_objective", "train_loss", "train_recon", "train_kl",
                                 "test_loss", "test_recon", "test_kl", "active"]
    assert twin_log == same_columns(vae_log, twin_log)


@pytest.mark.parametrize("flags", [
    {"arch": "conv", "sigma": "pixel", "lr_schedule": "cosine", "amp": True},
    {"beta": 3, "beta_schedule": "linear", "binarize": "dynamic"},
    {"beta": 0, "likelihood": "gaussian", "lr_schedule": "constant"},
], ids=["conv", "beta", "autoencoder"])
def test_so_it_is_with_other_flags(flags, tmp_path):
    _, cvae_log = cvae.main(out=tmp_path / "cvae", **SHORT | flags)
    _, vae_log = vae.main(out=tmp_path / "vae", **SHORT | flags)
    twin_log = twin_columns(cvae_log)
    assert twin_log == same_columns(vae_log, twin_log)
    for name in ("epoch", "lr", "beta"):
        assert [row[name] for row in cvae_log] == [row[name] for row in vae_log]


def test_without_the_twin_the_cvae_is_the_same(cvae_run, tmp_path):
    _, _, log = cvae_run
    _, alone = cvae.main(out=tmp_path / "run", no_baseline=True, **TINY)
    assert not any(name.startswith("vae_") for name in alone[0])
    names = [name for name in alone[0] if name != "seconds"]
    for row, row_alone in zip(log, alone, strict=True):
        assert [row[name] for name in names] == [row_alone[name] for name in names]


# --------------------------------------------------------------------------------------- the step

def train(models, data, args):
    """Three epochs with one optimiser for all that `models` holds, as in main."""
    optimizer = torch.optim.Adam(models.parameters(), lr=args.lr, fused=True)
    scheduler = make_scheduler(optimizer, len(data.x_train), args)
    torch.manual_seed(1)
    rows = []
    for epoch in (1, 2, 3):
        rows.append(cvae.train_epoch(models, optimizer, scheduler, data, epoch, args))
    return rows


def test_one_optimizer_for_both_models_is_bit_equal_to_two():
    """Adam treats each weight by itself."""
    args, data = vae_args("--lr-schedule=onecycle", "--epochs=3"), random_data(shape=SHAPE)
    together = nn.ModuleDict({"cvae": small_model(4), "vae": small_model(0)})
    rows = train(together, data, args)
    for name, classes, prefix in (("cvae", 4, ""), ("vae", 0, "vae_")):
        alone = nn.ModuleDict({name: small_model(classes)})
        rows_alone = train(alone, data, args)
        for p, p_alone in zip(together[name].parameters(), alone.parameters(), strict=True):
            assert torch.equal(p, p_alone)
        for row, row_alone in zip(rows, rows_alone, strict=True):
            assert row[f"{prefix}train_loss"] == row_alone[f"{prefix}train_loss"]


def test_a_huge_gradient_is_clipped_in_each_model_by_itself():
    """To a norm of one for every pixel, 64 here; that of both together would be 64 sqrt 2."""
    args = vae_args("--likelihood=gaussian", "--sigma=0.01", "--batch-size=20", shape=SHAPE)
    models = nn.ModuleDict()
    for name, classes in (("cvae", 4), ("vae", 0)):
        models[name] = small_model(classes, "--likelihood=gaussian", "--sigma=0.01")
    optimizer = torch.optim.Adam(models.parameters(), lr=args.lr)
    scheduler = make_scheduler(optimizer, 20, args)
    cvae.train_epoch(models, optimizer, scheduler, random_data(shape=SHAPE), 1, args)   # one step
    for model in models.values():
        squares = [p.grad.square().sum() for p in model.parameters()]
        assert sum(squares).sqrt().item() == pytest.approx(64, rel=1e-4)


def test_plateau_follows_the_objective_of_the_cvae(monkeypatch, tmp_path):
    """There is one learning rate, and the CVAE is what the run is about."""
    heard = []

    class Listening(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics):
            heard.append(metrics)
            super().step(metrics)

    monkeypatch.setattr(cvae, "make_scheduler", lambda optimizer, n, args: Listening(optimizer))
    _, log = cvae.main(out=tmp_path / "run", lr_schedule="plateau", beta=3, **SHORT)
    assert heard == pytest.approx([row["train_objective"] for row in log], rel=1e-5)
    assert heard[0] != pytest.approx(log[0]["vae_train_objective"], rel=1e-5)


def test_dropout_and_normalisation_know_training_from_testing():
    data = random_data(shape=SHAPE)
    args = vae_args("--arch=conv", "--dropout=0.5", shape=SHAPE)
    models = nn.ModuleDict({"cvae": small_model(4, "--arch=conv", "--dropout=0.5").eval()})
    train(models, data, args)
    assert all(part.training for part in models["cvae"].modules())
    cvae.evaluate(models["cvae"], data, 1, args)
    assert not any(part.training for part in models["cvae"].modules())


# ----------------------------------------------------------------------------------- all together

def test_the_label_saves_nats():
    """With two numbers for z, five epochs on the digits: the CVAE need not spend them on the class.
    Its loss is lower by 12 nats (14 and 12 with other seeds)."""
    shape, data = (1, 28, 28), load_data("digits")
    args = vae_args("--latent=2", "--hidden=100", "--batch-size=64", "--epochs=5", "--lr=5e-3",
                    "--lr-schedule=onecycle", shape=shape)
    models = nn.ModuleDict()
    for name, classes in (("cvae", 10), ("vae", 0)):
        torch.manual_seed(0)
        models[name] = cvae.CVAE(shape, classes, args)
    optimizer = torch.optim.Adam(models.parameters(), lr=args.lr)
    scheduler = make_scheduler(optimizer, len(data.x_train), args)
    for epoch in range(1, 6):
        cvae.train_epoch(models, optimizer, scheduler, data, epoch, args)
    loss = cvae.evaluate(models["cvae"], data, 5, args)["test_loss"]
    twin_loss = cvae.evaluate(models["vae"], data, 5, args)["test_loss"]
    assert 130 < loss < twin_loss - 5
