"""docs/scaling.md: what a step sends follows from the number of parameters, and the tables
are those that were recorded."""
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch import nn

import flow
import gan
import run
import vae
from tools import scaling

PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
RECORD = ROOT / "results" / "runs" / "scaling"


@pytest.fixture(scope="module")
def counted():
    """{model: what count_work finds}."""
    return {name: scaling.count_work(name) for name in scaling.MODELS}


def defaults(script, *flags):
    return run.parse(script.flags(), flags, {})


def models():
    """{name: models whose gradients are summed in a step}, built by hand."""
    shape, conv = scaling.SHAPE, defaults(vae, "--arch=conv", "--hidden=32", "--layers=1")
    conv.likelihood = "bernoulli"
    mlp = defaults(vae, "--hidden=500", "--layers=1")
    mlp.likelihood = "bernoulli"
    of_gan = defaults(gan)
    return {
        "vae": [vae.build(shape, 10, mlp)],
        "conv": [vae.build(shape, 10, conv)],
        "gan": [gan.build(shape, 10, of_gan), gan.Discriminator(shape, 0, of_gan)],
        "flow": [flow.build(shape, 10, defaults(flow))],
    }


def test_bytes_are_those_of_the_parameters_and_of_batch_normalisation(counted):
    """In float32: each gradient and a number of rows; forwards and backwards, of each normalised
    channel a mean and a square, and their number. A GAN's discriminator is shown fake images too,
    so that its generator goes forwards twice."""
    for name, parts in models().items():
        floats, messages = 0, len(parts)
        for model in parts:
            floats += 1 + sum(p.numel() for p in model.parameters())
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    passes = 3 if name == "gan" else 2
                    floats += passes * (2 * module.num_features + 1)
                    messages += passes
        assert counted[name]["bytes"] == 4 * floats, name
        assert counted[name]["messages"] == messages, name


def test_products_of_the_mlp_are_those_of_its_matrices(counted):
    """Forwards each weight once per image; backwards once for its own gradient and once for that of
    its input, which the first layer does not need."""
    weights = 784 * 500, 500 * 40, 20 * 500, 500 * 784
    products = 128 * (3 * sum(weights) - weights[0])
    assert counted["vae"]["operations"] == 2 * products


def test_the_page_has_what_is_counted(counted):
    assert scaling.work_table(counted) in PAGE


def test_the_page_has_what_was_measured():
    if not RECORD.exists():
        pytest.skip("not measured yet")
    assert scaling.with_tables(PAGE, scaling.read_record(RECORD)) == PAGE


def test_at_that_many_workers_the_sum_takes_as_long_as_the_step():
    seconds, n_bytes, bandwidth = 0.02, 3e6, 1e9
    n = scaling.workers(seconds, n_bytes, bandwidth)
    assert 2 * (n - 1) / n * n_bytes / bandwidth == pytest.approx(seconds / n)


def test_with_that_many_images_the_sum_takes_a_tenth_of_the_products():
    per_image, n_bytes, bandwidth = 1e-4, 3e6, 1e9
    images = scaling.images_per_worker(per_image, n_bytes, bandwidth)
    assert 2 * n_bytes / bandwidth == pytest.approx(0.1 * images * per_image)


def test_a_round_of_each_way(monkeypatch, tmp_path):
    """In one process: "two" is then like "one", and half a batch takes less than a whole one. The
    clock counts images, so that other work on the machine does not matter."""
    trained = [0]
    backward = vae.backward

    def counted_backward(model, x, *arguments):
        trained[0] += len(x)
        return backward(model, x, *arguments)

    monkeypatch.setattr(vae, "backward", counted_backward)
    monkeypatch.setattr(scaling, "time", SimpleNamespace(perf_counter=lambda: trained[0]))
    threads = torch.get_num_threads()
    args = SimpleNamespace(quick=True, rounds=3, command="-m tools.scaling")
    seconds = scaling.time_ways("vae", args)
    torch.set_num_threads(threads)
    assert seconds.keys() == scaling.WAYS.keys() and seconds["silent"] < seconds["one"]
    assert seconds == {"one": 128, "threads": 128, "silent": 64, "two": 128}
    row = {"batch": 128, "operations": 8, "bytes": 4, "messages": 1, "sum": 1e-3} | seconds
    monkeypatch.setattr(scaling, "PAGE", tmp_path / "page.md")
    scaling.PAGE.write_text("a\n<!-- speed -->\nb\n<!-- end -->\nc\n")
    results = {"vae": row}
    scaling.record(tmp_path / "record", results, args)
    assert scaling.read_record(tmp_path / "record") == results
    page = scaling.PAGE.read_text()
    assert page.startswith(f"a\n<!-- speed -->\n\n{scaling.speed_table(results)}\n")
    assert "b" not in page.splitlines() and page.endswith("<!-- end -->\nc\n")


def test_it_is_started_by_torchrun(refused):
    assert "torchrun" in refused(scaling)
