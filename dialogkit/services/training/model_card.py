"""The model card (README.md) of a trained model."""

from pathlib import Path

from dialogkit.config.load import HUB_ID
from dialogkit.text import counted
from dialogkit.tracking.record import RunRecord
from dialogkit.tracking.run_dir import SAMPLES_FILE

_ADAPTER = "This folder contains only an adapter: loading it requires peft and those weights."
_RESEARCH = "- Alpaca-GPT4 is for research only, and so is a model trained on it."


def model_card(record: RunRecord) -> str:
    """Return the card: data, licence, settings and results, all from the run's record."""
    config, data = record.config, record.data
    model, train = config["model"], config["train"]
    source = model["source"]
    base = f"`{source}`" if source else "random weights (trained from scratch)"
    from_hub = source is not None and HUB_ID.match(source) and not Path(source).exists()
    license_id = "cc-by-nc-4.0" if "CC BY-NC 4.0" in (data.license or "") else "other"
    is_lora = train.get("method") == "lora"
    is_adapter = is_lora and not train["merge"]
    lines = [
        "---",
        f"library_name: {'peft' if is_adapter else 'transformers'}",
        "pipeline_tag: text-generation",
        f"license: {license_id}",
        *([f"base_model: {source}"] if from_hub else []),
        "tags: [dialogkit, conversational]",
        "---",
        "",
        f"# {model['name']}",
        "",
        f"A dialog model of {record.model.parameters:,} parameters ({record.model.architecture or '?'}), "
        f"trained with dialogkit {record.versions.get('dialogkit', '')} from {base}.",
        "",
        *([_ADAPTER, ""] if is_adapter else []),
        "## Data",
        "",
        f"- dataset: {data.dataset}, format {data.format}, revision `{(data.revision or '')[:16]}`",
        f"- licence of the data: {data.license or 'unknown, ask the owner of the dataset'}",
        *([_RESEARCH] if license_id == "cc-by-nc-4.0" else []),
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
        f"| steps | {record.schedule.total_steps} |",
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
    for name in ("nats_per_token", "perplexity", "bits_per_byte", "accuracy"):
        before = record.metrics.get(f"before/{name}")
        shown = f"{before:.4g}" if before is not None else ""
        lines.append(f"| {name.replace('_', ' ')} | {shown} | {record.metrics[f'final/{name}']:.4g} |")
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
        "A model of this size makes mistakes and invents facts; do not rely on what it says.",
        "",
    ]
    return "\n".join(lines)


def _lora(record: RunRecord) -> str:
    train = record.config["train"]
    rank, alpha, dropout = (train[f"lora_{name}"] for name in ("rank", "alpha", "dropout"))
    return (
        f"LoRA, rank {rank}, alpha {2 * rank if alpha is None else alpha:g}, dropout {dropout:g}: "
        f"{record.model.trainable_parameters:,} parameters learned"
    )
