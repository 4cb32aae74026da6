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
         "--lr=2e-3", "--out=run"]

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


class Project:
    """A copy of the project with one changed script, my_NAME.py."""

    def __init__(self, folder, name):
        self.folder, self.script = folder, f"my_{name}"
        for file in ROOT.glob("*.py"):
            shutil.copy(file, folder)
        shutil.copytree(ROOT / "tools", folder / "tools")
        original, changes = COPIES[name]
        source = (ROOT / f"{original}.py").read_text(encoding="utf-8")
        for old, new in changes:
            assert source.count(old) == 1, old
            source = source.replace(old, new)
        self.file = folder / f"{self.script}.py"
        self.file.write_text(source, encoding="utf-8")

    def run(self, *commands):
        """[(exit status, what was printed), ...] of commands such as ["generate", "run"]."""
        done = subprocess.run([sys.executable, "-c", DRIVER, json.dumps(commands)],
                              cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def measured(self):
        """The numbers that evaluate.py found last."""
        lines = (self.folder / "run" / "evaluation.jsonl").read_text().splitlines()
        return json.loads(lines[-1])

    def log(self):
        return run.read_log(self.folder / "run")


@pytest.fixture
def project(tmp_path):
    return lambda name: Project(tmp_path, name)


def test_another_activation_is_trained_resumed_drawn_and_measured_as_itself(project, tmp_path):
    copy = project("gelu")
    results = copy.run([copy.script, *TRAIN], [copy.script, "--resume=run", "--epochs=2"],
                       ["vae", "--resume=run", "--epochs=3"], ["evaluate", "run", "--metrics=elbo"],
                       ["generate", "run", "--manifold", "--steps=2"],
                       ["generate", "run", "--explore"])
    statuses = [status for status, _ in results]
    assert statuses == [0, 0, 2, 0, 0, 0]
    assert "my_gelu.py" in results[2][1] and results[2][1].count("\n") == 1   # not with vae.py
    assert len(copy.log()) == 2
    assert copy.measured()["test_loss"] == pytest.approx(copy.log()[-1]["test_loss"], rel=1e-5)

    page = np.array(Image.open(tmp_path / "run" / "manifold.png").convert("L")) / 255
    corner = page[2:58:2, 2:58:2]   # the lowest z_1 and the highest z_2 of the 4 x 4 quantiles
    places = torch.special.ndtri((torch.arange(4) + 0.5) / 4)
    weights = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"]
    z = torch.stack([places[0], places[3]])
    h = weights["decoder.0.weight"] @ z + weights["decoder.0.bias"]
    h = weights["decoder.2.weight"] @ torch.nn.functional.gelu(h) + weights["decoder.2.bias"]
    assert np.abs(corner - torch.sigmoid(h).view(28, 28).numpy()).max() <= 1 / 255
    assert "gelu" in (tmp_path / "run" / "explorer.html").read_text(encoding="utf-8")

    source = copy.file.read_text(encoding="utf-8")
    copy.file.write_text(source + "# a remark\n", encoding="utf-8")
    (status, printed), = copy.run(["generate", "run", "--samples=4"])
    assert status == 0 and "my_gelu.py has changed" in printed
    copy.file.unlink()
    for status, printed in copy.run(["generate", "run"], ["evaluate", "run"]):
        assert status == 2 and "my_gelu.py" in printed and printed.count("\n") == 1


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


def test_another_likelihood_is_measured_as_itself(project):
    """As a Gaussian its ELBO was once reported as 2717 where its log said -254."""
    copy = project("laplace")
    results = copy.run([copy.script, *TRAIN, "--likelihood=gaussian"],
                       ["evaluate", "run", "--metrics=elbo,mse,nll", "--nll-samples=3"],
                       ["generate", "run", "--samples=4", "--show=sample"])
    assert [status for status, _ in results] == [0, 0, 0]
    found = copy.measured()
    assert found["test_loss"] == pytest.approx(copy.log()[-1]["test_loss"], rel=1e-5)
    assert found["nll_is3"] < found["test_loss"] and "note:" not in results[1][1]


def test_another_bound_is_told_from_the_elbo(project):
    copy = project("iwae")
    results = copy.run([copy.script, *TRAIN], ["evaluate", "run", "--metrics=elbo"],
                       ["generate", "run", "--samples=4"])
    assert [status for status, _ in results] == [0, 0, 0]
    assert copy.measured()["test_loss"] == pytest.approx(copy.log()[-1]["test_loss"], rel=1e-5)
    assert results[1][1].count("note:") == 1 and "my_iwae.py" in results[1][1]


def test_another_prior_is_sampled_where_the_model_has_it(project):
    copy = project("mixture")
    results = copy.run([copy.script, *TRAIN], ["generate", "run", "--samples=64"],
                       ["evaluate", "run", "--metrics=elbo,nll", "--nll-samples=20"])
    assert [status for status, _ in results] == [0, 0, 0]
    found = copy.measured()
    assert found["test_loss"] == pytest.approx(copy.log()[-1]["test_loss"], rel=1e-5)
    assert found["grey_pixel_is20"] < found["test_loss"]   # with p(z) of the mixture


def test_another_loss_of_a_gan(project):
    copy = project("hinge")
    results = copy.run([copy.script, "--dataset=digits", "--width=4", "--latent=4", "--out=run",
                        "--batch-size=8", "--iterations=6", "--eval-every=0", "--loss=hinge"],
                       ["generate", "run", "--samples=4"])
    assert [status for status, _ in results] == [0, 0]
    row = copy.log()[-1]
    assert row["d_accuracy"] is not None and row["d_loss"] >= 0
