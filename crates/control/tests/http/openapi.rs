//! The checked-in document is the generated one. `INSTAVM_UPDATE_OPENAPI=1` rewrites it.

use anyhow::{Context, Result};
use std::path::Path;

#[test]
fn the_document_is_up_to_date() -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let generated = instavm_control::openapi::document().to_pretty_json()? + "\n";
    if std::env::var_os("INSTAVM_UPDATE_OPENAPI").is_some() {
        std::fs::create_dir_all(file.parent().context("no folder")?)?;
        std::fs::write(&file, &generated)?;
    }
    let written = std::fs::read_to_string(&file).context("docs/openapi.json is missing")?;
    assert!(
        written == generated,
        "docs/openapi.json is out of date: run this test with INSTAVM_UPDATE_OPENAPI=1"
    );
    Ok(())
}
