#!/usr/bin/env bash
# What only a GPU can tell, in one call: a section each in OUT/gpu.md, with its command.
#
#   benchmarks/gpu.sh OUT [PART...]
#
# Parts, all of them where none is named: bits sketch codes overhead memory training federation.
# A part that fails or takes longer than LIMIT seconds (540) leaves what it said, and the next
# begins. Needs FULLFED_SHARED for training, and models/smollm2-135m (`make smollm2`) for the
# federation. PYTHON names the interpreter, SHAPES the models' shapes (llama-1b llama-3b llama-7b).
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?name a folder for gpu.md}
shift
known=" bits sketch codes overhead memory training federation "
read -ra parts <<< "${*:-$known}"
for part in "${parts[@]}"; do
  if [[ $known != *" $part "* ]]; then
    echo "benchmarks/gpu.sh: there is no part $part; the parts are$known" >&2
    exit 2
  fi
done
read -ra shapes <<< "${SHAPES:-llama-1b llama-3b llama-7b}"
python=${PYTHON:-python3}
export PYTHONPATH=src:benchmarks:tests${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out"
report=$out/gpu.md

section() { # TITLE COMMAND...
  local title=$1 status
  shift
  {
    printf '\n## %s\n\n    %s\n\n' "$title" "$*"
    timeout "${LIMIT:-540}" "$@" 2> "$out/errors.txt"
    status=$?
    if ((status)); then
      printf '\nIt ended with status %s:\n\n' "$status"
      tail -n 20 "$out/errors.txt" | sed 's/^/    /'
    fi
  } >> "$report"
}

if [[ ! -e $report ]]; then
  printf '# On a GPU\n\n' > "$report"
  "$python" -c 'import json, torch; from machine import machine
device = "cuda" if torch.cuda.is_available() else "cpu"
print("    " + json.dumps(machine(device)))' >> "$report"
fi
for part in "${parts[@]}"; do
  case $part in
    bits)
      section 'Bits: every Triton kernel against the reference' \
        "$python" -m pytest -q -n 0 -p no:cacheprovider tests/sketch/triton_cases.py \
        tests/sketch/triton_coded_cases.py
      ;;
    sketch) section 'Speed of the sketch, in copies of memory' "$python" benchmarks/sketch.py ;;
    codes)
      section 'Coordinates in few bits, in copies of the model' "$python" benchmarks/codes.py
      ;;
    overhead)
      section 'A round beyond bare training' \
        "$python" benchmarks/overhead.py --precision bfloat16 --shapes "${shapes[@]}"
      ;;
    memory)
      section 'Memory of a visit' \
        "$python" benchmarks/memory.py --length 256 --shapes "${shapes[@]: -1}"
      ;;
    training)
      section 'Training beside a plain loop and transformers.Trainer' \
        "$python" benchmarks/training.py
      ;;
    federation)
      section 'A federation on SmolLM2-135M' \
        "$python" -m fullfed run recipes/smollm2-gsm8k.toml --out "$out/smollm2"
      ;;
  esac
done
