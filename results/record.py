"""Write results/README.md from what lies in results/runs/: python results/record.py

`result` is the mean over the seeds of one column in the last row of each log; no number is typed.
"""
import csv
import re
import statistics
from pathlib import Path

RUNS = Path(__file__).parent / "runs"
COLUMNS = ("experiment", "command", "n", "result", "sd", "epoch_s", "device", "reference", "source")
PLOT = "DLA_interview, read off its plot"
HELD_OUT = "5,000 training images held out"

# experiment, its run folders (the seeds share a pattern), column of the log, reference, source
EXPERIMENTS = [
    ("VAE MNIST 784-400-20 constant 1e-3", "vae-mnist-400-constant-s*", "test_loss", 105.56,
     "pytorch/examples vae, 10 epochs"),
    ("VAE MNIST 784-400-20 default rate", "vae-mnist-400-s*", "test_loss", 105.56,
     "pytorch/examples vae, 10 epochs"),
    ("VAE MNIST defaults", "vae-mnist-s*", "test_loss", None, ""),
    ("VAE MNIST z2", "cvae-mnist-z2-s*", "vae_test_loss", 147.5, f"{PLOT}, best epoch; last 148.5"),
    ("CVAE MNIST z2", "cvae-mnist-z2-s*", "test_loss", 130.3, f"{PLOT}, best epoch; last 131.3"),
    ("VAE FashionMNIST z10", "cvae-fashionmnist-z10-s*", "vae_test_loss", 239.2, PLOT),
    ("CVAE FashionMNIST z10", "cvae-fashionmnist-z10-s*", "test_loss", 235.8, PLOT),
    *((f"choice of the rate: {run}", f"heldout-{run}", "test_loss", None, HELD_OUT) for run in
      ("onecycle-1e-3", "onecycle-2e-3", "onecycle-3e-3", "onecycle-5e-3", "onecycle-8e-3",
       "cosine-1e-3", "cosine-2e-3", "constant-1e-3")),
]

TEXT = """# The record

Every number below comes from a log in [runs](runs); `python results/record.py` writes this page
from them. `python vae.py @results/runs/vae-mnist-s1/args.txt` replays a run. Losses are nats per
image on the whole test set, in the last epoch, with z sampled; on grey pixels they are
cross-entropies, not likelihoods. `epoch_s` is the median length of an epoch, training and test, in
seconds. Other work shared the two cores during the long runs, so speed is compared in the last
table only.

{table}

## Findings
"""


def read_run(folder):
    """The command, the machine and the rows of a recorded run."""
    command, machine = (folder / "args.txt").read_text().splitlines()[:2]
    with open(folder / "log.csv", newline="") as file:
        return command[2:], machine[2:], list(csv.DictReader(file))


def table_row(experiment, pattern, column, reference, source):
    runs = [read_run(folder) for folder in sorted(RUNS.glob(pattern))]
    results = [float(rows[-1][column]) for _, _, rows in runs]
    seconds = [float(row["seconds"]) for _, _, rows in runs for row in rows]
    command = re.sub(r" --(seed|out|save-every)[ =]\S+| --quiet", "", runs[0][0])
    return (experiment, f"`{command}`", len(runs), f"{statistics.mean(results):.2f}",
            f"{statistics.stdev(results):.2f}" if len(runs) > 1 else "",
            f"{statistics.median(seconds):.1f}", runs[0][1].split(", ", 2)[2], reference, source)


def main():
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(table_row(*entry) for entry in EXPERIMENTS)]
    table = "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |"
                      for row in rows)
    speed = (RUNS / "benchmark-cpu" / "table.txt").read_text().strip()
    (Path(__file__).parent / "README.md").write_text(TEXT.format(table=table, speed=speed))


if __name__ == "__main__":
    main()
