//! Whose something is, and whose things somebody may see.
//!
//! Everything that users make belongs to a team. What looks something up for somebody else says for whom, by a [`Scope`]: a look-up
//! without one does not compile, so that none can be forgotten. What another team has is for a scope as if it were not there.

use super::text::text_type;

/// The team that every host has. It owns what was made before there were others, and the host's standard templates.
pub const FIRST: &str = "firkin";

/// The longest id of a team: it stands before every name.
pub(crate) const MAX_TEAM_BYTES: usize = 32;

/// A text that no team can be called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the id of a team: it must be 1 to {MAX_TEAM_BYTES} lower-case letters, digits and `-`, and begin with a letter"
)]
pub struct InvalidTeam(String);

text_type! {
    /// A team. Its id stands before its names (`team/name`), and is nobody else's ever again.
    pub struct TeamId where is_team, else InvalidTeam = |text: String| InvalidTeam(text.chars().take(MAX_TEAM_BYTES).collect())
}

fn is_team(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_TEAM_BYTES).contains(&text.len())
        && text.bytes().all(allowed)
        && text.starts_with(|first: char| first.is_ascii_lowercase())
}

impl TeamId {
    /// The team that every host has.
    pub fn first() -> Self {
        Self(FIRST.to_owned())
    }

    /// Whether it is that.
    pub fn is_first(&self) -> bool {
        self.0 == FIRST
    }
}

/// What was recorded before there were teams is the first one's.
impl Default for TeamId {
    fn default() -> Self {
        Self::first()
    }
}

/// For whom something is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The host itself, or a program that embeds the runtime: everything. What it makes is the first team's.
    Host,
    /// A team: what it owns, and nothing else.
    Team(TeamId),
}

impl Scope {
    /// Whether what `owner` owns is there for it.
    pub(crate) fn sees(&self, owner: &TeamId) -> bool {
        match self {
            Self::Host => true,
            Self::Team(team) => team == owner,
        }
    }

    /// Whose what it makes is, and in whose names it looks first.
    pub(crate) fn owner(&self) -> TeamId {
        match self {
            Self::Host => TeamId::first(),
            Self::Team(team) => team.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_has_an_id_that_can_stand_before_a_name() {
        for good in ["firkin", "a", "team-7", &"t".repeat(MAX_TEAM_BYTES)] {
            assert!(good.parse::<TeamId>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "7a", "A", "a/b", "a:b", "a_b", "ä", "..", &"t".repeat(MAX_TEAM_BYTES + 1)] {
            assert!(bad.parse::<TeamId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_team_sees_its_own_and_the_host_everything() {
        let (a, b) = ("a".parse::<TeamId>().unwrap(), "b".parse::<TeamId>().unwrap());
        let scope = Scope::Team(a.clone());
        assert!(scope.sees(&a) && !scope.sees(&b) && !scope.sees(&TeamId::first()));
        assert!(Scope::Host.sees(&a) && Scope::Host.sees(&TeamId::first()));
        assert_eq!((scope.owner(), Scope::Host.owner()), (a, TeamId::first()));
    }
}
