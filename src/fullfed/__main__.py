"""``python -m fullfed`` is the command ``fullfed``."""

from fullfed.cli import main

main()
