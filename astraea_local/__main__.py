"""`python -m astraea_local`."""

from astraea_local.cli import main

main()
