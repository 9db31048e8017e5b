//! Where Debian, and what is made like it, keeps the authorities that programs trust: the same on a host and in a guest.

/// Where administrators put authorities of their own (update-ca-certificates(8)).
pub const OWN: &str = "/usr/local/share/ca-certificates";

/// Where hashed links to authorities are, for OpenSSL.
pub const DIRECTORY: &str = "/etc/ssl/certs";

/// All of them in one file, where `update-ca-certificates` puts them and programs read them.
pub const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
