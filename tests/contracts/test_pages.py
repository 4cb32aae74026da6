"""What the pages say is so: their commands are parsed, what they point at exists, and their numbers
are computed again from the logs they link to."""
import importlib
import re
import shlex
import statistics
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import vae
from common import is_autoencoder
from recipes import ORIGINALS
from run import parse
from tools.record import lookup, read_run, results_of

# findings.md is what results/README.md is made of.
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md"),
                *ROOT.glob("results/models/*.md")} - {ROOT / "results" / "findings.md"})
WRITTEN = [page for page in PAGES if not page.is_relative_to(ROOT / "results")]   # by hand
NUMBER = re.compile(r'\[([^]]+)\]\((\S+)/log\.csv "([^"]+)"\)')   # [101.02](RUN/log.csv "metric")
CORES = re.compile(r", (\d+)(?: of \d+)?(?: \w+)? cores")   # in the second line of args.txt
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
TYPED = {"3.10", "3.11",    # versions of Python
         "0.5", "0.01"}     # a beta, and the variance of an active unit


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def text_of(page):
    """With plain spaces for those that hold a line together."""
    return page.read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")


def code_of(text):
    """The lines of the code blocks, and what stands between backticks elsewhere."""
    lines = []
    for language, block in BLOCK.findall(text):
        if language == "":
            lines += block.replace("\\\n", "").splitlines()
    return lines + re.findall(r"`([^`]+)`", BLOCK.sub("", text).replace("\n", " "))


def commands_in(text):
    """(script, its flags) of every command: "python vae.py --latent 2", or "vae.py --latent 2"."""
    found = []
    for line in code_of(text):
        for script, flags in re.findall(r"(?:^|python )([\w/]+)\.py((?: [^\n#|;&]*)?)", line):
            if flags.strip() or "python " in line:
                found.append((script, shlex.split(flags)))
    return found


def parser_of(script):
    """The parser of a script, or of the one that my_... is a copy of; None where it has none."""
    module = importlib.import_module(script.removeprefix("my_").replace("/", "."))
    return module.flags() if hasattr(module, "flags") else None


# ------------------------------------------------------------------------------------ commands

@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_parsed(page, monkeypatch):
    monkeypatch.chdir(ROOT)   # @results/runs/... is a file there
    for script, flags in commands_in(text_of(page)):
        parser = parser_of(script)
        if parser is not None and flags:   # a script may be named without them
            parser.parse_args(flags)


def test_commands_are_found():
    count = {name_of(page): len(commands_in(text_of(page))) for page in PAGES}
    assert count["README.md"] > 20
    assert count["docs/likelihoods.md"] > 3
    assert count["CONTRIBUTING.md"] > 4


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_modules_and_shell_scripts_exist(page):
    known = {"--help"}
    recipes = [f"recipes/{name}" for name in ORIGINALS]
    for script in ("vae", "cvae", "gan", "flow", "generate", "evaluate", "tools/benchmark",
                   *recipes):
        known |= set(parser_of(script)._option_string_actions)
    for line in code_of(text_of(page)):
        for flag in re.findall(r"^--[\w-]+", line):
            assert flag in known or page.name == "CHANGELOG.md", flag   # it names old ones
        for module in re.findall(r"python -m (tools\.\w+)", line):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
        for file in re.findall(r"(?:bash|pytest -n 0|install -r) ([\w./]+)", line):
            assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_no_command_asks_for_amp(page):
    """Most laptops are slower with it."""
    for script, flags in commands_in(text_of(page)):
        assert "--amp" not in flags, script


# --------------------------------------------------------------------------------------- links

def anchors_of(page):
    """What #... may follow the page's name, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text_of(page)), re.M)
    return [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_points_at_exists(page):
    text = BLOCK.sub("", text_of(page))
    targets = re.findall(r"\]\(([^\s)]+)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    assert targets or page.name == "findings.md"
    for target in targets:
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors_of(linked), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_picture_says_what_it_shows(page):
    for tag in re.findall(r"<img [^>]+>", text_of(page)):
        assert re.search(r'alt="[^"]{3,}"', tag) and "width=" in tag, tag


# ------------------------------------------------------------------------------------- numbers

def numbers_of(run, metric):
    """One number for each seed of a linked run folder, the first of which may end in -s1."""
    return list(results_of(re.sub(r"-s\d$", "", Path(run).name), metric).values())


def written_like(shown, numbers):
    """Their mean, and ± their standard deviation, with the decimals of the number on the page."""
    places = len(shown.split(" ")[0].partition(".")[2])
    text = f"{statistics.mean(numbers):.{places}f}"
    if "±" in shown:
        text += f" ± {statistics.stdev(numbers):.{places}f}"
    return text


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_numbers_are_those_of_the_logs(page):
    for shown, run, metric in NUMBER.findall(text_of(page)):
        assert shown == written_like(shown, numbers_of(run, metric)), (run, metric)


def test_numbers_are_found():
    count = {name_of(page): len(NUMBER.findall(text_of(page))) for page in WRITTEN}
    assert count["README.md"] >= 8
    assert count["docs/likelihoods.md"] > 20
    assert count["docs/gan-losses.md"] > 15


def table_rows(text):
    """The rows of all tables of a page as {head of the column: cell}."""
    rows, heads = [], None
    for line in text.splitlines():
        if not line.startswith("| "):
            heads = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if heads is None:
            heads = cells
        elif not line.startswith("| --"):
            rows.append(dict(zip(heads, cells, strict=True)))
    return rows


def recorded_rows(text):
    """(row, run, metric) of the rows with a number from a log."""
    for row in table_rows(text):
        numbers = NUMBER.findall(" ".join(row.values()))
        if numbers:
            yield row, numbers[0][1], numbers[0][2]


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_tables_count_their_seeds(page):
    for row, run, metric in recorded_rows(text_of(page)):
        n = len(numbers_of(run, metric))
        assert row.get("n", str(n)) == str(n), row


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_no_other_number_is_typed(page):
    """Minutes, which the next test holds, settings, and the tables that tools.scaling writes."""
    text = NUMBER.sub("", BLOCK.sub("", text_of(page)))
    text = re.sub(r"<!-- \w+ -->.*?<!-- end -->", "", text, flags=re.S)
    lines = [line for line in text.splitlines() if not line.startswith("| `python ")]
    text = re.sub(r"`[^`]+`|<[^>]+>|\]\([^)]+\)|arXiv [\d.]+", "", "\n".join(lines))
    assert set(re.findall(r"\d+\.\d+", text)) <= TYPED


def test_minutes_and_commands_of_the_readme_are_those_of_the_runs(monkeypatch):
    """A run recorded with --amp is marked; where and how often it was saved does not matter."""
    monkeypatch.chdir(ROOT)
    rows = list(recorded_rows(text_of(ROOT / "README.md")))
    assert len(rows) >= 8
    for row, run, metric in rows:
        assert row["metric"] == metric
        if not row["command"].startswith("`python "):
            continue
        folders = results_of(re.sub(r"-s\d$", "", Path(run).name), metric)
        minutes = statistics.mean(lookup(read_run(folder), "minutes") for folder in folders)
        cores = CORES.search(text_of(ROOT / run / "args.txt"))[1]
        assert row["minutes (cores)"] == f"{minutes:.1f} ({cores})", row

        (script, flags), = commands_in(row["command"])
        parser = parser_of(script)
        shown, used = vars(parser.parse_args(flags)), vars(parser.parse_args([f"@{run}/args.txt"]))
        assert used.pop("amp") == ("†" in row["command"]), row
        for name, value in used.items():
            default = shown[name] is None   # one that depends on the data
            if name not in ("amp", "data", "device", "out", "save_every", "seed") and not default:
                assert value == shown[name], (row, name)


def test_there_is_no_time_of_a_gpu_that_was_not_run():
    for row in table_rows(text_of(ROOT / "README.md")):
        assert row.get("on a GPU", "") == ""   # or a link to its log, once there is one


# --------------------------------------------------------------------------- what can be executed

def python_blocks(page):
    return [block for language, block in BLOCK.findall(text_of(page)) if language == "python"]


def test_the_training_in_python_is_the_command_beside_it(monkeypatch):
    """Without the minute that it takes."""
    def train(**flags):
        args = vars(parse(vae.flags(), (), flags))
        seen.update(args)
        return None, [{"test_loss": 0.0}]

    seen = {}
    monkeypatch.setattr(vae, "main", train)
    block = python_blocks(ROOT / "README.md")[0]
    exec(block, {})
    flags = re.search(r"# the run of python vae\.py (.*)", block)[1].split()
    expected = vars(parse(vae.flags(), flags, {}))
    assert seen.pop("command") != "" and expected.pop("command") == f"vae.py {' '.join(flags)}"
    assert seen == expected


def test_the_sampling_in_python_runs(tmp_path, monkeypatch):
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(python_blocks(ROOT / "README.md")[1], names)
    assert names["nines"].shape == (64, 1, 28, 28)
    assert names["nines"].min() >= 0 and names["nines"].max() <= 1
    assert (tmp_path / "nines.png").stat().st_size > 1000


def test_the_output_of_the_first_run_is_that_of_the_recorded_one():
    text = text_of(ROOT / "README.md")
    last = read_run(ROOT / "results" / "runs" / "vae-mnist-s1")[-1]
    assert f"results/vae-MNIST: test loss {last['test_loss']:.2f} nats per image" in text
    args = vae.flags().parse_args([])
    args.hidden, args.layers, args.likelihood = 500, 1, "bernoulli"   # the defaults for MNIST
    assert not is_autoencoder(args)
    with torch.device("meta"):
        n = sum(parameter.numel() for parameter in vae.build((1, 28, 28), 10, args).parameters())
    assert f"vae.py: {n:,} parameters on MNIST" in text


# -------------------------------------------------------------------------------------- the rest

def test_badges_are_true():
    text = text_of(ROOT / "README.md")
    oldest = re.search(r"badge/python-([\d.]+)%2B-", text)[1]
    target = f'target-version = "py{oldest.replace(".", "")}"'
    assert target in text_of(ROOT / "pyproject.toml")
    assert f"({oldest.replace('.', ', ')})" in text_of(ROOT / "tools" / "setup.sh")
    licence = re.search(r"badge/licence-(\w+)-", text)[1]
    assert text_of(ROOT / "LICENSE").startswith(f"{licence} License")
    assert f"\nlicense: {licence}\n" in text_of(ROOT / "CITATION.cff")


def test_citation_has_what_the_format_asks_for():
    text = text_of(ROOT / "CITATION.cff")
    for key in ("cff-version: 1.2.0", "message: ", "title: ", "authors:\n  - name: "):
        assert re.search(f"^{key}", text, re.M), key
