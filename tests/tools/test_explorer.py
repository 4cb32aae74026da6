"""generate.py --explore: one page in which a decoder runs. Its images are PyTorch's."""
import base64
import html
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

import cvae
import generate
import run
from common import Condition, fixed_images
from readers import is_at_hand, load_data
from tools.explorer import Dots, pack_layer, save_explorer

PAGES = ROOT / "results" / "explorer"   # which anyone can open who has the repository only

POINTS = [([0.5, -1.0], 3), ([-2.25, 1.5], 0), ([0.0, 0.0], 9)]   # z and y
ACTIVATIONS = [nn.ReLU(), nn.LeakyReLU(0.2), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Softplus(),
               nn.Softplus(beta=3.0, threshold=2.0), nn.ELU(), nn.ELU(alpha=0.5)]

DRIVER = """
const page = JSON.parse(require("fs").readFileSync(0, "utf8")), points = page.points;
const images = page.models.map(load).map(model =>
  points.map(([z, y]) => Array.from(decode(model, z, y), value => +value.toFixed(5))));
const times = Array.from({ length: 3 }, () => {
  const start = performance.now();
  decode(page.models[0], ...points[0]);
  return performance.now() - start;
});
console.log(JSON.stringify([images, Math.min(...times)]));
"""

PROBE = """<script>
const found = { images: [], texts: [], times: [], fills: [] };
found.opening = state.z;
function redraw() {   // now, and not with the next frame
  const start = performance.now();
  frame(start);
  return performance.now() - start;
}
function read_texts() {
  const asked = waiting;   // for the next frame
  redraw();
  write();
  found.texts.push([asked, $("where").value, location.hash,
                    document.querySelector("#y [aria-pressed=true]").textContent]);
}
const press = (key, properties) => {
  document.body.dispatchEvent(new KeyboardEvent("keydown",
                                                { key, bubbles: true, ...properties }));
  read_texts();
};
const pixels = canvas => canvas.getContext("2d").getImageData(
  0, 0, canvas.width, canvas.height).data;
for (const hash of HASHES) {   // the page was opened with none
  location.hash = hash;
  dispatchEvent(new HashChangeEvent("hashchange"));
  redraw();
  found.images.push([...document.querySelectorAll("figure canvas")]
    .map(canvas => [...pixels(canvas)]));
}
while (strip.due) redraw();
found.strip = [...document.querySelectorAll("#y canvas")].map(canvas => [...pixels(canvas)]);
found.labels = [...document.querySelectorAll("figure canvas")].map(canvas => canvas.ariaLabel);
found.ticks = [...document.querySelectorAll("#ticks span")].map(tick => tick.textContent);
found.dots = [...document.querySelectorAll("#dots circle")].map(dot =>
  ["cx", "cy", "fill", "class"].map(name => dot.getAttribute(name)));
press("1");
press("ArrowRight");
press("ArrowDown", { shiftKey: true });
const box = plane.getBoundingClientRect();
plane.dispatchEvent(new PointerEvent("pointermove", {
  buttons: 1, clientX: box.left + 0.75 * box.width, clientY: box.top + 0.4 * box.height }));
read_texts();
for (let i = 0; i < 5; i++) found.times.push(redraw());
const whole = () => pixels(board).every((value, i) => i % 4 < 3 || value === 255);
while (tiles.due) redraw();
found.board = [board.width, board.height, whole()];

const seen = () => getComputedStyle($("dots")).display;
found.switched = [seen()];
press("d");
found.switched.push(seen());

// With a slow decoder the plane is full of a few large pictures first.
const fast = decode, begin = fill;
decode = (...args) => {
  for (const start = performance.now(); performance.now() < start + 3;);
  return fast(...args);
};
fill = side => {
  found.fills.push([side, whole()]);
  begin(side);
  decode = fast;
};
board.width = board.width;   // clears it
press("2");
for (let i = 0; i < 99 && found.fills.length < 3; i++) redraw();

found.sliders = [...document.querySelectorAll("#sliders label")].map(label =>
  [label.firstChild.data, label.lastChild.value]);

// How a page of the repository fits a phone and a small screen.
const screen = add(document.body, "iframe", { src: "RECORDED", style: "border: 0" });
screen.onload = () => {
  const { document: { documentElement: page }, frame } = screen.contentWindow;
  frame(0);
  found.screens = [[390, 844], [1280, 800]].map(([width, height]) => {
    Object.assign(screen, { width, height });
    const boxes = [...page.querySelectorAll("button, select, input")]
      .map(box => box.getBoundingClientRect()).filter(box => box.width > 0);
    return { screen: [page.clientWidth, screen.contentWindow.innerHeight],
             page: [page.scrollWidth, page.scrollHeight],
             classes: page.querySelector("#y").getBoundingClientRect().bottom,
             targets: boxes.map(box => Math.min(box.width, box.height)) };
  });
  add(document.body, "pre", { id: "found", textContent: JSON.stringify(found) });
};
</script>"""


def read_page(path):
    """The model in the page, and the script of its decoder."""
    page = path.read_text(encoding="utf-8")
    parts = []
    for name in ("model", "decoder"):
        found = re.search(rf'<script id="{name}".*?>(.*?)</script>', page, re.DOTALL)
        parts.append(found[1])
    model, decoder = parts
    return json.loads(model), decoder


def codes(packed, latent):
    """The codes of a packed model, (N, latent)."""
    halves = np.frombuffer(base64.b64decode(packed["codes"]), "<f2")
    return torch.from_numpy(halves.astype(np.float32)).view(-1, latent)


def node(script, text=""):
    """What a script prints that is given a text to read."""
    if not shutil.which("node"):
        pytest.skip("no node on this machine")
    done = subprocess.run(["node", "-e", script], input=text, check=True, text=True, timeout=60,
                          capture_output=True)
    return json.loads(done.stdout)


def in_node(path, points):
    """The page's decoder under node: images (models, points, C * H * W), and milliseconds."""
    model, decoder = read_page(path)
    images, ms = node(decoder + DRIVER, json.dumps(model | {"points": points}))
    return torch.tensor(images), ms


def in_torch(models, points):
    """The same by PyTorch, of models {prefix: run.Trained}."""
    z = torch.tensor([z for z, _ in points])
    y = torch.tensor([y for _, y in points])
    with torch.no_grad():
        return torch.stack([model.images(z, y).flatten(1) for model in models.values()])


@pytest.fixture(scope="module")
def page(cvae_run, tmp_path_factory):
    """(explorer.html of the CVAE and its twin, the two models)."""
    out = tmp_path_factory.mktemp("explorer")
    generate.main([str(cvae_run[0]), "--explore", "--out", str(out)])
    _, _, models = run.load_models(cvae_run[0])
    return out / "explorer.html", models


def trained(shape, classes, **flags):
    """A model whose weights are as if trained: with contrast, each channel normalised its own way.
    """
    torch.manual_seed(0)
    args = {"arch": "mlp", "hidden": 24, "layers": 2, "latent": 5, "dropout": 0.5, "beta": 1.0,
            "likelihood": "gaussian", "sigma": "pixel"}
    args = SimpleNamespace(**args | flags)
    model = cvae.CVAE(shape, classes, args).eval().requires_grad_(False)
    for name, value in model.decoder.state_dict().items():
        if "running" in name:
            value.uniform_(0.5, 2)
        elif value.ndim > 1:
            value.mul_(4)
    return run.Trained(model, run.model_name(model), args)


def write_page(path, models, shape, dots=None):
    """The page of models {prefix: run.Trained}."""
    card = {"name": "own", "shape": shape, "classes": ["</script>", "<b>", "é", "d"]}
    latent = models[""].args.latent
    save_explorer(path, models, card, list(range(latent)), "own.py", dots)
    return path


def test_the_decoder_of_the_page_draws_what_pytorch_draws(page):
    file, models = page
    images, ms = in_node(file, POINTS)
    expected = in_torch(models, POINTS)
    assert expected.std(dim=(1, 2)).min() > 0.05   # images, not a grey that fits anything
    assert (images - expected).abs().max() < 2 / 255
    assert ms < 50


@pytest.mark.parametrize(("arch", "shape"), [("mlp", [3, 6, 9]), ("conv", [3, 16, 16]),
                                             ("conv", [1, 28, 28])])
def test_every_decoder_there_is_runs_in_the_page(arch, shape, tmp_path):
    models = {"": trained(shape, 4, arch=arch, hidden=8)}
    file = write_page(tmp_path / "page.html", models, shape)
    assert read_page(file)[0]["classes"] == ["</script>", "<b>", "é", "d"]
    points = [(torch.randn(5).tolist(), y) for y in (0, 3, 1)]
    images, _ = in_node(file, points)
    expected = in_torch(models, points)
    assert expected.std() > 0.1
    # After the means of the pixels stand their sigmas, which the page leaves alone.
    assert (images[..., :expected.shape[2]] - expected).abs().max() < 2 / 255


def test_conditions_enter_as_in_pytorch(tmp_path):
    """An angle as cos and sin, after the label; the twin is told nothing."""
    shape = [1, 6, 6]
    conditions = (Condition("slant", "number", -1.0, 3.0, 1.0, 0.5),
                  Condition("angle", "angle", -90.0, 90.0))
    model = run.Trained(trained(shape, 7).model, "CVAE", trained(shape, 7).args, conditions)
    models = {"": model, "vae_": trained(shape, 0)}
    file = write_page(tmp_path / "page.html", models, shape)
    found, decoder = read_page(file)
    assert [len(packed["conditions"]) for packed in found["models"]] == [2, 0]
    script = decoder + """
const page = JSON.parse(require("fs").readFileSync(0, "utf8"));
const images = page.models.map(load).map(model =>
  Array.from(decode(model, [1, -1, 0.5, 2, 0], 2, [2.5, -30])));
console.log(JSON.stringify(images));"""
    model.values = torch.tensor([2.5, -30])
    expected = in_torch(models, [([1.0, -1.0, 0.5, 2.0, 0.0], 2)])[:, 0]
    for image, right in zip(node(script, json.dumps(found)), expected, strict=True):
        assert (torch.tensor(image)[:36] - right[:36]).abs().max() < 2 / 255


def test_every_activation_is_pytorchs(page):
    """To a millionth on either side of 0, and far from it."""
    x = torch.cat([torch.linspace(-6, 6, 2001), torch.tensor([-90.0, -30.0, 30.0, 90.0])])
    layers = [pack_layer(layer) for layer in ACTIVATIONS]
    script = read_page(page[0])[1] + """
const [x, layers] = JSON.parse(require("fs").readFileSync(0, "utf8"));
const values = layers.map(layer => Array.from(LAYERS[layer.kind](Float64Array.from(x), layer)));
console.log(JSON.stringify(values));"""
    values = node(script, json.dumps([x.double().tolist(), layers]))
    for layer, value in zip(ACTIVATIONS, values, strict=True):
        error = (torch.tensor(value, dtype=torch.float64) - layer(x.double())).abs().max()
        assert error < 1e-6, layer


def test_a_copy_with_other_activations_and_without_biases(tmp_path):
    shape = [1, 8, 8]
    model = trained(shape, 0, sigma="1")
    model.model.decoder = nn.Sequential(
        nn.Linear(5, 12, bias=False), nn.GELU(), nn.Linear(12, 32), nn.SiLU(),
        nn.Unflatten(1, (2, 4, 4)), nn.BatchNorm2d(2, eps=0.5), nn.ELU(),
        nn.ConvTranspose2d(2, 1, 4, stride=2, padding=1, bias=False)).eval()
    file = write_page(tmp_path / "page.html", {"": model}, shape)
    images, _ = in_node(file, [([1.0, -1.0, 0.5, 2.0, 0.0], 0)])
    expected = in_torch({"": model}, [([1.0, -1.0, 0.5, 2.0, 0.0], 0)])
    assert expected.std() > 0.005 and (images - expected).abs().max() < 5e-4


class Scaled(nn.Linear):
    """A layer that computes something else than its base class."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("layer", [
    nn.GELU(approximate="tanh"), nn.Sigmoid(), nn.Sequential(nn.ReLU()), Scaled(24, 24),
    nn.BatchNorm1d(24), nn.LayerNorm(24)])
def test_a_layer_that_the_page_does_not_know_is_refused(layer, tmp_path, capsys):
    model = trained([1, 4, 4], 0)
    model.model.decoder.insert(1, layer.eval())
    with pytest.raises(SystemExit) as stop:
        write_page(tmp_path / "page.html", {"": model}, [1, 4, 4])
    error = capsys.readouterr().err
    name = type(layer).__name__
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"--explore cannot show the layer {name}(" in error and "own.py" in error
    assert list(tmp_path.iterdir()) == []


def test_other_convolutions_are_no_layers_of_the_page():
    good = {"kernel_size": 4, "stride": 2, "padding": 1}
    assert pack_layer(nn.ConvTranspose2d(4, 4, **good))["kind"] == "up"
    for other in ({"kernel_size": 2, "padding": 0}, {"groups": 2}, {"stride": 1}, {"padding": 0},
                  {"output_padding": 1}, {"dilation": 2}):
        assert pack_layer(nn.ConvTranspose2d(4, 4, **good | other)) is None
    assert pack_layer(nn.Conv2d(4, 4, 3)) is None
    assert pack_layer(nn.BatchNorm2d(4, affine=False)) is None
    assert pack_layer(nn.BatchNorm2d(4, track_running_stats=False)) is None


def test_a_mean_that_the_page_would_not_show_is_refused(tmp_path, capsys):
    models = []
    for changed in ("decode", "input", "none"):
        models.append(trained([1, 4, 4], 0))
        model = models[-1].model
        if changed == "decode":   # the mean is not the sigmoid of the decoder
            decode = model.decode
            model.decode = lambda z, y, decode=decode: decode(z / 2, y)
        elif changed == "input":
            model.decoder[0] = nn.Linear(7, 24)
            model.decode = trained([1, 4, 4], 0).model.decode
        else:
            model.decoder = nn.ModuleDict()
    for model in models:
        with pytest.raises(SystemExit) as stop:
            write_page(tmp_path / "page.html", {"": model}, [1, 4, 4])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and "own.py" in error
    assert list(tmp_path.iterdir()) == []


def test_half_precision_is_read_to_the_bit(page):
    every = torch.arange(65536).to(torch.uint16).view(torch.float16)
    script = read_page(page[0])[1] + "console.log(JSON.stringify(Array.from(HALF)))"
    found = torch.tensor(node(script), dtype=torch.float64)
    finite = every.isfinite()
    assert finite.sum() == 2 * 31 * 1024 and (found == every.double())[finite].all()


def test_the_plane_opens_on_the_most_active_units(cvae_run, tmp_path, monkeypatch):
    """In their usual order; the sliders follow by activity."""
    card = {"name": "own", "shape": [1, 4, 4], "classes": []}
    save_explorer(tmp_path / "page.html", {"": trained([1, 4, 4], 0)}, card, [3, 1, 4, 2, 0],
                  "own.py")
    assert read_page(tmp_path / "page.html")[0]["units"] == [1, 3, 4, 2, 0]
    monkeypatch.setattr(generate, "most_active", lambda *_: torch.tensor([1, 0]))
    seen = []
    monkeypatch.setattr(generate, "save_explorer", lambda *args: seen.append(args[3]))
    generate.main([str(cvae_run[0]), "--explore"], out=tmp_path)
    assert seen == [[1, 0]]


def test_rings_are_those_of_a_standard_normal_prior(tmp_path):
    normal, other = trained([1, 4, 4], 0), trained([1, 4, 4], 0)
    other.model.prior = lambda: torch.distributions.Normal(torch.zeros(5), 2)
    for model, rings in ((normal, True), (trained([1, 4, 4], 0, beta=0), False), (other, False)):
        file = write_page(tmp_path / "page.html", {"": model}, [1, 4, 4])
        assert read_page(file)[0]["prior"] is rings


def test_the_page_stands_alone(page):
    text = page[0].read_text(encoding="utf-8")
    assert not re.search(r"https?:|\bsrc=|<link|url\(|import |fetch\(", text)
    assert len(text) < 4e6 and "MODEL<" not in text


def test_dots_are_the_codes_of_test_images(page):
    """Of the built-in digits, which are always at hand: each model has its own codes."""
    file, models = page
    data = load_data("digits")
    x, y = fixed_images(data, len(data.x_test))
    found, _ = read_page(file)
    assert found["labels"] == y.tolist() and len(y) == 297
    for packed, model in zip(found["models"], models.values(), strict=True):
        expected, _ = model.encode(x, y)
        assert (codes(packed, 2) - expected).abs().max() < 0.01
        assert expected.std() > 0.1


def test_without_the_data_there_are_no_dots_and_no_download(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "load_data", None)   # a call would fail
    file = ROOT / "results" / "models" / "vae-mnist-z2.pt"
    generate.main([str(file), "--explore", f"--data={tmp_path}", f"--out={tmp_path}"])
    found, _ = read_page(tmp_path / "vae-mnist-z2.html")
    assert found["labels"] == [] and found["models"][0]["codes"] == ""
    printed = capsys.readouterr().out
    assert printed.count("note:") == 1 and f"MNIST was not found (--data {tmp_path})" in printed


def test_data_at_hand(tmp_path):
    """What was downloaded may be unpacked or not; one missing file is a download."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte.gz",
                 "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        assert not is_at_hand("MNIST", tmp_path)
        (folder / name).touch()
    assert is_at_hand("MNIST", tmp_path) and not is_at_hand("KMNIST", tmp_path)
    assert not is_at_hand("CIFAR10", tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert is_at_hand("CIFAR10", tmp_path) and not is_at_hand("CIFAR100", tmp_path)
    assert is_at_hand("digits", tmp_path) and is_at_hand(str(tmp_path), "data")
    assert not is_at_hand(str(tmp_path / "none.npz"), "data")


@pytest.mark.parametrize("name", ["cvae-mnist", "cvae-fashionmnist"])
def test_the_pages_of_the_repository_are_what_the_command_makes(name, tmp_path):
    """But for the dots, which need the data."""
    recorded = PAGES / f"{name}.html"
    assert recorded.stat().st_size < 1.2e6
    make_page(name, tmp_path, tmp_path)
    found, expected = without_dots(recorded), without_dots(tmp_path / f"{name}.html")
    assert found == expected


@pytest.mark.parametrize("name", ["cvae-mnist", "cvae-fashionmnist"])
def test_the_dots_of_the_repository_are_what_the_command_makes(name, real, tmp_path):
    dataset = {"cvae-mnist": "MNIST", "cvae-fashionmnist": "FashionMNIST"}[name]
    make_page(name, tmp_path, real(dataset))
    found, _ = read_page(PAGES / f"{name}.html")
    expected, _ = read_page(tmp_path / f"{name}.html")
    assert found["labels"] == expected["labels"] and len(found["labels"]) == 500
    latent = found["latent"]
    difference = codes(found["models"][0], latent) - codes(expected["models"][0], latent)
    assert difference.abs().max() < 0.01   # other processors round in another way


def make_page(name, out, data):
    """The page of a small model, with a folder of data."""
    file = ROOT / "results" / "models" / f"{name}.pt"
    generate.main([str(file), "--explore", f"--out={out}", f"--data={data}"])


def without_dots(file):
    """A page around its model, and the model."""
    text = file.read_text(encoding="utf-8")
    around = re.sub(r'(<script id="model".*?>).*?</script>', r"\1", text)
    model, _ = read_page(file)
    model["labels"] = []
    for packed in model["models"]:
        packed["codes"] = ""
    return around, model


def test_the_page_in_a_browser(tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if not browser:
        pytest.skip(f"none of {', '.join(names)} on this machine")
    shape, points = [3, 20, 14], [([0.5, -1, 1], 3), ([-2.25, 1.5, 0], 1), ([0, 0.25, -0.5], 2)]
    models = {"": trained(shape, 4, hidden=500, latent=3),
              "vae_": trained(shape, 0, hidden=500, latent=3)}
    dots = Dots(torch.tensor([0, 2, 1]), {"": torch.arange(9).view(3, 3) / 4,
                                          "vae_": torch.zeros(3, 3)})
    file = write_page(tmp_path / "page.html", models, shape, dots)
    hashes = [f"#z={z[0]},{z[1]},{z[2]}&y={y}&axes=1,3" for z, y in points]
    probe = PROBE.replace("HASHES", json.dumps(hashes))
    probe = probe.replace("RECORDED", (PAGES / "cvae-fashionmnist.html").as_uri())
    with open(file, "a", encoding="utf-8") as page:   # the real page, and a reader of what it shows
        page.write(probe)
    shown = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                            "--no-first-run", "--disable-background-networking",
                            "--allow-file-access-from-files", "--enable-logging=stderr",
                            "--hide-scrollbars",
                            f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()],
                           capture_output=True, text=True, timeout=120)
    assert "Uncaught" not in shown.stderr   # an error of the page
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', shown.stdout)[1]))

    # The images of both models, and of the first one for every class.
    images = torch.tensor(found["images"]).view(3, 2, *shape[1:], 4).permute(1, 0, 4, 2, 3)
    expected = 255 * in_torch(models, points).view(2, 3, *shape)
    assert (images[:, :, :3] - expected).abs().max() <= 2
    assert (images[:, :, 3] == 255).all()   # opaque
    strip = torch.tensor(found["strip"]).view(4, *shape[1:], 4).permute(0, 3, 1, 2)
    expected = 255 * in_torch({"": models[""]}, [(points[2][0], y) for y in range(4)])
    assert (strip[:, :3] - expected.view(4, *shape)).abs().max() <= 2
    assert min(found["times"]) < 50   # two models, each twice the size of the usual one of MNIST

    # What stands around them, at the last address.
    place = "at z₁ = 0.00, z₃ = −0.50, z₂ = 0.25"
    assert found["labels"] == [f"Picture by the CVAE, class é, {place}",
                               f"Picture by the VAE, {place}"]
    assert found["ticks"] == ["−3", "−3", "−2", "−2", "−1", "−1", "0", "0", "1", "1", "2", "2",
                              "z₁", "z₃"]
    assert found["dots"] == [["0", "-0.5", "#1f77b4", None], ["1.5", "-2", "#ff7f0e", None],
                             ["0.75", "-1.25", "#2ca02c", "own"]]   # the chosen class on top
    assert found["switched"] == ["inline", "none"]
    assert 0 < max(map(abs, found["opening"])) < 6   # not the middle: z has three dimensions

    # From the last address: keys of a class, of a tenth to the right and of a fiftieth down; then
    # the pointer, three quarters across and two fifths down.
    assert found["texts"][:4] == [
        [True, "z₁ = 0.00   z₃ = −0.50", "#z=0,0.25,-0.5&y=1&axes=1,3&span=3", "<b>"],
        [True, "z₁ = 0.10   z₃ = −0.50", "#z=0.1,0.25,-0.5&y=1&axes=1,3&span=3", "<b>"],
        [True, "z₁ = 0.10   z₃ = −0.52", "#z=0.1,0.25,-0.52&y=1&axes=1,3&span=3", "<b>"],
        [True, "z₁ = 1.50   z₃ = 0.60", "#z=1.5,0.25,0.6&y=1&axes=1,3&span=3", "<b>"]]
    assert found["sliders"] == [["z₂", "0.25"]]
    assert found["board"] == [15 * 14, 15 * 20, True]   # no image of the plane is missing
    assert found["fills"] == [[3, False], [5, True], [15, True]]   # it was whole after nine

    phone, desk = found["screens"]
    assert phone["screen"] == [390, 844] and desk["screen"] == desk["page"] == [1280, 800]
    assert phone["page"][0] == 390 and phone["classes"] < 844   # these without scrolling
    assert len(phone["targets"]) == 26 and min(phone["targets"]) >= 40
