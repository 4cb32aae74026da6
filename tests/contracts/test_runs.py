"""The run folder: what lies in it, that it can be resumed and replayed bit for bit, and what stops
a run."""
import math
import os
import shutil
import signal
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from PIL import Image

import cvae
import flow
import gan
import run
import vae
from common import save_grid, tell
from readers import load_data
from run import load_models, read_log

SCRIPTS = {"vae": vae, "cvae": cvae, "gan": gan, "flow": flow}
TERMS = ["train_objective", "train_loss", "train_recon", "train_kl",
         "test_loss", "test_recon", "test_kl", "active"]
TINY_GAN = {"dataset": "digits", "width": 4, "latent": 8, "batch_size": 8, "iterations": 12,
            "eval_every": 4, "save_every": 1, "quiet": True, "device": "cpu"}

TINY_FLOW = {"dataset": "digits", "couplings": 2, "hidden": 4, "blocks": 0, "train_size": 70,
             "test_size": 16, "epochs": 3, "save_every": 1, "quiet": True, "device": "cpu"}


def log(folder):
    """log.csv as text, without the seconds, which are the second column."""
    rows = [line.split(",") for line in Path(folder, "log.csv").read_text().splitlines()]
    return [row[:1] + row[2:] for row in rows]


def state(folder):
    """What checkpoint.pt holds, loaded without running code; not the log, which has seconds."""
    checkpoint = torch.load(Path(folder, "checkpoint.pt"), weights_only=True)
    del checkpoint["log"]
    return checkpoint


def same(a, b):
    """Whether two checkpoints, or parts of them, are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


class FakeMeter:
    """A distance that costs nothing: given ones, in turn, or the mean pixel of the samples."""
    name, n, floor = "fid_fake_10", 10, 0.5

    def __init__(self, distances=()):
        self.distances = list(distances)
        torch.rand(1)   # Inception's layers draw their first weights, too

    def distance(self, images):
        mean = torch.cat(list(images)).mean().item()
        return self.distances.pop(0) if self.distances else mean


@pytest.fixture
def fake_meter(monkeypatch):
    monkeypatch.setattr(gan, "make_meters", lambda args, data: (FakeMeter(), None))


class Killed(Exception):
    """Stands for a kill."""


# ----------------------------------------------------------------------------- what lies in it

def files(folder):
    return {file.name for file in folder.iterdir()}


def test_run_folder_of_vae(vae_run):
    folder, _, rows = vae_run
    figures = {f"{name}_{epoch}.png" for name in ("reconstruction", "sample", "latent")
               for epoch in ("001", "002")}
    assert files(folder) == figures | {"args.txt", "log.csv", "curves.png", "checkpoint.pt",
                                       "checkpoint_002.pt"}
    assert list(rows[0]) == ["epoch", "seconds", "lr", "beta", *TERMS]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows == read_log(folder)
    checkpoint = state(folder)
    assert checkpoint["script"] == "vae" and checkpoint["args"]["latent"] == 2
    card = {"name": "digits", "shape": [1, 28, 28], "classes": list("0123456789"),
            "training images": 1500, "test images": 297}
    assert card.items() < checkpoint["data"].items()
    assert len(checkpoint["data"]["content"]) == 64   # a hash


def test_run_folder_of_cvae(cvae_run):
    folder, _, rows = cvae_run
    twins = [f"vae_{term}" for term in TERMS]
    assert list(rows[0]) == ["epoch", "seconds", "lr", "beta", *TERMS, *twins]   # the twin's last
    assert {"reconstruction_002.png", "sample_002.png", "sample_vae_002.png", "latent_002.png",
            "curves.png"} < files(folder)


def test_run_folder_of_gan(tmp_path, monkeypatch):
    meter = FakeMeter([5.0, 1.0, 3.0, 4.0])
    monkeypatch.setattr(gan, "make_meters", lambda args, data: (meter, None))
    folder = tmp_path / "run"
    flags = TINY_GAN | {"iterations": 8, "eval_every": 2, "save_every": 2}
    average, rows = gan.main(out=folder, **flags)
    figures = {f"{name}_{iteration}.png" for name in ("sample", "interpolation")
               for iteration in ("002", "004", "006", "008")}
    assert files(folder) == figures | {
        "args.txt", "log.csv", "evaluation.jsonl", "curves.png", "fid.png", "best.pt",
        "checkpoint.pt", "checkpoint_004.pt", "checkpoint_008.pt"}   # every second row
    assert list(rows[0]) == ["iteration", "seconds", "lr", "d_loss", "g_loss", "d_real", "d_fake",
                             "d_accuracy", "fid"]
    assert [row["iteration"] for row in rows] == [2, 4, 6, 8]
    assert rows == read_log(folder)
    assert same(state(folder)["ema"], dict(average.state_dict()))   # what is returned is stored
    best = torch.load(folder / "best.pt", weights_only=True)
    assert best["epoch"] == 4   # the lowest distance


def test_run_folder_of_flow(tmp_path, no_plots):
    folder = tmp_path / "run"
    _, rows = flow.main(out=folder, **TINY_FLOW | {"epochs": 1, "lr_schedule": "constant"})
    assert files(folder) == {"args.txt", "log.csv", "checkpoint.pt", "checkpoint_001.pt",
                             "sample_001.png", "sample_t0.7_001.png", "interpolation_001.png"}
    assert list(rows[0]) == ["epoch", "seconds", "lr", "train_loss", "test_loss", "test_bpd"]
    assert rows == read_log(folder)

    flow.main([f"@{folder / 'args.txt'}"], out=tmp_path / "replay", quiet=True)
    assert log(tmp_path / "replay") == log(folder)
    flow.main(resume=folder, epochs=2, quiet=True)      # no schedule depends on the end
    assert len(log(folder)) == 1 + 2


def test_a_gan_without_distances(tmp_path, monkeypatch):
    monkeypatch.setattr(gan, "FIDMeter", None)   # a call would fail
    folder = tmp_path / "run"
    _, rows = gan.main(out=folder, **TINY_GAN | {"eval_every": 0, "loss": "wgan-gp"})
    assert len(rows) == 1 and rows[0]["iteration"] == 12
    assert rows[0]["fid"] is None and rows[0]["d_accuracy"] is None   # a critic has no threshold
    assert files(folder) == {"args.txt", "log.csv", "curves.png", "checkpoint.pt",
                             "checkpoint_012.pt", "sample_012.png", "interpolation_012.png"}


def test_the_kl_of_an_autoencoder_is_empty(tmp_path, no_plots):
    _, rows = cvae.main(beta=0, out=tmp_path / "run", **TINY)
    empty = [name for name, value in rows[-1].items() if value is None]
    assert empty == ["train_kl", "test_kl", "vae_train_kl", "vae_test_kl"]
    assert log(tmp_path / "run")[1].count("") == 4


def test_the_logged_learning_rate_is_that_of_the_epochs_start(vae_run):
    optimizer = torch.optim.SGD([torch.zeros(1)], 1.0)
    steps = math.ceil(1500 / 128)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=2 * steps)
    rates = scheduler.get_last_lr()
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    rates += scheduler.get_last_lr()
    assert [row["lr"] for row in vae_run[2]] == pytest.approx(rates, rel=1e-5)


def test_args_txt_holds_the_flags_of_the_run_and_no_others(vae_run):
    lines = (vae_run[0] / "args.txt").read_text().splitlines()
    assert lines[0].startswith("# python vae.py ") and f"torch {torch.__version__}" in lines[1]
    names = {line.split("=")[0] for line in lines[2:]}
    assert {"--latent", "--epochs", "--seed", "--dataset", "--likelihood"} < names
    assert not names & {"--out", "--resume", "--quiet"}


def test_the_default_folder_counts_on(tmp_path, monkeypatch, no_plots):
    monkeypatch.chdir(tmp_path)
    for name in ("vae-digits", "vae-digits-2"):
        Path("results", name).mkdir(parents=True)   # of runs in their first epoch
    vae.main(**TINY | {"epochs": 1})
    assert files(tmp_path / "results") == {"vae-digits", "vae-digits-2", "vae-digits-3"}
    assert "checkpoint.pt" in files(tmp_path / "results" / "vae-digits-3")


# ------------------------------------------------------------------------- replay and resuming

def test_same_seed_same_log_and_another_seed_another(vae_run, tmp_path, no_plots):
    vae.main(out=tmp_path / "same", **TINY)
    assert log(tmp_path / "same") == log(vae_run[0])
    vae.main(out=tmp_path / "other", seed=2, **TINY)
    assert log(tmp_path / "other") != log(vae_run[0])


def test_args_txt_replays_a_run(vae_run, tmp_path, no_plots):
    """Also one of the first edition, which had flags that are gone."""
    text = (vae_run[0] / "args.txt").read_text()
    (tmp_path / "args.txt").write_text(text + "--quiet\n--show=mean\n--span=1.0\n")
    vae.main([f"@{tmp_path / 'args.txt'}"], out=tmp_path / "run")
    assert log(tmp_path / "run") == log(vae_run[0])
    assert same(state(tmp_path / "run"), state(vae_run[0]))


def test_recorded_runs_can_be_replayed():
    """Their flags are still flags, but for those of the first edition that are gone."""
    for file in ROOT.glob("results/runs/*/args.txt"):
        name = file.read_text().split()[2].removesuffix(".py")   # "# python vae.py ..."
        if name in SCRIPTS:
            args = SCRIPTS[name].flags().parse_args([f"@{file}"])
            assert not args.quiet


RESUMED = [
    ("vae", {}),
    ("vae", {"lr_schedule": "plateau", "binarize": "dynamic"}),
    ("vae", {"arch": "conv", "hidden": 4, "dropout": 0.2, "likelihood": "gaussian"}),
    ("cvae", {"beta_schedule": "linear"}),
    ("cvae", {"no_baseline": True, "beta": 0, "lr_schedule": "cosine"}),
    ("gan", {"loss": "lsgan", "norm": "batch"}),
    ("gan", {"loss": "wgan-gp", "critic_steps": 3}),
    ("gan", {"loss": "gan", "conditional": True}),
    ("flow", {}),
    ("flow", {"conditional": True, "lr_schedule": "plateau"}),
]


@pytest.mark.parametrize("name, flags", RESUMED, ids=str)
def test_resuming_is_bit_exact(name, flags, tmp_path, monkeypatch, fake_meter, no_plots):
    """A run of three rows is the same if it is killed before the second is in its log."""
    monkeypatch.chdir(tmp_path)
    script = SCRIPTS[name]
    tiny = {"gan": TINY_GAN, "flow": TINY_FLOW}.get(name, TINY | {"epochs": 3, "save_every": 1})
    flags = tiny | flags
    script.main(out="whole", **flags)

    def killed_at_the_second(path, rows):   # between the checkpoint and the log
        if len(rows) == 2:
            raise Killed
        write_log(path, rows)

    write_log = run.write_log
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run, "write_log", killed_at_the_second)
        script.main(out="parts", **flags)
    assert len(log("parts")) == 1 + 1   # the names, and the first row
    script.main(resume="parts")
    assert log("parts") == log("whole")
    assert same(state("parts"), state("whole"))

    first = "checkpoint_004.pt" if name == "gan" else "checkpoint_001.pt"
    shutil.copytree("whole", "back")        # its log has newer rows, which are dropped
    script.main(resume=f"back/{first}")
    assert log("back") == log("whole")
    assert same(state("back"), state("whole"))
    if name == "gan":
        measured = Path("back", "evaluation.jsonl").read_text()
        assert measured == Path("whole", "evaluation.jsonl").read_text()
        assert measured.count("\n") == 3


def test_resuming_changes_nothing_before_the_first_new_row(tmp_path, monkeypatch, no_plots):
    folder = tmp_path / "run"
    vae.main(out=folder, **TINY | {"save_every": 1})
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def killed(*_):
        raise Killed

    monkeypatch.setattr(vae, "train_epoch", killed)
    with pytest.raises(Killed):
        vae.main(resume=folder / "checkpoint_001.pt")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_resuming_with_more_epochs_is_the_longer_run(tmp_path, no_plots):
    flags = TINY | {"lr_schedule": "constant", "lr": 1e-3}
    vae.main(out=tmp_path / "long", **flags | {"epochs": 3})
    vae.main(out=tmp_path / "short", **flags)
    vae.main(resume=tmp_path / "short", epochs=3)
    assert log(tmp_path / "short") == log(tmp_path / "long")
    assert same(state(tmp_path / "short"), state(tmp_path / "long"))
    text = (tmp_path / "short" / "args.txt").read_text()
    assert "--epochs=3\n" in text
    lines = [line for line in text.splitlines() if line.startswith("# python vae.py ")]
    assert len(lines) == 2 and "--resume" not in lines[0] and "--resume" in lines[1]


@pytest.mark.parametrize("culprit", ["save", "replace"])
def test_a_checkpoint_survives_a_write_that_fails_half_way(culprit, tmp_path, monkeypatch,
                                                           no_plots):
    folder = tmp_path / "run"
    vae.main(out=folder, **TINY | {"epochs": 1, "lr_schedule": "constant"})

    def save_half(checkpoint, file):
        file.write(b"half a checkpoint")
        raise Killed

    def replace_nothing(partial, path):
        if Path(path).name == "checkpoint.pt":
            raise Killed
        replace(partial, path)

    replace = os.replace
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if culprit == "save":
            patch.setattr(torch, "save", save_half)
        else:
            patch.setattr(os, "replace", replace_nothing)
        vae.main(resume=folder, epochs=2)
    assert state(folder)["epoch"] == 1 and len(log(folder)) == 1 + 1
    vae.main(resume=folder, epochs=2)
    assert state(folder)["epoch"] == 2 and len(log(folder)) == 1 + 2


# ------------------------------------------------------------------------------ on the terminal

def test_plain_lines_without_a_terminal(tmp_path, capsys):
    folder = tmp_path / "run"
    _, rows = vae.main(out=folder, **TINY | {"quiet": False})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for word in ("vae.py", "parameters", "digits", "1,500", "297", "1x28x28", "cpu", str(folder)):
        assert word in lines[0]
    loss = f"test loss {rows[-1]['test_loss']:.2f}"
    assert lines[2].startswith(f"epoch 2/2: {loss}") and "images/s" in lines[2]
    for word in (str(folder), loss, "nats per image", f"python generate.py {folder}"):
        assert word in lines[3]
    for word in ("reconstruction_002.png", "sample_002.png", "latent_002.png", "curves.png"):
        assert word in lines[3]
    vae.main(out=tmp_path / "quiet", **TINY)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("slowdown, is_slow", [(40, True), (0.5, False)])
def test_amp_says_where_it_is_slower(slowdown, is_slow, tmp_path, monkeypatch, capsys, no_plots):
    monkeypatch.setattr(run, "slowdown_in_bfloat16", lambda device: slowdown)
    vae.main(out=tmp_path / "run", **TINY | {"quiet": False, "amp": True, "epochs": 1})
    printed = capsys.readouterr().out
    assert ("40.0 times as long" in printed and "remove --amp" in printed) == is_slow


def test_the_probe_of_amp_compares_the_two_types(monkeypatch):
    """A clock that products in bfloat16 move on by two seconds, those in float32 by one."""
    clock = [0.0]
    product = torch.mm

    def timed(a, b):
        clock[0] += 2.0 if a.dtype == torch.bfloat16 else 1.0
        return product(a, b)

    monkeypatch.setattr(run.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "mm", timed)
    assert run.slowdown_in_bfloat16(torch.device("cpu")) == 2


def test_a_bar_on_a_terminal(tmp_path, monkeypatch, capsys, no_plots):
    """A pseudo-terminal of 40 columns stands for the user's."""
    fcntl = pytest.importorskip("fcntl")
    pty = pytest.importorskip("pty")
    termios = pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        _, rows = vae.main(out=tmp_path / "run", **TINY | {"quiet": False})
        print(file=terminal, flush=True)   # or reading would wait where there is no bar
        bar = os.read(ours, 100_000).decode()
    os.close(ours)
    frames = bar.replace("\n", "").split("\r")
    assert max(len(frame) for frame in frames) <= 40
    last = [frame for frame in frames if frame.strip()][-1]
    assert last.startswith(f"2/2 test loss {rows[-1]['test_loss']:.2f} 00:00") and "img" in last
    assert len(capsys.readouterr().out.splitlines()) == 2   # the first line and the last


def test_the_bar_moves_with_every_batch_and_lines_stay_whole(capsys):
    try:
        run.bar.open(5, 0, "img")
        seen = []
        for x, _ in run.progress([(torch.zeros(3), None), (torch.zeros(2), None)]):
            seen.append(run.bar.tqdm.n)
            tell(f"{len(x)} images")
        assert seen == [0, 3] and run.bar.tqdm.n == 5
    finally:
        run.bar.close()
    assert capsys.readouterr().out == "3 images\n2 images\n"


@pytest.mark.parametrize("epoch", [1, 2])
def test_ctrl_c(epoch, tmp_path, monkeypatch, capsys, no_plots):
    """It keeps the checkpoint of the last finished epoch and says how to go on."""
    folder = tmp_path / "a run"
    before = signal.getsignal(signal.SIGINT)
    train_epoch = vae.train_epoch

    def interrupted(*arguments):
        columns = train_epoch(*arguments)
        if arguments[4] == epoch:
            signal.raise_signal(signal.SIGINT)
        return columns

    monkeypatch.setattr(vae, "train_epoch", interrupted)
    with pytest.raises(SystemExit) as stop:
        vae.main(out=folder, **TINY)
    assert stop.value.code == 130
    printed = capsys.readouterr().out
    if epoch == 1:
        assert f"begin again with: python vae.py --resume '{folder}'" in printed
    else:
        assert f"python vae.py --resume '{folder}'" in printed
        assert state(folder)["epoch"] == 1 and len(log(folder)) == 1 + 1
    assert signal.getsignal(signal.SIGINT) is before


def test_a_loss_that_is_not_finite_is_named(tmp_path, monkeypatch, capsys, no_plots):
    """The KL breaks in step 3 of epoch 2: 12 steps and an evaluation are before."""
    calls = []

    def breaking(mu, logvar):
        calls.append(1)
        values = gaussian_kl(mu, logvar)
        return values * math.nan if len(calls) == 12 + 1 + 3 else values

    gaussian_kl = vae.gaussian_kl
    monkeypatch.setattr(vae, "gaussian_kl", breaking)
    with pytest.raises(SystemExit) as stop:
        vae.main(out=tmp_path / "run", **TINY)
    assert stop.value.code == 1
    assert "train_kl is not finite in step 3 of epoch 2" in capsys.readouterr().err
    assert state(tmp_path / "run")["epoch"] == 1


def test_an_absurd_learning_rate_stops_a_gan(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        gan.main(out=tmp_path / "run", **TINY_GAN | {"eval_every": 0, "lr": 1e30})
    line = capsys.readouterr().err
    assert stop.value.code == 1 and line.count("\n") == 1
    assert "is not finite in step 1 of iterations 1 to 12" in line and "--lr" in line


# --------------------------------------------------------------------------------------- figures

def cells(path, rows, columns):
    """The images of a grid, uint8 (rows, columns, 28, 28): doubled in size there, 2 pixels apart,
    and the names of the rows at the left."""
    page = np.array(Image.open(path).convert("L"))
    page = page[2:, page.shape[1] - 58 * columns:]   # 58 = 2 * 28 + 2
    grid = page.reshape(rows, 58, columns, 58).transpose(0, 2, 1, 3)
    return grid[:, :, :56:2, :56:2]


def assert_shows(cells, images):
    """Cells (..., 28, 28) of a figure are these images (B, 1, 28, 28) in [0, 1], up to rounding."""
    expected = images.mul(255).round().squeeze(1).int().numpy()
    found = cells.reshape(expected.shape).astype(int)
    assert np.abs(found - expected).max() <= 1


def fixed_test_images(data):
    index = torch.linspace(0, 296, 8).long()
    return data.x_test[index] / 255, data.y_test[index]


def test_figures_show_the_models_in_their_names(cvae_run):
    """The best-known script of this kind wrote the CVAE's samples under the VAE's name."""
    folder, _, _ = cvae_run
    _, _, models = load_models(folder)
    model, twin = models[""], models["vae_"]
    x, y = fixed_test_images(load_data("digits"))
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    originals, ours, twins = cells(folder / "reconstruction_002.png", 3, 8)
    assert_shows(originals, x)
    assert_shows(ours, model.images(model.encode(x, y)[0], y))
    assert_shows(twins, twin.images(twin.encode(x, y)[0], y))
    for digit, row in enumerate(cells(folder / "sample_002.png", 10, 8)):   # a class per row
        assert_shows(row, model.images(z[:8], torch.full((8,), digit)))
    assert_shows(cells(folder / "sample_vae_002.png", 8, 8), twin.images(z, torch.zeros(64)))


def test_figures_of_vae(vae_run):
    folder, _, _ = vae_run
    _, _, models = load_models(folder)
    model = models[""]
    x, y = fixed_test_images(load_data("digits"))
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    originals, again = cells(folder / "reconstruction_002.png", 2, 8)
    assert_shows(originals, x)
    assert_shows(again, model.images(model.encode(x, y)[0], y))
    assert_shows(cells(folder / "sample_002.png", 8, 8), model.images(z, None))


def test_names_and_curves_in_figures(tmp_path, monkeypatch):
    named, curves = {}, {}

    def save_rows(path, rows):
        named[path.name] = list(rows)

    def save_grid(path, images, columns, names=(), **texts):
        named[path.name] = list(names)

    def save_curves(path, rows, step, panels, unit):
        for title, lines in panels.items():
            curves[title] = {label: column for label, column, _ in lines}

    monkeypatch.setattr(run, "save_rows", save_rows)
    monkeypatch.setattr(cvae, "save_grid", save_grid)
    monkeypatch.setattr(run, "save_curves", save_curves)
    cvae.main(out=tmp_path / "run", **TINY | {"epochs": 1, "latent": 3})
    assert named == {"reconstruction_001.png": ["original", "CVAE", "VAE"],
                     "sample_001.png": list("0123456789"), "sample_vae_001.png": []}
    assert list(curves) == ["loss = reconstruction + KL", "reconstruction", "KL divergence"]
    assert curves["KL divergence"] == {"CVAE train": "train_kl", "CVAE test": "test_kl",
                            "VAE train": "vae_train_kl", "VAE test": "vae_test_kl"}


@pytest.mark.parametrize("beta", [1, 0])
def test_the_latent_map_shows_every_code_in_the_colour_of_its_class(beta, tmp_path, monkeypatch):
    from matplotlib.axes import Axes
    panels = {}

    def scatter(axes, z_1, z_2, c, **style):
        panels[axes] = torch.stack([z_1, z_2], 1), c
        return plain_scatter(axes, z_1, z_2, c=c, **style)

    plain_scatter = Axes.scatter
    monkeypatch.setattr(Axes, "scatter", scatter)
    cvae.main(out=tmp_path / "run", beta=beta, **TINY | {"epochs": 1})
    data = load_data("digits")
    _, _, models = load_models(tmp_path / "run")
    for model, (axes, (codes, colours)) in zip(models.values(), panels.items(), strict=True):
        assert axes.get_title() == f"{model.name}, test set"
        torch.testing.assert_close(codes, model.encode(data.x_test / 255, data.y_test)[0])
        assert torch.equal(colours, data.y_test)
        fixed = axes.get_xlim() == axes.get_ylim() == (-5, 5)
        assert fixed == (beta == 1)   # the codes of an autoencoder have no scale


def test_a_grid_keeps_every_pixel_and_names_its_rows(tmp_path):
    images = torch.rand(6, 1, 28, 28)
    save_grid(tmp_path / "grid.png", images, 3, ["one", "two"])
    expected = images.mul(255).round().byte().view(2, 3, 28, 28)
    assert (cells(tmp_path / "grid.png", 2, 3) == expected.numpy()).all()
    save_grid(tmp_path / "grid.png", torch.ones(2, 1, 64, 64), 1, ["first", ""])
    page = np.array(Image.open(tmp_path / "grid.png").convert("L"))
    assert page[:66].min() == 0 and page[66:].min() == 255   # the name stands beside its row


def test_tensorboard_holds_the_log_and_the_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    folder = tmp_path / "run"
    flags = TINY | {"epochs": 12, "hidden": 4, "train_size": 200}
    _, rows = vae.main(out=folder, tensorboard=True, **flags)
    board = EventAccumulator(str(folder / "tensorboard"), {"images": 0, "scalars": 0})   # 0: all
    board.Reload()
    for name in ["seconds", "lr", "beta", *TERMS]:
        events = board.Scalars(run.board_tag(name))
        assert [event.step for event in events] == list(range(1, 13))   # each once
        assert [event.value for event in events] == pytest.approx([row[name] for row in rows])
    assert set(board.Tags()["images"]) == {"reconstruction", "sample", "latent"}
    assert [event.step for event in board.Images("sample")] == [1, 2, 5, 10, 12]
    assert {"loss/train", "loss/test", "kl/test"} <= set(board.Tags()["scalars"])
    assert run.board_tag("vae_test_kl") == "kl/vae_test"
    assert "_hparams_/experiment" in board.summary_metadata


# --------------------------------------------------------------------------------------- speed

def test_amp_gives_the_same_loss_within_noise(vae_run, tmp_path, no_plots):
    _, rows = vae.main(out=tmp_path / "amp", amp=True, **TINY)
    assert rows[-1]["test_loss"] == pytest.approx(vae_run[2][-1]["test_loss"], rel=0.01)
    assert log(tmp_path / "amp") != log(vae_run[0])   # it did something


def test_compile_changes_no_number(vae_run, tmp_path, monkeypatch, no_plots):
    """Traced as for the compiler, which itself would take longer than all other tests together."""
    traced = []

    def trace(function, **flags):
        traced.append(function)
        return compile(function, backend="eager", **flags)

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", trace)
    monkeypatch.setattr(run, "check_compiler", lambda: None)
    run.compiled.cache_clear()
    vae.main(out=tmp_path / "run", compile=True, **TINY)
    run.compiled.cache_clear()
    assert traced == [vae.loss_terms]
    assert log(tmp_path / "run") == log(vae_run[0])


def test_what_is_compiled_elsewhere(tmp_path, monkeypatch, fake_meter, no_plots):
    """Both networks of a GAN, and the losses of cvae.py and flow.py; here without a compiler."""
    compiled = []
    monkeypatch.setattr(run, "check_compiler", lambda: None)
    monkeypatch.setattr(torch.nn.Module, "compile",
                        lambda module: compiled.append(type(module).__name__))
    for script in (cvae, flow):
        monkeypatch.setattr(script, "compiled",
                            lambda function: compiled.append(function.__module__) or function)
    gan.main(out=tmp_path / "gan", compile=True, loss="gan", **TINY_GAN)
    cvae.main(out=tmp_path / "cvae", compile=True, **TINY | {"epochs": 1, "no_baseline": True})
    flow.main(out=tmp_path / "flow", compile=True, **TINY_FLOW)
    assert list(dict.fromkeys(compiled)) == ["Generator", "Discriminator", "cvae", "flow"]


def test_amp_gives_a_flow_the_same_loss_within_noise(tmp_path, no_plots):
    _, plain = flow.main(out=tmp_path / "plain", **TINY_FLOW)
    _, rows = flow.main(out=tmp_path / "amp", amp=True, **TINY_FLOW)
    assert rows[-1]["test_bpd"] == pytest.approx(plain[-1]["test_bpd"], rel=0.02)
    assert log(tmp_path / "amp") != log(tmp_path / "plain")
