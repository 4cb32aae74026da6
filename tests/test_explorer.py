"""generate.py --explore: one page in which a decoder runs. Its pictures are PyTorch's."""
import html
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

import cvae
import gan
import generate
from common import load_checkpoint

POINTS = [([0.5, -1.0], 3), ([-2.25, 1.5], 0), ([0.0, 0.0], 9)]   # z and y

DRIVER = """
const page = JSON.parse(require("fs").readFileSync(0, "utf8")), points = page.points;
const pictures = page.models.map(load).map(model =>
  points.map(([z, y]) => Array.from(decode(model, z, y), value => +value.toFixed(5))));
const times = Array.from({ length: 10 }, () => {
  const start = performance.now();
  decode(page.models[0], ...points[0]);
  return performance.now() - start;
});
console.log(JSON.stringify([pictures, Math.min(...times)]));
"""

PROBE = """<script>
const found = { pictures: [], texts: [], times: [] };
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
  found.pictures.push([...document.querySelectorAll("figure canvas")].map(canvas =>
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
    """The model in the page and the script of its decoder."""
    page = path.read_text()
    model, decoder = (re.search(rf'<script id="{name}".*?>(.*?)</script>', page, re.DOTALL)[1]
                      for name in ("model", "decoder"))
    return json.loads(model), decoder


def node(script, text=""):
    """What a script prints that is given a text to read."""
    if not shutil.which("node"):
        pytest.skip("no node on this machine")
    return subprocess.run(["node", "-e", script], input=text, check=True, text=True, timeout=60,
                          capture_output=True).stdout


def in_node(path, points):
    """The page's decoder under node: pictures (models, points, C * H * W), and milliseconds."""
    model, decoder = read_page(path)
    pictures, ms = json.loads(node(decoder + DRIVER, json.dumps(model | {"points": points})))
    return torch.tensor(pictures), ms


def in_torch(models, points):
    """The same by PyTorch."""
    z, y = torch.tensor([z for z, _ in points]), torch.tensor([y for _, y in points])
    with torch.no_grad():
        return torch.stack([torch.sigmoid(model.decode(z, y)[0]).flatten(1) for model in models])


@pytest.fixture(scope="module")
def page(cvae_run, tmp_path_factory):
    """(explorer.html of the CVAE and its twin, the two models)."""
    out = tmp_path_factory.mktemp("explorer")
    generate.main([str(cvae_run[0]), "--explore", "--out", str(out)])
    return out / "explorer.html", generate.rebuild(load_checkpoint(cvae_run[0]))[0].values()


def test_decoder_of_the_page_draws_what_pytorch_draws(page):
    pictures, ms = in_node(page[0], POINTS)
    expected = in_torch(page[1], POINTS)
    assert expected.std(dim=(1, 2)).min() > 0.05   # pictures, not a grey that fits anything
    assert (pictures - expected).abs().max() < 2 / 255
    assert ms < 50


def write_page(path, arch, shape, latent, classes, hidden=24):
    """The page of untrained models, one for each of `classes`, how many it has. The models."""
    torch.manual_seed(0)
    args = SimpleNamespace(arch=arch, hidden=hidden, layers=2, latent=latent, dropout=0.5, beta=1.0,
                           likelihood="gaussian", sigma="pixel")
    models = {str(n): cvae.CVAE(shape, args, n).eval() for n in classes}
    with torch.no_grad():
        for model in models.values():
            for name, value in model.decoder.state_dict().items():
                if "running" in name:   # as if trained: every channel is normalised its own way
                    value.uniform_(0.5, 2)
                elif value.ndim > 1:
                    value.mul_(4)   # contrast
    data = {"name": "own", "shape": shape, "classes": ["</script>", "<b>", "é", "d"]}
    generate.save_explorer(path, models, args, data)
    return list(models.values())


@pytest.mark.parametrize(("arch", "shape"), [("mlp", [3, 6, 9]), ("conv", [3, 16, 16]),
                                             ("conv", [1, 28, 28])])
def test_every_decoder_there_is_runs_in_the_page(arch, shape, tmp_path):
    models = write_page(tmp_path / "page.html", arch, shape, 5, [4])
    assert read_page(tmp_path / "page.html")[0]["classes"] == ["</script>", "<b>", "é", "d"]
    points = [(torch.randn(5).tolist(), y) for y in (0, 3, 1)]
    pictures, expected = in_node(tmp_path / "page.html", points)[0], in_torch(models, points)
    assert expected.std() > 0.1
    # After the means of the pixels stand their sigmas, which the page leaves alone.
    assert (pictures[..., :expected.shape[2]] - expected).abs().max() < 2 / 255


def test_half_precision_is_read_to_the_bit(page):
    every = torch.arange(65536).to(torch.uint16).view(torch.float16)
    script = read_page(page[0])[1] + "console.log(JSON.stringify(Array.from(HALF)))"
    found = torch.tensor(json.loads(node(script)), dtype=torch.float64)
    finite = every.isfinite()
    assert finite.sum() == 2 * 31 * 1024 and (found == every.double())[finite].all()


def test_most_telling_units_come_first(tmp_path):
    args = SimpleNamespace(arch="mlp", hidden=8, layers=1, latent=6, dropout=0, beta=1.0,
                           likelihood="bernoulli", sigma="learned")
    model = cvae.CVAE([1, 4, 4], args, 0)
    with torch.no_grad():
        model.decoder[0].weight.copy_(torch.tensor([1.0, 5, 2, 6, 0, 3]).expand(8, 6))
    data = {"name": "own", "shape": [1, 4, 4], "classes": []}
    generate.save_explorer(tmp_path / "page.html", {"": model}, args, data)
    assert read_page(tmp_path / "page.html")[0]["units"] == [1, 3, 5, 2, 0, 4]


def test_page_stands_alone(page):
    text = page[0].read_text()
    assert not re.search(r"https?:|\bsrc=|<link|url\(|import |fetch\(", text)
    assert len(text) < 4e6 and "MODEL<" not in text


def test_page_in_the_browser(tmp_path):
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if not browser:
        pytest.skip(f"none of {', '.join(names)} on this machine")
    shape, points = [3, 20, 14], [([0.5, -1, 1], 3), ([-2.25, 1.5, 0], 1), ([0, 0.25, -0.5], 2)]
    models = write_page(tmp_path / "page.html", "mlp", shape, 3, [4, 0], hidden=500)
    hashes = [f"#z={z[0]},{z[1]},{z[2]}&y={y}&axes=1,3" for z, y in points]
    with open(tmp_path / "page.html", "a") as file:   # the real page, and a reader of what it shows
        file.write(PROBE.replace("HASHES", json.dumps(hashes)))
    address = (tmp_path / "page.html").as_uri() + hashes[0]
    shown = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                            "--no-first-run", "--disable-background-networking",
                            f"--user-data-dir={tmp_path / 'profile'}", address],
                           capture_output=True, text=True, timeout=120).stdout
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', shown)[1]))
    pictures = torch.tensor(found["pictures"]).view(3, 2, *shape[1:], 4).permute(1, 0, 4, 2, 3)
    expected = 255 * in_torch(models, points).view(2, 3, *shape)
    assert (pictures[:, :, :3] - expected).abs().max() <= 2
    assert (pictures[:, :, 3] == 255).all()   # opaque
    assert min(found["times"]) < 50   # two models, each twice the size of the usual one of MNIST
    # From the last address: keys of a class, of a tenth to the right and of a fiftieth down; then
    # the pointer, three quarters across and two fifths down.
    assert found["texts"][3:7] == [
        [True, "z₁ = 0.00   z₃ = −0.50", "#z=0,0.25,-0.5&y=1&axes=1,3&span=3", "<b>"],
        [True, "z₁ = 0.10   z₃ = −0.50", "#z=0.1,0.25,-0.5&y=1&axes=1,3&span=3", "<b>"],
        [True, "z₁ = 0.10   z₃ = −0.52", "#z=0.1,0.25,-0.52&y=1&axes=1,3&span=3", "<b>"],
        [True, "z₁ = 1.50   z₃ = 0.60", "#z=1.5,0.25,0.6&y=1&axes=1,3&span=3", "<b>"]]
    assert found["sliders"] == [["z₂", "0.25"]]
    assert found["board"] == [15 * 14, 15 * 20, True]   # no picture of the plane is missing


def test_what_cannot_be_explored_says_what_can(tmp_path, capsys):
    args = {"latent": 1, "arch": "mlp", "hidden": 8, "layers": 1, "dropout": 0,
            "likelihood": "bernoulli", "sigma": "learned", "beta": 1.0, "width": 8,
            "conditional": False}
    shape, space = [1, 28, 28], SimpleNamespace(**args)
    common = {"args": args, "epoch": 1, "rng": {},
              "data": {"name": "own", "shape": shape, "classes": []}}
    torch.save(common | {"script": "vae", "model": cvae.CVAE(shape, space, 0).state_dict()},
               tmp_path / "vae.pt")
    torch.save(common | {"script": "gan", "ema": gan.Generator(shape, space, 0).state_dict()},
               tmp_path / "gan.pt")
    for script in ("vae", "gan"):
        with pytest.raises(SystemExit) as stop:
            generate.main([str(tmp_path / f"{script}.pt"), "--explore", "--out", str(tmp_path)])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and "--explore" in error and "--samples" in error
        assert error.count("\n") == 1
