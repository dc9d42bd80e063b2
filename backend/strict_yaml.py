"""YAML of strangers: within a depth and a number of values, where each alias counts as all that it stands for."""

import re
from typing import Any

import yaml

from backend.strict_json import quoted

MAX_DEPTH = 32
MAX_VALUES = 30_000
"""Of a text with every alias written out; a recipe of 10,000 lines has two thirds of them."""

MAX_NUMBER = 100
"""Characters of a value that is no text: the time to compute `1:59:59…` grows with the square of its length."""

MAX_KEY = 15
"""Characters of a key that is no text: longer numbers can be chosen so that all land in one place of a dictionary."""

_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_PLAIN = (
    ("tag:yaml.org,2002:bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:null", "~|null|Null|NULL", "~nN"),
    ("tag:yaml.org,2002:null", "", ""),
    ("tag:yaml.org,2002:int", "[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (_MERGE, "<<", "<"),
)
"""Which plain values are what, by a pattern, and the letters that they begin with."""


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which stops while it reads, before anything is built."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = self._depth = self._deepest = 0
        self._sizes = dict[int, tuple[int, int]]()  # id of a node → values in it, levels below it

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read a value, or what an alias stands for.

        Raises:
            YAMLError: That is too much.
        """
        alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark  # type: ignore[no-untyped-call]
        before, outer = self._values, self._deepest
        self._depth += 1
        self._deepest = self._depth
        if not alias:
            self._spend(1, mark)
        node = super().compose_node(parent, index)
        if alias and id(node) not in self._sizes:
            raise yaml.MarkedYAMLError(problem="an alias stands within what it means", problem_mark=mark)
        if alias:
            values, levels = self._sizes[id(node)]
            self._deepest += levels
            self._spend(values, mark)
        elif node is not None:
            self._check_number(node)
            self._sizes[id(node)] = self._values - before, self._deepest - self._depth
        self._depth -= 1
        self._deepest = max(outer, self._deepest)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value.

        Raises:
            YAMLError: It is not what its tag says, such as `!!int x` or the 31st of February.
        """
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, ValueError) as e:
            text = f"{quoted(node.value)} is not what its tag says"
            raise yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark) from e

    def _spend(self, values: int, mark: yaml.Mark) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            text = f"it holds more than {MAX_VALUES} values, aliases written out"
            raise yaml.MarkedYAMLError(problem=text, problem_mark=mark)
        if self._deepest > MAX_DEPTH:
            text = f"it nests deeper than {MAX_DEPTH} levels"
            raise yaml.MarkedYAMLError(problem=text, problem_mark=mark)

    def _check_number(self, node: yaml.Node) -> None:
        keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        for part, most in ((node, MAX_NUMBER), *((key, MAX_KEY) for key in keys)):
            if isinstance(part, yaml.ScalarNode) and part.tag != _TEXT and len(part.value) > most:
                text = f"a number or date has {len(part.value)} characters, {most} at most here"
                raise yaml.MarkedYAMLError(problem=text, problem_mark=part.start_mark)


class KeyTwice(yaml.MarkedYAMLError):
    """A mapping has a key twice, of which YAML's readers take the last without a word."""


def _more_than_text() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Return which plain values are more than text, by the letter that they begin with, as PyYAML asks for it."""
    found = dict[str, list[tuple[str, re.Pattern[str]]]]()
    for tag, pattern, letters in _PLAIN:
        for letter in letters or ("",):
            found.setdefault(letter, []).append((tag, re.compile(rf"(?:{pattern})\Z")))
    return found


class OptionsLoader(BoundedLoader):
    """Reads what people write as options: no key twice, and words and numbers as YAML 1.2 has them.

    `off`, `2026-11-30`, `1e-4`, `010` and `1_000` stay the texts that they are: a field makes of them what it takes.
    """

    yaml_implicit_resolvers = _more_than_text()

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Read a mapping.

        Raises:
            YAMLError: A key stands there twice.
        """
        node = super().compose_mapping_node(anchor)
        first = dict[tuple[str, str], int]()  # the line of each key
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE):
            if (line := first.get((key.tag, key.value))) is not None:
                text = f"the key {quoted(key.value)} stands twice, first in line {line + 1}: leave one of them out"
                raise KeyTwice(problem=text, problem_mark=key.start_mark)
            first[key.tag, key.value] = key.start_mark.line
        return node


def load_yaml(text: str) -> Any:
    """Read YAML; whoever calls has bounded its length.

    Raises:
        yaml.YAMLError: It is none, or holds too much.
    """
    return yaml.load(text, BoundedLoader)


def load_options(text: str) -> Any:
    """Read YAML that holds options, as OptionsLoader does; whoever calls has bounded its length.

    Raises:
        KeyTwice: A key stands twice.
        yaml.YAMLError: It is no YAML, or holds too much.
    """
    return yaml.load(text, OptionsLoader)
