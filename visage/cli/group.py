"""The group of all commands: those of the package, those of a clone, and one line for an error."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from visage.cli.failures import FAILED, INTERRUPTED, REFUSED, CommandFailed

# The folder that this package is imported from: a clone's root, or site-packages.
ROOT = Path(__file__).resolve().parents[2]
PIPELINE = "flows.commands"


def is_clone(root: Path) -> bool:
    """Whether the folder holds the pipeline beside the package."""
    return (root / "dvc.yaml").is_file() and (root / "flows" / "commands").is_dir()


def pipeline() -> Any:
    """The module of the pipeline's commands (flows/commands); CommandFailed outside a clone.

    It is looked for beside this package and not in the working directory, whose files may be
    anybody's.
    """
    if not is_clone(ROOT):
        raise CommandFailed(
            f"the pipeline runs from a clone of the repository, and {ROOT} is none; clone it, run "
            f"make setup there, and use the clone's own command, .venv/bin/visage"
        )

    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    module = importlib.import_module(PIPELINE)
    module.set_environment()
    return module


class CommandGroup(TyperGroup):
    """`visage`: the pipeline's commands are imported when one of them is asked for, or the list."""

    def list_commands(self, _: Any) -> list[str]:
        return list(self.commands) + [
            name for name in self._of_clone() if name not in self.commands
        ]

    def get_command(self, _: Any, cmd_name: str) -> Any:
        return self.commands.get(cmd_name) or self._of_clone().get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None and not is_clone(ROOT):
            raise CommandFailed(
                f"no command {args[0]!r}; there are {', '.join(self.commands)}. The pipeline's "
                f"commands (run, retrain, score, ...) exist in a clone of the repository only"
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, _: Any, formatter: Any) -> None:
        """The help's list, in two parts."""
        of_clone = self._of_clone()
        for title, commands in {
            "Commands": self.commands,
            "The pipeline, of this clone": of_clone,
        }.items():
            rows = [(name, command.get_short_help_str(80)) for name, command in commands.items()]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _of_clone(self) -> dict[str, Any]:
        if not is_clone(ROOT):
            return {}
        group: Any = get_command(pipeline().app)
        return dict(group.commands)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """As Typer's, with every error as one line: `visage predict: what is wrong`."""
        run = functools.partial(
            super().main,
            prog_name=prog_name,
            complete_var=complete_var,
            standalone_mode=False,
            windows_expand_args=windows_expand_args,
            **extra,
        )
        if not standalone_mode:
            return run(args=args)

        given = list(sys.argv[1:] if args is None else args) or ["--help"]
        name = prog_name or "visage"
        if not given[0].startswith("-"):
            name = f"{name} {given[0]}"

        try:
            status = run(args=given)
        except BrokenPipeError:
            # Whoever read the output has seen enough; the interpreter would complain once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = FAILED
        except (CommandFailed, ValueError, OSError, typer.TyperException, typer.Abort) as error:
            typer.echo(f"{name}: {_one_line(error)}", err=True)
            status = error.status if isinstance(error, CommandFailed) else REFUSED

        if status == INTERRUPTED:
            typer.echo(f"{name}: stopped", err=True)
        sys.exit(status if isinstance(status, int) else 0)


def _one_line(error: Exception) -> str:
    message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
    return " ".join(message.split()) or type(error).__name__
