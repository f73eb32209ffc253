"""`python -m velodrome`: the command line, for where its script is not on the path."""

from velodrome.cli.main import main

main()
