"""What a message or a screen may show of what somebody else wrote."""

from __future__ import annotations

import io
import json

import pytest
from rich.table import Table
from rich.text import Text

from memplan.planner.tables.errors import LONGEST_ECHO, redacted, shorten, shown, tidy, unknown
from memplan.render import json as documents
from memplan.render.console import show

HOSTILE = "\x1b]0;title\x07\x1b[31mred\x1b[0m\u202eback\r\x00\x9b2J"
SECRETS = (
    "hf_QwErTyUiOpAsDfGhJkLzXcVbNm",
    "sk-proj-abcDEF0123456789",
    "sk-ant-api03-abcdefghij",
    "ghp_abcdefghij0123456789",
    "github_pat_11ABCDEFG0abcdefgh",
    "glpat-abcdefghij0123456789",
    "AKIAIOSFODNN7EXAMPLE",
    "xoxb-1234567890-abc",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc",
)
NAMES = (
    "hf_bf16.json",
    "task-description",
    "disk-usage-report",
    "gpt2",
    "sk-1",
    "keyJoin",
    "a_hf_QwErTyUiOp"[:6],
)


def plain(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


@pytest.mark.parametrize("secret", SECRETS)
def test_tokens_are_not_echoed(secret):
    for text in (secret, f"token={secret}", f"'{secret}',", f"https://user:{secret}@host/x"):
        assert secret not in redacted(text) and "(secret)" in redacted(text)
    assert secret not in str(unknown("thing", secret, ("a", "b")))
    assert secret[:12] not in shorten("x" * 50 + " " + secret + "y" * 500)


def test_one_letter_is_close_to_no_name():
    assert "did you mean" not in str(unknown("thing", "x", ("prefix-tuning", "lora")))
    assert str(unknown("thing", "ix", ("prefix-tuning", "lora"))).endswith("did you mean prefix-tuning?")


@pytest.mark.parametrize("name", NAMES)
def test_names_are_no_tokens(name):
    assert redacted(name) == name


def test_a_value_is_cut_in_its_middle():
    assert shorten("a" * LONGEST_ECHO) == "a" * LONGEST_ECHO
    path = "/very/long" * 20 + "/config.json"
    assert len(shorten(path)) == LONGEST_ECHO and shorten(path).endswith("/config.json")
    assert len(shorten("x" * 10**7)) == LONGEST_ECHO and plain(shorten(HOSTILE))


@pytest.mark.parametrize(
    "value",
    [10**5000, -(10**300), [10**5000], "9" * 10**6, {"a": "b" * 900}, None, float("nan"), HOSTILE],
    ids=lambda value: type(value).__name__,
)
def test_any_value_has_a_short_text(value):
    assert 0 < len(shown(value)) <= LONGEST_ECHO and plain(shown(value))
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    assert shown(nested) == "a list"


def test_a_message_keeps_its_lines_and_nothing_else():
    said = tidy(f"first: {HOSTILE}\nsecond\t{SECRETS[0]}\n{'z' * 5000}")
    assert said.count("\n") == 2 and plain(said) and SECRETS[0] not in said
    assert max(map(len, said.split())) <= 100


def test_a_screen_shows_neither_control_characters_nor_tokens():
    stream = io.StringIO()
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(Text(f"{HOSTILE} {SECRETS[0]}"))
    show(HOSTILE, table, f"a warning: {SECRETS[1]}", stream=stream)
    assert plain(stream.getvalue()) and not any(secret in stream.getvalue() for secret in SECRETS)
    assert "red" in stream.getvalue() and "(secret)" in stream.getvalue()


def test_a_document_is_json_without_tokens():
    stream = io.StringIO()
    documents.write({"warnings": [f"x {SECRETS[0]} {HOSTILE}"], SECRETS[2]: 1}, stream)
    text = stream.getvalue()
    assert plain(text) and json.loads(text) == {"warnings": [f"x (secret) {HOSTILE}"], "(secret)": 1}
