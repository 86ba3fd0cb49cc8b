//! `instavmd doctor`: what works on this host.

use crate::commands::block_on;
use crate::config::Config;
use crate::{agent_binary, output, process, wiring};
use std::process::ExitCode;

/// The fewest open files that a busy daemon gets along with.
const OPEN_FILES_WANTED: u64 = 16_384;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Finding {
    /// What was looked at.
    pub(crate) name: String,
    /// It works.
    pub(crate) ok: bool,
    /// VMs cannot be run without it.
    pub(crate) required: bool,
    /// What was found.
    pub(crate) detail: String,
    /// What to do when it does not work.
    pub(crate) fix: Option<String>,
}

#[derive(serde::Serialize)]
struct Report<'a> {
    ok: bool,
    probes: &'a [Finding],
}

/// Prints the findings; fails when VMs cannot be run.
pub(crate) fn run(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let mut findings = vec![agent(), open_files()];
    findings.extend(block_on(async { Ok(wiring::probe(config).await) })?);
    let ok = findings.iter().all(|found| found.ok || !found.required);
    if json {
        output::json(&Report {
            ok,
            probes: &findings,
        })?;
    } else {
        print(&findings, ok)?;
    }
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print(findings: &[Finding], ok: bool) -> std::io::Result<()> {
    let width = findings
        .iter()
        .map(|found| found.name.chars().count())
        .max()
        .unwrap_or(0);
    for found in findings {
        let mark = match (found.ok, found.required) {
            (true, _) => "ok  ",
            (false, true) => "FAIL",
            (false, false) => "weak",
        };
        output::line(&format!("{mark}  {:<width$}  {}", found.name, found.detail))?;
        if let Some(fix) = found.fix.as_ref().filter(|_| !found.ok) {
            output::line(&format!("FIX: {fix}"))?;
        }
    }
    output::line(if ok {
        "VMs can be run on this host."
    } else {
        "VMs cannot be run on this host until what FAILs is fixed."
    })
}

fn agent() -> Finding {
    let found = agent_binary::embedded();
    Finding {
        name: "agent".to_owned(),
        ok: found.is_ok(),
        required: true,
        detail: match &found {
            Ok(binary) => format!("{} KiB, inside this program", binary.len() >> 10),
            Err(error) => error.to_string(),
        },
        fix: Some("build instavmd by `make build`".to_owned()),
    }
}

fn open_files() -> Finding {
    let (ok, detail) = match process::raise_open_files() {
        Ok(limit) => (limit >= OPEN_FILES_WANTED, format!("up to {limit}")),
        Err(error) => (false, format!("the limit cannot be raised: {error}")),
    };
    Finding {
        name: "open files".to_owned(),
        ok,
        required: false,
        detail,
        fix: Some(format!(
            "raise the hard limit to {OPEN_FILES_WANTED} or more (`ulimit -Hn`, LimitNOFILE= in a systemd unit)"
        )),
    }
}
