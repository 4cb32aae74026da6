"""A GAN along its training: precision, recall, and what the discriminator takes for real."""
import csv

import pytest
import torch
from torch.nn import functional as F

import evaluate
import gan
import metrics
from readers import load_data
from run import parse
from tools import along

SHORT = {"dataset": "digits", "width": 4, "latent": 2, "batch_size": 8, "iterations": 12,
         "eval_every": 4, "save_every": 1, "device": "cpu", "quiet": True}


def measured(folder, out):
    """The rows of along.csv of a run."""
    along.main([str(folder), "--out", str(out)])
    with open(folder / "along.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_checkpoint_as_evaluate_measures_it(out, tmp_path, monkeypatch):
    """In place of precision and recall, which are 0 so early, two numbers of the features."""
    monkeypatch.setattr(metrics, "precision_recall",
                        lambda real, fake: (fake.mean().item(), fake.std().item()))
    folder = tmp_path / "run"
    gan.main(out=folder, loss="wgan-gp", **SHORT)
    rows = measured(folder, out)
    assert [row["iteration"] for row in rows] == ["4", "8", "12"]
    for row in rows:
        file = folder / f"checkpoint_{int(row['iteration']):03}.pt"
        found = evaluate.main([str(file)], metrics="pr", device="cpu", out=out)
        for name in ("precision", "recall"):
            assert float(row[name]) == found[f"{name}_classifier_297"]
        assert row["real_train"] == row["real_test"] == row["real_samples"] == ""   # of a critic
    assert len({row["precision"] for row in rows}) == 3


@pytest.mark.parametrize("loss, threshold", [("gan", 0), ("lsgan", 0.5)])
def test_what_the_discriminator_takes_for_real(loss, threshold, out, tmp_path):
    """A discriminator with the median of its test logits at the threshold takes half of the test
    images for real, and about as many of the training images."""
    folder = tmp_path / "run"
    gan.main(out=folder, loss=loss, **SHORT | {"eval_every": 0})
    (file,) = folder.glob("checkpoint_*.pt")
    checkpoint = torch.load(file, weights_only=True)
    discriminator = gan.Discriminator((1, 28, 28), 0, parse(gan.flags(), [], SHORT)).eval()
    discriminator.load_state_dict(checkpoint["discriminator"])
    x = F.pad(load_data("digits").x_test / 255, [2] * 4)   # with a black border
    with torch.no_grad():
        logits = discriminator(2 * x - 1, None)
    checkpoint["discriminator"]["last.bias"] += threshold - logits.median()
    torch.save(checkpoint, file)

    (row,) = measured(folder, out)
    assert float(row["real_test"]) == pytest.approx(0.5, abs=2 / len(x))
    assert float(row["real_train"]) == pytest.approx(0.5, abs=0.2)


def test_checkpoints_are_taken_by_their_number(tmp_path):
    for n in ("2000", "10000", "500"):   # by their names 10000 is first
        (tmp_path / f"checkpoint_{n}.pt").touch()
    names = [file.name for file in along.checkpoints(tmp_path)]
    assert names == ["checkpoint_500.pt", "checkpoint_2000.pt", "checkpoint_10000.pt"]


def test_refused(vae_run, tmp_path, refused):
    tmp_path.joinpath("empty").mkdir()
    error = refused(along, [str(tmp_path / "empty")])
    assert "checkpoint_N.pt" in error and "--save-every" in error
    folder, _, _ = vae_run
    assert "vae.py" in refused(along, [str(folder)])
