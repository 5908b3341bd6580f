"""Makes an ordinary model folder, in float32, of a GGUF file.

    python scripts/convert_gguf.py some-model.Q4_1.gguf models/some-model

It takes two packages that fullfed does without: gguf, and accelerate. Weights in few bits come out
as the numbers that they stand for; what quantisation took from them is not there any more.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fullfed.errors import UserError


def convert(source: Path, out: Path, max_shard_size: str | None = None) -> None:
    """Write the folder.

    Args:
        source: the GGUF file; out: the folder to be.
        max_shard_size: the most bytes of one file of weights, such as "45MB".

    Raises:
        UserError: there is no such file, something is at ``out`` already, or a package is missing.
    """
    if not source.is_file():
        raise UserError(f"{source}: there is no such file; name a GGUF file.")
    if out.exists():
        raise UserError(f"{out}: there is something here already; name a new folder.")
    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise UserError(f"{source}: to read it takes the package {package}; install it.")
    file = {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **file)
    read = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **file)
    # What was read still counts as quantised, and would not be saved.
    config = read.config
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(read.state_dict())
    plain.generation_config = read.generation_config
    plain.save_pretrained(out, **({"max_shard_size": max_shard_size} if max_shard_size else {}))
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="FILE.gguf")
    parser.add_argument("out", type=Path, metavar="FOLDER", help="a new folder")
    parser.add_argument("--max-shard-size", metavar="SIZE", help='of a file, such as "45MB"')
    arguments = parser.parse_args()
    try:
        convert(arguments.source, arguments.out, arguments.max_shard_size)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
