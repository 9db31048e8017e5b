//! Writes the archive format that the kernel unpacks as its initramfs: cpio "newc", see the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.
//!
//! Owner 0, time 0 and inode numbers in order: the same members give the same bytes, so that an archive's digest says what
//! is in it.

/// An archive being written. Members must come after the directory that holds them.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    members: u32,
}

const TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
/// The kernel does not need it, other readers expect whole blocks.
const BLOCK_BYTES: usize = 512;

impl Archive {
    pub(crate) fn directory(&mut self, path: &str, permissions: u32) {
        self.member(path, DIRECTORY | permissions, (0, 0), &[]);
    }

    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.member(path, REGULAR | permissions, (0, 0), content);
    }

    pub(crate) fn character_device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) {
        self.member(path, CHARACTER_DEVICE | permissions, (major, minor), &[]);
    }

    /// The finished archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.members = 0;
        self.member("TRAILER!!!", 0, (0, 0), &[]);
        self.pad(BLOCK_BYTES);
        self.bytes
    }

    fn member(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let size = u32::try_from(content.len()).expect("no member of an initramfs is near 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("paths are short");
        let links = if mode & TYPE == DIRECTORY { 2 } else { 1 };
        let inode = self.members;
        self.members += 1;
        self.bytes.extend_from_slice(b"070701");
        // inode, mode, uid, gid, links, time, size, device of the file (2), device it names (2), name size, checksum
        for field in [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads an archive back: path, mode and content of each member.
    pub(crate) fn parse(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut members = Vec::new();
        let start = bytes.len();
        loop {
            assert_eq!(&bytes[..6], b"070701", "at offset {}", start - bytes.len());
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + n * 8..14 + n * 8]).unwrap();
                usize::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = std::str::from_utf8(&bytes[110..110 + name_size - 1]).unwrap().to_owned();
            let body = (110 + name_size).next_multiple_of(4);
            let content = bytes[body..body + size].to_vec();
            if name == "TRAILER!!!" {
                return members;
            }
            members.push((name, u32::try_from(mode).unwrap(), content));
            bytes = &bytes[(body + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn members_have_their_types() {
        let mut archive = Archive::default();
        archive.directory("dev", 0o755);
        archive.character_device("dev/console", 0o600, 5, 1);
        archive.file("init", 0o755, b"#!");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % BLOCK_BYTES, 0);
        assert_eq!(
            parse(&bytes),
            vec![
                ("dev".to_owned(), 0o040_755, vec![]),
                ("dev/console".to_owned(), 0o020_600, vec![]),
                ("init".to_owned(), 0o100_755, b"#!".to_vec()),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_file_comes_back(name in "[a-z]{1,20}", content in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut archive = Archive::default();
            archive.file("first", 0o644, &content);
            archive.file(&name, 0o600, &content);
            let members = parse(&archive.finish());
            prop_assert_eq!(&members[0].2, &content);
            prop_assert_eq!(&members[1], &(name, 0o100_600, content));
        }
    }
}
