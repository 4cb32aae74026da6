"""evaluate.py: the numbers of one run, what it says of a model that lacks some, and the comparison
of several runs."""
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal
from torch.nn import functional as F

import cvae
import evaluate
import gan
import generate
import metrics
import vae
from common import Data
from readers import load_data
from run import Trained, load_models, parse, read_log

pytestmark = pytest.mark.usefixtures("no_plots")

QUICK = {"metrics": "elbo,mse", "device": "cpu"}


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


# ------------------------------------------------------------------------------- ELBO and errors

def test_numbers_of_a_run_agree_with_its_log_and_its_model(vae_run, digits, tmp_path, capsys):
    folder, model, log = vae_run
    shutil.copytree(folder, tmp_path / "run")
    found = evaluate.main([str(tmp_path / "run")], **QUICK)
    assert set(found) == {"test_loss", "test_recon", "test_kl", "active", "mse", "psnr", "sse_pm1"}
    for name in ("test_loss", "test_recon", "test_kl", "active"):
        assert found[name] == pytest.approx(log[-1][name], rel=1e-5)

    x = digits.x_test / 255
    with torch.no_grad():
        mu, _ = model.eval().encode(x)
        mse = (model.decode(mu).mean - x).square().mean().item()
    assert found["mse"] == pytest.approx(mse, rel=1e-5)
    assert found["psnr"] == pytest.approx(-10 * math.log10(mse), rel=1e-5)
    assert found["sse_pm1"] == pytest.approx(4 * 784 * mse, rel=1e-5)   # (2a - 1) - (2b - 1)
    printed = capsys.readouterr().out
    assert f"psnr       {found['psnr']:.6g}\n" in printed
    assert "note:" not in printed

    evaluate.main([str(tmp_path / "run")], seed=2, **QUICK)   # is added to what was found before
    first, second = (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()
    assert json.loads(first) == {"epoch": 2, "seed": 1, **found}
    assert json.loads(second)["seed"] == 2


def test_twin_and_sigma_are_measured_too(tmp_path):
    cvae.main(out=tmp_path / "run", likelihood="gaussian", **TINY)
    found = evaluate.main([str(tmp_path / "run" / "checkpoint_002.pt")], **QUICK)
    assert not (tmp_path / "run" / "evaluation.jsonl").exists()   # a checkpoint is only printed
    row = read_log(tmp_path / "run")[-1]
    for name in ("test_loss", "vae_test_loss", "vae_active"):
        assert found[name] == pytest.approx(row[name], rel=1e-5)
    assert found["vae_mse"] != found["mse"]
    _, _, models = load_models(tmp_path / "run")
    for prefix, trained in models.items():
        sigma = 1 / 256 + math.exp(trained.model.log_sigma.item())   # what the bound comes to
        assert found[f"{prefix}sigma"] == pytest.approx(sigma)
    assert found["sigma"] != found["vae_sigma"]


def test_a_perfect_copy_has_no_error_and_endless_psnr(digits):
    copy = SimpleNamespace(model=None, encode=lambda x, y: (x, None), images=lambda z, y: z)
    assert evaluate.errors(copy, digits) == {"mse": 0, "psnr": math.inf, "sse_pm1": 0}


def test_pixels_are_binarised_for_the_elbo_and_not_for_distances(tmp_path, monkeypatch, digits):
    vae.main(out=tmp_path / "run", **TINY | {"binarize": "dynamic", "train_size": 200})
    shown = Recorder()
    monkeypatch.setattr(metrics, "extractor", lambda *_: ("own", shown))
    found = evaluate.main([str(tmp_path / "run")], metrics="elbo,pr,nll", nll_samples=5)
    row = read_log(tmp_path / "run")[-1]
    assert found["test_loss"] == pytest.approx(row["test_loss"], rel=1e-5)
    assert found["nll_is5"] < found["test_loss"]   # a likelihood by that name, and a closer bound
    test, training, samples = shown.images
    assert bytes_of(test) == bytes_of(digits.x_test / 255)
    assert bytes_of(training) <= bytes_of(digits.x_train / 255)
    assert len(training) == len(samples) == 297   # of all training images, not of the run's 200


class Recorder:
    """Stands where the network of the features does, and keeps the images that it is shown."""

    def __init__(self):
        self.images = []

    def __call__(self, x):
        self.images.append(x)
        return torch.rand(len(x), 3, dtype=torch.double)


def bytes_of(images):
    """The set of images (N, C, H, W) in [0, 1], whatever their order."""
    return {image.numpy().tobytes() for image in images.mul(255).round().byte()}


def kl_of_class(model, data, label):
    """KL(N(m, S) || N(0, I)) = 1/2 (tr S + m'm - n - log |S|), m and S those of the codes of the
    training images of a class."""
    own = data.y_train == label
    mu, logvar = model.encode(data.x_train[own] / 255, data.y_train[own])
    mu, variance = mu.detach().double().numpy(), logvar.detach().double().exp().numpy()
    mean = mu.mean(0)
    covariance = np.cov(mu.T, bias=True) + np.diag(variance.mean(0))
    trace, (_, log_det) = np.trace(covariance), np.linalg.slogdet(covariance)
    return 0.5 * (trace + mean @ mean - len(mean) - log_det)


# ------------------------------------------------------------------------------- all the groups

def test_everything_of_a_cvae_and_its_twin(cvae_run, digits, out, capsys):
    checkpoint = str(cvae_run[0] / "checkpoint_002.pt")
    flags = {"metrics": "all", "nll_samples": 10, "out": out, "device": "cpu"}
    found = evaluate.main([checkpoint], **flags)
    assert "features: classifier of digits" in capsys.readouterr().out

    for prefix in ("", "vae_"):   # training images are nearer to test images than samples are
        for name in ("fid", "kid"):
            floor = found[f"{name}_classifier_297_floor"]
            assert floor < found[f"{prefix}{name}_classifier_297"]
        ceiling = found["recall_classifier_297_ceiling"]
        assert ceiling > found[f"{prefix}recall_classifier_297"]
        assert f"{prefix}precision_classifier_297" in found   # blurred images can be more precise

    assert 0.9 < found["classifier_accuracy_297"] < 1
    each = found["class_accuracy_1000_each"]
    assert len(each) == 10
    assert found["class_accuracy_1000"] == pytest.approx(sum(each) / 10)
    each = found["class_accuracy_fitted_1000_each"]
    assert found["class_accuracy_fitted_1000"] == pytest.approx(sum(each) / 10)
    assert found["class_kl"] == pytest.approx(sum(found["class_kl_each"]) / 10)
    assert found["class_kl_each"][4] == pytest.approx(kl_of_class(cvae_run[1], digits, 4), rel=1e-4)
    assert "vae_class_accuracy_fitted_1000" in found   # untold, but it has codes
    counts = found["vae_class_counts_1000"]
    assert sum(counts) == 1000
    shares = [count / 1000 for count in counts if count > 0]
    entropy = -sum(share * math.log(share) for share in shares)   # in nats
    assert found["vae_class_entropy_1000"] == pytest.approx(entropy, abs=1e-5)
    assert "vae_class_accuracy_1000" not in found   # it cannot be asked for a class

    frequency = digits.y_test.bincount() / 297
    for prefix in ("", "vae_"):   # the mean over classes is weighted by their test images
        name = f"{prefix}reconstruction_accuracy_297"
        mean = (torch.tensor(found[f"{name}_each"]) * frequency).sum().item()
        assert 0 < found[name] == pytest.approx(mean, abs=1e-5)

    # the ELBO is a looser bound; no more than -log p(y) can be gained by the label
    assert found["vae_grey_pixel_is10"] < found["vae_test_loss"]
    assert found["grey_pixel_given_y_is10"] < found["test_loss"]
    gain = found["grey_pixel_marginal_is10_297"] - found["grey_pixel_given_y_is10_297"]
    rarest = digits.y_train.bincount().min().item() / 1500
    assert gain < -math.log(rarest)
    assert 0 <= found["free_classifier_is10_297"] <= 1


def test_samples_from_a_fitted_gaussian_are_of_the_class_it_was_fitted_to():
    """The codes of ten classes on a circle of radius 3, with variance exp(-4), of a model that is
    not told the class. From the prior a tenth of the samples would be right."""
    step = 2 * math.pi / 10

    def encode(x, c):
        angle = step * 255 * x.flatten()
        mu = 3 * torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)
        return mu, torch.full_like(mu, -4)

    def images(z, c):
        label = (torch.atan2(z[:, 1], z[:, 0]) / step).round() % 10
        return label.view(-1, 1, 1, 1) / 255

    def classifier(x):
        return F.one_hot((255 * x.flatten()).round().long(), 10)

    trained = SimpleNamespace(latent=2, is_autoencoder=False, encode=encode, images=images,
                              prior=lambda: None, args=SimpleNamespace(binarize="none"))
    y = torch.arange(100) % 10
    x = y.byte().view(-1, 1, 1, 1)
    data = Data("circle", x, y, x, y, [str(label) for label in range(10)])
    found = evaluate.classes_of_fitted_samples(classifier, trained, data, seed=1)
    assert found["class_accuracy_fitted_1000"] == 1
    expected = 0.5 * (3 ** 2 + 2 * (math.exp(-4) - 1 + 4))   # KL(N(m, s^2 I) || N(0, I))
    assert found["class_kl"] == pytest.approx(expected, rel=1e-4)


def test_a_gaussian_is_fitted_to_codes_of_images_as_the_model_saw_them():
    """With --binarize dynamic they are black or white, drawn anew, and not grey."""
    seen = []

    def encode(x, c):
        seen.append(x)
        return x.flatten(1)[:, :2], torch.zeros(len(x), 2)

    trained = SimpleNamespace(latent=2, is_autoencoder=False, encode=encode, prior=lambda: None,
                              images=lambda z, c: z, args=SimpleNamespace(binarize="dynamic"))
    x, y = torch.full((40, 1, 2, 2), 127, dtype=torch.uint8), torch.arange(40) % 2
    data = Data("grey", x, y, x, y, ["a", "b"])
    evaluate.classes_of_fitted_samples(lambda x: x, trained, data, seed=1)
    pixels = torch.cat(seen)
    assert len(seen) == 2 and set(pixels.unique().tolist()) == {0.0, 1.0}
    assert 0.3 < pixels.mean() < 0.7


def test_an_autoencoder_has_no_kl_no_samples_and_no_likelihood(tmp_path, out, capsys):
    vae.main(out=tmp_path / "run", **TINY | {"beta": 0, "epochs": 1})
    found = evaluate.main([str(tmp_path / "run")], metrics="all", out=out, device="cpu")
    assert set(found) == {"classifier_accuracy_297", "test_loss", "test_recon", "active", "mse",
                          "psnr", "sse_pm1", "reconstruction_accuracy_297",
                          "reconstruction_accuracy_297_each", "class_accuracy_fitted_1000",
                          "class_accuracy_fitted_1000_each"}
    printed = capsys.readouterr().out
    assert printed.count("left out: an autoencoder has no prior") == 4
    assert "note:" not in printed


def test_images_without_labels_have_no_classes(tmp_path, npz, capsys):
    vae.main(out=tmp_path / "run", **TINY | {"dataset": npz(y_train=None, y_test=None)})
    found = evaluate.main([str(tmp_path / "run")], out=tmp_path, data=tmp_path)
    assert "class left out: it takes labels" in capsys.readouterr().out
    assert math.isfinite(found["fid_autoencoder_7"])
    assert not any("class_" in name for name in found)


@pytest.mark.parametrize("conditional", [False, True])
def test_a_gan_has_samples_only(conditional, tmp_path, out, capsys):
    gan.main(dataset="digits", width=4, latent=4, batch_size=16, iterations=2, eval_every=0,
             conditional=conditional, quiet=True, device="cpu", out=tmp_path / "run")
    found = evaluate.main([str(tmp_path / "run")], out=out, metrics="all", device="cpu")
    names = {name for name in found if "class_" in name}
    if conditional:
        assert names == {"class_accuracy_1000", "class_accuracy_1000_each"}
    else:
        assert names == {"class_counts_1000", "class_entropy_1000"}
    printed = capsys.readouterr().out
    for group in ("elbo", "mse", "nll"):
        assert printed.count(f"{group} left out: ") == 1
    assert printed.count("left out") == 3
    line = (tmp_path / "run" / "evaluation.jsonl").read_text(encoding="utf-8")
    assert json.loads(line) == {"iteration": 2, "seed": 1, **found}


@pytest.mark.parametrize("few", ["training", "test"])
def test_three_images_are_too_few_for_distances(few, tmp_path, npz, capsys):
    flags = {"dataset": npz(), "test_size": 3}
    if few == "training":
        flags = {"dataset": npz(x_train=np.zeros((3, 8, 8), np.uint8), y_train=np.arange(3),
                                y_test=np.arange(7) % 3)}
    vae.main(out=tmp_path / "run", **TINY | flags)
    found = evaluate.main([str(tmp_path / "run")], out=tmp_path)
    printed = capsys.readouterr().out
    for group in ("fid", "kid", "pr"):
        assert f"{group} left out: it takes four images to train and to test" in printed
    assert "test_loss" in found
    assert not any("fid" in name for name in found)


def test_without_torchmetrics_precision_and_recall_remain(vae_run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "has_package", lambda name, purpose: name != "torchmetrics")
    monkeypatch.setattr(metrics, "extractor", lambda *_: ("own", Recorder()))
    found = evaluate.main([str(vae_run[0] / "checkpoint.pt")], metrics="fid,kid,pr", out=tmp_path)
    assert {name.split("_")[0] for name in found} == {"precision", "recall"}


# ------------------------------------------------------------------------ what the numbers are of

def test_samples_are_of_the_labels_asked_for(cvae_run):
    trained = load_models(cvae_run[0])[2][""]
    labels = torch.arange(1500) % 10
    images = torch.cat(list(evaluate.draw(trained, labels, seed=3)))
    noise = torch.Generator().manual_seed(3)
    z = torch.cat([torch.randn(1000, 2, generator=noise), torch.randn(500, 2, generator=noise)])
    torch.testing.assert_close(images, trained.decode(z, labels).mean)


def test_labels_of_samples_are_as_frequent_as_in_the_test_set(digits, monkeypatch):
    monkeypatch.setattr(metrics, "extractor", lambda *_: ("own", Recorder()))
    args = SimpleNamespace(fid_features="classifier", data="data", out="results")
    meter = evaluate.DistanceMeter(["pr"], digits, args)
    assert torch.equal(meter.labels.bincount(), digits.y_test.bincount())


def test_the_floor_is_of_as_many_images_as_the_distances(digits, monkeypatch):
    """Also where there are fewer images for training than for testing."""
    data = digits._replace(x_train=digits.x_train[:40], y_train=digits.y_train[:40])
    monkeypatch.setattr(metrics, "extractor", lambda *_: ("pixels", torch.nn.Flatten()))
    args = SimpleNamespace(fid_features="classifier", data="data", out="results")
    meter = evaluate.DistanceMeter(["pr"], data, args)
    assert len(meter.real) == 40 and "recall_pixels_40_ceiling" in meter.bounds()
    features = metrics.Features(torch.nn.Flatten(), 784, None, "cpu")
    monkeypatch.setattr(metrics, "extractor", lambda *_: ("pixels", features))
    assert metrics.FIDMeter(data, quiet=True).name == "fid_pixels_40"


@pytest.mark.parametrize("flags", [{}, {"train_size": 15}])
@pytest.mark.parametrize("command", [evaluate, generate])
def test_other_test_images_are_told(flags, command, npz, tmp_path, capsys, no_plots):
    """Also of a run that saw a subset of the training images."""
    folder = tmp_path / "run"
    vae.main(out=folder, lr_schedule="constant", **TINY | flags | {"dataset": npz(), "epochs": 1})
    more = {"metrics": "elbo"} if command is evaluate else {"reconstruct": 3}
    command.main([str(folder)], out=tmp_path / "out", **more)
    assert "changed since this run was trained" not in capsys.readouterr().out
    x = np.random.default_rng(1).integers(0, 256, (27, 8, 8), np.uint8)   # not those of npz()
    with np.load(npz()) as arrays:
        npz(x_train=arrays["x_train"], x_test=x[20:])
    command.main([str(folder)], out=tmp_path / "out", **more)
    assert "changed since this run was trained" in capsys.readouterr().out


def test_precision_is_of_the_fake_and_recall_of_the_real():
    """Fakes all in the middle of the real ones: precise, and not diverse."""
    meter = evaluate.DistanceMeter.__new__(evaluate.DistanceMeter)
    meter.wanted, meter.n, meter.network_name, meter.network = ["pr"], 200, "own", lambda x: x
    meter.real = torch.randn(200, 2, dtype=torch.double,
                             generator=torch.Generator().manual_seed(0))
    row = meter.distances([0.1 * meter.real.flip(0)])
    assert row["precision_own_200"] > 0.9
    assert row["recall_own_200"] < 0.5


def test_a_class_without_images_has_no_accuracy():
    guesses, labels = torch.tensor([0, 2, 2, 0]), torch.tensor([0, 2, 0, 0])
    row = evaluate.accuracies("a", guesses, labels, 3)
    assert row == {"a": 0.75, "a_each": [pytest.approx(2 / 3), None, 1]}


def test_likelihoods_of_a_table_of_p_x_given_y(monkeypatch):
    """Four images of two classes, three times as many of the first: Bayes' rule by hand."""
    p = torch.tensor([[0.2, 0.4], [0.1, 0.05], [0.6, 0.1], [0.2, 0.8]])
    prior = torch.tensor([0.75, 0.25])
    x = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)   # an image's only pixel is its row
    y = torch.tensor([1, 0, 0, 1])
    data = Data("own", x, torch.tensor([0, 0, 0, 1]), x, y, ["a", "b"])

    def table(model, x, *_):
        row = x.flatten() * 255
        torch.testing.assert_close(row, row.round())
        return p[row.round().long()].log()

    monkeypatch.setattr(metrics, "nll_is", lambda model, x, y, *_: -table(model, x)[range(4), y])
    monkeypatch.setattr(metrics, "class_log_likelihoods", table)
    monkeypatch.setattr(evaluate, "likelihood_name", lambda *_: "nll")
    args = SimpleNamespace(seed=1, nll_samples=1)
    trained = SimpleNamespace(classes=2, name="own", is_flow=False, conditions=())
    found = evaluate.likelihoods(trained, data, args)
    given_y = -p[range(4), y].log().mean().item()
    assert found["nll_given_y_is1"] == found["nll_given_y_is1_4"] == pytest.approx(given_y)
    assert found["nll_marginal_is1_4"] == pytest.approx(-(p @ prior).log().mean().item())
    assert found["free_classifier_is1_4"] == 0.75   # without the prior all would be right


# --------------------------------------------------------------------- changed models, honestly

def small_vae(beta=1.0):
    """A VAE of digits with any weights, as load_models returns one."""
    torch.manual_seed(0)
    args = SimpleNamespace(arch="mlp", hidden=8, layers=1, latent=2, dropout=0.0, beta=beta,
                           likelihood="bernoulli", sigma="learned")
    return Trained(vae.VAE((1, 28, 28), args).eval(), "VAE", args)


def note_of(loss_terms, trained, data, capsys):
    """What is printed if my_vae.py has this loss."""
    module = SimpleNamespace(__file__="my_vae.py", loss_terms=loss_terms)
    with torch.no_grad():
        evaluate.note_other_loss(module, trained, data)
    return capsys.readouterr().out


def more_recon(model, x, eps):
    recon, kl, mu = vae.loss_terms(model, x, eps)
    return recon + 0.1, kl, mu


def other_kl(model, x, eps):
    recon, kl, mu = vae.loss_terms(model, x, eps)
    return recon, 1.1 * kl, mu


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_standard_loss_gets_no_note(beta, digits, capsys):
    assert note_of(vae.loss_terms, small_vae(beta), digits, capsys) == ""


@pytest.mark.parametrize("loss_terms, has_prior, assumed", [
    (more_recon, False, False), (other_kl, False, True), (other_kl, True, False)])
def test_another_loss_is_told_with_the_prior_that_is_assumed(loss_terms, has_prior, assumed,
                                                             digits, capsys):
    trained = small_vae()
    if has_prior:
        trained.model.prior = lambda: Independent(Normal(torch.ones(2), 2.0), 1)
    note = note_of(loss_terms, trained, digits, capsys)
    assert "my_vae.py is not recon + KL to N(0, I); test_loss is its own" in note
    assert ("no method prior()" in note) == assumed
    assert note.count("\n") == 1


@pytest.mark.parametrize("loss_terms", [None, lambda model, x: 0, lambda model, x, eps: (x, x)])
def test_a_loss_that_cannot_be_compared_is_told(loss_terms, digits, capsys):
    note = note_of(loss_terms, small_vae(), digits, capsys)
    assert "was not checked" in note
    assert note.count("\n") == 1


def test_a_prior_of_its_own_is_sampled_with_the_seed(digits):
    trained = small_vae()
    prior = Independent(Normal(torch.tensor([5.0, -5.0]), 0.1), 1)
    trained.model.prior = lambda: prior
    labels = torch.zeros(4, dtype=torch.long)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    images = list(evaluate.draw(trained, labels, seed=3))
    assert torch.equal(torch.get_rng_state(), before)   # nothing else is drawn differently
    torch.manual_seed(3)
    z = prior.sample((4,))
    torch.testing.assert_close(images[0], trained.decode(z, labels).mean)


class Odd(nn.Module):
    """A model that is given methods of any kind."""

    def __init__(self, **methods):
        super().__init__()
        for name, method in methods.items():
            setattr(self, name, method)


def code(x):
    return x.flatten(1)[:, :2], torch.zeros(len(x), 2)


def image_distribution(z):
    return Independent(Bernoulli(logits=z.mean(1).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)), 3)


@pytest.mark.parametrize("methods, missing, reason", [
    ({"decode": image_distribution}, {"mse", "nll"}, "no method encode"),
    ({"encode": lambda x: x.flatten(1), "decode": image_distribution}, {"mse", "nll"},
     "does not return mu and logvar"),
    ({"encode": code}, {"mse", "class", "fid", "kid", "pr", "nll"}, "no method decode"),
    ({"encode": code, "decode": lambda z: z}, {"mse", "class", "fid", "kid", "pr", "nll"},
     "does not return a torch distribution"),
    ({"encode": code, "decode": image_distribution}, set(), ""),
])
def test_what_a_model_lacks_is_left_out(methods, missing, reason, digits):
    trained = Trained(Odd(**methods), "Odd", SimpleNamespace(latent=2))
    reasons = evaluate.impossible_groups(vae, trained, digits)
    assert set(reasons) == missing
    assert all(text.startswith("Odd") and reason in text for text in reasons.values())


def test_a_model_without_encoder_has_the_classes_of_its_samples(vae_run, out, capsys):
    checkpoint, _, models = load_models(vae_run[0])
    trained = Trained(Odd(decode=image_distribution), "Odd", models[""].args)
    module = SimpleNamespace(__file__="my_decoder.py")
    args = parse(evaluate.flags(), [str(vae_run[0])], {"metrics": "elbo,class", "out": out})
    found = evaluate.measure(checkpoint, module, {"": trained}, args)
    assert set(found) == {"classifier_accuracy_297", "class_counts_1000", "class_entropy_1000"}
    assert "elbo left out: my_decoder.py has no function evaluate" in capsys.readouterr().out


# ------------------------------------------------------------------------------------ comparison

def test_a_comparison_shows_just_the_flags_that_differ(vae_run, tmp_path, capsys):
    vae.main(out=tmp_path / "other", save_every=3, amp=True, **TINY | {"beta": 0, "seed": 2})
    with open(tmp_path / "other" / "args.txt", "a") as file:
        file.write("--show=mean\n")   # a flag of the first edition
    evaluate.main([str(vae_run[0]), str(tmp_path / "other")], out=tmp_path)
    *lines, path = capsys.readouterr().out.splitlines()
    header, first, second = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    assert header[:5] == ["run", "amp", "beta", "seed", "epochs done"]
    assert first[:5] == ["run", "-", "1.0", "1", "2"]
    assert second[:5] == ["other", "on", "0.0", "2", "2"]
    assert second[7] == ""   # an autoencoder has no KL
    bars = [[i for i, letter in enumerate(line) if letter == "|"] for line in lines]
    assert bars[0] == bars[1] == bars[2]   # the columns are aligned
    last = vae_run[2][-1]
    expected = [last["test_loss"], last["test_recon"], last["test_kl"]]
    assert [float(cell) for cell in first[5:8]] == pytest.approx(expected, abs=0.006)
    assert path == str(tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 0


def test_a_comparison_tells_whose_loss_it_is(vae_run, tmp_path, capsys):
    """Flags alone would not: recipes have those of vae.py, and losses of their own."""
    folder = tmp_path / "denoised"
    shutil.copytree(vae_run[0], folder)
    text = (folder / "args.txt").read_text()
    assert text.startswith("# python vae.py")
    (folder / "args.txt").write_text(text.replace("vae.py", "-m recipes.denoising", 1))
    evaluate.main([str(vae_run[0]), str(folder)], out=tmp_path)
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split(" | ")][1] for line in lines[:3]]
    assert cells == ["script", "vae.py", "recipes.denoising"]


def test_the_key_names_the_flags_in_which_a_run_is_not_as_most(tmp_path):
    runs = ["first", "wide", "sharp"]
    texts = ["--beta=1.0\n--hidden=500\n--background=white", "--beta=1.0\n--hidden=900\n--amp",
             "--beta=2.0\n--hidden=500\n--tensorboard\n--layers=1"]
    for name, text in zip(runs, texts, strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "args.txt").write_text(text)
        (tmp_path / name / "log.csv").touch()
    all_flags = [evaluate.read_flags(tmp_path / name) for name in runs]
    differ = evaluate.flags_that_differ(all_flags)
    assert differ == ["amp", "beta", "hidden"]   # before --layers there was one hidden layer
    usual = evaluate.usual_values(all_flags, differ)
    assert usual == {"amp": "-", "beta": "1.0", "hidden": "500"}
    names = evaluate.names_in_figure(runs, all_flags, differ, usual)
    assert names == ["first", "amp, hidden 900", "beta 2.0"]
    assert evaluate.names_in_figure(runs, all_flags, ["amp"], {})[0] == "no amp"


def test_numbers_have_headings_and_those_of_classes_their_names(capsys):
    found = {"classifier_accuracy_9": 0.5, "fid_own_9_floor": 2.0, "test_loss": 100.0,
             "class_accuracy_9_each": [0.25, None, 1.0], "vae_test_loss": 101.0, "vae_mse": 0.125}
    evaluate.print_table(found, ["T-shirt/top", "Bag", "a\x1b[31m"])
    assert capsys.readouterr().out == """
loss on the test set
  test_loss             100
  vae_test_loss         101

reconstructions
  vae_mse               0.125

classes
  classifier_accuracy_9 0.5
  class_accuracy_9_each
    T-shirt/top: 0.25   Bag: -              a\\x1b[31m: 1

distances to the test set
  fid_own_9_floor       2
"""


def test_without_matplotlib_the_table_is_printed(vae_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "has_package", lambda name, purpose: False)
    evaluate.main([str(vae_run[0])] * 2, out=tmp_path)
    assert capsys.readouterr().out.count("\n") == 3
    assert not (tmp_path / "compare.png").exists()


# ------------------------------------------------------------------------------ what is refused

def test_bad_flags(vae_run, refused):
    run = [str(vae_run[0] / "checkpoint.pt")]
    assert "--metrics" in refused(evaluate, run, metrics="elbo,fidd")
    assert "--nll-samples" in refused(evaluate, run, nll_samples=0)
    assert "--fid-features no.pt" in refused(evaluate, run, fid_features="no.pt")
    assert "--out" in refused(evaluate, run, out=vae_run[0] / "log.csv")


def test_data_that_have_changed(tmp_path, npz, refused):
    vae.main(out=tmp_path / "run", **TINY | {"dataset": npz()})
    npz(x_train=np.zeros((20, 9, 9), np.uint8), x_test=np.zeros((7, 9, 9), np.uint8))
    assert "own.npz no longer matches" in refused(evaluate, [str(tmp_path / "run")], out=tmp_path)
    npz(classes=np.array(["a", "b", "c", "d"]))
    assert "own.npz no longer matches" in refused(evaluate, [str(tmp_path / "run")], out=tmp_path)


def test_flags_of_one_run_are_not_dropped_in_a_comparison(vae_run, refused):
    runs = [str(vae_run[0])] * 2
    assert "--metrics goes with one run" in refused(evaluate, runs, metrics="nll")
    assert "--nll-samples goes with one run" in refused(evaluate, runs, nll_samples=3)


def test_folders_that_are_not_runs(vae_run, tmp_path, refused):
    assert str(tmp_path) in refused(evaluate, [str(tmp_path)])
    assert "no args.txt" in refused(evaluate, [str(tmp_path)] * 2)
    (tmp_path / "stopped").mkdir()
    shutil.copy(vae_run[0] / "args.txt", tmp_path / "stopped")
    line = refused(evaluate, [str(vae_run[0]), str(tmp_path / "stopped")])
    assert "before its first epoch" in line


def test_runs_of_gan_are_not_compared(vae_run, tmp_path, refused):
    gan.main(dataset="digits", width=4, latent=4, batch_size=16, iterations=1, eval_every=0,
             quiet=True, device="cpu", out=tmp_path / "gan")
    line = refused(evaluate, [str(vae_run[0]), str(tmp_path / "gan")])
    assert "no test_loss" in line


def test_counts_of_samples_are_named_for_how_many_there_were(digits):
    """Of a model told conditions there is a sample for each test image, and these are few."""
    trained = SimpleNamespace(conditions=("angle",), classes=0, latent=2, prior=lambda: None,
                              images=lambda z, c: z.sum(1).view(-1, 1, 1, 1).expand(-1, 1, 28, 28))
    data = digits._replace(v_test=torch.zeros(297, 2))
    args = SimpleNamespace(seed=1, temperature=1.0)
    found = evaluate.classes_of_samples(lambda x: x.flatten(1)[:, :10], trained, data, args)
    assert set(found) == {"class_counts_297", "class_entropy_297"}
    assert sum(found["class_counts_297"]) == 297


@pytest.mark.parametrize("methods, said", [
    ({"encode": code}, "Odd has neither a method decode nor a method picture"),
    ({"encode": code, "decode": lambda z: z}, "Odd.decode does not return a torch distribution"),
])
def test_a_model_without_images_says_so(methods, said, capsys):
    trained = Trained(Odd(**methods), "Odd", SimpleNamespace(latent=2))
    with pytest.raises(SystemExit):
        trained.images(torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))
    assert said in capsys.readouterr().err


def grey_as_class(z, c):
    """Images (N, 1, 28, 28) whose grey level is the class; a 3 comes out as a 4."""
    label = torch.where(c == 3, 4, c)
    return label.view(-1, 1, 1, 1).expand(-1, 1, 28, 28) / 255


def read_grey(x):
    """The classifier of such images: logits (N, 10)."""
    return F.one_hot((255 * x[:, 0, 0, 0]).round().long(), 10)


def test_shares_of_samples_and_reconstructions_that_have_their_class(digits):
    """A model that draws what it is asked for, but for threes."""
    trained = SimpleNamespace(conditions=(), classes=10, latent=2, prior=lambda: None,
                              encode=lambda x, c: (x.flatten(1), None), images=grey_as_class)
    args = SimpleNamespace(seed=1, temperature=1.0)
    samples = evaluate.classes_of_samples(read_grey, trained, digits, args)
    reconstructions = evaluate.classes_of_reconstructions(read_grey, trained, digits)
    expected = [1, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    assert samples == {"class_accuracy_1000": pytest.approx(0.9),
                       "class_accuracy_1000_each": expected}
    assert reconstructions["reconstruction_accuracy_297_each"] == expected
    share = 1 - (digits.y_test == 3).double().mean().item()
    assert reconstructions["reconstruction_accuracy_297"] == pytest.approx(share)


def test_the_classifier_that_measures_also_saw_blurred_images(vae_run, out, monkeypatch):
    asked = []

    def trained_classifier(data, cache, robust):
        asked.append(robust)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
        network.accuracy = 0.5
        return network

    monkeypatch.setattr(metrics, "trained_classifier", trained_classifier)
    checkpoint = vae_run[0] / "checkpoint.pt"   # of which nothing is written
    found = evaluate.main([str(checkpoint)], metrics="class", out=out, device="cpu")
    assert asked == [True] and found["classifier_accuracy_297"] == 0.5


@torch.no_grad()
def test_a_model_told_an_angle_is_measured_with_the_angle_of_each_image(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    model, log = cvae.main(out=folder, **TINY | {"epochs": 1, "rotate": 60, "test_size": 50,
                                                 "no_baseline": True})
    found = evaluate.main([str(folder)], metrics="elbo,mse,nll", nll_samples=2, out=tmp_path,
                          device="cpu")
    assert found["test_loss"] == pytest.approx(log[-1]["test_loss"], rel=1e-5)
    assert "grey_pixel_given_c_is2" in found
    data = load_data("digits", rotate=60, condition=None, test_size=50)
    x, c = data.x_test / 255, data.c_test
    mu, _ = model.encode(x, c)
    mse = (model.decode(mu, c).mean - x).square().mean().item()
    assert found["mse"] == pytest.approx(mse, rel=1e-5)

    _, _, models = load_models(folder)
    told = []
    trained = SimpleNamespace(conditions=models[""].conditions, classes=10, latent=2,
                              prior=lambda: None,
                              images=lambda z, c: told.append(c) or grey_as_class(z, 0 * c[:, 0]))
    evaluate.classes_of_samples(read_grey, trained, data, SimpleNamespace(seed=1, temperature=1.0))
    assert torch.equal(told[0], metrics.subset(c, 50))
    monkeypatch.setattr(metrics, "extractor", lambda *_: ("pixels", torch.nn.Flatten()))
    args = SimpleNamespace(fid_features="classifier", data="data", out="results")
    meter = evaluate.DistanceMeter(["pr"], data, args)
    assert torch.equal(meter.labels, metrics.subset(c, 50))


def test_an_encoder_without_two_outputs_says_so(capsys):
    """In generate.py, say; evaluate.py leaves out what it cannot measure."""
    trained = Trained(Odd(encode=lambda x: x.flatten(1)), "Odd", SimpleNamespace(latent=2))
    with pytest.raises(SystemExit):
        trained.encode(torch.zeros(3, 1, 28, 28), None)
    assert "Odd.encode does not return mu and logvar" in capsys.readouterr().err
