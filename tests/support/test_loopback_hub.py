"""The loopback Hub answers the real client as the Hub does, for the routes that the studio uses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.support.loopback_hub import LoopbackHub

CARD = "---\nlicense: mit\nlanguage: [en]\ntags: [chat]\n---\n# Tiny\n"


def test_a_snapshot_is_byte_for_byte_what_was_added(hub: LoopbackHub, tiny_model: Path, tmp_path: Path) -> None:
    commit = hub.add_model("acme/tiny", tiny_model, card=CARD)
    folder = Path(snapshot_download("acme/tiny", revision=commit, local_dir=tmp_path / "there", token=False))
    for file in tiny_model.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


def test_a_model_is_inspected_without_its_weights(hub: LoopbackHub, tiny_model: Path) -> None:
    commit = hub.add_model("acme/tiny", tiny_model, card=CARD, downloads=7)
    info = HfApi().model_info("acme/tiny", files_metadata=True, token=False)
    assert (info.sha, info.card_data.license, info.downloads, info.gated) == (commit, "mit", 7, False)
    assert info.safetensors.parameters == {"BF16": info.safetensors.total}
    assert {"chat", "license:mit", "en", "llama"} <= set(info.tags)
    weights = next(s for s in info.siblings if s.rfilename == "model.safetensors")
    assert weights.lfs.sha256
    with HfFileSystem(token=False).open("acme/tiny/model.safetensors", block_size=64) as f:
        f.seek(8)
        assert f.read(1) == b"{"
    assert HfApi().parse_safetensors_file_metadata("acme/tiny", "model.safetensors", token=False).parameter_count


def test_search_filters_and_listing_pages(hub: LoopbackHub, tiny_model: Path) -> None:
    for name, downloads in (("acme/a-tiny", 1), ("acme/b-tiny", 3), ("other/c-tiny", 2)):
        hub.add_model(name, {"config.json": '{"model_type": "llama"}'}, downloads=downloads)
    hub.add_dataset("acme/rows", {"train.jsonl": "{}\n"})
    hub.page_size = 2
    found = HfApi().list_models(search="tiny", pipeline_tag="text-generation", sort="downloads", token=False)
    assert [m.id for m in found] == ["acme/b-tiny", "other/c-tiny", "acme/a-tiny"]
    assert [m.id for m in HfApi().list_models(author="other", limit=1, token=False)] == ["other/c-tiny"]
    assert [d.id for d in HfApi().list_datasets(token=False)] == ["acme/rows"]
    names = [f.path for f in HfApi().list_repo_tree("acme/rows", repo_type="dataset", recursive=True, token=False)]
    assert names == [".gitattributes", "train.jsonl"]
    hub.page_size = 1
    assert len(list(HfApi().list_repo_tree("acme/rows", repo_type="dataset", token=False))) == 2


def test_gated_and_private_repos_open_to_those_who_may(hub: LoopbackHub) -> None:
    hub.add_model("acme/gated", {"config.json": "{}"}, gated=True)
    hub.add_model("acme/secret", {"config.json": "{}"}, private=True)
    hub.add_token("hf_reader", "reader", role="read")
    api = HfApi()
    with pytest.raises(GatedRepoError):
        api.auth_check("acme/gated", token="hf_reader")
    with pytest.raises(GatedRepoError):
        hf_hub_download("acme/gated", "config.json", token="hf_reader")
    for token in (False, "hf_reader"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("acme/secret", token=token)
    for repo_id in ("acme/gated", "acme/secret"):
        hub.grant(repo_id, "reader")
        api.auth_check(repo_id, token="hf_reader")
    assert {m.id for m in api.list_models(token=False)} == {"acme/gated"}


def test_what_is_not_there_is_told_apart(hub: LoopbackHub) -> None:
    commit = hub.add_model("acme/tiny", {"config.json": "{}"})
    hub.tag("acme/tiny", "v1", commit)
    assert HfApi().model_info("acme/tiny", revision="v1", token=False).sha == commit
    assert [r.name for r in HfApi().list_repo_refs("acme/tiny", token=False).tags] == ["v1"]
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("acme/none", token="hf_write")
    with pytest.raises(RevisionNotFoundError):
        HfApi().model_info("acme/tiny", revision="v2", token=False)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("acme/tiny", "none.json", token=False)


def test_a_push_is_one_commit_and_a_stale_parent_is_refused(hub: LoopbackHub) -> None:
    api = HfApi(token="hf_write")
    assert api.create_repo("me/new", private=True).repo_id == "me/new"
    first = hub.commits("me/new")[0].oid
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("me/new")
    files = {"config.json": b"{}", "model.safetensors": bytes(100), "README.md": CARD.encode()}
    operations = [CommitOperationAdd(name, data) for name, data in files.items()]
    commit = api.create_commit("me/new", operations, commit_message="All", parent_commit=first)
    assert [c.oid for c in hub.commits("me/new")] == [first, commit.oid]
    assert hub.files("me/new") == files
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit("me/new", [CommitOperationAdd("a.txt", b"a")], commit_message="b", parent_commit=first)
    bad = CommitOperationAdd("README.md", b"---\nbase_model: /home/me/x\n---\n")
    with pytest.raises(ValueError, match="not valid"):
        api.create_commit("me/new", [bad], commit_message="b")


def test_tokens_say_who_asks_and_what_they_may(hub: LoopbackHub) -> None:
    hub.add_token("hf_reader", "reader", role="read", orgs={"acme": "read"})
    hub.add_token("hf_old", "me", expired=True)
    assert HfApi().whoami(token="hf_write")["orgs"][0]["name"] == "lab"
    for token, words in (("hf_wrong", "Invalid"), ("hf_old", "401|Invalid")):
        with pytest.raises(HfHubHTTPError, match=words):
            HfApi().whoami(token=token)
    for repo_id in ("reader/x", "acme/x"):
        with pytest.raises(HfHubHTTPError, match="403"):
            HfApi(token="hf_reader").create_repo(repo_id)


def test_faults_happen_where_and_as_often_as_told(hub: LoopbackHub) -> None:
    hub.add_model("acme/tiny", {"config.json": "{}"})
    hub.fail("GET /api/models/*", 503)
    with pytest.raises(HfHubHTTPError, match="503"):
        HfApi().model_info("acme/tiny", token=False)
    hub.fail("GET /api/models/*", "reset")
    with pytest.raises(httpx2.TransportError):
        HfApi().model_info("acme/tiny", token=False)
    hub.fail("GET /api/models/*", "html")
    with pytest.raises(ValueError, match="Expecting value"):
        HfApi().model_info("acme/tiny", token=False)
    hub.fail("GET *", lambda body: body.replace(b"acme", b"evil"))
    assert HfApi().model_info("acme/tiny", token=False).id == "evil/tiny"
    assert HfApi().model_info("acme/tiny", token=False).id == "acme/tiny"


def test_a_commit_whose_reply_is_lost_is_there(hub: LoopbackHub) -> None:
    api = HfApi(token="hf_write")
    api.create_repo("me/new")
    hub.fail("POST */commit/*", "lost")
    with pytest.raises(httpx2.TransportError):
        api.create_commit("me/new", [CommitOperationAdd("a.txt", b"a")], commit_message="a")
    assert hub.files("me/new") == {"a.txt": b"a"}


def test_it_runs_as_a_process_of_its_own(tiny_model: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.support.loopback_hub",
        "--model",
        f"acme/tiny={tiny_model}",
        "--token",
        "hf_x=you:read",
    ]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=os.environ) as process:
        url = json.loads(process.stdout.readline())["url"]
        assert HfApi(endpoint=url).model_info("acme/tiny", token=False).siblings
        assert HfApi(endpoint=url).whoami(token="hf_x")["name"] == "you"
        process.terminate()


def test_the_tiny_models_are_what_they_say(tiny_model: Path, tiny_tied_model: Path, tiny_bare_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "Grüße, 世界! <|im_end|>"
    for folder in (tiny_model, tiny_tied_model, tiny_bare_model):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.decode(tokenizer(text).input_ids) == text
        assert bool(tokenizer.chat_template) == (folder != tiny_bare_model)
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.dtype == torch.bfloat16
        tied = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
        assert tied == (folder == tiny_tied_model)
