"""Integration tests of the demo: they talk to the server that runs, on the port in PORT."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request

import pytest

BASE = f"http://127.0.0.1:{os.environ.get('PORT', '8000')}"


def get(path: str) -> dict[str, str]:
    with urllib.request.urlopen(BASE + path, timeout=10) as answer:
        data = json.load(answer)
    assert isinstance(data, dict)
    return data


def test_an_item_is_served() -> None:
    assert get("/items/1") == {"name": "a spanner"}


def test_an_unknown_item_is_404() -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get("/items/99")
    assert caught.value.code == 404
    caught.value.close()
