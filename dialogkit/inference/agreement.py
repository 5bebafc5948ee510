"""How often two models choose the same next token."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from dialogkit.dialog import ChatTokenizer


class Agreement(NamedTuple):
    """The tokens of a greedy reply, and how many of them the other model chooses at the same place."""

    tokens: int
    equal: int


@torch.no_grad()
def agreement_on(
    model: Any, other: Any, tokenizer: ChatTokenizer, prompt: Sequence[int], *, context: int, longest: int
) -> Agreement:
    """Let a model answer a prompt greedily, and count the tokens that another one chooses after the same ones.

    Each token is compared after the reply of the first model so far, so one that differs does not make all that
    follow differ. If all are equal, so are the two greedy replies.

    Args:
        model: the model whose reply counts.
        other: the model to compare.
        tokenizer: that of both.
        prompt: the ids before the reply.
        context: the longest sequence, in tokens.
        longest: the longest reply, in tokens.
    """
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    asked = torch.tensor([list(prompt)[-(context - longest) :]], device=device)
    greedy = GenerationConfig(
        max_new_tokens=longest,
        do_sample=False,
        eos_token_id=sorted(tokenizer.reply_stop_ids),
        pad_token_id=tokenizer.pad_id,
    )
    own = model.generate(input_ids=asked, attention_mask=torch.ones_like(asked), generation_config=greedy)
    # Both are asked in the same way: batches of other shapes round otherwise.
    chosen, others = (each(input_ids=own[:, :-1], use_cache=False).logits.argmax(-1) for each in (model, other))
    same = (chosen == others)[0, asked.shape[1] - 1 :]
    return Agreement(len(same), int(same.sum()))
