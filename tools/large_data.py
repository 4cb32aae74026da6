"""Training on more images than one wants in memory: an epoch of vae.py on images in mapped files
beside the same from memory, and image files decoded once beside Pillow in one process.

    python -m tools.large_data SCRATCH                    # 300,000 images of 64x64x3: 3.7 GB
    python -m tools.large_data SCRATCH --steps 500        # only so many steps of the epoch
    python -m tools.large_data SCRATCH --folder birds32   # decodes images of yours

The images are smooth noise in colour, made in the folder SCRATCH, where they stay for another time.
Each loop runs in a process of its own. The training of its epoch is timed, without the start, in
which all images are read for a hash of them, so that the files are in the page cache. Anonymous
memory (RssAnon) is what a process has for itself, at its highest: pages of a mapped file do not
count, for the system can drop them.
"""
import ctrl_c  # without a traceback, even during these imports
import itertools
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

import readers
import vae
from common import fail, tell, watched
from readers import load_data
from run import Parser, number, parse, path_text
from tools.memory import own_memory

SIDE = 64
TEST_IMAGES = 1000
LOOPS = ("mapped", "from memory")


def flags():
    parser = Parser(__file__, __doc__)
    parser.prog = "-m tools.large_data"
    parser.usage = "python -m tools.large_data SCRATCH [flags]"
    parser.add_argument("scratch", type=path_text, metavar="SCRATCH", help="where images are made")
    parser.add_argument("--images", type=number(int, 1000), default=300_000, metavar="N",
                        help="how many to train on")
    parser.add_argument("--steps", type=number(int, 1), metavar="N",
                        help="time the first N steps (default: the epoch)")
    parser.add_argument("--hidden", type=number(int, 1), default=16, metavar="N",
                        help="units of the MLP")
    parser.add_argument("--rounds", type=number(int, 1), default=1, metavar="N",
                        help="how often each loop is timed")
    parser.add_argument("--folder", type=path_text, metavar="DIR",
                        help="decode these images (default: 5,000 PNG files, made)")
    parser.add_argument("--image-size", type=number(int, 1), metavar="N",
                        help="to which they are brought")
    parser.add_argument("--loop", choices=LOOPS, help="time this once, here, and print JSON")
    return parser


# ------------------------------------------------------------------------------------- images

def smooth_images(n):
    """Yield smooth noise in colour, uint8 (B, H, W, C), until there are n."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, n, 1000):
        coarse = torch.rand(min(1000, n - start), 3, 8, 8, generator=generator)
        images = F.interpolate(coarse, size=SIDE, mode="bilinear")
        yield images.mul(255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def make_arrays(folder, n):
    """Write x_train.npy and x_test.npy, a part at a time, if they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("x_train", n), ("x_test", TEST_IMAGES)):
        file = folder / f"{name}.npy"
        if file.is_file():
            continue
        partial = file.with_suffix(".part")
        array = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, SIDE, SIDE, 3))
        start = 0
        message = f"making {count:,} images of {SIDE}x{SIDE}x3"
        for images in watched(smooth_images(count), math.ceil(count / 1000), message):
            array[start:start + len(images)] = images
            start += len(images)
        array.flush()
        partial.rename(file)


def make_files(folder, n):
    """Write n PNG files, if they are not there."""
    if folder.is_dir():
        return
    partial = folder.with_suffix(".part")
    partial.mkdir(parents=True, exist_ok=True)
    i = 0
    for images in watched(smooth_images(n), math.ceil(n / 1000), f"making {n:,} PNG files"):
        for image in images:
            Image.fromarray(image).save(partial / f"{i:06d}.png")
            i += 1
    partial.rename(folder)


# ------------------------------------------------------------------------------------- clocks

class AnonymousMemory(threading.Thread):
    """Looks at RssAnon of this process ten times a second; `peak` is the highest, in MB."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self):
        while True:
            self.peak = max(self.peak, anonymous_memory())
            time.sleep(0.1)


def anonymous_memory():
    """RssAnon of this process in MB."""
    return own_memory("RssAnon")


def time_loop(args):
    """An epoch of vae.py: images per second of its training, of the wall clock and of the
    processor; memory when everything is imported, and at its highest, in MB."""
    imported = anonymous_memory()
    readers.MAPPED_FROM = 0 if args.loop == "mapped" else math.inf
    clock = {}
    batches, train_epoch = vae.batches, vae.train_epoch

    def first_batches(x, y, batch_size, shuffle):
        steps = args.steps if shuffle else None   # all of the test set
        for batch in itertools.islice(batches(x, y, batch_size, shuffle), steps):
            clock["images"] += len(batch[0])
            yield batch

    def timed(*arguments):
        clock["images"] = 0
        start, cpu = time.perf_counter(), time.process_time()
        row = train_epoch(*arguments)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        clock.update(speed=clock["images"] / seconds, cpu_speed=clock["images"] / cpu)
        return row

    vae.batches, vae.train_epoch = first_batches, timed
    memory = AnonymousMemory()
    memory.start()
    with tempfile.TemporaryDirectory() as folder:
        _, rows = vae.main(dataset=str(arrays_folder(args)), hidden=args.hidden, epochs=1,
                           out=f"{folder}/run", device="cpu", quiet=True)
    return {"speed": clock["speed"], "cpu_speed": clock["cpu_speed"], "imported": imported,
            "peak": memory.peak, "loss": rows[-1]["test_loss"]}


def arrays_folder(args):
    return Path(args.scratch, f"arrays-{args.images}")


def time_in_process(loop, args):
    """The result of a loop that is timed in a process of its own."""
    command = [sys.executable, "-m", "tools.large_data", args.scratch, f"--images={args.images}",
               f"--hidden={args.hidden}", f"--loop={loop}"]
    if args.steps is not None:
        command.append(f"--steps={args.steps}")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"{loop}: {done.stderr}", status=1)
    return json.loads(done.stdout.splitlines()[-1])


def time_decoding(folder, size):
    """Images per second of Pillow in one process, and of load_data, which keeps them; seconds of
    the second start."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".png", ".jpg"))
    start = time.perf_counter()
    for file in files:
        with Image.open(file) as image:
            pixels = image.convert("RGB")
            if size is not None:
                pixels = pixels.resize((size, size))
            np.array(pixels)
    pillow = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as cache:
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            load_data(str(folder), image_size=size, cache=cache)
            seconds.append(time.perf_counter() - start)
    return {"images": len(files), "pillow": len(files) / pillow, "first": len(files) / seconds[0],
            "second start": seconds[1]}


# ------------------------------------------------------------------------------------- output

def show_loops(results, args):
    """Print what the loops took, {loop: [result, ...]}, as a table in Markdown."""
    print("| loop | images/s | images per s of processor | MB when imported | MB at most | loss |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for loop, rounds in results.items():
        speed = max(result["speed"] for result in rounds)
        cpu_speed = max(result["cpu_speed"] for result in rounds)
        peak = max(result["peak"] for result in rounds)
        print(f"| {loop} | {speed:,.0f} | {cpu_speed:,.0f} | {rounds[0]['imported']:,.0f} "
              f"| {peak:,.0f} | {rounds[0]['loss']:.2f} |")


def main(argv=(), **overrides):
    """Print both tables. Returns {"loops": {loop: [result, ...]}, "decoding": result}."""
    args = parse(flags(), argv, overrides)
    make_arrays(arrays_folder(args), args.images)
    if args.loop is not None:
        result = time_loop(args)
        print(json.dumps(result))
        return result

    results = {loop: [] for loop in LOOPS}
    turns = [*LOOPS] * args.rounds
    message = f"timing {' and '.join(LOOPS)} in turn, {args.rounds} times"
    for loop in watched(turns, len(turns), message):
        results[loop].append(time_in_process(loop, args))
        tell(f"  {loop}: {results[loop][-1]['speed']:,.0f} images/s")
    megabytes = args.images * SIDE * SIDE * 3 / 1e6
    steps = "an epoch" if args.steps is None else f"{args.steps} steps"
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, {args.images:,} images "
          f"of {SIDE}x{SIDE}x3, {megabytes:,.0f} MB, vae.py --hidden {args.hidden}, {steps}, best "
          f"of {args.rounds}")
    show_loops(results, args)

    folder = Path(args.folder or Path(args.scratch, "files-5000"))
    if args.folder is None:
        make_files(folder, 5000)
    decoding = time_decoding(folder, args.image_size)
    print(f"\n{decoding['images']:,} image files: {decoding['pillow']:,.0f} images/s by Pillow in "
          f"one process, {decoding['first']:,.0f} decoded and kept, second start "
          f"{decoding['second start']:.2f} s")
    return {"loops": results, "decoding": decoding}


if __name__ == "__main__":
    main(sys.argv[1:])
