"""The pages of results/ say what the recorded runs say, and nothing else."""
import csv
import re
import shutil

import pytest
from conftest import ROOT
from matplotlib.axes import Axes

from tools import record

RESULTS = ROOT / "results"
HEADER = "name,runs,metric,reference,source,goal,section"


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of results/ that a test may change, without pictures, models and pages."""
    unneeded = shutil.ignore_patterns("*.png", "*.gif", "*.pt", "*.npz", "cache", "README.md",
                                      "choices.md")
    shutil.copytree(RESULTS, tmp_path / "results", ignore=unneeded)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A function that writes a record of one VAE with two seeds, and a GAN, and returns the page of
    the text and the experiments given."""
    logs = {"vae": "epoch,seconds,test_loss,test_kl\n1,30,120,\n2,30,104,\n3,30,106,\n",
            "vae-s2": "epoch,seconds,test_loss,test_kl\n1,90,120,\n2,30,104,\n3,30,110,\n",
            "vae-s2-long": "epoch,seconds,test_loss\n1,1,1\n",
            "gan": "iteration,seconds,fid\n250,6,30\n500,6,20\n",
            "long": "iteration,seconds,fid\n100,5,\n200,900,20\n300,7,22\n"}
    for name, log in logs.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "log.csv").write_text(log)
    (tmp_path / "runs" / "gan" / "evaluation.jsonl").write_text(
        '{"class_accuracy_1000": 0.5, "fid": 1}\n{"class_accuracy_1000": 0.9}\n')
    (tmp_path / "runs" / "long" / "along.csv").write_text(
        "iteration,precision_c_9,recall_c_9,precision_c_9_ceiling,recall_c_9_ceiling,passes_test\n"
        "200,0.8,0.5,0.95,0.85,\n300,0.9,0.4,0.95,0.85,\n")
    monkeypatch.setattr(record, "RESULTS", tmp_path)

    def page(text, *experiments):
        (tmp_path / "findings.md").write_text(f"<!-- page P.md -->\n{text}")
        (tmp_path / "experiments.csv").write_text("\n".join([HEADER, *experiments]))
        return record.pages()["P.md"].removeprefix(record.NOTE)
    return page


# ----------------------------------------------------------------------------- the pages in git

def test_the_committed_pages_are_made_of_the_record():
    pages = record.pages()
    assert set(pages) == {"README.md", "choices.md", "models/README.md"}
    for name, text in pages.items():
        assert text == (RESULTS / name).read_text(encoding="utf-8"), "python -m tools.record"
        assert "{{" not in text and "}}" not in text and not re.search(r"\bnan\b", text)


def test_a_changed_log_changes_its_numbers_and_no_others(copy):
    before = record.pages()
    record.read_run.cache_clear()
    log = copy / "runs" / "vae-mnist-400-s1" / "log.csv"
    last = log.read_text().splitlines()[-1]
    changed = last.replace(last.split(",")[8], "203.0")   # test_loss, was 103.0
    log.write_text(log.read_text().replace(last, changed))
    after = record.pages()
    assert after["choices.md"] == before["choices.md"]
    assert after["models/README.md"] == before["models/README.md"]
    old, new = before["README.md"].splitlines(), after["README.md"].splitlines()
    differ = [line for line, was in zip(new, old, strict=True) if line != was]
    assert len(differ) == 2   # the row and a sentence
    assert "| 136.33 ± 57.74 | 105.56 | same |" in differ[0] and "-30.8 nats" in differ[1]


def test_every_experiment_and_every_run_is_in_a_page():
    pages = record.pages()
    text = "".join(pages.values())
    findings = (RESULTS / "findings.md").read_text(encoding="utf-8")
    with open(RESULTS / "experiments.csv", newline="", encoding="utf-8") as file:
        experiments = list(csv.reader(file))
    assert ",".join(experiments[0]) == HEADER
    for row in experiments[1:]:
        assert len(row) == len(experiments[0]), row
        assert row[0] in text and f"{{{{table {row[-1]}}}}}" in findings, row
    for folder in (RESULTS / "runs").iterdir():
        if (folder / "log.csv").exists() and not (folder / "checkpoint.pt").exists():
            name = re.sub(r"-s[2-9]$", "", folder.name)   # the first seed stands for all
            assert name.removesuffix("-s1") in text, folder


def test_what_the_pages_point_at_exists():
    for name, text in record.pages().items():
        page = RESULTS / name
        targets = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
        assert targets
        for target in targets:
            file, _, heading = target.partition("#")
            linked = page.parent / file if file else page
            assert linked.exists(), target
            if heading:
                headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.M)
                slugs = [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]
                assert heading in slugs, target


def test_the_tables_of_speed_are_those_of_the_benchmark():
    text = (RESULTS / "README.md").read_text(encoding="utf-8")
    files = list((RESULTS / "runs").glob("benchmark-*/*.txt"))
    assert len(files) == 7
    for file in files:
        title, _, table = file.read_text(encoding="utf-8").strip().partition("\n")
        assert f"{title}\n\n{table}" in text


def test_findings_have_no_number_of_ours():
    """A number with a decimal point is a setting, a reference or a constant of this list."""
    findings = (RESULTS / "findings.md").read_text(encoding="utf-8")
    typed = re.sub(r"{{.+?}}|\S+\.(png|pt|txt|csv|md)|arXiv [\d.]+", "", findings, flags=re.DOTALL)
    known = {"2.30", "370.64", "0.3536", "105.6", "0.8", "0.65", "0.5", "0.7", "1.2", "3.0", "0.03",
             "0.05"}
    assert set(re.findall(r"-?\d+\.\d+", typed)) <= known


# ------------------------------------------------------------------------------- how it is made

@pytest.mark.parametrize("term, number", [
    ("vae:test_loss", "108.00"),                     # the seeds' mean; vae-s2-long is another run
    ("vae/:test_loss .1f", "106.0"),                 # one folder
    ("vae-s2:test_loss .0f", "110"),
    ("vae:test_loss@1 .0f", "120"),
    ("vae:test_loss@lowest .0f", "104"),
    ("vae:minutes", "2.00"),
    ("gan:class_accuracy_1000 .0%", "90%"),          # the later measurement
    ("gan:fid", "20.00"),                            # the log comes first
    ("long:seconds@median .0f", "7"),                # of a run that was paused once
    ("long:recall_c_9 .1f", "0.4"),
    ("long:precision_c_9@2 .1f", "0.8"),
    ("vae:test_loss - gan:fid / 2 .1f", "44.0"),     # from left to right
    ("vae:test_loss * 1000 ,.0f", "108,000"),
])
def test_placeholders(term, number, small):
    assert small(f"loss {{{{{term}}}}} nats") == f"loss {number} nats"
    assert small(f"loss {{{{{term.replace(' ', chr(10))}}}}} nats") == f"loss {number} nats"


def test_a_table_has_mean_deviation_verdict_and_goal(small):
    page = small("{{table one}}\n\n{{table two}}",
                 'default,vae,test_loss,109,"(theirs, once)",100 + 5,one',
                 "lowest,vae,test_loss@lowest,103.5,,,one",
                 "one seed,vae-s2,test_loss,110.5,,110.25,one",
                 "another,,test_loss,99,,,one",
                 "accuracy,gan,class_accuracy_1000,gan:fid / 25,,0.9,two",
                 "distance,gan,fid,,\"30, another\",,two")
    one, two = page.split("\n\n")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in one.splitlines()]
    assert cells[0] == ["experiment", "metric", "n", "here", "reported", "verdict", "goal",
                        "minutes", "run"]
    links = "[args](runs/vae/args.txt), [log](runs/vae/log.csv)"
    assert cells[2] == ["default", "test_loss", "2", "108.00 ± 2.83", "109 (theirs, once)", "same",
                        "at most 105: missed by 3", "2.0", links]
    assert cells[3][3:6] == ["104.00 ± 0.00", "103.5", "not confirmed"]
    assert cells[4][2:7] == ["1", "110.00", "110.5", "", "at most 110.25: met"]   # of one seed none
    assert cells[5][2:7] == ["", "not run", "99", "", ""]
    accuracy = "| accuracy | class_accuracy_1000 | 1 | 0.900 | 0.8 | at least 0.9: met |"
    assert accuracy in two
    assert "| distance | fid | 1 | 20.00 | 30, another |  | 0.2 |" in two


def test_a_verdict_is_as_sure_as_the_seeds_allow():
    """By Student's t, from a table: of three seeds 4.303 sqrt(1 + 1/3) = 4.97 deviations."""
    assert record.verdict(4.9, 1.0, 3) == record.verdict(-4.9, 1.0, 3) == "same"
    assert record.verdict(5.0, 1.0, 3) == "better"
    assert record.verdict(-5.0, 1.0, 3) == "not confirmed"
    assert record.verdict(2.2, 1.0, 30) == "better" and record.verdict(2.0, 1.0, 30) == "same"
    assert record.verdict(5.0, 0.0, 1) == ""


@pytest.mark.parametrize("text, word", [
    ("{{vae:test_los}}", "test_los"),
    ("{{vea:test_loss}}", "results/runs/vea"),
    ("{{vae:test_kl}}", "test_kl"),                    # an empty column
    ("{{vae:test_loss vae:test_loss}}", "spaces"),
    ("{{vae:test_loss -}}", "spaces"),
    ("{{vae:test_loss ** 2}}", "spaces"),
    ("{{__import__('os').getcwd()}}", "__import__"),   # nothing is ever executed
    ("{{table none}}", "none"),
])
def test_a_mistake_is_one_line(text, word, small, capsys):
    with pytest.raises(SystemExit) as stop:
        small(text)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and word in error


@pytest.mark.parametrize("line", [b'{"epoch": 20, "nll_is5', b"[1]", b"\x00\xff", b""])
def test_a_torn_measurement_is_one_line_that_names_the_file(line, small, tmp_path, capsys):
    file = tmp_path / "runs" / "gan" / "evaluation.jsonl"
    file.write_bytes(b'{"fid": 1}\n' + line + b"\n")
    with pytest.raises(SystemExit) as stop:
        small("{{gan:fid}}")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"{file}: line 2 " in error and "delete it" in error


def test_a_torn_log_is_one_line_that_names_the_file(small, tmp_path, capsys):
    file = tmp_path / "runs" / "gan" / "log.csv"
    file.write_text("iteration,seconds,fid\n250,6,30\n500")
    with pytest.raises(SystemExit) as stop:
        small("{{gan:seconds}}{{gan:fid}}")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and str(tmp_path) in error


def test_main_writes_the_pages_and_the_figures(small, tmp_path, capsys):
    page = small("{{table birds}}", "gan,gan,fid,,,,birds", "long,long,fid,,,,birds-long")
    (tmp_path / "runs" / "long" / "evaluation.jsonl").write_text('{"fid_c_9_floor": 1.5}\n')
    record.main()
    assert (tmp_path / "P.md").read_text(encoding="utf-8") == record.NOTE + page
    for name in ("gan-birds.png", "gan-birds-30000.png"):
        assert (tmp_path / "runs" / name).stat().st_size > 10_000
    assert capsys.readouterr().out == f"{tmp_path / 'P.md'}\n"


def test_the_figure_along_training_has_every_run_and_the_bounds(small, tmp_path, monkeypatch):
    """What is drawn, as matplotlib was told. The first row of the log was not measured."""
    small("", "one,long,fid,,,,birds-long", "another,long-2,fid,,,,birds-long")
    runs = tmp_path / "runs"
    (runs / "long" / "evaluation.jsonl").write_text('{"fid_c_9_floor": 1.5}\n')
    shutil.copytree(runs / "long", runs / "long-2")
    drawn = []
    plot, axhline = Axes.plot, Axes.axhline
    monkeypatch.setattr(Axes, "plot", lambda axes, x, y, *style, label: (
        drawn.append((label, x, y)), plot(axes, x, y, *style, label=label)))
    monkeypatch.setattr(Axes, "axhline", lambda axes, y, label, **style: (
        drawn.append((label, y)), axhline(axes, y, label=label, **style)))
    record.save_along(runs / "along.png", "birds-long")
    for name in ("one", "another"):
        for values in ((20, 22), (0.8, 0.9), (0.5, 0.4)):
            assert (name, (200, 300), values) in drawn
    assert drawn[6:] == [("training images", 1.5), ("training images", 0.95),
                         ("training images", 0.85)]
    assert (runs / "along.png").stat().st_size > 10_000


def test_help(capsys):
    with pytest.raises(SystemExit):
        record.main(["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: python -m tools.record") and "{{vae-mnist:test_loss}}" in shown
