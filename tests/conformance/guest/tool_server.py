"""A smallest MCP server on standard input and output: a tool that adds, and one that ends the server.

The environment variable GREETING is part of an answer, to show that it arrived.
"""

import json
import os
import sys


def tool(name, properties):
    return {"name": name, "description": name, "inputSchema": {"type": "object", "properties": properties}}


def answer(method, params):
    if method == "initialize":
        info = {"name": "tool-server", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info}
    if method == "tools/list":
        return {"tools": [tool("add", {"a": {"type": "number"}, "b": {"type": "number"}}), tool("end", {})]}
    if method == "tools/call" and params["name"] == "add":
        arguments = params["arguments"]
        text = f"{os.environ.get('GREETING', '')}{arguments['a'] + arguments['b']}"
        return {"content": [{"type": "text", "text": text}]}
    if method == "tools/call" and params["name"] == "end":
        sys.exit(3)
    return {} if method == "ping" else None


for line in sys.stdin:
    request = json.loads(line)
    if "id" not in request:
        continue
    result = answer(request["method"], request.get("params") or {})
    reply = {"error": {"code": -32601, "message": "unknown"}} if result is None else {"result": result}
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"]} | reply), flush=True)
