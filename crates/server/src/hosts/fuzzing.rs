//! Body of the fuzz target for the host that a request names: it decides who is answered at all.

use super::{AllowedHosts, HostName, Hosts, OtherHosts};

/// A host of any bytes: it is none, or the same however it is written, and ours only if it is one of our names or below it.
pub fn host_name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(read) = HostName::read(text) else { return };
    let HostName::Name(name) = &read else {
        assert!(text.bytes().all(|byte| byte.is_ascii() && !b"@/ ".contains(&byte)), "{text}");
        return;
    };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    assert!(name.bytes().all(plain) && !name.starts_with('.') && !name.ends_with('.'), "{text}");
    for same in [name.clone(), name.to_ascii_uppercase(), format!("{name}."), format!("{name}:80"), format!("{name}.:")] {
        assert_eq!(HostName::read(&same).as_ref(), Some(&read), "{same}");
    }
    let names = ["build.example", "*.tunnel.example"].map(|name| name.parse().expect("it is a host name")).to_vec();
    let hosts = Hosts::new(AllowedHosts { names, others: OtherHosts::Known }, Some("boxes.test:8443"));
    let labels: Vec<&str> = name.split('.').rev().collect();
    let ours = match labels.as_slice() {
        ["localhost", ..] | ["test", "boxes", ..] | ["example", "build"] => true,
        ["example", "tunnel", below @ ..] => !below.is_empty(),
        _ => false,
    };
    assert_eq!(hosts.is_ours(name), ours, "{text}");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_host_is_ours_by_its_last_labels_alone(
            first in "[a-zA-Z0-9.@:%*\\[\\]_-]{0,9}",
            last in "|[.]?(localhost|LOCALHOST|boxes\\.test|build\\.example|tunnel\\.Example|127\\.0\\.0\\.1|evil\\.example)",
            end in "[.]?(:[0-9a]{0,5})?",
        ) {
            host_name(format!("{first}{last}{end}").as_bytes());
        }
    }
}
