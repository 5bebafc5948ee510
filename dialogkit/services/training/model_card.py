"""The model card (README.md) of a trained model."""

import re
from pathlib import Path

from dialogkit.config.load import HUB_ID
from dialogkit.text import counted, known_from_training
from dialogkit.tracking.metric_specs import HELD_OUT
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import SAMPLES_FILE

ADAPTER_ONLY = "This folder contains only an adapter: loading it requires peft and those weights."
_HUB_LICENSES = {
    *("apache-2.0", "bsd-3-clause", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-3.0"),
    *("cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "mit", "odbl", "odc-by", "pddl", "unlicense"),
}
"""The names of licences that are common for data, as the hub writes them."""
_FILES = """
- `config.json`: the shape of the model
- `generation_config.json`: the tokens that end a reply; no sampling settings
- `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`: the tokenizer and the chat format
- `training_args.bin`: HF's training arguments, as a Python pickle. Loading a pickle can run code, and the model
  does not need it: load it only if you trust its origin, or delete it
""".strip()
_RESEARCH = "- Alpaca-GPT4 is for research only, and so is a model trained on it."


def model_card(record: RunRecord) -> str:
    """Return the card: data, licence, settings and results, all from the run's record."""
    config, data = record.config, record.data
    model, train = config["model"], config["train"]
    source = model["source"]
    base = f"`{source}`" if source else "random weights (trained from scratch)"
    from_hub = source is not None and HUB_ID.match(source) and not Path(source).exists()
    license_name = license_id(data.license)
    is_lora = train.get("method") == "lora"
    is_adapter = is_lora and not train["merge"]
    lines = [
        "---",
        f"library_name: {'peft' if is_adapter else 'transformers'}",
        "pipeline_tag: text-generation",
        f"license: {license_name}",
        *([f"base_model: {source}"] if from_hub else []),
        "tags: [dialogkit, conversational]",
        "---",
        "",
        f"# {model['name']}",
        "",
        f"A dialog model of {record.model.parameters:,} parameters ({record.model.architecture or '?'}), "
        f"trained with dialogkit {record.versions.get('dialogkit', '')} from {base}.",
        "",
        *([ADAPTER_ONLY, ""] if is_adapter else []),
        "## Data",
        "",
        f"- dataset: {data.dataset}, format {data.format}, revision `{(data.revision or '')[:16]}`",
        f"- licence of the data: {data.license or 'unknown, ask the owner of the dataset'}",
        *([_RESEARCH] if license_name == "cc-by-nc-4.0" else []),
        *([f"- licence of the base weights: {model['license']}"] if model.get("license") else []),
        f"- {counted(data.train_dialogs or 0, 'training dialog')}, "
        f"{counted(data.train_supervised_tokens or 0, 'supervised token')}; "
        f"{counted(data.eval_dialogs or 0, 'dialog')} held out "
        + ("as the rows of the dataset say" if data.split_by == "rows" else "by content hash"),
        "",
        "## Settings",
        "",
        "| setting | value |",
        "|---|---|",
        f"| steps | {_steps(record)} |",
        *(
            f"| {name.replace('_', ' ')} | {train[name]} |"
            for name in ("batch_size", "learning_rate", "schedule", "warmup_fraction", "weight_decay", "seed")
        ),
        *([f"| method | {_lora(record)} |"] if is_lora else []),
        f"| precision | {record.runtime.precision} ({record.runtime.precision_reason}) |",
        f"| device | {record.runtime.device_name} |",
        "",
        "## Results on the held-out dialogs",
        "",
        "| metric | before training | after |",
        "|---|---|---|",
    ]
    for name, (title, form) in HELD_OUT.items():
        if f"final/{name}" not in record.metrics:
            continue
        before = record.metrics.get(f"before/{name}")
        shown = "" if before is None else format(before, form)
        lines.append(f"| {title} | {shown} | {format(record.metrics[f'final/{name}'], form)} |")
    held_out = counted(data.eval_dialogs or 0, "held-out dialog")
    if known := known_from_training(held_out, data.known_prompts, data.known_answers):
        lines += ["", f"Note: {known}."]
    lines += [
        "",
        "Metrics are over all supervised tokens, in float32. The prompts and replies of the run are in "
        f"its folder, in `{SAMPLES_FILE}`.",
        "",
        "## Use",
        "",
        "```python",
        "from transformers import pipeline",
        'chat = pipeline("text-generation", model="PATH/TO/THIS/FOLDER")',
        'chat([{"role": "user", "content": "Hello!"}])',
        "```",
        "",
        "The repetition penalty of dialogkit counts the tokens of the reply alone; `repetition_penalty` of "
        "transformers counts those of the prompt as well.",
        "",
        "## Files",
        "",
        "- `adapter_model.safetensors`, `adapter_config.json`: the adapter's weights and settings"
        if is_adapter
        else "- `model.safetensors`, or several parts with an index: the weights",
        *_FILES.splitlines(),
        "",
        "A model of this size makes mistakes and invents facts; do not rely on what it says.",
        "",
    ]
    return "\n".join(lines)


def license_id(license: str | None) -> str:
    """Return the licence of the data as the hub writes it; `other` for one that it has no name for."""
    written = re.sub(r"\s*\(.*\)$", "", license or "").strip().lower().replace(" ", "-")
    return written if written in _HUB_LICENSES else "other"


def _steps(record: RunRecord) -> str:
    """Return the number of steps, and the one whose weights these are if it is not the last."""
    kept, made = record.metrics.get("train/kept_step"), record.metrics.get("train/steps")
    of_kept = "" if kept in (None, made) else f"; these are the weights of step {kept:,.0f}"
    return f"{record.schedule.total_steps}{of_kept}"


def _lora(record: RunRecord) -> str:
    train = record.config["train"]
    rank, alpha, dropout = (train[f"lora_{name}"] for name in ("rank", "alpha", "dropout"))
    return (
        f"LoRA, rank {rank}, alpha {2 * rank if alpha is None else alpha:g}, dropout {dropout:g}: "
        f"{record.model.trainable_parameters:,} parameters learned"
    )
