"""`deploy`: this app as a Space of the user's, after it has said what that costs."""

import sys

from pydantic import Field

from backend.cli.command import Argument, Command, with_options
from backend.cli.names import hub_token
from backend.deploy.options import DeployOptions
from backend.errors import SpecError
from backend.options import parse


class _Deploy(Command):
    space: Argument[str] = Field(description=DeployOptions.model_fields["repo_id"].description)
    yes: bool = Field(False, description="Do not ask: the cost is known.")

    def run(self) -> None:
        from backend.deploy.space import deploy, plan

        options, token = parse(DeployOptions, {"repo_id": self.space, **self.given(DeployOptions)}), hub_token()
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


COMMAND = with_options(_Deploy, {"deploy": DeployOptions}, leave_out=("repo_id",))
