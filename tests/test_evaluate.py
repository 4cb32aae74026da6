"""evaluate.py: numbers of one run, and the comparison of several."""
import json
import math
import shutil

import pytest
import torch
from conftest import TINY

import evaluate
import vae
from common import load_data


def test_numbers_of_a_run_agree_with_its_log_and_its_model(vae_run, tmp_path, capsys):
    folder, model, log = vae_run
    shutil.copytree(folder, tmp_path / "run")
    found = evaluate.main([str(tmp_path / "run")])
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
    assert json.loads(lines[0])["psnr"] == found["psnr"] and "psnr" in capsys.readouterr().out


def test_twin_and_sigma_are_measured_too(tmp_path):
    import cvae
    cvae.main(out=tmp_path / "run", likelihood="gaussian", **TINY)
    found = evaluate.main([str(tmp_path / "run" / "checkpoint_002.pt")])
    assert found["vae_mse"] != found["mse"] and 0 < found["sigma"] != found["vae_sigma"]
    assert not (tmp_path / "run" / "evaluation.jsonl").exists()   # a checkpoint is only printed


def test_comparison_shows_just_the_flags_that_differ(vae_run, tmp_path, capsys):
    vae.main(out=tmp_path / "other", **TINY | {"hidden": 16, "seed": 2})
    evaluate.main([str(vae_run[0]), str(tmp_path / "other")], out=tmp_path)
    header, first, second, path = capsys.readouterr().out.splitlines()
    assert header.split(" | ")[:4] == ["run", "hidden", "seed", "epochs done"]
    assert first.split(" | ")[:4] == ["run", "32", "1", "2"]
    assert second.split(" | ")[:4] == ["other", "16", "2", "2"]
    assert float(first.split(" | ")[4]) == pytest.approx(vae_run[2][-1]["test_loss"], abs=0.006)
    assert path == str(tmp_path / "compare.png") and (tmp_path / "compare.png").exists()


def test_folders_that_are_no_runs(tmp_path, capsys):
    for runs in ([tmp_path], [tmp_path, tmp_path]):
        with pytest.raises(SystemExit) as stop:
            evaluate.main([str(run) for run in runs])
        assert stop.value.code == 2 and str(tmp_path) in capsys.readouterr().err
