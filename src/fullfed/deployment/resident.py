"""A node's resident worker: keeps model, replica and data in memory from one message to the next.

Flower starts a process for every message; the worker is what does not start anew. What it needs to
go on where it was when it is killed is on the node's disk.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fullfed.data.sources import read_examples
from fullfed.data.tokens import TokenizedExample, tokenize
from fullfed.deployment.members import Clients, Holder, Member, WithoutReplica
from fullfed.deployment.node_state import NodeState
from fullfed.deployment.terms import Terms, decode_terms
from fullfed.engines.flower.orders import Answer, Order, Pieces
from fullfed.errors import UserError
from fullfed.federation.messages import MessageError, Plan, decode
from fullfed.federation.replica import Replica
from fullfed.runs.assembly import build_method, make_replica, method_options
from fullfed.runs.loading import context_length, find_device, load_blank, load_model

_log = logging.getLogger(__name__)
_BLAND = "the node cannot take part; its operator finds the reason in the node's worker.log"


class _RefusalError(UserError):
    """Why the node cannot take part.

    Args:
        reason: for the node's operator.
        public: for the server; names no file and quotes no data.
    """

    def __init__(self, reason: str, public: str) -> None:
        super().__init__(reason)
        self.public = public


@dataclass
class _Joined:
    """A run that the worker takes part in."""

    run: str
    state: NodeState
    member: Member
    examples: Sequence[TokenizedExample]
    clients: dict[int, Sequence[TokenizedExample]]  # what the member looks its examples up in
    answered: str = ""  # the plan last answered, by its digest, ...
    answer: Answer | None = None  # ... and the answer


class Resident:
    """Answers orders.

    Args:
        folder: for the state on disk.
        data: the node's own training data, as read_examples takes it.
        model: the node's copy of the base model: a folder, a hub name or "builtin".
        device: a torch device, or "auto".

    Raises:
        UserError: the data cannot be read.
    """

    def __init__(self, folder: Path, data: str, model: str, device: str = "auto") -> None:
        self._folder, self._data, self._model, self._device = folder, data, model, device
        self._examples = read_examples(data)
        self._joined: _Joined | None = None

    def handle(self, pieces: Pieces) -> Mapping[str, bytes]:
        """Answer one order. Whatever goes wrong, the answer quotes no data of the node's."""
        try:
            return self._answer(Order.of(pieces)).pieces()
        except MessageError as error:
            _log.error("the server's order was refused: %s", error)
            return Answer(self._version, failure=f"the order was refused: {error}").pieces()
        except UserError as error:
            _log.error("%s", error)
            failure = error.public if isinstance(error, _RefusalError) else _BLAND
        except Exception:
            # The last resort at the edge of the process: text of any exception may quote data.
            _log.exception("the worker failed; worker.log says how")
            failure = _BLAND
        version = self._version
        self.leave()  # what is in memory may be half-way
        return Answer(version, failure=failure).pieces()

    def leave(self) -> None:
        """Forget the run in memory; its state stays on disk."""
        if self._joined is not None:
            self._joined.state.close()
            self._joined = None

    @property
    def _version(self) -> int:
        return -1 if self._joined is None else self._joined.member.version

    def _answer(self, order: Order) -> Answer:
        joined = self._join(order)
        if joined is None:
            return Answer(-1)
        plan = decode(order.plan, Plan)
        digest = hashlib.sha256(order.plan).hexdigest()
        if joined.answer is not None and joined.answered == digest:
            return joined.answer
        joined.member.follow(order, plan.round)
        version = joined.member.version
        if version < plan.round:
            return Answer(version)
        if version > plan.round:
            raise MessageError(f"the plan is for version {plan.round}, the node has {version}")
        joined.clients[plan.client] = joined.examples
        _log.info("round %d as client %d", plan.round, plan.client)
        arrival = joined.member.visit(order)
        answer = Answer(
            version,
            arrival.payload or b"",
            arrival.failure,
            arrival.train_seconds,
            arrival.encode_seconds,
        )
        joined.answered, joined.answer = digest, answer
        return answer

    def _join(self, order: Order) -> _Joined | None:
        """The order's run, loaded if it is not yet; None without its terms."""
        if self._joined is not None and self._joined.run == order.run:
            return self._joined
        state = NodeState(self._folder, order.run)
        complete = order.terms and (order.equipment or not order.handout)
        if complete and not state.terms_file.exists():
            state.create(order.terms, order.equipment)
        if not state.terms_file.exists():
            return None
        self.leave()  # frees the other run's model first
        self._joined = self._load(order.run, state)
        return self._joined

    def _load(self, run: str, state: NodeState) -> _Joined | None:
        terms = decode_terms(state.terms_file.read_bytes(), self._model, self._device, self._data)
        recipe, clients = terms.recipe, dict[int, Sequence[TokenizedExample]]()
        alone = state.equipment_file.exists()
        if alone:
            model, tokenizer = load_blank(recipe.model.path)
        else:
            model, tokenizer = load_model(
                recipe.model.path, recipe.model.dtype, recipe.model.device
            )
        _log.info("model %s loaded", recipe.model.path)
        length = recipe.data.max_length or context_length(model)
        examples = tokenize(self._examples, tokenizer, recipe.data.template, length).examples
        if not examples:
            raise UserError(
                f"{self._data}: no example's answer fits into {length} tokens; "
                "leave the node out of this run."
            )
        method = build_method(recipe, method_options(recipe.method), model, terms.clients)
        if alone:
            device = find_device(recipe.model.device)
            member: Member | None = WithoutReplica(model, method, state, clients, device)
        else:
            member = self._holder(terms, make_replica(recipe, model, method), state, clients)
        return None if member is None else _Joined(run, state, member, examples, clients)

    def _holder(
        self, terms: Terms, replica: Replica, state: NodeState, clients: Clients
    ) -> Holder | None:
        """None if the state on disk was damaged; it is gone then."""
        if replica.content_hash() != terms.base_hash:
            state.remove()
            raise _RefusalError(
                f"{self._model}: this is not the base model the run begins with; "
                "name the right one by `fullfed join --model`.",
                "its base model is not the one the run begins with",
            )
        try:
            return Holder(replica, state, clients, terms.recipe.federation.snapshot_every)
        except UserError as error:
            _log.warning("the server is asked for everything again: %s", error)
            state.remove()
            return None
