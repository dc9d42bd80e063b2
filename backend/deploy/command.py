"""The command `deploy`: this app as a Space of the user's, after it has said what that costs."""

import sys

from huggingface_hub import get_token
from pydantic import Field
from pydantic_settings import CliPositionalArg

from backend.commands import Command, with_options
from backend.deploy import DeployOptions
from backend.deploy.space import deploy, plan
from backend.errors import SpecError
from backend.options import parse


class _Deploy(Command):
    """Make this app a Space of yours, or update one that was made so; says first what it costs."""

    space: CliPositionalArg[str] = Field(description=DeployOptions.model_fields["repo_id"].description)
    yes: bool = Field(False, description="Do not ask: the cost is known.")

    def cli_cmd(self) -> None:
        """Run it."""
        options, token = parse(DeployOptions, {"repo_id": self.space, **self.given(DeployOptions)}), get_token()
        planned = plan(options, token)
        sys.stderr.write(f"{planned.words}\n")
        if not self.yes:
            _agree()
        assert token
        done = deploy(planned, token)
        self.say(done.model_dump(), f"Deployed to {done.location}; it builds for some minutes before it answers.")


def _agree() -> None:
    """Ask whether it shall be done.

    Raises:
        SpecError: It shall not, or there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise SpecError("Nothing was made: add --yes if that is what you want.")
    sys.stderr.write("Deploy? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise SpecError("Nothing was made.")


Deploy = with_options(_Deploy, {"deploy": DeployOptions}, leave_out=("repo_id",))
