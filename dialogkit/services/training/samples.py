"""Replies of the model in training: to the fixed test prompts, and to the first turns of held-out dialogs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dialogkit.dialog import Message
from dialogkit.distributed import process_group
from dialogkit.inference.results import ReplyResult, reply_results
from dialogkit.services.evaluation.probes import ProbeResult, right_answers
from dialogkit.services.evaluation.questions import mark
from dialogkit.services.evaluation.scoring import first_exchanges

if TYPE_CHECKING:
    from dialogkit.services.training.setup import TrainingSetup

LONGEST_SHORT = 32
"""Tokens of a reply that is made while a model trains."""
FEW_QUESTIONS = 40
"""Checked questions that are asked before training and at each evaluation, in one batch; at the end more are."""


def reply_to_tests(setup: "TrainingSetup", *, longest: int | None = None) -> list[ReplyResult]:
    """Reply to the test prompts in at most `longest` tokens."""
    return reply_to_all(setup, held_out=0, longest=longest)[0]


def reply_to_all(
    setup: "TrainingSetup", *, tests: int | None = None, held_out: int | None = None, longest: int | None = None
) -> tuple[list[ReplyResult], list[ReplyResult]]:
    """Reply to the test prompts, and to the first turns of held-out dialogs, in one batch; also between steps.

    Args:
        setup: the model.
        tests: number of the first test prompts; None for all.
        held_out: number of the first held-out dialogs, whose answers are the references; None as in the settings.
        longest: most tokens of a reply; None as in the settings.
    """
    prompts = setup.config.generate.test_prompts[:tests]
    encoded = [setup.tokenizer.encode_prompt([Message("user", prompt)]) for prompt in prompts]
    dialogs = setup.data.evaluation
    number = min(setup.config.tracking.held_out_replies if held_out is None else held_out, len(dialogs))
    pairs = first_exchanges(dialogs.select(range(number)), setup.tokenizer)
    replies = _replies(
        setup,
        [*prompts, *(pair.prompt for pair in pairs)],
        [*encoded, *(pair.prompt_ids for pair in pairs)],
        [*[None] * len(prompts), *(pair.answer for pair in pairs)],
        longest=longest,
    )
    return replies[: len(prompts)], replies[len(prompts) :]


def answer_checked(setup: "TrainingSetup", *, final: bool = False) -> ProbeResult:
    """Return how many checked questions the model answers right; nothing if none are asked.

    Before the end of a run these are a few, with short replies.
    They are the most probable replies: chance does not blur the curve, and the random state stays as it is.
    """
    asked = setup.questions if final else setup.questions[:FEW_QUESTIONS]
    if not asked or not setup.config.tracking.replies_at_evaluations:
        return ProbeResult({}, {})
    texts, prompts = [one.text for one in asked], [one.prompt_ids for one in asked]
    longest = None if final else LONGEST_SHORT
    replies = _replies(setup, texts, prompts, longest=longest, temperature=0.0, batch_size=FEW_QUESTIONS)
    # Off the main process there may be no replies.
    return right_answers(mark(asked, [reply.reply for reply in replies]) if replies else [])


def replies_at_evaluation(setup: "TrainingSetup", metrics: Mapping[str, float]) -> list[ReplyResult] | None:
    """Return short replies of the model at an evaluation; None at another point, or if none are asked for."""
    tracking = setup.config.tracking
    tests, held_out = tracking.replies_at_evaluations, tracking.held_out_replies
    if not tests + held_out or "eval/nats_per_token" not in metrics:
        return None
    of_tests, of_held_out = reply_to_all(setup, tests=tests, longest=LONGEST_SHORT)
    return of_tests + of_held_out


def _replies(
    setup: "TrainingSetup",
    prompts: Sequence[str],
    encoded: Sequence[Sequence[int]],
    references: Sequence[str | None] = (),
    *,
    longest: int | None,
    temperature: float | None = None,
    batch_size: int = 32,
) -> list[ReplyResult]:
    from dialogkit.distributed.sharding import is_sharded
    from dialogkit.engine.attention import plain_attention
    from dialogkit.engine.loss import own_forward
    from dialogkit.inference.replies import continue_prompts

    # Every rank has to call a sharded model equally often.
    if not (process_group.is_main_process() or is_sharded(setup.model)):
        return []
    config = setup.config.generate
    if longest is not None:
        config = config.model_copy(update={"max_new_tokens": min(longest, config.max_new_tokens)})
    if temperature is not None:
        config = config.model_copy(update={"temperature": temperature})
    with own_forward(setup.model), plain_attention(setup.model):
        replies = continue_prompts(
            setup.model,
            setup.tokenizer,
            encoded,
            config,
            context=setup.context,
            device=setup.runtime.device,
            batch_size=batch_size,
            should_stop=setup.should_abort,
        )
    return reply_results(setup.config.model.name, prompts, replies, references)
