//! The guest's own programs as bytes: the agent, which becomes `/init` of every sandbox's initramfs, and the MCP gateway, which
//! goes into the template of that name.
//!
//! Its own crate because two binaries need it, the `firkin` command and the tests with virtual machines, and because it has
//! to be built another way than the host's code: see `build.rs`.

/// The guest agent: a static x86-64 Linux executable.
pub const GUEST_AGENT: &[u8] = include_bytes!(env!("FIRKIN_GUEST_BINARY"));

/// The MCP gateway: an executable of the same kind.
pub const MCP_GATEWAY: &[u8] = include_bytes!(env!("FIRKIN_MCP_GATEWAY_BINARY"));

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Read as _, Write as _},
        net::TcpStream,
        os::unix::fs::PermissionsExt as _,
        process::{Command, Stdio},
    };

    use super::{GUEST_AGENT, MCP_GATEWAY};

    /// A program header of this type asks for a dynamic loader, which an initramfs does not have (elf(5)).
    const INTERPRETER: u32 = 3;

    #[test]
    fn both_are_static_executables() {
        for program in [GUEST_AGENT, MCP_GATEWAY] {
            assert_static(program);
        }
    }

    /// As the test of the same name in the guest's crate, of the program as it is linked for guests: with another C library.
    #[test]
    fn the_kernel_is_told_numbers_and_no_addresses_of_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("agent");
        fs_err::write(&program, GUEST_AGENT).unwrap();
        fs_err::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let mut agent = Command::new(&program).args(["envd", "--port", "0"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(agent.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut stream = TcpStream::connect(line.trim().strip_prefix("listening on ").unwrap()).unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let mut told = Vec::new();
        for entry in fs_err::read_dir(format!("/proc/{}/fdinfo", agent.id())).unwrap() {
            // A descriptor may be closed meanwhile.
            let text = fs_err::read_to_string(entry.unwrap().path()).unwrap_or_default();
            let data = text.lines().filter(|line| line.starts_with("tfd:")).filter_map(|line| line.split("data:").nth(1));
            told.extend(data.map(|data| u64::from_str_radix(data.split_whitespace().next().unwrap(), 16).unwrap()));
        }
        agent.kill().unwrap();
        agent.wait().unwrap();
        assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
        assert!(!told.is_empty() && told.iter().all(|data| (1..1 << 16).contains(data)), "{told:x?}");
    }

    fn assert_static(program: &[u8]) {
        let at = |offset: usize, bytes: usize| {
            let mut number = [0; 8];
            number[..bytes].copy_from_slice(&program[offset..offset + bytes]);
            usize::try_from(u64::from_le_bytes(number)).unwrap()
        };
        assert_eq!(&program[..6], b"\x7fELF\x02\x01");
        assert_eq!(at(0x12, 2), 62, "the machine is x86-64");
        let (headers, size, count) = (at(0x20, 8), at(0x36, 2), at(0x38, 2));
        assert!(count > 0);
        for header in 0..count {
            assert_ne!(at(headers + header * size, 4), INTERPRETER as usize, "it needs a dynamic loader");
        }
    }
}
