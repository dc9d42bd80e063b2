"""The demo data set: what Python's standard library does, asked and answered from its own docstrings.

One pair a function, class or method, and no answer twice: training and validation rows never share one.
"""

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

# modules whose import does nothing but define things
MODULES = """
argparse array ast base64 binascii bisect calendar cmath codecs collections colorsys configparser contextlib
copy csv dataclasses datetime decimal difflib dis email.utils enum filecmp fnmatch fractions functools gc
getpass glob gzip hashlib heapq hmac html inspect io ipaddress itertools json keyword linecache locale logging
math mimetypes numbers operator os os.path pathlib pickle platform pprint queue random re secrets select shlex
shutil signal socket stat statistics string struct subprocess sys tarfile tempfile textwrap threading time
timeit tokenize traceback types unicodedata urllib.parse uuid warnings weakref zipfile zlib
"""
TYPES = (str, bytes, list, dict, set, tuple, int, float)
NAME = "demo (docstrings of Python's standard library)"

_SENTENCE = re.compile(r"[A-Z].*?\.(?=\s|$)", re.DOTALL)
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|vs)\.$")


class Pair(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


def pairs() -> Iterator[Pair]:
    """Yield the pairs, in an order that depends on nothing but the version of Python."""
    answers, things = set[str](), set[int]()
    for name, thing in _things():
        answer = _first_sentence(thing)
        if answer and answer not in answers and id(thing) not in things:
            answers.add(answer)
            things.add(id(thing))
            yield Pair(_question(name, thing), answer)


def write_demo(target: Path) -> None:
    """Write the pairs as JSON lines."""
    lines = (json.dumps(pair._asdict(), ensure_ascii=False) + "\n" for pair in pairs())
    target.write_text("".join(lines), encoding="utf-8")


def _things() -> Iterator[tuple[str, Any]]:
    builtins = importlib.import_module("builtins")
    for name in _public(builtins):
        yield name, getattr(builtins, name)
    for kind in TYPES:
        for name in _public(kind):
            yield f"{kind.__name__}.{name}", vars(kind).get(name)
    for module_name in MODULES.split():
        module = importlib.import_module(module_name)
        for name in _public(module):
            thing = getattr(module, name, None)
            if _is_of(module, thing):
                yield f"{module_name}.{name}", thing


def _public(owner: Any) -> list[str]:
    return sorted(name for name in (getattr(owner, "__all__", None) or dir(owner)) if not name.startswith("_"))


def _is_of(module: ModuleType, thing: Any) -> bool:
    """Return whether a thing is a module's own, or of the C module behind it, and not one that it imports."""
    home = getattr(thing, "__module__", None) or ""
    return home.lstrip("_") == module.__name__.lstrip("_") or (module.__name__ == "os" and home == "posix")


def _first_sentence(thing: Any) -> str | None:
    """Take the first sentence of a docstring that is one; what is inherited says nothing of the thing."""
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return None
    text = " ".join(inspect.cleandoc(getattr(thing, "__doc__", None) or "").partition("\n\n")[0].split())
    found = _SENTENCE.match(text)
    if not found or _ABBREVIATION.search(found[0]) or not 25 <= len(found[0]) <= 240 or ">>>" in found[0]:
        return None
    return found[0]


def _question(name: str, thing: Any) -> str:
    if inspect.isclass(thing):
        return f"What is {name}?" if not issubclass(thing, BaseException) else f"What does {name} mean?"
    return f"What does {name} do?"
