"""Whether the hub can be asked is found out at once, and a name that is nowhere is refused in a line."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from executor.models.sources import hugging_face
from executor.models.sources.base import ModelError
from executor.models.sources.hub import hub_answers
from executor.models.sources.hugging_face import HuggingFaceSource


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    hub_answers.cache_clear()
    yield
    hub_answers.cache_clear()


def test_a_hub_answers_where_somebody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        assert hub_answers()
    assert hub_answers()  # asked once
    hub_answers.cache_clear()
    assert not hub_answers()  # nobody listens there any more


def test_nobody_is_asked_where_the_user_works_offline_or_behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert hub_answers()  # through the proxy, perhaps
    hub_answers.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hub_answers()


def test_a_name_that_is_nowhere_is_refused_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def load(_: object, *, local_files_only: bool, **__: object) -> None:
        asked.append(local_files_only)
        raise OSError("nothing")

    monkeypatch.setattr(hugging_face, "hub_answers", lambda: False)
    monkeypatch.setattr(hugging_face.AutoConfig, "from_pretrained", load)
    with pytest.raises(ModelError, match=r"no model nowhere/at-all on this machine: .* name a folder"):
        HuggingFaceSource("nowhere/at-all").head_size()
    monkeypatch.setattr(hugging_face, "hub_answers", lambda: True)
    with pytest.raises(ModelError, match=r"nowhere/at-all cannot be read .*check the name"):
        HuggingFaceSource("nowhere/at-all").head_size()
    assert asked == [True, False]
