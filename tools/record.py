"""Write the pages of results/ from the recorded runs.

No result is typed: results/runs/ holds the runs, results/experiments.csv a row for each experiment,
results/findings.md the text of the pages. In findings.md

    <!-- page README.md -->                begins a page
    {{table likelihood}}                   is the table of a section of experiments.csv
    {{file benchmark-cpu/table.txt}}       is a file in results/runs/
    {{vae-mnist:test_loss}}                is the mean over the seeds, which are the folders
                                           vae-mnist, vae-mnist-s1, vae-mnist-s2 ...;
                                           vae-mnist/ with a slash is that folder alone
    {{vae-a:test_kl - vae-b:test_kl .1f}}  has another format, and + - * / from left to right

A column is one of log.csv, in its last row; test_loss@19 is in row 19, fid@lowest the lowest of all
rows, seconds@median the median of all rows. It may also be a number that evaluate.py added to
evaluation.jsonl, one of along.csv (tools/along.py), or minutes, the time of the whole run.

In experiments.csv a metric is an expression of columns; reference and goal are numbers, or
expressions with the names of runs. Without runs the experiment was not run. To add one, put its
args.txt, log.csv, evaluation.jsonl and the pictures worth keeping in results/runs/NAME, and a row
in experiments.csv.
"""
import argparse
import csv
import functools
import json
import math
import operator
import re
import statistics
import sys
from pathlib import Path

from common import fail, write_figure, write_whole
from evaluate import read_whole_log

RESULTS = Path(__file__).resolve().parent.parent / "results"
COLUMNS = ["experiment", "metric", "n", "here", "reported", "verdict", "goal", "minutes", "run"]
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
HIGHER_IS_BETTER = ("accuracy", "free_classifier", "psnr", "precision", "recall")
NOTE = "<!-- Made by python -m tools.record: change findings.md or experiments.csv. -->\n"


# ---------------------------------------------------------------------------------------- runs

@functools.cache
def read_run(folder):
    """The rows of a recorded run's log. What evaluate.py measured is added to the last one, what
    tools/along.py measured to that of the same iteration."""
    rows = read_whole_log(folder)
    measured = {}
    file = folder / "evaluation.jsonl"
    text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            measured.update(json.loads(line))   # of two measurements the later one counts
        except (ValueError, TypeError):
            fail(f"{file}: line {number} is not whole; delete it and measure the run again")
    rows[-1] = measured | rows[-1]
    return with_along(rows, folder / "along.csv")


def with_along(rows, file):
    """The rows with the columns of along.csv, where there is one."""
    if not file.exists():
        return rows
    with open(file, newline="", encoding="utf-8") as lines:
        along = {int(line["iteration"]): line for line in csv.DictReader(lines)}
    merged = []
    for row in rows:
        found = along.get(row["iteration"], {})
        numbers = {name: float(text) for name, text in found.items() if text}
        merged.append(numbers | row)
    return merged


def lookup(rows, column):
    """A column of a run, a number; NaN where the run does not have it."""
    name, _, place = column.partition("@")
    if name == "minutes":
        return sum(row["seconds"] for row in rows) / 60
    if place in ("lowest", "median"):
        values = [row[name] for row in rows if row.get(name) is not None]
        summary = {"lowest": min, "median": statistics.median}[place]
        return summary(values) if values else math.nan
    row = rows[int(place) - 1] if place else rows[-1]
    value = row.get(name)
    return math.nan if value is None else value


def results_of(runs, metric):
    """{folder: number} of the runs, one for each seed, that have what the metric needs."""
    folders = {*RESULTS.glob(f"runs/{runs}/"), *RESULTS.glob(f"runs/{runs}-s[1-9]/")}
    results = {}
    for folder in sorted(folders):
        result = calculate(metric, functools.partial(lookup, read_run(folder)))
        if not math.isnan(result):
            results[folder] = result
    if not results:
        fail(f"no run results/runs/{runs} has {metric}: correct findings.md or experiments.csv")
    return results


def recorded(term):
    """The mean over the seeds that a term like vae-mnist:test_loss stands for."""
    runs, _, column = term.partition(":")
    return statistics.mean(results_of(runs, column).values())


def calculate(expression, value_of):
    """Terms and + - * /, with spaces between, from left to right. value_of(term) is the number that
    a name stands for."""
    tokens = expression.split()
    terms, signs = tokens[::2], tokens[1::2]
    if len(terms) != len(signs) + 1 or not set(signs) <= set(OPERATORS):
        fail(f"{expression}: write terms and + - * / in turn, with spaces between")
    numbers = []
    for term in terms:
        is_number = re.fullmatch(r"[\d.]+", term)
        numbers.append(float(term) if is_number else value_of(term))
    result = numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        result = OPERATORS[sign](result, number)
    return result


# -------------------------------------------------------------------------------------- tables

def experiments_of(section):
    """The rows of experiments.csv in a section."""
    with open(RESULTS / "experiments.csv", newline="", encoding="utf-8") as file:
        experiments = [row for row in csv.DictReader(file) if row["section"] == section]
    if not experiments:
        fail(f"results/experiments.csv has no section {section}: correct findings.md")
    return experiments


def table(section):
    """The experiments of a section in Markdown. A column that all of them leave empty goes."""
    rows = [table_row(experiment) for experiment in experiments_of(section)]
    columns = []
    for name in COLUMNS:
        if any(row[name] for row in rows):
            columns.append(name)
    lines = [columns, ["---"] * len(columns)]
    for row in rows:
        lines.append([row[name] for name in columns])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table_row(experiment):
    """{column: text} of an experiment."""
    row = dict.fromkeys(COLUMNS, "")
    row |= {"experiment": experiment["name"], "metric": experiment["metric"]}
    row["reported"] = experiment["source"]
    if experiment["reference"]:
        reference = calculate(experiment["reference"], recorded)
        row["reported"] = f"{round(reference, 3):g} {experiment['source']}".strip()
    if not experiment["runs"]:
        return row | {"here": "not run"}

    results = results_of(experiment["runs"], experiment["metric"])
    mean = statistics.mean(results.values())
    deviation = statistics.stdev(results.values()) if len(results) > 1 else 0
    places = 2 if abs(mean) >= 1 else 3
    row["n"] = f"{len(results)}"
    row["here"] = f"{mean:.{places}f}"
    if len(results) > 1:
        row["here"] += f" ± {deviation:.{places}f}"

    higher = any(word in experiment["metric"] for word in HIGHER_IS_BETTER)
    if experiment["reference"]:
        gain = mean - reference if higher else reference - mean
        row["verdict"] = verdict(gain, deviation, len(results))
    if experiment["goal"]:
        aim = calculate(experiment["goal"], recorded)
        missing = aim - mean if higher else mean - aim
        bound = "at least" if higher else "at most"
        outcome = f"missed by {missing:.2g}" if missing > 0 else "met"
        row["goal"] = f"{bound} {round(aim, 3):g}: {outcome}"

    minutes = [lookup(read_run(folder), "minutes") for folder in results]
    row["minutes"] = f"{statistics.mean(minutes):.1f}"
    folder = next(iter(results)).relative_to(RESULTS).as_posix()   # of the first seed
    row["run"] = f"[args]({folder}/args.txt), [log]({folder}/log.csv)"
    return row


def verdict(gain, deviation, n):
    """gain: by how much the mean of n seeds is better than the reference, which is one run. If that
    varies as ours do, 95% of such differences are within t(n - 1) sqrt(1 + 1 / n) of their standard
    deviation, which is the same. Of a single run nothing is known."""
    if n == 1:
        return ""
    from scipy.stats import t
    if abs(gain) <= t.ppf(0.975, n - 1) * math.sqrt(1 + 1 / n) * deviation:
        return "same"
    return "better" if gain > 0 else "not confirmed"


# --------------------------------------------------------------------------------------- pages

def pages():
    """{file in results/: text}."""
    text = (RESULTS / "findings.md").read_text(encoding="utf-8")
    found = {}
    for part in text.split("<!-- page ")[1:]:   # nothing stands before the first
        name, _, page = part.partition(" -->\n")
        found[name] = NOTE + re.sub(r"{{(.+?)}}", fill, page, flags=re.DOTALL)
    return found


def fill(match):
    """What stands in the page for a {{placeholder}}."""
    words = match[1].split()
    if words[0] == "table":
        return table(words[1])
    if words[0] == "file":
        text = (RESULTS / "runs" / words[1]).read_text(encoding="utf-8")
        return text.strip().replace("\n", "\n\n", 1)   # a title, then a table
    form = words.pop() if re.fullmatch(r",?\.\d[f%]", words[-1]) else ".2f"
    return format(calculate(" ".join(words), recorded), form)


def first_runs(section):
    """{name: folder} of the first seed of each experiment of a section."""
    runs = {}
    for experiment in experiments_of(section):
        runs[experiment["name"]] = next(iter(results_of(experiment["runs"], experiment["metric"])))
    return runs


def save_distances(path, section):
    """A figure of the distance by iteration, of the runs of a section."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, folder in first_runs(section).items():
        draw_by_iteration(axes, read_run(folder), "fid", name)
    (metric,) = {experiment["metric"] for experiment in experiments_of(section)}
    axes.set(xlabel="iteration", ylabel=metric)
    make_logarithmic(axes, "x")
    make_logarithmic(axes, "y")
    axes.legend()
    write_figure(path, figure)


def save_along(path, section):
    """A figure of distance, precision and recall by iteration, of the runs of a section, which
    have an along.csv. Dashed: training images."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    distance, precision, recall = figure.subplots(1, 3)
    for name, folder in first_runs(section).items():
        rows = read_run(folder)
        (protocol,) = [key.removeprefix("fid_").removesuffix("_floor") for key in rows[-1]
                       if key.startswith("fid_") and key.endswith("_floor")]
        draw_by_iteration(distance, rows, "fid", name)
        draw_by_iteration(precision, rows, f"precision_{protocol}", name)
        draw_by_iteration(recall, rows, f"recall_{protocol}", name)
    bounds = {distance: f"fid_{protocol}_floor", precision: f"precision_{protocol}_ceiling",
              recall: f"recall_{protocol}_ceiling"}
    for axes, name in bounds.items():
        axes.axhline(rows[-1][name], color="grey", linestyle="--", label="training images")
        axes.set(xlabel="iteration", title=name.rpartition("_")[0])
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter("{x:,g}")
    make_logarithmic(distance, "y")
    distance.legend()
    write_figure(path, figure)


def draw_by_iteration(axes, rows, column, name):
    """The rows that have the column, as a line."""
    points = [(row["iteration"], row[column]) for row in rows if row.get(column) is not None]
    axes.plot(*zip(*points, strict=True), ".-", label=name)


def make_logarithmic(axes, name):
    """The axis x or y, with 1, 2, 5, 10, ... written out."""
    from matplotlib.ticker import LogLocator
    axes.set(**{f"{name}scale": "log"})
    axis = {"x": axes.xaxis, "y": axes.yaxis}[name]
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter("")


def main(argv=()):
    parser = argparse.ArgumentParser(prog="python -m tools.record", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    for name, text in pages().items():
        write_whole(RESULTS / name, text.encode())
        print(RESULTS / name)
    save_distances(RESULTS / "runs" / "gan-birds.png", "birds")
    save_along(RESULTS / "runs" / "gan-birds-30000.png", "birds-long")


if __name__ == "__main__":
    main(sys.argv[1:])
