//! The matrix as a person reads it.

use std::fmt::Write;

use super::{cell::Trouble, checker::Report};

/// A line for each cell, its findings below it, and the sums.
#[must_use]
pub fn table(cells: &[(Trouble, Report)]) -> String {
    let mut lines = format!(
        "{:<42} {:<6} {:>6} {:>5} {:>5} {:>5} {:>8} {:>8}\n",
        "point or place       fault",
        "",
        "faults",
        "slots",
        "runs",
        "calls",
        "webhooks",
        "absorbed"
    );
    for (trouble, report) in cells {
        let verdict = if report.findings.is_empty() {
            "held"
        } else {
            "BROKEN"
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            lines,
            "{trouble:<42} {verdict:<6} {:>6} {:>5} {:>5} {:>5} {:>8} {:>8}",
            report.faults,
            report.slots,
            report.runs,
            report.calls,
            report.webhooks,
            report.absorbed
        );
        for finding in &report.findings {
            let _ = writeln!(lines, "    {finding}");
        }
    }
    lines.push_str(&sums(cells));
    lines
}

fn sums(cells: &[(Trouble, Report)]) -> String {
    let sum =
        |count: fn(&Report) -> usize| cells.iter().map(|(_, report)| count(report)).sum::<usize>();
    let broken = cells
        .iter()
        .filter(|(_, report)| !report.findings.is_empty())
        .count();
    let of = |promise: &str| {
        let findings = cells.iter().flat_map(|(_, report)| &report.findings);
        findings
            .filter(|finding| finding.starts_with(promise))
            .count()
    };
    format!(
        "{} cells, {broken} broken: {} faults, {} slots, {} runs, {} model calls, {} webhooks; \
         {} repeats absorbed; slots lost {}, runs doubled {}, cross-tenant rows {}\n",
        cells.len(),
        sum(|report| report.faults),
        sum(|report| report.slots),
        sum(|report| report.runs),
        sum(|report| report.calls),
        sum(|report| report.webhooks),
        sum(|report| report.absorbed),
        of("P3"),
        of("P2"),
        of("P9"),
    )
}
