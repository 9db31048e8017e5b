//! A server of S3 for the tests of copies: `moto` of PyPI, in an environment of its own. Each test starts one for itself.

use std::path::PathBuf;

use crate::{
    python,
    run::{Step, say},
    workspace::Workspace,
};

/// What the tests read: where its program is.
pub(crate) const VARIABLE: &str = "MOTO_SERVER";

/// Makes sure that it is there, and gives its program. Without it the tests of S3 are a skip.
pub(crate) fn set_up(workspace: &Workspace, step: &mut Step) -> anyhow::Result<Option<PathBuf>> {
    python::set_up(step)?;
    let requirements = workspace.root.join("tests/conformance/requirements-moto.txt");
    match python::environment(&workspace.cache(), &requirements, step) {
        Ok(python) => Ok(Some(python.with_file_name("moto_server"))),
        Err(error) => {
            say(&format!("SKIP: copies in S3: moto cannot be installed here: {error:#}"));
            step.skipped(1);
            Ok(None)
        }
    }
}
