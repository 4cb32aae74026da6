"""The small trained models: each loads safely, draws, and is as good as its card says. And
tools/pack.py makes such a model of any run."""
import re

import pytest
import torch
from conftest import ROOT

import gan
import generate
import metrics
from common import binarize
from readers import load_data
from run import load_models
from tools import pack

BOX = ROOT / "results" / "models"
CARDS = dict(re.findall(r"^\| \[([\w.-]+\.pt)\].*\| test_loss ([\d.]+) \|",
                        (BOX / "README.md").read_text(), re.MULTILINE))


@pytest.mark.parametrize("file", sorted(BOX.glob("*.pt")), ids=lambda file: file.stem)
def test_a_model_draws_without_data(file, tmp_path, monkeypatch):
    assert file.stat().st_size < 4e6 and file.name in (BOX / "README.md").read_text()
    monkeypatch.setattr(generate, "load_data", None)   # a call would fail
    generate.main([str(file)], out=tmp_path)
    assert (tmp_path / "samples_64.png").stat().st_size > 1000


@torch.no_grad()
@pytest.mark.parametrize("name", ["gan-conditional-mnist", "cvae-mnist", "cvae-conv-mnist",
                                  "vae-mnist-z20", "flow-mnist"])
def test_samples_of_a_model_are_digits(name):
    """Of the class asked for or, of a model without labels, of nearly all classes."""
    file = next(metrics.MODELS.glob("MNIST-robust-classifier*"))
    classifier = metrics.Classifier(1, 10)
    classifier.load_state_dict(torch.load(file, weights_only=True))
    classifier.eval()
    _, _, models = load_models(BOX / f"{name}.pt")
    model = models[""]
    y = torch.arange(50) % 10
    z = torch.randn(50, model.latent, generator=torch.Generator().manual_seed(0))
    guesses = classifier(model.images(z, y)).argmax(1)
    if model.classes > 0:
        assert (guesses == y).float().mean() > 0.7
    assert len(guesses.unique()) >= 8


@pytest.mark.parametrize("name", CARDS)
def test_a_card_tells_the_truth(real, name):
    """Its number, within 1%, on the real test images, from the half precision weights."""
    checkpoint, script, models = load_models(BOX / name)
    args = models[""].args
    data = binarize(load_data(args.dataset, real(args.dataset)), args)
    row = script.evaluate(models[""].model, data, checkpoint["epoch"], args)
    assert row["test_loss"] == pytest.approx(float(CARDS[name]), rel=0.01)


@pytest.fixture(scope="module")
def gan_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gan") / "run"
    gan.main(dataset="digits", width=4, batch_size=8, iterations=3, eval_every=0, out=folder,
             quiet=True, device="cpu")
    return [folder]


@pytest.mark.parametrize(("script", "part"), [("vae", "model"), ("cvae", "cvae"), ("gan", "ema")])
def test_a_packed_run_draws_what_the_run_draws(script, part, request, tmp_path):
    """Within half precision, from one model, without a twin or anything to continue with."""
    run = request.getfixturevalue(f"{script}_run")[0]
    pack.main(run, tmp_path / "small.pt")
    checkpoint, _, models = load_models(tmp_path / "small.pt")
    assert checkpoint.keys() == {"script", "source", "args", "epoch", "data", "rng", part}
    assert checkpoint["rng"] == {} and list(models) == [""]
    full = load_models(run)[2][""]
    z, y = torch.randn(4, full.args.latent), torch.arange(4)
    assert (models[""].images(z, y) - full.images(z, y)).abs().max() < 0.01
    assert (tmp_path / "small.pt").stat().st_size < (run / "checkpoint.pt").stat().st_size / 4


@pytest.mark.parametrize("name, least", [("MNIST", 0.99), ("FashionMNIST", 0.9), ("digits", 0.98)])
@pytest.mark.parametrize("robust", [False, True])
def test_the_classifiers_in_the_box_are_those_of_the_data(real, name, least, robust, tmp_path,
                                                          monkeypatch):
    """Nothing is trained, and other data do not get them."""
    monkeypatch.setattr(metrics, "train", None)   # a call would fail
    data = load_data(name) if name == "digits" else load_data(name, real(name), test_size=1000)
    assert metrics.trained_classifier(data, tmp_path, robust=robust).accuracy > least - 0.02
    other = data._replace(y_train=data.y_train.flip(0))
    with pytest.raises(TypeError):
        metrics.trained_classifier(other, tmp_path, robust=robust)


def test_the_classifiers_in_the_box_are_small_and_named_by_their_data():
    files = sorted(file.name for file in metrics.MODELS.glob("*.pt"))
    kinds = ["FashionMNIST-classifier", "FashionMNIST-robust-classifier",
             "MNIST-classifier", "MNIST-robust-classifier",
             "digits-classifier", "digits-robust-classifier"]
    assert [file.rsplit("-", 1)[0] for file in files] == kinds
    for file in metrics.MODELS.glob("*.pt"):
        assert file.stat().st_size < 300_000
