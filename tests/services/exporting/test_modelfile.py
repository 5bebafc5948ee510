"""The Modelfile asks Ollama for what dialogkit does: the same turns, ends and settings."""

import re

import pytest
from jinja2 import Environment

from dialogkit.config.generate import GenerateConfig
from dialogkit.dialog import TurnFormat, native_format, plain_format, turns_format
from dialogkit.services.exporting.modelfile import go_template, modelfile

FORMATS = [native_format(), plain_format("<|endoftext|>"), turns_format("</s>", "<s>")]
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hello,\n{you}! "},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Why?"},
]


def in_jinja(template: str) -> str:
    """Return a template of Go, of the kind that is written, in Jinja."""
    template = template.replace("{{ range .Messages }}", "{% for m in messages %}")
    template = re.sub(r'\{\{ (else )?if eq \.Role ("\w+") \}\}', r"{% \1if m.role == \2 %}", template)
    template = template.replace("{% else if", "{% elif").replace("{{ .Content }}", "{{ m.content }}")
    assert template.count("{{ end }}") == 2
    return template.replace("{{ end }}", "{% endif %}", 1).replace("{{ end }}", "{% endfor %}")


@pytest.mark.parametrize("turn_format", FORMATS, ids=lambda one: one.name)
def test_ollamas_template_writes_what_the_chat_template_writes(turn_format: TurnFormat) -> None:
    ours = Environment().from_string(turn_format.template())
    theirs = Environment().from_string(in_jinja(go_template(turn_format)))
    for count in (2, 4):
        wanted = ours.render(messages=MESSAGES[:count], add_generation_prompt=True)
        assert theirs.render(messages=MESSAGES[:count]) == wanted


def test_a_modelfile_has_the_file_the_stops_and_the_settings() -> None:
    text = modelfile(
        "mine.gguf",
        native_format(),
        stops=["<|end_of_turn|>", "<|end_of_text|>"],
        context=1_048_576,
        sampling=GenerateConfig(temperature=0.5),
    )
    first, template, *parameters = text.splitlines()
    assert first == "FROM ./mine.gguf"
    assert template == f'TEMPLATE """{go_template(native_format())}"""'
    assert parameters == [
        'PARAMETER stop "<|end_of_turn|>"',
        'PARAMETER stop "<|end_of_text|>"',
        "PARAMETER num_ctx 1048576",
        "PARAMETER num_predict 128",
        "PARAMETER temperature 0.5",
        "PARAMETER top_k 50",
        "PARAMETER top_p 0.95",
        "PARAMETER repeat_penalty 1.1",
    ]


def test_a_template_of_the_models_own_is_left_to_ollama() -> None:
    text = modelfile("mine.gguf", None, stops=["</s>"], context=64, sampling=GenerateConfig())
    assert "TEMPLATE" not in text
