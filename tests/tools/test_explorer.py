"""generate.py --explore: one page in which a decoder runs. Its images are PyTorch's."""
import html
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import cvae
import generate
import run
from tools.explorer import pack_layer, save_explorer

POINTS = [([0.5, -1.0], 3), ([-2.25, 1.5], 0), ([0.0, 0.0], 9)]   # z and y
ACTIVATIONS = [nn.ReLU(), nn.LeakyReLU(0.2), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Softplus(),
               nn.Softplus(beta=3.0, threshold=2.0), nn.ELU(), nn.ELU(alpha=0.5)]

DRIVER = """
const page = JSON.parse(require("fs").readFileSync(0, "utf8")), points = page.points;
const images = page.models.map(load).map(model =>
  points.map(([z, y]) => Array.from(decode(model, z, y), value => +value.toFixed(5))));
const times = Array.from({ length: 10 }, () => {
  const start = performance.now();
  decode(page.models[0], ...points[0]);
  return performance.now() - start;
});
console.log(JSON.stringify([images, Math.min(...times)]));
"""

PROBE = """<script>
const found = { images: [], texts: [], times: [] };
function redraw() {   // now, and not with the next frame, which the page must have asked for
  const start = performance.now(), asked = waiting;
  frame(start);
  write();
  found.texts.push([asked, $("where").value, location.hash,
                    document.querySelector("#y [aria-pressed=true]").textContent]);
  return performance.now() - start;
}
const press = (key, properties) => {
  document.body.dispatchEvent(new KeyboardEvent("keydown",
                                                { key, bubbles: true, ...properties }));
  redraw();
};
for (const hash of HASHES) {
  if (location.hash !== hash) {   // the first one the page was opened with
    location.hash = hash;
    dispatchEvent(new HashChangeEvent("hashchange"));
  }
  redraw();
  found.images.push([...document.querySelectorAll("figure canvas")].map(canvas =>
    [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]));
}
press("1");
press("ArrowRight");
press("ArrowDown", { shiftKey: true });
const box = plane.getBoundingClientRect();
plane.dispatchEvent(new PointerEvent("pointermove", {
  buttons: 1, clientX: box.left + 0.75 * box.width, clientY: box.top + 0.4 * box.height }));
for (let i = 0; i < 10; i++) found.times.push(redraw());
while (due) redraw();
const tiles = board.getContext("2d").getImageData(0, 0, board.width, board.height).data;
found.board = [board.width, board.height, tiles.every((value, i) => i % 4 < 3 || value === 255)];
found.sliders = [...document.querySelectorAll("#sliders label")].map(label =>
  [label.firstChild.data, label.lastChild.value]);
add(document.body, "pre", { id: "found", textContent: JSON.stringify(found) });
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


def write_page(path, models, shape):
    """The page of models {prefix: run.Trained}."""
    card = {"name": "own", "shape": shape, "classes": ["</script>", "<b>", "é", "d"]}
    latent = models[""].args.latent
    save_explorer(path, models, card, list(range(latent)), "own.py")
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
    models = {"": trained(shape, 4, arch=arch)}
    file = write_page(tmp_path / "page.html", models, shape)
    assert read_page(file)[0]["classes"] == ["</script>", "<b>", "é", "d"]
    points = [(torch.randn(5).tolist(), y) for y in (0, 3, 1)]
    images, _ = in_node(file, points)
    expected = in_torch(models, points)
    assert expected.std() > 0.1
    # After the means of the pixels stand their sigmas, which the page leaves alone.
    assert (images[..., :expected.shape[2]] - expected).abs().max() < 2 / 255


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


def test_the_page_in_a_browser(tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if not browser:
        pytest.skip(f"none of {', '.join(names)} on this machine")
    shape, points = [3, 20, 14], [([0.5, -1, 1], 3), ([-2.25, 1.5, 0], 1), ([0, 0.25, -0.5], 2)]
    models = {"": trained(shape, 4, hidden=500, latent=3),
              "vae_": trained(shape, 0, hidden=500, latent=3)}
    file = write_page(tmp_path / "page.html", models, shape)
    hashes = [f"#z={z[0]},{z[1]},{z[2]}&y={y}&axes=1,3" for z, y in points]
    with open(file, "a", encoding="utf-8") as page:   # the real page, and a reader of what it shows
        page.write(PROBE.replace("HASHES", json.dumps(hashes)))
    shown = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                            "--no-first-run", "--disable-background-networking",
                            f"--user-data-dir={tmp_path / 'profile'}", file.as_uri() + hashes[0]],
                           capture_output=True, text=True, timeout=120).stdout
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', shown)[1]))
    images = torch.tensor(found["images"]).view(3, 2, *shape[1:], 4).permute(1, 0, 4, 2, 3)
    expected = 255 * in_torch(models, points).view(2, 3, *shape)
    assert (images[:, :, :3] - expected).abs().max() <= 2
    assert (images[:, :, 3] == 255).all()   # opaque
    assert min(found["times"]) < 50   # two models, each twice the size of the usual one of MNIST
    # From the last address: keys of a class, of a tenth to the right and of a fiftieth down; then
    # the pointer, three quarters across and two fifths down.
    assert found["texts"][3:7] == [
        [True, "z₁ = 0.00   z₃ = −0.50", "#z=0,0.25,-0.5&y=1&axes=1,3&span=3", "<b>"],
        [True, "z₁ = 0.10   z₃ = −0.50", "#z=0.1,0.25,-0.5&y=1&axes=1,3&span=3", "<b>"],
        [True, "z₁ = 0.10   z₃ = −0.52", "#z=0.1,0.25,-0.52&y=1&axes=1,3&span=3", "<b>"],
        [True, "z₁ = 1.50   z₃ = 0.60", "#z=1.5,0.25,0.6&y=1&axes=1,3&span=3", "<b>"]]
    assert found["sliders"] == [["z₂", "0.25"]]
    assert found["board"] == [15 * 14, 15 * 20, True]   # no image of the plane is missing
