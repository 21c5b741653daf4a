"""`python -m potloc_fast` is the command line."""

from potloc_fast.cli import main

main()
