"""What the model sees of a row, and what of it counts: compared with the texts themselves."""

import pytest

from backend.data.findings import Ledger
from backend.data.samples import Message, Sample
from backend.errors import SpecError
from backend.finetune.chat_templates import CHAT_TEMPLATES, give_template
from backend.finetune.rendered import render, survey
from backend.finetune.rendering import IGNORED, Renderer, stops_of

TURNS = (
    Message("system", "Be brief."),
    Message("user", "What is 1 + 1?"),
    Message("assistant", "It is 2."),
    Message("user", "And 2 + 2?"),
    Message("assistant", "It is 4."),
)


@pytest.fixture
def tokenizer(tiny_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def learned(tokenizer, rendered):
    """The texts that count, each run of tokens by itself."""
    runs, last = [], None
    for i, label in enumerate(rendered.labels):
        if label != IGNORED:
            if last != i - 1:
                runs.append([])
            runs[-1].append(label)
            last = i
    return [tokenizer.decode(run) for run in runs]


def renderer(tokenizer, loss="auto", max_length=512):
    return Renderer(tokenizer, loss, max_length, stops_of(tokenizer, ()))


@pytest.mark.parametrize("name", ["auto", *CHAT_TEMPLATES])
def test_answers_count_with_the_token_that_ends_them_and_nothing_else_does(tokenizer, name):
    give_template(tokenizer, name, "tiny")
    found = renderer(tokenizer).render(Sample(1, TURNS))
    answers = learned(tokenizer, found)
    assert [text.replace(tokenizer.eos_token, "").replace("<|im_end|>", "").strip() for text in answers] == [
        "It is 2.",
        "It is 4.",
    ]
    assert found.ends
    assert all(text.endswith(tuple(tokenizer.all_special_tokens)) for text in answers)


def test_which_answers_count_can_be_chosen(tokenizer):
    assert len(learned(tokenizer, renderer(tokenizer, "completion").render(Sample(1, TURNS)))) == 1
    [answer] = learned(tokenizer, renderer(tokenizer).render(Sample(1, TURNS, prompt=4)))
    assert answer.startswith("It is 4.")
    whole = renderer(tokenizer, "all").render(Sample(1, TURNS))
    assert whole.labels == whole.input_ids


def test_plain_text_counts_whole_and_ends(tokenizer):
    found = renderer(tokenizer).render(Sample(1, text="Once upon a time."))
    assert found.input_ids[-1] == tokenizer.eos_token_id
    assert found.ends
    assert "".join(learned(tokenizer, found)).endswith(f"Once upon a time.{tokenizer.eos_token}")


def test_special_tokens_that_somebody_typed_are_letters(tokenizer):
    special = tokenizer.eos_token
    turns = (Message("user", f"What is {special}?"), Message("assistant", f"{special} ends a text."))
    found = renderer(tokenizer).render(Sample(1, turns))
    plain = renderer(tokenizer).render(Sample(1, (Message("user", "What is x?"), Message("assistant", "x ends."))))
    assert found.input_ids.count(tokenizer.eos_token_id) == plain.input_ids.count(tokenizer.eos_token_id)
    assert special in tokenizer.decode(found.input_ids)


def test_a_row_that_is_too_long_is_cut_and_one_without_an_answer_left_is_left_out(tokenizer):
    long = Sample(1, (Message("user", "word " * 100), Message("assistant", "Yes.")))
    short = Sample(2, (Message("user", "Hi"), Message("assistant", "Yes. " * 200)))
    rows, masked = render([long, short], renderer(tokenizer, max_length=64), Ledger("rows"))
    assert (masked, [row.row for row in rows]) == (1, [2])
    assert len(rows[0].input_ids) == 64
    seen = survey(rows, masked, tokenizer)
    assert (seen.rows, seen.truncated, seen.masked, seen.tokens) == (1, 1, 1, 64)
    assert sum(count for _, count in seen.histogram) == 1
    assert "".join(piece.text for piece in seen.samples[0]) == tokenizer.decode(rows[0].input_ids)
    assert "1 is cut at max_length" in seen.words


def test_a_model_without_a_template_asks_for_one(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(SpecError, match="choose plain, alpaca"):
        give_template(tokenizer, "auto", "acme/base")


def test_a_row_that_the_template_refuses_is_named(tokenizer):
    made = renderer(tokenizer)
    tokenizer.chat_template = "{{ raise_exception('Roles must alternate') }}"
    ledger = Ledger("rows")
    assert render([Sample(7, TURNS)], made, ledger) == ([], 0)
    [said] = ledger.findings(1, drop=False)
    assert "does not take the conversation (Roles must alternate) in 1 of 1 rows (row 7): change it" in said.text
