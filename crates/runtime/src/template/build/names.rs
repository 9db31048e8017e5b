//! What a build may be called and how large its sandboxes may be. The words of the refusals are the contract's.

use super::{BuildRequest, error::RequestError};
use crate::{
    ground::{
        reference::{Reference, Tag, TemplateName},
        team::{Scope, TeamId},
    },
    template::tags::MAX_TAGS,
};

/// What the SDKs ask for unless told otherwise.
const DEFAULT_CPUS: i64 = 2;
const DEFAULT_MEMORY_MIB: i64 = 1024;

/// More processors than this make no guest faster.
const MAX_CPUS: i64 = 32;

/// A guest kernel with its agent does not come up in less.
const MIN_MEMORY_MIB: i64 = 128;

/// A request that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) owner: TeamId,
    pub(crate) name: Option<TemplateName>,
    pub(crate) tags: Vec<Tag>,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    /// Absent as well when it is none.
    pub(crate) min_free_disk_mib: Option<u64>,
}

/// Understands a request of `scope` on a host of so much memory.
pub(crate) fn parse(scope: &Scope, request: &BuildRequest, host_memory_mib: u64) -> Result<Named, RequestError> {
    let given = request.name.as_deref().map(|name| Reference::given(scope, name)).transpose()?;
    let (name, own) = given.map_or((None, None), |Reference { name, tag }| (Some(name), tag));
    let mut tags = Tag::all_given(own.iter().map(Tag::as_str).chain(request.tags.iter().map(String::as_str)))?;
    if tags.len() > MAX_TAGS {
        return Err(RequestError::Tags { max: MAX_TAGS });
    }
    if tags.is_empty() {
        tags.push(Tag::default());
    }
    let cpus = request.cpus.unwrap_or(DEFAULT_CPUS);
    let memory = request.memory_mib.unwrap_or(DEFAULT_MEMORY_MIB);
    let (cpus, memory_mib) = (check_cpus(cpus)?, check_memory(memory, host_memory_mib)?);
    let min_free = u64::try_from(request.min_free_disk_mib.unwrap_or_default()).map_err(|_| RequestError::NegativeFreeDisk)?;
    Ok(Named { owner: scope.owner(), name, tags, cpus, memory_mib, min_free_disk_mib: (min_free > 0).then_some(min_free) })
}

fn check_cpus(cpus: i64) -> Result<u32, RequestError> {
    match cpus {
        ..1 => Err(RequestError::FewCpus),
        _ if cpus > MAX_CPUS => Err(RequestError::ManyCpus { max: MAX_CPUS }),
        _ if cpus != 1 && cpus % 2 != 0 => Err(RequestError::OddCpus),
        _ => u32::try_from(cpus).map_err(|_| RequestError::ManyCpus { max: MAX_CPUS }),
    }
}

fn check_memory(memory_mib: i64, host_mib: u64) -> Result<u32, RequestError> {
    if memory_mib < MIN_MEMORY_MIB {
        return Err(RequestError::LittleMemory { min_mib: MIN_MEMORY_MIB });
    }
    if memory_mib % 2 != 0 {
        return Err(RequestError::OddMemory);
    }
    let much = RequestError::MuchMemory { max_mib: host_mib };
    u32::try_from(memory_mib).ok().filter(|mib| u64::from(*mib) <= host_mib).ok_or(much)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str) -> BuildRequest {
        BuildRequest { name: Some(name.to_owned()), ..BuildRequest::default() }
    }

    fn texts(tags: &[Tag]) -> Vec<&str> {
        tags.iter().map(Tag::as_str).collect()
    }

    fn message(request: &BuildRequest) -> String {
        parse(&Scope::Host, request, 4096).unwrap_err().to_string()
    }

    #[test]
    fn names_and_tags_are_put_together() {
        let named = parse(&Scope::Host, &request("firkin/My-App:V1.0"), 4096).unwrap();
        assert_eq!((named.name.as_ref().map(TemplateName::as_str), texts(&named.tags)), (Some("my-app"), vec!["v1.0"]));
        assert_eq!((named.cpus, named.memory_mib), (2, 1024));
        let named =
            parse(&Scope::Host, &BuildRequest { tags: vec!["a".into(), "b".into(), "a".into()], ..request("x") }, 4096).unwrap();
        assert_eq!(texts(&named.tags), ["a", "b"]);
        assert_eq!(texts(&parse(&Scope::Host, &request("x"), 4096).unwrap().tags), ["default"]);
        let nameless = parse(&Scope::Host, &BuildRequest::default(), 4096).unwrap();
        assert_eq!((nameless.name, texts(&nameless.tags)), (None, vec!["default"]));
        for bad in ["", ":v1", "x:", "a b", "other/x", "x:a:b", "ä"] {
            assert!(parse(&Scope::Host, &request(bad), 4096).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_refused_in_the_contracts_words() {
        let cpus = |cpus| message(&BuildRequest { cpus: Some(cpus), ..request("x") });
        assert_eq!(cpus(0), "validation error: CPU count must be at least 1");
        assert_eq!(cpus(64), "CPU count must be at most 32");
        assert_eq!(cpus(3), "CPU count must be 1 or an even number");
        let memory = |memory_mib| message(&BuildRequest { memory_mib: Some(memory_mib), ..request("x") });
        assert_eq!(memory(64), "validation error: Memory must be at least 128 MiB");
        assert_eq!(memory(1023), "Memory must be divisible by 2");
        assert_eq!(memory(1 << 40), "Memory can't be higher than 4096 MiB");
        let free = |mib| parse(&Scope::Host, &BuildRequest { min_free_disk_mib: Some(mib), ..request("x") }, 4096);
        assert_eq!(free(-1).unwrap_err().to_string(), "Free disk must not be negative");
        assert_eq!((free(0).unwrap().min_free_disk_mib, free(7).unwrap().min_free_disk_mib), (None, Some(7)));
    }
}
