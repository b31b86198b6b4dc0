"""`python -m samdistill`: the command line."""

from samdistill.cli.app import main

main()
