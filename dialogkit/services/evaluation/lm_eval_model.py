"""Asks a dialog model the questions of a task as its users ask it.

A question is a user's turn in the model's own chat format, and an answer is judged as the assistant's turn, token
for token as a training renders it. How probable an answer is, and what the model replies, is measured by the same
code as everything else.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dialogkit.config.generate import GenerateConfig
from dialogkit.data.tokens import pack
from dialogkit.dialog import Message
from dialogkit.errors import DataError
from dialogkit.services.evaluation.scoring import Subject, score

if TYPE_CHECKING:
    from dialogkit.services.runs.loading import LoadedModel

SEED = 1234
"""Of sampled replies, and of the examples that stand before a question; the harness has the same."""


class Asked(str):
    """The text of a prompt, which knows the messages that it was made of."""

    messages: tuple[Message, ...]
    begun: str
    """What the answer begins with, by the task."""


class Respondent:
    """A dialog model with the methods that the harness calls; each takes requests and answers them in order."""

    def __init__(
        self, loaded: "LoadedModel", names: Sequence[str], *, batch_size: int, told: Callable[[str, float], None]
    ) -> None:
        super().__init__()
        self._subject = Subject(loaded.model, loaded.tokenizer, loaded.context, loaded.device)
        self._batch_size, self._told = batch_size, told
        self._what = f"answering {', '.join(names[:2])}{' and more' if len(names) > 2 else ''}"
        self.cut: dict[str, set[int]] = {}
        """Questions of each task whose beginning did not fit into the context, by their numbers."""

    @property
    def tokenizer_name(self) -> str:
        """Name under which the harness would keep prompts, if it were to."""
        return "dialogkit"

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> Asked:
        """Return the prompt of a dialog; without `add_generation_prompt` its last message is an answer begun."""
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]  # type: ignore[arg-type]
        begun = "" if add_generation_prompt else messages.pop().content
        try:
            ids = self._subject.tokenizer.encode_prompt(messages)
        except DataError:  # a template that knows no system text; the harness leaves it out as well
            messages = [message for message in messages if message.role != "system"]
            ids = self._subject.tokenizer.encode_prompt(messages)
        asked = Asked(self._subject.tokenizer.hf.decode(ids) + begun)
        asked.messages, asked.begun = tuple(messages), begun
        return asked

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return the nats of each answer, negative, and whether it is the most probable one token by token."""
        pairs = [self._fitting(request, *self._encoded(*request.args[:2])) for request in requests]
        return self._scored(pairs)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return the nats of each whole text, negative, in windows as long as the context."""
        room = self._subject.context - 1
        pairs: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self._ids(request.args[0])
            for start in range(0, len(ids), room):
                end = min(start + room, len(ids))
                # The last window reaches back, so that it is as long as the others.
                before = ids[max(0, end - room - 1) : start] if start else [self._prefix]
                pairs.append((before, ids[start:end]))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, (nats, _) in zip(owners, self._scored(pairs), strict=True):
            sums[number] += nats
        return sums

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the reply to each prompt, up to the first of the texts that end it."""
        from dialogkit.engine.attention import plain_attention
        from dialogkit.inference.replies import continue_prompts

        subject, texts = self._subject, [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        done = 0
        for numbers in alike.values():
            settings = requests[numbers[0]].args[1]
            config, stops = self._sampling(settings)
            for start in range(0, len(numbers), self._batch_size):
                chosen = numbers[start : start + self._batch_size]
                encoded = [self._prompt_ids(requests[number].args[0]) for number in chosen]
                with plain_attention(subject.model):
                    replies = continue_prompts(
                        subject.model,
                        subject.tokenizer,
                        encoded,
                        config,
                        context=subject.context,
                        device=subject.device,
                        batch_size=self._batch_size,
                    )
                for number, reply in zip(chosen, replies, strict=True):
                    texts[number] = _until(reply.text, stops)
                    self._count_cut(requests[number], cut=reply.cut_tokens > 0)
                done += len(chosen)
                self._told(self._what, done / len(requests))
        return texts

    def _scored(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        done = 0

        def behind(number: int) -> None:
            nonlocal done
            done += number
            self._told(self._what, done / len(pairs))

        if not pairs:
            return []
        # Bytes are of no interest here.
        packed = pack(pairs, [1] * len(pairs))
        found = score(self._subject, packed, batch_size=self._batch_size, done=behind)
        greedy = found.correct == found.tokens
        return [(-float(nats), bool(first)) for nats, first in zip(found.nats, greedy, strict=True)]

    @property
    def _prefix(self) -> int:
        """The id before a text that nothing stands before."""
        begins: int | None = self._subject.tokenizer.hf.bos_token_id
        return self._subject.tokenizer.end_of_turn_id if begins is None else begins

    def _ids(self, text: str) -> list[int]:
        return list(self._subject.tokenizer.hf(text)["input_ids"])

    def _prompt_ids(self, prompt: str) -> list[int]:
        """Return the ids up to where the reply is to begin."""
        if not isinstance(prompt, Asked):
            return self._ids(prompt)
        ids = self._subject.tokenizer.encode_prompt(prompt.messages)
        return ids + self._answer_ids(prompt, "") if prompt.begun else ids

    def _encoded(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Return the ids of a prompt and those of an answer to it."""
        if isinstance(prompt, Asked):
            start, whole = (
                len(self._answer_ids(prompt, "")) if prompt.begun else 0,
                self._answer_ids(prompt, answer),
            )
            return self._subject.tokenizer.encode_prompt(prompt.messages) + whole[:start], whole[start:]
        stripped = prompt.rstrip()  # a blank belongs to the word after it
        if not stripped:
            return [self._prefix], self._ids(prompt + answer)
        ids = self._ids(stripped)
        return ids, self._ids(prompt + answer)[len(ids) :]

    def _answer_ids(self, prompt: Asked, answer: str) -> list[int]:
        """Return the ids of an answer with what it begins with, as a training has them, its end left out."""
        dialog = (*prompt.messages, Message("assistant", prompt.begun + answer))
        encoded = self._subject.tokenizer.encode_dialogs([dialog])[0]
        start = len(self._subject.tokenizer.encode_prompt(prompt.messages))
        end = max((i for i, learned in enumerate(encoded.supervised) if learned), default=start)
        return encoded.input_ids[start:end]

    def _fitting(self, request: Any, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        """Return a prompt without the beginning that the context has no room for."""
        if not answer:
            raise DataError(f"the task {request.task_name!r} has an empty answer")
        if len(answer) >= self._subject.context:
            raise DataError(
                f"the task {request.task_name!r} has an answer of {len(answer):,} tokens, and the model a context "
                f"of {self._subject.context:,}"
            )
        over = max(0, len(prompt) + len(answer) - self._subject.context)
        self._count_cut(request, cut=over > 0)
        return prompt[over:], answer

    def _count_cut(self, request: Any, *, cut: bool) -> None:
        if cut:
            self.cut.setdefault(request.task_name, set()).add(request.doc_id)

    def _sampling(self, settings: Mapping[str, Any]) -> tuple[GenerateConfig, list[str]]:
        stops = settings.get("until") or []
        sampled = bool(settings.get("do_sample"))
        longest = int(settings.get("max_gen_toks", settings.get("max_new_tokens", 256)))
        config = GenerateConfig(
            max_new_tokens=min(longest, self._subject.context),
            temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
            top_k=int(settings.get("top_k", 0)) if sampled else 0,
            top_p=float(settings.get("top_p", 1.0)) if sampled else 1.0,
            repetition_penalty=1.0,
            seed=SEED,
        )
        return config, [stops] if isinstance(stops, str) else list(stops)


def _until(text: str, stops: Iterable[str]) -> str:
    """Return a text up to the first of the texts that end it."""
    return text[: min((text.index(stop) for stop in stops if stop and stop in text), default=len(text))]
