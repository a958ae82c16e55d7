"""Which words can stand for a store of MLflow."""

from __future__ import annotations

import pytest

from launcher.runtime.errors import UserError
from launcher.runtime.sections import parse
from launcher.runtime.settings import TrackerSettings
from launcher.runtime.tracking_uri import absolute_uri, check_uri


@pytest.mark.parametrize(
    "uri",
    [None, "http://host:5000", "https://mlflow.lab.org/x", "sqlite:///runs/mlflow.db", "sqlite:////abs/mlflow.db",
     "postgresql://user@host/mlflow", "mysql+pymysql://host/db", "databricks", "databricks://profile"],
)  # fmt: skip
def test_stores_are_taken(uri):
    check_uri(uri)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("htp://host", "unknown scheme 'htp'"),
        ("http://", "names no host"),
        ("http:///x", "names no host"),
        ("http://host:port", "Port could not be cast"),
        ("mlruns", "keeps no runs in plain folders"),
        ("file:///tmp/mlruns", "keeps no runs in plain folders"),
        ("sqlite://", "names no file"),
        ("sqlite:///", "names no file"),
        ("localhost:5000", "unknown scheme 'localhost'"),
        ("", "keeps no runs in plain folders"),
    ],
)
def test_what_can_be_no_store_is_refused_in_one_line(uri, words):
    with pytest.raises(UserError) as refused:
        parse(TrackerSettings, {"mlflow": True, "mlflow_uri": uri}, "tracker")
    assert words in str(refused.value) and "mlflow_uri=" in str(refused.value) and "\n" not in str(refused.value)


def test_a_password_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="holds a password") as refused:
        check_uri("https://me:hunter2@host/x")
    assert "hunter2" not in str(refused.value) and "MLFLOW_TRACKING_PASSWORD" in str(refused.value)


@pytest.mark.parametrize(
    "uri",
    ["postgresql://host/db?user=a&password=hunter2", "mysql+pymysql://host/db?PASSWD=hunter2", "https://hunter2@host"],
)
def test_a_secret_in_another_place_of_the_uri_is_refused_too(uri):
    with pytest.raises(ValueError, match="holds a password") as refused:
        check_uri(uri)
    assert "hunter2" not in str(refused.value)


def test_only_a_file_is_made_absolute():
    assert absolute_uri("sqlite:///a.db", lambda path: f"/here/{path}") == "sqlite:////here/a.db"
    assert absolute_uri("http://h:1", lambda path: f"/here/{path}") == "http://h:1"
    assert absolute_uri(None, str) is None
