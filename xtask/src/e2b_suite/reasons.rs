//! Why a test of E2B's suites cannot pass here. A failure that is not listed is a defect.

/// What a test needs and does not get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason {
    /// A server on the internet, which hosts of tests may not have.
    Internet,
    /// An option that Firkin refuses.
    NotServed,
    /// Another release of the SDK than the one that is tested.
    OtherRelease,
    /// A guest that is as fast as hardware is.
    Pace,
}

impl Reason {
    /// In words, for the table.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Internet => "needs the internet",
            Self::NotServed => "asks for what Firkin refuses: header rules of the network",
            Self::OtherRelease => "tests what another release of the SDK has",
            Self::Pace => "gives programs in the guest 0.3 to 10 s for what an emulated one takes longer for on a busy host",
        }
    }
}

/// Parts of test names, the first that matches counts.
const KNOWN: [(&str, Reason); 10] = [
    ("/shared/sandbox/test_lifecycle_request.py::", Reason::OtherRelease),
    ("/test_connect.py::test_connect_normalizes_unset_tokens", Reason::OtherRelease),
    ("/utils/test_get_all_files_in_path.py::", Reason::OtherRelease),
    // They replace functions inside the SDK, whose parameters are their release's.
    ("/test_stacktrace.py::", Reason::OtherRelease),
    // Python's own server gets 2 s to open its port, or 3.
    ("/test_create.py::test_auto_resume_wakes_on_http_request", Reason::Pace),
    ("/test_network.py::test_mask_request_host", Reason::Pace),
    ("/test_network.py::test_firewall_transform_injects_headers", Reason::NotServed),
    ("test_network.py::", Reason::Internet),
    ("test_internet_access.py::", Reason::Internet),
    ("/pty/test_pty_connect.py::test_connect_to_pty", Reason::Pace),
];

/// Tests whose sandbox lives for 10 s, in which it has to clone, commit and pull.
const SHORT_LIVED: &str = "/shared/git/";

/// What the SDKs say when that time was too short: the sandbox had ended, before a command or under it.
const ENDED: [&str; 2] = ["The sandbox was not found", "The sandbox was killed or reached its end of life"];

/// Why this test cannot pass, if that is known, by its name and what it said.
pub(super) fn of(test: &str, why: &str) -> Option<Reason> {
    // Not a test but a module that does not load. Those of the SDK's own release always do.
    if !test.contains("::") {
        return Some(Reason::OtherRelease);
    }
    if test.contains(SHORT_LIVED) && ENDED.iter().any(|ended| why.contains(ended)) {
        return Some(Reason::Pace);
    }
    KNOWN.iter().find(|(part, _)| test.contains(part)).map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_is_excused() {
        assert_eq!(of("sdk:tests/sync/sandbox_sync/test_host.py::test_ping_server", ""), None);
        assert_eq!(of("sdk:tests/sync/sandbox_sync/test_newer.py", ""), Some(Reason::OtherRelease));
        assert_eq!(of("tests/async/sandbox_async/test_network.py::test_deny_specific_ip", ""), Some(Reason::Internet));
        assert_eq!(of("tests/async/sandbox_async/test_network.py::test_mask_request_host", ""), Some(Reason::Pace));
        assert_eq!(of("sdk:tests/sync/sandbox_sync/commands/test_run.py::test_run", ""), None);
        assert_eq!(of("interpreter:tests/sync/test_basic.py::test_basic", ""), None);
        assert_eq!(of("tests/sync/sandbox_sync/files/test_secured.py::test_download_url_with_signing", ""), None);
    }

    #[test]
    fn a_sandbox_that_ended_excuses_only_tests_that_give_it_seconds() {
        let ended = "e2b.exceptions.TimeoutException: The sandbox was not found: This error is likely due to sandbox timeout.";
        assert_eq!(of("sdk:tests/shared/git/test_sync.py::test_pull_updates_clone", ended), Some(Reason::Pace));
        assert_eq!(of("sdk:tests/shared/git/test_sync.py::test_pull_updates_clone", "AssertionError"), None);
        assert_eq!(of("sdk:tests/sync/sandbox_sync/commands/test_run.py::test_run", ended), None);
    }
}
