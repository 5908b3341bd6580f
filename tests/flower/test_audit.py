"""The audit file: what is in it, and that nobody without the server's key can change it unseen."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flower.real import PARTNERS, free_port, open_to_others, refusal
from flower.small import node_worker
from flower.standin import Dictionary, carry_out, recipe_of
from fullfed.cli import app
from fullfed.deployment import attendance
from fullfed.deployment.attendance import Attendance
from fullfed.deployment.audit import ACTS, read_audit
from fullfed.deployment.folders import ServerFolder
from fullfed.deployment.members import Partner, fix_members, write_federation
from fullfed.deployment.run_audit import RunAudit
from fullfed.deployment.server import RegisteredNode
from fullfed.errors import UserError
from fullfed.runs import run
from fullfed.runs.assembly import assemble
from fullfed.runs.folder import RunFolder
from runs.small import recipe, write_ingredients


@pytest.fixture
def federation(tmp_path: Path) -> ServerFolder:
    """One that does not run, with four lines."""
    folder = ServerFolder.create(
        tmp_path / "fed", ["a", "b"], "127.0.0.1", free_port(), "127.0.0.1", "builtin"
    )
    folder.remove("b")
    return folder


def lines_of(folder: ServerFolder) -> list[bytes]:
    return folder.audit_file.read_bytes().splitlines()


def write_lines(folder: ServerFolder, lines: list[bytes]) -> None:
    folder.audit_file.write_bytes(b"".join(line + b"\n" for line in lines))


def acts(folder: ServerFolder) -> list[str]:
    return [line.act for line in read_audit(folder.audit_file, folder.authority)]


def test_the_audit_command_shows_who_did_what_and_that_it_is_verified(
    federation: ServerFolder,
) -> None:
    command = ["federation", "audit", str(federation.federation)]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    last = hashlib.sha256(lines_of(federation)[-1]).hexdigest()
    assert f"verified, 4 lines; the last one's hash is {last}" in shown.output
    for said in ("create", "partners a, b", "partner a", "remove", "partner b"):
        assert said in shown.output
    assert acts(federation) == ["create", "add", "add", "remove"]
    assert open_to_others(federation.path) == {}


def test_a_partner_verifies_a_copy_with_its_own_folder(
    federation: ServerFolder, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(federation.audit_file.read_bytes())
    partner = federation.federation / "partners" / "a"
    command = ["federation", "audit", str(partner), "--file", str(copy)]
    assert "verified, 4 lines" in CliRunner().invoke(app, command).output
    other = ServerFolder.create(tmp_path / "other", ["a"], "127.0.0.1", 1, "127.0.0.1", "builtin")
    text = refusal(*command[:2], other.federation / "partners" / "a", *command[3:])
    assert "this is not of the federation whose authority is" in text


def changed(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"a"', b'"c"'), *lines[2:]]


def respaced(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'","', b'", "'), *lines[2:]]


def removed(lines: list[bytes]) -> list[bytes]:
    return [lines[0], *lines[2:], b"{}"]


def swapped(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], lines[3]]


def doubled(lines: list[bytes]) -> list[bytes]:
    return [*lines, lines[3]]


def begun_later(lines: list[bytes]) -> list[bytes]:
    return [*lines[1:], b"{}"]


def cut(lines: list[bytes]) -> list[bytes]:
    return lines[:-1]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (changed, "line 2 was changed: its signature is not the server's"),
        (respaced, "line 2 is not written as the server writes"),
        (removed, "line 2 does not follow the line before it"),
        (swapped, "line 2 does not follow the line before it"),
        (doubled, "line 5 does not follow the line before it"),
        (begun_later, "line 1 does not follow the line before it"),
        (cut, "4 lines were written and 3 are there; restore a copy"),
    ],
)
def test_a_file_that_is_not_as_the_server_wrote_it_is_refused_in_one_sentence(
    federation: ServerFolder,
    spoil: Callable[[list[bytes]], list[bytes]],
    reason: str,
) -> None:
    write_lines(federation, spoil(lines_of(federation)))
    assert reason in refusal("federation", "audit", federation.federation)


def test_every_byte_counts(federation: ServerFolder) -> None:
    """Of the last line; a bit is flipped in each."""
    lines = lines_of(federation)
    for position in range(len(lines[-1])):
        spoilt = bytearray(lines[-1])
        spoilt[position] ^= 1
        write_lines(federation, [*lines[:-1], bytes(spoilt)])
        with pytest.raises(UserError, match=r"line 4|3 are there|5 are there"):
            read_audit(federation.audit_file, federation.authority)


def test_a_line_signed_by_another_key_is_refused(federation: ServerFolder, tmp_path: Path) -> None:
    """By a server of another authority, whose certificate the line brings along."""
    other = ServerFolder.create(tmp_path / "other", ["a"], "127.0.0.1", 1, "127.0.0.1", "builtin")
    federation.certificate.write_bytes(other.certificate.read_bytes())
    federation.key.write_bytes(other.key.read_bytes())
    federation.audit.record("remove", partner="a")
    assert "line 5 brings a certificate that the authority has not signed" in refusal(
        "federation", "audit", federation.federation
    )


def test_a_key_and_a_certificate_that_do_not_belong_together_sign_nothing(
    federation: ServerFolder,
) -> None:
    key = federation.key.read_bytes()
    federation.rotate()
    federation.key.write_bytes(key)
    with pytest.raises(UserError, match="do not belong together; make both anew"):
        federation.audit.record("remove", partner="a")


def test_it_goes_on_under_new_keys_of_the_server_and_of_the_authority(
    federation: ServerFolder,
) -> None:
    old = federation.authority.read_bytes()
    for authority in (False, True, False):
        federation.rotate(authority)
    federation.add("c")
    rotated = ["rotate"] * 3
    assert acts(federation) == ["create", "add", "add", "remove", *rotated, "add"]
    assert (federation.federation / "partners/a/ca.crt").read_bytes() != old
    federation.authority.write_bytes(old)
    with pytest.raises(UserError, match="this is not of the federation whose authority is"):
        acts(federation)


def test_openssl_finds_the_signatures_good(federation: ServerFolder, tmp_path: Path) -> None:
    federation.rotate()
    certificate = tmp_path / "certificate.pem"
    for line in lines_of(federation):
        body = json.loads(line)
        signature = base64.b64decode(body.pop("signature"))
        if "certificate" in body:
            certificate.write_text(body["certificate"])
            chain = ["openssl", "verify", "-CAfile", federation.authority, certificate]
            subprocess.run(chain, check=True, capture_output=True)
            public = ["openssl", "x509", "-in", certificate, "-pubkey", "-noout"]
            (tmp_path / "public.pem").write_bytes(subprocess.check_output(public))
        signed = json.dumps(body, sort_keys=True, separators=(",", ":"))
        (tmp_path / "signed").write_text(signed)
        (tmp_path / "signature").write_bytes(signature)
        verify = ["openssl", "dgst", "-sha256", "-verify", "public.pem"]
        done = subprocess.run(
            [*verify, "-signature", "signature", "signed"], cwd=tmp_path, capture_output=True
        )
        assert done.stdout == b"Verified OK\n", done.stderr


def test_a_line_that_a_crash_cut_short_is_passed_over_and_written_over(
    federation: ServerFolder,
) -> None:
    whole = federation.audit_file.read_bytes()
    head = federation.audit_file.with_suffix(".head").read_bytes()
    federation.audit.record("add", partner="c")
    line = federation.audit_file.read_bytes()[len(whole) :]
    for length in range(0, len(line), 7):
        federation.audit_file.write_bytes(whole + line[:length])
        federation.audit_file.with_suffix(".head").write_bytes(head)
        assert acts(federation) == ["create", "add", "add", "remove"]
        federation.audit.record("serve")
        assert acts(federation) == ["create", "add", "add", "remove", "serve"]
    federation.audit_file.write_bytes(whole + line)  # the line is whole, and the head was not told
    federation.audit_file.with_suffix(".head").write_bytes(head)
    federation.audit.record("serve")
    assert acts(federation) == ["create", "add", "add", "remove", "add", "serve"]


def test_nothing_is_added_where_lines_are_missing(federation: ServerFolder) -> None:
    write_lines(federation, lines_of(federation)[:-1])
    with pytest.raises(UserError, match="4 lines were written and 3 are there"):
        federation.remove("a")
    assert federation.settings().partners == ("a",), "nothing is done without its line"


def test_who_has_noted_a_hash_sees_that_the_file_was_written_anew(
    federation: ServerFolder,
) -> None:
    """By somebody who has the server's key."""
    *_, noted = read_audit(federation.audit_file, federation.authority)
    assert read_audit(federation.audit_file, federation.authority, noted.digest)
    for file in federation.path.glob("audit.*"):
        file.unlink()
    federation.audit.record("create")
    command = ("federation", "audit", federation.federation, "--known", noted.digest)
    assert f"no line has the hash {noted.digest}" in refusal(*command)


def test_two_processes_at_once_make_one_chain(federation: ServerFolder) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from fullfed.deployment.folders import ServerFolder\n"
        "for n in range(20): ServerFolder(Path(sys.argv[1])).audit.record('serve', n=n)\n"
    )
    command = [sys.executable, "-c", code, str(federation.federation)]
    writers = [subprocess.Popen(command) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert acts(federation)[4:] == ["serve"] * 40


def test_there_is_no_file_before_the_first_act(federation: ServerFolder) -> None:
    """As in a federation of an earlier version."""
    for file in federation.path.glob("audit.*"):
        file.unlink()
    text = refusal("federation", "audit", federation.federation)
    assert "audit.jsonl: the file cannot be read (No such file or directory)" in text
    federation.add("c")
    assert acts(federation) == ["add"]


def test_the_acts_are_those_that_the_page_names() -> None:
    page = (Path(__file__).parents[2] / "docs" / "flower.md").read_text()
    section = page.partition("### The audit file")[2].partition("\n#")[0]
    for act in ACTS:
        assert f"`{act}`" in section, act


def test_who_comes_and_goes_is_recorded_once(
    federation: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attendance, "LOOK_SECONDS", 0.0)
    states: dict[str, RegisteredNode] | None = None

    def known() -> dict[str, RegisteredNode]:
        if states is None:
            raise UserError("the server does not answer")
        return states

    said: list[str] = []
    watch = Attendance(federation.audit, known, said.append)
    for one in (
        {"a": RegisteredNode("registered", "")},
        {"a": RegisteredNode("online", "t1"), "b": RegisteredNode("online", "t1")},
        {"a": RegisteredNode("online", "t1"), "b": RegisteredNode("online", "t1")},
        None,
        None,
        {"a": RegisteredNode("online", "t3"), "b": RegisteredNode("offline", "t2")},
        {"a": RegisteredNode("online", "t3")},
    ):
        states = one
        watch.look()
    lines = read_audit(federation.audit_file, federation.authority)[4:]
    assert [(line.act, *line.about.values()) for line in lines] == [
        *(("join", "a", "t1"), ("join", "b", "t1")),
        *(("leave", "b", "t2"), ("join", "a", "t3")),
    ]
    assert said == ["the server does not answer"]


@pytest.mark.usefixtures("flower_process")
def test_the_limits_of_each_partner_hold_and_its_refusals_are_recorded(
    federation: ServerFolder, folder: Path, tmp_path: Path
) -> None:
    """In one run two nodes allow what is asked of them, and two do not, each for its own reason."""
    fedavg = recipe_of(folder, 2, method={"name": "fedavg"})
    strict = {1: {"methods": ["ferret"]}, 2: {"most_steps": 1}}
    nodes = [node_worker(folder, n, tmp_path / f"state-{n}", **strict.get(n, {})) for n in range(4)]
    members = fix_members(
        tmp_path,
        [Partner(name=name, key=name) for name in PARTNERS],
        anew=True,
    )
    with RunAudit(federation.audit, members) as audit:
        run = carry_out(fedavg, Dictionary.of(nodes), tmp_path / "run", [audit])
    for node in nodes:
        node.leave()
    assert [record["aggregated"] for record in run.metrics()] == [[0, 3], [0, 3]]
    *refusals, end = read_audit(federation.audit_file, federation.authority)[4:]
    assert [(line.act, line.about["round"], line.about["partner"]) for line in refusals] == [
        ("refuse", round, PARTNERS[n]) for round in range(2) for n in (1, 2)
    ]
    assert "limits.methods of the node: " in refusals[0].about["reason"]
    assert "limits.most_steps of the node: " in refusals[1].about["reason"]
    assert end.about["model"] == run.summary()["model_hash"]
    assert end.about["log"] == run.metrics()[-1]["log"]


def test_why_a_run_stops_is_recorded_and_a_rollback_too(
    federation: ServerFolder, tmp_path: Path
) -> None:
    write_ingredients(tmp_path)
    assembly, ran = assemble(recipe(tmp_path)), RunFolder(tmp_path / "run")
    ran.create(assembly.recipe)
    members = fix_members(ran.path, [], anew=True)
    write_federation(ran.path, federation.federation)
    run.carry_out(ran, assembly)
    with pytest.raises(UserError), RunAudit(federation.audit, members):
        raise UserError("round 1: too few reports")
    command = ["rollback", str(ran.path), "1", "--why", "poisoned"]
    assert CliRunner().invoke(app, command).exit_code == 0
    stop, back = read_audit(federation.audit_file, federation.authority)[4:]
    assert (stop.act, stop.about["reason"]) == ("stop", "round 1: too few reports")
    assert (back.act, back.about) == (
        "rollback",
        {"run": members.run, "version": 1, "why": "poisoned"},
    )


def test_what_a_partner_says_is_shown_on_one_line(federation: ServerFolder) -> None:
    federation.audit.record("refuse", reason="x\n\x1b[2J[red]verified, 9 lines")
    command = ["federation", "audit", str(federation.federation)]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "200"}).output
    assert "reason x  [2J[red]verified, 9 lines" in shown
