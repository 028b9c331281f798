"""`python -m leanlm` is the `leanlm` command."""

from leanlm.cli.main import run

run()
