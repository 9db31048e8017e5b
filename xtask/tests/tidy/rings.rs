//! Rules about who imports whom inside a crate, read from the text: modules that import each other in a ring can only be
//! understood, tested and taken out together.
//!
//! Siblings are compared at every depth: an edge is a path, in a `use` or inline, from anything below one module to anything
//! below its sibling. Parent and child may name each other. Tests, and what a fuzzer
//! calls, are no part of it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Text, assert_none, files};

/// A module's path inside its crate.
pub(crate) type Module = Vec<String>;

/// Which siblings a module imports, by the parent that they have in common.
type Imports = BTreeMap<Module, BTreeMap<String, BTreeSet<String>>>;

/// `crates/runtime/src/template/build/copy.rs` is `template::build::copy` of `crates/runtime`.
fn module_of(text: &Text) -> Option<(String, Module)> {
    let path = text.path.to_str()?.strip_suffix(".rs")?;
    let (package, module) = path.split_once("/src/")?;
    let mut module: Module = module.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        module.pop();
    }
    let test = module.last().is_some_and(|last| last == "tests" || last == "fuzzing" || last.ends_with("_tests"));
    (!test).then(|| (package.to_owned(), module))
}

/// The code without its comments, up to the tests at its end.
fn code(text: &str) -> String {
    let product = text.find("#[cfg(test)]\nmod tests {").map_or(text, |end| &text[..end]);
    product.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Every path that begins at `crate`, `self` or `super`, groups spelt out: `crate::{a::B, c}` is two.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let name = |c: char| c.is_alphanumeric() || c == '_';
    for root in ["crate::", "self::", "super::"] {
        for (at, _) in code.match_indices(root) {
            if !code[..at].ends_with(|before: char| name(before) || before == ':' || before == '$') {
                tree(&code[at..], &[], &mut found);
            }
        }
    }
    found
}

/// Reads one path, or a group of them, and returns what stands behind.
fn tree<'a>(text: &'a str, above: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let mut path = above.to_vec();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        if let Some(group) = rest.strip_prefix('{') {
            rest = group;
            loop {
                rest = tree(rest, &path, found).trim_start();
                match rest.strip_prefix(',') {
                    Some(next) => rest = next,
                    None => return rest.strip_prefix('}').unwrap_or(rest),
                }
            }
        }
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        path.extend((end > 0).then(|| rest[..end].to_owned()));
        rest = &rest[end..];
        let Some(next) = rest.strip_prefix("::") else { break };
        rest = next;
    }
    found.push(path);
    rest.trim_start()
        .strip_prefix("as ")
        .map_or(rest, |alias| alias.trim_start().trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'))
}

/// What a path means where it stands, as far as it names modules.
fn resolve(path: &[String], from: &[String], known: &BTreeSet<Module>) -> Module {
    let mut module: Module = if path.first().is_some_and(|first| first == "crate") { Vec::new() } else { from.to_vec() };
    for segment in path {
        match segment.as_str() {
            "crate" | "self" => {}
            "super" => drop(module.pop()),
            _ => {
                module.push(segment.clone());
                if !known.contains(&module) {
                    module.pop();
                    break;
                }
            }
        }
    }
    module
}

/// Every import of one crate: the module that it stands in, the path as it is written, and the module that it leads to.
pub(crate) fn edges(texts: &[(Module, String)]) -> Vec<(&Module, Vec<String>, Module)> {
    let known: BTreeSet<Module> = texts.iter().map(|(module, _)| module.clone()).collect();
    let edges = texts.iter().flat_map(|(from, text)| paths(&code(text)).into_iter().map(move |path| (from, path)));
    edges.map(|(from, path)| (from, path.clone(), resolve(&path, from, &known))).collect()
}

fn imports(texts: &[(Module, String)]) -> Imports {
    let mut imports = Imports::new();
    for (from, _, to) in edges(texts) {
        let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
        if let (Some(a), Some(b)) = (from.get(shared), to.get(shared)) {
            let siblings = imports.entry(from[..shared].to_vec()).or_default();
            siblings.entry(a.clone()).or_default().insert(b.clone());
        }
    }
    imports
}

/// The modules of every crate, with their texts.
pub(crate) fn crates() -> BTreeMap<String, Vec<(Module, String)>> {
    let mut crates: BTreeMap<String, Vec<(Module, String)>> = BTreeMap::new();
    for text in files("rs").into_iter().filter(|text| text.path.starts_with("crates")) {
        if let Some((package, module)) = module_of(&text) {
            crates.entry(package).or_default().push((module, text.text));
        }
    }
    crates
}

/// All that a module reaches through its siblings' imports.
fn reached<'a>(from: &str, siblings: &'a BTreeMap<String, BTreeSet<String>>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(next) = open.pop() {
        for to in siblings.get(next).into_iter().flatten() {
            if reached.insert(to.as_str()) {
                open.push(to);
            }
        }
    }
    reached
}

/// The modules that reach themselves, each with those of its ring that it imports.
fn in_rings(imports: &Imports) -> Vec<String> {
    let mut rings = Vec::new();
    for (parent, siblings) in imports {
        for (module, to) in siblings {
            if reached(module, siblings).contains(module.as_str()) {
                let back = to.iter().filter(|to| reached(to, siblings).contains(module.as_str()));
                let path = parent.iter().chain([module]).cloned().collect::<Vec<_>>().join("::");
                rings.push(format!("{path} -> {}", back.cloned().collect::<Vec<_>>().join(", ")));
            }
        }
    }
    rings
}

/// The module that most of its siblings import, and how many do.
fn widest(imports: &Imports) -> (usize, String) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (parent, siblings) in imports {
        for to in siblings.values().flatten() {
            *counts.entry(parent.iter().chain([to]).cloned().collect::<Vec<_>>().join("::")).or_default() += 1;
        }
    }
    counts.into_iter().map(|(module, count)| (count, module)).max().unwrap_or_default()
}

#[test]
#[expect(
    clippy::print_stdout,
    reason = "the figures are what a refactoring is steered by: `cargo test --test tidy -- --nocapture`"
)]
fn modules_import_each_other_in_no_ring() {
    let mut offences = Vec::new();
    for (package, texts) in &crates() {
        let imports = imports(texts);
        let (rings, floors) = (in_rings(&imports), imports.get(&Module::new()).cloned().unwrap_or_default());
        let in_ring = floors.keys().filter(|floor| reached(floor, &floors).contains(floor.as_str())).count();
        let (fan_in, module) = widest(&imports);
        println!(
            "{package}: {in_ring} of {} modules at its root in rings, {} of {} below; widest fan-in {fan_in} ({module})",
            texts.iter().filter(|(module, _)| module.len() == 1).count(),
            rings.len() - in_ring,
            texts.iter().filter(|(module, _)| module.len() > 1).count(),
        );
        offences.extend(rings.iter().map(|ring| format!("{package}: {ring}")));
    }
    assert_none("modules of a crate import each other in no ring", &offences);
}

#[test]
fn imports_are_read_right() {
    let texts = |texts: &[(&str, &str)]| -> Vec<(Module, String)> {
        let module = |path: &str| path.split("::").filter(|segment| !segment.is_empty()).map(str::to_owned).collect();
        texts.iter().map(|(path, text)| (module(path), (*text).to_owned())).collect()
    };
    let ring = |list: &[(&str, &str)], expect: &[&str]| assert_eq!(in_rings(&imports(&texts(list))), expect, "{list:?}");
    ring(&[("", ""), ("a", "use crate::{b::{C, D as E}, c};"), ("b", "use super::a;"), ("c", "")], &["a -> b", "b -> a"]);
    ring(&[("a", "fn f() { crate::b::g(); }"), ("b", "// crate::a\n#[cfg(test)]\nmod tests {\n use crate::a;")], &[]);
    ring(&[("a", "use crate::b;"), ("b", "use self::c::X;"), ("b::c", "use super::Y;"), ("b::d", "use crate::b::c;")], &[]);
    ring(&[("a", ""), ("b", ""), ("a::c", "use super::d;"), ("a::d", "pub use super::c::X;")], &["a::c -> d", "a::d -> c"]);
}
