"""The run folder: what lies in it, that it can be resumed and replayed, and what stops a run."""
import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import cvae
import vae
from common import load_data, save_grid, save_latent

ROOT = Path(__file__).parent.parent
COLUMNS = ["objective", "loss", "recon", "kl"]
TERMS = [f"train_{c}" for c in COLUMNS] + [f"test_{c}" for c in COLUMNS[1:]] + ["active"]


def log(folder):
    """All columns but `seconds`, as text."""
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def same_checkpoint(a, b):
    a, b = (torch.load(path / "checkpoint.pt", weights_only=True) for path in (a, b))
    for part in (a, b):
        part["args"].pop("epochs")
    for name in ("script", "args", "data", "epoch", "scheduler"):
        assert a[name] == b[name]
    for name in a:
        if name.endswith("model"):
            assert all(torch.equal(a[name][key], b[name][key]) for key in a[name])
        if name.endswith("optimizer"):
            for i, state in a[name]["state"].items():
                assert all(torch.equal(state[key], b[name]["state"][i][key]) for key in state)
    assert torch.equal(a["rng"]["cpu"], b["rng"]["cpu"])


def test_run_folder_of_vae(vae_run):
    folder, _, rows = vae_run
    pictures = {f"{kind}_{epoch:03d}.png" for kind in ("reconstruction", "sample", "latent")
                for epoch in (1, 2)}
    assert {file.name for file in folder.iterdir()} == pictures | {
        "args.txt", "log.csv", "checkpoint.pt", "checkpoint_002.pt", "curves.png"}
    assert list(rows[0]) == ["epoch", "seconds", "lr", "beta", *TERMS]
    assert [row["epoch"] for row in rows] == [1, 2]


def test_run_folder_of_cvae(cvae_run):
    folder, _, rows = cvae_run
    assert list(rows[0]) == ["epoch", "seconds", "lr", "beta", *TERMS, *(f"vae_{c}" for c in TERMS)]
    assert all((folder / f"{kind}_002.png").exists()
               for kind in ("reconstruction", "sample", "sample_vae", "latent"))


def cells(path, rows, columns, size=56):
    """The pictures of a grid as uint8 (rows, columns, size / 2, size / 2), labels left out."""
    page = np.array(Image.open(path).convert("L"))
    page = page[2:, page.shape[1] - columns * (size + 2):]   # names stand at the left, if at all
    return np.stack([[page[r * (size + 2):, c * (size + 2):][:size:2, :size:2]
                      for c in range(columns)] for r in range(rows)])


def as_bytes(pictures):
    return pictures.mul(255).round().byte().squeeze(1).numpy()


@torch.no_grad()
def test_pictures_show_the_models_in_their_names(cvae_run):
    """The best-known script of this kind wrote the CVAE's samples under the VAE's name."""
    folder, model, _ = cvae_run
    twin = cvae.CVAE((1, 28, 28), model.args, 0).eval()
    twin.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True)["vae_model"])
    data = load_data("digits")
    index = torch.linspace(0, 296, 8).long()
    x, y = data.x_test[index] / 255, data.y_test[index]
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))

    original, first, second = cells(folder / "reconstruction_002.png", 3, 8)
    assert (original == data.x_test[index, 0].numpy()).all()
    assert np.abs(first - as_bytes(model.picture(model.encode(x, y)[0], y)).astype(int)).max() <= 1
    assert np.abs(second - as_bytes(twin.picture(twin.encode(x, y)[0], y)).astype(int)).max() <= 1

    for digit, row in enumerate(cells(folder / "sample_002.png", 10, 8)):
        expected = as_bytes(model.picture(z[:8], torch.full((8,), digit))).astype(int)
        assert np.abs(row - expected).max() <= 1
    samples = cells(folder / "sample_vae_002.png", 8, 8).reshape(64, 28, 28)
    assert np.abs(samples - as_bytes(twin.picture(z, torch.zeros(64))).astype(int)).max() <= 1


@torch.no_grad()
def test_pictures_of_vae_py(vae_run):
    folder, model, _ = vae_run
    data, z = load_data("digits"), torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    x = data.x_test[torch.linspace(0, 296, 8).long()] / 255
    _, again = cells(folder / "reconstruction_002.png", 2, 8)
    expected = as_bytes(model.eval().picture(model.encode(x)[0])).astype(int)
    assert np.abs(again - expected).max() <= 1
    samples = cells(folder / "sample_002.png", 8, 8).reshape(64, 28, 28)
    assert np.abs(samples - as_bytes(model.picture(z)).astype(int)).max() <= 1


@torch.no_grad()
def test_names_and_curves_in_figures(cvae_run, monkeypatch):
    folder, model, _ = cvae_run
    twin = cvae.CVAE((1, 28, 28), model.args, 0)
    data, shown = load_data("digits"), {}
    for name in ("save_grid", "save_curves", "save_latent"):
        monkeypatch.setattr(cvae, name, lambda path, *rest, **_: shown.update({path.name: rest}))
    cvae.save_figures({"": model, "vae_": twin}, data, folder, 2, model.args)
    assert shown["reconstruction_002.png"][2] == ["original", "CVAE", "VAE"]
    assert shown["sample_002.png"][2] == data.classes
    assert shown["curves.png"][1]["kl"] == {"CVAE train": "train_kl", "CVAE test": "test_kl",
                                            "VAE train": "vae_train_kl", "VAE test": "vae_test_kl"}
    means, x = shown["latent_002.png"][0], data.x_test / 255
    torch.testing.assert_close(means["CVAE"], model.encode(x, data.y_test)[0])
    torch.testing.assert_close(means["VAE"], twin.encode(x, data.y_test)[0])


def test_latent_map_shows_every_code_in_the_colour_of_its_class(tmp_path, scatters):
    data, mu = load_data("digits"), 9 * torch.randn(297, 2)
    for fixed in (True, False):
        save_latent(tmp_path / "latent.png", {"VAE": mu}, data, fixed)
        axes, points, colours = scatters[-1]
        assert torch.equal(points, mu) and torch.equal(colours, data.y_test)
        assert (axes.get_xlim() == (-5, 5)) == (axes.get_ylim() == (-5, 5)) == fixed


def test_no_baseline_leaves_the_twin_out_and_the_cvae_as_it_was(cvae_run, tmp_path):
    folder = tmp_path / "alone"
    _, rows = cvae.main(no_baseline=True, out=folder, **TINY)
    assert not any(name.startswith("vae_") for name in rows[0])
    assert not (folder / "sample_vae_002.png").exists()
    assert log(folder) == [{k: v for k, v in row.items() if not k.startswith("vae_")}
                           for row in log(cvae_run[0])]


def test_twin_is_the_run_of_vae_py(cvae_run, vae_run):
    for twin, alone in zip(log(cvae_run[0]), log(vae_run[0]), strict=True):
        assert [twin[f"vae_{name}"] for name in TERMS] == [alone[name] for name in TERMS]


def test_grid_keeps_every_pixel_and_names_rows(tmp_path):
    images = torch.rand(6, 1, 28, 28)
    save_grid(tmp_path / "grid.png", images, 3, ["one", "two"])
    expected = images.mul(255).round().byte().view(2, 3, 28, 28).numpy()
    assert (cells(tmp_path / "grid.png", 2, 3) == expected).all()
    save_grid(tmp_path / "grid.png", torch.ones(2, 1, 64, 64), 1, ["first", ""])
    page = np.array(Image.open(tmp_path / "grid.png").convert("L"))
    assert page[:66].min() == 0 and page[66:].min() == 255   # its name stands beside its row


def test_same_seed_same_log_and_another_seed_another(vae_run, tmp_path):
    vae.main(out=tmp_path / "same", **TINY)
    assert log(tmp_path / "same") == log(vae_run[0])
    vae.main(out=tmp_path / "other", seed=2, **TINY)
    assert log(tmp_path / "other") != log(vae_run[0])


def test_args_txt_replays_the_run(vae_run, tmp_path):
    text = (vae_run[0] / "args.txt").read_text()
    assert "--latent=2\n" in text and "--quiet\n" in text
    assert "--out" not in text.split("\n", 1)[1] and "--resume" not in text
    vae.main([f"@{vae_run[0] / 'args.txt'}"], out=tmp_path / "replay")
    assert log(tmp_path / "replay") == log(vae_run[0])
    same_checkpoint(vae_run[0], tmp_path / "replay")


@pytest.mark.parametrize("script", [vae, cvae])
@pytest.mark.parametrize("flags", [{}, {"lr_schedule": "plateau", "beta_schedule": "linear"}])
def test_resume_is_bit_exact(script, flags, tmp_path, monkeypatch):
    flags = TINY | {"epochs": 4, "save_every": 2} | flags
    script.main(out=tmp_path / "whole", **flags)
    finish, calls = script.save_epoch, []

    def interrupted(*arguments):
        finish(*arguments)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(script, "save_epoch", interrupted)
    with pytest.raises(SystemExit) as stop:
        script.main(out=tmp_path / "parts", **flags)
    assert stop.value.code == 130
    with open(tmp_path / "parts" / "log.csv", "a") as file:   # killed between log and checkpoint
        file.write("3" + ",0" * (len(log(tmp_path / "whole")[0])) + "\n")
    script.main(resume=tmp_path / "parts")
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    same_checkpoint(tmp_path / "parts", tmp_path / "whole")

    shutil.copytree(tmp_path / "whole", tmp_path / "back")   # from a checkpoint in the middle
    script.main(resume=tmp_path / "back" / "checkpoint_002.pt")
    assert log(tmp_path / "back") == log(tmp_path / "whole")
    same_checkpoint(tmp_path / "back", tmp_path / "whole")


def test_resume_from_the_middle_loses_nothing_if_it_is_stopped(tmp_path, monkeypatch):
    """Up to the first new epoch the folder is as it was: log and newest checkpoint agree."""
    flags = TINY | {"epochs": 4, "save_every": 2}
    vae.main(out=tmp_path / "run", **flags)
    before = log(tmp_path / "run")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(vae, "train_epoch", interrupted)
        vae.main(resume=tmp_path / "run" / "checkpoint_002.pt")
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert log(tmp_path / "run") == before and checkpoint["epoch"] == 4


def test_resume_with_more_epochs_is_the_longer_run(tmp_path):
    flags = TINY | {"lr_schedule": "constant", "lr": 1e-3}
    vae.main(out=tmp_path / "long", **flags | {"epochs": 3})
    vae.main(out=tmp_path / "short", **flags)
    vae.main(resume=tmp_path / "short", epochs=3)
    assert log(tmp_path / "short") == log(tmp_path / "long")
    same_checkpoint(tmp_path / "short", tmp_path / "long")
    vae.main([f"@{tmp_path / 'short' / 'args.txt'}"], out=tmp_path / "replay")
    assert log(tmp_path / "replay") == log(tmp_path / "long")


def test_ctrl_c_keeps_the_last_epoch_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "vae.py", "--dataset=digits", "--hidden=8", "--epochs=10000",
               f"--out={tmp_path / 'run'}"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           # a job in the background inherits that it ignores Ctrl-C
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while not (tmp_path / "run" / "checkpoint.pt").exists() and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in output
    assert f"python vae.py --resume {tmp_path / 'run'}" in output
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert len(log(tmp_path / "run")) - checkpoint["epoch"] in (0, 1)


def test_loss_that_is_not_finite_is_named(tmp_path, monkeypatch, capsys):
    """The KL breaks in the second epoch: 12 steps an epoch, so at call 12 + 3."""
    calls = []

    def breaking(mu, logvar):
        calls.append(1)
        return kl(mu, logvar) + (float("nan") if len(calls) == 12 + 1 + 3 else 0)

    kl = vae.gaussian_kl
    monkeypatch.setattr(vae, "gaussian_kl", breaking)   # one call is the first epoch's evaluation
    with pytest.raises(SystemExit) as stop:
        vae.main(out=tmp_path / "run", **TINY)
    assert stop.value.code == 1
    assert "train_kl is not finite in step 3 of epoch 2" in capsys.readouterr().err
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["epoch"] == 1


def test_absurd_learning_rate_is_stopped_by_name(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        vae.main(out=tmp_path / "run", **TINY | {"lr": 1e30, "lr_schedule": "constant"})
    assert stop.value.code == 1
    assert "is not finite in step" in capsys.readouterr().err


def test_means_are_sums_over_a_count():
    """A short last batch must not weigh as much as a whole one."""
    sums = [{"a": torch.tensor(30.0)}, {"a": torch.tensor(1.0)}]
    assert vae.epoch_means(sums, 4, 1) == {"a": 31 / 4}


def test_last_short_batch_and_batch_larger_than_the_set(tmp_path):
    _, rows = vae.main(out=tmp_path / "run", **TINY | {"batch_size": 4000, "train_size": 70})
    assert rows[-1]["epoch"] == 2


def test_default_folder_counts_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        vae.main(**TINY | {"epochs": 1})
    (tmp_path / "results" / "vae-digits-3").mkdir()   # of a run in its first epoch
    vae.main(**TINY | {"epochs": 1})
    names = {f"vae-digits{i}" for i in ("", "-2", "-3", "-4")}
    assert {folder.name for folder in (tmp_path / "results").iterdir()} == names
    assert not list((tmp_path / "results" / "vae-digits-3").iterdir())


def test_plain_lines_without_a_terminal(tmp_path, capsys):
    vae.main(out=tmp_path / "run", **TINY | {"quiet": False})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "images/s" in lines[1]
    assert lines[1].startswith("epoch 2/2: test loss ")
    vae.main(out=tmp_path / "quiet", **TINY)
    assert capsys.readouterr() == ("", "")


def test_amp_gives_the_same_loss_within_noise(vae_run, tmp_path):
    _, rows = vae.main(out=tmp_path / "amp", amp=True, **TINY)
    assert rows[-1]["test_loss"] == pytest.approx(vae_run[2][-1]["test_loss"], rel=0.01)
    assert log(tmp_path / "amp") != log(vae_run[0])   # it did something


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
def test_compile_gives_the_same_loss_within_noise(vae_run, tmp_path):
    _, rows = vae.main(out=tmp_path / "compiled", compile=True, **TINY)
    assert rows[-1]["test_loss"] == pytest.approx(vae_run[2][-1]["test_loss"], rel=0.01)


def test_data_is_what_the_checkpoint_says(vae_run):
    checkpoint = torch.load(vae_run[0] / "checkpoint.pt", weights_only=True)
    assert checkpoint["script"] == "vae" and checkpoint["args"]["latent"] == 2
    classes = list("0123456789")
    assert checkpoint["data"] == {"name": "digits", "shape": [1, 28, 28], "classes": classes}


def test_tensorboard_holds_the_log_and_the_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    folder = tmp_path / "run"
    _, rows = vae.main(out=folder, tensorboard=True, **TINY)
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    for name in set(rows[0]) - {"epoch"}:
        found = {event.step: event.value for event in board.Scalars(name)}
        assert found == {row["epoch"]: pytest.approx(row[name], rel=1e-4) for row in rows}, name
    assert set(board.Tags()["images"]) == {"reconstruction", "sample", "latent"}
    assert "_hparams_/experiment" in board.summary_metadata


def test_without_the_flag_nothing_of_tensorboard_is_imported():
    code = ("import sys, vae, conftest\n"
            "vae.main(out=sys.argv[1], **conftest.TINY)\n"
            "assert not any('tensorboard' in name for name in sys.modules)")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-c", code, f"{folder}/run"], cwd=ROOT,
                              env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests"})
    assert done.returncode == 0
