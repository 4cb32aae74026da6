"""generate.py: what each kind of image promises, against the model itself."""
import math
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from PIL import Image
from torch.distributions import Independent, Laplace

import common
import gan
import generate
import run
import vae
from readers import load_data


def grid(path, rows, columns, size=56):
    """A grid as floats (rows, columns, size, size); texts at the left and above are cut off."""
    page = np.array(Image.open(path).convert("L")) / 255
    assert (page.shape[0] - 2) // (size + 2) in (rows, rows + 1)   # there may be lines of text
    page = page[page.shape[0] - rows * (size + 2):, page.shape[1] - columns * (size + 2):]
    images = np.zeros((rows, columns, size, size))
    for row in range(rows):
        for column in range(columns):
            top, left = row * (size + 2), column * (size + 2)
            images[row, column] = page[top:top + size, left:left + size]
    return images


def close(found, expected):
    """Whether images of a file (..., 56, 56) are the model's, (..., 28, 28), to a grey level."""
    return np.abs(found[..., ::2, ::2] - np.asarray(expected)).max() <= 1 / 255


def load(folder, *flags):
    """The Source of a command, and its flags."""
    args = run.parse(generate.flags(), [str(folder), *flags], {})
    return generate.Source(args), args


@pytest.fixture
def shown(monkeypatch):
    """A function of a command: (name, images, columns, texts) of every file it would write."""
    def draw(folder, *flags):
        found = []
        monkeypatch.setattr(generate, "save_images",
                            lambda args, name, images, columns, **texts:
                            found.append((name, images, columns, texts)))
        generate.main([str(folder), *flags])
        return found
    return draw


@pytest.fixture(scope="module")
def gan_runs(tmp_path_factory):
    """{conditional: run folder} of two tiny GANs."""
    folders = {}
    for conditional in (False, True):
        folders[conditional] = tmp_path_factory.mktemp("gan") / "run"
        gan.main(dataset="digits", width=4, latent=8, iterations=4, batch_size=8, eval_every=0,
                 conditional=conditional, quiet=True, device="cpu", out=folders[conditional])
    return folders


@pytest.fixture
def copy(vae_run, tmp_path, monkeypatch):
    """A function of a name and changed lines: the run of a copy of vae.py, with a model's weights.
    """
    def make(name, *changes):
        source = (ROOT / "vae.py").read_text(encoding="utf-8")
        for old, new in changes:
            assert old in source
            source = source.replace(old, new)
        file = tmp_path / f"{name}.py"
        file.write_text(source, encoding="utf-8")
        monkeypatch.setattr(run, "ROOT", tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
        checkpoint = run.load_checkpoint(vae_run[0])
        changed = {"script": name, "source": run.source_hash(file)}
        (tmp_path / "run").mkdir()
        torch.save(checkpoint | changed, tmp_path / "run" / "checkpoint.pt")
        return tmp_path / "run"
    return make


# ---------------------------------------------------------------------------- samples and classes

def test_a_sample_depends_on_its_number_only(vae_run, cvae_run, tmp_path):
    """Sample i is the same in a grid of 8 and of 80, and so are its drawn pixels."""
    for folder in (vae_run[0], cvae_run[0]):
        for show in ("mean", "sample"):
            for n in (8, 80):
                generate.main([str(folder)], samples=n, show=show, out=tmp_path)
            few = grid(tmp_path / "samples_8.png", 1, 8)
            many = grid(tmp_path / "samples_80.png", 10, 8)
            assert np.abs(few[0] - many[0]).max() <= 1 / 255 + 1e-9
            assert np.abs(many[1] - many[0]).max() > 0.1   # and they are not all alike
    assert torch.equal(generate.noise([5], 3, 1)[0], generate.noise(range(9), 3, 1)[5])
    assert not torch.equal(generate.noise([5], 3, 1), generate.noise([5], 3, 2))


def test_z_follows_the_prior_and_pixels_have_noise_of_their_own():
    """The first numbers of a seed are z's: with the same seed the pixels would repeat them."""
    z = generate.noise(range(2000), 4, 0)
    assert z.mean().abs() < 0.05 and abs(z.std() - 1) < 0.03
    args = vae.flags().parse_args(["--latent=4", "--hidden=4", "--layers=1", "--sigma=1",
                                   "--likelihood=gaussian"])
    model = vae.VAE((1, 2, 2), args).requires_grad_(False)
    for weight in model.parameters():
        weight.zero_()   # pixels of N(1/2, 1): as many numbers as the latent has
    drawn = SimpleNamespace(show="sample", seed=0)
    x = generate.draw(run.Trained(model, "VAE", args), z[:100], torch.zeros(100), drawn)
    correlation = torch.corrcoef(torch.stack([x.flatten(), z[:100].flatten()]))[0, 1]
    assert abs(correlation) < 0.2 and x.min() >= 0 and x.max() <= 1


def test_any_other_likelihood_draws_by_itself():
    p = Independent(Laplace(torch.full((1, 1, 40, 40), 0.5), 0.1), 3)
    state = torch.get_rng_state()
    x = generate.draw_pixels(p, 3)
    assert torch.equal(x, generate.draw_pixels(p, 3))
    assert not torch.equal(x, generate.draw_pixels(p, 4))
    assert abs((x - 0.5).abs().mean() - 0.1) < 0.02 and x.min() >= 0
    assert torch.equal(state, torch.get_rng_state())


@torch.no_grad()
def test_a_class_of_a_cvae_is_its_label(cvae_run, tmp_path):
    folder, model, _ = cvae_run
    generate.main([str(folder), "--digit", "7", "--samples", "4", "--columns", "4"], out=tmp_path)
    expected = model.decode(generate.noise(range(4), 2, 1), torch.full((4,), 7)).mean
    assert close(grid(tmp_path / "samples_7_4.png", 1, 4)[0], expected[:, 0])
    source, _ = load(folder)
    _, y = generate.draw_codes(source, range(12), None, 1)
    assert y.tolist() == [*range(10), 0, 1]   # without a class every one in turn


def test_a_class_of_a_vae_is_a_fitted_gaussian(vae_run, tmp_path):
    """Against a direct computation, and against samples of the mixture that it stands for."""
    source, _ = load(vae_run[0])
    gaussian = generate.class_gaussian(source, 3)
    data = load_data("digits")
    with torch.no_grad():
        mu, logvar = vae_run[1].encode(data.x_test[data.y_test == 3] / 255)
    second_moment = (mu.square() + logvar.exp()).mean(0)
    torch.testing.assert_close(gaussian.mean, mu.mean(0))
    torch.testing.assert_close(gaussian.variance, second_moment - mu.mean(0).square(),
                               rtol=1e-4, atol=0)
    torch.manual_seed(0)
    z = mu.repeat(2000, 1) + (0.5 * logvar).exp().repeat(2000, 1) * torch.randn(2000 * len(mu), 2)
    torch.testing.assert_close(z.T.cov(), gaussian.covariance_matrix, rtol=0.05, atol=0.02)
    assert gaussian.covariance_matrix[0, 1].abs() > 0.1   # so units one by one would not do
    z, _ = generate.draw_codes(source, range(2000), 3, 1)
    torch.testing.assert_close(z.T.cov(), gaussian.covariance_matrix, rtol=0.1, atol=0.05)
    generate.main([str(vae_run[0]), "--classes", "--columns", "3"], out=tmp_path)
    assert grid(tmp_path / "classes.png", 10, 3).shape == (10, 3, 56, 56)


def test_fitted_takes_codes_of_a_cvae_from_where_a_class_has_its_own(cvae_run, tmp_path):
    """And not from the prior."""
    folder = str(cvae_run[0])
    source, _ = load(folder, "--fitted")
    z, y = generate.draw_codes(source, range(500), 7, 1)
    mu, _ = source.posteriors
    assert (y == 7).all()
    of_class = mu[source.data.y_test == 7].mean(0)
    torch.testing.assert_close(z.mean(0), of_class, rtol=0, atol=0.15)
    for flag in ("--classes", "--digit=7"):
        generate.main([folder, "--fitted", flag], out=tmp_path)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"classes_fitted.png", "samples_7_64_fitted.png"}


@pytest.mark.parametrize("latent", [1, 3])
def test_a_gaussian_is_fitted_to_fewer_images_than_units(latent):
    """Of a single image it is a point."""
    point = common.fitted_gaussian(torch.ones(1, latent))
    torch.testing.assert_close(point.sample((9,)), torch.ones(9, latent))
    two = common.fitted_gaussian(torch.tensor([[0.0] * latent, [2.0] * latent]))
    torch.testing.assert_close(two.stddev, torch.ones(latent))


def test_an_autoencoder_draws_from_a_gaussian_of_its_codes(tmp_path):
    vae.main(out=tmp_path / "run", **TINY | {"beta": 0})
    source, _ = load(tmp_path / "run")
    z, _ = generate.draw_codes(source, range(500), None, 1)
    mu, _ = source.posteriors
    torch.testing.assert_close(z.std(0), mu.std(0), rtol=0.15, atol=0)
    torch.testing.assert_close(z.mean(0), mu.mean(0), rtol=0.2, atol=0.2)
    generate.main([str(tmp_path / "run"), "--traverse", "--steps", "3"], out=tmp_path)
    rows = grid(tmp_path / "traverse.png", 2, 3)   # in the middle a unit has its mean
    units = generate.most_active(source.model, mu.std(0)).tolist()
    for row, unit in zip(rows, units, strict=True):
        z = mu[:1].clone()                         # the other one stays as in the first image
        z[0, unit] = mu[:, unit].mean()
        assert close(row[1], source.model.images(z, torch.tensor([0]))[0, 0])


# --------------------------------------------------------------------------------- ways and planes

@torch.no_grad()
def test_rows_of_a_cvae_are_of_the_classes_in_their_names(cvae_run, shown):
    folder, model, _ = cvae_run
    data = load_data("digits")
    z = generate.noise(range(3), 2, 1)
    _, images, columns, texts = shown(folder, "--classes", "--columns", "3")[0]
    assert texts["names"] == data.classes
    for digit, row in enumerate(images.split(columns)):
        torch.testing.assert_close(row, model.decode(z, torch.full((3,), digit)).mean)

    planes = shown(folder, "--manifold", "--steps", "2")
    assert [plane[0] for plane in planes] == [f"manifold_{digit}" for digit in range(10)]
    assert not torch.equal(planes[0][1], planes[9][1])
    assert planes[9][3]["title"] == ("class 9: z 1 from -1.15 to 1.15 (to the right), z 2 from "
                                     "-1.15 to 1.15 (upwards) by the quantiles of the prior")
    assert planes[9][3]["heads"] == ["-1.15", "-0.32", "0.32", "1.15"]
    assert planes[9][3]["names"] == ["1.15", "0.32", "-0.32", "-1.15"]   # upwards

    _, images, columns, texts = shown(folder, "--interpolate", "0", "1", "--steps", "3")[0]
    names = texts["names"]
    y = data.y_test[[0, 1]]
    mu, _ = model.encode(data.x_test[[0, 1]] / 255, y)
    rows = list(images.split(columns))
    for label in y.unique().tolist():
        for way in (generate.straight, generate.spherical):
            assert names.pop(0) == f"{way.__name__}, {label}"
            expected = model.decode(way(mu[0], mu[1], 3), torch.full((3,), label)).mean
            torch.testing.assert_close(rows.pop(0)[1:-1], expected)
    assert names == [] and rows == []


@torch.no_grad()
def test_traverse_moves_one_unit_of_a_test_image_in_each_row(cvae_run, shown, monkeypatch, capsys):
    folder, model, _ = cvae_run
    data = load_data("digits")
    first_4 = (data.y_test == 4).nonzero()[0].item()
    mu, _ = model.encode(data.x_test[[first_4]] / 255, torch.tensor([4]))
    drawn = generate.noise([0], 2, 1)
    monkeypatch.setattr(generate, "most_active", lambda *_: torch.tensor([1, 0]))
    flags = ["--traverse", "--steps", "3", "--digit", "4"]
    for start, taken in ((mu, f"test image {first_4}, a 4"), (drawn, "sample 0 of --seed 1")):
        name, images, columns, texts = shown(folder, *flags)[0]
        assert name == "traverse_4" and texts["names"] == ["z 2", "z 1"]
        assert texts["heads"] == ["-3.00", "0.00", "3.00"] and texts["title"].endswith(taken)
        for row, unit in zip(images.split(columns), (1, 0), strict=True):
            z = start.repeat(3, 1)
            z[:, unit] = torch.tensor([-3.0, 0.0, 3.0])
            torch.testing.assert_close(row, model.decode(z, torch.full((3,), 4)).mean)
        printed = capsys.readouterr().out
        assert f"from {taken}\n" in printed and ("was not found" in printed) == (start is drawn)
        monkeypatch.setattr(generate, "is_at_hand", lambda *_: False)


@torch.no_grad()
def test_span_is_the_plane_of_two_units_around_a_sample(cvae_run, gan_runs, shown):
    for folder, label in ((gan_runs[True], 7), (cvae_run[0], 7)):
        flags = ["--span", "2", "--steps", "3", "--digit", str(label)]
        name, images, columns, texts = shown(folder, *flags)[0]
        assert name == "span_7" and columns == 3
        assert texts["names"] == texts["heads"] == ["-2.00", "0.00", "2.00"]
        source, _ = load(folder)
        z = generate.noise([0], source.latent, 1)
        z[0, :2] = torch.tensor([-2.0, 2.0])   # the last image of the first row
        expected = source.model.images(z, torch.tensor([label]))
        torch.testing.assert_close(images[2:3], expected)


def test_most_active_units_come_first():
    decoder = torch.nn.Sequential(torch.nn.Linear(5, 4))   # three latent units and two labels
    decoder[0].weight.data = torch.tensor([1.0, 3.0, 2.0, 9.0, 0.1]).repeat(4, 1)
    model = SimpleNamespace(model=SimpleNamespace(decoder=decoder), n_c=2)
    assert generate.most_active(model, torch.ones(3)).tolist() == [1, 2, 0]
    assert generate.most_active(model, torch.tensor([1.0, 1.0, 2.0])).tolist() == [2, 1, 0]
    for changed in (None, torch.nn.Sequential(torch.nn.ReLU(), *decoder)):
        model.model.decoder = changed
        assert generate.most_active(model, torch.ones(3)).tolist() == [0, 1, 2]


@torch.no_grad()
def test_interpolation_ends_at_the_images_and_their_codes(vae_run, cvae_run, tmp_path, capsys):
    data = load_data("digits")
    generate.main([str(vae_run[0]), "--interpolate", "0", "5", "--steps", "4"], out=tmp_path)
    path, taken = capsys.readouterr().out.splitlines()
    assert taken == f"from test image 0, a {data.y_test[0]}, to test image 5, a {data.y_test[5]}"
    assert path == str(tmp_path / "interpolation_0_5.png")
    rows = grid(tmp_path / "interpolation_0_5.png", 2, 6)
    mu, _ = vae_run[1].encode(data.x_test[[0, 5]] / 255)
    ends = vae_run[1].decode(mu).mean[:, 0]
    for row in rows:
        assert close(row[[0, 5]], data.x_test[[0, 5], 0] / 255)
        assert close(row[[1, 4]], ends)

    generate.main([str(cvae_run[0]), "--digits", "1", "8"], out=tmp_path / "digits")
    path, taken = capsys.readouterr().out.splitlines()
    assert path == str(tmp_path / "digits" / "interpolation_of_1_8.png")
    assert grid(path, 4, 12).shape[0] == 4   # two ways with either label
    source, _ = load(cvae_run[0])
    mu, _ = source.posteriors
    found = re.fullmatch(r"from test image (\d+), a 1, to test image (\d+), an 8", taken)
    for digit, index in zip((1, 8), found.groups(), strict=True):
        own = mu[data.y_test == digit]
        nearest = (own - own.mean(0)).norm(dim=1).min()
        assert data.y_test[int(index)] == digit
        torch.testing.assert_close((mu[int(index)] - own.mean(0)).norm(), nearest)


def test_ways():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    way = generate.spherical(a, b, 7)
    torch.testing.assert_close(way.norm(dim=1), torch.full((7,), 3.0))   # the length is kept
    torch.testing.assert_close(way[3], torch.tensor([3.0, 3.0]) / math.sqrt(2))
    for ends in (way, generate.straight(a, b, 7)):
        torch.testing.assert_close(ends[[0, -1]], torch.stack([a, b]))
    assert generate.straight(a, b, 3)[1].tolist() == [1.5, 1.5]
    for b in (2 * a, -a):   # no circle is defined
        torch.testing.assert_close(generate.spherical(a, b, 3), generate.straight(a, b, 3))


@torch.no_grad()
def test_manifold_is_the_plane_of_the_quantiles(vae_run, cvae_run, tmp_path):
    places = generate.places_on_axis(4)
    normal = torch.distributions.Normal(0, 1)
    torch.testing.assert_close(normal.cdf(places), torch.tensor([1, 3, 5, 7]) / 8)
    assert generate.places_on_axis(3, (-1, 1)).tolist() == [-1, 0, 1]

    generate.main([str(vae_run[0]), "--manifold", "--steps", "2"], out=tmp_path)
    corner = torch.tensor([[places[3], places[0]]])   # right below: z_1 is high, z_2 low
    page = grid(tmp_path / "manifold.png", 4, 4)
    assert close(page[3, 3], vae_run[1].decode(corner).mean[0, 0])
    for i, flags in enumerate(("--uniform -1 1", "--manifold --uniform -1 1")):
        out = tmp_path / str(i)
        generate.main([str(vae_run[0]), *flags.split(), "--steps", "2"], out=out)
        assert [file.name for file in out.iterdir()] == ["uniform.png"]
        corner = torch.tensor([[1.0, -1.0]])
        page = grid(out / "uniform.png", 4, 4)
        assert close(page[3, 3], vae_run[1].decode(corner).mean[0, 0])


# ------------------------------------------------------------------------- test images, maps, films

def test_reconstruct_shows_the_absolute_difference(cvae_run, tmp_path, shown):
    folder = cvae_run[0]
    x = load_data("digits").x_test[[0, 74, 148, 222, 296], 0] / 255   # from first to last
    generate.main([str(folder), "--reconstruct", "5"], out=tmp_path)
    rows = grid(tmp_path / "reconstruction_of_5.png", 5, 5)
    original, first, first_difference, second, second_difference = rows
    assert close(original, x) and not np.array_equal(first, second)
    assert np.abs(np.abs(original - first) - first_difference).max() <= 1 / 255 + 1e-9
    assert np.abs(np.abs(original - second) - second_difference).max() <= 1 / 255 + 1e-9
    generate.main([str(folder), "--reconstruct", "5", "--columns", "3"], out=tmp_path)
    blocks = grid(tmp_path / "reconstruction_of_5.png", 10, 3)   # five rows below five
    assert np.array_equal(blocks[6, :2], first[3:]) and (blocks[6, 2] == 1).all()
    names = shown(folder, "--reconstruct", "5")[0][3]["names"]
    assert names == ["original", "CVAE", "difference", "VAE", "difference"]


@pytest.mark.parametrize("flags", [["--tsne", "60"], ["--pca"], ["--scatter"]])
def test_every_dot_of_a_map_has_the_colour_of_its_class(flags, cvae_run, tmp_path, capsys,
                                                         monkeypatch):
    from matplotlib.axes import Axes
    scatter, colors, places = Axes.scatter, [], []

    def spy(axes, x, y, **style):
        colors.append(style["c"])
        places.append(torch.stack([torch.as_tensor(x), torch.as_tensor(y)], 1))
        return scatter(axes, x, y, **style)

    monkeypatch.setattr(Axes, "scatter", spy)
    generate.main([str(cvae_run[0]), *flags], out=tmp_path)
    file = tmp_path / f"{'_'.join(flags).removeprefix('--')}.png"
    assert capsys.readouterr().out.strip() == str(file)
    assert len(np.unique(np.array(Image.open(file).convert("RGB")).reshape(-1, 3), axis=0)) > 10
    y = load_data("digits").y_test
    if "--tsne" in flags:
        y = y[torch.linspace(0, 296, 60).long()]
    assert colors and all(torch.equal(color, y) for color in colors)
    mu, _ = load(cvae_run[0])[0].posteriors
    if "--scatter" in flags:
        torch.testing.assert_close(places[0], mu)
    if "--pca" in flags:   # of two dimensions: turned about their mean
        torch.testing.assert_close(torch.pdist(places[0].float()[:50]), torch.pdist(mu[:50]))


@pytest.mark.parametrize("package, flags", [("sklearn", ["--tsne", "9"]), ("sklearn", ["--pca"]),
                                            ("matplotlib", ["--scatter"])])
def test_a_map_names_the_package_it_lacks(package, flags, vae_run, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)   # as if it were not installed
    name = {"sklearn": "scikit-learn"}.get(package, package)
    line = refused(generate, [str(vae_run[0]), *flags], out=tmp_path / "out")
    assert f"pip install {name}" in line and flags[0] in line
    assert list((tmp_path / "out").iterdir()) == []


def test_films_show_every_epoch(vae_run, tmp_path, refused, monkeypatch):
    texts = []
    add_title = common.add_title
    monkeypatch.setattr(common, "add_title", lambda page, title, font:
                        texts.append(title) or add_title(page, title, font))
    folder = tmp_path / "run"
    vae.main(out=folder, **TINY | {"epochs": 3, "save_every": 1})
    generate.main([str(folder), "--gif"], out=tmp_path)
    for name in ("samples.gif", "latent.gif"):
        assert Image.open(tmp_path / name).n_frames == 3
    assert texts == ["epoch 1", "epoch 2", "epoch 3"]   # one on each frame
    generate.main([str(folder)], out=tmp_path)   # the last frame is the last epoch's samples
    film = Image.open(tmp_path / "samples.gif")
    film.seek(2)
    film = np.array(film.convert("L"), dtype=float)
    page = np.array(Image.open(tmp_path / "samples_64.png").convert("L"), dtype=float)
    film = film[-len(page):]   # below its title
    assert np.abs(film - page).max() < 16 and len(np.unique(film)) > 50   # in as many greys
    generate.main([str(folder), "--interpolate", "0", "5", "--gif"], out=tmp_path)
    walk = Image.open(tmp_path / "interpolation_0_5.gif")
    assert walk.n_frames == 19 and min(walk.size) >= 256   # there and back, the end once
    assert texts[-10:] == [f"step {i} of 10" for i in range(1, 11)]
    (folder / "checkpoint_002.pt").unlink()
    assert "--save-every 1" in refused(generate, [str(folder), "--gif"], out=tmp_path)


def test_a_film_of_two_classes_is_told_that_of_the_first_image(cvae_run, tmp_path, monkeypatch):
    """And says so; --class is in the name, so that another class replaces no picture."""
    films = []
    monkeypatch.setattr(generate, "save_walk", lambda args, name, images, titles:
                        films.append((name, torch.cat(list(images)), titles)))
    y = load_data("digits").y_test.tolist()
    a, b = y.index(9), y.index(7)   # the first image has the greater label
    run = str(cvae_run[0])
    generate.main([run, "--interpolate", str(a), str(b), "--steps=3", "--gif"], out=tmp_path)
    generate.main([run, "--interpolate", str(a), str(b), "--steps=3", "--gif", "--class=4"],
                  out=tmp_path)
    model, data = cvae_run[1], load_data("digits")
    for (name, images, titles), suffix, label in zip(films, ("", "_4"), (9, 4), strict=True):
        assert name == f"interpolation_{a}_{b}{suffix}.gif"
        assert titles == [f"step {i} of 3, {label}" for i in (1, 2, 3)]
        mu, _ = model.encode(data.x_test[[a]] / 255, data.y_test[[a]])
        expected = model.decode(mu, torch.tensor([label])).mean
        torch.testing.assert_close(images[:1], expected)


# ----------------------------------------------------------------------------------- other models

def test_gan(gan_runs, tmp_path, refused):
    for conditional, folder in gan_runs.items():
        out = tmp_path / str(conditional)
        source, _ = load(folder)
        generate.main([str(folder), "--interpolate", "1", "2", "--steps", "5"], out=out)
        rows = grid(out / "interpolation_1_2.png", 2, 5)
        ends = source.model.images(generate.noise([1, 2], 8, 1), torch.zeros(2, dtype=int))[:, 0]
        assert close(rows[0, [0, -1]], ends) and close(rows[1, [0, -1]], ends)
        for number in (2, 4):   # a film of what is kept
            shutil.copyfile(folder / "checkpoint.pt", out / f"checkpoint_{number:03d}.pt")
        shutil.copyfile(folder / "checkpoint.pt", out / "checkpoint.pt")
        generate.main([str(out), "--gif"], out=out)
        assert (out / "samples.gif").exists() and not (out / "latent.gif").exists()
        if conditional:
            generate.main([str(out), "--gif", "--class=3"], out=out)
            assert (out / "samples_3.gif").exists()
        assert "p(x|z)" in refused(generate, [str(folder)], show="sample")
        for flags in (["--manifold"], ["--explore"], ["--digits", "1", "2"], ["--pca"]):
            assert "gan.py" in refused(generate, [str(folder), *flags])
    generate.main([str(gan_runs[True]), "--digit", "9", "--samples", "4"], out=tmp_path)
    nines = source.model.images(generate.noise(range(4), 8, 1), torch.full((4,), 9))[:, 0]
    assert close(grid(tmp_path / "samples_9_4.png", 1, 4)[0], nines)
    generate.main([str(gan_runs[True]), "--classes"], out=tmp_path)
    for flags in (["--digit", "9"], ["--classes"]):
        assert "--conditional" in refused(generate, [str(gan_runs[False]), *flags])


PRIOR = """    def prior(self):
        return Independent(Normal(torch.tensor([9.0, -9.0]), 0.5), 1)

    def encode(self, x):"""


def test_samples_of_a_model_with_its_own_prior_come_from_there(copy, capsys):
    source, _ = load(copy("prior_vae", ("    def encode(self, x):", PRIOR),
                          ("kl = gaussian_kl(mu, logvar)", "kl = 0 * gaussian_kl(mu, logvar)")))
    state = torch.get_rng_state()
    z, _ = generate.draw_codes(source, range(400), None, 1)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(z.mean(0), torch.tensor([9.0, -9.0]), rtol=0, atol=0.1)
    torch.testing.assert_close(z.std(0), torch.tensor([0.5, 0.5]), rtol=0.15, atol=0)
    few, _ = generate.draw_codes(source, [7], None, 1)
    assert torch.equal(few[0], z[7])
    mean, deviation = generate.spread(source)
    assert mean.tolist() == [9, -9] and deviation.tolist() == [0.5, 0.5]
    assert capsys.readouterr().out == ""   # with a prior there is nothing to guess


@pytest.mark.parametrize("old, new", [
    ("kl = gaussian_kl(mu, logvar)", "kl = gaussian_kl(mu - 1, logvar)"),
    ("def loss_terms(model, x, eps):", "def loss_terms(model, x):")])
def test_a_kl_to_another_prior_is_told_once(old, new, copy, vae_run, capsys, tmp_path):
    generate.main([str(vae_run[0]), "--samples", "4"], out=tmp_path)
    assert "note:" not in capsys.readouterr().out
    folder = copy("kl_vae", (old, new))
    generate.main([str(folder), "--samples", "4"], out=tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("note:") == 1 and "the KL of kl_vae.py is not the closed form" in printed
    generate.main([str(folder), "--reconstruct", "4"], out=tmp_path)   # needs no prior
    assert "note:" not in capsys.readouterr().out


def test_a_model_without_an_encoder_draws_what_needs_none(copy, tmp_path, refused):
    folder = copy("headless_vae", ("def encode(", "def posterior("))
    for flags in ([], ["--interpolate", "1", "2"], ["--manifold", "--steps", "2"]):
        generate.main([str(folder), *flags], out=tmp_path)
    for flags in (["--reconstruct", "4"], ["--digits", "1", "2"], ["--scatter"], ["--digit", "3"]):
        line = refused(generate, [str(folder), *flags], out=tmp_path / "none")
        assert "headless_vae.py" in line
    assert not (tmp_path / "none").exists()


# --------------------------------------------------------------------------- flags, files, refusals

@pytest.mark.parametrize("flags, named", [
    (["--digit", "11"], "the classes are 0, 1, 2"),
    (["--interpolate", "0", "999"], "the test images are 0 to 296"),
    (["--digits", "1", "x"], "--digits x"),
    (["--reconstruct", "298"], "there are 297"),
    (["--tsne", "3"], "--tsne 3"),
    (["--pca", "--classes"], "not allowed with"),
    (["--pca", "--gif"], "--gif goes alone"),
    (["--samples", "4", "--gif"], "--gif goes alone"),
    (["--pca", "--uniform", "0", "1"], "--uniform goes with --manifold"),
    (["--uniform", "nan", "1"], "--uniform"),
    (["--manifold", "--digit", "3"], "--class cannot be combined with --manifold"),
    (["--fitted", "--pca"], "--fitted is for --samples and --classes, not for --pca"),
    (["--out", "/dev/null/x"], "--out /dev/null/x"),
])
def test_what_is_refused(flags, named, vae_run, refused):
    assert named in refused(generate, [str(vae_run[0]), *flags])


def test_what_the_data_do_not_allow(npz, tmp_path, refused):
    y_test = np.array([0, 1, 2, 0, 1, 2, 0])
    flags = TINY | {"dataset": npz(y_test=y_test), "epochs": 1}
    vae.main(out=tmp_path / "one", **flags | {"latent": 1})
    vae.main(out=tmp_path / "run", **flags)
    for wish in (["--tsne", "6"], ["--pca"], ["--manifold"], ["--explore"], ["--scatter"]):
        assert "z of " in refused(generate, [str(tmp_path / "one"), *wish])
    run_folder = str(tmp_path / "run")
    assert "--digits 3: no test image" in refused(generate, [run_folder, "--digits", "0", "3"])
    assert "is of class 3" in refused(generate, [run_folder, "--digit", "3"])
    npz(classes=np.array(["a", "b", "c", "d"]))
    assert "no longer matches" in refused(generate, [run_folder, "--interpolate", "0", "4"])


def test_the_data_are_as_the_model_saw_them(tmp_path):
    vae.main(out=tmp_path / "run", **TINY | {"binarize": "threshold", "epochs": 1, "test_size": 50})
    source, _ = load(tmp_path / "run")
    assert source.data.x_test.unique().tolist() == [0, 255] and len(source.data.x_test) == 50
    assert not any(part.training for part in source.model.model.modules())


def test_scale_enlarges(vae_run, tmp_path):
    generate.main([str(vae_run[0])], samples=3, scale=2, out=tmp_path)
    assert grid(tmp_path / "samples_3.png", 1, 3, 112).shape == (1, 3, 112, 112)


def test_a_file_in_no_run_draws_without_data(cvae_run, tmp_path, monkeypatch):
    """Into a folder of each model's own. And T-shirt/top is a class, but no path."""
    checkpoint = run.load_checkpoint(cvae_run[0])
    checkpoint["data"]["classes"][0] = "T-shirt/top or so"
    torch.save(checkpoint, tmp_path / "own.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "load_data", None)   # a call would fail
    monkeypatch.setattr(generate, "is_at_hand", lambda *_: False)
    for flags in (["--class", "T-shirt/top or so"], ["--manifold", "--steps", "2"], ["--traverse"]):
        generate.main(["own.pt", *flags])
    names = {file.name for file in (tmp_path / "pictures" / "own").iterdir()}
    assert {"samples_T-shirt-top-or-so_64.png", "manifold_T-shirt-top-or-so.png",
            "traverse.png"} <= names


@pytest.mark.parametrize("path, folder", [
    ("run", "run"), ("run/checkpoint.pt", "run"),
    ("run/checkpoint_001.pt", "run/checkpoint_001"), ("run/best.pt", "run/best"),
    ("weights/a.pt", "pictures/a"), ("weights/b.pt", "pictures/b"),
    ("weights", "pictures/weights"), ("weights/checkpoint.pt", "pictures/weights"),
])
def test_pictures_of_different_models_have_folders_of_their_own(path, folder, tmp_path,
                                                                monkeypatch):
    monkeypatch.chdir(tmp_path)
    for parent in ("run", "weights"):
        (tmp_path / parent).mkdir()
    (tmp_path / "run" / "args.txt").touch()
    source = SimpleNamespace(folder=run.run_folder(path))
    assert generate.own_folder(source, path) == Path(folder)


def test_a_path_is_printed_when_the_file_is_complete(vae_run, tmp_path, monkeypatch, capsys):
    def broken(*_, **texts):
        raise RuntimeError
    monkeypatch.setattr(generate, "save_grid", broken)
    with pytest.raises(RuntimeError):
        generate.main([str(vae_run[0])], out=tmp_path / "out")
    assert capsys.readouterr().out == "" and list((tmp_path / "out").iterdir()) == []


@torch.no_grad()
def test_a_manifold_moves_the_two_most_active_units_of_more(shown, tmp_path, monkeypatch):
    """The first and the third of four; the others stay at their mean, 0."""
    vae.main(out=tmp_path / "run", **TINY | {"latent": 4, "epochs": 1})
    monkeypatch.setattr(generate, "most_active", lambda *_: torch.tensor([2, 0, 1, 3]))
    name, images, columns, texts = shown(tmp_path / "run", "--manifold", "--steps=2")[0]
    assert (name, columns) == ("manifold", 4)
    source, _ = load(tmp_path / "run")
    low, high = generate.places_on_axis(4)[[0, -1]].tolist()
    corners = torch.tensor([[low, 0, high, 0], [high, 0, low, 0]])   # top left, bottom right
    expected = source.model.images(corners, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(images[[0, -1]], expected)
