"""`python -m velodrome.cli`, for where the script is not on the path."""

from velodrome.cli.main import main

main()
