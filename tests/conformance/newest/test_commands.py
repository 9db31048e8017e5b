"""Commands: output, exit, users, directories, variables, standard input, signals, deadlines."""

import pytest
from support import wait_for
from e2b import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    TimeoutException,
)


def test_output_and_errors_arrive_apart(sandbox):
    result = sandbox.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code, result.error) == ("out\n", "err\n", 0, None)


def test_text_is_utf8_and_e2bs_files_say_where_a_program_is(sandbox):
    told = sandbox.commands.run("printf 'äö' | wc -m; cd /run/e2b; cat .E2B_SANDBOX .E2B_SANDBOX_ID; echo; stat -c %a /dev/fuse")
    assert told.stdout == f"2\ntrue{sandbox.sandbox_id}\n666\n"


def test_a_failing_command_raises_with_everything_it_said(sandbox):
    with pytest.raises(CommandExitException) as failed:
        sandbox.commands.run("echo before; echo why >&2; exit 42")
    assert failed.value.exit_code == 42
    assert (failed.value.stdout, failed.value.stderr) == ("before\n", "why\n")
    assert failed.value.error == "exit status 42"


def test_callbacks_see_the_output_as_it_comes(sandbox):
    seen = {"out": "", "err": ""}
    sandbox.commands.run(
        "echo one; echo two >&2",
        on_stdout=lambda chunk: seen.update(out=seen["out"] + chunk),
        on_stderr=lambda chunk: seen.update(err=seen["err"] + chunk),
    )
    assert seen == {"out": "one\n", "err": "two\n"}


def test_long_output_is_complete(sandbox):
    lines = sandbox.commands.run("seq 1 50000").stdout.splitlines()
    assert lines == [str(number) for number in range(1, 50001)]


def test_text_beyond_ascii_survives(sandbox):
    text = "grüße, 世界 🦀"
    assert sandbox.commands.run(f"printf '%s' '{text * 500}'").stdout == text * 500


def test_commands_run_in_a_login_shell_of_the_default_user(sandbox):
    said = sandbox.commands.run("whoami; pwd; id -u; echo $HOME $USER $LOGNAME; shopt -q login_shell && echo login")
    assert said.stdout.splitlines() == ["user", "/home/user", "1000", "/home/user user user", "login"]


def test_a_command_can_run_as_root(sandbox):
    assert sandbox.commands.run("whoami; pwd; echo $HOME", user="root").stdout.splitlines() == ["root", "/root", "/root"]


def test_the_default_user_may_become_root_without_a_password(sandbox):
    assert sandbox.commands.run("sudo -n whoami").stdout == "root\n"


def test_an_unknown_user_is_refused(sandbox):
    with pytest.raises(AuthenticationException, match="nobody-here"):
        sandbox.commands.run("true", user="nobody-here")


def test_the_working_directory_can_be_chosen(sandbox, folder):
    assert sandbox.commands.run("pwd", cwd=folder).stdout == f"{folder}\n"
    with pytest.raises(InvalidArgumentException, match="/no/such/place"):
        sandbox.commands.run("pwd", cwd="/no/such/place")


def test_variables_of_the_sandbox_and_of_the_command(sandbox):
    said = sandbox.commands.run("echo $FROM_CREATE $SHADOWED $FROM_RUN", envs={"SHADOWED": "run", "FROM_RUN": "also"})
    assert said.stdout == "create run also\n"
    assert sandbox.commands.run("echo $SHADOWED").stdout == "create\n"


def test_a_sandbox_knows_that_it_is_one(sandbox):
    assert sandbox.commands.run("echo $E2B_SANDBOX $E2B_SANDBOX_ID").stdout == f"true {sandbox.sandbox_id}\n"


def test_the_base_template_has_its_tools(sandbox):
    tools = "python python3 gcc make git curl sudo node npm ps ip"
    missing = sandbox.commands.run(f"for tool in {tools}; do command -v $tool >/dev/null || echo $tool; done")
    assert missing.stdout == ""
    assert sandbox.commands.run("python -c 'print(6 * 7)'").stdout == "42\n"


def test_a_background_command_is_waited_for(sandbox, folder):
    command = sandbox.commands.run(f"until [ -e {folder}/go ]; do sleep 0.05; done; echo went", background=True)
    assert command.pid > 0
    sandbox.files.write(f"{folder}/go", "")
    assert command.wait().stdout == "went\n"


def test_standard_input_is_written_and_closed(sandbox):
    command = sandbox.commands.run("cat; echo end", background=True, stdin=True)
    sandbox.commands.send_stdin(command.pid, "one\n")
    sandbox.commands.send_stdin(command.pid, b"two\n")
    sandbox.commands.close_stdin(command.pid)
    assert command.wait().stdout == "one\ntwo\nend\n"


def test_standard_input_is_empty_unless_asked_for(sandbox):
    assert sandbox.commands.run("cat; echo end").stdout == "end\n"


def test_standard_input_can_be_streamed(driver, sandbox):
    command = sandbox.commands.run("for n in 1 2 3; do read line; echo got $line; done", background=True, stdin=True)
    chunks = ["a\n", "b\n", b"c\n"]
    if isinstance(driver, type):
        sandbox.commands.stream_input(command.pid, chunks)
    else:
        stream = sandbox.commands.stream_input(command.pid)
        for chunk in chunks:
            stream.send(chunk)
        stream.close()
    assert command.wait().stdout == "got a\ngot b\ngot c\n"


def test_a_killed_command_says_so(sandbox):
    command = sandbox.commands.run("sleep 1000", background=True, timeout=0)
    assert command.kill() is True
    with pytest.raises(CommandExitException) as failed:
        command.wait()
    assert failed.value.exit_code == -1
    assert failed.value.error == "signal: killed"
    wait_for(lambda: sandbox.commands.kill(command.pid) is False, "the process to be forgotten")


def test_killing_what_never_was_is_false(sandbox):
    assert sandbox.commands.kill(999_999) is False


def test_listing_shows_running_commands_only(sandbox):
    command = sandbox.commands.run(
        "sleep 1000", background=True, timeout=0, cwd="/tmp", envs={"MARK": "listed"}
    )
    (listed,) = [process for process in sandbox.commands.list() if process.pid == command.pid]
    assert listed.cmd == "/bin/bash"
    assert listed.args == ["-l", "-c", "sleep 1000"]
    assert listed.cwd == "/tmp"
    assert listed.envs["MARK"] == "listed"
    command.kill()
    wait_for(
        lambda: command.pid not in [process.pid for process in sandbox.commands.list()],
        "the killed command to leave the list",
    )


def test_a_command_outlives_its_client_and_can_be_joined_again(sandbox):
    first = sandbox.commands.run("read line; echo got $line", background=True, stdin=True, timeout=0)
    first.disconnect()
    second = sandbox.commands.connect(first.pid)
    assert second.pid == first.pid
    sandbox.commands.send_stdin(first.pid, "word\n")
    assert second.wait().stdout == "got word\n"


def test_joining_what_never_was_is_an_error(sandbox):
    with pytest.raises(NotFoundException, match="999999"):
        sandbox.commands.connect(999_999)
    with pytest.raises(NotFoundException):
        sandbox.commands.send_stdin(999_999, "x")


def test_a_command_past_its_timeout_is_killed_with_its_children(sandbox):
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 4711 & sleep 4711", timeout=1)
    wait_for(
        lambda: sandbox.commands.run("pgrep -fx 'sleep 4711' || true").stdout == "",
        "the timed out command and its child to be gone",
    )


def test_several_commands_run_at_once(sandbox, folder):
    # Each waits for the next one's file, the last one writes first: in sequence they would never end.
    commands = [
        sandbox.commands.run(f"until [ -e {n + 1} ]; do sleep 0.05; done; touch {n}", background=True, cwd=folder)
        for n in range(3)
    ]
    sandbox.commands.run("touch 3", cwd=folder)
    for command in commands:
        assert command.wait().exit_code == 0


def test_a_guest_sees_no_virtualisation_that_was_not_asked_for(sandbox):
    flags = sandbox.commands.run("grep -m 1 ^flags /proc/cpuinfo").stdout.split()
    assert "fpu" in flags
    assert not {"svm", "vmx"} & set(flags)
