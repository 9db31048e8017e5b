//! `mcp-gateway pull`: servers of E2B's catalogue, which a template build wants to have at hand.
//!
//! They are container images, which need a registry to come from and a container runtime to run in. A sandbox has neither, so
//! this says so instead of leaving a template that fails later.

/// Why a server is not made ready.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PullError {
    /// None of the catalogue is.
    #[error(
        "cannot pull MCP server `{0}`: servers of the catalogue are container images on the internet, which are not fetched here; \
         install a server with `run_cmd` and name its command when the sandbox is created"
    )]
    Catalogue(String),
}

/// Makes servers ready to be started.
pub(crate) fn pull(names: &[String]) -> Result<(), PullError> {
    names.first().map_or(Ok(()), |name| Err(PullError::Catalogue(name.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_refused_by_name() {
        assert_eq!(pull(&["exa".to_owned()]), Err(PullError::Catalogue("exa".to_owned())));
    }
}
