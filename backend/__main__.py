"""The command line: `python -m backend COMMAND …`, the same option models as the page, from flags or a recipe file."""

import os
import signal
import sys
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliApp, CliSubCommand, SettingsConfigDict

from backend import commands
from backend.deploy.command import Deploy
from backend.errors import AppError
from backend.options import words


class Commands(BaseSettings):
    """How commands are read, whatever they are called by."""

    model_config = SettingsConfigDict(
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_enforce_required=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        extra="ignore",
    )

    def cli_cmd(self) -> None:
        """Run the command that was named."""
        CliApp.run_subcommand(self)


class WeightsmithCommands(Commands):
    """Merge, quantize, measure, chat with and publish models of the Hugging Face Hub."""

    model_config = SettingsConfigDict(cli_prog_name="python -m backend")

    quantize: CliSubCommand[commands.Quantize]
    finetune: CliSubCommand[commands.Finetune]
    preview: CliSubCommand[commands.PreviewRows]
    merge: CliSubCommand[commands.Merge]
    evaluate: CliSubCommand[commands.Evaluate]
    check: CliSubCommand[commands.Check]
    chat: CliSubCommand[commands.Chat]
    compare: CliSubCommand[commands.Compare]
    serve: CliSubCommand[commands.Serve]
    publish: CliSubCommand[commands.Publish]
    deploy: CliSubCommand[Deploy]
    estimate: CliSubCommand[commands.Estimate]
    run: CliSubCommand[commands.Run]


def main(argv: list[str], known: type[Commands] = WeightsmithCommands) -> int:
    """Run a command of those known; 0, or 1 with one line on standard error, or 2 for wrong usage, as argparse does."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        CliApp.run(known, cli_args=argv or ["--help"])
        sys.stdout.flush()
    except ValidationError as e:
        _say("; ".join(f"--{str(error['loc'][-1]).replace('_', '-')} {words(error)}" for error in e.errors()))
        return 2
    except AppError as e:
        return _say("; ".join(str(e).splitlines()))
    except BrokenPipeError:  # whoever read the output has stopped, and wants to hear no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        place = f" '{e.filename}'" if e.filename else ""
        return _say(f"Could not read or write{place}. {e.strerror or e}: check the path and the disk.")
    except KeyboardInterrupt:
        return _say("Canceled.")
    return 0


def _say(text: str) -> int:
    sys.stderr.write(f"error: {text}\n")
    return 1


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
