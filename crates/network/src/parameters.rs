//! Kernel parameters of the network namespace that the calling thread is in.

use std::{io, path::Path};

/// Sets one kernel parameter of the calling thread's network namespace.
pub(super) fn set(parameter: impl AsRef<Path>, value: &str) -> io::Result<()> {
    // Not created, not truncated: these are not files.
    let mut file = fs_err::OpenOptions::new().write(true).open(parameter.as_ref())?;
    io::Write::write_all(&mut file, value.as_bytes())
}

/// Sets several; those of IPv6 may be absent from the kernel.
pub(super) fn set_parameters<P: AsRef<str>>(parameters: &[(P, &str)]) -> io::Result<()> {
    for (path, value) in parameters {
        match set(path.as_ref(), value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.as_ref().contains("/ipv6/") => {}
            done => done?,
        }
    }
    Ok(())
}
