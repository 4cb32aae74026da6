"""Speed of our training loops beside the usual ones, and beside nothing but matrix products.

The usual loop is the same network fed by a torchvision data set and a DataLoader, in the default
memory layout, with default Adam, and with loss.item() in every step. For vae.py it is timed with
our changes, too, each beside those before it. What is then left to "ours": no step waits for its
loss, the gradient is clipped, a scheduler steps along, and a test takes 1,000 images at a time.
Each loop runs in a process of its own, in turn; the medians of the rounds are printed. On a busy
machine ratios hold, single times do not.

    python -m tools.benchmark --quick        # one round on few images: a minute or two
    python -m tools.benchmark                # the MLP of vae.py, 784-400-20; seconds to 105.6 nats
    python -m tools.benchmark --model conv   # vae.py --arch conv
    python -m tools.benchmark --model gan    # gan.py --loss wgan-gp
    python -m tools.benchmark --model flow   # flow.py
"""
import ctrl_c  # without a traceback, even during these imports
import argparse
import copy
import csv
import io
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import flow
import gan
import vae
from common import Data, Means, batches, fail, tell, watched, write_whole
from readers import load_data
from run import (
    Parser,
    make_scheduler,
    number,
    parse,
    path_text,
    pick_device,
    set_defaults,
    slowdown_in_bfloat16,
)
from tools.mean_start import start_at_mean
from tools.memory import own_memory

SHAPE = (1, 28, 28)   # of an image of MNIST
OURS = ("ours", "ours --amp", "ours --compile", "ours --amp --compile")
IN_MEMORY = "usual, images in memory"   # the usual loop with our changes, one more in each
FUSED = f"{IN_MEMORY}, fused Adam"
CHANNELS_LAST = f"{FUSED}, channels last"
LOOPS = {
    "vae": ("usual", IN_MEMORY, FUSED, *OURS, "matrix products", "usual to 105.6", "ours to 105.6",
            "ours --amp to 105.6"),
    "conv": ("usual", IN_MEMORY, FUSED, CHANNELS_LAST, *OURS, "matrix products"),
    "gan": ("usual", "ours", "ours --amp", "matrix products"),   # no --compile: a gradient's own
    "flow": ("usual", *OURS, "matrix products"),                 # gradient cannot be compiled
}
# Images of a training epoch that is timed.
IMAGES = {"vae": 60_000, "conv": 6400, "gan": 1600, "flow": 1280}
QUICK_IMAGES = {"vae": 10_000, "conv": 1280, "gan": 320, "flow": 320}
HOPELESS = 4     # so many times slower in bfloat16, the loops of --amp would take most of the time
TARGET = 105.6   # nats, where pytorch/examples ends after ten epochs
TO_TARGET = {"epochs": 4, "lr": 8e-3, "lr_schedule": "onecycle"}   # chosen on held-out images


def flags():
    parser = Parser(__file__, __doc__)
    parser.prog = "-m tools.benchmark"   # a module: it imports the scripts one folder up
    parser.usage = "python -m tools.benchmark [flags]"
    parser.add_argument("--model", choices=tuple(LOOPS), default="vae", help="what is trained")
    parser.add_argument("--data", type=path_text, default="data", metavar="DIR",
                        help="folder of MNIST")
    parser.add_argument("--train-size", type=number(int, 128), metavar="N",
                        help="use the first N training images")
    parser.add_argument("--rounds", type=number(int, 1), metavar="N",
                        help="how often each loop is timed (default: 3, with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="one round on few images")
    parser.add_argument("--csv", type=path_text, metavar="FILE", help="write the table there, too")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto")
    parser.add_argument("--loop", help="time this loop once, in this process, and print JSON")
    return parser


def settings_of_script(args):
    """The flags of the script that is timed, as its own main has them."""
    if args.model == "gan":
        settings = parse(gan.flags(), ["--loss=wgan-gp"], {})
        gan.set_defaults(settings)
    elif args.model == "flow":
        settings = parse(flow.flags(), ["--lr=1e-3", "--lr-schedule=constant"], {})
    else:
        network = "--arch=conv" if args.model == "conv" else "--hidden=400"
        settings = parse(vae.flags(), [network, "--lr=1e-3", "--lr-schedule=constant"], {})
        image = torch.empty(1, *SHAPE, dtype=torch.uint8)
        set_defaults(settings, Data("MNIST", image, None, image, None, []))
    settings.amp = "--amp" in args.loop
    settings.compile = "--compile" in args.loop
    return settings


# ----------------------------------------------------------------------------------- the loops
# Each function returns two others, of a training epoch and of a test: they return a loss.

def no_test():
    """Stands in for the test where there is none."""
    return math.nan


def usual_loaders(args, batch_size, *more_transforms):
    """DataLoaders of MNIST: the first args.train_size training images, and the test set."""
    from torch.utils.data import DataLoader, Subset
    from torchvision import datasets, transforms
    transform = transforms.Compose([transforms.ToTensor(), *more_transforms])
    train = datasets.MNIST(args.data, train=True, transform=transform)
    test = datasets.MNIST(args.data, train=False, transform=transform)
    train = Subset(train, range(args.train_size))
    return DataLoader(train, batch_size, shuffle=True), DataLoader(test, batch_size)


class OurLoader:
    """Batches of images in memory, as our scripts take them, in the place of a DataLoader."""

    def __init__(self, images, labels, batch_size, shuffle=False):
        self.dataset, self.labels = images, labels
        self.batch_size, self.shuffle = batch_size, shuffle

    def __iter__(self):
        return batches(self.dataset, self.labels, self.batch_size, self.shuffle)


def our_loaders(args, batch_size):
    """The images and labels of usual_loaders, in memory."""
    data = our_data(args)
    train = OurLoader(data.x_train, data.y_train, batch_size, shuffle=True)
    return train, OurLoader(data.x_test, data.y_test, batch_size)


def usual_vae(args):
    """The loop of countless tutorials: one image at a time through Python, one wait per step. The
    name of the loop says which of our changes it has."""
    settings = settings_of_script(args)
    if "images in memory" in args.loop:
        train, test = our_loaders(args, settings.batch_size)
    else:
        train, test = usual_loaders(args, settings.batch_size)
    model = vae.VAE(SHAPE, settings).to(args.device)
    if "channels last" not in args.loop:
        model.to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused="fused Adam" in args.loop)

    def batch_loss(x):
        """The sum over a batch, in nats."""
        x = x.to(args.device)
        eps = torch.randn(len(x), settings.latent, device=args.device)
        recon, kl, _ = vae.loss_terms(model, x, eps)
        return (recon + kl).sum()

    def train_epoch():
        model.train()
        total = 0
        for x, _ in train:
            optimizer.zero_grad()
            loss = batch_loss(x)
            (loss / len(x)).backward()
            optimizer.step()
            total += loss.item()
        return total / len(train.dataset)

    def test_epoch():
        model.eval()
        total = 0
        with torch.no_grad():
            for x, _ in test:
                total += batch_loss(x).item()
        return total / len(test.dataset)

    return train_epoch, test_epoch


def usual_gan(args):
    """WGAN-GP as many know it: the fake batch keeps its graph into the generator."""
    from torchvision import transforms
    settings = settings_of_script(args)
    train, _ = usual_loaders(args, settings.batch_size, transforms.Pad(2),
                             transforms.Normalize(0.5, 0.5))   # 32x32, in [-1, 1]
    layout = torch.contiguous_format
    generator = gan.Generator(SHAPE, 0, settings).to(args.device, memory_format=layout)
    critic = gan.Discriminator(SHAPE, 0, settings).to(args.device, memory_format=layout)
    g_optimizer = torch.optim.Adam(generator.parameters(), settings.lr, betas=(0.0, 0.9))
    d_optimizer = torch.optim.Adam(critic.parameters(), settings.lr, betas=(0.0, 0.9))

    def train_epoch():
        for step, (x, y) in enumerate(train, 1):
            x, y = x.to(args.device), y.to(args.device)
            fake = generator(torch.randn(len(x), settings.latent, device=args.device), y)
            alpha = torch.rand(len(x), 1, 1, 1, device=args.device)
            penalty = gan.gradient_penalty(critic, x, fake, y, alpha).mean()
            loss = critic(fake, y).mean() - critic(x, y).mean() + gan.LAMBDA * penalty
            d_optimizer.zero_grad()
            loss.backward()
            d_optimizer.step()
            if step % settings.critic_steps == 0:
                fake = generator(torch.randn(len(x), settings.latent, device=args.device), y)
                g_loss = -critic(fake, y).mean()
                g_optimizer.zero_grad()
                g_loss.backward()
                g_optimizer.step()
                g_loss.item()
            loss.item()
        return 0.0

    return train_epoch, no_test


def usual_flow(args):
    """The same flow, with a wait in every step."""
    settings = settings_of_script(args)
    train, _ = usual_loaders(args, settings.batch_size)
    model = flow.build(SHAPE, 0, settings).to(args.device, memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def train_epoch():
        model.train()
        total = 0
        for x, y in train:
            x, y = x.to(args.device), y.to(args.device)
            loss = flow.loss_terms(model, x, y, torch.rand_like(x)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), flow.MAX_GRADIENT)
            optimizer.step()
            total += len(x) * loss.item()
        return total / len(train.dataset)

    return train_epoch, no_test


def our_data(args):
    """MNIST with the training images that usual_loaders has."""
    data = load_data("MNIST", args.data, args.device)
    return data._replace(x_train=data.x_train[:args.train_size],
                         y_train=data.y_train[:args.train_size])


def our_vae(args, to_target=False):
    """The functions of vae.py; to_target: with what brings it to TARGET soonest."""
    settings = settings_of_script(args)
    data = our_data(args)
    if to_target:
        vars(settings).update(TO_TARGET)
    model = vae.build(SHAPE, len(data.classes), settings)
    if to_target:
        start_at_mean(model, data.x_train.cpu())
    model.to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    scheduler = make_scheduler(optimizer, len(data.x_train), settings)

    def train_epoch():
        row = vae.train_epoch(model, optimizer, scheduler, data, 1, settings)
        return row["train_loss"]

    def test_epoch():
        return vae.evaluate(model, data, 1, settings)["test_loss"]

    return train_epoch, test_epoch


def our_gan(args):
    """The steps of gan.py, its running average included."""
    settings = settings_of_script(args)
    data = our_data(args)
    generator = gan.build(SHAPE, len(data.classes), settings).to(args.device)
    critic = gan.Discriminator(SHAPE, generator.classes, settings).to(args.device)
    average = copy.deepcopy(generator)
    g_optimizer = torch.optim.Adam(generator.parameters(), settings.lr, betas=(0.0, 0.9),
                                   fused=True)
    d_optimizer = torch.optim.Adam(critic.parameters(), settings.lr, betas=(0.0, 0.9), fused=True)

    def train_epoch():
        means = Means()
        for step in range(1, args.train_size // settings.batch_size + 1):
            x, y = gan.real_batch(data, settings)
            means.add(gan.discriminator_step(generator, critic, d_optimizer, x, y, settings))
            if step % settings.critic_steps == 0:
                means.add(gan.generator_step(generator, critic, g_optimizer, y, settings))
                gan.update_average(average, generator, settings.ema)
        return 0.0

    return train_epoch, no_test


def our_flow(args):
    """An epoch of flow.py."""
    settings = settings_of_script(args)
    data = our_data(args)
    model = flow.build(SHAPE, len(data.classes), settings).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, fused=True)
    scheduler = make_scheduler(optimizer, len(data.x_train), settings)

    def train_epoch():
        return flow.train_epoch(model, optimizer, scheduler, data, 1, settings)["train_loss"]

    return train_epoch, no_test


USUAL = {"vae": usual_vae, "conv": usual_vae, "gan": usual_gan, "flow": usual_flow}
OUR = {"vae": our_vae, "conv": our_vae, "gan": our_gan, "flow": our_flow}


class Recorder(TorchDispatchMode):
    """Remembers the large matrix products and convolutions that are done while it is active,
    those of the first and of the second derivatives included."""

    def __init__(self):
        super().__init__()
        self.calls = []   # (function, arguments)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if is_large_product(func, args):
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def is_large_product(func, args):
    """Whether an operation is a convolution, or a product of matrices with no side below 100."""
    name = str(func)
    if name.startswith("aten.convolution"):
        return True
    if not name.startswith(("aten.mm", "aten.addmm")):
        return False
    matrices = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.ndim > 1]
    return all(min(matrix.shape) >= 100 for matrix in matrices)


def matrix_products(args):
    """The products of a few of our own steps, over and over, and nothing else."""
    few = argparse.Namespace(**vars(args))
    few.train_size = 640
    train_epoch, _ = OUR[args.model](few)
    train_epoch()   # what is done only once is over
    with Recorder() as recorder:
        train_epoch()
    calls = recorder.calls
    n = len(calls) * args.train_size // few.train_size   # as many as for all the images

    @torch.no_grad()
    def replay():
        for i in range(n):
            func, operands = calls[i % len(calls)]
            func(*operands)
        return 0.0

    return replay, no_test


def make_loop(args):
    """The training epoch and the test of --loop."""
    if args.loop == "matrix products":
        return matrix_products(args)
    if args.loop.startswith("usual"):
        return USUAL[args.model](args)
    return OUR[args.model](args)


# ---------------------------------------------------------------------------------- the clocks

def time_loop(args):
    """Seconds of a training epoch and of a test, after one of each to warm up; the losses after
    both; memory in MB."""
    torch.manual_seed(1)
    train_epoch, test_epoch = make_loop(args)
    train_epoch()
    test_epoch()
    train_seconds, train_loss = seconds_of(train_epoch, args)
    test_seconds, test_loss = seconds_of(test_epoch, args)
    return {"train": train_seconds, "test": test_seconds, "MB": peak_memory(args),
            "train_loss": train_loss, "test_loss": test_loss}


def peak_memory(args):
    """Peak memory in MB, of a GPU or of this process."""
    if args.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(args.device) / 2**20
    return own_memory("VmHWM")   # getrusage begins with the peak of what has started this


def seconds_of(epoch, args):
    """The seconds that a function takes, and what it returns."""
    synchronize(args)
    start = time.perf_counter()
    loss = epoch()
    synchronize(args)
    return time.perf_counter() - start, loss


def synchronize(args):
    """Wait for a GPU, which works on while Python is already further."""
    if args.device != "cpu":
        torch.accelerator.synchronize(torch.device(args.device))


def time_to_target(args):
    """Seconds of training and testing until the test loss is at most TARGET."""
    torch.manual_seed(1)
    if args.loop.startswith("usual"):
        train_epoch, test_epoch = usual_vae(args)
        most = 20
    else:
        train_epoch, test_epoch = our_vae(args, to_target=True)
        most = TO_TARGET["epochs"]
    start = time.perf_counter()
    loss, epochs = float("inf"), 0
    while loss > TARGET and epochs < most:
        train_epoch()
        loss = test_epoch()
        epochs += 1
    return {"seconds": time.perf_counter() - start, "epochs": epochs, "test_loss": loss}


def is_race(loop):
    """Whether a loop is timed until it reaches TARGET."""
    return loop.endswith(f"to {TARGET}")


def time_in_process(loop, args):
    """The result of a loop that is timed in a process of its own."""
    command = [sys.executable, "-m", "tools.benchmark", f"--loop={loop}", f"--model={args.model}",
               f"--data={args.data}", f"--device={args.device}"]
    if not is_race(loop):
        command.append(f"--train-size={args.train_size}")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        fail(f"{loop}: {said[-1].removeprefix('error: ')}", status=1)
    return json.loads(done.stdout.splitlines()[-1])


def medians(results):
    """[{name: number}, ...] of the rounds -> {name: median}."""
    found = {}
    for name in results[0]:
        found[name] = statistics.median([result[name] for result in results])
    return found


# -------------------------------------------------------------------------------------- output

def describe(loop, result):
    """A line on a loop that was just timed."""
    if is_race(loop):
        return f"  {loop}: {result['seconds']:.1f} s"
    text = f"  {loop}: {result['train']:.2f} s to train"
    if math.isnan(result["test_loss"]):
        return text
    return text + f", {result['test']:.2f} s to test"


def show(table, args):
    """Print {loop: {name: number}} as a table in Markdown."""
    print(f"python -m tools.benchmark --model {args.model}: torch {torch.__version__}, "
          f"{device_name(args)}, {torch.get_num_threads()} threads, {args.train_size} images, "
          f"median of {args.rounds}")
    print("| loop | train s | test s | images/s | epoch / usual | train / products | MB | loss |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    usual = table["usual"]["train"] + table["usual"]["test"]
    products = table["matrix products"]["train"]
    for loop, result in table.items():
        if is_race(loop):
            continue
        train, test = result["train"], result["test"]
        test_seconds, test_loss = f"{test:.2f}", f"{result['test_loss']:.1f}"
        if math.isnan(result["test_loss"]):   # there is no test
            test_seconds, test_loss = "", ""
        print(f"| {loop} | {train:.2f} | {test_seconds} | {args.train_size / train:,.0f} "
              f"| {(train + test) / usual:.2f} | {train / products:.2f} "
              f"| {result['MB']:,.0f} | {test_loss} |")
    for loop, result in table.items():
        if not is_race(loop):
            continue
        missed = ", not reached" if result["test_loss"] > TARGET else ""
        print(f"\n{loop}: {result['seconds']:.1f} s, {result['epochs']:.0f} epochs, "
              f"test loss {result['test_loss']:.2f}{missed}")


def device_name(args):
    """The processor with what speeds up its products, or the GPU."""
    if args.device.startswith("cuda"):
        return torch.cuda.get_device_name(args.device)
    known = ["avx2", "avx512f", "avx512_bf16", "amx_bf16"]   # from slow to fast
    file = Path("/proc/cpuinfo")
    words = file.read_text(encoding="utf-8").split() if file.exists() else []
    features = [name for name in known if name in words]
    return " ".join([args.device, *features])


def write_csv(path, table):
    """The table with all its digits: a row for each loop."""
    columns = ["train", "test", "MB", "train_loss", "test_loss", "seconds", "epochs"]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["loop", *columns])
    writer.writeheader()
    for loop, result in table.items():
        writer.writerow({"loop": loop} | result)
    write_whole(path, text.getvalue().encode())


def main(argv=(), **overrides):
    """Print the table. Returns {loop: {"train": seconds, "test": seconds, ...}}, medians; with
    --loop the result of that loop."""
    args = parse(flags(), argv, overrides)
    loops = LOOPS[args.model]
    if args.rounds is None:
        args.rounds = 1 if args.quick else 3
    if args.quick and args.train_size is None:
        args.train_size = QUICK_IMAGES[args.model]
    if args.train_size is not None:   # no race is won on fewer images
        loops = [loop for loop in loops if not is_race(loop)]
    else:
        args.train_size = IMAGES[args.model]
    args.device = str(pick_device(args.device))

    if args.loop is not None:
        if args.loop not in loops:
            fail(f"--loop must be one of {', '.join(loops)}, not {args.loop}")
        result = time_to_target(args) if is_race(args.loop) else time_loop(args)
        print(json.dumps(result))
        return result

    load_data("MNIST", args.data, train_size=args.train_size)   # or one line says why not
    if args.device == "cpu":
        slowdown = slowdown_in_bfloat16(torch.device("cpu"))
        if slowdown > HOPELESS:
            loops = [loop for loop in loops if "--amp" not in loop]
            tell("without the loops of --amp: on this processor a product takes "
                 f"{slowdown:.0f} times as long in bfloat16 as in float32")
    results = {loop: [] for loop in loops}
    turns = [*loops] * args.rounds
    message = f"timing {len(turns)} loops, each in a process of its own"
    try:
        for loop in watched(turns, len(turns), message):
            results[loop].append(time_in_process(loop, args))
            tell(describe(loop, results[loop][-1]))
    except KeyboardInterrupt:
        tell("stopped: there is no table, but the loops above were timed")
        raise SystemExit(130) from None
    table = {loop: medians(rounds) for loop, rounds in results.items()}
    show(table, args)
    if args.csv is not None:
        write_csv(args.csv, table)
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
