"""`python -m visage.cli`: the command of this working copy."""

from visage.cli import main

main()
