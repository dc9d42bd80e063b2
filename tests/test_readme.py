"""README and docs say what is true: their commands, options, links, methods, settings, recipes and tree."""

import re
from importlib import import_module

import pytest
import yaml

from backend.cli import COMMANDS
from backend.cli.command import parser_of, read
from backend.processes.child import ROOT
from backend.quantize import METHODS
from backend.quantize.targets import kinds, layout_of
from backend.recipes import parse_recipe
from backend.settings import Settings
from docs.formats import with_methods
from docs.generate import pages
from tests.support.pages import FENCE, PAGES, blocks, commands

README = PAGES["README.md"]
REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")
PARTS = "backend|benchmarks|docs|examples|templates|tests|ui"


def section(title, page="README.md"):
    return PAGES[page].split(f"\n## {title}\n")[1].split("\n## ")[0]


def command(name):
    return import_module(f"backend.cli.{name}").COMMAND


def test_readme_and_contributing_are_short():
    assert len(README.splitlines()) <= 110
    assert len(PAGES["CONTRIBUTING.md"].splitlines()) <= 40


@pytest.mark.parametrize("page", [page for page in PAGES if commands(PAGES[page])])
def test_every_command_of_a_page_is_understood(page):
    for name, *typed in commands(PAGES[page]):
        read(command(name), typed, name, COMMANDS[name])


def test_every_command_is_shown_once_by_example():
    [example] = blocks(PAGES["docs/reference/cli.md"], "sh")
    assert sorted(name for name, *_ in commands(example)) == sorted(COMMANDS)


def test_every_option_that_is_named_is_one_of_a_command():
    known = {
        flag
        for name in COMMANDS
        for action in parser_of(command(name), "", "")._actions
        for flag in action.option_strings
    }
    for page, text in PAGES.items():
        if page.removeprefix("docs/reference/") not in pages():
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*\b", FENCE.sub("", text))) <= known, page


def test_the_reference_pages_are_what_the_code_makes():
    for name, text in pages().items():
        assert PAGES[f"docs/reference/{name}"] == text, "run `make docs`"
    assert with_methods(README) == README, "run `make docs`"


def test_every_method_has_a_row_for_each_layout_it_can_have():
    rows = re.findall(r"^\| `(\w+)` \| `?([\w-]*)`? \|", PAGES["docs/reference/formats.md"], re.MULTILINE)
    assert rows == [(name, layout_of(options)) for name in METHODS for options in kinds(name)]


def test_every_recipe_of_a_page_is_one():
    recipes = [recipe for text in PAGES.values() for recipe in blocks(text, "yaml")]
    assert len(recipes) > 3
    for recipe in recipes:
        parse_recipe(yaml.safe_load(recipe))


def test_make_targets_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make ([\w-]+)", "\n".join(PAGES.values()), re.MULTILINE))
    assert {"app", "demo", "test", "lint", "docs"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_method_table_is_the_registry():
    assert re.findall(r"^\| `(\w+)` \|", section("Methods"), re.MULTILINE) == list(METHODS)


def test_the_settings_that_are_named_are_the_settings_model():
    named = {page: set(re.findall(r"WEIGHTSMITH_([A-Z_]+)", text)) for page, text in PAGES.items()}
    known = {name.upper() for name in Settings.model_fields}
    assert named["docs/reference/settings.md"] == known
    assert set.union(*named.values()) == known


def test_the_tree_is_the_tree():
    listed = re.findall(r"^(\s*)([\w.]+/?)  ", section("Tree", "docs/explanation/architecture.md"), re.MULTILINE)
    assert len(listed) > 20
    for indent, name in listed:
        assert (ROOT / ("backend" if indent.strip("\n") else "") / name).exists(), name
    shown = {name.rstrip("/") for indent, name in listed if indent.strip("\n")}
    there = {path.name for path in (ROOT / "backend").iterdir() if not path.name.startswith("__")} | {"__main__.py"}
    assert there - {"__main__.py"} == shown - {"__main__.py"}


def test_the_front_matter_suits_the_requirements():
    head = yaml.safe_load(README.split("---")[1])
    assert head["python_version"] == "3.12"
    assert head["sdk_version"] == re.search(r"gradio\[oauth\]>=([\d.]+)", REQUIREMENTS)[1] + ".0"
    assert head["hf_oauth_scopes"] == ["contribute-repos", "gated-repos"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target, _, place in (link.partition("#") for link in re.findall(r"\]\((?!http)([^)\s]+)\)", PAGES[page])):
        found = (ROOT / page).parent / target if target else ROOT / page
        assert found.exists(), target
        assert not place or place in headings(found), f"{target}#{place}"


def headings(path):
    """Return the places of a page as GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page):
    for name in re.findall(rf"`((?:{PARTS})/[\w./-]*|[\w-]+\.(?:txt|toml)|\.ci/\w+)`", PAGES[page]):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/how-to/")])
def test_what_python_lines_import_is_there(page):
    for module, name in re.findall(r"^from ((?:backend|ui)[\w.]*) import (\w+)$", PAGES[page], re.MULTILINE):
        assert hasattr(import_module(module), name), module


def test_every_page_is_named_in_readme_or_contributing():
    unnamed = {page for page in PAGES if page not in README + PAGES["CONTRIBUTING.md"]}
    assert unnamed == {"README.md", "SECURITY.md"}
