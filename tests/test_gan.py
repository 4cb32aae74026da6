"""gan.py: layers, losses, who learns in which step, and runs of all three losses."""
import csv
import json
import math
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evaluate
import gan
from common import Data, load_data

LOSSES = ("gan", "lsgan", "wgan-gp")
QUICK = {"dataset": "digits", "width": 4, "latent": 8, "batch_size": 8, "iterations": 12,
         "eval_every": 6, "quiet": True, "device": "cpu"}


def args(*argv):
    parsed = gan.flags().parse_args(["--width=4", "--latent=8", "--batch-size=6", *argv])
    gan.check_flags(parsed)
    return parsed


def pair(shape=(1, 28, 28), classes=0, flags=()):
    """A generator, a discriminator and the optimisers of both."""
    torch.manual_seed(0)
    networks = [kind(shape, args(*flags), classes) for kind in (gan.Generator, gan.Discriminator)]
    return *networks, *(torch.optim.Adam(network.parameters()) for network in networks)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (3, 5), (14, 2)])
def test_down_undoes_up_exactly(size):
    x = torch.randn(2, 5, *size)
    assert gan.upsample(x).shape == (2, 5, 2 * size[0], 2 * size[1])
    assert torch.equal(gan.downsample(gan.upsample(x)), x)


def test_resampling_is_what_its_name_says():
    """Repeat the channels and shuffle; unshuffle and take the mean over the sub-pixels."""
    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(gan.upsample(x), F.pixel_shuffle(x.repeat_interleave(4, dim=1), 2))
    means = F.pixel_unshuffle(x, 2).unflatten(1, (3, 4)).mean(2)
    torch.testing.assert_close(gan.downsample(x), means)
    assert gan.upsample(torch.tensor([[[[1., 2.]]]])).tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2]]]]
    assert gan.downsample(torch.tensor([[[[1., 2.], [3., 6.]]]])).tolist() == [[[[3.]]]]


@pytest.mark.parametrize("size", [(3, 4), (4, 3)])
def test_odd_sides_cannot_be_halved(size):
    with pytest.raises(ValueError, match="even sides"):
        gan.downsample(torch.zeros(1, 1, *size))


def test_layers_resample_first_and_convolve_then():
    x = torch.randn(2, 3, 8, 8)
    up, down = gan.UpSampleConv2D(3, 5, 3, padding=1), gan.DownSampleConv2D(3, 5, 3, padding=1)
    for layer, resample, side in ((up, gan.upsample, 16), (down, gan.downsample, 4)):
        expected = F.conv2d(resample(x), layer.weight, layer.bias, padding=1)
        assert layer(x).shape == (2, 5, side, side) and torch.equal(layer(x), expected)


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 32, 32), (3, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("batch, classes", [(1, 0), (5, 0), (5, 10)])
def test_shapes(shape, batch, classes):
    generator, discriminator, *_ = pair(shape, classes)
    y, z = torch.arange(batch) % 10, torch.randn(batch, 8)
    generator.eval()
    images = generator(z, y)
    assert images.shape == (batch, shape[0], 32, 32) and images.abs().max() <= 1
    assert discriminator(images, y).shape == (batch,)
    picture = generator.picture(z, y)
    assert picture.shape == (batch, *shape) and picture.min() >= 0 and picture.max() <= 1
    inner = images if shape[1] == 32 else images[:, :, 2:-2, 2:-2]
    assert torch.equal(picture, (inner + 1) / 2)


def test_the_label_counts_if_there_are_classes():
    z, zero, one = torch.randn(4, 8), torch.zeros(4).long(), torch.ones(4).long()
    for classes in (0, 10):
        generator, discriminator, *_ = pair(classes=classes)
        for norm in (m for m in generator.modules() if isinstance(m, gan.ConditionalNorm)):
            if classes:
                nn.init.normal_(norm.label.weight)   # training would; at first all are alike
        images = generator.eval()(z, zero)
        assert torch.equal(images, generator(z, one)) == (classes == 0)
        assert torch.equal(discriminator(images, zero), discriminator(images, one)) == \
            (classes == 0)


def test_normalisation_of_a_class_has_a_gain_and_a_bias_of_its_own():
    norm, x, y = gan.ConditionalNorm(2, 3).eval(), torch.randn(3, 2, 4, 4), torch.arange(3)
    torch.testing.assert_close(norm(x, y), norm.norm(x))   # at first none
    nn.init.normal_(norm.label.weight)
    gain, bias = norm.label(y)[:, :, None, None].chunk(2, 1)
    torch.testing.assert_close(norm(x, y), (1 + gain) * norm.norm(x) + bias)


def test_losses_in_closed_form():
    """Against the papers' formulas, at probabilities and logits that a hand can check."""
    real, fake = torch.tensor([math.log(3.), 2.]), torch.tensor([0., -1.])   # D = 3/4 and 1/2
    d, g = gan.discriminator_loss, gan.generator_loss
    assert d("gan", real, fake)[0].item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 2))
    assert g("gan", real)[0].item() == pytest.approx(-math.log(3 / 4))
    assert d("lsgan", real, fake)[1].item() == pytest.approx(((2 - 1) ** 2 + (-1) ** 2) / 2)
    assert g("lsgan", fake)[1].item() == pytest.approx((-1 - 1) ** 2 / 2)
    assert d("wgan-gp", real, fake)[1].item() == -1 - 2 and g("wgan-gp", fake)[1].item() == 1
    bce = F.binary_cross_entropy_with_logits
    expected = bce(real, torch.ones(2), reduction="none") + bce(fake, torch.zeros(2),
                                                                reduction="none")
    torch.testing.assert_close(d("gan", real, fake), expected)


def test_the_loss_does_not_saturate():
    """Where the discriminator is sure of a fake, log(1 - D) has no gradient left; -log D has 1."""
    logit = torch.tensor([-20.], requires_grad=True)
    gan.generator_loss("gan", logit).backward()
    assert logit.grad.item() == pytest.approx(-1)


@pytest.mark.parametrize("amp", [False, True])
def test_penalty_of_a_linear_critic(amp):
    """D(x) = <w, x> has the gradient w everywhere: the penalty is (|w| - 1)^2 for every image."""
    w = torch.randn(3, 32, 32)
    critic = nn.Linear(3 * 32 * 32, 1)
    critic.weight.data = w.flatten()[None].clone()
    real, fake = torch.randn(2, 5, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        penalty = gan.gradient_penalty(lambda x, y: critic(x.flatten(1))[:, 0], real, fake, None)
    assert penalty.shape == (5,) and penalty.dtype == torch.float32
    expected = ((w.norm() - 1) ** 2).expand(5)
    torch.testing.assert_close(penalty, expected, rtol=0.01 if amp else 1e-4, atol=0)
    penalty.mean().backward()   # a second derivative: 2 (|w| - 1) w / |w|
    direction = (2 * (w.norm() - 1) / w.norm() * w).flatten()[None]
    torch.testing.assert_close(critic.weight.grad, direction, rtol=0.02 if amp else 1e-4, atol=1e-2)


def test_penalty_looks_between_the_images_with_one_alpha_each():
    """The critic is shown real + (1 - alpha) (fake - real): one alpha in all pixels of an image."""
    shown = []
    real, fake = torch.zeros(50, 1, 32, 32), torch.ones(50, 1, 32, 32)

    def critic(x, y):
        shown.append(x.detach())
        return x.sum((1, 2, 3))
    gan.gradient_penalty(critic, real, fake, None)
    low, high = shown[0].flatten(1).aminmax(dim=1)
    assert torch.equal(low, high) and low.min() >= 0 and high.max() <= 1
    assert len(low.unique()) > 40 and low.std() > 0.2   # uniform: 0.29


@pytest.mark.parametrize("loss", LOSSES)
def test_who_learns_in_which_step(loss):
    """A step of D leaves no gradient in G (the detach that popular code forgets), and G's step does
    not move D."""
    flags = args(f"--loss={loss}")
    generator, discriminator, g_optimizer, d_optimizer = pair()
    x, y = torch.randn(6, 1, 32, 32), torch.zeros(6).long()
    for step, learner, other in ((gan.discriminator_step, discriminator, generator),
                                 (gan.generator_step, generator, discriminator)):
        weights = [[p.clone() for p in network.parameters()] for network in (learner, other)]
        other.zero_grad()
        if learner is discriminator:
            step(generator, discriminator, d_optimizer, x, y, flags)
        else:
            step(generator, discriminator, g_optimizer, y, flags)
        assert all(p.grad is None for p in other.parameters())
        assert all(torch.equal(p, old) for p, old in zip(other.parameters(), weights[1],
                                                         strict=True))
        assert sum(not torch.equal(p, old) for p, old in
                   zip(learner.parameters(), weights[0], strict=True)) > len(weights[0]) // 2


def test_the_critic_follows_its_loss_and_ten_times_the_penalty():
    """SGD with rate 1 moves each weight by minus the gradient, computed here by hand."""
    x, y = torch.randn(6, 1, 32, 32), torch.zeros(6).long()
    generator, critic, *_ = pair()
    before = [p.detach().clone() for p in critic.parameters()]
    torch.manual_seed(1)
    with torch.no_grad():
        fake = generator(torch.randn(6, 8), y)
    loss = critic(fake, y) - critic(x, y)
    objective = (loss + 10 * gan.gradient_penalty(critic, x, fake, y)).mean()
    expected = torch.autograd.grad(objective, critic.parameters(), allow_unused=True)
    generator, *_ = pair()   # as it was before it normalised a batch
    torch.manual_seed(1)
    row = gan.discriminator_step(generator, critic, torch.optim.SGD(critic.parameters(), 1.0), x, y,
                                 args("--loss=wgan-gp"))
    for p, old, gradient in zip(critic.parameters(), before, expected, strict=True):
        torch.testing.assert_close(old - p, torch.zeros_like(p) if gradient is None else gradient,
                                   rtol=1e-3, atol=1e-4)
    assert row["d_loss"].item() == pytest.approx(loss.mean().item(), rel=1e-4)   # no penalty in it


class Fixed(nn.Module):
    """A discriminator of given logits, for real images and then for fake ones."""

    def __init__(self, *logits):
        super().__init__()
        self.logits, self.labels, self.weight = [*logits], [], nn.Parameter(torch.zeros(()))

    def forward(self, x, y):
        self.labels.append(y)
        return self.logits.pop(0) + self.weight + 0 * x.sum()


def test_what_the_log_says_of_a_step():
    real, fake = torch.tensor([2., 1., 1., -1.]), torch.tensor([-1., -2., 3., -4.])
    generator, _, optimizer, _ = pair(classes=10)
    critic, y = Fixed(real, fake, fake), torch.arange(4)
    sgd = torch.optim.SGD(critic.parameters(), 0.0)
    row = gan.discriminator_step(generator, critic, sgd, torch.zeros(4, 1, 32, 32), y, args())
    assert row["d_accuracy"].item() == 6 / 8   # three of four are right, both times
    assert row["d_real"].item() == pytest.approx(torch.sigmoid(real).mean().item())
    assert row["d_fake"].item() == pytest.approx(torch.sigmoid(fake).mean().item())
    gan.generator_step(generator, critic, optimizer, y, args())
    assert all(torch.equal(label, y) for label in critic.labels)   # of real and fake images
    steps = [{"d_loss": torch.tensor(value)} for value in (1., 3.)]
    assert gan.interval_means(steps, 2)["d_loss"] == 2


@pytest.mark.parametrize("loss", LOSSES)
def test_amp_takes_about_the_same_step(loss):
    x, y = torch.randn(6, 1, 32, 32), torch.zeros(6).long()
    found = []
    for amp in ((), ("--amp",)):
        generator, discriminator, g_optimizer, d_optimizer = pair()
        flags = args(f"--loss={loss}", *amp)
        row = gan.discriminator_step(generator, discriminator, d_optimizer, x, y, flags)
        row |= gan.generator_step(generator, discriminator, g_optimizer, y, flags)
        found.append(torch.stack([*row.values()])[:3])
    torch.testing.assert_close(found[0], found[1], rtol=0.05, atol=0.02)


def test_average_follows_the_weights():
    new, old = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    new.weight.data[:], old.weight.data[:] = 1, 0
    new.running_mean[:], new.num_batches_tracked[...] = 4, 7
    gan.update_average(old, new, 0.75)
    assert old.weight.tolist() == [0.25, 0.25] and old.running_mean.tolist() == [1, 1]
    gan.update_average(old, new, 0)   # --ema 0
    assert all(torch.equal(a, b) for a, b in zip(old.state_dict().values(),
                                                 new.state_dict().values(), strict=True))


def test_real_batches_are_padded_and_colour_is_mirrored():
    x = torch.arange(28 * 28).view(1, 1, 28, 28).remainder(256).byte()
    grey = Data("grey", x, torch.tensor([3]), x, torch.tensor([3]), [])
    images, y = gan.real_batch(grey, args("--batch-size=64"))
    assert images.shape == (64, 1, 32, 32) and y.tolist() == [3] * 64
    assert (images == images[0]).all()   # a mirrored digit is none
    assert (images[:, :, :2] == -1).all()
    assert images[0, 0, 2, 3].item() == pytest.approx(-1 + 2 / 255)
    x = x.repeat(1, 3, 1, 1)
    colour = grey._replace(x_train=x)
    left, right = images[0, 0], images[0, 0].flip(1)
    images, _ = gan.real_batch(colour, args("--batch-size=64"))
    mirrored = [torch.equal(image[0], right) for image in images]
    assert 10 < sum(mirrored) < 54
    assert all(torch.equal(image[0], left) for image, other in zip(images, mirrored, strict=True)
               if not other)
    images, _ = gan.real_batch(colour, args("--batch-size=64", "--no-flip"))
    assert all(torch.equal(image[0], left) for image in images)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder to run in, so that one classifier of digits serves all the runs."""
    return tmp_path_factory.mktemp("gan")


@pytest.fixture(autouse=True)
def _there(here, monkeypatch):
    monkeypatch.chdir(here)


@pytest.fixture(scope="module", params=LOSSES)
def gan_run(request, here):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        folder = here / request.param
        return request.param, folder, *gan.main(loss=request.param, out=folder, **QUICK)


def log(folder):
    with open(folder / "log.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_run_folder(gan_run):
    loss, folder, model, rows = gan_run
    assert list(rows[0]) == ["iteration", "seconds", "lr", "d_loss", "g_loss", "d_real", "d_fake",
                             "d_accuracy", "fid"]
    assert [row["iteration"] for row in rows] == [6, 12]
    assert rows[0]["lr"] == pytest.approx(1e-3) and rows[1]["lr"] == pytest.approx(5e-4)
    assert (rows[0]["d_accuracy"] is None) == (loss == "wgan-gp")
    names = {file.name for file in folder.iterdir()}
    assert names == {"args.txt", "log.csv", "evaluation.jsonl", "checkpoint.pt", "best.pt",
                     "checkpoint_012.pt", "curves.png", "fid.png"} | {
        f"{kind}_{n}.png" for kind in ("sample", "interpolation") for n in ("006", "012")}
    lines = [json.loads(line) for line in (folder / "evaluation.jsonl").read_text().splitlines()]
    assert [line["fid_classifier_297"] for line in lines] == \
        [pytest.approx(row["fid"], rel=1e-4) for row in rows]
    assert all(0 < line["fid_classifier_297_floor"] < 5 < line["fid_classifier_297"]
               and sum(line["class_counts_1000"]) == 1000 for line in lines)
    best = torch.load(folder / "best.pt", weights_only=True)
    assert best["epoch"] == min(rows, key=lambda row: row["fid"])["iteration"]
    with torch.no_grad():   # what is returned is the average that the checkpoint holds
        stored = torch.load(folder / "checkpoint.pt", weights_only=True)["ema"]
    assert all(torch.equal(stored[name], part) for name, part in model.state_dict().items())


def test_resume_and_replay_are_bit_exact(gan_run, tmp_path, monkeypatch):
    loss, folder, *_ = gan_run
    gan.main([f"@{folder / 'args.txt'}"], out=tmp_path / "replay")
    assert log(tmp_path / "replay") == log(folder)
    finish = gan.save_epoch

    def interrupted(*arguments):
        finish(*arguments)
        raise KeyboardInterrupt
    monkeypatch.setattr(gan, "save_epoch", interrupted)
    with pytest.raises(SystemExit) as stop:
        gan.main([f"@{folder / 'args.txt'}"], out=tmp_path / "parts")
    assert stop.value.code == 130 and len(log(tmp_path / "parts")) == 1
    monkeypatch.setattr(gan, "save_epoch", finish)
    gan.main(resume=tmp_path / "parts")
    assert log(tmp_path / "parts") == log(folder)
    measured = (tmp_path / "parts" / "evaluation.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in measured] == [6, 12]
    whole, parts = (torch.load(path / "checkpoint.pt", weights_only=True)
                    for path in (folder, tmp_path / "parts"))
    for name in ("generator", "discriminator", "ema"):
        assert all(torch.equal(whole[name][key], parts[name][key]) for key in whole[name])
    for name in ("g_optimizer", "d_optimizer"):
        for i, state in whole[name]["state"].items():
            assert all(torch.equal(state[key], parts[name]["state"][i][key]) for key in state)


def test_average_draws_everything_and_the_best_is_kept(tmp_path, monkeypatch):
    """With distances that are made up: 5, 1, 3, 4."""
    distances, drawn = iter([5., 1., 3., 4.]), []
    monkeypatch.setattr(gan, "fid_meter", lambda *_, **__: ("fid_classifier_10", None, 1.0))
    monkeypatch.setattr(gan, "classifier", None)
    monkeypatch.setattr(gan, "measure", lambda model, *_: drawn.append(model) or next(distances))
    monkeypatch.setattr(gan, "save_figures", lambda model, *_: drawn.append(model))
    monkeypatch.setattr(gan, "classifies", lambda _: False)
    average, _ = gan.main(out=tmp_path / "run", loss="wgan-gp",
                          **QUICK | {"iterations": 16, "eval_every": 4, "save_every": 2})
    assert len(drawn) == 8 and all(model is average for model in drawn)
    last, best = (torch.load(tmp_path / "run" / f"{name}.pt", weights_only=True)
                  for name in ("checkpoint", "best"))
    assert best["epoch"] == 8 and last["args"]["critic_steps"] == 5
    for name in ("d_scheduler", "g_scheduler"):   # 16 steps and 3, down to 0
        assert last[name]["_last_lr"] == [pytest.approx(0, abs=1e-9)]
    kept = {file.name for file in (tmp_path / "run").glob("checkpoint_*")}
    assert kept == {"checkpoint_008.pt", "checkpoint_016.pt"}   # every second measurement


def test_figures_have_a_class_a_row_a_style_a_column_and_curves_by_name(tmp_path, monkeypatch):
    generator, *_ = pair(classes=10)
    asked, picture, panels = [], generator.picture, {}
    monkeypatch.setattr(generator, "picture", lambda z, y: asked.append((z, y)) or picture(z, y))
    monkeypatch.setattr(gan, "save_curves", lambda path, rows, lines, unit: panels.update(lines))
    monkeypatch.setattr(gan, "read_log", lambda _: [])
    flags = args("--conditional", "--span=2.5")
    gan.save_figures(generator, load_data("digits"), tmp_path, 1, flags)
    (z, y), (plane, _) = asked
    assert plane[:, :2].min() == -2.5 and plane[:, :2].max() == 2.5
    assert panels["output of the discriminator"] == {"fake images": "d_fake",
                                                     "real images": "d_real"}
    assert y.view(10, 8).tolist() == [[digit] * 8 for digit in range(10)]
    assert all(torch.equal(row, z[:8]) for row in z.split(8)) and not torch.equal(z[0], z[1])


def test_distances_of_a_subset_are_those_of_the_data_set(tmp_path):
    """--train-size changes neither the features nor the floor, in gan.py as in evaluate.py."""
    gan.main(out=tmp_path / "run", train_size=100, **QUICK)
    first, *_ = (tmp_path / "run" / "evaluation.jsonl").read_text().splitlines()
    found = evaluate.main([str(tmp_path / "run")], metrics="fid", out="results", device="cpu")
    name = "fid_classifier_297_floor"
    assert json.loads(first)[name] == pytest.approx(found[name], rel=1e-4)


def test_eval_every_0_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(gan, "fid_meter", None)   # a call would fail
    monkeypatch.setattr(gan, "classifier", None)
    _, rows = gan.main(out=tmp_path / "run", conditional=True, **QUICK | {"eval_every": 0})
    assert len(rows) == 1 and rows[0]["iteration"] == 12 and rows[0]["fid"] is None
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert names == {"args.txt", "log.csv", "checkpoint.pt", "checkpoint_012.pt", "curves.png",
                     "sample_012.png", "interpolation_012.png"}


def test_a_narrow_gan_learns_where_the_ink_is(tmp_path):
    """Digits are bright in the middle and dark at the border; so are samples after a minute."""
    model, _ = gan.main(out=tmp_path / "run", dataset="digits", width=8, iterations=150,
                        batch_size=32, lr=2e-3, eval_every=0, loss="lsgan", quiet=True,
                        device="cpu")
    data = load_data("digits")
    flags = args()
    flags.latent = 128
    found = torch.cat([*gan.draw(model, data, flags, 100)]).mean((0, 1))
    real = (data.x_test / 255).mean((0, 1))
    both = torch.corrcoef(torch.stack([found.flatten(), real.flatten()]))[0, 1]
    assert 0.4 < both < 0.999, both


@pytest.mark.parametrize("flags, named", [
    ("--loss hinge", "--loss: invalid choice"),
    ("--loss wgan-gp --norm batch", "--norm none"),
    ("--loss wgan-gp --compile", "--compile cannot"),
    ("--critic-steps 0", "--critic-steps: must be at least 1"),
    ("--critic-steps 5 --iterations 4", "raise"),
    ("--ema 1", "--ema must be below 1"),
    ("--latent 1", "--latent: must be at least 2"),
    ("--dataset digits --image-size 64", "--image-size 32"),
    ("--dataset digits --fid-features /no/such.pth", "--fid-features /no/such.pth"),
])
def test_errors(flags, named, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        gan.main(flags.split(), out=tmp_path / "run")
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1 and named in line


def test_conditional_needs_labels(capsys, tmp_path, npz):
    import numpy as np
    rng = np.random.default_rng(0)
    file = npz(x_train=rng.integers(0, 256, (20, 32, 32), np.uint8), y_train=None,
               x_test=rng.integers(0, 256, (7, 32, 32), np.uint8), y_test=None)
    with pytest.raises(SystemExit) as stop:
        gan.main(dataset=file, conditional=True, out=tmp_path / "run")
    assert stop.value.code == 2 and "--conditional needs labels" in capsys.readouterr().err


def test_a_number_that_is_not_finite_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        gan.main(out=tmp_path / "run", **QUICK | {"lr": 1e30})
    assert stop.value.code == 1
    assert "is not finite before iteration" in capsys.readouterr().err


def test_warnings_in_words(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gan, "interval_means", lambda *_: dict(
        d_loss=0., g_loss=9., d_real=1., d_fake=0., d_accuracy=0.995))
    flags = QUICK | {"quiet": False}
    gan.main(out=tmp_path / "run", **flags)
    printed = capsys.readouterr().out
    assert "warning: the discriminator is always right" in printed
    assert "warning: no sample of 1,000 is of class" in printed   # 12 steps are too few for all
    shutil.rmtree(tmp_path / "run")
