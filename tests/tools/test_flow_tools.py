"""generate.py and evaluate.py with a flow: exact codes and exact likelihoods, no encoder."""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import evaluate
import flow
import generate
import vae
from run import load_models, read_log
from tools import pack


@pytest.fixture(scope="module")
def flow_run(tmp_path_factory):
    """The folder of a tiny conditional run."""
    folder = tmp_path_factory.mktemp("flow") / "run"
    flow.main(dataset="digits", conditional=True, couplings=2, hidden=4, train_size=200,
              test_size=40, epochs=1, lr_schedule="constant", quiet=True, device="cpu", out=folder)
    return folder


@pytest.fixture
def model(flow_run):
    """Its model, with random weights everywhere, so that every layer acts and the label counts."""
    _, _, models = load_models(flow_run)
    torch.manual_seed(0)
    for parameter in models[""].model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return models[""]


def pixels(path):
    return np.array(Image.open(path))


def test_colour_of_32x32_from_a_file(npz, tmp_path, capsys):
    """Trained, drawn and measured; a flow takes no other sizes than 28x28 and 32x32."""
    x = np.random.default_rng(0).integers(0, 256, (27, 32, 32, 3), np.uint8)
    flow.main(dataset=npz(x_train=x[:20], x_test=x[20:]), conditional=True, couplings=2, hidden=4,
              epochs=1, lr_schedule="constant", quiet=True, device="cpu", out=tmp_path / "run")
    generate.main([tmp_path / "run", "--interpolate", 0, 3, "--steps=2"], out=tmp_path)
    row = pixels(tmp_path / "interpolation_0_3.png")[-66:, -4 * 66:]
    assert row.ndim == 3 and (row[2:, :62] == row[2:, 66:128]).mean() > 0.9   # the image itself
    found = evaluate.main([tmp_path / "run", "--metrics=nll"], out=tmp_path)
    assert 6 < found["bpd_given_y_exact"] < 16   # of noise, which takes 8 at best


def test_samples_by_class_and_temperature(flow_run, tmp_path):
    generate.main([flow_run, "--samples=4", "--columns=4", "--temperature=0"], out=tmp_path)
    page = pixels(tmp_path / "samples_4_t0.png")
    assert page.shape == (60, 234, 3)
    generate.main([flow_run, "--digit=3", "--samples=2"], out=tmp_path)
    generate.main([flow_run, "--classes", "--columns=2", "--temperature=0.7"], out=tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"samples_4_t0.png", "samples_3_2.png", "classes_t0.7.png"}


@torch.no_grad()
def test_a_temperature_scales_the_codes(model, flow_run, monkeypatch):
    """z = T eps, in generate.py and in evaluate.py; with model's own random weights."""
    drawn = []
    monkeypatch.setattr(generate, "load_models", lambda *_: (checkpoint, module, {"": model}))
    monkeypatch.setattr(generate, "save_images",
                        lambda args, name, images, *_, **__: drawn.append(images))
    checkpoint, module, _ = load_models(flow_run)
    generate.main([flow_run, "--digit=3", "--samples=2", "--temperature=0.7"])
    z = generate.noise(range(2), 784, 1)
    y = torch.tensor([3, 3])
    torch.testing.assert_close(drawn[0], model.images(0.7 * z, y))
    generate.main([flow_run, "--classes", "--columns=1", "--temperature=0.7"])
    torch.testing.assert_close(drawn[1], model.images((0.7 * z[:1]).repeat(10, 1),
                                                      torch.arange(10)))
    images = torch.cat(list(evaluate.draw(model, y, 3, 0.7)))
    eps = torch.randn(2, 784, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(images, model.images(0.7 * eps, y))


def test_temperature_0_is_one_image_for_each_class(flow_run, tmp_path):
    """z is then 0 whatever its seed, and what is left is the label."""
    generate.main([flow_run, "--classes", "--columns=3", "--temperature=0"], out=tmp_path)
    page = pixels(tmp_path / "classes_t0.png")[:, -174:]     # without the names
    columns = [page[:, 2 + 58 * i:58 + 58 * i] for i in range(3)]
    assert (columns[0] == columns[1]).all() and (columns[0] == columns[2]).all()


def test_a_way_between_images_begins_and_ends_with_them(model, flow_run):
    """Also with the label of the other one, though the code is then another."""
    x = torch.randint(0, 256, (2, 1, 28, 28)) / 255
    for y in (torch.tensor([3, 3]), torch.tensor([5, 5])):
        z = model.exact_codes(x, y)
        assert torch.equal((255 * model.images(z, y)).round(), (255 * x).round())
    other = model.exact_codes(x, torch.tensor([3, 3]))
    assert not torch.allclose(z, other)


def test_interpolation_is_a_figure_of_both_labels(flow_run, tmp_path):
    generate.main([flow_run, "--interpolate", 0, 7, "--steps=3"], out=tmp_path)
    page = pixels(tmp_path / "interpolation_0_7.png")
    assert page.shape[0] > 4 * 58                             # two ways, two labels, the title
    row = page[-58:, -5 * 58:]                                # original, three images, original
    ends = row[2:58, :56].astype(int), row[2:58, 58:114].astype(int)
    assert abs(ends[0] - ends[1]).max() <= 2


@pytest.mark.parametrize("flag", ["--manifold", "--traverse", "--explore", "--pca", "--tsne=20",
                                  "--reconstruct=4", "--scatter", "--span=2"])
def test_what_a_code_as_large_as_an_image_is_not_for(flag, flow_run, refused):
    line = refused(generate, [flow_run, flag])
    assert flag.split("=")[0] in line and "784" in line and "--interpolate" in line


def test_temperature_is_for_samples_of_a_flow(flow_run, refused):
    vae = ROOT / "results/models/vae-mnist-z20.pt"
    assert "flow" in refused(generate, [vae, "--temperature=0.7"])
    assert "remove it" in refused(generate, [flow_run, "--interpolate", 0, 7, "--temperature=0.5"])
    assert "at least 0" in refused(generate, [flow_run, "--temperature=-1"])


def test_exact_likelihoods(model, flow_run, capsys):
    """By hand: the sum over the classes of p(y) p(x|y), with the same noise for each."""
    args = evaluate.flags().parse_args([str(flow_run), "--metrics=nll"])
    checkpoint, module, _ = load_models(flow_run)
    found = evaluate.measure(checkpoint, module, {"": model}, args)
    data = evaluate.load_data_of_run(checkpoint, args)
    noise = torch.Generator().manual_seed(1)
    x, y = data.x_test / 255, data.y_test
    u = torch.rand(x.shape, generator=noise)
    nll = flow.loss_terms(model.model, x, y, u).mean().item()
    assert found["nll_given_y_exact"] == pytest.approx(nll, rel=1e-5)
    assert found["bpd_given_y_exact"] == pytest.approx(nll / 784 / math.log(2), rel=1e-5)

    u = torch.rand(x.shape, generator=noise)
    order = evaluate.metrics.subset(torch.arange(len(x)), 1000)
    x, y = x[order], y[order]
    shares = data.y_train.bincount(minlength=10) / len(data.y_train)
    joint = []
    for label in range(10):
        loss = flow.loss_terms(model.model, x, torch.full_like(y, label), u)
        joint.append(shares[label].log().item() - loss)
    joint = torch.stack(joint, 1)                             # log p(x, y)
    marginal = -joint.logsumexp(1).mean().item()
    assert found["nll_marginal_exact_40"] == pytest.approx(marginal, rel=1e-5)
    right = (joint.argmax(1) == y).float().mean().item()
    assert found["free_classifier_exact_40"] == pytest.approx(right)
    worth = marginal - found["nll_given_y_exact_40"]
    assert found["label_worth_exact_40"] == pytest.approx(worth, abs=1e-3)
    assert worth <= -shares.log()[y].mean().item() + 1e-3     # at most -log p(y)


def test_a_copy_is_measured_by_its_own_loss(flow_run, capsys):
    """One copy has a loss that is a nat higher, another has lost its dequantize()."""
    args = evaluate.flags().parse_args([str(flow_run), "--metrics=nll"])
    checkpoint, module, models = load_models(flow_run)
    found = evaluate.measure(checkpoint, module, models, args)

    def higher(*arguments):
        return 1 + flow.loss_terms(*arguments)

    models[""].module = SimpleNamespace(__file__="my_flow.py", loss_terms=higher)
    other = evaluate.measure(checkpoint, module, models, args)
    assert other["nll_given_y_exact"] == pytest.approx(found["nll_given_y_exact"] + 1, abs=1e-3)
    with pytest.raises(SystemExit):
        models[""].exact_codes(torch.rand(1, 1, 28, 28), torch.tensor([0]))
    assert "my_flow.py has no function dequantize" in capsys.readouterr().err


def test_runs_of_flow_are_compared_by_their_bits(flow_run, tmp_path, refused, capsys):
    flow.main(dataset="digits", couplings=2, hidden=8, train_size=70, test_size=20, epochs=1,
              lr_schedule="constant", quiet=True, device="cpu", out=tmp_path / "wide")
    evaluate.main([flow_run, tmp_path / "wide"], out=tmp_path)
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert "test_bpd" in header and "test_kl" not in header
    assert f"{read_log(flow_run)[-1]['test_bpd']:.3f}" in first
    assert (tmp_path / "compare.png").stat().st_size > 0
    vae.main(dataset="digits", hidden=4, epochs=1, quiet=True, device="cpu", out=tmp_path / "vae")
    assert "or runs of flow.py" in refused(evaluate, [flow_run, tmp_path / "vae"])


def test_evaluate_has_all_but_reconstructions(flow_run, capsys):
    args = evaluate.flags().parse_args([str(flow_run), "--metrics=elbo,mse"])
    found = evaluate.measure(*load_models(flow_run), args)
    assert list(found) == ["test_loss", "test_bpd"]
    assert "mse left out: a flow gives back every image as it was" in capsys.readouterr().out


def test_samples_are_measured_at_their_temperature(flow_run, out, refused):
    """At 0 there is one image of each class, so either all or none of its samples are right."""
    found = evaluate.main([flow_run, "--metrics=class", "--temperature=0"], out=out)
    each = found["class_accuracy_1000_t0_each"]
    assert len(each) == 10 and set(each) <= {0.0, 1.0}
    assert found["class_accuracy_1000_t0"] == pytest.approx(sum(each) / 10)
    vae = ROOT / "results/models/vae-mnist-z20.pt"
    assert "is for flows" in refused(evaluate, [vae, "--temperature=0.7"])


def test_a_packed_flow_draws_what_the_run_draws(flow_run, tmp_path):
    pack.main(flow_run, tmp_path / "small.pt")
    small, full = load_models(tmp_path / "small.pt")[2][""], load_models(flow_run)[2][""]
    z, y = torch.randn(4, full.latent), torch.arange(4)
    assert (small.images(z, y) - full.images(z, y)).abs().max() < 0.01   # half precision
