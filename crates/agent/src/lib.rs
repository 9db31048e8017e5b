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
    use super::{GUEST_AGENT, MCP_GATEWAY};

    /// A program header of this type asks for a dynamic loader, which an initramfs does not have (elf(5)).
    const INTERPRETER: u32 = 3;

    #[test]
    fn both_are_static_executables() {
        for program in [GUEST_AGENT, MCP_GATEWAY] {
            assert_static(program);
        }
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
