"""What a chat template may take: it ends by itself, with a sentence, and what comes after it is as before."""

import resource
import signal
import subprocess
import sys

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backend.errors import SpecError
from backend.models import bounded as bounds
from backend.models.bounded import TakesTooMuch, bounded
from backend.models.chat_template import MAX_TEXT, chat_text

TURNS = [{"role": "user", "content": "Hello."}]


class Tokenizer:
    """One that renders as transformers does."""

    def __init__(self, chat_template):
        self.chat_template = chat_template

    def apply_chat_template(self, messages, **options):
        return ImmutableSandboxedEnvironment().from_string(self.chat_template).render(messages=messages, **options)


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}BODY{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        LOOP.replace("BODY", ""),
        LOOP.replace("BODY", "{% set x = 'a' ~ j %}"),
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{{ 'x' * 3000000000 }}",
        "{% set ns = namespace(t='x' * 1000) %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
        "{{ 'y' | center(4000000000) }}",
        "{{ 'z' * 2000000 }}",
        LOOP.replace("BODY", "w" * 1000),
    ],
)
def test_a_template_that_never_ends_or_never_has_enough_ends_with_a_sentence(monkeypatch, template):
    monkeypatch.setattr(bounds, "SECONDS", 0.5)
    monkeypatch.setattr(bounds, "MEMORY", 200_000_000)
    before = resource.getrlimit(resource.RLIMIT_DATA), signal.getsignal(signal.SIGPROF)
    with pytest.raises(SpecError, match=r"^The model's chat template (takes more than|writes \d+)"):
        chat_text(Tokenizer(template), TURNS)
    assert (resource.getrlimit(resource.RLIMIT_DATA), signal.getsignal(signal.SIGPROF)) == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)


def test_what_hears_no_signal_is_ended_by_the_system(tmp_path):
    deaf = "hashlib.pbkdf2_hmac('sha1', b'', b'', 10**9)"
    limits = "from backend.models import bounded as b; b.SECONDS, b.GRACE = 0.2, 1"
    code = f"import hashlib; {limits}\nwith b.bounded(): {deaf}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGXCPU


def test_a_long_conversation_is_rendered_as_often_as_a_template_repeats_it():
    turns = [{"role": "user", "content": "x" * 3_000_000}]
    text = chat_text(Tokenizer("{{ messages[0].content }}" * 3), turns)
    assert len(text) == 9_000_000 > MAX_TEXT


def test_time_that_was_taken_before_does_not_count(monkeypatch):
    monkeypatch.setattr(bounds, "SECONDS", 0.2)
    for _ in range(4):
        with bounded():
            sum(range(1_000_000))


def test_what_is_raised_within_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError), bounded():
        raise ZeroDivisionError
    with pytest.raises(TakesTooMuch, match="of memory"), bounded():
        raise MemoryError
