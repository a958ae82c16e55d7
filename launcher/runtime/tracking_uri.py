"""What may stand in ``tracker.mlflow_uri``: told from its text alone, before anything is planned."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import parse_qsl, urlsplit

_SERVERS = ("http", "https")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_OTHERS = ("databricks",)
_ALLOWED = (
    "http://HOST:PORT, https://HOST, sqlite:///FILE, or a database that SQLAlchemy knows (postgresql://HOST/NAME)"
)
_SECRET_WORDS = {"password", "passwd", "sslpassword", "token"}
_SQLITE = "sqlite:///"


def check_uri(uri: str | None) -> None:
    """See that MLflow could mean something by ``uri``; None is the default store.

    Raises:
        ValueError: it could not, or it holds a password, which a plan would keep.
    """
    if uri is None or uri == "databricks":
        return
    try:
        parts = urlsplit(uri)
        password, host, _ = parts.password, parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"mlflow_uri={uri!r}: {error}; should be {_ALLOWED}") from None
    kind = parts.scheme.partition("+")[0]
    words = {key.lower() for key, _ in parse_qsl(parts.query)}
    if password is not None or words & _SECRET_WORDS or (kind in _SERVERS and parts.username):
        raise ValueError(
            f"mlflow_uri={parts.scheme}://…@{host}: holds a password, and plans are kept; put it into the environment "
            "of the jobs (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or PGPASSWORD)"
        )
    if kind == "file" or not parts.scheme:
        raise ValueError(f"mlflow_uri={uri!r}: MLflow keeps no runs in plain folders any more; should be {_ALLOWED}")
    if kind not in (*_SERVERS, *_DATABASES, *_OTHERS):
        raise ValueError(f"mlflow_uri={uri!r}: unknown scheme {parts.scheme!r}; should be {_ALLOWED}")
    if kind in _SERVERS and not host:
        raise ValueError(f"mlflow_uri={uri!r}: names no host; should be {_ALLOWED}")
    if kind == "sqlite" and not database_file(uri):
        raise ValueError(f"mlflow_uri={uri!r}: names no file; should be sqlite:///FILE, absolute: sqlite:////FILE")


def database_file(uri: str) -> str | None:
    """The file of an SQLite ``uri``; None: it is something else, or names none."""
    return uri.removeprefix(_SQLITE) or None if uri.startswith(_SQLITE) else None


def absolute_uri(uri: str | None, absolute: Callable[[str], str]) -> str | None:
    """``uri`` with the file of an SQLite store made ``absolute``: a job runs in another folder."""
    file = database_file(uri) if uri else None
    return _SQLITE + absolute(file) if file else uri
