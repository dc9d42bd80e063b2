"""A model that reads pictures from the command line: asked about one, and still seeing after each stage."""

import pytest

from backend.__main__ import main
from backend.model_folder import read_config
from backend.models.loading import auto_class
from tests.support.pictures import encoded, make_gemma, make_qwen
from tests.support.typed import fails, succeeds

ALONG = (
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.jinja",
    "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _data(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_DATA", str(tmp_path / "data"))


def adapter_of(base, folder):
    """Save an adapter of the language model within a model that reads pictures."""
    from peft import LoraConfig, get_peft_model

    model = auto_class(read_config(base)).from_pretrained(base, dtype="auto")
    config = LoraConfig(r=4, target_modules=r".*language_model.*\.q_proj", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def prepares(folder):
    """Return the files that say how words and pictures are prepared."""
    return {name: (folder / name).read_bytes() for name in ALONG if (folder / name).is_file()}


@pytest.mark.parametrize("make", [make_gemma, make_qwen], ids=["one-file", "file-for-each"])
def test_what_prepares_pictures_goes_along_byte_for_byte(make, tmp_path):
    base, made, sent = (tmp_path / name for name in ("base", "nf4", "sent"))
    make(base)
    assert {"processor_config.json", "video_preprocessor_config.json"} & prepares(base).keys()
    assert main(["quantize", str(base), "--method", "nf4", "--output", str(made)]) == 0
    assert main(["publish", str(made), "--to-folder", str(sent), "--insist"]) == 0
    assert prepares(base) == prepares(made) == prepares(sent)
    assert read_config(sent)["architectures"] == read_config(base)["architectures"]


def test_a_merged_model_still_has_what_prepares_pictures(tmp_path):
    base, merged = make_qwen(tmp_path / "base"), tmp_path / "merged"
    adapter = adapter_of(base, tmp_path / "adapter")
    assert main(["merge", str(adapter), "--base", str(base), "--output", str(merged)]) == 0
    assert prepares(base) == prepares(merged)


@pytest.mark.real
def test_a_quantized_model_is_asked_about_a_picture(tmp_path, capsys):
    result = tmp_path / "nf4"
    assert main(["quantize", str(make_gemma(tmp_path / "base")), "--method", "nf4", "--output", str(result)]) == 0
    files = [tmp_path / f"{color}.png" for color in ("red", "blue")]
    for file in files:
        file.write_bytes(encoded(color=file.stem))
    capsys.readouterr()
    asked = ["chat", str(result), "--prompt", "Which?", "--engine", "transformers", "--max-tokens", "4"]
    one = succeeds(capsys, *asked, "--image", str(files[0]))
    two = succeeds(capsys, *asked, "--image", str(files[0]), "--image", str(files[1]))
    assert two["context"] - two["tokens"] > one["context"] - one["tokens"]


def test_a_picture_that_is_not_taken_is_refused_before_a_model_is_loaded(tiny_model, tmp_path, capsys):
    picture, other = tmp_path / "it.png", tmp_path / "it.gif"
    picture.write_bytes(encoded())
    other.write_bytes(encoded("gif"))
    asked = ["chat", str(tiny_model), "--prompt", "What is it?", "--image"]
    assert f"'{tiny_model.name}' reads no pictures: ask it without one" in fails(capsys, *asked, str(picture))
    assert "'it.gif' is not a valid PNG, JPEG or WebP picture" in fails(capsys, *asked, str(other))
    assert "'none.png' cannot be read as a picture" in fails(capsys, *asked, str(tmp_path / "none.png"))
    seeing = ["chat", str(make_gemma(tmp_path / "gemma")), "--prompt", "What is it?", *["--image", str(picture)] * 5]
    assert "has 5 pictures, 4 at most" in fails(capsys, *seeing)
