"""Writes docs/recipe.md, the page of every key of a recipe, from the docstrings of the code.

python scripts/write_reference.py
"""

from __future__ import annotations

from pathlib import Path

from fullfed.schema.reference import reference_page

if __name__ == "__main__":
    page = Path(__file__).parents[1] / "docs" / "recipe.md"
    page.write_text(reference_page(), encoding="utf-8")
