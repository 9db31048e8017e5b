"""What an operator is told of a cluster, and what is refused that does not go together: with cause and remedy, and nothing is lost by it."""

import json
import shutil

import e2b
import pytest
from e2b import SandboxState
from own_cluster import ONLY_GVISOR, Cluster, at, cluster, listed  # noqa: F401 (`cluster` is a fixture)
from support import SANDBOX_LIFETIME_S, wait_for

pytestmark = pytest.mark.lacking(emulated=ONLY_GVISOR, kvm=ONLY_GVISOR)


def looked(cluster: Cluster, *words: str, fails: bool = False):
    """What a command that looks at the cluster prints, as JSON; whether it ends with 1 as it should."""
    line = [cluster.program, "--json", *map(str, words), *cluster.options]
    status, printed, said = cluster.ended(line)
    assert (status != 0) == fails, printed + said
    return json.loads(printed)


def test_an_operator_is_told_how_a_cluster_is_and_where_things_go(cluster):
    cluster.firkin("cluster", "found", "--state-dir", cluster.database.dir / "nobody", *cluster.options)
    empty = looked(cluster, "cluster", "status", fails=True)
    assert empty["nodes"] == {} and "no node takes new" in empty["problems"][-1]
    one, two = cluster.node("one"), cluster.node("two")
    for server in (one, two):
        server.start(*server.as_node)
    key = one.client["api_key"]
    wait_for(lambda: listed(two, key).is_success, "the second node to know a key that the first has made")
    sandbox = e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, **one.client)
    sandbox.files.write("/home/user/file", "kept")
    home = at(one, key, sandbox).headers["x-firkin-node"]
    other = "two" if home == "one" else "one"

    status = looked(cluster, "cluster", "status", fails=True)
    assert status["nodes"] == {"ready": 2}
    # The database of a test writes nothing to the disk, and is told so.
    assert ["fsync" in problem for problem in status["problems"]] == [True], status["problems"]
    assert {one_of["node"]: one_of["running"] for one_of in status["sandboxes"]} == {home: 1, other: 0}
    assert abs(status["database"]["clock_ahead_ms"]) < 5000 and status["database"]["round_trip_ms"] > 0

    def said() -> bool:
        info = looked(cluster, "node", "info", home)
        return info["info"]["running"] == 1 and info["info"]["serves"]

    wait_for(said, "the node to say what it has")
    info = looked(cluster, "node", "info", home)
    assert (info["state"], info["info"]["engines"], len(info["info"]["holds"]) > 0) == ("ready", ["gvisor"], True), info
    assert info["lease_left_s"] > 60 and info["since_s"] < 3600

    explained = looked(cluster, "cluster", "explain", "base")
    assert explained["runs_on"] == "gvisor" and {one_of["node"] for one_of in explained["asked"]} == {"one", "two"}, explained
    cluster.firkin("node", "cordon", other, "--reason", "a new disk", *cluster.options)
    explained = looked(cluster, "cluster", "explain", "base")
    assert [one_of["node"] for one_of in explained["asked"]] == [home]
    assert explained["passed_over"] == [{"node": other, "why": "cordoned"}]
    assert any("a new disk" in note for note in looked(cluster, "cluster", "status", fails=True)["notes"])
    assert looked(cluster, "node", "info", other)["reason"] == "a new disk"
    assert "no template `none`" in cluster.firkin("cluster", "explain", "none", *cluster.options, fails=True)

    # What the host lacks is told as well; here it is what is said of the cluster.
    def doctored() -> dict[str, list[tuple[str, str]]]:
        line = [cluster.program, "--json", "doctor", *cluster.options]
        checks: dict[str, list[tuple[str, str]]] = {}
        for check in json.loads(cluster.ended(line)[1]):
            checks.setdefault(check["name"], []).append((check["status"], check["found"]))
            assert check["status"] == "ok" or check["remedy"], check
        return checks

    checks = doctored()
    for name in ("cluster secret", "cluster tables", "clock", "lease times"):
        assert [status for status, _ in checks[name]] == ["ok"], checks[name]
    assert [status for status, _ in checks["cluster database"]] == ["warn"], checks["cluster database"]
    assert [status for status, _ in checks["peer port"]] == ["ok", "ok"], checks["peer port"]
    assert all("shook hands" in found for _, found in checks["peer port"])

    # Its files are on its node alone; once that is away, that is told.
    assert looked(cluster, "cluster", "stranded") == []
    assert sandbox.pause()
    lost = one if home == "one" else two
    lost.kill()
    assert any(status == "fail" and "nobody answers" in found for status, found in doctored()["peer port"]), "it still has its lease"
    cluster.firkin("node", "forget", home, "--it-is-off", "--reason", "its disk is gone", *cluster.options)
    stranded = looked(cluster, "cluster", "stranded", fails=True)
    assert [(one_of["node"], one_of["state"], one_of["sandbox"], one_of["verdict"]) for one_of in stranded] == [
        (home, "forgotten", sandbox.sandbox_id, "stranded")
    ]
    status = looked(cluster, "cluster", "status", fails=True)
    assert status["nodes"] == {"cordoned": 1, "forgotten": 1}
    assert any("1 paused" in note and "its disk is gone" in note for note in status["notes"]), status["notes"]
    lost.start(*lost.as_node)
    assert looked(cluster, "cluster", "stranded") == []
    again = e2b.Sandbox.connect(sandbox.sandbox_id, timeout=SANDBOX_LIFETIME_S, **lost.client | {"api_key": key})
    assert again.files.read("/home/user/file") == "kept"
    again.kill()
    for server in (one, two):
        server.stop()


def test_what_does_not_go_together_is_refused_with_cause_and_remedy_and_nothing_is_lost(cluster):
    cluster.firkin("cluster", "found", "--state-dir", cluster.database.dir / "nobody", *cluster.options)
    one = cluster.node("one")
    one.start(*one.as_node)
    sandbox = e2b.Sandbox.create(timeout=SANDBOX_LIFETIME_S, **one.client)
    sandbox.files.write("/home/user/file", "kept")
    assert sandbox.pause()
    one.stop()

    def refused(server, *causes: str, options=None) -> None:
        told = cluster.refused(server, *(options or server.as_node))
        for cause in (*causes, "hint: "):
            assert cause in told, told

    # A secret that is another one's.
    secret = cluster.database.dir / "other.secret"
    secret.write_text("ab" * 32)
    secret.chmod(0o600)
    wrong = [str(secret) if word == str(cluster.secret) else word for word in one.as_node]
    refused(one, "the secret of this node is another one's", "give this node the secret", options=wrong)

    # A clock that certificates do not bear: it is the database's that is set, in the eyes of who asks.
    database = cluster.database
    database.sql(
        "SET allow_system_table_mods = on; ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO real_clock_timestamp; "
        "CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS "
        "$$SELECT pg_catalog.real_clock_timestamp() + interval '2 hours'$$"
    )
    refused(one, "s behind that of the cluster's database", "bear 1800 s", "NTP")
    database.sql(
        "SET allow_system_table_mods = on; DROP FUNCTION pg_catalog.clock_timestamp(); "
        "ALTER FUNCTION pg_catalog.real_clock_timestamp() RENAME TO clock_timestamp"
    )

    # Tables of a version to come.
    database.sql("UPDATE firkin.catalogue SET schema = schema + 97, written_by = '9.9.9'")
    refused(one, "were written by firkin 9.9.9", "use the version of firkin that they are of")
    database.sql("UPDATE firkin.catalogue SET schema = schema - 97")

    # A database that went back: to before this node's last start.
    database.stop()
    before = database.dir / "before"
    shutil.copytree(database.dir / "data", before)
    own(before)
    database.start()
    copy = cluster.node("copy")
    shutil.copytree(one.state, copy.state, symlinks=True)
    one.start(*one.as_node)

    # A copied state directory: while its node runs, and once it has run since.
    refused(copy, "runs already, on host", "make a new one for this node")
    one.stop()
    refused(copy, "another copy of the directory has had it since", "firkin cluster restore-check")

    database.stop()
    (database.dir / "data").rename(database.dir / "after")
    before.rename(database.dir / "data")
    database.start()
    refused(one, "it is a copy from before", "to a moment after this node's last start")
    database.stop()
    (database.dir / "data").rename(before)
    (database.dir / "after").rename(database.dir / "data")
    database.start()

    # What was refused has taken nothing with it.
    one.start(*one.as_node)
    assert cluster.nodes()["one"]["term"] == 3
    info = e2b.Sandbox.get_info(sandbox.sandbox_id, **one.client)
    assert info.state == SandboxState.PAUSED
    again = e2b.Sandbox.connect(sandbox.sandbox_id, timeout=SANDBOX_LIFETIME_S, **one.client)
    assert again.files.read("/home/user/file") == "kept"
    again.kill()
    one.stop()


def own(directory) -> None:
    """Gives a copy of a database to whom the database runs as."""
    for path in (directory, *directory.rglob("*")):
        shutil.chown(path, directory.parent.stat().st_uid, directory.parent.stat().st_gid)
