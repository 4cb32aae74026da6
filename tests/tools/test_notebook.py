"""The notebook runs, offline, from its first cell to its last."""
from conftest import ROOT


def test_tutorial():
    import nbformat
    from nbclient import NotebookClient
    notebook = nbformat.read(ROOT / "tutorial.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3",
                   resources={"metadata": {"path": ROOT}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in code)
    images = 0
    for cell in code:
        images += sum("image/png" in output.get("data", {}) for output in cell.outputs)
    assert images >= 10
