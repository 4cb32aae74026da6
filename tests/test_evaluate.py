"""evaluate.py: numbers of one run, and the comparison of several."""
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY

import cvae
import evaluate
import gan
import vae
from common import Data, load_checkpoint, load_data, read_log

QUICK = {"metrics": "elbo,mse", "device": "cpu"}


@pytest.fixture(scope="session")
def out(tmp_path_factory):
    """The folder whose cache/ holds the classifier that test_metrics.py uses, too."""
    return tmp_path_factory.getbasetemp()


def test_numbers_of_a_run_agree_with_its_log_and_its_model(vae_run, tmp_path, capsys):
    folder, model, log = vae_run
    shutil.copytree(folder, tmp_path / "run")
    found = evaluate.main([str(tmp_path / "run")], **QUICK)
    for name in ("test_loss", "test_recon", "test_kl", "active"):
        assert found[name] == pytest.approx(log[-1][name], rel=1e-5)
    x = load_data("digits").x_test / 255
    model.eval()
    with torch.no_grad():
        mse = (model.picture(model.encode(x)[0]) - x).square().mean().item()
    assert found["mse"] == pytest.approx(mse, rel=1e-5)
    assert found["psnr"] == pytest.approx(-10 * math.log10(mse), rel=1e-5)
    assert found["sse_pm1"] == pytest.approx(4 * 784 * mse, rel=1e-5)   # (2a - 1) - (2b - 1)
    lines = (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"epoch": 2, "seed": 1, **found}
    evaluate.main([str(tmp_path / "run")], seed=2, **QUICK)   # is added to what was found before
    again = (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()
    assert again[:1] == lines and json.loads(again[1])["seed"] == 2
    assert "psnr" in capsys.readouterr().out


def test_twin_and_sigma_are_measured_too(tmp_path):
    cvae.main(out=tmp_path / "run", likelihood="gaussian", **TINY)
    file = tmp_path / "run" / "checkpoint_002.pt"
    found = evaluate.main([str(file)], nll_samples=2, **QUICK | {"metrics": "elbo,mse,nll"})
    assert found["vae_mse"] != found["mse"] and 0 < found["sigma"] != found["vae_sigma"]
    assert "vae_nll_is2" in found   # of grey pixels, too
    for prefix, model in evaluate.rebuild(load_checkpoint(file))[0].items():
        sigma = model.decode(torch.zeros(1, 2), torch.zeros(1))[1].exp().item()
        assert found[f"{prefix}sigma"] == pytest.approx(sigma)
    assert not (tmp_path / "run" / "evaluation.jsonl").exists()   # a checkpoint is only printed
    row = read_log(tmp_path / "run")[-1]
    for name in ("test_loss", "vae_test_loss", "vae_active"):
        assert found[name] == pytest.approx(row[name], rel=1e-5)


def test_everything_of_a_cvae_and_its_twin(cvae_run, out, capsys):
    checkpoint = str(cvae_run[0] / "checkpoint_002.pt")
    flags = {"metrics": "all", "nll_samples": 10, "out": out, "device": "cpu"}
    found = evaluate.main([checkpoint], **flags)
    assert "features: classifier of digits" in capsys.readouterr().out
    for name in ("fid", "kid", "precision", "recall"):
        bound = "_floor" if name in ("fid", "kid") else "_ceiling"
        real, *models = (found[key] for key in (
            f"{name}_classifier_297{bound}", f"{name}_classifier_297",
            f"vae_{name}_classifier_297"))
        assert all(real < fake for fake in models) == (bound == "_floor")
    assert 0.9 < found["classifier_accuracy_297"] < 1
    assert len(found["class_accuracy_1000_each"]) == 10
    mean = sum(found["class_accuracy_1000_each"]) / 10
    assert found["class_accuracy_1000"] == pytest.approx(mean)
    assert sum(found["vae_class_counts_1000"]) == 1000
    assert 0 <= found["vae_class_entropy_1000"] <= math.log(10)
    shares = [count / 1000 for count in found["vae_class_counts_1000"] if count]
    entropy = -sum(share * math.log(share) for share in shares)   # in nats
    assert found["vae_class_entropy_1000"] == pytest.approx(entropy, abs=1e-5)
    assert "vae_class_accuracy_1000" not in found   # it cannot be asked for a class
    counts = load_data("digits").y_test.bincount() / 297
    for prefix in ("", "vae_"):   # the mean over classes is weighted by their test images
        name = f"{prefix}reconstruction_accuracy_297"
        mean = (torch.tensor(found[f"{name}_each"]) * counts).sum().item()
        assert 0 < found[name] == pytest.approx(mean, abs=1e-5)
    # the ELBO is a looser bound; of the label no more than -log p(y) can be gained
    assert found["vae_grey_pixel_is10"] < found["vae_test_loss"]
    assert found["grey_pixel_given_y_is10"] < found["test_loss"]
    gain = found["grey_pixel_marginal_is10_297"] - found["grey_pixel_given_y_is10_297"]
    assert gain < -math.log(146 / 1500)   # -log p(y) of the rarest class
    assert 0 <= found["free_classifier_is10_297"] <= 1
    again = evaluate.main([checkpoint], **flags)
    assert again == found
    other = evaluate.main([checkpoint], seed=2, **flags | {"metrics": "fid"})
    assert set(other) < set(found)
    assert other["fid_classifier_297_floor"] == found["fid_classifier_297_floor"]
    assert other["fid_classifier_297"] != found["fid_classifier_297"]


def test_likelihoods_of_a_table_of_p_x_given_y(monkeypatch):
    """Four images of two classes, three times as many of the first: Bayes' rule by hand."""
    p = torch.tensor([[0.2, 0.4], [0.1, 0.05], [0.6, 0.1], [0.2, 0.8]])
    y, prior = torch.tensor([1, 0, 0, 1]), torch.tensor([0.75, 0.25])
    x = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    monkeypatch.setattr(evaluate, "nll_is", lambda model, x, y, *_: torch.zeros(len(x)))
    monkeypatch.setattr(evaluate, "log_likelihoods", lambda model, x, *_: p[
        x.flatten().mul(255).round().long()].log())
    found = evaluate.likelihoods(SimpleNamespace(classes=2), Data("own", x, torch.tensor(
        [0, 0, 0, 1]), x, y, ["a", "b"]), SimpleNamespace(likelihood="bernoulli"),
        SimpleNamespace(seed=1, nll_samples=1))
    assert found["grey_pixel_given_y_is1_4"] == pytest.approx(-p[range(4), y].log().mean().item())
    assert found["grey_pixel_marginal_is1_4"] == pytest.approx(-(p @ prior).log().mean().item())
    assert found["free_classifier_is1_4"] == 0.75   # without the prior all would be right


def test_samples_are_of_the_labels_asked_for_and_near_the_test_images(cvae_run, monkeypatch):
    asked, seen = [], []
    model = SimpleNamespace(picture=lambda z, y: asked.append(y) or z)
    [*evaluate.draw(model, torch.arange(5), SimpleNamespace(latent=2), SimpleNamespace(seed=1))]
    assert torch.equal(asked[0], torch.arange(5))

    def embed(_, pictures):
        seen.append(torch.cat([*pictures]))
        return torch.randn(297, 3, dtype=torch.double)
    monkeypatch.setattr(evaluate, "embed", embed)
    monkeypatch.setattr(evaluate, "extractor", lambda *_: ("own", None))
    evaluate.main([str(cvae_run[0] / "checkpoint.pt")], metrics="fid", device="cpu")
    real, train, ours, twins = seen
    data = load_data("digits")
    for found, x in ((real, data.x_test), (train, data.x_train)):
        images = {image.numpy().tobytes() for image in x}
        assert all(image.mul(255).round().byte().numpy().tobytes() in images for image in found)
    assert not torch.equal(ours, twins)


def test_precision_is_of_the_fake_and_recall_of_the_real():
    real = torch.randn(200, 2, dtype=torch.double)
    row = evaluate.distances({"pr"}, real, 0.1 * real.flip(0), "own")   # all in the middle
    assert row["precision_own"] > 0.9 and row["recall_own"] < 0.5


def test_a_perfect_copy_has_no_error_and_endless_psnr():
    x = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    model = SimpleNamespace(encode=lambda x, y: (x, None),
                            decode=lambda z, y: (torch.full_like(z, -math.inf), None))
    row = evaluate.errors(model, Data("own", x, None, x, torch.zeros(3), []), None)
    assert row == {"mse": 0, "psnr": math.inf, "sse_pm1": 0}


def test_an_autoencoder_has_no_kl_no_samples_and_no_likelihood(tmp_path, out, capsys):
    vae.main(out=tmp_path / "run", **TINY | {"beta": 0, "epochs": 1})
    found = evaluate.main([str(tmp_path / "run")], metrics="all", out=out, device="cpu")
    assert set(found) == {"classifier_accuracy_297", "test_loss", "test_recon", "active", "mse",
                          "psnr", "sse_pm1", "reconstruction_accuracy_297",
                          "reconstruction_accuracy_297_each"}
    assert capsys.readouterr().out.count("left out: an autoencoder has no prior") == 4


def test_only_binary_pixels_have_a_likelihood_by_that_name(tmp_path, out):
    vae.main(out=tmp_path / "run", **TINY | {"binarize": "threshold", "epochs": 1})
    found = evaluate.main([str(tmp_path / "run")], metrics="nll,elbo", nll_samples=5, out=out)
    assert found["nll_is5"] < found["test_loss"] and not any("grey" in name for name in found)


def test_pictures_without_labels_have_no_classes(tmp_path, npz, capsys):
    flags = {"dataset": npz(y_train=None, y_test=None), "out": tmp_path / "run"}
    vae.main(**TINY | flags)
    found = evaluate.main([str(tmp_path / "run")], out=tmp_path, data=tmp_path)
    assert "class left out" in capsys.readouterr().out
    assert math.isfinite(found["fid_autoencoder_7"]) and "class_counts_1000" not in found


@pytest.mark.parametrize("conditional", [False, True])
def test_a_gan_has_samples_only(conditional, tmp_path, out, capsys):
    gan.main(dataset="digits", width=4, latent=4, batch_size=16, iterations=2, eval_every=0,
             conditional=conditional, quiet=True, device="cpu", out=tmp_path / "run")
    found = evaluate.main([str(tmp_path / "run")], out=out, device="cpu", metrics="mse,class,fid")
    own = {"class_accuracy_1000", "class_accuracy_1000_each"} if conditional else \
        {"class_counts_1000", "class_entropy_1000"}
    assert set(found) == own | {"classifier_accuracy_297", "fid_classifier_297",
                                "fid_classifier_297_floor"}
    assert "mse left out: a GAN has no encoder" in capsys.readouterr().out
    lines = (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["iteration"] == 2
    with pytest.raises(SystemExit):
        evaluate.main([str(tmp_path / "run")] * 2)
    assert "is a run of gan.py" in capsys.readouterr().err


def test_a_flag_of_figures_changes_no_number(tmp_path, out):
    """--show sample draws pixels in figures; samples are measured as the mean of p(x|z)."""
    found = []
    for show in ("mean", "sample"):
        vae.main(out=tmp_path / show, show=show, **TINY | {"epochs": 1})
        found.append(evaluate.main([str(tmp_path / show)], metrics="class,fid", out=out))
    assert found[0] == found[1]


@pytest.mark.parametrize("few", ["train", "test"])
def test_three_images_are_too_few_for_distances(few, tmp_path, out, npz, capsys):
    three = {"x_train": np.zeros((3, 8, 8), np.uint8), "y_train": np.arange(3),
             "y_test": np.arange(7) % 3}
    flags = {"dataset": npz(), "test_size": 3} if few == "test" else {"dataset": npz(**three)}
    vae.main(out=tmp_path / "run", **TINY | flags)
    found = evaluate.main([str(tmp_path / "run")], out=out)
    assert "fid left out: it takes four images to train and to test" in capsys.readouterr().out
    assert "test_loss" in found and not any("fid" in name for name in found)


def test_data_of_another_shape(tmp_path, out, npz, capsys):
    vae.main(out=tmp_path / "run", **TINY | {"dataset": npz()})
    npz(x_train=np.zeros((20, 9, 9), np.uint8), x_test=np.zeros((7, 9, 9), np.uint8))
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(tmp_path / "run")], out=out)
    assert stop.value.code == 2 and "[1, 9, 9]" in capsys.readouterr().err


def test_bad_flags(vae_run, capsys):
    for flag in ({"metrics": "elbo,fidd"}, {"nll_samples": 0}, {"fid_features": "no.pt"}):
        with pytest.raises(SystemExit) as stop:
            evaluate.main([str(vae_run[0] / "checkpoint.pt")], **{"metrics": "fid"} | flag)
        name = "--" + next(iter(flag)).replace("_", "-")
        assert stop.value.code == 2 and name in capsys.readouterr().err


def test_comparison_shows_just_the_flags_that_differ(vae_run, tmp_path, capsys):
    vae.main(out=tmp_path / "other", amp=True, **TINY | {"hidden": 16, "seed": 2})
    evaluate.main([str(vae_run[0]), str(tmp_path / "other")], out=tmp_path)
    header, first, second, path = capsys.readouterr().out.splitlines()
    assert header.split(" | ")[:5] == ["run", "amp", "hidden", "seed", "epochs done"]
    assert first.split(" | ")[:5] == ["run", "-", "32", "1", "2"]
    assert second.split(" | ")[:5] == ["other", "on", "16", "2", "2"]
    assert float(first.split(" | ")[5]) == pytest.approx(vae_run[2][-1]["test_loss"], abs=0.006)
    assert path == str(tmp_path / "compare.png") and (tmp_path / "compare.png").exists()


def test_flags_of_one_run_are_not_dropped_in_a_comparison(vae_run, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(vae_run[0])] * 2, metrics="nll")
    assert stop.value.code == 2 and "--metrics goes with one run" in capsys.readouterr().err


def test_runs_and_folders_that_cannot_be_used(vae_run, tmp_path, capsys):
    (tmp_path / "stopped").mkdir()
    shutil.copy(vae_run[0] / "args.txt", tmp_path / "stopped")
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(vae_run[0]), str(tmp_path / "stopped")])
    assert stop.value.code == 2 and "first epoch" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(vae_run[0])], out=vae_run[0] / "log.csv")
    assert stop.value.code == 2 and "--out" in capsys.readouterr().err


def test_folders_that_are_no_runs(tmp_path, capsys):
    for runs in ([tmp_path], [tmp_path, tmp_path]):
        with pytest.raises(SystemExit) as stop:
            evaluate.main([str(run) for run in runs])
        assert stop.value.code == 2 and str(tmp_path) in capsys.readouterr().err
