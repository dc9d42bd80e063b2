"""Deploying: what a Space holds and is set to, what it costs, and every refusal as one sentence."""

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import urllib.request

import gradio as gr
import pytest
import yaml
from huggingface_hub import snapshot_download
from playwright.sync_api import expect, sync_playwright

from backend.__main__ import main
from backend.deploy import files as deploy_files
from backend.deploy.options import DeployOptions
from backend.deploy.space import deploy, plan
from backend.errors import HubError, LoginError, SpecError
from backend.jobs.supervisor import Supervisor
from backend.processes.child import ROOT
from backend.serve.servers import Servers
from backend.settings import Settings
from tests.support.browser import CHROMIUM, FLAGS, choose, free_port
from tests.support.typed import fails, succeeds
from ui.publish.deploy import build_deploy
from ui.studio import Studio


@pytest.fixture(autouse=True)
def signed_in(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_write")


def settings(hub, space="me/studio"):
    return hub.repos["spaces", space].settings


def front_matter(hub, space="me/studio"):
    return yaml.safe_load(hub.files(space, "spaces")["README.md"].decode().split("---\n")[1])


def test_a_new_space_is_private_and_holds_in_one_commit_what_runs(hub, capsys):
    done = succeeds(capsys, "deploy", "me/studio", "--yes")
    held = hub.files("me/studio", "spaces")
    assert done["location"] == f"{hub.url}/spaces/me/studio"
    assert set(done["files"]) == set(held)
    assert hub.repos["spaces", "me/studio"].private
    made, commit = hub.commits("me/studio", "spaces")
    assert (commit.parent, commit.oid) == (made.oid, done["commit"])
    assert {"app.py", "README.md", "LICENSE", "requirements.txt", "ui/kit/page.css", "backend/deploy/space.py"} <= set(
        held
    )
    assert {name.split("/")[0] for name in held} == {*deploy_files.PARTS, "README.md"}
    assert not [name for name in held if name.endswith((".pyc", ".png"))]
    assert all(held[name] == (ROOT / name).read_bytes() for name in held if name != "README.md")


def test_the_front_matter_says_how_the_space_runs(hub, capsys):
    from importlib.metadata import version

    succeeds(capsys, "deploy", "me/studio", "--yes", "--hardware", "t4-small")
    head = front_matter(hub)
    assert head["sdk"] == "gradio"
    assert head["sdk_version"] == version("gradio")
    assert (head["python_version"], head["app_file"]) == ("3.12", "app.py")
    assert head["hf_oauth"] is True
    assert head["hf_oauth_scopes"] == ["contribute-repos", "gated-repos"]
    assert head["suggested_hardware"] == "t4-small"
    assert head["startup_duration_timeout"] == "1h"
    assert "app_port" not in head


def test_a_docker_space_brings_its_dockerfile_and_vllm(hub, capsys):
    succeeds(capsys, "deploy", "me/studio", "--yes", "--sdk", "docker", "--hardware", "l4x1")
    head = front_matter(hub)
    assert (head["sdk"], head["app_port"]) == ("docker", 7860)
    assert not {"sdk_version", "python_version", "app_file"} & set(head)
    assert {"Dockerfile", "requirements-vllm.txt"} <= set(hub.files("me/studio", "spaces"))
    assert settings(hub)["sdk"] == "docker"


def test_what_was_asked_for_is_set_when_the_space_is_made(hub, capsys, monkeypatch):
    monkeypatch.setenv("WEIGHTSMITH_HOST", "127.0.0.9")
    options = ["--hardware", "t4-small", "--sleep-time", "900", "--bucket", "me/disk", "--no-private"]
    options += ["--variables", "WEIGHTSMITH_MAX_QUEUED=5", "--secrets", "WEIGHTSMITH_HOST"]
    succeeds(capsys, "deploy", "me/studio", "--yes", *options)
    assert settings(hub) == {
        "sdk": "gradio",
        "hardware": "t4-small",
        "sleepTimeSeconds": 900,
        "volumes": [{"type": "bucket", "source": "me/disk", "mountPath": "/data"}],
        "secrets": {"WEIGHTSMITH_HOST": "127.0.0.9"},
        "variables": {"WEIGHTSMITH_MAX_QUEUED": "5"},
    }
    assert hub.objects["buckets", "me/disk"] == b"private"
    assert not hub.repos["spaces", "me/studio"].private


def test_an_update_is_one_commit_on_what_stands_there_and_changes_only_what_was_asked_for(hub, capsys, monkeypatch):
    succeeds(capsys, "deploy", "me/studio", "--yes", "--sdk", "docker", "--hardware", "l4x1", "--no-private")
    before = hub.commits("me/studio", "spaces")
    hub._add(
        "spaces", "me/studio", {"backend/gone.py": "x = 1\n", "notes.md": "mine", **hub.files("me/studio", "spaces")}
    )
    succeeds(capsys, "deploy", "me/studio", "--yes", "--variables", "WEIGHTSMITH_MAX_QUEUED=2")
    *_, theirs, commit = hub.commits("me/studio", "spaces")
    held = hub.files("me/studio", "spaces")
    assert len(hub.commits("me/studio", "spaces")) == len(before) + 2
    assert commit.parent == theirs.oid
    assert "backend/gone.py" not in held
    assert held["notes.md"] == b"mine"
    assert front_matter(hub)["sdk"] == "docker"
    assert settings(hub)["hardware"] == "l4x1"
    assert settings(hub)["variables"] == {"WEIGHTSMITH_MAX_QUEUED": "2"}
    assert not hub.repos["spaces", "me/studio"].private
    succeeds(
        capsys, "deploy", "me/studio", "--yes", "--hardware", "t4-small", "--sleep-time", "300", "--bucket", "me/b"
    )
    assert settings(hub)["hardware"] == "t4-small"
    assert settings(hub)["sleepTimeSeconds"] == 300
    assert settings(hub)["volumes"][0]["source"] == "me/b"


def test_a_gradio_space_that_was_a_docker_one_keeps_no_dockerfile(hub, capsys):
    succeeds(capsys, "deploy", "me/studio", "--yes", "--sdk", "docker")
    succeeds(capsys, "deploy", "me/studio", "--yes", "--sdk", "gradio")
    assert not {name for name in hub.files("me/studio", "spaces") if name in deploy_files.DOCKER_PARTS}


def test_an_update_of_what_somebody_changed_meanwhile_is_refused(hub, capsys):
    succeeds(capsys, "deploy", "me/studio", "--yes")
    planned = plan(DeployOptions(repo_id="me/studio", sdk="docker"), "hf_write")
    theirs = hub._add("spaces", "me/studio", {**hub.files("me/studio", "spaces"), "notes.md": "mine"})
    with pytest.raises(HubError, match="Somebody else has changed it meanwhile: deploy again"):
        deploy(planned, "hf_write")
    assert hub.commits("me/studio", "spaces")[-1].oid == theirs


def test_an_update_that_changes_nothing_makes_no_commit(hub, capsys):
    done = [succeeds(capsys, "deploy", "me/studio", "--yes") for _ in range(2)]
    assert done[0]["commit"] == done[1]["commit"]
    assert len(hub.commits("me/studio", "spaces")) == 2


def test_a_space_whose_commit_failed_is_used_by_the_next_try(hub, capsys):
    hub.fail("POST */commit/*", 500, times=-1)
    said = fails(capsys, "deploy", "me/studio", "--yes")
    assert said.startswith("error: Could not deploy to 'me/studio'. The Hub answered 500")
    hub.faults.clear()
    succeeds(capsys, "deploy", "me/studio", "--yes", "--hardware", "t4-small")
    assert len(hub.commits("me/studio", "spaces")) == 2
    assert settings(hub)["hardware"] == "t4-small"


def test_a_space_of_another_app_is_not_touched(hub, capsys):
    hub._add("spaces", "me/studio", {"README.md": "---\nsdk: gradio\n---\n", "app.py": "x = 1\n"})
    said = fails(capsys, "deploy", "me/studio", "--yes")
    assert "exists already and holds something else: choose another name" in said
    assert hub.files("me/studio", "spaces")["app.py"] == b"x = 1\n"


REFUSALS = {
    402: "The Hub wants a paid plan (PRO, Team or Enterprise) for it, or a payment method with credits for its"
    " hardware: see https://huggingface.co/pricing",
    403: "You may not make or change Spaces there with this sign-in: give a token with write access, from"
    " https://huggingface.co/settings/tokens, or choose a namespace of yours.",
    409: "It exists already and holds something else: choose another name.",
    401: "Your token for the Hub is wrong or has expired: sign in again, or give a new token.",
}


@pytest.mark.parametrize(("status", "why"), REFUSALS.items())
def test_a_refused_creation_is_one_sentence(hub, capsys, status, why):
    hub.fail("POST /api/repos/create", status)
    assert fails(capsys, "deploy", "me/studio", "--yes") == f"error: Could not deploy to 'me/studio'. {why}"
    assert not hub.repos


def test_a_token_that_may_only_read_makes_nothing(hub, capsys, monkeypatch):
    hub.add_token("hf_reader", "me", role="read")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert REFUSALS[403] in fails(capsys, "deploy", "me/studio", "--yes")


def test_without_a_token_nothing_is_asked(hub, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "sign in with `hf auth login`" in fails(capsys, "deploy", "me/studio", "--yes")
    assert not hub.requests


WRONG = {
    "hardware": (["--hardware", "h9000"], "The Hub has no hardware 'h9000': choose from cpu-basic, cpu-upgrade,"),
    "zero gpu": (["--hardware", "zero-a10g"], "ZeroGPU starts no processes"),
    "sleep": (["--sleep-time", "60"], "always sleeps after 48 hours"),
    "no value": (["--variables", "WEIGHTSMITH_PORT"], "sets nothing"),
    "foreign variable": (["--variables", "HF_TOKEN=hf_x"], "'HF_TOKEN' is no setting of the app"),
    "foreign secret": (["--secrets", "HF_TOKEN"], "'HF_TOKEN' is no setting of the app"),
    "typed secret": (["--secrets", "WEIGHTSMITH_PORT=1"], "give the name alone"),
    "absent secret": (["--secrets", "WEIGHTSMITH_PORT"], "WEIGHTSMITH_PORT has no value here"),
    "bucket": (["--bucket", "disk"], "lacks its namespace"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_said_before_anything_is_made(hub, capsys, case):
    flags, words = WRONG[case]
    assert words in fails(capsys, "deploy", "me/studio", "--yes", *flags)
    assert not hub.repos


SECRET = [name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)]


@pytest.mark.parametrize("name", SECRET)
def test_a_secret_setting_is_no_variable_that_everybody_sees(hub, capsys, monkeypatch, name):
    variable = f"WEIGHTSMITH_{name.upper()}"
    assert "name it in secrets" in fails(
        capsys, "deploy", "me/studio", "--yes", "--variables", f"{variable}=long enough"
    )
    monkeypatch.setenv(variable, "long enough")
    succeeds(capsys, "deploy", "me/studio", "--yes", "--secrets", variable)
    assert settings(hub)["secrets"] == {variable: "long enough"}


def test_the_cost_is_said_and_agreed_to_before_anything_is_made(hub, capsys, monkeypatch):
    assert main(["deploy", "me/studio", "--hardware", "t4-small"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert (
        "Makes the private gradio Space me/studio on t4-small: $0.40 an hour, used or not, until you pause it." in err
    )
    assert "needs a paid plan (PRO, Team or Enterprise)" in err
    assert "Prices change: see https://huggingface.co/pricing" in err
    assert err.rstrip().endswith("error: Nothing was made: add --yes if that is what you want.")
    assert not hub.repos


@pytest.mark.parametrize(("typed", "made"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_a_terminal_is_asked(hub, capsys, monkeypatch, typed, made):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    assert main(["deploy", "me/studio"]) == (0 if made else 1)
    assert "Deploy? [y/N]" in capsys.readouterr().err
    assert bool(hub.repos) is made


def test_what_git_does_not_keep_never_leaves_and_a_tree_without_git_is_whole(hub, capsys, monkeypatch, tmp_path):
    here = tmp_path / "app"
    kept = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, kept.split("\0")):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, here / name)
    (here / "ui" / "notes.txt").write_text("mine alone")
    monkeypatch.setattr(deploy_files, "ROOT", here)
    assert "ui/notes.txt" in deploy_files.space_files("gradio", "cpu-basic")  # no git: what is there came as the app
    (here / "ui" / "notes.txt").unlink()
    without = deploy_files.space_files("gradio", "cpu-basic")
    subprocess.run(["git", "init", "-q"], cwd=here, check=True)
    subprocess.run(["git", "add", "."], cwd=here, check=True)
    (here / "ui" / "notes.txt").write_text("mine alone")
    assert deploy_files.space_files("gradio", "cpu-basic") == without
    (here / "app.py").unlink()
    said = fails(capsys, "deploy", "me/studio", "--yes")
    assert "'app.py' is missing" in said


@pytest.fixture
def form(tmp_path):
    settings = Settings(data=tmp_path)
    with gr.Blocks():
        return build_deploy(Studio(settings, Supervisor(settings), Servers(settings)))


def typed(form, **values):
    return {component: values.get(name, component.value) for name, component in form.form.fields.items()}


def test_the_page_asks_for_every_option_but_what_lies_in_the_environment_of_its_process(form):
    assert set(form.form.fields) == set(DeployOptions.model_fields) - {"secrets"}


def test_the_page_says_the_cost_at_the_first_click_and_makes_what_it_said_at_the_second(hub, form):
    given = typed(form, repo_id="me/studio", hardware="t4-small", sleep_time="900")
    shown = form.put(given, "hf_write")
    assert "t4-small: $0.40 an hour until 900 s after its last visitor." in shown[form.cost]
    assert "paid plan (PRO, Team or Enterprise)" in shown[form.cost]
    assert not hub.repos
    made = form.make(given, shown[form.planned], "hf_write")
    assert f"{hub.url}/spaces/me/studio" in made[form.note]
    assert made[form.planned] is None
    assert (settings(hub)["hardware"], settings(hub)["sleepTimeSeconds"]) == ("t4-small", 900)


def test_a_second_click_on_a_form_that_has_changed_says_the_new_cost_and_makes_nothing(hub, form):
    planned = form.put(typed(form, repo_id="me/studio"), "hf_write")[form.planned]
    for before in (planned, None):
        again = form.make(typed(form, repo_id="me/studio", hardware="l4x1"), before, "hf_write")
        assert "l4x1: $0.80 an hour" in again[form.cost]
    assert not hub.repos


def test_the_page_names_faults_and_a_missing_token(hub, form):
    with pytest.raises(SpecError, match="Name the Space first"):
        form.put(typed(form), "hf_write")
    with pytest.raises(LoginError, match="paste one with write access"):
        form.put(typed(form, repo_id="me/studio"), None)


@pytest.mark.real
def test_a_person_sees_the_cost_and_makes_the_space(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    env = os.environ | {"WEIGHTSMITH_PORT": str(free_port()), "WEIGHTSMITH_DATA": str(tmp_path / "data")}
    with _running(ROOT, env) as said, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        _make_a_space(browser.new_page(viewport={"width": 1440, "height": 1000}), said.split()[-1])
        browser.close()
    assert settings(hub, "me/by-hand")["hardware"] == "t4-small"
    assert settings(hub, "me/by-hand")["variables"] == {"WEIGHTSMITH_MAX_QUEUED": "2"}
    assert hub.repos["spaces", "me/by-hand"].private


def _make_a_space(page, url):
    page.goto(url)
    expect(page.locator("#model-facts")).to_contain_text("LlamaForCausalLM", timeout=30_000)  # the page has loaded
    page.get_by_role("tab", name="Publish").click()
    page.get_by_role("button", name="Run this app as a Space").click()
    page.locator("#deploy-ask").click()
    expect(page.locator("#deploy-note")).to_contain_text("Name the Space first")
    page.locator("#deploy-repo_id input, #deploy-repo_id textarea").fill("me/by-hand")
    page.locator("#deploy-ask").click()
    expect(page.locator("#deploy-note")).to_contain_text("A Hugging Face token is required")
    page.locator("#deploy-token input").fill("hf_write")
    page.locator("#deploy-ask").click()
    expect(page.locator("#deploy-cost")).to_contain_text("cpu-basic: free.")
    choose(page, "#deploy-hardware", "t4-small")
    page.locator("#deploy").get_by_role("button", name="More options").click()
    page.locator("#deploy-variables input, #deploy-variables textarea").fill("WEIGHTSMITH_MAX_QUEUED=2")
    page.locator("#deploy-agree").click()  # what was priced is no longer what is asked for
    expect(page.locator("#deploy-cost")).to_contain_text("t4-small: $0.40 an hour")
    if shot := os.environ.get("SHOT"):
        page.screenshot(path=shot, full_page=True)
    page.locator("#deploy-agree").click()
    expect(page.locator("#deploy-note a")).to_contain_text("/spaces/me/by-hand")
    expect(page.locator("#deploy-question")).to_be_hidden()


@pytest.mark.real
def test_what_was_deployed_starts_as_a_space_and_can_deploy_itself(hub, capsys, tmp_path):
    succeeds(capsys, "deploy", "me/studio", "--yes")
    here, port = tmp_path / "app", free_port()
    snapshot_download("me/studio", repo_type="space", local_dir=here, token="hf_write")
    shutil.rmtree(here / ".cache")
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_TOKEN")}
    env |= {"SPACE_ID": "me/studio", "SYSTEM": "spaces", "SPACE_HOST": "me-studio.hf.space"}
    env |= {"OAUTH_CLIENT_ID": "id", "OAUTH_CLIENT_SECRET": "secret", "OAUTH_SCOPES": "openid profile contribute-repos"}
    env |= {"OPENID_PROVIDER_URL": hub.url, "WEIGHTSMITH_PORT": str(port), "WEIGHTSMITH_DATA": str(tmp_path / "data")}
    with _running(here, env):
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": "me-studio.hf.space"})
        assert urllib.request.urlopen(asked, timeout=60).status == 200
    again = [sys.executable, "-m", "backend", "deploy", "me/second", "--yes"]
    subprocess.run(again, cwd=here, env=os.environ | {"PYTHONPATH": ""}, check=True, capture_output=True)
    assert hub.files("me/second", "spaces") == hub.files("me/studio", "spaces")


@contextlib.contextmanager
def _running(folder, env):
    """Run an app and give what it says when it listens: what is sent there waits until it answers."""
    app = subprocess.Popen([sys.executable, "app.py"], cwd=folder, env=env, stdout=subprocess.PIPE, text=True)
    try:
        said = app.stdout.readline()
        assert said.startswith("Weightsmith runs on "), said
        yield said
    finally:
        app.send_signal(signal.SIGTERM)
        app.communicate(timeout=30)
