"""The benchmark compares loops that learn the same from the same images."""
import itertools
import json
from types import SimpleNamespace

import pytest
import torch

from readers import load_data
from tools import benchmark


def write_idx(path, magic, values):
    """A file of torchvision's MNIST: a magic number, the shape, then the bytes."""
    content = bytes([0, 0, 8, magic])
    for size in values.shape:
        content += size.to_bytes(4, "big")
    path.write_bytes(content + values.byte().numpy().tobytes())


@pytest.fixture(scope="module")
def mnist_of_digits(tmp_path_factory):
    """A folder with the built-in digits in the files of MNIST."""
    folder = tmp_path_factory.mktemp("data")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    data = load_data("digits")
    write_idx(raw / "train-images-idx3-ubyte", 3, data.x_train[:, 0])
    write_idx(raw / "train-labels-idx1-ubyte", 1, data.y_train)
    write_idx(raw / "t10k-images-idx3-ubyte", 3, data.x_test[:, 0])
    write_idx(raw / "t10k-labels-idx1-ubyte", 1, data.y_test)
    return folder


@pytest.fixture
def flags(mnist_of_digits):
    """A function of a loop and flags: the args that the loops get."""
    def parsed(loop, **replaced):
        values = {"model": "vae", "data": mnist_of_digits, "device": "cpu", "train_size": 256,
                  "rounds": 1, "loop": loop, "quick": False, "csv": None}
        return SimpleNamespace(**values | replaced)
    return parsed


def test_one_round(mnist_of_digits, capsys, monkeypatch, tmp_path):
    """On 1,000 images: the loops reach the same loss within noise, and all of them are timed; one
    in a process of its own, as all are in earnest."""
    def time_somewhere(loop, args):
        if loop == "ours":
            return time_in_process(loop, args)
        return benchmark.time_loop(SimpleNamespace(**vars(args) | {"loop": loop}))

    time_in_process = benchmark.time_in_process
    monkeypatch.setattr(benchmark, "time_in_process", time_somewhere)
    loops = ("usual", "ours", "matrix products")
    monkeypatch.setitem(benchmark.LOOPS, "vae", loops)
    monkeypatch.setitem(benchmark.QUICK_IMAGES, "vae", 1000)
    monkeypatch.setattr(benchmark, "slowdown_in_bfloat16", lambda device: 0.5)
    table = benchmark.main(quick=True, data=mnist_of_digits, device="cpu", csv=tmp_path / "a.csv")
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in said[1:4]] == [*loops]   # as it goes on
    title, _, _, *rows = said[4:]
    assert "1000 images, median of 1" in title
    written = (tmp_path / "a.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in written] == ["loop", *loops]
    assert [row.split(" | ")[0] for row in rows] == [f"| {loop}" for loop in loops]
    for result in table.values():
        assert result["train"] > 0 and result["MB"] > 0
    assert table["ours"]["test_loss"] == pytest.approx(table["usual"]["test_loss"], rel=0.03)
    # That the products take less than the whole is not asserted: a time of one round is noise.


@pytest.mark.parametrize("loop", ["usual", "ours"])   # bfloat16 can be a hundred times slower
@pytest.mark.parametrize("model", ["gan", "flow"])
def test_other_loops_run(model, loop, mnist_of_digits):
    result = benchmark.main(model=model, loop=loop, train_size=128, data=mnist_of_digits,
                            device="cpu")
    assert result["train"] > 0


def test_columns_of_the_table(capsys, flags):
    usual = {"train": 2.0, "test": 1.0, "MB": 100, "test_loss": 99.0}
    table = {"usual": usual,
             "ours": usual | {"train": 0.5, "test": 0.25},
             "matrix products": usual | {"train": 0.25},
             "ours to 105.6": {"seconds": 3, "epochs": 2, "test_loss": 106.0}}
    benchmark.show(table, flags(None, train_size=1000))
    printed = capsys.readouterr().out
    assert "| ours | 0.50 | 0.25 | 2,000 | 0.25 | 2.00 | 100 | 99.0 |" in printed
    assert "ours to 105.6: 3.0 s, 2 epochs, test loss 106.00, not reached" in printed


def test_the_name_of_a_loop_sets_the_flags_of_the_script(flags):
    for loop in benchmark.OURS:
        settings = benchmark.settings_of_script(flags(loop))
        assert (settings.hidden, settings.latent, settings.likelihood) == (400, 20, "bernoulli")
        assert settings.amp == ("--amp" in loop)
        assert settings.compile == ("--compile" in loop)
    assert benchmark.settings_of_script(flags("ours", model="conv")).arch == "conv"
    assert benchmark.settings_of_script(flags("ours", model="gan")).critic_steps == 5


def test_rounds_take_turns_and_their_medians_count(mnist_of_digits, monkeypatch):
    loops = benchmark.LOOPS["gan"]
    asked = []

    def run(command, **_):
        asked.append(command[3].removeprefix("--loop="))
        seconds = (1, 9, 2)[(len(asked) - 1) // len(loops)]
        result = {"train": seconds, "test": 0, "MB": 1, "test_loss": 0}
        return SimpleNamespace(returncode=0, stdout=json.dumps(result), stderr="")

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    monkeypatch.setattr(benchmark, "slowdown_in_bfloat16", lambda device: 0.5)
    table = benchmark.main(model="gan", train_size=128, data=mnist_of_digits, device="cpu")
    assert asked == 3 * [*loops]
    assert all(result["train"] == 2 for result in table.values())


def test_loops_that_would_take_all_the_time_are_left_out(mnist_of_digits, monkeypatch, capsys):
    result = {"train": 1, "test": 0, "MB": 1, "test_loss": 0}
    monkeypatch.setattr(benchmark, "time_in_process", lambda loop, args: result)
    monkeypatch.setattr(benchmark, "slowdown_in_bfloat16", lambda device: 40.0)
    table = benchmark.main(model="gan", quick=True, data=mnist_of_digits, device="cpu")
    assert list(table) == ["usual", "ours", "matrix products"]
    assert "takes 40 times as long in bfloat16" in capsys.readouterr().out


def test_a_loop_that_fails_ends_the_benchmark(monkeypatch, capsys, flags):
    failed = SimpleNamespace(returncode=1, stderr="Traceback\n  a line\nerror: out of memory\n")
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit) as stop:
        benchmark.time_in_process("usual", flags(None))
    assert stop.value.code == 1 and "error: usual: out of memory" in capsys.readouterr().err


def test_the_clock_stops_at_the_target(monkeypatch, flags):
    losses = iter([110.0, 105.7, 105.5, 105.0])
    epochs = (lambda: None, lambda: next(losses))
    monkeypatch.setattr(benchmark, "our_vae", lambda args, **_: epochs)
    result = benchmark.time_to_target(flags("ours --amp to 105.6"))
    assert (result["epochs"], result["test_loss"]) == (3, 105.5)


@pytest.mark.parametrize("kind", [benchmark.our_vae, benchmark.matrix_products])
def test_matrix_products_are_the_five_large_ones(kind, flags):
    """Two products of a step go forwards, three backwards: the images need no gradient. And the
    floor has as many of them as the training it is the floor of."""
    train_epoch, _ = kind(flags("matrix products", train_size=9 * 128))
    train_epoch()
    with benchmark.Recorder() as recorder:
        train_epoch()
    assert len(recorder.calls) == 5 * 9


def test_loops_have_the_same_images(flags):
    args = flags("usual")
    usual, _ = benchmark.usual_loaders(args, 128)
    images = torch.stack([x for x, _ in usual.dataset])
    assert torch.equal(images, benchmark.our_data(args).x_train / 255)
    in_memory, _ = benchmark.our_loaders(args, 128)
    assert torch.equal(images, in_memory.dataset / 255)


@pytest.mark.parametrize("model", ["vae", "conv"])
def test_between_usual_and_ours_each_loop_has_one_change_more(model):
    loops = benchmark.LOOPS[model]
    steps = [loop.split(", ") for loop in loops[:loops.index("ours")]]
    for fewer, more in itertools.pairwise(steps):
        assert more[:-1] == fewer


def test_the_name_of_a_usual_loop_says_what_it_has(flags, monkeypatch):
    """Seen in what it makes: its loaders, its Adam and the layout of its kernels."""
    made = {}
    adam = torch.optim.Adam

    def remember(weights, **options):
        weights = list(weights)
        made["fused"] = options["fused"]
        made["channels last"] = not all(weight.is_contiguous() for weight in weights)
        return adam(weights, **options)

    def remember_loaders(args, batch_size):
        made["in memory"] = True
        return loaders(args, batch_size)

    loaders = benchmark.our_loaders
    monkeypatch.setattr(benchmark.torch.optim, "Adam", remember)
    monkeypatch.setattr(benchmark, "our_loaders", remember_loaders)
    found = []
    for loop in benchmark.LOOPS["conv"][:4]:
        made.clear()
        train_epoch, test_epoch = benchmark.usual_vae(flags(loop, model="conv", train_size=128))
        assert train_epoch() > 0 and test_epoch() > 0
        found.append((made.get("in memory", False), made["fused"], made["channels last"]))
    assert found == [(False, False, False), (True, False, False), (True, True, False),
                     (True, True, True)]


@pytest.mark.parametrize(("flag", "words"), [
    ({"device": "nonsense"}, "--device nonsense"),
    ({"train_size": 2000}, "--train-size 2000"),
    ({"loop": "fast"}, "--loop must be one of usual"),
    ({"loop": "usual to 105.6", "train_size": 200}, "--loop must be one of usual"),   # no race
])
def test_what_is_wrong_is_said_before_it_starts(flag, words, mnist_of_digits, refused):
    assert words in refused(benchmark, data=mnist_of_digits, **flag)
