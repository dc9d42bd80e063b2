"""What the classes of transformers call the tensors of checkpoints, as its own source says; importing it takes seconds.

A class may have other names for its layers than the files of its models: transformers renames what it reads by patterns
that stand in one table, by model type.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from backend.models.native import sources

_TABLE, _LIKE = "mapping", "_MODEL_TO_CONVERSION_PATTERN"
_PATTERNS = ("source_patterns", "target_patterns")
_LOOKAROUND = re.compile(r"\(\?.+?\)?\)")
_GROUP = re.compile(r"\(.+?\)")


class Renaming(NamedTuple):
    """A step of transformers' WeightRenaming: the first match is replaced."""

    pattern: re.Pattern[str]
    replacement: str  # with \1 for what the pattern's first group has found

    def __call__(self, name: str) -> str:
        """Return the name that a tensor has after this step."""
        found = self.pattern.search(name)
        if found is None:
            return name
        group = (found.groups() or ("",))[0] or ""
        return name.replace(found[0], self.replacement.replace(r"\1", group), 1)


def name_in_class(name: str, model_type: str) -> str:
    """Return what a class of transformers calls a tensor of a checkpoint.

    Experts keep the names that they have one by one.

    Args:
        name: As the checkpoint has it.
        model_type: As its config says.
    """
    for renaming in renamings(model_type):
        name = renaming(name)
    return name


@cache
def renamings(model_type: str) -> tuple[Renaming, ...]:
    """Return the steps by which transformers renames the tensors of a model type, in its order."""
    return tuple(_table().get(model_type, ()))


@cache
def _table() -> Mapping[str, list[Renaming]]:
    """Return the renamings of all model types; none where transformers is not installed."""
    found: dict[str, list[Renaming]] = {}
    for path in sources("../conversion_mapping.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for statement in (inner for node in body if isinstance(node, ast.FunctionDef) for inner in node.body):
            _carry_out(statement, found)
        alike = [node.value for node in body if isinstance(node, ast.Assign) and _named(node.targets[0]) == _LIKE]
        for one, other in (pair for table in alike for pair in ast.literal_eval(table).items()):
            found.setdefault(one, found.get(other, []))
    return found


def _carry_out(statement: ast.stmt, table: dict[str, list[Renaming]]) -> None:
    """Do what an assignment to the table does."""
    if not isinstance(statement, ast.Assign | ast.AugAssign):
        return
    target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
    if _named(target) == _TABLE and isinstance(statement.value, ast.Dict):
        pairs = zip(statement.value.keys, statement.value.values, strict=True)
        table |= {str(key.value): list(_listed(v, table)) for key, v in pairs if isinstance(key, ast.Constant)}
    elif (place := _key(target)) is not None:
        before = table.get(place, []) if isinstance(statement, ast.AugAssign) else []
        table[place] = [*before, *_listed(statement.value, table)]


def _listed(value: ast.expr, table: Mapping[str, list[Renaming]]) -> Iterator[Renaming]:
    """Yield the renamings in a list, a copy of another type's, or both added up."""
    if isinstance(value, ast.BinOp):
        yield from (*_listed(value.left, table), *_listed(value.right, table))
    elif isinstance(value, ast.List):
        yield from (renaming for element in value.elts if (renaming := _renaming(element)) is not None)
    elif isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        yield from table.get(_key(value.func.value) or "", ())


def _renaming(element: ast.expr) -> Renaming | None:
    """Return a WeightRenaming, read as its class reads it; None where an element is none, or is more."""
    if not isinstance(element, ast.Call) or _named(element.func) != "WeightRenaming":
        return None
    given = dict(zip(_PATTERNS, element.args, strict=False)) | {k.arg or "": k.value for k in element.keywords}
    try:
        old, new = (ast.literal_eval(given[name]) for name in _PATTERNS)
    except ValueError:  # computed
        return None
    if not isinstance(new, str):
        return None
    patterns = sorted([old] if isinstance(old, str) else old, key=len, reverse=True)
    ends = (f"{pattern}(?!\\w)" if re.search(r"[a-zA-Z0-9]$", pattern) else pattern for pattern in patterns)
    replacement = _GROUP.sub(r"\\1", _LOOKAROUND.sub("", new.removeprefix("^")), count=1).replace(r"\.", ".")
    return Renaming(re.compile("|".join(end.replace("*.", r".*\.") for end in ends)), replacement)


def _named(node: Any) -> str | None:
    return node.id if isinstance(node, ast.Name) else None


def _key(node: ast.AST) -> str | None:
    """Return the key of an element of the table."""
    if not isinstance(node, ast.Subscript) or _named(node.value) != _TABLE or not isinstance(node.slice, ast.Constant):
        return None
    return str(node.slice.value)
