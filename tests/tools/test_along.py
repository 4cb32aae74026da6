"""A GAN along its training: precision, recall, and what passes for real with the discriminator."""
import csv

import pytest
import torch
from torch.nn import functional as F

import evaluate
import gan
import metrics
import run
from readers import load_data
from run import load_models
from tools import along

pytestmark = pytest.mark.usefixtures("no_plots")

SHORT = {"dataset": "digits", "width": 4, "latent": 2, "batch_size": 8, "iterations": 12,
         "eval_every": 0, "device": "cpu", "quiet": True}


def measured(folder, out):
    """The rows of along.csv of a run."""
    along.main([str(folder), "--out", str(out)])
    with open(folder / "along.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_checkpoint_as_evaluate_measures_it(out, tmp_path, monkeypatch, capsys):
    """In place of precision and recall, which are 0 so early, two numbers of the features."""
    monkeypatch.setattr(metrics, "precision_recall",
                        lambda real, fake: (fake.mean().item(), fake.std().item()))
    monkeypatch.setattr(gan, "make_meters", lambda args, data: (None, None))
    folder = tmp_path / "run"
    gan.main(out=folder, loss="wgan-gp", **SHORT | {"eval_every": 4, "save_every": 1})
    monkeypatch.setattr(run, "source_hash", lambda file: "that of a changed script")
    capsys.readouterr()
    rows = measured(folder, out)
    assert capsys.readouterr().out.count("gan.py has changed") == 1
    assert [row["iteration"] for row in rows] == ["4", "8", "12"]
    for row in rows:
        file = folder / f"checkpoint_{int(row['iteration']):03}.pt"
        found = evaluate.main([str(file)], metrics="pr", device="cpu", out=out)
        expected = {name: f"{value:.6g}" for name, value in found.items()}   # and the ceilings
        assert row == {"iteration": row["iteration"], **expected}     # a critic lets nothing pass
    assert len({row["precision_classifier_297"] for row in rows}) == 3


@pytest.mark.parametrize("loss, threshold", [("gan", 0), ("lsgan", 0.5)])
def test_what_passes_for_real(loss, threshold, out, tmp_path):
    """The three shares once more by hand, told the labels, where the median of the test images'
    logits is the threshold."""
    folder = tmp_path / "run"
    gan.main(out=folder, loss=loss, conditional=True, **SHORT)
    (file,) = folder.glob("checkpoint_*.pt")
    checkpoint, _, models = load_models(file)
    data = load_data("digits")
    own = metrics.subset(torch.arange(len(data.x_train)), 297)
    labels = metrics.subset(data.y_test, 297)
    samples = torch.cat(list(evaluate.draw(models[""], labels, seed=1)))
    discriminator = gan.Discriminator((1, 28, 28), 10, models[""].args).eval()
    discriminator.load_state_dict(checkpoint["discriminator"])
    torch.nn.init.normal_(discriminator.label.weight)   # 12 steps have not taught it any

    def logits(x, y):
        with torch.no_grad():
            return discriminator(2 * F.pad(x, [2] * 4) - 1, y)   # a black border

    with torch.no_grad():
        discriminator.last.bias += threshold - logits(data.x_test / 255, data.y_test).median()
    checkpoint["discriminator"] = discriminator.state_dict()
    torch.save(checkpoint, file)
    expected = {
        "passes_train": logits(data.x_train[own] / 255, data.y_train[own]),
        "passes_test": logits(data.x_test / 255, data.y_test),
        "passes_samples": logits(samples, labels),
    }
    (row,) = measured(folder, out)
    for name, values in expected.items():
        share = (values > threshold).double().mean().item()
        assert float(row[name]) == pytest.approx(share, abs=1.5 / 297)
    assert float(row["passes_test"]) == pytest.approx(0.5, abs=1.5 / 297)


def test_training_images_are_those_that_the_run_saw(out, tmp_path, monkeypatch):
    """A run with --train-size 50 shows no other, or by-heart knowledge would not be seen."""
    shown = []
    for_discriminator = gan.for_discriminator
    folder = tmp_path / "run"
    gan.main(out=folder, train_size=50, **SHORT)
    monkeypatch.setattr(gan, "for_discriminator",
                        lambda x: shown.append(x) or for_discriminator(x))
    measured(folder, out)
    images, _, _ = shown
    own = load_data("digits", train_size=50).x_train
    assert len(images) == 50
    assert {x.numpy().tobytes() for x in images} == {x.numpy().tobytes() for x in own}


def test_checkpoints_are_taken_by_their_number(tmp_path):
    for n in ("2000", "10000", "500", "best"):   # by their names 10000 is first
        (tmp_path / f"checkpoint_{n}.pt").touch()
    names = [file.name for file in along.checkpoints(tmp_path)]
    assert names == ["checkpoint_500.pt", "checkpoint_2000.pt", "checkpoint_10000.pt"]


def test_refused(vae_run, tmp_path, refused):
    error = refused(along, [str(tmp_path)])
    assert "checkpoint_N.pt" in error and "--save-every" in error
    folder, _, _ = vae_run
    assert "vae.py" in refused(along, [str(folder)])
