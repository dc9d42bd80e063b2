"""The card says what was recorded, and nothing else."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from backend.artifacts.artifact import TRAINED_HERE, Answer, Merged
from backend.artifacts.sealing import open_artifact
from backend.progress import silent
from backend.publish.card.base_card import BaseCard, read_base_card
from backend.publish.card.card import build_card
from backend.publish.card.languages import CODES, hub_languages
from backend.publish.card.markdown import literal
from backend.publish.card.metadata import split_card
from backend.quantize import METHODS
from backend.recipes import parse_recipe
from backend.stages.companions import accompany, base_in
from backend.weights.checkpoint import Checkpoint
from backend.weights.output import Output
from tests.support.loopback_hub import LoopbackHub
from tests.support.published import METRICS, SURE

Make = Callable[..., Path]

QUANTIZED = parse_recipe({"base_model": "acme/tiny", "stages": [{"stage": "quantize", "method": "nf4"}]})

HOSTILE = (
    "x\n---\nlicense: mit\n---\n<script>alert(1)</script> [click](javascript:alert(1)) {{ 7*7 }} | `a` **b** $$1$$"
)


def front_matter(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("\n---\n")[0].removeprefix("---"))


def test_front_matter_has_exactly_the_keys_that_are_known(make_artifact: Make) -> None:
    card = build_card(make_artifact(metrics=METRICS), "me/tiny-nf4")
    assert front_matter(card) == {
        "base_model": "acme/tiny",
        "base_model_relation": "quantized",
        "license": "other",
        "license_name": "acme-1",
        "license_link": "LICENSE",
        "language": ["en", "no"],
        "datasets": ["acme/rows"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["chat", "weightsmith"],
        "model-index": [
            {
                "name": "tiny-nf4",
                "results": [
                    {
                        "task": {"type": "text-generation"},
                        "dataset": {"name": METRICS.text, "type": "Salesforce/wikitext"},
                        "metrics": [
                            {
                                "type": "perplexity",
                                "value": 24.12,
                                "name": "Perplexity (8 non-overlapping windows of 2048 tokens)",
                            },
                            {
                                "type": "kl_divergence",
                                "value": 0.0912,
                                "name": "Mean KL divergence from the original, nats a token"
                                " (8 non-overlapping windows of 2048 tokens)",
                            },
                            {
                                "type": "top1_agreement",
                                "value": 0.8734,
                                "name": "Top-1 agreement with the original (8 non-overlapping windows of 2048 tokens)",
                            },
                        ],
                    }
                ],
            }
        ],
    }


def test_what_is_not_known_is_left_out_and_never_guessed(make_artifact: Make) -> None:
    folder = make_artifact(card=None, base_model=None, revision=None)
    card = build_card(folder, "me/x")
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["weightsmith"],
    }
    assert "names no license" in card
    assert "Quality was not measured." in card
    assert "None" not in card


def test_a_model_that_reads_pictures_is_said_to_and_loaded_with_what_reads_them(make_artifact: Make) -> None:
    config = {"model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": {}}
    card = build_card(make_artifact(extra={"config.json": json.dumps(config)}), "me/x")
    assert front_matter(card)["pipeline_tag"] == "image-text-to-text"
    assert "AutoModelForImageTextToText.from_pretrained(model_id" in card
    assert "AutoModelForCausalLM" not in card


@pytest.mark.parametrize("license", ["apache-2.0", "llama3.2", "[mit, apache-2.0]"])
def test_the_license_is_the_bases(make_artifact: Make, license: str) -> None:
    card = build_card(make_artifact(card=f"---\nlicense: {license}\n---\n"), None)
    assert front_matter(card)["license"] == yaml.safe_load(license)


def test_a_license_link_points_to_a_file_that_is_there_or_to_the_bases(make_artifact: Make) -> None:
    here = front_matter(build_card(make_artifact("here"), None))["license_link"]
    card = "---\nlicense: other\nlicense_name: a\nlicense_link: TERMS.md\n---\n"
    there = front_matter(build_card(make_artifact("there", card=card), None))["license_link"]
    assert (here, there) == ("LICENSE", f"https://huggingface.co/acme/tiny/blob/{'c' * 40}/TERMS.md")


@pytest.mark.parametrize(
    "readme",
    [
        b"no front matter",
        b"---\n: : :\n\t---\n---\n",
        b"---\n- a\n- list\n---\n",
        b"---\nlicense: {a: 1}\nlanguage: 3\ntags: chat: x\n---\n",
        b"---\nlicense: 2024-99-99\n---\n",
        b"---\nlicense: '" + b"x" * 1_000_000 + b"'\n---\n",
        b"---\nlicense: " + b"[" * 5000 + b"\n---\n",
        b"---\na: &a [x, x]\nb: &b [*a, *a]\ntags: [*b, *b]\n---\n",
        b"\xff\xfe---",
    ],
)
def test_a_base_card_that_cannot_be_read_says_nothing(tmp_path: Path, readme: bytes) -> None:
    base, output = tmp_path / "base", tmp_path / "output"
    base.mkdir()
    output.mkdir()
    (base / "README.md").write_bytes(readme)
    accompany(QUANTIZED, base_in(base), output)
    assert read_base_card(output) == BaseCard()


def test_license_texts_go_with_the_model(tmp_path: Path) -> None:
    base, output = tmp_path / "base", tmp_path / "output"
    base.mkdir()
    output.mkdir()
    texts = {"LICENSE", "NOTICE.txt", "USE_POLICY.md", "LICENSE-MODEL"}
    for name in (*texts, "license.py", "train.py"):
        (base / name).write_text(name)
    accompany(QUANTIZED, base_in(base), output)
    assert {path.name for path in output.iterdir()} == {*texts, "base_card.json", "recipe.yaml"}


def test_measured_quality_stands_in_a_table(make_artifact: Make) -> None:
    card = build_card(make_artifact(metrics=METRICS), None)
    for words in ("| 21.90 | **24.12** (+10.1%) |", "**0.0912**", "| 0.6100 |", "**87.3%**", "16,376 tokens"):
        assert words in card
    assert "Quality was not measured" not in card


def test_answers_flips_and_speed_stand_in_the_card_where_they_were_measured(make_artifact: Make) -> None:
    answers = (
        Answer(prompt="Capital of France?", reference="Paris.", result="Paris."),
        Answer(prompt="A table?", reference="a | b\n<b>c</b>", result=""),
    )
    more = {"flips": 0.0312, "answers": answers, "tokens_per_second": 12.3, "reference_tokens_per_second": 9.87}
    card = build_card(make_artifact(metrics=METRICS.model_copy(update=more)), None)
    assert "| 0% | 3.1% |" in card
    assert "| 9.9 | 12.3 |" in card
    assert "2 prompts, always with the likeliest next token; 1 of 2 answers are the same" in card
    assert "| A table? | a \\| b &lt;b&gt;c&lt;/b&gt; | (nothing) |" in card


def test_figures_stand_with_their_intervals_and_with_what_these_are(make_artifact: Make) -> None:
    folder = make_artifact(metrics=METRICS)

    def card(**more: object) -> str:
        metrics = METRICS.model_copy(update=more)
        return build_card(folder, None, open_artifact(folder).model_copy(update={"metrics": metrics}))

    sure = card(windows=8, intervals=SURE)
    assert "| **0.0912** [0.0812, 0.1031] |" in sure
    assert "| **87.3%** [86.0%, 88.5%] |" in sure
    assert "**24.12** (+10.1% [+9.0%, +11.2%])" in sure
    assert "95% intervals, from how much the 8 windows differ." in sure
    assert "1 window cannot tell how far these figures may be off" in card(windows=1)
    assert "interval" not in card()


def test_hostile_text_appears_literally(make_artifact: Make) -> None:
    metrics = METRICS.model_copy(update={"text": HOSTILE, "convention": "x" * 1_000_000})
    hostile_card = f"---\nlicense: other\nlicense_name: {json.dumps(HOSTILE)}\ntags: [{json.dumps(HOSTILE)}, ok]\n---\n"
    fields = {"metrics": metrics, "origin": HOSTILE, "hardware": HOSTILE, "warnings": (HOSTILE,)}
    options = {"method": HOSTILE, "llm_int8_skip_modules": [HOSTILE]}
    extra = {"recipe.yaml": "a: |\n  ```\n  <script>\n  # {{ 7*7 }}\n"}
    card = build_card(make_artifact(card=hostile_card, extra=extra, options=options, **fields), "me/x")
    data = front_matter(card)
    assert data["license"] == "other"
    assert data["tags"] == ["ok", "weightsmith"]
    assert "license_name" not in data
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == " ".join(HOSTILE.split())
    body = re.sub(r"\n````yaml\n.*?\n````\n", "", card.split("\n---\n", 1)[1], flags=re.DOTALL)
    assert "<script" not in body
    assert not re.search(r"(?<!\\)\]\(javascript:", body)
    assert "49" not in body
    assert body.count("{{ 7*7 }}".replace("*", r"\*")) == 7
    assert max(map(len, card.splitlines())) < 10_000


def test_a_manifest_that_lies_makes_no_link(make_artifact: Make) -> None:
    card = build_card(make_artifact(base_model="x](javascript:1)/y", revision="../..", metrics=METRICS), None)
    assert "javascript" not in card
    assert "base_model" not in front_matter(card)


def test_an_escaped_value_is_one_line_of_plain_text() -> None:
    assert literal("a_b _c_\n\n# <b>") == r"a_b \_c\_ \# &lt;b&gt;"
    assert literal(["q_proj", True]) == r'\["q_proj", true\]'


def test_the_hub_accepts_the_card_and_reads_the_same_back(make_artifact: Make, hub: LoopbackHub) -> None:
    text = build_card(make_artifact(metrics=METRICS), "me/x")
    card = ModelCard(text)
    card.validate()
    assert str(card) == text
    assert card.data.eval_results[0].metric_value == 24.12


def test_the_card_is_a_pure_function_of_the_folder(make_artifact: Make) -> None:
    folder = make_artifact(metrics=METRICS, hardware="2 CPU cores", seconds=12.2, peak_memory_bytes=1_234_000_000)
    before = sorted(folder.iterdir())
    moved = folder.rename(folder.with_name("moved"))
    card = build_card(moved, None)
    moved.rename(folder)
    assert build_card(folder, None) == card
    assert sorted(folder.iterdir()) == before
    assert str(folder.parent) not in card
    for words in (
        "2 CPU cores",
        "12 s",
        "1.23 GB",
        "c" * 40,
        "transformers 5.23.0",
        "run recipe.yaml",
        "Weightsmith 0.1.0",
    ):
        assert words in card


def test_variants_are_a_short_section_before_the_limits_and_change_nothing_else(make_artifact: Make) -> None:
    folder = make_artifact(metrics=METRICS)
    alone = build_card(folder, "me/tiny")
    assert build_card(folder, "me/tiny", variants=["me/tiny"]) == alone
    assert "Variants" not in alone
    card = build_card(folder, "me/tiny", variants=["me/tiny_8-bit", "me/tiny", "acme/tiny"])
    section = (
        "## Variants\n\nThe same model, made in other ways:\n\n"
        "* [me/tiny_8-bit](https://huggingface.co/me/tiny_8-bit)\n* [acme/tiny](https://huggingface.co/acme/tiny)\n\n"
    )
    before, after = alone.split("## Limits")
    assert card == f"{before}{section}## Limits{after}"


def test_weights_that_came_another_way_are_told_apart_from_the_published_ones(make_artifact: Make) -> None:
    card = build_card(make_artifact(origin="dequantized from a GGUF"), None)
    assert "are not the published ones: dequantized from a GGUF." in card
    assert "makes it again" not in card


def snippet(card: str) -> str:
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


@pytest.mark.parametrize("template", [True, False])
def test_the_lines_that_load_it_run(
    make_artifact: Make, template: bool, tiny_bare_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = {} if template else {"tokenizer_config.json": (tiny_bare_model / "tokenizer_config.json").read_bytes()}
    folder = make_artifact(extra=bare, quantize=lambda base, output: _nf4(base, output, template))
    card = build_card(folder, "me/tiny-nf4")
    assert ("apply_chat_template" in card) == template
    assert ("no chat template" in card) != template
    assert "Without `bitsandbytes` it does not load" in card
    assert "quantized to 4 bits (nf4, in the format of bitsandbytes)" in card
    exec(snippet(card).replace("me/tiny-nf4", str(folder)), {})
    assert capsys.readouterr().out


def _nf4(base: Path, output: Path, template: bool) -> None:
    METHODS["nf4"].quantize(Checkpoint.of(base), Output(output), METHODS["nf4"].Options(), silent())
    if not template:
        (output / "chat_template.jinja").unlink()


def test_a_published_folder_says_how_to_load_it_from_where_it_lies(
    make_artifact: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_artifact()
    code = snippet(build_card(folder, None))
    monkeypatch.chdir(folder)
    exec(code, {})
    assert capsys.readouterr().out


def test_an_adapters_front_matter_has_exactly_the_keys_that_are_known(make_adapter: Make, hub: LoopbackHub) -> None:
    card = build_card(make_adapter(dataset="acme/rows", commit="d" * 40), "me/tiny-adapter")
    assert front_matter(card) == {
        "base_model": "acme/tiny",
        "base_model_relation": "adapter",
        "license": "other",
        "license_name": "acme-1",
        "license_link": "LICENSE",
        "language": ["en", "no"],
        "datasets": ["acme/rows"],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["chat", "lora", "weightsmith"],
    }
    ModelCard(card).validate()


@pytest.mark.parametrize(
    ("dataset", "words"),
    [("rows.jsonl", "1,200 rows of rows.jsonl, a local file."), ("demo", "1,200 rows of Weightsmith's demo data set")],
)
def test_rows_that_are_no_data_set_of_the_hub_are_none_in_the_front_matter(
    make_adapter: Make, dataset: str, words: str
) -> None:
    card = build_card(make_adapter(dataset=dataset), None)
    assert "datasets" not in front_matter(card)
    assert words in card
    assert ("the file of the rows is at hand" in card) == (dataset == "rows.jsonl")


def test_an_adapters_card_says_what_was_learned_from_what(make_adapter: Make) -> None:
    stopped = {"stopped": "The loss was | no number.", "planned_steps": 90}
    card = build_card(make_adapter(dataset="acme/rows", commit="d" * 40, training=stopped), "me/tiny-adapter")
    for words in (
        "A LoRA adapter for [tiny](https://huggingface.co/acme/tiny), trained on 1,200 rows of"
        " [acme/rows](https://huggingface.co/datasets/acme/rows).",
        "beside the base model's 2 MB",
        "loss fell from 3.500 to **2.250**",
        "| Of them counted for the loss | 12,500 (25%) |",
        "| Steps | 60 of 90 planned |",
        r"| Ended early | The loss was \| no number. |",
        "| Loss, mean over the training (nats a token) | 2.123 |",
        f"[{'d' * 40}](https://huggingface.co/datasets/acme/rows/tree/{'d' * 40})",
        "| 0 | 3.000 | 3.500 |",
        "| 60 | 1.800 | 2.300 |",
        "quantized to 4 bits (NF4, double quantization)",
        "backend merge me/tiny-adapter --output DIR",
        "Only where the result is quantized to NF4 again, merge into the original ones",
    ):
        assert words in card
    assert len(re.findall(r"^\| \d+ \| \d\.\d{3} \|", card, re.MULTILINE)) == 10
    for words in ("weights quantized", "weights stored", "## Quality", "None", "nan", "\n\n\n"):
        assert words not in card.split("\n---\n", 1)[1]


def test_what_an_adapters_training_did_not_measure_is_not_said(make_adapter: Make) -> None:
    nothing = {"eval_loss_before": None, "eval_loss": None, "validation_rows": 0}
    plain = {"quantization": "none", "bnb_4bit_compute_dtype": "auto"}
    missing = {"base_model": None, "revision": None, "extra": {"metrics.jsonl": "", "base_card.json": "{}"}}
    card = build_card(make_adapter(training=nothing, options=plain, **missing), "me/x")
    assert "base_model" not in front_matter(card)
    assert "nobody measured what it learned" in card
    assert "the base model's folder and the file of the rows are at hand" in card
    assert "merge the adapter into the original weights" in card
    assert "backend merge me/x --base FOLDER --output DIR" in card
    for words in ("Validation loss", "| Step |", "BitsAndBytesConfig", "bitsandbytes", "instead of", "None"):
        assert words not in card.split("\n## Settings")[0].split("\n---\n", 1)[1]


def test_hostile_text_in_an_adapter_appears_literally(make_adapter: Make) -> None:
    config = json.dumps({"base_model_name_or_path": '"\n```\n<script>', "task_type": HOSTILE})
    training = {"stopped": HOSTILE, "dataset": HOSTILE, "dataset_revision": HOSTILE}
    options = {"quantization": HOSTILE, "bnb_4bit_compute_dtype": HOSTILE}
    metrics = json.dumps({"step": HOSTILE, "loss": HOSTILE}) + "\n" + json.dumps({"step": 1, "loss": float("nan")})
    extra = {"adapter_config.json": config, "metrics.jsonl": metrics}
    card = build_card(make_adapter(base_model=None, training=training, options=options, extra=extra), "me/x")
    body = card.split("\n---\n", 1)[1]
    assert "<script" not in body
    assert not re.search(r"(?<!\\)\]\(javascript:", body)
    assert '"the base model\'s folder"' in snippet(card)
    assert "| Step |" not in body


def test_a_model_says_which_training_is_in_it(make_adapter: Make, make_artifact: Make) -> None:
    training = open_artifact(make_adapter(dataset="acme/rows", commit="d" * 40)).training
    merged = Merged(adapters=(TRAINED_HERE,), weights=(1.0,), into="nf4", double_quant=True)
    card = build_card(make_artifact(merged=merged, training=training), "me/x")
    assert front_matter(card)["datasets"] == ["acme/rows"]
    assert front_matter(card)["base_model_relation"] == "finetune"
    assert front_matter(card)["library_name"] == "transformers"
    assert "The LoRA adapter trained by this recipe was merged into the base model's weights as NF4" in card
    assert "| Rows trained on | 1,200 |" in card
    assert "Quality was not measured." in card
    assert "at hand" not in card


@pytest.mark.real
@pytest.mark.parametrize(("quantization", "double"), [("nf4", True), ("fp4", False), ("int8", True), ("none", True)])
def test_the_lines_that_load_an_adapter_run(
    make_adapter: Make, tiny_model: Path, quantization: str, double: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"quantization": quantization, "bnb_4bit_use_double_quant": double}
    folder = make_adapter(options=options, revision=None)
    code = snippet(build_card(folder, "me/tiny-adapter"))
    found: dict[str, Any] = {}
    exec(code.replace("me/tiny-adapter", str(folder)).replace("acme/tiny", str(tiny_model)), found)
    assert capsys.readouterr().out
    held = found["base"].config.to_dict().get("quantization_config")
    assert (held is None) == (quantization == "none")
    if quantization in ("nf4", "fp4"):
        assert (held["bnb_4bit_quant_type"], held["bnb_4bit_use_double_quant"]) == (quantization, double)


def test_a_card_is_split_where_its_front_matter_ends_and_nowhere_before() -> None:
    assert split_card("---\ntags:\n- odd---\n---\n\n# Title\n\n---\n") == ("tags:\n- odd---", "# Title\n\n---\n")


@pytest.mark.parametrize(
    ("named", "taken"),
    [
        (["English", "zh-CN", "en", "code"], ["en", "zh", "code"]),
        (["pt_BR", "EN", "fil", "eng"], ["pt", "en", "fil", "eng"]),
        (["English, French and German"], ["en", "fr", "de"]),
        (["Chinese (Simplified)", "zh-Hans", "multilingual"], ["zh", "multilingual"]),
        (["jp", "cn", "日本語", "français"], ["ja", "zh", "fr"]),
        (["no", "nb-NO", "Norwegian"], ["no", "nb"]),
        (["all of them", "Klingonese", "x", "e n", "12", "-", ""], []),
    ],
)
def test_a_card_names_languages_as_the_hub_takes_them(named: list[str], taken: list[str]) -> None:
    assert hub_languages(named) == taken
    assert all(re.fullmatch(r"[a-z]{2,3}|code|multilingual", code) for code in [*taken, *CODES.values()])


def test_what_the_hub_would_refuse_of_a_bases_card_is_turned_round_or_left_out(make_artifact: Make) -> None:
    card = (
        "---\nlicense: Apache 2.0\nlanguage: [English, zh-CN, Klingonese]\n"
        "datasets: [acme/rows, /home/me/rows, a--b/c, .hidden, squad, a/b/c]\ntags: [chat, 3, '']\n---\n"
    )
    found = front_matter(build_card(make_artifact(card=card), None))
    assert found["language"] == ["en", "zh"]
    assert found["datasets"] == ["acme/rows", "squad"]
    assert found["license"] == "other"
    assert found["tags"] == ["chat", "weightsmith"]
