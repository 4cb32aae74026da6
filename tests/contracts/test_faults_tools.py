"""What comes from outside of generate.py, evaluate.py, metrics.py, demo.py and tools/: files that
are broken, hostile, moved or cannot be written, odd names, Ctrl-C, and what a notebook passes."""
import ast
import json
import math
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from PIL import Image
from torchvision import datasets

import demo
import evaluate
import generate
import metrics
import run
import vae
from common import Data
from readers import load_data
from tools import compare_logs

QUICK = {"metrics": "elbo,mse", "device": "cpu"}


def rows_of_stripes(n=200):
    """A data set of two classes, quick to tell apart."""
    x = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    y = torch.arange(n) % 2
    x[y == 1, :, ::2] = 255
    return Data("stripes", x, y, x[:20], y[:20], ["plain", "striped"])


@pytest.fixture
def own_run(vae_run, tmp_path):
    """A copy of the run that several tests share."""
    return Path(shutil.copytree(vae_run[0], tmp_path / "run"))


@pytest.fixture(scope="module")
def moved(tmp_path_factory):
    """(run folder, place where its data are now): trained on an .npz that was moved since."""
    folder = tmp_path_factory.mktemp("moved")
    x = np.random.default_rng(0).integers(0, 256, (27, 8, 8), np.uint8)
    np.savez(folder / "old.npz", x_train=x[:20], y_train=np.arange(20) % 4, x_test=x[20:],
             y_test=np.arange(7) % 4)
    vae.main(out=folder / "run", **TINY | {"dataset": folder / "old.npz", "epochs": 1})
    (folder / "old.npz").rename(folder / "new.npz")
    return folder / "run", folder / "new.npz"


def stopped(status, command, *argv, **flags):
    """Run a command that is to end with this exit status."""
    with pytest.raises(SystemExit) as stop:
        command.main(*argv, **flags)
    assert stop.value.code == status


# ------------------------------------------------------------------------------ files that are read

class Bomb:
    """Makes a file when it is unpickled: what a stranger's file could do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("old_format", [False, True])
def test_no_file_that_is_loaded_runs_code(old_format, vae_run, tmp_path, refused, capsys):
    def save(content, file):
        torch.save(content, file, _use_new_zipfile_serialization=not old_format)

    bomb = Bomb(tmp_path / "burst")
    pickle.loads(pickle.dumps(bomb)).close()
    (tmp_path / "burst").unlink()   # so does it burst where nobody takes care

    checkpoint = torch.load(vae_run[0] / "checkpoint.pt", weights_only=True)
    save(checkpoint | {"data": bomb}, tmp_path / "bomb.pt")
    for tool in (generate, evaluate):
        assert "bomb.pt" in refused(tool, [tmp_path / "bomb.pt"], out=tmp_path / "out")

    save({"Conv2d_1a_3x3.conv.weight": bomb}, tmp_path / "bomb.pth")
    line = refused(evaluate, [vae_run[0]], fid_features=tmp_path / "bomb.pth", out=tmp_path)
    assert "bomb.pth" in line

    data = rows_of_stripes()
    metrics.trained_classifier(data, tmp_path / "cache")
    file = next((tmp_path / "cache").iterdir())
    weights = torch.load(file, weights_only=True)
    save(weights | {"body.0.weight": bomb}, file)
    metrics.trained_classifier(data, tmp_path / "cache")
    assert f"{file} is broken" in capsys.readouterr().out
    assert not (tmp_path / "burst").exists()


def damage(file, kind):
    """Spoil a file of weights."""
    content = file.read_bytes()
    weights = torch.load(file, weights_only=True)
    if kind == "half":
        file.write_bytes(content[:len(content) // 2])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "foreign":
        file.write_bytes(b"not a file of weights")
    elif kind == "flipped":
        middle = content.index(weights["head.weight"].numpy().tobytes())
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:])
    elif kind == "shapes":   # the others fit, and must not be what the training starts from
        torch.save(weights | {"head.weight": torch.zeros(3, 64)}, file)
    elif kind == "list":
        torch.save([1, 2], file)


@pytest.mark.parametrize("kind", ["half", "empty", "foreign", "flipped", "shapes", "list"])
def test_a_broken_cached_classifier_is_trained_again(kind, tmp_path, capsys):
    data = rows_of_stripes()
    whole = metrics.trained_classifier(data, tmp_path).state_dict()
    file = next(tmp_path.iterdir())
    damage(file, kind)
    capsys.readouterr()
    again = metrics.trained_classifier(data, tmp_path).state_dict()
    printed = capsys.readouterr().out
    assert f"{file} is broken" in printed and printed.count("\n") == 2
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert list(tmp_path.iterdir()) == [file]
    metrics.trained_classifier(data, tmp_path)
    assert capsys.readouterr().out == ""   # the file is whole again


def test_a_classifier_that_cannot_be_kept_ends_nothing(capsys):
    network = metrics.trained_classifier(rows_of_stripes(), "/dev/null/cache")
    assert network.accuracy == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert "/dev/null/cache" in line and "going on" in line


def test_inception_weights_of_another_shape_are_refused(tmp_path, capsys):
    """A file that opens as Inception's does is no reason to go on with a classifier."""
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(2)}, tmp_path / "own.pth")
    with pytest.raises(SystemExit):
        metrics.inception(str(tmp_path / "own.pth"), torch.device("cpu"))
    printed = capsys.readouterr()
    assert "own.pth does not hold" in printed.err and printed.err.count("\n") == 1


def test_a_checkpoint_under_another_name_is_in_no_film(tmp_path):
    for name in ("002", "010", "old", "best"):
        (tmp_path / f"checkpoint_{name}.pt").touch()
    source = SimpleNamespace(folder=tmp_path, model=SimpleNamespace(args=SimpleNamespace()))
    files = generate.kept_checkpoints(source)
    assert files == {2: tmp_path / "checkpoint_002.pt", 10: tmp_path / "checkpoint_010.pt"}


def test_a_name_of_a_data_set_is_a_name_of_a_file(tmp_path):
    data = rows_of_stripes()._replace(name="a/b\n$" + "c" * 1000)
    metrics.trained_classifier(data, tmp_path, quiet=True)
    file, = tmp_path.iterdir()
    assert file.name.startswith("a-b-cccc") and len(file.name) < 150


@pytest.mark.parametrize("torn", ['{"epoch": 1, "mse"', "\x00\x00", "[1, 2]", "7"])
def test_a_torn_line_of_measurements_is_left_out_with_a_word(torn, own_run, capsys):
    file = own_run / "evaluation.jsonl"
    whole = json.dumps({"epoch": 1, "mse": 0.5})
    file.write_bytes(f"{whole}\n{torn}\n".encode() + b"\xff")
    evaluate.main([own_run], **QUICK)
    printed = capsys.readouterr().out
    assert printed.count(f"{file}: left out a line that is not whole") == 2
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0] == whole and json.loads(lines[1])["epoch"] == 2 and len(lines) == 2


def spreadsheet(text):
    return text.replace(",", ";")


@pytest.mark.parametrize("change", [
    lambda text: "",
    lambda text: text.splitlines()[0],                 # a header only
    spreadsheet,
    lambda text: spreadsheet(text.replace(".", ",")),
    lambda text: "\ufeff" + text,
    lambda text: text[:text.rindex(",", 0, -20)],      # a row that is cut off
    lambda text: text.replace(",", ",x"),
    lambda text: "\x00" * 50,
    lambda text: text + "1,2,3,4,5,6,7,8,9,10,11,12,13,14\n",
])
def test_a_damaged_log_is_named_in_a_comparison(change, vae_run, own_run, refused, tmp_path):
    file = own_run / "log.csv"
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
    line = refused(evaluate, [vae_run[0], own_run], out=tmp_path / "out")
    assert str(file) in line
    assert not list((tmp_path / "out").iterdir())


# ----------------------------------------------------------------------------- data that have moved

@pytest.mark.parametrize("tool, flags", [
    (generate, {"interpolate": (0, 5), "steps": 3}), (evaluate, QUICK),
], ids=["generate", "evaluate"])
def test_moved_data_are_found_with_dataset(tool, flags, moved, tmp_path, refused, npz, capsys):
    folder, place = moved
    line = refused(tool, [folder], out=tmp_path, **flags)
    assert "old.npz" in line and "--dataset" in line
    capsys.readouterr()
    found = tool.main([folder], dataset=place, out=tmp_path, **flags)
    assert "note:" not in capsys.readouterr().out
    if tool is evaluate:
        assert found["test_loss"] == pytest.approx(run.read_log(folder)[-1]["test_loss"], rel=1e-5)
        line = (folder / "evaluation.jsonl").read_text(encoding="utf-8")
        assert json.loads(line)["dataset"] == str(place)   # whose numbers these are

    others = npz(x_train=np.full((20, 8, 8), 9, np.uint8))
    tool.main([folder], dataset=others, out=tmp_path, **flags)
    assert "since this run was trained" in capsys.readouterr().out
    others = npz(x_test=np.full((7, 8, 8), 9, np.uint8))
    tool.main([folder], dataset=others, out=tmp_path, **flags)
    assert "since this run was trained" in capsys.readouterr().out

    other_shape = npz(x_train=np.full((20, 9, 9), 9, np.uint8), x_test=np.ones((7, 9, 9), np.uint8))
    line = refused(tool, [folder], dataset=other_shape, out=tmp_path, **flags)
    assert "own.npz no longer matches" in line
    line = refused(tool, [folder], dataset=npz(classes=np.array(list("abcd"))), out=tmp_path,
                   **flags)
    assert "own.npz no longer matches" in line


def test_home_is_expanded_and_nothing_is_no_path(moved, tmp_path, monkeypatch, refused):
    folder, place = moved
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "run")
    shutil.copy(place, tmp_path / "own.npz")
    generate.main(["~/run"], interpolate=(0, 5), out="~/images", dataset="~/own.npz")
    assert (tmp_path / "images" / "interpolation_0_5.png").exists()
    evaluate.main(["~/run"], out="~/numbers", dataset="~/own.npz", **QUICK)
    assert (tmp_path / "numbers").is_dir() and not (tmp_path / "~").exists()

    for tool in (generate, evaluate):
        for flag in ("--out=", "--data=", "--dataset="):
            assert flag.strip("=") in refused(tool, ["run", flag])
        assert "RUN" in refused(tool, [""])
    for flag in ("--out=", "--data="):
        assert flag.strip("=") in refused(demo, [flag])


# ---------------------------------------------------------------------------------------- odd names

ODD = ["a/b", "a-b", "US$5_$", "x\x1b[31m", "line\nbreak", "c" * 10**6, "d" * 300, "", "..", "猫"]


@pytest.mark.parametrize("flags", [
    ["--classes"], ["--class", "US$5_$"], ["--manifold", "--steps", "2"], ["--reconstruct", "2"],
    ["--interpolate", "0", "1", "--steps", "2"], ["--scatter"], ["--pca"],
    ["--class", "c" * 10**6],
], ids=lambda flags: flags[0] + flags[-1][:3])
def test_odd_class_names_harm_no_file_and_no_figure(flags, cvae_run, tmp_path, monkeypatch, capsys):
    checkpoint = run.load_checkpoint(cvae_run[0])
    checkpoint["data"]["classes"] = ODD
    torch.save(checkpoint, tmp_path / "own.pt")
    digits = load_data("digits")._replace(classes=ODD)
    monkeypatch.setattr(generate, "load_data", lambda *args, **flags: digits)
    generate.main([tmp_path / "own.pt", *flags], out=tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == (10 if "--manifold" in flags else 1)   # no file is written over
    for file in files:
        assert len(file.name) < 100 and set("/$\x1b\n").isdisjoint(file.name)
        assert Image.open(file).width < 2000
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and printed.count(".png\n") == len(files)


def test_an_unknown_class_of_any_length_is_one_short_line(cvae_run, refused):
    for flags in (["--class", "\x1b" * 10**6], ["--digits", "x" * 10**6, "1"]):
        line = refused(generate, [cvae_run[0], *flags])
        assert len(line) < 500 and "\x1b" not in line


def test_flags_with_a_dollar_harm_no_comparison(vae_run, own_run, tmp_path, capsys):
    with open(own_run / "args.txt", "a", encoding="utf-8") as file:
        file.write("--dataset=US$5_$\n")
    evaluate.main(runs=[vae_run[0], own_run], out=tmp_path)
    assert "US$5_$" in capsys.readouterr().out
    assert Image.open(tmp_path / "compare.png").width > 100


# ------------------------------------------------------------------------- codes that are all alike

def test_there_is_no_map_of_equal_codes(vae_run, tmp_path, refused):
    """Of those scikit-learn's t-SNE crashes, and Python with it."""
    checkpoint = run.load_checkpoint(vae_run[0])
    for name, weight in checkpoint["model"].items():
        if name.startswith("encoder"):
            weight.zero_()
    torch.save(checkpoint, tmp_path / "equal.pt")
    for flags in (["--tsne", "50"], ["--pca"]):
        line = refused(generate, [tmp_path / "equal.pt", *flags], out=tmp_path)
        assert flags[0] in line and "have only 1;" in line
    generate.main([tmp_path / "equal.pt", "--scatter"], out=tmp_path)


@pytest.mark.parametrize("mu, good", [
    (torch.randn(60, 3), True),
    (torch.eye(5).repeat(12, 1), True),
    (torch.eye(4).repeat(15, 1), False),           # fewer than are needed
    (1e-30 * torch.randn(60, 3), False),           # whose squares are 0
    (torch.full((60, 3), torch.nan), False),
])
def test_codes_for_a_map(mu, good, capsys):
    if good:
        generate.check_codes(mu, 5, "--tsne")
        return
    with pytest.raises(SystemExit):
        generate.check_codes(mu, 5, "--tsne")
    assert "--tsne needs" in capsys.readouterr().err


def test_the_way_between_zeros_is_straight():
    zero, one = torch.zeros(3), torch.ones(3)
    assert generate.spherical(zero, zero, 4).tolist() == [[0.0] * 3] * 4
    torch.testing.assert_close(generate.spherical(zero, one, 3), generate.straight(zero, one, 3))


# ------------------------------------------------------------------------------------------ numbers

def test_every_sample_has_pixel_noise_of_its_own(vae_run):
    """Of a model whose p(x|z) is the same for every z."""
    _, _, models = run.load_models(vae_run[0])
    trained = models[""]
    for weight in trained.model.decoder.parameters():
        weight.zero_()   # pixels are 0 or 1 with the same chance
    args = run.parse(generate.flags(), ["RUN", "--show", "sample"], {})
    x = generate.draw(trained, torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), args)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert 0.4 < (x[a] != x[b]).float().mean() < 0.6
    assert torch.equal(x, generate.draw(trained, torch.zeros(3, 2), torch.zeros(3).long(), args))


@pytest.mark.parametrize("raw, shown", [(-5.7e-14, 0), (0.25, 0.25), (torch.nan, torch.nan)])
def test_a_frechet_distance_is_never_negative(raw, shown, monkeypatch):
    monkeypatch.setattr(metrics, "between", lambda *_: torch.tensor(raw, dtype=torch.double))
    x = torch.zeros(3, 2, dtype=torch.double)
    found = metrics.frechet_distance(x, x)
    assert found == shown or math.isnan(found) and math.isnan(shown)
    monkeypatch.setattr(metrics, "between", lambda *_: (torch.tensor(-0.5), None))
    assert metrics.kernel_distance(x, x) == -0.5   # unbiased: it has to be so


@pytest.mark.parametrize("raw, shown", [(-5.7e-14, 0), (0.25, 0.25)])
def test_nor_is_that_of_a_meter(raw, shown):
    meter = metrics.FIDMeter.__new__(metrics.FIDMeter)
    meter.metric = SimpleNamespace(reset=lambda: None, compute=lambda: torch.tensor(raw))
    assert meter.distance([]) == shown


def test_random_numbers_of_all_devices_go_on_as_before(monkeypatch):
    """manual_seed seeds every GPU, even where nothing is drawn on one."""
    forked = []
    real_fork = torch.random.fork_rng

    def fork(devices):
        forked.append(list(devices))
        return real_fork([])

    monkeypatch.setattr(torch.random, "fork_rng", fork)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    state = torch.get_rng_state()
    with metrics.seeded(3):
        drawn = torch.rand(1)
    generate.seeded_sample(torch.distributions.Normal(0.0, 1.0), 3)
    assert forked == [[0, 1], [0, 1]] and torch.equal(state, torch.get_rng_state())
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


# ------------------------------------------------------------------------------ a notebook, Ctrl-C

def test_keywords_take_what_flags_take(vae_run, cvae_run, tmp_path):
    folder = vae_run[0]
    for flags, name in (({"interpolate": (0, 7)}, "interpolation_0_7.png"),
                        ({"uniform": (-1, 1.5), "steps": 2}, "uniform.png")):
        generate.main([folder], out=tmp_path, **flags)
        assert (tmp_path / name).exists()
    generate.main([cvae_run[0]], digits=(3, "5"), out=tmp_path / "digits")
    assert len(list((tmp_path / "digits").iterdir())) == 1

    generate.main([folder], samples=4, out=tmp_path)
    page = (tmp_path / "samples_4.png").read_bytes()
    checkpoint = folder / "checkpoint.pt"
    wanted = evaluate.main([str(checkpoint), "--metrics=elbo,mse"])
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            generate.main([folder], samples=4, out=tmp_path)
            found = evaluate.main(runs=[checkpoint], metrics=["mse", "elbo"], out=tmp_path)
        assert (tmp_path / "samples_4.png").read_bytes() == page and found == wanted
    torch.set_default_dtype(torch.float64)
    try:
        generate.main([folder], samples=4, out=tmp_path)
        found = evaluate.main(runs=checkpoint, metrics=("mse", "elbo"))
    finally:
        torch.set_default_dtype(torch.float32)
    assert (tmp_path / "samples_4.png").read_bytes() == page and found == wanted


def test_ctrl_c_is_one_line_and_status_130(own_run, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    before = sorted(own_run.iterdir())
    monkeypatch.setattr(generate, "draw", interrupted)
    stopped(130, generate, [own_run], samples=4)
    monkeypatch.setattr(evaluate, "measure", interrupted)
    stopped(130, evaluate, [own_run], out=tmp_path)
    assert capsys.readouterr().err == "stopped\nstopped\n"
    monkeypatch.setitem(demo.READERS, "MNIST", interrupted)
    stopped(130, demo, [], out=tmp_path / "demo")
    assert capsys.readouterr().err == ""
    assert sorted(own_run.iterdir()) == before and not (tmp_path / "demo").exists()


# ------------------------------------------------------------------------- what cannot be written

@pytest.mark.parametrize("flags", [["--samples", "4"], ["--scatter"], ["--pca"],
                                   ["--interpolate", "0", "5", "--gif"], ["--explore"]])
def test_a_full_disk_leaves_no_part_of_an_image(flags, vae_run, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    stopped(1, generate, [vae_run[0], *flags], out=tmp_path / "out")
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert "No space left" in printed.err
    assert list((tmp_path / "out").iterdir()) == []


def test_numbers_are_printed_where_they_cannot_be_kept(own_run, monkeypatch, capsys):
    def read_only(*_):
        raise PermissionError(30, "Read-only file system")

    (own_run / "evaluation.jsonl").write_text('{"epoch": 1}\n', encoding="utf-8")
    monkeypatch.setattr("os.replace", read_only)
    stopped(1, evaluate, [own_run], **QUICK)
    printed = capsys.readouterr()
    assert "test_loss" in printed.out and "evaluation.jsonl" in printed.err
    assert printed.err.count("\n") == 1
    assert (own_run / "evaluation.jsonl").read_text(encoding="utf-8") == '{"epoch": 1}\n'


def test_a_folder_that_cannot_be_written_is_told_before_the_work(vae_run, monkeypatch, refused):
    monkeypatch.setattr(evaluate, "load_models", None)   # a call would fail
    for folder in ("/dev/null/x", "/proc"):
        assert f"--out {folder}" in refused(evaluate, [vae_run[0]], out=folder)
        assert f"--out {folder}" in refused(generate, [vae_run[0]], out=folder)


# --------------------------------------------------------------------------------- demo and tools

def test_the_demo_says_why_there_is_no_mnist(tmp_path, monkeypatch, capsys, refused, vae_run):
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])   # nobody
    monkeypatch.setattr(demo.cvae, "main", lambda **_: pytest.fail("not refused"))
    monkeypatch.setattr(demo, "new_folder", lambda base: (_ for _ in ()).throw(
        PermissionError(13, "Permission denied")))
    stopped(2, demo, data=tmp_path)
    printed = capsys.readouterr()
    assert "train-images-idx3-ubyte" in printed.out and printed.out.count("\n") == 1
    assert "--out" in printed.err and printed.err.count("\n") == 1


def test_a_log_that_is_no_text_is_named(tmp_path, capsys):
    (tmp_path / "log.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SystemExit):
        compare_logs.main(tmp_path, tmp_path)
    assert str(tmp_path / "log.csv") in capsys.readouterr().err


OURS = ["generate.py", "evaluate.py", "metrics.py", "demo.py"]
OURS += sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("tools/*.py"))


@pytest.mark.parametrize("name", OURS)
def test_no_check_is_an_assert_and_every_text_is_utf8(name):
    """python -O drops asserts, and a text is read as the machine's language has it."""
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Assert), node.lineno
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func).split(".")[-1]
        of_image = ast.unparse(node.func) == "Image.open"
        if called in ("open", "read_text", "write_text") and not of_image:
            keywords = [keyword.arg for keyword in node.keywords]
            assert "encoding" in keywords or "b" in ast.unparse(node.args[-1]), node.lineno


# ------------------------------------------------------------------- Ctrl-C during the imports

INTERRUPTED = """
import runpy, sys

class Interrupt:
    def find_spec(self, name, *others):
        if name == "torch":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
sys.path.insert(0, ".")
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("script", ["vae", "cvae", "gan", "generate", "evaluate", "demo",
                                    "tools/benchmark", "tools/pack", "tools/pca"])
def test_ctrl_c_while_torch_is_imported(script):
    command = [sys.executable, "-c", INTERRUPTED, f"{script}.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert result.stderr == "stopped before the first step\n"


def test_a_program_elsewhere_keeps_its_tracebacks(tmp_path):
    program = tmp_path / "own.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport ctrl_c\n"
                       "def own():\n    raise KeyboardInterrupt\nown()\n")
    result = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert "in own" in result.stderr and "stopped" not in result.stderr


def test_the_script_that_is_hashed_is_the_one_imported(vae_run, tmp_path, monkeypatch, capsys):
    """Another vae.py may come first on Python's path."""
    monkeypatch.setitem(sys.modules, "vae", SimpleNamespace(__file__=str(tmp_path / "vae.py")))
    with pytest.raises(SystemExit):
        run.load_models(vae_run[0])
    line = capsys.readouterr().err
    assert f"{ROOT}/vae.py" in line and f"{tmp_path}/vae.py" in line


def test_a_folder_that_the_first_edition_split_otherwise_is_refused(tmp_path, capsys):
    """Its tenth of the files was another one: test images of now were trained on."""
    for split, n in (("photos", 12), ("sorted/train", 12), ("sorted/test", 4)):
        folder = tmp_path / split
        folder.mkdir(parents=True)
        for i in range(n):
            Image.new("L", (8, 8), 20 * i).save(folder / f"{i:02d}.png")
    photos, in_parts = str(tmp_path / "photos"), str(tmp_path / "sorted")
    first_edition, second_edition = {}, {"source": "the hash of a script"}
    run.check_split(second_edition, photos)
    run.check_split(first_edition, in_parts)
    with pytest.raises(SystemExit):
        run.check_split(first_edition, photos)
    assert "train it again" in capsys.readouterr().err
