//! Under which names a server is asked: the option of `firkin up`, and what follows from where it listens.
//!
//! On the loopback a name that nobody told the server of may be one that a web page had point here. Off the loopback, without a
//! domain that others resolve, whatever name other hosts have for this one is such a name, so that refusing it would refuse them.

use clap::Args;
use firkin_server::{AllowedHosts, HostPattern, OtherHosts};

/// The option.
#[derive(Debug, Default, Args)]
pub(crate) struct HostnameArgs {
    /// Answer to this host name, or with *. to all below one, and to none but the server's own beside it: localhost, addresses, DOMAIN
    /// and names below it; may be repeated [default: also to others, for who has a key; off the loopback without --domain, to any]
    #[arg(long, value_name = "NAME", env = "FIRKIN_ALLOWED_HOST", hide_env_values = true, value_delimiter = ',')]
    pub(crate) allowed_host: Vec<HostPattern>,
}

/// What a server answers to for which the operator has named `names`, with this domain, which other hosts reach or do not.
pub(crate) fn allowed(names: &[HostPattern], domain: Option<&str>, is_open: bool) -> AllowedHosts {
    let domain = domain.map(|domain| domain.split(':').next().unwrap_or(domain));
    let has_public_name = domain.is_some_and(|name| !matches!(name.trim_end_matches('.').rsplit('.').next(), Some("localhost")));
    let others = if !names.is_empty() {
        OtherHosts::Nobody
    } else if is_open && !has_public_name {
        OtherHosts::Anybody
    } else {
        OtherHosts::Known
    };
    AllowedHosts { names: names.to_vec(), others }
}

/// The options that have another server answer to the same names.
pub(crate) fn options(names: &[HostPattern]) -> String {
    names.iter().map(|name| format!(" --allowed-host '{name}'")).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::{
        args::Cli,
        settings::{self, Settings},
    };

    fn settings(options: &str) -> Result<Settings, clap::Error> {
        let cli = Cli::try_parse_from(format!("firkin up{options}").split(' '))?;
        Ok(settings::resolve(&cli, &settings::Surroundings::default()))
    }

    #[test]
    fn names_that_nobody_listed_are_for_who_has_a_key_unless_the_server_cannot_know_its_own() {
        for (options, others) in [
            ("", OtherHosts::Known),
            (" --domain boxes.test", OtherHosts::Known),
            (" --tls-listen 127.0.0.1:3443", OtherHosts::Known),
            (" --tls-listen 0.0.0.0:443 --domain boxes.test", OtherHosts::Known),
            (" --tls-listen 0.0.0.0:3443", OtherHosts::Anybody),
            (" --listen 0.0.0.0:3000 --allow-plain-http", OtherHosts::Anybody),
            (" --listen 0.0.0.0:3000 --allowed-host a.test", OtherHosts::Nobody),
            (" --allowed-host a.test --allowed-host *.b.test", OtherHosts::Nobody),
        ] {
            assert_eq!(settings(options).unwrap().hosts().others, others, "{options}");
        }
    }

    #[test]
    fn names_are_said_again() {
        let names = settings(" --allowed-host A.test,*.b.test --allowed-host c.test").unwrap().allowed_hosts;
        assert_eq!(options(&names), " --allowed-host 'a.test' --allowed-host '*.b.test' --allowed-host 'c.test'");
        for wrong in ["*", "a.test:80", "127.0.0.1", "https://a.test"] {
            assert!(settings(&format!(" --allowed-host {wrong}")).is_err(), "{wrong}");
        }
    }
}
