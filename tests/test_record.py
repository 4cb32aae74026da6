"""The record is what the logs say, and the benchmark compares loops that learn the same."""
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import benchmark
from common import load_data

ROOT = Path(__file__).parent.parent


def test_record_reproduces_the_committed_pages(tmp_path):
    shutil.copytree(ROOT / "results", tmp_path / "results",
                    ignore=shutil.ignore_patterns("*.png", "cache", "*.npz"))
    pages = [Path("results/README.md"), Path("results/models/README.md")]
    for page in pages:
        (tmp_path / page).unlink()
    subprocess.run([sys.executable, "results/record.py"], cwd=tmp_path, check=True)
    for page in pages:
        assert (tmp_path / page).read_text() == (ROOT / page).read_text()


def test_readme_shows_the_recorded_speed():
    for file in (ROOT / "results" / "runs" / "benchmark-cpu").glob("*.txt"):
        _, _, table = file.read_text().strip().partition("\n")
        assert table in (ROOT / "README.md").read_text(), file


def test_table_has_one_number_a_row():
    lines = (ROOT / "results" / "README.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    start = next(i for i, row in enumerate(rows) if row[0] == "experiment")
    assert rows[start] == ["experiment", "command", "n", "result", "sd", "epoch_s", "device",
                           "reference", "source"]
    for line in lines:
        if line.startswith("| ") and " | `python " in line:
            cells = [cell.strip() for cell in line.strip()[1:-1].split("|")]
            assert len(cells) == 9, line
            assert cells[2] == "0" or float(cells[3]) == float(cells[3]), line


@pytest.fixture(scope="module")
def mnist_of_digits(tmp_path_factory):
    """The built-in digits in MNIST's files: torchvision asks for no more."""
    folder, data = tmp_path_factory.mktemp("data"), load_data("digits")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, x, y in (("train", data.x_train, data.y_train), ("t10k", data.x_test, data.y_test)):
        size = len(x).to_bytes(4, "big")
        side = (28).to_bytes(4, "big")
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            bytes([0, 0, 8, 3]) + size + side + side + x.numpy().tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + size + y.byte().numpy().tobytes())
    return folder


def test_one_round_of_the_benchmark(mnist_of_digits, capsys, monkeypatch):
    """On 1,000 images: the loops reach the same loss within noise, and all of them are timed."""
    loops = ("usual", "ours", "ours --amp", "matrix products")
    monkeypatch.setitem(benchmark.LOOPS, "vae", loops)
    table = benchmark.main(rounds=1, train_size=1000, data=mnist_of_digits, device="cpu")
    title, _, _, *rows = capsys.readouterr().out.splitlines()
    assert "1000 images, median of 1" in title
    assert tuple(row.split(" | ")[0].strip("| ") for row in rows) == loops
    for found in table.values():
        assert found["train"] > 0 and found["MB"] > 0
    for loop in ("ours", "ours --amp"):
        assert table[loop]["test_loss"] == pytest.approx(table["usual"]["test_loss"], rel=0.03)
    assert table["matrix products"]["train"] < table["ours"]["train"]


def test_columns_of_the_speed_table(capsys):
    row = {"train": 2.0, "test": 1.0, "MB": 100, "test_loss": 99.0}
    table = {"usual": row, "ours": row | {"train": 0.5, "test": 0.25},
             "matrix products": row | {"train": 0.25},
             "ours to 105.6": {"seconds": 3, "epochs": 2, "test_loss": 106.0}}
    benchmark.show(table, SimpleNamespace(model="vae", device="cpu", train_size=1000, rounds=1))
    printed = capsys.readouterr().out
    assert "| ours | 0.50 | 0.25 | 2,000 | 0.25 | 2.00 | 100 | 99.0 |" in printed
    assert "ours to 105.6: 3.0 s, 2 epochs, test loss 106.00, not reached" in printed
    for loop in ("ours", "ours --amp"):
        assert benchmark.run_flags(SimpleNamespace(model="vae", loop=loop)).amp == ("amp" in loop)


def test_rounds_take_turns_and_their_medians_count(mnist_of_digits, monkeypatch, capsys):
    asked, loops = [], benchmark.LOOPS["gan"]

    def run(command, **_):
        asked.append(command[2].removeprefix("--loop="))
        seconds = (1, 9, 2)[(len(asked) - 1) // len(loops)]
        found = {"train": seconds, "test": 0, "MB": 1, "train_loss": 0, "test_loss": 0}
        return SimpleNamespace(returncode=0, stdout=json.dumps(found), stderr="")
    monkeypatch.setattr(benchmark.subprocess, "run", run)
    flags = {"model": "gan", "train_size": 128, "data": mnist_of_digits, "device": "cpu"}
    table = benchmark.main(rounds=3, **flags)
    assert asked == 3 * [*loops] and all(found["train"] == 2 for found in table.values())
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *_, **__: SimpleNamespace(
        returncode=1, stderr="out of memory"))
    with pytest.raises(SystemExit) as stop:
        benchmark.main(rounds=1, **flags)
    assert stop.value.code == 1 and "usual: out of memory" in capsys.readouterr().err


def test_the_clock_stops_at_the_target(monkeypatch):
    losses = iter([110.0, 105.7, 105.5, 105.0])
    monkeypatch.setattr(benchmark, "our_vae",
                        lambda args, **_: (lambda: None, lambda: next(losses)))
    found = benchmark.time_to_target(SimpleNamespace(loop="ours --amp to 105.6"))
    assert (found["epochs"], found["test_loss"]) == (3, 105.5)


def test_matrix_products_are_the_five_large_ones(mnist_of_digits):
    """Two of a step's products go forwards, three backwards: the input needs no gradient. And the
    floor has as many of them as the training it is the floor of."""
    for kind in (benchmark.our_vae, benchmark.matrix_products):
        args = benchmark.flags().parse_args(["--loop=matrix products", f"--data={mnist_of_digits}"])
        args.train_size, args.device = 9 * 128, "cpu"
        run, _ = kind(args)
        run()
        with benchmark.Record() as record:
            record.calls = []
            run()
        assert len(record.calls) == 5 * 9


def test_loops_have_the_same_images(mnist_of_digits):
    args = benchmark.flags().parse_args([f"--data={mnist_of_digits}", "--train-size=200"])
    args.device = "cpu"
    usual, _ = benchmark.usual_loaders(args, 128)
    images = torch.stack([x for x, _ in usual.dataset])
    assert torch.equal(images, benchmark.our_data(args).x_train / 255)


def test_benchmark_says_what_is_wrong_before_it_starts(mnist_of_digits, capsys):
    for flag, value in (("device", "nonsense"), ("train_size", 2000)):
        with pytest.raises(SystemExit) as stop:
            benchmark.main(data=mnist_of_digits, **{flag: value})
        assert stop.value.code == 2
        assert f"--{flag.replace('_', '-')} {value}" in capsys.readouterr().err


def test_gan_loops_run(mnist_of_digits):
    for loop in ("usual", "ours --amp"):
        found = benchmark.main(model="gan", loop=loop, train_size=128, data=mnist_of_digits,
                               device="cpu")
        assert found["train"] > 0


def test_a_loop_that_is_none(capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(loop="fast")
    assert stop.value.code == 2 and "--loop must be one of usual" in capsys.readouterr().err
