//! The sandbox's own tools: commands and files, with the rights of its ordinary user.
//!
//! Files go through that user's `cat`, `tee` and `find`, so that what the user may not read or write, no client may.

use std::{path::Path, process::Stdio, time::Duration};

use rmcp::{
    ErrorData,
    model::{CallToolResult, ContentBlock, JsonObject, Tool},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

use crate::{
    limits::{COMMAND_SECONDS, MAX_COMMAND_SECONDS, MAX_OUTPUT_BYTES},
    upstream::{USER, as_user},
};

/// Arguments of `sandbox_run_command`.
#[derive(Debug, Deserialize)]
struct RunCommand {
    command: String,
    cwd: Option<String>,
    timeout_seconds: Option<u64>,
}

/// Arguments of `sandbox_run_code`.
#[derive(Debug, Deserialize)]
struct RunCode {
    code: String,
    timeout_seconds: Option<u64>,
}

/// Arguments of tools that take a path alone.
#[derive(Debug, Deserialize)]
struct AtPath {
    path: String,
}

/// Arguments of `sandbox_write_file`.
#[derive(Debug, Deserialize)]
struct WriteFile {
    path: String,
    content: String,
}

/// The tools that every gateway has.
pub(crate) fn tools() -> Vec<Tool> {
    let text = || json!({"type": "string"});
    let seconds = || json!({"type": "integer", "minimum": 1, "maximum": MAX_COMMAND_SECONDS});
    vec![
        tool(
            "sandbox_run_command",
            "Runs a shell command in the sandbox and gives its output and exit status",
            &json!({"command": text(), "cwd": text(), "timeout_seconds": seconds()}),
            &["command"],
        ),
        tool(
            "sandbox_run_code",
            "Runs a Python program in the sandbox, each time in a new process, and gives its output and exit status",
            &json!({"code": text(), "timeout_seconds": seconds()}),
            &["code"],
        ),
        tool("sandbox_read_file", "Reads a text file of the sandbox", &json!({"path": text()}), &["path"]),
        tool(
            "sandbox_write_file",
            "Writes a text file in the sandbox, making the directories above it",
            &json!({"path": text(), "content": text()}),
            &["path", "content"],
        ),
        tool(
            "sandbox_list_files",
            "Lists a directory of the sandbox: kind, size and name of each entry",
            &json!({"path": text()}),
            &["path"],
        ),
    ]
}

fn tool(name: &'static str, description: &'static str, properties: &Value, required: &[&str]) -> Tool {
    let schema = json!({"type": "object", "properties": properties, "required": required});
    let schema = schema.as_object().cloned().unwrap_or_default();
    Tool::new(name, description, schema)
}

/// Calls one of them; `None` if it is not one.
pub(crate) async fn call(name: &str, arguments: Option<&JsonObject>) -> Option<Result<CallToolResult, ErrorData>> {
    Some(match name {
        "sandbox_run_command" => match read(arguments) {
            Ok(asked) => Ok(run_command(asked).await),
            Err(error) => Err(error),
        },
        "sandbox_run_code" => match read(arguments) {
            Ok(asked) => Ok(run_code(asked).await),
            Err(error) => Err(error),
        },
        "sandbox_read_file" => with_path(arguments, &["cat", "--"]).await,
        "sandbox_list_files" => with_path(arguments, &["find", "-H"]).await,
        "sandbox_write_file" => match read(arguments) {
            Ok(asked) => Ok(write_file(asked).await),
            Err(error) => Err(error),
        },
        _ => return None,
    })
}

fn read<T: DeserializeOwned>(arguments: Option<&JsonObject>) -> Result<T, ErrorData> {
    let value = Value::Object(arguments.cloned().unwrap_or_default());
    serde_json::from_value(value).map_err(|error| ErrorData::invalid_params(error.to_string(), None))
}

async fn run_command(asked: RunCommand) -> CallToolResult {
    let directory = asked.cwd.unwrap_or_else(|| absolute(""));
    let command = as_user(&["/bin/bash", "-l", "-c", &asked.command], Path::new(&directory));
    told(run(command, &[], deadline(asked.timeout_seconds)).await)
}

async fn run_code(asked: RunCode) -> CallToolResult {
    let command = as_user(&["python3", "-"], Path::new(&absolute("")));
    told(run(command, asked.code.as_bytes(), deadline(asked.timeout_seconds)).await)
}

fn deadline(seconds: Option<u64>) -> Duration {
    Duration::from_secs(seconds.unwrap_or(COMMAND_SECONDS).min(MAX_COMMAND_SECONDS))
}

/// How a program ended, with all that it wrote.
fn told(ended: Result<Ended, String>) -> CallToolResult {
    match ended {
        Ok(ended) => {
            let text = json!({"exit_code": ended.status, "stdout": ended.stdout, "stderr": ended.stderr}).to_string();
            let content = vec![ContentBlock::text(text)];
            if ended.status == Some(0) { CallToolResult::success(content) } else { CallToolResult::error(content) }
        }
        Err(error) => failed(error),
    }
}

async fn with_path(arguments: Option<&JsonObject>, program: &[&str]) -> Result<CallToolResult, ErrorData> {
    let asked: AtPath = read(arguments)?;
    let path = absolute(&asked.path);
    let mut words = program.to_vec();
    words.push(&path);
    if program[0] == "find" {
        words.extend(["-mindepth", "1", "-maxdepth", "1", "-printf", "%y %s %f\\n"]);
    }
    Ok(plain(run(as_user(&words, Path::new("/")), &[], Duration::from_secs(COMMAND_SECONDS)).await))
}

async fn write_file(asked: WriteFile) -> CallToolResult {
    let path = absolute(&asked.path);
    let script = "mkdir -p -- \"$(dirname -- \"$1\")\" && cat >\"$1\"";
    let command = as_user(&["/bin/sh", "-c", script, "sh", &path], Path::new("/"));
    plain(run(command, asked.content.as_bytes(), Duration::from_secs(COMMAND_SECONDS)).await)
}

/// Paths are meant from the user's home on.
fn absolute(path: &str) -> String {
    Path::new(&format!("/home/{USER}")).join(path).to_string_lossy().into_owned()
}

/// Its output if a program succeeded, its complaint if not.
fn plain(ended: Result<Ended, String>) -> CallToolResult {
    match ended {
        Ok(ended) if ended.status == Some(0) => CallToolResult::success(vec![ContentBlock::text(ended.stdout)]),
        Ok(ended) => failed(ended.stderr.trim().to_owned()),
        Err(error) => failed(error),
    }
}

fn failed(reason: String) -> CallToolResult {
    CallToolResult::error(vec![ContentBlock::text(reason)])
}

/// How a command ended. The status is absent when a signal ended it.
#[derive(Debug)]
struct Ended {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs a command to its end, or ends it with all that it has started.
async fn run(mut command: Command, input: &[u8], deadline: Duration) -> Result<Ended, String> {
    command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().map_err(|error| format!("cannot run the command: {error}"))?;
    let group = child.id();
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        match stdin {
            // Dropped at the end, which the command sees as the end of its input.
            Some(mut stdin) => stdin.write_all(input).await,
            None => Ok(()),
        }
    };
    let work = async { tokio::join!(feed, gather(stdout), gather(stderr), child.wait()) };
    let Ok((fed, stdout, stderr, status)) = tokio::time::timeout(deadline, work).await else {
        end(group);
        return Err(format!("the command did not end within {} s and was killed", deadline.as_secs()));
    };
    let status = status.map_err(|error| format!("cannot wait for the command: {error}"))?;
    if let Err(error) = fed
        && status.success()
    {
        return Err(format!("cannot write the command's input: {error}"));
    }
    Ok(Ended { status: status.code(), stdout, stderr })
}

/// Kills a process group. That it has gone by itself meanwhile is as well.
fn end(group: Option<u32>) {
    use nix::{
        sys::signal::{Signal, killpg},
        unistd::Pid,
    };
    if let Some(group) = group.and_then(|id| i32::try_from(id).ok())
        && killpg(Pid::from_raw(group), Signal::SIGKILL).is_err()
    {
        // Nothing is left to kill.
    }
}

/// Reads all, keeps what is within the limit, and says that there was more.
async fn gather(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let (mut kept, mut buffer, mut more) = (Vec::new(), vec![0; 16 << 10], false);
    // What cannot be read any more has ended, like what was read to its end.
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = MAX_OUTPUT_BYTES - kept.len();
        kept.extend_from_slice(&buffer[..count.min(room)]);
        more |= count > room;
    }
    let mut text = String::from_utf8_lossy(&kept).into_owned();
    if more {
        text.push_str("\n[the rest was left out]");
    }
    text
}
