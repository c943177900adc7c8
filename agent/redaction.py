"""Taking secrets out of text, for every way out of the process: logs, pages, errors, notifications, the ledger."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

REDACTED = "[redacted]"

_SECRET_KEY = re.compile(
    r"secret|token|passw|passphrase|api[-_]?key|key[-_]?id|private[-_]?key|authorization|credential|cookie|mnemonic"
    r"|session[-_]?id",
    re.IGNORECASE,
)
_NOT_SECRET_KEY = re.compile(r"_file$|_tokens(_max)?$", re.IGNORECASE)  # a path to a secret; counts of prompt tokens
_URL_PASSWORD = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]*(?=@)")
_QUERY_SECRET = re.compile(
    r"(?<=[?&])([\w.-]*(?:secret|token|passw|api[-_]?key|key[-_]?id|credential)[\w.-]*=)[^&#\s\"']+", re.IGNORECASE
)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}")


class Redactor:
    """Removes configured secret values, and what looks like a secret, from text.

    Also for whatever else leaves the process: pages, reports, error messages, the ledger.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Take the secret values; empty ones are ignored. Their JSON, repr and URL spellings are covered too."""
        spellings = {spelling for secret in secrets if secret for spelling in _spellings(secret)}
        longest_first = sorted(spellings, key=lambda spelling: (-len(spelling), spelling))
        self._values = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def text(self, text: str) -> str:
        """Return `text` without secret values, passwords in URLs and their queries, or bearer tokens."""
        if self._values is not None:
            text = self._values.sub(REDACTED, text)
        text = _QUERY_SECRET.sub(rf"\1{REDACTED}", _URL_PASSWORD.sub(REDACTED, text))
        return _BEARER.sub(rf"\1 {REDACTED}", text)

    def value(self, value: Any) -> Any:
        """Return a JSON value with every text in it redacted; numbers and keys stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value


def is_secret_name(name: str) -> bool:
    """Tell whether a value under this name must not be shown."""
    return _SECRET_KEY.search(name) is not None and _NOT_SECRET_KEY.search(name) is None


def _spellings(secret: str) -> set[str]:
    """Return how a secret may be written: as it is, in JSON, in the repr of text or bytes, in a URL, line by line."""
    plain = {secret, *(line.strip() for line in secret.splitlines() if len(line.strip()) >= 8)}
    escaped = {json.dumps(text, ensure_ascii=ascii_only)[1:-1] for text in plain for ascii_only in (True, False)}
    quoted = {quote(text, safe="") for text in plain} | {quote(text) for text in plain}
    represented = {spell(text)[1:-1] for text in plain for spell in (repr, ascii)}
    represented |= {repr(text.encode("utf-8", "surrogateescape"))[2:-1] for text in plain}
    return plain | escaped | quoted | represented
