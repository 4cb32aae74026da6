"""Bad input: one line that names the flag or file and the remedy, status 2, and nothing is lost."""
import pickle

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import cvae
import gan
import vae


class Harm:
    """Makes a file when it is unpickled: what a stranger's file could do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def refusal(capsys, script, argv=(), **flags):
    """The one line that a run is refused with."""
    with pytest.raises(SystemExit) as stop:
        script.main(argv, **flags)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize("flags, named", [
    ("--latent 0", "--latent: must be at least 1, not 0"),
    ("--latent two", "--latent: invalid int value: 'two'"),
    ("--beta -1", "--beta: must be at least 0"),
    ("--beta nan", "--beta: must be at least 0"),
    ("--epochs -1", "--epochs: must be at least 1"),
    ("--lr 0", "--lr: must be above 0"),
    ("--seed -3", "--seed: must be at least 0"),
    ("--seed 4294967296", "--seed: must be below 4294967296"),
    ("--lat 2", "--lat 2"),   # no abbreviations: a later flag could change their meaning
    ("--beta-schedule cosine", "--beta-schedule: invalid choice"),
    ("--beta-warmup 3", "--beta-warmup needs --beta-schedule"),
    ("--beta-schedule cyclical --epochs 7", "raise --epochs"),
    ("--beta-schedule linear --beta-warmup 9 --epochs 8", "--beta-warmup must be 2 to 8"),
    ("--dataset mnist", "--dataset mnist: no such data set"),
    ("--dataset /no/such/folder", "--dataset /no/such/folder: no such data set"),
    ("--sigma 0", "--sigma: must be at least 0.0039"),
    ("--sigma learnt", "--sigma: invalid"),
    ("--sigma 0.1 --likelihood bernoulli", "--sigma needs --likelihood gaussian"),
    ("--binarize dynamic --likelihood gaussian", "--binarize needs --likelihood bernoulli"),
    ("--binarize dynamic --sigma pixel", "--sigma needs --likelihood gaussian"),
    ("--dropout 1", "--dropout must be below 1"),
    ("--dataset digits --arch conv --image-size 30", "--image-size 28, 32 or 64"),
    ("--dataset digits --train-size 1501", "--train-size 1501: there are only 1500 images"),
    ("--dataset digits --test-size 298", "--test-size 298"),
    ("--dataset digits --device nonsense", "--device nonsense"),
    ("--dataset digits --out /dev/null/run", "--out /dev/null/run"),
    ("--resume /no/such/run", "/no/such/run is no checkpoint"),
    ("@/no/such/args.txt", "/no/such/args.txt"),
])
@pytest.mark.parametrize("script", [vae, cvae])
def test_flags(script, flags, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named in refusal(capsys, script, flags.split())
    assert not list(tmp_path.iterdir())   # nothing begun


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_one(capsys):
    assert "--device cuda" in refusal(capsys, vae, dataset="digits", device="cuda")


def test_download_that_fails_says_which_files_go_where(capsys, tmp_path, monkeypatch):
    import torchvision
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    line = refusal(capsys, vae, dataset="FashionMNIST", data=tmp_path)
    assert "train-images-idx3-ubyte.gz" in line and f"{tmp_path}/FashionMNIST/raw" in line
    assert "--dataset digits" in line


def test_folders(capsys, tmp_path):
    line = refusal(capsys, vae, dataset=tmp_path)
    assert str(tmp_path) in line and "no pictures" in line
    for i in range(9):
        Image.new("L", (8, 8)).save(tmp_path / f"{i}.png")
    assert "a test set needs 10" in refusal(capsys, vae, dataset=tmp_path)
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    assert "broken.png" in refusal(capsys, vae, dataset=tmp_path)
    Image.new("L", (9, 8)).save(tmp_path / "broken.png")
    assert "--image-size" in refusal(capsys, vae, dataset=tmp_path)
    Image.new("I;16", (8, 8)).save(tmp_path / "broken.png")
    assert "8 bits" in refusal(capsys, vae, dataset=tmp_path)
    (tmp_path / "cat").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "cat" / "10.png")
    assert "pictures beside folders" in refusal(capsys, vae, dataset=tmp_path)
    for place in ("train", "test/cat"):
        (tmp_path / "two" / place).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "two" / place / "1.png")
    assert "by class" in refusal(capsys, vae, dataset=tmp_path / "two")


@pytest.mark.parametrize("replaced, named", [
    ({"x_train": None}, "x_train"),
    ({"x_test": None}, "x_test"),
    ({"y_test": None}, "y_test"),
    ({"x_train": np.zeros((20, 8, 8))}, "float64"),
    ({"x_train": np.zeros((20, 64), np.uint8)}, "(20, 64)"),
    ({"x_train": np.zeros((20, 2, 8, 8), np.uint8)}, "(20, 2, 8, 8)"),
    ({"x_test": np.zeros((7, 9, 8), np.uint8)}, "(7, 9, 8)"),
    ({"x_test": np.zeros((0, 8, 8), np.uint8)}, "(0, 8, 8)"),
    ({"y_train": np.arange(19) % 4}, "(19,)"),
    ({"y_train": np.zeros((20, 4), np.int64)}, "(20, 4)"),
    ({"y_train": np.zeros(20)}, "float64"),
    ({"y_train": np.arange(20) % 4 - 1}, "out of range of 3 classes; number them from 0 on"),
    ({"y_test": np.full(7, 4)}, "out of range of 4 classes; number them from 0 on"),
    ({"y_train": np.full(20, 10**9)}, "out of range of 20 classes; number them from 0 on"),
    ({"classes": np.array(["a", "b"])}, "out of range of 2 classes; number them from 0 on"),
    ({"classes": np.array(4)}, "out of range of 1 classes; number them from 0 on"),
    ({"y_train": np.full(20, -9), "y_test": np.full(7, -9)}, "from -9 to -9"),
    ({"y_train": np.array([print] * 20, object)}, "plain arrays"),
])
def test_npz(npz, capsys, replaced, named):
    line = refusal(capsys, vae, dataset=npz(**replaced))
    assert "own.npz" in line and named in line


def test_files_that_are_no_npz_and_pickles_that_would_run_code(capsys, tmp_path):
    harm = pickle.dumps(Harm(tmp_path / "harm"))
    for name, content in (("text.npz", b"not a zip"), ("harm.npz", harm), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(content)
        assert name in refusal(capsys, vae, dataset=tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_cvae_needs_labels(npz, capsys):
    line = refusal(capsys, cvae, dataset=npz(y_train=None, y_test=None))
    assert "has no labels" in line and "vae.py" in line


def test_out_that_holds_a_run_is_left_alone(capsys, vae_run):
    before = (vae_run[0] / "log.csv").read_text()
    line = refusal(capsys, vae, **TINY, out=vae_run[0])
    assert f"--out {vae_run[0]}" in line and "--resume" in line
    assert (vae_run[0] / "log.csv").read_text() == before


def test_resume(capsys, vae_run, tmp_path):
    folder = vae_run[0]
    assert "go on with vae.py" in refusal(capsys, cvae, resume=folder)
    assert "all 2 are done" in refusal(capsys, vae, resume=folder)
    assert "--latent cannot change" in refusal(capsys, vae, resume=folder, latent=3)
    assert "--epochs cannot change" in refusal(capsys, vae, resume=folder, epochs=9)   # onecycle
    assert "--out cannot change" in refusal(capsys, vae, resume=folder, out=tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    assert "no checkpoint" in refusal(capsys, vae, resume=tmp_path)
    torch.save({"weights": 1}, tmp_path / "checkpoint.pt")
    assert "no checkpoint" in refusal(capsys, vae, resume=tmp_path / "checkpoint.pt")
    whole = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save(whole | {"data": Harm(tmp_path / "harm")}, tmp_path / "checkpoint.pt")
    assert "no checkpoint" in refusal(capsys, vae, resume=tmp_path)
    assert not (tmp_path / "harm").exists()
    torch.save(whole | {"epoch": 1}, tmp_path / "checkpoint.pt")
    assert "no log.csv" in refusal(capsys, vae, resume=tmp_path)
    # every schedule that has an end holds the epochs, and a GAN's rate always has
    flags = whole["args"] | {"lr_schedule": "constant", "beta_schedule": "linear"}
    torch.save(whole | {"args": flags}, tmp_path / "checkpoint.pt")
    assert "--epochs cannot change" in refusal(capsys, vae, resume=tmp_path, epochs=9)
    flags = vars(gan.flags().parse_args([]))
    flags = {name: value for name, value in flags.items() if name not in ("out", "resume")}
    torch.save(whole | {"script": "gan", "args": flags}, tmp_path / "checkpoint.pt")
    assert "--iterations cannot change" in refusal(capsys, gan, resume=tmp_path, iterations=99_999)


@pytest.mark.parametrize("change", [{"x_train": np.zeros((20, 9, 9), np.uint8),
                                     "x_test": np.zeros((7, 9, 9), np.uint8)},
                                    {"classes": np.array(["a", "b", "c", "d", "e"])}])
def test_resume_of_data_that_changed(change, npz, capsys, tmp_path):
    vae.main(out=tmp_path / "run", **TINY | {"dataset": npz(), "lr_schedule": "constant"})
    before = (tmp_path / "run" / "log.csv").read_text()
    npz(**change)
    assert "the classes it had" in refusal(capsys, vae, resume=tmp_path / "run", epochs=3)
    assert (tmp_path / "run" / "log.csv").read_text() == before


def test_a_gan_needs_two_test_images(capsys):
    assert "--eval-every 0" in refusal(capsys, gan, dataset="digits", test_size=1)
