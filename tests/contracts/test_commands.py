"""The commands a reader types: what the scripts import and read, their help, the demo. For what the
pages say see test_pages.py."""
import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import ROOT

import cvae
import demo
import evaluate
import flow
import gan
import generate
import vae
from readers import load_data
from run import set_defaults

TRAINING = {"vae": vae, "cvae": cvae, "gan": gan, "flow": flow}
SCRIPTS = TRAINING | {"generate": generate, "evaluate": evaluate, "demo": demo}
EVERYWHERE = {"ctrl_c", "processes"}   # what all may import
MODULES = sorted({path.stem for path in ROOT.glob("*.py")} - EVERYWHERE)

# What a module may import of ours. Training scripts do not import one another.
MAY_IMPORT = {
    "common": [],
    "readers": ["common"],
    "run": ["common", "readers"],
    "networks": ["common"],
    "metrics": ["common", "readers"],
    "vae": ["common", "run", "networks"],
    "cvae": ["common", "run", "networks"],
    "gan": ["common", "readers", "run", "metrics"],
    "flow": ["common", "run"],
    "generate": ["common", "readers", "run", "tools"],
    "evaluate": ["common", "readers", "run", "metrics"],
    "demo": ["common", "readers", "run", "cvae"],
    "mnist_vae": [],
}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    imported = set()
    for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported & {*MODULES, "tools"} <= set(MAY_IMPORT[module])


@pytest.mark.parametrize("module", MODULES)
def test_nothing_happens_at_import(module):
    """But definitions, constants and, in a script, main(sys.argv[1:])."""
    harmless = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign)
    for node in ast.parse((ROOT / f"{module}.py").read_text()).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_main = isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
        assert isinstance(node, harmless) or is_docstring or is_main, ast.unparse(node)


def test_help_imports_nothing_heavy():
    code = """
import sys
import vae, cvae, gan, flow, evaluate, generate
for script in (vae, cvae, gan, flow, evaluate, generate):
    try:
        script.main(["--help"])
    except SystemExit:
        pass
heavy = {"matplotlib", "sklearn", "torchvision", "torchmetrics", "tensorboard"}
print("heavy:", *heavy & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("usage: python") == 6
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_siblings_differ_where_the_label_matters():
    done = subprocess.run(["diff", "vae.py", "cvae.py"], cwd=ROOT, capture_output=True, text=True)
    changed = [line for line in done.stdout.splitlines() if line.startswith(("<", ">"))]
    assert 20 < len(changed) <= 110


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_is_read(name):
    """As args.name in the script or in what it imports, or by its name in a table of the script."""
    source = inspect.getsource(SCRIPTS[name])
    shared = ""
    for module in ("common", "readers", "run", "networks", "metrics"):
        shared += (ROOT / f"{module}.py").read_text()
    for action in SCRIPTS[name].flags()._actions:
        read = re.search(rf'args(\.|, "){action.dest}\b', source + shared)
        assert read or f'"{action.dest}"' in source or action.dest == "help", action.dest


SIZES = [("vae", "latent"), ("vae", "hidden"), ("vae", "layers"), ("cvae", "latent"),
         ("cvae", "hidden"), ("cvae", "layers"), ("gan", "width"), ("gan", "latent"),
         ("flow", "hidden"), ("flow", "blocks"), ("flow", "couplings")]


@pytest.mark.parametrize("name, flag", SIZES)
def test_every_size_is_that_of_the_model(name, flag):
    sizes = []
    for number in (4, 8):
        args = SCRIPTS[name].flags().parse_args([f"--{flag}={number}"])
        if name in ("vae", "cvae"):
            set_defaults(args, load_data("digits"))
        with torch.device("meta"):
            model = SCRIPTS[name].build((1, 28, 28), 10, args)
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_command_of_a_docstring_parses(name):
    """Those of the pages are parsed in test_pages.py."""
    commands = re.findall(r"^ *python (\w+)\.py([^#\n]*)", SCRIPTS[name].__doc__, re.M)
    assert commands
    for script, flags in commands:
        SCRIPTS[script].flags().parse_args(shlex.split(flags))


# ----------------------------------------------------------------------------------------- demo

def test_the_demo_goes_on_with_digits_where_there_is_no_mnist(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])   # nobody
    monkeypatch.setattr(demo, "DIGITS_EPOCHS", 10)
    demo.main(data=tmp_path, out=tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert "MNIST" in lines[0] and str(tmp_path) in lines[0] and "digits" in lines[0]
    assert "--dataset=digits" in (tmp_path / "run" / "args.txt").read_text()
    table = {}
    for line in lines:
        if line.startswith(("CVAE ", "VAE ")):
            name, loss = line.split()[:2]
            table[name] = float(loss)
    assert 100 < table["CVAE"] < table["VAE"] < 300   # a label helps when z has two dimensions
    files = [Path(line.strip()) for line in lines if line.endswith(".png")]
    assert len(files) == 5
    for file in files:
        assert file.exists()


def test_the_demo_hands_its_flags_on(tmp_path, monkeypatch):
    class Enough(Exception):
        """What follows is tested above."""

    def train(**flags):
        seen.update(flags)
        raise Enough

    seen = {}
    monkeypatch.setattr(demo.cvae, "main", train)
    monkeypatch.setitem(demo.READERS, "MNIST", lambda *_: None)   # it is there
    with pytest.raises(Enough):
        demo.main(seed=5, device="cpu", data="mine", out=tmp_path)
    assert seen == {"dataset": "MNIST", "data": "mine", "epochs": 10, "save_every": 10,
                    "latent": 2, "hidden": 500,
                    "seed": 5, "device": "cpu", "out": str(tmp_path), "train_size": 6000,
                    "test_size": 1000}


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="needs bash")
@pytest.mark.parametrize("script", ["demo.sh", "test.sh"])
def test_shell_scripts_find_what_they_start(script, tmp_path):
    """With a Python that only notes how it was called."""
    for name in (script, "tools/setup.sh", "requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    fake = tmp_path / "python"
    fake.write_text(f"""#!/bin/bash
        echo "$@" >> {tmp_path}/calls
        [ "$2" = venv ] && mkdir -p .venv/bin && cp {fake} .venv/bin/python
        exit 0""")
    fake.chmod(0o755)
    done = subprocess.run(["bash", tmp_path / script, "--flag"], cwd="/", capture_output=True,
                          text=True, env=os.environ | {"PYTHON": str(fake)})
    last = (tmp_path / "calls").read_text().splitlines()[-1]
    assert last == {"demo.sh": "demo.py --flag", "test.sh": "-m pytest --flag"}[script], done.stderr


# ------------------------------------------------------------------------------------- real data

def test_first_epoch_on_real_mnist(real, tmp_path):
    _, log = vae.main(data=real("MNIST"), epochs=1, out=tmp_path / "run", quiet=True)
    assert 110 < log[-1]["test_loss"] < 130
