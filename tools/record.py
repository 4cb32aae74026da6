"""Write results/README.md from what lies in results/runs/: python -m tools.record

`result` is the mean over the seeds of one column in the last row of each log. No result is typed:
the numbers in the findings come from the logs as well, and only what is said about them, what was
aimed at and the references are written here.
"""
import csv
import json
import math
import re
import statistics
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "results"
RUNS = RESULTS / "runs"
COLUMNS = ("experiment", "command", "n", "result", "sd", "epoch_s", "device", "reference", "source")
PLOT = "DLA_interview, read off its plot"
PYTORCH = "pytorch/examples vae, 10 epochs"
OWN = "aimed at: the classifier's own accuracy, 0.909; missed, see below"
PATCHED = "by a patched vae.py"
HELD_OUT = "on 5,000 training images held out"
COLOUR = "on 2,500 training images held out"
HALF = "half of the training images of CIFAR-10; the whole test set"
BIRDS = "course work, 30,000 iterations, clean-fid: another distance, not to be compared"

# experiment, its run folders (the seeds share a pattern), column, reference, source
EXPERIMENTS = [
    ("VAE MNIST 784-400-20 rate 1e-3", "vae-mnist-400-constant-s*", "test_loss", 105.56, PYTORCH),
    ("VAE MNIST 784-400-20 default rate", "vae-mnist-400-s*", "test_loss", 105.56, PYTORCH),
    ("VAE MNIST defaults", "vae-mnist-s*", "test_loss", None, None),
    ("VAE MNIST z2", "cvae-mnist-z2-s*", "vae_test_loss", 147.5, f"{PLOT}, best; 148.5 last"),
    ("CVAE MNIST z2", "cvae-mnist-z2-s*", "test_loss", 130.3, f"{PLOT}, best; last 131.3"),
    ("VAE FashionMNIST z10", "cvae-fashionmnist-z10-s*", "vae_test_loss", 239.2, PLOT),
    ("CVAE FashionMNIST z10", "cvae-fashionmnist-z10-s*", "test_loss", 235.8, PLOT),
    ("VAE FashionMNIST z10 20 epochs", "cvae-fashionmnist-z10-20-*", "vae_test_loss", None, None),
    ("CVAE FashionMNIST z10 20 epochs", "cvae-fashionmnist-z10-20-*", "test_loss", None, None),
    ("VAE KMNIST z10", "python cvae.py --dataset KMNIST --latent 10 --epochs 200", None, 225,
     f"{PLOT}; not run: the files were not at hand"),
    ("CVAE KMNIST z10", "python cvae.py --dataset KMNIST --latent 10 --epochs 200", None, 219,
     f"{PLOT}; not run: the files were not at hand"),
    ("VAE MNIST z2 20 epochs", "cvae-mnist-z2-20-epochs*", "vae_test_loss", None, None),
    ("CVAE MNIST z2 20 epochs", "cvae-mnist-z2-20-epochs*", "test_loss", None, None),
    ("MLP VAE CIFAR-10 z10", "cvae-cifar10-z10", "vae_test_loss", None, HALF),
    ("MLP CVAE CIFAR-10 z10", "cvae-cifar10-z10", "test_loss", None, HALF),
    *((f"VAE FashionMNIST size of z: {z}", f"vae-fashionmnist-z{z}", "test_loss", None, None)
      for z in (2, 5, 10, 20, 50)),
    *((f"VAE FashionMNIST z10 {what}", f"vae-fashionmnist-z10-{what.replace(' ', '')}",
       "test_loss", None, None) for what in ("beta 0.5", "beta 2", "beta 4", "hidden 200",
                                             "hidden 1000", "epochs 5", "epochs 50")),
    ("CVAE MNIST z2: class_accuracy_1000", "cvae-mnist-z2-20-epochs", "class_accuracy_1000", None,
     "aimed at: 0.98"),
    ("CVAE FashionMNIST z10: class_accuracy_1000", "cvae-fashionmnist-z10-20-epochs",
     "class_accuracy_1000", None, OWN),
    ("conv CVAE FashionMNIST z10 20 epochs", "cvae-conv-fashionmnist-z10", "test_loss", None, None),
    ("conv CVAE FashionMNIST z10: class_accuracy_1000", "cvae-conv-fashionmnist-z10",
     "class_accuracy_1000", None, OWN),
    *((f"CVAE FashionMNIST z10 beta {beta}: class_accuracy_1000",
       f"cvae-fashionmnist-z10-beta{beta}", "class_accuracy_1000", None,
       "aimed at: the classifier's own accuracy, 0.909") for beta in (2, 4)),
    ("conv CVAE MNIST z2 threshold 10 epochs: class_accuracy_1000", "cvae-conv-mnist-z2-threshold",
     "class_accuracy_1000", None, "aimed at: 0.95"),
    *((f"conv CVAE MNIST z2 gaussian, sigma {sigma}: sse_pm1",
       f"cvae-conv-mnist-z2-gaussian-{sigma}",
       "sse_pm1", None, None) for sigma in ("1", "learned", "pixel")),
    ("free_classifier_is500_1000 MNIST z20", "cvae-mnist-z20", "free_classifier_is500_1000", None,
     "aimed at: 0.95"),
    ("free_classifier_is500_1000 MNIST z2", "cvae-mnist-z2-20-epochs",
     "free_classifier_is500_1000", None, None),
    ("nll_is500 MNIST dynamic z50 mlp", "vae-mnist-dynamic-z50-two-layers-s*", "nll_is500", 86.76,
     "IWAE paper, VAE of 2 x 200; aimed at: 87.5"),
    ("nll_is500 MNIST dynamic z50 mlp of one hidden layer", "vae-mnist-dynamic-z50", "nll_is500",
     None, None),
    ("nll_is500 MNIST dynamic z50 conv", "vae-conv-mnist-dynamic-z50-hidden48", "nll_is500",
     84.78, "IWAE paper, k = 50, 2 x 200; aimed at: 84.0"),
    *((f"nll_is500 MNIST dynamic z50 conv of 32 channels, {n} epochs",
       f"vae-conv-mnist-dynamic-z50{run}", "nll_is500", None, None)
      for n, run in ((100, "-100-epochs"), (30, ""))),
    *((f"conv VAE MNIST dynamic z50, {what}", f"vae-conv-mnist-dynamic-z50-{run}", "test_loss",
       None, None) for run, what in (("hidden48", "48 channels, 100 epochs"),
                                     ("100-epochs", "100 epochs"),
                                     ("batch-64", "120 epochs in batches of 64"))),
    ("conv VAE MNIST z20", "vae-conv-mnist-z20-full*", "test_loss", 130.9,
     "GenZoo conv VAE, 100 epochs, in training mode"),
    ("conv VAE CIFAR-10 z1024 learned sigma: sse_pm1", "vae-conv-cifar10-z1024-learned-s1",
     "sse_pm1", None, HALF),
    ("conv VAE CIFAR-10 z1024 sigma 0.3536: recon as squared error",
     "vae-conv-cifar10-z1024-sse-amp-s*", "sse", None, HALF),
    ("the same, beta from 0 to 1, epoch 19", "vae-conv-cifar10-z1024-linear-amp-s*", "sse_19", 125,
     f"course work, at most this in epoch 19; {HALF}"),
    *((f"the same, {what}", f"vae-conv-cifar10-z1024-beta-{run}", "sse", None, HALF)
      for run, what in (("0.8", "beta 0.8"), ("1.2", "beta 1.2"), ("cyclical", "cyclical"))),
    *((f"conv AE CIFAR-10 z{z}: sse_pm1", f"ae-conv-cifar10-z{z}{seeds}", "sse_pm1", None, HALF)
      for z, seeds in ((16, "*"), (128, "*"), (1024, ""))),
    ("conv AE CIFAR-10 z1024 rate 2e-3: sse_pm1", "ae-conv-cifar10-z1024-lr2e-3", "sse_pm1", None,
     HALF),
    *((f"PCA CIFAR-10 {z} components: sse_pm1", "pca-cifar10", f"sse_pm1_{z}", None, HALF)
      for z in (16, 50, 128, 1024)),
    ("conv CVAE CIFAR-10 gaussian z50: psnr", "cvae-conv-cifar10-z50*", "psnr", 20.10,
     f"PCA of 50 components; aimed at: 20.5; {HALF}"),
    *((f"{loss} birds, last: fid_cifar10_603", f"gan-birds-{loss}", "fid", reference, BIRDS)
      for loss, reference in (("gan", 146), ("lsgan", 52.57), ("wgan-gp", 38.6))),
    *((f"wgan-gp birds with {what}, last: fid_cifar10_603",
       f"gan-birds-wgan-gp-{run}", "fid", None, None)
      for run, what in (("7500", "--iterations 7500"), ("critic-steps-1", "--critic-steps 1"),
                        ("lr-2e-3", "--lr 2e-3"))),
    *((f"{loss} MNIST, {what}: fid_classifier_10000", f"gan-mnist-{loss}", column, None, None)
      for loss in ("gan", "lsgan", "wgan-gp") for what, column in (("last", "fid"),
                                                                 ("best", "best_fid"))),
    ("conditional lsgan MNIST, last: fid_classifier_10000", "gan-mnist-conditional",
     "fid_classifier_10000", None, None),
    ("conditional lsgan MNIST: class_accuracy_1000", "gan-mnist-conditional", "class_accuracy_1000",
     None, "aimed at: 0.97"),
    *((f"choice of the rate: {run}", f"heldout-gan-{run}", "fid", None, HELD_OUT) for run in
      ("lsgan-2e-4", "lsgan-1e-3", "wgan-gp-2e-4", "wgan-gp-1e-3")),
    ("choice of the layers: conv without a fully connected one", "heldout-conv-no-full",
     "test_loss", None, f"{HELD_OUT}; before there was --layers: today --layers 0"),
    ("choice of the layers: conv with one", "heldout-conv-full", "test_loss", None, HELD_OUT),
    *((f"choice of the MLP: {what}: nll_is500", f"heldout-mlp-{run}", "nll_is500", None, HELD_OUT)
      for run, what in (("500-2e-3", "500 units at 2e-3"), ("500-5e-3", "500 units at 5e-3"),
                        ("1000-2e-3", "1,000 units at 2e-3"))),
    *((f"choice of the MLP: 2 x 500 at {rate}: nll_is500", f"heldout-mlp-two-{rate}", "nll_is500",
       None, f"{HELD_OUT}; {PATCHED}: today --layers 2") for rate in ("1e-3", "2e-3", "5e-3")),
    *((f"choice of the rate: conv {rate}", f"heldout-conv55-{rate}", "test_loss", None, HELD_OUT)
      for rate in ("2e-3", "5e-3")),
    *((f"choice of the layers: conv AE CIFAR-10 z128, {what}: sse_pm1", f"heldout-ae128-{run}",
       "sse_pm1", None, COLOUR) for run, what in
      (("5e-3-layers0", "--layers 0 at 5e-3"), ("2e-3-layers0", "--layers 0 at 2e-3"),
       ("1e-3-layers0", "--layers 0 at 1e-3"), ("5e-3", "--layers 1 at 5e-3"),
       ("2e-3", "--layers 1 at 2e-3"), ("5e-3-hidden64", "--layers 1, twice as wide at 5e-3"))),
    *((f"choice of the layers: conv AE CIFAR-10 z128, --layers 1, {what} normalisation at 2e-3: "
       "sse_pm1", f"heldout-ae128-2e-3-{run}", "sse_pm1", None, f"{COLOUR}; {PATCHED}")
      for run, what in (("no-norm", "no"), ("group-norm", "group"))),
    *((f"choice of the layers: conv VAE CIFAR-10 z50, --layers {n}", f"heldout-vae50-layers{n}",
       "test_loss", None, COLOUR) for n in (0, 1)),
    *((f"choice of the rate: conv AE CIFAR-10 z1024, {what}: sse_pm1", f"heldout-ae1024-{run}",
       "sse_pm1", None, COLOUR) for run, what in
      (("2e-3", "2e-3"), ("5e-3", "5e-3"), ("1e-2", "1e-2"), ("hidden64", "twice as wide at 5e-3"),
       ("2e-3-batch32", "batches of 32 at 2e-3"), ("2e-3-batch16", "batches of 16 at 2e-3"))),
    *((f"choice for the likelihood: conv {what}", f"heldout-conv-{run}", "test_loss", None,
       HELD_OUT) for run, what in
      (("layers2", "with two fully connected layers"), ("hidden48", "wider by half"),
       ("batch64", "in batches of 64"), ("batch32", "in batches of 32"),
       ("warm", "with beta from 0 to 1 in six epochs"))),
    *((f"choice for the likelihood: conv {what}", f"heldout-conv-{run}", "test_loss", None,
       f"{HELD_OUT}; {PATCHED}") for run, what in
      (("group-norm", "with group normalisation"), ("no-norm", "without normalisation at 2e-3"))),
    *((f"choice for 105.6 nats: {what}", f"heldout-target-{run}", "test_loss", None, HELD_OUT)
      for run, what in (("5", "5 epochs at 5e-3"), ("6", "6 epochs at 5e-3"),
                        ("5-8e-3", "5 epochs at 8e-3"), ("5-1.2e-2", "5 epochs at 1.2e-2"))),
    *((f"choice of the rate: {run}", f"heldout-{run}", "test_loss", None, HELD_OUT) for run in
      ("onecycle-1e-3", "onecycle-2e-3", "onecycle-3e-3", "onecycle-5e-3", "onecycle-8e-3",
       "cosine-1e-3", "cosine-2e-3", "constant-1e-3")),
    *((f"choice of the optimiser: {what}", f"heldout-constants-{run}", "test_loss", None, HELD_OUT)
      for run, what in (("nocyc", "momentum not cycled"), ("wd.1", "weight decay 0.1"),
                        ("wd0", "no weight decay"), ("pct.1", "warm-up of 10%"),
                        ("pct.1lr4", "warm-up of 10%, peak 4e-3"),
                        ("b2.99", "beta2 0.99"), ("lr6", "peak 6e-3"))),
]

TEXT = """# The record

Every result of ours comes from a log in [runs](runs), and `python -m tools.record` writes this
page from them. `python vae.py @results/runs/vae-mnist-s1/args.txt` replays a run. Losses are nats
per image on the whole test set after the last epoch, with z sampled; on grey pixels they are
cross-entropies and not likelihoods. `epoch_s` is the median length of an epoch, training and test,
in seconds, of a GAN that of an interval between two lines of its log; other work shared the two
cores during the long runs, so compare speeds in the last table only.

{table}

## Findings

**The network of pytorch/examples.** With its constant rate the loss is {constant:.2f}, parity with
the 105.56 of the original. With the default schedule, one cycle up to 5e-3, the same ten epochs
give {default:.2f}: the network was never the limit, the step size was.

**MNIST, two latent units, 200 epochs.** In the last epoch the VAE is at {vae:.2f}, where the best
epoch of the reference was, and the CVAE at {cvae:.2f}, between the reference's best (130.3) and
last (131.3): within half a nat of the best was asked, and {cvae_miss:.2f} nats are missing.
Over-fitting costs: at the end the training loss is {cvae_gap:.1f} (CVAE) and {vae_gap:.1f} (VAE)
nats below the test loss, and the last hundred epochs bring {cvae_late:.1f} and {vae_late:.1f} nats.
The test loss does not turn upwards (it ends within {cvae_turn:.2f} and {vae_turn:.2f} nats of its
best), because the rate falls to zero. But the default 20 epochs end at
{cvae-mnist-z2-20-epochs*:test_loss} (CVAE) and {cvae-mnist-z2-20-epochs*:vae_test_loss} (VAE): the
CVAE has nothing from ten times the time.

![Curves, MNIST](runs/cvae-mnist-z2-s1/curves.png)
![Reconstructions, MNIST](runs/cvae-mnist-z2-s1/reconstruction_200.png)

**What the label is worth.** It can be worth at most ln 10 = 2.30 nats to the true distribution, yet
the CVAE gains {gain:.1f} nats at z = 2: the rest is capacity, for two latent units cannot hold
class and style at once. At z = 10 on FashionMNIST the gain is {fashion_gain:.1f} nats, of which the
label can explain 2.30 at most.

**FashionMNIST, ten latent units, 200 epochs.** Confirmed: CVAE {fashion_cvae:.1f} and VAE
{fashion_vae:.1f}, both below the reference.

![Curves, FashionMNIST](runs/cvae-fashionmnist-z10-s1/curves.png)
![Reconstructions, FashionMNIST](runs/cvae-fashionmnist-z10-s1/reconstruction_200.png)

**Size of z, width and length of training, FashionMNIST.** With 2, 5, 10, 20 and 50 latent units the
test loss is {vae-fashionmnist-z2:test_loss .1f}, {vae-fashionmnist-z5:test_loss .1f},
{vae-fashionmnist-z10:test_loss .1f}, {vae-fashionmnist-z20:test_loss .1f} and
{vae-fashionmnist-z50:test_loss .1f} nats: it stops falling at about ten, for of more units only
{vae-fashionmnist-z20:active .0f} of 20 and {vae-fashionmnist-z50:active .0f} of 50 are used. That
width makes no difference, as the reference has it, is not confirmed: 200, 500 and 1,000 units end
at {vae-fashionmnist-z10-hidden200:test_loss .1f}, {vae-fashionmnist-z10:test_loss .1f} and
{vae-fashionmnist-z10-hidden1000:test_loss .1f}. 5, 20 and 50 epochs end at
{vae-fashionmnist-z10-epochs5:test_loss .1f}, {vae-fashionmnist-z10:test_loss .1f} and
{vae-fashionmnist-z10-epochs50:test_loss .1f}, the last {fashion_gap:.1f} nats above its training
loss. Beta trades the two terms as it should: at 0.5, 1, 2 and 4 the KL is
{vae-fashionmnist-z10-beta0?5:test_kl .1f}, {vae-fashionmnist-z10:test_kl .1f},
{vae-fashionmnist-z10-beta2:test_kl .1f} and {vae-fashionmnist-z10-beta4:test_kl .1f} nats, and the
loss at beta = 1 is lowest where beta was 1. In the figure, made by `python evaluate.py` of these
runs, the runs of different beta lie on one curve of rate and distortion.

![Loss by epoch, rate and distortion](runs/vae-fashionmnist-compare.png)

**Convolutions.** MNIST, 20 latent units, 20 epochs: {conv:.1f} nats, below the 130.9 of GenZoo
after 100 epochs and {conv_gain:.1f} below our MLP after 20. On FashionMNIST with ten the CVAE ends
at {cvae-conv-fashionmnist-z10:test_loss .1f}, the one of fully connected layers at
{cvae-fashionmnist-z10-20-epochs*:test_loss .1f}. A caution: normalisation was chosen by eight runs
of 3 to 5 epochs and their test loss, and their logs were not kept; the rate and the hidden layer
were chosen on held-out images, below. Its codes fall apart by class in a t-SNE map without having
been told one; between a 3 and an 8 lie digits; and among the nines drawn from a Gaussian fitted to
their codes are fours and sevens.

![t-SNE of the codes](runs/gallery/vae-conv-mnist-z20/tsne_2000.png)
![From a 3 to an 8](runs/gallery/vae-conv-mnist-z20/interpolation_4770_3845.png)
![Nines, and what it takes for nines](runs/gallery/vae-conv-mnist-z20/samples_9_40.png)

**Whether the KL of a convolutional VAE rises.** Confirmed for the first epochs only. With 20 latent
units it goes from {conv_kl_first:.1f} nats after the first of 20 epochs to {conv_kl_most:.1f} after
the fourth and back to {vae-conv-mnist-z20-full:test_kl .1f} after the last (means of three seeds);
with 50 latent units from {long_kl_first:.1f} after the first of 100 to {long_kl_most:.1f} after the
third and {vae-conv-mnist-dynamic-z50-100-epochs:test_kl .1f} after the last: first more is written
into z, then it is written more briefly.

**Likelihood.** On dynamically binarised MNIST with 50 latent units the importance-sampled
likelihood, 500 samples on all 10,000 test images, is
{vae-conv-mnist-dynamic-z50-hidden48:nll_is500} nats for the convolutional VAE of 48 channels and
{vae-mnist-dynamic-z50-two-layers-s*:nll_is500} for the MLP of two hidden layers of 500 on either
side, both at a rate of 2e-3 for 100 epochs; 84.0 and 87.5 were aimed at. With one hidden layer it
is {vae-mnist-dynamic-z50:nll_is500}: depth is worth more than width. On held-out images 1,000 units
in one layer gained {mlp_width:.1f} nats over 500, and a second layer of 500 gained {mlp_depth:.1f}
(in a patched vae.py, before there was --layers). Of the convolutional VAE with the default 32
channels and rate, 5e-3, it is {vae-conv-mnist-dynamic-z50-100-epochs:nll_is500} after 100 epochs
and {vae-conv-mnist-dynamic-z50:nll_is500} after 30. How much of the difference is the width and how
much the rate was not measured: on held-out images half as many channels again gained
{wide_gain:.1f} nats in twelve epochs, and 2e-3 lost {slow_conv:.1f} in eight, but gained the MLP
{slow_mlp:.1f} in forty. {vae-conv-mnist-dynamic-z50-hidden48:active .0f} units are active instead
of {vae-conv-mnist-dynamic-z50-100-epochs:active .0f}, and the training loss is {wide_overfit:.1f}
nats below the test loss instead of {conv_overfit:.1f}. Normalisation by groups instead of the batch
(in a patched vae.py) gained {group_gain:.1f} on held-out images, and is worse in colour. A second
fully connected layer loses. Batches of 64 gained {batch_gain:.1f} nats in twelve epochs on held-out
images, but in the long run nothing: 120 epochs end at a negative ELBO of
{vae-conv-mnist-dynamic-z50-batch-64:test_loss}, where 100 in batches of 128 ended at
{vae-conv-mnist-dynamic-z50-100-epochs:test_loss}, with a training loss {batch_overfit:.1f} nats
below it instead of {conv_overfit:.1f}; its likelihood was not measured. A beta from 0 to 1 over six
of twelve epochs loses {warm_loss:.1f} nats on held-out images.

**Colour.** A convolutional VAE with 1,024 latent units and one learned sigma ends at a summed
squared error of {vae-conv-cifar10-z1024-learned-s1:sse_pm1 .1f} per image with pixels in [-1, 1]
(PSNR {vae-conv-cifar10-z1024-learned-s1:psnr .1f} dB, from mu), a KL of
{vae-conv-cifar10-z1024-learned-s1:test_kl .0f} nats and sigma
{vae-conv-cifar10-z1024-learned-s1:sigma .3f}. All runs on CIFAR-10 have half of its training images
and the whole test set.

**Beta from 0 to 1.** With sigma 0.3536 the loss is the summed squared error plus the KL. Confirmed:
with a constant beta the squared error of a sampled z ends at
{vae-conv-cifar10-z1024-sse-amp-s*:sse .1f}, with the linear schedule it is
{vae-conv-cifar10-z1024-linear-amp-s*:sse_19 .1f} in epoch 19, where beta is 0.947, and
{vae-conv-cifar10-z1024-linear-amp-s*:sse .1f} at the end, where it is 1: the schedule pays even at
the same beta, by {schedule_gain:.1f} nats of the negative ELBO. It leaves
{vae-conv-cifar10-z1024-linear-amp-s*:active .0f} units active of the
{vae-conv-cifar10-z1024-sse-amp-s*:active .0f} that the constant beta spreads its
{vae-conv-cifar10-z1024-sse-amp-s*:test_kl .0f} nats over. The cyclical schedule, four times from 0
to 1, ends at {vae-conv-cifar10-z1024-beta-cyclical:sse .1f} with
{vae-conv-cifar10-z1024-beta-cyclical:active .0f} units active and a negative ELBO of
{vae-conv-cifar10-z1024-beta-cyclical:test_loss .1f} nats to
{vae-conv-cifar10-z1024-sse-amp-s*:test_loss .1f} of the constant beta and
{vae-conv-cifar10-z1024-linear-amp-s*:test_loss .1f} of the linear schedule.

**Beta 0.8, 1 and 1.2.** The squared error is {vae-conv-cifar10-z1024-beta-0?8:sse .1f},
{vae-conv-cifar10-z1024-sse-amp-s*:sse .1f} and {vae-conv-cifar10-z1024-beta-1?2:sse .1f}, the KL
{vae-conv-cifar10-z1024-beta-0?8:test_kl .1f}, {vae-conv-cifar10-z1024-sse-amp-s*:test_kl .1f} and
{vae-conv-cifar10-z1024-beta-1?2:test_kl .1f} nats, as it should be. But the loss at beta = 1 is
lowest where beta was 0.8, at {vae-conv-cifar10-z1024-beta-0?8:test_loss .1f}
({vae-conv-cifar10-z1024-sse-amp-s*:test_loss .1f} and
{vae-conv-cifar10-z1024-beta-1?2:test_loss .1f}): a KL that is dear from the start seems to cost
something that 20 epochs do not win back, as the schedules, too, suggest.

**Autoencoders and PCA.** With 16 codes the autoencoder's squared error is
{ae-conv-cifar10-z16*:sse_pm1 .1f} to PCA's {pca-cifar10:sse_pm1_16 .1f}, with 128
{ae-conv-cifar10-z128*:sse_pm1 .1f} (PSNR {ae-conv-cifar10-z128*:psnr .1f} dB) to
{pca-cifar10:sse_pm1_128 .1f}: better both times. With 1,024 it is
{ae-conv-cifar10-z1024:sse_pm1 .1f} ({ae-conv-cifar10-z1024:psnr .1f} dB), and
{ae-conv-cifar10-z1024-lr2e-3:sse_pm1 .1f} at a rate of 2e-3, to {pca-cifar10:sse_pm1_1024 .1f}; a
tenth of the first, {tenth:.1f}, was aimed at. Twenty epochs do not teach a network the
near-identity that PCA has in closed form. After five on held-out images the rate matters
({heldout-ae1024-2e-3:sse_pm1 .0f} at 2e-3, {heldout-ae1024-5e-3:sse_pm1 .0f} at 5e-3,
{heldout-ae1024-1e-2:sse_pm1 .0f} at 1e-2), twice the width does not
({heldout-ae1024-hidden64:sse_pm1 .0f} at 5e-3), nor do eight times as many steps in batches of 16
({heldout-ae1024-2e-3-batch16:sse_pm1 .0f} at 2e-3).

**Fully connected layers in colour.** Between the convolutions and z a hidden layer gains
{full_gain:.1f} nats on held-out MNIST, and loses in colour: five epochs with 128 codes and no prior
end at a squared error of {heldout-ae128-5e-3-layers0:sse_pm1 .0f} on held-out images without one,
at {heldout-ae128-5e-3:sse_pm1 .0f} with one, and neither the rate ({heldout-ae128-2e-3:sse_pm1 .0f}
at 2e-3) nor twice the width ({heldout-ae128-5e-3-hidden64:sse_pm1 .0f}) nor another normalisation,
in a patched vae.py, makes up for it; a VAE with 50 latent units loses {colour_layer:.0f} nats by
it. So --layers is 1 for grey and 0 for coloured convolutions.

**The conditional VAE in colour.** With 50 latent units and a learned sigma it has a PSNR of
{cvae-conv-cifar10-z50*:psnr .2f} dB, PCA of 50 components {pca-cifar10:psnr_50 .2f}; 20.5 were
aimed at.

**Means and draws of a Bernoulli CVAE.** Of the convolutional CVAE with two latent units on
thresholded MNIST the means (first) are soft where a stroke may or may not be, and draws from them
(second) decide every pixel on its own: noise at the edges that no real digit has. Random z (first)
and an even grid of z from -2 to 2 for every class show the same: style changes slowly over the
plane, the class never.

![Means, random z](runs/gallery/cvae-conv-mnist/classes.png)
![Draws](runs/gallery/cvae-conv-mnist-drawn/classes.png)
![Means of class 0, an even grid of z](runs/gallery/cvae-conv-mnist/uniform_0.png)
![Means of class 1, an even grid of z](runs/gallery/cvae-conv-mnist/uniform_1.png)
![Means of class 2, an even grid of z](runs/gallery/cvae-conv-mnist/uniform_2.png)
![Means of class 3, an even grid of z](runs/gallery/cvae-conv-mnist/uniform_3.png)
![Means of class 4, an even grid of z](runs/gallery/cvae-conv-mnist/uniform_4.png)
![Means of class 5, an even grid of z](runs/gallery/cvae-conv-mnist/uniform_5.png)
![Means of class 6, an even grid of z](runs/gallery/cvae-conv-mnist/uniform_6.png)
![Means of class 7, an even grid of z](runs/gallery/cvae-conv-mnist/uniform_7.png)
![Means of class 8, an even grid of z](runs/gallery/cvae-conv-mnist/uniform_8.png)
![Means of class 9, an even grid of z](runs/gallery/cvae-conv-mnist/uniform_9.png)

**A Gaussian CVAE with and without a modelled sigma.** The same network, 10 epochs, on grey pixels.
With sigma 1 the KL is {cvae-conv-mnist-z2-gaussian-1:test_kl .1f} nats and the squared error
{cvae-conv-mnist-z2-gaussian-1:sse_pm1 .0f}; with one learned sigma,
{cvae-conv-mnist-z2-gaussian-learned:sigma .3f} in the end, it is
{cvae-conv-mnist-z2-gaussian-learned:test_kl .1f} nats and
{cvae-conv-mnist-z2-gaussian-learned:sse_pm1 .0f}: a fixed sigma of 1 is a hidden beta, and a high
one. With a sigma for every pixel the density is far the highest
({cvae-conv-mnist-z2-gaussian-pixel:test_loss .0f} nats to
{cvae-conv-mnist-z2-gaussian-learned:test_loss .0f}) and the error the worst,
{cvae-conv-mnist-z2-gaussian-pixel:sse_pm1 .0f}: it is earned where pixels are always black, and a
digit may be blurred for it.

![Sigma for every pixel](runs/cvae-conv-mnist-z2-gaussian-pixel/sample_010.png)

**The MLP pair on CIFAR-10.** With ten latent units the CVAE ends at
{cvae-cifar10-z10:test_loss .0f} nats and the VAE beside it at {cvae-cifar10-z10:vae_test_loss .0f}
(densities, which may be negative): the CVAE gains more than the label can explain here, too.

![Curves, CIFAR-10](runs/cvae-cifar10-z10/curves.png)
![Reconstructions, CIFAR-10](runs/cvae-cifar10-z10/reconstruction_020.png)

**Class of samples.** A classifier that also saw blurred images, right on {robust:.1%} of the test
set, finds the class asked for in {cvae-mnist-z2-20-epochs:class_accuracy_1000 .1%} of the samples
of the CVAE with two latent units, in {cvae-conv-mnist-z2-threshold:class_accuracy_1000 .1%} of
those of the convolutional one on thresholded pixels, and in
{gan-mnist-conditional:class_accuracy_1000 .1%} of the conditional GAN's. The GAN's are every one of
six draws of 1,000. It is no slip of the measure: of the samples of a CVAE with 20 latent units it
finds {cvae-mnist-z20:class_accuracy_1000 .1%}. A reconstruction keeps its class in
{cvae-mnist-z2-20-epochs:reconstruction_accuracy_10000 .1%} with the CVAE, which is told it, and in
{cvae-mnist-z2-20-epochs:vae_reconstruction_accuracy_10000 .1%} with the VAE beside it, of the
fours, the worst of the ten digits, in {four:.1%}. On FashionMNIST with ten units the samples are
right in {cvae-fashionmnist-z10-20-epochs:class_accuracy_1000 .1%}, of the convolutional CVAE in
{cvae-conv-fashionmnist-z10:class_accuracy_1000 .1%}; the classifier itself is in
{cvae-fashionmnist-z10-20-epochs:classifier_accuracy_10000 .1%} of real images, which was aimed at.
Shirts are what is missed most. A heavier KL brings the codes nearer to the prior that samples come
from, and with beta 2 {cvae-fashionmnist-z10-beta2:class_accuracy_1000 .1%} are right, with beta 4
{cvae-fashionmnist-z10-beta4:class_accuracy_1000 .1%}, more than of real images; the loss at beta =
1 is then {cvae-fashionmnist-z10-beta2:test_loss .1f} and
{cvae-fashionmnist-z10-beta4:test_loss .1f} instead of
{cvae-fashionmnist-z10-20-epochs*:test_loss .1f} nats.

**A classifier for free.** Bayes' rule turns log p(x|y) of a CVAE into p(y|x). With the likelihoods
of 500 importance samples its argmax is right on {cvae-mnist-z20:free_classifier_is500_1000 .1%} of
1,000 test images with 20 latent units, 95% having been aimed at, and on
{cvae-mnist-z2-20-epochs:free_classifier_is500_1000 .1%} with two.

**Distances of VAEs.** In the features of the classifier the samples of the CVAE of MNIST with two
latent units are at {cvae-mnist-z2-20-epochs:fid_classifier_10000 .1f}, those of the VAE beside it
at {cvae-mnist-z2-20-epochs:vae_fid_classifier_10000 .1f}, those of the least-squares GAN at
{gan-mnist-lsgan:fid .2f}. Precision and recall of the CVAE's are
{cvae-mnist-z2-20-epochs:precision_classifier_10000 .2f} and
{cvae-mnist-z2-20-epochs:recall_classifier_10000 .2f}: many of its soft pictures lie near real ones,
and most real ones lie near none of them.

**Three losses on birds.** After 1,500 steps of the discriminator, width 32, the distances are
{gan-birds-gan:fid .1f} (gan), {gan-birds-lsgan:fid .1f} (lsgan) and {gan-birds-wgan-gp:fid .1f}
(wgan-gp), the floor being {gan-birds-lsgan:fid_cifar10_603_floor .1f}; runs of the first seed took
{seconds_gan:.0f}, {seconds_lsgan:.0f} and {seconds_wgan:.0f} seconds. The reference's order, in
which gan is last, is not confirmed at this length: lsgan is better than gan by less than the seeds
differ, wgan-gp worse. With five critic steps to one of its own the generator of wgan-gp took 300
steps, those of the others 1,500. More steps of the generator alone do not help: with one critic
step to one it falls apart ({gan-birds-wgan-gp-critic-steps-1:fid .1f}), presumably since it then
follows a critic that has not caught up. Nor does twice the rate
({gan-birds-wgan-gp-lr-2e-3:fid .1f}). Trained five times as long, 7,500 steps of the critic and
1,500 of the generator in {seconds_long:.0f} seconds, one run of it ends at
{gan-birds-wgan-gp-7500:fid .1f}, below the means of the others (the best of the short runs, one of
lsgan, at {birds_lowest:.1f}). Of the nine runs of 1,500 steps {birds_best} end at their best
distance, those of the first seed among them, so that their last and best checkpoints are the same.
Interpolations of these, each row between two z on the sphere, in the order gan, lsgan, wgan-gp:

![Distance by iteration](runs/gan-birds.png)
![gan](runs/gan-birds-gan/interpolation_1500.png)
![lsgan](runs/gan-birds-lsgan/interpolation_1500.png)
![wgan-gp](runs/gan-birds-wgan-gp/interpolation_1500.png)

**GANs on MNIST.** After 6,000 iterations gan is at {gan-mnist-gan:fid .2f}, lsgan at
{gan-mnist-lsgan:fid .2f} and wgan-gp, whose generator took 1,200 steps, at
{gan-mnist-wgan-gp:fid .2f}, the floor being {gan-mnist-gan:fid_classifier_10000_floor .2f}; all
three have all ten classes among 1,000 samples. The rate, 1e-3, was chosen against 2e-4 by runs of
1,200 iterations on held-out images ({heldout-gan-lsgan-1e-3:fid .1f} against
{heldout-gan-lsgan-2e-4:fid .1f} for lsgan, {heldout-gan-wgan-gp-1e-3:fid .1f} against
{heldout-gan-wgan-gp-2e-4:fid .1f} for wgan-gp).

**How the optimiser was chosen.** By the loss of a VAE with default flags on the last 5,000 training
images of MNIST, never on the test set. These runs used AdamW with weight decay 0.01 unless they say
otherwise, and no clipping of gradients; those on the optimiser patched its constants, which their
args.txt cannot show. The peak of the rate matters most, though from 5e-3 to 8e-3 little, and a
weight decay of 0.1 costs half a nat; without any nothing is lost, so plain Adam and 5e-3 became the
default. The held-out set was made by

```
python -c "import numpy as np; from torchvision.datasets import MNIST; d = MNIST('data'); \\
x, y = d.data.numpy(), d.targets.numpy(); np.savez('results/mnist-heldout.npz', \\
x_train=x[:55000], y_train=y[:55000], x_test=x[55000:], y_test=y[55000:])"
```

## Speed

On MNIST, batch 128 (the GAN: 64). The usual loop feeds the same network by a torchvision data set
with ToTensor and a DataLoader, uses Adam as it comes and calls loss.item() in every step. The
matrix products, of a GAN the convolutions, are the large ones of a training step and nothing else:
the floor. `loss` is that of the test after two epochs. Nothing else ran on the machine, which has
no GPU: twenty times the usual loop, within three times of the products, was aimed at on one and is
not measured.

784-400-20, `python -m tools.benchmark`: a third of the usual epoch, which was aimed at, is reached
with --amp and missed in float32, where half is left; to the test loss at which pytorch/examples
ends it takes less than a fifth of the usual seconds, which was aimed at too. --compile gains
nothing on this processor.

{speed}

The convolutional network of vae.py, 32 channels, on 6,400 training images, `python -m
tools.benchmark --model conv`: here the products themselves are most of the time, and --amp, whose
products are of bfloat16, ends below those of float32.

{speed_conv}

WGAN-GP, `python -m tools.benchmark --model gan`: 0.65 of the usual step was aimed at in float32 and
a third with --amp. The first is reached, the second is not: a double backward through many small
convolutions is what is left.

{speed_gan}
"""


def read_run(folder):
    """The command, but for what changes no number, the machine and the rows of a recorded run,
    {column: number} each."""
    args_text = (folder / "args.txt").read_text(encoding="utf-8")
    command, machine = args_text.splitlines()[:2]
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        rows = [{k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(file)]
    if (folder / "evaluation.jsonl").exists():   # later measurements of the same name count
        measured = (folder / "evaluation.jsonl").read_text(encoding="utf-8")
        for line in measured.splitlines():
            rows[-1] |= json.loads(line)
    if "--sigma=0.3536" in args_text:   # 0.3536^2 = 1 / 8: the loss is then the squared error on
        for row in rows:                # [-1, 1], less this constant of the density
            row["sse"] = row["test_recon"] - 3072 * (math.log(0.3536) + math.log(2 * math.pi) / 2)
        rows[-1]["sse_19"] = rows[18]["sse"]
    if "fid" in rows[-1]:
        rows[-1]["best_fid"] = min(row["fid"] for row in rows)
    command = re.sub(r" --(seed|out|save-every)[ =]\S+| --quiet", "", command[2:])
    command = command.replace("-m results.", "-m tools.")   # where pca.py was when it was run
    layers = re.search(r"^--layers=\d", args_text, re.MULTILINE)
    if folder.name.startswith("heldout") and layers and "--layers" not in command:
        command += f" {layers[0]}"   # what was the default then need not be it today
    return command, machine[2:], rows


def table_row(experiment, pattern, column, reference, source):
    runs = read_seeds(pattern, column)
    if not runs:   # `pattern` is then the command
        return experiment, f"`{pattern}`", 0, "", "", "", "", reference, source
    results = [rows[-1][column] for _, _, rows in runs]
    seconds = [row["seconds"] for _, _, rows in runs for row in rows]
    machines = dict.fromkeys(re.sub(".*(torch [^,]+|bits), ", "", run[1]) for run in runs)
    return (experiment, f"`{runs[0][0]}`", len(runs), f"{statistics.mean(results):.2f}",
            f"{statistics.stdev(results):.2f}" if len(runs) > 1 else "",
            f"{statistics.median(seconds):.1f}", "; ".join(machines), reference, source)


def read_seeds(pattern, column):
    """The runs of a pattern that have the column, those of further seeds, NAME-s2 ..., included."""
    folders = sorted({*RUNS.glob(pattern), *RUNS.glob(f"{pattern}-s[2-9]")})
    return [run for run in map(read_run, folders) if column in run[2][-1]]


def last(pattern, column):
    """Mean over the seeds in the last epoch."""
    return statistics.mean(rows[-1][column] for _, _, rows in read_seeds(pattern, column))


def gap(worse, better, column="test_loss"):
    """How much lower the second pattern is."""
    return last(worse, column) - last(better, column)


class Text(dict):
    """Fills {run:column} and {run:column .1f} in the text with the mean over the runs' seeds."""

    def __missing__(self, pattern):
        return Result(pattern)


class Result:
    def __init__(self, pattern):
        self.pattern = pattern

    def __format__(self, spec):
        column, form = (*spec.split(), ".2f")[:2]   # at a line's end it may be broken
        return format(last(self.pattern, column), form)


def findings():
    """The numbers in the text."""
    found = {"constant": last("vae-mnist-400-constant-s*", "test_loss"),
             "default": last("vae-mnist-400-s*", "test_loss"),
             "fashion_cvae": last("cvae-fashionmnist-z10-s*", "test_loss"),
             "fashion_vae": last("cvae-fashionmnist-z10-s*", "vae_test_loss")}
    for name, prefix in (("cvae", ""), ("vae", "vae_")):
        test, training = f"{prefix}test_loss", f"{prefix}train_loss"
        runs = [rows for _, _, rows in read_seeds("cvae-mnist-z2-s*", test)]
        each = {name: [rows[-1][test] for rows in runs],
                f"{name}_gap": [rows[-1][test] - rows[-1][training] for rows in runs],
                f"{name}_late": [rows[99][test] - rows[-1][test] for rows in runs],
                f"{name}_turn": [rows[-1][test] - min(row[test] for row in rows) for rows in runs]}
        found |= {key: statistics.mean(values) for key, values in each.items()}
    kept = "vae_reconstruction_accuracy_10000_each"   # by digit
    by_digit = [rows[-1][kept] for _, _, rows in read_seeds("cvae-mnist-z2-20-epochs", kept)]
    found["four"] = statistics.mean(shares[4] for shares in by_digit)
    long = "vae-conv-mnist-dynamic-z50-100-epochs"
    small_batch = "vae-conv-mnist-dynamic-z50-batch-64"
    wide = "vae-conv-mnist-dynamic-z50-hidden48"
    fashion = read_run(RUNS / "vae-fashionmnist-z10-epochs50")[2][-1]
    sse = "vae-conv-cifar10-z1024-sse-amp-s*"
    small = "heldout-mlp-500-2e-3"
    conv_runs = read_seeds("vae-conv-mnist-z20-full", "test_kl")   # by epoch, then by seed:
    conv_kl = [*zip(*([row["test_kl"] for row in rows] for _, _, rows in conv_runs), strict=True)]
    found |= {"mlp_width": gap(small, "heldout-mlp-1000-2e-3", "nll_is500"),
              "mlp_depth": gap(small, "heldout-mlp-two-2e-3", "nll_is500")}
    found |= {f"seconds_{name}": sum(row["seconds"] for row in read_run(RUNS / folder)[2])
              for name, folder in (("gan", "gan-birds-gan"), ("lsgan", "gan-birds-lsgan"),
                                   ("wgan", "gan-birds-wgan-gp"),
                                   ("long", "gan-birds-wgan-gp-7500"))}
    birds = [run for loss in ("gan", "lsgan", "wgan-gp") for run in
             read_seeds(f"gan-birds-{loss}", "fid")]
    found["birds_best"] = sum(rows[-1]["fid"] == rows[-1]["best_fid"] for _, _, rows in birds)
    found["birds_lowest"] = min(rows[-1]["fid"] for _, _, rows in birds)
    return found | {"conv": last("vae-conv-mnist-z20-full*", "test_loss"),
                    "conv_gain": gap("vae-mnist-s*", "vae-conv-mnist-z20-full*"),
                    "conv_kl_first": statistics.mean(conv_kl[0]),
                    "conv_kl_most": statistics.mean(conv_kl[3]),
                    "group_gain": gap("heldout-conv-full", "heldout-conv-group-norm"),
                    "batch_gain": gap("heldout-conv-full", "heldout-conv-batch64"),
                    "warm_loss": gap("heldout-conv-warm", "heldout-conv-full"),
                    "batch_overfit": last(small_batch, "test_loss")
                    - last(small_batch, "train_loss"),
                    "wide_gain": gap("heldout-conv-full", "heldout-conv-hidden48"),
                    "full_gain": gap("heldout-conv-no-full", "heldout-conv-full"),
                    "fashion_gap": fashion["test_loss"] - fashion["train_loss"],
                    "long_kl_first": read_run(RUNS / long)[2][0]["test_kl"],
                    "long_kl_most": read_run(RUNS / long)[2][2]["test_kl"],
                    "wide_overfit": last(wide, "test_loss") - last(wide, "train_loss"),
                    "slow_conv": gap("heldout-conv55-2e-3", "heldout-conv55-5e-3"),
                    "slow_mlp": gap("heldout-mlp-two-5e-3", "heldout-mlp-two-2e-3", "nll_is500"),
                    "conv_overfit": last(long, "test_loss") - last(long, "train_loss"),
                    "tenth": last("ae-conv-cifar10-z16*", "sse_pm1") / 10,
                    "colour_layer": gap("heldout-vae50-layers1", "heldout-vae50-layers0"),
                    "schedule_gain": gap(sse, "vae-conv-cifar10-z1024-linear-amp-s*"),
                    "robust": last("cvae-mnist-z2-20-epochs", "classifier_accuracy_10000"),
                    "cvae_miss": found["cvae"] - 130.3 - 0.5,
                    "gain": found["vae"] - found["cvae"],
                    "fashion_gain": found["fashion_vae"] - found["fashion_cvae"]}


def save_birds():
    """One figure of the three losses."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for loss in ("gan", "lsgan", "wgan-gp", "wgan-gp-7500"):
        rows = read_run(RUNS / f"gan-birds-{loss}")[2]
        steps, distances = ([row[name] for row in rows] for name in ("iteration", "fid"))
        axes.plot(steps, distances, ".-", label=loss)
    axes.axhline(rows[-1]["fid_cifar10_603_floor"], linestyle=":", color="grey", label="floor")
    axes.set(xlabel="iteration", ylabel="fid_cifar10_603", yscale="log")
    axes.legend()
    figure.savefig(RUNS / "gan-birds.png")


# file, its run, column, licence of the data
MNIST = "CC BY-SA 3.0, Yann LeCun and Corinna Cortes"
MODELS = [
    ("vae-mnist-z2", "vae-mnist-z2", "test_loss", MNIST),
    ("vae-mnist-z20", "vae-mnist-z20", "test_loss", MNIST),
    ("cvae-mnist", "cvae-mnist-z2-20-epochs", "test_loss", MNIST),
    ("cvae-fashionmnist", "cvae-fashionmnist-z10-20-epochs", "test_loss", "MIT, Zalando SE"),
    ("cvae-conv-mnist", "cvae-conv-mnist-z2-threshold", "test_loss", MNIST),
    ("gan-conditional-mnist", "gan-mnist-conditional", "fid_classifier_10000", MNIST),
]
BOX = """# Small trained models

Half precision weights, made by `python -m tools.pack RUN FILE` of recorded runs. They need no
data, no network: `python generate.py results/models/cvae-mnist.pt --digit 9`. Losses are nats per
image on the test set; those of the grey data sets are cross-entropies, that of cvae-conv-mnist is a
bound on a likelihood, its pixels being black or white.

| model | command | data | number | licence of the data |
| --- | --- | --- | --- | --- |
{cards}
"""


def card(file, run, column, licence):
    command, _, rows = read_run(RUNS / run)
    data = "FashionMNIST" if "Fashion" in command else "MNIST"
    number = f"{column} {rows[-1][column]:.2f}"
    return f"| [{file}.pt]({file}.pt) | `{command}` | {data} | {number} | {licence} |"


def main():
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(table_row(*entry) for entry in EXPERIMENTS)]
    table = "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |"
                      for row in rows)
    speed = {}
    files = {"speed": "table.txt", "speed_conv": "conv.txt", "speed_gan": "gan.txt"}
    for name, file in files.items():
        measured = (RUNS / "benchmark-cpu" / file).read_text(encoding="utf-8")
        speed[name] = measured.strip().replace("\n", "\n\n", 1)
    text = TEXT.format_map(Text(table=table, **speed, **findings()))
    (RESULTS / "README.md").write_text(text, encoding="utf-8")
    cards = "\n".join(card(*model) for model in MODELS)
    box = BOX.format(cards=cards)
    (RESULTS / "models" / "README.md").write_text(box, encoding="utf-8")
    save_birds()


if __name__ == "__main__":
    main()
