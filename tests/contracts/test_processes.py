"""torchrun: several processes train what one process trains. Where batch normalisation sees the
rows of its own process only, the losses differ a little, but the weights are the same in all."""
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY

import processes
import run
import vae
from run import read_log

ALL_SCRIPTS = """
import json, sys
import cvae, flow, gan, processes, vae

SMALL = {"dataset": "digits", "train_size": 301, "test_size": 50, "batch_size": 64, "quiet": True,
         "device": "cpu"}
FLAGS = {
    "vae": {"epochs": 2, "hidden": 32, "latent": 2},
    "cvae": {"epochs": 1, "hidden": 32, "latent": 2},
    "flow": {"epochs": 1, "hidden": 4, "couplings": 2, "train_size": 64, "batch_size": 32},
    "gan": {"iterations": 4, "critic_steps": 2, "width": 4, "eval_every": 0, "loss": "wgan-gp"},
}
weights = {}
for script in (vae, cvae, flow, gan):
    name = script.__name__
    model, _ = script.main(out=f"{sys.argv[1]}/{name}", **SMALL | FLAGS[name])
    weights[name] = sum(p.detach().double().sum().item() for p in model.parameters())
everybodys = processes.collect(weights)
if processes.rank() == 0:
    print(json.dumps(everybodys))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{number of processes: (folder with a run of each script, weights of each process)}."""
    folder = tmp_path_factory.mktemp("runs")
    script = folder / "all_scripts.py"
    script.write_text(ALL_SCRIPTS)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = {}
    for n in (1, 2):
        command = [sys.executable, script, folder / str(n)]
        if n > 1:
            command[1:1] = ["-m", "torch.distributed.run", "--nproc-per-node", str(n)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[n] = folder / str(n), json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name, tolerance", [
    ("vae", 1e-4), ("cvae", 1e-4),       # no batch normalisation; the last batch has 45 rows
    ("flow", 0.02), ("gan", 0.05),
])
def test_two_processes_give_the_log_of_one(runs, name, tolerance):
    alone, together = read_log(runs[1][0] / name), read_log(runs[2][0] / name)
    assert len(alone) == len(together)
    for expected, row in zip(alone, together, strict=True):
        for column, value in expected.items():
            if column != "seconds" and value is not None:
                assert row[column] == pytest.approx(value, rel=tolerance, abs=tolerance), column


@pytest.mark.parametrize("name", ["vae", "cvae", "flow", "gan"])
def test_all_processes_hold_the_same_weights(runs, name):
    first, second = (weights[name] for weights in runs[2][1])
    assert first == second


@pytest.fixture
def pretended(monkeypatch):
    """A function that lets this be process `rank` of `count`, of which there are no others."""
    def pretend(rank, count):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(count))
    return pretend


def test_rows_are_shared_out_and_none_is_lost(pretended):
    x = torch.arange(7)
    assert torch.equal(x[processes.own_rows()], x)
    shares = []
    for rank in range(3):
        pretended(rank, 3)
        shares.append(x[processes.own_rows()])
    assert sorted(map(len, shares)) == [2, 2, 3]
    assert torch.equal(torch.cat(shares).sort().values, x)


def test_gradients_are_averaged_over_rows_not_over_processes(pretended, monkeypatch):
    """Three rows here with gradient 1, one row elsewhere with gradient 5: the mean is 2."""
    model = torch.nn.Linear(2, 1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    elsewhere = torch.tensor([5.0, 5.0, 5.0, 1.0])   # two weights, a bias and the row itself
    monkeypatch.setattr(processes, "total", lambda x: x + elsewhere)
    pretended(0, 2)
    processes.average_gradients(model, 3)
    assert all((p.grad == 2).all() for p in model.parameters())


def test_only_the_first_process_writes(pretended, tmp_path):
    pretended(1, 2)
    run.write_whole(tmp_path / "file", b"content")
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("flags, words", [
    ({"batch_size": 2}, "--batch-size 2"),
    ({"dropout": 0.1}, "--dropout"),
])
def test_what_several_processes_cannot_do(pretended, refused, tmp_path, flags, words):
    pretended(0, 3)
    assert words in refused(vae, out=tmp_path / "run", **TINY | flags)


def test_processes_with_other_data_are_refused(pretended, monkeypatch, tmp_path, refused):
    monkeypatch.setattr(processes, "start", lambda device: None)
    monkeypatch.setattr(processes, "collect", lambda value: [value, "other"])
    pretended(0, 2)
    assert "process 1" in refused(vae, out=tmp_path / "run", **TINY)


def test_a_restarted_command_goes_on_with_its_run(monkeypatch, tmp_path):
    """torchrun --max-restarts gives the same command again."""
    flags = TINY | {"out": tmp_path / "run", "epochs": 3, "lr_schedule": "constant"}
    vae.main(**flags | {"epochs": 1})
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    _, rows = vae.main(**flags)
    assert len(rows) == 1   # complete, as that run was asked for one epoch


def test_a_lost_process_ends_the_others_with_a_line(monkeypatch, tmp_path, capsys):
    def lost(*_):
        raise processes.Ended

    monkeypatch.setattr(vae, "average_gradients", lost)
    with pytest.raises(SystemExit) as stop:
        vae.main(out=tmp_path / "run", **TINY)
    assert stop.value.code == 1 and "--resume" in capsys.readouterr().err
