"""Faults from outside that a run outlives, or names in a line: a kill at any moment, a full disk,
two runs in one folder, data that changed, files that are not what they claim, a terminal that is
gone.
"""
import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

import cvae
import gan
import run
import vae
from common import Data, save_curves, save_grid, tell, write_whole
from run import as_flags, load_models, make_scheduler, read_log

SMALL = TINY | {"latent": 3, "hidden": 8, "train_size": 200, "save_every": 1}
TINY_GAN = {"dataset": "digits", "width": 4, "latent": 8, "batch_size": 8, "iterations": 12,
            "eval_every": 4, "save_every": 1, "quiet": True, "device": "cpu"}
SCRIPTS = {"vae": (vae, SMALL), "cvae": (cvae, SMALL), "gan": (gan, TINY_GAN)}


class Killed(BaseException):
    """Stands for a kill: nothing in the program sees it coming."""


class FakeMeter:
    """A distance that costs nothing: the mean pixel of the samples."""
    name, n, floor = "fid_fake_10", 10, 0.5

    def distance(self, images):
        return torch.cat(list(images)).mean().item()


def plain_curves(path, rows, *_):
    """A figure that costs nothing and shows the rows."""
    shown = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
    write_whole(path, repr(shown).encode())


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(gan, "make_meters", lambda args, data: (FakeMeter(), None))
    monkeypatch.setattr(run, "save_curves", plain_curves)
    monkeypatch.setattr(gan, "save_curves", plain_curves)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A function of a script's name: the folder of its run that was never killed."""
    folders = {}

    def folder_of(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("whole") / "run"
            script, flags = SCRIPTS[name]
            script.main(out=folders[name], **flags)
        return folders[name]
    return folder_of


def content(file):
    """What must be equal in two runs: all but seconds, and the commands that made them."""
    if file.suffix == ".pt":
        checkpoint = torch.load(file, weights_only=True)
        for row in checkpoint["log"]:
            del row["seconds"]
        return comparable(checkpoint)
    if file.name == "log.csv":
        return [line.split(",")[2:] for line in file.read_text().splitlines()]
    if file.name == "args.txt":
        return [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return file.read_bytes()


def comparable(value):
    """A checkpoint, or a part of it, with lists for tensors."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: comparable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(part) for part in value]
    return value


def contents(folder):
    return {file.name: content(file) for file in folder.iterdir()}


def raw(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# ---------------------------------------------------------------------------------------- kills

def kill_at(monkeypatch, name, count, after):
    """Kill when a file gets this name for the n-th time: after that, or just before."""
    calls = []

    def killing(partial, path):
        last = False
        if Path(path).name == name:
            calls.append(path)
            last = len(calls) == count
        if not last or after:
            replace(partial, path)
        if last:
            raise Killed

    replace = os.replace
    monkeypatch.setattr(os, "replace", killing)


@pytest.mark.parametrize("name, when, file, count", [
    ("vae", "before", "args.txt", 1), ("vae", "after", "args.txt", 1),
    ("vae", "before", "checkpoint.pt", 1), ("vae", "after", "checkpoint.pt", 1),
    ("vae", "after", "log.csv", 1), ("vae", "before", "sample_001.png", 1),
    ("vae", "after", "checkpoint.pt", 2), ("vae", "before", "curves.png", 2),
    ("cvae", "after", "checkpoint.pt", 2),
    ("gan", "after", "evaluation.jsonl", 2), ("gan", "after", "checkpoint.pt", 1),
    ("gan", "after", "checkpoint.pt", 3), ("gan", "before", "fid.png", 3),
])
def test_a_killed_run_ends_as_one_that_was_not(name, when, file, count, whole, tmp_path,
                                               monkeypatch):
    """Every file is the same, the figures of the epoch of the kill too, and none is left over."""
    script, flags = SCRIPTS[name]
    expected = contents(whole(name))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, file, count, when == "after")
        script.main(out=tmp_path / "run", **flags)
    if (tmp_path / "run" / "args.txt").exists():
        _, rows = script.main(resume=tmp_path / "run", quiet=True)
    else:
        _, rows = script.main(out=tmp_path / "run", **flags)
    found = contents(tmp_path / "run")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert rows == read_log(tmp_path / "run")


def test_tensorboard_knows_every_row_once(tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "run"
    flags = SMALL | {"epochs": 3, "tensorboard": True}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, "checkpoint.pt", 2, after=True)   # before the second row is on the board
        vae.main(out=folder, **flags)
    vae.main(resume=folder, quiet=True)
    board = event_accumulator.EventAccumulator(str(folder / "tensorboard"), {"scalars": 0})
    board.Reload()
    assert [event.step for event in board.Scalars("loss/test")] == [1, 2, 3]


def test_of_several_wrong_flags_the_first_is_named(whole, refused):
    line = refused(vae, resume=whole("vae"), seed=9, batch_size=9, latent=9, hidden=9)
    assert "--hidden cannot be changed" in line


def test_a_run_without_a_checkpoint_starts_from_the_beginning(tmp_path, monkeypatch, capsys,
                                                              refused):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, "args.txt", 1, after=True)
        vae.main(out=folder, **SMALL)
    assert "not a run of cvae.py" in refused(cvae, resume=folder)
    assert "--latent cannot be changed" in refused(vae, resume=folder, latent=4)
    before = (folder / "args.txt").read_bytes()
    vae.main(resume=folder)
    assert "starting from the beginning" in capsys.readouterr().out
    assert (folder / "args.txt").read_bytes() == before   # the command is that which began it
    assert len(read_log(folder)) == 2


def test_a_recorded_run_is_neither_free_nor_resumed(whole, tmp_path, refused):
    for file in ("args.txt", "log.csv"):
        (tmp_path / file).write_bytes((whole("vae") / file).read_bytes())
    assert "already holds a run" in refused(vae, out=tmp_path, **SMALL)
    assert f"@{tmp_path / 'args.txt'}" in refused(vae, resume=tmp_path)


def test_without_its_log_a_run_is_still_a_run(tmp_path, refused):
    vae.main(out=tmp_path, **SMALL)
    before = contents(tmp_path)
    (tmp_path / "log.csv").unlink()
    assert "already holds a run" in refused(vae, out=tmp_path, **SMALL)
    (tmp_path / "log.csv").write_text("epoch;loss\nof a spreadsheet")
    (tmp_path / "curves.png.part").write_text("half a figure")
    vae.main(resume=tmp_path, quiet=True)   # complete: writes what the checkpoint implies
    assert contents(tmp_path) == before


def test_a_complete_run_says_so(whole, capsys):
    _, rows = vae.main(resume=whole("vae"))
    printed = capsys.readouterr().out
    assert "training is already complete (2 epochs)" in printed and "generate.py" in printed
    assert rows == read_log(whole("vae"))


def test_the_best_checkpoint_is_that_of_the_log(whole, tmp_path):
    rows = read_log(whole("gan"))
    best = min(rows, key=lambda row: row["fid"])
    assert torch.load(whole("gan") / "best.pt", weights_only=True)["epoch"] == best["iteration"]


def test_the_lines_of_an_evaluation_that_are_whole_are_kept(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lines = ['{"iteration": 1}', '{"iteration": 99}', '{"run": 2}', '{"it']
    (folder / "evaluation.jsonl").write_text("\n".join(lines))
    gan.main(out=folder, **TINY_GAN)
    lines = (folder / "evaluation.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 4, 8, 12]


@pytest.mark.parametrize("write", [
    lambda path: save_grid(path, torch.rand(4, 1, 28, 28), 2),
    lambda path: save_curves(path, [{"epoch": 1, "loss": 2.0}], "epoch",
                             {"loss": [("loss", "loss", "-")]}, "nats"),
    lambda path: run.save_latent(path, {"AE": torch.rand(20, 2)}, LATENT, AE),
    lambda path: run.write_log(path, [{"epoch": 1}]),
], ids=["grid", "curves", "latent", "log"])
def test_a_file_is_the_old_one_or_the_new_one(write, tmp_path, monkeypatch):
    path = tmp_path / "file.png"
    path.write_bytes(b"the old one")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, "file.png", 1, after=False)
        write(path)
    assert path.read_bytes() == b"the old one"
    write(path)
    assert path.read_bytes() != b"the old one"


AE = run.SimpleNamespace(beta=0)
LATENT = Data("own", None, None, None, torch.zeros(20, dtype=torch.long), [])


# -------------------------------------------------------------------------------- disk, signals

@pytest.mark.parametrize("file", ["checkpoint.pt", "log.csv", "sample_002.png"])
def test_a_full_disk_is_one_line(file, tmp_path, monkeypatch, capsys, whole):
    folder = tmp_path / "run"

    def full(partial, path):
        if Path(path).name == file and (folder / "checkpoint_001.pt").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(partial, path)

    replace = os.replace
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(os, "replace", full)
        vae.main(out=folder, **SMALL)
    printed = capsys.readouterr()
    assert stop.value.code == 1
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert f"{folder / file} cannot be written: No space left" in printed.err
    assert not list(folder.glob("*.part"))
    vae.main(resume=folder, quiet=True)
    assert contents(folder) == contents(whole("vae"))


def test_sigterm_is_ctrl_c(tmp_path, monkeypatch, capsys, whole):
    def stopped(*arguments):
        if arguments[4] == 2:
            signal.raise_signal(signal.SIGTERM)
        return train_epoch(*arguments)

    before = signal.getsignal(signal.SIGTERM)
    train_epoch = vae.train_epoch
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(vae, "train_epoch", stopped)
        vae.main(out=tmp_path / "run", **SMALL)
    assert stop.value.code == 143
    assert f"--resume {tmp_path / 'run'}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    vae.main(resume=tmp_path / "run", quiet=True)
    assert contents(tmp_path / "run") == contents(whole("vae"))


# ---------------------------------------------------------------------------------- two at once

def test_a_folder_belongs_to_one_run(tmp_path, monkeypatch, refused):
    """Another process that starts or resumes a run there is refused, and changes nothing."""
    folder = tmp_path / "run"

    def as_another_process(epoch):
        before = raw(folder)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            if epoch == 1:   # there is no checkpoint yet
                lines = [refused(vae, out=folder, **SMALL)]
            else:
                lines = [refused(vae, resume=folder)]
        assert "belongs to a run that is going on" in lines[0]
        assert raw(folder) == before

    def watched(*arguments):
        as_another_process(arguments[4])
        return train_epoch(*arguments)

    train_epoch = vae.train_epoch
    monkeypatch.setattr(vae, "train_epoch", watched)
    vae.main(out=folder, **SMALL)
    assert not (folder / "running").exists()
    assert len(read_log(folder)) == 2


def test_the_claim_of_a_process_ends_with_it(tmp_path, refused):
    folder = tmp_path / "run"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    claim = f"{process.pid} {run.platform.node()}"
    (folder / "running").write_text(claim)
    assert "remove" in refused(vae, out=folder, **SMALL)
    assert (folder / "running").read_text() == claim
    process.communicate(b"\n")
    vae.main(out=folder, **SMALL | {"epochs": 1})
    (folder / "running").write_text("1 another-machine")
    assert "belongs to a run" in refused(vae, resume=folder)


def test_default_folders_differ(tmp_path, monkeypatch):
    """Also those of two runs that start at once: a folder that appears meanwhile is not taken."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert [str(run.new_folder("results/a")) for _ in "123"] == ["results/a", "results/a-2",
                                                                "results/a-3"]


# ----------------------------------------------------------------------------------------- data

def test_only_the_same_data_are_trained_on(npz, tmp_path, refused):
    x = np.random.default_rng(0).integers(0, 256, (28, 8, 8), np.uint8)
    folder = tmp_path / "run"
    flags = SMALL | {"dataset": npz(), "lr_schedule": "constant", "train_size": None}
    vae.main(out=folder, **flags)
    before = raw(folder)
    dimmer = x[:20] // 2
    changes = [{"x_train": x[:21], "y_train": np.arange(21) % 4},
               {"x_test": x[20:], "y_test": np.arange(8) % 4},
               {"x_train": dimmer}, {"x_test": x[20:27] // 2}, {"y_train": np.arange(20)[::-1] % 4},
               {"classes": np.array(list("abcd"))}]
    for change in changes:
        npz(**change)
        line = refused(vae, resume=folder, epochs=3)
        assert "own.npz no longer matches" in line and "--dataset" in line
        assert raw(folder) == before
    moved = npz().rename(tmp_path / "moved.npz")
    assert "own.npz was not found" in refused(vae, resume=folder, epochs=3)
    _, rows = vae.main(resume=folder, epochs=3, dataset=moved)
    assert len(rows) == 3
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["args"]["dataset"] == str(moved)


# ---------------------------------------------------------------------------------------- flags

@pytest.mark.parametrize("flag", ["out", "resume", "data", "dataset"])
def test_values_that_are_empty(flag, refused):
    assert f"--{flag}: is empty" in refused(vae, [f"--{flag}="])
    assert f"--{flag}: is empty" in refused(vae, **{flag: ""})
    assert "line breaks" in refused(vae, **{flag: "a\n--latent=9"})


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    vae.main(out="~/run", **SMALL | {"lr_schedule": "constant"})
    _, rows = vae.main(resume="~/run", epochs=3, quiet=True)
    assert len(rows) == len(read_log(tmp_path / "run")) == 3


def test_an_args_file_as_people_write_it(tmp_path):
    file = tmp_path / "args.txt"
    lines = ["\ufeff--latent=7\r", "   # a comment", '--data="my data"', "'--out=b c'", "  --amp  "]
    file.write_text("\n".join(lines), encoding="utf-8")
    args = vae.flags().parse_args([f"@{file}"])
    assert (args.latent, args.data, args.out, args.amp) == (7, "my data", "b c", True)


def test_what_is_no_args_file(tmp_path, refused):
    (tmp_path / "own.txt").write_text(f"@{tmp_path / 'own.txt'}")
    assert "names itself" in refused(vae, [f"@{tmp_path / 'own.txt'}"])
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in refused(vae, [f"@{tmp_path / 'binary.txt'}"])
    (tmp_path / "long.txt").write_text("--latent=2\n" * 1_000_000)
    assert "too large" in refused(vae, [f"@{tmp_path / 'long.txt'}"])
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", "/dev/zero", tmp_path, "", "x" * 5000):
        assert "is not a file" in refused(vae, [f"@{name}"])


def test_quotes_in_a_name_come_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vae.main(out="run", **SMALL | {"epochs": 1, "data": "'a b'"})
    assert vae.flags().parse_args(["@run/args.txt"]).data == "'a b'"


def test_keywords_take_what_python_has():
    flags = as_flags({"interpolate": (0, 7), "out": Path("a"), "metrics": ["fid"], "quiet": False})
    assert flags == ["--interpolate", "0", "7", "--out=a", "--metrics", "fid"]


def test_models_that_are_too_large(refused, tmp_path):
    out = tmp_path / "run"
    for script in (vae, cvae):
        for flags in ({"hidden": 10**9}, {"hidden": 2**32 - 1, "layers": 2, "latent": 2**32 - 1}):
            line = refused(script, out=out, **SMALL | flags)
            assert "GiB" in line or "too large" in line
        assert "--layers" in refused(script, out=out, **SMALL | {"layers": 100_000})
    assert "GiB" in refused(gan, out=out, **TINY_GAN | {"width": 10**6})
    assert not out.exists()


def test_compiling_without_a_compiler(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    assert "C++ compiler" in refused(vae, out=tmp_path / "run", compile=True, **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_beta_that_is_too_large_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        vae.main(out=tmp_path / "run", **SMALL | {"beta": 1e308})
    assert stop.value.code == 1
    assert "train_objective is not finite" in (line := capsys.readouterr().err) and "--beta" in line


# -------------------------------------------------------------------- the world around a notebook

def test_a_notebook_changes_nothing(whole, tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            vae.main(out=tmp_path / "run", **SMALL)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert contents(tmp_path / "run") == contents(whole("vae"))


class Gone(io.StringIO):
    """A pipe that nobody reads any more."""

    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [None, "closed", "gone"])
def test_a_training_outlives_its_output(stream, whole, tmp_path, monkeypatch):
    for name in ("stdout", "stderr"):
        made = None if stream is None else Gone()
        if stream == "closed":
            made.close()
        monkeypatch.setattr(sys, name, made)
    vae.main(out=tmp_path / "run", **SMALL | {"quiet": False})
    assert contents(tmp_path / "run") == contents(whole("vae"))


def test_a_terminal_that_cannot_show_a_name(monkeypatch):
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="cp1252"))
    tell("果 é \udcff")
    sys.stdout.flush()
    assert output.getvalue().decode("cp1252") == "\\u679c é \\udcff\n"


def test_ctrl_c_before_the_first_step(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "load_data", interrupted)
    with pytest.raises(SystemExit) as stop:
        vae.main(out=tmp_path / "run", **SMALL)
    assert stop.value.code == 130 and "stopped" in capsys.readouterr().out


# ---------------------------------------------------------------------------------- small things

def test_small_things_of_the_schedules():
    args = run.SimpleNamespace(epochs=1, batch_size=8, lr=0.1, lr_schedule="onecycle")
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.1)
    make_scheduler(optimizer, 8, args)
    assert optimizer.param_groups[0]["lr"] == 0.1   # the only step
    args.lr_schedule = "plateau"
    scheduler = make_scheduler(optimizer, 8, args)
    for _ in range(99):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def test_one_test_image_is_no_collapse(tmp_path, capsys):
    vae.main(out=tmp_path / "run", **SMALL | {"test_size": 1, "quiet": False})
    assert "collapsed" not in capsys.readouterr().out


# --------------------------------------------------- checkpoints that are not what they claim to be

def drop(checkpoint, *keys):
    *path, last = keys
    for key in path:
        checkpoint = checkpoint[key]
    del checkpoint[last]


def put(value, *keys):
    def change(checkpoint):
        *path, last = keys
        for key in path:
            checkpoint = checkpoint[key]
        checkpoint[last] = value
    return change


HOSTILE = {
    "no args": lambda c: drop(c, "args"),
    "no flag": lambda c: drop(c, "args", "latent"),
    "args that are none": put([1, 2], "args"),
    "a text for a number": put("3", "args", "latent"),
    "a number that no flag takes": put(-1, "args", "hidden"),
    "a billion units": put(10**9, "args", "hidden"),
    "a billion layers": put(10**9, "args", "layers"),
    "another size of z": put(4, "args", "latent"),
    "a huge image": put([1, 60_000, 60_000], "data", "shape"),
    "no shape": put("28", "data", "shape"),
    "numbers for classes": put([1, 2], "data", "classes"),
    "another script": put("../vae", "script"),
    "a number for a script": put(1, "script"),
    "a text for an epoch": put("2", "epoch"),
    "no model": lambda c: drop(c, "model"),
    "a number for a model": put(1, "model"),
    "a foreign weight": put(torch.zeros(2, 2), "model", "encoder.0.weight"),
    "a weight less": lambda c: drop(c, "model", "encoder.0.weight"),
}
HOSTILE_TO_RESUME = {
    "no optimizer": lambda c: drop(c, "optimizer"),
    "a memory of other shape": put(torch.zeros(3), "optimizer", "state", 0, "exp_avg"),
    "no random state": put({}, "rng"),
    "a random state that is none": put(torch.zeros(3), "rng", "cpu"),
    "a log without its last row": lambda c: c["log"].pop(),
    "a log of texts": put("0.1", "log", 0, "lr"),
}


@pytest.mark.parametrize("kind", HOSTILE | HOSTILE_TO_RESUME)
def test_hostile_checkpoints(kind, whole, tmp_path, refused, capsys):
    checkpoint = torch.load(whole("vae") / "checkpoint.pt", weights_only=True)
    checkpoint["epoch"], checkpoint["log"] = 1, checkpoint["log"][:1]
    (HOSTILE | HOSTILE_TO_RESUME)[kind](checkpoint)
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    line = refused(vae, resume=tmp_path)
    assert str(tmp_path) in line or "GiB" in line
    assert os.listdir(tmp_path) == ["checkpoint.pt"]
    if kind in HOSTILE:
        with pytest.raises(SystemExit) as stop:
            load_models(tmp_path)
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_shapes_are_compared_before_memory_is_asked_for(whole, tmp_path, monkeypatch, capsys):
    def build(*arguments):
        devices.append(torch.empty(0).device.type)
        return vae.VAE(arguments[0], arguments[2])

    devices = []
    monkeypatch.setattr(vae, "build", build)
    load_models(whole("vae"))
    assert devices == ["meta", "cpu"]
    checkpoint = torch.load(whole("vae") / "checkpoint.pt", weights_only=True)
    checkpoint["args"]["hidden"] = 9
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with pytest.raises(SystemExit):
        load_models(tmp_path)
    assert devices == ["meta", "cpu", "meta"]
    assert "do not fit" in capsys.readouterr().err


def test_no_flipped_bit_passes(whole, tmp_path, capsys):
    """Of the data of a file: the sums that a zip keeps are compared."""
    original = (whole("vae") / "checkpoint.pt").read_bytes()
    assert load_models(whole("vae"))
    places = np.random.default_rng(0).integers(1000, len(original) - 5000, 40)
    passed = 0
    for place in places.tolist():
        damaged = bytearray(original)
        damaged[place] ^= 1
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        try:
            loaded = run.load_checkpoint(tmp_path)
        except SystemExit:
            assert "checkpoint.pt is" in capsys.readouterr().err
            continue
        passed += 1   # padding between members, or a date: the content is what it was
        whole_one = run.load_checkpoint(whole("vae"))
        assert loaded["log"] == whole_one["log"]
        for name, weight in whole_one["model"].items():
            assert torch.equal(loaded["model"][name], weight)
    assert passed < 10


@pytest.mark.parametrize("optimizer", [torch.optim.Adafactor, torch.optim.LBFGS])
def test_another_optimiser_may_remember_what_it_likes(optimizer):
    """Adafactor keeps means of rows and columns, LBFGS plain numbers; Adam has one for a weight."""
    weight = torch.nn.Parameter(torch.ones(3, 2))

    def loss():
        weight.grad = torch.ones(3, 2)
        return weight.sum()

    own = optimizer([weight])
    own.step(loss)
    run.check_optimizer(own)
    adam = torch.optim.Adam([weight])
    adam.step(loss)
    run.check_optimizer(adam)
    adam.state[weight]["exp_avg"] = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="exp_avg"):
        run.check_optimizer(adam)


def test_false_does_not_undo_a_flag_unheard(tmp_path, refused):
    (tmp_path / "args.txt").write_text("--amp\n")
    line = refused(vae, [f"@{tmp_path}/args.txt"], amp=False, dataset="digits")
    assert "amp=False does not undo --amp" in line
    assert not run.parse(vae.flags(), [], {"amp": False}).amp


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_the_end_of_the_memory_is_said_in_a_line(error, monkeypatch, tmp_path, capsys):
    def train_epoch(*_):
        raise error

    monkeypatch.setattr(vae, "train_epoch", train_epoch)
    with pytest.raises(SystemExit) as stop:
        vae.main(out=tmp_path / "run", **SMALL)
    line = capsys.readouterr().err
    assert stop.value.code == 1 and line.count("\n") == 1
    assert "out of memory; use a smaller model, --batch-size" in line


def test_another_error_keeps_its_traceback(monkeypatch, tmp_path):
    def train_epoch(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(vae, "train_epoch", train_epoch)
    with pytest.raises(RuntimeError, match="shapes"):
        vae.main(out=tmp_path / "run", **SMALL)


@pytest.mark.parametrize("script, collapsed", [(vae, ["the posterior"]),
                                               (cvae, ["the posterior", "the twin's posterior"])])
def test_a_collapse_is_said_at_the_end_of_a_run(script, collapsed, tmp_path, capsys):
    script.main(out=tmp_path / "run", **SMALL | {"beta": 1000, "quiet": False})
    said = capsys.readouterr().out
    for name in collapsed:
        assert f"warning: {name} has collapsed" in said


def test_a_run_that_did_not_note_its_test_images_can_be_resumed(tmp_path):
    """Before they had a hash of their own."""
    folder = tmp_path / "run"
    vae.main(out=folder, **SMALL | {"lr_schedule": "constant"})
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    del checkpoint["data"]["test content"]
    torch.save(checkpoint, folder / "checkpoint.pt")
    _, rows = vae.main(resume=folder, epochs=SMALL["epochs"] + 1)
    assert len(rows) == SMALL["epochs"] + 1


@pytest.mark.parametrize("script, flags", [(vae, ["--hidden", "--layers", "--latent"]),
                                           (gan, ["--width", "--latent"])])
def test_a_model_that_is_too_large_names_the_flags(script, flags, refused, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "memory_of", lambda device: 1000)
    line = refused(script, dataset="digits", device="cpu", out=tmp_path / "run", quiet=True)
    assert "GiB" in line and all(flag in line for flag in flags)
    assert not (tmp_path / "run").exists()
