"""A node of a federation inside a program that trains in a loop of its own."""

from __future__ import annotations

import math
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from transformers import PreTrainedModel

from fullfed.data.client_dataset import ClientDataset
from fullfed.deployment.folders import NodeFolder
from fullfed.deployment.node import configured, keep_running, link, wait_for_server
from fullfed.deployment.node_task import TaskLoader
from fullfed.deployment.owner import owner_of
from fullfed.engines import node_channel
from fullfed.engines.node import NodeWorker
from fullfed.errors import UserError
from fullfed.files import locked, private_files
from fullfed.training.first_order import TrainingError
from fullfed.training.trainer import LocalResult, VisitContext

_LOOK_SECONDS = 0.5  # between two looks at the link while no visit is due


class ClientVisit:
    """A visit that waits to be trained; a ``Client`` gives one after another.

    Examples:
        >>> def train(visit):
        ...     loss = 0.0  # ... train visit.model on visit.dataset
        ...     visit.finish(loss=loss)

    Attributes:
        model: the round's; train those of its parameters that require gradients, in place.
        dataset: the node's samples.
        context: the round, the recipe's table ``local``, a seed.
    """

    def __init__(
        self, model: PreTrainedModel, dataset: ClientDataset, context: VisitContext
    ) -> None:
        self.model, self.dataset, self.context = model, dataset, context
        self._result: LocalResult | None = None
        self._over = threading.Event()

    def finish(
        self, loss: float, *, measure: Callable[[], float] | None = None, **metrics: float
    ) -> None:
        """Training is done: the change is taken and sent.

        Args:
            loss: the mean over the visit; the server is told.
            measure: see ``LocalResult``.
            metrics: whatever else there is to say; it stays here.

        Raises:
            ValueError: the loss is not finite.
        """
        if not math.isfinite(loss):
            raise ValueError(f"the loss of a visit is a finite number, not {loss}")
        self._result = LocalResult(loss, metrics, measure)

    def _end(self) -> None:
        self._over.set()

    def _wait(self) -> LocalResult:
        self._over.wait()
        if self._result is None:
            raise TrainingError("the node's own loop did not finish the visit")
        return self._result


class Handover:
    """A trainer that hands each visit to another thread and waits for it to be finished there."""

    def __init__(self) -> None:
        self._due = queue.Queue[ClientVisit]()
        self._newest: ClientVisit | None = None
        self._closed = False

    def __call__(
        self, model: PreTrainedModel, dataset: ClientDataset, context: VisitContext
    ) -> LocalResult:
        visit = self._newest = ClientVisit(model, dataset, context)
        self._due.put(visit)
        if self._closed:  # meanwhile
            visit._end()
        return visit._wait()

    def close(self) -> None:
        """Nobody trains any more: the visit that waits fails, and so does any to come."""
        self._closed = True
        if self._newest is not None:
            self._newest._end()

    def visits(self, going_on: Callable[[], bool]) -> Iterator[ClientVisit]:
        """One visit after another, each until the next is asked for.

        Args:
            going_on: asked again and again while none is due; there are no more if it says no.
        """
        while True:
            try:
                visit = self._due.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if not going_on():
                    return
                continue
            try:
                yield visit
            finally:
                visit._end()


class Client:
    """A partner's part in a federation, for a program with a training loop of its own.

    It takes the place of ``fullfed join``, with the same folder and the same limits, but that
    ``limits.most_seconds`` cannot interrupt the program's own loop. The run's method must be one
    whose clients train by gradients.

    The loop goes on from run to run until the program leaves it.

    Examples:
        >>> def take_part(train):
        ...     with fullfed.Client("federation/partners/north", data="north.jsonl") as client:
        ...         for visit in client:
        ...             loss = train(visit.model, visit.dataset)
        ...             visit.finish(loss=loss)

    Args:
        folder: the partner's, as ``fullfed federation init`` makes it.
        data, model: as for ``fullfed join``; what node.toml says, if not given.
        say: is told of the connection, a sentence at a time.
    """

    def __init__(
        self,
        folder: str | Path,
        data: str | Path | None = None,
        model: str | Path | None = None,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ) -> None:
        self._folder = NodeFolder(Path(folder).absolute())
        self._data = None if data is None else str(data)
        self._model = None if model is None else str(model)
        self._say = say
        self._handover = Handover()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._inside = ExitStack()

    def __enter__(self) -> Client:
        """Join the federation.

        Raises:
            UserError: bad settings or data, the server is not the federation's, or the node runs
                already.
        """
        folder, inside = self._folder, self._inside
        settings = configured(folder, self._data, self._model)
        if settings.devices > 1:
            raise UserError(
                f"{folder.settings_file}: devices is {settings.devices}, and a program's own loop "
                "trains on one; leave the key out, or let `fullfed join` take the program's place."
            )
        with private_files():
            folder.write(settings)
        assert settings.data is not None  # configured sees to it
        load = TaskLoader(
            settings.data,
            settings.model,
            settings.device,
            settings.limits,
            settings.columns,
            settings.ignore,
            self._handover,
        )
        with inside:
            running = f"{folder.path}: a worker runs here already; end it."
            inside.enter_context(locked(folder.path / "worker.lock", running))
            wait_for_server(folder, settings, self._say)
            worker = NodeWorker(folder.state, load, settings.limits, owner_of(folder, settings))
            thread = threading.Thread(target=self._serve, args=(worker,), daemon=True)
            inside.callback(thread.join)
            inside.callback(self._stop.set)
            inside.callback(self._handover.close)  # or the thread would wait for the loop for ever
            thread.start()
            self._link = inside.enter_context(link(folder))
            self._inside = inside.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inside.close()

    def __iter__(self) -> Iterator[ClientVisit]:
        """Visits, as the federation's server asks for them."""
        return self._handover.visits(self._look)

    def _serve(self, worker: NodeWorker) -> None:
        try:
            node_channel.serve(self._folder.worker_address, worker, self._stop)
        except BaseException as error:  # told in the thread of the loop
            self._failure = error

    def _look(self) -> bool:
        if self._failure is not None:
            raise UserError(
                f"{self._folder.path}: the node's worker has ended ({self._failure}); join again."
            ) from self._failure
        keep_running(self._folder, self._link, self._say)
        return True
