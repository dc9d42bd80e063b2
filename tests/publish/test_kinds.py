"""The card of every kind of artifact: what the Hub accepts, and what its reader is told."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from backend.artifacts.artifact import TRAINED_HERE, Merged
from backend.artifacts.sealing import open_artifact
from backend.errors import SpecError
from backend.progress import silent
from backend.publish.adopt import adopt, preview
from backend.publish.card.card import build_card
from backend.publish.card.licenses import IDS, check_name
from backend.publish.card.loss_plot import LOSS_PLOT, loss_plot
from backend.publish.card.metadata import with_body
from backend.publish.files import outgoing
from backend.publish.options import PublishOptions
from backend.quantize.layouts import LAYOUTS
from backend.quantize.layouts.layout import Scheme
from backend.recipes import parse_recipe
from backend.serve.engines import ENGINES
from backend.serve.engines.vllm_environment import interpreter
from backend.stages.prepare import prepare
from tests.support import hub_repos
from tests.support.loopback_hub import LoopbackHub
from tests.support.published import METRICS, publication

Make = Callable[..., Path]
Kinds = Callable[[str], Path]

BITS = {
    "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "cast": None,
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"},
}
ONE = Merged(adapters=(TRAINED_HERE,), weights=(1.0,), into="original")
TWO = Merged(adapters=("acme/a", "acme/b"), revisions=("d" * 40, "e" * 40), weights=(0.7, 0.3), into="original")

RELATION = {
    **dict.fromkeys(BITS, "quantized"),
    "merged": "finetune",
    "merged of several": "merge",
    "adapter": "adapter",
    "tuned, merged and quantized": "finetune",
    "elsewhere: PEFT": "adapter",
    "elsewhere: GPTQ": "quantized",
    "elsewhere: 16 bit": None,
}
SERVED = {"cast", "gptq", "awq", "merged", "merged of several", "adapter", "tuned, merged and quantized",
          "elsewhere: GPTQ", "elsewhere: 16 bit"}  # fmt: skip
"""What vLLM serves on any machine."""


@pytest.fixture
def kinds(make_artifact: Make, make_adapter: Make, tiny_model: Path, tmp_path: Path) -> Kinds:
    """Make an artifact of a kind, a key of RELATION."""

    def config(method: str) -> dict[str, str]:
        found = json.loads((tiny_model / "config.json").read_text())
        more = {"quantization_config": BITS[method]} if BITS.get(method) else {}
        return {"config.json": json.dumps(found | more)}

    def make(kind: str) -> Path:
        if kind in BITS:
            options = {"stage": "quantize", "method": kind}
            calibration = "the demo text, 32 rows of 512 tokens" if kind in ("gptq", "awq") else None
            return make_artifact(extra=config(kind), options=options, calibration=calibration, metrics=METRICS)
        if kind == "adapter":
            return make_adapter(dataset="acme/rows", commit="d" * 40)
        if kind.startswith("elsewhere"):
            return elsewhere(kind)
        training = open_artifact(make_adapter(dataset="acme/rows", commit="d" * 40)).training
        merged = {"kind": "merged", "stage": "merge", "options": {"stage": "merge"}}
        if kind == "merged of several":
            return make_artifact(**merged, merged=TWO)
        if kind == "merged":
            return make_artifact(**merged, merged=ONE, training=training)
        options = {"stage": "quantize", "method": "awq"}
        return make_artifact(extra=config("awq"), options=options, merged=ONE, training=training, metrics=METRICS)

    def elsewhere(kind: str) -> Path:
        source, target = make_artifact(extra=config("gptq" if "GPTQ" in kind else "cast")), tmp_path / "adopted"
        if "PEFT" in kind:
            source = make_adapter()
        for name in ("artifact.json", "base_card.json", "recipe.yaml", "metrics.jsonl"):
            (source / name).unlink(missing_ok=True)
        (source / "README.md").write_text("---\nlicense: mit\nbase_model: acme/tiny\n---\n# Mine\n")
        adopt(source, target, None, silent())
        return target

    return make


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("\n---\n")[0].removeprefix("---"))


@pytest.mark.parametrize("kind", RELATION)
def test_every_card_is_accepted_and_reads_back_as_it_was_written(kinds: Kinds, kind: str, hub: LoopbackHub) -> None:
    text = outgoing(kinds(kind), "me/x")["README.md"].read().decode()
    card = ModelCard(text)
    card.validate()
    assert [(r.method, r.path) for r in hub.requests] == [("POST", "/api/validate-yaml")]
    assert str(card) == text
    data = front_matter(text)
    assert front_matter(str(ModelCard(text))) == data
    assert (data["base_model"], data.get("base_model_relation")) == ("acme/tiny", RELATION[kind])
    assert data["license"] == ("mit" if kind.startswith("elsewhere") else "other")
    assert None not in data.values()
    assert not re.search(r"\bNone\b(?! were recorded)", text)
    assert "\n\n\n" not in text


@pytest.mark.parametrize("kind", RELATION)
def test_every_card_says_how_to_serve_what_vllm_serves(kinds: Kinds, kind: str) -> None:
    folder = kinds(kind)
    found = re.findall(r"^vllm serve (.*)$", build_card(folder, "me/x"), re.MULTILINE)
    assert bool(found) == (kind in SERVED or kind == "elsewhere: PEFT")


def test_an_adapter_is_served_with_the_arguments_that_our_own_server_has(kinds: Kinds, tiny_model: Path) -> None:
    folder = kinds("adapter")
    [fetch, serve] = re.findall(r"^(hf download .*|vllm serve .*)$", build_card(folder, "me/x"), re.MULTILINE)
    assert fetch == "hf download me/x --local-dir x"
    words = shlex.split(serve)[2:]
    assert words[:3] == ["acme/tiny", "--revision", "c" * 40]
    command = ENGINES["vllm"].command(folder, 1, "cuda", tiny_model)
    ours = [word.replace(f"{folder.name}={folder}", "x=x").replace(str(folder), "x") for word in command]
    assert words[3:] == ours[ours.index("--enable-lora") :]


@pytest.mark.parametrize("rows", [{}, {"calibration": "acme/rows"}])
def test_how_calibration_rows_were_read_is_said_where_there_were_any(make_artifact: Make, rows: dict[str, str]) -> None:
    options = {"stage": "quantize", "method": "gptq", "calibration_quoting": True, "num_calibration_samples": 8}
    card = build_card(make_artifact(options=options | rows), "me/x")
    assert ("| calibration_quoting |" in card) == bool(rows)
    assert "| num_calibration_samples |" in card


@pytest.mark.real
@pytest.mark.skipif(interpreter() is None, reason="needs vLLM: make vllm")
def test_vllms_own_parser_takes_the_lines_of_the_cards(kinds: Kinds, tmp_path: Path) -> None:
    lines = [build_card(kinds(kind), "me/x") for kind in ("gptq", "adapter")]
    found = [shlex.split(line) for card in lines for line in re.findall(r"^vllm serve (.*)$", card, re.MULTILINE)]
    code = (
        "import json, sys\n"
        "from vllm.entrypoints.cli.serve import cmd_init\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "parser = FlexibleArgumentParser()\n"
        "cmd_init()[0].subparser_init(parser.add_subparsers())\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    parsed = parser.parse_args(['serve', *line])\n"
        "    print(json.dumps([parsed.model_tag, parsed.revision, bool(parsed.enable_lora), parsed.max_lora_rank]))\n"
    )
    command = [str(interpreter()), "-c", code, json.dumps(found)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [json.loads(line) for line in done.stdout.splitlines()[-2:]] == [
        ["me/x", None, False, 16],
        ["acme/tiny", "c" * 40, True, 8],
    ]


@pytest.mark.parametrize(
    ("license", "built_with", "prefix", "notice"),
    [
        ("llama2", None, None, "Llama 2 is licensed under the LLAMA 2 Community License"),
        ("llama3", "**Built with Meta Llama 3**", "Llama-3", "Meta Llama 3 is licensed under the Meta Llama 3"),
        ("llama3.1", "**Built with Llama**", "Llama", "Llama 3.1 is licensed under the Llama 3.1 Community License"),
        ("llama3.2", "**Built with Llama**", "Llama", "Llama 3.2 is licensed under the Llama 3.2 Community License"),
        ("llama3.3", "**Built with Llama**", "Llama", "Llama 3.3 is licensed under the Llama 3.3 Community License"),
        ("llama4", "**Built with Llama**", "Llama", "Llama 4 is licensed under the Llama 4 Community License"),
        ("gemma", None, None, "Gemma is provided under and subject to the Gemma Terms of Use"),
        ("apache-2.0", None, None, None),
    ],
)
def test_what_a_license_asks_is_done(
    make_artifact: Make, license: str, built_with: str | None, prefix: str | None, notice: str | None
) -> None:
    folder = make_artifact(card=f"---\nlicense: {license}\n---\n")
    sent = outgoing(folder, f"me/{prefix or 'x'}-tiny")
    card = sent["README.md"].read().decode()
    assert front_matter(card)["license"] == license
    assert ("Built with" in card) == bool(built_with)
    assert built_with is None or card.split("\n# ")[1].split("\n")[2] == built_with
    assert ("NOTICE" in sent) == bool(notice)
    assert notice is None or (sent["NOTICE"].read().decode().startswith(notice) and notice in card)
    if prefix:
        with pytest.raises(SpecError, match=rf"license, {license}, wants a name .* '{prefix}': choose 'me/{prefix}-x'"):
            outgoing(folder, "me/x")
        with pytest.raises(SpecError, match="wants a name"):
            publication(folder, PublishOptions(repo_id="me/x"))
        check_name(f"me/{prefix.lower()}-x", [license])
    else:
        check_name("me/x", [license])


def test_a_notice_that_the_base_model_brings_is_the_one_that_goes(make_artifact: Make) -> None:
    folder = make_artifact(card="---\nlicense: llama3.2\n---\n", extra={"NOTICE.txt": "Their own.\n"})
    sent = outgoing(folder, "me/Llama-x")
    assert "NOTICE" not in sent
    assert sent["NOTICE.txt"].read() == b"Their own.\n"


def test_a_name_that_a_license_forbids_is_refused_before_a_job_starts(
    hub: LoopbackHub, tiny_model: Path, tmp_path: Path
) -> None:
    hub.add_model("meta/tiny", tiny_model, card="---\nlicense: llama3.1\n---\n")
    recipe = {"base_model": "meta/tiny", "stages": [{"stage": "quantize", "method": "nf4"}]}
    with pytest.raises(SpecError, match="wants a name that begins with 'Llama': choose 'me/Llama-tiny-nf4'"):
        prepare(parse_recipe(recipe | {"publish": {"repo_id": "me/tiny-nf4"}}), tmp_path, "hf_write")
    prepare(parse_recipe(recipe | {"publish": {"repo_id": "me/Llama-tiny-nf4"}}), tmp_path, "hf_write")


def test_a_license_that_the_hub_does_not_know_is_named_and_not_refused(make_artifact: Make, hub: LoopbackHub) -> None:
    card = build_card(make_artifact(card="---\nlicense: acme-2\n---\n"), "me/x")
    assert (front_matter(card)["license"], front_matter(card)["license_name"]) == ("other", "acme-2")
    ModelCard(card).validate()
    assert frozenset(hub_repos.LICENSES.split()) == IDS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("---\nlicense: acme-2\n---\n", "license"),
        ("---\nlicense: 3\n---\n", "license"),
        ("---\nbase_model: /home/me/x\n---\n", "base_model"),
        ("---\nbase_model: [a/b, ../c]\n---\n", "base_model"),
        ("---\ndatasets: 7/8/9\n---\n", "datasets"),
        ("---\na: [\n---\n", "YAML"),
        ("---\n- a\n---\n", "YAML"),
        ("---\nscalar\n---\n", "YAML"),
    ],
)
def test_the_hub_of_the_tests_refuses_what_the_hub_does(hub: LoopbackHub, content: str, words: str) -> None:
    from huggingface_hub.utils import get_session

    reply = get_session().post(f"{hub.url}/api/validate-yaml", json={"content": content, "repoType": "model"})
    assert reply.status_code == 400
    assert words in reply.json()["errors"][0]["message"]


def test_the_hub_of_the_tests_warns_of_a_card_without_front_matter(hub: LoopbackHub) -> None:
    from huggingface_hub.utils import get_session

    reply = get_session().post(f"{hub.url}/api/validate-yaml", json={"content": "# x\n", "repoType": "model"})
    assert reply.status_code == 200
    assert reply.json()["warnings"] == [{"message": "empty or missing yaml metadata in repo card"}]


def test_the_losses_are_drawn_and_told_to_who_does_not_see_them(make_adapter: Make) -> None:
    sent = outgoing(make_adapter(), "me/x")
    card = sent["README.md"].read().decode()
    words = "the loss goes from 3.000 at step 0 to 1.800 at step 60, and the validation loss goes from 3.500"
    assert f"![Over the training {words} at step 0 to 2.300 at step 60.]({LOSS_PLOT})" in card
    picture = Image.open(BytesIO(sent[LOSS_PLOT].read()))
    assert (picture.format, picture.size) == ("PNG", (1280, 560))
    assert sent[LOSS_PLOT].size < 30_000
    assert not picture.info.keys() - {"transparency"}


def test_a_loss_that_falls_is_drawn_falling() -> None:
    picture = Image.open(BytesIO(loss_plot([(step, 3 - step / 50) for step in range(101)], []))).convert("RGB")
    line = {x: [y for y in range(60, 480) if picture.getpixel((x, y)) == (154, 164, 175)] for x in (150, 650, 1200)}
    tops = [min(rows) for rows in line.values()]
    assert tops == sorted(tops)
    assert tops[2] - tops[0] > 300


@pytest.mark.parametrize(
    "lines", ["", '{"step": 1, "loss": 2.0}\n', '{"step": 1, "loss": NaN}\n{"step": 2, "loss": "x"}\n']
)
def test_too_few_losses_make_no_plot(make_adapter: Make, lines: str) -> None:
    sent = outgoing(make_adapter(extra={"metrics.jsonl": lines}), "me/x")
    assert LOSS_PLOT not in sent
    assert LOSS_PLOT not in sent["README.md"].read().decode()


@pytest.mark.parametrize(
    "typed",
    [
        "# Mine\n\n---\n\n<b>&amp;</b> [x](javascript:alert(1)) {{ 7*7 }} {% raw %}\n",
        "---\nlicense: mit\nbase_model: /home/me\n---\n# Mine\n",
        "\ufeff---\r\nlicense: mit\r\n---\r\n# Mine\r\n",
        "---\n# No end",
        "---\nlicense: mit\n---\n---\nlicense: gpl\n---\n",
        "",
    ],
)
def test_a_users_text_stands_as_typed_under_our_front_matter(make_artifact: Make, hub: LoopbackHub, typed: str) -> None:
    folder = make_artifact()
    ours = front_matter(build_card(folder, "me/x"))
    card = with_body(build_card(folder, "me/x"), typed)
    ModelCard(card).validate()
    assert front_matter(card) == ours
    assert ModelCard(card).data.to_dict() == ModelCard(build_card(folder, "me/x")).data.to_dict()
    body = card.split("\n---\n", 1)[1]
    assert "/home/me" not in body
    for words in ("<b>&amp;</b> [x](javascript:alert(1)) {{ 7*7 }} {% raw %}", "# Mine", "# No end", "license: gpl"):
        assert (words in body) == (words in typed)


def test_the_users_text_is_what_a_preview_shows_and_what_is_sent(make_artifact: Make) -> None:
    folder = make_artifact()
    sent = outgoing(folder, "me/x", card="# My own words")
    assert sent["README.md"].read().decode() == preview(folder, "me/x", card="# My own words").card
    assert sent["README.md"].read().decode().endswith("\n---\n\n# My own words\n")
    with pytest.raises(SpecError, match=r"'README.md' holds a token"):
        outgoing(folder, "me/x", card=f"hf_{'a' * 34}")


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_card_tells_transformers_to_unpack_what_it_has_no_room_for(
    make_artifact: Make, tiny_model: Path, symmetric: bool
) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    settings = LAYOUTS["compressed-tensors"].config(Scheme(4, 64, symmetric=symmetric))
    folder = make_artifact(
        extra={"config.json": json.dumps(config | {"quantization_config": settings})},
        options={"stage": "quantize", "method": "gptq", "layout": "compressed-tensors"},
        calibration="the demo text, 32 rows of 512 tokens",
        metrics=METRICS,
    )
    card = build_card(folder, "me/x")
    assert "pip install transformers torch accelerate compressed-tensors" in card
    assert ("AutoTokenizer, CompressedTensorsConfig\n" in card) is not symmetric
    assert ("quantization_config=CompressedTensorsConfig(dequantize=True))" in card) is not symmetric


@pytest.mark.parametrize("repo", ["me/x", None])
@pytest.mark.parametrize("model_type", ["qwen3_moe", "gpt_oss"])
def test_a_card_promises_nothing_of_transformers_where_that_makes_up_the_experts(
    make_artifact: Make, model_type: str, repo: str | None
) -> None:
    config = {"model_type": model_type, "num_experts": 4, "architectures": ["MoeForCausalLM"]}
    settings = LAYOUTS["gptq"].config(Scheme(4, 64))
    options = {"stage": "quantize", "method": "gptq"}
    extra = {"config.json": json.dumps(config | {"quantization_config": settings})}
    card = build_card(make_artifact(extra=extra, options=options, metrics=METRICS), repo)
    assert "library_name" not in front_matter(card)
    assert "from_pretrained(" not in card
    assert "pip install" not in card
    assert re.search(r"transformers (does not load experts in gptq|reads the experts of the type 'gpt_oss')", card)
    assert bool(re.search("^vllm serve", card, re.MULTILINE)) == (model_type == "qwen3_moe")
    assert ("\nhf download me/x --local-dir x\npython -m backend chat x --prompt" in card) == bool(repo)
    assert ("python -m backend chat . --prompt" in card) is not bool(repo)
    assert "\n\n\n" not in card
