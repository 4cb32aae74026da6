"""Two processes that share out each batch, beside one and beside two that do not talk.

    torchrun --nproc-per-node 2 -m tools.scaling --quick    # in a minute
    torchrun --nproc-per-node 2 -m tools.scaling --out results/runs/scaling

Real training steps on random images of MNIST's shape, as speed does not depend on what they show,
with the defaults of the scripts. The four ways to train are timed in turn, the medians of the
rounds are printed. --out records them and puts the tables into docs/scaling.md, which explains
them. Nothing else should run on the machine.
"""
import ctrl_c  # without a traceback, even during these imports
import contextlib
import copy
import csv
import io
import math
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

import flow
import gan
import processes
import vae
from common import Data, Means, fail, tell, write_whole
from run import Parser, make_scheduler, number, parse, path_text, set_defaults

SHAPE = (1, 28, 28)   # of an image of MNIST
CLASSES = [str(digit) for digit in range(10)]
MODELS = {"vae": "MLP VAE", "conv": "conv VAE", "gan": "GAN", "flow": "flow"}
STEPS = {"vae": 100, "conv": 8, "gan": 3, "flow": 6}   # about a second of one thread
WAYS = {
    "one": "one process",
    "threads": "one process of two threads",
    "silent": "two that do not talk",
    "two": "two processes",
}
GIGABIT = 1e9 / 8    # bytes per second in each direction
NVLINK = 450e9       # the fourth generation, in each direction: half of the 900 GB/s of data sheets
GPU = 67e12          # float32 operations per second of an H200, at most
PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"


def flags():
    parser = Parser(__file__, __doc__)
    parser.prog = "-m tools.scaling"
    parser.usage = "torchrun --nproc-per-node 2 -m tools.scaling [flags]"
    parser.add_argument("--rounds", type=number(int, 1), default=9, metavar="N",
                        help="how often each way is timed")
    parser.add_argument("--quick", action="store_true", help="one round of a few steps")
    parser.add_argument("--out", type=path_text, metavar="DIR",
                        help="record the tables there and in docs/scaling.md")
    return parser


# ----------------------------------------------------------------------------------- the steps

def make_steps(name, n_steps, parts=1):
    """A function that takes n_steps training steps, and the size of its batches.

    parts: how many do not talk, so that each has batches of so many times fewer images.
    """
    if name == "gan":
        args = parse(gan.flags(), [], {})
        gan.set_defaults(args)
    elif name == "flow":
        args = parse(flow.flags(), [], {})
    else:
        args = parse(vae.flags(), ["--arch=conv" if name == "conv" else "--arch=mlp"], {})
    args.batch_size //= parts
    args.lr_schedule = "constant"   # the others end after --epochs
    n_images = n_steps * args.batch_size
    x = torch.randint(256, (n_images, *SHAPE), dtype=torch.uint8)
    y = torch.randint(len(CLASSES), (n_images,))
    data = Data("random", x, y, x, y, CLASSES)
    if name == "gan":
        return gan_steps(data, n_steps, args), args.batch_size

    script = flow if name == "flow" else vae
    if script is vae:
        set_defaults(args, data)
    model = script.build(SHAPE, len(CLASSES), args)
    processes.share_norms(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    scheduler = make_scheduler(optimizer, n_images, args)

    def steps():
        script.train_epoch(model, optimizer, scheduler, data, 1, args)

    return steps, args.batch_size


def gan_steps(data, n_steps, args):
    """The same for gan.py, whose loop is in its main."""
    generator = gan.build(SHAPE, len(CLASSES), args)
    discriminator = gan.Discriminator(SHAPE, generator.classes, args)
    processes.share_norms(generator)
    average = copy.deepcopy(generator)
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-4, fused=True)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-4, fused=True)

    def steps():
        means = Means()
        for _ in range(n_steps):
            x, y = gan.real_batch(data, args)
            means.add(gan.discriminator_step(generator, discriminator, d_optimizer, x, y, args))
            means.add(gan.generator_step(generator, discriminator, g_optimizer, y, args))
            gan.update_average(average, generator, args.ema)

    return steps


@contextlib.contextmanager
def pretended(count):
    """Let processes.py take this process for the first of `count`."""
    with mock.patch.dict(os.environ, {"WORLD_SIZE": str(count), "RANK": "0"}):
        yield


# -------------------------------------------------------------------------------- what is counted

def count_work(name):
    """Of one step on the whole batch: images, floating point operations (two to a product), and
    what each process gives to be summed, in bytes and in messages."""
    with pretended(1):
        step, batch_size = make_steps(name, 1)
        step()   # what is done only once is over
        with FlopCounterMode(display=False) as counter:
            step()
    sent = []

    def total(x):
        sent.append(x.numel() * x.element_size())
        return x

    with pretended(2), mock.patch.object(processes, "total", total):
        step, _ = make_steps(name, 1)
        sent.clear()
        step()
    sent = [size for size in sent if size > 8]   # two numbers more are of the log, once an epoch
    return {"batch": batch_size, "operations": counter.get_total_flops(),
            "bytes": sum(sent), "messages": len(sent)}


# -------------------------------------------------------------------------------- what is timed

def time_ways(name, args):
    """{way: seconds of a step}, medians of the rounds."""
    n_steps = 2 if args.quick else STEPS[name]
    steps = {"two": make_steps(name, n_steps)[0]}
    with pretended(1):
        steps["silent"], _ = make_steps(name, n_steps, parts=2)
        steps["one"], _ = make_steps(name, n_steps)
        steps["threads"] = steps["one"]
    seconds = {way: [] for way in WAYS}
    for number_of_round in range(args.rounds + 1):
        for way in WAYS:
            found = time_way(way, steps[way])
            if number_of_round > 0:   # the first one warms up
                seconds[way].append(found / n_steps)
    return {way: statistics.median(found) for way, found in seconds.items()}


def time_way(way, steps):
    """The seconds that it takes the slower of the two processes."""
    is_busy = way in ("two", "silent") or processes.rank() == 0
    if way == "threads":
        torch.set_num_threads(2)
    processes.total(torch.zeros(1))   # both begin together
    start = time.perf_counter()
    if is_busy:
        with pretended(1) if way != "two" else contextlib.nullcontext():
            steps()
    seconds = time.perf_counter() - start
    torch.set_num_threads(1)
    return max(processes.collect(seconds))


def time_sum(n_bytes, args):
    """Seconds of one sum of so many bytes over both processes, the median."""
    x = torch.zeros(n_bytes // 4)
    found = []
    for _ in range(5 * args.rounds):
        start = time.perf_counter()
        processes.total(x)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


# -------------------------------------------------------------------------------------- output

def workers(seconds, n_bytes, bandwidth):
    """At how many workers a sum takes as long as the step, which takes one of them `seconds`.

    Each of n workers computes for seconds / n and, in a ring, sends 2 (n - 1) / n times the bytes:
    both take as long where seconds = 2 (n - 1) bytes / bandwidth.
    """
    return 1 + seconds * bandwidth / (2 * n_bytes)


def images_per_worker(seconds_per_image, n_bytes, bandwidth):
    """Images per worker and step so that the sum takes a tenth of the time of the products, however
    many workers there are: 2 bytes / bandwidth = 0.1 images seconds_per_image."""
    return 20 * n_bytes / bandwidth / seconds_per_image


def speed_table(results):
    """Images per second of each way, in Markdown."""
    lines = ["| model | " + " | ".join(WAYS.values()) + " | efficiency |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, row in results.items():
        speeds = [f"{row['batch'] / row[way]:,.0f}" for way in WAYS]
        efficiency = row["silent"] / row["two"]
        lines.append(f"| {MODELS[name]} | {' | '.join(speeds)} | {efficiency:.2f} |")
    return "\n".join(lines)


def work_table(results):
    """What a step computes and sends, in Markdown."""
    lines = ["| model | images | products | bytes | products per byte | messages |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, row in results.items():
        products = row["operations"] / 2
        lines.append(f"| {MODELS[name]} | {row['batch']} | {products / 1e9:.2f} G "
                     f"| {row['bytes'] / 1e6:.2f} M | {products / row['bytes']:,.0f} "
                     f"| {row['messages']} |")
    return "\n".join(lines)


def limit_table(results):
    """Where a sum takes as long as the step, and images per worker where it takes a tenth."""
    lines = ["| model | step, ms | sum, ms | core, 1 Gb/s | core, 25 Gb/s | GPU, 25 Gb/s "
             "| GPU, NVLink |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for name, row in results.items():
        gpu = row["operations"] / GPU
        cells = []
        for seconds, bandwidth in ((row["one"], GIGABIT), (row["one"], 25 * GIGABIT),
                                   (gpu, 25 * GIGABIT), (gpu, NVLINK)):
            n = workers(seconds, row["bytes"], bandwidth)
            images = images_per_worker(seconds / row["batch"], row["bytes"], bandwidth)
            cells.append(f"{n:,.1f}; {math.ceil(images):,}")
        lines.append(f"| {MODELS[name]} | {1e3 * row['one']:.1f} | {1e3 * row['sum']:.2f} "
                     f"| {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES = {"speed": speed_table, "work": work_table, "limit": limit_table}


def record(folder, results, args):
    """The tables as files, with the command and the machine, and in docs/scaling.md."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    title = (f"torchrun --nproc-per-node 2 -m tools.scaling: torch {torch.__version__}, "
             f"{os.cpu_count()} {platform.machine()} cores, images/s, median of {args.rounds}")
    text = io.StringIO()
    writer = csv.DictWriter(text, ["model", *next(iter(results.values()))])
    writer.writeheader()
    for name, row in results.items():
        writer.writerow({"model": name} | row)
    write_whole(folder / "table.txt", f"{title}\n{speed_table(results)}\n".encode())
    write_whole(folder / "scaling.csv", text.getvalue().encode())
    if processes.rank() == 0:
        write_whole(PAGE, with_tables(PAGE.read_text(encoding="utf-8"), results).encode())


def read_record(folder):
    """What `record` has written: {model: {name: number}}."""
    results = {}
    with open(Path(folder, "scaling.csv"), newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = row.pop("model")
            results[name] = {column: float(value) for column, value in row.items()}
            for column in ("batch", "operations", "bytes", "messages"):
                results[name][column] = int(row[column])
    return results


def with_tables(page, results):
    """The text of docs/scaling.md with its tables, from <!-- speed -->, say, to <!-- end -->."""
    for name, table in TABLES.items():
        before, found, after = page.partition(f"<!-- {name} -->\n")
        if not found:
            continue
        _, _, after = after.partition("<!-- end -->\n")
        page = f"{before}<!-- {name} -->\n\n{table(results)}\n\n<!-- end -->\n{after}"
    return page


def main(argv=(), **overrides):
    """Print the tables. Returns {model: {name: number}}."""
    args = parse(flags(), argv, overrides)
    if processes.count() != 2:
        fail("tools.scaling is started as torchrun --nproc-per-node 2 -m tools.scaling")
    processes.start(torch.device("cpu"))
    torch.set_num_threads(1)
    torch.manual_seed(1)
    if args.quick:
        args.rounds = 1
    results = {}
    for name in MODELS:
        results[name] = count_work(name) | time_ways(name, args)
        results[name]["sum"] = time_sum(results[name]["bytes"], args)
        tell(f"{MODELS[name]}: {1e3 * results[name]['two']:.1f} ms a step")
    for table in TABLES.values():
        for line in ["", *table(results).splitlines()]:
            tell(line)
    tell(f"a sum of one number: {1e6 * time_sum(4, args):.0f} microseconds")
    if args.out is not None:
        record(args.out, results, args)
    return results


if __name__ == "__main__":
    main(sys.argv[1:])
