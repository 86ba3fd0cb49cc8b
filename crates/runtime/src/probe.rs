//! Facts about the host, told to people.

use serde::Serialize;

/// One thing that was tried on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// What was tried.
    pub name: String,
    /// It works.
    pub ok: bool,
    /// VMs cannot be run without it.
    pub required: bool,
    /// What was found.
    pub detail: String,
    /// What to do about a failure, in one line.
    pub fix: Option<String>,
}

impl Probe {
    /// Something that works.
    pub fn works(name: &str, detail: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            ok: true,
            required: true,
            detail: detail.into(),
            fix: None,
        }
    }

    /// Something that VMs cannot be run without, and that does not work.
    pub fn fails(name: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            ok: false,
            required: true,
            detail: detail.into(),
            fix: Some(fix.into()),
        }
    }

    /// Something that VMs can be run without, and that does not work.
    pub fn lacks(name: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            required: false,
            ..Self::fails(name, detail, fix)
        }
    }
}
