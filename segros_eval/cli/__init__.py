"""The `segros` command, one module per group of commands; each imports what is heavy only when it runs."""

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    from segros_eval.cli.app import main as run

    run()
