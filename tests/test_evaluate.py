"""The quality figures, compared with a float64 computation that keeps everything."""

import shutil
import time

import numpy as np
import pytest
import torch

from backend.errors import SpecError
from backend.evaluate import ANSWER_TOKENS, PROMPTS, EvaluateOptions, Text, measure, writing_speed
from backend.models.loading import load_causal_lm, load_tokenizer
from backend.progress import Report, silent
from backend.quantize import METHODS
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output

PROSE = Text(name="prose", content="The quick brown fox jumps over the lazy dog. " * 40)


@pytest.fixture(scope="module")
def nf4_model(tiny_model, tmp_path_factory):
    output = tmp_path_factory.mktemp("nf4")
    METHODS["nf4"].quantize(Checkpoint.of(tiny_model), Output(output), METHODS["nf4"].Options(), silent())
    return output


def direct(reference, result, text, length, windows):
    """All logits at once, in float64 NumPy."""
    ids = load_tokenizer(reference)(text.content)["input_ids"]
    rows = torch.tensor(ids[: length * windows]).view(windows, length)
    logs = []
    for folder in (reference, result):
        with torch.inference_mode():
            logits = load_causal_lm(folder, silent())(rows).logits[:, :-1].double().numpy()
        logs.append(
            logits
            - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
            - logits.max(-1, keepdims=True)
        )
    p, q = (log.reshape(-1, log.shape[-1]) for log in logs)
    target = rows[:, 1:].reshape(-1, 1).numpy()
    kl = (np.exp(p) * (p - q)).sum(-1)
    nll = [-np.take_along_axis(log, target, 1).mean() for log in (p, q)]
    right = [log.argmax(-1) == target[:, 0] for log in (p, q)]
    return kl, np.exp(nll[0]), np.exp(nll[1]), (p.argmax(-1) == q.argmax(-1)).mean(), (right[0] != right[1]).mean()


def test_the_figures_are_those_of_a_direct_computation(tiny_model, nf4_model):
    options = EvaluateOptions(max_seq_length=64, num_samples=5)
    found = measure(tiny_model, nf4_model, PROSE, options, silent())
    kl, reference_perplexity, perplexity, agreement, flips = direct(tiny_model, nf4_model, PROSE, 64, 5)
    assert found.tokens == 5 * 63
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-3)
    assert found.kl_p99 == pytest.approx(np.sort(kl)[int(np.ceil(0.99 * len(kl))) - 1], rel=0.02)
    assert found.perplexity == pytest.approx(perplexity, rel=1e-4)
    assert found.reference_perplexity == pytest.approx(reference_perplexity, rel=1e-4)
    assert found.top1_agreement == pytest.approx(agreement)
    assert found.flips == pytest.approx(flips)


def test_every_figure_lies_in_an_interval_that_comes_out_the_same_again(tiny_model, nf4_model):
    options = EvaluateOptions(max_seq_length=16, num_samples=12, answers=False)
    found, again = (measure(tiny_model, nf4_model, PROSE, options, silent()) for _ in range(2))
    assert found.intervals == again.intervals
    assert found.windows == 12
    for name, (low, high) in found.intervals.model_dump().items():
        assert low <= getattr(found, name) <= high, name
    low, high = found.intervals.kl_mean
    assert low < high
    assert f"KL mean {found.kl_mean:.4f} [{low:.4f}, {high:.4f}]" in found.words
    assert "95% intervals, from how much the 12 windows differ" in found.words


def test_too_few_windows_have_no_interval_and_the_report_says_why(tiny_model, nf4_model):
    options = EvaluateOptions(max_seq_length=16, num_samples=4, answers=False)
    found = measure(tiny_model, nf4_model, PROSE, options, silent())
    assert found.intervals is None
    assert "4 windows cannot tell how far these figures may be off: measure on 5 or more." in found.words


def test_no_time_of_the_prompts_goes_into_the_speed_of_writing(tiny_model):
    model, pauses = load_causal_lm(tiny_model, silent()), iter([0, 0.5, 0])  # of a machine that others use, too

    def pause(module, args, kwargs):
        time.sleep(0.01 if kwargs["input_ids"].shape[1] == 1 else next(pauses))

    model.register_forward_pre_hook(pause, with_kwargs=True)
    assert writing_speed(model, load_tokenizer(tiny_model)("Hello there", return_tensors="pt")) <= 1 / 0.01


def test_both_models_answer_each_prompt_as_they_would_alone(tiny_model, nf4_model):
    found = measure(tiny_model, nf4_model, PROSE, EvaluateOptions(max_seq_length=64, num_samples=1), silent())
    assert [answer.prompt for answer in found.answers] == list(PROMPTS)
    tokenizer = load_tokenizer(tiny_model)
    for folder, said in ((tiny_model, found.answers[2].reference), (nf4_model, found.answers[2].result)):
        turns = [{"role": "user", "content": PROMPTS[2]}]
        batch = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        out = load_causal_lm(folder, silent()).generate(**batch, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        alone = tokenizer.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert said.removesuffix("…")[:30] == alone[:30]
    assert found.tokens_per_second > 0 < found.reference_tokens_per_second


def test_answers_can_be_left_out(tiny_model):
    options = EvaluateOptions(max_seq_length=16, num_samples=1, answers=False)
    found = measure(tiny_model, tiny_model, PROSE, options, silent())
    assert (found.answers, found.tokens_per_second) == ((), None)


def test_a_model_agrees_with_itself(tiny_model):
    found = measure(tiny_model, tiny_model, PROSE, EvaluateOptions(max_seq_length=64, num_samples=2), silent())
    assert (found.kl_mean, found.top1_agreement) == (0.0, 1.0)
    assert found.perplexity == found.reference_perplexity


def test_a_text_shorter_than_a_window_is_refused_with_both_lengths(tiny_model):
    with pytest.raises(SpecError, match=r"'short' has \d+ tokens, fewer than one window of 64"):
        measure(tiny_model, tiny_model, Text(name="short", content="Hi."), EvaluateOptions(max_seq_length=64), silent())


def test_no_more_windows_are_read_than_asked_for(tiny_model):
    found = measure(tiny_model, tiny_model, PROSE, EvaluateOptions(max_seq_length=16, num_samples=3), silent())
    assert found.tokens == 3 * 15
    assert "3 non-overlapping windows of 16 tokens" in found.convention


@pytest.fixture
def begun(tiny_model, tmp_path):
    """Return the tiny model with a tokenizer that puts tokens before every text."""
    from tokenizers.processors import TemplateProcessing

    def make(*before, after=""):
        folder = shutil.copytree(tiny_model, tmp_path / "begun")
        tokenizer = load_tokenizer(folder)
        special = {token: tokenizer.convert_tokens_to_ids(token) for token in (*before, *after.split())}
        template = " ".join([*before, "$A", *after.split()])
        tokenizer._tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=list(special.items()))
        tokenizer.save_pretrained(folder)
        return folder, [special[token] for token in before]

    return make


@pytest.mark.parametrize(
    ("before", "after"),
    [(["<|im_start|>"], ""), (["<pad>", "<|im_start|>"], ""), ([], "<|im_end|>"), (["<|im_start|>"], "<|im_end|>")],
)
def test_every_window_begins_as_the_tokenizer_begins_a_text(begun, before, after):
    folder, ids = begun(*before, after=after)
    found = measure(folder, folder, PROSE, EvaluateOptions(max_seq_length=32, num_samples=4, answers=False), silent())
    model, first = load_causal_lm(folder, silent()), max(len(ids), 1)
    text = load_tokenizer(folder)(PROSE.content, add_special_tokens=False)["input_ids"]
    step, losses = 32 - len(ids), []
    for start in range(0, 4 * step, step):
        window = torch.tensor([[*ids, *text[start : start + step]]])
        with torch.inference_mode():
            scores = model(window).logits[0, first - 1 : -1].double().log_softmax(-1)
        losses.append(-scores.gather(1, window[0, first:, None]))
    assert found.tokens == 4 * (32 - first) == sum(map(len, losses))
    assert found.reference_perplexity == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-3)
    assert ("begun with" in found.convention) == bool(before)


def test_a_model_of_few_positions_is_measured_in_them_and_asked_nothing(tiny_model, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "short"
    GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=40, n_embd=32, n_layer=1, n_head=2)).save_pretrained(folder)
    load_tokenizer(tiny_model).save_pretrained(folder)
    said = []
    report = Report(lambda event: said.append(event.get("text", "")))
    found = measure(folder, folder, PROSE, EvaluateOptions(), report)
    assert "windows of 40 tokens" in found.convention
    assert found.answers == ()
    assert "The model reads 40 tokens at most: the windows have that length." in said
    assert any("the model reads 40: none is asked" in text for text in said)


@pytest.mark.parametrize(("method", "says"), [("fp8", True), ("w4a16", False)])
def test_the_report_says_that_inputs_were_rounded_as_engines_do(method, says, tiny_model, tmp_path):
    options = METHODS[method].Options(**({"group_size": 32} if method == "w4a16" else {}))
    METHODS[method].quantize(Checkpoint.of(tiny_model), Output(tmp_path), options, silent())
    found = measure(tiny_model, tmp_path, PROSE, EvaluateOptions(max_seq_length=64, num_samples=2), silent())
    assert found.convention.endswith(", inputs of layers rounded as engines do") is says
