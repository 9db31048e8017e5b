//! What the server says of itself, against what there is, while nobody has a sandbox.

/// The control groups of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Groups {
    /// Hierarchies that it has groups in.
    pub(super) trees: usize,
    /// Its groups of machines, in all of them.
    pub(super) of_machines: usize,
    /// The others.
    pub(super) beside_machines: usize,
}

/// What there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ledger {
    /// Virtual machines that live.
    pub(super) machines: usize,
    /// Their directories.
    pub(super) instances: usize,
    /// Their control groups, where the host gives any.
    pub(super) groups: Option<Groups>,
}

impl Ledger {
    /// Where the two differ, in words. What is under way differs, too, until it is done.
    pub(super) fn against(self, metrics: &str) -> Vec<String> {
        let value = |name: &str, label: &str| sum(metrics, name, label);
        let mut wrong = Vec::new();
        let mut demand = |what: &str, found: f64, wanted: f64| {
            if (found - wanted).abs() > f64::EPSILON {
                wrong.push(format!("{what}: {found}, not {wanted}"));
            }
        };
        demand("sandboxes", value("firkin_sandboxes", ""), 0.0);
        demand("capacity that sandboxes hold", value("firkin_capacity_held", "class=\"active\""), 0.0);
        demand("sessions of sandboxes", value("firkin_sessions", "kind=\"active\""), 0.0);
        demand("requests that wait for capacity", value("firkin_queue_length", ""), 0.0);
        demand("sessions that the pool is making", value("firkin_pool_sessions", "state=\"making\""), 0.0);
        let wanted = value("firkin_pool_sessions", "state=\"wanted\"");
        demand("warm sessions that are ready", value("firkin_pool_sessions", "state=\"ready\""), wanted);
        let machines = f64::from(u32::try_from(self.machines).unwrap_or(u32::MAX));
        demand("warm sessions that hold capacity, against machines", value("firkin_sessions", "kind=\"warm\""), machines);
        let pool = wanted + value("firkin_pool_sessions", "state=\"prepared\"");
        demand("what the pool has, against machines", pool, machines);
        if self.instances != self.machines {
            wrong.push(format!("directories of machines: {}, not {}", self.instances, self.machines));
        }
        if let Some(groups) = self.groups
            && groups.of_machines != groups.trees * self.machines
        {
            let Groups { trees, of_machines, .. } = groups;
            wrong.push(format!("control groups of machines: {of_machines}, not {} in each of {trees} trees", self.machines));
        }
        wrong
    }
}

/// The sum of a metric over all series with this label.
fn sum(metrics: &str, name: &str, label: &str) -> f64 {
    let lines = metrics.lines().filter_map(|line| line.strip_prefix(name));
    let lines = lines.filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(label));
    lines.filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_REST: &str = r#"
# TYPE firkin_sandboxes gauge
firkin_sandboxes{acceleration="tcg",state="paused"} 0
firkin_sandboxes{acceleration="tcg",state="running"} 0
firkin_capacity_held{acceleration="tcg",class="active",resource="memory_mib"} 0
firkin_capacity_held{acceleration="tcg",class="warm",resource="memory_mib"} 1200
firkin_sessions{acceleration="tcg",kind="active"} 0
firkin_sessions{acceleration="tcg",kind="warm"} 2
firkin_queue_length{acceleration="tcg"} 0
firkin_pool_sessions{acceleration="tcg",state="ready"} 1
firkin_pool_sessions{acceleration="tcg",state="prepared"} 1
firkin_pool_sessions{acceleration="tcg",state="wanted"} 1
firkin_pool_sessions{acceleration="tcg",state="making"} 0
"#;

    fn differs(ledger: Ledger, from: &str, to: &str) -> Vec<String> {
        assert!(AT_REST.contains(from));
        ledger.against(&AT_REST.replace(from, to))
    }

    #[test]
    fn what_is_held_and_not_there_is_told() {
        let groups = Groups { trees: 4, of_machines: 8, beside_machines: 8 };
        let ledger = Ledger { machines: 2, instances: 2, groups: Some(groups) };
        assert_eq!(ledger.against(AT_REST), Vec::<String>::new());
        for (from, to, told) in [
            ("state=\"running\"} 0", "state=\"running\"} 1", "sandboxes: 1, not 0"),
            ("\"active\",resource=\"memory_mib\"} 0", "\"active\",resource=\"memory_mib\"} 600", "capacity that sandboxes hold"),
            ("kind=\"active\"} 0", "kind=\"active\"} 1", "sessions of sandboxes"),
            ("state=\"making\"} 0", "state=\"making\"} 1", "sessions that the pool is making"),
        ] {
            let wrong = differs(ledger, from, to);
            assert!(wrong.len() == 1 && wrong[0].starts_with(told), "{wrong:?}");
        }
        assert!(!Ledger { machines: 3, ..ledger }.against(AT_REST).is_empty());
        let left = Ledger { instances: 3, ..ledger }.against(AT_REST);
        assert_eq!(left, ["directories of machines: 3, not 2"]);
        let left = Ledger { groups: Some(Groups { of_machines: 9, ..groups }), ..ledger }.against(AT_REST);
        assert_eq!(left, ["control groups of machines: 9, not 2 in each of 4 trees"]);
    }

    #[test]
    fn a_name_that_begins_alike_is_another() {
        assert!((sum("firkin_x_total 7\nfirkin_x{a=\"b\"} 1\nfirkin_x{a=\"c\"} 2\n", "firkin_x", "") - 3.0).abs() < 1e-9);
        assert!((sum("firkin_x{a=\"b\"} 1\nfirkin_x{a=\"c\"} 2\n", "firkin_x", "a=\"c\"") - 2.0).abs() < 1e-9);
    }
}
