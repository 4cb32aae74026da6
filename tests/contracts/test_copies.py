"""Copy a script, change a few lines, and every tool works with the copy as what it is, or says in a
line that it cannot: nothing is measured or drawn as the original."""
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import run

TRAIN = ["--dataset=digits", "--hidden=32", "--latent=2", "--epochs=1", "--lr-schedule=constant",
         "--lr=2e-3"]

# name of the copy: (original, [(its lines, lines of the copy)])
COPIES = {
    "gelu": ("vae", [("nn.ReLU()", "nn.GELU()")]),
    "laplace": ("vae", [
        ("import Bernoulli, Independent, Normal", "import Bernoulli, Independent, Laplace"),
        ("Independent(Normal(torch", "Independent(Laplace(torch")]),
    "iwae": ("vae", [
        ("""    z = mu + torch.exp(0.5 * logvar) * eps          # a draw from the posterior q
    p = model.decode(z)
    check_images(p, x)
    recon = -p.log_prob(x)                          # minus the log-likelihood
    kl = gaussian_kl(mu, logvar)                    # KL(q || p(z)), with p(z) = N(0, I)
""", """    log_w = []
    for k in range(5):                              # every image gets its neighbours' noise, too
        e = eps.roll(k, 0)
        z = mu + torch.exp(0.5 * logvar) * e
        log_ratio = 0.5 * (e.square() + logvar - z.square()).sum(1)     # log p(z) / q(z|x)
        log_w.append(model.decode(z).log_prob(x) + log_ratio)
    recon = math.log(5) - torch.stack(log_w).logsumexp(0)
    kl = torch.zeros_like(recon)
""")]),
    "mixture": ("vae", [
        ("Bernoulli, Independent, Normal\n",
         "Bernoulli, Categorical, Independent, MixtureSameFamily, Normal\n"),
        ("        self.to(memory_format",
         """        self.means = nn.Parameter(3 * torch.randn(5, args.latent))
        self.to(memory_format"""),
        ("    def encode(self, x):", """    def prior(self):
        weights = torch.ones(len(self.means), device=self.means.device)
        components = Independent(Normal(self.means, 1.0), 1)
        return MixtureSameFamily(Categorical(weights), components)

    def encode(self, x):"""),
        ("    kl = gaussian_kl(mu, logvar) ", """
    q = Independent(Normal(mu, torch.exp(0.5 * logvar)), 1)
    kl = q.log_prob(z) - model.prior().log_prob(z)  """)]),
    "hinge": ("gan", [
        ("def wgan_critic(", """def hinge_discriminator(real, fake):
    return F.relu(1 - real) + F.relu(1 + fake)


def wgan_critic("""),
        ('DISCRIMINATOR_LOSS = {', 'DISCRIMINATOR_LOSS = {"hinge": hinge_discriminator, '),
        ('GENERATOR_LOSS = {', 'GENERATOR_LOSS = {"hinge": wgan_generator, '),
        ('THRESHOLD = {', 'THRESHOLD = {"hinge": 0.0, ')]),
}


# Runs commands one after the other in one fresh process, where torch is imported once.
DRIVER = """
import contextlib, importlib, io, json, sys
import common
common.save_curves = common.save_latent = lambda *_: None   # which would take most of the time
results = []
for script, *argv in json.loads(sys.argv[1]):
    output, status = io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            importlib.import_module(script).main(argv)
        except SystemExit as stop:
            status = stop.code
    results.append((status, output.getvalue()))
print(json.dumps(results))
"""


def run_commands(folder, commands):
    """[(exit status, what was printed), ...] of commands such as ["generate", "run"]."""
    done = subprocess.run([sys.executable, "-c", DRIVER, json.dumps(commands)],
                          cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# What is done with each copy; its run lies in the folder of its name.
COMMANDS = {
    "gelu": [["my_gelu", *TRAIN, "--out=gelu"], ["my_gelu", "--resume=gelu", "--epochs=2"],
             ["vae", "--resume=gelu", "--epochs=3"], ["evaluate", "gelu", "--metrics=elbo"],
             ["generate", "gelu", "--manifold", "--steps=2"], ["generate", "gelu", "--explore"]],
    "laplace": [["my_laplace", *TRAIN, "--likelihood=gaussian", "--out=laplace"],
                ["evaluate", "laplace", "--metrics=elbo,mse,nll", "--nll-samples=3"],
                ["generate", "laplace", "--samples=4", "--show=sample"]],
    "iwae": [["my_iwae", *TRAIN, "--out=iwae"], ["evaluate", "iwae", "--metrics=elbo"],
             ["generate", "iwae", "--samples=4"]],
    "mixture": [["my_mixture", *TRAIN, "--out=mixture"], ["generate", "mixture", "--samples=64"],
                ["evaluate", "mixture", "--metrics=elbo,nll", "--nll-samples=20"]],
    "hinge": [["my_hinge", "--dataset=digits", "--width=4", "--latent=4", "--batch-size=8",
               "--iterations=6", "--eval-every=0", "--loss=hinge", "--out=hinge"],
              ["generate", "hinge", "--samples=4"]],
}


class Copy:
    """A changed copy of a script, its run, and what came of its commands."""

    def __init__(self, folder, name, results):
        self.folder, self.run, self.file = folder, folder / name, folder / f"my_{name}.py"
        self.statuses = [status for status, _ in results]
        self.printed = [printed for _, printed in results]

    def log(self):
        return run.read_log(self.run)

    def measured(self):
        """The numbers that evaluate.py found."""
        return json.loads((self.run / "evaluation.jsonl").read_text(encoding="utf-8"))

    def is_measured_as_itself(self):
        return self.measured()["test_loss"] == pytest.approx(self.log()[-1]["test_loss"], rel=1e-5)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """{name: Copy}: the project in a folder of its own, with a changed copy of each kind."""
    folder = tmp_path_factory.mktemp("project")
    for file in ROOT.glob("*.py"):
        shutil.copy(file, folder)
    shutil.copytree(ROOT / "tools", folder / "tools")
    commands = []
    for name, (original, changes) in COPIES.items():
        source = (ROOT / f"{original}.py").read_text(encoding="utf-8")
        for old, new in changes:
            assert source.count(old) == 1, old
            source = source.replace(old, new)
        (folder / f"my_{name}.py").write_text(source, encoding="utf-8")
        commands += COMMANDS[name]
    results = run_commands(folder, commands)
    found = {}
    for name in COPIES:
        n = len(COMMANDS[name])
        found[name], results = Copy(folder, name, results[:n]), results[n:]
    return found


def test_another_activation_is_trained_resumed_drawn_and_measured_as_itself(copies):
    copy = copies["gelu"]
    assert copy.statuses == [0, 0, 2, 0, 0, 0]
    assert "my_gelu.py" in copy.printed[2] and copy.printed[2].count("\n") == 1   # not by vae.py
    assert len(copy.log()) == 2 and copy.is_measured_as_itself()

    page = np.array(Image.open(copy.run / "manifold.png").convert("L")) / 255
    page = page[-4 * 58:, -4 * 58:]   # without the texts at the left and above
    corner = page[:56:2, :56:2]       # the lowest z_1 and the highest z_2 of the 4 x 4 quantiles
    places = torch.special.ndtri((torch.arange(4) + 0.5) / 4)
    weights = torch.load(copy.run / "checkpoint.pt", weights_only=True)["model"]
    z = torch.stack([places[0], places[3]])
    h = weights["decoder.0.weight"] @ z + weights["decoder.0.bias"]
    h = weights["decoder.2.weight"] @ torch.nn.functional.gelu(h) + weights["decoder.2.bias"]
    assert np.abs(corner - torch.sigmoid(h).view(28, 28).numpy()).max() <= 1 / 255
    assert "gelu" in (copy.run / "explorer.html").read_text(encoding="utf-8")


def test_another_likelihood_is_measured_as_itself(copies):
    """As a Gaussian its ELBO was once reported as 2717 where its log said -254."""
    copy = copies["laplace"]
    assert copy.statuses == [0, 0, 0] and copy.is_measured_as_itself()
    assert copy.measured()["nll_is3"] < copy.measured()["test_loss"]
    assert "note:" not in copy.printed[1]


def test_another_bound_is_told_from_the_elbo(copies):
    copy = copies["iwae"]
    assert copy.statuses == [0, 0, 0] and copy.is_measured_as_itself()
    assert copy.printed[1].count("note:") == 1 and "my_iwae.py" in copy.printed[1]


def test_another_prior_is_sampled_where_the_model_has_it(copies):
    copy = copies["mixture"]
    assert copy.statuses == [0, 0, 0] and copy.is_measured_as_itself()
    assert copy.measured()["grey_pixel_is20"] < copy.measured()["test_loss"]   # its own p(z)


def test_another_loss_of_a_gan(copies):
    copy = copies["hinge"]
    assert copy.statuses == [0, 0]
    row = copy.log()[-1]
    assert row["d_accuracy"] is not None and row["d_loss"] >= 0


def test_a_script_that_changed_is_told_and_one_that_is_gone_is_asked_for(copies):
    copy = copies["gelu"]
    source = copy.file.read_text(encoding="utf-8")
    copy.file.write_text(source + "# a remark\n", encoding="utf-8")
    missing = copies["iwae"].file.rename(copy.folder / "gone")
    changed, drawn, measured = run_commands(copy.folder, [
        ["generate", "gelu", "--samples=4"], ["generate", "iwae"], ["evaluate", "iwae"]])
    missing.rename(copies["iwae"].file)
    copy.file.write_text(source, encoding="utf-8")
    assert changed[0] == 0 and "my_gelu.py has changed" in changed[1]
    for status, printed in (drawn, measured):
        assert status == 2 and "my_iwae.py" in printed and printed.count("\n") == 1


def test_weights_that_no_longer_fit_the_script_are_refused(vae_run, tmp_path, capsys):
    checkpoint = torch.load(vae_run[0] / "checkpoint.pt", weights_only=True)
    checkpoint["model"]["decoder.0.weight"] = torch.zeros(3, 3)
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with pytest.raises(SystemExit) as stop:
        run.load_models(tmp_path)
    assert stop.value.code == 2 and "do not fit" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["../evil", "os", "tests/conftest", "common", "a b"])
def test_nothing_else_is_imported_because_a_checkpoint_says_so(script, vae_run, tmp_path, capsys):
    checkpoint = torch.load(vae_run[0] / "checkpoint.pt", weights_only=True)
    torch.save(checkpoint | {"script": script}, tmp_path / "checkpoint.pt")
    (tmp_path / "evil.py").write_text("raise AssertionError")
    with pytest.raises(SystemExit) as stop:
        run.load_models(tmp_path)
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
