"""Answers to rows: their loss, what is right, and what is concluded from it."""

import numpy as np
import pytest
import torch

from backend.evaluate.answering import WRITTEN, Row, Rows, Said, answered, compared
from backend.finetune.rendering import IGNORED
from backend.models.loading import load_causal_lm, load_tokenizer
from backend.progress import silent


def row(tokenizer, number, question, answer):
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return Row(number, question, answer, prompt, [*prompt, *ids], [IGNORED] * len(prompt) + ids)


def greedy(model, prompt, count):
    """Write one answer alone, token by token, without a cache."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_the_loss_of_an_answer_is_that_of_its_tokens_alone(tiny_model):
    tokenizer, model = load_tokenizer(tiny_model), load_causal_lm(tiny_model, silent())
    rows = [row(tokenizer, 1, "What is 2?", "It is four."), row(tokenizer, 2, "A much longer question?", "No")]
    found = answered(tiny_model, Rows("mine", True, rows, tokenizer, ()), silent())
    for loss, one in zip(found.losses, rows, strict=True):
        with torch.inference_mode():
            scores = model(torch.tensor([one.ids])).logits[0].double().log_softmax(-1)
        start = len(one.prompt)
        direct = -sum(scores[i - 1, one.ids[i]].item() for i in range(start, len(one.ids)))
        assert loss == pytest.approx(direct, rel=1e-3)


def test_answers_written_side_by_side_are_those_that_the_model_writes_alone(tiny_model):
    tokenizer, model = load_tokenizer(tiny_model), load_causal_lm(tiny_model, silent())
    rows = [row(tokenizer, i, "What is it? " * i, "Yes") for i in range(1, 4)]
    found = answered(tiny_model, Rows("mine", True, rows, tokenizer, ()), silent())
    for text, one in zip(found.texts, rows, strict=True):
        alone = tokenizer.decode(greedy(model, one.prompt, 8), skip_special_tokens=True).strip()
        assert text[: len(alone) // 2] == alone[: len(alone) // 2]


def test_an_answer_is_right_that_is_given_word_for_word_and_ends(tiny_model):
    tokenizer, model = load_tokenizer(tiny_model), load_causal_lm(tiny_model, silent())
    asked = row(tokenizer, 1, "What is 2?", "Yes")
    said = greedy(model, asked.prompt, WRITTEN)
    stop = next(token for token in said[2:] if token not in said[:2])
    text = tokenizer.decode(said[: said.index(stop)], skip_special_tokens=True).strip()
    rows = [asked._replace(expected=text), asked._replace(number=2, expected=text + "!")]
    given = Rows("mine", True, rows, tokenizer, (stop,))
    answers = answered(tiny_model, given, silent())
    found, worst = compared(given, {"base": answers, "tuned": answers})
    assert [one.right for one in found.models] == [1, 1]
    assert worst[0].answers == (text, text)
    endless = answered(tiny_model, given._replace(stops=(tokenizer.pad_token_id,)), silent())
    assert endless.texts[0].startswith(text)
    assert endless.texts[0].endswith(" …")


def made(count, **losses):
    """Return so many rows of ten tokens, and what models made of them: each row's loss by its number."""
    rows = [Row(i, f"Q{i}", "yes", [1], [1] * 11, [IGNORED] + [1] * 10) for i in range(count)]
    said = {name: Said(10 * np.array(loss), ["yes"] * count) for name, loss in losses.items()}
    return Rows("rows.csv", True, rows, None, ()), said


def test_a_training_that_helped_is_said_to_with_its_interval_and_rows():
    spread = np.random.default_rng(0).normal(0, 0.1, 40)
    rows, said = made(40, base=2 + spread, tuned=1 + 0.5 * spread, quantized=1.1 + 0.4 * spread)
    found, worst = compared(rows, said)
    base, tuned, quantized = found.models
    assert (base.change, tuned.cost) == (None, None)
    assert tuned.change.loss == pytest.approx(-1 - 0.5 * spread.mean())
    low, high = tuned.change.interval
    half = 2.0227 * (0.5 * spread).std(ddof=1) / np.sqrt(40)
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    assert (tuned.change.better, tuned.change.worse) == (40, 0)
    assert found.words.startswith(
        "Tuning helped: over 40 held-out rows the loss of the answers fell from 1.994 to 0.997"
    )
    share = quantized.cost.loss / -tuned.change.loss
    assert f"Quantizing cost {quantized.cost.loss:.3f} [0." in found.words
    assert f"nats a token of the answers, {share:.0%} of what tuning had gained" in found.words
    assert [one.row for one in worst] == list(np.argsort(-(1.1 + 0.4 * spread))[:5])


def test_where_the_interval_holds_zero_no_difference_is_claimed():
    noise = np.tile([0.1, -0.1], 20)
    rows, said = made(40, base=2 + 0 * noise, tuned=2 + noise, quantized=2 - noise)
    found, _ = compared(rows, said)
    assert "Tuning made no difference that 40 held-out rows can show" in found.words
    assert "Quantizing made no difference that 40 held-out rows can show" in found.words
    assert "helped" not in found.words


def test_few_rows_show_no_difference_however_large_it_is():
    rows, said = made(4, base=[2.0] * 4, tuned=[1.0] * 4)
    found, _ = compared(rows, said)
    assert found.models[1].change.interval is None
    assert "no difference that 4 held-out rows can show" in found.words
    assert "too few for an interval" in found.legend


def test_a_training_that_hurt_and_a_result_of_unknown_making_are_called_what_they_are():
    spread = np.linspace(0, 0.1, 8)
    rows, said = made(8, base=1 + spread, tuned=2 + spread * 2)
    assert compared(rows, said)[0].words.startswith("Tuning hurt: over 8 held-out rows")
    rows, said = made(8, base=1 + spread, result=2 + spread * 2)
    told = compared(rows._replace(held_out=False), said)[0].words
    assert told.startswith("The result answers worse than its reference: over 8 rows")


def test_right_answers_that_were_lost_come_first_and_are_counted():
    rows, said = made(6, base=[1.0] * 6, tuned=[2.0, 1.0, 1.0, 1.0, 1.0, 3.0])
    said["base"].texts[5] = "no"
    said["tuned"].texts[1:3] = ["No.", "no"]
    found, worst = compared(rows, said)
    assert found.short == 6
    assert (found.models[1].change.gained, found.models[1].change.lost) == (1, 2)
    assert [one.row for one in worst] == [1, 2, 5, 0, 3]
