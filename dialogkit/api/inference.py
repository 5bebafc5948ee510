"""Generate and evaluate from Python, with a sign of life where it takes long."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dialogkit.api.reporter import shown_progress
from dialogkit.config.generate import GenerateConfig
from dialogkit.config.paths import DEFAULT_OUTPUT
from dialogkit.config.problems import list_problems
from dialogkit.errors import ConfigError, did_you_mean
from dialogkit.hints import Change
from dialogkit.inference.results import StreamSink
from dialogkit.services import generate as generating
from dialogkit.services.evaluate import EvaluateResult, evaluate_models
from dialogkit.services.evaluation.evaluator import ProgressSink
from dialogkit.services.evaluation.request import EvaluateRequest
from dialogkit.services.generate import GenerateResult
from dialogkit.services.inference import Models, names_of
from dialogkit.system.loading import LOADING, loads_libraries


def generate(
    model: Models = None,
    prompts: str | Sequence[str] | None = None,
    *,
    system: str | None = None,
    config: GenerateConfig | None = None,
    output: str | Path = DEFAULT_OUTPUT,
    device: str = "auto",
    int8: bool = False,
    on_text: StreamSink | None = None,
    quiet: bool = False,
    **sampling: Any,
) -> GenerateResult:
    """Return replies to prompts.

    Args:
        model: name, run, folder, hub id or result of `train`, or several; None is the newest finished run.
        prompts: one prompt or several; None takes the built-in test prompts.
        system: system text before every prompt.
        config: sampling settings.
        output: folder of models and runs.
        device: auto, cpu, cuda or mps.
        int8: round weights to 8 bits, which makes replies faster on a CPU.
        on_text: receives the text of a single reply as it grows.
        quiet: do not say that libraries are loaded.
        sampling: single settings of `GenerateConfig`, such as `temperature=0`.

    Raises: ModelError, UnavailableError, ConfigError; OutOfMemoryError if not even one reply fits into memory.
    """
    chosen = _with_settings(config, sampling)
    with shown_progress(quiet=quiet or not loads_libraries()) as report:
        report(LOADING, 0.0)
        return generating.generate(
            model,
            prompts,
            system=system,
            config=chosen,
            output=output,
            device=device,
            int8=int8,
            on_text=on_text,
        )


def evaluate(
    model: Models = None,
    *,
    dataset: str | None = None,
    samples: int | None = None,
    max_bad_rows: int = 0,
    whole: bool = False,
    batch_size: int = 8,
    worst: int = 0,
    quick: bool = False,
    tasks: str | Sequence[str] = (),
    use_model_settings: bool = False,
    wandb: str | None = None,
    output: str | Path = DEFAULT_OUTPUT,
    device: str = "auto",
    quiet: bool = False,
    on_progress: ProgressSink | None = None,
) -> EvaluateResult:
    """Return how well one model or several predict held-out answers, use the prompt and reply; in float32.

    The metrics of a run's own model are stored in its folder, beside those on other numbers of dialogs, and sent
    to its W&B run, and its page is rewritten.

    Args:
        model: name, run, folder, hub id or result of `train`, or several; None is the newest finished run.
        dataset: a dataset as `train` takes it; None is the one of the run, or `starter`.
        samples: evaluate on this many held-out dialogs, those with the lowest content hash. None: all.
        max_bad_rows: malformed rows of another dataset's file to skip.
        whole: score every dialog of the dataset, the held-out ones first.
        batch_size: dialogs per batch; does not change the metrics.
        worst: number of worst dialogs for which to generate a reply as well.
        quick: score the answers only: no replies, no baselines.
        tasks: tasks of the lm-evaluation-harness, by name or file; `samples` limits their questions as well.
        use_model_settings: sample replies with the settings that come with each model; tasks keep their own.
        wandb: W&B mode: auto, online, offline or disabled; None is that of the run. A run that was trained without
            W&B stays without it.
        output: folder of models and runs.
        device: auto, cpu, cuda or mps.
        quiet: show no progress.
        on_progress: receives the current stage and the fraction of the work that is done. None: a notebook or a
            terminal shows them.

    Raises: ModelError, DataError, ConfigError, UnavailableError.
    """
    request = EvaluateRequest(
        models=names_of(model),
        dataset=dataset,
        samples=samples,
        max_bad_rows=max_bad_rows,
        whole=whole,
        batch_size=batch_size,
        worst=worst,
        quick=quick,
        tasks=tuple([tasks] if isinstance(tasks, str) and tasks else tasks),
        use_model_settings=use_model_settings,
        wandb=wandb,
        output=Path(output),
        device=device,
    )
    with shown_progress(quiet=quiet or on_progress is not None) as report:
        return evaluate_models(request, on_progress=on_progress or report)


def _with_settings(config: GenerateConfig | None, settings: Mapping[str, Any]) -> GenerateConfig:
    """Return the sampling settings with some changed. Raises: ConfigError for one that is unknown or not valid."""
    usual = GenerateConfig()
    if not isinstance(config, GenerateConfig | None):
        is_known = isinstance(config, Mapping) and config.keys() <= GenerateConfig.model_fields.keys()
        hint = Change(config if is_known and config else {"temperature": usual.temperature})
        raise ConfigError(f"config must be a GenerateConfig, not {config!r}", hint=hint)
    known = [name for name in GenerateConfig.model_fields if name != "test_prompts"]
    for name, value in settings.items():
        if name not in GenerateConfig.model_fields:
            is_section = isinstance(value, Mapping) and value.keys() <= set(known)
            meant = "" if is_section else did_you_mean(name, known)
            nearest = next((each for each in known if repr(each) in meant), None)
            right = value if is_section else {nearest: value} if nearest else None
            raise ConfigError(
                f"unknown argument {name!r}{meant}; how to sample is set by {', '.join(known)}",
                hint=Change(right or {"temperature": usual.temperature}),
            )
    try:
        # Only what was set counts as asked for; see `sampling_of`.
        return GenerateConfig(**{**(config or usual).model_dump(exclude_unset=True), **settings})
    except ValidationError as error:
        problem = list_problems(error)[0]
        name = problem.setting.partition(".")[0]
        raise ConfigError(problem, hint=Change({name: getattr(usual, name)})) from None
