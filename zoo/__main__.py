"""`python -m zoo` is the command `zoo`."""

import sys


def main() -> None:
    """Run the command, or say what it needs."""
    try:
        from zoo.cli import main as command
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "jinja2", "matplotlib", "sklearn", "pandas"):
            raise
        sys.exit(f"zoo: the command needs {error.name}: pip install 'pyro-zoo[command]'")
    command()


if __name__ == "__main__":
    main()
