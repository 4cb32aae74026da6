"""Bad input is answered at the door: one line that names the flag or the file and the remedy, exit
status 2, and nothing is written. A stranger's file never runs code. `--help` fits on a page.

`refused`, in conftest.py, holds every refusal to its form; here stands what the line must say.
"""
import pickle

import numpy as np
import pytest
import torch
import torchvision
from conftest import TINY
from PIL import Image

import cvae
import flow
import gan
import vae

SCRIPTS = {"vae": vae, "cvae": cvae, "gan": gan, "flow": flow}
AE = "vae cvae"        # the scripts that a row is for
ALL = "vae cvae gan flow"

BAD_FLAGS = [
    # scripts, flags, what the line must name
    (AE, "--latent 0", ["--latent", "at least 1"]),
    (AE, "--latent two", ["--latent", "int", "two"]),
    (AE, "--beta -1", ["--beta", "at least 0"]),
    (AE, "--beta nan", ["--beta", "at least 0"]),
    ("vae cvae flow", "--epochs 0", ["--epochs", "at least 1"]),
    (AE, "--layers -1", ["--layers", "at least 0"]),
    (AE, "--dropout 1", ["--dropout", "below 1"]),
    (AE, "--weight-decay -0.1", ["--weight-decay", "at least 0"]),
    (AE, "--beta-schedule cosine", ["--beta-schedule", "linear", "cyclical"]),
    (AE, "--beta-warmup 3", ["--beta-warmup", "--beta-schedule linear"]),
    (AE, "--beta-schedule cyclical --epochs 7", ["--beta-schedule cyclical", "raise --epochs"]),
    (AE, "--beta-schedule linear --epochs 1", ["--beta-schedule linear", "raise --epochs"]),
    (AE, "--beta-schedule linear --beta-warmup 9 --epochs 8", ["--beta-warmup", "from 2 to 8"]),
    (AE, "--beta-schedule cyclical --beta-warmup 3 --epochs 8", ["--beta-warmup", "from 2 to 2"]),
    (AE, "--lr-schedule plateau --beta-schedule linear", ["plateau", "--beta-schedule constant"]),
    (AE, "--sigma 0", ["--sigma", "at least 0.0039"]),
    (AE, "--sigma learnt", ["--sigma", "learnt"]),
    (AE, "--sigma 0.1 --likelihood bernoulli", ["--sigma", "--likelihood gaussian"]),
    (AE, "--sigma pixel --binarize dynamic", ["--sigma", "--likelihood gaussian"]),
    (AE, "--binarize dynamic --likelihood gaussian", ["--binarize", "--likelihood bernoulli"]),
    (AE, "--dataset digits --arch conv --image-size 30", ["--arch conv", "--image-size 28, 32"]),
    (ALL, "--lr 0", ["--lr", "above 0"]),
    (ALL, "--lr nan", ["--lr", "above 0"]),
    (ALL, "--batch-size 0", ["--batch-size", "at least 1"]),
    (ALL, "--seed -3", ["--seed", "at least 0"]),
    (ALL, "--seed 4294967296", ["--seed", "below 4294967296"]),
    ("vae cvae gan", "--lattent 2", ["--lattent", "did you mean --latent?"]),
    (ALL, "--lat 2", ["--lat"]),   # no abbreviations: a later flag could change their meaning
    (ALL, "--zzz", ["--zzz", "--help"]),
    (ALL, "2", ["2"]),
    (ALL, "--dataset mnist", ["--dataset mnist", "MNIST"]),
    (ALL, "--dataset /no/such/folder", ["--dataset /no/such/folder", ".npz"]),
    (ALL, "--dataset digits --train-size 1501", ["--train-size 1501", "1500"]),
    (ALL, "--dataset digits --test-size 298", ["--test-size 298", "297"]),
    (ALL, "--dataset digits --device nonsense", ["--device nonsense", "--device cpu"]),
    (ALL, "--dataset digits --out /dev/null/run", ["--out /dev/null/run", "use a folder"]),
    (ALL, "--resume /no/such/run", ["/no/such/run", "checkpoint"]),
    (ALL, "@/no/such/args.txt", ["/no/such/args.txt"]),
    ("gan", "--latent 1", ["--latent", "at least 2"]),
    ("gan", "--ema 1", ["--ema", "below 1"]),
    ("gan", "--iterations 0", ["--iterations", "at least 1"]),
    ("gan", "--loss hinge", ["--loss", "wgan-gp"]),
    ("gan", "--loss wgan-gp --norm batch", ["--norm batch", "--norm none"]),
    ("gan", "--loss wgan-gp --compile", ["--compile", "--loss wgan-gp", "remove it"]),
    ("gan", "--critic-steps 0", ["--critic-steps", "at least 1"]),
    ("gan", "--critic-steps 5 --iterations 4", ["--critic-steps 5", "--iterations 4"]),
    ("gan", "--loss wgan-gp --iterations 4", ["--critic-steps 5", "--iterations 4"]),   # by default
    ("gan flow", "--dataset digits --image-size 64", ["64x64", "--image-size 32"]),
    ("flow", "--couplings 0", ["--couplings", "at least 1"]),
    ("flow", "--couplings 5 --dataset digits", ["--couplings 5", "in pairs", "use 6"]),
    ("gan", "--dataset digits --test-size 1", ["two test images", "--eval-every 0"]),
    ("gan", "--dataset digits --fid-features /no/such.pth", ["--fid-features /no/such.pth",
                                                             "classifier"]),
]


@pytest.mark.parametrize("scripts, flags, words", BAD_FLAGS, ids=[row[1] for row in BAD_FLAGS])
def test_flags(scripts, flags, words, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in scripts.split():
        line = refused(SCRIPTS[name], flags.split())
        for word in words:
            assert word in line, name
        assert not list(tmp_path.iterdir())


def test_keywords_are_checked_like_flags(refused):
    assert "did you mean --latent?" in refused(vae, lattent=2)
    assert "at least 1" in refused(vae, latent=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_one(refused):
    line = refused(vae, dataset="digits", device="cuda")
    assert "--device cuda" in line and "--device cpu" in line


# ---------------------------------------------------------------------------------------- --help

@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_a_page_in_groups_with_examples(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        SCRIPTS[name].main(["--help"])
    text = capsys.readouterr().out
    assert not stop.value.code
    assert text.count("\n") <= 60
    groups = ["model", "loss", "optimiser", "data", "run", "examples"]
    if name == "flow":   # there is but one
        groups.remove("loss")
    places = [text.index(f"\n{group}:\n") for group in groups]
    assert places == sorted(places)
    examples = text[places[-1]:]
    assert examples.count(f"\n    python {name}.py ") >= 2
    size = 32 if name == "flow" else 128
    assert f"(default: {size})" in text   # batch size, or z of a GAN
    assert "default: False" not in text and "default: None" not in text
    if name in AE:   # a default of 0 is one, too
        assert text.count("(default: 0.0)") == 2   # --dropout and --weight-decay


# ------------------------------------------------------------------------------------------ data

def test_a_download_that_fails_says_which_files_go_where(refused, tmp_path, monkeypatch):
    fashion = torchvision.datasets.FashionMNIST
    monkeypatch.setattr(fashion, "mirrors", ["http://127.0.0.1:9/"])   # nobody answers
    line = refused(vae, dataset="FashionMNIST", data=tmp_path)
    for word in ("train-images-idx3-ubyte.gz", f"{tmp_path}/FashionMNIST/raw", "--dataset digits"):
        assert word in line


@pytest.mark.parametrize("change, words", [
    ({"x_train": None}, ["x_train and x_test"]),
    ({"x_test": None}, ["x_train and x_test"]),
    ({"y_test": None}, ["y_train and y_test"]),
    ({"y_train": None}, ["y_train and y_test"]),
    ({"x_train": np.zeros((20, 8, 8))}, ["x_train float64", "uint8"]),
    ({"x_train": np.zeros((20, 64), np.uint8)}, ["(20, 64)", "(N, H, W)"]),
    ({"x_train": np.zeros((20, 2, 8, 8), np.uint8)}, ["(20, 2, 8, 8)", "(N, H, W)"]),
    ({"x_test": np.zeros((7, 9, 8), np.uint8)}, ["(7, 9, 8)", "agree"]),
    ({"x_test": np.zeros((0, 8, 8), np.uint8), "y_test": np.zeros(0, int)}, ["(0, 8, 8)"]),
    ({"y_train": np.arange(19) % 4}, ["(19,)", "whole numbers (N,)"]),
    ({"y_train": np.zeros((20, 4), np.int64)}, ["(20, 4)", "whole numbers (N,)"]),
    ({"y_train": np.zeros(20)}, ["y_train float64", "whole numbers (N,)"]),
    ({"y_train": np.arange(20) % 4 - 1}, ["from -1 to 3", "number them from 0"]),
    ({"y_test": np.full(7, 4)}, ["class 4 has test images", "none for training"]),
    ({"y_train": np.full(20, 10**9)}, ["class 0 has test images", "none for training"]),
    ({"y_train": np.full(20, -9), "y_test": np.full(7, -9)}, ["from -9 to -9"]),
    ({"classes": np.array(["a", "b"])}, ["2 classes", "number them from 0"]),
    ({"classes": np.array(4)}, ["1 classes"]),
    ({"y_train": np.array([print] * 20, object)}, ["plain arrays", "numpy.savez"]),
])
def test_npz(change, words, npz, refused):
    line = refused(vae, dataset=npz(**change))
    for word in ["own.npz", *words]:
        assert word in line


@pytest.mark.parametrize("n, others, words", [
    # grey images of 8x8, other files as {path: (mode, size)}, what the line must name
    (0, {}, ["no images", ".png"]),
    (9, {}, ["9 images", "10"]),
    (12, {"3.png": ("cut off", (8, 8))}, ["3.png", "repair or remove"]),
    (12, {"3.png": ("L", (9, 8))}, ["3.png", "--image-size"]),
    (12, {"3.png": ("I;16", (8, 8))}, ["3.png", "8 bits"]),
    (12, {"cat/3.png": ("L", (8, 8))}, ["class folders", "one or the other"]),
    (0, {"train/1.png": ("L", (8, 8)), "test/cat/1.png": ("L", (8, 8))},
     ["train/ and test/", "or neither"]),
])
def test_image_folders(n, others, words, refused, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    for i in range(n):
        Image.new("L", (8, 8)).save(tmp_path / f"{i}.png")
    for name, (mode, size) in others.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if mode == "cut off":
            file.write_bytes(file.read_bytes()[:40])
        else:
            Image.new(mode, size).save(file)
    line = refused(vae, dataset=tmp_path)
    for word in [str(tmp_path), *words]:
        assert word in line


def test_what_needs_labels_says_so(npz, refused):
    file = npz(x_train=np.zeros((20, 32, 32), np.uint8), y_train=None,
               x_test=np.zeros((7, 32, 32), np.uint8), y_test=None)
    line = refused(cvae, dataset=file)
    assert f"{file} has no labels" in line and "vae.py" in line
    for script in (gan, flow):
        line = refused(script, dataset=file, conditional=True)
        assert "--conditional needs labels" in line and "remove it" in line


# ---------------------------------------------------------------------------------------- pickles

class Bomb:
    """Makes a file when it is unpickled: what a stranger's file could do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_bomb_never_runs(refused, tmp_path, vae_run):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "proof"))).close()
    assert (tmp_path / "proof").exists()   # so does it burst where nobody takes care

    bomb = Bomb(tmp_path / "burst")
    (tmp_path / "bomb.npz").write_bytes(pickle.dumps(bomb))
    assert "bomb.npz" in refused(vae, dataset=tmp_path / "bomb.npz")
    np.savez(tmp_path / "inner.npz", x_train=np.array([bomb]), x_test=np.array([bomb]))
    assert "inner.npz" in refused(vae, dataset=tmp_path / "inner.npz")

    checkpoint = torch.load(vae_run[0] / "checkpoint.pt", weights_only=True)
    torch.save(checkpoint | {"data": bomb}, tmp_path / "bomb.pt")
    assert "bomb.pt is not" in refused(vae, resume=tmp_path / "bomb.pt")

    torch.save({"Conv2d_1a_3x3.conv.weight": bomb}, tmp_path / "bomb.pth")
    assert "bomb.pth" in refused(gan, fid_features=tmp_path / "bomb.pth", dataset="digits",
                                 iterations=1, eval_every=0, out=tmp_path / "run")
    assert not (tmp_path / "burst").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 half a zip"])
def test_files_that_are_something_else(content, refused, tmp_path):
    for name in ("file.npz", "checkpoint.pt", "weights.pth"):
        (tmp_path / name).write_bytes(content)
    assert "file.npz" in refused(vae, dataset=tmp_path / "file.npz")
    assert "checkpoint.pt is not" in refused(vae, resume=tmp_path)
    line = refused(gan, fid_features=tmp_path / "weights.pth", out=tmp_path / "run")
    assert "weights.pth" in line and not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------- run folders

def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_out_that_holds_a_run_is_left_alone(refused, vae_run):
    before = contents(vae_run[0])
    line = refused(vae, **TINY, out=vae_run[0])
    assert f"--out {vae_run[0]}" in line and f"--resume {vae_run[0]}" in line
    assert contents(vae_run[0]) == before


@pytest.mark.parametrize("name, change, flags, words", [
    # the script, flags replaced in the checkpoint, flags given, what the line must name
    ("cvae", {}, {}, ["vae.py", "use that script"]),
    ("vae", {}, {"latent": 3}, ["--latent cannot be changed when resuming; remove it"]),
    ("vae", {}, {"dataset": "MNIST"}, ["--dataset cannot be changed", "remove it"]),
    ("vae", {}, {"seed": 2}, ["--seed cannot be changed", "remove it"]),
    ("vae", {}, {"amp": True}, ["--amp cannot be changed", "remove it"]),
    ("vae", {}, {"out": "elsewhere"}, ["--out cannot be changed", "remove it"]),
    ("vae", {}, {"epochs": 9}, ["--epochs cannot be changed"]),   # onecycle has an end
    ("vae", {"lr_schedule": "constant", "beta_schedule": "linear"}, {"epochs": 9},
     ["--epochs cannot be changed"]),
    ("vae", {"lr_schedule": "constant"}, {"epochs": 1}, ["2 epochs are done already"]),
], ids=str)
def test_resuming_with_other_flags(name, change, flags, words, refused, vae_run, tmp_path):
    checkpoint = torch.load(vae_run[0] / "checkpoint.pt", weights_only=True)
    checkpoint["args"] |= change
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    before = contents(tmp_path)
    line = refused(SCRIPTS[name], resume=tmp_path, **flags)
    for word in words:
        assert word in line
    assert contents(tmp_path) == before


def test_a_flag_newer_than_the_run_cannot_be_given_when_resuming(refused, vae_run, tmp_path):
    """It would be written to args.txt, and the optimiser in the checkpoint would ignore it."""
    checkpoint = torch.load(vae_run[0] / "checkpoint.pt", weights_only=True)
    del checkpoint["args"]["weight_decay"]
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    line = refused(vae, resume=tmp_path, weight_decay=0.05)
    assert "--weight-decay cannot be changed when resuming; remove it" in line


def test_a_gan_cannot_be_resumed_with_more_iterations(refused, vae_run, tmp_path):
    """Its learning rate ends at zero."""
    checkpoint = torch.load(vae_run[0] / "checkpoint.pt", weights_only=True)
    flags = vars(gan.flags().parse_args([]))
    stored = {name: value for name, value in flags.items() if name not in ("out", "resume")}
    torch.save(checkpoint | {"script": "gan", "args": stored}, tmp_path / "checkpoint.pt")
    line = refused(gan, resume=tmp_path, iterations=99_999)
    assert "--iterations cannot be changed when resuming; remove it" in line


@pytest.mark.parametrize("missing, words", [
    ("args", ["not a minigen checkpoint"]),
    ("rng", ["not a minigen checkpoint"]),
    ("log", ["first edition", "not continued"]),
])
def test_resuming_what_is_incomplete(missing, words, refused, vae_run, tmp_path):
    checkpoint = torch.load(vae_run[0] / "checkpoint.pt", weights_only=True)
    del checkpoint[missing]
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    line = refused(vae, resume=tmp_path)
    for word in [str(tmp_path), *words]:
        assert word in line


@pytest.mark.parametrize("change", [
    {"x_train": np.zeros((20, 9, 9), np.uint8), "x_test": np.zeros((7, 9, 9), np.uint8)},
    {"classes": np.array(["a", "b", "c", "d"])},
], ids=["shape", "classes"])
def test_resuming_on_data_that_changed(change, npz, refused, tmp_path, no_plots):
    folder = tmp_path / "run"
    vae.main(out=folder, **TINY | {"dataset": npz(), "lr_schedule": "constant"})
    before = contents(folder)
    npz(**change)
    line = refused(vae, resume=folder, epochs=3)
    assert "own.npz no longer matches" in line and "restore the data" in line
    assert contents(folder) == before
