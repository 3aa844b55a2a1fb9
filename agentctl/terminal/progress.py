"""A bar that shows how far something is, for a person at a terminal; nothing in a pipe and nothing with `--json`."""

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from agentctl.terminal.output import Output
from backplane.process.terminal_text import printable


class Bar:
    def __init__(self, output: Output, what: str) -> None:
        self._output = output
        self._what = printable(what)
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if self._output.err.is_terminal and not self._output.json:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=self._output.err
            )
        return self

    def show(self, done: int, total: int) -> None:
        """`total` is 0 while it is not known. Nothing is drawn before the first call."""
        if self._progress is None:
            return
        if not self._progress.task_ids:
            self._task = self._progress.add_task(self._what, total=total or None)
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total or None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
