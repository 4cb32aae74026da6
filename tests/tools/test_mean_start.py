"""A decoder that begins at the mean training image has a better first epoch."""
import pytest
import torch
from conftest import TINY

import vae
from readers import load_data
from run import as_flags, parse, set_defaults
from tools import mean_start

pytestmark = pytest.mark.usefixtures("no_plots")


def test_what_it_draws_at_first_is_the_mean_image():
    """Zero weights leave the bias alone."""
    data = load_data("digits")
    args = parse(vae.flags(), [], TINY)
    set_defaults(args, data)
    model = vae.build((1, 28, 28), 10, args)
    mean_start.start_at_mean(model, data.x_train)
    torch.nn.init.zeros_(model.decoder[-2].weight)
    image = model.decode(torch.randn(1, args.latent)).mean[0]
    mean = (data.x_train / 255).mean(0)
    assert mean.min() == 0   # whose log-odds would be minus infinity
    assert torch.allclose(image, mean.clamp(0.01, 0.99), atol=1e-5)


def test_the_first_epoch_ends_lower(tmp_path):
    flags = TINY | {"epochs": 1}
    _, usual = vae.main(out=tmp_path / "usual", **flags)
    _, started = mean_start.main(as_flags(flags | {"out": tmp_path / "started"}))
    assert started[0]["test_loss"] < usual[0]["test_loss"] - 5
