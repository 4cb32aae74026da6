"""Claim: the next model is a few lines away. A recipe differs from the script that it was made from
by its idea only, every tool works with it or says in a line that it cannot, and its formula is
right.
"""
import difflib
import functools
import importlib
import json
import math

import numpy as np
import pytest
import torch
from conftest import ROOT
from small import random_data
from torch.distributions import Categorical, Independent, Normal, kl_divergence

import cvae
import evaluate
import generate
import run
import vae
from common import gaussian_kl
from recipes import (
    ORIGINALS,
    denoising,
    hinge_sn,
    iwae,
    laplace,
    semi_supervised,
    shortcuts,
    vamp_prior,
    vq_vae,
)

# Lines of a recipe that its original does not have: no more than these.
LIMITS = {"iwae": 30, "vamp_prior": 40, "vq_vae": 50, "laplace": 4, "semi_supervised": 64,
          "hinge_sn": 20, "denoising": 10, "shortcuts": 12}

DIGITS = ["--dataset=digits", "--train-size=100", "--test-size=40", "--quiet", "--device=cpu"]
SMALL = [*DIGITS, "--hidden=8", "--latent=2", "--lr-schedule=constant", "--epochs=1"]
FLAGS = {
    "iwae": [*SMALL, "--k=3"],
    "vamp_prior": [*SMALL, "--pseudo-inputs=5"],
    "vq_vae": [*SMALL, "--codes=4", "--code-size=1"],
    "laplace": SMALL,
    "semi_supervised": [*SMALL, "--labels=10"],
    "hinge_sn": [*DIGITS, "--width=4", "--latent=2", "--batch-size=8", "--iterations=2",
                 "--eval-every=1"],
    "denoising": [*SMALL, "--beta=0"],
    "shortcuts": SMALL,
}
every_recipe = pytest.mark.parametrize("name", ORIGINALS)


def code_lines(path):
    """The lines of a script below its docstring, without blank ones."""
    _, _, code = path.read_text(encoding="utf-8").split('"""', 2)
    return [line for line in code.splitlines() if line.strip()]


@every_recipe
def test_a_recipe_is_its_original_but_for_the_idea(name):
    """Counted are the lines that `diff` marks with >, without the docstring at the top; those that
    it marks with < are no more. The page has the number."""
    original = code_lines(ROOT / f"{ORIGINALS[name]}.py")
    recipe = code_lines(ROOT / "recipes" / f"{name}.py")
    matcher = difflib.SequenceMatcher(None, original, recipe, autojunk=False)
    same = sum(block.size for block in matcher.get_matching_blocks())
    changed = len(recipe) - same
    assert 0 < changed <= LIMITS[name] and len(original) - same <= LIMITS[name]
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    row = page[page.index(f"| [{name}]"):].splitlines()[0]
    assert row.endswith(f"| {ORIGINALS[name]}.py | {changed} |")


def recipe_flags(module, *argv):
    """The flags of a recipe as its main would have them, for a small model."""
    args = module.flags().parse_args(["--latent=3", "--hidden=16", "--lr-schedule=constant", *argv])
    run.check_flags(args)
    run.set_defaults(args, random_data())
    return args


def made(module, *argv, seed=0, classes=4):
    """A small model of a recipe, for images of 6x6."""
    torch.manual_seed(seed)
    return module.build((1, 6, 6), classes, recipe_flags(module, *argv))


def images(n=5):
    return torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(1))


# --------------------------------------------------------------------------------- the commands

@pytest.fixture(scope="module", autouse=True)
def digits_are_read_once():
    """Reading them takes longer than a tiny run."""
    from sklearn import datasets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_digits", functools.cache(datasets.load_digits))
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: folder} of a tiny run of each recipe, without curves, which take half of the time."""
    folder = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("run.save_curves", lambda *args: None)
        patch.setattr("run.save_latent", lambda *args: None)
        patch.setattr(hinge_sn, "make_meters", lambda args, data: (None, None))
        patch.setattr(hinge_sn, "save_curves", lambda *args: None)
        for name, argv in FLAGS.items():
            module = importlib.import_module(f"recipes.{name}")
            module.main(argv, out=folder / name)
            if name != "hinge_sn":
                module.main(resume=folder / name, epochs=2, quiet=True)
                module.main(argv, epochs=2, out=folder / f"{name}-whole")
    return {name: folder / name for name in FLAGS}


@every_recipe
def test_a_recipe_trains_resumes_and_says_how_to_go_on(name, runs):
    rows = run.read_log(runs[name])
    assert len(rows) == 2
    assert all(math.isfinite(value) for value in rows[-1].values() if value is not None)
    if name != "hinge_sn":   # resumed after an epoch: the same as a run of two
        whole = run.read_log(runs[name].with_name(f"{name}-whole"))
        for row in rows + whole:
            del row["seconds"]
        assert rows == whole
    text = (runs[name] / "args.txt").read_text()
    assert text.startswith(f"# python -m recipes.{name} ")
    module = importlib.import_module(f"recipes.{name}")
    assert f"python -m recipes.{name} " in module.flags().format_help()


@every_recipe
def test_a_recipe_that_diverges_ends_in_one_line(name, refused, tmp_path):
    """Which names the term and the remedy, as the original does."""
    more = ["--iterations=8"] if name == "hinge_sn" else ["--epochs=3"]
    module = importlib.import_module(f"recipes.{name}")
    with pytest.raises(SystemExit) as stop:
        module.main([*FLAGS[name], *more, "--lr=1e30"], out=tmp_path / "run")
    assert stop.value.code == 1


def test_recipes_are_trained_by_one_process(monkeypatch, refused, tmp_path):
    """As that of denoising: its loss draws noise, which would be the same for other images."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = refused(denoising, FLAGS["denoising"], out=tmp_path / "run")
    assert "start one process" in line


def test_no_collapse_is_seen_in_what_is_no_kl(monkeypatch, tmp_path, capsys):
    """What an IWAE logs as test_kl is the gap between reconstruction and bound, often below 0."""
    measure = iwae.evaluate
    monkeypatch.setattr(iwae, "evaluate", lambda *args: measure(*args) | {"test_kl": -20.0})
    flags = [flag for flag in FLAGS["iwae"] if flag != "--quiet"]
    iwae.main(flags, out=tmp_path / "run")
    assert "collapsed" not in capsys.readouterr().out


@every_recipe
def test_a_recipe_is_measured_as_itself(name, runs, out, capsys):
    evaluate.main([str(runs[name]), "--metrics=elbo,mse,nll", "--nll-samples=3", f"--out={out}"])
    printed = capsys.readouterr().out
    text = (runs[name] / "evaluation.jsonl").read_text(encoding="utf-8")
    measured = json.loads(text.splitlines()[-1])
    if name == "hinge_sn":
        assert "test_loss" not in measured and printed.count("left out") == 3
        return
    last = run.read_log(runs[name])[-1]
    for column in last:
        if column.startswith(("test_", "baseline_", "perplexity")) and last[column] is not None:
            assert measured[column] == pytest.approx(last[column], rel=1e-4)
    has_other_loss = name in ("iwae", "vamp_prior", "denoising")
    assert ("is not recon + KL" in printed) == has_other_loss
    is_autoencoder = name in ("vq_vae", "denoising")
    assert ("nll left out" in printed) == is_autoencoder


PICTURES = [["--samples", "4"], ["--classes"], ["--interpolate", "0", "7"], ["--traverse"],
            ["--reconstruct", "4"], ["--explore"]]


@every_recipe
def test_a_recipe_is_drawn_or_a_line_says_why_not(name, runs, tmp_path, capsys):
    refused = []
    for argv in PICTURES:
        capsys.readouterr()
        try:
            generate.main([str(runs[name]), *argv, "--steps=2", f"--out={tmp_path}"])
        except SystemExit as stop:
            refused.append(argv[0])
            assert stop.code == 2 and capsys.readouterr().err.count("\n") == 1
    expected = {"vq_vae": ["--explore"], "shortcuts": ["--explore"],
                "hinge_sn": ["--classes", "--traverse", "--reconstruct", "--explore"]}
    assert refused == expected.get(name, [])


@every_recipe
def test_what_a_recipe_draws_besides(name, runs):
    figures = {"vamp_prior": "pseudo_inputs", "denoising": "denoised"}
    for recipe, figure in figures.items():
        assert (runs[name] / f"{figure}_002.png").exists() == (recipe == name)
    assert (runs[name] / "sample_002.png").exists() == (name != "vq_vae")


@pytest.mark.parametrize("name, flags, said", [
    ("vq_vae", {"latent": 10, "code_size": 4}, "--code-size"),
    ("vq_vae", {"beta": 1}, "--beta"),
    ("iwae", {"beta": 2}, "--beta"),
    ("semi_supervised", {"labels": 9}, "--labels 9 must be a multiple"),
    ("semi_supervised", {"labels": 1470}, "and at most 1460"),   # 146 of the rarest
    ("vamp_prior", {"arch": "conv"}, "--arch conv would normalise"),
    ("semi_supervised", {"labels": 105}, "there are 10"),
])
def test_bad_flags_of_recipes_are_refused(name, flags, said, refused):
    module = importlib.import_module(f"recipes.{name}")
    assert said in refused(module, dataset="digits", quiet=True, **flags)


# --------------------------------------------------------------------------------------- iwae

def importance_bound(model, x, k, draws):
    """The mean of `draws` bounds, (B,)."""
    torch.manual_seed(0)
    eps = torch.randn(k, draws * len(x), model.args.latent)
    recon, kl, _ = iwae.loss_terms(model, x.repeat(draws, 1, 1, 1), eps)
    return -(recon + kl).view(draws, len(x)).mean(0)


@torch.no_grad()
def test_the_bound_with_one_draw_is_the_elbo():
    """For each draw, log p(x, z) - log q(z|x); on average the ELBO of vae.py."""
    model = made(iwae)
    x = images()
    eps = torch.randn(1, 5, 3)
    recon, kl, mu = iwae.loss_terms(model, x, eps)
    _, logvar = model.encode(x)
    q = Independent(Normal(mu, torch.exp(0.5 * logvar)), 1)
    prior = Independent(Normal(torch.zeros(3), 1.0), 1)
    z = mu + torch.exp(0.5 * logvar) * eps[0]
    expected = model.decode(z).log_prob(x) + prior.log_prob(z) - q.log_prob(z)
    torch.testing.assert_close(-recon - kl, expected)

    same_eps = eps[0].repeat(4, 1, 1)      # four equal draws are one
    repeated, _, _ = iwae.loss_terms(model, x, same_eps)
    torch.testing.assert_close(repeated, recon)

    recon, kl, _ = vae.loss_terms(model, x.repeat(2000, 1, 1, 1), torch.randn(10_000, 3))
    elbo = -(recon + kl).view(2000, 5).mean(0)
    torch.testing.assert_close(importance_bound(model, x, 1, 2000), elbo, rtol=0, atol=0.1)


@torch.no_grad()
def test_the_bound_grows_with_the_draws_towards_the_likelihood():
    """log p(x) is an integral over z, here of one dimension, summed on a fine grid."""
    model = made(iwae, "--latent=1", seed=3)
    for parameter in model.parameters():
        parameter.mul_(3)                  # far from the prior, as after training
    x = images(3)
    z = torch.linspace(-8, 8, 4001)[:, None]
    log_joint = Normal(0.0, 1.0).log_prob(z)
    p = model.decode(z)
    log_joint = log_joint + torch.stack([p.log_prob(image.expand(4001, 1, 6, 6)) for image in x], 1)
    log_p = log_joint.logsumexp(0) + math.log(16 / 4000)

    one = importance_bound(model, x, 1, 1000)
    ten = importance_bound(model, x, 10, 300)
    many = importance_bound(model, x, 2000, 10)
    assert (one < ten).all() and (ten < many + 0.05).all() and (one < many - 0.2).any()
    torch.testing.assert_close(many, log_p, rtol=0, atol=0.05)


def test_images_meet_their_own_draws():
    """A batch has the bounds of its images alone."""
    model = made(iwae)
    x = images()
    eps = torch.randn(7, 5, 3)
    recon, kl, _ = iwae.loss_terms(model, x, eps)
    for i in range(5):
        own_recon, own_kl, _ = iwae.loss_terms(model, x[i:i + 1], eps[:, i:i + 1])
        torch.testing.assert_close(own_recon[0], recon[i])
        torch.testing.assert_close(own_kl[0], kl[i])


# --------------------------------------------------------------------------------- vamp_prior

@torch.no_grad()
def test_the_prior_is_the_mean_of_the_posteriors_of_the_pseudo_inputs():
    model = made(vamp_prior, "--pseudo-inputs=4")
    mu, logvar = model.encode(model.pseudo_inputs.clamp(0, 1))
    z = torch.randn(50, 3)
    density = torch.zeros(50)
    for k in range(4):
        component = Normal(mu[k], torch.exp(0.5 * logvar[k]))
        density += component.log_prob(z).sum(1).exp() / 4
    torch.testing.assert_close(model.prior().log_prob(z), density.log(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_with_one_pseudo_input_the_kl_is_that_of_two_gaussians():
    model = made(vamp_prior, "--pseudo-inputs=1")
    x = images()
    _, kl, _ = vamp_prior.loss_terms(model, x.repeat(2000, 1, 1, 1), torch.randn(10_000, 3))
    kl = kl.view(2000, 5).mean(0)
    q = vamp_prior.posterior(*model.encode(x))
    p = vamp_prior.posterior(*model.encode(model.pseudo_inputs.clamp(0, 1)))
    expected = kl_divergence(q.base_dist, p.base_dist).sum(1)
    torch.testing.assert_close(kl, expected, rtol=0, atol=0.02)


def test_the_pseudo_inputs_learn():
    model = made(vamp_prior, "--pseudo-inputs=4")
    _, kl, _ = vamp_prior.loss_terms(model, images(), torch.randn(5, 3))
    kl.mean().backward()
    assert (model.pseudo_inputs.grad.flatten(1).norm(dim=1) > 0).all()


# ------------------------------------------------------------------------------------- vq_vae

def test_the_quantiser_returns_the_nearest_entries():
    from sklearn.neighbors import NearestNeighbors
    model = made(vq_vae, "--latent=6", "--codes=9", "--code-size=2")
    z = torch.randn(20, 6)
    entries, index = model.nearest(z)
    codebook = model.codebook.detach().numpy()
    finder = NearestNeighbors(n_neighbors=1).fit(codebook)
    expected = finder.kneighbors(z.reshape(-1, 2).numpy(), return_distance=False)
    assert (index.reshape(-1, 1).numpy() == expected).all()
    assert np.array_equal(entries.detach().numpy(), codebook[expected[:, 0]].reshape(20, 6))
    torch.testing.assert_close(model.quantise(z), entries)
    again, _ = model.nearest(entries)
    assert torch.equal(again, entries)


def test_gradients_go_straight_through_the_quantiser():
    model = made(vq_vae, "--latent=6", "--codes=9", "--code-size=2")
    z = torch.randn(20, 6, requires_grad=True)
    weights = torch.randn(20, 6)
    (weights * model.quantise(z)).sum().backward()
    assert torch.equal(z.grad, weights) and model.codebook.grad is None


def test_the_codebook_loss_moves_entries_to_codes_and_codes_to_entries():
    model = made(vq_vae, "--latent=2", "--codes=3", "--code-size=2")
    mu = torch.randn(1, 2, requires_grad=True)
    entries, index = model.nearest(mu)
    loss = vq_vae.codebook_loss(model, mu)
    distance = (mu - entries).square().sum().item()
    assert loss.item() == pytest.approx(1.25 * distance, rel=1e-5)
    loss.sum().backward()
    away = (mu - entries).detach()
    torch.testing.assert_close(mu.grad, 2 * 0.25 * away)
    torch.testing.assert_close(model.codebook.grad[index[0, 0]], -2 * away[0])
    assert (model.codebook.grad.abs().sum(1) > 0).sum() == 1   # the others stay


@torch.no_grad()
def test_perplexity_counts_the_entries_in_use():
    model = made(vq_vae, "--latent=4", "--codes=8", "--code-size=2")
    data = random_data()
    row = vq_vae.evaluate(model, data, 1, model.args)
    _, index = model.nearest(model.encode(data.x_test / 255)[0])
    shares = np.bincount(index.flatten(), minlength=8) / index.numel()
    shares = shares[shares > 0]
    assert row["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    model.codebook[1:] = 1e3               # out of reach
    assert vq_vae.evaluate(model, data, 1, model.args)["perplexity"] == pytest.approx(1)


# -------------------------------------------------------------------------- laplace, denoising

@torch.no_grad()
def test_pixels_have_a_laplace_distribution():
    """-log p = |x - mean| / b + log 2b, summed over pixels."""
    model = made(laplace, "--sigma=0.2")
    x = images()
    eps = torch.randn(5, 3)
    recon, kl, mu = laplace.loss_terms(model, x, eps)
    _, logvar = model.encode(x)
    mean = model.decode(mu + torch.exp(0.5 * logvar) * eps).mean
    expected = ((x - mean).abs() / 0.2 + math.log(2 * 0.2)).sum((1, 2, 3))
    torch.testing.assert_close(recon, expected)
    torch.testing.assert_close(kl, gaussian_kl(mu, logvar))


@torch.no_grad()
def test_a_noisy_image_is_seen_and_the_clean_one_asked_for(monkeypatch):
    model = made(denoising, "--beta=0")
    x = images(400)
    seen = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda x: seen.append(x) or encode(x))
    recon, kl, mu = denoising.loss_terms(model, x, torch.zeros(400, 3))
    noise = seen[0] - x
    assert noise.mean().abs() < 0.02 and noise.std() == pytest.approx(0.5, abs=0.02)
    torch.testing.assert_close(recon, -model.decode(mu).log_prob(x))
    assert not kl.any()


@torch.no_grad()
def test_the_noise_of_evaluation_is_always_the_same_and_its_own():
    model = made(denoising, "--beta=0")
    data = random_data()
    torch.manual_seed(5)
    row = denoising.evaluate(model, data, 1, model.args)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))
    assert denoising.evaluate(model, data, 1, model.args) == row


# ------------------------------------------------------------------------------------ shortcuts

@pytest.mark.parametrize("flags", [[], ["--sigma=pixel"]])
@torch.no_grad()
def test_at_first_the_shortcuts_alone_give_back_what_the_codes_can_hold(flags):
    """Without the networks, as many codes as pixels hold the whole image; fewer codes hold the part
    of its log-odds in their subspace: projecting twice changes nothing more."""
    for latent in (36, 5):
        model = made(shortcuts, "--likelihood=gaussian", f"--latent={latent}", *flags)
        for layer in (model.encoder[-1], model.decoder[-2]):
            for parameter in layer.parameters():
                parameter.zero_()
        for layer in (model.down, model.up):
            layer.bias.zero_()
        if flags:
            model.up.weight[36:] = 0   # of sigma
        x = images()
        once = model.decode(model.encode(x)[0]).mean
        if latent == 36:
            assert torch.allclose(once, 0.01 + 0.98 * x, atol=1e-5)
        else:
            mu = model.down(torch.logit(once).flatten(1))
            assert torch.allclose(mu, model.encode(x)[0], atol=1e-5)
            assert torch.allclose(model.decode(mu).mean, once, atol=1e-5)


# ---------------------------------------------------------------------------- semi_supervised

@torch.no_grad()
def test_a_known_label_has_the_bound_of_the_cvae_and_the_price_of_the_label():
    """Equation 6, with p(y) uniform over four classes."""
    model = made(semi_supervised)
    x, y, eps = images(), torch.tensor([0, 3, 1, 2, 2]), torch.randn(5, 3)
    recon, kl = semi_supervised.bound_terms(model, x, y, eps)
    own_recon, own_kl, _ = cvae.loss_terms(model, x, y, eps)
    torch.testing.assert_close(recon, own_recon)
    torch.testing.assert_close(kl, own_kl + math.log(4))


@torch.no_grad()
def test_without_a_label_the_bound_is_a_mean_over_labels_and_a_kl():
    """Equation 7: sum_y q(y|x) (-L(x, y)) + H(q), that is, the mean of recon + kl over q(y|x) plus
    KL(q(y|x) || p(y))."""
    model = made(semi_supervised)
    x, eps = images(), torch.randn(5, 3)
    recon, kl = semi_supervised.bound_terms(model, x, torch.full((5,), -1), eps)
    q = Categorical(logits=model.classifier(x.flatten(1)))
    expected = kl_divergence(q, Categorical(torch.ones(5, 4)))
    for label in range(4):
        own_recon, own_kl, _ = cvae.loss_terms(model, x, torch.full((5,), label), eps)
        expected = expected + q.probs[:, label] * (own_recon + own_kl)
    torch.testing.assert_close(recon + kl, expected)


def test_only_the_labels_that_are_told_are_told():
    data = random_data(n_train=40)
    hidden = semi_supervised.hide_labels(data, recipe_flags(semi_supervised, "--labels=8"))
    counts = torch.bincount(hidden.y_train + 1, minlength=5).tolist()
    assert counts == [32, 2, 2, 2, 2]     # 2 of each class, and -1
    told = hidden.y_train >= 0
    assert torch.equal(hidden.y_train[told], data.y_train[told])
    assert torch.equal(hidden.y_test, data.y_test)


# ----------------------------------------------------------------------------------- hinge_sn

def test_every_layer_of_the_discriminator_has_spectral_norm_one():
    torch.manual_seed(0)
    args = hinge_sn.flags().parse_args(["--width=8", "--conditional"])
    discriminator = hinge_sn.Discriminator((1, 28, 28), 3, args)
    for parameter in discriminator.parameters():
        parameter.data.mul_(7)             # whatever the weights are
    x = torch.rand(2, 1, 32, 32)
    for _ in range(50):                    # a step of the power iteration each
        discriminator(x, torch.tensor([0, 2]))
    norms = []
    for layer in discriminator.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear | torch.nn.Embedding):
            norms.append(torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item())
    assert len(norms) == 11
    assert norms == pytest.approx([1.0] * 11, abs=0.03)


def test_the_hinge_loss_is_content_beyond_one():
    real = torch.tensor([2.0, 1.0, 0.5, -1.0])
    fake = torch.tensor([-2.0, -1.0, 0.0, 3.0])
    loss = hinge_sn.DISCRIMINATOR_LOSS["hinge"](real, fake)
    assert loss.tolist() == [0, 0, 1.5, 6.0]
    assert hinge_sn.GENERATOR_LOSS["hinge"](fake).tolist() == [2, 1, 0, -3]
    assert hinge_sn.flags().parse_args([]).loss == "hinge"


# ------------------------------------------------------------------------------ what they learn

def test_k_draws_of_every_image():
    args = recipe_flags(iwae, "--k=5")
    eps = iwae.draw_k_eps(images(3), args)
    assert eps.shape == (5, 3, 3)
    assert len(eps.flatten().unique()) == 45


def test_the_codebook_learns():
    model = made(vq_vae, "--latent=4", "--codes=4", "--code-size=2")
    args = recipe_flags(vq_vae, "--latent=4", "--codes=4", "--code-size=2")
    vq_vae.backward(model, images(), torch.zeros(5, 4), 0.0, args)
    assert model.codebook.grad.abs().sum() > 0


def test_either_classifier_has_its_own_error():
    """One that always says 0, and one that always says 3, which is rarer."""
    data = random_data()
    model = made(semi_supervised)
    for classifier, label in ((model.classifier, 0), (model.baseline, 3)):
        torch.nn.init.zeros_(classifier[-1].weight)
        classifier[-1].bias.data = torch.nn.functional.one_hot(torch.tensor(label), 4).float()
    row = semi_supervised.evaluate(model, data, 1, recipe_flags(semi_supervised))
    assert row["test_error"] == pytest.approx((data.y_test != 0).float().mean().item())
    assert row["baseline_error"] == pytest.approx((data.y_test != 3).float().mean().item())


def test_alpha_weighs_the_cross_entropy_of_one_classifier_alone():
    data = random_data()
    gradients = []
    for alpha in (1, 3):
        model = made(semi_supervised)
        torch.manual_seed(1)
        args = recipe_flags(semi_supervised, f"--alpha={alpha}")
        semi_supervised.backward_of_labels(model, data, args)
        gradients.append((model.classifier[-1].weight.grad, model.baseline[-1].weight.grad))
    (own, baseline), (own_of_3, baseline_of_3) = gradients
    torch.testing.assert_close(own_of_3, 3 * own)
    torch.testing.assert_close(baseline_of_3, baseline)
