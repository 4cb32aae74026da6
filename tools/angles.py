"""What a model of turned images makes of their angle: a run of vae.py or cvae.py with --rotate.

    python -m tools.angles results/cvae-MNIST

Prints these numbers, and appends them to the run's evaluation.jsonl; those of the twin follow after
`vae_`. N counts test images.

    angle_error_real_N  mean absolute error, in degrees, of a network that was trained to tell the
                        angle of real images, blurred ones among them, on real test images
    angle_error_N       how far the angle of samples is from the one asked for, by that network; a
                        label and an angle for each test image; of a model that is told the angle
    angle_r2_N          how much of the angle a line reads off mu: R^2 of a linear regression of cos
                        and sin on mu, the mean of both; 0: nothing, 1: all. What is in mu in a way
                        that no line can read off does not show
    mu_accuracy_N       the same of the class: how often a logistic regression on mu is right
"""
import ctrl_c  # without a traceback, even during these imports
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

import metrics
from common import as_in_training, batches, binarize, fail, tell, vectors
from evaluate import append_line, draw
from readers import load_data
from run import data_options, guarded, load_models

SEED = 1         # of the samples, and of training images that are drawn
FITTED = 10_000  # training images to fit the regressions to, at most


def angles_of(numbers):
    """cos and sin (N, 2) of angles -> the angles in degrees, (N,)."""
    return torch.rad2deg(torch.atan2(numbers[:, 1], numbers[:, 0]))


def mean_error(found, asked):
    """Mean absolute difference of angles in degrees, (N,) each, the short way round."""
    difference = (found - asked + 180) % 360 - 180
    return difference.abs().mean().item()


def load_turned(checkpoint, folder):
    """The data of a run; cos and sin of each angle are the last numbers of its vectors, whatever
    the model is told. The network that tells angles sees all training images, as classifiers do."""
    args = SimpleNamespace(**checkpoint["args"])
    if getattr(args, "rotate", None) is None:
        fail("this run has no angles; train one with --rotate")
    options = data_options(args) | {"condition": "angle", "train_size": None}
    return load_data(args.dataset, folder or args.data, **options)


def train_regressor(data):
    """A network, images -> cos and sin of their angles (B, 2), and its error in degrees on the real
    test images."""
    target = data._replace(y_train=data.v_train[:, -2:])
    network = metrics.trained_network(target, "regressor", "results/cache", quiet=False)
    found = [network(x) for x in metrics.image_batches(data.x_test, len(data.x_test))]
    asked = metrics.subset(data.v_test[:, -2:], len(data.x_test))   # in the same order
    return network, mean_error(angles_of(torch.cat(found)), angles_of(asked))


def told(trained, y, numbers):
    """What a model is told of images: their labels y (N,), or vectors (N, n_c)."""
    if not trained.conditions:
        return y
    return vectors(y, trained.classes, numbers)


def sample_error(trained, network, data):
    """The error in degrees of samples whose labels and angles are those of the test images."""
    c = told(trained, data.y_test, data.v_test)
    found = [network(x) for x in draw(trained, c, SEED)]
    return mean_error(angles_of(torch.cat(found)), angles_of(data.v_test[:, -2:]))


def codes(trained, x, c, training=False):
    """mu of uint8 images, (N, latent), as an array; training: of training images."""
    mus = []
    for images, part in batches(x, c, 1000, shuffle=False):
        if training:
            images = as_in_training(images, trained.args)
        mu, _ = trained.encode(images, part)
        mus.append(mu)
    return torch.cat(mus).numpy()


def what_codes_tell(trained, data):
    """R^2 of the angle and the share of right classes, of mu of the test images."""
    from sklearn.linear_model import LinearRegression, LogisticRegression
    n = min(FITTED, len(data.x_train))
    x, y = metrics.subset(data.x_train, n), metrics.subset(data.y_train, n)
    numbers = metrics.subset(data.v_train, n)
    with metrics.seeded(SEED):
        mu = codes(trained, x, told(trained, y, numbers), training=True)
    mu_test = codes(trained, data.x_test, told(trained, data.y_test, data.v_test))

    of_angle = LinearRegression().fit(mu, numbers[:, -2:].numpy())
    r2 = of_angle.score(mu_test, data.v_test[:, -2:].numpy())
    if len(data.classes) < 2:
        return {f"angle_r2_{len(mu_test)}": r2}
    of_class = LogisticRegression(max_iter=1000).fit(mu, y.numpy())
    accuracy = of_class.score(mu_test, data.y_test.numpy())
    return {f"angle_r2_{len(mu_test)}": r2, f"mu_accuracy_{len(mu_test)}": accuracy}


@guarded
@torch.no_grad()
def main(argv):
    """Measure the run argv[0], with the folder argv[1] for named data sets, the run's by default.
    Returns {name: number}."""
    run, folder = argv[0], argv[1] if len(argv) > 1 else None
    checkpoint, _, models = load_models(run)
    if not models[""].has_encoder:
        fail(f"{run} is a run of {checkpoint['script']}.py, whose model has no encoder; use one of "
             "vae.py or cvae.py")
    data = load_turned(checkpoint, folder)
    seen = binarize(data, models[""].args)   # as the models saw it
    n = len(data.x_test)
    network, error = train_regressor(data)
    found = {f"angle_error_real_{n}": error}
    for prefix, trained in models.items():
        row = {}
        if any(condition.kind == "angle" for condition in trained.conditions):
            row[f"angle_error_{n}"] = sample_error(trained, network, data)
        row |= what_codes_tell(trained, seen)
        for name, value in row.items():
            found[prefix + name] = value
    for name, value in found.items():
        tell(f"{name} {value:.4g}")
    if Path(run).is_dir():
        append_line(Path(run, "evaluation.jsonl"), {"epoch": checkpoint["epoch"], **found})
    return found


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        fail("a run is needed, and the folder of the data sets if it was moved: "
             "python -m tools.angles RUN [DATA]")
    main(sys.argv[1:])
