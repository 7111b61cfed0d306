"""The Typer app and the one error boundary."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any

import typer

from vswin_cli import __version__
from vswin_cli.cli import convert, evaluate, finetune, inflate, inspect, output, predict, profile, zoo
from vswin_cli.errors import VswinError

app = typer.Typer(
    name="vswin",
    help="Video Swin Transformers: inflate, predict, evaluate, profile, finetune, convert.",
    no_args_is_help=True,
    add_completion=False,
    # A bug shows Python's own traceback: complete, and without the values of local variables.
    pretty_exceptions_enable=False,
)


def _bounded(command: Callable[..., None]) -> Callable[..., None]:
    """Known errors end in one line and an exit code; anything else is a bug and is not caught."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        output.prepare_streams()
        try:
            command(*args, **kwargs)
        except VswinError as error:
            output.print_error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            output.say("stopped by Ctrl-C")
            raise typer.Exit(130) from None

    return run


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


_COMMANDS: dict[str, Callable[..., None]] = {
    "inflate": inflate.inflate,
    "predict": predict.predict,
    "eval": evaluate.evaluate,
    "profile": profile.profile,
    "finetune": finetune.finetune,
    "convert": convert.convert,
    "inspect": inspect.inspect,
    "zoo": zoo.zoo,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_bounded(_command))
