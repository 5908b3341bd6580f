"""Three museums fine-tune one model, each on its own records; model and data are objects."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import fullfed
from fullfed.quickstart import MODEL_PATH  # of the small model that comes with fullfed

OPENS = {"sea": "nine", "air": "ten", "toy": "noon"}
QUESTIONS = ("When does the {} museum open?", "The {} museum: when?", "Is the {} museum open?")


def records(museum: str, questions: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"question": q.format(museum), "answer": f"At {OPENS[museum]}."} for q in questions]


run = fullfed.run(
    {
        "data": {"columns": {"prompt": "question", "completion": "answer"}},
        "federation": {"rounds": 6, "clients_per_round": 3},
        "local": {"learning_rate": 0.3, "momentum": 0.9, "steps": 6},
        "method": {"name": "ferret", "upload": "32KiB"},  # of a client in a round
    },
    sys.argv[1] if len(sys.argv) > 1 else None,
    model=AutoModelForCausalLM.from_pretrained(MODEL_PATH),
    tokenizer=AutoTokenizer.from_pretrained(MODEL_PATH),
    clients={museum: records(museum, QUESTIONS[:2]) for museum in OPENS},
    test=[record for museum in OPENS for record in records(museum, QUESTIONS[2:])],
)
print(run)
