"""What `fullfed run` learns on when it is given nothing: a small pretrained model and its tasks."""

from __future__ import annotations

from pathlib import Path

MODEL_PATH = Path(__file__).parent / "model"
"""The folder of the shipped model and tokenizer."""
