"""A server that hangs or fails costs what the limits say, whichever way it does so, and ends in one sentence."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dialogkit.errors import InterruptedRunError, UnavailableError
from dialogkit.hints import Call
from dialogkit.system import hub as limits
from dialogkit.system import network
from dialogkit.system.hub import from_hub
from dialogkit.system.network import problems
from tests.failing_hub import FILES, LATER, WHOLE, FailingHub, failing_hub

HANG = 20.0
"""Seconds after which a wait is taken for a hang."""
FILE = b"0123456789" * 5_000


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Short limits, an empty cache, and a hub that may be asked."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(network, "ANSWER_S", HANG / 2)
    monkeypatch.setattr(limits, "STALL_S", 0.5)
    monkeypatch.setattr(limits, "BREAKS", 1)
    network.forget()
    yield
    network.forget()


def fetch(hub: FailingHub, monkeypatch: pytest.MonkeyPatch, name: str = "file.bin") -> Path:
    """Fetch a file of a repository."""
    from huggingface_hub import hf_hub_download

    monkeypatch.setenv("HF_ENDPOINT", hub.url)

    def load(online: bool) -> Path:
        return Path(hf_hub_download("someone/thing", name, endpoint=hub.url, local_files_only=not online))

    return from_hub(load, lacking="'someone/thing' is not in its cache", hint=Call("doctor", network=True))


LIMITS_S = {
    **dict.fromkeys(("silent", "drip", "silent-after-root"), 0.5),
    "500": 3.0,
    "503": 3.0,
    "503-after-root": 3.0,
}
"""How long an answer may take where the limit is what ends the wait; a busy machine takes its time elsewhere."""
SAYS = {
    "silent": "did not answer within 0.5 s",
    "drip": "did not answer within 0.5 s",
    "500": "answered 500 (internal server error)",
    "503": "answered 503 (service unavailable)",
    "429": "answered 429 (too many requests) and asks to wait 3600 s",
    "closed": "closed the connection without an answer",
    "circle": "redirects in a circle",
    "html": "answered with a web page, such as the sign-in page of a network",
    "silent-after-root": "did not answer within 0.5 s",
    "503-after-root": "answered 503 (service unavailable)",
    "stalled-file": "sent 0 bytes of 'file.bin' in 0.5 s, and at least 16,384 are due",
    "drip-file": "bytes of 'file.bin' in 0.5 s, and at least 16,384 are due",
    "cut-file": "broke off 'file.bin' 2 times",
    "huge-file": "bytes of 'file.bin' in 0.5 s, and at least 16,384 are due",
}
OFTEN = ("silent", "503", "429", "closed", "html", "stalled-file", "cut-file")


@pytest.mark.parametrize(
    "way",
    [way if way in OFTEN else pytest.param(way, marks=pytest.mark.faults) for way in (*WHOLE, *LATER, *FILES)],
)
def test_each_way_to_fail_ends_within_the_limit_in_one_sentence(
    way: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(network, "ANSWER_S", LIMITS_S.get(way, network.ANSWER_S))
    with failing_hub(way, files={"file.bin": FILE}) as hub:
        start = time.monotonic()
        with pytest.raises(UnavailableError) as refused:
            fetch(hub, monkeypatch)
        assert time.monotonic() - start < HANG
        assert refused.value.message.startswith(f"the hub at {hub.url} ")
        assert SAYS[way] in refused.value.message
        assert refused.value.message.endswith(", and 'someone/thing' is not in its cache")
        asked = len(hub.asked)
        with pytest.raises(UnavailableError, match="is not in its cache"):
            fetch(hub, monkeypatch)
        assert len(hub.asked) == asked, "what failed a moment ago is not waited for again"
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


@pytest.mark.parametrize("way", ["silent", "silent-after-root", "429", "html"])
def test_a_copy_in_the_cache_is_used_with_one_line(
    way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with failing_hub("good", files={"file.bin": FILE}) as hub:
        path = fetch(hub, monkeypatch)
        assert path.read_bytes() == FILE
        assert not caplog.messages
        hub.way = way
        monkeypatch.setattr(network, "ANSWER_S", LIMITS_S.get(way, network.ANSWER_S))
        network.forget()
        assert [fetch(hub, monkeypatch) for _ in range(2)] == [path, path]
    assert [message.endswith("; the copy in its cache is used") for message in caplog.messages] == [True]


def test_a_slow_file_that_moves_is_fetched_to_its_end_and_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="dialogkit.system.network")
    monkeypatch.setattr(network, "NEWS_S", (0.1, 0.2))
    monkeypatch.setattr(limits, "STALL_BYTES", 1_000)
    with failing_hub("slow-file", files={"file.bin": FILE}) as hub:
        start = time.monotonic()
        assert fetch(hub, monkeypatch).read_bytes() == FILE
        assert time.monotonic() - start > 2 * limits.STALL_S
    assert f"fetching 'file.bin' from the hub at {hub.url}: " in caplog.text
    assert " of 0.1 MB (" in caplog.text


def test_a_passing_error_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "ANSWER_S", 10.0)
    with failing_hub("503-once", files={"file.bin": FILE}) as hub:
        assert fetch(hub, monkeypatch).read_bytes() == FILE


def test_a_signal_is_not_lost_in_a_library_that_catches_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "ANSWER_S", HANG)
    stopped = InterruptedRunError("stopped by Ctrl-C", exit_code=130)

    def take(*_: object) -> None:
        raise stopped

    with failing_hub("silent-after-root") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr(limits, "take", take)

        def load(online: bool) -> None:
            from huggingface_hub import hf_hub_download

            for name in ("a", "b"):
                try:
                    hf_hub_download("someone/thing", name, endpoint=hub.url)
                except Exception:
                    continue

        with pytest.raises(InterruptedRunError) as raised:
            from_hub(load, lacking="", hint="")
    assert raised.value is stopped


def test_servers_are_asked_at_the_same_time_and_any_answer_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "ANSWER_S", 3.0)
    ways = ("silent", "drip", "closed", "500", "circle", "good")
    hubs = [FailingHub(way) for way in ways]
    try:
        start = time.monotonic()
        found = problems([hub.url for hub in hubs])
        assert time.monotonic() - start < 3 * network.ANSWER_S + 2
    finally:
        for hub in hubs:
            hub.close()
    late = "did not answer within 3 s"
    assert found == [late, late, "closed the connection without an answer", None, None, None]
    assert problems([hubs[0].url]) == [late], "the answer is kept for a minute"
    assert problems(["http://127.0.0.1:9"]) == ["cannot be reached: connection refused"]


def test_a_password_in_an_address_is_not_shown() -> None:
    with failing_hub("503") as hub:
        assert problems([hub.url.replace("//", "//me:secret@")]) == [None]
    assert network.plain_url("https://me:secret@host:1/path/") == "https://host:1/path"


def test_nothing_outside_a_loading_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    xet = huggingface_hub.constants.HF_HUB_DISABLE_XET
    with failing_hub("good", files={"file.bin": FILE}) as hub:
        fetch(hub, monkeypatch)
        assert xet == huggingface_hub.constants.HF_HUB_DISABLE_XET
        assert huggingface_hub.get_session().get(f"{hub.url}/").text == "ok"
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("dialogkit-signals") == 0


def test_answers_that_are_all_slow_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "ANSWER_S", 1.0)
    monkeypatch.setattr(limits, "SLOW_S", 0.1)
    monkeypatch.setattr(limits, "ANSWERS_S", 1.1)
    with failing_hub("slow-answers", files={str(number): FILE for number in range(10)}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)

        def load(online: bool) -> None:
            from huggingface_hub import hf_hub_download

            for name in range(10):
                hf_hub_download("someone/thing", str(name), endpoint=hub.url, local_files_only=not online)

        with pytest.raises(UnavailableError, match=r"answered so slowly that 1.1 s were waited in all"):
            from_hub(load, lacking="it is not in its cache", hint="")


@pytest.mark.faults
def test_threads_that_load_at_once_are_held_to_the_limits_each(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(network, "ANSWER_S", 2.0)
    with failing_hub("silent-after-root") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        said: list[str] = []

        def load() -> None:
            try:
                fetch(hub, monkeypatch)
            except UnavailableError as error:
                said.append(error.message)

        threads = [threading.Thread(target=load, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG)
        assert len(said) == 4
        assert len(set(said)) == 1
        # Outside of a loading, no limit is left.
        assert huggingface_hub.get_session().get(hub.url).text == "ok"
