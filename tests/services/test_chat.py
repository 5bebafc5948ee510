"""A dialog turn by turn: the same replies as from the whole dialog at once, and nothing of it is lost."""

import json
import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.generate import GenerateConfig
from dialogkit.dialog import Message
from dialogkit.errors import ConfigError, DataError, StorageError
from dialogkit.inference.session import Conversation, generate_replies
from dialogkit.services.chat import Chat
from tests.conftest import REPOSITORY, Finished, Trained, run_process

SAID = ["Hello!", "What is the capital of France?", "Thank you."]


@pytest.fixture
def chat(trained: Trained) -> Chat:
    return Chat("shared-run", config=GenerateConfig(max_new_tokens=12), output=trained.output, device="cpu")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_reply_does_not_depend_on_what_is_remembered(architecture: str, temperature: float, small: Any) -> None:
    model = small.model(architecture, seed=1, initializer_range=0.4)
    config = GenerateConfig(max_new_tokens=10, temperature=temperature)
    conversation = Conversation(model, small.tokenizer, context=256, device="cpu")
    messages: list[Message] = []
    for text in [*SAID, "And now?"]:
        messages.append(Message("user", text))
        (expected,) = generate_replies(model, small.tokenizer, [messages], config, context=256, device="cpu")
        reply = conversation.reply(messages, config)
        assert reply == expected
        messages.append(Message("assistant", reply.text))
    again = conversation.reply(messages[:-3], config)  # back to an earlier turn
    assert again.text == messages[-3].content


def test_what_was_read_is_not_computed_again(small: Any) -> None:
    conversation = Conversation(small.model(), small.tokenizer, context=256, device="cpu")
    messages = [Message("user", "word " * 60)]
    config = GenerateConfig(max_new_tokens=4)
    conversation.reply(messages, config)
    first = conversation.computed
    conversation.reply(messages, config)
    assert (conversation.computed, first > 60) == (1, True)


def test_another_attempt_has_another_seed_and_takes_the_place_of_the_last(chat: Chat) -> None:
    first = chat.say("Hello!")
    second = chat.retry()
    assert chat.messages == [Message("user", "Hello!"), Message("assistant", second.reply)]
    assert [chat.retry().reply for _ in range(3)] != [first.reply] * 3
    chat.reset()
    assert chat.say("Hello!").reply == first.reply


def test_a_turn_is_taken_back_and_the_dialog_begins_again(chat: Chat) -> None:
    chat.set_system("You are brief.")
    for text in SAID:
        chat.say(text)
    assert chat.undo() == SAID[-1]
    assert [message.content for message in chat.messages if message.role == "user"] == SAID[:-1]
    assert chat.reset() == 4
    assert chat.messages == [Message("system", "You are brief.")]
    assert chat.set_system("") is False
    for refused in (chat.undo, chat.retry, lambda: chat.say("  "), lambda: chat.save("x.jsonl")):
        with pytest.raises(ConfigError):
            refused()


def test_the_oldest_turns_are_left_out_and_the_system_text_stays(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    reply = chat._conversation.reply

    def remember(messages: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(list(messages))
        return reply(messages, *args, **kwargs)

    monkeypatch.setattr(chat._conversation, "reply", remember)
    chat.set_system("You are brief.")
    for number in range(12):
        chat.say(f"{number} " + "word " * 20)
    assert chat.left_out > 0
    assert chat.left_out % 2 == 0
    assert seen[-1] == [chat.messages[0], *chat.messages[1 + chat.left_out : -1]]
    assert len(chat.messages) == 1 + 24


def test_a_dialog_is_saved_beside_others_and_gone_on_with(chat: Chat) -> None:
    chat.set_system("You are brief.")
    chat.say("Hello!")
    chat.messages[-1] = Message("assistant", "Hello.")
    assert chat.save("dialogs.jsonl") == Path("dialogs.jsonl")
    kept = list(chat.messages)
    chat.say("Again!")
    chat.messages[-1] = Message("assistant", "Again.")
    chat.save("dialogs.jsonl")
    assert [len(json.loads(line)["messages"]) for line in Path("dialogs.jsonl").read_text().splitlines()] == [3, 5]
    assert chat.load("dialogs.jsonl") == 4
    chat.undo()
    assert chat.messages == kept
    with pytest.raises(StorageError, match="cannot be written: no such file"):
        chat.save("no/such/x.jsonl")
    with pytest.raises(DataError, match="does not exist"):
        chat.load("nothing.jsonl")
    assert chat.messages == kept


def test_a_setting_that_is_wrong_leaves_the_right_one(chat: Chat) -> None:
    assert chat.set("temperature", "0") == 0
    wrong = (("temprature", "1", "did you mean 'temperature'"), ("top_p", "7", "got 7"), ("seed", "x", "got"))
    for name, value, told in wrong:
        with pytest.raises(ConfigError, match=told):
            chat.set(name, value)
    assert (chat.config.temperature, chat.config.top_p) == (0, 0.95)


def test_a_reply_that_is_stopped_is_kept_as_far_as_it_came(chat: Chat) -> None:
    chat.config = chat.config.model_copy(update={"repetition_penalty": 1.0})
    pieces: list[str] = []
    reply = chat.say("Hello!", on_text=pieces.append, leave=lambda: True)
    assert (reply.tokens, chat.messages[-1].content) == (1, reply.reply)
    assert "".join(pieces) == reply.reply


# The command


def test_what_is_piped_is_answered_line_by_line(trained: Trained) -> None:
    words = ["chat", "shared-run", "--output-dir", str(trained.output), "--max-new-tokens", "4"]
    done = run_process(*words, stdin="Hello!\n\n/set top_k 0\n/nope\n/undo\n/undo\n/set\n/exit\nnever\n")
    assert done.code == 0
    assert len(done.out.splitlines()) == 1
    told = done.err.splitlines()
    assert told[0] == "shared-run; /help lists what can be typed"
    assert told[2:] == [
        "top_k is 0",
        "error: unknown command '/nope' (did you mean '/undo'?)",
        "try: /help",
        "taken back: Hello!",
        "error: nothing was said yet",
        "try: /help",
        "error: something is missing",
        "try: /set temperature 0.5",
    ]


def test_two_models_answer_under_their_names(
    trained: Trained, dialogkit: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["Hello!"])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    words = ["chat", "shared-run", "--compare", trained.result.published_dir, "--output-dir", str(trained.output)]
    done = dialogkit(*words, "--max-new-tokens", "3")
    assert done.code == 0
    assert [line for line in done.out.splitlines() if line.startswith("[")] == ["[shared-run]", "[custom-nano]"]


class Shown:
    """What a terminal shows, read as far as it is waited for."""

    def __init__(self, terminal: int) -> None:
        self._terminal, self._rest = terminal, ""

    def until(self, text: str, *, seconds: float = 60) -> None:
        """Wait until a text is shown."""
        end = time.monotonic() + seconds
        while text not in self._rest:
            assert select.select([self._terminal], [], [], max(0, end - time.monotonic()))[0], self._rest
            self._rest += os.read(self._terminal, 65536).decode(errors="replace")
        self._rest = self._rest.partition(text)[2]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_in_a_terminal_ctrl_c_stops_a_reply_and_ctrl_d_leaves(trained: Trained) -> None:
    words = ["chat", "shared-run", "--output-dir", str(trained.output), "--max-new-tokens", "200"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm"}
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, [sys.executable, "-m", "dialogkit", *words], environment)
    shown = Shown(terminal)
    shown.until("> ")
    os.write(terminal, b"\x03")
    shown.until("Ctrl-D leaves")
    shown.until("> ")
    os.write(terminal, b"Hello!\n")
    shown.until("stopped by ")
    shown.until("> ")
    os.write(terminal, b"/undo\n")
    shown.until("taken back: Hello!")
    shown.until("> ")
    os.write(terminal, b"\x04")
    end = time.monotonic() + 60
    done, status = 0, 0
    while not done and time.monotonic() < end:
        time.sleep(0.1)
        done, status = os.waitpid(process, os.WNOHANG)
    os.close(terminal)
    if not done:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert (done, os.waitstatus_to_exitcode(status)) == (process, 0)
