"""The process that all kernels are forked from: it has loaded what they need, so that a new one starts at once.

Loading IPython, pandas and matplotlib takes seconds, and most of a minute where the processor is emulated; a fork takes
milliseconds and shares their memory. The agent connects to a socket for each kernel, sends one JSON object with the three
descriptors that become its standard streams, and is told its process id. The kernel leads its own session, so that it is
signalled with all that it has started.

Nothing here may start a thread: only one of them would be in the fork.
"""

import json
import os
import select
import signal
import socket
import sys

HERE = os.path.dirname(os.path.abspath(__file__))

MAX_REQUEST_BYTES = 1 << 20
"""A request names a language, a directory and the sandbox's variables."""


def load() -> str | None:
    """Loads what kernels need. Returns what Python's kernel lacks; the others need nothing but Python itself."""
    import firkin_bash
    import firkin_framed
    import firkin_node

    try:
        import firkin_python
    except ImportError as error:
        return str(error)
    firkin_python.prepare()
    return None


def kernel(language: str, lack: str | None):
    """Becomes the kernel of a language. Returns when it has ended."""
    if language == "python":
        if lack:
            raise SystemExit(lack)
        import firkin_python

        firkin_python.main()
    elif language == "bash":
        import firkin_bash

        firkin_bash.main()
    elif language in ("javascript", "typescript"):
        import firkin_node

        firkin_node.main(language)
    else:
        import firkin_framed

        firkin_framed.main(language)


def fork(request: dict, streams: list[int], ours: list[socket.socket], lack: str | None) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for one in ours:
            one.close()
        for fd, stream in enumerate(streams):
            os.dup2(stream, fd, inheritable=True)
            os.close(stream)
        os.chdir(request["cwd"])
        os.environ.update(request["env"])
        kernel(request["language"], lack)
        status = 0
    except SystemExit as error:
        print(error, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        # Never back into the loop of its parent.
        os._exit(status)


def serve(listener: socket.socket, lack: str | None) -> None:
    connection, _ = listener.accept()
    with connection:
        data, streams, _, _ = socket.recv_fds(connection, MAX_REQUEST_BYTES, 3)
        # The request may come in parts, its descriptors with the first; its end is the end of the stream.
        while part := connection.recv(MAX_REQUEST_BYTES):
            data += part
        try:
            if len(streams) == 3 and len(data) <= MAX_REQUEST_BYTES:
                pid = fork(json.loads(data), streams, [listener, connection], lack)
                connection.sendall(f"{pid}\n".encode())
        finally:
            for stream in streams:
                os.close(stream)


def main():
    sys.path[0] = HERE
    # The kernel takes its own children away, and who interrupts kernels does not mean this process.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    path = sys.argv[1]
    lack = load()
    if os.path.lexists(path):
        os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            # The end of standard input is the end of the agent.
            readable, _, _ = select.select([listener, 0], [], [])
            if 0 in readable:
                return
            try:
                serve(listener, lack)
            except (OSError, ValueError) as error:
                print(f"cannot serve a request: {error}", file=sys.stderr)


main()
