"""What calibration reads where nobody names rows, and what is said where it differs from the use of the model."""

import json

import numpy as np
import pytest

from backend.data.conversations import FILE, conversations
from backend.data.examine import load
from backend.data.fetch import fetch_dataset
from backend.data.options import DatasetOptions
from backend.models.chat_template import abilities
from backend.models.demo import calibration_text
from backend.models.loading import load_tokenizer
from backend.models.tokens import THINKS, has_thoughts
from backend.options import parse
from backend.progress import silent
from backend.quantize.calibrated.windows import text_windows, unsuited
from backend.stages.calibration_data import cut_rows, talks
from backend.stages.embedded_text import EMBEDDED, embedded_windows
from tests.support.tokenizers_made import family_tokenizer

SAMPLES, LENGTH = 10_000, 128  # all that there is


def text_of(found, tokenizer):
    return tokenizer.decode(found.ids.reshape(-1))


def dataset(tmp_path, rows, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = parse(DatasetOptions, {"dataset": str(path), **options}, context={"paths": True})
    (tmp_path / "fetched").mkdir(exist_ok=True)
    return load(fetch_dataset(named, tmp_path / "fetched", None, silent()).train, named)


def questions(count, answer="It is {}, as everybody knows who has counted."):
    return [{"question": f"What is number {i}?", "answer": answer.format(f"<{i}>")} for i in range(count)]


def test_a_base_model_reads_plain_prose_alone(tiny_bare_model):
    tokenizer = load_tokenizer(tiny_bare_model)
    found, plain = (
        embedded_windows(tokenizer, 64, LENGTH),
        text_windows(EMBEDDED, calibration_text(), tokenizer, 64, LENGTH),
    )
    assert np.array_equal(found.ids, plain.ids)
    assert found.name == EMBEDDED


@pytest.mark.parametrize(
    ("family", "thoughts", "calls"),
    [
        ("qwen3", True, "<tool_call>"),
        ("gptoss", True, "to=functions."),
        ("deepseek_r1_distill", True, None),
        ("llama3_1", False, '"parameters"'),
        ("phi3", False, None),
        ("gemma3", False, None),
    ],
)
def test_a_model_reads_conversations_as_its_own_template_writes_them(family, thoughts, calls):
    tokenizer = family_tokenizer(family)
    found = embedded_windows(tokenizer, SAMPLES, LENGTH)
    text = text_of(found, tokenizer)
    assert "The shirt costs **34 dollars**" in text
    assert "sequence" in text  # of the prose
    assert has_thoughts(text) == thoughts
    assert ("Ten percent is 4" in text) == thoughts
    assert THINKS not in text or family in ("qwen3", "deepseek_r1_distill")
    assert ("7,006,553" in text) == bool(calls)
    assert calls is None or calls in text
    assert ("with thoughts" in found.name, "tool calls" in found.name) == (thoughts, bool(calls))
    assert "conversations through the model's chat template" in found.words


def test_a_few_windows_hold_prose_and_conversations_too():
    tokenizer = family_tokenizer("qwen3")
    text = text_of(embedded_windows(tokenizer, 16, 512), tokenizer)
    assert "<|im_start|>assistant" in text
    assert len(text.split("<|im_start|>")) < len(text) / 200


def test_the_embedded_conversations_are_few_and_hold_some_of_each():
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    assert FILE.stat().st_size < 32_000
    assert sum("tools" in row for row in rows) >= 8
    assert sum("reasoning_content" in str(row) for row in rows) >= 16
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)
    plain = list(conversations(tools=False, thoughts=None))
    assert len(plain) == sum("tools" not in row for row in rows)
    assert not any(sample.thinks for sample in plain)


def test_rows_that_are_trained_on_are_read_beside_the_embedded_texts(tmp_path):
    tokenizer, data = family_tokenizer("qwen3"), dataset(tmp_path, questions(200))
    alone, _ = cut_rows(data, tokenizer, 20, LENGTH)
    mixed, _ = cut_rows(data, tokenizer, 20, LENGTH, mixed=True)
    assert "def " not in text_of(alone, tokenizer)
    assert len(mixed.ids) == 20
    rows = sum("as everybody knows" in tokenizer.decode(ids) for ids in mixed.ids)
    assert rows == 10
    assert mixed.name == f"rows.jsonl (10 windows), and {embedded_windows(tokenizer, 10, LENGTH).name} (10 windows)"
    few, _ = cut_rows(dataset(tmp_path, questions(8)), tokenizer, 20, LENGTH, mixed=True)
    assert len(few.ids) == 20


def test_rows_that_are_held_out_are_never_calibrated_on(tmp_path):
    tokenizer = family_tokenizer("qwen3")
    data = dataset(tmp_path, questions(200), validation_size=0.2)
    held_out = [sample.messages[-1].content for sample in data.validation()]
    found, _ = cut_rows(data, tokenizer, SAMPLES, LENGTH, mixed=True)
    text = text_of(found, tokenizer)
    assert len(held_out) == 40
    assert not any(answer in text for answer in held_out)
    assert next(data.train()).messages[-1].content in text


GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, und der Hund denkt eine Weile darüber nach. " * 20


def test_what_is_read_and_what_the_model_is_for_are_compared(tmp_path, tiny_bare_model):
    thinks, chats, base = family_tokenizer("qwen3"), family_tokenizer("phi3"), load_tokenizer(tiny_bare_model)
    plain = text_windows("prose.txt", calibration_text(), chats, 8, LENGTH)
    [said] = unsuited(plain, chats, False, None)
    assert said.startswith("Calibration reads plain text, and the model has a chat template: ")
    assert unsuited(plain, chats, True, None) == []
    assert unsuited(text_windows("prose.txt", calibration_text(), base, 8, LENGTH), base, False, None) == []
    data = dataset(tmp_path, questions(200))
    [said] = unsuited(cut_rows(data, thinks, 8, LENGTH)[0], thinks, talks(data), None)
    assert said.startswith("Calibration reads no thoughts, and the model's chat template is made for them: ")
    thoughts = dataset(tmp_path, questions(200, "<think>I count to {}.</think>That is it."))
    assert unsuited(cut_rows(thoughts, thinks, 8, LENGTH)[0], thinks, talks(thoughts), None) == []
    assert unsuited(embedded_windows(thinks, SAMPLES, LENGTH), thinks, talks(None), calibration_text()) == []
    [said] = unsuited(embedded_windows(thinks, SAMPLES, LENGTH), thinks, talks(None), GERMAN)
    assert said.startswith("Calibration reads English, and the model is tuned on German: ")


def test_a_template_that_only_thinks_has_its_thoughts_read():
    tokenizer = family_tokenizer("deepseek_r1_distill")
    assert abilities(tokenizer) == (True, True, False)
    assert "Let Ben be b." in text_of(embedded_windows(tokenizer, SAMPLES, LENGTH), tokenizer)
