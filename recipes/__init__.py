"""Scripts made from vae.py, cvae.py and gan.py by a few changed lines: see docs/recipes.md."""
