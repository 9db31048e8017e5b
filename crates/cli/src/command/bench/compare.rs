//! Two runs side by side. A ratio below 1 means that the second one is faster, or smaller.

use serde::Serialize;

use super::report::{Report, Row, short};
use crate::output::Table;

/// One figure of two runs. What only one of them has stays visible.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Pair {
    name: String,
    samples: [Option<usize>; 2],
    p50: [Option<f64>; 2],
    p50_ratio: Option<f64>,
    p95: [Option<f64>; 2],
    p95_ratio: Option<f64>,
}

/// Every figure of either run, in the order of the first.
pub(super) fn compare(a: &Report, b: &Report) -> Vec<Pair> {
    let in_a = a.rows.iter().map(|row| (&row.name, Some(row), b.rows.iter().find(|other| other.name == row.name)));
    let only_b = b.rows.iter().filter(|row| a.rows.iter().all(|other| other.name != row.name));
    in_a.chain(only_b.map(|row| (&row.name, None, Some(row)))).map(|(name, a, b)| pair(name, [a, b])).collect()
}

fn pair(name: &str, rows: [Option<&Row>; 2]) -> Pair {
    let ratio = |[a, b]: [Option<f64>; 2]| Some(b? / a.filter(|a| *a > 0.0)?);
    let p50 = rows.map(|row| row.map(|row| row.p50));
    let p95 = rows.map(|row| row.and_then(|row| row.p95));
    let samples = rows.map(|row| row.map(|row| row.samples));
    Pair { name: name.to_owned(), samples, p50, p50_ratio: ratio(p50), p95, p95_ratio: ratio(p95) }
}

/// Why the two runs may not be comparable: each a line for the reader.
pub(super) fn differences(a: &Report, b: &Report) -> Vec<String> {
    let facts = [
        ("firkin", a.firkin.clone(), b.firkin.clone()),
        ("acceleration", a.acceleration.clone(), b.acceleration.clone()),
        ("processor", a.host.cpu.clone(), b.host.cpu.clone()),
        ("processors", a.host.cpus.to_string(), b.host.cpus.to_string()),
        ("kernel", a.host.kernel.clone(), b.host.kernel.clone()),
        ("template", a.template.clone(), b.template.clone()),
        ("burst", a.burst.to_string(), b.burst.to_string()),
    ];
    facts.into_iter().filter(|(_, a, b)| a != b).map(|(what, a, b)| format!("{what}: {a} | {b}")).collect()
}

/// For people.
pub(super) fn table(pairs: &[Pair]) -> Table {
    let mut table = Table::new(&["figure", ">samples", ">a p50", ">b p50", ">b/a", ">a p95", ">b p95", ">b/a"]);
    let known = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), short);
    let ratio = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
    for pair in pairs {
        let samples = pair.samples.map(|count| count.map_or_else(|| "-".to_owned(), |count| count.to_string())).join("/");
        table.row([
            pair.name.clone(),
            samples,
            known(pair.p50[0]),
            known(pair.p50[1]),
            ratio(pair.p50_ratio),
            known(pair.p95[0]),
            known(pair.p95[1]),
            ratio(pair.p95_ratio),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::bench::{
        Plan,
        report::{Report, Series},
    };

    fn report(acceleration: &str, figures: &[(&str, f64)]) -> Report {
        let plan = Plan { template: "base".to_owned(), samples: 1, burst: 1, clones: 1, dead: None };
        let series = |value| Series { values: vec![value], failed: 0 };
        let figures = figures.iter().map(|(name, value)| ((*name).to_owned(), series(*value))).collect();
        Report::new(acceleration, "http://x", &plan, &figures)
    }

    #[test]
    fn figures_are_paired_by_name_with_their_ratio() {
        let (a, b) =
            (report("tcg", &[("create, ms", 200.0), ("gone, ms", 1.0)]), report("kvm", &[("new", 3.0), ("create, ms", 50.0)]));
        let pairs = compare(&a, &b);
        assert_eq!(pairs.iter().map(|pair| pair.name.as_str()).collect::<Vec<_>>(), ["create, ms", "gone, ms", "new"]);
        assert_eq!((pairs[0].p50_ratio, pairs[1].p50_ratio, pairs[2].p50_ratio), (Some(0.25), None, None));
        assert_eq!(differences(&a, &b), ["acceleration: tcg | kvm"]);
        assert_eq!(
            table(&pairs).render(),
            "FIGURE      SAMPLES  A P50  B P50   B/A  A P95  B P95  B/A\n\
             create, ms      1/1    200   50.0  0.25      -      -    -\n\
             gone, ms        1/-    1.0      -     -      -      -    -\n\
             new             -/1      -    3.0     -      -      -    -\n"
        );
    }
}
