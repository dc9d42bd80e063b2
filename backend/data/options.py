"""DatasetOptions: which rows, how they are read, and which columns become what; for tuning and for calibration."""

from pathlib import Path, PurePath
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from backend.data.slices import parse_split
from backend.data.synonyms import SUFFIXES
from backend.data.template import placeholders
from backend.hub.ids import parse_repo_id
from backend.options import ADVANCED, Frozen, parse

DEMO_DATASET = "demo"

Encoding = Literal[
    "utf-8", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "latin-1", "iso-8859-15", "cp1250", "cp1251", "gb18030",
    "shift_jis", "euc_kr", "big5",
]  # fmt: skip

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|"}


class RowsOptions(Frozen):
    """Which rows are read, and how; the first four are named as `datasets.load_dataset` names them."""

    dataset: str = Field(
        description="A Hub id, a file (CSV, TSV, JSON, JSON lines, Parquet, text), or demo, the bundled questions and"
        " answers.",
        json_schema_extra={"file": True},
    )
    config: str | None = Field(None, description="The Hub data set's config, where it has several.")
    split: str | None = Field(
        None,
        description="The split, or a part of it: train[:200] is quick, train[50%:] is half. Empty: train.",
    )
    revision: str | None = Field(
        None,
        description="Branch, tag or commit of the Hub data set.",
        json_schema_extra=ADVANCED,
    )
    messages_column: str | None = Field(
        None, description="Column that holds whole conversations. Empty: recognized.", json_schema_extra=ADVANCED
    )
    user_column: str | None = Field(
        None, description="Column that holds what the user says. Empty: recognized.", json_schema_extra=ADVANCED
    )
    assistant_column: str | None = Field(
        None,
        description="Column that holds the answer. Empty: recognized.",
        json_schema_extra=ADVANCED,
    )
    context_column: str | None = Field(
        None,
        description="Column put below the user's words where it is not empty, such as a passage to answer from.",
        json_schema_extra=ADVANCED,
    )
    system_column: str | None = Field(
        None, description="Column that holds a system prompt for each row.", json_schema_extra=ADVANCED
    )
    text_column: str | None = Field(
        None,
        description="Column of plain text, read as it stands, without a chat template.",
        json_schema_extra=ADVANCED,
    )
    template: str | None = Field(
        None,
        description="Text made of columns, as in 'Translate: {english}': the user's words beside assistant_column, else"
        " the whole text. {{ and }} are braces.",
        json_schema_extra=ADVANCED,
    )
    system_prompt: str | None = Field(
        None, max_length=20_000, description="Put before conversations that have none; it costs its tokens in each."
    )
    parse_json: bool = Field(
        False, description="Read conversations that are written as JSON in a text column.", json_schema_extra=ADVANCED
    )
    decode_binary: bool = Field(
        False, description="Read binary Parquet columns as UTF-8 text.", json_schema_extra=ADVANCED
    )
    encoding: Encoding | None = Field(
        None, description="How the file writes letters. Empty: recognized, or asked.", json_schema_extra=ADVANCED
    )
    delimiter: Literal["comma", "semicolon", "tab", "pipe"] | None = Field(
        None, description="What stands between a CSV file's fields. Empty: recognized.", json_schema_extra=ADVANCED
    )
    header: bool | None = Field(
        None,
        description="Whether a CSV file's first row names the columns. Empty: recognized, or asked.",
        json_schema_extra=ADVANCED,
    )
    quoting: bool = Field(
        True,
        description="Whether double quotes enclose a CSV file's fields; off, they are plain text.",
        json_schema_extra=ADVANCED,
    )
    # `datasets` says line; but a line of a text file is rarely a text of its own
    sample_by: Literal["paragraph", "line", "document"] = Field(
        "paragraph",
        description="What one row of a plain text file is; a paragraph ends at a blank line.",
        json_schema_extra=ADVANCED,
    )

    @field_validator("dataset")
    @classmethod
    def _a_dataset(cls, value: str, info: ValidationInfo) -> str | None:
        return dataset_field(value, info)

    @field_validator("split")
    @classmethod
    def _a_split(cls, value: str | None) -> str | None:
        parse_split(value)
        return value

    @field_validator("template")
    @classmethod
    def _a_template(cls, value: str | None) -> str | None:
        if value is not None:
            placeholders(value)
        return value

    @model_validator(mode="after")
    def _only_hub_sets_have_versions(self) -> "RowsOptions":
        if (self.config or self.revision) and (self.dataset == DEMO_DATASET or is_file(self.dataset)):
            field = "config" if self.config else "revision"
            raise ValueError(f"{field}: only data sets of the Hub have one: leave it out")
        return self

    @model_validator(mode="after")
    def _one_way_to_map(self) -> "RowsOptions":
        ways = [name for name in ("messages_column", "text_column") if getattr(self, name)]
        if self.template or self.user_column:
            ways.append("template" if self.template else "user_column")
        if self.template and self.user_column:
            raise ValueError("template: it is the user's words already: leave out user_column, or name it in braces")
        if len(ways) > 1:
            raise ValueError(f"{ways[1]}: {' and '.join(ways)} exclude each other: give one of them")
        if self.assistant_column and (self.messages_column or self.text_column):
            raise ValueError(f"assistant_column: {ways[0]} holds the answer already: leave one of them out")
        return self


def named(value: Any) -> Any:
    """Take a text for the rows that it names; a validator of fields that hold RowsOptions."""
    return {"dataset": value} if isinstance(value, str) else value


class DatasetOptions(RowsOptions):
    """Which rows are learned from, and which are kept to measure on."""

    dataset: str = Field(
        DEMO_DATASET,
        description=RowsOptions.model_fields["dataset"].description,
        json_schema_extra={"file": True},
    )
    on_fault: Literal["stop", "drop"] = Field(
        "stop", description="What a faulty row does: stop and be named, or be left out and counted."
    )
    drop_duplicates: bool = Field(
        False,
        description="Keep one of rows that are the same; repeated rows are learned more strongly.",
        json_schema_extra=ADVANCED,
    )
    allow_identical: bool = Field(
        False,
        description="Go on with a single row, rows that are all the same, or validation rows that are trained on.",
        json_schema_extra=ADVANCED,
    )
    validation_size: float = Field(
        0.0,
        ge=0,
        description="Rows kept out of training to measure on: a share below 1, or a number of rows. More: a steadier"
        " figure, fewer rows to learn from.",
    )
    validation_dataset: str | None = Field(
        None,
        description="Another file or Hub id to measure on; all of dataset is trained on.",
        json_schema_extra={"file": True, **ADVANCED},
    )
    validation_split: str | None = Field(
        None, description="A split to measure on, such as test or test[:100].", json_schema_extra=ADVANCED
    )

    @field_validator("validation_dataset")
    @classmethod
    def _another_dataset(cls, value: str | None, info: ValidationInfo) -> str | None:
        return dataset_field(value, info)

    @field_validator("validation_split")
    @classmethod
    def _another_split(cls, value: str | None) -> str | None:
        parse_split(value)
        return value

    @classmethod
    def all_of(cls, rows: RowsOptions) -> Self:
        """Return options that read all of some rows; faulty and repeated ones are left out."""
        kept = {"on_fault": "drop", "drop_duplicates": True, "allow_identical": True}
        return parse(cls, {**rows.model_dump(include=set(RowsOptions.model_fields)), **kept}, context={"stored": True})

    @model_validator(mode="after")
    def _one_validation(self) -> "DatasetOptions":
        if self.validation_size and (self.validation_dataset or self.validation_split):
            raise ValueError("validation_size: a validation set of its own is given already: leave one of them out")
        if self.validation_size > 1 and self.validation_size != int(self.validation_size):
            raise ValueError("validation_size: must be a share below 1, or a whole number of rows")
        return self


def dataset_field(value: str | None, info: ValidationInfo) -> str | None:
    """Check a field that names a data set, as the context of its validation allows; see parse_dataset()."""
    context = info.context or {}
    if value is None or context.get("stored"):
        return value
    return parse_dataset(value, bool(context.get("paths")), context.get("folder"))


def parse_dataset(text: str, paths: bool = False, folder: Path | None = None) -> str:
    """Return what a data set's name means: `demo`, a repo id, or the absolute path of a local file.

    Args:
        text: What was typed.
        paths: Whether a file of this machine may be meant.
        folder: What a relative path starts from; the working folder if not given.

    Raises:
        ValueError: It is none of these.
    """
    text = text.strip()
    if not text:
        raise ValueError("is empty: give a Hub id, as namespace/name, a file, or demo")
    if text == DEMO_DATASET:
        return text
    suffix = PurePath(text.lower().removesuffix(".gz")).suffix
    looks_local = text.startswith(("/", ".", "~")) or "\\" in text or suffix in SUFFIXES
    path = ((folder or Path()) / Path(text).expanduser()).resolve() if paths else None
    if path and (looks_local or path.is_file()):
        if not path.is_file():
            raise ValueError(f"{text[:120]!r} is not a file: check the path")
        return str(path)
    if looks_local:
        raise ValueError(f"{text[:120]!r} is a path of this machine: upload the file instead")
    return parse_repo_id(text)


def is_file(dataset: str) -> bool:
    """Return whether a parsed data set is a file of this machine."""
    return dataset.startswith("/")
