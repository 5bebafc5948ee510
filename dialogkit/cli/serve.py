"""`dialogkit serve`."""

from typing import Annotated

import typer

from dialogkit.cli import options
from dialogkit.cli.generate import sampling
from dialogkit.cli.output import Output


def serve_command(
    context: typer.Context,
    models: options.ModelsArgument = None,
    model_option: options.ModelsOption = None,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Address to listen on; any but loopback needs a key.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65_535, metavar="N", help="Port to listen on; 0: any free one.")
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help=r"Key that requests must give. \[DIALOGKIT_API_KEY]",
            show_default=False,
        ),
    ] = None,
    at_once: Annotated[
        int, typer.Option("--at-once", min=1, max=1024, metavar="N", help="Replies generated together.")
    ] = 32,
    queue: Annotated[
        int, typer.Option("--queue", min=1, max=100_000, metavar="N", help="Replies that may wait.")
    ] = 128,
    time_limit: Annotated[
        str, typer.Option("--time-limit", metavar="TIME", help="Longest time from a request to its reply.")
    ] = "5m",
    max_new_tokens: options.MaxNewTokensOption = None,
    temperature: options.TemperatureOption = None,
    top_k: options.TopKOption = None,
    top_p: options.TopPOption = None,
    repetition_penalty: options.RepetitionPenaltyOption = None,
    seed: options.SeedOption = None,
    use_model_settings: options.ModelSettingsOption = False,
    no_cuda: options.NoCudaOption = False,
    output_dir: options.OutputOption = "models",
) -> None:
    """Serve MODELs over HTTP: OpenAI's chat API, and a page to chat on."""
    from dialogkit.services.serve import Server

    output = Output()
    names = list(dict.fromkeys([*(models or []), *(model_option or [])]))
    seconds = options.seconds_of("--time-limit", time_limit, example="5m")
    config = sampling(context.params, "serve")
    with output.busy("loading the model"):
        server = Server(
            names or None,
            host=host,
            port=port,
            api_key=api_key,
            config=config,
            output=output_dir,
            device="cpu" if no_cuda else "auto",
            at_once=at_once,
            queue=queue,
            time_limit_s=seconds,
        )
    for line in server.notes:
        output.note(line)
    output.note(f"serving {', '.join(server.models)} at {server.url}; Ctrl-C stops")
    stopped_by = server.run()
    if stopped_by is not None:
        raise typer.Exit(128 + stopped_by)
