"""`python -m tidemill.cli`."""

from tidemill.cli import program

program()
