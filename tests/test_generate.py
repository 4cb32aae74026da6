"""generate.py: one test per picture, and what the pictures promise."""
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import cvae
import gan
import generate
import vae
from common import load_checkpoint, load_data


def pictures(path, rows, columns, size=56):
    """A grid as floats (rows, columns, size, size); names at the left are cut off."""
    page = np.array(Image.open(path).convert("L")) / 255
    assert page.shape[0] == 2 + rows * (size + 2)
    page = page[2:, page.shape[1] - columns * (size + 2):]
    return np.stack([[page[r * (size + 2):, c * (size + 2):][:size, :size]
                      for c in range(columns)] for r in range(rows)])


@pytest.fixture(scope="module")
def every_epoch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("every") / "run"
    vae.main(out=folder, **TINY | {"epochs": 3, "save_every": 1})
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["gan", "conditional"])
def gan_run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gan") / "run"
    gan.main(dataset="digits", width=4, latent=8, iterations=4, batch_size=8, eval_every=0,
             conditional=request.param, quiet=True, device="cpu", out=folder)
    return folder


def test_samples_depend_on_their_number_only(cvae_run, tmp_path):
    """Sample i is the same in a grid of 8 and of 80."""
    for show in ("mean", "sample"):
        for n in (8, 80):
            generate.main([str(cvae_run[0])], samples=n, show=show, out=tmp_path / show)
        few = pictures(tmp_path / show / "samples_8.png", 1, 8)
        many = pictures(tmp_path / show / "samples_80.png", 10, 8)
        assert np.abs(few[0] - many[0]).max() <= 1 / 255 + 1e-9
        assert np.abs(many[1] - many[0]).max() > 0.1   # and they are not all alike
    assert torch.equal(generate.noise([5], 3, 1)[0], generate.noise(range(9), 3, 1)[5])
    assert not torch.equal(generate.noise([5], 3, 1), generate.noise([5], 3, 2))


def test_noise_of_pixels_is_not_that_of_z():
    """Of --show sample: the first numbers of a seed are z's, so pixels need a seed of their own."""
    args = SimpleNamespace(arch="mlp", hidden=4, layers=1, latent=4, dropout=0,
                           likelihood="gaussian", sigma="1")
    model = cvae.CVAE((1, 2, 2), args, 0).requires_grad_(False)
    for weight in model.parameters():
        weight.zero_()   # pixels of N(1/2, 1), and the latent's 4 numbers would be the pixels' 4
    z, y = generate.noise(range(100), 4, 0), torch.zeros(100)
    x = generate.draw(model, z, y, "sample", 0).flatten(1)
    assert abs(torch.corrcoef(torch.stack([x.flatten(), z.flatten()]))[0, 1]) < 0.2


def test_samples_follow_the_prior():
    z = generate.noise(range(2000), 4, 0)
    assert z.mean().abs() < 0.05 and abs(z.std() - 1) < 0.03


def test_a_class_of_a_cvae_is_its_label(cvae_run, tmp_path):
    folder, model, _ = cvae_run
    generate.main([str(folder)], label=None, samples=4, out=tmp_path)
    generate.main([str(folder), "--digit", "7", "--samples", "4", "--columns", "4"], out=tmp_path)
    with torch.no_grad():
        expected = model.picture(generate.noise(range(4), 2, 1), torch.full((4,), 7))
    found = pictures(tmp_path / "samples_7_4.png", 1, 4)[0][:, ::2, ::2]
    assert np.abs(found - expected[:, 0].numpy()).max() <= 1 / 255


def test_a_class_of_a_vae_is_a_fitted_gaussian(vae_run):
    """Against a direct computation, and against samples of the mixture that it stands for."""
    run = generate.Run(generate.flags().parse_args([str(vae_run[0])]))
    mean, deviation = run.gaussian(3)
    data = load_data("digits")
    keep = data.y_test == 3
    with torch.no_grad():
        mu, logvar = vae_run[1].encode(data.x_test[keep] / 255)
    second_moment = (mu.square() + logvar.exp()).mean(0)
    torch.testing.assert_close(mean, mu.mean(0))
    torch.testing.assert_close(deviation, (second_moment - mu.mean(0).square()).sqrt())
    torch.manual_seed(0)
    z = mu.repeat(2000, 1) + (0.5 * logvar).exp().repeat(2000, 1) * torch.randn(2000 * len(mu), 2)
    torch.testing.assert_close(z.std(0), deviation, rtol=0.02, atol=0)


def test_classes(cvae_run, vae_run, tmp_path):
    for run in (cvae_run, vae_run):
        generate.main([str(run[0]), "--classes", "--columns", "3"], out=tmp_path)
        assert pictures(tmp_path / "classes.png", 10, 3).shape == (10, 3, 56, 56)


def shown(monkeypatch, folder, *flags):
    """What a command would write: (name, pictures (N, C, H, W), columns, names) of each file."""
    found = []
    monkeypatch.setattr(generate.Run, "show", lambda run, name, x, columns, names=():
                        found.append((name, x, columns, names)))
    generate.main([str(folder), *flags])
    return found


@torch.no_grad()
def test_rows_of_a_cvae_are_of_the_classes_in_their_names(cvae_run, monkeypatch):
    folder, model, _ = cvae_run
    data, z = load_data("digits"), generate.noise(range(3), 2, 1)
    (_, x, _, names), = shown(monkeypatch, folder, "--classes", "--columns", "3")
    assert names == data.classes
    for digit, row in enumerate(x.split(3)):
        torch.testing.assert_close(row, model.picture(z, torch.full((3,), digit)))

    planes = shown(monkeypatch, folder, "--manifold", "--steps", "2")
    assert [name for name, *_ in planes] == [f"manifold_{digit}" for digit in range(10)]
    assert not torch.equal(planes[0][1], planes[9][1])

    (_, x, columns, names), = shown(monkeypatch, folder, "--interpolate", "0", "1", "--steps", "3")
    y = data.y_test[[0, 1]]
    mu, _ = model.encode(data.x_test[[0, 1]] / 255, y)
    ways = [(way, label) for label in y.unique().tolist() for way in ("straight", "spherical")]
    for row, name, (way, label) in zip(x.split(columns), names, ways, strict=True):
        assert name == f"{way}, {label}"
        z = getattr(generate, way)(*mu, 3)
        torch.testing.assert_close(row[1:-1], model.picture(z, torch.full((3,), label)))

    monkeypatch.setattr(generate, "most_active", lambda *_: torch.tensor([1, 0]))
    (name, x, columns, names), = shown(monkeypatch, folder, "--traverse", "--steps", "3",
                                       "--digit", "4")
    assert name == "traverse_4" and names == ["z 2", "z 1"]
    for row, name in zip(x.split(columns), names, strict=True):
        z = torch.zeros(3, 2)
        z[:, int(name.removeprefix("z ")) - 1] = torch.tensor([-3., 0., 3.])
        torch.testing.assert_close(row, model.picture(z, torch.full((3,), 4)))
    (_, _, _, names), = shown(monkeypatch, folder, "--reconstruct", "5")
    assert names == ["original", "CVAE", "difference", "VAE", "difference"]


def test_a_rebuilt_run_is_ready_to_draw(cvae_run, tmp_path):
    """In evaluation mode, with every class in turn, drawn pixels if asked for, and the data as the
    model saw them."""
    run = generate.Run(generate.flags().parse_args([str(cvae_run[0]), "--show=sample"]))
    assert not any(part.training for model in run.models.values() for part in model.modules())
    z, y = run.prior(range(12), None)
    assert y.tolist() == [*range(10), 0, 1]
    assert run.draw(z, y).unique().tolist() == [0, 1]
    data = run.data()
    mu, _ = generate.codes(run.model, data)
    run.wish.digits = ["1", "8"]
    for digit, index in zip((1, 8), generate.nearest_to_means(run, data), strict=True):
        own = mu[data.y_test == digit]
        nearest = (own - own.mean(0)).norm(dim=1).min()
        torch.testing.assert_close((mu[index] - own.mean(0)).norm(), nearest)
    vae.main(out=tmp_path / "run", **TINY | {"binarize": "threshold", "epochs": 1})
    run = generate.Run(generate.flags().parse_args([str(tmp_path / "run")]))
    assert run.data().x_test.unique().tolist() == [0, 255]


def test_interpolation(vae_run, cvae_run, tmp_path):
    data = load_data("digits")
    generate.main([str(vae_run[0]), "--interpolate", "0", "5", "--steps", "4"], out=tmp_path)
    rows = pictures(tmp_path / "interpolation_0_5.png", 2, 6)[:, :, ::2, ::2]
    assert np.array_equal(rows[0, 0], data.x_test[0, 0].numpy() / 255)
    assert np.array_equal(rows[1, 5], data.x_test[5, 0].numpy() / 255)
    with torch.no_grad():   # both ways begin and end at the images' own codes
        ends = vae_run[1].picture(vae_run[1].encode(data.x_test[[0, 5]] / 255)[0])[:, 0].numpy()
    for row in rows:
        assert np.abs(row[[1, 4]] - ends).max() <= 1 / 255
    generate.main([str(cvae_run[0]), "--digits", "1", "8"], out=tmp_path)
    name, = (file.name for file in tmp_path.glob("interpolation_*.png") if "_0_5" not in file.name)
    a, b = (int(part) for part in name[14:-4].split("_"))
    assert [data.y_test[a], data.y_test[b]] == [1, 8]
    assert len(pictures(tmp_path / name, 4, 12)) == 4   # two ways of both labels


def test_ways():
    a, b = torch.tensor([3., 0.]), torch.tensor([0., 3.])
    way = generate.spherical(a, b, 7)
    torch.testing.assert_close(way.norm(dim=1), torch.full((7,), 3.))   # the norm is kept
    torch.testing.assert_close(way[3], torch.tensor([3., 3.]) / math.sqrt(2))
    for ends in (way, generate.straight(a, b, 7)):
        torch.testing.assert_close(ends[[0, -1]], torch.stack([a, b]))
    assert generate.straight(a, b, 3)[1].tolist() == [1.5, 1.5]
    assert generate.spherical(a, -a, 3).isfinite().all()


def test_plane_is_the_quantiles_of_the_prior():
    places = generate.plane(4)
    normal = torch.distributions.Normal(0, 1)
    torch.testing.assert_close(normal.cdf(places), torch.tensor([1, 3, 5, 7]) / 8)
    assert generate.plane(3)[1] == 0 and generate.plane(3, (-1, 1)).tolist() == [-1, 0, 1]


def test_manifold(vae_run, cvae_run, tmp_path, capsys):
    generate.main([str(vae_run[0]), "--manifold", "--steps", "3"], out=tmp_path)
    grid = pictures(tmp_path / "manifold.png", 6, 6)
    places = generate.plane(6)
    z = torch.stack([places[5], places[0]])[None]   # right below: z_1 is high, z_2 low
    with torch.no_grad():
        corner = vae_run[1].picture(z)[0, 0].numpy()
    assert np.abs(grid[5, 5][::2, ::2] - corner).max() <= 1 / 255
    generate.main([str(cvae_run[0]), "--uniform", "-1", "1", "--steps", "2"], out=tmp_path)
    assert {f"uniform_{digit}.png" for digit in range(10)} <= {f.name for f in tmp_path.iterdir()}


def test_manifold_and_uniform_go_together(vae_run, tmp_path, capsys):
    for flags in ("--uniform -1 1", "--manifold --uniform -1 1"):
        generate.main([str(vae_run[0]), *flags.split(), "--steps", "2"], out=tmp_path / flags)
        assert [file.name for file in (tmp_path / flags).iterdir()] == ["uniform.png"]


def test_traverse_and_most_active(vae_run, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "load_data", None)   # a call would fail
    generate.main([str(vae_run[0]), "--traverse", "--steps", "7"], out=tmp_path)
    rows = pictures(tmp_path / "traverse.png", 2, 7)
    assert np.abs(rows[0, 3] - rows[1, 3]).max() <= 1 / 255   # both rows pass through z = 0
    decoder = torch.nn.Sequential(torch.nn.Linear(5, 4))   # three latent units and two labels
    decoder[0].weight.data = torch.tensor([1., 3., 2., 9., 9.]).repeat(4, 1)
    model = SimpleNamespace(decoder=decoder)
    assert generate.most_active(model, torch.ones(3)).tolist() == [1, 2, 0]
    assert generate.most_active(model, torch.tensor([1., 1., 2.])).tolist() == [2, 1, 0]


def test_reconstruct_shows_the_absolute_difference(cvae_run, tmp_path):
    x = load_data("digits").x_test[[0, 74, 148, 222, 296], 0].numpy()   # from first to last
    generate.main([str(cvae_run[0]), "--reconstruct", "5"], out=tmp_path)
    original, first, gap, second, other = pictures(tmp_path / "reconstruction_of_5.png", 5, 5)
    assert np.array_equal(original[:, ::2, ::2], x / 255)
    assert np.abs(np.abs(original - first) - gap).max() <= 1 / 255 + 1e-9
    assert np.abs(np.abs(original - second) - other).max() <= 1 / 255 + 1e-9
    assert not np.array_equal(first, second)
    generate.main([str(cvae_run[0]), "--reconstruct", "5", "--columns", "3"], out=tmp_path)
    blocks = pictures(tmp_path / "reconstruction_of_5.png", 10, 3)   # five rows below five
    assert np.array_equal(blocks[6], np.stack([*first[3:], np.ones((56, 56))]))


@pytest.mark.parametrize("flag, name", [(("--tsne", "60"), "tsne_60.png"), (("--pca",), "pca.png"),
                                        (("--scatter",), "scatter.png")])
def test_maps(cvae_run, tmp_path, flag, name, capsys, scatters):
    generate.main([str(cvae_run[0]), *flag], out=tmp_path)
    assert capsys.readouterr().out.strip() == str(tmp_path / name)
    page = np.array(Image.open(tmp_path / name).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(page, axis=0)) > 10   # it is not empty
    y = load_data("digits").y_test   # every dot has the colour of its class
    y = y[torch.linspace(0, 296, 60).long()] if "--tsne" in flag else y
    assert scatters and all(torch.equal(colours, y) for _, _, colours in scatters)


def test_gifs(every_epoch, vae_run, tmp_path, capsys):
    generate.main([str(every_epoch), "--gif"], out=tmp_path)
    for name in ("samples.gif", "latent.gif"):
        assert Image.open(tmp_path / name).n_frames == 3
    generate.main([str(every_epoch)], out=tmp_path)   # the last frame is the last epoch's samples
    film, page = Image.open(tmp_path / "samples.gif"), Image.open(tmp_path / "samples_64.png")
    film.seek(2)
    film, page = (np.array(picture.convert("L"), dtype=float) for picture in (film, page))
    assert np.abs(film - page).max() < 16 and len(np.unique(film)) > 50   # in as many greys
    generate.main([str(every_epoch), "--interpolate", "0", "5", "--gif"], out=tmp_path)
    assert Image.open(tmp_path / "interpolation_0_5.gif").n_frames >= 6   # like ones may be merged
    capsys.readouterr()
    with pytest.raises(SystemExit):
        generate.main([str(vae_run[0]), "--gif"], out=tmp_path)
    assert "--save-every 1" in capsys.readouterr().err


def test_gan(gan_run, tmp_path, capsys):
    generate.main([str(gan_run), "--samples", "6", "--columns", "3"], out=tmp_path)
    assert pictures(tmp_path / "samples_6.png", 2, 3).shape == (2, 3, 56, 56)
    generate.main([str(gan_run), "--interpolate", "1", "2", "--steps", "5"], out=tmp_path)
    assert len(pictures(tmp_path / "interpolation_1_2.png", 2, 5)) == 2
    shutil.copyfile(gan_run / "checkpoint_004.pt", tmp_path / "checkpoint_002.pt")
    shutil.copyfile(gan_run / "checkpoint_004.pt", tmp_path / "checkpoint_004.pt")
    shutil.copyfile(gan_run / "checkpoint.pt", tmp_path / "checkpoint.pt")
    generate.main([str(tmp_path), "--gif"], out=tmp_path)   # of what is kept
    assert "p(x|z)" in refusal(capsys, gan_run, "--show", "sample")
    conditional = load_checkpoint(gan_run)["args"]["conditional"]
    if conditional:
        generate.main([str(gan_run), "--classes"], out=tmp_path)
        generate.main([str(gan_run), "--digit", "9", "--samples", "4"], out=tmp_path)
    else:
        assert "--conditional" in refusal(capsys, gan_run, "--digit", "9")
    assert "which can make --" in refusal(capsys, gan_run, "--manifold")


def refusal(capsys, run, *flags):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        generate.main([str(run), *flags])
    line = capsys.readouterr().err
    assert stop.value.code == 2 and line.count("\n") == 1
    return line


@pytest.mark.parametrize("flags, named", [
    (("--digit", "11"), "the classes are 0, 1, 2"),
    (("--interpolate", "0", "999"), "the test images are 0 to 296"),
    (("--digits", "1", "x"), "--digits x"),
    (("--reconstruct", "298"), "there are 297"),
    (("--tsne", "3"), "--tsne 3"),
    (("--pca", "--classes"), "not allowed with"),
    (("--pca", "--gif"), "--gif goes alone"),
    (("--pca", "--uniform", "0", "1"), "--uniform goes with --manifold"),
    (("--uniform", "nan", "1"), "--uniform"),
    (("--manifold", "--digit", "3"), "--class of this model goes with --samples"),
    (("--out", "/dev/null/x"), "--out /dev/null/x"),
])
def test_errors(vae_run, flags, named, capsys):
    assert named in refusal(capsys, vae_run[0], *flags)


def test_pictures_that_the_data_do_not_allow(npz, tmp_path, capsys):
    y_test = np.array([0, 1, 2, 0, 1, 2, 0])
    flags = TINY | {"dataset": npz(y_test=y_test), "epochs": 1}
    vae.main(out=tmp_path / "one", **flags | {"latent": 1})
    vae.main(out=tmp_path / "run", **flags)
    assert "--tsne needs a z of two" in refusal(capsys, tmp_path / "one", "--tsne", "6")
    assert "try --samples 64" in refusal(capsys, tmp_path / "one", "--scatter")
    assert "--digits 3: no test image" in refusal(capsys, tmp_path / "run", "--digits", "0", "3")
    assert "is of class 3" in refusal(capsys, tmp_path / "run", "--digit", "3")
    npz(classes=np.array(["a", "b", "c", "d", "e"]))
    assert "bring the data back" in refusal(capsys, tmp_path / "run", "--interpolate", "0", "4")


def test_a_picture_of_no_run(capsys):
    assert "no checkpoint" in refusal(capsys, "/no/such/run")


def test_an_autoencoder_draws_from_its_own_codes(tmp_path):
    """It has no prior: a Gaussian fitted to its codes stands in."""
    vae.main(out=tmp_path / "run", **TINY | {"beta": 0})
    run = generate.Run(generate.flags().parse_args([str(tmp_path / "run")]))
    z, _ = run.prior(range(500), None)
    mu, _ = generate.codes(run.model, run.data())
    torch.testing.assert_close(z.std(0), mu.std(0), rtol=0.15, atol=0)
    generate.main([str(tmp_path / "run"), "--traverse", "--steps", "3"], out=tmp_path)
    rows = pictures(tmp_path / "traverse.png", 2, 3)   # they cross at the mean code
    middle = run.model.picture(mu.mean(0, keepdim=True), torch.tensor([0]))[0, 0].numpy()
    assert np.abs(rows[:, 1, ::2, ::2] - middle).max() <= 1 / 255


def test_scale_enlarges(vae_run, tmp_path):
    for scale in (1, 2):
        generate.main([str(vae_run[0])], samples=3, scale=scale, out=tmp_path / str(scale))
    assert pictures(tmp_path / "2" / "samples_3.png", 1, 3, 112).shape == (1, 3, 112, 112)
    assert pictures(tmp_path / "1" / "samples_3.png", 1, 3).shape == (1, 3, 56, 56)


def test_a_class_of_any_name(cvae_run, tmp_path):
    """T-shirt/top is no path."""
    checkpoint = load_checkpoint(cvae_run[0])
    checkpoint["data"]["classes"][0] = "T-shirt/top or so"
    torch.save(checkpoint, tmp_path / "own.pt")
    for flags in (["--class", "T-shirt/top or so"], ["--manifold", "--steps", "2"]):
        generate.main([str(tmp_path / "own.pt"), *flags], out=tmp_path)
    assert {"samples_T-shirt-top-or-so_64.png", "manifold_T-shirt-top-or-so.png"} <= {
        file.name for file in tmp_path.iterdir()}


def test_models_of_a_file_alone(cvae_run, tmp_path, monkeypatch):
    """A checkpoint file that lies in no run folder draws into pictures/, without any data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.pt").write_bytes((cvae_run[0] / "checkpoint.pt").read_bytes())
    monkeypatch.setattr(generate, "load_data", None)   # a call would fail
    generate.main(["own.pt", "--digit", "9"])
    assert (tmp_path / "pictures" / "samples_9_64.png").exists()
