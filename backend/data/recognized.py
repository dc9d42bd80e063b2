"""What was recognized in rows, in words: files and columns, what those are taken for, and how many rows there are.

The page and the command line show the same.
"""

from backend.data.columns import ROLES_SHOWN, Mapping
from backend.data.examine import Examination

SHOWN_COLUMNS = 40


def recognized(examination: Examination) -> str:
    """Say in plain words what the files are, and what becomes of the columns."""
    words = [" and ".join(_FORMATS[name] for name in examination.formats)]
    words += [f"in {' and '.join(name.upper() for name in examination.encodings)}"] if examination.encodings else []
    if examination.delimiter:
        words.append(f"with a {examination.delimiter} between fields")
    if examination.header is not None:
        words.append("the first row names the columns" if examination.header else "the first row is a row already")
    return f"{', '.join(words)}. {_understood(examination.mapping)}"


def _understood(mapping: Mapping | None) -> str:
    """Say what becomes of the columns, and why they were taken for that."""
    if mapping is None:
        return "What becomes of its columns is still open."
    return f"{_LAYOUTS[mapping.layout]}: {mapping.words}."


_FORMATS = {
    "csv": "A table (CSV)", "tsv": "A table (TSV)", "json": "A JSON document", "jsonl": "JSON lines",
    "parquet": "A Parquet file", "txt": "Plain text",
}  # fmt: skip
_LAYOUTS = {
    "messages": "Conversations as TRL writes them",
    "conversations": "Conversations as ShareGPT writes them",
    "prompt_completion": "Prompts with completions",
    "alpaca": "Instructions as Alpaca writes them",
    "question_answer": "Questions with answers",
    "text": "Plain text, learned as it stands",
    "template": "Text made by your template",
    "columns": "The columns that you named",
}


def dropped(examination: Examination, calibrates: bool = False) -> dict[str, int]:
    """Name the figures of rows that are read.

    Args:
        examination: Of the rows.
        calibrates: Whether they are calibrated on, not learned from.
    """
    reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in examination.dropped.items())
    without = f"without a sample ({reasons})" if reasons else "without a sample"
    used = {"to learn from": examination.train, "to measure on": examination.validation}
    return {
        "read": examination.rows,
        without: sum(examination.dropped.values()),
        "repeat an earlier one": examination.repeated,
        **({"to calibrate on": examination.train} if calibrates else used),
    }


def taken_for(mapping: Mapping | None) -> dict[str, str]:
    """Return what each column that is used is taken for."""
    if mapping is None:
        return {}
    roles = {getattr(mapping, role): role for role in ROLES_SHOWN if role != "template"}
    return dict.fromkeys(mapping.used, "template") | {name: role for name, role in roles.items() if name}
