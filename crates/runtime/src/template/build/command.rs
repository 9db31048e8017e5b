//! What a build does in its guest: commands of the user, told line by line; scripts of ours; files.

use std::{
    collections::BTreeMap,
    io::{self, Seek},
    time::Duration,
};

use bytes::Bytes;
use firkin_wire::rest::LogLevel;
use futures::TryStreamExt;
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio_util::io::ReaderStream;

use super::{
    error::CommandFailed,
    log::{BuildLog, Lines},
    provision::Script,
};
use crate::{
    machine::{
        command::{self, GuestCommand, OutputStream, Running},
        guest_file::GuestUpload,
        network::Connector,
    },
    store::Defaults,
};

/// One command of a build. Compilations of hours happen.
const COMMAND_DEADLINE: Duration = Duration::from_secs(4 * 3600);

/// One script of ours: a few dozen system calls, or unpacking an archive of some GiB in an emulated guest.
const SCRIPT_DEADLINE: Duration = Duration::from_secs(1800);

/// Bringing one archive into the guest.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(3600);

/// Speaks to the guest of one build.
#[derive(Debug, Clone)]
pub(super) struct Shell<'a> {
    pub(super) connector: Connector,
    pub(super) log: &'a BuildLog,
}

impl Shell<'_> {
    /// Runs a command of the user as `user`, where and with what `context` says. Its output goes into the log as it comes.
    pub(super) async fn run(&self, context: &Defaults, command: &str, user: &str) -> Result<(), CommandFailed> {
        let mut running = self.start(context, command, user, Some(COMMAND_DEADLINE)).await?;
        self.follow(&mut running).await
    }

    /// Starts such a command, which may outlive the build if it has no deadline.
    pub(super) async fn start(
        &self,
        context: &Defaults,
        command: &str,
        user: &str,
        deadline: Option<Duration>,
    ) -> Result<Running, CommandFailed> {
        let mut wanted = GuestCommand::new(command);
        wanted.user = Some(user.to_owned());
        wanted.cwd.clone_from(&context.workdir);
        wanted.env.clone_from(&context.env);
        Ok(command::start(self.connector.clone(), None, &wanted, deadline).await?)
    }

    /// Tells what a command writes until it ends.
    pub(super) async fn follow(&self, running: &mut Running) -> Result<(), CommandFailed> {
        let (mut out, mut err) = (Lines::default(), Lines::default());
        let (info, warn) = (|line: &str| self.log.push(LogLevel::Info, line), |line: &str| self.log.push(LogLevel::Warn, line));
        let ended = running
            .end(&mut |stream, bytes| match stream {
                OutputStream::Stdout => out.push(bytes, info),
                OutputStream::Stderr => err.push(bytes, warn),
            })
            .await;
        out.flush(info);
        err.flush(warn);
        match ended? {
            0 => Ok(()),
            status => Err(CommandFailed::Exit(status)),
        }
    }

    /// Runs a script of ours, with these variables. Gives what it says.
    pub(super) async fn script(&self, script: Script, user: &str, env: &[(&str, &str)]) -> Result<Vec<u8>, CommandFailed> {
        let mut wanted = GuestCommand::new(script.text());
        wanted.user = Some(user.to_owned());
        wanted.cwd = Some("/".to_owned());
        wanted.env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        wanted.deadline = SCRIPT_DEADLINE;
        let output = command::run(self.connector.clone(), None, &wanted).await?;
        if output.exit_code == 0 {
            return Ok(output.stdout);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        match said.trim().lines().last() {
            Some(line) => Err(CommandFailed::Said(line.to_owned())),
            None => Err(CommandFailed::Exit(output.exit_code)),
        }
    }

    /// Values of variables as `user` has them.
    pub(super) async fn variables(
        &self,
        context: &Defaults,
        names: &[String],
    ) -> Result<BTreeMap<String, String>, CommandFailed> {
        let said = self.script(Script::Variables, context.user(), &[("FK_NAMES", &names.join(" "))]).await?;
        let values = said.split(|&byte| byte == 0).map(|value| String::from_utf8_lossy(value).into_owned());
        Ok(names.iter().cloned().zip(values).collect())
    }

    /// Writes a file of root's in the guest.
    pub(super) async fn send(&self, path: &str, mut file: std::fs::File) -> io::Result<()> {
        let length = file.seek(io::SeekFrom::End(0))?;
        file.rewind()?;
        let content = StreamBody::new(ReaderStream::new(tokio::fs::File::from_std(file)).map_ok(Frame::<Bytes>::data));
        GuestUpload { path, length, deadline: TRANSFER_DEADLINE }.send(&self.connector, content).await
    }
}
