//! The floors of the runtime: a module imports its own floor and those below, so that each can be understood, and taken out, without
//! what stands above it.

use std::collections::BTreeMap;

use crate::{
    assert_none,
    rings::{Module, crates, edges},
};

/// The modules at the root of the runtime, lowest floor first. ARCHITECTURE.md says what each is.
const FLOORS: [&[&str]; 8] = [
    &["ground", "host"],
    &["capacity", "artifact", "store", "storage"],
    &["machine"],
    &["restore", "images", "telemetry"],
    &["shared"],
    &["start", "upkeep"],
    &["sandbox", "template"],
    &["runtime"],
];

/// What breaks the order of `floors` in a crate of these modules.
fn offences(floors: &[&[&str]], texts: &[(Module, String)]) -> Vec<String> {
    let rooms = floors.iter().enumerate().flat_map(|(floor, rooms)| rooms.iter().map(move |room| (*room, floor)));
    let floor_of: BTreeMap<&str, usize> = rooms.collect();
    let homeless = texts.iter().filter(|(module, _)| module.len() == 1 && !floor_of.contains_key(module[0].as_str()));
    let mut offences: Vec<String> = homeless.map(|(module, _)| format!("{} is on no floor", module[0])).collect();
    for (from, path, to) in edges(texts) {
        let Some(floor) = from.first().and_then(|room| floor_of.get(room.as_str())) else { continue };
        let written = path.join("::");
        match to.first() {
            Some(room) if floor_of.get(room.as_str()).is_some_and(|other| other > floor) => {
                offences.push(format!("{} imports {written} from above", from.join("::")));
            }
            // What the root gives again is for others: inside, it would hide where an import leads.
            None if path.len() > 1 && path[0] == "crate" => {
                offences.push(format!("{} imports {written} through the root", from.join("::")));
            }
            _ => {}
        }
    }
    offences
}

#[test]
fn the_runtime_stands_on_floors() {
    assert_none("modules of the runtime import their own floor and those below", &offences(&FLOORS, &crates()["crates/runtime"]));
}

#[test]
fn an_import_from_above_is_seen() {
    let text = |module: &str, text: &str| (module.split("::").map(str::to_owned).collect::<Module>(), text.to_owned());
    let floors: [&[&str]; 2] = [&["low", "beside"], &["high"]];
    let seen = |texts: &[(Module, String)]| offences(&floors, texts);
    let high = || text("high", "use crate::{low::A, beside};");
    assert_eq!(seen(&[text("low", "use crate::{\n beside::B,\n};"), text("beside", ""), high()]), Vec::<String>::new());
    let up = [text("low", ""), text("low::deep", "fn f() { crate::high::g(); }"), text("beside", ""), high()];
    assert_eq!(seen(&up), ["low::deep imports crate::high::g from above"]);
    let through = [text("low", "use crate::alias::C;"), text("beside", ""), high()];
    assert_eq!(seen(&through), ["low imports crate::alias::C through the root"]);
    assert_eq!(seen(&[text("low", ""), text("beside", ""), text("new", ""), high()]), ["new is on no floor"]);
}
