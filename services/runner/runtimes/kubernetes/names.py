"""Names and label values that Kubernetes takes, of any text and without collisions."""

from __future__ import annotations

import hashlib
import re

LONGEST_LABEL = 63
HASH_LENGTH = 12
DNS_LABEL = re.compile(r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", re.ASCII)
# A text that looks like a name with a hash gets a hash of its own, so that it is no other text's name.
HASHED = re.compile(rf"(?:.*[._-])?[a-z0-9][0-9a-f]{{{HASH_LENGTH - 1}}}", re.ASCII | re.DOTALL)


def dns_label(text: str, *, suffix_length: int = 0) -> str:
    """A DNS label that begins with a letter, as Services want it, of at most 63 - `suffix_length` characters.

    The text itself where it is one; otherwise what is readable of it and a hash of all of it.
    """
    longest = LONGEST_LABEL - suffix_length
    if len(text) <= longest and DNS_LABEL.fullmatch(text) and not HASHED.fullmatch(text):
        return text
    readable = re.sub(r"[^a-z0-9]+", "-", text.lower(), flags=re.ASCII).strip("-")
    if readable[:1].isdigit():
        readable = "n" + readable
    return _joined(readable, text, longest, "-", letter_first=True)


def label_value(text: str) -> str:
    """A label's value, of at most 63 characters, likewise. An empty text stays one."""
    if LABEL_VALUE.fullmatch(text) and not HASHED.fullmatch(text):
        return text
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", text, flags=re.ASCII).strip("._-")
    return _joined(readable, text, LONGEST_LABEL, "-", letter_first=False)


def _joined(readable: str, text: str, longest: int, mark: str, *, letter_first: bool) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_LENGTH]
    if letter_first:
        # A letter in any case, also where the hash stands alone.
        digest = "ghijklmnop"[int(digest[0], 16) % 10] + digest[1:]
    room = longest - HASH_LENGTH - len(mark)
    start = readable[:room].rstrip("._-")
    return f"{start}{mark}{digest}" if start else digest
