"""Items of work and who computes them: this process, or a cluster that the environment names.

BLOCKLENS_DASK   unset: this process; `local:N`: N processes of this machine; `tcp://host:port` or
                 `tls://host:port`: the workers of that Dask scheduler (runtime/cluster.py)

It is environment, never a parameter: the results are the same bit for bit. An item is computed by
one function, wherever it is, and an item never depends on another one's neighbours.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Generic, Protocol, TypeVar

from stages.contracts.errors import ClusterError, Problem

VARIABLE: Final = "BLOCKLENS_DASK"

Item = TypeVar("Item")
Result = TypeVar("Result")
Session = TypeVar("Session")
Session_co = TypeVar("Session_co", covariant=True)


@dataclass(frozen=True)
class Setting(Generic[Session]):
    """What a process opens once, before its first item: a loaded model, say.

    `open_session` and `find_problems` are functions of an importable module, and are called with
    `description`, which can be pickled. `find_problems` says what this machine lacks.
    """

    open_session: Callable[[Any], AbstractContextManager[Session]]
    find_problems: Callable[[Any], list[Problem]]
    description: Any


class Crew(Protocol[Session_co]):
    """Who computes items."""

    def each(
        self, function: Callable[[Session_co, Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[int, Result]]:
        """Yield (index of the item, `function(session, item)`) as they get ready.

        Args:
            function: of an importable module, never of the one that is run: a worker would then
                get a copy of it, without what its module holds.
            items: what can be pickled; taken one at a time, shortly before they are computed.

        Raises:
            ClusterError: the workers are gone, or an item kills them.
        """
        ...


def ordered(
    crew: Crew[Session], function: Callable[[Session, Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """Yield the result of every item, in the order of the items."""
    early: dict[int, Result] = {}
    turn = 0
    for index, result in crew.each(function, items):
        early[index] = result
        while turn in early:
            yield early.pop(turn)
            turn += 1


@contextmanager
def open_crew(setting: Setting[Session]) -> Iterator[Crew[Session]]:
    """Yield who computes the items of `setting`; nothing is opened before the first item.

    Raises:
        ClusterError: the cluster cannot be reached, has no worker, or has one that lacks something;
            every worker's problems are named.
    """
    place = os.environ.get(VARIABLE, "")
    with ExitStack() as stack:
        if not place:
            yield _Here(setting, stack)
            return
        if find_spec("distributed") is None:
            problem = Problem(
                f"{VARIABLE}={place}",
                "needs the package distributed, which is not installed",
                "Run `pip install 'blocklens[dask]'`, or unset the variable.",
            )
            raise ClusterError("There is no cluster", [problem])
        from stages.runtime.cluster import open_cluster

        yield stack.enter_context(open_cluster(place, setting))


@dataclass
class _Here(Generic[Session]):
    """This process; the session is opened at the first item and closed with the stack."""

    setting: Setting[Session]
    stack: ExitStack
    opened: tuple[Session] | None = None

    def each(
        self, function: Callable[[Session, Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[int, Result]]:
        for index, item in enumerate(items):
            if self.opened is None:
                setting = self.setting
                self.opened = (self.stack.enter_context(setting.open_session(setting.description)),)
            yield index, function(self.opened[0], item)
