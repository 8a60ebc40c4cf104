"""Names of any text: valid, readable, and never the name of another text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runner.runtimes.kubernetes.names import DNS_LABEL, HASH_LENGTH, LABEL_VALUE, dns_label, label_value

# Texts that differ in little are the ones that might meet.
NEAR = st.text(alphabet="aAbB01._-/ ä", max_size=80)
TEXTS = st.lists(st.one_of(st.text(max_size=100), NEAR), unique=True, max_size=20)


@given(st.one_of(st.text(), NEAR), st.integers(0, 40))
def test_any_text_becomes_a_dns_label(text: str, suffix_length: int) -> None:
    name = dns_label(text, suffix_length=suffix_length)
    assert DNS_LABEL.fullmatch(name)
    assert len(name) + suffix_length <= 63
    assert dns_label(text, suffix_length=suffix_length) == name


@given(st.one_of(st.text(), NEAR))
def test_any_text_becomes_a_labels_value(text: str) -> None:
    assert LABEL_VALUE.fullmatch(label_value(text))


@given(TEXTS)
def test_no_two_texts_have_one_name(texts: list[str]) -> None:
    for make in (dns_label, label_value):
        made = [make(text) for text in texts]
        # What was made is a text as well, and must not be its own name, or it would be that of two.
        both = {*texts, *made}
        assert len({make(text) for text in both}) == len(both)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("aibrix-batch-1", "aibrix-batch-1"),
        ("a", "a"),
        ("a" * 63, "a" * 63),
    ],
)
def test_what_is_one_stays(text: str, name: str) -> None:
    assert dns_label(text) == name


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("aibrix-batch_1", "aibrix-batch-1-"),
        ("SG_Lang: Llama 3.1", "sg-lang-llama-3-1-"),
        ("8b", "n8b-"),
        ("a" * 64, "a" * (63 - HASH_LENGTH - 1) + "-"),
        ("ÄÖÜ", ""),
        ("", ""),
        ("-", ""),
    ],
)
def test_what_is_none_is_readable(text: str, start: str) -> None:
    name = dns_label(text)
    assert name.startswith(start)
    assert len(name) == len(start) + HASH_LENGTH


def test_values_of_labels() -> None:
    assert label_value("") == ""
    assert label_value("batch_1.x") == "batch_1.x"
    assert label_value("Llama 3").startswith("Llama-3-")
    assert label_value("Llama 3") != label_value("Llama-3") == "Llama-3"
