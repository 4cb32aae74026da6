"""Numbers from finished runs: of one run, what its log does not hold; of several, how they compare.

    python evaluate.py results/vae-MNIST                        # MSE, PSNR, sigma and the ELBO
    python evaluate.py results/vae-MNIST results/vae-MNIST-2    # a table and compare.png
"""
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

import cvae
import vae
from common import batches, check, load_checkpoint, load_data, make_parser, parse_flags
from common import pick_device, read_log


def flags():
    parser = make_parser("evaluate", "Measure one run, or compare several.")
    parser.add_argument("runs", nargs="+", help="run folders; a single one may be a checkpoint")
    parser.add_argument("--data", help="folder of the named data sets (default: the run's)")
    parser.add_argument("--device", default="auto", help="as in vae.py")
    parser.add_argument("--out", default="results", help="folder for compare.png")
    return parser


def rebuild(checkpoint):
    """The models of a checkpoint, {prefix of their columns in the log: model}, and its flags."""
    args, data = SimpleNamespace(**checkpoint["args"]), checkpoint["data"]
    if checkpoint["script"] == "vae":
        models = {"": vae.VAE(data["shape"], args)}
    else:
        models = {"": cvae.CVAE(data["shape"], args, len(data["classes"]))}
        if "vae_model" in checkpoint:
            models["vae_"] = cvae.CVAE(data["shape"], args, 0)
    for prefix, model in models.items():
        model.load_state_dict(checkpoint[f"{prefix}model"])
    return models, args


@torch.no_grad()
def measure(checkpoint, folder, device):
    """{name: number} of a checkpoint on its whole test set. MSE is per pixel on [0, 1], of the mean
    of p(x|z) at z = mu; PSNR = -10 log10 MSE; sse_pm1 is the squared error summed over an image
    with pixels in [-1, 1]."""
    models, args = rebuild(checkpoint)
    data = load_data(args.dataset, folder or args.data, device, args.image_size, args.train_size,
                     args.test_size)
    data, found, is_vae = vae.binarize(data, args), {}, checkpoint["script"] == "vae"
    for prefix, model in models.items():
        model.to(device).eval()
        row = vae.evaluate(model, data, checkpoint["epoch"], args) if is_vae else \
            cvae.evaluate(prefix, model, data, checkpoint["epoch"], args)
        squares = torch.zeros((), dtype=torch.float64)
        for x, y in batches(data.x_test, data.y_test, 1000, shuffle=False):
            label = () if is_vae else (y,)
            mean = torch.sigmoid(model.decode(model.encode(x, *label)[0], *label)[0])
            squares += (mean - x).square().sum().cpu()
        mse = squares.item() / data.x_test.numel()
        row |= {f"{prefix}mse": mse, f"{prefix}psnr": -10 * math.log10(mse),
                f"{prefix}sse_pm1": 4 * mse * data.x_test[0].numel()}
        if hasattr(model, "log_sigma"):
            z = torch.zeros(1, args.latent, device=device)
            log_sigma = model.decode(z, *(() if is_vae else (torch.zeros(1, device=device),)))[1]
            row[f"{prefix}sigma"] = math.exp(log_sigma)
        found |= row
    return found


def read_flags(run):
    """A run's flags as {name: text}, from its args.txt."""
    file = Path(run, "args.txt")
    check(file.is_file(), f"{run} is no run folder: it has no args.txt")
    lines = [line for line in file.read_text().splitlines() if line.startswith("--")]
    return {name.lstrip("-"): value for name, _, value in (line.partition("=") for line in lines)}


def compare(runs, out):
    """Print the flags in which the runs differ beside their last numbers; draw compare.png."""
    flags_of, logs = {run: read_flags(run) for run in runs}, {run: read_log(run) for run in runs}
    names = sorted({name for flags in flags_of.values() for name in flags} - {"quiet", "data"})
    differ = [name for name in names if len({flags.get(name) for flags in flags_of.values()}) > 1]
    columns = ["test_loss", "test_recon", "test_kl", "active"]
    print(" | ".join(["run", *differ, "epochs done", *columns, "seconds"]))
    for run in runs:
        last, seconds = logs[run][-1], sum(row["seconds"] for row in logs[run])
        numbers = ["" if last[name] is None else f"{last[name]:.2f}" for name in columns]
        values = [flags_of[run].get(name, "") for name in differ]
        cells = [Path(run).name, *values, f"{last['epoch']:.0f}", *numbers, f"{seconds:.0f}"]
        print(" | ".join(cells))

    from matplotlib.figure import Figure
    figure = Figure(figsize=(16, 5), layout="constrained")
    panels = figure.subplots(1, 4)
    for run, rows in logs.items():
        values = [f"{flag} {flags_of[run].get(flag, '-')}" for flag in differ]
        name = ", ".join(values) or Path(run).name
        for axes, term in zip(panels, ("test_loss", "test_recon", "test_kl"), strict=False):
            axes.plot([row["epoch"] for row in rows], [row[term] for row in rows], label=name)
            axes.set(title=term, xlabel="epoch", ylabel="nats per image")
        rate = [rows[-1]["test_kl"] or 0]
        panels[3].plot(rate, [rows[-1]["test_recon"]], "o", label=name)
    panels[3].set(title="rate and distortion, last epoch", xlabel="test_kl", ylabel="test_recon")
    figure.legend(*panels[3].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    Path(out).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(out, "compare.png"))
    print(Path(out, "compare.png"))


def main(argv=(), **overrides):
    """One run: print its numbers and append them to its evaluation.jsonl. Several: compare them."""
    args, _ = parse_flags(flags(), argv, overrides)
    if len(args.runs) > 1:
        return compare(args.runs, args.out)
    run = args.runs[0]
    checkpoint = load_checkpoint(run)
    check(checkpoint["script"] in ("vae", "cvae"), f"{run} is a run of {checkpoint['script']}.py")
    found = measure(checkpoint, args.data, pick_device(args.device))
    for name, value in found.items():
        print(f"{name:16} {value:.6g}")
    if Path(run).is_dir():
        with open(Path(run, "evaluation.jsonl"), "a") as file:
            file.write(json.dumps({"epoch": checkpoint["epoch"], **found}) + "\n")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
