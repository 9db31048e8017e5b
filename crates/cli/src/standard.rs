//! The host's own templates by name: what their root images are made of, and how a client asks a server for them.
//!
//! A server is asked in E2B's own way, by an image to build on. `firkin.local/desktop` is no image of any registry but the template
//! of that name, made anew; `firkin.local/code-interpreter-v1:without-r-java` is one without these parts. With `:renewed`, or
//! `:renewed-without-r`, kernel and root images are made anew before, of what this host's mirror has now.

use std::collections::BTreeMap;

use clap::ValueEnum;
use firkin_image::{HeavyPart, RootSpec};
use firkin_runtime::{
    reference::{BASE, CODE_INTERPRETER, DESKTOP, MCP_GATEWAY},
    root_image::RootImage,
    standard::BuildTemplate,
};

/// Prefix of the names, in the place of an image's registry.
const REGISTRY: &str = "firkin.local/";

/// What stands before the parts that are left out.
const WITHOUT: &str = "without-";

/// What stands behind a name whose root image is to be made anew.
const RENEWED: &str = "renewed";

/// A part of the code interpreter that can be left out
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// R
    R,
    /// Java
    Java,
    /// Python's larger libraries: scikit-learn, OpenCV, spaCy and their like
    Science,
}

/// One of the host's own templates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standard {
    kind: Kind,
    without: Vec<Part>,
    /// Kernel and root images are made anew first.
    renewed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Base,
    CodeInterpreter,
    Desktop,
    McpGateway,
}

/// There is no such template.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no `{0}`: `{REGISTRY}` has `{BASE}`, `{CODE_INTERPRETER}`, `{DESKTOP}` and `{MCP_GATEWAY}`, the second also with \
     `:{WITHOUT}` and `r`, `java` or `science` with `-` between them; `:{RENEWED}` has them made anew"
)]
pub(crate) struct Unknown(String);

impl Standard {
    /// The template of the host's that has this name; `base` for any other name.
    pub(crate) fn of(name: &str, without: &[Part]) -> Self {
        let kind = match name {
            CODE_INTERPRETER => Kind::CodeInterpreter,
            DESKTOP => Kind::Desktop,
            MCP_GATEWAY => Kind::McpGateway,
            _ => Kind::Base,
        };
        Self { kind, without: without.to_vec(), renewed: false }
    }

    /// The same, with kernel and root images made anew first.
    pub(crate) fn renewed(self) -> Self {
        Self { renewed: true, ..self }
    }

    /// Whether kernel and root images are to be made anew first.
    pub(crate) fn is_renewed(&self) -> bool {
        self.renewed
    }

    /// Understands what [`reference`](Self::reference) gives; nothing of what names an image elsewhere.
    pub(crate) fn parse(reference: &str) -> Option<Result<Self, Unknown>> {
        let asked = reference.strip_prefix(REGISTRY)?;
        let unknown = || Unknown(asked.to_owned());
        let (name, tag) = asked.split_once(':').map_or((asked, None), |(name, tag)| (name, Some(tag)));
        let Some((renewed, without)) = tag.map_or(Some((false, Vec::new())), understood) else { return Some(Err(unknown())) };
        let standard = Self { renewed, ..Self::of(name, &without) };
        let known = standard.name() == name && (without.is_empty() || standard.kind == Kind::CodeInterpreter);
        Some(if known { Ok(standard) } else { Err(unknown()) })
    }

    /// The image that a build stands on to become this.
    pub(crate) fn reference(&self) -> String {
        let parts: Vec<&str> = self.without.iter().map(|part| word(*part)).collect();
        let without = if parts.is_empty() { String::new() } else { format!("{WITHOUT}{}", parts.join("-")) };
        let tag = match (self.renewed, without.as_str()) {
            (false, "") => String::new(),
            (false, without) => format!(":{without}"),
            (true, "") => format!(":{RENEWED}"),
            (true, without) => format!(":{RENEWED}-{without}"),
        };
        format!("{REGISTRY}{}{tag}", self.name())
    }

    /// Every choice of parts that can be left out.
    pub(crate) fn choices() -> impl Iterator<Item = Vec<Part>> {
        const PARTS: [Part; 3] = [Part::R, Part::Java, Part::Science];
        (0..1_u8 << PARTS.len()).map(|chosen| {
            let among = PARTS.iter().enumerate().filter(|(at, _)| chosen & (1 << at) != 0);
            among.map(|(_, part)| *part).collect()
        })
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Base => BASE,
            Kind::CodeInterpreter => CODE_INTERPRETER,
            Kind::Desktop => DESKTOP,
            Kind::McpGateway => MCP_GATEWAY,
        }
    }

    /// The parts of its root image; `None`: it stands on the host's own.
    pub(crate) fn root(&self) -> Option<RootSpec> {
        match self.kind {
            Kind::Base | Kind::McpGateway => None,
            Kind::CodeInterpreter => Some(RootSpec::code_interpreter(&self.parts())),
            Kind::Desktop => Some(RootSpec::desktop()),
        }
    }

    /// Those that were not left out.
    fn parts(&self) -> Vec<HeavyPart> {
        let left_out = |part: HeavyPart| match part {
            HeavyPart::R => self.without.contains(&Part::R),
            HeavyPart::Java => self.without.contains(&Part::Java),
            HeavyPart::Science => self.without.contains(&Part::Science),
        };
        HeavyPart::ALL.into_iter().filter(|part| !left_out(*part)).collect()
    }

    /// The template, on its root image.
    pub(crate) fn template(&self, root: Option<RootImage>, env: BTreeMap<String, String>) -> BuildTemplate {
        let template = match self.kind {
            Kind::Base => BuildTemplate::base(),
            Kind::CodeInterpreter => BuildTemplate::code_interpreter(),
            Kind::Desktop => BuildTemplate::desktop(),
            Kind::McpGateway => BuildTemplate::mcp_gateway(firkin_agent::MCP_GATEWAY),
        };
        // The host's own root image goes without saying: a recipe names it anyway.
        BuildTemplate { root: root.filter(|_| self.root().is_some()), env, ..template }
    }
}

/// Understands what stands behind a name: whether it is to be renewed, and what is left out.
fn understood(tag: &str) -> Option<(bool, Vec<Part>)> {
    let (renewed, rest) = match tag.strip_prefix(RENEWED) {
        Some("") => return Some((true, Vec::new())),
        Some(rest) => (true, rest.strip_prefix('-')?),
        None => (false, tag),
    };
    let without: Option<Vec<Part>> = rest.strip_prefix(WITHOUT)?.split('-').map(part).collect();
    Some((renewed, without?))
}

fn word(part: Part) -> &'static str {
    match part {
        Part::R => "r",
        Part::Java => "java",
        Part::Science => "science",
    }
}

fn part(word: &str) -> Option<Part> {
    match word {
        "r" => Some(Part::R),
        "java" => Some(Part::Java),
        "science" => Some(Part::Science),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_read_as_it_is_written() {
        for name in [BASE, CODE_INTERPRETER, DESKTOP, MCP_GATEWAY] {
            let standard = Standard::of(name, &[]);
            assert_eq!(standard.reference(), format!("firkin.local/{name}"));
            assert_eq!(Standard::parse(&standard.reference()).unwrap().unwrap(), standard);
        }
        let small = Standard::of(CODE_INTERPRETER, &[Part::R, Part::Java]);
        assert_eq!(small.reference(), "firkin.local/code-interpreter-v1:without-r-java");
        assert_eq!(Standard::parse(&small.reference()).unwrap().unwrap(), small);
        assert_eq!(Standard::choices().count(), 8);
        for without in Standard::choices() {
            let renewed = Standard::of(CODE_INTERPRETER, &without).renewed();
            assert_eq!(Standard::parse(&renewed.reference()).unwrap().unwrap(), renewed);
        }
        let renewed = Standard::parse("firkin.local/base:renewed").unwrap().unwrap();
        assert!(renewed.renewed && renewed.name() == BASE);
        assert!(Standard::parse("ubuntu:22.04").is_none() && Standard::parse("docker.io/firkin.local/base").is_none());
        for wrong in [
            "",
            "mine",
            "base:without-r",
            "base:latest",
            "base:renewed-without-r",
            "base:renewed-",
            "code-interpreter-v1:without-",
            "code-interpreter-v1:without-go",
            "code-interpreter-v1:renewedwithout-r",
        ] {
            assert!(Standard::parse(&format!("firkin.local/{wrong}")).unwrap().is_err(), "{wrong}");
        }
    }

    #[test]
    fn parts_are_left_out_of_the_image() {
        assert_eq!(Standard::of(CODE_INTERPRETER, &[]).parts(), HeavyPart::ALL);
        assert_eq!(Standard::of(CODE_INTERPRETER, &[Part::Java]).parts(), [HeavyPart::R, HeavyPart::Science]);
    }
}
