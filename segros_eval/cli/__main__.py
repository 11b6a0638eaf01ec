"""`python -m segros_eval.cli`: the command line, for launchers that start modules."""

from segros_eval.cli.app import main

if __name__ == "__main__":
    main()
