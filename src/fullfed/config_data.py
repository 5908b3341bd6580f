"""The recipe's table ``data``: where examples come from, how they are worded and who holds them."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fullfed.config_values import NOT_BOTH, Positive, PositiveFloat, RecipeTable, Source

TEMPLATES = ("auto", "chat", "alpaca")  # by name


def _check_template(template: str) -> str:
    if not (template in TEMPLATES or template.endswith(".jinja") or is_jinja(template)):
        raise ValueError(
            f"{template[:40]!r} is no template; take 'auto', 'chat', 'alpaca' or a .jinja file"
        )
    return template


def is_jinja(template: str) -> bool:
    """Whether a template is written out, rather than named."""
    return "{{" in template or "{%" in template


def _check_source_name(name: str) -> str:
    if not name.strip() or "/" in name:
        raise ValueError(f"{name!r} is no source's name; take one without slashes")
    return name


class ColumnsTable(RecipeTable):
    """What a record's fields are called, where the record's format does not say it.

    Attributes:
        prompt: what is asked; a text, or a list of messages.
        context: what the prompt is about.
        completion: the answer that is learned; a text, or messages.
        messages: a whole conversation.
        text: what is learned as it is.
        chosen: of two answers, the one that is liked better.
        rejected: of two answers, the other.
        system: what the assistant is told to be.
        history: pairs of earlier questions and answers.
        tools: what the assistant may call.
        references: the list of all accepted answers.
        task: the name of the record's task.
        category: the name of its category.
    """

    prompt: str | None = None
    context: str | None = None
    completion: str | None = None
    messages: str | None = None
    text: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    system: str | None = None
    history: str | None = None
    tools: str | None = None
    references: str | None = None
    task: str | None = None
    category: str | None = None


class SourceTable(RecipeTable):
    """One of several sources of training data.

    Attributes:
        name: of the source, without slashes.
        path: where it is, as ``data.train``.
        columns: what its records' fields are called, where it is not what the table ``data`` says.
        ignore: fields of its records, in place of those of the table ``data``.
    """

    name: Annotated[str, AfterValidator(_check_source_name)]
    path: Source
    columns: ColumnsTable | None = None
    ignore: tuple[str, ...] | None = None


class DataTable(RecipeTable):
    """Where examples come from, how they are worded and who holds them.

    Attributes:
        train: a file, a folder, a pattern of file names, a hub name, or "builtin".
        sources: several of them, in place of train.
        test: the evaluation set, as train. Without it that is held out of the training data.
        columns: what records' fields are called, where their format does not say it.
        ignore: fields of records that are not read. One that has text in it and is neither in the
            format nor here nor in columns is refused.
        hold_out: a category of the training data, all records of which are the evaluation set and
            nobody's to train on.
        template: "chat" is the tokenizer's own chat template, "alpaca" Stanford Alpaca's, "auto"
            the first where there is one; or a file of a chat template in Jinja (.jinja), or its
            content.
        answers: which of a conversation's answers are learned.
        max_length (tokens): of a sample, at most; what the model reads at once where it is not
            said.
        date: what a chat template that writes the date is told; the day a run begins on, which its
            folder records, where it is not said.
        partition: what makes a client, where a run in one process plays all of them: each "task" or
            "category" of the records, each "file", each "folder", each value of a "column", each
            "source"; or as many parts as clients says, at random of equal size ("iid"), of unequal
            sizes ("quantity"), or with unequal shares of each category ("dirichlet").
        by: the field whose values are the clients of the partition "column".
        clients_per_source: into how many clients the partition "source" divides each source.
        clients: how many clients the partitions "iid", "quantity" and "dirichlet" make.
        alpha: of the Dirichlet distribution of the partitions "quantity" and "dirichlet"; the
            smaller, the more unequal.
        min_samples (samples): that every client has at least.
        test_samples (samples): of the evaluation set, at random; all where it is not said.
    """

    train: Source | None = None
    sources: Annotated[tuple[SourceTable, ...], Field(min_length=1)] | None = None
    test: Source | None = None
    columns: ColumnsTable = ColumnsTable()
    ignore: tuple[str, ...] = ()
    hold_out: str | None = None
    template: Annotated[str, AfterValidator(_check_template)] = "auto"
    answers: Literal["all", "last"] = "all"
    max_length: Positive | None = None
    date: datetime.date | None = None
    partition: Literal[
        "task", "category", "file", "folder", "column", "source", "dirichlet", "quantity", "iid"
    ] = "task"
    by: str | None = None
    clients_per_source: Positive | None = None
    clients: Positive | None = None
    alpha: PositiveFloat = 0.5
    min_samples: Positive = 1
    test_samples: Positive | None = None

    @model_validator(mode="after")
    def _one_place(self) -> DataTable:
        if self.train is not None and self.sources is not None:
            raise ValueError(f"give train or [[data.sources]], {NOT_BOTH}")
        if self.train is None and self.sources is None:
            raise ValueError("the key 'data.train' is missing; add it, or [[data.sources]]")
        names = [source.name for source in self.sources or ()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two of the sources are called {twice!r}; rename one")
        return self

    @model_validator(mode="after")
    def _partition_fits(self) -> DataTable:
        if self.partition == "column" and self.by is None:
            raise ValueError(
                "partition = 'column' needs the field that tells clients apart; add by"
            )
        if self.partition == "source" and self.sources is None:
            raise ValueError("partition = 'source' makes clients of [[data.sources]]; add them")
        for key, kind in (("by", "column"), ("clients_per_source", "source")):
            if getattr(self, key) is not None and self.partition != kind:
                raise ValueError(
                    f"{key} is for partition = '{kind}', not '{self.partition}'; leave it out"
                )
        return self

    def training_sources(self) -> tuple[SourceTable, ...]:
        """Where training data come from, each with its columns and what it ignores.

        The one source of ``train`` has no name.
        """
        of_all = {"columns": self.columns, "ignore": self.ignore}
        if self.sources is None:
            unnamed = {"name": "", "path": self.train, **of_all}
            return (SourceTable.model_construct(None, **unnamed),)
        return tuple(
            one.model_copy(update={k: v for k, v in of_all.items() if getattr(one, k) is None})
            for one in self.sources
        )
