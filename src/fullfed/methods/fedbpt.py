"""FedBPT: clients tune a soft prompt with forward passes alone (Sun et al., "FedBPT: Efficient
federated black-box prompt tuning for large language models", arXiv 2310.01467).

    client:   from (z, sigma), a few iterations of CMA-ES on the loss of its samples; it sends where
              the mean came to, z_i, its fitness f_i, and the sum of the iterations' sigma**2
    server:   one step of CMA-ES of its own, for which the z_i are the samples and the f_i their
              fitnesses

``cma`` (Hansen's package) does both. Of a search's state only the mean, sigma and the path of
sigma go from round to round. The covariance stays the identity: of d = 500 numbers and so few
samples CMA-ES would learn less than a hundredth of it in hundreds of rounds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from fullfed.config import LocalTable
from fullfed.data.batches import IGNORED, Batch
from fullfed.errors import MessageError, UserError
from fullfed.federation.messages import Plan, Report, Update, number
from fullfed.federation.method import NOTHING
from fullfed.federation.replica import norm
from fullfed.methods.aggregation import WeightedMean
from fullfed.methods.averaging import averaging
from fullfed.methods.codecs.codec import Change, Codec, Encoded, Shapes, Weighted, check_tensors
from fullfed.methods.composition import Composition
from fullfed.methods.local_work import LocalWork, check_without_gradients
from fullfed.methods.prompts import PromptAlone, Z
from fullfed.methods.setting import Setting
from fullfed.randomness import Purpose, Stream, uniforms
from fullfed.training.first_order import Improvement, TrainingError
from fullfed.training.loss import loss_value
from fullfed.training.watch import OnStep, unwatched

SIGMA, FITNESS = "sigma", "fitness"
SPREAD, PATH = "spread", "path"
_LARGEST = 1e6  # a sigma that anybody may say
FEWEST = 3  # samples that a step of CMA-ES is made of

Numbers = NDArray[np.float64]
Pair = tuple[Batch, Batch]


@dataclass(frozen=True)
class FedBPTOptions:
    """
    Attributes:
        prompt_tokens (tokens): the length of the soft prompt.
        dimension: d, how many numbers it is made of.
        sigma: the search's first standard deviation.
        population: candidates of an iteration at a client; ``local.steps`` is how many iterations.
        perturbed (share): of prompts' tokens, replaced at random in a copy of the samples by whose
            loss the loss is divided; 0 for the loss alone.
    """

    prompt_tokens: int = 50
    dimension: int = 500
    sigma: float = 1.0
    population: int = 5
    perturbed: float = 0.5

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.dimension < 2:
            raise ValueError("prompt_tokens is at least 1, and dimension at least 2")
        if not 1 / _LARGEST <= self.sigma <= _LARGEST:
            raise ValueError("sigma is a number from 1e-6 to 1e6")
        if self.population < FEWEST:
            raise ValueError(f"population is at least {FEWEST}")
        if not 0 <= self.perturbed <= 1:
            raise ValueError("perturbed is a share, from 0 to 1")


def search(
    mean: Numbers, sigma: float, samples: int, parents: int | None, normals: NormalNumbers
) -> Any:
    """A CMA-ES of ``cma`` with the identity for its covariance.

    Args:
        samples: of an iteration.
        parents: how many of them count; None for the best half.
        normals: what it draws from.

    Raises:
        UserError: ``cma`` is not installed.
    """
    try:
        from cma import CMAEvolutionStrategy
    except ImportError as error:
        raise UserError(
            'fedbpt needs cma; install it with: pip install "fullfed[fedbpt]".'
        ) from error
    options = {
        "CMA_on": False,
        "CMA_mu": parents,
        "popsize": samples,
        "randn": normals,
        "seed": math.nan,  # no global generator
        "verbose": -9,
    }
    return CMAEvolutionStrategy(mean, sigma, options)


@dataclass
class NormalNumbers:
    """Standard normal numbers of a stream, one after another (Box and Muller 1958).

    Attributes:
        stream: of which they are made.
        drawn: how many have been.
    """

    stream: Stream
    drawn: int = 0

    def __call__(self, *shape: int) -> Numbers:
        count = math.prod(shape)
        drawn = uniforms(self.stream, 2 * count, 2 * self.drawn).reshape(2, count)
        self.drawn += count
        lengths: Numbers = np.sqrt(-2 * np.log1p(-drawn[0]))
        found: Numbers = (lengths * np.cos(2 * np.pi * drawn[1])).reshape(shape)
        return found


@dataclass(frozen=True)
class LocalSearch(LocalWork):
    """Iterations of CMA-ES, one a batch, whose samples are judged on that batch.

    Attributes:
        seed: the recipe's.
        local: the recipe's table, of which what gradients need does not count.
        options: the method's.
    """

    seed: int
    local: LocalTable
    options: FedBPTOptions

    def improve(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, Tensor],
        batches: Iterable[Batch],
        plan: Plan,
        state: Mapping[str, Tensor],
        exact: Mapping[str, Tensor] = NOTHING,
        on_step: OnStep = unwatched,
    ) -> Improvement:
        z = parameters[Z]
        start = z.detach().double().cpu().numpy()
        normals = NormalNumbers(Stream(self.seed, Purpose.EVOLUTION, plan.round, plan.client))
        es = search(start, number(plan, SIGMA), self.options.population, None, normals)
        losses: list[float] = []
        seen: list[Pair] = []
        spread = 0.0
        for step, batch in enumerate(batches):
            seen.append(self._pair(model, batch.to(model.device), plan, step))
            candidates = es.ask()
            judged = [self._judge(model, z, candidate, seen[-1:]) for candidate in candidates]
            spread += float(es.sigma) ** 2
            es.tell(candidates, [fitness for fitness, _ in judged])
            losses.append(sum(loss for _, loss in judged) / len(judged))
            on_step(losses[-1])
        fitness, _ = self._judge(model, z, es.mean, seen)
        told = {FITNESS: torch.tensor(fitness).double(), SPREAD: torch.tensor(spread).double()}
        return Improvement(losses, exact=told, first_known=False)

    def _judge(
        self, model: PreTrainedModel, z: Tensor, candidate: Numbers, pairs: Sequence[Pair]
    ) -> tuple[float, float]:
        """A candidate's fitness and its loss, on batches; it is left in the prompt's place.

        Raises:
            TrainingError: they are not finite.
        """
        with torch.no_grad():
            z.copy_(torch.from_numpy(candidate))
        loss = self._loss(model, [own for own, _ in pairs])
        fitness = loss
        if self.options.perturbed:
            fitness = loss / max(self._loss(model, [other for _, other in pairs]), 1e-12)
        if not math.isfinite(fitness):
            raise TrainingError("a loss is not finite; lower method.sigma")
        return fitness, loss

    def _loss(self, model: PreTrainedModel, batches: Sequence[Batch]) -> float:
        """Of all their tokens, in the mean."""
        total = math.fsum(loss_value(model, b, self.local) * b.tokens for b in batches)
        return total / sum(b.tokens for b in batches)

    def _pair(self, model: PreTrainedModel, batch: Batch, plan: Plan, step: int) -> Pair:
        """A batch, and the copy of it by whose loss its own is divided."""
        stream = Stream(self.seed, Purpose.PERTURBATION, plan.round, plan.client, step)
        words = model.config.get_text_config().vocab_size
        return batch, perturbed(batch, self.options.perturbed, words, stream)


def perturbed(batch: Batch, share: float, vocabulary: int, stream: Stream) -> Batch:
    """A copy of a batch, of whose prompts' tokens about a share are others, drawn at random."""
    drawn = uniforms(stream, 2 * batch.input_ids.numel()).reshape(2, *batch.input_ids.shape)
    others = torch.from_numpy((drawn[1] * vocabulary).astype(np.int64)).to(batch.input_ids.device)
    chosen = torch.from_numpy(drawn[0] < share).to(batch.input_ids.device)
    prompt = (batch.labels == IGNORED) & (batch.attention_mask == 1)
    return replace(batch, input_ids=torch.where(chosen & prompt, others, batch.input_ids))


@dataclass(frozen=True)
class Evolution(Codec):
    """A report is one sample of the server's search; the update is where that came to.

    Attributes:
        seed: the recipe's.
        options: the method's.
    """

    seed: int
    options: FedBPTOptions

    @property
    def stacks(self) -> bool:
        return True

    @property
    def plan_values(self) -> frozenset[str]:
        return frozenset([SIGMA])

    @property
    def report_values(self) -> frozenset[str]:
        return frozenset([FITNESS, SPREAD])

    def update_values(self, update: Update) -> frozenset[str]:
        return frozenset([SIGMA])

    def plan(self, round: int, last: Update | None, shapes: Shapes) -> Encoded:
        return Encoded({SIGMA: self.options.sigma if last is None else number(last, SIGMA)})

    def encode(self, change: Change, plan: Plan, shapes: Shapes) -> Encoded:
        told = {name: float(change.after[name]) for name in (FITNESS, SPREAD)}
        z = change.after[Z].detach().to(torch.float32, copy=True)
        return Encoded(told, {Z: z})

    def report_bytes(self, plan: Plan, shapes: Shapes) -> int:
        return 4 * self.options.dimension

    def update_bytes(self, plan: Plan, shapes: Shapes, reports: int) -> int:
        return 8 * self.options.dimension

    def check(self, report: Report, plan: Plan, shapes: Shapes) -> None:
        check_tensors(report, {Z: (shapes[Z], torch.float32)})
        _check_range(report, SPREAD, _LARGEST**2)
        if abs(number(report, FITNESS)) > _LARGEST:
            raise MessageError("the report's fitness cannot be a loss")

    def check_plan(self, plan: Plan, shapes: Shapes) -> None:
        super().check_plan(plan, shapes)
        _check_range(plan, SIGMA, _LARGEST)

    def check_update(self, update: Update, shapes: Shapes) -> None:
        check_tensors(update, dict.fromkeys((Z, PATH), (shapes[Z], torch.float32)))
        _check_range(update, SIGMA, _LARGEST)

    def norm(
        self, report: Report, plan: Plan, shapes: Shapes, parameters: Mapping[str, Tensor]
    ) -> float:
        """In units of the first sigma, by which the matrix that makes a prompt of z is divided."""
        start = parameters[Z].detach()
        return norm([report.tensors[Z].to(start).double() - start.double()]) / self.options.sigma

    def stack(self, reports: Weighted, plan: Plan, shapes: Shapes, last: Update | None) -> Encoded:
        """The server alone does this, so its bits are nobody else's to reproduce. Of too few
        reports for a step of CMA-ES the fittest is the new mean."""
        sent = [report for _, report in reports]
        sigma, none = number(plan, SIGMA), torch.zeros(self.options.dimension)
        mean, path = (none if last is None else last.tensors[name] for name in (Z, PATH))
        if len(sent) < FEWEST:
            best = min(sent, key=lambda report: number(report, FITNESS))
            return Encoded({SIGMA: sigma}, {Z: best.tensors[Z], PATH: path})
        parents = self.options.population // 2
        spread = math.fsum(number(report, SPREAD) for report in sent)
        wide = math.sqrt(spread / len(sent) / parents)
        normals = NormalNumbers(Stream(self.seed, Purpose.EVOLUTION, plan.round))
        es = search(mean.double().numpy(), wide, len(sent), len(sent), normals)
        es.adapt_sigma.initialize(es)
        es.adapt_sigma.ps = path.double().numpy()
        es.ask()  # what is told are not these, but clients' means
        samples = [report.tensors[Z].double().cpu().numpy() for report in sent]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of samples that it has not drawn
            es.tell(samples, [number(report, FITNESS) for report in sent])
        sigma = min(max(float(es.sigma) / wide * sigma, 1 / _LARGEST), _LARGEST)
        tensors = {Z: torch.from_numpy(es.mean), PATH: torch.from_numpy(es.adapt_sigma.ps)}
        return Encoded({SIGMA: sigma}, {name: t.float() for name, t in tensors.items()})

    def apply(self, parameters: Mapping[str, Tensor], update: Update, shapes: Shapes) -> None:
        step, z = number(update, "server_step"), parameters[Z]
        new = update.tensors[Z].to(z.device)
        z.copy_(new if step == 1.0 else z + (new - z) * step)


def _check_range(message: Plan | Report | Update, name: str, most: float) -> None:
    if not 0 < number(message, name) <= most:
        raise MessageError(f"the {message.kind}'s {name} is not between 0 and {most:g}")


def scope(seed: int, options: FedBPTOptions) -> PromptAlone:
    return PromptAlone(seed, options.prompt_tokens, options.dimension, 1 / options.sigma)


def build(setting: Setting, options: FedBPTOptions) -> Composition:
    """FedBPT for a federation.

    Raises:
        UserError: the recipe asks for what only gradients have, or for a rule of aggregation.
    """
    check_without_gradients(setting.local)
    if type(setting.aggregation) is not WeightedMean:
        raise UserError(
            "aggregation.name: FedBPT's server takes a step of CMA-ES, which no rule takes the "
            "place of; leave the table out."
        )
    local = LocalSearch(setting.seed, setting.local, options)
    own = scope(setting.seed, options)
    return averaging(setting, scope=own, local=local, codec=Evolution(setting.seed, options))
