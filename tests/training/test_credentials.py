"""What is taken for a secret, and where a password goes."""

import os

import pytest

from training.credentials import has_password, is_signed, mask, to_environment


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (
            "API request to http://user:secret@127.0.0.1:9/api failed",
            "API request to http://***@127.0.0.1:9/api failed",
        ),
        ("'s3://key:se@cret@bucket/a'", "'s3://***@bucket/a'"),
        ("postgresql+psycopg2://u:p%40w@db.example.org:5432/x?sslmode=require", None),
        ("http://user@host/", "http://***@host/"),
        ("host=db password=secret user=u", "host=db password=*** user=u"),
        ("?X-Amz-Signature=secret&a=1", "?X-Amz-Signature=***&a=1"),
        ("at https://h/a.tar?id=7&sig=secret&se=secret, see", "at https://h/a.tar?id=7&sig=***&se=***, see"),
        ("?AWSAccessKeyId=secret&Expires=secret&Signature=secret", "?AWSAccessKeyId=***&Expires=***&Signature=***"),
        ("{'aws_session_token': 'secret', 'region': 'eu'}", "{'aws_session_token': '***', 'region': 'eu'}"),
    ],
)
def test_secrets_are_masked(text, masked):
    assert "secret" not in mask(text) and "p%40w" not in mask(text)
    assert masked is None or mask(text) == masked
    assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "models:/shop@champion",
        "s3://bucket/pictures/a@2x.png",
        "https://example.org/a?mail=x@y.org",
        "storage_options has aws_secret_access_key: credentials come from the environment",
        "model.tokens is 'x', expected a whole number; tokens=8",
        "mail me: a@b.org, http://example.org",
        "https://example.org/get?design=1&set=2&key=photos/1.png",
    ],
)
def test_what_is_no_secret_is_left(text):
    assert mask(text) == text
    assert not has_password(text) and not is_signed(text)


def test_a_password_goes_where_the_client_looks_for_it(monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD"):
        monkeypatch.setenv(name, "before")  # puts it back
    assert to_environment("https://ann:p%40ss@host:5000/x") == "https://host:5000/x"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("ann", "p@ss")
    assert to_environment("postgresql://ann:word@host/db") == "postgresql://ann@host/db"
    assert os.environ["PGPASSWORD"] == "word"
    for uri in ("sqlite:////tmp/mlflow.db", "http://host:5000", "postgresql://ann@host/db"):
        assert to_environment(uri) == uri
    with pytest.raises(ValueError, match=r"mysql://\*\*\*@host/db holds a password"):
        to_environment("mysql://ann:word@host/db")
