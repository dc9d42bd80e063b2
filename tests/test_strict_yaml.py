"""YAML of strangers: refused before it is built, in steps that grow with its length and no faster."""

import pytest
import yaml

from backend import strict_yaml
from backend.errors import SpecError
from backend.hub.front_matter import languages_of, read_front_matter
from backend.recipes import MAX_LENGTH, parse_recipe, parse_yaml
from backend.strict_yaml import MAX_DEPTH, load_yaml
from tests.support.steps import steps


def doubled(first, line, levels):
    return "\n".join(
        [f"a0: &a0 {first}", *(line.replace("N", str(i)).replace("M", str(i - 1)) for i in range(1, levels))]
    )


BOMBS = {
    "lists": doubled("[x]", "aN: &aN [*aM, *aM, *aM]", 30),
    "values": doubled("{k: x}", "aN: &aN {l: *aM, r: *aM}", 40),
    "merges": doubled("{k: x}", "aN: &aN {<<: [*aM, *aM], kN: x}", 40),
    "wide": "a: &a [" + "x," * 900 + "]\nb: [*a, *a, *a]\n",
    "itself": "a: &a [*a]",
    "itself, merged": "a: &a {<<: *a}",
    "a chain of aliases": doubled("[x]", "aN: &aN [*aM]", 40),
    "brackets": "[" * 700,
    "dashes": "- " * 5000,
    "many values": "[" + "x," * 4000 + "]",
    "a tagged number": f"a: !!int '{'1:' * 20_000}1'",
    "keys of one hash": "\n".join(f"{i * (2**61 - 1)}: x" for i in range(1, 1000)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_text_that_stands_for_too_much_is_refused_in_few_steps_and_words(bomb, monkeypatch):
    monkeypatch.setattr(strict_yaml, "MAX_VALUES", 2000)  # to count the steps of as many takes a while
    count, error = steps(lambda: parse_yaml(BOMBS[bomb]))
    assert isinstance(error, SpecError)
    assert len(str(error)) < 400
    assert count < 100 * len(BOMBS[bomb]) + 10_000_000  # PyYAML looks 1,024 characters ahead at a bracket, each time
    assert read_front_matter(f"---\n{BOMBS[bomb]}\n---\n") == {}


@pytest.mark.parametrize("value", ["1" + ":59" * 20_000, "0x" + "f" * 30_000, "1_0" * 20_000, "2024-01-" + "0" * 9000])
def test_what_only_older_yaml_takes_for_a_number_is_a_text_in_a_recipe_and_nothing_in_a_card(value):
    count, error = steps(lambda: parse_yaml(f"a: {value}"))
    assert error is None
    assert count < 100 * len(value) + 10_000_000
    assert parse_yaml(f"a: {value}") == {"a": value}
    assert read_front_matter(f"---\na: {value}\n---\n") in ({}, {"a": value})


@pytest.mark.parametrize(
    "value",
    ["!!timestamp soon", "!!bool maybe", "!!bool ''", "!!int ''", "!!int _", "!!float ''", "!!float x", "!!int 0x",
     "!!float 1:x", "2024-99-99", "!<tag:yaml.org,2002:timestamp> 2", "{a: [!!timestamp x]}", "{? !!bool maybe : 1}"],
)  # fmt: skip
def test_a_value_that_is_not_what_its_tag_says_is_named_with_its_line(value):
    assert read_front_matter(f"---\nlicense: mit\nb: {value}\n---\n") == {}
    if "!" in value:
        with pytest.raises(SpecError, match=r"line 2: this is not YAML\. .* is not what its tag says") as e:
            parse_yaml(f"a: 1\nb: {value}\n")
        assert len(str(e.value)) < 200


@pytest.mark.parametrize(
    ("written", "read"), [("no", ("no",)), ("[no, en]", ("no", "en")), ("en", ("en",)), ("{}", ())]
)
def test_norwegian_is_a_language_alone_and_among_others(written, read):
    assert languages_of(read_front_matter(f"---\nlanguage: {written}\n---\n")) == read


def test_a_fault_speaks_of_lists_and_mappings_not_of_what_python_calls_them():
    stages = "base_model: demo\nstages:\n- {stage: finetune, target_modules: all-linear}\n- merge\n"
    with pytest.raises(SpecError) as e:
        parse_recipe(parse_yaml(stages))
    assert "target_modules: must be a list, as in [a, b] (got 'all-linear')" in str(e.value)
    assert "stages[1]: must be a mapping (got 'merge')" in str(e.value)


@pytest.mark.parametrize("letter", ["\0", "\a", "\x1b"])
def test_letters_that_yaml_does_not_take_are_said_to_be_the_fault(letter):
    with pytest.raises(SpecError, match="special characters are not allowed"):
        parse_yaml(f"a: b{letter}")


@pytest.mark.parametrize(
    "unit",
    ["x: [1, 2]\n", "# note\n", "- {a: b, c: 'd'}\n", '- "a\\n \\u00e9"\n', "- &a x\n- *a\n", "- |\n   a\n    b\n"],
)
def test_the_steps_of_reading_grow_with_the_length_and_no_faster(unit):
    def text(times):
        return "".join(unit.replace("x", f"x{i}").replace("&a", f"&a{i}").replace("*a", f"*a{i}") for i in range(times))

    once, twice = (steps(lambda times=times: load_yaml(text(times)))[0] for times in (200, 400))
    assert twice < 2.2 * once


def test_a_recipe_of_ten_thousand_lines_with_aliases_is_read_as_pyyaml_reads_it():
    shared = "x-shared: &shared\n  a: 1\n  b: [1.5, yes, 2024-01-02, null]\n"
    text = shared + "".join(f"s{i}: {{<<: *shared, c: {i}}}\n" for i in range(300))
    text += "".join(f"k{i}: v\n" for i in range(8000))
    assert load_yaml(text) == yaml.safe_load(text)
    deep = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert load_yaml(deep) == yaml.safe_load(deep)


@pytest.mark.parametrize(
    "data",
    [
        {"base_model": ["x" * 100] * 100_000, "stages": []},
        {"base_model": "demo", "stages": [{"stage": "y" * 1_000_000}]},
        {"base_model": "demo", "stages": ["z" * 1_000_000] * 20},
        {"base_model": "demo", "q" * 1_000_000: 1, "stages": []},
        {"base_model": "demo", "stages": [], **{f"k{i}": i for i in range(10_000)}},
        {"base_model": "demo", "stages": [{"stage": "evaluate", "num_samples": [[["w" * 10_000] * 1000] * 1000]}]},
    ],
)
def test_a_fault_repeats_a_line_of_what_was_given_at_the_most(data):
    with pytest.raises(SpecError) as e:
        parse_recipe(data)
    assert len(str(e.value)) < 5000
    assert max(map(len, str(e.value).splitlines())) < 400


def test_a_text_that_is_too_long_is_not_read_at_all():
    count, error = steps(lambda: parse_yaml("#" * (MAX_LENGTH + 1)))
    assert isinstance(error, SpecError)
    assert count < 100
