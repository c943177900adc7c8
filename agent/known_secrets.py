"""Every secret value that the settings and the environment name: what must never leave the process as text."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from agent.redaction import Redactor, is_secret_name

if TYPE_CHECKING:
    from agent.settings import Settings

URLS_VARIABLE = "TANDEM_NOTIFICATION_URLS"
"""Environment variable with the notification URLs, separated by white space."""
SECRET_LENGTH_MIN = 6
"""A shorter user or password in a URL is not looked for: replacing it everywhere would spoil every text."""
TOKEN_LENGTH_MIN = 8
"""The same for a part of a URL's path or query."""

_PLAIN_WORD = re.compile(r"[a-z_.=-]*")
_VARIABLES = ("APCA_API_KEY_ID", "APCA_API_SECRET_KEY")


def redactor_of(settings: Settings, environ: Mapping[str, str] | None = None) -> Redactor:
    """Return the redactor that knows every secret of these settings."""
    return Redactor(known_secrets(settings, environ))


def known_secrets(settings: Settings, environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the venue's keys, the notification URLs with their parts, and the ledger's password.

    A file that cannot be read adds nothing here: whoever needs its content says so, with the remedy.
    """
    environ = os.environ if environ is None else environ
    found = [environ.get(name, "").strip() for name in _VARIABLES]
    found += [_content(file).strip() for file in (settings.venue.key_id_file, settings.venue.secret_key_file)]
    urls = _content(settings.notifications.urls_file) or environ.get(URLS_VARIABLE, "")
    for url in (word for word in urls.split() if "://" in word):
        found += [url, *_parts(url)]
    found += _passwords(settings.ledger.url)
    return [secret for secret in dict.fromkeys(found) if secret]


def _content(file: Path | None) -> str:
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _parts(url: str) -> list[str]:
    """Return what stands in a notification URL beside its scheme and host name: tokens, users, passwords.

    Plain words of a path, such as `alerts`, are no secrets: replacing them would spoil every text.
    """
    _, _, rest = url.partition("://")
    authority, _, path = rest.partition("/")
    credentials, _, _ = authority.rpartition("@")
    named = [piece for piece in (credentials, *credentials.split(":")) if len(piece) >= SECRET_LENGTH_MIN]
    pieces = path.replace("?", "/").replace("&", "/").split("/")
    pieces += [value for piece in pieces if (value := piece.partition("=")[2])]
    named += [piece for piece in pieces if len(piece) >= TOKEN_LENGTH_MIN and not _PLAIN_WORD.fullmatch(piece)]
    return [spelling for piece in named for spelling in (piece, unquote(piece))]


def _passwords(url: str) -> list[str]:
    """Return the passwords of a database URL: before its host, and in its query, where drivers take them too."""
    try:
        parts = urlsplit(url)
        before_host = unquote(parts.password or "")
    except ValueError:
        return []
    in_query = [value for name, value in parse_qsl(parts.query) if is_secret_name(name)]
    return [password for password in (before_host, *in_query) if len(password) >= SECRET_LENGTH_MIN]
