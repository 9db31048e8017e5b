//! What a machine is booted from, beside its root disk: a kernel and what it starts, or nothing but that disk.

use std::path::PathBuf;

use crate::StartError;

/// A file that machines are booted from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its digest: equal ones are equal files.
    pub digest: String,
}

/// What a machine is booted from, beside its root disk. Who works above an engine hands it on as it was told: what is in it is
/// between an engine and who made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootFiles {
    /// A Linux kernel, and what it starts.
    Kernel(KernelFiles),
    /// Nothing: the engine is the kernel, and the root image has the agent that it starts.
    InRootImage {
        /// The agent's digest: equal ones are equal agents.
        agent: String,
    },
}

/// What a machine of its own is booted from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelFiles {
    /// Linux kernel image.
    pub kernel: BootFile,
    /// Initial RAM file system with the guest agent.
    pub initrd: BootFile,
    /// Added to the kernel's command line.
    pub cmdline: String,
}

impl KernelFiles {
    /// Without more on the command line.
    pub fn new(kernel: BootFile, initrd: BootFile) -> Self {
        Self { kernel, initrd, cmdline: String::new() }
    }
}

impl BootFiles {
    /// A kernel and its initial RAM file system, without more on the command line.
    pub fn new(kernel: BootFile, initrd: BootFile) -> Self {
        Self::Kernel(KernelFiles::new(kernel, initrd))
    }

    /// All that two boots differ by: results of a boot may be kept under it.
    pub fn key(&self) -> [&str; 3] {
        match self {
            Self::Kernel(KernelFiles { kernel, initrd, cmdline }) => [&kernel.digest, &initrd.digest, cmdline],
            Self::InRootImage { agent } => ["", agent, ""],
        }
    }

    /// Digests of what runs in a guest before its disk does: the kernel, which is empty where the engine is it, and what holds the agent.
    pub fn digests(&self) -> [&str; 2] {
        let [kernel, agent, _] = self.key();
        [kernel, agent]
    }

    /// The kernel's, for an engine that boots one.
    pub fn kernel(&self) -> Result<&KernelFiles, StartError> {
        match self {
            Self::Kernel(files) => Ok(files),
            Self::InRootImage { .. } => Err(StartError::Refused {
                phase: "what to boot",
                reason: "it has no kernel: it is for another engine".to_owned(),
            }),
        }
    }
}
