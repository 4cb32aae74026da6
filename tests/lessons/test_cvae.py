"""Claim: a CVAE is the VAE of vae.py told the label in both networks, and its twin, told nothing,
is exactly the VAE of vae.py, so that the two differ by what the label does and by nothing else.

    encoder: q(z|x,y) from [x, one-hot y]        decoder: p(x|z,y) from [z, one-hot y]

The twin is held against vae.py bit by bit and run by run; with that, what test_vae.py shows of the
one script is shown of the other.
"""
import pytest
import torch
from conftest import TINY
from small import random_data, vae_args
from torch import nn

import cvae
import vae
from readers import load_data
from run import make_scheduler

pytestmark = pytest.mark.usefixtures("no_plots")

SHAPE = (1, 8, 8)
SHORT = {"dataset": "digits", "hidden": 8, "latent": 3, "epochs": 2, "train_size": 100,
         "test_size": 30, "batch_size": 32, "quiet": True, "device": "cpu"}


def small_model(classes, *flags):
    torch.manual_seed(0)
    return cvae.CVAE(SHAPE, classes, vae_args(*flags, shape=SHAPE))


def test_the_label_enters_one_hot():
    z, y = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]), torch.tensor([0, 3])
    expected = torch.tensor([[0.1, 0.2, 0.3, 1, 0, 0, 0],
                             [0.4, 0.5, 0.6, 0, 0, 0, 1]])
    assert torch.equal(small_model(4).with_condition(z, y), expected)


def test_the_label_enters_a_convolution_as_constant_planes():
    """One channel for each class: all ones for that of the image, zeros for the others."""
    x, y = torch.rand(2, *SHAPE), torch.tensor([0, 2])
    h = small_model(3, "--arch=conv").with_condition(x, y)
    ones, zeros = torch.ones(8, 8), torch.zeros(8, 8)
    assert torch.equal(h[:, :1], x)
    assert torch.equal(h[0, 1:], torch.stack([ones, zeros, zeros]))
    assert torch.equal(h[1, 1:], torch.stack([zeros, zeros, ones]))


@pytest.mark.parametrize("arch", ["mlp", "conv"])
@pytest.mark.parametrize("classes", [4, 0])
def test_a_cvae_depends_on_the_label_and_its_twin_does_not(arch, classes):
    model = small_model(classes, f"--arch={arch}").eval()
    x, z, zeros, ones = torch.rand(5, *SHAPE), torch.randn(5, 3), torch.zeros(5), torch.ones(5)
    is_twin = classes == 0
    assert torch.equal(model.encode(x, zeros)[0], model.encode(x, ones)[0]) == is_twin
    assert torch.equal(model.decode(z, zeros).mean, model.decode(z, ones).mean) == is_twin


@pytest.mark.parametrize("arch", ["mlp", "conv"])
def test_the_twin_is_the_model_of_vae_py(arch):
    twin = small_model(0, f"--arch={arch}")
    torch.manual_seed(0)
    model = vae.VAE(SHAPE, vae_args(f"--arch={arch}", shape=SHAPE))
    x, y, eps = torch.rand(5, *SHAPE), torch.arange(5), torch.randn(5, 3)
    terms, twin_terms = vae.loss_terms(model, x, eps), cvae.loss_terms(twin, x, y, eps)
    assert all(map(torch.equal, terms, twin_terms))


def assert_twin_is(vae_log, cvae_log):
    """Every column that cvae.py has of the twin is that of vae.py, to the last digit."""
    for row, cvae_row in zip(vae_log, cvae_log, strict=True):
        twin_row = {name: value for name, value in cvae_row.items() if name.startswith("vae_")}
        assert len(twin_row) == 8
        assert twin_row == {name: row[name.removeprefix("vae_")] for name in twin_row}
        assert (cvae_row["lr"], cvae_row["beta"]) == (row["lr"], row["beta"])


def test_the_run_of_the_twin_is_the_run_of_vae_py(vae_run, cvae_run):
    _, _, vae_log = vae_run
    _, _, cvae_log = cvae_run
    assert_twin_is(vae_log, cvae_log)


@pytest.mark.parametrize("flags", [
    {"arch": "conv", "sigma": "pixel", "lr_schedule": "cosine", "amp": True},
    {"beta": 3, "beta_schedule": "linear", "binarize": "dynamic"},
    {"beta": 0, "likelihood": "gaussian", "lr_schedule": "constant"},
], ids=["conv", "beta", "autoencoder"])
def test_and_with_other_flags(flags, tmp_path):
    _, vae_log = vae.main(out=tmp_path / "vae", **SHORT | flags)
    _, cvae_log = cvae.main(out=tmp_path / "cvae", **SHORT | flags)
    assert_twin_is(vae_log, cvae_log)
    has_no_kl = cvae_log[0]["train_kl"] is None and cvae_log[0]["vae_test_kl"] is None
    assert has_no_kl == (flags.get("beta") == 0)


def test_without_the_twin_the_cvae_is_the_same(cvae_run, tmp_path):
    _, _, log = cvae_run
    _, log_alone = cvae.main(out=tmp_path / "run", no_baseline=True, **TINY)
    for row, row_alone in zip(log, log_alone, strict=True):
        expected = {name: value for name, value in row.items() if not name.startswith("vae_")}
        assert row_alone | {"seconds": 0} == expected | {"seconds": 0}


def train(models, data, args, epochs):
    """With one optimiser for all that `models` holds, as in main."""
    optimizer = torch.optim.Adam(models.parameters(), lr=args.lr, fused=True)
    scheduler = make_scheduler(optimizer, len(data.x_train), args)
    torch.manual_seed(1)
    for epoch in range(1, epochs + 1):
        cvae.train_epoch(models, optimizer, scheduler, data, epoch, args)


def test_one_optimizer_for_both_models_is_bit_equal_to_two():
    """Adam treats each weight by itself."""
    args, data = vae_args("--lr-schedule=onecycle", "--epochs=3"), random_data(shape=SHAPE)
    together = nn.ModuleDict({"cvae": small_model(4), "vae": small_model(0)})
    train(together, data, args, epochs=3)
    for name, classes in (("cvae", 4), ("vae", 0)):
        alone = nn.ModuleDict({name: small_model(classes)})
        train(alone, data, args, epochs=3)
        assert all(map(torch.equal, together[name].parameters(), alone.parameters()))


def test_a_huge_gradient_is_clipped_in_each_model_by_itself():
    """To a norm of one for every pixel, 64 here; that of both together would be 64 sqrt 2."""
    flags = ["--likelihood=gaussian", "--sigma=0.01", "--batch-size=20"]
    models = nn.ModuleDict({"cvae": small_model(4, *flags), "vae": small_model(0, *flags)})
    train(models, random_data(shape=SHAPE), vae_args(*flags, shape=SHAPE), epochs=1)   # one step
    for model in models.values():
        squares = [p.grad.square().sum() for p in model.parameters()]
        assert sum(squares).sqrt().item() == pytest.approx(64, rel=1e-4)


def test_plateau_follows_the_objective_of_the_cvae(tmp_path):
    """There is one learning rate, and the CVAE is what the run is about."""
    _, log = cvae.main(out=tmp_path / "run", lr_schedule="plateau", beta=3, **SHORT)
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    lowest = min(row["train_objective"] for row in log)
    assert checkpoint["scheduler"]["best"] == pytest.approx(lowest, rel=1e-5)


def test_the_label_saves_nats():
    """With two numbers for z, five epochs on the digits: the CVAE need not spend them on the class.
    Its loss is lower by 12 nats (14 and 12 with other seeds)."""
    shape, data = (1, 28, 28), load_data("digits")
    args = vae_args("--latent=2", "--hidden=100", "--batch-size=64", "--epochs=5", "--lr=5e-3",
                    "--lr-schedule=onecycle", shape=shape)
    torch.manual_seed(0)
    models = nn.ModuleDict({"cvae": cvae.CVAE(shape, 10, args), "vae": cvae.CVAE(shape, 0, args)})
    train(models, data, args, epochs=5)
    loss = cvae.evaluate(models["cvae"], data, 5, args)["test_loss"]
    twin_loss = cvae.evaluate(models["vae"], data, 5, args)["test_loss"]
    assert 130 < loss < twin_loss - 5
