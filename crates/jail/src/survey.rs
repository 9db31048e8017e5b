//! Which parts of a jail this host gives, each tried in a process that does nothing else.
//!
//! A part is tried on top of those that are held already, so what is held is held together. That a kernel knows a call proves
//! nothing: containers forbid calls, and operators set limits of none.

use std::io;

use crate::{Part, Standing, part::Held, root, spawn::Trial};

/// What a jail of any program would have on this host.
pub fn survey() -> Vec<(Part, Standing)> {
    let root = root::make(&[], &[]);
    let filter = crate::filter::compile(&crate::filter::EXIT);
    tried(&root, &filter).1
}

/// Tries every part with this root and this filter, either of which may be what is lacking.
pub(crate) fn tried<E: std::error::Error>(
    root: &io::Result<root::Root>,
    filter: &Result<seccompiler::BpfProgram, E>,
) -> (Held, Vec<(Part, Standing)>) {
    let mut held = Held::default();
    let bare = Trial { held, root: None, filter: &[] }.run();
    let parts = Part::ALL.map(|part| {
        let outcome = match (&bare, part, root, filter) {
            (Err(error), ..) => Err(error.to_string()),
            (_, Part::Files, Err(error), _) => Err(error.to_string()),
            (_, Part::Calls, _, Err(error)) => Err(error.to_string()),
            _ => match part.needs().filter(|&needed| !held.has(needed)) {
                Some(needed) => Err(format!("it needs the {needed}")),
                None => {
                    let filter = filter.as_ref().map(Vec::as_slice).unwrap_or_default();
                    let trial = Trial { held: held.with(part), root: root.as_ref().ok(), filter };
                    trial.run().map_err(|error| error.to_string())
                }
            },
        };
        match outcome {
            Ok(()) => {
                held = held.with(part);
                (part, Standing::Held)
            }
            Err(reason) => (part, Standing::Lacking(reason)),
        }
    });
    (held, parts.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::print_stderr, reason = "a skip is printed")]
    #[test]
    fn what_the_caller_has_open_takes_no_part_away() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP: a jail needs root");
            return;
        }
        let before = survey();
        // More than a jail's own process may have.
        let open: Vec<_> = (0..200).map(|_| fs_err::File::open("/dev/null").unwrap()).collect();
        assert_eq!(survey(), before);
        drop(open);
    }

    #[expect(clippy::print_stderr, reason = "a skip is printed")]
    #[test]
    fn what_is_missing_is_named_with_all_that_needs_it() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP: a jail needs root");
            return;
        }
        let (held, parts) = tried(&Err(io::Error::other("no room")), &crate::filter::compile(&crate::filter::EXIT));
        let standing = |part| &parts.iter().find(|(one, _)| *one == part).unwrap().1;
        assert_eq!(*standing(Part::Files), Standing::Lacking("no room".into()));
        assert_eq!(*standing(Part::Paths), Standing::Lacking("it needs the root of its own".into()));
        assert!(!held.has(Part::Files) && !held.has(Part::Paths));
        for (part, standing) in parts.iter().filter(|(part, _)| !matches!(part, Part::Files | Part::Paths)) {
            assert_eq!(held.has(*part), *standing == Standing::Held, "{part}");
        }
    }

    #[expect(clippy::print_stderr, reason = "a skip is printed")]
    #[test]
    fn who_may_make_no_jail_is_told_so_for_each_part() {
        if nix::unistd::geteuid().is_root() {
            eprintln!("SKIP: root may make a jail");
            return;
        }
        assert!(survey().iter().all(|(_, standing)| *standing != Standing::Held));
    }
}
