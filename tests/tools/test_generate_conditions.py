"""generate.py asks a model for the angles and other conditions that it was told in training."""
import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import cvae
import evaluate
import generate
from readers import load_data
from run import load_models


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """(run folder, run.Trained) of a tiny CVAE of turned digits that is told label and angle."""
    folder = tmp_path_factory.mktemp("turned") / "run"
    cvae.main(out=folder, **TINY | {"rotate": 60, "train_size": 300, "no_baseline": True})
    _, _, models = load_models(folder)
    return folder, models[""]


@pytest.fixture
def grids(monkeypatch):
    """What generate.py draws: [(images, texts), ...]."""
    drawn = []

    def save(path, images, columns, **texts):
        drawn.append((images[..., ::2, ::2], texts))   # enlarged by two
        Image.new("L", (8, 8), len(drawn) % 200).save(path)

    monkeypatch.setattr(generate, "save_grid", save)
    return drawn


def told(label, angle):
    """The vector of a label and an angle in degrees, (1, 12)."""
    angle = torch.tensor(angle).deg2rad()
    return torch.cat([torch.eye(10)[label], angle.cos()[None], angle.sin()[None]])[None]


def test_samples_have_the_angle_asked_for(turned, grids, tmp_path, capsys):
    folder, model = turned
    generate.main([str(folder), "--digit=4", "--angle=30", "--samples=3"], out=tmp_path)
    images, texts = grids[0]
    z = generate.noise(range(3), 2, seed=1)
    torch.testing.assert_close(images, model.model.decode(z, told(4, 30.0).expand(3, -1)).mean)
    assert texts["title"] == "angle 30°" and "samples_4_3_angle30.png" in capsys.readouterr().out
    generate.main([str(folder), "--digit=4", "--samples=3"], out=tmp_path)   # upright
    upright = model.model.decode(z, told(4, 0.0).expand(3, -1)).mean
    torch.testing.assert_close(grids[1][0], upright)


def test_a_sweep_turns_every_class_at_one_z(turned, grids, tmp_path):
    folder, model = turned
    generate.main([str(folder), "--sweep=angle", "--steps=5"], out=tmp_path)
    images, texts = grids[0]
    assert texts["heads"] == ["-60°", "-30°", "0°", "30°", "60°"]
    assert texts["names"] == list("0123456789") and len(images) == 50
    z = generate.noise([0], 2, seed=1)
    for label, column, angle in ((0, 0, -60.0), (7, 3, 30.0), (9, 4, 60.0)):
        expected = model.model.decode(z, told(label, angle)).mean[0]
        torch.testing.assert_close(images[5 * label + column], expected)
    with Image.open(tmp_path / "sweep_angle.gif") as film:
        assert film.n_frames > 20   # there and back


def test_an_interpolation_keeps_the_condition(turned, grids, tmp_path):
    folder, model = turned
    generate.main([str(folder), "--interpolate", "0", "5", "--steps=3"], out=tmp_path)
    images, texts = grids[0]
    data = load_data("digits", rotate=60.0, condition=None)
    c = data.c_test[[0, 5]]
    angle = torch.atan2(c[:, 11], c[:, 10]).rad2deg().round().int().tolist()
    names = [f"{data.y_test[0]}, {angle[0]}°", f"{data.y_test[5]}, {angle[1]}°"]
    assert [name.split(", ", 1)[1] for name in texts["names"]] == [name for name in names
                                                                   for _ in range(2)]
    mu, _ = model.model.encode(data.x_test[[0, 5]] / 255, c)
    row = images.view(4, 5, 1, 28, 28)[2]   # straight, told what the last image is
    torch.testing.assert_close(row[1], model.model.decode(mu[:1], c[1:]).mean[0])
    torch.testing.assert_close(row[3], model.model.decode(mu[1:], c[1:]).mean[0])


def test_conditions_of_a_file_are_set_by_name(npz, grids, tmp_path, refused, no_plots):
    c = np.linspace(0, 4, 27)
    file = npz(y_train=None, y_test=None, c_train=c[:20], c_test=c[20:],
               conditions=np.array(["slant"]))
    folder = tmp_path / "run"
    model, _ = cvae.main(out=folder, **TINY | {"dataset": file, "no_baseline": True})
    generate.main([str(folder), "--set=slant=3", "--samples=2"], out=tmp_path / "out")
    z = generate.noise(range(2), 2, seed=1)
    number = (3 - c[:20].mean()) / c[:20].std()
    expected = model.decode(z, torch.full((2, 1), number, dtype=torch.float32)).mean
    images = grids[0][0][..., ::4, ::4]   # 8x8, enlarged by eight
    torch.testing.assert_close(images, expected)
    generate.main([str(folder), "--sweep=slant"], out=tmp_path / "out")
    assert grids[1][1]["heads"][0] == "0"
    assert "is told slant, and not angle" in refused(generate, [str(folder), "--angle=3"])


@pytest.mark.parametrize("other", [
    {"c_train": np.arange(20) + 9.0},
    {"c_train": None, "c_test": None, "conditions": None},
    {"conditions": np.array(["height"])},
], ids=["another mean", "none", "another name"])
def test_images_with_other_conditions_are_refused(other, npz, tmp_path, capsys, no_plots):
    """A number means another thing where its mean and deviation over the data are others."""
    c = np.linspace(0, 4, 27)
    arrays = {"c_train": c[:20], "c_test": c[20:], "conditions": np.array(["slant"])}
    folder = tmp_path / "run"
    cvae.main(out=folder, condition="both", **TINY | {"dataset": npz(**arrays)})
    evaluate.main([str(folder)], metrics="elbo", out=tmp_path)
    npz(**arrays | other)
    for command in (evaluate, generate):
        flags = {"metrics": "elbo"} if command is evaluate else {"reconstruct": 3}
        with pytest.raises(SystemExit) as stop:
            command.main([str(folder)], out=tmp_path, **flags)
        assert stop.value.code == 2
        assert "no longer matches the checkpoint in its conditions" in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "words"), [
    (["--set=slant=3"], "is told angle, and not slant"),
    (["--sweep=slant"], "--sweep: the CVAE of cvae.py is told angle, and not slant"),
    (["--set=slant"], "must be NAME=VALUE"),
    (["--set=slant=x"], "must be NAME=VALUE"),
    (["--angle=30", "--reconstruct=3"], "--angle cannot be combined with --reconstruct"),
    (["--angle=30", "--sweep=angle"], "--angle cannot be combined with --sweep"),
])
def test_what_is_refused(flags, words, turned, refused):
    assert words in refused(generate, [str(turned[0]), *flags])


def test_a_model_that_is_told_no_angle_says_so(vae_run, refused):
    line = refused(generate, [str(vae_run[0]), "--angle=3"])
    assert "is told no condition, and not angle" in line
