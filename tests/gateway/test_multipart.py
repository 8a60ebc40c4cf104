"""The form parser: any split of the bytes, any order of the parts, and every way to be wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Refused
from gateway.multipart import Multipart, boundary_of
from services.kit.errors import InvalidArgument

BOUNDARY = b"b0undary"
FILE = b'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\nContent-Type: application/jsonl'


def source(*pieces: bytes) -> Multipart:
    waiting = [piece for piece in pieces if piece]

    async def read() -> bytes:
        return waiting.pop(0) if waiting else b""

    return Multipart(read, BOUNDARY)


def form(*parts: tuple[bytes, bytes]) -> bytes:
    return b"".join(b"--" + BOUNDARY + b"\r\n" + h + b"\r\n\r\n" + c + b"\r\n" for h, c in parts) + b"--b0undary--\r\n"


async def everything(reader: Multipart) -> list[tuple[str, str | None, bytes]]:
    found = []
    while (part := await reader.next_part()) is not None:
        data = b""
        while chunk := await part.read():
            data += chunk
        found.append((part.name, part.filename, data))
    return found


@given(st.data())
async def test_every_split_gives_the_same_parts(data: st.DataObject) -> None:
    pieces = st.sampled_from(
        [b"\r", b"\n", b"-", b"\r\n", b"\r\n--", b"\r\n--b0undar", b"--b0undary", b"x", b"\0", b"\xff"]
    )
    content = b"".join(data.draw(st.lists(pieces, max_size=12)))
    if b"\r\n--b0undary" in b"\r\n" + content:
        content = b"y"
    whole = b"ignored\r\n" * data.draw(st.booleans()) + form(
        (FILE, content), (b"content-disposition: form-data; name=p", b"v")
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    split = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert await everything(source(*split)) == [("file", "a.jsonl", content), ("p", None, b"v")]


async def test_a_part_that_is_not_read_is_passed_over() -> None:
    reader = source(form((FILE, b"x" * 1000), (b'Content-Disposition: form-data; name="purpose"', b"batch")))
    first, second = await reader.next_part(), await reader.next_part()
    assert first is not None
    assert second is not None
    assert await second.text() == "batch"
    assert await reader.next_part() is None


@given(st.data())
async def test_a_cut_body_is_always_found_out(data: st.DataObject) -> None:
    whole = form((FILE, b"hello"), (b'Content-Disposition: form-data; name="purpose"', b"batch"))
    cut = data.draw(st.integers(0, len(whole) - 5))
    with pytest.raises(InvalidArgument, match="ends before its last boundary"):
        await everything(source(whole[:cut]))


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (b'form-data; name="file"; filename="a b.jsonl"', "a b.jsonl"),
        (b"form-data; name=file; filename=a.jsonl", "a.jsonl"),
        (b'form-data; name="file"; filename="a%22b.jsonl"', 'a"b.jsonl'),
        (b'form-data; name="file"; filename="a\\"b\\\\c.jsonl"', 'a"b\\c.jsonl'),
        (b'form-data; name="file"; filename="C:\\dir\\x.jsonl"', "C:\\dir\\x.jsonl"),
        (b'form-data; name="file"; filename="a;b=c.jsonl"', "a;b=c.jsonl"),
        ('form-data; name="file"; filename="\u00fc\u4e2d.jsonl"'.encode(), "\u00fc\u4e2d.jsonl"),
        (b'form-data; name="file"; filename="x"; filename*=UTF-8\'\'%C3%BC.jsonl', "\u00fc.jsonl"),
        (b'form-data; name="file"; filename=""', ""),
        (b'form-data; name="file"', None),
    ],
)
async def test_names_are_read_as_clients_write_them(disposition: bytes, name: str | None) -> None:
    ((_, filename, _),) = await everything(source(form((b"Content-Disposition: " + disposition, b"x"))))
    assert filename == name


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form at all",
        b"x" * 100_000,
        b"--b0undary",
        b"--b0undaryX\r\n\r\n\r\n--b0undary--",
        b"--b0undary\r\n",
        b"--b0undary\r\n\r\nno headers\r\n--b0undary--",
        b"--b0undary\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b0undary--",
        b"--b0undary\r\nContent-Disposition: attachment; name=a\r\n\r\nx\r\n--b0undary--",
        b'--b0undary\r\nContent-Disposition: form-data; name="a\r\n\r\nx\r\n--b0undary--',
        b"--b0undary\r\nContent-Disposition: form-data; name=a; name=b\r\n\r\nx\r\n--b0undary--",
        b"--b0undary\r\nContent-Disposition: form-data; name=\xff\r\n\r\nx\r\n--b0undary--",
        b"--b0undary\r\nContent-Disposition: form-data; name=a; filename*=latin1''x\r\n\r\nx\r\n--b0undary--",
        b"--b0undary\r\nContent-Disposition: form-data; name=a; filename*=utf-8''%FF\r\n\r\nx\r\n--b0undary--",
        b"--b0undary\r\nno colon\r\n\r\nx\r\n--b0undary--",
        b"--b0undary\r\n" + b"X: y\r\n" * 10_000 + b"\r\nx\r\n--b0undary--",
        b"--b0undary\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n" * 101 + b"--b0undary--",
        form((FILE, b"x")) + b"y" * 100_000,
    ],
)
async def test_what_is_no_form_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgument, match="Could not parse the multipart form"):
        await everything(source(*(body[at : at + 4096] for at in range(0, len(body), 4096))))


@pytest.mark.parametrize("header", [b"Content-Encoding: gzip", b"Content-Transfer-Encoding: base64"])
async def test_an_encoded_part_is_refused(header: bytes) -> None:
    with pytest.raises(Refused) as caught:
        await everything(source(form((FILE + b"\r\n" + header, b"x"))))
    assert caught.value.status == 415


async def test_a_long_field_is_refused() -> None:
    part = await source(form((b"Content-Disposition: form-data; name=purpose", b"x" * 70_000))).next_part()
    assert part is not None
    with pytest.raises(InvalidArgument, match="too long"):
        await part.text()


def test_boundaries() -> None:
    assert boundary_of("multipart/form-data; boundary=abc") == b"abc"
    assert boundary_of('Multipart/Form-Data; charset=x; Boundary="a b;c"') == b"a b;c"
    for wrong in ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 71):
        with pytest.raises(InvalidArgument):
            boundary_of(wrong)
    for other in ("", "application/json", "multipart/mixed; boundary=abc"):
        with pytest.raises(Refused):
            boundary_of(other)
