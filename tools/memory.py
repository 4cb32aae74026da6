"""Peak memory of each script with its default flags, on a CPU, beside that of its imports alone.

    python -m tools.memory
    python -m tools.memory --cifar FILE.npz    # CIFAR-10, if data/ does not have it

One epoch is enough, as the peak of the next one is the same; a GAN does 100 iterations, and a flow
sees 1,000 images. Every line is a process of its own. MB are of 2**20 bytes, the libraries' own
pages included. This one imports nothing large: a new process counts as its own, at first, what the
one that started it has.
"""
import ctrl_c  # without a traceback, even during these imports
import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPTS = {
    "python vae.py": ["vae.py", "--epochs=1"],
    "python vae.py --arch conv": ["vae.py", "--arch=conv", "--epochs=1", "--train-size=10000"],
    "python cvae.py": ["cvae.py", "--epochs=1"],
    "python gan.py": ["gan.py", "--iterations=100", "--eval-every=100"],
    "python flow.py": ["flow.py", "--epochs=1", "--train-size=1000", "--test-size=1000"],
}


def own_memory(name):
    """A line of /proc/self/status in MB: VmHWM is the peak of this process, RssAnon what it has for
    itself now; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    words = status.read_text(encoding="utf-8").split()
    return int(words[words.index(f"{name}:") + 1]) / 1024


def peak(arguments):
    """Peak memory of python with these arguments, in MB."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        print(f"error: python {' '.join(arguments)} failed, see above", file=sys.stderr)
        raise SystemExit(1)
    unit = 1 if sys.platform == "darwin" else 1024   # what macOS and Linux count in
    return usage.ru_maxrss * unit / 2**20


def main(argv):
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tools.memory", allow_abbrev=False)
    parser.add_argument("--data", default="data", help="folder of MNIST and CIFAR-10")
    parser.add_argument("--cifar", default="CIFAR10", help="an .npz file of CIFAR-10")
    args = parser.parse_args(argv)

    print("| | peak MB |")
    print("| --- | ---: |")
    for modules in ("torch", "torch, torchvision"):
        print(f"| import {modules} | {peak(['-c', f'import {modules}']):,.0f} |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        scripts = SCRIPTS | {
            "python vae.py --dataset CIFAR10": ["vae.py", f"--dataset={args.cifar}", "--epochs=1"]}
        for i, (command, arguments) in enumerate(scripts.items()):
            out = os.path.join(folder, str(i))
            flags = [f"--data={args.data}", f"--out={out}", "--device=cpu"]
            print(f"| {command} | {peak([*arguments, *flags]):,.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
