"""The latent explorer: decoders packed into tools/explorer.html, a page that needs nothing else.

`python generate.py RUN --explore` writes it. Those in results/explorer/ are made in this way, with
`--out results/explorer`, of the models of the same names in results/models/.
"""
import base64
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from common import fail, write_whole

TEMPLATE = Path(__file__).with_name("explorer.html")
IGNORED = (nn.Dropout, nn.Dropout2d, nn.Unflatten)   # nothing to do: all arrays there are flat


class Dots(NamedTuple):
    """Test images as dots in the plane."""
    labels: torch.Tensor   # int64 (N,)
    codes: dict            # {prefix of a model: the means of their posteriors, (N, latent)}


def save_explorer(path, models, card, units, script, dots=None):
    """Write the page with the decoders of the models, {prefix: run.Trained}, in it.

    card: name, shape and classes of the data, as in a checkpoint; units: the latent units, the most
    active ones first; script: the file that the models come from, for messages; dots: Dots, if the
    data are there. Ends the program with one line if the page cannot show the models.
    """
    packed = []
    for prefix, trained in models.items():
        check_decoder(trained, card["shape"], script)
        conditions = [condition._asdict() for condition in trained.conditions]
        packed.append({"name": trained.name, "classes": trained.classes, "conditions": conditions,
                       "layers": pack(trained.model.decoder, script),
                       "codes": "" if dots is None else text(dots.codes[prefix])})

    first = models[""]
    names = [trained.name for trained in models.values()]
    page = {
        "title": f"{' and '.join(names)} of {card['name']}",
        "latent": first.latent,
        "units": sorted(units[:2]) + units[2:],   # the plane's axes in their usual order
        "prior": not first.is_autoencoder and first.prior() is None,   # rings around N(0, I)
        "shape": card["shape"],
        "classes": card["classes"],
        "labels": [] if dots is None else dots.labels.tolist(),
        "models": packed,
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    filled = json.dumps(page).replace("<", "\\u003c")   # a class may be called </script>
    write_whole(path, template.replace("MODEL</", filled + "</").encode())


def check_decoder(trained, shape, script):
    """End the program unless the mean of p(x|z,c) is sigmoid(decoder(z and c)), a label one-hot,
    which is what the page computes: the first C channels, where there are more."""
    decoder = getattr(trained.model, "decoder", None)
    if not isinstance(decoder, nn.Sequential):
        fail(f"--explore needs a decoder that is an nn.Sequential, as in vae.py; {script} has none")
    for layer in decoder:
        if isinstance(layer, nn.ConvTranspose2d) and shape[1] != shape[2]:
            fail("--explore shows convolutions of square images only; try --manifold")

    device = next(decoder.parameters()).device
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(8, trained.latent, generator=generator).to(device)
    y = torch.arange(8, device=device) % max(1, trained.classes)
    h = z
    if trained.n_c > 0:
        c = trained.as_condition(y)
        if c.ndim == 1:
            c = F.one_hot(c, trained.classes)
        h = torch.cat([z, c], dim=1)   # (8, latent + n_c)
    mean = trained.decode(z, y).mean
    try:
        shown = torch.sigmoid(decoder(h)[:, :shape[0]])
        same = torch.allclose(shown, mean, atol=1e-4)
    except (RuntimeError, IndexError):   # the decoder takes something else, or gives it
        same = False
    if not same:
        fail(f"--explore shows sigmoid(decoder(z)), but decode() of {script} has another mean; "
             "try --manifold")


def pack(decoder, script):
    """The layers of a decoder as the page knows them: a list of plain dictionaries."""
    layers = []
    for layer in decoder:
        if type(layer) in IGNORED:
            continue
        packed = pack_layer(layer)
        if packed is None:
            fail(f"--explore cannot show the layer {layer} of {script}; try --manifold")
        layers.append(packed)
    return layers


def pack_layer(layer):
    """One layer, its "kind" being its name among LAYERS in explorer.html; None: it is not there.

    A subclass counts as another layer, for it may compute something else.
    """
    kind = type(layer)
    if kind is nn.Linear:
        return {"kind": "linear", "weight": text(layer.weight),
                "bias": text(bias(layer, layer.out_features))}
    if kind is nn.ConvTranspose2d and doubles(layer):
        return {"kind": "up", "weight": text(layer.weight),
                "bias": text(bias(layer, layer.out_channels))}
    if kind is nn.BatchNorm2d and layer.affine and layer.track_running_stats:
        scale = layer.weight / (layer.running_var + layer.eps).sqrt()
        shift = layer.bias - layer.running_mean * scale
        return {"kind": "norm", "scale": text(scale), "shift": text(shift)}
    if kind is nn.ReLU:
        return {"kind": "relu", "slope": 0}
    if kind is nn.LeakyReLU:
        return {"kind": "relu", "slope": layer.negative_slope}
    if kind is nn.GELU and layer.approximate == "none":
        return {"kind": "gelu"}
    if kind is nn.SiLU:
        return {"kind": "silu"}
    if kind is nn.Tanh:
        return {"kind": "tanh"}
    if kind is nn.Softplus:
        return {"kind": "softplus", "beta": layer.beta, "threshold": layer.threshold}
    if kind is nn.ELU:
        return {"kind": "elu", "alpha": layer.alpha}
    return None


def doubles(layer):
    """Whether a ConvTranspose2d is the one of the page, which doubles both sides."""
    return (layer.kernel_size == (4, 4) and layer.stride == (2, 2) and layer.padding == (1, 1)
            and layer.output_padding == (0, 0) and layer.dilation == (1, 1) and layer.groups == 1)


def bias(layer, n):
    """The bias of a layer with n outputs, (n,); zeros if it has none."""
    if layer.bias is None:
        return torch.zeros(n)
    return layer.bias


def text(tensor):
    """A tensor as base64 of float16, little endian, rows first."""
    array = tensor.detach().cpu().numpy().astype("<f2")
    return base64.b64encode(array.tobytes()).decode()
