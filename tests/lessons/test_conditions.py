"""Claim: a condition is a vector, of which the label, one-hot, is a special case; an angle is told
as its cosine and sine. What the model is told is what the image was turned by.
"""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small import random_data, vae_args
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

import cvae
import gan
import metrics
import run
import vae
from common import Condition, above_half, decode_numbers, encode_values
from readers import load_data, turn
from tools import angles

pytestmark = pytest.mark.usefixtures("no_plots")

SMALL = {"hidden": 8, "latent": 3, "epochs": 1, "quiet": True, "device": "cpu"}
ANGLE = Condition("angle", "angle", -90.0, 90.0)
SLANT = Condition("slant", "number", -1.0, 3.0, 1.0, 0.5)


# -------------------------------------------------------------------------------------- turning

def test_a_turn_by_0_changes_nothing_and_by_90_is_a_quarter_turn():
    x = random_data(shape=(3, 9, 9)).x_train
    n = len(x)
    assert torch.equal(turn(x, torch.zeros(n)), x)
    assert torch.equal(turn(x, torch.full((n,), 90.0)), x.rot90(1, (2, 3)))   # to the left
    assert torch.equal(turn(x, torch.full((n,), -180.0)), x.rot90(2, (2, 3)))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 12, 20)])
def test_a_turn_is_that_of_torchvision(shape):
    x = random_data(shape=shape).x_train
    degrees = torch.linspace(-180, 180, len(x))
    for image, angle, turned in zip(x, degrees.tolist(), turn(x, degrees), strict=True):
        expected = rotate(image, angle, InterpolationMode.BILINEAR)
        assert (turned.int() - expected.int()).abs().max() <= 1   # where it rounds half a level


def degrees(data):
    """The angles that a model is told of the test images, (N,)."""
    return decode_numbers(data.v_test[:, -2:], [ANGLE])[:, 0]


def test_every_image_has_an_angle_of_its_own_which_is_always_the_same():
    data, again = load_data("digits", rotate=60, condition=None), load_data("digits", rotate=60)
    angle = degrees(data)
    assert -60 < angle.min() < -55 and 55 < angle.max() < 60
    assert angle.mean().abs() < 5 and len(angle.unique()) == 297
    assert torch.equal(data.x_test, again.x_test)
    assert data.v_train[:297, -2:].ne(data.v_test[:, -2:]).any(1).all()   # not those of training


def test_the_angle_told_is_the_one_turned_by():
    plain = load_data("digits")
    data = load_data("digits", rotate=180, condition="both", test_size=20)
    whole = load_data("digits", rotate=180, condition="both")
    place = (whole.x_test == data.x_test[7]).flatten(1).all(1).nonzero()[0]
    assert torch.equal(turn(plain.x_test[place], degrees(whole)[place])[0], data.x_test[7])
    assert torch.equal(whole.v_test[place][0], data.v_test[7])   # a subset has the same angles


# ----------------------------------------------------------------------------- what a model is told

def test_numbers_are_told_as_standard_deviations_and_angles_as_cosine_and_sine():
    values = torch.tensor([[1.0, 0.0], [2.0, 90.0], [0.0, -60.0]])
    numbers = encode_values(values, [SLANT, ANGLE])
    expected = torch.tensor([[0, 1, 0], [2, 0, 1], [-2, 0.5, -0.75 ** 0.5]])
    torch.testing.assert_close(numbers, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(decode_numbers(numbers, [SLANT, ANGLE]), values, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("condition", "n_c"), [(None, 12), ("label", 10), ("angle", 2),
                                                ("both", 12), ("none", 0)])
def test_condition_says_what_is_told(condition, n_c):
    data = load_data("digits", rotate=90, condition=condition, train_size=5)
    assert data.n_c == n_c
    if n_c == 12:
        assert torch.equal(data.c_train[:, :10].argmax(1), data.y_train)
        assert torch.equal(data.c_train[:, :10].sum(1), torch.ones(5))
    if condition == "label":
        assert torch.equal(data.c_test, data.y_test)


@pytest.mark.parametrize("arch", ["mlp", "conv"])
def test_the_model_depends_on_the_condition_and_its_twin_does_not(arch):
    torch.manual_seed(0)
    args = vae_args(f"--arch={arch}", shape=(1, 8, 8))
    x, z, c = torch.rand(2, 1, 8, 8), torch.randn(2, 3), torch.randn(2, 4)
    for n_c in (4, 0):
        model = cvae.CVAE((1, 8, 8), n_c, args).eval()
        assert torch.equal(model.encode(x, c)[0], model.encode(x, -c)[0]) == (n_c == 0)
        assert torch.equal(model.decode(z, c).mean, model.decode(z, -c).mean) == (n_c == 0)


def without_seconds(log):
    return [row | {"seconds": 0} for row in log]


def test_a_one_hot_condition_is_the_label(npz, tmp_path):
    """The same log, to the last digit."""
    _, of_label = cvae.main(dataset=npz(), out=tmp_path / "label", **SMALL)
    one_hot = np.eye(4)
    file = npz(y_train=None, y_test=None, c_train=one_hot[np.arange(20) % 4],
               c_test=one_hot[np.arange(7) % 4])
    _, of_vector = cvae.main(dataset=file, out=tmp_path / "vector", **SMALL)
    assert without_seconds(of_label) == without_seconds(of_vector)
    _, other = cvae.main(dataset=npz(y_train=np.zeros(20, int) + np.arange(20) // 10 % 2,
                                     y_test=np.zeros(7, int)), out=tmp_path / "other", **SMALL)
    assert other[0]["train_loss"] != of_label[0]["train_loss"]


def test_vae_is_told_nothing_of_the_angle(tmp_path):
    flags = SMALL | {"dataset": "digits", "train_size": 100, "test_size": 30, "rotate": 45}
    _, alone = vae.main(out=tmp_path / "vae", **flags)
    _, log = cvae.main(out=tmp_path / "cvae", **flags)
    assert log[0]["vae_test_loss"] == alone[0]["test_loss"]
    assert log[0]["test_loss"] != alone[0]["test_loss"]


# ------------------------------------------------------------------------------- in files and runs

def conditions_in(npz, **arrays):
    c = np.random.default_rng(1).normal(5, 2, (27, 2))
    return npz(**{"c_train": c[:20], "c_test": c[20:]} | arrays), c


def test_an_npz_holds_conditions_beside_labels_or_without(npz):
    file, c = conditions_in(npz, conditions=np.array(["slant", "weight"]))
    data = load_data(str(file), condition=None)
    assert data.n_c == 6
    assert [condition.name for condition in data.conditions] == ["slant", "weight"]
    expected = (c - c[:20].mean(0)) / c[:20].std(0)   # by the training set
    torch.testing.assert_close(data.v_test[:, 4:].double(), torch.tensor(expected[20:]),
                               atol=1e-5, rtol=0)
    assert data.conditions[0].low == c[:20, 0].min() and data.conditions[0].high == c[:20, 0].max()
    file, _ = conditions_in(npz, y_train=None, y_test=None)
    assert load_data(str(file), condition=None).n_c == 2
    assert load_data(str(file), condition=None, rotate=10).n_c == 4   # beside the angle


def test_conditions_are_split_with_their_images(npz):
    """Of a file without a test part a tenth of the images is that."""
    x = np.arange(40, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    file = npz(x_train=x, y_train=np.arange(40) % 2, x_test=None, y_test=None,
               c_train=np.arange(40.0))
    data = load_data(str(file), condition="angle")
    assert len(data.x_test) == 4
    for images, v in ((data.x_train, data.v_train), (data.x_test, data.v_test)):
        values = decode_numbers(v, data.conditions)[:, 0]
        torch.testing.assert_close(values, images[:, 0, 0, 0].float(), atol=1e-4, rtol=0)


BAD = np.ones((20, 2))
BAD_NAN = np.where(np.arange(40).reshape(20, 2) == 3, np.nan, 1)


@pytest.mark.parametrize(("arrays", "words"), [
    ({"c_test": None}, ["c_train and c_test", "remove c_train"]),
    ({"c_train": None}, ["c_train and c_test", "remove c_test"]),
    ({"c_train": BAD[:19]}, ["c_train has 19 rows for 20 images"]),
    ({"c_test": BAD[:7, :1]}, ["agree in all but N"]),
    ({"c_train": BAD_NAN}, ["c_train has values that are not finite"]),
    ({"c_train": np.array(["a"] * 20)}, ["must be numbers"]),
    ({"c_train": np.ones((20, 2, 2))}, ["must be numbers"]),
    ({"conditions": np.array(["a"])}, ["`conditions` must have 2 different names"]),
    ({"conditions": np.array(["a", "a"])}, ["2 different names"]),
])
def test_conditions_that_cannot_be_used_are_refused(arrays, words, npz, refused):
    file, _ = conditions_in(npz, **arrays)
    error = refused(cvae, dataset=file, **SMALL)
    for word in [*words, "own.npz"]:
        assert word in error


def test_a_condition_that_is_not_there_is_refused(npz, refused):
    error = refused(cvae, dataset="digits", condition="angle", **SMALL)
    assert "--condition angle needs --rotate" in error
    file, _ = conditions_in(npz, y_train=None, y_test=None)
    assert "has no labels" in refused(cvae, dataset=file, condition="both", **SMALL)
    assert "--rotate" in refused(cvae, dataset="digits", rotate=200, **SMALL)


def test_a_run_remembers_its_conditions(npz, tmp_path):
    file, _ = conditions_in(npz, conditions=np.array(["slant", "weight"]))
    flags = {"dataset": file, "rotate": 30, "out": tmp_path / "run"}
    model, _ = cvae.main(**SMALL | flags)
    checkpoint, _, models = run.load_models(tmp_path / "run")
    assert checkpoint["data"]["n_c"] == 8
    trained, twin = models[""], models["vae_"]
    assert (trained.classes, trained.n_c, twin.n_c) == (4, 8, 0)
    assert [condition.name for condition in trained.conditions] == ["slant", "weight", "angle"]

    # Told a label only, the others are at their means, and the angle is 0.
    expected = torch.tensor([[0, 0, 1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0, 1, 0.0]])
    torch.testing.assert_close(trained.as_condition(torch.tensor([2, 0])), expected)
    trained.values[2] = 90
    z = torch.randn(1, 3)
    asked = torch.tensor([[0, 1, 0, 0, 0, 0, 0, 1.0]])
    found = trained.decode(z, torch.tensor([1])).mean
    torch.testing.assert_close(found, model.decode(z, asked).mean)


def test_a_resumed_run_is_told_the_same(tmp_path, monkeypatch):
    flags = SMALL | {"dataset": "digits", "train_size": 100, "test_size": 30, "rotate": 45,
                     "lr_schedule": "constant"}
    _, whole = cvae.main(out=tmp_path / "whole", **flags | {"epochs": 2})
    cvae.main(out=tmp_path / "run", **flags)
    _, log = cvae.main(resume=tmp_path / "run", epochs=2, quiet=True)
    assert without_seconds(log) == without_seconds(whole)


# ------------------------------------------------------------------------------------- measuring

def test_the_error_of_an_angle_is_the_short_way_round():
    asked = torch.tensor([170.0, -170.0, 10.0])
    assert angles.mean_error(torch.tensor([-170.0, 170.0, -10.0]), asked) == pytest.approx(20)


class Telling:
    """Its codes are the angle itself, or nothing at all."""
    conditions, classes = (), 0

    def __init__(self, data, tells):
        self.number = {image.numpy().tobytes(): v for image, v in
                       zip(torch.cat([data.x_train, data.x_test]) / 255,
                           torch.cat([data.v_train, data.v_test]), strict=True)}
        self.tells = tells
        self.args = SimpleNamespace(binarize="none")

    def encode(self, x, c):
        mu = torch.stack([self.number[image.numpy().tobytes()] for image in x])
        return mu if self.tells else torch.zeros_like(mu), None


def test_what_codes_tell():
    data = load_data("digits", rotate=90, condition="angle", train_size=200, test_size=100)
    told = angles.what_codes_tell(Telling(data, tells=True), data)
    nothing = angles.what_codes_tell(Telling(data, tells=False), data)
    assert told["angle_r2_100"] > 0.999 and abs(nothing["angle_r2_100"]) < 0.1
    assert nothing["mu_accuracy_100"] < 0.3


def test_codes_are_of_images_as_the_model_saw_them():
    data = load_data("digits", rotate=90, condition="angle", train_size=200, test_size=100)
    data = data._replace(x_test=above_half(data.x_test))   # as --binarize makes the test images
    seen = []

    class Model:
        args = SimpleNamespace(binarize="dynamic")
        conditions = ()

        def encode(self, x, c):
            seen.append(x)
            return x.mean((1, 2, 3))[:, None], None

    angles.what_codes_tell(Model(), data)
    train, test = seen
    assert len(train) == 200 and set(train.unique().tolist()) == {0, 1}
    assert abs(train.mean() - data.x_train.float().mean() / 255) < 0.01   # drawn, not rounded
    assert torch.equal(test, data.x_test / 255)


def test_the_tool_on_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)   # the network is kept in results/cache
    monkeypatch.setattr(metrics, "EPOCHS", 2)
    flags = {"dataset": "digits", "train_size": 200, "test_size": 50, "rotate": 45}
    cvae.main(out="run", **SMALL | flags)
    found = angles.main(["run"])
    names = ["angle_error_real_50", "angle_error_50", "angle_r2_50", "mu_accuracy_50",
             "vae_angle_r2_50", "vae_mu_accuracy_50"]
    assert list(found) == names
    assert 0 < found["angle_error_real_50"] < found["angle_error_50"] < 60
    assert (tmp_path / "run" / "evaluation.jsonl").read_text().count("\n") == 1


def test_the_tool_is_for_models_with_an_encoder(tmp_path, capsys):
    gan.main(out=tmp_path / "run", dataset="digits", rotate=45, width=4, batch_size=8, iterations=1,
             eval_every=0, quiet=True, device="cpu")
    with pytest.raises(SystemExit) as stop:
        angles.main([str(tmp_path / "run")])
    assert stop.value.code == 2 and "no encoder; use one of vae.py" in capsys.readouterr().err


def test_whether_a_model_is_told_c_is_seen_from_its_methods():
    """Not from the names of its layers, which a copy may change."""
    model = vae.build((1, 28, 28), 0, vae_args("--hidden=4", "--latent=2"))
    model.classes = torch.nn.Linear(2, 3)
    x = torch.rand(5, 1, 28, 28)
    assert torch.equal(run.encode(model, x, None)[0], model.encode(x)[0])
    assert run.condition_size(model) == 0 and run.model_name(model) == "VAE"
    model = cvae.build((1, 28, 28), 3, vae_args("--hidden=4", "--latent=2"))
    c = torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(run.encode(model, x, c)[0], model.encode(x, c)[0])
    assert run.condition_size(model) == 3 and run.model_name(model) == "CVAE"


def test_the_sample_grid_turns_one_z_from_left_to_right():
    """A class per row; the angles go from the lowest to the highest."""
    data = load_data("digits", rotate=60, condition=None)
    z, c, texts = run.sample_grid(torch.randn(64, 2), data)
    assert texts["columns"] == 7 and texts["names"] == data.classes
    assert (texts["heads"][0], texts["heads"][3], texts["heads"][6]) == ("-60°", "0°", "60°")
    assert c[:, :10].argmax(1).tolist() == [label for label in range(10) for _ in range(7)]
    angles = decode_numbers(c[:, 10:], data.conditions)[:, 0]
    torch.testing.assert_close(angles.float(), torch.linspace(-60, 60, 7).repeat(10))
    assert len(z) == 70 and len(z.unique(dim=0)) == 1


def test_the_sample_grid_of_labels_alone_and_of_angles_alone():
    z = torch.randn(64, 2)
    data = load_data("digits")
    own_z, y, texts = run.sample_grid(z, data)
    assert y.tolist() == [label for label in range(10) for _ in range(8)]
    assert torch.equal(own_z, z[:8].repeat(10, 1)) and texts["names"] == data.classes
    data = load_data("digits", rotate=60, condition="angle")
    own_z, c, texts = run.sample_grid(z, data)
    assert c.shape == (56, 2) and not texts["names"]
    assert torch.equal(own_z, z[:8].repeat_interleave(7, 0))
