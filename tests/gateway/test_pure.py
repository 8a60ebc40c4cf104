"""The small deciding parts: the look at a JSONL file, filenames and their header, API keys, addresses."""

from __future__ import annotations

import itertools
import unicodedata
from email.parser import BytesHeaderParser
from email.policy import HTTP
from pathlib import Path

import pytest
from aiohttp.multipart import parse_content_disposition
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.auth import KeyFile, is_loopback, new_key, open_keys, parse_keys
from gateway.download import attachment
from gateway.jsonl import JsonlCheck
from gateway.openai import clean_filename
from services.kit.errors import InvalidArgument
from services.kit.settings import Gateway, Settings

BOM = b"\xef\xbb\xbf"
NOT_JSON = "invalid_json_line"


def verdict(*chunks: bytes, longest: int = 1000) -> str | None:
    check = JsonlCheck(longest)
    for chunk in chunks:
        check.feed(chunk)
    check.finish()
    return check.problem.context["code"] if check.problem else None


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty_file"),
        (BOM, "empty_file"),
        (b" \r\n\t\n" * 100, "empty_file"),
        (BOM + b"\r\n\r\n", "empty_file"),
        (b'{"a":1}', None),
        (b'{"a":1}\n', None),
        (b'{"a":1}\r\nnot json', None),
        (BOM + b'\r\n\n {"a":1}\r\n', None),
        (b"{}\n", None),
        (b"[1]\n", NOT_JSON),
        (b'"a"\n', NOT_JSON),
        (b'{"a":1} {"b":2}\n', NOT_JSON),
        (b"custom_id,method\n", NOT_JSON),
        (b'{"a":\n1}', NOT_JSON),
        (b'{"a":' + b"[" * 400, NOT_JSON),
        (b"\0\n", NOT_JSON),
        (b'{"a":"' + b"x" * 2000 + b'"}', None),
        (b"x" * 2000, None),
        ('{"a":"\u00fc\u4e2d\U0001f600"}\n'.encode(), None),
        (b'{"a":1}\n\xff', "invalid_encoding"),
        (b'{"a":1}\n\xe4\xb8', "invalid_encoding"),
        (b'{"a":1}\n\xed\xa0\x80', "invalid_encoding"),
        ('{"a":1}'.encode("utf-16"), "invalid_encoding"),
    ],
)
def test_the_look_at_a_file(data: bytes, code: str | None) -> None:
    assert verdict(data) == code
    assert verdict(*(data[at : at + 1] for at in range(len(data)))) == code


def test_a_deep_first_line() -> None:
    assert verdict(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", longest=1_000_000) == NOT_JSON


@given(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.integers(0, 400), max_size=5))
def test_text_is_utf8_however_it_is_cut(text: str, cuts: list[int]) -> None:
    data = b"{}\n" + text.encode()
    edges = [0, *sorted(cuts), len(data)]
    assert verdict(*(data[a:b] for a, b in itertools.pairwise(edges))) is None


NASTY = st.text(st.characters() | st.sampled_from("\r\n\0\"\\/;%'*=\u202e\u2028\u00fc"), min_size=1, max_size=300)


@settings(max_examples=2000, deadline=None)
@given(NASTY)
@example("a.jsonl")
@example('a"\r\nX-Evil: 1\r\n\r\n<script>')
@example("../../etc/passwd")
@example("%22; filename=evil.exe")
@example("\u202egpj.exe")
@example("e\u0301.jsonl")
def test_any_filename_becomes_one_header(name: str) -> None:
    try:
        clean = clean_filename(name, "file")
    except InvalidArgument:
        assert (
            "\0" in name or len(unicodedata.normalize("NFC", name).encode("utf-8", "replace")) > 255 or not name.strip()
        )
        return
    assert clean == unicodedata.normalize("NFC", clean)
    assert 0 < len(clean.encode()) <= 255
    assert not set(clean) & set("/\\\r\n\0\u202e")
    header = attachment(clean)
    assert header.isascii()
    assert header.isprintable()
    parsed = BytesHeaderParser(policy=HTTP).parsebytes(b"Content-Disposition: " + header.encode() + b"\r\n\r\n")
    assert parsed.keys() == ["Content-Disposition"]
    kind, parameters = parse_content_disposition(header)
    assert kind == "attachment"
    assert parameters["filename*"] == clean
    assert set(parameters) == {"filename", "filename*"}


def test_names_that_are_replaced() -> None:
    assert clean_filename("a/b\\c.jsonl", "file") == "a_b_c.jsonl"
    assert clean_filename("..", "file") == "_"
    assert clean_filename("a\r\nb", "file") == "a__b"


def test_a_new_key_is_found_and_no_other(tmp_path: Path) -> None:
    key, line = new_key("team-a", "laptop of ada")
    file = tmp_path / "keys"
    file.write_text(f"# keys\n\n{line}\n")
    keys = KeyFile(file)
    found = keys.find(key)
    assert found is not None
    assert (found.project_id, found.name) == ("team-a", "laptop of ada")
    assert key.startswith("ab_")
    assert key not in line
    assert keys.find(key + "x") is None
    assert keys.find("\udcff") is None
    assert new_key("a", "b")[0] != new_key("a", "b")[0]


@pytest.mark.parametrize("line", ["x", "0" * 64, "0" * 64 + " p", "0" * 63 + " p n", "0" * 64 + " p/q n"])
def test_a_broken_line_is_named(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_keys(f"# first\n{line}\n")


def test_a_key_is_there_once() -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_keys("0" * 64 + " p n\n" + "0" * 64 + " q m\n")


@pytest.mark.parametrize(
    ("listen", "loopback"),
    [
        ("127.0.0.1:80", True),
        ("127.1.2.3:80", True),
        ("[::1]:80", True),
        ("localhost:80", True),
        ("0.0.0.0:80", False),
        ("[::]:80", False),
        (":80", False),
        ("10.0.0.1:80", False),
        ("example.org:80", False),
    ],
)
def test_who_may_be_served_without_keys(listen: str, loopback: bool) -> None:
    assert is_loopback(listen) is loopback
    if loopback:
        assert open_keys(Settings(gateway=Gateway(listen=listen))) is None
    else:
        with pytest.raises(ValueError, match="AIBRIX_GATEWAY__ALLOW_ANONYMOUS"):
            open_keys(Settings(gateway=Gateway(listen=listen)))
        assert open_keys(Settings(gateway=Gateway(listen=listen, allow_anonymous=True))) is None


def test_keys_that_cannot_be_read_stop_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="AIBRIX_API_KEYS_FILE"):
        open_keys(Settings(api_keys_file=str(tmp_path / "none")))
    (tmp_path / "broken").write_text("what\n")
    with pytest.raises(ValueError, match="line 1"):
        open_keys(Settings(api_keys_file=str(tmp_path / "broken")))
