"""Which versions of Flower are supported, and whether the installed one has all that we use of it.

Where a new version fails, the first test here that fails says what has changed. `make test-flower`
runs these tests and the real federation's on the oldest and on the newest version supported.
"""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from fullfed.deployment import commands
from fullfed.deployment.commands import check_installed
from fullfed.deployment.gate import _NODES_CALLS, _OPERATORS_CALLS, _PROCESSES_CALLS
from fullfed.errors import UserError

ROOT = Path(__file__).parents[2]
FLOWER = f"Flower {version('flwr')}"


def test_all_that_is_used_of_flower_is_where_it_was() -> None:
    try:
        importlib.import_module("fullfed.deployment.flower_internals")
    except ImportError as error:
        pytest.fail(f"{FLOWER} has moved or renamed what flower_internals.py uses: {error}")


def test_flowers_server_can_be_put_behind_the_gate_and_has_the_calls_it_lets_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fullfed.deployment.flower_internals import superlink_parts

    monkeypatch.setattr(sys, "argv", ["pytest"])
    parts = superlink_parts(["--insecure", "--isolation", "process", "--port", "4000"])
    assert (parts.port, parts.certificate, parts.key) == (4000, None, None), FLOWER
    served = set(parts.application.openapi()["paths"])
    assert served >= _NODES_CALLS, f"{FLOWER} serves nodes elsewhere"
    assert _OPERATORS_CALLS + "start-run" in served, f"{FLOWER} is controlled elsewhere"
    assert _PROCESSES_CALLS + "acquire-task" in served, f"{FLOWER} serves processes elsewhere"


def test_the_servers_database_is_set_up_for_large_messages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from flwr.supercore import sql_mixin
    from sqlalchemy import text

    from fullfed.deployment.flower_internals import superlink_parts

    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", sql_mixin.SQLITE_PRAGMAS)
    database = str(tmp_path / "superlink.db")
    options = ["--insecure", "--isolation", "process", "--port", "4000", "--database", database]
    state = superlink_parts(options).application.state.linkstate_factory.state()
    with state.session() as session:
        expected = {"busy_timeout": 120_000, "cache_size": -8000, "page_size": 32_768}
        for pragma, value in {**expected, "secure_delete": 2}.items():  # FAST
            found = session.execute(text(f"PRAGMA {pragma}")).scalar()
            assert found == value, f"{FLOWER} sets its database up elsewhere"


def test_a_node_calls_what_the_gate_lets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the paths in Flower's own client."""
    from flwr.supernode.fleet_http_client import FleetHttpClient

    called: list[str] = []
    client = FleetHttpClient("https://nowhere", interceptors=[])
    monkeypatch.setattr(client, "_unary_unary", lambda path, **_: called.append(path))
    for name in (
        *("ActivateNode", "DeactivateNode", "SendNodeHeartbeat", "PullMessages", "PushMessages"),
        *("PullObject", "PushObject", "ConfirmMessageReceived"),
    ):
        getattr(client, name)(None)
    assert set(called) == _NODES_CALLS, FLOWER


def test_flowers_command_finds_the_operators_key(tmp_path: Path) -> None:
    from flwr.cli.auth_plugin.oidc_cli_plugin import OidcCliPlugin
    from flwr.supercore.credential_store.file_credential_store import FileCredentialStore

    from fullfed.deployment.flower_internals import store_key

    store_key(tmp_path, "127.0.0.1:4000", "the-key")
    file = tmp_path / "credentials.yaml"
    assert file.stat().st_mode & 0o077 == 0, "nobody else may read it"
    assert any(key.endswith("authn-type") for key in yaml.safe_load(file.read_text()))
    plugin = OidcCliPlugin("127.0.0.1:4000")
    plugin.store = FileCredentialStore(file)
    plugin.load_tokens()
    assert "the-key" in [value for _, value in plugin.write_tokens_to_metadata([])], FLOWER


def test_the_supported_versions_are_the_same_everywhere() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest, beyond = (".".join(map(str, bound)) for bound in commands.FLOWER_VERSIONS)
    wanted = f">={oldest},<{beyond}"
    assert extras["optional-dependencies"]["flower"] == [f"flwr{wanted}"]
    assert extras["optional-dependencies"]["simulation"] == [f"flwr[simulation]{wanted}"]
    tried = re.search(r"^FLOWER := (\S+) (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert tried
    assert tried[1].startswith(f"{oldest}.")
    newest = commands.FLOWER_VERSIONS[1][1] - 1
    assert tried[2].startswith(f"1.{newest}.")
    assert f"Flower {oldest} to 1.{newest}" in (ROOT / "docs" / "flower.md").read_text()


@pytest.mark.parametrize("other", ["1.40.9", "1.43.0", "2.0"])
def test_another_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    check_installed()
    monkeypatch.setattr(commands, "version", lambda package: other)
    with pytest.raises(UserError, match=rf"Flower {other} .*fullfed\[flower\]"):
        check_installed()
