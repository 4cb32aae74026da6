"""A figure shows what it is for: the last nats of a run, a beta that changes, classes in a map."""
from types import SimpleNamespace

import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from small import random_data

import common
import run


@pytest.fixture
def figures(monkeypatch):
    """A list of the figures drawn, which are not rendered: that takes most of the time."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    return drawn


def rows_of(losses, betas=None):
    """Rows of a log of vae.py with these losses."""
    rows = []
    for epoch, loss in enumerate(losses, 1):
        row = {"epoch": epoch, "beta": 1.0 if betas is None else betas[epoch - 1]}
        for part in ("train", "test"):
            row |= {f"{part}_loss": loss, f"{part}_recon": loss - 20, f"{part}_kl": 20.0}
        rows.append(row)
    return rows


def draw_curves(figures, tmp_path, rows, beta=1.0):
    """The panels of curves.png of a VAE with this log."""
    args = SimpleNamespace(beta=beta)
    own = SimpleNamespace(args=args, rows=rows, folder=tmp_path)
    model = SimpleNamespace(args=args, encode=None)
    run.save_loss_curves(own, [model])
    return figures[-1].axes


def test_the_second_half_of_training_sets_the_axis_and_the_title_says_so(figures, tmp_path):
    losses = [370, 180, 150, 106, 103, 102, 101, 100]
    loss, recon, kl = draw_curves(figures, tmp_path, rows_of(losses))
    low, high = loss.get_ylim()
    assert 98 < low < 100 and 106 < high < 107   # the last 3 nats take a third of its height
    assert loss.get_title() == ("loss = reconstruction + KL\n"
                                "(axis cut off: values run from 100 to 370)")
    assert recon.get_title().startswith("reconstruction\n(axis cut off")
    assert kl.get_title() == "KL divergence"   # constant: nothing is cut off
    assert [line.get_linestyle() for line in loss.lines] == ["--", "-"]
    assert [line.get_label() for line in loss.lines] == ["VAE train", "VAE test"]
    assert figures[-1].get_supxlabel() == "dashed: training, solid: test"


@pytest.mark.parametrize("losses", [[370], [370, 180], [105, 104, 103, 102], [5] * 8])
def test_nothing_is_cut_off_where_all_fits(losses, figures, tmp_path):
    loss, *_ = draw_curves(figures, tmp_path, rows_of(losses))
    low, high = loss.get_ylim()
    assert low <= min(losses) <= max(losses) <= high
    assert loss.get_title() == "loss = reconstruction + KL"
    for tick in loss.get_xticks():
        assert tick == int(tick)


def test_beta_is_shown_where_it_changes(figures, tmp_path):
    *_, kl = draw_curves(figures, tmp_path, rows_of([9, 8, 7, 6], [0.0, 2.0, 0.0, 4.0]))
    area, = kl.collections
    assert area.get_label() == "beta, from 0 to 4"
    heights = {x: y for x, y in area.get_paths()[0].vertices.tolist() if y > 0}
    assert heights == {2: 0.5, 4: 1}
    *_, kl = draw_curves(figures, tmp_path, rows_of([9, 8]))
    assert len(kl.collections) == 0


def test_an_autoencoder_has_one_panel(figures, tmp_path):
    axes, = draw_curves(figures, tmp_path, rows_of([9, 8]), beta=0)
    assert axes.get_title() == "loss = reconstruction"


def test_distances_have_a_log_axis_with_numbers(figures, tmp_path):
    rows = [{"iteration": i, "fid": 40 / i} for i in (1, 2, 40)]
    panels = {"distance": [("samples", "fid", "C0-")]}
    common.save_curves(tmp_path / "fid.png", rows, "iteration", panels, "fid", "log")
    axes, = figures[-1].axes
    assert axes.get_yscale() == "log"
    figures[-1].draw_without_rendering()
    labels = {label.get_text() for label in axes.get_yticklabels()}
    assert {"1", "2", "5", "10", "20"} <= labels


def test_classes_are_named_in_the_middle_of_their_points(figures, tmp_path):
    data = random_data(n_test=400)
    data = data._replace(classes=["a", "b", "c", "d"])
    noise = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    centres = torch.tensor([[3.0, 0], [-3, 0], [0, 3], [0, -3]])
    args = SimpleNamespace(beta=1)
    common.save_latent(tmp_path / "map.png", {"VAE": centres[data.y_test] + 0.3 * noise,
                                              "CVAE": noise}, data, args)
    apart, together = figures[-1].axes
    places = {text.get_text(): text.get_position() for text in apart.texts}
    assert list(places) == data.classes
    found = torch.tensor(list(places.values()))
    torch.testing.assert_close(found, centres, rtol=0, atol=0.2)
    assert apart.collections[0].get_alpha() < 1   # dots below others can be seen
    assert len(together.texts) == 0   # of one cloud there are no middles; the key has all names
    key = together.get_legend()
    assert [text.get_text() for text in key.get_texts()] == data.classes
    for handle in key.legend_handles:
        assert to_rgba(handle.get_color(), handle.get_alpha())[3] == 1
