"""torchrun: several processes train what one process trains, on one machine or on several. All of
them hold the same weights, and if one is lost, all of them stop."""
import copy
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, drop_plots
from torch import nn

import cvae
import flow
import gan
import processes
import run
import vae
from flow import ConditionalNorm
from readers import load_data
from run import read_log

SMALL = {"train_size": 301, "test_size": 50, "batch_size": 64, "quiet": True, "device": "cpu"}
RUNS = {    # of 301 images, and of 71, the last batch is not shared out evenly
    "vae": (vae, {"epochs": 2, "hidden": 32, "latent": 2}),
    "conv": (vae, {"epochs": 1, "arch": "conv", "hidden": 8, "latent": 2}),
    "cvae": (cvae, {"epochs": 1, "hidden": 32, "latent": 2}),
    "flow": (flow, {"epochs": 1, "hidden": 4, "couplings": 2, "train_size": 71, "batch_size": 32,
                    "conditional": True}),
    "gan": (gan, {"iterations": 4, "critic_steps": 2, "width": 4, "eval_every": 0,
                  "loss": "wgan-gp"}),
}


def train_all(folder, dataset):
    """Train all RUNS below a folder. Returns {name: a number that tells weights apart}."""
    weights = {}
    with pytest.MonkeyPatch.context() as patch:
        drop_plots(patch)
        for name, (script, flags) in RUNS.items():
            model, _ = script.main(dataset=dataset, out=folder / name, **SMALL | flags)
            weights[name] = sum(p.detach().double().sum().item() for p in model.parameters())
    return weights


ON_ALL = """
import json, os, signal, sys
from pathlib import Path
import processes, vae
from test_processes import train_all

first = not Path(sys.argv[1], "vae").exists()   # or all were started again

def evaluate(model, data, epoch, args, evaluate=vae.evaluate):
    if args.arch == "mlp" and epoch == 2 and processes.rank() == 1 and first:
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate(model, data, epoch, args)

vae.evaluate = evaluate
everybodys = processes.collect(train_all(Path(sys.argv[1]), sys.argv[2]))
if processes.rank() == 0:
    print(json.dumps(everybodys))
"""


def torchrun(*flags):
    """The beginning of a command."""
    return [sys.executable, "-m", "torch.distributed.run", *flags]


def environment():
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "contracts")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1",
                         "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}   # as docs/scaling.md explains


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The built-in digits in a file: no process needs to import scikit-learn."""
    data = load_data("digits")
    file = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(file, x_train=data.x_train[:, 0], y_train=data.y_train,
             x_test=data.x_test[:, 0], y_test=data.y_test)
    return file


@pytest.fixture(scope="module")
def alone(tmp_path_factory, digits):
    """The folder of RUNS of one process."""
    folder = tmp_path_factory.mktemp("alone")
    train_all(folder, digits)
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory, digits):
    """The folder of RUNS of two processes, the weights of each, and the lines that they print.

    As on two machines: each process has a torchrun of its own, and they meet at a port. One is
    killed after the first checkpoint, so both are started again.
    """
    folder = tmp_path_factory.mktemp("together")
    script = folder / "on_all.py"
    script.write_text(ON_ALL)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    machines = []
    for _ in range(2):
        command = torchrun("--nnodes=2", "--nproc-per-node=1", "--max-restarts=1",
                           "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}",
                           script, folder, digits)
        machines.append(subprocess.Popen(command, cwd=folder, env=environment(), text=True,
                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    try:
        said = [machine.communicate(timeout=300) for machine in machines]
    finally:
        for machine in machines:   # those that have ended are not there any more
            machine.terminate()
    assert [machine.returncode for machine in machines] == [0, 0], said
    lines = []
    for out, errors in said:
        lines += [*out.splitlines(), *errors.splitlines()]
    weights = next(line for line in lines if line.startswith("[{"))
    return folder, json.loads(weights), lines


@pytest.mark.parametrize("name, tolerance", [
    ("vae", 1e-4), ("cvae", 1e-4), ("flow", 1e-4), ("gan", 1e-4),
    # A bias before batch normalisation has a gradient of rounding errors only, which Adam makes
    # large; the running mean in evaluation lags behind it.
    ("conv", 1e-3),
])
def test_two_processes_on_two_machines_give_the_log_of_one(alone, together, name, tolerance):
    expected, found = read_log(alone / name), read_log(together[0] / name)
    assert len(expected) == len(found)
    for one, row in zip(expected, found, strict=True):
        for column, value in one.items():
            if column != "seconds" and value is not None:
                assert row[column] == pytest.approx(value, rel=tolerance, abs=tolerance), column


@pytest.mark.parametrize("name", RUNS)
def test_all_processes_hold_the_same_weights(together, name):
    first, second = (weights[name] for weights in together[1])
    assert first == second


def test_of_the_processes_that_a_lost_one_ends_one_says_so(together):
    said = [line for line in together[2] if "--resume" in line]
    assert len(said) == 1 and ("stopped" in said[0] or "has ended" in said[0])
    assert (together[0] / "vae" / "checkpoint_002.pt").exists()   # they went on


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


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False),
                                  ConditionalNorm(3, 4)])
def test_shared_norms_are_batch_normalisation_of_all_rows(pretended, monkeypatch, norm):
    """Each of two processes has the same seven images: so the results are those of seven."""
    x = 3 + 2 * torch.randn(7, 3, 5, 5)
    more = [torch.arange(7) % 4] if isinstance(norm, ConditionalNorm) else []
    if more:
        norm.label.weight.data.normal_()
    shared = nn.Sequential(copy.deepcopy(norm))
    pretended(0, 2)
    monkeypatch.setattr(processes, "total", lambda x: 2 * x)
    processes.share_norms(shared)
    results = []
    for layer in (norm, shared[0]):
        inputs = x.clone().requires_grad_()
        output = layer(inputs, *more)
        (output ** 3).mean().backward()
        results.append((output, inputs.grad))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-5)
    # Two losses, each the mean of its own process: those of the other do not show in this one.
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-6)
    assert norm.running_mean.tolist() == pytest.approx(shared[0].running_mean.tolist(), rel=1e-4)
    assert norm.running_var.tolist() == pytest.approx(shared[0].running_var.tolist(), rel=1e-2)
    assert shared.state_dict().keys() == nn.Sequential(norm).state_dict().keys()
    for layer in (norm, shared[0]):
        layer.eval()
    torch.testing.assert_close(shared[0](x, *more), norm(x, *more), rtol=1e-2, atol=1e-2)


def test_a_missing_backend_is_refused(pretended, monkeypatch, tmp_path, refused):
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    pretended(0, 2)
    assert "without gloo" in refused(vae, out=tmp_path / "run", **TINY)


def test_one_process_starts_nothing_even_under_torchrun(monkeypatch):
    def started(*_, **__):
        raise AssertionError

    monkeypatch.setattr(torch.distributed, "init_process_group", started)
    processes.start(torch.device("cpu"))
    assert processes.collect("value") == ["value"] and processes.has_last_word()
    norms = nn.Sequential(nn.BatchNorm2d(3))
    processes.share_norms(norms)
    assert type(norms[0]) is nn.BatchNorm2d


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


def test_a_restarted_command_goes_on_with_its_run_only(monkeypatch, tmp_path, refused, no_plots):
    """torchrun --max-restarts gives the same command again."""
    flags = TINY | {"out": tmp_path / "run"}
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    _, first = vae.main(**flags)   # lost before the first checkpoint
    _, again = vae.main(**flags)
    assert again == first          # complete
    assert "already holds a run" in refused(vae, **flags | {"latent": 3})


def test_restarts_need_a_folder_that_can_be_found_again(monkeypatch, refused):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    assert "--out" in refused(vae, **TINY)


def test_restarts_on_several_machines_need_a_store_of_their_own(monkeypatch, refused, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert "TORCH_DISABLE_SHARE" in refused(vae, out=tmp_path / "run", **TINY)


def test_a_lost_process_ends_the_others_with_a_line(monkeypatch, tmp_path, capsys):
    def lost(*_):
        raise processes.Ended

    monkeypatch.setattr(vae, "average_gradients", lost)
    with pytest.raises(SystemExit) as stop:
        vae.main(out=tmp_path / "run", **TINY)
    assert stop.value.code == 1 and "--resume" in capsys.readouterr().err
