"""The Modelfile with which Ollama runs a GGUF file as dialogkit runs the model."""

from collections.abc import Sequence

from dialogkit.config.generate import GenerateConfig
from dialogkit.dialog import TurnFormat

_ROLES = ("system", "user", "assistant")


def modelfile(
    file: str, turn_format: TurnFormat | None, *, stops: Sequence[str], context: int, sampling: GenerateConfig
) -> str:
    """Return the text of a Modelfile.

    Args:
        file: the name of the GGUF file beside it.
        turn_format: the chat format. None: Ollama recognises the template in the file, if it knows it.
        stops: the texts of the tokens that end a reply.
        context: the longest dialog, in tokens.
        sampling: how to sample. Ollama's penalty counts the tokens of the prompt as well.
    """
    template = [] if turn_format is None else [f'TEMPLATE """{go_template(turn_format)}"""']
    parameters = {
        "num_ctx": context,
        "num_predict": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "repeat_penalty": sampling.repetition_penalty,
    }
    lines = [
        f"FROM ./{file}",
        *template,
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        *(f"PARAMETER {name} {value}" for name, value in parameters.items()),
    ]
    return "".join(f"{line}\n" for line in lines)


def go_template(turn_format: TurnFormat) -> str:
    """Return a chat format in Go's template language, the same as `TurnFormat.template` in Jinja."""
    branches = "{{ else ".join(
        f'if eq .Role "{role}" }}}}{"".join(getattr(turn_format, role))}{turn_format.separator}'
        f"{{{{ .Content }}}}{turn_format.end_of_turn}"
        for role in _ROLES
    )
    turns = f"{{{{ range .Messages }}}}{{{{ {branches}{{{{ end }}}}{{{{ end }}}}"
    return f"{turn_format.start}{turns}{''.join(turn_format.assistant)}"
