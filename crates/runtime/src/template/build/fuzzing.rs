//! Bodies of fuzz targets for what a client sends of a build: steps, and archives of the files that they copy.

use std::io::{Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};

use super::{
    StepSpec, context,
    copy::{self, Placement},
    step::{self, Step},
};

/// What an archive may unpack to.
const LIMIT_BYTES: u64 = 1 << 20;
/// What a step may name as its source.
const PATTERNS: [&str; 5] = ["*", "a", "a/*", "**/b", "."];
const OWNER: u64 = 1234;

/// Steps of a build, one a line, the words of each separated by tabs: they are understood or refused, and what is understood
/// is in bounds.
pub fn build_steps(data: &[u8]) {
    for line in String::from_utf8_lossy(data).lines() {
        let mut words = line.split('\t').map(str::to_owned);
        let kind = words.next().unwrap_or_default();
        let spec = StepSpec { kind, args: words.collect(), ..StepSpec::default() };
        step::title(&spec);
        let Ok(step) = Step::parse(&spec) else { continue };
        assert!(spec.args.iter().all(|arg| !arg.contains('\0')), "no command of the guest has a NUL byte: {spec:?}");
        match step {
            Step::Copy { mode, .. } => assert!(mode.is_none_or(|mode| mode <= 0o7777), "{mode:?} is no mode"),
            Step::Env(pairs) => assert!(pairs.iter().all(|(name, _)| !name.is_empty() && !name.contains('='))),
            Step::Workdir(path) => directory(&path),
            Step::Run { .. } | Step::User { .. } => {}
        }
    }
}

/// A working directory becomes an absolute path that leads nowhere else, whatever its variables hold.
fn directory(path: &str) {
    context::variables(path);
    let expanded = context::expand(path, |name| (name.len() % 2 == 0).then(|| format!("../{name}/$A")));
    let clean = step::clean(&crate::store::Defaults::default().of_builds().absolute(&expanded));
    assert!(clean.starts_with('/') && !clean.split('/').any(|part| part == ".."), "{clean}");
}

/// An archive of files to copy: what is passed on to the guest lies below the destination, with an owner of ours. The first
/// byte chooses the source and whether the destination is there.
pub fn copied_files(data: &[u8]) {
    let Some((&choice, archive)) = data.split_first() else { return };
    let mut file = tempfile::tempfile().expect("a temporary file can be made");
    file.write_all(archive).expect("a temporary file can be written");
    let file = fs_err::File::from_parts(file, "archive");
    let pattern = PATTERNS[usize::from(choice) % PATTERNS.len()];
    let Ok(survey) = copy::survey(file, pattern, LIMIT_BYTES) else { return };
    let owner = u32::try_from(OWNER).expect("a small number");
    let placement = Placement { dest: PathBuf::from("/dest"), into: choice >= 128, uid: owner, gid: owner, mode: None };
    let mut rewritten = tempfile::tempfile().expect("a temporary file can be made");
    if survey.rewrite(&mut rewritten, &placement).is_err() {
        return;
    }
    rewritten.seek(SeekFrom::Start(0)).expect("a file can be read again");
    let mut archive = tar::Archive::new(rewritten);
    for entry in archive.entries().expect("what was written can be read") {
        let entry = entry.expect("what was written is an archive");
        below(&entry.path().expect("it has a path"));
        let header = entry.header();
        let kind = header.entry_type();
        assert!(kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link(), "{kind:?}");
        assert_eq!((header.uid().ok(), header.gid().ok()), (Some(OWNER), Some(OWNER)));
        if kind.is_hard_link() {
            below(&entry.link_name().expect("it has a name").expect("it names a file"));
        }
    }
}

fn below(path: &Path) {
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    assert!(plain && path.starts_with("dest"), "`{}` is elsewhere", path.display());
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const NAMES: [&str; 9] = ["a", "b", "a/b", "a/b/c", "../a", "/b", "./a/./b", "a/../../b", ""];
    const KINDS: &[u8] = b"01257xgLKS";

    fn archive(members: &[(usize, usize, usize, u16)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, name, link, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::new(KINDS[*kind]));
            let raw = header.as_gnu_mut().unwrap();
            raw.name[..NAMES[*name].len()].copy_from_slice(NAMES[*name].as_bytes());
            raw.linkname[..NAMES[*link].len()].copy_from_slice(NAMES[*link].as_bytes());
            header.set_size(u64::from(*content));
            header.set_mode(0o644);
            header.set_cksum();
            bytes.extend(header.as_bytes());
            bytes.resize(bytes.len() + usize::from(*content).next_multiple_of(512), b'1');
        }
        bytes
    }

    proptest! {
        #[test]
        fn steps_of_any_words_are_understood_or_refused(
            steps in vec(("RUN|COPY|ADD|WORKDIR|USER|ENV|ARG|run|\\PC{0,4}", vec("[$:{}A/.=0-9+\\\\-]{0,12}|\\PC{0,8}", 0..5)), 0..6),
        ) {
            let lines: Vec<String> = steps.into_iter().map(|(kind, args)| format!("{kind}\t{}", args.join("\t"))).collect();
            build_steps(lines.join("\n").as_bytes());
        }

        #[test]
        fn whatever_members_are_called_they_stay_below_the_destination(
            choice in any::<u8>(),
            members in vec((0..KINDS.len(), 0..NAMES.len(), 0..NAMES.len(), 0_u16..1500), 0..8),
            cut in 0_usize..600,
        ) {
            let mut data = vec![choice];
            data.extend(archive(&members));
            data.truncate(data.len().saturating_sub(cut));
            copied_files(&data);
        }
    }
}
