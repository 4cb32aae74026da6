"""A GAN along its training: are the samples good, are they diverse, and does the discriminator know
the training images by heart?

    python gan.py --save-every 1 --out RUN      # keeps a checkpoint of every evaluation
    python -m tools.along RUN                   # a line for each, in RUN/along.csv

precision_..., recall_...: of as many samples as there are test images, at most 10,000, as
evaluate.py measures them. A generator that repeats itself keeps its precision and loses recall; one
that blurs loses precision. _ceiling: of training images.

passes_train, passes_test, passes_samples: the share of as many training images that the run has
seen, of test images, and of those samples that pass for real with the discriminator. If it knew the
training images by heart, the first would be far above the second. Samples are of the averaged
weights, so that the third is not quite what the discriminator plays against. A critic (--loss
wgan-gp) has no threshold, and so no such shares.
"""
import ctrl_c  # without a traceback, even during these imports
import argparse
import contextlib
import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

import evaluate
import metrics
from common import fail, tell
from readers import load_data
from run import data_options, guarded, load_models, path_text, say_nothing, write_log


def checkpoints(folder):
    """The files checkpoint_N.pt of a run, by N."""
    files = {}
    for file in Path(folder).glob("checkpoint_*.pt"):
        number = re.fullmatch(r"checkpoint_(\d+)", file.stem)
        if number:
            files[int(number[1])] = file
    return [files[n] for n in sorted(files)]


@torch.no_grad()
def measure(file, data, meter, device):
    """{column: number} of a checkpoint; data: with the training images that the run has seen."""
    with contextlib.redirect_stdout(io.StringIO()):   # what it warns of was said before
        checkpoint, module, models = load_models(file, device)
    trained = models[""]
    samples = list(evaluate.draw(trained, meter.labels, seed=1))    # batches in [0, 1]
    row = {"iteration": checkpoint["epoch"]} | meter.distances(samples)
    threshold = module.THRESHOLD.get(trained.args.loss)
    if threshold is None:
        return row

    generator = trained.model
    discriminator = module.Discriminator(generator.shape, generator.classes, trained.args)
    discriminator.load_state_dict(checkpoint["discriminator"])
    discriminator.to(device).eval()
    images = {
        "train": (metrics.subset(data.x_train, meter.n), metrics.subset(data.y_train, meter.n)),
        "test": (metrics.subset(data.x_test, meter.n), metrics.subset(data.y_test, meter.n)),
        "samples": (255 * torch.cat(samples), meter.labels),
    }
    for name, (x, y) in images.items():
        passed = 0
        for start in range(0, len(x), 1000):
            batch = module.for_discriminator(x[start:start + 1000])
            logits = discriminator(batch, y[start:start + 1000])
            passed += (logits > threshold).sum().item()
        row[f"passes_{name}"] = passed / len(x)
    return row


@guarded
def main(argv=()):
    parser = argparse.ArgumentParser(prog="python -m tools.along", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=path_text, metavar="RUN", help="folder of a run of gan.py, or of a copy")
    add("--dataset", type=path_text, metavar="NAME|PATH", help="the run's, if it was moved since")
    add("--data", type=path_text, metavar="DIR", help="folder of named sets (default: the run's)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 or mps")
    add("--out", type=path_text, default="results", metavar="DIR",
        help="folder whose cache/ keeps the classifier that measures")
    args = parser.parse_args(argv)
    files = checkpoints(args.run)
    if not files:
        fail(f"{args.run} has no checkpoint_N.pt; use the folder of a run of gan.py --save-every 1")
    checkpoint, module, _ = load_models(files[-1])
    if not hasattr(module, "Discriminator"):
        fail(f"{args.run} is a run of {checkpoint['script']}.py, which has no discriminator; use "
             "one of gan.py")
    if len(files) == 1:
        tell("note: a single checkpoint; gan.py --save-every 1 keeps one of every evaluation")

    args.fid_features = "classifier"
    data = evaluate.load_data_of_run(checkpoint, args)
    evaluate.note_changed_data(checkpoint, data)
    meter = evaluate.DistanceMeter(["pr"], data, args)
    bounds = meter.bounds()
    run_args = SimpleNamespace(**checkpoint["args"])
    if run_args.train_size is not None:
        data = load_data(args.dataset or run_args.dataset, args.data, args.device,
                         **data_options(run_args), say=say_nothing)

    rows = []
    for file in files:
        rows.append(measure(file, data, meter, args.device) | bounds)
        write_log(Path(args.run, "along.csv"), rows)
        numbers = [f"{name} {value:.3f}" for name, value in rows[-1].items()
                   if name != "iteration" and name not in bounds]
        tell(f"iteration {rows[-1]['iteration']}: {', '.join(numbers)}")


if __name__ == "__main__":
    main(sys.argv[1:])
