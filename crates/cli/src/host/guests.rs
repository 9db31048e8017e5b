//! How old what guests are made of is: security updates of their kernel and packages come with `firkin template refresh` alone.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use firkin_image::{Additions, Cache, host_certificates, is_newer_kernel, kept_kernel, kept_rootfs, offered_kernel};
use firkin_runtime::reference::{BASE, CODE_INTERPRETER, DESKTOP};

use super::{finding::Finding, packages::ago};
use crate::standard::{Part, Standard};

/// Debian mends a kernel about once a month, and some package of a guest in most weeks.
const OLD: Duration = Duration::from_secs(30 * 24 * 60 * 60);

const REMEDY: &str = "`firkin template refresh` renews them";

/// Looks at the cache of guest kernel and root images. Nothing is made or fetched.
pub(super) async fn guest_system(cache_dir: &Path) -> Finding {
    let Some((cache, (kernel, made))) = Cache::existing(cache_dir).and_then(|cache| {
        let kept = kept_kernel(&cache)?;
        Some((cache, kept))
    }) else {
        return Finding::ok("not made yet");
    };
    let now = SystemTime::now();
    let age = |made: SystemTime| now.duration_since(made).unwrap_or_default();
    let mut kept = vec![(format!("kernel {}", kernel.version), age(made))];
    let authorities = [Vec::new(), host_certificates(Path::new("/")).unwrap_or_default()];
    for (name, choices) in roots() {
        let of = |without: &Vec<Part>| {
            let spec = Standard::of(name, without).root().unwrap_or_default();
            let made = authorities.iter().filter_map(|certificates| {
                kept_rootfs(&cache, &spec, &Additions { kernel: kernel.clone(), certificates: certificates.clone() })
            });
            made.max()
        };
        kept.extend(choices.iter().filter_map(of).max().map(|made| (format!("root image of {name}"), age(made))));
    }
    let offered = offered_kernel().await.ok().flatten().filter(|offered| is_newer_kernel(offered, &kernel.version));
    judged(&kept, offered.as_deref())
}

/// The templates that have root images, with every choice of what is left out of them.
fn roots() -> [(&'static str, Vec<Vec<Part>>); 3] {
    [(BASE, vec![Vec::new()]), (CODE_INTERPRETER, Standard::choices().collect()), (DESKTOP, vec![Vec::new()])]
}

fn judged(kept: &[(String, Duration)], offered: Option<&str>) -> Finding {
    let mut found: Vec<String> = kept.iter().map(|(what, age)| format!("{what} of {}", ago(*age))).collect();
    found.extend(offered.map(|offered| format!("the package lists have kernel {offered}")));
    let found = found.join(", ");
    let old = kept.iter().any(|(_, age)| *age > OLD);
    if old || offered.is_some() { Finding::warn(found, REMEDY) } else { Finding::ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::finding::Status;

    #[tokio::test]
    async fn what_is_old_is_to_be_renewed() {
        let dir = tempfile::tempdir().unwrap();
        let none = guest_system(&dir.path().join("none")).await;
        assert_eq!((none.status, none.found.as_str()), (Status::Ok, "not made yet"));
        assert!(!dir.path().join("none").exists());

        let day = Duration::from_secs(24 * 60 * 60);
        let kept = |days| [("kernel 6.12.1".to_owned(), day), ("root image of base".to_owned(), day * days)];
        let fresh = judged(&kept(2), None);
        assert_eq!(fresh.found, "kernel 6.12.1 of a day ago, root image of base of 2 days ago");
        assert_eq!((fresh.status, fresh.remedy), (Status::Ok, None));
        assert_eq!(judged(&kept(31), None).remedy.as_deref(), Some(REMEDY));
        let offered = judged(&kept(2), Some("6.12.2"));
        assert!(offered.status == Status::Warn && offered.found.ends_with("the package lists have kernel 6.12.2"));
    }

    #[test]
    fn every_template_that_has_a_root_image_is_looked_at() {
        for (name, _) in roots() {
            assert_eq!(Standard::of(name, &[]).root().is_none(), name == BASE, "{name}");
        }
    }
}
