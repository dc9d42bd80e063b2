"""The pages of docs/reference/ and README's table, made from what they describe: `make docs` writes them.

Keys, values and defaults come from the JSON schemas of the option models, flags from the parsers of the commands. The
words that only a page has stand here.
"""

import inspect
import json
from argparse import Action
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from backend import errors
from backend.cli import COMMANDS
from backend.cli.command import parser_of
from backend.errors import AppError
from backend.models.families import traits
from backend.options import COMMON_OPTIONS
from backend.quantize import METHODS
from backend.quantize.formats import readers
from backend.quantize.readers import Readers
from backend.recipes import Recipe
from backend.settings import PREFIX, Settings
from docs.formats import formats, table, with_methods
from tests.support.family_models import DOES, FAMILIES, REFUSED, Family

FOLDER = Path(__file__).parent / "reference"
README = FOLDER.parents[1] / "README.md"

NOTE = "<!-- Made by `make docs`: change the option models in backend/ instead. -->\n"

CLI = """# Command line

Activate the environment that `make app` makes, then type a command. `--help` lists the commands, and after a command it
shows its options.

```sh
source .venv/bin/activate
python -m backend quantize demo --method nf4 --output demo-nf4
python -m backend preview demo --dataset demo --split "train[:200]"
python -m backend finetune demo --dataset demo --max-steps 40 --output adapter
python -m backend merge adapter --base demo --output merged
python -m backend evaluate demo-nf4 --reference demo
python -m backend chat demo-nf4 --prompt "What is the capital of Japan?"
python -m backend serve demo-nf4
python -m backend compare demo-nf4 merged --prompt "What is the capital of Japan?"
python -m backend check demo-nf4
python -m backend publish demo-nf4 --to-folder demo-nf4-published
python -m backend deploy you/studio --hardware t4-small --sleep-time 900
python -m backend estimate demo --method int8
python -m backend run templates/recipes/demo.yaml --output demo-run
```

* `demo` is the bundled model. Instead of it, give a model of the Hub (`namespace/name`) or a local folder.
* With `--json`, a command prints one JSON object on standard output and nothing else there.
* A yes/no option has a `--no-` form. A list takes commas: `--target-modules q_proj,v_proj`.
* The exit code is 0; 1 with one line `error: …` on standard error (see [errors](errors.md)); or 2 for wrong usage.
* The Hub's token comes from `HF_TOKEN` or from `hf auth login`, never from a flag. `HF_ENDPOINT` is respected.
* Where a command takes the options of several methods or stages, the help names them in brackets.
"""

RECIPE = """# Recipe keys

A recipe is a YAML file: a base model, stages in order, and where the result goes. The command `run` runs one, and
`estimate` says what it needs. [templates/recipes](../../templates/recipes) holds ready ones. Paths are relative to the
recipe's folder. Keys that begin with `x-` are ignored, so that YAML anchors have a place.

A calibrated method takes `layouts: [gptq, awq]` in the place of `layout`: one calibration, and a stage in each layout.

`calibration.split` is the key `split` of the mapping `calibration`. A name alone, as in `calibration: rows.csv`, is its
`dataset`.

```yaml
base_model: demo
stages:
  - stage: quantize
    method: nf4
  - stage: evaluate
```
"""

SETTINGS = """# Settings

Settings are environment variables. The page, the command line and a Space read the same ones;
[deploy a Space](../how-to/deploy-space.md) shows how to set them there.
"""

ERRORS = """# Errors

An error says what could not be done, with the value in quotes, and what to do. The page shows it beside the field or
above the form. The command line prints it as one line, `error: …`, and exits with 1. Python code catches these classes
from `backend.errors`:
"""


FAMILIES_HEAD = """# Families of models

What is done with the models that people pick, shown by a tiny model of each family in `tests/families/`. Models of
other types are taken, too, where the installed transformers has a class for them that writes text.

* **e**: NF4, FP4 and INT8 leave the experts of most mixtures in 16 bit, as their readers hold them; the estimate says
  how large the result is. All others quantize experts, one by one. Adapters are for attention and other shared layers,
  and with `target_parameters: experts` for all experts too.
* **t**: transformers does not load this result by itself: it would fail, or make up a part of it. The chat here
  unpacks it to 16 bit, and its card says so. GPTQ and AWQ of all mixtures are like that; with a GPU, vLLM
  serves them, but for gpt-oss.
* What reads pictures and sound stays in 16 bit and goes with every result. Gemma 3n needs the package timm to read
  them; without it, everything here works on its text.
"""


def pages() -> dict[str, str]:
    """Return each page's text by its file name."""
    made = {"cli.md": _cli(), "recipe.md": _recipe(), "settings.md": _settings(), "errors.md": _errors()}
    made["formats.md"] = formats()
    return {name: NOTE + text for name, text in made.items()} | {"families.md": _families()}


def _families() -> str:
    """Write what is done with each family, and below the table why something is not."""
    reasons = list(dict.fromkeys(reason for row in REFUSED.values() for reason in row.values()))
    rows = [
        (name, f"`{family.model_type}`", _pictures(family), *(_cell(name, what, reasons) for what in DOES))
        for name, family in FAMILIES.items()
    ]
    notes = "".join(f"{number}. {reason[0].upper()}{reason[1:]}.\n" for number, reason in enumerate(reasons, 1))
    note = NOTE.replace("the option models in backend/", "tests/support/family_models.py")
    return f"{note}{FAMILIES_HEAD}\n{table(('family', 'model type', 'pictures', *DOES), rows)}\n{notes}"


def _pictures(family: Family) -> str:
    """Say whether a family reads pictures."""
    if family.tower is None:
        return ""
    return f"with {family.package}" if family.package else "yes"


def _cell(name: str, what: str, reasons: Sequence[str]) -> str:
    if reason := REFUSED.get(name, {}).get(what):
        return f"no ({reasons.index(reason) + 1})"
    mixture = any("expert" in key for key in FAMILIES[name].text)
    held = what in ("nf4", "int8") and not traits(FAMILIES[name].model_type).one_by_one
    if mixture and (held or what == "tune"):
        return "yes, e"
    return "yes, t" if what in METHODS and _readers(FAMILIES[name], what)["transformers"].refusal else "yes"


def _readers(family: Family, method: str) -> Readers:
    """Return who loads what a method makes of a family's model."""
    text = {name: value for name, value in family.text.items() if value is not ...}
    config = {"model_type": family.model_type, **(text if family.tower is None else {"text_config": text})}
    return readers({**config, **METHODS[method].Options().config((), config)})


def _cli() -> str:
    text = CLI
    for name, summary in COMMANDS.items():
        parser = parser_of(import_module(f"backend.cli.{name}").COMMAND, name, summary)
        actions = [action for action in parser._actions if action.dest not in ("help", "json_")]
        rows = [(f"`{_typed(action)}`", (action.help or "").replace("%%", "%")) for action in actions]
        text += f"\n## {name}\n\n{summary}\n\n{table(('option', 'meaning'), rows)}"
    return text


def _typed(action: Action) -> str:
    """Return an option as it is typed."""
    values = action.metavar or (f"{{{','.join(action.choices)}}}" if action.choices else "")
    return f"{', '.join(action.option_strings)} {values}".strip()


def _recipe() -> str:
    schema = Recipe.model_json_schema()
    own = {name: about for name, about in schema["properties"].items() if name != "converts"}  # found out, not given
    text = f"{RECIPE}\n{_keys(own)}"
    for part in [*_models(schema["properties"]["stages"]["items"], schema["$defs"]), schema["$defs"]["PublishOptions"]]:
        keys = dict(_every(part["properties"], schema["$defs"]))
        chosen = {name: keys.pop(name)["const"] for name in COMMON_OPTIONS if name in keys}
        title = ", ".join(f"{name}: {value}" for name, value in chosen.items()) or "publish"
        text += f"\n## `{title}`\n\n{_first(part['description'])}\n\n{_keys(keys)}"
    return text


def _models(either: dict[str, Any], known: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Walk a union of option models, in which a union may be a member."""
    for member in either["oneOf"]:
        if "$ref" in member:
            yield known[member["$ref"].rpartition("/")[2]]
        else:
            yield from _models(member, known)


def _every(fields: dict[str, dict[str, Any]], known: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk fields, and behind each the fields of the option model that it holds, if it holds one."""
    for name, about in fields.items():
        yield name, about
        for part in about.get("anyOf", ()):
            if "$ref" in part:
                inner = known[part["$ref"].rpartition("/")[2]]["properties"]
                yield from ((f"{name}.{key}", said) for key, said in inner.items())


def _first(docstring: str) -> str:
    """Return the first paragraph on one line."""
    return docstring.split("\n\n")[0].replace("\n", " ")


def _settings() -> str:
    fields = Settings.model_json_schema()["properties"]
    return f"{SETTINGS}\n{_keys({PREFIX + name.upper(): about for name, about in fields.items()}, 'variable')}"


def _keys(fields: dict[str, dict[str, Any]], title: str = "key") -> str:
    rows = [
        (f"`{name}`", _values(about), _default(about.get("default")), about.get("description", ""))
        for name, about in fields.items()
    ]
    return table((title, "values", "default", "meaning"), rows)


def _values(about: dict[str, Any]) -> str:
    """Say in words what a JSON schema allows."""
    if "anyOf" in about:
        return " or ".join(_values(part) for part in about["anyOf"] if part.get("type") != "null")
    if "enum" in about or "const" in about:
        return ", ".join(f"`{value}`" for value in about.get("enum", [about.get("const")]))
    if about.get("type") in ("integer", "number"):
        return _number(about)
    if about.get("type") == "array":
        return "list" if "oneOf" in about["items"] else f"list of {_values(about['items'])}"
    if "$ref" in about:
        return "mapping"
    return {"boolean": "`true`, `false`"}.get(about["type"], "path" if "path" in about.get("format", "") else "text")


def _number(about: dict[str, Any]) -> str:
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ", ".join([about["type"], *[f"{sign} {about[name]:,}" for name, sign in bounds.items() if name in about]])


def _default(value: Any) -> str:
    if value is None or value == []:
        return ""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _errors() -> str:
    return f"{ERRORS}\n{''.join(_tree(AppError))}"


def _tree(kind: type[AppError], depth: int = 0) -> Iterator[str]:
    """Say what an error and its kin mean, each below what it is a kind of."""
    yield f"{'  ' * depth}* **{kind.__name__}**: {_first(inspect.getdoc(kind) or '')}\n"
    for other in vars(errors).values():
        if isinstance(other, type) and kind in other.__bases__:
            yield from _tree(other, depth + 1)


def main() -> None:
    """Write the pages, and the table of methods in README."""
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    README.write_text(with_methods(README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
