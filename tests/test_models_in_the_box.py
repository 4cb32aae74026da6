"""The small trained models: each loads safely, draws, and is as good as its card says."""
import re
from pathlib import Path

import pytest
import torch

import cvae
import generate
from common import load_checkpoint, load_data

BOX = Path(__file__).parent.parent / "results" / "models"
CARDS = dict(re.findall(r"^\| \[([\w.-]+\.pt)\].*\| test_loss ([\d.]+) \|",
                        (BOX / "README.md").read_text(), re.M))


@pytest.mark.parametrize("file", sorted(BOX.glob("*.pt")), ids=lambda file: file.stem)
def test_a_model_draws_without_data(file, tmp_path, monkeypatch):
    assert file.stat().st_size < 4e6 and file.name in (BOX / "README.md").read_text()
    stored = torch.load(file, weights_only=True)
    assert not any("optim" in key for key in stored)
    monkeypatch.setattr(generate, "load_data", None)   # a call would fail
    generate.main([str(file)], out=tmp_path)
    assert (tmp_path / "samples_64.png").stat().st_size > 1000


@pytest.mark.parametrize("name", CARDS)
def test_a_card_tells_the_truth(real, name):
    """Its number, within 1%, on the real test images, from the half precision weights."""
    checkpoint = load_checkpoint(BOX / name)
    data_set = checkpoint["args"]["dataset"]
    folder = real(data_set)
    models, args = generate.rebuild(checkpoint)
    data = cvae.binarize(load_data(data_set, folder), args)
    found = cvae.evaluate("", models[""], data, checkpoint["epoch"], args)["test_loss"]
    assert found == pytest.approx(float(CARDS[name]), rel=0.01)
