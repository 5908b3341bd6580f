"""One real federation for the tests that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flower.real import Federation, write_ingredients


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Four partners, connected."""
    folder = tmp_path_factory.mktemp("real")
    write_ingredients(folder)
    federation = Federation(folder)
    yield federation
    federation.close()
