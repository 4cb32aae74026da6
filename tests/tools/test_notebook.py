"""The notebook runs, offline, from its first cell to its last: here with shorter trainings."""
import re

from conftest import ROOT

SHORTER = [(r"epochs=\d+", "epochs=1"), (r"_0[24]0\b", "_001"),
           (r"iterations=150", "iterations=6"), (r"sample_150", "sample_006")]


def test_tutorial():
    import nbformat
    from nbclient import NotebookClient
    notebook = nbformat.read(ROOT / "tutorial.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        for pattern, text in SHORTER:
            cell.source = re.sub(pattern, text, cell.source)
    NotebookClient(notebook, timeout=120, kernel_name="python3",
                   resources={"metadata": {"path": ROOT}}).execute()
    assert all(cell.outputs for cell in code)
    images = 0
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error", output.traceback   # as of a missing picture
            images += "image/png" in output.get("data", {})
    assert images >= 13
