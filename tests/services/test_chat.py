"""A dialog turn by turn: the same replies as from the whole dialog at once, and nothing of it is lost."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogkit.config.generate import GenerateConfig
from dialogkit.dialog import Message
from dialogkit.errors import ConfigError, DataError, StorageError
from dialogkit.hints import Call
from dialogkit.inference.replies import Conversation, continue_prompts
from dialogkit.services.chat import SETTINGS, Chat
from tests.conftest import REPOSITORY, Finished, Trained

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
        prompt = small.tokenizer.encode_prompt(messages)
        (expected,) = continue_prompts(model, small.tokenizer, [prompt], config, context=256, device="cpu")
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
    reply = Conversation.reply

    def remember(conversation: Conversation, messages: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(list(messages))
        return reply(conversation, messages, *args, **kwargs)

    monkeypatch.setattr(Conversation, "reply", remember)
    chat.set_system("You are brief.")
    for number in range(12):
        chat.say(f"{number} " + "word " * 20)
    assert chat.left_out > 0
    assert seen[-1] == [chat.messages[0], *chat.messages[1 + 2 * chat.left_out : -1]]
    assert len(chat.messages) == 1 + 24


def test_a_dialog_is_saved_beside_others_and_continued(chat: Chat) -> None:
    chat.set_system("You are brief.")
    chat.say("Hello!")
    chat.messages[-1] = Message("assistant", "Hello.")
    assert chat.save("dialogs.jsonl") == (Path("dialogs.jsonl"), 1, False, False, None)
    kept = list(chat.messages)
    chat.say("Again!")
    chat.messages[-1] = Message("assistant", "Again.")
    assert chat.save("dialogs.jsonl") == (Path("dialogs.jsonl"), 2, True, True, None)
    assert [len(json.loads(line)["messages"]) for line in Path("dialogs.jsonl").read_text().splitlines()] == [3, 5]
    assert chat.load("dialogs.jsonl") == 4
    chat.undo()
    assert chat.messages == kept
    with pytest.raises(StorageError, match="cannot be written: no such file"):
        chat.save("no/such/x.jsonl")
    with pytest.raises(DataError, match="does not exist") as refused:
        chat.load("nothing.jsonl")
    assert (refused.value.hint, chat.messages) == (Call("chat help"), kept)


def test_a_dialog_with_an_empty_reply_is_saved_and_reported(chat: Chat) -> None:
    chat.say("Hello!")
    for answer, saved in (
        ("Hello.", (1, False, False, None)),
        ("", (2, True, False, "message 2 (assistant) is empty")),
    ):
        chat.messages[-1] = Message("assistant", answer)
        assert chat.save("empty.jsonl")[1:] == saved


def test_a_dialog_that_is_saved_twice_is_not_yet_two_to_train_on(chat: Chat) -> None:
    chat.say("Hello!")
    chat.messages[-1] = Message("assistant", "Hello.")
    assert [chat.save("twice.jsonl").trains for _ in range(2)] == [False, False]
    chat.messages[-1] = Message("assistant", "Oh.")
    assert chat.save("twice.jsonl") == (Path("twice.jsonl"), 3, True, True, None)


DIALOG = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'


@pytest.mark.parametrize("before", [DIALOG, f"{DIALOG}\n", ""])
def test_saving_to_a_file_of_dialogs_keeps_its_lines(before: str, chat: Chat) -> None:
    Path("mine.jsonl").write_text(before)
    chat.say("Hello!")
    chat.messages[-1] = Message("assistant", "Hello.")
    saved = chat.save("mine.jsonl")
    lines = Path("mine.jsonl").read_text().splitlines()
    assert [list(json.loads(line)) for line in lines] == [["messages"]] * (1 + bool(before))
    assert lines[:-1] == before.splitlines()
    assert saved == (Path("mine.jsonl"), len(lines), True, bool(before), None)


@pytest.mark.parametrize(
    ("name", "content", "better"),
    [
        ("a.json", None, "a.jsonl"),
        ("notes", None, "notes.jsonl"),
        ("a.jsonl", b"some notes\n", "a-2.jsonl"),
        ("a.jsonl", b'{"prompt": "a", "response": "b"}\n', "a-2.jsonl"),
        ("a.jsonl", b'[{"prompt": "a", "response": "b"}]', "a-2.jsonl"),
        ("a.jsonl", b"\xff\xfe{}", "a-2.jsonl"),
    ],
)
def test_saving_leaves_a_file_of_something_else_as_it_is(
    name: str, content: bytes | None, better: str, chat: Chat
) -> None:
    chat.say("Hello!")
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        chat.save(name)
    assert refused.value.hint == Call("chat save", better)
    assert (Path(name).read_bytes() if Path(name).exists() else None) == content


def test_a_setting_that_is_wrong_leaves_the_right_one(chat: Chat) -> None:
    assert chat.set("temperature", "0") == 0
    wrong = (("temprature", "1", "did you mean 'temperature'"), ("top_p", "7", "got 7"), ("seed", "x", "got"))
    for name, value, reported in wrong:
        with pytest.raises(ConfigError, match=reported):
            chat.set(name, value)
    assert (chat.config.temperature, chat.config.top_p) == (0, 0.95)


def test_a_reply_that_is_stopped_is_kept_as_far_as_it_came(chat: Chat) -> None:
    chat.config = chat.config.model_copy(update={"repetition_penalty": 1.0})
    pieces: list[str] = []
    reply = chat.say("Hello!", on_text=pieces.append, should_stop=lambda: True)
    assert (reply.tokens, chat.messages[-1].content) == (1, reply.reply)
    assert "".join(pieces) == reply.reply


# The command


def test_what_is_piped_is_answered_line_by_line(trained: Trained, dialogkit: Callable[..., Finished]) -> None:
    words = ["chat", "shared-run", "--output-dir", str(trained.output), "--max-new-tokens", "4"]
    done = dialogkit(*words, stdin="Hello!\n\n/set top_k 0\n/nope\n/undo\n/undo\n/exit\nnever\n")
    assert done.code == 0
    assert len(done.out.splitlines()) == 1
    reported = done.err.splitlines()
    assert reported[0] == "shared-run; /help lists the commands"
    assert reported[2:] == [
        "top_k is 0",
        "error: unknown command '/nope' (did you mean '/undo'?)",
        "try: /help",
        "removed: Hello!",
        "error: nothing was said yet",
        "try: /help",
    ]


@pytest.fixture
def talk(
    trained: Trained, dialogkit: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Finished]:
    """Type lines into `chat`."""

    def type_lines(*lines: str, words: tuple[str, ...] = ()) -> Finished:
        left = iter(lines)

        def typed(prompt: str) -> str:
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", typed)
        start = ("chat", "shared-run", "--output-dir", str(trained.output), "--max-new-tokens", "3")
        done = dialogkit(*start, *words)
        assert done.code == 0
        return done

    return type_lines


def test_two_models_answer_under_their_names(trained: Trained, talk: Callable[..., Finished]) -> None:
    done = talk("Hello!", "/save both.jsonl", words=("--compare", trained.result.published_dir))
    assert [line for line in done.out.splitlines() if line.startswith("[")] == ["[shared-run]", "[custom-nano]"]
    _, *how, saved = done.err.splitlines()
    assert [line.partition(": ")[0] for line in how] == ["shared-run", "custom-nano"]
    assert saved == (
        "saved to both.jsonl, a new file; it has the replies of shared-run, not those of custom-nano; "
        "train --dataset needs at least 2 different dialogs: save another one to the same file"
    )


def test_settings_are_shown_and_set_with_a_blank_or_an_equals_sign(talk: Callable[..., Finished]) -> None:
    lines = ("/set temperature=1.5", "/set seed = 7", "/set top_k 9", "/set top_k", "/set")
    reported = [line.split() for line in talk(*lines).err.splitlines()[1:]]
    assert reported[:4] == [[name, "is", value] for name, value in zip(
        ("temperature", "seed", "top_k", "top_k"), ("1.5", "7", "9", "9"), strict=True
    )]  # fmt: skip
    settings = GenerateConfig(max_new_tokens=3, temperature=1.5, seed=7, top_k=9)
    assert dict(reported[4:]) == {name: str(getattr(settings, name)) for name in SETTINGS}


def test_a_retry_that_would_repeat_the_reply_is_refused(talk: Callable[..., Finished]) -> None:
    done = talk("Hello!", "/set temperature 0", "/retry", "/retry", "/set temperature 1", "/retry")
    *_, error, tried, _, counts = done.err.splitlines()
    assert error == "error: temperature 0 always takes the most probable token: the reply would be the same"
    assert tried == "try: /set temperature 0.7"
    assert re.match(r"\d+ tokens?, ", counts)
    assert len(done.out.splitlines()) == 3


def test_a_pasted_text_that_begins_with_a_slash_is_no_command(talk: Callable[..., Finished]) -> None:
    assert " tokens, " in talk("// a comment\nx = 1").err


@pytest.mark.parametrize(
    ("line", "reported", "hint"),
    [
        ("/set foo=1", "unknown setting 'foo'; known are max_new_tokens", "/set"),
        ("/set temprature=1", "unknown setting 'temprature' (did you mean 'temperature'?)", "/set"),
        ("/save", "/save needs the name of a file", "/save chat.jsonl"),
        ("/load", "/load needs the name of a file", "/load chat.jsonl"),
        ("/save notes.txt", "nothing was said yet", "/help"),
        (
            "/set temperature 9",
            "temperature: must be less than or equal to 2 (got 9); it takes numbers from 0 to 2",
            "/set temperature 0.7",
        ),
        ("/load nope.jsonl", "the dataset file 'nope.jsonl' does not exist", "/help"),
        ("/clear", "unknown command '/clear' (did you mean '/reset'?)", "/help"),
        ("/exit now", "/exit stands alone (got 'now' behind it)", "/exit"),
        ("/hist", "unknown command '/hist' (did you mean '/history'?)", "/help"),
    ],
)
def test_a_line_that_is_wrong_is_reported_with_what_can_be_typed(
    line: str, reported: str, hint: str, talk: Callable[..., Finished]
) -> None:
    _, error, tried = talk(line).err.splitlines()
    assert error.startswith(f"error: {reported}")
    assert tried == f"try: {hint}"


def test_a_saved_dialog_is_loaded_and_shown(talk: Callable[..., Finished]) -> None:
    dialogs = [[("user", "a"), ("assistant", "b")], [("system", "s"), ("user", "c"), ("assistant", "d\nd")]]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in dialogs]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = talk("/history", "/load mine.jsonl", "/history", "/save mine.jsonl", "/system t", "/load mine.jsonl")
    assert done.out.splitlines() == ["system: s", "> c", "d", "d"]
    loaded = "2 messages loaded"
    reported = ["nothing was said yet", loaded, "appended to mine.jsonl, which now holds 3 dialogs"]
    replaced = ["system text set", f"{loaded}; the system text is now that of the file"]
    assert done.err.splitlines()[1:] == [*reported, *replaced]
    Path("plain.jsonl").write_text(json.dumps(rows[0]) + "\n")
    done = talk("/system t", "/load plain.jsonl", "/history")
    assert done.out.splitlines() == ["system: t", "> a", "b"]
    assert done.err.splitlines()[-1] == f"{loaded}; the system text stays"


def test_without_standard_input_it_says_so(talk: Callable[..., Finished]) -> None:
    empty = talk()
    assert empty.out == ""
    assert "standard input was empty: nothing was said" in empty.err
    command = 'exec "$0" -m dialogkit chat shared-run <&-'
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    shell = ["sh", "-c", command, sys.executable]
    closed = subprocess.run(shell, env=environment, capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stdout) == (2, "")
    assert closed.stderr.splitlines() == [
        "error: standard input is closed, so there is nothing to reply to",
        'try: dialogkit generate --prompt "Hello!"',
    ]


class Shown:
    """What a terminal shows, read as far as it is waited for."""

    def __init__(self, terminal: int) -> None:
        self._terminal, self._rest = terminal, ""

    def until(self, text: str, *, seconds: float = 60) -> str:
        """Wait until a text is shown, and return what was shown before it."""
        end = time.monotonic() + seconds
        while text not in self._rest:
            assert select.select([self._terminal], [], [], max(0, end - time.monotonic()))[0], self._rest
            self._rest += os.read(self._terminal, 65536).decode(errors="replace")
        before, _, self._rest = self._rest.partition(text)
        return before

    def begin(self, *, seconds: float = 60) -> None:
        """Wait until the first word is shown."""
        end = time.monotonic() + seconds
        while not re.search(r"\w", self._rest):
            assert select.select([self._terminal], [], [], max(0, end - time.monotonic()))[0], self._rest
            self._rest += os.read(self._terminal, 65536).decode(errors="replace")

    def within(self, text: str, *, seconds: float) -> bool:
        """Return whether a text is shown within a time; it can be waited for afterwards."""
        end = time.monotonic() + seconds
        while (
            text not in self._rest and select.select([self._terminal], [], [], max(0, end - time.monotonic()))[0]
        ):
            self._rest += os.read(self._terminal, 65536).decode(errors="replace")
        return text in self._rest


class Typing:
    """`chat` in a pseudo-terminal of 40 columns, as a shell starts it."""

    def __init__(self, trained: Trained) -> None:
        words = ["chat", "shared-run", "--output-dir", str(trained.output), "--max-new-tokens", "200"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "40"}
        self.process, self.terminal = pty.fork()
        if self.process == 0:
            # The process of the tests may ignore or hold back Ctrl-C.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.execve(sys.executable, [sys.executable, "-m", "dialogkit", *words], environment)
        self.shown = Shown(self.terminal)

    def type(self, keys: str) -> None:
        os.write(self.terminal, keys.encode())

    def says(self, keys: str, answer: str) -> str:
        """Type keys, and return what is shown before an answer; then wait for the prompt."""
        self.type(keys)
        before = self.shown.until(answer)
        self.shown.until("> ")
        return before

    def ends(self) -> int:
        """Return the exit code."""
        end = time.monotonic() + 60
        done, status = 0, 0
        while not done and time.monotonic() < end:
            time.sleep(0.1)
            done, status = os.waitpid(self.process, os.WNOHANG)
        os.close(self.terminal)
        if not done:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        assert done == self.process
        return os.waitstatus_to_exitcode(status)


@pytest.mark.faults
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_in_a_terminal_a_paste_is_one_turn_and_what_is_typed_meanwhile_waits(trained: Trained) -> None:
    typing = Typing(trained)
    shown = typing.shown
    shown.until("> ")
    # One that comes in the moment between the prompt and the wait for a key is only seen with the next key.
    for _ in range(20):
        typing.type("\x03")
        if shown.within("Ctrl-D leaves", seconds=2):
            break
    shown.until("Ctrl-D leaves")
    shown.until("> ")
    # What is pasted is one turn, and what is typed during the reply waits for the next prompt.
    reply = typing.says("\x1b[200~Hello!\rHow are\ryou?\x1b[201~\n", "stopped by ")
    assert "^C" not in reply
    typing.says("/undo\n", "removed: Hello!\r\nHow are\r\nyou?")
    typing.says("Tell me\\\nmore.\n", "stopped by ")
    typing.says("/undo\n", "removed: Tell me\r\nmore.")
    typing.says("/set temperature 0\n", "temperature is 0")
    typing.type("Hello!\n")
    shown.until("\x1b[?2004l")  # the end of the prompt
    shown.begin()
    typing.type("/undo\n")
    reported = shown.until("stopped by ")
    assert "/undo" not in reported
    shown.until("removed: Hello!")
    shown.until("> ")
    typing.type("\x04")
    assert typing.ends() == 0
