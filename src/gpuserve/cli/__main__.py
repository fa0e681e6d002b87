"""`python -m gpuserve.cli`: the `gpuserve` command, for where the script is not on the path."""

from gpuserve.cli.main import main

main()
