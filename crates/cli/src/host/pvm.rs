//! KVM by `kvm_pvm`: a module from outside of Linux that runs guests where the host has no virtualisation of its own.
//!
//! Its guests' kernels have to be built for it. One of Debian's hangs at its first instructions, which looks like a KVM that is broken;
//! so the module is named, with what it wants. Firkin boots such a kernel where it is given one; nobody has tried that with it yet.

use std::path::Path;

use super::finding::{Finding, Status};

/// Where the kernel shows its modules, also those that are built in.
pub(super) const MODULES: &str = "/sys/module";
const MODULE: &str = "kvm_pvm";

/// What was found about KVM, with a word about this module where it is what runs guests.
pub(super) fn told(found: Finding, modules: &Path, own_kernel: bool) -> Finding {
    if !modules.join(MODULE).exists() {
        return found;
    }
    let what = format!("this KVM is `{MODULE}`, which wants guest kernels that are built for it");
    let (what, remedy) = if own_kernel {
        (format!("{what}, as yours has to be (not tested by Firkin)"), found.remedy)
    } else {
        let remedy = "`--guest-kernel FILE` boots one of yours (not tested by Firkin), `--engine gvisor` needs no KVM";
        (format!("{what}: stock guests hang"), Some(remedy.to_owned()))
    };
    let status = if remedy.is_some() { found.status.max(Status::Warn) } else { found.status };
    Finding { status, found: format!("{}; {what}", found.found), remedy, lack: found.lack }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_pvm_is_named_with_what_it_wants() {
        let dir = tempfile::tempdir().unwrap();
        let hung = || Finding::warn("a small guest did not end within 5 s", "or accept emulated guests");
        let plain = told(hung(), dir.path(), false);
        assert_eq!(plain.found, "a small guest did not end within 5 s");
        fs_err::create_dir(dir.path().join(MODULE)).unwrap();
        let stock = told(hung(), dir.path(), false);
        assert!(stock.found.contains("`kvm_pvm`") && stock.found.ends_with("stock guests hang"), "{}", stock.found);
        assert!(stock.remedy.unwrap().starts_with("`--guest-kernel FILE`"));
        // That a program of ten instructions runs says nothing about a kernel.
        let small = told(Finding::ok("a guest ran with KVM"), dir.path(), false);
        assert_eq!(small.status, Status::Warn);
    }

    #[test]
    fn a_kernel_that_is_brought_may_be_what_it_wants() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::create_dir(dir.path().join(MODULE)).unwrap();
        let brought = told(Finding::ok("a guest ran with KVM"), dir.path(), true);
        assert_eq!((brought.status, brought.remedy), (Status::Ok, None));
        assert!(brought.found.contains("not tested by Firkin"), "{}", brought.found);
    }
}
