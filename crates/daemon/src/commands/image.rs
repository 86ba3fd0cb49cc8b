//! `instavmd image`: the images in this host's cache.

use crate::cli::ImageCommand;
use crate::commands::block_on;
use crate::{output, wiring};
use anyhow::Context;
use std::process::ExitCode;

/// An image in the list.
#[derive(Debug, serde::Serialize)]
pub(crate) struct ImageLine {
    pub(crate) name: String,
    pub(crate) digest: String,
    pub(crate) source: String,
    pub(crate) size_bytes: u64,
    pub(crate) created_at: String,
}

/// Does what the command line asks about images.
pub(crate) fn run(command: ImageCommand) -> anyhow::Result<ExitCode> {
    match command {
        ImageCommand::Build {
            source,
            name,
            overrides,
        } => {
            let config = crate::load(&overrides)?;
            let image = block_on(async {
                wiring::build_image(&config, source, name)
                    .await
                    .map_err(anyhow::Error::from_boxed)
                    .context("the image is not built")
            })?;
            output::line(&format!("{} {}", image.name, image.digest))?;
        }
        ImageCommand::Ls { json, overrides } => {
            let config = crate::load(&overrides)?;
            let images = block_on(async {
                wiring::list_images(&config)
                    .await
                    .map_err(anyhow::Error::from_boxed)
                    .context("the images cannot be listed")
            })?;
            list(images, json)?;
        }
        ImageCommand::Rm { name, overrides } => {
            let config = crate::load(&overrides)?;
            block_on(async {
                wiring::remove_image(&config, &name)
                    .await
                    .map_err(anyhow::Error::from_boxed)
                    .context("the image is not removed")
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(images: Vec<ImageLine>, json: bool) -> std::io::Result<()> {
    if json {
        return output::json(&images);
    }
    let mut rows = vec![
        ["NAME", "SOURCE", "SIZE", "CREATED", "DIGEST"]
            .map(String::from)
            .to_vec(),
    ];
    rows.extend(images.into_iter().map(|image| {
        vec![
            image.name,
            image.source,
            format!("{} MiB", image.size_bytes >> 20),
            image.created_at,
            image.digest,
        ]
    }));
    output::table(&rows)
}
