"""`python -m bide`."""

from .cli import main

main()
