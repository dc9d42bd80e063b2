"""The command line as a test types it, in this process."""

import json

from backend.__main__ import main


def succeeds(capsys, *argv):
    """Run a command with --json and give what it printed."""
    code = main([*argv, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def fails(capsys, *argv, code=1):
    """Run a command that must fail with one line, and give the line."""
    assert main(list(argv)) == code
    out, err = capsys.readouterr()
    assert out == ""
    line = err.rstrip("\n").splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in err
    return line
