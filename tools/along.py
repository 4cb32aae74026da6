"""A GAN along its training: whether its samples are good, whether they are diverse, and whether its
discriminator knows the training images by heart.

    python gan.py --save-every 1 --out RUN      # keeps a checkpoint of every evaluation
    python -m tools.along RUN                   # a line for each in RUN/along.csv

precision, recall: of as many samples as there are test images, at most 10,000, as evaluate.py
measures them. A generator that repeats itself keeps its precision and loses recall; one that blurs
loses precision. real_train, real_test, real_samples: the share of training images, test images and
samples that the discriminator takes for real; were it to know the training images by heart, the
first would be far above the second. A critic (--loss wgan-gp) has no such share.
"""
import ctrl_c  # without a traceback, even during these imports
import argparse
import csv
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

import evaluate
import gan
import metrics
from common import fail, write_whole
from run import guarded, load_models

COLUMNS = ("iteration", "precision", "recall", "real_train", "real_test", "real_samples")


def checkpoints(folder):
    """The files checkpoint_N.pt of a run, by N."""
    files = folder.glob("checkpoint_*.pt")
    return sorted(files, key=lambda file: int(file.stem.removeprefix("checkpoint_")))


@torch.no_grad()
def measure(file, data, meter):
    """{column: number} of a checkpoint."""
    checkpoint, _, models = load_models(file)
    trained = models[""]
    images = list(evaluate.draw(trained, meter.labels, seed=1))     # batches in [0, 1]
    row = {"iteration": checkpoint["epoch"]}
    for name, value in meter.distances(images).items():
        row[name.partition("_")[0]] = value
    if trained.args.loss not in gan.THRESHOLD:
        return row

    discriminator = gan.Discriminator(checkpoint["data"]["shape"], trained.model.classes,
                                      trained.args)
    discriminator.load_state_dict(checkpoint["discriminator"])
    discriminator.eval()
    seen = {
        "real_train": (metrics.subset(data.x_train, meter.n),
                       metrics.subset(data.y_train, meter.n)),
        "real_test": (metrics.subset(data.x_test, meter.n), meter.labels),
        "real_samples": (255 * torch.cat(images), meter.labels),
    }
    for name, (x, y) in seen.items():
        logits = [discriminator(gan.for_discriminator(part), labels)
                  for part, labels in zip(x.split(1000), y.split(1000), strict=True)]
        row[name] = (torch.cat(logits) > gan.THRESHOLD[trained.args.loss]).double().mean().item()
    return row


@guarded
def main(argv=()):
    parser = argparse.ArgumentParser(prog="python -m tools.along", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run of gan.py")
    parser.add_argument("--out", default="results", metavar="DIR",
                        help="folder whose cache/ keeps the classifier that measures")
    args = parser.parse_args(argv)
    folder = args.run
    files = checkpoints(folder)
    if not files:
        fail(f"{folder} has no checkpoint_N.pt; train it with gan.py --save-every 1")
    checkpoint, _, _ = load_models(files[0])
    if checkpoint["script"] != "gan":
        fail(f"{folder} is a run of {checkpoint['script']}.py; give one of gan.py")
    options = SimpleNamespace(dataset=None, data=None, device="cpu", fid_features="classifier",
                              out=args.out)
    data = evaluate.load_data_of_run(checkpoint, options)
    meter = evaluate.DistanceMeter(["pr"], data, options)
    rows = []
    for file in files:
        rows.append(measure(file, data, meter))
        print(file, *[f"{name} {value:.3f}" for name, value in rows[-1].items()])

    content = io.StringIO()
    writer = csv.DictWriter(content, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(folder / "along.csv", content.getvalue().encode())


if __name__ == "__main__":
    main(sys.argv[1:])
