//! What runs and listens in a sandbox: its guest is asked, by a command that reads what its kernel says, and not believed more than a text.

use std::{collections::BTreeSet, time::Duration};

use firkin_dashboard::sandbox::{Inside, Port, Process};
use firkin_runtime::{
    command::{CommandError, GuestCommand},
    runtime::Runtime,
    sandbox::{RuntimeSandbox, SandboxId, SandboxState},
};
use firkin_wire::ENVD_PORT;

use crate::{error::ApiError, hosts::HostName};

/// The guest has so long to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Processes and ports that are shown.
const MAX_SHOWN: usize = 500;

/// Bytes of a command line that are shown.
const MAX_COMMAND_BYTES: usize = 300;

/// One line a process, then the tables of sockets. Nothing but a shell and `cat` is needed, which every image has.
const LOOK: &str = r#"for dir in /proc/[0-9]*; do
pid=${dir#/proc/}; uid=; rss=0; name=
while IFS=: read -r key value; do case $key in Name) name=$value;; Uid) set -- $value; uid=$1;; VmRSS) set -- $value; rss=$1;; esac; done < "$dir/status" 2>/dev/null || continue
line=$(tr '\0\n' '  ' < "$dir/cmdline" 2>/dev/null | head -c 300)
printf 'P\t%s\t%s\t%s\t%s\n' "$pid" "$uid" "$rss" "${line:-[$name]}"
done
while read -r _ local _ state _; do [ "$state" = 0A ] && printf 'L\t%s\n' "$local"; done < <(cat /proc/net/tcp /proc/net/tcp6 2>/dev/null)
while IFS=: read -r name _ uid _; do printf 'U\t%s\t%s\n' "$uid" "$name"; done < /etc/passwd
"#;

/// By what a browser could reach a port.
pub(super) struct Links<'a> {
    /// The host that this page was asked for under.
    pub(super) host: Option<&'a str>,
    /// The server's domain.
    pub(super) domain: Option<&'a str>,
}

/// What runs in a sandbox; nothing of a paused one. The reason where it does not say.
pub(super) async fn look(runtime: &Runtime, sandbox: &RuntimeSandbox, links: &Links<'_>) -> Result<Option<Inside>, String> {
    if sandbox.state != SandboxState::Running {
        return Ok(None);
    }
    let command = GuestCommand { user: Some("root".to_owned()), deadline: PATIENCE, ..GuestCommand::new(LOOK) };
    let output = tokio::time::timeout(PATIENCE, runtime.run(&sandbox.id, &command)).await;
    let output = output.map_err(|_| format!("it did not answer in {} s", PATIENCE.as_secs()))?;
    let output = output.map_err(|error| ApiError::from(error).to_body().message)?;
    let (processes, ports) = parse(&String::from_utf8_lossy(&output.stdout));
    let ports = ports.into_iter().map(|port| shown(sandbox, port, links)).collect();
    Ok(Some(Inside { processes, ports }))
}

fn parse(text: &str) -> (Vec<Process>, BTreeSet<u16>) {
    let (mut processes, mut ports, mut users) = (Vec::new(), BTreeSet::new(), Vec::new());
    for line in text.lines() {
        let mut parts = line.splitn(5, '\t');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("P"), Some(pid), Some(uid), Some(rss), Some(command)) if processes.len() < MAX_SHOWN => {
                let Ok(pid) = pid.parse() else { continue };
                let end = command.char_indices().map(|(at, _)| at).take_while(|at| *at < MAX_COMMAND_BYTES).last().unwrap_or(0);
                let command =
                    if command.len() > MAX_COMMAND_BYTES { format!("{}…", &command[..end]) } else { command.trim().to_owned() };
                processes.push(Process { pid, user: uid.to_owned(), memory_kib: rss.parse().unwrap_or(0), command });
            }
            (Some("L"), Some(local), ..) if ports.len() < MAX_SHOWN => {
                ports.extend(local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok()));
            }
            (Some("U"), Some(uid), Some(name), ..) if users.len() < MAX_SHOWN => users.push((uid.to_owned(), name.to_owned())),
            _ => {}
        }
    }
    for process in &mut processes {
        if let Some((_, name)) = users.iter().find(|(uid, _)| *uid == process.user) {
            process.user.clone_from(name);
        }
    }
    processes.sort_by_key(|process: &Process| process.pid);
    (processes, ports)
}

fn shown(sandbox: &RuntimeSandbox, port: u16, links: &Links<'_>) -> Port {
    let note = match port {
        ENVD_PORT => "envd, which the SDKs speak to",
        49999 => "code interpreter",
        50005 => "MCP gateway",
        _ if sandbox.spec.ingress.private => "needs the sandbox's traffic token",
        _ => "",
    };
    let link = if port == ENVD_PORT || sandbox.spec.ingress.private { None } else { link(&sandbox.id, port, links) };
    Port { port, link, note }
}

/// Under the name that the page was asked for, if it is one: names below it lead here as well, or those below the server's domain do.
fn link(id: &SandboxId, port: u16, links: &Links<'_>) -> Option<String> {
    let host = links.host?;
    let served = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit())).map(|(_, port)| port);
    match (HostName::read(host)?, links.domain) {
        (HostName::Name(name), _) if name == "localhost" || name.ends_with(".localhost") => Some(format!("//{port}-{id}.{host}")),
        (HostName::Address(address), None) if address.to_canonical().is_loopback() => {
            let at = served.map(|served| format!(":{served}")).unwrap_or_default();
            Some(format!("//{port}-{id}.localhost{at}"))
        }
        (_, Some(domain)) => Some(format!("//{port}-{id}.{domain}")),
        (HostName::Name(_) | HostName::Address(_), None) => None,
    }
}

/// Asks a process to end.
pub(super) async fn terminate(runtime: &Runtime, id: &SandboxId, pid: u32) -> Result<(), ApiError> {
    let command = GuestCommand {
        user: Some("root".to_owned()),
        deadline: PATIENCE,
        // A number, so nothing of it is the shell's to read.
        ..GuestCommand::new(format!("kill -TERM {pid}"))
    };
    let output = runtime.run(id, &command).await?;
    if output.exit_code == 0 { Ok(()) } else { Err(ApiError::not_found(format!("process {pid} could not be told to end"))) }
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::NotFound(absent) => absent.into(),
            CommandError::Rpc { .. } | CommandError::Cut => Self::unreachable(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_is_read_as_far_as_it_makes_sense() {
        let text = "P\t7\t1000\t12\t<b>x</b> a\tb\nP\t1\t0\t\tinit\nP\tx\t0\t0\t?\nL\t0100007F:1F90\nL\t00:1F90\nL\tzz\nU\t1000\tuser\n\nP\t2";
        let (processes, ports) = parse(text);
        let shown: Vec<_> = processes.iter().map(|p| (p.pid, p.user.as_str(), p.memory_kib, p.command.as_str())).collect();
        assert_eq!(shown, [(1, "0", 0, "init"), (7, "user", 12, "<b>x</b> a\tb")]);
        assert_eq!(ports.into_iter().collect::<Vec<_>>(), [8080]);
        let (many, _) =
            parse(&(0..MAX_SHOWN + 9).map(|pid| format!("P\t{pid}\t0\t0\t{}\n", "ä".repeat(400))).collect::<String>());
        assert!(many.len() == MAX_SHOWN && many[0].command.ends_with('…'));
    }

    #[test]
    fn ports_are_linked_where_a_browser_finds_them() {
        let id: SandboxId = "iabc".parse().unwrap();
        for (host, domain, expected) in [
            ("localhost:3000", None, Some("//80-iabc.localhost:3000")),
            ("127.0.0.1:3000", None, Some("//80-iabc.localhost:3000")),
            ("[::1]", None, Some("//80-iabc.localhost")),
            ("127.0.0.1:3000", Some("boxes.test"), Some("//80-iabc.boxes.test")),
            ("10.0.0.1", None, None),
        ] {
            assert_eq!(link(&id, 80, &Links { host: Some(host), domain }).as_deref(), expected, "{host}");
        }
    }
}
