"""The notebook runs, offline and quickly, from its first cell to its last."""
import time
from pathlib import Path

NOTEBOOK = Path(__file__).parent.parent / "tutorial.ipynb"


def test_tutorial():
    import nbformat
    from nbclient import NotebookClient
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    start = time.perf_counter()
    NotebookClient(notebook, timeout=120, kernel_name="python3",
                   resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 10
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    print(f"{time.perf_counter() - start:.0f} s")
