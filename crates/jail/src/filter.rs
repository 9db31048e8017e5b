//! The system calls that are left: a list of those allowed, compiled to a filter.
//!
//! What is not on the list is answered as by a kernel that does not have it, for which libraries have a second way; nothing is
//! killed, so a program that asks for more than it needs still runs. A call of another architecture ends the process: the list
//! says nothing of its numbers.

use std::collections::BTreeMap;

use nix::libc::{ENOSYS, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// A system call that may be made. Listed twice, it may be made in either way.
#[derive(Debug, Clone, Copy)]
pub struct Allowed {
    /// Its number.
    pub call: c_long,
    /// What its arguments must be, all of it.
    pub only: &'static [Condition],
}

/// What one argument of a call must be.
#[derive(Debug, Clone, Copy)]
pub struct Condition {
    /// Which, from 0.
    pub argument: u8,
    /// The bits that are looked at.
    pub mask: u64,
    /// What they must be.
    pub value: u64,
}

/// Compiles the list. Fails on an architecture that it knows nothing of, or on a list that nothing can be made of.
pub(crate) fn compile(allowed: &[Allowed]) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    for Allowed { call, only } in allowed {
        let conditions = only.iter().map(|&Condition { argument, mask, value }| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value)
        });
        let of_call = rules.entry(*call).or_default();
        if !only.is_empty() {
            of_call.push(SeccompRule::new(conditions.collect::<Result<_, _>>()?)?);
        }
    }
    let refused = SeccompAction::Errno(ENOSYS.unsigned_abs());
    SeccompFilter::new(rules, refused, SeccompAction::Allow, TargetArch::try_from(std::env::consts::ARCH)?)?.try_into()
}

/// All that a trial makes: the call that ends a process.
pub(crate) const EXIT: [Allowed; 1] = [Allowed { call: nix::libc::SYS_exit_group, only: &[] }];
