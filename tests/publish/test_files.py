"""What must not leave is refused by name, before a repo is made."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from backend.errors import SpecError
from backend.progress import silent
from backend.publish.files import outgoing
from backend.publish.options import PublishOptions
from backend.publish.push import publish
from tests.support.loopback_hub import LoopbackHub

Make = Callable[..., Path]
NEW = PublishOptions(repo_id="me/new")
ME = "hf_write"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("pytorch_model.bin", b"\x80\x04", "may hold a pickle"),
        ("training_args.pt", b"x", "may hold a pickle"),
        ("modeling_tiny.py", b"import os", "nothing that a model repo needs"),
        (".env", b"A=1", "nothing that a model repo needs"),
        ("config.json", b"\xff\xfe\x00", "is not text"),
        ("config.json", b'{"a": "hf_abcdefghijklmnopqrstuvwxyz12345678"}', "revoke it at"),
        ("NOTICE", b"of hf_write", "revoke it at"),
        ("config.json", b'{"_name_or_path": "/home/me/models/tiny"}', "'/home/me/models/tiny'"),
        ("recipe.yaml", b"base_model: /tmp/x/tiny\n", "'/tmp/x/tiny'"),
        ("quantize_config.json", b'{"name_or_path": "C:\\\\Users\\\\me"}', "names a path"),
    ],
)
def test_what_must_not_leave_is_refused_by_name(
    hub: LoopbackHub, make_artifact: Make, name: str, content: bytes, words: str
) -> None:
    with pytest.raises(SpecError) as caught:
        publish(make_artifact(extra={name: content}), NEW, ME, silent())
    assert f"'{name}'" in str(caught.value)
    assert words in str(caught.value)
    assert not hub.repos


def test_a_file_laid_into_the_folder_and_a_link_are_refused(make_artifact: Make, tmp_path: Path) -> None:
    folder = make_artifact()
    (folder / "NOTICE").write_text("added later")
    with pytest.raises(SpecError, match="'NOTICE' in '1-quantize' was not made with the artifact"):
        outgoing(folder)
    (folder / "NOTICE").unlink()
    (folder / "README.md").symlink_to(tmp_path)
    with pytest.raises(SpecError, match="symbolic link"):
        outgoing(folder)


def test_paths_in_the_bases_own_vocabulary_are_no_paths_of_ours(make_artifact: Make, tmp_path: Path) -> None:
    files = outgoing(make_artifact("a", extra={"vocab.json": '{"/home/user": 1, "/tmp/x": 2}'}))
    assert "vocab.json" in files
    ours = json.dumps({str(tmp_path / "artifacts"): 1})
    with pytest.raises(SpecError, match=r"'vocab.json' names a path of this machine"):
        outgoing(make_artifact("b", extra={"vocab.json": ours}))


def test_an_artifact_without_weights_is_refused(make_artifact: Make) -> None:
    folder = make_artifact(quantize=lambda base, output: (output / "model.safetensors").unlink())
    with pytest.raises(SpecError, match="holds no weights"):
        outgoing(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("training_args.bin", "x", "may hold a pickle"),
        ("trainer_state.json", "{}", "nothing that a model repo needs"),
        ("adapter_config.json", '{"base_model_name_or_path": "/home/me/models/tiny"}', "'/home/me/models/tiny'"),
    ],
)
def test_what_must_not_leave_of_an_adapter_is_refused_by_name(
    make_adapter: Make, name: str, content: str, words: str
) -> None:
    with pytest.raises(SpecError) as caught:
        outgoing(make_adapter(extra={name: content}))
    assert f"'{name}'" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("bad", ["nan", "inf", "optimizer", "path", "token"])
def test_weights_are_looked_at_before_anything_is_made(hub: LoopbackHub, make_artifact: Make, bad: str) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    def harm(base: Path, output: Path) -> None:
        tensors, metadata = {"layer.scale": np.ones(3_000_000, np.float16)}, {"format": "pt"}
        if bad in ("nan", "inf"):
            tensors["layer.scale"][-1] = float(bad)
        elif bad == "optimizer":
            tensors["layer.exp_avg_sq"] = np.ones(4, np.float32)
        else:
            metadata["from"] = "/home/me/models" if bad == "path" else "hf_" + "abcd" * 8
        save_file(tensors, output / "model.safetensors", metadata)
        assert load_file(output / "model.safetensors")

    words = {
        "nan": "'layer.scale' in 'model.safetensors' holds a number that is not finite",
        "inf": "'layer.scale' in 'model.safetensors' holds a number that is not finite",
        "optimizer": "'model.safetensors' holds a state of an optimizer, 'layer.exp_avg_sq'",
        "path": "'model.safetensors' names a path of this machine, '/home/me/models'",
        "token": "'model.safetensors' holds a token of the Hub",
    }
    with pytest.raises(SpecError, match=words[bad]):
        publish(make_artifact(quantize=harm), NEW, ME, silent())
    assert not hub.repos


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"])
def test_a_place_of_its_author_in_a_file_of_the_hubs_base_model_does_not_keep_the_result_here(
    name: str, make_artifact: Make
) -> None:
    files = {name: json.dumps({"name_or_path": "/home/author/checkpoints/7"})}
    assert name in outgoing(make_artifact(extra=files))
    with pytest.raises(SpecError, match="names a path of this machine"):
        outgoing(make_artifact("of a folder", extra=files, base_model=None, revision=None))
    with pytest.raises(SpecError, match="holds a token of the Hub"):
        outgoing(make_artifact("with a token", extra={name: json.dumps({"x": "hf_" + "a1B2" * 8})}))
