"""evaluate.py: numbers of one run, and the comparison of several."""
import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import TINY

import cvae
import evaluate
import gan
import vae
from common import load_data, read_log

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
    assert "psnr" in capsys.readouterr().out


def test_twin_and_sigma_are_measured_too(tmp_path):
    cvae.main(out=tmp_path / "run", likelihood="gaussian", **TINY)
    found = evaluate.main([str(tmp_path / "run" / "checkpoint_002.pt")], **QUICK)
    assert found["vae_mse"] != found["mse"] and 0 < found["sigma"] != found["vae_sigma"]
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


def test_three_test_images_are_too_few_for_distances(tmp_path, out, npz, capsys):
    vae.main(out=tmp_path / "run", **TINY | {"dataset": npz(), "test_size": 3})
    found = evaluate.main([str(tmp_path / "run")], out=out)
    assert "fid left out: it takes four test images" in capsys.readouterr().out
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
    vae.main(out=tmp_path / "other", **TINY | {"hidden": 16, "seed": 2})
    evaluate.main([str(vae_run[0]), str(tmp_path / "other")], out=tmp_path)
    header, first, second, path = capsys.readouterr().out.splitlines()
    assert header.split(" | ")[:4] == ["run", "hidden", "seed", "epochs done"]
    assert first.split(" | ")[:4] == ["run", "32", "1", "2"]
    assert second.split(" | ")[:4] == ["other", "16", "2", "2"]
    assert float(first.split(" | ")[4]) == pytest.approx(vae_run[2][-1]["test_loss"], abs=0.006)
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
